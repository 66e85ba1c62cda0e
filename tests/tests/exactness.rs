//! Every call of a probed function is one hit: no more, no less.

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
