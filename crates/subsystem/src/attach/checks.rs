//! What cannot be traced, and what to do about it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use super::AttachError;
use super::error::errno_text;
use super::injector::NAME as INJECTOR;
use super::procfs::{self, Status};

/// Refuses a process that cannot be traced, before anything is done to it.
pub fn check(pid: u32) -> Result<(), AttachError> {
    let mut status = process_status(pid)?;
    // The injector of a session that was just killed is still cleaning up. It may end at any moment: what is judged below is
    // the same reading as was looked at here.
    let patience = Instant::now() + Duration::from_secs(5);
    while Instant::now() < patience && is_other_injector(status.tracer) {
        std::thread::sleep(Duration::from_millis(5));
        status = process_status(pid)?;
    }
    let unsuitable =
        |reason: &str| AttachError::Unsuitable { pid, command: status.name.clone(), reason: reason.to_owned() };
    if pid == std::process::id() || pid == parent_id() {
        return Err(unsuitable("it is skep itself"));
    }
    if pid == 1 {
        return Err(unsuitable("it is init, and the system ends if it does"));
    }
    if status.state == 'Z' || status.state == 'X' {
        return Err(unsuitable("it has ended already (zombie)"));
    }
    if status.kernel_thread {
        return Err(unsuitable("it is a kernel thread; skep cannot see inside the kernel"));
    }
    check_tracer(pid, &status)?;
    check_owner(pid, &status)?;
    check_image(pid, &status)
}

/// Refuses an image that cannot be attached to, whoever runs it.
pub fn check_image(pid: u32, status: &Status) -> Result<(), AttachError> {
    if status.seccomp != 0 && !has_our_filters(pid, status) {
        return Err(AttachError::Unsuitable {
            pid,
            command: status.name.clone(),
            reason:
                "it runs under a seccomp filter that skep does not run under; the filter may kill it for the system \
                     calls that attaching makes there: run skep in the same container or sandbox"
                    .into(),
        });
    }
    if status.shadow_stack {
        return Err(AttachError::Unsuitable {
            pid,
            command: status.name.clone(),
            reason: "it runs with a shadow stack, which is not supported yet".into(),
        });
    }
    check_executable(pid, status)
}

/// May a system call end this thread, or this process's first one, by a seccomp filter that the calling process is not under?
pub fn is_confined(tid: u32) -> bool {
    procfs::status(tid).is_ok_and(|status| status.seccomp != 0 && !has_our_filters(tid, &status))
}

/// Is the process under the filters that this process is under (as in one container)? What they allow here, which is all that
/// attaching does, they allow there. Filters have no names: as many of them, and the same control group.
fn has_our_filters(pid: u32, status: &Status) -> bool {
    let group = |pid: u32| fs::read(format!("/proc/{pid}/cgroup")).ok();
    let ours = procfs::status(std::process::id());
    ours.is_ok_and(|ours| ours.filters != 0 && (ours.seccomp, ours.filters) == (status.seccomp, status.filters))
        && group(pid).is_some_and(|theirs| group(std::process::id()) == Some(theirs))
}

/// Is a process or thread traced by an injector that is not this process?
pub fn traced_by_other_injector(tid: u32) -> bool {
    is_other_injector(procfs::status(tid).map_or(0, |status| status.tracer))
}

/// Is a tracer an injector that is not this process? One that has ended since, and traces no more, is taken for one.
fn is_other_injector(tracer: u32) -> bool {
    tracer != 0 && tracer != std::process::id() && procfs::status(tracer).map_or(true, |tracer| tracer.name == INJECTOR)
}

fn process_status(pid: u32) -> Result<Status, AttachError> {
    let status = procfs::status(pid)?;
    match status.tgid == pid {
        true => Ok(status),
        // /proc/TID answers too, though it is not listed.
        false => Err(AttachError::Unsuitable {
            pid,
            command: status.name,
            reason: format!("it is a thread of process {}", status.tgid),
        }),
    }
}

fn check_tracer(pid: u32, status: &Status) -> Result<(), AttachError> {
    if status.tracer == 0 || status.tracer == std::process::id() {
        return Ok(());
    }
    let name = procfs::status(status.tracer).map_or_else(|_| "a process".into(), |tracer| tracer.name);
    Err(AttachError::AlreadyTraced { pid, tracer: status.tracer, name })
}

fn check_owner(pid: u32, status: &Status) -> Result<(), AttachError> {
    let ours = effective_uid();
    if ours == 0 {
        return Ok(());
    }
    if let Some(&uid) = status.uids.iter().find(|&&uid| uid != ours) {
        return Err(AttachError::OtherUser { pid, command: status.name.clone(), uid, ours });
    }
    // /proc/PID of a process that is not dumpable belongs to root.
    let owner = fs::metadata(format!("/proc/{pid}")).map_err(|_| AttachError::NoSuchProcess { pid })?.uid();
    match owner == ours {
        true => Ok(()),
        false => Err(AttachError::NotDumpable { pid, command: status.name.clone() }),
    }
}

/// Looks at the program that the process runs.
fn check_executable(pid: u32, status: &Status) -> Result<(), AttachError> {
    let unsuitable = |reason: String| AttachError::Unsuitable { pid, command: status.name.clone(), reason };
    let path = format!("/proc/{pid}/exe");
    let file = match File::open(&path) {
        Ok(file) => file,
        // A program that may be run but not read.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(AttachError::NotDumpable { pid, command: status.name.clone() });
        }
        Err(error) => return Err(AttachError::os(format!("opening {path}"), &error)),
    };
    let mut head = [0u8; 20];
    file.read_exact_at(&mut head, 0).map_err(|e| AttachError::os(format!("reading {path}"), &e))?;
    match (head[4], u16::from_le_bytes([head[18], head[19]])) {
        (2, 62) => {}
        (1, 62) => return Err(unsuitable("it is an x32 program".into())),
        (1, 3) => return Err(unsuitable("it is a 32-bit program".into())),
        (_, machine) => return Err(unsuitable(format!("it is a program for another machine (ELF machine {machine})"))),
    }
    let mode = file.metadata().map(|m| (m.permissions().mode(), m.uid()));
    if let Ok((mode, uid)) = mode
        && mode & 0o4000 != 0
        && effective_uid() != 0
        && uid != effective_uid()
    {
        return Err(unsuitable("it is a setuid program".into()));
    }
    Ok(())
}

/// Turns the refusal of `PTRACE_SEIZE` into its reason.
pub fn explain(pid: u32, error: &io::Error) -> AttachError {
    let Ok(status) = procfs::status(pid) else { return AttachError::NoSuchProcess { pid } };
    if error.raw_os_error() == Some(libc::ESRCH) {
        return AttachError::Exited { pid };
    }
    if let Err(reason) = check_tracer(pid, &status).and_then(|()| check_owner(pid, &status)) {
        return reason;
    }
    match yama_scope() {
        1 => AttachError::Yama {
            pid,
            scope: 1,
            advice: "only a program started by skep may be traced: use `skep trace … -- COMMAND`, let the program \
                     call prctl(PR_SET_PTRACER), or set the sysctl to 0"
                .into(),
        },
        2 => AttachError::Yama { pid, scope: 2, advice: "only root may trace: run skep as root".into() },
        3 => AttachError::Yama { pid, scope: 3, advice: "nobody may trace until the system is restarted".into() },
        _ => AttachError::PtraceDenied {
            pid,
            command: status.name,
            errno: errno_text(error.raw_os_error().unwrap_or(libc::EPERM)),
        },
    }
}

fn yama_scope() -> u32 {
    let mut text = String::new();
    File::open("/proc/sys/kernel/yama/ptrace_scope")
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_or(0, |_| text.trim().parse().unwrap_or(0))
}

fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn parent_id() -> u32 {
    rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32)
}
