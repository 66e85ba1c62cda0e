//! Programs that attach to a function of another program: tracing it, or replacing it.

use std::sync::Arc;

use crate::Verified;
use crate::fail::{Check, unsupported};
use crate::hook::Hook;
use skep_ebpf::program::Program;

/// A function of a program, to be attached to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The program.
    pub program: Arc<Verified>,
    /// The function's name in C.
    pub function: String,
}

/// Finds the function, and checks that the program may be attached to it.
pub(crate) fn resolve<'p>(prog: &'p Program, target: &'p Target) -> Check<Hook<'p>> {
    unsupported!(
        UnsupportedFeature,
        "{} is attached to {}, a function of a program; that is not judged yet",
        prog.name,
        target.function
    )
    .map_err(|f: Box<crate::fail::Failure>| f.whole())
}
