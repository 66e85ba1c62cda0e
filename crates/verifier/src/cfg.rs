//! The shape of a program: functions, edges, reachability, and the points where paths meet.

use skep_ebpf::helper::{self, Helper};
use skep_ebpf::insn::{self, Insn, class, jmp, mode, pseudo};
use skep_ebpf::kfunc::flag;

use crate::fail::{Check, Failure, denied, invalid};
use crate::kfunc::{self, Kfuncs};
use crate::reason::Reason;

/// A function of the program as its instructions show it.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub start: usize,
    pub end: usize,
    /// It, or a function that it calls, moves packet data.
    pub moves_packet: bool,
    /// It tail-calls.
    pub tail_calls: bool,
    /// It, or a function that it calls, may sleep.
    pub sleeps: bool,
    /// It throws an exception.
    pub throws: bool,
    /// It loads packet data by `LD_ABS` or `LD_IND`.
    pub loads_packet: bool,
    /// Functions that it calls or has called back.
    pub calls: Vec<usize>,
    /// Those that it calls itself.
    pub calls_directly: Vec<usize>,
}

/// What is special about an instruction's place.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Point {
    /// Worth comparing with earlier states.
    pub prune: bool,
    /// Reached by a jump, so the path must record where it came from.
    pub jump: bool,
    /// A state is saved here each time.
    pub force: bool,
    /// A helper call that calls back a function while it runs.
    pub calls_back: bool,
    /// A kernel function that moves an open-coded iterator on.
    pub iter_next: bool,
    /// Second slot of a 64-bit immediate.
    pub second_half: bool,
}

/// The control flow graph.
#[derive(Debug)]
pub(crate) struct Cfg {
    pub functions: Vec<Function>,
    /// The function that exceptions end in.
    pub exception_callback: Option<usize>,
    pub points: Vec<Point>,
    /// The loop that each instruction is in, 0 for none.
    pub loops: Vec<u32>,
}

/// Where an instruction may go on inside its function.
#[derive(Clone, Copy)]
pub(crate) struct Successors {
    pub next: Option<usize>,
    pub target: Option<usize>,
}

impl Successors {
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.next.into_iter().chain(self.target)
    }
}

/// Target of a jump instruction, as a signed index.
pub(crate) fn jump_target(at: usize, i: Insn) -> i64 {
    let distance = if i.code == insn::JA32 { i64::from(i.imm) } else { i64::from(i.off) };
    at as i64 + 1 + distance
}

/// True for jumps: conditional, unconditional, `may_goto`.
pub(crate) fn is_jump(i: Insn) -> bool {
    matches!(i.class(), class::JMP | class::JMP32) && !matches!(i.op(), jmp::CALL | jmp::EXIT)
}

/// True for unconditional jumps.
pub(crate) fn is_goto(i: Insn) -> bool {
    matches!(i.class(), class::JMP | class::JMP32) && i.op() == jmp::JA
}

/// Successors of a valid instruction inside its function.
pub(crate) fn successors(insns: &[Insn], at: usize) -> Successors {
    let i = insns[at];
    let target = || usize::try_from(jump_target(at, i)).ok().filter(|t| *t < insns.len());
    if i.is_exit() {
        Successors { next: None, target: None }
    } else if is_goto(i) {
        Successors { next: None, target: target() }
    } else if is_jump(i) {
        Successors { next: Some(at + 1).filter(|n| *n < insns.len()), target: target() }
    } else {
        let width = if i.is_ld_imm64() { 2 } else { 1 };
        Successors { next: Some(at + width).filter(|n| *n < insns.len()), target: None }
    }
}

/// The function that a call or a function pointer names.
pub(crate) fn callee(at: usize, i: Insn) -> i64 {
    at as i64 + 1 + i64::from(i.imm)
}

impl Cfg {
    /// Builds the graph and makes the checks that need no data flow.
    pub fn build(insns: &[Insn], kfuncs: Kfuncs<'_>, exception_callback: Option<usize>) -> Check<Cfg> {
        let mut cfg = Cfg {
            functions: Vec::new(),
            points: vec![Point::default(); insns.len()],
            loops: Vec::new(),
            exception_callback: None,
        };
        cfg.find_functions(insns, exception_callback)?;
        cfg.exception_callback = exception_callback.and_then(|start| cfg.function_at(start));
        cfg.check_jumps(insns, kfuncs)?;
        cfg.walk(insns, kfuncs)?;
        cfg.loops = crate::scc::find(insns, &cfg.points);
        cfg.spread_effects();
        Ok(cfg)
    }

    /// The function that starts at this instruction.
    pub fn function_at(&self, start: usize) -> Option<usize> {
        self.functions.binary_search_by_key(&start, |f| f.start).ok()
    }

    fn find_functions(&mut self, insns: &[Insn], exception_callback: Option<usize>) -> Check {
        let mut starts = vec![0];
        starts.extend(exception_callback.filter(|at| *at < insns.len()));
        let mut at = 0;
        while let Some(&i) = insns.get(at) {
            let wide = i.is_ld_imm64();
            let pointer = wide && i.src() == pseudo::FUNC;
            if i.is_subprog_call() || pointer {
                let target = usize::try_from(callee(at, i)).ok().filter(|t| *t < insns.len());
                let Some(target) = target else {
                    return Err(Failure::new(
                        skep_ebpf::Errno::EINVAL,
                        Reason::CallTarget,
                        format!("the call at {at} leads to instruction {}, outside of the program", callee(at, i)),
                    )
                    .at(at));
                };
                starts.push(target);
            }
            if wide {
                if let Some(p) = self.points.get_mut(at + 1) {
                    p.second_half = true;
                }
                at += 1;
            }
            at += 1;
        }
        starts.sort_unstable();
        starts.dedup();
        if starts.len() > 256 {
            return Err(Failure::new(
                skep_ebpf::Errno::E2BIG,
                Reason::ProgramSize,
                format!("the program has {} functions, at most 256 are possible", starts.len()),
            ));
        }
        for (n, &start) in starts.iter().enumerate() {
            self.functions.push(Function {
                start,
                end: starts.get(n + 1).copied().unwrap_or(insns.len()),
                moves_packet: false,
                tail_calls: false,
                sleeps: false,
                throws: false,
                loads_packet: false,
                calls: Vec::new(),
                calls_directly: Vec::new(),
            });
        }
        Ok(())
    }

    fn check_jumps(&mut self, insns: &[Insn], kfuncs: Kfuncs<'_>) -> Check {
        for n in 0..self.functions.len() {
            let (start, end) = (self.functions[n].start, self.functions[n].end);
            let mut at = start;
            let mut last = start;
            while at < end {
                let i = insns[at];
                last = at;
                if i.is_helper_call() {
                    if i.imm == 12 {
                        self.functions[n].tail_calls = true;
                    }
                    if let Some(h) = Helper::by_id(i.imm as u32) {
                        self.functions[n].moves_packet |= h.has(helper::MOVES_PKT);
                        self.functions[n].sleeps |= h.has(helper::SLEEPS);
                    }
                } else if let Some(k) = kfuncs.row(i) {
                    self.functions[n].moves_packet |= kfunc::moves_packet(k.name);
                    self.functions[n].sleeps |= k.has(flag::SLEEPABLE);
                    self.functions[n].throws |= k.name == "bpf_throw";
                } else if i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC {
                    if let Some(callee) = usize::try_from(callee(at, i)).ok().and_then(|t| self.function_at(t)) {
                        let f = &mut self.functions[n];
                        if !f.calls.contains(&callee) {
                            f.calls.push(callee);
                        }
                        if i.is_subprog_call() && !f.calls_directly.contains(&callee) {
                            f.calls_directly.push(callee);
                        }
                    }
                } else if i.class() == class::LD && matches!(i.mode(), mode::ABS | mode::IND) {
                    self.functions[n].loads_packet = true;
                } else if is_jump(i) {
                    let target = jump_target(at, i);
                    if target < start as i64 || target >= end as i64 {
                        return Err(Failure::new(
                            skep_ebpf::Errno::EINVAL,
                            Reason::JumpOutOfRange,
                            format!("the jump at {at} leads to instruction {target}, outside of its function ({start} to {})", end - 1),
                        )
                        .at(at));
                    }
                }
                at += if i.is_ld_imm64() { 2 } else { 1 };
            }
            let i = insns[last];
            if !i.is_exit() && !is_goto(i) {
                return Err(Failure::new(
                    skep_ebpf::Errno::EINVAL,
                    Reason::FallThrough,
                    format!("the function that starts at {start} ends at {last} without exit or jump"),
                )
                .at(last));
            }
        }
        Ok(())
    }

    /// Marks what can be reached, and the points where paths meet.
    fn walk(&mut self, insns: &[Insn], kfuncs: Kfuncs<'_>) -> Check {
        let mut seen = vec![false; insns.len()];
        let mut todo = vec![0usize];
        todo.extend(self.exception_callback.and_then(|f| Some(self.functions.get(f)?.start)));
        while let Some(at) = todo.pop() {
            if self.points[at].second_half {
                return invalid!(
                    InvalidLoadImmediate,
                    "a jump leads into the middle of the 64-bit immediate at {}",
                    at - 1
                )
                .map_err(|f: Box<Failure>| f.at(at));
            }
            if seen[at] {
                continue;
            }
            seen[at] = true;
            let i = insns[at];
            if i.is_ld_imm64() {
                if let Some(s) = seen.get_mut(at + 1) {
                    *s = true;
                }
                if i.src() == pseudo::FUNC
                    && let Ok(t) = usize::try_from(callee(at, i))
                {
                    self.mark(at, |p| p.prune = true);
                    self.mark(at + 2, |p| (p.prune, p.jump) = (true, true));
                    self.mark(t, |p| (p.prune, p.jump) = (true, true));
                    todo.push(t);
                }
            } else if i.is_subprog_call() {
                self.mark(at + 1, |p| (p.prune, p.jump) = (true, true));
                self.mark(at, |p| p.prune = true);
                if let Ok(t) = usize::try_from(callee(at, i)) {
                    self.mark(t, |p| (p.prune, p.jump) = (true, true));
                    todo.push(t);
                }
            } else if i.class() == class::JMP && i.op() == jmp::CALL {
                self.mark(at + 1, |p| (p.prune, p.jump) = (true, true));
                let calls = i.is_helper_call() && Helper::by_id(i.imm as u32).is_some_and(|h| h.has(helper::CALLBACK));
                if calls {
                    let is_async = i.imm == 170;
                    self.mark(at, |p| {
                        p.prune = true;
                        if !is_async {
                            (p.jump, p.force, p.calls_back) = (true, true, true);
                        }
                    });
                }
                if let Some(k) = kfuncs.row(i) {
                    let (next, back) = (k.has(flag::ITER_NEXT), kfunc::calls_back(k.name));
                    self.mark(at, |p| {
                        p.prune |= next || back || kfunc::calls_later(k.name);
                        p.force |= next || back;
                        (p.iter_next, p.jump, p.calls_back) = (next, p.jump || back, back);
                    });
                }
            } else if is_jump(i) {
                if !is_goto(i) {
                    let force = i.op() == jmp::JCOND;
                    self.mark(at, |p| {
                        p.prune = true;
                        p.force |= force;
                    });
                }
                if let Ok(t) = usize::try_from(jump_target(at, i)) {
                    self.mark(t, |p| (p.prune, p.jump) = (true, true));
                }
            }
            let s = successors(insns, at);
            if s.next.is_none() && !i.is_exit() && !is_goto(i) {
                return denied!(FallThrough, "instruction {at} runs off the end of the program")
                    .map_err(|f: Box<Failure>| f.at(at));
            }
            todo.extend(s.iter());
        }
        match seen.iter().position(|s| !s) {
            None => Ok(()),
            Some(at) => Err(Failure::new(
                skep_ebpf::Errno::EINVAL,
                Reason::UnreachableCode,
                format!("instruction {at} can never be reached"),
            )
            .at(at)),
        }
    }

    fn mark(&mut self, at: usize, set: impl FnOnce(&mut Point)) {
        if let Some(p) = self.points.get_mut(at) {
            set(p);
        }
    }

    /// What a function does, those that call it do.
    fn spread_effects(&mut self) {
        loop {
            let mut changed = false;
            for n in 0..self.functions.len() {
                let of_callees = self.functions[n].calls.iter().filter_map(|c| self.functions.get(*c));
                let (moves, sleeps) = of_callees.fold((false, false), |(m, s), f| (m || f.moves_packet, s || f.sleeps));
                let f = &mut self.functions[n];
                changed |= moves && !f.moves_packet || sleeps && !f.sleeps;
                f.moves_packet |= moves;
                f.sleeps |= sleeps;
            }
            if !changed {
                return;
            }
        }
    }
}
