//! What is known of a number: bits, and bounds as unsigned and signed 64-bit and 32-bit number.
//!
//! Each of the five views over-approximates the same set; [`Scalar::sync`] lets each learn from the others.

use crate::tnum::Tnum;

/// A set of 64-bit numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // eight bounds, named by view and side
pub struct Scalar {
    pub bits: Tnum,
    pub umin: u64,
    pub umax: u64,
    pub smin: i64,
    pub smax: i64,
    pub umin32: u32,
    pub umax32: u32,
    pub smin32: i32,
    pub smax32: i32,
}

const LOW: u64 = 0xffff_ffff;

impl Scalar {
    /// Every number.
    pub const UNKNOWN: Scalar = Scalar {
        bits: Tnum::UNKNOWN,
        umin: 0,
        umax: u64::MAX,
        smin: i64::MIN,
        smax: i64::MAX,
        umin32: 0,
        umax32: u32::MAX,
        smin32: i32::MIN,
        smax32: i32::MAX,
    };

    /// One number.
    pub const fn constant(x: u64) -> Scalar {
        Scalar {
            bits: Tnum::constant(x),
            umin: x,
            umax: x,
            smin: x as i64,
            smax: x as i64,
            umin32: x as u32,
            umax32: x as u32,
            smin32: x as i32,
            smax32: x as i32,
        }
    }

    /// The numbers from `min` to `max`, unsigned.
    pub fn between(min: u64, max: u64) -> Scalar {
        let mut s = Scalar { umin: min, umax: max, ..Scalar::UNKNOWN };
        s.sync();
        s
    }

    /// The number, if there is only one.
    pub const fn as_const(&self) -> Option<u64> {
        if self.bits.is_const() { Some(self.bits.value) } else { None }
    }

    /// The low half, if it is known.
    pub const fn as_const32(&self) -> Option<u32> {
        if self.bits.subreg_is_const() { Some(self.bits.value as u32) } else { None }
    }

    /// True if nothing is known at all.
    pub fn is_unknown(&self) -> bool {
        *self == Scalar::UNKNOWN
    }

    /// True if `x` may be the number.
    pub fn contains(&self, x: u64) -> bool {
        self.bits.contains(x)
            && (self.umin..=self.umax).contains(&x)
            && (self.smin..=self.smax).contains(&(x as i64))
            && (self.umin32..=self.umax32).contains(&(x as u32))
            && (self.smin32..=self.smax32).contains(&(x as i32))
    }

    /// True if every view of `self` lies in the same view of `outer`.
    pub fn within(&self, outer: &Scalar) -> bool {
        outer.umin <= self.umin
            && self.umax <= outer.umax
            && outer.smin <= self.smin
            && self.smax <= outer.smax
            && outer.umin32 <= self.umin32
            && self.umax32 <= outer.umax32
            && outer.smin32 <= self.smin32
            && self.smax32 <= outer.smax32
            && outer.bits.includes(self.bits)
    }

    /// True if the views contradict each other: the code where this holds is never reached.
    pub const fn is_contradiction(&self) -> bool {
        if self.umin > self.umax || self.smin > self.smax || self.umin32 > self.umax32 || self.smin32 > self.smax32 {
            return true;
        }
        if self.bits.is_const() {
            let x = self.bits.value;
            return self.umin != x || self.umax != x || self.smin != x as i64 || self.smax != x as i64;
        }
        if self.bits.subreg_is_const() {
            let x = self.bits.value as u32;
            return self.umin32 != x || self.umax32 != x || self.smin32 != x as i32 || self.smax32 != x as i32;
        }
        false
    }

    /// Forgets the bounds, keeps the bits.
    pub const fn forget_bounds(&mut self) {
        *self = Scalar { bits: self.bits, ..Scalar::UNKNOWN };
    }

    /// Forgets the bounds of the whole number.
    pub const fn forget_bounds64(&mut self) {
        (self.umin, self.umax, self.smin, self.smax) = (0, u64::MAX, i64::MIN, i64::MAX);
    }

    /// Forgets the bounds of the low half.
    pub const fn forget_bounds32(&mut self) {
        (self.umin32, self.umax32, self.smin32, self.smax32) = (0, u32::MAX, i32::MIN, i32::MAX);
    }

    /// Lets every view learn from the others.
    pub fn sync(&mut self) {
        // Nothing can be learnt of a known number; most are.
        if self.bits.is_const() && *self == Scalar::constant(self.bits.value) {
            return;
        }
        self.learn_from_bits();
        for _ in 0..3 {
            let before = *self;
            self.deduce32();
            self.deduce64();
            self.deduce_mixed();
            if *self == before {
                break;
            }
        }
        self.bits_from_bounds();
        self.learn_from_bits();
    }

    /// Bounds of the low half from its bits.
    pub fn learn_from_bits32(&mut self) {
        let low = self.bits.subreg();
        let (value, mask) = (low.value as u32, low.mask as u32);
        let sign = 1 << 31;
        self.smin32 = self.smin32.max((value | (mask & sign)) as i32);
        self.smax32 = self.smax32.min((value | (mask & !sign)) as i32);
        self.umin32 = self.umin32.max(value);
        self.umax32 = self.umax32.min(value | mask);
    }

    /// Bounds from bits.
    pub fn learn_from_bits(&mut self) {
        self.learn_from_bits32();
        let Tnum { value, mask } = self.bits;
        let sign = 1 << 63;
        self.smin = self.smin.max((value | (mask & sign)) as i64);
        self.smax = self.smax.min((value | (mask & !sign)) as i64);
        self.umin = self.umin.max(value);
        self.umax = self.umax.min(value | mask);
        if let Some(x) = self.only_one() {
            *self = Scalar::constant(x);
        }
    }

    /// The number, if the bits leave only one between the unsigned bounds. (If they leave none, perhaps another one.)
    fn only_one(&self) -> Option<u64> {
        let next = self.bits.after(self.umin);
        if self.bits.contains(self.umin) {
            return (next > self.umax).then_some(self.umin);
        }
        let alone = next == self.bits.max() || next <= self.umax && self.bits.after(next) > self.umax;
        alone.then_some(next)
    }

    /// Bounds of the low half from those of the whole, and signed from unsigned and back.
    fn deduce32(&mut self) {
        let Scalar { umin, umax, smin, smax, .. } = *self;
        // With one upper half in the whole range, the lower halves are in order.
        if umin >> 32 == umax >> 32 {
            self.umin32 = self.umin32.max(umin as u32);
            self.umax32 = self.umax32.min(umax as u32);
            if umin as i32 <= umax as i32 {
                self.smin32 = self.smin32.max(umin as i32);
                self.smax32 = self.smax32.min(umax as i32);
            }
        }
        if smin >> 32 == smax >> 32 {
            if smin as u32 <= smax as u32 {
                self.umin32 = self.umin32.max(smin as u32);
                self.umax32 = self.umax32.min(smax as u32);
            }
            if smin as i32 <= smax as i32 {
                self.smin32 = self.smin32.max(smin as i32);
                self.smax32 = self.smax32.min(smax as i32);
            }
        }
        // Two neighbouring upper halves, the lower going from negative to positive across the border.
        if ((umin >> 32) as u32).wrapping_add(1) == (umax >> 32) as u32 && (umin as i32) < 0 && umax as i32 >= 0 {
            self.smin32 = self.smin32.max(umin as i32);
            self.smax32 = self.smax32.min(umax as i32);
        }
        if ((smin >> 32) as u32).wrapping_add(1) == (smax >> 32) as u32 && (smin as i32) < 0 && smax as i32 >= 0 {
            self.smin32 = self.smin32.max(smin as i32);
            self.smax32 = self.smax32.min(smax as i32);
        }
        // A range that does not cross the sign is the same range in both views.
        if self.umin32 as i32 <= self.umax32 as i32 {
            self.smin32 = self.smin32.max(self.umin32 as i32);
            self.smax32 = self.smax32.min(self.umax32 as i32);
        }
        if self.smin32 as u32 <= self.smax32 as u32 {
            self.umin32 = self.umin32.max(self.smin32 as u32);
            self.umax32 = self.umax32.min(self.smax32 as u32);
        } else if self.umax32 < self.smin32 as u32 {
            // The signed range is both ends of the unsigned one; only the lower end is possible.
            self.smin32 = self.umin32 as i32;
            self.umax32 = self.umax32.min(self.smax32 as u32);
        } else if (self.smax32 as u32) < self.umin32 {
            self.smax32 = self.umax32 as i32;
            self.umin32 = self.umin32.max(self.smin32 as u32);
        }
    }

    /// Signed bounds of the whole from unsigned ones and back.
    fn deduce64(&mut self) {
        if self.umin as i64 <= self.umax as i64 {
            self.smin = self.smin.max(self.umin as i64);
            self.smax = self.smax.min(self.umax as i64);
        }
        if self.smin as u64 <= self.smax as u64 {
            self.umin = self.umin.max(self.smin as u64);
            self.umax = self.umax.min(self.smax as u64);
        } else if self.umax < self.smin as u64 {
            // The signed range is both ends of the unsigned one; only the lower end is possible.
            self.smin = self.umin as i64;
            self.umax = self.umax.min(self.smax as u64);
        } else if (self.smax as u64) < self.umin {
            self.smax = self.umax as i64;
            self.umin = self.umin.max(self.smin as u64);
        }
    }

    /// Bounds of the whole from those of the low half.
    fn deduce_mixed(&mut self) {
        self.umin = self.umin.max(self.umin & !LOW | self.umin32 as u64);
        self.umax = self.umax.min(self.umax & !LOW | self.umax32 as u64);
        self.smin = self.smin.max((self.smin as u64 & !LOW | self.umin32 as u64) as i64);
        self.smax = self.smax.min((self.smax as u64 & !LOW | self.umax32 as u64) as i64);
        // A number that fits 32 bits signed, with a low half that is not negative, is its low half.
        if self.smin32 >= 0 && self.smin >= i32::MIN as i64 && self.smax <= i32::MAX as i64 {
            self.smin = self.smin32 as i64;
            self.smax = self.smax32 as i64;
            self.umin = self.smin32 as u64;
            self.umax = self.smax32 as u64;
            self.bits = self.bits.intersect(Tnum::range(self.umin, self.umax));
        }
    }

    /// Bits from bounds.
    fn bits_from_bounds(&mut self) {
        let whole = self.bits.intersect(Tnum::range(self.umin, self.umax));
        let low = whole.subreg().intersect(Tnum::range(self.umin32 as u64, self.umax32 as u64));
        self.bits = whole.without_subreg().or(low);
    }

    /// Keeps of each view what both have.
    pub fn meet(&mut self, other: &Scalar) {
        *self = Scalar {
            bits: self.bits.intersect(other.bits),
            umin: self.umin.max(other.umin),
            umax: self.umax.min(other.umax),
            smin: self.smin.max(other.smin),
            smax: self.smax.min(other.smax),
            umin32: self.umin32.max(other.umin32),
            umax32: self.umax32.min(other.umax32),
            smin32: self.smin32.max(other.smin32),
            smax32: self.smax32.min(other.smax32),
        };
    }

    /// The low half is known to be this; of the whole nothing else is learnt.
    pub fn set_low(&mut self, x: u32) {
        self.bits = self.bits.with_subreg(Tnum::constant(x.into()));
        (self.umin32, self.umax32, self.smin32, self.smax32) = (x, x, x as i32, x as i32);
    }

    /// Makes the whole number the zero-extended low half.
    pub fn zext32(&mut self) {
        self.bits = self.bits.subreg();
        self.umin = self.umin32 as u64;
        self.umax = self.umax32 as u64;
        if self.smin32 >= 0 {
            self.smin = self.smin32 as i64;
            self.smax = self.smax32 as i64;
        } else {
            self.smin = 0;
            self.smax = u32::MAX as i64;
        }
    }

    /// Cuts to the low `bytes` (1, 2 or 4) bytes, zero-extended.
    pub fn truncate(&mut self, bytes: u32) {
        self.bits = self.bits.cast(bytes);
        let mask = (1u64 << (bytes * 8)) - 1;
        if self.umin & !mask == self.umax & !mask {
            self.umin &= mask;
            self.umax &= mask;
        } else {
            self.umin = 0;
            self.umax = mask;
        }
        self.smin = self.umin as i64;
        self.smax = self.umax as i64;
        if bytes < 4 {
            self.forget_bounds32();
        }
        self.sync();
    }

    /// Turns the low `bytes` (2, 4 or 8) bytes around if `swap`, and cuts to them.
    pub fn swap_bytes(&mut self, bytes: u32, swap: bool) {
        if swap {
            // The order of bounds is lost, the bits are not.
            self.bits = self.bits.swap_bytes(bytes);
            self.forget_bounds();
        }
        if bytes < 8 {
            self.truncate(bytes);
        } else {
            self.sync();
        }
    }

    /// Sign-extends the low `bytes` (1, 2 or 4) bytes to 64 bits.
    pub fn sext64(&mut self, bytes: u32) {
        let shift = 64 - bytes * 8;
        let extend = |x: u64| ((x << shift) as i64) >> shift;
        if let Some(x) = self.as_const() {
            *self = Scalar::constant(extend(x) as u64);
            return;
        }
        let above = bytes * 8;
        if self.smax >> above == self.smin >> above {
            let (a, b) = (extend(self.smin as u64), extend(self.smax as u64));
            let (min, max) = (a.min(b), a.max(b));
            if (min >= 0) == (max >= 0) {
                *self = Scalar {
                    bits: Tnum::range(min as u64, max as u64),
                    umin: min as u64,
                    umax: max as u64,
                    smin: min,
                    smax: max,
                    umin32: min as u32,
                    umax32: max as u32,
                    smin32: min as i32,
                    smax32: max as i32,
                };
                return;
            }
        }
        let max = (1i64 << (above - 1)) - 1;
        *self = Scalar { smin: -max - 1, smax: max, smin32: (-max - 1) as i32, smax32: max as i32, ..Scalar::UNKNOWN };
    }

    /// Sign-extends the low `bytes` (1 or 2) bytes to 32 bits; the caller zero-extends.
    pub fn sext32(&mut self, bytes: u32) {
        let shift = 32 - bytes * 8;
        let extend = |x: u32| ((x << shift) as i32) >> shift;
        if self.bits.is_const() {
            *self = Scalar::constant(extend(self.bits.value as u32) as u32 as u64);
            return;
        }
        let above = bytes * 8;
        if self.smax32 >> above == self.smin32 >> above {
            let (a, b) = (extend(self.smin32 as u32), extend(self.smax32 as u32));
            let (min, max) = (a.min(b), a.max(b));
            if (min >= 0) == (max >= 0) {
                self.smin32 = min;
                self.smax32 = max;
                self.umin32 = min as u32;
                self.umax32 = max as u32;
                self.bits = Tnum::range(min as u32 as u64, max as u32 as u64);
                return;
            }
        }
        let max = (1i32 << (above - 1)) - 1;
        self.forget_bounds32();
        self.smin32 = -max - 1;
        self.smax32 = max;
        self.bits = Tnum::UNKNOWN.subreg();
    }
}

impl core::fmt::Display for Scalar {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if let Some(x) = self.as_const() {
            return write!(f, "{}", x as i64);
        }
        if self.is_unknown() {
            return f.write_str("an unknown number");
        }
        let (any, top) = (Scalar::UNKNOWN, i64::MAX as u64);
        let range = |f: &mut core::fmt::Formatter<'_>, min: i64, max: i64| write!(f, "a number from {min} to {max}");
        if self.smin >= 0 {
            return write!(f, "a number from {} to {}", self.umin, self.umax);
        }
        if self.smin > any.smin && self.smax < any.smax || self.umin > top {
            return range(f, self.smin, self.smax);
        }
        if self.smax < any.smax {
            return write!(f, "a number up to {}, perhaps negative", self.smax);
        }
        if self.smin > any.smin {
            return write!(f, "a number from {} on", self.smin);
        }
        match (self.umin, self.umax) {
            (0, u64::MAX) => {}
            (1, u64::MAX) => return f.write_str("a number other than 0"),
            (min, u64::MAX) => return write!(f, "a number from {min} on, as an unsigned one"),
            (0, max) => return write!(f, "a number up to {max}, as an unsigned one"),
            (min, max) => return write!(f, "a number from {min} to {max}, as an unsigned one"),
        }
        // Nothing is known of it as a whole.
        let half = "a number whose lower half is";
        match (self.smin32, self.smax32) {
            (0.., _) => return write!(f, "{half} from {} to {}", self.umin32, self.umax32),
            (i32::MIN, i32::MAX) if (self.umin32, self.umax32) == (0, u32::MAX) => {}
            (i32::MIN, i32::MAX) => return write!(f, "{half} from {} to {}", self.umin32, self.umax32),
            (i32::MIN, max) => return write!(f, "{half} at most {max}, perhaps negative"),
            (min, i32::MAX) => return write!(f, "{half}, as a signed one, at least {min}"),
            (min, max) => return write!(f, "{half}, as a signed one, from {min} to {max}"),
        }
        match self.bits.value | self.bits.mask {
            bits if bits != 0 && bits & 1 == 0 => write!(f, "a multiple of {}", 1u64 << bits.trailing_zeros()),
            _ => f.write_str("a number of which some bits are known"),
        }
    }
}
