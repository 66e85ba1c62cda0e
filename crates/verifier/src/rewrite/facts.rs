//! What is known of each instruction, call and function of a rewritten program: for those who make machine code of it.
//!
//! Everything here holds on every path. What is not known has a value that says so, and that is always right to assume
//! ([`Memory::Mixed`], [`MapArg::Unknown`], a full [`RegSet`], [`Range::ANY`]).

use std::fmt;
use std::ops::{BitAnd, BitOr, Not};

/// A set of registers, r0 to r10.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct RegSet(pub u16);

impl RegSet {
    /// No register.
    pub const NONE: RegSet = RegSet(0);
    /// Every register.
    pub const ALL: RegSet = RegSet(0x7ff);
    /// What a function gives back as it found it: r6 to r9.
    pub const CALLEE_SAVED: RegSet = RegSet(0x3c0);
    /// What a call does not keep: r0 to r5.
    pub const CALLER_SAVED: RegSet = RegSet(0x3f);

    /// The set of one register.
    pub const fn of(r: u8) -> RegSet {
        RegSet(if r > 10 { 0 } else { 1 << r })
    }

    /// The first `n` argument registers, from r1 on.
    pub const fn args(n: usize) -> RegSet {
        let n = if n > 5 { 5 } else { n };
        RegSet(((1 << n) - 1) << 1)
    }

    /// True if the register is in it.
    pub const fn has(self, r: u8) -> bool {
        r <= 10 && self.0 & 1 << r != 0
    }

    /// True if it has none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of this set that are not in the other.
    pub const fn without(self, other: RegSet) -> RegSet {
        RegSet(self.0 & !other.0)
    }

    /// The registers in it, in order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..=10).filter(move |r| self.has(*r))
    }
}

impl BitOr for RegSet {
    type Output = RegSet;
    fn bitor(self, other: RegSet) -> RegSet {
        RegSet(self.0 | other.0)
    }
}

impl BitAnd for RegSet {
    type Output = RegSet;
    fn bitand(self, other: RegSet) -> RegSet {
        RegSet(self.0 & other.0)
    }
}

impl Not for RegSet {
    type Output = RegSet;
    fn not(self) -> RegSet {
        RegSet(!self.0 & RegSet::ALL.0)
    }
}

impl fmt::Debug for RegSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|r| format_args!("r{r}").to_string())).finish()
    }
}

/// What an address leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Memory {
    /// The instruction accesses no memory; the register holds no address.
    #[default]
    None,
    /// The function's own stack: at this offset from r10 (without what is not the same on all paths, `None`).
    Stack(Option<i16>),
    /// The stack of a function further out.
    CallerStack,
    /// The context.
    Ctx,
    /// A value of a map: of this one, or of one that is not the same on all paths or an inner map.
    MapValue(Option<u32>),
    /// A key of a map, as callbacks get it.
    MapKey,
    /// Packet data or metadata.
    Packet,
    /// Other memory that is there: ring buffer records, memory handed to global functions, the program's own objects.
    Plain,
    /// The arena: an offset into it, which may be anything.
    Arena,
    /// It may be an address of nothing. A load that faults gives 0, and the program goes on.
    Guarded,
    /// Not the same on all paths; valid on each.
    Mixed,
}

impl Memory {
    /// True if an access may fault, so that the place of its machine code must be known to the handler.
    pub const fn may_fault(self) -> bool {
        matches!(self, Memory::Guarded | Memory::Arena)
    }

    /// What holds of both.
    pub(crate) fn join(self, other: Memory) -> Memory {
        use Memory::*;
        match (self, other) {
            (a, b) if a == b => a,
            (None, x) | (x, None) => x,
            (Guarded, _) | (_, Guarded) => Guarded,
            (Arena, _) | (_, Arena) => Arena,
            (Stack(_), Stack(_)) => Stack(Option::None),
            (MapValue(_), MapValue(_)) => MapValue(Option::None),
            _ => Mixed,
        }
    }
}

/// The map that a call is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MapArg {
    /// None.
    #[default]
    None,
    /// On every path this one of the program's maps.
    One(u32),
    /// One that is only known when the program runs.
    Unknown,
}

/// What is known of a call of a helper or kernel function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallSite {
    /// Its map argument.
    pub map: MapArg,
    /// The index of a tail call, or the key of a look-up in an array, where it is the same number on all paths. It may lie
    /// outside of the map.
    pub key: Option<u64>,
    /// The function that it calls back, as its index in [`Rewritten::functions`](super::Rewritten::functions), if it
    /// is the same on all paths.
    pub callback: Option<u32>,
    /// A `bpf_loop` without flags and always with the same function, so that a loop of calls does the same.
    pub plain_loop: bool,
    /// The look-up always finds something: the program does not check.
    pub found: bool,
    /// What the addresses in r1 to r5 lead to, as far as the function has arguments.
    pub args: [Memory; 5],
}

/// Smallest and largest value of a register, unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// No value is smaller.
    pub min: u64,
    /// None is larger.
    pub max: u64,
}

impl Range {
    /// Any value.
    pub const ANY: Range = Range { min: 0, max: u64::MAX };

    /// Only this one.
    pub const fn just(x: u64) -> Range {
        Range { min: x, max: x }
    }

    /// The value, if there is only one.
    pub const fn constant(self) -> Option<u64> {
        if self.min == self.max { Some(self.min) } else { None }
    }

    /// True if the upper half is zero.
    pub const fn fits_32(self) -> bool {
        self.max <= u32::MAX as u64
    }

    /// True if zero is possible.
    pub const fn may_be_zero(self) -> bool {
        self.min == 0
    }

    /// True if the value may be in it.
    pub const fn has(self, x: u64) -> bool {
        self.min <= x && x <= self.max
    }
}

impl Default for Range {
    fn default() -> Range {
        Range::ANY
    }
}

/// What is known of one instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InsnFacts {
    /// Where a load, a store or an atomic operation goes.
    pub memory: Memory,
    /// Registers that are read later on some path before they are written.
    pub live_after: RegSet,
    /// Those of them whose upper half is read. A 32-bit result of another register need not be extended.
    pub wide_after: RegSet,
    /// The destination register, before the instruction.
    pub dst: Range,
    /// The source register, before the instruction.
    pub src: Range,
    /// A jump leads here, or the function starts here.
    pub target: bool,
    /// It saves or restores a register around a call of a function that keeps it (see [`CallSite`]): where the call keeps
    /// it indeed, nothing is lost by leaving both out.
    pub spill_pair: bool,
}

/// What is known of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Function {
    /// Its first instruction.
    pub start: u32,
    /// The one behind its last.
    pub end: u32,
    /// Its index in [`Verified::subprogs`](crate::Verified::subprogs).
    pub origin: u32,
    /// Bytes of stack that it uses, at most 512.
    pub stack_depth: u32,
    /// It is global: replaceable, and called by its BTF prototype.
    pub global: bool,
    /// Registers that it writes and must give back as they were, of r6 to r9.
    pub saves: RegSet,
    /// Argument registers that it reads.
    pub args: RegSet,
    /// It uses r10.
    pub uses_stack: bool,
    /// It calls functions, helpers or kernel functions.
    pub calls: bool,
    /// It tail-calls.
    pub tail_calls: bool,
    /// It has a `may_goto`.
    pub may_goto: bool,
    /// A helper or kernel function calls it, now or later.
    pub called_back: bool,
    /// Exceptions end in it.
    pub catches: bool,
}
