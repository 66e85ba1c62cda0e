//! What links, and descriptors of events, tell of themselves.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

use super::multi::Multi;
use super::{LinkKind, LinkObject};
use crate::front::Subsystem;
use crate::front::attr::{Attr, task_fd_query};
use crate::front::client::{Caps, Client};
use crate::front::info::Info;
use crate::front::iter::Target;
use crate::front::object::Object;
use crate::front::perf::PerfEvent;
use crate::front::probe::What;
use crate::front::tracefs::event::Kind;

/// Bytes of `struct bpf_link_info`.
const LINK_INFO: usize = 64;
/// Longest path.
const PATH_MAX: u32 = 4096;

/// `enum bpf_task_fd_type`.
mod fd_type {
    pub const RAW_TRACEPOINT: u32 = 0;
    pub const TRACEPOINT: u32 = 1;
    pub const KPROBE: u32 = 2;
    pub const KRETPROBE: u32 = 3;
    pub const UPROBE: u32 = 4;
    pub const URETPROBE: u32 = 5;
}

/// Where an event's program is.
struct Place {
    fd_type: u32,
    name: Option<String>,
    offset: u64,
    address: u64,
    /// Of a USDT probe.
    counter: u64,
    missed: u64,
}

fn place(event: &PerfEvent) -> Result<Place, Errno> {
    let program = event.program().ok_or(Errno::ENOENT)?;
    if program.prog.verified.program().prog_type == ProgType::PerfEvent {
        return Err(Errno::EOPNOTSUPP);
    }
    let trace = event.trace().ok_or(Errno::EOPNOTSUPP)?;
    let ret = u32::from(trace.is_return());
    let mut place =
        Place { fd_type: fd_type::TRACEPOINT, name: None, offset: 0, address: 0, counter: 0, missed: trace.counts().1 };
    match trace.kind {
        Kind::Tracepoint => place.name = Some(trace.name.clone()),
        Kind::Kprobe => place.fd_type = fd_type::KPROBE + ret,
        Kind::Uprobe => place.fd_type = fd_type::UPROBE + ret,
    }
    debug_assert!(place.fd_type <= fd_type::URETPROBE && fd_type::KRETPROBE == fd_type::KPROBE + 1);
    if let Some(probe) = trace.probes().first() {
        match &probe.point.what {
            What::Symbol { name, offset, module } => {
                let module = module.as_deref().map_or(String::new(), |m| format!("{m}:"));
                (place.name, place.offset, place.address) = (Some(format!("{module}{name}")), *offset, probe.address);
            }
            What::Address(address) => place.address = *address,
            What::File { path, offset, counter } => {
                (place.name, place.offset, place.counter) = (Some(path.clone()), *offset, *counter);
            }
        }
    }
    Ok(place)
}

/// A text for which the caller gave room: what fits, with an end. `ENOSPC` if that is not all.
fn text(client: &Client, at: u64, room: u32, text: &str) -> Result<(), Errno> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    if bytes.len() <= room as usize {
        return client.memory.write(at, &bytes);
    }
    bytes.truncate((room as usize).saturating_sub(1));
    bytes.push(0);
    client.memory.write(at, &bytes)?;
    Err(Errno::ENOSPC)
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a link.
pub fn by_fd(client: &Client, attr: &mut Attr<'_>, link: &Arc<LinkObject>) -> Result<i32, Errno> {
    let mut i = Info::<LINK_INFO>::take(client, attr)?;
    i.put_u32(0, link.kind.number());
    i.put_u32(4, link.id.number());
    i.put_u32(8, link.prog().id.number());
    match &link.kind {
        LinkKind::Perf(link) => perf(client, &mut i, link.event())?,
        LinkKind::Raw(raw) => {
            let (at, room) = (i.u64(16), i.u32(24));
            if (at == 0) != (room == 0) {
                return Err(Errno::EINVAL);
            }
            i.put_u32(24, raw.name().len() as u32 + 1);
            i.put_u64(32, raw.cookie);
            if at != 0 {
                text(client, at, room, raw.name())?;
            }
        }
        LinkKind::Iter(iter) => {
            let (at, room) = (i.u64(16), i.u32(24));
            if (at == 0) != (room == 0) {
                return Err(Errno::EINVAL);
            }
            let name = iter.target.name();
            i.put_u32(24, name.len() as u32 + 1);
            if at != 0 {
                text(client, at, room, name)?;
            }
            if let Target::Elements(map) = &iter.target {
                i.put_u32(28, map.id.number());
            }
        }
        LinkKind::Lsm(_) => {
            let program = Arc::clone(&link.prog().verified);
            i.put_u32(16, program.program().attach_type.map_or(0, |a| a as u32));
            i.put_u32(20, 0);
            i.put_u32(24, program.program().attach_btf_id);
            i.put_u64(32, 0);
        }
        LinkKind::Function(attachment) => {
            i.put_u32(16, link.prog().verified.program().attach_type.map_or(0, |a| a as u32));
            i.put_u32(20, attachment.target.id.number());
            i.put_u32(24, attachment.type_id);
            i.put_u64(32, attachment.cookie);
        }
        LinkKind::KprobeMulti(multi) => kprobes(client, &mut i, multi)?,
        LinkKind::UprobeMulti(multi) => uprobes(client, &mut i, multi)?,
    }
    i.give(client, attr)
}

fn perf(client: &Client, i: &mut Info<LINK_INFO>, event: &PerfEvent) -> Result<(), Errno> {
    let program = event.program().ok_or(Errno::ENOENT)?;
    if program.prog.verified.program().prog_type == ProgType::PerfEvent {
        i.put_u32(16, 6);
        i.put_u64(24, event.attr.config());
        i.put_u32(32, event.attr.kind());
        i.put_u64(40, program.cookie);
        return Ok(());
    }
    let (at, room) = (i.u64(24), i.u32(32));
    if (at == 0) != (room == 0) {
        return Err(Errno::EINVAL);
    }
    let place = place(event)?;
    let name = place.name.as_deref().unwrap_or("");
    if at != 0 {
        text(client, at, room, name)?;
    }
    i.put_u32(32, name.len() as u32 + 1);
    // `enum bpf_perf_event_type` counts uprobes first.
    let kind = match place.fd_type {
        fd_type::UPROBE => 1,
        fd_type::URETPROBE => 2,
        fd_type::KPROBE => 3,
        fd_type::KRETPROBE => 4,
        _ => 5,
    };
    i.put_u32(16, kind);
    match kind {
        5 => i.put_u64(40, program.cookie),
        1 | 2 => {
            i.put_u32(36, place.offset as u32);
            i.put_u64(40, program.cookie);
            i.put_u64(48, place.counter);
        }
        _ => {
            i.put_u32(36, place.offset as u32);
            i.put_u64(40, place.address);
            i.put_u64(48, place.missed);
            i.put_u64(56, program.cookie);
        }
    }
    Ok(())
}

fn bytes_of(words: impl Iterator<Item = u64>) -> Vec<u8> {
    words.flat_map(u64::to_ne_bytes).collect()
}

fn kprobes(client: &Client, i: &mut Info<LINK_INFO>, multi: &Multi) -> Result<(), Errno> {
    let (addresses, room, cookies) = (i.u64(16), i.u32(24) as usize, i.u64(40));
    if (addresses == 0) != (room == 0) || cookies != 0 && room == 0 {
        return Err(Errno::EINVAL);
    }
    i.put_u32(24, multi.places.len() as u32);
    i.put_u32(28, multi.flags);
    i.put_u64(32, multi.missed());
    if addresses == 0 {
        return Ok(());
    }
    let shown = || multi.places.iter().take(room);
    if cookies != 0 {
        client.memory.write(cookies, &bytes_of(shown().map(|p| p.cookie)))?;
    }
    client.memory.write(addresses, &bytes_of(shown().map(|p| p.at)))?;
    if room < multi.places.len() { Err(Errno::ENOSPC) } else { Ok(()) }
}

fn uprobes(client: &Client, i: &mut Info<LINK_INFO>, multi: &Multi) -> Result<(), Errno> {
    let (path, offsets, counters, cookies) = (i.u64(16), i.u64(24), i.u64(32), i.u64(40));
    let (path_room, room) = (i.u32(48), i.u32(52) as usize);
    let lists = [(offsets, 0), (counters, 1), (cookies, 2)];
    if (path == 0) != (path_room == 0) || lists.iter().any(|(at, _)| *at != 0) && room == 0 {
        return Err(Errno::EINVAL);
    }
    i.put_u32(52, multi.places.len() as u32);
    i.put_u32(56, multi.flags);
    i.put_u32(60, multi.pid);
    let full = multi.path.len() as u32 + 1;
    if path != 0 && path_room.min(PATH_MAX) < full {
        return Err(Errno::ENAMETOOLONG);
    }
    if path != 0 {
        text(client, path, path_room, &multi.path)?;
    }
    i.put_u32(48, full);
    if lists.iter().all(|(at, _)| *at == 0) {
        return Ok(());
    }
    for (at, which) in lists {
        let word = |p: &super::multi::MultiPlace| [p.at, p.counter, p.cookie][which];
        if at != 0 {
            client.memory.write(at, &bytes_of(multi.places.iter().take(room).map(word)))?;
        }
    }
    if room < multi.places.len() { Err(Errno::ENOSPC) } else { Ok(()) }
}

impl Subsystem {
    /// `BPF_TASK_FD_QUERY`: which program is behind a descriptor of an event. Descriptors are the caller's own.
    pub(in crate::front) fn task_fd_query(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        use task_fd_query as f;
        attr.ends_at(f::END)?;
        if !client.caps.has(Caps::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        if attr.u32(f::FLAGS) != 0 {
            return Err(Errno::EINVAL);
        }
        let pid = attr.u32(f::PID);
        if pid == 0 || !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            return Err(Errno::ENOENT);
        }
        if !client.is_process(pid) {
            return Err(Errno::EBADF);
        }
        let (prog, place) = match client.files.get(attr.fd(f::FD)) {
            Err(Errno::EBADF) => return Err(Errno::EBADF),
            Ok(Object::Link(link)) => match &link.kind {
                LinkKind::Raw(raw) => {
                    let name = Some(raw.name().to_owned());
                    let fd_type = fd_type::RAW_TRACEPOINT;
                    (link.prog(), Place { fd_type, name, offset: 0, address: 0, counter: 0, missed: 0 })
                }
                _ => return Err(Errno::ENOTSUPP),
            },
            Ok(Object::Perf(event)) => {
                let place = place(&event)?;
                (event.program().ok_or(Errno::ENOENT)?.prog, place)
            }
            _ => return Err(Errno::ENOTSUPP),
        };
        let name = place.name.as_deref().unwrap_or("");
        let (room, at) = (attr.u32(f::BUF_LEN), attr.u64(f::BUF));
        attr.answer(f::BUF_LEN, &(name.len() as u32).to_ne_bytes())?;
        let written = match (room, at) {
            (0, _) | (_, 0) => Ok(()),
            (room, at) => text(client, at, room, name),
        };
        if matches!(written, Err(Errno::EFAULT)) {
            return Err(Errno::EFAULT);
        }
        attr.answer(f::PROG_ID, &prog.id.number().to_ne_bytes())?;
        attr.answer(f::FD_TYPE, &place.fd_type.to_ne_bytes())?;
        attr.answer(f::PROBE_OFFSET, &place.offset.to_ne_bytes())?;
        attr.answer(f::PROBE_ADDR, &(place.address | place.counter).to_ne_bytes())?;
        written.map(|()| 0)
    }
}
