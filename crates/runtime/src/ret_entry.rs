//! Return entries: one per activation of a function with a return probe.
//!
//! Entries are taken from a free list, not from a stack, so that coroutines that return in any order pair rightly.
//!
//! # Invariants
//!
//! * `used` counts: odd while the entry is in use, and the fields are written before it becomes odd. Who makes it even
//!   frees the entry: its function's return, or a sweep, by compare-and-swap, if the function will not return.
//! * While an entry is in use the eight bytes at its `sp` hold one of: the real return address (until the stub's call
//!   is executed), the address behind that call (while the function runs), the entry's number (which the stub pushes
//!   before it calls [`ret`](crate::hit::ret)). Anything else there, or nothing, means that the function was left
//!   by `longjmp`, an exception or the end of its thread, and the entry may be taken again.
//! * A thread keeps one free entry to itself, so that a function that calls no other probed one costs no locked
//!   instruction. It is taken and put by single instructions, which a signal handler of the same thread cannot split. Only
//!   entries of the lower half are kept, so threads that have ended cannot have them all.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::read;
use crate::session::{NONE, Proc, RetEntry, STUB_SIZE, Site, ThreadEntry};

/// Bytes of the call at the start of a stub.
pub(crate) const STUB_CALL: u64 = 6;
/// Entries that one hit looks at when all are in use.
const SWEEP: u32 = 128;

/// Takes an entry for the function of `site`, entered with the stack pointer `sp` at its return address `ret`.
///
/// # Safety
/// In the process of `proc`, or in a child forked from it.
#[inline(always)]
pub(crate) unsafe fn take(proc: &Proc, thread: &ThreadEntry, site: &Site, sp: u64, ret: u64) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        let kept = thread.ret.load(Relaxed);
        let index = match kept.checked_sub(1) {
            Some(index) if swap(&thread.ret, kept, 0) => index,
            _ => take_any(proc)?,
        };
        let entry = proc.ret_entry(index)?;
        entry.ret.store(ret, Relaxed);
        entry.body.store(site.body, Relaxed);
        entry.sp.store(sp, Relaxed);
        entry.site.store(&raw const *site as u64, Relaxed);
        entry.used.store(entry.used.load(Relaxed) | 1, Release);
        Some(index)
    }
}

/// Takes an entry that no thread keeps.
///
/// # Safety
/// As [`take`].
#[inline(never)]
unsafe fn take_any(proc: &Proc) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        pop(proc).or_else(|| {
            sweep(proc);
            pop(proc)
        })
    }
}

/// A compare-and-swap between a thread and its own signal handlers: one instruction, but not locked.
#[inline(always)]
fn swap(word: &AtomicU32, old: u32, new: u32) -> bool {
    let done: u8;
    // SAFETY: the word is valid; the instruction writes it, the flags, and eax.
    unsafe {
        core::arch::asm!(
            "cmpxchg dword ptr [{word}], {new:e}",
            "sete {done}",
            word = in(reg) word.as_ptr(), new = in(reg) new, done = out(reg_byte) done, inout("eax") old => _,
            options(nostack),
        );
    }
    done != 0
}

/// Frees an entry whose function has returned. No sweep takes it meanwhile, since it is not abandoned.
///
/// # Safety
/// As [`take`], and the entry is in use by the caller's function.
#[inline(always)]
pub(crate) unsafe fn free(proc: &Proc, thread: Option<&ThreadEntry>, index: u32, entry: &RetEntry) {
    entry.used.store(entry.used.load(Relaxed).wrapping_add(1), Release);
    if index < proc.nret / 2
        && let Some(thread) = thread
        && swap(&thread.ret, 0, index + 1)
    {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { push(proc, index, entry) };
}

/// Puts a free entry on the list.
///
/// # Safety
/// As [`take`], and nobody else frees the entry.
#[inline(never)]
unsafe fn push(proc: &Proc, index: u32, entry: &RetEntry) {
    // SAFETY: the caller's promise.
    let free = unsafe { &proc.ret_head().free };
    let mut head = free.load(Acquire);
    loop {
        entry.next.store(head as u32, Relaxed);
        match free.compare_exchange_weak(head, tagged(head, index.wrapping_add(1)), AcqRel, Acquire) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
}

/// The list head that follows `head`, naming this entry.
fn tagged(head: u64, entry: u32) -> u64 {
    ((head >> 32).wrapping_add(1)) << 32 | u64::from(entry)
}

/// Takes an entry off the free list, or one that was never used.
///
/// # Safety
/// As [`take`].
unsafe fn pop(proc: &Proc) -> Option<u32> {
    // SAFETY: the caller's promise.
    let list = unsafe { proc.ret_head() };
    let mut head = list.free.load(Acquire);
    while let Some(index) = (head as u32).checked_sub(1) {
        // SAFETY: as above.
        let next = unsafe { proc.ret_entry(index) }?.next.load(Relaxed);
        match list.free.compare_exchange_weak(head, tagged(head, next), AcqRel, Acquire) {
            Ok(_) => return Some(index),
            Err(now) => head = now,
        }
    }
    let fresh = |n| if n < proc.nret { Some(n + 1) } else { None };
    list.fresh.fetch_update(AcqRel, Relaxed, fresh).ok()
}

/// Frees entries whose functions were left without a return.
///
/// # Safety
/// As [`take`].
#[cold]
unsafe fn sweep(proc: &Proc) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut index = proc.ret_head().sweep.fetch_add(SWEEP, Relaxed).checked_rem(proc.nret).unwrap_or(NONE);
        for _ in 0..SWEEP.min(proc.nret) {
            if let Some(entry) = proc.ret_entry(index) {
                let used = entry.used.load(Acquire);
                if used & 1 == 1
                    && abandoned(proc, index, entry)
                    && entry.used.compare_exchange(used, used.wrapping_add(1), AcqRel, Relaxed).is_ok()
                {
                    push(proc, index, entry);
                }
            }
            index = if index + 1 < proc.nret { index + 1 } else { 0 };
        }
    }
}

/// True if the stack no longer holds what it must while the entry is in use.
///
/// # Safety
/// In the process of the entry.
unsafe fn abandoned(proc: &Proc, index: u32, entry: &RetEntry) -> bool {
    let mut found = 0u64;
    // SAFETY: eight bytes into a local.
    if !unsafe { read::read((&raw mut found).cast(), entry.sp.load(Relaxed), 8) } {
        return true;
    }
    found != entry.ret.load(Relaxed)
        && found != u64::from(index)
        && found != proc.stubs.wrapping_add(u64::from(index) * STUB_SIZE).wrapping_add(STUB_CALL)
}

/// The real return address where `address` is one that a stub left on the stack; else `address` itself.
///
/// # Safety
/// In the process of `proc`.
pub(crate) unsafe fn real_return(proc: &Proc, address: u64) -> u64 {
    let distance = address.wrapping_sub(proc.stubs).wrapping_sub(STUB_CALL);
    if distance.is_multiple_of(STUB_SIZE)
        && let Ok(index) = u32::try_from(distance / STUB_SIZE)
        // SAFETY: the caller's promise.
        && let Some(entry) = unsafe { proc.ret_entry(index) }
    {
        return entry.ret.load(Relaxed);
    }
    address
}
