//! Objects that live in whole slots of the stack, dynptrs and iterators: what a slot says of them, and where they may be.
//!
//! A slot's bytes are all [`Byte::Dynptr`] or all [`Byte::Iter`], and its `reg` holds the rest. An object begins in the
//! slot at its lowest address, which has the highest number.

use crate::env::Env;
use crate::reg::{Kind, Reg};
use crate::stack::locate;
use crate::state::{Byte, Slot};

/// Where a dynptr's data come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Local,
    Ringbuf,
    Skb,
    Xdp,
    SkbMeta,
}

impl Source {
    const ALL: [Source; 5] = [Source::Local, Source::Ringbuf, Source::Skb, Source::Xdp, Source::SkbMeta];

    /// A dynptr of this source must be given back.
    pub fn is_referenced(self) -> bool {
        self == Source::Ringbuf
    }

    /// Its data are packet data, which helpers may move.
    pub fn is_packet(self) -> bool {
        matches!(self, Source::Skb | Source::Xdp | Source::SkbMeta)
    }

    /// The source's name.
    pub fn name(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Ringbuf => "ring buffer",
            Source::Skb => "skb",
            Source::Xdp => "xdp",
            Source::SkbMeta => "skb metadata",
        }
    }
}

/// A dynptr, as one of its two slots or a pointer to a constant one knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dynptr {
    pub source: Source,
    /// The slot is the first of the two.
    pub first: bool,
    /// What slices of its data name as their `what`.
    pub id: u32,
    /// The reference that it holds, 0 if none.
    pub ref_id: u32,
}

impl Dynptr {
    /// Slots of a dynptr.
    pub const SLOTS: usize = 2;

    /// The register that stands for it in a slot, or points to it if it is constant.
    pub fn to_reg(self) -> Reg {
        Reg {
            what: self.source as u32,
            size: u32::from(self.first),
            id: self.id,
            ref_id: self.ref_id,
            ..Reg::pointer(Kind::Dynptr)
        }
    }

    /// The dynptr that [`Dynptr::to_reg`] made this of.
    pub fn from_reg(reg: &Reg) -> Option<Dynptr> {
        if reg.kind != Kind::Dynptr {
            return None;
        }
        let source = *Source::ALL.get(reg.what as usize)?;
        Some(Dynptr { source, first: reg.size != 0, id: reg.id, ref_id: reg.ref_id })
    }

    /// The dynptr that a slot is part of.
    pub fn in_slot(slot: &Slot) -> Option<Dynptr> {
        if slot.bytes[0] == Byte::Dynptr { Dynptr::from_reg(&slot.reg) } else { None }
    }
}

/// An open-coded iterator, as one of its slots knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Iter {
    /// Id of its struct in the kernel's BTF.
    pub type_id: u32,
    /// The reference that stands for it; set in its first slot only.
    pub ref_id: u32,
    /// It has given its last element.
    pub drained: bool,
    /// Elements that it has given on this path.
    pub depth: u32,
    /// What its elements are protected by: `RCU`, `UNTRUSTED` (the RCU section is over) or nothing of [`crate::reg::flag`].
    pub protection: u32,
}

impl Iter {
    /// The register that stands for it in a slot.
    pub fn to_reg(self) -> Reg {
        Reg {
            what: self.type_id,
            size: self.depth,
            off: i32::from(self.drained),
            ref_id: self.ref_id,
            flags: self.protection,
            ..Reg::pointer(Kind::Iter)
        }
    }

    /// The iterator that a slot is part of.
    pub fn in_slot(slot: &Slot) -> Option<Iter> {
        if slot.bytes[0] != Byte::Iter || slot.reg.kind != Kind::Iter {
            return None;
        }
        let reg = &slot.reg;
        Some(Iter {
            type_id: reg.what,
            ref_id: reg.ref_id,
            drained: reg.off != 0,
            depth: reg.size,
            protection: reg.flags,
        })
    }
}

/// A slot of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotPlace {
    pub frame: usize,
    pub slot: usize,
}

/// Where an object may not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadPlace {
    /// At an offset that is not constant, not aligned or too close to the top of the stack.
    Never,
    /// On stack that was not used so far.
    Beyond,
}

impl Env<'_> {
    /// The first slot of an object of `slots` slots that a stack pointer names.
    pub fn object_place(&self, ptr: &Reg, slots: usize) -> Result<SlotPlace, BadPlace> {
        if ptr.kind != Kind::Stack {
            return Err(BadPlace::Never);
        }
        let off = ptr.num.as_const().map(|k| i64::from(ptr.off).wrapping_add(k as i64));
        let Some(off) = off.filter(|o| o % 8 == 0 && *o <= -8) else { return Err(BadPlace::Never) };
        let (slot, _) = locate(off);
        if slot + 1 < slots {
            return Err(BadPlace::Never);
        }
        let frame = usize::from(ptr.frame);
        match self.state.frames.get(frame) {
            Some(f) if slot < f.stack.len() => Ok(SlotPlace { frame, slot }),
            _ => Err(BadPlace::Beyond),
        }
    }

    /// A slot of the current state.
    pub fn slot_at(&self, place: SlotPlace) -> Option<&Slot> {
        self.state.frames.get(place.frame).and_then(|f| f.stack.get(place.slot))
    }

    /// Sets all bytes of a slot and what it is.
    pub fn set_slot(&mut self, place: SlotPlace, byte: Byte, reg: Reg) {
        let slot = self.state.frames.get_mut(place.frame).and_then(|f| f.stack.get_mut(place.slot));
        if let Some(slot) = slot {
            *slot = Slot { bytes: [byte; 8], reg };
            self.mark_stack_written(place.frame, place.slot);
        }
    }

    /// Notes that the slots of an object are read.
    pub fn mark_object_read(&mut self, place: SlotPlace, slots: usize) {
        let mask = (0..slots).fold(0, |m, n| m | 1u64.checked_shl((place.slot - n) as u32).unwrap_or(0));
        self.mark_stack_read(place.frame, mask);
    }
}
