//! Links: programs attached to something, for as long as the link is held.

mod create;
mod function;
mod info;
mod multi;
mod prog_attach;
mod raw;

use std::sync::{Arc, PoisonError, RwLock};

use skep_ebpf::Errno;

pub(super) use info::by_fd as info_by_fd;
pub(super) use raw::RawTracepoints;
pub use raw::{RawTracepoint, Tracepoint};

use super::Subsystem;
use super::around::Attachment;
use super::attr::{Attr, fd_by_id, link_detach, link_update};
use super::client::{Caps, Client};
use super::ids::Id;
use super::iter::IterLink;
use super::lsm::LsmLink;
use super::object::{Object, ProgObject};
use super::perf::PerfEvent;
use multi::Multi;
use raw::RawLink;

/// `BPF_F_REPLACE`.
const REPLACE: u32 = 1 << 2;

/// What a link attaches to.
#[derive(Debug)]
pub enum LinkKind {
    /// A perf event, which it holds.
    Perf(PerfLink),
    /// A raw tracepoint.
    Raw(RawLink),
    /// Many functions.
    KprobeMulti(Multi),
    /// Many places in a file.
    UprobeMulti(Multi),
    /// An iterator.
    Iter(IterLink),
    /// A hook of `bpf(2)` itself.
    Lsm(LsmLink),
    /// A function of a program.
    Function(Attachment),
}

impl LinkKind {
    /// `enum bpf_link_type`.
    pub fn number(&self) -> u32 {
        match self {
            LinkKind::Raw(_) => 1,
            LinkKind::Lsm(_) | LinkKind::Function(_) => 2,
            LinkKind::Iter(_) => 4,
            LinkKind::Perf(_) => 7,
            LinkKind::KprobeMulti(_) => 8,
            LinkKind::UprobeMulti(_) => 12,
        }
    }
}

/// A link.
#[derive(Debug)]
pub struct LinkObject {
    /// Its number.
    pub id: Id<LinkObject>,
    prog: RwLock<Arc<ProgObject>>,
    /// What it attaches to.
    pub kind: LinkKind,
}

impl LinkObject {
    /// The program.
    pub fn prog(&self) -> Arc<ProgObject> {
        if let LinkKind::Function(attachment) = &self.kind
            && let Some(prog) = attachment.program()
        {
            return prog;
        }
        Arc::clone(&self.prog.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives an iterator another program, in place of `old` if one is named.
    fn replace(&self, new: Arc<ProgObject>, old: Option<&Arc<ProgObject>>) -> Result<(), Errno> {
        let mut prog = self.prog.write().unwrap_or_else(PoisonError::into_inner);
        if old.is_some_and(|old| !Arc::ptr_eq(old, &prog)) {
            return Err(Errno::EPERM);
        }
        let on = |p: &ProgObject| {
            let program = p.verified.program();
            (program.prog_type, program.attach_type, program.attach_btf_id)
        };
        if on(&prog) != on(&new) {
            return Err(Errno::EINVAL);
        }
        let before = std::mem::replace(&mut *prog, new);
        // It may be the last that holds the program.
        drop(prog);
        drop(before);
        Ok(())
    }
}

/// A program on a perf event, until this goes.
#[derive(Debug)]
pub struct PerfLink(Arc<PerfEvent>);

impl PerfLink {
    /// Attaches a program.
    fn new(event: Arc<PerfEvent>, prog: &Arc<ProgObject>, cookie: u64) -> Result<PerfLink, Errno> {
        event.attach(prog, cookie)?;
        Ok(PerfLink(event))
    }

    /// The event.
    pub fn event(&self) -> &PerfEvent {
        &self.0
    }
}

impl Drop for PerfLink {
    fn drop(&mut self) {
        self.0.detach();
    }
}

/// The link behind a descriptor.
pub(super) fn by_fd(client: &Client, fd: i32) -> Result<Arc<LinkObject>, Errno> {
    match client.files.get(fd)? {
        Object::Link(link) => Ok(link),
        _ => Err(Errno::EINVAL),
    }
}

impl Subsystem {
    /// `BPF_LINK_UPDATE`: of the links that are here those of iterators can have another program; and those of extensions, if
    /// that is [asked for](super::Config::extension_update).
    pub(super) fn link_update(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(link_update::END)?;
        let flags = attr.u32(link_update::FLAGS);
        if flags & !REPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        let link = by_fd(client, attr.fd(link_update::LINK_FD))?;
        let program = |fd| match client.files.get(fd)? {
            Object::Prog(prog) => Ok(prog),
            _ => Err(Errno::EINVAL),
        };
        let new = program(attr.fd(link_update::NEW_PROG_FD))?;
        let old = match attr.fd(link_update::OLD_PROG_FD) {
            fd if flags & REPLACE != 0 => Some(program(fd)?),
            0 => None,
            _ => return Err(Errno::EINVAL),
        };
        match &link.kind {
            LinkKind::Iter(_) => link.replace(new, old.as_ref()).map(|()| 0),
            LinkKind::Function(attachment) if attachment.extends() && self.config.extension_update => {
                self.update_extension(attachment, &new, old.as_ref())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// `BPF_LINK_DETACH`: as in the kernel, only links to devices, groups and name spaces can be detached by force.
    pub(super) fn link_detach(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(link_detach::END)?;
        by_fd(client, attr.fd(link_detach::LINK_FD))?;
        Err(Errno::EOPNOTSUPP)
    }

    pub(super) fn link_fd_by_id(&self, client: &Client, attr: &Attr<'_>) -> Result<i32, Errno> {
        attr.ends_at(fd_by_id::END)?;
        if !client.caps.has(Caps::SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let link = self.links.get(attr.u32(fd_by_id::ID)).ok_or(Errno::ENOENT)?;
        self.install(client, Object::Link(link))
    }
}
