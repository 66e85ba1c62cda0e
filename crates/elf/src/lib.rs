//! ELF objects for BPF: bytes → [`Object`] → [`Program`](skep_ebpf::program::Program).
//!
//! An [`Object`] is what a compiler or linker made, taken apart and checked. [`Object::program`] links one program of
//! it, alone: subprograms are appended in order of first use, maps are named by their index, CO-RE relocations and
//! externs are resolved against the kernel that [`LoadOptions`] describe. What comes out is what libbpf would load.
//!
//! Parsing never panics and never trusts: every offset, size and index of the input is checked where it is used.
#![forbid(unsafe_code)]

mod btf_file;
mod container;
pub mod core;
mod data;
mod dwarf;
mod error;
mod externs;
mod functions;
#[doc(hidden)]
pub mod fuzzing;
mod kconfig;
mod legacy;
mod link;
mod maps;
mod modules;
mod object;
mod options;
mod sections;
mod struct_ops;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod usdt;

pub use btf_file::read_btf;
pub use dwarf::{Generated, btf_from_dwarf};
pub use error::ElfError;
pub use kconfig::{Kconfig, kernel_version};
pub use modules::{module_name, modules_in, with_modules};
pub use object::{Object, ProgramInfo};
pub use options::{Ksyms, LoadOptions};
pub use sections::{SECTIONS, SectionDef, section_def};
pub use usdt::{Argument, Operand, Usdt, usdt_arguments, usdt_probes};
