//! What the trampolines at system calls call: programs on `sys_enter` and `sys_exit`.
//!
//! # Invariants
//!
//! * Those of [`hit`](crate::hit).
//! * The trampoline lays the programs' context behind the registers: [`EnterContext`] or [`ExitContext`]. Programs cannot write
//!   it, and what the trampoline gives back to the thread may come from there.
//! * A thread or process that a system call has made comes out of it, too, on a stack and with a TLS base that may be new or its
//!   parent's. It is known by the number and the result, and goes on before anything of its own is looked at.

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::Relaxed;

use skep_ebpf::uapi::PtRegs;

use crate::hit::{all_missed, express, judge, on, prepare, refused, run, site_links};
use crate::session::{Link, NONE, Proc, SEVERAL_LINKS, Site, link_flags, link_kind};
use crate::thread::{self, Guards, Thread};

/// What programs on `sys_enter` are given. Here the kernel's own word, which programs cannot read, is 0.
#[repr(C)]
pub struct EnterContext {
    /// The kernel's own.
    pub common: u64,
    /// The number of the system call.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// What programs on `sys_exit` are given.
#[repr(C)]
pub struct ExitContext {
    /// The kernel's own.
    pub common: u64,
    /// The number of the system call.
    pub number: u64,
    /// What it returned.
    pub result: u64,
}

/// Numbers of the system calls that their children return from, too: `clone`, `fork`, `vfork`, `clone3`.
pub const MAKE_CHILDREN: [u32; 4] = [56, 57, 58, 435];

/// A system call is about to be made; see [`HitFn`](crate::session::HitFn). The answer is 0.
///
/// # Safety
/// `site` is a [`Site`] of this process, `regs` the registers there, on the stack of the calling thread, an [`EnterContext`]
/// behind them.
#[inline(always)]
pub unsafe extern "C" fn enter(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let context = regs.add(1).cast::<EnterContext>();
        deliver(&*site, regs, context.cast(), (*context).number)
    }
}

/// A system call has returned; see [`HitFn`](crate::session::HitFn). The answer is 0.
///
/// # Safety
/// As [`enter`], with an [`ExitContext`]; the site's call is known.
#[inline(always)]
pub unsafe extern "C" fn exit(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let (site, context) = (&*site, regs.add(1).cast::<ExitContext>());
        if (*context).result == 0 && MAKE_CHILDREN.contains(&site.call) {
            return 0;
        }
        deliver(site, regs, context.cast(), u64::from(site.call))
    }
}

/// Runs the programs of a site whose system call has this number.
///
/// # Safety
/// As [`enter`].
#[inline(always)]
unsafe fn deliver(site: &Site, regs: *mut PtRegs, context: *mut u8, number: u64) -> u64 {
    // SAFETY: the caller's promise; the site's process block describes the process it is mapped in.
    unsafe {
        let proc = &*(site.proc as *const Proc);
        if !proc.control().enabled() {
            return 0;
        }
        let link = site.on_entry.load(Relaxed);
        if link <= SEVERAL_LINKS {
            return any(proc, site, regs, context, number);
        }
        let only = &*(link as *const Link);
        // Where the number is known the controller has chosen the links.
        if site.call == NONE && !is_for(only, number) {
            return 0;
        }
        if only.flags & link_flags::RAW == 0
            && let Some(thread) = thread::seen(proc, regs as u64)
            && express(proc, thread, site, link, link_kind::ENTRY, regs, context).is_some()
        {
            return 0;
        }
        any(proc, site, regs, context, number)
    }
}

/// Is a link for system calls of this number?
#[inline(always)]
fn is_for(link: &Link, number: u64) -> bool {
    link.call == NONE || u64::from(link.call) == number
}

/// As [`deliver`], in any case.
///
/// # Safety
/// As [`enter`].
#[cold]
#[inline(never)]
unsafe fn any(proc: &Proc, site: &Site, regs: *mut PtRegs, context: *mut u8, number: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let control = proc.control();
        if !control.enabled() || !proc.alive() {
            return 0;
        }
        let mut links = site_links(site).filter_map(|index| on(control, index, link_kind::ENTRY));
        if !links.any(|link| is_for(link, number)) {
            return 0;
        }
        match thread::current(proc, regs as u64) {
            Some(thread) => run_all(proc, thread, site, regs, context, number),
            None => all_missed(proc, site, link_kind::ENTRY),
        }
        0
    }
}

/// Runs the programs of all links that are for a system call of this number.
///
/// # Safety
/// As [`enter`]; in the process of `proc`, with the controller alive.
unsafe fn run_all(proc: &Proc, thread: Thread<'_>, site: &Site, regs: *mut PtRegs, context: *mut u8, number: u64) {
    let mut guards = MaybeUninit::<Guards>::uninit();
    // SAFETY: the caller's promise.
    unsafe {
        let held = match thread.take(proc, regs as u64, guards.as_mut_ptr()) {
            Ok(held) => held,
            Err(refusal) => {
                refused(proc, site, link_kind::ENTRY, refusal);
                return;
            }
        };
        let env = &mut (*held.area).env;
        let control = proc.control();
        for index in site_links(site) {
            let Some(link) = on(control, index, link_kind::ENTRY).filter(|link| is_for(link, number)) else { continue };
            let mut raw: [u64; 2];
            prepare(proc, env, site, link, regs);
            env.ctx = context;
            if link.flags & link_flags::RAW != 0 {
                // The registers, and the number or the result, which is the word behind it in a context of the other kind.
                let exit = link.flags & link_flags::EXIT != 0;
                (*regs).orig_rax = number;
                raw = [regs as u64, context.cast::<u64>().add(if exit { 2 } else { 1 }).read()];
                env.ctx = raw.as_mut_ptr().cast();
            }
            let Some(retval) = run(proc, control, env, link) else { break };
            judge(env, link, site.ip, retval);
        }
        held.release();
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(offset_of!(EnterContext, arguments) == 16 && size_of::<EnterContext>() == 64);
    assert!(offset_of!(ExitContext, result) == 16 && size_of::<ExitContext>() == 24);
};
