//! Threads and the slots they take.
//!
//! # Invariants
//!
//! * A thread runs one program at a time, though its contexts come in any order: signal handlers nest, and handlers that switch
//!   coroutines resume what was interrupted before what interrupted it. So a run *has* the thread: it puts the address of its
//!   [`Guards`] into the entry's `guards` in place of a 0, by one instruction, and puts the 0 back when all else is done.
//! * Who has the thread writes `active` *before* it takes the slot named there, and clears it *after* it has released it; where
//!   `active` is 0 the run is on the slot that the thread keeps. So whatever a signal interrupts, the entry names every slot
//!   that the thread may be running on.
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
//! And threads that run at the same time have bases of their own, as those of all C libraries do: two that a bare `clone` made with one base
//! (`CLONE_VM` without `CLONE_SETTLS` or `CLONE_VFORK`) would be taken for one that is in two places, and could share a slot.
//!
//! # Kept slots
//!
//! Taking a slot costs two locked instructions, more than all else that a hit does. So a thread keeps the slot of its last
//! run, if it is one of the lower half of the table: others have the upper half. Between runs such a slot has an owner
//! and a claim, and an even `taken`. Its thread begins a run by instructions that are not locked, `guards` first, and then looks
//! whether the claim is still its own. A thread that finds no free slot takes one that another thread of the process keeps: it changes
//! the claim, has `membarrier` make all processors agree, and only then looks whether a run has that thread: if so,
//! it may have seen the old claim, and gets it back. Likewise the controller, before it looks whether slots are in use.
//!
//! # Runs that were left
//!
//! A signal handler that interrupted a program can leave it for good by `siglongjmp`. The next hit of the thread finds that a run
//! has it and must tell that from a hit while the program still waits: below the handler, or, where handlers
//! switch coroutines, on any other stack. Taking the slot of a run that is not over would let two runs share memory, so
//! "left" needs a proof that the recorded frames are gone: the present hit's own frames lie over them, or the [`Guards`]
//! there have been overwritten. A run that was left and whose frames nothing has touched yet costs the thread
//! its hits until something does.
//!
//! The hit that finds a run left first takes the thread from it, then gives back what the run held: so a
//! hit that interrupts it is missed, and if it is left in turn the next one begins again.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use skep_ebpf::uapi::PtRegs;

use crate::env::{Env, SlotArea};
use crate::session::{Proc, Slot, ThreadEntry, owner_proc, owner_word};
use crate::{own, read, sys};

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
    /// Address of the registers of the hit, where its frames end.
    sp: u64,
    /// See [`Guards::word`].
    word: u64,
}

impl Guards {
    /// Where its words are.
    pub(crate) const SP: usize = core::mem::offset_of!(Guards, sp);
    /// See above.
    pub(crate) const WORD: usize = core::mem::offset_of!(Guards, word);

    /// What stands beside the address of the registers in guards at `address`, of the thread `key`. (An address that is another's
    /// belongs to guards that have been overwritten: it does not matter what it says.)
    #[inline(always)]
    fn word(key: u64, address: u64) -> u64 {
        key ^ address
    }

    /// These are those of a run of the thread `key`, with the registers at `sp`.
    ///
    /// # Safety
    /// They are the caller's.
    #[inline(always)]
    unsafe fn set(this: *mut Guards, key: u64, sp: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            core::ptr::write_volatile(&raw mut (*this).sp, sp);
            core::ptr::write_volatile(&raw mut (*this).word, Guards::word(key, this as u64));
        }
    }

    /// Where these guards lie, others do no more.
    ///
    /// # Safety
    /// They are the caller's.
    #[inline(always)]
    pub(crate) unsafe fn clear(this: *mut Guards) {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::write_volatile(&raw mut (*this).word, 0) };
    }

    /// True if the run with guards at `old` was left: see the head of this module. The present hit's frames reach from `new`,
    /// its own guards, which are not set, to the registers at `sp`.
    #[cold]
    #[inline(never)]
    fn left(old: u64, key: u64, sp: u64, new: *const Guards) -> bool {
        let mut found = Guards { sp: 0, word: 0 };
        // SAFETY: as many bytes into a local.
        if !unsafe { read::read((&raw mut found).cast(), old, size_of::<Guards>()) } {
            return true;
        }
        let end = |sp: u64| sp.saturating_add(size_of::<PtRegs>() as u64);
        found.word != Guards::word(key, old) || old < end(sp) && (new as u64) < end(found.sp)
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
    // A thread without TLS has no base of its own; its id is 0 if it cannot be asked.
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
        // One that cannot be told from others.
        if key == BY_TID {
            return None;
        }
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

    /// Takes a slot. `sp` is the lowest address of the probed function's stack that the hit leaves alone; `guards` are on this
    /// thread's stack below it.
    ///
    /// # Safety
    /// In the process of `proc`, by this thread; `guards` live until the slot is released.
    pub(crate) unsafe fn take(self, proc: &'a Proc, sp: u64, guards: *mut Guards) -> Result<Held, Refusal> {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(held) = self.take_kept(sp, guards) {
                return Ok(held);
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
        unsafe {
            Guards::set(guards, self.key, sp);
            if !self.instead_of(0, guards) {
                return None;
            }
            let area = self.entry.kept.load(Relaxed) as *mut SlotArea;
            if !area.is_null() && self.begin_on(area) {
                return Some(Held { area });
            }
        }
        self.leave();
        None
    }

    /// Has the run with these guards have the thread in place of another, or of none: `old` is 0. False if it was another.
    #[inline(always)]
    fn instead_of(self, old: u64, guards: *const Guards) -> bool {
        own::exchange(&self.entry.guards, old, guards as u64)
    }

    /// No run has the thread any more.
    #[inline(always)]
    fn leave(self) {
        compiler_fence(Ordering::SeqCst);
        self.entry.guards.store(0, Relaxed);
    }

    /// Begins a run on the slot that the thread kept, if it still does.
    ///
    /// # Safety
    /// As [`Thread::take_kept`]; the thread kept it, and the run has the thread.
    #[inline(always)]
    unsafe fn begin_on(self, area: *mut SlotArea) -> bool {
        // SAFETY: the caller's promise; what a thread keeps is the memory of a slot, which knows where that is.
        unsafe {
            let slot = &*((*area).slot.load(Relaxed) as *const Slot);
            let still =
                (*area).claim.load(Acquire) == self.key && slot.owner.load(Relaxed) == (*area).owner.load(Relaxed);
            if still {
                begin(slot);
            }
            still
        }
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
            if !proc.alive() {
                return MISSED;
            }
            let (control, shared) = (proc.control(), proc.shared());
            let me = owner(proc, key);
            Guards::clear(guards);
            let old = entry.guards.load(Relaxed);
            if old != 0 && !Guards::left(old, key, sp, guards) {
                return MISSED;
            }
            Guards::set(guards, key, sp);
            if !self.instead_of(old, guards) {
                // Another context of this thread came meanwhile.
                Guards::clear(guards);
                return MISSED;
            }
            if old != 0 {
                self.recover(proc, me);
            }
            // What it kept, another thread has taken, or is about to; or a hit in between has found one, which is as good as any.
            let area = entry.kept.load(Relaxed) as *mut SlotArea;
            if !area.is_null() {
                if self.begin_on(area) {
                    return area as u64;
                }
                // Who disputes it may have to give it back: it would be nobody's, if it were not kept.
                if (*area).claim.load(Acquire) & DISPUTED == 0 {
                    entry.kept.store(0, Relaxed);
                }
            }
            let mut index = entry.last.load(Relaxed);
            if index >= control.nslots {
                index = 0;
            }

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
            self.leave();
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
            let uses = || other.guards.load(Acquire) != 0;
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
    /// The run that had the thread before the caller's was left.
    #[cold]
    unsafe fn recover(self, proc: &Proc, me: u64) {
        let Thread { key, entry } = self;
        // SAFETY: in the process of `proc`; a claim by this thread says that the area is still that run's.
        unsafe {
            let kept = entry.kept.load(Relaxed) as *const SlotArea;
            let index = match entry.active.load(Relaxed) {
                0 if kept.is_null() => return,
                0 => (*kept).env.slot,
                active => active - 1,
            };
            if let Some(slot) = proc.shared().slot(proc.control(), index) {
                let claim = claim(proc, index);
                if claim.load(Acquire) == key | DISPUTED {
                    claim.store(entry.keeper.load(Relaxed), Release);
                } else if claim.load(Acquire) == key {
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
            if kept as u64 == proc.area(index) as u64 {
                entry.kept.store(0, Relaxed);
            }
        }
        compiler_fence(Ordering::SeqCst);
        entry.active.store(0, Relaxed);
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
            if !self.ends(thread) {
                return;
            }
            if thread.kept.load(Relaxed) != self.area as u64 {
                (*self.area).claim.store(0, Release);
                (*self.slot()).owner.store(0, Release);
            }
            compiler_fence(Ordering::SeqCst);
            thread.active.store(0, Relaxed);
            compiler_fence(Ordering::SeqCst);
            thread.guards.store(0, Relaxed);
        }
    }

    /// As [`Held::release`], of the slot that the thread keeps: nothing takes it out of its hands while the run lasts.
    ///
    /// # Safety
    /// As [`Held::release`]; [`Thread::take_kept`] gave it, to `thread`.
    #[inline(always)]
    pub(crate) unsafe fn release_kept(self, thread: &ThreadEntry) {
        // SAFETY: the caller's promise.
        if unsafe { self.ends(thread) } {
            compiler_fence(Ordering::SeqCst);
            thread.guards.store(0, Relaxed);
        }
    }

    /// The run is over. False in a child that was forked since: it is not the child's.
    ///
    /// # Safety
    /// As [`Held::release`].
    #[inline(always)]
    unsafe fn ends(&self, thread: &ThreadEntry) -> bool {
        let mine = thread.guards.load(Relaxed) != 0;
        if mine {
            // SAFETY: the slot is held.
            unsafe { end(&*self.slot()) };
        }
        mine
    }

    #[inline(always)]
    fn slot(&self) -> *const Slot {
        // SAFETY: the slot is held, so its memory is this thread's.
        unsafe { (*self.area).slot.load(Relaxed) as *const Slot }
    }

    /// The thread that holds it.
    #[inline(always)]
    pub(crate) fn thread<'a>(&self) -> &'a ThreadEntry {
        // SAFETY: as above, and its entry is in a table that stays, none of it at 0.
        unsafe {
            let entry = (*self.area).thread.load(Relaxed) as *const ThreadEntry;
            core::hint::assert_unchecked(!entry.is_null());
            &*entry
        }
    }
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
