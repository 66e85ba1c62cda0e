//! Keys of hash maps by their size: those of 4, 8 and 16 bytes are read once and live in registers.
//!
//! The hash of a key does not depend on which of these reads it: it is [`mem::hash`] of its bytes.

use crate::mem;
use crate::pool::Elem;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What a key is read as.
pub(crate) trait Key: Copy {
    /// An element's key cannot be read half old and half new.
    const WHOLE: bool;

    /// Reads a key.
    ///
    /// # Safety
    /// `ptr` is readable for `size` bytes, which are those of this kind of key.
    unsafe fn read(ptr: *const u8, size: u32) -> Self;

    /// The hash of the key that was [read](Key::read) with this size.
    ///
    /// # Safety
    /// The memory that it was read from is still readable.
    unsafe fn hash(self, size: u32, seed: u32) -> u32;

    /// True if the element has this key.
    ///
    /// # Safety
    /// As [`Key::hash`]; the element's key has this size.
    unsafe fn is_of(self, e: Elem<'_>, hash: u32, size: u32) -> bool;

    /// Gives the element this key.
    ///
    /// # Safety
    /// As [`Key::is_of`].
    unsafe fn put(self, e: Elem<'_>, size: u32);
}

/// A key of any size, which stays where it is.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(*const u8);

impl Key for Bytes {
    const WHOLE: bool = false;

    #[inline]
    unsafe fn read(ptr: *const u8, _: u32) -> Bytes {
        Bytes(ptr)
    }

    #[inline]
    unsafe fn hash(self, size: u32, seed: u32) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { mem::hash(self.0, size as usize, seed) }
    }

    #[inline]
    unsafe fn is_of(self, e: Elem<'_>, hash: u32, size: u32) -> bool {
        // SAFETY: the caller's promise.
        e.node().hash.load(Ordering::Relaxed) == hash && unsafe { mem::equal(e.key(), self.0, size as usize) }
    }

    #[inline]
    unsafe fn put(self, e: Elem<'_>, size: u32) {
        // SAFETY: the caller's promise.
        unsafe { mem::copy(e.key(), self.0, size as usize) };
    }
}

/// A word of an element's key.
///
/// # Safety
/// The element's key has so many words.
#[inline]
unsafe fn word<'a>(e: Elem<'a>, n: usize) -> &'a AtomicU64 {
    // SAFETY: elements and nodes are multiples of eight bytes, and so is where the key begins.
    unsafe { AtomicU64::from_ptr(e.key().wrapping_add(8 * n).cast()) }
}

impl Key for u32 {
    const WHOLE: bool = true;

    #[inline]
    unsafe fn read(ptr: *const u8, _: u32) -> u32 {
        // SAFETY: four readable bytes.
        unsafe { mem::load_4(ptr) }
    }

    #[inline]
    unsafe fn hash(self, _: u32, seed: u32) -> u32 {
        mem::hash_4(self, seed)
    }

    #[inline]
    unsafe fn is_of(self, e: Elem<'_>, _: u32, _: u32) -> bool {
        // SAFETY: four aligned bytes of the element.
        unsafe { AtomicU32::from_ptr(e.key().cast()) }.load(Ordering::Relaxed) == self
    }

    #[inline]
    unsafe fn put(self, e: Elem<'_>, _: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(e.key().cast()) }.store(self, Ordering::Relaxed);
    }
}

impl Key for u64 {
    const WHOLE: bool = true;

    #[inline]
    unsafe fn read(ptr: *const u8, _: u32) -> u64 {
        // SAFETY: eight readable bytes.
        unsafe { mem::load_8(ptr) }
    }

    #[inline]
    unsafe fn hash(self, _: u32, seed: u32) -> u32 {
        mem::hash_8(self, seed)
    }

    #[inline]
    unsafe fn is_of(self, e: Elem<'_>, _: u32, _: u32) -> bool {
        // SAFETY: the key is one word.
        unsafe { word(e, 0) }.load(Ordering::Relaxed) == self
    }

    #[inline]
    unsafe fn put(self, e: Elem<'_>, _: u32) {
        // SAFETY: as above.
        unsafe { word(e, 0) }.store(self, Ordering::Relaxed);
    }
}

impl Key for [u64; 2] {
    const WHOLE: bool = false;

    #[inline]
    unsafe fn read(ptr: *const u8, _: u32) -> [u64; 2] {
        // SAFETY: sixteen readable bytes.
        unsafe { [mem::load_8(ptr), mem::load_8(ptr.wrapping_add(8))] }
    }

    #[inline]
    unsafe fn hash(self, _: u32, seed: u32) -> u32 {
        mem::hash_16(self, seed)
    }

    #[inline]
    unsafe fn is_of(self, e: Elem<'_>, _: u32, _: u32) -> bool {
        let [a, b] = self;
        // SAFETY: the key is two words.
        unsafe { (word(e, 0).load(Ordering::Relaxed) ^ a) | (word(e, 1).load(Ordering::Relaxed) ^ b) == 0 }
    }

    #[inline]
    unsafe fn put(self, e: Elem<'_>, _: u32) {
        let [a, b] = self;
        // SAFETY: as above.
        unsafe {
            word(e, 0).store(a, Ordering::Relaxed);
            word(e, 1).store(b, Ordering::Relaxed);
        }
    }
}

/// Does something with `K` as the kind of key that has this size.
macro_rules! by_size {
    ($size:expr, $K:ident => $body:expr) => {
        match $size {
            4 => {
                type $K = u32;
                $body
            }
            8 => {
                type $K = u64;
                $body
            }
            16 => {
                type $K = [u64; 2];
                $body
            }
            _ => {
                type $K = crate::key::Bytes;
                $body
            }
        }
    };
}
pub(crate) use by_size;
