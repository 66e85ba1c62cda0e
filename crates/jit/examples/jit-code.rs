//! Writes the machine code of a program to a file: `jit-code OBJECT PROGRAM FILE`, to be shown by
//! `objdump -D -b binary -m i386:x86-64 FILE`.

use skep_elf::{LoadOptions, Object};
use skep_jit::{Engine, Options, compile};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [object, program, file] = &args[..] else { return Err("OBJECT PROGRAM FILE".into()) };
    let object = Object::parse(object, &std::fs::read(object)?)?;
    let program = object.program(program, &LoadOptions::default())?;
    let verified = skep_verifier::verify(program, &skep_verifier::Options::default())?;
    let compiled = compile(&verified, &Options { engine: Engine::Jit, ..Options::default() })?;
    std::fs::write(file, compiled.machine_code().unwrap_or_default())?;
    Ok(())
}
