//! Sampling: programs of type `perf_event`, run for threads of other processes at the ticks of a clock, at counted events,
//! or where they touch memory.
//!
//! Nothing is put into the processes. The kernel's perf events take the samples (`perf_event_open(2)`, which an ordinary user
//! may use on processes of his own where `kernel.perf_event_paranoid` is 2 or less), with the user registers and a piece of the
//! user stack; the programs run in this process, with the maps of the session. What `get_stack` and `get_stackid` say is found
//! out here, from the unwind tables of the process's files.

mod event;
mod frames;
mod ring;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use skep_ebpf::insn::Insn;
use skep_ebpf::uapi::{ProgType, PtRegs};
use skep_runtime::session::SampleRecord;
use skep_runtime::{At, Task};

pub use event::{EVENTS, Event, Rate};

use crate::attach::procfs;
use crate::code_map::{CodeMap, Mapping};
use crate::place::When;
use crate::session::{Link, Session, SessionError};
use event::Kind;
use frames::Unwinders;
use ring::{Record, Ring, Sample, What};

/// Bytes of stack that a sample has, where programs ask for call chains: two thirds of what a record can hold.
const STACK: u32 = 40 << 10;
/// The same where samples may come in quick succession: room for fewer would lose more of them.
const STACK_OF_MANY: u32 = 8 << 10;
/// Pages of a ring's records: with the page before them what each user may lock for each CPU, by default.
const PAGES: usize = 128;
/// Helpers that need the stack: `get_stackid` and `get_stack`.
const STACK_HELPERS: [i32; 2] = [27, 67];

/// Why there is no sampling.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The kernel has no such event for us.
    #[error("cannot sample {event} of process {pid}: {source}{hint}")]
    Open {
        /// The event.
        event: String,
        /// The process.
        pid: u32,
        /// The error.
        source: io::Error,
        /// What may help.
        hint: String,
    },
    /// There is no such process.
    #[error("no process {pid}")]
    NoSuchProcess {
        /// Its id.
        pid: u32,
    },
    /// Something else could not be had.
    #[error("cannot sample: {what}: {source}")]
    System {
        /// The part.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The program is of another type.
    #[error("program `{program}` is no perf_event program")]
    OtherType {
        /// The program.
        program: String,
    },
    /// A link could not be made.
    #[error(transparent)]
    Session(#[from] SessionError),
}

fn system(what: &'static str) -> impl Fn(io::Error) -> SamplingError {
    move |source| SamplingError::System { what, source }
}

/// The context of a `perf_event` program: `struct bpf_perf_event_data`.
#[repr(C)]
struct Context {
    regs: PtRegs,
    sample_period: u64,
    addr: u64,
}

/// Who a thread is.
#[derive(Clone, Copy)]
struct Who {
    uid: u32,
    gid: u32,
}

/// Samples processes and runs programs on the samples.
pub struct Sampler {
    links: Vec<Link>,
    kind: Kind,
    cpus: Vec<i32>,
    /// Processes whose events there are: theirs, or inherited.
    sampled: HashSet<u32>,
    /// What was taken out of the rings, and not yet looked at.
    pending: Vec<Record>,
    /// By CPU; the first event on it has it.
    rings: HashMap<i32, Ring>,
    /// Events that write to the rings, by process.
    events: Vec<OwnedFd>,
    epoll: OwnedFd,
    code: HashMap<u32, CodeMap>,
    names: HashMap<u32, [u8; 16]>,
    users: HashMap<u32, Who>,
    unwinders: Unwinders,
    lost: u64,
}

impl Sampler {
    /// A sampler that runs these programs of a session; it has no processes yet.
    pub fn new(session: &mut Session, programs: &[usize], event: Event, rate: Rate) -> Result<Sampler, SamplingError> {
        let mut links = Vec::with_capacity(programs.len());
        let mut stack = 0;
        for &index in programs {
            let link = session.link(index, When::Entry, 0)?;
            let program = session.verified(index).ok_or(SessionError::NoProgram { index })?;
            if program.program().prog_type != ProgType::PerfEvent {
                return Err(SamplingError::OtherType { program: program.program().name.clone() });
            }
            let asks = |i: &Insn| i.is_helper_call() && STACK_HELPERS.contains(&i.imm);
            if program.insns().iter().any(asks) {
                stack = if matches!(rate, Rate::Frequency(_)) { STACK } else { STACK_OF_MANY };
            }
            links.push(link);
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| system("epoll")(e.into()))?;
        Ok(Sampler {
            links,
            kind: Kind { event, rate, stack, kernel: true },
            cpus: online_cpus().map_err(system("the list of CPUs"))?,
            sampled: HashSet::new(),
            pending: Vec::new(),
            rings: HashMap::new(),
            events: Vec::new(),
            epoll,
            code: HashMap::new(),
            names: HashMap::new(),
            users: HashMap::new(),
            unwinders: Unwinders::default(),
            lost: 0,
        })
    }

    /// The links that count the runs.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// What is sampled.
    pub fn event(&self) -> Event {
        self.kind.event
    }

    /// Readable when there are samples.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Samples that found no room.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Where the code of the sampled processes is, and was.
    pub fn code(&self, pid: u32) -> Option<&CodeMap> {
        self.code.get(&pid)
    }

    /// Samples all threads of a process, and all threads and processes that they make, from now on. One that a sampled process
    /// made is sampled already.
    pub fn add(&mut self, pid: u32) -> Result<(), SamplingError> {
        self.take();
        let made =
            |r: &Record| matches!(r.what, What::Fork { pid: child, parent, .. } if child == pid && parent != pid);
        if self.sampled.contains(&pid) || self.pending.iter().any(made) {
            return Ok(());
        }
        let gone = || SamplingError::NoSuchProcess { pid };
        let mut opened = 0;
        for tid in procfs::tasks(pid).map_err(|_| gone())? {
            self.names.insert(tid.cast_unsigned(), name(pid, tid.cast_unsigned()));
            for cpu in self.cpus.clone() {
                match self.open(tid, cpu) {
                    Ok(()) => opened += 1,
                    // The thread has ended, or the CPU was switched off.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => {}
                    Err(source) => {
                        let hint = hint(&source, self.kind.event);
                        return Err(SamplingError::Open { event: self.kind.event.to_string(), pid, source, hint });
                    }
                }
            }
        }
        if opened == 0 {
            return Err(gone());
        }
        self.sampled.insert(pid);
        self.users.insert(pid, who(pid));
        self.code.insert(pid, CodeMap::of(pid));
        Ok(())
    }

    fn open(&mut self, tid: i32, cpu: i32) -> io::Result<()> {
        let event = match self.kind.open(tid, cpu) {
            // Samples of the kernel at work need more rights.
            Err(e) if self.kind.kernel && matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                let less = Kind { kernel: false, ..self.kind };
                let event = less.open(tid, cpu)?;
                self.kind = less;
                event
            }
            other => other?,
        };
        if let Some(ring) = self.rings.get(&cpu) {
            event::redirect(&event, ring.as_fd())?;
            self.events.push(event);
            return Ok(());
        }
        // An event that has a ring keeps it; the one that is mapped is the same.
        let mut pages = PAGES;
        let ring = loop {
            match Ring::map(event.try_clone()?, pages) {
                Ok(ring) => break ring,
                // More than may be locked.
                Err(e) if e.raw_os_error() == Some(libc::EPERM) && pages > 16 => pages /= 2,
                Err(e) => return Err(e),
            }
        };
        let data = epoll::EventData::new_u64(cpu.cast_unsigned().into());
        epoll::add(&self.epoll, &ring, data, epoll::EventFlags::IN)?;
        self.events.push(event);
        self.rings.insert(cpu, ring);
        Ok(())
    }

    /// Ends the sampling; what was sampled can still be [polled](Sampler::poll).
    pub fn stop(&mut self) {
        self.events.iter().for_each(|e| event::disable(e.as_fd()));
    }

    fn take(&mut self) {
        let pending = &mut self.pending;
        self.rings.values_mut().for_each(|ring| ring.take(|record| pending.push(record)));
    }

    /// Runs the programs on all samples that are there. Runs that return non-zero are handed over as the session's records
    /// of samples are; returns how many samples there were.
    pub fn poll(&mut self, session: &Session, mut each: impl FnMut(Link, SampleRecord)) -> usize {
        self.take();
        let mut records = std::mem::take(&mut self.pending);
        // What one CPU saw tells where the code is that another one saw run.
        records.sort_by_key(|r| r.time);
        let mut count = 0;
        for Record { time, what } in records {
            match what {
                What::Sample(sample) => {
                    count += 1;
                    self.run(session, time, &sample, &mut each);
                }
                What::Lost(n) => self.lost += n,
                What::Comm { pid, tid, exec, name } => {
                    self.names.insert(tid, name);
                    if exec {
                        self.users.remove(&pid);
                        self.unwinders.forget(pid);
                        self.code.entry(pid).or_insert_with(|| CodeMap::of(pid)).clear();
                    }
                }
                What::Fork { pid, parent, tid, maker } => {
                    // What is new is called as its maker, until it says otherwise.
                    if let Some(name) = self.names.get(&maker).copied() {
                        self.names.insert(tid, name);
                    }
                    if let Some(who) = self.users.get(&parent).copied() {
                        self.users.insert(pid, who);
                    }
                    if pid == parent {
                        continue;
                    }
                    self.sampled.insert(pid);
                    if let Some(code) = self.code.get(&parent).map(|code| code.fork(pid)) {
                        self.code.insert(pid, code);
                    }
                }
                What::Ended { pid, tid } => {
                    if pid == tid {
                        self.sampled.remove(&pid);
                        self.unwinders.forget(pid);
                    }
                }
                What::Mapped { pid, start, len, offset, path } => {
                    let mapping = Mapping { range: start..start.saturating_add(len), offset, name: path };
                    self.code.entry(pid).or_insert_with(|| CodeMap::of(pid)).map(mapping);
                }
            }
        }
        count
    }

    fn run(&mut self, session: &Session, time: u64, sample: &Sample, each: &mut impl FnMut(Link, SampleRecord)) {
        let (pid, tid) = (sample.pid, sample.tid);
        let code = self.code.entry(pid).or_insert_with(|| CodeMap::of(pid));
        let chain = match self.kind.stack {
            0 => Vec::new(),
            _ => self.unwinders.chain(sample, code),
        };
        let who = *self.users.entry(pid).or_insert_with(|| who(pid));
        let comm = *self.names.entry(tid).or_insert_with(|| name(pid, tid));
        let task = Task { pid, tid, uid: who.uid, gid: who.gid, comm, chain: &chain };
        for link in &self.links {
            let mut ctx = Context { regs: sample.regs, sample_period: sample.period, addr: sample.addr };
            let at = At { cookie: 0, func_ip: 0, entry_ip: 0, regs: &raw const ctx.regs };
            // SAFETY: the context is that of a `perf_event` program, which the link's is.
            let run = unsafe { session.run_link(*link, (&raw mut ctx).cast(), &at, &task) };
            if let Some((run, slot)) = run
                && run.retval as u32 != 0
            {
                let (link_index, ip) = (link.index(), sample.regs.rip);
                each(
                    *link,
                    SampleRecord { time_ns: time, link: link_index, slot, pid, tid, ip, func: 0, retval: run.retval },
                );
            }
        }
    }
}

fn who(pid: u32) -> Who {
    let status = procfs::status(pid).unwrap_or_default();
    Who { uid: status.uids[0], gid: status.gids[0] }
}

fn name(pid: u32, tid: u32) -> [u8; 16] {
    let mut name = [0; 16];
    let read = std::fs::read(format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    for (to, from) in name.iter_mut().take(15).zip(read.split(|b| *b == b'\n').next().unwrap_or_default()) {
        *to = *from;
    }
    name
}

/// What may help against an error.
fn hint(error: &io::Error, event: Event) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
            match paranoid.trim() {
                "" => String::new(),
                n => format!(
                    "; it takes a process of the same user and kernel.perf_event_paranoid of 2 or less (it is {n}), or CAP_PERFMON"
                ),
            }
        }
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => match event {
            Event::Counted(_) => "; the processor, or the virtual machine, does not count it".into(),
            Event::Access { .. } => "; there are no hardware breakpoints here".into(),
        },
        Some(libc::ENOSPC) => "; all hardware breakpoints are taken".into(),
        Some(libc::EMFILE) => "; it takes a descriptor for each thread and CPU: raise the limit (ulimit -n)".into(),
        _ => String::new(),
    }
}

/// The CPUs that are switched on.
fn online_cpus() -> io::Result<Vec<i32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<i32>().ok()?..=last.parse::<i32>().ok()?)
    };
    let ranges: Option<Vec<_>> = text.trim().split(',').map(range).collect();
    ranges.map(|r| r.into_iter().flatten().collect()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
