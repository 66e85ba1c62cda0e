//! Guards: sites on the C library's functions that change signal actions and masks, on those that put a process under a
//! seccomp filter, and on libgcc's that finds what describes a frame.
//!
//! A thread that runs into a breakpoint with `SIGTRAP` blocked is killed by the kernel, and one whose process has replaced
//! our handler likewise. So `SIGTRAP` is taken out of every set of signals that is to be blocked, and an action for it is
//! kept in [`TrapState`] instead of the kernel. This goes on without a controller, for as long as the text is patched.
//!
//! # Invariants
//!
//! * Memory of the target is changed only where its call asks for it: an edited set is a copy. A copy is never changed
//!   once it was made, so that it may be read at any later time; equal sets share one.
//! * A child made by `vfork` shares all memory but not the actions: there the call goes through as it is.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use skep_ebpf::uapi::PtRegs;
use skep_maps::calls;

use crate::hit::hit_any;
use crate::ret_entry::STUB_CALL;
use crate::session::{Proc, STUB_SIZE, Site, TRAP_MASKS, TrapState, guard};
use crate::trap::{self, Action, SA_RESTORER, SIGTRAP, TRAP_BIT};
use crate::{clock, read, sys};

/// The C library's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SigAction {
    handler: u64,
    mask: u64,
    /// Signals beyond those that there are.
    more: [u64; 15],
    flags: u32,
    padding: u32,
    restorer: u64,
}

const _: () = assert!(size_of::<SigAction>() == 152 && core::mem::offset_of!(SigAction, flags) == 136);

type SigActionFn = unsafe extern "C" fn(signal: i32, new: *const SigAction, old: *mut SigAction) -> i32;

/// Flags that the kernel keeps.
const KEPT_FLAGS: u64 = 0xdc00_0807;
/// `SIGKILL` and `SIGSTOP`, which no set blocks.
const UNBLOCKABLE: u64 = 1 << 8 | 1 << 18;
/// `SIG_UNBLOCK`.
const UNBLOCK: u64 = 1;
/// Of system calls that put a process under a seccomp filter: numbers and arguments.
const PRCTL: u64 = 157;
const PR_SET_SECCOMP: u64 = 22;
const STRICT: u64 = 1;
const FILTER: u64 = 2;
const SECCOMP: u64 = 317;
const SET_STRICT: u64 = 0;
const SET_FILTER: u64 = 1;
const INT: u64 = 0xffff_ffff;
/// How long a thread may take from its look at what is allowed to its call, in nanoseconds.
const SETTLE: u64 = 2_000_000;
/// Places that one look-up of a set tries.
const PROBES: usize = 64;

/// A guarded function is called; see [`GuardFn`](crate::session::GuardFn).
///
/// # Safety
/// `site` is a [`Site`] of this process with a guard, `regs` the registers at the entry of its function.
pub unsafe extern "C" fn guard(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        if (*site).nlinks.load(Relaxed) != 0 {
            // A guarded function has no return probes, so there is no stub to go through.
            hit_any(&*site, regs);
        }
        let (site, regs) = (&*site, &mut *regs);
        let proc = &*(site.proc as *const Proc);
        match site.guard {
            guard::UNWIND => return u64::from(describe(proc, regs)),
            guard::PRCTL => confine(proc, [PRCTL, regs.rdi, regs.rsi, regs.rdx]),
            guard::SYSCALL => confine(proc, [regs.rdi, regs.rsi, regs.rdx, regs.rcx]),
            _ => {}
        }
        let Some(state) = proc.trap_state() else { return 0 };
        match site.guard.checked_sub(guard::MASK) {
            Some(argument) => {
                mask(state, argument, regs);
                0
            }
            None if site.guard == guard::SIGACTION => u64::from(sigaction(proc, state, site, regs)),
            None => 0,
        }
    }
}

/// A system call is about to be made, with this number and these arguments: from then on the agent makes none if it puts the
/// process under a filter.
///
/// # Safety
/// `proc` is the block of this process.
unsafe fn confine(proc: &Proc, call: [u64; 4]) {
    let [number, first, second, third] = call;
    // What has no filter, or strict mode with flags, fails: so programs ask whether there are any. (The kernel looks at
    // the lower half of an `int`.)
    let filters = match (number & INT, first & INT) {
        (PRCTL, PR_SET_SECCOMP) => second == STRICT || second == FILTER && third != 0,
        (SECCOMP, SET_STRICT) => second & INT == 0 && third == 0,
        (SECCOMP, SET_FILTER) => third != 0,
        _ => false,
    };
    if !filters || !calls::allowed() {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        // The clock is found by a call, too.
        clock::monotonic(proc);
    }
    calls::forbid();
    // Other threads, which the filter may be for as well, may have looked already.
    sys::nap_anyway(SETTLE);
}

/// What libgcc's `_Unwind_Find_FDE` returns besides the description.
#[repr(C)]
struct Bases {
    text: u64,
    data: u64,
    function: u64,
}

/// Answers a call of `_Unwind_Find_FDE` for an address in the return stubs. False if the function itself is to answer.
///
/// Nothing is registered with the unwinder for the stubs: libgcc before 13 takes a lock in each look-up once anything is
/// registered, and a handler or a forked child that unwinds would wait for it for ever.
///
/// # Safety
/// As [`guard`]; the second argument points to [`Bases`].
unsafe fn describe(proc: &Proc, regs: &mut PtRegs) -> bool {
    // Unwinders ask for the byte before a return address; for the place where a signal came they ask for that itself, and
    // in a stub it is described nowhere else than behind the call.
    let distance = regs.rdi.wrapping_sub(proc.stubs);
    let called = distance & (STUB_SIZE - 1) == STUB_CALL - 1;
    if distance >= u64::from(proc.nret) * STUB_SIZE || !called || proc.description == 0 {
        return false;
    }
    let bases = Bases { text: 0, data: 0, function: proc.stubs };
    // SAFETY: the caller's promise.
    unsafe { (regs.rsi as *mut Bases).write_unaligned(bases) };
    regs.rax = proc.description;
    true
}

/// Replaces the set of signals that argument `n` points to.
///
/// # Safety
/// As [`guard`].
unsafe fn mask(state: &TrapState, n: u32, regs: &mut PtRegs) {
    let (how, top) = (regs.rdi, regs.rsp as *const u8);
    let argument = match n {
        0 => &mut regs.rdi,
        1 => &mut regs.rsi,
        2 => &mut regs.rdx,
        3 => &mut regs.rcx,
        4 => &mut regs.r8,
        _ => &mut regs.r9,
    };
    if *argument == 0 || (n == 1 && how == UNBLOCK) {
        return;
    }
    let mut set = 0u64;
    if !calls::allowed() {
        // SAFETY: the function reads there, too. (A pointer to nowhere, which the kernel would find, is the caller's fault.)
        set = unsafe { (*argument as *const u64).read_unaligned() };
    } else {
        // SAFETY: eight bytes into a local; a trampoline runs on the stack that the function was called on.
        if !unsafe { read::read_near((&raw mut set).cast(), *argument, 8, top) } {
            return;
        }
    }
    if set & TRAP_BIT != 0
        && let Some(copy) = keep(state, set & !TRAP_BIT)
    {
        *argument = copy;
    }
}

/// The address of a set that is kept; none if there is no more room.
fn keep(state: &TrapState, set: u64) -> Option<u64> {
    let address = |place: &[core::sync::atomic::AtomicU64; 16]| place.as_ptr() as u64;
    if set == 0 {
        return state.masks.first().map(address);
    }
    let start = (set.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
    for n in 0..PROBES {
        // Never the first place.
        let place = state.masks.get(1 + (start + n) % (TRAP_MASKS - 1))?;
        let word = place.first()?;
        let found = match word.load(Acquire) {
            0 => match word.compare_exchange(0, set, Relaxed, Acquire) {
                Ok(_) => set,
                Err(now) => now,
            },
            now => now,
        };
        if found == set {
            return Some(address(place));
        }
    }
    None
}

/// Answers a call of `sigaction`. False if the function itself is to answer.
///
/// # Safety
/// As [`guard`].
unsafe fn sigaction(proc: &Proc, state: &TrapState, site: &Site, regs: &mut PtRegs) -> bool {
    let signal = regs.rdi as i32;
    let mut new = SigAction { handler: 0, mask: 0, more: [0; 15], flags: 0, padding: 0, restorer: 0 };
    if regs.rsi != 0 && !calls::allowed() {
        // SAFETY: the function reads there itself.
        new = unsafe { (regs.rsi as *const SigAction).read_unaligned() };
    } else if regs.rsi != 0
        // SAFETY: into a local of that size.
        && !unsafe { read::read((&raw mut new).cast(), regs.rsi, size_of::<SigAction>()) }
    {
        return false;
    }
    if signal != SIGTRAP {
        if regs.rsi == 0 || new.mask & TRAP_BIT == 0 {
            return false;
        }
        new.mask &= !TRAP_BIT;
        // SAFETY: the copy of the function's first instructions goes on in the function, which is a `sigaction`.
        let result = unsafe {
            let function = core::mem::transmute::<*const (), SigActionFn>(site.body as *const ());
            function(signal, &raw const new, regs.rdx as *mut SigAction)
        };
        regs.rax = i64::from(result) as u64;
        return true;
    }
    // SAFETY: in the process of `proc` or in a child of it.
    if unsafe { proc.alive() } && calls::allowed() && sys::getpid() != state.pid {
        return false;
    }
    let before = match regs.rsi {
        0 => trap::current(state).1,
        _ => {
            let action = Action {
                handler: new.handler,
                flags: u64::from(new.flags) & KEPT_FLAGS | SA_RESTORER,
                restorer: state.restorer,
                mask: new.mask & !UNBLOCKABLE,
            };
            let before = trap::replace(state, None, action);
            let flags = trap::handler_flags(action.handler, action.flags);
            if flags != trap::handler_flags(before.handler, before.flags) {
                // SAFETY: the handler that is installed already, and its restorer.
                unsafe { sys::sigaction(SIGTRAP, [state.handler, flags, state.restorer, 0]) };
            }
            before
        }
    };
    if regs.rdx != 0 {
        let old = SigAction {
            handler: before.handler,
            mask: before.mask,
            more: [0; 15],
            flags: before.flags as u32,
            padding: 0,
            restorer: before.restorer,
        };
        // SAFETY: the caller of `sigaction` wants it there; a wrong address faults as it would in the function.
        unsafe { (regs.rdx as *mut SigAction).write_unaligned(old) };
    }
    regs.rax = 0;
    true
}
