//! What numbers registers can hold, forwards through each function.
//!
//! A plain analysis of intervals, over every edge that is left: it knows less than the checker did on a single path, but what
//! it knows holds whichever way the program came.

use skep_ebpf::insn::{CALL, Insn, alu, atomic, class, jmp, mode, size};

use super::Rewritten;
use super::facts::{Range, RegSet};
use crate::cfg::{is_goto, is_jump, jump_target, successors};

/// After so many changes at one place, bounds that still move are given up.
const PATIENCE: u8 = 4;

type Regs = [Range; 11];

/// What is known at the start of a function.
const START: Regs = [Range::ANY; 11];

#[derive(Clone)]
struct Place {
    regs: Option<Regs>,
    changes: u8,
}

/// Fills in the ranges of operands.
pub(super) fn ranges(program: &mut Rewritten) {
    let Rewritten { insns, facts, functions, constants, .. } = program;
    let mut places = vec![Place { regs: None, changes: 0 }; insns.len()];
    for f in functions.iter() {
        let mut todo = vec![f.start as usize];
        if let Some(p) = places.get_mut(f.start as usize) {
            p.regs = Some(START);
        }
        while let Some(at) = todo.pop() {
            let (Some(&i), Some(Some(regs))) = (insns.get(at), places.get(at).map(|p| p.regs)) else { continue };
            let high = insns.get(at + 1).map_or(0, |n| n.imm);
            let after = step(i, high, regs);
            let edges = successors(insns, at);
            let target = usize::try_from(jump_target(at, i)).ok();
            for next in edges.iter() {
                let taken = is_jump(i) && !is_goto(i) && target == Some(next);
                // Where both ways lead to one place, nothing is learnt.
                let both = edges.next == edges.target;
                let learnt = if both { Some(after) } else { branch(i, after, taken) };
                if let (Some(learnt), Some(p)) = (learnt, places.get_mut(next))
                    && p.join(&learnt)
                {
                    todo.push(next);
                }
            }
        }
    }
    for (at, ((i, fact), place)) in insns.iter().zip(facts.iter_mut()).zip(&places).enumerate() {
        if let Some(regs) = &place.regs {
            fact.dst = get(regs, i.dst());
            fact.src = get(regs, i.src());
            let reads = if i.class() & 4 != 0 { i.is_x() } else { i.class() == class::STX };
            if reads && fact.src.constant().is_some() {
                constants.push(at as u32);
            }
        }
    }
}

impl Place {
    /// Lets another path in; true if that brought something new.
    fn join(&mut self, new: &Regs) -> bool {
        let Some(old) = self.regs else {
            self.regs = Some(*new);
            return true;
        };
        let tired = self.changes >= PATIENCE;
        let joined: Regs = std::array::from_fn(|n| hull(old[n], new[n], tired));
        if joined == old {
            return false;
        }
        self.changes = self.changes.saturating_add(1);
        self.regs = Some(joined);
        true
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

fn step(i: Insn, high: i32, mut regs: Regs) -> Regs {
    let (dst, result) = match i.class() {
        class::ALU | class::ALU64 if i.op() == alu::END => (i.dst(), up_to(largest(i.imm.unsigned_abs() / 8))),
        class::ALU64 => (i.dst(), arithmetic(i, get(&regs, i.dst()), operand(i, &regs), true)),
        class::ALU => (i.dst(), low(arithmetic(i, get(&regs, i.dst()), operand(i, &regs), false))),
        class::LDX if i.mode() == mode::MEM => (i.dst(), up_to(largest(i.bytes()))),
        class::LDX => (i.dst(), Range::ANY),
        class::STX if i.mode() == mode::ATOMIC => {
            let old = up_to(if i.size() == size::DW { u64::MAX } else { largest(i.bytes()) });
            match i.imm {
                atomic::LOAD_ACQ => (i.dst(), old),
                atomic::CMPXCHG => (0, old),
                atomic::STORE_REL => return regs,
                op if op & atomic::FETCH != 0 => (i.src(), old),
                _ => return regs,
            }
        }
        class::LD if i.mode() == mode::IMM => {
            // Anything but a number is an address.
            let number = u64::from(i.imm as u32) | u64::from(high as u32) << 32;
            (i.dst(), if i.src() == 0 { Range::just(number) } else { Range::ANY })
        }
        class::LD => return clobbered(regs),
        _ if i.code == CALL => return clobbered(regs),
        _ => return regs,
    };
    if let Some(r) = regs.get_mut(usize::from(dst)) {
        *r = result;
    }
    regs
}

fn clobbered(mut regs: Regs) -> Regs {
    for r in RegSet::CALLER_SAVED.iter() {
        regs[usize::from(r)] = Range::ANY;
    }
    regs
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
