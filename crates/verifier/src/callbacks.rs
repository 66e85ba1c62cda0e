//! Functions that a helper calls back.

use crate::env::{Env, Next};
use crate::fail::{Check, unsupported};
use crate::reg::Reg;

impl Env<'_> {
    /// Returns from a callback to the helper.
    pub fn leave_callback(&mut self, _r0: &Reg) -> Check<Next> {
        unsupported!(UnsupportedFeature, "callbacks are not judged yet")
    }
}
