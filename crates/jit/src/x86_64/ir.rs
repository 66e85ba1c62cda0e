//! Instructions taken apart, and what each does to the liveness of registers.
//!
//! Only instructions that [`lower`](crate::lower) has let through come here.

use skep_ebpf::Insn;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{CALL, EXIT, JA, JA32, LD_IMM64, alu, atomic, call, class, jmp, mode, pseudo, size};
use skep_runtime::helpers::{self, TAIL_CALL};

use super::asm::{Cc, Size};
use crate::Source;
use crate::special::{Kfunc, is_may_goto};

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
    /// The address of the function that starts there.
    Function { dst: u8, start: u32 },
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
    /// A helper or kernel function, by its place in the table. A helper may call back, and may end the run.
    Entry { entry: u32, args: u8, calls_back: bool },
    Ending { entry: u32, args: u8 },
    /// `bpf_loop` without flags that calls the function which starts there.
    Loop { start: u32 },
    MayGoto { target: u32 },
    Throw,
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
pub(crate) fn decode(source: &Source<'_>) -> Vec<Op> {
    let insns = source.insns;
    let mut ops = Vec::with_capacity(insns.len());
    let mut all = insns.iter().enumerate();
    while let Some((i, &insn)) = all.next() {
        if insn.code == LD_IMM64 {
            let high = all.next().map_or(0, |(_, h)| h.imm);
            ops.push(match insn.src() {
                pseudo::FUNC => Op::Function { dst: insn.dst(), start: (i as i64 + 1 + i64::from(insn.imm)) as u32 },
                pseudo::MAP_IDX => Op::Map { dst: insn.dst(), index: insn.imm as u32 },
                pseudo::MAP_IDX_VALUE => Op::MapValue { dst: insn.dst(), index: insn.imm as u32, off: high as u32 },
                _ => Op::Imm64 { dst: insn.dst(), value: u64::from(insn.imm as u32) | (high as u64) << 32 },
            });
            ops.push(Op::Nop);
        } else {
            ops.push(special_call(source, insn, i).unwrap_or_else(|| single(insn, i)));
        }
    }
    ops
}

/// A call of a kernel function or of a helper that calls back.
fn special_call(source: &Source<'_>, insn: Insn, i: usize) -> Option<Op> {
    if insn.code != CALL {
        return None;
    }
    if let Some(site) = source.special.callbacks.get(&(i as u32)) {
        let start = site.function.filter(|_| site.plain_loop).and_then(|f| source.subprogs.get(f as usize));
        return Some(match start {
            Some(s) => Op::Loop { start: s.start },
            None => Op::Entry { entry: helpers::index(insn.imm as u32).unwrap_or(0), args: 4, calls_back: true },
        });
    }
    if insn.is_helper_call() && helpers::may_end(insn.imm as u32) {
        return Some(Op::Ending { entry: helpers::index(insn.imm as u32).unwrap_or(0), args: 1 });
    }
    Some(match *source.special.kfuncs.get(&(i as u32))? {
        Kfunc::Entry { entry, args } => Op::Entry { entry, args, calls_back: false },
        Kfunc::Throw => Op::Throw,
    })
}

pub(crate) fn single(insn: Insn, i: usize) -> Op {
    match insn.class() {
        class::JMP if is_may_goto(insn) => Op::MayGoto { target: (i as i64 + 1 + i64::from(insn.off)) as u32 },
        class::ALU | class::ALU64 => arithmetic(insn),
        class::JMP | class::JMP32 => jump(insn, i),
        class::LD => {
            Op::Packet { size: width(insn), index: (insn.mode() == mode::IND).then_some(insn.src()), at: insn.imm }
        }
        _ => memory(insn),
    }
}

/// Arithmetic by the upper half of its opcode: one look where most instructions differ.
const BINARY: [Option<Bin>; 16] = {
    let mut all = [None; 16];
    all[alu::ADD as usize >> 4] = Some(Bin::Add);
    all[alu::SUB as usize >> 4] = Some(Bin::Sub);
    all[alu::MUL as usize >> 4] = Some(Bin::Mul);
    all[alu::AND as usize >> 4] = Some(Bin::And);
    all[alu::OR as usize >> 4] = Some(Bin::Or);
    all[alu::XOR as usize >> 4] = Some(Bin::Xor);
    all[alu::LSH as usize >> 4] = Some(Bin::Shl);
    all[alu::RSH as usize >> 4] = Some(Bin::Shr);
    all[alu::ARSH as usize >> 4] = Some(Bin::Sar);
    all
};

/// Conditions likewise.
const TESTS: [Test; 16] = {
    let mut all = [Test::Set; 16];
    all[jmp::JEQ as usize >> 4] = Test::Cmp(Cc::E);
    all[jmp::JNE as usize >> 4] = Test::Cmp(Cc::Ne);
    all[jmp::JGT as usize >> 4] = Test::Cmp(Cc::A);
    all[jmp::JGE as usize >> 4] = Test::Cmp(Cc::Ae);
    all[jmp::JLT as usize >> 4] = Test::Cmp(Cc::B);
    all[jmp::JLE as usize >> 4] = Test::Cmp(Cc::Be);
    all[jmp::JSGT as usize >> 4] = Test::Cmp(Cc::G);
    all[jmp::JSGE as usize >> 4] = Test::Cmp(Cc::Ge);
    all[jmp::JSLT as usize >> 4] = Test::Cmp(Cc::L);
    all[jmp::JSLE as usize >> 4] = Test::Cmp(Cc::Le);
    all
};

fn arithmetic(insn: Insn) -> Op {
    let (wide, dst, src) = (insn.class() == class::ALU64, insn.dst(), src(insn));
    if let Some(op) = BINARY[usize::from(insn.op() >> 4)] {
        return Op::Bin { op, wide, dst, src };
    }
    match insn.op() {
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
    let test = TESTS[usize::from(insn.op() >> 4)];
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

fn upper_of(src: Src) -> Live {
    if let Src::Reg(r) = src { upper(r) } else { 0 }
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

/// What an instruction does to registers: all that liveness and upper halves are worked out from, so that each
/// instruction is looked at once.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Effects {
    /// Halves that it overwrites.
    pub(crate) kills: Live,
    /// Halves that it needs.
    pub(crate) uses: Live,
    /// Halves that it needs where the upper half of its result is.
    mirrors: Live,
    /// Registers whose upper half is as zero behind it as in front of it.
    keeps: u16,
    /// The register whose upper half is zero behind it if one of `rule` holds, and the other one that it asks about.
    dst: u8,
    src: u8,
    rule: u8,
    /// Bits of [`trait_bits`].
    pub(crate) traits: u8,
}

/// What else there is to say of an instruction.
pub(crate) mod trait_bits {
    /// It sets `kills` and does nothing else: where nobody needs that, it is left out.
    pub(crate) const PURE: u8 = 1;
    /// It needs the frame pointer.
    pub(crate) const FP: u8 = 2;
    /// It calls out of the program.
    pub(crate) const OUT: u8 = 4;
    /// It needs the environment.
    pub(crate) const ENV: u8 = 8;
    /// The function ends there.
    pub(crate) const ENDS: u8 = 16;
    /// It counts rounds.
    pub(crate) const COUNTS: u8 = 32;
}

/// When the upper half of a result is zero.
mod rule {
    pub(super) const ALWAYS: u8 = 1;
    /// That of the destination was.
    pub(super) const DST: u8 = 2;
    /// That of the source was.
    pub(super) const SRC: u8 = 4;
    /// Both were.
    pub(super) const BOTH: u8 = 8;
    /// Somebody needs it, so that a result of 32 bits is extended.
    pub(super) const EXTENDED: u8 = 16;
    /// That, and that of the destination was.
    pub(super) const DST_EXTENDED: u8 = 32;
}

use trait_bits::{COUNTS, ENDS, ENV, FP, OUT, PURE};

impl Effects {
    /// Nothing at all.
    const NONE: Effects =
        Effects { kills: 0, uses: 0, mirrors: 0, keeps: u16::MAX, dst: 0, src: 0, rule: 0, traits: 0 };

    /// What is live in front of it, given what is behind.
    #[inline]
    pub(crate) fn live_before(&self, out: Live) -> Live {
        let dead = self.traits & PURE != 0 && out & self.kills == 0;
        let mirrors = if out & self.kills & UPPER != 0 { self.mirrors } else { 0 };
        if dead { out } else { out & !self.kills | self.uses | mirrors }
    }

    /// The same of other registers.
    #[inline]
    pub(crate) fn on(self, a: u8, dst: u8, b: u8, src: u8) -> Effects {
        let both = |m: Live| (m >> a & 0x1_0001) << dst | (m >> b & 0x1_0001) << src;
        let (uses, mirrors) = (both(self.uses), both(self.mirrors));
        let fp = if (uses | mirrors) & (0x1_0001 << 10) != 0 { FP } else { 0 };
        let lost = !self.keeps >> a & 1;
        Effects {
            kills: both(self.kills),
            uses,
            mirrors,
            keeps: !(lost << dst),
            dst: if lost != 0 { dst } else { 0 },
            src: if self.src != 0 { src } else { 0 },
            rule: self.rule,
            traits: self.traits | fp,
        }
    }

    /// True if nobody needs what it does.
    #[inline]
    pub(crate) fn dead(&self, out: Live) -> bool {
        self.traits & PURE != 0 && out & self.kills == 0
    }

    /// The machine registers whose upper half is zero behind it, given those in front and what is live behind.
    #[inline]
    pub(crate) fn zero_after(&self, zero: u16, out: Live) -> u16 {
        let (d, s) = ((zero >> self.dst & 1) as u8, (zero >> self.src & 1) as u8);
        let extended = (out >> (16 + self.dst) & 1) as u8;
        let holds = 1 | d << 1 | s << 2 | (d & s) << 3 | extended << 4 | (d & extended) << 5;
        zero & self.keeps | u16::from(self.rule & holds != 0) << self.dst
    }

    /// Of a result: all of `dst` is overwritten.
    fn result(dst: u8, uses: Live, mirrors: Live, rule: u8) -> Effects {
        let fp = if (uses | mirrors) & both(10) != 0 { FP } else { 0 };
        Effects { kills: both(dst), uses, mirrors, keeps: !(1 << dst), dst, src: 0, rule, traits: PURE | fp }
    }

    /// Of something without result.
    fn access(uses: Live) -> Effects {
        Effects { uses, traits: if uses & both(10) != 0 { FP } else { 0 }, ..Effects::NONE }
    }

    /// Of a call of the runtime.
    fn call(uses: Live) -> Effects {
        Effects { kills: CALLER_SAVED, uses, keeps: !0x3f, traits: OUT | ENV, ..Effects::NONE }
    }

    fn asks(self, src: Src) -> Effects {
        if let Src::Reg(src) = src { Effects { src, ..self } } else { self }
    }
}

/// The upper halves.
const UPPER: Live = 0xffff_0000;

/// A number is as good as a register whose upper half is zero, or is not.
fn if_zero(src: Src, asked: u8, known: u8) -> u8 {
    match src {
        Src::Reg(_) => asked,
        Src::Imm(0..) => known,
        Src::Imm(_) => 0,
    }
}

impl Op {
    /// What it does to registers. A call of a function of the program uses what that function needs: the caller knows.
    pub(crate) fn effects(self) -> Effects {
        match self {
            Op::Nop | Op::Jump { .. } => Effects::NONE,
            Op::Trap => Effects { kills: Live::MAX, traits: ENDS, ..Effects::NONE },
            Op::Exit => Effects { kills: Live::MAX, uses: both(0), traits: ENDS, ..Effects::NONE },
            Op::Bin { wide: false, dst, src, .. } => Effects::result(dst, low(dst) | low_of(src), 0, rule::ALWAYS),
            Op::Bin { op, dst, src, .. } => {
                let (uses, mirrors, rule) = match op {
                    Bin::And if matches!(src, Src::Imm(0..)) => (low(dst), 0, rule::ALWAYS),
                    Bin::And => {
                        (low(dst) | low_of(src), upper(dst) | upper_of(src), rule::DST | if_zero(src, rule::SRC, 0))
                    }
                    Bin::Shl => (low(dst) | low_of(src), upper(dst), 0),
                    Bin::Shr if matches!(src, Src::Imm(32..)) => (both(dst), 0, rule::ALWAYS),
                    Bin::Shr | Bin::Sar => (both(dst) | low_of(src), 0, rule::DST),
                    Bin::Or | Bin::Xor => {
                        (low(dst) | low_of(src), upper(dst) | upper_of(src), if_zero(src, rule::BOTH, rule::DST))
                    }
                    _ => (low(dst) | low_of(src), upper(dst) | upper_of(src), 0),
                };
                Effects::result(dst, uses, mirrors, rule).asks(src)
            }
            Op::Div { wide: true, signed, dst, src, .. } => {
                Effects::result(dst, both(dst) | both_of(src), 0, if signed { 0 } else { rule::DST })
            }
            Op::Div { dst, src, .. } => Effects::result(dst, low(dst) | low_of(src), 0, rule::ALWAYS),
            Op::Neg { wide: true, dst } => Effects::result(dst, low(dst), upper(dst), 0),
            Op::Neg { dst, .. } => Effects::result(dst, low(dst), 0, rule::ALWAYS),
            Op::Mov { wide: true, dst, src } => {
                Effects::result(dst, low_of(src), upper_of(src), if_zero(src, rule::SRC, rule::ALWAYS)).asks(src)
            }
            Op::Mov { dst, src: Src::Imm(_), .. } => Effects::result(dst, 0, 0, rule::ALWAYS),
            // Where nobody needs the upper half, a move of 32 bits may be one of 64.
            Op::Mov { dst, src, .. } => Effects::result(dst, low_of(src), 0, rule::SRC | rule::EXTENDED).asks(src),
            Op::MovSx { wide, dst, src, .. } => Effects::result(dst, low(src), 0, if wide { 0 } else { rule::ALWAYS }),
            Op::Swap { size: Size::Dw, dst } => Effects::result(dst, both(dst), 0, 0),
            Op::Swap { dst, .. } | Op::Low16 { dst } => Effects::result(dst, low(dst), 0, rule::ALWAYS),
            Op::Imm64 { dst, value } => Effects::result(dst, 0, 0, if value >> 32 == 0 { rule::ALWAYS } else { 0 }),
            Op::Function { dst, .. } => Effects::result(dst, 0, 0, 0),
            Op::Map { dst, .. } | Op::MapValue { dst, .. } => {
                let e = Effects::result(dst, 0, 0, 0);
                Effects { traits: e.traits | ENV, ..e }
            }
            Op::Load { size, signed, dst, base, .. } => {
                Effects::result(dst, both(base), 0, if !signed && size != Size::Dw { rule::ALWAYS } else { 0 })
            }
            Op::Store { size, base, src, .. } => {
                Effects::access(both(base) | if size == Size::Dw { both_of(src) } else { low_of(src) })
            }
            Op::Atomic { wide, base, src, .. } => Effects::access(both(base) | if wide { both(src) } else { low(src) }),
            Op::Fetch { op, wide, base, src, .. } => {
                let operand = if wide { both(src) } else { low(src) };
                let rule = if wide { 0 } else { rule::ALWAYS };
                let (dst, old) = match op {
                    Rmw::CmpXchg if wide => (0, both(0)),
                    Rmw::CmpXchg => (0, low(0)),
                    _ => (src, 0),
                };
                let e = Effects::result(dst, both(base) | operand | old, 0, rule);
                Effects { traits: e.traits & !PURE, ..e }
            }
            Op::Branch { cond, .. } => Effects::access(cond.uses()),
            Op::Select { cond, wide, dst, src } => {
                let rule = match src {
                    Src::Imm(0..) => rule::DST,
                    Src::Imm(_) if wide => 0,
                    Src::Imm(_) => rule::DST_EXTENDED,
                    Src::Reg(_) if wide => rule::BOTH,
                    Src::Reg(_) => rule::BOTH | rule::DST_EXTENDED,
                };
                let moved = if wide { upper_of(src) } else { 0 };
                let uses = low(dst) | low_of(src) | cond.uses();
                Effects::result(dst, uses, upper(dst) | moved, rule).asks(src)
            }
            Op::Packet { index, .. } => Effects::call(both(6) | index.map_or(0, low)),
            Op::Helper { args, .. } => {
                let args = (1 << (args + 1)) - 2;
                Effects::call(args | args << 16)
            }
            Op::Entry { args, calls_back, .. } => {
                let args = (1 << (args + 1)) - 2;
                let e = Effects::call(args | args << 16);
                Effects { traits: e.traits | if calls_back { FP } else { 0 }, ..e }
            }
            Op::Ending { args, .. } => {
                let args = (1 << (args + 1)) - 2;
                Effects::call(args | args << 16)
            }
            // The function that it calls says whether the frame pointer is needed.
            Op::Loop { .. } => Effects::call(both(1) | both(3)),
            Op::MayGoto { .. } => Effects { traits: FP | COUNTS, ..Effects::NONE },
            Op::Throw => {
                let e = Effects::call(both(1));
                Effects { traits: e.traits | FP, ..e }
            }
            Op::TailCall => {
                let e = Effects::call(both(1) | both(2) | both(3));
                Effects { traits: e.traits | FP, ..e }
            }
            Op::Sub { .. } => Effects { traits: 0, ..Effects::call(0) },
        }
    }
}
