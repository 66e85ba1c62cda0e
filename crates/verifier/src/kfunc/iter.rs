//! Open-coded iterators: begun, moved on and ended by kernel functions.

use skep_ebpf::btf::Kind as Type;
use skep_ebpf::kfunc::flag as kf;
use skep_ebpf::uapi::{AttachType, ProgType};

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::iterators::IterUse;
use crate::kfunc::KfuncCall;
use crate::reg::flag;

impl<'p> Env<'p> {
    /// The iterator that a call begins, moves on, ends or looks at.
    pub(super) fn kfunc_iter(&mut self, call: &mut KfuncCall<'p>, r: u8) -> Check {
        if call.name() == "bpf_iter_css_task_new" && !self.may_walk_css_tasks() {
            return invalid!(
                KfuncNotAllowed,
                "only LSM programs, iterator programs and those that sleep walk the tasks of a cgroup"
            );
        }
        let Some((type_id, size)) = iter_type(call, usize::from(r) - 1) else {
            return invalid!(UnknownKfunc, "argument {r} of {} is no iterator", call.name());
        };
        let doing = if call.has(kf::ITER_NEW) {
            IterUse::New { rcu_protected: call.has(kf::RCU_PROTECTED) }
        } else if call.has(kf::ITER_NEXT) {
            IterUse::Next
        } else if call.has(kf::ITER_DESTROY) {
            IterUse::Destroy
        } else {
            IterUse::Other
        };
        let arg = self.check_iter_arg(r, type_id, size, doing)?;
        if !call.has(kf::ITER_NEW) {
            // Memory that it gives goes with it.
            call.reference = arg.iter.ref_id;
        }
        call.iter = Some(arg);
        Ok(())
    }

    /// After a call that moves an iterator on: there may be another element, or it has come to its end.
    pub(super) fn kfunc_iter_next(&mut self, call: &KfuncCall<'p>) -> Check {
        match call.iter {
            Some(arg) => self.move_iter_on(arg),
            None => invalid!(UnknownKfunc, "{} has no iterator to move on", call.name()),
        }
    }

    /// How an object that an iterator gives can be used.
    pub(super) fn iter_element_flags(&self, call: &KfuncCall<'p>) -> u32 {
        let rcu = call.iter.is_some_and(|i| i.iter.protection & flag::RCU != 0);
        if rcu { flag::RCU } else { flag::TRUSTED }
    }

    fn may_walk_css_tasks(&self) -> bool {
        match self.prog.prog_type {
            ProgType::Lsm => true,
            ProgType::Tracing if self.prog.attach_type == Some(AttachType::TraceIter) => true,
            _ => self.may_sleep(),
        }
    }
}

/// Id and size of the struct behind an iterator parameter.
fn iter_type(call: &KfuncCall<'_>, n: usize) -> Option<(u32, u32)> {
    let (_, &Type::Ptr { ty }) = call.resolved(call.params.get(n)?.ty)? else { return None };
    let (id, kind) = call.resolved(ty)?;
    let size = kind.composite()?.size;
    (size > 0 && size.is_multiple_of(8) && call.btf.name(id).starts_with("bpf_iter_")).then_some((id, size))
}
