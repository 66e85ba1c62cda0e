//! Instructions taken apart, and what each does to the liveness of registers.
//!
//! Only instructions that [`lower`](crate::lower) has let through come here.

use skep_ebpf::Insn;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{CALL, EXIT, JA, JA32, LD_IMM64, alu, atomic, call, class, jmp, mode, pseudo, size};
use skep_runtime::helpers::TAIL_CALL;

use super::asm::{Cc, Size};

/// A register of the program or a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Src {
    Reg(u8),
    Imm(i32),
}

/// Arithmetic of two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bin {
    Add,
    Sub,
    Mul,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Sar,
}

/// What a jump compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Test {
    /// `a - b` has the condition.
    Cmp(Cc),
    /// `a & b` is not zero.
    Set,
}

/// A condition on two operands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cond {
    pub(crate) test: Test,
    pub(crate) wide: bool,
    pub(crate) a: u8,
    pub(crate) b: Src,
}

/// Atomic operations that read the old value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rmw {
    Add,
    Or,
    And,
    Xor,
    Xchg,
    CmpXchg,
}

/// An instruction. `wide` is 64 bits; results of 32 bits are zero-extended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[rustfmt::skip]
pub(crate) enum Op {
    /// Part of the instruction before.
    Nop,
    /// Where no path leads.
    Trap,
    Bin { op: Bin, wide: bool, dst: u8, src: Src },
    Div { signed: bool, rem: bool, wide: bool, dst: u8, src: Src },
    Neg { wide: bool, dst: u8 },
    Mov { wide: bool, dst: u8, src: Src },
    MovSx { size: Size, wide: bool, dst: u8, src: u8 },
    Swap { size: Size, dst: u8 },
    /// Cut to 16 bits.
    Low16 { dst: u8 },
    Imm64 { dst: u8, value: u64 },
    Map { dst: u8, index: u32 },
    MapValue { dst: u8, index: u32, off: u32 },
    Load { size: Size, signed: bool, dst: u8, base: u8, off: i16 },
    Store { size: Size, base: u8, off: i16, src: Src },
    /// Without result.
    Atomic { op: Rmw, wide: bool, base: u8, off: i16, src: u8 },
    /// The old value into `src` (r0 for the compare-exchange).
    Fetch { op: Rmw, wide: bool, base: u8, off: i16, src: u8 },
    Packet { size: Size, index: Option<u8>, at: i32 },
    Jump { target: u32 },
    Branch { cond: Cond, target: u32 },
    /// Unless the condition holds, `dst = src`.
    Select { cond: Cond, wide: bool, dst: u8, src: Src },
    Helper { id: u32, args: u8 },
    Sub { target: u32 },
    TailCall,
    Exit,
}

fn src(insn: Insn) -> Src {
    if insn.is_x() { Src::Reg(insn.src()) } else { Src::Imm(insn.imm) }
}

fn width(insn: Insn) -> Size {
    match insn.size() {
        size::B => Size::B,
        size::H => Size::H,
        size::W => Size::W,
        _ => Size::Dw,
    }
}

/// Takes all instructions apart; one [`Op`] per slot.
pub(crate) fn decode(insns: &[Insn]) -> Vec<Op> {
    let mut ops = Vec::with_capacity(insns.len());
    let mut all = insns.iter().enumerate();
    while let Some((i, &insn)) = all.next() {
        if insn.code == LD_IMM64 {
            let high = all.next().map_or(0, |(_, h)| h.imm);
            ops.push(match insn.src() {
                pseudo::MAP_IDX => Op::Map { dst: insn.dst(), index: insn.imm as u32 },
                pseudo::MAP_IDX_VALUE => Op::MapValue { dst: insn.dst(), index: insn.imm as u32, off: high as u32 },
                _ => Op::Imm64 { dst: insn.dst(), value: u64::from(insn.imm as u32) | (high as u64) << 32 },
            });
            ops.push(Op::Nop);
        } else {
            ops.push(single(insn, i));
        }
    }
    ops
}

fn single(insn: Insn, i: usize) -> Op {
    match insn.class() {
        class::ALU | class::ALU64 => arithmetic(insn),
        class::JMP | class::JMP32 => jump(insn, i),
        class::LD => {
            Op::Packet { size: width(insn), index: (insn.mode() == mode::IND).then_some(insn.src()), at: insn.imm }
        }
        _ => memory(insn),
    }
}

fn arithmetic(insn: Insn) -> Op {
    let (wide, dst, src) = (insn.class() == class::ALU64, insn.dst(), src(insn));
    let bin = |op| Op::Bin { op, wide, dst, src };
    match insn.op() {
        alu::ADD => bin(Bin::Add),
        alu::SUB => bin(Bin::Sub),
        alu::MUL => bin(Bin::Mul),
        alu::AND => bin(Bin::And),
        alu::OR => bin(Bin::Or),
        alu::XOR => bin(Bin::Xor),
        alu::LSH => bin(Bin::Shl),
        alu::RSH => bin(Bin::Shr),
        alu::ARSH => bin(Bin::Sar),
        alu::DIV => Op::Div { signed: insn.off == 1, rem: false, wide, dst, src },
        alu::MOD => Op::Div { signed: insn.off == 1, rem: true, wide, dst, src },
        alu::NEG => Op::Neg { wide, dst },
        alu::MOV => match insn.off {
            8 => Op::MovSx { size: Size::B, wide, dst, src: insn.src() },
            16 => Op::MovSx { size: Size::H, wide, dst, src: insn.src() },
            32 => Op::MovSx { size: Size::W, wide, dst, src: insn.src() },
            _ => Op::Mov { wide, dst, src },
        },
        _ => match (insn.imm, wide || insn.is_x()) {
            (16, true) => Op::Swap { size: Size::H, dst },
            (32, true) => Op::Swap { size: Size::W, dst },
            (_, true) => Op::Swap { size: Size::Dw, dst },
            (16, false) => Op::Low16 { dst },
            (bits, false) => Op::Mov { wide: bits == 64, dst, src: Src::Reg(dst) },
        },
    }
}

fn jump(insn: Insn, i: usize) -> Op {
    let to = |distance: i32| (i as i64 + 1 + i64::from(distance)) as u32;
    match insn.code {
        JA if insn.off == -1 => return Op::Trap,
        JA => return Op::Jump { target: to(i32::from(insn.off)) },
        JA32 => return Op::Jump { target: to(insn.imm) },
        EXIT => return Op::Exit,
        CALL if insn.src() == call::SUBPROG => return Op::Sub { target: to(insn.imm) },
        CALL if insn.imm as u32 == TAIL_CALL => return Op::TailCall,
        CALL => return Op::Helper { id: insn.imm as u32, args: arguments(insn.imm as u32) },
        _ => {}
    }
    let test = match insn.op() {
        jmp::JEQ => Test::Cmp(Cc::E),
        jmp::JNE => Test::Cmp(Cc::Ne),
        jmp::JGT => Test::Cmp(Cc::A),
        jmp::JGE => Test::Cmp(Cc::Ae),
        jmp::JLT => Test::Cmp(Cc::B),
        jmp::JLE => Test::Cmp(Cc::Be),
        jmp::JSGT => Test::Cmp(Cc::G),
        jmp::JSGE => Test::Cmp(Cc::Ge),
        jmp::JSLT => Test::Cmp(Cc::L),
        jmp::JSLE => Test::Cmp(Cc::Le),
        _ => Test::Set,
    };
    let cond = Cond { test, wide: insn.class() == class::JMP, a: insn.dst(), b: src(insn) };
    Op::Branch { cond, target: to(i32::from(insn.off)) }
}

/// Registers r1 up to this one are a helper's arguments.
fn arguments(id: u32) -> u8 {
    // What prints takes any number of them.
    if id == 6 {
        return 5;
    }
    Helper::by_id(id).map_or(5, |h| h.args.len() as u8)
}

fn memory(insn: Insn) -> Op {
    let (size, off) = (width(insn), insn.off);
    match (insn.class(), insn.mode()) {
        (class::LDX, m) => Op::Load { size, signed: m == mode::MEMSX, dst: insn.dst(), base: insn.src(), off },
        (class::ST, _) => Op::Store { size, base: insn.dst(), off, src: Src::Imm(insn.imm) },
        (_, mode::ATOMIC) => {
            let (base, src, wide) = (insn.dst(), insn.src(), size == Size::Dw);
            let op = match insn.imm & !atomic::FETCH {
                atomic::LOAD_ACQ => {
                    return Op::Load { size, signed: false, dst: insn.dst(), base: insn.src(), off };
                }
                atomic::STORE_REL => return Op::Store { size, base, off, src: Src::Reg(src) },
                atomic::ADD => Rmw::Add,
                atomic::OR => Rmw::Or,
                atomic::AND => Rmw::And,
                atomic::XOR => Rmw::Xor,
                _ if insn.imm == atomic::XCHG => Rmw::Xchg,
                _ => Rmw::CmpXchg,
            };
            if insn.imm & atomic::FETCH != 0 {
                Op::Fetch { op, wide, base, off, src }
            } else {
                Op::Atomic { op, wide, base, off, src }
            }
        }
        _ => Op::Store { size, base: insn.dst(), off, src: Src::Reg(insn.src()) },
    }
}

/// Registers that are live: bit `r` the low half of register `r`, bit `r + 16` the upper half.
pub(crate) type Live = u32;

/// The low half of a register.
pub(crate) const fn low(r: u8) -> Live {
    1 << r
}

/// The upper half.
pub(crate) const fn upper(r: u8) -> Live {
    1 << (r + 16)
}

/// All of it.
pub(crate) const fn both(r: u8) -> Live {
    low(r) | upper(r)
}

/// r0 to r5.
const CALLER_SAVED: Live = 0x3f | 0x3f << 16;

/// r1 to r5, as far as they are in `live`.
pub(crate) const ARGUMENTS: Live = 0x3e | 0x3e << 16;

fn both_of(src: Src) -> Live {
    if let Src::Reg(r) = src { both(r) } else { 0 }
}

fn low_of(src: Src) -> Live {
    if let Src::Reg(r) = src { low(r) } else { 0 }
}

impl Cond {
    fn uses(self) -> Live {
        let all = both(self.a) | both_of(self.b);
        if self.wide { all } else { all & 0xffff }
    }
}

impl Op {
    /// The register that it sets and does nothing else, if that is so.
    pub(crate) fn pure_result(self) -> Option<u8> {
        match self {
            Op::Bin { dst, .. }
            | Op::Div { dst, .. }
            | Op::Neg { dst, .. }
            | Op::Mov { dst, .. }
            | Op::MovSx { dst, .. }
            | Op::Swap { dst, .. }
            | Op::Low16 { dst }
            | Op::Imm64 { dst, .. }
            | Op::Map { dst, .. }
            | Op::MapValue { dst, .. }
            | Op::Load { dst, .. }
            | Op::Select { dst, .. } => Some(dst),
            _ => None,
        }
    }

    /// What is live in front of it, given what is behind; `callee` is what a function of the program needs.
    pub(crate) fn live_before(self, out: Live, callee: impl Fn(u32) -> Live) -> Live {
        if let Some(dst) = self.pure_result()
            && out & both(dst) == 0
        {
            return out;
        }
        // The halves of `r` that a result with the same halves live needs.
        let same = |r: u8, dst: u8| low(r) | if out & upper(dst) != 0 { upper(r) } else { 0 };
        match self {
            Op::Nop | Op::Jump { .. } => out,
            Op::Trap => 0,
            Op::Bin { op, wide, dst, src } => {
                let rest = out & !both(dst);
                if !wide {
                    return rest | low(dst) | low_of(src);
                }
                match op {
                    Bin::And if matches!(src, Src::Imm(0..)) => rest | low(dst),
                    Bin::Shl => rest | same(dst, dst) | low_of(src),
                    Bin::Shr | Bin::Sar => rest | both(dst) | low_of(src),
                    _ => rest | same(dst, dst) | if let Src::Reg(r) = src { same(r, dst) } else { 0 },
                }
            }
            Op::Div { wide: true, dst, src, .. } => out | both(dst) | both_of(src),
            Op::Div { dst, src, .. } => out & !both(dst) | low(dst) | low_of(src),
            Op::Neg { wide, dst } => out & !both(dst) | if wide { same(dst, dst) } else { low(dst) },
            Op::Mov { wide, dst, src } => {
                let rest = out & !both(dst);
                match src {
                    Src::Reg(r) if wide => rest | same(r, dst),
                    src => rest | low_of(src),
                }
            }
            Op::MovSx { dst, src, .. } => out & !both(dst) | low(src),
            Op::Swap { size: Size::Dw, dst } => out | both(dst),
            Op::Swap { dst, .. } | Op::Low16 { dst } => out & !both(dst) | low(dst),
            Op::Imm64 { dst, .. } | Op::Map { dst, .. } | Op::MapValue { dst, .. } => out & !both(dst),
            Op::Load { dst, base, .. } => out & !both(dst) | both(base),
            Op::Store { size, base, src, .. } => {
                out | both(base) | if size == Size::Dw { both_of(src) } else { low_of(src) }
            }
            Op::Atomic { wide, base, src, .. } => out | both(base) | if wide { both(src) } else { low(src) },
            Op::Fetch { op, wide, base, src, .. } => {
                let operand = if wide { both(src) } else { low(src) };
                if op == Rmw::CmpXchg {
                    out & !both(0) | both(base) | operand | if wide { both(0) } else { low(0) }
                } else {
                    out & !both(src) | both(base) | operand
                }
            }
            Op::Packet { index, .. } => out & !CALLER_SAVED | both(6) | index.map_or(0, low),
            Op::Branch { cond, .. } => out | cond.uses(),
            Op::Select { cond, wide, dst, src } => {
                let moved = match src {
                    Src::Reg(r) if wide => same(r, dst),
                    src => low_of(src),
                };
                out | low(dst) | cond.uses() | moved
            }
            Op::Helper { args, .. } => {
                let args = (1 << (args + 1)) - 2;
                out & !CALLER_SAVED | args | args << 16
            }
            Op::Sub { target } => out & !CALLER_SAVED | callee(target) & ARGUMENTS,
            Op::TailCall => out & !CALLER_SAVED | both(1) | both(2) | both(3),
            Op::Exit => both(0),
        }
    }

    /// The machine registers whose upper half is zero behind it, given those in front and what is live behind.
    pub(crate) fn zero_after(self, zero: u16, out: Live) -> u16 {
        let is = |r: u8| zero >> r & 1 != 0;
        let of = |src: Src| match src {
            Src::Reg(r) => is(r),
            Src::Imm(k) => k >= 0,
        };
        let (dst, known) = match self {
            Op::Bin { wide: false, dst, .. }
            | Op::Div { wide: false, dst, .. }
            | Op::Neg { wide: false, dst }
            | Op::Low16 { dst }
            | Op::Swap { size: Size::B | Size::H | Size::W, dst } => (dst, true),
            Op::Bin { op, dst, src, .. } => {
                let known = match op {
                    Bin::And => is(dst) || of(src),
                    Bin::Or | Bin::Xor => is(dst) && of(src),
                    Bin::Shr => is(dst) || matches!(src, Src::Imm(32..)),
                    Bin::Sar => is(dst),
                    _ => false,
                };
                (dst, known)
            }
            Op::Div { signed, dst, .. } => (dst, !signed && is(dst)),
            Op::Neg { dst, .. } | Op::Map { dst, .. } | Op::MapValue { dst, .. } => (dst, false),
            Op::Swap { dst, .. } => (dst, false),
            // Where nobody needs the upper half, a move of 32 bits may be one of 64.
            Op::Mov { wide, dst, src } => {
                (dst, of(src) || (!wide && (out & upper(dst) != 0 || matches!(src, Src::Imm(_)))))
            }
            Op::MovSx { wide, dst, .. } => (dst, !wide),
            Op::Imm64 { dst, value } => (dst, value >> 32 == 0),
            Op::Load { size, signed, dst, .. } => (dst, !signed && size != Size::Dw),
            Op::Fetch { op: Rmw::CmpXchg, wide, .. } => (0, !wide),
            Op::Fetch { wide, src, .. } => (src, !wide),
            Op::Select { wide, dst, src, .. } => (dst, is(dst) && (of(src) || (!wide && out & upper(dst) != 0))),
            Op::Packet { .. } | Op::Helper { .. } | Op::Sub { .. } | Op::TailCall => {
                return zero & !0x3f;
            }
            Op::Nop | Op::Trap | Op::Atomic { .. } | Op::Store { .. } => return zero,
            Op::Jump { .. } | Op::Branch { .. } | Op::Exit => return zero,
        };
        if known { zero | 1 << dst } else { zero & !(1 << dst) }
    }

    /// Registers that it writes; those that a call spoils are not among them.
    pub(crate) fn written(self) -> Option<u8> {
        match self {
            Op::Fetch { op: Rmw::CmpXchg, .. } | Op::Packet { .. } | Op::Helper { .. } | Op::Sub { .. } => Some(0),
            Op::Fetch { src, .. } => Some(src),
            op => op.pure_result(),
        }
    }

    /// True if it names the frame pointer.
    pub(crate) fn names_fp(self) -> bool {
        const FP: u8 = 10;
        let is = |src| src == Src::Reg(FP);
        match self {
            Op::Bin { src, .. } | Op::Div { src, .. } | Op::Mov { src, .. } => is(src),
            Op::MovSx { src, .. } => src == FP,
            Op::Load { base, .. } => base == FP,
            Op::Store { base, src, .. } => base == FP || is(src),
            Op::Atomic { base, src, .. } | Op::Fetch { base, src, .. } => base == FP || src == FP,
            Op::Branch { cond, .. } => cond.a == FP || is(cond.b),
            Op::Select { cond, src, .. } => cond.a == FP || is(cond.b) || is(src),
            _ => false,
        }
    }
}
