//! Loops: counted ones, and `may_goto`.

use skep_ebpf::insn::{JA, class, jmp};

use super::{Gen, Role};

impl Gen<'_> {
    /// Loops in functions that may be called back make Linux 6.18 follow pointers to states that it freed: it crashes.
    fn loops_here(&self) -> bool {
        self.role.is_none() || !self.plan.iter().any(|r| matches!(r, Role::Loop | Role::Each))
    }

    pub(super) fn looping(&mut self, depth: u32) {
        if depth > 0 || !self.loops_here() {
            return self.arith();
        }
        let n = 1 + self.rng.below(12) as i32;
        self.mov_imm(7, 0);
        let head = self.out.len();
        self.body(1, 2);
        self.add(7, 1);
        let op = self.rng.pick(&[jmp::JLT, jmp::JSLT, jmp::JNE, jmp::JLE]);
        let back = head as i64 - self.out.len() as i64 - 1;
        self.emit(class::JMP | op, 7, 0, back as i16, n);
    }

    pub(super) fn may_goto(&mut self, depth: u32) {
        if depth > 0 || !self.loops_here() {
            return self.arith();
        }
        let start = self.small();
        let r = self.rng.pick(&[7u8, 8]);
        if self.rng.chance(60) {
            self.mov_imm(r, start);
        }
        let head = self.out.len();
        self.emit(class::JMP | jmp::JCOND, 0, 0, 0, 0);
        self.body(1, 2);
        if self.rng.chance(70) {
            self.add(r, 1);
        }
        let leave = self.out.len();
        if self.rng.chance(40) {
            let n = self.small();
            self.emit(class::JMP | jmp::JGT, r, 0, 1, n);
        }
        let back = head as i64 - self.out.len() as i64 - 1;
        self.emit(JA, 0, 0, back as i16, 0);
        if self.out[leave].op() == jmp::JGT {
            self.out[leave].off = 1;
        }
        self.out[head].off = (self.out.len() - head - 1) as i16;
        if self.rng.chance(60) {
            self.use_index(r);
        }
        self.mov_imm(4, 0);
        self.mov_imm(5, 0);
    }
}
