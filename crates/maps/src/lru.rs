//! LRU hash maps: hash maps that make room.
//!
//! As in `hash.rs`, with a word in each element that says whether it was used lately. When no element is
//! free, a clock hand goes round the elements: it takes that mark off, and evicts the first one that had none. Buckets
//! that are locked are passed over, so nobody waits for a second lock while he holds one.
//!
//! The hand is moved by a few elements at once: those are then one slot's to look at, which it does over many evictions
//! without a write that others see. (The kernel's lists per CPU do the same: what a CPU has taken from the common list it uses
//! up alone.) So the order of eviction is that of the hand, give or take one batch per slot.

use core::ptr::null_mut;

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::{EXIST, NOEXIST};

use crate::hash::{self, Locked, Values};
use crate::header::View;
use crate::key::{Key, by_size};
use crate::pool::{Elem, Empty, LINKED, Record};
use crate::sync::{AtomicU32, Ordering, owner_of};

/// Not an answer: the key is new, and needs an element.
const NEW: i64 = 1;

/// Elements one eviction may look at.
const MAX_LOOK: u32 = 1 << 17;
/// Links that it may follow in the chains of those it wants to take.
const MAX_STEPS: u32 = 1 << 14;

fn touch(e: Elem<'_>) {
    let used = &e.node().used;
    if used.load(Ordering::Relaxed) == 0 {
        used.store(1, Ordering::Relaxed);
    }
}

/// Looks a key up for a program, which counts as use; the value of slot `cpu` if the map is per-CPU.
///
/// # Safety
/// `key` is readable for `key_size` bytes and the region is writable.
#[inline]
pub(crate) unsafe fn lookup(v: View<'_>, key: *const u8, cpu: u32) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { by_size!(v.h.key_size, K => lookup_as::<K>(v, key, cpu)) }
}

/// As [`lookup`], in a map whose keys are those of `K`.
///
/// # Safety
/// As [`lookup`].
#[inline]
pub(crate) unsafe fn lookup_as<K: Key>(v: View<'_>, key: *const u8, cpu: u32) -> *mut u8 {
    if v.h.cpu_stride != 0 && cpu >= v.h.nslots {
        return null_mut();
    }
    // SAFETY: the caller's promise.
    match unsafe { hash::find_within(v, v.key::<K>(key), &mut v.max_walk()) } {
        Some(e) => {
            touch(e);
            e.at(u64::from(v.h.value_off) + u64::from(cpu) * u64::from(v.h.cpu_stride))
        }
        None => null_mut(),
    }
}

/// # Safety
/// As [`hash::update_cpu`].
pub(crate) unsafe fn update(v: View<'_>, slot: u32, key: *const u8, values: Values, flags: u64) -> i64 {
    let percpu = v.h.cpu_stride != 0;
    if flags > EXIST || (percpu && !hash::one_slots(v, slot, values)) {
        return Errno::EINVAL.neg();
    }
    // SAFETY: the caller's promises.
    unsafe { by_size!(v.h.key_size, K => put::<K>(v, slot, key, values, flags)) }
}

/// # Safety
/// As [`update`].
#[inline]
unsafe fn put<K: Key>(v: View<'_>, slot: u32, key: *const u8, values: Values, flags: u64) -> i64 {
    // SAFETY: the caller's promises, here and below.
    let result = unsafe {
        hash::with_locked::<K>(v, slot, key, |at, old| match (old, flags) {
            (Some(_), NOEXIST) => Errno::EEXIST.neg(),
            (None, EXIST) => Errno::ENOENT.neg(),
            (Some(old), _) => at.change(v, slot, old, values),
            (None, _) => NEW,
        })
    };
    if result != NEW {
        return result;
    }
    // Room is made while no bucket is locked.
    let new = match obtain(v, slot) {
        Ok(e) => e,
        Err(Empty::Full) => return Errno::ENOMEM.neg(),
        Err(Empty::Busy) => return Errno::EBUSY.neg(),
    };
    let mut unused = true;
    // SAFETY: as above; the element is this slot's.
    let result = unsafe {
        hash::with_locked::<K>(v, slot, key, |at, old| match (old, flags) {
            (Some(_), NOEXIST) => Errno::EEXIST.neg(),
            (Some(old), _) => at.change(v, slot, old, values),
            (None, _) => {
                unused = false;
                at.insert(v, slot, new, |e| {
                    hash::new_values(v, e, slot, values);
                    e.node().used.store(0, Ordering::Relaxed);
                })
            }
        })
    };
    if unused {
        v.push(slot, new);
    }
    result
}

impl<'a, K: Key> Locked<'a, K> {
    /// Gives an element of the chain other values: where it stands, if it has values for each slot.
    ///
    /// # Safety
    /// As [`update`].
    #[inline(always)]
    unsafe fn change(self, v: View<'a>, slot: u32, old: (Elem<'a>, &'a AtomicU32), values: Values) -> i64 {
        // SAFETY: the caller's promises.
        unsafe {
            if v.h.cpu_stride != 0 {
                hash::write_values(v, old.0, slot, values);
                touch(old.0);
                return 0;
            }
            self.replace(v, slot, old, |e| {
                hash::write_values(v, e, slot, values);
                e.node().used.store(1, Ordering::Relaxed);
            })
        }
    }
}

/// A free element, or one that had to go.
fn obtain<'a>(v: View<'a>, slot: u32) -> Result<Elem<'a>, Empty> {
    match v.pop_near(slot) {
        Err(Empty::Full) => evict(v, slot).ok_or(Empty::Full),
        result => result,
    }
}

/// Elements that a slot looks at before it asks again where to look.
fn batch(v: View<'_>) -> u32 {
    (v.h.elems >> 6).clamp(1, 64)
}

fn evict<'a>(v: View<'a>, slot: u32) -> Option<Elem<'a>> {
    let record = v.record(slot);
    let (mut at, mut left) = (record.sweep.load(Ordering::Relaxed), record.sweep_left.load(Ordering::Relaxed));
    // Chains of honest maps are short; of others they may all be rings.
    let mut steps = MAX_STEPS;
    let mut looks = v.h.elems.saturating_mul(2).saturating_add(64).min(MAX_LOOK);
    let found = loop {
        if looks == 0 || steps == 0 {
            break None;
        }
        looks -= 1;
        if left == 0 || left > batch(v) {
            left = batch(v);
            at = v.clock_hand().fetch_add(left, Ordering::Relaxed).checked_rem(v.h.elems)?;
        }
        let Some(e) = v.elem(at) else {
            at = 0;
            continue;
        };
        (at, left) = (at.wrapping_add(1), left - 1);
        // One that another slot has freed and keeps.
        if v.take_if_free(slot, e) {
            break Some(e);
        }
        let owner = e.node().owner.load(Ordering::Acquire);
        if owner != LINKED && v.take_if_forsaken(slot, e, owner) {
            break Some(e);
        }
        if owner != LINKED || e.node().used.swap(0, Ordering::Relaxed) != 0 {
            continue;
        }
        let hash = e.node().hash.load(Ordering::Acquire);
        let (bucket, Some(_guard)) = (v.bucket(hash), v.try_lock(slot, hash)) else { continue };
        let most = v.max_walk().min(steps);
        let mut walk = most;
        let from = hash::link_within(v, bucket, e, &mut walk);
        steps -= most - walk;
        if let Some(from) = from {
            Record::name(&record.journal, e);
            e.node().owner.store(owner_of(slot), Ordering::Release);
            bucket.take_out(from, v.link(e).load(Ordering::Relaxed));
            break Some(e);
        }
        // What is linked is in the chain of its bucket, while nobody else has that locked: this one says so, and is in none.
        let same = e.node().owner.load(Ordering::Acquire) == LINKED && e.node().hash.load(Ordering::Acquire) == hash;
        if same && walk != 0 {
            Record::name(&record.journal, e);
            e.node().owner.store(owner_of(slot), Ordering::Release);
            break Some(e);
        }
    };
    record.sweep.store(at, Ordering::Relaxed);
    record.sweep_left.store(left, Ordering::Relaxed);
    found
}
