//! Instructions with their meaning: [`decode`] refuses what the instruction set leaves reserved, and names the field.
//!
//! `decode` and [`Op::encode`] are inverse: every instruction that decodes is what its [`Op`] encodes to. Whether a
//! program may do what it says (write `r10`, shift by 70, divide by zero) is the verifier's business.

use crate::insn::{Insn, alu, atomic, class, jmp, size};

mod decode;
mod encode;

pub use decode::decode;

/// Number of the highest register.
pub const MAX_REG: u8 = 10;

/// The second operand: a register or a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Src {
    /// A register.
    Reg(u8),
    /// A constant, sign-extended where the operation is 64 bits wide.
    Imm(i32),
}

/// Arithmetic on a register and an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Sdiv,
    Or,
    And,
    Lsh,
    Rsh,
    Mod,
    Smod,
    Xor,
    Mov,
    Arsh,
}

/// Byte swaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Swap {
    /// To or from little-endian.
    Le,
    /// To or from big-endian.
    Be,
    /// Always.
    Always,
}

/// Conditions of branches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Cond {
    Eq,
    Gt,
    Ge,
    Set,
    Ne,
    Sgt,
    Sge,
    Lt,
    Le,
    Slt,
    Sle,
}

/// Width of a memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Width {
    B,
    H,
    W,
    Dw,
}

/// Atomic operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum Atomic {
    Add,
    Or,
    And,
    Xor,
    FetchAdd,
    FetchOr,
    FetchAnd,
    FetchXor,
    Xchg,
    Cmpxchg,
    LoadAcquire,
    StoreRelease,
}

/// What a 64-bit immediate load refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ref {
    /// A map by file descriptor.
    MapFd(i32),
    /// A byte of the first value of a map by file descriptor.
    MapFdValue(i32, i32),
    /// A map by index.
    MapIdx(i32),
    /// A byte of the first value of a map by index.
    MapIdxValue(i32, i32),
    /// A kernel variable or function by BTF id, and the fd of the module's BTF (0: the kernel's).
    Btf(i32, i32),
    /// A function of the program by its distance.
    Func(i32),
}

/// An instruction. Registers are numbers up to [`MAX_REG`]; jump distances count from the next instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // fields are named as in the instruction set
pub enum Op {
    Alu {
        wide: bool,
        op: Alu,
        dst: u8,
        src: Src,
    },
    /// Move with sign extension from `bits`.
    MovSx {
        wide: bool,
        bits: u8,
        dst: u8,
        src: u8,
    },
    Neg {
        wide: bool,
        dst: u8,
    },
    Swap {
        kind: Swap,
        bits: u8,
        dst: u8,
    },
    /// Cast of an arena pointer; `to` and `from` are address spaces.
    AddrSpaceCast {
        dst: u8,
        src: u8,
        to: u16,
        from: u16,
    },
    Load {
        width: Width,
        signed: bool,
        dst: u8,
        base: u8,
        off: i16,
    },
    Store {
        width: Width,
        base: u8,
        off: i16,
        src: Src,
    },
    /// `reg` is the value register, for a load the destination.
    Atomic {
        op: Atomic,
        width: Width,
        base: u8,
        off: i16,
        reg: u8,
    },
    /// Legacy load of packet bytes into `r0`, at `imm` plus the register, if any.
    LoadPacket {
        width: Width,
        index: Option<u8>,
        imm: i32,
    },
    LoadImm {
        dst: u8,
        value: u64,
    },
    LoadRef {
        dst: u8,
        to: Ref,
    },
    /// `goto`; `long` is the form with the distance in the immediate.
    Jump {
        long: bool,
        off: i32,
    },
    MayGoto {
        off: i16,
    },
    Branch {
        wide: bool,
        cond: Cond,
        dst: u8,
        src: Src,
        off: i16,
    },
    CallHelper {
        id: i32,
    },
    CallFunc {
        off: i32,
    },
    /// `btf` is the index of the module's BTF in the load's fd array, 0 for the kernel's.
    CallKfunc {
        id: i32,
        btf: i16,
    },
    Exit,
}

/// Why an instruction is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The opcode stands for nothing.
    Opcode {
        /// The opcode.
        code: u8,
    },
    /// A field that the opcode does not use is not zero, or one it uses holds a reserved value.
    Reserved {
        /// The opcode.
        code: u8,
        /// The field.
        field: Field,
        /// What stands there.
        found: i32,
    },
    /// There is no such register.
    Register {
        /// The field.
        field: Field,
        /// Its number.
        found: u8,
    },
    /// The second slot of a 64-bit immediate load is missing.
    Truncated,
}

/// Fields of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// Destination register.
    Dst,
    /// Source register.
    Src,
    /// Offset.
    Off,
    /// Immediate.
    Imm,
    /// Opcode of the second half.
    NextCode,
    /// Registers of the second half.
    NextRegs,
    /// Offset of the second half.
    NextOff,
    /// Immediate of the second half.
    NextImm,
}

impl core::fmt::Display for Field {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Field::Dst => "dst",
            Field::Src => "src",
            Field::Off => "off",
            Field::Imm => "imm",
            Field::NextCode => "second slot's code",
            Field::NextRegs => "second slot's registers",
            Field::NextOff => "second slot's off",
            Field::NextImm => "second slot's imm",
        })
    }
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            DecodeError::Opcode { code } => write!(f, "unknown opcode {code:#04x}"),
            DecodeError::Reserved { code, field, found } => {
                write!(f, "{field} of opcode {code:#04x} cannot be {found}")
            }
            DecodeError::Register { field, found } => write!(f, "{field} is r{found}, the last register is r{MAX_REG}"),
            DecodeError::Truncated => f.write_str("64-bit immediate load without its second slot"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Operation bits of each ALU operation that has a plain operand, and whether its `off` is 1.
const ALU: [(Alu, u8, i16); 14] = [
    (Alu::Add, alu::ADD, 0),
    (Alu::Sub, alu::SUB, 0),
    (Alu::Mul, alu::MUL, 0),
    (Alu::Div, alu::DIV, 0),
    (Alu::Sdiv, alu::DIV, 1),
    (Alu::Or, alu::OR, 0),
    (Alu::And, alu::AND, 0),
    (Alu::Lsh, alu::LSH, 0),
    (Alu::Rsh, alu::RSH, 0),
    (Alu::Mod, alu::MOD, 0),
    (Alu::Smod, alu::MOD, 1),
    (Alu::Xor, alu::XOR, 0),
    (Alu::Mov, alu::MOV, 0),
    (Alu::Arsh, alu::ARSH, 0),
];

/// Operation bits of each condition.
const CONDS: [(Cond, u8); 11] = [
    (Cond::Eq, jmp::JEQ),
    (Cond::Gt, jmp::JGT),
    (Cond::Ge, jmp::JGE),
    (Cond::Set, jmp::JSET),
    (Cond::Ne, jmp::JNE),
    (Cond::Sgt, jmp::JSGT),
    (Cond::Sge, jmp::JSGE),
    (Cond::Lt, jmp::JLT),
    (Cond::Le, jmp::JLE),
    (Cond::Slt, jmp::JSLT),
    (Cond::Sle, jmp::JSLE),
];

/// Immediate of each atomic operation.
const ATOMICS: [(Atomic, i32); 12] = [
    (Atomic::Add, atomic::ADD),
    (Atomic::Or, atomic::OR),
    (Atomic::And, atomic::AND),
    (Atomic::Xor, atomic::XOR),
    (Atomic::FetchAdd, atomic::ADD | atomic::FETCH),
    (Atomic::FetchOr, atomic::OR | atomic::FETCH),
    (Atomic::FetchAnd, atomic::AND | atomic::FETCH),
    (Atomic::FetchXor, atomic::XOR | atomic::FETCH),
    (Atomic::Xchg, atomic::XCHG),
    (Atomic::Cmpxchg, atomic::CMPXCHG),
    (Atomic::LoadAcquire, atomic::LOAD_ACQ),
    (Atomic::StoreRelease, atomic::STORE_REL),
];

impl Width {
    const ALL: [(Width, u8); 4] =
        [(Width::B, size::B), (Width::H, size::H), (Width::W, size::W), (Width::Dw, size::DW)];

    fn of(insn: Insn) -> Width {
        match insn.size() {
            size::B => Width::B,
            size::H => Width::H,
            size::W => Width::W,
            _ => Width::Dw,
        }
    }

    fn bits(self) -> u8 {
        Width::ALL.iter().find(|w| w.0 == self).map_or(size::DW, |w| w.1)
    }
}

const MAY_GOTO: u8 = class::JMP | jmp::JCOND;
/// The bit that makes the operand a register.
const X: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::insn;

    /// Every opcode, with fields that are zero, valid or odd, either decodes to what encodes to it, or is refused.
    #[test]
    fn decode_and_encode_are_inverse() {
        let imms = [0, 1, -1, 16, 32, 64, 0x41, 0xe1, 0xf1, 0x100, 0x110, 0x0001_0000, i32::MIN, i32::MAX];
        let offs = [0, 1, 8, 16, 32, -8, i16::MIN, i16::MAX];
        let (mut good, mut bad) = (0, 0);
        for code in 0..=255 {
            for regs in [0x00, 0x01, 0x10, 0x21, 0x31, 0x41, 0x51, 0x61, 0x71, 0xa9, 0xb0, 0x0b, 0xff] {
                for off in offs {
                    for imm in imms {
                        let insn = Insn { code, regs, off, imm };
                        for next in [None, Some(Insn::default()), Some(Insn::new(0, 0, 0, 0, 7)), Some(insn)] {
                            match decode(insn, next) {
                                Ok(op) => {
                                    let (first, second) = op.encode();
                                    assert_eq!(first, insn, "{op:?}");
                                    assert!(second.is_none() || second == next, "{op:?}");
                                    good += 1;
                                }
                                Err(_) => bad += 1,
                            }
                        }
                    }
                }
            }
        }
        assert!(good > 10_000 && bad > 100_000, "{good} {bad}");
    }

    #[test]
    fn faults_name_the_field() {
        let field = |insn: Insn, next: Option<Insn>| match decode(insn, next) {
            Err(DecodeError::Reserved { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(Insn::new(0x0f, 1, 2, 0, 7), None), Field::Imm);
        assert_eq!(field(Insn::new(0x07, 1, 2, 0, 7), None), Field::Src);
        assert_eq!(field(Insn::new(0x07, 1, 0, 1, 7), None), Field::Off);
        assert_eq!(field(Insn::new(0xbf, 1, 2, 7, 0), None), Field::Off);
        assert_eq!(field(Insn::new(insn::LD_IMM64, 1, 7, 0, 0), Some(Insn::default())), Field::Src);
        assert_eq!(field(Insn::new(insn::LD_IMM64, 1, 0, 0, 0), Some(Insn::new(0x95, 0, 0, 0, 0))), Field::NextCode);
        assert_eq!(field(Insn::new(insn::EXIT, 1, 0, 0, 0), None), Field::Dst);
        assert_eq!(field(Insn::new(0xdb, 1, 2, 0, 2), None), Field::Imm);
        assert_eq!(decode(Insn::new(insn::LD_IMM64, 1, 0, 0, 0), None), Err(DecodeError::Truncated));
        assert_eq!(decode(Insn::new(0x8d, 1, 0, 0, 0), None), Err(DecodeError::Opcode { code: 0x8d }));
        let e = decode(Insn::new(0xbf, 11, 0, 0, 0), None);
        assert_eq!(e, Err(DecodeError::Register { field: Field::Dst, found: 11 }));
    }
}
