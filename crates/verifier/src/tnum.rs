//! Known bits: a number of which some bits are known and the others are not.
//!
//! A [`Tnum`] stands for the set of all `x` with `x & !mask == value`. The operations are the well-known ones of the
//! abstract domain ("Sound, Precise, and Fast Abstract Interpretation with Tristate Numbers", CGO 2022).

/// A partly known 64-bit number. Invariant: `value & mask == 0`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tnum {
    /// The bits that are known to be one.
    pub value: u64,
    /// The bits that are not known.
    pub mask: u64,
}

impl Tnum {
    /// Nothing known.
    pub const UNKNOWN: Tnum = Tnum { value: 0, mask: u64::MAX };

    /// Exactly this number.
    pub const fn constant(value: u64) -> Tnum {
        Tnum { value, mask: 0 }
    }

    /// The smallest tnum with every number from `min` to `max`.
    pub const fn range(min: u64, max: u64) -> Tnum {
        let differing = min ^ max;
        let bits = 64 - differing.leading_zeros();
        if bits == 64 {
            return Tnum::UNKNOWN;
        }
        let mask = (1u64 << bits) - 1;
        Tnum { value: min & !mask, mask }
    }

    /// True if all bits are known.
    pub const fn is_const(self) -> bool {
        self.mask == 0
    }

    /// True if `x` is in the set.
    pub const fn contains(self, x: u64) -> bool {
        x & !self.mask == self.value
    }

    /// True if the low 32 bits are known.
    pub const fn subreg_is_const(self) -> bool {
        self.mask as u32 == 0
    }

    /// Sum.
    pub const fn add(self, b: Tnum) -> Tnum {
        let masks = self.mask.wrapping_add(b.mask);
        let values = self.value.wrapping_add(b.value);
        let carries = masks.wrapping_add(values) ^ values;
        let mask = carries | self.mask | b.mask;
        Tnum { value: values & !mask, mask }
    }

    /// Difference.
    pub const fn sub(self, b: Tnum) -> Tnum {
        let diff = self.value.wrapping_sub(b.value);
        let most = diff.wrapping_add(self.mask);
        let least = diff.wrapping_sub(b.mask);
        let mask = (most ^ least) | self.mask | b.mask;
        Tnum { value: diff & !mask, mask }
    }

    /// Two's complement.
    pub const fn neg(self) -> Tnum {
        Tnum::constant(0).sub(self)
    }

    /// Bitwise and.
    pub const fn and(self, b: Tnum) -> Tnum {
        let possible = (self.value | self.mask) & (b.value | b.mask);
        let value = self.value & b.value;
        Tnum { value, mask: possible & !value }
    }

    /// Bitwise or.
    pub const fn or(self, b: Tnum) -> Tnum {
        let value = self.value | b.value;
        Tnum { value, mask: (self.mask | b.mask) & !value }
    }

    /// Bitwise exclusive or.
    pub const fn xor(self, b: Tnum) -> Tnum {
        let mask = self.mask | b.mask;
        Tnum { value: (self.value ^ b.value) & !mask, mask }
    }

    /// Product: long multiplication, where an unknown bit joins the sums with and without its row.
    pub const fn mul(self, b: Tnum) -> Tnum {
        let (mut a, mut row, mut sum) = (self, b, Tnum::constant(0));
        while a.value != 0 || a.mask != 0 {
            if a.value & 1 == 1 {
                sum = sum.add(row);
            } else if a.mask & 1 == 1 {
                sum = sum.union(sum.add(row));
            }
            a = a.rsh(1);
            row = row.lsh(1);
        }
        sum
    }

    /// Left shift by a known amount below 64.
    pub const fn lsh(self, n: u32) -> Tnum {
        Tnum { value: self.value.wrapping_shl(n), mask: self.mask.wrapping_shl(n) }
    }

    /// Logical right shift by a known amount below 64.
    pub const fn rsh(self, n: u32) -> Tnum {
        Tnum { value: self.value.wrapping_shr(n), mask: self.mask.wrapping_shr(n) }
    }

    /// Arithmetic right shift by a known amount, of the whole number.
    pub const fn arsh64(self, n: u32) -> Tnum {
        Tnum { value: (self.value as i64).wrapping_shr(n) as u64, mask: (self.mask as i64).wrapping_shr(n) as u64 }
    }

    /// Arithmetic right shift of the low half; the upper half becomes zero.
    pub const fn arsh32(self, n: u32) -> Tnum {
        Tnum {
            value: (self.value as i32).wrapping_shr(n) as u32 as u64,
            mask: (self.mask as i32).wrapping_shr(n) as u32 as u64,
        }
    }

    /// The numbers that are in both sets (an approximation from above; meaningless if there are none).
    pub const fn intersect(self, b: Tnum) -> Tnum {
        let mask = self.mask & b.mask;
        Tnum { value: (self.value | b.value) & !mask, mask }
    }

    /// The smallest tnum with the numbers of both sets.
    pub const fn union(self, b: Tnum) -> Tnum {
        let mask = self.mask | b.mask | (self.value ^ b.value);
        Tnum { value: self.value & !mask, mask }
    }

    /// False if no number is in both sets.
    pub const fn overlaps(self, b: Tnum) -> bool {
        let known = !self.mask & !b.mask;
        self.value & known == b.value & known
    }

    /// True if every number of `b` is in this set.
    pub const fn includes(self, b: Tnum) -> bool {
        b.mask & !self.mask == 0 && self.value == b.value & !self.mask
    }

    /// The low `bytes` bytes, zero-extended.
    pub const fn cast(self, bytes: u32) -> Tnum {
        if bytes >= 8 {
            return self;
        }
        let keep = (1u64 << (bytes * 8)) - 1;
        Tnum { value: self.value & keep, mask: self.mask & keep }
    }

    /// The low `bytes` (2, 4 or 8) bytes in opposite order, zero-extended.
    pub const fn swap_bytes(self, bytes: u32) -> Tnum {
        let shift = 64 - bytes * 8;
        Tnum { value: self.value.swap_bytes() >> shift, mask: self.mask.swap_bytes() >> shift }
    }

    /// The low half, zero-extended.
    pub const fn subreg(self) -> Tnum {
        self.cast(4)
    }

    /// The upper half with the low half zero.
    pub const fn without_subreg(self) -> Tnum {
        Tnum { value: self.value & !0xffff_ffff, mask: self.mask & !0xffff_ffff }
    }

    /// This number with the low half of `sub`.
    pub const fn with_subreg(self, sub: Tnum) -> Tnum {
        self.without_subreg().or(sub.subreg())
    }

    /// True if every number of the set is a multiple of `size`, a power of two.
    pub const fn is_aligned(self, size: u64) -> bool {
        (self.value | self.mask) & (size.wrapping_sub(1)) == 0
    }

    /// The least number of the set that is greater than `x`; its greatest if there is none.
    pub const fn after(self, x: u64) -> u64 {
        if x >= self.max() {
            return self.max();
        }
        let x = x + 1;
        let wrong = (x ^ self.value) & !self.mask;
        if wrong == 0 {
            return x;
        }
        let top = 1u64 << (63 - wrong.leading_zeros());
        // Where the first wrong bit must become one, all below it start anew; else an unknown bit above must step up.
        let step = if self.value & top != 0 {
            top
        } else {
            let above = self.mask & !x & !(top | (top - 1));
            above & above.wrapping_neg()
        };
        let kept = !(step | step.wrapping_sub(1));
        x & kept | step | self.value & !kept
    }

    /// The greatest number of the set.
    pub const fn max(self) -> u64 {
        self.value | self.mask
    }
}

impl core::fmt::Display for Tnum {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "({:#x}; {:#x})", self.value, self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All tnums of this many bits.
    fn all(bits: u32) -> impl Iterator<Item = Tnum> + Clone {
        let n = 1u64 << bits;
        (0..n).flat_map(move |mask| (0..n).filter(move |v| v & mask == 0).map(move |value| Tnum { value, mask }))
    }

    fn members(t: Tnum, bits: u32) -> impl Iterator<Item = u64> {
        (0..1u64 << bits).filter(move |x| t.contains(*x))
    }

    /// Checks soundness of a binary operation on every pair of 4-bit sets and every pair of members.
    fn sound(abs: fn(Tnum, Tnum) -> Tnum, real: fn(u64, u64) -> u64) {
        for a in all(4) {
            for b in all(4) {
                let r = abs(a, b);
                assert_eq!(r.value & r.mask, 0);
                for x in members(a, 4) {
                    for y in members(b, 4) {
                        assert!(r.contains(real(x, y)), "{a} {b} -> {r} misses {x},{y}");
                    }
                }
            }
        }
    }

    #[test]
    fn arithmetic_is_sound() {
        sound(Tnum::add, u64::wrapping_add);
        sound(Tnum::sub, u64::wrapping_sub);
        sound(Tnum::mul, u64::wrapping_mul);
        sound(Tnum::and, |a, b| a & b);
        sound(Tnum::or, |a, b| a | b);
        sound(Tnum::xor, |a, b| a ^ b);
    }

    #[test]
    fn sets() {
        for a in all(4) {
            for b in all(4) {
                let common: Vec<u64> = members(a, 4).filter(|x| b.contains(*x)).collect();
                assert_eq!(a.overlaps(b), !common.is_empty());
                assert!(common.iter().all(|x| a.intersect(b).contains(*x)));
                assert!(members(a, 4).chain(members(b, 4)).all(|x| a.union(b).contains(x)));
                assert_eq!(a.includes(b), members(b, 4).all(|x| a.contains(x)));
            }
        }
    }

    #[test]
    fn numbers_in_order() {
        for t in all(5) {
            for x in 0..40 {
                let next = members(t, 5).find(|m| *m > x).unwrap_or(t.max());
                assert_eq!(t.after(x), next, "{t} after {x}");
            }
            let high = Tnum { value: t.value << 59, mask: t.mask << 59 };
            for x in 0..32u64 {
                assert_eq!(high.after(x << 59), t.after(x) << 59, "{high} after {x} << 59");
            }
        }
        assert_eq!(Tnum::UNKNOWN.after(u64::MAX - 1), u64::MAX);
    }

    #[test]
    fn ranges_hold_their_numbers() {
        for lo in 0..64u64 {
            for hi in lo..64 {
                let t = Tnum::range(lo, hi);
                assert!((lo..=hi).all(|x| t.contains(x)));
            }
        }
        assert_eq!(Tnum::range(0, u64::MAX), Tnum::UNKNOWN);
    }

    #[test]
    fn shifts_and_halves() {
        let t = Tnum { value: 0x8000_0000, mask: 0xff };
        assert!(t.arsh32(4).contains(0xf800_000f) && !t.arsh32(4).contains(0xf800_0010));
        assert_eq!(t.lsh(4).rsh(4), t);
        let w = Tnum::constant(0x1234_5678_9abc_def0).with_subreg(Tnum { value: 1, mask: 2 });
        assert!(w.contains(0x1234_5678_0000_0003));
        assert!(Tnum { value: 8, mask: 0x10 }.is_aligned(8) && !Tnum { value: 8, mask: 4 }.is_aligned(8));
    }
}
