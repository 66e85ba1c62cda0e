//! Who calls: its memory, its file descriptors, and what it may do.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_ebpf::Errno;

use super::object::Object;

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps(u8);

impl Caps {
    /// None.
    pub const NONE: Caps = Caps(0);
    /// `CAP_BPF`: programs and maps beyond what anybody may make.
    pub const BPF: Caps = Caps(1);
    /// `CAP_PERFMON`: programs that trace.
    pub const PERFMON: Caps = Caps(2);
    /// `CAP_NET_ADMIN`: programs that handle packets.
    pub const NET_ADMIN: Caps = Caps(4);
    /// `CAP_SYS_ADMIN`: all of the above, and the numbers of objects.
    pub const SYS_ADMIN: Caps = Caps(8);
    /// All: what the owner of a subsystem has over it.
    pub const ALL: Caps = Caps(15);

    /// Both sets.
    pub const fn with(self, other: Caps) -> Caps {
        Caps(self.0 | other.0)
    }

    /// True if the capability is there; `SYS_ADMIN` stands for each other one.
    pub const fn has(self, cap: Caps) -> bool {
        self.0 & cap.0 != 0 || self.0 & Caps::SYS_ADMIN.0 != 0
    }
}

/// A caller's memory. Addresses that are not mapped give `EFAULT`.
pub trait Memory: Send + Sync {
    /// Fills `to` from the caller's address.
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), Errno>;
    /// Writes to the caller's address.
    fn write(&self, to: u64, from: &[u8]) -> Result<(), Errno>;
}

/// A caller's file descriptors.
pub trait Files: Send + Sync {
    /// Gives the caller a descriptor of an object; `EMFILE` if it can have no more.
    fn install(&self, object: Object) -> Result<i32, Errno>;
    /// The object behind a descriptor: `EBADF` if it is not open, `EINVAL` if it is something else.
    fn get(&self, fd: i32) -> Result<Object, Errno>;
}

/// One caller of a subsystem.
pub struct Client {
    /// Its memory.
    pub memory: Box<dyn Memory>,
    /// Its descriptors.
    pub files: Box<dyn Files>,
    /// What it may do.
    pub caps: Caps,
    /// Its user, who is charged and named in program information.
    pub uid: u32,
    /// Bytes that the user may be charged: `RLIMIT_MEMLOCK` in 4.17 (`EPERM` above it), the limit of a control group
    /// later (`ENOMEM`).
    pub memlock: u64,
    /// Its process and thread; `None` for the process that we are in, and whichever thread calls.
    pub task: Option<(u32, u32)>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("caps", &self.caps).field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Client {
    /// The calling process itself, with all capabilities over its own subsystem.
    pub fn own(files: std::sync::Arc<OwnFiles>) -> Client {
        Client::with_files(files)
    }

    /// As [`Client::own`], with descriptors of any kind.
    pub fn with_files(files: impl Files + 'static) -> Client {
        Client {
            memory: Box::new(OwnMemory),
            files: Box::new(files),
            caps: Caps::ALL,
            uid: rustix::process::getuid().as_raw(),
            memlock: u64::MAX,
            task: None,
        }
    }

    /// The thread that calls.
    pub fn tid(&self) -> u32 {
        // SAFETY: the call takes nothing.
        self.task.map_or_else(|| unsafe { libc::gettid() }.cast_unsigned(), |(_, tid)| tid)
    }

    /// True if this is the caller's process.
    pub fn is_process(&self, pid: u32) -> bool {
        self.task.map_or_else(std::process::id, |(pid, _)| pid) == pid
    }

    /// Reads `len` bytes.
    pub fn bytes(&self, from: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        self.memory.read(from, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a string of at most `max` bytes; without a zero among them it is cut there.
    pub fn string(&self, from: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        // In steps: the string may end just in front of a page that is not mapped.
        while text.len() < max {
            let at = from.checked_add(text.len() as u64).ok_or(Errno::EFAULT)?;
            let step = (64 - at % 64).min((max - text.len()) as u64) as usize;
            let part = self.bytes(at, step)?;
            match part.iter().position(|b| *b == 0) {
                Some(end) => {
                    text.extend_from_slice(&part[..end]);
                    return Ok(text);
                }
                None => text.extend(part),
            }
        }
        Ok(text)
    }
}

/// The memory of this process, read and written by the kernel so that a bad address is an error.
#[derive(Debug)]
pub struct OwnMemory;

impl OwnMemory {
    fn transfer(
        len: usize,
        call: unsafe extern "C" fn(
            libc::pid_t,
            *const libc::iovec,
            libc::c_ulong,
            *const libc::iovec,
            libc::c_ulong,
            libc::c_ulong,
        ) -> isize,
        local: *mut u8,
        remote: u64,
    ) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        let local = libc::iovec { iov_base: local.cast(), iov_len: len };
        let remote = libc::iovec { iov_base: remote as *mut libc::c_void, iov_len: len };
        // SAFETY: the local range is a slice of the caller; the kernel checks the other one.
        let done = unsafe { call(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
        if usize::try_from(done) == Ok(len) { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

impl Memory for OwnMemory {
    fn read(&self, from: u64, to: &mut [u8]) -> Result<(), Errno> {
        OwnMemory::transfer(to.len(), libc::process_vm_readv, to.as_mut_ptr(), from)
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<(), Errno> {
        OwnMemory::transfer(from.len(), libc::process_vm_writev, from.as_ptr().cast_mut(), to)
    }
}

/// Descriptors of this process: each is a real one, so that its number is taken, it can be mapped where the object can,
/// and nothing else is mistaken for it. [`OwnFiles::close`] takes the place of `close(2)`.
#[derive(Debug, Default)]
pub struct OwnFiles {
    open: Mutex<HashMap<i32, (OwnedFd, Object)>>,
}

impl OwnFiles {
    /// No descriptors yet.
    pub fn new() -> OwnFiles {
        OwnFiles::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, (OwnedFd, Object)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes a descriptor of an object; false if it is none.
    pub fn close(&self, fd: i32) -> bool {
        let closed = self.lock().remove(&fd);
        closed.is_some()
    }

    /// Descriptors that are open.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True if none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A second descriptor of the same object.
    pub fn duplicate(&self, fd: i32) -> Result<i32, Errno> {
        let object = self.get(fd)?;
        self.install(object)
    }
}

/// True if the descriptor is open in this process.
fn is_open(fd: i32) -> bool {
    // SAFETY: the call takes no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn placeholder() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::EMFILE);
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Files for OwnFiles {
    fn install(&self, object: Object) -> Result<i32, Errno> {
        let fd = match object.memory() {
            Some(memory) => duplicate(memory)?,
            None => placeholder()?,
        };
        let number = fd.as_raw_fd();
        self.lock().insert(number, (fd, object));
        Ok(number)
    }

    fn get(&self, fd: i32) -> Result<Object, Errno> {
        match self.lock().get(&fd) {
            Some((_, object)) => Ok(object.clone()),
            None if is_open(fd) => Err(Errno::EINVAL),
            None => Err(Errno::EBADF),
        }
    }
}

impl<F: Files + ?Sized> Files for std::sync::Arc<F> {
    fn install(&self, object: Object) -> Result<i32, Errno> {
        (**self).install(object)
    }

    fn get(&self, fd: i32) -> Result<Object, Errno> {
        (**self).get(fd)
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fd.try_clone_to_owned().map_err(|_| Errno::EMFILE)
}
