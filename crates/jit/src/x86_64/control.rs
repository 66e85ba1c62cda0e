//! Jumps, calls and what ends functions.

use skep_ebpf::program::MapDef;
use skep_runtime::abi;
use skep_runtime::helpers::{self, entry};

use super::asm::{Alu, Cc, Mem, Size};
use super::emit::Emitter;
use super::ir::{Cond, Src, Test, both};
use super::layout::Label;
use super::lazy::{Lazy, bits};
use super::regs::{self, ENV, FP, R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI, RSP, Reg};

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
            if !self.timed {
                self.layout.jcc(Cc::E, over);
                return;
            }
            let (ask, back) = (self.layout.label(), self.layout.label());
            self.layout.jcc(Cc::E, ask);
            self.layout.bind(back);
            self.refuels.push((ask, back));
        }
    }

    /// Out of the way: asks for more where the budget was spent, which changes no register, and goes on there if it got some.
    pub(crate) fn emit_refuels(&mut self) {
        if self.refuels.is_empty() {
            return;
        }
        let (refuel, over) = (self.layout.label(), self.over());
        for (ask, back) in std::mem::take(&mut self.refuels) {
            self.layout.bind(ask);
            self.layout.call(refuel);
            self.layout.jmp(back);
        }
        const SAVED: [Reg; 9] = [RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11];
        self.layout.bind(refuel);
        let asm = self.asm();
        SAVED.iter().for_each(|&r| asm.push(r));
        // The stack may be at any multiple of 8 here.
        asm.mov_rr(true, R11, RSP);
        asm.alu_ri(Alu::And, true, RSP, -16);
        asm.push(R11);
        asm.push(R11);
        asm.load(Size::Dw, R11, Mem::at(ENV, abi::REFUEL));
        asm.mov_rr(true, R9, ENV);
        asm.call_reg(R11);
        asm.load(Size::Dw, RSP, Mem::at(RSP, 0));
        asm.test_rr(true, RAX, RAX);
        // These leave the flags alone.
        SAVED.iter().rev().for_each(|&r| asm.pop(r));
        self.layout.jcc(Cc::E, over);
        self.asm().ret();
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
}

/// True if numbers without sign are compared.
fn unsigned(cc: Cc) -> bool {
    matches!(cc, Cc::E | Cc::Ne | Cc::B | Cc::Ae | Cc::A | Cc::Be)
}
