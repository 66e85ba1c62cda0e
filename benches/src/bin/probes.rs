//! Nanoseconds that a probe adds to a call: skep against the kernel's uprobe, same functions, one run, interleaved.
//!
//! The program counts in a per-CPU array. Events are of 64 bytes by a ring buffer, printed by `skep trace`: *polled*, the program
//! wakes nobody; *woken*, it wakes the consumer where that sleeps. Ratios are those of the least figures. The second table is of
//! places that are no entry with room for a jump; *bare trap* is a breakpoint of the program's own with a handler that does
//! nothing. The third is of a system call, made by the C library.
//!
//! usage: `cargo run --release -p skep-benches --bin probes [ROUNDS]` (the kernel's column needs root)

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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
    kind("skep entry", "test/cost_entry.bpf.o", 1, CALLS),
    kind("skep return", "test/cost_return.bpf.o", 1, CALLS),
    kind("skep both", "test/cost_both.bpf.o", 2, CALLS),
    kind("event, polled", "test/cost_event_quiet.bpf.o", 1, FEW),
    kind("event, woken", "test/cost_event.bpf.o", 1, FEW),
];

/// Calls in a round, of what is cheap and of what is not.
const CALLS: u32 = 300_000;
const FEW: u32 = 20_000;

/// Programs on either side of a system call.
const SIDES: [Kind; 2] = [
    kind("before a system call", "test/cost_call.bpf.o", 1, CALLS),
    kind("behind a system call", "test/cost_called.bpf.o", 1, CALLS),
];

/// Functions of the target: see there.
const FUNCTIONS: [&str; 3] = ["probed", "pushes", "nops"];

/// Other places: how they are named here, the function, the offset, how they are probed, and calls.
const PLACES: [(&str, &str, u64, &str, u32); 2] =
    [("an instruction inside", "probed", 3, "jump", CALLS), ("no room for a jump", "tiny", 0, "int3", FEW)];

/// The program whose calls are timed.
struct Target {
    program: PathBuf,
    child: Child,
    to: Option<ChildStdin>,
    from: Lines<BufReader<ChildStdout>>,
}

impl Target {
    fn start(program: &Path) -> Target {
        let mut child = Command::new("taskset")
            .args(["-c", "1"])
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the target starts");
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut target = Target { program: program.to_owned(), child, to, from };
        assert_eq!(target.line(), "ready");
        target
    }

    fn line(&mut self) -> String {
        match self.from.next() {
            Some(line) => line.expect("a line"),
            None => panic!("the target has ended: {:?}", self.child.wait()),
        }
    }

    /// Nanoseconds of one call.
    fn batch(&mut self, function: &str, calls: u32) -> f64 {
        writeln!(self.to.as_mut().expect("not ended"), "{function} {calls}").expect("the target reads");
        self.line().parse().expect("a number")
    }

    /// The same with programs of `skep` attached; all of them must be attached by `method`, if one is named.
    fn traced(&mut self, kind: &Kind, function: &str, offset: u64, method: Option<&str>, calls: u32) -> f64 {
        let place = if offset == 0 { function.to_owned() } else { format!("{function}+{offset:#x}") };
        let pid = self.child.id().to_string();
        let func = ["--func".into(), place.into()].into_iter().filter(|_| !kind.object.contains("cost_call"));
        let args = [object(kind.object).into_os_string()].into_iter().chain(func);
        let mut trace = Trace::start(args.chain(["--pid".into(), pid.into()]));
        for attached in trace.attached(kind.probes) {
            assert!(method.is_none_or(|method| attached["method"] == method), "{attached}");
        }
        let ns = self.batch(function, calls);
        trace.interrupt();
        trace.finish();
        ns
    }

    /// The same with the kernel's probe.
    fn kernel(&mut self, program: &OwnedFd, function: &str, offset: u64, ret: bool) -> f64 {
        let at = file_offset(&self.program, function) + offset;
        let probe = KernelProbe::attach(program, &self.program, at, ret, self.child.id()).expect("kernel uprobe");
        let ns = self.batch(function, FEW);
        drop(probe);
        ns
    }

    fn end(mut self) {
        drop(self.to.take());
        let _ = self.child.wait();
    }
}

/// What was measured of one thing.
#[derive(Default)]
struct Figures(Vec<f64>);

impl Figures {
    /// Median and least, less those of what is there anyway; `–` if nothing was measured.
    fn cell(&mut self, less: (f64, f64)) -> String {
        match self.0.is_empty() {
            true => "–".to_owned(),
            false => format!("{:.1} / {:.1}", median(&mut self.0) - less.0, least(&self.0) - less.1),
        }
    }

    fn both(&mut self) -> (f64, f64) {
        (median(&mut self.0), least(&self.0))
    }
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(21);
    let program = scratch().join("loop");
    let source = root().join("benches/targets/loop.c");
    let built = Command::new("gcc").args(["-O2", "-o"]).arg(&program).arg(source).status().expect("gcc");
    assert!(built.success(), "gcc could not build the target");
    let mut target = Target::start(&program);
    let kernel = kernel_count().inspect_err(|e| eprintln!("no kernel columns: bpf(2): {e}")).ok();
    let kernel = kernel.as_ref().map(|(program, _)| program);
    println!("ns added to a call: median / least of {rounds} interleaved rounds\n");
    entries(&mut target, kernel, rounds);
    println!();
    target.end();
    places(&program, kernel, rounds);
    println!();
    calls(&program, rounds);
    let _ = std::fs::remove_dir_all(scratch());
}

/// The table of entries and returns.
fn entries(target: &mut Target, kernel: Option<&OwnedFd>, rounds: usize) {
    let names = KINDS.iter().map(|kind| kind.name).chain([
        "kernel uprobe",
        "kernel uretprobe",
        "uprobe / entry",
        "uretprobe / return",
    ]);
    println!("| function | call | {} |", names.clone().collect::<Vec<_>>().join(" | "));
    println!("|---|---|{}", names.map(|_| "---|").collect::<String>());
    for function in FUNCTIONS {
        let mut bare = Figures::default();
        let mut figures: [Figures; KINDS.len() + 2] = Default::default();
        for _ in 0..rounds {
            let [by_skep @ .., uprobe, uretprobe] = &mut figures;
            bare.0.push(target.batch(function, CALLS));
            for (kind, figures) in KINDS.iter().zip(by_skep) {
                figures.0.push(target.traced(kind, function, 0, None, kind.calls));
            }
            let Some(program) = kernel else { continue };
            uprobe.0.push(target.kernel(program, function, 0, false));
            uretprobe.0.push(target.kernel(program, function, 0, true));
        }
        let call = bare.both();
        let cells: Vec<String> = figures.iter_mut().map(|f| f.cell(call)).collect();
        let added: Vec<f64> = figures.iter().map(|f| least(&f.0) - call.1).collect();
        let [entry, ret, .., uprobe, uretprobe] = &added[..] else { unreachable!("a figure for each column") };
        let ratios = format!("{:.0} × | {:.0} ×", uprobe / entry, uretprobe / ret);
        println!("| `{function}` | {:.1} / {:.1} | {} | {ratios} |", call.0, call.1, cells.join(" | "));
    }
}

/// The table of other places.
fn places(program: &Path, kernel: Option<&OwnedFd>, rounds: usize) {
    let mut trap = Figures::default();
    let mut all: [[Figures; 3]; PLACES.len()] = Default::default();
    // Two processes, since one has a handler of its own.
    let (mut target, mut trapped) = (Target::start(program), Target::start(program));
    for _ in 0..rounds {
        for ((_, function, offset, method, calls), [bare, by_skep, uprobe]) in PLACES.into_iter().zip(&mut all) {
            bare.0.push(target.batch(function, calls));
            by_skep.0.push(target.traced(&KINDS[0], function, offset, Some(method), calls));
            if let Some(program) = kernel {
                uprobe.0.push(target.kernel(program, function, offset, false));
            }
        }
        trap.0.push(trapped.batch("traps", FEW));
    }
    trapped.end();
    target.end();
    println!("| place | method | call | skep | bare trap | skep / trap | kernel uprobe | uprobe / skep |");
    println!("|---|---|---|---|---|---|---|---|");
    for ((name, _, _, method, _), [bare, by_skep, uprobe]) in PLACES.into_iter().zip(&mut all) {
        let call = bare.both();
        let added = |figures: &Figures| least(&figures.0) - call.1;
        // Where there is a trap.
        let (cell, ratio) = match method {
            "int3" => (trap.cell(call), format!("{:.2} ×", added(by_skep) / added(&trap))),
            _ => ("–".to_owned(), "–".to_owned()),
        };
        let kernel = format!("{} | {:.0} ×", uprobe.cell(call), added(uprobe) / added(by_skep));
        println!(
            "| {name} | `{method}` | {:.1} / {:.1} | {} | {cell} | {ratio} | {kernel} |",
            call.0,
            call.1,
            by_skep.cell(call)
        );
    }
}

/// The table of system calls.
fn calls(program: &Path, rounds: usize) {
    let mut bare = Figures::default();
    let mut figures: [Figures; SIDES.len()] = Default::default();
    let mut target = Target::start(program);
    for _ in 0..rounds {
        bare.0.push(target.batch("parent", CALLS));
        for (kind, figures) in SIDES.iter().zip(&mut figures) {
            figures.0.push(target.traced(kind, "parent", 0, Some("jump"), kind.calls));
        }
    }
    target.end();
    println!("| place | call | skep |");
    println!("|---|---|---|");
    let call = bare.both();
    for (kind, figures) in SIDES.iter().zip(&mut figures) {
        println!("| {} | {:.1} / {:.1} | {} |", kind.name, call.0, call.1, figures.cell(call));
    }
}
