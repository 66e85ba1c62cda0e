//! Nanoseconds that a probe adds to a call: skep against the kernel's uprobe, same functions, one run, interleaved.
//!
//! The program counts in a per-CPU array. Events are of 64 bytes by a ring buffer, printed by `skep trace`: *polled*, the program
//! wakes nobody; *woken*, it wakes the consumer where that sleeps. Ratios are those of the least figures.
//!
//! usage: `cargo run --release -p skep-benches --bin probes [ROUNDS]` (the kernel's column needs root)

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use skep_benches::{KernelProbe, file_offset, kernel_count, least, median};
use skep_tests::{Trace, object, root, scratch};

/// What is attached, and how many calls are timed.
struct Kind {
    name: &'static str,
    object: &'static str,
    probes: usize,
    calls: u32,
}

const fn kind(name: &'static str, object: &'static str, probes: usize, calls: u32) -> Kind {
    Kind { name, object, probes, calls }
}

/// A round's events fit into their ring, however slowly they are read.
const KINDS: [Kind; 5] = [
    kind("skep entry", "test/cost_entry.bpf.o", 1, 300_000),
    kind("skep return", "test/cost_return.bpf.o", 1, 300_000),
    kind("skep both", "test/cost_both.bpf.o", 2, 300_000),
    kind("event, polled", "test/cost_event_quiet.bpf.o", 1, 20_000),
    kind("event, woken", "test/cost_event.bpf.o", 1, 20_000),
];

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(21);
    let program = scratch().join("loop");
    let source = root().join("benches/targets/loop.c");
    let built = Command::new("gcc").args(["-O2", "-o"]).arg(&program).arg(source).status().expect("gcc");
    assert!(built.success(), "gcc could not build the target");
    let mut child = Command::new("taskset")
        .args(["-c", "1"])
        .arg(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the target starts");
    let pid = child.id();
    let mut to = child.stdin.take().expect("piped");
    let mut from = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = move || from.next().expect("the target lives").expect("a line");
    assert_eq!(next(), "ready");
    let mut batch = |function: &str, calls: u32| -> f64 {
        writeln!(to, "{function} {calls}").expect("the target reads");
        next().parse().expect("a number")
    };
    let kernel = kernel_count().inspect_err(|e| eprintln!("no kernel columns: bpf(2): {e}")).ok();
    println!("ns added to a call: median / least of {rounds} interleaved rounds\n");
    let names = KINDS.iter().map(|kind| kind.name).chain([
        "kernel uprobe",
        "kernel uretprobe",
        "uprobe / entry",
        "uretprobe / return",
    ]);
    println!("| function | call | {} |", names.clone().collect::<Vec<_>>().join(" | "));
    println!("|---|---|{}", names.map(|_| "---|").collect::<String>());
    for function in ["probed", "pushes"] {
        let offset = file_offset(&program, function);
        let mut figures: [Vec<f64>; 1 + KINDS.len() + 2] = Default::default();
        for _ in 0..rounds {
            let [bare, by_skep @ .., uprobe, uretprobe] = &mut figures;
            bare.push(batch(function, 300_000));
            for (kind, figures) in KINDS.iter().zip(by_skep) {
                let args = [object(kind.object).into_os_string(), "--func".into(), function.into(), "--pid".into()];
                let mut trace = Trace::start(args.into_iter().chain([pid.to_string().into()]));
                trace.attached(kind.probes);
                figures.push(batch(function, kind.calls));
                trace.interrupt();
                trace.finish();
            }
            let Some((program_fd, _)) = &kernel else { continue };
            for (figures, ret) in [(uprobe, false), (uretprobe, true)] {
                let probe = KernelProbe::attach(program_fd, &program, offset, ret, pid).expect("kernel uprobe");
                figures.push(batch(function, 20_000));
                drop(probe);
            }
        }
        let (call, call_least) = (median(&mut figures[0]), least(&figures[0]));
        let mut added = Vec::new();
        let mut cells = vec![format!("{call:.1} / {call_least:.1}")];
        for figures in figures.iter_mut().skip(1) {
            added.push(least(figures) - call_least);
            cells.push(match figures.is_empty() {
                true => "–".to_owned(),
                false => format!("{:.1} / {:.1}", median(figures) - call, least(figures) - call_least),
            });
        }
        let [entry, ret, .., uprobe, uretprobe] = &added[..] else { unreachable!("a figure for each column") };
        println!("| `{function}` | {} | {:.0} × | {:.0} × |", cells.join(" | "), uprobe / entry, uretprobe / ret);
    }
    drop(to);
    let _ = child.wait();
    let _ = std::fs::remove_dir_all(scratch());
}
