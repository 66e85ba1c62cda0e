//! Who runs, where and when.

use skep_ebpf::Errno;

use crate::env::Env;
use crate::sys::{self, clock};

/// # Safety
/// As all rows of the table: `env` is the running program's.
pub(super) unsafe fn ktime_get_ns(env: &mut Env) -> u64 {
    // SAFETY: the environment's block is that of this process, or null.
    unsafe { crate::clock::monotonic(env.proc) }
}

/// # Safety
/// None.
pub(super) unsafe fn ktime_get_boot_ns(_: &mut Env) -> u64 {
    sys::clock_ns(clock::BOOTTIME)
}

/// # Safety
/// None.
pub(super) unsafe fn ktime_get_coarse_ns(_: &mut Env) -> u64 {
    sys::clock_ns(clock::MONOTONIC_COARSE)
}

/// # Safety
/// None.
pub(super) unsafe fn ktime_get_tai_ns(_: &mut Env) -> u64 {
    sys::clock_ns(clock::TAI)
}

/// The clock's ticks, as a kernel counts that began 300 s before they overflow 32 bits and ticks 250 times a second.
///
/// # Safety
/// As [`ktime_get_ns`].
pub(super) unsafe fn jiffies64(env: &mut Env) -> u64 {
    const FIRST: u64 = (1 << 32) - 300 * HZ;
    const HZ: u64 = 250;
    // SAFETY: the caller's promise.
    FIRST + unsafe { crate::clock::monotonic(env.proc) } / (1_000_000_000 / HZ)
}

/// A number per call from a generator of the slot (splitmix64), which starts from the time-stamp counter.
///
/// # Safety
/// The slot of `env` is held.
pub(super) unsafe fn get_prandom_u32(env: &mut Env) -> u64 {
    // SAFETY: the slot's memory is this run's; the time-stamp counter is readable wherever this runs.
    let state = unsafe {
        let random = &raw mut (*env.area).random;
        if *random == 0 {
            *random = core::arch::x86_64::_rdtsc() ^ (env.area as u64).rotate_left(24);
        }
        *random = (*random).wrapping_add(0x9e37_79b9_7f4a_7c15);
        *random
    };
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) >> 32
}

/// The slot: the CPU as programs see it.
///
/// # Safety
/// None.
pub(super) unsafe fn get_smp_processor_id(env: &mut Env) -> u64 {
    u64::from(env.slot)
}

/// All slots are on one node.
///
/// # Safety
/// None.
pub(super) unsafe fn get_numa_node_id(_: &mut Env) -> u64 {
    0
}

/// Process and thread. The process follows from the thread, whose number is asked each time: a child of `vfork` has its
/// parent's memory.
///
/// # Safety
/// The slot of `env` is held.
pub(super) unsafe fn get_current_pid_tgid(env: &mut Env) -> u64 {
    if let Some(task) = env.task() {
        return u64::from(task.pid) << 32 | u64::from(task.tid);
    }
    let tid = sys::gettid();
    if tid == 0 {
        return Errno::EPERM.neg() as u64;
    }
    // SAFETY: the slot's memory is this run's.
    let ids = unsafe { &mut (*env.area).ids };
    if *ids as u32 != tid {
        *ids = u64::from(sys::getpid()) << 32 | u64::from(tid);
    }
    *ids
}

/// # Safety
/// None.
pub(super) unsafe fn get_current_uid_gid(env: &mut Env) -> u64 {
    match env.task().map_or_else(sys::getuid_gid, |t| Some((t.uid, t.gid))) {
        Some((uid, gid)) => u64::from(gid) << 32 | u64::from(uid),
        None => Errno::EPERM.neg() as u64,
    }
}

/// The thread's name, cut to what fits, the rest of the buffer zero.
///
/// # Safety
/// `buf` is writable for `size` bytes.
pub(super) unsafe fn get_current_comm(env: &mut Env, buf: u64, size: u64) -> u64 {
    let (buf, size) = (buf as *mut u8, size as u32 as usize);
    let asked = env.task().map_or_else(sys::comm, |t| Some(t.comm));
    let name = asked.unwrap_or_default();
    let len = name.iter().position(|&b| b == 0).unwrap_or(name.len() - 1).min(size.saturating_sub(1));
    // SAFETY: `len` < `size`, or both are 0.
    unsafe {
        core::ptr::write_bytes(buf, 0, size);
        core::ptr::copy_nonoverlapping(name.as_ptr(), buf, len);
    }
    if asked.is_some() { 0 } else { Errno::EPERM.neg() as u64 }
}

/// # Safety
/// None.
pub(super) unsafe fn get_attach_cookie(env: &mut Env) -> u64 {
    env.cookie
}

/// # Safety
/// `s1` is readable for `size` bytes; `s2` is a zero-terminated constant.
pub(super) unsafe fn strncmp(_: &mut Env, s1: u64, size: u64, s2: u64) -> u64 {
    for i in 0..size as u32 as usize {
        // SAFETY: neither string is read behind its terminator or `size`.
        let (a, b) = unsafe { (*(s1 as *const u8).add(i), *(s2 as *const u8).add(i)) };
        if a != b {
            return if a < b { -1i64 as u64 } else { 1 };
        }
        if a == 0 {
            break;
        }
    }
    0
}
