//! Stopping every thread of a process, and letting them go.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::AttachError;
use super::checks;
use super::procfs;
use super::ptrace::{self, Stop, Tid, Watch};

/// How long a thread may take to stop. One that waits for a vfork child or a dead file server does not stop at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// And one that only waits for a processor, which is not stuck: it waits longest where many others want one.
const STARVED: Duration = Duration::from_secs(20);

/// How long a thread of a family may take before its process's children are looked at.
const SLICE: Duration = Duration::from_millis(50);

/// Missing in the libc crate.
const SYS_IO_PGETEVENTS: i64 = 333;

/// What a call has in rax that the kernel resumes by `restart_syscall`, and one that it makes again as it was.
const RESTART_BLOCK: i64 = -516;
const RESTART: i64 = -513;

/// System calls that give EINTR, rather than start again, when a tracer stops the thread.
const NO_RESTART: &[i64] = &[
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_pause,
    libc::SYS_io_uring_enter,
];

/// The memory of a process, through `/proc/PID/mem`: reads and writes that heed no page protection.
pub struct Memory {
    pid: u32,
    file: File,
    /// What reads see in place of what is there.
    shown: Vec<(u64, Vec<u8>)>,
}

impl Memory {
    /// Opens it.
    pub fn open(pid: u32) -> Result<Memory, AttachError> {
        let path = format!("/proc/{pid}/mem");
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Memory { pid, file, shown: Vec::new() }),
            // The right to trace is asked for here already.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(checks::explain(pid, &error)),
            Err(error) => Err(AttachError::os(format!("opening {path}"), &error)),
        }
    }

    /// Reads exactly `buffer`.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), AttachError> {
        let result = self.file.read_exact_at(buffer, address);
        result.map_err(|e| AttachError::os(format!("reading {address:#x} of process {}", self.pid), &e))?;
        self.show_in(address, buffer);
        Ok(())
    }

    /// Has reads see these bytes, by their addresses, until others are given: the text without our own changes.
    pub fn show(&mut self, bytes: Vec<(u64, Vec<u8>)>) {
        self.shown = bytes;
    }

    fn show_in(&self, address: u64, buffer: &mut [u8]) {
        let end = address.saturating_add(buffer.len() as u64);
        for (at, bytes) in self.shown.iter().filter(|(at, b)| *at < end && address < at.saturating_add(b.len() as u64))
        {
            for (n, byte) in bytes.iter().enumerate() {
                let place = (at + n as u64).checked_sub(address).and_then(|n| buffer.get_mut(n as usize));
                if let Some(place) = place {
                    *place = *byte;
                }
            }
        }
    }

    /// Reads `len` bytes, or as many as there are.
    pub fn read_up_to(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut have = 0;
        while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, address.wrapping_add(have as u64)) {
                Ok(n) if n > 0 => have += n,
                _ => break,
            }
        }
        bytes.truncate(have);
        self.show_in(address, &mut bytes);
        bytes
    }

    /// Shows all runs of `N` bytes in a range, with their addresses, up to the first byte that cannot be read.
    pub fn scan<const N: usize>(&self, range: &Range<u64>, mut visit: impl FnMut(u64, &[u8; N])) {
        const CHUNK: u64 = 1 << 20;
        let mut at = range.start;
        while at < range.end {
            let bytes = self.read_up_to(at, (range.end - at).min(CHUNK) as usize);
            for (address, run) in (at..).zip(bytes.windows(N)) {
                if let Ok(run) = run.try_into() {
                    visit(address, run);
                }
            }
            match (bytes.len() + 1).checked_sub(N) {
                None | Some(0) => return,
                Some(runs) => at += runs as u64,
            }
        }
    }

    /// Reads a word.
    pub fn word(&self, address: u64) -> Result<u64, AttachError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes all of `bytes`.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), AttachError> {
        let result = self.file.write_all_at(bytes, address);
        result.map_err(|e| AttachError::os(format!("writing {address:#x} of process {}", self.pid), &e))
    }
}

/// Threads that were seized but did not stop in time: they are let go as soon as they do.
static STRAYS: Mutex<Vec<Tid>> = Mutex::new(Vec::new());

/// Is this one of the threads that are still to be let go?
pub fn is_stray(tid: Tid) -> bool {
    STRAYS.lock().unwrap_or_else(PoisonError::into_inner).contains(&tid)
}

/// Lets go of threads that have stopped too late.
pub fn release_strays() {
    let mut strays = STRAYS.lock().unwrap_or_else(PoisonError::into_inner);
    strays.retain(|&tid| match ptrace::poll(tid) {
        Ok(None) => true,
        Ok(Some(Stop::Signal(signal))) => ptrace::cont(tid, signal).is_ok(),
        Ok(Some(Stop::Gone)) | Err(_) => false,
        Ok(Some(_)) => ptrace::detach(tid).is_err() && ptrace::interrupt(tid).is_ok(),
    });
}

/// Which threads stay traced when a world is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nobody,
    /// A followed process's leader.
    Leader,
    /// All, and what they make.
    Family,
}

/// A process all of whose threads are traced and stand still, each in an interrupt or group stop.
///
/// Dropping it lets the process go.
pub struct World {
    /// The process.
    pub pid: u32,
    /// Its memory.
    pub memory: Memory,
    threads: BTreeMap<Tid, Stop>,
    keep: Keep,
}

impl World {
    /// Stops all threads of a process that is not traced.
    pub fn stop(pid: u32) -> Result<World, AttachError> {
        World::stop_to_keep(pid, Keep::Nobody)
    }

    /// Stops all threads of a process that is not traced, some of which stay traced from then on.
    pub fn stop_to_keep(pid: u32, keep: Keep) -> Result<World, AttachError> {
        let memory = Memory::open(pid)?;
        let mut world = World { pid, memory, threads: BTreeMap::new(), keep };
        world.gather()?;
        Ok(world)
    }

    /// Stops all threads of a process whose leader is traced and runs (`stopped` false) or stands still.
    pub fn stop_followed(pid: u32, stopped: bool, keep: Keep) -> Result<World, AttachError> {
        let memory = Memory::open(pid)?;
        let leader = pid as Tid;
        let mut world = World { pid, memory, threads: BTreeMap::new(), keep };
        let _ = ptrace::interrupt(leader);
        if stopped {
            let _ = ptrace::cont(leader, 0);
        }
        world.settle(leader)?;
        world.gather()?;
        Ok(world)
    }

    /// Seizes and stops threads until a look at the list finds no new one.
    fn gather(&mut self) -> Result<(), AttachError> {
        let mut seized = Vec::new();
        let result = self.gather_into(&mut seized);
        if result.is_err() {
            // Those that do not stand still yet must be let go, too, once they do.
            for tid in seized {
                self.threads.entry(tid).or_insert(Stop::Syscall);
            }
        }
        result
    }

    fn gather_into(&mut self, seized: &mut Vec<Tid>) -> Result<(), AttachError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = seized.len();
            for tid in procfs::tasks(self.pid)? {
                if self.threads.contains_key(&tid) {
                    continue;
                }
                if let Err(error) = self.seize(tid) {
                    // A thread that is ending, or a leader that has ended before the others.
                    if matches!(procfs::thread_state(self.pid, tid), 'X' | 'Z') {
                        continue;
                    }
                    return Err(checks::explain(self.pid, &error));
                }
                if ptrace::interrupt(tid).is_ok() {
                    seized.push(tid);
                }
            }
            let fresh = seized.get(before..).unwrap_or_default();
            let Some(&newest) = fresh.last() else { break };
            // Threads that start the next one and end can keep ahead of us for ever.
            if before != 0 && Instant::now() >= deadline {
                let state = procfs::thread_state(self.pid, newest);
                return Err(AttachError::ThreadStuck { pid: self.pid, tid: newest as u32, state });
            }
            for &tid in fresh {
                self.settle(tid)?;
            }
        }
        match self.threads.is_empty() {
            true => Err(AttachError::Exited { pid: self.pid }),
            false => Ok(()),
        }
    }

    /// Seizes a thread. The injector of a session that was just killed may still be letting go of it.
    fn seize(&self, tid: Tid) -> std::io::Result<()> {
        let family = self.keep == Keep::Family;
        if family && procfs::status(tid as u32).is_ok_and(|status| status.tracer == std::process::id()) {
            return Ok(());
        }
        let patience = Instant::now() + PATIENCE;
        let mut last = false;
        loop {
            match ptrace::seize(tid, if family { Watch::Family } else { Watch::Stops }) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) && Instant::now() < patience && !last => {
                    // An injector that is not there now may have been when the kernel refused.
                    last = !checks::traced_by_other_injector(tid as u32);
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => return result,
            }
        }
    }

    /// Waits for an interrupted thread to stand still, passing on the signals that come first.
    fn settle(&mut self, tid: Tid) -> Result<(), AttachError> {
        let start = Instant::now();
        let mut deadline = start + PATIENCE;
        loop {
            let slice = if self.keep == Keep::Family { Instant::now() + SLICE } else { deadline };
            let stop = ptrace::wait(tid, deadline.min(slice)).map_err(|e| AttachError::os("waitpid", &e))?;
            let signal = match stop {
                None if Instant::now() < deadline => {
                    self.release_children(tid);
                    continue;
                }
                None => {
                    let state = procfs::thread_state(self.pid, tid);
                    if state == 'R' && start.elapsed() < STARVED {
                        deadline = Instant::now() + SLICE;
                        continue;
                    }
                    // It is seized: let it be detached when it does stop.
                    self.threads.insert(tid, Stop::Syscall);
                    return Err(AttachError::ThreadStuck { pid: self.pid, tid: tid as u32, state });
                }
                Some(Stop::Gone) => {
                    self.threads.remove(&tid);
                    return Ok(());
                }
                Some(stop @ (Stop::Interrupted | Stop::Group(_))) => {
                    if self.threads.insert(tid, stop).is_none() {
                        self.hide_interruption(tid);
                    }
                    return Ok(());
                }
                Some(Stop::Signal(signal)) => signal,
                Some(Stop::Syscall | Stop::Exec | Stop::Event(_)) => 0,
            };
            let _ = ptrace::cont(tid, signal);
        }
    }

    /// Lets go of a process that this one has just made and is waiting for, as it does for one that runs in its memory.
    fn release_children(&self, waiting: Tid) {
        for tid in ptrace::collect().into_iter().filter(|&tid| ptrace::peek(tid) == Some(Stop::Interrupted)) {
            let status = procfs::status(tid as u32);
            let child = |s: &procfs::Status| s.tgid == tid as u32 && s.parent == self.pid;
            if status.is_ok_and(|status| status.tracer == std::process::id() && child(&status))
                && procfs::thread_state(self.pid, waiting) == 'D'
            {
                ptrace::forget(tid);
                let _ = ptrace::detach(tid);
            }
        }
    }

    /// Sends a thread back into a system call that our stop made fail with EINTR.
    fn hide_interruption(&self, tid: Tid) {
        let Ok(mut regs) = ptrace::regs(tid) else { return };
        let call = regs.orig_rax.cast_signed();
        // A call that would be resumed by another one, which a filter may not know, begins again.
        if call >= 0 && regs.rax.cast_signed() == RESTART_BLOCK && checks::is_confined(tid as u32) {
            regs.rax = RESTART.cast_unsigned();
            let _ = ptrace::set_regs(tid, &regs);
            return;
        }
        if regs.rax.cast_signed() != -i64::from(libc::EINTR) || !NO_RESTART.contains(&call) {
            return;
        }
        // A signal that is about to be delivered is a reason for EINTR that the thread must see.
        let Ok(status) = procfs::status(tid as u32) else { return };
        let [own, shared, blocked, ignored] = status.signals;
        if (own | shared) & !blocked & !ignored != 0 {
            return;
        }
        regs.rip = regs.rip.wrapping_sub(2);
        regs.rax = regs.orig_rax;
        regs.orig_rax = u64::MAX;
        let _ = ptrace::set_regs(tid, &regs);
    }

    /// The threads.
    pub fn threads(&self) -> impl Iterator<Item = Tid> + '_ {
        self.threads.keys().copied()
    }

    /// May a system call end each of its threads?
    pub fn is_confined(&self) -> bool {
        self.threads().all(|tid| checks::is_confined(tid as u32))
    }

    /// An error if a system call may end one of its threads: what is not told of that must not be put into the process.
    pub fn check_free(&self) -> Result<(), AttachError> {
        match self.threads().any(|tid| checks::is_confined(tid as u32)) {
            true => Err(AttachError::Confined { pid: self.pid }),
            false => Ok(()),
        }
    }

    /// Registers of a thread; `None` if it was killed meanwhile.
    pub fn regs(&self, tid: Tid) -> Option<ptrace::Regs> {
        ptrace::regs(tid).ok()
    }

    /// Brings a thread that was made to run something, and has its registers back, to a proper stop again.
    pub fn resettle(&mut self, tid: Tid) -> Result<(), AttachError> {
        let _ = ptrace::interrupt(tid);
        let _ = ptrace::cont(tid, 0);
        self.settle(tid)
    }

    /// Lets all threads but `one` run.
    pub fn run_others(&mut self, one: Tid) {
        self.run(&self.others(one));
    }

    fn others(&self, one: Tid) -> Vec<Tid> {
        self.threads().filter(|&tid| tid != one).collect()
    }

    fn run(&self, tids: &[Tid]) {
        for (tid, stop) in tids.iter().filter_map(|tid| Some((*tid, self.threads.get(tid)?))) {
            let _ = match stop {
                Stop::Group(_) => ptrace::listen(tid),
                _ => ptrace::cont(tid, 0),
            };
        }
    }

    /// Passes on the signals of running threads other than `one`; they must not wait while `one` works.
    pub fn serve_others(&mut self, one: Tid) {
        self.serve(&self.others(one));
    }

    fn serve(&mut self, tids: &[Tid]) {
        for &tid in tids {
            match ptrace::poll(tid) {
                Ok(Some(Stop::Gone)) => drop(self.threads.remove(&tid)),
                Ok(Some(Stop::Signal(signal))) => drop(ptrace::cont(tid, signal)),
                Ok(Some(Stop::Group(_))) => drop(ptrace::listen(tid)),
                Ok(Some(_)) => drop(ptrace::cont(tid, 0)),
                _ => {}
            }
        }
    }

    /// Stops all threads but `one` again, the ones made since included.
    pub fn stop_others(&mut self, one: Tid) -> Result<(), AttachError> {
        let tids = self.others(one);
        self.stop_again(&tids)
    }

    fn stop_again(&mut self, tids: &[Tid]) -> Result<(), AttachError> {
        for &tid in tids {
            let _ = ptrace::interrupt(tid);
        }
        for &tid in tids {
            // One that has gone is not among them any more.
            if self.threads.remove(&tid).is_some() {
                self.settle(tid)?;
            }
        }
        self.gather()
    }

    /// Lets all threads run for a moment and stops them again.
    pub fn breathe(&mut self, moment: Duration) -> Result<(), AttachError> {
        self.breathe_by(&self.others(0), moment)
    }

    /// Lets these threads run for a moment and stops them again, while the others stand still: so they have the processors,
    /// and what was found of the others stays true.
    pub fn breathe_by(&mut self, tids: &[Tid], moment: Duration) -> Result<(), AttachError> {
        self.run(tids);
        let end = Instant::now() + moment;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200).min(moment));
            self.serve(tids);
        }
        self.stop_again(tids)
    }

    /// Lets all threads go when the world is let go.
    pub fn keep_nobody(&mut self) {
        self.keep = Keep::Nobody;
    }

    fn release(&mut self) {
        // The leader last: who waits for the process looks at its tracer.
        let leader = self.pid as Tid;
        let mut threads: Vec<(Tid, Stop)> = std::mem::take(&mut self.threads).into_iter().collect();
        threads.sort_by_key(|(tid, _)| *tid == leader);
        for (tid, stop) in threads {
            if self.keep == Keep::Family || self.keep == Keep::Leader && tid == leader {
                let _ = match stop {
                    Stop::Group(_) => ptrace::listen(tid),
                    _ => ptrace::cont(tid, 0),
                };
            } else if ptrace::detach(tid).is_err() {
                // It runs: it did not stop in time, or it is gone.
                let _ = ptrace::interrupt(tid);
                STRAYS.lock().unwrap_or_else(PoisonError::into_inner).push(tid);
            } else {
                ptrace::forget(tid);
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.release();
    }
}
