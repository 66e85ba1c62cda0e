//! Which registers are read later, backwards through each function.
//!
//! Liveness is asked of whole registers and of their upper halves: a 32-bit result needs no extension where nobody reads
//! the upper half, or where the next that writes the register clears it.

use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{CALL, Insn, alu, atomic, call, class, jmp, mode, size};

use super::Rewritten;
use super::facts::RegSet;
use crate::cfg::{is_jump, successors};
use crate::kfunc::Kfuncs;

/// What an instruction does to registers.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Uses {
    pub reads: RegSet,
    /// Of those, the upper half too.
    pub wide: RegSet,
    pub writes: RegSet,
}

impl Uses {
    fn new(reads: RegSet, wide: RegSet, writes: RegSet) -> Uses {
        Uses { reads, wide: wide & reads, writes }
    }
}

/// Registers live at one point: all of them, and their upper halves.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Live {
    any: RegSet,
    wide: RegSet,
}

/// What the function that is called reads: all argument registers where that is not known.
fn call_args(i: Insn, kfuncs: Kfuncs<'_>) -> RegSet {
    match i.src() {
        call::HELPER => RegSet::args(Helper::by_id(i.imm as u32).map_or(5, |h| h.args.len())),
        call::KFUNC => RegSet::args(kfuncs.args(i).unwrap_or(5)),
        _ => RegSet::args(5),
    }
}

/// What an instruction reads and writes. `wide_after` says whose upper halves are needed behind it.
pub(super) fn uses(i: Insn, kfuncs: Kfuncs<'_>, wide_after: RegSet) -> Uses {
    let (dst, src) = (RegSet::of(i.dst()), RegSet::of(i.src()));
    let source = if i.is_x() { src } else { RegSet::NONE };
    // An upper half of the result that nobody reads needs no upper half of the operands.
    let carries = |r: RegSet| if wide_after & dst == dst { r } else { RegSet::NONE };
    match i.class() {
        class::ALU64 => match (i.op(), i.off) {
            (alu::MOV, 0) => Uses::new(source, carries(source), dst),
            (alu::MOV, 8 | 16 | 32) => Uses::new(source, RegSet::NONE, dst),
            (alu::MOV, _) => Uses::new(source, source, dst),
            (alu::ADD | alu::SUB | alu::MUL | alu::AND | alu::OR | alu::XOR, _) => {
                Uses::new(dst | source, carries(dst | source), dst)
            }
            // The amount of a shift is its low bits; what is shifted to the left stays below.
            (alu::LSH, _) => Uses::new(dst | source, carries(dst), dst),
            (alu::RSH | alu::ARSH, _) => Uses::new(dst | source, dst, dst),
            (alu::NEG, _) => Uses::new(dst, carries(dst), dst),
            (alu::END, _) => Uses::new(dst, if i.imm == 64 { dst } else { RegSet::NONE }, dst),
            _ => Uses::new(dst | source, dst | source, dst),
        },
        class::ALU => match i.op() {
            alu::MOV => Uses::new(source, RegSet::NONE, dst),
            alu::NEG => Uses::new(dst, RegSet::NONE, dst),
            alu::END => Uses::new(dst, if i.imm == 64 { dst } else { RegSet::NONE }, dst),
            _ => Uses::new(dst | source, RegSet::NONE, dst),
        },
        class::LDX => Uses::new(src, src, dst),
        class::ST => Uses::new(dst, dst, RegSet::NONE),
        class::STX if i.mode() == mode::ATOMIC => atomic_uses(i),
        class::STX => {
            let stored = if i.size() == size::DW { src } else { RegSet::NONE };
            Uses::new(dst | src, dst | stored, RegSet::NONE)
        }
        class::LD if i.mode() == mode::IMM => Uses::new(RegSet::NONE, RegSet::NONE, dst),
        class::LD => {
            let index = if i.mode() == mode::IND { src } else { RegSet::NONE };
            let reads = RegSet::of(6) | index;
            Uses::new(reads, reads, RegSet::CALLER_SAVED)
        }
        _ if i.is_exit() => Uses::new(RegSet::of(0), RegSet::of(0), RegSet::NONE),
        _ if i.code == CALL => {
            let args = call_args(i, kfuncs);
            Uses::new(args, args, RegSet::CALLER_SAVED)
        }
        _ if matches!(i.op(), jmp::JA | jmp::JCOND) => Uses::default(),
        class::JMP => Uses::new(dst | source, dst | source, RegSet::NONE),
        _ => Uses::new(dst | source, RegSet::NONE, RegSet::NONE),
    }
}

fn atomic_uses(i: Insn) -> Uses {
    let (dst, src, r0) = (RegSet::of(i.dst()), RegSet::of(i.src()), RegSet::of(0));
    let wide = |r| if i.size() == size::DW { r } else { RegSet::NONE };
    match i.imm {
        atomic::LOAD_ACQ => Uses::new(src, src, dst),
        atomic::CMPXCHG => Uses::new(dst | src | r0, dst | wide(src | r0), r0),
        op if op & atomic::FETCH != 0 => Uses::new(dst | src, dst | wide(src), src),
        _ => Uses::new(dst | src, dst | wide(src), RegSet::NONE),
    }
}

/// Fills in what is live behind each instruction, and the arguments of each function.
pub(super) fn liveness(program: &mut Rewritten, kfuncs: Kfuncs<'_>) {
    let Rewritten { insns, facts, functions, .. } = program;
    let mut before = vec![Live::default(); insns.len()];
    for f in functions.iter_mut() {
        let (start, end) = (f.start as usize, f.end as usize);
        // What was live where a jump back leads, when that was asked.
        let mut heads: Vec<(usize, Live)> = Vec::new();
        loop {
            heads.clear();
            for at in (start..end).rev() {
                let one = |s: usize| before.get(s).copied().unwrap_or_default();
                let after = if is_jump(insns[at]) || insns[at].is_exit() {
                    let next = successors(insns, at);
                    heads.extend(next.iter().filter(|s| *s <= at).map(|s| (s, one(s))));
                    next.iter()
                        .map(one)
                        .fold(Live::default(), |l, s| Live { any: l.any | s.any, wide: l.wide | s.wide })
                } else {
                    one(at + if insns[at].is_ld_imm64() { 2 } else { 1 })
                };
                let u = uses(insns[at], kfuncs, after.wide);
                let new =
                    Live { any: after.any.without(u.writes) | u.reads, wide: after.wide.without(u.writes) | u.wide };
                before[at] = new;
                (facts[at].live_after, facts[at].wide_after) = (after.any, after.wide);
            }
            if heads.iter().all(|(head, seen)| before[*head] == *seen) {
                break;
            }
        }
        f.args = before.get(start).map_or(RegSet::NONE, |l| l.any & RegSet::args(5));
    }
}
