//! Registers that are saved around a call which does not clobber them.
//!
//! Compilers know some functions to keep registers that calls may clobber (`bpf_fastcall`), and save those in slots below
//! all others and restore them behind the call, for kernels that do not know. A kernel that does drops the pairs, and with
//! them the slots, if nothing else touches these: they do not count against the stack of a chain of calls.

use skep_ebpf::helper::{Helper, Ret};
use skep_ebpf::insn::{CALL, Insn, class, mode, size};
use skep_ebpf::uapi::ProgType;

use crate::cfg::{is_jump, jump_target};
use crate::env::Env;
use crate::kfunc;

/// Calls clobber r0 to this one.
const LAST_CLOBBERED: u8 = 5;
const FRAME_POINTER: u8 = 10;
const SAVE: u8 = class::STX | mode::MEM | size::DW;
const RESTORE: u8 = class::LDX | mode::MEM | size::DW;
const GET_SMP_PROCESSOR_ID: u32 = 8;

/// The slots of a function that only such pairs use.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct SpillArea {
    /// Where it ends; 0 if there is none.
    end: i32,
    /// Some pairs are dropped.
    dropped: bool,
    /// Others stay, around calls that the kernel makes as any other.
    kept: bool,
    /// Something else uses it.
    shared: bool,
    /// A jump leads between a save and its restore. Some kernels drop such pairs nevertheless, though the register may
    /// not be what is restored.
    joined: bool,
}

impl SpillArea {
    /// What the function counts as using of the stack, of which it touches `deepest` bytes.
    pub fn counted(self, deepest: u32) -> u32 {
        match self {
            SpillArea { dropped: false, .. } | SpillArea { kept: true, .. } | SpillArea { shared: true, .. } => deepest,
            SpillArea { joined: true, .. } => deepest.max(self.end.unsigned_abs()),
            _ => self.end.unsigned_abs(),
        }
    }

    fn touch(&mut self, off: i64) {
        self.shared |= off < i64::from(self.end);
    }
}

/// Other types have a helper of the same number that is called as any other. Asked of a running 6.18; types that it could
/// not be asked for are taken for such.
fn inlines_processor_id(ty: ProgType) -> bool {
    use ProgType as T;
    matches!(
        ty,
        T::SchedCls
            | T::SchedAct
            | T::Xdp
            | T::LwtIn
            | T::LwtOut
            | T::LwtXmit
            | T::LwtSeg6local
            | T::Kprobe
            | T::Tracepoint
            | T::PerfEvent
            | T::RawTracepoint
            | T::RawTracepointWritable
            | T::Tracing
            | T::Syscall
    )
}

/// What a call does to registers.
struct Clobbers {
    /// As bits.
    registers: u8,
    /// The kernel puts instructions in its place that do nothing else.
    inlined: bool,
}

impl Env<'_> {
    /// Finds the pairs of every function.
    pub fn find_spill_pairs(&mut self) {
        if !self.options.profile.since(6, 12) {
            return;
        }
        let mut targets = vec![false; self.insns.len()];
        for (at, i) in self.insns.iter().enumerate().filter(|(_, i)| is_jump(**i)) {
            if let Some(t) = usize::try_from(jump_target(at, *i)).ok().and_then(|t| targets.get_mut(t)) {
                *t = true;
            }
        }
        for n in 0..self.cfg.functions.len() {
            let (start, end) = (self.cfg.functions[n].start, self.cfg.functions[n].end);
            let body = self.insns.get(start..end).unwrap_or_default();
            let saves = body.iter().filter(|i| i.code == SAVE && i.dst() == FRAME_POINTER);
            let lowest = saves.map(|i| i32::from(i.off)).min().unwrap_or(0).min(0);
            for (at, i) in (start..end).zip(body).filter(|(_, i)| i.code == CALL) {
                let Some(clobbers) = self.clobbers(*i) else { continue };
                let pairs = self.count_pairs(at, clobbers.registers, lowest);
                if pairs == 0 {
                    continue;
                }
                for distance in 1..=pairs {
                    self.facts[at - distance].spill_pair = true;
                    self.facts[at + distance].spill_pair = true;
                }
                let area = &mut self.functions[n].spill_area;
                area.joined |= targets[at - pairs + 1..=at + pairs].contains(&true);
                area.end = area.end.min(lowest + 8 * pairs as i32);
                if clobbers.inlined { area.dropped = true } else { area.kept = true }
            }
        }
    }

    /// What the called helper or kernel function clobbers, by its prototype; `None` if it may be everything.
    fn clobbers(&self, i: Insn) -> Option<Clobbers> {
        let (args, void, inlined) = if i.is_helper_call() {
            let h = Helper::by_id(i.imm as u32)?;
            let inlined = h.id == GET_SMP_PROCESSOR_ID && inlines_processor_id(self.prog.prog_type);
            (h.args.len(), h.ret == Ret::Void, inlined)
        } else {
            let k = kfunc::Kfuncs::new(self.options);
            let inlined = matches!(k.row(i)?.name, "bpf_cast_to_kern_ctx" | "bpf_rdonly_cast");
            (k.args(i)?, k.is_void(i)?, inlined)
        };
        if args >= usize::from(LAST_CLOBBERED) && !void {
            return None;
        }
        let registers = (0..=LAST_CLOBBERED)
            .filter(|r| if *r == 0 { !void } else { usize::from(*r) <= args })
            .fold(0, |m, r| m | 1 << r);
        Some(Clobbers { registers, inlined })
    }

    /// How many registers are saved right before the call and restored right behind it: the slots rise with the distance.
    fn count_pairs(&self, at: usize, clobbered: u8, lowest: i32) -> usize {
        let mut seen = clobbered;
        (1..=usize::from(LAST_CLOBBERED) + 1)
            .take_while(|&distance| {
                let Some(before) = at.checked_sub(distance) else { return false };
                let behind = at + distance;
                let (Some(save), Some(restore)) = (self.insns.get(before), self.insns.get(behind)) else {
                    return false;
                };
                let pair = save.code == SAVE
                    && save.dst() == FRAME_POINTER
                    && restore.code == RESTORE
                    && restore.src() == FRAME_POINTER
                    && save.src() == restore.dst();
                let place = i64::from(lowest) + 8 * (distance as i64 - 1);
                let bit = 1u8.checked_shl(save.src().into()).unwrap_or(0);
                let counts = pair
                    && save.src() <= LAST_CLOBBERED
                    && seen & bit == 0
                    && i64::from(save.off) == place
                    && i64::from(restore.off) == place;
                seen |= bit;
                counts
            })
            .count()
    }

    /// The instruction at hand accesses the stack of a frame from `off` on.
    pub fn touch_spill_area(&mut self, frame: usize, off: i64) {
        if self.facts.get(self.insn).is_some_and(|f| f.spill_pair) {
            return;
        }
        if let Some(f) = self.state.frames.get(frame) {
            self.functions[f.subprog].spill_area.touch(off);
        }
    }
}
