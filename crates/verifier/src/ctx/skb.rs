//! `struct __sk_buff`: the context of everything that sees packets as socket buffers.

use skep_ebpf::helper::only;
use skep_ebpf::uapi::ProgType;

use super::table::{self, ALL, ANY, BYTE, Field, Holds, NARROW, NOBODY, NONE, WIDE, WORD, Who, field, pointer};
use super::{Access, Loaded};
use crate::reg::Kind;

const FILTER: Who = only(ProgType::SocketFilter);
const TC: Who = only(ProgType::SchedCls) | only(ProgType::SchedAct);
const CGROUP: Who = only(ProgType::CgroupSkb);
const LWT: Who =
    only(ProgType::LwtIn) | only(ProgType::LwtOut) | only(ProgType::LwtXmit) | only(ProgType::LwtSeg6local);
const STREAM: Who = only(ProgType::SkSkb);
const FLOW: Who = only(ProgType::FlowDissector);
/// The flow dissector sees the packet and its keys, nothing else.
const MOST: Who = ALL & !FLOW;
/// Those that run where the packet has a socket.
const SOCKET: Who = CGROUP | STREAM;

const DATA: i64 = 76;
const DATA_END: i64 = 80;
const DATA_META: i64 = 140;

#[rustfmt::skip]
const FIELDS: &[Field] = &[
    field(0, 8, NARROW, MOST, NONE, NOBODY),                             // len, pkt_type
    field(8, 4, NARROW, MOST & !STREAM, WORD, TC | CGROUP | LWT),        // mark
    field(12, 4, NARROW, MOST, WORD, TC),                                // queue_mapping
    field(16, 16, NARROW, MOST, NONE, NOBODY),                           // protocol, vlan_*
    field(32, 4, NARROW, MOST, WORD, TC | CGROUP | LWT | STREAM),        // priority
    field(36, 8, NARROW, MOST, NONE, NOBODY),                            // ingress_ifindex, ifindex
    field(44, 4, NARROW, MOST, WORD, TC | STREAM),                       // tc_index
    field(48, 20, ANY, MOST, ANY, FILTER | TC | CGROUP | LWT),           // cb
    field(68, 4, NARROW, MOST, NONE, NOBODY),                            // hash
    field(72, 4, NARROW, TC, WORD, TC),                                  // tc_classid
    pointer(DATA, WORD, ALL & !FILTER, Holds::Pointer(Kind::Packet)),
    pointer(DATA_END, WORD, ALL & !FILTER, Holds::Pointer(Kind::PacketEnd)),
    field(84, 4, NARROW, MOST, NONE, NOBODY),                            // napi_id
    field(88, 4, NARROW, SOCKET, NONE, NOBODY),                          // family
    field(92, 40, WORD, SOCKET, NONE, NOBODY),                           // remote_ip4 to local_ip6
    field(132, 8, NARROW, SOCKET, NONE, NOBODY),                         // remote_port, local_port
    pointer(DATA_META, WORD, TC, Holds::Pointer(Kind::PacketMeta)),
    pointer(144, WIDE, FLOW, Holds::Pointer(Kind::FlowKeys)),
    field(152, 8, WIDE, TC | CGROUP, WIDE, TC | CGROUP),                 // tstamp
    field(160, 4, NARROW, TC, NONE, NOBODY),                             // wire_len
    field(164, 4, NARROW, MOST, NONE, NOBODY),                           // gso_segs
    pointer(168, WIDE, MOST, Holds::PointerOrNull(Kind::SockCommon)),
    field(176, 4, NARROW, MOST, NONE, NOBODY),                           // gso_size
    field(180, 1, BYTE, TC, NONE, NOBODY),                               // tstamp_type
    field(184, 8, WIDE, TC | CGROUP, NONE, NOBODY),                      // hwtstamp
];

pub(super) fn access(prog: ProgType, a: Access) -> Option<Loaded> {
    table::access(FIELDS, only(prog), a)
}

pub(super) fn pointer_field(off: i32) -> Option<i16> {
    match i64::from(off) {
        DATA => Some(192),
        DATA_END => Some(200),
        DATA_META => Some(208),
        _ => None,
    }
}
