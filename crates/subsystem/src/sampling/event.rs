//! What is sampled, and the kernel's events for it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use perf_event_open_sys::bindings as sys;
use perf_event_open_sys::{ioctls, perf_event_open};

use super::ring::REGS;

/// What makes a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An event that the kernel counts, by its name in [`EVENTS`].
    Counted(&'static str),
    /// An access to memory, seen by a hardware breakpoint.
    Access {
        /// Address in the process.
        address: u64,
        /// Bytes: 1, 2, 4 or 8; the address must be a multiple.
        len: u64,
        /// Reads make samples too, not only writes. (x86 cannot tell them apart.)
        reads: bool,
    },
}

/// How often it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many samples a second of processor time, about.
    Frequency(u64),
    /// A sample each so many events.
    Period(u64),
}

/// Names of events, as `perf list` has them: type and number of the kernel's.
pub const EVENTS: &[(&str, u32, u32)] = &[
    ("cpu-clock", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_CPU_CLOCK),
    ("task-clock", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_TASK_CLOCK),
    ("page-faults", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_PAGE_FAULTS),
    ("minor-faults", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_PAGE_FAULTS_MIN),
    ("major-faults", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_PAGE_FAULTS_MAJ),
    ("context-switches", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_CONTEXT_SWITCHES),
    ("cpu-migrations", sys::PERF_TYPE_SOFTWARE, sys::PERF_COUNT_SW_CPU_MIGRATIONS),
    ("cycles", sys::PERF_TYPE_HARDWARE, sys::PERF_COUNT_HW_CPU_CYCLES),
    ("instructions", sys::PERF_TYPE_HARDWARE, sys::PERF_COUNT_HW_INSTRUCTIONS),
    ("cache-references", sys::PERF_TYPE_HARDWARE, sys::PERF_COUNT_HW_CACHE_REFERENCES),
    ("cache-misses", sys::PERF_TYPE_HARDWARE, sys::PERF_COUNT_HW_CACHE_MISSES),
    ("branches", sys::PERF_TYPE_HARDWARE, sys::PERF_COUNT_HW_BRANCH_INSTRUCTIONS),
    ("branch-misses", sys::PERF_TYPE_HARDWARE, sys::PERF_COUNT_HW_BRANCH_MISSES),
];

impl FromStr for Event {
    type Err = String;

    fn from_str(name: &str) -> Result<Event, String> {
        let known = EVENTS.iter().find(|e| e.0 == name);
        known.map(|e| Event::Counted(e.0)).ok_or_else(|| {
            let names: Vec<_> = EVENTS.iter().map(|e| e.0).collect();
            format!("no event `{name}`; there are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Counted(name) => f.write_str(name),
            Event::Access { address, len, reads: false } => write!(f, "writes of {len} bytes at {address:#x}"),
            Event::Access { address, len, reads: true } => write!(f, "accesses of {len} bytes at {address:#x}"),
        }
    }
}

/// What the events of a sampler have in common.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub event: Event,
    pub rate: Rate,
    /// Bytes of the stack that each sample has; 0 for none.
    pub stack: u32,
    /// Samples are taken while the kernel works for a thread, too.
    pub kernel: bool,
}

impl Kind {
    /// An event of a thread, and of threads and processes that it makes, on one CPU.
    pub fn open(&self, tid: i32, cpu: i32) -> io::Result<OwnedFd> {
        let mut attr = sys::perf_event_attr { size: size_of::<sys::perf_event_attr>() as u32, ..Default::default() };
        match self.event {
            Event::Counted(name) => {
                let known = EVENTS.iter().find(|e| e.0 == name).ok_or(io::ErrorKind::InvalidInput)?;
                (attr.type_, attr.config) = (known.1, known.2.into());
            }
            Event::Access { address, len, reads } => {
                attr.type_ = sys::PERF_TYPE_BREAKPOINT;
                attr.bp_type = if reads { sys::HW_BREAKPOINT_RW } else { sys::HW_BREAKPOINT_W };
                attr.bp_addr = address;
                attr.bp_len = len;
            }
        }
        match self.rate {
            Rate::Frequency(hz) => {
                attr.set_freq(1);
                attr.sample_freq = hz;
            }
            Rate::Period(n) => attr.sample_period = n,
        }
        attr.sample_type = u64::from(
            sys::PERF_SAMPLE_IP
                | sys::PERF_SAMPLE_TID
                | sys::PERF_SAMPLE_TIME
                | sys::PERF_SAMPLE_ADDR
                | sys::PERF_SAMPLE_CPU
                | sys::PERF_SAMPLE_PERIOD
                | sys::PERF_SAMPLE_REGS_USER,
        );
        attr.sample_regs_user = REGS;
        if self.stack != 0 {
            attr.sample_type |= u64::from(sys::PERF_SAMPLE_STACK_USER);
            attr.sample_stack_user = self.stack;
        }
        attr.set_inherit(1);
        attr.set_exclude_kernel((!self.kernel).into());
        attr.set_exclude_hv(1);
        attr.set_sample_id_all(1);
        attr.set_comm(1);
        attr.set_comm_exec(1);
        attr.set_task(1);
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_use_clockid(1);
        attr.clockid = libc::CLOCK_MONOTONIC;
        // Memory of the process may be read at once: what a sample points to is still there, mostly.
        attr.wakeup_events = 1;
        // SAFETY: the attributes are whole, and their size is said.
        let fd = unsafe { perf_event_open(&mut attr, tid, cpu, -1, sys::PERF_FLAG_FD_CLOEXEC.into()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Has an event write to the ring of another one.
pub fn redirect(event: &OwnedFd, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are descriptors of events.
    match unsafe { ioctls::SET_OUTPUT(event.as_raw_fd(), to.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends an event, and those that it passed on.
pub fn disable(event: BorrowedFd<'_>) {
    // SAFETY: a descriptor of an event.
    unsafe { ioctls::DISABLE(event.as_raw_fd(), 0) };
}
