//! How long who wants a lock waits for its holder.
//!
//! A holder that goes on is done within microseconds, unless it has lost its processor: then it needs one, perhaps that of who
//! waits. One that does not go on (its process is stopped, or somebody wrote the lock's word) must not stop everybody else, who may be in
//! any function of their program: so waiting in vain has a budget, for each lock and for all of the process, in memory that is
//! the process's own. Time that was not in vain is not counted.

use crate::calls;
use crate::sync::{AtomicU64, Ordering};

/// Tries of who has waited in vain too often: some 10 µs. More than [`DOUBTS`](crate::sync::DOUBTS).
const FEW: u32 = 1 << 7;
/// Tries that are spun: some 40 µs, far longer than any honest holder needs while it runs.
const SPUN: u32 = 1 << 9;
/// How long a holder that has lost its processor is waited for, in nanoseconds.
const LONG: u64 = 100_000_000;
/// The most naps of one wait, whatever the clock says.
const NAPS: u32 = 1 << 12;
/// Nanoseconds of a nap.
const NAP: u64 = 50_000;

/// Time that may be waited in vain: as a debt, in nanoseconds, that is paid off as time goes by.
struct Budget {
    /// Nanoseconds of debt for one of waiting: the share of all time that may be spent so, the other way round.
    share: u64,
    /// Nanoseconds that may be waited in vain at once.
    burst: u64,
}

/// For one lock, and those that share a place in the table with it.
const LOCK: Budget = Budget { share: 64, burst: 3 * LONG };
/// For all locks of a process.
const PROCESS: Budget = Budget { share: 8, burst: 10 * LONG };

/// When the debts are paid off.
struct Debts {
    locks: [AtomicU64; 64],
    all: AtomicU64,
}

impl Debts {
    const fn none() -> Debts {
        Debts { locks: [const { AtomicU64::new(0) }; 64], all: AtomicU64::new(0) }
    }
}

/// Those of this process.
static DEBTS: Debts = Debts::none();

impl Budget {
    fn allows(&self, paid: &AtomicU64, now: u64) -> bool {
        paid.load(Ordering::Relaxed).saturating_sub(now) <= self.share.saturating_mul(self.burst)
    }

    /// Threads that do this at once count as one.
    fn charge(&self, paid: &AtomicU64, now: u64, spent: u64) {
        let from = paid.load(Ordering::Relaxed).max(now);
        paid.store(from.saturating_add(self.share.saturating_mul(spent)), Ordering::Relaxed);
    }
}

/// One wait for a lock.
pub(crate) struct Wait<'a> {
    lock: &'a AtomicU64,
    all: &'a AtomicU64,
    tries: u32,
    /// Since when, and until when, in nanoseconds.
    since: u64,
    until: u64,
}

impl Wait<'static> {
    /// For the lock at an address.
    pub(crate) fn new(lock: usize) -> Wait<'static> {
        Wait::with(&DEBTS, lock)
    }
}

impl<'a> Wait<'a> {
    fn with(debts: &'a Debts, lock: usize) -> Wait<'a> {
        let hash = (lock >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        // The index is below the length.
        Wait { lock: &debts.locks[hash & 63], all: &debts.all, tries: 0, since: 0, until: 0 }
    }

    /// Goes between one try and the next; false if the lock has been waited for long enough.
    #[inline]
    pub(crate) fn pause(&mut self) -> bool {
        self.tries = self.tries.saturating_add(1);
        if self.tries == FEW {
            if !calls::allowed() {
                return true;
            }
            self.since = now();
            self.until = self.since.saturating_add(LONG);
            return LOCK.allows(self.lock, self.since) && PROCESS.allows(self.all, self.since);
        }
        if self.tries < SPUN {
            core::hint::spin_loop();
            return true;
        }
        if !calls::allowed() {
            return false;
        }
        nap();
        if !calls::allowed() {
            return false;
        }
        let now = now();
        if now < self.until && self.tries < SPUN.saturating_add(NAPS) {
            return true;
        }
        let spent = now.saturating_sub(self.since);
        LOCK.charge(self.lock, now, spent);
        PROCESS.charge(self.all, now, spent);
        false
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod system {
    //! System calls without a C library; what they give back is not needed.

    const NANOSLEEP: i64 = 35;
    const CLOCK_GETTIME: i64 = 228;
    const CLOCK_MONOTONIC: usize = 1;

    /// # Safety
    /// The call may read and write what the arguments point to.
    #[inline(always)]
    unsafe fn call(number: i64, first: usize, second: usize) {
        // SAFETY: the caller's promise; nothing else is written but the registers named.
        unsafe {
            core::arch::asm!(
                "syscall",
                inlateout("rax") number => _, in("rdi") first, in("rsi") second,
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
    }

    /// Gives the processor to others, whatever their priority is.
    pub(super) fn nap() {
        let time = [0u64, super::NAP];
        // SAFETY: nanosleep(2) reads the two words.
        unsafe { call(NANOSLEEP, time.as_ptr().addr(), 0) };
    }

    /// Nanoseconds of a clock that goes on.
    pub(super) fn now() -> u64 {
        let mut time = [0u64; 2];
        // SAFETY: clock_gettime(2) writes the two words.
        unsafe { call(CLOCK_GETTIME, CLOCK_MONOTONIC, time.as_mut_ptr().expose_provenance()) };
        let [seconds, nanoseconds] = time;
        seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
mod system {
    //! A clock that goes on by naps.

    use super::{AtomicU64, NAP, Ordering};

    static CLOCK: AtomicU64 = AtomicU64::new(1);

    pub(super) fn nap() {
        (0..1 << 10).for_each(|_| core::hint::spin_loop());
        CLOCK.fetch_add(NAP, Ordering::Relaxed);
    }

    pub(super) fn now() -> u64 {
        CLOCK.load(Ordering::Relaxed)
    }
}

use system::{nap, now};

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a wait in vain takes.
    fn vain(debts: &Debts, lock: usize) -> u64 {
        let start = now();
        let mut wait = Wait::with(debts, lock);
        while wait.pause() {}
        now() - start
    }

    #[test]
    fn waits_in_vain_have_a_budget() {
        let paid = AtomicU64::new(0);
        let start = 1 << 40;
        let mut waited = 0;
        for at in (start..).step_by(LONG as usize).take(1000) {
            if LOCK.allows(&paid, at) {
                LOCK.charge(&paid, at, LONG);
                waited += LONG;
            }
        }
        let share = 1000 * LONG / LOCK.share;
        assert!((share..=share + LOCK.burst + 2 * LONG).contains(&waited), "{waited} of {share}");
    }

    #[test]
    fn a_lock_that_nobody_gives_back_costs_others_little() {
        let debts = Debts::none();
        let (stuck, other) = (0x1000, 0x1004);
        assert!(!std::ptr::eq(Wait::with(&debts, stuck).lock, Wait::with(&debts, other).lock));
        let long = (0..20).filter(|_| vain(&debts, stuck) >= LONG).count();
        assert!((3..=5).contains(&long), "{long} times in full");
        assert!(vain(&debts, other) >= LONG, "another lock is still waited for");
        let long = (0..40).filter(|n| vain(&debts, 0x2000 + n * 4) >= LONG).count();
        assert!(long <= 9, "{long} times in full, of all locks");
    }
}
