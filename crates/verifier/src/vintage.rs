//! What older kernels do not know yet: instructions, references and helpers by the version that they came with.

use skep_ebpf::insn::{self, Insn, alu, atomic, call, class, jmp, mode, pseudo};
use skep_ebpf::program::Program;

use crate::cfg::Cfg;
use crate::fail::{Check, Failure, invalid};
use crate::profile::KernelProfile;
use crate::reason::Reason;

/// Since when.
type Version = (u16, u16);

/// What an instruction is that was not there from the beginning of calls between functions, and since when it is.
fn newcomer(i: Insn) -> Option<(Version, Reason, &'static str)> {
    use Reason::{CallTarget, InvalidLoadImmediate, InvalidOpcode, ReservedField, UnknownKfunc};
    let wide = i.class() == class::ALU64;
    let is = |version, reason, what| Some((version, reason, what));
    match (i.class(), i.code) {
        (_, insn::JA32) => is((6, 6), InvalidOpcode, "a long jump"),
        (class::JMP32, _) => is((5, 1), InvalidOpcode, "a comparison of 32 bits"),
        (class::JMP, insn::CALL) => match i.src() {
            call::HELPER => None,
            call::SUBPROG => is((4, 16), CallTarget, "a call between functions"),
            _ => is((5, 13), UnknownKfunc, "a call of a kernel function"),
        },
        (class::JMP, _) if i.op() == jmp::JCOND => is((6, 9), InvalidOpcode, "`may_goto`"),
        (class::LD, insn::LD_IMM64) => match i.src() {
            pseudo::MAP_VALUE | pseudo::MAP_IDX_VALUE => {
                is((5, 2), InvalidLoadImmediate, "the address of a map's value")
            }
            pseudo::BTF_ID => is((5, 10), InvalidLoadImmediate, "the address of a kernel variable"),
            pseudo::FUNC => is((5, 13), InvalidLoadImmediate, "the address of a function"),
            _ => None,
        },
        (class::LDX, _) if i.mode() == mode::MEMSX => is((6, 6), InvalidOpcode, "a load with sign"),
        (class::STX, _) if i.mode() == mode::ATOMIC => match i.imm {
            atomic::ADD => None,
            atomic::LOAD_ACQ | atomic::STORE_REL => is((6, 15), ReservedField, "a load-acquire or store-release"),
            _ => is((5, 12), ReservedField, "an atomic operation other than addition"),
        },
        (class::ALU | class::ALU64, _) => match i.op() {
            alu::END if wide => is((6, 6), InvalidOpcode, "a swap of bytes"),
            alu::MOV if i.off == 1 && wide && i.is_x() => is((6, 9), ReservedField, "a cast between address spaces"),
            alu::MOV if i.off != 0 => is((6, 6), ReservedField, "a move with sign"),
            alu::DIV | alu::MOD if i.off != 0 => is((6, 6), ReservedField, "a division with sign"),
            _ => None,
        },
        _ => None,
    }
}

/// Refuses what the kernel of the profile does not know.
pub(crate) fn check(program: &Program, profile: &KernelProfile) -> Check {
    let mut second_half = false;
    for (at, &i) in program.insns.iter().enumerate() {
        if second_half {
            second_half = false;
            continue;
        }
        second_half = i.is_ld_imm64();
        let late = newcomer(i).filter(|((major, minor), ..)| !profile.since(*major, *minor));
        if let Some(((major, minor), reason, what)) = late {
            let text = format!("{what}, which came with Linux {major}.{minor}; this is {}", profile.name);
            return Err(Failure::new(skep_ebpf::Errno::EINVAL, reason, text).at(at));
        }
        if i.code == insn::CALL && i.src() == call::HELPER && i.imm as u32 > profile.last_helper {
            let text = format!("helper {}, which Linux {} does not have", i.imm, profile.name);
            return Err(Failure::new(skep_ebpf::Errno::EINVAL, Reason::UnknownHelper, text).at(at));
        }
    }
    Ok(())
}

/// Before 5.3 no program may loop.
pub(crate) fn check_loops(cfg: &Cfg, profile: &KernelProfile) -> Check {
    match cfg.loops.iter().position(|l| *l != 0) {
        Some(at) if !profile.since(5, 3) => {
            invalid!(BackEdge, "the program loops at {at}, which Linux {} does not permit", profile.name)
                .map_err(|f: Box<Failure>| f.at(at))
        }
        _ => Ok(()),
    }
}
