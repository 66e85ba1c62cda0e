//! An object file in memory that describes machine code which is elsewhere: symbols, and lines as DWARF.

use gimli::write::{Address, AttributeValue, DwarfUnit, EndianVec, LineProgram, LineString, Sections};
use gimli::{DwLang, Encoding, Format, LineEncoding, LittleEndian, constants};

use super::Names;

/// Numbers of the ELF format (System V ABI, chapter 4).
mod elf {
    pub const HEADER: u64 = 64;
    pub const SECTION: u64 = 64;
    pub const SYMBOL: u64 = 24;
    pub const EXEC: u16 = 2;
    pub const X86_64: u16 = 62;
    pub const PROGBITS: u32 = 1;
    pub const SYMTAB: u32 = 2;
    pub const STRTAB: u32 = 3;
    pub const NOBITS: u32 = 8;
    pub const ALLOC_EXEC: u64 = 6;
    pub const GLOBAL_FUNC: u8 = 0x12;
}

/// Where the sections stand in the file.
const TEXT: u16 = 1;
const STRINGS: u32 = 3;

struct Section {
    name: &'static str,
    kind: u32,
    flags: u64,
    address: u64,
    /// For sections that have no bytes: how long they are.
    len: u64,
    bytes: Vec<u8>,
    link: u32,
    info: u32,
    entry: u64,
}

impl Section {
    fn new(name: &'static str, kind: u32, bytes: Vec<u8>) -> Section {
        let len = bytes.len() as u64;
        Section { name, kind, flags: 0, address: 0, len, bytes, link: 0, info: 0, entry: 0 }
    }
}

/// Describes a program whose code is executed at an address.
pub fn describe(names: &Names, address: u64) -> Option<Vec<u8>> {
    let mut strings = vec![0];
    // The first symbol is none.
    let mut symbols = vec![0; elf::SYMBOL as usize];
    for f in &names.functions {
        symbols.extend((strings.len() as u32).to_le_bytes());
        symbols.extend([elf::GLOBAL_FUNC, 0]);
        symbols.extend(TEXT.to_le_bytes());
        symbols.extend((address + u64::from(f.start)).to_le_bytes());
        symbols.extend(u64::from(f.end - f.start).to_le_bytes());
        strings.extend(f.name.as_bytes());
        strings.push(0);
    }
    let mut text = Section::new(".text", elf::NOBITS, Vec::new());
    (text.flags, text.address, text.len) = (elf::ALLOC_EXEC, address, names.len);
    let mut table = Section::new(".symtab", elf::SYMTAB, symbols);
    (table.link, table.info, table.entry) = (STRINGS, 1, elf::SYMBOL);
    let mut sections = vec![text, table, Section::new(".strtab", elf::STRTAB, strings)];
    let mut dwarf = Sections::new(EndianVec::new(LittleEndian));
    lines(names, address).write(&mut dwarf).ok()?;
    dwarf
        .for_each_mut(|id, bytes| {
            let bytes = bytes.take();
            if !bytes.is_empty() {
                sections.push(Section::new(id.name(), elf::PROGBITS, bytes));
            }
            Ok::<(), gimli::write::Error>(())
        })
        .ok()?;
    Some(file(sections))
}

/// The functions with their lines.
fn lines(names: &Names, address: u64) -> DwarfUnit {
    let encoding = Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };
    let mut dwarf = DwarfUnit::new(encoding);
    let text = |s: &str| LineString::String(s.as_bytes().to_vec());
    // Of files with relative names nobody says where they were: debuggers look where they are told to.
    let (folder, unknown) = (text("."), text("?"));
    let mut program = LineProgram::new(encoding, LineEncoding::default(), folder, None, unknown, None);
    let root = dwarf.unit.root();
    for f in &names.functions {
        let (start, len) = (address + u64::from(f.start), u64::from(f.end - f.start));
        let mut first = None;
        program.begin_sequence(Some(Address::Constant(start)));
        for line in f.lines.iter().filter(|l| !l.file.is_empty()) {
            let folder = program.default_directory();
            let file = program.add_file(text(&line.file), folder, None);
            first.get_or_insert((file, line.line));
            let row = program.row();
            (row.address_offset, row.file) = (u64::from(line.at - f.start), file);
            (row.line, row.column) = (u64::from(line.line), u64::from(line.column));
            program.generate_row();
        }
        program.end_sequence(len);
        let id = dwarf.unit.add(root, constants::DW_TAG_subprogram);
        let entry = dwarf.unit.get_mut(id);
        entry.set(constants::DW_AT_name, AttributeValue::String(f.name.as_bytes().to_vec()));
        entry.set(constants::DW_AT_low_pc, AttributeValue::Address(Address::Constant(start)));
        entry.set(constants::DW_AT_high_pc, AttributeValue::Udata(len));
        entry.set(constants::DW_AT_external, AttributeValue::Flag(true));
        if let Some((file, line)) = first {
            entry.set(constants::DW_AT_decl_file, AttributeValue::FileIndex(Some(file)));
            entry.set(constants::DW_AT_decl_line, AttributeValue::Udata(u64::from(line)));
        }
    }
    let file = names.functions.iter().flat_map(|f| &f.lines).map(|l| &*l.file).find(|f| !f.is_empty());
    let unit = dwarf.unit.get_mut(root);
    unit.set(constants::DW_AT_name, AttributeValue::String(file.unwrap_or("?").as_bytes().to_vec()));
    unit.set(constants::DW_AT_comp_dir, AttributeValue::String(b".".to_vec()));
    unit.set(constants::DW_AT_producer, AttributeValue::String(b"skep".to_vec()));
    unit.set(constants::DW_AT_language, AttributeValue::Language(DwLang(constants::DW_LANG_C11.0)));
    unit.set(constants::DW_AT_low_pc, AttributeValue::Address(Address::Constant(address)));
    unit.set(constants::DW_AT_high_pc, AttributeValue::Udata(names.len));
    dwarf.unit.line_program = program;
    dwarf
}

/// The file of these sections.
fn file(mut sections: Vec<Section>) -> Vec<u8> {
    sections.push(Section::new(".shstrtab", elf::STRTAB, Vec::new()));
    let mut names = vec![0];
    let name_at: Vec<u32> = sections
        .iter()
        .map(|s| {
            let at = names.len() as u32;
            names.extend(s.name.as_bytes());
            names.push(0);
            at
        })
        .collect();
    if let Some(last) = sections.last_mut() {
        (last.len, last.bytes) = (names.len() as u64, names);
    }
    let bytes: u64 = sections.iter().map(|s| s.bytes.len() as u64).sum();
    let table = (elf::HEADER + bytes).next_multiple_of(8);
    let count = sections.len() as u16 + 1;
    // 64 bits, little endian, version 1, for System V.
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, words: &[u16]| file.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    let word = |file: &mut Vec<u8>, words: &[u32]| file.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    let long = |file: &mut Vec<u8>, words: &[u64]| file.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    half(&mut file, &[elf::EXEC, elf::X86_64]);
    word(&mut file, &[1]);
    // No entry point, no segments.
    long(&mut file, &[0, 0, table]);
    word(&mut file, &[0]);
    half(&mut file, &[elf::HEADER as u16, 0, 0, elf::SECTION as u16, count, count - 1]);
    let mut places = Vec::with_capacity(sections.len());
    for section in &sections {
        places.push(file.len() as u64);
        file.extend(&section.bytes);
    }
    // The first section is none.
    file.resize((table + elf::SECTION) as usize, 0);
    for ((section, name), place) in sections.iter().zip(name_at).zip(places) {
        word(&mut file, &[name, section.kind]);
        long(&mut file, &[section.flags, section.address, place, section.len]);
        word(&mut file, &[section.link, section.info]);
        long(&mut file, &[1, section.entry]);
    }
    file
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

    use super::*;
    use crate::symbols::{Function, Line};

    #[test]
    fn symbols_and_sections_are_read_back() {
        let line = |at, line| Line { at, file: Arc::from("a.c"), line, column: 3 };
        let functions = vec![
            Function { name: "first".into(), start: 0, end: 5, lines: vec![line(0, 7), line(3, 9)] },
            Function { name: "second".into(), start: 5, end: 8, lines: Vec::new() },
        ];
        let bytes = describe(&Names { code: Vec::new(), len: 8, functions }, 0x7000_1000).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let symbols: Vec<_> = file
            .symbols()
            .filter(|s| s.kind() == SymbolKind::Text)
            .map(|s| (s.name().unwrap().to_owned(), s.address(), s.size()))
            .collect();
        assert_eq!(symbols, [("first".into(), 0x7000_1000, 5), ("second".into(), 0x7000_1005, 3)]);
        let text = file.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.size()), (0x7000_1000, 8));
        for name in [".debug_info", ".debug_abbrev", ".debug_line"] {
            assert!(!file.section_by_name(name).unwrap().data().unwrap().is_empty(), "{name}");
        }
    }
}
