//! Paths that only a processor takes: it guesses a branch, or an operand, and looks at memory before it knows better.
//!
//! Programs of processes without `CAP_PERFMON` must be safe on such paths too, so they are followed beside the others:
//! where a jump can go one way only, the other way is one; where a number is added to a pointer, so is the way on without
//! it (the kernel masks the number to a *window*, and out of it adds nothing). Up to Linux 6.16 a fault on such a path
//! is a fault of the program. Since 6.17 the kernel puts a barrier in front of the instruction instead, which ends the
//! path there; it also puts one behind stores that could be overtaken by a later load.

use skep_ebpf::Errno;
use skep_ebpf::insn::{Insn, alu};

use crate::env::{Env, Next};
use crate::fail::{Check, Failure, denied};
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::scalar::Scalar;
use crate::state::{Byte, STACK_BYTES, Slot, State};

/// How the number of an addition or subtraction is masked: the same on all paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Window {
    /// Not at all: no pointer is involved.
    Number,
    Pointer {
        negative: bool,
        constant: bool,
        flipped: bool,
        limit: u32,
    },
}

/// The pointer operation at hand, between its two checks.
pub(crate) struct Masking {
    window: Option<Window>,
    to_left: bool,
}

/// What a barrier helps against.
fn is_recoverable(f: &Failure) -> bool {
    !f.unsupported && matches!(f.errno, Errno::EPERM | Errno::EACCES | Errno::EINVAL)
}

impl Env<'_> {
    /// True if paths are followed that only a processor takes.
    pub fn speculates(&self) -> bool {
        self.options.privilege != crate::Privilege::Full
    }

    /// True if the kernel puts barriers where such paths go wrong.
    fn has_barriers(&self) -> bool {
        self.options.profile.since(6, 17)
    }

    /// True if the path at hand ends before the current instruction.
    pub fn stopped_by_barrier(&self) -> bool {
        self.state.speculative && self.facts[self.insn].barrier
    }

    /// True if the path at hand ends behind the instruction at `at`.
    pub fn stopped_behind(&self, at: usize) -> bool {
        self.state.speculative && self.facts[at].barrier_behind
    }

    /// What was found wrong with an instruction: on a path that only a processor takes, a barrier before it may help.
    pub fn put_barrier(&mut self, at: usize, f: Box<Failure>) -> Check<Next> {
        if !(self.state.speculative && self.has_barriers() && is_recoverable(&f)) {
            return Err(f);
        }
        let fact = &mut self.facts[at];
        (fact.barrier, fact.window) = (true, None);
        Ok(Next::Done)
    }

    /// Goes on at another instruction later, on a path that only a processor takes.
    fn speculate(&mut self, insn: usize) -> Check<&mut State> {
        let state = self.push_path(insn)?;
        state.speculative = true;
        Ok(state)
    }

    /// A jump that can go one way only: the processor may guess the other, whatever its operands are then.
    pub fn guess_branch(&mut self, i: Insn, other: usize) -> Check {
        if !self.speculates() {
            return Ok(());
        }
        let state = self.speculate(other)?;
        *state.reg_mut(i.dst()) = Reg::UNKNOWN;
        if i.is_x() {
            *state.reg_mut(i.src()) = Reg::UNKNOWN;
        }
        Ok(())
    }

    /// True if the instruction needs no mask.
    fn unmasked(&self, i: Insn) -> bool {
        !self.speculates() || !i.is_x() || !matches!(i.op(), alu::ADD | alu::SUB) || self.has_barrier_here()
    }

    fn has_barrier_here(&self) -> bool {
        self.facts[self.insn].barrier
    }

    /// Numbers are added: on every path that comes here.
    pub fn check_number_window(&mut self, i: Insn) -> Check {
        if self.unmasked(i) { Ok(()) } else { self.settle_window(i, Window::Number) }
    }

    fn settle_window(&mut self, i: Insn, window: Window) -> Check {
        let fact = &mut self.facts[self.insn];
        if fact.window.is_some_and(|w| w != window) {
            return denied!(
                PointerOutOfRange,
                "r{} and r{} differ from path to path in what they are or how far they reach; \
                 without CAP_PERFMON the addition must be masked in one way",
                i.dst(),
                i.src()
            );
        }
        fact.window = Some(window);
        Ok(())
    }

    /// Before a number is added to (or subtracted from) a pointer.
    pub fn begin_masking(&mut self, i: Insn, ptr: &Reg, n: &Scalar, flipped: bool) -> Check<Option<Masking>> {
        if self.unmasked(i) {
            return Ok(None);
        }
        let (constant, negative) = (n.as_const().is_some(), n.smin < 0);
        let mut masking = Masking { window: None, to_left: false };
        if !self.state.speculative {
            if !constant && negative != (n.smax < 0) {
                return denied!(
                    PointerOutOfRange,
                    "the number that moves {} may be negative or not; without CAP_PERFMON it is one of the two",
                    ptr.describe()
                );
            }
            masking.to_left = (i.op() == alu::ADD) == negative;
            let limit = self.distance(ptr, masking.to_left)?;
            masking.window = Some(Window::Pointer { negative, constant, flipped, limit });
            self.ids.strict_numbers |= !constant;
        }
        if !constant {
            let (d, next) = (i.dst(), self.insn + 1);
            *self.speculate(next)?.reg_mut(d) = *ptr;
        }
        Ok(Some(masking))
    }

    /// After it: the window reaches as far as the pointer moved.
    pub fn end_masking(&mut self, i: Insn, moved: &Reg, masking: Option<Masking>) -> Check {
        let Some(Masking { window: Some(Window::Pointer { negative, constant, flipped, limit }), to_left }) = masking
        else {
            return Ok(());
        };
        let limit = limit.abs_diff(self.distance(moved, to_left)?);
        self.settle_window(i, Window::Pointer { negative, constant, flipped, limit })
    }

    /// How far a pointer is from the end that it moves away from.
    fn distance(&self, ptr: &Reg, to_left: bool) -> Check<u32> {
        let (far, end) = match ptr.kind {
            Kind::Stack => {
                let at = (ptr.num.bits.value as u32).wrapping_add(ptr.off as u32);
                // One behind the end is where r10 points.
                (at.wrapping_neg(), STACK_BYTES as u32 + u32::from(to_left))
            }
            Kind::MapValue => {
                let edge = if to_left { ptr.num.smin as u32 } else { ptr.num.umax as u32 };
                (edge.wrapping_add(ptr.off as u32), self.maps.get(ptr.what as usize).map_or(0, |m| m.def.value_size))
            }
            _ => {
                let text = format!("without CAP_PERFMON no register is added to {}", ptr.describe());
                return Err(Failure::new(Errno::EACCES, Reason::PointerArithmetic, text));
            }
        };
        if far >= end {
            return denied!(PointerOutOfRange, "{} is moved out of bounds, which needs CAP_PERFMON", ptr.describe());
        }
        Ok(far)
    }

    /// A tail call is masked by the size of its table.
    pub fn note_tail_call(&mut self, is_it: bool) {
        let table = self.state.reg(2);
        if is_it && table.kind == Kind::Map {
            let fact = &mut self.facts[self.insn];
            fact.tables |= fact.table.is_some_and(|t| t != table.what);
            fact.table = Some(table.what);
        }
    }

    /// Of a program that is right otherwise: each tail call has one table.
    pub fn check_tail_calls(&self) -> Check {
        match self.facts.iter().position(|f| f.tables) {
            Some(at) if self.speculates() => {
                let text = "the tail call uses different program arrays on different paths, which needs CAP_PERFMON";
                Err(Failure::new(Errno::EINVAL, Reason::CallNeedsPrivilege, text.into()).at(at))
            }
            _ => Ok(()),
        }
    }

    /// A store to a slot that a later load may overtake: of a pointer, or over what is no plain data.
    pub fn note_store(&mut self, slot: &Slot, last: usize, size: usize, value: Option<&Reg>) {
        if !self.speculates() || !self.has_barriers() {
            return;
        }
        let replaced = slot.bytes.get((last + 1).saturating_sub(size)..=last).unwrap_or_default();
        let data = replaced.iter().all(|b| matches!(b, Byte::Misc | Byte::Zero));
        if !data || value.is_some_and(|r| r.is_pointer()) {
            self.facts[self.insn].barrier_behind = true;
        }
    }
}
