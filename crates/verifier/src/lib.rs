//! Proves eBPF programs safe, with the verdict of the Linux verifier.
//!
//! [`verify`] follows every path of a [`Program`], tracking what each register and stack slot can hold, and gives either
//! a [`Verified`] program (which nothing else can make) or a [`Rejection`] that says what is wrong. What the checker does
//! not understand is [`Outcome::Unsupported`], never accepted.

mod absent;
mod arith;
mod blocks;
mod branch;
mod callbacks;
mod cfg;
mod check_alu;
mod check_call;
mod check_insn;
mod check_jmp;
mod check_mem;
mod compare;
mod const_string;
mod context_type;
mod ctx;
mod dynptr;
mod env;
mod exceptions;
mod explain;
mod explored;
mod fail;
mod global_calls;
mod globals;
mod helper_args;
mod helper_objects;
mod hook;
mod hook_context;
mod hook_facts;
mod hook_helpers;
mod host;
mod irq;
mod iterators;
mod kernel_object;
mod kernel_symbol;
mod kernel_types;
mod kernel_writes;
mod kfunc;
mod liveness;
mod log;
mod map_facts;
mod map_helpers;
mod map_object;
mod needs_kernel;
mod object;
mod precision;
mod privilege;
mod profile;
mod prog_type;
mod prune;
mod rcu;
mod reason;
pub mod record;
mod recorder;
mod reg;
pub mod rewrite;
mod scalar;
mod scc;
mod sections;
#[cfg(test)]
mod small_widths;
mod speculation;
mod spill_pairs;
mod stack;
mod stack_depth;
mod stack_object;
mod state;
mod target;
mod tnum;
mod vintage;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use skep_ebpf::Errno;
use skep_ebpf::btf::Btf;
use skep_ebpf::insn::Insn;
use skep_ebpf::program::{LineInfo, Program};
use skep_ebpf::uapi::{MapType, prog_flags};

pub use explain::{Addition, Deed, Explanation, Step, Value, explain};
pub use host::{HostContext, HostField, HostFunction, HostKind};
pub use needs_kernel::NeedsKernel;
pub use object::{check_map_types, has_special_fields, spin_lock_of};
pub use privilege::Privilege;
pub use profile::KernelProfile;
pub use reason::Reason;
pub use rewrite::Rewritten;
pub use scalar::Scalar;
pub use target::{Target, check_target};
pub use tnum::Tnum;

use env::Env;
use fail::{Check, Failure, unsupported};

/// How to verify.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The kernel whose verdict is asked for.
    pub profile: KernelProfile,
    /// That kernel's types: what pointers to kernel objects and calls of kernel functions are judged by. Without them
    /// programs that use either are not judged.
    pub btf: Option<Arc<Btf>>,
    /// What the loading process may do.
    pub privilege: Privilege,
    /// The program whose function this one is attached to or replaces.
    pub target: Option<Target>,
    /// The program is loaded for one network device, as `prog_ifindex` with `BPF_F_XDP_DEV_BOUND_ONLY` asks.
    pub device_bound: bool,
    /// The program is for a hook of an application, whose context is described here: it has no type (`ProgType::Unspec`).
    pub host: Option<Arc<HostContext>>,
    /// `btf` has the types of a process, not of a kernel: the program runs around one of its functions, and what it is given
    /// pointers to is the process's own memory.
    pub process: bool,
    /// Save a state at every point where paths meet (also set by the program's `TEST_STATE_FREQ` flag).
    pub save_often: bool,
    /// Keep a trace of the states before each instruction.
    pub log: bool,
}

/// What the work was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Instructions on all paths.
    pub insns_processed: u64,
    /// States saved.
    pub states: u32,
    /// Most states looked through at one instruction.
    pub states_per_insn: u32,
    /// Most states kept at once.
    pub peak_states: u32,
    /// Most branches open at once.
    pub peak_pending: u32,
    /// Time taken.
    pub duration: Duration,
}

/// A function of a verified program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subprog {
    /// Its first instruction.
    pub start: u32,
    /// The instruction behind its last.
    pub end: u32,
    /// Bytes of stack that it uses, at most 512.
    pub stack_depth: u32,
    /// It is global: checked on its own, and replaceable.
    pub global: bool,
    /// Some path enters it.
    pub reachable: bool,
}

/// A program that is safe to run.
#[derive(Clone, Debug)]
pub struct Verified {
    program: Program,
    insns: Vec<Insn>,
    subprogs: Vec<Subprog>,
    stats: Stats,
    helpers: Vec<u32>,
    maps: Vec<u32>,
    ctx_reads: Vec<(u32, u32)>,
    target: target::TargetFacts,
    needs_kernel: Option<NeedsKernel>,
    buffers: [u32; 2],
    visits: Vec<u32>,
    log: String,
    found: rewrite::Findings,
    btf: Option<Arc<Btf>>,
    host: Option<Arc<HostContext>>,
    process: bool,
    rewritten: OnceLock<Arc<Rewritten>>,
}

impl Verified {
    /// The program as it was loaded.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The instructions to run: context loads converted, unreachable code replaced by traps; same indices.
    pub fn insns(&self) -> &[Insn] {
        &self.insns
    }

    /// The program to run, without what is never reached, and what is known of it. Worked out when first asked for.
    pub fn rewritten(&self) -> &Rewritten {
        let make = || {
            Arc::new(rewrite::rewrite(self, &self.found, kfunc::Kfuncs::of(self.btf.as_deref(), self.host.as_deref())))
        };
        self.rewritten.get_or_init(make)
    }

    /// The functions, in order of their instructions; the first is the main one.
    pub fn subprogs(&self) -> &[Subprog] {
        &self.subprogs
    }

    /// What the work was.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The context of an application's hook, if the program is for one.
    pub fn host(&self) -> Option<&Arc<HostContext>> {
        self.host.as_ref()
    }

    /// True if it was judged by the types of a process ([`Options::process`]).
    pub fn is_for_process(&self) -> bool {
        self.process
    }

    /// Numbers of the helpers that are called, sorted.
    pub fn helpers(&self) -> &[u32] {
        &self.helpers
    }

    /// Indices of the maps that are used, sorted.
    pub fn maps(&self) -> &[u32] {
        &self.maps
    }

    /// How often each instruction was looked at.
    pub fn visits(&self) -> &[u32] {
        &self.visits
    }

    /// The kernel's types that it was judged by: what its calls of kernel functions name.
    pub fn kernel_types(&self) -> Option<&Btf> {
        self.btf.as_deref()
    }

    /// Why only a kernel could run it: it handles the kernel's own objects.
    pub fn needs_kernel(&self) -> Option<&NeedsKernel> {
        self.needs_kernel.as_ref()
    }

    /// How many bytes of the buffers that an iterator gives it are accessed: of keys, which are only read, and of values.
    pub fn buffers(&self) -> [u32; 2] {
        self.buffers
    }

    /// The trace of states, if it was asked for.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Parts of the context that are read: first byte and the one behind the last, sorted.
    pub fn ctx_reads(&self) -> &[(u32, u32)] {
        &self.ctx_reads
    }
}

/// Why a program was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel would refuse it.
    Rejected,
    /// Skep cannot judge it yet.
    Unsupported,
}

/// A program that was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{message}", at(insn))]
pub struct Rejection {
    /// Refused, or not judged.
    pub outcome: Outcome,
    /// What `BPF_PROG_LOAD` fails with.
    pub errno: Errno,
    /// The instruction, in the program as loaded; `None` where no single one is to blame.
    pub insn: Option<u32>,
    /// The rule, as a stable identifier.
    pub reason: &'static str,
    /// What happened, in words.
    pub message: String,
    /// Instructions processed until then.
    pub insns_processed: u64,
    /// What the work was until then.
    pub stats: Stats,
    /// How often each instruction was looked at.
    pub visits: Vec<u32>,
    /// The source line of the instruction.
    pub line: Option<LineInfo>,
    /// The trace of states, if it was asked for.
    pub log: String,
}

fn at(insn: &Option<u32>) -> String {
    insn.map_or(String::new(), |n| format!("instruction {n}: "))
}

/// Verifies a program.
pub fn verify(program: Program, options: &Options) -> Result<Verified, Box<Rejection>> {
    let mut progress = Progress::default();
    match check(&program, options, &mut progress) {
        Ok(parts) => Ok(Verified {
            insns: parts.insns,
            subprogs: parts.subprogs,
            stats: progress.stats,
            helpers: parts.helpers,
            maps: parts.maps,
            ctx_reads: parts.ctx_reads,
            target: parts.target,
            needs_kernel: parts.needs_kernel,
            buffers: parts.buffers,
            visits: progress.visits,
            log: progress.log,
            found: parts.found,
            btf: options.btf.clone(),
            host: options.host.clone(),
            process: options.process,
            rewritten: OnceLock::new(),
            program,
        }),
        Err(f) => {
            let f = absent::doubted(f, &program, options, &progress);
            Err(rejection(&program, &f, progress))
        }
    }
}

fn rejection(program: &Program, f: &Failure, progress: Progress) -> Box<Rejection> {
    let insn = if f.whole_program { None } else { Some(f.insn.unwrap_or(progress.insn) as u32) };
    Box::new(Rejection {
        outcome: if f.unsupported { Outcome::Unsupported } else { Outcome::Rejected },
        errno: f.errno,
        insn,
        reason: f.reason.id(),
        message: f.message.clone(),
        insns_processed: progress.stats.insns_processed,
        stats: progress.stats,
        visits: progress.visits,
        line: insn.and_then(|n| program.line_of(n as usize)).cloned(),
        log: progress.log,
    })
}

/// How far the work got, for those who fail as well.
#[derive(Default)]
struct Progress {
    stats: Stats,
    insn: usize,
    log: String,
    visits: Vec<u32>,
    recorder: Option<Box<recorder::Recorder>>,
}

struct Parts {
    insns: Vec<Insn>,
    subprogs: Vec<Subprog>,
    helpers: Vec<u32>,
    maps: Vec<u32>,
    ctx_reads: Vec<(u32, u32)>,
    target: target::TargetFacts,
    needs_kernel: Option<NeedsKernel>,
    buffers: [u32; 2],
    found: rewrite::Findings,
}

fn check(program: &Program, options: &Options, progress: &mut Progress) -> Check<Parts> {
    with_env(program, options, |env| judge(program, env, progress))
}

/// Makes all ready to judge a program.
fn with_env<R>(program: &Program, options: &Options, judge: impl FnOnce(&mut Env<'_>) -> Check<R>) -> Check<R> {
    check_program(program, options).map_err(|f| f.whole())?;
    let mut options = options.clone();
    options.save_often |= program.flags & prog_flags::TEST_STATE_FREQ != 0;
    let exception_callback = exceptions::callback(program)?;
    let kernel = options.btf.as_deref();
    let structs = match program.btf.as_deref().map(|btf| object::Structs::collect(btf, kernel)) {
        None => object::Structs::default(),
        Some(Ok(structs)) => structs,
        Some(Err(errno)) => {
            let refused = unsupported!(UnsupportedFeature, "the kernel refuses the program's BTF: {}", errno.text());
            return refused.map_err(|f: Box<Failure>| f.whole());
        }
    };
    let effective = target::effective(program, options.target.as_ref());
    kfunc::check_calls(effective.as_ref().unwrap_or(program), &options)?;
    let maps = map_facts::collect(program, kernel, &structs);
    let cfg = cfg::Cfg::build(&program.insns, kfunc::Kfuncs::new(&options), exception_callback)?;
    vintage::check_loops(&cfg, &options.profile)?;
    privilege::check_loops(&cfg, options.privilege)?;
    map_facts::check_references(program, &maps, &options)?;
    let moves_packet = cfg.functions.first().is_some_and(|f| f.moves_packet);
    let hook = hook::resolve(program, &options, moves_packet)?;
    let mut env = Env::new(effective.as_ref().unwrap_or(program), &options, cfg, maps, structs);
    env.hook = hook;
    env.note_hook();
    env.find_spill_pairs();
    globals::find(env.prog, &options, &env.cfg, &mut env.functions)?;
    judge(&mut env)
}

fn judge(program: &Program, env: &mut Env<'_>, progress: &mut Progress) -> Check<Parts> {
    env.recorder = progress.recorder.take();
    let result = env.run();
    env.log.end_line();
    *progress = Progress {
        stats: env.stats,
        insn: env.insn,
        log: std::mem::take(&mut env.log.text),
        visits: env.facts.iter().map(|f| f.visits).collect(),
        recorder: env.recorder.take(),
    };
    result?;
    kfunc::check_unreached(program, env.options)?;

    let reachable = |start: usize| env.facts.get(start).is_some_and(|f| f.seen);
    let subprogs = env
        .cfg
        .functions
        .iter()
        .zip(&env.functions)
        .map(|(f, facts)| Subprog {
            start: f.start as u32,
            end: f.end as u32,
            stack_depth: facts.stack_depth,
            global: facts.global.is_some(),
            reachable: reachable(f.start),
        })
        .collect();
    let mut helpers = std::mem::take(&mut env.helpers);
    helpers.sort_unstable();
    let mut ctx_reads = std::mem::take(&mut env.ctx_reads);
    ctx_reads.sort_unstable();
    let found = rewrite::Findings {
        notes: std::mem::take(&mut env.notes),
        reached: env.facts.iter().map(|f| f.seen).collect(),
        pointer_loads: (0..).zip(&env.facts).filter_map(|(n, f)| Some((n, f.pointer_load?))).collect(),
        spill_pairs: (0..).zip(&env.facts).filter(|(_, f)| f.spill_pair).map(|(n, _)| n).collect(),
        called_back: env.functions.iter().map(|f| f.called_back).collect(),
        catches: env.cfg.exception_callback,
        arena_as_it_is: program
            .maps
            .iter()
            .any(|m| m.map_type == MapType::Arena && m.flags & skep_ebpf::uapi::map_flags::NO_USER_CONV != 0),
    };
    Ok(Parts {
        insns: rewrite::in_place(&program.insns, &found),
        found,
        subprogs,
        helpers,
        maps: used_maps(program, &env.facts),
        ctx_reads,
        target: target::facts(program, env),
        needs_kernel: env.needs_kernel.take(),
        buffers: env.buffers,
    })
}

/// What can be said before looking at the instructions.
fn check_program(program: &Program, options: &Options) -> Check {
    let n = program.insns.len();
    if n == 0 || n > options.profile.max_insns {
        return Err(Failure::new(
            Errno::E2BIG,
            Reason::ProgramSize,
            format!("the program has {n} instructions; 1 to {} are possible", options.profile.max_insns),
        ));
    }
    vintage::check(program, &options.profile)?;
    privilege::check_program(program, options.privilege)?;
    prog_type::check(program, options)
}

/// The maps that reachable instructions name.
fn used_maps(program: &Program, facts: &[env::Fact]) -> Vec<u32> {
    use skep_ebpf::insn::pseudo;
    let named = program
        .insns
        .iter()
        .zip(facts)
        .filter(|(i, f)| f.seen && i.is_ld_imm64() && matches!(i.src(), pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE));
    let mut maps: Vec<u32> = named.map(|(i, _)| i.imm as u32).collect();
    maps.sort_unstable();
    maps.dedup();
    maps
}
