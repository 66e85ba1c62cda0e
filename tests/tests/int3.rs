//! Probes where no jump fits: a breakpoint serves, exactly, whatever the target does with its signals.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use skep_tests::{Finished, Target, Trace, build, object};

const THREADS: u64 = 4;
const CALLS: u64 = 20_000;
/// Programs of `traps.bpf.o`, each with its key in `counts`.
const PROGRAMS: [&str; 5] = ["ret_entry", "ret_return", "loops_entry", "loops_return", "loops_branch"];

/// What a run of `traps` printed, and how it ended.
type Said = (Vec<String>, Option<i32>, Option<i32>);

fn alone(program: &Path, args: &[&str]) -> Said {
    let out = Command::new(program).args(args).output().expect("runs");
    let lines = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    (lines, out.status.code(), out.status.signal())
}

/// The lines that do not depend on time.
fn steady(said: &[String]) -> Vec<&String> {
    said.iter().filter(|line| !line.starts_with("extra") && *line != "ready").collect()
}

fn extra(said: &[String]) -> u64 {
    let line = said.iter().find_map(|line| line.strip_prefix("extra ")).unwrap_or_else(|| panic!("{said:?}"));
    line.parse().expect("number")
}

/// What `calls` calls in each thread, and further ones with these numbers, make of each count.
fn expected(calls: u64, more: impl IntoIterator<Item = u64>) -> [u64; 5] {
    let mut counts = [0; 5];
    let threads = (0..THREADS).flat_map(|_| (0..calls).map(|i| i % 7 + 1));
    for n in threads.chain(more) {
        for (count, by) in counts.iter_mut().zip([1, 1, n, n * (n + 1) / 2, n]) {
            *count += by;
        }
    }
    counts
}

/// Compares counts. With a timer a handler may interrupt a program: its own hits are then missed, and counted as such.
fn check(done: &Finished, timer: bool, want: [u64; 5]) {
    let (calls, rounds) = (want[0], want[4]);
    for ((key, program), want) in (0..).zip(PROGRAMS).zip(want) {
        let missed = done.count(program, "missed");
        let hits = if program == "loops_branch" { rounds } else { calls };
        assert_eq!(done.count(program, "hits") + missed, hits, "{program}: {}", done.stderr);
        if !timer {
            assert_eq!((done.map_sum("counts", key), missed), (want, 0), "{program}: {}", done.stderr);
        }
        for misses in ["recursion_misses", "no_slot", "lost"] {
            assert_eq!(done.count(program, misses), 0, "{program}: {misses}");
        }
    }
}

fn attach(target: &Target) -> Trace {
    let mut trace = Trace::pid(&object("test/traps.bpf.o"), target.pid());
    let attached = trace.attached(PROGRAMS.len());
    assert!(attached.iter().all(|a| a["method"] == "int3"), "{attached:?}");
    trace
}

/// Traces a run with these words, and compares it with one that is not traced. `more` are the numbers of the main
/// thread's calls.
fn exactly(flags: &[&str], words: &[&str], more: &[u64]) {
    let program = build("traps.c", flags);
    let (threads, calls) = (THREADS.to_string(), CALLS.to_string());
    let args: Vec<&str> = [&*threads, &*calls].into_iter().chain(words.iter().copied()).collect();
    let want = alone(&program, &args);
    let args: Vec<&str> = args.into_iter().chain(["go"]).collect();
    let mut target = Target::start(&program, &args);
    let trace = attach(&target);
    target.go();
    let (said, status) = target.finish();
    let done = trace.finish();
    assert_eq!(steady(&said), steady(&want.0), "{words:?}: {}", done.stderr);
    assert_eq!((status.code(), status.signal()), (want.1, want.2), "{words:?}: {}", done.stderr);
    let handlers = (0..extra(&said)).map(|_| 4);
    check(&done, words.contains(&"timer"), expected(CALLS, handlers.chain(more.iter().copied())));
}

#[test]
fn four_threads() {
    exactly(&[], &[], &[]);
}

#[test]
fn in_other_kinds_of_programs() {
    exactly(&["-no-pie"], &["before", "after"], &[]);
    exactly(&["-static"], &["before", "after", "mask"], &[2]);
}

#[test]
fn own_handlers() {
    exactly(&[], &["before"], &[]);
    exactly(&[], &["after"], &[]);
    exactly(&[], &["before", "after"], &[]);
    exactly(&[], &["signal", "before", "after"], &[]);
    exactly(&[], &["signal", "after"], &[]);
    exactly(&[], &["after", "onstack"], &[]);
    exactly(&[], &["before", "onstack"], &[]);
}

#[test]
fn own_breakpoints_end_a_program_without_handler() {
    exactly(&[], &["die"], &[]);
    exactly(&[], &["ignore"], &[]);
}

#[test]
fn a_handler_for_one_use() {
    // The int3 comes first, then the raise finds the default action.
    let program = build("traps.c", &[]);
    for words in [["before", "resethand"], ["after", "resethand"]] {
        let want = alone(&program, &[&["1", "10"][..], &words].concat());
        assert_eq!(want.2, Some(libc::SIGTRAP));
        let mut target = Target::start(&program, &[&["1", "10"][..], &words, &["go"]].concat());
        let trace = attach(&target);
        target.go();
        let (_, status) = target.finish();
        assert_eq!(status.signal(), want.2, "{words:?}: {}", trace.finish().stderr);
    }
}

#[test]
fn with_every_signal_blocked() {
    exactly(&[], &["mask"], &[2]);
    exactly(&[], &["mask", "timer"], &[2]);
    exactly(&[], &["timer", "before", "after"], &[]);
    exactly(&[], &["suspend"], &[]);
    exactly(&[], &["suspend", "mask", "before", "after"], &[2]);
}

#[test]
fn children() {
    // The forked child's calls are not counted; the other child borrows its parent's memory.
    exactly(&[], &["fork", "spawn"], &[5]);
    exactly(&[], &["fork", "spawn", "mask", "before", "after"], &[2, 5]);
}

#[test]
fn a_command() {
    let program = build("traps.c", &[]);
    let words = ["2", "500", "before", "after", "timer", "spawn"];
    let want = alone(&program, &words);
    let command: Vec<&str> = [program.to_str().expect("a path")].into_iter().chain(words).collect();
    let done = Trace::command(&object("test/traps.bpf.o"), command).finish();
    assert_eq!(steady(&done.plain), steady(&want.0), "{}", done.stderr);
    let hits = done.count("ret_entry", "hits") + done.count("ret_entry", "missed");
    assert_eq!(hits, 2 * 500 + extra(&done.plain), "{}", done.stderr);
}

/// What a process's signals and text look like from outside.
fn state(pid: u32) -> (Vec<String>, Vec<u64>) {
    let mut masks = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks").flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        masks.extend(
            status
                .lines()
                .filter(|l| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|k| l.starts_with(k)))
                .map(str::to_owned),
        );
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("memory");
    let mut text = Vec::new();
    for line in maps.lines().filter(|l| l.contains(" r-xp ") && (l.contains("/traps") || l.contains("/libc"))) {
        let (start, end) = line.split(' ').next().and_then(|r| r.split_once('-')).expect("range");
        let parse = |s| u64::from_str_radix(s, 16).expect("address");
        let mut bytes = vec![0; (parse(end) - parse(start)) as usize];
        memory.read_exact_at(&mut bytes, parse(start)).expect("text");
        text.push(bytes.iter().fold(0u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)));
    }
    (masks, text)
}

#[test]
fn a_detach_leaves_no_trace() {
    let program = build("traps.c", &[]);
    for words in [&["mask"][..], &["before", "mask", "timer"], &[]] {
        let mut target = Target::start(&program, &[&["4", "5000", "go"][..], words].concat());
        let before = state(target.pid());
        for _ in 0..3 {
            let trace = attach(&target);
            assert_ne!(state(target.pid()).1, before.1);
            trace.interrupt();
            let done = trace.finish();
            assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
            assert_eq!(state(target.pid()), before, "{words:?}");
        }
        target.go();
        let (said, status) = target.finish();
        assert_eq!(status.code(), Some(7), "{said:?}");
    }
}

#[test]
fn attach_and_detach_while_it_runs() {
    let cycles: u32 = std::env::var("SKEP_TRAP_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let program = build("traps.c", &[]);
    let words = ["4", "400000000000000", "go", "before", "after", "mask", "timer"];
    let mut target = Target::start(&program, &words);
    target.go();
    for n in 0..cycles {
        let trace = attach(&target);
        std::thread::sleep(std::time::Duration::from_millis(u64::from(n % 7)));
        trace.interrupt();
        let done = trace.finish();
        assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
        assert_eq!(target.child.try_wait().expect("wait"), None, "the target died in cycle {n}");
    }
}

#[test]
fn after_a_kill_a_new_trace_counts_exactly() {
    let program = build("traps.c", &[]);
    for round in 0..4 {
        let words = ["before", "after", "mask", "timer"];
        let mut target = Target::start(&program, &[&["4", "5000", "go"][..], &words].concat());
        let mut first = attach(&target);
        first.kill();
        if round % 2 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let trace = attach(&target);
        target.go();
        let (said, status) = target.finish();
        assert_eq!(status.code(), Some(7), "{said:?}");
        let done = trace.finish();
        check(&done, true, expected(5000, (0..extra(&said)).map(|_| 4).chain([2])));
    }
}

#[test]
fn skep_is_killed_at_random_times() {
    let kills: u64 = std::env::var("SKEP_TRAP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let program = build("traps.c", &[]);
    let words = ["4", "400000000000000", "go", "before", "after", "mask", "timer"];
    let mut target = Target::start(&program, &words);
    target.go();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(std::process::id());
    for n in 0..kills {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let mut trace = Trace::pid(&object("test/traps.bpf.o"), target.pid());
        std::thread::sleep(std::time::Duration::from_micros((seed >> 33) % 150_000));
        trace.kill();
        assert_eq!(target.child.try_wait().expect("wait"), None, "the target died after kill {n}");
    }
    let trace = attach(&target);
    trace.interrupt();
    assert_eq!(trace.finish().status.code(), Some(0));
}

#[test]
fn a_session_whose_injector_is_killed_too() {
    let program = build("traps.c", &[]);
    let words = ["before", "after", "timer"];
    // Left alone, the breakpoints are stepped over; undone by a later session, they are gone.
    for again in [false, true] {
        let mut target = Target::start(&program, &[&["4", "5000", "go"][..], &words].concat());
        let before = state(target.pid());
        let mut first = attach(&target);
        let injector = injector_of(first.child.id()).expect("an injector");
        // SAFETY: a process that this test's child has started.
        unsafe { libc::kill(injector, libc::SIGKILL) };
        first.kill();
        if again {
            let trace = attach(&target);
            trace.interrupt();
            let done = trace.finish();
            assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
            assert_eq!(state(target.pid()), before);
        }
        target.go();
        let (said, status) = target.finish();
        assert_eq!(status.code(), Some(7), "{said:?}");
        assert!(said.iter().any(|l| l.starts_with("int3 2 raised 2 ")), "{said:?}");
    }
}

/// The injector that a `skep trace` has started.
fn injector_of(pid: u32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn not_in_the_c_library() {
    // The probe is on a `syscall` instruction: no jump fits there.
    let program = build("traps.c", &[]);
    let target = Target::start(&program, &["1", "1", "go"]);
    let done = Trace::pid(&object("test/traps_libc.bpf.o"), target.pid()).finish();
    assert!(done.stderr.contains("nor a breakpoint"), "{}", done.stderr);
}
