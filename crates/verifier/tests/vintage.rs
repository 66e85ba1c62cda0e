//! What Linux 4.17 does not know: refused under its profile, accepted under today's.

use skep_ebpf::Errno;
use skep_ebpf::asm::assemble;
use skep_ebpf::program::Program;
use skep_ebpf::uapi::ProgType;
use skep_verifier::{KernelProfile, Options, Reason, verify};

fn judge(text: &str, profile: KernelProfile) -> Result<(), (Errno, String)> {
    let insns = assemble(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let program = Program::new("p", ProgType::SocketFilter, "GPL", insns);
    verify(program, &Options { profile, ..Options::default() }).map(drop).map_err(|r| (r.errno, r.reason.to_owned()))
}

#[test]
fn each_has_its_version() {
    for (text, reason) in [
        ("r0 = 0\nif w0 == 1 goto pc+0\nexit", Reason::InvalidOpcode),
        ("r0 = 1\nr0 s/= 3\nexit", Reason::ReservedField),
        ("r0 = 1\nr0 = (s8)r0\nexit", Reason::ReservedField),
        ("r0 = 1\nr0 = bswap16 r0\nexit", Reason::InvalidOpcode),
        ("*(u64 *)(r10 - 8) = 1\nr0 = *(s8 *)(r10 - 8)\nexit", Reason::InvalidOpcode),
        ("r0 = 1\n*(u64 *)(r10 - 8) = 1\nlock *(u64 *)(r10 - 8) |= r0\nexit", Reason::ReservedField),
        ("call bpf_jiffies64#118\nr0 = 0\nexit", Reason::UnknownHelper),
        ("r0 = 0\nr0 += 1\nif r0 != 10 goto pc-2\nr0 = 0\nexit", Reason::BackEdge),
    ] {
        assert_eq!(judge(text, KernelProfile::LINUX_6_18), Ok(()), "{text}");
        assert_eq!(judge(text, KernelProfile::LINUX_4_17), Err((Errno::EINVAL, reason.id().to_owned())), "{text}");
    }
}

#[test]
fn what_was_there_is_there() {
    for text in [
        "r0 = 0\nexit",
        "r0 = 1\n*(u64 *)(r10 - 8) = 1\nlock *(u64 *)(r10 - 8) += r0\nr0 = 0\nexit",
        "call bpf_ktime_get_ns#5\nr0 = 0\nexit",
        "call f\nexit\nf:\nr0 = 0\nexit",
    ] {
        assert_eq!(judge(text, KernelProfile::LINUX_4_17), Ok(()), "{text}");
    }
}

#[test]
fn sizes() {
    let long = |n: usize| format!("{}r0 = 0\nexit", "r1 = 0\n".repeat(n - 2));
    assert_eq!(judge(&long(4096), KernelProfile::LINUX_4_17), Ok(()));
    assert_eq!(judge(&long(4097), KernelProfile::LINUX_4_17), Err((Errno::E2BIG, Reason::ProgramSize.id().to_owned())));
    assert_eq!(judge(&long(4097), KernelProfile::LINUX_6_18), Ok(()));
    // The index is between −64 and −1: a constant offset is needed.
    let text = "r0 = *(u32 *)(r1 + 0)\nr0 &= 56\nr1 = r10\nr1 += -64\nr1 += r0\n*(u64 *)(r1 + 0) = 1\nr0 = 0\nexit";
    assert_eq!(judge(text, KernelProfile::LINUX_6_18), Ok(()));
    assert_eq!(
        judge(text, KernelProfile::LINUX_4_17),
        Err((Errno::EACCES, Reason::StackVariableOffset.id().to_owned()))
    );
}
