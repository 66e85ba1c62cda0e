//! Arrays: values at fixed places. Nothing to lock, nothing to recover.

use core::ptr::null_mut;

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::{EXIST, LOCK, NOEXIST};

use crate::header::View;
use crate::sync::{AtomicU32, Ordering};
use crate::{mem, spin};

/// The key of an array.
///
/// # Safety
/// `key` must be readable for four bytes.
#[inline]
pub(crate) unsafe fn index(key: *const u8) -> u32 {
    // SAFETY: four readable bytes.
    unsafe { mem::load_4(key) }
}

#[inline]
pub(crate) fn lookup(v: View<'_>, index: u32) -> *mut u8 {
    if index >= v.h.max_entries {
        return null_mut();
    }
    v.at(u64::from(index) * v.h.stride)
}

#[inline]
pub(crate) fn lookup_cpu(v: View<'_>, index: u32, cpu: u32) -> *mut u8 {
    if index >= v.h.max_entries || cpu >= v.h.nslots {
        return null_mut();
    }
    v.at(u64::from(index) * v.h.stride + u64::from(cpu) * u64::from(v.h.cpu_stride))
}

/// The checks of an update, in the kernel's order. Updates with `BPF_F_LOCK` do not come here, if the value has a lock.
fn check(v: View<'_>, index: u32, flags: u64) -> i64 {
    if flags & !LOCK > EXIST {
        return Errno::EINVAL.neg();
    }
    if index >= v.h.max_entries {
        return Errno::E2BIG.neg();
    }
    if flags & NOEXIST != 0 {
        return Errno::EEXIST.neg();
    }
    if flags & LOCK != 0 {
        return Errno::EINVAL.neg();
    }
    0
}

/// # Safety
/// `value` is readable for `value_size` bytes and the region is writable.
pub(crate) unsafe fn update(v: View<'_>, index: u32, value: *const u8, flags: u64) -> i64 {
    let err = check(v, index, flags);
    if err == 0 {
        // SAFETY: the index is below `max_entries`, so the value lies in the region.
        unsafe { spin::copy_value(v, lookup(v, index), value) };
    }
    err
}

/// # Safety
/// As [`update`]; `slot` is the caller's.
pub(crate) unsafe fn update_cpu(v: View<'_>, index: u32, slot: u32, value: *const u8, flags: u64) -> i64 {
    let err = check(v, index, flags);
    if err != 0 {
        return err;
    }
    let p = lookup_cpu(v, index, slot);
    if p.is_null() {
        return Errno::EINVAL.neg();
    }
    // SAFETY: index and slot are in range, so the value lies in the region.
    unsafe { mem::copy(p, value, v.h.value_size as usize) };
    0
}

/// The entry of a prog array.
pub(crate) fn entry(v: View<'_>, index: u32) -> Option<&AtomicU32> {
    if index >= v.h.max_entries {
        return None;
    }
    // SAFETY: a prog array's region is `max_entries` aligned words, and lives as long as the view.
    Some(unsafe { AtomicU32::from_ptr(v.at(u64::from(index) * 4).cast()) })
}

#[inline]
pub(crate) fn prog(v: View<'_>, index: u32) -> Option<u32> {
    entry(v, index)?.load(Ordering::Acquire).checked_sub(1)
}
