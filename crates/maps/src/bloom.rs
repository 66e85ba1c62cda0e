//! Bloom filters: a set of bits, a power of two of them. Bits are only ever set, so there is nothing to lock.
//!
//! `elems` of the header is the number of bits per value, `mask` the number of bits − 1.

use skep_ebpf::Errno;

use crate::header::View;
use crate::mem;
use crate::sync::{AtomicU64, Ordering};

/// The word and the bit that hash function `n` gives for a value.
///
/// # Safety
/// `value` is readable for `value_size` bytes.
unsafe fn bit<'a>(v: View<'a>, value: *const u8, n: u32) -> (&'a AtomicU64, u64) {
    // SAFETY: the caller's promise.
    let hash = unsafe { mem::hash(value, v.h.value_size as usize, v.h.seed.wrapping_add(n)) } & v.h.mask;
    // SAFETY: the mask keeps the word in the region, which is whole words.
    let word = unsafe { AtomicU64::from_ptr(v.at(u64::from(hash >> 6) * 8).cast()) };
    (word, 1 << (hash & 63))
}

/// Adds a value.
///
/// # Safety
/// As [`bit`], and the region is writable.
pub(crate) unsafe fn push(v: View<'_>, value: *const u8, flags: u64) -> i64 {
    if flags != 0 {
        return Errno::EINVAL.neg();
    }
    for n in 0..v.h.elems {
        // SAFETY: the caller's promise.
        let (word, bit) = unsafe { bit(v, value, n) };
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Release);
        }
    }
    0
}

/// 0 if the value may have been added, `-ENOENT` if it was not.
///
/// # Safety
/// As [`bit`].
pub(crate) unsafe fn peek(v: View<'_>, value: *const u8) -> i64 {
    for n in 0..v.h.elems {
        // SAFETY: the caller's promise.
        let (word, bit) = unsafe { bit(v, value, n) };
        if word.load(Ordering::Acquire) & bit == 0 {
            return Errno::ENOENT.neg();
        }
    }
    0
}
