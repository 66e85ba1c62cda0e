//! One program judged, and what there is to say of it.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use skep::ebpf::program::{LineInfo, Program};
use skep::elf::ProgramInfo;
use skep::verifier::{Explanation, Options, Outcome, Rejection, Stats, explain as why_rejected, verify};

use crate::args::Check;
use crate::load::{Input, Linker, tagged_flags};
use crate::{Failure, explain};

/// C lines that `--stats` names.
const HOT: usize = 5;

/// A verdict as `--json` prints it.
#[derive(Serialize, Default)]
pub struct Line {
    pub object: String,
    pub program: String,
    pub section: String,
    #[serde(rename = "type")]
    pub prog_type: Option<&'static str>,
    pub verdict: &'static str,
    pub errno: Option<&'static str>,
    pub insn: Option<u32>,
    pub source: Option<String>,
    pub reason: Option<&'static str>,
    pub message: Option<String>,
    pub insns_processed: Option<u64>,
    pub verification_ns: Option<u64>,
    pub rule: Option<&'static str>,
    pub value: Option<String>,
    pub history: Option<Vec<Past>>,
    pub suggestion: Option<String>,
    #[serde(flatten)]
    pub work: Option<Work>,
}

/// A step in the history of a value.
#[derive(Serialize)]
pub struct Past {
    pub insn: u32,
    pub source: Option<String>,
    /// The C line; the instruction where there is none.
    pub text: String,
    pub what: String,
    #[serde(skip)]
    pub place: Option<LineInfo>,
}

/// What `--stats` adds.
#[derive(Serialize)]
pub struct Work {
    pub states: u32,
    pub peak_states: u32,
    pub peak_pending: u32,
    /// Most first.
    pub hot_lines: Vec<Hot>,
}

/// A C line and the instructions processed on it.
#[derive(Serialize)]
pub struct Hot {
    pub source: String,
    pub text: String,
    pub insns: u64,
}

/// What there is to say of a program.
#[derive(Default)]
pub struct Answer {
    pub line: Line,
    /// For people; left out where it is not asked for.
    pub text: String,
    pub log: Option<String>,
    /// Where it was rejected.
    pub place: Option<LineInfo>,
}

/// How to judge.
pub struct Judge<'a> {
    pub args: &'a Check,
    pub options: Options,
    pub linker: Linker,
}

impl Judge<'_> {
    /// Judges one program of an object.
    pub fn program(&self, input: &Input, info: &ProgramInfo) -> Result<Answer, Failure> {
        let line = Line {
            object: input.path.clone(),
            program: info.name.clone(),
            section: info.section.clone(),
            prog_type: info.prog_type.map(|t| t.name()),
            ..Line::default()
        };
        let mut answer = Answer { line, ..Answer::default() };
        let program = match &info.unsupported {
            Some(why) => Err((true, why.clone())),
            None => self.linker.link(&input.object, &info.name)?.map_err(|e| (e.is_unsupported(), e.to_string())),
        };
        match program {
            Ok(program) => self.verify(input, program, &mut answer)?,
            Err((unsupported, message)) => {
                let line = &mut answer.line;
                line.verdict = if unsupported { "unsupported" } else { "rejected" };
                line.reason = Some("link");
                line.errno = (!unsupported).then_some("EINVAL");
                answer.text = self.text(|| explain::plain(&line.title(), &message));
                line.message = Some(message);
            }
        }
        Ok(answer)
    }

    /// Text is made only where it is printed.
    fn text(&self, text: impl FnOnce() -> String) -> String {
        if self.args.json || self.args.sarif { String::new() } else { text() }
    }

    fn verify(&self, input: &Input, mut program: Program, answer: &mut Answer) -> Result<(), Failure> {
        program.flags |= match self.args.prog_flags {
            Some(flags) => flags,
            None => input.object.btf().map_or(0, |btf| tagged_flags(btf, &program.name)),
        };
        // A rejection is shown with the program's lines and instructions, which `verify` takes.
        let shown = program.clone();
        let options = Options { btf: self.linker.options()?.btf.clone(), log: self.args.log, ..self.options.clone() };
        let start = Instant::now();
        let verdict = verify(program, &options);
        let ns = start.elapsed().as_nanos() as u64;
        let line = &mut answer.line;
        line.verification_ns = Some(ns);
        let (stats, visits) = match &verdict {
            Ok(verified) => (*verified.stats(), verified.visits()),
            Err(rejection) => (rejection.stats, rejection.visits.as_slice()),
        };
        line.insns_processed = Some(stats.insns_processed);
        if self.args.stats {
            line.work = Some(work(&shown, &stats, visits));
        }
        match &verdict {
            Ok(_) => {
                line.verdict = "accepted";
                answer.text = self.text(|| {
                    let ty = shown.prog_type;
                    let (object, name, insns) = (&line.object, &line.program, stats.insns_processed);
                    format!("accepted: {object} {name} ({ty}), {insns} instructions in {}", time(ns))
                });
            }
            Err(rejection) => {
                line.reject(rejection);
                let why = match rejection.outcome {
                    Outcome::Rejected => why_rejected(&shown, &options),
                    Outcome::Unsupported => None,
                };
                if let Some(why) = &why {
                    line.explain(&shown, &options, why);
                }
                answer.text =
                    self.text(|| explain::rejection(&line.title(), &shown, &options, rejection, why.as_ref()));
                answer.place = rejection.line.clone();
            }
        }
        if let Some(work) = &line.work {
            answer.text += &self.text(|| work.text(stats.insns_processed, ns));
        }
        if self.args.log {
            answer.log = Some(explain::log(verdict.as_ref().map_err(|r| &**r), &options));
        }
        Ok(())
    }
}

impl Line {
    fn title(&self) -> String {
        let ty = self.prog_type.unwrap_or("unknown type");
        format!("{} {} ({ty}) is {}", self.object, self.program, self.verdict)
    }

    /// Fills in what a rejection says.
    fn reject(&mut self, rejection: &Rejection) {
        match rejection.outcome {
            Outcome::Rejected => {
                self.verdict = "rejected";
                self.errno = Some(rejection.errno.name());
            }
            Outcome::Unsupported => self.verdict = "unsupported",
        }
        self.insn = rejection.insn;
        self.source = rejection.line.as_ref().map(source);
        self.reason = Some(rejection.reason);
        self.message = Some(rejection.message.clone());
    }

    /// Fills in why.
    fn explain(&mut self, program: &Program, options: &Options, why: &Explanation) {
        let values: Vec<_> = why.values.iter().map(|v| format!("{} holds {}", v.place, v.holds)).collect();
        let history = why.history.iter().map(|step| {
            let place = program.line_of(step.insn as usize);
            let text = place.map(|l| l.text.trim()).filter(|t| !t.is_empty());
            Past {
                insn: step.insn,
                source: place.map(source),
                text: text.map_or_else(|| explain::instruction(program, options, step.insn), str::to_owned),
                what: explain::what(step),
                place: place.cloned(),
            }
        });
        self.rule = Some(why.rule);
        self.history = Some(history.collect());
        self.value = Some(values.join("; ")).filter(|v| !v.is_empty());
        self.suggestion = Some(why.suggestion.clone()).filter(|s| !s.is_empty());
    }
}

fn source(line: &LineInfo) -> String {
    format!("{}:{}", line.file, line.line)
}

fn work(program: &Program, stats: &Stats, visits: &[u32]) -> Work {
    let mut lines = BTreeMap::<_, (&LineInfo, u64)>::new();
    for (insn, visits) in visits.iter().enumerate().filter(|(_, v)| **v > 0) {
        if let Some(line) = program.line_of(insn) {
            lines.entry((&*line.file, line.line)).or_insert((line, 0)).1 += u64::from(*visits);
        }
    }
    let mut lines: Vec<_> = lines.into_values().collect();
    // Stable: by file and line where as many.
    lines.sort_by_key(|(_, insns)| std::cmp::Reverse(*insns));
    let hot = lines.into_iter().take(HOT);
    let hot_lines = hot.map(|(l, insns)| Hot { source: source(l), text: l.text.trim().to_owned(), insns }).collect();
    Work { states: stats.states, peak_states: stats.peak_states, peak_pending: stats.peak_pending, hot_lines }
}

impl Work {
    /// For people, below the verdict.
    fn text(&self, insns: u64, ns: u64) -> String {
        let Work { states, peak_states, peak_pending, hot_lines } = self;
        let mut text = format!(
            "\n  {insns} instructions in {}, {states} states saved ({peak_states} at most at once), \
             {peak_pending} branches open at most",
            time(ns)
        );
        for Hot { source, text: line, insns: on } in hot_lines {
            let share = (on * 100).checked_div(insns).unwrap_or(0);
            text += &format!("\n  {on:>8} {share:>3} %  {source}  {line}");
        }
        text
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
