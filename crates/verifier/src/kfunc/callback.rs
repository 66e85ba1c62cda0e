//! Functions of the program that kernel functions call.

use crate::env::Env;
use crate::fail::{Check, unsupported};
use crate::kfunc::KfuncCall;

impl<'p> Env<'p> {
    /// Follows the function that was passed, where there is one.
    pub(super) fn kfunc_callback(&mut self, call: &KfuncCall<'p>) -> Check {
        if call.function.is_some() {
            return unsupported!(UnsupportedKfunc, "{} calls a function back, which is not judged yet", call.name());
        }
        Ok(())
    }
}
