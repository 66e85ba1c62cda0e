//! Places in running processes: what is armed here is put into their code by an injector, and programs run there.
//!
//! A change of a process's places leaves all others as they are: no hit of theirs is lost. Processes map the world's own
//! arenas and the maps that their programs name, so that all share
//! the vCPU slots. Programs that reach maps or programs which they do not name (maps of maps, prog arrays) are refused:
//! the process would not have them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;
use skep_maps::control::{Arena, RingConsumer};
use skep_runtime::session::{Arguments, link_flags};

use super::{Armed, Attached, Consumer, Found, Missing, Point, ProbeSites, Report, What, When};
use crate::attach::{
    self, AttachError, AttachRequest, Injector, MapMemory, Memory, ProbeKind, ProbeSpec, ProbeTarget, Registers,
};
use crate::events::sample;
use crate::front::around::{Arounds, RunsPrograms};
use crate::front::bells::Bell;
use crate::front::object::{MapObject, ProgObject};
use crate::front::targets::{LinkPlace, NewLink};
use crate::front::world::World;
use crate::symbols::SymbolTable;

/// A place that is armed in a process.
struct Place {
    number: u64,
    point: Point,
    consumer: Arc<dyn Consumer>,
    carried: Carried,
}

/// What a process carries for one place.
#[derive(Default)]
struct Carried {
    links: Vec<LinkPlace>,
    probes: Vec<ProbeSpec>,
    maps: Maps,
}

/// The maps that the programs of a place name, and those around their functions.
#[derive(Default)]
struct Maps {
    by_index: BTreeMap<u32, Arc<MapObject>>,
    /// The last change around functions that they are there for.
    change: u64,
}

/// The counter of a USDT probe, and the place that it counts for, both in the file.
type Counted = (String, u64, u64);

#[derive(Default)]
struct Target {
    /// Its number among all, for the owner words of slots.
    index: u32,
    places: Vec<Place>,
    /// The injector has it.
    attached: bool,
    /// The places whose counter says that they are wanted. However many events are on one, it counts once.
    counted: BTreeSet<Counted>,
}

impl Target {
    /// Tells the process which of its USDT probes somebody listens to.
    fn count(&mut self, pid: u32) {
        let wanted: BTreeSet<Counted> = self.places.iter().filter_map(counter_of).collect();
        // A process that has ended, or has executed something else, has no counters of ours.
        for (file, _, counter) in self.counted.difference(&wanted) {
            let _ = attach::count(pid, file, *counter, -1);
        }
        for (file, _, counter) in wanted.difference(&self.counted) {
            let _ = attach::count(pid, file, *counter, 1);
        }
        self.counted = wanted;
    }
}

/// The counter of a place that has one.
fn counter_of(place: &Place) -> Option<Counted> {
    let What::File { path, offset, counter: counter @ 1.. } = &place.point.what else { return None };
    let file = std::fs::canonicalize(path).ok()?.to_str()?.to_owned();
    Some((file, *offset, *counter))
}

#[derive(Default)]
struct State {
    injector: Option<Injector>,
    targets: BTreeMap<u32, Target>,
    next_number: u64,
    next_index: u32,
    listener: Option<Arc<Bell>>,
}

/// Who hears of the samples of a link.
struct Hearer {
    consumer: Weak<dyn Consumer>,
    prog: Option<Arc<ProgObject>>,
}

struct Reports {
    ring: RingConsumer,
    links: HashMap<u32, Hearer>,
    /// Read, and not yet handed on.
    read: Vec<(Arc<dyn Consumer>, Report)>,
}

impl Reports {
    /// Reads what the processes have told, while it is known whom each link's samples are for.
    fn read(&mut self) {
        let Reports { ring, links, read } = self;
        let done = ring.poll(|bytes| {
            let Some(record) = sample(bytes) else { return };
            let Some(consumer) = links.get(&record.link).and_then(|h| h.consumer.upgrade()) else { return };
            let report = Report {
                pid: record.pid,
                tid: record.tid,
                cpu: record.slot,
                time: record.time_ns,
                ip: record.ip,
                func: record.func,
            };
            read.push((consumer, report));
        });
        // Targets write the ring, too; what makes no sense is skipped there.
        let _ = done;
    }

    /// Forgets a place's links. The next to have their numbers are others.
    fn forget(&mut self, carried: &Carried) {
        self.read();
        for link in &carried.links {
            self.links.remove(&link.index());
        }
    }
}

struct Inner {
    arounds: Arc<Arounds>,
    world: Weak<World>,
    symbols: Arc<SymbolTable>,
    /// The process that events without one are in; 0 for none.
    traced: AtomicU32,
    /// Stands in the table for maps that a process does not have.
    no_map: Arena,
    known: Mutex<attach::Known>,
    state: Mutex<State>,
    reports: Mutex<Reports>,
}

/// All processes that can be attached to.
pub struct Processes(Arc<Inner>);

impl std::fmt::Debug for Processes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processes").field("traced", &self.traced()).finish_non_exhaustive()
    }
}

struct ArmedPlace {
    inner: Weak<Inner>,
    pid: u32,
    number: u64,
}

impl Armed for ArmedPlace {
    fn programs_changed(&self) -> Result<(), Errno> {
        let Some(inner) = self.inner.upgrade() else { return Ok(()) };
        let (done, gone) = inner.renew(&mut inner.lock(), self.pid, self.number);
        drop(gone);
        done
    }
}

impl Drop for ArmedPlace {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut state = inner.lock();
        let gone = inner.remove(&mut state, self.pid, self.number);
        drop(state);
        drop(gone);
    }
}

/// The errno of a refusal to attach.
fn errno(error: &AttachError) -> Errno {
    match error {
        AttachError::NoSuchProcess { .. } | AttachError::Exited { .. } => Errno::ESRCH,
        e if e.is_absence() => Errno::ENOENT,
        _ => Errno::EOPNOTSUPP,
    }
}

/// True for a place that says itself that it is not a function's start.
fn inside(what: &What) -> bool {
    matches!(what, What::Symbol { offset: 1.., .. })
}

/// The errno of what could not be placed. What a process does not have may come later.
fn refusal(attached: &attach::Attached) -> Option<Errno> {
    attached.probes.iter().find_map(|p| p.result.as_ref().err().filter(|e| !e.is_absence())).map(errno)
}

fn target_of(pid: u32, point: &Point) -> Option<ProbeTarget> {
    Some(match &point.what {
        What::Symbol { module, name, offset } => {
            ProbeTarget::Symbol { name: name.clone(), offset: *offset, module: module.clone() }
        }
        What::File { path, offset, .. } => {
            ProbeTarget::FileOffset { module: std::fs::canonicalize(path).ok()?.to_str()?.to_owned(), offset: *offset }
        }
        What::Address(address) => return attach::file_at(pid, *address),
    })
}

impl Processes {
    /// None is attached to yet.
    pub fn new(
        world: &Arc<World>,
        symbols: &Arc<SymbolTable>,
        traced: Option<u32>,
        arounds: &Arc<Arounds>,
    ) -> std::io::Result<Processes> {
        let samples = world.rings.first().ok_or_else(|| std::io::Error::other("no ring for samples"))?;
        let ring = samples.ring_consumer().map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
        let inner = Arc::new(Inner {
            arounds: Arc::clone(arounds),
            world: Arc::downgrade(world),
            symbols: Arc::clone(symbols),
            traced: AtomicU32::new(traced.unwrap_or(0)),
            no_map: Arena::new("skep-no-map", 1)?,
            known: Mutex::default(),
            state: Mutex::default(),
            reports: Mutex::new(Reports { ring, links: HashMap::new(), read: Vec::new() }),
        });
        arounds.tell(Arc::downgrade(&inner) as Weak<dyn RunsPrograms>);
        Ok(Processes(inner))
    }

    /// The process that kprobe events mean from now on. What is armed already stays where it is.
    pub fn trace(&self, pid: Option<u32>) {
        self.0.traced.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    fn traced(&self) -> Option<u32> {
        Some(self.0.traced.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// The process that a point is in; `None` if it is not one of these.
    fn process(&self, point: &Point) -> Option<u32> {
        point.pid.or_else(|| self.traced()).filter(|pid| *pid != std::process::id())
    }
}

impl RunsPrograms for Inner {
    fn maps_arrived(&self, prog: &Arc<ProgObject>) {
        let Some(world) = self.world.upgrade() else { return };
        let mut state = self.lock();
        let mut old = Vec::new();
        let mut pids = Vec::new();
        for (pid, target) in &mut state.targets {
            for place in &mut target.places {
                let programs = place.consumer.programs();
                // What cannot be had is not there: the function runs without what is around it.
                let Ok(maps) = self.maps_of(&programs) else { continue };
                old.push(std::mem::replace(&mut place.carried.maps, maps));
                let is = |p: &Arc<ProgObject>| Arc::ptr_eq(p, prog);
                if programs.iter().any(|p| is(&p.prog) || self.arounds.programs_around(&p.prog).iter().any(is)) {
                    pids.push(*pid);
                }
            }
        }
        pids.dedup();
        for pid in pids {
            let _ = self.sync(&mut state, &world, pid);
        }
        drop(state);
        // Maps may hold events that have places here.
        drop(old);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The maps that programs name, and those that run around their functions.
    fn maps_of(&self, programs: &[Attached]) -> Result<Maps, Errno> {
        // Before the look: what comes from now on is a later change.
        let mut found = Maps { by_index: BTreeMap::new(), change: self.arounds.changes() };
        for program in programs {
            for prog in self.arounds.programs_around(&program.prog).iter().chain([&program.prog]) {
                let maps = prog.maps();
                for map in maps.iter().take(prog.named_maps) {
                    let kind = map.map.def().map_type;
                    if matches!(kind, MapType::ProgArray | MapType::ArrayOfMaps | MapType::HashOfMaps) {
                        return Err(Errno::EOPNOTSUPP);
                    }
                    found.by_index.insert(map.place.index(), Arc::clone(map));
                }
            }
        }
        Ok(found)
    }

    /// What a process is to carry for a place now.
    fn carry(
        &self,
        world: &Arc<World>,
        pid: u32,
        point: &Point,
        consumer: &Arc<dyn Consumer>,
    ) -> Result<Carried, Errno> {
        let mut carried = Carried::default();
        let Some(target) = target_of(pid, point) else { return Ok(carried) };
        let kind = if point.when == When::Return { ProbeKind::Return } else { ProbeKind::Entry };
        let kernel = if matches!(point.what, What::File { .. }) { 0 } else { link_flags::KERNEL };
        let programs = consumer.programs();
        carried.maps = self.maps_of(&programs)?;
        let last = programs.len().saturating_sub(1);
        let mut add = |prog: Option<&Arc<ProgObject>>, cookie: u64, chained: bool| {
            let flags = kernel | link_flags::EVENT | if chained { link_flags::CHAINED } else { 0 };
            let prog_index = prog.map(|p| p.place.index());
            // All, so that other programs can come to this place while it stays as it is.
            let registers = Registers::ALL;
            let link = world.add_link(NewLink {
                prog: prog_index,
                when: point.when,
                flags,
                cookie,
                arguments: Arguments::default(),
                call: None,
            })?;
            link.switch(true);
            let hearer = Hearer { consumer: Arc::downgrade(consumer), prog: prog.cloned() };
            self.reports().links.insert(link.index(), hearer);
            carried.probes.push(ProbeSpec { link: link.index(), kind, target: target.clone(), registers });
            carried.links.push(link);
            Ok(())
        };
        let added = match programs[..] {
            [] => add(None, 0, false),
            _ => { programs.iter().enumerate() }.try_for_each(|(n, p)| add(Some(&p.prog), p.cookie, n < last)),
        };
        match added {
            Ok(()) => Ok(carried),
            Err(e) => {
                self.forget(world, &carried);
                Err(e)
            }
        }
    }

    /// Forgets what was carried for a place. What was told of it is handed on by who listens: who calls this may hold
    /// what hearers want.
    fn forget(&self, world: &World, carried: &Carried) {
        self.reports().forget(carried);
        if let Ok(keeper) = world.keeper() {
            let _ = rustix::io::write(keeper.fd(), &1u64.to_ne_bytes());
        }
    }

    /// A place's programs are others now. What is not carried any more is for the caller to drop, without the lock: maps
    /// may hold events that have places here.
    fn renew(&self, state: &mut State, pid: u32, number: u64) -> (Result<(), Errno>, Carried) {
        let Some(world) = self.world.upgrade() else { return (Err(Errno::ENODEV), Carried::default()) };
        let place = state.targets.get_mut(&pid).and_then(|t| t.places.iter_mut().find(|p| p.number == number));
        let Some(place) = place else { return (Ok(()), Carried::default()) };
        let new = match self.carry(&world, pid, &place.point, &place.consumer) {
            Ok(new) => new,
            Err(e) => return (Err(e), Carried::default()),
        };
        let old = std::mem::replace(&mut place.carried, new);
        let done = self.sync(state, &world, pid);
        let place = state.targets.get_mut(&pid).and_then(|t| t.places.iter_mut().find(|p| p.number == number));
        let gone = match (&done, place) {
            (Err(_), Some(place)) => std::mem::replace(&mut place.carried, old),
            _ => old,
        };
        self.forget(&world, &gone);
        (done, gone)
    }

    /// Adds a place.
    fn add(&self, state: &mut State, pid: u32, point: &Point, consumer: &Arc<dyn Consumer>) -> Result<u64, Errno> {
        let world = self.world.upgrade().ok_or(Errno::ENODEV)?;
        let carried = self.carry(&world, pid, point, consumer)?;
        let number = state.next_number;
        state.next_number += 1;
        if !state.targets.contains_key(&pid) {
            // 0 stands for this process.
            state.next_index += 1;
            state.targets.insert(pid, Target { index: state.next_index, ..Target::default() });
        }
        let target = state.targets.entry(pid).or_default();
        target.places.push(Place { number, point: point.clone(), consumer: Arc::clone(consumer), carried });
        let done = self.sync(state, &world, pid);
        match done {
            Ok(()) => Ok(number),
            // Its maps and consumer are the caller's, too, so none of them goes with it.
            Err(e) => {
                self.remove(state, pid, number);
                Err(e)
            }
        }
    }

    /// Removes a place, for the caller to drop without the lock. Its programs do not run again from now on.
    fn remove(&self, state: &mut State, pid: u32, number: u64) -> Option<Place> {
        let world = self.world.upgrade()?;
        let target = state.targets.get_mut(&pid)?;
        let at = target.places.iter().position(|p| p.number == number)?;
        let place = target.places.remove(at);
        place.carried.links.iter().for_each(|link| link.switch(false));
        // The others were there before, and the process may have ended meanwhile.
        let _ = self.sync(state, &world, pid);
        self.forget(&world, &place.carried);
        Some(place)
    }

    /// Makes a process's places what they are to be. If it cannot, they are as they were.
    fn sync(&self, state: &mut State, world: &World, pid: u32) -> Result<(), Errno> {
        let State { injector, targets, .. } = state;
        let Some(target) = targets.get_mut(&pid) else { return Ok(()) };
        let probes: Vec<ProbeSpec> = target.places.iter().flat_map(|p| p.carried.probes.iter().cloned()).collect();
        if probes.is_empty() {
            if let (true, Some(injector)) = (std::mem::take(&mut target.attached), injector) {
                // A process that has ended needs no detaching.
                let _ = injector.detach(pid);
            }
            target.count(pid);
            return Ok(());
        }
        let done = self.attach(world, injector, pid, target, probes);
        if done.is_ok() {
            target.count(pid);
        }
        done
    }

    fn attach(
        &self,
        world: &World,
        injector: &mut Option<Injector>,
        pid: u32,
        target: &mut Target,
        probes: Vec<ProbeSpec>,
    ) -> Result<(), Errno> {
        world.keeper().map_err(|_| Errno::ENOMEM)?;
        let memory = |arena: &Arena| arena.len() as u64;
        let (control, shared) = world.arenas();
        let own = &world.rings;
        let maps: BTreeMap<u32, &Arc<MapObject>> =
            target.places.iter().flat_map(|p| &p.carried.maps.by_index).map(|(index, map)| (*index, map)).collect();
        let last = maps.keys().next_back().map_or(0, |last| last + 1).max(own.len() as u32);
        let table = (0..last).map(|index| {
            let map = own.get(index as usize).or_else(|| maps.get(&index).map(|m| &m.map));
            let (arena, writable) = map.map_or((&self.no_map, false), |m| (m.arena(), m.target_writable()));
            let header_offset = world.header_of(map.map(|_| index));
            let (offset, size) = (arena.offset(), memory(arena));
            MapMemory { fd: arena.fd(), offset, size, writable, header_offset, absent: map.is_none() }
        });
        let request = AttachRequest {
            pid,
            proc_index: target.index,
            change: target.places.iter().map(|p| p.carried.maps.change).min().unwrap_or(0),
            control: Memory { fd: control.fd(), size: memory(control) },
            shared: Memory { fd: shared.fd(), size: memory(shared) },
            maps: table.collect(),
            nslots: world.limits.slots,
            probes,
            agent: None,
            children: false,
            marker: self.symbols.expect_process(pid).map(Arc::new),
        };
        let injector = match injector {
            Some(injector) => injector,
            none => none.insert(Injector::spawn().map_err(|e| errno(&e))?),
        };
        if target.attached {
            match injector.change(&request) {
                Ok(attached) => {
                    self.symbols.set_process(pid, attached.code);
                    return refusal(&attached).map_or(Ok(()), Err);
                }
                // It has executed something else.
                Err(AttachError::NotAttached { .. }) => target.attached = false,
                Err(e) => return Err(errno(&e)),
            }
        }
        let attached = injector.attach(&request).map_err(|e| errno(&e))?;
        self.symbols.set_process(pid, attached.code);
        let gone = injector.go(pid);
        match refusal(&attached) {
            Some(e) => {
                let _ = injector.detach(pid);
                Err(e)
            }
            None => {
                target.attached = true;
                gone.map_err(|e| errno(&e))
            }
        }
    }

    /// Hands on what the processes have told.
    fn hand_on(&self) {
        let (heard, progs): (_, Vec<_>) = {
            let mut reports = self.reports();
            reports.read();
            let progs = reports.links.values().filter_map(|h| h.prog.clone()).collect();
            (std::mem::take(&mut reports.read), progs)
        };
        for (consumer, report) in heard {
            consumer.reported(&report);
        }
        progs.iter().for_each(|p| p.feed());
    }
}

impl ProbeSites for Processes {
    fn find(&self, point: &Point) -> Option<Result<Found, Missing>> {
        let pid = self.process(point)?;
        let target = target_of(pid, point)?;
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match known.resolve(pid, &target) {
            Ok(_) if point.when == When::Return && inside(&point.what) => Err(Missing::NotTheStart),
            Ok(found) => found.first().map(|address| Found { address: *address }).ok_or(Missing::NoFunction),
            Err(_) => Err(Missing::NoFunction),
        })
    }

    fn arm(&self, point: &Point, consumer: &Arc<dyn Consumer>) -> Option<Result<Box<dyn Armed>, Errno>> {
        let pid = self.process(point)?;
        target_of(pid, point)?;
        Some(self.arm_in(pid, point, consumer))
    }

    fn functions(&self) -> Vec<(u64, String)> {
        let Some(pid) = self.traced() else { return Vec::new() };
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.functions(pid).unwrap_or_default()
    }
}

impl Processes {
    fn arm_in(&self, pid: u32, point: &Point, consumer: &Arc<dyn Consumer>) -> Result<Box<dyn Armed>, Errno> {
        let inner = &self.0;
        let mut state = inner.lock();
        if state.listener.is_none() {
            let world = inner.world.upgrade().ok_or(Errno::ENODEV)?;
            let weak = Arc::downgrade(inner);
            let bell = world.bells().and_then(|bells| {
                bells.add(move || {
                    if let Some(inner) = weak.upgrade() {
                        inner.hand_on();
                    }
                    false
                })
            });
            state.listener = Some(bell.map_err(|_| Errno::ENOMEM)?);
        }
        let number = inner.add(&mut state, pid, point, consumer)?;
        Ok(Box::new(ArmedPlace { inner: Arc::downgrade(inner), pid, number }))
    }
}
