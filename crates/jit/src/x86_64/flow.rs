//! Functions, basic blocks, liveness, and upper halves known to be zero.

use std::hint::select_unpredictable;

use skep_verifier::Rewritten;

use super::effects::{self, DEAD, Effects};
use super::ir::{ARGUMENTS, Cond, Live, Op, Ops, Src, both};
use crate::Source;

/// No block.
const NONE: u32 = u32::MAX;

/// A basic block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Blocks that may come next: the one that it falls into or jumps to, and the one that it branches to.
    next: [u32; 2],
    /// Live at its start.
    live_in: Live,
    /// Something jumps back to it.
    pub(crate) loop_head: bool,
    pub(crate) reachable: bool,
    /// Something was worked out of it.
    visited: bool,
}

impl Block {
    /// The blocks that may come next.
    pub(crate) fn next(&self) -> impl Iterator<Item = usize> + use<> {
        self.next.into_iter().filter(|n| *n != NONE).map(|n| n as usize)
    }
}

/// A function of the program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Function {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) blocks: Vec<Block>,
    /// Arguments that it needs.
    pub(crate) needs: Live,
    /// Of r6 to r9, those that it writes.
    pub(crate) saved: Vec<u8>,
    /// It, or a function that it calls, uses the frame pointer.
    pub(crate) uses_fp: bool,
    /// It, or a function that it calls, calls helpers.
    pub(crate) calls_out: bool,
    /// It reaches for the environment, or a function that it calls does.
    pub(crate) uses_env: bool,
    /// It has a `may_goto`.
    pub(crate) counts: bool,
    /// Bytes of its frame.
    pub(crate) frame: u32,
}

/// What is known of a program.
pub(crate) struct Flow {
    pub(crate) functions: Vec<Function>,
    /// What each instruction does to registers.
    pub(crate) effects: Vec<Effects>,
    /// Calls of functions of the program: where, and of which.
    subs: Vec<(usize, u32)>,
    /// Arguments of each function, if they are called through cells: any function that has as many may be there.
    cells: Vec<u8>,
    /// What is live behind each instruction, with [`DEAD`].
    pub(crate) live: Vec<Live>,
}

/// Analyses a program; short branches around a move become selects. `starts` are the functions' first instructions
/// and frames, in order; with `cells` functions are called through cells.
pub(crate) fn analyse(
    ops: &mut Ops,
    source: &Source<'_>,
    starts: &[(usize, u32)],
    cells: bool,
    optimise: bool,
) -> Flow {
    let mut effects = effects::of(ops);
    for &i in source.marks {
        if let (Some(op), Some(e)) = (ops.set_marked(source, i as usize), effects.get_mut(i as usize)) {
            *e = op.effects();
        }
    }
    if source.known.is_some_and(Rewritten::reads_guarded) {
        for (_, e) in effects.iter_mut().enumerate().filter(|(i, _)| source.is_object_access(*i)) {
            *e = e.with_env();
        }
    }
    let (mut leader, subs) = leaders(ops, source.marks, starts);
    for &i in source.marks.iter().filter(|_| optimise) {
        select(ops, &mut effects, &mut leader, i as usize);
    }
    let len = ops.len();
    // What is called through cells may be anything that takes the arguments.
    let cells = source.subprogs.iter().filter(|_| cells).map(|s| s.args).collect();
    let mut flow = Flow { functions: Vec::with_capacity(starts.len()), effects, subs, cells, live: vec![0; len] };
    let mut block_of = vec![NONE; len + 1];
    for (n, &(start, frame)) in starts.iter().enumerate() {
        let end = starts.get(n + 1).map_or(len, |&(s, _)| s);
        let blocks = blocks(ops, &leader, &mut block_of, start, end);
        flow.functions.push(Function { start, end, frame, blocks, ..Function::default() });
    }
    // Callees first. Recursion was refused, so this ends.
    let mut done = vec![false; starts.len()];
    for n in 0..starts.len() {
        flow.function(starts, n, &mut done, 0);
    }
    flow
}

/// How often something jumps to each instruction (at most 255 times), and once more where a function or the code behind
/// a jump begins; and all calls.
fn leaders(ops: &mut Ops, marks: &[u32], starts: &[(usize, u32)]) -> (Vec<u8>, Vec<(usize, u32)>) {
    let mut subs = Vec::new();
    let mut leader = vec![0u8; ops.len() + 1];
    let mut mark = |at: usize| {
        if let Some(l) = leader.get_mut(at) {
            *l = l.saturating_add(1);
        }
    };
    for &(start, _) in starts {
        mark(start);
    }
    for &i in marks {
        let i = i as usize;
        match ops.op(i) {
            Op::Jump { target } | Op::Branch { target, .. } | Op::MayGoto { target } => {
                mark(target as usize);
                mark(i + 1);
            }
            Op::Exit | Op::Trap => mark(i + 1),
            Op::Sub { target } | Op::Loop { start: target } => subs.push((i, target)),
            _ => {}
        }
    }
    (leader, subs)
}

/// `if c goto T; d = s; T:` and `if c goto T; d = s; goto T` become a select.
fn select(ops: &mut Ops, effects: &mut [Effects], leader: &mut [u8], i: usize) {
    if i + 2 >= ops.len() {
        return;
    }
    let (Op::Branch { cond, target }, Op::Mov { wide, dst, src }) = (ops.op(i), ops.op(i + 1)) else { return };
    // Only the branch itself makes the move the start of a block.
    if leader[i + 1] != 1 || src == Src::Reg(dst) {
        return;
    }
    let target = target as usize;
    let joins = target == i + 2 || matches!(ops.op(i + 2), Op::Jump { target: t } if t as usize == target);
    if !joins || target <= i && leads_to_next(ops, leader, i, cond, dst) {
        return;
    }
    ops.set(i, Op::Select { cond, wide, dst, src });
    ops.set(i + 1, Op::Nop);
    (effects[i], effects[i + 1]) = (ops.op(i).effects(), Effects::default());
    leader[i + 1] = 0;
    if leader[target] < u8::MAX {
        leader[target] -= 1;
    }
}

/// Instructions that [`leads_to_next`] looks back.
const LOOK_BACK: usize = 16;

/// In a loop: is what the branch at `i` asks loaded from where `dst` says? As a select the next round's load would wait for this
/// one; behind a branch that is predicted it does not. A binary search is of that kind.
fn leads_to_next(ops: &Ops, leader: &[u8], i: usize, cond: Cond, dst: u8) -> bool {
    let bit = |r: u8| 1u16.checked_shl(r.into()).unwrap_or(0);
    let of = |src: Src| if let Src::Reg(r) = src { bit(r) } else { 0 };
    // Registers that it depends on, and those by way of a load.
    let (mut on, mut by_load) = (bit(cond.a) | of(cond.b), 0u16);
    for at in (i.saturating_sub(LOOK_BACK)..i).rev() {
        if leader[at + 1] != 0 {
            break;
        }
        let (written, read, adds) = match ops.op(at) {
            Op::Load { dst, base, .. } => {
                if on & bit(dst) != 0 {
                    on &= !bit(dst);
                    by_load |= bit(base);
                }
                (dst, bit(base), false)
            }
            Op::Mov { dst, src, .. } => (dst, of(src), false),
            Op::MovSx { dst, src, .. } => (dst, bit(src), false),
            Op::Bin { dst, src, .. } | Op::Div { dst, src, .. } => (dst, of(src), true),
            Op::Neg { .. } | Op::Swap { .. } | Op::Low16 { .. } | Op::Store { .. } | Op::Nop => continue,
            _ => return false,
        };
        for set in [&mut on, &mut by_load] {
            if *set & bit(written) != 0 {
                *set = if adds { *set | read } else { *set & !bit(written) | read };
            }
        }
    }
    by_load & bit(dst) != 0
}

/// The next instruction from `at` on that starts a block, or `end`.
fn next_leader(leader: &[u8], mut at: usize, end: usize) -> usize {
    while let Some(eight) = leader.get(at..end).and_then(|l| l.first_chunk::<8>())
        && u64::from_ne_bytes(*eight) == 0
    {
        at += 8;
    }
    (at..end).find(|&i| leader[i] != 0).unwrap_or(end)
}

fn blocks(ops: &Ops, leader: &[u8], block_of: &mut [u32], start: usize, end: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut from = start;
    while from < end {
        let to = next_leader(leader, from + 1, end);
        block_of[from] = blocks.len() as u32;
        blocks.push(Block {
            start: from as u32,
            end: to as u32,
            next: [NONE; 2],
            live_in: 0,
            loop_head: false,
            reachable: false,
            visited: false,
        });
        from = to;
    }
    let find = |at: u32| {
        let inside = (start..end).contains(&(at as usize));
        block_of.get(at as usize).copied().filter(|_| inside).unwrap_or(NONE)
    };
    for n in 0..blocks.len() {
        let falls = if n + 1 < blocks.len() { n as u32 + 1 } else { NONE };
        let mut back = NONE;
        blocks[n].next = match ops.op(blocks[n].end as usize - 1) {
            Op::Jump { target } => {
                back = target;
                [find(target), NONE]
            }
            Op::Branch { target, .. } | Op::MayGoto { target } => {
                back = target;
                [falls, find(target)]
            }
            Op::Exit | Op::Trap => [NONE; 2],
            _ => [falls, NONE],
        };
        if back <= blocks[n].start
            && let Some(head) = blocks.get_mut(find(back) as usize)
        {
            head.loop_head = true;
        }
    }
    let mut stack = vec![0];
    while let Some(n) = stack.pop() {
        if let Some(b) = blocks.get_mut(n)
            && !b.reachable
        {
            b.reachable = true;
            stack.extend(b.next());
        }
    }
    blocks
}

/// The arguments that a call of function `n` gives.
fn needs(functions: &[Function], cells: &[u8], n: usize) -> Live {
    match cells.get(n) {
        Some(&args) => (1..=args.min(5)).fold(0, |live, r| live | both(r)),
        None => functions[n].needs,
    }
}

impl Function {
    /// The upper halves that are zero at the start of each block: where no path comes from behind, those are what is
    /// met when the blocks in front of it are gone through.
    pub(crate) fn zeros(&self, flow: &Flow) -> Vec<u16> {
        let mut zeros: Vec<u16> = self.blocks.iter().map(|_| u16::MAX).collect();
        if let Some(first) = zeros.first_mut() {
            *first = 0;
        }
        if !self.blocks.iter().any(|b| b.loop_head) {
            return zeros;
        }
        // What was there when a block was gone through.
        let mut seen: Vec<Option<u16>> = vec![None; self.blocks.len()];
        loop {
            let mut changed = false;
            for (n, b) in self.blocks.iter().enumerate().filter(|(_, b)| b.reachable) {
                let mut state = zeros[n];
                if seen[n] == Some(state) {
                    continue;
                }
                seen[n] = Some(state);
                let range = b.start as usize..b.end as usize;
                for (e, &live) in flow.effects[range.clone()].iter().zip(&flow.live[range]) {
                    state = e.zero_after(state, live);
                }
                for next in b.next() {
                    let met = zeros[next] & state;
                    changed |= met != zeros[next] && next <= n;
                    zeros[next] = met;
                }
            }
            if !changed {
                return zeros;
            }
        }
    }
}

impl Flow {
    /// The arguments that a call of function `n` gives.
    pub(crate) fn needs(&self, n: usize) -> Live {
        needs(&self.functions, &self.cells, n)
    }

    /// Which of up to 64 instructions from `at` on, before `end`, do something that somebody needs.
    #[inline]
    pub(crate) fn needed(&self, at: usize, end: usize) -> u64 {
        let live = self.live.get(at..end.min(at + 64)).unwrap_or_default();
        live.iter().rev().fold(0, |all, l| all << 1 | u64::from(!l >> 31))
    }

    /// The function that starts there.
    pub(crate) fn function_at(&self, start: u32) -> Option<usize> {
        self.functions.binary_search_by_key(&(start as usize), |f| f.start).ok()
    }

    fn function(&mut self, starts: &[(usize, u32)], n: usize, done: &mut [bool], depth: usize) {
        if done[n] || depth > starts.len() {
            return;
        }
        done[n] = true;
        let (start, end) = (self.functions[n].start, self.functions[n].end);
        let mut f = std::mem::take(&mut self.functions[n]);
        f.start = start;
        let calls = self.subs.partition_point(|s| s.0 < start)..self.subs.partition_point(|s| s.0 < end);
        for n_call in calls {
            let (i, target) = self.subs[n_call];
            if let Ok(callee) = starts.binary_search_by_key(&(target as usize), |&(s, _)| s) {
                self.functions[n].start = start;
                self.function(starts, callee, done, depth + 1);
                // It may be any function, of any program.
                let cell = self.cells.get(callee).is_some();
                f.uses_fp |= cell;
                f.calls_out |= cell;
                f.uses_env |= cell;
                let c = &self.functions[callee];
                f.uses_fp |= c.uses_fp;
                f.calls_out |= c.calls_out;
                f.uses_env |= c.uses_env;
                let wanted = needs(&self.functions, &self.cells, callee);
                self.effects[i].needs(wanted);
            }
        }
        let all = self.liveness(&mut f);
        f.counts = all.counts();
        f.uses_fp |= all.uses_fp();
        f.calls_out |= all.calls_out();
        f.uses_env |= all.uses_env();
        f.saved = super::regs::CALLEE_SAVED.into_iter().filter(|&r| all.kills() >> r & 1 != 0).collect();
        f.needs = f.blocks.first().map_or(0, |b| b.live_in) & ARGUMENTS;
        self.functions[n] = f;
    }

    /// Fills in what is live; returns what all instructions do that somebody needs.
    fn liveness(&mut self, f: &mut Function) -> Effects {
        // What is needed in the end was so in every round, and the other way round: rounds only add to what is live.
        let mut all = Effects::default();
        loop {
            let mut changed = false;
            for n in (0..f.blocks.len()).rev() {
                let b = &f.blocks[n];
                if !b.reachable {
                    continue;
                }
                let mut live = b.next().fold(0, |l, s| l | f.blocks[s].live_in);
                let range = b.start as usize..b.end as usize;
                if b.visited && self.live[range.end - 1] & !DEAD == live {
                    continue;
                }
                for (e, out) in self.effects[range.clone()].iter().zip(&mut self.live[range]).rev() {
                    let (before, dead) = e.live_before(live);
                    *out = select_unpredictable(dead, live | DEAD, live);
                    all = select_unpredictable(dead, all, all.and(*e));
                    live = before;
                }
                // Only jumps back see what is known of a block too late.
                changed |= live != b.live_in && b.loop_head;
                let b = &mut f.blocks[n];
                b.live_in = live;
                b.visited = true;
            }
            if !changed {
                break all;
            }
        }
    }
}
