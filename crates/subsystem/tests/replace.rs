//! Functions replaced while they run: every call goes to exactly one version, no call that begins after a change has
//! returned goes to an old one, and nothing is left behind.
//!
//! A bounded slice; `SKEP_REPLACEMENTS=1000000` for the whole campaign.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "functions/make.rs"]
mod make;
#[path = "calls/script.rs"]
mod script;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kernel::{Kernel, Ours};
use make::*;
use script::{Attrs, Script};
use skep_jit::Engine;
use skep_subsystem::front::Config;

/// Calls of `f` in one run of the target.
const CALLS: u64 = 100;
/// Versions of `f`: the original, and two extensions.
const VERSIONS: usize = 3;
const THREADS: usize = 4;
const PERCPU_ARRAY: u32 = 6;
const SLOTS: usize = 8;
const FUNCTIONS: [Function; 2] = [("main", "s", 'i', true), ("f", "i", 'i', true)];

fn replacements() -> u64 {
    std::env::var("SKEP_REPLACEMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000)
}

/// Counts in element `version` of an array, and returns `version`.
fn version(array: i64, version: usize) -> String {
    format!(
        "*(u32 *)(r10 -4) = {version}\nr1 = map[fd:{array}]\nr2 = r10\nr2 += -4\ncall 1\nif r0 == 0 goto no{version}
r1 = *(u64 *)(r0 +0)\nr1 += 1\n*(u64 *)(r0 +0) = r1\nno{version}:\nr0 = {version}\nexit\n"
    )
}

/// Calls `f` many times; counts in an array what it returns.
fn target(seen: i64, entered: i64) -> String {
    format!(
        "r6 = 0\nagain:\nr1 = r6\ncall f\n*(u32 *)(r10 -4) = r0\nr1 = map[fd:{seen}]\nr2 = r10\nr2 += -4\ncall 1
if r0 == 0 goto none\nr1 = *(u64 *)(r0 +0)\nr1 += 1\n*(u64 *)(r0 +0) = r1\nnone:\nr6 += 1\nif r6 < {CALLS:#x} goto again
r0 = *(u32 *)(r10 -4)\nexit\nf:\n{}",
        version(entered, 0)
    )
}

/// The counts in a per-CPU array, all CPUs together.
fn counts(ours: &Ours, array: i64) -> [u64; VERSIONS] {
    std::array::from_fn(|n| {
        let (key, mut values) = ([n as u32], vec![0u64; SLOTS]);
        let mut attr = Attrs::new(32).u32(0, array as u32).ptr(8, &key).u64(16, values.as_mut_ptr() as u64);
        assert_eq!(ours.bpf(MAP_LOOKUP, &mut attr.0), 0);
        values.iter().sum()
    })
}

fn test_run(ours: &Ours, prog: i64, repeat: u32) -> u32 {
    let data = [0u8; 64];
    let mut attr = Attrs::new(80).u32(0, prog as u32).u32(8, 64).ptr(16, &data).u32(32, repeat);
    assert_eq!(ours.bpf(TEST_RUN, &mut attr.0), 0);
    u32::from_ne_bytes(attr.0[4..8].try_into().unwrap())
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn campaign(engine: Engine) {
    let config = Config { slots: SLOTS as u32, engine, extension_update: true, ..Config::default() };
    let ours = Ours::with(config);
    let mut s = Script::new(&ours);
    let seen = map(&mut s, "seen", PERCPU_ARRAY, 8, VERSIONS as u32);
    let entered = map(&mut s, "entered", PERCPU_ARRAY, 8, VERSIONS as u32);
    let traced = map(&mut s, "traced", PERCPU_ARRAY, 8, VERSIONS as u32);
    let p = Program::new(SCHED_CLS, 0, &FUNCTIONS, &target(seen, entered)).load(&mut s, "target");
    let extension = |s: &mut Script<'_>, n: usize| {
        Program::new(EXT, 0, &[("e", "i", 'i', true)], &version(entered, n)).on(p, type_of(1)).load(s, "extension")
    };
    let (one, two) = (extension(&mut s, 1), extension(&mut s, 2));
    let tracer = |s: &mut Script<'_>, how| {
        let text = version(traced, 0);
        Program::new(TRACING, how, &[("t", "i", 'i', true)], &text).on(p, type_of(1)).load(s, "tracer")
    };
    assert!(one >= 0 && two >= 0, "extensions load");
    let bpf = |cmd: u32, attr: Attrs| {
        let mut attr = attr;
        ours.bpf(cmd, &mut attr.0)
    };
    let link = |prog: i64| bpf(LINK_CREATE, Attrs::new(64).u32(0, prog as u32).u32(4, p as u32).u32(16, type_of(1)));
    let rounds = replacements();
    let (stop, runs) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut own_runs = 0;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    test_run(&ours, p, 10);
                    runs.fetch_add(10, Ordering::Relaxed);
                }
            });
        }
        let mut sizes = (0, 0);
        let mut attached = link(one);
        assert!(attached >= 0, "{attached}");
        for n in 0..rounds {
            let (new, number) = if n % 2 == 0 { (two, 2) } else { (one, 1) };
            match n % 64 {
                // Through the original.
                62 => {
                    ours.close(attached);
                    attached = link(new);
                    assert!(attached >= 0, "{attached}");
                }
                _ => {
                    let done = bpf(LINK_UPDATE, Attrs::new(16).u32(0, attached as u32).u32(4, new as u32));
                    assert_eq!(done, 0);
                }
            }
            if n % 15 == 0 {
                let (before, last) = (counts(&ours, entered), test_run(&ours, p, 1));
                own_runs += 1;
                assert_eq!(last, number, "the last call of a run that begins after the change");
                let after = counts(&ours, entered);
                assert!(after[number as usize] - before[number as usize] >= CALLS);
            }
            if n % 1024 == 1023 {
                // With programs around the original in between.
                ours.close(attached);
                assert_eq!(test_run(&ours, p, 1), 0);
                let (before, behind) = (tracer(&mut s, FENTRY), tracer(&mut s, FEXIT));
                let open = |prog: i64| bpf(RAW_OPEN, Attrs::new(16).u32(8, prog as u32));
                let links = [open(before), open(behind)];
                assert!(links[0] >= 0 && links[1] >= 0, "{links:?}");
                let was = counts(&ours, traced)[0];
                assert_eq!(test_run(&ours, p, 1), 0);
                own_runs += 2;
                assert!(counts(&ours, traced)[0] - was >= 2 * CALLS);
                links.iter().for_each(|l| ours.close(*l));
                s.close(before);
                s.close(behind);
                attached = link(new);
                assert!(attached >= 0, "{attached}");
            }
            if n == rounds / 4 {
                sizes = (resident(), ours.subsystem.alive().code_bytes);
            }
        }
        let (resident_then, code_then) = sizes;
        let (now, code) = (resident(), ours.subsystem.alive().code_bytes);
        assert!(now < resident_then + 16 * 1024, "resident memory grows: {resident_then} kB, then {now} kB");
        assert!(code <= code_then + 65536, "code grows: {code_then}, then {code} bytes");
        ours.close(attached);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(test_run(&ours, p, 1), 0, "the original is back");
    let runs = runs.load(Ordering::Relaxed) + own_runs + 1;
    let (returned, entered) = (counts(&ours, seen), counts(&ours, entered));
    println!("{engine:?}: {rounds} replacements, {runs} runs, calls by version {entered:?}");
    assert_eq!(returned, entered, "each call went to the version that it returned from");
    assert_eq!(entered.iter().sum::<u64>(), runs * CALLS, "none was lost, none was doubled");
    assert!(entered[1] > 0 && entered[2] > 0);
    drop(s);
}

#[test]
fn every_call_goes_to_one_version_interpreted() {
    campaign(Engine::Interpreter);
}

#[test]
fn every_call_goes_to_one_version_in_machine_code() {
    campaign(Engine::Jit);
}
