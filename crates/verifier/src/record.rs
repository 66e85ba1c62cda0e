//! All states of a program, kept so that an independent checker can hold concrete runs against them.
//!
//! [`record`] follows every path to its end: no path is given up because another one stands for it, so each state of a
//! run must lie in some state kept at the same instruction. Only small programs get through.

use skep_ebpf::program::Program;

use crate::reg::{Kind, Reg};
use crate::scalar::Scalar;
use crate::state::{Byte, Frame, State};
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

/// All states that the checker went through, by instruction.
#[derive(Debug)]
pub struct Recording {
    states: Vec<Vec<State>>,
}

/// Verifies a program without cutting any path short, and keeps all states.
pub fn record(program: &Program, options: &Options) -> Result<Recording, Box<Rejection>> {
    let mut progress = Progress { states: Some(vec![Vec::new(); program.insns.len()]), ..Progress::default() };
    match crate::check(program, options, &mut progress) {
        Ok(_) => Ok(Recording { states: progress.states.unwrap_or_default() }),
        Err(f) => Err(rejection(program, &f, progress)),
    }
}

impl Recording {
    /// Whether the machine is in some state kept for this instruction; if not, why the last one does not fit.
    pub fn admits(&self, insn: usize, machine: &dyn Machine) -> Result<(), String> {
        let mut why = "no path comes here".to_owned();
        for state in self.states.get(insn).into_iter().flatten() {
            match fits(state, machine) {
                Ok(()) => return Ok(()),
                Err(e) => why = e,
            }
        }
        Err(why)
    }
}

fn fits(state: &State, machine: &dyn Machine) -> Result<(), String> {
    let depth = state.frames.len();
    if depth != machine.frames() {
        return Err(format!("{depth} functions are active, not {}", machine.frames()));
    }
    for (n, frame) in state.frames.iter().enumerate() {
        if n > 0 && frame.callsite != machine.callsite(n - 1) {
            return Err("it was called from elsewhere".into());
        }
        for (r, reg) in frame.regs.iter().enumerate().take(10) {
            holds(reg, machine.reg(n, r), machine).map_err(|e| format!("function {n}, r{r}: {e}"))?;
        }
        stack_fits(frame, n, machine)?;
    }
    Ok(())
}

fn stack_fits(frame: &Frame, n: usize, machine: &dyn Machine) -> Result<(), String> {
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
            holds(&reg, value, machine).map_err(|e| format!("function {n}, slot {s}: {e}"))?;
        }
    }
    Ok(())
}

/// Whether a register can hold this value. Of kinds that are not known here nothing is said.
fn holds(reg: &Reg, value: u64, machine: &dyn Machine) -> Result<(), String> {
    if reg.nullable() && value == 0 {
        return Ok(());
    }
    let offset = match reg.kind {
        Kind::Scalar => {
            return if reg.num.contains(value) { Ok(()) } else { Err(format!("{value:#x} is not in {:?}", reg.num)) };
        }
        Kind::Ctx => Some(value.wrapping_sub(machine.context()) as i64),
        Kind::Stack if usize::from(reg.frame) < machine.frames() => {
            Some(value.wrapping_sub(machine.stack_top(usize::from(reg.frame))) as i64)
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
