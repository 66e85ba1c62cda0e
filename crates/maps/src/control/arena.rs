//! Shared memory of fixed size.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use super::slab::Part;

/// A memfd of fixed size, mapped writable here, all of its memory allocated unless it was made [sparse](Arena::sparse);
/// or a part of one that many share ([`Slabs`](super::Slabs)).
///
/// Since nobody can shrink it and nothing is left to allocate, accesses do not fault.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
    ptr: *mut u8,
    len: usize,
    /// A second mapping of the same memory, for reading and executing.
    code: OnceLock<usize>,
}

#[derive(Debug)]
enum Memory {
    Own(OwnedFd),
    Part(Part),
}

// SAFETY: the mapping is plain memory that lives as long as the arena; users synchronise what they store there.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an arena of `len` bytes of zeros; `name` shows in `/proc/PID/maps`.
    pub fn new(name: &str, len: usize) -> io::Result<Arena> {
        Arena::create(name, len).map_err(|(_, source)| source)
    }

    /// As [`Arena::new`]; an error comes with the step that failed.
    pub(crate) fn create(name: &str, len: usize) -> Result<Arena, (&'static str, io::Error)> {
        // A memfd of no bytes cannot be mapped.
        let len = len.max(1).next_multiple_of(4096);
        if len as u64 > available() {
            return Err(("check", io::Error::new(io::ErrorKind::OutOfMemory, "more than the machine has available")));
        }
        let arena = Arena::map(name, len)?;
        arena.allocate(0, len).map_err(|e| ("fallocate", e))?;
        Ok(arena)
    }

    /// Makes an arena of which nothing is allocated yet: what is to be used is [allocated](Arena::allocate) first.
    pub fn sparse(name: &str, len: usize) -> io::Result<Arena> {
        Arena::map(name, len.max(1).next_multiple_of(4096)).map_err(|(_, source)| source)
    }

    /// Allocates the pages of a part. Accesses to it do not fault from then on.
    pub fn allocate(&self, start: usize, len: usize) -> io::Result<()> {
        if matches!(self.memory, Memory::Part(_)) {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(self.fd(), FallocateFlags::empty(), start as u64, len as u64) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn map(name: &str, len: usize) -> Result<Arena, (&'static str, io::Error)> {
        let step = |what: &'static str| move |e: rustix::io::Errno| (what, io::Error::from(e));
        let name: String = name.chars().filter(|&c| c != '\0').take(60).collect();
        let fd = rustix::fs::memfd_create(name.as_str(), MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(step("memfd_create"))?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(step("ftruncate"))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).map_err(step("seal"))?;
        // SAFETY: a new mapping at an address of the system's choice touches no other memory.
        let ptr = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }
        .map_err(step("mmap"))?;
        Ok(Arena { memory: Memory::Own(fd), ptr: ptr.cast(), len, code: OnceLock::new() })
    }

    /// A part of shared memory, which is allocated.
    pub(super) fn part(part: Part) -> Arena {
        Arena { ptr: part.ptr(), len: part.len(), memory: Memory::Part(part), code: OnceLock::new() }
    }

    /// Forbids every new writable mapping and every `write`; this one stays writable.
    ///
    /// A part of shared memory is sealed from the beginning, or refuses.
    pub fn seal_future_writes(&self) -> io::Result<()> {
        match &self.memory {
            Memory::Own(fd) => Ok(rustix::fs::fcntl_add_seals(fd, SealFlags::FUTURE_WRITE)?),
            Memory::Part(part) if part.is_sealed() => Ok(()),
            Memory::Part(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The same memory in a second mapping, which can be read and executed but not written; made at the first call.
    pub fn code(&self) -> io::Result<*const u8> {
        if let Some(&at) = self.code.get() {
            return Ok(at as *const u8);
        }
        let prot = ProtFlags::READ | ProtFlags::EXEC;
        let new = near(self.len, |at, flags| {
            // SAFETY: a new mapping where nothing else is touches no other memory.
            Ok(unsafe { rustix::mm::mmap(at, self.len, prot, MapFlags::SHARED | flags, self.fd(), self.offset())? })
        })?;
        let at = *self.code.get_or_init(|| new as usize);
        if at != new as usize {
            // SAFETY: another thread was first: nobody knows this one.
            unsafe { rustix::mm::munmap(new, self.len)? };
        }
        Ok(at as *const u8)
    }

    /// What [`Arena::code`] gave, if it was called.
    pub fn mapped_code(&self) -> Option<*const u8> {
        self.code.get().map(|&at| at as *const u8)
    }

    /// The memfd, to be passed on; the arena begins at [`Arena::offset`] in it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.memory {
            Memory::Own(fd) => fd.as_fd(),
            Memory::Part(part) => part.fd(),
        }
    }

    /// Where in the memfd it begins: 0 unless it is a part of shared memory.
    pub fn offset(&self) -> u64 {
        match &self.memory {
            Memory::Own(_) => 0,
            Memory::Part(part) => part.offset(),
        }
    }

    /// Where it is mapped in this process; page aligned.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Its bytes: a multiple of the page size.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let own = matches!(self.memory, Memory::Own(_)).then_some(self.ptr);
        for mapping in own.into_iter().chain(self.code.get().map(|&code| code as *mut u8)) {
            // SAFETY: these are the mappings made in `create` and in `code`, and nobody can use them any more.
            let unmapped = unsafe { rustix::mm::munmap(mapping.cast(), self.len) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

/// Maps `len` bytes near this program's own code if there is room, else anywhere.
///
/// Branch predictors keep only so much of a target's address that calls farther than four gigabytes are slow.
pub fn near(
    len: usize,
    map: impl Fn(*mut core::ffi::c_void, MapFlags) -> io::Result<*mut core::ffi::c_void>,
) -> io::Result<*mut core::ffi::c_void> {
    const STEP: usize = 64 << 20;
    let len = len.next_multiple_of(4096);
    let here = available as *const () as usize & !4095;
    for step in 1..16 {
        let Some(at) = here.checked_sub(step * STEP).and_then(|at| at.checked_sub(len)) else { break };
        if let Ok(new) = map(at as *mut _, MapFlags::FIXED_NOREPLACE) {
            return Ok(new);
        }
    }
    map(std::ptr::null_mut(), MapFlags::empty())
}

/// Bytes the machine can give without swapping. Allocating a memfd is not refused in time: it ends in the OOM killer.
pub(super) fn available() -> u64 {
    let Ok(info) = std::fs::read_to_string("/proc/meminfo") else { return u64::MAX };
    info.lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_fixed_and_memory_is_there() {
        let arena = Arena::new("test", 5000).unwrap();
        assert_eq!(arena.len(), 8192);
        let stat = rustix::fs::fstat(arena.fd()).unwrap();
        assert_eq!((stat.st_size, stat.st_blocks), (8192, 16));
        assert_eq!(rustix::fs::ftruncate(arena.fd(), 4096), Err(rustix::io::Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(arena.fd(), 16384), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn sealed_arena_refuses_writers() {
        let arena = Arena::new("test", 1).unwrap();
        arena.seal_future_writes().unwrap();
        // SAFETY: one byte of a writable page.
        unsafe { arena.ptr().write(7) };
        assert_eq!(rustix::io::write(arena.fd(), b"x"), Err(rustix::io::Errno::PERM));
        // SAFETY: a new mapping.
        let rw = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                arena.fd(),
                0,
            )
        };
        assert_eq!(rw, Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert_eq!(Arena::new("test", 1 << 46).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
