//! Hits through the blob in this process: counts, samples, signals, forks, jumps out of programs.

mod asked;
mod switched;
pub(crate) mod world;

use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use skep_ebpf::Insn;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, PtRegs, map_flags};
use skep_runtime::session::{
    HitFn, NO_LINK, RetEntry, RetHead, SEVERAL_LINKS, STUB_SIZE, SampleRecord, Site, ThreadEntry, link_kind,
    link_state, owner_word,
};
use world::support::SLOTS;
use world::{STUBS, THREADS, World, blob, counting, insn, percpu, plain, total};

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
fn programs_are_interpreted_where_machine_code_cannot_be_run() {
    let mut world = World::new(&[percpu()], &[(&counting(7), link_kind::ENTRY)], 1);
    world.proc.keeps = 0;
    world.call();
    world.proc.executes = 0;
    world.call();
    assert_eq!((world.count(0, |c| &c.hits), world.count(0, |c| &c.samples)), (2, 2));
    assert_eq!(total(&world.session), 2);
    // Without an image of bytecode nothing is run.
    world.session.forget_bytecode(0);
    world.call();
    assert_eq!((world.count(0, |c| &c.hits), total(&world.session)), (3, 2));
}

/// The entries of threads that have been hit.
fn threads(world: &World) -> impl Iterator<Item = &ThreadEntry> {
    // SAFETY: the table of this world.
    let all = unsafe { std::slice::from_raw_parts(world.proc.threads as *const ThreadEntry, THREADS as usize) };
    all.iter().filter(|t| t.key.load(Ordering::Relaxed) != 0)
}

#[test]
fn threads_keep_slots_as_long_as_half_of_them_are_left() {
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY)], 1);
    let kept = || threads(&world).filter(|t| t.kept.load(Ordering::Relaxed) != 0).count() as u32;
    // Wherever their bases lead: the first ones all get one of those that can be kept.
    let barrier = std::sync::Barrier::new(SLOTS as usize + 1);
    let first = std::sync::Barrier::new(SLOTS as usize / 2 + 1);
    std::thread::scope(|s| {
        for _ in 0..SLOTS / 2 {
            s.spawn(|| {
                world.call();
                first.wait();
                barrier.wait();
            });
        }
        first.wait();
        assert_eq!(kept(), SLOTS / 2);
        for _ in SLOTS / 2..SLOTS {
            s.spawn(|| {
                world.call();
                barrier.wait();
            });
        }
        barrier.wait();
    });
    assert_eq!(kept(), SLOTS / 2);
    assert_eq!(world.count(0, |c| &c.hits), u64::from(SLOTS));
}

#[test]
fn a_stack_that_goes_from_thread_to_thread_is_no_thread() {
    const ROUNDS: u64 = 1000;
    #[repr(align(4096))]
    struct Stack([PtRegs; 2]);
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY)], 1);
    // Coroutines are resumed by other threads, in turn or, on one page, at the same time.
    let turns = Mutex::new(Stack(Default::default()));
    let site = &raw const *world.site as usize;
    let hit = |stack: &mut Stack| {
        // SAFETY: site and registers are of this process.
        assert_eq!(unsafe { blob().0(site as *const Site, &raw mut stack.0[0]) }, 0);
    };
    std::thread::scope(|s| {
        for _ in 0..SLOTS {
            s.spawn(|| (0..ROUNDS).for_each(|_| hit(&mut turns.lock().unwrap())));
        }
    });
    let page = std::sync::Barrier::new(2);
    let mut pair = Stack(Default::default());
    std::thread::scope(|s| {
        for regs in &mut pair.0 {
            let page = &page;
            s.spawn(move || {
                page.wait();
                for _ in 0..ROUNDS {
                    // SAFETY: as above.
                    assert_eq!(unsafe { blob().0(site as *const Site, &raw mut *regs) }, 0);
                }
            });
        }
    });
    let all = u64::from(SLOTS) * ROUNDS + 2 * ROUNDS;
    assert_eq!((world.count(0, |c| &c.hits), world.count(0, |c| &c.missed)), (all, 0));
    assert_eq!(total(&world.session), all);
}

#[test]
fn idle_threads_give_up_their_slots() {
    const CALLS: u64 = 1000;
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY)], 1);
    // As many threads as there are slots: half of them keep theirs and do nothing more.
    let barrier = std::sync::Barrier::new(SLOTS as usize * 2);
    std::thread::scope(|s| {
        for _ in 0..SLOTS {
            s.spawn(|| {
                world.call();
                barrier.wait();
                barrier.wait();
                // They take one again, and may find that there is none at the moment.
                world.call();
            });
        }
        for _ in 0..SLOTS {
            s.spawn(|| {
                barrier.wait();
                (0..CALLS).for_each(|_| world.call());
                barrier.wait();
            });
        }
    });
    let (hits, none) = (world.count(0, |c| &c.hits), world.count(0, |c| &c.no_slot));
    assert_eq!(hits + none, u64::from(SLOTS) * (CALLS + 2));
    assert_eq!((none, total(&world.session)), (0, hits));
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

/// Return entries that are neither in use, nor kept free by a thread, nor on the list of free ones, nor fresh; or that are more
/// than one of that.
fn strays(world: &World) -> Vec<u32> {
    // SAFETY: the tables of this world.
    let (rets, head) = unsafe {
        let rets = std::slice::from_raw_parts(world.proc.rets as *const RetEntry, world.proc.nret as usize);
        (rets, &*(world.proc.ret_head as *const RetHead))
    };
    let fresh = head.fresh.load(Ordering::Relaxed);
    let mut states: Vec<u32> = rets.iter().map(|e| e.used.load(Ordering::Relaxed) & 1).collect();
    states.iter_mut().skip(fresh as usize).for_each(|n| *n += 1);
    let mut next = head.free.load(Ordering::Relaxed) as u32;
    while let Some(index) = next.checked_sub(1) {
        states[index as usize] += 1;
        next = rets[index as usize].next.load(Ordering::Relaxed);
    }
    for thread in threads(world) {
        for (place, kept) in thread.rets.iter().enumerate() {
            let home = &raw const *thread as u64 + place as u64;
            let index = kept.load(Ordering::Relaxed).wrapping_sub(1) as usize;
            let free = thread.rets_free.load(Ordering::Relaxed) & 1 << place != 0;
            if free {
                assert_eq!(rets[index].home.load(Ordering::Relaxed), home);
                states[index] += 1;
            }
        }
    }
    (0..).zip(states).filter(|&(_, n)| n != 1).map(|(index, _)| index).collect()
}

#[test]
fn return_entries_are_found_again_wherever_functions_return() {
    const ROUNDS: usize = 2000;
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::RETURN)], 64);
    let (hit, ret) = blob();
    let enter = |slot: &mut u64| {
        *slot = 0x1234;
        let mut regs = PtRegs { rip: world.site.ip, rsp: &raw mut *slot as u64, ..PtRegs::default() };
        // SAFETY: site and registers are of this process.
        let stub = unsafe { hit(&raw const *world.site, &raw mut regs) };
        assert_ne!(stub, 0);
        *slot = (stub - STUBS) / STUB_SIZE;
    };
    let leave = |slot: &mut u64| {
        let mut regs = PtRegs { rsp: &raw mut *slot as u64 + 8, ..PtRegs::default() };
        // SAFETY: as above.
        assert_eq!(unsafe { ret(&raw const *world.proc, *slot as u32, &raw mut regs) }, 0x1234);
    };
    // Functions of up to seven coroutines, which one thread enters and any of two leaves.
    let under_way = Mutex::new(vec![0u64; 7].into_boxed_slice());
    let turn = std::sync::Barrier::new(2);
    std::thread::scope(|s| {
        for me in 0..2 {
            let (world, under_way, turn) = (&world, &under_way, &turn);
            s.spawn(move || {
                for round in 0..ROUNDS {
                    let deep = round % 7 + 1;
                    turn.wait();
                    if round / 7 % 2 == me {
                        under_way.lock().unwrap()[..deep].iter_mut().for_each(enter);
                    }
                    turn.wait();
                    let mut all = under_way.lock().unwrap();
                    all[..deep]
                        .iter_mut()
                        .enumerate()
                        .filter(|(n, _)| (n + round / 3) % 2 == me)
                        .for_each(|(_, slot)| leave(slot));
                    drop(all);
                    turn.wait();
                    if me == 0 {
                        assert_eq!(strays(world), [0u32; 0], "round {round}");
                    }
                }
            });
        }
    });
    let calls: u64 = (0..ROUNDS as u64).map(|round| round % 7 + 1).sum();
    assert_eq!((world.count(0, |c| &c.hits), world.count(0, |c| &c.missed)), (calls, 0));
}

#[test]
fn a_run_that_was_left_gives_its_slot_back() {
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY)], 1);
    world.call();
    // What a program leaves behind when a signal handler jumps out of it: the thread taken, and the slot.
    let thread = threads(&world).next().unwrap();
    let key = thread.key.load(Ordering::Relaxed);
    let slot = world.session.shared().slot(world.session.control(), 2).unwrap();
    let leaves = |guards: *const u64| {
        slot.owner.store(owner_word(5, key), Ordering::Relaxed);
        thread.active.store(3, Ordering::Relaxed);
        thread.guards.store(guards as u64, Ordering::Relaxed);
    };
    let counts = || (world.count(0, |c| &c.hits), world.count(0, |c| &c.missed));
    /// Guards of a run with its registers behind them.
    #[repr(C)]
    struct Frames {
        guards: [u64; 2],
        regs: PtRegs,
    }
    let mut frames = Frames { guards: [0; 2], regs: PtRegs::default() };
    let at = &raw const frames.guards as u64;
    let sp = &raw const frames.regs as u64;
    let whole = [sp, key ^ at];
    // Its frames are whole, and the present hit is elsewhere: it may go on some time.
    frames.guards = whole;
    leaves(frames.guards.as_ptr());
    world.call();
    assert_eq!((counts(), thread.guards.load(Ordering::Relaxed)), ((1, 1), at));
    // Its frames are whole, and the present hit's lie over them.
    // SAFETY: site and registers are of this process.
    assert_eq!(unsafe { plain().0(&raw const *world.site, &raw mut frames.regs) }, 0);
    assert_eq!(counts(), (2, 1));
    assert!(world.all_slots_free());
    // Other things stand where its guards were, or nothing can.
    frames.guards = whole;
    frames.guards[1] ^= 2;
    leaves(frames.guards.as_ptr());
    world.call();
    assert_eq!(counts(), (3, 1));
    leaves(std::ptr::without_provenance(8));
    world.call();
    assert_eq!(counts(), (4, 1));
    assert!(world.all_slots_free());
}

#[test]
fn threads_without_tls_base_are_told_apart_by_id() {
    const CALLS: u64 = 10_000;
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY)], 1);
    world.proc.fsgsbase = 0;
    std::thread::scope(|s| {
        for _ in 0..SLOTS {
            s.spawn(|| (0..CALLS).for_each(|_| world.call()));
        }
    });
    assert_eq!(world.count(0, |c| &c.hits), u64::from(SLOTS) * CALLS);
    assert_eq!(total(&world.session), u64::from(SLOTS) * CALLS);
}

/// Stores r0 of a helper called with r1 = context, r2 = the value of array map 0, and these arguments.
fn storing(id: i32, r3: i32, r4: i32) -> Vec<Insn> {
    vec![
        insn(0x18, 2, 6, 0, 0),
        insn(0, 0, 0, 0, 8),
        insn(0xb7, 3, 0, 0, r3),
        insn(0xb7, 4, 0, 0, r4),
        insn(0x85, 0, 0, 0, id),
        insn(0x18, 1, 6, 0, 0),
        insn(0, 0, 0, 0, 0),
        insn(0x7b, 1, 0, 0, 0),
        insn(0xb7, 0, 0, 0, 0),
        insn(0x95, 0, 0, 0, 0),
    ]
}

fn words(world: &World) -> Vec<u64> {
    let bytes = world.session.maps()[0].lookup(&0u32.to_ne_bytes(), 0).unwrap();
    bytes.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().unwrap())).collect()
}

#[test]
fn call_chains_follow_frame_pointers_and_stubs() {
    const GET_STACK: i32 = 67;
    let out = MapDef { flags: map_flags::MMAPABLE, ..MapDef::new("out", MapType::Array, 4, 136, 1) };
    let program = storing(GET_STACK, 64, 0);
    let world = World::new(&[out], &[(&program, link_kind::ENTRY), (&program, link_kind::RETURN)], 8);
    // Code with a call, whose return address is on top of the stack.
    let code = [0xe8u8, 1, 2, 3, 4, 0x90];
    let behind_call = code.as_ptr() as u64 + 5;
    // Two frames: saved frame pointer, return address. The second function's return address is a stub's.
    let mut stack = [0u64; 16];
    let base = stack.as_ptr() as u64;
    stack[4..6].copy_from_slice(&[base + 8 * 8, 0xaaaa]);
    stack[8..10].copy_from_slice(&[0, STUBS + 3 * STUB_SIZE + 6]);
    let rets = world.proc.rets as *const RetEntry;
    // SAFETY: the table of this world.
    unsafe { (*rets.add(3)).ret.store(0xbbbb, Ordering::Relaxed) };
    stack[2] = behind_call;
    let regs = PtRegs { rip: world.site.ip, rsp: base + 16, rbp: base + 32, ..PtRegs::default() };
    let (hit, ret) = blob();
    let mut at_entry = regs;
    // SAFETY: site and registers are of this process.
    let stub = unsafe { hit(&raw const *world.site, &raw mut at_entry) };
    let seen = words(&world);
    assert_eq!(seen[..5], [4 * 8, world.site.ip, behind_call, 0xaaaa, 0xbbbb]);
    // Behind the return the chain begins with the return address.
    stack[2] = (stub - STUBS) / STUB_SIZE;
    let mut at_return = PtRegs { rsp: regs.rsp + 8, ..regs };
    // SAFETY: as above.
    let real = unsafe { ret(&raw const *world.proc, stack[2] as u32, &raw mut at_return) };
    let seen = words(&world);
    assert_eq!(seen[..4], [3 * 8, behind_call, 0xaaaa, 0xbbbb]);
    assert_eq!(real, behind_call);
}

#[test]
fn stack_flags_and_errors() {
    let out = MapDef { flags: map_flags::MMAPABLE, ..MapDef::new("out", MapType::Array, 4, 136, 1) };
    // Size, flags, result: a chain of one, since the frame pointer is zero.
    for (size, flags, expect) in
        [(64, 0, 8i64), (64, 256, 8), (64, 1, -14), (63, 0, -22), (64, 512, -22), (64, 256 + 2048, 32), (8, 0, 8)]
    {
        let world = World::new(std::slice::from_ref(&out), &[(&storing(67, size, flags), link_kind::ENTRY)], 1);
        world.call();
        let seen = words(&world);
        assert_eq!(seen[0] as i64, expect, "size {size}, flags {flags:#x}");
        match expect {
            8 => assert_eq!(seen[1..3], [world.site.ip, 0]),
            // Without build ids: status 2, and the address.
            32 => assert_eq!((seen[1] as u32, seen[4]), (2, world.site.ip)),
            _ => assert_eq!(seen[1..9], [0; 8]),
        }
    }
}

#[test]
fn programs_know_their_link_and_place() {
    let out = MapDef { flags: map_flags::MMAPABLE, ..MapDef::new("out", MapType::Array, 4, 136, 1) };
    for (id, expect) in [(173, 0x40_1000), (174, 100)] {
        let world = World::new(std::slice::from_ref(&out), &[(&storing(id, 0, 0), link_kind::ENTRY)], 1);
        world.call();
        assert_eq!(words(&world)[0], expect, "helper {id}");
    }
}

#[test]
fn clocks_are_those_of_the_system() {
    const KTIME_GET_NS: i32 = 5;
    let out = MapDef { flags: map_flags::MMAPABLE, ..MapDef::new("out", MapType::Array, 4, 136, 1) };
    let world = World::new(&[out], &[(&storing(KTIME_GET_NS, 0, 0), link_kind::ENTRY)], 1);
    let now = || {
        let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes the timespec.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut ts) };
        ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
    };
    // First by system call or on the way to the vDSO, then by what was found.
    for _ in 0..3 {
        let before = now();
        world.call();
        assert!((before..=now()).contains(&words(&world)[0]));
    }
    // SAFETY: the table of this world.
    let clock = unsafe { (*(world.proc.ret_head as *const RetHead)).clock.load(Ordering::Relaxed) };
    println!("clock function at {clock:#x}");
    assert_ne!(clock, 0);
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

/// Hits the world's site 20,000 times from C code whose signal handler leaves by `siglongjmp`, since Rust has no
/// `sigsetjmp`. Returns the number of jumps; none if there is no C compiler.
fn jump_out_of(world: &World, name: &str) -> Option<u64> {
    const SOURCE: &str = include_str!("siglongjmp.c");
    // One timer, one handler.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = std::env::temp_dir().join(format!("skep-agent-test-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, library) = (dir.join("siglongjmp.c"), dir.join("siglongjmp.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built =
        std::process::Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !built.is_ok_and(|s| s.success()) {
        println!("skipped: no C compiler");
        return None;
    }
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
    println!("{name}: {jumps} jumps out, {hits} hits, {missed} missed of {} calls", 20_000);
    // A jump may come before the hit is counted.
    assert!(jumps > 0 && hits <= 20_000 && hits + jumps >= 20_000);
    assert_eq!(missed, 0);
    assert_eq!(world.count(0, |c| &c.no_slot), 0);
    Some(jumps)
}

#[test]
fn siglongjmp_out_of_a_program() {
    let mut program = vec![insn(0xb7, 6, 0, 0, 2000), insn(0x07, 6, 0, 0, -1), insn(0x55, 6, 0, -2, 0)];
    program.extend(counting(0));
    jump_out_of(&World::new(&[percpu()], &[(&program, link_kind::ENTRY)], 1), "loop");
}

/// What such a program held in maps is given back: locks, elements, records.
#[test]
fn siglongjmp_out_of_map_operations() {
    const KEYS: u32 = 32;
    for hash in [MapType::Hash, MapType::LruHash] {
        let of_map = |id: i32, map: i32| {
            let mut call = vec![insn(0x18, 1, 5, 0, map), insn(0, 0, 0, 0, 0), insn(0xbf, 2, 10, 0, 0)];
            call.extend([insn(0x07, 2, 0, 0, -4), insn(0xbf, 3, 10, 0, 0), insn(0x07, 3, 0, 0, -16)]);
            call.extend([insn(0xb7, 4, 0, 0, 0), insn(0x85, 0, 0, 0, id)]);
            call
        };
        // For each key: new, replaced, deleted, new; and a record.
        let mut body = vec![insn(0xbf, 1, 6, 0, 0), insn(0x57, 1, 0, 0, KEYS as i32 - 1)];
        body.extend([insn(0x63, 10, 1, -4, 0), insn(0x7b, 10, 6, -16, 0)]);
        [2, 2, 3, 2].iter().for_each(|&id| body.extend(of_map(id, 1)));
        body.extend([insn(0x18, 1, 5, 0, 2), insn(0, 0, 0, 0, 0), insn(0xbf, 2, 10, 0, 0)]);
        body.extend([insn(0x07, 2, 0, 0, -16), insn(0xb7, 3, 0, 0, 8), insn(0xb7, 4, 0, 0, 0)]);
        body.extend([insn(0x85, 0, 0, 0, 130), insn(0x07, 6, 0, 0, -1)]);
        let back = -(body.len() as i16) - 1;
        let mut program = vec![insn(0xb7, 6, 0, 0, 8)];
        program.extend(body);
        program.push(insn(0x55, 6, 0, back, 0));
        program.extend(counting(0));
        let maps = [percpu(), MapDef::new("hash", hash, 4, 8, KEYS), MapDef::new("ring", MapType::Ringbuf, 0, 0, 4096)];
        let world = World::new(&maps, &[(&program, link_kind::ENTRY)], 1);
        if jump_out_of(&world, if hash == MapType::Hash { "hash" } else { "lru" }).is_none() {
            return;
        }
        // The last one may have been left: any later hit gives back what it held.
        let before = world.count(0, |c| &c.hits);
        assert!((0..1000).any(|_| {
            world.call();
            world.count(0, |c| &c.hits) > before
        }));
        assert!(world.all_slots_free());
        let (map, ring) = (&world.session.maps()[1], &world.session.maps()[2]);
        for key in 0..KEYS {
            assert_eq!(map.update(&key.to_ne_bytes(), &[1; 8], 0), Ok(()), "{hash}: key {key}");
        }
        assert_eq!(map.entries().len(), KEYS as usize, "{hash}");
        let mut consumer = ring.ring_consumer().unwrap();
        assert!(consumer.poll(|_| ()).unwrap() > 0);
        world.call();
        assert_eq!(consumer.poll(|_| ()), Ok(8), "{hash}");
        assert!(world.all_slots_free());
    }
}

#[test]
fn functions_with_return_probes_alone_are_entered_in_few_registers() {
    let mut world = World::new(&[percpu()], &[(&counting(0), link_kind::RETURN)], 64);
    let mut stack = asked::Stack::new(&mut world);
    let (site, proc) = (&raw const *world.site, &raw const *world.proc);
    // What the trampoline does where it is told to go on.
    let slowly = |stack: &mut asked::Stack| -> u64 {
        // SAFETY: site and registers are of this process, and lie where the trampoline's would.
        unsafe { plain().0(site, stack.regs()) }
    };
    let first = world.proc.stubs;
    // SAFETY: the table of this world.
    let entry = |n: usize| unsafe { &*(world.proc.rets as *const RetEntry).add(n) };
    let leave = |stack: &mut asked::Stack, n: u32| {
        // SAFETY: as above; the function has returned.
        assert_eq!(unsafe { plain().1(proc, n, stack.regs()) }, asked::RETURN);
    };
    // The thread was not seen here, and has no entry.
    assert!(!stack.ask());
    assert_eq!(slowly(&mut stack), first);
    leave(&mut stack, 0);
    for _ in 0..3 {
        assert!(stack.ask());
        let e = entry(0);
        let words = [&e.ret, &e.body, &e.sp, &e.site].map(|w| w.load(Ordering::Relaxed));
        assert_eq!(words, [asked::RETURN, world.site.body, stack.top(), site as u64]);
        assert_eq!(e.used.load(Ordering::Relaxed) & 1, 1);
        // Of a function that it calls: its first entry is in use.
        assert!(!stack.ask());
        assert_eq!(slowly(&mut stack), first + STUB_SIZE);
        leave(&mut stack, 1);
        leave(&mut stack, 0);
    }
    assert_eq!(strays(&world), [0u32; 0]);

    let refused = |stack: &mut asked::Stack, word: &AtomicU32, value: u32| {
        let before = word.swap(value, Ordering::Relaxed);
        assert!(!stack.ask());
        word.store(before, Ordering::Relaxed);
        assert!(stack.ask());
        leave(stack, 0);
    };
    let control = world.session.control();
    let link = &control.link(0).unwrap().state;
    refused(&mut stack, &control.enable, skep_runtime::session::OWNER_DIED);
    refused(&mut stack, link, link_state::OFF);
    refused(&mut stack, link, link_state::TYPED);
    for on_return in [NO_LINK, SEVERAL_LINKS] {
        let before = world.site.on_return.swap(on_return, Ordering::Relaxed);
        assert!(!stack.ask());
        world.site.on_return.store(before, Ordering::Relaxed);
    }
    world.site.on_entry.store(world.site.on_return.load(Ordering::Relaxed), Ordering::Relaxed);
    assert!(!stack.ask());
    world.site.on_entry.store(NO_LINK, Ordering::Relaxed);
    // Another thread on the same stack; then a child.
    std::thread::scope(|s| s.spawn(|| assert!(!stack.ask())).join().unwrap());
    // SAFETY: the child asks, hits, and `_exit`s.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let refused = !stack.ask() && slowly(&mut stack) == 0;
            libc::_exit(i32::from(!refused));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        assert_eq!(status, 0);
    }
    assert!(stack.ask());
    leave(&mut stack, 0);
    assert_eq!((world.count(0, |c| &c.hits), world.count(0, |c| &c.missed)), (11, 0));
}

/// What a child finds that is forked, by a signal handler, in the middle of a program: a thread that runs nothing.
#[test]
fn a_run_that_a_child_inherits_is_its_parents() {
    let world = World::new(&[percpu()], &[(&counting(0), link_kind::ENTRY), (&counting(0), link_kind::RETURN)], 4);
    world.call();
    let (control, shared) = (world.session.control(), world.session.shared());
    let busy = || (0..SLOTS).filter(|&i| shared.slot(control, i).unwrap().is_busy()).count();
    let thread = threads(&world).next().unwrap();
    let kept = shared.slot(control, thread.last.load(Ordering::Relaxed)).unwrap();
    // As in the middle of a run.
    thread.guards.store(&raw const world as u64, Ordering::Relaxed);
    kept.taken.fetch_or(1, Ordering::Relaxed);
    // SAFETY: the child makes hits and `_exit`s.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let wiped = threads(&world).next().is_none();
            world.call();
            libc::_exit(i32::from(!wiped || busy() != 1 || threads(&world).next().is_some()));
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        assert_eq!(status, 0);
    }
    assert_eq!((busy(), total(&world.session)), (1, 2));
}
