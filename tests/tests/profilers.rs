//! Programs that run on samples; and profilers, which see the programs in a traced process by name: the files that `skep trace`
//! writes for them, and what `perf` makes of them where there is one.

use std::process::{Command, Stdio};

use skep_tests::{Target, Trace, build, is_root, object, scratch, skep, skep_bin, skip};

const SCRIPT: &str = "print(len([str(i) for i in range(300000)]))";
const COMMAND: [&str; 5] = ["env", "PYTHONMALLOC=malloc", "/usr/bin/python3", "-c", SCRIPT];

#[test]
fn the_map_names_the_code_of_each_image() {
    let dumps = scratch().join("dumps");
    std::fs::create_dir_all(&dumps).unwrap();
    let mut args = vec!["--perf-map".into(), "--jitdump".into()];
    args.extend([dumps.clone().into_os_string(), object("malloc.bpf.o").into_os_string(), "--".into()]);
    args.extend(COMMAND.map(Into::into));
    let mut trace = Trace::start(args);
    let attached = trace.until("attached");
    let program = attached["program"].as_str().unwrap().to_owned();
    let done = trace.finish();
    assert!(done.count("on_malloc", "hits") > 300_000);
    let map = std::fs::read_dir("/tmp")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("perf-"))
        .filter_map(|e| Some((e.path(), e.metadata().ok()?.modified().ok()?)))
        .filter(|(path, _)| {
            let pid = path.file_stem().and_then(|s| s.to_str()?.strip_prefix("perf-")).unwrap_or_default();
            std::fs::read_dir(&dumps)
                .unwrap()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with(&format!("skep-jit-{pid}-")))
        })
        .max_by_key(|(_, modified)| *modified)
        .expect("a map of the traced process")
        .0;
    let text = std::fs::read_to_string(&map).unwrap();
    std::fs::remove_file(map).unwrap();
    let lines: Vec<&str> = text.lines().filter(|l| l.ends_with(&format!("_{program}"))).collect();
    // `env`, and what it executes: code is elsewhere then.
    assert_eq!(lines.len(), 2, "{text}");
    assert_ne!(lines[0], lines[1]);
    assert!(lines[0].contains(" bpf_prog_"), "{text}");
}

#[test]
fn perf_shows_programs_in_a_traced_process() {
    let folder = scratch().join("perf");
    std::fs::create_dir_all(&folder).unwrap();
    let recorded = Command::new("perf")
        .args(["record", "-q", "-F", "5000", "-k", "mono", "-e", "cpu-clock:u", "-o", "perf.data", "--"])
        .arg(skep_bin())
        .args(["trace", "--jitdump", "."])
        .arg(object("malloc.bpf.o"))
        .arg("--")
        .args(COMMAND)
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output();
    let Ok(recorded) = recorded else { return println!("without perf: only the files were looked at") };
    if !folder.join("perf.data").exists() {
        let why = String::from_utf8_lossy(&recorded.stderr).into_owned();
        assert!(!is_root() || why.contains("perf_event_paranoid") || why.contains("not supported"), "{why}");
        return println!("perf records nothing here: {why}");
    }
    assert!(recorded.status.success(), "{recorded:?}");
    let perf = |args: &[&str]| {
        let out = Command::new("perf").args(args).current_dir(&folder).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    perf(&["inject", "--jit", "-i", "perf.data", "-o", "with-code.data"]);
    let report = perf(&["report", "-i", "with-code.data", "--stdio", "--sort", "comm,symbol"]);
    let named = report.lines().find(|l| l.contains("python3") && l.contains("bpf_prog_") && l.contains("_on_malloc"));
    println!("{}", named.unwrap_or_else(|| panic!("{report}")));
}

/// True if the kernel takes samples for us; says so if it does not.
fn samples(stderr: &str) -> bool {
    let refused = stderr.contains("cannot sample");
    if refused {
        assert!(!is_root() || !stderr.contains("cpu-clock"), "{stderr}");
        skip(stderr.lines().find(|l| l.contains("cannot sample")).unwrap_or_default());
    }
    !refused
}

#[test]
fn folded_stacks_of_a_program_without_frame_pointers() {
    let hot = build("hot.c", &["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"]);
    let profile = object("profile.bpf.o");
    let args = ["trace", "--folded", "--freq", "499"].map(std::ffi::OsStr::new).into_iter();
    let command = [profile.as_os_str(), "--".as_ref(), hot.as_os_str(), "1000000".as_ref()];
    let (status, out, err) = skep(&args.chain(command).collect::<Vec<_>>());
    if !samples(&err) {
        return;
    }
    assert_eq!(status, Some(0), "{err}");
    // What the command prints stands there, too.
    let out: Vec<&str> = out.lines().filter(|l| l.contains(';')).collect();
    let mut counts = std::collections::BTreeMap::new();
    for line in &out {
        let (stack, count) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let frames: Vec<&str> = stack.split(';').collect();
        assert!(frames[0].starts_with("hot"), "{line}");
        for caller in ["left", "right"] {
            if frames.ends_with(&["main", caller, "inner"]) {
                *counts.entry(caller).or_insert(0) += count.parse::<u64>().unwrap();
            }
        }
    }
    let all: u64 = out.iter().filter_map(|l| l.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    let of = |caller| counts.get(caller).copied().unwrap_or(0);
    assert!(of("left") > 0 && of("right") > 0 && (of("left") + of("right")) * 10 > all * 8, "{out:#?}");
}

#[test]
fn writes_to_a_word_of_memory() {
    let hot = build("hot.c", &["-O2"]);
    let mut target = Target::start(&hot, &["1", "40"]);
    let address = target.line();
    let sample = format!("write:{address}:8");
    let pid = target.pid().to_string();
    let profile = object("profile.bpf.o");
    let mut trace =
        Trace::start(["--sample".as_ref(), sample.as_ref(), profile.as_os_str(), "--pid".as_ref(), pid.as_ref()]);
    let Ok(attached) = trace.find("attached") else {
        let stderr = trace.finish().stderr;
        return assert!(!samples(&stderr), "{stderr}");
    };
    assert_eq!((attached["method"].as_str(), attached["pid"].as_u64()), (Some("sample"), pid.parse().ok()));
    target.go();
    let (output, status) = target.finish();
    assert!(status.success() && output[0].ends_with(" 39"), "{output:?}");
    let done = trace.finish();
    assert_eq!(done.count("on_tick", "hits"), 40, "{}", done.stderr);
    let counted: u64 =
        done.kind("map").iter().filter(|l| l["name"] == "counts").filter_map(|l| l["value"].as_u64()).sum();
    assert_eq!(counted, 40);
    let key = &done.kind("map").into_iter().find(|l| l["name"] == "counts").unwrap()["key"];
    assert!(key["comm"].as_str().is_some_and(|name| name.starts_with("hot")), "{key}");
}
