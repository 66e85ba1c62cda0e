//! Sealed shared memory: a memfd that this process maps writable.
//!
//! Invariants: the mapping is `len` bytes, readable and writable, and lives as long as the [`Memory`]; all of it is
//! allocated when it is made, so no access meets SIGBUS; its size is sealed.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Who may map the memory writable from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Only this mapping: the kernel refuses every later writable mapping and `write`.
    Us,
    /// Whoever gets the file descriptor.
    Everybody,
}

/// A memfd and its mapping in this process. Fresh memory is zero.
#[derive(Debug)]
pub struct Memory {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; access goes through raw pointers and atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Makes `len` bytes (rounded up to pages) under a name that `/proc/PID/maps` shows.
    pub fn new(name: &CStr, len: usize, writers: Writers) -> io::Result<Memory> {
        let len = len.max(1).next_multiple_of(4096);
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on the mapping is undone by `Drop`.
        let memory = Memory { fd, base, len };
        let mut seals = SealFlags::SHRINK | SealFlags::GROW;
        if writers == Writers::Us {
            seals |= SealFlags::FUTURE_WRITE;
        }
        rustix::fs::fcntl_add_seals(&memory.fd, seals | SealFlags::SEAL)?;
        Ok(memory)
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where it is mapped.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of a `T` at an offset.
    ///
    /// # Panics
    /// If it would not lie within the memory, aligned. Offsets are the caller's own, never read from shared memory.
    pub fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.len) && offset.is_multiple_of(align_of::<T>()), "offset {offset:#x}");
        self.base.as_ptr().wrapping_add(offset).cast()
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If they would not lie within the memory.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "offset {offset:#x}");
        // SAFETY: in bounds; the mapping is nobody's Rust reference.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever holds addresses in it holds the `Memory` as well.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_mapping_can_write() {
        let m = Memory::new(c"skep-test", 100, Writers::Us).unwrap();
        m.write(8, &7u64.to_le_bytes());
        // SAFETY: in bounds, aligned.
        assert_eq!(unsafe { *m.at::<u64>(8) }, 7);
        let map = |prot| {
            // SAFETY: a new mapping.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, prot, MapFlags::SHARED, m.fd(), 0) }
        };
        assert!(map(ProtFlags::READ | ProtFlags::WRITE).is_err());
        let p = map(ProtFlags::READ).unwrap();
        // SAFETY: just mapped.
        assert_eq!(unsafe { *p.cast::<u64>().add(1) }, 7);
        assert!(rustix::fs::ftruncate(m.fd(), 0).is_err());
        assert!(std::panic::catch_unwind(|| m.at::<u64>(4092)).is_err());
        // SAFETY: ours.
        unsafe { rustix::mm::munmap(p, 4096).unwrap() };
    }
}
