//! Hash maps whose values have two places: an update of a key that is there touches nothing but the key's element.
//!
//! A value stands in one place of its element, and the next one is written to the other; then the element says which one
//! counts. So a look-up that found the old value still reads it, as where an update replaces the element: in the kernel,
//! and here for longer values. But no bucket, no link and no other element is written, so that threads that update
//! keys of their own do not take memory from each other.
//!
//! Updates of one element exclude each other by its lock. With it held, an element that is `LINKED` and has the key stays
//! so: deletions take the lock, too, inside of the bucket's. Everything else about chains is as in `hash.rs`.
//!
//! A slot names the element in its record before it takes the lock. Who ends with the lock taken has changed the value
//! or not: one store decides.

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::{EXIST, NOEXIST};

use crate::hash::{self, Hashed};
use crate::header::View;
use crate::key::Key;
use crate::mem;
use crate::pool::{Elem, LINKED, Record};
use crate::sync::{self, AtomicU32, FREE, Ordering};

/// Bytes of an element whose value has two places: a cache line, that it shares with no other.
#[cfg(feature = "control")]
pub(crate) const ELEMENT: u64 = 64;

/// Bytes of each of the two places of a value; 0 if it has one: in elements that would be longer than a cache line, for
/// what an update writes is better not there where nobody has written lately. (The element that another one replaces is what
/// was just replaced.)
#[cfg(feature = "control")]
pub(crate) fn place(key: u64, value_size: u32, has_lock: bool) -> u32 {
    let each = value_size.checked_next_power_of_two().unwrap_or(0).max(8);
    // A spin lock stays where it is.
    let fits = !has_lock && each >= value_size && crate::pool::NODE + key + 2 * u64::from(each) <= ELEMENT;
    if fits { each } else { 0 }
}

impl Elem<'_> {
    /// What updates and deletions of this element exclude each other by.
    #[inline]
    pub(crate) fn lock(&self) -> &AtomicU32 {
        &self.node().frames
    }
}

impl View<'_> {
    /// How far behind the first place the value of an element stands.
    #[inline]
    pub(crate) fn turn(self, e: Elem<'_>) -> u32 {
        e.node().used.load(Ordering::Acquire) & self.h.face
    }

    /// Where the value of an element stands, in a map that is not per-CPU.
    #[inline]
    pub(crate) fn value(self, e: Elem<'_>) -> *mut u8 {
        e.at(u64::from(self.h.value_off) + u64::from(self.turn(e)))
    }

    /// Takes the lock of an element, in a way that the slot's recovery finds; false if it stayed taken.
    #[inline]
    pub(crate) fn hold(self, slot: u32, e: Elem<'_>) -> bool {
        let named = &self.record(slot).held;
        // Taking the lock is a release, behind which this cannot go.
        named.store(e.idx.wrapping_add(1), Ordering::Relaxed);
        let holds =
            |other: u32| other != slot && self.record(other).held.load(Ordering::Acquire) == e.idx.wrapping_add(1);
        let taken = sync::take(self, e.lock(), slot, holds);
        if !taken {
            named.store(0, Ordering::Release);
        }
        taken
    }

    /// Gives it back.
    #[inline]
    pub(crate) fn let_go(self, slot: u32, e: Elem<'_>) {
        e.lock().store(FREE, Ordering::Release);
        self.record(slot).held.store(0, Ordering::Release);
    }
}

/// Gives an element another value. It is locked.
///
/// # Safety
/// `value` is readable for the map's value size, and the region writable.
#[inline(always)]
unsafe fn flip(v: View<'_>, e: Elem<'_>, value: *const u8) {
    let other = v.turn(e) ^ v.h.face;
    // SAFETY: `face` bytes behind the first place is the second one; the rest is the caller's promise.
    unsafe { mem::copy(e.at(u64::from(v.h.value_off) + u64::from(other)), value, v.h.value_size as usize) };
    e.node().used.store(other, Ordering::Release);
}

/// Updates an element that a look-up found; `None` if it is not the key's any more.
///
/// # Safety
/// As [`update`]; `key` was read from memory that is still readable.
#[inline(always)]
unsafe fn change<K: Key>(v: View<'_>, slot: u32, e: Elem<'_>, key: Hashed<K>, value: *const u8) -> Option<i64> {
    if !v.hold(slot, e) {
        return Some(Errno::EBUSY.neg());
    }
    // SAFETY: the caller's promises.
    let there = e.node().owner.load(Ordering::Acquire) == LINKED && unsafe { v.is(e, key) };
    if there {
        // SAFETY: as above.
        unsafe { flip(v, e, value) };
    }
    v.let_go(slot, e);
    there.then_some(0)
}

/// [`hash::update`] with good flags, of a map whose values have two places.
///
/// # Safety
/// As [`hash::update`].
#[inline]
pub(crate) unsafe fn update<K: Key>(v: View<'_>, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // SAFETY: the caller's promises, here and below.
    unsafe {
        let hashed = v.key::<K>(key);
        // What was found may not be linked yet: good enough for who then asks for its lock.
        if flags != NOEXIST
            && let Some(e) = hash::find_within(v, hashed, &mut v.max_walk())
            && let Some(done) = change(v, slot, e, hashed, value)
        {
            return done;
        }
        put::<K>(v, slot, key, value, flags)
    }
}

/// The same with the bucket locked, for a key that was not there, or must not be.
///
/// # Safety
/// As [`update`].
#[inline(never)]
unsafe fn put<K: Key>(v: View<'_>, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
    // SAFETY: the caller's promises, here and below.
    unsafe {
        hash::with_locked::<K>(v, slot, key, |at, old| match (old, flags) {
            (Some(_), NOEXIST) => Errno::EEXIST.neg(),
            (None, EXIST) => Errno::ENOENT.neg(),
            (Some((e, _)), _) => at.change_value(v, slot, e, value),
            (None, _) => match hash::fresh(v, slot) {
                Ok(new) => at.insert(v, slot, new, |e| mem::copy(v.value(e), value, v.h.value_size as usize)),
                Err(err) => err,
            },
        })
    }
}

impl<K: Key> hash::Locked<'_, K> {
    /// Changes an element of the chain: nobody takes it out meanwhile.
    ///
    /// # Safety
    /// As [`update`].
    #[inline(always)]
    unsafe fn change_value(self, v: View<'_>, slot: u32, e: Elem<'_>, value: *const u8) -> i64 {
        if !v.hold(slot, e) {
            return Errno::EBUSY.neg();
        }
        // SAFETY: the caller's promises.
        unsafe { flip(v, e, value) };
        v.let_go(slot, e);
        0
    }
}

impl Record {
    /// The element whose lock the slot may hold, if any, by its recovery.
    pub(crate) fn held_by<'a>(&self, v: View<'a>) -> Option<Elem<'a>> {
        v.elem(self.held.load(Ordering::Acquire).wrapping_sub(1))
    }
}
