//! What programs own, as arguments of kernel functions: objects, lists and trees, locks, work.

use crate::env::Env;
use crate::fail::{Check, unsupported};
use crate::kfunc::KfuncCall;
use crate::reg::Reg;

impl<'p> Env<'p> {
    pub(super) fn kfunc_allocated(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes an allocated object, which is not judged yet", call.name())
    }

    pub(super) fn kfunc_refcounted(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes an allocated object, which is not judged yet", call.name())
    }

    /// A list head or the root of a tree.
    pub(super) fn kfunc_root(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes a list or tree, which is not judged yet", call.name())
    }

    /// A node of a list or tree.
    pub(super) fn kfunc_node(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes a node of a list or tree, which is not judged yet", call.name())
    }

    pub(super) fn kfunc_workqueue(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes a work queue, which is not judged yet", call.name())
    }

    pub(super) fn kfunc_task_work(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes work for a task, which is not judged yet", call.name())
    }

    pub(super) fn kfunc_res_spin_lock(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let _ = (r, reg);
        unsupported!(UnsupportedKfunc, "{} takes a lock, which is not judged yet", call.name())
    }

    /// Before the arguments are checked: calls that go on in two ways (a lock that may not be had).
    pub(super) fn kfunc_branches(&mut self, call: &KfuncCall<'p>) -> Check {
        let _ = call;
        Ok(())
    }

    /// What the arguments owned and the function takes over, such as a node that is put into a list.
    pub(super) fn kfunc_hand_over(&mut self, call: &KfuncCall<'p>) -> Check {
        let _ = call;
        Ok(())
    }

    /// What functions return whose result depends on the program's own types: new objects, nodes.
    pub(super) fn kfunc_owned_result(&mut self, call: &KfuncCall<'p>) -> Check<Reg> {
        unsupported!(UnsupportedKfunc, "what {} returns is not judged yet", call.name())
    }
}
