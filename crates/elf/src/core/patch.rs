//! Writes an answer into an instruction.

use skep_ebpf::Insn;
use skep_ebpf::insn::{self, class, size};

use super::value::Answer;
use super::{CoreError, POISON};

/// Changes the instruction at `at` (for a 64-bit immediate load both slots) to hold the answer.
pub(super) fn patch(insns: &mut [Insn], at: usize, answer: &Answer) -> Result<(), CoreError> {
    let (first, rest) = insns.get_mut(at..).and_then(<[Insn]>::split_first_mut).ok_or(CoreError::NoInsn)?;
    let second = if first.is_ld_imm64() { Some(rest.first_mut().ok_or(CoreError::NoInsn)?) } else { None };
    let check = |found: u64| {
        if answer.check && found != answer.old {
            return Err(CoreError::Mismatch { found, expected: answer.old });
        }
        Ok(())
    };
    if !answer.poison {
        match first.class() {
            class::ALU | class::ALU64 if !first.is_x() => {
                check(if answer.old > u64::from(u32::MAX) { first.imm as u64 } else { u64::from(first.imm as u32) })?;
                first.imm = answer.new as i32;
                return Ok(());
            }
            class::LDX | class::ST | class::STX => {
                check(first.off as u64)?;
                let off = i16::try_from(answer.new).map_err(|_| CoreError::Offset(answer.new))?;
                if !answer.bad_size {
                    first.off = off;
                    return resize(first, answer.sizes);
                }
            }
            class::LD => {
                let Some(second) = second.filter(|_| first.src() == 0 && first.off == 0) else {
                    return Err(CoreError::Insn { code: first.code });
                };
                check(u64::from(first.imm as u32) | u64::from(second.imm as u32) << 32)?;
                first.imm = answer.new as i32;
                second.imm = (answer.new >> 32) as i32;
                return Ok(());
            }
            _ => return Err(CoreError::Insn { code: first.code }),
        }
    }
    let poison = Insn::new(insn::CALL, 0, 0, 0, POISON);
    *first = poison;
    // A second slot alone would be an unknown instruction.
    if let Some(second) = second {
        *second = poison;
    }
    Ok(())
}

/// Gives a load or store the width of the target's member.
fn resize(insn: &mut Insn, (old, new): (u32, u32)) -> Result<(), CoreError> {
    if old == new {
        return Ok(());
    }
    if insn.bytes() != old {
        return Err(CoreError::AccessSize { found: insn.bytes(), expected: old });
    }
    let bits = match new {
        1 => size::B,
        2 => size::H,
        4 => size::W,
        8 => size::DW,
        n => return Err(CoreError::MemberSize(n)),
    };
    insn.code = insn.code & !0x18 | bits;
    Ok(())
}
