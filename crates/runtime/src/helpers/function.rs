//! What programs that run around a function are told of it. Their context is preceded by two words of its own: the
//! function's address and how many arguments it has, see [`around`](crate::around).

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

use crate::around::RETURNED;
use crate::env::Env;

/// The words in front of the context: address, number of arguments, and whether the function has returned.
///
/// # Safety
/// `ctx` is the context of a program that runs around a function.
unsafe fn head(ctx: u64) -> (u64, u64, bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let ctx = ctx as *const u64;
        let word = *ctx.sub(1);
        (*ctx.sub(2), word & (RETURNED - 1), word & RETURNED != 0)
    }
}

/// # Safety
/// `ctx` is the running program's.
pub(super) unsafe fn get_func_ip(env: &mut Env, ctx: u64) -> u64 {
    if env.prog_type != ProgType::Tracing as u32 {
        return env.func_ip();
    }
    // SAFETY: tracing programs run around functions.
    unsafe { head(ctx).0 }
}

/// # Safety
/// `ctx` is the running program's, and `value` is writable for 8 bytes.
pub(super) unsafe fn get_func_arg(_: &mut Env, ctx: u64, n: u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let n = n as u32 as u64;
        if n >= head(ctx).1 {
            return Errno::EINVAL.neg() as u64;
        }
        (value as *mut u64).write_unaligned(*(ctx as *const u64).add(n as usize));
    }
    0
}

/// # Safety
/// As [`get_func_arg`].
pub(super) unsafe fn get_func_ret(_: &mut Env, ctx: u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let (_, count, returned) = head(ctx);
        if !returned {
            return Errno::EOPNOTSUPP.neg() as u64;
        }
        (value as *mut u64).write_unaligned(*(ctx as *const u64).add(count as usize));
    }
    0
}

/// # Safety
/// As [`get_func_arg`].
pub(super) unsafe fn get_func_arg_cnt(_: &mut Env, ctx: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { head(ctx).1 }
}
