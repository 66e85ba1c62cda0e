//! A process that is followed through `exec`: its leader stays traced, so that every image it runs is attached to before
//! any code of that image's own has run. Of a *family* all threads stay traced, and the kernel hands over each process that
//! they make before it has run an instruction.
//!
//! A forked child has its parent's text, with jumps that fall through there (its page that says `alive` is wiped by the
//! fork). To be traced it is given its own text back, and attached to as any other process.
//!
//! After an `exec` the dynamic linker runs first. It tells debuggers when all libraries are in place, by calling a function
//! made for breakpoints; that is where the probes go in, so that calls from constructors are seen. A static program is
//! caught at its entry.

use std::collections::BTreeSet;

use super::AttachError;
use super::checks;
use super::install::Session;
use super::leftover;
use super::procfs::{self, Auxv, at};
use super::ptrace::{self, Stop, Tid, Watch};
use super::remote::Remote;
use super::request::{Attached, InjectorEvent, ProbeSpec};
use super::symbols::Modules;
use super::target::{self, Point, Target};
use super::world::{Keep, Memory, World};

/// `RT_CONSISTENT` of `struct r_debug`: no change of the list of libraries is under way.
const CONSISTENT: u32 = 0;
/// Offset of the state in `struct r_debug`.
const R_STATE: u64 = 24;
const INT3: u8 = 0xcc;
const RET: u8 = 0xc3;

/// What a look at a followed process brought.
pub enum Happened {
    /// Nothing new.
    Nothing,
    /// Something that was dealt with.
    Handled,
    /// Something to tell.
    Event(InjectorEvent),
    /// It has ended.
    Ended,
}

/// A breakpoint for one use.
struct Breakpoint {
    address: u64,
    original: u8,
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The linker's call for debuggers; with the address of its state.
    Linked { state: Option<u64> },
    /// The program's entry, to attach there.
    Entry,
    /// The program's entry, to load the unwinder there.
    Unwinder,
}

/// A followed process.
pub struct Follow {
    pid: u32,
    session: Session,
    probes: Vec<ProbeSpec>,
    target: Option<Target>,
    /// What stays traced: the leader, or the family's threads.
    keep: Keep,
    threads: BTreeSet<Tid>,
    /// Held until the controller says go.
    world: Option<World>,
    breakpoint: Option<Breakpoint>,
    /// SIGTRAP was blocked, ignored, when the image began; a breakpoint undoes that.
    trap: (bool, bool),
    ended: bool,
}

impl Follow {
    /// Becomes the tracer of a process that waits to run `exec`.
    pub fn begin(pid: u32, session: Session, probes: Vec<ProbeSpec>, family: bool) -> Result<Follow, AttachError> {
        let (keep, watch) = if family { (Keep::Family, Watch::Family) } else { (Keep::Leader, Watch::Exec) };
        ptrace::seize(pid as Tid, watch).map_err(|e| checks::explain(pid, &e))?;
        Ok(Follow::new(pid, session, probes, keep))
    }

    fn new(pid: u32, session: Session, probes: Vec<ProbeSpec>, keep: Keep) -> Follow {
        let threads = BTreeSet::from([pid as Tid]);
        let trap = (false, false);
        Follow { pid, session, probes, target: None, keep, threads, world: None, breakpoint: None, trap, ended: false }
    }

    /// Attaches to a running process, and follows it and its children from there. It stands still until told to go.
    pub fn join(pid: u32, session: Session, probes: Vec<ProbeSpec>) -> Result<(Follow, Attached), AttachError> {
        let prepared = target::prepare(pid, &probes);
        let mut world = World::stop_to_keep(pid, Keep::Family)?;
        let attached = Target::attach(&mut world, &session, &probes, Point::Running, prepared);
        Follow::new(pid, session, probes, Keep::Family).standing(world, attached)
    }

    /// It stands still, attached to; or it is let go.
    fn standing(
        mut self,
        mut world: World,
        attached: Result<(Target, Attached), AttachError>,
    ) -> Result<(Follow, Attached), AttachError> {
        match attached {
            Ok((target, attached)) => {
                (self.target, self.world) = (Some(target), Some(world));
                Ok((self, attached))
            }
            Err(error) => {
                world.keep_nobody();
                Err(error)
            }
        }
    }

    /// Attaches to a process that has just been forked from one of the family; `parent` is what that has. It stands still
    /// until told to go.
    pub fn adopt(
        pid: u32,
        session: Session,
        probes: Vec<ProbeSpec>,
        parent: Option<&Target>,
    ) -> Result<(Follow, Attached), AttachError> {
        let mut world = World::stop_followed(pid, true, Keep::Family)?;
        let attached = restore(&mut world, parent)
            .and_then(|()| Target::attach(&mut world, &session, &probes, Point::Running, None));
        Follow::new(pid, session, probes, Keep::Family).standing(world, attached)
    }

    /// Lets a process run that has just been made and shares its parent's memory until it executes something, which is
    /// attached to.
    pub fn await_exec(pid: u32, session: Session, probes: Vec<ProbeSpec>) -> Follow {
        let _ = ptrace::cont(pid as Tid, 0);
        Follow::new(pid, session, probes, Keep::Family)
    }

    /// Is this thread followed, one of a family?
    pub fn has(&self, tid: Tid) -> bool {
        self.keep == Keep::Family && self.threads.contains(&tid)
    }

    /// Is it followed with all that it makes?
    pub fn is_family(&self) -> bool {
        self.keep == Keep::Family
    }

    /// What it carries.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// A thread that it has made.
    pub fn add(&mut self, tid: Tid) {
        self.threads.insert(tid);
    }

    fn tid(&self) -> Tid {
        self.pid as Tid
    }

    /// Deals with one thing that a thread has done, the leader if it is no family.
    pub fn step(&mut self, tid: Tid) -> Happened {
        if self.ended {
            return Happened::Ended;
        }
        if self.world.is_some() {
            return Happened::Nothing;
        }
        match ptrace::poll(tid) {
            Ok(None) => Happened::Nothing,
            Err(_) | Ok(Some(Stop::Gone)) if tid != self.tid() => {
                self.threads.remove(&tid);
                Happened::Handled
            }
            Err(_) | Ok(Some(Stop::Gone)) => self.lost(),
            Ok(Some(Stop::Exec)) => self.executed(),
            Ok(Some(Stop::Signal(libc::SIGTRAP))) if tid == self.tid() && self.at_breakpoint() => self.arrived(),
            Ok(Some(Stop::Signal(signal))) => handled(ptrace::cont(tid, signal)),
            Ok(Some(Stop::Group(_))) => handled(ptrace::listen(tid)),
            Ok(Some(Stop::Interrupted | Stop::Syscall | Stop::Event(_))) => handled(ptrace::cont(tid, 0)),
        }
    }

    /// The leader is gone: with the process, or because another thread has run `exec` and taken its place.
    fn lost(&mut self) -> Happened {
        let status = procfs::status(self.pid);
        if !status.is_ok_and(|status| status.state != 'Z' && status.state != 'X' && status.tracer == 0) {
            self.ended = true;
            return Happened::Ended;
        }
        let watch = if self.is_family() { Watch::Family } else { Watch::Exec };
        if ptrace::seize(self.tid(), watch).is_err() {
            self.ended = true;
            return Happened::Ended;
        }
        // It is on its way already: attach to it as to any running process.
        let had = self.target.take().is_some();
        self.breakpoint = None;
        match World::stop_followed(self.pid, false, self.keep).and_then(|world| self.attach(world, Point::Running)) {
            Ok(event) => Happened::Event(event),
            Err(_) if had => Happened::Event(InjectorEvent::Exec { pid: self.pid }),
            Err(error) => Happened::Event(InjectorEvent::Failed { pid: self.pid, error }),
        }
    }

    fn executed(&mut self) -> Happened {
        let had = self.target.take().is_some();
        self.breakpoint = None;
        self.threads = BTreeSet::from([self.tid()]);
        let planned = self.plan_breakpoint();
        let resumed = ptrace::cont(self.tid(), 0);
        match planned {
            Err(error) => Happened::Event(InjectorEvent::Failed { pid: self.pid, error }),
            Ok(()) if had => Happened::Event(InjectorEvent::Exec { pid: self.pid }),
            Ok(()) => handled(resumed),
        }
    }

    /// Chooses where to attach to a new image, and sets the breakpoint.
    fn plan_breakpoint(&mut self) -> Result<(), AttachError> {
        let pid = self.pid;
        let status = procfs::status(pid)?;
        checks::check_image(pid, &status)?;
        let [_, _, blocked, ignored] = status.signals;
        let trap = 1 << (libc::SIGTRAP - 1);
        self.trap = (blocked & trap != 0, ignored & trap != 0);
        let auxv = Auxv::read(pid)?;
        let maps = procfs::maps(pid)?;
        let base = auxv.get(at::BASE).unwrap_or(0);
        if base != 0 {
            let modules = Modules::of(pid, &maps, &auxv);
            if let Some((address, state)) = debugger_hook(&modules, base) {
                return self.set_breakpoint(address, Purpose::Linked { state });
            }
        }
        self.set_breakpoint(entry(&auxv, pid)?, Purpose::Entry)
    }

    fn set_breakpoint(&mut self, address: u64, purpose: Purpose) -> Result<(), AttachError> {
        let memory = Memory::open(self.pid)?;
        let mut original = [0];
        memory.read(address, &mut original)?;
        memory.write(address, &[INT3])?;
        let [original] = original;
        self.breakpoint = Some(Breakpoint { address, original, purpose });
        Ok(())
    }

    fn at_breakpoint(&self) -> bool {
        let here = ptrace::regs(self.tid()).map(|regs| regs.rip);
        self.breakpoint.as_ref().is_some_and(|b| here.is_ok_and(|rip| rip == b.address + 1))
    }

    /// The process has run into the breakpoint.
    fn arrived(&mut self) -> Happened {
        match self.try_arrived() {
            Ok(happened) => happened,
            Err(error) => {
                let _ = ptrace::cont(self.tid(), 0);
                Happened::Event(InjectorEvent::Failed { pid: self.pid, error })
            }
        }
    }

    fn try_arrived(&mut self) -> Result<Happened, AttachError> {
        let (pid, tid) = (self.pid, self.tid());
        let Some(breakpoint) = self.breakpoint.take() else { return Ok(Happened::Handled) };
        let lost = |_: std::io::Error| AttachError::Exited { pid };
        let memory = Memory::open(pid)?;
        let mut regs = ptrace::regs(tid).map_err(lost)?;
        regs.rip = breakpoint.address;
        if let Purpose::Linked { state: Some(state) } = breakpoint.purpose
            && memory.word(state)? as u32 != CONSISTENT
        {
            // Too early. The function does nothing but return; so does this, and the breakpoint stays.
            regs.rip = memory.word(regs.rsp)?;
            regs.rsp = regs.rsp.wrapping_add(8);
            ptrace::set_regs(tid, &regs).map_err(lost)?;
            self.breakpoint = Some(breakpoint);
            return Ok(handled(ptrace::cont(tid, 0)));
        }
        memory.write(breakpoint.address, &[breakpoint.original])?;
        ptrace::set_regs(tid, &regs).map_err(lost)?;
        let mut world = World::stop_followed(pid, true, self.keep)?;
        self.restore_trap(&mut world)?;
        match breakpoint.purpose {
            Purpose::Linked { .. } => self.attach(world, Point::Linked).map(Happened::Event),
            Purpose::Entry => self.attach(world, Point::Entry).map(Happened::Event),
            Purpose::Unwinder => {
                if let Some(target) = &mut self.target {
                    target.finish_unwinder(&mut world, &self.session, &self.probes)?;
                }
                Ok(Happened::Handled)
            }
        }
    }

    /// Gives SIGTRAP the state back that the program inherited.
    fn restore_trap(&self, world: &mut World) -> Result<(), AttachError> {
        let tid = self.tid();
        let (blocked, ignored) = self.trap;
        if ignored {
            let maps = procfs::maps(self.pid)?;
            let mut remote = Remote::begin(world, Some(tid), &maps)?;
            let address = (remote.saved().rsp.wrapping_sub(1024)) & !15;
            // struct sigaction of the kernel: handler, flags, restorer, mask.
            let action = [libc::SIG_IGN as u64, 0, 0, 0];
            let bytes: Vec<u8> = action.iter().flat_map(|word| word.to_le_bytes()).collect();
            remote.world.memory.write(address, &bytes)?;
            let args = [libc::SIGTRAP as u64, address, 0, 8, 0, 0];
            remote.syscall("rt_sigaction", libc::SYS_rt_sigaction, args)?;
            remote.finish()?;
        }
        if blocked {
            let lost = |_: std::io::Error| AttachError::Exited { pid: self.pid };
            let mask = ptrace::signal_mask(tid).map_err(lost)?;
            ptrace::set_signal_mask(tid, mask | 1 << (libc::SIGTRAP - 1)).map_err(lost)?;
        }
        Ok(())
    }

    /// Attaches, and holds the process.
    fn attach(&mut self, mut world: World, point: Point) -> Result<InjectorEvent, AttachError> {
        let (target, attached) = match Target::attach(&mut world, &self.session, &self.probes, point, None) {
            Ok(done) => done,
            // Dropping the world lets the process run.
            Err(error) => return Ok(InjectorEvent::Failed { pid: self.pid, error }),
        };
        self.target = Some(target);
        self.world = Some(world);
        Ok(InjectorEvent::Attached(attached))
    }

    /// Lets the process run on.
    pub fn go(&mut self) -> Result<(), AttachError> {
        if self.target.as_ref().is_some_and(|target| target.needs_unwinder) && self.world.is_some() {
            self.set_breakpoint(entry(&Auxv::read(self.pid)?, self.pid)?, Purpose::Unwinder)?;
        }
        if let Some(world) = self.world.take() {
            self.threads.extend(world.threads());
        }
        Ok(())
    }

    /// Takes the probes out and stops tracing.
    pub fn detach(mut self) -> Result<(), AttachError> {
        if self.ended || procfs::status(self.pid).is_ok_and(|status| status.state == 'Z') {
            return Ok(());
        }
        let mut world = match self.world.take() {
            Some(world) => world,
            None => World::stop_followed(self.pid, false, self.keep)?,
        };
        if let Some(breakpoint) = self.breakpoint.take() {
            world.memory.write(breakpoint.address, &[breakpoint.original])?;
            if let Some(mut regs) = world.regs(self.tid()).filter(|regs| regs.rip == breakpoint.address + 1) {
                regs.rip = breakpoint.address;
                ptrace::set_regs(self.tid(), &regs).map_err(|_| AttachError::Exited { pid: self.pid })?;
            }
        }
        let result = match &mut self.target {
            Some(target) if procfs::image_identity(self.pid) == target.identity => target.detach(&mut world).map(drop),
            _ => Ok(()),
        };
        world.keep_nobody();
        result
    }
}

/// Gives a forked process its own text back, and takes out what it has of its parent's session, if nothing can need that.
fn restore(world: &mut World, parent: Option<&Target>) -> Result<(), AttachError> {
    let maps = procfs::maps(world.pid)?;
    leftover::undo(world, &maps)?;
    parent.map_or(Ok(()), |parent| parent.shed(world))
}

/// Lets a process go that was forked and is not to be traced.
pub fn let_go(pid: u32, shares: bool) -> Result<(), AttachError> {
    if shares {
        let _ = ptrace::detach(pid as Tid);
        return Ok(());
    }
    let mut world = World::stop_followed(pid, true, Keep::Nobody)?;
    restore(&mut world, None)
}

fn handled(result: std::io::Result<()>) -> Happened {
    // A process that died in its stop is noticed by the next look.
    drop(result);
    Happened::Handled
}

fn entry(auxv: &Auxv, pid: u32) -> Result<u64, AttachError> {
    auxv.get(at::ENTRY).filter(|&address| address != 0).ok_or(AttachError::Exited { pid })
}

/// The linker's function for debuggers and the address of its state. Only a function that does nothing is usable, as it is
/// returned from without being run.
fn debugger_hook(modules: &Modules, base: u64) -> Option<(u64, Option<u64>)> {
    let linker = modules.iter().find(|module| module.range.contains(&base))?;
    let loaded = linker.loaded()?;
    let hook = loaded.elf.find("_dl_debug_state").first()?.address.wrapping_add(loaded.bias);
    let memory = Memory::open(modules.pid()).ok()?;
    let text = memory.read_up_to(hook, 5);
    if !matches!(text[..], [RET, ..] | [0xf3, 0x0f, 0x1e, 0xfa, RET]) {
        return None;
    }
    let state = loaded.elf.data_symbol("_r_debug").map(|address| address.wrapping_add(loaded.bias) + R_STATE);
    // Without the state (musl) the function is called once only, when all is in place.
    (state.is_some() || linker.file_name().contains("musl")).then_some((hook, state))
}
