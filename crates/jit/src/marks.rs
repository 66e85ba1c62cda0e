//! The instructions that are more than arithmetic and accesses to memory: found once, for all who ask about them.

use skep_ebpf::Insn;
use skep_ebpf::insn::{alu, class, mode};

const ALWAYS: u8 = 1;
/// Only with a distance: moves that extend signs, casts between address spaces, division with signs.
const WITH_OFF: u8 = 2;

/// Which opcodes are marked.
const MARKED: [u8; 256] = {
    let mut marked = [ALWAYS; 256];
    let mut code = 0;
    while code < 256 {
        let (op, mode) = (code as u8 & 0xf0, code as u8 & 0xe0);
        match code as u8 & 7 {
            class::ALU | class::ALU64 if matches!(op, alu::MOV | alu::DIV | alu::MOD) => marked[code] = WITH_OFF,
            class::ALU | class::ALU64 if op <= alu::ARSH => marked[code] = 0,
            class::LDX | class::ST | class::STX if mode == mode::MEM => marked[code] = 0,
            _ => {}
        }
        code += 1;
    }
    // The second half of a 64-bit immediate belongs to the first.
    marked[0] = 0;
    marked
};

/// The instructions that jump, call, return, load 64-bit immediates, are atomic or otherwise out of the ordinary, in order.
pub(crate) fn marks(insns: &[Insn]) -> Vec<u32> {
    let mut marks = vec![0; insns.len()];
    let mut n = 0;
    for (i, insn) in insns.iter().enumerate() {
        // Written always and kept sometimes: there is nothing to decide. `n` is no larger than `i`.
        marks[n] = i as u32;
        let marked = MARKED[usize::from(insn.code)] & (ALWAYS | u8::from(insn.off != 0) << 1);
        n += usize::from(marked != 0);
    }
    marks.truncate(n);
    marks
}

/// Those of them that lie in a range of instructions.
pub(crate) fn within(marks: &[u32], start: usize, end: usize) -> &[u32] {
    let at = |insn: usize| marks.partition_point(|m| (*m as usize) < insn);
    marks.get(at(start)..at(end)).unwrap_or_default()
}
