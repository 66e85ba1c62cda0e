//! Programs that run on samples, and what is made of call chains.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use skep::subsystem::events::Event;
use skep::subsystem::sampling::{Event as Sampled, Rate, Sampler};
use skep::subsystem::session::Session;

use super::folded::Folded;
use super::report::Report;
use crate::Failure;
use crate::args::Trace;
use crate::out::OutError;

/// Samples a second where nothing is said: no multiple of what else happens at round intervals.
const FREQUENCY: u64 = 99;

/// What is sampled, and folded.
pub struct Sampling {
    /// Runs the programs, if there are such.
    sampler: Option<Sampler>,
    /// Instead of all else folded stacks are printed.
    folded: Option<Folded>,
    /// Processes that have no probes: nobody else tells of their end.
    alone: BTreeMap<u32, OwnedFd>,
}

impl Sampling {
    /// Of these programs, by what the command line says.
    pub fn new(session: &mut Session, programs: &[String], args: &Trace) -> Result<Sampling, Failure> {
        let rate = match (args.freq, args.period, args.sample) {
            (Some(hz), ..) => Rate::Frequency(hz),
            (_, Some(n), _) => Rate::Period(n),
            (None, None, Sampled::Access { .. }) => Rate::Period(1),
            (None, None, Sampled::Counted(_)) => Rate::Frequency(FREQUENCY),
        };
        let indices = programs.iter().map(|p| session.program(p)).collect::<Result<Vec<_>, _>>();
        let indices = indices.map_err(Failure::input)?;
        let sampler = match indices[..] {
            [] => None,
            _ => Some(Sampler::new(session, &indices, args.sample, rate).map_err(Failure::input)?),
        };
        Ok(Sampling { sampler, folded: args.folded.then(Folded::default), alone: BTreeMap::new() })
    }

    /// True if call chains are printed, and nothing else.
    pub fn is_folded(&self) -> bool {
        self.folded.is_some()
    }

    /// Looks where the code of a process is.
    pub fn look(&mut self, pid: u32) {
        if let Some(folded) = &mut self.folded {
            folded.look(pid);
        }
    }

    /// Samples a process from now on; one that is `alone` has no probes.
    pub fn add(&mut self, pid: u32, alone: bool, session: &Session, report: &mut Report<'_>) -> Result<(), Failure> {
        let Some(sampler) = &mut self.sampler else { return Ok(()) };
        if alone {
            let id = Pid::from_raw(pid.cast_signed()).ok_or(rustix::io::Errno::SRCH);
            let fd = id.and_then(|p| pidfd_open(p, PidfdFlags::empty()));
            self.alone.insert(pid, fd.map_err(|e| Failure::Input(format!("process {pid}: {e}")))?);
        }
        if let Err(error) = sampler.add(pid) {
            self.alone.remove(&pid);
            return Err(Failure::input(error));
        }
        for link in sampler.links() {
            let program = session.program_at(link.program()).map_or("?", |p| p.name());
            report.sampled(program, pid, sampler.event())?;
        }
        report.out.flush()?;
        Ok(())
    }

    /// Readable when there are samples, or when a process without probes has ended.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sampler.iter().map(Sampler::fd).chain(self.alone.values().map(AsFd::as_fd))
    }

    /// Processes without probes that have ended.
    pub fn ended(&mut self) -> Vec<u32> {
        let mut polled: Vec<_> = self.alone.values().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if polled.is_empty() || poll(&mut polled, Some(&now)).is_err() {
            return Vec::new();
        }
        let ended: Vec<u32> =
            self.alone.keys().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty()).map(|(pid, _)| *pid).collect();
        drop(polled);
        ended.iter().for_each(|pid| drop(self.alone.remove(pid)));
        ended
    }

    /// Runs the programs on the samples that are there; returns how many there were.
    pub fn poll(&mut self, session: &Session, mut each: impl FnMut(Event<'_>)) -> usize {
        let Some(sampler) = &mut self.sampler else { return 0 };
        sampler.poll(session, |link, record| each(Event::Sample { link: Some(link), record }))
    }

    /// Samples that found no room.
    pub fn lost(&self) -> u64 {
        self.sampler.as_ref().map_or(0, Sampler::lost)
    }

    /// Takes no more samples.
    pub fn stop(&mut self) {
        if let Some(sampler) = &mut self.sampler {
            sampler.stop();
        }
    }

    /// Prints the folded stacks.
    pub fn print(&mut self, session: &Session, report: &mut Report<'_>) -> Result<(), OutError> {
        let Some(folded) = &mut self.folded else { return Ok(()) };
        let sampler = self.sampler.as_ref();
        let lines =
            folded.lines(session, report.btf(), report.only, |pid| sampler.and_then(|sampler| sampler.code(pid)));
        for (line, count) in lines {
            report.out.line(format_args!("{line} {count}"))?;
        }
        report.out.flush()
    }
}
