//! Servers under load by their own clients, on loopback, while a hot function of theirs is traced at its entry and its return:
//! by nobody, by skep, by the kernel's uprobes, in turns. Requests per second, and the server's processor time for one, beside
//! each other (the latter says most where the machine has other work, too); errors of the clients, in the servers' logs, and in
//! how they end.
//!
//! usage: `cargo run --release -p skep-benches --bin servers [SECONDS] [SERVER...]`: so many seconds with skep for each server
//! (60), and as many of each other kind. The kernel's column needs root. What is not installed is skipped.

mod kinds;
mod load;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kinds::{KINDS, Kind, Running};
use skep_benches::{KernelProbe, kernel_count, kernel_hits, median};
use skep_tests::{Trace, object, scratch};

/// Seconds of one turn.
const TURN: u64 = 10;

/// What one way of tracing did.
#[derive(Default)]
struct Figures {
    /// Requests per second, by turn.
    rates: Vec<f64>,
    /// Microseconds of the server's processor time for a request, by turn.
    costs: Vec<f64>,
    /// Hits, entries and returns.
    hits: u64,
    /// Hits that ran no program.
    missed: u64,
    /// Seconds traced.
    seconds: f64,
}

/// The kernel's program and its counters.
type Kernel = (OwnedFd, OwnedFd);

fn main() {
    let mut words = std::env::args().skip(1).peekable();
    let seconds = words.next_if(|w| w.parse::<u64>().is_ok()).and_then(|w| w.parse().ok()).unwrap_or(60);
    let wanted: Vec<String> = words.collect();
    let kernel = kernel_count().inspect_err(|e| eprintln!("no kernel columns: bpf(2): {e}")).ok();
    println!(
        "| server | function | requests/s | µs of the server for one | with skep | µs | hits/s | missed | with uprobes | µs \
         | hits/s | errors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut bad = false;
    for kind in KINDS.iter().filter(|kind| wanted.is_empty() || wanted.iter().any(|w| w == kind.name)) {
        match measure(kind, seconds, kernel.as_ref()) {
            Ok(errors) => bad |= errors,
            Err(why) => println!("skipped: {}: {why}", kind.name),
        }
    }
    let _ = std::fs::remove_dir_all(scratch());
    std::process::exit(i32::from(bad));
}

/// Measures one server, and prints its line; true if anything went wrong.
fn measure(kind: &Kind, seconds: u64, kernel: Option<&Kernel>) -> Result<bool, String> {
    let folder = scratch().join(kind.name);
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let server = Running::start(kind, &folder)?;
    let [mut bare, mut by_skep, mut by_kernel] = [(); 3].map(|()| Figures::default());
    let mut errors = Vec::new();
    let turn = seconds.clamp(1, TURN);
    server.load(1).map_err(|e| format!("its client failed before anything was traced: {e}"))?;
    for _ in 0..seconds.div_ceil(turn) {
        for (figures, way) in [(&mut bare, Way::Bare), (&mut by_skep, Way::Skep), (&mut by_kernel, Way::Kernel)] {
            if way == Way::Kernel && kernel.is_none() {
                continue;
            }
            let before = errors.len();
            one_turn(&server, way, turn, kernel, figures).unwrap_or_else(|e| errors.push(format!("{way:?}: {e}")));
            if errors.len() > before {
                server.wait_a_moment();
            }
        }
    }
    errors.extend(server.stop());
    let (rate, cost) = (median(&mut bare.rates), median(&mut bare.costs));
    let beside = |figures: &mut Figures| match figures.rates.is_empty() {
        true => ["–"; 3].map(str::to_owned),
        false => [
            format!("{:+.1} %", (median(&mut figures.rates) / rate - 1.0) * 100.0),
            format!("{:+.1} %", (median(&mut figures.costs) / cost - 1.0) * 100.0),
            format!("{:.0}", figures.hits as f64 / figures.seconds),
        ],
    };
    let (skep, missed) = (beside(&mut by_skep), by_skep.missed);
    println!(
        "| {} | `{}` | {rate:.0} | {cost:.1} | {} | {missed} | {} | {} |",
        kind.name,
        kind.function,
        skep.join(" | "),
        beside(&mut by_kernel).join(" | "),
        errors.len()
    );
    errors.iter().for_each(|e| println!("error: {}: {e}", kind.name));
    Ok(!errors.is_empty())
}

/// Who traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Bare,
    Skep,
    Kernel,
}

fn one_turn(
    server: &Running,
    way: Way,
    turn: u64,
    kernel: Option<&Kernel>,
    figures: &mut Figures,
) -> Result<(), String> {
    // Some start a process for each connection: those must be there first.
    let early = if server.starts_workers() { Some(server.client(turn)?) } else { None };
    let client = || early.map_or_else(|| server.client(turn), Ok);
    if server.starts_workers() {
        std::thread::sleep(Duration::from_millis(1500));
    }
    let pids = server.traced();
    let (file, function) = (server.module(), server.kind.function);
    let measured = |figures: &mut Figures| {
        let (start, before) = (Instant::now(), server.processor_time());
        let rate = client()?.rate()?;
        let elapsed = start.elapsed().as_secs_f64();
        // Processes that end with their connections are counted by whoever waits for them.
        std::thread::sleep(Duration::from_millis(200));
        let busy = server.processor_time() - before;
        figures.seconds += elapsed;
        figures.costs.push(busy * 1e6 / (rate * elapsed));
        Ok::<f64, String>(rate)
    };
    let rate = match (way, kernel) {
        (Way::Skep, _) => {
            let mut traces: Vec<Trace> = pids.iter().map(|pid| trace(*pid, &file, function)).collect();
            for trace in &mut traces {
                trace.mixes_pages = server.kind.compiles;
                trace.attached(server.kind.skep_places);
            }
            let rate = measured(&mut *figures)?;
            // Each is told to end before any is waited for; those whose processes have ended do so by themselves.
            if !server.starts_workers() {
                traces.iter().for_each(Trace::interrupt);
            }
            for done in traces.into_iter().map(Trace::finish) {
                for program in ["on_entry", "on_return"] {
                    figures.hits += done.count(program, "hits");
                    figures.missed += done.count(program, "missed") + done.count(program, "no_slot");
                }
                if !done.status.success() {
                    return Err(format!("skep ended with {}: {}", done.status, done.stderr));
                }
            }
            rate
        }
        (Way::Kernel, Some((program, map))) => {
            let before = kernel_hits(map).map_err(|e| e.to_string())?;
            let places = server.uprobes();
            let attach = |pid: &u32| {
                let probe = |(offset, ret): &(u64, bool)| KernelProbe::attach(program, &file, *offset, *ret, *pid);
                places.iter().map(probe).collect::<Result<Vec<_>, _>>()
            };
            let probes = pids.iter().map(attach).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
            let rate = measured(&mut *figures)?;
            figures.hits += kernel_hits(map).map_err(|e| e.to_string())? - before;
            drop(probes);
            rate
        }
        _ => measured(&mut *figures)?,
    };
    figures.rates.push(rate);
    Ok(())
}

fn trace(pid: u32, file: &Path, function: &str) -> Trace {
    let place = format!("{}:{function}", file.display());
    let object: PathBuf = object("test/cost_both.bpf.o");
    Trace::start([object.as_os_str(), "--func".as_ref(), place.as_ref(), "--pid".as_ref(), pid.to_string().as_ref()])
}
