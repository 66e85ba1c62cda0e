//! What numbers registers can hold, forwards through each function.
//!
//! A plain analysis of intervals, over every edge that is left: it knows less than the checker did on a single path, but what
//! it knows holds whichever way the program came.

use skep_ebpf::insn::{CALL, Insn, alu, atomic, class, jmp, mode, size};

use super::Rewritten;
use super::facts::Range;
use crate::cfg::{is_goto, is_jump, jump_target, successors};

/// After so many changes at one place, bounds that still move are given up.
const PATIENCE: u8 = 4;

type Regs = [Range; 11];

/// What is known at the start of a function.
const START: Regs = [Range::ANY; 11];

/// What is known where paths meet or part.
struct Place {
    at: usize,
    regs: Regs,
    changes: u8,
    /// It is to be gone on from.
    waits: bool,
}

/// The places of a program, by instruction.
struct Places {
    all: Vec<Place>,
    /// Index + 1 of each instruction's.
    by_insn: Vec<u32>,
    todo: Vec<usize>,
}

/// Fills in the ranges of operands.
///
/// From a place on, instructions are gone through up to the next one: what is found out last of each is what holds on all
/// paths.
pub(super) fn ranges(program: &mut Rewritten) {
    let Rewritten { insns, facts, functions, constants, .. } = program;
    let mut places = Places { all: Vec::new(), by_insn: vec![0; insns.len()], todo: Vec::new() };
    for f in functions.iter() {
        places.join(f.start as usize, &START);
        while let Some((mut at, mut regs)) = places.next() {
            while let (Some(&i), Some(fact)) = (insns.get(at), facts.get_mut(at)) {
                (fact.dst, fact.src) = (get(&regs, i.dst()), get(&regs, i.src()));
                if is_jump(i) || i.is_exit() {
                    leave(insns, at, &regs, &mut places);
                    break;
                }
                let wide = i.is_ld_imm64();
                step(i, if wide { insns.get(at + 1).map_or(0, |n| n.imm) } else { 0 }, &mut regs);
                at += if wide { 2 } else { 1 };
                if facts.get(at).is_some_and(|f| f.target) {
                    places.join(at, &regs);
                    break;
                }
            }
        }
    }
    for (at, (i, fact)) in insns.iter().zip(facts.iter()).enumerate() {
        let reads = if i.class() & 4 != 0 { i.is_x() } else { i.class() == class::STX };
        if reads && fact.src.constant().is_some() {
            constants.push(at as u32);
        }
    }
}

/// Lets the paths behind a jump in.
fn leave(insns: &[Insn], at: usize, regs: &Regs, places: &mut Places) {
    let Some(&i) = insns.get(at) else { return };
    let edges = successors(insns, at);
    let target = usize::try_from(jump_target(at, i)).ok();
    // Where both ways lead to one place, nothing is learnt.
    let both = edges.next == edges.target;
    for next in edges.iter() {
        let taken = !is_goto(i) && target == Some(next);
        let learnt = if both { Some(*regs) } else { branch(i, *regs, taken) };
        if let Some(learnt) = learnt {
            places.join(next, &learnt);
        }
    }
}

impl Places {
    /// A place to go on from, and what is known there.
    fn next(&mut self) -> Option<(usize, Regs)> {
        let place = self.all.get_mut(self.todo.pop()?)?;
        place.waits = false;
        Some((place.at, place.regs))
    }

    /// Lets another path in at an instruction.
    fn join(&mut self, at: usize, new: &Regs) {
        let Some(index) = self.by_insn.get_mut(at) else { return };
        let known = (*index as usize).checked_sub(1);
        let n = known.unwrap_or(self.all.len());
        match self.all.get_mut(n) {
            Some(place) => {
                let tired = place.changes >= PATIENCE;
                let joined: Regs = std::array::from_fn(|r| hull(place.regs[r], new[r], tired));
                if joined == place.regs {
                    return;
                }
                place.changes = place.changes.saturating_add(1);
                place.regs = joined;
                if std::mem::replace(&mut place.waits, true) {
                    return;
                }
            }
            None => {
                *index = self.all.len() as u32 + 1;
                self.all.push(Place { at, regs: *new, changes: 0, waits: true });
            }
        }
        self.todo.push(n);
    }
}

/// Both ranges; a bound that moves is given up if `widen`.
fn hull(old: Range, new: Range, widen: bool) -> Range {
    let (min, max) = (old.min.min(new.min), old.max.max(new.max));
    let min = if widen && min < old.min { 0 } else { min };
    let max = match widen && max > old.max {
        true if max <= u64::from(u32::MAX) => u32::MAX.into(),
        true => u64::MAX,
        false => max,
    };
    Range { min, max }
}

fn get(regs: &Regs, r: u8) -> Range {
    regs.get(usize::from(r)).copied().unwrap_or(Range::ANY)
}

fn up_to(max: u64) -> Range {
    Range { min: 0, max }
}

/// The largest number of so many bytes.
fn largest(bytes: u32) -> u64 {
    u64::MAX.checked_shr(64u32.saturating_sub(bytes.saturating_mul(8))).unwrap_or(0)
}

/// What an instruction makes of what is known.
fn step(i: Insn, high: i32, regs: &mut Regs) {
    let (dst, result) = match i.class() {
        class::ALU | class::ALU64 if i.op() == alu::END => (i.dst(), up_to(largest(i.imm.unsigned_abs() / 8))),
        class::ALU64 => (i.dst(), arithmetic(i, get(regs, i.dst()), operand(i, regs), true)),
        class::ALU => (i.dst(), low(arithmetic(i, get(regs, i.dst()), operand(i, regs), false))),
        class::LDX if i.mode() == mode::MEM => (i.dst(), up_to(largest(i.bytes()))),
        class::LDX => (i.dst(), Range::ANY),
        class::STX if i.mode() == mode::ATOMIC => {
            let old = up_to(if i.size() == size::DW { u64::MAX } else { largest(i.bytes()) });
            match i.imm {
                atomic::LOAD_ACQ => (i.dst(), old),
                atomic::CMPXCHG => (0, old),
                atomic::STORE_REL => return,
                op if op & atomic::FETCH != 0 => (i.src(), old),
                _ => return,
            }
        }
        class::LD if i.mode() == mode::IMM => {
            // Anything but a number is an address.
            let number = u64::from(i.imm as u32) | u64::from(high as u32) << 32;
            (i.dst(), if i.src() == 0 { Range::just(number) } else { Range::ANY })
        }
        class::LD => return clobbered(regs),
        _ if i.code == CALL => return clobbered(regs),
        _ => return,
    };
    if let Some(r) = regs.get_mut(usize::from(dst)) {
        *r = result;
    }
}

fn clobbered(regs: &mut Regs) {
    regs[..6].fill(Range::ANY);
}

fn operand(i: Insn, regs: &Regs) -> Range {
    if i.is_x() { get(regs, i.src()) } else { Range::just(i64::from(i.imm) as u64) }
}

/// The low half of a number.
fn low(r: Range) -> Range {
    match r.constant() {
        Some(x) => Range::just(x & u64::from(u32::MAX)),
        None if r.fits_32() => r,
        None => up_to(u32::MAX.into()),
    }
}

fn arithmetic(i: Insn, a: Range, b: Range, wide: bool) -> Range {
    let top = if wide { u64::MAX } else { u32::MAX.into() };
    let bits: u64 = if wide { 64 } else { 32 };
    let (a, b) = if wide { (a, b) } else { (low(a), low(b)) };
    let any = up_to(top);
    let within = |min: Option<u64>, max: Option<u64>| match (min, max) {
        (Some(min), Some(max)) if max <= top => Range { min, max },
        _ => any,
    };
    let below_power = |x: u64| x.checked_add(1).and_then(u64::checked_next_power_of_two).map_or(u64::MAX, |p| p - 1);
    let plain = i.off == 0;
    match i.op() {
        alu::MOV if plain => b,
        alu::ADD => within(a.min.checked_add(b.min), a.max.checked_add(b.max)),
        alu::SUB => within(a.min.checked_sub(b.max), a.max.checked_sub(b.min)),
        alu::MUL => within(a.min.checked_mul(b.min), a.max.checked_mul(b.max)),
        alu::AND => up_to(a.max.min(b.max)),
        alu::OR => Range { min: a.min.max(b.min), max: below_power(a.max | b.max).min(top) },
        alu::XOR => up_to(below_power(a.max | b.max).min(top)),
        alu::LSH => match b.constant().filter(|n| *n < bits) {
            Some(n) => within(Some(a.min << n), a.max.checked_mul(1 << n)),
            None => any,
        },
        alu::RSH => match b.constant().filter(|n| *n < bits) {
            Some(n) => Range { min: a.min >> n, max: a.max >> n },
            None => up_to(a.max),
        },
        alu::ARSH if a.max <= top >> 1 => match b.constant().filter(|n| *n < bits) {
            Some(n) => Range { min: a.min >> n, max: a.max >> n },
            None => up_to(a.max),
        },
        // What is divided by zero gives zero; what is left of it is itself.
        alu::DIV if plain => up_to(a.max),
        alu::MOD if plain && b.min > 0 => up_to(a.max.min(b.max - 1)),
        alu::MOD if plain => up_to(a.max),
        _ => any,
    }
}

/// What is known on one side of a jump; `None` if nothing goes there.
fn branch(i: Insn, mut regs: Regs, taken: bool) -> Option<Regs> {
    if !is_jump(i) || is_goto(i) || i.op() == jmp::JCOND {
        return Some(regs);
    }
    let is32 = i.class() == class::JMP32;
    let (a, b) = (get(&regs, i.dst()), operand(i, &regs));
    let b = if is32 && !i.is_x() { low(b) } else { b };
    if is32 && !(a.fits_32() && b.fits_32()) || i.is_x() && i.dst() == i.src() {
        return Some(regs);
    }
    let (a, b) = match (i.op(), taken) {
        (jmp::JEQ, true) | (jmp::JNE, false) => {
            let both = Range { min: a.min.max(b.min), max: a.max.min(b.max) };
            (both, both)
        }
        (jmp::JNE, true) | (jmp::JEQ, false) => (differs(a, b), differs(b, a)),
        (jmp::JGT, true) | (jmp::JLE, false) => above(a, b, true)?,
        (jmp::JGE, true) | (jmp::JLT, false) => above(a, b, false)?,
        (jmp::JLT, true) | (jmp::JGE, false) => above(b, a, true).map(|(b, a)| (a, b))?,
        (jmp::JLE, true) | (jmp::JGT, false) => above(b, a, false).map(|(b, a)| (a, b))?,
        _ => return Some(regs),
    };
    if a.min > a.max || b.min > b.max {
        return None;
    }
    if let Some(r) = regs.get_mut(usize::from(i.dst())) {
        *r = a;
    }
    if i.is_x()
        && let Some(r) = regs.get_mut(usize::from(i.src()))
    {
        *r = b;
    }
    Some(regs)
}

/// `a` where it is not `b`.
fn differs(mut a: Range, b: Range) -> Range {
    if let Some(x) = b.constant().filter(|_| a.min < a.max) {
        if a.min == x {
            a.min += 1;
        } else if a.max == x {
            a.max -= 1;
        }
    }
    a
}

/// Both where `a` is above `b`; `None` if it cannot be.
fn above(a: Range, b: Range, strictly: bool) -> Option<(Range, Range)> {
    let more = u64::from(strictly);
    let a = Range { min: a.min.max(b.min.checked_add(more)?), max: a.max };
    let b = Range { min: b.min, max: b.max.min(a.max.checked_sub(more)?) };
    Some((a, b))
}
