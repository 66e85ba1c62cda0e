//! What a controller asks for, and what it is told.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use skep_jit::Context;

use super::AttachError;

/// A memfd and its size.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    /// The memfd.
    pub fd: BorrowedFd<'a>,
    /// Bytes to map.
    pub size: u64,
}

/// A map's memory.
#[derive(Clone, Copy, Debug)]
pub struct MapMemory<'a> {
    /// The memfd.
    pub fd: BorrowedFd<'a>,
    /// Where in it the map begins: a multiple of the page size.
    pub offset: u64,
    /// Bytes to map.
    pub size: u64,
    /// Mapped writable in the target?
    pub writable: bool,
    /// Offset of its header in the control arena.
    pub header_offset: u64,
    /// It only stands in the table for a map that the process does not have.
    pub absent: bool,
}

/// When a probe fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeKind {
    /// Before the instruction at the place.
    Entry,
    /// When the function that begins at the place returns.
    Return,
}

/// Where a probe goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeTarget {
    /// A function, or an instruction in it.
    Symbol {
        /// Its name, `NAME` or `NAME@VERSION`.
        name: String,
        /// Bytes from its start.
        offset: u64,
        /// The file to look in: a path, a file name, or the start of one (`libc.so`, `libc`). `None`: the executable first, then all.
        module: Option<String>,
    },
    /// An offset in a file.
    FileOffset {
        /// The file, as above.
        module: String,
        /// Offset in the file.
        offset: u64,
    },
    /// Where system calls are made, or where they return.
    Syscall(SyscallProbe),
}

/// System calls to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallProbe {
    /// Those of this number; `None`: all.
    pub number: Option<u32>,
    /// Where they return, and not where they are made.
    pub exit: bool,
}

/// Words of a `pt_regs`, by their order in it; and whether code runs that may change all that a call may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers(u32);

impl Registers {
    /// Words of a `pt_regs`.
    pub const COUNT: u32 = 21;
    const CALLS: u32 = 1 << 31;
    /// All of it, and calls.
    pub const ALL: Registers = Registers(((1 << Registers::COUNT) - 1) | Registers::CALLS);
    /// What stacks begin with: frame pointer, instruction pointer and stack pointer.
    pub const STACK: Registers = Registers(1 << 4 | 1 << 16 | 1 << 19);
    /// None of it, and calls.
    pub const CALLING: Registers = Registers(Registers::CALLS);
    /// Nothing of it.
    pub const NONE: Registers = Registers(0);

    /// Those that a program may read of its context; `few` if its code changes few registers.
    pub fn read_by(context: &Context, few: bool) -> Registers {
        let Context::Parts(parts) = context else { return Registers::ALL };
        let words = parts.iter().flat_map(|&(start, end)| start / 8..end.div_ceil(8));
        let calls = if few { 0 } else { Registers::CALLS };
        Registers(words.filter(|&word| word < Registers::COUNT).fold(calls, |all, word| all | 1 << word))
    }

    /// May what runs change all that a call may?
    pub fn calls(self) -> bool {
        self.0 & Registers::CALLS != 0
    }

    /// The words.
    pub fn words(self) -> u32 {
        self.0 & !Registers::CALLS
    }

    /// Those of both.
    pub fn and(self, other: Registers) -> Registers {
        Registers(self.0 | other.0)
    }

    /// All but this word.
    pub fn without(self, word: u32) -> Registers {
        Registers(self.0 & !(1u32.checked_shl(word).unwrap_or(0)))
    }

    /// Is this word among them?
    pub fn has(self, word: u32) -> bool {
        word < Registers::COUNT && self.0 & 1 << word != 0
    }
}

impl Default for Registers {
    fn default() -> Registers {
        Registers::ALL
    }
}

/// A probe to place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeSpec {
    /// Index of the link in the control arena.
    pub link: u32,
    /// When it fires.
    pub kind: ProbeKind,
    /// Where it goes.
    pub target: ProbeTarget,
    /// What its program reads of the registers.
    pub registers: Registers,
}

/// A process to attach to, the memory to share with it, and the probes to place.
#[derive(Clone, Debug)]
pub struct AttachRequest<'a> {
    /// The process.
    pub pid: u32,
    /// Its index in the session.
    pub proc_index: u32,
    /// The last change around functions of programs that the maps are there for (`skep_runtime::around`).
    pub change: u64,
    /// The control arena; it must be sealed against writing through new mappings.
    pub control: Memory<'a>,
    /// The shared arena.
    pub shared: Memory<'a>,
    /// The maps, in the order of their headers.
    pub maps: Vec<MapMemory<'a>>,
    /// Number of slots.
    pub nslots: u32,
    /// The probes.
    pub probes: Vec<ProbeSpec>,
    /// An agent to use instead of the built-in one: an ELF file, position independent and without needs.
    pub agent: Option<&'a [u8]>,
    /// The processes that it forks are told of ([`InjectorEvent::Forked`]), and it is followed through `exec`.
    pub children: bool,
    /// A file of which the process maps the first page, to read and execute; by it profilers learn of what is in it.
    pub marker: Option<Arc<OwnedFd>>,
}

/// How a place was patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// A jump.
    Jump,
    /// A breakpoint.
    Int3,
}

impl Method {
    /// As the command line prints it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Jump => "jump",
            Method::Int3 => "int3",
        }
    }
}

/// A place that a probe was put at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The symbol as found, `+0x…` included.
    pub symbol: String,
    /// Path of the module.
    pub module: String,
    /// Address in the target.
    pub address: u64,
    /// How.
    pub method: Method,
    /// Why it is no jump.
    pub why_no_jump: Option<String>,
    /// The places of a probe on system calls, for which all else says little.
    pub calls: Option<Calls>,
}

/// The places of a probe on system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// How many are watched.
    pub watched: u32,
    /// Those that are not.
    pub unwatched: Vec<Unwatched>,
}

/// A system call in the text that is not watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwatched {
    /// The function that it is in, and where.
    pub symbol: String,
    /// Path of the module.
    pub module: String,
    /// Its number, if it is always the same.
    pub number: Option<u32>,
    /// Why not.
    pub reason: String,
}

/// What became of one probe. A symbol found in several libraries yields one outcome for each, all with the same link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeOutcome {
    /// Index of the link.
    pub link: u32,
    /// The place, or the reason why not.
    pub result: Result<Placed, AttachError>,
}

/// Reply to [`super::Injector::attach`]: the target stands still until [`super::Injector::go`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The process.
    pub pid: u32,
    /// Its probes.
    pub probes: Vec<ProbeOutcome>,
    /// What the user should know (a symbol found in several modules, a left-over undone).
    pub notes: Vec<String>,
    /// Where the control arena is mapped for execution; `None` where nothing is mapped, or programs are interpreted.
    pub code: Option<u64>,
}

/// What the injector reports on its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InjectorEvent {
    /// A followed process has run `exec` and its new image has been attached to; it stands still until `go`. Probes whose
    /// symbol is absent in this image have an error of which [`AttachError::is_absence`] is true; a later image may have it.
    Attached(Attached),
    /// A process has replaced its image; its probes are gone with the old one.
    Exec {
        /// The process.
        pid: u32,
    },
    /// A process that was asked to be traced with its children has made this one, which stands still. Attaching to it, or
    /// [`Detach`](super::Injector::detach), lets it run.
    Forked {
        /// The new process.
        pid: u32,
        /// Who made it.
        parent: u32,
    },
    /// A process has ended.
    Exited {
        /// The process.
        pid: u32,
    },
    /// A followed process could not be attached to; it runs on without probes.
    Failed {
        /// The process.
        pid: u32,
        /// Why.
        error: AttachError,
    },
    /// The injector process itself has died.
    InjectorGone,
}
