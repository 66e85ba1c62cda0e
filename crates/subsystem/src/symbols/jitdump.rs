//! `jit-PID.dump`: code with names and lines, as `perf inject --jit` reads it
//! (Linux, tools/perf/Documentation/jitdump-specification.txt).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Function, Names, at};

const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
const HEADER: u32 = 40;
const X86_64: u32 = 62;

/// Kinds of records.
const CODE_LOAD: u32 = 0;
const DEBUG_INFO: u32 = 2;
const CLOSE: u32 = 3;

/// Bytes of the fixed parts of records.
const PREFIX: usize = 16;
const LOAD: usize = PREFIX + 40;
const DEBUG: usize = PREFIX + 16;

/// A dump that is being written.
#[derive(Debug)]
pub struct Jitdump {
    path: PathBuf,
    file: File,
    pid: u32,
    functions: u64,
    /// By a mapping of the file profilers learn of it.
    marker: Option<Marker>,
}

#[derive(Debug)]
struct Marker(*mut core::ffi::c_void, usize);

// SAFETY: nobody looks at the mapping.
unsafe impl Send for Marker {}

impl Drop for Marker {
    fn drop(&mut self) {
        // SAFETY: mapped by `Jitdump::create`, and nobody else has it.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

impl Jitdump {
    /// Begins the dump of a process in a new folder of `dir`.
    pub fn create(dir: &Path, pid: u32) -> io::Result<Jitdump> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = dir.join(format!("skep-jit-{pid}-{number}"));
        // A new one: nobody else has put anything there.
        DirBuilder::new().mode(0o755).create(&folder).map_err(|e| at(&folder, "making", e))?;
        let path = folder.join(format!("jit-{pid}.dump"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path);
        let mut file = file.map_err(|e| at(&path, "making", e))?;
        let mut header = Record(Vec::new());
        header.u32s(&[MAGIC, VERSION, HEADER, X86_64, 0, pid]).u64s(&[now(), 0]);
        file.write_all(&header.0).map_err(|e| at(&path, "writing", e))?;
        Ok(Jitdump { path, file, pid, functions: 0, marker: None })
    }

    /// Maps the file in this process.
    pub fn mark(&mut self) -> io::Result<()> {
        let len = rustix::param::page_size();
        // SAFETY: a new mapping at a free place; nothing reads or runs it.
        let mapped =
            unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, &self.file, 0) };
        self.marker = Some(Marker(mapped.map_err(|e| at(&self.path, "mapping", e))?, len));
        Ok(())
    }

    /// The file, for another process to map.
    pub fn file(&self) -> io::Result<OwnedFd> {
        // Not to be written there.
        Ok(File::open(&self.path)?.into())
    }

    /// Adds the functions of a program.
    pub fn add(&mut self, names: &Names, address: u64) -> io::Result<()> {
        let mut records = Record(Vec::new());
        for function in &names.functions {
            let code = names.code.get(function.start as usize..function.end as usize).unwrap_or_default();
            records.lines(function, address);
            let name = function.name.as_bytes();
            let start = address + u64::from(function.start);
            records
                .prefix(CODE_LOAD, LOAD + name.len() + 1 + code.len())
                // Whichever thread: code is the process's.
                .u32s(&[self.pid, self.pid])
                .u64s(&[start, start, code.len() as u64, self.functions])
                .text(name)
                .bytes(code);
            self.functions += 1;
        }
        self.file.write_all(&records.0).map_err(|e| at(&self.path, "writing", e))
    }
}

impl Drop for Jitdump {
    fn drop(&mut self) {
        let mut end = Record(Vec::new());
        end.prefix(CLOSE, PREFIX);
        // The dump is whole without it.
        let _ = self.file.write_all(&end.0);
    }
}

/// Bytes of records.
struct Record(Vec<u8>);

impl Record {
    fn prefix(&mut self, kind: u32, len: usize) -> &mut Record {
        self.u32s(&[kind, len as u32]).u64s(&[now()])
    }

    fn u32s(&mut self, words: &[u32]) -> &mut Record {
        self.0.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        self
    }

    fn u64s(&mut self, words: &[u64]) -> &mut Record {
        self.0.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
        self
    }

    fn text(&mut self, text: &[u8]) -> &mut Record {
        self.bytes(text).bytes(&[0])
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Record {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The lines of a function, which stand before its code.
    fn lines(&mut self, function: &Function, address: u64) {
        if function.lines.is_empty() {
            return;
        }
        let len = function.lines.iter().map(|l| 16 + l.file.len() + 1).sum::<usize>();
        let count = function.lines.len() as u64;
        self.prefix(DEBUG_INFO, DEBUG + len).u64s(&[address + u64::from(function.start), count]);
        for line in &function.lines {
            self.u64s(&[address + u64::from(line.at)]).u32s(&[line.line, 0]).text(line.file.as_bytes());
        }
    }
}

/// The clock of `perf record -k mono`.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
