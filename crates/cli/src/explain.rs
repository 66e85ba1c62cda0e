//! Rejections for people: the C line, the instruction, the value and where it came from, the rule, what would help.

use std::io::IsTerminal;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use skep::ebpf::btf::Btf;
use skep::ebpf::disasm::{Names, disasm};
use skep::ebpf::program::{LineInfo, Program};
use skep::verifier::{Deed, Explanation, Options, Outcome, Rejection, Step, Verified};

use crate::marked::expression;

fn renderer() -> Renderer {
    let terminals = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    let colour = terminals && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if colour { Renderer::styled() } else { Renderer::plain() }
}

/// A message that belongs to no line.
pub fn plain(title: &str, message: &str) -> String {
    let group = Level::ERROR.primary_title(title).element(Level::ERROR.message(message));
    renderer().render(&[group])
}

/// A rejection with what is known of its place and of its cause.
pub fn rejection(
    title: &str,
    program: &Program,
    options: &Options,
    rejection: &Rejection,
    why: Option<&Explanation>,
) -> String {
    rendered(&renderer(), title, program, options, rejection, why)
}

/// The same, by this renderer.
pub fn rendered(
    renderer: &Renderer,
    title: &str,
    program: &Program,
    options: &Options,
    rejection: &Rejection,
    why: Option<&Explanation>,
) -> String {
    let level = match rejection.outcome {
        Outcome::Rejected => Level::ERROR,
        Outcome::Unsupported => Level::WARNING,
    };
    let title = level.clone().primary_title(title).id(rejection.reason);
    let mut group: Group<'_> = match &rejection.line {
        Some(line) if !line.text.trim().is_empty() => {
            let annotation = AnnotationKind::Primary.span(expression(&line.text, line.column));
            title.element(snippet(line).annotation(annotation.label(rejection.message.as_str())))
        }
        Some(line) => {
            let place = format!("{}:{}", line.file, line.line);
            title.element(level.message(format!("{place}: {}", rejection.message)))
        }
        None => title.element(level.message(rejection.message.as_str())),
    };
    if let Some(insn) = rejection.insn {
        group =
            group.element(Level::NOTE.message(format!("instruction {insn}: {}", instruction(program, options, insn))));
    }
    for value in why.map(|w| w.values.as_slice()).unwrap_or_default() {
        group = group.element(Level::NOTE.message(format!("{} holds {}", value.place, value.holds)));
    }
    if let Some(why) = why {
        group = group.element(Level::NOTE.message(format!("the rule: {}", why.rule)));
    }
    if rejection.outcome == Outcome::Rejected {
        let errno = rejection.errno;
        group = group.element(Level::NOTE.message(format!("the kernel answers {} ({})", errno.name(), errno.text())));
    }
    let mut groups = vec![group];
    if let Some(why) = why {
        groups.extend(history(program, options, &why.history));
        if !why.suggestion.is_empty() {
            groups.push(Group::with_title(Level::HELP.secondary_title(why.suggestion.as_str())));
        }
    }
    renderer.render(&groups)
}

/// A C line by itself.
fn snippet(line: &LineInfo) -> Snippet<'_, annotate_snippets::Annotation<'_>> {
    let path: &str = &line.file;
    Snippet::source(line.text.trim_end()).line_start(line.line as usize).path(path)
}

/// Where the values came from, oldest first: each C line once in a row, with what its instructions did.
fn history<'a>(program: &'a Program, options: &Options, steps: &'a [Step]) -> Option<Group<'a>> {
    let place = |step: &Step| program.line_of(step.insn as usize).filter(|l| !l.text.trim().is_empty());
    let same = |a: &Step, b: &Step| match (place(a), place(b)) {
        (Some(a), Some(b)) => (&a.file, a.line) == (&b.file, b.line),
        _ => false,
    };
    if steps.is_empty() {
        return None;
    }
    let mut group = Group::with_title(Level::NOTE.secondary_title("where it came from, oldest first"));
    for run in steps.chunk_by(same) {
        let label = |step: &Step| {
            let Step { insn, .. } = step;
            format!("{insn}: {}: {}", instruction(program, options, *insn), what(step))
        };
        match run.first().and_then(place) {
            Some(line) => {
                let mut shown = snippet(line);
                for step in run {
                    let column = place(step).map_or(0, |l| l.column);
                    let span = expression(&line.text, column);
                    shown = shown.annotation(AnnotationKind::Context.span(span).label(label(step)));
                }
                group = group.element(shown);
            }
            None => group = run.iter().fold(group, |g, step| g.element(Level::NOTE.message(label(step)))),
        }
    }
    Some(group)
}

/// What a step did, in words.
pub fn what(step: &Step) -> String {
    let Step { deed, value, .. } = step;
    match deed {
        Deed::Went => value.holds.clone(),
        _ => format!("{} {}, {}", deed.name(), value.place, value.holds),
    }
}

/// An instruction in the kernel's notation.
pub fn instruction(program: &Program, options: &Options, insn: u32) -> String {
    let rest = program.insns.get(insn as usize..).unwrap_or_default();
    match disasm(rest, &Named { program, kernel: options.btf.as_deref() }) {
        Ok(text) => text.to_string(),
        Err(error) => format!("invalid: {error}"),
    }
}

/// The trace of states as the kernel prints it, what was found, and what it took.
pub fn log(verdict: Result<&Verified, &Rejection>, options: &Options) -> String {
    let (mut log, stats) = match verdict {
        Ok(verified) => (verified.log().to_owned(), verified.stats()),
        Err(rejection) => (rejection.log.clone(), &rejection.stats),
    };
    if let Err(rejection) = verdict {
        log += &format!("{} [{}]\n", rejection.message, rejection.reason);
    }
    // The last number is 0 in the kernel as well, since liveness is not marked in states.
    log + &format!(
        "processed {} insns (limit {}) max_states_per_insn {} total_states {} peak_states {} mark_read 0",
        stats.insns_processed, options.profile.max_processed, stats.states_per_insn, stats.states, stats.peak_states
    )
}

/// The names of a program's maps, and of the kernel's functions.
pub struct Named<'a> {
    program: &'a Program,
    kernel: Option<&'a Btf>,
}

impl<'a> Named<'a> {
    /// Those of a verified program.
    pub fn of(verified: &'a Verified) -> Named<'a> {
        Named { program: verified.program(), kernel: verified.kernel_types() }
    }
}

impl Names for Named<'_> {
    fn map(&self, index: i32) -> Option<&str> {
        self.program.maps.get(usize::try_from(index).ok()?).map(|m| m.name.as_str())
    }

    fn kfunc(&self, id: i32, btf: i16) -> Option<&str> {
        let name = self.kernel.filter(|_| btf == 0)?.name(u32::try_from(id).ok()?);
        Some(name).filter(|n| !n.is_empty())
    }
}
