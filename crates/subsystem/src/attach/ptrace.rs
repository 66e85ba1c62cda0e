//! ptrace(2) and what waitpid(2) reports of a traced thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use libc::user_regs_struct as Regs;

/// A thread, as ptrace knows it.
pub type Tid = i32;

/// What a wait reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Stopped because it was told to (`PTRACE_INTERRUPT`), regs and signal state as in user mode.
    Interrupted,
    /// Stopped with its group by this job-control signal.
    Group(i32),
    /// About to enter or to leave a system call.
    Syscall,
    /// About to receive this signal.
    Signal(i32),
    /// Has run `exec`.
    Exec,
    /// Some other event.
    Event(i32),
    /// Gone: exited or killed.
    Gone,
}

impl Stop {
    fn from_status(status: i32) -> Stop {
        if !libc::WIFSTOPPED(status) {
            return Stop::Gone;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
            libc::PTRACE_EVENT_STOP => Stop::Group(signal),
            libc::PTRACE_EVENT_EXEC => Stop::Exec,
            0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
            0 => Stop::Signal(signal),
            event => Stop::Event(event),
        }
    }
}

fn call(request: libc::c_uint, tid: Tid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: each caller below passes, in `data`, what its request takes: a number, or a pointer that is valid for it.
    match unsafe { libc::ptrace(request, tid, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What is to be told of a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Its stops.
    Stops,
    /// [`Stop::Exec`], too.
    Exec,
    /// And the threads and processes that it makes are traced from their beginning, in the same way.
    Family,
}

/// Becomes the tracer of a thread without stopping it.
pub fn seize(tid: Tid, watch: Watch) -> io::Result<()> {
    let made = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
    let more = match watch {
        Watch::Stops => 0,
        Watch::Exec => libc::PTRACE_O_TRACEEXEC,
        Watch::Family => libc::PTRACE_O_TRACEEXEC | made,
    };
    call(libc::PTRACE_SEIZE, tid, 0, (libc::PTRACE_O_TRACESYSGOOD | more) as usize)
}

/// Asks a thread to stop.
pub fn interrupt(tid: Tid) -> io::Result<()> {
    call(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a thread run, delivering `signal` (0 for none) if it stopped for a signal.
pub fn cont(tid: Tid, signal: i32) -> io::Result<()> {
    call(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Lets a thread run until its next system call begins or ends.
pub fn cont_to_syscall(tid: Tid) -> io::Result<()> {
    call(libc::PTRACE_SYSCALL, tid, 0, 0)
}

/// Leaves a thread in its group stop, yet able to be continued by `SIGCONT`.
pub fn listen(tid: Tid) -> io::Result<()> {
    call(libc::PTRACE_LISTEN, tid, 0, 0)
}

/// Stops tracing.
pub fn detach(tid: Tid) -> io::Result<()> {
    call(libc::PTRACE_DETACH, tid, 0, 0)
}

/// The registers of a stopped thread.
pub fn regs(tid: Tid) -> io::Result<Regs> {
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    call(libc::PTRACE_GETREGS, tid, 0, (&raw mut regs) as usize)?;
    Ok(regs)
}

/// Sets the registers of a stopped thread.
pub fn set_regs(tid: Tid, regs: &Regs) -> io::Result<()> {
    call(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as usize)
}

const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;

/// The blocked signals of a stopped thread, bit `n - 1` for signal `n`.
pub fn signal_mask(tid: Tid) -> io::Result<u64> {
    let mut mask = 0u64;
    call(PTRACE_GETSIGMASK, tid, 8, (&raw mut mask) as usize)?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
pub fn set_signal_mask(tid: Tid, mask: u64) -> io::Result<()> {
    call(PTRACE_SETSIGMASK, tid, 8, (&raw const mask) as usize)
}

const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;

/// Address of a thread's `struct rseq`, if it has one.
pub fn rseq(tid: Tid) -> Option<u64> {
    // Address, size, signature, flags, padding.
    let mut configuration = [0u64; 3];
    let size = size_of_val(&configuration);
    call(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut configuration) as usize).ok()?;
    let [address, ..] = configuration;
    (address != 0).then_some(address)
}

/// Statuses that were waited for, and not looked at yet.
static COLLECTED: Mutex<BTreeMap<Tid, VecDeque<i32>>> = Mutex::new(BTreeMap::new());

fn statuses() -> MutexGuard<'static, BTreeMap<Tid, VecDeque<i32>>> {
    COLLECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for whatever thread has stopped, known or not, without waiting for one that has not; [`poll`] tells of it. Returns all
/// threads of which there is something to tell.
pub fn collect() -> Vec<Tid> {
    let mut all = statuses();
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the result.
        match unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::WNOHANG) } {
            0 | -1 => return all.keys().copied().collect(),
            tid => all.entry(tid).or_default().push_back(status),
        }
    }
}

/// Nobody wants to know of a thread any more.
pub fn forget(tid: Tid) {
    statuses().remove(&tid);
}

/// What is to be told of a thread that was collected.
pub fn peek(tid: Tid) -> Option<Stop> {
    statuses().get(&tid)?.front().map(|&status| Stop::from_status(status))
}

/// The status of a thread that was collected first.
fn collected(tid: Tid) -> Option<i32> {
    let mut all = statuses();
    let of = all.get_mut(&tid)?;
    let status = of.pop_front();
    if of.is_empty() {
        all.remove(&tid);
    }
    status
}

/// What has happened to a thread since, if anything.
pub fn poll(tid: Tid) -> io::Result<Option<Stop>> {
    if let Some(status) = collected(tid) {
        return Ok(Some(Stop::from_status(status)));
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    match unsafe { libc::waitpid(tid, &mut status, libc::__WALL | libc::WNOHANG) } {
        0 => Ok(None),
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Some(Stop::Gone)),
            error if error.raw_os_error() == Some(libc::EINTR) => Ok(None),
            error => Err(error),
        },
        _ => Ok(Some(Stop::from_status(status))),
    }
}

/// Waits for a thread to stop, until `deadline`; `None` if it did not.
pub fn wait(tid: Tid, deadline: Instant) -> io::Result<Option<Stop>> {
    // Most stops are there within microseconds; look again at once, then sleep ever longer. (Who yields to many that never pause
    // waits for all of them.)
    let mut pause = Duration::from_micros(5);
    for turn in 0u32.. {
        if let Some(stop) = poll(tid)? {
            return Ok(Some(stop));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        if turn >= 4 {
            std::thread::sleep(pause);
            pause = (pause * 5 / 4).min(Duration::from_millis(2));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let stopped = |signal: i32, event: i32| (event << 16) | (signal << 8) | 0x7f;
        assert_eq!(Stop::from_status(0), Stop::Gone);
        assert_eq!(Stop::from_status(libc::SIGKILL), Stop::Gone);
        assert_eq!(Stop::from_status(stopped(libc::SIGTRAP, 128)), Stop::Interrupted);
        assert_eq!(Stop::from_status(stopped(libc::SIGTSTP, 128)), Stop::Group(libc::SIGTSTP));
        assert_eq!(Stop::from_status(stopped(libc::SIGTRAP | 0x80, 0)), Stop::Syscall);
        assert_eq!(Stop::from_status(stopped(libc::SIGSEGV, 0)), Stop::Signal(libc::SIGSEGV));
        assert_eq!(Stop::from_status(stopped(libc::SIGTRAP, libc::PTRACE_EVENT_EXEC)), Stop::Exec);
    }
}
