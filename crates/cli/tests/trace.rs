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

/// Calls a function with arguments of many kinds.
const TYPED: &str = r#"
#include <stdio.h>
struct conn { int flags; char name[16]; long id; long extra; struct conn *next; };
struct pair { long a; int b; };
#define OWN __attribute__((noinline, noclone))
OWN signed char mix(signed char a, unsigned char b, short c, unsigned d, int e, struct conn *conn, int seventh,
		    struct pair p) {
	__asm__ volatile("" : "+r"(conn) : : "memory");
	return a + b + c + d + e + conn->flags + seventh + p.a + p.b > 0 ? -100 : 100;
}
OWN int twice(int n) { __asm__ volatile("" : "+r"(n)); return n * 2; }
OWN int depth(int n) { __asm__ volatile("" : "+r"(n)); return n ? depth(n - 1) + 1 : 0; }
OWN double scale(double x) { __asm__ volatile("" : "+x"(x)); return x * 2; }
int main(void) {
	struct conn last = { 1, "last", 222, 0, 0 }, first = { 2, "first", 111, 0, &last };
	int sum = 0;
	for (int i = 0; i < 50; i++)
		sum += mix(-5, 250, -300, 4000000000u, -7, &first, -77, (struct pair){ 1L << 40, -9 });
	for (int i = -100; i < 0; i++) sum += twice(i);
	printf("%d %d %.0f\n", sum, depth(20), scale(4));
	return 0;
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
        build("typed", TYPED, &["-g", "-fno-optimize-sibling-calls"]);
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

/// `skep trace` of one of the built programs.
fn traced(args: &[&str], object: &str, target: &str) -> Done {
    let mut c = Command::new(env!("CARGO_BIN_EXE_skep"));
    c.args(["trace", "--json"]).args(args).arg(bpf(object)).arg("--").arg(dir().join(target)).stdin(Stdio::null());
    Done::of(c)
}

/// Runs a tool on files of the test's folder.
fn tool(name: &str, args: &[&str]) {
    let done = Command::new(name).args(args).current_dir(dir()).status().unwrap();
    assert!(done.success(), "{name} {args:?}");
}

/// What `typed.bpf.c` is to see of `mix`, 50 times at its entry and 50 times behind it.
fn sees_arguments(done: &Done) {
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.out.contains("-15100 20 8\n"), "the command's own output: {}", done.out);
    let seen: Vec<&Value> = done.kind("ringbuf").iter().map(|l| &l["data"]).collect();
    assert_eq!(seen.len(), 100, "{}", done.err);
    let address = done.kind("attached")[0]["address"].clone();
    for s in &seen {
        let args: Vec<i64> = s["args"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
        assert_eq!(args[..5], [-5, 250, -300, 4_000_000_000, -7], "{s}");
        assert_eq!((args[6], args[7], args[8] as i32), (-77, 1 << 40, -9), "{s}");
        assert_eq!((&s["count"], &s["by_helper"], &s["beyond"]), (&9.into(), &(-77).into(), &(-22).into()), "{s}");
        assert_eq!((&s["id"], &s["next_id"], &s["null_id"]), (&111.into(), &222.into(), &0.into()), "{s}");
        assert_eq!(s["name"], "first", "{s}");
        assert_eq!(format!("{:#x}", s["ip"].as_u64().unwrap()), address.as_str().unwrap(), "{s}");
        match s["when"].as_u64() {
            Some(1) => assert_eq!((args[9], &s["ret"]), (0, &0.into()), "{s}"),
            _ => assert_eq!((args[9], &s["ret"], &s["ret_error"]), (-100, &(-100).into(), &0.into()), "{s}"),
        }
    }
    let entries = seen.iter().filter(|s| s["when"] == 1).count();
    assert_eq!(entries, 50);
    let hits: Vec<_> = done.kind("summary").iter().map(|l| l["hits"].as_u64().unwrap()).collect();
    assert_eq!(hits, [50, 50]);
}

#[test]
fn programs_around_functions_see_typed_arguments() {
    for engine in ["jit", "interp"] {
        sees_arguments(&traced(&["--engine", engine], "test/typed.bpf.o", "typed"));
    }
    // The same types from a file, and as the program's own section.
    tool(env!("CARGO_BIN_EXE_skep"), &["btf", "gen", "-o", "typed.btf", "typed"]);
    tool("objcopy", &["--strip-debug", "typed", "typed-bare"]);
    let bare = traced(&[], "test/typed.bpf.o", "typed-bare");
    assert_eq!(bare.status, 2, "{}", bare.err);
    assert!(bare.err.contains("mix") && bare.err.contains("no debug information"), "{}", bare.err);
    let types = dir().join("typed.btf");
    sees_arguments(&traced(&["--btf", types.to_str().unwrap()], "test/typed.bpf.o", "typed-bare"));
    tool("objcopy", &["--add-section", ".BTF=typed.btf", "typed-bare", "typed-own"]);
    sees_arguments(&traced(&[], "test/typed.bpf.o", "typed-own"));
}

#[test]
fn programs_around_functions_that_the_user_names() {
    let done = traced(&["--func", "twice", "--func", "depth"], "test/typed_func.bpf.o", "typed");
    assert_eq!(done.status, 0, "{}", done.err);
    let sums = done.kind("map").into_iter().find(|l| l["name"] == "sums").unwrap();
    let value = |key: &str| sums["value"][key].as_i64().unwrap();
    // 100 of one function, and 21 of the other, each within the one before.
    assert_eq!((value("calls"), value("returns"), value("first")), (121, 121, 210 - 5050), "{sums}");
    for (func, part) in [
        ("scale", "scale returns what cannot be passed on"),
        ("absent", "no types of absent"),
        ("twice+4", "functions only"),
    ] {
        let done = traced(&["--func", func], "test/typed_func.bpf.o", "typed");
        assert!(done.status != 0 && done.err.contains(part), "{func}: {} {}", done.status, done.err);
    }
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let done = traced(&[], "test/typed_store.bpf.o", "typed");
    assert_eq!(done.status, 1, "{}", done.err);
    assert!(done.err.contains("written"), "{}", done.err);
}
