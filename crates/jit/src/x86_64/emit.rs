//! The translation of a program: state, functions and blocks.

use skep_ebpf::insn::class;
use skep_ebpf::program::MapDef;
use skep_runtime::abi;
use skep_verifier::Rewritten;
use skep_verifier::rewrite::Memory;

use super::asm::{Alu, Asm, Mem};
use super::flow::{Block, Flow, Function};
use super::ir::{self, Bin, Kind, Live, Op, Ops, Src};
use super::layout::{Label, Layout};
use super::lazy::{Lazy, bits};
use super::regs::{self, ENV, FP, R10, RAX, RCX, RDI, RDX, RSI, RSP, Reg};
use crate::tuning::{Features, Tuning};
use crate::{MapIndices, Options, Source};

/// Loops start at multiples of this.
const LOOP_ALIGN: u8 = 16;

/// What is known while code is emitted.
pub(crate) struct Emitter<'a> {
    pub(crate) ops: &'a Ops,
    pub(crate) flow: &'a Flow,
    pub(crate) maps: &'a [MapDef],
    /// What the verifier knows of the instructions.
    pub(crate) known: Option<&'a Rewritten>,
    /// The same, if some loads are from kernel objects.
    guarded: Option<&'a Rewritten>,
    pub(crate) indices: &'a MapIndices,
    /// Where the cell of each function is, if they have any.
    pub(crate) cells: Vec<Option<i32>>,
    /// The main function is called as others are.
    extends: bool,
    pub(crate) features: Features,
    pub(crate) optimise: bool,
    pub(crate) budget: bool,
    pub(crate) layout: Layout,
    /// Formulas of registers that are not in their place, and which those are.
    pub(crate) lazy: [Lazy; 16],
    pub(crate) pending: u16,
    /// The registers whose formulas refer to each register, and maybe others.
    pub(crate) users: [u16; 16],
    /// What is live behind the instruction, by halves and as registers.
    pub(crate) live: Live,
    pub(crate) after: u16,
    /// Registers whose upper half is zero.
    pub(crate) zero: u16,
    /// The zero flag tells whether this register (of this width) is zero.
    pub(crate) flags: Option<(u8, bool)>,
    /// The function that is emitted.
    pub(crate) function: &'a Function,
    pub(crate) pushed: Vec<Reg>,
    /// Where its blocks leave it with 0.
    pub(crate) fail: Option<Label>,
    /// Where its look-ups that find nothing go, and where they go on.
    pub(crate) nulls: Vec<(Label, Label)>,
    /// Where its loops of too many rounds go, and where they go on.
    pub(crate) too_many: Vec<(Label, Label)>,
    /// Its first epilogue.
    leave: Option<Label>,
    /// The block that formulas are carried to, from the one in front of it.
    carried: Option<u32>,
    /// How many ways lead to each block of the function, once somebody has asked.
    ways: Vec<u8>,
    /// Where a spent budget leads.
    pub(crate) over: Option<Label>,
    /// A spent budget asks first; where it does, and where it goes on.
    pub(crate) timed: bool,
    pub(crate) refuels: Vec<(Label, Label)>,
    /// It may end in the middle of code that it goes on with.
    pub(crate) goes_on: bool,
    /// Entry of each function.
    pub(crate) entries: Vec<Label>,
    /// What goes to cells: where it is, and the cell.
    pub(crate) gates: Vec<(Label, i32)>,
    /// Where exceptions end, in the main function, if there are any.
    pub(crate) landing: Option<Label>,
    /// The function that they end in, by its index in the program.
    pub(crate) catches: Option<u32>,
    /// The main function is emitted, and exceptions may end in it.
    pub(crate) lands: bool,
    blinding: Option<u64>,
}

/// True if an operation may take from the budget: all but those that only compute, and jumps forward.
fn may_spend(i: usize, op: &Op) -> bool {
    match *op {
        Op::Jump { target } | Op::Branch { target, .. } => target as usize <= i,
        Op::Nop | Op::Trap | Op::Exit | Op::Bin { .. } | Op::Div { .. } | Op::Neg { .. } | Op::Mov { .. } => false,
        Op::MovSx { .. } | Op::Swap { .. } | Op::Low16 { .. } | Op::Imm64 { .. } | Op::Select { .. } => false,
        Op::Map { .. } | Op::MapValue { .. } | Op::Load { .. } | Op::Store { .. } => false,
        Op::Atomic { .. } | Op::Fetch { .. } => false,
        _ => true,
    }
}

/// True if runs must be counted: those of a program without loops that takes little from the budget need not be.
fn must_count(ops: &Ops, source: &Source<'_>, uncounted: u32) -> bool {
    let mut taken = 0;
    for &i in source.marks.iter() {
        match ops.op(i as usize) {
            Op::Helper { .. } | Op::Entry { calls_back: false, .. } => taken += 1,
            op if may_spend(i as usize, &op) => return true,
            _ => {}
        }
    }
    taken > uncounted
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(
        ops: &'a Ops,
        flow: &'a Flow,
        source: &Source<'a>,
        options: &'a Options,
        tuning: &Tuning,
    ) -> Emitter<'a> {
        let mut layout = Layout::new(ops.len() + 1);
        let entries = flow.functions.iter().map(|_| layout.label()).collect();
        let landing = source.special.throws().then(|| layout.label());
        Emitter {
            ops,
            flow,
            maps: source.maps,
            known: source.known.filter(|_| tuning.optimise),
            guarded: source.known.filter(|k| k.reads_guarded()),
            indices: &options.maps,
            cells: source.subprogs.iter().map(|s| options.cell_of(s.number as usize)).collect(),
            extends: tuning.extends,
            features: tuning.features,
            optimise: tuning.optimise,
            budget: tuning.budget && must_count(ops, source, options.uncounted),
            layout,
            lazy: [Lazy::No; 16],
            pending: 0,
            users: [0; 16],
            live: 0,
            after: 0,
            zero: 0,
            flags: None,
            function: &flow.functions[0],
            pushed: Vec::new(),
            fail: None,
            nulls: Vec::new(),
            too_many: Vec::new(),
            leave: None,
            carried: None,
            ways: Vec::new(),
            over: None,
            timed: options.time,
            refuels: Vec::new(),
            goes_on: false,
            entries,
            gates: Vec::new(),
            landing,
            catches: source.special.catches,
            lands: false,
            blinding: tuning.blinding,
        }
    }

    /// The label of a function's code, in a program of so many instructions: those of functions follow theirs.
    pub(crate) fn entry(insns: usize, function: usize) -> Label {
        Label((insns + 1 + function) as u32)
    }

    pub(crate) fn asm(&mut self) -> &mut Asm {
        &mut self.layout.asm
    }

    /// The code of all functions; and whether it may end a run in the middle.
    pub(crate) fn program(mut self) -> (super::layout::Placed, bool) {
        let flow = self.flow;
        if self.extends {
            super::around::enter_as_program(&mut self.layout, self.entries[0]);
        }
        for (n, function) in flow.functions.iter().enumerate() {
            if n == 0 || function.blocks.first().is_some_and(|b| b.reachable) {
                self.emit_function(n, function);
            }
        }
        self.emit_gates();
        self.emit_refuels();
        if let Some(over) = self.over {
            self.layout.bind(over);
            let asm = &mut self.layout.asm;
            asm.store_imm(super::asm::Size::B, Mem::at(ENV, abi::OVER_BUDGET), 1);
            asm.load(super::asm::Size::Dw, RSP, Mem::at(ENV, abi::ENTRY_SP));
            asm.zero(RAX);
            asm.ret();
        }
        // What is elsewhere may end the run.
        let unwinds = self.over.is_some() || self.goes_on || self.cells.iter().any(Option::is_some);
        (self.layout.finish(), unwinds)
    }

    fn emit_function(&mut self, n: usize, function: &'a Function) {
        self.function = function;
        self.fail = None;
        self.leave = None;
        self.ways.clear();
        self.pushed.clear();
        let main = n == 0 && !self.extends;
        if !main && self.optimise {
            self.layout.align(LOOP_ALIGN);
        }
        self.layout.bind(self.entries[n]);
        self.lands = n == 0 && self.landing.is_some();
        let fp = function.uses_fp || self.lands;
        if main {
            let env = function.uses_env || self.budget || self.lands;
            self.pushed.extend(fp.then_some(FP));
            self.pushed.extend(env.then_some(ENV));
        }
        match self.lands {
            // What functions that are left in the middle have saved nobody restores but this one.
            true => self.pushed.extend(regs::CALLEE_SAVED.map(regs::of)),
            false => self.pushed.extend(function.saved.iter().map(|&r| regs::of(r))),
        }
        // The stack is to be at a multiple of 16 where something is called; the return address is on it.
        if (function.calls_out || self.lands) && self.pushed.len().is_multiple_of(2) {
            self.pushed.push(RCX);
        }
        for i in 0..self.pushed.len() {
            let r = self.pushed[i];
            self.asm().push(r);
        }
        if main {
            let asm = &mut self.layout.asm;
            if self.pushed.contains(&ENV) {
                asm.mov_rr(true, ENV, RDI);
            }
            if fp {
                asm.mov_rr(true, FP, RDX);
            }
            if function.needs & 2 != 0 {
                asm.mov_rr(true, RDI, RSI);
            }
        }
        self.prepare_loops();
        self.prepare_landing();
        let mut zeros = function.zeros(self.flow);
        for (n, block) in function.blocks.iter().enumerate().filter(|(_, b)| b.reachable) {
            self.zero = zeros[n];
            self.block(block);
            for next in block.next() {
                zeros[next] &= self.zero;
            }
        }
        for (null, back) in std::mem::take(&mut self.nulls) {
            self.layout.bind(null);
            self.asm().zero(RAX);
            self.layout.jmp(back);
        }
        self.emit_too_many();
        if let Some(fail) = self.fail {
            self.layout.bind(fail);
            self.asm().zero(RAX);
            self.epilogue();
        }
        self.land();
    }

    fn block(&mut self, block: &Block) {
        if block.loop_head && self.optimise {
            self.layout.align(LOOP_ALIGN);
        }
        if self.carried.take() != Some(block.start) {
            self.lazy = [Lazy::No; 16];
            self.pending = 0;
        }
        self.flags = None;
        let (mut i, end) = (block.start as usize, block.end as usize);
        self.layout.bind(Label(block.start));
        let flow = self.flow;
        while i < end {
            // What nobody needs is stepped over without asking, which it would be hard to predict.
            let (first, mut needed) = (i, flow.needed(i, end));
            i += 64;
            while needed != 0 {
                let at = first + needed.trailing_zeros() as usize;
                self.layout.bind(Label(at as u32));
                let behind = at + self.step(at, end);
                for k in at..behind {
                    self.zero = flow.effects[k].zero_after(self.zero, flow.live[k]);
                }
                if behind - first >= 64 {
                    i = behind;
                    break;
                }
                needed &= u64::MAX << (behind - first);
            }
        }
        if self.carried.is_none() {
            self.settle_all();
        }
    }

    /// At the end of a block: what is not in its place may stay so in the one behind it, at `next`, if every way there
    /// comes through here. Otherwise it is settled.
    pub(crate) fn carry(&mut self, next: usize) {
        let function = self.function;
        if self.ways.is_empty() {
            self.ways.resize(function.blocks.len(), 0);
            for to in function.blocks.iter().filter(|b| b.reachable).flat_map(Block::next) {
                self.ways[to] = self.ways[to].saturating_add(1);
            }
        }
        let only = function.blocks.binary_search_by_key(&next, |b| b.start as usize).is_ok_and(|n| self.ways[n] == 1);
        if only && self.optimise {
            self.carried = Some(next as u32);
        } else {
            self.settle_all();
        }
    }

    /// Emits the instruction at `i`, and those behind it that become part of it; returns how many.
    fn step(&mut self, i: usize, end: usize) -> usize {
        self.look_at(i);
        let (kind, insn) = self.ops.kind(i);
        let (dst, src, wide) = (insn.dst(), insn.src(), insn.class() == class::ALU64);
        if !matches!(kind, Kind::Branch | Kind::Odd | Kind::Nop) {
            self.flags = None;
        }
        let mut done = 1;
        // One look tells what most instructions are. The operands of some leave flags that are not theirs.
        match kind {
            Kind::AddK => self.add_imm(wide, dst, insn.imm),
            Kind::SubK => self.sub_imm(wide, dst, insn.imm),
            Kind::AndK => done = self.bin(i, end, Bin::And, wide, dst, Src::Imm(insn.imm)),
            Kind::LogicK => self.logic(insn.op(), wide, dst, Src::Imm(insn.imm)),
            Kind::LogicX => self.logic(insn.op(), wide, dst, Src::Reg(src)),
            Kind::ShlK => self.shl_imm(wide, dst, insn.imm),
            Kind::AddX => done = self.bin(i, end, Bin::Add, wide, dst, Src::Reg(src)),
            Kind::MulK => done = self.bin(i, end, Bin::Mul, wide, dst, Src::Imm(insn.imm)),
            Kind::MulX => done = self.bin(i, end, Bin::Mul, wide, dst, Src::Reg(src)),
            Kind::Bin => {
                if let Op::Bin { op, wide, dst, src } = self.ops.op(i) {
                    done = self.bin(i, end, op, wide, dst, src);
                }
            }
            Kind::MovK => self.mov(wide, dst, Src::Imm(insn.imm)),
            Kind::MovX => self.mov(wide, dst, Src::Reg(src)),
            Kind::Load => done = self.load(i, end, ir::width(insn), false, dst, src, insn.off),
            Kind::Store | Kind::StoreImm => {
                let value = if kind == Kind::Store { Src::Reg(src) } else { Src::Imm(insn.imm) };
                done = self.store(i, end, ir::width(insn), dst, insn.off, value);
                self.flags = None;
            }
            _ => done = self.other(i, end),
        }
        if done > 1 {
            self.look_at(i + done - 1);
        }
        self.forget(self.after);
        done
    }

    /// The same of what is not as common.
    fn other(&mut self, i: usize, end: usize) -> usize {
        let op = self.ops.op(i);
        if !matches!(op, Op::Branch { .. } | Op::Select { .. } | Op::Nop) {
            self.flags = None;
        }
        let done = self.insn(op, i, end);
        if !matches!(op, Op::Neg { .. } | Op::Mov { .. } | Op::Load { .. } | Op::Nop) {
            self.flags = self.flags.filter(|_| matches!(op, Op::Branch { .. } | Op::Select { .. }));
        }
        done
    }

    /// Makes the instruction at `i` the one whose liveness counts.
    pub(crate) fn look_at(&mut self, i: usize) {
        self.live = self.flow.live[i];
        self.after = ((self.live | self.live >> 16) & 0x7ff) as u16;
    }

    fn insn(&mut self, op: Op, i: usize, end: usize) -> usize {
        match op {
            Op::Nop => {}
            Op::Trap => {
                self.asm().zero(RAX);
                self.pending = 0;
                self.lazy = [Lazy::No; 16];
                self.epilogue();
            }
            Op::Bin { op, wide, dst, src } => return self.bin(i, end, op, wide, dst, src),
            Op::Div { signed, rem, wide, dst, src } => self.div(i, signed, rem, wide, dst, src),
            Op::Neg { wide, dst } => self.neg(wide, dst),
            Op::Mov { wide, dst, src } => self.mov(wide, dst, src),
            Op::MovSx { size, wide, dst, src } if self.extends_nothing(i, size, src) => {
                self.mov(wide, dst, Src::Reg(src));
            }
            Op::MovSx { size, wide, dst, src } => {
                let from = self.read(src, true);
                let d = self.write(dst);
                self.asm().movsx(size, wide, d, from);
            }
            Op::Swap { size, dst } => self.swap(size, dst),
            Op::Low16 { dst } => {
                let from = self.read(dst, true);
                let d = self.write(dst);
                self.asm().movzx(super::asm::Size::H, d, from);
            }
            Op::Imm64 { dst, value } => {
                let d = self.write(dst);
                self.load_constant(d, value);
            }
            Op::Map { dst, index } => self.put_off(dst, Lazy::Map { index }),
            Op::MapValue { dst, index, off } => self.map_value(dst, index, off),
            Op::Load { size, signed, dst, base, off } => return self.load(i, end, size, signed, dst, base, off),
            Op::Store { size, base, off, src } => return self.store(i, end, size, base, off, src),
            Op::Atomic { op, wide, base, off, src } => self.atomic(op, wide, base, off, src),
            Op::Fetch { op, wide, base, off, src } => self.fetch(op, wide, base, off, src),
            Op::Packet { size, index, at } => self.packet(size, index, at),
            Op::Jump { target } => {
                self.settle_all();
                if target as usize != i + 1 {
                    self.jump_to(i, target);
                }
            }
            Op::Branch { cond, target } => self.branch(i, cond, target),
            Op::Select { cond, wide, dst, src } => self.select(i, cond, wide, dst, src),
            Op::Helper { id, args } => return self.helper(i, end, id, args),
            Op::Function { dst, start } => self.function_address(dst, start),
            Op::Entry { entry, args, calls_back } => self.call_entry(entry, args, calls_back),
            Op::Ending { entry, args } => self.call_ending(entry, args),
            Op::Loop { start } => self.call_loop(start),
            Op::MayGoto { target } => self.may_goto(i, target),
            Op::Throw => self.throw(),
            Op::Sub { target } => self.call_function(target),
            Op::TailCall => self.tail_call(),
            Op::Exit => {
                self.force(0);
                self.lazy = [Lazy::No; 16];
                self.pending = 0;
                self.epilogue();
            }
        }
        1
    }

    /// Puts every value that is live behind this instruction in its place.
    pub(crate) fn settle_all(&mut self) {
        self.forget(self.after);
        while let Some(r) = bits(self.pending).next() {
            self.force(r);
        }
    }

    /// True if the upper half of the register is needed behind this instruction.
    pub(crate) fn upper_live(&self, r: u8) -> bool {
        self.live >> (16 + r) & 1 != 0
    }

    /// Restores what the function has pushed, and returns.
    pub(crate) fn epilogue(&mut self) {
        match self.leave {
            // Two bytes for a short jump.
            Some(leave) if self.pushed.len() > 2 => self.layout.jmp(leave),
            _ => {
                let label = self.layout.label();
                self.layout.bind(label);
                self.leave = Some(label);
                self.pop_all();
                self.asm().ret();
            }
        }
    }

    pub(crate) fn pop_all(&mut self) {
        self.forget_landing();
        for i in (0..self.pushed.len()).rev() {
            let r = self.pushed[i];
            self.asm().pop(r);
        }
    }

    /// True if the instruction at `i` loads from a kernel object, which may not be there.
    pub(crate) fn reads_object(&self, i: usize) -> bool {
        self.guarded.is_some_and(|known| known.facts(i).memory == Memory::Guarded)
    }

    /// True if numbers of the program must not stand in the code.
    pub(crate) fn blinds(&self) -> bool {
        self.blinding.is_some()
    }

    fn next_random(&mut self) -> Option<u64> {
        let state = self.blinding.as_mut()?;
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }

    /// `d = value`. Flags change when numbers are blinded.
    pub(crate) fn load_constant(&mut self, d: Reg, value: u64) {
        match self.next_random() {
            None if value == 0 => self.asm().zero(d),
            None => self.asm().mov_ri(d, value),
            Some(random) => {
                let small = i32::try_from(value as i64).is_ok();
                let random = if small { random as i32 as i64 as u64 } else { random };
                self.asm().mov_ri(d, value ^ random);
                if small {
                    self.asm().alu_ri(Alu::Xor, true, d, random as i32);
                } else {
                    self.asm().mov_ri(R10, random);
                    self.asm().alu_rr(Alu::Xor, true, d, R10);
                }
            }
        }
    }

    /// `d op= imm`.
    pub(crate) fn alu_imm(&mut self, op: Alu, wide: bool, d: Reg, imm: i32) {
        if self.blinds() {
            self.load_constant(R10, imm as i64 as u64);
            self.asm().alu_rr(op, wide, d, R10);
        } else {
            self.asm().alu_ri(op, wide, d, imm);
        }
    }
}
