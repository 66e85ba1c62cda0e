//! Contexts of programs that look on: registers, records, arguments; and of `syscall` programs.

use skep_ebpf::uapi::PtRegs;

use super::{Access, Loaded};
use crate::reg::Kind;

const REGS: i64 = size_of::<PtRegs>() as i64;

/// `struct pt_regs`.
pub(super) fn kprobe(a: Access) -> Option<Loaded> {
    number(!a.write && a.aligned() && a.below(REGS))
}

/// A record, of which the first eight bytes are the kernel's own.
pub(super) fn tracepoint(a: Access) -> Option<Loaded> {
    number(!a.write && a.aligned() && (8..8192).contains(&a.off))
}

/// `struct bpf_perf_event_data`: the registers, then sample period and address.
pub(super) fn perf_event(a: Access) -> Option<Loaded> {
    number(!a.write && a.aligned() && a.below(REGS + 16) && (a.off >= REGS || a.size == 8))
}

/// `struct bpf_raw_tracepoint_args`: up to twelve 64-bit arguments.
pub(super) fn raw_tracepoint(a: Access) -> Option<Loaded> {
    number(!a.write && a.aligned() && a.below(12 * 8))
}

/// The same, but the first argument is a buffer that can be written.
pub(super) fn raw_tracepoint_writable(a: Access) -> Option<Loaded> {
    match raw_tracepoint(a) {
        Some(_) if a.off == 0 => a.is_read_of(8).then_some(Loaded::Pointer { kind: Kind::TpBuffer, nullable: false }),
        other => other,
    }
}

/// Memory of a size that is known when the program is run.
pub(super) fn syscall(a: Access) -> Option<Loaded> {
    number(a.aligned() && (0..0xffff).contains(&a.off))
}

fn number(ok: bool) -> Option<Loaded> {
    ok.then_some(Loaded::Number)
}
