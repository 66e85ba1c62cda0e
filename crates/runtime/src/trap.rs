//! The handler of `SIGTRAP`, for places that are patched with a breakpoint.
//!
//! # Invariants
//!
//! * A breakpoint of ours is stepped over in any case: with the controller dead, in a forked child, after the text was
//!   restored. Whoever meets it goes on at the copy of the displaced instruction.
//! * Any other `SIGTRAP` has the effect that the target's own action for it has: see [`TrapState`]. A handler of the target
//!   is run in place of ours, in the very frame that the kernel made, so that it can return, jump away and unwind.
//! * Registers that the kernel saved in its frame come back from there; nothing here changes them but `rip` and `rsp`.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use skep_ebpf::uapi::PtRegs;

use crate::hit::hit_any;
use crate::session::{Proc, SigContext, SigInfo, Site, TRAP_ACTIONS, TrapAction, TrapState};
use crate::sys;

pub(crate) const SIGTRAP: i32 = 5;
/// The bit of `SIGTRAP` in a set of signals.
pub(crate) const TRAP_BIT: u64 = 1 << (SIGTRAP - 1);

/// `si_code` of a signal that the processor's exception raised.
const SI_KERNEL: i32 = 0x80;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;

const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;
const SA_SIGINFO: u64 = 4;
pub(crate) const SA_RESTORER: u64 = 0x0400_0000;

/// A signal's action: handler, flags, restorer, mask.
#[derive(Clone, Copy)]
pub(crate) struct Action {
    pub(crate) handler: u64,
    pub(crate) flags: u64,
    pub(crate) restorer: u64,
    pub(crate) mask: u64,
}

/// `SIGTRAP` was raised; see [`TrapFn`](crate::session::TrapFn).
///
/// # Safety
/// Called by the handler's stub with the kernel's arguments and the block of this process.
pub unsafe extern "C" fn trap(signal: i32, info: *mut SigInfo, context: *mut SigContext, proc: *const Proc) -> u64 {
    // SAFETY: the kernel's frame lives until the handler returns; the block is of this process.
    unsafe {
        let (proc, context, code) = (&*proc, &mut *context, (*info).code);
        let at = context.rip.wrapping_sub(1);
        // Not by `trapno`: in a process that has, or once had, a uprobe of the kernel this comes by another way, which leaves
        // there what was.
        if code == SI_KERNEL
            && let Some(site) = find(proc, at)
        {
            step(site, context);
            return 0;
        }
        match proc.trap_state() {
            Some(state) => pass_on(state, signal, info),
            None => 0,
        }
    }
}

/// The site of the breakpoint at this address.
///
/// # Safety
/// In the process of `proc`.
unsafe fn find(proc: &Proc, address: u64) -> Option<*const Site> {
    // SAFETY: the caller's promise.
    let traps = unsafe { proc.traps() };
    let n = traps.binary_search_by_key(&address, |trap| trap.address).ok()?;
    traps.get(n).map(|trap| trap.site as *const Site)
}

/// Delivers the hit, and goes on at the displaced instruction or at a return stub.
///
/// # Safety
/// The context is that of a thread that ran into the site's breakpoint, on which this handler runs.
unsafe fn step(site: *const Site, context: &mut SigContext) {
    let [r8, r9, r10, r11, r12, r13, r14, r15] = context.r8_r15;
    // SAFETY: a site of this process.
    let (ip, body) = unsafe { ((*site).ip, (*site).body) };
    let mut regs = PtRegs {
        r15,
        r14,
        r13,
        r12,
        rbp: context.rbp,
        rbx: context.rbx,
        r11,
        r10,
        r9,
        r8,
        rax: context.rax,
        rcx: context.rcx,
        rdx: context.rdx,
        rsi: context.rsi,
        rdi: context.rdi,
        orig_rax: u64::MAX,
        rip: ip,
        cs: context.segments & 0xffff,
        rflags: context.eflags,
        rsp: context.rsp,
        ss: context.segments >> 48,
    };
    // SAFETY: the registers are those at the site, on the stack of this thread.
    match unsafe { hit_any(&*site, &raw mut regs) } {
        0 => context.rip = body,
        stub => {
            // The stub calls the body: the return address is in its entry, and off the stack.
            context.rip = stub;
            context.rsp = context.rsp.wrapping_add(8);
        }
    }
}

/// Does what the target's own action asks for.
///
/// # Safety
/// In the handler of that signal, with the kernel's information on it.
#[cold]
unsafe fn pass_on(state: &TrapState, signal: i32, info: *const SigInfo) -> u64 {
    let (index, action) = current(state);
    // SAFETY: the caller's promise.
    let forced = unsafe { (*info).code } > 0;
    // SAFETY: the signal cannot be lost: this thread has it unblocked again as soon as the handler has returned.
    unsafe {
        match action.handler {
            SIG_IGN if !forced => 0,
            SIG_DFL | SIG_IGN => {
                // The process ends by it, at the instruction where it was raised.
                sys::block_signals(TRAP_BIT);
                sys::end_by(signal, info);
                0
            }
            handler => {
                if action.flags & SA_RESETHAND != 0 {
                    let reset = Action { handler: SIG_DFL, ..action };
                    // Only the first of several threads resets it.
                    replace(state, Some(index), reset);
                }
                // A further SIGTRAP is let through, SA_NODEFER or not: the handler may meet breakpoints.
                if action.mask & !TRAP_BIT != 0 {
                    sys::block_signals(action.mask & !TRAP_BIT);
                }
                handler
            }
        }
    }
}

/// The action that the target believes `SIGTRAP` has.
pub(crate) fn current(state: &TrapState) -> (u32, Action) {
    let index = state.current.load(Acquire);
    let empty = TrapAction::default();
    let action = state.actions.get(index as usize % TRAP_ACTIONS).unwrap_or(&empty);
    let action = Action {
        handler: action.handler.load(Relaxed),
        flags: action.flags.load(Relaxed),
        restorer: action.restorer.load(Relaxed),
        mask: action.mask.load(Relaxed),
    };
    (index, action)
}

/// Makes `action` the current one, if `expected` is (or whatever is); returns the one before.
pub(crate) fn replace(state: &TrapState, expected: Option<u32>, action: Action) -> Action {
    let index = state.next.fetch_add(1, Relaxed);
    if let Some(place) = state.actions.get(index as usize % TRAP_ACTIONS) {
        place.handler.store(action.handler, Relaxed);
        place.flags.store(action.flags, Relaxed);
        place.restorer.store(action.restorer, Relaxed);
        place.mask.store(action.mask, Relaxed);
    }
    loop {
        let (now, before) = current(state);
        if expected.is_some_and(|expected| expected != now)
            || state.current.compare_exchange(now, index, Release, Relaxed).is_ok()
        {
            return before;
        }
    }
}

/// The flags of the real handler, such that the kernel treats interrupted calls and stacks as the target's action asks.
pub fn handler_flags(handler: u64, flags: u64) -> u64 {
    let own = if handler > SIG_IGN { flags & (SA_ONSTACK | SA_RESTART) } else { SA_RESTART };
    SA_SIGINFO | SA_NODEFER | SA_RESTORER | own
}
