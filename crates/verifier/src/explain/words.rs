//! Values in words.

use skep_ebpf::btf::Btf;
use skep_ebpf::disasm::Names;
use skep_ebpf::program::Program;

use crate::explain::Value;
use crate::reg::{Kind, Reg};
use crate::state::{Byte, Frame, Place, Slot};

/// What a place holds, with the names of maps.
pub(super) fn value(program: &Program, frames: &[Frame], place: Place) -> Option<Value> {
    let holds = match place {
        Place::Reg { frame, reg } => holds(program, frames.get(usize::from(frame))?.regs.get(usize::from(reg))?),
        Place::Slot { frame, slot } => {
            slot_holds(program, frames.get(usize::from(frame))?.stack.get(usize::from(slot))?)
        }
    };
    Some(Value { place: name(place, frames.len()), holds })
}

/// `r1`, `fp-8`; with the function's number in front if it is not the active one.
fn name(place: Place, frames: usize) -> String {
    let (frame, text) = match place {
        Place::Reg { frame, reg } => (frame, format!("r{reg}")),
        Place::Slot { frame, slot } => (frame, format!("fp-{}", (u32::from(slot) + 1) * 8)),
    };
    if usize::from(frame) + 1 == frames { text } else { format!("{text} of the caller") }
}

fn slot_holds(program: &Program, slot: &Slot) -> String {
    if slot.is_spill() {
        return holds(program, &slot.reg);
    }
    let special = |kind| slot.bytes.contains(&kind);
    if special(Byte::Dynptr) {
        return "a part of a dynptr".into();
    }
    if special(Byte::Iter) {
        return "a part of an iterator".into();
    }
    if special(Byte::Irq) {
        return "a saved state of interrupts".into();
    }
    let unset = slot.bytes.iter().filter(|b| **b == Byte::Invalid).count();
    match unset {
        8 => "nothing".into(),
        0 if slot.bytes == [Byte::Zero; 8] => "0".into(),
        0 => "some data".into(),
        n => format!("data with {n} of 8 bytes not written"),
    }
}

/// What a register holds.
pub(super) fn holds(program: &Program, reg: &Reg) -> String {
    let text = reg.describe();
    let Some(map) = program.maps.get(reg.what as usize) else { return text };
    match reg.kind {
        Kind::Map => text.replacen("a map", &format!("map {}", map.name), 1),
        Kind::MapValue => text.replacen("a map value", &format!("a value of map {}", map.name), 1),
        Kind::MapKey => text.replacen("a map key", &format!("a key of map {}", map.name), 1),
        _ => text,
    }
}

/// Names of what instructions refer to: a program's maps, the kernel's functions.
pub(crate) struct MapNames<'p> {
    pub program: &'p Program,
    pub kernel: Option<&'p Btf>,
}

impl Names for MapNames<'_> {
    fn map(&self, index: i32) -> Option<&str> {
        self.program.maps.get(usize::try_from(index).ok()?).map(|m| m.name.as_str())
    }

    fn kfunc(&self, id: i32, btf: i16) -> Option<&str> {
        let name = self.kernel.filter(|_| btf == 0)?.name(u32::try_from(id).ok()?);
        Some(name).filter(|n| !n.is_empty())
    }
}
