//! Packets: bytes of them, checksums, and sockets, of which there are none.

use core::ptr;

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

use crate::env::Env;
use crate::packet::{self, SKB_POINTERS, XDP_POINTERS};

fn err(errno: Errno) -> u64 {
    errno.neg() as u64
}

/// The address of `len` bytes at `offset` of the packet, if they are all there.
///
/// # Safety
/// `ctx` is a packet context whose addresses stand at `pointers`.
unsafe fn part(ctx: u64, pointers: usize, offset: u32, len: u32) -> Option<*mut u8> {
    // SAFETY: the caller's promise.
    let [start, end, _] = unsafe { packet::bounds(ctx as *const u8, pointers) };
    let at = start.checked_add(u64::from(offset)).filter(|_| i32::try_from(offset).is_ok())?;
    (at.checked_add(u64::from(len))? <= end).then_some(at as *mut u8)
}

/// Copies bytes of the packet, or zeros if they are not there.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes.
unsafe fn copy_out(from: Option<*mut u8>, to: u64, len: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match from {
            Some(from) => {
                ptr::copy(from, to as *mut u8, len as usize);
                0
            }
            None => {
                ptr::write_bytes(to as *mut u8, 0, len as usize);
                err(Errno::EFAULT)
            }
        }
    }
}

/// # Safety
/// `ctx` is the program's context, `to` writable for `len` bytes.
pub(super) unsafe fn skb_load_bytes(_: &mut Env, ctx: u64, offset: u64, to: u64, len: u64) -> u64 {
    let len = len as u32;
    // SAFETY: the caller's promise.
    unsafe { copy_out(part(ctx, SKB_POINTERS, offset as u32, len), to, len) }
}

/// Offsets count from the link header (0) or from the network header (1).
///
/// # Safety
/// As [`skb_load_bytes`].
pub(super) unsafe fn skb_load_bytes_relative(
    env: &mut Env,
    ctx: u64,
    offset: u64,
    to: u64,
    len: u64,
    header: u64,
) -> u64 {
    const ETH_HLEN: u32 = 14;
    let (offset, len) = (offset as u32, len as u32);
    let behind_link = !matches!(ProgType::from_u32(env.prog_type), Some(ProgType::SchedCls | ProgType::SchedAct));
    // SAFETY: the caller's promise.
    unsafe {
        let from = match header as u32 {
            _ if offset > 0xffff => None,
            0 if behind_link => {
                // The packet begins behind its link header, which lies in front of it.
                let [start, end, link] = packet::bounds(ctx as *const u8, SKB_POINTERS);
                let at = link.wrapping_add(u64::from(offset));
                (link != 0 && link <= start && at.wrapping_add(u64::from(len)) <= end).then_some(at as *mut u8)
            }
            1 if behind_link => part(ctx, SKB_POINTERS, offset, len),
            0 => part(ctx, SKB_POINTERS, offset, len),
            1 => part(ctx, SKB_POINTERS, offset + ETH_HLEN, len),
            _ => None,
        };
        copy_out(from, to, len)
    }
}

/// # Safety
/// `ctx` is the program's context, `from` readable for `len` bytes.
pub(super) unsafe fn skb_store_bytes(_: &mut Env, ctx: u64, offset: u64, from: u64, len: u64, flags: u64) -> u64 {
    let (offset, len) = (offset as u32, len as u32);
    if flags & !3 != 0 {
        return err(Errno::EINVAL);
    }
    // SAFETY: the caller's promise.
    unsafe {
        match part(ctx, SKB_POINTERS, offset, len) {
            Some(to) => {
                ptr::copy(from as *const u8, to, len as usize);
                0
            }
            None => err(Errno::EFAULT),
        }
    }
}

/// All of a packet is in one piece already.
///
/// # Safety
/// `ctx` is the program's context.
pub(super) unsafe fn skb_pull_data(_: &mut Env, ctx: u64, len: u64) -> u64 {
    // SAFETY: the caller's promise.
    match unsafe { part(ctx, SKB_POINTERS, 0, len as u32) } {
        Some(_) => 0,
        None => err(Errno::ENOMEM),
    }
}

/// # Safety
/// `ctx` is the program's context, `to` writable for `len` bytes.
pub(super) unsafe fn xdp_load_bytes(_: &mut Env, ctx: u64, offset: u64, to: u64, len: u64) -> u64 {
    let (offset, len) = (offset as u32, len as u32);
    // SAFETY: the caller's promise.
    unsafe {
        match part(ctx, XDP_POINTERS, offset, len) {
            Some(from) => {
                ptr::copy(from, to as *mut u8, len as usize);
                0
            }
            None => err(Errno::EINVAL),
        }
    }
}

/// # Safety
/// `ctx` is the program's context, `from` readable for `len` bytes.
pub(super) unsafe fn xdp_store_bytes(_: &mut Env, ctx: u64, offset: u64, from: u64, len: u64) -> u64 {
    let (offset, len) = (offset as u32, len as u32);
    // SAFETY: the caller's promise.
    unsafe {
        match part(ctx, XDP_POINTERS, offset, len) {
            Some(to) => {
                ptr::copy(from as *const u8, to, len as usize);
                0
            }
            None => err(Errno::EINVAL),
        }
    }
}

/// The sum with the carry added.
fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(u32::from(carry))
}

/// The sum of all 32-bit words; what is left at the end is filled up with zeros.
///
/// # Safety
/// `at` is readable for `size` bytes.
unsafe fn sum(at: u64, size: u32, seed: u32) -> u32 {
    let mut total = seed;
    for n in 0..(size / 4) as usize {
        // SAFETY: the caller's promise.
        total = add(total, unsafe { ptr::read_unaligned((at as *const u32).add(n)) });
    }
    let mut rest = 0u32;
    for n in 0..size & 3 {
        // SAFETY: as above.
        let byte = unsafe { *(at as *const u8).add((size & !3 | n) as usize) };
        rest |= u32::from(byte) << (8 * n);
    }
    add(total, rest)
}

/// What a checksum changes by if bytes are taken away and others put in their place, in 16 bits.
///
/// # Safety
/// `from` and `to` are readable for their sizes.
pub(super) unsafe fn csum_diff(_: &mut Env, from: u64, from_size: u64, to: u64, to_size: u64, seed: u64) -> u64 {
    let (from_size, to_size, seed) = (from_size as u32, to_size as u32, seed as u32);
    // SAFETY: the caller's promise.
    let total = unsafe {
        match (from_size, to_size) {
            (0, _) => sum(to, to_size, seed),
            (_, 0) => !sum(from, from_size, !seed),
            _ => add(sum(to, to_size, seed), !sum(from, from_size, 0)),
        }
    };
    u64::from(total.wrapping_add(total.rotate_left(16)) >> 16)
}

/// No packet here comes with a checksum that a device has computed.
///
/// # Safety
/// None.
pub(super) unsafe fn csum_update(_: &mut Env) -> u64 {
    err(Errno::ENOTSUPP)
}

/// The socket of a connection: there is none.
///
/// # Safety
/// None.
pub(super) unsafe fn no_socket(_: &mut Env) -> u64 {
    0
}

/// Gives back a socket, which nobody has.
///
/// # Safety
/// None.
pub(super) unsafe fn release_no_socket(_: &mut Env) -> u64 {
    0
}
