//! What machine code knows of the memory that it runs with: distances in [`Env`] and in map handles.
//!
//! # The contract
//!
//! The code of an image is position independent and the same in every process. It is called with the environment, the
//! context and the frame pointer of its first frame, by the C calling convention, and returns r0. Everything else it
//! finds in the environment: the table of map handles, and the table of functions of the runtime ([`Table`]), which it
//! calls with r1 to r5 and the environment as arguments. A tail call jumps to the other program's code with the same
//! three arguments.
//!
//! Functions of the program that the runtime calls back get their arguments in the places of r1 to r5, the environment in
//! r12 and their frame pointer in rbp. A run that is over leaves them by the stack pointer in `entry_sp`, which is the
//! runtime's while it calls; so code tests [`OVER_BUDGET`] behind a helper that calls back.

use core::mem::offset_of;

use skep_maps::{MapHeader, MapRef};

use crate::env::{Env, HostFn};
use crate::helpers::COUNT;
use crate::session::{Control, ProgCell};

/// A function of the runtime that machine code calls: r1 to r5, and the environment.
pub type HelperFn = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64, *mut Env) -> u64;

/// The functions that machine code calls, by [`helpers::index`](crate::helpers::index) and
/// [`helpers::entry`](crate::helpers::entry).
pub type Table = [HelperFn; COUNT];

/// The head of the control arena.
pub const CONTROL: i32 = offset_of!(Env, control) as i32;
/// The slot's private memory, which begins with its stack.
pub const AREA: i32 = offset_of!(Env, area) as i32;
/// What `get_attach_cookie` returns.
pub const COOKIE: i32 = offset_of!(Env, cookie) as i32;
/// The program's type, 32 bits.
pub const PROG_TYPE: i32 = offset_of!(Env, prog_type) as i32;
/// Tail calls so far, 32 bits.
pub const TAIL_CALLS: i32 = offset_of!(Env, tail_calls) as i32;
/// The last change around functions that this process has the maps of.
pub const CHANGE: i32 = offset_of!(Env, change) as i32;
/// In the head of the control arena: where the programs' cells are, 32 bits.
pub const CONTROL_PROGS: i32 = offset_of!(Control, progs) as i32;

/// In the table of programs' cells: where the offset of the image that runs is.
pub const fn prog_cell(prog: u32) -> i32 {
    (prog as usize * size_of::<ProgCell>() + offset_of!(ProgCell, image)) as i32
}

/// Where the kernel objects begin that the program was given.
pub const OBJECTS: i32 = offset_of!(Env, objects) as i32;
/// Their bytes.
pub const OBJECTS_LEN: i32 = offset_of!(Env, objects_len) as i32;
/// Map handles.
pub const MAPS: i32 = offset_of!(Env, maps) as i32;
/// The context that the program was started with.
pub const CTX: i32 = offset_of!(Env, ctx) as i32;
/// The slot's number, 32 bits.
pub const SLOT: i32 = offset_of!(Env, slot) as i32;
/// Address of the [`Table`].
pub const TABLE: i32 = offset_of!(Env, table) as i32;
/// What is left of the budget.
pub const FUEL: i32 = offset_of!(Env, fuel) as i32;
/// The stack pointer behind the call of the program; what is there is where a run that is ended returns to.
pub const ENTRY_SP: i32 = offset_of!(Env, entry_sp) as i32;
/// Where the frame of a function begins that a helper calls back: stored before the helper is called.
pub const CALLBACK_FP: i32 = offset_of!(Env, callback_fp) as i32;
/// The stack pointer of the main function that exceptions end in. A main function that catches keeps what is there, and
/// its frame pointer, on its stack.
pub const THROW_SP: i32 = offset_of!(Env, throw_sp) as i32;
/// Most rounds of `bpf_loop` and of a numbers' iterator.
pub const MAX_LOOPS: u32 = 1 << 23;
/// Rounds of the loops of one call of a function that has a `may_goto`.
pub const MAY_GOTO_ROUNDS: u32 = 1 << 23;
/// The application's functions.
pub const FUNCTIONS: i32 = offset_of!(Env, functions) as i32;
/// Which of them is called, 32 bits: stored before the call.
pub const FUNCTION: i32 = offset_of!(Env, function) as i32;
/// In the table of the application's functions: where the code of one stands.
pub const fn host_fn(index: u32) -> i32 {
    (index as usize * size_of::<HostFn>() + offset_of!(HostFn, call)) as i32
}
/// Address of what a spent budget calls; it gives 0 if the run is over.
pub const REFUEL: i32 = offset_of!(Env, refuel) as i32;
/// A byte: the budget was spent.
pub const OVER_BUDGET: i32 = offset_of!(Env, modes.over_budget) as i32;

/// Bytes of a map handle.
pub const MAP_REF_SIZE: i32 = size_of::<MapRef>() as i32;
/// In a map handle: the address of the header.
pub const MAP_REF_HEADER: i32 = offset_of!(MapRef, hdr) as i32;
/// In a map handle: the address of the data.
pub const MAP_REF_DATA: i32 = offset_of!(MapRef, data) as i32;
/// In a map header: bytes between elements, 64 bits.
pub const HEADER_STRIDE: i32 = offset_of!(MapHeader, stride) as i32;
/// In a map header: bytes between the values of slots, 32 bits.
pub const HEADER_CPU_STRIDE: i32 = offset_of!(MapHeader, cpu_stride) as i32;
