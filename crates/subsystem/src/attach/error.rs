//! Why a probe or a process was refused.

use serde::{Deserialize, Serialize};
use skep_ebpf::errno::Errno;

/// Why a process, or one probe of it, cannot be attached to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no process with that id.
    #[error("no process with pid {pid}")]
    NoSuchProcess {
        /** The id asked for. */
        pid: u32,
    },
    /// The process belongs to somebody else.
    #[error(
        "process {pid} ({command}) belongs to uid {uid}, skep runs as uid {ours}: run skep as uid {uid} or as root"
    )]
    OtherUser {
        /** Target. */
        pid: u32,
        /** Its name. */
        command: String,
        /** Its owner. */
        uid: u32,
        /** Our uid. */
        ours: u32,
    },
    /// The process has made itself unreadable.
    #[error(
        "process {pid} ({command}) is not dumpable (setuid program, file capabilities, or PR_SET_DUMPABLE 0), so the kernel forbids tracing it: start it as `skep trace … -- COMMAND`, or run skep as root"
    )]
    NotDumpable {
        /** Target. */
        pid: u32,
        /** Its name. */
        command: String,
    },
    /// Another tracer is attached.
    #[error("process {pid} is already traced by {name} (pid {tracer}): detach that first")]
    AlreadyTraced {
        /** Target. */
        pid: u32,
        /** The tracer. */
        tracer: u32,
        /** Its name. */
        name: String,
    },
    /// Another skep session is attached.
    #[error("process {pid} is already traced by another skep session; end that first")]
    AlreadyProbed {
        /** Target. */
        pid: u32,
    },
    /// The yama security module forbids it.
    #[error("the yama security module (kernel.yama.ptrace_scope={scope}) forbids tracing process {pid}: {advice}")]
    Yama {
        /** Target. */
        pid: u32,
        /** Value of the sysctl. */
        scope: u32,
        /** What to do. */
        advice: String,
    },
    /// The kernel refused `ptrace` for another reason.
    #[error("the kernel refuses ptrace on process {pid} ({command}): {errno}")]
    PtraceDenied {
        /** Target. */
        pid: u32,
        /** Its name. */
        command: String,
        /** Errno. */
        errno: String,
    },
    /// The kind of process cannot be traced.
    #[error("process {pid} ({command}) cannot be traced: {reason}")]
    Unsuitable {
        /** Target. */
        pid: u32,
        /** Its name. */
        command: String,
        /** Why. */
        reason: String,
    },
    /// A thread does not come to a stop.
    #[error("thread {tid} of process {pid} does not stop (state {state}); try again later")]
    ThreadStuck {
        /** Target. */
        pid: u32,
        /** Thread. */
        tid: u32,
        /** State letter of /proc. */
        state: char,
    },
    /// A thread of the process is under a seccomp filter.
    #[error(
        "process {pid}, or a thread of it, is under a seccomp filter, which may end it for the system calls that this needs there: \
         probes that it has can be switched on and off and taken away, no more"
    )]
    Confined {
        /** Target. */
        pid: u32,
    },
    /// The process ended meanwhile.
    #[error("process {pid} ended")]
    Exited {
        /** Target. */
        pid: u32,
    },
    /// The process is not attached.
    #[error("process {pid} is not attached")]
    NotAttached {
        /** Target. */
        pid: u32,
    },
    /// No module has that symbol.
    #[error("no function `{symbol}` in {place}{}", hint(near))]
    NoSymbol {
        /** Name asked for. */
        symbol: String,
        /** Where it was looked for. */
        place: String,
        /** Nearest names. */
        near: Vec<String>,
    },
    /// No such module is mapped.
    #[error("process {pid} has not loaded `{module}`{}", hint(near))]
    NoModule {
        /** Target. */
        pid: u32,
        /** Module asked for. */
        module: String,
        /** Nearest names. */
        near: Vec<String>,
    },
    /// No code makes the system call.
    #[error("`{call}`: nothing in the program or its libraries makes that system call")]
    NoSyscall {
        /// The tracepoint.
        call: String,
    },
    /// The symbol is not one to probe.
    #[error("`{symbol}` in {module} cannot be probed: {reason}")]
    Unprobeable {
        /** Symbol. */
        symbol: String,
        /** Module. */
        module: String,
        /** Why. */
        reason: String,
    },
    /// The offset lies inside an instruction.
    #[error(
        "`{symbol}` in {module} lies inside an instruction; the nearest boundaries are +{before:#x} and +{after:#x}"
    )]
    MidInstruction {
        /** SYM+OFF. */
        symbol: String,
        /** Module. */
        module: String,
        /** Boundary before. */
        before: u64,
        /** Boundary after. */
        after: u64,
    },
    /// No jump fits at the place.
    #[error("`{symbol}` in {module} at {address:#x} cannot take a jump: {reason}")]
    NoJump {
        /** Symbol. */
        symbol: String,
        /** Module. */
        module: String,
        /** Address. */
        address: u64,
        /** Why. */
        reason: String,
    },
    /// No room for code near the module.
    #[error("no free address range of {bytes} bytes within 2 GiB of {module}")]
    NoRoom {
        /** Module. */
        module: String,
        /** Bytes needed. */
        bytes: u64,
    },
    /// More probes at one place than a site takes.
    #[error("`{symbol}` at {address:#x} has {limit} probes already, which is the most that one place takes")]
    TooManyLinks {
        /** Symbol. */
        symbol: String,
        /** Address. */
        address: u64,
        /** The limit. */
        limit: usize,
    },
    /// Return probes need the target's unwinder to know their stubs.
    #[error("return probes in process {pid} are not possible now: {reason}")]
    Unwinder {
        /** Target. */
        pid: u32,
        /** Why. */
        reason: String,
    },
    /// A system call made in the target failed.
    #[error("in process {pid}, {call} failed: {errno}")]
    Remote {
        /** Target. */
        pid: u32,
        /** The call. */
        call: String,
        /** Errno. */
        errno: String,
    },
    /// A system call of ours failed.
    #[error("{what}: {errno}")]
    Os {
        /** What was tried. */
        what: String,
        /** Errno. */
        errno: String,
    },
    /// The agent's code cannot be used.
    #[error("the agent's code is not usable: {reason}")]
    Agent {
        /** Why. */
        reason: String,
    },
    /// The injector process is gone or answered nonsense.
    #[error("the injector process failed: {reason}")]
    Injector {
        /** Why. */
        reason: String,
    },
}

fn hint(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("; did you mean `{one}`?"),
        many => format!("; the nearest are `{}`", many.join("`, `")),
    }
}

impl AttachError {
    /// An [`AttachError::Os`] from `errno`.
    pub(crate) fn last_os(what: impl Into<String>) -> Self {
        Self::os(what, &std::io::Error::last_os_error())
    }

    /// An [`AttachError::Os`] from an I/O error.
    pub(crate) fn os(what: impl Into<String>, error: &std::io::Error) -> Self {
        AttachError::Os { what: what.into(), errno: error.to_string() }
    }

    /// True if another image of the same process may well have what is missing here.
    pub fn is_absence(&self) -> bool {
        matches!(self, AttachError::NoSymbol { .. } | AttachError::NoModule { .. } | AttachError::NoSyscall { .. })
    }
}

/// An errno as messages show it.
pub(crate) fn errno_text(errno: i32) -> String {
    let known = Errno(errno);
    match known.name() {
        "errno" => std::io::Error::from_raw_os_error(errno).to_string(),
        name => format!("{name} ({})", known.text()),
    }
}
