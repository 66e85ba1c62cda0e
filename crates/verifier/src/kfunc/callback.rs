//! Functions of the program that kernel functions call.

use crate::env::Env;
use crate::fail::{Check, unsupported};
use crate::kfunc::KfuncCall;
use crate::state::CalledBy;

impl<'p> Env<'p> {
    /// Follows the function that was passed, where there is one.
    pub(super) fn kfunc_callback(&mut self, call: &KfuncCall<'p>) -> Check {
        if call.function.is_none() {
            return Ok(());
        }
        let by = CalledBy::Kfunc(self.insns.get(self.insn).map_or(0, |i| i.imm as u32));
        match call.name() {
            "bpf_wq_set_callback_impl" => {
                let wq = *self.state.reg(1);
                let args = self.async_arguments(Some(wq.what), wq.size)?;
                self.push_async_callback(by, call.function, args, true, (0, 0))
            }
            "bpf_task_work_schedule_signal_impl" | "bpf_task_work_schedule_resume_impl" => {
                let map = *self.state.reg(3);
                let args = self.async_arguments(call.map, map.size)?;
                self.push_async_callback(by, call.function, args, true, (i32::MIN, i32::MAX))
            }
            name => unsupported!(UnsupportedKfunc, "{name} calls a function back, which is not judged yet"),
        }
    }
}
