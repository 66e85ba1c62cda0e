//! Where events get their hits from: the seam between events and links on one side, and what can be probed on the other.
//!
//! An event or link names a [`Point`]. Whoever has such places is a [`ProbeSites`]: the functions that this process
//! publishes ([`Functions`]), or processes that are traced. A place that is armed tells its [`Consumer`] of each hit, either
//! by [`Consumer::reached`], and the programs run here, or by [`Consumer::reported`] when they ran where the hit was.

mod functions;
mod nest;
mod processes;
mod runner;

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::uapi::PtRegs;

pub use crate::place::When;
pub use functions::{Function, Functions};
pub(super) use nest::{Inside, Nesting, enter};
pub(super) use processes::Processes;
pub(super) use runner::Results;
pub use runner::Runner;

use super::object::ProgObject;

/// What is to be probed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A function by its name, as kprobe events name it: of the process that is traced, or one that was published.
    Symbol {
        /// The module it is in, if one was named.
        module: Option<String>,
        /// Its name.
        name: String,
        /// Bytes from its start.
        offset: u64,
    },
    /// An address, as kprobe events may give it.
    Address(u64),
    /// An instruction in a file, as uprobes name it.
    File {
        /// The file.
        path: String,
        /// Where in the file.
        offset: u64,
        /// Where in the file the counter is that says how many probes want to be told (USDT); 0 for none.
        counter: u64,
    },
}

/// A place, when it fires, and in which process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// The place.
    pub what: What,
    /// At the entry, or at the return.
    pub when: When,
    /// The process; `None` for all.
    pub pid: Option<u32>,
}

/// A place that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its address; 0 where it has none of its own.
    pub address: u64,
}

/// Why a place cannot be probed. The errno depends on who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no such function.
    NoFunction,
    /// The address is within an instruction.
    InsideInstruction,
    /// It must not be probed.
    Forbidden,
    /// A return probe can only be at the start of a function.
    NotTheStart,
    /// Several functions have this name.
    Ambiguous,
}

/// A hit in this process.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// The registers there: at an entry those of the caller, at a return with the value in `rax`.
    pub regs: &'a PtRegs,
    /// The probed address; at a return that of the function.
    pub address: u64,
}

/// A program to run at a place.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The program.
    pub prog: Arc<ProgObject>,
    /// What `bpf_get_attach_cookie` gives it.
    pub cookie: u64,
}

/// Hits whose programs ran where they happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its vCPU slot.
    pub cpu: u32,
    /// `CLOCK_MONOTONIC`, ns.
    pub time: u64,
    /// The probed address; at a return the return address.
    pub ip: u64,
    /// At a return the function.
    pub func: u64,
}

/// What wants to hear of hits.
pub trait Consumer: Send + Sync {
    /// A place was reached in this process; at a return with `ret` as the return address.
    fn reached(&self, hit: &Hit<'_>);
    /// The programs that a process which runs them itself is to run at the place, in this order.
    fn programs(&self) -> Vec<Attached>;
    /// The programs ran, and all of them said that the event counts.
    fn reported(&self, report: &Report);
    /// So many hits were not delivered.
    fn missed(&self, count: u64);
}

/// A place that is armed; dropping it disarms it.
pub trait Armed: Send + Sync {
    /// The consumer's programs are others now.
    fn programs_changed(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// Places that can be probed.
pub trait ProbeSites: Send + Sync {
    /// Finds a place. `None` if it is not one of these.
    fn find(&self, point: &Point) -> Option<Result<Found, Missing>>;
    /// Has a place fire from now on. `None` if it is not one of these.
    fn arm(&self, point: &Point, consumer: &Arc<dyn Consumer>) -> Option<Result<Box<dyn Armed>, Errno>>;
    /// The functions that kprobe events can name, with their addresses, for who chooses by a pattern.
    fn functions(&self) -> Vec<(u64, String)> {
        Vec::new()
    }
}

/// All sites of a subsystem, asked in turn.
#[derive(Clone)]
pub struct AllSites(Vec<Arc<dyn ProbeSites>>);

impl std::fmt::Debug for AllSites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AllSites").field(&self.0.len()).finish()
    }
}

impl AllSites {
    /// These, in this order.
    pub fn new(sites: Vec<Arc<dyn ProbeSites>>) -> AllSites {
        AllSites(sites)
    }

    /// The first of them that knows the place says how it is.
    pub fn find(&self, point: &Point) -> Result<Found, Missing> {
        let mut answers = self.0.iter().filter_map(|s| s.find(point));
        answers.next().unwrap_or(Err(Missing::NoFunction))
    }

    /// The functions of all of them.
    pub fn functions(&self) -> Vec<(u64, String)> {
        self.0.iter().flat_map(|s| s.functions()).collect()
    }

    /// Arms a place with all that know it. A place in a file may be known to none: nobody has mapped it yet.
    pub fn arm(&self, point: &Point, consumer: &Arc<dyn Consumer>) -> Result<Vec<Box<dyn Armed>>, Errno> {
        self.0.iter().filter_map(|s| s.arm(point, consumer)).collect()
    }
}
