//! Helpers, functions of the program, callbacks, tail calls.

use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, class, jmp, mode, pseudo, size};

use super::{Gen, Role, SIZES};

impl Gen<'_> {
    /// Uses the pointers that a function is given, then goes on as all others do. The first one ends up in r9.
    pub(super) fn enter(&mut self, role: Role) {
        let width = |g: &mut Self| g.rng.below(4) as usize;
        match role {
            Role::Pointer | Role::GlobalMemory | Role::GlobalNullable | Role::Loop => {
                self.mov(9, 2);
                if role == Role::GlobalNullable && !self.slip(20) {
                    self.emit(class::JMP | jmp::JNE, 9, 0, 2, 0);
                    self.mov_imm(0, 0);
                    self.emit(EXIT, 0, 0, 0, 0);
                }
                self.mov(8, 1);
                self.mov_imm(7, 2);
                for _ in 0..1 + self.rng.below(3) {
                    let n = width(self);
                    match self.rng.below(5) {
                        0 => self.emit(
                            class::STX | mode::MEM | SIZES[n],
                            9,
                            if role == Role::Pointer { 7 } else { 8 },
                            0,
                            0,
                        ),
                        1 => {
                            let imm = self.small();
                            self.emit(class::ST | mode::MEM | SIZES[n], 9, 0, 0, imm);
                        }
                        2 => {
                            // A counter of rounds, that may be masked.
                            self.emit(class::LDX | mode::MEM | size::DW, 7, 9, 0, 0);
                            self.add(7, 1);
                            if self.rng.chance(60) {
                                let mask = self.rng.pick(&[7, 15, 31, 63]);
                                self.emit(class::ALU64 | alu::AND, 7, 0, 0, mask);
                            }
                            self.emit(class::STX | mode::MEM | size::DW, 9, 7, 0, 0);
                        }
                        _ => self.emit(class::LDX | mode::MEM | SIZES[n], 7, 9, 0, 0),
                    }
                }
            }
            Role::Each => {
                let n = width(self);
                let read = self.rng.chance(50);
                let off = if !self.slip(12) { 0 } else { self.rng.pick(&[8i16, 16, 24]) };
                let r = if n < 3 { self.rng.pick(&[2u8, 3]) } else { 3 };
                self.mov(9, r);
                if read {
                    self.emit(class::LDX | mode::MEM | SIZES[n], 7, 9, off, 0);
                } else {
                    self.emit(class::ST | mode::MEM | SIZES[n], 3, 0, off, 1);
                }
            }
            _ => {}
        }
        if matches!(role, Role::Global | Role::Pointer) {
            self.mov(6, 1);
        } else {
            self.mov_imm(6, 5);
        }
        let keep = role == Role::Loop && self.rng.chance(40);
        let saved = [8u8, 7];
        for off in [-8i16, -16, -24, -32] {
            if self.rng.chance(80) {
                let imm = self.small();
                self.emit(class::ST | mode::MEM | size::DW, 10, 0, off, imm);
            }
        }
        for r in [0u8, 1, 2, 3, 7, 8] {
            if keep && saved.contains(&r) {
                self.mov_imm(r, 1);
            } else if self.rng.chance(50) || r < 7 || role == Role::Each {
                let n = self.small();
                self.mov_imm(r, n);
            } else {
                self.emit(CALL, 0, 0, 0, 7);
                self.mov(7, 0);
                self.mov(8, 0);
            }
        }
        for r in 0..=5 {
            let n = self.small();
            self.mov_imm(r, n);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
        self.mov_imm(9, 0);
    }

    pub(super) fn helper(&mut self) {
        match self.rng.below(9) {
            0 => {
                self.key();
                self.mov(3, 10);
                self.add(3, -32);
                self.mov_imm(4, 0);
                let map = if self.careful { self.rng.pick(&[0usize, 1, 3]) } else { self.rng.pick(&[0usize, 1, 3, 7]) };
                self.map(1, map);
                self.call(2);
            }
            1 => {
                self.key();
                self.map(1, 1);
                self.call(3);
            }
            2 => {
                // probe_read and friends, with a size that may be wrong.
                self.mov(1, 10);
                self.add(1, -32);
                let len = if self.careful { self.rng.pick(&[4, 8, 32]) } else { self.rng.pick(&[0, 4, 8, 32, 33, -1]) };
                self.mov_imm(2, len);
                if self.rng.chance(40) {
                    let r = self.rng.pick(&[7u8, 8]);
                    self.mov(2, r);
                    let mask = if self.careful { self.rng.pick(&[7, 31]) } else { self.rng.pick(&[7, 31, 63]) };
                    self.emit(class::ALU64 | alu::AND, 2, 0, 0, mask);
                }
                let h = self.rng.pick(&[112, 113, 114, 115]);
                self.call(h);
            }
            3 => {
                self.mov(1, 6);
                self.map(2, 5);
                self.mov_imm(3, 0);
                self.mov(4, 10);
                self.add(4, -24);
                let len = if self.careful { self.rng.pick(&[8, 16, 24]) } else { self.rng.pick(&[8, 16, 24, 32]) };
                self.mov_imm(5, len);
                self.call(25);
            }
            4 => {
                self.mov(1, 6);
                self.map(2, 6);
                self.mov_imm(3, 1);
                self.call(12);
            }
            5 => {
                self.mov(1, 10);
                self.add(1, -16);
                let len = if self.careful { self.rng.pick(&[16, 8]) } else { self.rng.pick(&[16, 8, 0, 24]) };
                self.mov_imm(2, len);
                self.call(16);
            }
            6 => {
                self.map(1, 4);
                self.mov(2, 10);
                self.add(2, -32);
                let len = if self.careful { self.rng.pick(&[8, 32]) } else { self.rng.pick(&[8, 32, 40]) };
                self.mov_imm(3, len);
                self.mov_imm(4, 0);
                self.call(130);
            }
            7 => {
                self.map(1, 9);
                self.mov(2, 10);
                self.add(2, -16);
                self.mov_imm(3, 0);
                let h = self.rng.pick(&[87, 88, 89]);
                self.call(h);
            }
            _ => {
                let h = self.rng.pick(&[5, 7, 8, 14, 125]);
                self.call(h);
            }
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }

    /// Calls a function as its role wants it, mostly.
    pub(super) fn role_call(&mut self) {
        let first = match self.role {
            None => 1,
            // A function calls one behind it at most.
            Some(_) => self.calls.iter().map(|c| c.1).max().unwrap_or(0) + 1,
        };
        if first > self.plan.len() || self.role.is_some() && self.rng.chance(60) {
            return self.arith();
        }
        let used = self.calls.iter().map(|c| c.1).max().unwrap_or(0);
        let last = (used + 1).min(self.plan.len());
        let f = if first >= last { last } else { first + self.rng.below((last - first + 1) as u64) as usize };
        if self.role.is_some() && self.calls.iter().any(|c| c.1 >= f && c.1 > used) {
            return self.arith();
        }
        let role = self.plan[f - 1];
        let word = self.rng.pick(&[-8i16, -16, -24]);
        let zero = self.small();
        match role {
            Role::Plain => self.mov(1, 6),
            Role::Global => self.mov(1, 6),
            Role::Pointer => {
                self.mov(1, 6);
                self.emit(class::ST | mode::MEM | size::DW, 10, 0, word, zero);
                self.mov(2, 10);
                self.add(2, word.into());
            }
            Role::GlobalMemory | Role::GlobalNullable => {
                match self.rng.below(4) {
                    0 => {
                        self.emit(LD_IMM64, 2, pseudo::MAP_IDX_VALUE, 0, 8);
                        let off =
                            if self.careful { self.rng.pick(&[0, 8, 56]) } else { self.rng.pick(&[0, 8, 56, 57]) };
                        self.emit(0, 0, 0, 0, off);
                    }
                    1 if role == Role::GlobalNullable => self.mov_imm(2, 0),
                    _ => {
                        self.emit(class::ST | mode::MEM | size::DW, 10, 0, word, zero);
                        self.mov(2, 10);
                        self.add(2, word.into());
                    }
                }
                self.mov_imm(1, 7);
            }
            Role::Loop | Role::Each => {
                if self.rng.chance(75) {
                    self.emit(class::ST | mode::MEM | size::DW, 10, 0, word, zero);
                } else {
                    let r = self.rng.pick(&[7u8, 8]);
                    self.emit(class::STX | mode::MEM | size::DW, 10, r, word, 0);
                }
                if role == Role::Loop {
                    let rounds = self.rng.pick(&[0, 1, 2, 7, 50, 1000]);
                    if self.rng.chance(60) {
                        self.mov_imm(1, rounds);
                    } else {
                        let r = self.rng.pick(&[7u8, 8]);
                        self.mov(1, r);
                    }
                } else {
                    let map =
                        if self.careful { self.rng.pick(&[0usize, 1, 3]) } else { self.rng.pick(&[0usize, 1, 3, 7]) };
                    self.map(1, map);
                }
                self.mov(3, 10);
                self.add(3, word.into());
                if role == Role::Each && self.rng.chance(40) {
                    self.mov_imm(3, 0);
                }
                self.mov_imm(4, 0);
                self.calls.push((self.out.len(), f));
                self.emit(LD_IMM64, 2, pseudo::FUNC, 0, 0);
                self.emit(0, 0, 0, 0, 0);
                self.call(if role == Role::Loop { 181 } else { 164 });
            }
        }
        if !matches!(role, Role::Loop | Role::Each) {
            for r in 3..=5 {
                self.mov_imm(r, 1);
            }
            if matches!(role, Role::Plain | Role::Global) {
                self.mov_imm(2, 9);
            }
            self.calls.push((self.out.len(), f));
            self.emit(CALL, 0, 1, 0, 0);
            for r in 1..=5 {
                self.mov_imm(r, 1);
            }
        }
        if self.rng.chance(50) {
            // What the function may have left is used as an index.
            self.emit(class::LDX | mode::MEM | size::DW, 7, 10, word, 0);
            self.use_index(7);
        } else if self.rng.chance(25) {
            self.use_index(0);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }

    pub(super) fn tail_call(&mut self) {
        if matches!(self.role, Some(r) if !matches!(r, Role::Global | Role::Pointer)) {
            return self.arith();
        }
        self.mov(1, 6);
        self.map(2, 6);
        self.mov_imm(3, 1);
        self.call(12);
        let n = self.rng.below(40) as i32;
        self.mov_imm(0, n);
    }

    pub(super) fn function_call(&mut self) {
        if self.in_subprog || self.plan.len() != 2 || self.plan.iter().any(|r| *r != Role::Plain) {
            return self.arith();
        }
        let used = self.calls.iter().map(|c| c.1).max().unwrap_or(0);
        let f = 1 + self.rng.below(used.min(1) as u64 + 1) as usize;
        if self.rng.chance(60) {
            self.mov(1, 6);
        }
        for r in 2..=5 {
            if self.rng.chance(40) {
                let n = self.small();
                self.mov_imm(r, n);
            }
        }
        self.calls.push((self.out.len(), f));
        self.emit(CALL, 0, 1, 0, 0);
        for r in 1..=5 {
            self.mov_imm(r, 1);
        }
    }
}
