//! Arenas: memory that a program shares with user space, and addresses cheaply.
//!
//! A pointer into the arena is a number of 32 bits that accesses confine to the arena, so nothing can go wrong with it:
//! it may be computed in any way, and whatever it points to is there or reads as zero.

use skep_ebpf::insn::{Insn, alu, atomic, class, pseudo};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::MapType;

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::reg::{Kind, Reg};

/// `off` of a move that turns a number into an arena pointer or back.
pub(crate) const ADDR_SPACE_CAST: i16 = 1;
/// `imm` of the move that gives an arena pointer: from address space 1 to 0.
const TO_KERNEL: i32 = 1;
/// `imm` of the move back.
const TO_USER: i32 = 1 << 16;
/// Bytes of a page, which is what the size of an arena is counted in.
const PAGE: u64 = 4096;

/// Arenas that instructions of the program name, by map index.
fn arenas(prog: &Program) -> impl Iterator<Item = u32> {
    let named = prog.insns.iter().filter(|i| {
        i.is_ld_imm64()
            && matches!(i.src(), pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE)
            && usize::try_from(i.imm).ok().and_then(|n| prog.maps.get(n)).is_some_and(|m| m.map_type == MapType::Arena)
    });
    named.map(|i| i.imm as u32)
}

/// True if an offset is in the arena, its end included.
pub(crate) fn in_bounds(max_entries: u32, off: i32) -> bool {
    u64::from(off as u32) <= u64::from(max_entries) * PAGE
}

/// True if another arena than this map is named by the program before.
pub(crate) fn is_second(prog: &Program, map: u32) -> bool {
    arenas(prog).next().is_some_and(|first| first != map)
}

/// True if the machine has the atomic operation for arenas: it lacks the bitwise ones that give the old value.
pub(crate) fn supports_atomic(op: i32) -> bool {
    let bitwise = matches!(op & !atomic::FETCH, atomic::AND | atomic::OR | atomic::XOR);
    !(bitwise && op & atomic::FETCH != 0)
}

impl Env<'_> {
    /// A move that turns a number into an arena pointer or back.
    pub fn check_addr_space_cast(&mut self, i: Insn) -> Check {
        if i.imm != TO_KERNEL && i.imm != TO_USER {
            return invalid!(ReservedField, "there is no cast between address spaces {:#x}", i.imm);
        }
        if arenas(self.prog).next().is_none() {
            return invalid!(BadMapReference, "an arena pointer is made, but the program has no arena");
        }
        self.read_reg(i.src())?;
        self.may_write_reg(i.dst())?;
        let kind = if i.imm == TO_KERNEL { Kind::Arena } else { Kind::Scalar };
        *self.state.reg_mut(i.dst()) = Reg { kind, ..Reg::UNKNOWN };
        Ok(())
    }

    /// Arithmetic with an arena pointer gives one; true if that is what this was.
    pub fn arena_arithmetic(&mut self, i: Insn) -> bool {
        let arena = |r: u8| self.state.reg(r).kind == Kind::Arena;
        if arena(i.dst()) {
            return true;
        }
        if i.is_x() && arena(i.src()) {
            *self.state.reg_mut(i.dst()) = *self.state.reg(i.src());
            return true;
        }
        false
    }
}

/// True for the move that casts between address spaces.
pub(crate) fn is_cast(i: Insn) -> bool {
    i.class() == class::ALU64 && i.op() == alu::MOV && i.is_x() && i.off == ADDR_SPACE_CAST
}
