//! What instructions do to registers, looked up by opcode where that says it all.
//!
//! Long programs are mostly made of such instructions, and looking each one's kind up costs more than all else that is
//! done with it. The table is made of [`Op::effects`], so that there is one definition.

use std::sync::LazyLock;

use skep_ebpf::Insn;
use skep_ebpf::insn::{alu, class, jmp, mode};

use super::ir::{self, Effects, Op};

/// Registers that stand for the operands in the table.
const DST: u8 = 1;
const SRC: u8 = 2;

static BY_OPCODE: LazyLock<[Option<Effects>; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| of_opcode(code as u8)));

/// The effects of an opcode, if they follow from it and from the registers alone.
fn of_opcode(code: u8) -> Option<Effects> {
    let with = |imm| ir::single(Insn::new(code, DST, SRC, 0, imm), 0).effects();
    let insn = Insn::new(code, DST, SRC, 0, 0);
    let simple = match insn.class() {
        class::ALU | class::ALU64 => insn.op() < alu::END,
        class::JMP | class::JMP32 => !matches!(insn.op(), jmp::JA | jmp::CALL | jmp::EXIT) && insn.op() <= jmp::JSLE,
        class::LDX | class::ST | class::STX => insn.mode() == mode::MEM,
        _ => false,
    };
    let effects = with(5);
    (simple && [0, -5, 40].iter().all(|imm| with(*imm) == effects)).then_some(effects)
}

/// What each instruction does; `op` says it of those that do not stand in their place as they were.
pub(crate) fn of(insns: &[Insn], ops: &[Op], changed: &[u32]) -> Vec<Effects> {
    let table = &*BY_OPCODE;
    let mut effects: Vec<Effects> = Vec::with_capacity(ops.len());
    effects.extend(insns.iter().zip(ops).map(|(insn, op)| match table[usize::from(insn.code)] {
        // Arithmetic with a distance has to do with signs.
        Some(e) if insn.off == 0 || !matches!(insn.class(), class::ALU | class::ALU64) => {
            e.on(DST, insn.dst(), SRC, insn.src())
        }
        _ => op.effects(),
    }));
    for &i in changed {
        if let (Some(e), Some(op)) = (effects.get_mut(i as usize), ops.get(i as usize)) {
            *e = op.effects();
        }
    }
    effects
}
