//! What traced processes have of a world: its links, the memory that they map, and what they leave behind.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use skep_ebpf::Errno;
use skep_maps::control::Arena;
use skep_runtime::session::{
    Arguments, Control, Link, LinkCount, NONE, SharedHead, count_offset, counts_distance, link_kind, link_state,
    owner_proc,
};
use skep_runtime::{At, Run, Task};

use super::object::MapObject;
use super::world::World;
use crate::attach::{AttachRequest, MapMemory, Memory, ProbeSpec};
use crate::place::When;
use crate::session::Counts;

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

/// A row of the link table, off and free again when this goes.
#[derive(Debug)]
pub struct LinkPlace {
    index: u32,
    world: Weak<World>,
}

impl LinkPlace {
    /// The index by which sites name the link.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Has hits run the program, or fall through.
    pub fn switch(&self, on: bool) {
        if let Some(world) = self.world.upgrade()
            && let Some(row) = world.head().link(self.index)
        {
            let state = if on { link_state::on(row.kind, row.flags) } else { link_state::OFF };
            row.state.store(state, Ordering::Release);
        }
    }
}

impl LinkPlace {
    /// Nanoseconds and runs that were counted for it. Processes write them, so they are as true as those are.
    pub(super) fn ran(&self) -> (u64, u64) {
        let Some(world) = self.world.upgrade() else { return (0, 0) };
        let (control, shared) = (world.head(), world.shared_head());
        let rows = (0..=control.nslots).filter_map(|slot| shared.count(control, self.index, slot));
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        rows.fold((0, 0), |(ns, runs), row: &LinkCount| {
            (word(&row.time_ns).wrapping_add(ns), word(&row.hits).wrapping_add(runs))
        })
    }
}

impl Drop for LinkPlace {
    fn drop(&mut self) {
        self.switch(false);
        if let Some(world) = self.world.upgrade() {
            world.lock().free_link(self.index);
        }
    }
}

/// How a link fires, and what its program is told.
#[derive(Clone, Copy, Debug)]
pub struct NewLink {
    /// The program's place in the table of cells; without one, hits are counted and told.
    pub prog: Option<u32>,
    /// At the entry or at the return.
    pub when: When,
    /// Bits of `link_flags`.
    pub flags: u32,
    /// What `get_attach_cookie` returns.
    pub cookie: u64,
    /// Where the function's arguments are, for programs that are given them.
    pub arguments: Arguments,
    /// The number of the system call that it is for, if it is for one.
    pub call: Option<u32>,
}

impl World {
    pub(super) fn head(&self) -> &Control {
        // SAFETY: the head stands at offset 0 of an arena that lives as long as the world; what changes in it is atomic.
        unsafe { &*self.control.ptr().cast::<Control>() }
    }

    fn shared_head(&self) -> &SharedHead {
        // SAFETY: as above.
        unsafe { &*self.shared.ptr().cast::<SharedHead>() }
    }

    /// Adds a link, which is off.
    pub fn add_link(self: &Arc<Self>, new: NewLink) -> Result<LinkPlace, Errno> {
        let index = self.lock().links.take().ok_or(Errno::ENOSPC)?;
        let place = LinkPlace { index, world: Arc::downgrade(self) };
        let memory = |_: io::Error| Errno::ENOMEM;
        let row = self.links + index as usize * size_of::<Link>();
        self.control.allocate(row, size_of::<Link>()).map_err(memory)?;
        let slots = self.limits.slots;
        let (from, to) = (count_offset(slots, index, 0), count_offset(slots, index + 1, 0));
        self.shared.allocate(from, to - from).map_err(memory)?;
        let kind = match new.when {
            When::Entry => link_kind::ENTRY,
            When::Return => link_kind::RETURN,
        };
        // SAFETY: both are allocated and this link's own; nobody looks at the row before it is on.
        unsafe {
            std::ptr::write_bytes(self.shared.ptr().add(from), 0, to - from);
            self.control.ptr().add(row).cast::<Link>().write(Link {
                state: AtomicU32::new(link_state::OFF),
                kind,
                prog: new.prog.unwrap_or(NONE),
                flags: new.flags,
                cookie: new.cookie,
                counts: counts_distance(slots, index),
                cell: new.prog.map_or(0, |prog| self.cell_offset(prog) as u64),
                arguments: new.arguments,
                call: new.call.unwrap_or(NONE),
                reserved: 0,
            });
        }
        Ok(place)
    }

    /// Runs a link's program here, about a thread of another process, and counts the run: its result, and the slot.
    ///
    /// # Safety
    /// `ctx` is a context of the program's type, `at` and `task` tell of it.
    pub unsafe fn run_link(&self, link: u32, prog: u32, ctx: *mut u8, at: &At, task: &Task<'_>) -> Option<(Run, u32)> {
        let (control, shared) = (self.head(), self.shared_head());
        let done = self.enter(|machine| {
            // SAFETY: the caller's promise.
            let run = unsafe { machine.run_about(prog, ctx, at, task) }?;
            Some((run, machine.slot()))
        });
        let row = shared.count(control, link, done.flatten().map_or(control.nslots, |(_, slot)| slot))?;
        let counted = match done.flatten() {
            None => &row.no_slot,
            Some((run, _)) => {
                if run.over_budget {
                    row.over_budget.fetch_add(1, Ordering::Relaxed);
                }
                if run.retval as u32 != 0 {
                    row.samples.fetch_add(1, Ordering::Relaxed);
                }
                &row.hits
            }
        };
        counted.fetch_add(1, Ordering::Relaxed);
        done.flatten()
    }

    /// The control arena and the shared one, as processes map them.
    pub fn arenas(&self) -> (&Arena, &Arena) {
        (&self.control, &self.shared)
    }

    /// Where the header of a map stands in the control arena; without one, an empty header.
    pub fn header_of(&self, map: Option<u32>) -> u64 {
        self.header_offset(map.unwrap_or(self.limits.objects - 1))
    }

    /// The counters of a link. Processes write them, so they are as true as those are.
    pub fn counts(&self, link: u32) -> Counts {
        let (control, shared) = (self.head(), self.shared_head());
        let mut sum = Counts::default();
        (0..=control.nslots).filter_map(|slot| shared.count(control, link, slot)).for_each(|row: &LinkCount| {
            sum += Counts::of(row);
        });
        sum
    }

    /// Waits until no thread of a process runs a program; false if that takes longer than `patience`.
    pub fn quiesce(&self, proc_index: u32, patience: Duration) -> bool {
        let busy = || {
            self.synchronise();
            let mut slots = (0..self.limits.slots).filter_map(|i| self.slot(i));
            slots.any(|slot| slot.is_busy() && owner_proc(slot.owner.load(Ordering::Acquire)) == proc_index)
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
        let mut swept = Swept::default();
        let maps: Vec<Arc<MapObject>> = self.lock().shown.iter().filter_map(Weak::upgrade).collect();
        for index in 0..self.limits.slots {
            let Some(slot) = self.slot(index) else { continue };
            let owner = slot.owner.load(Ordering::Acquire);
            if owner == 0 || owner_proc(owner) != proc_index {
                continue;
            }
            let busy = slot.is_busy();
            // The maps first: a slot that is free may be taken at once.
            for map in maps.iter().map(|m| &m.map).chain(&self.rings) {
                let done = map.recover(index);
                swept.locks += done.locks;
                swept.elements += done.elements;
                swept.records += done.records;
            }
            if slot.owner.compare_exchange(owner, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                swept.slots += u32::from(busy);
            }
        }
        swept
    }

    /// The memory that a process is to map: all maps that there are now.
    pub fn memory(self: &Arc<Self>) -> io::Result<WorldMemory> {
        // Counted before the look: what goes from now on keeps its index.
        self.count_target(true);
        let holder = Target(Arc::clone(self));
        let maps = self.lock().shown.iter().map(Weak::upgrade).collect();
        Ok(WorldMemory { target: holder, maps, absent: Arena::new("skep-map", 1)? })
    }
}

/// A process that has a world's maps mapped.
struct Target(Arc<World>);

impl Drop for Target {
    fn drop(&mut self) {
        self.0.count_target(false);
    }
}

/// A world's memory as one process maps it. Alive as long as the process may reach it: until then no index of a map or link
/// is used again.
pub struct WorldMemory {
    target: Target,
    /// By index; where there is none any more, nothing that runs names it.
    maps: Vec<Option<Arc<MapObject>>>,
    absent: Arena,
}

impl WorldMemory {
    /// Asks for a process to be attached to, with these probes. `proc_index` is the process's number in the world.
    pub fn request(&self, pid: u32, proc_index: u32, probes: Vec<ProbeSpec>) -> AttachRequest<'_> {
        let world = &self.target.0;
        let rings = world.rings.iter().map(Some);
        let own = self.maps.iter().skip(world.rings.len()).map(|m| m.as_ref().map(|m| &m.map));
        let maps = rings.chain(own).enumerate().map(|(index, map)| {
            let (arena, writable) = map.map_or((&self.absent, false), |m| (m.arena(), m.target_writable()));
            let header_offset = world.header_of(map.map(|_| index as u32));
            let (offset, size) = (arena.offset(), arena.len() as u64);
            MapMemory { fd: arena.fd(), offset, size, writable, header_offset, absent: map.is_none() }
        });
        AttachRequest {
            pid,
            proc_index,
            change: 0,
            control: Memory { fd: world.control.fd(), size: world.control.len() as u64 },
            shared: Memory { fd: world.shared.fd(), size: world.shared.len() as u64 },
            maps: maps.collect(),
            nslots: world.limits.slots,
            probes,
            agent: None,
            children: false,
            marker: None,
        }
    }
}
