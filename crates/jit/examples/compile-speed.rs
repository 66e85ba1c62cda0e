//! Nanoseconds per instruction that machine code takes to make: `compile-speed [INSTRUCTIONS [ROUNDS]]`; best and median.

#[path = "../tests/support/straight.rs"]
mod straight;

use std::time::Instant;

use skep_ebpf::program::Program;
use skep_ebpf::uapi::ProgType;
use skep_jit::{Engine, Options, compile};
use skep_verifier::verify;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arg = |n: usize, default: usize| std::env::args().nth(n).map_or(Ok(default), |a| a.parse());
    let (len, rounds) = (arg(1, 50_000)?, arg(2, 50)?);
    let insns = straight::straight(len, 0x1234_5678_9abc_def1);
    let verified = verify(Program::new("big", ProgType::SchedCls, "GPL", insns), &Default::default())?;
    let start = Instant::now();
    let n = verified.rewritten().insns().len() as f64;
    println!("{n} instructions; rewritten in {:.1} ns each", start.elapsed().as_nanos() as f64 / n);
    let options = Options { engine: Engine::Jit, ..Options::default() };
    let (mut figures, mut size) = (Vec::new(), 0);
    for _ in 0..rounds {
        let start = Instant::now();
        let compiled = compile(&verified, &options)?;
        figures.push(start.elapsed().as_nanos() as f64 / n);
        size = compiled.machine_code().map_or(0, <[u8]>::len);
    }
    figures.sort_by(f64::total_cmp);
    println!("best {:.1}, median {:.1} ns each; {:.2} bytes", figures[0], figures[rounds / 2], size as f64 / n);
    Ok(())
}
