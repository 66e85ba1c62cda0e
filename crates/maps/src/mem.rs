//! Copying and comparing memory that other threads and processes may be changing.
//!
//! All accesses are relaxed atomics of the largest width that both sides' alignment allows, so that a race tears a
//! value but is defined. Words of eight (or four) aligned bytes are never torn, as in the kernel.

use crate::sync::{AtomicU8, AtomicU32, AtomicU64, Ordering};

macro_rules! words {
    ($atomic:ident, $at:ident, $len:ident, $body:expr) => {
        while $len - $at >= size_of::<$atomic>() {
            $body;
            $at += size_of::<$atomic>();
        }
    };
}

macro_rules! load {
    ($atomic:ident, $ptr:expr) => {{
        // SAFETY: the caller of the enclosing function promises readable memory; alignment was just tested.
        unsafe { $atomic::from_ptr($ptr.cast_mut().cast()) }.load(Ordering::Relaxed)
    }};
}

macro_rules! store {
    ($atomic:ident, $ptr:expr, $v:expr) => {{
        // SAFETY: the caller of the enclosing function promises writable memory; alignment was just tested.
        unsafe { $atomic::from_ptr($ptr.cast()) }.store($v, Ordering::Relaxed)
    }};
}

/// Loads four bytes, at once if they are aligned.
///
/// # Safety
/// `src` must be readable for four bytes; other threads may access them.
#[inline]
pub(crate) unsafe fn load_4(src: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    if src.addr() & 3 == 0 { load!(AtomicU32, src) } else { unsafe { load_bytes(src, 4) as u32 } }
}

/// Loads eight bytes, at once if they are aligned.
///
/// # Safety
/// `src` must be readable for eight bytes; other threads may access them.
#[inline]
pub(crate) unsafe fn load_8(src: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    if src.addr() & 7 == 0 { load!(AtomicU64, src) } else { unsafe { load_bytes(src, 8) } }
}

/// Loads at most eight bytes.
///
/// # Safety
/// `src` must be readable for `len` bytes; other threads may access them.
#[cold]
#[inline(never)]
unsafe fn load_bytes(src: *const u8, len: usize) -> u64 {
    let mut word = 0;
    for n in (0..len).rev() {
        word = (word << 8) | u64::from(load!(AtomicU8, src.wrapping_add(n)));
    }
    word
}

/// Copies `len` bytes.
///
/// # Safety
/// `src` must be readable and `dst` writable for `len` bytes; other threads may access both.
#[inline]
pub(crate) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    let align = dst.addr() | src.addr();
    if len == 8 && align & 7 == 0 {
        return store!(AtomicU64, dst, load!(AtomicU64, src));
    }
    if len == 4 && align & 3 == 0 {
        return store!(AtomicU32, dst, load!(AtomicU32, src));
    }
    let mut at = 0;
    if align & 7 == 0 {
        words!(AtomicU64, at, len, store!(AtomicU64, dst.wrapping_add(at), load!(AtomicU64, src.wrapping_add(at))));
    }
    if align & 3 == 0 {
        words!(AtomicU32, at, len, store!(AtomicU32, dst.wrapping_add(at), load!(AtomicU32, src.wrapping_add(at))));
    }
    words!(AtomicU8, at, len, store!(AtomicU8, dst.wrapping_add(at), load!(AtomicU8, src.wrapping_add(at))));
}

/// Sets `len` bytes to zero.
///
/// # Safety
/// `dst` must be writable for `len` bytes; other threads may access it.
#[inline]
pub(crate) unsafe fn zero(dst: *mut u8, len: usize) {
    let mut at = 0;
    if dst.addr() & 7 == 0 {
        words!(AtomicU64, at, len, store!(AtomicU64, dst.wrapping_add(at), 0));
    }
    words!(AtomicU8, at, len, store!(AtomicU8, dst.wrapping_add(at), 0));
}

/// True if `len` bytes are the same on both sides.
///
/// # Safety
/// Both must be readable for `len` bytes; other threads may access them.
#[inline]
pub(crate) unsafe fn equal(a: *const u8, b: *const u8, len: usize) -> bool {
    let align = a.addr() | b.addr();
    if len == 4 && align & 3 == 0 {
        return load!(AtomicU32, a) == load!(AtomicU32, b);
    }
    if len == 8 && align & 7 == 0 {
        return load!(AtomicU64, a) == load!(AtomicU64, b);
    }
    let mut at = 0;
    macro_rules! compare {
        ($atomic:ident) => {
            words!($atomic, at, len, {
                if load!($atomic, a.wrapping_add(at)) != load!($atomic, b.wrapping_add(at)) {
                    return false;
                }
            })
        };
    }
    if align & 7 == 0 {
        compare!(AtomicU64);
    }
    if align & 3 == 0 {
        compare!(AtomicU32);
    }
    compare!(AtomicU8);
    true
}

const A: u64 = 0x9e37_79b9_7f4a_7c15;
const B: u64 = 0xd6e8_feb8_6659_fd93;

/// Multiplies and folds.
#[inline]
fn fold(x: u64, k: u64) -> u64 {
    let m = u128::from(x).wrapping_mul(u128::from(k));
    (m as u64) ^ ((m >> 64) as u64)
}

/// What the hash of `len` bytes begins with.
#[inline]
fn start(len: usize, seed: u32) -> u64 {
    ((u64::from(seed) << 32) | u64::from(seed)) ^ (len as u64).wrapping_mul(B)
}

/// Takes a whole word in.
#[inline]
fn word(h: u64, w: u64) -> u64 {
    fold(h ^ w, A).wrapping_add(B)
}

#[inline]
fn finish(h: u64) -> u32 {
    (h ^ (h >> 32)) as u32
}

/// [`hash`] of four bytes.
#[inline]
pub(crate) fn hash_4(key: u32, seed: u32) -> u32 {
    finish(fold(start(4, seed) ^ u64::from(key), B))
}

/// [`hash`] of eight bytes.
#[inline]
pub(crate) fn hash_8(key: u64, seed: u32) -> u32 {
    finish(word(start(8, seed), key))
}

/// [`hash`] of sixteen bytes.
#[inline]
pub(crate) fn hash_16([a, b]: [u64; 2], seed: u32) -> u32 {
    finish(word(word(start(16, seed), a), b))
}

/// Hashes `len` bytes: multiply and fold, eight bytes a step. The same bytes give the same hash in every process.
///
/// # Safety
/// `key` must be readable for `len` bytes.
#[inline]
pub(crate) unsafe fn hash(key: *const u8, len: usize, seed: u32) -> u32 {
    let mut h = start(len, seed);
    let mut at = 0;
    let (wide, half) = (key.addr() & 7 == 0, key.addr() & 3 == 0);
    while len - at >= 8 {
        let p = key.wrapping_add(at);
        let w = if wide {
            load!(AtomicU64, p)
        } else if half {
            u64::from(load!(AtomicU32, p)) | (u64::from(load!(AtomicU32, p.wrapping_add(4))) << 32)
        } else {
            let mut w = 0;
            let mut i = 0;
            while i < 8 {
                w |= u64::from(load!(AtomicU8, p.wrapping_add(i))) << (8 * i);
                i += 1;
            }
            w
        };
        h = word(h, w);
        at += 8;
    }
    if at == len {
        return finish(h);
    }
    let mut tail = 0u64;
    let mut shift = 0;
    if half && len - at >= 4 {
        tail = u64::from(load!(AtomicU32, key.wrapping_add(at)));
        (at, shift) = (at + 4, 32);
    }
    while at < len {
        tail |= u64::from(load!(AtomicU8, key.wrapping_add(at))) << shift;
        (at, shift) = (at + 1, shift + 8);
    }
    finish(fold(h ^ tail, B))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(8))]
    struct Bytes([u8; 64]);

    #[test]
    fn copy_equal_and_hash_agree_at_every_alignment() {
        let src = Bytes(core::array::from_fn(|i| i as u8 ^ 0x5a));
        for from in 0..9 {
            for to in 0..9 {
                for len in 0..40 {
                    let mut dst = Bytes([0; 64]);
                    let (s, d) = (src.0[from..].as_ptr(), dst.0[to..].as_mut_ptr());
                    // SAFETY: at most 9 + 40 of 64 bytes.
                    unsafe {
                        copy(d, s, len);
                        assert!(equal(d, s, len));
                        assert_eq!(hash(d, len, 7), hash(s, len, 7));
                        if len > 0 {
                            *d.add(len - 1) ^= 1;
                            assert!(!equal(d, s, len));
                            assert_ne!(hash(d, len, 7), hash(s, len, 7));
                        }
                        zero(d, len);
                    }
                    assert_eq!(dst.0, [0; 64]);
                }
            }
        }
    }

    #[test]
    fn hashes_of_fixed_sizes_are_those_of_their_bytes() {
        let words = [0x0123_4567_89ab_cdef_u64, !7];
        for seed in [0, 1, u32::MAX] {
            let p = words.as_ptr().cast::<u8>();
            // SAFETY: sixteen bytes.
            unsafe {
                assert_eq!(hash_4(words[0] as u32, seed), hash(p, 4, seed));
                assert_eq!(hash_8(words[0], seed), hash(p, 8, seed));
                assert_eq!(hash_16(words, seed), hash(p, 16, seed));
            }
        }
    }

    #[test]
    fn hash_spreads_small_keys() {
        let mut buckets = [0u32; 1024];
        for key in 0u64..4096 {
            // SAFETY: `key` is eight readable bytes.
            let h = unsafe { hash((&raw const key).cast(), 8, 0) };
            buckets[(h & 1023) as usize] += 1;
        }
        assert!(buckets.iter().all(|&n| n < 20), "longest chain {}", buckets.iter().max().unwrap());
    }
}
