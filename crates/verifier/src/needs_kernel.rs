//! Programs that only a running kernel could run: those that handle its objects.

use skep_ebpf::insn::{Insn, class, jmp};
use skep_ebpf::uapi::{AttachType, ProgType};

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

/// Iterators over what a subsystem has itself.
const ITERATORS: &[&str] = &["bpf_link", "bpf_map", "bpf_map_elem", "bpf_prog"];
/// Hooks of security modules that `bpf(2)` calls.
const HOOKS: &[&str] = &[
    "bpf",
    "bpf_map",
    "bpf_map_create",
    "bpf_map_free",
    "bpf_prog",
    "bpf_prog_free",
    "bpf_prog_load",
    "bpf_token_capable",
    "bpf_token_cmd",
    "bpf_token_create",
    "bpf_token_free",
];

impl Env<'_> {
    /// True if the program is called for objects that are there without a kernel: those of a subsystem (programs, maps,
    /// links, tokens; what can be reached from them is theirs, or null), or those of a process.
    pub fn has_own_objects(&self) -> bool {
        let attach = self.prog.attach_type;
        self.hook.target.is_none()
            && match self.prog.prog_type {
                ProgType::Tracing if self.options.process => true,
                ProgType::Tracing if attach == Some(AttachType::TraceIter) => ITERATORS.contains(&self.hook.name),
                ProgType::Lsm if attach == Some(AttachType::LsmMac) => HOOKS.contains(&self.hook.name),
                _ => false,
            }
    }

    /// Notes that the program needs a kernel, unless a reason is known already.
    pub fn note_need(&mut self, insn: Option<usize>, what: impl FnOnce() -> String) {
        if self.needs_kernel.is_none() {
            self.needs_kernel = Some(NeedsKernel { insn: insn.map(|n| n as u32), what: what() });
        }
    }

    /// Notes it if the instruction gave a pointer to one of the kernel's objects.
    pub fn note_kernel_object(&mut self, at: usize, insn: Insn) {
        // An application has objects of its own.
        if self.needs_kernel.is_some() || self.has_own_objects() || self.options.host.is_some() {
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
