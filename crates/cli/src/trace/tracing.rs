//! The trace itself: processes come and go, and what they tell is printed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skep::subsystem::attach::{self, AttachError, Attached, Injector, InjectorEvent, ProbeOutcome, ProbeSpec};
use skep::subsystem::events::Events;
use skep::subsystem::session::{Link, Session};
use skep::subsystem::signals::EndSignals;
use skep::subsystem::spawn::Held;
use skep::subsystem::target::request;

use super::executable::Executables;
use super::plan::Placement;
use super::report::{Ending, Report};
use super::sampled::Sampling;
use super::status::Status;
use super::target::{Numbers, Target, unprobeable};
use crate::args::Trace;
use crate::places::Places;
use crate::{Failure, say, status as exit};

/// How long the end of a command may take to reach its parent: its tracer is told first.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long programs that are running may take to end, once their links are disabled.
const QUIESCE: Duration = Duration::from_millis(200);
/// How often misses are looked for.
const MISSES: Duration = Duration::from_secs(1);
/// How often symbols that are absent are looked for again.
const RETRY: Duration = Duration::from_millis(250);
/// Processes whose code is looked at in one turn.
const LOOKED_AT: usize = 16;

/// Why the loop ended.
enum End {
    /// There is nothing left to trace.
    Targets,
    /// The user, or the time limit.
    Asked,
    /// The injector is gone; the kernel has let the processes go on.
    Injector,
}

pub struct Tracing<'a> {
    session: &'a Session,
    events: Events,
    injector: Injector,
    signals: EndSignals,
    report: Report<'a>,
    status: Status,
    placements: &'a [Placement],
    probes: Vec<ProbeSpec>,
    wait: bool,
    /// Children are traced, too.
    follow: bool,
    executables: Executables,
    sampling: Sampling,
    /// By process id.
    targets: BTreeMap<u32, Target>,
    numbers: Numbers,
    /// The command that we started.
    command: Option<Box<Held>>,
    /// How the only process ended, if it did.
    ending: Option<Ending>,
    /// Processes that were attached to.
    traced: usize,
    /// Processes that could not be, with the reason.
    refused: Vec<String>,
    /// Links that were in place at least once, in any process.
    placed: HashSet<u32>,
    /// Why links were not, in the process that was looked at last.
    missing: BTreeMap<u32, AttachError>,
}

impl<'a> Tracing<'a> {
    #[expect(clippy::too_many_arguments, reason = "the parts that a trace is made of, each made elsewhere")]
    pub fn new(
        session: &'a Session,
        placements: &'a [Placement],
        probes: Vec<ProbeSpec>,
        injector: Injector,
        signals: EndSignals,
        executables: Executables,
        sampling: Sampling,
        report: Report<'a>,
        args: &Trace,
    ) -> Tracing<'a> {
        Tracing {
            session,
            events: Events::new(session),
            injector,
            signals,
            report,
            status: Status::new(args.json),
            placements,
            probes,
            wait: args.wait,
            follow: args.follow,
            executables,
            sampling,
            targets: BTreeMap::new(),
            numbers: Numbers::default(),
            command: None,
            ending: None,
            traced: 0,
            refused: Vec::new(),
            placed: HashSet::new(),
            missing: BTreeMap::new(),
        }
    }

    pub fn trace(mut self, args: &Trace) -> Result<u8, Failure> {
        let done = self.run(args);
        self.status.clear();
        done
    }

    fn run(&mut self, args: &Trace) -> Result<u8, Failure> {
        if !args.command.is_empty() {
            self.start(args)?;
        }
        for pid in args.pid.iter().copied().collect::<BTreeSet<u32>>() {
            if let Some(why) = self.attach(pid)? {
                self.refuse(pid, why);
            }
        }
        let end = match self.watch(args.duration.map(|d| Instant::now() + d)) {
            Ok(end) => end,
            Err(failure) => {
                self.detach();
                return Err(failure);
            }
        };
        self.finish(&end)
    }

    /// Attaches to a running process, or says why that is not possible.
    fn attach(&mut self, pid: u32) -> Result<Option<String>, Failure> {
        let mut target = Target::new(pid, self.numbers.take(), self.follow);
        if self.placements.is_empty() && !self.follow {
            if let Err(why) = self.sample(pid) {
                self.numbers.give(target.index);
                return Ok(Some(why.to_string()));
            }
            self.traced += 1;
            self.targets.insert(pid, target);
            return Ok(None);
        }
        let attached = match self.request(&mut target) {
            Ok(attached) => attached,
            Err(error) => {
                self.numbers.give(target.index);
                return Ok(Some(error.to_string()));
            }
        };
        target.note(&attached);
        if !target.is_worth_it(self.wait || self.placements.is_empty()) {
            let lines: Vec<String> = target.never().map(|(link, error)| self.missing_line(link, error)).collect();
            self.let_go(pid);
            self.session.sweep(target.index);
            self.numbers.give(target.index);
            return Ok(Some(lines.join("\n  ")));
        }
        self.outcomes(&mut target, &attached)?;
        for (link, error) in target.missing.iter().filter(|(_, e)| unprobeable(e)) {
            say(format_args!("note: {} is left out", self.missing_line(*link, error)));
        }
        self.traced += 1;
        self.targets.insert(pid, target);
        let sampled = self.sample(pid);
        self.go(pid)?;
        sampled?;
        Ok(None)
    }

    /// Samples a process from now on, if a program runs on samples.
    fn sample(&mut self, pid: u32) -> Result<(), Failure> {
        self.sampling.look(pid);
        let alone = self.placements.is_empty() && self.command.is_none();
        self.sampling.add(pid, alone, self.session, &mut self.report)
    }

    /// A process cannot be attached to. The others go on.
    fn refuse(&mut self, pid: u32, why: String) {
        if self.report.only.is_none() {
            self.status.clear();
            say(format_args!("process {pid} is not traced: {why}"));
        }
        self.refused.push(why);
    }

    /// Starts the command, held until the injector follows it.
    fn start(&mut self, args: &Trace) -> Result<(), Failure> {
        let held = Held::new(&args.command, self.injector.pid(), Some(&self.signals)).map_err(Failure::input)?;
        let pid = held.pid();
        self.report.only = (!self.follow).then_some(pid);
        let target = Target::new(pid, self.numbers.take(), true);
        let index = target.index;
        self.traced += 1;
        self.targets.insert(pid, target);
        self.command = Some(Box::new(held));
        self.sample(pid)?;
        // Without probes it is followed all the same: its end comes that way.
        let mut request = request(self.session, pid, index, self.probes.clone()).map_err(Failure::input)?;
        request.children = self.follow;
        self.injector.follow(&request).map_err(Failure::input)?;
        let Some(held) = &mut self.command else { return Ok(()) };
        held.release().map_err(|e| Failure::Input(format!("process {pid}: {e}")))
    }

    fn request(&mut self, target: &mut Target) -> Result<Attached, AttachError> {
        target.places = Places::of(target.pid);
        let mut request = request(self.session, target.pid, target.index, self.probes.clone())?;
        request.children = self.follow;
        self.injector.attach(&request)
    }

    fn go(&mut self, pid: u32) -> Result<(), Failure> {
        self.report.out.flush()?;
        match self.injector.go(pid) {
            // It may have been killed while it stood still, or have run to its end.
            Ok(()) | Err(AttachError::Exited { .. } | AttachError::NotAttached { .. }) => Ok(()),
            Err(e) => Err(Failure::input(e)),
        }
    }

    fn link_of(&self, index: u32) -> Option<Link> {
        self.session.links().get(index as usize).copied()
    }

    /// The counters at the places of a process that have one.
    fn counters(&self, attached: &Attached) -> BTreeSet<(String, u64)> {
        let counter = |outcome: &ProbeOutcome| {
            let placed = outcome.result.as_ref().ok()?;
            let counter = self.placements.get(outcome.link as usize)?.counter?;
            Some((placed.module.clone(), counter))
        };
        attached.probes.iter().filter_map(counter).collect()
    }

    /// Prints what became of a process's probes.
    fn outcomes(&mut self, target: &mut Target, attached: &Attached) -> Result<(), Failure> {
        target.listen(self.counters(attached));
        self.session.attached(attached);
        self.status.clear();
        for note in &attached.notes {
            say(format_args!("note: {note}"));
        }
        for outcome in &attached.probes {
            if let Ok(placed) = &outcome.result {
                let link = self.link_of(outcome.link);
                let program = link.and_then(|l| self.session.program_at(l.program())).map_or("?", |p| p.name());
                self.report.attached(target.pid, program, placed)?;
            }
        }
        self.placed.extend(&target.placed);
        self.missing.extend(target.missing.iter().map(|(link, error)| (*link, error.clone())));
        if self.report.only.is_some() {
            self.report.places = target.places.clone();
        }
        Ok(())
    }

    /// Links that never were in place, in any process.
    fn never(&self) -> impl Iterator<Item = (u32, &AttachError)> {
        self.missing.iter().filter(|(link, _)| !self.placed.contains(link)).map(|(link, error)| (*link, error))
    }

    fn missing_line(&self, link: u32, error: &AttachError) -> String {
        let program = self.placements.get(link as usize).map_or("?", |p| p.program.as_str());
        format!("program {program}: {error}")
    }

    /// Prints events until something ends the trace.
    fn watch(&mut self, deadline: Option<Instant>) -> Result<End, Failure> {
        let mut misses = Instant::now();
        let mut retry = Instant::now();
        if !self.executables.is_empty() {
            self.find()?;
            if self.targets.is_empty() {
                say("waiting for processes of the executable");
            }
        }
        loop {
            if self.targets.is_empty() && self.executables.is_empty() {
                return Ok(End::Targets);
            }
            let mut timeout = deadline.map_or(MISSES, |d| d.saturating_duration_since(Instant::now()).min(MISSES));
            if let Some(due) = self.status.due() {
                timeout = timeout.min(due);
            }
            if !self.executables.is_empty() {
                timeout = timeout.min(self.executables.due());
            }
            let waiting = self.wait && self.targets.values().any(|target| !target.missing.is_empty());
            if waiting {
                timeout = timeout.min(RETRY);
            }
            let signal = self.poll(timeout)?;
            self.drain()?;
            if signal && self.signals.take().is_some() {
                return Ok(End::Asked);
            }
            for pid in self.sampling.ended() {
                self.injector_event(InjectorEvent::Exited { pid })?;
            }
            // Also when its socket is silent: an event may have come together with an answer.
            if let Some(end) = self.injector_events()? {
                return Ok(end);
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Ok(End::Asked);
            }
            if !self.executables.is_empty() && self.executables.due() == Duration::ZERO {
                self.find()?;
            }
            if waiting && retry.elapsed() >= RETRY {
                self.look_again()?;
                retry = Instant::now();
            }
            if misses.elapsed() >= MISSES {
                self.look_at_code();
                self.look_for_filters();
                self.report.misses(self.session)?;
                self.report.damage(self.session);
                self.report.out.flush()?;
                misses = Instant::now();
            }
            self.status.renew(self.session);
        }
    }

    /// Waits for events, the injector and signals; true if a signal has come.
    fn poll(&self, timeout: Duration) -> Result<bool, Failure> {
        use std::os::fd::AsFd;
        let fds = [self.signals.as_fd(), self.session.events_fd(), self.injector.fd()].into_iter();
        let fds = fds.chain(self.sampling.fds());
        let mut polled: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::Input(format!("poll: {e}"))),
        }
        Ok(polled.first().is_some_and(|signals| !signals.revents().is_empty()))
    }

    /// Prints the events that are there.
    fn drain(&mut self) -> Result<(), Failure> {
        self.session.hear();
        let mut done = Ok(());
        let (session, report, status) = (self.session, &mut self.report, &mut self.status);
        let quiet = self.sampling.is_folded();
        let sampled = self.sampling.poll(session, |event| {
            if done.is_ok() && !quiet {
                status.clear();
                done = report.event(session, &event);
            }
        });
        let count = self.events.drain(session, |event| {
            if done.is_ok() && !quiet {
                status.clear();
                done = report.event(session, &event);
            }
        });
        done?;
        if count + sampled > 0 {
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
                if matches!(event, InjectorEvent::InjectorGone) {
                    return Ok(Some(End::Injector));
                }
                self.injector_event(event)?;
            }
        }
    }

    fn injector_event(&mut self, event: InjectorEvent) -> Result<(), Failure> {
        match event {
            InjectorEvent::Attached(attached) => self.executed(&attached)?,
            InjectorEvent::Exec { pid } => {
                let Some(target) = self.targets.get(&pid) else { return Ok(()) };
                self.session.sweep(target.index);
                if target.followed {
                    return Ok(());
                }
                if self.is_command(pid) {
                    return self.attach_again(pid);
                }
                self.status.clear();
                say(format_args!("process {pid} has executed another program: its probes are gone"));
                self.remove(pid);
                self.executables.forget(pid);
            }
            InjectorEvent::Forked { pid, .. } => self.forked(pid)?,
            InjectorEvent::Exited { pid } => {
                let Some(target) = self.targets.get_mut(&pid) else { return Ok(()) };
                self.session.sweep(target.index);
                let child = target.child;
                self.drain()?;
                self.remove(pid);
                if !self.is_command(pid) && !child {
                    self.status.clear();
                    say(format_args!("process {pid} has ended"));
                    self.ending = self.report.only.map(|_| Ending::default());
                }
            }
            InjectorEvent::Failed { pid, error } => {
                self.status.clear();
                say(format_args!("note: {error}; it runs on without probes"));
                if self.is_command(pid) {
                    for link in self.session.links() {
                        self.missing.insert(link.index(), error.clone());
                    }
                }
            }
            InjectorEvent::InjectorGone => {}
        }
        Ok(())
    }

    fn is_command(&self, pid: u32) -> bool {
        self.command.as_ref().is_some_and(|held| held.pid() == pid)
    }

    /// Nothing of a process is traced any more, and none of its threads holds a slot.
    fn remove(&mut self, pid: u32) {
        if let Some(target) = self.targets.remove(&pid) {
            self.numbers.give(target.index);
        }
    }

    /// A followed process has executed something, which has been attached to.
    fn executed(&mut self, attached: &Attached) -> Result<(), Failure> {
        let pid = attached.pid;
        let Some(mut target) = self.targets.remove(&pid) else { return Ok(()) };
        // The image that was there is gone, and with it what its threads held.
        target.counters.clear();
        self.session.sweep(target.index);
        self.drain()?;
        let known: Vec<u32> = target.missing.keys().copied().collect();
        target.note(attached);
        target.places = Places::of(pid);
        self.sampling.look(pid);
        self.outcomes(&mut target, attached)?;
        for (link, error) in target.never().filter(|(link, _)| !known.contains(link)) {
            let line = self.missing_line(link, error);
            say(format_args!("note: {line}; waiting for the next program that it executes"));
        }
        self.targets.insert(pid, target);
        self.go(pid)
    }

    /// A traced process has made another one, which stands still.
    fn forked(&mut self, pid: u32) -> Result<(), Failure> {
        let mut target = Target::new(pid, self.numbers.take(), true);
        target.child = true;
        match self.request(&mut target) {
            Ok(attached) => {
                target.note(&attached);
                self.outcomes(&mut target, &attached)?;
                if let Err(why) = self.sample(pid) {
                    say(format_args!("note: {why}"));
                }
                self.traced += 1;
                self.targets.insert(pid, target);
                self.go(pid)
            }
            Err(error) => {
                self.numbers.give(target.index);
                if !matches!(error, AttachError::NoSuchProcess { .. } | AttachError::Exited { .. }) {
                    self.refuse(pid, error.to_string());
                }
                Ok(())
            }
        }
    }

    /// Attaches to the processes of the executables that have come.
    fn find(&mut self) -> Result<(), Failure> {
        for pid in self.executables.arrivals() {
            if self.targets.contains_key(&pid) {
                continue;
            }
            if let Some(why) = self.attach(pid)? {
                let gone = !std::path::Path::new(&format!("/proc/{pid}")).exists();
                if !gone && !self.executables.later(pid) {
                    self.refuse(pid, why);
                }
            }
        }
        Ok(())
    }

    /// Looks again for symbols that are absent where modules have come: takes all probes out and puts all that are
    /// possible in. What is called meanwhile is not seen.
    fn look_again(&mut self) -> Result<(), Failure> {
        let waiting = self.targets.values().filter(|target| !target.missing.is_empty() && target.settled());
        for pid in waiting.map(|target| target.pid).collect::<Vec<_>>() {
            let places = Places::of(pid);
            let Some(target) = self.targets.get_mut(&pid) else { continue };
            // What it has it could not be given again.
            if places.is_empty() || places == target.places || attach::is_confined(pid) {
                continue;
            }
            target.followed = self.follow;
            self.let_go(pid);
            self.attach_again(pid)?;
        }
        Ok(())
    }

    /// Attaches to a target that is not attached to any more.
    fn attach_again(&mut self, pid: u32) -> Result<(), Failure> {
        let Some(mut target) = self.targets.remove(&pid) else { return Ok(()) };
        let done = match self.request(&mut target) {
            Ok(attached) => {
                target.note(&attached);
                self.outcomes(&mut target, &attached).and_then(|()| self.go(pid))
            }
            // Its end is noticed elsewhere.
            Err(AttachError::NoSuchProcess { .. } | AttachError::Exited { .. }) => Ok(()),
            Err(error) if self.report.only.is_some() => Err(Failure::input(error)),
            Err(error) => {
                self.refuse(pid, error.to_string());
                self.numbers.give(target.index);
                return Ok(());
            }
        };
        self.targets.insert(pid, target);
        done
    }

    /// Tells, once for each, of processes that have put themselves under a seccomp filter.
    fn look_for_filters(&mut self) {
        for target in self.targets.values_mut().filter(|target| !target.confined) {
            target.confined = attach::is_confined(target.pid);
            if target.confined {
                let pid = target.pid;
                say(format_args!(
                    "process {pid} has put itself under a seccomp filter: programs make no system calls there any more, so reads of \
                     memory fail, and who asks for ids, names and some clocks gets an error"
                ));
            }
        }
    }

    /// Notes where processes' code is, as long as it can be seen.
    fn look_at_code(&mut self) {
        // While symbols are awaited, what is known is what was looked through.
        let known = self.targets.values_mut().filter(|target| !self.wait || target.missing.is_empty());
        for target in known.take(LOOKED_AT) {
            let places = Places::of(target.pid);
            if !places.is_empty() {
                target.places = places;
                self.sampling.look(target.pid);
            }
        }
        let all = self.targets.values().map(|target| &target.places);
        let together = Places::together(all.take(LOOKED_AT));
        if !together.is_empty() {
            self.report.places = together;
        }
    }

    /// Takes the probes out of all processes.
    fn detach(&mut self) {
        for link in self.session.links() {
            self.session.disable(*link);
        }
        for pid in self.targets.keys().copied().collect::<Vec<_>>() {
            self.let_go(pid);
        }
    }

    /// Takes the probes out of a process.
    fn let_go(&mut self, pid: u32) {
        if let Some(target) = self.targets.get_mut(&pid) {
            target.listen(BTreeSet::new());
        }
        if let Err(error) = self.injector.detach(pid)
            && !matches!(
                error,
                AttachError::Exited { .. } | AttachError::NotAttached { .. } | AttachError::NoSuchProcess { .. }
            )
        {
            self.status.clear();
            say(format_args!("detaching from process {pid}: {error}"));
        }
    }

    /// Detaches and prints what there is.
    fn finish(&mut self, end: &End) -> Result<u8, Failure> {
        self.sampling.stop();
        if !matches!(end, End::Injector) {
            self.detach();
        }
        self.status.clear();
        self.look_at_code();
        if let Some(failure) = self.session.subsystem().symbols_failure() {
            say(format_args!("note: profilers do not know all programs: {failure}"));
        }
        let nothing = self.traced == 0 && self.command.is_none();
        if nothing && !self.refused.is_empty() {
            return Err(Failure::Input(self.refused.join("\n  ")));
        }
        let ending = self.ending(end)?;
        for target in self.targets.values() {
            if ending.is_some() && self.is_command(target.pid) {
                self.session.sweep(target.index);
            } else if !self.session.quiesce(target.index, QUIESCE) {
                say(format_args!("a program still runs in process {}; its counts are not final", target.pid));
            }
        }
        self.drain()?;
        self.report.misses(self.session)?;
        self.report.damage(self.session);
        self.report.corrupt(self.session);
        if self.sampling.is_folded() {
            self.sampling.print(self.session, &mut self.report)?;
        } else {
            self.report.maps(self.session)?;
        }
        match self.sampling.lost() {
            0 => {}
            lost => say(format_args!("{lost} samples were lost: no room in the kernel's ring")),
        }
        self.report.out.flush()?;
        self.report.summary(self.session, ending, self.traced)?;
        self.report.out.flush()?;
        if matches!(end, End::Injector) {
            return Err(Failure::Input("the injector process is gone; the trace is incomplete".into()));
        }
        let left_out = !self.placed.is_empty() && self.never().all(|(_, error)| unprobeable(error));
        match self.never().next() {
            None if self.refused.is_empty() => Ok(exit::OK),
            None => Ok(exit::UNSUPPORTED),
            Some(_) if left_out => Ok(exit::UNSUPPORTED),
            Some(_) if self.wait => Ok(exit::OK),
            Some(_) => {
                let lines: Vec<String> = self.never().map(|(link, error)| self.missing_line(link, error)).collect();
                Err(Failure::Input(lines.join("\n  ")))
            }
        }
    }

    /// How the only process, or the command, ended, if it did.
    fn ending(&mut self, end: &End) -> Result<Option<Ending>, Failure> {
        let Some(held) = &mut self.command else { return Ok(self.ending) };
        // The signal that ended the trace may have been for both.
        let patience = if matches!(end, End::Targets) { PATIENCE } else { QUIESCE };
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
}

fn ending(status: ExitStatus) -> Ending {
    Ending { status: status.code(), signal: status.signal() }
}
