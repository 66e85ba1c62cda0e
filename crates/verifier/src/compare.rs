//! Whether one state stands for another: everything that was safe from the old one is safe from the new one.

use crate::env::Env;
use crate::reg::{Kind, Reg};
use crate::stack_object::{Dynptr, Iter};
use crate::state::{Byte, Frame, Slot, State};

/// How closely states are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exact {
    /// The new one may be narrower, and differ where nothing depends on it.
    No,
    /// The new one may be narrower, everywhere.
    Within,
    /// They are the same.
    Yes,
}

/// Which id of the new state stands for which of the old.
#[derive(Default)]
struct IdMap {
    pairs: Vec<(u32, u32)>,
    unnamed: u32,
}

impl IdMap {
    fn same(&mut self, old: u32, cur: u32) -> bool {
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

    /// Numbers without an id are linked to nothing; each counts as one of its own.
    fn same_scalar(&mut self, old: u32, cur: u32) -> bool {
        let mut own = |id: u32| {
            if id != 0 {
                return id;
            }
            self.unnamed += 1;
            u32::MAX - self.unnamed
        };
        let (old, cur) = (own(old), own(cur));
        self.same(old, cur)
    }
}

/// True if everything that `old` was found safe for holds for `cur`.
pub(crate) fn states_equal(env: &Env<'_>, old: &State, cur: &State, exact: Exact) -> bool {
    if old.frames.len() != cur.frames.len()
        || old.held.len() != cur.held.len()
        || old.rcu != cur.rcu
        || old.sleepable != cur.sleepable
    {
        return false;
    }
    let mut ids = IdMap::default();
    if !old.held.iter().zip(&cur.held).all(|(o, c)| ids.same(o.id, c.id)) {
        return false;
    }
    match (old.locked, cur.locked) {
        (None, None) => {}
        (Some(o), Some(c)) if o.1 == c.1 && ids.same(o.0, c.0) => {}
        _ => return false,
    }
    let last = old.frames.len() - 1;
    for (n, (o, c)) in old.frames.iter().zip(&cur.frames).enumerate() {
        if o.subprog != c.subprog || n > 0 && o.callsite != c.callsite || o.callback != c.callback {
            return false;
        }
        let regs = env.live.regs[if n == last { old.insn } else { old.frames[n + 1].callsite }];
        let slots = if exact == Exact::No { live_slots(env, old, n) } else { !0 };
        if !frames_equal(o, c, regs, slots, &mut ids, exact) {
            return false;
        }
    }
    true
}

/// Slots of frame `n` that may still be read: from here on, and behind each call up to here.
fn live_slots(env: &Env<'_>, state: &State, n: usize) -> u64 {
    let last = state.frames.len() - 1;
    let mut slots = env.live.slots_from(state.frames[last].instance, last - n, state.insn);
    for f in n..last {
        let (instance, call) = (state.frames[f].instance, state.frames[f + 1].callsite);
        slots |= env.live.slots_behind(instance, f - n, call);
        if state.frames[f + 1].callback.is_sync() {
            // The helper may call again.
            slots |= env.live.slots_from(instance, f - n, call);
        }
    }
    slots
}

fn frames_equal(old: &Frame, cur: &Frame, regs: u16, slots: u64, ids: &mut IdMap, exact: Exact) -> bool {
    if old.callback_depth > cur.callback_depth {
        return false;
    }
    for (n, (o, c)) in old.regs.iter().zip(&cur.regs).enumerate() {
        if (regs & 1 << n != 0 || exact == Exact::Yes) && !reg_safe(o, c, ids, exact) {
            return false;
        }
    }
    let depth = if exact == Exact::No { old.stack.len() } else { old.stack.len().max(cur.stack.len()) };
    for n in 0..depth {
        if exact == Exact::No && slots & 1u64.checked_shl(n as u32).unwrap_or(0) == 0 {
            continue;
        }
        let Some(o) = old.stack.get(n) else {
            // The old one did not use it; whatever data is there now reads as data.
            let c = cur.stack.get(n).unwrap_or(&Slot::EMPTY);
            if exact == Exact::Yes || has_object(c) || c.is_spill() && !c.reg.is_scalar() {
                return false;
            }
            continue;
        };
        let c = cur.stack.get(n).unwrap_or(&Slot::EMPTY);
        if !slot_safe(o, c, ids, exact) {
            return false;
        }
    }
    true
}

fn reg_safe(old: &Reg, cur: &Reg, ids: &mut IdMap, exact: Exact) -> bool {
    if exact == Exact::Yes {
        return same(old, cur, ids);
    }
    if old.kind == Kind::NotInit {
        return true;
    }
    if old.kind != cur.kind || old.flags != cur.flags {
        return false;
    }
    match old.kind {
        Kind::Scalar => {
            if !old.precise && exact == Exact::No {
                return true;
            }
            if old.linked_delta != cur.linked_delta || old.linked_delta && old.off != cur.off {
                return false;
            }
            cur.num.within(&old.num) && ids.same_scalar(old.id, cur.id)
        }
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
            range && old.off == cur.off && ids.same(old.id, cur.id) && cur.num.within(&old.num)
        }
        _ => same(old, cur, ids),
    }
}

/// Same in all but the names of ids.
fn same(old: &Reg, cur: &Reg, ids: &mut IdMap) -> bool {
    let blank = |r: &Reg| Reg { id: 0, ref_id: 0, precise: false, ..*r };
    blank(old) == blank(cur) && ids.same(old.id, cur.id) && ids.same(old.ref_id, cur.ref_id)
}

/// The number that a slot holds, if it is one: saved whole, or eight bytes of data.
fn number_in(slot: &Slot) -> Option<Reg> {
    if slot.is_scalar_spill() && slot.is_full_spill() {
        return Some(slot.reg);
    }
    let data = slot.bytes.iter().all(|b| matches!(b, Byte::Misc | Byte::Invalid));
    data.then_some(Reg::UNKNOWN)
}

fn slot_safe(old: &Slot, cur: &Slot, ids: &mut IdMap, exact: Exact) -> bool {
    if exact != Exact::No && old.bytes != cur.bytes {
        return false;
    }
    // Bytes never written, or plain data: reading them gave an unknown number, whatever is there now serves.
    if exact == Exact::No && old.bytes.iter().all(|b| matches!(b, Byte::Misc | Byte::Invalid)) {
        return !has_object(cur);
    }
    if let (Some(o), Some(c)) = (number_in(old), number_in(cur)) {
        return reg_safe(&o, &c, ids, exact);
    }
    for (o, c) in old.bytes.iter().zip(&cur.bytes) {
        let fits = match (o, c) {
            (Byte::Invalid | Byte::Misc, Byte::Invalid | Byte::Misc | Byte::Zero) => true,
            _ => o == c,
        };
        if !fits {
            return false;
        }
    }
    if old.is_spill() {
        return cur.is_spill() && reg_safe(&old.reg, &cur.reg, ids, exact);
    }
    if let Some(o) = Dynptr::in_slot(old) {
        let Some(c) = Dynptr::in_slot(cur) else { return false };
        return o.source == c.source && o.first == c.first && ids.same(o.ref_id, c.ref_id);
    }
    if let Some(o) = Iter::in_slot(old) {
        let Some(c) = Iter::in_slot(cur) else { return false };
        // How often it was asked says only which round this is.
        return Iter { ref_id: 0, depth: 0, ..o } == Iter { ref_id: 0, depth: 0, ..c } && ids.same(o.ref_id, c.ref_id);
    }
    !has_object(old)
}

/// True for slots that hold a part of a dynptr or an iterator.
fn has_object(slot: &Slot) -> bool {
    slot.bytes.iter().any(|b| matches!(b, Byte::Dynptr | Byte::Iter))
}
