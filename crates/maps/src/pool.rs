//! Elements of hash and stack trace maps: a fixed number, who owns what, and which are free.
//!
//! ```text
//! slots_off   clock hand of LRU maps u32; 64 bytes
//!             a record per slot and one of the controller, 64 bytes each
//! bits_off    where free elements may be (free.rs)
//! elems_off   elements, `stride` apart: a Node, then key and value
//! ```
//!
//! An element is *linked* (reachable from a bucket), *owned* by a slot (its spare, or in transit), or *free*; its owner
//! word says which. A slot's record names the elements that it may own and the bucket that it may have locked, before it
//! owns or locks them. So what a slot held that ended anywhere in an operation is found at once, see `recover.rs`.

use crate::header::View;
use crate::sync::{AtomicU32, FREE, Ordering, SPINS, owner_of};

/// Owner word of an element that a bucket reaches.
pub(crate) const LINKED: u32 = 1 << 31;

/// End of a chain, as is everything that is no element's index.
pub(crate) const END: u32 = u32::MAX;

/// Bytes of the head, and of each slot record.
pub(crate) const RECORD: u64 = 64;

/// What stands before an element's key.
#[repr(C)]
pub(crate) struct Node {
    /// Next element of the chain. Keeps its value when the element is freed, for a reader who stands on it.
    pub(crate) link: AtomicU32,
    /// Stack trace: number of frames.
    pub(crate) frames: AtomicU32,
    /// `FREE`, `LINKED`, or the owning slot.
    pub(crate) owner: AtomicU32,
    /// Hash of the key.
    pub(crate) hash: AtomicU32,
}

/// Bytes of a [`Node`].
#[cfg(feature = "control")]
pub(crate) const NODE: u64 = size_of::<Node>() as u64;

/// What is kept per slot. Only the slot writes its own.
#[repr(C)]
pub(crate) struct Record {
    /// Index + 1 of an element in transit.
    pub(crate) journal: AtomicU32,
    /// Index + 1 of another one: what the first replaces.
    pub(crate) other: AtomicU32,
    /// Index + 1 of the element that this slot's next replacement uses.
    pub(crate) spare: AtomicU32,
    /// Number + 1 of the bucket that this slot locks.
    pub(crate) bucket: AtomicU32,
    /// Word of hints where this slot found something last.
    near: AtomicU32,
}

impl Record {
    /// Names an element, before it becomes this slot's.
    pub(crate) fn name(word: &AtomicU32, e: Elem<'_>) {
        word.store(e.idx.wrapping_add(1), Ordering::Release);
    }

    /// Forgets what was in transit.
    pub(crate) fn settled(&self) {
        self.journal.store(0, Ordering::Release);
        self.other.store(0, Ordering::Release);
    }
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
    /// Too many tries were needed.
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

    /// Where an LRU map looks next for an element to evict.
    pub(crate) fn clock_hand(self) -> &'a AtomicU32 {
        // SAFETY: there are 64 aligned bytes before the records.
        unsafe { AtomicU32::from_ptr(self.at(self.h.slots_off).cast()) }
    }

    /// The record of a slot; an unknown slot shares the controller's.
    pub(crate) fn record(self, slot: u32) -> &'a Record {
        let i = slot.min(self.h.nslots);
        // SAFETY: there are `nslots` + 1 aligned records behind the head.
        unsafe { &*self.at(self.h.slots_off + RECORD * (u64::from(i) + 1)).cast::<Record>() }
    }

    /// Takes a free element for `slot`. The slot's journal names it from then on.
    pub(crate) fn pop(self, slot: u32) -> Result<Elem<'a>, Empty> {
        let record = self.record(slot);
        let mut near = record.near.load(Ordering::Relaxed);
        for _ in 0..SPINS {
            let hints = self.hints(near);
            let bits = hints.map_or(0, |hints| hints.load(Ordering::Acquire));
            let (Some(hints), true) = (hints, bits != 0) else {
                near = self.find_hint(record)?;
                continue;
            };
            let bit = bits.trailing_zeros();
            if let Some(e) = self.elem((near << 6) | bit) {
                Record::name(&record.journal, e);
                hints.fetch_and(!(1u64 << bit), Ordering::SeqCst);
                if e.node.owner.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                    record.near.store(near, Ordering::Relaxed);
                    return Ok(e);
                }
            } else {
                hints.fetch_and(!(1u64 << bit), Ordering::SeqCst);
            }
        }
        record.journal.store(0, Ordering::Release);
        Err(Empty::Busy)
    }

    /// Frees an element of `slot`.
    pub(crate) fn push(self, slot: u32, e: Elem<'_>) {
        let journal = &self.record(slot).journal;
        Record::name(journal, e);
        e.node.owner.store(FREE, Ordering::Release);
        self.hint(e.idx);
        journal.store(0, Ordering::Release);
    }

    /// The slot's spare element.
    pub(crate) fn spare(self, slot: u32) -> Option<Elem<'a>> {
        self.elem(self.record(slot).spare.load(Ordering::Relaxed).wrapping_sub(1))
    }

    /// Makes `e` the slot's spare element.
    pub(crate) fn set_spare(self, slot: u32, e: Elem<'_>) {
        Record::name(&self.record(slot).spare, e);
    }
}

/// Makes the first `count` elements free and, if there are more, gives one to each slot. For a fresh map.
#[cfg(feature = "control")]
pub(crate) fn init(v: View<'_>, count: u32) {
    for i in 0..v.h.elems {
        let Some(e) = v.elem(i) else { return };
        if i < count {
            v.hint(i);
            continue;
        }
        let record = i - count;
        let slot = if record == v.h.nslots { crate::CONTROL_SLOT } else { record };
        e.node.owner.store(owner_of(slot), Ordering::Relaxed);
        v.set_spare(slot, e);
    }
    let words = count.div_ceil(64);
    for slot in 0..v.h.nslots {
        // Slots start apart from each other.
        let near = u64::from(words) * u64::from(slot) / u64::from(v.h.nslots);
        v.record(slot).near.store(near as u32, Ordering::Relaxed);
    }
}
