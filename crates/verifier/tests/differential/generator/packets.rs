//! Packet data and the context.

use skep_ebpf::insn::{JA, alu, class, jmp, mode, size};
use skep_ebpf::uapi::ProgType;

use super::Gen;

impl Gen<'_> {
    pub(super) fn load_ctx(&mut self, r: u8) {
        if self.in_subprog && self.rng.chance(60) {
            let n = self.small();
            return self.mov_imm(r, n);
        }
        match self.ty {
            ProgType::SocketFilter | ProgType::SchedCls => {
                let off = self.rng.pick(&[0i16, 4, 8, 16, 48, 52, 32]);
                self.emit(class::LDX | mode::MEM | size::W, r, 6, off, 0);
            }
            ProgType::Xdp => {
                let off = self.rng.pick(&[12i16, 16]);
                self.emit(class::LDX | mode::MEM | size::W, r, 6, off, 0);
            }
            _ => {
                let off = self.rng.pick(&[8i16, 16, 24, 80]);
                self.emit(class::LDX | mode::MEM | size::DW, r, 6, off, 0);
            }
        }
    }

    pub(super) fn packet(&mut self, depth: u32) {
        let (data, end) = match self.ty {
            ProgType::SchedCls => (76, 80),
            ProgType::Xdp => (0, 4),
            ProgType::SocketFilter => {
                let off = self.rng.below(40) as i32;
                let size = self.rng.pick(&[size::B, size::H, size::W]);
                self.emit(class::LD | mode::ABS | size, 0, 0, 0, off);
                for r in 1..=5 {
                    self.mov_imm(r, 0);
                }
                return;
            }
            _ => return self.arith(),
        };
        if self.in_subprog {
            return self.arith();
        }
        self.emit(class::LDX | mode::MEM | size::W, 4, 6, data, 0);
        self.emit(class::LDX | mode::MEM | size::W, 5, 6, end, 0);
        if self.rng.chance(30) {
            let r = self.rng.pick(&[1u8, 2, 3, 7, 8]);
            let mask = self.rng.pick(&[15, 63, 0xff, 0xffff, 0x7fff]);
            self.emit(class::ALU64 | alu::AND, r, 0, 0, mask);
            self.emit(class::ALU64 | alu::ADD | 8, 4, r, 0, 0);
        }
        self.mov(9, 4);
        let len = 1 + self.rng.below(40) as i32;
        self.add(9, len);
        let careful = self.careful;
        let op = if careful { jmp::JGT } else { self.rng.pick(&[jmp::JGT, jmp::JGE, jmp::JLT, jmp::JLE]) };
        let at = self.out.len();
        if careful || self.rng.chance(50) {
            self.emit(class::JMP | op | 8, 9, 5, 0, 0);
        } else {
            self.emit(class::JMP | op | 8, 5, 9, 0, 0);
        }
        if !careful && self.rng.chance(50) {
            // The access stands behind a jump over it.
            self.emit(JA, 0, 0, 1, 0);
            self.out[at].off = 1;
            let n = self.rng.below(2) as i16;
            self.out[at + 1].off = n + 1;
        }
        let room = i64::from(len) - i64::from(self.rng.chance(20)) + i64::from(self.slip(8));
        let through = if !self.slip(15) { 4 } else { 9 };
        self.access(through, room);
        if depth < 2 && self.rng.chance(25) {
            self.body(1, depth + 1);
        }
        if self.out[at].off == 0 {
            self.out[at].off = (self.out.len() - at - 1) as i16;
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
        self.mov_imm(9, 0);
    }
}
