//! Putting a session's links into a process.

use std::sync::Arc;

use crate::attach::{AttachError, AttachRequest, ProbeKind, ProbeSpec, ProbeTarget, Registers, SyscallProbe};
use crate::place::{Place, What, When};
use crate::session::{Link, Session};

/// The probe that fires a link at a place.
pub fn probe(link: Link, place: &Place) -> ProbeSpec {
    let target = match (&place.what, &place.module) {
        (What::Syscalls(calls), _) => {
            ProbeTarget::Syscall(SyscallProbe { number: calls.call.map(|call| call.number), exit: calls.exit })
        }
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
    ProbeSpec { link: link.index(), kind, target, registers: Registers::ALL }
}

/// The request that maps a session's memory into a process and places probes there. `proc_index` is the process's number
/// in the session, for [`Session::sweep`].
pub fn request(
    session: &Session,
    pid: u32,
    proc_index: u32,
    mut probes: Vec<ProbeSpec>,
) -> Result<AttachRequest<'_>, AttachError> {
    let memory = session.memory().map_err(|e| AttachError::os("the session's memory", &e))?;
    for probe in &mut probes {
        let link = session.links().iter().find(|link| link.index() == probe.link);
        if let Some(program) = link.and_then(|link| session.program_at(link.program())) {
            // What programs read of a function's arguments says nothing of registers.
            let typed = link.is_some_and(|link| session.is_typed(link.program()));
            probe.registers = match probe.target {
                ProbeTarget::Syscall(_) => link.map_or(Registers::ALL, |link| session.helpers_read(link.program())),
                _ if typed => Registers::ALL,
                _ => Registers::read_by(program.context(), program.changes_few()),
            };
        }
    }
    let mut request = memory.request(pid, proc_index, probes);
    request.marker = session.subsystem().symbols().expect_process(pid).map(Arc::new);
    Ok(request)
}
