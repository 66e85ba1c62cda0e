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
//! * A thread keeps some entries to itself, so that a hit costs no locked instruction unless many functions are under way. A
//!   kept entry (its `home` names the thread and a place there, and that place names it) is in use, or its bit in the thread's
//!   `rets_free` is set; it is not on the list. The bits are changed by the thread alone, by single instructions, which its
//!   signal handlers cannot split. Who frees an entry that another thread keeps, because the function has gone from thread
//!   to thread or was left, takes it out of its home. Only entries of the lower half are kept, so threads that have ended
//!   cannot have them all.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::compiler_fence;

use crate::session::{KEPT_RETS, NONE, Proc, RetEntry, STUB_SIZE, Site, ThreadEntry};
use crate::thread::{STANDS, Thread};
use crate::{own, read};

/// Bytes of the call at the start of a stub.
pub(crate) const STUB_CALL: u64 = 6;
/// Entries that one hit looks at when all are in use.
const SWEEP: u32 = 128;

/// Takes the entry that the thread keeps in its first place for the function of `site`, entered with the stack pointer `sp` at
/// its return address `ret`; `None` if that is in use.
///
/// # Safety
/// In the process of `proc`, or in a child forked from it.
#[inline(always)]
pub(crate) unsafe fn take_first(proc: &Proc, thread: &ThreadEntry, site: &Site, sp: u64, ret: u64) -> Option<u32> {
    let [first, ..] = &thread.rets;
    if !own::clear_first(&thread.rets_free) {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { begin(proc, first.load(Relaxed).wrapping_sub(1), site, sp, ret) }
}

/// Takes an entry, as [`take_first`] does.
///
/// # Safety
/// As [`take_first`].
pub(crate) unsafe fn take(proc: &Proc, thread: &ThreadEntry, site: &Site, sp: u64, ret: u64) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        let index = kept(thread).or_else(|| pop(proc)).or_else(|| {
            sweep(proc);
            pop(proc)
        });
        begin(proc, index?, site, sp, ret)
    }
}

/// Fills in an entry that was taken.
///
/// # Safety
/// As [`take_first`].
#[inline(always)]
unsafe fn begin(proc: &Proc, index: u32, site: &Site, sp: u64, ret: u64) -> Option<u32> {
    // SAFETY: the caller's promise.
    let entry = unsafe { proc.ret_entry(index) }?;
    entry.ret.store(ret, Relaxed);
    entry.body.store(site.body, Relaxed);
    entry.sp.store(sp, Relaxed);
    entry.site.store(&raw const *site as u64, Relaxed);
    entry.used.store(entry.used.load(Relaxed) | 1, Release);
    Some(index)
}

/// Takes one of the entries that the thread keeps.
fn kept(thread: &ThreadEntry) -> Option<u32> {
    thread.rets.iter().enumerate().find_map(|(place, kept)| {
        let free = thread.rets_free.load(Relaxed);
        let taken = free & 1 << place != 0 && own::swap(&thread.rets_free, free, free & !(1 << place));
        taken.then(|| kept.load(Relaxed).wrapping_sub(1))
    })
}

/// The calling thread, if it is the one that keeps the entry, which is in use by a function that has returned.
///
/// # Safety
/// In the process of the entry.
#[inline(always)]
pub(crate) unsafe fn thread<'a>(entry: &RetEntry) -> Option<Thread<'a>> {
    let home = entry.home.load(Relaxed) & !(KEPT_RETS as u64 - 1);
    // SAFETY: a home is an entry of the process's table. Only threads whose TLS base stands at the base have one, and it was
    // on this stack that the function was entered.
    unsafe { Thread::known((home as *const ThreadEntry).as_ref()?) }
}

/// Frees an entry that this thread keeps.
#[inline(always)]
pub(crate) fn free_own(thread: &ThreadEntry, entry: &RetEntry) {
    entry.used.store(entry.used.load(Relaxed).wrapping_add(1), Release);
    own::set(&thread.rets_free, 1 << (entry.home.load(Relaxed) & (KEPT_RETS as u64 - 1)));
}

/// What stands in [`RetEntry::home`] of an entry that the thread keeps in a place.
#[inline(always)]
fn home(thread: &ThreadEntry, place: usize) -> u64 {
    &raw const *thread as u64 + place as u64
}

/// Frees an entry whose function has returned. No sweep takes it meanwhile, since it is not abandoned.
///
/// # Safety
/// As [`take_first`], and the entry is in use by the caller's function.
pub(crate) unsafe fn free(proc: &Proc, thread: Option<&ThreadEntry>, index: u32, entry: &RetEntry) {
    entry.used.store(entry.used.load(Relaxed).wrapping_add(1), Release);
    if let Some(thread) = thread {
        let place = entry.home.load(Relaxed).wrapping_sub(home(thread, 0));
        if place < KEPT_RETS as u64 {
            return own::set(&thread.rets_free, 1 << place);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { give(proc, thread, index, entry) };
}

/// Gives a free entry that this thread does not keep to it, or puts it on the list.
///
/// # Safety
/// As [`take_first`], and nobody else frees the entry.
#[inline(never)]
unsafe fn give(proc: &Proc, thread: Option<&ThreadEntry>, index: u32, entry: &RetEntry) {
    let homed = |kept: u32, home: u64| {
        // SAFETY: the caller's promise.
        let kept = kept.checked_sub(1).and_then(|kept| unsafe { proc.ret_entry(kept) });
        kept.is_some_and(|e| e.home.load(Relaxed) == home)
    };
    if let Some(thread) = thread.filter(|t| index < proc.nret / 2 && t.tls.load(Relaxed) == STANDS) {
        for (place, kept) in thread.rets.iter().enumerate() {
            let (was, home) = (kept.load(Relaxed), home(thread, place));
            if homed(was, home) {
                continue;
            }
            // In this order a signal handler in between sees the place as free, or as taken.
            entry.place.store(1 << place, Relaxed);
            entry.home.store(home, Relaxed);
            compiler_fence(SeqCst);
            if own::swap(kept, was, index + 1) {
                return own::set(&thread.rets_free, 1 << place);
            }
        }
    }
    entry.home.store(0, Relaxed);
    // SAFETY: the caller's promise.
    unsafe { push(proc, index, entry) };
}

/// Puts a free entry on the list.
///
/// # Safety
/// As [`take_first`], and nobody else frees the entry.
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
/// As [`take_first`].
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
/// As [`take_first`].
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
                    entry.home.store(0, Relaxed);
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
