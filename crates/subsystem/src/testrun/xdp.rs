//! Runs on a `struct xdp_md`.

use skep_ebpf::Errno;
use skep_runtime::packet::{XDP_CTX_SIZE, XDP_POINTERS};

use super::{TestInput, TestOutput, TestRunError, context, device, get, get_pointer, invalid, put, refused, repeat};

const ETH_HLEN: usize = 14;
/// Room before the packet.
const HEADROOM: usize = 256;
/// Room behind it.
const TAILROOM: usize = 320;
/// Most bytes of one buffer.
const MAX_LINEAR: usize = 4096 - HEADROOM - TAILROOM;
/// Most bytes of metadata: the room before the packet less what the kernel keeps there.
const MAX_META: usize = HEADROOM - 40;

/// Offsets in `struct xdp_md`.
mod field {
    pub const DATA: usize = 0;
    pub const DATA_END: usize = 4;
    pub const DATA_META: usize = 8;
    pub const INGRESS_IFINDEX: usize = 12;
    pub const RX_QUEUE_INDEX: usize = 16;
    pub const EGRESS_IFINDEX: usize = 20;
}

pub fn run(input: &TestInput<'_>, program: &mut dyn FnMut(*mut u8) -> u64) -> Result<TestOutput, TestRunError> {
    let user: [u8; XDP_POINTERS] = context(input.ctx, "struct xdp_md")?;
    let all = input.data.unwrap_or_default();
    if all.len() < ETH_HLEN {
        return Err(invalid(format!("the packet has {} bytes; it needs {ETH_HLEN} at least", all.len())));
    }
    let given = |at| get(&user, at) as usize;
    // In a context `data` and `data_end` are counted from the start of what was given: metadata, then the packet.
    let (meta, end) = match input.ctx {
        Some(_) => (given(field::DATA), given(field::DATA_END)),
        None => (0, all.len()),
    };
    if given(field::DATA_META) != 0 {
        return Err(invalid("data_meta must be 0: nothing stands before the metadata"));
    }
    if end > all.len() || meta > end {
        return Err(invalid(format!("data {meta} and data_end {end} do not fit {} bytes of data", all.len())));
    }
    if !meta.is_multiple_of(4) || meta > MAX_META {
        return Err(invalid(format!("{meta} bytes of metadata: possible are multiples of 4 up to {MAX_META}")));
    }
    let (linear, fragments) = all.split_at(end);
    if linear.len() > MAX_LINEAR {
        return Err(TestRunError::NotYet { what: "an XDP packet of more than 3520 bytes" });
    }
    let ingress = given(field::INGRESS_IFINDEX) as u32;
    if given(field::EGRESS_IFINDEX) != 0 {
        return Err(invalid("egress_ifindex cannot be set"));
    }
    if given(field::RX_QUEUE_INDEX) != 0 {
        return Err(invalid(format!("device {ingress} has no receive queue {}", given(field::RX_QUEUE_INDEX))));
    }
    if ingress != 0 && !device(ingress) {
        return Err(refused(Errno::ENODEV, format!("there is no device {ingress}")));
    }
    let mut buffer = vec![0u8; HEADROOM + MAX_LINEAR + TAILROOM];
    // The metadata lie in the room before the packet.
    let first = HEADROOM - meta;
    buffer[first..first + linear.len()].copy_from_slice(linear);
    // Programs get addresses: from here on the buffer is reached through this pointer alone.
    let base = buffer.as_mut_ptr() as usize;
    let mut ctx = [0u8; XDP_CTX_SIZE];
    put(&mut ctx, field::INGRESS_IFINDEX, ingress.max(1).to_ne_bytes());
    put(&mut ctx, XDP_POINTERS, (base + first + meta).to_ne_bytes());
    put(&mut ctx, XDP_POINTERS + 8, (base + first + linear.len()).to_ne_bytes());
    put(&mut ctx, XDP_POINTERS + 16, (base + first).to_ne_bytes());
    let (retval, duration_ns) = repeat(input.repeat, ctx.as_mut_ptr(), program);
    let at = |i: usize| get_pointer(&ctx, XDP_POINTERS + 8 * i).wrapping_sub(base);
    let (start, stop, first) = (at(0), at(1), at(2));
    let mut data = buffer.get(first..stop).unwrap_or_default().to_vec();
    data.extend_from_slice(fragments);
    let mut out = vec![0; XDP_POINTERS];
    put(&mut out, field::DATA, (start.wrapping_sub(first) as u32).to_ne_bytes());
    put(&mut out, field::DATA_END, (stop.wrapping_sub(first) as u32).to_ne_bytes());
    put(&mut out, field::INGRESS_IFINDEX, ingress.to_ne_bytes());
    Ok(TestOutput { retval, duration_ns, data: Some(data), ctx: Some(out) })
}
