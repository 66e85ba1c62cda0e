//! Machine code for x86-64: one piece for all functions of a program, position independent.
//!
//! Instructions are translated one by one, in the kernel's assignment of registers ([`regs`]), with no checks at run
//! time: the verifier has made them unnecessary. What is better than one by one comes from three things that are known
//! by then: which halves of registers are live and which are zero ([`flow`]), values that are computed only where they
//! are needed ([`lazy`]), and jumps whose length is chosen at the end ([`layout`]).
//!
//! What the code expects around it is stated in [`skep_runtime::abi`].

mod alu;
mod asm;
mod control;
mod div;
mod emit;
mod flow;
mod ir;
mod layout;
mod lazy;
mod mem;
mod regs;
#[cfg(test)]
mod tests;

use crate::{Options, Source};

/// Instructions that not every processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Features {
    pub(crate) bmi2: bool,
    pub(crate) movbe: bool,
}

impl Features {
    /// Those of this machine.
    pub(crate) fn host() -> Features {
        Features {
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            movbe: std::arch::is_x86_feature_detected!("movbe"),
        }
    }
}

/// How code is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) features: Features,
    pub(crate) optimise: bool,
    pub(crate) budget: bool,
    /// Seed of what blinds the program's numbers.
    pub(crate) blinding: Option<u64>,
}

impl Tuning {
    fn of(options: &Options) -> Tuning {
        let seed = || {
            use std::hash::{BuildHasher, Hasher};
            std::hash::RandomState::new().build_hasher().finish()
        };
        Tuning {
            features: Features::host(),
            optimise: true,
            budget: options.budget,
            blinding: options.harden.then(seed),
        }
    }
}

/// Machine code.
pub(crate) struct Native {
    pub(crate) code: Vec<u8>,
    /// Where the code of each instruction begins; that of instructions without code is `None`.
    pub(crate) offsets: Vec<Option<u32>>,
    /// It may end a run in the middle.
    pub(crate) unwinds: bool,
}

/// Translates a program that was [lowered](crate::lower).
pub(crate) fn translate(source: &Source<'_>, options: &Options) -> Native {
    translate_with(source, options, &Tuning::of(options))
}

pub(crate) fn translate_with(source: &Source<'_>, options: &Options, tuning: &Tuning) -> Native {
    let mut ops = ir::decode(source.insns);
    let starts: Vec<(usize, u32)> = source.subprogs.iter().map(|s| (s.start as usize, s.frame())).collect();
    let flow = flow::analyse(&mut ops, &starts, tuning.optimise);
    let placed = emit::Emitter::new(&ops, &flow, source.maps, &options.maps, tuning).program();
    let offsets = (0..ops.len()).map(|i| placed.offset(layout::Label(i as u32))).collect();
    Native { code: placed.code, offsets, unwinds: tuning.budget }
}
