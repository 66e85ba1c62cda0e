//! Asks the live kernel and skep about one program: `ask OBJECT PROGRAM [LOG_LEVEL]`.

#[path = "../tests/kernel/mod.rs"]
mod kernel;

use skep_elf::{LoadOptions, Object};
use skep_verifier::{Options, verify};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let bytes = std::fs::read(&args[1]).expect("object");
    let object = Object::parse(&args[1], &bytes).expect("object");
    let program = object.program(&args[2], &LoadOptions::host()).expect("program");
    let level = args.get(3).and_then(|s| s.parse().ok()).unwrap_or(1);
    match kernel::load(&program, level) {
        Some(a) => println!("{}\nkernel: errno {}", a.log, a.errno),
        None => println!("kernel: a map cannot be made"),
    }
    match verify(program, &Options { log: level > 1, ..Options::default() }) {
        Ok(v) => println!("{}skep: accepted, {:?}", v.log(), v.stats()),
        Err(r) => println!("{}skep: {:?} {} {r}", r.log, r.outcome, r.reason),
    }
}
