//! Types (BTF) of a program or library that has only debug information (DWARF): of its functions, and what they are made of.
//!
//! 1. [`entries`]: what the debug information says of types and functions, in one table.
//! 2. [`types`]: the same as BTF types, each once.
//! 3. Here: the functions that have a place in the file, by the names of their symbols.
//!
//! What cannot be said in BTF is `void` there, which no function that programs run around may have as a parameter.

mod entries;
#[cfg(test)]
mod tests;
mod types;

use std::collections::BTreeMap;

use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};

use crate::ElfError;
use entries::Entries;
use types::Types;

/// Types made from debug information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The blob.
    pub btf: Vec<u8>,
    /// Functions that have a type.
    pub functions: usize,
    /// Functions that have none, each with the reason.
    pub left_out: Vec<(String, String)>,
}

/// Makes types from the debug information of an ELF file. `name` is what errors call the file.
pub fn btf_from_dwarf(name: &str, bytes: &[u8]) -> Result<Generated, ElfError> {
    let damaged = |what: &str, detail: String| ElfError::Damaged { object: name.into(), what: what.into(), detail };
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ElfError::NotElf { object: name.into() });
    }
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|e| damaged("header", e.to_string()))?;
    let none = |why: &str| ElfError::NoTypes { object: name.into(), why: why.into() };
    if file.section_by_name(".debug_info").is_none() {
        return Err(none("it has no debug information (built without -g, or stripped)"));
    }
    let section = |id: gimli::SectionId| {
        let Some(section) = file.section_by_name(id.name()) else { return Ok(&[][..]) };
        let plain = section.compressed_file_range().map_or(true, |r| r.format == object::CompressionFormat::None);
        if !plain {
            return Err(none("its debug information is compressed (objcopy --decompress-debug-sections)"));
        }
        section.data().map_err(|e| damaged(id.name(), e.to_string()))
    };
    let load = |id| section(id).map(|data| gimli::EndianSlice::new(data, gimli::LittleEndian));
    let dwarf = gimli::Dwarf::load(load)?;
    let entries = Entries::read(&dwarf).map_err(|e| damaged("debug information", e.to_string()))?;
    if entries.is_split() {
        return Err(none("its debug information is in other files (-gsplit-dwarf)"));
    }
    Ok(generate(&entries))
}

fn generate(entries: &Entries) -> Generated {
    let mut types = Types::new(entries);
    // A static function may be there several times; where two differ nobody can know which one is meant.
    let mut functions: BTreeMap<&str, Result<(u32, bool), String>> = BTreeMap::new();
    for function in entries.functions() {
        let Some(name) = entries.linkage_name(function) else { continue };
        let found = match entries.has_other_convention(function) {
            true => Err("the compiler changed how it is called".to_owned()),
            false => Ok((types.prototype(function), entries.is_external(function))),
        };
        functions
            .entry(name)
            .and_modify(|known| match (&*known, &found) {
                (Ok((one, _)), Ok((other, _))) if one == other => {}
                (Err(_), _) => {}
                (_, Err(why)) => *known = Err(why.clone()),
                (Ok(_), Ok(_)) => *known = Err("several functions have this name, and other types".to_owned()),
            })
            .or_insert(found);
    }
    let mut left_out = Vec::new();
    let mut count = 0;
    for (name, found) in functions {
        match found {
            Ok((proto, external)) => {
                types.function(name, proto, external);
                count += 1;
            }
            Err(why) => left_out.push((name.to_owned(), why)),
        }
    }
    Generated { btf: types.finish(), functions: count, left_out }
}
