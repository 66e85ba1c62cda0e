//! Runs of accepted programs, with the verifier beside them.

use std::ops::Range;

use skep_ebpf::program::Program;
use skep_verifier::Options;
use skep_verifier::record::follow;

use super::machine::{Computer, End};

/// Instructions of one run.
const STEPS: u64 = 4000;

/// What was run.
#[derive(Default, Debug)]
pub struct Tally {
    pub programs: u64,
    pub runs: u64,
    pub steps: u64,
    /// Steps before which the run was in the verifier's state.
    pub held: u64,
    pub ended: u64,
    pub faults: Vec<String>,
}

impl Tally {
    /// Runs a program, once for each seed.
    pub fn run(&mut self, name: &str, program: &Program, options: &Options, seeds: Range<u64>) {
        self.programs += 1;
        let followed = follow(program, options, |verifier| {
            for seed in seeds.clone() {
                let mut computer = Computer::with_all(program, seed);
                self.runs += 1;
                let mut left = STEPS;
                let mut stands = verifier.begin();
                let end = loop {
                    if let Err(why) = stands {
                        break End::Fault(format!("instruction {}: {why}", computer.at()));
                    }
                    self.steps += 1;
                    left -= 1;
                    if let Err(why) = verifier.step(&computer, computer.at()) {
                        break End::Fault(format!("instruction {}: {why}", computer.at()));
                    }
                    self.held += 1;
                    match computer.step() {
                        None if left == 0 => break End::Stopped,
                        None => stands = verifier.arrive(&computer, computer.at()),
                        Some(end) => break end,
                    }
                };
                match end {
                    End::Fault(why) => self.faults.push(format!("{name} run {seed}: {why}")),
                    End::Exit => self.ended += 1,
                    End::Stopped => {}
                }
            }
        });
        if let Err(why) = followed {
            self.faults.push(format!("{name} is not followed: {why}"));
        }
    }

    /// Says what was run; fails if anything was outside of the verifier's states.
    pub fn finish(mut self) {
        println!(
            "{} runs of {} accepted programs: {} steps, {} of them held against a state; {} to the end; {} faults",
            self.runs,
            self.programs,
            self.steps,
            self.held,
            self.ended,
            self.faults.len()
        );
        self.faults.truncate(12);
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
    }
}
