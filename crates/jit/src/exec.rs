//! Private executable memory: written once, then executable and never writable again.

use std::io;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use skep_maps::control::near;

/// A mapping that holds a copy of some bytes.
#[derive(Debug)]
pub(crate) struct Exec {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: the memory is never written after `new`.
unsafe impl Send for Exec {}
// SAFETY: as above.
unsafe impl Sync for Exec {}

impl Exec {
    pub(crate) fn new(bytes: &[u8]) -> io::Result<Exec> {
        let len = bytes.len().max(1);
        // SAFETY: a new mapping where nothing else is, of at least as many bytes as are copied; nobody
        // else knows it yet.
        unsafe {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let ptr = near(len, |at, flags| Ok(mmap_anonymous(at, len, prot, MapFlags::PRIVATE | flags)?))?;
            let exec = Exec { ptr: ptr.cast(), len };
            bytes.as_ptr().copy_to_nonoverlapping(exec.ptr, bytes.len());
            mprotect(ptr, len, MprotectFlags::READ | MprotectFlags::EXEC)?;
            Ok(exec)
        }
    }

    pub(crate) fn ptr(&self) -> *const u8 {
        self.ptr
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; whoever runs what is in it keeps this value alive.
        let unmapped = unsafe { munmap(self.ptr.cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
