//! A session: the programs of one object with their maps, links that attach them, and what is counted.
//!
//! A session is a subsystem of its own ([`crate::front`]) that is filled from an object file instead of by `bpf(2)`: the
//! same maps, programs and links, in the same memory (`skep_runtime::session`).

mod counts;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use skep_ebpf::Errno;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::{InitialValue, MapDef};
use skep_ebpf::uapi::{AttachType, MapType, ProgType};
use skep_jit::{CompileError, Engine, MapIndices};
use skep_maps::control::{Map, MapError, Options as MapOptions};
use skep_maps::sample_type;
use skep_runtime::helpers::TAIL_CALL;
use skep_runtime::session::{Arguments, NONE, link_flags};
use skep_runtime::{At, Run, Task};
use skep_verifier::Verified;

pub use crate::front::targets::Swept;
pub use counts::Counts;

use crate::arguments::arguments;
use crate::attach::{Attached, Registers};
use crate::front::object::{MapObject, MapUser, ProgObject};
use crate::front::targets::{LinkPlace, NewLink, WorldMemory};
use crate::front::{Config, Limits, Subsystem, World};
use crate::loaded::Loaded;
use crate::place::{Syscalls, When};
use crate::symbols::Symbols;
use crate::testrun::{TestInput, TestOutput, TestRunError};

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
    /// What runs programs.
    pub engine: Engine,
    /// Profilers and debuggers that are told of machine code.
    pub symbols: Symbols,
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
            engine: Engine::default(),
            symbols: Symbols::default(),
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
    /// A program cannot be run here.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// What the program is to be given cannot be found.
    #[error("program `{program}`: {problem}")]
    Arguments {
        /// The program.
        program: String,
        /// What is wrong.
        problem: String,
    },
    /// The link table is full.
    #[error("more than {limit} links")]
    TooManyLinks {
        /// Its capacity.
        limit: u32,
    },
    /// A program on a tracepoint reads more than that tells.
    #[error("program `{program}` reads {end} bytes of its context, of which `{tracepoint}` has {size}")]
    Record {
        /// The program.
        program: String,
        /// The tracepoint.
        tracepoint: String,
        /// What it reads up to.
        end: u32,
        /// What there is.
        size: u32,
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

/// A subsystem with the programs and maps of one object, and links to attach them. Dropping it disables all its links in
/// all processes.
pub struct Session {
    links: Vec<Link>,
    rows: Vec<LinkPlace>,
    /// What processes map, once one is to be attached to.
    memory: OnceLock<WorldMemory>,
    maps: Vec<Option<MapUser>>,
    programs: Vec<Arc<ProgObject>>,
    limit: u32,
    /// Readable when there may be events.
    bell: OwnedFd,
    subsystem: Subsystem,
}

impl Session {
    /// Makes the session of some programs of one object, with all of the object's maps.
    pub fn new(programs: Vec<Verified>, options: &Options) -> Result<Session, SessionError> {
        let first = programs.first().ok_or(SessionError::NoPrograms)?.program();
        let defs = Arc::clone(&first.maps);
        if let Some(other) = programs.iter().map(Verified::program).find(|p| p.maps != defs) {
            let (program, first) = (other.name.clone(), first.name.clone());
            return Err(SessionError::OtherObject { program, first });
        }
        let system = |what| move |source| SessionError::System { what, source };
        let errno = |what| move |e: Errno| SessionError::System { what, source: io::Error::from_raw_os_error(e.0) };
        let limits = limits(&programs, defs.len(), options);
        let config = Config { slots: options.slots, symbols: options.symbols.clone(), ..Config::default() };
        let subsystem = Subsystem::with_limits(config, limits).map_err(system("arenas"))?;
        // Started first: what asks for memory later then finds it.
        let keeper = subsystem.world().keeper().map_err(system("keeper thread"))?;
        let bell = keeper.fd().try_clone_to_owned().map_err(system("keeper thread"))?;
        let mut maps = Vec::with_capacity(defs.len());
        for (index, def) in defs.iter().enumerate() {
            let map = map(index, def, &programs, options)?;
            maps.push(map.map(|m| subsystem.take_map(m)).transpose().map_err(errno("maps"))?);
        }
        // A map that could not be made is named by no program.
        let indices: Arc<[u32]> = maps.iter().map(|m| m.as_ref().map_or(u32::MAX, |m| m.place.index())).collect();
        let compile = skep_jit::Options {
            engine: options.engine,
            maps: MapIndices::Each(indices),
            budget: options.budget != 0,
            harden: false,
            bytecode: true,
            ..skep_jit::Options::default()
        };
        let held: Vec<Arc<MapObject>> = maps.iter().flatten().map(|m| Arc::clone(m.object())).collect();
        let mut loaded = Vec::with_capacity(programs.len());
        for verified in programs {
            let code = Loaded::new(&verified, &compile)?;
            loaded.push(subsystem.take_program(verified, code, held.clone()).map_err(errno("programs"))?);
        }
        let session = Session {
            links: Vec::new(),
            rows: Vec::new(),
            memory: OnceLock::new(),
            maps,
            programs: loaded,
            limit: options.links,
            bell,
            subsystem,
        };
        session.fill_prog_arrays()?;
        Ok(session)
    }

    /// The subsystem that the programs and maps are in.
    pub fn subsystem(&self) -> &Subsystem {
        &self.subsystem
    }

    pub(crate) fn world(&self) -> &Arc<World> {
        self.subsystem.world()
    }

    /// The programs.
    pub fn programs(&self) -> impl ExactSizeIterator<Item = &Loaded> {
        self.programs.iter().map(|p| &p.loaded)
    }

    /// A program by its index.
    pub fn program_at(&self, index: usize) -> Option<&Loaded> {
        self.programs.get(index).map(|p| &p.loaded)
    }

    /// What was found out about a program.
    pub(crate) fn verified(&self, index: usize) -> Option<&Verified> {
        self.programs.get(index).map(|p| &*p.verified)
    }

    /// Runs a link's program here, about a thread of another process, and counts the run: its result, and the slot.
    ///
    /// # Safety
    /// `ctx` is a context of the program's type, `at` and `task` tell of it.
    pub(crate) unsafe fn run_link(&self, link: Link, ctx: *mut u8, at: &At, task: &Task<'_>) -> Option<(Run, u32)> {
        let prog = self.programs.get(link.program)?;
        // SAFETY: the caller's promise.
        let run = unsafe { self.world().run_link(link.index, prog.place.index(), ctx, at, task) };
        prog.feed();
        run
    }

    /// True if a program is given the arguments of the function that it runs around, and not the registers.
    pub(crate) fn is_typed(&self, index: usize) -> bool {
        self.programs.get(index).is_some_and(|p| p.is_around())
    }

    /// The program of a name.
    pub fn program(&self, name: &str) -> Result<usize, SessionError> {
        let found = self.programs().position(|p| p.name() == name);
        found.ok_or_else(|| SessionError::NoSuchProgram { name: name.to_owned() })
    }

    /// The object's maps, in its order; `None` for one that could not be made and that no program uses.
    pub fn maps(&self) -> impl Iterator<Item = Option<&Map>> {
        self.maps.iter().map(|m| m.as_ref().map(|m| &m.object().map))
    }

    /// A map of the object.
    pub fn map(&self, name: &str) -> Option<&Map> {
        self.maps().flatten().find(|m| m.def().name == name)
    }

    /// The rings for samples and for lines of `trace_printk`.
    pub(crate) fn internal_maps(&self) -> &[Map; 2] {
        &self.world().rings
    }

    /// vCPU slots.
    pub fn slots(&self) -> u32 {
        self.subsystem.slots()
    }

    /// What wakes the consumer of events.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// A process was attached to: profilers are told where it has the programs' code ([`Options::symbols`]).
    pub fn attached(&self, attached: &Attached) {
        self.subsystem.symbols().set_process(attached.pid, attached.code);
    }

    /// What a process that is attached to maps.
    pub(crate) fn memory(&self) -> io::Result<&WorldMemory> {
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let memory = self.world().memory()?;
        Ok(self.memory.get_or_init(|| memory))
    }

    /// Links a program; it is [enabled](Session::enable) at once.
    pub fn link(&mut self, program: usize, when: When, cookie: u64) -> Result<Link, SessionError> {
        let object = self.programs.get(program).ok_or(SessionError::NoProgram { index: program })?;
        let mut flags = if object.loaded.is_user_probe() { 0 } else { link_flags::KERNEL };
        let mut arguments = Arguments::default();
        if object.verified.program().prog_type == ProgType::Tracing {
            let (found, stack) = typed(object, when)?;
            arguments = found;
            flags |= link_flags::TYPED | (stack as u32) << link_flags::STACK_WORDS;
        }
        let prog = Some(object.place.index());
        self.add_link(program, NewLink { prog, when, flags, cookie, arguments, call: None })
    }

    fn add_link(&mut self, program: usize, new: NewLink) -> Result<Link, SessionError> {
        let limit = self.limit;
        if self.links.len() >= limit as usize {
            return Err(SessionError::TooManyLinks { limit });
        }
        let row = self
            .world()
            .add_link(new)
            .map_err(|e| SessionError::System { what: "links", source: io::Error::from_raw_os_error(e.0) })?;
        let link = Link { index: row.index(), program, when: new.when };
        self.rows.push(row);
        self.links.push(link);
        self.enable(link);
        Ok(link)
    }

    /// Links a program on a tracepoint of system calls; it is enabled at once.
    pub fn link_syscalls(&mut self, program: usize, calls: &Syscalls, cookie: u64) -> Result<Link, SessionError> {
        let object = self.programs.get(program).ok_or(SessionError::NoProgram { index: program })?;
        let raw = object.verified.program().prog_type == ProgType::RawTracepoint;
        let size = if raw { 16 } else { calls.record() };
        // What the kernel looks at when it attaches a program; and those that it may call.
        let callable = object.verified.insns().iter().any(|insn| insn.is_helper_call() && insn.imm as u32 == TAIL_CALL);
        let same = |p: &&Arc<ProgObject>| p.verified.program().prog_type == object.verified.program().prog_type;
        let others = self.programs.iter().filter(|p| callable && same(p));
        for object in others.chain([object]) {
            if let Some(end) = object.verified.ctx_reads().iter().map(|(_, end)| *end).max().filter(|end| *end > size) {
                let (program, tracepoint) = (object.loaded.name().to_owned(), calls.to_string());
                return Err(SessionError::Record { program, tracepoint, end, size });
            }
        }
        let flags = if raw { link_flags::RAW } else { 0 } | if calls.exit { link_flags::EXIT } else { 0 };
        self.add_link(
            program,
            NewLink {
                prog: Some(object.place.index()),
                when: When::Entry,
                flags,
                cookie,
                arguments: Arguments::default(),
                call: calls.call.map(|call| call.number),
            },
        )
    }

    /// What helpers that a program on system calls calls read of the registers.
    pub(crate) fn helpers_read(&self, program: usize) -> Registers {
        const READERS: [&str; 3] = ["perf_event_output", "get_stackid", "get_stack"];
        let Some(object) = self.programs.get(program) else { return Registers::ALL };
        if object.verified.program().prog_type != ProgType::Tracepoint {
            return Registers::ALL;
        }
        let reads = |insn: &Insn| {
            let helper = insn.is_helper_call().then(|| Helper::by_id(insn.imm as u32)).flatten();
            helper.is_some_and(|helper| READERS.contains(&helper.name))
        };
        let calls = if object.loaded.changes_few() { Registers::NONE } else { Registers::CALLING };
        calls.and(if object.verified.insns().iter().any(reads) { Registers::STACK } else { Registers::NONE })
    }

    /// The links, in the order in which they were made.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Has hits run the link's program.
    pub fn enable(&self, link: Link) {
        self.set(link, true);
    }

    /// Has hits fall through.
    pub fn disable(&self, link: Link) {
        self.set(link, false);
    }

    fn set(&self, link: Link, on: bool) {
        if let Some(row) = self.rows.iter().find(|r| r.index() == link.index) {
            row.switch(on);
        }
    }

    /// The names of the programs that can write to a map.
    pub fn writers(&self, map: usize) -> impl Iterator<Item = &str> {
        self.programs().filter(move |p| p.uses(map)).map(|p| p.name())
    }

    /// Waits until no thread of a process runs a program, so that all counts are final; false if that takes longer than
    /// `patience`. To be called once its links are disabled.
    pub fn quiesce(&self, proc_index: u32, patience: Duration) -> bool {
        self.world().quiesce(proc_index, patience)
    }

    /// Frees the slots of a process, and what their threads held in maps. To be called once nothing of the process runs
    /// any more: after its end, or after it has replaced its image and before the new one runs.
    pub fn sweep(&self, proc_index: u32) -> Swept {
        self.world().sweep(proc_index)
    }

    /// Runs a program in this process on given data, as `BPF_PROG_TEST_RUN` does.
    pub fn test_run(&self, program: usize, input: &TestInput<'_>) -> Result<TestOutput, TestRunError> {
        let object = self.programs.get(program).ok_or(TestRunError::NoProgram { index: program })?;
        self.subsystem.test_run(object, input)
    }

    /// Puts the programs that a prog array's definition names into it.
    fn fill_prog_arrays(&self) -> Result<(), SessionError> {
        for map in self.maps.iter().flatten() {
            let def = map.map.def();
            for (index, value) in &def.values {
                let wrong = |problem| SessionError::InitialValue { map: def.name.clone(), index: *index, problem };
                match value {
                    InitialValue::Program(name) => {
                        let found = self.program(name).ok().and_then(|p| self.programs.get(p));
                        let program = found.ok_or_else(|| wrong(format!("program `{name}` is not loaded")))?;
                        let put = map.set_program(*index, Arc::clone(program));
                        put.map_err(|e: Errno| wrong(format!("program `{name}`: {e}")))?;
                    }
                    InitialValue::Map(name) => return Err(wrong(format!("map `{name}` in a map is not supported"))),
                }
            }
        }
        Ok(())
    }
}

/// What a program that runs around a function of a process is given, and how much of that is on the stack.
fn typed(prog: &ProgObject, when: When) -> Result<(Arguments, usize), SessionError> {
    let refuse = |problem: String| SessionError::Arguments { program: prog.loaded.name().to_owned(), problem };
    let (program, types) = (prog.verified.program(), prog.verified.kernel_types());
    let own = match program.attach_type {
        Some(AttachType::TraceFentry) => When::Entry,
        Some(AttachType::TraceFexit) => When::Return,
        _ => return Err(refuse("it does not run around a function".into())),
    };
    let Some(types) = types.filter(|_| prog.verified.is_for_process()) else {
        return Err(refuse("it was not verified for a function of a process".into()));
    };
    if own != when {
        return Err(refuse("it is for the other end of the function".into()));
    }
    arguments(types, program.attach_btf_id)
        .map_err(|why| refuse(format!("the arguments of {} cannot be found: {why}", types.name(program.attach_btf_id))))
}

/// Room for these programs and maps, and no more: it is address space in each process that is traced.
fn limits(programs: &[Verified], maps: usize, options: &Options) -> Limits {
    // More than code of either kind takes.
    let image = |p: &Verified| (p.insns().len() * 264 + 2048).next_multiple_of(4096);
    Limits {
        slots: options.slots,
        objects: (maps + programs.len() + 8) as u32,
        links: options.links,
        functions: 0,
        images: programs.iter().map(image).sum(),
        budget: options.budget,
        samples_bytes: options.samples_bytes,
        printk_bytes: options.printk_bytes,
    }
}

/// Makes a map. One that no program uses may be of a type that is not supported.
fn map(index: usize, def: &MapDef, programs: &[Verified], options: &Options) -> Result<Option<Map>, SessionError> {
    let map_options = MapOptions {
        perf_ring_bytes: options.perf_ring_bytes,
        sample_type: sample_type::IP | sample_type::TID | sample_type::TIME,
        spin_lock: programs.first().and_then(|p| {
            let btf = p.program().btf.as_deref()?;
            skep_verifier::spin_lock_of(def, btf, p.kernel_types())
        }),
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
            Ok(Some(map))
        }
        Err(_) if !programs.iter().any(|p| names(p, index)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// True if a program's instructions name a map.
fn names(verified: &Verified, map: usize) -> bool {
    let by_index = |i: &Insn| matches!(i.src(), pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE) && i.imm as usize == map;
    verified.insns().iter().any(|i| i.is_ld_imm64() && by_index(i))
}

/// "None" in tables, for those who read records.
pub(crate) const NO_LINK: u32 = NONE;
