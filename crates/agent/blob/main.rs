//! What lives inside a probed process: the data plane, without a runtime below it.
//!
//! Compiled by the build script, not by cargo, from the sources of `skep-ebpf`, `skep-maps` and `skep-runtime`. The
//! control plane writes it into targets at any address. It keeps no state of its own: there is no writable data.
#![no_std]
#![no_main]

mod mem;

use skep_ebpf::uapi::PtRegs;
use skep_runtime::session::{
    EnterFn, GuardFn, HitFn, Proc, QuickHitFn, QuickReturnFn, ReturnFn, SigContext, SigInfo, Site, TrapFn,
};
use skep_runtime::{enter, guard, hit, quick, syscall, trap};

// The signatures are those that trampolines are made for.
const _: (HitFn, EnterFn, HitFn) = (skep_hit, enter::enter, skep_leave);
const _: [HitFn; 2] = [skep_call, skep_called];
const _: ([QuickHitFn; 3], QuickReturnFn) = ([quick::entry, quick::call, quick::called], quick::ret);
const _: (ReturnFn, GuardFn, TrapFn) = (skep_return, skep_guard, skep_trap);

/// Called by the trampoline of a site.
///
/// # Safety
/// As [`hit::hit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_hit(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the trampoline's promise.
    unsafe { hit::hit(site, regs) }
}

/// Called by the trampoline of a `ret`.
///
/// # Safety
/// As [`hit::leave`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_leave(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the trampoline's promise.
    unsafe { hit::leave(site, regs) }
}

/// Called by the trampoline of a place before a system call.
///
/// # Safety
/// As [`syscall::enter`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_call(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the trampoline's promise.
    unsafe { syscall::enter(site, regs) }
}

/// Called by the trampoline of a place behind a system call.
///
/// # Safety
/// As [`syscall::exit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_called(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the trampoline's promise.
    unsafe { syscall::exit(site, regs) }
}

/// Gives a function of the runtime the name by which it is found, without a jump to it.
macro_rules! export {
    ($name:literal, $function:path) => {
        core::arch::global_asm!(
            concat!(".globl ", $name, "\n.type ", $name, ", @function\n.set ", $name, ", {}"),
            sym $function
        );
    };
}

// Jumped to by the trampoline of a function that has return probes alone.
export!("skep_enter", enter::enter);
// Called by the trampolines of sites whose programs change few registers, and behind the return stubs.
export!("skep_quick_hit", quick::entry);
export!("skep_quick_return", quick::ret);
export!("skep_quick_call", quick::call);
export!("skep_quick_called", quick::called);

/// Called behind the return stubs.
///
/// # Safety
/// As [`hit::ret`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_return(proc: *const Proc, entry: u32, regs: *mut PtRegs) -> u64 {
    // SAFETY: the stub's promise.
    unsafe { hit::ret(proc, entry, regs) }
}

/// Called by the trampoline of a site with a guard.
///
/// # Safety
/// As [`guard::guard`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_guard(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the trampoline's promise.
    unsafe { guard::guard(site, regs) }
}

/// Called by the handler of `SIGTRAP`.
///
/// # Safety
/// As [`trap::trap`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_trap(signal: i32, info: *mut SigInfo, context: *mut SigContext, proc: *const Proc) -> u64 {
    // SAFETY: the stub's promise.
    unsafe { trap::trap(signal, info, context, proc) }
}

/// Not reached: the data plane has no panicking path. A trap is what can be seen from outside.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: an undefined instruction ends the process, and goes nowhere.
        unsafe { core::arch::asm!("ud2", options(noreturn)) };
    }
}
