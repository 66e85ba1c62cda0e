//! Signals that ask a tool to end, as a file descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// SIGINT, SIGTERM and SIGHUP, blocked for this thread and those it starts, and readable from a file descriptor.
///
/// Make it before any other thread starts.
#[derive(Debug)]
pub struct EndSignals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl EndSignals {
    /// Blocks the signals and collects them.
    pub fn catch() -> io::Result<EndSignals> {
        // SAFETY: plain calls on sets that are initialised here; a new descriptor is ours.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(EndSignals { fd: OwnedFd::from_raw_fd(fd), before })
        }
    }

    /// The signal mask as it was; what a child is to have.
    pub fn mask_before(&self) -> libc::sigset_t {
        self.before
    }

    /// The number of a signal that came, if one did.
    pub fn take(&self) -> Option<u32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        let n = rustix::io::read(&self.fd, &mut info).ok()?;
        // `ssi_signo` is the first field.
        (n == info.len()).then(|| u32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for EndSignals {
    fn drop(&mut self) {
        // SAFETY: restores the mask of this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
