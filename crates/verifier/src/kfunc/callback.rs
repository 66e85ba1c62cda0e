//! Functions of the program that kernel functions call.

use crate::env::Env;
use crate::fail::{Check, invalid, unsupported};
use crate::kfunc::KfuncCall;
use crate::object::Content;
use crate::reg::Reg;
use crate::state::CalledBy;

impl<'p> Env<'p> {
    /// Follows the function that was passed, where there is one.
    pub(super) fn kfunc_callback(&mut self, call: &KfuncCall<'p>) -> Check {
        let name = call.name();
        let by = CalledBy::Kfunc(self.insns.get(self.insn).map_or(0, |i| i.imm as u32));
        match name {
            "bpf_rbtree_add_impl" => {
                let Some(Content::Nodes { of, node }) = call.root.map(|f| f.content) else {
                    return invalid!(ArgumentType, "{name} has no tree");
                };
                let seen = self.seen_node(of, node);
                let args = [seen, seen, Reg::NOT_INIT, Reg::NOT_INIT, Reg::NOT_INIT];
                self.push_callback(by, call.function, args, (0, 1))
            }
            "bpf_wq_set_callback_impl" => {
                let args = self.async_arguments(call.map, call.identity.map_or(0, |i| i.uid))?;
                self.push_async_callback(by, call.function, args, true, (0, 0))
            }
            "bpf_task_work_schedule_signal_impl" | "bpf_task_work_schedule_resume_impl" => {
                let args = self.async_arguments(call.map, self.state.reg(3).size)?;
                self.push_async_callback(by, call.function, args, true, (i32::MIN, i32::MAX))
            }
            _ if call.function.is_some() => {
                unsupported!(UnsupportedKfunc, "{name} calls a function back, which is not judged yet")
            }
            _ => Ok(()),
        }
    }
}
