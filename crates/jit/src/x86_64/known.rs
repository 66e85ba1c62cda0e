//! What the verifier found out ([`Rewritten`]) and how it is used.
//!
//! All of it is about values: that the upper half of a value is zero says nothing of the machine register, in which a half
//! that nobody reads may be anything. So it serves to work on low halves alone.

use skep_ebpf::insn::{alu, class, mode};
use skep_verifier::Rewritten;
use skep_verifier::rewrite::{MapArg, Range};

use super::asm::Size;
use super::emit::Emitter;
use super::ir::{Bin, Ops, Src, is_conditional};

/// Registers that always hold the same number become that number.
pub(crate) fn constants(ops: &mut Ops, known: &Rewritten) {
    for &i in known.constants() {
        let Some(k) = known.facts(i as usize).src.constant() else { continue };
        let Some(insn) = ops.insn_mut(i as usize) else { continue };
        let (class, op) = (insn.class(), insn.op());
        let arithmetic = matches!(class, class::ALU | class::ALU64);
        // Conversions of byte order have another meaning with that bit.
        let shift = arithmetic && matches!(op, alu::LSH | alu::RSH | alu::ARSH);
        let fits = i32::try_from(k as i64).is_ok();
        if class == class::STX && insn.mode() == mode::MEM && fits {
            insn.code = class::ST | insn.code & !7;
        } else if insn.is_x() && shift {
            // Constant counts are never as large as the width.
            insn.code &= !8;
            insn.imm = k as i32 & if class == class::ALU64 { 63 } else { 31 };
            continue;
        } else if insn.is_x() && arithmetic && op < alu::END && op != alu::NEG && !(op == alu::MOV && insn.off != 0)
            || insn.is_x() && is_conditional(insn.code)
        {
            let wide = matches!(class, class::ALU64 | class::JMP);
            if wide && !fits {
                continue;
            }
            insn.code &= !8;
        } else {
            continue;
        }
        insn.imm = k as i32;
    }
}

/// The largest number of so many bits that has no sign.
const fn positive(wide: bool) -> u64 {
    if wide { i64::MAX as u64 } else { i32::MAX as u64 }
}

/// What is known of the operands of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    dst: Range,
    src: Range,
}

impl Operands {
    /// Both have no sign.
    pub(crate) fn positive(self, wide: bool) -> bool {
        self.dst.max.max(self.src.max) <= positive(wide)
    }

    /// Both have nothing in their upper halves.
    pub(crate) fn small(self) -> bool {
        self.dst.fits_32() && self.src.fits_32()
    }

    /// The first has nothing in its upper half.
    pub(crate) fn dst_small(self) -> bool {
        self.dst.fits_32()
    }

    /// The second is never 0 (its low half, if that is all that counts).
    pub(crate) fn never_by_zero(self, wide: bool) -> bool {
        self.src.min > 0 && (wide || self.src.fits_32())
    }

    /// The second is never -1.
    pub(crate) fn never_by_minus_one(self, wide: bool) -> bool {
        self.src.max <= positive(wide)
    }
}

impl Emitter<'_> {
    /// What is known of the operands of the instruction at `i`, of which the second is this one.
    pub(crate) fn operands(&self, i: usize, src: Src, wide: bool) -> Operands {
        let facts = self.known.map(|k| k.facts(i));
        let (dst, reg) = facts.map_or((Range::ANY, Range::ANY), |f| (f.dst, f.src));
        let src = match src {
            Src::Reg(_) => reg,
            Src::Imm(k) if wide => Range::just(k as i64 as u64),
            Src::Imm(k) => Range::just(u64::from(k as u32)),
        };
        Operands { dst, src }
    }

    /// The map and the key of the call at `i`, where they are always the same.
    pub(crate) fn call_site(&self, i: usize) -> (Option<u32>, Option<u64>) {
        let Some(site) = self.known.map(|k| k.call(i)) else { return (None, None) };
        let map = if let MapArg::One(map) = site.map { Some(map) } else { None };
        (map, site.key)
    }

    /// A sign extension of a number that has no sign.
    pub(crate) fn extends_nothing(&self, i: usize, size: Size, src: u8) -> bool {
        let max = match size {
            Size::B => i8::MAX as u64,
            Size::H => i16::MAX as u64,
            _ => i32::MAX as u64,
        };
        self.operands(i, Src::Reg(src), true).src.max <= max
    }

    /// A shift to the right of `dst` that need not look at its upper half, nor at its sign.
    pub(crate) fn shifts_low(&self, i: usize, op: Bin) -> bool {
        matches!(op, Bin::Shr | Bin::Sar) && self.operands(i, Src::Imm(0), true).dst_small()
    }
}
