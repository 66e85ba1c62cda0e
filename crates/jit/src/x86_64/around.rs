//! Machine code in front of a function: it runs programs before and behind it, or goes to another function.
//!
//! It is entered as functions are: arguments where the calling convention has them, the environment in [`ENV`], the frame
//! pointer in [`FP`], the stack at a multiple of 16 in front of the return address.

use skep_ebpf::uapi::ProgType;
use skep_runtime::abi;
use skep_runtime::around::{Caller, MAX_ARGS, RETURNED};
use skep_runtime::helpers::entry;
use skep_runtime::image::CODE_OFFSET;

use super::asm::{Alu, Cc, Mem, Size};
use super::layout::{Label, Layout};
use super::regs::{ENV, FP, R8, R9, R11, RAX, RCX, RDI, RDX, RSI, RSP, Reg};
use crate::Place;
use crate::around::Around;

/// Where the arguments of functions are.
const ARGS: [Reg; MAX_ARGS] = [RDI, RSI, RDX, RCX, R8];
/// On the stack: what the environment had, then what programs get, as [`skep_runtime::around`] has it.
const KEPT_CTX: i32 = 0;
const KEPT_COOKIE: i32 = 8;
const KEPT_TYPE: i32 = 16;
const KEPT_TAIL_CALLS: i32 = 20;
/// When a run began that is counted.
const BEGUN: i32 = 24;
/// Where its code is meanwhile.
const CODE: i32 = 32;
const HEAD: i32 = 40;
const CTX: i32 = HEAD + skep_runtime::around::CONTEXT_HEAD as i32;
/// Where these are in the environment, and their sizes.
const KEPT: [(i32, i32, Size); 4] = [
    (KEPT_CTX, abi::CTX, Size::Dw),
    (KEPT_COOKIE, abi::COOKIE, Size::Dw),
    (KEPT_TYPE, abi::PROG_TYPE, Size::W),
    (KEPT_TAIL_CALLS, abi::TAIL_CALLS, Size::W),
];
/// All of that; with the return address a multiple of 16.
const FRAME: i32 = CTX + 8 * (MAX_ARGS as i32 + 1);

const _: () = assert!(FRAME % 16 == 8);

/// Code at the start of an image whose main function is called as other functions are: how it is entered as a program.
pub(crate) fn enter_as_program(layout: &mut Layout, main: Label) {
    let asm = &mut layout.asm;
    asm.push(FP);
    asm.push(ENV);
    // The stack is at a multiple of 16 where the function is called.
    asm.push(RCX);
    asm.mov_rr(true, ENV, RDI);
    asm.mov_rr(true, FP, RDX);
    asm.mov_rr(true, RDI, RSI);
    layout.call(main);
    let asm = &mut layout.asm;
    asm.pop(RCX);
    asm.pop(ENV);
    asm.pop(FP);
    asm.ret();
}

struct Maker {
    layout: Layout,
    /// Jumps out of the image: how many bytes in front of their distances, and where they lead.
    outward: Vec<(Label, Place)>,
}

/// The code, and where in it functions' cells lead; its image is to be at `at` in the control arena.
pub(crate) fn around(what: &Around<'_>, at: u64) -> (Vec<u8>, u32) {
    let mut maker = Maker { layout: Layout::new(0), outward: Vec::new() };
    let entry = maker.layout.label();
    enter_as_program(&mut maker.layout, entry);
    maker.layout.align(16);
    maker.layout.bind(entry);
    maker.function(what);
    let outward = std::mem::take(&mut maker.outward);
    let mut placed = maker.layout.finish();
    for (label, place) in outward {
        // The label is behind the distance.
        let Some(end) = placed.offset(label) else { continue };
        let from = at + CODE_OFFSET as u64 + u64::from(end);
        let distance = place.at.wrapping_sub(from) as i32;
        if let Some(bytes) = placed.code.get_mut(end as usize - 4..end as usize) {
            bytes.copy_from_slice(&distance.to_le_bytes());
        }
    }
    let entry = placed.offset(entry).unwrap_or(0);
    (placed.code, entry)
}

impl Maker {
    fn function(&mut self, what: &Around<'_>) {
        let otherwise = self.layout.label();
        let programs = !what.before.is_empty() || !what.behind.is_empty();
        if what.change != 0 {
            let asm = &mut self.layout.asm;
            asm.mov_ri(R11, what.change);
            asm.alu_rm(Alu::Cmp, true, R11, Mem::at(ENV, abi::CHANGE));
            self.layout.jcc(Cc::A, otherwise);
        }
        if programs {
            let asm = &mut self.layout.asm;
            // The area begins with the stack.
            asm.load(Size::Dw, R11, Mem::at(ENV, abi::AREA));
            asm.alu_ri(Alu::Add, true, R11, what.room.0 as i32);
            asm.alu_rr(Alu::Cmp, true, FP, R11);
            self.layout.jcc(Cc::B, otherwise);
            self.traced(what);
        } else {
            self.go(what.body, false);
        }
        self.layout.bind(otherwise);
        self.go(what.otherwise, false);
    }

    /// The function with programs around it.
    fn traced(&mut self, what: &Around<'_>) {
        let asm = &mut self.layout.asm;
        asm.alu_ri(Alu::Sub, true, RSP, FRAME);
        for (n, reg) in ARGS.into_iter().enumerate() {
            asm.store(Size::Dw, Mem::at(RSP, CTX + 8 * n as i32), reg);
        }
        asm.mov_ri(R11, what.ip);
        asm.store(Size::Dw, Mem::at(RSP, HEAD), R11);
        asm.store_imm(Size::Dw, Mem::at(RSP, HEAD + 8), i32::from(what.args));
        for (kept, field, size) in KEPT {
            asm.load(size, R11, Mem::at(ENV, field));
            asm.store(size, Mem::at(RSP, kept), R11);
        }
        if !what.before.is_empty() {
            self.programs(what.before);
            let asm = &mut self.layout.asm;
            for (n, reg) in ARGS.into_iter().enumerate() {
                asm.load(Size::Dw, reg, Mem::at(RSP, CTX + 8 * n as i32));
            }
        }
        if what.behind.is_empty() {
            self.layout.asm.alu_ri(Alu::Add, true, RSP, FRAME);
            self.go(what.body, false);
            return;
        }
        self.go(what.body, true);
        let result = Mem::at(RSP, CTX + 8 * i32::from(what.args));
        let asm = &mut self.layout.asm;
        asm.store(Size::Dw, result, RAX);
        asm.mov_ri(R11, RETURNED | u64::from(what.args));
        asm.store(Size::Dw, Mem::at(RSP, HEAD + 8), R11);
        self.programs(what.behind);
        let asm = &mut self.layout.asm;
        asm.load(Size::Dw, RAX, result);
        asm.alu_ri(Alu::Add, true, RSP, FRAME);
        asm.ret();
    }

    /// Calls programs with the context that is on the stack, and gives the environment back what it had.
    fn programs(&mut self, programs: &[Caller]) {
        let asm = &mut self.layout.asm;
        asm.lea(true, R11, Mem::at(RSP, CTX));
        asm.store(Size::Dw, Mem::at(ENV, abi::CTX), R11);
        asm.store_imm(Size::W, Mem::at(ENV, abi::PROG_TYPE), ProgType::Tracing as i32);
        for program in programs {
            let asm = &mut self.layout.asm;
            let cell = abi::prog_cell(program.prog);
            // Each has tail calls of its own.
            asm.store_imm(Size::W, Mem::at(ENV, abi::TAIL_CALLS), 0);
            match i32::try_from(program.cookie as i64) {
                Ok(cookie) => asm.store_imm(Size::Dw, Mem::at(ENV, abi::COOKIE), cookie),
                Err(_) => {
                    asm.mov_ri(R11, program.cookie);
                    asm.store(Size::Dw, Mem::at(ENV, abi::COOKIE), R11);
                }
            }
            asm.load(Size::Dw, R11, Mem::at(ENV, abi::CONTROL));
            // The cells' own place is in the head.
            asm.load(Size::W, RAX, Mem::at(R11, abi::CONTROL_PROGS));
            asm.alu_rr(Alu::Add, true, RAX, R11);
            asm.load(Size::Dw, RAX, Mem::at(RAX, cell));
            // It may have gone since this code was entered.
            asm.test_rr(true, RAX, RAX);
            let gone = self.layout.label();
            self.layout.jcc(Cc::E, gone);
            let asm = &mut self.layout.asm;
            if program.counted != 0 {
                // Where its code is waits on the stack.
                asm.lea(true, RAX, Mem { base: Some(RAX), index: Some((R11, 0)), disp: CODE_OFFSET as i32 });
                asm.store(Size::Dw, Mem::at(RSP, CODE), RAX);
                self.call_out(entry::BEGUN);
                let asm = &mut self.layout.asm;
                asm.store(Size::Dw, Mem::at(RSP, BEGUN), RAX);
                asm.load(Size::Dw, RAX, Mem::at(RSP, CODE));
            } else {
                asm.lea(true, RAX, Mem { base: Some(RAX), index: Some((R11, 0)), disp: CODE_OFFSET as i32 });
            }
            let asm = &mut self.layout.asm;
            asm.mov_rr(true, RDI, ENV);
            asm.lea(true, RSI, Mem::at(RSP, CTX));
            asm.mov_rr(true, RDX, FP);
            asm.call_reg(RAX);
            if let Some(link) = program.counted.checked_sub(1) {
                asm.mov_ri(RDI, u64::from(link));
                asm.load(Size::Dw, RSI, Mem::at(RSP, BEGUN));
                self.call_out(entry::RAN);
            }
            self.layout.bind(gone);
        }
        let asm = &mut self.layout.asm;
        for (kept, field, size) in KEPT {
            asm.load(size, R11, Mem::at(RSP, kept));
            asm.store(size, Mem::at(ENV, field), R11);
        }
    }

    /// Calls an entry of the run's table with the arguments in place.
    fn call_out(&mut self, entry: u32) {
        let asm = &mut self.layout.asm;
        asm.load(Size::Dw, R11, Mem::at(ENV, abi::TABLE));
        asm.load(Size::Dw, R11, Mem::at(R11, entry as i32 * 8));
        asm.mov_rr(true, R9, ENV);
        asm.call_reg(R11);
    }

    /// Goes to code elsewhere in the arena, with the arguments in place; with `back` it is called.
    fn go(&mut self, place: Place, back: bool) {
        let end = self.layout.label();
        let asm = &mut self.layout.asm;
        if place.program {
            asm.mov_rr(true, RSI, RDI);
            asm.mov_rr(true, RDI, ENV);
            asm.mov_rr(true, RDX, FP);
        }
        asm.bytes.push(if back { 0xe8 } else { 0xe9 });
        asm.bytes.extend([0; 4]);
        self.layout.bind(end);
        self.outward.push((end, place));
    }
}
