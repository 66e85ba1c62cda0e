//! Hits within hits, on one thread.
//!
//! As the kernel was measured: a probe hit while a probe's programs run is not delivered; while an event's programs run,
//! those of other events and of multi-links are skipped; programs of raw tracepoints keep only themselves out.

use std::cell::Cell;

/// What is being handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// A probe of a kprobe event.
    Kprobe,
    /// A probe of a uprobe event: it interrupts nothing that is probed.
    Uprobe,
    /// A tracepoint.
    Tracepoint,
    /// A probe of a multi-link.
    Multi,
    /// A raw tracepoint.
    Raw,
}

#[derive(Clone, Copy, Default)]
struct State {
    kprobe: bool,
    active: u32,
}

thread_local! {
    static STATE: Cell<State> = const { Cell::new(State { kprobe: false, active: 0 }) };
}

/// What becomes of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nesting {
    /// It is delivered.
    Deliver,
    /// It is a hit, but its programs are skipped.
    Skip,
    /// It is not delivered.
    Miss,
}

/// Takes back what [`enter`] set.
#[derive(Debug)]
pub struct Guard(State);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kprobe {} active {}", self.kprobe, self.active)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A thread that is on its way out has no state any more, and no hits.
        let _ = STATE.try_with(|s| s.set(self.0));
    }
}

/// The thread handles a hit from now on, until the guard goes.
pub fn enter(what: Inside) -> (Nesting, Guard) {
    let old = STATE.try_with(Cell::get).unwrap_or_default();
    let (nesting, new) = match what {
        Inside::Kprobe if old.kprobe => (Nesting::Miss, old),
        Inside::Kprobe if old.active > 0 => (Nesting::Skip, State { kprobe: true, ..old }),
        Inside::Kprobe => (Nesting::Deliver, State { kprobe: true, active: 1 }),
        Inside::Tracepoint | Inside::Multi if old.active > 0 => (Nesting::Skip, old),
        Inside::Tracepoint | Inside::Multi => (Nesting::Deliver, State { active: 1, ..old }),
        Inside::Uprobe | Inside::Raw => (Nesting::Deliver, old),
    };
    let _ = STATE.try_with(|s| s.set(new));
    (nesting, Guard(old))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(outer: Inside, inner: Inside) -> Nesting {
        let (first, _guard) = enter(outer);
        assert_eq!(first, Nesting::Deliver);
        enter(inner).0
    }

    /// The table "nested hits", row by row.
    #[test]
    fn as_measured() {
        use Inside::*;
        use Nesting::*;
        for (outer, inner, expected) in [
            (Kprobe, Kprobe, Miss),
            (Tracepoint, Kprobe, Skip),
            (Raw, Kprobe, Deliver),
            (Tracepoint, Tracepoint, Skip),
            (Multi, Multi, Skip),
            (Multi, Kprobe, Skip),
            (Uprobe, Kprobe, Deliver),
            (Kprobe, Multi, Skip),
        ] {
            assert_eq!(within(outer, inner), expected, "{inner:?} within {outer:?}");
        }
        // And all is as before.
        assert_eq!(enter(Kprobe).0, Deliver);
        assert_eq!(within(Tracepoint, Raw), Deliver);
    }
}
