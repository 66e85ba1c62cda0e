//! A rejection as `skep check` prints it where there is no terminal.

use annotate_snippets::Renderer;
use skep_ebpf::program::Program;
use skep_verifier::{Options, Outcome, Rejection, explain};

/// What `skep check` has to say, by its own renderer.
pub fn rejection(program: &Program, options: &Options, rejection: &Rejection) -> String {
    let verdict = match rejection.outcome {
        Outcome::Rejected => "rejected",
        Outcome::Unsupported => "unsupported",
    };
    let title = format!("{} ({}) is {verdict}", program.name, program.prog_type);
    let why = explain(program, options);
    let text = crate::explain::rendered(&Renderer::plain(), &title, program, options, rejection, why.as_ref());
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n"
}
