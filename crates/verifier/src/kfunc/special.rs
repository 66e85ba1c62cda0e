//! Kernel functions with rules of their own.

use skep_ebpf::btf::{Btf, Kind as Type};

use crate::env::Env;
use crate::fail::{Check, invalid, unsupported};

/// True for functions that move packet data.
pub(crate) fn moves_packet(name: &str) -> bool {
    name == "bpf_xdp_pull_data"
}

/// True for functions that call a function of the program back while they run.
pub(crate) fn calls_back(name: &str) -> bool {
    name == "bpf_rbtree_add_impl"
}

/// True for functions that have a function of the program called later.
pub(crate) fn calls_later(name: &str) -> bool {
    matches!(
        name,
        "bpf_wq_set_callback_impl" | "bpf_task_work_schedule_resume_impl" | "bpf_task_work_schedule_signal_impl"
    )
}

impl<'p> Env<'p> {
    /// The kernel's own type of the context.
    pub(super) fn kernel_context(&self, btf: &Btf) -> Check<u32> {
        let ty = self.prog.prog_type;
        let member = format!("BPF_PROG_TYPE_{}_kern", ty.name().to_uppercase());
        let all = btf.find("bpf_ctx_convert", |k| matches!(k, Type::Struct(_)));
        let found = all
            .and_then(|id| btf.kind(id)?.composite())
            .and_then(|c| c.members.iter().find(|m| btf.str_at(m.name_off) == Some(member.as_str())).map(|m| m.ty));
        let Some(found) = found else {
            return unsupported!(UnsupportedKfunc, "what the context of {ty} programs is in the kernel is not known");
        };
        match btf.resolve(found).map(|id| (id, btf.kind(id))) {
            Some((id, Some(Type::Struct(_)))) => Ok(id),
            _ => invalid!(ArgumentType, "the context of {ty} programs is no struct of the kernel"),
        }
    }
}
