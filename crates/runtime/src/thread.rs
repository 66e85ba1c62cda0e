//! Threads and the slots they take.
//!
//! # Invariants
//!
//! * A thread writes `sp`, `reserved` (the address of its [`Env`]) and then `active` of its entry *before* it takes the
//!   slot named there, and clears `active` *after* it has released it. So whatever a signal interrupts, the entry names
//!   every slot that the thread may hold.
//! * A slot is taken by one compare-and-swap and released by one store, by its owner, and only in the process that
//!   took it: a forked child returns from programs that its parent began, and must leave the parent's slot alone.
//!
//! * The slot table is writable by every target, so a free slot there is a hint. What makes a slot's memory exclusive is
//!   its *claim*, a word in private memory that holds the thread's key. A slot that cannot be claimed is passed over.
//!
//! # Runs that were left
//!
//! A signal handler that interrupted a program can leave it for good by `siglongjmp`. The next hit of the thread finds
//! `active` set and must tell that from a hit while the program still waits: below the handler, or, where handlers
//! switch coroutines, on any other stack. Taking the slot of a run that is not over would let two runs share memory, so
//! "left" needs a proof that the recorded frames are gone: the present hit's own frames lie over them, or the guards in
//! the recorded `Env` have been overwritten. A run that was left and whose frames nothing has touched yet costs the thread
//! its hits until something does.
//!
//! The hit that finds a run left first becomes what `sp` and `reserved` describe, then gives back what the run held: so a
//! hit that interrupts it is missed, and if it is left in turn the next one begins again.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use skep_ebpf::uapi::PtRegs;

use crate::env::Env;
use crate::session::{Control, Proc, ThreadEntry, owner_word};
use crate::{read, sys};

/// Entries looked at before a thread is given up: the table is full around its place.
const PROBES: u32 = 128;
/// Set in a key, and in bit 43 of an owner word, that is made from a thread id.
const BY_TID: u64 = 1 << 63;

/// Why a thread cannot run a program now.
pub(crate) enum Refusal {
    /// It runs one already, or there is no room for its entry.
    Missed,
    /// All slots are taken.
    NoSlot,
}

/// A slot that the calling thread holds.
pub(crate) struct Held<'a> {
    proc: &'a Proc,
    entry: &'a ThreadEntry,
    pub(crate) slot: u32,
}

/// What identifies the calling thread: its TLS base, or its id.
///
/// # Safety
/// `proc.fsgsbase` says truly whether the instruction may be used.
#[inline]
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
fn owner(proc: &Proc, key: u64) -> u64 {
    if key & BY_TID == 0 {
        owner_word(proc.index, key)
    } else {
        owner_word(proc.index, 0) | 1 << 43 | (key & 0xffff_ffff)
    }
}

/// The guard that an [`Env`] of thread `key` at this address carries.
fn guard(key: u64, env: u64) -> u64 {
    key.rotate_left(32) ^ env ^ 0x736b_6570_6775_6172
}

/// The entry of thread `key`, made if there is none.
///
/// # Safety
/// In the process of `proc`.
#[inline]
unsafe fn entry<'a>(proc: &'a Proc, control: &Control, key: u64) -> Option<&'a ThreadEntry> {
    let mask = proc.nthreads.wrapping_sub(1);
    let mut at = ((key >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    for _ in 0..PROBES.min(proc.nthreads) {
        // SAFETY: `nthreads` is a power of two, so the masked index is in the table.
        let entry = unsafe { proc.thread(at & mask) };
        let found = entry.key.load(Relaxed);
        if found == key {
            return Some(entry);
        }
        if found == 0 {
            match entry.key.compare_exchange(0, key, AcqRel, Relaxed) {
                Ok(_) => {
                    // Threads start at different slots.
                    entry.last.store(at.checked_rem(control.nslots).unwrap_or(0), Relaxed);
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

/// Takes a slot for the calling thread. `sp` is the lowest address of the probed function's stack that the hit leaves
/// alone; `env`, which is on this thread's stack below it, gets the guards.
///
/// # Safety
/// In the process of `proc`; `env` lives until the slot is released.
#[inline]
pub(crate) unsafe fn take<'a>(proc: &'a Proc, sp: u64, env: *mut Env) -> Result<Held<'a>, Refusal> {
    // SAFETY: the caller is in the process of `proc`.
    unsafe {
        let (control, shared) = (proc.control(), proc.shared());
        let key = key(proc);
        let me = owner(proc, key);
        let entry = entry(proc, control, key).ok_or(Refusal::Missed)?;
        let run_was_left = entry.active.load(Relaxed) != 0;
        if run_was_left && !left(entry, key, sp, env) {
            return Err(Refusal::Missed);
        }
        let guard = guard(key, env as u64);
        core::ptr::write_volatile(&raw mut (*env).guard_low, guard);
        core::ptr::write_volatile(&raw mut (*env).guard_high, guard);
        if run_was_left {
            // While the two do not belong together the guards alone count.
            entry.sp.store(0, Relaxed);
            compiler_fence(Ordering::SeqCst);
            entry.reserved.store(env as u64, Relaxed);
            compiler_fence(Ordering::SeqCst);
            entry.sp.store(sp, Relaxed);
            // A hit in a signal handler here may have done it all until a moment ago.
            let active = entry.active.load(Relaxed);
            if active != 0 {
                recover(proc, entry, active - 1, key, me);
            }
        }

        let mut index = entry.last.load(Relaxed);
        if index >= control.nslots {
            index = 0;
        }
        // A hit in a signal handler here may write the same words; from the moment that they are seen unchanged it gives up.
        loop {
            entry.reserved.store(env as u64, Relaxed);
            entry.sp.store(sp, Relaxed);
            compiler_fence(Ordering::SeqCst);
            entry.active.store(index + 1, Relaxed);
            compiler_fence(Ordering::SeqCst);
            if entry.reserved.load(Relaxed) == env as u64 {
                break;
            }
        }

        for _ in 0..control.nslots {
            if let Some(slot) = shared.slot(control, index)
                && slot.owner.load(Relaxed) == 0
            {
                entry.active.store(index + 1, Relaxed);
                // A signal handler on this thread is the only one to see the order.
                compiler_fence(Ordering::SeqCst);
                if slot.owner.compare_exchange(0, me, AcqRel, Relaxed).is_ok() {
                    if claim(proc, index).compare_exchange(0, key, AcqRel, Relaxed).is_ok() {
                        slot.taken.store(slot.taken.load(Relaxed).wrapping_add(1), Release);
                        entry.last.store(index, Relaxed);
                        return Ok(Held { proc, entry, slot: index });
                    }
                    // Another target has freed the slot of a run in this process.
                    slot.owner.store(0, Release);
                }
            }
            index = if index + 1 < control.nslots { index + 1 } else { 0 };
        }
        compiler_fence(Ordering::SeqCst);
        entry.active.store(0, Relaxed);
        Err(Refusal::NoSlot)
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

impl Held<'_> {
    /// Gives the slot back.
    ///
    /// # Safety
    /// In the process that took it, or in a child forked since.
    #[inline]
    pub(crate) unsafe fn release(self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.proc.alive()
                && let Some(slot) = self.proc.shared().slot(self.proc.control(), self.slot)
            {
                claim(self.proc, self.slot).store(0, Release);
                slot.owner.store(0, Release);
            }
        }
        compiler_fence(Ordering::SeqCst);
        self.entry.active.store(0, Relaxed);
    }
}

/// True if the run that `entry` names as active was left: see the head of this module. The present hit's frames reach from
/// `env` to the registers at `sp`.
///
/// # Safety
/// `entry` is the calling thread's.
#[cold]
#[inline(never)]
unsafe fn left(entry: &ThreadEntry, key: u64, sp: u64, env: *const Env) -> bool {
    let end = |sp: u64| sp.saturating_add(size_of::<PtRegs>() as u64);
    let (then, now) = (entry.sp.load(Relaxed), sp);
    let (old, new) = (entry.reserved.load(Relaxed), env as u64);
    if old < end(now) && new < end(then) {
        return true;
    }
    let env = old;
    let guard = guard(key, env);
    [core::mem::offset_of!(Env, guard_low), core::mem::offset_of!(Env, guard_high)].into_iter().any(|at| {
        let mut found = 0u64;
        // SAFETY: eight bytes into a local.
        let ok = unsafe { read::read((&raw mut found).cast(), env.wrapping_add(at as u64), 8) };
        !ok || found != guard
    })
}

/// Gives back what a run that was left still held.
///
/// # Safety
/// The run on slot `index` was begun by this thread, and left.
#[cold]
unsafe fn recover(proc: &Proc, entry: &ThreadEntry, index: u32, key: u64, me: u64) {
    // SAFETY: in the process of `proc`; a claim by this thread says that the area is still that run's.
    unsafe {
        if let Some(slot) = proc.shared().slot(proc.control(), index) {
            let claim = claim(proc, index);
            if claim.load(Acquire) == key {
                (*proc.area(index)).nreserved = 0; // the maps tell what was reserved
                (*proc.area(index)).lock = 0; // others see that its holder is gone
                if slot.owner.load(Acquire) == me {
                    recover_maps(proc, index);
                }
                claim.store(0, Release);
            }
            if slot.owner.load(Acquire) == me {
                slot.owner.store(0, Release);
            }
        }
    }
    compiler_fence(Ordering::SeqCst);
    entry.active.store(0, Relaxed);
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
