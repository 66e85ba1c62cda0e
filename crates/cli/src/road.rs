//! From an object to compiled programs, with messages that say at which step a program was refused.

use skep::elf::Object;
use skep::jit::{self, Engine};
use skep::subsystem::loaded::Loaded;
use skep::verifier::{self, Options, Outcome, verify};

use crate::load::{Linker, tagged_flags};
use crate::{Failure, explain, status};

/// Links, verifies and compiles one program.
pub fn compile(object: &Object, linker: &Linker, name: &str, engine: Engine) -> Result<Loaded, Failure> {
    let mut program = linker.link(object, name)?.map_err(|e| match e.is_unsupported() {
        true => Failure::Unsupported(e.to_string()),
        false => Failure::input(e),
    })?;
    program.flags |= object.btf().map_or(0, |btf| tagged_flags(btf, name));
    let shown = program.clone();
    let verified = verify(program, &Options::default()).map_err(|rejection| {
        let (verdict, status) = match rejection.outcome {
            Outcome::Rejected => ("rejected", status::NO),
            Outcome::Unsupported => ("unsupported", status::UNSUPPORTED),
        };
        let options = Options::default();
        let why = verifier::explain(&shown, &options).filter(|_| rejection.outcome == Outcome::Rejected);
        let title = format!("program {name} is {verdict}");
        Failure::Refused { status, explanation: explain::rejection(&title, &shown, &options, &rejection, why.as_ref()) }
    })?;
    let compiled = Loaded::new(&verified, &jit::Options { engine, ..jit::Options::default() });
    compiled.map_err(|e| Failure::Unsupported(e.to_string()))
}
