//! Plays the kernel: what stands between verified programs and the processes that they observe.
#![warn(missing_docs)]

pub mod keeper;
pub mod memory;
pub mod place;
pub mod signals;
pub mod spawn;
