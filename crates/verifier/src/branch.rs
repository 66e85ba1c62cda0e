//! What a comparison of two numbers decides, and what each outcome teaches about them.

use skep_ebpf::insn::jmp;

use crate::scalar::Scalar;
use crate::tnum::Tnum;

/// The operation that holds with the operands swapped (`JEQ`, `JNE`, `JSET` are their own).
pub fn swapped(op: u8) -> u8 {
    match op {
        jmp::JGT => jmp::JLT,
        jmp::JGE => jmp::JLE,
        jmp::JLT => jmp::JGT,
        jmp::JLE => jmp::JGE,
        jmp::JSGT => jmp::JSLT,
        jmp::JSGE => jmp::JSLE,
        jmp::JSLT => jmp::JSGT,
        jmp::JSLE => jmp::JSGE,
        same => same,
    }
}

/// Whether `a op b` is always true, always false, or unknown.
pub fn decided(op: u8, a: &Scalar, b: &Scalar, is32: bool) -> Option<bool> {
    if is32 {
        decided_at(op, &View::low(a), &View::low(b), None)
    } else {
        decided_at(op, &View::whole(a), &View::whole(b), Some((a, b)))
    }
}

/// The bounds of one width, widened to 64 bits so that one set of rules serves both.
struct View {
    bits: Tnum,
    umin: u64,
    umax: u64,
    smin: i64,
    smax: i64,
}

impl View {
    fn whole(s: &Scalar) -> View {
        View { bits: s.bits, umin: s.umin, umax: s.umax, smin: s.smin, smax: s.smax }
    }

    fn low(s: &Scalar) -> View {
        View {
            bits: s.bits.subreg(),
            umin: s.umin32.into(),
            umax: s.umax32.into(),
            smin: s.smin32.into(),
            smax: s.smax32.into(),
        }
    }
}

fn decided_at(op: u8, a: &View, b: &View, halves: Option<(&Scalar, &Scalar)>) -> Option<bool> {
    match op {
        jmp::JEQ => equal(a, b, halves),
        jmp::JNE => equal(a, b, halves).map(|eq| !eq),
        jmp::JSET => {
            let (a, b) = if b.bits.is_const() { (a, b) } else { (b, a) };
            if !b.bits.is_const() {
                None
            } else if a.bits.value & b.bits.value != 0 {
                Some(true)
            } else if a.bits.max() & b.bits.value == 0 {
                Some(false)
            } else {
                None
            }
        }
        jmp::JGT => order(a.umin > b.umax, a.umax <= b.umin),
        jmp::JGE => order(a.umin >= b.umax, a.umax < b.umin),
        jmp::JLT => order(a.umax < b.umin, a.umin >= b.umax),
        jmp::JLE => order(a.umax <= b.umin, a.umin > b.umax),
        jmp::JSGT => order(a.smin > b.smax, a.smax <= b.smin),
        jmp::JSGE => order(a.smin >= b.smax, a.smax < b.smin),
        jmp::JSLT => order(a.smax < b.smin, a.smin >= b.smax),
        jmp::JSLE => order(a.smax <= b.smin, a.smin > b.smax),
        _ => None,
    }
}

fn order(always: bool, never: bool) -> Option<bool> {
    if always {
        Some(true)
    } else if never {
        Some(false)
    } else {
        None
    }
}

fn equal(a: &View, b: &View, halves: Option<(&Scalar, &Scalar)>) -> Option<bool> {
    if a.bits.is_const() && b.bits.is_const() {
        return Some(a.bits.value == b.bits.value);
    }
    let apart = !a.bits.overlaps(b.bits)
        || a.umin > b.umax
        || a.umax < b.umin
        || a.smin > b.smax
        || a.smax < b.smin
        || halves.is_some_and(|(a, b)| {
            a.umin32 > b.umax32 || a.umax32 < b.umin32 || a.smin32 > b.smax32 || a.smax32 < b.smin32
        });
    if apart { Some(false) } else { None }
}

/// Narrows `a` and `b` to the numbers for which `a op b` is `outcome`, and brings their views in line.
pub fn refine(op: u8, outcome: bool, a: &mut Scalar, b: &mut Scalar, is32: bool) {
    narrow(op, outcome, a, b, is32);
    a.sync();
    b.sync();
}

/// The same for a number that is compared with itself. It learns as both sides before its views are brought in line:
/// that is what decides what is left of it on a branch that is never taken.
pub fn refine_self(op: u8, outcome: bool, a: &mut Scalar, is32: bool) {
    let mut b = *a;
    narrow(op, outcome, a, &mut b, is32);
    a.meet(&b);
    // Once for each side.
    a.sync();
    a.sync();
}

fn narrow(op: u8, outcome: bool, a: &mut Scalar, b: &mut Scalar, is32: bool) {
    if outcome { holds(op, a, b, is32) } else { fails(op, a, b, is32) }
}

fn fails(op: u8, a: &mut Scalar, b: &mut Scalar, is32: bool) {
    match op {
        jmp::JEQ => holds(jmp::JNE, a, b, is32),
        jmp::JNE => holds(jmp::JEQ, a, b, is32),
        jmp::JGT => holds(jmp::JLE, a, b, is32),
        jmp::JGE => holds(jmp::JLT, a, b, is32),
        jmp::JLT => holds(jmp::JGE, a, b, is32),
        jmp::JLE => holds(jmp::JGT, a, b, is32),
        jmp::JSGT => holds(jmp::JSLE, a, b, is32),
        jmp::JSGE => holds(jmp::JSLT, a, b, is32),
        jmp::JSLT => holds(jmp::JSGE, a, b, is32),
        jmp::JSLE => holds(jmp::JSGT, a, b, is32),
        jmp::JSET => no_common_bit(a, b, is32),
        _ => {}
    }
}

/// Which of the two is constant at this width, as (the other, the constant).
fn split_const<'s>(a: &'s mut Scalar, b: &'s mut Scalar, is32: bool) -> Option<(&'s mut Scalar, u64)> {
    let value = |s: &Scalar| if is32 { s.as_const32().map(u64::from) } else { s.as_const() };
    if let Some(x) = value(b) {
        Some((a, x))
    } else {
        let x = value(a)?;
        Some((b, x))
    }
}

fn no_common_bit(a: &mut Scalar, b: &mut Scalar, is32: bool) {
    let Some((r, x)) = split_const(a, b, is32) else { return };
    // Narrowing the bits of a number on a dead branch could contradict its bounds.
    r.forget_bounds();
    if is32 {
        r.bits = r.bits.with_subreg(r.bits.subreg().and(Tnum::constant(!x)));
    } else {
        r.bits = r.bits.and(Tnum::constant(!x));
    }
}

fn holds(op: u8, a: &mut Scalar, b: &mut Scalar, is32: bool) {
    match op {
        jmp::JEQ => same(a, b, is32),
        jmp::JNE => differ(a, b, is32),
        jmp::JSET => {
            let Some((r, x)) = split_const(a, b, is32) else { return };
            // Only a single bit is known to be set.
            if !x.is_power_of_two() {
                return;
            }
            if is32 {
                r.bits = r.bits.with_subreg(r.bits.subreg().or(Tnum::constant(x)));
            } else {
                r.bits = r.bits.or(Tnum::constant(x));
            }
        }
        jmp::JLE | jmp::JLT | jmp::JSLE | jmp::JSLT => less(op, a, b, is32),
        jmp::JGE | jmp::JGT | jmp::JSGE | jmp::JSGT => less(swapped(op), b, a, is32),
        _ => {}
    }
}

fn same(a: &mut Scalar, b: &mut Scalar, is32: bool) {
    a.umin32 = a.umin32.max(b.umin32);
    a.umax32 = a.umax32.min(b.umax32);
    a.smin32 = a.smin32.max(b.smin32);
    a.smax32 = a.smax32.min(b.smax32);
    (b.umin32, b.umax32, b.smin32, b.smax32) = (a.umin32, a.umax32, a.smin32, a.smax32);
    if is32 {
        let low = a.bits.subreg().intersect(b.bits.subreg());
        a.bits = a.bits.with_subreg(low);
        b.bits = b.bits.with_subreg(low);
        return;
    }
    a.umin = a.umin.max(b.umin);
    a.umax = a.umax.min(b.umax);
    a.smin = a.smin.max(b.smin);
    a.smax = a.smax.min(b.smax);
    a.bits = a.bits.intersect(b.bits);
    *b = *a;
}

/// A constant at the very edge of the other's range moves that edge.
fn differ(a: &mut Scalar, b: &mut Scalar, is32: bool) {
    let Some((r, x)) = split_const(a, b, is32) else { return };
    if is32 {
        let x = x as u32;
        if r.umin32 == x {
            r.umin32 = r.umin32.wrapping_add(1);
        }
        if r.umax32 == x {
            r.umax32 = r.umax32.wrapping_sub(1);
        }
        if r.smin32 == x as i32 {
            r.smin32 = r.smin32.wrapping_add(1);
        }
        if r.smax32 == x as i32 {
            r.smax32 = r.smax32.wrapping_sub(1);
        }
    } else {
        if r.umin == x {
            r.umin = r.umin.wrapping_add(1);
        }
        if r.umax == x {
            r.umax = r.umax.wrapping_sub(1);
        }
        if r.smin == x as i64 {
            r.smin = r.smin.wrapping_add(1);
        }
        if r.smax == x as i64 {
            r.smax = r.smax.wrapping_sub(1);
        }
    }
}

/// `a < b` or `a <= b`, signed or not.
fn less(op: u8, a: &mut Scalar, b: &mut Scalar, is32: bool) {
    match (op, is32) {
        (jmp::JLE, true) => {
            a.umax32 = a.umax32.min(b.umax32);
            b.umin32 = b.umin32.max(a.umin32);
        }
        (jmp::JLE, false) => {
            a.umax = a.umax.min(b.umax);
            b.umin = b.umin.max(a.umin);
        }
        (jmp::JLT, true) => {
            a.umax32 = a.umax32.min(b.umax32.wrapping_sub(1));
            b.umin32 = b.umin32.max(a.umin32.wrapping_add(1));
        }
        (jmp::JLT, false) => {
            a.umax = a.umax.min(b.umax.wrapping_sub(1));
            b.umin = b.umin.max(a.umin.wrapping_add(1));
        }
        (jmp::JSLE, true) => {
            a.smax32 = a.smax32.min(b.smax32);
            b.smin32 = b.smin32.max(a.smin32);
        }
        (jmp::JSLE, false) => {
            a.smax = a.smax.min(b.smax);
            b.smin = b.smin.max(a.smin);
        }
        (jmp::JSLT, true) => {
            a.smax32 = a.smax32.min(b.smax32.wrapping_sub(1));
            b.smin32 = b.smin32.max(a.smin32.wrapping_add(1));
        }
        _ => {
            a.smax = a.smax.min(b.smax.wrapping_sub(1));
            b.smin = b.smin.max(a.smin.wrapping_add(1));
        }
    }
}
