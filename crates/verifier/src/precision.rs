//! Precision: when a check relied on a number, the numbers it was made from must be compared when states are.
//!
//! A saved state that is reached again with other numbers may stand for the new one as long as nothing depended on
//! them. When something does, this module walks the path back, instruction by instruction, and marks in every saved
//! state on the way the registers and stack slots that the number came from.

use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode};

use crate::cfg;
use crate::env::Env;
use crate::fail::Check;
use crate::reg::Reg;
use crate::state::{FP, Frame, Place, State, StateId, Step};

const ARGS: u16 = 0b11_1110;
const TAIL_CALL: i32 = 12;

/// What is still wanted: registers and slots, by frame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backtrack {
    frame: usize,
    regs: [u16; 8],
    slots: [u64; 8],
    /// Numbers that atomic operations fetched from the stack are followed to where they were stored. Linux 6.18 does
    /// not, and forgets them between the rounds of loops; so first all is done without, and with it only what that left
    /// out is marked ([`Reg::relied`]).
    through_atomics: bool,
    /// The walk came through such an operation.
    met_atomic: bool,
}

/// The walk met something that it cannot follow.
struct Lost;

impl Backtrack {
    fn begin(&mut self, frame: usize) {
        *self = Backtrack { frame: frame.min(7), ..Backtrack::default() };
    }

    fn is_empty(&self) -> bool {
        self.regs == [0; 8] && self.slots == [0; 8]
    }

    fn has(&self, r: u8) -> bool {
        self.regs[self.frame] & 1 << r != 0
    }

    fn set(&mut self, r: u8) {
        self.regs[self.frame] |= 1 << r;
    }

    fn clear(&mut self, r: u8) {
        self.regs[self.frame] &= !(1 << r);
    }

    fn wants(&self, place: Place) -> bool {
        match place {
            Place::Reg { frame, reg } => self.regs[usize::from(frame & 7)] & 1 << reg != 0,
            Place::Slot { frame, slot } => self.slots[usize::from(frame & 7)] & 1 << (slot & 63) != 0,
        }
    }

    fn want(&mut self, place: Place) {
        match place {
            Place::Reg { frame, reg } => self.regs[usize::from(frame & 7)] |= 1 << reg,
            Place::Slot { frame, slot } => self.slots[usize::from(frame & 7)] |= 1 << (slot & 63),
        }
    }

    /// What is wanted of the function at hand, for the log.
    fn text(&self) -> String {
        let regs = (0..11).filter(|r| self.has(*r)).map(|r| format!("r{r}"));
        let slots = (0..64u32).filter(|s| self.slots[self.frame] >> s & 1 != 0).map(|s| format!("-{}", (s + 1) * 8));
        let join = |all: Vec<String>| all.join(",");
        format!("regs={} stack={}", join(regs.collect()), join(slots.collect()))
    }

    /// Numbers that learnt together are wanted together.
    fn sync_linked(&mut self, step: Option<&Step>) {
        let Some(step) = step else { return };
        if step.linked.iter().any(|p| self.wants(*p)) {
            for p in &step.linked {
                self.want(*p);
            }
        }
    }

    /// Leaves a function backwards: at its first instruction, towards the call.
    fn back_to_caller(&mut self) -> Result<(), Lost> {
        if self.frame == 0 {
            return Err(Lost);
        }
        self.frame -= 1;
        Ok(())
    }

    /// Enters a function backwards: at its exit, coming from behind the call.
    fn back_into_callee(&mut self) -> Result<(), Lost> {
        if self.frame >= 7 {
            return Err(Lost);
        }
        self.frame += 1;
        Ok(())
    }
}

/// Such an instruction always matters.
const ALWAYS: u16 = 1 << 15;

/// Registers of the active frame that must be wanted for an instruction to matter to the walk back, perhaps [`ALWAYS`].
/// Stack slots and linked numbers are another matter: those are in the steps.
pub(crate) fn concerns(i: Insn) -> u16 {
    let (dst, src) = (1u16 << i.dst(), 1u16 << i.src());
    match i.class() {
        // The second half of a 64-bit immediate is no instruction.
        _ if i.code == 0 => 0,
        class::ALU | class::ALU64 | class::LDX | class::ST => dst,
        class::STX if i.mode() == mode::ATOMIC => ALWAYS,
        class::STX => dst,
        class::LD if matches!(i.mode(), mode::ABS | mode::IND) => ALWAYS,
        class::LD => dst,
        _ => match i.op() {
            jmp::JA | jmp::JCOND => 0,
            jmp::CALL | jmp::EXIT => ALWAYS,
            _ if i.is_x() => dst | src,
            _ => 0,
        },
    }
}

/// What backtracking needs to know of the program.
struct Walk<'a> {
    insns: &'a [Insn],
    /// What each instruction [`concerns`].
    concerns: &'a [u16],
    is_global: &'a dyn Fn(usize) -> bool,
    calls_back: &'a dyn Fn(usize) -> bool,
}

impl Walk<'_> {
    /// True if undoing this instruction changes nothing.
    fn passes(&self, want: &Backtrack, at: usize, step: Option<&Step>) -> bool {
        let concerned = want.regs[want.frame] | ALWAYS;
        step.is_none_or(|s| s.stack.is_none() && s.linked.is_empty())
            && self.concerns.get(at).is_some_and(|c| c & concerned == 0)
    }

    /// Undoes one instruction; `later` is the one that ran after it.
    fn undo(&self, want: &mut Backtrack, at: usize, later: Option<usize>, step: Option<&Step>) -> Result<(), Lost> {
        let Some(&i) = self.insns.get(at) else { return Err(Lost) };
        // The second half of a 64-bit immediate is no instruction.
        if i.code == 0 {
            return Ok(());
        }
        want.sync_linked(step);
        self.undo_insn(want, at, later, i, step)?;
        want.sync_linked(step);
        Ok(())
    }

    fn undo_insn(
        &self,
        want: &mut Backtrack,
        at: usize,
        later: Option<usize>,
        i: Insn,
        step: Option<&Step>,
    ) -> Result<(), Lost> {
        let stack = step.and_then(|s| s.stack);
        match i.class() {
            class::ALU | class::ALU64 => {
                if !want.has(i.dst()) {
                    return Ok(());
                }
                match i.op() {
                    alu::END | alu::NEG => {}
                    alu::MOV => {
                        want.clear(i.dst());
                        if i.is_x() && usize::from(i.src()) != FP {
                            want.set(i.src());
                        }
                    }
                    _ => {
                        if i.is_x() && usize::from(i.src()) != FP {
                            want.set(i.src());
                        }
                    }
                }
            }
            class::LDX => undo_load(want, i.dst(), stack),
            class::STX if i.mode() == mode::ATOMIC && i.imm == atomic::LOAD_ACQ => undo_load(want, i.dst(), stack),
            class::STX if i.mode() == mode::ATOMIC && i.imm != atomic::STORE_REL => {
                let result = if i.imm == atomic::CMPXCHG { 0 } else { i.src() };
                let fetched = i.imm & atomic::FETCH != 0 && want.has(result);
                if want.has(i.dst()) {
                    return Err(Lost);
                }
                let Some((frame, slot)) = stack else { return Ok(()) };
                if fetched && want.through_atomics {
                    // What was fetched came from memory; operands may have been in the same register.
                    want.want(Place::Slot { frame, slot });
                }
                want.met_atomic |= fetched;
            }
            class::STX | class::ST => {
                if want.has(i.dst()) {
                    return Err(Lost);
                }
                let Some((frame, slot)) = stack else { return Ok(()) };
                if want.wants(Place::Slot { frame, slot }) {
                    want.slots[usize::from(frame & 7)] &= !(1 << (slot & 63));
                    if i.class() == class::STX {
                        want.set(i.src());
                    }
                }
            }
            class::LD if matches!(i.mode(), mode::ABS | mode::IND) && later != Some(at + 1) => {
                return undo_end(want);
            }
            class::LD => {
                if want.has(i.dst()) {
                    want.clear(i.dst());
                    if matches!(i.mode(), mode::ABS | mode::IND) {
                        return Err(Lost);
                    }
                }
            }
            _ => return self.undo_flow(want, at, later, i),
        }
        Ok(())
    }

    fn undo_flow(&self, want: &mut Backtrack, at: usize, later: Option<usize>, i: Insn) -> Result<(), Lost> {
        let here = |want: &Backtrack| want.regs[want.frame];
        match i.op() {
            jmp::JA | jmp::JCOND => {}
            jmp::CALL if i.is_subprog_call() => {
                let target = usize::try_from(cfg::callee(at, i)).map_err(|_| Lost)?;
                if (self.is_global)(target) {
                    want.clear(0);
                    if here(want) & ARGS != 0 {
                        return Err(Lost);
                    }
                    return Ok(());
                }
                // Leaving the callee backwards: only its arguments can still be wanted.
                if here(want) & !ARGS != 0 || want.slots[want.frame] != 0 {
                    return Err(Lost);
                }
                let args = here(want);
                want.regs[want.frame] = 0;
                want.back_to_caller()?;
                want.regs[want.frame] |= args;
            }
            jmp::CALL if i.is_helper_call() && i.imm == TAIL_CALL && later != Some(at + 1) => return undo_end(want),
            jmp::CALL => {
                if (self.calls_back)(at) && later != Some(at + 1) {
                    // Leaving a callback backwards; what it was given came from the helper.
                    if here(want) & !ARGS != 0 || want.slots[want.frame] != 0 {
                        return Err(Lost);
                    }
                    want.regs[want.frame] = 0;
                    return want.back_to_caller();
                }
                want.clear(0);
                if here(want) & ARGS != 0 {
                    return Err(Lost);
                }
            }
            jmp::EXIT => {
                let call = later.and_then(|l| l.checked_sub(1)).and_then(|c| self.insns.get(c));
                let after_call = call.is_some_and(|c| c.is_subprog_call());
                if later.is_some_and(|l| (self.calls_back)(l)) {
                    // It may be the end of the callback, or of the function called just before.
                    if after_call {
                        return Err(Lost);
                    }
                    want.regs[want.frame] &= !ARGS;
                }
                if here(want) & ARGS != 0 {
                    return Err(Lost);
                }
                let result = after_call && want.has(0);
                want.clear(0);
                want.back_into_callee()?;
                if result {
                    want.set(0);
                }
            }
            _ if i.is_x() && (want.has(i.dst()) || want.has(i.src())) => {
                want.set(i.dst());
                want.set(i.src());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Enters a function backwards that a packet load or a tail call ended: its result was made there.
fn undo_end(want: &mut Backtrack) -> Result<(), Lost> {
    if want.regs[want.frame] & ARGS != 0 {
        return Err(Lost);
    }
    want.clear(0);
    want.back_into_callee()
}

fn undo_load(want: &mut Backtrack, dst: u8, stack: Option<(u8, u8)>) {
    if !want.has(dst) {
        return;
    }
    want.clear(dst);
    if let Some((frame, slot)) = stack {
        want.want(Place::Slot { frame, slot });
    }
}

/// The instruction before `at` on the path of a state, and how many steps of it are left.
fn previous(state: &State, at: usize, left: &mut usize) -> Option<usize> {
    let last = left.checked_sub(1).and_then(|n| state.steps.get(n));
    if at == state.first_insn {
        match (*left, last) {
            (0, _) => return None,
            (1, Some(s)) if s.insn as usize == at => return None,
            _ => {}
        }
    }
    match last {
        Some(s) if s.insn as usize == at => {
            *left -= 1;
            Some(s.prev as usize)
        }
        _ => at.checked_sub(1),
    }
}

impl Env<'_> {
    /// A check relied on this register of the active frame.
    pub fn mark_precise(&mut self, r: u8) -> Check {
        let frame = self.state.depth();
        if !self.state.reg(r).is_scalar() || !self.tracks_numbers() {
            return Ok(());
        }
        self.backtrack.begin(frame);
        self.backtrack.set(r);
        self.walk_back();
        Ok(())
    }

    /// A check relied on the number in this stack slot.
    pub fn mark_slot_precise(&mut self, frame: u8, slot: u8) -> Check {
        self.backtrack.begin(self.state.depth());
        self.backtrack.want(Place::Slot { frame, slot });
        self.walk_back();
        Ok(())
    }

    /// The current state continues as `old` did: what old relied on, the current path must keep too. True if that
    /// marked anything new.
    pub fn propagate_precision(&mut self, old: StateId) -> bool {
        self.backtrack.begin(self.state.depth());
        let (mut want, mut more) = (self.backtrack, self.backtrack);
        more.through_atomics = true;
        for (f, (frame, cur)) in self.explored.state(old).frames.iter().zip(&self.state.frames).enumerate().take(8) {
            // What is no number in the current state needs no marks.
            for (r, (reg, now)) in frame.regs.iter().zip(&cur.regs).enumerate().take(FP) {
                if reg.is_scalar() && now.is_scalar() {
                    let place = Place::Reg { frame: f as u8, reg: r as u8 };
                    let sets = [(reg.precise, &mut want), (reg.relied, &mut more)];
                    sets.into_iter().filter(|s| s.0).for_each(|(_, want)| want.want(place));
                }
            }
            for (s, (slot, now)) in frame.stack.iter().zip(cur.stack.iter()).enumerate() {
                if slot.is_scalar_spill() && now.is_scalar_spill() {
                    let place = Place::Slot { frame: f as u8, slot: s as u8 };
                    let sets = [(slot.reg.precise, &mut want), (slot.reg.relied, &mut more)];
                    sets.into_iter().filter(|s| s.0).for_each(|(_, want)| want.want(place));
                }
            }
        }
        self.backtrack = want;
        let changed = self.walk_back();
        self.backtrack = more;
        self.walk_back() | changed
    }

    /// Marks every number in every saved state on the path: always right, never cheap. True if one was not marked yet.
    pub fn mark_all_precise(&mut self) -> bool {
        self.mark_all(false)
    }

    fn mark_all(&mut self, through_atomics: bool) -> bool {
        let mut changed = false;
        let mut parent = self.state.parent;
        while let Some(id) = parent {
            let state = self.explored.state_mut(id);
            changed |= state.change_regs(|r| unmarked(r, through_atomics), |r| mark(r, through_atomics));
            parent = state.parent;
        }
        changed
    }

    /// Walks back from the current instruction, itself left out, and once more where atomic operations fetched what is
    /// wanted. True if that marked anything new.
    fn walk_back(&mut self) -> bool {
        let again = Backtrack { through_atomics: true, ..self.backtrack };
        let mut changed = self.walk_once();
        if self.backtrack.met_atomic && !self.backtrack.through_atomics {
            self.backtrack = again;
            changed |= self.walk_once();
        }
        changed
    }

    fn walk_once(&mut self) -> bool {
        if self.backtrack.is_empty() || self.follows {
            return false;
        }
        let mut changed = false;
        let mut want = std::mem::take(&mut self.backtrack);
        let functions = &self.functions;
        let cfg = &self.cfg;
        let is_global = |start: usize| cfg.function_at(start).is_some_and(|f| functions[f].global.is_some());
        let calls_back = |at: usize| cfg.points.get(at).is_some_and(|p| p.calls_back);
        let walk = Walk { insns: self.insns, concerns: &self.concerns, is_global: &is_global, calls_back: &calls_back };

        let mut log = Some(&mut self.log).filter(|_| self.options.log);
        let mut at = self.insn;
        let mut later: Option<usize> = None;
        let mut parent: Option<StateId> = self.state.parent;
        let mut state: &State = &self.state;
        let mut lost = false;
        let mut skip_first = true;
        loop {
            let mut left = state.steps.len();
            let first = state.first_insn;
            if let Some(log) = &mut log {
                let subsequent = later.map_or(-1, |n| n as i64);
                log.precise(format_args!(
                    "frame{}: last_idx {at} first_idx {first} subseq_idx {subsequent} ",
                    want.frame
                ));
            }
            loop {
                let step = left.checked_sub(1).and_then(|n| state.steps.get(n)).filter(|s| s.insn as usize == at);
                if let (Some(log), false) = (&mut log, skip_first) {
                    log.precise_insn(want.frame, &want.text(), at);
                }
                if skip_first {
                    skip_first = false;
                } else if !walk.passes(&want, at, step) {
                    if walk.undo(&mut want, at, later, step).is_err() {
                        lost = true;
                        break;
                    }
                    if want.is_empty() {
                        break;
                    }
                }
                later = Some(at);
                let before = match step {
                    // Most instructions follow the one before them.
                    None if at != first => at.checked_sub(1),
                    _ => previous(state, at, &mut left),
                };
                match before {
                    Some(p) => at = p,
                    None => break,
                }
            }
            if lost || want.is_empty() {
                break;
            }
            let Some(id) = parent else { break };
            changed |= mark_wanted(self.explored.state_mut(id), &mut want);
            if let Some(log) = &mut log {
                log.precise_state(want.frame, &want.text(), self.explored.state(id));
            }
            if want.is_empty() {
                break;
            }
            later = Some(first);
            state = self.explored.state(id);
            at = state.last_insn;
            parent = state.parent;
            // A saved state that is itself the entry has nothing before it.
            if self.explored.is_entry(id) {
                break;
            }
        }
        // At the entry only arguments are left, of which the caller knows nothing.
        let entry_only = want.slots == [0; 8] && want.regs[0] & !ARGS == 0 && want.regs[1..] == [0; 7];
        if lost || !entry_only {
            changed |= self.mark_all(want.through_atomics);
        }
        self.backtrack = want;
        changed
    }
}

/// A number that a walk of this kind has not marked yet.
fn unmarked(reg: &Reg, through_atomics: bool) -> bool {
    reg.is_scalar() && !if through_atomics { reg.relied } else { reg.precise }
}

fn mark(reg: &mut Reg, through_atomics: bool) {
    let mark = if through_atomics { &mut reg.relied } else { &mut reg.precise };
    *mark = true;
}

/// Marks what is wanted in a saved state; what is marked already, or is no number, is wanted no longer. True if there
/// was something to mark.
fn mark_wanted(state: &mut State, want: &mut Backtrack) -> bool {
    let mut changed = false;
    let kind = want.through_atomics;
    for (f, shared) in state.frames.iter_mut().enumerate().take(8) {
        let frame: &Frame = shared;
        for r in bits(want.regs[f].into()) {
            if !frame.regs.get(r).is_some_and(|reg| unmarked(reg, kind)) {
                want.regs[f] &= !(1 << r);
            }
        }
        for s in bits(want.slots[f]) {
            if !frame.stack.get(s).is_some_and(|slot| slot.is_spill() && unmarked(&slot.reg, kind)) {
                want.slots[f] &= !(1 << s);
            }
        }
        if want.regs[f] != 0 {
            changed = true;
            let regs = &mut shared.regs;
            bits(want.regs[f].into()).for_each(|r| mark(&mut regs[r], kind));
        }
        if want.slots[f] != 0 {
            changed = true;
            let stack = &mut *shared.stack;
            bits(want.slots[f]).for_each(|s| mark(&mut stack[s].reg, kind));
        }
    }
    changed
}

/// Numbers of the bits that are set.
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = mask.trailing_zeros();
        mask &= mask.checked_sub(1)?;
        Some(bit as usize)
    })
}
