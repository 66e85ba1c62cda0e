//! Runs whose time is limited. They get their budget in portions, and the clock is looked at between these: a run that needs no
//! more than the first one never asks.

use crate::clock;
use crate::env::Env;

/// Back edges, calls and helper calls between two looks at the clock.
pub(crate) const PORTION: u64 = 4096;

impl Env {
    /// Sets the limits of the run that begins; gives its first portion. `budget` is 0 for none, `nanoseconds` is not.
    pub(crate) fn limit(&mut self, budget: u64, nanoseconds: u64) -> u64 {
        let budget = if budget == 0 { u64::MAX } else { budget };
        let first = budget.min(PORTION);
        (self.time_limit, self.deadline, self.reserve) = (nanoseconds, 0, budget - first);
        first
    }

    /// The next portion of a run that has spent its last one; 0 if it is over.
    #[cold]
    pub(crate) fn refuel(&mut self) -> u64 {
        let portion = self.reserve.min(PORTION);
        if self.time_limit == 0 || portion == 0 {
            return 0;
        }
        // SAFETY: null, or the block of this process.
        let now = unsafe { clock::monotonic(self.proc) };
        if self.deadline == 0 {
            self.deadline = now.saturating_add(self.time_limit);
        } else if now >= self.deadline {
            return 0;
        }
        self.reserve -= portion;
        self.fuel = portion;
        portion
    }
}

/// [`Env::refuel`] for machine code.
///
/// # Safety
/// Called by machine code with its environment.
pub(crate) unsafe extern "sysv64" fn refuel(_: u64, _: u64, _: u64, _: u64, _: u64, env: *mut Env) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { (*env).refuel() }
}
