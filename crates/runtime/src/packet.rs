//! Loads from a packet for `LD_ABS` and `LD_IND`, and the layout of packet contexts.
//!
//! A `__sk_buff` context is the user API's structure (192 bytes) with three addresses behind it; an `xdp_md` (24 bytes)
//! likewise. The verifier turns the 32-bit loads of `data`, `data_end` and `data_meta` into loads of these.

use skep_ebpf::uapi::ProgType;

/// Where the addresses `data`, `data_end` and `data_meta` stand in the context of a program that gets a `__sk_buff`.
///
/// For socket filters, which see the packet from the network header on, `data_meta` is where the link header starts.
pub const SKB_POINTERS: usize = 192;
/// The same for `xdp_md`.
pub const XDP_POINTERS: usize = 24;
/// Bytes of a `__sk_buff` context.
pub const SKB_CTX_SIZE: usize = SKB_POINTERS + 24;
/// Bytes of an `xdp_md` context.
pub const XDP_CTX_SIZE: usize = XDP_POINTERS + 24;

/// Offsets from here on (negative ones) count from the network header.
const NET_OFF: i32 = -0x10_0000;
/// Offsets from here on count from the link header.
const LL_OFF: i32 = -0x20_0000;
/// Bytes of an Ethernet header.
const ETH_HLEN: u64 = 14;

/// Offset of the addresses in a packet context of this program type; none if it has no packet.
pub(crate) fn pointers(prog_type: u32) -> Option<usize> {
    match ProgType::from_u32(prog_type) {
        Some(ProgType::Xdp) => Some(XDP_POINTERS),
        Some(ProgType::SocketFilter | ProgType::SchedCls | ProgType::SchedAct | ProgType::CgroupSkb) => {
            Some(SKB_POINTERS)
        }
        _ => None,
    }
}

/// `data`, `data_end` and `data_meta` of a packet context.
///
/// # Safety
/// `ctx` is a packet context whose addresses stand at `pointers`.
pub(crate) unsafe fn bounds(ctx: *const u8, pointers: usize) -> [u64; 3] {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::read_unaligned(ctx.add(pointers).cast()) }
}

/// The big-endian number of `size` bytes at offset `at` of the packet; none if it is not all there.
///
/// # Safety
/// `ctx` is a `__sk_buff` context of a program of type `prog_type`, and its packet is readable.
pub(crate) unsafe fn load(ctx: *const u8, prog_type: u32, at: i32, size: u64) -> Option<u32> {
    // SAFETY: the caller's promise.
    let [data, end, meta] = unsafe { bounds(ctx, SKB_POINTERS) };
    // All but these see the packet behind its link header.
    let l2 = matches!(ProgType::from_u32(prog_type), Some(ProgType::SchedCls | ProgType::SchedAct));
    let start = match at {
        0.. => data.checked_add(at as u64)?,
        NET_OFF..0 => data.checked_add(if l2 { ETH_HLEN } else { 0 })?.checked_add((at - NET_OFF) as u64)?,
        LL_OFF..NET_OFF if l2 => data.checked_add((at - LL_OFF) as u64)?,
        LL_OFF..NET_OFF if meta != 0 && meta <= data => meta.checked_add((at - LL_OFF) as u64)?,
        _ => return None,
    };
    if start.checked_add(size)? > end {
        return None;
    }
    // SAFETY: the bytes lie between the start and the end of the packet.
    unsafe {
        Some(match size {
            1 => u32::from(*(start as *const u8)),
            2 => u32::from(u16::from_be(core::ptr::read_unaligned(start as *const u16))),
            _ => u32::from_be(core::ptr::read_unaligned(start as *const u32)),
        })
    }
}
