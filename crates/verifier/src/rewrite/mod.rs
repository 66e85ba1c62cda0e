//! What becomes of the instructions of a verified program before they run, and what is known of them.
//!
//! [`Rewritten`] is the program to run: what no path reaches is gone, branches that go one way only are jumps, context
//! loads are those of the context as it lies in memory. Each instruction knows its place in the program as loaded.
//! [`InsnFacts`], [`CallSite`] and [`Function`] say what makes good machine code of it. Nothing that a fact
//! says has to be used: an engine that ignores them all is right, too.
//!
//! Numbers ([`InsnFacts::dst`], [`InsnFacts::src`]) are not those of the states that the checker went through, which leaves
//! out paths that differ only in numbers that nothing relied on; they are worked out anew, over all edges.
//!
//! Calls stay calls. Where Linux puts instructions of its own in their place (look-ups in its maps, `bpf_loop`), those
//! follow from its structures; here [`CallSite`] has what an engine needs to do the like with its own.

mod facts;
mod flow;
mod notes;
mod ranges;
mod shrink;

use std::collections::BTreeMap;

use skep_ebpf::insn::{CALL, Insn, alu, class, jmp, mode, size};
use skep_ebpf::program::{FuncInfo, LineInfo};

pub use facts::{CallSite, Function, InsnFacts, MapArg, Memory, Range, RegSet};
pub(crate) use notes::Notes;

use crate::cfg::is_jump;
use crate::kfunc::Kfuncs;
use crate::{Subprog, Verified};
use shrink::Kept;

/// A verified program as it is to run.
#[derive(Clone, Debug, Default)]
pub struct Rewritten {
    insns: Vec<Insn>,
    /// Place of each instruction in the program as loaded.
    origin: Vec<u32>,
    facts: Vec<InsnFacts>,
    calls: BTreeMap<u32, CallSite>,
    functions: Vec<Function>,
    line_info: Vec<LineInfo>,
    func_info: Vec<FuncInfo>,
    ctx_by_address: bool,
    constants: Vec<u32>,
    guarded: bool,
}

/// Casts between the arena's addresses and those that programs use: moves with this offset.
const CAST: u8 = class::ALU64 | alu::MOV | 8;
const CAST_OFF: i16 = 1;
/// The cast to what programs use.
const CAST_TO_PROGRAM: i32 = 1;
/// A jump to itself: what stands where no path leads.
const TRAP: Insn = Insn::new(skep_ebpf::insn::JA, 0, 0, -1, 0);

impl Rewritten {
    /// The instructions.
    pub fn insns(&self) -> &[Insn] {
        &self.insns
    }

    /// The functions, in order of their instructions; the first is the main one. Functions that nothing reaches are gone.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Index of the function that an instruction belongs to.
    pub fn function_of(&self, insn: usize) -> usize {
        self.functions.partition_point(|f| f.start as usize <= insn).saturating_sub(1)
    }

    /// Index of the function that starts at an instruction.
    pub fn function_at(&self, start: usize) -> Option<usize> {
        self.functions.binary_search_by_key(&start, |f| f.start as usize).ok()
    }

    /// What is known of an instruction.
    pub fn facts(&self, insn: usize) -> InsnFacts {
        let unknown = InsnFacts {
            memory: Memory::Mixed,
            live_after: RegSet::ALL,
            wide_after: RegSet::ALL,
            ..InsnFacts::default()
        };
        self.facts.get(insn).copied().unwrap_or(unknown)
    }

    /// What is known of the call of a helper or kernel function at an instruction.
    pub fn call(&self, insn: usize) -> CallSite {
        let unknown = CallSite { map: MapArg::Unknown, args: [Memory::Mixed; 5], ..CallSite::default() };
        u32::try_from(insn).ok().and_then(|n| self.calls.get(&n)).copied().unwrap_or(unknown)
    }

    /// The context goes to a helper or another program, or is read in ways that are not known: all of it must be there. If
    /// not, only what [`Verified::ctx_reads`] lists is read.
    pub fn ctx_by_address(&self) -> bool {
        self.ctx_by_address
    }

    /// The instructions that read a register as their second operand which always holds the same number, in order: its range
    /// ([`InsnFacts::src`]) has one value.
    pub fn constants(&self) -> &[u32] {
        &self.constants
    }

    /// Something is read that may not be there ([`Memory::Guarded`]).
    pub fn reads_guarded(&self) -> bool {
        self.guarded
    }

    /// Place of an instruction in the program as loaded.
    pub fn origin(&self, insn: usize) -> Option<u32> {
        self.origin.get(insn).copied()
    }

    /// Where an instruction of the program as loaded is now, or the first behind it that is left.
    pub fn place_of(&self, origin: u32) -> u32 {
        self.origin.partition_point(|o| *o < origin) as u32
    }

    /// The lines, with the places of instructions as they are now.
    pub fn line_info(&self) -> &[LineInfo] {
        &self.line_info
    }

    /// The BTF types of the functions that are left.
    pub fn func_info(&self) -> &[FuncInfo] {
        &self.func_info
    }
}

/// What the checker found out of a program, for [`rewrite`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub notes: Notes,
    /// By instruction: some path runs it.
    pub reached: Vec<bool>,
    /// By instruction: a 32-bit load of the context that must become a 64-bit one from this offset.
    pub pointer_loads: Vec<(u32, i16)>,
    /// By instruction: it saves or restores a register around a call that keeps it.
    pub spill_pairs: Vec<u32>,
    /// By function: a helper or kernel function calls it.
    pub called_back: Vec<bool>,
    /// The function that exceptions end in.
    pub catches: Option<usize>,
    /// Addresses in the arena are not converted.
    pub arena_as_it_is: bool,
}

/// The instructions to run, at the indices of the program as loaded: what no path reaches are traps.
pub(crate) fn in_place(insns: &[Insn], found: &Findings) -> Vec<Insn> {
    let mut out = converted(insns, found);
    let mut at = 0;
    while at < out.len() {
        let wide = insns[at].is_ld_imm64();
        if found.reached.get(at) != Some(&true) {
            out[at] = TRAP;
            if wide && let Some(second) = out.get_mut(at + 1) {
                *second = TRAP;
            }
        }
        at += if wide { 2 } else { 1 };
    }
    out
}

/// The instructions with loads of the context as it lies in memory, and without casts that are moves.
fn converted(insns: &[Insn], found: &Findings) -> Vec<Insn> {
    let mut out = insns.to_vec();
    for i in out.iter_mut().filter(|i| i.code == CAST && i.off == CAST_OFF) {
        // Of an address in the arena programs use the lower half; the other direction is for the engine.
        if i.imm == CAST_TO_PROGRAM || found.arena_as_it_is {
            *i = Insn::new(class::ALU | alu::MOV | 8, i.dst(), i.src(), 0, 0);
        }
    }
    // Addresses in the arena are 32 bits wide.
    for (at, _) in found.notes.arena_arithmetic.iter().filter(|(_, always)| **always) {
        if let Some(i) = out.get_mut(*at as usize) {
            i.code = class::ALU | i.code & !7;
        }
    }
    for &(at, off) in &found.pointer_loads {
        if let Some(i) = out.get_mut(at as usize) {
            // The field is 32 bits wide for the program, the pointer is 64.
            i.code = class::LDX | mode::MEM | size::DW;
            i.off = off;
        }
    }
    out
}

/// Makes the program to run of one that was verified.
pub(crate) fn rewrite(verified: &Verified, found: &Findings, kfuncs: Kfuncs<'_>) -> Rewritten {
    let program = verified.program();
    let kept = shrink::shrink(&converted(&program.insns, found), |at| found.reached.get(at) == Some(&true));
    let mut out = Rewritten {
        insns: shrink::link(&kept),
        origin: kept.iter().map(|k| k.origin as u32).collect(),
        facts: kept.iter().map(|k| fact(found, k)).collect(),
        ctx_by_address: found.notes.ctx_leaves,
        ..Rewritten::default()
    };
    out.functions = functions(verified, found, &out);
    out.func_info = func_info(verified, &out);
    out.line_info = line_info(&program.line_info, &out);
    out.calls = calls(found, &out);
    out.guarded = out.facts.iter().any(|f| f.memory == Memory::Guarded);
    mark_targets(&mut out, &kept);
    flow::liveness(&mut out, kfuncs);
    ranges::ranges(&mut out);
    out
}

fn fact(found: &Findings, kept: &Kept) -> InsnFacts {
    InsnFacts {
        memory: found.notes.memory.get(kept.origin).copied().unwrap_or_default(),
        spill_pair: found.spill_pairs.binary_search(&(kept.origin as u32)).is_ok(),
        ..InsnFacts::default()
    }
}

fn mark_targets(out: &mut Rewritten, kept: &[Kept]) {
    let places: Vec<u32> = kept.iter().filter_map(|k| Some(out.place_of(k.target? as u32))).collect();
    let starts = out.functions.iter().map(|f| f.start);
    for at in places.into_iter().chain(starts) {
        if let Some(f) = out.facts.get_mut(at as usize) {
            f.target = true;
        }
    }
}

/// The functions of which something is left.
fn functions(verified: &Verified, found: &Findings, out: &Rewritten) -> Vec<Function> {
    let left = verified.subprogs().iter().enumerate().filter_map(|(n, s)| {
        let (start, end) = (out.place_of(s.start), out.place_of(s.end));
        let body = out.insns.get(start as usize..end as usize).filter(|b| !b.is_empty())?;
        Some(function(n, s, start, body, found))
    });
    left.collect()
}

fn function(n: usize, s: &Subprog, start: u32, body: &[Insn], found: &Findings) -> Function {
    let mut f = Function {
        start,
        end: start + body.len() as u32,
        origin: n as u32,
        stack_depth: s.stack_depth,
        global: s.global,
        called_back: found.called_back.get(n) == Some(&true),
        catches: found.catches == Some(n),
        ..Function::default()
    };
    let mut second = false;
    for &i in body {
        if std::mem::replace(&mut second, i.is_ld_imm64()) {
            second = false;
            continue;
        }
        // What a fetch gives it puts into the source register; it does not matter that others are counted, too.
        let writes = !matches!(i.class(), class::ST | class::STX | class::JMP | class::JMP32);
        let fetches = i.class() == class::STX && i.mode() == mode::ATOMIC;
        if writes {
            f.saves = f.saves | RegSet::of(i.dst());
        } else if fetches {
            f.saves = f.saves | RegSet::of(i.dst()) | RegSet::of(i.src());
        }
        f.uses_stack |= i.dst() == 10 || i.src() == 10;
        f.calls |= i.code == CALL;
        f.tail_calls |= i.is_helper_call() && i.imm == 12;
        f.may_goto |= is_jump(i) && i.op() == jmp::JCOND;
    }
    f.saves = f.saves & RegSet::CALLEE_SAVED;
    f
}

fn func_info(verified: &Verified, out: &Rewritten) -> Vec<FuncInfo> {
    let starts =
        out.functions.iter().filter_map(|f| Some((f.start, verified.subprogs().get(f.origin as usize)?.start)));
    let info = &verified.program().func_info;
    starts.filter_map(|(now, was)| info.iter().find(|i| i.insn == was).map(|i| FuncInfo { insn: now, ..*i })).collect()
}

/// Lines move with their instruction, or to the next that is left; of several at one place the last stays.
fn line_info(lines: &[LineInfo], out: &Rewritten) -> Vec<LineInfo> {
    let mut moved: Vec<LineInfo> = Vec::with_capacity(lines.len());
    for l in lines {
        let insn = out.place_of(l.insn);
        if insn as usize >= out.insns.len() {
            continue;
        }
        if moved.last().is_some_and(|m| m.insn == insn) {
            moved.pop();
        }
        moved.push(LineInfo { insn, ..l.clone() });
    }
    moved
}

fn calls(found: &Findings, out: &Rewritten) -> BTreeMap<u32, CallSite> {
    let mut sites = BTreeMap::new();
    for (&at, note) in &found.notes.calls {
        let now = out.place_of(at);
        if out.origin(now as usize) != Some(at) {
            continue;
        }
        let callback = note.callback.get().and_then(|c| out.functions.iter().position(|f| f.origin == c));
        sites.insert(
            now,
            CallSite {
                map: note.map.get().unwrap_or(MapArg::Unknown),
                key: note.key.get(),
                callback: callback.map(|c| c as u32),
                plain_loop: callback.is_some() && note.no_flags.get() == Some(true),
                found: note.found.get() == Some(true),
                args: note.args,
            },
        );
    }
    sites
}
