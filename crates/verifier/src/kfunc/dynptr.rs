//! Dynptrs as arguments of kernel functions.

use crate::env::Env;
use crate::fail::{Check, unsupported};
use crate::kfunc::KfuncCall;
use crate::reg::Reg;

impl<'p> Env<'p> {
    /// A dynptr that is initialised, or (parameters marked `__uninit`) will be.
    pub(super) fn kfunc_dynptr(&mut self, call: &mut KfuncCall<'p>, n: usize, r: u8) -> Check {
        let _ = (n, r);
        unsupported!(UnsupportedKfunc, "{} takes a dynptr, which is not judged yet", call.name())
    }

    /// The memory of a dynptr, as `bpf_dynptr_slice` returns it.
    pub(super) fn kfunc_slice(&mut self, call: &KfuncCall<'p>) -> Check<Reg> {
        unsupported!(UnsupportedKfunc, "what {} returns is not judged yet", call.name())
    }
}
