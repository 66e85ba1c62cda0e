//! eBPF maps in position-independent shared memory.
//!
//! A map is a [`MapHeader`], which only the controller can write, and a *data region*, which every traced process
//! maps. [`MapRef`] names both as one process sees them; its methods are the map operations that programs perform
//! (the **data plane**). With the feature `control` there is also [`control::Map`]: creation with the kernel's checks,
//! the operations of `bpf(2)`, consumers of rings, and recovery after a death.
//!
//! # Invariants
//!
//! Any process that maps a data region may scribble on it at any time, and may die at any instruction. Therefore:
//!
//! * The region holds indices and offsets, never pointers. What is read from it is checked against the header (or
//!   masked by it) before it is used, each time: nothing is read twice where the first value was checked.
//! * Every walk and every retry is bounded. Locks record their owner and are waited for only so long; an operation
//!   that could not get its lock returns `-EBUSY` (a null pointer where it returns pointers).
//! * An update is published by a single store, so that every prefix of it leaves a consistent map. What a dead slot
//!   still held is found by its record, and given back by [`MapRef::recover`].
//! * The data plane allocates nothing, blocks nowhere, calls no libc and has no panicking path.
//!
//! # Layouts (bytes from the start of the data region)
//!
//! | type | data |
//! |---|---|
//! | array | values, `stride` apart |
//! | per-CPU array | elements, `stride` apart; in each, one value per slot, `cpu_stride` apart |
//! | prog array | a `u32` per index: 0, or the program's number + 1 |
//! | array of maps | a `u32` per index: 0, or the index of the inner map in the table of maps + 1 |
//! | hash of maps | as hash; the value is such a `u32` |
//! | longest-prefix match | as hash, and the lengths of prefix that there are (see `lpm.rs`) |
//! | queue, stack | lock and state, values `stride` apart from `elems_off` on (see `queue.rs`) |
//! | bloom filter | bits, `mask` + 1 of them |
//! | hash, LRU hash, per-CPU or not | slot records, buckets, elements (see `hash.rs`, `lru.rs`) |
//! | stack trace | slot records, buckets, elements (see `stack.rs`) |
//! | ring buffer | consumer page, producer page, 2 × `max_entries` bytes (see `ringbuf.rs`) |
//! | user ring buffer | as ring buffer (see `user_ring.rs`) |
//! | perf event array | a `u32` per ring, then per ring a control page and its data (see `perf.rs`) |
#![cfg_attr(not(feature = "control"), no_std)]

#[cfg(feature = "control")]
pub mod control;

mod array;
mod bloom;
pub mod calls;
mod flip;
mod free;
mod hash;
mod header;
mod key;
mod lpm;
mod lru;
mod mem;
mod perf;
mod pool;
mod queue;
mod recover;
mod ringbuf;
mod sized;
pub mod spin;
mod stack;
mod sync;
mod user_ring;
mod wait;

pub use header::{CONTROL_SLOT, MAX_SLOTS, MapHeader, MapRef, PAGE};
pub use perf::{Part, Sample, sample_type};
pub use recover::Recovered;
pub use ringbuf::{FORCE_WAKEUP, HEADER_SIZE, NO_WAKEUP};

#[cfg(feature = "control")]
pub use control::{Map, MapError};
