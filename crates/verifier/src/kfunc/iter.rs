//! Open-coded iterators: begun, moved on and ended by kernel functions.

use crate::env::Env;
use crate::fail::{Check, unsupported};
use crate::kfunc::KfuncCall;

impl<'p> Env<'p> {
    /// The iterator that a call begins, moves on, ends or looks at.
    pub(super) fn kfunc_iter(&mut self, call: &mut KfuncCall<'p>, r: u8) -> Check {
        let _ = r;
        unsupported!(UnsupportedKfunc, "{} takes an iterator, which is not judged yet", call.name())
    }

    /// After a call that moves an iterator on: there may be another element, or it has come to its end.
    pub(super) fn kfunc_iter_next(&mut self, call: &KfuncCall<'p>) -> Check {
        unsupported!(UnsupportedKfunc, "{} moves an iterator, which is not judged yet", call.name())
    }
}
