//! The instruction encoding of RFC 9669, with the additions that Linux calls `v4`.
//!
//! An instruction is eight bytes, little-endian: opcode, registers (destination in the low nibble), a signed 16-bit
//! offset, a signed 32-bit immediate. `LD_IMM64` takes two; the second carries the upper half in `imm`.

/// One 64-bit instruction slot as it stands in a program (host representation of the little-endian encoding).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Insn {
    /// Opcode: class in the low three bits.
    pub code: u8,
    /// Registers: destination in the low nibble, source in the high one.
    pub regs: u8,
    /// Signed offset of memory accesses and jumps; variant selector of some ALU operations.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

impl Insn {
    /// Builds an instruction from its fields; register numbers are cut to four bits.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn { code, regs: (dst & 15) | (src << 4), off, imm }
    }

    /// Destination register, 0–15 (valid programs use 0–10).
    pub const fn dst(self) -> u8 {
        self.regs & 15
    }

    /// Source register or pseudo-source, 0–15.
    pub const fn src(self) -> u8 {
        self.regs >> 4
    }

    /// The instruction class, one of the constants `LD` … `ALU64` of [`class`].
    pub const fn class(self) -> u8 {
        self.code & 7
    }

    /// The operation bits of ALU and jump classes (`code & 0xf0`).
    pub const fn op(self) -> u8 {
        self.code & 0xf0
    }

    /// The operand-source bit of ALU and jump classes: true for a register, false for the immediate.
    pub const fn is_x(self) -> bool {
        self.code & 8 != 0
    }

    /// The size bits of memory classes (`code & 0x18`), one of the constants of [`size`].
    pub const fn size(self) -> u8 {
        self.code & 0x18
    }

    /// The mode bits of memory classes (`code & 0xe0`), one of the constants of [`mode`].
    pub const fn mode(self) -> u8 {
        self.code & 0xe0
    }

    /// Width in bytes of a memory access.
    pub const fn bytes(self) -> u32 {
        match self.size() {
            size::W => 4,
            size::H => 2,
            size::B => 1,
            _ => 8,
        }
    }

    /// True for the first slot of the two-slot 64-bit immediate load.
    pub const fn is_ld_imm64(self) -> bool {
        self.code == LD_IMM64
    }

    /// True for a call of a helper by its number.
    pub const fn is_helper_call(self) -> bool {
        self.code == CALL && self.src() == call::HELPER
    }

    /// True for a call of a function of the same program.
    pub const fn is_subprog_call(self) -> bool {
        self.code == CALL && self.src() == call::SUBPROG
    }

    /// True for a call of a kernel function.
    pub const fn is_kfunc_call(self) -> bool {
        self.code == CALL && self.src() == call::KFUNC
    }

    /// True for `exit`.
    pub const fn is_exit(self) -> bool {
        self.code == EXIT
    }

    /// Decodes one slot.
    pub const fn from_bytes(b: [u8; 8]) -> Insn {
        Insn {
            code: b[0],
            regs: b[1],
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// Encodes one slot.
    pub const fn to_bytes(self) -> [u8; 8] {
        let o = self.off.to_le_bytes();
        let i = self.imm.to_le_bytes();
        [self.code, self.regs, o[0], o[1], i[0], i[1], i[2], i[3]]
    }
}

impl core::fmt::Debug for Insn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "({:02x}) dst={} src={} off={} imm={}", self.code, self.dst(), self.src(), self.off, self.imm)
    }
}

/// Instruction classes (`code & 7`).
pub mod class {
    #![allow(missing_docs)] // the names are the RFC's
    pub const LD: u8 = 0;
    pub const LDX: u8 = 1;
    pub const ST: u8 = 2;
    pub const STX: u8 = 3;
    pub const ALU: u8 = 4;
    pub const JMP: u8 = 5;
    pub const JMP32: u8 = 6;
    pub const ALU64: u8 = 7;
}

/// Access sizes (`code & 0x18`).
pub mod size {
    #![allow(missing_docs)] // the names are the RFC's
    pub const W: u8 = 0x00;
    pub const H: u8 = 0x08;
    pub const B: u8 = 0x10;
    pub const DW: u8 = 0x18;
}

/// Memory modes (`code & 0xe0`).
pub mod mode {
    #![allow(missing_docs)] // the names are the RFC's
    pub const IMM: u8 = 0x00;
    pub const ABS: u8 = 0x20;
    pub const IND: u8 = 0x40;
    pub const MEM: u8 = 0x60;
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;
}

/// ALU operations (`code & 0xf0`).
pub mod alu {
    #![allow(missing_docs)] // the names are the RFC's
    pub const ADD: u8 = 0x00;
    pub const SUB: u8 = 0x10;
    pub const MUL: u8 = 0x20;
    pub const DIV: u8 = 0x30;
    pub const OR: u8 = 0x40;
    pub const AND: u8 = 0x50;
    pub const LSH: u8 = 0x60;
    pub const RSH: u8 = 0x70;
    pub const NEG: u8 = 0x80;
    pub const MOD: u8 = 0x90;
    pub const XOR: u8 = 0xa0;
    pub const MOV: u8 = 0xb0;
    pub const ARSH: u8 = 0xc0;
    pub const END: u8 = 0xd0;
}

/// Jump operations (`code & 0xf0`).
pub mod jmp {
    #![allow(missing_docs)] // the names are the RFC's
    pub const JA: u8 = 0x00;
    pub const JEQ: u8 = 0x10;
    pub const JGT: u8 = 0x20;
    pub const JGE: u8 = 0x30;
    pub const JSET: u8 = 0x40;
    pub const JNE: u8 = 0x50;
    pub const JSGT: u8 = 0x60;
    pub const JSGE: u8 = 0x70;
    pub const CALL: u8 = 0x80;
    pub const EXIT: u8 = 0x90;
    pub const JLT: u8 = 0xa0;
    pub const JLE: u8 = 0xb0;
    pub const JSLT: u8 = 0xc0;
    pub const JSLE: u8 = 0xd0;
    /// Conditional pseudo jump (`may_goto`), class JMP.
    pub const JCOND: u8 = 0xe0;
}

/// Operations of atomic instructions, in `imm`.
pub mod atomic {
    #![allow(missing_docs)] // the names are the RFC's
    pub const ADD: i32 = 0x00;
    pub const OR: i32 = 0x40;
    pub const AND: i32 = 0x50;
    pub const XOR: i32 = 0xa0;
    pub const FETCH: i32 = 0x01;
    pub const XCHG: i32 = 0xe1;
    pub const CMPXCHG: i32 = 0xf1;
    pub const LOAD_ACQ: i32 = 0x100;
    pub const STORE_REL: i32 = 0x110;
}

/// Source-register values of `LD_IMM64` that make it load something else than a number.
///
/// In a linked [`Program`](crate::program::Program) maps are named by their index in the program's map list.
pub mod pseudo {
    /// `imm` is a map file descriptor.
    pub const MAP_FD: u8 = 1;
    /// `imm` is a map file descriptor, `next.imm` an offset into its first value.
    pub const MAP_VALUE: u8 = 2;
    /// `imm` is the BTF id of a kernel variable.
    pub const BTF_ID: u8 = 3;
    /// `imm` is the distance to a function of the same program.
    pub const FUNC: u8 = 4;
    /// `imm` is an index into the program's maps.
    pub const MAP_IDX: u8 = 5;
    /// `imm` is an index into the program's maps, `next.imm` an offset into its first value.
    pub const MAP_IDX_VALUE: u8 = 6;
}

/// Source-register values of `CALL`.
pub mod call {
    #![allow(missing_docs)] // the names are the RFC's
    pub const HELPER: u8 = 0;
    pub const SUBPROG: u8 = 1;
    pub const KFUNC: u8 = 2;
}

/// Opcode of the first slot of a 64-bit immediate load.
pub const LD_IMM64: u8 = class::LD | mode::IMM | size::DW;
/// Opcode of every call.
pub const CALL: u8 = class::JMP | jmp::CALL;
/// Opcode of `exit`.
pub const EXIT: u8 = class::JMP | jmp::EXIT;
/// Opcode of the unconditional jump with a 16-bit offset.
pub const JA: u8 = class::JMP | jmp::JA;
/// Opcode of `gotol`: the unconditional jump with its offset in `imm`.
pub const JA32: u8 = class::JMP32 | jmp::JA;

/// Bytes of BPF stack that one frame may use.
pub const STACK_SIZE: usize = 512;
/// Frames that may be active at once.
pub const MAX_CALL_FRAMES: usize = 8;
/// Tail calls in a row before the next one fails.
pub const MAX_TAIL_CALLS: u32 = 33;
/// Most instructions a privileged program may have.
pub const MAX_INSNS: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let i = Insn::new(LD_IMM64, 3, pseudo::MAP_IDX, -2, -559_038_737);
        assert_eq!(Insn::from_bytes(i.to_bytes()), i);
        assert_eq!((i.dst(), i.src(), i.class()), (3, 5, class::LD));
        assert_eq!(i.to_bytes(), [0x18, 0x53, 0xfe, 0xff, 0xef, 0xbe, 0xad, 0xde]);
    }
}
