//! The corpus's programs, run on the data that the kernel ran them on, return the same values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use skep_ebpf::program::InitialValue;
use skep_elf::{LoadOptions, Object};
use skep_jit::Engine;
use skep_subsystem::session::{Options, Session, SessionError};
use skep_subsystem::testrun::TestInput;
use skep_verifier::verify;

/// Programs whose value differs, each with the reason; none may be in it without need.
const LEDGER: &str = include_str!("corpus_runs.ledger");
/// A program is run for at most this long.
const LIMIT: Duration = Duration::from_secs(10);

fn corpus() -> Option<PathBuf> {
    let dir = std::env::var_os("SKEP_CORPUS").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"));
    dir.join("truth.jsonl").is_file().then_some(dir)
}

fn run(object: &Object, row: &Value, options: &LoadOptions) -> Result<i32, String> {
    let interp = run_by(object, row, options, Engine::Interpreter)?;
    let native = run_by(object, row, options, Engine::Jit)?;
    if interp == native { Ok(interp) } else { Err(format!("run: {interp} by interpreter, {native} by machine code")) }
}

fn run_by(object: &Object, row: &Value, options: &LoadOptions, engine: Engine) -> Result<i32, String> {
    let name = row["program"].as_str().unwrap_or_default();
    let load = |name: &str| {
        let mut program = object.program(name, options).map_err(|_| "link".to_owned())?;
        program.flags |= row["prog_flags"].as_u64().unwrap_or(0) as u32;
        verify(program, &skep_verifier::Options { btf: options.btf.clone(), ..skep_verifier::Options::default() })
            .map_err(|_| "verify".to_owned())
    };
    let called = object.maps().iter().flat_map(|m| &m.values).filter_map(|(_, v)| match v {
        InitialValue::Program(called) if called != name => Some(called.as_str()),
        _ => None,
    });
    let mut names: Vec<&str> = called.collect();
    names.sort_unstable();
    names.dedup();
    let programs = [name].into_iter().chain(names).map(load).collect::<Result<Vec<_>, _>>()?;
    let session = Session::new(programs, &Options { slots: 64, links: 1, engine, ..Options::default() });
    let session = session.map_err(|e| match e {
        SessionError::Compile(e) => format!("compile: {e}"),
        e => format!("session: {e}"),
    })?;
    let data = (row["type"] != "syscall").then_some(&[0; 64][..]);
    let input = TestInput { data, ctx: None, repeat: 1 };
    session.test_run(0, &input).map(|o| o.retval.cast_signed()).map_err(|e| format!("run: {e}"))
}

#[test]
fn return_values_are_the_kernels() {
    let Some(dir) = corpus() else { return println!("skipped: no corpus (SKEP_CORPUS)") };
    let temp = std::env::temp_dir().join(format!("skep-corpus-runs-{}", std::process::id()));
    std::fs::create_dir_all(&temp).unwrap();
    let unpacked = Command::new("tar").arg("-xJf").arg(dir.join("objects.tar.xz")).arg("-C").arg(&temp).status();
    assert!(unpacked.is_ok_and(|s| s.success()), "tar cannot unpack the corpus");
    let files: BTreeMap<String, PathBuf> = walk(&temp).collect();

    let mut options = LoadOptions::host();
    if let Some(btf) = vmlinux(&dir) {
        options.btf = Some(btf);
    }
    let truth = std::fs::read_to_string(dir.join("truth.jsonl")).unwrap();
    let rows = truth.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let ledger = |label: &str| LEDGER.lines().any(|l| l.split('#').next().unwrap_or_default().trim() == label);
    let (mut equal, mut other, mut wrong) = (0, BTreeMap::<String, u32>::new(), Vec::new());
    let mut objects = BTreeMap::<String, Option<Object>>::new();
    for row in rows.filter(|r| r["retval"].is_number()) {
        let types = ["socket_filter", "sched_cls", "xdp", "raw_tracepoint", "syscall", "cgroup_skb"];
        if !types.contains(&row["type"].as_str().unwrap_or_default()) {
            continue;
        }
        let name = row["object"].as_str().unwrap_or_default().to_owned();
        let object = objects.entry(name.clone()).or_insert_with(|| {
            let bytes = std::fs::read(files.get(&name)?).ok()?;
            Object::parse(&name, &bytes).ok()
        });
        let Some(object) = object else { continue };
        let label = format!("{name} {}", row["program"].as_str().unwrap_or_default());
        let start = Instant::now();
        match run(object, &row, &options) {
            Ok(retval) if Some(i64::from(retval)) == row["retval"].as_i64() => {
                equal += 1;
                if ledger(&label) {
                    wrong.push(format!("{label} is in the ledger, but right"));
                }
            }
            Ok(retval) if !ledger(&label) => wrong.push(format!("{label}: {retval:#x} instead of {}", row["retval"])),
            Ok(_) => *other.entry("in the ledger".into()).or_default() += 1,
            Err(why) => *other.entry(why).or_default() += 1,
        }
        assert!(start.elapsed() < LIMIT, "{label} took {:?}", start.elapsed());
    }
    std::fs::remove_dir_all(&temp).unwrap();
    println!("{equal} return values equal; not run: {other:#?}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn walk(dir: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if let Some(stem) = path.file_name().and_then(|n| n.to_str()) {
                found.push((stem.split('.').next().unwrap_or_default().to_owned(), path.clone()));
            }
        }
    }
    found.into_iter()
}

fn vmlinux(dir: &Path) -> Option<std::sync::Arc<skep_ebpf::btf::Btf>> {
    let out = Command::new("xz").arg("-dc").arg(dir.join("vmlinux.btf.xz")).output().ok()?;
    Some(std::sync::Arc::new(skep_ebpf::btf::Btf::parse(&out.stdout).ok()?))
}
