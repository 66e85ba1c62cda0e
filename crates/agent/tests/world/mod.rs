//! This process as a probed one: the blob mapped into it, a process block, a site.
#![allow(dead_code)] // not every suite uses all of it

#[path = "../../../jit/tests/support/mod.rs"]
pub mod support;

pub(crate) mod quick;

use std::alloc::{Layout, alloc_zeroed};
use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use skep_agent::{BLOB, Blob};
use skep_ebpf::Insn;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, PtRegs};
use skep_runtime::session::{
    HitFn, LinkCount, MAGIC, Proc, RetEntry, RetHead, ReturnFn, SEEN, SITE_LINKS, SLOT_STACK, STUB_SIZE, Seen, Site,
    ThreadEntry, link_kind, only_link,
};
use support::{SLOTS, Session};

/// The two functions of the blob that are called as C functions; in the suite of quick hits what calls those.
pub fn blob() -> (HitFn, ReturnFn) {
    if QUICK {
        let (base, blob) = mapped();
        quick::lead_to(base + blob.quick_hit, base + blob.quick_ret);
        return (quick::hit, quick::ret);
    }
    plain()
}

/// The two functions in any suite, for registers that lie where the test says.
pub fn plain() -> (HitFn, ReturnFn) {
    let (base, blob) = mapped();
    let at = |offset: u64| (base + offset) as *const c_void;
    // SAFETY: the blob's functions have these types; it says so itself.
    unsafe {
        let hit = std::mem::transmute::<*const c_void, HitFn>(at(blob.hit));
        (hit, std::mem::transmute::<*const c_void, ReturnFn>(at(blob.ret)))
    }
}

/// The suite of all kinds of hits has programs called quickly where that can be, if it is run as `quick`.
pub const QUICK: bool = {
    let path = module_path!().as_bytes();
    path.len() > 5 && path[0] == b'q' && path[1] == b'u' && path[2] == b'i' && path[3] == b'c' && path[4] == b'k'
};

/// The address of the one that is jumped to.
pub fn enter() -> u64 {
    let (base, blob) = mapped();
    base + blob.enter
}

/// The blob, at one address for all tests.
fn mapped() -> (u64, &'static Blob) {
    static BASE: OnceLock<(usize, Blob)> = OnceLock::new();
    let (base, blob) = BASE.get_or_init(|| {
        let blob = Blob::parse().unwrap();
        let size = blob.size() as usize;
        // SAFETY: new memory, filled with the blob before it is made executable.
        let base = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            for piece in blob.image_at(base as u64) {
                let at = base.cast::<u8>().add(piece.offset as usize);
                std::ptr::copy_nonoverlapping(piece.bytes.as_ptr(), at, piece.bytes.len());
                let mut prot = libc::PROT_READ;
                prot |= if piece.prot.write { libc::PROT_WRITE } else { 0 };
                prot |= if piece.prot.exec { libc::PROT_EXEC } else { 0 };
                assert_eq!(libc::mprotect(at.cast(), piece.bytes.len(), prot), 0);
            }
            base
        };
        println!("blob: {} bytes in the file, {size} in memory", BLOB.len());
        (base as usize, blob)
    });
    (*base as u64, blob)
}

/// A probed process: this one.
pub struct World {
    pub session: Session,
    pub proc: &'static mut Proc,
    pub site: &'static mut Site,
    pub alive: *mut u32,
}

// SAFETY: what threads share is made for it.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

/// Zeroed memory for a table, never freed.
fn table<T>(n: usize) -> *mut T {
    let layout = Layout::array::<T>(n).unwrap().align_to(4096).unwrap().pad_to_align();
    // SAFETY: not of size zero.
    unsafe { alloc_zeroed(layout).cast() }
}

pub const THREADS: u32 = 64;
/// Where stubs would be; nothing is executed there.
pub const STUBS: u64 = 0x7000_0000;

impl World {
    /// One site with a link per program.
    pub fn new(maps: &[MapDef], links: &[(&[Insn], u32)], nret: u32) -> World {
        let mut session = Session::new(maps).unwrap();
        let indices: Vec<u32> = links
            .iter()
            .map(|&(insns, kind)| {
                let mut program = Program::new("test", ProgType::Kprobe, "GPL", insns.to_vec());
                program.maps = maps.to_vec().into();
                let verified = skep_verifier::verify(program, &skep_verifier::Options::default()).unwrap();
                let engine = skep_jit::Engine::Jit;
                let options = skep_jit::Options { engine, budget: true, bytecode: true, ..Default::default() };
                let compiled = skep_jit::compile(&verified, &options).unwrap();
                let prog = session.add(&compiled);
                session.link(prog, kind)
            })
            .collect();
        // SAFETY: a page of its own, wiped in children as a target's is.
        let alive = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_eq!(libc::madvise(page, 4096, libc::MADV_WIPEONFORK), 0);
            let word = page.cast::<u32>();
            *word = 1;
            word
        };
        // SAFETY: zero is valid for both.
        let (proc, site) = unsafe { (&mut *table::<Proc>(1), &mut *table::<Site>(1)) };
        proc.magic = MAGIC;
        proc.index = 5;
        proc.control = session.executable() as u64;
        proc.executes = 1;
        proc.shared = session.shared() as *const _ as u64;
        proc.maps = session.refs().as_ptr() as u64;
        proc.nmaps = session.refs().len() as u32;
        proc.alive = alive as u64;
        proc.threads = table::<ThreadEntry>(THREADS as usize) as u64;
        let threads = THREADS as usize * size_of::<ThreadEntry>();
        // SAFETY: whole pages that hold the table alone.
        assert_eq!(unsafe { libc::madvise(proc.threads as *mut c_void, threads, libc::MADV_WIPEONFORK) }, 0);
        proc.nthreads = THREADS;
        proc.seen = table::<Seen>(SEEN) as u64;
        proc.stacks = table::<[u8; SLOT_STACK]>(SLOTS as usize) as u64;
        proc.rets = table::<RetEntry>(nret as usize) as u64;
        proc.nret = nret;
        proc.ret_head = table::<RetHead>(1) as u64;
        proc.stubs = STUBS;
        proc.fsgsbase = u32::from(fsgsbase());
        site.proc = proc as *const _ as u64;
        site.ip = 0x40_1000;
        *site.nlinks.get_mut() = links.len() as u32;
        proc.links = proc.control + u64::from(session.control().links);
        let of = |kind| only_link(proc.links, indices.iter().zip(links).filter(|(_, l)| l.1 == kind).map(|(i, _)| *i));
        *site.on_entry.get_mut() = of(link_kind::ENTRY);
        *site.on_return.get_mut() = of(link_kind::RETURN);
        proc.keeps = u32::from(registered());
        for (i, index) in indices.into_iter().enumerate().take(SITE_LINKS) {
            *site.links[i].get_mut() = index;
        }
        World { session, proc, site, alive }
    }

    /// A call of the probed function: its entry and, if there is a return probe, its return.
    pub fn call(&self) {
        // Where the caller's return address would be.
        let mut top = [0x1234_5678u64];
        self.call_with(PtRegs { rip: self.site.ip, rsp: top.as_mut_ptr() as u64, rdi: 42, ..PtRegs::default() });
    }

    /// A call with these registers; `rsp` is where 0x12345678, the return address, stands.
    pub fn call_with(&self, mut regs: PtRegs) {
        let (hit, ret) = blob();
        let top = regs.rsp as *mut u64;
        // SAFETY: site, process block and registers are of this process.
        unsafe {
            let stub = hit(&raw const *self.site, &raw mut regs);
            if stub != 0 {
                let entry = (stub - STUBS) / STUB_SIZE;
                assert_eq!((stub - STUBS) % STUB_SIZE, 0);
                std::ptr::write_volatile(top, entry);
                regs.rsp += 8;
                let real = ret(&raw const *self.proc, entry as u32, &raw mut regs);
                assert_eq!((real, regs.rip), (0x1234_5678, 0x1234_5678));
                assert_eq!(regs.rsp, top as u64 + 8);
            }
        }
    }

    pub fn count(&self, link: u32, counter: impl Fn(&LinkCount) -> &AtomicU64) -> u64 {
        self.session.count_of(link, counter)
    }

    pub fn all_slots_free(&self) -> bool {
        let (control, shared) = (self.session.control(), self.session.shared());
        (0..SLOTS).all(|i| !shared.slot(control, i).unwrap().is_busy())
    }
}

/// Registers this process for barriers, as the injector does with targets.
fn registered() -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::syscall(libc::SYS_membarrier, 1 << 2, 0, 0) == 0 }
}

fn fsgsbase() -> bool {
    // SAFETY: no memory is touched. AT_HWCAP2 bit 1: the kernel lets user space use the instructions.
    unsafe { libc::getauxval(26) & 2 != 0 }
}

pub fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

/// Adds one to element 0 of map 0, plainly, as only a per-CPU value may be; returns `ret`.
pub fn counting(ret: i32) -> Vec<Insn> {
    vec![
        insn(0x62, 10, 0, -4, 0),
        insn(0x18, 1, 5, 0, 0),
        insn(0, 0, 0, 0, 0),
        insn(0xbf, 2, 10, 0, 0),
        insn(0x07, 2, 0, 0, -4),
        insn(0x85, 0, 0, 0, 1),
        insn(0x15, 0, 0, 3, 0),
        insn(0x79, 1, 0, 0, 0),
        insn(0x07, 1, 0, 0, 1),
        insn(0x7b, 0, 1, 0, 0),
        insn(0xb7, 0, 0, 0, ret),
        insn(0x95, 0, 0, 0, 0),
    ]
}

pub fn percpu() -> MapDef {
    MapDef::new("counts", MapType::PercpuArray, 4, 8, 1)
}

/// The sum of a per-CPU value over the slots.
pub fn total(session: &Session) -> u64 {
    let value = session.maps()[0].lookup(&0u32.to_ne_bytes(), 0).unwrap();
    value.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).sum()
}
