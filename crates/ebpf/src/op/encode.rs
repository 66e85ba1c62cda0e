//! From meaning to fields.

use super::{ALU, ATOMICS, Atomic, CONDS, MAY_GOTO, Op, Ref, Src, Swap, X};
use crate::insn::{self, Insn, alu, class, mode, pseudo};

impl Op {
    /// The instruction, and for a 64-bit immediate load its second slot.
    pub fn encode(&self) -> (Insn, Option<Insn>) {
        let one = |code, dst, src, off, imm| (Insn::new(code, dst, src, off, imm), None);
        let alu_class = |wide| if wide { class::ALU64 } else { class::ALU };
        match *self {
            Op::Alu { wide, op, dst, src } => {
                let (bits, off) = ALU.iter().find(|a| a.0 == op).map_or((0, 0), |a| (a.1, a.2));
                let (x, src, imm) = operand(src);
                one(alu_class(wide) | bits | x, dst, src, off, imm)
            }
            Op::MovSx { wide, bits, dst, src } => one(alu_class(wide) | alu::MOV | X, dst, src, bits.into(), 0),
            Op::Neg { wide, dst } => one(alu_class(wide) | alu::NEG, dst, 0, 0, 0),
            Op::Swap { kind, bits, dst } => {
                let code = match kind {
                    Swap::Le => class::ALU,
                    Swap::Be => class::ALU | X,
                    Swap::Always => class::ALU64,
                };
                one(code | alu::END, dst, 0, 0, bits.into())
            }
            Op::AddrSpaceCast { dst, src, to, from } => {
                let imm = (u32::from(to) << 16 | u32::from(from)) as i32;
                one(class::ALU64 | alu::MOV | X, dst, src, 1, imm)
            }
            Op::Load { width, signed, dst, base, off } => {
                let mode = if signed { mode::MEMSX } else { mode::MEM };
                one(class::LDX | mode | width.bits(), dst, base, off, 0)
            }
            Op::Store { width, base, off, src } => {
                let class = if let Src::Imm(_) = src { class::ST } else { class::STX };
                let (_, src, imm) = operand(src);
                one(class | mode::MEM | width.bits(), base, src, off, imm)
            }
            Op::Atomic { op, width, base, off, reg } => {
                let imm = ATOMICS.iter().find(|a| a.0 == op).map_or(0, |a| a.1);
                let (dst, src) = if op == Atomic::LoadAcquire { (reg, base) } else { (base, reg) };
                one(class::STX | mode::ATOMIC | width.bits(), dst, src, off, imm)
            }
            Op::LoadPacket { width, index, imm } => {
                let mode = if index.is_some() { mode::IND } else { mode::ABS };
                one(class::LD | mode | width.bits(), 0, index.unwrap_or(0), 0, imm)
            }
            Op::LoadImm { dst, value } => imm64(dst, 0, value as i32, (value >> 32) as i32),
            Op::LoadRef { dst, to } => match to {
                Ref::MapFd(n) => imm64(dst, pseudo::MAP_FD, n, 0),
                Ref::MapFdValue(n, off) => imm64(dst, pseudo::MAP_VALUE, n, off),
                Ref::MapIdx(n) => imm64(dst, pseudo::MAP_IDX, n, 0),
                Ref::MapIdxValue(n, off) => imm64(dst, pseudo::MAP_IDX_VALUE, n, off),
                Ref::Btf(id, fd) => imm64(dst, pseudo::BTF_ID, id, fd),
                Ref::Func(off) => imm64(dst, pseudo::FUNC, off, 0),
            },
            Op::Jump { long: false, off } => one(insn::JA, 0, 0, off as i16, 0),
            Op::Jump { long: true, off } => one(insn::JA32, 0, 0, 0, off),
            Op::MayGoto { off } => one(MAY_GOTO, 0, 0, off, 0),
            Op::Branch { wide, cond, dst, src, off } => {
                let bits = CONDS.iter().find(|c| c.0 == cond).map_or(0, |c| c.1);
                let class = if wide { class::JMP } else { class::JMP32 };
                let (x, src, imm) = operand(src);
                one(class | bits | x, dst, src, off, imm)
            }
            Op::CallHelper { id } => one(insn::CALL, 0, insn::call::HELPER, 0, id),
            Op::CallFunc { off } => one(insn::CALL, 0, insn::call::SUBPROG, 0, off),
            Op::CallKfunc { id, btf } => one(insn::CALL, 0, insn::call::KFUNC, btf, id),
            Op::Exit => one(insn::EXIT, 0, 0, 0, 0),
        }
    }
}

/// Operand bit, source register and immediate of an operand.
fn operand(src: Src) -> (u8, u8, i32) {
    match src {
        Src::Reg(r) => (X, r, 0),
        Src::Imm(n) => (0, 0, n),
    }
}

fn imm64(dst: u8, src: u8, low: i32, high: i32) -> (Insn, Option<Insn>) {
    (Insn::new(insn::LD_IMM64, dst, src, 0, low), Some(Insn::new(0, 0, 0, 0, high)))
}
