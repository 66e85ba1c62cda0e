//! Contexts of control groups: socket options, sysctls, devices.

use skep_ebpf::uapi::AttachType;

use super::table::{self, ALL, Field, Holds, NARROW, NOBODY, NONE, WIDE, WORD, Who, field, pointer, read};
use super::{Access, Loaded};
use crate::reg::Kind;

const GET: Who = 1 << AttachType::CgroupGetsockopt as u32;
const SET: Who = 1 << AttachType::CgroupSetsockopt as u32;

const SOCKOPT: &[Field] = &[
    pointer(0, WIDE, ALL, Holds::Pointer(Kind::Socket)),
    pointer(8, WIDE, ALL, Holds::Pointer(Kind::Packet)),     // optval
    pointer(16, WIDE, ALL, Holds::Pointer(Kind::PacketEnd)), // optval_end
    field(24, 8, WORD, ALL, WORD, SET),                      // level, optname
    field(32, 4, WORD, ALL, WORD, ALL),                      // optlen
    field(36, 4, WORD, GET, WORD, GET),                      // retval
];

pub(super) fn sockopt(attach: AttachType, a: Access) -> Option<Loaded> {
    table::access(SOCKOPT, 1 << attach as u32, a)
}

const SYSCTL: &[Field] = &[
    field(0, 4, NARROW, ALL, NONE, NOBODY), // write
    field(4, 4, NARROW, ALL, WORD, ALL),    // file_pos
];

pub(super) fn sysctl(a: Access) -> Option<Loaded> {
    table::access(SYSCTL, ALL, a)
}

const DEVICE: &[Field] = &[
    read(0, 4, NARROW), // access_type
    read(4, 8, WORD),   // major, minor
];

pub(super) fn device(a: Access) -> Option<Loaded> {
    table::access(DEVICE, ALL, a)
}
