//! The stack: spills whole and partial, offsets that are not constant, atomic operations.

use skep_ebpf::insn::{alu, atomic, class, mode, size};

use super::{Gen, SIZES, WIDTH};

impl Gen<'_> {
    pub(super) fn stack(&mut self) {
        let n = self.rng.below(4) as usize;
        let off = -(WIDTH[n] * (1 + self.rng.below((32 / WIDTH[n]) as u64) as i16));
        let r = if self.slip(20) || n == 3 && self.rng.chance(10) { self.rng.pick(&[6, 10]) } else { self.number() };
        match self.rng.below(4) {
            0 => {
                let imm = self.small();
                self.emit(class::ST | mode::MEM | SIZES[n], 10, 0, off, imm);
            }
            1 => self.emit(class::STX | mode::MEM | SIZES[n], 10, r, off, 0),
            2 if n < 3 && self.rng.chance(40) => {
                let dst = self.number();
                self.emit(class::LDX | mode::MEMSX | SIZES[n], dst, 10, off, 0);
            }
            _ => {
                let dst = self.number();
                self.emit(class::LDX | mode::MEM | SIZES[n], dst, 10, off, 0);
            }
        }
    }

    pub(super) fn stack_variable(&mut self) {
        let r = self.number();
        self.mov(4, r);
        let mask =
            if self.careful { self.rng.pick(&[8, 16, 24]) } else { self.rng.pick(&[8, 16, 24, 24, 24, 16, 8, 7]) };
        self.emit(class::ALU64 | alu::AND, 4, 0, 0, mask);
        self.mov(5, 10);
        self.add(5, -32);
        self.emit(class::ALU64 | alu::ADD | 8, 5, 4, 0, 0);
        let size = self.rng.pick(&SIZES);
        let other = self.number();
        if self.rng.chance(50) {
            self.emit(class::LDX | mode::MEM | size, other, 5, 0, 0);
        } else {
            self.emit(class::STX | mode::MEM | size, 5, other, 0, 0);
        }
    }

    pub(super) fn atomic(&mut self) {
        let size = self.rng.pick(&[size::W, size::DW]);
        let ops = [
            atomic::ADD,
            atomic::ADD | atomic::FETCH,
            atomic::OR,
            atomic::AND | atomic::FETCH,
            atomic::XOR,
            atomic::XCHG,
            atomic::CMPXCHG,
        ];
        let op = self.rng.pick(&ops);
        let off = self.rng.pick(&[-8i16, -16, -24, -4]);
        let src = self.number();
        self.emit(class::STX | mode::ATOMIC | size, 10, src, off, op);
    }

    /// Loads and stores with an order.
    pub(super) fn ordered(&mut self) {
        let n = self.rng.below(4) as usize;
        let off = if !self.slip(8) { self.rng.pick(&[-8i16, -16, -24]) } else { -12 };
        let r = self.rng.pick(&[7u8, 8]);
        self.emit(class::STX | mode::ATOMIC | SIZES[n], 10, r, off, atomic::STORE_REL);
        let r = self.number();
        self.emit(class::STX | mode::ATOMIC | SIZES[n], r, 10, off, atomic::LOAD_ACQ);
        let back = self.rng.pick(&[7u8, 8]);
        self.emit(class::LDX | mode::MEM | size::DW, back, 10, -16, 0);
    }
}
