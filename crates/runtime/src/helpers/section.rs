//! Sections: RCU, preemption and interrupts. A program that runs on a slot is alone there and what it sees stays until it
//! ends, so there is nothing to do; that they nest rightly the verifier has seen.

use crate::env::Env;

/// # Safety
/// None.
pub(super) unsafe fn enter(_: &mut Env) -> u64 {
    0
}

/// # Safety
/// None.
pub(super) unsafe fn leave(_: &mut Env) -> u64 {
    0
}

/// # Safety
/// `flags` is a place for eight bytes.
pub(super) unsafe fn save_irq(_: &mut Env, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { (flags as *mut u64).write(0) };
    0
}

/// # Safety
/// None.
pub(super) unsafe fn restore_irq(_: &mut Env, _flags: u64) -> u64 {
    0
}

/// The address as it is: programs cast it to what they know is there.
///
/// # Safety
/// None.
pub(super) unsafe fn same_address(_: &mut Env, address: u64) -> u64 {
    address
}
