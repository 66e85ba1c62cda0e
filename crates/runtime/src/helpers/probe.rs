//! Reads of memory that may not be there. "Kernel" memory is the traced process's too, but where a program runs outside of
//! the process that it is about: there user memory is that process's, and kernel memory that of the one it runs in.

use core::ptr;

use skep_ebpf::Errno;
use skep_ebpf::uapi::PtRegs;

use crate::env::Env;
use crate::read::{self, Tail};

/// `probe_read`, `probe_read_user`: all bytes or, with the destination zeroed, -EFAULT.
///
/// # Safety
/// `dst` is writable for `size` bytes.
pub(super) unsafe fn probe_read_user(env: &mut Env, dst: u64, size: u64, src: u64) -> u64 {
    let Some(task) = env.task() else {
        // SAFETY: the caller's promise.
        return unsafe { probe_read_kernel(env, dst, size, src) };
    };
    let (dst, size) = (dst as *mut u8, size as u32 as usize);
    // SAFETY: the caller's promise.
    unsafe {
        if read::read_of(task.pid, dst, src, size) {
            return 0;
        }
        ptr::write_bytes(dst, 0, size);
    }
    Errno::EFAULT.neg() as u64
}

/// `probe_read_kernel`: likewise.
///
/// # Safety
/// `dst` is writable for `size` bytes.
pub(super) unsafe fn probe_read_kernel(env: &mut Env, dst: u64, size: u64, src: u64) -> u64 {
    let (dst, size) = (dst as *mut u8, size as u32 as usize);
    // Only in a probed process are the registers on the stack of the thread that runs this.
    let top = if env.proc.is_null() { ptr::null() } else { env.regs.cast::<u8>().wrapping_add(size_of::<PtRegs>()) };
    // SAFETY: the caller's promise; `top` is in the frame of the trampoline, or null.
    unsafe {
        if read::read_near(dst, src, size, top) {
            return 0;
        }
        ptr::write_bytes(dst, 0, size);
    }
    Errno::EFAULT.neg() as u64
}

/// `probe_read_str`, `probe_read_user_str`: the length with the terminator or, with the destination zeroed, -EFAULT.
///
/// # Safety
/// As [`probe_read_user`].
pub(super) unsafe fn probe_read_user_str(env: &mut Env, dst: u64, size: u64, src: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { read_str(env, env.task().map_or(0, |t| t.pid), dst, size, src, Tail::Word) }
}

/// `probe_read_kernel_str`: the same, but nothing is written behind the terminator.
///
/// # Safety
/// As [`probe_read_user`].
pub(super) unsafe fn probe_read_kernel_str(env: &mut Env, dst: u64, size: u64, src: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { read_str(env, 0, dst, size, src, Tail::Kept) }
}

/// # Safety
/// As [`probe_read_user`].
unsafe fn read_str(env: &mut Env, pid: u32, dst: u64, size: u64, src: u64, tail: Tail) -> u64 {
    let (dst, size) = (dst as *mut u8, size as u32 as usize);
    // SAFETY: the caller's promise; the slot's scratch memory is this run's, and no program has its address.
    unsafe {
        let chunk = &mut (&mut (*env.area).scratch)[..1024];
        match read::read_str_of(pid, dst, src, size, tail, chunk) {
            Some(len) => len as u64,
            None => {
                ptr::write_bytes(dst, 0, size);
                Errno::EFAULT.neg() as u64
            }
        }
    }
}
