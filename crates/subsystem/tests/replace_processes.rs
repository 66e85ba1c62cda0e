//! Functions of a program replaced while it runs in two other processes: every call goes to exactly one version, and
//! versions with maps of their own come to both. The processes are this test's own program, started again. Once more where no
//! process may map machine code, so that programs are interpreted.
//!
//! A bounded slice; `SKEP_REPLACEMENTS=1000000` for the whole campaign.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "functions/make.rs"]
mod make;
#[path = "calls/script.rs"]
mod script;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use kernel::{Kernel, Ours, probed, probed_offset};
use libtest_mimic::{Arguments, Trial};
use make::*;
use script::{Attrs, Script};
use skep_subsystem::attach::main_if_requested;
use skep_subsystem::front::Config;

/// Calls of `f` in one hit.
const CALLS: u64 = 10;
const VERSIONS: usize = 3;
const SLOTS: usize = 8;
const PERCPU_ARRAY: u32 = 6;
const SET_BPF: u32 = 0x4004_2408;
const UPROBE: u32 = 9;
const SELF: &[u8] = b"/proc/self/exe\0";

fn main() {
    main_if_requested();
    match std::env::args().nth(1).as_deref() {
        Some("be-a-child") => return child(),
        Some("run-without-code") => {
            map_no_code();
            return every_call_goes_to_one_version();
        }
        _ => {}
    }
    let args = Arguments::from_args();
    let test = Trial::test("every_call_goes_to_one_version_in_two_processes", || {
        every_call_goes_to_one_version();
        Ok(())
    });
    // The filter is for all processes: those that are traced must not be under others.
    let interpreted = Trial::test("every_call_goes_to_one_version_where_code_cannot_be_mapped", || {
        let mut command = Command::new(std::env::current_exe()?);
        let status = command.arg("run-without-code").env("SKEP_REPLACEMENTS", "500").status()?;
        if status.success() { Ok(()) } else { Err(status.to_string().into()) }
    });
    libtest_mimic::run(&args, vec![test, interpreted]).exit();
}

/// From here on nothing large can be mapped executable, as the programs' code is: they are interpreted here.
fn map_no_code() {
    const OFFSETS: [u32; 3] = [0, 24, 32];
    let [nr, len, prot] = OFFSETS.map(|k| (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, k));
    let (equal, any) = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K);
    let least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    let ret = libc::BPF_RET | libc::BPF_K;
    let filter = [
        nr,
        (equal, 0, 4, libc::SYS_mmap as u32),
        prot,
        (any, 0, 2, libc::PROT_EXEC as u32),
        len,
        (least, 1, 0, 1 << 24),
        (ret, 0, 0, libc::SECCOMP_RET_ALLOW),
        (ret, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let mut filter = filter.map(|(code, jt, jf, k)| libc::sock_filter { code: code as u16, jt, jf, k });
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter is there while the kernel reads it.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(set, "a filter: {}", std::io::Error::last_os_error());
}

/// Calls the probed function so often, or from two threads until the next line; says how often.
fn child() {
    println!("ready");
    let mut line = String::new();
    while {
        line.clear();
        std::io::stdin().lock().read_line(&mut line).is_ok_and(|n| n > 0)
    } {
        let calls = match line.trim().parse::<u64>() {
            Ok(times) => {
                for n in 0..times {
                    std::hint::black_box(probed(n));
                }
                times
            }
            Err(_) => {
                println!("busy");
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let busy = || {
                        let mut calls = 0;
                        while !stop.load(Ordering::Relaxed) {
                            std::hint::black_box(probed(calls));
                            calls += 1;
                        }
                        calls
                    };
                    let threads = [scope.spawn(busy), scope.spawn(busy)];
                    std::io::stdin().lock().read_line(&mut String::new()).expect("a line");
                    stop.store(true, Ordering::Relaxed);
                    threads.map(|t| t.join().expect("a thread")).iter().sum()
                })
            }
        };
        println!("{calls}");
    }
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start() -> Process {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let mut child =
            command.arg("be-a-child").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child");
        let (stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let mut process = Process { child, stdin, stdout: BufReader::new(stdout) };
        assert_eq!(process.line(), "ready");
        process
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim().to_owned()
    }

    fn tell(&mut self, what: &str) -> String {
        writeln!(self.stdin, "{what}").expect("the child reads");
        self.line()
    }

    fn number(&mut self, what: &str) -> u64 {
        self.tell(what).parse().expect("a number")
    }
}

/// Counts in element `at` of an array, and returns `version`.
fn version(array: i64, at: usize, version: usize) -> String {
    format!(
        "*(u32 *)(r10 -4) = {at}\nr1 = map[fd:{array}]\nr2 = r10\nr2 += -4\ncall 1\nif r0 == 0 goto no{version}
r1 = *(u64 *)(r0 +0)\nr1 += 1\n*(u64 *)(r0 +0) = r1\nno{version}:\nr0 = {version}\nexit\n"
    )
}

/// Calls `f` many times; counts in an array what it returns.
fn target(seen: i64, entered: i64) -> String {
    format!(
        "r6 = 0\nagain:\nr1 = r6\ncall f\n*(u32 *)(r10 -4) = r0\nr1 = map[fd:{seen}]\nr2 = r10\nr2 += -4\ncall 1
if r0 == 0 goto none\nr1 = *(u64 *)(r0 +0)\nr1 += 1\n*(u64 *)(r0 +0) = r1\nnone:\nr6 += 1\nif r6 < {CALLS:#x} goto again
r0 = 0\nexit\nf:\n{}",
        version(entered, 0, 0)
    )
}

/// The counts in a per-CPU array, all CPUs together.
fn counts(ours: &Ours, array: i64) -> [u64; VERSIONS] {
    std::array::from_fn(|n| {
        let (key, mut values) = ([n as u32], vec![0u64; SLOTS]);
        let mut attr = Attrs::new(32).u32(0, array as u32).ptr(8, &key).u64(16, values.as_mut_ptr() as u64);
        assert_eq!(ours.bpf(MAP_LOOKUP, &mut attr.0), 0);
        values.iter().sum()
    })
}

fn every_call_goes_to_one_version() {
    let rounds: u64 = std::env::var("SKEP_REPLACEMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000);
    let mut processes = [Process::start(), Process::start()];
    let config = Config { slots: SLOTS as u32, processes: true, extension_update: true, ..Config::default() };
    let ours = Ours::with(config);
    let mut s = Script::new(&ours);
    let [seen, entered, other] = ["seen", "entered", "other"].map(|n| map(&mut s, n, PERCPU_ARRAY, 8, VERSIONS as u32));
    let functions = [("main", "i", 'i', true), ("f", "i", 'i', true)];
    let p = Program::new(KPROBE, 0, &functions, &target(seen, entered)).load(&mut s, "target");
    let extension = |s: &mut Script<'_>, text: &str| {
        Program::new(EXT, 0, &[("e", "i", 'i', true)], text).on(p, type_of(1)).load(s, "extension")
    };
    let (one, two) = (extension(&mut s, &version(entered, 1, 1)), extension(&mut s, &version(entered, 2, 2)));
    let elsewhere = extension(&mut s, &version(other, 0, 1));
    assert!(p >= 0 && one >= 0 && two >= 0 && elsewhere >= 0);
    for process in &processes {
        let attr = Attrs::new(136).u32(0, UPROBE).u32(4, 136).u64(16, 1).ptr(56, SELF).u64(64, probed_offset());
        let event = ours.perf_open(attr.0.as_ptr() as u64, process.child.id() as i32, -1, -1, 0);
        assert!(event >= 0, "{event}");
        assert_eq!(ours.ioctl(event, SET_BPF, p as u64), 0);
    }
    let mut calls = 0;
    for process in &mut processes {
        calls += process.number("7");
    }
    assert_eq!(counts(&ours, entered), [calls * CALLS, 0, 0], "the original, in both");
    processes.iter_mut().for_each(|p| assert_eq!(p.tell("busy"), "busy"));
    let bpf = |cmd: u32, mut attr: Attrs| ours.bpf(cmd, &mut attr.0);
    let link = |prog: i64| bpf(LINK_CREATE, Attrs::new(64).u32(0, prog as u32).u32(4, p as u32).u32(16, type_of(1)));
    let mut attached = link(one);
    assert!(attached >= 0, "{attached}");
    for n in 0..rounds {
        let new = if n % 2 == 0 { two } else { one };
        if n % 64 == 62 {
            ours.close(attached);
            attached = link(new);
            assert!(attached >= 0, "{attached}");
        } else {
            assert_eq!(bpf(LINK_UPDATE, Attrs::new(16).u32(0, attached as u32).u32(4, new as u32)), 0);
        }
        if n % 16 == 0 {
            std::thread::yield_now();
        }
    }
    ours.close(attached);
    for process in &mut processes {
        calls += process.number("");
    }
    let (returned, went) = (counts(&ours, seen), counts(&ours, entered));
    println!("{rounds} replacements, {calls} hits in two processes, calls by version {went:?}");
    assert_eq!(returned, went, "each call went to the version that it returned from");
    assert_eq!(went.iter().sum::<u64>(), calls * CALLS, "none was lost, none was doubled");
    // Detached: the original. With a map of its own: it comes to both.
    let before = went;
    for (n, process) in processes.iter_mut().enumerate() {
        process.number("5");
        assert_eq!(counts(&ours, entered)[0], before[0] + 5 * CALLS * (n as u64 + 1), "the original is back");
    }
    let attached = link(elsewhere);
    assert!(attached >= 0, "{attached}");
    for (n, process) in processes.iter_mut().enumerate() {
        process.number("5");
        assert_eq!(counts(&ours, other)[0], 5 * CALLS * (n as u64 + 1), "a version with a map of its own");
    }
    ours.close(attached);
    processes[0].number("5");
    assert_eq!(counts(&ours, entered)[0], before[0] + 15 * CALLS);
    // Around the function, with yet another map.
    let tracer = Program::new(TRACING, FEXIT, &[("t", "i", 'i', true)], &version(other, 2, 0)).on(p, type_of(1));
    let tracer = tracer.load(&mut s, "tracer");
    let attached = bpf(RAW_OPEN, Attrs::new(16).u32(8, tracer as u32));
    assert!(attached >= 0, "{attached}");
    for (n, process) in processes.iter_mut().enumerate() {
        process.number("5");
        assert_eq!(counts(&ours, other)[2], 5 * CALLS * (n as u64 + 1), "behind the function");
    }
    drop(s);
}
