//! The `skep` command.

mod args;
mod btf;
mod check;
mod dump;
mod explain;
mod histogram;
mod json;
mod judge;
mod load;
mod maps;
mod marked;
mod out;
mod parallel;
mod places;
mod progress;
mod records;
mod road;
mod run;
mod sarif;
mod trace;
mod types;
mod value;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, NotYet, Prog};
use out::OutError;

/// Exit statuses, as scripts know them.
pub mod status {
    /// All well.
    pub const OK: u8 = 0;
    /// The answer is no.
    pub const NO: u8 = 1;
    /// Wrong usage or unreadable input.
    pub const USAGE: u8 = 2;
    /// Something could not be judged.
    pub const UNSUPPORTED: u8 = 3;
}

/// What ends a command early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong usage, unreadable input, or a target that cannot be traced.
    #[error("{0}")]
    Input(String),
    /// It cannot be judged.
    #[error("{0}")]
    Unsupported(String),
    /// A program was refused; an explanation that stands alone.
    #[error("{explanation}")]
    Refused {
        /// Exit status.
        status: u8,
        /// For people.
        explanation: String,
    },
    /// Standard output failed.
    #[error(transparent)]
    Out(#[from] OutError),
}

impl Failure {
    /// Wraps an error that means status 2.
    pub fn input(error: impl std::fmt::Display) -> Failure {
        Failure::Input(error.to_string())
    }
}

/// Prints a line to standard error; there is nobody to tell if that fails.
pub fn say(line: impl std::fmt::Display) {
    eprint(&format!("skep: {line}"));
}

fn eprint(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn main() -> ExitCode {
    // The injector is this program, started anew.
    skep::subsystem::attach::main_if_requested();
    let done = match Cli::parse().command {
        Command::Check(args) => check::main(&args),
        Command::Run(args) => run::main(&args),
        Command::Trace(args) => trace::main(&args),
        Command::Exec(args) => not_yet("exec", &args),
        Command::Prog(Prog::Dump(args)) => dump::main(&args),
        Command::Prog(Prog::Show(args)) => not_yet("prog show", &args),
        Command::Map(args) => not_yet("map", &args),
        Command::Link(args) => not_yet("link", &args),
        Command::Btf(args) => btf::main(&args),
        Command::Perf(args) => not_yet("perf", &args),
    };
    let status = match done {
        Ok(status) => status,
        // Whoever read our output has seen enough.
        Err(Failure::Out(OutError::Closed)) => status::OK,
        Err(Failure::Refused { status, explanation }) => {
            eprint(&explanation);
            status
        }
        Err(failure) => {
            say(format_args!("error: {failure}"));
            match failure {
                Failure::Unsupported(_) => status::UNSUPPORTED,
                _ => status::USAGE,
            }
        }
    };
    ExitCode::from(status)
}

fn not_yet(command: &str, _: &NotYet) -> Result<u8, Failure> {
    Err(Failure::Input(format!("`skep {command}` is not built in yet")))
}
