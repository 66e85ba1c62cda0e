//! What may be asked of an event.

use std::sync::Arc;

use skep_ebpf::Errno;

use super::attr::kind;
use super::event::PerfEvent;
use crate::front::Subsystem;
use crate::front::client::{Caps, Client};
use crate::front::object::Object;
use crate::front::tracefs::event::MAX_PROGRAMS;

/// `PERF_EVENT_IOC_*`.
mod request {
    pub const ENABLE: u32 = 0x2400;
    pub const DISABLE: u32 = 0x2401;
    pub const REFRESH: u32 = 0x2402;
    pub const RESET: u32 = 0x2403;
    pub const PERIOD: u32 = 0x4008_2404;
    pub const SET_OUTPUT: u32 = 0x2405;
    pub const SET_FILTER: u32 = 0x4008_2406;
    pub const ID: u32 = 0x8008_2407;
    pub const SET_BPF: u32 = 0x4004_2408;
    pub const PAUSE_OUTPUT: u32 = 0x4004_2409;
    pub const QUERY_BPF: u32 = 0xc008_240a;
    pub const MODIFY_ATTRIBUTES: u32 = 0x4008_240b;
}

/// `PERF_IOC_FLAG_GROUP`.
const GROUP: u64 = 1;
/// Longest filter.
const MAX_FILTER: usize = 4096;

impl Subsystem {
    /// `ioctl(2)` on a descriptor of an event.
    pub fn perf_ioctl(&self, client: &Client, fd: i32, request: u32, arg: u64) -> Result<i32, Errno> {
        let event = super::by_fd(client, fd)?;
        let group = arg & GROUP != 0;
        match request {
            request::ENABLE => event.enable(true, group),
            request::DISABLE => event.enable(false, group),
            request::RESET => event.reset(group),
            request::REFRESH => {
                if event.attr.inherit() || !event.samples() {
                    return Err(Errno::EINVAL);
                }
                event.refresh(arg);
            }
            request::PERIOD => {
                let period = word(client, arg)?;
                if !event.samples() || period == 0 || !event.attr.is_frequency() && period >> 63 != 0 {
                    return Err(Errno::EINVAL);
                }
                event.set_period(period);
            }
            request::ID => client.memory.write(arg, &event.id.to_ne_bytes())?,
            request::SET_OUTPUT => return self.set_output(client, &event, arg),
            request::SET_FILTER => return filter(client, &event, arg),
            request::SET_BPF => return self.set_bpf(client, &event, arg),
            request::PAUSE_OUTPUT => {
                let ring = event.ring().filter(|r| r.pages() > 0).ok_or(Errno::EINVAL)?;
                ring.pause(arg != 0);
            }
            request::QUERY_BPF => return query(client, &event, arg),
            request::MODIFY_ATTRIBUTES => {
                super::attr::PerfAttr::read(client, arg)?;
                // Only breakpoints can be modified.
                return Err(Errno::EOPNOTSUPP);
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn set_output(&self, client: &Client, event: &Arc<PerfEvent>, arg: u64) -> Result<i32, Errno> {
        let fd = arg as u32 as i32;
        if fd == -1 {
            if event.ring().is_some() {
                return Err(Errno::EINVAL);
            }
            event.redirect(None);
            return Ok(0);
        }
        let Ok(Object::Perf(to)) = client.files.get(fd) else { return Err(Errno::EBADF) };
        super::may_redirect(event, &to)?;
        event.redirect(Some(to));
        Ok(0)
    }

    fn set_bpf(&self, client: &Client, event: &Arc<PerfEvent>, arg: u64) -> Result<i32, Errno> {
        let Object::Prog(prog) = client.files.get(arg as u32 as i32)? else { return Err(Errno::EINVAL) };
        if let Some(hooks) = &self.config.hooks {
            hooks.attach(client, &prog)?;
        }
        event.attach(&prog, 0)?;
        Ok(0)
    }
}

fn word(client: &Client, at: u64) -> Result<u64, Errno> {
    let bytes = client.bytes(at, 8)?;
    Ok(bytes.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b)))
}

/// Filters over the fields of events are not evaluated here; an empty one filters nothing.
fn filter(client: &Client, event: &PerfEvent, at: u64) -> Result<i32, Errno> {
    let text = client.string(at, MAX_FILTER)?;
    match event.trace() {
        None => Err(Errno::EINVAL),
        Some(_) if text == b"0" => Ok(0),
        Some(_) => Err(Errno::EOPNOTSUPP),
    }
}

/// The programs on an event's trace event: `struct perf_event_query_bpf` is room, count, and numbers.
fn query(client: &Client, event: &PerfEvent, at: u64) -> Result<i32, Errno> {
    if !client.caps.has(Caps::PERFMON) {
        return Err(Errno::EPERM);
    }
    let trace = event.trace().filter(|_| event.attr.kind() == kind::TRACEPOINT).ok_or(Errno::EINVAL)?;
    let head = client.bytes(at, 8)?;
    let room = head.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)) as usize;
    if room > MAX_PROGRAMS {
        return Err(Errno::E2BIG);
    }
    let programs = trace.programs();
    client.memory.write(at + 4, &(programs.len() as u32).to_ne_bytes())?;
    let ids: Vec<u8> = programs.iter().take(room).flat_map(|p| p.prog.id.number().to_ne_bytes()).collect();
    client.memory.write(at + 8, &ids)?;
    // Without room only the count was asked for.
    if (1..programs.len()).contains(&room) { Err(Errno::ENOSPC) } else { Ok(0) }
}
