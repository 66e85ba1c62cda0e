//! Memory that many small maps share, so that an idle map costs no descriptor and no mapping of its own.
//!
//! A slab is a sparse memfd that is mapped here once. A map gets whole pages of it, so that a process can be given these
//! and no others. There are two kinds of slab: what is in a *sealed* one can be mapped by others for reading alone, for
//! the maps that programs must not write; the seal is set when the slab is made, behind the one writable mapping.
//!
//! Pages are allocated when a map is made and given back when it goes. Those of a map whose memfd was asked for are not
//! used again, as somebody may still have them mapped: he writes into nothing then.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FallocateFlags;

use super::Arena;
use super::arena::available;

const PAGE: usize = 4096;
/// Bytes of a slab: address space, not memory.
const SLAB: usize = 256 << 20;
/// Larger maps have a memfd of their own.
const LARGEST: usize = 64 << 10;
/// What is available is asked after this many bytes.
const CHECKED: usize = 16 << 20;

/// The slabs of a subsystem.
#[derive(Debug, Default)]
pub struct Slabs {
    /// By kind: open, sealed.
    kinds: [Mutex<Vec<Arc<Slab>>>; 2],
    /// Bytes since it was last asked what is available.
    unchecked: Mutex<usize>,
}

#[derive(Debug)]
struct Slab {
    memory: Arena,
    sealed: bool,
    free: Mutex<Extents>,
}

/// Free pages: first page and number.
#[derive(Debug)]
struct Extents(BTreeMap<usize, usize>);

impl Extents {
    fn take(&mut self, pages: usize) -> Option<usize> {
        let (&start, &room) = self.0.iter().find(|(_, room)| **room >= pages)?;
        self.0.remove(&start);
        if room > pages {
            self.0.insert(start + pages, room - pages);
        }
        Some(start)
    }

    fn give(&mut self, mut start: usize, mut pages: usize) {
        if let Some((&before, &room)) = self.0.range(..start).next_back()
            && before + room == start
        {
            self.0.remove(&before);
            (start, pages) = (before, room + pages);
        }
        if let Some(room) = self.0.remove(&(start + pages)) {
            pages += room;
        }
        self.0.insert(start, pages);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slab {
    fn new(sealed: bool) -> io::Result<Slab> {
        let memory = Arena::sparse(if sealed { "skep-maps-sealed" } else { "skep-maps" }, SLAB)?;
        if sealed {
            memory.seal_future_writes()?;
        }
        Ok(Slab { memory, sealed, free: Mutex::new(Extents(BTreeMap::from([(0, SLAB / PAGE)]))) })
    }
}

/// Pages of a slab.
#[derive(Debug)]
pub(super) struct Part {
    slab: Arc<Slab>,
    start: usize,
    pages: usize,
    /// True once others may have mapped it.
    known: AtomicBool,
}

impl Part {
    pub fn ptr(&self) -> *mut u8 {
        self.slab.memory.ptr().wrapping_add(self.start * PAGE)
    }

    pub fn len(&self) -> usize {
        self.pages * PAGE
    }

    pub fn offset(&self) -> u64 {
        (self.start * PAGE) as u64
    }

    pub fn is_sealed(&self) -> bool {
        self.slab.sealed
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.known.store(true, Ordering::Release);
        self.slab.memory.fd()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (at, len) = (self.offset(), self.len() as u64);
        let punched = rustix::fs::fallocate(self.slab.memory.fd(), hole, at, len);
        // What could not be emptied is not given to another map either.
        if punched.is_ok() && !self.known.load(Ordering::Acquire) {
            lock(&self.slab.free).give(self.start, self.pages);
        }
    }
}

impl Slabs {
    /// Memory of zeros for a map of `len` bytes; `None` if it is one that has its own.
    pub(super) fn take(&self, len: usize, sealed: bool) -> Option<Result<Arena, (&'static str, io::Error)>> {
        let len = len.max(1).next_multiple_of(PAGE);
        (len <= LARGEST).then(|| self.part(len, sealed).map(Arena::part))
    }

    fn part(&self, len: usize, sealed: bool) -> Result<Part, (&'static str, io::Error)> {
        {
            let mut unchecked = lock(&self.unchecked);
            *unchecked += len;
            if *unchecked >= CHECKED {
                if available() < CHECKED as u64 {
                    let error = io::Error::new(io::ErrorKind::OutOfMemory, "more than the machine has available");
                    return Err(("check", error));
                }
                *unchecked = 0;
            }
        }
        let pages = len / PAGE;
        let (slab, start) = self.place(pages, sealed).map_err(|e| ("slab", e))?;
        if let Err(e) = slab.memory.allocate(start * PAGE, len) {
            lock(&slab.free).give(start, pages);
            return Err(("fallocate", e));
        }
        Ok(Part { slab, start, pages, known: AtomicBool::new(false) })
    }

    fn place(&self, pages: usize, sealed: bool) -> io::Result<(Arc<Slab>, usize)> {
        let mut slabs = lock(&self.kinds[usize::from(sealed)]);
        for slab in slabs.iter() {
            if let Some(start) = lock(&slab.free).take(pages) {
                return Ok((Arc::clone(slab), start));
            }
        }
        let slab = Arc::new(Slab::new(sealed)?);
        let start = lock(&slab.free).take(pages).ok_or(io::ErrorKind::OutOfMemory)?;
        slabs.push(Arc::clone(&slab));
        Ok((slab, start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(slabs: &Slabs, len: usize, sealed: bool) -> Arena {
        slabs.take(len, sealed).unwrap().unwrap()
    }

    #[test]
    fn pages_are_zero_and_used_again_unless_they_were_shown() {
        let slabs = Slabs::default();
        let (a, b) = (take(&slabs, 5000, false), take(&slabs, 1, false));
        assert_eq!((a.offset(), a.len(), b.offset()), (0, 8192, 8192));
        // SAFETY: a byte of the arena.
        unsafe { a.ptr().write(7) };
        drop(a);
        let c = take(&slabs, 4096, false);
        assert_eq!(c.offset(), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { c.ptr().read() }, 0);
        let _ = c.fd();
        drop(c);
        assert_eq!(take(&slabs, 1, false).offset(), 4096);
        assert!(slabs.take(LARGEST + 1, false).is_none());
        drop(b);
    }

    #[test]
    fn sealed_memory_cannot_be_mapped_for_writing() {
        let slabs = Slabs::default();
        let map = |arena: &Arena| {
            let flags = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            let shared = rustix::mm::MapFlags::SHARED;
            // SAFETY: a new mapping.
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, flags, shared, arena.fd(), arena.offset()) }
        };
        let (open, sealed) = (take(&slabs, 1, false), take(&slabs, 1, true));
        assert!(map(&open).is_ok());
        assert_eq!(map(&sealed), Err(rustix::io::Errno::PERM));
        assert!(sealed.seal_future_writes().is_ok() && open.seal_future_writes().is_err());
        // SAFETY: this mapping is the one that stays writable.
        unsafe { sealed.ptr().write(1) };
    }
}
