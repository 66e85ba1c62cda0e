//! `struct bpf_raw_tracepoint_args`: up to twelve 64-bit arguments.

use super::Access;

const SIZE: i64 = 12 * 8;

pub(super) fn permitted(a: Access) -> bool {
    !a.write && (0..SIZE).contains(&a.off) && a.aligned()
}
