//! A perf event: what it counts, whether it does, and the ring its samples go to.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;
use skep_maps::control::Arena;

use super::attr::{PerfAttr, format};
use super::record::{self, Identity, Occurrence};
use super::ring::Ring;
use crate::front::bells::Bell;
use crate::front::object::ProgObject;
use crate::front::probe::Attached;
use crate::front::tracefs::event::{Kind, TraceEvent};

/// What an event counts.
#[derive(Clone, Debug)]
pub enum Source {
    /// Hits of a trace event.
    Trace(Arc<TraceEvent>),
    /// What programs write to it.
    BpfOutput,
    /// Nothing.
    Dummy,
    /// Nanoseconds of the clock, or of the processor.
    Clock,
}

#[derive(Debug, Default)]
struct Times {
    /// When it was enabled last, if it is.
    since: Option<Instant>,
    total: u64,
}

/// A perf event.
#[derive(Debug)]
pub struct PerfEvent {
    /// Its number, as `PERF_SAMPLE_ID` gives it.
    pub id: u64,
    /// What the caller asked for.
    pub attr: PerfAttr,
    /// The CPU; −1 for all.
    pub cpu: i32,
    /// The thread; `None` for all.
    pub tid: Option<u32>,
    /// What it counts.
    pub source: Source,
    /// The event that leads its group, itself excepted.
    pub leader: Option<Weak<PerfEvent>>,
    members: Mutex<Vec<Weak<PerfEvent>>>,
    enabled: AtomicBool,
    times: Mutex<Times>,
    count: AtomicU64,
    /// Occurrences since the last sample.
    since_sample: AtomicU64,
    period: AtomicU64,
    /// Samples to go until it disables itself; 0 for no end.
    refresh: AtomicU64,
    lost: AtomicU64,
    ring: Mutex<Option<Arc<Ring>>>,
    output: Mutex<Option<Arc<PerfEvent>>>,
    program: Mutex<Option<Attached>>,
    /// Where its ring is, or would be: what a descriptor of it is mapped from.
    room: Arc<Arena>,
    /// There is something new in the ring since the last asking.
    news: Arc<AtomicBool>,
    bell: Arc<Bell>,
}

/// What makes an event.
#[derive(Debug)]
pub struct NewEvent {
    /// See [`PerfEvent`].
    pub id: u64,
    /// See [`PerfEvent`].
    pub attr: PerfAttr,
    /// See [`PerfEvent`].
    pub cpu: i32,
    /// See [`PerfEvent`].
    pub tid: Option<u32>,
    /// See [`PerfEvent`].
    pub source: Source,
    /// See [`PerfEvent`].
    pub leader: Option<Arc<PerfEvent>>,
}

impl PerfEvent {
    /// Makes an event, and has it hear of what it counts.
    pub fn open(new: NewEvent) -> Result<Arc<PerfEvent>, Errno> {
        let news: Arc<AtomicBool> = Arc::default();
        let bell = Bell::new({
            let news = Arc::clone(&news);
            move || news.load(Ordering::Acquire)
        });
        let bell = bell.map_err(|_| Errno::EMFILE)?;
        let room = Ring::room()?;
        let NewEvent { id, attr, cpu, tid, source, leader } = new;
        let enabled = !attr.disabled();
        let event = Arc::new(PerfEvent {
            id,
            cpu,
            tid,
            source,
            leader: leader.as_ref().map(Arc::downgrade),
            members: Mutex::default(),
            enabled: AtomicBool::new(enabled),
            times: Mutex::new(Times { since: enabled.then(Instant::now), total: 0 }),
            count: AtomicU64::new(0),
            since_sample: AtomicU64::new(0),
            period: AtomicU64::new(attr.period()),
            refresh: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            ring: Mutex::default(),
            output: Mutex::default(),
            program: Mutex::default(),
            room,
            news,
            bell,
            attr,
        });
        if let Source::Trace(trace) = &event.source {
            trace.add_user(&event)?;
        }
        if let Some(leader) = leader {
            leader.members().push(Arc::downgrade(&event));
        }
        Ok(event)
    }

    fn members(&self) -> MutexGuard<'_, Vec<Weak<PerfEvent>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rung when there is something to read in its ring.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// The memory that its descriptors are mapped from.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.room.fd()
    }

    fn ring_slot(&self) -> MutexGuard<'_, Option<Arc<Ring>>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its ring, once it was mapped.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        self.ring_slot().clone()
    }

    /// Its ring with so many pages of data, made if there is none. `EINVAL` if it has one of another size.
    pub fn map(&self, pages: usize) -> Result<Arc<Ring>, Errno> {
        let mut ring = self.ring_slot();
        match &*ring {
            Some(ring) if ring.pages() == pages => Ok(Arc::clone(ring)),
            Some(_) => Err(Errno::EINVAL),
            None => {
                let new = Arc::new(Ring::new(Arc::clone(&self.room), pages, self.attr.wakeup())?);
                *ring = Some(Arc::clone(&new));
                Ok(new)
            }
        }
    }

    /// Sends its samples to another event's ring, or to its own again.
    pub fn redirect(&self, to: Option<Arc<PerfEvent>>) {
        let old = std::mem::replace(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner), to);
        drop(old);
    }

    /// True if it counts.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Has it count, or not, and its group with it.
    pub fn enable(&self, on: bool, group: bool) {
        let was = self.enabled.swap(on, Ordering::AcqRel);
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        match (was, on) {
            (false, true) => times.since = Some(Instant::now()),
            (true, false) => times.total += elapsed(times.since.take()),
            _ => {}
        }
        drop(times);
        if group {
            let members = self.members().clone();
            members.iter().filter_map(Weak::upgrade).for_each(|m| m.enable(on, false));
        }
    }

    /// Sets its count to 0.
    pub fn reset(&self, group: bool) {
        self.count.store(0, Ordering::Relaxed);
        if group {
            let members = self.members().clone();
            members.iter().filter_map(Weak::upgrade).for_each(|m| m.reset(false));
        }
    }

    /// Has it take samples.
    pub fn samples(&self) -> bool {
        self.attr.period() != 0
    }

    /// A new period.
    pub fn set_period(&self, period: u64) {
        self.period.store(period, Ordering::Relaxed);
    }

    /// Enables it for so many samples.
    pub fn refresh(&self, samples: u64) {
        self.refresh.fetch_add(samples, Ordering::AcqRel);
        self.enable(true, false);
    }

    fn enabled_ns(&self) -> u64 {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.total + elapsed(times.since)
    }

    /// What it has counted.
    pub fn count(&self) -> u64 {
        match self.source {
            Source::Clock => self.enabled_ns(),
            _ => self.count.load(Ordering::Relaxed),
        }
    }

    fn own_value(&self, out: &mut Vec<u64>) {
        let wanted = self.attr.read_format();
        out.push(self.count());
        if wanted & format::ID != 0 {
            out.push(self.id);
        }
        if wanted & format::LOST != 0 {
            out.push(self.lost.load(Ordering::Relaxed));
        }
    }

    /// What `read(2)` returns.
    pub fn values(&self) -> Vec<u8> {
        let wanted = self.attr.read_format();
        let mut times = Vec::new();
        for bit in [format::TIME_ENABLED, format::TIME_RUNNING] {
            if wanted & bit != 0 {
                times.push(self.enabled_ns());
            }
        }
        let mut words = Vec::new();
        if wanted & format::GROUP != 0 {
            let members: Vec<_> = self.members().iter().filter_map(Weak::upgrade).collect();
            words.push(members.len() as u64 + 1);
            words.extend(times);
            self.own_value(&mut words);
            members.iter().for_each(|m| m.own_value(&mut words));
        } else {
            words.push(self.count());
            words.extend(times);
            if wanted & format::ID != 0 {
                words.push(self.id);
            }
            if wanted & format::LOST != 0 {
                words.push(self.lost.load(Ordering::Relaxed));
            }
        }
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn clock(&self) -> u64 {
        clock_ns(self.attr.clock().unwrap_or(libc::CLOCK_MONOTONIC))
    }

    /// It happened: counts, and takes a sample where one is due.
    pub fn occurred(&self, o: &Occurrence<'_>) {
        let on_cpu = u32::try_from(self.cpu).map_or(true, |cpu| cpu == o.cpu);
        if !on_cpu || self.tid.is_some_and(|tid| tid != o.tid) || !self.is_enabled() {
            return;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        if !self.samples() {
            return;
        }
        let period = if self.attr.is_frequency() { 1 } else { self.period.load(Ordering::Relaxed).max(1) };
        if self.since_sample.fetch_add(1, Ordering::Relaxed) + 1 >= period {
            self.since_sample.store(0, Ordering::Relaxed);
            self.sample(o, period);
            if self.refresh.load(Ordering::Acquire) != 0 && self.refresh.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.enable(false, false);
                self.ring_the_bell();
            }
        }
    }

    /// Takes a sample. False if it is lost.
    pub fn sample(&self, o: &Occurrence<'_>, period: u64) -> bool {
        let target = self.output.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let target: &PerfEvent = target.as_deref().unwrap_or(self);
        let Some(ring) = target.ring() else { return false };
        let who = Identity {
            id: self.id,
            stream: self.id,
            time: o.time.unwrap_or_else(|| self.clock()),
            period,
            values: self.values(),
        };
        let Some(record) = record::sample(&self.attr, o, &who) else { return false };
        let tail = record::identity(&self.attr, o, &who);
        let written = ring.write(&record, self.id, &tail, target.attr.backward());
        if !written.stored {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        if written.wake {
            target.ring_the_bell();
        }
        written.stored
    }

    /// So many samples were lost on their way.
    pub fn lose(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
        if let Some(ring) = self.ring() {
            ring.lose(count);
        }
    }

    /// Wakes its reader.
    fn ring_the_bell(&self) {
        self.news.store(true, Ordering::Release);
        self.bell.ring();
    }

    /// True if there was something to read since the last asking.
    pub fn take_wakeup(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }

    fn program_slot(&self) -> MutexGuard<'_, Option<Attached>> {
        self.program.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program that came by it.
    pub fn program(&self) -> Option<Attached> {
        self.program_slot().clone()
    }

    /// Attaches a program, as `PERF_EVENT_IOC_SET_BPF` and perf links do.
    pub fn attach(&self, prog: &Arc<ProgObject>, cookie: u64) -> Result<(), Errno> {
        let program = Attached { prog: Arc::clone(prog), cookie };
        let mut slot = self.program_slot();
        match &self.source {
            Source::Trace(trace) => {
                let p = prog.verified.program();
                if p.prog_type != trace.kind.program() || crate::front::is_sleepable(prog) && trace.kind != Kind::Uprobe
                {
                    return Err(Errno::EINVAL);
                }
                if slot.is_some() {
                    return Err(Errno::EEXIST);
                }
                trace.add_program(program.clone())?;
            }
            _ => {
                if slot.is_some() {
                    return Err(Errno::EEXIST);
                }
                if prog.verified.program().prog_type != ProgType::PerfEvent {
                    return Err(Errno::EINVAL);
                }
            }
        }
        *slot = Some(program);
        Ok(())
    }

    /// Takes its program off.
    pub fn detach(&self) {
        let Some(program) = self.program_slot().take() else { return };
        if let Source::Trace(trace) = &self.source {
            trace.remove_program(&program);
        }
    }

    /// The trace event that it is on.
    pub fn trace(&self) -> Option<&Arc<TraceEvent>> {
        match &self.source {
            Source::Trace(trace) => Some(trace),
            _ => None,
        }
    }
}

impl Drop for PerfEvent {
    fn drop(&mut self) {
        self.detach();
        if let Source::Trace(trace) = &self.source {
            trace.remove_user(self);
        }
    }
}

fn elapsed(since: Option<Instant>) -> u64 {
    since.map_or(0, |s| u64::try_from(s.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

fn clock_ns(clock: i32) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one `timespec`.
    if unsafe { libc::clock_gettime(clock, &raw mut now) } != 0 {
        return 0;
    }
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
