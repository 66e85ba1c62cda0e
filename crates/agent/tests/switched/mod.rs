//! Coroutines that a signal handler switches, at any instruction: what was interrupted first goes on first.
//!
//! The processor's trap flag stops the first one at some instruction of its hit; the second one hits the same function, and is
//! stopped there in turn; the first one goes on to its end, then the second. Of the pairs of instructions every 17th or 71st of both has its
//! turn; `SKEP_STEP` says how many.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI64, AtomicPtr};

use libc::ucontext_t;
use skep_ebpf::Insn;
use skep_ebpf::uapi::PtRegs;
use skep_runtime::session::{Site, link_kind};

use super::threads;
use super::world::{World, blob, counting, insn, percpu, total};

/// Instructions until the running coroutine is stopped, and which contexts are switched then.
static LEFT: AtomicI64 = AtomicI64::new(0);
static FROM: AtomicPtr<ucontext_t> = AtomicPtr::new(std::ptr::null_mut());
static TO: AtomicPtr<ucontext_t> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn on_step(_: i32, _: *mut libc::siginfo_t, interrupted: *mut ucontext_t) {
    let left = LEFT.fetch_sub(1, Relaxed) - 1;
    if left == 0 {
        // SAFETY: the kernel's context of this signal; the other two live as long as the test.
        unsafe {
            (*interrupted).uc_mcontext.gregs[libc::REG_EFL as usize] &= !0x100;
            libc::swapcontext(FROM.load(Relaxed), TO.load(Relaxed));
        }
    }
}

/// Keeps a word of its own on its stack, counts, and returns 1 if the word is another's then.
fn keeping() -> Vec<Insn> {
    let mut insns = vec![insn(0xbf, 6, 1, 0, 0), insn(0x79, 1, 6, 112, 0), insn(0x7b, 10, 1, -16, 0)];
    insns.extend(counting(0));
    insns.truncate(insns.len() - 2);
    insns.extend([
        insn(0x79, 1, 10, -16, 0),
        insn(0x79, 2, 6, 112, 0),
        insn(0xb7, 0, 0, 0, 0),
        insn(0x1d, 1, 2, 1, 0),
        insn(0xb7, 0, 0, 0, 1),
        insn(0x95, 0, 0, 0, 0),
    ]);
    insns
}

/// Two coroutines, and what they hit.
struct Pair {
    site: *const Site,
    first: UnsafeCell<ucontext_t>,
    second: UnsafeCell<ucontext_t>,
}

static PAIR: AtomicPtr<Pair> = AtomicPtr::new(std::ptr::null_mut());
/// At which instruction the second one is to be stopped.
static STOP: AtomicI64 = AtomicI64::new(0);
/// How far the second one is: it has not begun, is stopped, has ended after it was stopped, or without that.
static STATE: AtomicI64 = AtomicI64::new(0);
const WAITS: i64 = 0;
const STOPPED: i64 = 1;
const RESUMED: i64 = 2;
const ENDED: i64 = 3;

/// Hits the site with this `rdi`, and switches at the `n`th instruction from here, if the hit has as many.
fn hit(site: *const Site, rdi: u64, n: i64, from: *mut ucontext_t, to: *mut ucontext_t) {
    let mut top = 0x1234_5678u64;
    let mut regs = PtRegs { rsp: &raw mut top as u64, rdi, ..PtRegs::default() };
    let hit = blob().0;
    FROM.store(from, Relaxed);
    TO.store(to, Relaxed);
    LEFT.store(n, Relaxed);
    // SAFETY: site and registers are of this process; the flag is set for the call alone, in whose middle nothing but the
    // handler sees it.
    unsafe {
        std::arch::asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "call {hit}",
            "pushfq",
            "and qword ptr [rsp], -0x101",
            "popfq",
            hit = in(reg) hit,
            in("rdi") site, in("rsi") &raw mut regs,
            clobber_abi("C"),
        );
    }
}

extern "C" fn second() {
    // SAFETY: the test's, which waits.
    let pair = unsafe { &*PAIR.load(Relaxed) };
    STATE.store(STOPPED, Relaxed);
    hit(pair.site, 2, STOP.load(Relaxed), pair.second.get(), pair.first.get());
    STATE.store(if LEFT.load(Relaxed) > 0 { ENDED } else { RESUMED }, Relaxed);
}

/// Every pair of instructions, or one of `step` times `step`: how many there were.
fn all_pairs(world: &World, step: usize) -> u64 {
    // SAFETY: zero is valid for contexts.
    let contexts = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let pair =
        Pair { site: &raw const *world.site, first: UnsafeCell::new(contexts.0), second: UnsafeCell::new(contexts.1) };
    PAIR.store((&raw const pair).cast_mut(), Relaxed);
    let mut stack = vec![0u8; 64 << 10];
    let mut pairs = 0;
    for first in (1..).step_by(step) {
        for at in (1 + first % step as i64..).step_by(step) {
            STOP.store(at, Relaxed);
            STATE.store(WAITS, Relaxed);
            // SAFETY: contexts and stack live until both coroutines have ended.
            unsafe {
                let context = pair.second.get();
                assert_eq!(libc::getcontext(context), 0);
                (*context).uc_stack.ss_sp = stack.as_mut_ptr().cast();
                (*context).uc_stack.ss_size = stack.len();
                (*context).uc_link = pair.first.get();
                libc::makecontext(context, second, 0);
                hit(pair.site, 1, first, pair.first.get(), context);
                if STATE.load(Relaxed) == STOPPED {
                    libc::swapcontext(pair.first.get(), context);
                }
            }
            let busy = threads(world).any(|t| t.guards.load(Relaxed) != 0);
            assert!(!busy && world.count(0, |c| &c.samples) == 0, "stopped at {first} and at {at}");
            match STATE.load(Relaxed) {
                WAITS => return pairs,
                ENDED => break,
                _ => pairs += 1,
            }
        }
    }
    unreachable!()
}

#[test]
fn coroutines_that_a_handler_switches_share_no_slot() {
    // SAFETY: the handler is made for steps; nothing else traps here.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()), 0);
    }
    let step = std::env::var("SKEP_STEP").ok().and_then(|s| s.parse().ok());
    for (links, keeps, usual) in [(1, 1, 17), (2, 1, 71), (1, 0, 71)] {
        let program = keeping();
        let links = vec![(program.as_slice(), link_kind::ENTRY); links];
        let world = World::new(&[percpu()], &links, 1);
        world.proc.keeps *= keeps;
        let start = std::time::Instant::now();
        let pairs = all_pairs(&world, step.unwrap_or(usual));
        println!("{} links: {pairs} pairs of instructions, {:?}", links.len(), start.elapsed());
        let (hits, missed) = (world.count(0, |c| &c.hits), world.count(0, |c| &c.missed));
        assert!(pairs > 20 && hits + missed > 2 * pairs, "{hits} hits, {missed} missed, {pairs} pairs");
        assert_eq!(total(&world.session), hits * links.len() as u64);
        assert!(missed > 0 && world.all_slots_free());
    }
}
