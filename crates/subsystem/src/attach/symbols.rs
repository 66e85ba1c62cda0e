//! From names to addresses: the modules that a process has mapped, and the functions in them.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::AttachError;
use super::elf_file::{ElfFile, Segment, Symbol, nearest};
use super::landing::Pieces;
use super::procfs::{Auxv, Mapping, at};
use super::request::ProbeTarget;
use super::syscalls::SystemCalls;
use super::world::Memory;

/// A file that a process runs code of.
pub struct Module {
    /// Its path, as the target knows it.
    pub path: String,
    /// All its addresses.
    pub range: Range<u64>,
    mappings: Vec<Mapping>,
    pid: u32,
    loaded: OnceCell<Option<Loaded>>,
}

/// A module's file, and where it is.
pub struct Loaded {
    /// Symbols and segments.
    pub elf: Arc<ElfFile>,
    /// What to add to the file's addresses.
    pub bias: u64,
    /// Found when it is asked for.
    pieces: OnceCell<Option<Pieces>>,
    /// Likewise.
    calls: OnceCell<SystemCalls>,
}

/// A function found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Index of the module.
    pub module: usize,
    /// `NAME`, or the name of the function that an offset lies in.
    pub name: String,
    /// Address of the function (of the chooser, for [`Found::ifunc`]).
    pub address: u64,
    /// Bytes from there to the probe.
    pub offset: u64,
    /// Is the address that of a function that returns the address?
    pub ifunc: bool,
    /// Do symbols say that a function begins at the address? Compilers put parts of functions elsewhere, and there are labels.
    pub begins: bool,
}

impl Found {
    /// `NAME` or `NAME+0x…`.
    pub fn display(&self) -> String {
        match self.offset {
            0 => self.name.clone(),
            offset => format!("{}+{offset:#x}", self.name),
        }
    }
}

/// The modules of a process, the executable first.
pub struct Modules {
    pid: u32,
    list: Vec<Module>,
}

impl Modules {
    /// Lists them.
    pub fn of(pid: u32, maps: &[Mapping], auxv: &Auxv) -> Modules {
        let entry = auxv.get(at::ENTRY).unwrap_or(0);
        let mut list: Vec<Module> = Vec::new();
        for mapping in maps.iter().filter(|m| m.is_file()) {
            let same = |m: &&mut Module| m.path == mapping.name && m.mappings.iter().any(|o| o.inode == mapping.inode);
            match list.iter_mut().find(same) {
                Some(module) => {
                    module.range.end = module.range.end.max(mapping.range.end);
                    module.mappings.push(mapping.clone());
                }
                None => list.push(Module {
                    path: mapping.name.clone(),
                    range: mapping.range.clone(),
                    mappings: vec![mapping.clone()],
                    pid,
                    loaded: OnceCell::new(),
                }),
            }
        }
        list.retain(|module| module.mappings.iter().any(Mapping::executable));
        let is_exe = |m: &Module| m.mappings.iter().any(|m| m.range.contains(&entry));
        list.sort_by_key(|module| !is_exe(module));
        Modules { pid, list }
    }

    /// Takes over what an earlier look at the same modules has read.
    pub fn adopt(&self, earlier: Modules) {
        for mut old in earlier.list {
            let same = self.list.iter().find(|m| m.path == old.path && m.mappings == old.mappings);
            if let (Some(module), Some(Some(loaded))) = (same, old.loaded.take()) {
                let _ = module.loaded.set(Some(loaded));
            }
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A module.
    pub fn get(&self, index: usize) -> Option<&Module> {
        self.list.get(index)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.list.iter()
    }

    /// Addresses of a symbol in every module that defines it visibly or not, the module beside it.
    pub fn all_definitions(&self, name: &str) -> Vec<(&Module, u64)> {
        let mut out = Vec::new();
        for module in &self.list {
            let Some(loaded) = module.loaded() else { continue };
            out.extend(loaded.elf.find(name).iter().map(|s| (module, s.address.wrapping_add(loaded.bias))));
        }
        out
    }

    /// Finds what a probe asks for; several places if several libraries (or static functions) have the name.
    pub fn find(&self, target: &ProbeTarget) -> Result<Vec<Found>, AttachError> {
        match target {
            ProbeTarget::Symbol { name, offset, module: Some(module) } => {
                let index = self.by_name(module)?;
                let found = self.find_in(index, name, *offset);
                match found.is_empty() {
                    true => Err(self.no_symbol(name, &[index])),
                    false => Ok(found),
                }
            }
            ProbeTarget::Symbol { name, offset, module: None } => {
                let mut found = self.find_in(0, name, *offset);
                if found.is_empty() {
                    found = (1..self.list.len()).flat_map(|index| self.find_in(index, name, *offset)).collect();
                }
                match found.is_empty() {
                    true => Err(self.no_symbol(name, &(0..self.list.len()).collect::<Vec<_>>())),
                    false => Ok(found),
                }
            }
            ProbeTarget::FileOffset { module, offset } => {
                let index = self.by_name(module)?;
                self.at_offset(index, *offset).map(|found| vec![found])
            }
            // Their places are not known by names.
            ProbeTarget::Syscall(_) => Ok(Vec::new()),
        }
    }

    fn find_in(&self, index: usize, name: &str, offset: u64) -> Vec<Found> {
        let Some(loaded) = self.list.get(index).and_then(Module::loaded) else { return Vec::new() };
        let found = |symbol: &&Symbol| Found {
            module: index,
            name: name.to_owned(),
            address: symbol.address.wrapping_add(loaded.bias),
            offset,
            ifunc: symbol.ifunc,
            begins: symbol.begins(),
        };
        loaded.elf.find(name).iter().map(found).collect()
    }

    fn at_offset(&self, index: usize, offset: u64) -> Result<Found, AttachError> {
        let module = &self.list[index];
        let unprobeable = |reason: &str| AttachError::Unprobeable {
            symbol: format!("{offset:#x}"),
            module: module.path.clone(),
            reason: reason.to_owned(),
        };
        let loaded = module.loaded().ok_or_else(|| unprobeable("the file cannot be read"))?;
        let address = loaded.elf.address_of_offset(offset).ok_or_else(|| unprobeable("the file has no such offset"))?;
        if let Some(symbol) = loaded.elf.function_at(address) {
            return Ok(Found {
                module: index,
                name: symbol.name.clone(),
                address: symbol.address.wrapping_add(loaded.bias),
                offset: address - symbol.address,
                ifunc: symbol.ifunc,
                begins: symbol.begins(),
            });
        }
        // Code without symbols is described for those who unwind it.
        let address = address.wrapping_add(loaded.bias);
        let pieces = Memory::open(self.pid).ok().and_then(|memory| module.pieces(&memory, self));
        let piece = pieces.and_then(|pieces| pieces.at(address)).ok_or_else(|| {
            unprobeable(
                "neither a symbol nor call frame information covers that offset, so that it cannot be told where instructions begin",
            )
        })?;
        let start = piece.range.start;
        Ok(Found {
            module: index,
            name: format!("{:#x}", start.wrapping_sub(loaded.bias)),
            address: start,
            offset: address - start,
            ifunc: false,
            begins: false,
        })
    }

    fn no_symbol(&self, name: &str, searched: &[usize]) -> AttachError {
        let modules = searched.iter().filter_map(|&index| self.list.get(index));
        let loaded: Vec<&Loaded> = modules.filter_map(Module::loaded).collect();
        let names = loaded.iter().flat_map(|l| &l.elf.symbols).filter(|s| s.function).map(|s| s.name.as_str());
        let place = match searched {
            [one] => self.list.get(*one).map_or_else(String::new, |m| m.path.clone()),
            _ => {
                let exe = self.list.first().map_or("the program", |m| &m.path);
                format!("{exe} or its {} libraries", self.list.len().saturating_sub(1))
            }
        };
        AttachError::NoSymbol { symbol: name.to_owned(), place, near: nearest(name, names) }
    }

    /// The module that a path, file name or start of a file name means.
    fn by_name(&self, wanted: &str) -> Result<usize, AttachError> {
        let found = match wanted.contains('/') {
            true => self.by_path(wanted),
            false => {
                let exact = self.list.iter().position(|m| m.file_name() == wanted);
                exact.or_else(|| self.list.iter().position(|m| begins_with(m.file_name(), wanted)))
            }
        };
        found.ok_or_else(|| AttachError::NoModule {
            pid: self.pid,
            module: wanted.to_owned(),
            near: nearest(wanted, self.list.iter().map(Module::file_name)),
        })
    }

    fn by_path(&self, wanted: &str) -> Option<usize> {
        if let Some(exact) = self.list.iter().position(|m| m.path == wanted) {
            return Some(exact);
        }
        // By another name: a symbolic link, or a path that begins here.
        let inside = format!("/proc/{}/root{wanted}", self.pid);
        let inode = fs::metadata(if wanted.starts_with('/') { &inside } else { wanted }).ok()?.ino();
        self.list.iter().position(|m| m.mappings.iter().any(|mapping| mapping.inode == inode))
    }
}

/// `libc` and `libc.so` mean `libc.so.6`, `libc-2.31.so` too.
fn begins_with(file: &str, wanted: &str) -> bool {
    match file.strip_prefix(wanted).map(str::as_bytes) {
        Some([b'.', ..]) => true,
        Some([b'-', digit, ..]) => digit.is_ascii_digit(),
        _ => false,
    }
}

/// Opens a file to read it, only if it is a regular one: what stands at a mapping's path now may be a FIFO, which blocks.
fn open_regular(path: &str) -> Option<File> {
    use rustix::fs::{FileType, Mode, OFlags, fstat, open};
    let place = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let regular = FileType::from_raw_mode(fstat(&place).ok()?.st_mode).is_file();
    if regular { File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).ok() } else { None }
}

/// A file, as it is now: device, inode, size, and when it was changed.
type Version = (u64, u64, u64, (i64, i64));

/// Files that are known: processes of one executable share what was read of it.
static READ: Mutex<Vec<(Version, Weak<ElfFile>)>> = Mutex::new(Vec::new());

fn read(file: &File) -> Option<Arc<ElfFile>> {
    let m = file.metadata().ok()?;
    let version = (m.dev(), m.ino(), m.len(), (m.ctime(), m.ctime_nsec()));
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(elf) = read.iter().find(|(of, _)| *of == version).and_then(|(_, elf)| elf.upgrade()) {
        return Some(elf);
    }
    let elf = Arc::new(ElfFile::read(file).ok()?);
    read.retain(|(_, elf)| elf.strong_count() != 0);
    read.push((version, Arc::downgrade(&elf)));
    Some(elf)
}

impl Loaded {
    /// Does code there stand for an indirect jump?
    pub fn is_thunk(&self, address: u64) -> bool {
        self.elf.at(address.wrapping_sub(self.bias)).any(Symbol::is_thunk)
    }
}

impl Module {
    /// Its symbols and bias; `None` if its file cannot be read.
    pub fn loaded(&self) -> Option<&Loaded> {
        self.loaded
            .get_or_init(|| {
                let elf = read(&self.open()?)?;
                let bias = self.mappings.iter().find_map(|m| bias(m, &elf.segments))?;
                Some(Loaded { elf, bias, pieces: OnceCell::new(), calls: OnceCell::new() })
            })
            .as_ref()
    }

    /// As [`Module::loaded`], if that was asked for before.
    pub fn known(&self) -> Option<&Loaded> {
        self.loaded.get().and_then(Option::as_ref)
    }

    /// Where its segments are. Some programs map parts of their own file a second time, far away (node does).
    pub fn span(&self) -> Range<u64> {
        let Some(Loaded { elf, bias, .. }) = self.loaded() else { return self.range.clone() };
        let start = elf.segments.iter().map(|s| s.address).min();
        let end = elf.segments.iter().map(|s| s.address.saturating_add(s.size)).max();
        match start.zip(end) {
            Some((start, end)) => bias.wrapping_add(start)..bias.wrapping_add(end),
            None => self.range.clone(),
        }
    }

    /// The file name.
    pub fn file_name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
    }

    /// Its code.
    pub fn code(&self) -> impl Iterator<Item = Range<u64>> {
        self.mappings.iter().filter(|m| m.executable()).map(|m| m.range.clone())
    }

    /// All of it that is mapped from its file.
    pub fn data(&self) -> impl Iterator<Item = Range<u64>> {
        self.mappings.iter().map(|m| m.range.clone())
    }

    /// Does an address lie in what is mapped from its file and cannot be written?
    pub fn is_constant(&self, address: u64) -> bool {
        self.mappings.iter().any(|m| m.range.contains(&address) && !m.perms[1])
    }

    /// Its pieces of code and where exceptions land in them; `None` if that cannot be told.
    pub fn pieces(&self, memory: &Memory, modules: &Modules) -> Option<&Pieces> {
        self.loaded()?.pieces.get_or_init(|| Pieces::of(memory, modules, self)).as_ref()
    }

    /// Where what comes above an address begins, with a symbol or without.
    pub fn next_after(&self, memory: &Memory, modules: &Modules, address: u64) -> Option<u64> {
        let loaded = self.loaded()?;
        let symbol =
            loaded.elf.next_after(address.wrapping_sub(loaded.bias)).map(|next| next.wrapping_add(loaded.bias));
        let piece = self.pieces(memory, modules).and_then(|pieces| pieces.next_after(address));
        symbol.into_iter().chain(piece).min()
    }

    /// Its system calls; none if its file cannot be read.
    pub fn system_calls(&self, memory: &Memory, modules: &Modules) -> Option<&SystemCalls> {
        Some(self.loaded()?.calls.get_or_init(|| SystemCalls::of(memory, modules, self)))
    }

    /// Does code of it lie at that address?
    pub fn has_code_at(&self, address: u64) -> bool {
        self.mappings.iter().any(|m| m.executable() && m.range.contains(&address))
    }

    /// Opens the file that is mapped, which need not be the one that has its path now.
    fn open(&self) -> Option<File> {
        let first = self.mappings.first()?;
        let candidates = [
            format!("/proc/{}/root{}", self.pid, self.path),
            format!("/proc/{}/map_files/{:x}-{:x}", self.pid, first.range.start, first.range.end),
            format!("/proc/{}/exe", self.pid),
        ];
        let memory = Memory::open(self.pid).ok()?;
        candidates.iter().filter_map(|path| open_regular(path)).find(|file| self.is_mapped(file, &memory))
    }

    /// Compares the file's beginning, headers and build id, with what is in memory.
    fn is_mapped(&self, file: &File, memory: &Memory) -> bool {
        let inode = file.metadata().is_ok_and(|m| self.mappings.iter().any(|o| o.inode == m.ino()));
        let Some(head) = self.mappings.iter().find(|m| m.offset == 0) else { return inode };
        let mut bytes = [0; 1024];
        let got = file.read_at(&mut bytes, 0).unwrap_or(0);
        got >= 64 && memory.read_up_to(head.range.start, got).get(..got) == bytes.get(..got)
    }
}

/// The load bias by one mapping: a segment's page in the file is at this address.
fn bias(mapping: &Mapping, segments: &[Segment]) -> Option<u64> {
    let page = |n: u64| n & !4095;
    let segment = segments.iter().find(|s| page(s.offset) == mapping.offset)?;
    Some(mapping.range.start.wrapping_sub(page(segment.address)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::procfs;

    #[test]
    fn names_of_modules() {
        for (file, wanted) in [("libc.so.6", "libc"), ("libc.so.6", "libc.so"), ("libc-2.31.so", "libc")] {
            assert!(begins_with(file, wanted));
        }
        assert!(!begins_with("libcrypto.so.3", "libc"));
        assert!(!begins_with("libc-client.so", "libc"));
    }

    #[test]
    fn own_modules() {
        let pid = std::process::id();
        let maps = procfs::maps(pid).unwrap();
        let modules = Modules::of(pid, &maps, &Auxv::read(pid).unwrap());
        let symbol = |name: &str, module: Option<&str>| ProbeTarget::Symbol {
            name: name.into(),
            offset: 0,
            module: module.map(str::to_owned),
        };
        let getpid = modules.find(&symbol("getpid", Some("libc"))).unwrap();
        assert_eq!(getpid[0].address, libc::getpid as *const () as u64);
        assert_eq!(modules.find(&symbol("getpid", None)).unwrap()[0].address, getpid[0].address);
        assert!(modules.find(&symbol("strlen", None)).unwrap()[0].ifunc);
        match modules.find(&symbol("getpidd", None)) {
            Err(AttachError::NoSymbol { near, .. }) => assert!(near.contains(&"getpid".to_owned()), "{near:?}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(modules.find(&symbol("x", Some("libnothing"))), Err(AttachError::NoModule { .. })));
    }
}
