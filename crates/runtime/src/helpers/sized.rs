//! Look-up, update and delete where the kind of map and the size of its keys are known: what machine code calls in the
//! place of the helper.

use skep_ebpf::uapi::MapType;
use skep_ebpf::uapi::update::LOCK;
use skep_maps::MapRef;

use crate::env::Env;

/// Places that these functions have in the table that machine code calls through.
pub(super) const COUNT: u32 = 20;

/// The place of what does helper `id` on a map of this type with keys of this size; `None` if there is only the helper.
pub fn index(id: u32, map_type: MapType, key_size: u32) -> Option<u32> {
    let row = match (id, map_type) {
        (1, MapType::Hash) => 0,
        (1, MapType::PercpuHash) => 1,
        (1, MapType::LruHash) => 2,
        (2, MapType::Hash) => 3,
        (3, MapType::Hash | MapType::PercpuHash | MapType::LruHash | MapType::LruPercpuHash) => 4,
        _ => return None,
    };
    let column = match key_size {
        4 => 0,
        8 => 1,
        16 => 2,
        _ => 3,
    };
    Some(super::entry::SIZED + row * 4 + column)
}

/// The table of these entries, the functions here, and those entries.
macro_rules! with {
    ($($before:path),*; $($after:path,)*) => {{
        use crate::helpers::sized::{delete, lookup, lookup_lru, lookup_percpu, update};
        [
            $($before,)*
            lookup::<4>, lookup::<8>, lookup::<16>, lookup::<0>,
            lookup_percpu::<4>, lookup_percpu::<8>, lookup_percpu::<16>, lookup_percpu::<0>,
            lookup_lru::<4>, lookup_lru::<8>, lookup_lru::<16>, lookup_lru::<0>,
            update::<4>, update::<8>, update::<16>, update::<0>,
            delete::<4>, delete::<8>, delete::<16>, delete::<0>,
            $($after,)*
        ]
    }};
}
pub(super) use with;

/// # Safety (of all functions)
/// Called by machine code that was made for a map of this kind: `map` is its handle, `key` and `value` are readable.
pub(super) unsafe extern "sysv64" fn lookup<const N: usize>(
    map: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut Env,
) -> u64 {
    // SAFETY: the caller's promise, here and below.
    unsafe { (*(map as *const MapRef)).hash_lookup::<N>(key as *const u8) as u64 }
}

/// # Safety
/// As [`lookup`].
pub(super) unsafe extern "sysv64" fn lookup_percpu<const N: usize>(
    map: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
    env: *mut Env,
) -> u64 {
    // SAFETY: as above; the slot is held.
    unsafe { (*(map as *const MapRef)).percpu_hash_lookup::<N>((*env).slot, key as *const u8) as u64 }
}

/// # Safety
/// As [`lookup`].
pub(super) unsafe extern "sysv64" fn lookup_lru<const N: usize>(
    map: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
    _: *mut Env,
) -> u64 {
    // SAFETY: as above.
    unsafe { (*(map as *const MapRef)).lru_hash_lookup::<N>(key as *const u8) as u64 }
}

/// # Safety
/// As [`lookup`].
pub(super) unsafe extern "sysv64" fn update<const N: usize>(
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
    _: u64,
    env: *mut Env,
) -> u64 {
    // SAFETY: as above; the slot is held.
    unsafe {
        if flags & LOCK != 0 {
            return super::maps::map_update_elem(&mut *env, map, key, value, flags);
        }
        (*(map as *const MapRef)).hash_update::<N>((*env).slot, key as *const u8, value as *const u8, flags) as u64
    }
}

/// # Safety
/// As [`lookup`].
pub(super) unsafe extern "sysv64" fn delete<const N: usize>(
    map: u64,
    key: u64,
    _: u64,
    _: u64,
    _: u64,
    env: *mut Env,
) -> u64 {
    // SAFETY: as above; the slot is held.
    unsafe { (*(map as *const MapRef)).hash_delete::<N>((*env).slot, key as *const u8) as u64 }
}
