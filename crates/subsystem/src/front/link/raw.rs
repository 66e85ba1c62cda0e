//! Raw tracepoints: programs that get a tracepoint's arguments as they are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use skep_ebpf::Errno;
use skep_runtime::At;

use crate::front::Subsystem;
use crate::front::object::ProgObject;
use crate::front::probe::{Attached, Inside, Runner, enter};
use crate::front::tracefs::TracepointDef;
use crate::front::tracefs::event::TraceEvent;

/// Arguments that programs may look at.
const MAX_ARGS: usize = 12;

type Programs = Vec<(u64, Attached)>;

/// A tracepoint by its name.
#[derive(Debug)]
pub struct RawTracepoint {
    /// Its name.
    pub name: String,
    runner: Arc<Runner>,
    next: AtomicU64,
    programs: RwLock<Programs>,
}

/// A program on a raw tracepoint, until this goes.
#[derive(Debug)]
pub struct RawLink {
    tracepoint: Arc<RawTracepoint>,
    number: u64,
    /// What the link was made with.
    pub cookie: u64,
}

impl RawLink {
    /// The tracepoint's name.
    pub fn name(&self) -> &str {
        &self.tracepoint.name
    }
}

impl Drop for RawLink {
    fn drop(&mut self) {
        let gone = {
            let mut programs = self.tracepoint.programs.write().unwrap_or_else(PoisonError::into_inner);
            let at = programs.iter().position(|(n, _)| *n == self.number);
            at.map(|at| programs.remove(at))
        };
        drop(gone);
    }
}

thread_local! {
    /// Programs that this thread runs on raw tracepoints: each keeps only itself out.
    static RUNNING: RefCell<Vec<*const ProgObject>> = const { RefCell::new(Vec::new()) };
}

/// A program is marked as running until this goes.
struct Running(*const ProgObject);

impl Running {
    fn enter(prog: &Arc<ProgObject>) -> Option<Running> {
        let at = Arc::as_ptr(prog);
        let fresh = RUNNING.try_with(|running| {
            let mut running = running.try_borrow_mut().ok()?;
            (!running.contains(&at)).then(|| running.push(at))
        });
        fresh.ok().flatten().map(|()| Running(at))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = RUNNING.try_with(|running| {
            if let Ok(mut running) = running.try_borrow_mut() {
                running.retain(|p| *p != self.0);
            }
        });
    }
}

impl RawTracepoint {
    /// Puts a program on it.
    pub fn attach(self: &Arc<Self>, prog: &Arc<ProgObject>, cookie: u64) -> RawLink {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let attached = Attached { prog: Arc::clone(prog), cookie };
        self.programs.write().unwrap_or_else(PoisonError::into_inner).push((number, attached));
        RawLink { tracepoint: Arc::clone(self), number, cookie }
    }

    /// It is reached with these arguments.
    pub fn fire(&self, args: &[u64]) {
        let programs = match self.programs.read() {
            Ok(programs) if programs.is_empty() => return,
            Ok(programs) => programs.clone(),
            Err(_) => return,
        };
        let (_, _guard) = enter(Inside::Raw);
        for (_, attached) in programs {
            let Some(_running) = Running::enter(&attached.prog) else {
                attached.prog.runs.miss();
                continue;
            };
            let mut ctx = [0u64; MAX_ARGS];
            for (to, from) in ctx.iter_mut().zip(args) {
                *to = *from;
            }
            let at = At { cookie: 0, func_ip: 0, entry_ip: 0, regs: std::ptr::null() };
            // SAFETY: a context of raw tracepoints is their arguments, as many as programs may look at.
            let ran = unsafe { self.runner.run(std::slice::from_ref(&attached), ctx.as_mut_ptr().cast(), &at) };
            if ran.is_none() {
                attached.prog.runs.miss();
            }
        }
    }
}

/// All raw tracepoints.
#[derive(Debug, Default)]
pub struct RawTracepoints(Mutex<HashMap<String, Arc<RawTracepoint>>>);

impl RawTracepoints {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<RawTracepoint>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of a name.
    pub fn get(&self, name: &str) -> Option<Arc<RawTracepoint>> {
        self.lock().get(name).cloned()
    }
}

/// A tracepoint of this process: a trace event, and a raw tracepoint of the same name.
#[derive(Clone, Debug)]
pub struct Tracepoint {
    event: Arc<TraceEvent>,
    raw: Arc<RawTracepoint>,
}

impl Tracepoint {
    /// It is reached: with its arguments, and with the fields of its record, which begin behind the record's first
    /// eight bytes.
    pub fn fire(&self, args: &[u64], fields: &[u8]) {
        self.raw.fire(args);
        self.event.fire(fields);
    }

    /// Its trace event.
    pub fn event(&self) -> &Arc<TraceEvent> {
        &self.event
    }
}

impl Subsystem {
    /// Publishes a tracepoint of this process: perf events find it in the tracefs, raw tracepoint programs by its name.
    pub fn publish_tracepoint(&self, def: &TracepointDef) -> Result<Tracepoint, Errno> {
        let mut raws = self.raw_tracepoints.lock();
        let event = self.tracefs.publish(def, &self.means)?;
        let raw = raws.entry(def.name.clone()).or_insert_with(|| {
            Arc::new(RawTracepoint {
                name: def.name.clone(),
                runner: Arc::clone(&self.means.runner),
                next: AtomicU64::new(0),
                programs: RwLock::default(),
            })
        });
        Ok(Tracepoint { event, raw: Arc::clone(raw) })
    }

    /// Takes a tracepoint back. `EBUSY` while a perf event is on it; programs of raw tracepoint links stay, and are not
    /// called any more.
    pub fn withdraw_tracepoint(&self, tracepoint: &Tracepoint) -> Result<(), Errno> {
        self.tracefs.withdraw(&tracepoint.event)?;
        self.raw_tracepoints.lock().remove(&tracepoint.raw.name);
        Ok(())
    }
}
