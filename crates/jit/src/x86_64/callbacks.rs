//! Functions that helpers call, loops of them, `may_goto`, and exceptions.
//!
//! A main function that exceptions may end in has on its stack, below the registers that it saved, what
//! [`THROW_SP`](abi::THROW_SP) was before and its frame pointer. Whoever throws loads the stack pointer from there and
//! goes on at the main function's landing.

use skep_ebpf::Errno;
use skep_runtime::abi;

use super::asm::{Alu, Cc, Mem, Size};
use super::emit::Emitter;
use super::ir::{HOST, both};
use super::layout::Label;
use super::lazy::Lazy;
use super::regs::{ENV, FP, R9, R10, R11, R13, R14, RAX, RBX, RDI, RDX, RSI, RSP};

impl Emitter<'_> {
    pub(crate) fn function_address(&mut self, dst: u8, start: u32) {
        let Some(n) = self.flow.function_at(start) else { return };
        let d = self.write(dst);
        let at = match self.cells.get(n).copied().flatten() {
            Some(cell) => self.gate(cell),
            None => self.entries[n],
        };
        self.layout.lea(d, at);
    }

    /// Code that goes where a cell leads.
    fn gate(&mut self, cell: i32) -> Label {
        if let Some(&(at, _)) = self.gates.iter().find(|g| g.1 == cell) {
            return at;
        }
        let at = self.layout.label();
        self.gates.push((at, cell));
        at
    }

    pub(crate) fn emit_gates(&mut self) {
        for (at, cell) in std::mem::take(&mut self.gates) {
            self.layout.bind(at);
            self.load_cell(cell);
            self.asm().jmp_reg(R11);
        }
    }

    /// Loads where a cell leads into r11.
    pub(crate) fn load_cell(&mut self, cell: i32) {
        let asm = self.asm();
        asm.load(Size::Dw, R10, Mem::at(ENV, abi::CONTROL));
        asm.load(Size::Dw, R11, Mem::at(R10, cell));
        asm.alu_rr(Alu::Add, true, R11, R10);
    }

    /// Calls a function, through its cell if it has one.
    pub(crate) fn call_entered(&mut self, n: usize) {
        match self.cells.get(n).copied().flatten() {
            Some(cell) => {
                self.load_cell(cell);
                self.asm().call_reg(R11);
            }
            None => self.layout.call(self.entries[n]),
        }
    }

    /// Calls a function of the runtime.
    pub(crate) fn call_entry(&mut self, entry: u32, args: u8, calls_back: bool) {
        self.arguments((1u16 << (args + 1)) - 2);
        self.spend();
        if calls_back {
            let frame = self.function.frame as i32;
            let asm = self.asm();
            asm.lea(true, R11, Mem::at(FP, -frame));
            asm.store(Size::Dw, Mem::at(ENV, abi::CALLBACK_FP), R11);
        }
        match entry.checked_sub(HOST) {
            Some(index) => self.call_host(index),
            None => self.call_out(entry),
        }
        if calls_back {
            self.end_if_over();
        }
    }

    /// Calls a function of the application, which finds what is its own by the number that stands in the environment.
    fn call_host(&mut self, index: u32) {
        let asm = self.asm();
        asm.store_imm(Size::W, Mem::at(ENV, abi::FUNCTION), index as i32);
        asm.load(Size::Dw, R11, Mem::at(ENV, abi::FUNCTIONS));
        asm.load(Size::Dw, R11, Mem::at(R11, abi::host_fn(index)));
        asm.mov_rr(true, R9, ENV);
        asm.call_reg(R11);
    }

    /// Calls a function of the runtime that may end the run.
    pub(crate) fn call_ending(&mut self, entry: u32, args: u8) {
        self.call_entry(entry, args, false);
        self.end_if_over();
    }

    fn end_if_over(&mut self) {
        let over = self.over();
        self.asm().alu_mi(Alu::Cmp, Size::B, Mem::at(ENV, abi::OVER_BUDGET), 0);
        self.layout.jcc(Cc::Ne, over);
    }

    /// A loop of calls: the number of rounds is in r1, what the function gets besides its round's number in r3.
    pub(crate) fn call_loop(&mut self, start: u32) {
        let Some(n) = self.flow.function_at(start) else { return };
        let callee = &self.flow.functions[n];
        self.arguments(0b1010);
        // Registers that calls preserve, given back behind the loop.
        let (round, rounds, ctx) = (RBX, R13, R14);
        let (head, check, many, done) =
            (self.layout.label(), self.layout.label(), self.layout.label(), self.layout.label());
        let cell = self.cells.get(n).is_some_and(Option::is_some);
        let frame = if callee.uses_fp || cell { self.function.frame as i32 } else { 0 };
        self.spend();
        let asm = &mut self.layout.asm;
        asm.alu_ri(Alu::Cmp, false, RDI, abi::MAX_LOOPS as i32);
        self.layout.jcc(Cc::A, many);
        let asm = &mut self.layout.asm;
        asm.push(round);
        asm.push(rounds);
        asm.push(ctx);
        asm.push(R9);
        asm.mov_rr(false, rounds, RDI);
        asm.mov_rr(true, ctx, RDX);
        asm.zero(round);
        if frame != 0 {
            asm.alu_ri(Alu::Add, true, FP, -frame);
        }
        self.layout.jmp(check);
        self.layout.bind(head);
        self.spend();
        let wanted = self.flow.needs(n);
        let asm = &mut self.layout.asm;
        if wanted & both(1) != 0 {
            asm.mov_rr(true, RDI, round);
        }
        if wanted & both(2) != 0 {
            asm.mov_rr(true, RSI, ctx);
        }
        self.call_entered(n);
        let asm = &mut self.layout.asm;
        asm.alu_ri(Alu::Add, true, round, 1);
        asm.test_rr(true, RAX, RAX);
        self.layout.jcc(Cc::Ne, done);
        self.layout.bind(check);
        self.layout.asm.alu_rr(Alu::Cmp, true, round, rounds);
        self.layout.jcc(Cc::B, head);
        self.layout.bind(done);
        let asm = &mut self.layout.asm;
        if frame != 0 {
            asm.alu_ri(Alu::Sub, true, FP, -frame);
        }
        asm.mov_rr(true, RAX, round);
        asm.pop(R9);
        asm.pop(ctx);
        asm.pop(rounds);
        asm.pop(round);
        let behind = self.layout.label();
        self.layout.bind(behind);
        self.too_many.push((many, behind));
        self.flags = None;
    }

    /// Loops of too many rounds: an errno, at the end of the function.
    pub(crate) fn emit_too_many(&mut self) {
        for (many, behind) in std::mem::take(&mut self.too_many) {
            self.layout.bind(many);
            self.asm().mov_ri(RAX, Errno::E2BIG.neg() as u64);
            self.layout.jmp(behind);
        }
    }

    /// Where the function counts the rounds that it may still go.
    fn rounds(&self) -> Mem {
        Mem::at(FP, -(self.function.frame as i32))
    }

    /// At the start of a function that has a `may_goto`.
    pub(crate) fn prepare_loops(&mut self) {
        if self.function.counts {
            let m = self.rounds();
            self.asm().store_imm(Size::Dw, m, abi::MAY_GOTO_ROUNDS as i32);
        }
    }

    pub(crate) fn may_goto(&mut self, i: usize, target: u32) {
        self.settle_all();
        let m = self.rounds();
        self.asm().dec_mem(m);
        self.flags = None;
        if self.budget && target as usize <= i {
            let not = self.layout.label();
            self.layout.jcc(Cc::Ns, not);
            self.jump_to(i, target);
            self.layout.bind(not);
        } else {
            self.layout.jcc(Cc::S, Label(target));
        }
    }

    /// At the start of a main function that exceptions may end in.
    pub(crate) fn prepare_landing(&mut self) {
        if self.lands {
            let asm = &mut self.layout.asm;
            asm.load(Size::Dw, R11, Mem::at(ENV, abi::THROW_SP));
            asm.push(R11);
            asm.push(FP);
            asm.store(Size::Dw, Mem::at(ENV, abi::THROW_SP), RSP);
        }
    }

    /// Where it returns.
    pub(crate) fn forget_landing(&mut self) {
        if self.lands {
            let asm = &mut self.layout.asm;
            asm.pop(R11);
            asm.pop(R11);
            asm.store(Size::Dw, Mem::at(ENV, abi::THROW_SP), R11);
        }
    }

    /// Where exceptions end: the number thrown is in the place of r1.
    pub(crate) fn land(&mut self) {
        let Some(landing) = self.landing.filter(|_| self.lands) else { return };
        self.layout.bind(landing);
        self.lazy = [Lazy::No; 16];
        self.pending = 0;
        let asm = &mut self.layout.asm;
        asm.load(Size::Dw, RSP, Mem::at(ENV, abi::THROW_SP));
        asm.load(Size::Dw, FP, Mem::at(RSP, 0));
        match self.catches.and_then(|f| self.entries.get(f as usize).copied()) {
            Some(entry) => self.layout.call(entry),
            None => self.asm().mov_rr(true, RAX, RDI),
        }
        self.epilogue();
    }

    pub(crate) fn throw(&mut self) {
        self.arguments(0b10);
        if let Some(landing) = self.landing {
            self.layout.jmp(landing);
        }
    }
}
