//! `skep check`: every program of an object, judged alone.

use std::time::Instant;

use serde::Serialize;
use skep::elf::ProgramInfo;
use skep::verifier::{KernelProfile, Options, Outcome, Rejection, verify};

use crate::args::Check;
use crate::load::{Input, Linker, object, tagged_flags};
use crate::out::{Out, OutError};
use crate::{Failure, explain, say, status};

/// A verdict as `--json` prints it.
#[derive(Serialize, Default)]
struct Line<'a> {
    object: &'a str,
    program: &'a str,
    section: &'a str,
    #[serde(rename = "type")]
    prog_type: Option<&'static str>,
    verdict: &'static str,
    errno: Option<&'static str>,
    insn: Option<u32>,
    source: Option<String>,
    reason: Option<&'a str>,
    message: Option<String>,
    insns_processed: Option<u64>,
    verification_ns: Option<u64>,
}

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

pub fn main(args: &Check) -> Result<u8, Failure> {
    let options = options(args)?;
    let linker = Linker::new(&args.load);
    if args.load.btf.is_some() {
        linker.options()?;
    }
    let mut out = Out::stdout();
    let mut tally = Tally::default();
    let mut found = false;
    for path in &args.objects {
        let input = match object(path) {
            Ok(input) => input,
            Err(failure) => {
                say(format_args!("error: {failure}"));
                tally.unreadable += 1;
                continue;
            }
        };
        for info in input.object.programs() {
            if args.prog.as_ref().is_some_and(|name| *name != info.name) {
                continue;
            }
            found = true;
            judge(args, &options, &linker, &input, info, &mut out, &mut tally)?;
        }
    }
    if let (Some(name), false) = (&args.prog, found || tally.unreadable > 0) {
        return Err(Failure::Input(format!("no object has a program {name:?}")));
    }
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
    Ok(options)
}

fn judge(
    args: &Check,
    options: &Options,
    linker: &Linker,
    input: &Input,
    info: &ProgramInfo,
    out: &mut Out,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let mut line = Line {
        object: &input.path,
        program: &info.name,
        section: &info.section,
        prog_type: info.prog_type.map(|t| t.name()),
        ..Line::default()
    };
    let program = match &info.unsupported {
        Some(why) => Err((true, why.clone())),
        None => linker.link(&input.object, &info.name)?.map_err(|e| (e.is_unsupported(), e.to_string())),
    };
    let mut program = match program {
        Ok(program) => program,
        Err((unsupported, message)) => {
            line.verdict = if unsupported { "unsupported" } else { "rejected" };
            line.reason = Some("link");
            if !unsupported {
                line.errno = Some("EINVAL");
            }
            line.message = Some(message.clone());
            *(if unsupported { &mut tally.unsupported } else { &mut tally.rejected }) += 1;
            let text = || explain::plain(&line.verdict_title(), &message);
            return quiet(tally, emit(args, out, &line, text));
        }
    };
    program.flags |= match args.prog_flags {
        Some(flags) => flags,
        None => input.object.btf().map_or(0, |btf| tagged_flags(btf, &info.name)),
    };
    // A rejection is shown with the program's lines and instructions, which `verify` takes.
    let shown = program.clone();
    let start = Instant::now();
    let options = Options { btf: linker.options()?.btf.clone(), ..options.clone() };
    let verdict = verify(program, &options);
    line.verification_ns = Some(start.elapsed().as_nanos() as u64);
    let done = match &verdict {
        Ok(verified) => {
            tally.accepted += 1;
            line.verdict = "accepted";
            line.insns_processed = Some(verified.stats().insns_processed);
            let text = || {
                let (insns, ns) = (verified.stats().insns_processed, line.verification_ns.unwrap_or(0));
                let ty = shown.prog_type;
                format!("accepted: {} {} ({ty}), {insns} instructions in {}", line.object, line.program, time(ns))
            };
            emit(args, out, &line, text)
        }
        Err(rejection) => {
            describe(&mut line, rejection, tally);
            emit(args, out, &line, || explain::rejection(&line.verdict_title(), &shown, rejection))
        }
    };
    quiet(tally, done)?;
    if args.log && !tally.mute {
        let log = explain::log(&shown, verdict.as_ref().map_err(|r| &**r));
        // With --json the answers are on standard output alone.
        if args.json {
            say(format_args!("log of {}:\n{log}", info.name));
        } else {
            quiet(tally, out.line(log))?;
        }
    }
    quiet(tally, out.flush())
}

/// Fills in what a rejection says.
fn describe<'a>(line: &mut Line<'a>, rejection: &'a Rejection, tally: &mut Tally) {
    match rejection.outcome {
        Outcome::Rejected => {
            tally.rejected += 1;
            line.verdict = "rejected";
            line.errno = Some(rejection.errno.name());
        }
        Outcome::Unsupported => {
            tally.unsupported += 1;
            line.verdict = "unsupported";
        }
    }
    line.insn = rejection.insn;
    line.source = rejection.line.as_ref().map(|l| format!("{}:{}", l.file, l.line));
    line.reason = Some(rejection.reason);
    line.message = Some(rejection.message.clone());
    line.insns_processed = Some(rejection.insns_processed);
}

impl Line<'_> {
    fn verdict_title(&self) -> String {
        let ty = self.prog_type.unwrap_or("unknown type");
        format!("{} {} ({ty}) is {}", self.object, self.program, self.verdict)
    }
}

fn emit(args: &Check, out: &mut Out, line: &Line<'_>, text: impl FnOnce() -> String) -> Result<(), OutError> {
    if args.json {
        out.json(line)?
    } else {
        out.line(text())?
    }
    out.flush()
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

/// A duration for people.
pub fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{} µs", ns / 1_000),
        10_000_000..10_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}
