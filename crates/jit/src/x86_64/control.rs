//! Jumps, calls and what ends functions.

use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_runtime::abi;
use skep_runtime::helpers::{self, entry};

use super::asm::{Alu, Cc, Mem, Shift, Size};
use super::emit::Emitter;
use super::ir::{Cond, Op, Src, Test, both};
use super::layout::Label;
use super::lazy::{Lazy, Sum, bits};
use super::regs::{self, ENV, FP, R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, RSP};

/// `map_lookup_elem`.
const LOOKUP: u32 = 1;
/// `get_smp_processor_id`.
const PROCESSOR: u32 = 8;

impl Emitter<'_> {
    /// Where a spent budget leads.
    pub(crate) fn over(&mut self) -> Label {
        match self.over {
            Some(over) => over,
            None => *self.over.insert(self.layout.label()),
        }
    }

    /// Takes one from the budget.
    pub(crate) fn spend(&mut self) {
        if self.budget {
            let over = self.over();
            self.asm().dec_mem(Mem::at(ENV, abi::FUEL));
            self.layout.jcc(Cc::E, over);
        }
    }

    pub(crate) fn jump_to(&mut self, i: usize, target: u32) {
        if target as usize <= i {
            self.spend();
        }
        self.layout.jmp(Label(target));
    }

    pub(crate) fn branch(&mut self, i: usize, cond: Cond, target: u32) {
        let (cc, test) = match cond.test {
            Test::Cmp(cc) => (cc, false),
            Test::Set => (Cc::Ne, true),
        };
        let low = self.compares_low(i, cond);
        self.branch_on(i, cc, test, cond.wide, cond.a, cond.b, target, low);
    }

    /// True if comparing the low halves alone gives the same.
    fn compares_low(&self, i: usize, cond: Cond) -> bool {
        let known = self.operands(i, cond.b, true);
        match cond.test {
            _ if !cond.wide => false,
            Test::Cmp(cc) if !unsigned(cc) => known.positive(false),
            _ => known.small(),
        }
    }

    /// Jumps to `target` if `a - b` (with `test`, `a & b`) has the condition; with `low` their low halves have.
    #[allow(clippy::too_many_arguments, reason = "an instruction has as many")]
    pub(crate) fn branch_on(
        &mut self,
        i: usize,
        cc: Cc,
        test: bool,
        wide: bool,
        a: u8,
        b: Src,
        target: u32,
        low: bool,
    ) {
        // The operands last: what computes one may set the flags that are asked for.
        let mut later = 1u16 << a;
        if let Src::Reg(b) = b {
            later |= 1 << b;
        }
        while let Some(r) = bits(self.pending & self.after & !later).next() {
            self.force(r);
        }
        while let Some(r) = bits(self.pending & self.after).next() {
            self.force(r);
        }
        let cc = self.compare(cc, test, wide && !low, a, b);
        if self.budget && target as usize <= i {
            let not = self.layout.label();
            self.layout.jcc(cc.not(), not);
            self.jump_to(i, target);
            self.layout.bind(not);
        } else {
            self.layout.jcc(cc, Label(target));
        }
    }

    /// Sets the flags; the condition may become another one of the same meaning.
    fn compare(&mut self, cc: Cc, test: bool, wide: bool, a: u8, b: Src) -> Cc {
        let b = match b {
            Src::Reg(r) => match self.constant(r) {
                Some(k) if !wide => Src::Imm(k as i32),
                Some(k) => i32::try_from(k as i64).map_or(b, Src::Imm),
                None => b,
            },
            b => b,
        };
        // Numbers without sign are the same in half the width, if both are.
        let wide = wide && !(self.zero >> a & 1 != 0 && matches!(b, Src::Imm(0..)) && unsigned(cc));
        match b {
            Src::Imm(k) => {
                self.settle(&[(a, !wide)]);
                let place = self.place(a, !wide);
                if k == 0 && !test {
                    let known = matches!(self.flags, Some((r, w)) if r == a && (w == wide || !w));
                    if !(known && matches!(cc, Cc::E | Cc::Ne)) {
                        self.asm().test_rr(wide, place, place);
                        self.flags = Some((a, wide));
                    }
                    return cc;
                }
                if self.blinds() {
                    self.load_constant(R10, k as i64 as u64);
                    if test {
                        self.asm().test_rr(wide, place, R10);
                    } else {
                        self.asm().alu_rr(Alu::Cmp, wide, place, R10);
                    }
                } else if test {
                    self.asm().test_ri(wide, place, k);
                } else {
                    self.asm().alu_ri(Alu::Cmp, wide, place, k);
                }
            }
            Src::Reg(r) => {
                self.settle(&[(a, !wide), (r, !wide)]);
                let (x, y) = (self.place(a, !wide), self.place(r, !wide));
                if test {
                    self.asm().test_rr(wide, x, y);
                } else {
                    self.asm().alu_rr(Alu::Cmp, wide, x, y);
                }
            }
        }
        self.flags = None;
        cc
    }

    /// Unless the condition holds, `dst = src`: a conditional move.
    pub(crate) fn select(&mut self, i: usize, mut cond: Cond, wide: bool, dst: u8, src: Src) {
        let upper = self.upper_live(dst);
        cond.wide &= !self.compares_low(i, cond);
        self.force(dst);
        self.spill(dst);
        let mut regs: Vec<(u8, bool)> = Vec::with_capacity(3);
        regs.push((cond.a, !cond.wide));
        // A number that fits in the comparison is not loaded; any other one now, before the operands have places.
        let fits = |k: u64| !cond.wide || i32::try_from(k as i64).is_ok();
        if let Src::Reg(b) = cond.b
            && !self.constant(b).is_some_and(fits)
        {
            regs.push((b, !cond.wide));
        }
        let src = match src {
            Src::Reg(r) => match self.constant(r) {
                Some(k) => Err(if wide { k } else { k & 0xffff_ffff }),
                None => {
                    // All of it must be in its place where all of it is moved.
                    regs.push((r, !(upper && (wide || self.zero >> r & 1 != 0))));
                    Ok(r)
                }
            },
            Src::Imm(k) => Err(if wide { k as i64 as u64 } else { u64::from(k as u32) }),
        };
        self.settle(&regs);
        let value = match src {
            Err(k) => {
                self.load_constant(R11, k);
                R11
            }
            Ok(r) => {
                let zero = self.zero >> r & 1 != 0;
                let place = self.place(r, !(upper && (wide || zero)));
                if wide || !upper || zero {
                    place
                } else {
                    self.asm().mov_rr(false, R11, place);
                    R11
                }
            }
        };
        self.flags = None;
        let (cc, test) = match cond.test {
            Test::Cmp(cc) => (cc, false),
            Test::Set => (Cc::Ne, true),
        };
        let cc = self.compare(cc, test, cond.wide, cond.a, cond.b);
        let d = self.write(dst);
        self.asm().cmov(cc.not(), upper, d, value);
        // The flags are those of what was in it before.
        self.flags = self.flags.filter(|(r, _)| *r != dst);
    }

    /// Puts the arguments of a call in their places and everything else where it survives the call.
    pub(crate) fn arguments(&mut self, arguments: u16) {
        self.forget(self.after & !0x3f | arguments);
        while let Some(r) = bits(self.pending & arguments).next() {
            self.force(r);
        }
        let survivors = self.pending;
        for r in bits(survivors) {
            if self.lazy(r).refs() & 0x3f != 0 {
                self.force(r);
            }
        }
    }

    /// Calls a helper, or does what it would do; returns how many instructions that took.
    pub(crate) fn helper(&mut self, i: usize, end: usize, id: u32, args: u8) -> usize {
        match id {
            PROCESSOR if self.optimise => {
                self.arguments(0);
                self.asm().load(Size::W, RAX, Mem::at(ENV, abi::SLOT));
                return 1;
            }
            LOOKUP if self.optimise => {
                if let Some(done) = self.array_lookup(i, end) {
                    return done;
                }
            }
            _ => {}
        }
        let known = self.known_map().filter(|_| self.optimise);
        let sized = known.and_then(|map| helpers::sized_index(id, map.map_type, map.key_size));
        self.arguments((1u16 << (args + 1)) - 2);
        self.spend();
        self.call_out(sized.or(helpers::index(id)).unwrap_or(0));
        1
    }

    /// The map whose handle r1 is, if that is known here.
    fn known_map(&self) -> Option<&MapDef> {
        match self.lazy(1) {
            Lazy::Map { index } => self.maps.get(index as usize),
            _ => None,
        }
    }

    /// Calls an entry of the run's table with the arguments in place.
    pub(crate) fn call_out(&mut self, entry: u32) {
        let asm = self.asm();
        asm.load(Size::Dw, R11, Mem::at(ENV, abi::TABLE));
        asm.load(Size::Dw, R11, Mem::at(R11, entry as i32 * 8));
        asm.mov_rr(true, R9, ENV);
        // Measured: faster than a call through memory.
        asm.call_reg(R11);
    }

    /// A look-up in an array: where the value is follows from the key. The test for null that comes next is that of the
    /// key. `None` if the map is not such a one.
    fn array_lookup(&mut self, i: usize, end: usize) -> Option<usize> {
        let (known, key) = self.call_site(i);
        let index = match self.lazy(1) {
            Lazy::Map { index } => index,
            _ => known?,
        };
        let map = self.maps.get(index as usize)?;
        let per_cpu = match map.map_type {
            MapType::Array => false,
            MapType::PercpuArray => true,
            _ => return None,
        };
        let (entries, stride) = (map.max_entries, i32::try_from(map.value_size.checked_next_multiple_of(8)?).ok()?);
        let at = self.handle(index);
        if let Some(key) = key.filter(|k| *k < u64::from(entries) && known == Some(index))
            && let Some(done) = self.array_element(i, end, at, per_cpu, stride, key as i32)
        {
            return Some(done);
        }
        let key = self.key_address();
        self.arguments(0);
        let checked = self.null_check(i, end);
        if checked.is_some() {
            self.look_at(i + 1);
            // All but r0, which is next.
            while let Some(r) = bits(self.pending & self.after).next() {
                self.force(r);
            }
        }
        let (null, done) = (self.layout.label(), self.layout.label());
        let asm = &mut self.layout.asm;
        asm.load(Size::W, RAX, key);
        asm.load(Size::Dw, R11, Mem::at(ENV, abi::MAPS));
        asm.alu_ri(Alu::Cmp, false, RAX, entries as i32);
        self.layout.jcc(Cc::Ae, null);
        let asm = &mut self.layout.asm;
        if per_cpu {
            // How far elements are apart depends on how many slots there are: the header says it.
            asm.load(Size::Dw, R10, Mem::at(R11, at + abi::MAP_REF_HEADER));
            asm.load(Size::Dw, R9, Mem::at(R10, abi::HEADER_STRIDE));
            asm.imul_rr(true, RAX, R9);
        }
        asm.load(Size::Dw, R11, Mem::at(R11, at + abi::MAP_REF_DATA));
        if per_cpu {
            asm.alu_rr(Alu::Add, true, RAX, R11);
            asm.load(Size::W, R11, Mem::at(ENV, abi::SLOT));
            self.scaled(R11, RAX, stride);
        } else {
            self.scaled(RAX, R11, stride);
        }
        self.layout.bind(done);
        let back = match checked {
            None => done,
            Some((true, target)) => target,
            Some((false, target)) => {
                self.jump_to(i + 1, target.0);
                Label(i as u32 + 2)
            }
        };
        // The way without a value is at the end of the function.
        self.nulls.push((null, back));
        Some(if checked.is_some() { 2 } else { 1 })
    }

    /// rax = `base` + `index` * `stride`; `index` is spoilt, and one of both is rax.
    fn scaled(&mut self, index: regs::Reg, base: regs::Reg, stride: i32) {
        let asm = self.asm();
        match stride {
            8 => return asm.lea(true, RAX, Mem { base: Some(base), index: Some((index, 3)), disp: 0 }),
            s if s.count_ones() == 1 => asm.shift_ri(Shift::Shl, true, index, s.trailing_zeros() as u8),
            s => asm.imul_rri(true, index, index, s),
        }
        asm.alu_rr(Alu::Add, true, RAX, if index == RAX { base } else { index });
    }

    /// An element of an array that is there, by its known index: nothing is checked, and the place in the array becomes
    /// part of the addresses that are made of it.
    fn array_element(&mut self, i: usize, end: usize, at: i32, per_cpu: bool, stride: i32, key: i32) -> Option<usize> {
        let disp = if per_cpu { 0 } else { key.checked_mul(stride)? };
        self.arguments(0);
        let asm = &mut self.layout.asm;
        asm.load(Size::Dw, R11, Mem::at(ENV, abi::MAPS));
        if per_cpu {
            asm.load(Size::W, RAX, Mem::at(ENV, abi::SLOT));
            if key != 0 {
                asm.load(Size::Dw, R10, Mem::at(R11, at + abi::MAP_REF_HEADER));
                asm.load(Size::Dw, R10, Mem::at(R10, abi::HEADER_STRIDE));
                asm.imul_rri(true, R10, R10, key);
            }
            asm.load(Size::Dw, R11, Mem::at(R11, at + abi::MAP_REF_DATA));
            self.scaled(RAX, R11, stride);
            if key != 0 {
                self.asm().alu_rr(Alu::Add, true, RAX, R10);
            }
        } else {
            asm.load(Size::Dw, RAX, Mem::at(R11, at + abi::MAP_REF_DATA));
        }
        if disp != 0 && self.after & 1 != 0 {
            self.put_off(0, Lazy::Sum(Sum { disp, ..Sum::of(0) }));
        }
        // The value is there: a check is none.
        match self.null_check(i, end) {
            None => Some(1),
            Some((null, target)) => {
                self.look_at(i + 1);
                self.settle_all();
                if !null {
                    self.jump_to(i + 1, target.0);
                }
                Some(2)
            }
        }
    }

    /// The branch behind a look-up, if it asks whether there is a value: true if it is taken when there is none, and where
    /// to.
    fn null_check(&self, i: usize, end: usize) -> Option<(bool, Label)> {
        if i + 1 >= end {
            return None;
        }
        let Op::Branch { cond, target } = self.ops.op(i + 1) else { return None };
        let Test::Cmp(cc @ (Cc::E | Cc::Ne)) = cond.test else { return None };
        let back = target as usize <= i + 1;
        let fits = cond.wide && (cond.a, cond.b) == (0, Src::Imm(0)) && !(self.budget && back);
        fits.then_some((cc == Cc::E, Label(target)))
    }

    pub(crate) fn call_function(&mut self, target: u32) {
        let Some(n) = self.flow.function_at(target) else { return };
        let callee = &self.flow.functions[n];
        let cell = self.cells.get(n).copied().flatten();
        let needs = self.flow.needs(n);
        let wanted = (1..=5u8).filter(|&r| needs & both(r) != 0).fold(0, |m, r| m | 1 << r);
        self.arguments(wanted);
        // The callee's frame is below that of this function.
        let frame = if callee.uses_fp || cell.is_some() { self.function.frame as i32 } else { 0 };
        self.spend();
        if frame != 0 {
            self.asm().alu_ri(Alu::Add, true, FP, -frame);
        }
        self.call_entered(n);
        if frame != 0 {
            self.asm().alu_ri(Alu::Sub, true, FP, -frame);
        }
    }

    /// A tail call: what this function has pushed is taken back, and the other program returns to its caller.
    pub(crate) fn tail_call(&mut self) {
        self.goes_on = true;
        self.arguments(0b1100);
        self.spend();
        let asm = self.asm();
        // Arguments: context, map, index, frame pointer, stack pointer.
        asm.mov_rr(true, RCX, FP);
        asm.mov_rr(true, R8, RSP);
        self.call_out(entry::TAIL_CALL);
        let failed = self.layout.label();
        self.asm().test_rr(true, RAX, RAX);
        self.layout.jcc(Cc::E, failed);
        let asm = self.asm();
        asm.mov_rr(true, RDI, ENV);
        asm.load(Size::Dw, RSI, Mem::at(ENV, abi::CTX));
        asm.mov_rr(true, RDX, FP);
        self.pop_all();
        self.asm().jmp_reg(RAX);
        self.layout.bind(failed);
    }

    /// A load from the packet; where there is none the function ends with 0.
    pub(crate) fn packet(&mut self, size: Size, index: Option<u8>, at: i32) {
        self.force(6);
        let place = index.map(|r| self.read(r, true));
        let place = place.map(|p| (p, regs::of(6)));
        match place {
            Some((p, _)) if !self.blinds() => self.asm().lea(false, R9, Mem::at(p, at)),
            Some((p, _)) => {
                self.asm().mov_rr(false, R9, p);
                self.alu_imm(Alu::Add, false, R9, at);
            }
            None => self.load_constant(R9, u64::from(at as u32)),
        }
        self.arguments(0);
        self.spend();
        let bytes = match size {
            Size::B => 1,
            Size::H => 2,
            _ => 4,
        };
        let asm = self.asm();
        asm.mov_rr(true, RDI, regs::of(6));
        asm.mov_rr(false, RSI, R9);
        asm.mov_ri(RDX, bytes);
        self.call_out(entry::PACKET);
        let fail = match self.fail {
            Some(fail) => fail,
            None => *self.fail.insert(self.layout.label()),
        };
        self.asm().test_rr(true, RAX, RAX);
        self.layout.jcc(Cc::S, fail);
    }

    /// The address in r2, without putting it in its place.
    fn key_address(&mut self) -> Mem {
        let sum = self.sum(2);
        if !sum.wide || sum.base.is_none() {
            self.force(2);
        }
        let Sum { base, index, disp, .. } = self.sum(2);
        Mem { base: base.map(regs::of), index: index.map(|(i, k)| (regs::of(i), k)), disp }
    }
}

/// True if numbers without sign are compared.
fn unsigned(cc: Cc) -> bool {
    matches!(cc, Cc::E | Cc::Ne | Cc::B | Cc::Ae | Cc::A | Cc::Be)
}
