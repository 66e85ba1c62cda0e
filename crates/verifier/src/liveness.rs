//! Which registers and stack slots may still be read from an instruction on.
//!
//! Registers: a plain backward data flow over the instructions. Stack slots: what the checker sees being read and
//! written whole is collected per instruction and chain of calls ([`InstanceId`]), and flows backward as it comes in. A
//! saved state is cleaned ([`Liveness::alive`]) when all paths from it are done, so by then all reads that can follow
//! are known. Whoever checks a new kind of access to the stack calls `Env::mark_stack_read` for what it may read and
//! `Env::mark_stack_written` for slots that it overwrites whole without reading.

use std::collections::{BinaryHeap, HashMap};

use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode};

use crate::cfg::{Cfg, is_goto, successors};
use crate::kfunc::Kfuncs;
use crate::state::State;

/// Liveness of registers (static) and stack slots (collected).
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Registers that may be read before they are written, per instruction.
    pub regs: Vec<u16>,
    predecessors: Vec<Vec<u32>>,
    next: Vec<[Option<u32>; 2]>,
    instances: Vec<Instance>,
    /// Instance of a call by the instance and the instruction that make it, and the function that is called.
    calls: HashMap<(InstanceId, u32, u32), InstanceId>,
    /// Layers in which something has changed since it was pushed on.
    changed: Vec<(InstanceId, usize)>,
}

/// A function as called through one chain of calls.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct InstanceId(u32);

#[derive(Debug)]
struct Instance {
    caller: Option<(InstanceId, u32)>,
    start: usize,
    end: usize,
    /// Which instructions were run at all.
    visited: Vec<bool>,
    /// Slots of the own frame, of the caller's, of its caller's…
    layers: Vec<Layer>,
}

impl Instance {
    fn new(caller: Option<(InstanceId, u32)>, start: usize, end: usize) -> Instance {
        Instance { caller, start, end, visited: vec![false; end.saturating_sub(start)], layers: Vec::new() }
    }
}

/// Slots of one frame, for each instruction of a function.
#[derive(Debug, Default)]
struct Layer {
    read: Vec<u64>,
    /// Slots written whole on every visit.
    written: Vec<u64>,
    live: Vec<u64>,
    /// Instructions where something has changed since it was pushed on.
    pending: Vec<u32>,
    /// Instructions that were found to write something that was called live before them.
    stale: Vec<u32>,
}

impl Layer {
    fn new(len: usize) -> Layer {
        Layer { read: vec![0; len], written: vec![0; len], live: vec![0; len], pending: Vec::new(), stale: Vec::new() }
    }

    fn live_at(&self, at: usize) -> u64 {
        self.live.get(at).copied().unwrap_or(0)
    }
}

const CALLER_SAVED: u16 = 0x3f;
/// All registers but the frame pointer.
const ALL: u16 = (1 << 10) - 1;

impl Liveness {
    /// Computes register liveness; stack slots start out dead.
    pub fn new(insns: &[Insn], cfg: &Cfg, kfuncs: Kfuncs<'_>) -> Liveness {
        let n = insns.len();
        let mut predecessors = vec![Vec::new(); n];
        for at in 0..n {
            if !cfg.points[at].second_half {
                for s in successors(insns, at).iter() {
                    predecessors[s].push(at as u32);
                }
            }
        }
        let next = (0..n)
            .map(|at| {
                let s = successors(insns, at);
                [s.next.map(|x| x as u32), s.target.map(|x| x as u32)]
            })
            .collect();
        let regs = live_registers(insns, cfg, kfuncs, &predecessors);
        Liveness { regs, predecessors, next, instances: Vec::new(), calls: HashMap::new(), changed: Vec::new() }
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
        let (layer, n) = self.layer(id, distance, at);
        if slots & !layer.read[n] != 0 {
            layer.read[n] |= slots;
            self.note_change(id, distance, at);
        }
    }

    /// Notes the slots that a visit of an instruction has overwritten whole, by frame: `frames[depth]` is the own one.
    pub fn commit_writes(&mut self, id: InstanceId, at: usize, frames: &[u64; 8], depth: usize) {
        let Some(i) = self.instances.get_mut(id.0 as usize) else { return };
        let n = at.wrapping_sub(i.start);
        let Some(visited) = i.visited.get_mut(n) else { return };
        let first = !std::mem::replace(visited, true);
        for distance in 0..=depth.min(7) {
            let slots = frames[depth.min(7) - distance];
            let known = self.instances[id.0 as usize].layers.get(distance).is_some_and(|l| !l.live.is_empty());
            if !known && (slots == 0 || !first) {
                continue;
            }
            let (layer, n) = self.layer(id, distance, at);
            if first {
                layer.written[n] = slots;
                if layer.live[n] & slots != 0 {
                    layer.stale.push(at as u32);
                    self.note_change(id, distance, at);
                }
            } else if layer.written[n] & !slots != 0 {
                layer.written[n] &= slots;
                self.note_change(id, distance, at);
            }
        }
    }

    fn note_change(&mut self, id: InstanceId, distance: usize, at: usize) {
        let (layer, _) = self.layer(id, distance, at);
        if layer.pending.is_empty() {
            layer.pending.push(at as u32);
            self.changed.push((id, distance));
        } else if layer.pending.last() != Some(&(at as u32)) {
            layer.pending.push(at as u32);
        }
    }

    /// Slots of the frame `distance` calls up that this function may read from this instruction on.
    fn slots_from(&self, id: InstanceId, distance: usize, at: usize) -> u64 {
        let Some(i) = self.instances.get(id.0 as usize) else { return !0 };
        i.layers.get(distance).map_or(0, |l| l.live_at(at.wrapping_sub(i.start)))
    }

    /// Pushes all changes on; what a function reads of its callers' frames changes these in turn.
    fn settle(&mut self) {
        while let Some((id, distance)) = self.changed.pop() {
            let Some(layer) = self.instances.get_mut(id.0 as usize).and_then(|i| i.layers.get_mut(distance)) else {
                continue;
            };
            let mut todo = std::mem::take(&mut layer.pending);
            let stale = std::mem::take(&mut layer.stale);
            self.retract(id, distance, stale, &mut todo);
            self.flow(id, distance, todo);
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

    fn layer(&mut self, id: InstanceId, distance: usize, at: usize) -> (&mut Layer, usize) {
        let i = &mut self.instances[id.0 as usize];
        let len = i.end - i.start;
        while i.layers.len() <= distance {
            i.layers.push(Layer::default());
        }
        let layer = &mut i.layers[distance];
        if layer.live.is_empty() {
            *layer = Layer::new(len);
        }
        (layer, at - i.start)
    }

    /// Takes back what is not live any more before these instructions, and all that came of it; where something was
    /// taken back is added to what must be looked at again.
    fn retract(&mut self, id: InstanceId, distance: usize, stale: Vec<u32>, todo: &mut Vec<u32>) {
        let i = &mut self.instances[id.0 as usize];
        let start = i.start;
        let Some(layer) = i.layers.get_mut(distance) else { return };
        let mut work: Vec<(u32, u64)> = stale.into_iter().map(|at| (at, layer.written[at as usize - start])).collect();
        while let Some((at, slots)) = work.pop() {
            let n = at as usize - start;
            let gone = layer.live[n] & slots & !layer.read[n];
            if gone != 0 {
                layer.live[n] &= !gone;
                todo.push(at);
                work.extend(self.predecessors[at as usize].iter().map(|p| (*p, gone)));
            }
        }
    }

    /// Pushes what may be read backward from these instructions until nothing changes.
    fn flow(&mut self, id: InstanceId, distance: usize, todo: Vec<u32>) {
        let i = &mut self.instances[id.0 as usize];
        let start = i.start;
        let Some(layer) = i.layers.get_mut(distance) else { return };
        let before = layer.live_at(0);
        // From the end to the beginning, so that what comes from several places goes on together.
        let mut todo = BinaryHeap::from(todo);
        while let Some(at) = todo.pop() {
            while todo.peek() == Some(&at) {
                todo.pop();
            }
            let mut at = at as usize;
            loop {
                let [next, target] = self.next[at];
                let live_after = |s: Option<u32>| s.map_or(0, |s| layer.live_at((s as usize).wrapping_sub(start)));
                let n = at - start;
                let live = layer.read[n] | (live_after(next) | live_after(target)) & !layer.written[n];
                if live & !layer.live[n] == 0 {
                    break;
                }
                layer.live[n] |= live;
                match self.predecessors[at].as_slice() {
                    [one] => at = *one as usize,
                    several => {
                        todo.extend(several);
                        break;
                    }
                }
            }
        }
        if layer.live_at(0) != before {
            self.tell_caller(id, distance);
        }
    }

    /// What a function reads of its callers' frames, the call reads.
    fn tell_caller(&mut self, id: InstanceId, distance: usize) {
        let i = &self.instances[id.0 as usize];
        let at_entry = i.layers.get(distance).map_or(0, |l| l.live_at(0));
        if let (Some((caller, callsite)), true) = (i.caller, at_entry != 0 && distance > 0) {
            self.mark_read(caller, distance - 1, callsite as usize, at_entry);
        }
    }
}

fn live_registers(insns: &[Insn], cfg: &Cfg, kfuncs: Kfuncs<'_>, predecessors: &[Vec<u32>]) -> Vec<u16> {
    let n = insns.len();
    let mut regs = vec![0u16; n];
    let mut todo: Vec<usize> = (0..n).filter(|at| !cfg.points[*at].second_half).collect();
    let mut queued = vec![true; n];
    while let Some(at) = todo.pop() {
        queued[at] = false;
        let (uses, defines) = effect(insns[at], kfuncs);
        let out = successors(insns, at).iter().fold(0, |m, s| m | regs[s]);
        let before = uses | (out & !defines);
        if before != regs[at] {
            regs[at] = before;
            for &p in &predecessors[at] {
                if !queued[p as usize] {
                    queued[p as usize] = true;
                    todo.push(p as usize);
                }
            }
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
