//! Rejections for people: the C line, the instruction, the rule.

use std::io::IsTerminal;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use skep::ebpf::disasm::{Listing, Names, disasm};
use skep::ebpf::program::Program;
use skep::verifier::{Outcome, Rejection, Verified};

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

/// A rejection with what is known of its place.
pub fn rejection(title: &str, program: &Program, rejection: &Rejection) -> String {
    let level = match rejection.outcome {
        Outcome::Rejected => Level::ERROR,
        Outcome::Unsupported => Level::WARNING,
    };
    let title = level.clone().primary_title(title).id(rejection.reason);
    let mut group: Group<'_> = match &rejection.line {
        Some(line) if !line.text.is_empty() => {
            let text = line.text.trim_end();
            let start = text.len() - text.trim_start().len();
            let annotation = AnnotationKind::Primary.span(start..text.len()).label(rejection.message.as_str());
            let path: &str = &line.file;
            title.element(Snippet::source(text).line_start(line.line as usize).path(path).annotation(annotation))
        }
        Some(line) => {
            let place = format!("{}:{}", line.file, line.line);
            title.element(level.message(format!("{place}: {}", rejection.message)))
        }
        None => title.element(level.message(rejection.message.as_str())),
    };
    if let Some(insn) = rejection.insn {
        group = group.element(Level::NOTE.message(format!("instruction {insn}: {}", instruction(program, insn))));
    }
    if rejection.outcome == Outcome::Rejected {
        let errno = rejection.errno;
        group = group.element(Level::NOTE.message(format!("the kernel answers {} ({})", errno.name(), errno.text())));
    }
    renderer().render(&[group])
}

/// An instruction in the kernel's notation.
fn instruction(program: &Program, insn: u32) -> String {
    let rest = program.insns.get(insn as usize..).unwrap_or_default();
    match disasm(rest, &Named(program)) {
        Ok(text) => text.to_string(),
        Err(error) => format!("invalid: {error}"),
    }
}

/// A listing like the kernel's log: source lines and instructions, what was found, and what it took.
pub fn log(program: &Program, verdict: Result<&Verified, &Rejection>) -> String {
    let mut log = String::new();
    let mut lines = program.line_info.iter().peekable();
    let listing = Listing { insns: &program.insns, names: &Named(program) }.to_string();
    for text in listing.lines() {
        let at = text.split(':').next().and_then(|n| n.trim().parse::<u32>().ok());
        while let Some(line) = lines.next_if(|l| at.is_some_and(|at| l.insn <= at)) {
            log += &format!("; {} @ {}:{}\n", line.text, line.file, line.line);
        }
        log += text;
        log.push('\n');
    }
    let processed = match verdict {
        Ok(verified) => {
            let stats = verified.stats();
            format!("{} insns, {} states, {} at most at a time", stats.insns_processed, stats.states, stats.peak_states)
        }
        Err(rejection) => {
            let at = rejection.insn.map(|n| format!("{n}: ")).unwrap_or_default();
            log += &format!("{at}{} [{}]\n", rejection.message, rejection.reason);
            format!("{} insns", rejection.insns_processed)
        }
    };
    log + "processed " + &processed
}

/// The names of a program's maps.
struct Named<'a>(&'a Program);

impl Names for Named<'_> {
    fn map(&self, index: i32) -> Option<&str> {
        self.0.maps.get(usize::try_from(index).ok()?).map(|m| m.name.as_str())
    }
}
