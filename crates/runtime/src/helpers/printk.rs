//! `trace_printk` and `trace_vprintk`: formatted here, printed by the controller.

use skep_ebpf::Errno;

use crate::env::{Env, SCRATCH};
use crate::format::{self, Format};
use crate::session::PrintkRecord;

use super::output;

/// Bytes that a line's record head takes.
const HEAD: usize = size_of::<PrintkRecord>();
/// Longest line with its terminator, as in the kernel.
const LINE: usize = 1024;
/// Longest string argument with its terminator.
const STRING: usize = 512;
/// Most arguments of `trace_vprintk`.
const MAX_VARARGS: u64 = 12;

const _: () = assert!(HEAD + LINE + STRING + 256 <= SCRATCH);

/// # Safety
/// `fmt` is readable for `size` bytes, `args` hold what a program passed.
unsafe fn print(env: &mut Env, fmt: u64, size: u64, args: impl Fn(usize) -> Option<u64>) -> u64 {
    // SAFETY: the slot's scratch memory is this run's, and no program has its address.
    let (record, text, string, chunk) = unsafe {
        let scratch = (&raw mut (*env.area).scratch).cast::<u8>();
        let part = |at: usize, len: usize| core::slice::from_raw_parts_mut(scratch.add(at), len);
        let string_at = HEAD + LINE;
        let chunk_at = string_at + STRING;
        let chunk = part(chunk_at, SCRATCH - chunk_at);
        (scratch.cast::<PrintkRecord>(), part(HEAD, LINE - 1), part(string_at, STRING), chunk)
    };
    // SAFETY: the caller's promise.
    let Some(fmt) = (unsafe { Format::new(fmt as *const u8, size as u32 as usize) }) else {
        return Errno::EINVAL.neg() as u64;
    };
    let limit = text.len();
    match format::format(text, fmt, args, string, chunk) {
        Ok(len) => {
            // SAFETY: record and text lie side by side in the scratch memory.
            unsafe { output::printk(env, record, len.min(limit)) };
            len as u64
        }
        Err(errno) => errno.neg() as u64,
    }
}

/// # Safety
/// `fmt` is readable for `size` bytes.
pub(super) unsafe fn trace_printk(env: &mut Env, fmt: u64, size: u64, a: u64, b: u64, c: u64) -> u64 {
    let args = [a, b, c];
    // SAFETY: the caller's promise.
    unsafe { print(env, fmt, size, |i| args.get(i).copied()) }
}

/// # Safety
/// `fmt` is readable for `size` bytes, `data` for `len`.
pub(super) unsafe fn trace_vprintk(env: &mut Env, fmt: u64, size: u64, data: u64, len: u64) -> u64 {
    let len = u64::from(len as u32);
    if !len.is_multiple_of(8) || len > MAX_VARARGS * 8 || (len != 0 && data == 0) {
        return Errno::EINVAL.neg() as u64;
    }
    let arg = |i: usize| {
        // SAFETY: the caller's promise on `data`.
        ((i as u64) < len / 8).then(|| unsafe { (data as *const u64).add(i).read_unaligned() })
    };
    // SAFETY: the caller's promise.
    unsafe { print(env, fmt, size, arg) }
}
