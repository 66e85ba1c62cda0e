//! One attached process: from a stopped world to patched text, and back.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use skep_runtime::session::{RetEntry, RetHead, STUB_SIZE};

use super::AttachError;
use super::go;
use super::install::{self, Installed, Session, install};
use super::leftover;
use super::patch::{self, Change};
use super::plan::{self, Plan, PlannedSite};
use super::procfs::{self, Auxv, Mapping};
use super::remote::{Remote, SCRATCH};
use super::request::{Attached, ProbeKind, ProbeSpec, ProbeTarget};
use super::sigtrap::{self, Armed};
use super::symbols::{Module, Modules};
use super::unwind::{self, Unwinders};
use super::world::{Memory, World};

/// Where a process stands when it is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Anywhere.
    Running,
    /// In the dynamic linker, all libraries in place, before any code of theirs has run.
    Linked,
    /// At the program's entry: nothing holds a lock.
    Entry,
}

/// How long threads that are in our code are waited for, step by step, while all others stand still.
const LEAVE_ALONE_US: [u64; 5] = [50, 100, 200, 500, 1000];
/// And how long all run, since those may wait for others, before the code is left behind for good.
const LEAVE_US: [u64; 4] = [1000, 10_000, 30_000, 60_000];

/// A process with probes in it.
pub struct Target {
    /// The process.
    pub pid: u32,
    /// Tells its image from a later one.
    pub identity: Option<(u64, u64)>,
    pub(super) installed: Option<Installed>,
    /// Its sites, as in the block.
    pub(super) sites: Vec<PlannedSite>,
    /// What was changed of the text, by site; those that nobody wants any more are restored.
    pub(super) patched: Vec<Option<Change>>,
    /// The unwinders know of the return stubs.
    pub(super) returns: bool,
    unwinders: Vec<(u64, Option<u64>)>,
    /// What breakpoints have changed of the target's signals.
    armed: Option<Armed>,
    /// As read for the attach; the detach looks at them again.
    pub(super) modules: Option<Modules>,
    /// Return probes wait for the unwinder that the program may load later.
    pub needs_unwinder: bool,
}

/// Reads the symbols that an attach will need while the process still runs. What goes wrong will go wrong again later.
pub fn prepare(pid: u32, probes: &[ProbeSpec]) -> Option<Modules> {
    let modules = Modules::of(pid, &procfs::maps(pid).ok()?, &Auxv::read(pid).ok()?);
    for probe in probes {
        let _ = modules.find(&probe.target);
    }
    if probes.iter().any(|probe| matches!(probe.target, ProbeTarget::Syscall(_)))
        && let Ok(memory) = Memory::open(pid)
    {
        modules.iter().for_each(|module| {
            module.system_calls(&memory, &modules);
        });
    }
    if probes.iter().any(|probe| probe.kind == ProbeKind::Return) {
        let _ = unwind::unwinders(&modules, |_| false);
    }
    Some(modules)
}

/// Has a running process load its unwinder.
pub(super) fn load_unwinder(
    world: &mut World,
    maps: &[Mapping],
    modules: &Modules,
    dlopen: u64,
) -> Result<(), AttachError> {
    let tid = unwind::safe_thread(world, modules, maps)?;
    let mut remote = Remote::begin(world, Some(tid), maps)?;
    let scratch = remote.map_anonymous(SCRATCH, libc::PROT_READ | libc::PROT_WRITE)?;
    let loaded = unwind::load_unwinder(&mut remote, dlopen, scratch);
    remote.unmap(scratch, SCRATCH)?;
    remote.finish()?;
    loaded
}

/// The modules as they are now; what is known of `earlier` ones is kept.
fn reread(pid: u32, maps: &[Mapping], earlier: Modules) -> Result<Modules, AttachError> {
    let modules = Modules::of(pid, maps, &Auxv::read(pid)?);
    modules.adopt(earlier);
    Ok(modules)
}

impl Target {
    /// Attaches. The world stays stopped.
    pub fn attach(
        world: &mut World,
        session: &Session,
        probes: &[ProbeSpec],
        point: Point,
        prepared: Option<Modules>,
    ) -> Result<(Target, Attached), AttachError> {
        let pid = world.pid;
        world.check_free()?;
        let mut maps = procfs::maps(pid)?;
        let restored = leftover::undo(world, &maps)?;
        let mut modules = Modules::of(pid, &maps, &Auxv::read(pid)?);
        if let Some(prepared) = prepared {
            modules.adopt(prepared);
        }
        let guards = session.agent.traps.is_some();
        let mut plan = plan::plan(world, &maps, &modules, probes, &session.agent)?;
        // Loaded before it is needed, the unwinder can be asked; told is worse.
        if point == Point::Running
            && guards
            && plan.sites.iter().any(PlannedSite::has_return)
            && let Unwinders::Loadable(dlopen) = unwind::unwinders(&modules, |_| false)
        {
            load_unwinder(world, &maps, &modules, dlopen)?;
            maps = procfs::maps(pid)?;
            modules = reread(pid, &maps, modules)?;
            plan = plan::plan(world, &maps, &modules, probes, &session.agent)?;
        }
        if restored != 0 {
            plan.notes
                .push(format!("process {pid}: restored {restored} places that a killed session had left patched"));
        }
        let mut target = Target {
            pid,
            identity: procfs::image_identity(pid),
            installed: None,
            sites: Vec::new(),
            patched: Vec::new(),
            returns: false,
            unwinders: Vec::new(),
            armed: None,
            modules: None,
            needs_unwinder: false,
        };
        if !plan.sites.is_empty() {
            target.install(world, &maps, &modules, session, &plan, point)?;
            plan.notes.extend(target.installed.iter().flat_map(|i| i.notes.iter().cloned()));
            target.returns = plan.sites.iter().any(PlannedSite::has_return);
            target.sites = std::mem::take(&mut plan.sites);
            target.modules = Some(modules);
        }
        let code = target.executed_at();
        Ok((target, Attached { pid, probes: plan.outcomes, notes: plan.notes, code }))
    }

    /// Where the control arena is mapped for execution, if it is.
    pub(super) fn executed_at(&self) -> Option<u64> {
        self.installed.as_ref().and_then(Installed::executed_at)
    }

    fn install(
        &mut self,
        world: &mut World,
        maps: &[Mapping],
        modules: &Modules,
        session: &Session,
        plan: &Plan,
        point: Point,
    ) -> Result<(), AttachError> {
        let returns = plan.sites.iter().any(PlannedSite::has_return);
        self.installed = Some(install(world, maps, session, plan)?);
        let unwinder = match returns {
            true => self.tell_unwinders(world, maps, modules, point, &|module| plan.describes(modules, module)),
            false => Ok(()),
        };
        let armed = unwinder.and_then(|()| self.arm(world, maps));
        if let Err(error) = armed.and_then(|()| self.patch(world, modules, plan)) {
            self.remove(world)?;
            return Err(error);
        }
        Ok(())
    }

    /// Makes breakpoints safe, before the first one is written.
    fn arm(&mut self, world: &mut World, maps: &[Mapping]) -> Result<(), AttachError> {
        if let Some(installed) = &self.installed
            && let Some(handler) = installed.handler
        {
            let armed = self.armed.insert(Armed::new(handler));
            sigtrap::arm(world, maps, handler, &installed.hazards, armed)?;
        }
        Ok(())
    }

    /// Gives the target its signals back, once no breakpoint is left.
    fn disarm(&mut self, world: &mut World) -> Result<(), AttachError> {
        match self.armed.take() {
            Some(armed) => sigtrap::disarm(world, &procfs::maps(self.pid)?, &armed),
            None => Ok(()),
        }
    }

    /// Makes the target's unwinders know the return stubs.
    pub(super) fn tell_unwinders(
        &mut self,
        world: &mut World,
        maps: &[Mapping],
        modules: &Modules,
        point: Point,
        described: &dyn Fn(&Module) -> bool,
    ) -> Result<(), AttachError> {
        let Some(installed) = &self.installed else { return Ok(()) };
        match unwind::unwinders(modules, described) {
            Unwinders::None => Ok(()),
            Unwinders::Known(unwinders) if unwinders.is_empty() => Ok(()),
            Unwinders::Known(unwinders) => {
                let tid = match point {
                    Point::Running => Some(unwind::safe_thread(world, modules, maps)?),
                    Point::Linked | Point::Entry => None,
                };
                let mut remote = Remote::begin(world, tid, maps)?;
                unwind::register(&mut remote, &unwinders, installed.section, installed.objects)?;
                remote.finish()?;
                self.unwinders = unwinders;
                Ok(())
            }
            Unwinders::Loadable(_) if point == Point::Linked => {
                self.needs_unwinder = true;
                Ok(())
            }
            Unwinders::Loadable(dlopen) => {
                let tid = match point {
                    Point::Running => Some(unwind::safe_thread(world, modules, maps)?),
                    Point::Linked | Point::Entry => None,
                };
                let mut remote = Remote::begin(world, tid, maps)?;
                unwind::load_unwinder(&mut remote, dlopen, installed.scratch)?;
                remote.finish()?;
                let maps = procfs::maps(self.pid)?;
                let modules = Modules::of(self.pid, &maps, &Auxv::read(self.pid)?);
                match unwind::unwinders(&modules, |_| false) {
                    Unwinders::Known(_) => self.tell_unwinders(world, &maps, &modules, point, &|_| false),
                    // The system has none: then the program cannot load one either.
                    _ => Ok(()),
                }
            }
        }
    }

    /// At the program's entry: loads the unwinder that return probes have been waiting for.
    pub fn finish_unwinder(
        &mut self,
        world: &mut World,
        session: &Session,
        probes: &[ProbeSpec],
    ) -> Result<(), AttachError> {
        if !std::mem::take(&mut self.needs_unwinder) {
            return Ok(());
        }
        let maps = procfs::maps(self.pid)?;
        let modules = Modules::of(self.pid, &maps, &Auxv::read(self.pid)?);
        if session.agent.traps.is_some() && self.is_idle(world)? {
            // The constructors are done, and nothing of ours is in use: once more, with all libraries there.
            if let (Unwinders::Loadable(dlopen), Some(installed)) =
                (unwind::unwinders(&modules, |_| false), &self.installed)
            {
                let mut remote = Remote::begin(world, None, &maps)?;
                unwind::load_unwinder(&mut remote, dlopen, installed.scratch)?;
                remote.finish()?;
            }
            if self.detach(world)? {
                let (target, _) = Target::attach(world, session, probes, Point::Entry, Some(modules))?;
                *self = target;
            }
            return Ok(());
        }
        self.tell_unwinders(world, &maps, &modules, Point::Entry, &|_| false)
    }

    /// Writes the jumps and breakpoints.
    fn patch(&mut self, world: &mut World, modules: &Modules, plan: &Plan) -> Result<(), AttachError> {
        let Some(installed) = &self.installed else { return Ok(()) };
        let changes: Vec<Change> = plan.sites.iter().map(PlannedSite::change).collect();
        let moves: HashMap<u64, u64> = plan.sites.iter().flat_map(PlannedSite::moves).collect();
        go::await_clear(world, modules, &plan.sites.iter().flat_map(PlannedSite::forbidden).collect())?;
        patch::evict(world, &procfs::maps(self.pid)?, &moves)?;
        // Marked before it is true: a session that is killed in between leaves nothing that is not found.
        for n in 0..changes.len() {
            installed.block.set_active(n, true);
        }
        patch::write(world, &changes)?;
        self.patched = changes.into_iter().map(Some).collect();
        Ok(())
    }

    /// Restores the text, and unmaps everything if no thread can still need it. Returns true if it could.
    pub fn detach(&mut self, world: &mut World) -> Result<bool, AttachError> {
        let back: Vec<Option<Change>> =
            std::mem::take(&mut self.patched).iter().map(|change| change.as_ref().map(Change::back)).collect();
        let mut failure = None;
        for change in back.iter().flatten() {
            // Text that is no longer ours (the module was unmapped, another tool wrote there) is left alone.
            if let Err(error) = patch::write(world, std::slice::from_ref(change))
                && world.memory.read_up_to(change.address, change.old.len()) == change.old
            {
                failure = Some(error);
            }
        }
        if let Some(installed) = &self.installed {
            for n in 0..back.len() {
                installed.block.set_active(n, false);
                // Functions that are active may return through what stays behind: to nobody.
                installed.block.set_links(n, &[]);
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        // What is behind the text stays where it may not be unmapped.
        if world.is_confined() {
            return Ok(false);
        }
        // Threads leave what they are in within microseconds, if they do not sleep there.
        let code = self.installed.as_ref().map(|installed| installed.code.clone()).unwrap_or_default();
        for moment in LEAVE_ALONE_US {
            if self.is_idle(world)? {
                return self.remove(world);
            }
            match &patch::inside(world, &code)[..] {
                [] => break,
                inside => world.breathe_by(inside, Duration::from_micros(moment))?,
            }
        }
        for moment in LEAVE_US.into_iter().map(Some).chain([None]) {
            if self.is_idle(world)? {
                return self.remove(world);
            }
            if let Some(moment) = moment {
                world.breathe(Duration::from_micros(moment))?;
            }
        }
        if !sigtrap::is_pending(world) {
            self.disarm(world)?;
        }
        Ok(false)
    }

    /// Is no thread in our code, and none to return through a stub?
    fn is_idle(&self, world: &World) -> Result<bool, AttachError> {
        let Some(installed) = &self.installed else { return Ok(true) };
        if self.armed.is_some() && (sigtrap::is_pending(world) || !sigtrap::is_calm(world, &installed.hazards)) {
            return Ok(false);
        }
        let a = &installed.addresses;
        let fresh = world.memory.word(a.ret_head + std::mem::offset_of!(RetHead, fresh) as u64)? as u32;
        for k in 0..u64::from(fresh.min(a.nret)) {
            let entry = a.rets + k * size_of::<RetEntry>() as u64;
            let used = world.memory.word(entry + std::mem::offset_of!(RetEntry, used) as u64)? as u32;
            let sp = world.memory.word(entry + std::mem::offset_of!(RetEntry, sp) as u64)?;
            let there = world.memory.word(sp).unwrap_or(0);
            if used & 1 != 0 && there.wrapping_sub(a.stubs + k * STUB_SIZE) < STUB_SIZE {
                return Ok(false);
            }
        }
        let kept = installed.handler.map(|handler| handler.kept());
        if let Some(kept) = &kept
            && sigtrap::registers_hold(world, kept)
        {
            return Ok(false);
        }
        let ours: Vec<Range<u64>> = installed.code.iter().cloned().chain(kept).collect();
        patch::is_clear(world, &procfs::maps(world.pid)?, &ours)
    }

    /// Unmaps everything from a process that was forked from this one, and whose text has been restored, if nothing in it
    /// can need it.
    pub fn shed(&self, world: &mut World) -> Result<(), AttachError> {
        let Some(installed) = &self.installed else { return Ok(()) };
        let maps = procfs::maps(world.pid)?;
        // What was forked may have been another image.
        let block = installed.block.inode();
        let same = |m: &Mapping| m.range.start == installed.block_at && Some(m.inode) == block;
        let needed = !self.unwinders.is_empty() || self.needs_unwinder || !self.is_idle(world)?;
        if needed || !maps.iter().any(same) || world.is_confined() {
            return Ok(());
        }
        let mut remote = Remote::begin(world, None, &maps)?;
        install::undo(&mut remote, &installed.regions);
        remote.finish()
    }

    /// Unmaps everything, the unwinders told first. Returns false if they cannot be told.
    fn remove(&mut self, world: &mut World) -> Result<bool, AttachError> {
        self.disarm(world)?;
        let Some(installed) = self.installed.take() else { return Ok(true) };
        let mut maps = procfs::maps(self.pid)?;
        let unwinders = std::mem::take(&mut self.unwinders);
        if !unwinders.is_empty() {
            let modules = Modules::of(self.pid, &maps, &Auxv::read(self.pid)?);
            if let Some(earlier) = self.modules.take() {
                modules.adopt(earlier);
            }
            let Ok(tid) = unwind::safe_thread(world, &modules, &maps) else { return Ok(false) };
            let mut remote = match Remote::begin(world, Some(tid), &maps) {
                Err(AttachError::Confined { .. }) => return Ok(false),
                begun => begun?,
            };
            let told = unwind::deregister(&mut remote, &unwinders, installed.section)?;
            remote.finish()?;
            if !told {
                return Ok(false);
            }
            maps = procfs::maps(self.pid)?;
        }
        let mut remote = Remote::begin(world, None, &maps)?;
        install::undo(&mut remote, &installed.regions);
        remote.finish()?;
        Ok(true)
    }
}
