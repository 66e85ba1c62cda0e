//! `struct bpf_sock_ops`: events in the life of a TCP connection.

use super::table::{self, ALL, Field, HEAD, Holds, NARROW, NOBODY, NONE, WIDE, WORD, field, pointer, read};
use super::{Access, Loaded};
use crate::reg::Kind;

const FIELDS: &[Field] = &[
    field(0, 4, WORD, ALL, NONE, NOBODY), // op
    field(4, 4, WORD, ALL, WORD, ALL),    // reply, args[0]
    read(8, 156, WORD),                   // args[1] to sacked_out
    field(164, 4, WORD, ALL, WORD, ALL),  // sk_txhash
    read(168, 16, WIDE),                  // bytes_received, bytes_acked
    pointer(184, WIDE, ALL, Holds::PointerOrNull(Kind::Socket)),
    pointer(192, WIDE, ALL, Holds::Pointer(Kind::Packet)),
    pointer(200, WIDE, ALL, Holds::Pointer(Kind::PacketEnd)),
    read(208, 4, WORD),          // skb_len
    read(212, 4, NARROW | HEAD), // skb_tcp_flags
    read(216, 8, WIDE),          // skb_hwtstamp
];

pub(super) fn access(a: Access) -> Option<Loaded> {
    table::access(FIELDS, ALL, a)
}
