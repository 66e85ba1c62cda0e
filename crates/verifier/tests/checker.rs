//! An independent checker: accepted programs are run on a small machine of its own, with random inputs.
//!
//! Each access must stay inside the memory that is there ([`machine`] says when one does not), and at each step every
//! register and stack slot must lie in some state that the verifier went through, where its states can be recorded
//! (programs that are not too long without pruning). `SKEP_CHECK` is the number of runs (default 2000), `SKEP_SEED` the
//! first program. A campaign: `SKEP_CHECK=1000000 cargo test --release -p skep-verifier --test checker -- --nocapture`.

#[path = "differential/generator/mod.rs"]
mod generator;
#[path = "checker/machine.rs"]
mod machine;
mod typed;

use std::sync::Arc;

use skep_ebpf::program::MapDef;
use skep_verifier::record::record;
use skep_verifier::{KernelProfile, Options, verify};

use machine::{Computer, End};

/// Random inputs for each program.
const RUNS: u64 = 8;
/// Instructions of one run.
const STEPS: usize = 4000;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
fn runs_stay_within_the_states() {
    let (count, mut seed) = (env("SKEP_CHECK", 2000), env("SKEP_SEED", 1));
    let maps: Arc<[MapDef]> = generator::maps().into();
    let limit = |max_processed| Options {
        profile: KernelProfile { max_processed, ..KernelProfile::LINUX_6_18 },
        ..Options::default()
    };
    let (short, shorter) = (limit(8000), limit(3000));
    let (mut programs, mut recorded, mut runs, mut steps, mut ended) = (0u64, 0u64, 0u64, 0u64, 0u64);
    let mut faults = Vec::new();
    while runs < count {
        let mut rng = generator::Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let made = generator::program(&mut rng, &maps, seed.is_multiple_of(2));
        seed += 1;
        let Ok(_) = verify(made.program.clone(), &short) else { continue };
        programs += 1;
        let states = record(&made.program, &shorter).ok();
        recorded += u64::from(states.is_some());
        for run in 0..RUNS {
            runs += 1;
            let mut computer = Computer::new(&made.program, seed.wrapping_mul(RUNS) + run);
            let mut left = STEPS;
            let end = loop {
                if let Some(states) = &states
                    && let Err(why) = states.admits(computer.at(), &computer)
                {
                    break End::Fault(format!("instruction {}: no state admits it: {why}", computer.at()));
                }
                steps += 1;
                left -= 1;
                match computer.step() {
                    None if left == 0 => break End::Stopped,
                    None => {}
                    Some(end) => break end,
                }
            };
            match end {
                End::Fault(why) => faults.push(format!("seed {} run {run}: {why}", seed - 1)),
                End::Exit => ended += 1,
                End::Stopped => {}
            }
        }
    }
    println!(
        "{runs} runs of {programs} accepted programs ({recorded} with all states), {steps} steps, {ended} to the end: {} faults",
        faults.len()
    );
    faults.truncate(5);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
