//! From perf event arrays to the rings of their events.
//!
//! Programs write to rings in the map's own memory, which every process that runs them has. What stands there is handed on
//! to the events' rings, which only readers have: after each run in this process, and whenever another process rang.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_ebpf::Errno;
use skep_maps::control::{Map, PerfConsumer, PerfRecord};

use super::event::PerfEvent;
use super::record::Occurrence;

#[derive(Debug)]
struct Fed {
    event: Arc<PerfEvent>,
    ring: PerfConsumer,
}

/// The events in a perf event array, by their indices.
#[derive(Debug, Default)]
pub struct Feed(Mutex<BTreeMap<u32, Fed>>);

impl Feed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Fed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event at an index. One of another CPU is there, and gets nothing.
    pub fn put(&self, map: &Map, index: u32, event: Arc<PerfEvent>) -> Result<(), Errno> {
        let ring = map.perf_consumer(index)?;
        if event.cpu < 0 || event.cpu.cast_unsigned() == index {
            map.set_perf_event(index, Some(index))?;
        }
        let old = self.lock().insert(index, Fed { event, ring });
        drop(old);
        Ok(())
    }

    /// Takes the event at an index out.
    pub fn remove(&self, index: u32) {
        let old = self.lock().remove(&index);
        drop(old);
    }

    /// Takes all events out.
    pub fn clear(&self, map: &Map) {
        let all = std::mem::take(&mut *self.lock());
        for index in all.keys() {
            // One of another CPU was not known to the map.
            let _ = map.set_perf_event(*index, None);
        }
    }

    /// Hands on what programs have written.
    pub fn deliver(&self) {
        for (index, fed) in self.lock().iter_mut() {
            let Fed { event, ring } = fed;
            let done = ring.poll(|record| match record {
                PerfRecord::Sample { ip, pid, tid, time, raw } => {
                    let o = Occurrence { ip, user: true, pid, tid, cpu: *index, time: Some(time), raw };
                    event.sample(&o, 1);
                }
                PerfRecord::Lost(count) => event.lose(count),
            });
            // The map's ring is written by targets, too; what makes no sense is skipped there.
            let _ = done;
        }
    }
}
