//! The control and shared arenas of a session, as small as the stand-in agent needs them.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use skep_runtime::session::{
    Arguments, CONTROL_NAME, Control, Link, LinkCount, MAGIC, NONE, SHARED_NAME, count_offset, counts_distance,
    link_kind, link_state, shared_size,
};
use skep_subsystem::attach::{MapMemory, Memory};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Slots of the session; the stand-in takes none.
pub const NSLOTS: u32 = 8;
const LINKS: u32 = 64;
const NLINKS: u32 = 16;

/// A memfd, mapped here.
struct Arena {
    fd: OwnedFd,
    base: *mut u8,
    size: usize,
}

impl Arena {
    fn new(name: &str, size: usize) -> io::Result<Arena> {
        let size = size.next_multiple_of(4096);
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, size as u64)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of the whole memfd.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &fd, 0)? }.cast();
        Ok(Arena { fd, base, size })
    }

    fn memory(&self) -> Memory<'_> {
        Memory { fd: self.fd.as_fd(), size: self.size as u64 }
    }

    fn put<T>(&self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= self.size);
        // SAFETY: in bounds; offsets are multiples of the structures' alignment.
        unsafe { self.base.add(offset).cast::<T>().write(value) }
    }

    fn get<T>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.size);
        // SAFETY: in bounds, and `T` is made of atomics.
        unsafe { &*self.base.add(offset).cast::<T>() }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: ours; no reference outlives the borrow of `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.size) };
    }
}

/// See the module.
pub struct Arenas {
    control: Arena,
    shared: Arena,
    map: Arena,
}

impl Arenas {
    /// With these links: index, and whether it is a return link.
    pub fn new(links: &[(u32, bool)]) -> io::Result<Arenas> {
        let control = Arena::new(CONTROL_NAME, 65536)?;
        let shared = Arena::new(SHARED_NAME, shared_size(NSLOTS, NLINKS))?;
        let head = Control {
            keeps: 1,
            reserved: 0,
            magic: MAGIC,
            enable: AtomicU32::new(std::process::id()),
            nslots: NSLOTS,
            robust_node: 0,
            size: 65536,
            links: LINKS,
            nlinks: NLINKS,
            progs: 0,
            nprogs: 0,
            map_headers: 0,
            nmaps: 1,
            samples_map: 0,
            printk_map: 0,
            budget: 0,
        };
        // The links must not overlap the head.
        let links_at = size_of::<Control>().next_multiple_of(64);
        control.put(0, Control { links: links_at as u32, ..head });
        for &(link, is_return) in links {
            let kind = if is_return { link_kind::RETURN } else { link_kind::ENTRY };
            let state = AtomicU32::new(link_state::on(kind, 0));
            let value = Link {
                state,
                kind,
                prog: NONE,
                flags: 0,
                cookie: 0,
                counts: counts_distance(NSLOTS, link),
                cell: 0,
                arguments: Arguments::default(),
                call: NONE,
                reserved: 0,
            };
            control.put(links_at + link as usize * size_of::<Link>(), value);
        }
        Ok(Arenas { control, shared, map: Arena::new("skep-map", 8192)? })
    }

    /// For the request.
    pub fn control(&self) -> Memory<'_> {
        self.control.memory()
    }

    /// For the request.
    pub fn shared(&self) -> Memory<'_> {
        self.shared.memory()
    }

    /// For the request.
    pub fn map(&self) -> MapMemory<'_> {
        let (fd, size) = (self.map.fd.as_fd(), self.map.size as u64);
        MapMemory { fd, offset: 0, size, writable: true, header_offset: 32768, absent: false }
    }

    /// Hits of a link.
    pub fn hits(&self, link: u32) -> u64 {
        self.row(link).hits.load(Ordering::Relaxed)
    }

    /// Misses of a link.
    pub fn missed(&self, link: u32) -> u64 {
        let missed: &AtomicU64 = &self.row(link).missed;
        missed.load(Ordering::Relaxed)
    }

    fn row(&self, link: u32) -> &LinkCount {
        self.shared.get(count_offset(NSLOTS, link, NSLOTS))
    }

    /// Disables the session once `input` ends, as the kernel does when the controller dies.
    pub fn disable_on(&self, mut input: impl Read) {
        let mut rest = Vec::new();
        let _ = input.read_to_end(&mut rest);
        self.control.get::<AtomicU32>(std::mem::offset_of!(Control, enable)).store(0, Ordering::SeqCst);
        println!("disabled");
    }
}
