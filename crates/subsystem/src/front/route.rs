//! System calls of a loader, and which of them the subsystem answers.
//!
//! A [`Router`] stands between one process and the kernel: [`dispatch`](Router::dispatch) answers what is meant for the
//! subsystem, and says of everything else that the kernel shall. How the calls get here is another matter: linked in, as in
//! the tests of real loaders, or from a supervisor that is notified of them.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use skep_ebpf::Errno;

use super::Subsystem;
use super::client::Client;
use super::handed::{Handed, OwnProcess};
use super::object::Object;
use super::tracefs::Open;
use super::vfs::Node;

/// Attributes of `bpf(2)` may be no longer than a page.
const MAX_ATTR: u64 = 4096;
/// Longest path, with its end.
const PATH_MAX: usize = 4096;
/// `uprobe(2)`: only the kernel's own trampolines call it.
const SYS_UPROBE: i64 = 336;

/// The answer to a call that was ours: what it returns.
pub type Answer = Result<i64, Errno>;

/// One process and the subsystem that it talks to.
#[derive(Debug)]
pub struct Router {
    pub(super) subsystem: Arc<Subsystem>,
    pub(super) client: Client,
    pub(super) handed: Arc<Handed>,
}

impl Router {
    /// Routes the calls of this process, which has all capabilities over its own subsystem.
    pub fn own(subsystem: Arc<Subsystem>) -> io::Result<Router> {
        let handed = Arc::new(Handed::new(OwnProcess)?);
        let client = Client::with_files(Arc::clone(&handed));
        Ok(Router { subsystem, client, handed })
    }

    /// The subsystem.
    pub fn subsystem(&self) -> &Subsystem {
        &self.subsystem
    }

    /// The descriptors that the process was given.
    pub fn handed(&self) -> &Handed {
        &self.handed
    }

    /// The process as a client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Answers a system call; `None` if it is for the kernel, with the same arguments.
    pub fn dispatch(&self, nr: i64, args: [u64; 6]) -> Option<Answer> {
        let [a, b, c, d, e, _] = args;
        match nr {
            libc::SYS_bpf => {
                self.handed.tidy();
                Some(self.bpf(a as u32, b, c))
            }
            libc::SYS_perf_event_open => {
                self.handed.tidy();
                let opened = self.subsystem.perf_event_open(&self.client, a, b as i32, c as i32, d as i32, e);
                Some(opened.map(i64::from))
            }
            libc::SYS_read => self.read(a, b, c),
            libc::SYS_write => self.write(a, b, c),
            // There is nothing that this could come from.
            SYS_UPROBE => Some(Err(Errno::ENOSYS)),
            libc::SYS_open => self.open(a, b),
            libc::SYS_openat => self.open(b, c),
            libc::SYS_access => self.access(a, b),
            libc::SYS_faccessat | libc::SYS_faccessat2 => self.access(b, c),
            libc::SYS_stat | libc::SYS_lstat => self.stat(a, b),
            libc::SYS_newfstatat => self.stat(b, c),
            libc::SYS_statfs => self.statfs(a, b),
            libc::SYS_unlink => self.unlink(a),
            libc::SYS_unlinkat if c == 0 => self.unlink(b),
            libc::SYS_mkdir => self.make_folder(a),
            libc::SYS_mkdirat => self.make_folder(b),
            libc::SYS_mmap => self.map_memory(args),
            libc::SYS_ioctl => self.ioctl(a, b, c),
            libc::SYS_epoll_ctl => self.wait_for(a, b, c, d),
            libc::SYS_poll => self.poll(a, b, c as i32),
            libc::SYS_ppoll => self.ppoll(a, b, c, (d, e)),
            _ => None,
        }
    }

    fn bpf(&self, cmd: u32, at: u64, size: u64) -> Answer {
        if size > MAX_ATTR {
            return Err(Errno::E2BIG);
        }
        let given = self.client.bytes(at, size as usize)?;
        let mut attr = given.clone();
        let done = self.subsystem.bpf(&self.client, cmd, &mut attr);
        // Answers inside of the attributes. Attributes without any may stand in read-only memory.
        if attr != given {
            self.client.memory.write(at, &attr)?;
        }
        done.map(i64::from)
    }

    pub(super) fn object(&self, fd: u64) -> Option<Object> {
        self.client.files.get(fd as i32).ok()
    }

    /// A path, if it is absolute and could be ours. Nobody else's call fails by being looked at.
    fn path(&self, at: u64) -> Option<String> {
        let path = String::from_utf8(self.client.string(at, PATH_MAX).ok()?).ok()?;
        (path.starts_with("/sys/") || path.starts_with("/proc/sys/")).then_some(path)
    }

    fn node(&self, at: u64) -> Option<Result<Node, Errno>> {
        self.subsystem.node(&self.path(at)?)
    }

    fn open(&self, path: u64, flags: u64) -> Option<Answer> {
        let flags = OFlags::from_bits_retain(flags as u32);
        let name = self.path(path)?;
        let node = self.subsystem.node(&name)?;
        Some(node.and_then(|node| match node {
            Node::Control(_) if flags.intersects(OFlags::WRONLY | OFlags::RDWR) => self.open_control(&name, flags),
            Node::Control(bytes) => self.open_text(&bytes),
            Node::Text(_) if flags.intersects(OFlags::WRONLY | OFlags::RDWR) => Err(Errno::EACCES),
            Node::Text(bytes) => self.open_text(&bytes),
            Node::Pin => self.subsystem.open_pin(&self.client, &name).map(i64::from),
            Node::Folder if flags.contains(OFlags::DIRECTORY) => {
                self.subsystem.open_folder(&self.client, &name).map(i64::from)
            }
            Node::Folder => Err(Errno::EACCES),
        }))
    }

    /// A file with given contents, which cannot be written.
    fn open_text(&self, bytes: &[u8]) -> Answer {
        let errno = |e: rustix::io::Errno| Errno(e.raw_os_error());
        let file = memfd_create("sysfs", MemfdFlags::CLOEXEC).map_err(errno)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let n = rustix::io::write(&file, rest).map_err(errno)?;
            rest = rest.get(n..).unwrap_or_default();
        }
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?;
        self.handed.process().give(file).map(i64::from)
    }

    fn access(&self, path: u64, mode: u64) -> Option<Answer> {
        let write = mode & libc::W_OK as u64 != 0;
        Some(self.node(path)?.and_then(|node| match node {
            Node::Text(_) if write => Err(Errno::EACCES),
            _ => Ok(0),
        }))
    }

    fn stat(&self, path: u64, to: u64) -> Option<Answer> {
        Some(self.node(path)?.and_then(|node| self.client.memory.write(to, &node.stat())).map(|()| 0))
    }

    fn statfs(&self, path: u64, to: u64) -> Option<Answer> {
        let told = self.subsystem.statfs(&self.path(path)?)?;
        Some(told.and_then(|bytes| self.client.memory.write(to, &bytes)).map(|()| 0))
    }

    fn unlink(&self, path: u64) -> Option<Answer> {
        let path = self.path(path)?;
        Some(self.subsystem.node(&path)?.and_then(|node| match node {
            Node::Pin if self.subsystem.unpin(&path) => Ok(0),
            Node::Pin => Err(Errno::ENOENT),
            Node::Folder => Err(Errno(libc::EISDIR)),
            Node::Text(_) | Node::Control(_) => Err(Errno::EPERM),
        }))
    }

    /// Folders for pins are made as they are named: making one before changes nothing.
    fn make_folder(&self, path: u64) -> Option<Answer> {
        Some(match self.node(path)? {
            Ok(_) => Err(Errno::EEXIST),
            Err(_) => Ok(0),
        })
    }

    /// What can be mapped is the object's own memory, which the kernel maps.
    fn map_memory(&self, [_, len, prot, flags, fd, offset]: [u64; 6]) -> Option<Answer> {
        if flags & libc::MAP_ANONYMOUS as u64 != 0 {
            return None;
        }
        let object = self.object(fd)?;
        let write = prot & libc::PROT_WRITE as u64 != 0;
        match &object {
            Object::Map(map, _) if write && map.map.is_frozen() => Some(Err(Errno::EPERM)),
            Object::Perf(_) => {
                let shared = flags & libc::MAP_TYPE as u64 != libc::MAP_PRIVATE as u64;
                // The mapping holds the file, and with it the event, as long as the kernel has it mapped.
                self.subsystem.perf_mmap(&self.client, fd as i32, len, offset, shared).err().map(Err)
            }
            _ if object.memory().is_some() => None,
            Object::Map(..) => Some(Err(Errno::ENOTSUPP)),
            _ => Some(Err(Errno::ENODEV)),
        }
    }

    fn ioctl(&self, fd: u64, request: u64, arg: u64) -> Option<Answer> {
        Some(match self.object(fd)? {
            Object::Perf(_) => self.subsystem.perf_ioctl(&self.client, fd as i32, request as u32, arg).map(i64::from),
            _ => Err(Errno::ENOTTY),
        })
    }

    fn read(&self, fd: u64, to: u64, len: u64) -> Option<Answer> {
        match self.object(fd)? {
            Object::Perf(_) => {}
            Object::Iter(_) => {
                return Some(self.subsystem.iter_read(&self.client, fd as i32, to, len).map(i64::from));
            }
            Object::Folder(_) => return Some(Err(Errno::EISDIR)),
            _ => return None,
        }
        let values = self.subsystem.perf_read(&self.client, fd as i32, usize::try_from(len).unwrap_or(usize::MAX));
        Some(values.and_then(|v| self.client.memory.write(to, &v).map(|()| v.len() as i64)))
    }

    fn write(&self, fd: u64, from: u64, len: u64) -> Option<Answer> {
        let Object::TraceFile(file) = self.object(fd)? else { return None };
        Some(self.client.bytes(from, len.min(MAX_ATTR) as usize).and_then(|bytes| {
            self.subsystem.write_file(&file, &String::from_utf8_lossy(&bytes), Open::Append)?;
            Ok(bytes.len() as i64)
        }))
    }

    /// A file of the tracefs that is to be written.
    fn open_control(&self, path: &str, flags: OFlags) -> Answer {
        if flags.contains(OFlags::TRUNC) {
            self.subsystem.write_file(path, "", Open::Truncate)?;
        }
        self.client.files.install(Object::TraceFile(path.into())).map(i64::from)
    }

    /// `epoll_ctl`: instead of the object, the bell of its ring is waited for, with the caller's own data. The bell is
    /// written whenever there is something new, so it is waited for edge-triggered.
    fn wait_for(&self, set: u64, op: u64, fd: u64, event: u64) -> Option<Answer> {
        let object = self.object(fd)?;
        Some(self.wait_for_object(&object, set, op, event))
    }

    fn wait_for_object(&self, object: &Object, set: u64, op: u64, event: u64) -> Answer {
        let errno = |e: rustix::io::Errno| Errno(e.raw_os_error());
        let bell = self.subsystem.bell(object)?.ok_or(Errno::EPERM)?;
        let set = self.handed.process().take(set as i32)?;
        if op == libc::EPOLL_CTL_DEL as u64 {
            return epoll::delete(set.as_fd(), bell.fd()).map(|()| 0).map_err(errno);
        }
        let event = self.client.bytes(event, 12)?;
        let (events, data) = event.split_at_checked(4).ok_or(Errno::EFAULT)?;
        let events = events.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
        let data = EventData::new_u64(data.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b)));
        let events = EventFlags::from_bits_retain(events) | EventFlags::ET;
        bell.settle();
        match op as i32 {
            libc::EPOLL_CTL_ADD => epoll::add(set.as_fd(), bell.fd(), data, events),
            libc::EPOLL_CTL_MOD => epoll::modify(set.as_fd(), bell.fd(), data, events),
            _ => return Err(Errno::EINVAL),
        }
        .map(|()| 0)
        .map_err(errno)
    }
}
