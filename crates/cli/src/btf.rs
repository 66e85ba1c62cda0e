//! `skep btf`: types of programs and libraries.

use std::io::Write;

use skep::elf::btf_from_dwarf;

use crate::args::{Btf, BtfCommand, BtfGen};
use crate::{Failure, say, status};

pub fn main(args: &Btf) -> Result<u8, Failure> {
    match &args.command {
        BtfCommand::Gen(args) => generate(args),
    }
}

/// Types from debug information.
fn generate(args: &BtfGen) -> Result<u8, Failure> {
    let name = args.binary.display().to_string();
    let bytes = std::fs::read(&args.binary).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
    let made = btf_from_dwarf(&name, &bytes).map_err(Failure::input)?;
    match &args.output {
        Some(path) => {
            std::fs::write(path, &made.btf).map_err(|e| Failure::Input(format!("{}: {e}", path.display())))?;
        }
        None => {
            let mut out = std::io::stdout().lock();
            let written = out.write_all(&made.btf).and_then(|()| out.flush());
            written.map_err(|e| Failure::Input(format!("standard output: {e}")))?;
        }
    }
    for (function, why) in made.left_out.iter().take(if args.verbose { usize::MAX } else { 0 }) {
        say(format_args!("note: {function} is left out: {why}"));
    }
    say(format_args!(
        "{name}: {} functions with types in {} bytes, {} left out",
        made.functions,
        made.btf.len(),
        made.left_out.len()
    ));
    Ok(status::OK)
}
