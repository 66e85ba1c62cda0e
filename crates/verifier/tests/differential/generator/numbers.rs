//! Arithmetic, comparisons, and what uses the numbers as offsets.

use skep_ebpf::insn::{JA, LD_IMM64, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::uapi::ProgType;

use super::{ARITH, COMPARE, Gen};

impl Gen<'_> {
    pub(super) fn arith(&mut self) {
        let op = self.rng.pick(&ARITH);
        let class = self.rng.pick(&[class::ALU, class::ALU64]);
        let width = if class == class::ALU { 32 } else { 64 };
        let dst = self.number();
        if op == alu::NEG {
            return self.emit(class | op, dst, 0, 0, 0);
        }
        if self.rng.chance(6) {
            let w = self.rng.pick(&[16, 32, 64]);
            let (c, x) = self.rng.pick(&[(class::ALU, 0), (class::ALU, 8), (class::ALU64, 0)]);
            return self.emit(c | alu::END | x, dst, 0, 0, w);
        }
        let signed = i16::from(matches!(op, alu::DIV | alu::MOD) && self.rng.chance(30));
        if self.rng.chance(50) {
            let src = self.number();
            let off = if op == alu::MOV && self.rng.chance(35) {
                self.rng.pick(if width == 32 { &[8, 16] } else { &[8, 16, 32] })
            } else {
                signed
            };
            self.emit(class | op | 8, dst, src, off, 0);
        } else {
            let imm = match op {
                alu::LSH | alu::RSH | alu::ARSH => self.rng.below(width) as i32,
                alu::DIV | alu::MOD => self.small() | 1,
                _ => self.small(),
            };
            self.emit(class | op, dst, 0, signed, imm);
        }
    }

    pub(super) fn branch(&mut self, depth: u32) {
        let op = self.rng.pick(&COMPARE);
        let class = self.rng.pick(&[class::JMP, class::JMP, class::JMP32]);
        let dst = self.number();
        let at = self.out.len();
        if self.rng.chance(40) {
            let src = self.number();
            self.emit(class | op | 8, dst, src, 0, 0);
        } else {
            let imm = self.small();
            self.emit(class | op, dst, 0, 0, imm);
        }
        if depth < 2 {
            let n = 1 + self.rng.below(3);
            self.body(n, depth + 1);
        } else {
            self.arith();
        }
        if self.rng.chance(30) {
            let jump = self.out.len();
            self.emit(JA, 0, 0, 0, 0);
            self.out[at].off = (self.out.len() - at - 1) as i16;
            self.arith();
            self.arith();
            self.out[jump].off = (self.out.len() - jump - 1) as i16;
        } else {
            self.out[at].off = (self.out.len() - at - 1) as i16;
        }
        if self.rng.chance(25) && self.out.len() - at > 1 {
            // Use what was compared as an index.
            self.use_index(dst);
        }
    }

    /// Uses a number as an offset into a map value, without or with too little masking.
    pub(super) fn use_index(&mut self, r: u8) {
        self.emit(LD_IMM64, 5, pseudo::MAP_IDX_VALUE, 0, 8);
        self.emit(0, 0, 0, 0, 0);
        self.mov(4, r);
        if self.careful || self.rng.chance(85) {
            let mask = self.rng.pick(&[7, 15, 31, 63, 60]);
            self.emit(class::ALU64 | alu::AND, 4, 0, 0, mask);
        }
        self.emit(class::ALU64 | alu::ADD | 8, 5, 4, 0, 0);
        let dst = self.number();
        self.emit(class::LDX | mode::MEM | size::B, dst, 5, 0, 0);
    }

    /// Copies a number, moves the copy by a constant, and learns of one by comparing the other.
    pub(super) fn linked(&mut self) {
        let (a, b) = self.rng.pick(&[(7u8, 8u8), (8, 7), (7, 1), (8, 2), (2, 8)]);
        if self.rng.chance(50) {
            let class = self.rng.pick(&[class::ALU, class::ALU64]);
            self.emit(class | alu::AND, b, 0, 0, 0x7fff_ffff);
        }
        let class = self.rng.pick(&[class::ALU, class::ALU64, class::ALU64]);
        self.emit(class | alu::MOV | 8, a, b, 0, 0);
        let class = self.rng.pick(&[class::ALU, class::ALU64]);
        let delta = self.rng.below(40) as i32 - 12;
        let op = self.rng.pick(&[alu::ADD, alu::ADD, alu::SUB]);
        self.emit(class | op, a, 0, 0, delta);
        let known = if self.rng.chance(60) { b } else { a };
        let class = self.rng.pick(&[class::JMP, class::JMP, class::JMP32]);
        let op = self.rng.pick(&[jmp::JGT, jmp::JGE, jmp::JSGT]);
        let at = self.out.len();
        let bound = self.rng.below(40) as i32;
        self.emit(class | op, known, 0, 0, bound);
        let other = if known == a { b } else { a };
        self.emit(LD_IMM64, 5, pseudo::MAP_IDX_VALUE, 0, 8);
        self.emit(0, 0, 0, 0, 12);
        self.emit(class::JMP | jmp::JSLT, known, 0, 0, 0);
        let low = self.out.len() - 1;
        if self.rng.chance(60) {
            self.emit(class::ALU64 | alu::ADD | 8, 5, other, 0, 0);
            self.emit(class::LDX | mode::MEM | size::B, 0, 5, 0, 0);
        } else {
            // The same by comparing again: is the second branch decided?
            let k = self.small();
            let op = self.rng.pick(&COMPARE);
            self.emit(class::JMP | op, other, 0, 1, k);
            self.mov_imm(0, 3);
        }
        self.out[low].off = (self.out.len() - low - 1) as i16;
        self.out[at].off = (self.out.len() - at - 1) as i16;
        self.mov_imm(0, 0);
        self.mov_imm(5, 0);
    }

    pub(super) fn pointer_mix(&mut self) {
        let r = self.number();
        match if self.careful { 0 } else { self.rng.below(5) } {
            0 => {
                self.emit(class::STX | mode::MEM | size::DW, 10, 6, -24, 0);
                self.emit(class::LDX | mode::MEM | size::DW, 9, 10, -24, 0);
                self.load_from(9);
            }
            1 => {
                self.mov(9, 10);
                self.emit(class::ALU64 | alu::SUB | 8, 9, 10, 0, 0);
            }
            2 => {
                self.mov(9, 6);
                let op = self.rng.pick(&ARITH);
                self.emit(
                    class::ALU64 | op | if op == alu::NEG { 0 } else { 8 },
                    9,
                    if op == alu::NEG { 0 } else { r },
                    0,
                    0,
                );
            }
            3 => {
                self.mov(9, r);
                self.emit(class::ALU | alu::MOV | 8, 9, 6, 0, 0);
            }
            _ => {
                self.emit(class::JMP | jmp::JEQ | 8, 6, r, 1, 0);
                self.arith();
            }
        }
        self.mov_imm(9, 0);
    }

    pub(super) fn load_from(&mut self, ptr: u8) {
        let (size, off) = match self.ty {
            ProgType::SocketFilter | ProgType::SchedCls => (size::W, 0),
            ProgType::Xdp => (size::W, 12),
            _ => (size::DW, 16),
        };
        self.emit(class::LDX | mode::MEM | size, 7, ptr, off, 0);
    }
}
