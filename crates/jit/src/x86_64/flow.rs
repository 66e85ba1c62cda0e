//! Functions, basic blocks, liveness, and upper halves known to be zero.

use super::ir::{ARGUMENTS, Effects, Live, Op, Src, trait_bits};

/// A basic block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Blocks that may come next: the one that it falls into or jumps to, and the one that it branches to.
    next: [Option<u32>; 2],
    /// Live at its start.
    live_in: Live,
    /// Registers whose upper halves are zero at its start.
    zero_in: u16,
    /// Something jumps back to it.
    pub(crate) loop_head: bool,
    pub(crate) reachable: bool,
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
    /// What is live behind each instruction.
    pub(crate) live: Vec<Live>,
    /// Registers whose upper halves are zero in front of each instruction.
    pub(crate) zero: Vec<u16>,
}

/// Analyses a program; short branches around a move become selects. `starts` are the functions' first instructions
/// and frames, in order.
pub(crate) fn analyse(ops: &mut [Op], mut effects: Vec<Effects>, starts: &[(usize, u32)], optimise: bool) -> Flow {
    let (mut leader, subs) = leaders(ops, starts);
    if optimise {
        selects(ops, &mut effects, &mut leader);
    }
    let mut flow = Flow {
        functions: Vec::with_capacity(starts.len()),
        effects,
        subs,
        live: vec![0; ops.len()],
        zero: vec![0; ops.len()],
    };
    for (n, &(start, frame)) in starts.iter().enumerate() {
        let end = starts.get(n + 1).map_or(ops.len(), |&(s, _)| s);
        let mut function = Function { start, end, frame, ..Function::default() };
        function.blocks = blocks(ops, &leader, start, end);
        flow.functions.push(function);
    }
    // Callees first. Recursion was refused, so this ends.
    let mut done = vec![false; starts.len()];
    for n in 0..starts.len() {
        flow.function(starts, n, &mut done, 0);
    }
    flow
}

/// How often something jumps to each instruction, `FALLS` where a function or the code behind a jump begins; and all
/// calls.
fn leaders(ops: &[Op], starts: &[(usize, u32)]) -> (Vec<u32>, Vec<(usize, u32)>) {
    const FALLS: u32 = 1;
    let mut subs = Vec::new();
    let mut leader = vec![0u32; ops.len() + 1];
    for &(start, _) in starts {
        leader[start] += FALLS;
    }
    for (i, op) in ops.iter().enumerate() {
        match *op {
            Op::Jump { target } => {
                mark(&mut leader, target as usize);
                leader[i + 1] += FALLS;
            }
            Op::Branch { target, .. } | Op::MayGoto { target } => {
                mark(&mut leader, target as usize);
                leader[i + 1] += FALLS;
            }
            Op::Exit | Op::Trap => leader[i + 1] += FALLS,
            Op::Sub { target } | Op::Loop { start: target } => subs.push((i, target)),
            _ => {}
        }
    }
    (leader, subs)
}

fn mark(leader: &mut [u32], at: usize) {
    if let Some(l) = leader.get_mut(at) {
        *l += 1;
    }
}

/// `if c goto T; d = s; T:` and `if c goto T; d = s; goto T` become a select.
fn selects(ops: &mut [Op], effects: &mut [Effects], leader: &mut [u32]) {
    for i in 0..ops.len().saturating_sub(2) {
        let (Op::Branch { cond, target }, Op::Mov { wide, dst, src }) = (ops[i], ops[i + 1]) else { continue };
        // Only the branch itself makes the move the start of a block.
        if leader[i + 1] != 1 || src == Src::Reg(dst) {
            continue;
        }
        let target = target as usize;
        let joins = target == i + 2 || matches!(ops[i + 2], Op::Jump { target: t } if t as usize == target);
        if !joins {
            continue;
        }
        ops[i] = Op::Select { cond, wide, dst, src };
        ops[i + 1] = Op::Nop;
        (effects[i], effects[i + 1]) = (ops[i].effects(), ops[i + 1].effects());
        leader[i + 1] -= 1;
        leader[target] -= 1;
    }
}

fn blocks(ops: &[Op], leader: &[u32], start: usize, end: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut from = start;
    for i in start..end {
        if i + 1 < end && leader[i + 1] == 0 {
            continue;
        }
        blocks.push(Block {
            start: from,
            end: i + 1,
            next: [None; 2],
            live_in: 0,
            zero_in: u16::MAX,
            loop_head: false,
            reachable: false,
        });
        from = i + 1;
    }
    let find = |blocks: &[Block], at: u32| {
        let n = blocks.partition_point(|b| b.start <= at as usize).checked_sub(1)?;
        (blocks[n].start == at as usize).then_some(n as u32)
    };
    for n in 0..blocks.len() {
        let falls = (n + 1 < blocks.len()).then_some(n as u32 + 1);
        let next = match ops[blocks[n].end - 1] {
            Op::Jump { target } => [find(&blocks, target), None],
            Op::Branch { target, .. } | Op::MayGoto { target } => [falls, find(&blocks, target)],
            Op::Exit | Op::Trap => [None; 2],
            _ => [falls, None],
        };
        blocks[n].next = next;
        if let Op::Jump { target } | Op::Branch { target, .. } | Op::MayGoto { target } = ops[blocks[n].end - 1]
            && target as usize <= blocks[n].start
            && let Some(head) = find(&blocks, target)
        {
            blocks[head as usize].loop_head = true;
        }
    }
    let mut stack = vec![0u32];
    while let Some(n) = stack.pop() {
        if let Some(b) = blocks.get_mut(n as usize)
            && !b.reachable
        {
            b.reachable = true;
            stack.extend(b.next.iter().flatten());
        }
    }
    blocks
}

impl Flow {
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
                let c = &self.functions[callee];
                f.uses_fp |= c.uses_fp;
                f.calls_out |= c.calls_out;
                f.uses_env |= c.uses_env;
                self.effects[i].uses |= c.needs;
            }
        }
        self.liveness(&mut f);
        let (saved, traits) = self.zeros(&mut f.blocks);
        f.counts = traits & trait_bits::COUNTS != 0;
        f.uses_fp |= traits & trait_bits::FP != 0;
        f.calls_out |= traits & trait_bits::OUT != 0;
        f.uses_env |= traits & trait_bits::ENV != 0;
        f.saved = super::regs::CALLEE_SAVED.into_iter().filter(|&r| saved >> r & 1 != 0).collect();
        f.needs = f.blocks.first().map_or(0, |b| b.live_in) & ARGUMENTS;
        self.functions[n] = f;
    }

    fn liveness(&mut self, f: &mut Function) {
        loop {
            let mut changed = false;
            for n in (0..f.blocks.len()).rev() {
                if !f.blocks[n].reachable {
                    continue;
                }
                let b = &f.blocks[n];
                let mut live = b.next.iter().flatten().fold(0, |l, &s| l | f.blocks[s as usize].live_in);
                let range = b.start..b.end;
                for (e, out) in self.effects[range.clone()].iter().zip(&mut self.live[range]).rev() {
                    *out = live;
                    live = e.live_before(live);
                }
                if live != b.live_in {
                    // Only jumps back see what is known of a block too late.
                    changed |= b.loop_head;
                    f.blocks[n].live_in = live;
                }
            }
            if !changed {
                break;
            }
        }
    }

    /// Fills in the upper halves that are zero; what is overwritten in all, and all traits.
    fn zeros(&mut self, blocks: &mut [Block]) -> (Live, u8) {
        let (mut saved, mut traits) = (0, 0);
        if let Some(first) = blocks.first_mut() {
            first.zero_in = 0;
        }
        loop {
            let mut changed = false;
            for n in 0..blocks.len() {
                let b = &blocks[n];
                if !b.reachable {
                    continue;
                }
                let (mut state, range) = (b.zero_in, b.start..b.end);
                let known = self.effects[range.clone()].iter().zip(&self.live[range.clone()]);
                for ((e, &live), zero) in known.zip(&mut self.zero[range]) {
                    *zero = state;
                    state = e.zero_after(state, live);
                    // What nobody needs is not emitted.
                    let emitted = !e.dead(live);
                    saved |= if emitted && e.traits & trait_bits::ENDS == 0 { e.kills } else { 0 };
                    traits |= if emitted { e.traits } else { 0 };
                }
                for s in b.next.into_iter().flatten() {
                    let next = &mut blocks[s as usize];
                    let met = next.zero_in & state;
                    changed |= met != next.zero_in && s as usize <= n;
                    next.zero_in = met;
                }
            }
            if !changed {
                break (saved, traits);
            }
        }
    }
}
