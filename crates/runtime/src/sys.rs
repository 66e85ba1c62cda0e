//! Linux system calls by number: a probed process may have no libc, or one that must not be entered.
//!
//! Results follow the kernel's convention: negative is an errno. `errno` of the process is never touched. A process that has put
//! itself under a seccomp filter makes none any more ([`calls`]).

use core::arch::asm;

use skep_maps::calls;

const RT_SIGACTION: usize = 13;
const RT_SIGPROCMASK: usize = 14;
const NANOSLEEP: usize = 35;
const GETPID: usize = 39;
const GETUID: usize = 102;
const GETGID: usize = 104;
const PRCTL: usize = 157;
const GETTID: usize = 186;
const FUTEX: usize = 202;
const CLOCK_GETTIME: usize = 228;
const RT_TGSIGQUEUEINFO: usize = 297;
const PROCESS_VM_READV: usize = 310;
const MEMBARRIER: usize = 324;

const PR_GET_NAME: usize = 16;
const PR_GET_AUXV: usize = 0x4155_5856;
const FUTEX_WAKE: usize = 1;

/// Clocks of [`clock_ns`].
pub(crate) mod clock {
    pub(crate) const MONOTONIC: u32 = 1;
    pub(crate) const MONOTONIC_COARSE: u32 = 6;
    pub(crate) const BOOTTIME: u32 = 7;
    pub(crate) const TAI: u32 = 11;
}

/// A system call; `-EPERM` where none may be made.
///
/// # Safety
/// The arguments must be sound for the call.
#[inline]
unsafe fn call6(nr: usize, a: [usize; 6]) -> isize {
    match calls::allowed() {
        // SAFETY: the caller's promise.
        true => unsafe { call6_anyway(nr, a) },
        false => -1,
    }
}

/// As [`call6`], whether it may end the process or not.
///
/// # Safety
/// As [`call6`].
#[inline]
unsafe fn call6_anyway(nr: usize, a: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the kernel preserves all registers but these, and the caller answers for the call's effects.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr as isize => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// # Safety
/// As [`call6`].
#[inline]
unsafe fn call(nr: usize, a: usize, b: usize, c: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { call6(nr, [a, b, c, 0, 0, 0]) }
}

/// Process id, as the process itself sees it; right in a forked child too. 0 if it cannot be asked.
pub(crate) fn getpid() -> u32 {
    // SAFETY: no arguments, no effects.
    unsafe { call(GETPID, 0, 0, 0).max(0) as u32 }
}

/// Thread id; 0 if it cannot be asked.
pub(crate) fn gettid() -> u32 {
    // SAFETY: as above.
    unsafe { call(GETTID, 0, 0, 0).max(0) as u32 }
}

/// Real user and group id, if they can be asked.
pub(crate) fn getuid_gid() -> Option<(u32, u32)> {
    // SAFETY: as above.
    let (user, group) = unsafe { (call(GETUID, 0, 0, 0), call(GETGID, 0, 0, 0)) };
    Some((u32::try_from(user).ok()?, u32::try_from(group).ok()?))
}

/// A clock in nanoseconds; 0 if the kernel does not have it.
pub(crate) fn clock_ns(id: u32) -> u64 {
    let mut ts = [0u64; 2];
    // SAFETY: `ts` has the size of a timespec.
    let ret = unsafe { call(CLOCK_GETTIME, id as usize, ts.as_mut_ptr() as usize, 0) };
    if ret < 0 { 0 } else { ts[0].wrapping_mul(1_000_000_000).wrapping_add(ts[1]) }
}

/// The name of the calling thread, zero-terminated, if it can be asked.
pub(crate) fn comm() -> Option<[u8; 16]> {
    let mut name = [0u8; 16];
    // SAFETY: the call writes 16 bytes.
    let ret = unsafe { call(PRCTL, PR_GET_NAME, name.as_mut_ptr() as usize, 0) };
    (ret == 0).then_some(name)
}

/// The auxiliary vector of the process; returns how many entries there are. None before Linux 6.4.
pub(crate) fn auxv(entries: &mut [[u64; 2]]) -> Option<usize> {
    let size = size_of_val(entries);
    // SAFETY: the call writes at most `size` bytes.
    let ret = unsafe { call(PRCTL, PR_GET_AUXV, entries.as_mut_ptr() as usize, size) };
    usize::try_from(ret).ok().map(|bytes| (bytes / 16).min(entries.len()))
}

/// Reads memory of a process; returns the bytes read, or a negative errno if the first was not readable.
///
/// # Safety
/// `dst` must be writable for `len` bytes.
pub(crate) unsafe fn read_memory(pid: u32, dst: *mut u8, src: u64, len: usize) -> isize {
    let local = [dst as usize, len];
    let remote = [src as usize, len];
    let (l, r) = (local.as_ptr() as usize, remote.as_ptr() as usize);
    // SAFETY: the kernel writes to `dst` alone, at most `len` bytes; what it cannot read it reports.
    unsafe { call6(PROCESS_VM_READV, [pid as usize, l, 1, r, 1, 0]) }
}

/// Sets the action of a signal: handler, flags, restorer, mask.
///
/// # Safety
/// The handler, if any, and the restorer are code that is fit for it.
pub(crate) unsafe fn sigaction(signal: i32, action: [u64; 4]) {
    const SIZE: usize = 8;
    // SAFETY: the action has the kernel's layout; the rest is the caller's promise.
    unsafe { call6(RT_SIGACTION, [signal as usize, action.as_ptr() as usize, 0, SIZE, 0, 0]) };
}

/// Blocks these signals in the calling thread, besides those that are.
///
/// # Safety
/// The thread can do without them.
pub(crate) unsafe fn block_signals(mask: u64) {
    const SIG_BLOCK: usize = 0;
    // SAFETY: the set is eight bytes long; the rest is the caller's promise.
    unsafe { call6(RT_SIGPROCMASK, [SIG_BLOCK, &raw const mask as usize, 0, 8, 0, 0]) };
}

/// Ends the process by a signal with this information, once the signal is let through.
///
/// # Safety
/// `info` is a whole `siginfo_t`.
pub(crate) unsafe fn end_by(signal: i32, info: *const crate::session::SigInfo) {
    // SAFETY: it is to end, so a filter may do it. The action has the kernel's layout, the set is eight bytes long, and of the
    // information the kernel only reads.
    unsafe {
        let (none, action) = ([0; 6], [0u64; 4]);
        call6_anyway(RT_SIGACTION, [signal as usize, action.as_ptr() as usize, 0, 8, 0, 0]);
        let ids = [call6_anyway(GETPID, none) as usize, call6_anyway(GETTID, none) as usize];
        call6_anyway(RT_TGSIGQUEUEINFO, [ids[0], ids[1], signal as usize, info as usize, 0, 0]);
    }
}

/// Has all processors that run traced processes agree on memory; false if they cannot be made to.
pub(crate) fn synchronise() -> bool {
    const GLOBAL_EXPEDITED: usize = 2;
    // SAFETY: no memory is passed.
    unsafe { call(MEMBARRIER, GLOBAL_EXPEDITED, 0, 0) == 0 }
}

/// Sleeps for so many nanoseconds, whether calls are made or not.
pub(crate) fn nap_anyway(nanoseconds: u64) {
    let time = [0, nanoseconds];
    // SAFETY: nanosleep(2) reads the two words.
    unsafe { call6_anyway(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
}

/// Wakes one process that waits on a futex in shared memory.
pub(crate) fn futex_wake(word: *const u32) {
    // SAFETY: a wake does not access memory through the address.
    unsafe { call(FUTEX, word as usize, FUTEX_WAKE, 1) };
}
