//! An independent checker: accepted programs are run on a small machine of its own, with random inputs.
//!
//! Each access must stay inside the memory that is there ([`machine`] says when one does not), and before each step every
//! register and stack slot must lie in the verifier's state, which follows the run ([`runs`]). `SKEP_CHECK` is the number
//! of runs (default 2000), `SKEP_SEED` the first program. A campaign: `SKEP_CHECK=1000000 cargo test --release -p
//! skep-verifier --test checker -- --nocapture`. The programs of the corpus are run by `--test corpus`.

#[path = "differential/generator/mod.rs"]
mod generator;
#[path = "checker/machine.rs"]
mod machine;
#[path = "checker/runs.rs"]
mod runs;
mod typed;

use std::sync::Arc;

use skep_ebpf::program::MapDef;
use skep_verifier::{KernelProfile, Options, verify};

/// Random inputs for each program.
const RUNS: u64 = 8;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
fn runs_stay_within_the_states() {
    let (count, mut seed) = (env("SKEP_CHECK", 2000), env("SKEP_SEED", 1));
    let maps: Arc<[MapDef]> = generator::maps().into();
    let options =
        Options { profile: KernelProfile { max_processed: 8000, ..KernelProfile::LINUX_6_18 }, ..Options::default() };
    let mut tally = runs::Tally::default();
    while tally.runs < count {
        let mut rng = generator::Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let made = generator::program(&mut rng, &maps, seed.is_multiple_of(2));
        if env("SKEP_CHECK_TEXT", 0) == seed {
            println!("{}", skep_ebpf::disasm::Listing { insns: &made.program.insns, names: &() });
        }
        if verify(made.program.clone(), &options).is_ok() {
            tally.run(&format!("seed {seed}"), &made.program, &options, seed * RUNS..(seed + 1) * RUNS);
        }
        seed += 1;
    }
    tally.finish();
}
