//! Suggestions that follow from the history of a value: what took a pointer away, and what was never one.

use skep_ebpf::helper::{self, Helper};
use skep_ebpf::insn::{CALL, Insn};

use super::fix::Fix;
use super::{Case, Deed, Step};
use crate::kfunc::Kfuncs;
use crate::reason::Reason;

const SPIN_UNLOCK: u32 = 94;

/// A better suggestion than the values alone gave, if the history has one.
pub(super) fn suggest(case: &Case<'_>, history: &[Step]) -> Option<Fix> {
    match case.failure.reason {
        Reason::NotAPointer | Reason::ArgumentType => taken(case, history).or_else(|| null(case, history)),
        Reason::ReadOnlyMemory => read_only_slice(case, history),
        Reason::DynptrState => gone_dynptr(case, history),
        _ => None,
    }
}

fn insn(case: &Case<'_>, step: &Step) -> Option<Insn> {
    case.program.insns.get(step.insn as usize).copied()
}

/// Name of what an instruction calls, as it stands in C; nothing for functions of the program.
fn called(case: &Case<'_>, i: Insn) -> Option<String> {
    if i.is_helper_call() {
        return Some(format!("bpf_{}()", Helper::by_id(i.imm as u32)?.name));
    }
    Some(format!("{}()", Kfuncs::new(case.options).row(i)?.name))
}

/// `name() in line 3`.
fn call_at(case: &Case<'_>, step: &Step) -> Option<String> {
    let i = insn(case, step)?;
    let name = called(case, i).unwrap_or_else(|| "the function called".into());
    Some(format!("{name} {}", place(case, step)))
}

fn place(case: &Case<'_>, step: &Step) -> String {
    match case.program.line_of(step.insn as usize).filter(|l| !l.text.trim().is_empty()) {
        Some(line) => format!("in line {}", line.line),
        None => format!("at instruction {}", step.insn),
    }
}

/// A call made the pointer unusable.
fn taken(case: &Case<'_>, history: &[Step]) -> Option<Fix> {
    let at = history.iter().rposition(|s| s.deed == Deed::Forgot)?;
    let (step, before) = (history.get(at)?, history.get(..at)?.last()?);
    if !before.value.holds.starts_with("a pointer") {
        return None;
    }
    let i = insn(case, step)?;
    if i.code != CALL {
        let text = format!("What is done {} takes it away: get the pointer again behind that.", place(case, step));
        return Some(Fix { text, addition: None });
    }
    let call = call_at(case, step)?;
    let capital = |text: &str| {
        let mut chars = text.chars();
        chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect::<String>())
    };
    let call = if call.starts_with("the ") { capital(&call) } else { call };
    let held = &before.value.holds;
    let helper = if i.is_helper_call() { Helper::by_id(i.imm as u32) } else { None };
    let kfunc = Kfuncs::new(case.options).row(i).map(|k| k.name);
    let releases = helper.is_some_and(|h| h.has(helper::RELEASE))
        || kfunc
            .is_some_and(|k| ["release", "drop", "destroy", "put", "discard", "submit"].iter().any(|w| k.contains(w)));
    let moves = i.is_subprog_call()
        || helper.is_some_and(|h| h.has(helper::MOVES_PKT))
        || kfunc.is_some_and(crate::kfunc::moves_packet);
    let text = if releases {
        format!("{call} gives it back: use it before, not behind that.")
    } else if helper.is_some_and(|h| h.id == SPIN_UNLOCK) {
        format!("It is only seen while the lock is held: use it before {call}, or take it out of the list or tree.")
    } else if kfunc.is_some_and(|k| k.contains("rcu_read_unlock")) {
        format!("It is valid until {call}: use it before, or acquire a reference.")
    } else if held.contains("packet") && moves {
        format!(
            "{call} may move the packet: load the pointers (data, data_end) from the context again behind it, and compare \
             them again."
        )
    } else if moves {
        format!("{call} may move the packet and with it the memory: get the pointer again behind it.")
    } else if kfunc.is_some() {
        format!("{call} takes the object over: do not use the pointer behind it.")
    } else {
        format!("{call} takes it away: get the pointer again behind that.")
    };
    Some(Fix { text, addition: None })
}

/// It is the number zero: null, on this path.
fn null(case: &Case<'_>, history: &[Step]) -> Option<Fix> {
    let step = history.last().filter(|s| s.value.holds == "0")?;
    Some(Fix {
        text: format!(
            "On this path it is NULL, since what happened {}: leave before the access, or give it a value first.",
            place(case, step)
        ),
        addition: None,
    })
}

/// Data of a packet that may be looked at, not changed.
fn read_only_slice(case: &Case<'_>, history: &[Step]) -> Option<Fix> {
    let made = history.iter().find(|s| s.deed == Deed::Made)?;
    let name = Kfuncs::new(case.options).row(insn(case, made)?)?.name;
    (name == "bpf_dynptr_slice")
        .then(|| Fix { text: format!("Use bpf_dynptr_slice_rdwr() {}.", place(case, made)), addition: None })
}

/// The dynptr was there, and a call took it away.
fn gone_dynptr(case: &Case<'_>, history: &[Step]) -> Option<Fix> {
    let step = history.iter().rfind(|s| s.value.place.starts_with("fp") && s.deed == Deed::Forgot)?;
    let i = insn(case, step).filter(|i| i.code == CALL)?;
    if step.value.holds.contains("dynptr") {
        return None;
    }
    let helper = if i.is_helper_call() { Helper::by_id(i.imm as u32) } else { None };
    helper.is_some_and(|h| h.has(helper::RELEASE)).then_some(())?;
    Some(Fix {
        text: format!("{} gives the dynptr back: use it before, not behind that.", call_at(case, step)?),
        addition: None,
    })
}
