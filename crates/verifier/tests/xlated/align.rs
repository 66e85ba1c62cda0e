//! Lays a rewritten program beside what the kernel made of the same program.
//!
//! The kernel puts sequences of its own in the place of some instructions: they follow from its structures (context and
//! socket loads, look-ups in maps), or make explicit what an engine may do as well (division by zero, `may_goto`). Those are
//! the ledger of differences of choice, [`Choice`]; everything else must be there one to one, and each jump must lead to the
//! counterpart of where it leads here.

use std::collections::{BTreeMap, BTreeSet};

use skep_ebpf::insn::{CALL, Insn, JA32, alu, atomic, call, class, jmp, mode, pseudo, size};
use skep_verifier::Verified;
use skep_verifier::rewrite::{Memory, Rewritten};

/// Why one instruction may be several in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Choice {
    /// The kernel's context is not the struct that programs see.
    Context,
    /// Loads through pointers that may lead nowhere, sockets among them.
    Guarded,
    /// Calls of helpers and kernel functions that the kernel inlines or gives hidden arguments.
    Call,
    /// A 32-bit exchange, behind which the upper half is cleared.
    Exchange,
    /// Division: the cases that machines trap on.
    Division,
    /// Packet loads by `LD_ABS` and `LD_IND`.
    PacketLoad,
    /// `may_goto` counts.
    MayGoto,
    /// What is put in front of a function: counters, packets made writable, arenas.
    Prologue,
    /// A function for exceptions, added where there is none.
    Exceptions,
    /// Saves and restores around calls that keep registers: the kernel drops them.
    SpillPair,
}

/// Most instructions that stand for one.
fn most(choice: Choice) -> usize {
    match choice {
        Choice::Division => 9,
        Choice::Exchange => 2,
        Choice::Context => 24,
        Choice::Prologue => 16,
        _ => 40,
    }
}

struct Item {
    /// Index in the rewritten program; none for what only the kernel has.
    at: Option<usize>,
    insn: Insn,
    /// Second slot of a wide immediate.
    second: bool,
    choice: Option<Choice>,
    least: usize,
}

fn items(v: &Verified) -> Vec<Item> {
    let r = v.rewritten();
    let mut items = Vec::new();
    let mut second = false;
    for (at, &insn) in r.insns().iter().enumerate() {
        if r.function_at(at).is_some() {
            items.push(Item { at: None, insn, second: false, choice: Some(Choice::Prologue), least: 0 });
        }
        let (choice, least) = if second { (None, 1) } else { choice(r, at, insn) };
        items.push(Item { at: Some(at), insn, second, choice, least });
        second = !second && insn.is_ld_imm64();
    }
    let end = Insn::default();
    items.push(Item { at: None, insn: end, second: false, choice: Some(Choice::Exceptions), least: 0 });
    items
}

fn choice(r: &Rewritten, at: usize, i: Insn) -> (Option<Choice>, usize) {
    let exchanges = i.class() == class::STX && i.mode() == mode::ATOMIC && i.imm == atomic::CMPXCHG;
    let choice = match i.class() {
        class::STX if exchanges && i.size() == size::W => Some(Choice::Exchange),
        class::LDX | class::ST | class::STX => match r.facts(at).memory {
            Memory::Ctx => Some(Choice::Context),
            Memory::Guarded | Memory::Arena => Some(Choice::Guarded),
            Memory::Stack(_) if r.facts(at).spill_pair => return (Some(Choice::SpillPair), 0),
            _ => None,
        },
        class::ALU | class::ALU64 if matches!(i.op(), alu::DIV | alu::MOD) && (i.is_x() || i.off == 1) => {
            Some(Choice::Division)
        }
        class::LD if matches!(i.mode(), mode::ABS | mode::IND) => Some(Choice::PacketLoad),
        class::JMP if i.op() == jmp::JCOND => Some(Choice::MayGoto),
        class::JMP if i.code == CALL && i.src() != call::SUBPROG => Some(Choice::Call),
        _ => None,
    };
    (choice, 1)
}

fn is_jump(i: Insn) -> bool {
    matches!(i.class(), class::JMP | class::JMP32) && !matches!(i.op(), jmp::CALL | jmp::EXIT)
}

/// Where an instruction leads, or the function that it names.
fn leads_to(at: usize, i: Insn) -> Option<usize> {
    let by = if is_jump(i) && i.code != JA32 {
        i64::from(i.off)
    } else if i.code == JA32 || i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC {
        i64::from(i.imm)
    } else {
        return None;
    };
    usize::try_from(at as i64 + 1 + by).ok()
}

/// The same in the kernel's program, where calls have the distance as an offset, and the function's number.
fn they_lead_to(at: usize, i: Insn) -> Option<usize> {
    let by = if i.is_subprog_call() { i64::from(i.off) } else { return leads_to(at, i) };
    usize::try_from(at as i64 + 1 + by).ok()
}

/// True if the kernel's instruction is ours, distances and addresses aside.
fn equal(item: &Item, theirs: Insn) -> bool {
    let ours = item.insn;
    if item.second {
        return theirs.code == 0;
    }
    if ours.code != theirs.code || ours.dst() != theirs.dst() {
        return false;
    }
    if ours.is_ld_imm64() {
        return match ours.src() {
            // There the address of a function that is gone is that of what came next.
            0 => theirs.src() == 0 && ours.imm == theirs.imm || theirs.src() == pseudo::FUNC && ours.imm == 0,
            pseudo::MAP_IDX => theirs.src() == pseudo::MAP_FD,
            // An address in the arena is shown as it is.
            pseudo::MAP_IDX_VALUE => theirs.src() == pseudo::MAP_VALUE || theirs.src() == 0,
            _ => true,
        };
    }
    let named = ours.is_subprog_call() || ours.code == JA32;
    let numbers = named || ours.imm == theirs.imm;
    let offsets = is_jump(ours) || named || ours.off == theirs.off;
    ours.src() == theirs.src() && numbers && offsets
}

/// What the kernel put in the place of instructions, by kind: how many, and how many instructions more.
pub type Ledger = BTreeMap<Choice, (usize, usize)>;

/// Lays both beside each other; what is wrong if they do not fit.
pub fn align(v: &Verified, theirs: &[Insn]) -> Result<Ledger, String> {
    let items = items(v);
    let mut places = feasible(&items, theirs)?;
    // Jumps say where their targets stand.
    let index: BTreeMap<usize, usize> = items.iter().enumerate().filter_map(|(n, i)| Some((i.at?, n))).collect();
    loop {
        let mut fixed = false;
        for (n, item) in items.iter().enumerate() {
            let (Some(at), Some(place)) = (item.at, only(&places[n])) else { continue };
            let jump = item.choice.is_none() && !item.second;
            let (Some(target), Some(&their)) = (leads_to(at, item.insn).filter(|_| jump), theirs.get(place)) else {
                continue;
            };
            let Some(their_target) = they_lead_to(place, their) else {
                return Err(format!("instruction {at} leads to {target}, the kernel's {place} nowhere"));
            };
            let Some(&to) = index.get(&target) else { return Err(format!("instruction {at} leads nowhere")) };
            // Calls lead to what stands in front of a function.
            let to = if is_jump(item.insn) { to } else { to.saturating_sub(1) };
            if !places[to].contains(&their_target) {
                return Err(format!(
                    "instruction {at} leads to {target}, which is not at {their_target} where the kernel's {place} leads"
                ));
            }
            if places[to].len() > 1 {
                places[to] = BTreeSet::from([their_target]);
                fixed = true;
            }
        }
        if !fixed {
            break;
        }
        narrow(&items, theirs, &mut places)?;
    }
    let mut ledger = Ledger::new();
    for (n, item) in items.iter().enumerate() {
        if let (Some(choice), Some(from)) = (item.choice, places[n].first()) {
            let to = places.get(n + 1).and_then(|p| p.range(from..).next()).copied().unwrap_or(theirs.len());
            let entry = ledger.entry(choice).or_default();
            entry.0 += usize::from(to - from != 1 && to != *from || to == *from && item.at.is_some());
            entry.1 += (to - from).saturating_sub(usize::from(item.at.is_some()));
        }
    }
    Ok(ledger)
}

fn only(set: &BTreeSet<usize>) -> Option<usize> {
    if set.len() == 1 { set.first().copied() } else { None }
}

fn lengths(item: &Item, theirs: &[Insn], at: usize) -> std::ops::RangeInclusive<usize> {
    match item.choice {
        Some(choice) => item.least..=most(choice).min(theirs.len() - at),
        None if theirs.get(at).is_some_and(|t| equal(item, *t)) => 1..=1,
        #[allow(clippy::reversed_empty_ranges)] // no length fits
        None => 1..=0,
    }
}

/// For each item, and the end, the places in the kernel's program where it can stand.
fn feasible(items: &[Item], theirs: &[Insn]) -> Result<Vec<BTreeSet<usize>>, String> {
    let mut places = vec![BTreeSet::new(); items.len() + 1];
    places[0].insert(0);
    for (n, item) in items.iter().enumerate() {
        let next: BTreeSet<usize> =
            places[n].iter().flat_map(|at| lengths(item, theirs, *at).map(move |len| at + len)).collect();
        if next.is_empty() {
            let at = places[n].first().copied().unwrap_or(0);
            return Err(format!(
                "instruction {:?} {:?} is not among the kernel's from {at}: {:?}",
                item.at,
                item.insn,
                theirs.get(at)
            ));
        }
        places[n + 1] = next;
    }
    let last = &mut places[items.len()];
    if !last.contains(&theirs.len()) {
        return Err(format!("the kernel's program has {} instructions, ours end at {last:?}", theirs.len()));
    }
    *last = BTreeSet::from([theirs.len()]);
    narrow(items, theirs, &mut places)?;
    Ok(places)
}

/// Leaves only places from which, and to which, the rest fits.
fn narrow(items: &[Item], theirs: &[Insn], places: &mut [BTreeSet<usize>]) -> Result<(), String> {
    for n in (0..items.len()).rev() {
        let (before, after) = places.split_at_mut(n + 1);
        before[n].retain(|at| lengths(&items[n], theirs, *at).any(|len| after[0].contains(&(at + len))));
    }
    for n in 0..items.len() {
        let (before, after) = places.split_at_mut(n + 1);
        let next: BTreeSet<usize> =
            before[n].iter().flat_map(|at| lengths(&items[n], theirs, *at).map(move |len| at + len)).collect();
        after[0].retain(|at| next.contains(at));
        if after[0].is_empty() || before[n].is_empty() {
            return Err(format!(
                "instruction {:?} {:?} does not fit with where jumps lead",
                items[n].at, items[n].insn
            ));
        }
    }
    Ok(())
}
