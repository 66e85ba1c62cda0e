//! `/tmp/perf-PID.map`: a line per function, as `perf` and other profilers read it
//! (Linux, tools/perf/Documentation/jit-interface.txt).

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::{Names, at};

/// The map of one process.
#[derive(Debug)]
pub struct PerfMap {
    path: PathBuf,
    file: File,
}

impl PerfMap {
    /// Opens the map of a process for what is added to it: a runtime in that process may write to it, too.
    pub fn open(pid: u32) -> io::Result<PerfMap> {
        let path = PathBuf::from(format!("/tmp/perf-{pid}.map"));
        // Others may write to the folder: neither a link nor a file of somebody else is followed.
        let file = OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = file.map_err(|e| at(&path, "opening", e))?;
        let owner = file.metadata().map_err(|e| at(&path, "looking at", e))?.uid();
        let ours = rustix::process::geteuid().as_raw();
        if owner != ours && ours != 0 {
            let denied = io::Error::from(io::ErrorKind::PermissionDenied);
            return Err(at(&path, "it belongs to another user:", denied));
        }
        Ok(PerfMap { path, file })
    }

    /// Adds the functions of a program.
    pub fn add(&self, names: &Names, address: u64) -> io::Result<()> {
        let mut text = String::new();
        for f in &names.functions {
            let _ = writeln!(text, "{:x} {:x} {}", address + u64::from(f.start), f.end - f.start, f.name);
        }
        // In one piece: what others append does not get between.
        (&self.file).write_all(text.as_bytes()).map_err(|e| at(&self.path, "writing", e))
    }
}
