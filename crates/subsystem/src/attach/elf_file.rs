//! Functions in the symbol tables of one ELF file.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{LittleEndian, ReadCache, ReadRef};

const LE: LittleEndian = LittleEndian;
/// Bytes read of one file at most. A sparse file can claim tables of any size.
const MAX_READ: u64 = 2 << 30;

/// A file of which no more than a budget is read.
#[derive(Clone, Copy)]
struct Limited<'d> {
    cache: &'d ReadCache<&'d File>,
    left: &'d Cell<u64>,
}

impl Limited<'_> {
    fn spend(&self, bytes: u64) -> Result<(), ()> {
        self.left.set(self.left.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'d> ReadRef<'d> for Limited<'d> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'d [u8], ()> {
        self.spend(size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'d [u8], ()> {
        let bytes = self.cache.read_bytes_at_until(range, delimiter)?;
        self.spend(bytes.len() as u64)?;
        Ok(bytes)
    }
}

/// A function (or label in code) of a file. Addresses are the file's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name without version.
    pub name: String,
    /// Version, if it has one.
    pub version: Option<String>,
    /// Is it what the plain name means? False for old versions kept for old programs.
    pub default: bool,
    /// Address.
    pub address: u64,
    /// Bytes, 0 if unknown.
    pub size: u64,
    /// Visible to other files?
    pub global: bool,
    /// Has a function type; labels have not.
    pub function: bool,
    /// Chosen at load time: the address is that of the chooser.
    pub ifunc: bool,
}

impl Symbol {
    /// Does a function begin there? Not where it names a label, what a compiler has put elsewhere of a function (`NAME.cold`,
    /// `NAME.cold.1`), any instructions that several functions share (LLVM's outliner), or what stands for a jump.
    pub fn begins(&self) -> bool {
        let elsewhere = self.name.split(".cold").skip(1).any(|rest| rest.is_empty() || rest.starts_with('.'));
        self.function && !elsewhere && !self.name.starts_with("OUTLINED_FUNCTION_") && !self.is_thunk()
    }

    /// Does it jump on through a register, in the place of an indirect jump (`-mindirect-branch=thunk`, `-mretpoline`)?
    pub fn is_thunk(&self) -> bool {
        ["__x86_indirect_thunk_", "__llvm_retpoline_", "__llvm_lvi_thunk_"]
            .iter()
            .any(|name| self.name.starts_with(name))
    }
}

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Address.
    pub address: u64,
    /// Bytes in the file.
    pub size: u64,
}

/// What is of interest in an ELF file.
#[derive(Clone, Debug, Default)]
pub struct ElfFile {
    /// Its loadable segments.
    pub segments: Vec<Segment>,
    /// Its functions, by address.
    pub symbols: Vec<Symbol>,
    /// Address of the table that finds call frame information.
    pub eh_frame_hdr: Option<u64>,
    /// Address and size of call frame information; static programs have no table for it.
    pub eh_frame: Option<(u64, u64)>,
    /// Was it made by Go's linker?
    pub go: bool,
    /// Data symbols that are of interest: name and address.
    data: Vec<(String, u64)>,
}

/// The dynamic linker's account of what is loaded, and Go's of its goroutines.
const VARIABLES: [&str; 2] = ["_r_debug", "runtime.allgs"];
/// Sections by which Go's linker marks what it makes.
const GO: [&[u8]; 2] = [b".go.buildinfo", b".note.go.buildid"];

impl ElfFile {
    /// Reads it.
    pub fn read(file: &File) -> Result<ElfFile, object::Error> {
        let cache = ReadCache::new(file);
        Self::parse(Limited { cache: &cache, left: &Cell::new(MAX_READ) })
    }

    fn parse<'d>(data: impl ReadRef<'d>) -> Result<ElfFile, object::Error> {
        let header = elf::FileHeader64::<LittleEndian>::parse(data)?;
        let segments = header
            .program_headers(LE, data)?
            .iter()
            .filter(|p| p.p_type(LE) == elf::PT_LOAD)
            .map(|p| Segment { offset: p.p_offset(LE), address: p.p_vaddr(LE), size: p.p_filesz(LE) })
            .collect();
        let eh_frame_hdr = header
            .program_headers(LE, data)?
            .iter()
            .find(|p| p.p_type(LE) == elf::PT_GNU_EH_FRAME)
            .map(|p| p.p_vaddr(LE));
        let sections = header.sections(LE, data)?;
        let eh_frame = sections.section_by_name(LE, b".eh_frame").map(|(_, s)| (s.sh_addr(LE), s.sh_size(LE)));
        let go = GO.iter().any(|name| sections.section_by_name(LE, name).is_some());
        let versions = sections.versions(LE, data)?;
        let mut symbols = Vec::new();
        let mut variables = Vec::new();
        for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
            let table = sections.symbols(LE, data, kind)?;
            for (index, sym) in table.enumerate() {
                if sym.st_type() == elf::STT_OBJECT
                    && let Ok(name) = sym.name(LE, table.strings())
                    && let Some(name) = VARIABLES.iter().find(|v| v.as_bytes() == name)
                {
                    variables.push(((*name).to_owned(), sym.st_value(LE)));
                }
                let function = matches!(sym.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC);
                if sym.is_undefined(LE) || !(function || sym.st_type() == elf::STT_NOTYPE) {
                    continue;
                }
                let section = table.symbol_section(LE, sym, index).ok().flatten();
                let code = section
                    .and_then(|section| sections.section(section).ok())
                    .is_some_and(|section| section.sh_flags(LE).contains(elf::SHF_EXECINSTR));
                if !code {
                    continue;
                }
                let Ok(name) = sym.name(LE, table.strings()) else { continue };
                let name = String::from_utf8_lossy(name);
                if name.is_empty() {
                    continue;
                }
                // .symtab spells versions out, .dynsym has them in a table.
                let (base, mut version, mut default) = match name.split_once('@') {
                    Some((base, version)) => {
                        (base, Some(version.trim_start_matches('@').to_owned()), version.starts_with('@'))
                    }
                    None => (&*name, None, true),
                };
                if kind == elf::SHT_DYNSYM
                    && let Some(versions) = &versions
                {
                    let at = versions.version_index(LE, index);
                    if let Ok(Some(found)) = versions.version(at.index()) {
                        version = Some(String::from_utf8_lossy(found.name()).into_owned());
                        default = !at.is_hidden();
                    }
                }
                symbols.push(Symbol {
                    name: base.to_owned(),
                    version,
                    default,
                    address: sym.st_value(LE),
                    size: sym.st_size(LE).min(u64::MAX - sym.st_value(LE)),
                    global: sym.st_bind() != elf::STB_LOCAL,
                    function,
                    ifunc: sym.st_type() == elf::STT_GNU_IFUNC,
                });
            }
        }
        symbols.sort_by(|a, b| (a.address, !a.function, &a.name).cmp(&(b.address, !b.function, &b.name)));
        Ok(ElfFile { segments, symbols, eh_frame_hdr, eh_frame, go, data: variables })
    }

    /// The symbols that a name means: `NAME`, or `NAME@VERSION`. Each address once; a global one hides local ones.
    pub fn find(&self, wanted: &str) -> Vec<&Symbol> {
        let (name, version) = match wanted.split_once('@') {
            Some((name, version)) => (name, Some(version.trim_start_matches('@'))),
            None => (wanted, None),
        };
        let mut found: Vec<&Symbol> = self.symbols.iter().filter(|s| s.name == name).collect();
        found.retain(|s| version.is_none_or(|v| s.version.as_deref() == Some(v)));
        let keep_if_any = |found: &mut Vec<&Symbol>, good: fn(&Symbol) -> bool| {
            if found.iter().any(|s| good(s)) {
                found.retain(|s| good(s));
            }
        };
        keep_if_any(&mut found, |s| s.function);
        keep_if_any(&mut found, |s| s.global);
        if version.is_none() {
            keep_if_any(&mut found, |s| s.default);
        }
        found.dedup_by_key(|s| s.address);
        found
    }

    /// Has it call frame information?
    pub fn describes(&self) -> bool {
        self.eh_frame.is_some() || self.eh_frame_hdr.is_some()
    }

    /// Address of one of [`VARIABLES`].
    pub fn data_symbol(&self, name: &str) -> Option<u64> {
        self.data.iter().find(|(n, _)| n == name).map(|(_, address)| *address)
    }

    /// The function that an address belongs to.
    pub fn function_at(&self, address: u64) -> Option<&Symbol> {
        let end = self.symbols.partition_point(|s| s.address <= address);
        let before = self.symbols.get(..end)?;
        let within = |s: &&Symbol| s.function && s.address.saturating_add(s.size.max(1)) > address;
        // Aliases share an address; a label in between hides nothing.
        before.iter().rev().take(64).find(within)
    }

    /// The symbols at an address.
    pub fn at(&self, address: u64) -> impl Iterator<Item = &Symbol> {
        let start = self.symbols.partition_point(|s| s.address < address);
        self.symbols.iter().skip(start).take_while(move |s| s.address == address)
    }

    /// The first symbol address above `address`.
    pub fn next_after(&self, address: u64) -> Option<u64> {
        let at = self.symbols.partition_point(|s| s.address <= address);
        self.symbols.get(at).map(|s| s.address)
    }

    /// The last symbol address that is not above `address`.
    pub fn last_before(&self, address: u64) -> Option<u64> {
        let end = self.symbols.partition_point(|s| s.address <= address);
        self.symbols.get(..end)?.last().map(|s| s.address)
    }

    /// Addresses of symbols in `(start, end)`.
    pub fn inside(&self, start: u64, end: u64) -> Vec<u64> {
        let from = self.symbols.partition_point(|s| s.address <= start);
        self.symbols.iter().skip(from).map(|s| s.address).take_while(|&a| a < end).collect()
    }

    /// Address of an offset in the file.
    pub fn address_of_offset(&self, offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|s| offset >= s.offset && offset - s.offset < s.size)?;
        segment.address.checked_add(offset - segment.offset)
    }
}

/// The names nearest to one that was not found: one slip in three letters at most.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let wanted = wanted.split('@').next().unwrap_or(wanted);
    let limit = (wanted.len() / 3).clamp(1, 5);
    let mut best: Vec<(usize, &str)> = Vec::new();
    for name in names {
        if name.len().abs_diff(wanted.len()) > limit || best.iter().any(|(_, have)| *have == name) {
            continue;
        }
        let distance = distance(wanted.as_bytes(), name.as_bytes());
        if distance <= limit {
            best.push((distance, name));
            best.sort();
            best.truncate(3);
        }
    }
    best.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's distance, case changes at no cost but one in total.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = *cell;
            left = replaced.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"abc", b""), 3);
        assert_eq!(nearest("maloc", ["malloc", "calloc", "free", "malloc"].into_iter()), ["malloc"]);
        assert!(nearest("x", ["malloc"].into_iter()).is_empty());
    }

    #[test]
    fn a_sparse_file_is_not_read_for_ever() {
        use std::os::unix::fs::FileExt;
        let fd = rustix::fs::memfd_create("sparse", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(1 << 40).unwrap();
        let mut head = [0u8; 64];
        head[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        // Section headers at 64, of 64 bytes, how many says the first one's size: many.
        head[40] = 64;
        head[52] = 64;
        head[58] = 64;
        file.write_all_at(&head, 0).unwrap();
        file.write_all_at(&(u64::from(u32::MAX) - 1).to_le_bytes(), 64 + 32).unwrap();
        assert!(ElfFile::read(&file).is_err());
    }

    #[test]
    fn parts_and_functions() {
        let symbol = |name: &str, function| {
            let name = name.to_owned();
            Symbol { name, version: None, default: true, address: 0, size: 1, global: true, function, ifunc: false }
        };
        for name in ["f", "f.part.0", "f.constprop.0", "main.coldStart", "cold", "f.llvm.123"] {
            assert!(symbol(name, true).begins(), "{name}");
            assert!(!symbol(name, false).begins(), "{name}");
        }
        for name in ["f.cold", "f.cold.1", "f.constprop.0.cold", "main.coldStart.cold", "OUTLINED_FUNCTION_7"] {
            assert!(!symbol(name, true).begins(), "{name}");
        }
    }

    #[test]
    fn own_symbols() {
        let elf = ElfFile::read(&File::open("/proc/self/exe").unwrap()).unwrap();
        let main = elf.find("main");
        assert_eq!(main.len(), 1);
        assert_eq!(elf.function_at(main[0].address + 1).unwrap().name, "main");
        assert!(elf.find("no such function").is_empty());
    }
}
