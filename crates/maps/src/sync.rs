//! The atomics that maps are built of, in one place so that a model checker's can stand in, and the owner lock.

pub(crate) use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use crate::header::CONTROL_SLOT;

/// The value of a lock that nobody holds, and the owner word of an element in the free list.
pub(crate) const FREE: u32 = 0;

/// How often a lock is tried, and a compare-and-swap repeated. About a millisecond: longer than any honest holder
/// needs while it runs, short enough that a stopped one does not hang the others.
pub(crate) const SPINS: u32 = 1 << 16;

/// What a slot writes into locks and owner words.
pub(crate) const fn owner_of(slot: u32) -> u32 {
    slot.wrapping_add(1)
}

/// Takes the lock for `slot`; false if it stayed taken, or if this slot holds it already (a program that interrupted
/// itself would wait for ever).
#[inline]
pub(crate) fn take(word: &AtomicU32, slot: u32) -> bool {
    word.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok() || wait(word, slot)
}

#[cold]
#[inline(never)]
fn wait(word: &AtomicU32, slot: u32) -> bool {
    let me = owner_of(slot);
    for _ in 0..SPINS {
        match word.load(Ordering::Relaxed) {
            FREE => {
                if word.compare_exchange(FREE, me, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                    return true;
                }
            }
            owner if owner == me && slot != CONTROL_SLOT => return false,
            _ => core::hint::spin_loop(),
        }
    }
    false
}

/// A held owner lock; dropping it releases the lock.
pub(crate) struct Guard<'a> {
    word: &'a AtomicU32,
    /// Where the slot has named the lock, if it did; cleared once the lock is free.
    named: Option<&'a AtomicU32>,
}

impl<'a> Guard<'a> {
    /// [`take`]s the lock; `None` if it could not be had.
    pub(crate) fn acquire(word: &'a AtomicU32, slot: u32) -> Option<Guard<'a>> {
        take(word, slot).then(|| Guard { word, named: None })
    }

    /// Takes the lock if it is free right now.
    pub(crate) fn try_acquire(word: &'a AtomicU32, slot: u32) -> Option<Guard<'a>> {
        let got = word.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed);
        got.ok().map(|_| Guard { word, named: None })
    }

    /// As one of the above, with the lock's `name` written to `at` before, and until it is free again.
    pub(crate) fn named(
        word: &'a AtomicU32,
        slot: u32,
        (at, name): (&'a AtomicU32, u32),
        take: fn(&'a AtomicU32, u32) -> Option<Guard<'a>>,
    ) -> Option<Guard<'a>> {
        // Taking the lock is a release, behind which this cannot go.
        at.store(name, Ordering::Relaxed);
        match take(word, slot) {
            Some(mut guard) => {
                guard.named = Some(at);
                Some(guard)
            }
            None => {
                at.store(0, Ordering::Release);
                None
            }
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.word.store(FREE, Ordering::Release);
        if let Some(named) = self.named {
            named.store(0, Ordering::Release);
        }
    }
}
