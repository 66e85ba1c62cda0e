//! `struct xdp_md`: six 32-bit fields, three of which are pointers.

use skep_ebpf::uapi::AttachType;

use super::{Access, Loaded};
use crate::reg::Kind;

const DATA: i64 = 0;
const DATA_END: i64 = 4;
const DATA_META: i64 = 8;
const EGRESS_IFINDEX: i64 = 20;
const SIZE: i64 = 24;

pub(super) fn access(attach: Option<AttachType>, a: Access) -> Option<Loaded> {
    if a.write || !(0..SIZE).contains(&a.off) || !a.aligned() || a.size != 4 {
        return None;
    }
    let pointer = |kind| (!a.signed).then_some(Loaded::Pointer { kind, nullable: false });
    match a.off {
        DATA => pointer(Kind::Packet),
        DATA_END => pointer(Kind::PacketEnd),
        DATA_META => pointer(Kind::PacketMeta),
        EGRESS_IFINDEX if attach != Some(AttachType::XdpDevmap) => None,
        _ => Some(Loaded::Number),
    }
}

pub(super) fn pointer_field(off: i32) -> Option<i16> {
    match i64::from(off) {
        DATA => Some(24),
        DATA_END => Some(32),
        DATA_META => Some(40),
        _ => None,
    }
}
