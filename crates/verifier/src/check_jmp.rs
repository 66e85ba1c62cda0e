//! Conditional jumps: which way they can go, and what is known on each.

use skep_ebpf::insn::{Insn, alu, class, jmp};

use crate::arith;
use crate::branch;
use crate::check_alu::settle;
use crate::env::{Env, Next};
use crate::fail::{Check, invalid};
use crate::map_facts::make_not_null;
use crate::object::FieldKind;
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::scalar::Scalar;
use crate::state::{FP, Place, State};

/// Most registers and slots that learn together from one comparison.
const MAX_LINKED: usize = 6;
/// A packet pointer known to stand at the end: one byte there does not exist.
pub(crate) const AT_END: i32 = -1;
/// A packet pointer known to stand beyond the end.
pub(crate) const BEYOND_END: i32 = -2;
/// Packet offsets are below this.
const MAX_PACKET: u64 = 0xffff;

impl Env<'_> {
    pub fn check_cond_jump(&mut self, i: Insn) -> Check<Next> {
        let is32 = i.class() == class::JMP32;
        let op = i.op();
        if op == jmp::JCOND {
            return self.check_may_goto(i);
        }
        if if i.is_x() { i.imm != 0 } else { i.src() != 0 } {
            return invalid!(ReservedField, "the jump uses fields that must be zero");
        }
        let a = *self.read_reg(i.dst())?;
        let b = if i.is_x() { *self.read_reg(i.src())? } else { Reg::constant(i.imm as i64 as u64) };
        if i.is_x() && !(a.is_packet_any() && b.is_packet_any()) {
            self.check_not_shown(i.src(), &b, Reason::PointerComparison, "comparing")?;
        }
        let target = self.insn.wrapping_add_signed(isize::from(i.off)).wrapping_add(1);
        let next = self.insn + 1;

        if let Some(taken) = decided(op, &a, &b, is32) {
            if a.is_scalar() {
                self.mark_precise(i.dst())?;
            }
            if i.is_x() && b.is_scalar() {
                self.mark_precise(i.src())?;
            }
            let (next, other) = if taken { (target, next) } else { (next, target) };
            self.guess_branch(i, other)?;
            return Ok(Next::At(next));
        }

        let null_check = !is32 && !i.is_x() && i.imm == 0 && matches!(op, jmp::JEQ | jmp::JNE) && a.nullable();
        if !(null_check || i.is_x() && !is32 && is_packet_check(op, &a, &b)) {
            self.check_not_shown(i.dst(), &a, Reason::PointerComparison, "comparing")?;
        }

        // What shares a number with an operand learns with it; precision must later find the way back.
        let mut linked = Vec::new();
        if i.is_x() && b.is_scalar() && b.id != 0 {
            self.collect_linked(b.id, &mut linked);
        }
        if a.is_scalar() && a.id != 0 {
            self.collect_linked(a.id, &mut linked);
        }
        if linked.len() > 1 {
            self.record_step(None, linked.clone());
        }
        let a = *self.state.reg(i.dst());
        let b = if i.is_x() { *self.state.reg(i.src()) } else { b };

        let mut taken = std::mem::take(self.push_path(target)?);
        if a.is_scalar() && b.is_scalar() {
            for (outcome, state) in [(true, &mut taken), (false, &mut self.state)] {
                let (mut x, mut y) = (a, b);
                if i.is_x() && i.src() == i.dst() {
                    branch::refine_self(op, outcome, &mut x.num, is32);
                    y = x;
                } else {
                    branch::refine(op, outcome, &mut x.num, &mut y.num, is32);
                }
                settle(&mut x.num);
                settle(&mut y.num);
                *state.reg_mut(i.dst()) = x;
                if i.is_x() {
                    *state.reg_mut(i.src()) = y;
                    if y.id != 0 {
                        sync_linked(state, &y, &linked);
                    }
                }
                if x.id != 0 {
                    let x = *state.reg(i.dst());
                    sync_linked(state, &x, &linked);
                }
            }
        } else if i.is_x() && !is32 && a.is_pointer() && b.is_pointer() && matches!(op, jmp::JEQ | jmp::JNE) {
            // Equal to a pointer that is not null: not null either. Kernel objects may be null where nothing says so.
            if a.nullable() != b.nullable() && a.kind != Kind::Btf && b.kind != Kind::Btf {
                let r = if a.nullable() { i.dst() } else { i.src() };
                let equal = if op == jmp::JEQ { &mut taken } else { &mut self.state };
                let mut reg = *equal.reg(r);
                make_not_null(&self.maps, &mut reg);
                *equal.reg_mut(r) = reg;
            }
        }
        if !is32 && !i.is_x() && i.imm == 0 && matches!(op, jmp::JEQ | jmp::JNE) && a.nullable() {
            self.null_checked(&mut taken, i.dst(), op == jmp::JEQ);
            let mut fall = std::mem::take(&mut self.state);
            self.null_checked(&mut fall, i.dst(), op == jmp::JNE);
            self.state = fall;
        } else if i.is_x() && !is32 {
            compare_packet(op, &a, &b, i, &mut self.state, &mut taken);
        }
        let last = self.pending.len() - 1;
        self.pending[last].state = taken;
        Ok(Next::At(next))
    }

    /// Finds everything with this id; what does not fit the list loses its link.
    fn collect_linked(&mut self, id: u32, linked: &mut Vec<Place>) {
        let mut extra = Vec::new();
        let mut add = |r: &Reg, place: Place| {
            if r.is_scalar() && r.id == id && !linked.contains(&place) {
                if linked.len() < MAX_LINKED {
                    linked.push(place);
                } else {
                    extra.push(place);
                }
            }
        };
        for (f, frame) in self.state.frames.iter().enumerate().rev() {
            let at = self.state.frames.get(f + 1).map_or(self.insn, |callee| callee.callsite);
            // What is never read needs to learn nothing; the kernel leaves out all of it but r0.
            let read = self.live.regs.get(at).map_or(!0, |live| live | 1);
            for (n, r) in frame.regs.iter().enumerate().take(FP).filter(|(n, _)| read & 1 << n != 0) {
                add(r, Place::Reg { frame: f as u8, reg: n as u8 });
            }
            for (n, slot) in frame.stack.iter().enumerate() {
                if slot.is_scalar_spill() {
                    add(&slot.reg, Place::Slot { frame: f as u8, slot: n as u8 });
                }
            }
        }
        for place in extra {
            match place {
                Place::Reg { frame, reg } => self.state.frames[usize::from(frame)].regs[usize::from(reg)].unlink(),
                Place::Slot { frame, slot } => {
                    self.state.frames[usize::from(frame)].stack[usize::from(slot)].reg.unlink();
                }
            }
        }
    }

    /// After a comparison of `r` with null: settles everything that came from the same place.
    fn null_checked(&mut self, state: &mut State, r: u8, is_null: bool) {
        let (id, reference) = (state.reg(r).id, state.reg(r).ref_id);
        if is_null && reference != 0 && reference == id {
            state.held.retain(|h| h.id != id);
        }
        let (maps, structs) = (&self.maps, &self.structs);
        let concerned = |reg: &Reg| reg.nullable() && reg.id == id && reg.is_pointer();
        state.change_regs(concerned, |reg| {
            if reg.off != 0 && !reg.is_allocated() || reg.num.as_const() != Some(0) {
                return;
            }
            if is_null {
                *reg = Reg::constant(0);
                return;
            }
            make_not_null(maps, reg);
            let record = match reg.kind {
                Kind::MapValue => maps.get(reg.what as usize).map(|m| &m.record),
                Kind::Btf if reg.is_allocated() => structs.record(reg.what),
                _ => None,
            };
            let keeps_id = record.is_some_and(|r| r.any(FieldKind::is_lock));
            if !keeps_id {
                reg.id = 0;
            }
        });
    }
}

/// Whether the jump is always or never taken.
fn decided(op: u8, a: &Reg, b: &Reg, is32: bool) -> Option<bool> {
    if a.is_packet_any() && b.is_packet_any() && !is32 {
        return packet_decided(op, a, b);
    }
    if a.is_scalar() && b.is_scalar() {
        return branch::decided(op, &a.num, &b.num, is32);
    }
    if is32 {
        return None;
    }
    // A pointer that is never null, compared with null.
    let (ptr, other) = if b.as_const().is_some() { (a, b) } else { (b, a) };
    if other.as_const() != Some(0) || !ptr.never_null() {
        return None;
    }
    match op {
        jmp::JEQ => Some(false),
        jmp::JNE => Some(true),
        _ => None,
    }
}

fn packet_decided(op: u8, a: &Reg, b: &Reg) -> Option<bool> {
    let (packet, op) = if b.kind == Kind::PacketEnd {
        (a, op)
    } else if a.kind == Kind::PacketEnd {
        (b, branch::swapped(op))
    } else {
        return None;
    };
    if a.what != b.what {
        return None;
    }
    match (op, packet.size as i32) {
        (jmp::JLE | jmp::JGT, BEYOND_END) => Some(op == jmp::JGT),
        (jmp::JLT | jmp::JGE, BEYOND_END | AT_END) => Some(op == jmp::JGE),
        _ => None,
    }
}

/// Gives everything linked to `known` what is known of it.
fn sync_linked(state: &mut State, known: &Reg, linked: &[Place]) {
    for place in linked {
        if !state.at(*place).is_some_and(|reg| reg.is_scalar() && reg.id == known.id && *reg != *known) {
            continue;
        }
        let reg = match *place {
            Place::Reg { frame, reg } => {
                state.frames.get_mut(usize::from(frame)).and_then(|f| f.regs.get_mut(usize::from(reg)))
            }
            Place::Slot { frame, slot } => state
                .frames
                .get_mut(usize::from(frame))
                .and_then(|f| f.stack.get_mut(usize::from(slot)))
                .filter(|s| s.is_scalar_spill())
                .map(|s| &mut s.reg),
        };
        let Some(reg) = reg else { continue };
        if !reg.is_scalar() || reg.id != known.id || *reg == *known {
            continue;
        }
        let both = reg.linked_delta && known.linked_delta;
        if both && reg.narrow_delta != known.narrow_delta {
            continue;
        }
        // A 32-bit sum says nothing of the upper half of what it was made from.
        let narrow = reg.narrow_delta || known.narrow_delta;
        if known.narrow_delta && !reg.linked_delta && reg.num.umax > u64::from(u32::MAX) {
            continue;
        }
        if !narrow && (reg.off == known.off || !reg.linked_delta && !known.linked_delta) {
            let (linked_delta, off) = (reg.linked_delta, reg.off);
            *reg = *known;
            (reg.linked_delta, reg.off) = (linked_delta, off);
        } else {
            let mut num = known.num;
            let delta = i64::from(reg.off) - i64::from(known.off);
            arith::apply(alu::ADD, &mut num, Scalar::constant(delta as u64), narrow);
            settle(&mut num);
            reg.num = num;
            (reg.precise, reg.relied) = (known.precise, known.relied);
        }
    }
}

/// True for the comparisons that say how much packet data there is.
fn is_packet_check(op: u8, a: &Reg, b: &Reg) -> bool {
    let start = |r: &Reg| r.kind == Kind::Packet && r.off == 0 && r.num.as_const() == Some(0);
    let pair = |p: &Reg, e: &Reg| {
        p.kind == Kind::Packet && e.kind == Kind::PacketEnd && p.what == e.what
            || p.kind == Kind::PacketMeta && start(e)
    };
    matches!(op, jmp::JGT | jmp::JLT | jmp::JGE | jmp::JLE) && (pair(a, b) || pair(b, a))
}

/// Comparisons of packet data with its end (or of metadata with the data): how much can be accessed on which side.
fn compare_packet(op: u8, a: &Reg, b: &Reg, i: Insn, fall: &mut State, taken: &mut State) {
    let start = |r: &Reg| r.kind == Kind::Packet && r.off == 0 && r.num.as_const() == Some(0);
    let pair = |p: &Reg, e: &Reg| {
        p.kind == Kind::Packet && e.kind == Kind::PacketEnd && p.what == e.what
            || p.kind == Kind::PacketMeta && start(e)
    };
    // As `packet op end`.
    let (packet, op, r) = if pair(a, b) {
        (a, op, i.dst())
    } else if pair(b, a) {
        (b, branch::swapped(op), i.src())
    } else {
        return;
    };
    // Which side has the packet pointer at or before the end, and whether strictly before.
    let (inside, outside, strict) = match op {
        jmp::JGT => (fall, taken, false),
        jmp::JLT => (taken, fall, true),
        jmp::JGE => (fall, taken, true),
        jmp::JLE => (taken, fall, false),
        _ => return,
    };
    widen_range(inside, packet, strict);
    if packet.kind == Kind::Packet {
        outside.reg_mut(r).size = (if strict { AT_END } else { BEYOND_END }) as u32;
    }
}

fn widen_range(state: &mut State, packet: &Reg, strict: bool) {
    if packet.off < 0 || packet.off == 0 && strict {
        return;
    }
    if packet.num.umax > MAX_PACKET || packet.num.umax.saturating_add(packet.off as u64) > MAX_PACKET {
        return;
    }
    let range = packet.off + i32::from(strict);
    let (kind, id, what) = (packet.kind, packet.id, packet.what);
    let concerned = |reg: &Reg| reg.kind == kind && reg.id == id && reg.what == what && (reg.size as i32) < range;
    state.change_regs(concerned, |reg| reg.size = range as u32);
}
