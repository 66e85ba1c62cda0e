//! Runs on a `struct __sk_buff`.

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;
use skep_runtime::packet::{SKB_CTX_SIZE, SKB_POINTERS};

use super::{TestInput, TestOutput, TestRunError, context, device, get, get_pointer, invalid, put, refused, repeat};

const ETH_HLEN: usize = 14;
/// Room before the packet.
const HEADROOM: usize = 64;
/// Most bytes that fit a page with the kernel's room before and behind them.
const MAX_DATA: usize = 4096 - HEADROOM - 320;
const GSO_MAX_SEGS: u32 = 65535;

/// Offsets in `struct __sk_buff`.
mod field {
    pub const LEN: usize = 0;
    pub const PKT_TYPE: usize = 4;
    pub const PROTOCOL: usize = 16;
    pub const IFINDEX: usize = 40;
    pub const WIRE_LEN: usize = 160;
    pub const GSO_SEGS: usize = 164;
    /// What a context may set, and what is given back: mark; priority, ingress_ifindex, ifindex; cb; tstamp, wire_len,
    /// gso_segs; gso_size; hwtstamp.
    pub const OPEN: [std::ops::Range<usize>; 6] = [8..12, 32..44, 48..68, 152..168, 176..180, 184..192];
}

pub fn run(
    prog_type: ProgType,
    input: &TestInput<'_>,
    program: &mut dyn FnMut(*mut u8) -> u64,
) -> Result<TestOutput, TestRunError> {
    let user: [u8; SKB_POINTERS] = context(input.ctx, "struct __sk_buff")?;
    let packet = input.data.unwrap_or_default();
    if !(ETH_HLEN..=MAX_DATA).contains(&packet.len()) {
        return Err(invalid(format!("the packet has {} bytes; possible are {ETH_HLEN} to {MAX_DATA}", packet.len())));
    }
    if let Some(at) = (0..user.len()).find(|at| user[*at] != 0 && !field::OPEN.iter().any(|open| open.contains(at))) {
        return Err(invalid(format!("the context must be zero at byte {at}: that field of __sk_buff cannot be set")));
    }
    // Only programs that see the link layer get the packet from its Ethernet header on.
    let link_layer = matches!(prog_type, ProgType::SchedCls | ProgType::SchedAct);
    let pulled = if link_layer { 0 } else { ETH_HLEN };
    let mut ctx = [0u8; SKB_CTX_SIZE];
    ctx[..user.len()].copy_from_slice(&user);
    let length = (packet.len() - pulled) as u32;
    if input.ctx.is_some() {
        let wire = get(&user, field::WIRE_LEN);
        if wire == 0 {
            put(&mut ctx, field::WIRE_LEN, length.to_ne_bytes());
        } else if wire < length {
            return Err(invalid(format!("wire_len {wire} is less than the packet's {length} bytes")));
        }
        if get(&user, field::GSO_SEGS) > GSO_MAX_SEGS {
            return Err(invalid(format!("gso_segs is more than {GSO_MAX_SEGS}")));
        }
    }
    match get(&user, field::IFINDEX) {
        0 => put(&mut ctx, field::IFINDEX, 1u32.to_ne_bytes()),
        index if !device(index) => return Err(refused(Errno::ENODEV, format!("there is no device {index}"))),
        _ => {}
    }
    put(&mut ctx, field::LEN, length.to_ne_bytes());
    put(&mut ctx, field::PKT_TYPE, packet_type(packet).to_ne_bytes());
    put(&mut ctx, field::PROTOCOL, u32::from(protocol(packet)).to_ne_bytes());
    let mut buffer = vec![0u8; HEADROOM + MAX_DATA];
    buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(packet);
    // Programs get addresses: from here on the buffer is reached through this pointer alone.
    let base = buffer.as_mut_ptr();
    let start = base as usize + HEADROOM;
    put(&mut ctx, SKB_POINTERS, (start + pulled).to_ne_bytes());
    put(&mut ctx, SKB_POINTERS + 8, (start + packet.len()).to_ne_bytes());
    put(&mut ctx, SKB_POINTERS + 16, start.to_ne_bytes());
    let (retval, duration_ns) = repeat(input.repeat, ctx.as_mut_ptr(), program);
    let from = get_pointer(&ctx, SKB_POINTERS).wrapping_sub(base as usize);
    let to = get_pointer(&ctx, SKB_POINTERS + 8).wrapping_sub(base as usize);
    let mut data = vec![0; pulled];
    data.extend_from_slice(buffer.get(from..to).unwrap_or_default());
    let mut out = vec![0; SKB_POINTERS];
    for open in field::OPEN {
        out[open.clone()].copy_from_slice(&ctx[open]);
    }
    Ok(TestOutput { retval, duration_ns, data: Some(data), ctx: Some(out) })
}

/// `PACKET_HOST`, `PACKET_BROADCAST`, `PACKET_MULTICAST` or `PACKET_OTHERHOST`, seen from the loopback device.
fn packet_type(packet: &[u8]) -> u32 {
    match packet.first_chunk::<6>() {
        None | Some([0, 0, 0, 0, 0, 0]) => 0,
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => 1,
        Some([first, ..]) if first & 1 != 0 => 2,
        Some(_) => 3,
    }
}

/// The protocol of an Ethernet header, in network order; frames without one are 802.3 ones.
fn protocol(packet: &[u8]) -> u16 {
    let word = |at: usize| packet.get(at..at + 2).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b));
    let ethertype = word(12);
    let value: u16 = match ethertype {
        0x600.. => ethertype,
        _ if packet.len() >= 16 && word(14) == 0xffff => 0x0001,
        _ => 0x0004,
    };
    value.to_be()
}
