//! From an object to a session, with messages that say at which step a program was refused.

use skep::ebpf::program::Program;
use skep::elf::Object;
use skep::subsystem::session::{self, Session, SessionError};
use skep::verifier::{self, Options, Outcome, Verified, verify};

use crate::load::{Linker, tagged_flags};
use crate::{Failure, explain, status};

/// Links and verifies one program.
pub fn verified(object: &Object, linker: &Linker, name: &str) -> Result<Verified, Failure> {
    let mut program = linker.link(object, name)?.map_err(|e| match e.is_unsupported() {
        true => Failure::Unsupported(e.to_string()),
        false => Failure::input(e),
    })?;
    program.flags |= object.btf().map_or(0, |btf| tagged_flags(btf, name));
    judged(program, &Options { btf: linker.options()?.btf.clone(), ..Options::default() })
}

/// Verifies a linked program.
pub fn judged(program: Program, options: &Options) -> Result<Verified, Failure> {
    let shown = program.clone();
    verify(program, options).map_err(|rejection| {
        let (verdict, status) = match rejection.outcome {
            Outcome::Rejected => ("rejected", status::NO),
            Outcome::Unsupported => ("unsupported", status::UNSUPPORTED),
        };
        let name = &shown.name;
        let why = verifier::explain(&shown, options).filter(|_| rejection.outcome == Outcome::Rejected);
        let title = format!("program {name} is {verdict}");
        Failure::Refused { status, explanation: explain::rejection(&title, &shown, options, &rejection, why.as_ref()) }
    })
}

/// Makes the session of some programs.
pub fn session(programs: Vec<Verified>, options: &session::Options) -> Result<Session, Failure> {
    Session::new(programs, options).map_err(|e| match e {
        SessionError::Compile(e) => Failure::Unsupported(e.to_string()),
        other => Failure::input(other),
    })
}
