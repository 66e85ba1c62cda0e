//! `struct xdp_md`: six 32-bit fields, three of which are pointers.

use skep_ebpf::uapi::AttachType;

use super::table::{self, ALL, Field, Holds, NOBODY, NONE, WORD, Who, field, pointer, read};
use super::{Access, Loaded};
use crate::reg::Kind;

const DATA: i64 = 0;
const DATA_END: i64 = 4;
const DATA_META: i64 = 8;
const DEVMAP: Who = 1 << AttachType::XdpDevmap as u32;

const FIELDS: &[Field] = &[
    pointer(DATA, WORD, ALL, Holds::Pointer(Kind::Packet)),
    pointer(DATA_END, WORD, ALL, Holds::Pointer(Kind::PacketEnd)),
    pointer(DATA_META, WORD, ALL, Holds::Pointer(Kind::PacketMeta)),
    read(12, 8, WORD),                        // ingress_ifindex, rx_queue_index
    field(20, 4, WORD, DEVMAP, NONE, NOBODY), // egress_ifindex
];

pub(super) fn access(attach: AttachType, a: Access) -> Option<Loaded> {
    table::access(FIELDS, 1 << attach as u32, a)
}

pub(super) fn pointer_field(off: i32) -> Option<i16> {
    match i64::from(off) {
        DATA => Some(24),
        DATA_END => Some(32),
        DATA_META => Some(40),
        _ => None,
    }
}
