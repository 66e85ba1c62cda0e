//! Whether one state stands for another: everything that was safe from the old one is safe from the new one.
//!
//! This is the one place that compares states. Who adds a field to [`Reg`], [`Slot`](crate::state::Slot), [`Frame`] or
//! [`State`] says here what it takes to be as safe as before: [`states_equal`] for the state, [`frames_equal`],
//! [`reg_safe`], and [`slot_safe`] with [`object_safe`] for objects that live on the stack.

use crate::Privilege;
use crate::irq::SavedIrqs;
use crate::liveness::Liveness;
use crate::reg::{Kind, Reg};
use crate::stack_object::{Dynptr, Iter};
use crate::state::{Byte, FP, Frame, Place, Slot, State};

/// How closely states are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exact {
    /// The new one may be narrower, and differ where nothing depends on it.
    No,
    /// The new one may be narrower, everywhere.
    Covered,
    /// The same, and what kind of data is where on the stack is the same.
    Within,
    /// They are the same.
    Yes,
}

/// Which id of the new state stands for which of the old.
#[derive(Default, Debug)]
pub(crate) struct IdMap {
    pairs: Vec<(u32, u32)>,
    unnamed: u32,
    /// Where the last comparison of states failed.
    differs: Option<Place>,
    /// Stack that was never written must not be read.
    strict_stack: bool,
    /// Every number is relied on.
    all_precise: bool,
    /// Numbers must be the same.
    pub strict_numbers: bool,
}

impl IdMap {
    /// No pairs, for programs of processes that may do this.
    pub fn new(privilege: Privilege) -> IdMap {
        let (strict_stack, all_precise) = (privilege != Privilege::Full, privilege == Privilege::None);
        IdMap { strict_stack, all_precise, ..IdMap::default() }
    }

    /// Forgets all pairs.
    pub fn clear(&mut self) {
        self.pairs.clear();
        self.unnamed = 0;
        self.differs = None;
    }

    /// Where the last comparison of states failed, if it was for a register or slot.
    pub fn differs(&self) -> Option<Place> {
        self.differs
    }

    /// The two ids stand for each other, as far as is known.
    pub fn same(&mut self, old: u32, cur: u32) -> bool {
        match (old, cur) {
            (0, 0) => true,
            (0, _) | (_, 0) => false,
            _ => {
                for &(o, c) in &self.pairs {
                    if o == old {
                        return c == cur;
                    }
                    if c == cur {
                        return false;
                    }
                }
                self.pairs.push((old, cur));
                true
            }
        }
    }

    /// Old numbers without an id were linked to nothing, so links of the new ones do no harm; new ones without an id
    /// count as one of their own.
    fn same_scalar(&mut self, old: u32, cur: u32) -> bool {
        if old == 0 {
            return true;
        }
        let cur = if cur != 0 {
            cur
        } else {
            self.unnamed += 1;
            u32::MAX - self.unnamed
        };
        self.same(old, cur)
    }
}

/// True if everything that `old` was found safe for holds for `cur`. Both stand at the same instruction.
pub(crate) fn states_equal(live: &Liveness, ids: &mut IdMap, old: &State, cur: &State, exact: Exact) -> bool {
    if old.frames.len() != cur.frames.len()
        || old.held.len() != cur.held.len()
        || old.rcu != cur.rcu
        || old.sleepable != cur.sleepable
        || old.speculative && !cur.speculative
    {
        return false;
    }
    ids.clear();
    if !old.held.iter().zip(&cur.held).all(|(o, c)| ids.same(o.id, c.id)) {
        return false;
    }
    let locks = old.locks.len() == cur.locks.len()
        && old.locks.iter().zip(&cur.locks).all(|(o, c)| o.same_kind(c) && ids.same(o.id, c.id));
    if !locks {
        return false;
    }
    let (o, c) = (&old.sections, &cur.sections);
    if (o.preempt, o.irqs.len()) != (c.preempt, c.irqs.len())
        || !o.irqs.iter().zip(&c.irqs).all(|(o, c)| ids.same(o.id, c.id))
    {
        return false;
    }
    for (n, (o, c)) in old.frames.iter().zip(&cur.frames).enumerate() {
        if o.subprog != c.subprog || n > 0 && o.callsite != c.callsite || o.callback != c.callback {
            return false;
        }
        // What no path behind the old state reads was removed from it, and need not be looked at.
        let slots = if exact == Exact::No { old.kept.get(n).copied().unwrap_or(!0) } else { !0 };
        if !frames_equal(o, c, (live.regs[insn_of(old, n)], slots), ids, exact) {
            return false;
        }
    }
    true
}

/// Quick test before the comparison: true if the states differ in this place, whatever the rest is. A place where two
/// states differed often has others differ, too.
pub(crate) fn differ_at(place: Place, ids: &mut IdMap, old: &State, cur: &State, exact: Exact) -> bool {
    ids.clear();
    let frames = |f: u8| old.frames.get(usize::from(f)).zip(cur.frames.get(usize::from(f)));
    let differ = match place {
        Place::Reg { frame, reg } => frames(frame).is_some_and(|(o, c)| {
            let regs = o.regs.get(usize::from(reg)).zip(c.regs.get(usize::from(reg)));
            regs.is_some_and(|(o, c)| !reg_safe(o, c, ids, exact))
        }),
        Place::Slot { frame, slot } => frames(frame).is_some_and(|(o, c)| {
            let slots = o.stack.get(usize::from(slot)).zip(c.stack.get(usize::from(slot)));
            slots.is_some_and(|(o, c)| !slot_safe(o, c, ids, exact))
        }),
    };
    if differ {
        ids.differs = Some(place);
    }
    differ
}

/// The instruction where frame `n` of a saved state stands: its call, for all but the last.
pub(crate) fn insn_of(state: &State, n: usize) -> usize {
    state.frames.get(n + 1).map_or(state.insn, |f| f.callsite)
}

fn frames_equal(old: &Frame, cur: &Frame, (regs, slots): (u16, u64), ids: &mut IdMap, exact: Exact) -> bool {
    if old.callback_depth > cur.callback_depth {
        return false;
    }
    let frame = old.regs[FP].frame;
    for (n, (o, c)) in old.regs.iter().zip(&cur.regs).enumerate() {
        if regs & 1 << n != 0 && !reg_safe(o, c, ids, exact) {
            ids.differs = Some(Place::Reg { frame, reg: n as u8 });
            return false;
        }
    }
    // What the new one has below the old one's stack was not used.
    let unused = |b: &Byte| *b == Byte::Invalid || *b == Byte::Misc && !ids.strict_stack;
    let mut beyond = old.stack.iter().enumerate().skip(cur.stack.len()).filter(|(n, _)| slots >> (n & 63) & 1 != 0);
    if exact == Exact::No && !beyond.all(|(_, slot)| slot.bytes.iter().all(unused)) {
        return false;
    }
    old.stack.iter().enumerate().filter(|(n, _)| slots >> (n & 63) & 1 != 0).all(|(n, o)| {
        let safe = match cur.stack.get(n) {
            Some(c) => slot_safe(o, c, ids, exact),
            None => matches!(exact, Exact::No | Exact::Covered) && slot_safe(o, &Slot::EMPTY, ids, exact),
        };
        if !safe {
            ids.differs = Some(Place::Slot { frame, slot: n as u8 });
        }
        safe
    })
}

/// True if `old` was safe for whatever `cur` holds.
pub(crate) fn reg_safe(old: &Reg, cur: &Reg, ids: &mut IdMap, exact: Exact) -> bool {
    if exact == Exact::Yes {
        return same(old, cur, ids);
    }
    if old.kind == Kind::NotInit {
        return exact == Exact::No || cur.kind == Kind::NotInit;
    }
    if old.kind != cur.kind || old.flags != cur.flags {
        return false;
    }
    match old.kind {
        Kind::Scalar => {
            if ids.strict_numbers {
                return old.num == cur.num
                    && (old.linked_delta, old.narrow_delta, old.off) == (cur.linked_delta, cur.narrow_delta, cur.off)
                    && ids.same_scalar(old.id, cur.id);
            }
            if !old.precise && !old.relied && !ids.all_precise && exact == Exact::No {
                return true;
            }
            if old.linked_delta && (!cur.linked_delta || old.narrow_delta != cur.narrow_delta || old.off != cur.off) {
                return false;
            }
            if old.id != 0 && !old.linked_delta && cur.linked_delta {
                return false;
            }
            ids.same_scalar(old.id, cur.id) && cur.num.within(&old.num)
        }
        Kind::Arena => true,
        Kind::MapKey | Kind::MapValue | Kind::Mem => {
            old.off == cur.off
                && old.what == cur.what
                && old.size == cur.size
                && cur.num.within(&old.num)
                && ids.same(old.id, cur.id)
                && ids.same(old.ref_id, cur.ref_id)
        }
        Kind::Packet | Kind::PacketMeta => {
            let (o, c) = (old.size as i32, cur.size as i32);
            // What is known to exist must still be; the marks for the end must be the same.
            let range = if o < 0 || c < 0 { o == c } else { o <= c };
            range
                && old.off == cur.off
                && old.what == cur.what
                && old.flags == cur.flags
                && ids.same(old.id, cur.id)
                && cur.num.within(&old.num)
        }
        _ => same(old, cur, ids),
    }
}

/// Same in all but the names of ids.
pub(crate) fn same(old: &Reg, cur: &Reg, ids: &mut IdMap) -> bool {
    let blank = |r: &Reg| Reg { id: 0, ref_id: 0, precise: false, relied: false, ..*r };
    blank(old) == blank(cur) && ids.same(old.id, cur.id) && ids.same(old.ref_id, cur.ref_id)
}

/// The number that a slot holds, if it is one: saved whole, or eight bytes of data.
fn number_in(slot: &Slot, strict: bool) -> Option<&Reg> {
    if slot.is_scalar_spill() && slot.is_full_spill() {
        return Some(&slot.reg);
    }
    let data = slot.bytes.iter().all(|b| *b == Byte::Misc || *b == Byte::Invalid && !strict);
    data.then_some(const { &Reg::UNKNOWN })
}

fn slot_safe(old: &Slot, cur: &Slot, ids: &mut IdMap, exact: Exact) -> bool {
    if matches!(exact, Exact::Within | Exact::Yes) && old.bytes != cur.bytes {
        return false;
    }
    // The rules below come to the same for a slot that is empty, or holds a whole register on both sides.
    if old.bytes == [Byte::Invalid; 8] {
        return true;
    }
    if old.bytes == [Byte::Spill; 8] && cur.bytes == [Byte::Spill; 8] {
        return reg_safe(&old.reg, &cur.reg, ids, exact);
    }
    for (o, c) in old.bytes.iter().zip(&cur.bytes) {
        // Bytes never written, or plain data: reading them gave an unknown number, whatever is there now serves.
        let serves = match c {
            Byte::Dynptr | Byte::Iter | Byte::Irq => false,
            _ => !ids.strict_stack || *c == Byte::Zero,
        };
        if *o == Byte::Invalid || *o == Byte::Misc && serves {
            continue;
        }
        if let (Some(o), Some(c)) = (number_in(old, ids.strict_stack), number_in(cur, ids.strict_stack)) {
            return reg_safe(o, c, ids, exact);
        }
        if o != c {
            return false;
        }
    }
    match old.bytes[7] {
        Byte::Invalid | Byte::Misc | Byte::Zero => true,
        Byte::Spill => reg_safe(&old.reg, &cur.reg, ids, exact),
        _ => object_safe(old, cur, ids),
    }
}

/// Objects on the stack, whose slots have the same bytes. What is not known here is never the same.
fn object_safe(old: &Slot, cur: &Slot, ids: &mut IdMap) -> bool {
    if let (Some(o), Some(c)) = (Dynptr::in_slot(old), Dynptr::in_slot(cur)) {
        return o.source == c.source && o.first == c.first && ids.same(o.ref_id, c.ref_id);
    }
    if let (Some(o), Some(c)) = (Iter::in_slot(old), Iter::in_slot(cur)) {
        // How often it was asked says only which round this is.
        return Iter { ref_id: 0, depth: 0, ..o } == Iter { ref_id: 0, depth: 0, ..c } && ids.same(o.ref_id, c.ref_id);
    }
    if let (Some(o), Some(c)) = (SavedIrqs::in_slot(old), SavedIrqs::in_slot(cur)) {
        return o.by_lock == c.by_lock && ids.same(o.id, c.id);
    }
    false
}

/// True if an iterator that still has elements was asked another number of times.
pub(crate) fn iterators_differ(old: &State, cur: &State) -> bool {
    old.frames.iter().zip(&cur.frames).any(|(o, c)| {
        o.stack.iter().zip(c.stack.iter()).any(|(o, c)| {
            let (Some(o), Some(c)) = (Iter::in_slot(o), Iter::in_slot(c)) else { return false };
            !o.drained && o.depth != c.depth
        })
    })
}

/// True if some loop that ends by itself has gone on from `old` to `cur`: one of callbacks, an iterator, or `may_goto`,
/// and the same one, not another begun in its place.
pub(crate) fn rounds_since(old: &State, cur: &State) -> bool {
    let iterators = |o: &Slot, c: &Slot| match (Iter::in_slot(o), Iter::in_slot(c)) {
        (Some(o), Some(c)) => o.ref_id != 0 && o.ref_id == c.ref_id && o.depth != c.depth,
        _ => false,
    };
    old.may_goto_depth != cur.may_goto_depth
        || old.frames.iter().zip(&cur.frames).any(|(o, c)| {
            o.callback_loop == c.callback_loop && o.callback_depth != c.callback_depth
                || o.stack.iter().zip(c.stack.iter()).any(|(o, c)| iterators(o, c))
        })
}

/// Quick test before the exact comparison: the registers of the active frame are the same, by name too.
pub(crate) fn maybe_looping(old: &State, cur: &State) -> bool {
    old.frames.len() == cur.frames.len() && old.regs().iter().zip(cur.regs()).all(|(a, b)| alike(a, b))
}

/// The same, by name too, but for the frame of stack pointers and what was relied on.
fn alike(a: &Reg, b: &Reg) -> bool {
    a.num == b.num
        && (a.kind, a.flags, a.off, a.id, a.ref_id) == (b.kind, b.flags, b.off, b.id, b.ref_id)
        && (a.what, a.size, a.linked_delta, a.narrow_delta) == (b.what, b.size, b.linked_delta, b.narrow_delta)
}
