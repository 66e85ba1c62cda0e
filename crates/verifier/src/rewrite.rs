//! What must change in the instructions before they run.
//!
//! Indices stay those of the program as loaded: nothing is inserted or removed.

use skep_ebpf::insn::{Insn, JA, class, mode, size};

use crate::env::Fact;

/// A jump to itself: what stands where no path leads. It is never run.
const TRAP: Insn = Insn::new(JA, 0, 0, -1, 0);

/// The instructions to run.
pub(crate) fn rewrite(insns: &[Insn], facts: &[Fact]) -> Vec<Insn> {
    let mut out = insns.to_vec();
    let mut at = 0;
    while at < out.len() {
        let wide = insns[at].is_ld_imm64();
        let fact = facts.get(at).copied().unwrap_or_default();
        if !fact.seen {
            out[at] = TRAP;
            if wide && let Some(second) = out.get_mut(at + 1) {
                *second = TRAP;
            }
        } else if let Some(off) = fact.pointer_load {
            // The field is 32 bits wide for the program, the pointer is 64.
            out[at].code = class::LDX | mode::MEM | size::DW;
            out[at].off = off;
        }
        at += if wide { 2 } else { 1 };
    }
    out
}
