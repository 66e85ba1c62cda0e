//! `struct bpf_sock` and its kin: the context of cgroup socket programs, and what is read through socket pointers.

use skep_ebpf::uapi::AttachType;

use super::table::{self, BYTE, Field, HALF, HEAD, NARROW, NONE, WIDE, WORD, Who, field, read};
use super::{Access, Loaded};

const fn at(t: AttachType) -> Who {
    1 << t as u32
}

/// Sockets that are followed by a pointer: neither before nor after the protocol has bound them.
const POINTER: Who = 1 << 63;
const CREATE: Who = at(AttachType::CgroupInetSockCreate) | at(AttachType::CgroupInetSockRelease);
const BIND4: Who = at(AttachType::CgroupInet4PostBind);
const BIND6: Who = at(AttachType::CgroupInet6PostBind);
const EACH: Who = POINTER | CREATE | BIND4 | BIND6;
const NOBODY: Who = 0;
/// Word fields whose parts can be read from their first byte on.
const PART: u8 = NARROW | HEAD;

const TYPE: i64 = 8;
const SRC_IP4: i64 = 24;

#[rustfmt::skip]
const FIELDS: &[Field] = &[
    field(0, 4, WORD, POINTER | CREATE, WORD, CREATE),             // bound_dev_if
    field(4, 4, PART, EACH, NONE, NOBODY),                         // family
    field(TYPE, 4, PART, EACH, NONE, NOBODY),                      // type
    field(12, 4, PART, EACH, NONE, NOBODY),                        // protocol
    field(16, 4, WORD, POINTER | CREATE, WORD, CREATE),            // mark
    field(20, 4, WORD, POINTER | CREATE, WORD, CREATE),            // priority
    field(SRC_IP4, 4, NARROW, POINTER | BIND4, NONE, NOBODY),      // src_ip4
    field(28, 16, NARROW, POINTER | BIND6, NONE, NOBODY),          // src_ip6
    field(44, 4, PART, POINTER | BIND4 | BIND6, NONE, NOBODY),     // src_port
    field(48, 2, BYTE | HALF, EACH, NONE, NOBODY),                 // dst_port
    field(48, 4, WORD, EACH, NONE, NOBODY),                        // dst_port and its padding
    field(52, 20, NARROW, EACH, NONE, NOBODY),                     // dst_ip4, dst_ip6
    field(72, 4, PART, EACH, NONE, NOBODY),                        // state
    field(76, 4, PART, EACH, NONE, NOBODY),                        // rx_queue_mapping
];

/// The context of `cgroup/sock*` and `cgroup/post_bind*`.
pub(super) fn cgroup(attach: AttachType, a: Access) -> Option<Loaded> {
    table::access(FIELDS, at(attach), a)
}

pub(super) fn full(a: Access) -> Option<Loaded> {
    table::access(FIELDS, POINTER, a)
}

/// What all sockets have: neither type nor protocol, mark nor priority.
pub(super) fn common(a: Access) -> Option<Loaded> {
    if (TYPE..SRC_IP4).contains(&a.off) { None } else { full(a) }
}

const TCP: &[Field] = &[
    read(0, 80, WORD),  // snd_cwnd to sacked_out
    read(80, 16, WIDE), // bytes_received, bytes_acked
    read(96, 16, WORD), // dsack_dups to icsk_retransmits
];

pub(super) fn tcp(a: Access) -> Option<Loaded> {
    table::access(TCP, table::ALL, a)
}

const XDP: &[Field] = &[read(0, 4, WORD)]; // queue_id

pub(super) fn xdp(a: Access) -> Option<Loaded> {
    table::access(XDP, table::ALL, a)
}
