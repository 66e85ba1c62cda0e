//! Instructions with their meaning: [`decode`] refuses what the instruction set leaves reserved, and names the field.
//!
//! `decode` and [`Op::encode`] are inverse: every instruction that decodes is what its [`Op`] encodes to. Whether a
//! program may do what it says (write `r10`, shift by 70, divide by zero) is the verifier's business.

use crate::insn::{self, Insn, alu, atomic, class, jmp, mode, pseudo, size};

/// Number of the highest register.
pub const MAX_REG: u8 = 10;

/// The second operand: a register or a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Src {
    /// A register.
    Reg(u8),
    /// A constant, sign-extended where the operation is 64 bits wide.
    Imm(i32),
}

/// Arithmetic on a register and an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Sdiv,
    Or,
    And,
    Lsh,
    Rsh,
    Mod,
    Smod,
    Xor,
    Mov,
    Arsh,
}

/// Byte swaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Swap {
    /// To or from little-endian.
    Le,
    /// To or from big-endian.
    Be,
    /// Always.
    Always,
}

/// Conditions of branches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Cond {
    Eq,
    Gt,
    Ge,
    Set,
    Ne,
    Sgt,
    Sge,
    Lt,
    Le,
    Slt,
    Sle,
}

/// Width of a memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Width {
    B,
    H,
    W,
    Dw,
}

/// Atomic operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Atomic {
    Add,
    Or,
    And,
    Xor,
    FetchAdd,
    FetchOr,
    FetchAnd,
    FetchXor,
    Xchg,
    Cmpxchg,
    LoadAcquire,
    StoreRelease,
}

/// What a 64-bit immediate load refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ref {
    /// A map by file descriptor.
    MapFd(i32),
    /// A byte of the first value of a map by file descriptor.
    MapFdValue(i32, i32),
    /// A map by index.
    MapIdx(i32),
    /// A byte of the first value of a map by index.
    MapIdxValue(i32, i32),
    /// A kernel variable or function by BTF id, and the fd of the module's BTF (0: the kernel's).
    Btf(i32, i32),
    /// A function of the program by its distance.
    Func(i32),
}

/// An instruction. Registers are numbers up to [`MAX_REG`]; jump distances count from the next instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // fields are named as in the instruction set
pub enum Op {
    Alu {
        wide: bool,
        op: Alu,
        dst: u8,
        src: Src,
    },
    /// Move with sign extension from `bits`.
    MovSx {
        wide: bool,
        bits: u8,
        dst: u8,
        src: u8,
    },
    Neg {
        wide: bool,
        dst: u8,
    },
    Swap {
        kind: Swap,
        bits: u8,
        dst: u8,
    },
    /// Cast of an arena pointer; `to` and `from` are address spaces.
    AddrSpaceCast {
        dst: u8,
        src: u8,
        to: u16,
        from: u16,
    },
    Load {
        width: Width,
        signed: bool,
        dst: u8,
        base: u8,
        off: i16,
    },
    Store {
        width: Width,
        base: u8,
        off: i16,
        src: Src,
    },
    /// `reg` is the value register, for a load the destination.
    Atomic {
        op: Atomic,
        width: Width,
        base: u8,
        off: i16,
        reg: u8,
    },
    /// Legacy load of packet bytes into `r0`, at `imm` plus the register, if any.
    LoadPacket {
        width: Width,
        index: Option<u8>,
        imm: i32,
    },
    LoadImm {
        dst: u8,
        value: u64,
    },
    LoadRef {
        dst: u8,
        to: Ref,
    },
    /// `goto`; `long` is the form with the distance in the immediate.
    Jump {
        long: bool,
        off: i32,
    },
    MayGoto {
        off: i16,
    },
    Branch {
        wide: bool,
        cond: Cond,
        dst: u8,
        src: Src,
        off: i16,
    },
    CallHelper {
        id: i32,
    },
    CallFunc {
        off: i32,
    },
    /// `btf` is the index of the module's BTF in the load's fd array, 0 for the kernel's.
    CallKfunc {
        id: i32,
        btf: i16,
    },
    Exit,
}

/// Why an instruction is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The opcode stands for nothing.
    Opcode {
        /// The opcode.
        code: u8,
    },
    /// A field that the opcode does not use is not zero, or one it uses holds a reserved value.
    Reserved {
        /// The opcode.
        code: u8,
        /// The field.
        field: Field,
        /// What stands there.
        found: i32,
    },
    /// There is no such register.
    Register {
        /// The field.
        field: Field,
        /// Its number.
        found: u8,
    },
    /// The second slot of a 64-bit immediate load is missing.
    Truncated,
}

/// Fields of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Field {
    Dst,
    Src,
    Off,
    Imm,
    NextCode,
    NextRegs,
    NextOff,
    NextImm,
}

impl core::fmt::Display for Field {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Field::Dst => "dst",
            Field::Src => "src",
            Field::Off => "off",
            Field::Imm => "imm",
            Field::NextCode => "second slot's code",
            Field::NextRegs => "second slot's registers",
            Field::NextOff => "second slot's off",
            Field::NextImm => "second slot's imm",
        })
    }
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            DecodeError::Opcode { code } => write!(f, "unknown opcode {code:#04x}"),
            DecodeError::Reserved { code, field, found } => {
                write!(f, "{field} of opcode {code:#04x} cannot be {found}")
            }
            DecodeError::Register { field, found } => write!(f, "{field} is r{found}, the last register is r{MAX_REG}"),
            DecodeError::Truncated => f.write_str("64-bit immediate load without its second slot"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Operation bits of each ALU operation that has a plain operand, and whether its `off` is 1.
const ALU: [(Alu, u8, i16); 14] = [
    (Alu::Add, alu::ADD, 0),
    (Alu::Sub, alu::SUB, 0),
    (Alu::Mul, alu::MUL, 0),
    (Alu::Div, alu::DIV, 0),
    (Alu::Sdiv, alu::DIV, 1),
    (Alu::Or, alu::OR, 0),
    (Alu::And, alu::AND, 0),
    (Alu::Lsh, alu::LSH, 0),
    (Alu::Rsh, alu::RSH, 0),
    (Alu::Mod, alu::MOD, 0),
    (Alu::Smod, alu::MOD, 1),
    (Alu::Xor, alu::XOR, 0),
    (Alu::Mov, alu::MOV, 0),
    (Alu::Arsh, alu::ARSH, 0),
];

/// Operation bits of each condition.
const CONDS: [(Cond, u8); 11] = [
    (Cond::Eq, jmp::JEQ),
    (Cond::Gt, jmp::JGT),
    (Cond::Ge, jmp::JGE),
    (Cond::Set, jmp::JSET),
    (Cond::Ne, jmp::JNE),
    (Cond::Sgt, jmp::JSGT),
    (Cond::Sge, jmp::JSGE),
    (Cond::Lt, jmp::JLT),
    (Cond::Le, jmp::JLE),
    (Cond::Slt, jmp::JSLT),
    (Cond::Sle, jmp::JSLE),
];

/// Immediate of each atomic operation.
const ATOMICS: [(Atomic, i32); 12] = [
    (Atomic::Add, atomic::ADD),
    (Atomic::Or, atomic::OR),
    (Atomic::And, atomic::AND),
    (Atomic::Xor, atomic::XOR),
    (Atomic::FetchAdd, atomic::ADD | atomic::FETCH),
    (Atomic::FetchOr, atomic::OR | atomic::FETCH),
    (Atomic::FetchAnd, atomic::AND | atomic::FETCH),
    (Atomic::FetchXor, atomic::XOR | atomic::FETCH),
    (Atomic::Xchg, atomic::XCHG),
    (Atomic::Cmpxchg, atomic::CMPXCHG),
    (Atomic::LoadAcquire, atomic::LOAD_ACQ),
    (Atomic::StoreRelease, atomic::STORE_REL),
];

impl Width {
    const ALL: [(Width, u8); 4] =
        [(Width::B, size::B), (Width::H, size::H), (Width::W, size::W), (Width::Dw, size::DW)];

    fn of(insn: Insn) -> Width {
        match insn.size() {
            size::B => Width::B,
            size::H => Width::H,
            size::W => Width::W,
            _ => Width::Dw,
        }
    }

    fn bits(self) -> u8 {
        Width::ALL.iter().find(|w| w.0 == self).map_or(size::DW, |w| w.1)
    }
}

/// One instruction's fields while it is decoded.
struct Fields(Insn);

impl Fields {
    fn reserved(&self, field: Field, found: i32) -> DecodeError {
        DecodeError::Reserved { code: self.0.code, field, found }
    }

    /// The field must be zero.
    fn zero(&self, fields: &[Field]) -> Result<(), DecodeError> {
        for &field in fields {
            let found = match field {
                Field::Dst => self.0.dst().into(),
                Field::Src => self.0.src().into(),
                Field::Off => self.0.off.into(),
                _ => self.0.imm,
            };
            if found != 0 {
                return Err(self.reserved(field, found));
            }
        }
        Ok(())
    }

    fn reg(field: Field, found: u8) -> Result<u8, DecodeError> {
        if found <= MAX_REG { Ok(found) } else { Err(DecodeError::Register { field, found }) }
    }

    fn dst(&self) -> Result<u8, DecodeError> {
        Fields::reg(Field::Dst, self.0.dst())
    }

    fn src(&self) -> Result<u8, DecodeError> {
        Fields::reg(Field::Src, self.0.src())
    }

    /// The operand of ALU operations and branches; the field of the other kind must be zero.
    fn operand(&self) -> Result<Src, DecodeError> {
        if self.0.is_x() {
            self.zero(&[Field::Imm])?;
            Ok(Src::Reg(self.src()?))
        } else {
            self.zero(&[Field::Src])?;
            Ok(Src::Imm(self.0.imm))
        }
    }
}

/// Decodes the instruction `insn`; `next` is the slot behind it, which only a 64-bit immediate load looks at.
pub fn decode(insn: Insn, next: Option<Insn>) -> Result<Op, DecodeError> {
    let f = Fields(insn);
    match insn.class() {
        class::ALU | class::ALU64 => decode_alu(&f),
        class::LDX => decode_load(&f),
        class::ST | class::STX => decode_store(&f),
        class::LD => decode_ld(&f, next),
        _ => decode_jump(&f),
    }
}

fn decode_alu(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let wide = i.class() == class::ALU64;
    let unknown = DecodeError::Opcode { code: i.code };
    match i.op() {
        alu::NEG if !i.is_x() => {
            f.zero(&[Field::Src, Field::Off, Field::Imm])?;
            Ok(Op::Neg { wide, dst: f.dst()? })
        }
        alu::END => {
            let kind = match (wide, i.is_x()) {
                (false, false) => Swap::Le,
                (false, true) => Swap::Be,
                (true, false) => Swap::Always,
                (true, true) => return Err(unknown),
            };
            f.zero(&[Field::Src, Field::Off])?;
            match i.imm {
                16 | 32 | 64 => Ok(Op::Swap { kind, bits: i.imm as u8, dst: f.dst()? }),
                n => Err(f.reserved(Field::Imm, n)),
            }
        }
        alu::MOV if i.is_x() && i.off != 0 => match (i.off, wide) {
            (8 | 16, _) | (32, true) => {
                f.zero(&[Field::Imm])?;
                Ok(Op::MovSx { wide, bits: i.off as u8, dst: f.dst()?, src: f.src()? })
            }
            (1, true) => {
                let (to, from) = ((i.imm >> 16) as u16, i.imm as u16);
                Ok(Op::AddrSpaceCast { dst: f.dst()?, src: f.src()?, to, from })
            }
            (n, _) => Err(f.reserved(Field::Off, n.into())),
        },
        bits => {
            let mut rows = ALU.iter().filter(|a| a.1 == bits).peekable();
            rows.peek().ok_or(unknown)?;
            let row = rows.find(|a| a.2 == i.off).ok_or(f.reserved(Field::Off, i.off.into()))?;
            Ok(Op::Alu { wide, op: row.0, dst: f.dst()?, src: f.operand()? })
        }
    }
}

fn decode_load(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let width = Width::of(i);
    let signed = match i.mode() {
        mode::MEM => false,
        mode::MEMSX if width != Width::Dw => true,
        _ => return Err(DecodeError::Opcode { code: i.code }),
    };
    f.zero(&[Field::Imm])?;
    Ok(Op::Load { width, signed, dst: f.dst()?, base: f.src()?, off: i.off })
}

fn decode_store(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let width = Width::of(i);
    let (base, off) = (f.dst()?, i.off);
    match (i.class(), i.mode()) {
        (class::ST, mode::MEM) => {
            f.zero(&[Field::Src])?;
            Ok(Op::Store { width, base, off, src: Src::Imm(i.imm) })
        }
        (class::STX, mode::MEM) => {
            f.zero(&[Field::Imm])?;
            Ok(Op::Store { width, base, off, src: Src::Reg(f.src()?) })
        }
        (class::STX, mode::ATOMIC) => {
            let op = ATOMICS.iter().find(|a| a.1 == i.imm).map(|a| a.0);
            let narrow = matches!(width, Width::B | Width::H);
            match op {
                Some(Atomic::LoadAcquire) => {
                    Ok(Op::Atomic { op: Atomic::LoadAcquire, width, base: f.src()?, off, reg: base })
                }
                Some(op) if !narrow || op == Atomic::StoreRelease => {
                    Ok(Op::Atomic { op, width, base, off, reg: f.src()? })
                }
                _ if narrow => Err(DecodeError::Opcode { code: i.code }),
                _ => Err(f.reserved(Field::Imm, i.imm)),
            }
        }
        _ => Err(DecodeError::Opcode { code: i.code }),
    }
}

fn decode_ld(f: &Fields, next: Option<Insn>) -> Result<Op, DecodeError> {
    let i = f.0;
    let width = Width::of(i);
    match (i.mode(), width) {
        (mode::IMM, Width::Dw) => {
            f.zero(&[Field::Off])?;
            let next = next.ok_or(DecodeError::Truncated)?;
            let second = [
                (Field::NextCode, i32::from(next.code)),
                (Field::NextRegs, next.regs.into()),
                (Field::NextOff, next.off.into()),
            ];
            if let Some(&(field, found)) = second.iter().find(|s| s.1 != 0) {
                return Err(f.reserved(field, found));
            }
            decode_imm64(f, next.imm)
        }
        (mode::ABS, Width::B | Width::H | Width::W) => {
            f.zero(&[Field::Dst, Field::Src, Field::Off])?;
            Ok(Op::LoadPacket { width, index: None, imm: i.imm })
        }
        (mode::IND, Width::B | Width::H | Width::W) => {
            f.zero(&[Field::Dst, Field::Off])?;
            Ok(Op::LoadPacket { width, index: Some(f.src()?), imm: i.imm })
        }
        _ => Err(DecodeError::Opcode { code: i.code }),
    }
}

fn decode_imm64(f: &Fields, high: i32) -> Result<Op, DecodeError> {
    let (low, dst) = (f.0.imm, f.dst()?);
    let alone = |to| if high == 0 { Ok(to) } else { Err(f.reserved(Field::NextImm, high)) };
    let to = match f.0.src() {
        0 => return Ok(Op::LoadImm { dst, value: u64::from(low as u32) | u64::from(high as u32) << 32 }),
        pseudo::MAP_FD => alone(Ref::MapFd(low))?,
        pseudo::MAP_VALUE => Ref::MapFdValue(low, high),
        pseudo::BTF_ID => Ref::Btf(low, high),
        pseudo::FUNC => alone(Ref::Func(low))?,
        pseudo::MAP_IDX => alone(Ref::MapIdx(low))?,
        pseudo::MAP_IDX_VALUE => Ref::MapIdxValue(low, high),
        n => return Err(f.reserved(Field::Src, n.into())),
    };
    Ok(Op::LoadRef { dst, to })
}

fn decode_jump(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let wide = i.class() == class::JMP;
    match i.code {
        insn::JA => {
            f.zero(&[Field::Dst, Field::Src, Field::Imm])?;
            return Ok(Op::Jump { long: false, off: i.off.into() });
        }
        insn::JA32 => {
            f.zero(&[Field::Dst, Field::Src, Field::Off])?;
            return Ok(Op::Jump { long: true, off: i.imm });
        }
        insn::EXIT => {
            f.zero(&[Field::Dst, Field::Src, Field::Off, Field::Imm])?;
            return Ok(Op::Exit);
        }
        insn::CALL => {
            f.zero(&[Field::Dst])?;
            if i.src() != insn::call::KFUNC {
                f.zero(&[Field::Off])?;
            }
            return match i.src() {
                insn::call::HELPER => Ok(Op::CallHelper { id: i.imm }),
                insn::call::SUBPROG => Ok(Op::CallFunc { off: i.imm }),
                insn::call::KFUNC => Ok(Op::CallKfunc { id: i.imm, btf: i.off }),
                n => Err(f.reserved(Field::Src, n.into())),
            };
        }
        MAY_GOTO => {
            f.zero(&[Field::Dst, Field::Src, Field::Imm])?;
            return Ok(Op::MayGoto { off: i.off });
        }
        _ => {}
    }
    let cond = CONDS.iter().find(|c| c.1 == i.op()).ok_or(DecodeError::Opcode { code: i.code })?.0;
    Ok(Op::Branch { wide, cond, dst: f.dst()?, src: f.operand()?, off: i.off })
}

const MAY_GOTO: u8 = class::JMP | jmp::JCOND;
/// The bit that makes the operand a register.
const X: u8 = 8;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every opcode, with fields that are zero, valid or odd, either decodes to what encodes to it, or is refused.
    #[test]
    fn decode_and_encode_are_inverse() {
        let imms = [0, 1, -1, 16, 32, 64, 0x41, 0xe1, 0xf1, 0x100, 0x110, 0x0001_0000, i32::MIN, i32::MAX];
        let offs = [0, 1, 8, 16, 32, -8, i16::MIN, i16::MAX];
        let (mut good, mut bad) = (0, 0);
        for code in 0..=255 {
            for regs in [0x00, 0x01, 0x10, 0x21, 0x31, 0x41, 0x51, 0x61, 0x71, 0xa9, 0xb0, 0x0b, 0xff] {
                for off in offs {
                    for imm in imms {
                        let insn = Insn { code, regs, off, imm };
                        for next in [None, Some(Insn::default()), Some(Insn::new(0, 0, 0, 0, 7)), Some(insn)] {
                            match decode(insn, next) {
                                Ok(op) => {
                                    let (first, second) = op.encode();
                                    assert_eq!(first, insn, "{op:?}");
                                    assert!(second.is_none() || second == next, "{op:?}");
                                    good += 1;
                                }
                                Err(_) => bad += 1,
                            }
                        }
                    }
                }
            }
        }
        assert!(good > 10_000 && bad > 100_000, "{good} {bad}");
    }

    #[test]
    fn faults_name_the_field() {
        let field = |insn: Insn, next: Option<Insn>| match decode(insn, next) {
            Err(DecodeError::Reserved { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(Insn::new(0x0f, 1, 2, 0, 7), None), Field::Imm);
        assert_eq!(field(Insn::new(0x07, 1, 2, 0, 7), None), Field::Src);
        assert_eq!(field(Insn::new(0x07, 1, 0, 1, 7), None), Field::Off);
        assert_eq!(field(Insn::new(0xbf, 1, 2, 7, 0), None), Field::Off);
        assert_eq!(field(Insn::new(insn::LD_IMM64, 1, 7, 0, 0), Some(Insn::default())), Field::Src);
        assert_eq!(field(Insn::new(insn::LD_IMM64, 1, 0, 0, 0), Some(Insn::new(0x95, 0, 0, 0, 0))), Field::NextCode);
        assert_eq!(field(Insn::new(insn::EXIT, 1, 0, 0, 0), None), Field::Dst);
        assert_eq!(field(Insn::new(0xdb, 1, 2, 0, 2), None), Field::Imm);
        assert_eq!(decode(Insn::new(insn::LD_IMM64, 1, 0, 0, 0), None), Err(DecodeError::Truncated));
        assert_eq!(decode(Insn::new(0x8d, 1, 0, 0, 0), None), Err(DecodeError::Opcode { code: 0x8d }));
        let e = decode(Insn::new(0xbf, 11, 0, 0, 0), None);
        assert_eq!(e, Err(DecodeError::Register { field: Field::Dst, found: 11 }));
    }
}
