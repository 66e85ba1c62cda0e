//! LRU hash maps: hash maps that make room.
//!
//! As in `hash.rs`, with a word before the value that says whether the element was used lately. When no element is
//! free, a clock hand goes round the elements: it takes that mark off, and evicts the first one that had none. Buckets
//! that are locked are passed over, so nobody waits for a second lock while he holds one.

use core::ptr::null_mut;

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::EXIST;

use crate::hash::{self, Begun, Values};
use crate::header::View;
use crate::pool::{Elem, Empty, LINKED, Record};
use crate::sync::{AtomicU32, Ordering, owner_of};

/// Elements one eviction may look at.
const MAX_LOOK: u32 = 1 << 17;

/// Bytes of the mark.
#[cfg(feature = "control")]
pub(crate) const MARK: u64 = 8;

/// Whether the element was used since the hand passed it.
fn mark<'a>(v: View<'a>, e: Elem<'_>) -> &'a AtomicU32 {
    // SAFETY: in LRU maps there is an aligned word before the value, in the region.
    unsafe { AtomicU32::from_ptr(e.at(u64::from(v.h.value_off)).wrapping_sub(8).cast()) }
}

fn touch(v: View<'_>, e: Elem<'_>) {
    let mark = mark(v, e);
    if mark.load(Ordering::Relaxed) == 0 {
        mark.store(1, Ordering::Relaxed);
    }
}

/// Looks a key up for a program, which counts as use; the value of slot `cpu` if the map is per-CPU.
///
/// # Safety
/// `key` is readable for `key_size` bytes and the region is writable.
#[inline]
pub(crate) unsafe fn lookup(v: View<'_>, key: *const u8, cpu: u32) -> *mut u8 {
    if v.h.cpu_stride != 0 && cpu >= v.h.nslots {
        return null_mut();
    }
    // SAFETY: the caller's promise.
    match unsafe { hash::find(v, key) } {
        Some(e) => {
            touch(v, e);
            e.at(u64::from(v.h.value_off) + u64::from(cpu) * u64::from(v.h.cpu_stride))
        }
        None => null_mut(),
    }
}

/// # Safety
/// As [`hash::update_cpu`].
pub(crate) unsafe fn update(v: View<'_>, slot: u32, key: *const u8, values: Values, flags: u64) -> i64 {
    let percpu = v.h.cpu_stride != 0;
    if flags > EXIST || (percpu && matches!(values, Values::One(_)) && slot >= v.h.nslots) {
        return Errno::EINVAL.neg();
    }
    // Room is made before the bucket is locked, also where it turns out not to be needed.
    let new = if percpu && flags == EXIST {
        None
    } else {
        match obtain(v, slot) {
            Ok(e) => Some(e),
            Err(Empty::Full) => return Errno::ENOMEM.neg(),
            Err(Empty::Busy) => return Errno::EBUSY.neg(),
        }
    };
    // SAFETY: the caller's promises.
    let (result, unused) = unsafe { place(v, slot, key, values, flags, new) };
    if let Some(e) = unused {
        v.push(slot, e);
    }
    v.record(slot).settled();
    result
}

/// Puts values under a key, in `new` if need be: the result, and an element that is left over.
///
/// # Safety
/// As [`update`].
unsafe fn place<'a>(
    v: View<'a>,
    slot: u32,
    key: *const u8,
    values: Values,
    flags: u64,
    new: Option<Elem<'a>>,
) -> (i64, Option<Elem<'a>>) {
    // SAFETY: the caller's promises, here and below.
    let Begun { _guard, bucket, key, old } = match unsafe { hash::begin(v, slot, key, flags) } {
        Ok(begun) => begun,
        Err(err) => return (err, new),
    };
    if let (Some((e, _)), true) = (old, v.h.cpu_stride != 0) {
        // SAFETY: as above.
        unsafe { hash::write_values(v, e, slot, values) };
        touch(v, e);
        return (0, new);
    }
    let Some(new) = new else { return (Errno::ENOENT.neg(), None) };
    let next = old.map_or(&bucket.head, |(old, _)| &old.node.link).load(Ordering::Relaxed);
    // SAFETY: as above; the element is this slot's.
    unsafe {
        hash::new_values(v, new, slot, values);
        hash::prepare(v, new, key, next);
    }
    mark(v, new).store(u32::from(old.is_some()), Ordering::Relaxed);
    match old {
        Some((old, from)) => {
            Record::name(&v.record(slot).other, old);
            old.node.owner.store(owner_of(slot), Ordering::Release);
            bucket.take_out(from, new.idx);
        }
        None => bucket.head.store(new.idx, Ordering::Release),
    }
    new.node.owner.store(LINKED, Ordering::Release);
    (0, old.map(|(old, _)| old))
}

/// A free element, or one that had to go.
fn obtain<'a>(v: View<'a>, slot: u32) -> Result<Elem<'a>, Empty> {
    match v.pop(slot) {
        Err(Empty::Full) => evict(v, slot).ok_or(Empty::Full),
        result => result,
    }
}

fn evict<'a>(v: View<'a>, slot: u32) -> Option<Elem<'a>> {
    let mut looks = v.h.elems.saturating_mul(2).saturating_add(64).min(MAX_LOOK);
    while looks > 0 {
        looks -= 1;
        let at = v.clock_hand().fetch_add(1, Ordering::Relaxed).checked_rem(v.h.elems)?;
        let e = v.elem(at)?;
        if e.node.owner.load(Ordering::Acquire) != LINKED || mark(v, e).swap(0, Ordering::Relaxed) != 0 {
            continue;
        }
        let hash = e.node.hash.load(Ordering::Acquire);
        let (bucket, Some(_guard)) = (v.bucket(hash), v.try_lock(slot, hash)) else { continue };
        if let Some(from) = hash::link_to(v, bucket, e) {
            Record::name(&v.record(slot).journal, e);
            e.node.owner.store(owner_of(slot), Ordering::Release);
            bucket.take_out(from, e.node.link.load(Ordering::Relaxed));
            return Some(e);
        }
    }
    None
}
