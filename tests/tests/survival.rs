//! A traced process lives as if it were not traced.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
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
    let cycles: usize = std::env::var("SKEP_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    let program = build("calls.c", &[]);
    // Many threads that never pause would leave skep itself no processor.
    for (threads, pace, eighths) in [("1", "", 3), ("4", "", 3), ("16", "pace", 1), ("64", "pace", 1)] {
        let mut target = Target::start(&program, &[threads, "400000000000000", "go", pace]);
        target.go();
        let mut before: Option<(u64, Vec<u8>)> = None;
        let mut latencies = Vec::new();
        for _ in 0..cycles * eighths / 8 {
            let start = Instant::now();
            let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
            let at = address(&trace.attached(2)[0]);
            latencies.push(start.elapsed());
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
        latencies.sort_unstable();
        if let (Some(median), Some(worst)) = (latencies.get(latencies.len() / 2), latencies.last()) {
            let n = latencies.len();
            println!("{threads} threads: {n} attaches, from the start of skep: median {median:.1?}, worst {worst:.1?}");
        }
    }
}

#[test]
fn skep_is_killed_at_random_times() {
    let kills: u64 = std::env::var("SKEP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(120);
    let program = build("calls.c", &[]);
    let want = plain(&program, &["2", "1500000", "pace"]);
    let mut random = random();
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

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Skep,
    Injector,
    Target,
}

/// The masks of blocked signals of all threads of a process.
fn blocked(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mask = |status: String| status.lines().find_map(|l| l.strip_prefix("SigBlk:").map(|m| m.trim().to_owned()));
    tasks.filter_map(|t| mask(std::fs::read_to_string(t.path().join("status")).ok()?)).collect()
}

/// Did skep end by itself? Where its targets have ended it is on its way out, and obeys signals again.
fn ended(status: ExitStatus) -> bool {
    status.code().is_some() || status.signal() == Some(libc::SIGINT)
}

#[test]
fn anybody_is_killed_at_random_instants_of_attach_and_detach() {
    let kills: u64 = std::env::var("SKEP_ANY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let program = build("calls.c", &[]);
    let args = ["2", "1000000", "go", "pace"];
    let want = plain(&program, &["2", "1000000", "pace"]);
    let mut random = random();
    let start = || {
        let mut target = Target::start(&program, &args);
        target.go();
        target
    };
    let exact = |target: Target, when: &str| {
        let (said, status) = target.finish();
        assert_eq!((said, status.code()), (want.0.clone(), want.1), "{when}");
    };
    let (mut done, mut original, mut by_victim) = (0, None, [0; 3]);
    while done < kills {
        let mut targets = [start(), start()];
        let round = 10.min(kills - done);
        for _ in 0..round {
            let victim = [Victim::Skep, Victim::Injector, Victim::Injector, Victim::Target][random(4) as usize];
            by_victim[victim as usize] += 1;
            let object = object("test/count.bpf.o").into_os_string();
            let pids = targets.iter().flat_map(|t| ["--pid".into(), t.pid().to_string().into()]);
            let mut trace = Trace::start([object].into_iter().chain(pids));
            let injector = loop {
                match children(trace.child.id())[..] {
                    [injector, ..] => break injector,
                    [] => std::hint::spin_loop(),
                }
            };
            // An attach of both takes some 10 ms, a detach as long.
            let when = if random(2) == 0 {
                std::thread::sleep(Duration::from_micros(random(25_000)));
                "attach"
            } else {
                // One may have ended meanwhile.
                let _ = (0..4).all(|_| trace.find("attached").is_ok());
                trace.interrupt();
                std::thread::sleep(Duration::from_micros(random(12_000)));
                "detach"
            };
            // SAFETY: kills a process that this test started, by its id, which it has until it was waited for.
            let kill = |pid: i32| unsafe { libc::kill(pid, libc::SIGKILL) };
            match victim {
                Victim::Skep => trace.kill(),
                Victim::Injector => {
                    kill(injector);
                    let status = wait(&mut trace.child, Duration::from_secs(30));
                    assert!(ended(status), "skep died of the injector's death: {status}");
                }
                Victim::Target => {
                    targets[0].child.kill().expect("kill");
                    targets[0].child.wait().expect("wait");
                    // A second signal would kill it.
                    if when == "attach" {
                        trace.interrupt();
                    }
                    let status = wait(&mut trace.child, Duration::from_secs(30));
                    assert!(ended(status), "skep died of the target's death: {status}");
                    targets[0] = start();
                }
            }
            drop(trace);
            done += 1;
            let at = format!("kill {done}, of {victim:?} in {when}");
            for target in &mut targets {
                // One may have done all its calls.
                if target.child.try_wait().expect("wait").is_some() {
                    exact(std::mem::replace(target, start()), &at);
                }
            }
            // An injector whose controller was killed may be at work still.
            let end = Instant::now() + Duration::from_secs(10);
            let all = |targets: &[Target; 2]| targets.iter().flat_map(|t| blocked(t.pid())).collect::<Vec<_>>();
            while all(&targets).iter().any(|mask| mask.bytes().any(|digit| digit != b'0')) {
                assert!(Instant::now() < end, "signals stay blocked, {at}: {:?}", all(&targets));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        // What was left is undone by the next session, whose end restores the text.
        for mut target in targets {
            let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
            if let Ok(line) = trace.find("attached") {
                trace.interrupt();
                let ended = trace.finish();
                assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
                if target.child.try_wait().expect("wait").is_none() {
                    let now = text(target.pid(), address(&line))[..16].to_vec();
                    assert_eq!(original.get_or_insert_with(|| now.clone()), &now, "text differs after {done} kills");
                }
            }
            exact(target, &format!("after {done} kills"));
        }
    }
    println!("{kills} kills: {by_victim:?} of skep, of the injector, of a target");
}

/// Numbers below a given one that look random.
fn random() -> impl FnMut(u64) -> u64 {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64 ^ u64::from(std::process::id());
    move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
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

/// The bytes of a mapping of the target, by the name that its memfd has.
fn mapping(pid: u32, name: &str) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let line = maps.lines().find(|l| l.contains(name))?;
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut bytes = vec![0; (end - start) as usize];
    std::fs::File::open(format!("/proc/{pid}/mem")).ok()?.read_exact_at(&mut bytes, start).ok()?;
    Some(bytes)
}

#[test]
fn after_a_kill_the_text_is_restored_within_a_second() {
    let program = build("calls.c", &[]);
    let mut target = Target::start(&program, &["2", "400000000000000", "go"]);
    let symbol = |trace: &mut Trace| address(&trace.attached(2)[0]);
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    let at = symbol(&mut trace);
    let patched = text(target.pid(), at);
    target.go();
    trace.kill();
    std::thread::sleep(Duration::from_secs(1));
    let restored = text(target.pid(), at);
    assert_ne!(patched, restored, "the text is still patched");
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    assert_eq!(symbol(&mut trace), at);
    trace.interrupt();
    trace.finish();
    assert_eq!(text(target.pid(), at), restored);
}

#[test]
fn when_the_injector_is_killed_too_counters_stand_still_and_a_new_trace_works() {
    let program = build("calls.c", &[]);
    let mut target = Target::start(&program, &["2", "400000000000000", "go"]);
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    trace.attached(2);
    target.go();
    let injector = children(trace.child.id());
    assert_eq!(injector.len(), 1, "skep has one child, its injector");
    std::thread::sleep(Duration::from_millis(100));
    for pid in injector {
        // SAFETY: the injector of the skep that this test started.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    trace.kill();
    std::thread::sleep(Duration::from_secs(1));
    let counters = mapping(target.pid(), "skep-shared").expect("the arena is still mapped");
    std::thread::sleep(Duration::from_millis(200));
    assert!(mapping(target.pid(), "skep-shared") == Some(counters), "hits are still counted");
    let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
    trace.attached(2);
    std::thread::sleep(Duration::from_millis(100));
    trace.interrupt();
    let done = trace.finish();
    assert!(done.count("on_entry", "hits") > 0, "{}", done.stderr);
    assert!(target.child.try_wait().expect("wait").is_none(), "the target died");
}

/// The children of a process.
fn children(pid: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    lists.flat_map(|l| l.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Where a probe was attached.
fn address(attached: &skep_tests::Value) -> u64 {
    let text = attached["address"].as_str().unwrap_or_default();
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("no address: {attached}"))
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

#[test]
fn many_processes_are_traced_together() {
    let processes: usize = std::env::var("SKEP_PROCESSES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let (threads, calls) = (2, 3000);
    let program = build("calls.c", &[]);
    let want = plain(&program, &["2", "3000"]);
    let mut targets: Vec<Target> = (0..processes).map(|_| Target::start(&program, &["2", "3000", "go"])).collect();
    let gone = plain_pid();
    let pids = targets.iter().map(Target::pid).chain([gone]);
    let args = pids.flat_map(|pid| ["--pid".to_owned(), pid.to_string()]);
    let mut trace = Trace::start([object("test/count.bpf.o").into_os_string()].into_iter().chain(args.map(Into::into)));
    let start = Instant::now();
    let mut attached: Vec<u64> = trace.attached(2 * processes).iter().filter_map(|a| a["pid"].as_u64()).collect();
    println!("{processes} processes were attached to in {:.1?}", start.elapsed());
    attached.sort_unstable();
    attached.dedup();
    assert_eq!(attached.len(), processes, "each line says which process");
    // One is killed, one traced no more by its own end; the others go on.
    targets[0].child.kill().expect("kill");
    targets.remove(0);
    targets.iter_mut().for_each(Target::go);
    for target in targets {
        let (said, status) = target.finish();
        assert_eq!((said, status.code()), (want.0.clone(), want.1));
    }
    let done = trace.finish();
    assert_eq!(done.status.code(), Some(3), "one could not be traced: {}", done.stderr);
    assert!(done.stderr.contains(&format!("process {gone} is not traced")), "{}", done.stderr);
    for program in ["on_entry", "on_return"] {
        assert_eq!(done.count(program, "hits"), (processes as u64 - 1) * threads * calls, "{}", done.stderr);
        assert_eq!(done.summary(program)["processes"].as_u64(), Some(processes as u64));
    }
}

#[test]
fn children_are_followed() {
    let program = build("forks.c", &[]);
    // Four threads that fork to depths 0, 1, 2 and 0, five spawned processes and one that executes.
    let (calls, runs, processes) = (100, 82, 64);
    let exact = |done: skep_tests::Finished, plain: &[String]| {
        assert_eq!(plain, ["done"], "{}", done.stderr);
        assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
        for program in ["on_entry", "on_return"] {
            assert_eq!(done.count(program, "hits"), runs * calls, "{}", done.stderr);
            assert_eq!(done.summary(program)["processes"].as_u64(), Some(processes), "{}", done.stderr);
        }
    };
    let object = object("test/count.bpf.o");
    let command = ["--follow".as_ref(), object.as_os_str(), "--".as_ref(), program.as_os_str(), "100".as_ref()];
    let mut done = Trace::start(command).finish();
    assert_eq!(done.summary("on_entry")["exit_status"].as_i64(), Some(6));
    let plain = std::mem::take(&mut done.plain);
    exact(done, &plain);
    let mut target = Target::start(&program, &["100", "go"]);
    let pid = target.pid().to_string();
    let mut trace = Trace::start(["--follow".as_ref(), object.as_os_str(), "--pid".as_ref(), pid.as_ref()]);
    trace.attached(2);
    target.go();
    let (said, status) = target.finish();
    assert_eq!(status.code(), Some(6));
    exact(trace.finish(), &said);
    // Not followed, children run as if there were no probes.
    let mut done = Trace::command(&object, [program.as_os_str(), "100".as_ref()]).finish();
    assert_eq!(std::mem::take(&mut done.plain), ["done"], "{}", done.stderr);
    assert_eq!((done.count("on_entry", "hits"), done.count("on_return", "hits")), (4 * calls, 4 * calls));
}

/// The id of a process that has ended.
fn plain_pid() -> u32 {
    let mut child = Command::new("true").spawn().expect("runs");
    child.wait().expect("wait");
    child.id()
}

#[test]
fn all_processes_of_an_executable() {
    // A program of this test alone.
    let program = skep_tests::scratch().join("calls-of-an-executable");
    std::fs::copy(build("calls.c", &[]), &program).expect("copy");
    let want = plain(&program, &["1", "1000"]);
    let start = || Target::start(&program, &["1", "1000", "go"]);
    let mut targets = vec![start(), start()];
    let object = object("test/count.bpf.o");
    let mut trace = Trace::start(["--exe".as_ref(), program.as_os_str(), object.as_os_str()]);
    trace.attached(4);
    targets.extend([start(), start(), start()]);
    trace.attached(6);
    for target in targets {
        let (said, status) = target.finish();
        assert_eq!((&said, status.code()), (&want.0, want.1));
    }
    trace.interrupt();
    let done = trace.finish();
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    assert_eq!((done.count("on_entry", "hits"), done.count("on_return", "hits")), (5000, 5000), "{}", done.stderr);
}

/// An unwinder that had anything registered with it would take a lock in each look-up (libgcc before 13).
#[test]
fn handlers_and_children_unwind() {
    let program = build("looks.c", &["-fno-omit-frame-pointer"]);
    for args in [&["fork"][..], &["signal"], &["fork", "late"], &["signal", "late"]] {
        let mut target = Target::start(&program, args);
        let mut trace = Trace::pid(&object("test/count.bpf.o"), target.pid());
        trace.attached(2);
        target.go();
        let (said, status) = target.finish();
        let done = trace.finish();
        assert_eq!((&said[..], status.code()), (&["fine".to_owned()][..], Some(0)), "{args:?}: {}", done.stderr);
        assert!(done.count("on_return", "hits") > 60, "{args:?}: {}", done.stderr);
    }
    // A command that loads its unwinder late.
    for what in ["fork", "signal"] {
        let command = [program.as_os_str(), what.as_ref(), "late".as_ref(), "now".as_ref()];
        let done = Trace::command(&object("test/count.bpf.o"), command).finish();
        assert_eq!(done.plain, ["ready", "fine"], "{what}: {}", done.stderr);
        assert!(done.count("on_return", "hits") > 60, "{what}: {}", done.stderr);
        assert_eq!(done.kind("attached").len(), 2, "{what}");
    }
}

/// One target writes garbage over all memory that it may write, what it shares with the others included, while these work with
/// maps of every kind.
#[test]
fn a_target_that_scribbles_harms_nobody_else() {
    let seconds: u64 = std::env::var("SKEP_HOSTILE").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let (program, hostile) = (build("calls.c", &[]), build("scribble.c", &[]));
    let (time, calls) = ((seconds * 1000).to_string(), (seconds * 3000).to_string());
    let want = plain(&program, &["2", &calls]);
    let start = || Target::start(&program, &["2", &calls, "go", "pace"]);
    let mut targets: Vec<Target> = (0..4).map(|_| start()).collect();
    let mut scribbler = Target::start(&hostile, &[&time, "go"]);
    let object = object("test/hostile.bpf.o").into_os_string();
    let pids = targets.iter().chain([&scribbler]).flat_map(|t| ["--pid".into(), t.pid().to_string().into()]);
    let mut trace = Trace::start([object].into_iter().chain(pids));
    trace.attached(10);
    let began = Instant::now();
    scribbler.go();
    targets.iter_mut().for_each(Target::go);
    for target in targets {
        let (said, status) = target.finish();
        assert_eq!((said, status.code()), (want.0.clone(), want.1));
    }
    let worked = began.elapsed();
    // It has written over nothing of its own but in children.
    let (_, status) = scribbler.finish();
    assert_eq!(status.code(), Some(0), "{status}");
    // All have ended: so does the trace, by itself.
    let done = trace.finish();
    assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
    assert!(done.plain.is_empty(), "lines that are not JSON: {:?}", done.plain.first());
    let told = |what: &str| done.stderr.lines().filter(|line| line.contains(what)).count();
    let (maps, rings) = (told("corrupt map"), told("corrupt ring"));
    println!("{seconds} s: the others took {worked:.1?}; {maps} maps and {rings} rings were found corrupt");
    assert!(maps > 0 && rings > 0, "{}", done.stderr);
    assert!(done.stderr.lines().count() < 60, "too much is told: {}", done.stderr);
}
