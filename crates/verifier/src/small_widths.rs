//! Every set of numbers of a few bits, every operation and comparison: nothing concrete is lost.
//!
//! Numbers of `width` bits stand in a [`Window`] of the 64: at the bottom, at the top of a half, across both halves, at
//! the very top; the bits above are zero or repeat the sign, the bits below are all zero or all one. Each window is
//! small arithmetic with borders (wrap, carry, sign) at another place. Sets are bounds in each of the four orders, known
//! bits, and what two or three of them have in common.
//!
//! Tests have a slice of this; `SKEP_EXHAUSTIVE=1` has all of it (minutes).

use std::collections::BTreeMap;

use skep_ebpf::insn::{alu, jmp};

use crate::scalar::Scalar;
use crate::tnum::Tnum;
use crate::{arith, branch, check_alu};

/// Where the numbers stand.
#[derive(Clone, Copy, Debug)]
struct Window {
    width: u32,
    shift: u32,
    /// The bits above repeat the highest one.
    signed: bool,
}

impl Window {
    /// Number `k` of the window, with the bits below all zero and all one.
    fn numbers(self, k: u64) -> [u64; 2] {
        let up = 64 - self.width;
        let low = if self.signed { ((k << up) as i64 >> (up - self.shift)) as u64 } else { k << self.shift };
        [low, low | ((1 << self.shift) - 1)]
    }

    /// All of them, once each.
    fn all(self) -> Vec<u64> {
        let mut all: Vec<u64> = (0..1 << self.width).flat_map(|k| self.numbers(k)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// All sets by one constraint of this kind.
    fn constrained(self, kind: Kind) -> Vec<Scalar> {
        if kind == Kind::Bits {
            return self.known_bits().map(|bits| Scalar { bits, ..Scalar::UNKNOWN }).collect();
        }
        let mut edges = self.all();
        edges.sort_by_key(|x| kind.rank(*x));
        let mut sets = Vec::new();
        for (n, &min) in edges.iter().enumerate() {
            // A range begins with the bits below all zero and ends with all one.
            if self.shift > 0 && min & 1 != 0 {
                continue;
            }
            sets.extend(
                edges[n..].iter().filter(|max| self.shift == 0 || *max & 1 != 0).map(|&max| kind.range(min, max)),
            );
        }
        sets.dedup();
        sets
    }

    fn known_bits(self) -> impl Iterator<Item = Tnum> {
        let n = 1u64 << self.width;
        (0..n)
            .flat_map(move |unknown| {
                (0..n).filter(move |value| value & unknown == 0).map(move |value| (value, unknown))
            })
            .map(move |(value, unknown)| {
                let (value, [_, mask]) = (self.numbers(value)[0], self.numbers(unknown));
                Tnum { value: value & !mask, mask }
            })
    }
}

/// The five views of a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Unsigned,
    Signed,
    UnsignedLow,
    SignedLow,
    Bits,
}

const KINDS: [Kind; 5] = [Kind::Unsigned, Kind::Signed, Kind::UnsignedLow, Kind::SignedLow, Kind::Bits];

impl Kind {
    /// Numbers in this view's order.
    fn rank(self, x: u64) -> i128 {
        match self {
            Kind::Signed => (x as i64).into(),
            Kind::UnsignedLow => (x as u32).into(),
            Kind::SignedLow => (x as i32).into(),
            _ => x.into(),
        }
    }

    fn range(self, min: u64, max: u64) -> Scalar {
        let all = Scalar::UNKNOWN;
        match self {
            Kind::Unsigned => Scalar { umin: min, umax: max, ..all },
            Kind::Signed => Scalar { smin: min as i64, smax: max as i64, ..all },
            Kind::UnsignedLow => Scalar { umin32: min as u32, umax32: max as u32, ..all },
            Kind::SignedLow => Scalar { smin32: min as i32, smax32: max as i32, ..all },
            Kind::Bits => all,
        }
    }
}

/// A set, and the numbers of the window in it.
#[derive(Clone, Debug)]
struct Set {
    is: Scalar,
    members: Vec<u64>,
}

/// Key by which equal sets are found.
fn key(s: &Scalar) -> [u64; 10] {
    let Scalar { bits, umin, umax, smin, smax, umin32, umax32, smin32, smax32 } = *s;
    let low = [umin32.into(), umax32.into(), smin32 as u64, smax32 as u64];
    [bits.value, bits.mask, umin, umax, smin as u64, smax as u64, low[0], low[1], low[2], low[3]]
}

/// Brings in line what several constraints have in common; each number of the window that satisfies all must be kept.
/// Nothing if there is none.
fn common(window: &[u64], constraints: &[&Scalar]) -> Option<Set> {
    let members: Vec<u64> = window.iter().copied().filter(|x| constraints.iter().all(|c| c.contains(*x))).collect();
    let mut is = Scalar::UNKNOWN;
    constraints.iter().for_each(|c| is.meet(c));
    let before = is;
    is.sync();
    if members.is_empty() {
        return None;
    }
    for x in &members {
        assert!(is.contains(*x), "sync: {before:?} -> {is:?} misses {x:#x}");
    }
    assert!(!is.is_contradiction(), "sync: {before:?} -> {is:?} has members");
    let members = window.iter().copied().filter(|x| is.contains(*x)).collect();
    Some(Set { is, members })
}

/// All sets that have `together` constraints of different kinds, equal ones once.
fn sets(window: Window, together: usize) -> Vec<Set> {
    let numbers = window.all();
    let by_kind = KINDS.map(|kind| window.constrained(kind));
    let mut found = BTreeMap::new();
    let mut add = |constraints: &[&Scalar]| {
        if let Some(set) = common(&numbers, constraints) {
            found.entry(key(&set.is)).or_insert(set);
        }
    };
    for (n, a) in by_kind.iter().enumerate() {
        for a in a {
            add(&[a]);
            for (m, b) in by_kind.iter().enumerate().skip(n + 1).filter(|_| together > 1) {
                for b in b {
                    add(&[a, b]);
                    for c in by_kind.iter().skip(m + 1).filter(|_| together > 2).flatten() {
                        add(&[a, b, c]);
                    }
                }
            }
        }
    }
    found.into_values().collect()
}

const OPS: [u8; 6] = [alu::ADD, alu::SUB, alu::MUL, alu::AND, alu::OR, alu::XOR];
const SHIFTS: [u8; 3] = [alu::LSH, alu::RSH, alu::ARSH];
const JUMPS: [u8; 11] =
    [jmp::JEQ, jmp::JNE, jmp::JSET, jmp::JGT, jmp::JGE, jmp::JLT, jmp::JLE, jmp::JSGT, jmp::JSGE, jmp::JSLT, jmp::JSLE];

/// What the machine computes.
pub(crate) fn computed(op: u8, a: u64, b: u64, is32: bool) -> u64 {
    let (x, y) = (a as u32, b as u32);
    match (op, is32) {
        (alu::ADD, true) => x.wrapping_add(y).into(),
        (alu::SUB, true) => x.wrapping_sub(y).into(),
        (alu::MUL, true) => x.wrapping_mul(y).into(),
        (alu::AND, true) => (x & y).into(),
        (alu::OR, true) => (x | y).into(),
        (alu::XOR, true) => (x ^ y).into(),
        (alu::NEG, true) => x.wrapping_neg().into(),
        (alu::LSH, true) => x.wrapping_shl(y).into(),
        (alu::RSH, true) => x.wrapping_shr(y).into(),
        (_, true) => ((x as i32).wrapping_shr(y) as u32).into(),
        (alu::ADD, _) => a.wrapping_add(b),
        (alu::SUB, _) => a.wrapping_sub(b),
        (alu::MUL, _) => a.wrapping_mul(b),
        (alu::AND, _) => a & b,
        (alu::OR, _) => a | b,
        (alu::XOR, _) => a ^ b,
        (alu::NEG, _) => a.wrapping_neg(),
        (alu::LSH, _) => a.wrapping_shl(y),
        (alu::RSH, _) => a.wrapping_shr(y),
        _ => (a as i64).wrapping_shr(y) as u64,
    }
}

/// How the machine compares.
pub(crate) fn compared(op: u8, a: u64, b: u64, is32: bool) -> bool {
    let (a, b) = if is32 { (u64::from(a as u32), u64::from(b as u32)) } else { (a, b) };
    let (x, y) = if is32 { (i64::from(a as i32), i64::from(b as i32)) } else { (a as i64, b as i64) };
    match op {
        jmp::JEQ => a == b,
        jmp::JNE => a != b,
        jmp::JSET => a & b != 0,
        jmp::JGT => a > b,
        jmp::JGE => a >= b,
        jmp::JLT => a < b,
        jmp::JLE => a <= b,
        jmp::JSGT => x > y,
        jmp::JSGE => x >= y,
        jmp::JSLT => x < y,
        _ => x <= y,
    }
}

/// Every operation and comparison of the two.
fn check_pair(a: &Set, b: &Set) {
    for is32 in [false, true] {
        for op in OPS {
            let mut r = a.is;
            arith::apply(op, &mut r, b.is, is32);
            for x in &a.members {
                for y in &b.members {
                    let z = computed(op, *x, *y, is32);
                    assert!(r.contains(z), "{op:#x} {is32} {a:x?} {b:x?} -> {r:x?} misses {z:#x}");
                }
            }
        }
        for op in JUMPS {
            let decided = branch::decided(op, &a.is, &b.is, is32);
            let narrowed = [false, true].map(|outcome| {
                let (mut p, mut q) = (a.is, b.is);
                branch::refine(op, outcome, &mut p, &mut q, is32);
                check_alu::settle(&mut p);
                check_alu::settle(&mut q);
                (p, q)
            });
            for x in &a.members {
                for y in &b.members {
                    let outcome = compared(op, *x, *y, is32);
                    let (p, q) = &narrowed[usize::from(outcome)];
                    assert!(decided.is_none_or(|d| d == outcome), "{op:#x} {is32} {a:x?} {b:x?} is not {decided:?}");
                    assert!(
                        p.contains(*x) && q.contains(*y),
                        "{op:#x} {is32} {outcome} {a:x?} {b:x?} -> {p:x?} {q:x?} miss {x:#x}, {y:#x}"
                    );
                }
            }
        }
    }
}

/// Every operation on one number, and comparison of it with itself.
fn check_one(a: &Set) {
    let check = |what: &str, r: Scalar, real: &dyn Fn(u64) -> u64| {
        for x in &a.members {
            let z = real(*x);
            assert!(r.contains(z), "{what} {a:x?} -> {r:x?} misses {z:#x}");
        }
    };
    for is32 in [false, true] {
        let mut r = a.is;
        arith::apply(alu::NEG, &mut r, a.is, is32);
        check("neg", r, &|x| computed(alu::NEG, x, 0, is32));
        for op in SHIFTS {
            for n in 0..if is32 { 32 } else { 64 } {
                let mut r = a.is;
                arith::apply(op, &mut r, Scalar::constant(n), is32);
                check("shift", r, &|x| computed(op, x, n, is32));
            }
        }
        for op in JUMPS {
            for outcome in [false, true] {
                let mut r = a.is;
                branch::refine_self(op, outcome, &mut r, is32);
                check_alu::settle(&mut r);
                let members = a.members.iter().filter(|x| compared(op, **x, **x, is32) == outcome);
                members
                    .for_each(|x| assert!(r.contains(*x), "{op:#x} {is32} {outcome} {a:x?} -> {r:x?} misses {x:#x}"));
            }
        }
    }
    let with = |change: &dyn Fn(&mut Scalar)| {
        let mut r = a.is;
        change(&mut r);
        r
    };
    for bytes in [1, 2, 4] {
        let bits = 64 - bytes * 8;
        let extended = |x: u64| ((x << bits) as i64 >> bits) as u64;
        check("truncate", with(&|r| r.truncate(bytes)), &|x| x << bits >> bits);
        check("sext64", with(&|r| r.sext64(bytes)), &extended);
        if bytes < 4 {
            let to_half = |r: &mut Scalar| {
                r.sext32(bytes);
                r.zext32();
                r.sync();
            };
            check("sext32", with(&to_half), &|x| extended(x) as u32 as u64);
        }
    }
    for bytes in [2, 4, 8] {
        let kept = 64 - bytes * 8;
        check("swap", with(&|r| r.swap_bytes(bytes, true)), &|x| x.swap_bytes() >> kept);
        check("cut", with(&|r| r.swap_bytes(bytes, false)), &|x| x << kept >> kept);
    }
}

/// The windows for numbers of this many bits.
fn windows(width: u32) -> Vec<Window> {
    let at = |shift, signed| Window { width, shift, signed };
    vec![
        at(0, true),
        at(32 - width / 2, true),
        at(64 - width, false),
        at(0, false),
        at(32 - width, true),
        at(32 - width, false),
        at(32 - width / 2, false),
        // Products reach over the top of the low half.
        at(16 - width / 2, true),
    ]
}

fn everything() -> bool {
    std::env::var_os("SKEP_EXHAUSTIVE").is_some()
}

/// A fast build has time for more.
const FAST: bool = !cfg!(debug_assertions);

#[test]
fn bounds_in_line_keep_every_number() {
    for (n, window) in windows(3).into_iter().enumerate() {
        if everything() || FAST || n < 3 {
            sets(window, if everything() || n == 0 { 3 } else { 2 });
        }
    }
    for (n, window) in windows(4).into_iter().enumerate() {
        if everything() || FAST && n < 3 {
            sets(window, 2);
        }
    }
}

#[test]
fn operations_and_comparisons_keep_every_number() {
    let width = if everything() { 4 } else { 2 };
    for window in windows(width) {
        let sets = sets(window, if everything() { 1 } else { 2 });
        for a in &sets {
            check_one(a);
            sets.iter().for_each(|b| check_pair(a, b));
        }
    }
    for (n, window) in windows(3).into_iter().enumerate() {
        if everything() || FAST && n < 3 {
            let (rich, plain) = (sets(window, 2), sets(window, if everything() { 2 } else { 1 }));
            for a in &rich {
                check_one(a);
                plain.iter().for_each(|b| check_pair(a, b));
            }
        }
    }
}

/// Bounds of each order on numbers of more bits, as far as they fit into one interval: every pair, by what all concrete
/// results have in common.
#[test]
fn ranges_of_more_bits_keep_every_number() {
    let width = if everything() { 6 } else { 4 };
    let all = windows(width);
    let some = if everything() { all.len() } else { 3 };
    for window in &all[..some] {
        for kinds in [[Kind::Unsigned, Kind::Unsigned], [Kind::Signed, Kind::Unsigned], [Kind::Signed, Kind::Signed]] {
            pairs_of_ranges(*window, kinds);
        }
    }
}

/// The numbers of the window in the order of a view, and all ranges of them, brought in line.
struct Ranges {
    numbers: Vec<u64>,
    /// By first and last member.
    between: Vec<Vec<Scalar>>,
}

impl Ranges {
    fn new(window: Window, kind: Kind) -> Ranges {
        let mut numbers: Vec<u64> = (0..1 << window.width).map(|k| window.numbers(k)[0]).collect();
        numbers.sort_by_key(|x| kind.rank(*x));
        let range = |n: usize, m: usize| {
            let mut s = kind.range(numbers[n], numbers[m]);
            s.sync();
            s
        };
        let between = (0..numbers.len()).map(|n| (0..numbers.len()).map(|m| range(n, m.max(n))).collect()).collect();
        Ranges { numbers, between }
    }
}

/// The least that holds some numbers, in each view.
#[derive(Clone, Copy)]
struct Hull(Option<Scalar>);

impl Hull {
    fn add(&mut self, other: Hull) {
        let Some(b) = other.0 else { return };
        self.0 = Some(match self.0 {
            None => b,
            Some(a) => Scalar {
                bits: a.bits.union(b.bits),
                umin: a.umin.min(b.umin),
                umax: a.umax.max(b.umax),
                smin: a.smin.min(b.smin),
                smax: a.smax.max(b.smax),
                umin32: a.umin32.min(b.umin32),
                umax32: a.umax32.max(b.umax32),
                smin32: a.smin32.min(b.smin32),
                smax32: a.smax32.max(b.smax32),
            },
        });
    }

    fn of(x: u64) -> Hull {
        Hull(Some(Scalar::constant(x)))
    }

    fn within(self, s: &Scalar) -> bool {
        self.0.is_none_or(|h| h.within(s))
    }
}

/// For each range of the second operand, what the first one's numbers give with it grows with the range; for each range
/// of the first, what its numbers gave is put together.
fn pairs_of_ranges(window: Window, kinds: [Kind; 2]) {
    let [a, b] = kinds.map(|kind| Ranges::new(window, kind));
    let n = a.numbers.len();
    for is32 in [false, true] {
        for op in OPS {
            for first in 0..n {
                let mut rows = vec![Hull(None); n];
                for last in first..n {
                    let y = b.numbers[last];
                    rows.iter_mut().zip(&a.numbers).for_each(|(row, x)| row.add(Hull::of(computed(op, *x, y, is32))));
                    for from in 0..n {
                        let mut hull = Hull(None);
                        for (to, row) in rows.iter().enumerate().skip(from) {
                            hull.add(*row);
                            let mut r = a.between[from][to];
                            arith::apply(op, &mut r, b.between[first][last], is32);
                            assert!(
                                hull.within(&r),
                                "{op:#x} {is32} {window:?} {kinds:?} {from}..{to} {first}..{last} -> {r:x?} misses some of {:x?}",
                                hull.0
                            );
                        }
                    }
                }
            }
        }
        for op in JUMPS {
            compare_ranges(&a, &b, op, is32);
        }
    }
}

fn compare_ranges(a: &Ranges, b: &Ranges, op: u8, is32: bool) {
    let n = a.numbers.len();
    for first in 0..n {
        // Which outcomes each number of the first operand has with some number of the second.
        let mut rows = vec![[false; 2]; n];
        for last in first..n {
            let y = b.numbers[last];
            rows.iter_mut().zip(&a.numbers).for_each(|(row, x)| row[usize::from(compared(op, *x, y, is32))] = true);
            for from in 0..n {
                let mut left = [Hull(None); 2];
                let mut columns = vec![[false; 2]; n];
                for (to, row) in rows.iter().enumerate().skip(from) {
                    let x = a.numbers[to];
                    for y in first..=last {
                        columns[y][usize::from(compared(op, x, b.numbers[y], is32))] = true;
                    }
                    let (p, q) = (a.between[from][to], b.between[first][last]);
                    let decided = branch::decided(op, &p, &q, is32);
                    for outcome in [false, true] {
                        let o = usize::from(outcome);
                        if row[o] {
                            left[o].add(Hull::of(x));
                        }
                        let mut right = Hull(None);
                        (first..=last).filter(|y| columns[*y][o]).for_each(|y| right.add(Hull::of(b.numbers[y])));
                        let happens = left[o].0.is_some();
                        assert!(!happens || decided != Some(!outcome), "{op:#x} {is32} {p:x?} {q:x?} {decided:?}");
                        let (mut p, mut q) = (p, q);
                        branch::refine(op, outcome, &mut p, &mut q, is32);
                        check_alu::settle(&mut p);
                        check_alu::settle(&mut q);
                        assert!(
                            left[o].within(&p) && right.within(&q),
                            "{op:#x} {is32} {outcome} {from}..{to} {first}..{last} -> {p:x?} {q:x?}"
                        );
                    }
                }
            }
        }
    }
}
