//! Spin locks of programs: a word in the value, which its holder's slot and run are written into.
//!
//! A holder may be gone: its process died, its thread left the program by `siglongjmp`, its run was ended. Whoever waits
//! asks whether the run that the word names is over, and then takes the lock over. So nothing has to be recovered.

use crate::header::{MapHeader, View};
use crate::mem;
use crate::sync::{AtomicU32, FREE, Ordering};
use crate::wait::Wait;

/// Bytes of a lock.
const SIZE: usize = 4;
/// Bits of the holder's slot, plus 1.
const SLOT_BITS: u32 = 13;
/// What the controller writes into a lock.
pub const CONTROLLER: u32 = u32::MAX;
/// What the run of a slot writes into locks; `taken` counts how often the slot was taken.
pub fn holder(slot: u32, taken: u64) -> u32 {
    (taken as u32) << SLOT_BITS | slot.wrapping_add(1) & ((1 << SLOT_BITS) - 1)
}

/// The slot of a holder.
pub fn slot_of(holder: u32) -> u32 {
    (holder & ((1 << SLOT_BITS) - 1)).wrapping_sub(1)
}

/// Takes a lock; false if it stayed taken. `over` says whether a holder's run is over.
///
/// # Safety
/// `lock` is four aligned bytes that live as long as the call; others may access them.
pub unsafe fn acquire(lock: *mut u8, me: u32, over: impl Fn(u32) -> bool) -> bool {
    // SAFETY: the caller's promise.
    let word = unsafe { AtomicU32::from_ptr(lock.cast()) };
    let mut wait = Wait::new(lock.addr());
    loop {
        let found = word.load(Ordering::Relaxed);
        // One's own is what an earlier run of this slot has left.
        let free = found == FREE || found == me || over(found);
        if free && word.compare_exchange(found, me, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            return true;
        }
        if !wait.pause() {
            return false;
        }
    }
}

/// Gives a lock back, if one still holds it.
///
/// # Safety
/// As [`acquire`].
pub unsafe fn release(lock: *mut u8, me: u32) {
    // SAFETY: the caller's promise.
    let word = unsafe { AtomicU32::from_ptr(lock.cast()) };
    let _ = word.compare_exchange(me, FREE, Ordering::SeqCst, Ordering::Relaxed);
}

impl MapHeader {
    /// Where the spin lock stands in a value, if there is one.
    #[inline]
    pub fn spin_lock(&self) -> Option<usize> {
        self.lock.checked_sub(1).map(|off| off as usize)
    }
}

/// Copies a value, but for its lock.
///
/// # Safety
/// Both are a value long.
#[inline]
pub(crate) unsafe fn copy_value(v: View<'_>, dst: *mut u8, src: *const u8) {
    let size = v.h.value_size as usize;
    let before = v.h.spin_lock().map_or(size, |at| at.min(size));
    // SAFETY: the caller's promise; the parts lie in it.
    unsafe {
        mem::copy(dst, src, before);
        if let Some(rest) = size.checked_sub(before.wrapping_add(SIZE))
            && before < size
        {
            let behind = size.wrapping_sub(rest);
            mem::copy(dst.wrapping_add(behind), src.wrapping_add(behind), rest);
        }
    }
}

/// Frees the lock of a value that nobody else has yet, or that is a copy.
///
/// # Safety
/// It is a value long.
#[inline]
pub(crate) unsafe fn clear(v: View<'_>, value: *mut u8) {
    if let Some(at) = v.h.spin_lock()
        && at.saturating_add(SIZE) <= v.h.value_size as usize
    {
        // SAFETY: it lies in the value.
        unsafe { mem::zero(value.wrapping_add(at), SIZE) };
    }
}

#[cfg(all(test, feature = "control"))]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_over_from_a_run_that_is_over() {
        let mut word = 0u32;
        let lock = (&raw mut word).cast();
        let (a, b) = (holder(3, 7), holder(4, 7));
        assert_eq!((slot_of(a), slot_of(b)), (3, 4));
        // SAFETY: a local word.
        unsafe {
            assert!(acquire(lock, a, |_| false));
            assert!(!acquire(lock, b, |_| false), "it is held");
            assert!(acquire(lock, a, |_| false), "by an earlier run of the same slot");
            assert!(acquire(lock, b, |h| h == a), "that run is over");
            release(lock, a);
            assert!(!acquire(lock, a, |_| false), "it was not the holder's to give back");
            release(lock, b);
            assert!(acquire(lock, holder(3, 8), |_| false));
        }
    }
}
