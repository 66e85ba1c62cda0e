//! System calls and function calls made by a thread of the target.
//!
//! No signal takes part: a thread is sent through `syscall` instructions and is caught when it enters and leaves the call
//! (`PTRACE_SYSCALL`). A trap would be a forced signal, which resets the handler of a target that blocks or ignores it.
//!
//! Whenever the tracer is killed, the thread goes back to what it was at by itself (`gate`): its registers are set before its
//! signal mask when it is borrowed, and after it when it is given back.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::AttachError;
use super::checks;
use super::error::errno_text;
use super::gate::Gate;
use super::procfs::{self, Mapping};
use super::ptrace::{self, Regs, Stop, Tid};
use super::world::World;

/// How long a system call made in the target may take.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a function called in the target runs alone before the other threads run, too, unless it waits for them.
const ALONE: Duration = Duration::from_millis(500);
/// How long a function called in the target may take: it may wait for locks of threads that run.
const FUNCTION_PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of scratch memory mapped in the target for arguments.
pub const SCRATCH: u64 = 4096;

/// What the other threads do while one is borrowed.
#[derive(Clone, Copy, Debug)]
enum Others {
    /// They stand still.
    Stand,
    /// They will run from then on.
    From(Instant),
    /// They run.
    Run,
}

/// A thread of a stopped process, borrowed to run code of our choosing. [`Remote::finish`] gives its state back.
pub struct Remote<'w> {
    /// The world it belongs to.
    pub world: &'w mut World,
    tid: Tid,
    saved: Regs,
    mask: u64,
    /// Its signal mask while it is borrowed.
    held: u64,
    gate: Gate,
    done: bool,
}

impl<'w> Remote<'w> {
    /// Borrows a thread, of those that may make system calls. `maps` are the target's mappings.
    pub fn begin(world: &'w mut World, tid: Option<Tid>, maps: &[Mapping]) -> Result<Remote<'w>, AttachError> {
        let pid = world.pid;
        let free = |tid: &Tid| !checks::is_confined(*tid as u32);
        let first = world.threads().next().ok_or(AttachError::Exited { pid })?;
        let tid = match tid {
            Some(tid) => Some(tid).filter(free),
            None => Some(first).filter(free).or_else(|| world.threads().find(free)),
        };
        let tid = tid.ok_or(AttachError::Confined { pid })?;
        let lost = |_: io::Error| AttachError::Exited { pid };
        let mut saved = ptrace::regs(tid).map_err(lost)?;
        if let Some(abort) = sequence_abort(world, tid, saved.rip) {
            saved.rip = abort;
        }
        let mask = ptrace::signal_mask(tid).map_err(lost)?;
        // Nothing may interrupt what we run but faults of its own, which cannot be held back.
        let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
        let held = faults.iter().fold(u64::MAX, |held, signal| held & !(1 << (signal - 1))) | mask;
        let gate = Gate::make(world, maps, &saved, mask)?;
        let mut remote = Remote { world, tid, saved, mask, held, gate, done: false };
        remote.rest().map_err(lost)?;
        Ok(remote)
    }

    /// Has the thread stand where it lets go of itself if it runs.
    fn rest(&mut self) -> io::Result<()> {
        let mut regs = self.saved;
        regs.rip = self.gate.restore();
        regs.orig_rax = u64::MAX;
        ptrace::set_regs(self.tid, &regs)?;
        ptrace::set_signal_mask(self.tid, self.held)
    }

    /// Gives the thread its registers and signal mask back.
    pub fn finish(mut self) -> Result<(), AttachError> {
        self.restore()
    }

    fn restore(&mut self) -> Result<(), AttachError> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        let lost = |_: io::Error| AttachError::Exited { pid: self.world.pid };
        ptrace::set_signal_mask(self.tid, self.mask).map_err(lost)?;
        ptrace::set_regs(self.tid, &self.saved).map_err(lost)?;
        // From an interrupt stop the kernel restarts the call that we broke into; from a syscall stop it would not.
        let settled = self.world.resettle(self.tid);
        self.gate.clear(self.world);
        settled
    }

    /// Runs the thread to its next syscall stop, and returns its registers there. `others` says what the other
    /// threads do meanwhile, and is told what they do in the end.
    fn run_to_syscall(&mut self, deadline: Instant, others: &mut Others) -> Result<Regs, AttachError> {
        let pid = self.world.pid;
        let lost = |_: io::Error| AttachError::Exited { pid };
        ptrace::cont_to_syscall(self.tid).map_err(lost)?;
        loop {
            let slice = Instant::now() + Duration::from_millis(2);
            let alone = matches!(others, Others::Stand);
            let stop = ptrace::wait(self.tid, if alone { deadline } else { slice.min(deadline) }).map_err(lost)?;
            match stop {
                Some(Stop::Syscall) => return ptrace::regs(self.tid).map_err(lost),
                Some(Stop::Gone) => {
                    self.done = true;
                    return Err(AttachError::Exited { pid });
                }
                Some(Stop::Signal(signal)) => {
                    return Err(AttachError::Remote {
                        pid,
                        call: "code run for skep".into(),
                        errno: format!("signal {signal}"),
                    });
                }
                Some(_) => ptrace::cont_to_syscall(self.tid).map_err(lost)?,
                None if Instant::now() >= deadline => {
                    let state = procfs::thread_state(pid, self.tid);
                    return Err(AttachError::ThreadStuck { pid, tid: self.tid as u32, state });
                }
                None => match *others {
                    Others::Stand => {}
                    Others::From(at) if Instant::now() < at && procfs::thread_state(pid, self.tid) != 'S' => {}
                    Others::From(_) => {
                        self.world.run_others(self.tid);
                        *others = Others::Run;
                    }
                    Others::Run => self.world.serve_others(self.tid),
                },
            }
        }
    }

    /// Makes a system call; `name` is for the error message.
    pub fn syscall(&mut self, name: &str, number: i64, args: [u64; 6]) -> Result<u64, AttachError> {
        let pid = self.world.pid;
        let lost = |_: io::Error| AttachError::Exited { pid };
        let mut regs = self.saved;
        regs.rip = self.gate.call();
        regs.rax = number as u64;
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        ptrace::set_regs(self.tid, &regs).map_err(lost)?;
        let deadline = Instant::now() + CALL_PATIENCE;
        self.run_to_syscall(deadline, &mut Others::Stand)?;
        let result = self.run_to_syscall(deadline, &mut Others::Stand)?.rax;
        match result.cast_signed() {
            errno @ -4095..=-1 => {
                Err(AttachError::Remote { pid, call: name.to_owned(), errno: errno_text((-errno) as i32) })
            }
            _ => Ok(result),
        }
    }

    /// Calls a function of the target with up to three arguments, on the thread's own stack. With `others`, all other
    /// threads run if that takes long, so that none can hold a lock forever; afterwards the world stands still again.
    pub fn call(&mut self, function: u64, args: [u64; 3], others: bool) -> Result<u64, AttachError> {
        let pid = self.world.pid;
        let lost = |_: io::Error| AttachError::Exited { pid };
        // Past the red zone, aligned as at a function's entry.
        let sp = (self.saved.rsp.wrapping_sub(512) & !15).wrapping_sub(8);
        self.world.memory.write(sp, &self.gate.landing().to_le_bytes())?;
        let mut regs = self.saved;
        regs.rip = function;
        regs.rsp = sp;
        regs.rax = 0;
        regs.orig_rax = u64::MAX;
        regs.eflags &= !0x400;
        [regs.rdi, regs.rsi, regs.rdx] = args;
        ptrace::set_regs(self.tid, &regs).map_err(lost)?;
        let mut others = if others { Others::From(Instant::now() + ALONE) } else { Others::Stand };
        let deadline = Instant::now() + FUNCTION_PATIENCE;
        let result = loop {
            match self.run_to_syscall(deadline, &mut others) {
                Ok(regs) if regs.rip == self.gate.unmask() => {
                    // It has returned to the gate, and is about to let go of itself.
                    let done = self.run_to_syscall(deadline, &mut others);
                    self.rest().map_err(lost)?;
                    break done.map(|_| regs.rbx);
                }
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        if matches!(others, Others::Run) {
            self.world.stop_others(self.tid)?;
        }
        result
    }

    /// `mmap` of anonymous memory, anywhere.
    pub fn map_anonymous(&mut self, len: u64, prot: i32) -> Result<u64, AttachError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        self.syscall("mmap", libc::SYS_mmap, [0, len, prot as u64, flags as u64, u64::MAX, 0])
    }

    /// `mmap` of anonymous memory at an address, over what is there (`replace`) or only if nothing is there.
    pub fn map_at(&mut self, address: u64, len: u64, prot: i32, replace: bool) -> Result<u64, AttachError> {
        let place = if replace { libc::MAP_FIXED } else { libc::MAP_FIXED_NOREPLACE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | place;
        let got = self.syscall("mmap", libc::SYS_mmap, [address, len, prot as u64, flags as u64, u64::MAX, 0])?;
        if got != address {
            // A kernel older than MAP_FIXED_NOREPLACE takes the address as a hint.
            self.unmap(got, len)?;
            let errno = errno_text(libc::EEXIST);
            return Err(AttachError::Remote { pid: self.world.pid, call: "mmap".into(), errno });
        }
        Ok(got)
    }

    /// `munmap`.
    pub fn unmap(&mut self, address: u64, len: u64) -> Result<(), AttachError> {
        self.syscall("munmap", libc::SYS_munmap, [address, len, 0, 0, 0, 0]).map(drop)
    }

    /// The thread's stack pointer and instruction pointer before it was borrowed.
    pub fn saved(&self) -> &Regs {
        &self.saved
    }
}

impl Drop for Remote<'_> {
    fn drop(&mut self) {
        let _ = self.restore();
    }
}

/// Where a thread that is in a restartable sequence (rseq(2)) has to go on if it runs anything else in between.
fn sequence_abort(world: &World, tid: Tid, rip: u64) -> Option<u64> {
    let memory = &world.memory;
    // Offset 8 of struct rseq: the sequence; in that: version and flags, start, length, abort address.
    let sequence = memory.word(ptrace::rseq(tid)?.checked_add(8)?).ok().filter(|&address| address != 0)?;
    let start = memory.word(sequence.checked_add(8)?).ok()?;
    let length = memory.word(sequence.checked_add(16)?).ok()?;
    let abort = memory.word(sequence.checked_add(24)?).ok()?;
    (rip.wrapping_sub(start) < length).then_some(abort)
}

/// A pair of sockets, one end in the target, to hand it descriptors.
pub struct Channel {
    ours: OwnedFd,
    theirs: [u64; 2],
    scratch: u64,
}

impl Channel {
    /// Opens it. `scratch` is memory of the target, [`SCRATCH`] bytes.
    pub fn open(remote: &mut Remote, scratch: u64) -> Result<Channel, AttachError> {
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let args = [libc::AF_UNIX as u64, kind, 0, scratch, 0, 0];
        remote.syscall("socketpair", libc::SYS_socketpair, args)?;
        let pair = remote.world.memory.word(scratch)?;
        let theirs = [pair & 0xffff_ffff, pair >> 32];
        match steal(remote.world.pid, theirs[0]) {
            Ok(ours) => Ok(Channel { ours, theirs, scratch }),
            Err(error) => {
                Channel::close_both(remote, theirs)?;
                Err(AttachError::os("pidfd_getfd", &error))
            }
        }
    }

    /// Sends one descriptor, maps a part of it there, and closes it again.
    pub fn map(
        &self,
        remote: &mut Remote,
        fd: BorrowedFd,
        part: Range<u64>,
        access: Access,
    ) -> Result<u64, AttachError> {
        send_fd(self.ours.as_fd(), fd).map_err(|e| AttachError::os("sendmsg to the target", &e))?;
        // struct msghdr, struct iovec, one byte, and room for one descriptor.
        let (iov, byte, control) = (self.scratch + 64, self.scratch + 96, self.scratch + 128);
        let header: [u64; 7] = [0, 0, iov, 1, control, 24, 0];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(64, 0);
        bytes.extend([byte, 1].iter().flat_map(|word: &u64| word.to_le_bytes()));
        remote.world.memory.write(self.scratch, &bytes)?;
        let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
        remote.syscall("recvmsg", libc::SYS_recvmsg, [self.theirs[1], self.scratch, flags, 0, 0, 0])?;
        let length = remote.world.memory.word(control)?;
        if length != 20 {
            let errno = errno_text(libc::EMFILE);
            return Err(AttachError::Remote { pid: remote.world.pid, call: "recvmsg of a descriptor".into(), errno });
        }
        let received = remote.world.memory.word(control + 16)? & 0xffff_ffff;
        let prot = match access {
            Access::Read => libc::PROT_READ,
            Access::Write | Access::WriteAtOnce => libc::PROT_READ | libc::PROT_WRITE,
            Access::Execute => libc::PROT_READ | libc::PROT_EXEC,
        };
        let at_once = if access == Access::WriteAtOnce { libc::MAP_POPULATE } else { 0 };
        let flags = libc::MAP_SHARED | at_once;
        let args = [0, part.end - part.start, prot as u64, flags as u64, received, part.start];
        let mapped = remote.syscall("mmap", libc::SYS_mmap, args);
        remote.syscall("close", libc::SYS_close, [received, 0, 0, 0, 0, 0])?;
        mapped
    }

    /// Closes both ends in the target.
    pub fn close(self, remote: &mut Remote) -> Result<(), AttachError> {
        Channel::close_both(remote, self.theirs)
    }

    fn close_both(remote: &mut Remote, fds: [u64; 2]) -> Result<(), AttachError> {
        for fd in fds {
            remote.syscall("close", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
        }
        Ok(())
    }
}

/// What a target may do with memory that is shared with it. Nothing is ever writable and executable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
    /// Read and write it, with all of its pages in place.
    WriteAtOnce,
    /// Read it and run the machine code in it.
    Execute,
}

/// Duplicates a descriptor of another process into ours.
fn steal(pid: u32, fd: u64) -> io::Result<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid as i32).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?,
        rustix::process::PidfdFlags::empty(),
    )?;
    // SAFETY: the call takes numbers only and makes a new descriptor.
    let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd as libc::c_int, 0) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(got as i32) })
}

fn send_fd(socket: BorrowedFd, fd: BorrowedFd) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // What the target calls a socket may be full, or none: never wait for it, nor be killed by it.
    sendmsg(socket, &[io::IoSlice::new(b"f")], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}
