//! Nanoseconds per instruction of the interpreter.
//!
//! `interp-speed OBJECT...`: objects with two `tc` programs, `setup` (run once) and `work` (timed); prints the time of one
//! run of `work`, the instructions that it executes, and its result.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use skep_elf::{LoadOptions, Object};
use support::{Session, skb};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let (mut sum, mut n) = (0.0, 0);
    println!("{:16} {:>10} {:>10} {:>8} {:>12}", "workload", "ns/run", "insns", "ns/insn", "result");
    for path in std::env::args().skip(1) {
        let ns = measure(&path).map_err(|e| format!("{path}: {e}"))?;
        sum += ns.ln();
        n += 1;
    }
    if n > 0 {
        println!("geometric mean {:.2} ns per instruction", (sum / f64::from(n)).exp());
    }
    Ok(())
}

/// Prints a row; returns the nanoseconds per instruction.
fn measure(path: &str) -> Result<f64, Error> {
    let name = std::path::Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let object = Object::parse(&name, &std::fs::read(path)?)?;
    let mut session = Session::new(object.maps())?;
    let compile = |program: &str| -> Result<_, Error> {
        let program = object.program(program, &LoadOptions::default())?;
        let verified = skep_verifier::verify(program, &skep_verifier::Options::default())?;
        Ok(skep_jit::compile(
            &verified,
            &skep_jit::Options { engine: skep_jit::Engine::Interpreter, ..Default::default() },
        )?)
    };
    let (setup, work) = (compile("setup")?, compile("work")?);
    let packet = [0u8; 64];
    let mut ctx = skb(&packet, 0);
    let setup = session.add(&setup);
    session.run(setup, &mut ctx);
    let insns = session.count(&work, &mut ctx);
    let mut machine = session.machine(0);
    let mut result = 0;
    let mut best = Duration::MAX;
    for _ in 0..30 {
        let (start, runs) = (Instant::now(), (2_000_000 / (insns + 10)).clamp(1, 20_000) as u32);
        for _ in 0..runs {
            // SAFETY: a context of the program's type.
            result = unsafe { machine.run_image(work.image_ptr().unwrap(), ctx.as_mut_ptr()) }.retval;
        }
        best = best.min(start.elapsed() / runs);
    }
    let ns = best.as_nanos() as f64;
    println!("{name:16} {ns:10.0} {insns:10} {:8.2} {:>12}", ns / insns as f64, result as u32);
    Ok(ns / insns as f64)
}
