//! Every call of a probed function is one hit: no more, no less.

use std::time::{Duration, Instant};

use skep_tests::{Target, Trace, build, object};

const THREADS: u64 = 4;
const CALLS: u64 = 250_000;

fn exactly(args: &[&str], flags: &[&str], expected: &[&str]) {
    let program = build("calls.c", flags);
    let calls = CALLS.to_string();
    let args: Vec<&str> = ["4", &calls, "go"].into_iter().chain(args.iter().copied()).collect();
    let mut target = Target::start(&program, &args);
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    let attached = trace.attached(2);
    assert!(attached.iter().all(|a| a["symbol"] == "probed"), "{attached:?}");
    target.go();
    let (said, status) = target.finish();
    let done = trace.finish();
    assert_eq!(status.code(), Some(7), "{said:?}");
    for line in expected {
        assert!(said.iter().any(|l| l == line), "no {line:?} in {said:?}");
    }
    let n = THREADS * CALLS;
    for (program, map) in [("on_entry", "entries"), ("on_return", "returns")] {
        assert_eq!(done.count(program, "hits"), n, "{program}: {}", done.stderr);
        assert_eq!(done.map_sum(map, 0), n, "{program}");
        for misses in ["missed", "recursion_misses", "no_slot", "lost"] {
            assert_eq!(done.count(program, misses), 0, "{program}: {misses}");
        }
    }
}

#[test]
fn a_million_calls_from_four_threads() {
    exactly(&[], &[], &["checksum 88112ec4325c8004"]);
}

#[test]
fn with_own_signal_handlers_and_a_timer() {
    let own = ["segv 1 trap 1 alarms yes", "checksum 88112ec4325c8004"];
    exactly(&["signals"], &[], &own);
}

#[test]
fn in_an_executable_at_a_fixed_address() {
    exactly(&[], &["-no-pie"], &["checksum 88112ec4325c8004"]);
}

#[test]
fn with_control_flow_protection_and_frame_pointers() {
    let flags = ["-fcf-protection=full", "-fno-omit-frame-pointer"];
    exactly(&[], &flags, &["checksum 88112ec4325c8004"]);
}

#[test]
fn a_command_is_traced_from_its_start() {
    for flags in [&[][..], &["-static"][..]] {
        let program = build("static.c", flags);
        let trace = Trace::command(&object("test/count.bpf.o"), [program.as_os_str(), "5000".as_ref()]);
        let done = trace.finish();
        assert_eq!(done.plain, ["12497500"], "{}", done.stderr);
        assert_eq!(done.count("on_entry", "hits"), 5000, "{flags:?}: {}", done.stderr);
        assert_eq!(done.count("on_return", "hits"), 5000, "{flags:?}");
    }
}

#[test]
fn programs_know_the_function_and_the_place() {
    let program = build("place.c", &[]);
    let run = |name: &str| {
        let done = Trace::command(&object(name), [program.as_os_str()]).finish();
        let said: Vec<u64> = done.plain.iter().flat_map(|l| l.split(' ')).map(|n| n.parse().unwrap()).collect();
        let [at, 105] = said[..] else { panic!("{said:?}: {}", done.stderr) };
        (at, done)
    };
    let (at, done) = run("test/place.bpf.o");
    assert_eq!([0, 1, 2].map(|key| done.map_sum("places", key)), [at; 3]);
    // Behind the `endbr64` it is still the entry. Inside of a function the kernel names none for a kprobe, and for a uprobe
    // the place.
    let (at, done) = run("test/place_inside.bpf.o");
    assert_eq!([0, 1, 2].map(|key| done.map_sum("places", key)), [at + 4, at, at + 4]);
    assert_eq!([3, 4, 5].map(|key| done.map_sum("places", key)), [at + 12, 0, at + 12]);
}

/// Bytes of a process in memory, shared ones not counted.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = text.split_whitespace().skip(1).filter_map(|word| word.parse::<u64>().ok());
    let (all, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    (all - shared.min(all)) * 4096
}

/// Probes of all kinds, in several processes that share their maps: after a long time the counters are those of the calls, and
/// nobody has grown. `SKEP_SOAK` is the number of hits.
#[test]
fn a_soak() {
    let hits: u64 = std::env::var("SKEP_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000_000);
    let kinds = [("soak.c", &[][..]), ("soak.c", &["-static"]), ("soak.c", &["-O0", "-no-pie"])];
    let threads = 2;
    // A round is an entry with a return, an instruction, an entry with an event.
    let rounds = hits / (kinds.len() as u64 * threads * 4);
    let targets: Vec<Target> = { kinds.iter() }
        .map(|(source, flags)| Target::start(&build(source, flags), &[&threads.to_string(), &rounds.to_string()]))
        .collect();
    let plain: Vec<_> = { kinds.iter() }
        .map(|(source, flags)| {
            Target::start(&build(source, flags), &[&threads.to_string(), &rounds.min(1000).to_string()]).finish()
        })
        .collect();
    let pids: Vec<u32> = targets.iter().map(Target::pid).collect();
    let args = pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]);
    let mut trace = Trace::start([object("test/soak.bpf.o").into_os_string()].into_iter().chain(args.map(Into::into)));
    trace.attached(4 * kinds.len());
    let watched: Vec<u32> = pids.iter().copied().chain([trace.child.id()]).collect();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        // While all are at work: the last reading of each before it has ended.
        let mut readings: Vec<Vec<u64>> = vec![Vec::new(); watched.len()];
        loop {
            for (pid, readings) in watched.iter().zip(&mut readings) {
                readings.extend(Some(resident(*pid)).filter(|bytes| *bytes != 0));
            }
            if stopped.recv_timeout(Duration::from_millis(50)) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                return readings;
            }
        }
    });
    let start = Instant::now();
    let mut ended = Vec::new();
    let mut targets = targets;
    targets.iter_mut().for_each(Target::go);
    for mut target in targets {
        skep_tests::wait(&mut target.child, Duration::from_secs(3600));
        ended.push(target.finish());
    }
    let took = start.elapsed();
    drop(stop);
    let readings = watch.join().expect("watch");
    let done = trace.finish();
    let calls = rounds * threads * kinds.len() as u64;
    for (n, program) in ["on_entry", "on_return", "inside", "on_event"].into_iter().enumerate() {
        let all = ["hits", "missed", "recursion_misses", "no_slot"].map(|key| done.count(program, key));
        assert_eq!(all, [calls, 0, 0, 0], "{program}");
        assert_eq!(done.map_sum("counts", n as u64), calls, "{program}");
    }
    let events = rounds.div_ceil(4096) * threads * kinds.len() as u64;
    assert_eq!(done.kind("ringbuf").len() as u64, events);
    for ((said, status), (wanted, _)) in ended.iter().zip(&plain) {
        assert!(status.success() && said.len() == 1 && (rounds > 1000 || said == wanted), "{said:?} {status}");
    }
    assert!(ended.iter().all(|(said, _)| *said == ended[0].0), "{ended:?}");
    println!("{} hits in {took:.1?}", 4 * calls);
    for (pid, readings) in pids.iter().map(u32::to_string).chain(["skep".into()]).zip(&readings) {
        // What is touched first is touched in the first tenth; the last reading may be of a process that ends.
        let first = readings.get(readings.len() / 10).copied().unwrap_or(0);
        let last = readings.iter().skip(readings.len() / 10).max().copied().unwrap_or(0);
        println!("{pid}: {} KiB after a tenth of the time, {} KiB at most since", first >> 10, last >> 10);
        assert!(last < first + (4 << 20), "it grows");
    }
}
