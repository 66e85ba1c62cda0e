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
//! # Runs that were left
//!
//! A signal handler that interrupted a program can leave it for good by `siglongjmp`. The next hit of the thread finds
//! `active` set and must tell that from a hit inside the handler, while the program still waits below. Taking the slot
//! of a run that is not over would let two runs share a stack, so each answer "left" is a proof:
//!
//! | recorded stack pointer | now | left if |
//! |---|---|---|
//! | same stack | | the present one is at or above the recorded one: the frame is gone |
//! | on the alternate stack | not on it | always: handlers run to their end there |
//! | anything | anything | the guards in the recorded `Env` have been overwritten |

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{Ordering, compiler_fence};

use crate::env::{Env, SlotArea};
use crate::session::{Control, Proc, ThreadEntry, owner_word};
use crate::{read, sys};

/// Entries looked at before a thread is given up: the table is full around its place.
const PROBES: u32 = 128;
/// Set in a key, and in bit 43 of an owner word, that is made from a thread id.
const BY_TID: u64 = 1 << 63;
/// Stacks are smaller than this; farther apart, two stack pointers belong to different stacks.
const STACK_SPAN: u64 = 16 << 20;

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
        let active = entry.active.load(Relaxed);
        if active != 0 {
            if !left(entry, key, sp) {
                return Err(Refusal::Missed);
            }
            recover(proc, entry, active - 1, me);
        }

        let guard = guard(key, env as u64);
        core::ptr::write_volatile(&raw mut (*env).guard_low, guard);
        core::ptr::write_volatile(&raw mut (*env).guard_high, guard);
        entry.reserved.store(env as u64, Relaxed);
        entry.sp.store(sp, Relaxed);

        let mut index = entry.last.load(Relaxed);
        for _ in 0..control.nslots {
            if index >= control.nslots {
                index = 0;
            }
            if let Some(slot) = shared.slot(control, index)
                && slot.owner.load(Relaxed) == 0
            {
                entry.active.store(index + 1, Relaxed);
                // A signal handler on this thread is the only one to see the order.
                compiler_fence(Ordering::SeqCst);
                if slot.owner.compare_exchange(0, me, AcqRel, Relaxed).is_ok() {
                    slot.taken.store(slot.taken.load(Relaxed).wrapping_add(1), Release);
                    entry.last.store(index, Relaxed);
                    return Ok(Held { proc, entry, slot: index });
                }
            }
            index += 1;
        }
        compiler_fence(Ordering::SeqCst);
        entry.active.store(0, Relaxed);
        Err(Refusal::NoSlot)
    }
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
                slot.owner.store(0, Release);
            }
        }
        compiler_fence(Ordering::SeqCst);
        self.entry.active.store(0, Relaxed);
    }
}

/// True if the run that `entry` names as active was left: see the head of this module. `sp` is the present stack pointer.
///
/// # Safety
/// `entry` is the calling thread's.
#[cold]
#[inline(never)]
unsafe fn left(entry: &ThreadEntry, key: u64, sp: u64) -> bool {
    let then = entry.sp.load(Relaxed);
    let (low, high) = sys::alternate_stack();
    let on_alternate = |sp: u64| sp >= low && sp < high;
    match (on_alternate(then), on_alternate(sp)) {
        (true, false) => return true,
        (a, b) if a == b && sp >= then && sp - then < STACK_SPAN => return true,
        _ => {}
    }
    let env = entry.reserved.load(Relaxed);
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
unsafe fn recover(proc: &Proc, entry: &ThreadEntry, index: u32, me: u64) {
    // SAFETY: in the process of `proc`; if the slot is still this thread's, so is its area.
    unsafe {
        if let Some(slot) = proc.shared().slot(proc.control(), index)
            && slot.owner.load(Acquire) == me
        {
            SlotArea::discard_reserved(proc.area(index));
            slot.owner.store(0, Release);
        }
    }
    compiler_fence(Ordering::SeqCst);
    entry.active.store(0, Relaxed);
}
