//! The data plane that runs verified programs: interpreter, helpers, slots, session memory.
#![cfg_attr(not(feature = "control"), no_std)]

pub mod session;
