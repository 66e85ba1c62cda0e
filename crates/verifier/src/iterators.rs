//! Open-coded iterators: kernel functions that begin one on the stack, move it on and end it.
//!
//! Moving on goes two ways: there is no further element, or there is one, and a round follows that comes back to some
//! call that moves the iterator on. Rounds converge as those of callbacks do (see [`crate::prune`]).

use skep_ebpf::Errno;

use crate::callbacks::widen;
use crate::env::Env;
use crate::fail::{Check, Failure, invalid};
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};
use crate::stack_object::{BadPlace, Iter, SlotPlace};
use crate::state::{Byte, State};

/// What a kernel function does with an iterator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IterUse {
    /// Begins it; its elements are valid in an RCU section only.
    New { rcu_protected: bool },
    /// Moves it on.
    Next,
    /// Ends it.
    Destroy,
    /// Something else.
    Other,
}

/// An iterator that a call was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IterArg {
    /// Its first slot.
    pub place: SlotPlace,
    pub iter: Iter,
}

impl Env<'_> {
    /// Checks a pointer to an iterator of a type of `size` bytes, and begins or ends it.
    pub fn check_iter_arg(&mut self, r: u8, type_id: u32, size: u32, doing: IterUse) -> Check<IterArg> {
        let reg = *self.state.reg(r);
        if reg.kind != Kind::Stack {
            return invalid!(IteratorState, "an iterator is on the stack; r{r} holds {}", reg.describe());
        }
        let slots = (size / 8) as usize;
        match doing {
            IterUse::New { rcu_protected } => self.begin_iter(r, &reg, type_id, slots, rcu_protected),
            _ => {
                let arg = self.known_iter(r, &reg, type_id, slots)?;
                self.mark_object_read(arg.place, slots);
                if doing == IterUse::Destroy {
                    self.release(arg.iter.ref_id);
                    for n in 0..slots {
                        self.set_slot(behind(arg.place, n), Byte::Invalid, Reg::NOT_INIT);
                    }
                }
                Ok(arg)
            }
        }
    }

    fn begin_iter(&mut self, r: u8, reg: &Reg, type_id: u32, slots: usize, rcu_protected: bool) -> Check<IterArg> {
        let used = |place| self.slot_at(place).is_some_and(|s| s.bytes.contains(&Byte::Iter));
        match self.object_place(reg, slots) {
            Err(BadPlace::Beyond) => {}
            Ok(place) if !(0..slots).any(|n| used(behind(place, n))) => {}
            _ => {
                return invalid!(
                    IteratorState,
                    "an iterator begins in {} unused bytes of stack at a constant offset that is a multiple of 8; r{r} holds {}",
                    slots * 8,
                    reg.describe()
                );
            }
        }
        for n in 0..slots {
            self.write_object_slot(r, 8 * n as i64)?;
        }
        let Ok(place) = self.object_place(reg, slots) else {
            return invalid!(IteratorState, "there is no stack for the iterator in r{r}");
        };
        let protection = match rcu_protected {
            true if self.in_rcu_section() => flag::RCU,
            true => flag::UNTRUSTED,
            false => 0,
        };
        let ref_id = self.acquire();
        let iter = Iter { type_id, ref_id, drained: false, depth: 0, protection };
        for n in 0..slots {
            let own = if n == 0 { ref_id } else { 0 };
            self.set_slot(behind(place, n), Byte::Iter, Iter { ref_id: own, ..iter }.to_reg());
        }
        Ok(IterArg { place, iter })
    }

    /// The iterator of this type that a register points to.
    fn known_iter(&self, r: u8, reg: &Reg, type_id: u32, slots: usize) -> Check<IterArg> {
        let place = self.object_place(reg, slots).ok();
        let part = |n: usize| place.and_then(|p| self.slot_at(behind(p, n))).and_then(Iter::in_slot);
        for n in 0..slots {
            let Some(iter) = part(n) else { break };
            if iter.protection & flag::UNTRUSTED != 0 {
                let why =
                    format!("the iterator in r{r} gives objects that RCU protects; it began outside of this section");
                return Err(Failure::new(Errno::EPROTO, Reason::RcuSection, why));
            }
            if iter.type_id != type_id || (iter.ref_id != 0) != (n == 0) {
                break;
            }
            if n + 1 == slots
                && let (Some(place), Some(iter)) = (place, part(0))
            {
                return Ok(IterArg { place, iter });
            }
        }
        invalid!(
            IteratorState,
            "r{r} does not point to an initialised iterator of this type; it holds {}",
            reg.describe()
        )
    }

    /// Goes on behind a call that moves an iterator on and returned an element or null in r0.
    pub fn move_iter_on(&mut self, arg: IterArg) -> Check {
        let mut element = *self.state.reg(0);
        if !arg.iter.drained {
            self.make_not_null(&mut element);
            let before = self.previous_round(self.insn, self.state.parent);
            self.push_path(self.insn + 1)?;
            if let Some(round) = self.pending.last_mut() {
                let round = &mut round.state;
                if let Some(slot) = slot_mut(round, arg.place) {
                    *slot = Iter { depth: arg.iter.depth + 1, ..arg.iter }.to_reg();
                }
                if let Some(before) = before {
                    widen(&mut self.ids, self.explored.state(before), round);
                }
                *round.reg_mut(0) = element;
            }
        }
        // Without further elements: it has none for ever.
        if let Some(slot) = slot_mut(&mut self.state, arg.place) {
            *slot = Iter { drained: true, ..arg.iter }.to_reg();
        }
        *self.state.reg_mut(0) = Reg::constant(0);
        Ok(())
    }
}

/// The slot `n` slots behind the first one of an object.
fn behind(place: SlotPlace, n: usize) -> SlotPlace {
    SlotPlace { slot: place.slot.saturating_sub(n), ..place }
}

fn slot_mut(state: &mut State, place: SlotPlace) -> Option<&mut Reg> {
    state.frames.get_mut(place.frame).and_then(|f| f.stack.get_mut(place.slot)).map(|s| &mut s.reg)
}
