//! Threads and the slots they take.
//!
//! # Invariants
//!
//! * A thread writes `sp`, `guards` (the address of its [`Guards`]) and then `active` of its entry *before* it takes the
//!   slot named there, and clears `active` *after* it has released it. So whatever a signal interrupts, the entry names
//!   every slot that the thread may be running on.
//! * A slot is taken and released by its owner, and only in the process that took it: a forked child returns from
//!   programs that its parent began, and must leave the parent's slot alone. The kernel wipes the table of threads in a
//!   child: no entry there has a key, and none is active.
//! * The slot table is writable by every target, so a free slot there is a hint. What makes a slot's memory exclusive is
//!   its *claim*, a word in private memory that holds the thread's key. A slot that cannot be claimed is passed over.
//!
//! # Who a thread is
//!
//! A thread is known by its TLS base. `rdfsbase` tells it, but waits for all that the processor has begun: dearer than the rest
//! of a hit. The C libraries of x86-64 have the base stand at the base, where a plain load finds it; but a thread without TLS
//! would fault. So a page of a stack is remembered once a thread was hit there whose base stands at its base, and only there the
//! load is tried. It is believed if it gives the thread that was seen there: the same one, or one that has taken over both its
//! stack and its TLS. What this asks of a program: a thread that had such a base does not exchange it for an address that cannot be
//! read and then go on, on the same page of its stack. Functions built with stack protectors would not survive that either.
//!
//! # Kept slots
//!
//! Taking a slot costs two locked instructions, more than all else that a hit does. So a thread keeps the slot of its last
//! run, if it is one of the lower half of the table: others have the upper half. Between runs such a slot has an owner
//! and a claim, and an even `taken`. Its thread begins a run by plain stores, `active` first, and then looks whether the
//! claim is still its own. A thread that finds no free slot takes one that another thread of the process keeps: it changes
//! the claim, has `membarrier` make all processors agree, and only then looks whether that thread is active: if it is,
//! it may have seen the old claim, and gets it back. Likewise the controller, before it looks whether slots are in use.
//!
//! # Runs that were left
//!
//! A signal handler that interrupted a program can leave it for good by `siglongjmp`. The next hit of the thread finds
//! `active` set and must tell that from a hit while the program still waits: below the handler, or, where handlers
//! switch coroutines, on any other stack. Taking the slot of a run that is not over would let two runs share memory, so
//! "left" needs a proof that the recorded frames are gone: the present hit's own frames lie over them, or the guards in
//! the recorded `Guards` have been overwritten. A run that was left and whose frames nothing has touched yet costs the thread
//! its hits until something does.
//!
//! The hit that finds a run left first becomes what `sp` and `guards` describe, then gives back what the run held: so a
//! hit that interrupts it is missed, and if it is left in turn the next one begins again.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use skep_ebpf::uapi::PtRegs;

use crate::env::{Env, SlotArea};
use crate::session::{Proc, Slot, ThreadEntry, owner_proc, owner_word};
use crate::{read, sys};

/// Entries looked at before a thread is given up: the table is full around its place.
const PROBES: u32 = 128;
/// Bytes of a page of a stack.
const PAGE: u64 = 4096;
/// What [`Thread::take_any`] answers where it has no slot's memory: see [`Refusal`].
const MISSED: u64 = 0;
const NO_SLOT: u64 = 1;
/// Set in a key, and in bit 43 of an owner word, that is made from a thread id.
const BY_TID: u64 = 1 << 63;
/// Set in a claim while it is found out whether the slot can be taken from the thread that keeps it; the key is that of who
/// does. No thread's own key has it.
const DISPUTED: u64 = 1 << 62;

/// In [`ThreadEntry::tls`]: its base stands at the base.
pub(crate) const STANDS: u32 = 1;

/// Why a thread cannot run a program now.
pub(crate) enum Refusal {
    /// It runs one already, or there is no room for its entry.
    Missed,
    /// All slots are taken.
    NoSlot,
}

/// The calling thread: what identifies it, and its entry.
#[derive(Clone, Copy)]
pub(crate) struct Thread<'a> {
    key: u64,
    pub(crate) entry: &'a ThreadEntry,
}

/// What a run leaves on the stack of its thread, to be found by a later hit if it is still there.
#[repr(C)]
pub(crate) struct Guards {
    low: u64,
    high: u64,
}

impl Guards {
    /// Where these guards lie, others do no more.
    ///
    /// # Safety
    /// They are the caller's.
    #[inline(always)]
    pub(crate) unsafe fn clear(this: *mut Guards) {
        // SAFETY: the caller's promise.
        unsafe {
            core::ptr::write_volatile(&raw mut (*this).low, 0);
            core::ptr::write_volatile(&raw mut (*this).high, 0);
        }
    }
}

/// A slot that the calling thread holds.
pub(crate) struct Held {
    /// The private memory of the slot; the run's environment is in it. It knows its thread and its process.
    pub(crate) area: *mut SlotArea,
}

/// What identifies the calling thread: its TLS base, or its id.
///
/// # Safety
/// `proc.fsgsbase` says truly whether the instruction may be used.
#[inline(always)]
unsafe fn key(proc: &Proc) -> u64 {
    let mut base = 0u64;
    if proc.fsgsbase != 0 {
        // SAFETY: the processor and the kernel allow it; it only reads.
        unsafe { core::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    }
    // A thread without TLS has no base of its own.
    if base != 0 { base } else { BY_TID | u64::from(sys::gettid()) }
}

/// The owner word of a slot that the thread `key` of `proc` holds.
#[inline(always)]
fn owner(proc: &Proc, key: u64) -> u64 {
    if key & BY_TID == 0 {
        owner_word(proc.index, key)
    } else {
        owner_word(proc.index, 0) | 1 << 43 | (key & 0xffff_ffff)
    }
}

/// The guard that a thread's [`Guards`] at this address carry.
#[inline(always)]
fn guard(key: u64, address: u64) -> u64 {
    (key ^ address).wrapping_mul(0x736b_6571)
}

/// Where to look for a thread first.
#[inline(always)]
fn place(key: u64) -> u32 {
    ((key >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// The calling thread, with a new entry if it has none; `None` if there is no room for one. `sp` is an address on its stack.
///
/// # Safety
/// In the process of `proc`.
#[inline(always)]
pub(crate) unsafe fn current(proc: &Proc, sp: u64) -> Option<Thread<'_>> {
    // SAFETY: the caller's promise; a page that was seen has a thread, and see the head of this module.
    unsafe { seen(proc, sp).or_else(|| find(proc, sp / PAGE)) }
}

/// The calling thread, if it was the last one seen on its page of a stack. Nothing is written.
///
/// # Safety
/// As [`current`], or in a child forked from the process of `proc`.
#[inline(always)]
pub(crate) unsafe fn seen(proc: &Proc, sp: u64) -> Option<Thread<'_>> {
    // SAFETY: as above.
    unsafe {
        let page = sp / PAGE;
        let seen = proc.seen(page);
        if seen.page.load(Acquire) != page {
            return None;
        }
        Thread::known(&*(seen.thread.load(Relaxed) as *const ThreadEntry))
    }
}

/// As [`current`], on a page that it was not yet, or not last, seen on.
///
/// # Safety
/// As [`current`].
#[inline(never)]
unsafe fn find(proc: &Proc, page: u64) -> Option<Thread<'_>> {
    // SAFETY: the caller's promise.
    unsafe {
        let key = key(proc);
        let entry = search(proc, key, true)?;
        if key & BY_TID == 0 && stands_at_itself(entry, key) {
            let seen = proc.seen(page);
            seen.thread.store(&raw const *entry as u64, Relaxed);
            seen.page.store(page, Release);
        }
        Some(Thread { key, entry })
    }
}

/// True if the TLS base of a thread stands at the base.
///
/// # Safety
/// As [`current`]; `key` is the base.
unsafe fn stands_at_itself(entry: &ThreadEntry, key: u64) -> bool {
    match entry.tls.load(Relaxed) {
        0 => {
            let mut found = 0u64;
            // SAFETY: eight bytes into a local.
            let stands = unsafe { read::read((&raw mut found).cast(), key, 8) } && found == key;
            entry.tls.store(if stands { STANDS } else { 2 }, Relaxed);
            stands
        }
        known => known == STANDS,
    }
}

/// The entry of thread `key`, made if there is none and `make` asks for it.
///
/// # Safety
/// In the process of `proc`.
#[inline(never)]
unsafe fn search(proc: &Proc, key: u64, make: bool) -> Option<&ThreadEntry> {
    let mask = proc.nthreads.wrapping_sub(1);
    let mut at = place(key);
    for _ in 0..PROBES.min(proc.nthreads) {
        // SAFETY: `nthreads` is a power of two, so the masked index is in the table.
        let entry = unsafe { proc.thread(at & mask) };
        let found = entry.key.load(Relaxed);
        if found == key {
            return Some(entry);
        }
        if found == 0 {
            if !make {
                return None;
            }
            match entry.key.compare_exchange(0, key, AcqRel, Relaxed) {
                Ok(_) => {
                    // Threads start at different slots, of those that can be kept.
                    // SAFETY: in the process of `proc`.
                    let nslots = unsafe { proc.control() }.nslots;
                    entry.last.store(at.checked_rem(nslots / 2).unwrap_or(0), Relaxed);
                    return Some(entry);
                }
                // A signal handler of this very thread may have been first.
                Err(now) if now == key => return Some(entry),
                Err(_) => {}
            }
        }
        at = at.wrapping_add(1);
    }
    None
}

impl<'a> Thread<'a> {
    /// The calling thread, if `entry` is its.
    ///
    /// # Safety
    /// A thread whose TLS base stands at the base was seen on this stack, as the head of this module says.
    #[inline(always)]
    pub(crate) unsafe fn known(entry: &'a ThreadEntry) -> Option<Thread<'a>> {
        let base: u64;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!("mov {}, qword ptr fs:[0]", out(reg) base, options(nostack, preserves_flags, readonly));
        }
        (entry.key.load(Relaxed) == base).then_some(Thread { key: base, entry })
    }

    /// Takes a slot. `sp` is the lowest address of the probed function's stack that the hit leaves alone; `guards`, which
    /// are on this thread's stack below it, are set.
    ///
    /// # Safety
    /// In the process of `proc`, by this thread; `guards` live until the slot is released.
    pub(crate) unsafe fn take(self, proc: &'a Proc, sp: u64, guards: *mut Guards) -> Result<Held, Refusal> {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(area) = self.kept() {
                if let Some(held) = self.begin_on(area, sp, guards) {
                    return Ok(held);
                }
                if !proc.alive() {
                    return Err(Refusal::Missed);
                }
                self.forget(area);
            }
            match self.take_any(proc, sp, guards) {
                MISSED => Err(Refusal::Missed),
                NO_SLOT => Err(Refusal::NoSlot),
                area => Ok(Held { area: area as *mut SlotArea }),
            }
        }
    }

    /// Takes the slot that the thread keeps. Where it has none, or another thread has taken it, with a run under way, and in
    /// a forked child the answer is `None`, and all is as it was.
    ///
    /// # Safety
    /// As [`Thread::take`], or in a child forked from the process of `proc`.
    #[inline(always)]
    pub(crate) unsafe fn take_kept(self, sp: u64, guards: *mut Guards) -> Option<Held> {
        // SAFETY: the caller's promise.
        unsafe { self.begin_on(self.kept()?, sp, guards) }
    }

    /// The memory of the slot that the thread keeps, unless a run is under way.
    #[inline(always)]
    fn kept(self) -> Option<*mut SlotArea> {
        let area = self.entry.kept.load(Relaxed) as *mut SlotArea;
        (self.entry.active.load(Relaxed) == 0 && !area.is_null()).then_some(area)
    }

    /// Begins a run on the slot that the thread kept, if it still does.
    ///
    /// # Safety
    /// As [`Thread::take_kept`]; the thread kept it.
    #[inline(always)]
    unsafe fn begin_on(self, area: *mut SlotArea, sp: u64, guards: *mut Guards) -> Option<Held> {
        let Thread { key, entry } = self;
        // SAFETY: the caller's promise; what a thread keeps is the memory of a slot, which knows where that is.
        unsafe {
            self.announce((*area).active.load(Relaxed), sp, guards);
            let slot = &*((*area).slot.load(Relaxed) as *const Slot);
            if entry.key.load(Relaxed) == key
                && (*area).claim.load(Acquire) == key
                && slot.owner.load(Relaxed) == (*area).owner.load(Relaxed)
            {
                begin(slot);
                return Some(Held { area });
            }
        }
        compiler_fence(Ordering::SeqCst);
        entry.active.store(0, Relaxed);
        None
    }

    /// Writes down the run that begins. A hit in a signal handler in the middle may write the same words; from the moment
    /// that they are seen unchanged it gives up.
    ///
    /// # Safety
    /// As [`Thread::take`].
    #[inline(always)]
    unsafe fn announce(self, active: u32, sp: u64, guards: *mut Guards) {
        let entry = self.entry;
        let word = guard(self.key, guards as u64);
        // SAFETY: the guards are the caller's.
        unsafe {
            core::ptr::write_volatile(&raw mut (*guards).low, word);
            core::ptr::write_volatile(&raw mut (*guards).high, word);
        }
        loop {
            entry.guards.store(guards as u64, Relaxed);
            entry.sp.store(sp, Relaxed);
            compiler_fence(Ordering::SeqCst);
            entry.active.store(active, Relaxed);
            compiler_fence(Ordering::SeqCst);
            if entry.guards.load(Relaxed) == guards as u64 {
                break;
            }
        }
    }

    /// The thread keeps this slot no more. A hit in a signal handler may have found another one meanwhile.
    fn forget(self, kept: *mut SlotArea) {
        let _ = self.entry.kept.compare_exchange(kept as u64, 0, Relaxed, Relaxed);
    }

    /// As [`Thread::take`], when it keeps none, or runs a program already: the address of the slot's memory.
    ///
    /// # Safety
    /// As [`Thread::take`].
    #[cold]
    #[inline(never)]
    unsafe fn take_any(self, proc: &Proc, sp: u64, guards: *mut Guards) -> u64 {
        let Thread { key, entry } = self;
        // SAFETY: the caller is in the process of `proc`.
        unsafe {
            let (control, shared) = (proc.control(), proc.shared());
            let me = owner(proc, key);
            if entry.active.load(Relaxed) != 0 {
                Guards::clear(guards);
                if !left(entry, key, sp, guards) {
                    return MISSED;
                }
                let word = guard(key, guards as u64);
                core::ptr::write_volatile(&raw mut (*guards).low, word);
                core::ptr::write_volatile(&raw mut (*guards).high, word);
                // While the two do not belong together the guards alone count.
                entry.sp.store(0, Relaxed);
                compiler_fence(Ordering::SeqCst);
                entry.guards.store(guards as u64, Relaxed);
                compiler_fence(Ordering::SeqCst);
                entry.sp.store(sp, Relaxed);
                // A hit in a signal handler here may have done it all until a moment ago.
                let active = entry.active.load(Relaxed);
                if active != 0 {
                    self.recover(proc, active - 1, me);
                }
            }
            let mut index = entry.last.load(Relaxed);
            if index >= control.nslots {
                index = 0;
            }
            self.announce(index + 1, sp, guards);

            // The lower half can be kept; who has a slot of it keeps it until then.
            let keeping = proc.keeps != 0 && control.keeps != 0;
            let kept = if keeping { control.nslots / 2 } else { 0 };
            let first = index;
            for n in 0..control.nslots {
                let index = nth(first, n, kept, control.nslots);
                if let Some(slot) = shared.slot(control, index)
                    && slot.owner.load(Relaxed) == 0
                {
                    entry.active.store(index + 1, Relaxed);
                    // A signal handler on this thread is the only one to see the order.
                    compiler_fence(Ordering::SeqCst);
                    if slot.owner.compare_exchange(0, me, AcqRel, Relaxed).is_ok() {
                        let claimed = claim(proc, index).compare_exchange(0, key, AcqRel, Relaxed);
                        // It may be the thread's from a time when it kept the slot.
                        if claimed.is_ok() || claimed == Err(key) {
                            entry.last.store(index, Relaxed);
                            let keep = index < kept && entry.kept.load(Relaxed) == 0;
                            let area = self.held(proc, slot, index);
                            if keep {
                                entry.kept.store(area, Relaxed);
                            }
                            return area;
                        }
                        // Another target has freed the slot of a run in this process.
                        slot.owner.store(0, Release);
                    }
                }
            }
            if keeping {
                for index in 0..kept {
                    if let Some(slot) = shared.slot(control, index)
                        && self.take_over(proc, slot, index)
                    {
                        return self.held(proc, slot, index);
                    }
                }
            }
            compiler_fence(Ordering::SeqCst);
            entry.active.store(0, Relaxed);
            NO_SLOT
        }
    }

    /// Takes a slot that another thread of the process keeps and does not use. It is free again after this run.
    ///
    /// # Safety
    /// As [`Thread::take`].
    unsafe fn take_over(self, proc: &Proc, slot: &Slot, index: u32) -> bool {
        // SAFETY: in the process of `proc`.
        unsafe {
            let claim = claim(proc, index);
            let keeper = claim.load(Relaxed);
            if keeper == 0 || keeper & DISPUTED != 0 || keeper == self.key {
                return false;
            }
            let Some(other) = search(proc, keeper, false) else { return false };
            let uses = || other.active.load(Acquire) != 0;
            // Who does not keep it is in a run on it.
            if other.kept.load(Relaxed) != proc.area(index) as u64
                || uses()
                || owner_proc(slot.owner.load(Relaxed)) != proc.index
            {
                return false;
            }
            self.entry.keeper.store(keeper, Relaxed);
            compiler_fence(Ordering::SeqCst);
            self.entry.active.store(index + 1, Relaxed);
            compiler_fence(Ordering::SeqCst);
            if claim.compare_exchange(keeper, self.key | DISPUTED, AcqRel, Relaxed).is_err() {
                return false;
            }
            if !sys::synchronise() || uses() {
                claim.store(keeper, Release);
                return false;
            }
            claim.store(self.key, Release);
            slot.owner.store(owner(proc, self.key), Release);
            true
        }
    }

    /// Makes the memory of a slot ready that was just taken.
    ///
    /// # Safety
    /// It was, by this thread.
    unsafe fn held(self, proc: &Proc, slot: &Slot, index: u32) -> u64 {
        let area = proc.area(index);
        // SAFETY: the slot is the caller's, so its memory is.
        unsafe {
            let mut env = Env::new(proc.control(), proc.shared(), proc.map_refs(), index, area);
            env.proc = proc;
            env.counts = proc.shared().count(proc.control(), 0, index).map_or(core::ptr::null(), |row| row);
            env.modes.executes = proc.executes != 0;
            (&raw mut (*area).env).write(env);
            (*area).active.store(index + 1, Relaxed);
            (*area).thread.store(&raw const *self.entry as u64, Relaxed);
            (*area).owner.store(owner(proc, self.key), Relaxed);
            (*area).slot.store(&raw const *slot as u64, Relaxed);
        }
        begin(slot);
        area as u64
    }

    /// Gives back what a run that was left still held.
    ///
    /// # Safety
    /// The run on slot `index` was begun by this thread, and left.
    #[cold]
    unsafe fn recover(self, proc: &Proc, index: u32, me: u64) {
        // SAFETY: in the process of `proc`; a claim by this thread says that the area is still that run's.
        unsafe {
            if let Some(slot) = proc.shared().slot(proc.control(), index) {
                let claim = claim(proc, index);
                if claim.load(Acquire) == self.key | DISPUTED {
                    claim.store(self.entry.keeper.load(Relaxed), Release);
                } else if claim.load(Acquire) == self.key {
                    (*proc.area(index)).nreserved = 0; // the maps tell what was reserved
                    (*proc.area(index)).lock = 0; // others see that its holder is gone
                    if slot.owner.load(Acquire) == me {
                        recover_maps(proc, index);
                    }
                    claim.store(0, Release);
                }
                if slot.owner.load(Acquire) == me {
                    end(slot);
                    slot.owner.store(0, Release);
                }
            }
        }
        self.forget(proc.area(index));
        compiler_fence(Ordering::SeqCst);
        self.entry.active.store(0, Relaxed);
    }
}

/// Counts a run that begins. What others wrote there does not matter: odd is a run.
#[inline(always)]
fn begin(slot: &Slot) {
    let taken = slot.taken.load(Relaxed).wrapping_add(1) | 1;
    slot.taken.store(taken, Release);
    // What the run reads is read behind that, for this processor; for others see the head of this module.
    compiler_fence(Ordering::SeqCst);
}

/// The run that [`begin`] counted is over.
#[inline(always)]
fn end(slot: &Slot) {
    slot.taken.store((slot.taken.load(Relaxed) | 1).wrapping_add(1), Release);
}

/// The `n`th of `slots` slots that a thread tries which begins at `first`: all of the lower half before the others, if it
/// begins there.
fn nth(first: u32, n: u32, half: u32, slots: u32) -> u32 {
    let round = |at: u32, end: u32| if at < end { at } else { at - end };
    match first < half {
        true if n < half => round(first + n, half),
        true => n,
        false => round(first + n, slots),
    }
}

/// The claim of a slot's memory: 0, or the key of the thread that has it.
///
/// # Safety
/// In the process of `proc`; `index` is below the number of slots.
#[inline(always)]
unsafe fn claim(proc: &Proc, index: u32) -> &AtomicU64 {
    // SAFETY: the area is mapped, and nothing refers to the whole of it.
    unsafe { &(*proc.area(index)).claim }
}

impl Held {
    /// Gives the slot back.
    ///
    /// # Safety
    /// In the process that took it, or in a child forked since.
    pub(crate) unsafe fn release(self) {
        // SAFETY: the caller's promise.
        unsafe {
            let thread = self.thread();
            let kept = thread.kept.load(Relaxed) == self.area as u64;
            self.finish(thread, kept);
        }
    }

    /// As [`Held::release`], of the slot that the thread keeps: nothing takes it out of its hands while the run lasts.
    ///
    /// # Safety
    /// As [`Held::release`]; [`Thread::take_kept`] gave it, to `thread`.
    #[inline(always)]
    pub(crate) unsafe fn release_kept(self, thread: &ThreadEntry) {
        // SAFETY: the caller's promise.
        unsafe { self.finish(thread, true) };
    }

    /// The thread that holds it.
    #[inline(always)]
    fn thread<'a>(&self) -> &'a ThreadEntry {
        // SAFETY: the slot is held, so its memory is this thread's, whose entry is in a table that stays, none of it at 0.
        unsafe {
            let entry = (*self.area).thread.load(Relaxed) as *const ThreadEntry;
            core::hint::assert_unchecked(!entry.is_null());
            &*entry
        }
    }

    #[inline(always)]
    unsafe fn finish(self, entry: &ThreadEntry, kept: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            if entry.active.load(Relaxed) != 0 {
                let slot = &*((*self.area).slot.load(Relaxed) as *const Slot);
                end(slot);
                if !kept {
                    (*self.area).claim.store(0, Release);
                    slot.owner.store(0, Release);
                }
            }
            compiler_fence(Ordering::SeqCst);
            entry.active.store(0, Relaxed);
        }
    }
}

/// True if the run that `entry` names as active was left: see the head of this module. The present hit's frames reach from
/// `guards` to the registers at `sp`.
///
/// # Safety
/// `entry` is the calling thread's.
#[cold]
#[inline(never)]
unsafe fn left(entry: &ThreadEntry, key: u64, sp: u64, guards: *const Guards) -> bool {
    let end = |sp: u64| sp.saturating_add(size_of::<PtRegs>() as u64);
    let (then, now) = (entry.sp.load(Relaxed), sp);
    let (old, new) = (entry.guards.load(Relaxed), guards as u64);
    if old < end(now) && new < end(then) {
        return true;
    }
    let word = guard(key, old);
    [core::mem::offset_of!(Guards, low), core::mem::offset_of!(Guards, high)].into_iter().any(|at| {
        let mut found = 0u64;
        // SAFETY: eight bytes into a local.
        let ok = unsafe { read::read((&raw mut found).cast(), old.wrapping_add(at as u64), 8) };
        !ok || found != word
    })
}

/// Gives back what a slot holds in the maps of the session.
///
/// # Safety
/// In the process of `proc`; the slot is the caller's, and no program runs on it.
unsafe fn recover_maps(proc: &Proc, slot: u32) {
    // SAFETY: the table has a handle for each map, valid while programs run.
    unsafe {
        let (maps, mut records) = (proc.map_refs(), 0u32);
        for n in 0..proc.nmaps {
            // A child that was forked meanwhile leaves to its parent what is its parent's.
            if !proc.alive() {
                return;
            }
            records |= (*maps.wrapping_add(n as usize)).recover(slot).records;
        }
        if records != 0 {
            proc.shared().ring_doorbell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::nth;

    #[test]
    fn every_slot_is_tried_once_and_those_that_can_be_kept_first() {
        for (half, slots) in [(0, 5), (2, 4), (2, 5), (32, 64)] {
            for first in 0..slots {
                let tried: Vec<u32> = (0..slots).map(|n| nth(first, n, half, slots)).collect();
                assert_eq!(tried[0], first);
                assert!(first >= half || tried[..half as usize].iter().all(|s| *s < half), "{tried:?}");
                let mut all = tried;
                all.sort_unstable();
                assert!(all.into_iter().eq(0..slots));
            }
        }
    }
}
