//! One of the processes that are traced, and which of them there are.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use skep::subsystem::attach::{AttachError, Attached, count};

use crate::places::Places;

/// How long a command must have run the same program before absent symbols are looked for again: looking ends the
/// following of `exec`.
const SETTLED: Duration = Duration::from_secs(1);

/// A traced process.
pub struct Target {
    pub pid: u32,
    /// Its number in the session.
    pub index: u32,
    /// Links that are not in place in the present image, with the reason.
    pub missing: BTreeMap<u32, AttachError>,
    /// Links that were in place at least once.
    pub placed: HashSet<u32>,
    /// Its code, when it was last looked at.
    pub places: Places,
    /// Counters of who listens that say so for us: files and offsets in them.
    pub counters: BTreeSet<(String, u64)>,
    /// The injector follows it through `exec`.
    pub followed: bool,
    /// It is known to be under a seccomp filter.
    pub confined: bool,
    /// It was forked by one that is traced.
    pub child: bool,
    /// When the present image was attached to.
    since: Instant,
}

impl Target {
    pub fn new(pid: u32, index: u32, followed: bool) -> Target {
        Target {
            pid,
            index,
            missing: BTreeMap::new(),
            placed: HashSet::new(),
            places: Places::default(),
            counters: BTreeSet::new(),
            followed,
            confined: false,
            child: false,
            since: Instant::now(),
        }
    }

    /// Notes what became of its probes.
    pub fn note(&mut self, attached: &Attached) {
        self.since = Instant::now();
        for outcome in &attached.probes {
            match &outcome.result {
                Ok(_) => {
                    self.placed.insert(outcome.link);
                    self.missing.remove(&outcome.link);
                }
                Err(error) => {
                    self.missing.insert(outcome.link, error.clone());
                }
            }
        }
    }

    /// Says to the program's own code that somebody listens at a probe, or at none of those any more. A counter that is
    /// not there is of a file that is not mapped any more.
    pub fn listen(&mut self, counters: BTreeSet<(String, u64)>) {
        for (file, offset) in self.counters.difference(&counters) {
            let _ = count(self.pid, file, *offset, -1);
        }
        for (file, offset) in counters.difference(&self.counters) {
            let _ = count(self.pid, file, *offset, 1);
        }
        self.counters = counters;
    }

    /// May absent symbols be looked for again?
    pub fn settled(&self) -> bool {
        !self.followed || self.since.elapsed() >= SETTLED
    }

    /// Is there enough of what is to be traced? Symbols that are `awaited` may be absent.
    pub fn is_worth_it(&self, awaited: bool) -> bool {
        let bearable = |e: &AttachError| (awaited && e.is_absence()) || unprobeable(e);
        self.missing.values().all(bearable) && (awaited || !self.placed.is_empty())
    }

    /// Links that were never in place.
    pub fn never(&self) -> impl Iterator<Item = (u32, &AttachError)> {
        self.missing.iter().filter(|(link, _)| !self.placed.contains(link)).map(|(link, error)| (*link, error))
    }
}

/// True if the place is there, but no probe fits.
pub fn unprobeable(error: &AttachError) -> bool {
    matches!(error, AttachError::NoJump { .. } | AttachError::Unprobeable { .. })
}

/// Numbers for processes in a session, by which the slots that they hold are known.
#[derive(Default)]
pub struct Numbers {
    free: Vec<u32>,
    next: u32,
}

impl Numbers {
    /// One that nothing has.
    pub fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Its process has let go of all slots.
    pub fn give(&mut self, number: u32) {
        self.free.push(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again() {
        let mut numbers = Numbers::default();
        assert_eq!([numbers.take(), numbers.take(), numbers.take()], [0, 1, 2]);
        numbers.give(1);
        assert_eq!([numbers.take(), numbers.take()], [1, 3]);
    }

    #[test]
    fn what_is_worth_it() {
        let absent = AttachError::NoModule { pid: 1, module: "m".into(), near: Vec::new() };
        let no_jump = AttachError::Unprobeable { symbol: "s".into(), module: "m".into(), reason: "r".into() };
        let mut target = Target::new(1, 0, false);
        assert!(!target.is_worth_it(false), "nothing is in place");
        target.missing.insert(0, absent);
        assert!(target.is_worth_it(true) && !target.is_worth_it(false));
        target.missing = BTreeMap::from([(0, no_jump)]);
        assert!(!target.is_worth_it(false), "the only place takes no probe");
        target.placed.insert(1);
        assert!(target.is_worth_it(false));
        assert_eq!(target.never().count(), 1);
    }
}
