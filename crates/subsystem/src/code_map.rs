//! Where the code of a process is: which file, which part of it. Files stay known, and open, after the process has ended.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::attach::procfs;

/// A piece of executable memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Addresses.
    pub range: Range<u64>,
    /// Where they begin in the file.
    pub offset: u64,
    /// The file's path, as the process sees it; `[name]` or nothing where there is none.
    pub name: String,
}

/// A file, and its device and inode.
#[derive(Clone, Debug)]
pub struct CodeFile {
    /// The file.
    pub file: Arc<File>,
    /// Device and inode.
    pub id: (u64, u64),
}

/// The executable memory of a process, as it was when it was looked at, and as it changed since.
#[derive(Debug)]
pub struct CodeMap {
    pid: u32,
    version: u64,
    mappings: Vec<Mapping>,
    files: Arc<Mutex<HashMap<String, Option<CodeFile>>>>,
}

fn next_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl CodeMap {
    /// What a process has mapped now; nothing if it cannot be looked at.
    pub fn of(pid: u32) -> CodeMap {
        let all = procfs::maps(pid).unwrap_or_default().into_iter();
        let code = all.filter(procfs::Mapping::executable);
        let mappings = code.map(|m| Mapping { range: m.range, offset: m.offset, name: m.name }).collect();
        let map = CodeMap { pid, version: next_version(), mappings, files: Arc::default() };
        // While it is there for certain.
        map.mappings.iter().for_each(|m| drop(map.open(m)));
        map
    }

    /// That of a child that this process forked.
    pub fn fork(&self, pid: u32) -> CodeMap {
        let (mappings, files) = (self.mappings.clone(), Arc::clone(&self.files));
        CodeMap { pid, version: next_version(), mappings, files }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A number that changes with the mappings.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The mappings.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter()
    }

    /// The mapping of an address.
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        self.mappings.iter().find(|m| m.range.contains(&address))
    }

    /// Memory was mapped, in place of what was there.
    pub fn map(&mut self, mapping: Mapping) {
        let new = &mapping.range;
        let old = std::mem::take(&mut self.mappings);
        for m in old {
            let (start, end) = (m.range.start, m.range.end);
            for range in [start..end.min(new.start), start.max(new.end)..end] {
                if range.start < range.end {
                    let offset = m.offset + (range.start - start);
                    self.mappings.push(Mapping { range, offset, name: m.name.clone() });
                }
            }
        }
        self.version = next_version();
        let _ = self.open(&mapping);
        self.mappings.push(mapping);
    }

    /// The process has executed another program.
    pub fn clear(&mut self) {
        self.mappings.clear();
        self.files = Arc::default();
        self.version = next_version();
    }

    /// The file of a mapping, as the process sees it.
    pub fn open(&self, mapping: &Mapping) -> Option<CodeFile> {
        let name = mapping.name.strip_suffix(" (deleted)").unwrap_or(&mapping.name);
        // What skep itself has put there is no file of the process.
        if !name.starts_with('/') || name.starts_with("/memfd:") {
            return None;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let path = format!("/proc/{}/root{name}", self.pid);
            let file = File::open(path).or_else(|_| File::open(name)).ok()?;
            let meta = file.metadata().ok().filter(|m| m.is_file())?;
            Some(CodeFile { file: Arc::new(file), id: (meta.dev(), meta.ino()) })
        };
        files.entry(name.to_owned()).or_insert_with(open).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(range: Range<u64>, offset: u64, name: &str) -> Mapping {
        Mapping { range, offset, name: name.into() }
    }

    #[test]
    fn what_is_mapped_takes_the_place_of_what_was() {
        let mut map = CodeMap { pid: 0, version: 0, mappings: Vec::new(), files: Arc::default() };
        map.map(mapping(0x1000..0x5000, 0x2000, "a"));
        map.map(mapping(0x2000..0x3000, 0, "b"));
        let at =
            |map: &CodeMap, address| map.find(address).map(|m| (m.name.clone(), address - m.range.start + m.offset));
        assert_eq!(at(&map, 0x1800), Some(("a".into(), 0x2800)));
        assert_eq!(at(&map, 0x2800), Some(("b".into(), 0x800)));
        assert_eq!(at(&map, 0x3800), Some(("a".into(), 0x4800)));
        assert_eq!(at(&map, 0x5000), None);
        let version = map.version();
        let child = map.fork(1);
        map.clear();
        assert!(map.find(0x1800).is_none() && map.version() != version);
        assert_eq!(at(&child, 0x3000), Some(("a".into(), 0x4000)));
    }

    #[test]
    fn files_of_this_process() {
        let map = CodeMap::of(std::process::id());
        let here = files_of_this_process as fn() as usize as u64;
        let own = map.find(here).unwrap();
        let exe = std::fs::metadata("/proc/self/exe").unwrap();
        assert_eq!(map.open(own).unwrap().id, (exe.dev(), exe.ino()));
        assert!(map.open(&mapping(0..1, 0, "/nothing/there")).is_none());
        assert!(map.open(&mapping(0..1, 0, "[vdso]")).is_none());
    }
}
