//! What a session has counted.

use std::ops::AddAssign;
use std::sync::atomic::Ordering;

use skep_runtime::session::LinkCount;

use super::{Link, Session};

/// Counters of a link, or of all links of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs of the program.
    pub hits: u64,
    /// Probes that were not delivered.
    pub missed: u64,
    /// Hits that skipped the program, because it was running already.
    pub recursion_misses: u64,
    /// Hits that found no vCPU slot free.
    pub no_slot: u64,
    /// Runs that returned non-zero and whose sample was stored.
    pub samples: u64,
    /// Runs that returned non-zero and whose sample found no room.
    pub lost: u64,
    /// Runs that the run-time budget ended.
    pub over_budget: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.hits = self.hits.wrapping_add(other.hits);
        self.missed = self.missed.wrapping_add(other.missed);
        self.recursion_misses = self.recursion_misses.wrapping_add(other.recursion_misses);
        self.no_slot = self.no_slot.wrapping_add(other.no_slot);
        self.samples = self.samples.wrapping_add(other.samples);
        self.lost = self.lost.wrapping_add(other.lost);
        self.over_budget = self.over_budget.wrapping_add(other.over_budget);
    }
}

impl Counts {
    /// What one row of counters says.
    pub(crate) fn of(row: &LinkCount) -> Counts {
        Counts {
            hits: row.hits.load(Ordering::Relaxed),
            missed: row.missed.load(Ordering::Relaxed),
            recursion_misses: row.recursion_misses.load(Ordering::Relaxed),
            no_slot: row.no_slot.load(Ordering::Relaxed),
            samples: row.samples.load(Ordering::Relaxed),
            lost: row.lost.load(Ordering::Relaxed),
            over_budget: row.over_budget.load(Ordering::Relaxed),
        }
    }
}

impl Session {
    /// The counters of a link. Targets write them, so they are as true as the targets are.
    pub fn counts(&self, link: Link) -> Counts {
        self.world().counts(link.index())
    }

    /// The counters of all links of a program.
    pub fn program_counts(&self, program: usize) -> Counts {
        let mut sum = Counts::default();
        for link in self.links().iter().filter(|l| l.program() == program) {
            sum += self.counts(*link);
        }
        sum
    }
}
