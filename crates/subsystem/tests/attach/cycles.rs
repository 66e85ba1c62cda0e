//! Attach, change and detach, many times, on processes at work.

use std::os::unix::process::CommandExt;

use super::*;

/// One in 16 attaches and lets go, the others change what an attached process carries: places are patched and restored in each.
pub(crate) fn attach_detach_cycles() -> Outcome {
    // SAFETY: it takes nothing and touches no memory.
    let usual = if unsafe { libc::geteuid() } == 0 { 2000 } else { 400 };
    let cycles: u64 = std::env::var("SKEP_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    // Threads that never pause leave the rest of the machine little.
    for (threads, pace, parts) in [(1, "busy", 3), (4, "busy", 3), (2, "pace", 28), (16, "pace", 28), (64, "pace", 2)] {
        let mut target = Target::spawn(&mut apart(Command::new(built("calls"))))?;
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

/// In a session of its own, as a service is: by that the kernel shares out its processors, so that we have ours beside many threads.
fn apart(mut command: Command) -> Command {
    let setsid = || {
        // SAFETY: a system call that takes nothing.
        let _ = unsafe { libc::setsid() };
        Ok(())
    };
    // SAFETY: the child does nothing but a system call.
    unsafe { command.pre_exec(setsid) };
    command
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
        let end = Instant::now() + Duration::from_secs(20);
        while session.arenas.hits(0) == 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
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
            // Changes are made faster than threads get their turn.
            let end = Instant::now() + Duration::from_secs(20);
            while wanted.len() > 1 && session.arenas.hits(0) == 0 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(cycle % 5 * 100));
        }
    }
    session.injector.detach(target.pid())?;
    equal("text", target.text(address), before)?;
    equal("hits", cycles == 0 || session.arenas.hits(0) > 0, true)?;
    Ok(spread(times))
}
