//! Cleaning up after processes that ended while they held something.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use skep_runtime::session::owner_proc;

use super::{Entry, Session};

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// vCPU slots.
    pub slots: u32,
    /// Locks of maps.
    pub locks: u32,
    /// Elements of maps that were neither free nor in the map.
    pub elements: u32,
    /// Reserved records of ring buffers.
    pub records: u32,
}

impl Session {
    /// Waits until no thread of a process runs a program, so that all counts are final; false if that takes longer than
    /// `patience`. To be called once its links are disabled.
    pub fn quiesce(&self, proc_index: u32, patience: Duration) -> bool {
        let (control, shared) = (self.head(), self.shared_head());
        let busy = || {
            let owners =
                (0..control.nslots).filter_map(|i| Some(shared.slot(control, i)?.owner.load(Ordering::Acquire)));
            { owners }.any(|owner| owner != 0 && owner_proc(owner) == proc_index)
        };
        let start = Instant::now();
        while busy() {
            if start.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        true
    }

    /// Frees the slots of a process, and what their threads held in maps. To be called once nothing of the process runs
    /// any more: after its end, or after it has replaced its image and before the new one runs.
    pub fn sweep(&self, proc_index: u32) -> Swept {
        let (control, shared) = (self.head(), self.shared_head());
        let mut swept = Swept::default();
        for index in 0..control.nslots {
            let Some(slot) = shared.slot(control, index) else { continue };
            let owner = slot.owner.load(Ordering::Acquire);
            if owner == 0 || owner_proc(owner) != proc_index {
                continue;
            }
            // The maps first: a slot that is free may be taken at once.
            for map in self.entries.iter().filter_map(Entry::map) {
                let done = map.recover(index);
                swept.locks += done.locks;
                swept.elements += done.elements;
                swept.records += done.records;
            }
            if slot.owner.compare_exchange(owner, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                swept.slots += 1;
            }
        }
        swept
    }
}
