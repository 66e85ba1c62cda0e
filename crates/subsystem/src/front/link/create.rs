//! `BPF_LINK_CREATE` and `BPF_RAW_TRACEPOINT_OPEN`.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::uapi::{AttachType, ProgType};

use super::function::Wanted;
use super::{LinkKind, LinkObject, PerfLink};
use crate::front::Subsystem;
use crate::front::attr::{Attr, link_create, raw_tracepoint};
use crate::front::client::Client;
use crate::front::faults::FaultPoint;
use crate::front::hooks::SecurityHooks;
use crate::front::object::{Object, ProgObject};

/// Longest name of a tracepoint, with its end.
const TRACEPOINT_LEN: usize = 128;

/// The type of program that an attach type is for, where there is one.
pub fn program_of(attach: AttachType) -> Option<ProgType> {
    use AttachType::*;
    Some(match attach {
        CgroupInetIngress | CgroupInetEgress => ProgType::CgroupSkb,
        CgroupInetSockCreate | CgroupInetSockRelease | CgroupInet4PostBind | CgroupInet6PostBind => {
            ProgType::CgroupSock
        }
        CgroupInet4Bind
        | CgroupInet6Bind
        | CgroupInet4Connect
        | CgroupInet6Connect
        | CgroupUnixConnect
        | CgroupInet4Getpeername
        | CgroupInet6Getpeername
        | CgroupUnixGetpeername
        | CgroupInet4Getsockname
        | CgroupInet6Getsockname
        | CgroupUnixGetsockname
        | CgroupUdp4Sendmsg
        | CgroupUdp6Sendmsg
        | CgroupUnixSendmsg
        | CgroupUdp4Recvmsg
        | CgroupUdp6Recvmsg
        | CgroupUnixRecvmsg => ProgType::CgroupSockAddr,
        CgroupSockOps => ProgType::SockOps,
        CgroupDevice => ProgType::CgroupDevice,
        SkMsgVerdict => ProgType::SkMsg,
        SkSkbStreamParser | SkSkbStreamVerdict | SkSkbVerdict => ProgType::SkSkb,
        LircMode2 => ProgType::LircMode2,
        FlowDissector => ProgType::FlowDissector,
        CgroupSysctl => ProgType::CgroupSysctl,
        CgroupGetsockopt | CgroupSetsockopt => ProgType::CgroupSockopt,
        TraceIter | TraceRawTp | TraceFentry | TraceFexit | ModifyReturn => ProgType::Tracing,
        LsmMac | LsmCgroup => ProgType::Lsm,
        SkLookup => ProgType::SkLookup,
        Xdp => ProgType::Xdp,
        TcxIngress | TcxEgress | NetkitPrimary | NetkitPeer => ProgType::SchedCls,
        _ => return None,
    })
}

/// Whether a program may be attached as this.
pub fn fits(prog: &ProgObject, attach: Option<AttachType>) -> Result<(), Errno> {
    use AttachType::*;
    let program = prog.verified.program();
    let wanted = program.attach_type;
    let multi = |t| matches!(t, Some(TraceKprobeMulti | TraceKprobeSession | TraceUprobeMulti | TraceUprobeSession));
    let fits = match program.prog_type {
        ProgType::CgroupSock | ProgType::CgroupSockAddr | ProgType::CgroupSockopt | ProgType::SkLookup => {
            attach.is_some() && attach == wanted
        }
        ProgType::Ext => true,
        ProgType::Netfilter => attach == Some(Netfilter),
        ProgType::PerfEvent | ProgType::Tracepoint => attach == Some(PerfEvent),
        ProgType::Kprobe if multi(wanted) => attach == wanted,
        ProgType::Kprobe => attach == Some(PerfEvent) || multi(attach),
        ProgType::SchedCls => matches!(attach, Some(TcxIngress | TcxEgress | NetkitPrimary | NetkitPeer)),
        other => attach.and_then(program_of) == Some(other),
    };
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Subsystem {
    pub(in crate::front) fn link_create(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        use link_create as f;
        attr.ends_at(f::END)?;
        let attach = AttachType::from_u32(attr.u32(f::ATTACH_TYPE));
        if attach == Some(AttachType::StructOps) {
            let Object::Map(..) = client.files.get(attr.fd(f::PROG_FD))? else { return Err(Errno::EINVAL) };
            // No map that is here holds operations.
            return Err(Errno::EINVAL);
        }
        let Object::Prog(prog) = client.files.get(attr.fd(f::PROG_FD))? else { return Err(Errno::EINVAL) };
        fits(&prog, attach)?;
        self.hooks.attach(client, &prog)?;
        match prog.verified.program().prog_type {
            ProgType::PerfEvent | ProgType::Tracepoint => self.perf_link(client, attr, &prog),
            ProgType::Kprobe => match attach {
                Some(AttachType::PerfEvent) => self.perf_link(client, attr, &prog),
                Some(AttachType::TraceUprobeMulti) => self.uprobe_multi(client, attr, &prog),
                Some(AttachType::TraceKprobeMulti) => self.kprobe_multi(client, attr, &prog),
                // Sessions are not there yet; for a program that was not loaded for one they are wrong.
                session if session == prog.verified.program().attach_type => Err(Errno::EOPNOTSUPP),
                _ => Err(Errno::EINVAL),
            },
            ProgType::Ext => self.function_link(client, &prog, Wanted::of(attr)),
            ProgType::Tracing | ProgType::Lsm if attach != prog.verified.program().attach_type => Err(Errno::EINVAL),
            ProgType::Tracing if prog.is_around() => self.function_link(client, &prog, Wanted::of(attr)),
            ProgType::Tracing if attach == Some(AttachType::TraceIter) => self.iter_link(client, attr, &prog),
            ProgType::Lsm if attach == Some(AttachType::LsmMac) => self.lsm_link_create(client, attr, &prog),
            other => Err(nothing_there(client, attr, other)),
        }
    }

    fn perf_link(&self, client: &Client, attr: &Attr<'_>, prog: &Arc<ProgObject>) -> Result<i32, Errno> {
        if attr.u32(link_create::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        // What is open but no event is a bad descriptor to this.
        let Ok(Object::Perf(event)) = client.files.get(attr.fd(link_create::TARGET_FD)) else {
            return Err(Errno::EBADF);
        };
        self.fault(FaultPoint::LinkAlloc)?;
        let link = PerfLink::new(event, prog, attr.u64(link_create::COOKIE))?;
        self.new_link(client, prog, LinkKind::Perf(link))
    }

    /// Gives a link its number and its descriptor. What is attached goes with `kind` where that fails.
    pub(in crate::front) fn new_link(
        &self,
        client: &Client,
        prog: &Arc<ProgObject>,
        kind: LinkKind,
    ) -> Result<i32, Errno> {
        self.fault(FaultPoint::LinkId)?;
        let link = self.links.add(|id| LinkObject { id, prog: Arc::clone(prog).into(), kind })?;
        self.install(client, Object::Link(link))
    }

    pub(in crate::front) fn raw_tracepoint_open(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        use raw_tracepoint as f;
        attr.ends_at(f::END)?;
        let Object::Prog(prog) = client.files.get(attr.fd(f::PROG_FD))? else { return Err(Errno::EINVAL) };
        self.hooks.attach(client, &prog)?;
        match prog.verified.program().prog_type {
            ProgType::RawTracepoint | ProgType::RawTracepointWritable => {
                let name = client.string(attr.u64(f::NAME), TRACEPOINT_LEN)?;
                let name = String::from_utf8_lossy(&name);
                let tracepoint = self.raw_tracepoints.get(&name).ok_or(Errno::ENOENT)?;
                self.fault(FaultPoint::LinkAlloc)?;
                let raw = tracepoint.attach(&prog, attr.u64(f::COOKIE));
                self.new_link(client, &prog, LinkKind::Raw(raw))
            }
            ProgType::Tracing | ProgType::Lsm | ProgType::Ext if attr.u64(f::NAME) != 0 => Err(Errno::EINVAL),
            ProgType::Lsm => self.lsm_link(client, &prog),
            ProgType::Tracing if prog.verified.program().attach_type == Some(AttachType::TraceIter) => {
                Err(Errno::EINVAL)
            }
            ProgType::Ext => self.function_link(client, &prog, Wanted::default()),
            ProgType::Tracing if prog.is_around() => self.function_link(client, &prog, Wanted::default()),
            ProgType::Tracing => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What the kernel would say where there are no devices, control groups, sockets and protocols.
fn nothing_there(client: &Client, attr: &Attr<'_>, prog_type: ProgType) -> Errno {
    let target = attr.fd(link_create::TARGET_FD);
    match prog_type {
        ProgType::CgroupSkb
        | ProgType::CgroupSock
        | ProgType::CgroupSockAddr
        | ProgType::SockOps
        | ProgType::CgroupDevice
        | ProgType::CgroupSysctl
        | ProgType::CgroupSockopt => match attr.u32(link_create::FLAGS) {
            0 => Errno::EBADF,
            _ => Errno::EINVAL,
        },
        ProgType::SchedCls => Errno::ENODEV,
        ProgType::Xdp => Errno::EINVAL,
        ProgType::FlowDissector | ProgType::SkLookup => match client.files.get(target) {
            Err(Errno::EBADF) => Errno::EBADF,
            _ => Errno::EINVAL,
        },
        ProgType::Netfilter => Errno::EAFNOSUPPORT,
        ProgType::Tracing | ProgType::Lsm | ProgType::Ext => Errno::EOPNOTSUPP,
        ProgType::SkMsg | ProgType::SkSkb => match client.files.get(target) {
            Err(e) => e,
            Ok(_) => Errno::EINVAL,
        },
        _ => Errno::EINVAL,
    }
}
