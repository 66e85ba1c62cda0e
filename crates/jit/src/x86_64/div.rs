//! Division: x86 wants the dividend in rdx:rax and traps where a program gets 0 or what it had.

use super::asm::{Alu, Cc, Shift, Unary};
use super::emit::Emitter;
use super::ir::{Bin, Src};
use super::lazy::bits;
use super::regs::{R9, R10, R11, RAX, RDX, Reg};

impl Emitter<'_> {
    pub(crate) fn div(&mut self, i: usize, signed: bool, rem: bool, wide: bool, dst: u8, src: Src) {
        let known = self.operands(i, src, wide);
        let signed = signed && !known.positive(wide);
        let constant = match src {
            Src::Imm(k) => Some(if wide { k as i64 as u64 } else { u64::from(k as u32) }),
            Src::Reg(r) if r == dst => None,
            Src::Reg(r) => self.constant(r).map(|k| if wide { k } else { k & 0xffff_ffff }),
        };
        if let Some(k) = constant
            && !signed
            && k.is_power_of_two()
            && self.power_of_two(i, rem, wide, dst, k)
        {
            return;
        }
        let small = match (src, constant) {
            (_, Some(k)) => u32::try_from(k).is_ok(),
            (Src::Reg(r), None) => self.zero >> r & 1 != 0,
            (Src::Imm(_), None) => false,
        };
        let narrow = !wide || (!signed && (known.small() || small && self.zero >> dst & 1 != 0));
        if let Some(k) = constant
            && !signed
            && narrow
            && !self.blinds()
            && self.reciprocal(rem, dst, k)
        {
            return;
        }
        let by_zero = match constant {
            Some(k) => k == 0,
            None => !known.never_by_zero(wide),
        };
        let by_minus_one = signed && !known.never_by_minus_one(wide);
        self.divide([signed, rem, !narrow, by_zero, by_minus_one], dst, src, constant);
    }

    /// By a power of two: a shift or a mask.
    fn power_of_two(&mut self, i: usize, rem: bool, wide: bool, dst: u8, k: u64) -> bool {
        let shift = k.trailing_zeros();
        let op = if rem {
            let Ok(mask) = i32::try_from(k - 1) else { return false };
            (Bin::And, mask)
        } else {
            (Bin::Shr, shift as i32)
        };
        // No instruction behind it is looked at.
        self.bin(i, i, op.0, wide, dst, Src::Imm(op.1));
        true
    }

    /// 32 bits by a constant: a multiplication by its reciprocal of 32 bits, if one is exact enough.
    fn reciprocal(&mut self, rem: bool, dst: u8, k: u64) -> bool {
        if k < 3 {
            return false;
        }
        let up = 64 - (k - 1).leading_zeros();
        // ceil(2^(32 + shift) / k) is too large by e / k. If e is not more than 2^shift, no 32-bit dividend shows it.
        let exact = |shift: u32| {
            let m = (1u128 << (32 + shift)).div_ceil(u128::from(k));
            let e = m * u128::from(k) - (1u128 << (32 + shift));
            u32::try_from(m).ok().filter(|_| e <= 1 << shift).map(|m| (m, shift))
        };
        let Some((m, shift)) = exact(up - 1).or_else(|| exact(up)) else { return false };
        self.force(dst);
        let d = self.write(dst);
        let asm = self.asm();
        asm.mov_rr(false, R11, d);
        asm.mov_ri(R10, u64::from(m));
        asm.imul_rr(true, R11, R10);
        asm.shift_ri(Shift::Shr, true, R11, (32 + shift) as u8);
        if rem {
            asm.imul_rri(false, R11, R11, k as u32 as i32);
            asm.alu_rr(Alu::Sub, false, d, R11);
        } else {
            asm.mov_rr(false, d, R11);
        }
        true
    }

    /// True if what a register's place holds is needed behind this instruction.
    fn held(&self, r: u8) -> bool {
        self.after >> r & 1 != 0 || bits(self.pending).any(|p| self.lazy(p).refs() >> r & 1 != 0)
    }

    /// Signed or not, the remainder or the quotient, of 64 bits or of 32; the divisor may be 0, or -1.
    fn divide(&mut self, [signed, rem, w, by_zero, by_minus_one]: [bool; 5], dst: u8, src: Src, constant: Option<u64>) {
        self.force(dst);
        let mut by = match (constant, src) {
            (Some(k), _) => {
                self.load_constant(R9, k);
                R9
            }
            (None, Src::Reg(r)) => self.read(r, !w),
            (None, Src::Imm(_)) => R9,
        };
        let d = self.write(dst);
        let (keep_rax, keep_rdx) = (d != RAX && self.held(0), d != RDX && self.held(3));
        if by == RAX || by == RDX {
            self.asm().mov_rr(w, R9, by);
            by = R9;
        }
        let save = |this: &mut Self, keep: bool, to: Reg, from: Reg| {
            if keep {
                this.asm().mov_rr(true, to, from);
            }
        };
        save(self, keep_rax, R10, RAX);
        save(self, keep_rdx, R11, RDX);
        if d != RAX {
            self.asm().mov_rr(w, RAX, d);
        }
        let done = self.layout.label();
        if by_zero {
            let ok = self.layout.label();
            self.asm().test_rr(w, by, by);
            self.layout.jcc(Cc::Ne, ok);
            if rem {
                self.asm().mov_rr(w, RDX, RAX);
            } else {
                self.asm().zero(RAX);
            }
            self.layout.jmp(done);
            self.layout.bind(ok);
        }
        if by_minus_one {
            let ok = self.layout.label();
            self.asm().alu_ri(Alu::Cmp, w, by, -1);
            self.layout.jcc(Cc::Ne, ok);
            if rem {
                self.asm().zero(RDX);
            } else {
                self.asm().unary(Unary::Neg, w, RAX);
            }
            self.layout.jmp(done);
            self.layout.bind(ok);
        }
        if signed {
            self.asm().sign_to_rdx(w);
            self.asm().unary(Unary::Idiv, w, by);
        } else {
            if w && self.optimise {
                // 64-bit division is slow; most numbers are small.
                let (large, asm) = (self.layout.label(), &mut self.layout.asm);
                asm.mov_rr(true, RDX, RAX);
                asm.alu_rr(Alu::Or, true, RDX, by);
                asm.shift_ri(Shift::Shr, true, RDX, 32);
                self.layout.jcc(Cc::Ne, large);
                // rdx is zero.
                self.asm().unary(Unary::Div, false, by);
                self.layout.jmp(done);
                self.layout.bind(large);
            }
            self.asm().zero(RDX);
            self.asm().unary(Unary::Div, w, by);
        }
        self.layout.bind(done);
        let result = if rem { RDX } else { RAX };
        if d != result {
            self.asm().mov_rr(w, d, result);
        }
        save(self, keep_rax, RAX, R10);
        save(self, keep_rdx, RDX, R11);
    }
}
