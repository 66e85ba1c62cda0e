//! Look-up, update and delete.

use skep_ebpf::uapi::update::LOCK;
use skep_maps::MapRef;

use crate::env::Env;

/// # Safety
/// `map` is a handle that the verifier knows, `key` readable for its key size.
#[inline]
pub(crate) unsafe fn map_lookup_elem(env: &mut Env, map: u64, key: u64) -> u64 {
    // SAFETY: the caller's promise; the slot is held.
    let value = unsafe { (*(map as *const MapRef)).lookup(env.slot, key as *const u8) };
    if value.is_null() {
        // SAFETY: as above.
        return unsafe { inner(env, map, key) };
    }
    value as u64
}

/// Looks up in a map of maps: the handle of the inner map, or 0.
///
/// # Safety
/// As [`map_lookup_elem`].
#[cold]
unsafe fn inner(env: &Env, map: u64, key: u64) -> u64 {
    // SAFETY: as above.
    match unsafe { (*(map as *const MapRef)).inner(key as *const u8) } {
        Some(index) => env.map(index) as u64,
        None => 0,
    }
}

/// # Safety
/// `map` is a handle that the verifier knows, `value` readable for its value size.
pub(super) unsafe fn map_push_elem(env: &mut Env, map: u64, value: u64, flags: u64) -> u64 {
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).push(env.slot, value as *const u8, flags) as u64 }
}

/// # Safety
/// As [`map_push_elem`], and `value` is writable.
pub(super) unsafe fn map_pop_elem(env: &mut Env, map: u64, value: u64) -> u64 {
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).pop(env.slot, value as *mut u8) as u64 }
}

/// # Safety
/// As [`map_push_elem`], and `value` is writable but for bloom filters.
pub(super) unsafe fn map_peek_elem(env: &mut Env, map: u64, value: u64) -> u64 {
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).peek(env.slot, value as *mut u8) as u64 }
}

/// # Safety
/// As [`map_lookup_elem`]; `value` readable for the map's value size.
pub(super) unsafe fn map_update_elem(env: &mut Env, map: u64, key: u64, value: u64, flags: u64) -> u64 {
    // SAFETY: as above.
    unsafe {
        let map = *(map as *const MapRef);
        if flags & LOCK != 0 && (*map.hdr).spin_lock().is_some() {
            return super::lock::update_locked(env, map, key, value, flags);
        }
    }
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).update(env.slot, key as *const u8, value as *const u8, flags) as u64 }
}

/// # Safety
/// As [`map_lookup_elem`].
pub(super) unsafe fn map_delete_elem(env: &mut Env, map: u64, key: u64) -> u64 {
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).delete(env.slot, key as *const u8) as u64 }
}

/// # Safety
/// As [`map_lookup_elem`].
pub(super) unsafe fn map_lookup_percpu_elem(_: &mut Env, map: u64, key: u64, cpu: u64) -> u64 {
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).lookup_percpu(key as *const u8, cpu as u32) as u64 }
}
