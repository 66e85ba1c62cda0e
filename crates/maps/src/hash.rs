//! Hash maps.
//!
//! ```text
//! slots_off     slot records (pool.rs)
//! buckets_off   per bucket: lock, version, links to the first elements of two chains (u32 each)
//! links_off     per element: the link to the next one (pool.rs)
//! elems_off     elements: Node (16 bytes), key, value at `value_off` (one per slot for per-CPU maps)
//! ```
//!
//! A bucket's two chains halve what a walk meets, for the same memory: the highest bit of a key's hash says which is
//! its. Lock and version are of both.
//!
//! # Why readers need no lock
//!
//! (Most updates change no link: `flip.rs`.) Insertion, replacement and deletion are one store to a link each, and all of them hold the bucket's lock. Elements come
//! from a pool and are used again at once, so a reader may stand on an element that has left its chain and is, by now,
//! another key's, in another chain. These rules make what he finds true:
//!
//! 1. An element is changed (hash, key, link, value of a new key) only while no bucket reaches it.
//! 2. Between an element's leaving a bucket and its next use, that bucket's version changes. Who dies in between still
//!    holds the lock, and his recovery changes the version before it frees the lock or the element.
//! 3. The link behind an element that leaves stays until its next use.
//!
//! A reader loads the version, walks, and loads the version again. If it is the same, then by 2 no element that he met
//! (all were reachable from this bucket, by 3, at some time since the first load) was used for anything else before the
//! second load. So each had the key and the link that he read; an element that was inserted behind his back stands before
//! the first one, where he has not been. His key was not there when he read the first link: "not there" is true. If the version
//! is another one, he walks again, so often and so far at most as no honest map needs.
//!
//! Who *finds* his key returns the element's value without that check if keys are read in one piece (4 or 8 bytes): the
//! element had this key when he looked, which is all that a look-up without a lock can ever say. A longer key may be half of
//! an old one and half of a new one: there the version is checked, too.
//!
//! A version is 32 bits: it takes 2^32 changes of one bucket during one walk to miss that there were any.
//!
//! # What a hostile process can do
//!
//! Links are indices, checked against the header each time; walks and retries have a budget ([`View::max_walk`]); locks are
//! waited for so long and then `-EBUSY`, and taken from who cannot be their holder (`sync.rs`); a chain that is found to be a
//! ring is emptied. So whoever scribbles over a map makes it return wrong values, and no more.
//!
//! As in the kernel's preallocated maps an element's memory always belongs to the map: a program that still holds the
//! address of a deleted value reads or writes whatever stands there now. An update writes the value somewhere else, so that the
//! address of the old value still shows the old value: until the key's next update if values have two places, else until the
//! slot's next one, which uses the element that was replaced.

use core::ptr::null_mut;

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::{ANY, EXIST, NOEXIST};

use crate::header::View;
use crate::key::{Key, by_size};
use crate::pool::{END, Elem, Empty, LINKED, Record};
use crate::sync::{self, AtomicU32, FREE, Guard, Ordering, fence, owner_of};
use crate::{flip, mem, spin};

/// Elements one walk may visit. No honest chain is as long: there are as many buckets as elements.
const MAX_WALK: u32 = 1 << 12;

/// Elements that are looked at where a chain may be a ring.
pub(crate) const MAX_RING: u32 = 1 << 14;

#[repr(C)]
pub(crate) struct Bucket {
    pub(crate) lock: AtomicU32,
    version: AtomicU32,
    pub(crate) heads: [AtomicU32; 2],
}

impl Bucket {
    /// The first link of the chain that a hash belongs to.
    #[inline]
    pub(crate) fn head(&self, hash: u32) -> &AtomicU32 {
        &self.heads[(hash >> 31) as usize]
    }

    /// Lets `from`, a link of this bucket, skip or replace the element that it leads to.
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
pub(crate) struct Hashed<K> {
    key: K,
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
        let name = self.bucket_name(hash);
        let take = |word: &AtomicU32| sync::take(self, word, slot, self.locks_bucket(slot, name));
        Guard::named(&self.bucket(hash).lock, (&self.record(slot).bucket, name), take)
    }

    /// As [`View::lock`], if the bucket is not locked right now.
    pub(crate) fn try_lock(self, slot: u32, hash: u32) -> Option<Guard<'a>> {
        let name = self.bucket_name(hash);
        let take =
            |word: &AtomicU32| word.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok();
        Guard::named(&self.bucket(hash).lock, (&self.record(slot).bucket, name), take)
    }

    /// What a slot that locks the bucket of a hash has in its record.
    #[inline]
    fn bucket_name(self, hash: u32) -> u32 {
        (hash & self.h.mask).wrapping_add(1)
    }

    /// Can a slot have locked a bucket? Not the one that asks.
    fn locks_bucket(self, me: u32, name: u32) -> impl Fn(u32) -> bool {
        move |slot| slot != me && self.record(slot).bucket.load(Ordering::Acquire) == name
    }

    /// # Safety
    /// `key` was read from memory that is still readable.
    #[inline]
    pub(crate) unsafe fn is<K: Key>(self, e: Elem<'_>, key: Hashed<K>) -> bool {
        // SAFETY: `key_size` bytes stand behind the node in each element; the other side is the caller's promise.
        unsafe { key.key.is_of(e, key.hash, self.h.key_size) }
    }

    /// # Safety
    /// `ptr` is readable for `key_size` bytes, which are those of `K`.
    #[inline]
    pub(crate) unsafe fn key<K: Key>(self, ptr: *const u8) -> Hashed<K> {
        // SAFETY: the caller's promise.
        unsafe {
            let key = K::read(ptr, self.h.key_size);
            Hashed { key, hash: key.hash(self.h.key_size, self.h.seed) }
        }
    }

    #[inline]
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
    unsafe { by_size!(v.h.key_size, K => find_within(v, v.key::<K>(key), &mut v.max_walk())) }
}

/// Finds a key in so many steps at most.
///
/// # Safety
/// `key` was read from memory that is still readable.
#[inline]
pub(crate) unsafe fn find_within<'a, K: Key>(v: View<'a>, key: Hashed<K>, steps: &mut u32) -> Option<Elem<'a>> {
    let bucket = v.bucket(key.hash);
    let head = bucket.head(key.hash);
    loop {
        let version = bucket.version.load(Ordering::Acquire);
        let mut link = head.load(Ordering::Acquire);
        let found = loop {
            let Some(e) = v.linked(link) else { break None };
            // SAFETY: as above.
            if v.may_lead_to(link, key.hash) && unsafe { v.is(e, key) } {
                if K::WHOLE {
                    return Some(e);
                }
                break Some(e);
            }
            link = v.link(e).load(Ordering::Acquire);
            *steps = steps.checked_sub(1)?;
        };
        // The loads of the walk are not to be made behind the one that says what they are worth.
        fence(Ordering::Acquire);
        if bucket.version.load(Ordering::Relaxed) == version {
            return found;
        }
        *steps = steps.checked_sub(1)?;
    }
}

/// Finds a key in a locked bucket: the element and the link that leads to it.
///
/// # Safety
/// As [`find_within`].
#[inline(always)]
unsafe fn find_locked<'a, K: Key>(
    v: View<'a>,
    bucket: &'a Bucket,
    key: Hashed<K>,
) -> Option<(Elem<'a>, &'a AtomicU32)> {
    let mut from = bucket.head(key.hash);
    let mut steps = v.max_walk();
    loop {
        let link = from.load(Ordering::Acquire);
        let e = v.linked(link)?;
        // SAFETY: the caller's promise.
        if v.may_lead_to(link, key.hash) && unsafe { v.is(e, key) } {
            return Some((e, from));
        }
        from = v.link(e);
        let Some(left) = steps.checked_sub(1) else {
            cut_ring(v, bucket, bucket.head(key.hash));
            return None;
        };
        steps = left;
    }
}

/// Empties a chain of a locked bucket if it comes back to itself, which only somebody who scribbles makes it do: nobody is
/// to go round in it again. Its elements are lost to the map.
#[cold]
#[inline(never)]
fn cut_ring(v: View<'_>, bucket: &Bucket, head: &AtomicU32) {
    let (mut from, mut mark) = (head, u32::MAX);
    // A mark is set at each power of two: a ring comes by one that is in it.
    for n in 1..MAX_RING {
        let Some(e) = v.linked(from.load(Ordering::Acquire)) else { return };
        if e.idx == mark {
            bucket.take_out(head, END);
            return;
        }
        if n.is_power_of_two() {
            mark = e.idx;
        }
        from = v.link(e);
    }
}

/// The link of a bucket that leads to an element; with the bucket locked it stays that way.
pub(crate) fn link_to<'a>(v: View<'a>, bucket: &'a Bucket, e: Elem<'_>) -> Option<&'a AtomicU32> {
    link_within(v, bucket, e, &mut v.max_walk())
}

/// As [`link_to`], in so many steps at most. A chain that is a ring is emptied.
pub(crate) fn link_within<'a>(v: View<'a>, bucket: &'a Bucket, e: Elem<'_>, steps: &mut u32) -> Option<&'a AtomicU32> {
    for head in &bucket.heads {
        let mut from = head;
        while let Some(at) = v.linked(from.load(Ordering::Acquire)) {
            if at.idx == e.idx {
                return Some(from);
            }
            from = v.link(at);
            let Some(left) = steps.checked_sub(1) else {
                cut_ring(v, bucket, head);
                return None;
            };
            *steps = left;
        }
    }
    None
}

/// The value of a key; of slot `cpu` if the map is per-CPU.
///
/// # Safety
/// As [`find`].
#[inline]
pub(crate) unsafe fn lookup(v: View<'_>, key: *const u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { by_size!(v.h.key_size, K => lookup_as::<K>(v, key)) }
}

/// As [`lookup`], of a map whose keys are those of `K`.
///
/// # Safety
/// As [`lookup`].
#[inline]
pub(crate) unsafe fn lookup_as<K: Key>(v: View<'_>, key: *const u8) -> *mut u8 {
    // SAFETY: the caller's promise.
    match unsafe { find_within(v, v.key::<K>(key), &mut v.max_walk()) } {
        Some(e) => v.value(e),
        None => null_mut(),
    }
}

/// # Safety
/// As [`find`].
#[inline]
pub(crate) unsafe fn lookup_cpu(v: View<'_>, key: *const u8, cpu: u32) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { by_size!(v.h.key_size, K => lookup_cpu_as::<K>(v, key, cpu)) }
}

/// As [`lookup_cpu`], of a map whose keys are those of `K`.
///
/// # Safety
/// As [`lookup_cpu`].
#[inline]
pub(crate) unsafe fn lookup_cpu_as<K: Key>(v: View<'_>, key: *const u8, cpu: u32) -> *mut u8 {
    if cpu >= v.h.nslots {
        return null_mut();
    }
    // SAFETY: the caller's promise.
    match unsafe { find_within(v, v.key::<K>(key), &mut v.max_walk()) } {
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

/// A bucket that is locked, and the key that an operation on it is about.
#[derive(Clone, Copy)]
pub(crate) struct Locked<'a, K> {
    bucket: &'a Bucket,
    key: Hashed<K>,
}

/// Locks the bucket of a key and calls `change` with what is there under it, and the link that leads to it.
///
/// This and what it calls is inlined by force: passed through memory, what is known by now costs more than all the rest
/// (20 ns of 40: loads that are wider than the stores before them wait until those have left the processor).
///
/// # Safety
/// `key` is readable for `key_size` bytes, the region is writable, `slot` is the caller's.
#[inline(always)]
pub(crate) unsafe fn with_locked<'a, K: Key>(
    v: View<'a>,
    slot: u32,
    key: *const u8,
    change: impl FnOnce(Locked<'a, K>, Option<(Elem<'a>, &'a AtomicU32)>) -> i64,
) -> i64 {
    // SAFETY: the caller's promises, here and below.
    let key = unsafe { v.key::<K>(key) };
    let bucket = v.bucket(key.hash);
    let named = &v.record(slot).bucket;
    // Taking the lock is a release, behind which this cannot go.
    let name = v.bucket_name(key.hash);
    named.store(name, Ordering::Relaxed);
    let taken = sync::take(v, &bucket.lock, slot, v.locks_bucket(slot, name));
    let result = if taken {
        // SAFETY: as above.
        let result = change(Locked { bucket, key }, unsafe { find_locked(v, bucket, key) });
        bucket.lock.store(FREE, Ordering::Release);
        result
    } else {
        Errno::EBUSY.neg()
    };
    named.store(0, Ordering::Release);
    result
}

impl<'a, K: Key> Locked<'a, K> {
    /// Puts the slot's spare element in the place of `old`, which becomes the spare one. `fill` writes what stands behind
    /// the key.
    ///
    /// # Safety
    /// The key is readable, the region writable, `slot` the caller's.
    #[inline(always)]
    pub(crate) unsafe fn replace(
        self,
        v: View<'a>,
        slot: u32,
        (old, from): (Elem<'a>, &'a AtomicU32),
        fill: impl FnOnce(Elem<'a>),
    ) -> i64 {
        let Some(new) = v.spare(slot) else { return Errno::ENOMEM.neg() };
        fill(new);
        // SAFETY: the caller's promise; the element is this slot's.
        unsafe { self.prepare(v, new, v.link(old).load(Ordering::Relaxed)) };
        let record = v.record(slot);
        // The journal may name an element that the slot has taken and does not need now.
        Record::name(&record.other, old);
        old.node().owner.store(owner_of(slot), Ordering::Release);
        self.bucket.take_out(from, v.link_to(new, self.key.hash));
        new.node().owner.store(LINKED, Ordering::Release);
        v.set_spare(slot, old);
        record.other.store(0, Ordering::Release);
        0
    }

    /// Puts an element that the slot has taken from the pool under the key, which is new.
    ///
    /// # Safety
    /// As [`Locked::replace`].
    #[inline(always)]
    pub(crate) unsafe fn insert(self, v: View<'a>, slot: u32, new: Elem<'a>, fill: impl FnOnce(Elem<'a>)) -> i64 {
        fill(new);
        let head = self.bucket.head(self.key.hash);
        // SAFETY: the caller's promise; the element is this slot's.
        unsafe { self.prepare(v, new, head.load(Ordering::Relaxed)) };
        head.store(v.link_to(new, self.key.hash), Ordering::Release);
        new.node().owner.store(LINKED, Ordering::Release);
        v.record(slot).journal.store(0, Ordering::Release);
        0
    }

    /// Writes hash and key into a new element, and what follows it in its chain.
    ///
    /// # Safety
    /// The key is readable; the element is the caller's.
    #[inline(always)]
    unsafe fn prepare(self, v: View<'_>, e: Elem<'_>, link: u32) {
        e.node().hash.store(self.key.hash, Ordering::Relaxed);
        // SAFETY: `key_size` bytes stand behind the node in each element.
        unsafe { self.key.key.put(e, v.h.key_size) };
        v.link(e).store(link, Ordering::Release);
    }
}

/// A free element for a key that is new.
pub(crate) fn fresh<'a>(v: View<'a>, slot: u32) -> Result<Elem<'a>, i64> {
    v.pop(slot).map_err(|empty| match empty {
        Empty::Full => Errno::E2BIG.neg(),
        Empty::Busy => Errno::EBUSY.neg(),
    })
}

/// # Safety
/// `key` and `value` are readable for the map's sizes, the region is writable, `slot` is the caller's.
pub(crate) unsafe fn update(v: View<'_>, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // SAFETY: the caller's promises.
    unsafe { by_size!(v.h.key_size, K => update_as::<K>(v, slot, key, value, flags)) }
}

/// As [`update`], of a map whose keys are those of `K`.
///
/// # Safety
/// As [`update`].
#[inline]
pub(crate) unsafe fn update_as<K: Key>(v: View<'_>, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // Updates with BPF_F_LOCK do not come here, if the value has a lock.
    if !matches!(flags, ANY | NOEXIST | EXIST) {
        return Errno::EINVAL.neg();
    }
    if v.h.face != 0 {
        // SAFETY: the caller's promises.
        return unsafe { flip::update::<K>(v, slot, key, value, flags) };
    }
    // SAFETY: the caller's promises; a value stands at `value_off` in each element.
    unsafe {
        put::<K>(v, slot, key, flags, |e| {
            let at = e.at(u64::from(v.h.value_off));
            mem::copy(at, value, v.h.value_size as usize);
            spin::clear(v, at);
        })
    }
}

/// An update with good flags; `fill` writes what stands behind the key.
///
/// # Safety
/// As [`update`].
#[inline]
pub(crate) unsafe fn put<'a, K: Key>(
    v: View<'a>,
    slot: u32,
    key: *const u8,
    flags: u64,
    fill: impl FnOnce(Elem<'a>),
) -> i64 {
    // SAFETY: the caller's promises, here and below.
    unsafe {
        with_locked::<K>(v, slot, key, |at, old| match (old, flags) {
            (Some(_), NOEXIST) => Errno::EEXIST.neg(),
            (None, EXIST) => Errno::ENOENT.neg(),
            (Some(old), _) => at.replace(v, slot, old, fill),
            (None, _) => match fresh(v, slot) {
                Ok(new) => at.insert(v, slot, new, fill),
                Err(err) => err,
            },
        })
    }
}

/// # Safety
/// As [`update`]; `values` has what it says.
pub(crate) unsafe fn update_cpu(v: View<'_>, slot: u32, key: *const u8, values: Values, flags: u64) -> i64 {
    if flags > EXIST || !one_slots(v, slot, values) {
        return Errno::EINVAL.neg();
    }
    // SAFETY: the caller's promises.
    unsafe { by_size!(v.h.key_size, K => put_cpu::<K>(v, slot, key, values, flags)) }
}

/// False if a value is for a slot that there is not.
pub(crate) fn one_slots(v: View<'_>, slot: u32, values: Values) -> bool {
    !matches!(values, Values::One(_)) || slot < v.h.nslots
}

/// # Safety
/// As [`update_cpu`].
#[inline]
unsafe fn put_cpu<K: Key>(v: View<'_>, slot: u32, key: *const u8, values: Values, flags: u64) -> i64 {
    // SAFETY: the caller's promises, here and below.
    unsafe {
        with_locked::<K>(v, slot, key, |at, old| match (old, flags) {
            (Some(_), NOEXIST) => Errno::EEXIST.neg(),
            (None, EXIST) => Errno::ENOENT.neg(),
            (Some((e, _)), _) => {
                write_values(v, e, slot, values);
                0
            }
            (None, _) => match fresh(v, slot) {
                Ok(new) => at.insert(v, slot, new, |e| new_values(v, e, slot, values)),
                Err(err) => err,
            },
        })
    }
}

/// Writes the values of a new element; a per-CPU one must not show another's old values.
///
/// # Safety
/// As [`write_values`].
#[inline]
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
#[inline]
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
    // SAFETY: the caller's promises.
    unsafe { by_size!(v.h.key_size, K => delete_as::<K>(v, slot, key, out)) }
}

/// As [`delete`], of a map whose keys are those of `K`.
///
/// # Safety
/// As [`delete`].
#[inline]
pub(crate) unsafe fn delete_as<K: Key>(v: View<'_>, slot: u32, key: *const u8, out: Option<*mut u8>) -> i64 {
    // SAFETY: the caller's promises, here and below.
    unsafe {
        with_locked::<K>(v, slot, key, |at, old| {
            let Some((e, from)) = old else { return Errno::ENOENT.neg() };
            let two_places = v.h.face != 0;
            if two_places && !v.hold(slot, e) {
                return Errno::EBUSY.neg();
            }
            if let Some(out) = out {
                // The value or values stand there.
                mem::copy(out, v.value(e), values_size(v));
            }
            Record::name(&v.record(slot).journal, e);
            e.node().owner.store(owner_of(slot), Ordering::Release);
            at.bucket.take_out(from, v.link(e).load(Ordering::Relaxed));
            if two_places {
                v.let_go(slot, e);
            }
            v.push(slot, e);
            0
        })
    }
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
        let link = v.link(e).load(Ordering::Acquire);
        if let Some(next) = v.linked(link) {
            return Some(next);
        }
        let hash = e.node().hash.load(Ordering::Relaxed);
        let n = hash & v.h.mask;
        if hash >> 31 == 0
            && let Some(next) = v.linked(v.bucket(n).heads[1].load(Ordering::Acquire))
        {
            return Some(next);
        }
        start = n.checked_add(1)?;
    }
    (start..=v.h.mask).find_map(|n| v.bucket(n).heads.iter().find_map(|head| v.linked(head.load(Ordering::Acquire))))
}

/// Makes all chains empty. For a fresh map.
#[cfg(feature = "control")]
pub(crate) fn init(v: View<'_>) {
    for n in 0..=v.h.mask {
        v.bucket(n).heads.iter().for_each(|head| head.store(END, Ordering::Relaxed));
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
    for head in &v.bucket(n).heads {
        let mut link = head.load(Ordering::Acquire);
        while let Some(e) = v.linked(link) {
            if *steps == 0 || !f(e) {
                return false;
            }
            *steps -= 1;
            link = v.link(e).load(Ordering::Acquire);
        }
    }
    true
}
