//! Probes in real processes, with a stand-in for the agent that counts hits (`attach/agent.c`).
//!
//! The targets are C and C++ programs compiled here. Everything runs as an ordinary user, too.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use skep_subsystem::attach::{
    AttachError, AttachRequest, Attached, Injector, InjectorEvent, Placed, ProbeKind, ProbeSpec, ProbeTarget,
    Registers, main_if_requested,
};
use skep_subsystem::spawn::Held;

#[path = "attach/arenas.rs"]
mod arenas;
#[path = "attach/cycles.rs"]
mod cycles;
#[path = "attach/execs.rs"]
mod execs;
#[path = "attach/kills.rs"]
mod kills;
#[path = "attach/many.rs"]
mod many;
use arenas::Arenas;
use cycles::attach_detach_cycles;
use execs::{command_is_followed, exec_by_a_thread_is_followed, exec_of_a_running_process};
use kills::{kill, kill_me_if_requested, killed_at_any_time, killed_controller, killed_injector};
use many::{every_function_of_python, thousands_of_sites_while_running};

type Test = fn() -> Outcome;
type Outcome = Result<(), Box<dyn Error>>;

fn main() {
    main_if_requested();
    kill_me_if_requested();
    let args = Arguments::from_args();
    let tests: &[(&str, Test)] = &[
        ("exact_counts", exact_counts),
        ("many_threads_running", many_threads_running),
        ("attach_detach_cycles", attach_detach_cycles),
        ("unwinding", unwinding),
        ("recursion", recursion),
        ("aliases_and_tiny_functions", aliases_and_tiny_functions),
        ("inside_a_function", inside_a_function),
        ("fork_child_runs_free", fork_child_runs_free),
        ("timer_signals", timer_signals),
        ("blocking_calls_do_not_fail", blocking_calls_do_not_fail),
        ("non_pie_and_static", non_pie_and_static),
        ("library_functions", library_functions),
        ("command_is_followed", command_is_followed),
        ("killed_controller", killed_controller),
        ("killed_injector", killed_injector),
        ("killed_at_any_time", killed_at_any_time),
        ("refusals", refusals),
        ("no_breakpoints_without_their_handler", no_breakpoints_without_their_handler),
        ("stopped_process", stopped_process),
        ("asleep_in_a_probed_function", asleep_in_a_probed_function),
        ("exec_of_a_running_process", exec_of_a_running_process),
        ("exec_by_a_thread_is_followed", exec_by_a_thread_is_followed),
        ("every_function_of_python", every_function_of_python),
        ("thousands_of_sites_while_running", thousands_of_sites_while_running),
    ];
    let trials =
        tests.iter().map(|&(name, test)| Trial::test(name, move || test().map_err(|e| e.to_string().into()))).collect();
    let conclusion = libtest_mimic::run(&args, trials);
    let _ = fs::remove_dir_all(built(""));
    conclusion.exit();
}

/// A directory for what is compiled, and the programs in it.
fn built(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("skep-attach-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attach");
        let recipes: &[(&str, &str, &str)] = &[
            (
                "agent",
                "gcc",
                "-O2 -ffreestanding -fno-stack-protector -fPIE -static-pie -nostdlib -nostartfiles \
                 -Wl,--no-dynamic-linker,-e,skep_hit,-z,norelro agent.c",
            ),
            ("calls", "gcc", "-O2 -pthread -pie -fPIE calls.c"),
            ("calls-fixed", "gcc", "-O2 -pthread -no-pie -fno-pie calls.c"),
            ("calls-static", "gcc", "-O2 -pthread -static calls.c"),
            ("calls-cet", "gcc", "-O0 -pthread -fcf-protection=full calls.c"),
            ("unwind", "g++", "-O2 -pthread unwind.cc"),
            ("loop", "gcc", "-O2 -pthread loop.c"),
            ("early", "gcc", "-O2 early.c"),
            ("early-static", "gcc", "-O2 -static early.c"),
            ("exec", "gcc", "-O2 -pthread exec.c"),
        ];
        for (name, compiler, flags) in recipes {
            let mut command = Command::new(compiler);
            command.current_dir(sources).args(flags.split_whitespace()).arg("-o").arg(dir.join(name));
            assert!(command.status().unwrap().success(), "{command:?}");
        }
        dir
    });
    dir.join(name)
}

/// A target that obeys commands on stdin.
struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    ready: String,
}

impl Target {
    fn start(program: &str) -> Result<Target, Box<dyn Error>> {
        Target::spawn(&mut Command::new(built(program)))
    }

    fn spawn(command: &mut Command) -> Result<Target, Box<dyn Error>> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut target = Target { child, stdin, stdout, ready: String::new() };
        target.ready = target.line()?;
        Ok(target)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn send(&mut self, command: &str) -> Outcome {
        writeln!(self.stdin.as_mut().unwrap(), "{command}")?;
        Ok(())
    }

    fn line(&mut self) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, command: &str) -> Result<String, Box<dyn Error>> {
        self.send(command)?;
        self.line()
    }

    fn end(mut self) -> Result<Option<i32>, Box<dyn Error>> {
        let _ = self.send("end");
        Ok(self.child.wait()?.code())
    }

    fn text(&self, address: u64) -> [u8; 32] {
        let mut bytes = [0; 32];
        fs::File::open(format!("/proc/{}/mem", self.pid())).unwrap().read_exact_at(&mut bytes, address).unwrap();
        bytes
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn symbol(link: u32, kind: ProbeKind, name: &str) -> ProbeSpec {
    let target = ProbeTarget::Symbol { name: name.into(), offset: 0, module: None };
    ProbeSpec { link, kind, target, registers: Registers::ALL }
}

fn entry_and_return(name: &str) -> Vec<ProbeSpec> {
    vec![symbol(0, ProbeKind::Entry, name), symbol(1, ProbeKind::Return, name)]
}

/// An injector with the arenas of a session.
struct Session {
    injector: Injector,
    arenas: Arenas,
    agent: Vec<u8>,
}

impl Session {
    fn new(probes: &[ProbeSpec]) -> Result<Session, Box<dyn Error>> {
        let kinds: Vec<(u32, bool)> = probes.iter().map(|p| (p.link, p.kind == ProbeKind::Return)).collect();
        let agent = fs::read(built("agent"))?;
        Ok(Session { injector: Injector::spawn()?, arenas: Arenas::new(&kinds)?, agent })
    }

    fn request<'a>(&'a self, pid: u32, probes: &[ProbeSpec]) -> AttachRequest<'a> {
        request_of(&self.arenas, &self.agent, pid, probes)
    }

    fn attach(&mut self, pid: u32, probes: &[ProbeSpec]) -> Result<Attached, AttachError> {
        // The request borrows the arenas only.
        let Session { injector, arenas, agent } = self;
        let request = request_of(arenas, agent, pid, probes);
        let attached = injector.attach(&request);
        no_page_is_writable_and_executable(pid);
        attached
    }
}

fn request_of<'a>(arenas: &'a Arenas, agent: &'a [u8], pid: u32, probes: &[ProbeSpec]) -> AttachRequest<'a> {
    AttachRequest {
        pid,
        proc_index: 0,
        change: 0,
        control: arenas.control(),
        shared: arenas.shared(),
        maps: vec![arenas.map()],
        nslots: arenas::NSLOTS,
        probes: probes.to_vec(),
        agent: Some(agent),
        children: false,
        marker: None,
    }
}

/// At no attach, and in no process.
fn no_page_is_writable_and_executable(pid: u32) {
    for pid in [pid, std::process::id()] {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let both =
            |line: &&str| line.split_ascii_whitespace().nth(1).is_some_and(|p| p.contains('w') && p.contains('x'));
        assert_eq!(maps.lines().find(both), None, "process {pid}");
    }
}

fn places(attached: &Attached) -> Result<Vec<Placed>, AttachError> {
    attached.probes.iter().map(|outcome| outcome.result.clone()).collect()
}

/// Attaches, lets the target run, and returns the places.
fn attach(target: &Target, probes: &[ProbeSpec]) -> Result<(Session, Vec<Placed>), Box<dyn Error>> {
    let mut session = Session::new(probes)?;
    let attached = session.attach(target.pid(), probes)?;
    let places = places(&attached)?;
    session.injector.go(target.pid())?;
    Ok((session, places))
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: found {found:?}, expected {expected:?}").into()),
    }
}

fn exact_counts() -> Outcome {
    let mut target = Target::start("calls")?;
    let probes = entry_and_return("probed");
    let address = u64::from_str_radix(target.ready.split("0x").nth(1).unwrap().trim(), 16)?;
    let before = target.text(address);
    let (mut session, places) = attach(&target, &probes)?;
    equal("address", places[0].address, address)?;
    equal("patched", target.text(address) != before, true)?;
    let expected = "sum 62499750000.0";
    equal("answer", target.ask("run 4 250000")?, expected.replace("62499750000.0", &checksum(4, 250_000)))?;
    equal("entries", session.arenas.hits(0), 1_000_000)?;
    equal("returns", session.arenas.hits(1), 1_000_000)?;
    equal("missed", session.arenas.missed(1), 0)?;
    session.injector.detach(target.pid())?;
    equal("text", target.text(address), before)?;
    equal("answer", target.ask("run 2 1000")?, format!("sum {}", checksum(2, 1000)))?;
    equal("entries after", session.arenas.hits(0), 1_000_000)?;
    equal("left mapped", skep_mappings(target.pid())?, 0)?;
    equal("exit status", target.end()?, Some(5))
}

/// What `calls.c` sums up.
fn checksum(threads: u64, calls: u64) -> String {
    let one = (0..calls).map(|i| i as f64 * 0.5 + 1.0).sum::<f64>();
    format!("{:.1}", one * threads as f64)
}

fn skep_mappings(pid: u32) -> Result<usize, Box<dyn Error>> {
    Ok(fs::read_to_string(format!("/proc/{pid}/maps"))?.matches("/memfd:skep").count())
}

fn many_threads_running() -> Outcome {
    let mut target = Target::start("calls")?;
    equal("answer", target.ask("busy 4")?, "busy".to_owned())?;
    let probes =
        [entry_and_return("probed"), vec![symbol(2, ProbeKind::Return, "tiny"), symbol(3, ProbeKind::Entry, "malloc")]];
    let probes = probes.concat();
    let (mut session, _) = attach(&target, &probes)?;
    std::thread::sleep(Duration::from_millis(200));
    session.injector.detach(target.pid())?;
    std::thread::sleep(Duration::from_millis(50));
    let (entries, returns, tiny) = (session.arenas.hits(0), session.arenas.hits(1), session.arenas.hits(2));
    // What was inside at the detach still returns through its stub; nothing new comes.
    equal("some hits", entries > 1000 && tiny > 1000 && session.arenas.hits(3) > 0, true)?;
    equal("returns belong to entries", entries - returns <= 4, true)?;
    std::thread::sleep(Duration::from_millis(50));
    equal("frozen", (session.arenas.hits(0), session.arenas.hits(1)), (entries, returns))?;
    let calls: u64 = target.ask("stop")?.strip_prefix("calls ").unwrap().parse()?;
    equal("calls", calls > entries, true)?;
    equal("exit status", target.end()?, Some(5))
}

fn unwinding() -> Outcome {
    let expected = "caught 500 cleaned 1000 plain 7500 jumped 500 sig 200 thread 44";
    let mut target = Target::start("unwind")?;
    equal("unprobed", target.ask("run")?, expected.to_owned())?;
    let depth: u32 = target.line()?.strip_prefix("depth ").unwrap().parse()?;
    let names = ["victim", "outer", "guarded"];
    let probes: Vec<ProbeSpec> =
        names.iter().zip(0..).map(|(name, link)| symbol(link, ProbeKind::Return, name)).collect();
    let (mut session, _) = attach(&target, &probes)?;
    for _ in 0..3 {
        equal("probed", target.ask("run")?, expected.to_owned())?;
        // victim and six activations of outer, one more frame each at most.
        let probed: u32 = target.line()?.strip_prefix("depth ").unwrap().parse()?;
        equal("frames of backtrace", (depth..=depth + 7).contains(&probed), true)?;
    }
    equal("returns of guarded", session.arenas.hits(2), 3 * 500)?;
    session.injector.detach(target.pid())?;
    equal("detached", target.ask("run")?, expected.to_owned())?;
    equal("frames again", target.line()?, format!("depth {depth}"))?;
    equal("exit status", target.end()?, Some(3))
}

fn recursion() -> Outcome {
    let mut target = Target::start("calls")?;
    let (session, _) = attach(&target, &entry_and_return("deep"))?;
    for n in 1..=20 {
        equal("answer", target.ask("deep 1000")?, "deep 1000".to_owned())?;
        equal("hits", (session.arenas.hits(0), session.arenas.hits(1)), (n * 1001, n * 1001))?;
    }
    // Deeper than there are entries: what has none is missed and runs on.
    equal("answer", target.ask("deep 6000")?, "deep 6000".to_owned())?;
    equal("all accounted for", session.arenas.hits(1) + session.arenas.missed(1), 20 * 1001 + 6001)?;
    equal("exit status", target.end()?, Some(5))
}

fn aliases_and_tiny_functions() -> Outcome {
    for program in ["calls", "calls-cet"] {
        let mut target = Target::start(program)?;
        let probes = [
            symbol(0, ProbeKind::Entry, "probed"),
            symbol(1, ProbeKind::Entry, "alias"),
            symbol(2, ProbeKind::Return, "alias"),
            symbol(3, ProbeKind::Entry, "many"),
            symbol(4, ProbeKind::Return, "many"),
            symbol(5, ProbeKind::Entry, "caller"),
            symbol(6, ProbeKind::Return, "caller"),
            symbol(7, ProbeKind::Return, "tiny"),
        ];
        let (session, places) = attach(&target, &probes)?;
        equal("one place", places[0].address, places[1].address)?;
        equal("answer", target.ask("alias 777")?, "alias".to_owned())?;
        equal("hits", [0, 1, 2, 5, 6, 7].map(|link| session.arenas.hits(link)), [777; 6])?;
        equal("answer", target.ask("run 1 1600")?, format!("sum {}", checksum(1, 1600)))?;
        equal("hits", [3, 4].map(|link| session.arenas.hits(link)), [100; 2])?;
        equal("exit status", target.end()?, Some(5))?;
    }
    Ok(())
}

fn inside_a_function() -> Outcome {
    let mut target = Target::start("calls-cet")?;
    let at = |offset| ProbeSpec {
        link: 0,
        kind: ProbeKind::Entry,
        target: ProbeTarget::Symbol { name: "probed".into(), offset, module: Some("calls-cet".into()) },
        registers: Registers::ALL,
    };
    let mut session = Session::new(&[at(0)])?;
    // endbr64; push rbp; mov rbp,rsp; movsd [rbp-8],…
    match &session.attach(target.pid(), &[at(6)])?.probes[0].result {
        Err(AttachError::MidInstruction { before: 5, after: 8, .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    session.injector.detach(target.pid())?;
    let attached = session.attach(target.pid(), &[at(5)])?;
    places(&attached)?;
    session.injector.go(target.pid())?;
    equal("answer", target.ask("run 4 10000")?, format!("sum {}", checksum(4, 10_000)))?;
    equal("hits", session.arenas.hits(0), 40_000)?;
    equal("exit status", target.end()?, Some(5))
}

fn fork_child_runs_free() -> Outcome {
    let mut target = Target::start("calls")?;
    let probes = [entry_and_return("probed"), vec![symbol(2, ProbeKind::Return, "deep")]].concat();
    let (session, _) = attach(&target, &probes)?;
    equal("answer", target.ask("fork")?, "fork 9".to_owned())?;
    equal("hits", session.arenas.hits(0), 0)?;
    equal("answer", target.ask("alias 10")?, "alias".to_owned())?;
    equal("hits", session.arenas.hits(1), 10)?;
    equal("exit status", target.end()?, Some(5))
}

fn timer_signals() -> Outcome {
    let mut target = Target::start("calls")?;
    equal("answer", target.ask("timer")?, "timer".to_owned())?;
    target.ask("busy 3")?;
    let probes = [entry_and_return("probed"), vec![symbol(2, ProbeKind::Return, "tiny")]].concat();
    let mut session = Session::new(&probes)?;
    for _ in 0..30 {
        places(&session.attach(target.pid(), &probes)?)?;
        session.injector.go(target.pid())?;
        std::thread::sleep(Duration::from_millis(20));
        session.injector.detach(target.pid())?;
    }
    equal("hits", session.arenas.hits(0) > 0 && session.arenas.hits(1) > 0, true)?;
    equal("answer", target.ask("stop")?.starts_with("calls "), true)?;
    equal("exit status", target.end()?, Some(5))
}

fn blocking_calls_do_not_fail() -> Outcome {
    let mut target = Target::start("loop")?;
    let probes = [symbol(0, ProbeKind::Entry, "visited")];
    let mut session = Session::new(&probes)?;
    for _ in 0..30 {
        places(&session.attach(target.pid(), &probes)?)?;
        session.injector.go(target.pid())?;
        std::thread::sleep(Duration::from_millis(10));
        session.injector.detach(target.pid())?;
    }
    let answer = target.ask("end")?;
    equal("no call failed", answer.starts_with("failures 0 rounds "), true).map_err(|_| answer)?;
    Ok(())
}

fn non_pie_and_static() -> Outcome {
    for program in ["calls-fixed", "calls-static"] {
        let mut target = Target::start(program)?;
        let (mut session, _) = attach(&target, &entry_and_return("probed"))?;
        equal("answer", target.ask("run 2 50000")?, format!("sum {}", checksum(2, 50_000)))?;
        equal("hits", (session.arenas.hits(0), session.arenas.hits(1)), (100_000, 100_000))?;
        session.injector.detach(target.pid())?;
        equal("exit status", target.end()?, Some(5))?;
    }
    Ok(())
}

fn library_functions() -> Outcome {
    let mut target = Target::start("calls")?;
    let probes = [
        symbol(0, ProbeKind::Entry, "malloc"),
        symbol(1, ProbeKind::Return, "malloc"),
        symbol(2, ProbeKind::Entry, "pthread_create"),
        // Chosen at load time by the processor's features.
        symbol(3, ProbeKind::Entry, "strlen"),
    ];
    let (session, places) = attach(&target, &probes)?;
    equal("module", places[0].module.contains("libc"), true)?;
    equal("answer", target.ask("run 3 1000")?, format!("sum {}", checksum(3, 1000)))?;
    equal("threads", session.arenas.hits(2), 3)?;
    equal("malloc", session.arenas.hits(0) >= 3 && session.arenas.hits(0) == session.arenas.hits(1), true)?;
    equal("exit status", target.end()?, Some(5))
}

fn refusals() -> Outcome {
    let target = Target::start("calls")?;
    let probes = entry_and_return("probed");
    let mut session = Session::new(&probes)?;
    let mut refused = |pid: u32| session.attach(pid, &probes).err();
    equal("absent", matches!(refused(0x3f_ffff), Some(AttachError::NoSuchProcess { .. })), true)?;
    equal("init", matches!(refused(1), Some(AttachError::Unsuitable { .. } | AttachError::OtherUser { .. })), true)?;
    equal("self", matches!(refused(std::process::id()), Some(AttachError::Unsuitable { .. })), true)?;
    let mut attach_to = |name: &str| session.attach(target.pid(), &[symbol(0, ProbeKind::Entry, name)]);
    match &attach_to("probbed")?.probes[0].result {
        Err(AttachError::NoSymbol { near, .. }) if near[0] == "probed" => {}
        other => return Err(format!("{other:?}").into()),
    }
    session.injector.detach(target.pid())?;
    let (other, _) = attach(&target, &probes)?;
    match session.attach(target.pid(), &probes) {
        Err(AttachError::AlreadyProbed { .. }) => {}
        result => return Err(format!("{result:?}").into()),
    }
    drop(other);
    session.attach(target.pid(), &probes)?;
    session.injector.go(target.pid())?;
    // Killed while attached.
    let pid = target.pid();
    kill(pid as i32);
    let events = session.injector.events(5000);
    equal("events", events, vec![InjectorEvent::Exited { pid }])
}

/// The stand-in for the agent has no handler of breakpoints.
fn no_breakpoints_without_their_handler() -> Outcome {
    let mut target = Target::start("calls")?;
    let probes = [symbol(0, ProbeKind::Entry, "probed"), symbol(1, ProbeKind::Entry, "turning")];
    let address = u64::from_str_radix(target.ready.split("0x").nth(1).unwrap().trim(), 16)?;
    let before = target.text(address);
    let mut session = Session::new(&probes)?;
    match session.attach(target.pid(), &probes) {
        Err(AttachError::Agent { reason }) if reason.contains("turning") && reason.contains("skep_trap") => {}
        other => return Err(format!("{:?}", other.map(|a| places(&a))).into()),
    }
    equal("text", target.text(address), before)?;
    equal("left mapped", skep_mappings(target.pid())?, 0)?;
    // The others are placed without it, and the process is as it was.
    places(&session.attach(target.pid(), &probes[..1])?)?;
    session.injector.go(target.pid())?;
    equal("answer", target.ask("run 1 1000")?, format!("sum {}", checksum(1, 1000)))?;
    equal("hits", session.arenas.hits(0), 1000)?;
    session.injector.detach(target.pid())?;
    equal("exit status", target.end()?, Some(5))
}

fn stopped_process() -> Outcome {
    let mut target = Target::start("calls")?;
    let raw = rustix::process::Pid::from_raw(target.pid() as i32).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::STOP)?;
    std::thread::sleep(Duration::from_millis(20));
    let (mut session, _) = attach(&target, &[symbol(0, ProbeKind::Entry, "probed")])?;
    let state = || -> Result<String, Box<dyn Error>> {
        let mut text = String::new();
        fs::File::open(format!("/proc/{}/stat", target.child.id()))?.read_to_string(&mut text)?;
        Ok(text.rsplit(')').next().unwrap_or_default().trim().chars().take(1).collect())
    };
    std::thread::sleep(Duration::from_millis(20));
    equal("state", state()?, "T".to_owned())?;
    rustix::process::kill_process(raw, rustix::process::Signal::CONT)?;
    equal("answer", target.ask("alias 5")?, "alias".to_owned())?;
    equal("hits", session.arenas.hits(0), 5)?;
    session.injector.detach(target.pid())?;
    equal("exit status", target.end()?, Some(5))
}

/// Does the process's first thread sleep? See proc_pid_stat(5).
fn is_asleep(pid: u32) -> Result<bool, Box<dyn Error>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')))
}

fn asleep_in_a_probed_function() -> Outcome {
    let mut target = Target::start("calls")?;
    let probes = entry_and_return("fgets");
    let mut session = Session::new(&probes)?;
    for n in 1..=4 {
        // It sleeps in its call when the probes come, or that call would be seen.
        let patience = Instant::now() + Duration::from_secs(10);
        while !is_asleep(target.pid())? && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        places(&session.attach(target.pid(), &probes)?)?;
        session.injector.go(target.pid())?;
        // The call that was under way is not seen; the next one sleeps behind a return stub.
        equal("answer", target.ask("alias 1")?, "alias".to_owned())?;
        equal("answer", target.ask("alias 1")?, "alias".to_owned())?;
        // It has answered; give it time to call again.
        let patience = Instant::now() + Duration::from_secs(10);
        while session.arenas.hits(0) < 2 * n && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        session.injector.detach(target.pid())?;
        equal("entries", session.arenas.hits(0), 2 * n)?;
        // A return that belongs to the attach before may be counted in this one.
        equal("returns", (n..2 * n).contains(&session.arenas.hits(1)), true)?;
        // It returns through the stub of a session that is gone.
        if n % 2 == 0 {
            equal("answer", target.ask("alias 1")?, "alias".to_owned())?;
        }
    }
    equal("left mapped", skep_mappings(target.pid())? > 0, true)?;
    equal("exit status", target.end()?, Some(5))
}
