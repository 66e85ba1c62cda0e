//! The general registers, and which of them hold the program's.

/// A general register by its number in encodings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reg(pub(crate) u8);

pub(crate) const RAX: Reg = Reg(0);
pub(crate) const RCX: Reg = Reg(1);
pub(crate) const RDX: Reg = Reg(2);
pub(crate) const RBX: Reg = Reg(3);
pub(crate) const RSP: Reg = Reg(4);
pub(crate) const RBP: Reg = Reg(5);
pub(crate) const RSI: Reg = Reg(6);
pub(crate) const RDI: Reg = Reg(7);
pub(crate) const R8: Reg = Reg(8);
pub(crate) const R9: Reg = Reg(9);
pub(crate) const R10: Reg = Reg(10);
pub(crate) const R11: Reg = Reg(11);
pub(crate) const R12: Reg = Reg(12);
pub(crate) const R13: Reg = Reg(13);
pub(crate) const R14: Reg = Reg(14);
pub(crate) const R15: Reg = Reg(15);

/// The run's environment, for as long as the program runs.
pub(crate) const ENV: Reg = R12;
/// The frame pointer: the program's r10.
pub(crate) const FP: Reg = RBP;
/// Where the program's r0 to r10 are: arguments and results where the C calling convention has them, r6 to r9 in
/// registers that calls preserve. r9, r10 and r11 of the machine are free within the translation of one instruction.
const MAP: [Reg; 11] = [RAX, RDI, RSI, RDX, RCX, R8, RBX, R13, R14, R15, FP];

/// The register that holds a register of the program; r11 and above do not exist.
pub(crate) const fn of(bpf: u8) -> Reg {
    MAP[if bpf < 11 { bpf as usize } else { 10 }]
}

/// The program's registers that a function must leave as it found them.
pub(crate) const CALLEE_SAVED: [u8; 4] = [6, 7, 8, 9];
