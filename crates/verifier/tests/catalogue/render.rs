//! A rejection as plain text: what `skep check` has to say, without its frame.

use std::fmt::Write;

use skep_ebpf::disasm::{Names, disasm};
use skep_ebpf::program::Program;
use skep_verifier::{Options, Outcome, Rejection, explain};

struct Named<'a>(&'a Program);

impl Names for Named<'_> {
    fn map(&self, index: i32) -> Option<&str> {
        self.0.maps.get(usize::try_from(index).ok()?).map(|m| m.name.as_str())
    }
}

/// The message, the line, the instruction, the values and their history, and the suggestion.
pub fn rejection(program: &Program, options: &Options, rejection: &Rejection) -> String {
    let mut out = String::new();
    let verdict = match rejection.outcome {
        Outcome::Rejected => "rejected",
        Outcome::Unsupported => "unsupported",
    };
    let _ = writeln!(out, "{verdict}[{}]: {}", rejection.reason, rejection.message);
    if let Some(line) = &rejection.line {
        let _ = writeln!(out, "  at {}:{}: {}", line.file.trim_start_matches("./"), line.line, line.text.trim());
    }
    if let Some(insn) = rejection.insn {
        let rest = program.insns.get(insn as usize..).unwrap_or_default();
        match disasm(rest, &Named(program)) {
            Ok(text) => _ = writeln!(out, "  instruction {insn}: {text}"),
            Err(error) => _ = writeln!(out, "  instruction {insn}: invalid: {error}"),
        }
    }
    let Some(explanation) = explain(program, options) else { return out };
    for value in &explanation.values {
        let _ = writeln!(out, "  {} holds {}", value.place, value.holds);
    }
    if !explanation.history.is_empty() {
        out += "  how it came about:\n";
    }
    for step in &explanation.history {
        let line = program.line_of(step.insn as usize).filter(|l| !l.text.is_empty());
        let place = line.map_or_else(|| format!("instruction {}", step.insn), |l| format!("line {}", l.line));
        let _ = write!(out, "    {place}: {} {}: {}", step.deed.name(), step.value.place, step.value.holds);
        let _ = writeln!(out, "{}", line.map_or(String::new(), |l| format!("  | {}", l.text.trim())));
    }
    let _ = writeln!(out, "  help: {}", explanation.suggestion);
    if rejection.outcome == Outcome::Rejected {
        let _ = writeln!(out, "  the kernel answers {} ({})", rejection.errno.name(), rejection.errno.text());
    }
    out
}
