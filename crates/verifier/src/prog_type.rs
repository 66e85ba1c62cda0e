//! The program types: a row each with what a load may ask for and what its programs may do.

use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType as A, ProgType as T, prog_flags};

use crate::Options;
use crate::fail::{Check, invalid, unsupported};

/// Access to packet data through pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Packet {
    /// None.
    No,
    /// Loads.
    Reads,
    /// Loads and stores.
    Writes,
    /// Loads and stores, and any helper takes the pointers: the value of a socket option.
    Buffer,
}

/// Which attach types a load may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Attach {
    /// Any: it says nothing.
    Any,
    /// One of these.
    Of(&'static [A]),
    /// One of these; none means the first.
    OrFirst(&'static [A]),
}

/// May programs sleep?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sleep {
    Never,
    May,
    Must,
}

/// What a program returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// Anything, a pointer too.
    Anything,
    /// A number in this range, both ends included.
    Range(i64, i64),
}

/// The struct that is the context, as BTF names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Context {
    /// Its name in the user API; empty where the context has no named type.
    pub name: &'static str,
    /// The kernel's own struct, where functions may name that as well.
    pub kernel: &'static str,
    /// Accesses are not rewritten for another layout, so that the context can be handed on as memory.
    pub plain: bool,
}

/// A program type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TypeFacts {
    prog_type: T,
    attach: Attach,
    sleep: Sleep,
    exit: fn(A) -> Exit,
    /// Access to packet data.
    pub packet: Packet,
    /// `LD_ABS` and `LD_IND` load packet data.
    pub loads_packets: bool,
    /// The context.
    pub context: Context,
}

const fn any(_: A) -> Exit {
    Exit::Anything
}

const fn bit(_: A) -> Exit {
    Exit::Range(0, 1)
}

/// Egress has two more verdicts: congestion, with the packet and without.
const fn skb(attach: A) -> Exit {
    if matches!(attach, A::CgroupInetEgress) { Exit::Range(0, 3) } else { Exit::Range(0, 1) }
}

const fn sock_addr(attach: A) -> Exit {
    match attach {
        // The second bit: no check of the right to bind this port.
        A::CgroupInet4Bind | A::CgroupInet6Bind => Exit::Range(0, 3),
        A::CgroupInet4Connect
        | A::CgroupInet6Connect
        | A::CgroupUnixConnect
        | A::CgroupUdp4Sendmsg
        | A::CgroupUdp6Sendmsg
        | A::CgroupUnixSendmsg => Exit::Range(0, 1),
        // The call is done already.
        _ => Exit::Range(1, 1),
    }
}

const fn kprobe(attach: A) -> Exit {
    if matches!(attach, A::TraceKprobeSession | A::TraceUprobeSession) { Exit::Range(0, 1) } else { Exit::Anything }
}

const fn row(prog_type: T, attach: Attach, exit: fn(A) -> Exit, packet: Packet, context: Context) -> TypeFacts {
    TypeFacts { prog_type, attach, sleep: Sleep::Never, exit, packet, loads_packets: false, context }
}

const fn own(name: &'static str) -> Context {
    Context { name, kernel: "", plain: false }
}

const fn plain(name: &'static str) -> Context {
    Context { name, kernel: "", plain: true }
}

const SKB: Context = Context { name: "__sk_buff", kernel: "sk_buff", plain: false };
const XDP: Context = Context { name: "xdp_md", kernel: "xdp_buff", plain: false };
const REGS: Context = Context { name: "bpf_user_pt_regs_t", kernel: "pt_regs", plain: true };
const SOCKS: &[A] =
    &[A::CgroupInetSockCreate, A::CgroupInetSockRelease, A::CgroupInet4PostBind, A::CgroupInet6PostBind];
const SOCK_ADDRS: &[A] = &[
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
];

use Attach::{Any, Of, OrFirst};
use Packet::{Buffer, No, Reads, Writes};

#[rustfmt::skip]
static TYPES: [TypeFacts; 32] = [
    TypeFacts { loads_packets: true, ..row(T::SocketFilter, Any, any, No, SKB) },
    TypeFacts { sleep: Sleep::May, ..row(T::Kprobe, Any, kprobe, No, REGS) },
    TypeFacts { loads_packets: true, ..row(T::SchedCls, Any, any, Writes, SKB) },
    TypeFacts { loads_packets: true, ..row(T::SchedAct, Any, any, Writes, SKB) },
    row(T::Tracepoint, Any, any, No, plain("")),
    row(T::Xdp, Any, any, Writes, XDP),
    row(T::PerfEvent, Any, any, No, own("bpf_perf_event_data")),
    row(T::CgroupSkb, Of(&[A::CgroupInetIngress, A::CgroupInetEgress]), skb, Reads, SKB),
    row(T::CgroupSock, OrFirst(SOCKS), bit, No, own("bpf_sock")),
    row(T::LwtIn, Any, any, Reads, SKB),
    row(T::LwtOut, Any, any, Reads, SKB),
    row(T::LwtXmit, Any, any, Writes, SKB),
    row(T::SockOps, Any, bit, No, own("bpf_sock_ops")),
    row(T::SkSkb, Any, any, Writes, SKB),
    row(T::CgroupDevice, Any, bit, No, plain("bpf_cgroup_dev_ctx")),
    row(T::SkMsg, Any, any, Writes, own("sk_msg_md")),
    row(T::RawTracepoint, Any, any, No, plain("bpf_raw_tracepoint_args")),
    row(T::CgroupSockAddr, Of(SOCK_ADDRS), sock_addr, No, own("bpf_sock_addr")),
    row(T::LwtSeg6local, Any, any, Reads, SKB),
    row(T::LircMode2, Any, any, No, plain("")),
    row(T::SkReuseport, OrFirst(&[A::SkReuseportSelect, A::SkReuseportSelectOrMigrate]), any, Reads, own("sk_reuseport_md")),
    row(T::FlowDissector, Any, any, Reads, SKB),
    row(T::CgroupSysctl, Any, bit, No, own("bpf_sysctl")),
    row(T::RawTracepointWritable, Any, any, No, plain("bpf_raw_tracepoint_args")),
    row(T::CgroupSockopt, Of(&[A::CgroupGetsockopt, A::CgroupSetsockopt]), bit, Buffer, own("bpf_sockopt")),
    row(T::SkLookup, Of(&[A::SkLookup]), bit, No, own("bpf_sk_lookup")),
    TypeFacts { sleep: Sleep::Must, ..row(T::Syscall, Of(&[A::CgroupInetIngress]), any, No, plain("")) },
    TypeFacts { sleep: Sleep::May, ..row(T::Tracing, Any, any, No, plain("")) },
    TypeFacts { sleep: Sleep::May, ..row(T::Lsm, Any, any, No, plain("")) },
    TypeFacts { sleep: Sleep::May, ..row(T::StructOps, Any, any, No, plain("")) },
    TypeFacts { sleep: Sleep::May, ..row(T::Ext, Of(&[A::CgroupInetIngress]), any, No, plain("")) },
    row(T::Netfilter, Of(&[A::Netfilter]), bit, No, plain("bpf_nf_ctx")),
];

/// What programs of a type that is not in the table may do: nothing.
static NOTHING: TypeFacts = row(T::Unspec, Of(&[]), any, No, plain(""));

/// Programs for hooks of an application: the description of the context says the rest.
static HOST: TypeFacts = row(T::Unspec, Any, any, Buffer, own(""));

/// The facts of a program type; of one that is not judged, those of a type that may do nothing.
pub(crate) fn facts(prog_type: T, options: &Options) -> &'static TypeFacts {
    if options.host.is_some() { &HOST } else { of_type(prog_type) }
}

/// The facts of one of the kernel's program types.
pub(crate) fn of_type(prog_type: T) -> &'static TypeFacts {
    TYPES.iter().find(|t| t.prog_type == prog_type).unwrap_or(&NOTHING)
}

impl TypeFacts {
    /// The attach type that a load with this one gets; a load without one names the number 0.
    pub fn attach_type(&self, given: Option<A>) -> A {
        let given = given.unwrap_or(A::CgroupInetIngress);
        match self.attach {
            OrFirst([first, ..]) if given as u32 == 0 => *first,
            _ => given,
        }
    }

    fn attaches(&self, attach: A) -> bool {
        match self.attach {
            Any => true,
            Of(types) | OrFirst(types) => types.contains(&attach),
        }
    }

    /// What programs of this type return.
    pub fn exit(&self, attach: A) -> Exit {
        (self.exit)(attach)
    }
}

/// Checks what the load asks for against the program type.
pub(crate) fn check(prog: &Program, options: &Options) -> Check {
    const KNOWN: u32 = (prog_flags::TEST_REG_INVARIANTS << 1) - 1;
    if prog.flags & !KNOWN != 0 {
        return invalid!(ProgramType, "the load flags {:#x} do not exist", prog.flags & !KNOWN);
    }
    let prog_type = prog.prog_type;
    if let Some(host) = &options.host {
        return match prog_type {
            T::Unspec if prog.flags & prog_flags::SLEEPABLE == 0 => Ok(()),
            T::Unspec => invalid!(ProgramType, "programs for {} cannot sleep", host.hook),
            other => invalid!(ProgramType, "a program of type {other} is not one for {}", host.hook),
        };
    }
    let facts = of_type(prog_type);
    if facts.prog_type == T::Unspec {
        return match prog_type {
            T::Unspec => invalid!(ProgramType, "the program has no type"),
            other => unsupported!(UnsupportedProgramType, "programs of type {other} are not judged yet"),
        };
    }
    let attach = facts.attach_type(prog.attach_type);
    if !facts.attaches(attach) {
        return match prog.attach_type {
            Some(a) => invalid!(AttachType, "programs of type {prog_type} cannot be loaded for {a}"),
            None => invalid!(AttachType, "programs of type {prog_type} are loaded for an attach type"),
        };
    }
    let sleepable = prog.flags & prog_flags::SLEEPABLE != 0;
    match facts.sleep {
        Sleep::Never if sleepable => invalid!(ProgramType, "programs of type {prog_type} cannot sleep"),
        Sleep::Must if !sleepable => {
            invalid!(ProgramType, "programs of type {prog_type} are loaded as sleepable")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_one_row() {
        for (n, t) in TYPES.iter().enumerate() {
            assert!(TYPES[n + 1..].iter().all(|o| o.prog_type != t.prog_type), "{}", t.prog_type);
        }
    }

    #[test]
    fn attach_types_default() {
        assert_eq!(of_type(T::CgroupSock).attach_type(None), A::CgroupInetSockCreate);
        assert_eq!(of_type(T::SkReuseport).attach_type(Some(A::CgroupInetIngress)), A::SkReuseportSelect);
        assert_eq!(of_type(T::SockOps).attach_type(None), A::CgroupInetIngress);
    }
}
