//! Programs that are linked to nothing of ours, in whose process a subsystem is preloaded: skeletons as bpftool makes them,
//! and bpftool itself.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skep_tests::{Trace, Value, object, root, scratch, skep, skip};

use crate::probes::Worker;

/// Tests of this file.
pub const TESTS: &[(&str, fn())] = &[
    ("bpftool: skeletons in a program in C", skeletons),
    ("bpftool: shows, dumps and runs what it loaded", commands),
    ("skep trace: a USDT program made with libbpf's headers", traced),
];

/// A folder beside the test's own: `examples`, `build`.
fn beside(folder: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    exe.parent().and_then(Path::parent).expect("target folder").join(folder)
}

/// The library to preload.
fn preload() -> PathBuf {
    let library = beside("examples").join("libpreload.so");
    let hint = "run `cargo build -p skep-tests --example preload`, with --release for release tests, or `cargo test`";
    assert!(library.exists(), "{} is not built: {hint}", library.display());
    library
}

/// bpftool, if this machine has it.
fn bpftool() -> Option<PathBuf> {
    let found = ["/usr/sbin/bpftool", "/usr/bin/bpftool", "/sbin/bpftool"].map(PathBuf::from);
    let found = found.into_iter().find(|p| p.exists());
    if found.is_none() {
        skip("there is no bpftool");
    }
    found
}

/// What libbpf-sys has built: libbpf and its headers.
fn libbpf() -> PathBuf {
    let folders = std::fs::read_dir(beside("build")).expect("the build folder").flatten();
    let built = folders.map(|f| f.path().join("out")).filter(|out| out.join("libbpf.a").exists());
    let newest = built.max_by_key(|out| out.join("libbpf.a").metadata().and_then(|m| m.modified()).ok());
    newest.expect("libbpf-sys has built libbpf")
}

fn done(command: &mut Command) -> Vec<u8> {
    let out = command.stderr(Stdio::inherit()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stdout));
    out.stdout
}

/// Compiles an object of `tests/targets` with libbpf's headers.
fn compiled(name: &str, include: &Path) -> PathBuf {
    let out = scratch().join(format!("{name}.bpf.o"));
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang-19".into());
    let source = root().join(format!("tests/targets/{name}.bpf.c"));
    let flags = ["-g", "-O2", "-mcpu=v3", "-target", "bpf", "-Wall", "-c"];
    // Where Debian has the headers that are of this machine.
    let system = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    done(Command::new(clang).args(flags).arg(system).arg("-I").arg(include).arg(source).arg("-o").arg(&out));
    out
}

fn skeletons() {
    let Some(bpftool) = bpftool() else { return };
    let libbpf = libbpf();
    let include = libbpf.join("include");
    let objects = [
        ("client_data", None),
        ("client_kprobes", None),
        ("client_nested", None),
        ("client_pin", None),
        ("client_probes", None),
        ("client_tail_filled", None),
        ("usdt_arg", Some(compiled("usdt_arg", &include))),
    ];
    for (name, file) in objects {
        let file = file.unwrap_or_else(|| object(&format!("test/{name}.bpf.o")));
        let skeleton = done(Command::new(&bpftool).args(["gen", "skeleton"]).arg(file).args(["name", name]));
        std::fs::write(scratch().join(format!("{name}.skel.h")), skeleton).expect("scratch can be written");
    }
    let program = scratch().join("skeletons");
    let source = root().join("tests/targets/skeletons.c");
    done(
        Command::new("gcc")
            .args(["-O1", "-Wall", "-I"])
            .arg(&include)
            .arg("-I")
            .arg(scratch())
            .arg(source)
            .arg("-o")
            .arg(&program)
            .arg(libbpf.join("libbpf.a"))
            .args(["-lelf", "-lz"]),
    );

    let mut worker = Worker::start();
    let mut child = Command::new(&program)
        .arg(worker.pid().to_string())
        .arg(&worker.program)
        .env("LD_PRELOAD", preload())
        .env("SKEP_TRACED", worker.pid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    let mut passed = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("it speaks");
        match line.split_once(' ') {
            Some(("work", n)) => {
                worker.work(n.parse().expect("a number"));
                writeln!(stdin).expect("it listens");
            }
            Some(("ok", test)) => passed.push(test.to_owned()),
            Some(_) => panic!("{line}"),
            None => passed.push(line),
        }
    }
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status} after {passed:?}");
    assert_eq!((passed.len(), passed.last().map(String::as_str)), (12, Some("done")), "{passed:?}");
}

/// `skep trace` finds the places of a probe, says to the program that it listens, and tells where arguments are.
fn traced() {
    let object = compiled("usdt_arg", &libbpf().join("include"));
    let mut worker = Worker::start();
    for round in 0..2 {
        worker.work(5);
        let func = format!("{}:skep:work", worker.program.display());
        let mut args = vec![object.clone().into_os_string(), "--func".into(), func.into()];
        args.extend(["--pid".into(), worker.pid().to_string().into()]);
        let mut trace = Trace::start(args);
        trace.until("attached");
        worker.work(20);
        trace.interrupt();
        let done = trace.finish();
        assert_eq!(done.count("on_usdt", "hits"), 20, "round {round}: {}", done.stderr);
        let data = done.kind("map").into_iter().find(|m| m["value"]["hits"].is_u64()).expect("global data").clone();
        let of = |name: &str| data["value"][name].as_i64();
        assert_eq!((of("first"), of("second"), of("count")), (Some(20), Some(7), Some(2)), "{data}");
    }
    let nowhere = format!("{}:skep:play", worker.program.display());
    let args =
        ["trace".as_ref(), object.as_os_str(), "--func".as_ref(), nowhere.as_ref(), "--pid".as_ref(), "1".as_ref()];
    let (status, _, stderr) = skep(&args);
    assert!(status == Some(2) && stderr.contains("no probe skep:play; it has skep:work"), "{stderr}");
}

/// What bpftool answers to some commands, in one process: JSON, one value for each.
fn batch(bpftool: &Path, commands: &[String]) -> Vec<Value> {
    let file = scratch().join("commands");
    std::fs::write(&file, commands.join("\n") + "\n").expect("scratch can be written");
    let out = Command::new(bpftool)
        .args(["-j", "batch", "file"])
        .arg(file)
        .env("LD_PRELOAD", preload())
        .output()
        .expect("bpftool starts");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}: {text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    let answers: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(answers.len(), commands.len(), "{text}");
    answers.into_iter().map(|a| a["output"].clone()).collect()
}

fn commands() {
    let Some(bpftool) = bpftool() else { return };
    let object = object("test/client_data.bpf.o");
    let packet = scratch().join("packet");
    std::fs::write(&packet, [0; 64]).expect("scratch can be written");
    let commands = [
        format!("prog load {} /sys/fs/bpf/counted", object.display()),
        "prog show".into(),
        "prog show pinned /sys/fs/bpf/counted".into(),
        format!("prog run pinned /sys/fs/bpf/counted data_in {} repeat 3", packet.display()),
        "map show".into(),
        "map dump name by_run".into(),
        "map update name by_run key 9 0 0 0 value 1 2 0 0 0 0 0 0".into(),
        "map lookup name by_run key 9 0 0 0".into(),
        "map delete name by_run key 9 0 0 0".into(),
        "prog dump xlated pinned /sys/fs/bpf/counted".into(),
        "btf show".into(),
        "link show".into(),
        "map create /sys/fs/bpf/mine type hash key 4 value 8 entries 2 name mine".into(),
        "map show name mine".into(),
    ];
    let answers = batch(&bpftool, &commands);
    let all = |n: usize| answers[n].as_array().cloned().unwrap_or_default();
    let [shown] = &all(1)[..] else { panic!("{:?}", answers[1]) };
    assert_eq!((shown["name"].as_str(), shown["type"].as_str()), (Some("counted"), Some("sched_cls")));
    assert_eq!(shown, &answers[2]);
    assert_eq!(answers[3]["retval"].as_u64(), Some(7));
    let names: Vec<_> = all(4).iter().filter_map(|m| m["name"].as_str().map(str::to_owned)).collect();
    assert!(names.contains(&"by_run".into()) && names.contains(&"ring".into()), "{names:?}");
    let mut formatted: Vec<_> = all(5).iter().map(|e| e["formatted"]["value"].as_u64()).collect();
    formatted.sort_unstable();
    assert_eq!(formatted, [Some(101), Some(102), Some(103)], "{:?}", answers[5]);
    assert_eq!(answers[7]["formatted"]["value"].as_u64(), Some(0x201), "{:?}", answers[7]);
    assert!(!all(9).is_empty());
    assert_eq!(all(11), Vec::<Value>::new());
    assert_eq!((answers[13]["type"].as_str(), answers[13]["max_entries"].as_u64()), (Some("hash"), Some(2)));
}
