//! Getting into a process: probes in a running program that was never prepared for them.
//!
//! A controller does none of this itself. It starts an **injector** ([`Injector`]), a process of its own that outlives the
//! controller just long enough to undo everything: whatever kills the controller, the injector finds its socket closed,
//! restores the text of all targets byte for byte, and ends.
//!
//! The road of one attach, all of it while every thread of the target stands still (`world`):
//!
//! 1. `checks` refuses what cannot be traced, and says why; `leftover` undoes what a killed session left.
//! 2. `symbols` finds the functions, `site` proves which instructions may give way to a jump.
//! 3. `install` maps the session's memory and the agent into the target by system calls made there (`remote`); no
//!    descriptor and no thread stays behind.
//! 4. `code` makes the trampolines and return stubs; `unwind` tells the target's unwinder about the stubs.
//! 5. `patch` moves instruction pointers out of the way and writes the text, through `/proc/PID/mem`.
//!
//! `unsafe` in this module is for system calls that no safe wrapper offers (ptrace, waitpid, process-wide mappings).

mod agent_image;
mod arrivals;
mod block;
mod change;
mod checks;
mod code;
mod elf_file;
mod error;
mod follow;
mod frames;
mod gate;
mod go;
mod guards;
mod injector;
mod install;
mod jumps;
mod landing;
mod leftover;
mod patch;
mod place_code;
mod plan;
pub(crate) mod procfs;
mod ptrace;
mod remote;
mod request;
mod server;
mod sigtrap;
mod site;
mod symbols;
mod syscalls;
mod target;
mod unwind;
mod wire;
mod world;

/// The symbols of the process that was looked at last: its files are read once.
#[derive(Default)]
pub(crate) struct Known(Option<symbols::Modules>);

impl Known {
    /// Addresses of a place in a process, without touching it.
    pub(crate) fn resolve(&mut self, pid: u32, target: &ProbeTarget) -> Result<Vec<u64>, AttachError> {
        let maps = procfs::maps(pid)?;
        let modules = symbols::Modules::of(pid, &maps, &procfs::Auxv::read(pid)?);
        if let Some(earlier) = self.0.take() {
            modules.adopt(earlier);
        }
        let found = modules.find(target);
        self.0 = Some(modules);
        Ok(found?.into_iter().map(|f| f.address.wrapping_add(f.offset)).collect())
    }

    /// The functions of a process's own program, by their addresses.
    pub(crate) fn functions(&mut self, pid: u32) -> Result<Vec<(u64, String)>, AttachError> {
        let maps = procfs::maps(pid)?;
        let modules = symbols::Modules::of(pid, &maps, &procfs::Auxv::read(pid)?);
        if let Some(earlier) = self.0.take() {
            modules.adopt(earlier);
        }
        let loaded = modules.get(0).and_then(symbols::Module::loaded);
        let symbols = loaded.iter().flat_map(|l| l.elf.symbols.iter().map(|s| (s, l.bias)));
        let functions = symbols.filter(|(s, _)| s.function && s.default);
        let mut functions: Vec<_> = functions.map(|(s, bias)| (s.address.wrapping_add(bias), s.name.clone())).collect();
        functions.sort_unstable();
        functions.dedup();
        self.0 = Some(modules);
        Ok(functions)
    }
}

/// The file that stands at an address of a process, and where in it.
pub(crate) fn file_at(pid: u32, address: u64) -> Option<ProbeTarget> {
    let maps = procfs::maps(pid).ok()?;
    let mapping = maps.into_iter().find(|m| m.executable() && m.is_file() && m.range.contains(&address))?;
    let offset = mapping.offset + (address - mapping.range.start);
    Some(ProbeTarget::FileOffset { module: mapping.name, offset })
}

/// Adds to the 16-bit counter at an offset of a file that a process has mapped, as whoever wants to hear of a USDT probe
/// does; false if it has no such counter.
pub fn count(pid: u32, file: &str, offset: u64, by: i16) -> Result<bool, AttachError> {
    let maps = procfs::maps(pid)?;
    let holds = |m: &&procfs::Mapping| {
        let len = m.range.end - m.range.start;
        m.name == file && m.perms[1] && (m.offset..m.offset.saturating_add(len)).contains(&offset)
    };
    let Some(mapping) = maps.iter().find(holds) else { return Ok(false) };
    let (memory, at) = (world::Memory::open(pid)?, mapping.range.start + (offset - mapping.offset));
    let mut counter = [0; 2];
    memory.read(at, &mut counter)?;
    memory.write(at, &u16::from_le_bytes(counter).wrapping_add_signed(by).to_le_bytes())?;
    Ok(true)
}

pub use checks::is_confined;
pub use error::AttachError;
pub use injector::{Injector, main_if_requested};
pub use request::{
    AttachRequest, Attached, Calls, InjectorEvent, MapMemory, Memory, Method, Placed, ProbeKind, ProbeOutcome,
    ProbeSpec, ProbeTarget, Registers, SyscallProbe, Unwatched,
};
