//! From fields to meaning.

use super::{ALU, ATOMICS, Atomic, CONDS, DecodeError, Field, MAX_REG, MAY_GOTO, Op, Ref, Src, Swap, Width};
use crate::insn::{self, Insn, alu, class, mode, pseudo};

/// One instruction's fields while it is decoded.
struct Fields(Insn);

impl Fields {
    fn reserved(&self, field: Field, found: i32) -> DecodeError {
        DecodeError::Reserved { code: self.0.code, field, found }
    }

    /// The field must be zero.
    fn zero(&self, fields: &[Field]) -> Result<(), DecodeError> {
        for &field in fields {
            let found = match field {
                Field::Dst => self.0.dst().into(),
                Field::Src => self.0.src().into(),
                Field::Off => self.0.off.into(),
                _ => self.0.imm,
            };
            if found != 0 {
                return Err(self.reserved(field, found));
            }
        }
        Ok(())
    }

    fn reg(field: Field, found: u8) -> Result<u8, DecodeError> {
        if found <= MAX_REG { Ok(found) } else { Err(DecodeError::Register { field, found }) }
    }

    fn dst(&self) -> Result<u8, DecodeError> {
        Fields::reg(Field::Dst, self.0.dst())
    }

    fn src(&self) -> Result<u8, DecodeError> {
        Fields::reg(Field::Src, self.0.src())
    }

    /// The operand of ALU operations and branches; the field of the other kind must be zero.
    fn operand(&self) -> Result<Src, DecodeError> {
        if self.0.is_x() {
            self.zero(&[Field::Imm])?;
            Ok(Src::Reg(self.src()?))
        } else {
            self.zero(&[Field::Src])?;
            Ok(Src::Imm(self.0.imm))
        }
    }
}

/// Decodes the instruction `insn`; `next` is the slot behind it, which only a 64-bit immediate load looks at.
pub fn decode(insn: Insn, next: Option<Insn>) -> Result<Op, DecodeError> {
    let f = Fields(insn);
    match insn.class() {
        class::ALU | class::ALU64 => decode_alu(&f),
        class::LDX => decode_load(&f),
        class::ST | class::STX => decode_store(&f),
        class::LD => decode_ld(&f, next),
        _ => decode_jump(&f),
    }
}

fn decode_alu(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let wide = i.class() == class::ALU64;
    let unknown = DecodeError::Opcode { code: i.code };
    match i.op() {
        alu::NEG if !i.is_x() => {
            f.zero(&[Field::Src, Field::Off, Field::Imm])?;
            Ok(Op::Neg { wide, dst: f.dst()? })
        }
        alu::END => {
            let kind = match (wide, i.is_x()) {
                (false, false) => Swap::Le,
                (false, true) => Swap::Be,
                (true, false) => Swap::Always,
                (true, true) => return Err(unknown),
            };
            f.zero(&[Field::Src, Field::Off])?;
            match i.imm {
                16 | 32 | 64 => Ok(Op::Swap { kind, bits: i.imm as u8, dst: f.dst()? }),
                n => Err(f.reserved(Field::Imm, n)),
            }
        }
        alu::MOV if i.is_x() && i.off != 0 => match (i.off, wide) {
            (8 | 16, _) | (32, true) => {
                f.zero(&[Field::Imm])?;
                Ok(Op::MovSx { wide, bits: i.off as u8, dst: f.dst()?, src: f.src()? })
            }
            (1, true) => {
                let (to, from) = ((i.imm >> 16) as u16, i.imm as u16);
                Ok(Op::AddrSpaceCast { dst: f.dst()?, src: f.src()?, to, from })
            }
            (n, _) => Err(f.reserved(Field::Off, n.into())),
        },
        bits => {
            let mut rows = ALU.iter().filter(|a| a.1 == bits).peekable();
            rows.peek().ok_or(unknown)?;
            let row = rows.find(|a| a.2 == i.off).ok_or(f.reserved(Field::Off, i.off.into()))?;
            Ok(Op::Alu { wide, op: row.0, dst: f.dst()?, src: f.operand()? })
        }
    }
}

fn decode_load(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let width = Width::of(i);
    let signed = match i.mode() {
        mode::MEM => false,
        mode::MEMSX if width != Width::Dw => true,
        _ => return Err(DecodeError::Opcode { code: i.code }),
    };
    f.zero(&[Field::Imm])?;
    Ok(Op::Load { width, signed, dst: f.dst()?, base: f.src()?, off: i.off })
}

fn decode_store(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let width = Width::of(i);
    let (base, off) = (f.dst()?, i.off);
    match (i.class(), i.mode()) {
        (class::ST, mode::MEM) => {
            f.zero(&[Field::Src])?;
            Ok(Op::Store { width, base, off, src: Src::Imm(i.imm) })
        }
        (class::STX, mode::MEM) => {
            f.zero(&[Field::Imm])?;
            Ok(Op::Store { width, base, off, src: Src::Reg(f.src()?) })
        }
        (class::STX, mode::ATOMIC) => {
            let op = ATOMICS.iter().find(|a| a.1 == i.imm).map(|a| a.0);
            let narrow = matches!(width, Width::B | Width::H);
            match op {
                Some(Atomic::LoadAcquire) => {
                    Ok(Op::Atomic { op: Atomic::LoadAcquire, width, base: f.src()?, off, reg: base })
                }
                Some(op) if !narrow || op == Atomic::StoreRelease => {
                    Ok(Op::Atomic { op, width, base, off, reg: f.src()? })
                }
                _ if narrow => Err(DecodeError::Opcode { code: i.code }),
                _ => Err(f.reserved(Field::Imm, i.imm)),
            }
        }
        _ => Err(DecodeError::Opcode { code: i.code }),
    }
}

fn decode_ld(f: &Fields, next: Option<Insn>) -> Result<Op, DecodeError> {
    let i = f.0;
    let width = Width::of(i);
    match (i.mode(), width) {
        (mode::IMM, Width::Dw) => {
            f.zero(&[Field::Off])?;
            let next = next.ok_or(DecodeError::Truncated)?;
            let second = [
                (Field::NextCode, i32::from(next.code)),
                (Field::NextRegs, next.regs.into()),
                (Field::NextOff, next.off.into()),
            ];
            if let Some(&(field, found)) = second.iter().find(|s| s.1 != 0) {
                return Err(f.reserved(field, found));
            }
            decode_imm64(f, next.imm)
        }
        (mode::ABS, Width::B | Width::H | Width::W) => {
            f.zero(&[Field::Dst, Field::Src, Field::Off])?;
            Ok(Op::LoadPacket { width, index: None, imm: i.imm })
        }
        (mode::IND, Width::B | Width::H | Width::W) => {
            f.zero(&[Field::Dst, Field::Off])?;
            Ok(Op::LoadPacket { width, index: Some(f.src()?), imm: i.imm })
        }
        _ => Err(DecodeError::Opcode { code: i.code }),
    }
}

fn decode_imm64(f: &Fields, high: i32) -> Result<Op, DecodeError> {
    let (low, dst) = (f.0.imm, f.dst()?);
    let alone = |to| if high == 0 { Ok(to) } else { Err(f.reserved(Field::NextImm, high)) };
    let to = match f.0.src() {
        0 => return Ok(Op::LoadImm { dst, value: u64::from(low as u32) | u64::from(high as u32) << 32 }),
        pseudo::MAP_FD => alone(Ref::MapFd(low))?,
        pseudo::MAP_VALUE => Ref::MapFdValue(low, high),
        pseudo::BTF_ID => Ref::Btf(low, high),
        pseudo::FUNC => alone(Ref::Func(low))?,
        pseudo::MAP_IDX => alone(Ref::MapIdx(low))?,
        pseudo::MAP_IDX_VALUE => Ref::MapIdxValue(low, high),
        n => return Err(f.reserved(Field::Src, n.into())),
    };
    Ok(Op::LoadRef { dst, to })
}

fn decode_jump(f: &Fields) -> Result<Op, DecodeError> {
    let i = f.0;
    let wide = i.class() == class::JMP;
    match i.code {
        insn::JA => {
            f.zero(&[Field::Dst, Field::Src, Field::Imm])?;
            return Ok(Op::Jump { long: false, off: i.off.into() });
        }
        insn::JA32 => {
            f.zero(&[Field::Dst, Field::Src, Field::Off])?;
            return Ok(Op::Jump { long: true, off: i.imm });
        }
        insn::EXIT => {
            f.zero(&[Field::Dst, Field::Src, Field::Off, Field::Imm])?;
            return Ok(Op::Exit);
        }
        insn::CALL => {
            f.zero(&[Field::Dst])?;
            if i.src() != insn::call::KFUNC {
                f.zero(&[Field::Off])?;
            }
            return match i.src() {
                insn::call::HELPER => Ok(Op::CallHelper { id: i.imm }),
                insn::call::SUBPROG => Ok(Op::CallFunc { off: i.imm }),
                insn::call::KFUNC => Ok(Op::CallKfunc { id: i.imm, btf: i.off }),
                n => Err(f.reserved(Field::Src, n.into())),
            };
        }
        MAY_GOTO => {
            f.zero(&[Field::Dst, Field::Src, Field::Imm])?;
            return Ok(Op::MayGoto { off: i.off });
        }
        _ => {}
    }
    let cond = CONDS.iter().find(|c| c.1 == i.op()).ok_or(DecodeError::Opcode { code: i.code })?.0;
    Ok(Op::Branch { wide, cond, dst: f.dst()?, src: f.operand()?, off: i.off })
}
