//! Limits of a kernel, as data.

use skep_ebpf::uapi::{AttachType, ProgType};

/// What a kernel version permits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelProfile {
    /// Name, as `--kernel` takes it.
    pub name: &'static str,
    /// Most instructions of a program.
    pub max_insns: usize,
    /// Most instructions on all paths together.
    pub max_processed: u64,
    /// The last helper by number.
    pub last_helper: u32,
    /// Most branches open at once.
    pub max_pending: usize,
    /// Most frames active at once.
    pub max_frames: usize,
    /// CPUs that `bpf_get_smp_processor_id` may name; the verdict of programs that index by it depends on them.
    pub cpus: u32,
    /// `bpf_probe_write_user` and `bpf_override_return` can be called; a locked-down kernel refuses them.
    pub host_changes: bool,
    /// Errors can be injected into functions that allow it, as `bpf_override_return` does.
    pub error_injection: bool,
    /// Major and minor number: rules came with versions.
    pub version: (u16, u16),
}

impl KernelProfile {
    /// Linux 6.18.
    pub const LINUX_6_18: KernelProfile = KernelProfile {
        name: "6.18",
        max_insns: 1_000_000,
        max_processed: 1_000_000,
        last_helper: u32::MAX,
        max_pending: 8192,
        max_frames: 8,
        cpus: 8192,
        host_changes: false,
        error_injection: false,
        version: (6, 18),
    };

    /// Linux 6.12.
    pub const LINUX_6_12: KernelProfile =
        KernelProfile { name: "6.12", host_changes: true, version: (6, 12), ..KernelProfile::LINUX_6_18 };

    /// Linux 4.17: its sizes, instructions, helpers and references, no loops and no access to the stack at variable
    /// offsets. What it follows less closely than later kernels (the bounds of numbers on the stack, of 32-bit halves) is
    /// judged as these do.
    pub const LINUX_4_17: KernelProfile = KernelProfile {
        name: "4.17",
        max_insns: 4096,
        max_processed: 131_072,
        last_helper: 64,
        max_pending: 1024,
        host_changes: true,
        version: (4, 17),
        ..KernelProfile::LINUX_6_18
    };

    /// Every profile.
    pub const ALL: &'static [KernelProfile] =
        &[KernelProfile::LINUX_6_18, KernelProfile::LINUX_6_12, KernelProfile::LINUX_4_17];

    /// True from this version on.
    pub fn since(&self, major: u16, minor: u16) -> bool {
        self.version >= (major, minor)
    }

    /// Pointers to plain data that are found in kernel objects can be read through; before 6.17 they are numbers.
    pub fn untrusted_memory(&self) -> bool {
        self.since(6, 17)
    }

    /// Functions that are called back, and what they call, may have `LD_ABS` and `LD_IND`.
    pub(crate) fn packet_loads_in_callbacks(&self) -> bool {
        self.since(6, 18)
    }

    /// Attach types that came later are taken for any other.
    pub(crate) fn knows(&self, attach: AttachType) -> bool {
        attach != AttachType::TraceUprobeSession || self.since(6, 13)
    }

    /// What is known of a number is known of it negated, or with its bytes swapped.
    pub(crate) fn follows_negation(&self) -> bool {
        self.since(6, 18)
    }

    /// A number that is all ones or zero goes two ways where it meets a mask.
    pub(crate) fn splits_signs(&self) -> bool {
        self.since(6, 18)
    }

    /// Numbers stay linked over subtractions, 32-bit sums, and sums with what is negative.
    pub(crate) fn links_all_sums(&self) -> bool {
        self.since(6, 18)
    }

    /// Loads that acquire and stores that release, of all sizes.
    pub(crate) fn has_ordered_accesses(&self) -> bool {
        self.since(6, 15)
    }

    /// True unless programs of this type got the helper later.
    pub(crate) fn has_helper(&self, helper: u32, prog: ProgType) -> bool {
        const GET_CURRENT_COMM: u32 = 16;
        const GET_CGROUP_CLASSID: u32 = 17;
        let cgroup = matches!(
            prog,
            ProgType::CgroupSock
                | ProgType::CgroupSockAddr
                | ProgType::CgroupSysctl
                | ProgType::CgroupSockopt
                | ProgType::CgroupDevice
        );
        let tracer = matches!(
            prog,
            ProgType::Kprobe
                | ProgType::Tracepoint
                | ProgType::PerfEvent
                | ProgType::RawTracepoint
                | ProgType::RawTracepointWritable
                | ProgType::Tracing
                | ProgType::Lsm
                | ProgType::Syscall
                | ProgType::StructOps
        );
        match helper {
            _ if self.since(6, 18) => true,
            GET_CGROUP_CLASSID => !tracer,
            GET_CURRENT_COMM => tracer || cgroup,
            _ => true,
        }
    }

    /// The profile with this name.
    pub fn by_name(name: &str) -> Option<KernelProfile> {
        KernelProfile::ALL.iter().find(|p| p.name == name).copied()
    }
}

impl Default for KernelProfile {
    fn default() -> KernelProfile {
        KernelProfile::LINUX_6_18
    }
}
