//! The operations on hash maps by key size, for callers that know the map when they are made: machine code.
//!
//! `N` is the bytes of the map's keys if that is 4, 8 or 16, and 0 for any other size. `percpu` and `lru` maps have
//! look-ups of their own; a deletion is the same in all of them.

use crate::hash;
use crate::header::MapRef;
use crate::key::by_size;
use crate::lru;

/// # Safety (of all methods)
/// As for the other methods of [`MapRef`]; the map is of the type that the method is for, and its keys have `N` bytes if
/// that is not 0.
#[allow(clippy::missing_safety_doc, reason = "stated once, above")]
impl MapRef {
    /// [`MapRef::lookup`] in a hash map.
    #[inline]
    pub unsafe fn hash_lookup<const N: usize>(self, key: *const u8) -> *mut u8 {
        // SAFETY: the caller's promises, here and below.
        unsafe { by_size!(N, K => hash::lookup_as::<K>(self.view(), key)) }
    }

    /// [`MapRef::lookup`] in a per-CPU hash map.
    #[inline]
    pub unsafe fn percpu_hash_lookup<const N: usize>(self, slot: u32, key: *const u8) -> *mut u8 {
        // SAFETY: as above.
        unsafe { by_size!(N, K => hash::lookup_cpu_as::<K>(self.view(), key, slot)) }
    }

    /// [`MapRef::lookup`] in an LRU hash map.
    #[inline]
    pub unsafe fn lru_hash_lookup<const N: usize>(self, key: *const u8) -> *mut u8 {
        // SAFETY: as above.
        unsafe { by_size!(N, K => lru::lookup_as::<K>(self.view(), key, 0)) }
    }

    /// [`MapRef::update`] of a hash map.
    #[inline]
    pub unsafe fn hash_update<const N: usize>(self, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
        // SAFETY: as above.
        unsafe { by_size!(N, K => hash::update_as::<K>(self.view(), slot, key, value, flags)) }
    }

    /// [`MapRef::delete`] from a hash map of any kind.
    #[inline]
    pub unsafe fn hash_delete<const N: usize>(self, slot: u32, key: *const u8) -> i64 {
        // SAFETY: as above.
        unsafe { by_size!(N, K => hash::delete_as::<K>(self.view(), slot, key, None)) }
    }
}
