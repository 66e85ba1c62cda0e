//! Ways into the tables of a session: from a head to what its offsets and addresses name.

use core::sync::atomic::{AtomicU64, Ordering};

use skep_maps::{MapHeader, MapRef};

use crate::env::SlotArea;
use crate::image::Image;
use crate::session::{
    Control, Link, LinkCount, Proc, ProgCell, RetEntry, RetHead, SEEN, SLOTS_OFFSET, Seen, SharedHead, Slot, TID_MASK,
    ThreadEntry, Trap, TrapState, count_offset,
};

/// Tables are found by offsets in the head, which the controller alone writes.
///
/// A `&Control` here stands for the whole control arena: it is made from the address of a mapping of all of it.
impl Control {
    /// True while a controller lives and wants hits delivered.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.enable.load(Ordering::Acquire) & TID_MASK != 0
    }

    fn at<T>(&self, offset: u64) -> *const T {
        (&raw const *self).cast::<u8>().wrapping_add(offset as usize).cast()
    }

    /// A link by its index.
    #[inline]
    pub fn link(&self, index: u32) -> Option<&Link> {
        // SAFETY: the table has `nlinks` entries.
        (index < self.nlinks).then(|| unsafe { &*self.at::<Link>(u64::from(self.links)).add(index as usize) })
    }

    /// A program's cell by its index.
    #[inline]
    pub fn prog(&self, index: u32) -> Option<&ProgCell> {
        // SAFETY: the table has `nprogs` entries.
        (index < self.nprogs).then(|| unsafe { &*self.at::<ProgCell>(u64::from(self.progs)).add(index as usize) })
    }

    /// A map's header by its index.
    pub fn map_header(&self, index: u32) -> Option<*const MapHeader> {
        (index < self.nmaps).then(|| self.at::<MapHeader>(u64::from(self.map_headers)).wrapping_add(index as usize))
    }

    /// The image that hits of a program run now, if any: the one to run where this arena is mapped executable, or is not.
    #[inline]
    pub fn image(&self, cell: &ProgCell, executes: bool) -> Option<*const Image> {
        self.image_at(&cell.image, &cell.bytecode, executes)
    }

    /// The program's own image, if any, likewise.
    #[inline]
    pub fn own_image(&self, cell: &ProgCell, executes: bool) -> Option<*const Image> {
        self.image_at(&cell.own, &cell.own_bytecode, executes)
    }

    #[inline]
    fn image_at(&self, image: &AtomicU64, bytecode: &AtomicU64, executes: bool) -> Option<*const Image> {
        let mut offset = image.load(Ordering::Acquire);
        if !executes && offset != 0 {
            let bytecode = bytecode.load(Ordering::Acquire);
            offset = if bytecode == 0 { offset } else { bytecode };
        }
        let end = offset.checked_add(size_of::<Image>() as u64)?;
        (offset != 0 && end <= self.size).then(|| self.at(offset))
    }
}

impl Link {
    /// The image that hits of its program run now, machine code if there is any; `control` is the control arena.
    #[inline(always)]
    pub(crate) fn image(&self, control: &Control) -> Option<*const Image> {
        if self.cell == 0 {
            return None;
        }
        // SAFETY: the controller alone writes cells, and offsets in them; both are of what is in the arena.
        match unsafe { (*control.at::<ProgCell>(self.cell)).image.load(Ordering::Acquire) } {
            0 => None,
            image => Some(control.at(image)),
        }
    }
}

/// As for [`Control`], a `&SharedHead` stands for the whole shared arena.
impl SharedHead {
    /// The slots.
    pub fn slot(&self, control: &Control, index: u32) -> Option<&Slot> {
        let table = (&raw const *self).cast::<u8>().wrapping_add(SLOTS_OFFSET).cast::<Slot>();
        // SAFETY: the table has `nslots` entries.
        (index < control.nslots).then(|| unsafe { &*table.add(index as usize) })
    }

    /// The counters of a link in a slot, or in the row without slot (`control.nslots`).
    #[inline]
    pub fn count(&self, control: &Control, link: u32, slot: u32) -> Option<&LinkCount> {
        if link >= control.nlinks || slot > control.nslots {
            return None;
        }
        let row = (&raw const *self).cast::<u8>().wrapping_add(count_offset(control.nslots, link, slot));
        // SAFETY: the rows have been made for `nlinks` and `nslots`.
        Some(unsafe { &*row.cast::<LinkCount>() })
    }

    /// Wakes the consumer of events if it sleeps.
    pub(crate) fn ring_doorbell(&self) {
        let bell = &self.doorbell;
        if bell.load(Ordering::SeqCst) == 1 && bell.swap(0, Ordering::SeqCst) == 1 {
            crate::sys::futex_wake(bell.as_ptr());
        }
    }
}

/// The addresses in a [`Proc`] are those of the process that it was written for, where this code runs.
impl Proc {
    /// The control arena.
    ///
    /// # Safety
    /// Only in the process of this block.
    #[inline]
    pub(crate) unsafe fn control(&self) -> &Control {
        // SAFETY: mapped for as long as the block is.
        unsafe { &*(self.control as *const Control) }
    }

    /// The shared arena.
    ///
    /// # Safety
    /// As [`Proc::control`].
    #[inline]
    pub(crate) unsafe fn shared(&self) -> &SharedHead {
        // SAFETY: as above.
        unsafe { &*(self.shared as *const SharedHead) }
    }

    /// The table of map handles.
    pub(crate) fn map_refs(&self) -> *const MapRef {
        self.maps as *const MapRef
    }

    /// True in the process of this block, false in a child forked from it.
    ///
    /// # Safety
    /// As [`Proc::control`], or in a forked child.
    #[inline]
    pub(crate) unsafe fn alive(&self) -> bool {
        // SAFETY: the word is mapped, and wiped by the kernel alone.
        unsafe { core::ptr::read_volatile(self.alive as *const u32) == 1 }
    }

    /// The private memory of a slot below `nslots`.
    #[inline]
    pub(crate) fn area(&self, slot: u32) -> *mut SlotArea {
        (self.stacks as *mut SlotArea).wrapping_add(slot as usize)
    }

    /// A thread entry; `index` is below `nthreads`.
    ///
    /// # Safety
    /// As [`Proc::alive`].
    #[inline]
    pub(crate) unsafe fn thread(&self, index: u32) -> &ThreadEntry {
        // SAFETY: the table has `nthreads` entries.
        unsafe { &*(self.threads as *const ThreadEntry).add(index as usize) }
    }

    /// What is remembered of a page of a stack.
    ///
    /// # Safety
    /// As [`Proc::alive`].
    #[inline]
    pub(crate) unsafe fn seen(&self, page: u64) -> &Seen {
        // SAFETY: the table has `SEEN` entries, a power of two.
        unsafe { &*(self.seen as *const Seen).add(page as usize % SEEN) }
    }

    /// A return entry.
    ///
    /// # Safety
    /// As [`Proc::alive`].
    #[inline]
    pub(crate) unsafe fn ret_entry(&self, index: u32) -> Option<&RetEntry> {
        if index >= self.nret {
            return None;
        }
        // SAFETY: the table has `nret` entries, none of them at 0.
        unsafe {
            let entry = (self.rets as *const RetEntry).add(index as usize);
            core::hint::assert_unchecked(!entry.is_null());
            Some(&*entry)
        }
    }

    /// The head of the free return entries.
    ///
    /// # Safety
    /// As [`Proc::alive`].
    #[inline]
    pub(crate) unsafe fn ret_head(&self) -> &RetHead {
        // SAFETY: mapped for as long as the block is.
        unsafe { &*(self.ret_head as *const RetHead) }
    }

    /// The breakpoints, by address.
    ///
    /// # Safety
    /// As [`Proc::alive`].
    pub(crate) unsafe fn traps(&self) -> &[Trap] {
        if self.traps == 0 {
            return &[];
        }
        // SAFETY: the table has `ntraps` entries, and lives as long as the block.
        unsafe { core::slice::from_raw_parts(self.traps as *const Trap, self.ntraps as usize) }
    }

    /// What is kept of the process's signals.
    ///
    /// # Safety
    /// As [`Proc::alive`].
    pub(crate) unsafe fn trap_state(&self) -> Option<&TrapState> {
        // SAFETY: 0, or mapped for as long as the block is.
        unsafe { (self.trap_state as *const TrapState).as_ref() }
    }
}
