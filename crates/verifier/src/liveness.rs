//! Which registers and stack slots may still be read from an instruction on.
//!
//! Registers: a plain backward data flow over the instructions. Stack slots: what the checker sees being read and
//! written whole is collected per instruction and chain of calls ([`InstanceId`]), and flows backward as it comes in. A
//! saved state is cleaned ([`Liveness::alive`]) when all paths from it are done, so by then all reads that can follow
//! are known. Whoever checks a new kind of access to the stack calls `Env::mark_stack_read` for what it may read and
//! `Env::mark_stack_written` for slots that it overwrites whole without reading.

use std::collections::HashMap;

use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode};

use crate::blocks::{BlockId, Blocks, Worklist};
use crate::cfg::{Cfg, is_goto};
use crate::kfunc::Kfuncs;
use crate::state::State;

/// Liveness of registers (static) and stack slots (collected).
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Registers that may be read before they are written, per instruction.
    pub regs: Vec<u16>,
    blocks: Blocks,
    instances: Vec<Instance>,
    /// Instance of a call by the instance and the instruction that make it, and the function that is called.
    calls: HashMap<(InstanceId, u32, u32), InstanceId>,
    /// Layers in which something has changed since it was pushed on.
    changed: Vec<(InstanceId, usize)>,
    work: Worklist,
}

/// A function as called through one chain of calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct InstanceId(u32);

#[derive(Debug)]
struct Instance {
    caller: Option<(InstanceId, u32)>,
    start: usize,
    end: usize,
    /// Which instructions that may write to the stack were run at all.
    visited: Vec<bool>,
    /// Slots of the own frame, of the caller's, of its caller's…
    layers: Vec<Layer>,
}

impl Instance {
    fn new(caller: Option<(InstanceId, u32)>, start: usize, end: usize) -> Instance {
        Instance { caller, start, end, visited: vec![false; end.saturating_sub(start)], layers: Vec::new() }
    }
}

/// Slots of one frame, for each instruction of a function; what flows is kept per block.
#[derive(Debug, Default)]
struct Layer {
    /// By instruction, counted from the first of the function.
    insns: Vec<Access>,
    /// By block, counted from the first of the function.
    blocks: Vec<Flow>,
    /// The function's first block.
    first: BlockId,
    /// Blocks where something has changed since it was pushed on.
    changed: Vec<BlockId>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Access {
    read: u64,
    /// Slots written whole on every visit.
    written: u64,
}

impl Access {
    fn before(self, after: u64) -> u64 {
        self.read | after & !self.written
    }
}

#[derive(Clone, Copy, Default, Debug)]
struct Flow {
    /// Slots that the block reads before it writes them.
    read: u64,
    written: u64,
    /// Slots live before it.
    live: u64,
    /// Is in [`Layer::changed`].
    changed: bool,
}

impl Layer {
    fn new(len: usize, first: BlockId, blocks: usize) -> Layer {
        Layer { insns: vec![Access::default(); len], blocks: vec![Flow::default(); blocks], first, changed: Vec::new() }
    }

    fn block(&self, id: BlockId) -> Flow {
        id.checked_sub(self.first).and_then(|n| self.blocks.get(n as usize)).copied().unwrap_or_default()
    }

    fn block_mut(&mut self, id: BlockId) -> Option<&mut Flow> {
        id.checked_sub(self.first).and_then(|n| self.blocks.get_mut(n as usize))
    }

    /// Slots live behind a block.
    fn after(&self, blocks: &Blocks, id: BlockId) -> u64 {
        blocks.after(id, |next| self.block(next).live)
    }

    /// Slots live before the first instruction.
    fn at_entry(&self) -> u64 {
        self.blocks.first().map_or(0, |b| b.live)
    }

    /// Takes in what has changed in a block; gives the slots that are live before it no longer because of that alone.
    fn summarise(&mut self, blocks: &Blocks, start: usize, id: BlockId) -> u64 {
        let block = blocks.get(id);
        let range = (block.start as usize).wrapping_sub(start)..(block.end as usize).wrapping_sub(start);
        let insns = self.insns.get(range).unwrap_or_default();
        let read = insns.iter().rev().fold(0, |after, i| i.before(after));
        let written = insns.iter().fold(0, |all, i| all | i.written);
        let Some(flow) = self.block_mut(id) else { return 0 };
        let gone = flow.live & (flow.read & !read | written & !flow.written) & !read;
        *flow = Flow { read, written, live: flow.live, changed: false };
        gone
    }
}

const CALLER_SAVED: u16 = 0x3f;
/// All registers but the frame pointer.
const ALL: u16 = (1 << 10) - 1;

impl Liveness {
    /// Computes register liveness; stack slots start out dead.
    pub fn new(insns: &[Insn], cfg: &Cfg, kfuncs: Kfuncs<'_>) -> Liveness {
        let blocks = Blocks::new(insns, cfg);
        let mut work = Worklist::new(blocks.len());
        let regs = live_registers(insns, cfg, kfuncs, &blocks, &mut work);
        Liveness { regs, blocks, work, instances: Vec::new(), calls: HashMap::new(), changed: Vec::new() }
    }

    /// Forgets all stack slots; gives the instance of a function that is checked on its own.
    pub fn begin(&mut self, start: usize, end: usize) -> InstanceId {
        self.instances.clear();
        self.calls.clear();
        self.changed.clear();
        self.instances.push(Instance::new(None, start, end));
        InstanceId(0)
    }

    /// The instance of a function called from here.
    pub fn enter(&mut self, caller: InstanceId, callsite: usize, start: usize, end: usize) -> InstanceId {
        self.enter_from(Some((caller, callsite as u32)), start, end)
    }

    /// The instance of a function that runs on its own, called by nothing that the program waits for.
    pub fn enter_async(&mut self, start: usize, end: usize) -> InstanceId {
        self.enter_from(None, start, end)
    }

    fn enter_from(&mut self, caller: Option<(InstanceId, u32)>, start: usize, end: usize) -> InstanceId {
        let (by, callsite) = caller.unwrap_or((InstanceId(u32::MAX), 0));
        let next = InstanceId(self.instances.len() as u32);
        let id = *self.calls.entry((by, callsite, start as u32)).or_insert(next);
        if id == next {
            self.instances.push(Instance::new(caller, start, end));
        }
        id
    }

    /// Notes that an instruction may read these slots of the frame `distance` calls up.
    pub fn mark_read(&mut self, id: InstanceId, distance: usize, at: usize, slots: u64) {
        let access = self.access(id, distance, at);
        if slots & !access.read != 0 {
            access.read |= slots;
            self.note_change(id, distance, at);
        }
    }

    /// Notes the slots that a visit of an instruction has overwritten whole, by frame: `frames[depth]` is the own one.
    /// Is called for each visit of instructions that may write to the stack.
    pub fn commit_writes(&mut self, id: InstanceId, at: usize, frames: &[u64; 8], depth: usize) {
        let Some(i) = self.instances.get_mut(id.0 as usize) else { return };
        let n = at.wrapping_sub(i.start);
        let Some(visited) = i.visited.get_mut(n) else { return };
        let first = !std::mem::replace(visited, true);
        for distance in 0..=depth.min(7) {
            let slots = frames[depth.min(7) - distance];
            let known = self.instances[id.0 as usize].layers.get(distance).is_some_and(|l| !l.insns.is_empty());
            if !known && (slots == 0 || !first) {
                continue;
            }
            let access = self.access(id, distance, at);
            let written = if first { slots } else { access.written & slots };
            if written != access.written {
                access.written = written;
                self.note_change(id, distance, at);
            }
        }
    }

    fn note_change(&mut self, id: InstanceId, distance: usize, at: usize) {
        let block = self.blocks.of(at);
        let layer = self.layer(id, distance);
        let first = layer.changed.is_empty();
        if let Some(flow) = layer.block_mut(block)
            && !std::mem::replace(&mut flow.changed, true)
        {
            layer.changed.push(block);
            if first {
                self.changed.push((id, distance));
            }
        }
    }

    /// Slots of the frame `distance` calls up that this function may read from this instruction on.
    fn slots_from(&self, id: InstanceId, distance: usize, at: usize) -> u64 {
        let Some(i) = self.instances.get(id.0 as usize) else { return !0 };
        let Some(layer) = i.layers.get(distance).filter(|l| !l.insns.is_empty()) else { return 0 };
        let id = self.blocks.of(at);
        let block = self.blocks.get(id);
        if at == block.start as usize {
            return layer.block(id).live;
        }
        let rest = at.wrapping_sub(i.start)..(block.end as usize).wrapping_sub(i.start);
        let insns = layer.insns.get(rest).unwrap_or_default();
        insns.iter().rev().fold(layer.after(&self.blocks, id), |after, i| i.before(after))
    }

    /// Pushes all changes on; what a function reads of its callers' frames changes these in turn.
    fn settle(&mut self) {
        while let Some((id, distance)) = self.changed.pop() {
            self.flow(id, distance);
        }
    }

    /// Slots of frame `n` that may still be read after a saved state: from where it stands, and behind each call.
    pub fn alive(&mut self, state: &State, n: usize, calls_back: impl Fn(usize) -> bool) -> u64 {
        self.settle();
        let last = state.frames.len() - 1;
        let mut slots = self.slots_from(state.frames[last].instance, last - n, state.insn);
        for f in n..last {
            let (instance, call) = (state.frames[f].instance, state.frames[f + 1].callsite);
            // A helper may call again, so what it may read counts as well.
            let from = if calls_back(call) { call } else { call + 1 };
            slots |= self.slots_from(instance, f - n, from);
        }
        slots
    }

    fn layer(&mut self, id: InstanceId, distance: usize) -> &mut Layer {
        let i = &mut self.instances[id.0 as usize];
        while i.layers.len() <= distance {
            i.layers.push(Layer::default());
        }
        let layer = &mut i.layers[distance];
        if layer.insns.is_empty() && i.start < i.end {
            let (first, last) = (self.blocks.of(i.start), self.blocks.of(i.end - 1));
            *layer = Layer::new(i.end - i.start, first, (last - first + 1) as usize);
        }
        layer
    }

    fn access(&mut self, id: InstanceId, distance: usize, at: usize) -> &mut Access {
        let start = self.instances[id.0 as usize].start;
        &mut self.layer(id, distance).insns[at - start]
    }

    /// Pushes what may be read backward from the blocks that have changed until nothing changes any more.
    fn flow(&mut self, id: InstanceId, distance: usize) {
        let i = &mut self.instances[id.0 as usize];
        let start = i.start;
        let Some(layer) = i.layers.get_mut(distance) else { return };
        let before = layer.at_entry();
        let (blocks, work) = (&self.blocks, &mut self.work);
        // What was called live and is not is taken back first, with all that came of it.
        let mut stale = Vec::new();
        for id in std::mem::take(&mut layer.changed) {
            let gone = layer.summarise(blocks, start, id);
            if gone != 0 {
                stale.push((id, gone));
            }
            work.push(id);
        }
        while let Some((id, slots)) = stale.pop() {
            let Some(flow) = layer.block_mut(id) else { continue };
            let gone = flow.live & slots & !flow.read;
            if gone != 0 {
                flow.live &= !gone;
                work.push(id);
                stale.extend(blocks.before(id).iter().map(|p| (*p, gone)));
            }
        }
        while let Some(id) = work.pop() {
            let after = layer.after(blocks, id);
            let Some(flow) = layer.block_mut(id) else { continue };
            let live = flow.read | after & !flow.written;
            if live & !flow.live != 0 {
                flow.live |= live;
                blocks.before(id).iter().for_each(|p| work.push(*p));
            }
        }
        if layer.at_entry() != before {
            self.tell_caller(id, distance);
        }
    }

    /// What a function reads of its callers' frames, the call reads.
    fn tell_caller(&mut self, id: InstanceId, distance: usize) {
        let i = &self.instances[id.0 as usize];
        let at_entry = i.layers.get(distance).map_or(0, Layer::at_entry);
        if let (Some((caller, callsite)), true) = (i.caller, at_entry != 0 && distance > 0) {
            self.mark_read(caller, distance - 1, callsite as usize, at_entry);
        }
    }
}

fn live_registers(insns: &[Insn], cfg: &Cfg, kfuncs: Kfuncs<'_>, blocks: &Blocks, work: &mut Worklist) -> Vec<u16> {
    let effects: Vec<(u16, u16)> =
        insns.iter().zip(&cfg.points).map(|(i, p)| if p.second_half { (0, 0) } else { effect(*i, kfuncs) }).collect();
    let before = |at: usize, after: u16| {
        let (uses, defines) = effects[at];
        uses | after & !defines
    };
    let range = |id: BlockId| {
        let b = blocks.get(id);
        (b.start as usize..b.end as usize).rev()
    };
    // A block lets through what it does not overwrite, and adds what it reads first.
    let flows: Vec<(u16, u16)> = (0..blocks.len() as u32)
        .map(|id| {
            let reads = range(id).fold(0, |after, at| before(at, after));
            (reads, range(id).fold(u16::MAX, |after, at| before(at, after)))
        })
        .collect();
    let mut live = vec![0u16; blocks.len()];
    (0..blocks.len() as u32).for_each(|id| work.push(id));
    while let Some(id) = work.pop() {
        let (reads, through) = flows[id as usize];
        let now = reads | blocks.after(id, |next| live[next as usize]) & through;
        if now != live[id as usize] {
            live[id as usize] = now;
            blocks.before(id).iter().for_each(|p| work.push(*p));
        }
    }
    let mut regs = vec![0u16; insns.len()];
    for id in 0..blocks.len() as u32 {
        let mut after = blocks.after(id, |next| live[next as usize]);
        for at in range(id) {
            after = before(at, after);
            regs[at] = after;
        }
    }
    regs
}

/// Registers that an instruction reads, and those it overwrites without reading.
fn effect(i: Insn, kfuncs: Kfuncs<'_>) -> (u16, u16) {
    let dst = 1u16 << i.dst();
    let src = 1u16 << i.src();
    match i.class() {
        class::LD => match i.mode() {
            // The kernel takes packet loads for reads of everything, which keeps more states apart.
            mode::ABS | mode::IND => (ALL, 0),
            _ => (0, dst),
        },
        class::LDX => (src, dst),
        class::ST => (dst, 0),
        class::STX if i.mode() == mode::ATOMIC => match i.imm {
            atomic::LOAD_ACQ => (src, dst),
            atomic::STORE_REL => (dst | src, 0),
            atomic::CMPXCHG => (dst | src | 1, 1),
            op if op & atomic::FETCH != 0 => (dst | src, src),
            _ => (dst | src, 0),
        },
        class::STX => (dst | src, 0),
        class::ALU | class::ALU64 => match i.op() {
            alu::MOV => (if i.is_x() { src } else { 0 }, dst),
            alu::NEG | alu::END => (dst, dst),
            _ => (dst | if i.is_x() { src } else { 0 }, dst),
        },
        _ if is_goto(i) => (0, 0),
        _ if i.op() == jmp::JCOND => (0, 0),
        _ if i.op() == jmp::EXIT => (1, 0),
        _ if i.op() == jmp::CALL => {
            let args = if i.is_helper_call() {
                Helper::by_id(i.imm as u32).map_or(5, |h| h.args.len())
            } else {
                kfuncs.args(i).unwrap_or(5).min(5)
            };
            // printk and its like read more than the prototype says; nothing depends on what is in them.
            ((((1u32 << (args + 1)) - 1) & !1) as u16, CALLER_SAVED)
        }
        _ => (dst | if i.is_x() { src } else { 0 }, 0),
    }
}
