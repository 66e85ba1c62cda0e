//! Profilers see the programs in a traced process by name: the files that `skep trace` writes for them, and what `perf`
//! makes of them where there is one.

use std::process::{Command, Stdio};

use skep_tests::{Trace, is_root, object, scratch, skep_bin};

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
