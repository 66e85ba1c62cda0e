//! Recognising that a path was checked before, or that it goes in circles.
//!
//! # Loops of unknown length
//!
//! A loop that nothing bounds ends when a round says nothing new. Three kinds share the machinery:
//!
//! * helpers that call functions back (`Point::calls_back`; see [`callbacks`](crate::callbacks)),
//! * `may_goto` (`State::may_goto_depth`),
//! * kernel functions that move an iterator on (`Point::iter_next`). Who adds them sets `force` and `iter_next` (and
//!   `prune`) for the call in [`cfg`](crate::cfg), follows the path without an element by [`Env::push_path`], and on the
//!   path with one counts the iterator's `depth` up and widens it (see [`iterators`](crate::iterators)).
//!
//! At such an instruction a state is saved each time, and a state lies in an open one as soon as it is narrower
//! everywhere ([`Exact::Within`]) and some such loop went on since ([`rounds_since`]): each of them ends when the program
//! runs, but a loop around them that begins them anew need not. Everywhere else a state that equals an open one is an
//! endless loop.

use skep_ebpf::insn::jmp;

use crate::cfg::is_jump;
use crate::compare::{Exact, differ_at, insn_of, iterators_differ, maybe_looping, rounds_since, states_equal};
use crate::env::Env;
use crate::explored::BackEdge;
use crate::fail::{Check, invalid, unsupported};
use crate::reg::Reg;
use crate::stack_object::Iter;
use crate::state::{FP, Slot, State, StateId};

/// Rounds over the back edges of a loop before everything in it is taken as relied on.
const MAX_SETTLING: u32 = 64;
/// States at one instruction of a program without `CAP_BPF`; with more of them no others are saved.
const MAX_STATES: usize = 64;
/// Longer paths without a saved state make walking back expensive.
const MAX_STEPS: usize = 40;

impl Env<'_> {
    /// At a point where paths meet: true if this path need not be followed further.
    pub fn visit(&mut self) -> Check<bool> {
        if self.follows {
            return Ok(false);
        }
        let at = self.insn;
        let point = self.cfg.points[at];
        let jumps = self.jumps - self.explored.last_jumps;
        let insns = self.stats.insns_processed - self.explored.last_insns;
        let force =
            point.force || self.options.save_often && self.tracks_numbers() || self.state.steps.len() > MAX_STEPS;
        let mut save = force || jumps >= 2 && insns >= 8;

        let mut n = self.explored.count(at);
        let states = n;
        self.stats.states_per_insn = self.stats.states_per_insn.max(n as u32);
        while n > 0 {
            n -= 1;
            let Some(id) = self.explored.nth(at, n) else { continue };
            let old = self.explored.state(id);
            // States of other calls of this function are no company for this one.
            if old.frames.last().map(|f| f.callsite) != Some(self.state.frame().callsite) {
                continue;
            }
            if old.branches > 0 {
                if self.another_round(at, id) {
                    return self.end_path(id, true);
                }
                let old = self.explored.state(id);
                // Another entry into a function that runs on its own is not another round.
                let frame = self.state.frame();
                let other_entry =
                    frame.callback.is_async && old.frames.last().is_some_and(|o| o.async_entry != frame.async_entry);
                if !other_entry
                    && maybe_looping(old, &self.state)
                    && !self.rounds_differ(old)
                    && self.covered(id, Exact::Yes)
                {
                    return invalid!(
                        InfiniteLoop,
                        "the loop through instruction {at} comes back without having changed anything"
                    );
                }
                // In a loop, states saved too often help nobody.
                if !force && jumps < 20 && insns < 100 {
                    save = false;
                }
            } else {
                let exact = self.explored.exactness(&self.cfg, id);
                if exact == Exact::No {
                    self.clean(id);
                }
                if self.covered(id, exact) {
                    return self.end_path(id, exact != Exact::No);
                }
            }
            if save {
                self.explored.miss(&self.cfg, n, id);
            }
        }
        if save && (self.tracks_numbers() || states <= MAX_STATES) {
            self.save_state(at);
        }
        Ok(false)
    }

    fn save_state(&mut self, at: usize) {
        self.explored.last_jumps = self.jumps;
        self.explored.last_insns = self.stats.insns_processed;
        self.stats.states += 1;
        // Numbers of the state at hand are never marked precise: marks go to saved states.
        let steps = std::mem::take(&mut self.state.steps);
        let copy = State { steps, insn: at, branches: 1, cleaned: false, ..self.state.clone() };
        let id = self.explored.insert(&self.cfg, copy);
        self.stats.peak_states = self.stats.peak_states.max(self.explored.kept());
        self.state.parent = Some(id);
        self.state.first_insn = at;
    }

    /// True if a saved state stands for the current one.
    fn covered(&mut self, id: StateId, exact: Exact) -> bool {
        let old = self.explored.state(id);
        let apart = self.explored.suspect(id).is_some_and(|p| differ_at(p, &mut self.ids, old, &self.state, exact));
        if apart {
            return false;
        }
        let equal = states_equal(&self.live, &mut self.ids, old, &self.state, exact);
        if let Some(place) = self.ids.differs().filter(|_| !equal) {
            self.explored.suspect_of(id, place);
        }
        equal
    }

    /// True if this is one more round of a loop of unknown length that says nothing new.
    fn another_round(&mut self, at: usize, id: StateId) -> bool {
        let point = self.cfg.points[at];
        let i = self.insns[at];
        let old = self.explored.state(id);
        let may_goto = i.op() == jmp::JCOND && is_jump(i) && old.may_goto_depth != self.state.may_goto_depth;
        (may_goto || (point.iter_next || point.calls_back) && rounds_since(old, &self.state))
            && self.covered(id, Exact::Within)
            && (!point.iter_next || self.iterator_active())
    }

    /// True if the iterator that the kernel function at hand moves on still has elements to give.
    fn iterator_active(&self) -> bool {
        let place = self.object_place(self.state.reg(1), 1).ok();
        place.and_then(|p| self.slot_at(p)).and_then(Iter::in_slot).is_some_and(|i| !i.drained)
    }

    /// True if loops of unknown length were gone through more often than in `old`.
    fn rounds_differ(&self, old: &State) -> bool {
        old.may_goto_depth != self.state.may_goto_depth
            || old.callback_unroll != self.state.callback_unroll
            || iterators_differ(old, &self.state)
    }

    /// Ends the path: a saved state stands for the current one, and what follows it is what it relies on.
    fn end_path(&mut self, id: StateId, in_loop: bool) -> Check<bool> {
        self.explored.hit(id);
        if self.cfg.points[self.insn].jump {
            self.record_step(None, Vec::new());
        }
        self.propagate_precision(id);
        if in_loop {
            let state = State { insn: self.insn, ..self.state.clone() };
            if !self.explored.add_back_edge(&self.cfg, BackEdge { state, target: id }) {
                return unsupported!(
                    UnsupportedFeature,
                    "the loop through instruction {} is not judged yet",
                    self.insn
                );
            }
            self.stats.peak_states = self.stats.peak_states.max(self.explored.kept());
        }
        Ok(true)
    }

    /// The current path is done.
    pub fn path_done(&mut self) {
        let mut next = self.state.parent;
        while let Some(id) = next {
            if !self.explored.end_branch(id) {
                return;
            }
            if let Some((edges, held)) = self.explored.end_visit(&self.cfg, id) {
                self.settle(edges);
                for id in held {
                    self.explored.finish(&self.cfg, id);
                }
            }
            next = self.explored.state(id).parent;
            self.explored.finish(&self.cfg, id);
        }
    }

    /// Carries what the states of a finished loop rely on back along its back edges, until nothing changes.
    fn settle(&mut self, mut edges: Vec<BackEdge>) {
        let insn = self.insn;
        for round in 0.. {
            let mut changed = false;
            for edge in &mut edges {
                std::mem::swap(&mut self.state, &mut edge.state);
                self.insn = self.state.insn;
                if round < MAX_SETTLING {
                    changed |= self.propagate_precision(edge.target);
                } else {
                    self.mark_all_precise();
                }
                std::mem::swap(&mut self.state, &mut edge.state);
            }
            if !changed {
                break;
            }
        }
        self.insn = insn;
    }

    /// Removes from a saved state what no path behind it reads.
    fn clean(&mut self, id: StateId) {
        if self.explored.state(id).cleaned {
            return;
        }
        let mut state = std::mem::take(self.explored.state_mut(id));
        state.cleaned = true;
        for n in 0..state.frames.len() {
            let regs = self.live.regs[insn_of(&state, n)];
            let slots = self.live.alive(&state, n, |call| self.cfg.points[call].calls_back);
            let dead = |r: usize, reg: &Reg| regs & 1 << r == 0 && *reg != Reg::NOT_INIT;
            let frame = &state.frames[n];
            if frame.regs.iter().take(FP).enumerate().any(|(r, reg)| dead(r, reg)) {
                for (r, reg) in state.frames[n].regs.iter_mut().take(FP).enumerate() {
                    if regs & 1 << r == 0 {
                        *reg = Reg::NOT_INIT;
                    }
                }
            }
            let read = |s: usize| slots & 1u64.checked_shl(s as u32).unwrap_or(0) != 0;
            let full = |(s, slot): (usize, &Slot)| u64::from(slot.bytes != Slot::EMPTY.bytes) << (s & 63);
            state.kept.push(slots & state.frames[n].stack.iter().enumerate().map(full).fold(0, |all, s| all | s));
            if state.frames[n].stack.iter().enumerate().any(|(s, slot)| !read(s) && *slot != Slot::EMPTY) {
                for (s, slot) in state.frames[n].stack.iter_mut().enumerate() {
                    if !read(s) {
                        *slot = Slot::EMPTY;
                    }
                }
            }
        }
        *self.explored.state_mut(id) = state;
    }
}
