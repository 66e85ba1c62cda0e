//! Plays the kernel: what stands between verified programs and the processes that they observe.
//!
//! A [`Session`](session::Session) holds compiled programs, their maps and links in shared memory;
//! [`Events`](events::Events) reads what they tell; [`Session::test_run`](session::Session::test_run) runs them here.
#![warn(missing_docs)]

mod arguments;
pub mod attach;
pub mod clock;
pub mod code_map;
pub mod events;
pub mod front;
pub mod host;
pub mod keeper;
pub mod loaded;
pub mod names;
pub mod place;
pub mod process_types;
pub mod sampling;
pub mod session;
pub mod signals;
pub mod spawn;
pub mod symbols;
pub mod target;
pub mod testrun;
