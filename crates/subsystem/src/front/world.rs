//! The memory that a subsystem's programs run in: one control arena for all of them, filled as they come and go.
//!
//! The tables are those of a session (`skep_runtime::session`), with room to grow: an index of a map or program stays its
//! own until the object goes. Memory of a program that has gone is used again only when every vCPU slot was seen idle, or
//! with another run, since: a run on it may have been reaching it by a tail call.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::{io, ptr};

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_jit::{Around, Engine};
use skep_maps::control::{Arena, Map};
use skep_maps::{MapHeader, MapRef};
use skep_runtime::env::HostFn;
use skep_runtime::image::{CODE_OFFSET, IMAGE_ALIGN, Image};
use skep_runtime::session::{
    CONTROL_NAME, Control, FunctionCell, Link, MAGIC, ProgCell, SHARED_NAME, SharedHead, Slot, shared_size,
};
use skep_runtime::{Machine, SlotArea, session};

use super::barrier;
use super::bells::Bells;
use super::ids::{Id, Ids};
use super::lease::{self, Leases};
use super::object::MapObject;
use crate::keeper::Keeper;
use crate::loaded::Loaded;

/// How much a world has room for, and what its runs may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// vCPU slots.
    pub slots: u32,
    /// Most maps, the world's own included, and most programs.
    pub objects: u32,
    /// Most links.
    pub links: u32,
    /// Most functions of programs that can be replaced, besides main functions.
    pub functions: u32,
    /// Bytes for images, all of them together: address space in this process and in each that is traced.
    pub images: usize,
    /// Run-time budget of a run, in back edges, calls and helper calls; 0 for none.
    pub budget: u64,
    /// Bytes of the ring for samples.
    pub samples_bytes: u32,
    /// Bytes of the ring for `trace_printk`.
    pub printk_bytes: u32,
}

impl Limits {
    /// Of a subsystem that stands for a kernel's.
    pub fn new(slots: u32) -> Limits {
        Limits {
            slots,
            objects: 1 << 18,
            links: 1 << 12,
            functions: 1 << 20,
            images: 1 << 30,
            budget: 1 << 32,
            samples_bytes: 1 << 18,
            printk_bytes: 1 << 18,
        }
    }
}

/// Rings of the world's own, in front of the maps.
const INTERNAL: u32 = 2;
pub(super) const SAMPLES: u32 = 0;
pub(super) const PRINTK: u32 = 1;
/// The number of this process in owner words: the last one, so that targets can have the others.
const OWN_INDEX: u32 = (1 << 20) - 2;

/// Places in a table: the lowest free one is given out.
#[derive(Debug)]
pub(super) struct Places {
    next: u32,
    end: u32,
    free: Vec<u32>,
}

impl Places {
    fn new(first: u32, end: u32) -> Places {
        Places { next: first, end, free: Vec::new() }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(place) = self.free.pop() {
            return Some(place);
        }
        let place = self.next;
        self.next = (place < self.end).then(|| place + 1)?;
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

/// Memory of code that has gone.
#[derive(Clone, Copy, Debug)]
struct GoneCode {
    /// The place of a program in the table; none for what was around a function.
    prog: Option<u32>,
    /// Start and length of its image.
    image: (usize, usize),
    /// Its functions' cells: first and how many.
    cells: (usize, usize),
}

/// What waits until no run can be inside of it.
#[derive(Debug)]
struct Gone {
    /// Memory of code.
    code: Option<GoneCode>,
    /// What a program's code names, held until it cannot run any more; or what was in a map of maps.
    #[expect(dead_code, reason = "held, not looked at")]
    maps: Vec<Arc<MapObject>>,
    /// What the owner wants held.
    #[expect(dead_code, reason = "held, not looked at")]
    value: Option<Box<dyn Any + Send>>,
    /// How often each slot that was in use then had been taken; of one that a thread keeps, its word.
    slots: Vec<(u32, u64)>,
}

#[derive(Debug)]
pub(super) struct Tables {
    maps: Places,
    /// The maps, by index, for those who map their memory.
    pub(super) shown: Vec<Weak<MapObject>>,
    /// Processes that have the maps mapped. While there is one no index is used again: it would name the old memory there.
    pub(super) targets: u32,
    /// Indices of maps and links that went meanwhile.
    limbo: (Vec<u32>, Vec<u32>),
    pub(super) links: Places,
    progs: Places,
    space: Space,
    /// Free cells of functions.
    cells: Space,
    gone: Vec<Gone>,
}

impl Tables {
    /// A link's row is free, once no process has a site that names it.
    pub(super) fn free_link(&mut self, index: u32) {
        if self.targets == 0 {
            self.links.free.push(index);
        } else {
            self.limbo.1.push(index);
        }
    }
}

/// The table of map handles. Entries are written before a program that names them can run, and not while one can.
struct Handles(Box<[UnsafeCell<MapRef>]>);

// SAFETY: entries are written under the lock of the tables, each before any run can reach it.
unsafe impl Sync for Handles {}
// SAFETY: as above; the handles are addresses of the world's own memory.
unsafe impl Send for Handles {}

/// Private memory of slots that nobody uses just now, each at its slot's number. Which slots are in use stands in memory
/// that processes write, so it is taken by exchange: whoever comes second makes his own.
struct Areas(Box<[AtomicPtr<SlotArea>]>);

impl Areas {
    fn new(slots: u32) -> Areas {
        Areas((0..slots).map(|_| AtomicPtr::default()).collect())
    }

    fn take(&self, slot: u32) -> Option<Box<SlotArea>> {
        let area = self.0.get(slot as usize)?.swap(ptr::null_mut(), Ordering::Acquire);
        // SAFETY: what stands there came from `give`, and whoever takes it out owns it.
        (!area.is_null()).then(|| unsafe { Box::from_raw(area) })
    }

    fn give(&self, slot: u32, area: Box<SlotArea>) {
        let Some(place) = self.0.get(slot as usize) else { return };
        let other = place.swap(Box::into_raw(area), Ordering::AcqRel);
        if !other.is_null() {
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(other) });
        }
    }
}

impl Drop for Areas {
    fn drop(&mut self) {
        for slot in 0..self.0.len() as u32 {
            drop(self.take(slot));
        }
    }
}

/// Programs and maps in one arena, and slots to run them on.
pub struct World {
    pub(crate) limits: Limits,
    // Dropped first: they work on what follows.
    bells: OnceLock<Bells>,
    keeper: OnceLock<Keeper>,
    pub(super) control: Arc<Arena>,
    /// The control arena as programs are run in it: where code is mapped, once it is.
    view: AtomicPtr<Control>,
    pub(super) shared: Arc<Arena>,
    /// The application's functions; null if it has none.
    functions: AtomicPtr<HostFn>,
    handles: Handles,
    areas: Areas,
    pub(super) leases: Leases,
    headers: usize,
    pub(super) links: usize,
    progs: usize,
    images: usize,
    cells: usize,
    slots: u32,
    tables: Mutex<Tables>,
    pub(crate) rings: [Map; INTERNAL as usize],
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
            let mut tables = world.lock();
            if tables.targets == 0 {
                tables.maps.free.push(self.index);
            } else {
                tables.limbo.0.push(self.index);
            }
        }
    }
}

/// Cells for the functions of a program, free again when this goes.
#[derive(Debug)]
pub struct CellsPlace {
    first: usize,
    count: usize,
    world: Weak<World>,
}

impl CellsPlace {
    /// Where the first one is, from the head of the control arena.
    pub fn offset(&self) -> Option<u32> {
        let world = self.world.upgrade()?;
        u32::try_from(world.cells + self.first * size_of::<FunctionCell>()).ok()
    }

    /// First and how many; they are somebody else's from now on.
    fn take(mut self) -> (usize, usize) {
        (self.first, std::mem::take(&mut self.count))
    }
}

impl Drop for CellsPlace {
    fn drop(&mut self) {
        // No code that names them was ever entered.
        if self.count > 0
            && let Some(world) = self.world.upgrade()
        {
            world.lock().cells.give(self.first, self.count);
        }
    }
}

/// Code that runs around a function; its memory is used again when no run can be in it.
#[derive(Debug)]
pub struct CodePlace {
    start: usize,
    len: usize,
    /// Where image and entry are, from the head of the control arena: of machine code, if there is any, and of bytecode.
    native: Option<(u64, u64)>,
    bytecode: (u64, u64),
    world: Weak<World>,
}

impl CodePlace {
    /// Where the image is and where the function's cell is to lead, from the head of the control arena.
    pub fn image_and_entry(&self, engine: Engine) -> (u64, u64) {
        self.native.filter(|_| engine == Engine::Jit).unwrap_or(self.bytecode)
    }
}

impl Drop for CodePlace {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            let code = GoneCode { prog: None, image: (self.start, self.len), cells: (0, 0) };
            world.wait_for(Some(code), Vec::new());
        }
    }
}

/// A program's entry cell and image.
#[derive(Debug)]
pub struct ProgPlace {
    index: u32,
    start: usize,
    len: usize,
    /// Where its image of bytecode is, from that of machine code; 0 if there is none.
    second: usize,
    /// Cells of its functions but the main one: first and how many.
    cells: (usize, usize),
    world: Weak<World>,
    /// The maps that the code names.
    maps: Vec<Arc<MapObject>>,
}

impl ProgPlace {
    /// The index of its cell.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where its image is, from the head of the control arena: the one of bytecode, if that is asked for and there is one.
    pub fn image(&self, engine: Engine) -> u64 {
        let second = if engine == Engine::Interpreter { self.second } else { 0 };
        self.world.upgrade().map_or(0, |w| (w.images + self.start * IMAGE_ALIGN + second) as u64)
    }

    /// True if other code can take the place of function `n`.
    pub fn can_replace(&self, n: usize) -> bool {
        n <= self.cells.1
    }

    /// Has all calls of function `n` that begin from now on go to `to`, which for the main function is an image, and for
    /// others code, and in processes that only interpret to `bytecode`; from the head of the control arena.
    pub fn lead(&self, n: usize, to: u64, bytecode: u64) {
        let Some(world) = self.world.upgrade() else { return };
        let (first, second) = match n.checked_sub(1) {
            None => (&world.cell(self.index).image, &world.cell(self.index).bytecode),
            Some(n) if n < self.cells.1 => {
                let cell = world.function_cell(self.cells.0 + n);
                (&cell.code, &cell.bytecode)
            }
            Some(_) => return,
        };
        first.store(to, Ordering::SeqCst);
        second.store(bytecode, Ordering::SeqCst);
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

impl World {
    /// An empty world.
    pub fn new(limits: Limits) -> io::Result<World> {
        let slots = limits.slots;
        let align = |n: usize| n.next_multiple_of(4096);
        let objects = limits.objects as usize;
        let links = align(size_of::<Control>());
        let progs = align(links + limits.links as usize * size_of::<Link>());
        let headers = align(progs + objects * size_of::<ProgCell>());
        let cells = align(headers + objects * size_of::<MapHeader>());
        let images = align(cells + limits.functions as usize * size_of::<FunctionCell>());
        let control = Arena::sparse(CONTROL_NAME, images + limits.images)?;
        control.allocate(0, size_of::<Control>())?;
        // Processes that are traced get it read-only.
        control.seal_future_writes()?;
        let shared = Arena::sparse(SHARED_NAME, shared_size(slots, limits.links))?;
        shared.allocate(0, shared_size(slots, 0))?;
        let ring = |name: &str, bytes: u32| {
            let def = MapDef::new(name, MapType::Ringbuf, 0, 0, bytes);
            Map::create(&def, slots).map_err(|e| io::Error::other(e.to_string()))
        };
        let rings = [ring("skep-samples", limits.samples_bytes)?, ring("skep-printk", limits.printk_bytes)?];
        let none = || UnsafeCell::new(MapRef { hdr: std::ptr::null(), data: std::ptr::null_mut() });
        let handles = Handles((0..limits.objects).map(|_| none()).collect());
        // SAFETY: the head of the arena is allocated, aligned, and nobody else has it.
        unsafe {
            control.ptr().cast::<Control>().write(Control {
                magic: MAGIC,
                enable: AtomicU32::new(0),
                nslots: slots,
                robust_node: 0,
                size: control.len() as u64,
                links: links as u32,
                nlinks: limits.links,
                progs: progs as u32,
                nprogs: limits.objects,
                map_headers: headers as u32,
                nmaps: limits.objects,
                samples_map: SAMPLES,
                printk_map: PRINTK,
                budget: limits.budget,
                keeps: u32::from(barrier::works()),
                reserved: 0,
            });
        }
        let tables = Tables {
            // The last row is never given out: it is the header of maps that are not there.
            maps: Places::new(INTERNAL, limits.objects - 1),
            shown: (0..INTERNAL).map(|_| Weak::new()).collect(),
            targets: 0,
            limbo: (Vec::new(), Vec::new()),
            links: Places::new(0, limits.links),
            progs: Places::new(0, limits.objects),
            cells: Space { free: BTreeMap::from([(0, limits.functions as usize)]) },
            space: Space { free: BTreeMap::from([(0, limits.images / IMAGE_ALIGN)]) },
            gone: Vec::new(),
        };
        let world = World {
            limits,
            bells: OnceLock::new(),
            keeper: OnceLock::new(),
            view: AtomicPtr::new(control.ptr().cast()),
            control: Arc::new(control),
            shared: Arc::new(shared),
            functions: AtomicPtr::default(),
            handles,
            areas: Areas::new(slots),
            leases: Leases::new(slots),
            headers,
            links,
            progs,
            images,
            cells,
            slots,
            tables: Mutex::new(tables),
            rings,
        };
        for (index, ring) in [SAMPLES, PRINTK].into_iter().zip(&world.rings) {
            world.show_map(index, ring)?;
        }
        world.control.allocate(world.header_offset(limits.objects - 1) as usize, size_of::<MapHeader>())?;
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

    pub(super) fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the header of a map stands in the control arena.
    pub(super) fn header_offset(&self, index: u32) -> u64 {
        (self.headers + index as usize * size_of::<MapHeader>()) as u64
    }

    /// A process has the maps mapped from now on, or not any more.
    pub(super) fn count_target(&self, more: bool) {
        let mut tables = self.lock();
        if more {
            tables.targets += 1;
            return;
        }
        tables.targets = tables.targets.saturating_sub(1);
        if tables.targets == 0 {
            let (maps, links) = std::mem::take(&mut tables.limbo);
            tables.maps.free.extend(maps);
            tables.links.free.extend(links);
        }
    }

    /// Puts a map's header and handle where programs find them.
    fn show_map(&self, index: u32, map: &Map) -> io::Result<()> {
        let at = self.header_offset(index) as usize;
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
        let mut tables = self.lock();
        let shown = tables.shown.len().max(index as usize + 1);
        tables.shown.resize(shown, Weak::new());
        if let Some(place) = tables.shown.get_mut(index as usize) {
            *place = Arc::downgrade(&object);
        }
        Ok(object)
    }

    /// Cells for so many functions of a program that is to be compiled.
    pub fn reserve_cells(self: &Arc<Self>, count: usize) -> Result<CellsPlace, Errno> {
        let first = if count == 0 { 0 } else { self.lock().cells.take(count).ok_or(Errno::ENOMEM)? };
        let place = CellsPlace { first, count, world: Arc::downgrade(self) };
        let size = size_of::<FunctionCell>();
        if count > 0 {
            self.control.allocate(self.cells + first * size, count * size).map_err(out_of_memory)?;
        }
        Ok(place)
    }

    /// Adds a program's code; `maps` are those that it names, `cells` those that its calls go through.
    pub fn add_program(
        self: &Arc<Self>,
        loaded: &Loaded,
        maps: Vec<Arc<MapObject>>,
        cells: Option<CellsPlace>,
    ) -> Result<ProgPlace, Errno> {
        let (image, bytecode) = (loaded.image(), loaded.bytecode_image());
        let index = self.lock().progs.take().ok_or(Errno::ENOMEM)?;
        let own = image.len().next_multiple_of(IMAGE_ALIGN);
        let space = self.take_space(own + bytecode.map_or(0, <[u8]>::len));
        let (start, len) = space.inspect_err(|_| self.lock().progs.free.push(index))?;
        // From here on dropping the place gives everything back.
        let cells = cells.map_or((0, 0), CellsPlace::take);
        let second = bytecode.map_or(0, |_| own);
        let place = ProgPlace { index, start, len, second, cells, world: Arc::downgrade(self), maps };
        let cell = self.progs + index as usize * size_of::<ProgCell>();
        let at = self.write_code(start, image, loaded.engine(), bytecode.is_some())?;
        let second = match bytecode {
            Some(bytecode) => self.write_code(start + own / IMAGE_ALIGN, bytecode, Engine::Interpreter, false)?,
            None => 0,
        };
        for (n, entry) in loaded.functions().iter().enumerate().skip(1) {
            let code = at + u64::from(*entry);
            let bytecode = bytecode.and_then(|_| loaded.bytecode_functions().get(n));
            place.lead(n, code, bytecode.map_or(code, |entry| second + u64::from(*entry)));
        }
        self.control.allocate(cell, size_of::<ProgCell>()).map_err(out_of_memory)?;
        // SAFETY: the cell is allocated and this program's own; it shows the image last.
        unsafe {
            let cell = self.control.ptr().add(cell).cast::<ProgCell>();
            (&raw mut (*cell).prog_type).write(loaded.prog_type() as u32);
            for (word, image) in
                [(&(*cell).own_bytecode, second), (&(*cell).bytecode, second), (&(*cell).own, at), (&(*cell).image, at)]
            {
                word.store(image, Ordering::Release);
            }
        }
        Ok(place)
    }

    /// Adds what runs around a function: machine code, if the function's program is that, and bytecode.
    pub fn add_around(
        self: &Arc<Self>,
        native: Option<&Around<'_>>,
        bytecode: &Around<'_>,
    ) -> Result<CodePlace, Errno> {
        let sizes = [native, Some(bytecode)].map(|what| what.map_or(0, |what| skep_jit::around(what, 0).0.len() * 8));
        let own = sizes[0].next_multiple_of(IMAGE_ALIGN);
        let (start, len) = self.take_space(own + sizes[1])?;
        let mut place = CodePlace { start, len, native: None, bytecode: (0, 0), world: Arc::downgrade(self) };
        if let Some(what) = native {
            place.native = Some(self.write_around(start, what)?);
        }
        place.bytecode = self.write_around(start + own / IMAGE_ALIGN, bytecode)?;
        Ok(place)
    }

    /// Writes an image to its place; returns where it and where its entry are, from the head of the arena.
    fn write_around(&self, start: usize, what: &Around<'_>) -> Result<(u64, u64), Errno> {
        let (words, entry) = skep_jit::around(what, (self.images + start * IMAGE_ALIGN) as u64);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let at = self.write_code(start, &bytes, what.engine, true)?;
        Ok((at, at + (CODE_OFFSET + entry as usize) as u64))
    }

    /// Room for an image of so many bytes: start and length.
    fn take_space(&self, bytes: usize) -> Result<(usize, usize), Errno> {
        let len = bytes.div_ceil(IMAGE_ALIGN);
        let (dead, start) = {
            let mut tables = self.lock();
            (self.bury(&mut tables), tables.space.take(len))
        };
        // Dropped without the lock: places of maps want it.
        drop(dead);
        start.map(|start| (start, len)).ok_or(Errno::ENOMEM)
    }

    /// Writes an image to its place; returns where that is, from the head of the arena. With `other` it is not needed
    /// where it cannot be executed.
    fn write_code(&self, start: usize, image: &[u8], engine: Engine, other: bool) -> Result<u64, Errno> {
        let at = self.images + start * IMAGE_ALIGN;
        self.control.allocate(at, image.len()).map_err(out_of_memory)?;
        if engine == Engine::Jit {
            // Where this process may not map it, programs that have bytecode are interpreted here.
            match self.control.code() {
                Ok(code) => self.view.store(code.cast::<Control>().cast_mut(), Ordering::Release),
                Err(e) if !other => return Err(out_of_memory(e)),
                Err(_) => {}
            }
        }
        // SAFETY: it is allocated, this image's own, and nothing leads to it yet.
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), self.control.ptr().add(at), image.len()) };
        Ok(at as u64)
    }

    /// Offset of a program's cell.
    pub(super) fn cell_offset(&self, index: u32) -> usize {
        self.progs + index as usize * size_of::<ProgCell>()
    }

    fn cell(&self, index: u32) -> &ProgCell {
        // SAFETY: only places that were given out are asked for; their cells are allocated, and what changes is atomic.
        unsafe { &*self.control.ptr().add(self.cell_offset(index)).cast::<ProgCell>() }
    }

    fn function_cell(&self, n: usize) -> &FunctionCell {
        // SAFETY: only cells that were given out are asked for, and those are allocated.
        unsafe { &*self.control.ptr().add(self.cells + n * size_of::<FunctionCell>()).cast::<FunctionCell>() }
    }

    /// A program has gone: no new run finds it, and its memory waits for those that may be inside.
    fn retire(&self, place: &mut ProgPlace) {
        let cell = self.cell(place.index);
        cell.image.store(0, Ordering::SeqCst);
        cell.own.store(0, Ordering::SeqCst);
        cell.bytecode.store(0, Ordering::SeqCst);
        cell.own_bytecode.store(0, Ordering::SeqCst);
        let code = GoneCode { prog: Some(place.index), image: (place.start, place.len), cells: place.cells };
        self.wait_for(Some(code), std::mem::take(&mut place.maps));
    }

    /// Holds a map that runs may have found in a map of maps, until none of them is left.
    pub fn let_go(&self, map: Option<Arc<MapObject>>) {
        let Some(map) = map else { return };
        self.wait_for(None, vec![map]);
    }

    /// Holds what runs may have found, and no new one finds, until none of them is left.
    pub(crate) fn retire_value(&self, value: Box<dyn Any + Send>) {
        let slots = self.slots_in_use();
        self.keep_until_idle(Gone { code: None, maps: Vec::new(), value: Some(value), slots });
    }

    /// Keeps code and maps that no new run finds until no old one can be in them.
    fn wait_for(&self, code: Option<GoneCode>, maps: Vec<Arc<MapObject>>) {
        self.keep_until_idle(Gone { code, maps, value: None, slots: self.slots_in_use() });
    }

    fn keep_until_idle(&self, gone: Gone) {
        let mut tables = self.lock();
        tables.gone.push(gone);
        let dead = self.bury(&mut tables);
        drop(tables);
        // Without the lock: places of maps want it.
        drop(dead);
    }

    /// Lets go of what no run can have any more.
    pub(crate) fn collect(&self) {
        let dead = self.bury(&mut self.lock());
        drop(dead);
    }

    pub(super) fn slot(&self, index: u32) -> Option<&Slot> {
        // SAFETY: the arenas live as long as the world.
        let (control, shared) =
            unsafe { (&*self.control.ptr().cast::<Control>(), &*self.shared.ptr().cast::<SharedHead>()) };
        shared.slot(control, index)
    }

    fn slots_in_use(&self) -> Vec<(u32, u64)> {
        self.leases.barrier();
        self.synchronise();
        (0..self.slots)
            .filter_map(|i| {
                if let Some(state) = self.leases.state(i) {
                    return lease::is_running(state).then_some((i, state));
                }
                let slot = self.slot(i)?;
                slot.is_busy().then(|| (i, slot.taken.load(Ordering::SeqCst)))
            })
            .collect()
    }

    /// Has all processors that run traced processes agree on memory: threads begin runs by plain stores.
    pub(super) fn synchronise(&self) {
        if self.head().keeps != 0 {
            barrier::synchronise();
        }
    }

    /// Takes back the memory of programs that no run can be inside of any more.
    fn bury(&self, tables: &mut Tables) -> Vec<Gone> {
        let idle = |&(i, taken): &(u32, u64)| {
            if let Some(state) = self.leases.state(i) {
                return state != taken;
            }
            self.slot(i).is_none_or(|s| !s.is_busy() || s.taken.load(Ordering::SeqCst) != taken)
        };
        let (dead, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut tables.gone).into_iter().partition(|g: &Gone| g.slots.iter().all(idle));
        tables.gone = waiting;
        for GoneCode { prog, image, cells } in dead.iter().filter_map(|g| g.code) {
            tables.space.give(image.0, image.1);
            tables.progs.free.extend(prog);
            if cells.1 > 0 {
                tables.cells.give(cells.0, cells.1);
            }
        }
        dead
    }

    /// Where the machine code of a program is executed, once anything is; its first instruction.
    pub fn code_address(&self, place: &ProgPlace) -> Option<u64> {
        self.code_base().map(|base| base + self.code_offset(place))
    }

    /// Where the control arena is mapped for execution here, once it is.
    pub fn code_base(&self) -> Option<u64> {
        self.control.mapped_code().map(|base| base as u64)
    }

    /// Where the machine code of a program begins in the control arena.
    pub fn code_offset(&self, place: &ProgPlace) -> u64 {
        (self.images + place.start * IMAGE_ALIGN + CODE_OFFSET) as u64
    }

    /// Takes a free slot: its number and its words.
    fn take_slot(&self) -> Option<(u32, &Slot)> {
        self.take_slot_below(self.slots)
    }

    /// As [`World::take_slot`], one of the first `end`.
    pub(super) fn take_slot_below(&self, end: u32) -> Option<(u32, &Slot)> {
        let owner = session::owner_word(OWN_INDEX, u64::from(std::process::id()) << 4);
        let first = HINT.get() % end.max(1);
        let (index, slot) = (first..end).chain(0..first).find_map(|i| {
            let slot = self.slot(i)?;
            slot.owner.compare_exchange(0, owner, Ordering::SeqCst, Ordering::Relaxed).ok()?;
            // Odd, whatever it was.
            slot.taken.store(slot.taken.load(Ordering::SeqCst).wrapping_add(1) | 1, Ordering::SeqCst);
            Some((i, slot))
        })?;
        HINT.set(index);
        Some((index, slot))
    }

    /// The control arena as programs are run in it. Machine code has made the other mapping when it was added.
    #[inline]
    pub(super) fn code_view(&self) -> *const Control {
        self.view.load(Ordering::Acquire)
    }

    /// The image of a program as this process runs it.
    pub(crate) fn image(&self, place: &ProgPlace) -> *const Image {
        let second = if self.control.mapped_code().is_some() { 0 } else { place.second };
        self.code_view().cast::<u8>().wrapping_add(self.images + place.start * IMAGE_ALIGN + second).cast()
    }

    /// A machine for a slot that the caller has taken.
    pub(super) fn machine(&self, slot: u32) -> Machine {
        let (control, shared) = (self.code_view(), self.shared.ptr().cast::<SharedHead>());
        let maps = self.handles.0.as_ptr().cast();
        // SAFETY: `UnsafeCell<MapRef>` has the layout of `MapRef`; arenas and handles live as long as the world, which runs
        // need; the slot is the caller's.
        let mut machine = unsafe {
            match self.areas.take(slot) {
                Some(area) => Machine::with_area(control, shared, maps, slot, area),
                None => Machine::new(control, shared, maps, slot),
            }
        };
        // SAFETY: a host sets it before anything runs, and outlives its programs.
        unsafe { machine.set_functions(self.functions.load(Ordering::Acquire)) };
        machine.set_executes(self.control.mapped_code().is_some());
        machine
    }

    /// The functions that programs may call, for as long as the world lives.
    pub(crate) fn set_functions(&self, table: *const HostFn) {
        self.functions.store(table.cast_mut(), Ordering::Release);
    }

    /// Runs something with a machine on a slot of its own; `None` if all are taken.
    pub fn with_machine<T>(&self, run: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let (index, slot) = self.take_slot()?;
        let held = Held(slot);
        let mut machine = self.machine(index);
        let result = run(&mut machine);
        self.areas.give(index, machine.into_area());
        drop(held);
        Some(result)
    }

    /// Bytes of code that are in use, those of programs that are gone but perhaps still run included.
    pub fn code_bytes(&self) -> usize {
        let tables = self.lock();
        self.limits.images - tables.space.free.values().sum::<usize>() * IMAGE_ALIGN
    }
}

thread_local! {
    /// The slot that this thread had last, in whichever world: threads that run often keep out of each other's way.
    static HINT: Cell<u32> = const { Cell::new(0) };
}

struct Held<'a>(&'a Slot);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.owner.store(0, Ordering::Release);
    }
}
