//! `bpf(2)`, call by call: the same script is run on a subsystem of ours and on the kernel that runs here, and the
//! answers are compared. A ledger names the calls that may differ, each with its reason.
//!
//! Where the kernel does not answer this user the comparison is skipped, and only what does not need it is tested.

#[path = "calls/dumps.rs"]
mod dumps;
#[path = "calls/fields.rs"]
mod fields;
#[path = "calls/iters.rs"]
mod iters;
#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/kinds.rs"]
mod kinds;
#[path = "calls/rights.rs"]
mod rights;
#[path = "calls/script.rs"]
mod script;

use skep_jit::Engine;
use skep_subsystem::front::Config;

use kernel::{Kernel, Live, Ours};
use script::{Answer, Script};

/// Calls whose answer may differ: a prefix of the name, and why.
const LEDGER: &str = include_str!("calls/ledger.txt");

fn ledger() -> Vec<(&'static str, &'static str)> {
    LEDGER.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(|l| l.split_once(" | ")).collect()
}

fn run(kernel: &dyn Kernel) -> Vec<(String, Answer)> {
    let mut script = Script::new(kernel);
    fields::run(&mut script);
    kinds::run(&mut script);
    rights::rights(&mut script);
    if let Some(types) = kernel::types() {
        iters::iters(&mut script, &types);
    }
    script.finish()
}

#[test]
fn answers_are_the_kernels() {
    let Some(live) = Live::open() else {
        eprintln!("skipped: bpf(2) does not answer this user");
        return;
    };
    let theirs = run(&live);
    let ours = run(&Ours::new(live.cpus()));
    assert_eq!(
        theirs.iter().map(|(n, _)| n).collect::<Vec<_>>(),
        ours.iter().map(|(n, _)| n).collect::<Vec<_>>(),
        "the script does not depend on the answers"
    );
    // What iterators say is compared only if they say something.
    for what in ["maps", "programs", "links", "array", "per-CPU hash"] {
        let name = format!("iter: {what}, 65536 bytes at once: read");
        let read = ours.iter().find(|(n, _)| *n == name).map(|(_, answer)| answer);
        assert!(matches!(read, Some(Answer::Bytes(b)) if b.len() >= 32), "{name}: {read:?}");
    }
    let ledger = ledger();
    let mut used = vec![0; ledger.len()];
    let mut differ = Vec::new();
    for ((name, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        let entry = ledger.iter().position(|(prefix, _)| name.starts_with(prefix));
        if theirs == ours {
            continue;
        }
        match entry {
            Some(n) => used[n] += 1,
            None => differ.push(format!("{name}: kernel {theirs}, skep {ours}")),
        }
    }
    println!("{} calls, {} differ as the ledger says", theirs.len(), used.iter().sum::<u32>());
    let idle: Vec<_> = ledger.iter().zip(&used).filter(|(_, n)| **n == 0).map(|((p, _), _)| *p).collect();
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), theirs.len(), differ.join("\n"));
    assert!(idle.is_empty(), "in the ledger, but the same: {idle:?}");
    assert!(theirs.len() >= 500, "{} calls", theirs.len());
}

/// The kernel's machine code and ours are told of in the same way.
#[test]
fn machine_code_is_told_of() {
    let tell = |kernel: &dyn Kernel| {
        let mut script = Script::new(kernel);
        dumps::dumps(&mut script);
        script.finish()
    };
    let ours = tell(&Ours::with(Config { slots: 2, engine: Engine::Jit, ..Config::default() }));
    let told = |what: &str| ours.iter().find(|(n, _)| n == what).map(|(_, answer)| answer.clone());
    assert_eq!(told("dump: three functions: functions, lengths, lines"), Some(Answer::Bytes(vec![3, 3, 5])));
    match Live::open() {
        Some(live) => assert_eq!(tell(&live), ours),
        None => eprintln!("skipped: bpf(2) does not answer this user"),
    }
}

/// Without the kernel: nothing panics, and what was made goes away again.
#[test]
fn script_ends_and_leaves_nothing() {
    let ours = Ours::new(2);
    let first = run(&ours);
    let second = run(&ours);
    assert_eq!(first.len(), second.len());
    assert_eq!(ours.left(), Default::default());
}
