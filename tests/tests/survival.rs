//! A traced process lives as if it were not traced.

use std::process::Command;
use std::time::{Duration, Instant};

use skep_tests::{Target, Trace, build, object, wait};

fn plain(program: &std::path::Path, args: &[&str]) -> (Vec<String>, Option<i32>) {
    let out = Command::new(program).args(args).output().expect("runs");
    (String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect(), out.status.code())
}

#[test]
fn exceptions_jumps_recursion_fork_and_exec() {
    let program = build("unwind.cc", &["-rdynamic"]);
    let want = plain(&program, &["300"]);
    let done = Trace::command(&object("test/count.bpf.o"), [program.as_os_str(), "300".as_ref()]).finish();
    assert_eq!(done.plain, want.0, "{}", done.stderr);
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    assert_eq!(
        done.summary("on_entry")["exit_status"].as_i64().or(done.summary("on_entry")["status"].as_i64()),
        want.1.map(i64::from)
    );
    assert!(done.count("on_entry", "hits") >= 300 * 3 + 20 * 1001);
    assert!(done.count("on_return", "hits") >= 20 * 1001);
}

#[test]
fn the_same_when_attached_to_a_running_process() {
    let program = build("unwind.cc", &["-rdynamic"]);
    let mut want = plain(&program, &["300"]);
    let mut target = Target::start(&program, &["300", "go"]);
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    trace.attached(2);
    target.go();
    let (said, status) = target.finish();
    let done = trace.finish();
    want.0.retain(|l| l != "ready");
    assert_eq!(said, want.0, "{}", done.stderr);
    assert_eq!(status.code(), want.1);
}

#[test]
fn backtrace_shows_the_same_frames() {
    let program = build("unwind.cc", &["-rdynamic"]);
    let frames = |stderr: &str| -> i64 {
        let line = stderr.lines().find_map(|l| l.strip_prefix("frames ")).unwrap_or_else(|| panic!("{stderr}"));
        line.parse().expect("number")
    };
    let out = Command::new(&program).args(["1", "frames"]).output().expect("runs");
    let want = frames(&String::from_utf8_lossy(&out.stderr));
    let command = [program.as_os_str(), "1".as_ref(), "frames".as_ref()];
    let done = Trace::command(&object("test/count.bpf.o"), command).finish();
    let got = frames(&done.stderr);
    assert!(got == want || got == want + 1, "{got} frames for {want}");
}

#[test]
fn reads_of_bad_memory_fail_and_harm_nothing() {
    let n: u64 = std::env::var("SKEP_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let program = build("faults.c", &[]);
    let times = n.to_string();
    let done = Trace::command(&object("test/read.bpf.o"), [program.as_os_str(), times.as_str().as_ref()]).finish();
    assert_eq!(done.plain, ["lived"], "{}", done.stderr);
    assert_eq!(done.count("on_entry", "hits"), 4 * n);
    let answers = |errno: i64| {
        let of = |l: &&&skep_tests::Value| l["name"] == "answers" && l["key"].as_i64() == Some(errno);
        done.kind("map").iter().find(of).and_then(|l| l["value"].as_u64())
    };
    assert_eq!(answers(-14), Some(3 * n), "-EFAULT of unmapped, PROT_NONE and partly mapped memory");
    assert_eq!(answers(0), Some(n), "readable memory");
}

/// Where the text of `probed` is, and its first bytes.
fn text(pid: u32, address: u64) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mem = std::fs::File::open(format!("/proc/{pid}/mem")).expect("mem");
    let mut bytes = vec![0; 32];
    mem.read_exact_at(&mut bytes, address).expect("text");
    bytes
}

#[test]
fn attach_and_detach_many_times_on_a_busy_process() {
    let cycles: usize = std::env::var("SKEP_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let program = build("calls.c", &[]);
    let mut target = Target::start(&program, &["4", "400000000000000", "go"]);
    target.go();
    let mut before: Option<(u64, Vec<u8>)> = None;
    for _ in 0..cycles {
        let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
        let at = trace.attached(2)[0]["address"].clone();
        let at = at.as_u64().or_else(|| u64::from_str_radix(at.as_str()?.trim_start_matches("0x"), 16).ok());
        let at = at.expect("address");
        trace.interrupt();
        let done = trace.finish();
        assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
        let now = text(target.pid(), at);
        match &before {
            Some((a, b)) => assert_eq!((*a, b), (at, &now), "text differs after detach"),
            None => before = Some((at, now)),
        }
        assert!(target.child.try_wait().expect("wait").is_none(), "the target died");
    }
}

#[test]
fn skep_is_killed_at_random_times() {
    let kills: u64 = std::env::var("SKEP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let program = build("calls.c", &[]);
    let want = plain(&program, &["2", "1500000", "pace"]);
    let mut seed = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(std::process::id());
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let per_target = 30;
    let mut done_kills = 0;
    while done_kills < kills {
        let mut target = Target::start(&program, &["2", "1500000", "go", "pace"]);
        target.go();
        for _ in 0..per_target.min(kills - done_kills) {
            let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
            std::thread::sleep(Duration::from_micros(random(40_000)));
            if random(4) == 0 {
                trace.interrupt();
                std::thread::sleep(Duration::from_micros(random(3_000)));
            }
            trace.kill();
            done_kills += 1;
            assert!(target.child.try_wait().expect("wait").is_none(), "the target ended early, kill {done_kills}");
        }
        let (said, status) = target.finish();
        assert_eq!((said, status.code()), (want.0.clone(), want.1), "after {done_kills} kills");
    }
}

#[test]
fn after_a_kill_a_new_trace_counts_exactly() {
    let program = build("calls.c", &[]);
    for round in 0..5 {
        let mut target = Target::start(&program, &["4", "50000", "go"]);
        let mut first = Trace::pid(&object("test/count.bpf.o"), target.pid());
        first.attached(2);
        first.kill();
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
        trace.attached(2);
        target.go();
        let (_, status) = target.finish();
        assert_eq!(status.code(), Some(7));
        let done = trace.finish();
        assert_eq!(done.count("on_entry", "hits"), 200_000, "{}", done.stderr);
        assert_eq!(done.count("on_return", "hits"), 200_000, "{}", done.stderr);
    }
}

#[test]
fn the_target_is_killed() {
    let program = build("calls.c", &[]);
    let mut target = Target::start(&program, &["2", "400000000000000", "go"]);
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    trace.attached(2);
    target.go();
    std::thread::sleep(Duration::from_millis(200));
    target.child.kill().expect("kill");
    let start = Instant::now();
    wait(&mut target.child, Duration::from_secs(10));
    let done = trace.finish();
    assert!(start.elapsed() < Duration::from_secs(20));
    assert!(done.count("on_entry", "hits") > 0, "{}", done.stderr);
    assert!(
        done.stderr.contains("killed") || done.stderr.contains("SIGKILL") || done.stderr.contains("ended"),
        "{}",
        done.stderr
    );
}
