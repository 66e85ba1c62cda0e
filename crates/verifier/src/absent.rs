//! Rejections that may come from types that were not given: those of the kernel's modules.

use skep_ebpf::program::Program;

use crate::fail::Failure;
use crate::reason::Reason;
use crate::{Options, Progress};

/// A failure, not judged where it may follow from something that a module has: the program came by what is absent, or
/// attaches to it.
pub(crate) fn doubted(f: Box<Failure>, program: &Program, options: &Options, progress: &Progress) -> Box<Failure> {
    if f.unsupported {
        return f;
    }
    let attaches = f.reason == Reason::AttachTarget && program.attach_btf_id == 0 && options.target.is_none();
    let visited = |n: usize| n == progress.insn || progress.visits.get(n).is_some_and(|v| *v > 0);
    let absent = program.absent.iter().find(|a| match a.insn {
        None => attaches,
        Some(n) => !f.whole_program && visited(n as usize),
    });
    let Some(absent) = absent else { return f };
    let text = format!("{} is in none of the types (BTF) that were given; it may be a module's", absent.what);
    let doubt = Failure::unsupported(Reason::KernelTypes, text);
    match absent.insn {
        None => doubt.whole(),
        Some(n) => doubt.at(n as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, verify};
    use skep_ebpf::asm::assemble;
    use skep_ebpf::program::Absent;
    use skep_ebpf::uapi::ProgType;

    fn outcome(text: &str, insn: Option<u32>) -> (Outcome, Option<u32>) {
        let insns = assemble(text).expect("assembly");
        let mut program = Program::new("p", ProgType::SocketFilter, "GPL", insns);
        program.absent.extend(insn.map(|n| Absent { insn: Some(n), what: "extern `x`".into() }));
        let r = verify(program, &Options::default()).expect_err("a rejection");
        (r.outcome, r.insn)
    }

    #[test]
    fn only_what_is_reached_raises_doubt() {
        let call = "call 2002000000\nr0 = 0\nexit";
        assert_eq!(outcome(call, None), (Outcome::Rejected, Some(0)));
        assert_eq!(outcome(call, Some(0)), (Outcome::Unsupported, Some(0)));
        // The call is behind the fault.
        let behind = "r0 = r5\ncall 2002000000\nexit";
        assert_eq!(outcome(behind, Some(1)), (Outcome::Rejected, Some(0)));
    }
}
