//! What cannot be done is refused by an error that names the thing and says what to do.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use skep_tests::{Target, build, is_root, object, scratch, skep, skep_bin, skip};

fn refused(args: &[&OsStr], status: i32, words: &[&str]) {
    let (code, out, err) = skep(args);
    assert_eq!(code, Some(status), "{args:?}\nstdout: {out}\nstderr: {err}");
    for word in words {
        let word = word.to_lowercase();
        assert!(err.to_lowercase().contains(&word), "no {word:?} in the message for {args:?}:\n{err}");
    }
    assert!(!err.contains("panicked"), "{err}");
}

fn trace_pid(object: &Path, pid: u32, status: i32, words: &[&str]) {
    refused(&["trace".as_ref(), object.as_os_str(), "--pid".as_ref(), pid.to_string().as_ref()], status, words);
}

#[test]
fn a_process_of_somebody_else() {
    let count = object("test/count.bpf.o");
    if is_root() {
        let target = Target::start(&build("quiet.c", &[]), &[]);
        let out = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(skep_bin())
            .arg("trace")
            .arg(&count)
            .args(["--pid", &target.pid().to_string()])
            .stdin(Stdio::null())
            .output()
            .expect("setpriv");
        let err = String::from_utf8_lossy(&out.stderr);
        if err.contains("Permission denied") && err.contains("setpriv") {
            return skip("an ordinary user cannot read the skep command here");
        }
        assert_eq!(out.status.code(), Some(2), "{err}");
        assert!(err.contains("root") || err.contains("uid 0"), "names the owner: {err}");
    } else {
        match ancestor_of_root() {
            Some(pid) => trace_pid(&count, pid, 2, &[&pid.to_string(), "uid 0"]),
            None => skip("no process that started this test belongs to root"),
        }
    }
}

/// The nearest process of root, other than init, that this test descends from.
fn ancestor_of_root() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let mut pid = std::process::id();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        pid = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok().filter(|p| *p > 1)?;
        if std::fs::metadata(format!("/proc/{pid}")).ok()?.uid() == 0 {
            return Some(pid);
        }
    }
}

#[test]
fn a_process_that_is_not_dumpable() {
    if is_root() {
        return; // root may: the other half of this test runs as an ordinary user
    }
    let target = Target::start(&build("quiet.c", &[]), &["undumpable"]);
    trace_pid(&object("test/count.bpf.o"), target.pid(), 2, &["dumpable"]);
}

#[test]
fn a_process_that_is_traced_already() {
    let target = Target::start(&build("quiet.c", &[]), &[]);
    // SAFETY: gettid has no preconditions.
    let me = format!("pid {}", unsafe { libc::gettid() });
    // SAFETY: seizes a child of this test; it is released when this thread ends.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, target.pid() as i32, 0, 0) };
    assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
    trace_pid(&object("test/count.bpf.o"), target.pid(), 2, &["traced", &me]);
    // SAFETY: as above.
    unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, target.pid() as i32, 0, 0) };
    let mut status = 0;
    // SAFETY: waits for the stop that was just asked for, then lets go.
    unsafe {
        libc::waitpid(target.pid() as i32, &mut status, libc::__WALL);
        libc::ptrace(libc::PTRACE_DETACH, target.pid() as i32, 0, 0);
    }
}

#[test]
fn a_process_under_a_seccomp_filter() {
    let filtered = build("filtered.c", &[]);
    let quiet = build("quiet.c", &[]);
    let target = Target::start(&filtered, &[quiet.to_str().expect("path")]);
    trace_pid(&object("test/count.bpf.o"), target.pid(), 2, &["seccomp", "same container"]);
    drop(target);
    // In the same sandbox there is nothing to fear.
    let program = build("static.c", &[]);
    let out = Command::new(&filtered)
        .arg(skep_bin())
        .args(["trace", "--json"])
        .arg(object("test/count.bpf.o"))
        .arg("--")
        .args([program.as_os_str(), "100".as_ref()])
        .output()
        .expect("runs");
    let (text, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(text.matches("\"hits\":100,").count(), 2, "{text}\n{err}");
}

#[test]
fn no_such_process() {
    trace_pid(&object("test/count.bpf.o"), 4_194_300, 2, &["no process with pid 4194300"]);
}

#[test]
fn no_such_symbol() {
    let target = Target::start(&build("quiet.c", &[]), &[]);
    let args = ["trace", "--func", "probbed"].map(OsStr::new);
    let object = object("test/arg.bpf.o");
    let pid = target.pid().to_string();
    let args: Vec<&OsStr> = args.into_iter().chain([object.as_os_str(), "--pid".as_ref(), pid.as_ref()]).collect();
    refused(&args, 2, &["probbed", "probed"]);
}

#[test]
fn a_program_that_only_the_kernel_can_fire() {
    let target = Target::start(&build("quiet.c", &[]), &[]);
    trace_pid(&object("test/packet.bpf.o"), target.pid(), 2, &["kernel"]);
}

#[test]
fn objects_that_are_none() {
    let dir = scratch();
    let good = std::fs::read(object("test/count.bpf.o")).expect("object");
    let host = build("quiet.c", &["-c"]);
    refused(&["check".as_ref(), host.as_os_str()], 2, &["x86"]);
    let empty = dir.join("empty.o");
    std::fs::write(&empty, b"").expect("write");
    refused(&["check".as_ref(), empty.as_os_str()], 2, &["empty.o"]);
    for length in [4, 40, 64, 200, good.len() / 2, good.len() - 30] {
        let cut = dir.join(format!("cut-{length}.o"));
        std::fs::write(&cut, &good[..length]).expect("write");
        refused(&["check".as_ref(), cut.as_os_str()], 2, &[&format!("cut-{length}.o")]);
    }
    refused(&["check".as_ref(), "/nonexistent/a.bpf.o".as_ref()], 2, &["/nonexistent/a.bpf.o"]);
}

#[test]
fn of_several_objects_the_others_are_judged() {
    let good = object("test/count.bpf.o");
    let (code, out, err) = skep(&["check".as_ref(), "--json".as_ref(), "/nonexistent.o".as_ref(), good.as_os_str()]);
    assert_eq!(code, Some(2), "{err}");
    assert_eq!(out.lines().filter(|l| l.contains("\"accepted\"")).count(), 2, "{out}{err}");
}
