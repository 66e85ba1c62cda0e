//! What programs may read and write through their context, by program type, and where it lies when they run.

mod perf_event;
mod raw_tracepoint;
mod skb;
mod sock;
mod xdp;

use skep_ebpf::uapi::{AttachType, ProgType, PtRegs};

use crate::reg::Kind;

/// An access to a context or a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub off: i64,
    pub size: u32,
    pub write: bool,
    /// A sign-extending load.
    pub signed: bool,
}

/// What a permitted load gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Loaded {
    /// A number.
    Number,
    /// A pointer, perhaps null.
    Pointer { kind: Kind, nullable: bool },
}

impl Access {
    /// True if the access touches `[start, start + len)`.
    fn touches(self, start: i64, len: i64) -> bool {
        self.off < start + len && self.off + i64::from(self.size) > start
    }

    /// True if the first byte is in `[start, start + len)`.
    fn begins_in(self, start: i64, len: i64) -> bool {
        (start..start + len).contains(&self.off)
    }

    fn aligned(self) -> bool {
        self.size != 0 && self.off % i64::from(self.size) == 0
    }

    /// True if a field of `field` bytes may be read in part like this.
    fn narrow_ok(self, field: u32) -> bool {
        self.size <= field && self.size.is_power_of_two() && self.aligned()
    }
}

/// What an access to the context of a program gives; `None` if it is not permitted.
pub(crate) fn access(prog: ProgType, attach: Option<AttachType>, a: Access) -> Option<Loaded> {
    let plain = |ok: bool| ok.then_some(Loaded::Number);
    match prog {
        ProgType::Kprobe => {
            let size = size_of::<PtRegs>() as i64;
            plain(!a.write && a.off >= 0 && a.off < size && a.aligned() && a.off + i64::from(a.size) <= size)
        }
        // The first eight bytes of a record are the kernel's own.
        ProgType::Tracepoint => plain(!a.write && (8..8192).contains(&a.off) && a.aligned()),
        ProgType::PerfEvent => plain(perf_event::permitted(a)),
        ProgType::RawTracepoint => plain(raw_tracepoint::permitted(a)),
        ProgType::SocketFilter => skb::socket_filter(a),
        ProgType::SchedCls | ProgType::SchedAct => skb::sched_cls(a),
        ProgType::Xdp => xdp::access(attach, a),
        _ => None,
    }
}

/// What an access through a socket pointer gives; `None` if it is not permitted.
pub(crate) fn socket_access(kind: Kind, a: Access) -> Option<Loaded> {
    let ok = match kind {
        Kind::Socket => sock::full(a),
        Kind::SockCommon => sock::common(a),
        Kind::TcpSock => sock::tcp(a),
        _ => false,
    };
    ok.then_some(Loaded::Number)
}

/// Where the 64-bit pointer stands at run time that the program loads as a 32-bit field at `off`.
pub(crate) fn pointer_field(prog: ProgType, off: i32) -> Option<i16> {
    match prog {
        ProgType::SocketFilter | ProgType::SchedCls | ProgType::SchedAct => skb::pointer_field(off),
        ProgType::Xdp => xdp::pointer_field(off),
        _ => None,
    }
}

/// True if programs of this type may load packet data by `LD_ABS` and `LD_IND`.
pub(crate) fn loads_packets(prog: ProgType) -> bool {
    matches!(prog, ProgType::SocketFilter | ProgType::SchedCls | ProgType::SchedAct | ProgType::CgroupSkb)
}

/// True if programs of this type have direct access to packet data.
pub(crate) fn reads_packets(prog: ProgType) -> bool {
    matches!(prog, ProgType::SchedCls | ProgType::SchedAct | ProgType::Xdp)
}

/// The struct tag that a global function's parameter has if it is the context, and whether the program type has one.
pub(crate) fn struct_name(prog: ProgType) -> Option<&'static str> {
    Some(match prog {
        ProgType::SocketFilter | ProgType::SchedCls | ProgType::SchedAct => "__sk_buff",
        ProgType::Xdp => "xdp_md",
        ProgType::Kprobe => "bpf_user_pt_regs_t",
        ProgType::PerfEvent => "bpf_perf_event_data",
        ProgType::RawTracepoint => "bpf_raw_tracepoint_args",
        _ => return None,
    })
}
