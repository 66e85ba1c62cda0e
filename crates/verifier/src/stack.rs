//! The stack: spilled registers, bytes, and accesses at offsets that are not known.

use crate::check_alu::MAX_OFFSET;
use crate::check_mem::{Access, Operand};
use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::state::{Byte, STACK_BYTES, Slot};
use skep_ebpf::Errno;

/// The slot and the byte in it (0 is the highest address) of a stack offset, which is in -512..0.
pub(crate) fn locate(off: i64) -> (usize, usize) {
    let distance = usize::try_from(-off - 1).unwrap_or(0);
    (distance / 8, distance % 8)
}

/// The mask of slots that the bytes `[min, end)` touch.
fn slots_mask(min: i64, end: i64) -> u64 {
    if min >= end {
        return 0;
    }
    let (first, _) = locate(end - 1);
    let (last, _) = locate(min);
    (first..=last).fold(0, |m, s| m | 1u64.checked_shl(s as u32).unwrap_or(0))
}

/// Bits that a number may use.
fn width(reg: &Reg) -> u32 {
    64 - reg.num.umax.leading_zeros()
}

impl Env<'_> {
    /// The bytes lie in the frame; makes it deep enough. Returns lowest offset and the end of the highest access.
    pub fn check_stack_bounds(&mut self, r: u8, ptr: &Reg, off: i64, size: u64) -> Check<(i64, i64)> {
        let (min, end) = match ptr.num.as_const() {
            Some(k) => {
                let at = off.wrapping_add(k as i64);
                (at, at.saturating_add(size as i64))
            }
            None => {
                if ptr.num.smax >= MAX_OFFSET || ptr.num.smin <= -MAX_OFFSET {
                    return denied!(
                        UnboundedOffset,
                        "r{r} is {}: its offset on the stack has no bound",
                        ptr.describe()
                    );
                }
                (off + ptr.num.smin, (off + ptr.num.smax).saturating_add(size as i64))
            }
        };
        if min < -i64::from(STACK_BYTES) || min > -1 {
            return denied!(
                StackOutOfBounds,
                "{size} bytes at offset {min} of the stack are outside of the {STACK_BYTES} bytes below r10"
            );
        }
        if end > 0 {
            return Err(Failure::new(
                Errno::EINVAL,
                Reason::StackOutOfBounds,
                format!("{size} bytes at offset {} of the stack reach beyond r10", end - size as i64),
            ));
        }
        let depth = usize::try_from(-min).unwrap_or(0);
        let frame = usize::from(ptr.frame);
        let Some(f) = self.state.frames.get_mut(frame) else {
            return invalid!(StackEscape, "r{r} points into a frame that is gone");
        };
        f.grow_stack(depth);
        let facts = &mut self.functions[f.subprog];
        facts.stack_depth = facts.stack_depth.max(depth as u32);
        self.touch_spill_area(frame, min);
        Ok((min, end))
    }

    /// Loads and stores at variable offsets came with 5.12.
    fn check_variable_stack(&self, ptr: &Reg) -> Check {
        if ptr.has_variable_offset() && !self.options.profile.since(5, 12) {
            return denied!(
                StackVariableOffset,
                "Linux {} needs a constant offset on the stack",
                self.options.profile.name
            );
        }
        Ok(())
    }

    pub fn stack_write(&mut self, a: Access, ptr: &Reg, off: i64, operand: Operand) -> Check {
        let (min, end) = self.check_stack_bounds(a.reg, ptr, off, a.size.into())?;
        self.check_variable_stack(ptr)?;
        let value = match operand {
            Operand::Reg(r) => Some((r, *self.state.reg(r))),
            _ => None,
        };
        if ptr.has_variable_offset() {
            return self.stack_write_variable(ptr, min, end, operand, value);
        }
        let frame = usize::from(ptr.frame);
        let own = frame == self.state.depth();
        let (slot, byte) = locate(min);
        self.overwrite_dynptr(frame, slot)?;
        let kept = &self.state.frames[frame].stack[slot];
        if self.keeps_secrets() && a.size != 8 && kept.is_spill() && !kept.reg.is_scalar() {
            return denied!(SpilledPointerCorrupt, "a part of the pointer saved at offset {min} is overwritten");
        }
        let whole = min % 8 == 0;
        let kept = *kept;
        self.note_store(&kept, byte, a.size as usize, value.as_ref().map(|(_, r)| r));
        if whole && a.size == 8 {
            self.mark_stack_written(frame, slot);
        }
        match (value, operand) {
            (Some((r, mut reg)), _) if whole && reg.is_scalar() && self.tracks_numbers() => {
                let fits = width(&reg) <= a.size * 8;
                if fits {
                    self.link(&mut reg);
                    *self.state.reg_mut(r) = reg;
                }
                if !fits {
                    reg.unlink();
                }
                self.save(frame, slot, reg, a.size);
            }
            (None, Operand::Imm(x)) if whole && self.tracks_numbers() => {
                self.save(frame, slot, Reg::constant(x as i64 as u64), a.size)
            }
            (Some((_, reg)), _) if reg.is_pointer() && !matches!(reg.kind, Kind::Dynptr | Kind::TpBuffer) => {
                if a.size != 8 {
                    return denied!(SpilledPointerCorrupt, "a pointer is saved with {} of its 8 bytes", a.size);
                }
                if !own && reg.kind == Kind::Stack {
                    return invalid!(
                        StackEscape,
                        "a pointer to this function's stack is saved in the stack of its caller"
                    );
                }
                self.save(frame, slot, reg, 8);
            }
            _ => {
                let zero = value.is_some_and(|(_, r)| r.is_null()) || operand == Operand::Imm(0);
                let target = &mut self.state.frames[frame].stack[slot];
                target.reg = Reg::NOT_INIT;
                if target.is_spill() || target.holds_object() {
                    target.scrub();
                }
                for b in &mut target.bytes[(byte + 1).saturating_sub(a.size as usize)..=byte] {
                    *b = if zero { Byte::Zero } else { Byte::Misc };
                }
                if zero && let Some((r, _)) = value {
                    self.mark_precise(r)?;
                }
                return Ok(());
            }
        }
        self.record_step(Some((frame as u8, slot as u8)), Vec::new());
        Ok(())
    }

    /// Saves a register in the lower `size` bytes of a slot.
    fn save(&mut self, frame: usize, slot: usize, reg: Reg, size: u32) {
        let target = &mut self.state.frames[frame].stack[slot];
        target.reg = reg;
        for (n, b) in target.bytes.iter_mut().enumerate() {
            if n >= 8 - size as usize {
                *b = Byte::Spill;
            } else if !matches!(b, Byte::Zero | Byte::Invalid) {
                *b = Byte::Misc;
            }
        }
    }

    fn stack_write_variable(
        &mut self,
        ptr: &Reg,
        min: i64,
        end: i64,
        operand: Operand,
        value: Option<(u8, Reg)>,
    ) -> Check {
        let zero = value.is_some_and(|(_, r)| r.is_null()) || operand == Operand::Imm(0);
        let frame = usize::from(ptr.frame);
        for at in min..end {
            self.overwrite_dynptr(frame, locate(at).0)?;
        }
        let mut kept_zero = false;
        for at in min..end {
            let (slot, byte) = locate(at);
            let s = &mut self.state.frames[frame].stack[slot];
            if zero && s.bytes[byte] == Byte::Spill && s.is_scalar_spill() && s.reg.is_null() {
                kept_zero = true;
                continue;
            }
            if s.is_spill() || s.holds_object() {
                s.scrub_spill();
            }
            if zero && s.bytes[byte] == Byte::Zero {
                kept_zero = true;
            } else {
                s.bytes[byte] = Byte::Misc;
            }
        }
        if kept_zero && let Some((r, _)) = value {
            self.mark_precise(r)?;
        }
        Ok(())
    }

    pub fn stack_read(&mut self, a: Access, ptr: &Reg, off: i64, operand: Operand) -> Check {
        let (min, end) = self.check_stack_bounds(a.reg, ptr, off, a.size.into())?;
        self.check_variable_stack(ptr)?;
        let frame = usize::from(ptr.frame);
        self.mark_stack_read(frame, slots_mask(min, end));
        if ptr.has_variable_offset() {
            let Operand::Reg(_) = operand else {
                return denied!(StackVariableOffset, "an atomic operation needs a constant offset on the stack");
            };
            self.check_stack_readable(frame, min, end, false)?;
            let loaded = self.bytes_value(frame, min, end);
            self.finish_load(a, operand, loaded);
            return Ok(());
        }
        // The kernel takes a load from a caller's frame for one from this frame.
        self.touch_spill_area(self.state.depth(), min);
        let (slot, byte) = locate(min);
        let s = self.state.frames[frame].stack[slot];
        if !s.is_spill() {
            self.check_stack_readable(frame, min, end, true)?;
            let loaded = self.bytes_value(frame, min, end);
            self.finish_load(a, operand, loaded);
            return Ok(());
        }
        let saved = 1 + (0..7).rev().take_while(|n| s.bytes[*n] == Byte::Spill).count();
        if a.size == 8 && saved == 8 {
            let mut reg = s.reg;
            if operand != Operand::None {
                self.link(&mut reg);
                self.state.frames[frame].stack[slot].reg = reg;
            }
            self.record_step(Some((frame as u8, slot as u8)), Vec::new());
            if let Operand::Reg(dst) = operand {
                *self.state.reg_mut(dst) = reg;
            }
            return Ok(());
        }
        if !s.reg.is_scalar() {
            return denied!(
                SpilledPointerCorrupt,
                "{} bytes are read of a slot that holds {}",
                a.size,
                s.reg.describe()
            );
        }
        let Operand::Reg(_) = operand else { return Ok(()) };
        if a.size as usize <= saved && min % 8 == 0 {
            let mut reg = s.reg;
            if a.size == 4 && saved == 4 && width(&reg) <= 32 {
                self.link(&mut reg);
                self.state.frames[frame].stack[slot].reg = reg;
            }
            if width(&reg) > a.size * 8 {
                reg.unlink();
            }
            self.record_step(Some((frame as u8, slot as u8)), Vec::new());
            self.finish_load(a, operand, reg);
            return Ok(());
        }
        let bytes = &s.bytes[(byte + 1).saturating_sub(a.size as usize)..=byte];
        if bytes.iter().any(|b| matches!(b, Byte::Dynptr | Byte::Iter | Byte::Irq)) {
            return denied!(SpecialField, "a dynptr or iterator on the stack cannot be read");
        }
        if self.keeps_secrets() && bytes.contains(&Byte::Invalid) {
            return denied!(StackUninitialized, "{} bytes are read of a slot that was not written whole", a.size);
        }
        let all = |kind| bytes.iter().all(|b| *b == kind);
        if all(Byte::Spill) && s.reg.is_null() {
            self.record_step(Some((frame as u8, slot as u8)), Vec::new());
            self.finish_load(a, operand, Reg::constant(0));
        } else if all(Byte::Zero) {
            self.finish_load(a, operand, Reg::constant(0));
        } else {
            self.finish_load(a, operand, Reg::UNKNOWN);
        }
        Ok(())
    }

    /// Plain data in `[min, end)`, or (unless `plain`) saved registers that are read as data.
    fn check_stack_readable(&self, frame: usize, min: i64, end: i64, plain: bool) -> Check {
        for at in min..end {
            let (slot, byte) = locate(at);
            let s = &self.state.frames[frame].stack[slot];
            let ok = match s.bytes[byte] {
                Byte::Misc | Byte::Zero => true,
                Byte::Invalid if self.keeps_secrets() => {
                    return denied!(StackUninitialized, "the stack at offset {at} is read before it was written");
                }
                Byte::Invalid => true,
                Byte::Spill => !plain && s.is_spill(),
                Byte::Dynptr | Byte::Iter | Byte::Irq => false,
            };
            if !ok {
                return denied!(
                    SpilledPointerCorrupt,
                    "the stack at offset {at} holds a saved pointer or a special object, not plain data"
                );
            }
        }
        Ok(())
    }

    /// An atomic operation on a saved pointer would show it.
    pub fn check_no_pointer_saved(&self, a: Access) -> Check {
        let ptr = self.state.reg(a.reg);
        let at = ptr.num.as_const().map(|k| i64::from(ptr.off).wrapping_add(k as i64) + i64::from(a.off));
        let at = at.filter(|at| (-i64::from(STACK_BYTES)..0).contains(at));
        let (Some(at), Kind::Stack, true, 8) = (at, ptr.kind, self.keeps_secrets(), a.size) else { return Ok(()) };
        let frame = self.state.frames.get(usize::from(ptr.frame));
        match frame.and_then(|f| f.stack.get(locate(at).0)) {
            Some(s) if s.is_full_spill() && !s.reg.is_scalar() => {
                denied!(
                    PointerStore,
                    "the operation would show the address saved at offset {at}, which needs CAP_PERFMON"
                )
            }
            _ => Ok(()),
        }
    }

    /// What reading bytes as data gives.
    fn bytes_value(&self, frame: usize, min: i64, end: i64) -> Reg {
        let zero = (min..end).all(|at| {
            let (slot, byte) = locate(at);
            self.state.frames[frame].stack[slot].bytes[byte] == Byte::Zero
        });
        if zero { Reg::constant(0) } else { Reg::UNKNOWN }
    }

    /// A helper reads (and, if `clobber`, may write) `size` bytes.
    pub fn check_stack_region(&mut self, r: u8, ptr: &Reg, off: i64, size: u64, clobber: bool) -> Check {
        let (min, end) = self.check_stack_bounds(r, ptr, off, size)?;
        let frame = usize::from(ptr.frame);
        for at in min..end {
            let (slot, byte) = locate(at);
            let secrets = self.keeps_secrets();
            let s = &mut self.state.frames[frame].stack[slot];
            match s.bytes[byte] {
                Byte::Misc => {}
                // What a number was saved beside counts as written.
                Byte::Invalid if secrets && s.is_scalar_spill() => {
                    if clobber {
                        s.scrub_spill();
                    }
                }
                Byte::Invalid if secrets => {
                    return denied!(
                        StackUninitialized,
                        "the stack at offset {at}, passed to the helper in r{r}, was never written"
                    );
                }
                Byte::Spill if secrets && s.is_spill() && !s.reg.is_scalar() => {
                    return denied!(PointerStore, "the helper in r{r} would see the address saved at offset {at}");
                }
                Byte::Zero | Byte::Invalid => {
                    if clobber {
                        s.bytes[byte] = Byte::Misc;
                    }
                }
                Byte::Spill if s.is_spill() => {
                    if clobber {
                        s.scrub();
                    }
                }
                Byte::Spill | Byte::Dynptr | Byte::Iter | Byte::Irq => {
                    return denied!(
                        SpecialField,
                        "the stack at offset {at}, passed to the helper in r{r}, holds no plain data"
                    );
                }
            }
        }
        self.mark_stack_read(frame, slots_mask(min, end));
        Ok(())
    }

    /// A helper fills `size` bytes at a constant offset without reading them.
    pub fn check_stack_filled(&mut self, r: u8, ptr: &Reg, off: i64, size: u64) -> Check {
        let (min, end) = self.check_stack_bounds(r, ptr, off, size)?;
        let frame = &self.state.frames[usize::from(ptr.frame)];
        for at in min..end {
            let (slot, byte) = locate(at);
            let kept = &frame.stack[slot];
            if self.keeps_secrets() && kept.is_spill() && !kept.reg.is_scalar() {
                return denied!(
                    SpilledPointerCorrupt,
                    "the helper in r{r} would overwrite the pointer saved at offset {at}"
                );
            }
            if kept.bytes[byte] == Byte::Dynptr {
                return denied!(
                    SpecialField,
                    "the helper in r{r} would overwrite a dynptr at offset {at} of the stack"
                );
            }
        }
        Ok(())
    }

    /// After the helper: the bytes hold something.
    pub fn fill_stack(&mut self, ptr: &Reg, off: i64, size: u64) {
        let Some(k) = ptr.num.as_const() else { return };
        let min = off.wrapping_add(k as i64);
        for at in min..min.saturating_add(size as i64) {
            let (slot, byte) = locate(at);
            let kept = self.state.frames[usize::from(ptr.frame)].stack[slot];
            self.note_store(&kept, byte, 1, None);
        }
        for at in min..min.saturating_add(size as i64) {
            let (slot, byte) = locate(at);
            let s: &mut Slot = &mut self.state.frames[usize::from(ptr.frame)].stack[slot];
            if s.is_spill() || s.holds_object() {
                s.scrub();
            }
            s.reg = Reg::NOT_INIT;
            s.bytes[byte] = Byte::Misc;
        }
    }

    /// A call writes eight bytes of an object on the stack, `at` bytes behind its start.
    pub fn write_object_slot(&mut self, r: u8, at: i64) -> Check {
        let ptr = *self.state.reg(r);
        let a = Access { reg: r, off: at as i16, size: 8, write: true, signed: false, aligned: false };
        self.stack_write(a, &ptr, i64::from(ptr.off) + at, Operand::None)
    }
}
