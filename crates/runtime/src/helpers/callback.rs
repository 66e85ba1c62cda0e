//! Helpers that call functions of the program.

use skep_ebpf::Errno;
use skep_maps::MapRef;

use super::dynptr::Dynptr;
use crate::abi::MAX_LOOPS;
use crate::callback::Callback;
use crate::env::Env;

/// The number of rounds, the one that ended it among them.
///
/// # Safety
/// `function` is one of the running program that takes a number and `ctx`.
pub(super) unsafe fn bpf_loop(env: &mut Env, rounds: u64, function: u64, ctx: u64, flags: u64) -> u64 {
    let callback = Callback::new(env, function);
    let rounds = rounds as u32;
    if flags != 0 {
        return Errno::EINVAL.neg() as u64;
    }
    if rounds > MAX_LOOPS {
        return Errno::E2BIG.neg() as u64;
    }
    for n in 0..u64::from(rounds) {
        // SAFETY: the caller's promise.
        match unsafe { callback.call(env, [n, ctx, 0, 0, 0]) } {
            Some(0) => {}
            _ => return n + 1,
        }
    }
    u64::from(rounds)
}

/// # Safety
/// `map` is a handle that the verifier knows, `function` one of the running program that takes a map, key and value of
/// it, and `ctx`.
pub(super) unsafe fn for_each_map_elem(env: &mut Env, map: u64, function: u64, ctx: u64, flags: u64) -> u64 {
    let callback = Callback::new(env, function);
    if flags != 0 {
        return Errno::EINVAL.neg() as u64;
    }
    let slot = env.slot;
    // SAFETY: the caller's promise; the slot is held.
    unsafe {
        let each =
            |key: *mut u8, value: *mut u8| callback.call(env, [map, key as u64, value as u64, ctx, 0]).unwrap_or(1);
        (*(map as *const MapRef)).for_each(slot, each) as u64
    }
}

/// # Safety
/// `map` is a user ring buffer's handle, `function` one of the running program that takes a dynptr and `ctx`.
pub(super) unsafe fn user_ringbuf_drain(env: &mut Env, map: u64, function: u64, ctx: u64, flags: u64) -> u64 {
    let callback = Callback::new(env, function);
    let slot = env.slot;
    // SAFETY: the caller's promise; the slot is held.
    let (done, wake) = unsafe {
        let each = |sample: *mut u8, len: u32| {
            let mut dynptr = Dynptr::new(sample as u64, len, Dynptr::LOCAL);
            callback.call(env, [(&raw mut dynptr) as u64, ctx, 0, 0, 0]).unwrap_or(1)
        };
        (*(map as *const MapRef)).user_ringbuf_drain(slot, flags, each)
    };
    if wake {
        env.doorbell();
    }
    done as u64
}
