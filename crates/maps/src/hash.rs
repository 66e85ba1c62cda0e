//! Hash maps.
//!
//! ```text
//! slots_off     slot records (pool.rs)
//! buckets_off   per bucket: lock, first element, version (u32 each)
//! elems_off     elements: Node (16 bytes), key, value at `value_off` (one per slot for per-CPU maps)
//! ```
//!
//! Readers take no lock. Insertion, replacement and deletion are one store to a link each, so a reader sees the element
//! before or after. But an element that left its chain may be used again while a reader stands on it, and lead him
//! past others or into another chain. Between an element's leaving and its next use its bucket's version therefore
//! changes, and a reader who has not found his key believes it only if the version is still the same.
//!
//! As in the kernel's preallocated maps an element's memory always belongs to the map: a program that still holds the
//! address of a deleted value reads or writes whatever stands there now.

use core::ptr::null_mut;

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::{ANY, EXIST, NOEXIST};

use crate::header::View;
use crate::mem;
#[cfg(feature = "control")]
use crate::pool::END;
use crate::pool::{Elem, Empty, LINKED, Record};
use crate::sync::{AtomicU32, Guard, Ordering, owner_of};

/// Elements one walk may visit. No honest chain is as long.
const MAX_WALK: u32 = 1 << 16;

#[repr(C)]
pub(crate) struct Bucket {
    pub(crate) lock: AtomicU32,
    pub(crate) head: AtomicU32,
    version: AtomicU32,
    _unused: u32,
}

impl Bucket {
    /// Lets `from`, a link of this chain, skip or replace the element that it leads to.
    pub(crate) fn take_out(&self, from: &AtomicU32, link: u32) {
        from.store(link, Ordering::Release);
        self.changed();
    }

    /// Tells readers that an element has left. The bucket is locked.
    pub(crate) fn changed(&self) {
        self.version.store(self.version.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

/// Bytes of a [`Bucket`].
#[cfg(feature = "control")]
pub(crate) const BUCKET: u64 = size_of::<Bucket>() as u64;

/// A key with its hash.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    ptr: *const u8,
    pub(crate) hash: u32,
}

/// The value or values that a per-CPU update brings.
#[derive(Clone, Copy)]
pub(crate) enum Values {
    /// One, for the slot that updates; a new element has zeros for the others.
    One(*const u8),
    /// One for each slot, each padded to `cpu_stride`.
    #[cfg(feature = "control")]
    All(*const u8),
}

impl<'a> View<'a> {
    /// The bucket of a hash. Any number of a bucket is a hash of it.
    #[inline]
    pub(crate) fn bucket(self, hash: u32) -> &'a Bucket {
        let n = hash & self.h.mask;
        let p = self.at(self.h.buckets_off + u64::from(n) * size_of::<Bucket>() as u64);
        // SAFETY: the mask keeps the number below the number of buckets, which are aligned atomics.
        unsafe { &*p.cast::<Bucket>() }
    }

    /// Locks the bucket of a hash for `slot`, in a way that its recovery finds.
    pub(crate) fn lock(self, slot: u32, hash: u32) -> Option<Guard<'a>> {
        self.lock_by(slot, hash, Guard::acquire)
    }

    /// As [`View::lock`], if the bucket is not locked right now.
    pub(crate) fn try_lock(self, slot: u32, hash: u32) -> Option<Guard<'a>> {
        self.lock_by(slot, hash, Guard::try_acquire)
    }

    fn lock_by(self, slot: u32, hash: u32, take: fn(&'a AtomicU32, u32) -> Option<Guard<'a>>) -> Option<Guard<'a>> {
        let name = (hash & self.h.mask).wrapping_add(1);
        Guard::named(&self.bucket(hash).lock, slot, (&self.record(slot).bucket, name), take)
    }

    /// # Safety
    /// `key` is readable for `key_size` bytes.
    #[inline]
    unsafe fn is(self, e: Elem<'_>, key: Key) -> bool {
        // SAFETY: `key_size` bytes stand behind the node in each element; the other side is the caller's promise.
        e.node.hash.load(Ordering::Relaxed) == key.hash
            && unsafe { mem::equal(e.key(), key.ptr, self.h.key_size as usize) }
    }

    /// # Safety
    /// `key` is readable for `key_size` bytes.
    #[inline]
    pub(crate) unsafe fn key(self, ptr: *const u8) -> Key {
        // SAFETY: the caller's promise.
        Key { ptr, hash: unsafe { mem::hash(ptr, self.h.key_size as usize, self.h.seed) } }
    }

    pub(crate) fn max_walk(self) -> u32 {
        self.h.elems.min(MAX_WALK).wrapping_add(1024)
    }
}

/// Finds a key without a lock.
///
/// # Safety
/// `key` is readable for `key_size` bytes.
#[inline]
pub(crate) unsafe fn find<'a>(v: View<'a>, key: *const u8) -> Option<Elem<'a>> {
    // SAFETY: the caller's promise.
    unsafe { find_within(v, key, &mut v.max_walk()) }
}

/// As [`find`], in so many steps at most.
///
/// # Safety
/// As [`find`].
#[inline]
pub(crate) unsafe fn find_within<'a>(v: View<'a>, key: *const u8, steps: &mut u32) -> Option<Elem<'a>> {
    // SAFETY: the caller's promise, here and below.
    let key = unsafe { v.key(key) };
    let bucket = v.bucket(key.hash);
    loop {
        let version = bucket.version.load(Ordering::Acquire);
        let mut link = bucket.head.load(Ordering::Acquire);
        while let Some(e) = v.elem(link) {
            // SAFETY: as above.
            if unsafe { v.is(e, key) } {
                return Some(e);
            }
            link = e.node.link.load(Ordering::Acquire);
            *steps = steps.checked_sub(1)?;
        }
        if bucket.version.load(Ordering::Acquire) == version {
            return None;
        }
        *steps = steps.checked_sub(1)?;
    }
}

/// Finds a key in a locked bucket: the element and the link that leads to it.
///
/// # Safety
/// `key` is readable for `key_size` bytes.
pub(crate) unsafe fn find_locked<'a>(v: View<'a>, bucket: &'a Bucket, key: Key) -> Option<(Elem<'a>, &'a AtomicU32)> {
    let mut from = &bucket.head;
    let mut steps = v.max_walk();
    while let Some(e) = v.elem(from.load(Ordering::Acquire)) {
        // SAFETY: the caller's promise.
        if unsafe { v.is(e, key) } {
            return Some((e, from));
        }
        from = &e.node.link;
        steps = steps.checked_sub(1)?;
    }
    None
}

/// The link of a chain that leads to an element; with the bucket locked it stays that way.
pub(crate) fn link_to<'a>(v: View<'a>, bucket: &'a Bucket, e: Elem<'_>) -> Option<&'a AtomicU32> {
    let mut from = &bucket.head;
    let mut steps = v.max_walk();
    while let Some(at) = v.elem(from.load(Ordering::Acquire)) {
        if at.idx == e.idx {
            return Some(from);
        }
        from = &at.node.link;
        steps = steps.checked_sub(1)?;
    }
    None
}

#[inline]
pub(crate) unsafe fn lookup(v: View<'_>, key: *const u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    match unsafe { find(v, key) } {
        Some(e) => e.at(u64::from(v.h.value_off)),
        None => null_mut(),
    }
}

#[inline]
pub(crate) unsafe fn lookup_cpu(v: View<'_>, key: *const u8, cpu: u32) -> *mut u8 {
    if cpu >= v.h.nslots {
        return null_mut();
    }
    // SAFETY: the caller's promise.
    match unsafe { find(v, key) } {
        Some(e) => e.at(value_off(v, cpu)),
        None => null_mut(),
    }
}

/// Where what is kept besides the key stands.
pub(crate) fn behind_key(v: View<'_>, e: Elem<'_>) -> *mut u8 {
    e.key().wrapping_add((v.h.key_size as usize).next_multiple_of(8))
}

/// Offset in an element of a slot's value; of the value, if the map is not per-CPU.
fn value_off(v: View<'_>, slot: u32) -> u64 {
    u64::from(v.h.value_off) + u64::from(slot) * u64::from(v.h.cpu_stride)
}

/// The beginning of an update: its bucket, locked, and what is there under its key, with the link that leads to it.
pub(crate) struct Begun<'a> {
    pub(crate) _guard: Guard<'a>,
    pub(crate) bucket: &'a Bucket,
    pub(crate) key: Key,
    pub(crate) old: Option<(Elem<'a>, &'a AtomicU32)>,
}

/// Begins an update, unless its flags forbid it by whether the key is there.
///
/// # Safety
/// `key` is readable for `key_size` bytes, the region is writable, `slot` is the caller's.
pub(crate) unsafe fn begin<'a>(v: View<'a>, slot: u32, key: *const u8, flags: u64) -> Result<Begun<'a>, i64> {
    // SAFETY: the caller's promises, here and below.
    let key = unsafe { v.key(key) };
    let bucket = v.bucket(key.hash);
    let _guard = v.lock(slot, key.hash).ok_or(Errno::EBUSY.neg())?;
    // SAFETY: as above.
    let old = unsafe { find_locked(v, bucket, key) };
    match (&old, flags) {
        (Some(_), NOEXIST) => Err(Errno::EEXIST.neg()),
        (None, EXIST) => Err(Errno::ENOENT.neg()),
        _ => Ok(Begun { _guard, bucket, key, old }),
    }
}

/// A free element for a key that is new.
fn fresh<'a>(v: View<'a>, slot: u32) -> Result<Elem<'a>, i64> {
    v.pop(slot).map_err(|empty| match empty {
        Empty::Full => Errno::E2BIG.neg(),
        Empty::Busy => Errno::EBUSY.neg(),
    })
}

/// Writes hash and key into a new element, and what follows it in its chain.
///
/// # Safety
/// `key` is readable; the element is the caller's.
pub(crate) unsafe fn prepare(v: View<'_>, e: Elem<'_>, key: Key, link: u32) {
    e.node.hash.store(key.hash, Ordering::Relaxed);
    // SAFETY: `key_size` bytes stand behind the node in each element.
    unsafe { mem::copy(e.key(), key.ptr, v.h.key_size as usize) };
    e.node.link.store(link, Ordering::Release);
}

/// # Safety
/// `key` and `value` are readable for the map's sizes, the region is writable, `slot` is the caller's.
pub(crate) unsafe fn update(v: View<'_>, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // BPF_F_LOCK needs a spin lock in the value; there is none.
    if !matches!(flags, ANY | NOEXIST | EXIST) {
        return Errno::EINVAL.neg();
    }
    // SAFETY: the caller's promises.
    unsafe { put(v, slot, key, None, value, flags) }
}

/// An update with good flags; `more` is stored between key and value.
///
/// # Safety
/// As [`update`]; `more` is readable, and there is room for it.
#[inline]
pub(crate) unsafe fn put(
    v: View<'_>,
    slot: u32,
    key: *const u8,
    more: Option<(*const u8, usize)>,
    value: *const u8,
    flags: u64,
) -> i64 {
    // SAFETY: the caller's promises, here and below.
    let Begun { _guard, bucket, key, old } = match unsafe { begin(v, slot, key, flags) } {
        Ok(begun) => begun,
        Err(err) => return err,
    };
    let record = v.record(slot);
    let new = match old {
        Some(_) => match v.spare(slot) {
            Some(e) => e,
            None => return Errno::ENOMEM.neg(),
        },
        None => match fresh(v, slot) {
            Ok(e) => e,
            Err(err) => return err,
        },
    };
    let next = old.map_or(&bucket.head, |(old, _)| &old.node.link).load(Ordering::Relaxed);
    // SAFETY: `value_size` bytes at `value_off` are the element's value; the element is this slot's.
    unsafe {
        mem::copy(new.at(u64::from(v.h.value_off)), value, v.h.value_size as usize);
        if let Some((more, len)) = more {
            mem::copy(behind_key(v, new), more, len);
        }
        prepare(v, new, key, next);
    }
    match old {
        Some((old, from)) => {
            Record::name(&record.journal, old);
            old.node.owner.store(owner_of(slot), Ordering::Release);
            bucket.take_out(from, new.idx);
            new.node.owner.store(LINKED, Ordering::Release);
            v.set_spare(slot, old);
        }
        None => {
            bucket.head.store(new.idx, Ordering::Release);
            new.node.owner.store(LINKED, Ordering::Release);
        }
    }
    record.settled();
    0
}

/// # Safety
/// As [`update`]; `values` has what it says.
pub(crate) unsafe fn update_cpu(v: View<'_>, slot: u32, key: *const u8, values: Values, flags: u64) -> i64 {
    if flags > EXIST {
        return Errno::EINVAL.neg();
    }
    if matches!(values, Values::One(_)) && slot >= v.h.nslots {
        return Errno::EINVAL.neg();
    }
    // SAFETY: the caller's promises, here and below.
    let Begun { _guard, bucket, key, old } = match unsafe { begin(v, slot, key, flags) } {
        Ok(begun) => begun,
        Err(err) => return err,
    };
    if let Some((e, _)) = old {
        // SAFETY: as above.
        unsafe { write_values(v, e, slot, values) };
        return 0;
    }
    let e = match fresh(v, slot) {
        Ok(e) => e,
        Err(err) => return err,
    };
    // SAFETY: the values of all slots stand at `value_off`; the element is this slot's.
    unsafe {
        new_values(v, e, slot, values);
        prepare(v, e, key, bucket.head.load(Ordering::Relaxed));
    }
    bucket.head.store(e.idx, Ordering::Release);
    e.node.owner.store(LINKED, Ordering::Release);
    v.record(slot).settled();
    0
}

/// Writes the values of a new element; a per-CPU one must not show another's old values.
///
/// # Safety
/// As [`write_values`].
pub(crate) unsafe fn new_values(v: View<'_>, e: Elem<'_>, slot: u32, values: Values) {
    // SAFETY: the values of all slots stand at `value_off`; the rest is the caller's promise.
    unsafe {
        if matches!(values, Values::One(_)) {
            mem::zero(e.at(u64::from(v.h.value_off)), (v.h.nslots as usize) * (v.h.cpu_stride as usize));
        }
        write_values(v, e, slot, values);
    }
}

/// # Safety
/// `values` has what it says, and `slot` is in range if the map is per-CPU and it is one value.
pub(crate) unsafe fn write_values(v: View<'_>, e: Elem<'_>, slot: u32, values: Values) {
    match values {
        // SAFETY: `value_size` bytes at the slot's offset are its value.
        Values::One(p) => unsafe { mem::copy(e.at(value_off(v, slot)), p, v.h.value_size as usize) },
        #[cfg(feature = "control")]
        // SAFETY: `nslots` values stand at `value_off`, `cpu_stride` apart.
        Values::All(p) => unsafe {
            mem::copy(e.at(u64::from(v.h.value_off)), p, (v.h.nslots as usize) * (v.h.cpu_stride as usize));
        },
    }
}

/// Deletes a key; if `out` is given, the value (for per-CPU maps: all of them) is copied there first.
///
/// # Safety
/// `key` is readable, the region writable, `slot` the caller's, `out` writable for the value or values.
pub(crate) unsafe fn delete(v: View<'_>, slot: u32, key: *const u8, out: Option<*mut u8>) -> i64 {
    // SAFETY: the caller's promises, here and below.
    let key = unsafe { v.key(key) };
    let bucket = v.bucket(key.hash);
    let Some(_guard) = v.lock(slot, key.hash) else { return Errno::EBUSY.neg() };
    // SAFETY: as above.
    let Some((e, from)) = (unsafe { find_locked(v, bucket, key) }) else { return Errno::ENOENT.neg() };
    if let Some(out) = out {
        // SAFETY: the value or values stand at `value_off`.
        unsafe { mem::copy(out, e.at(u64::from(v.h.value_off)), values_size(v)) };
    }
    Record::name(&v.record(slot).journal, e);
    e.node.owner.store(owner_of(slot), Ordering::Release);
    bucket.take_out(from, e.node.link.load(Ordering::Relaxed));
    v.push(slot, e);
    0
}

/// Bytes of an element's value, or of all slots' values.
pub(crate) fn values_size(v: View<'_>) -> usize {
    if v.h.cpu_stride == 0 { v.h.value_size as usize } else { (v.h.nslots as usize) * (v.h.cpu_stride as usize) }
}

/// The element behind `key` in the order of buckets; the first one if the key is null or not there.
///
/// # Safety
/// `key` is null or readable for `key_size` bytes.
#[cfg(feature = "control")]
pub(crate) unsafe fn next<'a>(v: View<'a>, key: *const u8) -> Option<Elem<'a>> {
    // SAFETY: the caller's promise.
    let here = if key.is_null() { None } else { unsafe { find(v, key) } };
    let mut start = 0;
    if let Some(e) = here {
        let link = e.node.link.load(Ordering::Acquire);
        if let Some(next) = v.elem(link) {
            return Some(next);
        }
        start = (e.node.hash.load(Ordering::Relaxed) & v.h.mask).checked_add(1)?;
    }
    (start..=v.h.mask).find_map(|n| v.elem(v.bucket(n).head.load(Ordering::Acquire)))
}

/// Makes all chains empty. For a fresh map.
#[cfg(feature = "control")]
pub(crate) fn init(v: View<'_>) {
    for n in 0..=v.h.mask {
        v.bucket(n).head.store(END, Ordering::Relaxed);
    }
}

/// Calls `f` for each element, until it returns false. However the chains are linked, this ends.
pub(crate) fn for_each<'a>(v: View<'a>, mut f: impl FnMut(Elem<'a>) -> bool) {
    let mut steps = 2 * u64::from(v.h.elems) + 64;
    for n in 0..=v.h.mask {
        if !chain(v, n, &mut steps, &mut f) {
            return;
        }
    }
}

/// As [`for_each`], for the elements of one bucket.
#[cfg(feature = "control")]
pub(crate) fn for_each_in<'a>(v: View<'a>, n: u32, mut f: impl FnMut(Elem<'a>) -> bool) {
    chain(v, n, &mut (u64::from(v.h.elems) + 64), &mut f);
}

fn chain<'a>(v: View<'a>, n: u32, steps: &mut u64, f: &mut impl FnMut(Elem<'a>) -> bool) -> bool {
    let mut link = v.bucket(n).head.load(Ordering::Acquire);
    while let Some(e) = v.elem(link) {
        if *steps == 0 || !f(e) {
            return false;
        }
        *steps -= 1;
        link = e.node.link.load(Ordering::Acquire);
    }
    true
}
