//! The vocabulary of eBPF: what every other crate of skep speaks.
//!
//! Instructions ([`insn`]), their meaning ([`op`]) and text ([`disasm`]), the numbers of the Linux user API ([`uapi`]),
//! errnos ([`errno`]), helper prototypes ([`helper`]), kernel functions ([`kfunc`]) and, with the `alloc` feature, BTF
//! ([`btf`]), programs ([`program`]) and the assembler ([`asm`]).
//! No `unsafe`, no dependencies; without `alloc` it is what the data plane inside a probed process uses.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod disasm;
pub mod errno;
pub mod helper;
pub mod insn;
pub mod kfunc;
mod kfunc_module;
pub mod op;
pub mod uapi;

#[cfg(feature = "alloc")]
pub mod asm;
#[cfg(feature = "alloc")]
pub mod btf;
#[cfg(feature = "alloc")]
pub mod program;
#[cfg(feature = "alloc")]
pub mod syscall;

pub use errno::Errno;
pub use insn::Insn;
