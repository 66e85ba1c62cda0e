//! Objects that the program allocates, and the lists and trees that hold them.

use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::reg::{Reg, flag};
use crate::state::{Callback, CalledBy};

impl Env<'_> {
    /// Plain accesses of an allocated object leave its special fields alone.
    pub fn check_special_fields(&self, r: u8, ptr: &Reg, at: u32, size: u32) -> Check {
        let lives = ptr.ref_id != 0 || ptr.flags & (flag::NON_OWNING | flag::RCU) != 0;
        if !lives {
            return invalid!(UnreleasedReference, "r{r} is {}, which is not held any more", self.describe(ptr));
        }
        let Some(record) = self.structs.record(ptr.what) else { return Ok(()) };
        let end = at.saturating_add(size);
        match record.fields.iter().find(|f| at < f.end() && f.off < end) {
            Some(f) => denied!(
                SpecialField,
                "the {} at offset {} of {} is only for its functions",
                f.kind.name(),
                f.off,
                self.describe(ptr)
            ),
            None => Ok(()),
        }
    }

    /// True in a function that a tree calls to compare its nodes, and in those that it calls: of the kernel functions
    /// only `bpf_rbtree_add` calls back before it returns.
    pub fn in_tree_callback(&self) -> bool {
        let by_tree = |c: &Callback| matches!(c.by, CalledBy::Kfunc(_)) && !c.is_async;
        self.state.frames.iter().any(|f| by_tree(&f.callback))
    }
}
