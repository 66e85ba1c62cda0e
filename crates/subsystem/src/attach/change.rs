//! Changing the places of a process that is attached to, while all others stay as they are.
//!
//! A site that is made stays until the process is let go: its text is restored when nobody wants it any more, and written
//! again when somebody does, but its code stays mapped, since threads may be in it and functions may yet return through it.
//! So only what is new is planned, mapped and patched. What cannot be done so is done by attaching anew
//! ([`Changed::Anew`]): there is no room left in the block, or the code of a site would have to be another.

use std::collections::HashMap;
use std::mem::offset_of;
use std::ops::Range;
use std::time::{Duration, Instant};

use skep_runtime::session::{SLOTS_OFFSET, Slot, guard, owner_proc};

use super::AttachError;
use super::block::Room;
use super::go;
use super::install::{self, Session};
use super::patch::{self, Change};
use super::plan::{self, Plan, PlannedSite};
use super::procfs::{self, Auxv};
use super::request::{Attached, ProbeKind, ProbeSpec};
use super::symbols::Modules;
use super::target::{Point, Target, load_unwinder};
use super::unwind::{self, Unwinders};
use super::world::World;

/// How long threads are waited for that are in the middle of a hit, first they alone.
const LEAVE_US: [u64; 16] = [20, 20, 20, 50, 50, 50, 50, 100, 100, 100, 200, 500, 1000, 2000, 5000, 10_000];
/// So often alone: they may wait for others.
const ALONE: usize = 11;
/// And how long in all: where many threads want few processors, it takes each of them its turn to stand still again.
const LEAVE: Duration = Duration::from_millis(100);

/// What became of a change.
pub enum Changed {
    /// It is done.
    Done(Attached),
    /// The process has to be attached to anew; nothing was changed.
    Anew,
}

impl Target {
    /// Has the process carry these probes in place of those it has. If one of them cannot be placed nothing changes.
    pub fn change(
        &mut self,
        world: &mut World,
        session: &Session,
        probes: &[ProbeSpec],
    ) -> Result<Changed, AttachError> {
        let Some(agent) = self.installed.as_ref().map(|i| i.agent_text.clone()).filter(|_| !self.needs_unwinder) else {
            return Ok(Changed::Anew);
        };
        let guards = session.agent.traps.is_some();
        let first_return = !self.returns && probes.iter().any(|probe| probe.kind == ProbeKind::Return);
        if first_return && guards {
            let (maps, modules) = self.look()?;
            let loadable = unwind::unwinders(&modules, |_| false);
            self.modules = Some(modules);
            if let (Unwinders::Loadable(dlopen), Some(modules)) = (loadable, &self.modules) {
                load_unwinder(world, &maps, modules, dlopen)?;
            }
        }
        let Some(mut planned) = self.plan(world, session, probes)? else { return Ok(Changed::Anew) };
        // A hit that is under way sees the links as they were or as they are. Maps must not go under it, and who is looking for
        // a breakpoint must find it.
        let mut calm = false;
        if planned.1.as_ref().is_ok_and(|plan| self.needs_calm(session, plan)) {
            calm = is_calm(world, session, &agent)?;
            if !calm {
                calm = await_calm(world, session, &agent)?;
                let Some(again) = self.plan(world, session, probes)? else { return Ok(Changed::Anew) };
                planned = again;
            }
        }
        let (modules, plan) = planned;
        let done = plan.and_then(|plan| self.carry_out(world, session, &modules, plan, calm, first_return));
        self.modules = Some(modules);
        done
    }

    /// Plans the change, with the modules as they are now. `None` if the process has to be attached to anew.
    #[expect(clippy::type_complexity, reason = "the modules are kept whatever becomes of the plan")]
    fn plan(
        &mut self,
        world: &mut World,
        session: &Session,
        probes: &[ProbeSpec],
    ) -> Result<Option<(Modules, Result<Plan, AttachError>)>, AttachError> {
        let (maps, modules) = self.look()?;
        let Some(earlier) = self.earlier(&modules) else {
            self.modules = Some(modules);
            return Ok(None);
        };
        world.memory.show(self.patched.iter().flatten().map(|c| (c.address, c.old.clone())).collect());
        let planned = plan::grow(world, &maps, &modules, probes, &session.agent, earlier);
        world.memory.show(Vec::new());
        Ok(Some((modules, planned)))
    }

    /// Is a change to be made while no thread is in the middle of a hit?
    fn needs_calm(&self, session: &Session, plan: &Plan) -> bool {
        let new = |site: &&PlannedSite| !self.sites.iter().any(|s| s.ip == site.ip);
        let same_maps = self.installed.as_ref().is_some_and(|i| i.stale.is_empty() && i.has_maps_of(session));
        !same_maps || plan.sites.iter().filter(new).any(|site| site.window.trap)
    }

    /// The modules now.
    fn look(&mut self) -> Result<(Vec<procfs::Mapping>, Modules), AttachError> {
        let maps = procfs::maps(self.pid)?;
        let modules = Modules::of(self.pid, &maps, &Auxv::read(self.pid)?);
        if let Some(earlier) = self.modules.take() {
            modules.adopt(earlier);
        }
        Ok((maps, modules))
    }

    /// The sites that there are, in terms of the modules now. `None` if one's module is not there any more.
    fn earlier(&self, modules: &Modules) -> Option<Vec<PlannedSite>> {
        let of = |site: &PlannedSite| {
            let module = modules.iter().position(|m| m.has_code_at(site.ip))?;
            let mut site = site.clone();
            site.found.module = module;
            Some(site)
        };
        self.sites.iter().map(of).collect()
    }

    fn carry_out(
        &mut self,
        world: &mut World,
        session: &Session,
        modules: &Modules,
        mut plan: Plan,
        calm: bool,
        first_return: bool,
    ) -> Result<Changed, AttachError> {
        let known = self.sites.len();
        let failed = plan.outcomes.iter().any(|o| o.result.as_ref().is_err_and(|e| !e.is_absence()));
        // Where nothing is any more there may be room after all.
        let idle = self.patched.iter().any(Option::is_none);
        if failed && idle || !self.can_become(&plan) {
            return Ok(Changed::Anew);
        }
        if failed {
            return Ok(Changed::Done(self.done(plan)));
        }
        let sites = self.merge(&mut plan);
        let traps = sites.iter().filter(|site| site.window.trap).count();
        let new_traps = sites.iter().skip(known).any(|site| site.window.trap);
        let Some(installed) = &mut self.installed else { return Ok(Changed::Anew) };
        let room = Room { maps: session.maps.len().max(installed.maps.len()), sites: sites.len(), traps };
        // Who is looking for a breakpoint must find it; only a calm process is not.
        let no_stacks = installed.go_stacks == 0 && sites.iter().any(PlannedSite::is_go);
        if no_stacks || !room.fits(installed.block.room()) || new_traps && (installed.handler.is_none() || !calm) {
            return Ok(Changed::Anew);
        }
        let maps = procfs::maps(self.pid)?;
        plan.sites = sites;
        install::grow(world, &maps, session, installed, &plan, known, calm)?;
        installed.block.add_sites(installed.block_at, &plan.sites, known);
        if plan.sites.iter().any(PlannedSite::watches) && !plan.hazards.is_empty() {
            installed.hazards.clone_from(&plan.hazards);
        }
        if first_return {
            let maps = procfs::maps(self.pid)?;
            self.tell_unwinders(world, &maps, modules, Point::Running, &|module| plan.describes(modules, module))?;
            self.returns = true;
        }
        self.write_text(world, modules, &plan.sites)?;
        if let Some(installed) = &self.installed {
            for (n, site) in plan.sites.iter().enumerate() {
                installed.block.set_links(n, &site.links);
            }
        }
        self.sites = std::mem::take(&mut plan.sites);
        Ok(Changed::Done(self.done(plan)))
    }

    fn done(&self, plan: Plan) -> Attached {
        Attached { pid: self.pid, probes: plan.outcomes, notes: plan.notes, code: self.executed_at() }
    }

    /// Can the sites that there are become what the plan wants them to be?
    fn can_become(&self, plan: &Plan) -> bool {
        // Its trampoline would be another, or what is behind the return stubs.
        let code = |site: &PlannedSite| (site.guard, site.stored().words());
        let other = |site: &PlannedSite| self.sites.iter().any(|s| s.ip == site.ip && code(s) != code(site));
        let stored = plan::stored_at_return(&self.sites);
        let more = stored.and(plan::stored_at_return(&plan.sites));
        !plan.sites.iter().any(other) && more.words() == stored.words()
    }

    /// All sites: those that there are, in their order, with the plan's links, and the new ones.
    fn merge(&self, plan: &mut Plan) -> Vec<PlannedSite> {
        let mut planned: HashMap<u64, PlannedSite> = self
            .sites
            .iter()
            .filter_map(|s| plan.sites.iter().find(|p| p.ip == s.ip))
            .map(|p| (p.ip, p.clone()))
            .collect();
        let mut sites: Vec<PlannedSite> = self.sites.clone();
        for site in &mut sites {
            site.links = planned.remove(&site.ip).map_or_else(Vec::new, |p| p.links);
        }
        sites.extend(std::mem::take(&mut plan.sites).into_iter().filter(|p| !self.sites.iter().any(|s| s.ip == p.ip)));
        sites
    }

    /// Writes the text of the sites that are wanted and not patched, and restores that of those which nobody wants.
    fn write_text(&mut self, world: &mut World, modules: &Modules, sites: &[PlannedSite]) -> Result<(), AttachError> {
        let Some(installed) = &self.installed else { return Ok(()) };
        self.patched.resize_with(sites.len(), || None);
        let wanted = |site: &PlannedSite| !site.links.is_empty() || site.guard != guard::NONE;
        let fresh: Vec<(usize, &PlannedSite)> = sites
            .iter()
            .enumerate()
            .filter(|(n, site)| wanted(site) && matches!(self.patched.get(*n), Some(None)))
            .collect();
        let moves: HashMap<u64, u64> = fresh.iter().flat_map(|(_, site)| site.moves()).collect();
        let forbidden = fresh.iter().flat_map(|(_, site)| site.forbidden()).collect();
        go::await_clear(world, modules, &forbidden)?;
        patch::evict(world, &procfs::maps(self.pid)?, &moves)?;
        let changes: Vec<Change> = fresh.iter().map(|(_, site)| site.change()).collect();
        // Marked before it is true, as in an attach.
        fresh.iter().for_each(|(n, _)| installed.block.set_active(*n, true));
        if let Err(error) = patch::write(world, &changes) {
            fresh.iter().for_each(|(n, _)| installed.block.set_active(*n, false));
            return Err(error);
        }
        for ((n, _), change) in fresh.iter().zip(changes) {
            if let Some(place) = self.patched.get_mut(*n) {
                *place = Some(change);
            }
        }
        for n in (0..sites.len()).filter(|n| !sites.get(*n).is_some_and(wanted)) {
            let Some(change) = self.patched.get_mut(n).and_then(Option::take) else { continue };
            let back = change.back();
            if let Err(error) = patch::write(world, std::slice::from_ref(&back))
                && world.memory.read_up_to(back.address, back.old.len()) == back.old
            {
                if let Some(place) = self.patched.get_mut(n) {
                    *place = Some(change);
                }
                return Err(error);
            }
            installed.block.set_active(n, false);
        }
        Ok(())
    }
}

/// Waits until no thread is in the middle of a hit, for a while; false if one still is.
fn await_calm(world: &mut World, session: &Session, agent: &[Range<u64>]) -> Result<bool, AttachError> {
    let start = Instant::now();
    for (n, moment) in LEAVE_US.into_iter().enumerate() {
        let moment = Duration::from_micros(moment);
        match &patch::inside(world, agent)[..] {
            inside @ [_, ..] if n < ALONE => world.breathe_by(inside, moment)?,
            _ => world.breathe(moment)?,
        }
        if is_calm(world, session, agent)? {
            return Ok(true);
        }
        if start.elapsed() > LEAVE {
            break;
        }
    }
    Ok(false)
}

/// Is no thread in the middle of a hit? What the process says of its slots is as true as it is.
fn is_calm(world: &World, session: &Session, agent: &[Range<u64>]) -> Result<bool, AttachError> {
    let mut slots = vec![0; session.nslots as usize * size_of::<Slot>()];
    let read = rustix::io::pread(&session.shared.fd, &mut slots[..], SLOTS_OFFSET as u64);
    read.map_err(|e| AttachError::os("reading the slots", &e.into()))?;
    let word = |slot: &[u8], offset: usize| {
        let bytes = slot.get(offset..).and_then(|s| s.first_chunk()).copied();
        bytes.map_or(0, u64::from_le_bytes)
    };
    // Threads keep slots that they do not run on.
    let busy = |slot: &[u8]| {
        let (owner, taken) = (word(slot, offset_of!(Slot, owner)), word(slot, offset_of!(Slot, taken)));
        owner != 0 && owner_proc(owner) == session.proc_index && taken & 1 != 0
    };
    if slots.chunks_exact(size_of::<Slot>()).any(busy) {
        return Ok(false);
    }
    let inside = |address: u64| agent.iter().any(|range| range.contains(&address));
    if world.threads().filter_map(|tid| world.regs(tid)).any(|regs| inside(regs.rip)) {
        return Ok(false);
    }
    let mut calm = true;
    patch::for_each_frame(world, &procfs::maps(world.pid)?, |world, at| {
        calm &= !world.memory.word(at).is_ok_and(inside);
        Ok(())
    })?;
    Ok(calm)
}
