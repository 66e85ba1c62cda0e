//! Rewritten programs do what the programs as loaded do, and what is said of them is true: both run side by side.
//!
//! Three small machines run each accepted random program on the same inputs: the program as loaded, the rewritten one, and
//! the rewritten one with every register (and upper half) overwritten that is said not to be read any more. All three must
//! go the same way with the same values, and each number, address and call must be as the facts say. `SKEP_REWRITES` is
//! the number of runs (default 4000), `SKEP_SEED` the first program.

#[path = "differential/generator/mod.rs"]
mod generator;
#[path = "checker/machine.rs"]
mod machine;
mod typed;

use std::sync::Arc;

use skep_ebpf::insn::{atomic, class, mode, pseudo};
use skep_ebpf::program::{MapDef, Program};
use skep_verifier::record::Machine;
use skep_verifier::rewrite::{MapArg, Memory, Range, RegSet, Rewritten};
use skep_verifier::{KernelProfile, Options, Verified, verify};

use machine::{Computer, End};

const RUNS: u64 = 4;
const STEPS: usize = 3000;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// The rewritten program for the machine, which has the context as the program sees it.
fn rewritten(v: &Verified) -> Program {
    let (loaded, r) = (v.program(), v.rewritten());
    let mut program = loaded.clone();
    program.insns = r.insns().to_vec();
    program.func_info = r.func_info().to_vec();
    for (at, i) in program.insns.iter_mut().enumerate() {
        let origin = r.origin(at).and_then(|o| loaded.insns.get(o as usize)).expect("every instruction has an origin");
        // The machine has no addresses of functions; one that is gone is 0.
        let function = origin.is_ld_imm64() && origin.src() == pseudo::FUNC;
        if r.facts(at).memory == Memory::Ctx || function {
            *i = *origin;
        }
    }
    program
}

/// What must be the same in two machines.
fn same(a: &Computer<'_>, b: &Computer<'_>, live: RegSet, wide: RegSet) -> Result<(), String> {
    if a.frames() != b.frames() {
        return Err(format!("{} frames and {}", a.frames(), b.frames()));
    }
    let frame = a.frames() - 1;
    for r in live.iter().filter(|r| *r < 10) {
        let (x, y) = (a.reg(frame, r.into()), b.reg(frame, r.into()));
        let equal = if wide.has(r) { x == y } else { x as u32 == y as u32 };
        if !equal {
            return Err(format!("r{r} is {x:#x} and {y:#x}"));
        }
    }
    Ok(())
}

/// What is said of the instruction at hand.
fn check_facts(r: &Rewritten, at: usize, c: &Computer<'_>) -> Result<(), String> {
    let (i, facts, frame) = (r.insns()[at], r.facts(at), c.frames() - 1);
    let value = |n: u8| if n < 10 { c.reg(frame, n.into()) } else { c.stack_top(frame) };
    let within = |what: &str, range: Range, n: u8| match range.has(value(n)) || n > 10 {
        true => Ok(()),
        false => Err(format!("{what} r{n} is {:#x}, not in {range:?}", value(n))),
    };
    if !i.is_ld_imm64() {
        within("destination", facts.dst, i.dst().min(10))?;
        within("source", facts.src, i.src().min(10))?;
    }
    let acquires = i.class() == class::STX && i.mode() == mode::ATOMIC && i.imm == atomic::LOAD_ACQ;
    let base = if i.class() == class::LDX || acquires { i.src() } else { i.dst() };
    let address = value(base.min(10)).wrapping_add(i64::from(i.off) as u64);
    let own_stack = address <= c.stack_top(frame) && address >= c.stack_top(frame) - 512;
    let (packet, end) = c.packet();
    let right = match facts.memory {
        Memory::Stack(Some(off)) => address == c.stack_top(frame).wrapping_add(i64::from(off) as u64),
        Memory::Stack(None) => own_stack,
        Memory::CallerStack => (0..frame).any(|f| c.stack_top(f) - 512 <= address && address <= c.stack_top(f)),
        Memory::MapValue(Some(m)) => c.map_offset(m, address).is_some(),
        Memory::Packet => packet <= address && address < end,
        Memory::Ctx => (c.context()..c.context() + 0x1000).contains(&address),
        _ => true,
    };
    if !right {
        return Err(format!("{address:#x} is not {:?}", facts.memory));
    }
    if i.is_helper_call() {
        let site = r.call(at);
        if let (MapArg::One(m), true) = (site.map, i.imm == 1)
            && c.handle(value(1)) != Some(m)
        {
            return Err(format!("{:#x} is not map {m}", value(1)));
        }
        if let (Some(key), 1) = (site.key, i.imm)
            && c.word(value(2)) != Some(key as u32)
        {
            return Err(format!("the key is not {key}"));
        }
    }
    Ok(())
}

/// One run of all three machines; the number of steps, or what went wrong.
fn run(v: &Verified, program: &Program, seed: u64) -> Result<usize, String> {
    let r = v.rewritten();
    let mut loaded = Computer::new(v.program(), seed);
    let mut plain = Computer::new(program, seed);
    let mut poisoned = Computer::new(program, seed);
    poisoned.poison(!r.functions()[0].args, 0);
    for step in 0..STEPS {
        let at = plain.at();
        let origin = r.origin(at).ok_or(format!("instruction {at} is none of the rewritten program"))? as usize;
        // What is gone are jumps.
        let mut skipped = 0;
        while loaded.at() != origin {
            skipped += 1;
            if skipped > v.program().insns.len() || loaded.step().is_some() {
                return Err(format!("instruction {at}: the program as loaded does not come to {origin}"));
            }
        }
        let fault = |what: &str, why| format!("step {step}, instruction {at} (from {origin}): {what}: {why}");
        same(&loaded, &plain, RegSet::ALL, RegSet::ALL).map_err(|e| fault("as loaded and rewritten", e))?;
        check_facts(r, at, &plain).map_err(|e| fault("facts", e))?;
        let frames = plain.frames();
        let (ends, end, poisoned_end) = (loaded.step(), plain.step(), poisoned.step());
        match (ends, end, poisoned_end) {
            (None, None, None) => {}
            (Some(End::Exit), Some(End::Exit), Some(End::Exit)) => return Ok(step),
            // A function that nothing reaches is gone, and its address is a plain number.
            (Some(End::Stopped), _, _) => return Ok(step),
            (a, b, c) => {
                let text = |e: &Option<End>| match e {
                    None => "goes on".into(),
                    Some(End::Exit) => "exits".into(),
                    Some(End::Stopped) => "stops".into(),
                    Some(End::Fault(why)) => why.clone(),
                };
                return Err(fault("ends", format!("{} / {} / {}", text(&a), text(&b), text(&c))));
            }
        }
        if plain.at() != poisoned.at() {
            return Err(fault("without what is not read", format!("at {} and {}", plain.at(), poisoned.at())));
        }
        // What a function that returned to its caller needs there was live at the call.
        let came_from = if plain.frames() < frames { plain.at() - 1 } else { at };
        let (live, wide) = match plain.frames() > frames {
            true => (r.functions()[r.function_of(plain.at())].args, RegSet::ALL),
            false => (r.facts(came_from).live_after, r.facts(came_from).wide_after),
        };
        same(&plain, &poisoned, live, wide).map_err(|e| fault("without what is not read", e))?;
        poisoned.poison(!live, (!wide).0.into());
    }
    Ok(STEPS)
}

#[test]
fn rewritten_programs_do_the_same() {
    let (count, mut seed) = (env("SKEP_REWRITES", 4000), env("SKEP_SEED", 1));
    let maps: Arc<[MapDef]> = generator::maps().into();
    let profile = KernelProfile { max_processed: 8000, ..KernelProfile::LINUX_6_18 };
    let options = Options { profile, ..Options::default() };
    let (mut runs, mut programs, mut steps, mut gone) = (0u64, 0u64, 0usize, 0usize);
    let mut faults = Vec::new();
    while runs < count {
        let mut rng = generator::Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let made = generator::program(&mut rng, &maps, seed.is_multiple_of(2));
        seed += 1;
        let Ok(v) = verify(made.program, &options) else { continue };
        programs += 1;
        gone += v.program().insns.len() - v.rewritten().insns().len();
        let program = rewritten(&v);
        for n in 0..RUNS {
            runs += 1;
            match run(&v, &program, seed.wrapping_mul(RUNS) + n) {
                Ok(n) => steps += n,
                Err(why) => faults.push(format!("seed {} run {n}: {why}", seed - 1)),
            }
        }
    }
    println!(
        "{runs} runs of {programs} programs, {steps} steps; {gone} instructions were gone; {} faults",
        faults.len()
    );
    faults.truncate(5);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(gone > 0 && steps > 0);
}
