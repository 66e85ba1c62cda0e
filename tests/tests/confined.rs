//! Programs that put themselves under a seccomp filter while they are traced: it must not find system calls of ours.

use std::io::Write;
use std::process::{Command, Stdio};

use skep_tests::{Finished, Target, Trace, build, object, scratch};

const HOWS: [&str; 3] = ["prctl", "syscall", "strict"];

fn confined() -> std::path::PathBuf {
    build("confined.c", &["-O2", "-pthread"])
}

/// How many reads were answered so.
fn answers(done: &Finished, answer: i64) -> u64 {
    let of = |line: &&&serde_json::Value| line["name"] == "answers" && line["key"].as_i64() == Some(answer);
    done.kind("map").iter().find(of).and_then(|line| line["value"].as_u64()).unwrap_or(0)
}

#[test]
fn a_command_that_confines_itself() {
    let program = confined();
    for how in HOWS {
        let script = scratch().join("letters");
        std::fs::File::create(&script).and_then(|mut file| file.write_all(b"ptcptp")).expect("letters");
        let shell = format!("exec {} {how} < {}", program.display(), script.display());
        let plain = Command::new("sh").args(["-c", &shell]).stdin(Stdio::null()).output().expect("sh");
        assert_eq!(plain.status.code(), Some(5), "{how}: without probes");
        let done = Trace::command(&object("test/read.bpf.o"), ["sh", "-c", &shell]).finish();
        let lines: Vec<String> = String::from_utf8_lossy(&plain.stdout).lines().map(str::to_owned).collect();
        assert_eq!(done.plain, lines, "{how}: {}", done.stderr);
        let summary = done.summary("on_entry");
        assert_eq!(summary["exit_status"].as_i64(), Some(5), "{how}: {}", done.stderr);
        let threads = if how == "strict" { 0 } else { 10 };
        assert_eq!(done.count("on_entry", "hits"), 15 + threads, "{how}: {}", done.stderr);
        // What was read before, and what could not be read behind.
        assert_eq!(answers(&done, 0), 5 + threads / 2, "{how}");
        assert_eq!(answers(&done, -14), 10 + threads / 2, "{how}");
    }
}

#[test]
fn a_program_that_only_asks_what_filters_there_are() {
    let program = confined();
    let mut target = Target::start(&program, &["asks"]);
    let mut trace = Trace::pid(&object("test/read.bpf.o"), target.pid());
    trace.attached(1);
    for letter in ["c", "p"] {
        target.send(letter);
        assert_eq!(target.line(), "done", "`{letter}`");
    }
    trace.interrupt();
    let done = trace.finish();
    assert_eq!((answers(&done, 0), answers(&done, -14)), (5, 0), "{}", done.stderr);
    assert_eq!(target.finish().1.code(), Some(5));
}

#[test]
fn a_process_that_confines_itself() {
    let program = confined();
    for how in HOWS {
        let mut target = Target::start(&program, &[how]);
        let mut trace = Trace::pid(&object("test/read.bpf.o"), target.pid());
        trace.attached(1);
        for letter in ["p", "c", "p"] {
            target.send(letter);
            assert_eq!(target.line(), "done", "{how}: `{letter}`");
        }
        trace.interrupt();
        let done = trace.finish();
        assert_eq!(done.count("on_entry", "hits"), 10, "{how}: {}", done.stderr);
        assert_eq!(answers(&done, -14), 5, "{how}");
        // Nothing was done in it to detach, and its text is its own again.
        target.send("p");
        assert_eq!(target.line(), "done", "{how}: after the trace");
        let (_, status) = target.finish();
        assert_eq!(status.code(), Some(5), "{how}");
    }
}
