//! The helpers: what programs call by number.
//!
//! One row per helper, in [`table!`]. Each function takes the run's environment and the arguments r1 to r5 that it
//! needs, and returns r0; errors are negative errnos. What the verifier has checked (pointers, sizes, map types) is not
//! checked again. Values and errnos are the kernel's.

mod maps;
mod output;
mod printk;
mod probe;
mod seq;
mod sized;
mod stack;
mod task;

use crate::abi::Table;
use crate::env::Env;

/// Places of what is not a helper in the table that machine code calls through.
pub mod entry {
    /// `tail_call`: map, index, frame pointer and stack pointer in r2 to r5; the code to go on with, or 0.
    pub const TAIL_CALL: u32 = 0;
    /// A load from the packet: context, offset and size in r1 to r3; a negative number if it is not there.
    pub const PACKET: u32 = 1;
    /// What is called in the place of a helper where the map is known ([`sized`](super::sized)).
    pub const SIZED: u32 = 2;
    /// The first helper.
    pub const FIRST: u32 = SIZED + super::sized::COUNT;
}

pub(crate) use maps::map_lookup_elem;
pub use sized::index as sized_index;

/// Makes the dispatcher and the list of helpers from rows of `number, name(arguments) => function`.
macro_rules! table {
    (fn($r1:ident, $r2:ident, $r3:ident, $r4:ident, $r5:ident)
     $($id:literal $name:ident($($arg:ident),*) => $f:path;)*) => {
        /// Calls helper `id`.
        ///
        /// # Safety
        /// The arguments are those of a verified program that runs in `env`; `id` is [`supported`].
        #[inline(always)]
        pub(crate) unsafe fn call(id: u32, env: &mut Env, $r1: u64, $r2: u64, $r3: u64, $r4: u64, $r5: u64) -> u64 {
            // SAFETY: the caller's promise is that of each helper.
            unsafe {
                match id {
                    $($id => $f(env $(, $arg)*),)*
                    _ => 0,
                }
            }
        }

        /// True if programs that call this helper can be run.
        pub const fn supported(id: u32) -> bool {
            matches!(id, TAIL_CALL $(| $id)*)
        }

        /// The helpers as machine code calls them.
        mod native {
            use super::*;
            $(
                #[allow(unused_variables)]
                pub(super) unsafe extern "sysv64" fn $name(
                    $r1: u64, $r2: u64, $r3: u64, $r4: u64, $r5: u64, env: *mut Env,
                ) -> u64 {
                    // SAFETY: machine code passes what the verified program does, and the environment it runs in.
                    unsafe { $f(&mut *env $(, $arg)*) }
                }
            )*
        }

        const IDS: &[u32] = &[$($id),*];

        /// How many functions machine code can call.
        pub const COUNT: usize = IDS.len() + entry::FIRST as usize;

        /// The functions that machine code calls.
        pub(crate) static TABLE: Table = sized::with!(
            crate::native::tail_call, crate::native::packet_load; $(native::$name,)*);

        /// The place of a helper in the table that machine code calls through.
        pub fn index(id: u32) -> Option<u32> {
            IDS.iter().position(|&i| i == id).map(|n| n as u32 + entry::FIRST)
        }
    };
}

table! {
    fn(r1, r2, r3, r4, r5)
    1   map_lookup_elem(r1, r2) => maps::map_lookup_elem;
    2   map_update_elem(r1, r2, r3, r4) => maps::map_update_elem;
    3   map_delete_elem(r1, r2) => maps::map_delete_elem;
    4   probe_read(r1, r2, r3) => probe::probe_read;
    5   ktime_get_ns() => task::ktime_get_ns;
    6   trace_printk(r1, r2, r3, r4, r5) => printk::trace_printk;
    7   get_prandom_u32() => task::get_prandom_u32;
    8   get_smp_processor_id() => task::get_smp_processor_id;
    14  get_current_pid_tgid() => task::get_current_pid_tgid;
    15  get_current_uid_gid() => task::get_current_uid_gid;
    16  get_current_comm(r1, r2) => task::get_current_comm;
    25  perf_event_output(r1, r2, r3, r4, r5) => output::perf_event_output;
    27  get_stackid(r1, r2, r3) => stack::get_stackid;
    42  get_numa_node_id() => task::get_numa_node_id;
    45  probe_read_str(r1, r2, r3) => probe::probe_read_user_str;
    67  get_stack(r1, r2, r3, r4) => stack::get_stack;
    87  map_push_elem(r1, r2, r3) => maps::map_push_elem;
    88  map_pop_elem(r1, r2) => maps::map_pop_elem;
    89  map_peek_elem(r1, r2) => maps::map_peek_elem;
    112 probe_read_user(r1, r2, r3) => probe::probe_read;
    113 probe_read_kernel(r1, r2, r3) => probe::probe_read;
    114 probe_read_user_str(r1, r2, r3) => probe::probe_read_user_str;
    115 probe_read_kernel_str(r1, r2, r3) => probe::probe_read_kernel_str;
    125 ktime_get_boot_ns() => task::ktime_get_boot_ns;
    126 seq_printf(r1, r2, r3, r4, r5) => seq::seq_printf;
    127 seq_write(r1, r2, r3) => seq::seq_write;
    130 ringbuf_output(r1, r2, r3, r4) => output::ringbuf_output;
    131 ringbuf_reserve(r1, r2, r3) => output::ringbuf_reserve;
    132 ringbuf_submit(r1, r2) => output::ringbuf_submit;
    133 ringbuf_discard(r1, r2) => output::ringbuf_discard;
    134 ringbuf_query(r1, r2) => output::ringbuf_query;
    160 ktime_get_coarse_ns() => task::ktime_get_coarse_ns;
    173 get_func_ip() => task::get_func_ip;
    174 get_attach_cookie() => task::get_attach_cookie;
    177 trace_vprintk(r1, r2, r3, r4) => printk::trace_vprintk;
    182 strncmp(r1, r2, r3) => task::strncmp;
    195 map_lookup_percpu_elem(r1, r2, r3) => maps::map_lookup_percpu_elem;
    208 ktime_get_tai_ns() => task::ktime_get_tai_ns;
}

/// The helper that is an operation of the interpreter.
pub const TAIL_CALL: u32 = 12;
