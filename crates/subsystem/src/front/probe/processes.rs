//! Places in running processes: what is armed here is put into their code by an injector, and programs run there.
//!
//! A process is attached to with all its places at once, so a change of them detaches and attaches again; hits between
//! the two are not seen. Processes map the world's own arenas and the maps that their programs name, so that all share
//! the vCPU slots. Programs that reach maps or programs which they do not name (maps of maps, prog arrays) are refused:
//! the process would not have them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;
use skep_maps::control::{Arena, RingConsumer};
use skep_runtime::session::link_flags;

use super::{Armed, Attached, Consumer, Found, Missing, Point, ProbeSites, Report, What, When};
use crate::attach::{self, AttachError, AttachRequest, Injector, MapMemory, Memory, ProbeKind, ProbeSpec, ProbeTarget};
use crate::events::sample;
use crate::front::bells::Bell;
use crate::front::object::{MapObject, ProgObject};
use crate::front::targets::{LinkPlace, NewLink};
use crate::front::world::World;

/// A place that is armed in a process.
#[derive(Clone)]
struct Place {
    number: u64,
    point: Point,
    consumer: Arc<dyn Consumer>,
}

#[derive(Default)]
struct Target {
    /// Its number among all, for the owner words of slots.
    index: u32,
    places: Vec<Place>,
    links: Vec<LinkPlace>,
    /// Places whose counter (USDT) says that they are wanted, with the counter's file and offset.
    counted: BTreeMap<u64, (String, u64)>,
}

impl Target {
    /// Tells the process which of its USDT probes somebody listens to.
    fn count(&mut self, pid: u32) {
        let wanted: BTreeMap<u64, (String, u64)> = self.places.iter().filter_map(counter_of).collect();
        let change = |places: &BTreeMap<u64, (String, u64)>, than: &BTreeMap<u64, (String, u64)>, by| {
            for (_, (file, offset)) in places.iter().filter(|(number, _)| !than.contains_key(number)) {
                // A process that has ended, or has executed something else, has no counters of ours.
                let _ = attach::count(pid, file, *offset, by);
            }
        };
        change(&self.counted, &wanted, -1);
        change(&wanted, &self.counted, 1);
        self.counted = wanted;
    }
}

/// The counter of a place, by the place's number.
fn counter_of(place: &Place) -> Option<(u64, (String, u64))> {
    let What::File { path, counter: offset @ 1.., .. } = &place.point.what else { return None };
    let file = std::fs::canonicalize(path).ok()?.to_str()?.to_owned();
    Some((place.number, (file, *offset)))
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

    /// Forgets links. The next to have their numbers are others.
    fn forget(&mut self, links: &[LinkPlace]) {
        self.read();
        for link in links {
            self.links.remove(&link.index());
        }
    }
}

struct Inner {
    world: Weak<World>,
    traced: Option<u32>,
    /// Stands in the table for maps that a process does not have.
    no_map: Arena,
    state: Mutex<State>,
    reports: Mutex<Reports>,
}

/// All processes that can be attached to.
pub struct Processes(Arc<Inner>);

struct ArmedPlace {
    inner: Weak<Inner>,
    pid: u32,
    number: u64,
}

impl Armed for ArmedPlace {
    fn programs_changed(&self) -> Result<(), Errno> {
        self.inner.upgrade().map_or(Ok(()), |inner| inner.renew(self.pid))
    }
}

impl Drop for ArmedPlace {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut state = inner.lock();
        if let Some(target) = state.targets.get_mut(&self.pid) {
            target.places.retain(|p| p.number != self.number);
        }
        // Its other places were there before, and the process may have ended meanwhile.
        let _ = inner.sync(&mut state, self.pid);
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

fn target_of(point: &Point) -> Option<ProbeTarget> {
    Some(match &point.what {
        What::Symbol { module, name, offset } => {
            ProbeTarget::Symbol { name: name.clone(), offset: *offset, module: module.clone() }
        }
        What::File { path, offset, .. } => {
            ProbeTarget::FileOffset { module: std::fs::canonicalize(path).ok()?.to_str()?.to_owned(), offset: *offset }
        }
        What::Address(_) => return None,
    })
}

impl Processes {
    /// None is attached to yet.
    pub fn new(world: &Arc<World>, traced: Option<u32>) -> std::io::Result<Processes> {
        let samples = world.rings.first().ok_or_else(|| std::io::Error::other("no ring for samples"))?;
        let ring = samples.ring_consumer().map_err(|e| std::io::Error::from_raw_os_error(e.0))?;
        Ok(Processes(Arc::new(Inner {
            world: Arc::downgrade(world),
            traced,
            no_map: Arena::new("skep-no-map", 1)?,
            state: Mutex::default(),
            reports: Mutex::new(Reports { ring, links: HashMap::new(), read: Vec::new() }),
        })))
    }

    /// The process that a point is in; `None` if it is not one of these.
    fn process(&self, point: &Point) -> Option<u32> {
        point.pid.or(self.0.traced).filter(|pid| *pid != std::process::id())
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, pid: u32) -> Result<(), Errno> {
        self.sync(&mut self.lock(), pid)
    }

    /// Makes a process's places what they are to be.
    fn sync(&self, state: &mut State, pid: u32) -> Result<(), Errno> {
        let world = self.world.upgrade().ok_or(Errno::ENODEV)?;
        let State { injector, targets, .. } = state;
        let Some(target) = targets.get_mut(&pid) else { return Ok(()) };
        if !target.links.is_empty() {
            if let Some(injector) = injector {
                // A process that has ended needs no detaching.
                let _ = injector.detach(pid);
            }
            self.reports().forget(&target.links);
            target.links.clear();
            // What was read is handed on by who listens: who calls this may hold what hearers want.
            if let Ok(keeper) = world.keeper() {
                let _ = rustix::io::write(keeper.fd(), &1u64.to_ne_bytes());
            }
        }
        let mut probes = Vec::new();
        let mut maps: BTreeMap<u32, Arc<MapObject>> = BTreeMap::new();
        for place in &target.places {
            let Some(probe) = target_of(&place.point) else { continue };
            let kind = if place.point.when == When::Return { ProbeKind::Return } else { ProbeKind::Entry };
            let kernel = if matches!(place.point.what, What::File { .. }) { 0 } else { link_flags::KERNEL };
            let programs = place.consumer.programs();
            let mut add = |prog: Option<&Arc<ProgObject>>, cookie: u64, chained: bool| {
                let flags = kernel | link_flags::EVENT | if chained { link_flags::CHAINED } else { 0 };
                let prog_index = prog.map(|p| p.place.index());
                let link = world.add_link(NewLink { prog: prog_index, when: place.point.when, flags, cookie })?;
                link.switch(true);
                let hearer = Hearer { consumer: Arc::downgrade(&place.consumer), prog: prog.cloned() };
                self.reports().links.insert(link.index(), hearer);
                probes.push(ProbeSpec { link: link.index(), kind, target: probe.clone() });
                target.links.push(link);
                Ok(())
            };
            if programs.is_empty() {
                add(None, 0, false)?;
            }
            let last = programs.len().saturating_sub(1);
            for (n, Attached { prog, cookie }) in programs.iter().enumerate() {
                for map in prog.maps().iter().take(prog.named_maps) {
                    let nested = matches!(
                        map.map.def().map_type,
                        MapType::ProgArray | MapType::ArrayOfMaps | MapType::HashOfMaps
                    );
                    if nested {
                        return Err(Errno::EOPNOTSUPP);
                    }
                    maps.insert(map.place.index(), Arc::clone(map));
                }
                add(Some(prog), *cookie, n < last)?;
            }
        }
        if probes.is_empty() {
            target.count(pid);
            return Ok(());
        }
        let attached = self.attach(&world, injector, pid, target.index, &maps, probes);
        if attached.is_err() {
            self.reports().forget(&target.links);
            target.links.clear();
        } else {
            target.count(pid);
        }
        attached
    }

    fn attach(
        &self,
        world: &World,
        injector: &mut Option<Injector>,
        pid: u32,
        proc_index: u32,
        maps: &BTreeMap<u32, Arc<MapObject>>,
        probes: Vec<ProbeSpec>,
    ) -> Result<(), Errno> {
        world.keeper().map_err(|_| Errno::ENOMEM)?;
        let memory = |arena: &Arena| arena.len() as u64;
        let (control, shared) = world.arenas();
        let own = &world.rings;
        let last = maps.keys().next_back().map_or(0, |last| last + 1).max(own.len() as u32);
        let table = (0..last).map(|index| {
            let map = own.get(index as usize).or_else(|| maps.get(&index).map(|m| &m.map));
            match map {
                Some(map) => MapMemory {
                    fd: map.arena().fd(),
                    size: memory(map.arena()),
                    writable: map.target_writable(),
                    header_offset: world.header_of(Some(index)),
                },
                None => MapMemory {
                    fd: self.no_map.fd(),
                    size: memory(&self.no_map),
                    writable: false,
                    header_offset: world.header_of(None),
                },
            }
        });
        let request = AttachRequest {
            pid,
            proc_index,
            control: Memory { fd: control.fd(), size: memory(control) },
            shared: Memory { fd: shared.fd(), size: memory(shared) },
            maps: table.collect(),
            nslots: world.limits.slots,
            probes,
            agent: None,
        };
        let injector = match injector {
            Some(injector) => injector,
            none => none.insert(Injector::spawn().map_err(|e| errno(&e))?),
        };
        let attached = injector.attach(&request).map_err(|e| errno(&e))?;
        let refused = attached.probes.iter().find_map(|p| p.result.as_ref().err().filter(|e| !e.is_absence()));
        let refused = refused.map(errno);
        let gone = injector.go(pid);
        match refused {
            Some(e) => {
                let _ = injector.detach(pid);
                Err(e)
            }
            None => gone.map_err(|e| errno(&e)),
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
        let target = target_of(point)?;
        Some(match attach::resolve(pid, &target) {
            Ok(found) => found.first().map(|address| Found { address: *address }).ok_or(Missing::NoFunction),
            Err(_) => Err(Missing::NoFunction),
        })
    }

    fn arm(&self, point: &Point, consumer: &Arc<dyn Consumer>) -> Option<Result<Box<dyn Armed>, Errno>> {
        let pid = self.process(point)?;
        target_of(point)?;
        Some(self.arm_in(pid, point, consumer))
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
        let number = state.next_number;
        state.next_number += 1;
        if !state.targets.contains_key(&pid) {
            let index = state.next_index;
            state.next_index += 1;
            // 0 stands for this process.
            state.targets.insert(pid, Target { index: index + 1, ..Target::default() });
        }
        let place = Place { number, point: point.clone(), consumer: Arc::clone(consumer) };
        let target = state.targets.entry(pid).or_default();
        target.places.push(place);
        if let Err(e) = inner.sync(&mut state, pid) {
            // As it was before.
            if let Some(target) = state.targets.get_mut(&pid) {
                target.places.retain(|p| p.number != number);
            }
            let _ = inner.sync(&mut state, pid);
            return Err(e);
        }
        Ok(Box::new(ArmedPlace { inner: Arc::downgrade(inner), pid, number }))
    }
}
