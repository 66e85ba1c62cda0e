//! Why a program was rejected: the rule, the values that broke it and where they came from, and what would help.
//!
//! [`explain`] verifies the program again with a [`Recorder`] watching, walks the failing path back from its end, and
//! keeps the steps that fed the values at fault ([`slice`]). What satisfies the rule is worked out of these values and of
//! the C lines that the object brings along ([`fix`]), or of the history ([`lost`]).

mod c;
mod fix;
mod lost;
mod slice;
mod words;

pub(crate) use words::MapNames;

use skep_ebpf::program::Program;

use crate::fail::Failure;
use crate::reason::Reason;
use crate::recorder::{PathRecorder, Recorder, ValueRecorder, Walk};
use crate::{Options, Progress, check};

/// A rejection explained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The rule that was broken.
    pub rule: &'static str,
    /// The values at fault, as they were before the instruction.
    pub values: Vec<Value>,
    /// The steps that fed them, oldest first.
    pub history: Vec<Step>,
    /// The smallest change that would satisfy the rule.
    pub suggestion: String,
    /// A line of C to add, if that is all it takes.
    pub addition: Option<Addition>,
}

/// What a register or a stack slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// `r1`, or `fp-8` for the stack slot at that offset.
    pub place: String,
    /// What is known of it.
    pub holds: String,
}

/// What a step did to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Made it.
    Made,
    /// Computed it from others.
    Computed,
    /// Learnt more of it, by a comparison.
    Narrowed,
    /// Saved it to the stack.
    Saved,
    /// Read it back from the stack.
    Restored,
    /// Passed it to a function.
    Passed,
    /// Returned it from a function.
    Returned,
    /// Took away what was known of it.
    Forgot,
    /// Acquired the reference.
    Acquired,
    /// Went this way.
    Went,
}

impl Deed {
    /// The word for it in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Deed::Made => "made",
            Deed::Computed => "computed",
            Deed::Narrowed => "narrowed",
            Deed::Saved => "saved",
            Deed::Restored => "restored",
            Deed::Passed => "passed",
            Deed::Returned => "returned",
            Deed::Forgot => "forgot",
            Deed::Acquired => "acquired",
            Deed::Went => "went",
        }
    }
}

/// One step in the history of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The instruction.
    pub insn: u32,
    /// What it did.
    pub deed: Deed,
    /// What the value was afterwards.
    pub value: Value,
}

/// A line of C that would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// Source file.
    pub file: String,
    /// The line in front of which it belongs.
    pub line: u32,
    /// What to add.
    pub code: String,
}

/// Explains why [`verify`](crate::verify) rejects this program with these options; `None` if it does not.
pub fn explain(program: &Program, options: &Options) -> Option<Explanation> {
    let options = Options { log: false, ..options.clone() };
    let (failure, progress) = watch(program, &options, Recorder::Path(PathRecorder::default()))?;
    let mut case =
        Case { program, options: &options, failure, insn: progress.insn, visits: progress.visits, walk: None };
    if let Some(insn) = case.failure.insn {
        case.insn = insn;
    }
    if let Some(Recorder::Path(paths)) = progress.recorder.map(|r| *r) {
        let (_, progress) = watch(program, &options, Recorder::Values(ValueRecorder::new(paths.path())))?;
        if let Some(Recorder::Values(values)) = progress.recorder.map(|r| *r) {
            let walk = values.finish();
            case.walk = Some(walk).filter(|w| !case.failure.whole_program && w.insn() == Some(case.insn));
        }
    }
    Some(case.explain())
}

fn watch(program: &Program, options: &Options, recorder: Recorder) -> Option<(Box<Failure>, Progress)> {
    let mut progress = Progress { recorder: Some(Box::new(recorder)), ..Progress::default() };
    let failure = check(program, options, &mut progress).err()?;
    Some((failure, progress))
}

/// A rejection with all that is known of it.
struct Case<'p> {
    program: &'p Program,
    options: &'p Options,
    failure: Box<Failure>,
    /// The instruction to blame.
    insn: usize,
    /// How often each instruction was looked at.
    visits: Vec<u32>,
    /// The failing path, where there is one.
    walk: Option<Walk>,
}

impl Case<'_> {
    fn explain(mut self) -> Explanation {
        let reason = self.failure.reason;
        let subjects = slice::subjects(&self);
        let fix = fix::suggest(&self, &subjects);
        let frames = self.walk.as_ref().map(|w| w.frames.as_slice()).unwrap_or_default();
        let values = subjects.iter().filter_map(|p| words::value(self.program, frames, *p)).collect();
        let history = match self.walk.take() {
            Some(walk) if reason != Reason::TooComplex => slice::history(&self, walk, &subjects),
            _ => Vec::new(),
        };
        let fix = lost::suggest(&self, &history).unwrap_or(fix);
        Explanation { rule: reason.rule(), values, history, suggestion: fix.text, addition: fix.addition }
    }
}
