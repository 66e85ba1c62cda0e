//! The checker at work: one current state, the paths still to follow, and what was found on the way.

use std::time::Instant;

use skep_ebpf::Errno;
use skep_ebpf::insn::{Insn, class, jmp};
use skep_ebpf::kfunc::flag as kf;
use skep_ebpf::program::Program;
use skep_ebpf::uapi::AttachType;

use crate::cfg::Cfg;
use crate::compare::IdMap;
use crate::explored::Explored;
use crate::fail::{Check, Failure, invalid};
use crate::global_calls::Global;
use crate::hook::Hook;
use crate::kernel_types::Types;
use crate::kfunc::Kfuncs;
use crate::liveness::{InstanceId, Liveness};
use crate::log::{Arrival, Log};
use crate::map_facts::MapFacts;
use crate::object::Structs;
use crate::precision::Backtrack;
use crate::prog_type::{self, TypeFacts};
use crate::reason::Reason;
use crate::recorder::Recorder;
use crate::reg::{Kind, Reg, flag};
use crate::rewrite::Notes;
use crate::spill_pairs::SpillArea;
use crate::state::{Frame, Place, State, Step};
use crate::{NeedsKernel, Options, Stats};

/// A path to follow later.
#[derive(Debug)]
pub(crate) struct Pending {
    pub state: State,
    pub insn: usize,
    pub prev: usize,
}

/// What the checker learnt of one instruction over all paths.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Fact {
    /// Some path runs it.
    pub seen: bool,
    /// How often it was looked at.
    pub visits: u32,
    /// Kind of pointer that a load or store goes through, where it matters that it is always the same
    /// (and, for objects of BTF types, its flags).
    pub pointer: Option<(Kind, u32)>,
    /// A 32-bit load of the context that must become a 64-bit one from this offset.
    pub pointer_load: Option<i16>,
    /// It saves or restores a register around a call that keeps it.
    pub spill_pair: bool,
    /// A barrier before it ends paths that only a processor takes.
    pub barrier: bool,
    /// The same behind it.
    pub barrier_behind: bool,
    /// How its number is masked, where it is added to a pointer.
    pub window: Option<crate::speculation::Window>,
    /// The table of a tail call.
    pub table: Option<u32>,
    /// The tail call uses different tables.
    pub tables: bool,
}

/// What a function of the program turned out to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct FunctionFacts {
    /// Deepest stack byte used.
    pub stack_depth: u32,
    /// The part of it that may not count.
    pub spill_area: SpillArea,
    /// Set for global functions, by BTF.
    pub global: Option<Global>,
    /// A global function that some path calls.
    pub called: bool,
    /// Some path makes it the function of a timer or the like.
    pub is_async: bool,
    /// A helper or kernel function calls it, now or later.
    pub called_back: bool,
}

/// Where a path goes after an instruction.
pub(crate) enum Next {
    /// On, at this instruction.
    At(usize),
    /// Nowhere: this path is done.
    Done,
}

pub(crate) struct Env<'p> {
    pub prog: &'p Program,
    pub options: &'p Options,
    /// What programs of this type may do.
    pub types: &'static TypeFacts,
    /// The attach type, as the load sets it.
    pub attach: AttachType,
    pub insns: &'p [Insn],
    pub cfg: Cfg,
    pub live: Liveness,
    pub maps: Vec<MapFacts<'p>>,
    /// Structs of the program that have special fields.
    pub structs: Structs,
    pub functions: Vec<FunctionFacts>,
    pub facts: Vec<Fact>,
    /// What those who run the program may want to know.
    pub notes: Notes,

    pub state: State,
    pub insn: usize,
    pub prev: usize,
    pub pending: Vec<Pending>,
    pub explored: Explored,
    pub backtrack: Backtrack,
    /// What each instruction [`concerns`](crate::precision::concerns) when paths are walked back.
    pub concerns: Vec<u16>,
    /// The step recorded for the current instruction, if any.
    pub step_open: bool,
    /// Slots that the current instruction has overwritten whole, by frame.
    written: [u64; 8],
    /// Scratch space for comparisons.
    pub ids: IdMap,

    last_id: u32,
    pub jumps: u32,
    pub stats: Stats,
    /// Lowest and highest byte of the context that is read, when anything is.
    pub ctx_reads: Vec<(u32, u32)>,
    pub helpers: Vec<u32>,
    /// What a program that attaches by BTF hangs on.
    pub hook: Hook<'p>,
    /// Why only a kernel could run the program.
    pub needs_kernel: Option<NeedsKernel>,
    /// Bytes of buffers that are accessed: of those that are only read, and of the others.
    pub buffers: [u32; 2],
    /// Arguments that came with a reference: number and reference.
    pub acquired: Vec<(usize, u32)>,
    pub log: Log<'p>,
    /// Watches, when a rejection is to be explained.
    pub recorder: Option<Box<Recorder>>,
    /// It follows a run: no path is given up, and none is walked back.
    pub follows: bool,
}

impl<'p> Env<'p> {
    pub fn new(
        prog: &'p Program,
        options: &'p Options,
        cfg: Cfg,
        maps: Vec<MapFacts<'p>>,
        structs: Structs,
    ) -> Env<'p> {
        let types = prog_type::facts(prog.prog_type, options);
        let live = Liveness::new(&prog.insns, &cfg, crate::kfunc::Kfuncs::new(options));
        let functions = vec![FunctionFacts::default(); cfg.functions.len()];
        Env {
            prog,
            options,
            types,
            attach: types.attach_type(prog.attach_type),
            insns: &prog.insns,
            live,
            maps,
            structs,
            functions,
            facts: vec![Fact::default(); prog.insns.len()],
            notes: Notes::new(prog.insns.len()),
            state: State::default(),
            insn: 0,
            prev: 0,
            pending: Vec::new(),
            explored: Explored::new(prog.insns.len()),
            backtrack: Backtrack::default(),
            concerns: prog.insns.iter().map(|i| crate::precision::concerns(*i)).collect(),
            step_open: false,
            written: [0; 8],
            ids: IdMap::new(options.privilege),
            last_id: 0,
            jumps: 0,
            stats: Stats::default(),
            ctx_reads: Vec::new(),
            helpers: Vec::new(),
            hook: Hook::default(),
            buffers: [0; 2],
            acquired: Vec::new(),
            needs_kernel: None,
            log: Log::new(prog, options.btf.as_deref()),
            recorder: None,
            follows: false,
            cfg,
        }
    }

    /// A fresh id for values that share something.
    pub fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Checks everything: the main function, then the global functions that it calls.
    pub fn run(&mut self) -> Check {
        let started = Instant::now();
        let result = self.run_functions();
        self.stats.duration = started.elapsed();
        result
    }

    fn run_functions(&mut self) -> Check {
        self.explore(0)?;
        if let Some(callback) = self.cfg.exception_callback {
            self.functions[callback].called = true;
        }
        // A global function checked here may call others, also such that stand in front of it.
        let mut done = vec![false; self.functions.len()];
        let mut again = true;
        while std::mem::take(&mut again) {
            for (n, done) in done.iter_mut().enumerate().skip(1) {
                if !*done && self.functions[n].called {
                    (*done, again) = (true, true);
                    self.explore(n)?;
                }
            }
        }
        self.check_stack_depth()?;
        self.check_tail_calls()
    }

    /// Follows every path through one function (and the static ones that it calls).
    fn explore(&mut self, function: usize) -> Check {
        let (start, end) = self.cfg.functions.get(function).map_or((0, 0), |f| (f.start, f.end));
        let instance = self.live.begin(start, end);
        self.enter_at(function, start, instance)?;
        self.pending.clear();
        if let Some(recorder) = &mut self.recorder {
            recorder.begin();
        }
        self.explored.begin(start);
        self.log.arrive(Arrival::Begin);
        loop {
            match self.step()? {
                Next::At(insn) => {
                    self.prev = self.insn;
                    self.insn = insn;
                }
                Next::Done => {
                    self.path_done();
                    let Some(p) = self.pending.pop() else { return Ok(()) };
                    self.state = p.state;
                    self.insn = p.insn;
                    self.prev = p.prev;
                    self.log.arrive(Arrival::Branch);
                }
            }
        }
    }

    /// Stands at the start of a function that is followed on its own.
    pub fn enter_alone(&mut self, function: usize) -> Check {
        let (start, end) = self.cfg.functions.get(function).map_or((0, 0), |f| (f.start, f.end));
        let instance = self.live.enter_async(start, end);
        self.enter_at(function, start, instance)
    }

    fn enter_at(&mut self, function: usize, start: usize, instance: InstanceId) -> Check {
        self.state = State::new(Frame::new(0, function, instance, 0), start);
        self.state.sleepable = self.prog.flags & skep_ebpf::uapi::prog_flags::SLEEPABLE != 0;
        (self.insn, self.prev) = (start, start);
        self.enter(function)
    }

    /// Sets up the arguments of the function that is checked.
    fn enter(&mut self, function: usize) -> Check {
        if function == 0 && self.hook.extends {
            return self.enter_extension();
        }
        if function == 0 {
            self.acquired = self.acquired_arguments().into_iter().map(|n| (n, self.acquire())).collect();
            *self.state.reg_mut(1) = Reg::pointer(Kind::Ctx);
            return Ok(());
        }
        if self.is_exception_callback(function) {
            self.check_exception_prototype(function)?;
        }
        let Some(global) = self.functions[function].global.clone() else { return Ok(()) };
        self.enter_global(&global)
    }

    /// Runs the instruction at hand on the current state.
    pub fn step(&mut self) -> Check<Next> {
        let Some(&insn) = self.insns.get(self.insn) else {
            return invalid!(FallThrough, "a path runs off the end of the program");
        };
        self.stats.insns_processed += 1;
        self.facts[self.insn].visits += 1;
        if let Some(recorder) = &mut self.recorder {
            recorder.before(self.insn, &self.state, self.pending.len());
        }
        if self.stats.insns_processed > self.options.profile.max_processed {
            return Err(Failure::new(
                Errno::E2BIG,
                Reason::TooComplex,
                format!(
                    "the paths of the program are more than {} instructions long",
                    self.options.profile.max_processed
                ),
            )
            .at(self.prev));
        }
        self.step_open = false;
        self.written = [0; 8];
        self.state.last_insn = self.prev;
        let point = self.cfg.points[self.insn];
        if point.prune && self.visit()? {
            if self.options.log {
                self.log.safe(self.prev, self.insn);
            }
            return Ok(Next::Done);
        }
        if self.options.log {
            self.log.before(self.prev, self.insn, &self.state);
        }
        if point.jump {
            self.record_step(None, Vec::new());
        }
        self.facts[self.insn].seen |= !self.state.speculative;
        if self.stopped_by_barrier() {
            return Ok(Next::Done);
        }
        let (at, instance, depth) = (self.insn, self.state.frame().instance, self.state.depth());
        let next = match self.check_insn(insn) {
            Ok(next) => next,
            Err(f) => return self.put_barrier(at, f),
        };
        if self.options.log {
            let to = if let Next::At(to) = next { Some(to) } else { None };
            self.log.after(&self.state, to);
        }
        self.note_kernel_object(at, insn);
        let stores = matches!(insn.class(), class::ST | class::STX);
        if stores || insn.class() == class::JMP && insn.op() == jmp::CALL {
            self.live.commit_writes(instance, at, &self.written, depth);
        }
        Ok(if self.stopped_behind(at) { Next::Done } else { next })
    }

    /// Records how the path came here, or adds to what is recorded for this instruction.
    pub fn record_step(&mut self, stack: Option<(u8, u8)>, linked: Vec<Place>) {
        if self.step_open
            && let Some(s) = self.state.steps.last_mut()
        {
            s.stack = s.stack.or(stack);
            s.linked.extend(linked);
            return;
        }
        self.step_open = true;
        self.state.steps.push(Step { insn: self.insn as u32, prev: self.prev as u32, stack, linked });
    }

    /// Keeps a copy of the current state to go on with at another instruction later.
    pub fn push_path(&mut self, insn: usize) -> Check<&mut State> {
        if self.pending.len() >= self.options.profile.max_pending {
            return Err(Failure::new(
                Errno::EFAULT,
                Reason::JumpSequence,
                format!("more than {} branches are open at once", self.options.profile.max_pending),
            ));
        }
        if let Some(parent) = self.state.parent {
            self.explored.add_branch(parent);
        }
        self.pending.push(Pending { state: self.state.clone(), insn, prev: self.insn });
        let last = self.pending.len() - 1;
        self.stats.peak_pending = self.stats.peak_pending.max(last as u32 + 1);
        Ok(&mut self.pending[last].state)
    }

    /// The register, which must have been written.
    pub fn read_reg(&self, r: u8) -> Check<&Reg> {
        if r > 10 {
            return invalid!(InvalidRegister, "r{r} is not a register");
        }
        let reg = self.state.reg(r);
        if reg.kind == Kind::NotInit {
            return crate::fail::denied!(UninitializedRegister, "r{r} is read before it was written");
        }
        Ok(reg)
    }

    /// Checks that the register may be written.
    pub fn may_write_reg(&self, r: u8) -> Check {
        match r {
            0..=9 => Ok(()),
            10 => crate::fail::denied!(FramePointerWrite, "r10, the frame pointer, is read-only"),
            _ => invalid!(InvalidRegister, "r{r} is not a register"),
        }
    }

    /// Makes the register a number of which nothing is known.
    pub fn set_unknown(&mut self, r: u8) {
        *self.state.reg_mut(r) = Reg::UNKNOWN;
    }

    /// Forgets the registers that a call does not keep.
    pub fn clear_caller_saved(&mut self) {
        for r in 0..=5 {
            *self.state.reg_mut(r) = Reg::NOT_INIT;
        }
    }

    /// Notes a read of stack slots of a frame of the current state.
    pub fn mark_stack_read(&mut self, frame: usize, slots: u64) {
        let instance = self.state.frame().instance;
        self.live.mark_read(instance, self.state.depth().saturating_sub(frame), self.insn, slots);
    }

    /// Notes that the current instruction overwrites a slot whole, without reading it.
    pub fn mark_stack_written(&mut self, frame: usize, slot: usize) {
        self.written[frame & 7] |= 1u64.checked_shl(slot as u32).unwrap_or(0);
    }

    /// Gives a reference that must be released.
    pub fn acquire(&mut self) -> u32 {
        let id = self.new_id();
        self.state.held.push(crate::state::Held { id, insn: self.insn });
        id
    }

    /// Gives a reference back: every pointer with it becomes unusable.
    pub fn release(&mut self, id: u32) -> bool {
        let Some(n) = self.state.held.iter().position(|h| h.id == id) else { return false };
        self.state.held.remove(n);
        let lost = self.lost();
        self.state.change_regs(|r| r.ref_id == id && r.is_pointer(), |r| *r = lost);
        true
    }

    /// Makes every packet pointer unusable.
    pub fn forget_packet(&mut self) {
        let lost = self.lost();
        self.state.forget_packet(lost);
    }

    /// Checks that no lock is held and every section left, and in the entry function that no reference is left.
    pub fn check_nothing_held(&self, doing: &str) -> Check {
        // What a called function holds, its caller holds too.
        self.check_left(doing, self.state.depth() == 0)
    }

    /// Checks that no lock is held and every section left, and perhaps that no reference is left.
    pub fn check_left(&self, doing: &str, references: bool) -> Check {
        if let Some(lock) = self.state.locks.last() {
            return invalid!(LockHeld, "the lock taken at instruction {} is held at {doing}", lock.insn);
        }
        if let Some(h) = self.state.held.first().filter(|_| references) {
            let insn = self.insns.get(h.insn).copied().unwrap_or_default();
            let iterator = Kfuncs::new(self.options).row(insn).is_some_and(|k| k.has(kf::ITER_NEW));
            let (what, done) =
                if iterator { ("iterator made", "destroyed") } else { ("reference acquired", "released") };
            return invalid!(UnreleasedReference, "the {what} at instruction {} is not {done} before {doing}", h.insn);
        }
        self.check_sections_left(doing)
    }

    /// Makes what was a pointer or null the pointer that it is.
    pub fn make_not_null(&self, reg: &mut Reg) {
        crate::map_facts::make_not_null(&self.maps, reg);
    }

    /// The kernel's types; without them programs that need them are not judged.
    pub fn kernel_types(&self) -> Check<Types<'p>> {
        match self.log.names.kernel {
            Some(btf) => Ok(Types::new(btf)),
            None => crate::fail::unsupported!(
                KernelTypes,
                "the program uses objects of the kernel; its types (BTF) are needed to judge that"
            ),
        }
    }

    /// The types that the object behind a [`Kind::Btf`] register is one of: the kernel's or the program's.
    pub fn types_of(&self, reg: &Reg) -> Check<Types<'p>> {
        match self.log.names.program {
            Some(btf) if reg.flags & flag::LOCAL_TYPE != 0 => Ok(Types::new(btf)),
            _ => self.kernel_types(),
        }
    }

    /// What the register holds, with names of types.
    pub fn describe(&self, reg: &Reg) -> String {
        let name = match self.log.names.of(reg) {
            Some(btf) if reg.kind == Kind::Btf => Types::new(btf).title(reg.what),
            _ => return reg.describe(),
        };
        let (what, rest) = (Reg { off: 0, num: Reg::pointer(Kind::Btf).num, ..*reg }.describe(), reg.describe());
        format!("{} ({name}){}", what, rest.get(what.len()..).unwrap_or(""))
    }

    /// Name of a map for messages.
    pub fn map_name(&self, map: u32) -> &str {
        self.maps.get(map as usize).map_or("?", |m| &m.def.name)
    }
}
