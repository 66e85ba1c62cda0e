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
use arenas::Arenas;

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

/// One in 16 attaches and lets go, the others change what an attached process carries: places are patched and restored in each.
fn attach_detach_cycles() -> Outcome {
    let cycles: u64 = std::env::var("SKEP_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    // Threads that never pause leave the rest of the machine little.
    for (threads, pace, parts) in [(1, "busy", 1), (4, "busy", 1), (2, "pace", 28), (16, "pace", 28), (64, "pace", 6)] {
        let mut target = Target::start("calls")?;
        target.ask(&format!("{pace} {threads}"))?;
        let of = cycles * parts / 64;
        let anew = cycle_anew(&mut target, of / 16)?;
        let changed = cycle_changes(&mut target, of - of / 16)?;
        let calls: u64 = target.ask("stop")?.strip_prefix("calls ").unwrap().parse()?;
        equal("calls", calls > 0, true)?;
        equal("answer", target.ask("run 2 1000")?, format!("sum {}", checksum(2, 1000)))?;
        equal("exit status", target.end()?, Some(5))?;
        println!("{threads} threads ({pace}): {} attaches, {anew}; {} changes, {changed}", of / 16, of - of / 16);
    }
    Ok(())
}

/// How long something has taken: the median and the longest.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    match times.as_slice() {
        [] => "none".into(),
        all => format!("median {:.2?}, worst {:.2?}", all[all.len() / 2], all[all.len() - 1]),
    }
}

/// Attaches and detaches.
fn cycle_anew(target: &mut Target, cycles: u64) -> Result<String, Box<dyn Error>> {
    let probes = [entry_and_return("probed"), vec![symbol(2, ProbeKind::Entry, "tiny")]].concat();
    let mut session = Session::new(&probes)?;
    let address = u64::from_str_radix(target.ready.split("0x").nth(1).unwrap().split(' ').next().unwrap(), 16)?;
    let before = target.text(address);
    let mut times = Vec::new();
    for cycle in 0..cycles {
        let start = Instant::now();
        let attached = session.attach(target.pid(), &probes).map_err(|e| format!("cycle {cycle}: {e}"))?;
        places(&attached)?;
        session.injector.go(target.pid())?;
        times.push(start.elapsed());
        equal("patched", target.text(address) != before, true)?;
        std::thread::sleep(Duration::from_micros(cycle % 5 * 100));
        session.injector.detach(target.pid())?;
        equal("text", target.text(address), before)?;
    }
    // What a thread was in at a detach stays mapped: rarely.
    let left = skep_mappings(target.pid())? as u64 / 3;
    equal("left mapped", left <= 4 + cycles / 4, true).map_err(|_| format!("{left} of {cycles} are left mapped"))?;
    equal("hits", cycles == 0 || session.arenas.hits(0) > 0, true)?;
    Ok(spread(times))
}

/// Changes the probes of a process that stays attached.
fn cycle_changes(target: &mut Target, cycles: u64) -> Result<String, Box<dyn Error>> {
    let probes = [entry_and_return("probed"), vec![symbol(2, ProbeKind::Entry, "tiny")]].concat();
    let few = [symbol(3, ProbeKind::Entry, "deep")];
    let all = [&probes[..], &few].concat();
    let mut session = Session::new(&all)?;
    let address = u64::from_str_radix(target.ready.split("0x").nth(1).unwrap().split(' ').next().unwrap(), 16)?;
    let before = target.text(address);
    let mut times = Vec::new();
    places(&session.attach(target.pid(), &few)?)?;
    session.injector.go(target.pid())?;
    for cycle in 0..cycles {
        for wanted in [&all[..], &few] {
            let start = Instant::now();
            let Session { injector, arenas, agent } = &mut session;
            let request = request_of(arenas, agent, target.pid(), wanted);
            places(&injector.change(&request).map_err(|e| format!("change {cycle}: {e}"))?)?;
            injector.go(target.pid())?;
            times.push(start.elapsed());
            equal("patched", target.text(address) != before, wanted.len() > 1)?;
            std::thread::sleep(Duration::from_micros(cycle % 5 * 100));
        }
    }
    session.injector.detach(target.pid())?;
    equal("text", target.text(address), before)?;
    equal("hits", cycles == 0 || session.arenas.hits(0) > 0, true)?;
    Ok(spread(times))
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

fn command_is_followed() -> Outcome {
    for (program, early) in [("early", 110), ("early-static", 110)] {
        let probes = [entry_and_return("early"), vec![symbol(2, ProbeKind::Entry, "printf")]].concat();
        let mut session = Session::new(&probes)?;
        let out = built(&format!("{program}.out"));
        let script = format!("trap '' TRAP; exec {} word > {}", built(program).display(), out.display());
        let command: Vec<OsString> = ["sh", "-c", &script].iter().map(OsString::from).collect();
        let mut held = Held::new(&command, session.injector.pid(), None)?;
        let pid = held.pid();
        let request = session.request(pid, &probes);
        let mut injector = Injector::spawn()?;
        injector.follow(&request)?;
        held.release()?;
        let (mut images, mut found) = (0, 0);
        let mut ended = false;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ended && Instant::now() < deadline {
            for event in injector.events(100) {
                match event {
                    InjectorEvent::Attached(attached) => {
                        images += 1;
                        let placed = attached.probes.iter().filter(|p| p.result.is_ok()).count();
                        let absent = |e: &AttachError| e.is_absence();
                        equal(
                            "only absences",
                            attached.probes.iter().all(|p| p.result.as_ref().err().is_none_or(absent)),
                            true,
                        )?;
                        found = placed;
                        injector.go(pid)?;
                    }
                    InjectorEvent::Exec { .. } => {}
                    InjectorEvent::Exited { .. } => ended = true,
                    other => return Err(format!("{other:?}").into()),
                }
            }
        }
        equal("exit status", held.wait()?.code(), Some(42))?;
        equal("images", images, 2)?;
        equal("probes of the last", found, 3)?;
        equal("output", fs::read_to_string(&out)?, "2 word\n".to_owned())?;
        equal(program, (session.arenas.hits(0), session.arenas.hits(1)), (early, early))?;
        session.injector.events(0);
    }
    Ok(())
}

/// In a process of its own: attaches to the process given in the environment, says so, and waits to be killed.
fn kill_me_if_requested() {
    let Ok(pid) = std::env::var("SKEP_KILL_ME") else { return };
    let pid: u32 = pid.parse().unwrap();
    let probes = entry_and_return("probed");
    let kinds = [(0, false), (1, true)];
    let agent = fs::read(std::env::var("SKEP_AGENT").unwrap()).unwrap();
    let arenas = Arenas::new(&kinds).unwrap();
    let mut injector = Injector::spawn().unwrap();
    let request = AttachRequest {
        pid,
        proc_index: 0,
        change: 0,
        control: arenas.control(),
        shared: arenas.shared(),
        maps: vec![],
        nslots: arenas::NSLOTS,
        probes,
        agent: Some(&agent),
        children: false,
        marker: None,
    };
    let attached = patiently(|| injector.attach(&request)).unwrap();
    places(&attached).unwrap();
    injector.go(pid).unwrap();
    println!("attached {}", injector.pid());
    arenas.disable_on(std::io::stdin());
    std::thread::sleep(Duration::from_secs(1000));
}

fn killed_controller() -> Outcome {
    let mut target = Target::start("calls")?;
    target.ask("busy 3")?;
    let address = u64::from_str_radix(target.ready.split("0x").nth(1).unwrap().trim(), 16)?;
    let before = target.text(address);
    for with_injector in [false, true, true] {
        let mut controller = Command::new(std::env::current_exe()?)
            .env("SKEP_KILL_ME", target.pid().to_string())
            .env("SKEP_AGENT", built("agent"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(controller.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let injector: i32 = line.trim().strip_prefix("attached ").ok_or("no injector")?.parse()?;
        equal("patched", target.text(address) != before, true)?;
        if with_injector {
            // The injector first: nobody is left to clean up. The controller's death is what disables its session; here
            // it does so itself, since its enable word is no robust futex.
            kill(injector);
            drop(controller.stdin.take());
            lines.read_line(&mut line)?;
        }
        controller.kill()?;
        controller.wait()?;
        if !with_injector {
            let deadline = Instant::now() + Duration::from_secs(5);
            while target.text(address) != before && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            equal("text", target.text(address), before)?;
        }
        let probes = entry_and_return("probed");
        let (mut session, _) = attach(&target, &probes)?;
        std::thread::sleep(Duration::from_millis(30));
        session.injector.detach(target.pid())?;
        equal("text", target.text(address), before)?;
        equal("hits", session.arenas.hits(0) > 0 && session.arenas.hits(1) > 0, true)?;
    }
    equal("answer", target.ask("stop")?.starts_with("calls "), true)?;
    equal("answer", target.ask("run 2 1000")?, format!("sum {}", checksum(2, 1000)))?;
    equal("exit status", target.end()?, Some(5))
}

/// Attaches, though the injector of a controller that was killed has not cleaned up yet. (A real session is dead as soon as
/// its controller is, by a robust futex; the stand-in has none.)
fn patiently(mut attach: impl FnMut() -> Result<Attached, AttachError>) -> Result<Attached, AttachError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match attach() {
            Err(AttachError::AlreadyProbed { .. } | AttachError::AlreadyTraced { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}

/// The controller dies at some time between its start and the end of its attach; the injector undoes what there is.
fn killed_at_any_time() -> Outcome {
    let mut target = Target::start("calls")?;
    target.ask("busy 3")?;
    let address = u64::from_str_radix(target.ready.split("0x").nth(1).unwrap().trim(), 16)?;
    let before = target.text(address);
    let kills = std::env::var("SKEP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let mut while_patched = 0;
    for n in 0..kills {
        let mut controller = Command::new(std::env::current_exe()?)
            .env("SKEP_KILL_ME", target.pid().to_string())
            .env("SKEP_AGENT", built("agent"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_micros(n * 79_193 % 400_000));
        while_patched += u32::from(target.text(address) != before);
        controller.kill()?;
        controller.wait()?;
    }
    equal("some in time", while_patched > 0, true)?;
    let probes = entry_and_return("probed");
    let mut session = Session::new(&probes)?;
    places(&patiently(|| session.attach(target.pid(), &probes))?)?;
    session.injector.go(target.pid())?;
    session.injector.detach(target.pid())?;
    equal("text", target.text(address), before)?;
    equal("answer", target.ask("stop")?.starts_with("calls "), true)?;
    equal("answer", target.ask("run 2 1000")?, format!("sum {}", checksum(2, 1000)))?;
    equal("exit status", target.end()?, Some(5))
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    std::thread::sleep(Duration::from_millis(20));
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

fn exec_of_a_running_process() -> Outcome {
    let mut target = Target::start("exec")?;
    let probes = [symbol(0, ProbeKind::Entry, "before")];
    let mut session = Session::new(&probes)?;
    places(&session.attach(target.pid(), &probes)?)?;
    session.injector.go(target.pid())?;
    target.send(&format!("exec {}", built("early").display()))?;
    let pid = target.pid();
    let events = session.injector.events(5000);
    let allowed = [InjectorEvent::Exec { pid }, InjectorEvent::Exited { pid }];
    equal("events", events.iter().all(|e| allowed.contains(e)) && !events.is_empty(), true)?;
    equal("hits", session.arenas.hits(0), 7)?;
    equal("exit status", target.child.wait()?.code(), Some(42))
}

fn exec_by_a_thread_is_followed() -> Outcome {
    let probes = [symbol(0, ProbeKind::Entry, "before"), symbol(1, ProbeKind::Entry, "early")];
    let mut session = Session::new(&probes)?;
    let input = built("exec.in");
    fs::write(&input, format!("exec {}\n", built("early").display()))?;
    let command = format!("exec {} < {} > /dev/null", built("exec").display(), input.display());
    let command: Vec<OsString> = ["sh", "-c", &command].iter().map(OsString::from).collect();
    let mut held = Held::new(&command, session.injector.pid(), None)?;
    let pid = held.pid();
    let mut injector = Injector::spawn()?;
    injector.follow(&session.request(pid, &probes))?;
    held.release()?;
    let mut images = 0;
    let deadline = Instant::now() + Duration::from_secs(20);
    'events: while Instant::now() < deadline {
        for event in injector.events(100) {
            match event {
                InjectorEvent::Attached(_) => {
                    images += 1;
                    injector.go(pid)?;
                }
                InjectorEvent::Exec { .. } => {}
                InjectorEvent::Exited { .. } => break 'events,
                other => return Err(format!("{other:?}").into()),
            }
        }
    }
    equal("exit status", held.wait()?.code(), Some(42))?;
    // The last image is attached to while it runs already, if it is not over before.
    equal("images", (2..=3).contains(&images), true)?;
    equal("hits", session.arenas.hits(0), 7)?;
    session.injector.events(0);
    Ok(())
}

/// Names of the functions that a file exports.
fn exported(file: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let output = Command::new("nm").args(["-D", "--defined-only", file]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let functions = text.lines().filter(|line| line.contains(" T "));
    Ok(functions.filter_map(|line| Some(line.split_whitespace().nth(2)?.split('@').next()?.to_owned())).collect())
}

const SCRIPT: &str = "
import sys
print('ready', flush=True)
for line in sys.stdin:
    if line.startswith('end'):
        break
    words = {}
    for i in range(20000):
        words[str(i * 7919 % 1000)] = words.get(str(i % 100), 0) + i
    try:
        raise ValueError(len(words))
    except ValueError as e:
        n = e.args[0]
    print(n, sum(words.values()), '%.6f' % sum(x ** 0.5 for x in range(1000)), sorted(words)[:3], flush=True)
sys.exit(6)
";

fn name_of(probe: &ProbeSpec) -> &str {
    match &probe.target {
        ProbeTarget::Symbol { name, .. } => name,
        ProbeTarget::FileOffset { .. } => "",
    }
}

fn every_function_of_python() -> Outcome {
    let python = "/usr/bin/python3";
    let names = exported(&fs::canonicalize(python)?.to_string_lossy())?;
    let mut target = Target::spawn(Command::new(python).args(["-c", SCRIPT]))?;
    let expected = target.ask("run")?;
    for kind in [ProbeKind::Entry, ProbeKind::Return] {
        let mut probes: Vec<ProbeSpec> = names.iter().map(|name| symbol(0, kind, name)).collect();
        let mut session = Session::new(&probes[..1])?;
        // The stand-in for the agent has no handler of breakpoints: functions that take nothing else are left out.
        let attached = loop {
            let error = match session.attach(target.pid(), &probes) {
                Ok(attached) => break attached,
                Err(e) => e.to_string(),
            };
            let before = probes.len();
            probes.retain(|p| !error.contains(&format!("`{}`", name_of(p))) || !error.contains("breakpoint"));
            if probes.len() == before {
                return Err(error.into());
            }
        };
        session.injector.go(target.pid())?;
        let placed = attached.probes.iter().filter(|p| p.result.is_ok()).count();
        // A function of Python's may begin with a call.
        equal("almost all", placed * 100 >= names.len() * 90, true)
            .map_err(|_| format!("{placed} of {}", names.len()))?;
        for _ in 0..3 {
            equal("answer", target.ask("run")?, expected.clone())?;
        }
        equal("many hits", session.arenas.hits(0) > 100_000, true)?;
        session.injector.detach(target.pid())?;
        equal("answer", target.ask("run")?, expected.clone())?;
    }
    equal("exit status", target.end()?, Some(6))
}

fn thousands_of_sites_while_running() -> Outcome {
    let mut target = Target::start("calls")?;
    let libc = fs::read_to_string(format!("/proc/{}/maps", target.pid()))?;
    let libc = libc.split_whitespace().find(|word| word.contains("libc.so")).ok_or("no libc")?.to_owned();
    let module = Some(libc.clone());
    let spec = |name: &String, kind| {
        let target = ProbeTarget::Symbol { name: name.clone(), offset: 0, module: module.clone() };
        ProbeSpec { link: 0, kind, target, registers: Registers::ALL }
    };
    let names = exported(&libc)?;
    for kind in [ProbeKind::Entry, ProbeKind::Return] {
        target.ask("busy 4")?;
        let probes: Vec<ProbeSpec> = names.iter().map(|name| spec(name, kind)).collect();
        let mut session = Session::new(&probes[..1])?;
        let attached = session.attach(target.pid(), &probes)?;
        session.injector.go(target.pid())?;
        let placed = attached.probes.iter().filter(|p| p.result.is_ok()).count();
        equal("most", placed * 100 >= names.len() * 80, true).map_err(|_| format!("{placed} of {}", names.len()))?;
        std::thread::sleep(Duration::from_millis(100));
        let answer = target.ask("stop")?;
        if !answer.starts_with("calls ") {
            return Err(format!("{kind:?}: {answer:?}, {:?}", target.child.wait()).into());
        }
        equal("answer", target.ask("run 2 1000")?, format!("sum {}", checksum(2, 1000)))?;
        equal("hits", session.arenas.hits(0) > 0, true)?;
        session.injector.detach(target.pid())?;
    }
    equal("exit status", target.end()?, Some(5))
}
