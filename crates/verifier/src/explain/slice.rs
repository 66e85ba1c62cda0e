//! Which values are at fault, and the steps of the failing path that fed them.

use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode};

use super::{Case, Deed, Step, words};
use crate::reason::Reason;
use crate::recorder::{self, Walk};
use crate::reg::{Kind, Reg, flag};
use crate::stack::locate;
use crate::state::{FP, Frame, Place};

/// Most steps of a history.
const MAX_STEPS: usize = 12;
/// Most branches that are told of the way from where a reference was acquired.
const MAX_BRANCHES: usize = 4;

/// Registers that an instruction reads.
fn reads(i: Insn) -> Vec<u8> {
    let (dst, src) = (i.dst(), i.src());
    match i.class() {
        class::ALU | class::ALU64 => match (i.op(), i.is_x()) {
            (alu::MOV, true) => vec![src],
            (alu::MOV, false) => vec![],
            (alu::END, _) | (_, false) => vec![dst],
            _ => vec![dst, src],
        },
        class::LDX => vec![src],
        class::ST => vec![dst],
        class::STX if i.mode() == mode::ATOMIC && i.imm == atomic::CMPXCHG => vec![dst, src, 0],
        class::STX => vec![dst, src],
        class::LD if i.mode() == mode::IND => vec![6, src],
        class::LD if i.mode() == mode::ABS => vec![6],
        class::LD => vec![],
        _ => match i.op() {
            jmp::JA | jmp::JCOND => vec![],
            jmp::CALL => vec![1, 2, 3, 4, 5],
            jmp::EXIT => vec![0],
            _ if i.is_x() => vec![dst, src],
            _ => vec![dst],
        },
    }
}

/// The register that an instruction writes.
fn writes(i: Insn) -> Option<u8> {
    match i.class() {
        class::ALU | class::ALU64 | class::LDX => Some(i.dst()),
        class::LD if i.mode() == mode::IMM => Some(i.dst()),
        class::LD => Some(0),
        class::STX if i.mode() == mode::ATOMIC => match i.imm {
            atomic::LOAD_ACQ => Some(i.dst()),
            atomic::STORE_REL => None,
            atomic::CMPXCHG => Some(0),
            op if op & atomic::FETCH != 0 => Some(i.src()),
            _ => None,
        },
        class::JMP if i.op() == jmp::CALL => Some(0),
        _ => None,
    }
}

/// The register through which an instruction accesses memory.
pub(super) fn base(i: Insn) -> Option<u8> {
    match i.class() {
        class::LDX => Some(i.src()),
        class::STX if i.mode() == mode::ATOMIC && i.imm == atomic::LOAD_ACQ => Some(i.src()),
        class::ST | class::STX => Some(i.dst()),
        _ => None,
    }
}

/// The registers that a message names.
fn named(message: &str) -> Vec<u8> {
    let words = message.split(|c: char| !c.is_ascii_alphanumeric());
    let number = |w: &str| w.strip_prefix('r').filter(|n| n.len() <= 2).and_then(|n| n.parse::<u8>().ok());
    let mut all: Vec<u8> = words.filter_map(number).filter(|n| *n <= 10).collect();
    all.dedup();
    all
}

/// The places whose values broke the rule: what the message names of what the instruction reads.
pub(super) fn subjects(case: &Case<'_>) -> Vec<Place> {
    let Some(walk) = &case.walk else { return Vec::new() };
    let Some(&insn) = case.program.insns.get(case.insn) else { return Vec::new() };
    let frame = walk.frames.len().saturating_sub(1) as u8;
    if matches!(case.failure.reason, Reason::UnreleasedReference) {
        return owners(case, walk);
    }
    let read = reads(insn);
    let mut regs: Vec<u8> = named(&case.failure.message).into_iter().filter(|r| read.contains(r)).collect();
    if regs.is_empty() {
        regs = match base(insn) {
            Some(b) => vec![b],
            None if insn.class() == class::JMP && insn.op() == jmp::CALL => vec![],
            None => read,
        };
    }
    let mut all = Vec::new();
    for reg in regs {
        if usize::from(reg) == FP {
            continue;
        }
        all.push(Place::Reg { frame, reg });
    }
    // What lies in the stack where the access goes.
    let about_stack = matches!(
        case.failure.reason,
        Reason::StackUninitialized
            | Reason::SpilledPointerCorrupt
            | Reason::SpecialField
            | Reason::ArgumentType
            | Reason::DynptrState
            | Reason::IteratorState
    );
    let pointers = all.clone().into_iter().filter_map(|p| recorder::at(&walk.frames, p));
    let pointers = pointers.chain(base(insn).filter(|b| usize::from(*b) == FP).map(|_| frame_pointer(frame)));
    if about_stack {
        let off = if base(insn).is_some() { i64::from(insn.off) } else { 0 };
        let slots: Vec<Place> = pointers.filter_map(|r| slot_of(&r, off)).collect();
        all.extend(slots);
    }
    all
}

fn frame_pointer(frame: u8) -> Reg {
    Reg { frame, ..Reg::pointer(Kind::Stack) }
}

/// The slot that a stack pointer with a constant offset leads to.
fn slot_of(reg: &Reg, off: i64) -> Option<Place> {
    let var = reg.num.as_const()? as i64;
    let at = i64::from(reg.off).checked_add(off)?.checked_add(var)?;
    if reg.kind != Kind::Stack || !(-512..0).contains(&at) {
        return None;
    }
    Some(Place::Slot { frame: reg.frame, slot: locate(at).0 as u8 })
}

/// Where a reference that was not released still is.
fn owners(case: &Case<'_>, walk: &Walk) -> Vec<Place> {
    let Some(held) = walk.held.first() else { return Vec::new() };
    let mut all = Vec::new();
    for (f, frame) in walk.frames.iter().enumerate() {
        for (r, reg) in frame.regs.iter().enumerate() {
            if reg.is_pointer() && reg.ref_id == held.id {
                all.push(Place::Reg { frame: f as u8, reg: r as u8 });
            }
        }
        for (s, slot) in frame.stack.iter().enumerate() {
            if slot.is_spill() && slot.reg.ref_id == held.id {
                all.push(Place::Slot { frame: f as u8, slot: s as u8 });
            }
        }
    }
    let _ = case;
    all.truncate(1);
    all
}

/// The history of some places at the end of a path, oldest step first.
pub(super) fn history(case: &Case<'_>, mut walk: Walk, subjects: &[Place]) -> Vec<Step> {
    let program = case.program;
    if case.failure.reason == Reason::UnreleasedReference {
        return leak(case, walk);
    }
    let mut wanted: Vec<Place> = subjects.to_vec();
    let mut steps: Vec<Step> = Vec::new();
    while !wanted.is_empty() && steps.len() < MAX_STEPS {
        let Some(after) = walk.back() else { break };
        let Some(at) = walk.insn() else { break };
        let Some(&insn) = program.insns.get(at) else { break };
        let before = &walk.frames;
        let mut next = Vec::new();
        for place in std::mem::take(&mut wanted) {
            let link = trace(insn, before, &after, place);
            if let Some(deed) = link.deed
                && let Some(value) = words::value(program, &after, place)
            {
                // In a loop the last round is the one that counts.
                if !steps.iter().any(|s| s.insn as usize == at && s.value.place == value.place) {
                    steps.push(Step { insn: at as u32, deed, value });
                }
            }
            for p in link.from {
                if !next.contains(&p) {
                    next.push(p);
                }
            }
        }
        wanted = next;
    }
    steps.reverse();
    steps
}

/// What one step did to one place, and where to look further.
struct Link {
    deed: Option<Deed>,
    from: Vec<Place>,
}

impl Link {
    fn none(place: Place) -> Link {
        Link { deed: None, from: vec![place] }
    }

    fn end(deed: Deed) -> Link {
        Link { deed: Some(deed), from: Vec::new() }
    }

    fn from(deed: Deed, from: Vec<Place>) -> Link {
        Link { deed: Some(deed), from }
    }
}

fn trace(insn: Insn, before: &[Frame], after: &[Frame], place: Place) -> Link {
    let depth = before.len().saturating_sub(1) as u8;
    let (frame, reg) = match place {
        Place::Reg { frame, reg } => (frame, Some(reg)),
        Place::Slot { frame, .. } => (frame, None),
    };
    // Calls and returns move the arguments and the result.
    if after.len() > before.len() {
        return match reg {
            Some(r) if frame > depth && (1..=5).contains(&r) && insn.is_subprog_call() => {
                Link::from(Deed::Passed, vec![Place::Reg { frame: depth, reg: r }])
            }
            _ if frame > depth => Link::end(Deed::Made),
            Some(r) if frame == depth && r <= 5 => Link::end(Deed::Forgot),
            _ => Link::none(place),
        };
    }
    if after.len() < before.len() {
        let caller = after.len().saturating_sub(1) as u8;
        return match reg {
            Some(0) if frame == caller => Link::from(Deed::Returned, vec![Place::Reg { frame: depth, reg: 0 }]),
            // The call forgot it, and the state between is not recorded for it.
            _ => Link::none(place),
        };
    }
    let changed = match place {
        Place::Reg { frame, reg } => {
            let get = |f: &[Frame]| f.get(usize::from(frame)).map(|f| f.regs[usize::from(reg).min(FP)]);
            get(before).zip(get(after)).is_some_and(|(a, b)| !means_same(&a, &b))
        }
        Place::Slot { frame, slot } => {
            let get = |f: &[Frame]| f.get(usize::from(frame)).and_then(|f| f.stack.get(usize::from(slot)).copied());
            get(before) != get(after)
        }
    };
    let here = |reg: u8| Place::Reg { frame: depth, reg };
    match reg {
        Some(r) if frame == depth && writes(insn) == Some(r) => made(insn, before, depth, here),
        Some(r) if frame == depth && r <= 5 && insn.class() == class::JMP && insn.op() == jmp::CALL => {
            Link::end(Deed::Forgot)
        }
        None if stores_to(insn, before, depth) == Some(place) => match insn.class() {
            class::STX if insn.mode() == mode::MEM || insn.imm == atomic::STORE_REL => {
                Link::from(Deed::Saved, vec![here(insn.src())])
            }
            _ => Link::end(Deed::Saved),
        },
        _ if !changed => Link::none(place),
        _ => {
            let jumps = matches!(insn.class(), class::JMP | class::JMP32) && insn.op() != jmp::CALL;
            let deed = if jumps { Deed::Narrowed } else { Deed::Forgot };
            Link::from(deed, vec![place])
        }
    }
}

/// An instruction that writes the register: what from.
fn made(insn: Insn, before: &[Frame], depth: u8, here: impl Fn(u8) -> Place) -> Link {
    let not_fp = |r: &u8| usize::from(*r) != FP;
    match insn.class() {
        class::ALU | class::ALU64 => {
            let from: Vec<Place> = reads(insn).into_iter().filter(not_fp).map(here).collect();
            Link::from(if from.is_empty() { Deed::Made } else { Deed::Computed }, from)
        }
        class::LDX => {
            let base = before.get(usize::from(depth)).map(|f| f.regs[usize::from(insn.src()).min(FP)]);
            match base.and_then(|b| slot_of(&b, insn.off.into())) {
                Some(slot) => Link::from(Deed::Restored, vec![slot]),
                None => Link::end(Deed::Made),
            }
        }
        _ => Link::end(Deed::Made),
    }
}

/// The slot that a store writes.
fn stores_to(insn: Insn, before: &[Frame], depth: u8) -> Option<Place> {
    if !matches!(insn.class(), class::ST | class::STX) {
        return None;
    }
    let base = before.get(usize::from(depth))?.regs.get(usize::from(insn.dst()))?;
    slot_of(base, insn.off.into())
}

/// Equal but for what only the checker cares for.
fn means_same(a: &Reg, b: &Reg) -> bool {
    let plain = |r: &Reg| {
        let r = Reg { precise: false, relied: false, linked_delta: false, id: 0, ..*r };
        if r.is_scalar() { Reg { off: 0, ..r } } else { r }
    };
    plain(a) == plain(b)
}

/// A reference that is still held: where it was acquired, and which way the path went from there.
fn leak(case: &Case<'_>, walk: Walk) -> Vec<Step> {
    let Some(held) = walk.held.first().copied() else { return Vec::new() };
    let program = case.program;
    let path: Vec<usize> = walk.path().collect();
    let Some(start) = path.iter().rposition(|at| *at == held.insn) else { return Vec::new() };
    let pointer = walk.frames.iter().flat_map(|f| &f.regs).find(|r| r.is_pointer() && r.ref_id == held.id);
    let holds = pointer.map_or_else(
        || "a reference".into(),
        |r| words::holds(program, &Reg { flags: r.flags & !flag::NULLABLE, ..*r }),
    );
    let value = super::Value { place: "r0".into(), holds };
    let mut steps = vec![Step { insn: held.insn as u32, deed: Deed::Acquired, value }];
    let mut branches = Vec::new();
    for pair in path.get(start..).unwrap_or_default().windows(2) {
        let (at, next) = (pair[0], pair[1]);
        let Some(i) = program.insns.get(at) else { continue };
        let conditional = matches!(i.class(), class::JMP | class::JMP32)
            && !matches!(i.op(), jmp::JA | jmp::CALL | jmp::EXIT | jmp::JCOND);
        if conditional {
            let way = if next == at + 1 { "goes on" } else { "jumps" };
            let value = super::Value { place: format!("instruction {next}"), holds: format!("the path {way}") };
            branches.push(Step { insn: at as u32, deed: Deed::Went, value });
        }
    }
    let skip = branches.len().saturating_sub(MAX_BRANCHES);
    steps.extend(branches.into_iter().skip(skip));
    steps
}
