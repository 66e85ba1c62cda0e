//! Watches the checker on a second and third run of a program that it rejected, to know how the failing path went.
//!
//! The checker is deterministic, so its n-th step is the same on each run. The second run notes for each step which one
//! it continues; where it failed, that gives the steps of the failing path. The third run notes what changed on exactly
//! these steps. The first run, all that programs without fault ever see, pays nothing.

use crate::reg::Reg;
use crate::state::{Frame, Place, Slot, State};

/// Steps of a path that are kept, counted from its end.
const MAX_PATH: usize = 1 << 18;

/// See the module.
pub(crate) enum Recorder {
    /// Which step continues which.
    Path(PathRecorder),
    /// What the steps of one path changed.
    Values(ValueRecorder),
}

impl Recorder {
    /// A function is checked from its start.
    pub fn begin(&mut self) {
        match self {
            Recorder::Path(r) => r.begin(),
            Recorder::Values(_) => {}
        }
    }

    /// An instruction is about to be checked; `pending` paths are open besides this one.
    pub fn before(&mut self, insn: usize, state: &State, pending: usize) {
        match self {
            Recorder::Path(r) => r.before(pending),
            Recorder::Values(r) => r.before(insn, state),
        }
    }
}

/// No step.
const NONE: u32 = u32::MAX;

/// Notes which step continues which.
#[derive(Default)]
pub(crate) struct PathRecorder {
    /// For each step the one before it on its path.
    parents: Vec<u32>,
    /// The steps at which the open paths forked off.
    forks: Vec<u32>,
    began: bool,
}

impl PathRecorder {
    fn begin(&mut self) {
        self.forks.clear();
        self.began = true;
    }

    fn before(&mut self, pending: usize) {
        let this = self.parents.len() as u32;
        let last = if std::mem::take(&mut self.began) { NONE } else { this.checked_sub(1).unwrap_or(NONE) };
        // Since the last step paths were put by, and if that one ended its path the newest was taken up again. A step
        // that did both left one more behind than it took, and either way the path goes on from it.
        let parent = if pending < self.forks.len() { self.forks.pop().unwrap_or(NONE) } else { last };
        self.forks.resize(pending, last);
        self.parents.push(parent);
    }

    /// The steps that led to the last one, that one included.
    pub fn path(&self) -> Vec<u32> {
        let mut path = Vec::new();
        let mut at = (self.parents.len() as u32).checked_sub(1);
        while let Some(step) = at.filter(|_| path.len() < MAX_PATH) {
            path.push(step);
            at = self.parents.get(step as usize).copied().filter(|p| *p != NONE);
        }
        path.reverse();
        path
    }
}

/// What a step changed, as it was before.
pub(crate) enum Change {
    Reg {
        frame: u8,
        reg: u8,
        before: Reg,
    },
    Slot {
        frame: u8,
        slot: u8,
        before: Slot,
    },
    /// A function was entered.
    Entered,
    /// A function was left, which stood so.
    Left(Box<Frame>),
}

/// One step of the failing path.
pub(crate) struct Record {
    pub insn: usize,
    /// Where its changes begin in the list of all.
    changes: usize,
}

/// Notes what the steps of a path changed.
pub(crate) struct ValueRecorder {
    path: Vec<u32>,
    next: usize,
    step: u32,
    changes: Vec<Change>,
    records: Vec<Record>,
    /// The state before the newest step.
    frames: Vec<Frame>,
    held: Vec<crate::state::Held>,
}

impl ValueRecorder {
    /// A recorder for this path.
    pub fn new(path: Vec<u32>) -> ValueRecorder {
        ValueRecorder {
            path,
            next: 0,
            step: 0,
            changes: Vec::new(),
            records: Vec::new(),
            frames: Vec::new(),
            held: Vec::new(),
        }
    }

    fn before(&mut self, insn: usize, state: &State) {
        let step = self.step;
        self.step += 1;
        if self.path.get(self.next) != Some(&step) {
            return;
        }
        self.next += 1;
        if self.records.is_empty() {
            self.frames = state.frames.iter().map(|f| Frame::clone(f)).collect();
        } else {
            self.note_changes(state);
        }
        self.records.push(Record { insn, changes: self.changes.len() });
        if self.held != state.held {
            self.held.clone_from(&state.held);
        }
    }

    fn note_changes(&mut self, state: &State) {
        while self.frames.len() > state.frames.len() {
            if let Some(frame) = self.frames.pop() {
                self.changes.push(Change::Left(Box::new(frame)));
            }
        }
        for (f, (old, new)) in self.frames.iter_mut().zip(&state.frames).enumerate() {
            for (r, (a, b)) in old.regs.iter_mut().zip(&new.regs).enumerate() {
                if !same(a, b) {
                    self.changes.push(Change::Reg { frame: f as u8, reg: r as u8, before: *a });
                    *a = *b;
                }
            }
            if old.stack.len() < new.stack.len() {
                old.stack.resize(new.stack.len(), Slot::EMPTY);
            }
            for (s, (a, b)) in old.stack.iter_mut().zip(new.stack.iter()).enumerate() {
                if a.bytes != b.bytes || !same(&a.reg, &b.reg) {
                    self.changes.push(Change::Slot { frame: f as u8, slot: s as u8, before: *a });
                    *a = *b;
                }
            }
            (old.subprog, old.callsite, old.callback) = (new.subprog, new.callsite, new.callback);
        }
        for frame in state.frames.iter().skip(self.frames.len()) {
            self.changes.push(Change::Entered);
            self.frames.push(Frame::clone(frame));
        }
    }

    /// What was recorded, to be walked from its end.
    pub fn finish(self) -> Walk {
        Walk { changes: self.changes, records: self.records, frames: self.frames, held: self.held }
    }
}

/// What a value means is the same, whatever is known of its history.
pub(crate) fn same(a: &Reg, b: &Reg) -> bool {
    let plain = |r: &Reg| Reg { precise: false, relied: false, ..*r };
    plain(a) == plain(b)
}

/// A recorded path: stands before its last step, and goes back.
pub(crate) struct Walk {
    changes: Vec<Change>,
    records: Vec<Record>,
    /// The state before the step where the walk stands.
    pub frames: Vec<Frame>,
    /// The references held before the last step.
    pub held: Vec<crate::state::Held>,
}

impl Walk {
    /// The instruction of the step where the walk stands.
    pub fn insn(&self) -> Option<usize> {
        self.records.last().map(|r| r.insn)
    }

    /// Instructions of the steps up to here, oldest first.
    pub fn path(&self) -> impl DoubleEndedIterator<Item = usize> {
        self.records.iter().map(|r| r.insn)
    }

    /// Goes back one step; gives the frames as they stood behind it.
    pub fn back(&mut self) -> Option<Vec<Frame>> {
        let from = self.records.pop()?.changes;
        let until = self.records.last()?.changes;
        debug_assert!(until <= from);
        let after = self.frames.clone();
        while self.changes.len() > until {
            match self.changes.pop() {
                Some(Change::Reg { frame, reg, before }) => {
                    if let Some(r) =
                        self.frames.get_mut(usize::from(frame)).and_then(|f| f.regs.get_mut(usize::from(reg)))
                    {
                        *r = before;
                    }
                }
                Some(Change::Slot { frame, slot, before }) => {
                    let stack = self.frames.get_mut(usize::from(frame)).map(|f| &mut f.stack);
                    if let Some(s) = stack.and_then(|s| s.get_mut(usize::from(slot))) {
                        *s = before;
                    }
                }
                Some(Change::Entered) => {
                    self.frames.pop();
                }
                Some(Change::Left(frame)) => self.frames.push(*frame),
                None => break,
            }
        }
        Some(after)
    }
}

/// What a place holds.
pub(crate) fn at(frames: &[Frame], place: Place) -> Option<Reg> {
    match place {
        Place::Reg { frame, reg } => frames.get(usize::from(frame))?.regs.get(usize::from(reg)).copied(),
        Place::Slot { frame, slot } => {
            let s = frames.get(usize::from(frame))?.stack.get(usize::from(slot))?;
            Some(if s.is_spill() { s.reg } else { Reg::UNKNOWN })
        }
    }
}
