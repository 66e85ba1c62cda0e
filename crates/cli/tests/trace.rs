//! `skep trace` on small programs: kinds and keys of its lines, waiting for symbols, how a trace ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

const TARGET: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
__attribute__((noinline, noclone)) unsigned long probed(unsigned long n, unsigned long k) {
	__asm__ volatile("" : "+r"(n), "+r"(k));
	return n * 3 + k;
}
int main(int argc, char **argv) {
	unsigned long calls = argc > 1 ? strtoul(argv[1], 0, 0) : 1, sum = 0;
	if (argc > 2 && !strcmp(argv[2], "load")) {
		usleep(300000);
		void *l = dlopen(argv[3], RTLD_NOW);
		if (!l) { puts(dlerror()); return 9; }
		unsigned long (*f)(unsigned long) = dlsym(l, "awaited");
		for (unsigned long i = 0; i < 40; i++) { usleep(50000); sum += f(i); }
		printf("%lu\n", sum);
		return 0;
	}
	for (unsigned long i = 0; i < calls; i++) sum += probed(i, 1);
	if (argc > 2 && !strcmp(argv[2], "abort")) abort();
	if (argc > 2 && !strcmp(argv[2], "forever")) for (;;) { sum += probed(sum, 1); usleep(1000); }
	printf("%lu\n", sum);
	return 5;
}
"#;

const LIBRARY: &str = r#"
__attribute__((noinline)) unsigned long awaited(unsigned long n) {
	__asm__ volatile("" : "+r"(n) : : "memory");
	return n * 7 + 1;
}
"#;

fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("skep-cli-trace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let build = |name: &str, source: &str, flags: &[&str]| {
            let path = dir.join(name).with_extension("c");
            std::fs::write(&path, source).unwrap();
            let done = Command::new("gcc").args(["-O2", "-o"]).arg(dir.join(name)).arg(&path).args(flags).status();
            assert!(done.unwrap().success());
        };
        build("target", TARGET, &["-ldl"]);
        build("awaited.so", LIBRARY, &["-shared", "-fPIC"]);
        dir
    })
}

fn bpf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf").join(name)
}

fn trace(args: &[&str], object: &str, target: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_skep"));
    c.arg("trace").args(args).arg(bpf(object)).arg("--").arg(dir().join("target")).args(target).stdin(Stdio::null());
    c
}

struct Done {
    status: i32,
    lines: Vec<Value>,
    out: String,
    err: String,
}

impl Done {
    fn of(mut command: Command) -> Done {
        let out = command.output().unwrap();
        let (text, err) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
        assert!(!err.contains("panicked"), "{err}");
        let lines = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok().filter(Value::is_object));
        Done { status: out.status.code().unwrap_or(-1), lines: lines.collect(), out: text, err }
    }

    fn kind(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|l| l["kind"] == kind).collect()
    }
}

fn keys(v: &Value) -> Vec<&str> {
    v.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn every_kind_of_event() {
    let done = Done::of(trace(&["--json", "--event", "raw=u64"], "test/events.bpf.o", &["3"]));
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.out.contains("\n12\n"), "the command's own output: {}", done.out);
    let attached = done.kind("attached");
    assert_eq!(keys(attached[0]), ["address", "kind", "method", "module", "pid", "program", "symbol", "time_ns"]);
    let pid = &attached[0]["pid"];
    assert!(done.lines.iter().all(|l| l["time_ns"].is_u64()));
    for (kind, extra) in [
        ("sample", &["ip", "kind", "pid", "program", "retval", "slot", "tid", "time_ns"][..]),
        ("printk", &["kind", "pid", "program", "text", "tid", "time_ns"]),
        ("ringbuf", &["data", "kind", "map", "pid", "program", "tid", "time_ns"]),
        ("perf_output", &["data", "kind", "map", "pid", "program", "tid", "time_ns"]),
    ] {
        let lines = done.kind(kind);
        assert_eq!(lines.len(), if kind == "perf_output" { 6 } else { 3 }, "{kind}: {}", done.out);
        for line in lines {
            assert_eq!(keys(line), extra);
            assert_eq!((line["program"].as_str(), &line["pid"], &line["tid"]), (Some("on_entry"), pid, pid));
        }
    }
    let texts: Vec<_> = done.kind("printk").iter().map(|l| l["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["probed 0", "probed 1", "probed 2"]);
    let ns: Vec<_> = done.kind("ringbuf").iter().map(|l| l["data"]["n"].as_u64().unwrap()).collect();
    assert_eq!(ns, [0, 1, 2]);
    let raw: Vec<_> = done.kind("perf_output").into_iter().filter(|l| l["map"] == "raw").collect();
    assert!(raw.iter().any(|l| l["data"] == 2), "decoded by --event: {raw:?}");
    let summary = done.kind("summary");
    assert_eq!(summary.len(), 1);
    assert_eq!(
        keys(summary[0]),
        [
            "exit_status",
            "hits",
            "kind",
            "lost",
            "missed",
            "no_slot",
            "over_budget",
            "program",
            "recursion_misses",
            "samples",
            "time_ns"
        ]
    );
    assert_eq!(
        (&summary[0]["hits"], &summary[0]["samples"], &summary[0]["exit_status"]),
        (&3.into(), &3.into(), &5.into())
    );
}

#[test]
fn samples_are_counted_or_lost() {
    let done = Done::of(trace(&["--json"], "test/sample.bpf.o", &["50000"]));
    let of = |program: &str| done.kind("summary").into_iter().find(|l| l["program"] == program).unwrap().clone();
    let (entry, ret) = (of("on_entry"), of("on_return"));
    let n = |v: &Value, key: &str| v[key].as_u64().unwrap();
    assert_eq!((n(&entry, "hits"), n(&ret, "hits")), (50_000, 50_000), "{}", done.err);
    assert_eq!(n(&entry, "samples") + n(&entry, "lost"), 25_000);
    assert_eq!(n(&ret, "samples") + n(&ret, "lost"), 50_000);
    assert_eq!(done.kind("sample").len() as u64, n(&entry, "samples") + n(&ret, "samples"));
    let func = done.kind("sample").into_iter().find(|l| l["program"] == "on_return").unwrap();
    assert!(func["func"].is_string() && func["ip"].is_string() && func["func"] != func["ip"]);
}

#[test]
fn globals_and_tail_calls() {
    let done = Done::of(trace(&["--json"], "test/tail.bpf.o", &["1000"]));
    assert_eq!(done.status, 0, "{}", done.err);
    let reached: Vec<_> = done.kind("map").iter().filter_map(|l| l["value"]["reached"].as_u64()).collect();
    assert_eq!(reached, [1000]);
}

#[test]
fn text_for_people() {
    let done = Done::of(trace(&["--func", "malloc"], "callers.bpf.o", &["1"]));
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.out.lines().any(|l| l.starts_with("callers[0x") && l.contains("+0x")), "{}", done.out);
    for part in ["attached on_call to malloc in ", "program", "hits"] {
        assert!(done.err.contains(part), "{}", done.err);
    }
    let done = Done::of(trace(&["--func", "probed"], "latency.bpf.o", &["2000"]));
    assert!(done.out.contains("latency: calls=2000 ") && done.out.contains("|****"), "{}{}", done.out, done.err);
}

#[test]
fn a_symbol_that_comes_later() {
    let so = dir().join("awaited.so");
    let done = Done::of(trace(
        &["--json", "--wait", "--func", "awaited"],
        "calls.bpf.o",
        &["0", "load", so.to_str().unwrap()],
    ));
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.out.contains("\n5500\n"), "{}", done.out);
    assert_eq!(done.kind("attached").len(), 1);
    assert!(done.kind("perf_output").len() > 10, "{}", done.err);
    let without = Done::of(trace(&["--json", "--func", "awaited"], "calls.bpf.o", &["1"]));
    assert_eq!(without.status, 2);
    assert!(without.err.contains("awaited"), "{}", without.err);
}

#[test]
fn endings() {
    let done = Done::of(trace(&["--json"], "test/count.bpf.o", &["10", "abort"]));
    assert_eq!(done.status, 0);
    let summary = done.kind("summary")[0];
    assert_eq!((&summary["signal"], &summary["exit_status"], &summary["hits"]), (&6.into(), &Value::Null, &10.into()));
    assert!(done.err.contains("signal 6"), "{}", done.err);

    let start = Instant::now();
    let mut child = Command::new(dir().join("target")).args(["1", "forever"]).spawn().unwrap();
    let pid = child.id().to_string();
    let mut c = Command::new(env!("CARGO_BIN_EXE_skep"));
    c.args(["trace", "--json", "--duration", "0.5"]).arg(bpf("test/count.bpf.o")).args(["--pid", &pid]);
    let done = Done::of(c);
    assert!(start.elapsed() > Duration::from_millis(500) && start.elapsed() < Duration::from_secs(10));
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.kind("summary")[0]["hits"].as_u64().unwrap() > 10);
    assert!(child.try_wait().unwrap().is_none(), "the process lives on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn helpers_that_only_the_kernel_has() {
    let done = Done::of(trace(&[], "test/task.bpf.o", &["1"]));
    assert_eq!(done.status, 3, "{}", done.err);
    assert!(done.err.contains("get_current_task") && done.err.contains("kernel"), "{}", done.err);
}

#[test]
fn a_closed_output_ends_the_trace() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = Command::new(dir().join("target")).args(["1", "forever"]).spawn().unwrap();
    let mut c = Command::new(env!("CARGO_BIN_EXE_skep"));
    c.args(["trace", "--json"]).arg(bpf("test/sample.bpf.o")).args(["--pid", &child.id().to_string()]);
    let out = c.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""));
    assert!(child.try_wait().unwrap().is_none(), "the process lives on");
    child.kill().unwrap();
    child.wait().unwrap();
}
