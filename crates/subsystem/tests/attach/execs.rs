//! Processes that execute another program.

use super::*;

pub(crate) fn command_is_followed() -> Outcome {
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

pub(crate) fn exec_of_a_running_process() -> Outcome {
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

pub(crate) fn exec_by_a_thread_is_followed() -> Outcome {
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
