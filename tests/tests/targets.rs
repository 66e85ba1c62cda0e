//! Real programs, one row each in `targets.tsv`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use skep_tests::{Target, Trace, build, build_with, is_root, object, root, scratch, skep, skep_bin, skip};

#[path = "targets/syscalls.rs"]
mod syscalls;

#[test]
fn real_programs() {
    let table = std::fs::read_to_string(root().join("tests/targets.tsv")).expect("table");
    let mut failed = Vec::new();
    for row in table.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let fields: Vec<&str> = row.split('\t').collect();
        let &[name, function, minimum, arg1, command] = &fields[..] else { panic!("bad row: {row}") };
        if let Err(why) = one(name, function, minimum.parse().expect("minimum"), arg1, command) {
            failed.push(format!("{name}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// How programs of our own are built for the table.
const COMPILED: [(&str, &str, &[&str]); 5] = [
    ("{static}", "gcc", &["-static"]),
    ("{static-pie}", "gcc", &["-static-pie"]),
    ("{no-pie}", "gcc", &["-no-pie"]),
    ("{musl}", "musl-gcc", &[]),
    ("{musl-static}", "musl-gcc", &["-static"]),
];

fn one(name: &str, function: &str, minimum: u64, arg1: &str, command: &str) -> Result<(), String> {
    let program = command.split(' ').next().unwrap_or_default();
    let musl = Command::new("musl-gcc").arg("--version").output().is_ok_and(|out| out.status.success());
    if command.contains("{musl") && !musl {
        skip(&format!("{name}: musl-gcc is not installed"));
        return Ok(());
    }
    let mut command = command.to_owned();
    for (place, compiler, flags) in COMPILED {
        if command.contains(place) {
            command = command.replace(place, &build_with(compiler, "static.c", flags).to_string_lossy());
        }
    }
    let command = command.replace("{rust}", env!("CARGO_BIN_EXE_rusty"));
    if program.starts_with('/') && !std::path::Path::new(program).exists() {
        skip(&format!("{name}: {program} is not installed"));
        return Ok(());
    }
    let object = object("test/arg.bpf.o");
    let args = [object.as_os_str(), "--func".as_ref(), function.as_ref(), "--".as_ref()];
    let words = ["sh", "-c"].map(Into::into).into_iter().chain([format!("exec {command}")]);
    let words: Vec<String> = words.collect();
    let args = args.into_iter().chain(words.iter().map(AsRef::as_ref));
    let done = Trace::start(args).finish();
    if !done.lines.iter().any(|l| l["kind"] == "summary") {
        return Err(format!("no summary; skep says:\n{}", done.stderr));
    }
    let hits = done.count("first_argument", "hits");
    if hits < minimum {
        return Err(format!("{hits} hits of {function}, expected {minimum}; skep says:\n{}", done.stderr));
    }
    if arg1 != "-" {
        let want: u64 = arg1.parse().map_err(|e| format!("{arg1}: {e}"))?;
        let seen = |l: &&skep_tests::Value| l["name"] == "arguments" && l["key"].as_u64() == Some(want);
        if !done.kind("map").iter().any(seen) {
            return Err(format!("{function} was never seen with a first argument of {want}"));
        }
    }
    Ok(())
}

/// A Go program of `tests/targets`; `None` where there is no Go.
fn go(source: &str) -> Option<PathBuf> {
    let there = |path: &&str| Command::new(path).arg("version").output().is_ok_and(|out| out.status.success());
    let Some(go) = ["go", "/usr/lib/go-1.19/bin/go"].into_iter().find(there) else {
        skip("Go programs: Go is not installed");
        return None;
    };
    let out = scratch().join(source.replace('.', "-"));
    let mut build = Command::new(go);
    build.current_dir(scratch()).env("GOCACHE", scratch().join("go-cache")).env("CGO_ENABLED", "0");
    build.env("GO111MODULE", "off").env("GOFLAGS", "").args(["build", "-o"]).arg(&out);
    let built = build.arg(root().join("tests/targets").join(source)).output().expect("Go starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(out)
}

/// Returns of functions that are preempted and left by panics are counted exactly, no entry is missed; probes come and go while
/// goroutines are at work and their stacks move; what Go cannot bear is refused.
#[test]
fn go_programs() {
    let Some(program) = go("hot.go") else { return };
    let both = object("test/cost_both.bpf.o");
    let trace = |pid: u32, functions: &[&str]| {
        let functions = functions.iter().flat_map(|name| ["--func", name]);
        let pid = pid.to_string();
        let words: Vec<&str> = functions.chain(["--pid", &pid]).collect();
        Trace::start([both.as_os_str()].into_iter().chain(words.iter().map(AsRef::as_ref)))
    };

    let calls = 300_000;
    let target = Target::start(&program, &[&calls.to_string()]);
    let mut traced = trace(target.pid(), &["main.Flat", "main.Catch"]);
    traced.attached(4);
    let (lines, status) = target.finish();
    assert!(status.success(), "{status}");
    let sum: u64 = (0..calls).map(|i| i + u64::from(i % 3 == 0)).sum();
    assert_eq!(lines, [format!("{} {}", 4 * sum, 4 * calls / 100)]);
    let done = traced.finish();
    let all = |kind| ["hits", "missed", "no_slot"].map(|key| done.count(kind, key));
    let wanted = 4 * (calls + calls / 100);
    assert_eq!(all("on_return"), [wanted, 0, 0]);
    // A goroutine that is preempted where a function looks at its stack enters the function again.
    let [entries, missed, no_slot] = all("on_entry");
    assert!((wanted..wanted + 10_000).contains(&entries) && (missed, no_slot) == (0, 0), "{entries} of {wanted}");

    let cycles: u32 = std::env::var("SKEP_GO_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let target = Target::start(&program, &["0"]);
    for _ in 0..cycles {
        let mut traced = trace(target.pid(), &["main.Flat", "main.Catch", "main.Deep", "main.Spin"]);
        traced.attached(8);
        std::thread::sleep(Duration::from_millis(20));
        traced.interrupt();
        let done = traced.finish();
        assert!(done.status.success() && done.count("on_entry", "hits") > 0 && done.count("on_return", "hits") > 0);
    }
    let pid = target.pid().to_string();
    for (function, why) in
        [("main.Flat+0x4", "only functions' entries"), ("runtime.gcWriteBarrier", "as other functions")]
    {
        let args = ["trace", "--func", function, "--pid", &pid].map(AsRef::as_ref);
        let (code, _, err) = skep(&[&args[..], &[object("test/cost_entry.bpf.o").as_os_str()]].concat());
        assert!(code == Some(2) && err.contains(why), "{function}: {err}");
    }
    let (lines, status) = target.finish();
    assert_eq!((lines, status.code()), (vec!["wrong 0".to_owned()], Some(0)));
}

/// Processes as containers have them, traced from outside: names of files mean those that the target sees. And one that may not
/// make code of what it has written.
#[test]
fn contained_programs() {
    let program = build("soak.c", &["-static"]);
    let counted = |target: Target, pid: u32, what: &str| {
        let mut trace = Trace::pid(&object("test/soak.bpf.o"), pid);
        let attached = trace.attached(4);
        let (_, status) = target.finish();
        let done = trace.finish();
        assert!(status.success(), "{what}: {status}");
        for program in ["on_entry", "on_return", "inside", "on_event"] {
            assert_eq!(done.count(program, "hits"), 2000, "{what}, {program}: {}", done.stderr);
        }
        attached[0]["module"].as_str().unwrap_or_default().to_owned()
    };
    let target = Target::start(&program, &["2", "1000", "sealed"]);
    let pid = target.pid();
    counted(target, pid, "no writable memory becomes executable");

    if !is_root() {
        return skip("containers: only root makes them here");
    }
    let inside = scratch().join("inside");
    std::fs::create_dir_all(&inside).expect("folder");
    std::fs::copy(&program, inside.join("soak")).expect("copy");
    let words = ["-pmf", "chroot", inside.to_str().expect("path"), "/soak", "2", "1000"];
    let target = Target::start("unshare".as_ref(), &words);
    let children = format!("/proc/{0}/task/{0}/children", target.pid());
    let children = std::fs::read_to_string(children).expect("children");
    let pid = children.trim().parse().expect("unshare has one child");
    counted(target, pid, "another root, another pid namespace");

    // Without a way to write memory there is a refusal, and no harm.
    let target = Target::start(&program, &["2", "1000"]);
    let command = "mount --bind -o ro /proc /proc && exec \"$@\"";
    let mut trace = Command::new("unshare");
    trace.args(["-m", "sh", "-c", command, "sh"]).arg(skep_bin()).arg("trace").arg(object("test/soak.bpf.o"));
    let out = trace.args(["--pid", &target.pid().to_string()]).output().expect("unshare");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && err.contains("/mem") && err.contains("Read-only"), "{err}");
    assert!(target.finish().1.success());
}
