//! Functions that a helper calls back while it runs, and `may_goto`: loops whose number of rounds is not known.
//!
//! A round is followed from the state before it, and comes back to the same instruction. What changed between two
//! rounds and nothing depended on is forgotten (widened), so that the rounds converge to one that says nothing new.

use skep_ebpf::Errno;
use skep_ebpf::insn::{Insn, MAX_CALL_FRAMES};

use crate::env::{Env, Next};
use crate::fail::{Check, Failure, invalid, unsupported};
use crate::helper_args::CallFacts;
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::state::{Callback, Frame, State, StateId};

const FOR_EACH_MAP_ELEM: u32 = 164;
const LOOP: u32 = 181;
/// Rounds of one path through loops of unknown length that are followed.
const MAX_ROUNDS: u32 = 4096;

impl Env<'_> {
    /// Lets a helper call its function: one path goes through a round, the current one behind the call.
    pub fn call_back(&mut self, helper: u32, facts: &CallFacts) -> Check {
        if helper == LOOP {
            if !self.state.reg(1).is_scalar() {
                return invalid!(
                    ArgumentType,
                    "bpf_loop wants the number of rounds in r1, which holds {}",
                    self.state.reg(1).describe()
                );
            }
            // The number of rounds decides whether there is another one.
            self.mark_precise(1)?;
            let rounds = self.state.reg(1).num.umax;
            if u64::from(self.state.frame().callback_depth) >= rounds {
                self.state.frame_mut().callback_depth = 0;
                return Ok(());
            }
        }
        let Some(function) = facts.function.map(|f| f as usize).filter(|f| *f < self.cfg.functions.len()) else {
            return invalid!(CallTarget, "the helper has no function to call");
        };
        self.check_rounds(self.state.callback_unroll)?;
        let depth = self.state.frames.len();
        if depth >= MAX_CALL_FRAMES {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::CallDepth,
                format!("the callback is the {}th frame; {MAX_CALL_FRAMES} are possible", depth + 1),
            ));
        }
        let (start, end) = (self.cfg.functions[function].start, self.cfg.functions[function].end);
        let instance = self.live.enter(self.state.frame().instance, self.insn, start, end);
        let mut frame = Frame::new(depth as u8, function, instance, self.insn);
        let caller = self.state.regs();
        match helper {
            LOOP => {
                frame.regs[1] = Reg::UNKNOWN;
                frame.regs[2] = caller[3];
            }
            FOR_EACH_MAP_ELEM => {
                let map = facts.map.unwrap_or(u32::MAX);
                let Some(m) = self.maps.get(map as usize) else {
                    return invalid!(UnknownMap, "the helper has no map");
                };
                if m.inner.is_some() || !m.fields.is_empty() {
                    return unsupported!(UnsupportedFeature, "walks over maps with special fields are not judged yet");
                }
                frame.regs[1] = caller[1];
                frame.regs[2] = Reg { what: map, ..Reg::pointer(Kind::MapKey) };
                frame.regs[3] = Reg { what: map, ..Reg::pointer(Kind::MapValue) };
                frame.regs[4] = caller[3];
            }
            _ => return unsupported!(UnsupportedHelper, "callbacks of helper {helper} are not judged yet"),
        }
        frame.callback = Callback { helper, held: held_mark(&self.state) };
        let round = self.push_path(start)?;
        round.frame_mut().callback_depth += 1;
        round.frames.push(frame);
        round.callback_unroll += 1;
        self.state.frame_mut().callback_depth = 0;
        Ok(())
    }

    /// Returns from a callback to the helper, which may call again.
    pub fn leave_callback(&mut self, r0: &Reg) -> Check<Next> {
        if !r0.is_scalar() {
            return Err(Failure::new(
                Errno::EACCES,
                Reason::SubprogramReturn,
                format!("a callback returns a number, r0 holds {}", r0.describe()),
            ));
        }
        self.mark_precise(0)?;
        if r0.num.smin < 0 || r0.num.smax > 1 {
            return invalid!(ReturnValue, "a callback returns 0 or 1; r0 holds {}", r0.num);
        }
        if self.state.frame().callback.held != held_mark(&self.state) {
            return unsupported!(UnsupportedFeature, "callbacks that acquire or release references are not judged yet");
        }
        let Some(frame) = self.state.frames.pop() else {
            return invalid!(SubprogramReturn, "there is no caller to return to");
        };
        if let Some(before) = self.previous_round(frame.callsite, None) {
            let mut state = std::mem::take(&mut self.state);
            widen(self.saved(before), &mut state);
            self.state = state;
        }
        Ok(Next::At(frame.callsite))
    }

    pub fn check_may_goto(&mut self, i: Insn) -> Check<Next> {
        if i.is_x() || i.src() != 0 || i.dst() != 0 || i.imm != 0 || i.class() != skep_ebpf::insn::class::JMP {
            return invalid!(ReservedField, "may_goto uses fields that must be zero");
        }
        self.check_rounds(self.state.may_goto_depth)?;
        let before = self.previous_round(self.insn, self.state.parent);
        let next = self.insn + 1;
        let mut round = std::mem::take(self.push_path(next)?);
        round.may_goto_depth += 1;
        if let Some(before) = before {
            widen(self.saved(before), &mut round);
        }
        if let Some(p) = self.pending.last_mut() {
            p.state = round;
        }
        // Out of budget, the loop is left here.
        match usize::try_from(crate::cfg::jump_target(self.insn, i)) {
            Ok(t) => Ok(Next::At(t)),
            Err(_) => invalid!(JumpOutOfRange, "may_goto leads in front of the program"),
        }
    }

    /// Loops that do not converge cost the square of their rounds.
    fn check_rounds(&self, rounds: u32) -> Check {
        if rounds >= MAX_ROUNDS {
            return unsupported!(UnsupportedFeature, "the loop does not converge within {MAX_ROUNDS} rounds");
        }
        Ok(())
    }

    /// The state of the round before, at the same instruction of the same call; `this` is the one just saved there.
    fn previous_round(&self, insn: usize, this: Option<StateId>) -> Option<StateId> {
        self.explored.newest_open(insn, this, |old| {
            old.frames.len() == self.state.frames.len()
                && old.frames.iter().zip(&self.state.frames).skip(1).all(|(o, c)| o.callsite == c.callsite)
        })
    }
}

/// Number and identity of the references held.
fn held_mark(state: &State) -> (u32, u32) {
    (state.held.len() as u32, state.held.iter().fold(0, |m, h| m ^ h.id))
}

/// Forgets numbers that differ from the round before, unless something depended on them.
fn widen(old: &State, cur: &mut State) {
    let forget = |o: &Reg, c: &mut Reg| {
        let numbers = o.is_scalar() && c.is_scalar();
        if numbers && !o.precise && !c.precise && (o.num != c.num || (o.id == 0) != (c.id == 0)) {
            *c = Reg::UNKNOWN;
        }
    };
    for (o, c) in old.frames.iter().zip(&mut cur.frames) {
        for (o, c) in o.regs.iter().zip(&mut c.regs) {
            forget(o, c);
        }
        for (o, c) in o.stack.iter().zip(&mut c.stack) {
            if o.is_scalar_spill() && c.is_scalar_spill() {
                forget(&o.reg, &mut c.reg);
            }
        }
    }
}
