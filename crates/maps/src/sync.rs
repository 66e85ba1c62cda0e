//! The atomics that maps are built of, in one place so that a model checker's can stand in, and the owner lock.
//!
//! # What a hostile process can do to who waits
//!
//! Locks stand where any process may write, and a word that is written there need not be a holder's. Who waits looks
//! whether it can be: whether there is such a slot, and (where slots name in their records what they lock, before they
//! do) whether that one names this lock. If not, the lock is taken over. What looks like a holder that does not go on, since it
//! is stopped or since somebody wrote it so, is waited for only so long: see [`wait`](crate::wait).

pub(crate) use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use crate::header::{CONTROL_SLOT, View};
use crate::wait::Wait;

/// The value of a lock that nobody holds, and the owner word of an element in the free list.
pub(crate) const FREE: u32 = 0;

/// How often a compare-and-swap is repeated. About a millisecond.
pub(crate) const SPINS: u32 = 1 << 16;

/// How often in a row a lock, or an element, must name a slot that does not name it. In an honest map the slot has given it
/// back between one look and the next, and taken it again before the third: not so often.
pub(crate) const DOUBTS: u32 = 64;

/// What a slot writes into locks and owner words.
pub(crate) const fn owner_of(slot: u32) -> u32 {
    slot.wrapping_add(1)
}

/// True if a lock's word is what a slot of this map writes there.
pub(crate) fn is_owner(v: View<'_>, word: u32) -> bool {
    let slot = word.wrapping_sub(1);
    slot < v.h.nslots || slot == CONTROL_SLOT
}

/// Can a slot hold a lock of which nothing is known but its owner? Whoever asks does not: he would have to have
/// interrupted himself. There may be several controllers.
pub(crate) fn unnamed(me: u32) -> impl Fn(u32) -> bool {
    move |slot| slot != me || me == CONTROL_SLOT
}

/// Takes the lock for `slot`; false if it stayed taken. `holds` says of another slot, or of this one, whether it can be
/// the holder.
#[inline]
pub(crate) fn take(v: View<'_>, word: &AtomicU32, slot: u32, holds: impl Fn(u32) -> bool) -> bool {
    let free = word.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok();
    free || wait(v, word, slot, holds)
}

#[cold]
#[inline(never)]
fn wait(v: View<'_>, word: &AtomicU32, slot: u32, holds: impl Fn(u32) -> bool) -> bool {
    let mut wait = Wait::new(word.as_ptr().addr());
    let mut doubts = 0;
    loop {
        let found = word.load(Ordering::Acquire);
        let open = if found == FREE || !is_owner(v, found) {
            true
        } else if holds(found.wrapping_sub(1)) || word.load(Ordering::Acquire) != found {
            doubts = 0;
            false
        } else {
            doubts += 1;
            doubts >= DOUBTS
        };
        if open && word.compare_exchange(found, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            return true;
        }
        if !wait.pause() {
            return false;
        }
    }
}

/// A held owner lock; dropping it releases the lock.
pub(crate) struct Guard<'a> {
    word: &'a AtomicU32,
    /// Where the slot has named the lock, if it did; cleared once the lock is free.
    named: Option<&'a AtomicU32>,
}

impl<'a> Guard<'a> {
    /// [`take`]s a lock that slots do not name; `None` if it could not be had.
    pub(crate) fn acquire(v: View<'_>, word: &'a AtomicU32, slot: u32) -> Option<Guard<'a>> {
        take(v, word, slot, unnamed(slot)).then(|| Guard { word, named: None })
    }

    /// Takes the lock if it is free right now.
    pub(crate) fn try_acquire(word: &'a AtomicU32, slot: u32) -> Option<Guard<'a>> {
        let got = word.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed);
        got.ok().map(|_| Guard { word, named: None })
    }

    /// Takes the lock by `take`, with its `name` written to `at` before, and until it is free again.
    pub(crate) fn named(
        word: &'a AtomicU32,
        (at, name): (&'a AtomicU32, u32),
        take: impl FnOnce(&'a AtomicU32) -> bool,
    ) -> Option<Guard<'a>> {
        // Taking the lock is a release, behind which this cannot go.
        at.store(name, Ordering::Relaxed);
        if take(word) {
            return Some(Guard { word, named: Some(at) });
        }
        at.store(0, Ordering::Release);
        None
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
