//! Loads, stores and atomic operations.

use skep_runtime::abi;

use super::asm::{Alu, Cc, Mem, Size};
use super::emit::Emitter;
use super::ir::{Bin, Op, Rmw, Src};
use super::regs::{self, ENV, R9, R10, R11, RAX};

impl Emitter<'_> {
    /// Makes `base + off` an address that one instruction can have.
    #[inline]
    fn addressable(&mut self, base: u8, off: i16) {
        if self.in_place(base) {
            return;
        }
        let sum = self.sum(base);
        if !sum.wide || sum.base.is_none() || sum.disp.checked_add(i32::from(off)).is_none() {
            self.force(base);
        }
    }

    /// The address `base + off`, which was made [addressable](Emitter::addressable).
    #[inline]
    fn address(&mut self, base: u8, off: i16) -> Mem {
        if self.in_place(base) {
            return Mem::at(regs::of(base), i32::from(off));
        }
        let sum = self.sum(base);
        Mem {
            base: sum.base.map(regs::of),
            index: sum.index.map(|(i, k)| (regs::of(i), k)),
            disp: sum.disp.wrapping_add(i32::from(off)),
        }
    }

    /// The instruction behind `i`, if it is in the same block.
    fn next(&self, i: usize, end: usize) -> Option<Op> {
        (self.optimise && i + 1 < end).then(|| self.ops.op(i + 1))
    }

    fn dead_behind(&self, i: usize, r: u8) -> bool {
        (self.flow.live[i] >> r | self.flow.live[i] >> (16 + r)) & 1 == 0
    }

    #[allow(clippy::too_many_arguments, reason = "an instruction has as many")]
    pub(crate) fn load(
        &mut self,
        i: usize,
        end: usize,
        size: Size,
        signed: bool,
        dst: u8,
        base: u8,
        off: i16,
    ) -> usize {
        if self.reads_object(i) {
            self.load_object(size, signed, dst, base, off);
            return 1;
        }
        if !signed && self.ops.may_fold(i + 1) {
            if let Some(done) = self.modify(i, end) {
                return done;
            }
            match self.next(i, end) {
                Some(Op::Swap { size: s, dst: d })
                    if d == dst && s == size && matches!(s, Size::W | Size::Dw) && self.features.movbe =>
                {
                    self.look_at(i + 1);
                    let (m, d) = self.target(base, off, dst);
                    self.asm().load_swapped(s == Size::Dw, d, m);
                    return 2;
                }
                Some(Op::Bin { op, wide, dst: d, src: Src::Reg(s) })
                    if s == dst
                        && d != dst
                        && (size, wide) == (if wide { Size::Dw } else { Size::W }, wide)
                        && self.dead_behind(i + 1, dst) =>
                {
                    if let Some(op) = alu(op) {
                        self.look_at(i + 1);
                        self.force(d);
                        self.untangle(base, d);
                        self.addressable(base, off);
                        let m = self.address(base, off);
                        let place = self.write(d);
                        self.asm().alu_rm(op, wide, place, m);
                        self.flags = Some((d, wide));
                        return 2;
                    }
                }
                _ => {}
            }
        }
        let (m, d) = self.target(base, off, dst);
        if signed {
            self.asm().load_signed(size, d, m);
        } else {
            self.asm().load(size, d, m);
        }
        1
    }

    /// A load from a kernel object: 0 unless it lies in those that the program was given ([`Env::object`]). Pointers in
    /// objects may be null, and programs follow them unchecked.
    ///
    /// [`Env::object`]: skep_runtime::env::Env
    fn load_object(&mut self, size: Size, signed: bool, dst: u8, base: u8, off: i16) {
        let (m, d) = self.target(base, off, dst);
        let none = self.layout.label();
        let asm = &mut self.layout.asm;
        asm.lea(true, R11, m);
        asm.zero(d);
        asm.load(Size::Dw, R9, Mem::at(ENV, abi::OBJECTS_LEN));
        asm.mov_rr(true, R10, R11);
        asm.alu_rm(Alu::Sub, true, R10, Mem::at(ENV, abi::OBJECTS));
        // What is left of them from there on: nothing if it lies in front of them or behind.
        asm.alu_rr(Alu::Sub, true, R9, R10);
        self.layout.jcc(Cc::Be, none);
        let asm = &mut self.layout.asm;
        asm.alu_ri(Alu::Cmp, true, R9, width(size) as i32);
        self.layout.jcc(Cc::B, none);
        let asm = &mut self.layout.asm;
        if signed {
            asm.load_signed(size, d, Mem::at(R11, 0));
        } else {
            asm.load(size, d, Mem::at(R11, 0));
        }
        self.layout.bind(none);
    }

    /// The address of a load and the place of its result.
    fn target(&mut self, base: u8, off: i16, dst: u8) -> (Mem, regs::Reg) {
        self.untangle(base, dst);
        self.addressable(base, off);
        let m = self.address(base, off);
        (m, self.write(dst))
    }

    /// `d = *p; d op= x; *p = d` with d dead: one instruction on memory.
    fn modify(&mut self, i: usize, end: usize) -> Option<usize> {
        if !self.optimise || i + 2 >= end {
            return None;
        }
        let (Op::Load { size, dst, base, off, .. }, Op::Bin { op, wide, dst: d, src }) =
            (self.ops.op(i), self.ops.op(i + 1))
        else {
            return None;
        };
        let store = Op::Store { size, base, off, src: Src::Reg(dst) };
        let fits = self.ops.op(i + 2) == store
            && d == dst
            && base != dst
            && src != Src::Reg(dst)
            && (wide || size != Size::Dw)
            && !(self.blinds() && matches!(src, Src::Imm(_)))
            && self.dead_behind(i + 2, dst);
        let op = alu(op).filter(|_| fits)?;
        self.look_at(i + 2);
        match src {
            Src::Imm(k) => {
                self.addressable(base, off);
                let m = self.address(base, off);
                self.asm().alu_mi(op, size, m, k);
            }
            Src::Reg(s) => {
                let low = size != Size::Dw;
                self.addressable(base, off);
                self.settle(&[(s, low)]);
                self.addressable(base, off);
                let (m, s) = (self.address(base, off), self.place(s, low));
                self.asm().alu_mr(op, false, size, m, s);
            }
        }
        self.flags = None;
        Some(3)
    }

    pub(crate) fn store(&mut self, i: usize, end: usize, size: Size, base: u8, off: i16, src: Src) -> usize {
        if let Some(value) = self.stored(src, size) {
            let (n, size, value) = self.merged(i, end, size, value);
            self.addressable(base, off);
            let m = self.address(base, off);
            if self.blinds() {
                self.load_constant(R10, value as i64 as u64);
                self.asm().store(size, m, R10);
            } else {
                self.asm().store_imm(size, m, value);
            }
            return n;
        }
        let Src::Reg(r) = src else { return 1 };
        let low = size != Size::Dw;
        self.addressable(base, off);
        self.settle(&[(r, low)]);
        self.addressable(base, off);
        let (m, r) = (self.address(base, off), self.place(r, low));
        self.asm().store(size, m, r);
        1
    }

    /// The number that is stored, if it is one that fits in an instruction.
    fn stored(&self, src: Src, size: Size) -> Option<i32> {
        match src {
            Src::Imm(k) => Some(k),
            Src::Reg(r) => {
                let k = self.constant(r)?;
                if size == Size::Dw { i32::try_from(k as i64).ok() } else { Some(k as i32) }
            }
        }
    }

    /// Stores of numbers to adjacent places as one: how many, its width and the number.
    fn merged(&self, i: usize, end: usize, size: Size, value: i32) -> (usize, Size, i32) {
        let (mut n, mut size, mut value) = (1, size, value);
        let Op::Store { size: each, base, off, .. } = self.ops.op(i) else { return (n, size, value) };
        while self.optimise && size != Size::Dw && i + 2 * n <= end {
            let (bits, mut high) = (width(each) * 8, 0u64);
            for k in 0..n {
                let at = i32::from(off) + ((n + k) as i32) * (width(each) as i32);
                let Op::Store { size: s, base: b, off: o, src } = self.ops.op(i + n + k) else {
                    return (n, size, value);
                };
                let Some(v) = self.stored(src, s).filter(|_| (s, b, i32::from(o)) == (each, base, at)) else {
                    return (n, size, value);
                };
                high |= (u64::from(v as u32) & mask(bits)) << (bits * k as u32);
            }
            let half = width(size) * 8;
            let all = (u64::from(value as u32) & mask(half)) | high << half;
            let wider = match size {
                Size::B => Size::H,
                Size::H => Size::W,
                _ => Size::Dw,
            };
            if wider == Size::Dw && i32::try_from(all as i64).is_err() {
                break;
            }
            (n, size, value) = (2 * n, wider, all as i32);
        }
        (n, size, value)
    }

    pub(crate) fn atomic(&mut self, op: Rmw, wide: bool, base: u8, off: i16, src: u8) {
        let size = if wide { Size::Dw } else { Size::W };
        self.addressable(base, off);
        self.settle(&[(src, !wide)]);
        self.addressable(base, off);
        let (m, s) = (self.address(base, off), self.place(src, !wide));
        let op = match op {
            Rmw::Or => Alu::Or,
            Rmw::And => Alu::And,
            Rmw::Xor => Alu::Xor,
            _ => Alu::Add,
        };
        self.asm().alu_mr(op, true, size, m, s);
    }

    pub(crate) fn fetch(&mut self, op: Rmw, wide: bool, base: u8, off: i16, src: u8) {
        let result = if op == Rmw::CmpXchg { 0 } else { src };
        self.force(base);
        self.force(src);
        if op == Rmw::CmpXchg {
            self.force(0);
        }
        let (mut m, s) = (Mem::at(regs::of(base), i32::from(off)), regs::of(src));
        let d = self.write(result);
        match op {
            Rmw::Xchg => self.asm().xchg(wide, m, s),
            Rmw::Add => self.asm().lock_xadd(wide, m, s),
            Rmw::CmpXchg => {
                self.asm().lock_cmpxchg(wide, m, s);
                if !wide {
                    // Of 32 bits, rax is written only if the comparison failed.
                    self.asm().mov_rr(false, RAX, RAX);
                }
            }
            Rmw::Or | Rmw::And | Rmw::Xor => {
                if m.uses(RAX) {
                    self.asm().lea(true, R9, m);
                    m = Mem::at(R9, 0);
                }
                let operand = if s == RAX { R10 } else { s };
                let op = match op {
                    Rmw::Or => Alu::Or,
                    Rmw::And => Alu::And,
                    _ => Alu::Xor,
                };
                let again = self.layout.label();
                self.asm().mov_rr(true, R10, RAX);
                self.asm().load(if wide { Size::Dw } else { Size::W }, RAX, m);
                self.layout.bind(again);
                let asm = &mut self.layout.asm;
                asm.mov_rr(wide, R11, RAX);
                asm.alu_rr(op, wide, R11, operand);
                asm.lock_cmpxchg(wide, m, R11);
                self.layout.jcc(Cc::Ne, again);
                if d != RAX {
                    self.asm().mov_rr(wide, d, RAX);
                    self.asm().mov_rr(true, RAX, R10);
                }
            }
        }
    }

    /// `d` = the address of a map's handle.
    pub(crate) fn load_handle(&mut self, d: regs::Reg, index: u32) {
        let at = self.handle(index);
        self.asm().load(Size::Dw, d, Mem::at(ENV, abi::MAPS));
        if at != 0 {
            self.asm().alu_ri(Alu::Add, true, d, at);
        }
    }

    /// Distance of a map's handle from the first one.
    pub(crate) fn handle(&self, index: u32) -> i32 {
        self.indices.of(index).and_then(|i| i32::try_from(i).ok()?.checked_mul(abi::MAP_REF_SIZE)).unwrap_or(0)
    }

    /// An address in a map's data.
    pub(crate) fn map_value(&mut self, dst: u8, index: u32, off: u32) {
        let d = self.write(dst);
        let at = self.handle(index) + abi::MAP_REF_DATA;
        self.asm().load(Size::Dw, d, Mem::at(ENV, abi::MAPS));
        self.asm().load(Size::Dw, d, Mem::at(d, at));
        match i32::try_from(off) {
            Ok(0) => {}
            Ok(off) => {
                let sum = super::lazy::Sum { disp: off, ..super::lazy::Sum::of(dst) };
                self.put_off(dst, super::lazy::Lazy::Sum(sum));
            }
            Err(_) => {
                self.asm().mov_ri(R11, u64::from(off));
                self.asm().alu_rr(Alu::Add, true, d, R11);
            }
        }
    }
}

fn width(size: Size) -> u32 {
    match size {
        Size::B => 1,
        Size::H => 2,
        Size::W => 4,
        Size::Dw => 8,
    }
}

fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The machine's operation with a memory operand.
fn alu(op: Bin) -> Option<Alu> {
    Some(match op {
        Bin::Add => Alu::Add,
        Bin::Sub => Alu::Sub,
        Bin::And => Alu::And,
        Bin::Or => Alu::Or,
        Bin::Xor => Alu::Xor,
        Bin::Mul | Bin::Shl | Bin::Shr | Bin::Sar => return None,
    })
}
