//! Files that a loader looks at and that are the subsystem's own: the tree of pins, and what tells of the machine.

use skep_ebpf::Errno;

use super::Subsystem;

/// What statfs(2) says a file system is.
const BPF_FS: u64 = 0xcafe_4a11;
const SYSFS: u64 = 0x6265_6572;
const TRACE_FS: u64 = 0x7472_6163;
/// Sizes of `struct statfs` and `struct stat` (x86-64).
const STATFS: usize = 120;
const STAT: usize = 144;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A pinned object.
    Pin,
    /// A file with these bytes.
    Text(Vec<u8>),
    /// A file of the tracefs with these bytes, to which may be written.
    Control(Vec<u8>),
}

impl Node {
    fn mode(&self) -> u32 {
        match self {
            Node::Folder => 0o041_777,
            Node::Pin => 0o100_600,
            Node::Text(_) => 0o100_444,
            Node::Control(_) => 0o100_640,
        }
    }

    /// `struct stat`.
    pub fn stat(&self) -> Vec<u8> {
        let size = match self {
            Node::Text(bytes) | Node::Control(bytes) => bytes.len() as u64,
            _ => 0,
        };
        let mut stat = vec![0; STAT];
        let mut put = |at: usize, bytes: &[u8]| stat[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &1u64.to_ne_bytes());
        put(24, &self.mode().to_ne_bytes());
        put(28, &rustix::process::getuid().as_raw().to_ne_bytes());
        put(32, &rustix::process::getgid().as_raw().to_ne_bytes());
        put(48, &size.to_ne_bytes());
        put(56, &4096u64.to_ne_bytes());
        stat
    }
}

/// The path without doubled slashes and `.`; `None` if it is relative or goes upwards.
pub(super) fn normal(path: &str) -> Option<String> {
    let mut clean = String::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part => {
                clean.push('/');
                clean.push_str(part);
            }
        }
    }
    Some(clean)
}

fn in_bpffs(path: &str) -> bool {
    path.strip_prefix("/sys/fs/bpf").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Subsystem {
    /// What stands at a path of ours: `None` if the path is none.
    pub fn node(&self, path: &str) -> Option<Result<Node, Errno>> {
        let path = normal(path)?;
        if in_bpffs(&path) {
            let pins = self.pinned();
            let below = format!("{path}/");
            return Some(match &path {
                p if pins.contains(p) => Ok(Node::Pin),
                p if p == "/sys/fs/bpf" || pins.iter().any(|pin| pin.starts_with(&below)) => Ok(Node::Folder),
                _ => Err(Errno::ENOENT),
            });
        }
        match path.as_str() {
            "/sys/devices/system/cpu/possible" | "/sys/devices/system/cpu/online" => {
                Some(Ok(Node::Text(format!("0-{}\n", self.slots().saturating_sub(1)).into_bytes())))
            }
            path if self.is_tracefs(path) => Some(match self.read_file(path) {
                Ok(text) if self.may_write(path) => Ok(Node::Control(text.into_bytes())),
                Ok(text) => Ok(Node::Text(text.into_bytes())),
                Err(_) if self.is_tracefs_folder(path) => Ok(Node::Folder),
                Err(e) => Err(e),
            }),
            _ => None,
        }
    }

    /// `struct statfs` of a path of ours. In the tree of pins folders are made as they are named.
    pub fn statfs(&self, path: &str) -> Option<Result<Vec<u8>, Errno>> {
        let clean = normal(path)?;
        let magic = match self.node(path)? {
            _ if in_bpffs(&clean) => BPF_FS,
            Ok(_) if self.in_tracefs(&clean) => TRACE_FS,
            Ok(_) => SYSFS,
            Err(e) => return Some(Err(e)),
        };
        let mut bytes = vec![0; STATFS];
        for (at, word) in [(0, magic), (8, 4096), (64, 255), (72, 4096)] {
            bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        Some(Ok(bytes))
    }
}
