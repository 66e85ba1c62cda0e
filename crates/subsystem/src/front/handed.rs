//! Descriptors that a process was given: real ones, so that `mmap`, `dup`, `fork` and `close` need nobody's help.
//!
//! Each is a memfd: of a map that can be mapped it is the map's own memory, of anything else an empty one. An object is
//! found by the inode, so any duplicate of a descriptor is as good as the first. What is given out is a description of its
//! own, opened through `/proc/self/fd`, which holds a lock (of the open-description kind) on one byte of the file: the
//! kernel takes the lock away with the last duplicate, mapping and inherited copy of it. `inotify` tells that a
//! description was closed; the locks tell which. Then the object goes as it would on Linux.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use skep_ebpf::Errno;

use super::client::Files;
use super::object::{MapAccess, Object};

/// How long after its last close a description may still hold its lock.
const CLOSING: Duration = Duration::from_millis(50);

/// What an open descriptor of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The file: its device and inode.
    pub file: (u64, u64),
    /// How it was opened.
    pub flags: OFlags,
}

/// A process, as the owner of a table of descriptors.
pub trait Process: Send + Sync {
    /// What a descriptor of it is; `EBADF` if it is not open.
    fn look(&self, fd: i32) -> Result<Look, Errno>;
    /// Gives it a descriptor, closed on `exec`.
    fn give(&self, fd: OwnedFd) -> Result<i32, Errno>;
    /// A duplicate, in this process, of one that it has.
    fn take(&self, fd: i32) -> Result<OwnedFd, Errno>;
}

/// This process.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnProcess;

fn errno(e: rustix::io::Errno) -> Errno {
    Errno(e.raw_os_error())
}

/// A descriptor that may be closed at any time: then calls on it answer `EBADF`.
fn with_own<T>(fd: i32, call: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<T>) -> Result<T, Errno> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the number is not -1, and it is used for one system call, which checks it.
    call(unsafe { BorrowedFd::borrow_raw(fd) }).map_err(errno)
}

impl Process for OwnProcess {
    fn look(&self, fd: i32) -> Result<Look, Errno> {
        let stat = with_own(fd, |fd| rustix::fs::fstat(fd))?;
        let flags = with_own(fd, |fd| rustix::fs::fcntl_getfl(fd))?;
        Ok(Look { file: (stat.st_dev, stat.st_ino), flags })
    }

    fn give(&self, fd: OwnedFd) -> Result<i32, Errno> {
        Ok(fd.into_raw_fd())
    }

    fn take(&self, fd: i32) -> Result<OwnedFd, Errno> {
        with_own(fd, |fd| rustix::io::fcntl_dupfd_cloexec(fd, 0))
    }
}

/// A file whose descriptors stand for an object.
struct File {
    object: Object,
    /// The empty file of an object that has no memory to map.
    empty: Option<OwnedFd>,
    watch: i32,
    /// The locked byte of each description that was given out.
    given: Vec<i64>,
    next: i64,
}

impl File {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.empty.as_ref().map(AsFd::as_fd).or_else(|| self.object.memory())
    }

    /// Forgets descriptions that hold no lock any more; true if one was.
    fn forget(&mut self) -> bool {
        let before = self.given.len();
        let given = std::mem::take(&mut self.given);
        self.given = given.into_iter().filter(|byte| self.fd().is_some_and(|fd| is_locked(fd, *byte))).collect();
        self.given.len() < before
    }
}

#[derive(Default)]
struct Table {
    files: HashMap<(u64, u64), File>,
    watches: HashMap<i32, (u64, u64)>,
    /// Files of which something was closed, and since when.
    closing: HashMap<i32, Instant>,
}

struct Inner {
    process: Box<dyn Process>,
    events: OwnedFd,
    table: Mutex<Table>,
}

/// The descriptors of objects that a process was given.
pub struct Handed {
    inner: Arc<Inner>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Handed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handed").field("files", &self.len()).finish_non_exhaustive()
    }
}

impl Handed {
    /// None yet. A thread watches what the process closes.
    pub fn new(process: impl Process + 'static) -> std::io::Result<Handed> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let inner = Arc::new(Inner { process: Box::new(process), events, table: Mutex::default() });
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let thread = std::thread::Builder::new().name("skep-closes".into()).spawn({
            let (inner, stop) = (Arc::clone(&inner), Arc::clone(&stop));
            move || inner.watch(&stop)
        })?;
        Ok(Handed { inner, stop, thread: Some(thread) })
    }

    /// Objects whose descriptors the process has.
    pub fn len(&self) -> usize {
        self.inner.lock().files.len()
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes note of what was closed until now: what went by that is gone when this returns.
    pub fn tidy(&self) {
        self.inner.tidy();
    }

    /// The process.
    pub fn process(&self) -> &dyn Process {
        &*self.inner.process
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Files for Handed {
    fn install(&self, object: Object) -> Result<i32, Errno> {
        self.inner.install(object)
    }

    fn get(&self, fd: i32) -> Result<Object, Errno> {
        let look = self.inner.process.look(fd)?;
        let object = self.inner.lock().files.get(&look.file).map(|f| f.object.clone()).ok_or(Errno::EINVAL)?;
        Ok(match object {
            Object::Map(map, _) => Object::Map(map, access(look.flags)),
            other => other,
        })
    }
}

/// What a descriptor that was opened so permits.
fn access(flags: OFlags) -> MapAccess {
    match flags & OFlags::ACCMODE {
        OFlags::RDONLY => MapAccess { read: true, write: false },
        OFlags::WRONLY => MapAccess { read: false, write: true },
        _ => MapAccess::BOTH,
    }
}

fn mode(object: &Object) -> OFlags {
    match object {
        Object::Map(_, MapAccess { read: true, write: false }) | Object::Iter(_) | Object::Folder(_) => OFlags::RDONLY,
        Object::Map(_, MapAccess { read: false, write: true }) => OFlags::WRONLY,
        _ => OFlags::RDWR,
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn install(&self, object: Object) -> Result<i32, Errno> {
        let empty = match object.memory() {
            Some(_) => None,
            None => {
                let name = format!("anon_inode:{}", object.kind());
                Some(memfd_create(name, MemfdFlags::CLOEXEC).map_err(errno)?)
            }
        };
        let anchor = empty.as_ref().map(AsFd::as_fd).or_else(|| object.memory()).ok_or(Errno::EINVAL)?;
        let stat = rustix::fs::fstat(anchor).map_err(errno)?;
        let (file, mode) = ((stat.st_dev, stat.st_ino), mode(&object));
        let path = PathBuf::from(format!("/proc/self/fd/{}", anchor.as_raw_fd()));
        // Held until the description is in the table: a close of another one must not take the file out meanwhile.
        let mut table = self.lock();
        let watch = inotify::add_watch(&self.events, &path, WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE)
            .map_err(errno)?;
        let known = table.files.get(&file);
        let byte = known.map_or(0, |f| f.next);
        let given = open(&path, mode | OFlags::CLOEXEC, Mode::empty()).map_err(errno).and_then(|fd| {
            lock(fd.as_fd(), byte, mode)?;
            self.process.give(fd)
        });
        let number = match given {
            Ok(number) => number,
            Err(e) => {
                if known.is_none() {
                    let _ = inotify::remove_watch(&self.events, watch);
                }
                return Err(e);
            }
        };
        table.watches.insert(watch, file);
        let known =
            table.files.entry(file).or_insert_with(|| File { object, empty, watch, given: Vec::new(), next: 0 });
        known.given.push(byte);
        known.next += 1;
        Ok(number)
    }

    /// Reads what was closed, and drops what no description is left of. True if some close is not accounted for.
    fn tidy(&self) -> bool {
        let mut gone = Vec::new();
        let mut table = self.lock();
        let now = Instant::now();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        while let Ok(event) = reader.next() {
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                let all: Vec<i32> = table.watches.keys().copied().collect();
                table.closing.extend(all.into_iter().map(|watch| (watch, now)));
            } else {
                table.closing.insert(event.wd(), now);
            }
        }
        let Table { files, watches, closing } = &mut *table;
        closing.retain(|watch, since| {
            let Some(file) = watches.get(watch) else { return false };
            let Some(known) = files.get_mut(file) else { return false };
            known.forget();
            if known.given.is_empty() {
                let _ = inotify::remove_watch(&self.events, known.watch);
                gone.extend(files.remove(file));
                watches.remove(watch);
                return false;
            }
            // The event comes a moment before the lock goes; and somebody else may have opened and closed the file.
            now.duration_since(*since) < CLOSING
        });
        let more = !closing.is_empty();
        drop(table);
        // Objects go without the lock: what they end may be long.
        drop(gone);
        more
    }

    fn watch(&self, stop: &OwnedFd) {
        let mut timeout = None;
        loop {
            let mut fds = [PollFd::new(&self.events, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            if poll(&mut fds, timeout.as_ref()).is_err_and(|e| e != rustix::io::Errno::INTR) {
                return;
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            timeout = self.tidy().then_some(Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
        }
    }
}

/// One byte of a file, as a lock.
fn byte_lock(kind: i32, byte: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

/// Has a description hold a byte.
fn lock(fd: BorrowedFd<'_>, byte: i64, mode: OFlags) -> Result<(), Errno> {
    let kind = if mode == OFlags::WRONLY { libc::F_WRLCK } else { libc::F_RDLCK };
    let lock = byte_lock(kind, byte);
    // SAFETY: the kernel reads the structure and checks the descriptor.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if done == 0 { Ok(()) } else { Err(Errno::ENOMEM) }
}

/// True if another description of the file holds a byte.
fn is_locked(fd: BorrowedFd<'_>, byte: i64) -> bool {
    let mut lock = byte_lock(libc::F_WRLCK, byte);
    // SAFETY: the kernel reads and writes the structure and checks the descriptor.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    done != 0 || lock.l_type != libc::F_UNLCK as i16
}
