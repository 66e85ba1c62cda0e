//! `seq_write` and `seq_printf`: the text of iterators.

use skep_ebpf::Errno;

use crate::env::{Env, SCRATCH, Seq};
use crate::format::{self, Format};

/// Longest string argument with its terminator.
const STRING: usize = 512;
/// Most arguments of `seq_printf`.
const MAX_VARARGS: u64 = 12;

const _: () = assert!(STRING + 256 <= SCRATCH);

/// The text of the run.
fn text(env: &Env) -> Option<&'static mut Seq> {
    // SAFETY: the text outlives the run, and only helpers of the run, one at a time, use it.
    unsafe { env.seq.as_mut() }
}

/// # Safety
/// `data` is readable for `len` bytes.
pub(super) unsafe fn seq_write(env: &mut Env, _: u64, data: u64, len: u64) -> u64 {
    let Some(seq) = text(env) else { return Errno::EINVAL.neg() as u64 };
    let len = len as u32 as usize;
    if len < seq.room().len() {
        // SAFETY: the caller's promise, and there is room.
        unsafe { core::ptr::copy_nonoverlapping(data as *const u8, seq.room().as_mut_ptr(), len) };
    }
    if seq.take(len) { 0 } else { Errno::EOVERFLOW.neg() as u64 }
}

/// # Safety
/// `fmt` is readable for `size` bytes, `data` for `len`.
pub(super) unsafe fn seq_printf(env: &mut Env, _: u64, fmt: u64, size: u64, data: u64, len: u64) -> u64 {
    let len = u64::from(len as u32);
    if !len.is_multiple_of(8) || len > MAX_VARARGS * 8 || (len != 0 && data == 0) {
        return Errno::EINVAL.neg() as u64;
    }
    // SAFETY: the caller's promise.
    let (Some(seq), Some(fmt)) = (text(env), unsafe { Format::new(fmt as *const u8, size as u32 as usize) }) else {
        return Errno::EINVAL.neg() as u64;
    };
    let arg = |i: usize| {
        // SAFETY: the caller's promise on `data`.
        ((i as u64) < len / 8).then(|| unsafe { (data as *const u64).add(i).read_unaligned() })
    };
    // SAFETY: the slot's scratch memory is this run's, and no program has its address.
    let (string, chunk) = unsafe {
        let scratch = (&raw mut (*env.area).scratch).cast::<u8>();
        let part = |at: usize, len: usize| core::slice::from_raw_parts_mut(scratch.add(at), len);
        (part(0, STRING), part(STRING, SCRATCH - STRING))
    };
    match format::format(seq.room(), fmt, arg, string, chunk) {
        Ok(len) if seq.take(len) => 0,
        Ok(_) => Errno::EOVERFLOW.neg() as u64,
        Err(errno) => errno.neg() as u64,
    }
}
