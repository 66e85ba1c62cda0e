//! The Linux eBPF subsystem in user space.
//!
//! ```text
//! bytes ──▶ Object ──▶ Program ──▶ Verified ──▶ Compiled ──▶ Link ──▶ events, maps
//!           elf        ebpf        verifier     jit          subsystem  maps
//! ```
//!
//! Each step is a type that only the step before it can make: a program that was not verified cannot be compiled, and one
//! that was not compiled cannot be run or attached. This crate is the road; the crates that it re-exports are the rooms.
//!
//! ```
//! use skep::{LoadOptions, Object, Session, SessionOptions, TestInput};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bpf/test/packet.bpf.o");
//! let object = Object::parse("packet.bpf.o", &std::fs::read(path)?)?;
//! let program = object.program("sum", &LoadOptions::default())?;
//! let verified = skep::verify(program, &skep::VerifierOptions::default())?;
//! let session = Session::new(vec![verified], &SessionOptions::default())?;
//!
//! let arguments = [[20u64, 22].map(u64::to_ne_bytes).concat(), vec![0; 80]].concat();
//! let output = session.test_run(0, &TestInput { ctx: Some(&arguments), ..TestInput::default() })?;
//! assert_eq!(output.retval, 42);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

// What the derive macro names is found in this crate's own tests, too.
extern crate self as skep;

pub mod host;

pub use skep_ebpf as ebpf;
pub use skep_elf as elf;
pub use skep_jit as jit;
pub use skep_maps as maps;
pub use skep_subsystem as subsystem;
pub use skep_verifier as verifier;

pub use skep_ebpf::program::{MapDef, Program};
pub use skep_elf::{LoadOptions, Object};
pub use skep_jit::{Compiled, Engine, Options as CompileOptions};
pub use skep_maps::Map;
pub use skep_subsystem::events::{Event, Events};
pub use skep_subsystem::loaded::Loaded;
pub use skep_subsystem::place::{Place, When};
pub use skep_subsystem::session::{Counts, Link, Options as SessionOptions, Session, SessionError};
pub use skep_subsystem::symbols::Symbols;
pub use skep_subsystem::testrun::{TestInput, TestOutput, TestRunError};
pub use skep_verifier::{Options as VerifierOptions, Rejection, Verified, verify};
