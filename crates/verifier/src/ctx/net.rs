//! Contexts of sockets and packets that are no `__sk_buff`: messages, look-ups, reuseport groups, netfilter, infrared.

use super::table::{self, ALL, BYTE, Field, HALF, Holds, NARROW, WIDE, WORD, pointer, read};
use super::{Access, Loaded};
use crate::reg::Kind;

const SK_MSG: &[Field] = &[
    pointer(0, WIDE, ALL, Holds::Pointer(Kind::Packet)),
    pointer(8, WIDE, ALL, Holds::Pointer(Kind::PacketEnd)),
    read(16, 56, WORD), // family to size
    pointer(72, WIDE, ALL, Holds::Pointer(Kind::Socket)),
];

/// `struct sk_msg_md`.
pub(super) fn sk_msg(a: Access) -> Option<Loaded> {
    table::access(SK_MSG, ALL, a)
}

const SK_LOOKUP: &[Field] = &[
    pointer(0, WIDE, ALL, Holds::PointerOrNull(Kind::Socket)),
    read(8, 28, NARROW),      // family to remote_ip6
    read(36, 4, BYTE | HALF), // remote_port and its padding
    read(36, 4, WORD),
    read(40, 28, NARROW), // local_ip4 to ingress_ifindex
];

/// `struct bpf_sk_lookup`.
pub(super) fn sk_lookup(a: Access) -> Option<Loaded> {
    table::access(SK_LOOKUP, ALL, a)
}

const SK_REUSEPORT: &[Field] = &[
    pointer(0, WIDE, ALL, Holds::Pointer(Kind::Packet)),
    pointer(8, WIDE, ALL, Holds::Pointer(Kind::PacketEnd)),
    read(16, 4, NARROW),      // len
    read(20, 4, HALF | WORD), // eth_protocol
    read(24, 8, NARROW),      // ip_protocol, bind_inany
    read(32, 4, WORD),        // hash
    pointer(40, WIDE, ALL, Holds::Pointer(Kind::Socket)),
    pointer(48, WIDE, ALL, Holds::PointerOrNull(Kind::SockCommon)), // migrating_sk
];

/// `struct sk_reuseport_md`.
pub(super) fn sk_reuseport(a: Access) -> Option<Loaded> {
    table::access(SK_REUSEPORT, ALL, a)
}

/// `struct bpf_nf_ctx`: two pointers to kernel objects.
pub(super) fn netfilter(a: Access) -> Option<Loaded> {
    if !a.is_read_of(8) {
        return None;
    }
    match a.off {
        0 => Some(Loaded::Trusted("nf_hook_state")),
        8 => Some(Loaded::Trusted("sk_buff")),
        _ => None,
    }
}

const LIRC: &[Field] = &[read(0, 4, WORD)];

/// A scan code.
pub(super) fn lirc(a: Access) -> Option<Loaded> {
    table::access(LIRC, ALL, a)
}
