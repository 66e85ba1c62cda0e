//! Spin locks in values of maps. A program that cannot get its lock must not go on: its run is ended.

use skep_ebpf::Errno;
use skep_ebpf::uapi::update::{EXIST, LOCK, NOEXIST};
use skep_maps::{MapRef, spin};

use crate::env::Env;

/// What this run writes into locks.
fn me(env: &Env) -> u32 {
    // SAFETY: the arenas are mapped for as long as programs run.
    let slot = unsafe { (*env.shared).slot(&*env.control, env.slot) };
    spin::holder(env.slot, slot.map_or(0, |s| s.taken.load(core::sync::atomic::Ordering::Relaxed)))
}

/// True if the run that holds a lock is over: its slot is free, or somebody else's by now.
fn over(env: &Env, holder: u32) -> bool {
    use core::sync::atomic::Ordering::Acquire;
    let index = spin::slot_of(holder);
    // SAFETY: as above.
    match unsafe { (*env.shared).slot(&*env.control, index) } {
        Some(slot) => slot.owner.load(Acquire) == 0 || spin::holder(index, slot.taken.load(Acquire)) != holder,
        // No slot's word: somebody has scribbled there.
        None => holder != spin::CONTROLLER,
    }
}

/// # Safety
/// `lock` is a spin lock's address.
pub(super) unsafe fn spin_lock(env: &mut Env, lock: u64) -> u64 {
    let me = me(env);
    // SAFETY: the caller's promise; the slot is held.
    unsafe {
        if spin::acquire(lock as *mut u8, me, |holder| over(env, holder)) {
            (*env.area).lock = lock;
            (*env.area).lock_word = me;
        } else {
            env.modes.over_budget = true;
        }
    }
    0
}

/// # Safety
/// `lock` is the address of a spin lock that this run holds.
pub(super) unsafe fn spin_unlock(env: &mut Env, lock: u64) -> u64 {
    // SAFETY: the caller's promise; the slot is held.
    unsafe {
        (*env.area).lock = 0;
        spin::release(lock as *mut u8, (*env.area).lock_word);
    }
    0
}

/// # Safety
/// `lock` is a lock's address.
pub(super) unsafe fn res_spin_lock(env: &mut Env, lock: u64) -> u64 {
    let (me, word) = (me(env), lock as *const u32);
    // SAFETY: the caller's promise.
    unsafe {
        if core::ptr::read_volatile(word) == me {
            return u64::from(Errno::EDEADLK.neg() as u32);
        }
        if spin::acquire(lock as *mut u8, me, |holder| over(env, holder)) {
            0
        } else {
            u64::from(Errno::ETIMEDOUT.neg() as u32)
        }
    }
}

/// # Safety
/// `lock` is the address of a lock that this run holds.
pub(super) unsafe fn res_spin_unlock(env: &mut Env, lock: u64) -> u64 {
    let me = me(env);
    // SAFETY: the caller's promise.
    unsafe { spin::release(lock as *mut u8, me) };
    0
}

/// As [`res_spin_lock`]; there are no interrupts to be kept out.
///
/// # Safety
/// `lock` is a lock's address.
pub(super) unsafe fn res_spin_lock_irqsave(env: &mut Env, lock: u64, _flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { res_spin_lock(env, lock) }
}

/// # Safety
/// As [`res_spin_unlock`].
pub(super) unsafe fn res_spin_unlock_irqrestore(env: &mut Env, lock: u64, _flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { res_spin_unlock(env, lock) }
}

/// An update with `BPF_F_LOCK` of a map whose values have a lock: a value that is there is changed in its place.
///
/// # Safety
/// As for [`MapRef::update`].
#[cold]
pub(super) unsafe fn update_locked(env: &mut Env, map: MapRef, key: u64, value: u64, flags: u64) -> u64 {
    let (key, value, rest) = (key as *const u8, value as *const u8, flags & !LOCK);
    // SAFETY: the caller's promise; the slot is held.
    unsafe {
        let at = map.lookup(env.slot, key);
        if at.is_null() || rest > EXIST || rest == NOEXIST {
            return map.update(env.slot, key, value, rest) as u64;
        }
        let Some(off) = (*map.hdr).spin_lock() else { return Errno::EINVAL.neg() as u64 };
        let (lock, me) = (at.wrapping_add(off), me(env));
        if !spin::acquire(lock, me, |holder| over(env, holder)) {
            return Errno::EBUSY.neg() as u64;
        }
        map.copy_value(at, value);
        spin::release(lock, me);
    }
    0
}
