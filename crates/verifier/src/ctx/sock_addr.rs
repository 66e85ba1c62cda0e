//! `struct bpf_sock_addr`: addresses on their way into or out of a socket call.

use skep_ebpf::uapi::AttachType as A;

use super::table::{self, ALL, Field, Holds, NARROW, NOBODY, NONE, WIDE, WORD, Who, field, pointer};
use super::{Access, Loaded};
use crate::reg::Kind;

const fn at(types: &[A]) -> Who {
    let mut who = 0;
    let mut n = 0;
    while n < types.len() {
        who |= 1 << types[n] as u32;
        n += 1;
    }
    who
}

const IP4: Who = at(&[
    A::CgroupInet4Bind,
    A::CgroupInet4Connect,
    A::CgroupInet4Getpeername,
    A::CgroupInet4Getsockname,
    A::CgroupUdp4Sendmsg,
    A::CgroupUdp4Recvmsg,
]);
const IP6: Who = at(&[
    A::CgroupInet6Bind,
    A::CgroupInet6Connect,
    A::CgroupInet6Getpeername,
    A::CgroupInet6Getsockname,
    A::CgroupUdp6Sendmsg,
    A::CgroupUdp6Recvmsg,
]);
const SEND4: Who = at(&[A::CgroupUdp4Sendmsg]);
const SEND6: Who = at(&[A::CgroupUdp6Sendmsg]);

const FIELDS: &[Field] = &[
    field(0, 4, WORD, ALL, NONE, NOBODY),                    // user_family
    field(4, 4, NARROW, IP4, WORD, IP4),                     // user_ip4
    field(8, 16, NARROW | WIDE, IP6, WORD | WIDE, IP6),      // user_ip6
    field(24, 4, NARROW, ALL, WORD, ALL),                    // user_port
    field(28, 12, WORD, ALL, NONE, NOBODY),                  // family, type, protocol
    field(40, 4, NARROW, SEND4, WORD, SEND4),                // msg_src_ip4
    field(44, 16, NARROW | WIDE, SEND6, WORD | WIDE, SEND6), // msg_src_ip6
    pointer(64, WIDE, ALL, Holds::Pointer(Kind::Socket)),
];

pub(super) fn access(attach: A, a: Access) -> Option<Loaded> {
    table::access(FIELDS, at(&[attach]), a)
}
