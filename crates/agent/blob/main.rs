//! What lives inside a probed process: the data plane, without a runtime below it.
//!
//! Compiled by the build script, not by cargo, from the sources of `skep-ebpf`, `skep-maps` and `skep-runtime`. The
//! control plane writes it into targets at any address. It keeps no state of its own: there is no writable data.
#![no_std]
#![no_main]

mod mem;

use skep_ebpf::uapi::PtRegs;
use skep_runtime::hit;
use skep_runtime::session::{HitFn, Proc, ReturnFn, Site};

// The signatures are those that trampolines are made for.
const _: (HitFn, ReturnFn) = (skep_hit, skep_return);

/// Called by the trampoline of a site.
///
/// # Safety
/// As [`hit::hit`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_hit(site: *const Site, regs: *mut PtRegs) -> u64 {
    // SAFETY: the trampoline's promise.
    unsafe { hit::hit(site, regs) }
}

/// Called behind the return stubs.
///
/// # Safety
/// As [`hit::ret`].
#[unsafe(no_mangle)]
unsafe extern "C" fn skep_return(proc: *const Proc, entry: u32, regs: *mut PtRegs) -> u64 {
    // SAFETY: the stub's promise.
    unsafe { hit::ret(proc, entry, regs) }
}

/// Not reached: the data plane has no panicking path. A trap is what can be seen from outside.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: an undefined instruction ends the process, and goes nowhere.
        unsafe { core::arch::asm!("ud2", options(noreturn)) };
    }
}
