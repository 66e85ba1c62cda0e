//! `skep check`: every program of some objects, judged alone.

use std::sync::Arc;

use skep::verifier::{KernelProfile, Options, Privilege};

use crate::args::Check;
use crate::judge::{Answer, Judge};
use crate::load::{Input, Linker, object};
use crate::out::{Out, OutError};
use crate::parallel::{News, in_order};
use crate::progress::Progress;
use crate::sarif::Report;
use crate::{Failure, say, status};

/// What was found so far.
#[derive(Default)]
struct Tally {
    accepted: usize,
    rejected: usize,
    unsupported: usize,
    unreadable: usize,
    /// Output is closed: judge on, for the exit status.
    mute: bool,
}

/// A piece of work.
enum Job {
    Unreadable(Failure),
    /// A program of an object, by its place there.
    Program(Arc<Input>, usize),
}

pub fn main(args: &Check) -> Result<u8, Failure> {
    let options = options(args)?;
    let linker = Linker::new(&args.load);
    if !args.load.btf.is_empty() {
        linker.options()?;
    }
    let judge = Judge { args, options, linker };
    let mut printer = Printer { args, out: Out::stdout(), report: args.sarif.then(Report::default) };
    let mut tally = Tally::default();
    let mut found = false;
    let mut done = 0;
    let mut progress = Progress::new();
    let jobs = args.objects.iter().enumerate().flat_map(|(n, path)| Programs::new(path, args).map(move |job| (n, job)));
    let work = |(n, job)| match job {
        Job::Unreadable(failure) => (n, Err(failure), false),
        Job::Program(input, index) => match input.object.programs().get(index) {
            Some(info) => (n, judge.program(&input, info), true),
            None => (n, Err(Failure::Input(format!("{}: no program {index}", input.path))), true),
        },
    };
    in_order(jobs, work, |news| {
        match news {
            News::Tick => {
                let Tally { accepted, rejected, .. } = tally;
                progress.draw(done, args.objects.len(), &format!("{accepted} accepted, {rejected} rejected"));
                return Ok(());
            }
            News::Answer((n, Ok(answer), _)) => {
                done = n;
                found = true;
                progress.clear();
                tally.add(&answer);
                quiet(&mut tally, printer.print(answer))?;
            }
            News::Answer((_, Err(failure), true)) => return Err(failure),
            News::Answer((n, Err(failure), false)) => {
                done = n;
                progress.clear();
                say(format_args!("error: {failure}"));
                tally.unreadable += 1;
                printer.unreadable(&failure);
            }
        }
        Ok(())
    })?;
    progress.clear();
    if let (Some(name), false) = (&args.prog, found || tally.unreadable > 0) {
        return Err(Failure::Input(format!("no object has a program {name:?}")));
    }
    quiet(&mut tally, printer.end())?;
    if !args.json && !tally.mute {
        say(format_args!(
            "{} accepted, {} rejected, {} unsupported{}",
            tally.accepted,
            tally.rejected,
            tally.unsupported,
            if tally.unreadable > 0 { format!(", {} unreadable", tally.unreadable) } else { String::new() }
        ));
    }
    Ok(match tally {
        Tally { unreadable: 1.., .. } => status::USAGE,
        Tally { rejected: 1.., .. } => status::NO,
        Tally { unsupported: 1.., .. } => status::UNSUPPORTED,
        _ => status::OK,
    })
}

fn options(args: &Check) -> Result<Options, Failure> {
    let mut options = Options::default();
    if let Some(name) = &args.kernel {
        options.profile = KernelProfile::by_name(name).ok_or_else(|| {
            let known: Vec<_> = KernelProfile::ALL.iter().map(|p| p.name).collect();
            Failure::Input(format!("--kernel {name}: no such profile (known: {})", known.join(", ")))
        })?;
    }
    if args.unprivileged {
        options.privilege = Privilege::None;
    }
    Ok(options)
}

/// The programs of an object file that are asked for.
enum Programs {
    Unreadable(Option<Failure>),
    Of(Arc<Input>, std::vec::IntoIter<usize>),
}

impl Programs {
    fn new(path: &std::path::Path, args: &Check) -> Programs {
        match object(path) {
            Err(failure) => Programs::Unreadable(Some(failure)),
            Ok(input) => {
                let all = input.object.programs().iter().enumerate();
                let wanted = all.filter(|(_, p)| args.prog.as_ref().is_none_or(|name| *name == p.name));
                let indices: Vec<_> = wanted.map(|(n, _)| n).collect();
                Programs::Of(Arc::new(input), indices.into_iter())
            }
        }
    }
}

impl Iterator for Programs {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        match self {
            Programs::Unreadable(failure) => failure.take().map(Job::Unreadable),
            Programs::Of(input, indices) => indices.next().map(|n| Job::Program(Arc::clone(input), n)),
        }
    }
}

impl Tally {
    fn add(&mut self, answer: &Answer) {
        *(match answer.line.verdict {
            "accepted" => &mut self.accepted,
            "rejected" => &mut self.rejected,
            _ => &mut self.unsupported,
        }) += 1;
    }
}

/// Prints answers as the command line asks for.
struct Printer<'a> {
    args: &'a Check,
    out: Out,
    report: Option<Report>,
}

impl Printer<'_> {
    fn print(&mut self, answer: Answer) -> Result<(), OutError> {
        if let Some(log) = &answer.log {
            // With --json and --sarif the answers are on standard output alone.
            if self.args.json || self.args.sarif {
                say(format_args!("log of {}:\n{log}", answer.line.program));
            }
        }
        match &mut self.report {
            Some(report) => report.add(&answer),
            None if self.args.json => self.out.json(&answer.line)?,
            None => {
                self.out.line(&answer.text)?;
                if let Some(log) = &answer.log {
                    self.out.line(log)?;
                }
            }
        }
        self.out.flush()
    }

    fn unreadable(&mut self, failure: &Failure) {
        if let Some(report) = &mut self.report {
            report.unreadable(failure);
        }
    }

    fn end(&mut self) -> Result<(), OutError> {
        if let Some(report) = self.report.take() {
            self.out.json(&report.document())?;
        }
        self.out.flush()
    }
}

/// A closed output ends printing, not judging.
fn quiet(tally: &mut Tally, done: Result<(), OutError>) -> Result<(), Failure> {
    match done {
        Err(OutError::Closed) => {
            tally.mute = true;
            Ok(())
        }
        other => other.map_err(Failure::from),
    }
}
