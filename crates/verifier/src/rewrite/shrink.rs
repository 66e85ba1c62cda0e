//! Takes out what no path reaches: branches that go one way only, instructions, whole functions.
//!
//! What a dump shows is what Linux leaves of a privileged program, no more and no less: jumps to the next instruction go,
//! but in one pass, so one that leads over another such jump stays.

use skep_ebpf::insn::{Insn, JA, JA32, jmp, pseudo};

use crate::cfg::{callee, is_goto, is_jump, jump_target};

/// An instruction that stays, its place in the program as loaded, and the place that it leads to or names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub insn: Insn,
    pub origin: usize,
    /// Of jumps, calls of functions and their addresses: a place in the program as loaded.
    pub target: Option<usize>,
}

/// What an instruction leads to or names, in the same program.
pub(super) fn target(at: usize, i: Insn) -> Option<usize> {
    let named = i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC;
    let to = if is_jump(i) {
        jump_target(at, i)
    } else if named {
        callee(at, i)
    } else {
        return None;
    };
    usize::try_from(to).ok()
}

/// What stays of a program; `reached` says which instructions some path runs.
pub(super) fn shrink(insns: &[Insn], reached: impl Fn(usize) -> bool) -> Vec<Kept> {
    let mut kept = Vec::with_capacity(insns.len());
    let mut at = 0;
    while let Some(&i) = insns.get(at) {
        let wide = i.is_ld_imm64();
        if reached(at) {
            let insn = match target(at, i) {
                Some(to) if is_jump(i) && !is_goto(i) => one_way(i, reached(at + 1), reached(to)),
                // The address of a function that is gone: nothing calls it.
                Some(to) if wide && !reached(to) => Insn::new(i.code, i.dst(), 0, 0, 0),
                _ => i,
            };
            kept.push(Kept { insn, origin: at, target: target(at, insn) });
            if let Some(&second) = insns.get(at + 1).filter(|_| wide) {
                kept.push(Kept { insn: second, origin: at + 1, target: None });
            }
        }
        at += if wide { 2 } else { 1 };
    }
    drop_empty_jumps(kept)
}

/// A conditional jump of which one side is never reached goes the other way, always.
fn one_way(i: Insn, next: bool, target: bool) -> Insn {
    match (next, target) {
        (false, _) => Insn::new(JA, 0, 0, i.off, 0),
        (true, false) => Insn::new(JA, 0, 0, 0, 0),
        (true, true) => i,
    }
}

fn drop_empty_jumps(mut kept: Vec<Kept>) -> Vec<Kept> {
    let mut alive = vec![true; kept.len()];
    let mut at = 0;
    while let Some(&k) = kept.get(at) {
        // Jumps with a 32-bit distance and calls that lead to the next instruction stay.
        let jump = alive[at] && is_jump(k.insn) && k.insn.code != JA32 && (k.insn.code == JA || is_may_goto(k.insn));
        let leads_nowhere = || {
            let next = (at + 1..kept.len()).find(|n| alive[*n]);
            next.is_some() && k.target.and_then(|t| first_alive(&kept, &alive, t)) == next
        };
        let empty = jump && leads_nowhere();
        if empty {
            alive[at] = false;
        }
        if empty && is_may_goto(k.insn) {
            // The one in front may have led over it.
            match (0..at).rev().find(|n| alive[*n]) {
                Some(before) => at = before,
                None => at += 1,
            }
        } else {
            at += 1;
        }
    }
    let mut flags = alive.into_iter();
    kept.retain(|_| flags.next().unwrap_or(true));
    kept
}

fn is_may_goto(i: Insn) -> bool {
    is_jump(i) && i.op() == jmp::JCOND
}

/// Index of the first one left that stood at this place or behind it.
fn first_alive(kept: &[Kept], alive: &[bool], place: usize) -> Option<usize> {
    let first = kept.partition_point(|k| k.origin < place);
    (first..kept.len()).find(|n| alive.get(*n) == Some(&true))
}

/// Sets the distances of jumps, calls and addresses of functions anew.
pub(super) fn link(kept: &[Kept]) -> Vec<Insn> {
    let place = |origin: usize| kept.partition_point(|k| k.origin < origin) as i64;
    let one = |(at, k): (usize, &Kept)| {
        let Some(target) = k.target else { return k.insn };
        let distance = place(target) - at as i64 - 1;
        let short = is_jump(k.insn) && k.insn.code != JA32;
        if short { Insn { off: distance as i16, ..k.insn } } else { Insn { imm: distance as i32, ..k.insn } }
    };
    kept.iter().enumerate().map(one).collect()
}
