//! The processes of executables: those that run, and those that start while one looks.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Failure;

/// How often new processes are looked for.
pub const LOOK: Duration = Duration::from_millis(100);
/// How long a process that was found may take to become what can be attached to: its libraries may not be loaded yet.
const YOUNG: Duration = Duration::from_secs(1);

/// Executables, by device and inode: a process may know the file by another path, or see another tree of files.
pub struct Executables {
    files: Vec<(u64, u64)>,
    /// Processes that were found.
    known: HashMap<u32, Known>,
    /// Not to be found: skep's own.
    own: Vec<u32>,
    looked: Option<Instant>,
}

struct Known {
    /// When it began.
    start: u64,
    /// When it was found first.
    since: Instant,
    /// It is to be found again.
    again: bool,
}

impl Executables {
    /// `own` processes are never among those that are found.
    pub fn new(paths: &[PathBuf], own: &[u32]) -> Result<Executables, Failure> {
        let of = |path: &PathBuf| match fs::metadata(path) {
            Ok(file) if file.is_file() => Ok((file.dev(), file.ino())),
            Ok(_) => Err(Failure::Input(format!("--exe {}: not a file", path.display()))),
            Err(e) => Err(Failure::Input(format!("--exe {}: {e}", path.display()))),
        };
        let files = paths.iter().map(of).collect::<Result<_, _>>()?;
        Ok(Executables { files, known: HashMap::new(), own: own.to_vec(), looked: None })
    }

    /// Are there none to look for?
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Until the next look.
    pub fn due(&self) -> Duration {
        self.looked.map_or(Duration::ZERO, |looked| LOOK.saturating_sub(looked.elapsed()))
    }

    /// The processes that run one of them now.
    pub fn running(&self) -> Vec<u32> {
        if self.is_empty() {
            return Vec::new();
        }
        let list = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = list.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let runs = |pid: &u32| {
            // The link leads to the file itself, whatever its path is there. Of others' processes it cannot be seen.
            let file = fs::metadata(format!("/proc/{pid}/exe"));
            !self.own.contains(pid) && file.is_ok_and(|f| self.files.contains(&(f.dev(), f.ino())))
        };
        pids.filter(runs).collect()
    }

    /// The processes that have come since the last look.
    pub fn arrivals(&mut self) -> Vec<u32> {
        self.looked = Some(Instant::now());
        let found = self.running().into_iter().filter_map(|pid| Some((pid, began(pid)?)));
        let running: HashMap<u32, u64> = found.collect();
        self.known.retain(|pid, known| running.get(pid) == Some(&known.start));
        let mut new = Vec::new();
        for (pid, start) in running {
            let known = self.known.entry(pid).or_insert_with(|| Known { start, since: Instant::now(), again: true });
            if std::mem::take(&mut known.again) {
                new.push(pid);
            }
        }
        new.sort_unstable();
        new
    }

    /// A process that was found cannot be attached to yet: it is found again, unless it has had its time.
    pub fn later(&mut self, pid: u32) -> bool {
        let Some(known) = self.known.get_mut(&pid) else { return false };
        known.again = known.since.elapsed() < YOUNG;
        known.again
    }

    /// A process runs something else now; it may come back.
    pub fn forget(&mut self, pid: u32) {
        self.known.remove(&pid);
    }
}

/// When a process began, in clock ticks since the system did.
fn began(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}
