//! The measured tables of kprobes, row by row (`tables/kprobes.txt`): run on a function that this process publishes, and on
//! one of a traced process, which is this test's own program, started again.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kernel::{Kernel, Ours, probed, probed_offset};
use libtest_mimic::{Arguments, Trial};
use script::Attrs;
use skep_ebpf::uapi::PtRegs;
use skep_subsystem::attach::main_if_requested;
use skep_subsystem::front::probe::Function;
use skep_subsystem::front::{Config, Errno};

const TABLES: &str = include_str!("tables/kprobes.txt");

const KPROBE: u32 = 8;
const UPROBE: u32 = 9;
const SET_BPF: u32 = 0x4004_2408;
const QUERY_BPF: u32 = 0xc008_240a;
const DISABLE: u32 = 0x2401;
const EVENTS: &str = "/sys/kernel/tracing/kprobe_events";
const SELF: &[u8] = b"/proc/self/exe\0";
const FUNCTION: &str = "skep_table_function";
const OTHER: &str = "skep_other_function";
const RING: usize = 9 * 4096;

/// What the rows are about.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub extern "C" fn skep_table_function(x: u64) -> u64 {
    // Whatever the compiler's options: the first instruction has five bytes.
    std::arch::naked_asm!("mov [rsp - 8], rdi", "mov rax, [rsp - 8]", "lea rax, [rax + rax * 2]", "ret")
}

/// Another one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn skep_other_function(x: u64) -> u64 {
    std::hint::black_box(x) * 5
}

fn main() {
    main_if_requested();
    if std::env::args().nth(1).as_deref() == Some("be-a-child") {
        return child();
    }
    let rows = Trial::test("rows", || {
        let published = run(Stage::Published);
        let traced = run(Stage::Traced(Mutex::new(Process::start())));
        compare(&published, &traced);
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![rows]).exit();
}

/// Calls the functions as often as a line says, here or on another thread.
fn child() {
    println!("ready");
    let calls = |times: u64| {
        for n in 0..times {
            std::hint::black_box(skep_table_function(n));
            std::hint::black_box(skep_other_function(n));
            std::hint::black_box(probed(n));
        }
    };
    for line in std::io::stdin().lines() {
        let line = line.unwrap_or_default();
        match line.split_once(' ') {
            Some((_, times)) => {
                let times = times.parse().unwrap_or(0);
                std::thread::spawn(move || calls(times)).join().expect("a thread");
            }
            None => calls(line.parse().unwrap_or(0)),
        }
        println!("done");
    }
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start() -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg("be-a-child").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut process = Process { child, stdin, stdout };
        assert_eq!(process.line(), "ready\n");
        process
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn call(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").unwrap();
        assert_eq!(self.line(), "done\n");
        // Its samples arrive in their own time.
        std::thread::sleep(Duration::from_millis(40));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the rows are run.
enum Stage {
    Published,
    Traced(Mutex<Process>),
}

struct Run {
    stage: Stage,
    ours: Ours,
    /// Those that are published, where they are.
    functions: Vec<Arc<Function>>,
    rows: BTreeMap<&'static str, String>,
}

/// `ok`, or the errno's name.
fn name(r: i64) -> String {
    if r >= 0 { "ok".into() } else { Errno(-r as i32).name().into() }
}

/// Adds one to the first value of an array, and returns a number.
fn counts(map: i64, x: u32) -> Vec<u64> {
    vec![
        0x0062 | 0x0a << 8 | 0xfffc << 16, // *(u32 *)(r10 - 4) = 0
        0x18 | 0x11 << 8 | (map as u64) << 32,
        0,
        0xbf | 0xa2 << 8, // r2 = r10
        0x07 | 0x02 << 8 | 0xffff_fffc << 32,
        0x85 | 1 << 32, // map_lookup_elem
        0x15 | 2 << 16, // if r0 == 0 goto +2
        0xb7 | 0x01 << 8 | 1 << 32,
        0xdb | 0x10 << 8, // lock *(u64 *)r0 += r1
        0xb7 | u64::from(x) << 32,
        0x95,
    ]
}

/// `r0 = 1; exit`.
const ONE: [u64; 2] = [0xb7 | 1 << 32, 0x95];

fn tracepoint(id: u64) -> Attrs {
    Attrs::new(136).u32(0, 2).u32(4, 136).u64(8, id).u64(16, 1).u64(24, 1 | 2 | 1 << 10)
}

fn pmu(kind: u32, config: u64) -> Attrs {
    tracepoint(config).u32(0, kind)
}

fn with_end(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

impl Run {
    fn row(&mut self, id: &'static str, answer: impl ToString) {
        let before = self.rows.insert(id, answer.to_string());
        assert!(before.is_none(), "{id} twice");
    }

    fn hit(&self, times: u64) {
        match &self.stage {
            Stage::Published => self.publish_hits(times),
            Stage::Traced(process) => process.lock().unwrap().call(&times.to_string()),
        }
    }

    /// From a thread that the event was not opened for.
    fn hit_elsewhere(&self, times: u64) {
        match &self.stage {
            Stage::Published => std::thread::scope(|s| s.spawn(|| self.publish_hits(times)).join().unwrap()),
            Stage::Traced(process) => process.lock().unwrap().call(&format!("thread {times}")),
        }
    }

    fn publish_hits(&self, times: u64) {
        for function in &self.functions {
            let regs = PtRegs { rdi: 5, rip: 0x1000, ..PtRegs::default() };
            for _ in 0..times {
                function.enter(&regs);
                function.leave(&PtRegs { rip: 0x2000, ..regs });
            }
        }
    }

    /// This task, where hits are.
    fn task(&self) -> i32 {
        match &self.stage {
            Stage::Published => 0,
            Stage::Traced(process) => process.lock().unwrap().child.id() as i32,
        }
    }

    fn load(&self, ty: u32, attach: u32, flags: u32, code: &[u64]) -> i64 {
        let attr = Attrs::new(168).u32(0, ty).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0");
        self.ours.bpf(5, &mut attr.u32(44, flags).u32(68, attach).0)
    }

    fn open(&self, attr: &Attrs) -> i64 {
        self.ours.perf_open(attr.0.as_ptr() as u64, self.task(), -1, -1, 8)
    }

    fn set(&self, event: i64, prog: i64) -> i64 {
        self.ours.ioctl(event, SET_BPF, prog as u64)
    }

    fn count(&self, fd: i64) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(self.ours.read(fd, &mut bytes), 8);
        u64::from_ne_bytes(bytes)
    }

    fn counter(&self) -> i64 {
        self.ours.bpf(0, &mut Attrs::new(44).u32(0, 2).u32(4, 4).u32(8, 8).u32(12, 1).0)
    }

    /// What the counting programs counted since the last asking.
    fn ran(&self, map: i64) -> u64 {
        let (key, value, zero) = ([0u32], [0u64], [0u64]);
        let at = |value: &[u64; 1]| Attrs::new(32).u32(0, map as u32).ptr(8, &key).ptr(16, value);
        assert_eq!(self.ours.bpf(1, &mut at(&value).0), 0);
        // SAFETY: the call has written it.
        let found = unsafe { value.as_ptr().read_volatile() };
        assert_eq!(self.ours.bpf(2, &mut at(&zero).0), 0);
        found
    }

    fn write(&self, text: &str) -> i64 {
        self.ours.write(EVENTS, text, false)
    }

    fn id(&self, event: &str) -> u64 {
        let text = self.ours.file(&format!("/sys/kernel/tracing/events/{event}/id")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    fn ring(&self, fd: i64) -> i64 {
        let at = self.ours.map(fd, RING, 0, true);
        assert!(at > 0, "{at}");
        at
    }

    /// What is in a ring, which is emptied: `N records`, and how the first one is.
    fn records(&self, ring: i64) -> String {
        let base = ring as *mut u8;
        let word = |at: usize| base.wrapping_add(at).cast::<u64>();
        let mut found: Vec<Vec<u8>> = Vec::new();
        // SAFETY: a mapped ring; what is read of it is complete.
        unsafe {
            let (head, mut tail) = (word(1024).read_volatile(), word(1032).read_volatile());
            let size = word(1048).read();
            let byte = |at: u64| base.wrapping_add(4096 + (at % size) as usize).read();
            while tail < head {
                let len = u64::from(byte(tail + 6)) | u64::from(byte(tail + 7)) << 8;
                found.push((tail..tail + len.max(8)).map(byte).collect());
                tail += len.max(8);
            }
            word(1032).write_volatile(tail);
        }
        match found.first() {
            None => "0 records".into(),
            Some(r) => {
                let half = |at: usize| u16::from(r[at]) | u16::from(r[at + 1]) << 8;
                let count = found.len();
                format!("{count} records: type {} misc {} size {} raw {}", half(0), half(4), half(6), half(24))
            }
        }
    }
}

fn run(stage: Stage) -> BTreeMap<&'static str, String> {
    let traced = match &stage {
        Stage::Published => None,
        Stage::Traced(process) => Some(process.lock().unwrap().child.id()),
    };
    let ours = Ours::with(Config { slots: 4, processes: traced.is_some(), traced, ..Config::default() });
    let mut functions = Vec::new();
    if traced.is_none() {
        // What `Ours` publishes comes first.
        assert!(ours.file(EVENTS).is_some());
        let file = Some(("/proc/self/exe", probed_offset()));
        let publish = |name, at, file| ours.subsystem.functions().publish(name, at, file);
        functions =
            vec![publish(FUNCTION, 0x1000, None), publish(OTHER, 0x3000, None), publish("probed", 0x5000, file)];
    }
    let mut run = Run { stage, ours, functions, rows: BTreeMap::new() };
    run.loads();
    run.event();
    run.event_programs();
    run.kprobe_pmu();
    run.uprobe_pmu();
    run.multi();
    run.rows
}

/// Against the table: each row is as it says, and none is missing on either side.
fn compare(published: &BTreeMap<&str, String>, traced: &BTreeMap<&str, String>) {
    let (mut same, mut other, mut idle, mut wrong) = (0, 0, 0, Vec::new());
    let mut known = std::collections::BTreeSet::new();
    for line in TABLES.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let parts: Vec<&str> = line.split('|').map(str::trim).collect();
        let [id, what, there, here, why] = parts[..] else { panic!("five columns: {line}") };
        assert!(known.insert(id), "{id} is there twice");
        assert_eq!(here == "=", why.is_empty(), "{id}: whatever differs has a reason, nothing else");
        let (first, second) = here.split_once(" / ").unwrap_or((here, here));
        for (stage, expected, rows) in [("published", first, published), ("traced", second, traced)] {
            let expected = if expected == "=" { there } else { expected };
            match (rows.get(id), expected) {
                (None, "-") => idle += 1,
                (Some(answer), expected) if answer == expected && expected == there => same += 1,
                (Some(answer), expected) if answer == expected => other += 1,
                (answer, expected) => {
                    let answer = answer.map_or("not run", String::as_str);
                    wrong.push(format!("{id} ({what}), {stage}: {answer}, not {expected}"));
                }
            }
        }
    }
    wrong.extend(
        published.keys().chain(traced.keys()).filter(|id| !known.contains(*id)).map(|id| format!("{id} has no row")),
    );
    println!(
        "{} rows, run at two places: {same} as measured, {other} differ with a reason, {idle} cannot be run",
        known.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Loading.
impl Run {
    fn loads(&mut self) {
        let load = |s: &Run, version: u32, code: &[u64]| {
            let attr = Attrs::new(168).u32(0, 2).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0");
            let r = s.ours.bpf(5, &mut attr.u32(40, version).0);
            s.ours.close(r);
            name(r)
        };
        for (id, version) in [
            ("load.version.0", 0),
            ("load.version.1", 1),
            ("load.version.60c75", 0x60c75),
            ("load.version.ffffffff", u32::MAX),
        ] {
            self.row(id, load(self, version, &ONE));
        }
        let helper = |id: u64, before: &[u64]| [before, &[0x85 | id << 32, 0xb7, 0x95]].concat();
        let mov = |reg: u64, x: u64| 0xb7 | reg << 8 | x << 32;
        let stack = [0x7a | 0x0a << 8 | 0xfff8 << 16, 0xbf | 0xa1 << 8, 0x07 | 0x01 << 8 | 0xffff_fff8 << 32];
        for (id, code) in [
            ("load.override_return", helper(58, &[mov(2, 0)])),
            ("load.write_user", helper(36, &[mov(2, 5), mov(3, 8)])),
            ("load.stackid", helper(27, &[mov(2, 0), mov(3, 0)])),
            ("load.copy_from_user", helper(148, &[&stack[..], &[mov(2, 8), mov(3, 0)]].concat())),
            ("load.func_ip", helper(173, &[])),
            ("load.cookie", helper(174, &[])),
            ("load.ctx160", vec![0x79 | 0x10 << 8 | 160 << 16, 0xb7, 0x95]),
            ("load.ctx168", vec![0x79 | 0x10 << 8 | 168 << 16, 0xb7, 0x95]),
            ("load.ctx4", vec![0x61 | 0x10 << 8 | 4 << 16, 0xb7, 0x95]),
            ("load.ctx.store", vec![0x7a | 0x01 << 8, 0xb7, 0x95]),
            ("load.return", vec![0x18, 0x1234_5678 << 32, 0x95]),
            ("nested.load", helper(113, &[&stack[..], &[mov(2, 8), mov(3, 0)]].concat())),
        ] {
            self.row(id, load(self, 0, &code));
        }
    }

    /// The table "event made in tracefs kprobe_events".
    fn event(&mut self) {
        let line = format!("p:kprobes/ev1 {FUNCTION} regs=%di:x64");
        for (id, text) in [
            ("event.make", line.clone()),
            ("event.again", line),
            ("event.again.other", format!("p:kprobes/ev1 {FUNCTION}")),
            ("event.unknown", "p:kprobes/x1 no_function_of_that_name".into()),
            ("event.inside", format!("p:kprobes/x2 {FUNCTION}+1")),
            ("event.return.offset", format!("r:kprobes/x3 {FUNCTION}+8")),
            ("event.retval", format!("p:kprobes/x4 {FUNCTION} r=$retval")),
        ] {
            self.row(id, name(self.write(&text)));
        }
        // Where it was made after all.
        self.write("-:kprobes/x2");
        self.write("-:kprobes/x3");
        let id = self.id("kprobes/ev1");
        let format = self.ours.file("/sys/kernel/tracing/events/kprobes/ev1/format").unwrap_or_default();
        let fields = format.lines().filter_map(|l| l.trim().strip_prefix("field:")).skip(4).map(|field| {
            let (declaration, rest) = field.split_once(';').unwrap_or_default();
            let offset = rest.trim().strip_prefix("offset:").and_then(|r| r.split(';').next()).unwrap_or_default();
            format!("{}@{offset}", declaration.rsplit(' ').next().unwrap_or_default())
        });
        self.row("event.format", fields.collect::<Vec<_>>().join(" "));

        let first = self.open(&tracepoint(id));
        self.row("event.open", name(first));
        let ring = self.ring(first);
        self.hit(3);
        self.row("event.count", self.count(first));
        self.row("event.ring", self.records(ring));
        let map = self.counter();
        let (zero, one) = (self.load(2, 0, 0, &counts(map, 0)), self.load(2, 0, 0, &counts(map, 1)));
        self.row("event.zero.set", name(self.set(first, zero)));
        self.hit(3);
        self.row("event.zero.count", format!("{}; {}", self.count(first), self.ran(map)));
        self.row("event.zero.ring", self.records(ring));
        self.row("event.second.program", name(self.set(first, one)));
        self.row("event.same.program", name(self.set(first, zero)));
        let second = self.open(&tracepoint(id));
        let second_ring = self.ring(second);
        self.row("event.second.same", name(self.set(second, zero)));
        self.row("event.second.one", name(self.set(second, one)));
        self.hit(3);
        self.row("event.and", format!("{}; {} {}", self.ran(map), self.count(first), self.count(second)));
        self.ours.unmap(ring, RING);
        self.ours.close(first);
        self.hit(3);
        self.row("event.first.closed", format!("{}; {}", self.ran(map), self.count(second)));
        self.row("event.second.ring", self.records(second_ring));

        let mut query = [4u32, 0, 0, 0, 0, 0];
        let asked = self.ours.ioctl(second, QUERY_BPF, query.as_mut_ptr() as u64);
        self.row("event.query", format!("{} {}", name(asked), query[1]));
        let text = [0u8; 64];
        let mut attr = Attrs::new(48).u32(0, std::process::id()).u32(4, second as u32).u32(12, 64).ptr(16, &text);
        let asked = self.ours.bpf(20, &mut attr.0);
        // SAFETY: the call has written it.
        let text = unsafe { (&raw const text).read_volatile() };
        let text = String::from_utf8_lossy(&text).trim_end_matches('\0').replace(FUNCTION, "FUNCTION");
        self.row("event.task_fd_query", format!("{} {text} {} {}", name(asked), attr.0[28], attr.0[32]));
        self.row("event.busy", name(self.write("-:kprobes/ev1")));
        assert_eq!(self.ours.ioctl(second, DISABLE, 0), 0);
        self.hit(3);
        self.row("event.disabled", format!("{}; {}", self.ran(map), self.count(second)));
        self.hit_elsewhere(5);
        self.row("event.task", format!("{}; {}", self.ran(map), self.count(second)));
        self.ours.unmap(second_ring, RING);
        self.ours.close(second);
        self.hit(3);
        self.row("event.close", self.ran(map));
        self.row("event.remove", name(self.write("-:kprobes/ev1")));
        self.row("event.removed.open", name(self.open(&tracepoint(id))));
        self.row("event.never.open", name(self.open(&tracepoint(60_000))));
        assert_eq!(self.write(&format!("p:kprobes/ev2 {FUNCTION}")), 0);
        self.row("event.next.id", if self.id("kprobes/ev2") == id { "same" } else { "another" });
    }

    /// The rest of that table: other programs, and links.
    fn event_programs(&mut self) {
        let id = self.id("kprobes/ev2");
        let event = self.open(&tracepoint(id).u64(40, 1));
        for (row, ty) in [("event.set.5", 5), ("event.set.7", 7), ("event.set.6", 6), ("event.set.17", 17)] {
            let prog = self.load(ty, 0, 0, &ONE);
            assert!(prog >= 0, "type {ty}: {prog}");
            self.row(row, name(self.set(event, prog)));
            self.ours.close(prog);
        }
        self.row("event.set.other", name(self.set(event, event)));
        self.row("event.set.999", name(self.set(event, 999)));
        let map = self.counter();
        let prog = self.load(2, 0, 0, &counts(map, 1));
        let link = self.ours.bpf(28, &mut Attrs::new(64).u32(0, prog as u32).u32(4, event as u32).u32(8, 41).0);
        self.row("event.link", name(link));
        self.hit(2);
        self.row("event.link.disabled", format!("{}; {}", self.ran(map), self.count(event)));
        self.row("event.link.set", name(self.set(event, prog)));
        let (mut info, text) = ([0u64; 8], [0u8; 64]);
        (info[3], info[4]) = (text.as_ptr() as u64, 64);
        assert_eq!(self.ours.bpf(15, &mut Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &info).0), 0);
        // SAFETY: the call has written both.
        let (info, text) = unsafe { ((&raw const info).read_volatile(), (&raw const text).read_volatile()) };
        let text = String::from_utf8_lossy(&text).trim_end_matches('\0').replace(FUNCTION, "FUNCTION");
        let (kind, perf, offset) = (info[0] as u32, info[2] as u32, info[4] >> 32);
        self.row("event.link.info", format!("{kind} {perf} {text} {offset} {}", info[6]));
        self.ours.close(event);
        self.hit(2);
        self.row("event.link.holds", self.ran(map));
        self.ours.close(link);
        self.hit(2);
        self.row("event.link.closed", self.ran(map));
        let profile = self.ours.file("/sys/kernel/tracing/kprobe_profile").unwrap_or_default();
        self.row("event.profile", profile.split_whitespace().collect::<Vec<_>>().join(" "));
        let system = self.open(&tracepoint(self.id("raw_syscalls/sys_enter")));
        self.row("event.tracepoint.kprobe", name(self.set(system, prog)));
        let own = self.load(5, 0, 0, &ONE);
        self.row("event.tracepoint.own", name(self.set(system, own)));
        let software = self.open(&pmu(1, 10));
        assert!(software >= 0, "{software}");
        self.row("event.software", name(self.set(software, prog)));
        [system, own, software, prog, map].into_iter().for_each(|fd| self.ours.close(fd));
    }

    fn kprobe_pmu(&mut self) {
        let function = with_end(FUNCTION);
        let named = |config: u64| pmu(KPROBE, config).ptr(56, &function);
        let map = self.counter();
        let (zero, one) = (self.load(2, 0, 0, &counts(map, 0)), self.load(2, 0, 0, &counts(map, 1)));
        let event = self.open(&named(0));
        self.row("pmu.open", name(event));
        let ring = self.ring(event);
        self.hit(2);
        self.row("pmu.count", self.count(event));
        self.row("pmu.ring", self.records(ring));
        assert_eq!(self.set(event, zero), 0);
        self.hit(2);
        self.row("pmu.zero", format!("{}; {}", self.ran(map), self.count(event)));
        self.ours.unmap(ring, RING);
        self.ours.close(event);
        self.hit(2);
        self.row("pmu.closed", self.ran(map));

        let back = self.open(&named(1));
        self.row("pmu.return", name(back));
        let ring = self.ring(back);
        self.hit(2);
        self.row("pmu.return.count", self.count(back));
        self.row("pmu.return.ring", self.records(ring));
        assert_eq!(self.set(back, one), 0);
        self.ours.close(back);
        self.hit(2);
        self.row("pmu.mapped", self.ran(map));
        self.ours.unmap(ring, RING);
        self.hit(2);
        self.row("pmu.unmapped", self.ran(map));

        let event = self.open(&named(0));
        assert_eq!(self.set(event, one), 0);
        let second = self.ours.files.duplicate(event as i32).map_or_else(|e| e.neg(), i64::from);
        self.ours.close(event);
        self.hit(2);
        self.row("pmu.dup", self.ran(map));
        self.ours.close(second);

        let (unknown, empty, module) = (b"no_function_of_that_name\0", b"\0", with_end(&format!("module:{FUNCTION}")));
        for (id, attr) in [
            ("pmu.unknown", pmu(KPROBE, 0).ptr(56, unknown)),
            ("pmu.inside", named(0).u64(64, 1)),
            ("pmu.return.offset", named(1).u64(64, 8)),
            ("pmu.beyond", named(0).u64(64, 0x10_0000)),
            ("pmu.null", pmu(KPROBE, 0)),
            ("pmu.null.1000", pmu(KPROBE, 0).u64(64, 0x800)),
            ("pmu.empty", pmu(KPROBE, 0).ptr(56, empty)),
            ("pmu.pointer", pmu(KPROBE, 0).u64(56, 8)),
            ("pmu.bit1", named(2)),
            ("pmu.bit32", named(1 << 32)),
            ("pmu.module", pmu(KPROBE, 0).ptr(56, &module)),
        ] {
            let fd = self.open(&attr);
            self.row(id, name(fd));
            self.ours.close(fd);
        }
        let (a, b) = (self.open(&named(0)), self.open(&named(0)));
        assert_eq!((self.set(a, zero), self.set(b, one)), (0, 0));
        self.hit(2);
        self.row("pmu.separate", format!("{}; {} {}", self.ran(map), self.count(a), self.count(b)));
        self.ours.close(a);
        self.hit_elsewhere(5);
        self.row("pmu.task", self.ran(map));
        [b, zero, one, map].into_iter().for_each(|fd| self.ours.close(fd));
    }

    fn uprobe_pmu(&mut self) {
        let place = |path: &[u8], offset: u64| pmu(UPROBE, 0).ptr(56, path).u64(64, offset);
        let map = self.counter();
        let event = self.open(&place(SELF, probed_offset()));
        self.row("uprobe.open", name(event));
        let prog = self.load(2, 0, 0, &counts(map, 1));
        self.row("uprobe.set", name(self.set(event, prog)));
        self.hit(4);
        self.row("uprobe.calls", format!("{}; {}", self.ran(map), self.count(event)));
        self.ours.close(event);
        self.hit(4);
        self.row("uprobe.closed", self.ran(map));
        let sleepable = self.load(2, 0, 1 << 4, &ONE);
        let uprobe = self.open(&place(SELF, probed_offset()));
        let function = with_end(FUNCTION);
        let kprobe = self.open(&pmu(KPROBE, 0).ptr(56, &function));
        let answers = [sleepable, self.set(uprobe, sleepable), self.set(kprobe, sleepable)].map(name);
        self.row("uprobe.sleepable", answers.join(" "));
        [uprobe, kprobe, sleepable, prog, map].into_iter().for_each(|fd| self.ours.close(fd));
        for (id, attr) in [
            ("uprobe.missing", place(b"/no/such/file\0", 0)),
            ("uprobe.folder", place(b"/tmp\0", 0)),
            ("uprobe.beyond", place(SELF, 1 << 40)),
            ("uprobe.null", pmu(UPROBE, 0)),
        ] {
            self.row(id, name(self.open(&attr)));
        }
    }

    fn multi(&mut self) {
        let prog = self.load(2, 42, 0, &ONE);
        let texts = [FUNCTION, OTHER, "no_function_of_that_name"].map(with_end);
        let at = |n: usize| texts[n].as_ptr() as u64;
        let (two, unknown, twice) = ([at(0), at(1)], [at(0), at(2)], [at(0), at(0)]);
        let addresses = [1u64, 2];
        let link = |s: &Run, prog: i64, syms: u64, addrs: u64, count: u32, flags: u32| {
            let attr = Attrs::new(64).u32(0, prog as u32).u32(8, 42).u32(16, flags).u32(20, count);
            let fd = s.ours.bpf(28, &mut attr.u64(24, syms).u64(32, addrs).0);
            s.ours.close(fd);
            name(fd)
        };
        let (two, unknown, twice) = (two.as_ptr() as u64, unknown.as_ptr() as u64, twice.as_ptr() as u64);
        let by_address = addresses.as_ptr() as u64;
        for (id, syms, addrs, count, flags) in [
            ("multi.two", two, 0, 2, 0),
            ("multi.unknown", unknown, 0, 2, 0),
            ("multi.twice", twice, 0, 2, 0),
            ("multi.none", two, 0, 0, 0),
            ("multi.neither", 0, 0, 2, 0),
            ("multi.both", two, by_address, 2, 0),
            ("multi.address", 0, by_address, 2, 0),
            ("multi.flags", two, 0, 2, 2),
        ] {
            self.row(id, link(self, prog, syms, addrs, count, flags));
        }
        let function = with_end(FUNCTION);
        let event = self.open(&pmu(KPROBE, 0).ptr(56, &function));
        self.row("multi.set", name(self.set(event, prog)));
        let plain = self.load(2, 0, 0, &ONE);
        self.row("multi.plain", link(self, plain, two, 0, 2, 0));
        [event, plain, prog].into_iter().for_each(|fd| self.ours.close(fd));
    }
}
