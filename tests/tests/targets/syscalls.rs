//! System calls: what programs are told of them is what was done, and the program that does it goes on as without.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use skep_tests::{Finished, Target, Trace, Value, build, build_with, object, root, scratch, skip};

const GETPPID: u64 = 110;
const RT_SIGRETURN: u64 = 15;

/// Something that a program was told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    tid: u64,
    exit: bool,
    number: u64,
    args: Vec<i64>,
    path: String,
}

fn told(done: &Finished) -> Vec<Told> {
    let one = |line: &&Value| {
        let data = &line["data"];
        let number = |name: &str| data[name].as_u64().unwrap_or_else(|| panic!("no {name} in {line}"));
        let word = |v: &Value| v.as_u64().map(u64::cast_signed).or(v.as_i64()).unwrap_or(0);
        Told {
            tid: number("tid"),
            exit: number("exit") == 1,
            number: number("number"),
            args: data["args"].as_array().map_or_else(Vec::new, |args| args.iter().map(word).collect()),
            path: data["path"].as_str().unwrap_or_default().to_owned(),
        }
    };
    done.kind("ringbuf").iter().map(one).collect()
}

/// What a program that `skep` traces prints must be what it did: its calls between two of `getppid`, in order.
fn compare(done: &Finished, printed: &[String], pid: u32) {
    let all: Vec<Told> = told(done).into_iter().filter(|t| t.tid == u64::from(pid)).collect();
    assert_eq!((all[0].exit, all[0].number, all[0].args[0]), (true, 0, 1), "the read that it was waiting in");
    let marks: Vec<usize> = (0..all.len()).filter(|&n| all[n].number == GETPPID && !all[n].exit).collect();
    let &[first, last] = &marks[..] else { panic!("{marks:?}") };
    assert_eq!((all[first + 1].number, all[first + 1].exit), (GETPPID, true));
    let between = &all[first + 2..last];
    // Calls in the order in which they were made, and their results: a handler's calls come between those of the call that it
    // interrupts. The kernel's way back from a handler is not watched.
    let mut open: Vec<u64> = Vec::new();
    let mut made: Vec<(u64, Option<i64>)> = Vec::new();
    let mut places: Vec<usize> = Vec::new();
    for t in between {
        assert_ne!(t.number, RT_SIGRETURN, "{t:?}");
        if t.exit {
            assert_eq!(open.pop(), Some(t.number), "{t:?}");
            made[places.pop().expect("as many")].1 = Some(t.args[0]);
        } else {
            open.push(t.number);
            places.push(made.len());
            made.push((t.number, None));
        }
    }
    assert_eq!(open, [0u64; 0]);
    // As the program lists them: a call that a handler interrupts was begun before those of the handler.
    let wanted: Vec<(u64, Option<i64>)> = printed
        .iter()
        .map(|line| {
            let (number, result) = line.split_once(' ').expect("two numbers");
            (number.parse().expect("a number"), result.parse().ok())
        })
        .collect();
    assert_eq!(made, wanted);
    let opened: Vec<&str> = between.iter().filter(|t| t.number == 257 && !t.exit).map(|t| &*t.path).collect();
    assert_eq!(opened, ["/etc/passwd", "/no/such/file"]);
    let pread = between.iter().find(|t| t.number == 17 && !t.exit).expect("a pread");
    assert_eq!(pread.args[2..4], [20, 5]);
    let missed: u64 = ["on_enter", "on_exit"].iter().map(|p| done.count(p, "missed") + done.count(p, "no_slot")).sum();
    assert_eq!(missed, 0);
}

fn listed(program: &Path) {
    let target = Target::start(program, &[]);
    let pid = target.pid();
    let mut trace = Trace::pid(&object("test/syscalls.bpf.o"), pid);
    let attached = trace.attached(2);
    let (printed, status) = target.finish();
    let done = trace.finish();
    assert!(status.success() && done.status.success(), "{status}: {}", done.stderr);
    compare(&done, &printed, pid);
    // What is not watched is a small part, and has a reason each.
    let unwatched = done.kind("unwatched");
    let places: u64 = attached.iter().map(|line| line["places"].as_u64().expect("a number")).sum();
    assert!((unwatched.len() as u64) * 10 < places, "{places} and {unwatched:?}");
    assert!(unwatched.iter().all(|line| line["reason"].as_str().is_some_and(|why| !why.is_empty())));
}

#[test]
fn are_told_as_they_were_made() {
    listed(&build("syscalls.c", &[]));
}

#[test]
fn in_static_programs_and_with_musl() {
    listed(&build("syscalls.c", &["-static"]));
    match Command::new("musl-gcc").arg("--version").output() {
        Ok(out) if out.status.success() => {
            for flags in [&[][..], &["-static"]] {
                let program = build_with("musl-gcc", "syscalls.c", flags);
                let target = Target::start(&program, &[]);
                let mut trace = Trace::pid(&object("test/syscalls.bpf.o"), target.pid());
                trace.attached(2);
                let (printed, status) = target.finish();
                let done = trace.finish();
                assert!(status.success() && done.status.success() && printed.len() > 10, "{status}: {}", done.stderr);
                // Where a thread may be cancelled musl looks at the instruction pointer: those are not watched.
                let enough = ["on_enter", "on_exit"].iter().all(|program| done.count(program, "hits") > 5);
                assert!(enough, "{}", done.stderr);
            }
        }
        _ => skip("musl-gcc is not installed"),
    }
}

/// A thread that waits in a system call is left alone by attach and detach.
#[test]
fn attach_and_detach_while_one_is_waited_in() {
    let program = build("syscalls.c", &[]);
    let plain = Target::start(&program, &[]).finish();
    let target = Target::start(&program, &[]);
    for _ in 0..3 {
        let mut trace = Trace::pid(&object("test/syscalls.bpf.o"), target.pid());
        trace.attached(2);
        trace.interrupt();
        let done = trace.finish();
        assert_eq!((done.status.code(), told(&done)), (Some(0), vec![]), "{}", done.stderr);
    }
    let (printed, status) = target.finish();
    assert_eq!((printed.len(), status.code()), (plain.0.len(), Some(0)));
}

#[test]
fn threads_and_children() {
    let program = build("syscalls.c", &[]);
    let program = program.to_str().expect("text");
    let done = Trace::command(&object("test/syscalls.bpf.o"), [program, "threads"]).finish();
    let mut counts: HashMap<(u64, bool), u64> = HashMap::new();
    for t in told(&done).into_iter().filter(|t| t.number == GETPPID) {
        *counts.entry((t.tid, t.exit)).or_default() += 1;
    }
    assert_eq!(counts.len(), 8, "{counts:?}: {}", done.stderr);
    assert!(counts.values().all(|&n| n == 1000), "{counts:?}");
    let done = Trace::command(&object("test/syscalls_raw.bpf.o"), [program, "threads"]).finish();
    assert_eq!([done.map_sum("calls", GETPPID), done.map_sum("returns", GETPPID)], [4000; 2], "{}", done.stderr);
    for how in [&[][..], &["--follow"]] {
        let object = object("test/syscalls.bpf.o");
        let args = how.iter().map(AsRef::as_ref).chain([object.as_os_str()]);
        let args = args.chain(["--", program, "children"].map(AsRef::as_ref));
        let done = Trace::start(args).finish();
        // In no order: the cloned child writes for itself.
        assert!(
            done.plain.iter().any(|l| l == "wrong 0") && done.plain.iter().any(|l| l == "cloned"),
            "{:?}",
            done.plain
        );
        assert!(done.status.success(), "{}", done.stderr);
        // Children return from the call that makes them without being told of.
        let made = |t: &Told| t.exit && [56, 57, 58, 435].contains(&t.number);
        assert!(told(&done).iter().filter(|t| made(t)).all(|t| t.args[0] > 0));
        assert!(told(&done).iter().any(made));
    }
}

/// What programs do and print is what they do without.
#[test]
fn programs_go_on_as_without() {
    let script = "import os,sys,threading,subprocess\n\
        t=[threading.Thread(target=lambda:[os.stat('/') for _ in range(200)]) for _ in range(4)]\n\
        [x.start() for x in t];[x.join() for x in t]\n\
        print(sorted(os.listdir('/usr/bin'))[:50], subprocess.run(['/bin/echo','x'],capture_output=True).stdout)";
    let commands = [format!("exec python3 -c \"{script}\""), "exec ls -lR /usr/include/linux".into()];
    for (n, command) in commands.into_iter().enumerate() {
        if n == 0 && !Command::new("python3").arg("--version").output().is_ok_and(|out| out.status.success()) {
            skip("python3 is not installed");
            continue;
        }
        let plain = Command::new("sh").args(["-c", &command]).output().expect("sh starts");
        let out = scratch().join(format!("syscalls-{n}"));
        let redirected = format!("{command} >{}", out.display());
        let done = Trace::command(&object("test/syscalls.bpf.o"), ["sh", "-c", &redirected]).finish();
        let printed = std::fs::read(&out).expect("output");
        assert!(printed == plain.stdout && done.status.success(), "{command}: {}", done.stderr);
        // What a handler of SIGCHLD calls in the middle of a program is missed, and counted.
        let [hits, missed] = ["hits", "missed"].map(|key| done.count("on_exit", key));
        assert!(hits > 100 && missed * 100 < hits, "{missed} of {hits} missed: {}", done.stderr);
    }
}

#[test]
fn of_one_name() {
    let opensnoop = root().join("bpf/opensnoop.bpf.o");
    let done = Trace::command(&opensnoop, ["cat", "/etc/hostname", "/no/such/file"]).finish();
    let opened = |path: &str| {
        let of = |l: &&&Value| l["data"]["path"] == path;
        done.kind("ringbuf").iter().find(of).map(|l| l["data"]["result"].as_i64().expect("a number"))
    };
    assert!(opened("/etc/hostname").is_some_and(|fd| fd >= 3), "{}", done.stderr);
    assert_eq!(opened("/no/such/file"), Some(-2));
}
