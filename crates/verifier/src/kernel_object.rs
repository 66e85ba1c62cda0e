//! Accesses through pointers to objects of BTF types.

use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, unsupported};
use crate::reg::Reg;

impl Env<'_> {
    /// Checks an access to an object of a BTF type, `off` bytes from its start; gives what a load yields.
    pub fn check_kernel_object(&mut self, a: Access, ptr: &Reg, off: i64) -> Check<Reg> {
        let _ = off;
        unsupported!(UnsupportedFeature, "r{} is {}, accesses to it are not judged yet", a.reg, ptr.describe())
    }
}
