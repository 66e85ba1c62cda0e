//! Random programs, judged here and by the live kernel: nothing that it rejects may be accepted.
//!
//! `SKEP_FUZZ` is the number of programs (default 1000), `SKEP_SEED` the first seed; `SKEP_FUZZ_LOG` prints the
//! kernel's log. Needs `bpf(2)`; skipped without.

#[path = "differential/generator.rs"]
mod generator;
mod kernel;
mod typed;

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_ebpf::program::MapDef;
use skep_verifier::{KernelProfile, Options, Outcome, verify};

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// The kernel's last word in its log; empty if the verifier had nothing to say against the program: it was refused
/// later, because its prog array belongs to another type, or by a fault of the kernel's own.
fn complaint(log: &str) -> &str {
    let last = log.lines().rev().find(|l| !l.starts_with("processed") && !l.trim().is_empty()).unwrap_or("");
    let own_fault = ["verifier bug: No program to jit", "verifier bug: static subprog leftover stack slots"];
    if last.ends_with("is safe for any args that match its prototype") || own_fault.iter().any(|f| last.starts_with(f))
    {
        return "";
    }
    last
}

#[test]
fn agrees_with_the_live_kernel() {
    if !kernel::available() {
        return;
    }
    let maps: Arc<[MapDef]> = generator::maps().into();
    let Some(fds) = kernel::maps(&maps) else {
        eprintln!("skipped: the maps cannot be made here");
        return;
    };
    let options =
        Options { profile: KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 }, ..Options::default() };
    let (count, seed) = (env("SKEP_FUZZ", 1000), env("SKEP_SEED", 1));
    let show = env("SKEP_FUZZ_SHOW", 3);
    let (mut both_accept, mut both_reject, mut unsupported) = (0u64, 0u64, 0u64);
    let mut rejected: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong_accepts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut wrong_rejects: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for n in seed..seed + count {
        let mut rng = generator::Rng(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let made = generator::program(&mut rng, &maps, n % 2 == 1);
        let program = made.program;
        let btf = made.btf.map(|raw| kernel::btf(&raw).expect("the kernel takes the BTF"));
        let Some(answer) = kernel::load_typed(&program, &fds, btf.as_ref(), 0) else { continue };
        let ask = |level| kernel::load_typed(&program, &fds, btf.as_ref(), level).map_or(String::new(), |a| a.log);
        let again = || complaint(&ask(1)).to_owned();
        if std::env::var_os("SKEP_FUZZ_LOG").is_some() {
            let log = ask(2);
            let ours = match verify(program.clone(), &Options { log: true, ..options.clone() }) {
                Ok(v) => format!("{}\n{:?}", v.log(), v.stats()),
                Err(r) => format!("{}\n{} {r}", r.log, r.reason),
            };
            println!(
                "{n} {:?} flags {} errno {}\n{log}\nhere:\n{ours}",
                program.prog_type, program.flags, answer.errno
            );
        }
        match (verify(program.clone(), &options), answer.errno) {
            (Ok(_), 0) => both_accept += 1,
            // Refused after verification: not what is compared here.
            (Ok(_), _) if again().is_empty() => both_accept += 1,
            (Ok(_), _) => wrong_accepts.entry(again()).or_default().push(n),
            (Err(r), _) if r.outcome == Outcome::Unsupported => unsupported += 1,
            (Err(r), 0) => wrong_rejects.entry(format!("{}: {}", r.reason, r.message)).or_default().push(n),
            (Err(r), _) => {
                both_reject += 1;
                *rejected.entry(r.reason).or_default() += 1;
            }
        }
    }
    println!("{count} programs: {both_accept} accepted, {both_reject} rejected by both, {unsupported} unsupported");
    println!("{rejected:?}");
    for (what, of) in [("wrong accepts", &wrong_accepts), ("wrong rejects", &wrong_rejects)] {
        println!("{what}: {}", of.values().map(Vec::len).sum::<usize>());
        for (why, seeds) in of {
            println!("  {:>5} {why}  seeds {:?}", seeds.len(), &seeds[..seeds.len().min(show as usize)]);
        }
    }
    assert!(wrong_accepts.is_empty(), "accepted here, rejected by the kernel");
}
