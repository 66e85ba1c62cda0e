//! The kernel functions that programs may call (*kfuncs*): one row each with flags and the program types that may.
//!
//! Prototypes are in the kernel's BTF, where a call names the function by its type id; whether a function of the table
//! exists is for that BTF to say. Who may call what, and which calls sleep, were read off a running 6.18, type by type
//! (`tests/kfuncs.rs` of the verifier asks again); rows that only other kernels have are marked.

use crate::helper::{TypeSet, only};
use crate::uapi::{AttachType, ProgType};

/// Flags of a [`Kfunc`].
pub mod flag {
    /// Returns a reference that must be released.
    pub const ACQUIRE: u32 = 1 << 0;
    /// Releases the reference in one of its arguments.
    pub const RELEASE: u32 = 1 << 1;
    /// Returns null at times.
    pub const RET_NULL: u32 = 1 << 2;
    /// Pointers must be valid and as they were obtained.
    pub const TRUSTED_ARGS: u32 = 1 << 4;
    /// May sleep.
    pub const SLEEPABLE: u32 = 1 << 5;
    /// Brings the system down.
    pub const DESTRUCTIVE: u32 = 1 << 6;
    /// Pointers must be valid, perhaps only within the RCU read section.
    pub const RCU: u32 = 1 << 7;
    /// Begins an iterator.
    pub const ITER_NEW: u32 = 1 << 8;
    /// Moves an iterator on.
    pub const ITER_NEXT: u32 = 1 << 9;
    /// Ends an iterator.
    pub const ITER_DESTROY: u32 = 1 << 10;
    /// Only inside of an RCU read section, which also bounds what it returns.
    pub const RCU_PROTECTED: u32 = 1 << 11;
    /// Keeps the registers that callers may have saved around it, and is inlined.
    pub const FASTCALL: u32 = 1 << 12;

    /// Only in iterator programs.
    pub const ONLY_ITER: u32 = 1 << 16;
    /// Only in programs that run at entry and return of a function.
    pub const ONLY_SESSION: u32 = 1 << 17;
    /// Only in programs bound to a network device.
    pub const DEVICE_BOUND: u32 = 1 << 18;
}

use flag::*;

/// A kernel function: one row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kfunc {
    /// Name.
    pub name: &'static str,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Program types that may call it.
    pub types: TypeSet,
}

impl Kfunc {
    /// The function with this name.
    pub fn by_name(name: &str) -> Option<&'static Kfunc> {
        let row = KFUNCS.binary_search_by(|k| k.name.cmp(name)).ok()?;
        KFUNCS.get(row)
    }

    /// True if programs of this type, for this kind of attachment, may call it.
    pub fn allowed_in(&self, prog: ProgType, attach: Option<AttachType>) -> bool {
        let iter = attach == Some(AttachType::TraceIter);
        let session = matches!(attach, Some(AttachType::TraceKprobeSession | AttachType::TraceUprobeSession));
        self.types & only(prog) != 0 && (!self.has(ONLY_ITER) || iter) && (!self.has(ONLY_SESSION) || session)
    }

    /// True if one of these flags is set.
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// True if its pointers must be valid as they were obtained: of an acquired reference, or given by the kernel.
    pub const fn wants_trusted(&self) -> bool {
        self.has(TRUSTED_ARGS | RELEASE)
    }

    /// True if it begins, moves or ends an iterator.
    pub const fn is_iter(&self) -> bool {
        self.has(ITER_NEW | ITER_NEXT | ITER_DESTROY)
    }
}

// The kernel registers functions for hooks; a hook stands for these types.
const ANY: TypeSet = !0;
const TC: TypeSet = only(ProgType::SchedCls);
const ACT: TypeSet = only(ProgType::SchedAct);
const XDP: TypeSet = only(ProgType::Xdp);
const OPS: TypeSet = only(ProgType::StructOps);
const LSM: TypeSet = only(ProgType::Lsm);
const SYSCALL: TypeSet = only(ProgType::Syscall);
const KPROBE: TypeSet = only(ProgType::Kprobe);
const SOCKET: TypeSet = only(ProgType::SocketFilter);
const SK_SKB: TypeSet = only(ProgType::SkSkb);
const NETFILTER: TypeSet = only(ProgType::Netfilter);
const TRACING: TypeSet =
    only(ProgType::Tracing) | only(ProgType::Tracepoint) | only(ProgType::PerfEvent) | only(ProgType::Lsm);
const CGROUP: TypeSet = only(ProgType::CgroupSkb)
    | only(ProgType::CgroupSock)
    | only(ProgType::CgroupDevice)
    | only(ProgType::CgroupSockAddr)
    | only(ProgType::CgroupSockopt)
    | only(ProgType::CgroupSysctl)
    | only(ProgType::SockOps);
const LWT: TypeSet =
    only(ProgType::LwtIn) | only(ProgType::LwtOut) | only(ProgType::LwtXmit) | only(ProgType::LwtSeg6local);
const GENERIC: TypeSet = TRACING | TC | XDP | OPS | SYSCALL | CGROUP;
const CPUMASK: TypeSet = TRACING | OPS | SYSCALL;
const CRYPTO: TypeSet = TC | ACT | XDP;
const CONNTRACK: TypeSet = TC | XDP;
const SKB: TypeSet = TC | ACT | SK_SKB | SOCKET | CGROUP | LWT | NETFILTER | TRACING;
const ITER: TypeSet = only(ProgType::Tracing);

const NEXT: u32 = ITER_NEXT | RET_NULL;
const ACQUIRE_OR_NULL: u32 = ACQUIRE | RET_NULL;

const fn k(name: &'static str, flags: u32, types: TypeSet) -> Kfunc {
    Kfunc { name, flags, types }
}

/// All kernel functions, sorted by name.
#[rustfmt::skip]
pub static KFUNCS: &[Kfunc] = &[
    // The compiler's mark for what can never be reached: verification fails where a call of it is.
    k("__bpf_trap", 0, ANY),
    k("bbr_cwnd_event", 0, OPS),
    k("bbr_init", 0, OPS),
    k("bbr_main", 0, OPS),
    k("bbr_min_tso_segs", 0, OPS),
    k("bbr_set_state", 0, OPS),
    k("bbr_sndbuf_expand", 0, OPS),
    k("bbr_ssthresh", 0, OPS),
    k("bbr_undo_cwnd", 0, OPS),
    k("bpf_arena_alloc_pages", TRUSTED_ARGS | SLEEPABLE, ANY),
    k("bpf_arena_free_pages", TRUSTED_ARGS | SLEEPABLE, ANY),
    k("bpf_arena_reserve_pages", TRUSTED_ARGS | SLEEPABLE, ANY),
    k("bpf_cast_to_kern_ctx", FASTCALL, ANY),
    k("bpf_cgroup_acquire", ACQUIRE_OR_NULL | RCU, GENERIC),
    k("bpf_cgroup_ancestor", ACQUIRE_OR_NULL | RCU, GENERIC),
    k("bpf_cgroup_from_id", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_cgroup_read_xattr", RCU, ANY),
    k("bpf_cgroup_release", RELEASE, GENERIC),
    k("bpf_copy_from_user_dynptr", SLEEPABLE, ANY),
    k("bpf_copy_from_user_str", SLEEPABLE, ANY),
    k("bpf_copy_from_user_str_dynptr", SLEEPABLE, ANY),
    k("bpf_copy_from_user_task_dynptr", SLEEPABLE | TRUSTED_ARGS, ANY),
    k("bpf_copy_from_user_task_str", SLEEPABLE, ANY),
    k("bpf_copy_from_user_task_str_dynptr", SLEEPABLE | TRUSTED_ARGS, ANY),
    k("bpf_cpumask_acquire", ACQUIRE | TRUSTED_ARGS, CPUMASK),
    k("bpf_cpumask_and", RCU, CPUMASK),
    k("bpf_cpumask_any_and_distribute", RCU, CPUMASK),
    k("bpf_cpumask_any_distribute", RCU, CPUMASK),
    k("bpf_cpumask_clear", RCU, CPUMASK),
    k("bpf_cpumask_clear_cpu", RCU, CPUMASK),
    k("bpf_cpumask_copy", RCU, CPUMASK),
    k("bpf_cpumask_create", ACQUIRE_OR_NULL, CPUMASK),
    k("bpf_cpumask_empty", RCU, CPUMASK),
    k("bpf_cpumask_equal", RCU, CPUMASK),
    k("bpf_cpumask_first", RCU, CPUMASK),
    k("bpf_cpumask_first_and", RCU, CPUMASK),
    k("bpf_cpumask_first_zero", RCU, CPUMASK),
    k("bpf_cpumask_full", RCU, CPUMASK),
    k("bpf_cpumask_intersects", RCU, CPUMASK),
    k("bpf_cpumask_or", RCU, CPUMASK),
    k("bpf_cpumask_populate", RCU, CPUMASK),
    k("bpf_cpumask_release", RELEASE, CPUMASK),
    k("bpf_cpumask_set_cpu", RCU, CPUMASK),
    k("bpf_cpumask_setall", RCU, CPUMASK),
    k("bpf_cpumask_subset", RCU, CPUMASK),
    k("bpf_cpumask_test_and_clear_cpu", RCU, CPUMASK),
    k("bpf_cpumask_test_and_set_cpu", RCU, CPUMASK),
    k("bpf_cpumask_test_cpu", RCU, CPUMASK),
    k("bpf_cpumask_weight", RCU, CPUMASK),
    k("bpf_cpumask_xor", RCU, CPUMASK),
    k("bpf_crypto_ctx_acquire", ACQUIRE_OR_NULL | RCU, SYSCALL),
    k("bpf_crypto_ctx_create", ACQUIRE_OR_NULL | SLEEPABLE, SYSCALL),
    k("bpf_crypto_ctx_release", RELEASE, SYSCALL),
    k("bpf_crypto_decrypt", RCU, CRYPTO),
    k("bpf_crypto_encrypt", RCU, CRYPTO),
    k("bpf_ct_change_status", TRUSTED_ARGS, CONNTRACK),
    k("bpf_ct_change_timeout", TRUSTED_ARGS, CONNTRACK),
    k("bpf_ct_insert_entry", ACQUIRE_OR_NULL | RELEASE, CONNTRACK),
    k("bpf_ct_release", RELEASE, CONNTRACK),
    k("bpf_ct_set_nat_info", TRUSTED_ARGS, CONNTRACK),
    k("bpf_ct_set_status", TRUSTED_ARGS, CONNTRACK),
    k("bpf_ct_set_timeout", TRUSTED_ARGS, CONNTRACK),
    k("bpf_dynptr_adjust", 0, ANY),
    k("bpf_dynptr_clone", 0, ANY),
    k("bpf_dynptr_copy", 0, ANY),
    k("bpf_dynptr_from_skb", TRUSTED_ARGS, SKB),
    k("bpf_dynptr_from_skb_meta", TRUSTED_ARGS, TC | ACT),
    k("bpf_dynptr_from_xdp", 0, XDP),
    k("bpf_dynptr_is_null", 0, ANY),
    k("bpf_dynptr_is_rdonly", 0, ANY),
    k("bpf_dynptr_memset", 0, ANY),
    k("bpf_dynptr_size", 0, ANY),
    k("bpf_dynptr_slice", RET_NULL, ANY),
    k("bpf_dynptr_slice_rdwr", RET_NULL, ANY),
    k("bpf_get_dentry_xattr", SLEEPABLE | TRUSTED_ARGS, LSM),
    k("bpf_get_file_xattr", SLEEPABLE | TRUSTED_ARGS, LSM),
    k("bpf_get_fsverity_digest", TRUSTED_ARGS, LSM),
    k("bpf_get_kmem_cache", 0, ANY),
    k("bpf_get_task_exe_file", ACQUIRE_OR_NULL | TRUSTED_ARGS, LSM),
    k("bpf_iter_bits_destroy", ITER_DESTROY, ANY),
    k("bpf_iter_bits_new", ITER_NEW, ANY),
    k("bpf_iter_bits_next", NEXT, ANY),
    k("bpf_iter_css_destroy", ITER_DESTROY, ANY),
    k("bpf_iter_css_new", ITER_NEW | TRUSTED_ARGS | RCU_PROTECTED, ANY),
    k("bpf_iter_css_next", NEXT, ANY),
    k("bpf_iter_css_task_destroy", ITER_DESTROY, ANY),
    k("bpf_iter_css_task_new", ITER_NEW | TRUSTED_ARGS, ANY),
    k("bpf_iter_css_task_next", NEXT, ANY),
    k("bpf_iter_dmabuf_destroy", ITER_DESTROY | SLEEPABLE, ANY),
    k("bpf_iter_dmabuf_new", ITER_NEW | SLEEPABLE, ANY),
    k("bpf_iter_dmabuf_next", NEXT | SLEEPABLE, ANY),
    k("bpf_iter_kmem_cache_destroy", ITER_DESTROY | SLEEPABLE, ANY),
    k("bpf_iter_kmem_cache_new", ITER_NEW | SLEEPABLE, ANY),
    k("bpf_iter_kmem_cache_next", NEXT | SLEEPABLE, ANY),
    k("bpf_iter_num_destroy", ITER_DESTROY, ANY),
    k("bpf_iter_num_new", ITER_NEW, ANY),
    k("bpf_iter_num_next", NEXT, ANY),
    k("bpf_iter_task_destroy", ITER_DESTROY, ANY),
    k("bpf_iter_task_new", ITER_NEW | TRUSTED_ARGS | RCU_PROTECTED, ANY),
    k("bpf_iter_task_next", NEXT, ANY),
    k("bpf_iter_task_vma_destroy", ITER_DESTROY, ANY),
    k("bpf_iter_task_vma_new", ITER_NEW | RCU, ANY),
    k("bpf_iter_task_vma_next", NEXT, ANY),
    k("bpf_key_put", RELEASE, GENERIC),
    k("bpf_kfunc_call_memb_release", RELEASE, TC | TRACING | SYSCALL),
    k("bpf_kfunc_call_test_release", RELEASE, TC | TRACING | SYSCALL),
    k("bpf_list_back", RET_NULL, GENERIC),
    k("bpf_list_front", RET_NULL, GENERIC),
    k("bpf_list_pop_back", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_list_pop_front", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_list_push_back_impl", 0, GENERIC),
    k("bpf_list_push_front_impl", 0, GENERIC),
    k("bpf_local_irq_restore", 0, ANY),
    k("bpf_local_irq_save", 0, ANY),
    k("bpf_lookup_system_key", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_lookup_user_key", ACQUIRE_OR_NULL | SLEEPABLE, GENERIC),
    k("bpf_map_sum_elem_count", TRUSTED_ARGS, ANY),
    k("bpf_modify_return_test_tp", 0, ANY),
    k("bpf_obj_drop_impl", RELEASE, GENERIC),
    k("bpf_obj_new_impl", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_path_d_path", TRUSTED_ARGS, LSM),
    k("bpf_percpu_obj_drop_impl", RELEASE, GENERIC),
    k("bpf_percpu_obj_new_impl", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_preempt_disable", 0, ANY),
    k("bpf_preempt_enable", 0, ANY),
    k("bpf_probe_read_kernel_dynptr", 0, ANY),
    k("bpf_probe_read_kernel_str_dynptr", 0, ANY),
    k("bpf_probe_read_user_dynptr", 0, ANY),
    k("bpf_probe_read_user_str_dynptr", 0, ANY),
    k("bpf_put_file", RELEASE, LSM),
    k("bpf_rbtree_add_impl", 0, GENERIC),
    k("bpf_rbtree_first", RET_NULL, GENERIC),
    k("bpf_rbtree_left", RET_NULL, GENERIC),
    k("bpf_rbtree_remove", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_rbtree_right", RET_NULL, GENERIC),
    k("bpf_rbtree_root", RET_NULL, GENERIC),
    k("bpf_rcu_read_lock", 0, ANY),
    k("bpf_rcu_read_unlock", 0, ANY),
    k("bpf_rdonly_cast", FASTCALL, ANY),
    k("bpf_refcount_acquire_impl", ACQUIRE_OR_NULL | RCU, GENERIC),
    k("bpf_remove_dentry_xattr", SLEEPABLE | TRUSTED_ARGS, LSM),
    k("bpf_res_spin_lock", RET_NULL, ANY),
    k("bpf_res_spin_lock_irqsave", RET_NULL, ANY),
    k("bpf_res_spin_unlock", 0, ANY),
    k("bpf_res_spin_unlock_irqrestore", 0, ANY),
    k("bpf_send_signal_task", TRUSTED_ARGS, GENERIC),
    k("bpf_session_cookie", ONLY_SESSION, KPROBE),
    k("bpf_session_is_return", ONLY_SESSION, KPROBE),
    k("bpf_set_dentry_xattr", SLEEPABLE | TRUSTED_ARGS, LSM),
    k("bpf_sk_assign_tcp_reqsk", TRUSTED_ARGS, TC),
    k("bpf_skb_ct_alloc", ACQUIRE_OR_NULL, CONNTRACK),
    k("bpf_skb_ct_lookup", ACQUIRE_OR_NULL, CONNTRACK),
    // Of modules.
    k("bpf_skb_get_fou_encap", 0, TC),
    k("bpf_skb_get_xfrm_info", 0, TC),
    k("bpf_skb_set_fou_encap", 0, TC),
    k("bpf_skb_set_xfrm_info", 0, TC),
    k("bpf_sock_addr_set_sun_path", 0, CGROUP),
    k("bpf_sock_destroy", TRUSTED_ARGS | ONLY_ITER, ITER),
    k("bpf_sock_ops_enable_tx_tstamp", TRUSTED_ARGS, CGROUP),
    k("bpf_strcasecmp", 0, ANY),
    k("bpf_strchr", 0, ANY),
    k("bpf_strchrnul", 0, ANY),
    k("bpf_strcmp", 0, ANY),
    k("bpf_strcspn", 0, ANY),
    k("bpf_stream_vprintk_impl", TRUSTED_ARGS, ANY),
    k("bpf_strlen", 0, ANY),
    k("bpf_strnchr", 0, ANY),
    k("bpf_strnlen", 0, ANY),
    k("bpf_strnstr", 0, ANY),
    k("bpf_strrchr", 0, ANY),
    k("bpf_strspn", 0, ANY),
    k("bpf_strstr", 0, ANY),
    k("bpf_task_acquire", ACQUIRE_OR_NULL | RCU, GENERIC),
    k("bpf_task_from_pid", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_task_from_vpid", ACQUIRE_OR_NULL, GENERIC),
    k("bpf_task_get_cgroup1", ACQUIRE_OR_NULL | RCU, GENERIC),
    k("bpf_task_release", RELEASE, GENERIC),
    k("bpf_task_under_cgroup", RCU, GENERIC),
    k("bpf_task_work_schedule_resume_impl", TRUSTED_ARGS, ANY),
    k("bpf_task_work_schedule_signal_impl", TRUSTED_ARGS, ANY),
    k("bpf_throw", 0, GENERIC),
    // Needs a module for the key types, or the kernel built with them.
    k("bpf_verify_pkcs7_signature", SLEEPABLE, GENERIC),
    k("bpf_wq_init", 0, ANY),
    k("bpf_wq_set_callback_impl", 0, ANY),
    k("bpf_wq_start", 0, ANY),
    k("bpf_xdp_ct_alloc", ACQUIRE_OR_NULL, CONNTRACK),
    k("bpf_xdp_ct_lookup", ACQUIRE_OR_NULL, CONNTRACK),
    k("bpf_xdp_flow_lookup", TRUSTED_ARGS | RET_NULL, XDP),
    k("bpf_xdp_get_xfrm_state", ACQUIRE_OR_NULL, XDP),
    k("bpf_xdp_metadata_rx_hash", TRUSTED_ARGS | DEVICE_BOUND, ANY),
    k("bpf_xdp_metadata_rx_timestamp", TRUSTED_ARGS | DEVICE_BOUND, ANY),
    k("bpf_xdp_metadata_rx_vlan_tag", TRUSTED_ARGS | DEVICE_BOUND, ANY),
    k("bpf_xdp_pull_data", 0, XDP),
    k("bpf_xdp_xfrm_state_release", RELEASE, XDP),
    // Up to 6.15 the two below had these names.
    k("cgroup_rstat_flush", SLEEPABLE, TRACING),
    k("cgroup_rstat_updated", 0, TRACING),
    k("crash_kexec", DESTRUCTIVE, GENERIC),
    k("css_rstat_flush", SLEEPABLE, TRACING),
    k("css_rstat_updated", 0, TRACING),
    k("cubictcp_acked", 0, OPS),
    k("cubictcp_cong_avoid", 0, OPS),
    k("cubictcp_cwnd_event", 0, OPS),
    k("cubictcp_init", 0, OPS),
    k("cubictcp_recalc_ssthresh", 0, OPS),
    k("cubictcp_state", 0, OPS),
    k("tcp_cong_avoid_ai", 0, OPS),
    k("tcp_reno_cong_avoid", 0, OPS),
    k("tcp_reno_ssthresh", 0, OPS),
    k("tcp_reno_undo_cwnd", 0, OPS),
    k("tcp_slow_start", 0, OPS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted() {
        assert!(KFUNCS.windows(2).all(|w| w[0].name < w[1].name));
        assert!(Kfunc::by_name("bpf_throw").is_some_and(|k| k.name == "bpf_throw"));
        assert!(Kfunc::by_name("bpf_thro").is_none());
    }

    #[test]
    fn sessions_and_iterators_are_told_by_the_attachment() {
        let cookie = Kfunc::by_name("bpf_session_cookie").expect("row");
        assert!(cookie.allowed_in(ProgType::Kprobe, Some(AttachType::TraceKprobeSession)));
        assert!(!cookie.allowed_in(ProgType::Kprobe, Some(AttachType::TraceKprobeMulti)));
        let destroy = Kfunc::by_name("bpf_sock_destroy").expect("row");
        assert!(destroy.allowed_in(ProgType::Tracing, Some(AttachType::TraceIter)));
        assert!(!destroy.allowed_in(ProgType::Tracing, Some(AttachType::TraceFentry)));
    }
}
