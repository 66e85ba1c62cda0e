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
    let shift_known = src_const && if is32 { (src.umax32 as u64) < width } else { src.umax < width };
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
        alu::OR => bitwise(
            dst,
            &src,
            Tnum::or,
            |bits, _, _| (bits.value, bits.max()),
            |bits, _, _| (bits.value as u32, bits.max() as u32),
        ),
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
