//! `perf_event_open(2)`, its ioctls, links and the tracefs, call by call: the same script on a subsystem of ours and on the
//! kernel that runs here, answers compared. Ledgers name the calls that may differ, each with its reason.
//!
//! A kernel without kprobes skips those parts. Built static, this runs under `kernel-vm`, too, whose kernel has them;
//! what is newer or older there stands in the second ledger.

#[path = "calls/events.rs"]
mod events;
#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/probes.rs"]
mod probes;
#[path = "calls/script.rs"]
mod script;

use kernel::{Kernel, Live, Ours};
use script::{Answer, Script};

/// Calls whose answer may differ: a prefix of the name, and why.
const LEDGER: &str = include_str!("calls/events-ledger.txt");
/// The same for Linux 6.12, where that is not the kernel that is played.
const LEDGER_6_12: &str = include_str!("calls/events-ledger-6.12.txt");

fn entries(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(|l| l.split_once(" | "))
}

fn run(kernel: &dyn Kernel, like: &dyn Kernel) -> Vec<(String, Answer)> {
    let mut script = Script::new(kernel);
    events::run(&mut script, like);
    script.finish()
}

#[test]
fn answers_are_the_kernels() {
    let Some(live) = Live::open() else {
        eprintln!("skipped: bpf(2) does not answer this user");
        return;
    };
    if !std::path::Path::new(events::TRACING).join("uprobe_events").exists() {
        eprintln!("skipped: the kernel's tracefs is not mounted at {}", events::TRACING);
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let old = release.starts_with("6.12.");
    let theirs = run(&live, &live);
    let ours = Ours::new(live.cpus());
    let ours = run(&ours, &live);
    let names = |answers: &[(String, Answer)]| answers.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(&theirs), names(&ours), "the script does not depend on the answers");
    let ledger: Vec<_> = entries(LEDGER).chain(entries(LEDGER_6_12).filter(|_| old)).collect();
    let mut used = vec![0; ledger.len()];
    let mut differ = Vec::new();
    for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        if theirs == ours {
            continue;
        }
        match ledger.iter().position(|(prefix, _)| name.starts_with(prefix)) {
            Some(n) => used[n] += 1,
            None => differ.push(format!("{name}: kernel {theirs}, skep {ours}")),
        }
    }
    println!("{} calls, {} differ as the ledger says", theirs.len(), used.iter().sum::<u32>());
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), theirs.len(), differ.join("\n"));
    // Under another kernel an entry may be idle that is needed under this one.
    let idle: Vec<_> = ledger.iter().zip(&used).filter(|(_, n)| **n == 0).map(|((p, _), _)| *p).collect();
    assert!(old || idle.is_empty(), "in the ledger, but the same: {idle:?}");
    assert!(theirs.len() >= 150, "{} calls", theirs.len());
}

/// Without the kernel: nothing panics, and what was made goes away again.
#[test]
fn script_ends_and_leaves_nothing() {
    let ours = Ours::new(2);
    let first = run(&ours, &ours);
    let second = run(&ours, &ours);
    assert_eq!(first.len(), second.len());
    assert_eq!(ours.left(), Default::default());
}
