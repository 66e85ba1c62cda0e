//! The controller is killed.

use super::*;

/// In a process of its own: attaches to the process given in the environment, says so, and waits to be killed.
pub(crate) fn kill_me_if_requested() {
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

pub(crate) fn killed_controller() -> Outcome {
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
pub(crate) fn patiently(mut attach: impl FnMut() -> Result<Attached, AttachError>) -> Result<Attached, AttachError> {
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
pub(crate) fn killed_at_any_time() -> Outcome {
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

pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    std::thread::sleep(Duration::from_millis(20));
}

/// Whoever asks for something learns that the injector is gone, and so does who waits for events: once.
pub(crate) fn killed_injector() -> Outcome {
    let target = Target::start("calls")?;
    for asked in [true, false] {
        let mut session = Session::new(&entry_and_return("probed"))?;
        kill(session.injector.pid() as i32);
        if asked {
            let refused = session.attach(target.pid(), &entry_and_return("probed"));
            equal("attach", matches!(refused, Err(AttachError::Injector { .. })), true)?;
            // Where the request could not be sent, nobody has listened yet.
        }
        let events = session.injector.events(10_000);
        equal("events", format!("{events:?}"), "[InjectorGone]".to_owned())?;
        equal("no more", session.injector.events(0).len(), 0)?;
    }
    equal("exit status", target.end()?, Some(5))
}
