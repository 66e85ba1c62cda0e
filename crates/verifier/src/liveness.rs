//! Which registers and stack slots may still be read from an instruction on.
//!
//! Registers: a plain backward data flow over the instructions. Stack slots: what the checker sees being read and
//! written is collected per instruction, and flows backward as it comes in. A saved state is compared with others only
//! when all paths from it are done, so by then all reads that can follow are known.

use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, alu, atomic, class, jmp, mode};

use crate::cfg::{Cfg, is_goto, successors};

/// Liveness of registers (static) and stack slots (collected).
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Registers that may be read before they are written, per instruction.
    pub regs: Vec<u16>,
    predecessors: Vec<Vec<u32>>,
    next: Vec<[Option<u32>; 2]>,
    read: Vec<u64>,
    /// Slots written whole on every visit; meaningful once visited.
    written: Vec<u64>,
    visited: Vec<bool>,
    live: Vec<u64>,
}

const CALLER_SAVED: u16 = 0x3f;

impl Liveness {
    /// Computes register liveness; stack slots start out dead.
    pub fn new(insns: &[Insn], cfg: &Cfg) -> Liveness {
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
        let mut regs = vec![0u16; n];
        let mut todo: Vec<usize> = (0..n).filter(|at| !cfg.points[*at].second_half).collect();
        let mut queued = vec![true; n];
        while let Some(at) = todo.pop() {
            queued[at] = false;
            let (uses, defines) = effect(insns[at]);
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
        Liveness {
            regs,
            predecessors,
            next,
            read: vec![0; n],
            written: vec![0; n],
            visited: vec![false; n],
            live: vec![0; n],
        }
    }

    /// Notes that an instruction (for outer frames: the call in that frame) may read these slots.
    pub fn mark_read(&mut self, at: usize, slots: u64) {
        if slots & !self.read[at] != 0 {
            self.read[at] |= slots;
            self.flow(at);
        }
    }

    /// Notes the slots that a visit of an instruction has overwritten whole.
    pub fn commit_writes(&mut self, at: usize, slots: u64) {
        if !self.visited[at] {
            self.visited[at] = true;
            self.written[at] = slots;
        } else if self.written[at] & !slots != 0 {
            self.written[at] &= slots;
            self.flow(at);
        }
    }

    /// Slots of the active frame that may be read from this instruction on.
    pub fn slots_before(&self, at: usize) -> u64 {
        self.live[at]
    }

    /// Slots of a frame that may be read while or after its call at this instruction runs.
    pub fn slots_during_call(&self, at: usize) -> u64 {
        self.next[at].iter().flatten().fold(self.read[at], |m, s| m | self.live[*s as usize])
    }

    fn flow(&mut self, at: usize) {
        // What can only grow is pushed backward until nothing changes; an instruction visited for the first time after
        // its successors' reads are known keeps a little more than is needed, which is safe.
        let mut todo = vec![at];
        while let Some(at) = todo.pop() {
            let out = self.next[at].iter().flatten().fold(0, |m, s| m | self.live[*s as usize]);
            let before = self.read[at] | (out & !self.written[at]);
            if before & !self.live[at] != 0 {
                self.live[at] |= before;
                todo.extend(self.predecessors[at].iter().map(|p| *p as usize));
            }
        }
    }
}

/// Registers that an instruction reads, and those it overwrites without reading.
fn effect(i: Insn) -> (u16, u16) {
    let dst = 1u16 << i.dst();
    let src = 1u16 << i.src();
    match i.class() {
        class::LD => match i.mode() {
            mode::ABS => (1 << 6, CALLER_SAVED),
            mode::IND => (1 << 6 | src, CALLER_SAVED),
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
            let args = if i.is_helper_call() { Helper::by_id(i.imm as u32).map_or(5, |h| h.args.len()) } else { 5 };
            // printk and its like read more than the prototype says; nothing depends on what is in them.
            ((((1u32 << (args + 1)) - 1) & !1) as u16, CALLER_SAVED)
        }
        _ => (dst | if i.is_x() { src } else { 0 }, 0),
    }
}
