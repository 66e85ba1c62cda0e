//! Functions that a helper calls back while it runs, and `may_goto`: loops whose number of rounds is not known.
//!
//! A round is followed from the state before it, and comes back to the same instruction. What changed between two
//! rounds and nothing depended on is forgotten (widened), so that the rounds converge to one that says nothing new.

use skep_ebpf::Errno;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, MAX_CALL_FRAMES};

use crate::compare::{self, IdMap};
use crate::env::{Env, Next, Pending};
use crate::fail::{Check, Failure, invalid, unsupported};
use crate::helper_args::CallFacts;
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::state::{Callback, CalledBy, Frame, State, StateId};

const FOR_EACH_MAP_ELEM: u32 = 164;
const TIMER_SET_CALLBACK: u32 = 170;
const FIND_VMA: u32 = 180;
const LOOP: u32 = 181;
const USER_RINGBUF_DRAIN: u32 = 209;

impl Env<'_> {
    /// Lets a helper call its function, or remember it.
    pub fn call_back(&mut self, h: &Helper, facts: &CallFacts) -> Check {
        if h.id == LOOP {
            if !self.state.reg(1).is_scalar() {
                let held = self.state.reg(1).describe();
                let why = format!("bpf_loop wants the number of rounds in r1, which holds {held}");
                return Err(Failure::new(Errno::EFAULT, Reason::ArgumentType, why));
            }
            if self.state.reg(4).is_null() {
                // That the flags are zero is relied on where the loop is inlined.
                self.mark_precise(4)?;
            }
            // The number of rounds decides whether there is another one.
            self.mark_precise(1)?;
            let rounds = self.state.reg(1).num.umax;
            if u64::from(self.state.frame().callback_depth) >= rounds {
                self.leave_callback_loop();
                return Ok(());
            }
        }
        let caller = *self.state.regs();
        let args = match h.id {
            LOOP => [Reg::UNKNOWN, caller[3], Reg::NOT_INIT, Reg::NOT_INIT, Reg::NOT_INIT],
            FOR_EACH_MAP_ELEM => {
                // Which inner map it is of is not known of an element, to the kernel.
                let (key, value) = self.element(facts.map.unwrap_or(u32::MAX))?;
                [caller[1], key, value, caller[3], Reg::NOT_INIT]
            }
            USER_RINGBUF_DRAIN => [self.foreign_dynptr(), caller[3], Reg::NOT_INIT, Reg::NOT_INIT, Reg::NOT_INIT],
            TIMER_SET_CALLBACK => {
                let by = CalledBy::Helper(h.id);
                let args = self.async_arguments(facts.map, facts.map_uid)?;
                return self.push_async_callback(by, facts.function, args, false, (0, 0));
            }
            FIND_VMA => {
                let Some(vma) = self.kernel_types()?.find_struct("vm_area_struct") else {
                    return unsupported!(KernelTypes, "the kernel's types have no vm_area_struct");
                };
                [caller[1], Reg::kernel_object(vma, 0), caller[4], Reg::NOT_INIT, Reg::NOT_INIT]
            }
            _ => return unsupported!(UnsupportedHelper, "callbacks of bpf_{} are not judged yet", h.name),
        };
        self.push_callback(CalledBy::Helper(h.id), facts.function, args, (0, 1))
    }

    /// Key and value of some element of a map.
    pub fn element(&self, map: u32) -> Check<(Reg, Reg)> {
        if self.maps.get(map as usize).is_none() {
            return invalid!(UnknownMap, "the function that is called back has no map");
        }
        Ok((Reg { what: map, ..Reg::pointer(Kind::MapKey) }, Reg { what: map, ..Reg::pointer(Kind::MapValue) }))
    }

    /// A helper or kernel function calls a function of the program while it runs, any number of times: one path goes
    /// through a round, the current one on behind the call. `args` is what r1 to r5 hold.
    pub fn push_callback(&mut self, by: CalledBy, function: Option<u32>, args: [Reg; 5], returns: (i32, i32)) -> Check {
        let (function, start, end) = self.called_back(function)?;
        self.functions[function].called_back = true;
        let depth = self.state.frames.len();
        if depth >= MAX_CALL_FRAMES {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::CallDepth,
                format!("the callback is the {}th frame; {MAX_CALL_FRAMES} are possible", depth + 1),
            ));
        }
        let instance = self.live.enter(self.state.frame().instance, self.insn, start, end);
        let mut frame = Frame::new(depth as u8, function, instance, self.insn);
        frame.regs[1..=5].copy_from_slice(&args);
        frame.callback = Callback { by, is_async: false, returns };
        frame.callback_loop = self.step_number();
        let round = self.push_path(start)?;
        round.frame_mut().callback_depth += 1;
        round.frames.push(frame.into());
        round.callback_unroll += 1;
        self.leave_callback_loop();
        Ok(())
    }

    /// The helper or kernel function calls back no more.
    fn leave_callback_loop(&mut self) {
        let step = self.step_number();
        let frame = self.state.frame_mut();
        (frame.callback_depth, frame.callback_loop) = (0, step);
    }

    /// A number that no other step has.
    pub fn step_number(&self) -> u32 {
        self.stats.insns_processed as u32
    }

    /// A function is to run later, on its own: it is followed like another program, with `args` in r1 to r5.
    pub fn push_async_callback(
        &mut self,
        by: CalledBy,
        function: Option<u32>,
        args: [Reg; 5],
        sleepable: bool,
        returns: (i32, i32),
    ) -> Check {
        let (function, start, end) = self.called_back(function)?;
        self.functions[function].is_async = true;
        self.functions[function].called_back = true;
        if self.pending.len() >= self.options.profile.max_pending {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::JumpSequence,
                format!("more than {} branches are open at once", self.options.profile.max_pending),
            ));
        }
        let instance = self.live.enter_async(start, end);
        let mut frame = Frame::new(0, function, instance, 0);
        frame.regs[1..=5].copy_from_slice(&args);
        frame.callback = Callback { by, is_async: true, returns };
        frame.async_entry = self.state.frame().async_entry + 1;
        let state = State { sleepable, ..State::new(frame, start) };
        self.pending.push(Pending { state, insn: start, prev: start });
        self.stats.peak_pending = self.stats.peak_pending.max(self.pending.len() as u32);
        Ok(())
    }

    /// The function that is called back, its first instruction and the one behind its last.
    fn called_back(&self, function: Option<u32>) -> Check<(usize, usize, usize)> {
        let found = function.and_then(|f| Some((f as usize, self.cfg.functions.get(f as usize)?)));
        match found {
            Some((n, f)) => Ok((n, f.start, f.end)),
            None => invalid!(CallTarget, "there is no function to call back"),
        }
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
        self.check_callback_result(r0)?;
        let Some(frame) = self.state.frames.pop() else {
            return invalid!(SubprogramReturn, "there is no caller to return to");
        };
        if let Some(before) = self.previous_round(frame.callsite, None) {
            widen(&mut self.ids, self.explored.state(before), &mut self.state);
        }
        Ok(Next::At(frame.callsite))
    }

    /// Ends a function that ran on its own.
    pub fn leave_async_callback(&mut self) -> Check<Next> {
        let r0 = *self.read_reg(0)?;
        if !r0.is_scalar() {
            return invalid!(
                ReturnValue,
                "the function of a timer or the like returns a number, r0 holds {}",
                r0.describe()
            );
        }
        self.mark_precise(0)?;
        self.check_callback_result(&r0)?;
        Ok(Next::Done)
    }

    fn check_callback_result(&self, r0: &Reg) -> Check {
        let (min, max) = self.state.frame().callback.returns;
        if r0.num.smin >= i64::from(min) && r0.num.smax <= i64::from(max) {
            return Ok(());
        }
        match max - min {
            0 => invalid!(ReturnValue, "this callback returns {min}; r0 holds {}", r0.num),
            1 => invalid!(ReturnValue, "this callback returns {min} or {max}; r0 holds {}", r0.num),
            _ => invalid!(ReturnValue, "this callback returns {min} to {max}; r0 holds {}", r0.num),
        }
    }

    pub fn check_may_goto(&mut self, i: Insn) -> Check<Next> {
        if i.is_x() || i.src() != 0 || i.dst() != 0 || i.imm != 0 || i.class() != skep_ebpf::insn::class::JMP {
            return invalid!(ReservedField, "may_goto uses fields that must be zero");
        }
        let before = self.previous_round(self.insn, self.state.parent);
        let next = self.insn + 1;
        self.push_path(next)?.may_goto_depth += 1;
        if let (Some(before), Some(round)) = (before, self.pending.last_mut()) {
            widen(&mut self.ids, self.explored.state(before), &mut round.state);
        }
        // Out of budget, the loop is left here.
        match usize::try_from(crate::cfg::jump_target(self.insn, i)) {
            Ok(t) => Ok(Next::At(t)),
            Err(_) => invalid!(JumpOutOfRange, "may_goto leads in front of the program"),
        }
    }

    /// The state of the round before, at the same instruction of the same call; `this` is the one just saved there.
    pub fn previous_round(&self, insn: usize, this: Option<StateId>) -> Option<StateId> {
        self.explored.newest_open(insn, this, |old| {
            old.frames.len() == self.state.frames.len()
                && old.frames.iter().zip(&self.state.frames).skip(1).all(|(o, c)| o.callsite == c.callsite)
        })
    }
}

/// Forgets numbers that differ from the round before, unless something depended on them.
pub(crate) fn widen(ids: &mut IdMap, old: &State, cur: &mut State) {
    ids.clear();
    let mut forget =
        |o: &Reg, c: &Reg| o.is_scalar() && c.is_scalar() && !o.precise && !c.precise && !compare::same(o, c, ids);
    for (o, c) in old.frames.iter().zip(&mut cur.frames) {
        for (n, o) in o.regs.iter().enumerate() {
            if forget(o, &c.regs[n]) {
                c.regs[n] = Reg::UNKNOWN;
            }
        }
        for (n, o) in o.stack.iter().enumerate() {
            if c.stack.get(n).is_some_and(|c| o.is_spill() && c.is_spill() && forget(&o.reg, &c.reg)) {
                c.stack[n].reg = Reg::UNKNOWN;
            }
        }
    }
}
