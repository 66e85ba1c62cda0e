//! Thousands of sites.

use super::*;

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
        ProbeTarget::FileOffset { .. } | ProbeTarget::Syscall(_) => "",
    }
}

pub(crate) fn every_function_of_python() -> Outcome {
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

pub(crate) fn thousands_of_sites_while_running() -> Outcome {
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
