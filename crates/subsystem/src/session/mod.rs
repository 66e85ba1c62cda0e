//! A session: compiled programs with their maps in shared memory, links that attach them, and what is counted.
//!
//! The memory is laid out in `skep_runtime::session`. The control arena is written here alone, through atomics once a
//! process may run programs; what targets write (the shared arena, maps) is read as something that may be nonsense.

mod counts;
mod layout;
mod local;
mod sweep;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use skep_ebpf::Errno;
use skep_ebpf::program::{InitialValue, MapDef};
use skep_ebpf::uapi::MapType;
use skep_maps::control::{Arena, Map, MapError, Options as MapOptions};
use skep_maps::{MapHeader, sample_type};
use skep_runtime::session::{
    CONTROL_NAME, Control, Link as LinkRow, MAGIC, NONE, ProgCell, SHARED_NAME, SharedHead, link_flags, link_kind,
    link_state, shared_size,
};

pub use counts::Counts;
pub use sweep::Swept;

use crate::keeper::Keeper;
use crate::loaded::Loaded;
use crate::place::When;
use layout::ControlLayout;

/// What a session can be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// vCPU slots; by default four per CPU, at least 64.
    pub slots: u32,
    /// Most links at a time.
    pub links: u32,
    /// Run-time budget of one run, in back edges, calls and helper calls; 0 for none.
    pub budget: u64,
    /// Bytes of the ring that takes samples.
    pub samples_bytes: u32,
    /// Bytes of the ring that takes lines of `trace_printk`.
    pub printk_bytes: u32,
    /// Bytes of each slot's ring in a perf event array.
    pub perf_ring_bytes: u32,
}

impl Default for Options {
    fn default() -> Options {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Options {
            slots: cpus.saturating_mul(4).clamp(64, 1024),
            links: 64,
            budget: 1 << 25,
            samples_bytes: 1 << 20,
            printk_bytes: 1 << 18,
            perf_ring_bytes: 1 << 16,
        }
    }
}

/// Why a session, or a link of it, could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There is nothing to run.
    #[error("no program to run")]
    NoPrograms,
    /// Programs of different objects do not share maps.
    #[error("program `{program}` belongs to another object than `{first}`")]
    OtherObject {
        /// The program.
        program: String,
        /// The first one of the session.
        first: String,
    },
    /// A map could not be made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// An initial value of a map names something that the session does not have.
    #[error("map `{map}`, index {index}: {problem}")]
    InitialValue {
        /// The map.
        map: String,
        /// The index.
        index: u32,
        /// What is wrong.
        problem: String,
    },
    /// Memory or threads could not be had.
    #[error("cannot make the session's {what}: {source}")]
    System {
        /// The part.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The tables do not fit their 32-bit offsets.
    #[error("the session is too large: {what}")]
    TooLarge {
        /// The part.
        what: &'static str,
    },
    /// The link table is full.
    #[error("more than {limit} links")]
    TooManyLinks {
        /// Its capacity.
        limit: u32,
    },
    /// There is no such program.
    #[error("the session has no program {index}")]
    NoProgram {
        /// The index asked for.
        index: usize,
    },
    /// There is no program of that name.
    #[error("the session has no program `{name}`")]
    NoSuchProgram {
        /// The name asked for.
        name: String,
    },
}

/// A program attached to something: made from a program of a session, and alive as long as the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    index: u32,
    program: usize,
    when: When,
}

impl Link {
    /// Its index in the session's link table.
    pub fn index(self) -> u32 {
        self.index
    }

    /// Index of its program in the session.
    pub fn program(self) -> usize {
        self.program
    }

    /// When it fires.
    pub fn when(self) -> When {
        self.when
    }
}

/// A map of the session, or what stands in the place of one that nothing uses and that cannot be made.
enum Entry {
    Map(Map),
    Absent(Arena),
}

impl Entry {
    fn map(&self) -> Option<&Map> {
        match self {
            Entry::Map(map) => Some(map),
            Entry::Absent(..) => None,
        }
    }
}

/// Programs, maps and links in shared memory. Dropping it disables all its links in all processes.
pub struct Session {
    // Dropped first: it works on the arenas.
    keeper: Keeper,
    control: Arc<Arena>,
    shared: Arc<Arena>,
    layout: ControlLayout,
    programs: Vec<Loaded>,
    entries: Vec<Entry>,
    links: Vec<Link>,
    local: local::Local,
}

impl Session {
    /// Makes the session of some programs of one object, with all of the object's maps.
    pub fn new(programs: Vec<Loaded>, options: &Options) -> Result<Session, SessionError> {
        let first = programs.first().ok_or(SessionError::NoPrograms)?;
        let defs = first.definitions().clone();
        if let Some(other) = programs.iter().find(|p| *p.definitions() != defs) {
            let (program, first) = (other.name().to_owned(), first.name().to_owned());
            return Err(SessionError::OtherObject { program, first });
        }
        let mut entries =
            defs.iter().enumerate().map(|(i, d)| entry(i, d, &programs, options)).collect::<Result<Vec<_>, _>>()?;
        for (name, bytes) in [("skep-samples", options.samples_bytes), ("skep-printk", options.printk_bytes)] {
            let def = MapDef::new(name, MapType::Ringbuf, 0, 0, bytes);
            entries.push(Entry::Map(Map::create(&def, options.slots)?));
        }
        fill_prog_arrays(&entries, &programs)?;

        let images: Vec<usize> = programs.iter().map(|p| p.image().len()).collect();
        let layout = ControlLayout::new(options.links, &images, entries.len())?;
        let system = |what| move |source| SessionError::System { what, source };
        let control = Arena::new(CONTROL_NAME, layout.size).map_err(system("control arena"))?;
        let shared = shared_size(options.slots, options.links);
        let shared = Arena::new(SHARED_NAME, shared).map_err(system("shared arena"))?;
        write_control(&control, &layout, &programs, &entries, options);
        control.seal_future_writes().map_err(system("control arena"))?;

        let (control, shared) = (Arc::new(control), Arc::new(shared));
        let local = local::Local::new(&entries, &control, |i| layout.map_header(i));
        let keeper = Keeper::start(control.clone(), shared.clone()).map_err(system("keeper thread"))?;
        Ok(Session { keeper, control, shared, layout, programs, entries, links: Vec::new(), local })
    }

    fn head(&self) -> &Control {
        // SAFETY: `Control` stands at offset 0 of an arena that lives as long as `self`; what changes in it is atomic.
        unsafe { &*self.control.ptr().cast::<Control>() }
    }

    fn shared_head(&self) -> &SharedHead {
        // SAFETY: as above.
        unsafe { &*self.shared.ptr().cast::<SharedHead>() }
    }

    /// The programs.
    pub fn programs(&self) -> &[Loaded] {
        &self.programs
    }

    /// The object's maps, in its order; `None` for one that could not be made and that no program uses.
    pub fn maps(&self) -> impl Iterator<Item = Option<&Map>> {
        self.entries[..self.objects_maps()].iter().map(Entry::map)
    }

    /// A map of the object.
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.maps().flatten().find(|m| m.def().name == name)
    }

    fn objects_maps(&self) -> usize {
        self.entries.len() - layout::INTERNAL_MAPS
    }

    /// Every map with its memory and the offset of its header, in the order of the headers, the internal ones included.
    pub(crate) fn all_maps(&self) -> impl Iterator<Item = MapPart<'_>> {
        self.entries.iter().enumerate().map(|(i, entry)| {
            let header_offset = self.layout.map_header(i);
            match entry {
                Entry::Map(map) => MapPart { arena: map.arena(), writable: map.target_writable(), header_offset },
                Entry::Absent(arena) => MapPart { arena, writable: false, header_offset },
            }
        })
    }

    pub(crate) fn internal_map(&self, which: usize) -> Option<&Map> {
        self.entries.get(self.objects_maps() + which).and_then(Entry::map)
    }

    /// The control arena, to be mapped read-only.
    pub fn control_arena(&self) -> &Arena {
        &self.control
    }

    /// The shared arena.
    pub fn shared_arena(&self) -> &Arena {
        &self.shared
    }

    /// vCPU slots.
    pub fn slots(&self) -> u32 {
        self.head().nslots
    }

    /// What wakes the consumer of events.
    pub(crate) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Links a program; it is [enabled](Session::enable) at once.
    pub fn link(&mut self, program: usize, when: When, cookie: u64) -> Result<Link, SessionError> {
        if program >= self.programs.len() {
            return Err(SessionError::NoProgram { index: program });
        }
        let limit = self.head().nlinks;
        let index = self.links.len() as u32;
        if index >= limit {
            return Err(SessionError::TooManyLinks { limit });
        }
        let kind = match when {
            When::Entry => link_kind::ENTRY,
            When::Return => link_kind::RETURN,
        };
        let flags = if self.programs[program].is_user_probe() { 0 } else { link_flags::KERNEL };
        let row = self.layout.link(index);
        // SAFETY: the row is in the arena, and nobody looks at it before it is ON.
        unsafe {
            self.control.ptr().add(row).cast::<LinkRow>().write(LinkRow {
                state: AtomicU32::new(link_state::OFF),
                kind,
                prog: AtomicU32::new(program as u32),
                flags,
                cookie,
                reserved: 0,
            });
        }
        let link = Link { index, program, when };
        self.links.push(link);
        self.enable(link);
        Ok(link)
    }

    /// The links, in the order in which they were made.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Has hits run the link's program.
    pub fn enable(&self, link: Link) {
        self.set(link, link_state::ON);
    }

    /// Has hits fall through.
    pub fn disable(&self, link: Link) {
        self.set(link, link_state::OFF);
    }

    fn set(&self, link: Link, state: u32) {
        if let Some(row) = self.head().link(link.index) {
            row.state.store(state, Ordering::Release);
        }
    }

    /// The names of the programs that can write to a map.
    pub fn writers(&self, map: usize) -> impl Iterator<Item = &str> {
        self.programs.iter().filter(move |p| p.uses(map)).map(|p| p.name())
    }
}

/// A map as a process is to map it.
pub(crate) struct MapPart<'a> {
    pub arena: &'a Arena,
    pub writable: bool,
    pub header_offset: u64,
}

/// Makes a map. One that no program uses may be of a type that is not supported.
fn entry(index: usize, def: &MapDef, programs: &[Loaded], options: &Options) -> Result<Entry, SessionError> {
    let map_options = MapOptions {
        perf_ring_bytes: options.perf_ring_bytes,
        sample_type: sample_type::IP | sample_type::TID | sample_type::TIME,
    };
    // A perf event array without a size has an element per CPU, as loaders set it.
    let mut def = def.clone();
    if def.map_type == MapType::PerfEventArray && def.max_entries == 0 {
        def.max_entries = options.slots;
    }
    match Map::create_with(&def, options.slots, map_options) {
        Ok(map) => {
            if def.map_type == MapType::PerfEventArray {
                map.set_all_perf_events().map_err(|errno| MapError::Refused {
                    map: def.name.clone(),
                    errno,
                    reason: "its rings cannot be opened".into(),
                })?;
            }
            Ok(Entry::Map(map))
        }
        Err(_) if !programs.iter().any(|p| p.uses(index)) => {
            let arena = Arena::new("skep-map", 1).map_err(|source| SessionError::System { what: "maps", source })?;
            Ok(Entry::Absent(arena))
        }
        Err(error) => Err(error.into()),
    }
}

/// Puts the programs that a prog array's definition names into it.
fn fill_prog_arrays(entries: &[Entry], programs: &[Loaded]) -> Result<(), SessionError> {
    for map in entries.iter().filter_map(Entry::map) {
        for (index, value) in &map.def().values {
            let wrong = |problem| SessionError::InitialValue { map: map.def().name.clone(), index: *index, problem };
            match value {
                InitialValue::Program(name) => {
                    let found = programs.iter().position(|p| p.name() == name);
                    let program = found.ok_or_else(|| wrong(format!("program `{name}` is not loaded")))?;
                    let put = map.set_program(*index, Some(program as u32));
                    put.map_err(|e: Errno| wrong(format!("program `{name}`: {e}")))?;
                }
                InitialValue::Map(name) => return Err(wrong(format!("map `{name}` in a map is not supported"))),
            }
        }
    }
    Ok(())
}

/// Writes everything that stands in the control arena before it is shared.
fn write_control(control: &Arena, layout: &ControlLayout, programs: &[Loaded], entries: &[Entry], options: &Options) {
    let internal = (entries.len() - layout::INTERNAL_MAPS) as u32;
    let base = control.ptr();
    // SAFETY: all offsets are those of the layout that the arena was made for, aligned for what stands there; nobody
    // else has the arena yet.
    unsafe {
        base.cast::<Control>().write(Control {
            magic: MAGIC,
            enable: AtomicU32::new(0),
            nslots: options.slots,
            robust_node: 0,
            size: control.len() as u64,
            links: layout.links as u32,
            nlinks: options.links,
            progs: layout.progs as u32,
            nprogs: programs.len() as u32,
            map_headers: layout.map_headers as u32,
            nmaps: entries.len() as u32,
            samples_map: internal + layout::SAMPLES as u32,
            printk_map: internal + layout::PRINTK as u32,
            budget: options.budget,
        });
        for (i, (program, &image)) in programs.iter().zip(&layout.images).enumerate() {
            let bytes = program.image();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), base.add(image), bytes.len());
            base.add(layout.progs).cast::<ProgCell>().add(i).write(ProgCell {
                image: AtomicU64::new(image as u64),
                prog_type: program.prog_type() as u32,
                flags: 0,
            });
        }
        for (i, entry) in entries.iter().enumerate() {
            if let Entry::Map(map) = entry {
                base.add(layout.map_headers).cast::<MapHeader>().add(i).write(*map.header());
            }
        }
    }
}

/// "None" in tables, for those who read records.
pub(crate) const NO_LINK: u32 = NONE;
