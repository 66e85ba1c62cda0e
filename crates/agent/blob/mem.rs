//! The memory functions that compiled code calls. Written so that the compiler cannot turn one into a call of itself:
//! the loops are string instructions, nothing else in the agent uses any: trampolines leave the direction flag as it is.
//! Baseline registers only, since the trampoline saves no others.

use core::arch::asm;

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise: `n` bytes each, apart from each other. Short copies, most of all, by two moves that
    // may overlap: `rep movsb` takes some 30 cycles to start.
    unsafe {
        match n {
            0 => {}
            1..4 => {
                let (first, middle, last) = (*src, *src.add(n / 2), *src.add(n - 1));
                *dst = first;
                *dst.add(n / 2) = middle;
                *dst.add(n - 1) = last;
            }
            4..8 => ends::<u32>(dst, src, n),
            8..16 => ends::<u64>(dst, src, n),
            16..=32 => ends::<u128>(dst, src, n),
            _ => asm!(
                "cld", "rep movsb",
                inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") n => _,
                options(nostack),
            ),
        }
    }
    dst
}

/// Copies `n` bytes, at least one `T` and at most two, by two moves.
///
/// # Safety
/// Both are valid for `n` bytes.
#[inline(always)]
unsafe fn ends<T: Copy>(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise; both moves lie within `n` bytes.
    unsafe {
        let last = n - size_of::<T>();
        let (a, b) = (src.cast::<T>().read_unaligned(), src.add(last).cast::<T>().read_unaligned());
        dst.cast::<T>().write_unaligned(a);
        dst.add(last).cast::<T>().write_unaligned(b);
    }
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise. Backwards where the destination begins inside the source; the direction flag is
    // clear again before anything else runs.
    unsafe {
        if (dst as usize).wrapping_sub(src as usize) >= n {
            asm!(
                "cld", "rep movsb",
                inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") n => _,
                options(nostack),
            );
        } else {
            asm!(
                "std", "rep movsb", "cld",
                inout("rdi") dst.add(n - 1) => _, inout("rsi") src.add(n - 1) => _, inout("rcx") n => _,
                options(nostack),
            );
        }
    }
    dst
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dst: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cld", "rep stosb",
            inout("rdi") dst => _, in("al") byte as u8, inout("rcx") n => _,
            options(nostack),
        );
    }
    dst
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise; reads are kept one by one, so that this is not seen as what it is.
    unsafe {
        for i in 0..n {
            let (x, y) = (a.add(i).read_volatile(), b.add(i).read_volatile());
            if x != y {
                return i32::from(x) - i32::from(y);
            }
        }
    }
    0
}

/// # Safety
/// As `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, n) }
}
