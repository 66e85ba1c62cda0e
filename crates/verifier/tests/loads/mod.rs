//! Program types and maps as loads name them, for tests that try all of them.
#![allow(dead_code)] // not every test uses all of it

use std::sync::{Arc, LazyLock};

use skep_ebpf::Insn;
use skep_ebpf::btf::Btf;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{AttachType as A, MapType, ProgType, map_flags, prog_flags};

/// Every program type that needs nothing but instructions, the attach types that make a difference, and the size of the
/// context.
pub const TYPES: &[(ProgType, &[A], i16)] = &[
    (ProgType::SocketFilter, &[A::CgroupInetIngress], 192),
    (ProgType::Kprobe, &[A::CgroupInetIngress, A::TraceKprobeMulti, A::TraceKprobeSession, A::TraceUprobeSession], 168),
    (ProgType::SchedCls, &[A::CgroupInetIngress], 192),
    (ProgType::SchedAct, &[A::CgroupInetIngress], 192),
    (ProgType::Tracepoint, &[A::CgroupInetIngress], 24),
    (ProgType::Xdp, &[A::Xdp, A::XdpDevmap, A::XdpCpumap], 24),
    (ProgType::PerfEvent, &[A::PerfEvent], 184),
    (ProgType::CgroupSkb, &[A::CgroupInetIngress, A::CgroupInetEgress], 192),
    (
        ProgType::CgroupSock,
        &[
            A::CgroupInetIngress,
            A::CgroupInetSockCreate,
            A::CgroupInetSockRelease,
            A::CgroupInet4PostBind,
            A::CgroupInet6PostBind,
        ],
        80,
    ),
    (ProgType::LwtIn, &[A::CgroupInetIngress], 192),
    (ProgType::LwtOut, &[A::CgroupInetIngress], 192),
    (ProgType::LwtXmit, &[A::CgroupInetIngress], 192),
    (ProgType::SockOps, &[A::CgroupSockOps, A::Xdp], 224),
    (ProgType::SkSkb, &[A::SkSkbStreamParser, A::SkSkbVerdict], 192),
    (ProgType::CgroupDevice, &[A::CgroupDevice, A::CgroupInetIngress], 12),
    (ProgType::SkMsg, &[A::SkMsgVerdict], 80),
    (ProgType::RawTracepoint, &[A::CgroupInetIngress], 96),
    (
        ProgType::CgroupSockAddr,
        &[
            A::CgroupInet4Bind,
            A::CgroupInet6Bind,
            A::CgroupInet4Connect,
            A::CgroupInet6Connect,
            A::CgroupUnixConnect,
            A::CgroupUdp4Sendmsg,
            A::CgroupUdp6Sendmsg,
            A::CgroupUnixSendmsg,
            A::CgroupUdp4Recvmsg,
            A::CgroupUdp6Recvmsg,
            A::CgroupUnixRecvmsg,
            A::CgroupInet4Getpeername,
            A::CgroupInet6Getpeername,
            A::CgroupUnixGetpeername,
            A::CgroupInet4Getsockname,
            A::CgroupInet6Getsockname,
            A::CgroupUnixGetsockname,
        ],
        72,
    ),
    (ProgType::LwtSeg6local, &[A::CgroupInetIngress], 192),
    (ProgType::SkReuseport, &[A::CgroupInetIngress, A::SkReuseportSelect, A::SkReuseportSelectOrMigrate], 56),
    (ProgType::FlowDissector, &[A::FlowDissector], 192),
    (ProgType::CgroupSysctl, &[A::CgroupSysctl, A::CgroupInetEgress], 8),
    (ProgType::RawTracepointWritable, &[A::CgroupInetIngress], 96),
    (ProgType::CgroupSockopt, &[A::CgroupGetsockopt, A::CgroupSetsockopt], 40),
    (ProgType::SkLookup, &[A::SkLookup], 72),
    (ProgType::Syscall, &[A::CgroupInetIngress], 24),
    (ProgType::Netfilter, &[A::Netfilter], 16),
];

/// A program of a type, as a load would ask for it.
pub fn load(ty: ProgType, attach: A, license: &str, insns: Vec<Insn>) -> Program {
    let mut program = Program::new("sweep", ty, license, insns);
    program.attach_type = Some(attach);
    if ty == ProgType::Syscall {
        program.flags |= prog_flags::SLEEPABLE;
    }
    program
}

/// The kernel's own types.
pub fn kernel_types() -> Option<Arc<Btf>> {
    static TYPES: LazyLock<Option<Arc<Btf>>> =
        LazyLock::new(|| Some(Arc::new(Btf::parse(&std::fs::read("/sys/kernel/btf/vmlinux").ok()?).ok()?)));
    TYPES.clone()
}

/// Maps of every type that can be made without more ado.
pub fn maps() -> Vec<MapDef> {
    let mut frozen = MapDef::new("rodata", MapType::Array, 4, 32, 1);
    frozen.flags = map_flags::RDONLY_PROG;
    frozen.frozen = true;
    frozen.initial = Some(b"hello %d\0world\0................"[..31].to_vec());
    let def = MapDef::new;
    let mut lpm = def("lpm", MapType::LpmTrie, 8, 8, 4);
    lpm.flags = map_flags::NO_PREALLOC;
    vec![
        def("value", MapType::Array, 4, 64, 1),
        frozen,
        def("hash", MapType::Hash, 8, 16, 4),
        def("array", MapType::Array, 4, 16, 4),
        def("percpu", MapType::PercpuArray, 4, 16, 4),
        def("pchash", MapType::PercpuHash, 8, 16, 4),
        def("lru", MapType::LruHash, 8, 16, 4),
        lpm,
        def("progs", MapType::ProgArray, 4, 4, 4),
        def("events", MapType::PerfEventArray, 4, 4, 4),
        def("stacks", MapType::StackTrace, 4, 64, 4),
        def("cgroups", MapType::CgroupArray, 4, 4, 4),
        def("dev", MapType::Devmap, 4, 4, 4),
        def("cpu", MapType::Cpumap, 4, 4, 4),
        def("ring", MapType::Ringbuf, 0, 0, 4096),
        def("queue", MapType::Queue, 0, 16, 4),
        def("stack", MapType::Stack, 0, 16, 4),
        def("bloom", MapType::BloomFilter, 0, 16, 4),
        def("sockmap", MapType::Sockmap, 4, 4, 4),
        def("sockhash", MapType::Sockhash, 8, 4, 4),
        def("reuse", MapType::ReuseportSockarray, 4, 4, 4),
        def("xsk", MapType::Xskmap, 4, 4, 4),
        def("devhash", MapType::DevmapHash, 4, 4, 4),
        def("storage", MapType::CgroupStorage, 8, 16, 0),
        def("pcstorage", MapType::PercpuCgroupStorage, 8, 16, 0),
    ]
}
