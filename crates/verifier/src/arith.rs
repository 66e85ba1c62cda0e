//! Arithmetic on what is known of numbers.

use skep_ebpf::insn::alu;

use crate::scalar::Scalar;
use crate::tnum::Tnum;

/// Applies `op` (one of [`alu`], not `MOV`, `END`) to `dst` and `src`, as a 32-bit operation if `is32`.
///
/// Operations on which nothing can be learnt give an unknown number; division and modulo always do.
pub fn apply(op: u8, dst: &mut Scalar, mut src: Scalar, is32: bool) {
    let width = if is32 { 32 } else { 64 };
    let src_const = if is32 {
        src.bits.subreg_is_const() && src.smin32 == src.smax32 && src.umin32 == src.umax32
    } else {
        src.bits.is_const() && src.smin == src.smax && src.umin == src.umax
    };
    // The whole register bounds the shift, also where only its low half is used: so does the kernel.
    let shift_known = src_const && src.umax < width;
    let tracked = match op {
        alu::ADD | alu::SUB | alu::NEG | alu::AND | alu::OR | alu::XOR | alu::MUL => true,
        alu::LSH | alu::RSH | alu::ARSH => shift_known,
        _ => false,
    };
    if !tracked {
        *dst = Scalar::UNKNOWN;
        return;
    }
    match op {
        alu::ADD => {
            add32(dst, &src);
            add64(dst, &src);
            dst.bits = dst.bits.add(src.bits);
        }
        alu::SUB => sub(dst, &src),
        alu::NEG => {
            src = *dst;
            *dst = Scalar::constant(0);
            sub(dst, &src);
        }
        alu::MUL => {
            dst.bits = dst.bits.mul(src.bits);
            mul32(dst, &src);
            mul64(dst, &src);
        }
        alu::AND => bitwise(
            dst,
            &src,
            Tnum::and,
            |bits, d, s| (bits.value, d.min(s)),
            |bits, d, s| (bits.value as u32, d.min(s)),
        ),
        alu::OR => {
            let least = (dst.umin.max(src.umin), dst.umin32.max(src.umin32));
            bitwise(
                dst,
                &src,
                Tnum::or,
                |bits, _, _| (bits.value, bits.max()),
                |bits, _, _| (bits.value as u32, bits.max() as u32),
            );
            // No bit is lost, so neither operand is above the result.
            dst.umin = dst.umin.max(least.0);
            dst.umin32 = dst.umin32.max(least.1);
        }
        alu::XOR => bitwise(
            dst,
            &src,
            Tnum::xor,
            |bits, _, _| (bits.value, bits.max()),
            |bits, _, _| (bits.value as u32, bits.max() as u32),
        ),
        alu::LSH if is32 => lsh32(dst, src.umin32),
        alu::LSH => lsh64(dst, src.umin as u32),
        alu::RSH if is32 => rsh32(dst, src.umin32),
        alu::RSH => rsh64(dst, src.umin as u32),
        alu::ARSH if is32 => arsh32(dst, src.umin32),
        _ => arsh64(dst, src.umin as u32),
    }
    if is32 {
        dst.zext32();
    }
    dst.sync();
}

fn add32(d: &mut Scalar, s: &Scalar) {
    match (d.smin32.checked_add(s.smin32), d.smax32.checked_add(s.smax32)) {
        (Some(min), Some(max)) => (d.smin32, d.smax32) = (min, max),
        _ => (d.smin32, d.smax32) = (i32::MIN, i32::MAX),
    }
    let (min, min_wraps) = d.umin32.overflowing_add(s.umin32);
    let (max, max_wraps) = d.umax32.overflowing_add(s.umax32);
    // When all sums wrap or none does, they stay in order.
    (d.umin32, d.umax32) = if max_wraps && !min_wraps { (0, u32::MAX) } else { (min, max) };
}

fn add64(d: &mut Scalar, s: &Scalar) {
    match (d.smin.checked_add(s.smin), d.smax.checked_add(s.smax)) {
        (Some(min), Some(max)) => (d.smin, d.smax) = (min, max),
        _ => (d.smin, d.smax) = (i64::MIN, i64::MAX),
    }
    let (min, min_wraps) = d.umin.overflowing_add(s.umin);
    let (max, max_wraps) = d.umax.overflowing_add(s.umax);
    (d.umin, d.umax) = if max_wraps && !min_wraps { (0, u64::MAX) } else { (min, max) };
}

fn sub(d: &mut Scalar, s: &Scalar) {
    match (d.smin32.checked_sub(s.smax32), d.smax32.checked_sub(s.smin32)) {
        (Some(min), Some(max)) => (d.smin32, d.smax32) = (min, max),
        _ => (d.smin32, d.smax32) = (i32::MIN, i32::MAX),
    }
    let (min, min_wraps) = d.umin32.overflowing_sub(s.umax32);
    let (max, max_wraps) = d.umax32.overflowing_sub(s.umin32);
    (d.umin32, d.umax32) = if min_wraps && !max_wraps { (0, u32::MAX) } else { (min, max) };

    match (d.smin.checked_sub(s.smax), d.smax.checked_sub(s.smin)) {
        (Some(min), Some(max)) => (d.smin, d.smax) = (min, max),
        _ => (d.smin, d.smax) = (i64::MIN, i64::MAX),
    }
    let (min, min_wraps) = d.umin.overflowing_sub(s.umax);
    let (max, max_wraps) = d.umax.overflowing_sub(s.umin);
    (d.umin, d.umax) = if min_wraps && !max_wraps { (0, u64::MAX) } else { (min, max) };

    d.bits = d.bits.sub(s.bits);
}

fn mul32(d: &mut Scalar, s: &Scalar) {
    (d.umin32, d.umax32) = match (d.umin32.checked_mul(s.umin32), d.umax32.checked_mul(s.umax32)) {
        (Some(min), Some(max)) => (min, max),
        _ => (0, u32::MAX),
    };
    let corners = [
        d.smin32.checked_mul(s.smin32),
        d.smin32.checked_mul(s.smax32),
        d.smax32.checked_mul(s.smin32),
        d.smax32.checked_mul(s.smax32),
    ];
    (d.smin32, d.smax32) = span(corners).unwrap_or((i32::MIN, i32::MAX));
}

fn mul64(d: &mut Scalar, s: &Scalar) {
    (d.umin, d.umax) = match (d.umin.checked_mul(s.umin), d.umax.checked_mul(s.umax)) {
        (Some(min), Some(max)) => (min, max),
        _ => (0, u64::MAX),
    };
    let corners = [
        d.smin.checked_mul(s.smin),
        d.smin.checked_mul(s.smax),
        d.smax.checked_mul(s.smin),
        d.smax.checked_mul(s.smax),
    ];
    (d.smin, d.smax) = span(corners).unwrap_or((i64::MIN, i64::MAX));
}

/// Least and greatest, if none of them overflowed.
fn span<T: Ord + Copy>(corners: [Option<T>; 4]) -> Option<(T, T)> {
    let [Some(a), Some(b), Some(c), Some(d)] = corners else { return None };
    Some((a.min(b).min(c).min(d), a.max(b).max(c).max(d)))
}

/// Bitwise operations: unsigned bounds by `bounds64`/`bounds32` (from the resulting bits and both old bounds that
/// matter: upper ones for `and`), signed ones are the same range where it does not cross the sign.
fn bitwise(
    d: &mut Scalar,
    s: &Scalar,
    op: fn(Tnum, Tnum) -> Tnum,
    bounds64: fn(Tnum, u64, u64) -> (u64, u64),
    bounds32: fn(Tnum, u32, u32) -> (u32, u32),
) {
    let known = d.bits.is_const() && s.bits.is_const();
    let known32 = d.bits.subreg_is_const() && s.bits.subreg_is_const();
    let old = *d;
    d.bits = op(d.bits, s.bits);
    if known32 {
        let x = d.bits.value as u32;
        (d.umin32, d.umax32, d.smin32, d.smax32) = (x, x, x as i32, x as i32);
    } else {
        (d.umin32, d.umax32) = bounds32(d.bits.subreg(), old.umax32, s.umax32);
        (d.smin32, d.smax32) =
            if d.umin32 as i32 <= d.umax32 as i32 { (d.umin32 as i32, d.umax32 as i32) } else { (i32::MIN, i32::MAX) };
    }
    if known {
        *d = Scalar::constant(d.bits.value);
        return;
    }
    (d.umin, d.umax) = bounds64(d.bits, old.umax, s.umax);
    (d.smin, d.smax) =
        if d.umin as i64 <= d.umax as i64 { (d.umin as i64, d.umax as i64) } else { (i64::MIN, i64::MAX) };
    d.learn_from_bits();
}

fn lsh32_bounds(d: &mut Scalar, n: u32) {
    (d.smin32, d.smax32) = (i32::MIN, i32::MAX);
    (d.umin32, d.umax32) = if n > 31 || d.umax32 as u64 > 1u64 << (31 - n) {
        (0, u32::MAX)
    } else {
        (d.umin32 << n, d.umax32.wrapping_shl(n))
    };
}

fn lsh32(d: &mut Scalar, n: u32) {
    lsh32_bounds(d, n);
    d.bits = d.bits.subreg().lsh(n).subreg();
    d.forget_bounds64();
    d.learn_from_bits32();
}

fn lsh64(d: &mut Scalar, n: u32) {
    // `<< 32` then `s>> 32` is how compilers sign-extend: the low half's signed range moves up whole.
    (d.smin, d.smax) = if n == 32 { ((d.smin32 as i64) << 32, (d.smax32 as i64) << 32) } else { (i64::MIN, i64::MAX) };
    (d.umin, d.umax) = if d.umax > 1u64 << (63 - n) { (0, u64::MAX) } else { (d.umin << n, d.umax << n) };
    lsh32_bounds(d, n);
    d.bits = d.bits.lsh(n);
    d.learn_from_bits();
}

fn rsh32(d: &mut Scalar, n: u32) {
    (d.smin32, d.smax32) = (i32::MIN, i32::MAX);
    d.bits = d.bits.subreg().rsh(n);
    d.umin32 >>= n;
    d.umax32 >>= n;
    d.forget_bounds64();
    d.learn_from_bits32();
}

fn rsh64(d: &mut Scalar, n: u32) {
    (d.smin, d.smax) = (i64::MIN, i64::MAX);
    d.bits = d.bits.rsh(n);
    d.umin >>= n;
    d.umax >>= n;
    d.forget_bounds32();
    d.learn_from_bits();
}

fn arsh32(d: &mut Scalar, n: u32) {
    d.smin32 >>= n;
    d.smax32 >>= n;
    d.bits = d.bits.subreg().arsh32(n);
    (d.umin32, d.umax32) = (0, u32::MAX);
    d.forget_bounds64();
    d.learn_from_bits32();
}

fn arsh64(d: &mut Scalar, n: u32) {
    d.smin >>= n;
    d.smax >>= n;
    d.bits = d.bits.arsh64(n);
    (d.umin, d.umax) = (0, u64::MAX);
    d.forget_bounds32();
    d.learn_from_bits();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::branch;
    use crate::small_widths::{compared, computed};
    use skep_ebpf::insn::jmp;

    /// A number in some set that was made by narrowing, and the set.
    fn member() -> impl Strategy<Value = (Scalar, u64)> {
        let interesting = prop_oneof![
            any::<u64>(),
            (0u32..64).prop_map(|n| 1u64 << n),
            (0u64..64),
            (0u64..64).prop_map(|n| n.wrapping_neg()),
            any::<u32>().prop_map(u64::from),
            any::<i32>().prop_map(|x| x as i64 as u64),
            Just(i64::MAX as u64),
            Just(i32::MAX as u64),
            Just(u32::MAX.into()),
        ];
        let step = (0usize..9, any::<u64>(), 0u32..64);
        (interesting, proptest::collection::vec(step, 0..4)).prop_map(|(x, steps)| {
            let mut s = Scalar::UNKNOWN;
            for (kind, r, n) in steps {
                let gap = r >> n;
                match kind {
                    0 => s.umin = s.umin.max(x.saturating_sub(gap)),
                    1 => s.umax = s.umax.min(x.saturating_add(gap)),
                    2 => s.smin = s.smin.max((x as i64).saturating_sub(gap as i64 & i64::MAX)),
                    3 => s.smax = s.smax.min((x as i64).saturating_add(gap as i64 & i64::MAX)),
                    4 => s.umin32 = s.umin32.max((x as u32).saturating_sub(gap as u32)),
                    5 => s.umax32 = s.umax32.min((x as u32).saturating_add(gap as u32)),
                    6 => s.smin32 = s.smin32.max((x as i32).saturating_sub(gap as i32 & i32::MAX)),
                    7 => s.smax32 = s.smax32.min((x as i32).saturating_add(gap as i32 & i32::MAX)),
                    _ => s.bits = s.bits.intersect(Tnum { value: x & !r, mask: r }),
                }
                s.sync();
            }
            (s, x)
        })
    }

    const OPS: [u8; 10] =
        [alu::ADD, alu::SUB, alu::MUL, alu::AND, alu::OR, alu::XOR, alu::NEG, alu::LSH, alu::RSH, alu::ARSH];
    const JUMPS: [u8; 11] = [
        jmp::JEQ,
        jmp::JNE,
        jmp::JSET,
        jmp::JGT,
        jmp::JGE,
        jmp::JLT,
        jmp::JLE,
        jmp::JSGT,
        jmp::JSGE,
        jmp::JSLT,
        jmp::JSLE,
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn narrowing_keeps_the_number((s, x) in member()) {
            prop_assert!(s.contains(x), "{s:?} misses {x:#x}");
            prop_assert!(!s.is_contradiction());
        }

        #[test]
        fn operations_are_sound(
            (a, x) in member(),
            (b, y) in member(),
            op in prop::sample::select(&OPS[..]),
            is32 in any::<bool>(),
            shift in 0u64..64,
        ) {
            let (b, y) = if matches!(op, alu::LSH | alu::RSH | alu::ARSH) {
                let n = if is32 { shift % 32 } else { shift };
                (Scalar::constant(n), n)
            } else {
                (b, y)
            };
            let mut r = a;
            apply(op, &mut r, b, is32);
            let z = computed(op, x, y, is32);
            prop_assert!(r.contains(z), "{op:#x} {is32} {a:?} {x:#x}, {b:?} {y:#x} -> {r:?} misses {z:#x}");
        }

        #[test]
        fn widths_are_sound((a, x) in member(), n in 0usize..3) {
            let bytes = [1u32, 2, 4][n];
            let bits = bytes * 8;
            let low = x & ((1u64 << bits) - 1);
            let extended = ((x << (64 - bits)) as i64 >> (64 - bits)) as u64;
            let mut r = a;
            r.truncate(bytes);
            prop_assert!(r.contains(low), "{a:?} {bytes} -> {r:?} misses {low:#x}");
            let mut r = a;
            r.sext64(bytes);
            prop_assert!(r.contains(extended), "{a:?} {bytes} -> {r:?} misses {extended:#x}");
            let mut r = a;
            r.zext32();
            r.sync();
            prop_assert!(r.contains(x as u32 as u64));
            if bytes < 4 {
                let mut r = a;
                r.sext32(bytes);
                r.zext32();
                r.sync();
                prop_assert!(r.contains(extended as u32 as u64), "{a:?} {bytes} -> {r:?}");
            } else {
                for (bytes, turned) in [(2, u64::from((x as u16).swap_bytes())), (4, u64::from((x as u32).swap_bytes())), (8, x.swap_bytes())] {
                    let mut r = a;
                    r.swap_bytes(bytes, true);
                    prop_assert!(r.contains(turned), "{a:?} {bytes} -> {r:?} misses {turned:#x}");
                }
            }
        }

        #[test]
        fn comparisons_are_sound(
            (a, x) in member(),
            (b, y) in member(),
            op in prop::sample::select(&JUMPS[..]),
            is32 in any::<bool>(),
        ) {
            let outcome = compared(op, x, y, is32);
            if let Some(d) = branch::decided(op, &a, &b, is32) {
                prop_assert_eq!(d, outcome, "{:#x} {} {:?} {:?}", op, is32, a, b);
            }
            let (mut p, mut q) = (a, b);
            branch::refine(op, outcome, &mut p, &mut q, is32);
            prop_assert!(p.contains(x) && q.contains(y), "{op:#x} {is32} {outcome} {a:?} {b:?} -> {p:?} {q:?}");
        }
    }
}
