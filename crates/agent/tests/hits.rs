//! The blob, mapped into this process, and hits through it.

#[path = "../../jit/tests/support/mod.rs"]
mod support;

use std::alloc::{Layout, alloc_zeroed};
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use skep_agent::{BLOB, Blob};
use skep_ebpf::Insn;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, PtRegs};
use skep_runtime::session::{
    HitFn, MAGIC, Proc, RetEntry, RetHead, ReturnFn, SITE_LINKS, SLOT_STACK, STUB_SIZE, SampleRecord, Site,
    ThreadEntry, link_kind, owner_word,
};
use support::{SLOTS, Session};

/// The two functions of the blob, at one address for all tests.
fn blob() -> (HitFn, ReturnFn) {
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
    let at = |offset: u64| (*base as u64 + offset) as *const c_void;
    // SAFETY: the blob's functions have these types; it says so itself.
    unsafe { (std::mem::transmute::<_, HitFn>(at(blob.hit)), std::mem::transmute::<_, ReturnFn>(at(blob.ret))) }
}

/// A probed process: this one.
struct World {
    session: Session,
    proc: &'static mut Proc,
    site: &'static mut Site,
    alive: *mut u32,
}

// SAFETY: what threads share is made for it.
unsafe impl Sync for World {}
// SAFETY: as above.
unsafe impl Send for World {}

/// Zeroed memory for a table, never freed.
fn table<T>(n: usize) -> *mut T {
    let layout = Layout::array::<T>(n).unwrap().align_to(4096).unwrap();
    // SAFETY: not of size zero.
    unsafe { alloc_zeroed(layout).cast() }
}

const THREADS: u32 = 64;
/// Where stubs would be; nothing is executed there.
const STUBS: u64 = 0x7000_0000;

impl World {
    /// One site with a link per program.
    fn new(maps: &[MapDef], links: &[(&[Insn], u32)], nret: u32) -> World {
        let mut session = Session::new(maps).unwrap();
        let mut has_return = 0;
        let indices: Vec<u32> = links
            .iter()
            .map(|&(insns, kind)| {
                has_return |= u32::from(kind == link_kind::RETURN);
                let mut program = Program::new("test", ProgType::Kprobe, "GPL", insns.to_vec());
                program.maps = maps.to_vec().into();
                let verified = skep_verifier::verify(program, &skep_verifier::Options::default()).unwrap();
                let compiled = skep_jit::compile(&verified, &skep_jit::Options::default()).unwrap();
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
        proc.control = session.control() as *const _ as u64;
        proc.shared = session.shared() as *const _ as u64;
        proc.maps = session.refs().as_ptr() as u64;
        proc.alive = alive as u64;
        proc.threads = table::<ThreadEntry>(THREADS as usize) as u64;
        proc.nthreads = THREADS;
        proc.stacks = table::<[u8; SLOT_STACK]>(SLOTS as usize) as u64;
        proc.rets = table::<RetEntry>(nret as usize) as u64;
        proc.nret = nret;
        proc.ret_head = table::<RetHead>(1) as u64;
        proc.stubs = STUBS;
        proc.fsgsbase = u32::from(fsgsbase());
        site.proc = proc as *const _ as u64;
        site.ip = 0x40_1000;
        *site.nlinks.get_mut() = links.len() as u32;
        *site.has_return.get_mut() = has_return;
        for (i, index) in indices.into_iter().enumerate().take(SITE_LINKS) {
            *site.links[i].get_mut() = index;
        }
        World { session, proc, site, alive }
    }

    /// A call of the probed function: its entry and, if there is a return probe, its return.
    fn call(&self) {
        let (hit, ret) = blob();
        // Where the caller's return address would be.
        let mut top = [0x1234_5678u64];
        let mut regs = PtRegs { rip: self.site.ip, rsp: top.as_mut_ptr() as u64, rdi: 42, ..PtRegs::default() };
        // SAFETY: site, process block and registers are of this process.
        unsafe {
            let stub = hit(&raw const *self.site, &raw mut regs);
            if stub != 0 {
                let entry = (stub - STUBS) / STUB_SIZE;
                assert_eq!((stub - STUBS) % STUB_SIZE, 0);
                std::ptr::write_volatile(top.as_mut_ptr(), entry);
                let real = ret(&raw const *self.proc, entry as u32, &raw mut regs);
                assert_eq!((real, regs.rip), (0x1234_5678, 0x1234_5678));
                assert_eq!(regs.rsp, top.as_ptr() as u64 + 8);
            }
        }
    }

    fn count(&self, link: u32, counter: impl Fn(&skep_runtime::session::LinkCount) -> &AtomicU64) -> u64 {
        self.session.count_of(link, counter)
    }

    fn all_slots_free(&self) -> bool {
        let (control, shared) = (self.session.control(), self.session.shared());
        (0..SLOTS).all(|i| shared.slot(control, i).unwrap().owner.load(Ordering::Relaxed) == 0)
    }
}

fn fsgsbase() -> bool {
    // SAFETY: no memory is touched. AT_HWCAP2 bit 1: the kernel lets user space use the instructions.
    unsafe { libc::getauxval(26) & 2 != 0 }
}

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

/// Adds one to element 0 of map 0, plainly, as only a per-CPU value may be; returns `ret`.
fn counting(ret: i32) -> Vec<Insn> {
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

fn percpu() -> MapDef {
    MapDef::new("counts", MapType::PercpuArray, 4, 8, 1)
}

/// The sum of a per-CPU value over the slots.
fn total(session: &Session) -> u64 {
    let value = session.maps()[0].lookup(&0u32.to_ne_bytes(), 0).unwrap();
    value.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).sum()
}

#[test]
fn hits_are_counted_exactly() {
    const CALLS: u64 = 50_000;
    let program = counting(0);
    let world = World::new(&[percpu()], &[(&program, link_kind::ENTRY), (&program, link_kind::RETURN)], 64);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| (0..CALLS).for_each(|_| world.call()));
        }
    });
    for link in 0..2 {
        assert_eq!(world.count(link, |c| &c.hits), 4 * CALLS);
        assert_eq!(world.count(link, |c| &c.missed), 0);
        assert_eq!(world.count(link, |c| &c.no_slot), 0);
    }
    assert_eq!(total(&world.session), 8 * CALLS);
    assert!(world.all_slots_free());
}

#[test]
fn more_threads_than_slots_lose_no_count() {
    const CALLS: u64 = 5_000;
    let program = counting(0);
    let world = World::new(&[percpu()], &[(&program, link_kind::ENTRY)], 1);
    std::thread::scope(|s| {
        for _ in 0..SLOTS * 3 {
            s.spawn(|| (0..CALLS).for_each(|_| world.call()));
        }
    });
    let hits = world.count(0, |c| &c.hits);
    assert_eq!(hits + world.count(0, |c| &c.no_slot), u64::from(SLOTS) * 3 * CALLS);
    assert_eq!(total(&world.session), hits);
}

#[test]
fn non_zero_returns_are_samples() {
    let world = World::new(&[percpu()], &[(&counting(7), link_kind::ENTRY), (&counting(8), link_kind::RETURN)], 4);
    world.call();
    let mut ring = world.session.maps()[1].ring_consumer().unwrap();
    let mut records = Vec::new();
    ring.poll(|bytes| {
        assert_eq!(bytes.len(), size_of::<SampleRecord>());
        // SAFETY: the record's bytes.
        records.push(unsafe { bytes.as_ptr().cast::<SampleRecord>().read_unaligned() });
    })
    .unwrap();
    let seen: Vec<_> = records.iter().map(|r| (r.link, r.ip, r.func, r.retval, r.pid)).collect();
    let pid = std::process::id();
    assert_eq!(seen, [(0, 0x40_1000, 0, 7, pid), (1, 0x1234_5678, 0x40_1000, 8, pid)]);
    assert_eq!((world.count(0, |c| &c.samples), world.count(0, |c| &c.lost)), (1, 0));
    // The ring holds 64 KiB: not all of these.
    (0..5000).for_each(|_| world.call());
    let (samples, lost) = (world.count(0, |c| &c.samples), world.count(0, |c| &c.lost));
    assert!(lost > 0, "the ring never filled up");
    assert_eq!(samples + lost, 5001);
}

#[test]
fn nothing_runs_without_a_controller_or_in_a_forked_child() {
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY), (&counting(0), link_kind::RETURN)], 4);
    world.call();
    world.session.control().enable.store(skep_runtime::session::OWNER_DIED, Ordering::Relaxed);
    world.call();
    assert_eq!(total(&world.session), 2);
    world.session.control().enable.store(1, Ordering::Relaxed);
    // SAFETY: the child does nothing but a hit and `_exit`.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            world.call();
            libc::_exit(i32::from(*world.alive != 0));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        assert_eq!(status, 0);
    }
    assert_eq!(total(&world.session), 2);
    world.call();
    assert_eq!(total(&world.session), 4);
}

#[test]
fn abandoned_return_entries_come_back() {
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::RETURN)], 8);
    let (hit, ret) = blob();
    let mut stack = vec![0u64; 64];
    // Each call is left by a jump: the stack is used for something else afterwards.
    let enter = |slot: &mut u64| {
        *slot = 0x1111;
        let mut regs = PtRegs { rip: world.site.ip, rsp: &raw mut *slot as u64, ..PtRegs::default() };
        // SAFETY: site and registers are of this process.
        let stub = unsafe { hit(&raw const *world.site, &raw mut regs) };
        if stub != 0 {
            *slot = stub + 6;
        }
        stub
    };
    for round in 0..100 {
        for slot in &mut stack[..8] {
            assert_ne!(enter(slot), 0, "round {round}");
        }
        stack.fill(0x5555);
    }
    // Entries whose functions are still running stay theirs.
    let stubs: Vec<u64> = stack[..8].iter_mut().map(enter).collect();
    assert_eq!(enter(&mut stack[8]), 0);
    assert_eq!(world.count(0, |c| &c.missed), 1);
    for (i, stub) in stubs.iter().enumerate() {
        let entry = (stub - STUBS) / STUB_SIZE;
        stack[i] = entry;
        let mut regs = PtRegs::default();
        // SAFETY: as above.
        assert_eq!(unsafe { ret(&raw const *world.proc, entry as u32, &raw mut regs) }, 0x1111);
    }
    assert_eq!(world.count(0, |c| &c.hits), 8);
}

#[test]
fn a_run_that_was_left_gives_its_slot_back() {
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY)], 1);
    world.call();
    // What a program leaves behind when a signal handler jumps out of it: the entry active, the slot taken, and the
    // stack pointer above the recorded one.
    // SAFETY: the tables of this world; nobody else uses them now.
    unsafe {
        let threads = std::slice::from_raw_parts(world.proc.threads as *const ThreadEntry, THREADS as usize);
        let entry = threads.iter().find(|t| t.key.load(Ordering::Relaxed) != 0).unwrap();
        let slot = world.session.shared().slot(world.session.control(), 2).unwrap();
        slot.owner.store(owner_word(5, entry.key.load(Ordering::Relaxed)), Ordering::Relaxed);
        entry.active.store(3, Ordering::Relaxed);
        let here = 0u8;
        entry.sp.store(&raw const here as u64 - 8192, Ordering::Relaxed);
        world.call();
        assert_eq!((world.count(0, |c| &c.hits), world.count(0, |c| &c.missed)), (2, 0));
        assert!(world.all_slots_free());
        // The same on another thread's stack, far away: no proof, and the guards say it is gone.
        entry.active.store(3, Ordering::Relaxed);
        entry.sp.store(&raw const here as u64 + 4096, Ordering::Relaxed);
        entry.reserved.store(0, Ordering::Relaxed);
        world.call();
        assert_eq!((world.count(0, |c| &c.hits), world.count(0, |c| &c.missed)), (3, 0));
    }
}

/// Counts calls in the handler of [`signals_during_programs`].
static IN_HANDLER: AtomicU64 = AtomicU64::new(0);
static HANDLER_ON: AtomicU32 = AtomicU32::new(0);
static WORLD: OnceLock<World> = OnceLock::new();

extern "C" fn on_signal(_: i32) {
    if HANDLER_ON.load(Ordering::Relaxed) != 0
        && let Some(world) = WORLD.get()
    {
        world.call();
        IN_HANDLER.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn signals_during_programs() {
    const CALLS: u64 = 60_000;
    // A program that runs for a while, so that signals hit it.
    let mut program = vec![insn(0xb7, 6, 0, 0, 500), insn(0x07, 6, 0, 0, -1), insn(0x55, 6, 0, -2, 0)];
    program.extend(counting(0));
    let links: [(&[Insn], u32); 2] = [(&program, link_kind::ENTRY), (&program, link_kind::RETURN)];
    let Ok(()) = WORLD.set(World::new(&[percpu()], &links, 64)) else { panic!("set once") };
    let world = WORLD.get().unwrap();
    // SAFETY: the handler uses nothing but hits, which may be called at any point.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        HANDLER_ON.store(1, Ordering::SeqCst);
        let (running, threads) = (AtomicU32::new(4), Mutex::new(Vec::new()));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    threads.lock().unwrap().push(libc::pthread_self());
                    (0..CALLS).for_each(|_| world.call());
                    running.fetch_sub(1, Ordering::SeqCst);
                    // The thread must be there for as long as signals are sent to it.
                    while HANDLER_ON.load(Ordering::SeqCst) != 0 {
                        std::thread::yield_now();
                    }
                });
            }
            while running.load(Ordering::SeqCst) != 0 {
                std::thread::sleep(std::time::Duration::from_micros(500));
                for &thread in threads.lock().unwrap().iter() {
                    libc::pthread_kill(thread, libc::SIGALRM);
                }
            }
            HANDLER_ON.store(0, Ordering::SeqCst);
        });
    }
    let calls = 4 * CALLS + IN_HANDLER.load(Ordering::SeqCst);
    let mut hits = 0;
    for link in 0..2 {
        let (h, m) = (world.count(link, |c| &c.hits), world.count(link, |c| &c.missed));
        println!("link {link}: {h} hits, {m} missed of {calls} calls");
        assert_eq!(world.count(link, |c| &c.no_slot), 0);
        assert_eq!(h + m, calls, "link {link}");
        assert!(m > 0, "no signal came during a program");
        hits += h;
    }
    assert_eq!(total(&world.session), hits);
    assert!(world.all_slots_free());
}

/// `siglongjmp` out of a handler that interrupted a program, by C code, since Rust has no `sigsetjmp`.
#[test]
fn siglongjmp_out_of_a_program() {
    const SOURCE: &str = include_str!("siglongjmp.c");
    let dir = std::env::temp_dir().join(format!("skep-agent-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, library) = (dir.join("siglongjmp.c"), dir.join("siglongjmp.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built =
        std::process::Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !built.is_ok_and(|s| s.success()) {
        println!("skipped: no C compiler");
        return;
    }
    let mut program = vec![insn(0xb7, 6, 0, 0, 2000), insn(0x07, 6, 0, 0, -1), insn(0x55, 6, 0, -2, 0)];
    program.extend(counting(0));
    let world = World::new(&[percpu()], &[(&program, link_kind::ENTRY)], 1);
    // SAFETY: the library's function has this type, and calls `hit` as a trampoline does.
    let jumps = unsafe {
        let path = CString::new(library.to_str().unwrap()).unwrap();
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let run = libc::dlsym(handle, c"run".as_ptr());
        type Run = unsafe extern "C" fn(HitFn, *const Site, *const PtRegs, u64) -> u64;
        let run = std::mem::transmute::<*mut c_void, Run>(run);
        let regs = PtRegs { rip: world.site.ip, ..PtRegs::default() };
        run(blob().0, &raw const *world.site, &raw const regs, 20_000)
    };
    std::fs::remove_dir_all(&dir).unwrap();
    let (hits, missed) = (world.count(0, |c| &c.hits), world.count(0, |c| &c.missed));
    println!("{jumps} jumps out, {hits} hits, {missed} missed of {} calls", 20_000);
    // A jump may come before the hit is counted.
    assert!(jumps > 0 && hits <= 20_000 && hits + jumps >= 20_000);
    assert_eq!(missed, 0);
    assert_eq!(world.count(0, |c| &c.no_slot), 0);
}
