//! Saved states: recognising that a path was checked before, or that it goes in circles.

use skep_ebpf::insn::jmp;

use crate::cfg::is_jump;
use crate::compare::{self, Exact};
use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::state::{State, StateId};

#[derive(Debug)]
struct Saved {
    state: State,
    hits: u32,
    misses: u32,
    /// No longer looked at; kept while paths from it are open.
    retired: bool,
    /// A path from here ended in a loop that was still being followed: what is known of reads and precision behind
    /// this state is not all, so it only stands for states that lie in it whole.
    in_loop: bool,
}

/// All saved states, by the instruction where they stand.
#[derive(Debug)]
pub(crate) struct Explored {
    saved: Vec<Saved>,
    at: Vec<Vec<StateId>>,
    free: Vec<StateId>,
    entry: usize,
    live: u32,
    last_jumps: u32,
    last_insns: u64,
}

impl Explored {
    pub fn new(insns: usize) -> Explored {
        Explored {
            saved: Vec::new(),
            at: vec![Vec::new(); insns],
            free: Vec::new(),
            entry: 0,
            live: 0,
            last_jumps: 0,
            last_insns: 0,
        }
    }

    /// Forgets all states: another function is checked, from this instruction on.
    pub fn begin(&mut self, entry: usize) {
        self.saved.clear();
        self.free.clear();
        self.at.iter_mut().for_each(Vec::clear);
        self.entry = entry;
        self.live = 0;
    }

    pub fn state(&self, id: StateId) -> &State {
        &self.saved[id.0 as usize].state
    }

    pub fn state_mut(&mut self, id: StateId) -> &mut State {
        &mut self.saved[id.0 as usize].state
    }

    /// True for a state without anything before it.
    pub fn is_entry(&self, id: StateId) -> bool {
        let s = self.state(id);
        let entry = s.insn == self.entry || s.frames.first().is_some_and(|f| f.callback.is_async);
        s.parent.is_none() && entry && s.steps.is_empty()
    }

    pub fn add_branch(&mut self, id: StateId) {
        self.saved[id.0 as usize].state.branches += 1;
    }

    /// A path that came from this state is done.
    pub fn path_done(&mut self, mut parent: Option<StateId>) {
        while let Some(id) = parent {
            let s = &mut self.saved[id.0 as usize];
            s.state.branches = s.state.branches.saturating_sub(1);
            if s.state.branches > 0 {
                return;
            }
            // What led here is needed only while precision may still walk back over it.
            s.state.steps = Vec::new();
            parent = s.state.parent;
            if s.retired {
                self.discard(id);
            }
        }
    }

    /// The newest open state at this instruction that fits and is not `this`.
    pub fn newest_open(&self, insn: usize, this: Option<StateId>, fits: impl Fn(&State) -> bool) -> Option<StateId> {
        let ids = self.at.get(insn)?;
        ids.iter().rev().copied().find(|id| {
            let state = self.state(*id);
            Some(*id) != this && state.branches > 0 && fits(state)
        })
    }

    /// Marks the states from `from` up to the outermost loop that is still being followed.
    fn mark_in_loop(&mut self, from: Option<StateId>, is_loop: impl Fn(usize) -> bool) {
        let mut chain = Vec::new();
        let mut outermost = 0;
        let mut next = from;
        while let Some(id) = next {
            let state = self.state(id);
            chain.push(id);
            if is_loop(state.insn) {
                outermost = chain.len();
            }
            next = state.parent;
        }
        for id in &chain[..outermost] {
            self.saved[id.0 as usize].in_loop = true;
        }
    }

    fn discard(&mut self, id: StateId) {
        self.saved[id.0 as usize].state = State::default();
        self.free.push(id);
        self.live -= 1;
    }

    fn insert(&mut self, state: State) -> StateId {
        let at = state.insn;
        let saved = Saved { state, hits: 0, misses: 0, retired: false, in_loop: false };
        let id = match self.free.pop() {
            Some(id) => {
                self.saved[id.0 as usize] = saved;
                id
            }
            None => {
                self.saved.push(saved);
                StateId(self.saved.len() as u32 - 1)
            }
        };
        self.at[at].push(id);
        self.live += 1;
        id
    }
}

impl Env<'_> {
    /// At a point where paths meet: true if this path need not be followed further.
    pub fn visit(&mut self) -> Check<bool> {
        let at = self.insn;
        let point = self.cfg.points[at];
        let jumps = self.jumps - self.explored.last_jumps;
        let insns = self.stats.insns_processed - self.explored.last_insns;
        // Long unsaved paths make walking back expensive.
        let force = point.force || self.options.save_often || self.state.steps.len() > 40;
        let mut save = force || jumps >= 2 && insns >= 8;

        let mut n = self.explored.at[at].len();
        while n > 0 {
            n -= 1;
            let id = self.explored.at[at][n];
            let old = self.explored.state(id);
            // States of other calls of this function are no company for this one.
            if old.frames.last().map(|f| f.callsite) != Some(self.state.frame().callsite) {
                continue;
            }
            let open = old.branches > 0;
            if open {
                let may_goto = self.insns[at].op() == jmp::JCOND && is_jump(self.insns[at]);
                let another_round = point.calls_back || may_goto && old.may_goto_depth != self.state.may_goto_depth;
                if another_round && compare::states_equal(self, old, &self.state, Exact::Within) {
                    self.explored.saved[id.0 as usize].hits += 1;
                    self.end_in_loop();
                    return Ok(true);
                }
                // Another entry into a function that runs on its own is not another round.
                let frame = self.state.frame();
                let other_entry =
                    frame.callback.is_async && old.frames.last().is_some_and(|o| o.async_entry != frame.async_entry);
                if !point.calls_back
                    && !other_entry
                    && maybe_looping(old, &self.state)
                    && old.may_goto_depth == self.state.may_goto_depth
                    && old.callback_unroll == self.state.callback_unroll
                    && compare::states_equal(self, old, &self.state, Exact::Yes)
                {
                    return invalid!(
                        InfiniteLoop,
                        "the loop through instruction {at} comes back without having changed anything"
                    );
                }
                if !force && jumps < 20 && insns < 100 {
                    save = false;
                }
            } else {
                let in_loop = self.explored.saved[id.0 as usize].in_loop;
                if compare::states_equal(self, old, &self.state, if in_loop { Exact::Within } else { Exact::No }) {
                    self.explored.saved[id.0 as usize].hits += 1;
                    if point.jump {
                        self.record_step(None, Vec::new());
                    }
                    if in_loop {
                        self.end_in_loop();
                    } else {
                        self.propagate_precision(id);
                    }
                    return Ok(true);
                }
            }
            if save {
                let s = &mut self.explored.saved[id.0 as usize];
                s.misses += 1;
                let patience = if point.force && s.state.branches > 0 { 64 } else { 3 };
                if s.misses > s.hits * patience + patience {
                    s.retired = true;
                    let done = s.state.branches == 0;
                    self.explored.at[at].remove(n);
                    if done {
                        self.explored.discard(id);
                    }
                }
            }
        }
        if !save {
            return Ok(false);
        }
        self.explored.last_jumps = self.jumps;
        self.explored.last_insns = self.stats.insns_processed;
        self.stats.states += 1;

        self.state.each_reg(|r| r.precise = false);
        let steps = std::mem::take(&mut self.state.steps);
        let mut copy = self.state.clone();
        copy.steps = steps;
        copy.insn = at;
        copy.branches = 1;
        let id = self.explored.insert(copy);
        self.stats.peak_states = self.stats.peak_states.max(self.explored.live);
        self.state.parent = Some(id);
        self.state.first_insn = at;
        Ok(false)
    }

    /// The path ends in a loop that is still being followed: what happens behind is not known to the states on it, so
    /// they must keep everything.
    fn end_in_loop(&mut self) {
        let points = &self.cfg.points;
        self.explored.mark_in_loop(self.state.parent, |insn| points.get(insn).is_some_and(|p| p.force));
        self.mark_all_precise();
    }
}

/// Quick test before the exact comparison: the registers of the active frame are the same.
fn maybe_looping(old: &State, cur: &State) -> bool {
    if old.frames.len() != cur.frames.len() {
        return false;
    }
    old.regs().iter().zip(cur.regs()).all(|(a, b)| a.kind == b.kind && a.id == b.id && a.off == b.off && a.num == b.num)
}
