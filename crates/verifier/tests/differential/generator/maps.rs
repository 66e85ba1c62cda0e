//! Maps: look-ups, values, maps in maps, ring buffers.

use skep_ebpf::insn::{JA, LD_IMM64, alu, class, jmp, mode, pseudo, size};

use super::{Gen, SIZES, VALUE_SIZES, WIDTH};

impl Gen<'_> {
    pub(super) fn key(&mut self) {
        let imm = self.rng.below(6) as i32;
        let size = self.rng.pick(&[size::W, size::DW]);
        self.emit(class::ST | mode::MEM | size, 10, 0, -8, imm);
        self.mov(2, 10);
        self.add(2, -8);
    }

    pub(super) fn map_value(&mut self, depth: u32) {
        let safe = [0usize, 0, 1, 1, 3, 8, 8];
        let map = if self.careful {
            self.rng.pick(&safe)
        } else {
            self.rng.pick(&[0usize, 0, 0, 1, 1, 1, 3, 3, 8, 8, 8, 0, 1, 3, 2, 7])
        };
        self.key();
        self.map(1, map);
        self.call(1);
        let at = self.out.len();
        if !self.slip(12) {
            self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        }
        self.mov(9, 0);
        let top = VALUE_SIZES[map];
        match self.rng.below(4) {
            0 => {
                // A bounded index.
                let r = self.rng.pick(&[1u8, 2, 3, 7, 8]);
                let mask = if self.careful { self.rng.pick(&[7, 15]) } else { self.rng.pick(&[7, 15, 31, 63]) };
                if self.careful || self.rng.chance(60) {
                    self.emit(class::ALU64 | alu::AND, r, 0, 0, mask);
                } else {
                    let op = self.rng.pick(&[jmp::JGT, jmp::JSGT, jmp::JGE]);
                    let class = self.rng.pick(&[class::JMP, class::JMP32]);
                    self.emit(class | op, r, 0, 1, top as i32 - 8);
                    self.emit(JA, 0, 0, 1, 0);
                    self.mov_imm(r, 3);
                }
                self.emit(class::ALU64 | alu::ADD | 8, 9, r, 0, 0);
                self.access(9, top - i64::from(mask));
            }
            1 => {
                let k = self.rng.below(16) as i32;
                self.add(9, k);
                self.access(9, top - i64::from(k));
            }
            _ => self.access(9, top),
        }
        if depth < 2 && self.rng.chance(30) {
            self.body(1, depth + 1);
        }
        if self.out[at].code == class::JMP | jmp::JEQ {
            self.out[at].off = (self.out.len() - at - 1) as i16;
        }
        self.mov_imm(0, 1);
        self.mov_imm(9, 0);
    }

    /// A load or store in a region of about this size.
    pub(super) fn access(&mut self, ptr: u8, room: i64) {
        let mut n = self.rng.below(4) as usize;
        while self.careful && n > 0 && i64::from(WIDTH[n]) > room {
            n -= 1;
        }
        let span = room.max(1) as u64;
        let mut off = self.rng.below(span) as i16;
        if self.careful || self.rng.chance(85) {
            off = off / WIDTH[n] * WIDTH[n];
            if i64::from(off + WIDTH[n]) > room {
                off = 0;
            }
        }
        if self.rng.chance(55) {
            let dst = self.number();
            let m = if n < 3 && self.rng.chance(20) { mode::MEMSX } else { mode::MEM };
            self.emit(class::LDX | m | SIZES[n], if dst == ptr { 7 } else { dst }, ptr, off, 0);
        } else if self.rng.chance(50) {
            let src = self.number();
            self.emit(class::STX | mode::MEM | SIZES[n], ptr, src, off, 0);
        } else {
            let imm = self.small();
            self.emit(class::ST | mode::MEM | SIZES[n], ptr, 0, off, imm);
        }
    }

    pub(super) fn direct_value(&mut self) {
        let map = if self.careful { 8 } else { self.rng.pick(&[2usize, 8]) };
        let off = self.rng.below(VALUE_SIZES[map] as u64) as i32;
        self.emit(LD_IMM64, 9, pseudo::MAP_IDX_VALUE, 0, map as i32);
        self.emit(0, 0, 0, 0, off);
        self.access(9, VALUE_SIZES[map] - i64::from(off));
        self.mov_imm(9, 0);
    }

    pub(super) fn inner_map(&mut self) {
        self.key();
        self.map(1, 10);
        self.call(1);
        let at = self.out.len();
        self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        self.mov(9, 0);
        self.key();
        let r = if !self.slip(12) { 9 } else { 0 };
        self.mov(1, r);
        self.call(1);
        let inner = self.out.len();
        if !self.slip(20) {
            self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        }
        self.mov(9, 0);
        self.access(9, 24);
        if self.out[inner].code == class::JMP | jmp::JEQ {
            self.out[inner].off = (self.out.len() - inner - 1) as i16;
        }
        self.out[at].off = (self.out.len() - at - 1) as i16;
        self.mov_imm(0, 1);
        self.mov_imm(9, 0);
    }

    pub(super) fn ringbuf(&mut self) {
        if self.in_subprog {
            return self.arith();
        }
        let len = self.rng.pick(&[8, 16, 24, 4]);
        self.map(1, 4);
        self.mov_imm(2, len);
        self.mov_imm(3, 0);
        self.call(131);
        let at = self.out.len();
        self.emit(class::JMP | jmp::JEQ, 0, 0, 0, 0);
        self.mov(9, 0);
        self.access(9, len.into());
        if !self.slip(12) {
            self.mov(1, 9);
            self.mov_imm(2, 0);
            let h = self.rng.pick(&[132, 133]);
            self.call(h);
        }
        self.out[at].off = (self.out.len() - at - 1) as i16;
        self.mov_imm(0, 0);
        self.mov_imm(9, 0);
    }
}
