//! Kernel functions of modules: which module has which.
//!
//! Functions of the kernel proper may be in a module where the configuration has it so: [`OWNERS`] says in which. A
//! function of a module that is not listed is not for programs, whatever its name.

use crate::helper::{TypeSet, only};
use crate::kfunc::{Kfunc, flag::*};
use crate::uapi::ProgType;

/// Modules that have rows of [`crate::kfunc::KFUNCS`], with what the names of these begin with. Read off the identifier sets
/// (`.BTF_ids`) of the modules of Debian's Linux 6.12.
static OWNERS: &[(&str, &[&str])] = &[
    ("fou", &["bpf_skb_get_fou_encap", "bpf_skb_set_fou_encap"]),
    ("nf_conntrack", &["bpf_ct_", "bpf_skb_ct_", "bpf_xdp_ct_"]),
    ("nf_flow_table", &["bpf_xdp_flow_lookup"]),
    ("nf_nat", &["bpf_ct_set_nat_info"]),
    ("tcp_bbr", &["bbr_"]),
    ("tcp_cubic", &["cubictcp_"]),
    ("xfrm_interface", &["bpf_skb_get_xfrm_info", "bpf_skb_set_xfrm_info"]),
];

const ANY: TypeSet = !0;
const OPS: TypeSet = only(ProgType::StructOps);
const TC: TypeSet = only(ProgType::SchedCls);
/// The types for which the kernel's own test module registers its functions: `tracing` stands for all of its kind.
const TEST: TypeSet = TC
    | only(ProgType::Tracing)
    | only(ProgType::Tracepoint)
    | only(ProgType::PerfEvent)
    | only(ProgType::Lsm)
    | only(ProgType::Syscall)
    | OPS;

const fn k(name: &'static str, flags: u32, types: TypeSet) -> Kfunc {
    Kfunc { name, flags, types }
}

/// Functions that are in modules alone.
#[rustfmt::skip]
static MODULES: &[(&str, &[Kfunc])] = &[
    ("bpf_test_modorder_x", &[k("bpf_test_modorder_retx", 0, TC)]),
    ("bpf_test_modorder_y", &[k("bpf_test_modorder_rety", 0, TC)]),
    // The kernel's test module, as of 6.12.
    ("bpf_testmod", &[
        k("bpf_iter_testmod_seq_destroy", ITER_DESTROY, ANY),
        k("bpf_iter_testmod_seq_new", ITER_NEW, ANY),
        k("bpf_iter_testmod_seq_next", ITER_NEXT | RET_NULL, ANY),
        k("bpf_iter_testmod_seq_value", 0, ANY),
        k("bpf_kfunc_call_int_mem_release", RELEASE, TEST),
        k("bpf_kfunc_call_kernel_bind", SLEEPABLE, TEST),
        k("bpf_kfunc_call_kernel_connect", SLEEPABLE, TEST),
        k("bpf_kfunc_call_kernel_getpeername", SLEEPABLE, TEST),
        k("bpf_kfunc_call_kernel_getsockname", SLEEPABLE, TEST),
        k("bpf_kfunc_call_kernel_listen", SLEEPABLE, TEST),
        k("bpf_kfunc_call_kernel_sendmsg", SLEEPABLE, TEST),
        k("bpf_kfunc_call_memb1_release", RELEASE, TEST),
        k("bpf_kfunc_call_memb_acquire", ACQUIRE | RET_NULL, TEST),
        k("bpf_kfunc_call_sock_sendmsg", SLEEPABLE, TEST),
        k("bpf_kfunc_call_test1", 0, TEST),
        k("bpf_kfunc_call_test2", 0, TEST),
        k("bpf_kfunc_call_test3", 0, TEST),
        k("bpf_kfunc_call_test4", 0, TEST),
        k("bpf_kfunc_call_test_acq_rdonly_mem", ACQUIRE | RET_NULL, TEST),
        k("bpf_kfunc_call_test_acquire", ACQUIRE | RET_NULL, TEST),
        k("bpf_kfunc_call_test_destructive", DESTRUCTIVE, TEST),
        k("bpf_kfunc_call_test_fail1", 0, TEST),
        k("bpf_kfunc_call_test_fail2", 0, TEST),
        k("bpf_kfunc_call_test_fail3", 0, TEST),
        k("bpf_kfunc_call_test_get_rdonly_mem", RET_NULL, TEST),
        k("bpf_kfunc_call_test_get_rdwr_mem", RET_NULL, TEST),
        k("bpf_kfunc_call_test_mem_len_fail1", 0, TEST),
        k("bpf_kfunc_call_test_mem_len_fail2", 0, TEST),
        k("bpf_kfunc_call_test_mem_len_pass1", 0, TEST),
        k("bpf_kfunc_call_test_offset", 0, TEST),
        k("bpf_kfunc_call_test_pass1", 0, TEST),
        k("bpf_kfunc_call_test_pass2", 0, TEST),
        k("bpf_kfunc_call_test_pass_ctx", 0, TEST),
        k("bpf_kfunc_call_test_ref", TRUSTED_ARGS | RCU, TEST),
        k("bpf_kfunc_call_test_sleepable", SLEEPABLE, TEST),
        k("bpf_kfunc_call_test_static_unused_arg", 0, TEST),
        k("bpf_kfunc_close_sock", SLEEPABLE, TEST),
        k("bpf_kfunc_common_test", 0, ANY),
        k("bpf_kfunc_dynptr_test", 0, ANY),
        k("bpf_kfunc_init_sock", SLEEPABLE, TEST),
        k("bpf_kfunc_nested_acquire_nonzero_offset_test", ACQUIRE, ANY),
        k("bpf_kfunc_nested_acquire_zero_offset_test", ACQUIRE, ANY),
        k("bpf_kfunc_nested_release_test", RELEASE, ANY),
        k("bpf_kfunc_rcu_task_test", RCU, ANY),
        k("bpf_kfunc_st_ops_inc10", TRUSTED_ARGS, TEST),
        k("bpf_kfunc_st_ops_test_epilogue", TRUSTED_ARGS | SLEEPABLE, TEST),
        k("bpf_kfunc_st_ops_test_pro_epilogue", TRUSTED_ARGS | SLEEPABLE, TEST),
        k("bpf_kfunc_st_ops_test_prologue", TRUSTED_ARGS | SLEEPABLE, TEST),
        k("bpf_kfunc_trusted_num_test", TRUSTED_ARGS, ANY),
        k("bpf_kfunc_trusted_task_test", TRUSTED_ARGS, ANY),
        k("bpf_kfunc_trusted_vma_test", TRUSTED_ARGS, ANY),
        k("bpf_testmod_ctx_create", ACQUIRE | RET_NULL, ANY),
        k("bpf_testmod_ctx_release", RELEASE, ANY),
        k("bpf_testmod_test_mod_kfunc", 0, TEST),
    ]),
    ("tcp_dctcp", &[
        k("dctcp_cwnd_event", 0, OPS),
        k("dctcp_cwnd_undo", 0, OPS),
        k("dctcp_init", 0, OPS),
        k("dctcp_ssthresh", 0, OPS),
        k("dctcp_state", 0, OPS),
        k("dctcp_update_alpha", 0, OPS),
    ]),
];

impl Kfunc {
    /// The function with this name in a module.
    pub fn of_module(module: &str, name: &str) -> Option<&'static Kfunc> {
        let owns =
            |(owner, prefixes): &&(&str, &[&str])| *owner == module && prefixes.iter().any(|p| name.starts_with(p));
        if OWNERS.iter().any(|o| owns(&o)) {
            return Kfunc::by_name(name);
        }
        let (_, rows) = MODULES.iter().find(|(owner, _)| *owner == module)?;
        rows.iter().find(|k| k.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kfunc::KFUNCS;

    #[test]
    fn owners_have_rows() {
        for (module, prefixes) in OWNERS {
            for p in *prefixes {
                assert!(KFUNCS.iter().any(|k| k.name.starts_with(p)), "{module} has no {p}");
            }
        }
        assert!(Kfunc::of_module("nf_conntrack", "bpf_ct_release").is_some_and(|k| k.has(RELEASE)));
        assert!(Kfunc::of_module("fou", "bpf_ct_release").is_none());
        assert!(Kfunc::of_module("tcp_dctcp", "dctcp_init").is_some());
        assert!(Kfunc::of_module("bpf_testmod", "bpf_throw").is_none());
    }

    #[test]
    fn rows_are_sorted_and_not_the_kernels() {
        for (module, rows) in MODULES {
            assert!(rows.windows(2).all(|w| w[0].name < w[1].name), "{module}");
            assert!(rows.iter().all(|k| Kfunc::by_name(k.name).is_none()), "{module}");
        }
    }
}
