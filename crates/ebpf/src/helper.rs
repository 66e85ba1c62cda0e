//! The helpers of Linux 6.18: one row each with prototype, flags and the program types that may call it.
//!
//! The rows are frozen in the kernel (new functions arrive as kfuncs). Allow lists and licence flags were read off a
//! running kernel, type by type.

use crate::uapi::{AttachType, ProgType};

/// How a helper uses the memory that a pointer argument names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only read: must be initialised.
    Read,
    /// Only written: may be uninitialised stack, is initialised afterwards.
    Write,
    /// Read and written.
    Update,
}

/// What a helper does with a dynptr.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DynptrArg {
    /// Makes one of a map value.
    NewLocal,
    /// Makes one of a new ring buffer record.
    NewRingbuf,
    /// Gives its ring buffer record back.
    ReleaseRingbuf,
    /// Uses one of any kind.
    Any,
}

/// What a helper wants in one argument register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arg {
    /// Any initialised value.
    Anything,
    /// A map, known at load time.
    MapPtr,
    /// Memory of the map's key size.
    MapKey,
    /// Memory of the map's value size.
    MapValue,
    /// The same, or null.
    MapValueOrNull,
    /// Memory of the map's value size that the helper fills.
    UninitMapValue,
    /// Memory whose size is the next argument.
    Mem(Access),
    /// The same, or null.
    MemOrNull(Access),
    /// Memory of a fixed size.
    Fixed(Access, u16),
    /// Size of the memory in the argument before, at least 1.
    Size,
    /// Size of the memory in the argument before, may be 0.
    SizeOrZero,
    /// Constant size of the memory that the helper returns.
    AllocSize,
    /// The context.
    Ctx,
    /// The context or null.
    CtxOrNull,
    /// A `bpf_spin_lock` in a map value or an own object.
    SpinLock,
    /// A full socket (`bpf_sock`), or null.
    SocketOrNull,
    /// Any kind of socket (`bpf_sock`, `bpf_tcp_sock`, common).
    SockCommon,
    /// A socket, also as a kernel `struct sock`.
    BtfSock,
    /// The same, or null.
    BtfSockOrNull,
    /// A pointer to a kernel type.
    Btf,
    /// The same, or null.
    BtfOrNull,
    /// A per-CPU pointer to a kernel type.
    PercpuBtf,
    /// A reserved record of a ring buffer, released by the call.
    RingbufRecord,
    /// A callback function of the program.
    Func,
    /// Stack memory or null: context of a callback.
    StackOrNull,
    /// A constant string in a frozen map.
    ConstStr,
    /// A `bpf_timer` in a map value.
    Timer,
    /// A kptr field of a map value.
    KptrDest,
    /// A dynptr on the stack.
    Dynptr(DynptrArg),
}

/// What a helper returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ret {
    /// A number.
    Integer,
    /// Nothing.
    Void,
    /// A value of the map argument.
    MapValue,
    /// A value of the map argument, or null.
    MapValueOrNull,
    /// A full socket, or null.
    SocketOrNull,
    /// A TCP socket, or null.
    TcpSockOrNull,
    /// A socket of any family, or null.
    SockCommonOrNull,
    /// A reserved ring buffer record of the constant size given, or null.
    RingbufRecordOrNull,
    /// Memory of a dynptr, or null.
    DynptrMemOrNull,
    /// A pointer to a kernel type.
    Btf,
    /// A pointer to a kernel type, or null.
    BtfOrNull,
}

/// Only for programs with a GPL-compatible licence.
pub const GPL: u8 = 1;
/// Packet pointers may be passed as memory arguments.
pub const PKT: u8 = 2;
/// Makes all packet pointers of the program invalid.
pub const MOVES_PKT: u8 = 4;
/// Returns a reference that must be released.
pub const ACQUIRE: u8 = 8;
/// Releases the reference in its first argument.
pub const RELEASE: u8 = 16;
/// May sleep: only in sleepable programs.
pub const SLEEPS: u8 = 32;
/// Calls a function of the program.
pub const CALLBACK: u8 = 64;

/// A set of program types, one bit each.
pub type TypeSet = u64;

/// The set with one program type.
pub const fn only(t: ProgType) -> TypeSet {
    1 << t as u32
}

/// A helper: one row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Helper {
    /// Number in `BPF_CALL`.
    pub id: u32,
    /// Name without the `bpf_` in front.
    pub name: &'static str,
    /// What it returns.
    pub ret: Ret,
    /// What it takes.
    pub args: &'static [Arg],
    /// [`GPL`], [`PKT`], [`MOVES_PKT`], [`ACQUIRE`], [`RELEASE`], [`SLEEPS`], [`CALLBACK`].
    pub flags: u8,
    /// Program types that may call it.
    pub types: TypeSet,
}

impl Helper {
    /// The helper with this number.
    pub fn by_id(id: u32) -> Option<&'static Helper> {
        HELPERS.get(usize::try_from(id.checked_sub(1)?).ok()?)
    }

    /// The helper with this name (without `bpf_`).
    pub fn by_name(name: &str) -> Option<&'static Helper> {
        HELPERS.iter().find(|h| h.name == name)
    }

    /// True if programs of this type may call it, with some attach type at least.
    pub const fn allowed_in(&self, t: ProgType) -> bool {
        self.types & only(t) != 0
    }

    /// True if programs of this type and attach type may call it.
    pub const fn allowed_for(&self, t: ProgType, attach: AttachType) -> bool {
        use AttachType as A;
        self.allowed_in(t)
            && match (t, self.id) {
                (ProgType::CgroupSockopt, SETSOCKOPT | GETSOCKOPT) => matches!(attach, A::CgroupSetsockopt),
                (ProgType::CgroupSockAddr, BIND) => matches!(attach, A::CgroupInet4Connect | A::CgroupInet6Connect),
                // Where the call is over, or no call is made, there is no result to change.
                (_, GET_RETVAL | SET_RETVAL) => !matches!(
                    attach,
                    A::CgroupInetIngress
                        | A::CgroupInetEgress
                        | A::CgroupSockOps
                        | A::CgroupUdp4Recvmsg
                        | A::CgroupUdp6Recvmsg
                        | A::CgroupUnixRecvmsg
                        | A::CgroupInet4Getpeername
                        | A::CgroupInet6Getpeername
                        | A::CgroupUnixGetpeername
                        | A::CgroupInet4Getsockname
                        | A::CgroupInet6Getsockname
                        | A::CgroupUnixGetsockname
                ),
                _ => true,
            }
    }

    /// True if only programs with a GPL-compatible licence may call it.
    pub const fn needs_gpl(&self, t: ProgType, attach: AttachType) -> bool {
        use AttachType as A;
        let multi =
            matches!(attach, A::TraceKprobeMulti | A::TraceKprobeSession | A::TraceUprobeMulti | A::TraceUprobeSession);
        match (t, self.id) {
            (ProgType::PerfEvent, GET_STACKID) => false,
            (ProgType::Kprobe, GET_FUNC_IP) if multi => false,
            _ => self.has(GPL),
        }
    }

    /// What it takes in programs of this type: a few helpers have several prototypes.
    pub const fn args_in(&self, t: ProgType) -> &'static [Arg] {
        const TRACED: TypeSet = SYSCALL | TRACING | LSM;
        match self.id {
            // The class of the current task, not of a packet.
            GET_CGROUP_CLASSID if only(t) & (TC | LWT) == 0 => &[],
            GET_SOCKET_COOKIE if only(t) & (TRACED | SK_REUSEPORT) != 0 => &[BtfSockOrNull],
            SETSOCKOPT if only(t) & (CGROUP_SOCKOPT | LSM | TRACING | STRUCT_OPS) != 0 => {
                &[BtfSock, Anything, Anything, READ, Size]
            }
            GETSOCKOPT if only(t) & (CGROUP_SOCKOPT | LSM | TRACING | STRUCT_OPS) != 0 => {
                &[BtfSock, Anything, Anything, WRITE, Size]
            }
            SK_STORAGE_GET if only(t) & CGROUP_SOCK != 0 => &[MapPtr, Ctx, MapValueOrNull, Anything],
            SK_STORAGE_GET if only(t) & TRACING != 0 => &[MapPtr, BtfOrNull, MapValueOrNull, Anything],
            SK_STORAGE_DELETE if only(t) & TRACING != 0 => &[MapPtr, BtfOrNull],
            SK_ASSIGN if only(t) & SK_LOOKUP != 0 => &[Ctx, Arg::SocketOrNull, Anything],
            XDP_GET_BUFF_LEN if only(t) & XDP == 0 => &[Btf],
            _ => self.args,
        }
    }

    /// True if the flag is set.
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

const GET_CGROUP_CLASSID: u32 = 17;
const GET_STACKID: u32 = 27;
const GET_SOCKET_COOKIE: u32 = 46;
const SETSOCKOPT: u32 = 49;
const GETSOCKOPT: u32 = 57;
const BIND: u32 = 64;
/// `bpf_sk_storage_get`.
pub const SK_STORAGE_GET: u32 = 107;
/// `bpf_sk_storage_delete`.
pub const SK_STORAGE_DELETE: u32 = 108;
const SK_ASSIGN: u32 = 124;
const GET_FUNC_IP: u32 = 173;
const GET_RETVAL: u32 = 186;
const SET_RETVAL: u32 = 187;
const XDP_GET_BUFF_LEN: u32 = 188;

const SOCKET_FILTER: TypeSet = only(ProgType::SocketFilter);
const KPROBE: TypeSet = only(ProgType::Kprobe);
const SCHED_CLS: TypeSet = only(ProgType::SchedCls);
const SCHED_ACT: TypeSet = only(ProgType::SchedAct);
const TRACEPOINT: TypeSet = only(ProgType::Tracepoint);
const XDP: TypeSet = only(ProgType::Xdp);
const PERF_EVENT: TypeSet = only(ProgType::PerfEvent);
const CGROUP_SKB: TypeSet = only(ProgType::CgroupSkb);
const CGROUP_SOCK: TypeSet = only(ProgType::CgroupSock);
const LWT_IN: TypeSet = only(ProgType::LwtIn);
const LWT_OUT: TypeSet = only(ProgType::LwtOut);
const LWT_XMIT: TypeSet = only(ProgType::LwtXmit);
const SOCK_OPS: TypeSet = only(ProgType::SockOps);
const SK_SKB: TypeSet = only(ProgType::SkSkb);
const CGROUP_DEVICE: TypeSet = only(ProgType::CgroupDevice);
const SK_MSG: TypeSet = only(ProgType::SkMsg);
const RAW_TRACEPOINT: TypeSet = only(ProgType::RawTracepoint);
const CGROUP_SOCK_ADDR: TypeSet = only(ProgType::CgroupSockAddr);
const LWT_SEG6LOCAL: TypeSet = only(ProgType::LwtSeg6local);
const LIRC_MODE2: TypeSet = only(ProgType::LircMode2);
const SK_REUSEPORT: TypeSet = only(ProgType::SkReuseport);
const FLOW_DISSECTOR: TypeSet = only(ProgType::FlowDissector);
const CGROUP_SYSCTL: TypeSet = only(ProgType::CgroupSysctl);
const RAW_TRACEPOINT_WRITABLE: TypeSet = only(ProgType::RawTracepointWritable);
const CGROUP_SOCKOPT: TypeSet = only(ProgType::CgroupSockopt);
const TRACING: TypeSet = only(ProgType::Tracing);
const STRUCT_OPS: TypeSet = only(ProgType::StructOps);
const LSM: TypeSet = only(ProgType::Lsm);
const SK_LOOKUP: TypeSet = only(ProgType::SkLookup);
const SYSCALL: TypeSet = only(ProgType::Syscall);
const NETFILTER: TypeSet = only(ProgType::Netfilter);
/// Every type, and infrared decoders.
const ALL: TypeSet = !0;
/// Every type but infrared decoders, which have a short list of their own.
const ANY: TypeSet = ALL & !LIRC_MODE2;
/// Programs whose result, or the errno that goes with it, is handed to a system call.
const RETVAL: TypeSet = CGROUP_SOCK | SOCK_OPS | CGROUP_DEVICE | CGROUP_SOCK_ADDR | CGROUP_SYSCTL | CGROUP_SOCKOPT;
const TC: TypeSet = SCHED_CLS | SCHED_ACT;
const LWT: TypeSet = LWT_IN | LWT_OUT | LWT_XMIT | LWT_SEG6LOCAL;
const KPROBES: TypeSet = KPROBE | TRACEPOINT | PERF_EVENT | RAW_TRACEPOINT | RAW_TRACEPOINT_WRITABLE;
const TRACERS: TypeSet = KPROBES | SYSCALL | TRACING | LSM;
const INET: TypeSet =
    ANY & !(KPROBES | CGROUP_SOCK | CGROUP_DEVICE | SK_REUSEPORT | CGROUP_SYSCTL | CGROUP_SOCKOPT | NETFILTER);

use self::Arg::*;
use self::DynptrArg::{NewLocal, NewRingbuf, ReleaseRingbuf};
use self::Ret::{
    BtfOrNull as BtfPtrOrNull, DynptrMemOrNull, Integer, MapValue as Value, MapValueOrNull as ValueOrNull,
    RingbufRecordOrNull, SockCommonOrNull, SocketOrNull, TcpSockOrNull, Void,
};

const READ: Arg = Mem(Access::Read);
const READ_OR_NULL: Arg = MemOrNull(Access::Read);
const WRITE: Arg = Mem(Access::Write);
const UPDATE: Arg = Mem(Access::Update);
const UPDATE_OR_NULL: Arg = MemOrNull(Access::Update);

const fn h(id: u32, name: &'static str, ret: Ret, args: &'static [Arg], flags: u8, types: TypeSet) -> Helper {
    Helper { id, name, ret, args, flags, types }
}

/// All helpers; row `i` has number `i + 1`.
#[rustfmt::skip]
pub static HELPERS: [Helper; 211] = [
    h(1, "map_lookup_elem", ValueOrNull, &[MapPtr, MapKey], PKT, ALL),
    h(2, "map_update_elem", Integer, &[MapPtr, MapKey, MapValue, Anything], PKT, ALL),
    h(3, "map_delete_elem", Integer, &[MapPtr, MapKey], PKT, ALL),
    h(4, "probe_read", Integer, &[WRITE, SizeOrZero, Anything], GPL, TRACERS),
    h(5, "ktime_get_ns", Integer, &[], 0, ALL),
    h(6, "trace_printk", Integer, &[READ, Size], GPL, ALL),
    h(7, "get_prandom_u32", Integer, &[], 0, ALL),
    h(8, "get_smp_processor_id", Integer, &[], 0, ANY),
    h(9, "skb_store_bytes", Integer, &[Ctx, Anything, READ, Size, Anything], MOVES_PKT, TC | LWT_XMIT | SK_SKB),
    h(10, "l3_csum_replace", Integer, &[Ctx, Anything, Anything, Anything, Anything], MOVES_PKT, TC | LWT_XMIT),
    h(11, "l4_csum_replace", Integer, &[Ctx, Anything, Anything, Anything, Anything], MOVES_PKT, TC | LWT_XMIT),
    h(12, "tail_call", Void, &[Ctx, MapPtr, Anything], MOVES_PKT, ALL),
    h(13, "clone_redirect", Integer, &[Ctx, Anything, Anything], MOVES_PKT, TC | LWT_XMIT),
    h(14, "get_current_pid_tgid", Integer, &[], 0, ANY),
    h(15, "get_current_uid_gid", Integer, &[], 0, ANY),
    h(16, "get_current_comm", Integer, &[WRITE, Size], 0, ANY),
    h(17, "get_cgroup_classid", Integer, &[Ctx], 0, ANY),
    h(18, "skb_vlan_push", Integer, &[Ctx, Anything, Anything], MOVES_PKT, TC),
    h(19, "skb_vlan_pop", Integer, &[Ctx], MOVES_PKT, TC),
    h(20, "skb_get_tunnel_key", Integer, &[Ctx, WRITE, Size, Anything], 0, TC | LWT_XMIT),
    h(21, "skb_set_tunnel_key", Integer, &[Ctx, READ, Size, Anything], 0, TC | LWT_XMIT),
    h(22, "perf_event_read", Integer, &[MapPtr, Anything], GPL, ANY),
    h(23, "redirect", Integer, &[Anything, Anything], 0, TC | XDP | LWT_XMIT),
    h(24, "get_route_realm", Integer, &[Ctx], 0, LWT | TC),
    h(25, "perf_event_output", Integer, &[Ctx, MapPtr, Anything, READ, SizeOrZero], GPL, ANY & !(SK_REUSEPORT | FLOW_DISSECTOR | NETFILTER)),
    h(26, "skb_load_bytes", Integer, &[Ctx, Anything, WRITE, Size], 0, LWT | TC | SOCKET_FILTER | CGROUP_SKB | SK_SKB | SK_REUSEPORT | FLOW_DISSECTOR),
    h(27, "get_stackid", Integer, &[Ctx, MapPtr, Anything], GPL, TRACERS),
    h(28, "csum_diff", Integer, &[READ_OR_NULL, SizeOrZero, READ_OR_NULL, SizeOrZero, Anything], PKT, LWT | TC | XDP),
    h(29, "skb_get_tunnel_opt", Integer, &[Ctx, WRITE, Size], 0, TC | LWT_XMIT),
    h(30, "skb_set_tunnel_opt", Integer, &[Ctx, READ, Size], 0, TC | LWT_XMIT),
    h(31, "skb_change_proto", Integer, &[Ctx, Anything, Anything], MOVES_PKT, TC),
    h(32, "skb_change_type", Integer, &[Ctx, Anything], 0, TC),
    h(33, "skb_under_cgroup", Integer, &[Ctx, MapPtr, Anything], 0, LWT | TC),
    h(34, "get_hash_recalc", Integer, &[Ctx], 0, LWT | TC),
    h(35, "get_current_task", Integer, &[], GPL, ANY),
    h(36, "probe_write_user", Integer, &[Anything, READ, Size], GPL, TRACERS),
    h(37, "current_task_under_cgroup", Integer, &[MapPtr, Anything], 0, ANY),
    h(38, "skb_change_tail", Integer, &[Ctx, Anything, Anything], MOVES_PKT, TC | LWT_XMIT | SK_SKB),
    h(39, "skb_pull_data", Integer, &[Ctx, Anything], MOVES_PKT, LWT | TC | SK_SKB),
    h(40, "csum_update", Integer, &[Ctx, Anything], 0, TC | LWT_XMIT),
    h(41, "set_hash_invalid", Integer, &[Ctx], 0, TC | LWT_XMIT),
    h(42, "get_numa_node_id", Integer, &[], 0, ANY),
    h(43, "skb_change_head", Integer, &[Ctx, Anything, Anything], MOVES_PKT, TC | LWT_XMIT | SK_SKB),
    h(44, "xdp_adjust_head", Integer, &[Ctx, Anything], MOVES_PKT, XDP),
    h(45, "probe_read_str", Integer, &[WRITE, SizeOrZero, Anything], GPL, TRACERS),
    h(46, "get_socket_cookie", Integer, &[Ctx], 0, TC | SOCKET_FILTER | CGROUP_SKB | CGROUP_SOCK | SOCK_OPS | SK_SKB | CGROUP_SOCK_ADDR | SK_REUSEPORT | SYSCALL | TRACING | LSM),
    h(47, "get_socket_uid", Integer, &[Ctx], 0, TC | SOCKET_FILTER | CGROUP_SKB | SK_SKB),
    h(48, "set_hash", Integer, &[Ctx, Anything], 0, TC),
    h(49, "setsockopt", Integer, &[Ctx, Anything, Anything, READ, Size], 0, SOCK_OPS | CGROUP_SOCK_ADDR | CGROUP_SOCKOPT),
    h(50, "skb_adjust_room", Integer, &[Ctx, Anything, Anything, Anything], MOVES_PKT, TC | SK_SKB),
    h(51, "redirect_map", Integer, &[MapPtr, Anything, Anything], 0, XDP),
    h(52, "sk_redirect_map", Integer, &[Ctx, MapPtr, Anything, Anything], 0, SK_SKB),
    h(53, "sock_map_update", Integer, &[Ctx, MapPtr, MapKey, Anything], PKT, SOCK_OPS),
    h(54, "xdp_adjust_meta", Integer, &[Ctx, Anything], MOVES_PKT, XDP),
    h(55, "perf_event_read_value", Integer, &[MapPtr, Anything, WRITE, Size], GPL, ANY),
    h(56, "perf_prog_read_value", Integer, &[Ctx, WRITE, Size], GPL, PERF_EVENT),
    h(57, "getsockopt", Integer, &[Ctx, Anything, Anything, WRITE, Size], 0, SOCK_OPS | CGROUP_SOCK_ADDR | CGROUP_SOCKOPT),
    h(58, "override_return", Integer, &[Ctx, Anything], GPL, KPROBE),
    h(59, "sock_ops_cb_flags_set", Integer, &[Ctx, Anything], 0, SOCK_OPS),
    h(60, "msg_redirect_map", Integer, &[Ctx, MapPtr, Anything, Anything], 0, SK_MSG),
    h(61, "msg_apply_bytes", Integer, &[Ctx, Anything], 0, SK_MSG),
    h(62, "msg_cork_bytes", Integer, &[Ctx, Anything], 0, SK_MSG),
    h(63, "msg_pull_data", Integer, &[Ctx, Anything, Anything, Anything], MOVES_PKT, SK_MSG),
    h(64, "bind", Integer, &[Ctx, READ, Size], 0, CGROUP_SOCK_ADDR),
    h(65, "xdp_adjust_tail", Integer, &[Ctx, Anything], MOVES_PKT, XDP),
    h(66, "skb_get_xfrm_state", Integer, &[Ctx, Anything, WRITE, Size, Anything], 0, TC),
    h(67, "get_stack", Integer, &[Ctx, WRITE, SizeOrZero, Anything], GPL, TRACERS),
    h(68, "skb_load_bytes_relative", Integer, &[Ctx, Anything, WRITE, Size, Anything], 0, TC | SOCKET_FILTER | CGROUP_SKB | SK_REUSEPORT),
    h(69, "fib_lookup", Integer, &[Ctx, UPDATE, Size, Anything], GPL, TC | XDP),
    h(70, "sock_hash_update", Integer, &[Ctx, MapPtr, MapKey, Anything], PKT, SOCK_OPS),
    h(71, "msg_redirect_hash", Integer, &[Ctx, MapPtr, MapKey, Anything], 0, SK_MSG),
    h(72, "sk_redirect_hash", Integer, &[Ctx, MapPtr, MapKey, Anything], 0, SK_SKB),
    h(73, "lwt_push_encap", Integer, &[Ctx, Anything, READ, Size], MOVES_PKT, LWT_IN | LWT_XMIT),
    h(74, "lwt_seg6_store_bytes", Integer, &[Ctx, Anything, READ, Size], MOVES_PKT, LWT_SEG6LOCAL),
    h(75, "lwt_seg6_adjust_srh", Integer, &[Ctx, Anything, Anything], MOVES_PKT, LWT_SEG6LOCAL),
    h(76, "lwt_seg6_action", Integer, &[Ctx, Anything, READ, Size], MOVES_PKT, LWT_SEG6LOCAL),
    h(77, "rc_repeat", Integer, &[Ctx], GPL, LIRC_MODE2),
    h(78, "rc_keydown", Integer, &[Ctx, Anything, Anything, Anything], GPL, LIRC_MODE2),
    h(79, "skb_cgroup_id", Integer, &[Ctx], 0, TC | CGROUP_SKB),
    h(80, "get_current_cgroup_id", Integer, &[], 0, ANY),
    h(81, "get_local_storage", Value, &[MapPtr, Anything], 0, CGROUP_SKB | CGROUP_SOCK | SOCK_OPS | CGROUP_DEVICE | CGROUP_SOCK_ADDR | CGROUP_SYSCTL | CGROUP_SOCKOPT),
    h(82, "sk_select_reuseport", Integer, &[Ctx, MapPtr, MapKey, Anything], 0, SK_REUSEPORT),
    h(83, "skb_ancestor_cgroup_id", Integer, &[Ctx, Anything], 0, TC | CGROUP_SKB),
    h(84, "sk_lookup_tcp", SocketOrNull, &[Ctx, READ, Size, Anything, Anything], PKT|ACQUIRE, TC | XDP | CGROUP_SKB | SK_SKB | CGROUP_SOCK_ADDR),
    h(85, "sk_lookup_udp", SocketOrNull, &[Ctx, READ, Size, Anything, Anything], PKT|ACQUIRE, TC | XDP | CGROUP_SKB | SK_SKB | CGROUP_SOCK_ADDR),
    h(86, "sk_release", Integer, &[BtfSock], RELEASE, TC | XDP | CGROUP_SKB | SK_SKB | CGROUP_SOCK_ADDR | SK_LOOKUP),
    h(87, "map_push_elem", Integer, &[MapPtr, MapValue, Anything], PKT, ALL),
    h(88, "map_pop_elem", Integer, &[MapPtr, UninitMapValue], 0, ALL),
    h(89, "map_peek_elem", Integer, &[MapPtr, UninitMapValue], 0, ALL),
    h(90, "msg_push_data", Integer, &[Ctx, Anything, Anything, Anything], MOVES_PKT, SK_MSG),
    h(91, "msg_pop_data", Integer, &[Ctx, Anything, Anything, Anything], MOVES_PKT, SK_MSG),
    h(92, "rc_pointer_rel", Integer, &[Ctx, Anything, Anything], GPL, LIRC_MODE2),
    h(93, "spin_lock", Void, &[SpinLock], 0, ANY),
    h(94, "spin_unlock", Void, &[SpinLock], 0, ANY),
    h(95, "sk_fullsock", SocketOrNull, &[SockCommon], 0, TC | CGROUP_SKB),
    h(96, "tcp_sock", TcpSockOrNull, &[SockCommon], 0, TC | CGROUP_SKB | SOCK_OPS | CGROUP_SOCKOPT),
    h(97, "skb_ecn_set_ce", Integer, &[Ctx], 0, TC | CGROUP_SKB),
    h(98, "get_listener_sock", SocketOrNull, &[SockCommon], 0, TC | CGROUP_SKB),
    h(99, "skc_lookup_tcp", SockCommonOrNull, &[Ctx, READ, Size, Anything, Anything], PKT|ACQUIRE, TC | XDP | CGROUP_SKB | SK_SKB | CGROUP_SOCK_ADDR),
    h(100, "tcp_check_syncookie", Integer, &[BtfSock, READ, Size, READ, Size], GPL|PKT, TC | XDP),
    h(101, "sysctl_get_name", Integer, &[Ctx, WRITE, Size, Anything], 0, CGROUP_SYSCTL),
    h(102, "sysctl_get_current_value", Integer, &[Ctx, WRITE, Size], 0, CGROUP_SYSCTL),
    h(103, "sysctl_get_new_value", Integer, &[Ctx, WRITE, Size], 0, CGROUP_SYSCTL),
    h(104, "sysctl_set_new_value", Integer, &[Ctx, READ, Size], 0, CGROUP_SYSCTL),
    h(105, "strtol", Integer, &[READ, Size, Anything, Fixed(Access::Write, 8)], 0, ANY),
    h(106, "strtoul", Integer, &[READ, Size, Anything, Fixed(Access::Write, 8)], 0, ANY),
    h(107, "sk_storage_get", ValueOrNull, &[MapPtr, BtfSock, MapValueOrNull, Anything], 0, TC | CGROUP_SKB | CGROUP_SOCK | SOCK_OPS | SK_MSG | CGROUP_SOCK_ADDR | CGROUP_SOCKOPT | TRACING | LSM),
    h(108, "sk_storage_delete", Integer, &[MapPtr, BtfSock], 0, TC | CGROUP_SKB | SOCK_OPS | SK_MSG | CGROUP_SOCK_ADDR | CGROUP_SOCKOPT | TRACING | LSM),
    h(109, "send_signal", Integer, &[Anything], 0, ANY),
    h(110, "tcp_gen_syncookie", Integer, &[BtfSock, READ, Size, READ, Size], GPL|PKT, TC | XDP),
    h(111, "skb_output", Integer, &[Btf, MapPtr, Anything, READ, SizeOrZero], GPL, SYSCALL | TRACING | LSM),
    h(112, "probe_read_user", Integer, &[WRITE, SizeOrZero, Anything], GPL, ANY),
    h(113, "probe_read_kernel", Integer, &[WRITE, SizeOrZero, Anything], GPL, ANY),
    h(114, "probe_read_user_str", Integer, &[WRITE, SizeOrZero, Anything], GPL, ANY),
    h(115, "probe_read_kernel_str", Integer, &[WRITE, SizeOrZero, Anything], GPL, ANY),
    h(116, "tcp_send_ack", Integer, &[Btf, Anything], 0, STRUCT_OPS),
    h(117, "send_signal_thread", Integer, &[Anything], 0, ANY),
    h(118, "jiffies64", Integer, &[], 0, ANY),
    h(119, "read_branch_records", Integer, &[Ctx, UPDATE_OR_NULL, SizeOrZero, Anything], GPL, PERF_EVENT),
    h(120, "get_ns_current_pid_tgid", Integer, &[Anything, Anything, WRITE, Size], 0, ANY),
    h(121, "xdp_output", Integer, &[Btf, MapPtr, Anything, READ, SizeOrZero], GPL, SYSCALL | TRACING | LSM),
    h(122, "get_netns_cookie", Integer, &[CtxOrNull], 0, TC | SOCKET_FILTER | CGROUP_SKB | CGROUP_SOCK | SOCK_OPS | SK_MSG | CGROUP_SOCK_ADDR | CGROUP_SOCKOPT),
    h(123, "get_current_ancestor_cgroup_id", Integer, &[Anything], 0, ANY),
    h(124, "sk_assign", Integer, &[Ctx, BtfSock, Anything], 0, TC | SK_LOOKUP),
    h(125, "ktime_get_boot_ns", Integer, &[], 0, ALL),
    h(126, "seq_printf", Integer, &[Btf, READ, Size, READ_OR_NULL, SizeOrZero], GPL, TRACING),
    h(127, "seq_write", Integer, &[Btf, READ, SizeOrZero], GPL, TRACING),
    h(128, "sk_cgroup_id", Integer, &[BtfSock], 0, CGROUP_SKB),
    h(129, "sk_ancestor_cgroup_id", Integer, &[BtfSock, Anything], 0, CGROUP_SKB),
    h(130, "ringbuf_output", Integer, &[MapPtr, READ, SizeOrZero, Anything], 0, ANY),
    h(131, "ringbuf_reserve", RingbufRecordOrNull, &[MapPtr, AllocSize, Anything], ACQUIRE, ANY),
    h(132, "ringbuf_submit", Void, &[RingbufRecord, Anything], RELEASE, ANY),
    h(133, "ringbuf_discard", Void, &[RingbufRecord, Anything], RELEASE, ANY),
    h(134, "ringbuf_query", Integer, &[MapPtr, Anything], 0, ANY),
    h(135, "csum_level", Integer, &[Ctx, Anything], 0, TC | LWT_XMIT),
    h(136, "skc_to_tcp6_sock", BtfPtrOrNull, &[BtfSock], 0, INET),
    h(137, "skc_to_tcp_sock", BtfPtrOrNull, &[BtfSock], 0, INET),
    h(138, "skc_to_tcp_timewait_sock", BtfPtrOrNull, &[BtfSock], 0, INET),
    h(139, "skc_to_tcp_request_sock", BtfPtrOrNull, &[BtfSock], 0, INET),
    h(140, "skc_to_udp6_sock", BtfPtrOrNull, &[BtfSock], 0, INET),
    h(141, "get_task_stack", Integer, &[Btf, WRITE, SizeOrZero, Anything], 0, ANY),
    h(142, "load_hdr_opt", Integer, &[Ctx, UPDATE, Size, Anything], 0, SOCK_OPS),
    h(143, "store_hdr_opt", Integer, &[Ctx, READ, Size, Anything], MOVES_PKT, SOCK_OPS),
    h(144, "reserve_hdr_opt", Integer, &[Ctx, Anything, Anything], 0, SOCK_OPS),
    h(145, "inode_storage_get", ValueOrNull, &[MapPtr, BtfOrNull, MapValueOrNull, Anything], 0, LSM),
    h(146, "inode_storage_delete", Integer, &[MapPtr, BtfOrNull], 0, LSM),
    h(147, "d_path", Integer, &[Btf, UPDATE, SizeOrZero], 0, TRACING | LSM),
    h(148, "copy_from_user", Integer, &[WRITE, SizeOrZero, Anything], SLEEPS, ANY),
    h(149, "snprintf_btf", Integer, &[UPDATE, Size, READ, Size, Anything], 0, ANY),
    h(150, "seq_printf_btf", Integer, &[Btf, READ, SizeOrZero, Anything], GPL, TRACING),
    h(151, "skb_cgroup_classid", Integer, &[Ctx], 0, TC),
    h(152, "redirect_neigh", Integer, &[Anything, READ_OR_NULL, SizeOrZero, Anything], 0, TC),
    h(153, "per_cpu_ptr", BtfPtrOrNull, &[PercpuBtf, Anything], 0, ANY),
    h(154, "this_cpu_ptr", Ret::Btf, &[PercpuBtf], 0, ANY),
    h(155, "redirect_peer", Integer, &[Anything, Anything], 0, TC),
    h(156, "task_storage_get", ValueOrNull, &[MapPtr, BtfOrNull, MapValueOrNull, Anything], 0, ANY),
    h(157, "task_storage_delete", Integer, &[MapPtr, BtfOrNull], 0, ANY),
    h(158, "get_current_task_btf", Ret::Btf, &[], GPL, ANY),
    h(159, "bprm_opts_set", Integer, &[Btf, Anything], 0, LSM),
    h(160, "ktime_get_coarse_ns", Integer, &[], 0, ANY & !(TRACERS | CGROUP_DEVICE | CGROUP_SOCKOPT | NETFILTER)),
    h(161, "ima_inode_hash", Integer, &[Btf, WRITE, Size], SLEEPS, LSM),
    h(162, "sock_from_file", BtfPtrOrNull, &[Btf], 0, SYSCALL | TRACING | LSM),
    h(163, "check_mtu", Integer, &[Ctx, Anything, Fixed(Access::Write, 4), Anything, Anything], GPL, TC | XDP),
    h(164, "for_each_map_elem", Integer, &[MapPtr, Func, StackOrNull, Anything], CALLBACK, ANY),
    h(165, "snprintf", Integer, &[UPDATE_OR_NULL, SizeOrZero, ConstStr, READ_OR_NULL, SizeOrZero], GPL, ANY),
    h(166, "sys_bpf", Integer, &[Anything, READ, Size], 0, SYSCALL),
    h(167, "btf_find_by_name_kind", Integer, &[READ, Size, Anything, Anything], 0, SYSCALL),
    h(168, "sys_close", Integer, &[Anything], 0, SYSCALL),
    h(169, "timer_init", Integer, &[Timer, MapPtr, Anything], GPL, ANY),
    h(170, "timer_set_callback", Integer, &[Timer, Func], GPL|CALLBACK, ANY),
    h(171, "timer_start", Integer, &[Timer, Anything, Anything], GPL, ANY),
    h(172, "timer_cancel", Integer, &[Timer], GPL, ANY),
    h(173, "get_func_ip", Integer, &[Ctx], GPL, TRACERS),
    h(174, "get_attach_cookie", Integer, &[Ctx], 0, KPROBES),
    h(175, "task_pt_regs", Ret::Btf, &[Btf], GPL, ANY),
    h(176, "get_branch_snapshot", Integer, &[WRITE, SizeOrZero, Anything], GPL, ANY),
    h(177, "trace_vprintk", Integer, &[READ, Size, READ_OR_NULL, SizeOrZero], GPL, ANY),
    h(178, "skc_to_unix_sock", BtfPtrOrNull, &[BtfSock], 0, INET),
    h(179, "kallsyms_lookup_name", Integer, &[READ, SizeOrZero, Anything, Fixed(Access::Write, 8)], 0, SYSCALL),
    h(180, "find_vma", Integer, &[Btf, Anything, Func, StackOrNull, Anything], CALLBACK, ANY),
    h(181, "loop", Integer, &[Anything, Func, StackOrNull, Anything], CALLBACK, ANY),
    h(182, "strncmp", Integer, &[READ, Size, ConstStr], 0, ANY),
    h(183, "get_func_arg", Integer, &[Ctx, Anything, Fixed(Access::Write, 8)], 0, TRACING | LSM),
    h(184, "get_func_ret", Integer, &[Ctx, Fixed(Access::Write, 8)], 0, TRACING | LSM),
    h(185, "get_func_arg_cnt", Integer, &[Ctx], 0, TRACING | LSM),
    h(186, "get_retval", Integer, &[], 0, RETVAL),
    h(187, "set_retval", Integer, &[Anything], 0, RETVAL),
    h(188, "xdp_get_buff_len", Integer, &[Ctx], 0, XDP | SYSCALL | TRACING | LSM),
    h(189, "xdp_load_bytes", Integer, &[Ctx, Anything, WRITE, Size], 0, XDP),
    h(190, "xdp_store_bytes", Integer, &[Ctx, Anything, READ, Size], 0, XDP),
    h(191, "copy_from_user_task", Integer, &[WRITE, SizeOrZero, Anything, Btf, Anything], GPL|SLEEPS, ANY),
    h(192, "skb_set_tstamp", Integer, &[Ctx, Anything, Anything], 0, TC),
    h(193, "ima_file_hash", Integer, &[Btf, WRITE, Size], SLEEPS, LSM),
    h(194, "kptr_xchg", BtfPtrOrNull, &[KptrDest, BtfOrNull], ACQUIRE, ANY),
    h(195, "map_lookup_percpu_elem", ValueOrNull, &[MapPtr, MapKey, Anything], PKT, ANY),
    h(196, "skc_to_mptcp_sock", BtfPtrOrNull, &[SockCommon], 0, INET),
    h(197, "dynptr_from_mem", Integer, &[UPDATE, SizeOrZero, Anything, Dynptr(NewLocal)], 0, ANY),
    h(198, "ringbuf_reserve_dynptr", Integer, &[MapPtr, Anything, Anything, Dynptr(NewRingbuf)], 0, ANY),
    h(199, "ringbuf_submit_dynptr", Void, &[Dynptr(ReleaseRingbuf), Anything], RELEASE, ANY),
    h(200, "ringbuf_discard_dynptr", Void, &[Dynptr(ReleaseRingbuf), Anything], RELEASE, ANY),
    h(201, "dynptr_read", Integer, &[WRITE, SizeOrZero, Dynptr(DynptrArg::Any), Anything, Anything], 0, ANY),
    h(202, "dynptr_write", Integer, &[Dynptr(DynptrArg::Any), Anything, READ, SizeOrZero, Anything], 0, ANY),
    h(203, "dynptr_data", DynptrMemOrNull, &[Dynptr(DynptrArg::Any), Anything, AllocSize], 0, ANY),
    h(204, "tcp_raw_gen_syncookie_ipv4", Integer, &[Fixed(Access::Read, 20), READ, SizeOrZero], GPL|PKT, TC | XDP),
    h(205, "tcp_raw_gen_syncookie_ipv6", Integer, &[Fixed(Access::Read, 40), READ, SizeOrZero], GPL|PKT, TC | XDP),
    h(206, "tcp_raw_check_syncookie_ipv4", Integer, &[Fixed(Access::Read, 20), Fixed(Access::Read, 20)], GPL|PKT, TC | XDP),
    h(207, "tcp_raw_check_syncookie_ipv6", Integer, &[Fixed(Access::Read, 40), Fixed(Access::Read, 20)], GPL|PKT, TC | XDP),
    h(208, "ktime_get_tai_ns", Integer, &[], 0, ANY),
    h(209, "user_ringbuf_drain", Integer, &[MapPtr, Func, StackOrNull, Anything], CALLBACK, ANY),
    h(210, "cgrp_storage_get", ValueOrNull, &[MapPtr, BtfOrNull, MapValueOrNull, Anything], 0, ANY),
    h(211, "cgrp_storage_delete", Integer, &[MapPtr, BtfOrNull], 0, ANY),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered() {
        for (i, h) in HELPERS.iter().enumerate() {
            assert_eq!(h.id as usize, i + 1, "{}", h.name);
            assert!(h.args.len() <= 5);
        }
        assert_eq!(Helper::by_name("map_lookup_elem").map(|h| h.id), Some(1));
        assert!(Helper::by_id(0).is_none() && Helper::by_id(212).is_none());
    }

    #[test]
    fn sizes_follow_memory() {
        for h in &HELPERS {
            for (i, a) in h.args.iter().enumerate() {
                if matches!(a, Mem(_) | MemOrNull(_)) {
                    assert!(matches!(h.args.get(i + 1), Some(Size | SizeOrZero)), "{}", h.name);
                }
            }
        }
    }
}
