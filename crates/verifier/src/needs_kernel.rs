//! Programs that only a running kernel could run: those that handle its objects.

use skep_ebpf::insn::{Insn, class, jmp};

use crate::env::Env;
use crate::reg::{Kind, Reg, flag};

/// Why only a kernel could run a program.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}")]
pub struct NeedsKernel {
    /// The first instruction that shows it; `None` if the whole program does.
    pub insn: Option<u32>,
    /// What is needed.
    pub what: String,
}

impl Env<'_> {
    /// Notes that the program needs a kernel, unless a reason is known already.
    pub fn note_need(&mut self, insn: Option<usize>, what: impl FnOnce() -> String) {
        if self.needs_kernel.is_none() {
            self.needs_kernel = Some(NeedsKernel { insn: insn.map(|n| n as u32), what: what() });
        }
    }

    /// Notes it if the instruction gave a pointer to one of the kernel's objects.
    pub fn note_kernel_object(&mut self, at: usize, insn: Insn) {
        if self.needs_kernel.is_some() {
            return;
        }
        let calls = matches!(insn.class(), class::JMP) && insn.op() == jmp::CALL;
        let result: &Reg = self.state.reg(if calls { 0 } else { insn.dst() });
        if result.kind == Kind::Btf && result.flags & flag::LOCAL_TYPE == 0 || result.is_untrusted_memory() {
            let what = self.describe(result);
            self.note_need(Some(at), || format!("it handles {what}"));
        }
    }
}
