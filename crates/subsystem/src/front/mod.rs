//! The front: `bpf(2)` as Linux answers it, without the kernel.
//!
//! A [`Subsystem`] holds programs, maps and types; a [`Client`] is who calls: memory, descriptors, capabilities. Each
//! command takes the binary `union bpf_attr` ([`attr`]) and answers with the kernel's numbers and errnos, in its order of
//! checks. There is no global state: two subsystems know nothing of each other.

pub mod account;
mod around;
pub mod attr;
mod barrier;
pub mod bells;
mod btf;
pub mod client;
mod command;
pub mod faults;
pub mod handed;
pub mod hooks;
pub mod ids;
mod info;
pub mod iter;
mod jited;
mod lease;
pub mod link;
mod log;
pub mod lsm;
mod map;
mod map_types;
mod nested;
pub mod object;
pub mod offload;
pub mod perf;
mod pin;
mod poll;
pub mod probe;
mod prog;
mod resolve;
pub mod route;
mod run;
mod shape;
mod sync;
pub mod targets;
pub mod token;
pub mod tracefs;
mod users;
pub mod vfs;
mod words;
pub(crate) mod world;
mod xlated;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use skep_ebpf::btf::Btf;
use skep_ebpf::uapi::MapType;
use skep_jit::Engine;
use skep_maps::control::Slabs;
use skep_verifier::KernelProfile;

pub use client::{Caps, Client, OwnFiles};
pub use command::Command;
pub use route::Router;
pub use skep_ebpf::Errno;

use account::{Accounts, Charge};
use around::Arounds;
use attr::Attr;
use bells::Bell;
use faults::{FaultPoint, Faults};
use hooks::{AllHooks, SecurityHooks};
use ids::Ids;
use link::{LinkObject, RawTracepoints};
use lsm::LsmPrograms;
use object::{BtfObject, MapObject, Object, ProgObject};
use offload::Devices;
use pin::Pins;
use probe::{AllSites, Functions, ProbeSites, Processes, Runner};
use shape::Shapes;
use token::Delegation;
use tracefs::TraceFs;
use tracefs::event::Means;
pub(crate) use world::{Limits, World};

use crate::symbols::{SymbolTable, Symbols};

/// The kernel whose load path is played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Linux 6.18.
    #[default]
    Linux6_18,
    /// Linux 4.17: its attributes, its order of checks, memory charged against `RLIMIT_MEMLOCK`, and its limits for
    /// programs ([`KernelProfile::LINUX_4_17`]).
    Linux4_17,
}

impl Profile {
    /// The rules that programs are judged by.
    pub fn rules(self) -> KernelProfile {
        match self {
            Profile::Linux6_18 => KernelProfile::LINUX_6_18,
            Profile::Linux4_17 => KernelProfile::LINUX_4_17,
        }
    }
}

/// What a subsystem is like.
#[derive(Clone, Default)]
pub struct Config {
    /// The kernel that is played.
    pub profile: Profile,
    /// What kprobe programs must name as their kernel version, where that is checked: `KERNEL_VERSION(a, b, c)`.
    pub kern_version: u32,
    /// Who may veto, and is told.
    pub hooks: Option<Arc<dyn SecurityHooks>>,
    /// Failures on demand, for tests.
    pub faults: Option<Arc<Faults>>,
    /// What runs programs.
    pub engine: Engine,
    /// The kernel's types, for programs that use them.
    pub kernel_btf: Option<Arc<Btf>>,
    /// vCPU slots, that is possible CPUs; 0 for the default of a session.
    pub slots: u32,
    /// What can be probed, besides the functions that this process publishes.
    pub sites: Vec<Arc<dyn ProbeSites>>,
    /// Events get into running processes. The program's `main` must begin with `attach::main_if_requested`.
    pub processes: bool,
    /// What the tree of pins delegates to those who make tokens of it; `None` if it has none.
    pub delegate: Option<Delegation>,
    /// The process whose functions kprobe events mean, and that uprobes of all processes go into.
    pub traced: Option<u32>,
    /// Who is told of machine code.
    pub symbols: Symbols,
    /// `BPF_LINK_UPDATE` on the link of an extension puts another one in its place. The kernel refuses that (`EINVAL`).
    pub extension_update: bool,
    /// Programs that need what only a kernel has (its packets, its objects) are loaded all the same, for loaders that are to be
    /// tested: they can be attached, but where one would run, 0 comes back at once, and test runs are refused (`ENOTSUPP`).
    pub idle: bool,
}

/// A kernel's eBPF subsystem, in this process.
#[derive(Debug)]
pub struct Subsystem {
    config: Config,
    slots: u32,
    world: Arc<World>,
    /// The memory of small maps.
    slabs: Slabs,
    maps: Arc<Ids<MapObject>>,
    progs: Arc<Ids<ProgObject>>,
    btfs: Arc<Ids<BtfObject>>,
    pins: Pins,
    stats_users: Arc<AtomicU64>,
    accounts: Arc<Accounts>,
    devices: Devices,
    links: Arc<Ids<LinkObject>>,
    functions: Arc<Functions>,
    processes: Option<Arc<Processes>>,
    arounds: Arc<Arounds>,
    means: Means,
    tracefs: TraceFs,
    raw_tracepoints: RawTracepoints,
    perf_ids: AtomicU64,
    hooks: AllHooks,
    lsm: Arc<LsmPrograms>,
    shapes: Option<Arc<Shapes>>,
    /// Iterators that were opened.
    sessions: AtomicU64,
    symbols: Arc<SymbolTable>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("profile", &self.profile).field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// How many objects live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// Maps.
    pub maps: usize,
    /// Programs.
    pub progs: usize,
    /// Sets of types.
    pub btfs: usize,
    /// Links.
    pub links: usize,
    /// Pins.
    pub pins: usize,
    /// Bytes of the programs' code.
    pub code_bytes: usize,
}

impl Subsystem {
    /// An empty one.
    pub fn new(config: Config) -> std::io::Result<Subsystem> {
        let slots = if config.slots == 0 { crate::session::Options::default().slots } else { config.slots };
        Subsystem::with_limits(config, Limits::new(slots))
    }

    /// An empty one with room for so much.
    pub(crate) fn with_limits(config: Config, limits: Limits) -> std::io::Result<Subsystem> {
        let world = Arc::new(World::new(limits)?);
        let symbols = Arc::new(SymbolTable::new(config.symbols.clone())?);
        let stats_users: Arc<AtomicU64> = Arc::default();
        let functions: Arc<Functions> = Arc::default();
        let arounds = Arc::new(Arounds::new(&world, config.engine));
        let mut sites: Vec<Arc<dyn ProbeSites>> = vec![functions.clone()];
        sites.extend(config.sites.iter().cloned());
        let processes = match config.processes {
            true => Some(Arc::new(Processes::new(&world, &symbols, config.traced, &arounds)?)),
            false => None,
        };
        sites.extend(processes.iter().map(|p| Arc::clone(p) as Arc<dyn ProbeSites>));
        let shapes = config.kernel_btf.as_deref().map(|btf| Arc::new(Shapes::new(btf)));
        let lsm = Arc::new(LsmPrograms::new(Arc::clone(&world), shapes.clone(), Arc::clone(&stats_users)));
        let owner = config.hooks.clone();
        let hooks = AllHooks::new(owner.into_iter().chain([lsm.clone() as Arc<dyn SecurityHooks>]));
        let runner = Arc::new(Runner::new(Arc::clone(&world), Arc::clone(&stats_users)));
        Ok(Subsystem {
            config,
            slots: limits.slots,
            world,
            slabs: Slabs::default(),
            maps: Arc::default(),
            progs: Arc::default(),
            btfs: Arc::default(),
            pins: Pins::default(),
            stats_users,
            accounts: Arc::default(),
            devices: Devices::default(),
            links: Arc::default(),
            arounds,
            functions,
            processes,
            means: Means { runner, sites: AllSites::new(sites) },
            tracefs: TraceFs::default(),
            raw_tracepoints: RawTracepoints::default(),
            perf_ids: AtomicU64::new(0),
            hooks,
            lsm,
            shapes,
            sessions: AtomicU64::new(0),
            symbols,
        })
    }

    /// What went wrong with the files for profilers ([`Config::symbols`]), if anything has: since then nothing was written.
    pub fn symbols_failure(&self) -> Option<&str> {
        self.symbols.failure()
    }

    /// The memory that programs run in.
    pub(crate) fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Who is told of machine code.
    pub(crate) fn symbols(&self) -> &SymbolTable {
        &self.symbols
    }

    fn fault(&self, point: FaultPoint) -> Result<(), Errno> {
        self.config.faults.as_ref().map_or(Ok(()), |f| f.ask(point))
    }

    /// Charges the caller's user for memory.
    fn charge(&self, client: &Client, bytes: u64) -> Result<Charge, Errno> {
        self.accounts.charge(client.uid, bytes, client.memlock).map_err(|e| match self.config.profile {
            Profile::Linux4_17 => e,
            Profile::Linux6_18 => Errno::ENOMEM,
        })
    }

    /// Gives the caller a descriptor.
    fn install(&self, client: &Client, object: Object) -> Result<i32, Errno> {
        match &object {
            Object::Map(map, access) => self.hooks.map_open(client, map, *access)?,
            Object::Prog(prog) => self.hooks.prog_open(client, prog)?,
            _ => {}
        }
        self.fault(FaultPoint::Fd)?;
        client.files.install(object)
    }

    /// The kernel's structs as programs see them, if its types are known.
    fn shapes(&self) -> Option<&Shapes> {
        self.shapes.as_deref()
    }

    /// True while somebody wants runs to be counted.
    fn counts_runs(&self) -> bool {
        self.stats_users.load(std::sync::atomic::Ordering::Relaxed) > 0
    }

    /// The devices that take programs.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The functions of this process that can be probed.
    pub fn functions(&self) -> &Functions {
        &self.functions
    }

    /// The process whose functions kprobe events mean from now on, as [`Config::traced`] says it in the beginning; what is
    /// attached stays where it is. False if events do not get into processes.
    pub fn trace(&self, pid: Option<u32>) -> bool {
        self.processes.as_ref().map(|p| p.trace(pid)).is_some()
    }

    /// What users are charged.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// What is rung when an object's ring has something to read; `None` for objects that nobody can wait for.
    pub fn bell(&self, object: &Object) -> Result<Option<Arc<Bell>>, Errno> {
        let map = match object {
            Object::Map(map, _) => map,
            Object::Perf(event) => return Ok(Some(Arc::clone(event.bell()))),
            _ => return Ok(None),
        };
        if map.map.def().map_type != MapType::Ringbuf {
            return Ok(None);
        }
        if let Some(bell) = map.bell.get() {
            return Ok(Some(Arc::clone(bell)));
        }
        let ring = Arc::downgrade(map.object());
        let bells = self.world.bells().map_err(|_| Errno::ENOMEM)?;
        let bell = bells.add(move || ring.upgrade().is_some_and(|m| m.map.unread() > 0)).map_err(|_| Errno::ENOMEM)?;
        Ok(Some(Arc::clone(map.bell.get_or_init(|| bell))))
    }

    /// Possible CPUs: per-CPU maps have so many values.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// `bpf(cmd, attr, size)`: the answer, a descriptor or 0. Answers inside of the attributes are written to `attr`.
    pub fn bpf(&self, client: &Client, cmd: u32, attr: &mut [u8]) -> Result<i32, Errno> {
        let (size, newest) = match self.config.profile {
            Profile::Linux6_18 => (attr::SIZE, Command::TokenCreate),
            Profile::Linux4_17 => (attr::SIZE_4_17, Command::RawTracepointOpen),
        };
        let mut attr = Attr::new(attr, size)?;
        let command = Command::from_u32(cmd).filter(|c| *c <= newest).ok_or(Errno::EINVAL)?;
        self.hooks.command(&attr.call(client, command))?;
        self.run_command(client, command, &mut attr)
    }
}

impl Subsystem {
    /// What there is: for tests of leaks, and for status lines.
    pub fn alive(&self) -> Alive {
        Alive {
            maps: self.maps.len(),
            progs: self.progs.len(),
            btfs: self.btfs.len(),
            links: self.links.len(),
            pins: self.pin_count(),
            code_bytes: self.world.code_bytes(),
        }
    }
}

/// True for programs that may sleep.
fn is_sleepable(prog: &ProgObject) -> bool {
    prog.verified.program().flags & skep_ebpf::uapi::prog_flags::SLEEPABLE != 0
}
