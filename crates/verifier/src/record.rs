//! The verifier beside a run, so that an independent checker can hold what it says against what happens.
//!
//! [`follow`] takes the verifier's own steps along the path of a concrete run, instruction by instruction: before each,
//! every register and stack slot of the run must lie in the state. Where the verifier goes several ways (branches, null
//! or not, callbacks or the end of their loop) one of them must be the run's. No path is given up because another one
//! stands for it, so a step that refuses the run, or has no way for it, shows that something was left out wrongly.
//! A global function is verified on its own, for any arguments, so it gets a state of its own when the run enters it.

use skep_ebpf::insn::{Insn, class, jmp};
use skep_ebpf::program::Program;

use crate::env::{Env, Next};
use crate::reg::{Kind, Reg};
use crate::scalar::Scalar;
use crate::state::{Byte, Frame, Slot, State};
use crate::{Options, Progress, Rejection, rejection};

/// A run as it stands before an instruction.
pub trait Machine {
    /// Number of active functions.
    fn frames(&self) -> usize;
    /// A register of a function, 0 to 9.
    fn reg(&self, frame: usize, reg: usize) -> u64;
    /// The call instruction that led from this function to the next one.
    fn callsite(&self, frame: usize) -> usize;
    /// What r10 of a function is.
    fn stack_top(&self, frame: usize) -> u64;
    /// The byte this far below a function's r10; 1 is the first.
    fn stack_byte(&self, frame: usize, below: usize) -> u8;
    /// The offset of this address in some value of a map (wrapped if it lies in front of it), by the value it came from.
    fn map_offset(&self, map: u32, address: u64) -> Option<i64>;
    /// Where the packet begins and ends.
    fn packet(&self) -> (u64, u64);
    /// Where the context is.
    fn context(&self) -> u64;
}

/// The verifier's state beside a run.
pub struct Follower<'e, 'p> {
    env: &'e mut Env<'p>,
    /// Where the step just taken leads: the state, its instruction, and the one before.
    ways: Vec<(State, usize, usize)>,
    /// Callers of the global function that runs now: how they go on, and how many functions were active below them.
    callers: Vec<((State, usize, usize), usize)>,
    /// Functions that are active below the one that is followed.
    below: usize,
}

/// Gives `runs` the verifier to follow runs of a program with.
pub fn follow<R>(
    program: &Program,
    options: &Options,
    runs: impl FnOnce(&mut Follower<'_, '_>) -> R,
) -> Result<R, Box<Rejection>> {
    // A run may be as long as it likes.
    let profile = crate::KernelProfile { max_processed: u64::MAX, ..options.profile };
    let judge = |env: &mut Env<'_>| {
        env.follows = true;
        Ok(runs(&mut Follower { env, ways: Vec::new(), callers: Vec::new(), below: 0 }))
    };
    crate::with_env(program, &Options { profile, log: false, ..options.clone() }, judge)
        .map_err(|f| rejection(program, &f, Progress::default()))
}

impl Follower<'_, '_> {
    /// Another run begins.
    pub fn begin(&mut self) -> Result<(), String> {
        self.callers.clear();
        self.below = 0;
        self.enter(0)
    }

    fn enter(&mut self, function: usize) -> Result<(), String> {
        self.env.pending.clear();
        self.env.enter_alone(function).map_err(|f| format!("the function is refused: {}", f.message))
    }

    /// The run is about to take a step: its state must lie in the verifier's, which takes the step, too.
    pub fn step(&mut self, machine: &dyn Machine, at: usize) -> Result<(), String> {
        if self.env.insn != at {
            return Err(format!("the verifier is at {}", self.env.insn));
        }
        fits(&self.env.state, machine, self.below)?;
        self.ways.clear();
        self.take_step(at)?;
        // Some arithmetic is done in two cases, of which one is still to do.
        let again = |i: Insn| matches!(i.class(), class::ALU | class::ALU64);
        while self.env.insns.get(at).copied().is_some_and(again)
            && let Some(n) = self.ways.iter().position(|w| w.1 == at)
        {
            (self.env.state, self.env.insn, self.env.prev) = self.ways.swap_remove(n);
            self.take_step(at)?;
        }
        Ok(())
    }

    fn take_step(&mut self, at: usize) -> Result<(), String> {
        self.env.state.steps.clear();
        let before = self.env.state.clone();
        let next = self.env.step().or_else(|f| {
            // Another path stood for this one, on which a slot was never written that has a pointer here: as good as any
            // number, and no address.
            self.env.pending.clear();
            self.env.state = before;
            if !self.forget_pointers(at) {
                return Err(f);
            }
            self.env.step()
        });
        let next = next.map_err(|f| format!("refused on this path: {}", f.message))?;
        if let Next::At(insn) = next {
            self.ways.push((self.env.state.clone(), insn, at));
        }
        // Newer ones first, as the verifier would.
        self.ways.extend(self.env.pending.drain(..).rev().map(|p| (p.state, p.insn, p.prev)));
        Ok(())
    }

    /// Makes pointers that an instruction computes with numbers, and those that a load may find on the stack or a store
    /// saves data;
    /// false if there are none.
    fn forget_pointers(&mut self, at: usize) -> bool {
        let Some(i) = self.env.insns.get(at).copied() else { return false };
        let mut any = false;
        if i.class() == class::STX && self.env.state.reg(i.src()).is_pointer() && i.src() < 10 {
            *self.env.state.reg_mut(i.src()) = Reg::UNKNOWN;
            any = true;
        }
        if matches!(i.class(), class::LDX | class::STX) {
            let frames = self.env.state.frames.iter_mut();
            let slots = frames.flat_map(|f| f.stack.iter_mut()).filter(|s| s.is_spill() && s.reg.is_pointer());
            return slots.map(Slot::scrub).count() != 0 || any;
        }
        if !matches!(i.class(), class::ALU | class::ALU64 | class::JMP | class::JMP32) || i.op() == jmp::CALL {
            return false;
        }
        for r in [i.dst(), i.src()] {
            let reg = self.env.state.reg_mut(r);
            if r < 10 && reg.is_pointer() {
                *reg = Reg::UNKNOWN;
                any = true;
            }
        }
        any
    }

    /// The run has taken the step, and is about to run another instruction: finds the way that it went.
    pub fn arrive(&mut self, machine: &dyn Machine, at: usize) -> Result<(), String> {
        let active = machine.frames();
        let entered = self.env.cfg.function_at(at).filter(|f| self.env.functions[*f].global.is_some());
        if let Some(function) = entered
            && self.ways.first().is_some_and(|w| active == self.below + w.0.frames.len() + 1 && w.1 != at)
        {
            self.callers.push((self.ways.swap_remove(0), self.below));
            self.below = active - 1;
            return self.enter(function);
        }
        while active <= self.below {
            let Some((way, below)) = self.callers.pop() else { return Err("no function was called".into()) };
            self.ways = vec![way];
            self.below = below;
        }
        let mut why = "no way leads here".to_owned();
        for (state, insn, prev) in std::mem::take(&mut self.ways) {
            if insn != at {
                continue;
            }
            match fits(&state, machine, self.below) {
                Ok(()) => {
                    (self.env.state, self.env.insn, self.env.prev) = (state, insn, prev);
                    return Ok(());
                }
                Err(e) => why = e,
            }
        }
        Err(why)
    }
}

/// Whether the functions of the run above the lowest `below` are in this state.
fn fits(state: &State, machine: &dyn Machine, below: usize) -> Result<(), String> {
    let depth = below + state.frames.len();
    if depth != machine.frames() {
        return Err(format!("{depth} functions are active, not {}", machine.frames()));
    }
    for (n, frame) in (below..).zip(&state.frames) {
        if n > below && frame.callsite != machine.callsite(n - 1) {
            return Err("it was called from elsewhere".into());
        }
        for (r, reg) in frame.regs.iter().enumerate().take(10) {
            holds(reg, machine.reg(n, r), machine, below).map_err(|e| format!("function {n}, r{r}: {e}"))?;
        }
        stack_fits(frame, n, machine, below)?;
    }
    Ok(())
}

fn stack_fits(frame: &Frame, n: usize, machine: &dyn Machine, below: usize) -> Result<(), String> {
    for (s, slot) in frame.stack.iter().enumerate() {
        let byte = |b: usize| machine.stack_byte(n, s * 8 + b + 1);
        for (b, kind) in slot.bytes.iter().enumerate() {
            if *kind == Byte::Zero && byte(b) != 0 {
                return Err(format!("function {n}, slot {s}: byte {b} is {:#x}, not zero", byte(b)));
            }
        }
        // A register saved in part is at the lower addresses.
        let saved = slot.bytes.iter().rev().take_while(|b| **b == Byte::Spill).count();
        if saved > 0 {
            let value = (8 - saved..8).fold(0u64, |v, b| v << 8 | u64::from(byte(b)));
            let mut reg = slot.reg;
            match saved as u32 {
                bytes @ (1 | 2 | 4) => reg.num.truncate(bytes),
                8 => {}
                bytes => reg.num = Scalar { bits: reg.num.bits.cast(bytes), ..Scalar::UNKNOWN },
            }
            holds(&reg, value, machine, below).map_err(|e| format!("function {n}, slot {s}: {e}"))?;
        }
    }
    Ok(())
}

/// Values of maps are at least twice as far apart.
const FAR: u32 = 1 << 22;

/// Whether a register can hold this value. Of kinds that are not known here nothing is said.
fn holds(reg: &Reg, value: u64, machine: &dyn Machine, below: usize) -> Result<(), String> {
    if reg.nullable() && value == 0 {
        return Ok(());
    }
    let offset = match reg.kind {
        Kind::Scalar => {
            return if reg.num.contains(value) { Ok(()) } else { Err(format!("{value:#x} is not in {:?}", reg.num)) };
        }
        Kind::Ctx => Some(value.wrapping_sub(machine.context()) as i64),
        Kind::Stack if below + usize::from(reg.frame) < machine.frames() => {
            Some(value.wrapping_sub(machine.stack_top(below + usize::from(reg.frame))) as i64)
        }
        // So far from the value that it could be another's; nothing can be loaded there.
        Kind::MapValue
            if reg.off.unsigned_abs() > FAR || reg.num.smin < -i64::from(FAR) || reg.num.smax > FAR.into() =>
        {
            return Ok(());
        }
        Kind::MapValue => machine.map_offset(reg.what, value),
        Kind::Packet => {
            let (start, end) = machine.packet();
            let room = end.wrapping_sub(value.wrapping_sub(reg.off as u64)) as i64;
            if (reg.size as i32) > 0 && room < i64::from(reg.size as i32) {
                return Err(format!("{} bytes are promised, {room} are there", reg.size));
            }
            Some(value.wrapping_sub(start) as i64)
        }
        Kind::PacketEnd => {
            let end = machine.packet().1;
            return if value == end { Ok(()) } else { Err(format!("{value:#x} is not the end, {end:#x}")) };
        }
        _ => return Ok(()),
    };
    let Some(offset) = offset else { return Err(format!("{value:#x} is no pointer of kind {:?}", reg.kind)) };
    let variable = offset.wrapping_sub(i64::from(reg.off)) as u64;
    if reg.num.contains(variable) {
        return Ok(());
    }
    Err(format!("offset {offset} is not {} plus {:?}", reg.off, reg.num))
}
