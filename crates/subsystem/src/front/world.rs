//! The memory that a subsystem's programs run in: one control arena for all of them, filled as they come and go.
//!
//! The tables are those of a session (`skep_runtime::session`), with room to grow: an index of a map or program stays its
//! own until the object goes. Memory of a program that has gone is used again only when every vCPU slot was seen idle, or
//! with another run, since: a run on it may have been reaching it by a tail call.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_jit::Engine;
use skep_maps::control::{Arena, Map};
use skep_maps::{MapHeader, MapRef};
use skep_runtime::image::IMAGE_ALIGN;
use skep_runtime::session::{
    CONTROL_NAME, Control, Link as LinkRow, MAGIC, ProgCell, SHARED_NAME, SharedHead, Slot, count_offset, link_flags,
    link_kind, link_state, shared_size,
};
use skep_runtime::{Machine, session};

use super::bells::Bells;
use super::ids::{Id, Ids};
use super::object::MapObject;
use crate::keeper::Keeper;
use crate::loaded::Loaded;
use crate::place::When;

/// Most maps and most programs of a subsystem.
const CAPACITY: u32 = 1 << 18;
/// A row of the map headers that stays empty.
const NO_MAP: u32 = CAPACITY - 1;
/// Address space for images.
const IMAGES: usize = 1 << 30;
/// Rings of the world's own, in front of the maps.
const INTERNAL: u32 = 2;
/// Most programs at places in processes.
const LINKS: u32 = 1024;
const SAMPLES: u32 = 0;
const PRINTK: u32 = 1;
/// Run-time budget of a run, in back edges, calls and helper calls.
const BUDGET: u64 = 1 << 32;

/// Places in a table: the lowest free one is given out.
#[derive(Debug)]
struct Places {
    next: u32,
    free: Vec<u32>,
}

impl Places {
    fn from(first: u32) -> Places {
        Places { next: first, free: Vec::new() }
    }

    fn take(&mut self) -> Option<u32> {
        if let Some(place) = self.free.pop() {
            return Some(place);
        }
        let place = self.next;
        self.next = (place < NO_MAP).then(|| place + 1)?;
        Some(place)
    }
}

/// Free parts of the area for images: start and length, in units of [`IMAGE_ALIGN`].
#[derive(Debug)]
struct Space {
    free: BTreeMap<usize, usize>,
}

impl Space {
    fn take(&mut self, len: usize) -> Option<usize> {
        let (&start, &room) = self.free.iter().find(|(_, room)| **room >= len)?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        Some(start)
    }

    fn give(&mut self, start: usize, len: usize) {
        let (mut start, mut len) = (start, len);
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before + room == start
        {
            self.free.remove(&before);
            (start, len) = (before, room + len);
        }
        if let Some(room) = self.free.remove(&(start + len)) {
            len += room;
        }
        self.free.insert(start, len);
    }
}

/// What waits until no run can be inside of it.
#[derive(Debug)]
struct Gone {
    /// The place of a program in the table, and start and length of its image.
    code: Option<(u32, usize, usize)>,
    /// What a program's code names, held until it cannot run any more; or what was in a map of maps.
    #[expect(dead_code, reason = "held, not looked at")]
    maps: Vec<Arc<MapObject>>,
    /// How often each slot that was in use then had been taken.
    slots: Vec<(u32, u64)>,
}

#[derive(Debug)]
struct Tables {
    maps: Places,
    progs: Places,
    links: Places,
    space: Space,
    gone: Vec<Gone>,
}

/// The table of map handles. Entries are written before a program that names them can run, and not while one can.
struct Handles(Box<[UnsafeCell<MapRef>]>);

// SAFETY: entries are written under the lock of the tables, each before any run can reach it.
unsafe impl Sync for Handles {}
// SAFETY: as above; the handles are addresses of the world's own memory.
unsafe impl Send for Handles {}

/// Programs and maps in one arena, and slots to run them on.
pub struct World {
    // Dropped first: they work on what follows.
    bells: OnceLock<Bells>,
    keeper: OnceLock<Keeper>,
    control: Arc<Arena>,
    shared: Arc<Arena>,
    handles: Handles,
    headers: usize,
    progs: usize,
    images: usize,
    slots: u32,
    tables: Mutex<Tables>,
    rings: [Map; INTERNAL as usize],
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// The index of a map in its world, free again when this goes.
#[derive(Debug)]
pub struct MapPlace {
    index: u32,
    world: Weak<World>,
}

impl MapPlace {
    /// The index by which programs name the map.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for MapPlace {
    fn drop(&mut self) {
        // No program that names the map is left, so no run can reach its handle.
        if let Some(world) = self.world.upgrade() {
            world.lock().maps.free.push(self.index);
        }
    }
}

/// A program's entry cell and image.
#[derive(Debug)]
pub struct ProgPlace {
    index: u32,
    start: usize,
    len: usize,
    world: Weak<World>,
    /// The maps that the code names.
    maps: Vec<Arc<MapObject>>,
}

impl ProgPlace {
    /// The index of its cell.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for ProgPlace {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            world.retire(self);
        }
    }
}

fn out_of_memory(_: io::Error) -> Errno {
    Errno::ENOMEM
}

/// A program at a place in processes, until this goes.
#[derive(Debug)]
pub struct WorldLink {
    index: u32,
    world: Weak<World>,
}

impl WorldLink {
    /// Its row in the table of links.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl Drop for WorldLink {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            if let Some(row) = world.head().link(self.index) {
                row.state.store(link_state::OFF, Ordering::Release);
            }
            world.lock().links.free.push(self.index);
        }
    }
}

impl World {
    fn head(&self) -> &Control {
        // SAFETY: `Control` stands at offset 0 of an arena that lives as long as `self`; what changes in it is atomic.
        unsafe { &*self.control.ptr().cast::<Control>() }
    }

    /// Links a program to a place: from now on a site that names the link runs it.
    pub fn add_link(self: &Arc<Self>, prog: u32, when: When, cookie: u64, kernel: bool) -> Result<WorldLink, Errno> {
        let index = {
            let mut tables = self.lock();
            let index = tables.links.take().ok_or(Errno::ENOMEM)?;
            if index >= LINKS {
                tables.links.free.push(index);
                return Err(Errno::ENOMEM);
            }
            index
        };
        let link = WorldLink { index, world: Arc::downgrade(self) };
        let counts = count_offset(self.slots, index, 0);
        let end = count_offset(self.slots, index, self.slots + 1);
        self.shared.allocate(counts, end - counts).map_err(out_of_memory)?;
        let row = self.head().links as usize + index as usize * size_of::<LinkRow>();
        // SAFETY: the row is in the table, which is allocated; nobody looks at it before it is ON.
        unsafe {
            self.control.ptr().add(row).cast::<LinkRow>().write(LinkRow {
                state: AtomicU32::new(link_state::OFF),
                kind: if when == When::Return { link_kind::RETURN } else { link_kind::ENTRY },
                prog: AtomicU32::new(prog),
                flags: if kernel { link_flags::KERNEL } else { 0 },
                cookie,
                reserved: 0,
            });
        }
        if let Some(row) = self.head().link(index) {
            row.state.store(link_state::ON, Ordering::Release);
        }
        Ok(link)
    }

    /// The control arena and the shared one, as processes map them.
    pub fn arenas(&self) -> (&Arena, &Arena) {
        (&self.control, &self.shared)
    }

    /// Where the header of a map stands in the control arena; without one, an empty header.
    pub fn header_of(&self, map: Option<u32>) -> u64 {
        self.header(map.unwrap_or(NO_MAP)) as u64
    }

    /// The world's own rings, which come before all maps: samples, and lines of `trace_printk`.
    pub fn rings(&self) -> &[Map] {
        &self.rings
    }

    /// vCPU slots.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// An empty world with this many vCPU slots.
    pub fn new(slots: u32) -> io::Result<World> {
        let align = |n: usize| n.next_multiple_of(4096);
        let links = align(size_of::<Control>());
        let progs = align(links + LINKS as usize * size_of::<LinkRow>());
        let headers = align(progs + CAPACITY as usize * size_of::<ProgCell>());
        let images = align(headers + CAPACITY as usize * size_of::<MapHeader>());
        let control = Arena::sparse(CONTROL_NAME, images + IMAGES)?;
        control.allocate(0, progs)?;
        // Counters of links are allocated with their links.
        let shared = Arena::sparse(SHARED_NAME, shared_size(slots, LINKS))?;
        shared.allocate(0, shared_size(slots, 0))?;
        let ring = |name: &str| {
            let def = MapDef::new(name, MapType::Ringbuf, 0, 0, 1 << 18);
            Map::create(&def, slots).map_err(|e| io::Error::other(e.to_string()))
        };
        let rings = [ring("skep-samples")?, ring("skep-printk")?];
        let none = || UnsafeCell::new(MapRef { hdr: std::ptr::null(), data: std::ptr::null_mut() });
        let handles = Handles((0..CAPACITY).map(|_| none()).collect());
        // SAFETY: the head of the arena is allocated, aligned, and nobody else has it.
        unsafe {
            control.ptr().cast::<Control>().write(Control {
                magic: MAGIC,
                enable: AtomicU32::new(0),
                nslots: slots,
                robust_node: 0,
                size: control.len() as u64,
                links: links as u32,
                nlinks: LINKS,
                progs: progs as u32,
                nprogs: CAPACITY,
                map_headers: headers as u32,
                nmaps: CAPACITY,
                samples_map: SAMPLES,
                printk_map: PRINTK,
                budget: BUDGET,
            });
        }
        let tables = Tables {
            maps: Places::from(INTERNAL),
            progs: Places::from(0),
            links: Places::from(0),
            space: Space { free: BTreeMap::from([(0, IMAGES / IMAGE_ALIGN)]) },
            gone: Vec::new(),
        };
        let world = World {
            bells: OnceLock::new(),
            keeper: OnceLock::new(),
            control: Arc::new(control),
            shared: Arc::new(shared),
            handles,
            headers,
            progs,
            images,
            slots,
            tables: Mutex::new(tables),
            rings,
        };
        for (index, ring) in [SAMPLES, PRINTK].into_iter().zip(&world.rings) {
            world.show_map(index, ring)?;
        }
        // Where no map is, an empty header stands: the last row is never given out.
        world.control.allocate(world.header(NO_MAP), size_of::<MapHeader>())?;
        world.control.seal_future_writes()?;
        Ok(world)
    }

    /// The thread that holds the enable word and hears the doorbell; it is started when it is first asked for.
    pub fn keeper(&self) -> io::Result<&Keeper> {
        if let Some(keeper) = self.keeper.get() {
            return Ok(keeper);
        }
        // Two that start one at a time: the arena has one doorbell.
        let _starting = self.lock();
        if self.keeper.get().is_none() {
            let _ = self.keeper.set(Keeper::start(Arc::clone(&self.control), Arc::clone(&self.shared))?);
        }
        self.keeper.get().ok_or_else(|| io::Error::other("the keeper has not started"))
    }

    /// The bells of all rings.
    pub fn bells(&self) -> io::Result<&Bells> {
        if let Some(bells) = self.bells.get() {
            return Ok(bells);
        }
        let keeper = self.keeper()?;
        let _starting = self.lock();
        if self.bells.get().is_none() {
            let _ = self.bells.set(Bells::start(keeper)?);
        }
        self.bells.get().ok_or_else(|| io::Error::other("the bells have not started"))
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self, index: u32) -> usize {
        self.headers + index as usize * size_of::<MapHeader>()
    }

    /// Puts a map's header and handle where programs find them.
    fn show_map(&self, index: u32, map: &Map) -> io::Result<()> {
        let at = self.header(index);
        self.control.allocate(at, size_of::<MapHeader>())?;
        let header = self.control.ptr().wrapping_add(at).cast::<MapHeader>();
        // SAFETY: the row is allocated, and no program names this index yet.
        unsafe {
            header.write(*map.header());
            if let Some(handle) = self.handles.0.get(index as usize) {
                handle.get().write(MapRef { hdr: header, data: map.arena().ptr() });
            }
        }
        Ok(())
    }

    /// Adds a map, which `make` builds around its number and place.
    pub fn add_map(
        self: &Arc<Self>,
        ids: &Arc<Ids<MapObject>>,
        make: impl FnOnce(Id<MapObject>, MapPlace) -> MapObject,
    ) -> Result<Arc<MapObject>, Errno> {
        let index = self.lock().maps.take().ok_or(Errno::ENOMEM)?;
        let place = MapPlace { index, world: Arc::downgrade(self) };
        let object = ids.add(|id| make(id, place))?;
        self.show_map(index, &object.map).map_err(out_of_memory)?;
        Ok(object)
    }

    /// Adds a program's code; `maps` are those that it names.
    pub fn add_program(self: &Arc<Self>, loaded: &Loaded, maps: Vec<Arc<MapObject>>) -> Result<ProgPlace, Errno> {
        let image = loaded.image();
        let len = image.len().div_ceil(IMAGE_ALIGN);
        // Dropped without the lock: places of maps want it.
        let dead;
        let (index, start) = {
            let mut tables = self.lock();
            dead = self.bury(&mut tables);
            let index = tables.progs.take().ok_or(Errno::ENOMEM)?;
            let Some(start) = tables.space.take(len) else {
                tables.progs.free.push(index);
                return Err(Errno::ENOMEM);
            };
            (index, start)
        };
        drop(dead);
        // From here on dropping the place gives everything back.
        let place = ProgPlace { index, start, len, world: Arc::downgrade(self), maps };
        let at = self.images + start * IMAGE_ALIGN;
        let cell = self.progs + index as usize * size_of::<ProgCell>();
        self.control.allocate(at, image.len()).map_err(out_of_memory)?;
        if loaded.engine() == Engine::Jit {
            self.control.code().map_err(out_of_memory)?;
        }
        self.control.allocate(cell, size_of::<ProgCell>()).map_err(out_of_memory)?;
        // SAFETY: both parts are allocated and this program's own; the cell shows the image last.
        unsafe {
            std::ptr::copy_nonoverlapping(image.as_ptr(), self.control.ptr().add(at), image.len());
            let cell = self.control.ptr().add(cell).cast::<ProgCell>();
            (&raw mut (*cell).prog_type).write(loaded.prog_type() as u32);
            (*cell).image.store(at as u64, Ordering::Release);
        }
        Ok(place)
    }

    fn cell(&self, index: u32) -> &AtomicU64 {
        let at = self.progs + index as usize * size_of::<ProgCell>();
        // SAFETY: only places that were given out are asked for; their cells are allocated.
        unsafe { &(*self.control.ptr().add(at).cast::<ProgCell>()).image }
    }

    /// A program has gone: no new run finds it, and its memory waits for those that may be inside.
    fn retire(&self, place: &mut ProgPlace) {
        self.cell(place.index).store(0, Ordering::SeqCst);
        let slots = self.slots_in_use();
        let gone =
            Gone { code: Some((place.index, place.start, place.len)), maps: std::mem::take(&mut place.maps), slots };
        let mut tables = self.lock();
        tables.gone.push(gone);
        let dead = self.bury(&mut tables);
        drop(tables);
        // Maps go without the lock: their places want it.
        drop(dead);
    }

    /// Holds a map that runs may have found in a map of maps, until none of them is left.
    pub fn let_go(&self, map: Option<Arc<MapObject>>) {
        let Some(map) = map else { return };
        let gone = Gone { code: None, maps: vec![map], slots: self.slots_in_use() };
        let mut tables = self.lock();
        tables.gone.push(gone);
        let dead = self.bury(&mut tables);
        drop(tables);
        drop(dead);
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        // SAFETY: the arenas live as long as the world.
        let (control, shared) =
            unsafe { (&*self.control.ptr().cast::<Control>(), &*self.shared.ptr().cast::<SharedHead>()) };
        shared.slot(control, index)
    }

    fn slots_in_use(&self) -> Vec<(u32, u64)> {
        (0..self.slots)
            .filter_map(|i| {
                let slot = self.slot(i)?;
                (slot.owner.load(Ordering::SeqCst) != 0).then(|| (i, slot.taken.load(Ordering::SeqCst)))
            })
            .collect()
    }

    /// Takes back the memory of programs that no run can be inside of any more.
    fn bury(&self, tables: &mut Tables) -> Vec<Gone> {
        let idle = |&(i, taken): &(u32, u64)| {
            self.slot(i).is_none_or(|s| s.owner.load(Ordering::SeqCst) == 0 || s.taken.load(Ordering::SeqCst) != taken)
        };
        let (dead, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut tables.gone).into_iter().partition(|g: &Gone| g.slots.iter().all(idle));
        tables.gone = waiting;
        for (place, start, len) in dead.iter().filter_map(|g| g.code) {
            tables.space.give(start, len);
            tables.progs.free.push(place);
        }
        dead
    }

    /// Runs something with a machine on a slot of its own; `None` if all are taken.
    pub fn with_machine<T>(&self, run: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let owner = session::owner_word(0, u64::from(std::process::id()) << 4);
        let (index, slot) = (0..self.slots).find_map(|i| {
            let slot = self.slot(i)?;
            slot.owner.compare_exchange(0, owner, Ordering::SeqCst, Ordering::Relaxed).ok()?;
            slot.taken.fetch_add(1, Ordering::SeqCst);
            Some((i, slot))
        })?;
        let held = Held(slot);
        // Machine code has made the other mapping when it was added.
        let control = self.control.mapped_code().unwrap_or(self.control.ptr()).cast::<Control>();
        let shared = self.shared.ptr().cast::<SharedHead>();
        // SAFETY: `UnsafeCell<MapRef>` has the layout of `MapRef`; arenas and handles live as long as `self`, which
        // outlives the machine; the slot is held until then.
        let mut machine = unsafe { Machine::new(control, shared, self.handles.0.as_ptr().cast(), index) };
        let result = run(&mut machine);
        drop(machine);
        drop(held);
        Some(result)
    }

    /// Bytes of code that are in use, those of programs that are gone but perhaps still run included.
    pub fn code_bytes(&self) -> usize {
        let tables = self.lock();
        IMAGES - tables.space.free.values().sum::<usize>() * IMAGE_ALIGN
    }
}

struct Held<'a>(&'a Slot);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.owner.store(0, Ordering::Release);
    }
}
