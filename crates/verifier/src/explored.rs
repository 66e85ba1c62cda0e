//! Saved states and their fate: looked at, retired, freed; and the visits of loops that are not finished.
//!
//! While a loop of the control flow graph is being followed, what is read and relied on behind the states in it is not
//! all known. A path that comes back to such a state may end there, but leaves a *back edge*: once the loop is finished
//! (all paths from the first state saved in it are done), what the states ahead rely on is carried back along all back
//! edges until nothing changes. A visit belongs to the outermost loop that the path is in, and the calls that led there.

use std::collections::HashMap;

use crate::cfg::Cfg;
use crate::compare::{Exact, insn_of};
use crate::liveness::InstanceId;
use crate::state::{Place, State, StateId};

#[derive(Debug)]
struct Saved {
    state: State,
    hits: u32,
    misses: u32,
    /// No longer looked at; kept while it may be walked over.
    retired: bool,
    /// Where it differed from the state that it was last compared with.
    suspect: Option<Place>,
}

/// A loop, as reached by one chain of calls.
type LoopId = (InstanceId, u32);

/// A path that ended because it came back to a state in an unfinished loop.
#[derive(Debug)]
pub(crate) struct BackEdge {
    /// The end of the path.
    pub state: State,
    /// The state that stands for it.
    pub target: StateId,
}

/// An unfinished loop.
#[derive(Debug)]
struct Visit {
    /// The first state saved in it.
    entry: StateId,
    edges: Vec<BackEdge>,
    /// States that are done but that back edges may still be walked over.
    held: Vec<StateId>,
}

/// All saved states, by the instruction where they stand.
#[derive(Debug)]
pub(crate) struct Explored {
    saved: Vec<Saved>,
    at: Vec<Vec<StateId>>,
    free: Vec<StateId>,
    visits: HashMap<LoopId, Visit>,
    entry: usize,
    live: u32,
    pub last_jumps: u32,
    pub last_insns: u64,
}

/// How often a state may be compared in vain, for each time that it was not.
const PATIENCE: u32 = 3;
/// The same for states that loops of unknown length need in order to converge.
const LONG_PATIENCE: u32 = 64;

impl Explored {
    pub fn new(insns: usize) -> Explored {
        Explored {
            saved: Vec::new(),
            at: vec![Vec::new(); insns],
            free: Vec::new(),
            visits: HashMap::new(),
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
        self.visits.clear();
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

    /// Where a state differed from the one that it was last compared with.
    pub fn suspect(&self, id: StateId) -> Option<Place> {
        self.saved[id.0 as usize].suspect
    }

    /// Notes where a state differs from the one that it was just compared with.
    pub fn suspect_of(&mut self, id: StateId, place: Place) {
        self.saved[id.0 as usize].suspect = Some(place);
    }

    /// Number of states kept, back edges included.
    pub fn kept(&self) -> u32 {
        self.live
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

    /// Takes one open branch from a state; true if that was the last.
    pub fn end_branch(&mut self, id: StateId) -> bool {
        let s = &mut self.saved[id.0 as usize].state;
        s.branches = s.branches.saturating_sub(1);
        s.branches == 0
    }

    /// The `n`th state at this instruction, oldest first.
    pub fn nth(&self, insn: usize, n: usize) -> Option<StateId> {
        self.at.get(insn)?.get(n).copied()
    }

    /// Number of states at this instruction.
    pub fn count(&self, insn: usize) -> usize {
        self.at.get(insn).map_or(0, Vec::len)
    }

    /// The newest open state at this instruction that fits and is not `this`.
    pub fn newest_open(&self, insn: usize, this: Option<StateId>, fits: impl Fn(&State) -> bool) -> Option<StateId> {
        let ids = self.at.get(insn)?;
        ids.iter().rev().copied().find(|id| {
            let state = self.state(*id);
            Some(*id) != this && state.branches > 0 && fits(state)
        })
    }

    /// This state stood for another.
    pub fn hit(&mut self, id: StateId) {
        self.saved[id.0 as usize].hits += 1;
    }

    /// This state, the `n`th at its instruction, was compared in vain; it is looked at no longer if that is often so.
    pub fn miss(&mut self, cfg: &Cfg, n: usize, id: StateId) {
        let s = &mut self.saved[id.0 as usize];
        s.misses += 1;
        let insn = s.state.insn;
        let forced = cfg.points.get(insn).is_some_and(|p| p.force);
        let patience = if forced && s.state.branches > 0 { LONG_PATIENCE } else { PATIENCE };
        if s.misses > s.hits.saturating_mul(patience) + patience {
            s.retired = true;
            let done = s.state.branches == 0;
            self.at[insn].remove(n);
            if done {
                self.finish(cfg, id);
            }
        }
    }

    /// Saves a state; the first one in a loop begins a visit of it.
    pub fn insert(&mut self, cfg: &Cfg, state: State) -> StateId {
        let at = state.insn;
        let in_loop = loop_of(cfg, &state);
        let saved = Saved { state, hits: 0, misses: 0, retired: false, suspect: None };
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
        if let Some(key) = in_loop {
            self.visits.entry(key).or_insert_with(|| Visit { entry: id, edges: Vec::new(), held: Vec::new() });
        }
        id
    }

    /// How closely a state from which all paths are done must be compared.
    pub fn exactness(&self, cfg: &Cfg, id: StateId) -> Exact {
        if !self.unfinished(cfg, id) {
            return Exact::No;
        }
        let state = self.state(id);
        let mut places = (0..state.frames.len()).map(|n| insn_of(state, n));
        let outermost = places.find(|at| cfg.loops.get(*at).is_some_and(|l| *l != 0));
        match outermost.and_then(|at| cfg.points.get(at)) {
            Some(point) if point.calls_back => Exact::Covered,
            _ => Exact::Within,
        }
    }

    /// True while back edges wait for the loop that this state is in to be finished.
    fn unfinished(&self, cfg: &Cfg, id: StateId) -> bool {
        if self.visits.is_empty() {
            return false;
        }
        loop_of(cfg, self.state(id)).and_then(|key| self.visits.get(&key)).is_some_and(|v| !v.edges.is_empty())
    }

    /// Adds a back edge to the loop that its target is in; false if that is in none.
    pub fn add_back_edge(&mut self, cfg: &Cfg, edge: BackEdge) -> bool {
        let key = loop_of(cfg, self.state(edge.target));
        let Some(visit) = key.and_then(|k| self.visits.get_mut(&k)) else { return false };
        visit.edges.push(edge);
        self.live += 1;
        true
    }

    /// If this state, from which all paths are done, began the visit of a loop, ends that visit: gives its back edges,
    /// and the states that were held for their sake.
    pub fn end_visit(&mut self, cfg: &Cfg, id: StateId) -> Option<(Vec<BackEdge>, Vec<StateId>)> {
        let key = loop_of(cfg, self.state(id))?;
        if self.visits.get(&key)?.entry != id {
            return None;
        }
        let visit = self.visits.remove(&key)?;
        self.live = self.live.saturating_sub(visit.edges.len() as u32);
        Some((visit.edges, visit.held))
    }

    /// All paths from this state are done: drops what is needed only to walk over it, and all of it if it is retired.
    pub fn finish(&mut self, cfg: &Cfg, id: StateId) {
        if self.unfinished(cfg, id) {
            let key = loop_of(cfg, self.state(id));
            if let Some(visit) = key.and_then(|k| self.visits.get_mut(&k)) {
                visit.held.push(id);
            }
            return;
        }
        let s = &mut self.saved[id.0 as usize];
        s.state.steps = Vec::new();
        if s.retired && !s.state.frames.is_empty() {
            s.state = State::default();
            self.free.push(id);
            self.live = self.live.saturating_sub(1);
        }
    }
}

/// The outermost loop that a saved state is in.
fn loop_of(cfg: &Cfg, state: &State) -> Option<LoopId> {
    state.frames.iter().enumerate().find_map(|(n, frame)| {
        let number = cfg.loops.get(insn_of(state, n)).copied().unwrap_or(0);
        (number != 0).then_some((frame.instance, number))
    })
}
