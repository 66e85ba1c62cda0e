//! Links to functions of programs: extensions, and programs around functions.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::uapi::{AttachType, ProgType};
use skep_verifier::check_target;

use super::LinkKind;
use crate::front::Subsystem;
use crate::front::around::{Attachment, How};
use crate::front::attr::{Attr, link_create};
use crate::front::client::Client;
use crate::front::faults::FaultPoint;
use crate::front::object::{Object, ProgObject};
use crate::front::prog::function_of;

/// The function that a link is to be made to: a program's descriptor and a type of its own, or nothing for the one that
/// the attaching program was loaded for.
#[derive(Clone, Copy, Default)]
pub(super) struct Wanted {
    fd: i32,
    type_id: u32,
    cookie: u64,
}

impl Wanted {
    /// As `BPF_LINK_CREATE` says it.
    pub fn of(attr: &Attr<'_>) -> Wanted {
        Wanted {
            fd: attr.fd(link_create::TARGET_FD),
            type_id: attr.u32(link_create::TARGET_BTF_ID),
            cookie: attr.u64(link_create::TRACING_COOKIE),
        }
    }
}

/// How programs of a kind are attached to functions.
fn how(prog: &ProgObject) -> Option<How> {
    let program = prog.verified.program();
    match (program.prog_type, program.attach_type) {
        (ProgType::Ext, _) => Some(How::Extension),
        (ProgType::Tracing, Some(AttachType::TraceFentry)) => Some(How::Before),
        (ProgType::Tracing, Some(AttachType::TraceFexit)) => Some(How::Behind),
        _ => None,
    }
}

impl Subsystem {
    /// Attaches to a function of a program.
    pub(super) fn function_link(&self, client: &Client, prog: &Arc<ProgObject>, wanted: Wanted) -> Result<i32, Errno> {
        let attachment = self.attach_to_function(client, prog, wanted)?;
        self.new_link(client, prog, LinkKind::Function(attachment))
    }

    fn attach_to_function(&self, client: &Client, prog: &Arc<ProgObject>, wanted: Wanted) -> Result<Attachment, Errno> {
        let Some(how) = how(prog) else { return Err(Errno::EINVAL) };
        if (wanted.fd != 0) != (wanted.type_id != 0) {
            return Err(Errno::EINVAL);
        }
        let named = match wanted.fd {
            0 => None,
            // Only extensions can be attached elsewhere than where they were loaded for.
            _ if how != How::Extension => return Err(Errno::EINVAL),
            fd => match client.files.get(fd)? {
                Object::Prog(target) => Some(target),
                _ => return Err(Errno::EINVAL),
            },
        };
        self.fault(FaultPoint::LinkAlloc)?;
        let mut loaded_for = prog.target();
        let loaded_id = prog.verified.program().attach_btf_id;
        let (target, type_id) = match (named, &*loaded_for) {
            (Some(target), Some(first)) if Arc::ptr_eq(&target, first) && wanted.type_id == loaded_id => {
                (target, wanted.type_id)
            }
            (Some(target), _) => {
                let function = function_of(&target, wanted.type_id)?;
                check_target(&prog.verified, &function, self.config.profile.rules()).map_err(|r| r.errno)?;
                (target, wanted.type_id)
            }
            (None, Some(first)) => (Arc::clone(first), loaded_id),
            (None, None) => return Err(Errno::EINVAL),
        };
        let attachment = self.arounds.attach(prog, &target, type_id, how, wanted.cookie)?;
        // From now on the link holds its target, and the program none.
        let first = loaded_for.take();
        drop(loaded_for);
        drop(first);
        Ok(attachment)
    }

    /// Puts another extension in place of an attached one. It must fit the function as the attached one does; with `old`,
    /// that must be what is attached (`EPERM`).
    pub(super) fn update_extension(
        &self,
        attachment: &Attachment,
        new: &Arc<ProgObject>,
        old: Option<&Arc<ProgObject>>,
    ) -> Result<i32, Errno> {
        let attached = attachment.program();
        if old.is_some_and(|old| !attached.as_ref().is_some_and(|p| Arc::ptr_eq(p, old))) {
            return Err(Errno::EPERM);
        }
        if !new.extends() {
            return Err(Errno::EINVAL);
        }
        let function = function_of(&attachment.target, attachment.type_id)?;
        check_target(&new.verified, &function, self.config.profile.rules()).map_err(|r| r.errno)?;
        attachment.replace(new).map(|()| 0)
    }
}
