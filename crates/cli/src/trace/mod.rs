//! `skep trace`: an object's programs on functions of a process.

pub mod plan;
mod report;
mod status;
mod typed;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use skep::Symbols;
use skep::subsystem::attach::{AttachError, Attached, Injector, InjectorEvent, ProbeSpec};
use skep::subsystem::events::Events;
use skep::subsystem::session::{Link, Options, Session};
use skep::subsystem::signals::EndSignals;
use skep::subsystem::spawn::Held;
use skep::subsystem::target;

use crate::args::{self, Trace};
use crate::load::{Linker, object};
use crate::places::Places;
use crate::road;
use crate::{Failure, records, say, status as exit};
use plan::Placement;
use report::{Ending, Report};
use status::Status;
use typed::Typed;

/// The traced process's number in the session.
const PROC_INDEX: u32 = 0;
/// How long the end of a command may take to reach its parent: its tracer is told first.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long programs that are running may take to end, once their links are disabled.
const QUIESCE: Duration = Duration::from_millis(200);
/// How often misses are looked for.
const MISSES: Duration = Duration::from_secs(1);
/// How often symbols that are absent are looked for again.
const RETRY: Duration = Duration::from_millis(250);
/// How long a command must have run the same program before that: looking again ends the following of `exec`.
const SETTLED: Duration = Duration::from_secs(1);

pub fn main(args: &Trace) -> Result<u8, Failure> {
    // Before any thread is made, so that all have them blocked.
    let signals = EndSignals::catch().map_err(|e| Failure::Input(format!("signals: {e}")))?;
    let input = object(&args.object)?;
    let plan = plan::plan(&input.object, &args.funcs)?;
    if plan.placements.is_empty() {
        let why: Vec<_> = plan.left_out.iter().map(|(name, why)| format!("\n  {name}: {why}")).collect();
        return Err(Failure::Input(format!("{}: no program can be attached{}", input.path, why.concat())));
    }
    for (name, why) in &plan.left_out {
        say(format_args!("note: program {name} is left out: {why}"));
    }
    let btf = input.object.btf().map(|b| &**b);
    let types = records::types(btf, input.object.maps(), &args.events).map_err(Failure::input)?;

    let linker = Linker::new(&args.load);
    let plain = plan.placements.iter().filter(|p| !p.typed);
    let mut names: Vec<String> = plain.map(|p| p.program.clone()).collect();
    names.extend(plan::called(&input.object));
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let programs = names.iter().map(|name| road::verified(&input.object, &linker, name));
    let mut programs = programs.collect::<Result<Vec<_>, _>>()?;
    // Those with types are judged by the function that they are for: one each.
    let mut typed = Typed::new(args);
    let mut placements = plan.placements;
    for p in &mut placements {
        p.index = match p.typed {
            false => names.iter().position(|n| *n == p.program).unwrap_or(0),
            true => {
                programs.push(typed.verified(&input.object, p)?);
                programs.len() - 1
            }
        };
    }
    let engine = args::Engine::or_best(args.engine);
    let symbols = Symbols {
        perf_map: args.perf_map,
        jitdump: args.jitdump.clone(),
        // Only the process that is traced runs programs.
        others_only: true,
        ..Symbols::default()
    };
    let options = Options { links: placements.len() as u32, engine, symbols, ..Options::default() };
    let mut session = road::session(programs, &options)?;
    let probes = link(&mut session, &placements)?;

    let injector = Injector::spawn().map_err(Failure::input)?;
    let report = Report::new(args.json, btf, types);
    let events = Events::new(&session);
    let mut tracing = Tracing {
        session: &session,
        events,
        injector,
        signals,
        report,
        status: Status::new(args.json),
        placements: &placements,
        probes,
        missing: BTreeMap::new(),
        placed: HashSet::new(),
        wait: args.wait,
        target: None,
        since: Instant::now(),
        followed: false,
    };
    let done = tracing.trace(args);
    tracing.status.clear();
    done
}

/// Links every placement.
fn link(session: &mut Session, placements: &[Placement]) -> Result<Vec<ProbeSpec>, Failure> {
    let one = |p: &Placement| {
        let link = session.link(p.index, p.place.when, 0)?;
        Ok(target::probe(link, &p.place))
    };
    placements
        .iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map_err(|e: skep::subsystem::session::SessionError| Failure::input(e))
}

/// The traced process.
enum Target {
    /// It ran already.
    Process { pid: u32, fd: OwnedFd },
    /// We started it.
    Command(Box<Held>),
}

impl Target {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Target::Process { fd, .. } => fd.as_fd(),
            Target::Command(held) => held.fd(),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Target::Process { pid, .. } => *pid,
            Target::Command(held) => held.pid(),
        }
    }
}

/// Why the loop ended.
enum End {
    /// The process is gone.
    Target,
    /// The user, or the time limit.
    Asked,
    /// The injector is gone; the kernel has let the process go on.
    Injector,
}

struct Tracing<'a> {
    session: &'a Session,
    events: Events,
    injector: Injector,
    signals: EndSignals,
    report: Report<'a>,
    status: Status,
    placements: &'a [Placement],
    probes: Vec<ProbeSpec>,
    /// Links that are not in place in the present image, with the reason.
    missing: BTreeMap<u32, AttachError>,
    /// Links that were in place at least once.
    placed: HashSet<u32>,
    wait: bool,
    target: Option<Target>,
    /// When the present image was attached to.
    since: Instant,
    /// The injector follows the target through `exec`.
    followed: bool,
}

impl Tracing<'_> {
    fn trace(&mut self, args: &Trace) -> Result<u8, Failure> {
        match args.pid {
            Some(pid) => self.attach(pid)?,
            None => self.start(args)?,
        }
        let end = self.watch(args.duration.map(|d| Instant::now() + d));
        let end = match end {
            Ok(end) => end,
            Err(failure) => {
                self.detach();
                return Err(failure);
            }
        };
        self.finish(&end)
    }

    /// Attaches to a running process.
    fn attach(&mut self, pid: u32) -> Result<(), Failure> {
        self.report.pid = pid;
        let attached = self.request(pid).map_err(Failure::input)?;
        // It is there and stands still, so the descriptor is of the right process.
        let fd = Pid::from_raw(pid.cast_signed())
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|p| pidfd_open(p, PidfdFlags::empty()))
            .map_err(|e| Failure::Input(format!("process {pid}: {e}")))?;
        self.target = Some(Target::Process { pid, fd });
        self.outcomes(&attached)?;
        let bearable = |e: &AttachError| (self.wait && e.is_absence()) || unprobeable(e);
        if !self.missing.values().all(bearable) || (self.placed.is_empty() && !self.wait) {
            self.detach();
            return Err(self.misplaced());
        }
        for (link, error) in self.missing.iter().filter(|(_, e)| unprobeable(e)) {
            say(format_args!("note: {} is left out", self.missing_line(*link, error)));
        }
        self.go(pid)
    }

    /// Starts the command, held until the injector follows it.
    fn start(&mut self, args: &Trace) -> Result<(), Failure> {
        let held = Held::new(&args.command, self.injector.pid(), Some(&self.signals)).map_err(Failure::input)?;
        let pid = held.pid();
        self.report.pid = pid;
        let held = self.target.insert(Target::Command(Box::new(held)));
        let probes = self.probes.clone();
        let request = target::request(self.session, pid, PROC_INDEX, probes).map_err(Failure::input)?;
        self.injector.follow(&request).map_err(Failure::input)?;
        self.followed = true;
        match held {
            Target::Command(held) => held.release().map_err(|e| Failure::Input(format!("process {pid}: {e}"))),
            Target::Process { .. } => Ok(()),
        }
    }

    fn request(&mut self, pid: u32) -> Result<Attached, AttachError> {
        self.report.places = Places::of(pid);
        let request = target::request(self.session, pid, PROC_INDEX, self.probes.clone())?;
        self.injector.attach(&request)
    }

    fn go(&mut self, pid: u32) -> Result<(), Failure> {
        self.report.out.flush()?;
        match self.injector.go(pid) {
            // It may have been killed while it stood still.
            Ok(()) | Err(AttachError::Exited { .. }) => Ok(()),
            Err(e) => Err(Failure::input(e)),
        }
    }

    fn link_of(&self, index: u32) -> Option<Link> {
        self.session.links().get(index as usize).copied()
    }

    /// Prints what became of the probes.
    fn outcomes(&mut self, attached: &Attached) -> Result<(), Failure> {
        self.since = Instant::now();
        self.session.attached(attached);
        self.status.clear();
        for note in &attached.notes {
            say(format_args!("note: {note}"));
        }
        for outcome in &attached.probes {
            match &outcome.result {
                Ok(placed) => {
                    let link = self.link_of(outcome.link);
                    let program = link.and_then(|l| self.session.program_at(l.program())).map_or("?", |p| p.name());
                    self.report.attached(program, placed)?;
                    self.placed.insert(outcome.link);
                    self.missing.remove(&outcome.link);
                }
                Err(error) => {
                    self.missing.insert(outcome.link, error.clone());
                }
            }
        }
        Ok(())
    }

    /// The error for links that never were in place.
    fn misplaced(&self) -> Failure {
        let never = self.missing.iter().filter(|(link, _)| !self.placed.contains(link));
        let lines: Vec<String> = never.map(|(link, error)| self.missing_line(*link, error)).collect();
        Failure::Input(lines.join("\n  "))
    }

    fn missing_line(&self, link: u32, error: &AttachError) -> String {
        let program = self.placements.get(link as usize).map_or("?", |p| p.program.as_str());
        format!("program {program}: {error}")
    }

    /// Prints events until something ends the trace.
    fn watch(&mut self, deadline: Option<Instant>) -> Result<End, Failure> {
        let mut misses = Instant::now();
        let mut retry = Instant::now();
        loop {
            let mut timeout = deadline.map_or(MISSES, |d| d.saturating_duration_since(Instant::now()).min(MISSES));
            if let Some(due) = self.status.due() {
                timeout = timeout.min(due);
            }
            let waiting = self.wait && !self.missing.is_empty();
            if waiting {
                timeout = timeout.min(RETRY);
            }
            let [_, _, signal, target] = self.poll(timeout)?;
            self.drain()?;
            if signal && self.signals.take().is_some() {
                return Ok(End::Asked);
            }
            // Also when its socket is silent: an event may have come together with an answer.
            if let Some(end) = self.injector_events()? {
                return Ok(end);
            }
            if target {
                return Ok(End::Target);
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(End::Asked);
            }
            let settled = !self.followed || self.since.elapsed() >= SETTLED;
            if waiting && settled && retry.elapsed() >= RETRY {
                self.look_again()?;
                retry = Instant::now();
            }
            if misses.elapsed() >= MISSES {
                self.look_at_code();
                self.report.misses(self.session)?;
                self.report.out.flush()?;
                misses = Instant::now();
            }
            self.status.renew(self.session);
        }
    }

    /// Waits for events, the injector, signals, and the process's end.
    fn poll(&self, timeout: Duration) -> Result<[bool; 4], Failure> {
        let target = self.target.as_ref().map(Target::fd);
        let fds = [Some(self.session.events_fd()), Some(self.injector.fd()), Some(self.signals.as_fd()), target];
        let mut polled: Vec<PollFd<'_>> =
            fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::Input(format!("poll: {e}"))),
        }
        let mut ready = [false; 4];
        for (ready, fd) in ready.iter_mut().zip(&polled) {
            *ready = !fd.revents().is_empty();
        }
        Ok(ready)
    }

    /// Prints the events that are there.
    fn drain(&mut self) -> Result<(), Failure> {
        self.session.hear();
        let mut done = Ok(());
        let (session, report, status) = (self.session, &mut self.report, &mut self.status);
        let count = self.events.drain(session, |event| {
            if done.is_ok() {
                status.clear();
                done = report.event(session, &event);
            }
        });
        done?;
        if count > 0 {
            self.report.out.flush()?;
        }
        Ok(())
    }

    /// Deals with all that the injector has told.
    fn injector_events(&mut self) -> Result<Option<End>, Failure> {
        loop {
            let events = self.injector.events(0);
            if events.is_empty() {
                return Ok(None);
            }
            for event in events {
                if let Some(end) = self.injector_event(event)? {
                    return Ok(Some(end));
                }
            }
        }
    }

    fn injector_event(&mut self, event: InjectorEvent) -> Result<Option<End>, Failure> {
        match event {
            InjectorEvent::Attached(attached) => {
                let pid = attached.pid;
                // The image that was there is gone, and with it what its threads held.
                self.session.sweep(PROC_INDEX);
                self.drain()?;
                let known: Vec<u32> = self.missing.keys().copied().collect();
                self.outcomes(&attached)?;
                for (link, error) in &self.missing {
                    if !known.contains(link) && !self.placed.contains(link) {
                        let line = self.missing_line(*link, error);
                        say(format_args!("note: {line}; waiting for the next program that it executes"));
                    }
                }
                self.report.places = Places::of(pid);
                self.go(pid)?;
            }
            InjectorEvent::Exec { pid } => {
                self.session.sweep(PROC_INDEX);
                if matches!(self.target, Some(Target::Process { .. })) {
                    self.status.clear();
                    say("the process has executed another program: its probes are gone");
                    return Ok(Some(End::Asked));
                }
                if !self.followed {
                    self.attach_again(pid)?;
                }
            }
            InjectorEvent::Exited { .. } => return Ok(Some(End::Target)),
            InjectorEvent::Failed { error, .. } => {
                self.status.clear();
                say(format_args!("note: {error}; it runs on without probes"));
                for link in self.session.links() {
                    self.missing.insert(link.index(), error.clone());
                }
            }
            InjectorEvent::InjectorGone => return Ok(Some(End::Injector)),
        }
        Ok(None)
    }

    /// Looks again for symbols that are absent, if modules have come: takes all probes out and puts all that are possible
    /// in. What is called meanwhile is not seen.
    fn look_again(&mut self) -> Result<(), Failure> {
        let Some(pid) = self.target.as_ref().map(Target::pid) else { return Ok(()) };
        let places = Places::of(pid);
        if places.is_empty() || places == self.report.places {
            return Ok(());
        }
        self.detach();
        self.followed = false;
        for link in self.session.links() {
            self.session.enable(*link);
        }
        self.attach_again(pid)
    }

    /// Attaches to a process that is not attached to any more.
    fn attach_again(&mut self, pid: u32) -> Result<(), Failure> {
        match self.request(pid) {
            Ok(attached) => {
                self.outcomes(&attached)?;
                self.go(pid)
            }
            // Its end is noticed elsewhere.
            Err(AttachError::NoSuchProcess { .. } | AttachError::Exited { .. }) => Ok(()),
            Err(error) => Err(Failure::input(error)),
        }
    }

    /// Notes where the process's code is, as long as it can be seen.
    fn look_at_code(&mut self) {
        let Some(pid) = self.target.as_ref().map(Target::pid) else { return };
        let places = Places::of(pid);
        // While symbols are awaited, what is known is what was looked through.
        if !places.is_empty() && (!self.wait || self.missing.is_empty()) {
            self.report.places = places;
        }
    }

    fn detach(&mut self) {
        for link in self.session.links() {
            self.session.disable(*link);
        }
        if let Some(target) = &self.target {
            let pid = target.pid();
            if let Err(error) = self.injector.detach(pid)
                && !matches!(error, AttachError::Exited { .. } | AttachError::NotAttached { .. })
            {
                self.status.clear();
                say(format_args!("detaching from process {pid}: {error}"));
            }
        }
    }

    /// Detaches and prints what there is.
    fn finish(&mut self, end: &End) -> Result<u8, Failure> {
        if !matches!(end, End::Injector) {
            self.detach();
        }
        self.status.clear();
        self.look_at_code();
        if let Some(failure) = self.session.subsystem().symbols_failure() {
            say(format_args!("note: profilers do not know all programs: {failure}"));
        }
        let ending = self.ending(end)?;
        if ending.is_some() {
            self.session.sweep(PROC_INDEX);
        } else if !self.session.quiesce(PROC_INDEX, QUIESCE) {
            say("a program still runs in the process; its counts are not final");
        }
        self.drain()?;
        self.report.misses(self.session)?;
        self.report.maps(self.session)?;
        self.report.out.flush()?;
        self.report.summary(self.session, ending)?;
        self.report.out.flush()?;
        if matches!(end, End::Injector) {
            return Err(Failure::Input("the injector process is gone; the trace is incomplete".into()));
        }
        let never = || self.missing.iter().filter(|(link, _)| !self.placed.contains(link)).map(|(_, error)| error);
        let left_out = !self.placed.is_empty() && never().all(unprobeable);
        match never().next() {
            None => Ok(exit::OK),
            Some(_) if left_out => Ok(exit::UNSUPPORTED),
            Some(_) if self.wait => Ok(exit::OK),
            Some(_) => Err(self.misplaced()),
        }
    }

    /// How the process ended, if it did.
    fn ending(&mut self, end: &End) -> Result<Option<Ending>, Failure> {
        let gone = matches!(end, End::Target);
        // The signal that ended the trace may have been for both.
        let patience = if gone { PATIENCE } else { QUIESCE };
        match &mut self.target {
            Some(Target::Process { pid, .. }) if gone => {
                say(format_args!("process {pid} has ended"));
                Ok(Some(Ending::default()))
            }
            Some(Target::Command(held)) => {
                let start = Instant::now();
                let status = loop {
                    match held.try_wait().map_err(Failure::input)? {
                        None if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(1)),
                        status => break status,
                    }
                };
                let Some(status) = status else {
                    say(format_args!("{:?} (pid {}) runs on, untraced", held.command(), held.pid()));
                    return Ok(None);
                };
                if let Some(signal) = status.signal() {
                    say(format_args!("{:?} (pid {}) was killed by signal {signal}", held.command(), held.pid()));
                }
                Ok(Some(ending(status)))
            }
            _ => Ok(None),
        }
    }
}

/// True if the place is there, but no probe fits.
fn unprobeable(error: &AttachError) -> bool {
    matches!(error, AttachError::NoJump { .. } | AttachError::Unprobeable { .. })
}

fn ending(status: ExitStatus) -> Ending {
    Ending { status: status.code(), signal: status.signal() }
}
