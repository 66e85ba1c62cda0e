//! The front: `bpf(2)` as Linux answers it, without the kernel.
//!
//! A [`Subsystem`] holds programs, maps and types; a [`Client`] is who calls: memory, descriptors, capabilities. Each
//! command takes the binary `union bpf_attr` ([`attr`]) and answers with the kernel's numbers and errnos, in its order of
//! checks. There is no global state: two subsystems know nothing of each other.

pub mod attr;
mod btf;
pub mod client;
mod command;
pub mod ids;
mod info;
mod log;
mod map;
pub mod object;
mod pin;
mod prog;
mod run;
mod world;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use skep_ebpf::Errno;
use skep_ebpf::btf::Btf;
use skep_jit::Engine;

pub use client::{Caps, Client, OwnFiles};
pub use command::Command;

use attr::Attr;
use ids::Ids;
use object::{BtfObject, MapObject, ProgObject};
use pin::Pins;
use world::World;

/// What a subsystem is like.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What runs programs.
    pub engine: Engine,
    /// The kernel's types, for programs that use them.
    pub kernel_btf: Option<Arc<Btf>>,
    /// vCPU slots, that is possible CPUs; 0 for the default of a session.
    pub slots: u32,
}

/// A kernel's eBPF subsystem, in this process.
#[derive(Debug)]
pub struct Subsystem {
    config: Config,
    slots: u32,
    world: Arc<World>,
    maps: Arc<Ids<MapObject>>,
    progs: Arc<Ids<ProgObject>>,
    btfs: Arc<Ids<BtfObject>>,
    pins: Pins,
    stats_users: Arc<AtomicU64>,
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
    /// Pins.
    pub pins: usize,
    /// Bytes of the programs' code.
    pub code_bytes: usize,
}

impl Subsystem {
    /// An empty one.
    pub fn new(config: Config) -> std::io::Result<Subsystem> {
        let slots = if config.slots == 0 { crate::session::Options::default().slots } else { config.slots };
        Ok(Subsystem {
            config,
            slots,
            world: Arc::new(World::new(slots)?),
            maps: Arc::default(),
            progs: Arc::default(),
            btfs: Arc::default(),
            pins: Pins::default(),
            stats_users: Arc::default(),
        })
    }

    /// Possible CPUs: per-CPU maps have so many values.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// `bpf(cmd, attr, size)`: the answer, a descriptor or 0. Answers inside of the attributes are written to `attr`.
    pub fn bpf(&self, client: &Client, cmd: u32, attr: &mut [u8]) -> Result<i32, Errno> {
        let mut attr = Attr::new(attr)?;
        let command = Command::from_u32(cmd).ok_or(Errno::EINVAL)?;
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
            pins: self.pin_count(),
            code_bytes: self.world.code_bytes(),
        }
    }
}
