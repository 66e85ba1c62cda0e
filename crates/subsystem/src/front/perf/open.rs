//! `perf_event_open`: from attributes to an event, in the kernel's order of checks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_ebpf::Errno;

use super::attr::{PerfAttr, kind};
use super::event::{NewEvent, PerfEvent, Source};
use crate::front::client::{Caps, Client};
use crate::front::faults::FaultPoint;
use crate::front::object::Object;
use crate::front::probe::{Missing, Point, What, When};
use crate::front::tracefs::event::{Kind, TraceEvent};
use crate::front::{Errno as FrontErrno, Subsystem};

/// `PERF_FLAG_*`.
const NO_GROUP: u64 = 1;
const FD_OUTPUT: u64 = 2;
const PID_CGROUP: u64 = 4;
const ALL_FLAGS: u64 = 15;

/// Software events: those that are served, and where their numbers end.
mod software {
    pub const CPU_CLOCK: u64 = 0;
    pub const TASK_CLOCK: u64 = 1;
    pub const DUMMY: u64 = 9;
    pub const BPF_OUTPUT: u64 = 10;
}

/// Longest name of a function, and longest path, with their ends.
const SYMBOL_LEN: usize = 512;
const PATH_LEN: usize = 4096;
/// Most samples a second (`kernel.perf_event_max_sample_rate`).
const MAX_RATE: u64 = 100_000;

impl Subsystem {
    /// `perf_event_open(attr, pid, cpu, group_fd, flags)`: a descriptor of a new event. `attr` is an address in the
    /// caller's memory.
    pub fn perf_event_open(
        &self,
        client: &Client,
        attr: u64,
        pid: i32,
        cpu: i32,
        group: i32,
        flags: u64,
    ) -> Result<i32, FrontErrno> {
        if flags & !ALL_FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        let attr = PerfAttr::read(client, attr)?;
        if !client.caps.has(Caps::PERFMON) {
            return Err(Errno::EACCES);
        }
        if attr.is_frequency() && attr.period() > MAX_RATE || !attr.is_frequency() && attr.period() >> 63 != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & PID_CGROUP != 0 && (pid == -1 || cpu == -1) {
            return Err(Errno::EINVAL);
        }
        let (leader, output) = self.group(client, group, flags)?;
        if flags & PID_CGROUP != 0 {
            // There are no control groups here to follow.
            return Err(Errno::EOPNOTSUPP);
        }
        let tid = match pid {
            -1 => None,
            0 => Some(client.tid()),
            pid if pid > 0 && std::path::Path::new(&format!("/proc/{pid}")).exists() => Some(pid.cast_unsigned()),
            _ => return Err(Errno::ESRCH),
        };
        if tid.is_some() && leader.as_ref().is_some_and(|l| l.attr.inherit() != attr.inherit()) {
            return Err(Errno::EINVAL);
        }
        let any_cpu = cpu == -1 && tid.is_some();
        if !any_cpu && !u32::try_from(cpu).is_ok_and(|c| c < self.slots()) {
            return Err(Errno::EINVAL);
        }
        if attr.sigtrap() && tid.is_none() {
            return Err(Errno::EINVAL);
        }
        let source = self.source(client, &attr, tid)?;
        if attr.wants_hardware() {
            return Err(Errno::EOPNOTSUPP);
        }
        let clocks = [
            libc::CLOCK_MONOTONIC,
            libc::CLOCK_MONOTONIC_RAW,
            libc::CLOCK_REALTIME,
            libc::CLOCK_BOOTTIME,
            libc::CLOCK_TAI,
        ];
        if attr.wants_aux() || attr.clock().is_some_and(|c| !clocks.contains(&c)) {
            return Err(Errno::EINVAL);
        }
        if let Some(leader) = &leader
            && (leader.leader.is_some() || leader.cpu != cpu || leader.tid != tid || attr.wants_all())
        {
            return Err(Errno::EINVAL);
        }
        self.fault(FaultPoint::PerfAlloc)?;
        let id = self.perf_ids.fetch_add(1, Ordering::Relaxed) + 1;
        let event = PerfEvent::open(NewEvent { id, attr, cpu, tid, source, leader })?;
        if let Some(output) = output {
            super::may_redirect(&event, &output)?;
            event.redirect(Some(output));
        }
        self.install(client, Object::Perf(event))
    }

    /// The leader of the group, and the event whose ring is to be used.
    #[expect(clippy::type_complexity, reason = "two events")]
    fn group(
        &self,
        client: &Client,
        group: i32,
        flags: u64,
    ) -> Result<(Option<Arc<PerfEvent>>, Option<Arc<PerfEvent>>), Errno> {
        if group == -1 {
            return Ok((None, None));
        }
        let Ok(Object::Perf(event)) = client.files.get(group) else { return Err(Errno::EBADF) };
        let output = (flags & FD_OUTPUT != 0).then(|| Arc::clone(&event));
        Ok(((flags & NO_GROUP == 0).then_some(event), output))
    }

    fn source(&self, client: &Client, attr: &PerfAttr, tid: Option<u32>) -> Result<Source, Errno> {
        let config = attr.config();
        match attr.kind() {
            kind::SOFTWARE => match config {
                _ if attr.wants_branches() => Err(Errno::EOPNOTSUPP),
                software::CPU_CLOCK | software::TASK_CLOCK => Ok(Source::Clock),
                software::DUMMY => Ok(Source::Dummy),
                software::BPF_OUTPUT => Ok(Source::BpfOutput),
                // The kernel's own events are the kernel's to count.
                _ => Err(Errno::ENOENT),
            },
            kind::TRACEPOINT if attr.wants_branches() => Err(Errno::EOPNOTSUPP),
            kind::TRACEPOINT => {
                let event = self.tracefs.by_id(config).ok_or(Errno::EINVAL)?;
                Ok(Source::Trace(event))
            }
            kind::KPROBE if attr.wants_branches() => Err(Errno::EOPNOTSUPP),
            kind::KPROBE => self.kprobe(client, attr).map(Source::Trace),
            kind::UPROBE if attr.wants_branches() => Err(Errno::EOPNOTSUPP),
            kind::UPROBE => self.uprobe(client, attr, tid).map(Source::Trace),
            _ => Err(Errno::ENOENT),
        }
    }

    /// A string of the caller's; `E2BIG` if it does not end.
    fn name(&self, client: &Client, at: u64, max: usize) -> Result<String, Errno> {
        let bytes = client.string(at, max)?;
        if bytes.len() >= max {
            return Err(Errno::E2BIG);
        }
        String::from_utf8(bytes).map_err(|_| Errno::ENOENT)
    }

    /// An event of the kprobe PMU: its own trace event, which nobody else can have.
    fn kprobe(&self, client: &Client, attr: &PerfAttr) -> Result<Arc<TraceEvent>, Errno> {
        let name = match attr.config1() {
            0 => String::new(),
            at => self.name(client, at, SYMBOL_LEN)?,
        };
        let what = match (name.as_str(), attr.config2()) {
            ("", 0) => return Err(Errno::EINVAL),
            ("", address) => What::Address(address),
            (name, offset) => match name.split_once(':') {
                Some((module, name)) => What::Symbol { module: Some(module.to_owned()), name: name.to_owned(), offset },
                None => What::Symbol { module: None, name: name.to_owned(), offset },
            },
        };
        let when = if attr.config() & 1 != 0 { When::Return } else { When::Entry };
        let point = Point { what, when, pid: None };
        let found = self.means.sites.find(&point).map_err(|missing| match missing {
            Missing::NoFunction => Errno::ENOENT,
            Missing::InsideInstruction => Errno::EILSEQ,
            Missing::Forbidden | Missing::NotTheStart => Errno::EINVAL,
            Missing::Ambiguous => Errno::EADDRNOTAVAIL,
        })?;
        self.local_event(Kind::Kprobe, point, found.address)
    }

    fn uprobe(&self, client: &Client, attr: &PerfAttr, tid: Option<u32>) -> Result<Arc<TraceEvent>, Errno> {
        if attr.config1() == 0 {
            return Err(Errno::EINVAL);
        }
        let path = self.name(client, attr.config1(), PATH_LEN)?;
        if path.is_empty() {
            return Err(Errno::EINVAL);
        }
        let len = file_len(&path)?.ok_or(Errno::EINVAL)?;
        let (offset, counter) = (attr.config2(), attr.config() >> 32);
        // The counter is a 16-bit word. Offsets are signed, and only those beyond the end are looked at.
        if offset.cast_signed() > len.cast_signed() || counter % 2 != 0 {
            return Err(Errno::EINVAL);
        }
        let when = if attr.config() & 1 != 0 { When::Return } else { When::Entry };
        let pid = tid.map(process_of);
        self.local_event(Kind::Uprobe, Point { what: What::File { path, offset, counter }, when, pid }, 0)
    }

    fn local_event(&self, kind: Kind, point: Point, address: u64) -> Result<Arc<TraceEvent>, Errno> {
        let group = if kind == Kind::Kprobe { "kprobes" } else { "uprobes" };
        let event = Arc::new(TraceEvent::new(0, group, "", kind, &self.means));
        event.add_probe(point, address, Vec::new())?;
        Ok(event)
    }
}

/// Bytes of a file; `None` if it is no regular one.
pub fn file_len(path: &str) -> Result<Option<u64>, Errno> {
    let data = std::fs::metadata(path).map_err(|e| Errno(e.raw_os_error().unwrap_or(Errno::ENOENT.0)))?;
    Ok(data.is_file().then_some(data.len()))
}

/// The process that a thread belongs to.
fn process_of(tid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let tgid = status.lines().find_map(|l| l.strip_prefix("Tgid:"));
    tgid.and_then(|t| t.trim().parse().ok()).unwrap_or(tid)
}
