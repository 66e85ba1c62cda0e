//! Dynptrs: how they are made, used, given back and lost, and the slices of their data.
//!
//! A slice is memory whose `what` is the id of its dynptr. It goes with the dynptr, with the reference behind it, and, if
//! the data are a packet's, with every call that may move packet data.

use skep_ebpf::helper::{DynptrArg, Helper};

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::reg::{Kind, Reg, flag};
use crate::stack_object::{BadPlace, Dynptr, SlotPlace, Source};
use crate::state::Byte;

const DYNPTR_WRITE: u32 = 202;

impl Env<'_> {
    /// Checks a helper's dynptr argument.
    pub fn check_dynptr_arg(&mut self, h: &Helper, r: u8, arg: DynptrArg) -> Check<Dynptr> {
        match arg {
            DynptrArg::NewLocal => self.make_dynptr(r, Source::Local, None),
            DynptrArg::NewRingbuf => self.make_dynptr(r, Source::Ringbuf, None),
            DynptrArg::Any => self.read_dynptr(r),
            DynptrArg::ReleaseRingbuf => {
                let reg = *self.state.reg(r);
                if reg.kind != Kind::Stack {
                    return invalid!(
                        ReleaseWithoutAcquire,
                        "bpf_{} gives back the dynptr in r{r}, which is not this program's own",
                        h.name
                    );
                }
                let held = self
                    .object_place(&reg, Dynptr::SLOTS)
                    .ok()
                    .and_then(|p| self.slot_at(p))
                    .is_some_and(|s| s.reg.ref_id != 0);
                if !held {
                    return invalid!(
                        ReleaseWithoutAcquire,
                        "r{r} of bpf_{} is no dynptr with a reserved record",
                        h.name
                    );
                }
                let dynptr = self.read_dynptr(r)?;
                if dynptr.source != Source::Ringbuf {
                    return invalid!(
                        DynptrState,
                        "bpf_{} wants a dynptr of a ring buffer in r{r}, this one is of {} data",
                        h.name,
                        dynptr.source.name()
                    );
                }
                Ok(dynptr)
            }
        }
    }

    /// A pointer to a dynptr that is not the program's own to change.
    pub fn foreign_dynptr(&mut self) -> Reg {
        Dynptr { source: Source::Local, first: true, id: self.new_id(), ref_id: 0 }.to_reg()
    }

    /// The initialised dynptr that a register points to.
    pub fn read_dynptr(&mut self, r: u8) -> Check<Dynptr> {
        let reg = *self.state.reg(r);
        if let Some(constant) = Dynptr::from_reg(&reg) {
            return Ok(constant);
        }
        let found = self.object_place(&reg, Dynptr::SLOTS).ok().and_then(|p| Some((p, self.dynptr_in(p)?)));
        let Some((place, dynptr)) = found.filter(|(_, d)| d.first) else {
            return invalid!(DynptrState, "r{r} does not point to an initialised dynptr; it holds {}", reg.describe());
        };
        self.mark_object_read(place, Dynptr::SLOTS);
        Ok(dynptr)
    }

    /// Makes a dynptr on the stack; `shares` is the reference of the one that it is a copy of.
    pub fn make_dynptr(&mut self, r: u8, source: Source, shares: Option<u32>) -> Check<Dynptr> {
        let reg = *self.state.reg(r);
        if self.object_place(&reg, Dynptr::SLOTS) == Err(BadPlace::Never) {
            return invalid!(
                DynptrState,
                "a dynptr is made in 16 bytes of stack at a constant offset that is a multiple of 8; r{r} holds {}",
                reg.describe()
            );
        }
        for at in [0, 8] {
            self.write_object_slot(r, at)?;
        }
        let Ok(place) = self.object_place(&reg, Dynptr::SLOTS) else {
            return invalid!(DynptrState, "there is no stack for the dynptr in r{r}");
        };
        let id = self.new_id();
        let ref_id = match shares {
            Some(shared) if source.is_referenced() => shared,
            _ if source.is_referenced() => self.acquire(),
            _ => 0,
        };
        let first = Dynptr { source, first: true, id, ref_id };
        self.set_slot(place, Byte::Dynptr, first.to_reg());
        let second = SlotPlace { slot: place.slot - 1, ..place };
        self.set_slot(second, Byte::Dynptr, Dynptr { first: false, ..first }.to_reg());
        Ok(first)
    }

    /// Gives the record behind a dynptr back: it, its copies and their slices are gone.
    pub fn release_dynptr(&mut self, dynptr: Dynptr) -> bool {
        let released = self.release(dynptr.ref_id);
        for frame in 0..self.state.frames.len() {
            for slot in 0..self.state.frames[frame].stack.len() {
                let place = SlotPlace { frame, slot };
                if self.dynptr_in(place).is_some_and(|d| d.ref_id == dynptr.ref_id) {
                    self.set_slot(place, Byte::Invalid, Reg::NOT_INIT);
                }
            }
        }
        released
    }

    /// Writing over a part of a dynptr ends the whole, and its slices with it.
    pub fn overwrite_dynptr(&mut self, frame: usize, slot: usize) -> Check {
        let Some(dynptr) = self.dynptr_in(SlotPlace { frame, slot }) else { return Ok(()) };
        if dynptr.source.is_referenced() {
            return invalid!(DynptrState, "the write overwrites a dynptr whose record is not given back");
        }
        let first = if dynptr.first { slot } else { slot + 1 };
        for slot in [first, first.saturating_sub(1)] {
            self.set_slot(SlotPlace { frame, slot }, Byte::Invalid, Reg::NOT_INIT);
        }
        let lost = self.lost();
        self.state.each_reg(|r| {
            if r.kind == Kind::Mem && r.flags & !flag::NULLABLE == 0 && r.what == dynptr.id {
                *r = lost;
            }
        });
        Ok(())
    }

    /// Memory of `size` bytes inside a dynptr's data, as a helper (not a kfunc) gives it.
    pub fn dynptr_data(&self, dynptr: Dynptr, size: u32) -> Reg {
        Reg { flags: flag::NULLABLE, size, what: dynptr.id, ref_id: dynptr.ref_id, ..Reg::pointer(Kind::Mem) }
    }

    /// The same as a kfunc gives it: not tied to a reference, but to the packet.
    pub fn dynptr_slice(&self, dynptr: Dynptr, size: u32, writable: bool) -> Reg {
        let mut reg = Reg { flags: flag::SLICE, size, what: dynptr.id, ..Reg::pointer(Kind::Mem) };
        if dynptr.source.is_packet() {
            reg.flags |= flag::PACKET_SLICE;
        }
        if !writable {
            reg.flags |= flag::READ_ONLY;
        }
        reg
    }

    /// True if a helper that is given this dynptr may move packet data.
    pub fn moves_packet(&self, helper: u32, dynptr: Dynptr) -> bool {
        helper == DYNPTR_WRITE && matches!(dynptr.source, Source::Skb | Source::SkbMeta)
    }

    fn dynptr_in(&self, place: SlotPlace) -> Option<Dynptr> {
        self.slot_at(place).and_then(Dynptr::in_slot)
    }
}
