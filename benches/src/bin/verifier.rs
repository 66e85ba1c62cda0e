//! Time to verify the corpus' heaviest programs: skep against this kernel's own verifier, one run, interleaved.
//!
//! usage: `cargo run --release -p skep-benches --bin verifier [PROGRAMS] [ROUNDS]`. `SKEP_CORPUS` names the corpus
//! (default `../shared/corpus` beside the workspace). The kernel's figure is what its log calls the verification time,
//! without making maps, BTF and machine code; skep's is that of the whole call. Both are wall time; so that others on the
//! machine do not count, both run with real-time priority (`SCHED_FIFO`). Needs root.
//! `SKEP_BENCH_ONLY` picks programs by a part of `object/program`, `SKEP_BENCH_HERE=1` leaves the kernel out.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use libbpf_sys as sys;
use skep_benches::median;
use skep_elf::{LoadOptions, Object};
use skep_tests::{root, scratch};
use skep_verifier::{Options, verify};

/// A program as the corpus names it.
struct Row {
    object: String,
    program: String,
    insns: u64,
    fixups: u64,
}

fn main() {
    let only = std::env::var("SKEP_BENCH_ONLY").ok();
    let here_only = std::env::var_os("SKEP_BENCH_HERE").is_some();
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (wanted, rounds) = (args.next().unwrap_or(100), args.next().unwrap_or(3));
    let corpus = std::env::var_os("SKEP_CORPUS").map_or_else(|| root().join("../shared/corpus"), PathBuf::from);
    let objects = scratch().join("corpus");
    std::fs::create_dir_all(&objects).expect("a directory for the corpus");
    let untar = Command::new("tar").arg("xJf").arg(corpus.join("objects.tar.xz")).arg("-C").arg(&objects).status();
    assert!(untar.is_ok_and(|s| s.success()), "tar cannot unpack the corpus");
    // SAFETY: no callback silences libbpf.
    unsafe { sys::libbpf_set_print(None) };
    let load = LoadOptions::host();
    let options = Options { btf: load.btf.clone(), ..Options::default() };
    let (mut ours, mut theirs, mut judged, mut skipped) = (0.0, 0.0, 0, Vec::new());
    let undisturbed = run_undisturbed();
    println!("| program | insns here | insns kernel | here ms | kernel ms |\n|---|---:|---:|---:|---:|");
    for row in rows(&corpus).into_iter().filter(|r| r.fixups & !3 == 0) {
        if judged == wanted {
            break;
        }
        if only.as_ref().is_some_and(|o| !format!("{}/{}", row.object, row.program).contains(o.as_str())) {
            continue;
        }
        let path = objects.join("objects").join(format!("{}.o", row.object));
        let bytes = std::fs::read(&path).expect("an object of the corpus");
        let object = Object::parse(&row.object, &bytes).expect("an object");
        let name = format!("{}/{}", row.object, row.program);
        let Ok(program) = object.program(&row.program, &load) else {
            skipped.push(format!("{name}: not linked here"));
            continue;
        };
        let (mut here, mut there, mut insns) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..rounds {
            let program = program.clone();
            let started = std::time::Instant::now();
            let verdict = verify(program, &options);
            let took = started.elapsed();
            let Ok(verified) = verdict else { break };
            let theirs = if here_only { Some((f64::NAN, row.insns)) } else { kernel(&path, &row) };
            let Some((usec, count)) = theirs else { break };
            here.push(took.as_secs_f64() * 1e3);
            there.push(usec / 1e3);
            insns = (verified.stats().insns_processed, count);
        }
        if here.len() < rounds {
            skipped.push(format!("{name}: not accepted on both sides"));
            continue;
        }
        let (here, there) = (median(&mut here), median(&mut there));
        println!("| {name} | {} | {} | {here:.2} | {there:.2} |", insns.0, insns.1);
        ours += here;
        theirs += there;
        judged += 1;
    }
    println!(
        "\n{judged} heaviest programs, median of {rounds}: here {ours:.1} ms, kernel {theirs:.1} ms: {:.2} of the kernel's",
        ours / theirs
    );
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    let priority =
        if undisturbed { "with real-time priority" } else { "WITHOUT real-time priority: others count as well" };
    println!("wall time {priority}; load average {load}");
    println!("peak memory of this process: {}", peak());
    for s in skipped {
        println!("left out: {s}");
    }
}

/// The accepted programs, heaviest first.
fn rows(corpus: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(corpus.join("truth.jsonl")).expect("truth.jsonl");
    let parsed = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let accepted = parsed.filter(|r| r["verdict"] == "accepted" && r["prog_flags"] == 0 && r["guessed_type"] == false);
    let mut rows: Vec<Row> = accepted
        .map(|r| Row {
            object: r["object"].as_str().unwrap_or_default().into(),
            program: r["program"].as_str().unwrap_or_default().into(),
            insns: r["insns_processed"].as_u64().unwrap_or(0),
            fixups: r["fixups"].as_u64().unwrap_or(0),
        })
        .collect();
    rows.sort_by_key(|r| std::cmp::Reverse(r.insns));
    rows
}

/// Takes a real-time priority, above all ordinary processes; false if that is not possible.
fn run_undisturbed() -> bool {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter outlives the call, which changes nothing but how this thread is scheduled.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) == 0 }
}

/// The kernel's own account of verifying a program: microseconds and instructions.
fn kernel(path: &Path, row: &Row) -> Option<(f64, u64)> {
    /// The level at which the log is nothing but statistics.
    const STATS: u32 = 4;
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut log = vec![0u8; 1 << 16];
    let mut opts = sys::bpf_object_open_opts {
        sz: size_of::<sys::bpf_object_open_opts>() as sys::size_t,
        kernel_log_buf: log.as_mut_ptr().cast(),
        kernel_log_size: log.len() as sys::size_t,
        kernel_log_level: STATS,
        ..Default::default()
    };
    // SAFETY: path and options outlive the call, the log outlives the object; a null result is checked, everything
    // reached through the object is used before it is closed, once.
    unsafe {
        let object = sys::bpf_object__open_file(path.as_ptr(), &raw mut opts);
        if object.is_null() {
            return None;
        }
        let mut program = sys::bpf_object__next_program(object, ptr::null_mut());
        while !program.is_null() {
            let name = CStr::from_ptr(sys::bpf_program__name(program)).to_string_lossy();
            sys::bpf_program__set_autoload(program, name == row.program);
            program = sys::bpf_object__next_program(object, program);
        }
        let mut map = sys::bpf_object__next_map(object, ptr::null());
        while !map.is_null() {
            sys::bpf_map__set_pin_path(map, ptr::null());
            if row.fixups & 1 != 0 && sys::bpf_map__max_entries(map) == 0 {
                sys::bpf_map__set_max_entries(map, 1);
            }
            map = sys::bpf_object__next_map(object, map);
        }
        let loaded = sys::bpf_object__load(object) == 0;
        sys::bpf_object__close(object);
        if !loaded {
            return None;
        }
    }
    let text = String::from_utf8_lossy(&log);
    let number = |before: &str| {
        let rest = text.split(before).nth(1)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    Some((number("verification time ")? as f64, number("processed ")?))
}

/// The most memory that this process had.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("unknown").trim().to_owned()
}
