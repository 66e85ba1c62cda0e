//! A command that is held just before it executes, so that it can be prepared from outside in the pid it will run in.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::{io, ptr};

use rustix::process::{Pid, PidfdFlags, WaitOptions};

use crate::signals::EndSignals;

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// There is no command.
    #[error("no command given")]
    Empty,
    /// An argument has a zero byte in it.
    #[error("argument {argument:?} contains a zero byte")]
    Zero {
        /// The argument.
        argument: OsString,
    },
    /// A system call failed.
    #[error("cannot start {command:?}: {what}: {source}")]
    System {
        /// The command.
        command: OsString,
        /// The step.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// `execve` failed.
    #[error("cannot execute {command:?}: {source}")]
    Exec {
        /// The command.
        command: OsString,
        /// Its error.
        source: io::Error,
    },
}

/// A child that waits to execute a command.
#[derive(Debug)]
pub struct Held {
    command: OsString,
    pid: Pid,
    pidfd: OwnedFd,
    go: Option<OwnedFd>,
    failed: OwnedFd,
    status: Option<ExitStatus>,
}

impl Held {
    /// Forks a child that lets `tracer` trace it and waits for [`Held::release`]. It gets the terminal, the streams and
    /// the signal mask that this process had.
    pub fn new(command: &[OsString], tracer: u32, signals: Option<&EndSignals>) -> Result<Held, SpawnError> {
        let name = command.first().ok_or(SpawnError::Empty)?;
        let c_string = |a: &OsString| CString::new(a.as_bytes()).map_err(|_| SpawnError::Zero { argument: a.clone() });
        let argv = command.iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
        // All that the child needs is made here: between fork and exec it may not allocate.
        let pointers: Vec<_> = argv.iter().map(|a| a.as_ptr()).chain([ptr::null()]).collect();
        let system = |what| move |source: io::Error| SpawnError::System { command: name.clone(), what, source };
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (wait, go) = pipe().map_err(system("pipe"))?;
        let (failed, report) = pipe().map_err(system("pipe"))?;
        let mask = signals.map(EndSignals::mask_before);
        // SAFETY: the child calls only what may be called after fork in a process with threads.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the child; never returns.
            unsafe { child(&pointers, tracer, mask.as_ref(), wait.as_raw_fd(), go.as_raw_fd(), report.as_raw_fd()) }
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0);
        let Some(pid) = pid else { return Err(system("fork")(io::Error::last_os_error())) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(e) => {
                drop(go);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                return Err(system("pidfd_open")(e.into()));
            }
        };
        Ok(Held { command: name.clone(), pid, pidfd, go: Some(go), failed, status: None })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// The command.
    pub fn command(&self) -> &OsStr {
        &self.command
    }

    /// Lets it execute.
    pub fn release(&mut self) -> io::Result<()> {
        if let Some(go) = self.go.take() {
            rustix::io::write(&go, &[1])?;
        }
        Ok(())
    }

    /// Readable once it has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, SpawnError> {
        if self.status.is_none() {
            let waited = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG);
            self.note(waited.map(|w| w.map(|(_, s)| s)))?;
        }
        Ok(self.status)
    }

    /// Waits until it ends.
    pub fn wait(&mut self) -> Result<ExitStatus, SpawnError> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            let waited = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
            self.note(waited.map(|w| w.map(|(_, s)| s)))?;
        }
    }

    /// Sends it a signal, if it is there.
    pub fn kill(&self, signal: rustix::process::Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    fn note(&mut self, waited: rustix::io::Result<Option<rustix::process::WaitStatus>>) -> Result<(), SpawnError> {
        let system = |source| SpawnError::System { command: self.command.clone(), what: "waitpid", source };
        let status = match waited {
            Ok(Some(status)) if status.exited() || status.signaled() => status.as_raw(),
            Ok(_) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(system(e.into())),
        };
        // The child reports here only what kept it from executing.
        let mut errno = [0; 4];
        if let Ok(4) = rustix::io::read(&self.failed, &mut errno) {
            let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            return Err(SpawnError::Exec { command: self.command.clone(), source });
        }
        self.status = Some(ExitStatus::from_raw(status));
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A child that was never released ends by itself when its pipe closes.
        if self.go.take().is_some() {
            let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}

/// The child's part.
///
/// # Safety
/// Runs in a fresh fork; `argv` is a null-terminated list of C strings.
unsafe fn child(
    argv: &[*const libc::c_char],
    tracer: u32,
    mask: Option<&libc::sigset_t>,
    wait: libc::c_int,
    go: libc::c_int,
    report: libc::c_int,
) -> ! {
    // SAFETY: system calls on own descriptors and memory made before the fork.
    unsafe {
        libc::close(go);
        // Needed where yama restricts tracing to ancestors; refused elsewhere, which is fine.
        libc::prctl(libc::PR_SET_PTRACER, u64::from(tracer), 0, 0, 0);
        // Rust ignores SIGPIPE; the command must not inherit that.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        if let Some(mask) = mask {
            libc::sigprocmask(libc::SIG_SETMASK, mask, ptr::null_mut());
        }
        let mut byte = 0u8;
        let n = loop {
            let n = libc::read(wait, (&raw mut byte).cast(), 1);
            if n >= 0 || *libc::__errno_location() != libc::EINTR {
                break n;
            }
        };
        if n == 1 {
            if let Some(&name) = argv.first() {
                libc::execvp(name, argv.as_ptr());
            }
            let errno = *libc::__errno_location();
            libc::write(report, (&raw const errno).cast(), 4);
        }
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn waits_and_reports_its_status() {
        let mut held = Held::new(&command(&["sh", "-c", "exit 3"]), 0, None).unwrap();
        assert!(held.try_wait().unwrap().is_none());
        held.release().unwrap();
        assert_eq!(held.wait().unwrap().code(), Some(3));
        assert_eq!(held.try_wait().unwrap().unwrap().code(), Some(3));
    }

    #[test]
    fn a_command_that_is_not_there() {
        let mut held = Held::new(&command(&["/no/such/command"]), 0, None).unwrap();
        held.release().unwrap();
        let error = held.wait().unwrap_err();
        assert!(matches!(error, SpawnError::Exec { .. }), "{error}");
        assert!(error.to_string().contains("/no/such/command"));
    }

    #[test]
    fn dropped_unreleased() {
        let held = Held::new(&command(&["sleep", "100"]), 0, None).unwrap();
        let pid = held.pid();
        drop(held);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
