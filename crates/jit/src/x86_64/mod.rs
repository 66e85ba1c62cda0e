//! Machine code for x86-64: one piece for all functions of a program, position independent.
//!
//! Instructions are translated one by one, in the kernel's assignment of registers ([`regs`]), with no checks at run
//! time: the verifier has made them unnecessary. What is better than one by one comes from three things that are known
//! by then: which halves of registers are live and which are zero ([`flow`]), values that are computed only where they
//! are needed ([`lazy`]), and jumps whose length is chosen at the end ([`layout`]).
//!
//! What the code expects around it is stated in [`skep_runtime::abi`].

mod alu;
pub(crate) mod around;
mod arrays;
mod asm;
mod callbacks;
mod control;
mod div;
mod effects;
mod emit;
mod flow;
mod ir;
mod known;
mod layout;
mod lazy;
mod mem;
mod regs;
#[cfg(test)]
mod tests;

pub(crate) use layout::Places;

use crate::tuning::Tuning;
use crate::{Options, Source};

/// Machine code.
pub(crate) struct Native {
    pub(crate) code: Vec<u8>,
    /// Where the code of each instruction begins.
    pub(crate) places: Places,
    /// Where other code calls each function.
    pub(crate) entries: Vec<u32>,
    /// Where the code of each function begins; those without code are left out.
    pub(crate) functions: Vec<u32>,
    /// It may end a run in the middle.
    pub(crate) unwinds: bool,
    /// It calls nothing.
    pub(crate) alone: bool,
    /// It leaves r9, r10 and r11 alone.
    pub(crate) few: bool,
}

/// Translates a program that was [lowered](crate::lower).
pub(crate) fn translate(source: &Source<'_>, options: &Options, tuning: &Tuning) -> Native {
    let mut ops = ir::Ops::new(source.insns);
    if let Some(known) = source.known.filter(|_| tuning.optimise) {
        known::constants(&mut ops, known);
    }
    let starts: Vec<(usize, u32)> = source.subprogs.iter().map(|s| (s.start as usize, s.frame())).collect();
    let flow = flow::analyse(&mut ops, source, &starts, options.cells.is_some(), tuning.optimise);
    let (placed, unwinds) = emit::Emitter::new(&ops, &flow, source, options, tuning).program();
    let entry = |n| placed.offset(emit::Emitter::entry(ops.len(), n));
    let functions = (0..flow.functions.len()).filter_map(entry).collect();
    let entries = (0..flow.functions.len()).map(|n| entry(n).unwrap_or(0)).collect();
    let alone = !unwinds && !tuning.extends && !placed.leaves;
    let few = alone && [regs::R9, regs::R10, regs::R11].iter().all(|r| placed.named & 1 << r.0 == 0);
    Native { code: placed.code, places: placed.places, entries, functions, unwinds, alone, few }
}
