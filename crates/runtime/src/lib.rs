//! The data plane that runs verified programs: interpreter, helpers, slots, session memory.
//!
//! Without the feature `control` this is all `no_std`, and what the agent in a probed process is made of: it does not
//! allocate, block, panic or call libc.
#![cfg_attr(not(feature = "control"), no_std)]

pub mod abi;
pub mod around;
mod callback;
mod clock;
pub mod enter;
pub mod env;
mod format;
mod fuel;
pub mod guard;
pub mod helpers;
pub mod hit;
pub mod image;
mod interp;
#[cfg(feature = "control")]
mod machine;
mod native;
pub mod op;
mod own;
pub mod packet;
pub mod quick;
mod read;
mod ret_entry;
pub mod session;
mod sys;
pub mod syscall;
mod thread;
pub mod trap;
mod typed;
mod view;

#[cfg(feature = "control")]
pub use env::{SlotArea, Task};
pub use image::Image;
#[cfg(feature = "control")]
pub use machine::{At, Machine, Run, Scene};
