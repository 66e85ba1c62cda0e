//! Why a program cannot be compiled.

use skep_ebpf::helper::Helper;

/// Why a verified program cannot be run here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CompileError {
    /// Machine code was asked for.
    #[error("program {program}: no machine code in this build; use the interpreter")]
    NoMachineCode {
        /// Program.
        program: String,
    },
    /// It handles the kernel's own objects.
    #[error("program {program}{}: only a kernel could run it: {what}", at(insn))]
    Kernel {
        /// Program.
        program: String,
        /// Index of the first instruction that shows it; `None` if the whole program does.
        insn: Option<u32>,
        /// What it needs.
        what: String,
    },
    /// A helper cannot be run.
    #[error("program {program}: helper bpf_{name}#{id}, called at instruction {insn}: {reason}")]
    Helper {
        /// Program.
        program: String,
        /// Name without `bpf_`.
        name: &'static str,
        /// Number.
        id: u32,
        /// Index of the first call.
        insn: u32,
        /// What to know about it.
        reason: &'static str,
    },
    /// A kernel function is called that is not built in.
    #[error("program {program}: instruction {insn} calls the kernel's function {name}, which is not built in yet")]
    Kfunc {
        /// Program.
        program: String,
        /// Index of the call.
        insn: u32,
        /// Its name.
        name: String,
    },
    /// An instruction cannot be run.
    #[error("program {program}: instruction {insn}: {what} (opcode {code:#04x}) cannot be run")]
    Instruction {
        /// Program.
        program: String,
        /// Index.
        insn: u32,
        /// Opcode.
        code: u8,
        /// What it is.
        what: &'static str,
    },
    /// Its calls nest too deep or use too much stack.
    #[error(
        "program {program}: its longest call chain has {frames} frames and {stack} bytes of stack; there is room for {max_frames} and {max_stack}"
    )]
    Calls {
        /// Program.
        program: String,
        /// Frames of the chain.
        frames: u32,
        /// Bytes of the chain.
        stack: u32,
        /// Frames there may be.
        max_frames: u32,
        /// Bytes there may be.
        max_stack: u32,
    },
}

impl CompileError {
    /// The same with the instruction at another place.
    pub(crate) fn at(mut self, place: impl Fn(u32) -> Option<u32>) -> CompileError {
        let (CompileError::Helper { insn, .. }
        | CompileError::Kfunc { insn, .. }
        | CompileError::Instruction { insn, .. }) = &mut self
        else {
            return self;
        };
        *insn = place(*insn).unwrap_or(*insn);
        self
    }
}

fn at(insn: &Option<u32>) -> String {
    insn.map_or(String::new(), |n| format!(", instruction {n}"))
}

/// Name and reason of a helper that cannot be run.
pub(crate) fn unsupported(id: u32) -> (&'static str, &'static str) {
    let name = Helper::by_id(id).map_or("unknown", |h| h.name);
    let reason = match id {
        35 | 158 | 175 => "a traced process has no kernel task structure that could be looked at",
        37 => "control groups of a traced thread are not known to programs here",
        36 => "it writes to memory of the traced process, which is refused",
        58 => "it changes what the traced function does, which is refused",
        109 | 117 => "it sends signals to the traced process, which is refused",
        _ => "not built in yet",
    };
    (name, reason)
}
