//! What instructions do to registers: all that liveness and upper halves are worked out from, in one word each.
//!
//! Where that follows from the opcode, what registers it names and the size of its number, which holds for nearly all
//! instructions, the word is looked up and its bits are moved to the registers': nothing is decided by then. The table
//! is made of [`Op::effects`], so that there is one definition.

use std::hint::select_unpredictable;
use std::sync::LazyLock;

use skep_ebpf::Insn;
use skep_ebpf::insn::{class, mode};

use super::asm::Size;
use super::ir::{self, Bin, Live, Op, Ops, Rmw, Src, both, low, upper};

/// What an instruction does to registers. By bits:
///
/// | | |
/// |---|---|
/// | 0–10, 16–26 | low and upper halves that it needs |
/// | 32–42 | registers that it overwrites |
/// | 48–58 | upper halves that it needs where the upper half of its result is |
/// | 11–15 | traits |
/// | 27–30, 43–46 | when the upper half of the result is zero ([`rule`]) |
/// | 59–62 | the source register, for rules that ask about it |
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Effects(u64);

/// The bits of the two kinds of registers that are needed, and those of two more words.
const HALVES: u64 = 0x07ff_07ff;
const REGISTERS: u64 = 0x7ff;
const KILLS: u32 = 32;
const SRC: u32 = 59;

/// It sets what it overwrites and does nothing else: where nobody needs that, it is left out.
const PURE: u64 = 1 << 11;
/// It calls out of the program.
const OUT: u64 = 1 << 12;
/// It needs the environment.
const ENV: u64 = 1 << 13;
/// It counts rounds.
const COUNTS: u64 = 1 << 14;
/// It needs the frame pointer, whatever registers it names.
const FRAME: u64 = 1 << 15;

/// When the upper half of a result is zero: a truth table of three facts.
mod rule {
    /// That of the destination was.
    pub(super) const DST: u64 = where_holds(1);
    /// That of the source was.
    pub(super) const SRC: u64 = where_holds(2);
    /// Both were.
    pub(super) const BOTH: u64 = DST & SRC;
    /// Somebody needs it, so that a result of 32 bits is extended.
    pub(super) const EXTENDED: u64 = where_holds(16);
    /// That, and that of the destination was.
    pub(super) const DST_EXTENDED: u64 = DST & EXTENDED;
    pub(super) const ALWAYS: u64 = where_holds(0);

    /// The answer for no fact; those of the three facts are farther up by their numbers.
    pub(super) const FIRST: u32 = 27;

    const fn where_holds(fact: u32) -> u64 {
        let (mut table, mut facts) = (0, 0);
        while facts < 32 {
            if facts & fact == fact && facts & !0b1_0011 == 0 {
                table |= 1 << (FIRST + facts);
            }
            facts += 1;
        }
        table
    }
}

/// Bit 31 of what is live behind an instruction: nobody needs what it does.
pub(crate) const DEAD: Live = 1 << 31;

impl Effects {
    /// Needs these halves.
    pub(crate) fn needs(&mut self, halves: Live) {
        self.0 |= u64::from(halves) & HALVES;
    }

    /// Those of both.
    pub(crate) fn and(self, other: Effects) -> Effects {
        Effects(self.0 | other.0)
    }

    /// What is live in front of it, given what is behind; and whether nobody needs what it does.
    #[inline]
    pub(crate) fn live_before(self, out: Live) -> (Live, bool) {
        let (first, second) = (self.0 as u32, (self.0 >> 32) as u32);
        let kills = second & REGISTERS as u32;
        let kills = kills | kills << 16;
        let wanted = out & kills;
        let dead = first & PURE as u32 != 0 && wanted == 0;
        let mirrors = select_unpredictable(wanted >> 16 != 0, second & 0x07ff_0000, 0);
        let before = out & !kills | first & HALVES as u32 | mirrors;
        (select_unpredictable(dead, out, before), dead)
    }

    /// The machine registers whose upper half is zero behind it, given those in front and what is live behind.
    #[inline]
    pub(crate) fn zero_after(self, zero: u16, out: Live) -> u16 {
        let (kills, zero) = (self.0 >> KILLS & REGISTERS, u64::from(zero));
        // One register, or the rule says no.
        let place = (kills | 1 << 15).trailing_zeros();
        let (dst, src) = (zero >> place & 1, zero >> (self.0 >> SRC & 15) & 1);
        let extended = u64::from(out) >> 16 >> place & 1;
        let set = self.0 >> (u64::from(rule::FIRST) + (dst | src << 1 | extended << 4)) & 1;
        (zero & !kills | set << place) as u16
    }

    /// The registers that it overwrites.
    pub(crate) fn kills(self) -> u16 {
        (self.0 >> KILLS & REGISTERS) as u16
    }

    /// It needs the frame pointer.
    pub(crate) fn uses_fp(self) -> bool {
        self.0 & (FRAME | 1 << 10 | 1 << 26 | 1 << 58) != 0
    }

    /// It calls out of the program.
    pub(crate) fn calls_out(self) -> bool {
        self.0 & OUT != 0
    }

    /// It needs the environment.
    pub(crate) fn uses_env(self) -> bool {
        self.0 & ENV != 0
    }

    /// The same that looks at the environment, too.
    pub(crate) fn with_env(self) -> Effects {
        Effects(self.0 | ENV)
    }

    /// It counts rounds.
    pub(crate) fn counts(self) -> bool {
        self.0 & COUNTS != 0
    }

    /// All of `dst` is overwritten by something that needs `uses`, and `mirrors` where its upper half is needed.
    fn result(dst: u8, uses: Live, mirrors: Live, rule: u64) -> Effects {
        Effects(PURE | 1 << (KILLS + u32::from(dst)) | u64::from(uses) | u64::from(mirrors) << 32 | rule)
    }

    /// Something without result.
    fn access(uses: Live) -> Effects {
        Effects(u64::from(uses))
    }

    /// A call of the runtime.
    fn call(uses: Live) -> Effects {
        Effects(OUT | ENV | 0x3f << KILLS | u64::from(uses))
    }

    fn with(self, bits: u64) -> Effects {
        Effects(self.0 | bits)
    }

    fn asks(self, src: Src) -> Effects {
        if let Src::Reg(src) = src { self.with(u64::from(src & 15) << SRC) } else { self }
    }
}

fn both_of(src: Src) -> Live {
    if let Src::Reg(r) = src { both(r) } else { 0 }
}

fn upper_of(src: Src) -> Live {
    if let Src::Reg(r) = src { upper(r) } else { 0 }
}

fn low_of(src: Src) -> Live {
    if let Src::Reg(r) = src { low(r) } else { 0 }
}

/// All of the first `n` arguments.
fn arguments(n: u8) -> Live {
    let args = (1 << (n + 1)) - 2;
    args | args << 16
}

/// A number is as good as a register whose upper half is zero, or is not.
fn if_zero(src: Src, asked: u64, known: u64) -> u64 {
    match src {
        Src::Reg(_) => asked,
        Src::Imm(0..) => known,
        Src::Imm(_) => 0,
    }
}

impl ir::Cond {
    fn uses(self) -> Live {
        let all = both(self.a) | both_of(self.b);
        if self.wide { all } else { all & 0xffff }
    }
}

impl Op {
    /// What it does to registers. A call of a function of the program uses what that function needs: the caller knows.
    pub(crate) fn effects(self) -> Effects {
        match self {
            // Behind the end of a function nothing is live.
            Op::Nop | Op::Jump { .. } | Op::Trap => Effects::default(),
            Op::Exit => Effects::access(both(0)),
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
            Op::Map { dst, .. } | Op::MapValue { dst, .. } => Effects::result(dst, 0, 0, 0).with(ENV),
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
                Effects(Effects::result(dst, both(base) | operand | old, 0, rule).0 & !PURE)
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
            Op::Helper { args, .. } | Op::Ending { args, .. } => Effects::call(arguments(args)),
            Op::Entry { args, calls_back, .. } => {
                Effects::call(arguments(args)).with(if calls_back { FRAME } else { 0 })
            }
            // The function that it calls says whether the frame pointer is needed.
            Op::Loop { .. } => Effects::call(both(1) | both(3)),
            Op::MayGoto { .. } => Effects(FRAME | COUNTS),
            Op::Throw => Effects::call(both(1)).with(FRAME),
            Op::TailCall => Effects::call(arguments(3)).with(FRAME),
            Op::Sub { .. } => Effects(0x3f << KILLS),
        }
    }
}

/// What tells instructions of one opcode apart: the number is negative, or is not one below 32.
const NEGATIVE: u16 = 1 << 8;
const LARGE: u16 = 1 << 9;

/// Effects by opcode, where the destination is r0 and the source r1: bit 0 and bit 1 of each set of registers.
struct Table {
    rows: [u64; 4 * 256],
    /// Which of the above matter.
    matters: [u16; 256],
}

/// Bits of the destination in a row.
const ROW_DST: u64 = 0x0001_0001_0001_0001;
/// Bits that are of no register.
const ROW_FIXED: u64 = 0x0000_7800_7800_f800;

static TABLE: LazyLock<Box<Table>> = LazyLock::new(|| {
    let mut table = Box::new(Table { rows: [0; 4 * 256], matters: [0; 256] });
    for code in 0..=255u8 {
        let class = Insn::new(code, 0, 0, 0, 0).class();
        let (arithmetic, memory) = match class {
            class::ALU | class::ALU64 => (true, false),
            class::LDX | class::ST | class::STX => (false, code & 0xe0 == mode::MEM),
            _ => (false, false),
        };
        if !(arithmetic || memory || ir::is_conditional(code)) {
            continue;
        }
        table.matters[usize::from(code)] = if arithmetic { NEGATIVE | LARGE } else { 0 };
        for kind in (0..4).filter(|k| arithmetic || *k == 0) {
            let bits = (kind << 8) as u16;
            let imm = match (bits & NEGATIVE != 0, bits & LARGE != 0) {
                (true, _) => -5,
                (false, true) => 40,
                (false, false) => 5,
            };
            let effects = ir::single(Insn::new(code, 0, 1, 0, imm), 0).effects();
            table.rows[usize::from(code) | usize::from(bits)] = effects.0 & !(15 << SRC);
        }
    }
    table
});

/// What each instruction does; that of the [marked](crate::marks) ones that are no jumps has to be said by themselves.
pub(crate) fn of(ops: &Ops) -> Vec<Effects> {
    let table = &**TABLE;
    let one = |insn: &Insn| {
        let kind = u16::from(insn.imm < 0) << 8 | u16::from(insn.imm as u32 >= 32) << 9;
        let code = usize::from(insn.code);
        let row = table.rows[(code | usize::from(kind & table.matters[code])) & (4 * 256 - 1)];
        let (dst, src) = (u32::from(insn.dst()), u32::from(insn.src()));
        Effects((row & ROW_DST) << dst | (row >> 1 & ROW_DST) << src | row & ROW_FIXED | u64::from(insn.src()) << SRC)
    };
    ops.insns().iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::marks;

    /// The table says of every instruction what its definition does.
    #[test]
    fn the_table_is_the_definition() {
        let mut insns = Vec::new();
        for code in 0..=255u8 {
            for (dst, src) in [(0, 0), (1, 2), (3, 3), (9, 10), (0, 9)] {
                for imm in [0, 1, 31, 32, 63, 64, i32::MAX, -1, i32::MIN] {
                    // Of arithmetic with a distance there is only one kind.
                    for off in [0, 1] {
                        insns.push(Insn::new(
                            code,
                            dst,
                            if code & 8 == 0 && code & 4 != 0 { 0 } else { src },
                            off,
                            imm,
                        ));
                    }
                }
            }
        }
        let marked = marks(&insns);
        let ops = Ops::new(&insns);
        let table = of(&ops);
        let mut compared = 0;
        for (i, insn) in insns.iter().enumerate() {
            let marked = marked.binary_search(&(i as u32)).is_ok();
            if insn.code == 0 || marked && !ir::is_conditional(insn.code) {
                continue;
            }
            let (by_table, by_op) = (table[i].0, ops.op(i).effects().0);
            // The source is noted even where no rule asks about it.
            let noted = if by_op >> SRC & 15 == 0 { 15 << SRC } else { 0 };
            assert_eq!(by_table & !noted, by_op & !noted, "{insn:?}");
            compared += 1;
        }
        assert!(compared > 4_000, "{compared}");
    }
}
