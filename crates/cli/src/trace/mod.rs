//! `skep trace`: an object's programs on functions of processes.

mod executable;
mod folded;
pub mod plan;
mod report;
mod sampled;
mod status;
mod target;
mod tracing;
mod typed;
mod usdt;

use std::collections::HashSet;

use skep::Symbols;
use skep::subsystem::attach::{Injector, ProbeSpec};
use skep::subsystem::place::What;
use skep::subsystem::session::{Options, Session};
use skep::subsystem::signals::EndSignals;
use skep::subsystem::target::probe;

use crate::args::{self, Trace};
use crate::load::{Linker, object};
use crate::road;
use crate::{Failure, records, say};
use executable::Executables;
use plan::Placement;
use report::Report;
use sampled::Sampling;
use tracing::Tracing;
use typed::Typed;
use usdt::{Site, Specs};

/// Most vCPU slots: each per-CPU map has a value for each.
const MAX_SLOTS: u32 = 1024;

pub fn main(args: &Trace) -> Result<u8, Failure> {
    // Before any thread is made, so that all have them blocked.
    let signals = EndSignals::catch().map_err(|e| Failure::Input(format!("signals: {e}")))?;
    let input = object(&args.object)?;
    let mut plan = plan::plan(&input.object, &args.funcs)?;
    let mut specs = Specs::default();
    for (program, spec) in &plan.usdt {
        for Site { place, cookie, counter } in specs.sites(spec, args)? {
            let program = program.clone();
            plan.placements.push(Placement { program, place, typed: false, index: 0, cookie, counter });
        }
    }
    if plan.placements.is_empty() && plan.sampled.is_empty() {
        let why: Vec<_> = plan.left_out.iter().map(|(name, why)| format!("\n  {name}: {why}")).collect();
        return Err(Failure::Input(format!("{}: no program can be attached{}", input.path, why.concat())));
    }
    for (name, why) in &plan.left_out {
        say(format_args!("note: program {name} is left out: {why}"));
    }
    let btf = input.object.btf().map(|b| &**b);
    let types = records::types(btf, input.object.maps(), &args.events).map_err(Failure::input)?;

    let linker = Linker::new(&args.load);
    let plain = plan.placements.iter().filter(|p| !p.typed);
    let mut names: Vec<String> = plain.map(|p| p.program.clone()).collect();
    names.extend(plan.sampled.iter().cloned());
    names.extend(plan::called(&input.object));
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let programs = names.iter().map(|name| road::verified(&input.object, &linker, name));
    let mut programs = programs.collect::<Result<Vec<_>, _>>()?;
    // Those with types are judged by the function that they are for: one each.
    let mut typed = Typed::new(args);
    let mut placements = plan.placements;
    for p in &mut placements {
        p.index = match p.typed {
            false => names.iter().position(|n| *n == p.program).unwrap_or(0),
            true => {
                programs.push(typed.verified(&input.object, p)?);
                programs.len() - 1
            }
        };
    }
    let engine = args::Engine::or_best(args.engine);
    let symbols = Symbols {
        perf_map: args.perf_map,
        jitdump: args.jitdump.clone(),
        // Only the process that is traced runs programs.
        others_only: true,
        ..Symbols::default()
    };
    let injector = Injector::spawn().map_err(Failure::input)?;
    let executables = Executables::new(&args.exe, &[std::process::id(), injector.pid()])?;
    let slots = slots(args, &executables);
    let links = (placements.len() + plan.sampled.len()) as u32;
    let options = Options { links, slots, engine, symbols, ..Options::default() };
    let mut session = road::session(programs, &options)?;
    let probes = link(&mut session, &placements)?;
    specs.fill(&session, btf)?;
    let sampling = Sampling::new(&mut session, &plan.sampled, args)?;

    let mut report = Report::new(args.json, btf, types);
    if let ([pid], true, false) = (&args.pid[..], executables.is_empty(), args.follow) {
        report.only = Some(*pid);
    }
    Tracing::new(&session, &placements, probes, injector, signals, executables, sampling, report, args).trace(args)
}

/// A slot for each thread that runs programs at a time: threads of several processes are more than those of one.
fn slots(args: &Trace, executables: &Executables) -> u32 {
    let default = Options::default().slots;
    let found = executables.running();
    if args.exe.is_empty() && args.pid.len() < 2 && !args.follow {
        return default;
    }
    let threads = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count) as u32;
    let threads: u32 = args.pid.iter().chain(&found).map(threads).fold(0, u32::saturating_add);
    let more = if args.follow { 2 } else { 1 };
    threads.saturating_mul(4).max(more * default).clamp(default, MAX_SLOTS.max(default))
}

/// Links every placement.
fn link(session: &mut Session, placements: &[Placement]) -> Result<Vec<ProbeSpec>, Failure> {
    let one = |p: &Placement| {
        let link = match &p.place.what {
            What::Syscalls(calls) => session.link_syscalls(p.index, calls, p.cookie)?,
            _ => session.link(p.index, p.place.when, p.cookie)?,
        };
        Ok(probe(link, &p.place))
    };
    placements
        .iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map_err(|e: skep::subsystem::session::SessionError| Failure::input(e))
}
