//! Elements of hash and stack trace maps: a fixed number, a free list, and who owns what.
//!
//! ```text
//! slots_off   head of the free list u64, clock hand of LRU maps u32; 64 bytes
//!             a record per slot and one of the controller, 64 bytes each
//! elems_off   elements, `stride` apart: a Node, then key and value
//! ```
//!
//! An element is *linked* (reachable from a bucket), *owned* by a slot (its spare, or in transit), or *free* (in the
//! free list); its owner word says which. Between the free list's compare-and-swap and the owner word's store a dead
//! slot leaves an element that says free and is nowhere: for that moment the slot's journal names it. So all that a
//! dead slot held can be found, see `control/recover.rs`.
//!
//! The free list's head carries a tag that every change increments, against ABA.

use crate::header::View;
use crate::sync::{AtomicU32, AtomicU64, FREE, Ordering, SPINS, owner_of};

/// Owner word of an element that a bucket reaches.
pub(crate) const LINKED: u32 = 1 << 31;

/// End of a chain and of the free list, as is everything that is no element's index.
#[cfg(feature = "control")]
pub(crate) const END: u32 = u32::MAX;

/// Bytes of the free-list head, and of each slot record.
pub(crate) const RECORD: u64 = 64;

/// What stands before an element's key.
#[repr(C)]
pub(crate) struct Node {
    /// Hash: next element of the chain. Stack trace: number of frames. Keeps its value when the element is freed, so
    /// that a reader who stands on it does not get lost in the free list.
    pub(crate) link: AtomicU32,
    /// Next element of the free list.
    pub(crate) free: AtomicU32,
    /// `FREE`, `LINKED`, or the owning slot.
    pub(crate) owner: AtomicU32,
    /// Hash of the key.
    pub(crate) hash: AtomicU32,
}

/// Bytes of a [`Node`].
#[cfg(feature = "control")]
pub(crate) const NODE: u64 = size_of::<Node>() as u64;

/// What is kept per slot.
#[repr(C)]
pub(crate) struct Record {
    /// Index + 1 of the element that this slot takes out of or puts into the free list, or out of a bucket.
    pub(crate) journal: AtomicU32,
    /// Index + 1 of the element that this slot puts into a bucket without a lock.
    pub(crate) linking: AtomicU32,
    /// Index + 1 of the element that this slot's next replacement uses.
    pub(crate) spare: AtomicU32,
}

/// An element of the map.
#[derive(Clone, Copy)]
pub(crate) struct Elem<'a> {
    pub(crate) idx: u32,
    pub(crate) node: &'a Node,
    ptr: *mut u8,
}

impl Elem<'_> {
    /// Where the key stands.
    pub(crate) fn key(&self) -> *mut u8 {
        self.ptr.wrapping_add(size_of::<Node>())
    }

    /// The address `off` bytes into the element.
    pub(crate) fn at(&self, off: u64) -> *mut u8 {
        self.ptr.wrapping_add(off as usize)
    }
}

/// Why there is no element.
pub(crate) enum Empty {
    /// All are in use.
    Full,
    /// The free list changed too often.
    Busy,
}

impl<'a> View<'a> {
    /// The element with this index, if there is one.
    #[inline]
    pub(crate) fn elem(self, idx: u32) -> Option<Elem<'a>> {
        if idx >= self.h.elems {
            return None;
        }
        let ptr = self.at(self.h.elems_off + u64::from(idx) * self.h.stride);
        // SAFETY: the index is in range, elements are 8-aligned and in the region; a node is atomics only.
        Some(Elem { idx, node: unsafe { &*ptr.cast::<Node>() }, ptr })
    }

    /// The free list's head: tag and index.
    pub(crate) fn free_head(self) -> &'a AtomicU64 {
        // SAFETY: hash and stack trace maps have an aligned head there.
        unsafe { AtomicU64::from_ptr(self.at(self.h.slots_off).cast()) }
    }

    /// Where an LRU map looks next for an element to evict.
    pub(crate) fn clock_hand(self) -> &'a AtomicU32 {
        // SAFETY: the head has 64 bytes, of which the list takes eight.
        unsafe { AtomicU32::from_ptr(self.at(self.h.slots_off + 8).cast()) }
    }

    /// The record of a slot; an unknown slot shares the controller's.
    pub(crate) fn record(self, slot: u32) -> &'a Record {
        let i = slot.min(self.h.nslots);
        // SAFETY: there are `nslots` + 1 aligned records behind the head.
        unsafe { &*self.at(self.h.slots_off + RECORD * (u64::from(i) + 1)).cast::<Record>() }
    }

    /// Takes a free element for `slot`.
    pub(crate) fn pop(self, slot: u32) -> Result<Elem<'a>, Empty> {
        let journal = &self.record(slot).journal;
        let head = self.free_head();
        let mut cur = head.load(Ordering::Acquire);
        let mut tries = SPINS;
        while tries > 0 {
            let Some(e) = self.elem(cur as u32) else {
                journal.store(0, Ordering::Release);
                return Err(Empty::Full);
            };
            journal.store(e.idx.wrapping_add(1), Ordering::Release);
            let next = e.node.free.load(Ordering::Relaxed);
            match head.compare_exchange_weak(cur, retag(cur, next), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    e.node.owner.store(owner_of(slot), Ordering::Release);
                    journal.store(0, Ordering::Release);
                    return Ok(e);
                }
                Err(now) => cur = now,
            }
            tries -= 1;
        }
        journal.store(0, Ordering::Release);
        Err(Empty::Busy)
    }

    /// Gives an element of `slot` back to the free list.
    pub(crate) fn push(self, slot: u32, e: Elem<'_>) {
        let journal = &self.record(slot).journal;
        journal.store(e.idx.wrapping_add(1), Ordering::Release);
        e.node.owner.store(FREE, Ordering::Release);
        let head = self.free_head();
        let mut cur = head.load(Ordering::Acquire);
        let mut tries = SPINS;
        while tries > 0 {
            e.node.free.store(cur as u32, Ordering::Relaxed);
            match head.compare_exchange_weak(cur, retag(cur, e.idx), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => cur = now,
            }
            tries -= 1;
        }
        journal.store(0, Ordering::Release);
    }

    /// The slot's spare element.
    pub(crate) fn spare(self, slot: u32) -> Option<Elem<'a>> {
        self.elem(self.record(slot).spare.load(Ordering::Relaxed).wrapping_sub(1))
    }

    /// Makes `e` the slot's spare element.
    pub(crate) fn set_spare(self, slot: u32, e: Elem<'_>) {
        self.record(slot).spare.store(e.idx.wrapping_add(1), Ordering::Release);
    }
}

/// The free-list head with another index and the next tag.
fn retag(head: u64, idx: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(idx)
}

/// Puts the first `count` elements into the free list and, if there are more, gives one to each slot. For a fresh map.
#[cfg(feature = "control")]
pub(crate) fn init(v: View<'_>, count: u32) {
    for i in 0..v.h.elems {
        let Some(e) = v.elem(i) else { return };
        if i < count {
            e.node.free.store(if i + 1 < count { i + 1 } else { END }, Ordering::Relaxed);
            continue;
        }
        let record = i - count;
        let slot = if record == v.h.nslots { crate::CONTROL_SLOT } else { record };
        e.node.owner.store(owner_of(slot), Ordering::Relaxed);
        v.set_spare(slot, e);
    }
    v.free_head().store(if count == 0 { u64::from(END) } else { 0 }, Ordering::Release);
}
