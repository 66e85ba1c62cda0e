//! Elements of hash and stack trace maps: a fixed number, who owns what, and which are free.
//!
//! ```text
//! slots_off   clock hand of LRU maps u32; 64 bytes
//!             a record per slot and one of the controller, 64 bytes each
//! bits_off    where free elements may be (free.rs)
//! links_off   per element: the link to the next one of its chain (u32)
//! elems_off   elements, `stride` apart: a Node, then key and value
//! ```
//!
//! An element is *linked* (reachable from a bucket), *owned* by a slot (its spare, or in transit), or *free*; its owner
//! word says which. A slot's record names the elements that it may own and the bucket that it may have locked, before it
//! owns or locks them. So what a slot held that ended anywhere in an operation is found at once, see `recover.rs`.
//!
//! A *link* is an element's index and, in the bits above, those of its key's hash. Who walks a chain for a key so sees without
//! a look at an element that it is another key's. And what stands in links is not in the elements' memory, which their
//! values make other processors' all the time.
//!
//! A slot keeps the numbers of a few elements that it freed, and takes those first: so who inserts and deletes in turn
//! writes no memory that others write. They are free nevertheless: its owner word alone says what an element is, and a
//! slot that finds no hint in the tree looks at what the others keep before it says that the map is full.

use core::marker::PhantomData;

use crate::free::{first_from, turn};
use crate::header::View;
use crate::sync::{AtomicU32, DOUBTS, FREE, Ordering, SPINS, is_owner, owner_of};

/// Owner word of an element that a bucket reaches.
pub(crate) const LINKED: u32 = 1 << 31;

/// End of a chain, as is every link whose index is no element's.
pub(crate) const END: u32 = u32::MAX;

/// Bytes of the head, and of each slot record.
pub(crate) const RECORD: u64 = 64;

/// What stands before an element's key.
#[repr(C)]
pub(crate) struct Node {
    /// `FREE`, `LINKED`, or the owning slot.
    pub(crate) owner: AtomicU32,
    /// Stack trace: number of frames. Hash map whose values have two places: the element's lock.
    pub(crate) frames: AtomicU32,
    /// LRU maps: whether the element was used since the hand passed it. Hash map whose values have two places: which one
    /// counts.
    pub(crate) used: AtomicU32,
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
    /// LRU maps: where this slot looks next for an element to evict, and how many it looks at from there.
    pub(crate) sweep: AtomicU32,
    pub(crate) sweep_left: AtomicU32,
    /// Index + 1 of the element whose lock this slot takes (flip.rs).
    pub(crate) held: AtomicU32,
    /// Index + 1 of elements that this slot freed, and that may be free still.
    kept: [AtomicU32; KEPT],
}

/// Elements of which a slot remembers that it freed them.
const KEPT: usize = 8;

const _: () = assert!(size_of::<Record>() as u64 == RECORD);

impl Record {
    /// Names an element, before it becomes this slot's.
    #[inline]
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
    /// What it begins with, and what the rest of it is found from.
    ptr: *mut u8,
    _map: PhantomData<&'a Node>,
}

impl<'a> Elem<'a> {
    #[inline]
    pub(crate) fn node(&self) -> &'a Node {
        // SAFETY: elements are 8-aligned and in the region; a node is atomics only.
        unsafe { &*self.ptr.cast::<Node>() }
    }

    /// Where the key stands.
    #[inline]
    pub(crate) fn key(&self) -> *mut u8 {
        self.ptr.wrapping_add(size_of::<Node>())
    }

    /// The address `off` bytes into the element.
    #[inline]
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
        // The index is in range, so this is an element in the region.
        Some(Elem { idx, ptr: self.at(self.h.elems_off + u64::from(idx) * self.h.stride), _map: PhantomData })
    }

    /// The element that a link leads to, if there is one.
    #[inline]
    pub(crate) fn linked(self, link: u32) -> Option<Elem<'a>> {
        self.elem(link & self.h.index_mask)
    }

    /// The link that leads to an element with a key of this hash.
    #[inline]
    pub(crate) fn link_to(self, e: Elem<'_>, hash: u32) -> u32 {
        (hash & !self.h.index_mask) | e.idx
    }

    /// False if a link leads to an element whose key has another hash.
    #[inline]
    pub(crate) fn may_lead_to(self, link: u32, hash: u32) -> bool {
        (link ^ hash) & !self.h.index_mask == 0
    }

    /// The link behind an element. It keeps its value when the element is freed, for a reader who stands there.
    #[inline]
    pub(crate) fn link(self, e: Elem<'_>) -> &'a AtomicU32 {
        // SAFETY: there is an aligned word for each element.
        unsafe { AtomicU32::from_ptr(self.at(self.h.links_off + 4 * u64::from(e.idx)).cast()) }
    }

    /// Where an LRU map looks next for an element to evict.
    pub(crate) fn clock_hand(self) -> &'a AtomicU32 {
        // SAFETY: there are 64 aligned bytes before the records.
        unsafe { AtomicU32::from_ptr(self.at(self.h.slots_off).cast()) }
    }

    /// The record of a slot; an unknown slot shares the controller's.
    #[inline]
    pub(crate) fn record(self, slot: u32) -> &'a Record {
        let i = slot.min(self.h.nslots);
        // SAFETY: there are `nslots` + 1 aligned records behind the head.
        unsafe { &*self.at(self.h.slots_off + RECORD * (u64::from(i) + 1)).cast::<Record>() }
    }

    /// Takes a free element for `slot`. The slot's journal names it from then on.
    pub(crate) fn pop(self, slot: u32) -> Result<Elem<'a>, Empty> {
        match self.pop_near(slot) {
            Err(Empty::Full) => self.pop_kept_by_others(slot),
            result => result,
        }
    }

    /// As [`View::pop`], without a look at what other slots keep.
    #[inline]
    pub(crate) fn pop_near(self, slot: u32) -> Result<Elem<'a>, Empty> {
        let record = self.record(slot);
        for kept in &record.kept {
            let Some(e) = self.elem(kept.load(Ordering::Relaxed).wrapping_sub(1)) else { continue };
            Record::name(&record.journal, e);
            kept.store(0, Ordering::Relaxed);
            if self.take(slot, e) {
                return Ok(e);
            }
        }
        self.pop_hinted(slot)
    }

    /// Makes a free element that the slot's journal names its own, if it is free.
    #[inline]
    fn take(self, slot: u32, e: Elem<'_>) -> bool {
        e.node().owner.compare_exchange(FREE, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Takes this element, if it is free. The slot's journal names it then.
    pub(crate) fn take_if_free(self, slot: u32, e: Elem<'_>) -> bool {
        if e.node().owner.load(Ordering::Relaxed) != FREE {
            return false;
        }
        Record::name(&self.record(slot).journal, e);
        self.take(slot, e)
    }

    /// Takes an element that names an owner who does not name it: somebody has scribbled over one of them.
    #[inline]
    pub(crate) fn take_if_forsaken(self, slot: u32, e: Elem<'_>, owner: u32) -> bool {
        let named = |record: &Record| {
            let words = [&record.journal, &record.other, &record.spare, &record.held];
            words.into_iter().any(|word| word.load(Ordering::Acquire) == e.idx.wrapping_add(1))
        };
        // Whoever it is may have given it back and taken it again meanwhile, but not each time.
        for _ in 0..DOUBTS {
            let honest = is_owner(self, owner) && named(self.record(owner.wrapping_sub(1)));
            if honest || e.node().owner.load(Ordering::Acquire) != owner {
                return false;
            }
        }
        Record::name(&self.record(slot).journal, e);
        e.node().owner.compare_exchange(owner, owner_of(slot), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn pop_kept_by_others(self, slot: u32) -> Result<Elem<'a>, Empty> {
        for other in 0..=self.h.nslots {
            for kept in &self.record(other).kept {
                let Some(e) = self.elem(kept.load(Ordering::Acquire).wrapping_sub(1)) else { continue };
                if self.take_if_free(slot, e) {
                    return Ok(e);
                }
            }
        }
        self.record(slot).journal.store(0, Ordering::Release);
        Err(Empty::Full)
    }

    /// Takes an element that the tree of hints leads to.
    fn pop_hinted(self, slot: u32) -> Result<Elem<'a>, Empty> {
        let (record, turn) = (self.record(slot), turn(slot));
        let mut near = record.near.load(Ordering::Relaxed);
        let mut tries = SPINS;
        while let Some(left) = tries.checked_sub(1) {
            tries = left;
            let hints = self.hints(near);
            let bits = hints.map_or(0, |hints| hints.load(Ordering::Acquire));
            let (Some(hints), true) = (hints, bits != 0) else {
                near = self.find_hint(record, turn, &mut tries)?;
                continue;
            };
            let bit = first_from(bits, turn);
            if let Some(e) = self.elem((near << 6) | bit) {
                Record::name(&record.journal, e);
                hints.fetch_and(!(1u64 << bit), Ordering::SeqCst);
                if self.take(slot, e) {
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
    #[inline]
    pub(crate) fn push(self, slot: u32, e: Elem<'_>) {
        let record = self.record(slot);
        Record::name(&record.journal, e);
        e.node().owner.store(FREE, Ordering::Release);
        match record.kept.iter().find(|kept| kept.load(Ordering::Relaxed) == 0) {
            Some(kept) => Record::name(kept, e),
            None => self.hint(e.idx),
        }
        record.journal.store(0, Ordering::Release);
    }

    /// The slot's spare element.
    #[inline]
    pub(crate) fn spare(self, slot: u32) -> Option<Elem<'a>> {
        self.elem(self.record(slot).spare.load(Ordering::Relaxed).wrapping_sub(1))
    }

    /// Makes `e` the slot's spare element.
    #[inline]
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
        e.node().owner.store(owner_of(slot), Ordering::Relaxed);
        v.set_spare(slot, e);
    }
    let words = count.div_ceil(64);
    for slot in 0..v.h.nslots {
        // Slots start apart from each other.
        let near = u64::from(words) * u64::from(slot) / u64::from(v.h.nslots);
        v.record(slot).near.store(near as u32, Ordering::Relaxed);
    }
}
