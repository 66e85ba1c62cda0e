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

/// Entries from here on are functions of the application.
pub(crate) const HOST: u32 = 1 << 16;

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

/// How wide an access is.
#[inline]
pub(crate) fn width(insn: Insn) -> Size {
    const SIZES: [Size; 4] = {
        let mut sizes = [Size::Dw; 4];
        sizes[size::W as usize >> 3] = Size::W;
        sizes[size::H as usize >> 3] = Size::H;
        sizes[size::B as usize >> 3] = Size::B;
        sizes
    };
    SIZES[usize::from(insn.size() >> 3)]
}

/// An opcode that no program has: what stands there is in [`Ops::odd`], at the place that the immediate says.
const ODD: u8 = class::JMP32 | 0xf0;

/// What an opcode is, where most instructions differ.
#[derive(Clone, Copy, PartialEq, Eq)]
#[rustfmt::skip]
pub(crate) enum Kind {
    AddK, AddX, SubK, MulK, MulX, AndK, ShlK,
    /// Or, exclusive or.
    LogicK,
    /// These, and differences.
    LogicX,
    /// Any other that [`BINARY`] has.
    Bin,
    MovK, MovX,
    Load,
    Store,
    StoreImm,
    Branch,
    Jump,
    Odd,
    /// The second half of a 64-bit immediate.
    Nop,
    /// Any other; see [`single`].
    Other,
}

const KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Other; 256];
    let mut code = 0;
    while code < 256 {
        let c = code as u8;
        kinds[code] = match c & 7 {
            class::ALU | class::ALU64 => match (c & 0xf0, c & 8 != 0) {
                (alu::MOV, false) => Kind::MovK,
                (alu::MOV, true) => Kind::MovX,
                (alu::ADD, false) => Kind::AddK,
                (alu::ADD, true) => Kind::AddX,
                (alu::SUB, false) => Kind::SubK,
                (alu::MUL, false) => Kind::MulK,
                (alu::MUL, true) => Kind::MulX,
                (alu::AND, false) => Kind::AndK,
                (alu::LSH, false) => Kind::ShlK,
                (alu::OR | alu::XOR, false) => Kind::LogicK,
                (alu::OR | alu::XOR | alu::SUB, true) => Kind::LogicX,
                _ if BINARY[code >> 4].is_some() => Kind::Bin,
                _ => Kind::Other,
            },
            class::LDX if c & 0xe0 == mode::MEM => Kind::Load,
            class::ST if c & 0xe0 == mode::MEM => Kind::StoreImm,
            class::STX if c & 0xe0 == mode::MEM => Kind::Store,
            class::JMP | class::JMP32 if is_conditional(c) => Kind::Branch,
            _ => Kind::Other,
        };
        code += 1;
    }
    kinds[JA as usize] = Kind::Jump;
    kinds[JA32 as usize] = Kind::Jump;
    kinds[ODD as usize] = Kind::Odd;
    kinds[0] = Kind::Nop;
    kinds
};

/// True of the opcodes of jumps that compare.
pub(crate) const fn is_conditional(code: u8) -> bool {
    matches!(code & 7, class::JMP | class::JMP32)
        && code & 0xf0 <= jmp::JSLE
        && !matches!(code & 0xf0, jmp::JA | jmp::CALL | jmp::EXIT)
}

/// A program's instructions as they are translated. They are taken apart when somebody asks: most are looked at once.
pub(crate) struct Ops {
    insns: Vec<Insn>,
    odd: Vec<Op>,
}

impl Ops {
    /// A program's instructions, still without those that are not taken apart one by one ([`Ops::set_marked`]).
    pub(crate) fn new(insns: &[Insn]) -> Ops {
        Ops { insns: insns.to_vec(), odd: Vec::new() }
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.insns.len()
    }

    /// The instructions, of which those that are not what they were have another opcode.
    pub(crate) fn insns(&self) -> &[Insn] {
        &self.insns
    }

    /// One of them, to put a number where a register was.
    pub(crate) fn insn_mut(&mut self, i: usize) -> Option<&mut Insn> {
        self.insns.get_mut(i)
    }

    /// The instruction at `i`, taken apart.
    #[inline]
    pub(crate) fn op(&self, i: usize) -> Op {
        let Some(&insn) = self.insns.get(i) else { return Op::Nop };
        match KINDS[usize::from(insn.code)] {
            Kind::MovK | Kind::MovX => Op::Mov { wide: insn.class() == class::ALU64, dst: insn.dst(), src: src(insn) },
            Kind::Load => {
                Op::Load { size: width(insn), signed: false, dst: insn.dst(), base: insn.src(), off: insn.off }
            }
            Kind::Store => Op::Store { size: width(insn), base: insn.dst(), off: insn.off, src: Src::Reg(insn.src()) },
            Kind::StoreImm => Op::Store { size: width(insn), base: insn.dst(), off: insn.off, src: Src::Imm(insn.imm) },
            Kind::Branch => {
                let test = TESTS[usize::from(insn.code >> 4)];
                let cond = Cond { test, wide: insn.class() == class::JMP, a: insn.dst(), b: src(insn) };
                Op::Branch { cond, target: (i as i64 + 1 + i64::from(insn.off)) as u32 }
            }
            Kind::Jump => {
                let distance = if insn.code == JA { i32::from(insn.off) } else { insn.imm };
                Op::Jump { target: (i as i64 + 1 + i64::from(distance)) as u32 }
            }
            Kind::Odd => self.odd.get(insn.imm as usize).copied().unwrap_or(Op::Nop),
            Kind::Nop => Op::Nop,
            Kind::Other => single(insn, i),
            _ => {
                let op = BINARY[usize::from(insn.code >> 4)].unwrap_or(Bin::Add);
                Op::Bin { op, wide: insn.class() == class::ALU64, dst: insn.dst(), src: src(insn) }
            }
        }
    }

    /// What kind of instruction is at `i`, and the instruction, which says nothing if it is an odd one.
    #[inline]
    pub(crate) fn kind(&self, i: usize) -> (Kind, Insn) {
        self.insns.get(i).map_or((Kind::Nop, Insn::default()), |insn| (KINDS[usize::from(insn.code)], *insn))
    }

    /// True unless the instruction at `i` is none that a load in front of it may become part of.
    #[inline]
    pub(crate) fn may_fold(&self, i: usize) -> bool {
        self.insns.get(i).is_some_and(|insn| matches!(insn.code & 7, class::ALU | class::ALU64) || insn.code == ODD)
    }

    /// Puts another operation in the place of an instruction.
    pub(crate) fn set(&mut self, i: usize, op: Op) {
        if let Some(insn) = self.insns.get_mut(i) {
            *insn = Insn::new(ODD, 0, 0, 0, self.odd.len() as i32);
            self.odd.push(op);
        }
    }

    /// Takes apart the [marked](crate::marks) instruction at `i`, unless it is a jump.
    pub(crate) fn set_marked(&mut self, source: &Source<'_>, i: usize) -> Option<Op> {
        let insn = *self.insns.get(i)?;
        let op = match insn.code {
            JA if insn.off == -1 => Op::Trap,
            JA | JA32 => return None,
            EXIT => return Some(Op::Exit),
            code if is_conditional(code) => return None,
            LD_IMM64 => {
                let high = self.insns.get(i + 1).map_or(0, |h| h.imm);
                match insn.src() {
                    pseudo::FUNC => {
                        Op::Function { dst: insn.dst(), start: (i as i64 + 1 + i64::from(insn.imm)) as u32 }
                    }
                    pseudo::MAP_IDX => Op::Map { dst: insn.dst(), index: insn.imm as u32 },
                    pseudo::MAP_IDX_VALUE => Op::MapValue { dst: insn.dst(), index: insn.imm as u32, off: high as u32 },
                    _ => Op::Imm64 { dst: insn.dst(), value: u64::from(insn.imm as u32) | (high as u64) << 32 },
                }
            }
            _ => special_call(source, insn, i).unwrap_or_else(|| single(insn, i)),
        };
        self.set(i, op);
        Some(op)
    }
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
        Kfunc::Host { index, args } => Op::Entry { entry: HOST + index, args, calls_back: false },
        Kfunc::Throw => Op::Throw,
    })
}

/// Takes one instruction of one slot apart.
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

/// r1 to r5, as far as they are in `live`.
pub(crate) const ARGUMENTS: Live = 0x3e | 0x3e << 16;
