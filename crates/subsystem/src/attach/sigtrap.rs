//! `SIGTRAP` in a process with breakpoints: our handler in, every mask without it; and back again.
//!
//! What a target believes its action to be is kept in its [`TrapState`], where the guards change it.

use std::mem::offset_of;
use std::ops::Range;
use std::time::Duration;

use skep_runtime::session::{SigContext, TRAP_ACTIONS, TrapAction, TrapState};
use skep_runtime::trap::handler_flags;

use super::AttachError;
use super::patch;
use super::procfs::{self, Mapping};
use super::ptrace::{self, Tid};
use super::remote::Remote;
use super::world::World;

/// The bit of a signal in a set.
const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const TRAP: u64 = bit(libc::SIGTRAP);
/// The last signal.
const LAST: i32 = 64;
/// Signals that C libraries keep to themselves: handlers of theirs that run nothing else.
const INTERNAL: std::ops::RangeInclusive<i32> = 32..=33;
/// Bytes below the stack pointer where an action is put for the kernel: past the red zone.
const BELOW: u64 = 1024;
/// Before rip in a signal frame: the address of the code that handlers return to.
const FRAME_START: u64 = offset_of!(SigContext, rip) as u64 + 8;
/// From rip in a signal frame to the signals that were blocked before.
const FRAME_MASK: u64 = (offset_of!(SigContext, mask) - offset_of!(SigContext, rip)) as u64;
/// The instruction.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// How often threads get time to take their pending traps.
const PATIENCE: u32 = 100;

/// Our handler of `SIGTRAP`.
#[derive(Clone, Copy, Debug)]
pub struct Handler {
    /// Address of the [`TrapState`].
    pub state: u64,
    /// Address of the handler.
    pub address: u64,
    /// Address of the C library's `rt_sigreturn` code.
    pub restorer: u64,
}

impl Handler {
    /// The sets that arguments of system calls under way may point to.
    pub fn kept(&self) -> Range<u64> {
        self.state..self.state + size_of::<TrapState>() as u64
    }
}

/// What was changed to make breakpoints safe.
#[derive(Debug)]
pub struct Armed {
    handler: Handler,
    /// Threads that had `SIGTRAP` blocked.
    masked: Vec<Tid>,
    /// Signals whose handlers had it blocked.
    actions: Vec<(i32, Action, Action)>,
}

impl Armed {
    /// Nothing has been changed yet.
    pub fn new(handler: Handler) -> Armed {
        Armed { handler, masked: Vec::new(), actions: Vec::new() }
    }
}

/// A signal's action, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

impl Action {
    fn words(self) -> [u64; 4] {
        [self.handler, self.flags, self.restorer, self.mask]
    }

    fn bytes(self) -> Vec<u8> {
        self.words().iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn get(remote: &mut Remote, signal: i32) -> Result<Action, AttachError> {
        let at = scratch(remote);
        remote.syscall("rt_sigaction", libc::SYS_rt_sigaction, [signal as u64, 0, at, 8, 0, 0])?;
        Action::read(remote.world, at)
    }

    fn set(self, remote: &mut Remote, signal: i32) -> Result<(), AttachError> {
        let at = scratch(remote);
        remote.world.memory.write(at, &self.bytes())?;
        remote.syscall("rt_sigaction", libc::SYS_rt_sigaction, [signal as u64, at, 0, 8, 0, 0]).map(drop)
    }

    fn read(world: &World, at: u64) -> Result<Action, AttachError> {
        let word = |n: u64| world.memory.word(at + n * 8);
        Ok(Action { handler: word(0)?, flags: word(1)?, restorer: word(2)?, mask: word(3)? })
    }
}

// The kernel's order of an action's fields is that of ours.
const _: () = assert!(
    offset_of!(TrapAction, handler) == 0
        && offset_of!(TrapAction, flags) == 8
        && offset_of!(TrapAction, restorer) == 16
        && offset_of!(TrapAction, mask) == 24
);

/// Memory of the target for an action.
fn scratch(remote: &Remote) -> u64 {
    remote.saved().rsp.wrapping_sub(BELOW) & !15
}

/// Installs the handler, and unblocks `SIGTRAP` wherever it is blocked. `armed` tells what was done, even if it fails.
///
/// A thread that is past a guard's place in one of the `hazards`, yet before the system call there, would still block it.
pub fn arm(
    world: &mut World,
    maps: &[Mapping],
    handler: Handler,
    hazards: &[Range<u64>],
    armed: &mut Armed,
) -> Result<(), AttachError> {
    let mut patience = PATIENCE;
    while !is_calm(world, hazards) || frames_hazard(world, hazards)? {
        patience = patience.checked_sub(1).ok_or_else(|| AttachError::Unsuitable {
            pid: world.pid,
            command: procfs::status(world.pid).map_or_else(|_| String::new(), |status| status.name),
            reason: "a handler has interrupted a change of signal masks, so that breakpoints are not safe now".into(),
        })?;
        world.breathe(Duration::from_micros(50))?;
    }
    let waiting = strip_calls(world)?;
    strip_frames(world, maps, handler.restorer)?;
    for tid in world.threads().collect::<Vec<_>>() {
        let Ok(mask) = ptrace::signal_mask(tid) else { continue };
        let blocked = mask & TRAP != 0;
        // A call that has put its own mask in place keeps it until it is started again, which is too late for a signal
        // that comes first: setting the mask that was there before takes that one away now.
        if !blocked && !waiting.contains(&tid) {
            continue;
        }
        if ptrace::set_signal_mask(tid, mask & !TRAP).is_ok() && blocked {
            armed.masked.push(tid);
        }
    }
    let mut remote = Remote::begin(world, None, maps)?;
    let pid = remote.syscall("getpid", libc::SYS_getpid, [0; 6])?;
    let theirs = Action::get(&mut remote, libc::SIGTRAP)?;
    let memory = &remote.world.memory;
    let field = |offset: usize| handler.state + offset as u64;
    memory.write(field(offset_of!(TrapState, next)), &1u32.to_le_bytes())?;
    memory.write(field(offset_of!(TrapState, pid)), &(pid as u32).to_le_bytes())?;
    memory.write(field(offset_of!(TrapState, handler)), &handler.address.to_le_bytes())?;
    memory.write(field(offset_of!(TrapState, restorer)), &handler.restorer.to_le_bytes())?;
    memory.write(field(offset_of!(TrapState, actions)), &theirs.bytes())?;
    for signal in (1..=LAST).filter(|signal| !INTERNAL.contains(signal)) {
        if [libc::SIGKILL, libc::SIGSTOP, libc::SIGTRAP].contains(&signal) {
            continue;
        }
        let old = Action::get(&mut remote, signal)?;
        if old.handler > libc::SIG_IGN as u64 && old.mask & TRAP != 0 {
            let new = Action { mask: old.mask & !TRAP, ..old };
            new.set(&mut remote, signal)?;
            armed.actions.push((signal, old, new));
        }
    }
    let flags = handler_flags(theirs.handler, theirs.flags);
    let ours = Action { handler: handler.address, flags, restorer: handler.restorer, mask: 0 };
    ours.set(&mut remote, libc::SIGTRAP)?;
    remote.finish()
}

/// Is this where a change of masks or actions may be about to be made? Behind a system call it has been made.
fn is_hazard(world: &World, hazards: &[Range<u64>], pc: u64) -> bool {
    hazards.iter().any(|range| range.contains(&pc)) && world.memory.read_up_to(pc.wrapping_sub(2), 2) != SYSCALL
}

/// Is no thread about to change masks or actions?
pub fn is_calm(world: &World, hazards: &[Range<u64>]) -> bool {
    !world.threads().filter_map(|tid| world.regs(tid)).any(|regs| is_hazard(world, hazards, regs.rip))
}

/// Will a handler return to where a change is about to be made?
fn frames_hazard(world: &World, hazards: &[Range<u64>]) -> Result<bool, AttachError> {
    let mut found = false;
    patch::for_each_frame(world, &procfs::maps(world.pid)?, |world, rip| {
        found |= world.memory.word(rip).is_ok_and(|pc| is_hazard(world, hazards, pc));
        Ok(())
    })?;
    Ok(found)
}

/// Has a thread an address of this range in a register?
pub fn registers_hold(world: &World, range: &Range<u64>) -> bool {
    let all = |r: ptrace::Regs| {
        [r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]
    };
    world.threads().filter_map(|tid| world.regs(tid)).flat_map(all).any(|register| range.contains(&register))
}

/// Takes `SIGTRAP` out of the masks that system calls under way will install when they are started again; returns the threads
/// in such calls.
fn strip_calls(world: &World) -> Result<Vec<Tid>, AttachError> {
    let mut waiting = Vec::new();
    for tid in world.threads() {
        let Some(regs) = world.regs(tid) else { continue };
        let set = match regs.orig_rax.cast_signed() {
            libc::SYS_rt_sigsuspend => regs.rdi,
            libc::SYS_ppoll => regs.r10,
            libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => regs.r8,
            libc::SYS_pselect6 => world.memory.word(regs.r9).unwrap_or(0),
            _ => continue,
        };
        waiting.push(tid);
        if let Ok(mask) = world.memory.word(set)
            && mask & TRAP != 0
        {
            world.memory.write(set, &(mask & !TRAP).to_le_bytes())?;
        }
    }
    Ok(waiting)
}

/// Takes `SIGTRAP` out of the masks that handlers under way will return to.
fn strip_frames(world: &World, maps: &[Mapping], restorer: u64) -> Result<(), AttachError> {
    patch::for_each_frame(world, maps, |world, rip| {
        let start = world.memory.word(rip.wrapping_sub(FRAME_START));
        if start.is_ok_and(|start| start == restorer)
            && let Ok(mask) = world.memory.word(rip + FRAME_MASK)
            && mask & TRAP != 0
        {
            world.memory.write(rip + FRAME_MASK, &(mask & !TRAP).to_le_bytes())?;
        }
        Ok(())
    })
}

/// Has a thread run into a breakpoint without having met its handler yet?
pub fn is_pending(world: &World) -> bool {
    let pending = |tid: Tid| procfs::status(tid as u32).is_ok_and(|status| status.signals[0] & TRAP != 0);
    world.threads().any(pending)
}

/// Undoes what [`arm`] did, where the target has not changed it since. No breakpoint is in the text any more.
pub fn disarm(world: &mut World, maps: &[Mapping], armed: &Armed) -> Result<(), AttachError> {
    let mut remote = Remote::begin(world, None, maps)?;
    give_back(&mut remote, armed.handler.state)?;
    for &(signal, old, new) in &armed.actions {
        if Action::get(&mut remote, signal)? == new {
            old.set(&mut remote, signal)?;
        }
    }
    remote.finish()?;
    let threads: Vec<Tid> = world.threads().filter(|tid| armed.masked.contains(tid)).collect();
    for tid in threads {
        if let Ok(mask) = ptrace::signal_mask(tid) {
            let _ = ptrace::set_signal_mask(tid, mask | TRAP);
        }
    }
    Ok(())
}

/// Gives the target the action for `SIGTRAP` that it believes to have, if the handler is still the state's.
fn give_back(remote: &mut Remote, state: u64) -> Result<(), AttachError> {
    let ours = remote.world.memory.word(state + offset_of!(TrapState, handler) as u64)?;
    let now = Action::get(remote, libc::SIGTRAP)?;
    if ours == 0 || now.handler != ours {
        return Ok(());
    }
    let index = remote.world.memory.word(state + offset_of!(TrapState, current) as u64)? as u32;
    let place = index as usize % TRAP_ACTIONS * size_of::<TrapAction>();
    let theirs = Action::read(remote.world, state + (offset_of!(TrapState, actions) + place) as u64)?;
    theirs.set(remote, libc::SIGTRAP)
}

/// Takes away the handler that a dead session has left; its text is restored.
pub fn undo(world: &mut World, maps: &[Mapping], state: u64) -> Result<(), AttachError> {
    for _ in 0..PATIENCE {
        if !is_pending(world) {
            break;
        }
        world.breathe(Duration::from_micros(200))?;
    }
    let mut remote = Remote::begin(world, None, maps)?;
    give_back(&mut remote, state)?;
    remote.finish()
}
