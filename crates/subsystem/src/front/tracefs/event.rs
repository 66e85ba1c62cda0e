//! Trace events: what perf events with an id of the tracefs, or of the kprobe and uprobe PMUs, hang on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_ebpf::Errno;
use skep_ebpf::uapi::{ProgType, PtRegs};
use skep_runtime::At;

use super::args::{self, Argument};
use crate::front::perf::{Occurrence, PerfEvent};
use crate::front::probe::{
    AllSites, Armed, Attached, Consumer, Hit, Inside, Nesting, Point, Report, Results, Runner, What, When, enter,
};

/// Most programs of an event.
pub const MAX_PROGRAMS: usize = 64;
/// Bytes of a record that programs of tracepoints may look at.
const MAX_RECORD: usize = 8192;
/// Bytes in front of the fields of every record.
pub const COMMON: usize = 8;

/// Who makes an event fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Probes of functions.
    Kprobe,
    /// Probes of places in files.
    Uprobe,
    /// Whoever published it.
    Tracepoint,
}

impl Kind {
    /// The type of program that may be on such an event.
    pub fn program(self) -> ProgType {
        match self {
            Kind::Kprobe | Kind::Uprobe => ProgType::Kprobe,
            Kind::Tracepoint => ProgType::Tracepoint,
        }
    }
}

/// One place of an event: events of one name may have several.
#[derive(Debug)]
pub struct Probe {
    event: Weak<TraceEvent>,
    /// The place.
    pub point: Point,
    /// Its address, if it has one here.
    pub address: u64,
    /// What is fetched there.
    pub args: Vec<Argument>,
}

#[derive(Default)]
struct State {
    probes: Vec<Arc<Probe>>,
    /// Perf events, and whether the event is enabled in the tracefs.
    users: Vec<Weak<PerfEvent>>,
    enabled: bool,
    programs: Arc<Vec<Attached>>,
}

impl State {
    fn is_used(&self) -> bool {
        self.enabled || !self.users.is_empty()
    }
}

/// A trace event. Programs hang on it, not on the perf events by which they came.
pub struct TraceEvent {
    /// Its number; 0 for those of the PMUs.
    pub id: u32,
    /// Its group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Who makes it fire.
    pub kind: Kind,
    /// The fields of a published tracepoint, as its format file has them.
    pub fields: String,
    /// Bytes of its records that programs may look at.
    pub record_size: usize,
    runner: Arc<Runner>,
    sites: AllSites,
    /// Held while places are armed and disarmed. Taken before `state`, never while that is held.
    armed: Mutex<Vec<Arc<dyn Armed>>>,
    state: Mutex<State>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl std::fmt::Debug for TraceEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceEvent")
            .field("id", &self.id)
            .field("group", &self.group)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What makes and runs events.
#[derive(Clone, Debug)]
pub struct Means {
    /// Runs programs.
    pub runner: Arc<Runner>,
    /// What can be probed.
    pub sites: AllSites,
}

impl TraceEvent {
    /// An event without places.
    pub fn new(id: u32, group: &str, name: &str, kind: Kind, means: &Means) -> TraceEvent {
        TraceEvent {
            id,
            group: group.to_owned(),
            name: name.to_owned(),
            kind,
            fields: String::new(),
            record_size: MAX_RECORD,
            runner: Arc::clone(&means.runner),
            sites: means.sites.clone(),
            armed: Mutex::default(),
            state: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its places.
    pub fn probes(&self) -> Vec<Arc<Probe>> {
        self.lock().probes.clone()
    }

    /// True if it fires when functions return.
    pub fn is_return(&self) -> bool {
        self.lock().probes.first().is_some_and(|p| p.point.when == When::Return)
    }

    /// Hits, and those that were not delivered.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// Adds a place.
    pub fn add_probe(self: &Arc<Self>, point: Point, address: u64, args: Vec<Argument>) -> Result<(), Errno> {
        let probe = Arc::new(Probe { event: Arc::downgrade(self), point, address, args });
        let mut armed = self.armed();
        if self.is_used() {
            armed.extend(self.arm(&probe)?);
        }
        self.lock().probes.push(probe);
        Ok(())
    }

    fn armed(&self) -> MutexGuard<'_, Vec<Arc<dyn Armed>>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arm(&self, probe: &Arc<Probe>) -> Result<Vec<Arc<dyn Armed>>, Errno> {
        let consumer: Arc<dyn Consumer> = probe.clone();
        Ok(self.sites.arm(&probe.point, &consumer)?.into_iter().map(Arc::from).collect())
    }

    /// Changes who uses the event, and arms or disarms its places with the first and the last of them.
    fn change_users(&self, change: impl Fn(&mut State)) -> Result<(), Errno> {
        let mut armed = self.armed();
        let probes = {
            let mut state = self.lock();
            let before = state.is_used();
            change(&mut state);
            match (before, state.is_used()) {
                (false, true) => state.probes.clone(),
                (true, false) => {
                    drop(state);
                    armed.clear();
                    return Ok(());
                }
                _ => return Ok(()),
            }
        };
        for probe in &probes {
            match self.arm(probe) {
                Ok(more) => armed.extend(more),
                Err(e) => {
                    armed.clear();
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// A perf event wants to be told of hits.
    pub fn add_user(&self, event: &Arc<PerfEvent>) -> Result<(), Errno> {
        let added = self.change_users(|state| state.users.push(Arc::downgrade(event)));
        if added.is_err() {
            self.lock().users.retain(|u| !std::ptr::eq(u.as_ptr(), Arc::as_ptr(event)));
        }
        added
    }

    /// A perf event has gone.
    pub fn remove_user(&self, event: *const PerfEvent) {
        // Disarming does not fail.
        let _ = self.change_users(|state| state.users.retain(|u| !std::ptr::eq(u.as_ptr(), event)));
    }

    /// True if a perf event or the tracefs holds it.
    pub fn is_used(&self) -> bool {
        self.lock().is_used()
    }

    /// Enabled in the tracefs?
    pub fn is_enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Enables or disables it in the tracefs: its hits are counted.
    pub fn set_enabled(&self, enabled: bool) -> Result<(), Errno> {
        let set = self.change_users(|state| state.enabled = enabled);
        if set.is_err() {
            self.lock().enabled = false;
        }
        set
    }

    /// The programs on it.
    pub fn programs(&self) -> Arc<Vec<Attached>> {
        Arc::clone(&self.lock().programs)
    }

    /// Puts a program on it, at the end. A program can be there only once.
    pub fn add_program(&self, program: Attached) -> Result<(), Errno> {
        self.change(|programs| {
            if programs.len() >= MAX_PROGRAMS {
                return Err(Errno::E2BIG);
            }
            if programs.iter().any(|p| Arc::ptr_eq(&p.prog, &program.prog)) {
                return Err(Errno::EEXIST);
            }
            programs.push(program);
            Ok(())
        })
    }

    /// Takes a program off.
    pub fn remove_program(&self, program: &Attached) {
        let removed = self.change(|programs| {
            programs.retain(|p| !Arc::ptr_eq(&p.prog, &program.prog));
            Ok(())
        });
        // Nothing in here fails; where the programs run, those that are gone are gone with the process.
        let _ = removed;
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Attached>) -> Result<(), Errno>) -> Result<(), Errno> {
        let armed = self.armed();
        let old = self.programs();
        let mut programs = old.to_vec();
        change(&mut programs)?;
        self.lock().programs = Arc::new(programs);
        let told = armed.iter().try_for_each(|a| a.programs_changed());
        if told.is_err() {
            self.lock().programs = old;
        }
        told
    }

    /// Programs of all kinds of events are run here; what is measured stands in `probe::nest`.
    fn run(&self, inside: Inside, ctx: *mut u8, at: &At) -> Option<Results> {
        let (nesting, _guard) = enter(inside);
        if nesting == Nesting::Miss {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        let programs = self.programs();
        if nesting == Nesting::Skip && !programs.is_empty() {
            programs.iter().for_each(|p| p.prog.runs.miss());
            return None;
        }
        // SAFETY: programs on an event are of the type that its context is of.
        let results = unsafe { self.runner.run(&programs, ctx, at) };
        if results.is_none() {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        results.filter(|r| r.verdict != 0)
    }

    fn tell(&self, occurrence: &Occurrence<'_>) {
        let users: Vec<_> = self.lock().users.iter().filter_map(Weak::upgrade).collect();
        for user in users {
            user.occurred(occurrence);
        }
    }

    /// The head of a record.
    fn head(&self, pid: u32) -> Vec<u8> {
        let mut record = Vec::with_capacity(64);
        record.extend((self.id as u16).to_ne_bytes());
        record.extend([0, 0]);
        record.extend(pid.to_ne_bytes());
        record
    }

    /// A published tracepoint is reached; `fields` follow the head of the record.
    pub fn fire(&self, fields: &[u8]) {
        if !self.is_used() {
            return;
        }
        let tid = own_tid();
        let mut record = self.head(tid);
        record.extend_from_slice(fields);
        let mut ctx = record.clone();
        ctx.resize(MAX_RECORD.max(ctx.len()), 0);
        let at = At { cookie: 0, func_ip: 0, entry_ip: 0, regs: std::ptr::null() };
        let Some(results) = self.run(Inside::Tracepoint, ctx.as_mut_ptr(), &at) else { return };
        self.tell(&Occurrence {
            ip: 0,
            user: false,
            pid: std::process::id(),
            tid,
            cpu: results.cpu,
            time: None,
            raw: &record,
        });
    }
}

fn own_tid() -> u32 {
    // SAFETY: the call takes nothing.
    unsafe { libc::gettid() }.cast_unsigned()
}

impl Probe {
    fn record(&self, event: &TraceEvent, tid: u32, address: u64, ret_ip: u64, regs: Option<&PtRegs>) -> Vec<u8> {
        let mut record = event.head(tid);
        if self.point.when == When::Return {
            record.extend(address.to_ne_bytes());
            record.extend(ret_ip.to_ne_bytes());
        } else {
            record.extend(address.to_ne_bytes());
        }
        match regs {
            Some(regs) => {
                let values = args::fetch(&self.args, regs, record.len());
                record.extend(values);
            }
            // The record is what the format file says, whoever fetched it.
            None => record.resize(record.len() + args::len(&self.args), 0),
        }
        record
    }

    /// Where a sample says that it was taken: behind the first byte of a kernel function, as the kernel has it.
    fn sample_ip(&self, event: &TraceEvent, address: u64, ret_ip: u64) -> u64 {
        match (self.point.when, event.kind) {
            (When::Return, _) => ret_ip,
            (When::Entry, Kind::Kprobe) => address.wrapping_add(1),
            (When::Entry, _) => address,
        }
    }

    /// True if the place is where its function begins.
    fn is_entry(&self) -> bool {
        matches!(self.point.what, What::Symbol { offset: 0, .. })
    }
}

impl Consumer for Probe {
    fn reached(&self, hit: &Hit<'_>) {
        let Some(event) = self.event.upgrade() else { return };
        let inside = if event.kind == Kind::Kprobe { Inside::Kprobe } else { Inside::Uprobe };
        let mut regs = *hit.regs;
        let func_ip = if event.kind == Kind::Uprobe || self.is_entry() { hit.address } else { 0 };
        let at = At { cookie: 0, func_ip, entry_ip: if self.is_entry() { hit.address } else { 0 }, regs: hit.regs };
        let Some(results) = event.run(inside, (&raw mut regs).cast(), &at) else { return };
        let tid = own_tid();
        let raw = self.record(&event, tid, hit.address, hit.regs.rip, Some(hit.regs));
        event.tell(&Occurrence {
            ip: self.sample_ip(&event, hit.address, hit.regs.rip),
            user: event.kind == Kind::Uprobe,
            pid: std::process::id(),
            tid,
            cpu: results.cpu,
            time: None,
            raw: &raw,
        });
    }

    fn programs(&self) -> Vec<Attached> {
        self.event.upgrade().map_or(Vec::new(), |e| e.programs().to_vec())
    }

    fn reported(&self, report: &Report) {
        let Some(event) = self.event.upgrade() else { return };
        event.hits.fetch_add(1, Ordering::Relaxed);
        let address = if self.point.when == When::Return { report.func } else { report.ip };
        let raw = self.record(&event, report.tid, address, report.ip, None);
        event.tell(&Occurrence {
            ip: self.sample_ip(&event, address, report.ip),
            user: event.kind == Kind::Uprobe,
            pid: report.pid,
            tid: report.tid,
            cpu: report.cpu,
            time: Some(report.time),
            raw: &raw,
        });
    }

    fn missed(&self, count: u64) {
        if let Some(event) = self.event.upgrade() {
            event.misses.fetch_add(count, Ordering::Relaxed);
        }
    }
}
