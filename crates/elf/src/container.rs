//! The ELF container: sections, symbols and relocations as plain data, checked.

use object::elf;
use object::read::elf::{FileHeader, Rel, SectionHeader, Sym};
use object::{FileKind, LittleEndian, SectionIndex, SymbolIndex};

use crate::ElfError;

/// An ELF file taken apart.
pub(crate) struct Container<'a> {
    /// By section number.
    pub sections: Vec<Section<'a>>,
    /// By symbol number.
    pub symbols: Vec<Symbol<'a>>,
}

pub(crate) struct Section<'a> {
    pub name: &'a str,
    /// Contents; empty for `.bss`.
    pub data: &'a [u8],
    /// Size in memory.
    pub size: u64,
    pub kind: SectionKind,
    pub executable: bool,
    pub relocs: Vec<Reloc>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SectionKind {
    Contents,
    Zeroes,
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol<'a> {
    pub name: &'a str,
    pub place: Place,
    pub value: u64,
    pub size: u64,
    pub kind: SymbolKind,
    pub binding: Binding,
    /// Not visible outside of the object (`__hidden`).
    pub hidden: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Place {
    Undefined,
    Section(usize),
    /// Absolute or common.
    Special,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SymbolKind {
    None,
    Func,
    Object,
    Section,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Binding {
    Local,
    Global,
    Weak,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Reloc {
    pub offset: u64,
    pub symbol: usize,
}

impl<'a> Container<'a> {
    /// Reads a container; `name` is what errors call the object.
    pub fn parse(name: &str, bytes: &'a [u8]) -> Result<Container<'a>, ElfError> {
        let object = || name.to_owned();
        let damaged = |what: &str, e: object::read::Error| ElfError::Damaged {
            object: object(),
            what: what.to_owned(),
            detail: e.to_string(),
        };
        match FileKind::parse(bytes) {
            Ok(FileKind::Elf64) => {}
            Ok(FileKind::Elf32) => return Err(ElfError::Class { object: object() }),
            _ => return Err(ElfError::NotElf { object: object() }),
        }
        if bytes.get(5) == Some(&2) {
            return Err(ElfError::BigEndian { object: object() });
        }
        let e = LittleEndian;
        let header = elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(|x| damaged("header", x))?;
        match header.e_machine(e) {
            // Old compilers left the machine empty.
            elf::EM_BPF | elf::EM_NONE => {}
            m => return Err(ElfError::Machine { object: object(), machine: machine(m) }),
        }
        if header.e_type(e) != elf::ET_REL {
            return Err(ElfError::FileType { object: object(), found: header.e_type(e).0 });
        }
        let table = header.sections(e, bytes).map_err(|x| damaged("section headers", x))?;

        let mut sections = Vec::new();
        for s in table.iter() {
            let name = table.section_name(e, s).map_err(|x| damaged("section name", x))?;
            let name = str::from_utf8(name).unwrap_or("?");
            let kind = match s.sh_type(e) {
                elf::SHT_PROGBITS => SectionKind::Contents,
                elf::SHT_NOBITS => SectionKind::Zeroes,
                _ => SectionKind::Other,
            };
            let data = s.data(e, bytes).map_err(|x| damaged(&format!("section `{name}`"), x))?;
            let executable = s.sh_flags(e).contains(elf::SHF_EXECINSTR);
            sections.push(Section { name, data, size: s.sh_size(e), kind, executable, relocs: Vec::new() });
        }

        let mut symbols = Vec::new();
        let symtab = table.symbols(e, bytes, elf::SHT_SYMTAB).map_err(|x| damaged("symbol table", x))?;
        for (i, sym) in symtab.enumerate() {
            let name = symtab.symbol_name(e, sym).map_err(|x| damaged("symbol name", x))?;
            let section = symtab.symbol_section(e, sym, i).map_err(|x| damaged("symbol section", x))?;
            symbols.push(symbol(sym, str::from_utf8(name).unwrap_or("?"), section, sections.len()));
        }

        for s in table.iter() {
            if s.sh_type(e) != elf::SHT_REL {
                continue;
            }
            let Some((rels, _)) = s.rel(e, bytes).map_err(|x| damaged("relocations", x))? else { continue };
            // `.rel` sections name what they change; those of sections nobody loads (DWARF, BTF) are never looked at.
            let SectionIndex(target) = s.info_link(e);
            let Some(target) = sections.get_mut(target) else {
                let detail = format!("section {target} does not exist");
                return Err(ElfError::Damaged { object: object(), what: "relocations".into(), detail });
            };
            if target.kind != SectionKind::Contents || target.name.starts_with(".debug") {
                continue;
            }
            target.relocs.extend(rels.iter().map(|r| {
                let SymbolIndex(symbol) = r.symbol(e).unwrap_or(SymbolIndex(0));
                Reloc { offset: r.r_offset(e), symbol }
            }));
        }
        Ok(Container { sections, symbols })
    }

    /// The first section with this name that has contents.
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|s| s.name == name && s.kind == SectionKind::Contents)
    }

    /// The name that people know a symbol by: a section symbol has none of its own.
    pub fn symbol_name(&self, i: usize) -> &'a str {
        let Some(sym) = self.symbols.get(i) else { return "?" };
        match (sym.name, sym.place) {
            ("", Place::Section(s)) => self.sections.get(s).map_or("?", |s| s.name),
            (name, _) => name,
        }
    }
}

fn symbol<'a>(
    sym: &elf::Sym64<LittleEndian>,
    name: &'a str,
    section: Option<SectionIndex>,
    sections: usize,
) -> Symbol<'a> {
    let place = match section {
        Some(SectionIndex(i)) if i < sections => Place::Section(i),
        None if sym.is_undefined(LittleEndian) => Place::Undefined,
        _ => Place::Special,
    };
    let kind = match sym.st_type() {
        elf::STT_NOTYPE => SymbolKind::None,
        elf::STT_FUNC => SymbolKind::Func,
        elf::STT_OBJECT => SymbolKind::Object,
        elf::STT_SECTION => SymbolKind::Section,
        _ => SymbolKind::Other,
    };
    let binding = match sym.st_bind() {
        elf::STB_LOCAL => Binding::Local,
        elf::STB_WEAK => Binding::Weak,
        _ => Binding::Global,
    };
    let hidden = matches!(sym.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL);
    let (value, size) = (sym.st_value(LittleEndian), sym.st_size(LittleEndian));
    Symbol { name, place, value, size, kind, binding, hidden }
}

/// A machine's name for errors.
fn machine(m: elf::Machine) -> String {
    match m {
        elf::EM_X86_64 => "x86-64".into(),
        elf::EM_386 => "x86".into(),
        elf::EM_AARCH64 => "aarch64".into(),
        elf::EM_ARM => "arm".into(),
        elf::EM_RISCV => "RISC-V".into(),
        elf::EM_S390 => "s390".into(),
        elf::EM_PPC64 => "ppc64".into(),
        other => format!("machine {}", other.0),
    }
}
