//! Running programs at a hit in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use skep_runtime::At;

use super::Attached;
use crate::front::object::ProgObject;
use crate::front::world::World;

/// What runs programs: the world, and whether statistics are counted.
#[derive(Debug)]
pub struct Runner {
    world: Arc<World>,
    stats_users: Arc<AtomicU64>,
}

/// What came of the programs of one hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Results {
    /// All of them ANDed, beginning with 1, as the kernel does it: 0 if the event is to be dropped.
    pub verdict: u32,
    /// The vCPU slot.
    pub cpu: u32,
}

impl Runner {
    /// Runs programs of a world; their time is counted while there are users of statistics.
    pub fn new(world: Arc<World>, stats_users: Arc<AtomicU64>) -> Runner {
        Runner { world, stats_users }
    }

    /// Runs programs on one slot, each with its own cookie. `None` if no slot was free.
    ///
    /// # Safety
    /// `ctx` is a context of the programs' type, `at` tells of it.
    pub unsafe fn run(&self, programs: &[Attached], ctx: *mut u8, at: &At) -> Option<Results> {
        let results = self.world.enter(|machine| {
            let mut verdict = 1;
            for attached in programs {
                let start = self.counts().then(Instant::now);
                let at = At { cookie: attached.cookie, ..*at };
                // SAFETY: the caller's promise.
                if let Some(run) = unsafe { machine.run_at(attached.prog.place.index(), ctx, &at) } {
                    verdict &= run.retval as u32;
                }
                count(&attached.prog, start);
            }
            Results { verdict, cpu: machine.slot() }
        });
        programs.iter().for_each(|p| p.prog.feed());
        results
    }

    fn counts(&self) -> bool {
        self.stats_users.load(Ordering::Relaxed) > 0
    }
}

fn count(prog: &ProgObject, start: Option<Instant>) {
    if let Some(start) = start {
        prog.runs.add(1, u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
}
