//! What the names of sections mean: one row per kind of program, one per kind of data.

use skep_ebpf::uapi::{AttachType as A, ProgType as P, prog_flags};

/// How the rest of a section's name may look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tail {
    /// Nothing may follow.
    None,
    /// Nothing, or `/` and what to attach to.
    Target,
}

/// What the section name says about its programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectionDef {
    /// The name, or the part of it before the `/` that introduces what to attach to.
    pub name: &'static str,
    /// Program type.
    pub prog_type: P,
    /// Expected attach type; `None` where the type has none.
    pub attach_type: Option<A>,
    /// Flags of `BPF_PROG_LOAD`.
    pub flags: u32,
    tail: Tail,
    /// Names of kernel types and functions that the program attaches to begin with this; `None` if it attaches
    /// otherwise than by BTF.
    pub(crate) btf_prefix: Option<BtfPrefix>,
}

/// How a program that attaches by BTF names what it attaches to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BtfPrefix {
    /// A function, its name prefixed with this.
    Func(&'static str),
    /// A typedef, its name prefixed with this.
    Typedef(&'static str),
    /// A function of another program.
    Program,
}

const S: u32 = prog_flags::SLEEPABLE;
const FRAGS: u32 = prog_flags::XDP_HAS_FRAGS;

const fn row(name: &'static str, prog_type: P, attach_type: Option<A>, flags: u32) -> SectionDef {
    SectionDef { name, prog_type, attach_type, flags, tail: Tail::None, btf_prefix: None }
}

/// A row whose name may go on with a target.
const fn to(name: &'static str, prog_type: P, attach_type: Option<A>, flags: u32) -> SectionDef {
    SectionDef { name, prog_type, attach_type, flags, tail: Tail::Target, btf_prefix: None }
}

/// A row whose target is named by BTF.
const fn btf(name: &'static str, prog_type: P, attach_type: Option<A>, flags: u32, prefix: BtfPrefix) -> SectionDef {
    SectionDef { name, prog_type, attach_type, flags, tail: Tail::Target, btf_prefix: Some(prefix) }
}

const FUNC: BtfPrefix = BtfPrefix::Func("");
const LSM: BtfPrefix = BtfPrefix::Func("bpf_lsm_");
const ITER: BtfPrefix = BtfPrefix::Func("bpf_iter_");
const TP: BtfPrefix = BtfPrefix::Typedef("btf_trace_");

/// Every section name that makes programs, as libbpf 1.7 spells them.
pub static SECTIONS: &[SectionDef] = &[
    row("socket", P::SocketFilter, None, 0),
    row("sk_reuseport/migrate", P::SkReuseport, Some(A::SkReuseportSelectOrMigrate), 0),
    row("sk_reuseport", P::SkReuseport, Some(A::SkReuseportSelect), 0),
    to("kprobe", P::Kprobe, None, 0),
    to("uprobe", P::Kprobe, None, 0),
    to("uprobe.s", P::Kprobe, None, S),
    to("kretprobe", P::Kprobe, None, 0),
    to("uretprobe", P::Kprobe, None, 0),
    to("uretprobe.s", P::Kprobe, None, S),
    to("kprobe.multi", P::Kprobe, Some(A::TraceKprobeMulti), 0),
    to("kretprobe.multi", P::Kprobe, Some(A::TraceKprobeMulti), 0),
    to("kprobe.session", P::Kprobe, Some(A::TraceKprobeSession), 0),
    to("uprobe.multi", P::Kprobe, Some(A::TraceUprobeMulti), 0),
    to("uretprobe.multi", P::Kprobe, Some(A::TraceUprobeMulti), 0),
    to("uprobe.session", P::Kprobe, Some(A::TraceUprobeSession), 0),
    to("uprobe.multi.s", P::Kprobe, Some(A::TraceUprobeMulti), S),
    to("uretprobe.multi.s", P::Kprobe, Some(A::TraceUprobeMulti), S),
    to("uprobe.session.s", P::Kprobe, Some(A::TraceUprobeSession), S),
    to("ksyscall", P::Kprobe, None, 0),
    to("kretsyscall", P::Kprobe, None, 0),
    to("usdt", P::Kprobe, None, 0),
    to("usdt.s", P::Kprobe, None, S),
    row("tc/ingress", P::SchedCls, Some(A::TcxIngress), 0),
    row("tc/egress", P::SchedCls, Some(A::TcxEgress), 0),
    row("tcx/ingress", P::SchedCls, Some(A::TcxIngress), 0),
    row("tcx/egress", P::SchedCls, Some(A::TcxEgress), 0),
    row("tc", P::SchedCls, None, 0),
    row("classifier", P::SchedCls, None, 0),
    row("action", P::SchedAct, None, 0),
    row("netkit/primary", P::SchedCls, Some(A::NetkitPrimary), 0),
    row("netkit/peer", P::SchedCls, Some(A::NetkitPeer), 0),
    to("tracepoint", P::Tracepoint, None, 0),
    to("tp", P::Tracepoint, None, 0),
    to("raw_tracepoint", P::RawTracepoint, None, 0),
    to("raw_tp", P::RawTracepoint, None, 0),
    to("raw_tracepoint.w", P::RawTracepointWritable, None, 0),
    to("raw_tp.w", P::RawTracepointWritable, None, 0),
    btf("tp_btf", P::Tracing, Some(A::TraceRawTp), 0, TP),
    btf("fentry", P::Tracing, Some(A::TraceFentry), 0, FUNC),
    btf("fmod_ret", P::Tracing, Some(A::ModifyReturn), 0, FUNC),
    btf("fexit", P::Tracing, Some(A::TraceFexit), 0, FUNC),
    btf("fentry.s", P::Tracing, Some(A::TraceFentry), S, FUNC),
    btf("fmod_ret.s", P::Tracing, Some(A::ModifyReturn), S, FUNC),
    btf("fexit.s", P::Tracing, Some(A::TraceFexit), S, FUNC),
    btf("freplace", P::Ext, None, 0, BtfPrefix::Program),
    btf("lsm", P::Lsm, Some(A::LsmMac), 0, LSM),
    btf("lsm.s", P::Lsm, Some(A::LsmMac), S, LSM),
    btf("lsm_cgroup", P::Lsm, Some(A::LsmCgroup), 0, LSM),
    btf("iter", P::Tracing, Some(A::TraceIter), 0, ITER),
    btf("iter.s", P::Tracing, Some(A::TraceIter), S, ITER),
    row("syscall", P::Syscall, None, S),
    row("xdp.frags/devmap", P::Xdp, Some(A::XdpDevmap), FRAGS),
    row("xdp/devmap", P::Xdp, Some(A::XdpDevmap), 0),
    row("xdp.frags/cpumap", P::Xdp, Some(A::XdpCpumap), FRAGS),
    row("xdp/cpumap", P::Xdp, Some(A::XdpCpumap), 0),
    row("xdp.frags", P::Xdp, Some(A::Xdp), FRAGS),
    row("xdp", P::Xdp, Some(A::Xdp), 0),
    row("perf_event", P::PerfEvent, None, 0),
    row("lwt_in", P::LwtIn, None, 0),
    row("lwt_out", P::LwtOut, None, 0),
    row("lwt_xmit", P::LwtXmit, None, 0),
    row("lwt_seg6local", P::LwtSeg6local, None, 0),
    row("sockops", P::SockOps, Some(A::CgroupSockOps), 0),
    row("sk_skb/stream_parser", P::SkSkb, Some(A::SkSkbStreamParser), 0),
    row("sk_skb/stream_verdict", P::SkSkb, Some(A::SkSkbStreamVerdict), 0),
    row("sk_skb/verdict", P::SkSkb, Some(A::SkSkbVerdict), 0),
    row("sk_skb", P::SkSkb, None, 0),
    row("sk_msg", P::SkMsg, Some(A::SkMsgVerdict), 0),
    row("lirc_mode2", P::LircMode2, Some(A::LircMode2), 0),
    row("flow_dissector", P::FlowDissector, Some(A::FlowDissector), 0),
    row("cgroup_skb/ingress", P::CgroupSkb, Some(A::CgroupInetIngress), 0),
    row("cgroup_skb/egress", P::CgroupSkb, Some(A::CgroupInetEgress), 0),
    row("cgroup/skb", P::CgroupSkb, None, 0),
    row("cgroup/sock_create", P::CgroupSock, Some(A::CgroupInetSockCreate), 0),
    row("cgroup/sock_release", P::CgroupSock, Some(A::CgroupInetSockRelease), 0),
    row("cgroup/sock", P::CgroupSock, Some(A::CgroupInetSockCreate), 0),
    row("cgroup/post_bind4", P::CgroupSock, Some(A::CgroupInet4PostBind), 0),
    row("cgroup/post_bind6", P::CgroupSock, Some(A::CgroupInet6PostBind), 0),
    row("cgroup/bind4", P::CgroupSockAddr, Some(A::CgroupInet4Bind), 0),
    row("cgroup/bind6", P::CgroupSockAddr, Some(A::CgroupInet6Bind), 0),
    row("cgroup/connect4", P::CgroupSockAddr, Some(A::CgroupInet4Connect), 0),
    row("cgroup/connect6", P::CgroupSockAddr, Some(A::CgroupInet6Connect), 0),
    row("cgroup/connect_unix", P::CgroupSockAddr, Some(A::CgroupUnixConnect), 0),
    row("cgroup/sendmsg4", P::CgroupSockAddr, Some(A::CgroupUdp4Sendmsg), 0),
    row("cgroup/sendmsg6", P::CgroupSockAddr, Some(A::CgroupUdp6Sendmsg), 0),
    row("cgroup/sendmsg_unix", P::CgroupSockAddr, Some(A::CgroupUnixSendmsg), 0),
    row("cgroup/recvmsg4", P::CgroupSockAddr, Some(A::CgroupUdp4Recvmsg), 0),
    row("cgroup/recvmsg6", P::CgroupSockAddr, Some(A::CgroupUdp6Recvmsg), 0),
    row("cgroup/recvmsg_unix", P::CgroupSockAddr, Some(A::CgroupUnixRecvmsg), 0),
    row("cgroup/getpeername4", P::CgroupSockAddr, Some(A::CgroupInet4Getpeername), 0),
    row("cgroup/getpeername6", P::CgroupSockAddr, Some(A::CgroupInet6Getpeername), 0),
    row("cgroup/getpeername_unix", P::CgroupSockAddr, Some(A::CgroupUnixGetpeername), 0),
    row("cgroup/getsockname4", P::CgroupSockAddr, Some(A::CgroupInet4Getsockname), 0),
    row("cgroup/getsockname6", P::CgroupSockAddr, Some(A::CgroupInet6Getsockname), 0),
    row("cgroup/getsockname_unix", P::CgroupSockAddr, Some(A::CgroupUnixGetsockname), 0),
    row("cgroup/sysctl", P::CgroupSysctl, Some(A::CgroupSysctl), 0),
    row("cgroup/getsockopt", P::CgroupSockopt, Some(A::CgroupGetsockopt), 0),
    row("cgroup/setsockopt", P::CgroupSockopt, Some(A::CgroupSetsockopt), 0),
    row("cgroup/dev", P::CgroupDevice, Some(A::CgroupDevice), 0),
    to("struct_ops", P::StructOps, None, 0),
    to("struct_ops.s", P::StructOps, None, S),
    row("sk_lookup", P::SkLookup, Some(A::SkLookup), 0),
    row("netfilter", P::Netfilter, Some(A::Netfilter), 0),
];

/// The row that a section's name (without `?`) belongs to, and what the name says to attach to.
pub fn section_def(section: &str) -> Option<(&'static SectionDef, &str)> {
    SECTIONS.iter().find_map(|def| match (def.tail, section.strip_prefix(def.name)?) {
        (_, "") => Some((def, "")),
        (Tail::Target, rest) => Some((def, rest.strip_prefix('/')?)),
        (Tail::None, _) => None,
    })
}

/// What a section without programs holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DataKind {
    /// Constants: a frozen map that programs cannot write.
    Rodata,
    /// Variables.
    Data,
    /// Variables that begin as zeroes.
    Bss,
    /// Variables that live in the arena map.
    Arena,
    /// Definitions of struct_ops maps.
    StructOps,
    /// Definitions of maps by BTF.
    Maps,
    /// Definitions of maps as structs of numbers, as it was before BTF.
    LegacyMaps,
    /// The licence string.
    License,
    /// The kernel version.
    Version,
}

/// Name, whether `.suffix` may follow, what it holds.
static DATA_SECTIONS: &[(&str, bool, DataKind)] = &[
    (".rodata", true, DataKind::Rodata),
    (".data", true, DataKind::Data),
    (".bss", true, DataKind::Bss),
    (".addr_space.1", false, DataKind::Arena),
    (".struct_ops", false, DataKind::StructOps),
    (".struct_ops.link", false, DataKind::StructOps),
    ("?.struct_ops", false, DataKind::StructOps),
    ("?.struct_ops.link", false, DataKind::StructOps),
    (".maps", false, DataKind::Maps),
    ("maps", false, DataKind::LegacyMaps),
    ("license", false, DataKind::License),
    ("version", false, DataKind::Version),
];

/// What a section without programs holds, by its name.
pub(crate) fn data_kind(section: &str) -> Option<DataKind> {
    DATA_SECTIONS.iter().find_map(|&(name, suffix, kind)| match section.strip_prefix(name)? {
        "" => Some(kind),
        rest if suffix && rest.starts_with('.') => Some(kind),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let def = |s| section_def(s).map(|(d, to)| (d.prog_type, d.attach_type, d.flags, to));
        assert_eq!(def("kprobe/do_x"), Some((P::Kprobe, None, 0, "do_x")));
        assert_eq!(def("uprobe//bin/sh:main+4"), Some((P::Kprobe, None, 0, "/bin/sh:main+4")));
        assert_eq!(def("lsm.s/bpf"), Some((P::Lsm, Some(A::LsmMac), S, "bpf")));
        assert_eq!(def("xdp"), Some((P::Xdp, Some(A::Xdp), 0, "")));
        assert_eq!(def("xdp/cpumap"), Some((P::Xdp, Some(A::XdpCpumap), 0, "")));
        assert_eq!(def("uretprobe.multi.s/x:y"), Some((P::Kprobe, Some(A::TraceUprobeMulti), S, "x:y")));
        for unknown in ["xdp/other", "kprobes", "tcx", "", "socket1", "kprobe.multix"] {
            assert_eq!(def(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn no_row_twice() {
        for (i, a) in SECTIONS.iter().enumerate() {
            assert!(SECTIONS.iter().skip(i + 1).all(|b| a.name != b.name), "{}", a.name);
        }
    }

    #[test]
    fn data() {
        assert_eq!(data_kind(".rodata.str1.1"), Some(DataKind::Rodata));
        assert_eq!(data_kind(".struct_ops.link"), Some(DataKind::StructOps));
        assert_eq!(data_kind(".database"), None);
        assert_eq!(data_kind("maps"), Some(DataKind::LegacyMaps));
    }
}
