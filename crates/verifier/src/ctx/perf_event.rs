//! `struct bpf_perf_event_data`: the registers, then sample period and address.

use super::Access;

const REGS: i64 = 168;
const SIZE: i64 = REGS + 16;

pub(super) fn permitted(a: Access) -> bool {
    if a.write || a.off < 0 || a.off >= SIZE || !a.aligned() {
        return false;
    }
    if a.off >= REGS { a.narrow_ok(8) } else { a.size == 8 }
}
