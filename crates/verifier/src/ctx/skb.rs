//! `struct __sk_buff`: the context of socket filters and traffic control.

use super::{Access, Loaded};
use crate::reg::Kind;

const MARK: i64 = 8;
const QUEUE_MAPPING: i64 = 12;
const PRIORITY: i64 = 32;
const TC_INDEX: i64 = 44;
const CB: i64 = 48;
const CB_LEN: i64 = 20;
const TC_CLASSID: i64 = 72;
const DATA: i64 = 76;
const DATA_END: i64 = 80;
const FAMILY: i64 = 88;
const REMOTE_IP4: i64 = 92;
const LOCAL_IP6_END: i64 = 132;
const LOCAL_PORT_END: i64 = 140;
const DATA_META: i64 = 140;
const FLOW_KEYS: i64 = 144;
const TSTAMP: i64 = 152;
const WIRE_LEN: i64 = 160;
const SK: i64 = 168;
const TSTAMP_TYPE: i64 = 180;
const HWTSTAMP: i64 = 184;
const SIZE: i64 = 192;

/// Rules that all program types with this context share.
fn common(a: Access) -> Option<Loaded> {
    if !(0..SIZE).contains(&a.off) || !a.aligned() {
        return None;
    }
    let ok = if a.begins_in(CB, CB_LEN) {
        a.off + i64::from(a.size) <= CB + CB_LEN
    } else if a.begins_in(DATA, 8) || a.begins_in(DATA_META, 4) {
        !a.signed && a.size == 4
    } else if a.begins_in(REMOTE_IP4, LOCAL_IP6_END - REMOTE_IP4) {
        a.size == 4
    } else if a.begins_in(FLOW_KEYS, 8) {
        false
    } else if a.begins_in(TSTAMP, 8) {
        a.size == 8
    } else if a.begins_in(SK, 8) {
        if a.write || a.size != 8 {
            return None;
        }
        return Some(Loaded::Pointer { kind: Kind::SockCommon, nullable: true });
    } else if a.begins_in(HWTSTAMP, 8) {
        !a.write && a.size == 8
    } else if a.off >= TSTAMP_TYPE && a.off < HWTSTAMP {
        false
    } else if a.write {
        a.size == 4
    } else {
        a.narrow_ok(4)
    };
    ok.then_some(Loaded::Number)
}

pub(super) fn socket_filter(a: Access) -> Option<Loaded> {
    let hidden = a.begins_in(TC_CLASSID, 4)
        || a.begins_in(DATA, 8)
        || a.begins_in(DATA_META, 4)
        || a.begins_in(FAMILY, LOCAL_PORT_END - FAMILY)
        || a.begins_in(TSTAMP, 8)
        || a.begins_in(WIRE_LEN, 4)
        || a.begins_in(HWTSTAMP, 8);
    if hidden || a.write && !a.begins_in(CB, CB_LEN) {
        return None;
    }
    common(a)
}

pub(super) fn sched_cls(a: Access) -> Option<Loaded> {
    if a.write {
        let writable = a.begins_in(CB, CB_LEN)
            || a.begins_in(TSTAMP, 8)
            || [MARK, QUEUE_MAPPING, PRIORITY, TC_INDEX, TC_CLASSID].iter().any(|f| a.begins_in(*f, 4));
        return if writable { common(a) } else { None };
    }
    if a.begins_in(FAMILY, LOCAL_PORT_END - FAMILY) {
        return None;
    }
    if a.off == TSTAMP_TYPE {
        return (a.size == 1).then_some(Loaded::Number);
    }
    let loaded = common(a)?;
    let pointer = |kind| Some(Loaded::Pointer { kind, nullable: false });
    match a.off {
        DATA => pointer(Kind::Packet),
        DATA_END => pointer(Kind::PacketEnd),
        DATA_META => pointer(Kind::PacketMeta),
        _ => Some(loaded),
    }
}

pub(super) fn pointer_field(off: i32) -> Option<i16> {
    match i64::from(off) {
        DATA => Some(192),
        DATA_END => Some(200),
        DATA_META => Some(208),
        _ => None,
    }
}
