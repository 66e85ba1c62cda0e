//! Arithmetic: on numbers what can be known of the result, on pointers what is allowed at all.

use skep_ebpf::insn::{Insn, alu, class};

use crate::arith;
use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::scalar::Scalar;

/// Offsets of pointers stay below this.
pub(crate) const MAX_OFFSET: i64 = 1 << 29;

impl Env<'_> {
    pub fn check_alu(&mut self, i: Insn) -> Check {
        let is32 = i.class() == class::ALU;
        match i.op() {
            alu::NEG => {
                if i.is_x() || i.src() != 0 || i.off != 0 || i.imm != 0 {
                    return invalid!(ReservedField, "the negation uses fields that must be zero");
                }
                let value = *self.read_reg(i.dst())?;
                self.may_write_reg(i.dst())?;
                if value.is_scalar() && !self.options.profile.follows_negation() {
                    self.set_unknown(i.dst());
                } else if value.is_scalar() {
                    let reg = self.state.reg_mut(i.dst());
                    arith::apply(alu::NEG, &mut reg.num, Scalar::constant(0), is32);
                    reg.unlink();
                    settle(&mut reg.num);
                } else {
                    self.check_not_shown(i.dst(), &value, Reason::PointerArithmetic, "negating")?;
                    self.set_unknown(i.dst());
                }
                Ok(())
            }
            alu::END => {
                let swap64 = !is32;
                if i.off != 0 || !matches!(i.imm, 16 | 32 | 64) || i.src() != 0 || (swap64 && i.is_x()) {
                    return invalid!(
                        ReservedField,
                        "the byte swap uses fields that must be zero, or a width that does not exist"
                    );
                }
                let value = *self.read_reg(i.dst())?;
                self.may_write_reg(i.dst())?;
                if value.is_scalar() && !self.options.profile.follows_negation() {
                    self.set_unknown(i.dst());
                } else if value.is_scalar() {
                    let reg = self.state.reg_mut(i.dst());
                    // Little-endian is what the machine is: only `bswap` and `be` turn bytes around.
                    reg.num.swap_bytes(i.imm as u32 / 8, swap64 || i.is_x());
                    reg.unlink();
                    settle(&mut reg.num);
                } else {
                    self.check_not_shown(i.dst(), &value, Reason::PointerArithmetic, "turning around")?;
                    self.set_unknown(i.dst());
                }
                Ok(())
            }
            alu::MOV => self.check_mov(i, is32),
            op if op < alu::MOV || op == alu::ARSH => self.check_binary(i, is32),
            _ => invalid!(InvalidOpcode, "opcode {:#04x} does not exist", i.code),
        }
    }

    /// A number that is about to be copied gets an id, so that what is learnt of one copy is known of the other.
    pub fn link(&mut self, reg: &mut Reg) {
        if !reg.is_scalar() {
            return;
        }
        if reg.linked_delta {
            reg.unlink();
        }
        if reg.id == 0 && !reg.num.bits.is_const() {
            reg.id = self.new_id();
        }
    }

    fn check_mov(&mut self, i: Insn, is32: bool) -> Check {
        if i.is_x() {
            if crate::object::arena::is_cast(i) {
                return self.check_addr_space_cast(i);
            }
            let widths: &[i16] = if is32 { &[0, 8, 16] } else { &[0, 8, 16, 32] };
            if i.imm != 0 || !widths.contains(&i.off) {
                return invalid!(
                    ReservedField,
                    "the move uses fields that must be zero, or a width that does not exist"
                );
            }
            self.read_reg(i.src())?;
        } else if i.src() != 0 || i.off != 0 {
            return invalid!(ReservedField, "the move uses fields that must be zero");
        }
        self.may_write_reg(i.dst())?;
        if !i.is_x() {
            let value = if is32 { i.imm as u32 as u64 } else { i.imm as i64 as u64 };
            *self.state.reg_mut(i.dst()) = Reg::constant(value);
            return Ok(());
        }
        let mut src = *self.state.reg(i.src());
        let bits = i.off as u32;
        if !src.is_scalar() {
            if !is32 && bits == 0 {
                *self.state.reg_mut(i.dst()) = src;
            } else {
                self.check_not_shown(i.src(), &src, Reason::PointerArithmetic, "copying a part of")?;
                self.set_unknown(i.dst());
                if is32 {
                    let r = self.state.reg_mut(i.dst());
                    r.num.zext32();
                    r.num.sync();
                }
            }
            return Ok(());
        }
        // A copy that changes the number is no copy.
        let same = match (is32, bits) {
            (false, 0) => true,
            (true, 0) => src.num.umax <= u32::MAX.into(),
            _ => src.num.umax < 1 << (bits - 1),
        };
        if same {
            self.link(&mut src);
            *self.state.reg_mut(i.src()) = src;
        }
        let mut dst = src;
        if !same {
            dst.unlink();
        }
        match (is32, bits) {
            (false, 0) => {}
            (false, _) => dst.num.sext64(bits / 8),
            (true, _) => {
                if bits != 0 {
                    dst.num.sext32(bits / 8);
                }
                dst.num.zext32();
                dst.num.sync();
            }
        }
        settle(&mut dst.num);
        *self.state.reg_mut(i.dst()) = dst;
        Ok(())
    }

    fn check_binary(&mut self, i: Insn, is32: bool) -> Check {
        let op = i.op();
        let divides = matches!(op, alu::DIV | alu::MOD);
        let off_ok = i.off == 0 || divides && i.off == 1;
        if !off_ok || (if i.is_x() { i.imm != 0 } else { i.src() != 0 }) {
            return invalid!(ReservedField, "the operation uses fields that must be zero");
        }
        if i.is_x() {
            self.read_reg(i.src())?;
        }
        self.read_reg(i.dst())?;
        if !i.is_x() && divides && i.imm == 0 {
            return invalid!(DivisionByZero, "r{} is divided by zero", i.dst());
        }
        if !i.is_x() && matches!(op, alu::LSH | alu::RSH | alu::ARSH) {
            let width = if is32 { 32 } else { 64 };
            if !(0..width).contains(&i.imm) {
                return invalid!(InvalidShift, "a {width}-bit number is shifted by {}", i.imm);
            }
        }
        self.may_write_reg(i.dst())?;
        let arena = self.arena_arithmetic(i);
        self.note_arithmetic(i, arena);
        if arena {
            return Ok(());
        }

        let dst = *self.state.reg(i.dst());
        let src = if i.is_x() { *self.state.reg(i.src()) } else { Reg::constant(i.imm as i64 as u64) };
        match (dst.is_scalar(), src.is_scalar()) {
            (true, true) => {
                if i.is_x() && (dst.precise || dst.relied) {
                    self.mark_precise(i.src())?;
                }
                let dst = if src.as_const().is_some() { self.split_sign(i, dst)? } else { dst };
                self.scalar_op(i, is32, dst, src)
            }
            (false, false) => {
                // The distance of two pointers is a number.
                if op == alu::SUB {
                    self.check_not_shown(i.dst(), &dst, Reason::PointerArithmetic, "subtracting from")?;
                    self.set_unknown(i.dst());
                    return Ok(());
                }
                denied!(
                    PointerArithmetic,
                    "r{} and r{} are both pointers; only their difference can be taken",
                    i.dst(),
                    i.src()
                )
            }
            (true, false) => {
                self.mark_precise(i.dst())?;
                self.pointer_op(i, is32, src, dst, true)
            }
            (false, true) => {
                if i.is_x() {
                    self.mark_precise(i.src())?;
                }
                self.pointer_op(i, is32, dst, src, false)
            }
        }
    }

    /// A number that is all ones or zero (a sign, spread by a shift) and meets a mask: each of the two goes its own way.
    /// Zero comes back to this instruction later; ones are what goes on now.
    fn split_sign(&mut self, i: Insn, mut dst: Reg) -> Check<Reg> {
        let n = dst.num;
        let whole = n.smin == -1 && n.smax == 0;
        if !self.options.profile.splits_signs()
            || !matches!(i.op(), alu::AND | alu::OR)
            || !(whole || n.smin32 == -1 && n.smax32 == 0)
        {
            return Ok(dst);
        }
        let at = self.insn;
        let zero = self.push_path(at)?.reg_mut(i.dst());
        if whole {
            zero.num = Scalar::constant(0);
            dst.num = Scalar::constant(u64::MAX);
        } else {
            zero.num.set_low(0);
            dst.num.set_low(u32::MAX);
        }
        Ok(dst)
    }

    fn scalar_op(&mut self, i: Insn, is32: bool, mut dst: Reg, src: Reg) -> Check {
        self.check_number_window(i)?;
        // A 32-bit sum says something of the whole number only where that has no upper half.
        let whole = !is32 || dst.num.umax <= u64::from(u32::MAX);
        arith::apply(i.op(), &mut dst.num, src.num, is32);
        // A number that is another plus a constant stays linked to it.
        let added = delta(i, is32, &src.num);
        // At first only plain additions of what is not negative were followed.
        let simple = i.op() == alu::ADD && !is32 && added.is_some_and(|d| d >= 0);
        match added.filter(|_| simple || self.options.profile.links_all_sums()) {
            Some(delta) if whole && dst.id != 0 && !dst.linked_delta && self.tracks_numbers() => {
                (dst.linked_delta, dst.narrow_delta, dst.off) = (true, is32, delta);
            }
            _ => dst.unlink(),
        }
        settle(&mut dst.num);
        *self.state.reg_mut(i.dst()) = dst;
        Ok(())
    }

    /// `pointer op number`; `flipped` if the instruction has the number on the left.
    fn pointer_op(&mut self, i: Insn, is32: bool, ptr: Reg, number: Reg, flipped: bool) -> Check {
        let d = i.dst();
        let op = i.op();
        let n = number.num;
        let known = n.as_const();
        if known.is_some() && (n.smin != n.smax || n.umin != n.umax) || n.smin > n.smax || n.umin > n.umax {
            self.set_unknown(d);
            return Ok(());
        }
        if is32 {
            if op == alu::SUB {
                self.check_not_shown(d, &ptr, Reason::PointerArithmetic, "32-bit arithmetic on")?;
                self.set_unknown(d);
                return Ok(());
            }
            return denied!(PointerArithmetic, "32-bit arithmetic on r{d}, {}", ptr.describe());
        }
        if ptr.nullable() {
            return denied!(PointerArithmetic, "arithmetic on {}, which is not checked for null yet", ptr.describe());
        }
        if ptr.is_untrusted_memory() {
            // Loads through it are guarded wherever it points.
            if !flipped {
                *self.state.reg_mut(d) = ptr;
            }
            return Ok(());
        }
        match ptr.kind {
            Kind::Ctx
            | Kind::Btf
            | Kind::MapValue
            | Kind::MapKey
            | Kind::Stack
            | Kind::Packet
            | Kind::PacketMeta
            | Kind::Mem
            | Kind::Func
            | Kind::TpBuffer
            | Kind::Dynptr => {}
            Kind::FlowKeys if known.is_some() => {}
            Kind::Map if known == Some(0) && op == alu::ADD => {}
            _ => return denied!(PointerArithmetic, "arithmetic on {} is not possible", ptr.describe()),
        }
        check_sane(&number, &ptr)?;
        check_sane(&ptr, &ptr)?;
        let masking = self.begin_masking(i, &ptr, &n, flipped)?;

        let mut dst = ptr;
        dst.num.forget_bounds32();
        match op {
            alu::ADD => {
                let sum = known.and_then(|k| i64::from(ptr.off).checked_add(k as i64));
                if let Some(off) = sum.and_then(|s| i32::try_from(s).ok()) {
                    dst.off = off;
                } else {
                    let (p, o) = (&ptr.num, &n);
                    (dst.num.smin, dst.num.smax) = match (p.smin.checked_add(o.smin), p.smax.checked_add(o.smax)) {
                        (Some(a), Some(b)) => (a, b),
                        _ => (i64::MIN, i64::MAX),
                    };
                    (dst.num.umin, dst.num.umax) = match (p.umin.checked_add(o.umin), p.umax.checked_add(o.umax)) {
                        (Some(a), Some(b)) => (a, b),
                        _ => (0, u64::MAX),
                    };
                    dst.num.bits = p.bits.add(o.bits);
                    if ptr.is_packet() {
                        dst.id = self.new_id();
                        dst.size = 0;
                    }
                }
            }
            alu::SUB => {
                if flipped {
                    return denied!(PointerArithmetic, "r{d} is a number; a pointer cannot be subtracted from it");
                }
                if ptr.kind == Kind::Stack {
                    return denied!(
                        PointerArithmetic,
                        "nothing can be subtracted from a stack pointer; add a negative number instead"
                    );
                }
                let difference = known.and_then(|k| i64::from(ptr.off).checked_sub(k as i64));
                if let Some(off) = difference.and_then(|s| i32::try_from(s).ok()) {
                    dst.off = off;
                } else {
                    let (p, o) = (&ptr.num, &n);
                    (dst.num.smin, dst.num.smax) = match (p.smin.checked_sub(o.smax), p.smax.checked_sub(o.smin)) {
                        (Some(a), Some(b)) => (a, b),
                        _ => (i64::MIN, i64::MAX),
                    };
                    (dst.num.umin, dst.num.umax) =
                        if p.umin < o.umax { (0, u64::MAX) } else { (p.umin - o.umax, p.umax.wrapping_sub(o.umin)) };
                    dst.num.bits = p.bits.sub(o.bits);
                    if ptr.is_packet() {
                        dst.id = self.new_id();
                        if o.smin < 0 {
                            dst.size = 0;
                        }
                    }
                }
            }
            alu::AND | alu::OR | alu::XOR => {
                return denied!(PointerArithmetic, "bitwise operations on {} are not possible", ptr.describe());
            }
            _ => return denied!(PointerArithmetic, "only addition and subtraction work on {}", ptr.describe()),
        }
        check_sane(&dst, &ptr)?;
        dst.num.sync();
        settle(&mut dst.num);
        self.check_pointer_stays(d, &dst)?;
        self.end_masking(i, &dst, masking)?;
        *self.state.reg_mut(d) = dst;
        Ok(())
    }
}

/// The constant that an operation adds, where it does.
fn delta(i: Insn, is32: bool, src: &Scalar) -> Option<i32> {
    if i.is_x() && i.src() == i.dst() {
        return None;
    }
    let added = if is32 { src.as_const32()? as i32 } else { i32::try_from(src.as_const()? as i64).ok()? };
    match i.op() {
        alu::ADD => Some(added),
        alu::SUB => added.checked_neg(),
        _ => None,
    }
}

/// Bounds that contradict each other come from paths that are never taken; they are dropped.
pub(crate) fn settle(n: &mut Scalar) {
    if n.is_contradiction() {
        n.forget_bounds();
    }
}

/// Keeps offsets so small that sums of them cannot overflow.
fn check_sane(reg: &Reg, ptr: &Reg) -> Check {
    let limit = -MAX_OFFSET + 1..MAX_OFFSET;
    if let Some(k) = reg.num.as_const()
        && !limit.contains(&(k as i64))
    {
        return invalid!(PointerOutOfRange, "{} cannot be moved by {}", ptr.describe(), k as i64);
    }
    if !limit.contains(&i64::from(reg.off)) {
        return invalid!(PointerOutOfRange, "{} has an offset of {}", ptr.describe(), reg.off);
    }
    if reg.num.smin == i64::MIN {
        return invalid!(PointerOutOfRange, "{} is moved by a number without a lower bound", ptr.describe());
    }
    if !limit.contains(&reg.num.smin) {
        return invalid!(PointerOutOfRange, "{} is moved by a number that may be {}", ptr.describe(), reg.num.smin);
    }
    Ok(())
}
