//! What programs may read and write through their context, by program type, and where it lies when they run.

mod cgroup;
mod net;
mod skb;
mod sock;
mod sock_addr;
mod sock_ops;
mod table;
mod trace;
mod xdp;

use skep_ebpf::uapi::{AttachType, ProgType};

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
    /// A trusted pointer to a kernel struct of this name.
    Trusted(&'static str),
}

impl Access {
    fn aligned(self) -> bool {
        self.size != 0 && self.off % i64::from(self.size) == 0
    }

    /// True if all of it lies in `[0, end)`.
    fn below(self, end: i64) -> bool {
        self.off >= 0 && self.off + i64::from(self.size) <= end
    }

    fn is_read_of(self, size: u32) -> bool {
        !self.write && self.size == size
    }
}

/// What an access to the context of a program gives; `None` if it is not permitted. `attach` is the effective type.
pub(crate) fn access(prog: ProgType, attach: AttachType, a: Access) -> Option<Loaded> {
    match prog {
        ProgType::SocketFilter
        | ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb
        | ProgType::FlowDissector => skb::access(prog, a),
        ProgType::Xdp => xdp::access(attach, a),
        ProgType::Kprobe => trace::kprobe(a),
        ProgType::Tracepoint => trace::tracepoint(a),
        ProgType::PerfEvent => trace::perf_event(a),
        ProgType::RawTracepoint => trace::raw_tracepoint(a),
        ProgType::RawTracepointWritable => trace::raw_tracepoint_writable(a),
        ProgType::Syscall => trace::syscall(a),
        ProgType::CgroupSock => sock::cgroup(attach, a),
        ProgType::CgroupSockAddr => sock_addr::access(attach, a),
        ProgType::CgroupSockopt => cgroup::sockopt(attach, a),
        ProgType::CgroupSysctl => cgroup::sysctl(a),
        ProgType::CgroupDevice => cgroup::device(a),
        ProgType::SockOps => sock_ops::access(a),
        ProgType::SkMsg => net::sk_msg(a),
        ProgType::SkLookup => net::sk_lookup(a),
        ProgType::SkReuseport => net::sk_reuseport(a),
        ProgType::Netfilter => net::netfilter(a),
        ProgType::LircMode2 => net::lirc(a),
        ProgType::Unspec | ProgType::Tracing | ProgType::StructOps | ProgType::Ext | ProgType::Lsm => None,
    }
}

/// What an access through a socket pointer gives; `None` if it is not permitted.
pub(crate) fn socket_access(kind: Kind, a: Access) -> Option<Loaded> {
    match kind {
        Kind::Socket => sock::full(a),
        Kind::SockCommon => sock::common(a),
        Kind::TcpSock => sock::tcp(a),
        Kind::XdpSock => sock::xdp(a),
        _ => None,
    }
}

/// Where the 64-bit pointer stands at run time that the program loads as a 32-bit field at `off`.
pub(crate) fn pointer_field(prog: ProgType, off: i32) -> Option<i16> {
    match prog {
        ProgType::SocketFilter
        | ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb
        | ProgType::FlowDissector => skb::pointer_field(off),
        ProgType::Xdp => xdp::pointer_field(off),
        _ => None,
    }
}

/// Bytes of `struct bpf_flow_keys`.
pub(crate) const FLOW_KEYS_SIZE: u64 = 56;
