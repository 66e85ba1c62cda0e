//! `BPF_PROG_ATTACH`, `BPF_PROG_DETACH` and `BPF_PROG_QUERY`: the older way to attach, which is for control groups, sockets,
//! devices and name spaces. None of them is here, so what is right in all else ends as where there is no such target.

use skep_ebpf::Errno;
use skep_ebpf::uapi::{AttachType, ProgType};

use super::create::{fits, program_of};
use crate::front::Subsystem;
use crate::front::attr::{Attr, prog_attach as f, prog_query as q};
use crate::front::client::{Caps, Client};
use crate::front::object::Object;

/// `BPF_F_ALLOW_OVERRIDE`, `BPF_F_ALLOW_MULTI`, `BPF_F_REPLACE`, and those of lists of programs.
const BASE: u32 = 7;
const LISTS: u32 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 13;
/// `BPF_F_QUERY_EFFECTIVE`.
const EFFECTIVE: u32 = 1;

fn is_cgroup(t: ProgType) -> bool {
    use ProgType::*;
    matches!(t, CgroupDevice | CgroupSkb | CgroupSock | CgroupSockAddr | CgroupSockopt | CgroupSysctl | SockOps)
}

impl Subsystem {
    pub(in crate::front) fn prog_attach(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(f::END)?;
        let attach = AttachType::from_u32(attr.u32(f::ATTACH_TYPE));
        let prog_type = attach.and_then(program_of).ok_or(Errno::EINVAL)?;
        let flags = attr.u32(f::ATTACH_FLAGS);
        let known = match prog_type {
            ProgType::SchedCls => LISTS,
            t if is_cgroup(t) => BASE | LISTS,
            _ => BASE,
        };
        let relative = attr.u32(f::RELATIVE_FD) != 0 || attr.u64(f::EXPECTED_REVISION) != 0;
        let lists = prog_type == ProgType::SchedCls || is_cgroup(prog_type);
        if flags & !known != 0 || relative && !lists {
            return Err(Errno::EINVAL);
        }
        let Object::Prog(prog) = client.files.get(attr.fd(f::ATTACH_BPF_FD))? else { return Err(Errno::EINVAL) };
        if prog.verified.program().prog_type != prog_type {
            return Err(Errno::EINVAL);
        }
        fits(&prog, attach)?;
        Err(no_target(client, attr.fd(f::TARGET_FD), prog_type))
    }

    pub(in crate::front) fn prog_detach(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(f::END)?;
        let attach = AttachType::from_u32(attr.u32(f::ATTACH_TYPE));
        let prog_type = attach.and_then(program_of);
        let (flags, relative) = (attr.u32(f::ATTACH_FLAGS), attr.u32(f::RELATIVE_FD));
        let bad = match prog_type {
            Some(ProgType::SchedCls) => flags & !LISTS != 0,
            Some(t) if is_cgroup(t) => flags != 0 || relative != 0,
            _ => flags != 0 || relative != 0 || attr.u64(f::EXPECTED_REVISION) != 0,
        };
        if bad {
            return Err(Errno::EINVAL);
        }
        let fd = attr.fd(f::ATTACH_BPF_FD);
        match prog_type {
            Some(ProgType::SchedCls) if fd == 0 => {}
            Some(ProgType::SchedCls) => {
                let Object::Prog(prog) = client.files.get(fd)? else { return Err(Errno::EINVAL) };
                if prog.verified.program().prog_type != ProgType::SchedCls {
                    return Err(Errno::EINVAL);
                }
            }
            None => return Err(Errno::EINVAL),
            Some(_) => {}
        }
        Err(no_target(client, attr.fd(f::TARGET_FD), prog_type.unwrap_or(ProgType::Unspec)))
    }

    pub(in crate::front) fn prog_query(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        if !client.caps.has(Caps::NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        attr.ends_at(q::END)?;
        if attr.u32(q::QUERY_FLAGS) & !EFFECTIVE != 0 {
            return Err(Errno::EINVAL);
        }
        let attach = AttachType::from_u32(attr.u32(q::ATTACH_TYPE)).ok_or(Errno::EINVAL)?;
        let target = attr.fd(q::TARGET_FD);
        Err(match (attach, program_of(attach)) {
            (AttachType::LsmCgroup, _) => Errno::EBADF,
            (_, Some(ProgType::SkMsg | ProgType::Tracing | ProgType::Lsm | ProgType::Xdp)) | (_, None)
                if attach != AttachType::SkMsgVerdict =>
            {
                Errno::EINVAL
            }
            (_, Some(t)) => no_target(client, target, t),
            (_, None) => Errno::EINVAL,
        })
    }
}

/// What the kernel says of a target that is not there.
fn no_target(client: &Client, target: i32, prog_type: ProgType) -> Errno {
    match prog_type {
        t if is_cgroup(t) => Errno::EBADF,
        ProgType::SchedCls => Errno::ENODEV,
        ProgType::SkMsg | ProgType::SkSkb => match client.files.get(target) {
            Err(e) => e,
            // No map that is here holds sockets.
            Ok(Object::Map(..)) => Errno::EOPNOTSUPP,
            Ok(_) => Errno::EINVAL,
        },
        _ => Errno::EINVAL,
    }
}
