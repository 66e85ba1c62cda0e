//! The process block: a memfd that we write and the target reads.
//!
//! Invariant: `base` is a shared mapping of `size` bytes that lives as long as the [`Block`]; only this process writes it, the
//! target's mapping is read-only and the memfd is sealed against new writable ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use skep_maps::MapRef;
use skep_runtime::session::{MAGIC, NONE, PROC_NAME, Proc, SITE_LINKS, Site, Trap, only_link};

use super::AttachError;
use super::plan::PlannedSite;
use super::request::ProbeKind;

/// Bytes of the arrays that a site keeps of its text.
const TEXT: usize = 16;

/// See the module.
pub struct Block {
    fd: OwnedFd,
    base: NonNull<u8>,
    size: usize,
    maps: usize,
    sites: usize,
    traps: usize,
    room: Room,
}

/// Numbers of maps, sites and breakpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Handles in the table of maps.
    pub maps: usize,
    /// Places in the text.
    pub sites: usize,
    /// Those of them that are breakpoints.
    pub traps: usize,
}

impl Room {
    /// As much, and what may come later.
    pub fn to_grow(self) -> Room {
        let more = |n: usize| n + n / 2 + 32;
        Room { maps: more(self.maps), sites: more(self.sites), traps: more(self.traps) }
    }

    /// Is there as much in `other`?
    pub fn fits(self, other: Room) -> bool {
        self.maps <= other.maps && self.sites <= other.sites && self.traps <= other.traps
    }
}

/// Addresses in the target, and numbers, that go into [`Proc`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// See [`Proc`].
    pub index: u32,
    /// See [`Proc`].
    pub pid: u32,
    /// See [`Proc`].
    pub control: u64,
    /// See [`Proc`].
    pub shared: u64,
    /// See [`Proc`].
    pub alive: u64,
    /// See [`Proc`].
    pub threads: u64,
    /// See [`Proc`].
    pub nthreads: u32,
    /// See [`Proc`].
    pub stacks: u64,
    /// See [`Proc`].
    pub rets: u64,
    /// See [`Proc`].
    pub nret: u32,
    /// See [`Proc`].
    pub ret_head: u64,
    /// See [`Proc`].
    pub stubs: u64,
    /// See [`Proc`].
    pub fsgsbase: bool,
    /// See [`Proc`].
    pub trap_state: u64,
    /// See [`Proc::change`].
    pub change: u64,
    /// See [`Proc::description`].
    pub description: u64,
    /// See [`Proc::executes`].
    pub executes: bool,
    /// See [`Proc::keeps`].
    pub keeps: bool,
    /// See [`Proc`].
    pub seen: u64,
    /// See [`Proc`].
    pub links: u64,
    /// See [`Proc`].
    pub kept: u64,
}

fn os(what: &str) -> impl Fn(rustix::io::Errno) -> AttachError {
    move |errno| AttachError::os(format!("{what} for the process block"), &errno.into())
}

impl Block {
    /// Makes an empty block.
    pub fn new(room: Room) -> Result<Block, AttachError> {
        let Room { maps, sites, traps } = room;
        let maps_at = size_of::<Proc>().next_multiple_of(64);
        let sites_at = (maps_at + maps * size_of::<MapRef>()).next_multiple_of(64);
        let traps_at = sites_at + sites * size_of::<Site>();
        let size = (traps_at + traps * size_of::<Trap>()).next_multiple_of(4096);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(PROC_NAME, flags).map_err(os("memfd_create"))?;
        // Allocated now, so that no later write can fault for want of memory.
        rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, size as u64).map_err(os("fallocate"))?;
        // SAFETY: a new mapping of a memfd that is `size` bytes long; nothing else refers to it.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        };
        let base = NonNull::new(base.map_err(os("mmap"))?.cast()).ok_or_else(|| AttachError::last_os("mmap"))?;
        let block = Block { fd, base, size, maps: maps_at, sites: sites_at, traps: traps_at, room };
        let seals = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&block.fd, seals).map_err(os("sealing"))?;
        Ok(block)
    }

    /// The memfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The inode of its memory.
    pub fn inode(&self) -> Option<u64> {
        rustix::fs::fstat(&self.fd).ok().map(|stat| stat.st_ino)
    }

    /// What it has room for.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Its size.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Address of site `n` in the target, if the block is at `at` there.
    pub fn site_address(&self, at: u64, n: usize) -> u64 {
        at + (self.sites + n * size_of::<Site>()) as u64
    }

    /// Writes everything. `at` is the block's address in the target; `maps` are header and data addresses there.
    pub fn fill(&self, at: u64, addresses: &Addresses, maps: &[(u64, u64)], sites: &[PlannedSite]) {
        let a = addresses;
        let proc = Proc {
            magic: MAGIC,
            index: a.index,
            pid: a.pid,
            control: a.control,
            shared: a.shared,
            maps: at + self.maps as u64,
            alive: a.alive,
            threads: a.threads,
            stacks: a.stacks,
            rets: a.rets,
            stubs: a.stubs,
            nthreads: a.nthreads,
            nret: a.nret,
            ret_head: a.ret_head,
            fsgsbase: u32::from(a.fsgsbase),
            nsites: sites.len() as u32,
            sites: self.sites as u64,
            trap_state: a.trap_state,
            traps: at + self.traps as u64,
            ntraps: 0,
            nmaps: 0,
            description: a.description,
            executes: u32::from(a.executes),
            keeps: u32::from(a.keeps),
            change: a.change,
            seen: a.seen,
            links: a.links,
            kept: a.kept,
        };
        self.put(0, proc);
        self.set_maps(maps);
        self.add_sites(at, sites, 0);
    }

    /// The table of maps: header and data addresses. Nothing that runs names one that changes.
    pub fn set_maps(&self, maps: &[(u64, u64)]) {
        for (n, &(header, data)) in maps.iter().enumerate() {
            let map = MapRef { hdr: header as *const _, data: data as *mut u8 };
            self.put(self.maps + n * size_of::<MapRef>(), map);
        }
        self.put(std::mem::offset_of!(Proc, nmaps), maps.len() as u32);
    }

    /// The maps are those that are needed up to this change around functions.
    pub fn set_change(&self, change: u64) {
        self.put(std::mem::offset_of!(Proc, change), change);
    }

    /// Adds sites behind the first `known` ones, and their breakpoints. No thread is to be looking for one.
    pub fn add_sites(&self, at: u64, sites: &[PlannedSite], known: usize) {
        for (n, site) in sites.iter().enumerate().skip(known) {
            self.put(self.sites + n * size_of::<Site>(), make_site(at, self.links_at(), site));
        }
        let trap = |(n, site): (usize, &PlannedSite)| {
            let trap = Trap { address: site.window.address, site: self.site_address(at, n) };
            site.window.trap.then_some(trap)
        };
        let mut traps: Vec<Trap> = sites.iter().enumerate().filter_map(trap).collect();
        traps.sort_by_key(|trap| trap.address);
        self.put(std::mem::offset_of!(Proc, nsites), sites.len() as u32);
        self.put(std::mem::offset_of!(Proc, ntraps), traps.len() as u32);
        for (n, trap) in traps.into_iter().enumerate() {
            self.put(self.traps + n * size_of::<Trap>(), trap);
        }
    }

    /// Gives a site other links.
    pub fn set_links(&self, n: usize, links: &[(u32, ProbeKind)]) {
        let at = self.sites + n * size_of::<Site>();
        assert!(at + size_of::<Site>() <= self.size, "site {n} is outside of the block");
        // SAFETY: in bounds and aligned, since sites are; what is written is atomic.
        let site = unsafe { &*self.base.as_ptr().add(at).cast::<Site>() };
        for (place, (link, _)) in site.links.iter().zip(links) {
            place.store(*link, Ordering::Relaxed);
        }
        site.on_entry.store(only(self.links_at(), links, ProbeKind::Entry), Ordering::Relaxed);
        site.on_return.store(only(self.links_at(), links, ProbeKind::Return), Ordering::Relaxed);
        site.nlinks.store(links.len().min(SITE_LINKS) as u32, Ordering::Release);
    }

    /// Marks a site as patched or not.
    pub fn set_active(&self, n: usize, active: bool) {
        let offset = self.sites + n * size_of::<Site>() + std::mem::offset_of!(Site, active);
        assert!(offset + 4 <= self.size, "site {n} is outside of the block");
        // SAFETY: in bounds and aligned, since sites are; the target reads it concurrently at most.
        let word = unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU32>() };
        word.store(u32::from(active), Ordering::Release);
    }

    /// Where the process has the table of links.
    fn links_at(&self) -> u64 {
        // SAFETY: the block begins with its head, which `fill` has written, or is zero.
        unsafe { (*self.base.as_ptr().cast::<Proc>()).links }
    }

    fn put<T>(&self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= self.size && offset.is_multiple_of(align_of::<T>()), "outside of the block");
        // SAFETY: in bounds and aligned by the check; the target does not look at it before it is patched.
        unsafe { self.base.as_ptr().add(offset).cast::<T>().write(value) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and ends with us.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

/// What the site says of its links of a kind.
fn only(table: u64, links: &[(u32, ProbeKind)], kind: ProbeKind) -> u64 {
    only_link(table, links.iter().filter(|(_, k)| *k == kind).map(|(link, _)| *link))
}

fn make_site(proc: u64, links_at: u64, planned: &PlannedSite) -> Site {
    // The kept text begins at `ip`, an `endbr64` before the patch included.
    let patch = &planned.patch;
    let lead = (planned.window.address - planned.ip) as usize;
    let mut original = [0; TEXT];
    let mut patched = [0; TEXT];
    let len = lead + patch.len();
    original[..len].copy_from_slice(&planned.text[..len]);
    patched[..lead].copy_from_slice(&planned.text[..lead]);
    patched[lead..len].copy_from_slice(patch);
    let links: [AtomicU32; SITE_LINKS] =
        std::array::from_fn(|n| AtomicU32::new(planned.links.get(n).map_or(0, |(link, _)| *link)));
    Site {
        proc,
        ip: planned.ip,
        body: planned.body_address(),
        active: 0,
        len: len as u32,
        original,
        patched,
        nlinks: AtomicU32::new(planned.links.len() as u32),
        leaves: u32::from(planned.window.leaves),
        links,
        guard: planned.guard,
        entry: planned.entry.unwrap_or(NONE),
        on_entry: AtomicU64::new(only(links_at, &planned.links, ProbeKind::Entry)),
        on_return: AtomicU64::new(only(links_at, &planned.links, ProbeKind::Return)),
        slow: planned.slow_address(),
        call: planned.call.as_ref().and_then(|call| call.number).unwrap_or(NONE),
        reserved: 0,
    }
}
