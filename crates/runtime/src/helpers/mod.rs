//! The helpers: what programs call by number; and the kernel functions that there are here, which they call by name.
//!
//! One row per helper or function, in [`table!`]. Each function takes the run's environment and the arguments r1 to r5 that it
//! needs, and returns r0; errors are negative errnos. What the verifier has checked (pointers, sizes, map types) is not
//! checked again. Values and errnos are the kernel's.

mod callback;
mod dynptr;
mod function;
mod iter;
mod lock;
mod maps;
mod net;
mod output;
mod printk;
mod probe;
mod section;
mod seq;
mod sized;
mod stack;
mod strings;
mod task;

use crate::abi::Table;
use crate::env::Env;

/// Places of what is not a helper in the table that machine code calls through.
pub mod entry {
    /// `tail_call`: map, index, frame pointer and stack pointer in r2 to r5; the code to go on with, or 0.
    pub const TAIL_CALL: u32 = 0;
    /// A load from the packet: context, offset and size in r1 to r3; a negative number if it is not there.
    pub const PACKET: u32 = 1;
    /// The time before a run that is counted.
    pub const BEGUN: u32 = 2;
    /// Counts a run: the link that it is counted for and when it began in r1 and r2.
    pub const RAN: u32 = 3;
    /// What is called in the place of a helper where the map is known ([`sized`](super::sized)).
    pub const SIZED: u32 = 4;
    /// The first helper.
    pub const FIRST: u32 = SIZED + super::sized::COUNT;
}

pub(crate) use maps::map_lookup_elem;
pub use sized::index as sized_index;

/// Makes the dispatcher and the list of helpers from rows of `number, name(arguments) => function`.
macro_rules! table {
    (fn($r1:ident, $r2:ident, $r3:ident, $r4:ident, $r5:ident)
     $($id:literal $name:ident($($arg:ident),*) => $f:path;)*
     kernel functions
     $($kname:ident($($karg:ident),*) => $kf:path;)*) => {
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
                #[allow(unused_variables, reason = "a row names what its helper takes, whether it looks at it or not")]
                pub(super) unsafe extern "sysv64" fn $name(
                    $r1: u64, $r2: u64, $r3: u64, $r4: u64, $r5: u64, env: *mut Env,
                ) -> u64 {
                    // SAFETY: machine code passes what the verified program does, and the environment it runs in.
                    unsafe { $f(&mut *env $(, $arg)*) }
                }
            )*
        }

        /// The kernel functions, likewise.
        mod kernel {
            use super::*;
            $(
                #[allow(unused_variables, reason = "a row names what its helper takes, whether it looks at it or not")]
                pub(super) unsafe extern "sysv64" fn $kname(
                    $r1: u64, $r2: u64, $r3: u64, $r4: u64, $r5: u64, env: *mut Env,
                ) -> u64 {
                    // SAFETY: as for helpers.
                    unsafe { $kf(&mut *env $(, $karg)*) }
                }
            )*
        }

        const IDS: &[u32] = &[$($id),*];
        /// Names of kernel functions without `bpf_`, and how many arguments of each are looked at.
        const NAMES: &[(&str, u8)] = &[$((stringify!($kname), 0 $(+ { let _ = stringify!($karg); 1 })*)),*];

        /// How many functions machine code can call.
        pub const COUNT: usize = IDS.len() + NAMES.len() + entry::FIRST as usize;

        /// The functions that machine code calls.
        pub(crate) static TABLE: Table = sized::with!(
            crate::native::tail_call, crate::native::packet_load, crate::around::begun, crate::around::ran; $(native::$name,)* $(kernel::$kname,)*);

        /// The place of a helper in the table that machine code calls through.
        pub fn index(id: u32) -> Option<u32> {
            IDS.iter().position(|&i| i == id).map(|n| n as u32 + entry::FIRST)
        }

        /// A kernel function by its name, if programs that call it can be run: its place in the table, and how many of r1 to
        /// r5 it looks at.
        pub fn kernel_function(name: &str) -> Option<(u32, u8)> {
            let name = name.strip_prefix("bpf_")?;
            let at = NAMES.iter().position(|n| n.0 == name)?;
            Some(((at + IDS.len()) as u32 + entry::FIRST, NAMES.get(at)?.1))
        }
    };
}

table! {
    fn(r1, r2, r3, r4, r5)
    1   map_lookup_elem(r1, r2) => maps::map_lookup_elem;
    2   map_update_elem(r1, r2, r3, r4) => maps::map_update_elem;
    3   map_delete_elem(r1, r2) => maps::map_delete_elem;
    4   probe_read(r1, r2, r3) => probe::probe_read_user;
    5   ktime_get_ns() => task::ktime_get_ns;
    6   trace_printk(r1, r2, r3, r4, r5) => printk::trace_printk;
    7   get_prandom_u32() => task::get_prandom_u32;
    8   get_smp_processor_id() => task::get_smp_processor_id;
    9   skb_store_bytes(r1, r2, r3, r4, r5) => net::skb_store_bytes;
    14  get_current_pid_tgid() => task::get_current_pid_tgid;
    15  get_current_uid_gid() => task::get_current_uid_gid;
    16  get_current_comm(r1, r2) => task::get_current_comm;
    25  perf_event_output(r1, r2, r3, r4, r5) => output::perf_event_output;
    26  skb_load_bytes(r1, r2, r3, r4) => net::skb_load_bytes;
    27  get_stackid(r1, r2, r3) => stack::get_stackid;
    28  csum_diff(r1, r2, r3, r4, r5) => net::csum_diff;
    39  skb_pull_data(r1, r2) => net::skb_pull_data;
    40  csum_update() => net::csum_update;
    42  get_numa_node_id() => task::get_numa_node_id;
    45  probe_read_str(r1, r2, r3) => probe::probe_read_user_str;
    67  get_stack(r1, r2, r3, r4) => stack::get_stack;
    68  skb_load_bytes_relative(r1, r2, r3, r4, r5) => net::skb_load_bytes_relative;
    84  sk_lookup_tcp() => net::no_socket;
    85  sk_lookup_udp() => net::no_socket;
    86  sk_release() => net::release_no_socket;
    87  map_push_elem(r1, r2, r3) => maps::map_push_elem;
    88  map_pop_elem(r1, r2) => maps::map_pop_elem;
    89  map_peek_elem(r1, r2) => maps::map_peek_elem;
    93  spin_lock(r1) => lock::spin_lock;
    94  spin_unlock(r1) => lock::spin_unlock;
    99  skc_lookup_tcp() => net::no_socket;
    105 strtol(r1, r2, r3, r4) => strings::strtol;
    106 strtoul(r1, r2, r3, r4) => strings::strtoul;
    112 probe_read_user(r1, r2, r3) => probe::probe_read_user;
    113 probe_read_kernel(r1, r2, r3) => probe::probe_read_kernel;
    114 probe_read_user_str(r1, r2, r3) => probe::probe_read_user_str;
    115 probe_read_kernel_str(r1, r2, r3) => probe::probe_read_kernel_str;
    118 jiffies64() => task::jiffies64;
    125 ktime_get_boot_ns() => task::ktime_get_boot_ns;
    126 seq_printf(r1, r2, r3, r4, r5) => seq::seq_printf;
    127 seq_write(r1, r2, r3) => seq::seq_write;
    130 ringbuf_output(r1, r2, r3, r4) => output::ringbuf_output;
    131 ringbuf_reserve(r1, r2, r3) => output::ringbuf_reserve;
    132 ringbuf_submit(r1, r2) => output::ringbuf_submit;
    133 ringbuf_discard(r1, r2) => output::ringbuf_discard;
    134 ringbuf_query(r1, r2) => output::ringbuf_query;
    160 ktime_get_coarse_ns() => task::ktime_get_coarse_ns;
    164 for_each_map_elem(r1, r2, r3, r4) => callback::for_each_map_elem;
    165 snprintf(r1, r2, r3, r4, r5) => strings::snprintf;
    173 get_func_ip(r1) => function::get_func_ip;
    174 get_attach_cookie() => task::get_attach_cookie;
    177 trace_vprintk(r1, r2, r3, r4) => printk::trace_vprintk;
    181 r#loop(r1, r2, r3, r4) => callback::bpf_loop;
    182 strncmp(r1, r2, r3) => task::strncmp;
    183 get_func_arg(r1, r2, r3) => function::get_func_arg;
    184 get_func_ret(r1, r2) => function::get_func_ret;
    185 get_func_arg_cnt(r1) => function::get_func_arg_cnt;
    189 xdp_load_bytes(r1, r2, r3, r4) => net::xdp_load_bytes;
    190 xdp_store_bytes(r1, r2, r3, r4) => net::xdp_store_bytes;
    195 map_lookup_percpu_elem(r1, r2, r3) => maps::map_lookup_percpu_elem;
    197 dynptr_from_mem(r1, r2, r3, r4) => dynptr::from_mem;
    198 ringbuf_reserve_dynptr(r1, r2, r3, r4) => dynptr::ringbuf_reserve;
    199 ringbuf_submit_dynptr(r1, r2) => dynptr::ringbuf_submit;
    200 ringbuf_discard_dynptr(r1, r2) => dynptr::ringbuf_discard;
    201 dynptr_read(r1, r2, r3, r4, r5) => dynptr::read;
    202 dynptr_write(r1, r2, r3, r4, r5) => dynptr::write;
    203 dynptr_data(r1, r2, r3) => dynptr::data;
    208 ktime_get_tai_ns() => task::ktime_get_tai_ns;
    209 user_ringbuf_drain(r1, r2, r3, r4) => callback::user_ringbuf_drain;

    kernel functions
    cast_to_kern_ctx(r1) => section::same_address;
    dynptr_adjust(r1, r2, r3) => dynptr::adjust;
    dynptr_clone(r1, r2) => dynptr::clone;
    dynptr_copy(r1, r2, r3, r4, r5) => dynptr::copy;
    dynptr_from_skb(r1, r2, r3) => dynptr::from_skb;
    dynptr_from_xdp(r1, r2, r3) => dynptr::from_xdp;
    dynptr_is_null(r1) => dynptr::is_null;
    dynptr_is_rdonly(r1) => dynptr::is_rdonly;
    dynptr_memset(r1, r2, r3, r4) => dynptr::memset;
    dynptr_size(r1) => dynptr::size;
    dynptr_slice(r1, r2, r3, r4) => dynptr::slice;
    dynptr_slice_rdwr(r1, r2, r3, r4) => dynptr::slice_rdwr;
    iter_bits_destroy(r1) => iter::bits_destroy;
    iter_bits_new(r1, r2, r3) => iter::bits_new;
    iter_bits_next(r1) => iter::bits_next;
    iter_num_destroy(r1) => iter::num_destroy;
    iter_num_new(r1, r2, r3) => iter::num_new;
    iter_num_next(r1) => iter::num_next;
    local_irq_restore(r1) => section::restore_irq;
    local_irq_save(r1) => section::save_irq;
    preempt_disable() => section::enter;
    preempt_enable() => section::leave;
    rcu_read_lock() => section::enter;
    rcu_read_unlock() => section::leave;
    res_spin_lock(r1) => lock::res_spin_lock;
    res_spin_lock_irqsave(r1, r2) => lock::res_spin_lock_irqsave;
    res_spin_unlock(r1) => lock::res_spin_unlock;
    res_spin_unlock_irqrestore(r1, r2) => lock::res_spin_unlock_irqrestore;
    strcasecmp(r1, r2) => strings::strcasecmp;
    strchr(r1, r2) => strings::strchr;
    strchrnul(r1, r2) => strings::strchrnul;
    strcmp(r1, r2) => strings::strcmp;
    strcspn(r1, r2) => strings::strcspn;
    strlen(r1) => strings::strlen;
    strnchr(r1, r2, r3) => strings::strnchr;
    strnlen(r1, r2) => strings::strnlen;
    strnstr(r1, r2, r3) => strings::strnstr;
    strrchr(r1, r2) => strings::strrchr;
    strspn(r1, r2) => strings::strspn;
    strstr(r1, r2) => strings::strstr;
}

/// True for a helper that calls a function of the program.
pub const fn calls_back(id: u32) -> bool {
    matches!(id, 164 | 181 | 209)
}

/// True for a helper that may end the run: what it is asked for it cannot do, and the program must not go on without.
pub const fn may_end(id: u32) -> bool {
    id == 93
}

/// The function at a place of the table.
///
/// # Safety
/// There is one.
#[inline(always)]
pub(crate) unsafe fn function(at: usize) -> crate::abi::HelperFn {
    // SAFETY: the caller's promise.
    unsafe { *TABLE.get_unchecked(at) }
}

/// The helper that is an operation of the interpreter.
pub const TAIL_CALL: u32 = 12;
