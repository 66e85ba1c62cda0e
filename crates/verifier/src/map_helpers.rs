//! Which helpers work on which maps.

use skep_ebpf::uapi::{MapType, ProgType};

/// Helpers, by number.
mod id {
    pub const MAP_LOOKUP: u32 = 1;
    pub const MAP_UPDATE: u32 = 2;
    pub const MAP_DELETE: u32 = 3;
    pub const TAIL_CALL: u32 = 12;
    pub const PERF_EVENT_READ: u32 = 22;
    pub const PERF_EVENT_OUTPUT: u32 = 25;
    pub const GET_STACKID: u32 = 27;
    pub const SKB_UNDER_CGROUP: u32 = 33;
    pub const TASK_UNDER_CGROUP: u32 = 37;
    pub const REDIRECT_MAP: u32 = 51;
    pub const SK_REDIRECT_MAP: u32 = 52;
    pub const SOCK_MAP_UPDATE: u32 = 53;
    pub const PERF_EVENT_READ_VALUE: u32 = 55;
    pub const MSG_REDIRECT_MAP: u32 = 60;
    pub const SOCK_HASH_UPDATE: u32 = 70;
    pub const MSG_REDIRECT_HASH: u32 = 71;
    pub const SK_REDIRECT_HASH: u32 = 72;
    pub const GET_LOCAL_STORAGE: u32 = 81;
    pub const SK_SELECT_REUSEPORT: u32 = 82;
    pub const MAP_PUSH: u32 = 87;
    pub const MAP_POP: u32 = 88;
    pub const MAP_PEEK: u32 = 89;
    pub const SK_STORAGE_GET: u32 = 107;
    pub const SK_STORAGE_DELETE: u32 = 108;
    pub const SKB_OUTPUT: u32 = 111;
    pub const XDP_OUTPUT: u32 = 121;
    pub const RINGBUF_OUTPUT: u32 = 130;
    pub const RINGBUF_RESERVE: u32 = 131;
    pub const RINGBUF_QUERY: u32 = 134;
    pub const INODE_STORAGE_GET: u32 = 145;
    pub const INODE_STORAGE_DELETE: u32 = 146;
    pub const TASK_STORAGE_GET: u32 = 156;
    pub const TASK_STORAGE_DELETE: u32 = 157;
    pub const FOR_EACH: u32 = 164;
    pub const MAP_LOOKUP_PERCPU: u32 = 195;
    pub const RINGBUF_RESERVE_DYNPTR: u32 = 198;
    pub const RINGBUF_SUBMIT_DYNPTR: u32 = 199;
    pub const RINGBUF_DISCARD_DYNPTR: u32 = 200;
    pub const USER_RINGBUF_DRAIN: u32 = 209;
    pub const CGRP_STORAGE_GET: u32 = 210;
    pub const CGRP_STORAGE_DELETE: u32 = 211;
}

use id::*;

/// The only helpers that work on a map of this type; `None` if the type does not restrict them.
fn helpers_of(map: MapType) -> Option<&'static [u32]> {
    Some(match map {
        MapType::ProgArray => &[TAIL_CALL],
        MapType::PerfEventArray => &[PERF_EVENT_READ, PERF_EVENT_OUTPUT, SKB_OUTPUT, PERF_EVENT_READ_VALUE, XDP_OUTPUT],
        MapType::Ringbuf => &[
            RINGBUF_OUTPUT,
            RINGBUF_RESERVE,
            RINGBUF_QUERY,
            RINGBUF_RESERVE_DYNPTR,
            RINGBUF_SUBMIT_DYNPTR,
            RINGBUF_DISCARD_DYNPTR,
        ],
        MapType::UserRingbuf => &[USER_RINGBUF_DRAIN],
        MapType::StackTrace => &[GET_STACKID],
        MapType::CgroupArray => &[SKB_UNDER_CGROUP, TASK_UNDER_CGROUP],
        MapType::CgroupStorage | MapType::PercpuCgroupStorage => &[GET_LOCAL_STORAGE],
        MapType::Devmap | MapType::DevmapHash => &[REDIRECT_MAP, MAP_LOOKUP],
        MapType::Cpumap => &[REDIRECT_MAP],
        MapType::Xskmap => &[REDIRECT_MAP, MAP_LOOKUP],
        MapType::ArrayOfMaps | MapType::HashOfMaps => &[MAP_LOOKUP],
        MapType::Sockmap => &[
            SK_REDIRECT_MAP,
            SOCK_MAP_UPDATE,
            MAP_DELETE,
            MSG_REDIRECT_MAP,
            SK_SELECT_REUSEPORT,
            MAP_LOOKUP,
            MAP_UPDATE,
        ],
        MapType::Sockhash => &[
            SK_REDIRECT_HASH,
            SOCK_HASH_UPDATE,
            MAP_DELETE,
            MSG_REDIRECT_HASH,
            SK_SELECT_REUSEPORT,
            MAP_LOOKUP,
            MAP_UPDATE,
        ],
        MapType::ReuseportSockarray => &[SK_SELECT_REUSEPORT],
        MapType::Queue | MapType::Stack => &[MAP_PEEK, MAP_POP, MAP_PUSH],
        MapType::SkStorage => &[SK_STORAGE_GET, SK_STORAGE_DELETE],
        MapType::InodeStorage => &[INODE_STORAGE_GET, INODE_STORAGE_DELETE],
        MapType::TaskStorage => &[TASK_STORAGE_GET, TASK_STORAGE_DELETE],
        MapType::CgrpStorage => &[CGRP_STORAGE_GET, CGRP_STORAGE_DELETE],
        MapType::BloomFilter => &[MAP_PEEK, MAP_PUSH],
        _ => return None,
    })
}

/// The only map types that a helper works on; `None` if the helper does not restrict them.
fn maps_of(helper: u32) -> Option<&'static [MapType]> {
    Some(match helper {
        TAIL_CALL => &[MapType::ProgArray],
        PERF_EVENT_READ | PERF_EVENT_OUTPUT | PERF_EVENT_READ_VALUE | SKB_OUTPUT | XDP_OUTPUT => {
            &[MapType::PerfEventArray]
        }
        RINGBUF_OUTPUT
        | RINGBUF_RESERVE
        | RINGBUF_QUERY
        | RINGBUF_RESERVE_DYNPTR
        | RINGBUF_SUBMIT_DYNPTR
        | RINGBUF_DISCARD_DYNPTR => &[MapType::Ringbuf],
        USER_RINGBUF_DRAIN => &[MapType::UserRingbuf],
        GET_STACKID => &[MapType::StackTrace],
        TASK_UNDER_CGROUP | SKB_UNDER_CGROUP => &[MapType::CgroupArray],
        REDIRECT_MAP => &[MapType::Devmap, MapType::DevmapHash, MapType::Cpumap, MapType::Xskmap],
        SK_REDIRECT_MAP | MSG_REDIRECT_MAP | SOCK_MAP_UPDATE => &[MapType::Sockmap],
        SK_REDIRECT_HASH | MSG_REDIRECT_HASH | SOCK_HASH_UPDATE => &[MapType::Sockhash],
        GET_LOCAL_STORAGE => &[MapType::CgroupStorage, MapType::PercpuCgroupStorage],
        SK_SELECT_REUSEPORT => &[MapType::ReuseportSockarray, MapType::Sockmap, MapType::Sockhash],
        MAP_POP => &[MapType::Queue, MapType::Stack],
        MAP_PEEK | MAP_PUSH => &[MapType::Queue, MapType::Stack, MapType::BloomFilter],
        MAP_LOOKUP_PERCPU => &[MapType::PercpuArray, MapType::PercpuHash, MapType::LruPercpuHash],
        SK_STORAGE_GET | SK_STORAGE_DELETE => &[MapType::SkStorage],
        INODE_STORAGE_GET | INODE_STORAGE_DELETE => &[MapType::InodeStorage],
        TASK_STORAGE_GET | TASK_STORAGE_DELETE => &[MapType::TaskStorage],
        CGRP_STORAGE_GET | CGRP_STORAGE_DELETE => &[MapType::CgrpStorage],
        FOR_EACH => &[
            MapType::Hash,
            MapType::PercpuHash,
            MapType::LruHash,
            MapType::LruPercpuHash,
            MapType::Array,
            MapType::PercpuArray,
        ],
        _ => return None,
    })
}

/// True if the helper works on maps of this type.
pub(crate) fn fit(helper: u32, map: MapType) -> bool {
    helpers_of(map).is_none_or(|h| h.contains(&helper)) && maps_of(helper).is_none_or(|m| m.contains(&map))
}

/// True if programs of this type may change socket maps with the plain map helpers.
pub(crate) fn may_change_sockmap(helper: u32, map: MapType, prog: ProgType) -> bool {
    if !matches!(map, MapType::Sockmap | MapType::Sockhash) || !matches!(helper, MAP_UPDATE | MAP_DELETE) {
        return true;
    }
    match prog {
        ProgType::SocketFilter
        | ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::Xdp
        | ProgType::SkReuseport
        | ProgType::FlowDissector
        | ProgType::SkLookup => true,
        ProgType::SockOps => helper == MAP_DELETE,
        _ => false,
    }
}

/// True if the map type can be judged at all: those with rules of their own for what a lookup gives are not yet.
pub(crate) fn lookup_known(map: MapType) -> bool {
    !matches!(map, MapType::Arena | MapType::StructOps)
}
