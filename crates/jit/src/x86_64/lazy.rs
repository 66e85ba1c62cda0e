//! Values that are not computed yet.
//!
//! Copies, additions and shifts by constants are put off: the register's value is noted as a formula over what other
//! registers hold, and computed (*settled*) when an instruction needs it in its place. By then it has often become the
//! address of a load, the source of a copy, half of a rotation, or nobody's.
//!
//! # Invariants
//!
//! * A formula speaks of what machine registers hold now. So a register may be overwritten only when no other value that
//!   is still needed refers to it ([`Emitter::write`]).
//! * A register that others' formulas refer to has no formula of its own, or one over itself alone. So settling never
//!   runs in circles.

use super::asm::{Alu, Mem, Shift};
use super::emit::Emitter;
use super::regs;

/// A formula over registers of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lazy {
    /// In its place.
    No,
    Sum(Sum),
    /// `src` shifted or rotated right by a constant.
    Shift {
        op: Shift,
        wide: bool,
        src: u8,
        k: u8,
    },
    /// The address of a map's handle.
    Map {
        index: u32,
    },
}

/// base + index << scale + disp; of 64 bits, or of 32 and then zero-extended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sum {
    pub(crate) wide: bool,
    pub(crate) base: Option<u8>,
    pub(crate) index: Option<(u8, u8)>,
    pub(crate) disp: i32,
}

impl Sum {
    pub(crate) const fn of(r: u8) -> Sum {
        Sum { wide: true, base: Some(r), index: None, disp: 0 }
    }

    pub(crate) const fn constant(wide: bool, disp: i32) -> Sum {
        Sum { wide, base: None, index: None, disp }
    }

    /// The register that it is a copy of (of its low half, for 32 bits).
    pub(crate) fn copy(self) -> Option<u8> {
        if self.index.is_none() && self.disp == 0 { self.base } else { None }
    }

    /// The number that it is.
    pub(crate) fn value(self) -> Option<u64> {
        let value = if self.wide { self.disp as i64 as u64 } else { u64::from(self.disp as u32) };
        (self.base.is_none() && self.index.is_none()).then_some(value)
    }

    /// The sum of two of the same width, if it has this form.
    pub(crate) fn plus(self, other: Sum) -> Option<Sum> {
        let disp =
            self.disp.checked_add(other.disp).or_else(|| (!self.wide).then(|| self.disp.wrapping_add(other.disp)))?;
        let mut terms =
            [self.base.map(|b| (b, 0)), self.index, other.base.map(|b| (b, 0)), other.index].into_iter().flatten();
        let (first, second, more) = (terms.next(), terms.next(), terms.next());
        if more.is_some() {
            return None;
        }
        let (base, index) = match (first, second) {
            (Some((r, 0)), None) => (Some(r), None),
            (x, None) => (None, x),
            (Some((r, 0)), x) | (x, Some((r, 0))) => (Some(r), x),
            _ => return None,
        };
        Some(Sum { wide: self.wide, base, index, disp })
    }
}

impl Lazy {
    /// The registers that it refers to.
    #[inline]
    pub(crate) fn refs(self) -> u16 {
        match self {
            Lazy::No | Lazy::Map { .. } => 0,
            Lazy::Sum(s) => s.base.map_or(0, |b| 1 << b) | s.index.map_or(0, |(i, _)| 1 << i),
            Lazy::Shift { src, .. } => 1 << src,
        }
    }
}

impl Emitter<'_> {
    #[inline]
    pub(crate) fn lazy(&self, r: u8) -> Lazy {
        self.lazy[usize::from(r & 15)]
    }

    /// True if the register's value is in its place: it has no formula.
    #[inline]
    pub(crate) fn in_place(&self, r: u8) -> bool {
        self.pending >> (r & 15) & 1 == 0
    }

    /// The register's value as a sum, settled first if it is none.
    #[inline]
    pub(crate) fn sum(&mut self, r: u8) -> Sum {
        if self.in_place(r) { Sum::of(r) } else { self.sum_of_formula(r) }
    }

    fn sum_of_formula(&mut self, r: u8) -> Sum {
        match self.lazy(r) {
            Lazy::No => Sum::of(r),
            Lazy::Sum(s) => s,
            Lazy::Shift { .. } | Lazy::Map { .. } => {
                self.force(r);
                Sum::of(r)
            }
        }
    }

    /// The number that a register is known to hold.
    #[inline]
    pub(crate) fn constant(&self, r: u8) -> Option<u64> {
        if self.in_place(r) {
            return None;
        }
        if let Lazy::Sum(s) = self.lazy(r) { s.value() } else { None }
    }

    /// The register whose machine register holds what `r` is (with `low`, only the low half counts).
    #[inline]
    pub(crate) fn copied(&self, r: u8, low: bool) -> Option<u8> {
        if self.in_place(r) {
            return Some(r);
        }
        match self.lazy(r) {
            Lazy::No => Some(r),
            Lazy::Sum(s) if s.wide || low => s.copy(),
            _ => None,
        }
    }

    /// Makes the registers readable: each is in its place, or a plain copy of one that is.
    #[inline]
    pub(crate) fn settle(&mut self, regs: &[(u8, bool)]) {
        for &(r, low) in regs {
            if !self.in_place(r) && self.copied(r, low).is_none() {
                self.force(r);
            }
        }
    }

    /// The machine register that holds the value of a register that was [settled](Emitter::settle).
    #[inline]
    pub(crate) fn place(&self, r: u8, low: bool) -> regs::Reg {
        regs::of(self.copied(r, low).unwrap_or(r))
    }

    /// Settles and returns the place of one register.
    #[inline]
    pub(crate) fn read(&mut self, r: u8, low: bool) -> regs::Reg {
        self.settle(&[(r, low)]);
        self.place(r, low)
    }

    /// Forgets the formulas of values that nobody needs any more.
    #[inline]
    pub(crate) fn forget(&mut self, needed: u16) {
        let gone = self.pending & !needed;
        if gone != 0 {
            for r in bits(gone) {
                self.lazy[usize::from(r)] = Lazy::No;
            }
            self.pending &= needed;
        }
    }

    /// Settles what refers to a register that is about to be overwritten.
    #[inline]
    pub(crate) fn spill(&mut self, r: u8) {
        let users = self.users[usize::from(r & 15)] & self.pending & !(1 << r);
        if users != 0 {
            self.spill_users(r, users);
        }
    }

    #[inline(never)]
    fn spill_users(&mut self, r: u8, users: u16) {
        // Those that have another formula by now do not count.
        for other in bits(users) {
            if self.lazy(other).refs() >> r & 1 != 0 {
                self.force(other);
            }
        }
        self.users[usize::from(r & 15)] &= 1 << r;
    }

    /// Prepares for a new value in the place of `dst`: operands have been [placed](Emitter::place) by now.
    #[inline]
    pub(crate) fn write(&mut self, dst: u8) -> regs::Reg {
        self.forget(self.after);
        self.lazy[usize::from(dst)] = Lazy::No;
        self.pending &= !(1 << dst);
        self.spill(dst);
        // What is written now has other flags, or none.
        self.flags = None;
        regs::of(dst)
    }

    /// Notes a formula as the new value of `dst`.
    pub(crate) fn put_off(&mut self, dst: u8, lazy: Lazy) {
        self.forget(self.after);
        self.pending &= !(1 << dst);
        self.lazy[usize::from(dst)] = Lazy::No;
        if let Lazy::Sum(s) = lazy
            && s.wide
            && s.copy() == Some(dst)
        {
            return;
        }
        let refs = lazy.refs() & !(1 << dst);
        if refs != 0 {
            self.spill(dst);
            if bits(refs & self.pending).any(|p| self.lazy(p).refs() & !(1 << p) != 0) || !self.optimise {
                return self.compute(dst, lazy);
            }
        } else if !self.optimise {
            self.spill(dst);
            return self.compute(dst, lazy);
        }
        self.lazy[usize::from(dst)] = lazy;
        self.pending |= 1 << dst;
        match lazy {
            Lazy::Sum(s) => {
                // Entry 15 is nobody's.
                self.users[usize::from(s.base.unwrap_or(15) & 15)] |= 1 << dst;
                self.users[usize::from(s.index.map_or(15, |(i, _)| i) & 15)] |= 1 << dst;
            }
            Lazy::Shift { src, .. } => self.users[usize::from(src & 15)] |= 1 << dst,
            Lazy::No | Lazy::Map { .. } => {}
        }
    }

    /// Puts a register's value in its place.
    #[inline]
    pub(crate) fn force(&mut self, r: u8) {
        if !self.in_place(r) {
            self.force_formula(r);
        }
    }

    fn force_formula(&mut self, r: u8) {
        let lazy = self.lazy(r);
        self.lazy[usize::from(r)] = Lazy::No;
        self.pending &= !(1 << r);
        self.spill(r);
        self.compute(r, lazy);
    }

    /// Computes a formula into a register that nothing else refers to.
    fn compute(&mut self, dst: u8, lazy: Lazy) {
        let d = regs::of(dst);
        self.flags = None;
        match lazy {
            Lazy::No => {}
            Lazy::Sum(s) => self.compute_sum(dst, s),
            Lazy::Map { index } => self.load_handle(d, index),
            Lazy::Shift { op: Shift::Ror, wide, src, k } => {
                if src == dst {
                    self.asm().shift_ri(Shift::Ror, wide, d, k);
                } else if self.features.bmi2 {
                    self.asm().rorx(wide, d, regs::of(src), k);
                } else {
                    self.asm().mov_rr(wide, d, regs::of(src));
                    self.asm().shift_ri(Shift::Ror, wide, d, k);
                }
            }
            Lazy::Shift { op, wide, src, k } => {
                if src != dst {
                    self.asm().mov_rr(wide, d, regs::of(src));
                }
                self.asm().shift_ri(op, wide, d, k);
            }
        }
    }

    fn compute_sum(&mut self, dst: u8, s: Sum) {
        let d = regs::of(dst);
        let Sum { wide, disp, .. } = s;
        match (s.base, s.index) {
            (None, None) => self.load_constant(d, s.value().unwrap_or(0)),
            (Some(b), None) if disp == 0 => self.asm().mov_rr(wide, d, regs::of(b)),
            (Some(b), None) if b == dst => {
                self.alu_imm(Alu::Add, wide, d, disp);
                self.flags = Some((dst, wide));
            }
            (Some(b), Some((i, 0))) if disp == 0 && (b == dst || i == dst) => {
                let other = if b == dst { i } else { b };
                self.asm().alu_rr(Alu::Add, wide, d, regs::of(other));
                self.flags = Some((dst, wide));
            }
            (None, Some((i, k))) if disp == 0 && i == dst => self.asm().shift_ri(Shift::Shl, wide, d, k),
            (None, Some((i, k))) if disp == 0 && k > 1 => {
                self.asm().mov_rr(wide, d, regs::of(i));
                self.asm().shift_ri(Shift::Shl, wide, d, k);
            }
            (base, index) if !self.blinds() => {
                let m = Mem { base: base.map(regs::of), index: index.map(|(i, k)| (regs::of(i), k)), disp };
                self.asm().lea(wide, d, m);
            }
            (base, index) => {
                let m = Mem { base: base.map(regs::of), index: index.map(|(i, k)| (regs::of(i), k)), disp: 0 };
                self.asm().lea(wide, d, m);
                self.alu_imm(Alu::Add, wide, d, disp);
            }
        }
    }
}

/// The numbers of the bits that are set.
pub(crate) fn bits(mut mask: u16) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let bit = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (bit < 16).then_some(bit as u8)
    })
}
