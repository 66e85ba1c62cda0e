//! What `/proc` says about a process.

use std::fs;
use std::ops::Range;

use super::AttachError;

/// A line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Addresses.
    pub range: Range<u64>,
    /// Readable, writable, executable, shared.
    pub perms: [bool; 4],
    /// Offset in the file.
    pub offset: u64,
    /// Inode of the file, 0 if none.
    pub inode: u64,
    /// Path or `[name]`; empty for anonymous memory.
    pub name: String,
}

impl Mapping {
    /// May its bytes be run?
    pub fn executable(&self) -> bool {
        self.perms[2]
    }

    /// Is it a mapping of a file by path?
    pub fn is_file(&self) -> bool {
        self.name.starts_with('/') && self.inode != 0
    }

    fn parse(line: &str) -> Option<Mapping> {
        // The name may hold spaces: take the five fields before it one by one.
        let (range, rest) = line.split_once(' ')?;
        let (perms, rest) = rest.split_once(' ')?;
        let (offset, rest) = rest.split_once(' ')?;
        let (_device, rest) = rest.split_once(' ')?;
        let (inode, name) = rest.split_once(' ').unwrap_or((rest, ""));
        let (start, end) = range.split_once('-')?;
        let mut flags = perms.bytes();
        let mut flag = |set: u8| flags.next() == Some(set);
        Some(Mapping {
            range: u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?,
            perms: [flag(b'r'), flag(b'w'), flag(b'x'), flag(b's')],
            offset: u64::from_str_radix(offset, 16).ok()?,
            inode: inode.parse().ok()?,
            name: name.trim_start().to_owned(),
        })
    }
}

fn gone(pid: u32, what: &str, error: &std::io::Error) -> AttachError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => AttachError::NoSuchProcess { pid },
        _ => AttachError::os(format!("reading /proc/{pid}/{what}"), error),
    }
}

/// The mappings of a process, by address.
pub fn maps(pid: u32) -> Result<Vec<Mapping>, AttachError> {
    let bytes = fs::read(format!("/proc/{pid}/maps")).map_err(|e| gone(pid, "maps", &e))?;
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(Mapping::parse).collect())
}

/// The threads of a process.
pub fn tasks(pid: u32) -> Result<Vec<i32>, AttachError> {
    let dir = fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| gone(pid, "task", &e))?;
    Ok(dir.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The fields of `/proc/PID/status` that matter here.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Command name.
    pub name: String,
    /// State letter.
    pub state: char,
    /// Thread group, which is the process.
    pub tgid: u32,
    /// The parent.
    pub parent: u32,
    /// Real, effective, saved, file-system uid.
    pub uids: [u32; 4],
    /// The same of groups.
    pub gids: [u32; 4],
    /// The tracer, 0 if none.
    pub tracer: u32,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Number of seccomp filters.
    pub filters: u32,
    /// True for a kernel thread.
    pub kernel_thread: bool,
    /// Does the processor check return addresses against a second stack?
    pub shadow_stack: bool,
    /// Masks of signals: pending for the thread, pending for the process, blocked, ignored.
    pub signals: [u64; 4],
}

/// Reads `/proc/PID/status` (or a thread's, by its own id).
pub fn status(pid: u32) -> Result<Status, AttachError> {
    let bytes = fs::read(format!("/proc/{pid}/status")).map_err(|e| gone(pid, "status", &e))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut status = Status { kernel_thread: true, ..Status::default() };
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        let number = || value.parse().unwrap_or(0);
        let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
        match key {
            "Name" => status.name = value.to_owned(),
            "State" => status.state = value.chars().next().unwrap_or('?'),
            "Tgid" => status.tgid = number(),
            "PPid" => status.parent = number(),
            "TracerPid" => status.tracer = number(),
            "Seccomp" => status.seccomp = number(),
            "Seccomp_filters" => status.filters = number(),
            "VmSize" => status.kernel_thread = false,
            "x86_Thread_features" => status.shadow_stack = value.split(' ').any(|feature| feature == "shstk"),
            "SigPnd" => status.signals[0] = mask(),
            "ShdPnd" => status.signals[1] = mask(),
            "SigBlk" => status.signals[2] = mask(),
            "SigIgn" => status.signals[3] = mask(),
            "Uid" => ids(&mut status.uids, value),
            "Gid" => ids(&mut status.gids, value),
            _ => {}
        }
    }
    Ok(status)
}

fn ids(to: &mut [u32; 4], value: &str) {
    for (slot, id) in to.iter_mut().zip(value.split_ascii_whitespace()) {
        *slot = id.parse().unwrap_or(u32::MAX);
    }
}

/// State letter of a thread, `'X'` if it is gone.
pub fn thread_state(pid: u32, tid: i32) -> char {
    fs::read(format!("/proc/{pid}/task/{tid}/stat"))
        .ok()
        .and_then(|bytes| {
            let after = bytes.iter().rposition(|&b| b == b')')?;
            bytes.get(after.checked_add(2)?).map(|&b| char::from(b))
        })
        .unwrap_or('X')
}

/// Something that changes when the process runs `exec`: when it started and where its stack is. `None` if it has ended, and
/// has no stack any more.
pub fn image_identity(pid: u32) -> Option<(u64, u64)> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return None;
    }
    // Fields 22 (starttime) and 28 (startstack) of proc(5); the list begins at field 3.
    Some((fields.get(19)?.parse().ok()?, fields.get(25)?.parse().ok()?))
}

/// The auxiliary vector.
#[derive(Clone, Debug)]
pub struct Auxv(Vec<(u64, u64)>);

impl Auxv {
    /// Reads it.
    pub fn read(pid: u32) -> Result<Auxv, AttachError> {
        let bytes = fs::read(format!("/proc/{pid}/auxv")).map_err(|e| gone(pid, "auxv", &e))?;
        let word = |chunk: &[u8]| chunk.try_into().map_or(0, u64::from_le_bytes);
        Ok(Auxv(
            bytes.chunks_exact(16).map(|pair| pair.split_at(8)).map(|(key, value)| (word(key), word(value))).collect(),
        ))
    }

    /// The value of a key.
    pub fn get(&self, key: u64) -> Option<u64> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
}

/// Keys of the auxiliary vector.
pub mod at {
    /// Address of the dynamic linker, 0 if there is none.
    pub const BASE: u64 = 7;
    /// Address of the executable's entry.
    pub const ENTRY: u64 = 9;
    /// Processor features; bit 1: `rdfsbase`.
    pub const HWCAP2: u64 = 26;
}

/// Can programs read the clock without the kernel? With another clock source the vDSO asks it: a system call in disguise.
pub fn reads_clock() -> bool {
    match fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource") {
        Ok(name) => ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"].contains(&name.trim()),
        // A container need not have the folder.
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps() {
        let line = "7f12c0a00000-7f12c0a26000 r-xp 00026000 fe:01 1318                       /usr/lib/a b.so (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.range, 0x7f12c0a00000..0x7f12c0a26000);
        assert_eq!((mapping.perms, mapping.offset, mapping.inode), ([true, false, true, false], 0x26000, 1318));
        assert_eq!(mapping.name, "/usr/lib/a b.so (deleted)");
        assert_eq!(Mapping::parse("1000-2000 rw-s 00000000 00:00 0 ").unwrap().name, "");
        for bad in ["", "1000", "1000-2000", "x-y rw-p 0 0 0", "1000-2000 rw-p"] {
            assert_eq!(Mapping::parse(bad), None);
        }
    }

    #[test]
    fn own_process() {
        let pid = std::process::id();
        let status = status(pid).unwrap();
        assert_eq!((status.tgid, status.kernel_thread), (pid, false));
        assert!(maps(pid).unwrap().iter().any(|m| m.name == "[stack]"));
        assert!(tasks(pid).unwrap().contains(&(pid as i32)));
        assert!(image_identity(pid).is_some());
        assert!(Auxv::read(pid).unwrap().get(at::ENTRY).is_some());
    }
}
