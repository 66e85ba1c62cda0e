//! Putting a session's links into a process.

use crate::attach::{AttachRequest, MapMemory, Memory, ProbeKind, ProbeSpec, ProbeTarget};
use crate::place::{Place, What, When};
use crate::session::{Link, Session};

/// The probe that fires a link at a place.
pub fn probe(link: Link, place: &Place) -> ProbeSpec {
    let target = match (&place.what, &place.module) {
        (What::FileOffset(at), Some(module)) => {
            ProbeTarget::FileOffset { module: module.clone(), offset: at.saturating_add(place.offset) }
        }
        // A place without a module is never an offset in a file (`place::named`).
        (What::FileOffset(at), None) => {
            ProbeTarget::Symbol { name: format!("{at:#x}"), offset: place.offset, module: None }
        }
        (What::Symbol(name), module) => {
            ProbeTarget::Symbol { name: name.clone(), offset: place.offset, module: module.clone() }
        }
    };
    let kind = match place.when {
        When::Entry => ProbeKind::Entry,
        When::Return => ProbeKind::Return,
    };
    ProbeSpec { link: link.index(), kind, target }
}

/// The request that maps a session's memory into a process and places probes there. `proc_index` is the process's number
/// in the session, for [`Session::sweep`].
pub fn request(session: &Session, pid: u32, proc_index: u32, probes: Vec<ProbeSpec>) -> AttachRequest<'_> {
    let memory = |arena: &'_ skep_maps::control::Arena| arena.len() as u64;
    let (control, shared) = (session.control_arena(), session.shared_arena());
    let maps = session.all_maps().map(|part| MapMemory {
        fd: part.arena.fd(),
        size: memory(part.arena),
        writable: part.writable,
        header_offset: part.header_offset,
    });
    AttachRequest {
        pid,
        proc_index,
        control: Memory { fd: control.fd(), size: memory(control) },
        shared: Memory { fd: shared.fd(), size: memory(shared) },
        maps: maps.collect(),
        nslots: session.slots(),
        probes,
        agent: None,
    }
}
