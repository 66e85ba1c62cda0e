//! `struct bpf_sock` and `struct bpf_tcp_sock`: what is read through socket pointers.

use super::Access;

const TYPE: i64 = 8;
const TYPE_TO_PRIORITY: i64 = 16;
const MARK: i64 = 16;
const PRIORITY_END: i64 = 24;
const DST_PORT: i64 = 48;
const DST_PORT_END: i64 = 50;
const DST_IP4: i64 = 52;
const SIZE: i64 = 80;

const TCP_BYTES_RECEIVED: i64 = 80;
const TCP_BYTES_ACKED: i64 = 88;
const TCP_SIZE: i64 = 112;

pub(super) fn full(a: Access) -> bool {
    if a.write || !(0..SIZE).contains(&a.off) || !a.aligned() {
        return false;
    }
    if a.off == DST_PORT {
        return a.narrow_ok(if a.size == 4 { 4 } else { 2 });
    }
    if a.begins_in(DST_PORT, 2) {
        return a.narrow_ok(2);
    }
    if a.begins_in(DST_PORT_END, DST_IP4 - DST_PORT_END) {
        return false;
    }
    if a.begins_in(0, 4) || a.begins_in(MARK, PRIORITY_END - MARK) {
        return a.size == 4;
    }
    a.narrow_ok(4)
}

pub(super) fn common(a: Access) -> bool {
    !a.touches(TYPE, TYPE_TO_PRIORITY) && full(a)
}

pub(super) fn tcp(a: Access) -> bool {
    if a.write || !(0..TCP_SIZE).contains(&a.off) || !a.aligned() {
        return false;
    }
    if a.off == TCP_BYTES_RECEIVED || a.off == TCP_BYTES_ACKED { a.size == 8 } else { a.size == 4 }
}
