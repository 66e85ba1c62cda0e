//! What kernels say of the places where programs attach, where BTF does not: lists by name.

use skep_ebpf::uapi::ProgType;

/// Arguments of tracepoints that may be null: a bit for each, since the kernels that know (6.12.6, 6.13). The rest of
/// the arguments that are pointers to structs never are.
pub(crate) fn nullable_arguments(tracepoint: &str, since_6_18: bool) -> u32 {
    let rows = [NULLABLE, if since_6_18 { NULLABLE_6_18 } else { NULLABLE_6_12 }];
    rows.iter().flat_map(|r| r.iter()).filter(|(name, _)| *name == tracepoint).fold(0, |m, (_, bits)| m | bits)
}

static NULLABLE: &[(&str, u32)] = &[
    ("afs_flock_ev", 0b10),
    ("afs_make_fs_call", 0b10),
    ("afs_make_fs_call1", 0b10),
    ("afs_make_fs_call2", 0b10),
    ("afs_make_fs_calli", 0b10),
    ("afs_protocol_error", 0b1),
    ("bpf_testmod_test_read", 0),
    ("break_lease_block", 0b10),
    ("break_lease_noblock", 0b10),
    ("break_lease_unblock", 0b10),
    ("cachefiles_io_error", 0b1),
    ("cachefiles_lookup", 0b1),
    ("cachefiles_mark_active", 0b1),
    ("cachefiles_mark_failed", 0b1),
    ("cachefiles_mark_inactive", 0b1),
    ("cachefiles_ondemand_close", 0b1),
    ("cachefiles_ondemand_copen", 0b1),
    ("cachefiles_ondemand_cread", 0b1),
    ("cachefiles_ondemand_fd_release", 0b1),
    ("cachefiles_ondemand_fd_write", 0b1),
    ("cachefiles_ondemand_open", 0b1),
    ("cachefiles_ondemand_read", 0b1),
    ("cachefiles_prep_read", 0b1),
    ("cachefiles_rename", 0b1),
    ("cachefiles_unlink", 0b1),
    ("cachefiles_vfs_error", 0b1),
    ("device_pm_callback_start", 0b10),
    ("ext4_mballoc_discard", 0b10),
    ("ext4_mballoc_free", 0b10),
    ("fcntl_setlk", 0b10),
    ("fib_table_lookup", 0b100),
    ("flock_lock_inode", 0b10),
    ("folio_wait_writeback", 0b10),
    ("generic_delete_lease", 0b10),
    ("host1x_cdma_push_gather", 0b10000),
    ("kfree_skb", 0b1000),
    ("locks_remove_posix", 0b10),
    ("mm_collapse_huge_page_isolate", 0b1),
    ("mm_khugepaged_collapse_file", 0b10),
    ("mm_khugepaged_scan_file", 0b10),
    ("mm_khugepaged_scan_pmd", 0b10),
    ("mm_page_alloc", 0b1),
    ("mm_page_alloc_zone_locked", 0b1),
    ("mm_page_pcpu_drain", 0b1),
    ("netfs_failure", 0b10),
    ("posix_lock_inode", 0b10),
    ("qdisc_dequeue", 0b1000),
    ("rxrpc_recvdata", 0b1),
    ("rxrpc_resend", 0b10),
    ("sched_pi_setprio", 0b10),
    ("sched_stick_numa", 0b100),
    ("sched_swap_numa", 0b100),
    ("tcp_send_reset", 0b11),
    ("tegra_dma_tx_status", 0b100),
    ("time_out_leases", 0b10),
    ("tmigr_update_events", 0b1),
    ("writeback_dirty_folio", 0b10),
    ("xprt_get_cong", 0b10),
    ("xprt_put_cong", 0b10),
    ("xprt_release_cong", 0b10),
    ("xprt_reserve_cong", 0b10),
    ("xs_stream_read_data", 0b1),
];

static NULLABLE_6_12: &[(&str, u32)] = &[("sched_process_wait", 0b1)];

static NULLABLE_6_18: &[(&str, u32)] = &[
    ("hugetlbfs_alloc_inode", 0b10),
    ("tcp_sendmsg_locked", 0b100),
    ("xfs_blockgc_flush_all", 0b1),
    ("xfs_blockgc_free_space", 0b10),
    ("xfs_blockgc_start", 0b1),
    ("xfs_blockgc_stop", 0b1),
    ("xfs_blockgc_worker", 0b1),
    ("xfs_btree_overlapped_query_range", 0b100),
    ("xfs_btree_updkeys", 0b100),
    ("xfs_defer_add_item", 0b1),
    ("xfs_defer_cancel_item", 0b1),
    ("xfs_defer_cancel_list", 0b1),
    ("xfs_defer_create_intent", 0b1),
    ("xfs_defer_finish_item", 0b1),
    ("xfs_defer_isolate_paused", 0b1),
    ("xfs_defer_item_pause", 0b1),
    ("xfs_defer_item_unpause", 0b1),
    ("xfs_defer_pending_abort", 0b1),
    ("xfs_defer_pending_finish", 0b1),
    ("xfs_defer_relog_intent", 0b1),
    ("xfs_fs_sync_fs", 0b1),
    ("xfs_inodegc_flush", 0b1),
    ("xfs_inodegc_push", 0b1),
    ("xfs_inodegc_queue", 0b1),
    ("xfs_inodegc_start", 0b1),
    ("xfs_inodegc_stop", 0b1),
    ("xfs_inodegc_throttle", 0b1),
    ("xfs_ioc_free_eofblocks", 0b10),
    ("xfs_map_blocks_alloc", 0b10000),
    ("xfs_map_blocks_found", 0b10000),
];

/// Tracepoint and argument.
static MAY_BE_ERROR: &[(&str, usize)] = &[("cachefiles_lookup", 2), ("mr_integ_alloc", 3)];
static MAY_BE_ERROR_6_12: &[(&str, usize)] = &[("signal_generate", 1), ("signal_deliver", 1)];

/// True if this argument of a tracepoint may be an error number instead of a pointer: it is a number to programs.
pub(crate) fn may_be_error(tracepoint: &str, argument: usize, since_6_18: bool) -> bool {
    let row = &(tracepoint, argument);
    MAY_BE_ERROR.contains(row) || !since_6_18 && MAY_BE_ERROR_6_12.contains(row)
}

/// True for a tracepoint of which the kernel knows what may be null; of a module's others any argument may be.
pub(crate) fn is_known_tracepoint(tracepoint: &str, since_6_18: bool) -> bool {
    let of_version = if since_6_18 { NULLABLE_6_18 } else { NULLABLE_6_12 };
    let mut nullable = NULLABLE.iter().chain(of_version);
    nullable.any(|(name, _)| *name == tracepoint)
        || MAY_BE_ERROR.iter().any(|(name, _)| *name == tracepoint)
        || !since_6_18 && MAY_BE_ERROR_6_12.iter().any(|(name, _)| *name == tracepoint)
}

/// What the context of an iterator gives beside trusted pointers: target, argument, what it is.
pub(crate) static ITER_ARGUMENTS: &[(&str, usize, IterArgument)] = &[
    ("bpf_link", 1, IterArgument::OldOrNull),
    ("bpf_map", 1, IterArgument::TrustedOrNull),
    ("bpf_map_elem", 2, IterArgument::ReadOnlyBuffer),
    ("bpf_map_elem", 3, IterArgument::Buffer),
    ("bpf_prog", 1, IterArgument::OldOrNull),
    ("bpf_sk_storage_map", 2, IterArgument::OldOrNull),
    ("bpf_sk_storage_map", 3, IterArgument::Buffer),
    ("cgroup", 1, IterArgument::TrustedOrNull),
    ("dmabuf", 1, IterArgument::OldOrNull),
    ("ipv6_route", 1, IterArgument::OldOrNull),
    ("kmem_cache", 1, IterArgument::TrustedOrNull),
    ("ksym", 1, IterArgument::OldOrNull),
    ("netlink", 1, IterArgument::OldOrNull),
    ("sockmap", 2, IterArgument::ReadOnlyBuffer),
    ("sockmap", 3, IterArgument::OldOrNull),
    ("task", 1, IterArgument::TrustedOrNull),
    ("task_file", 1, IterArgument::OldOrNull),
    ("task_file", 3, IterArgument::OldOrNull),
    ("task_vma", 1, IterArgument::OldOrNull),
    ("task_vma", 2, IterArgument::OldOrNull),
    ("tcp", 1, IterArgument::TrustedOrNull),
    ("udp", 1, IterArgument::TrustedOrNull),
    ("unix", 1, IterArgument::OldOrNull),
];

/// What an argument of an iterator is, where it is no trusted pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IterArgument {
    /// A pointer of which nothing is known but that it may be null.
    OldOrNull,
    /// A trusted pointer or null.
    TrustedOrNull,
    /// Memory of a size that is checked when the iterator is made, or null.
    Buffer,
    /// The same, not to be written.
    ReadOnlyBuffer,
}

/// Hooks of security modules (without `bpf_lsm_`) that programs cannot attach to.
pub(crate) static LSM_DISABLED: &[&str] = &[
    "vm_enough_memory",
    "inode_need_killpriv",
    "inode_getsecurity",
    "inode_listsecurity",
    "inode_copy_up_xattr",
    "getselfattr",
    "getprocattr",
    "setprocattr",
    "key_getsecurity",
    "audit_rule_match",
    "xfrm_decode_session",
    "ismaclabel",
];

/// Hooks that may sleep.
#[rustfmt::skip]
pub(crate) static LSM_SLEEPABLE: &[&str] = &[
    "bpf", "bpf_map", "bpf_map_create", "bpf_map_free", "bpf_prog", "bpf_prog_load", "bpf_token_capable",
    "bpf_token_cmd", "bpf_token_create", "bpf_token_free", "bprm_check_security", "bprm_committed_creds",
    "bprm_committing_creds", "bprm_creds_for_exec", "bprm_creds_from_file", "capget", "capset", "cred_prepare",
    "current_getsecid_subj", "file_ioctl", "file_lock", "file_open", "file_post_open", "file_receive", "inode_create",
    "inode_free_security", "inode_getattr", "inode_getxattr", "inode_mknod", "inode_need_killpriv",
    "inode_post_setxattr", "inode_readlink", "inode_rename", "inode_rmdir", "inode_setattr", "inode_setxattr",
    "inode_symlink", "inode_unlink", "kernel_module_request", "kernel_read_file", "kernfs_init_security", "mmap_file",
    "netlink_send", "path_chmod", "path_chown", "path_link", "path_mkdir", "path_notify", "path_rename", "path_rmdir",
    "path_symlink", "path_truncate", "path_unlink", "release_secctx", "sb_alloc_security", "sb_eat_lsm_opts",
    "sb_kern_mount", "sb_mount", "sb_remount", "sb_set_mnt_opts", "sb_show_options", "sb_statfs", "sb_umount",
    "settime", "socket_accept", "socket_bind", "socket_connect", "socket_create", "socket_getpeername",
    "socket_getpeersec_dgram", "socket_getsockname", "socket_getsockopt", "socket_listen", "socket_post_create",
    "socket_recvmsg", "socket_sendmsg", "socket_shutdown", "socket_socketpair", "syslog", "task_alloc",
    "task_getsecid_obj", "task_prctl", "task_setscheduler", "userns_create",
];

/// Hooks whose arguments may be on their way out.
#[rustfmt::skip]
pub(crate) static LSM_UNTRUSTED: &[&str] = &[
    "bpf_map_free", "bpf_prog_free", "file_alloc_security", "file_free_security", "sk_alloc_security",
    "sk_free_security", "task_free",
];

/// Hooks that return a truth value; the others return 0 or an error number.
pub(crate) static LSM_BOOL: &[&str] = &["xfrm_state_pol_flow_match", "audit_rule_known", "inode_xattr_skipcap"];

/// Hooks of control groups where socket options can be set: with the socket locked, or still private.
pub(crate) static LSM_SOCKOPT: &[&str] =
    &["sock_graft", "inet_csk_clone", "inet_conn_established", "socket_post_create", "socket_socketpair"];

/// Functions that tracing programs must not be called from.
pub(crate) static TRACING_DENIED: &[&str] = &[
    "migrate_disable",
    "migrate_enable",
    "rcu_read_unlock_strict",
    "preempt_count_add",
    "preempt_count_sub",
    "__rcu_read_lock",
    "__rcu_read_unlock",
];

/// Functions that do not return.
pub(crate) static NO_RETURN: &[&str] = &[
    "__ia32_sys_exit",
    "__ia32_sys_exit_group",
    "__kunit_abort",
    "kunit_try_catch_throw",
    "__module_put_and_kthread_exit",
    "__x64_sys_exit",
    "__x64_sys_exit_group",
    "do_exit",
    "do_group_exit",
    "kthread_complete_and_exit",
    "kthread_exit",
    "make_task_dead",
];

/// Functions where `bpf_d_path` can be called.
pub(crate) static D_PATH: &[&str] = &[
    "security_file_permission",
    "security_inode_getattr",
    "security_file_open",
    "security_path_truncate",
    "vfs_truncate",
    "vfs_fallocate",
    "dentry_open",
    "vfs_getattr",
    "filp_close",
];

/// True for functions whose result can be made an error (`ALLOW_ERROR_INJECTION`), as far as they are known: system
/// calls, and what is listed here.
pub(crate) fn injects_errors(function: &str) -> bool {
    ["__x64_sys_", "__ia32_sys_", "__x64_compat_sys_", "__ia32_compat_sys_"].iter().any(|p| function.starts_with(p))
        || ERROR_INJECTION.contains(&function)
}

/// Functions besides system calls whose result can be made an error.
static ERROR_INJECTION: &[&str] = &[
    "__filemap_add_folio",
    "btrfs_should_cancel_balance",
    "open_ctree",
    "page_pool_alloc_pages",
    "should_fail_alloc_page",
    "should_fail_bio",
    "should_failslab",
];

/// Of those, the ones that are also called where nothing may sleep.
pub(crate) static INJECTS_WITHOUT_SLEEP: &[&str] =
    &["__filemap_add_folio", "should_fail_alloc_page", "should_failslab"];

/// Functions of modules whose result can be made an error: module, function. Those of the kernel's test module, 6.12.
pub(crate) static MODULES_INJECT: &[(&str, &str)] =
    &[("bpf_testmod", "bpf_testmod_test_read"), ("bpf_testmod", "bpf_testmod_test_write")];

/// Kernel functions made for tests of `fmod_ret` and others whose result programs may change; with whether they sleep.
pub(crate) static MODIFY_RETURN: &[(&str, bool)] = &[
    ("bpf_modify_return_test", false),
    ("bpf_modify_return_test2", false),
    ("bpf_modify_return_test_tp", false),
    ("bpf_fentry_test1", true),
    ("bpf_rstat_flush", false),
    ("update_socket_protocol", false),
];

/// Members of operations that no program can implement.
pub(crate) static NOT_IMPLEMENTABLE: &[(&str, &str)] = &[("tcp_congestion_ops", "get_info")];

/// Operations that may sleep; of the structs named here no others may, of other structs all may.
pub(crate) static SLEEPING_MEMBERS: &[(&str, &[&str])] = &[
    ("bpf_dummy_ops", &["test_sleepable"]),
    (
        "sched_ext_ops",
        &["init_task", "cgroup_init", "cgroup_exit", "cgroup_prep_move", "cpu_online", "cpu_offline", "init", "exit"],
    ),
    ("hid_bpf_ops", &["hid_rdesc_fixup", "hid_hw_request", "hid_hw_output_report"]),
];

/// The kernel's own struct behind the context of a program type.
pub(crate) fn kernel_context(prog: ProgType) -> Option<&'static str> {
    Some(match prog {
        ProgType::SocketFilter
        | ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb => "sk_buff",
        ProgType::Xdp => "xdp_buff",
        ProgType::CgroupSock => "sock",
        ProgType::CgroupSockAddr => "bpf_sock_addr_kern",
        ProgType::SockOps => "bpf_sock_ops_kern",
        ProgType::SkMsg => "sk_msg",
        ProgType::FlowDissector => "bpf_flow_dissector",
        ProgType::Kprobe => "pt_regs",
        ProgType::PerfEvent => "bpf_perf_event_data_kern",
        ProgType::CgroupDevice => "bpf_cgroup_dev_ctx",
        ProgType::CgroupSysctl => "bpf_sysctl_kern",
        ProgType::CgroupSockopt => "bpf_sockopt_kern",
        ProgType::SkReuseport => "sk_reuseport_kern",
        ProgType::SkLookup => "bpf_sk_lookup_kern",
        ProgType::Netfilter => "bpf_nf_ctx",
        _ => return None,
    })
}
