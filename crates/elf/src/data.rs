//! Maps made of whole sections (`.rodata*`, `.data*`, `.bss*`), and the layout of their BTF.

use std::collections::HashMap;

use skep_ebpf::btf::{Btf, Kind, Linkage};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, OBJ_NAME_LEN, map_flags};

use crate::ElfError;
use crate::container::{Binding, Container, Place, SectionKind, Symbol, SymbolKind};
use crate::maps::Placed;
use crate::sections::{DataKind, data_kind};

/// The largest value a map may have; what is bigger cannot be a map anyway.
const MAX_VALUE: u64 = i32::MAX as u64;

/// Compilers leave the layout of data sections to the linker: sizes and offsets are taken from the symbols. What is
/// hidden in the object becomes static, so that the verifier judges it together with its callers.
pub(crate) fn lay_out(container: &Container<'_>, btf: &mut Btf) {
    let sections: Vec<(u32, String, u32)> = btf
        .iter()
        .filter_map(|(id, t)| match t.kind {
            Kind::Datasec { size, .. } => Some((id, btf.name(id).to_owned(), size)),
            _ => None,
        })
        .collect();
    let visible = container.symbols.iter().filter(|s| s.kind == SymbolKind::Object && s.binding != Binding::Local);
    let symbols: HashMap<(Place, &str), &Symbol<'_>> = visible.map(|s| ((s.place, s.name), s)).collect();
    for (id, name, size) in sections {
        let Some((number, sec)) = container.sections.iter().enumerate().find(|(_, s)| s.name == name) else { continue };
        let Some(Kind::Datasec { vars, .. }) = btf.kind(id) else { continue };
        let vars: Vec<(u32, u32)> = vars.iter().map(|&(var, offset, _)| (var, offset)).collect();
        let mut offsets = Vec::with_capacity(vars.len());
        for (var, offset) in vars {
            let symbol = match btf.kind(var) {
                Some(Kind::Var { linkage: Linkage::Static, .. }) | None => None,
                Some(_) => symbols.get(&(Place::Section(number), btf.name(var))),
            };
            offsets.push(symbol.filter(|_| size == 0).and_then(|s| u32::try_from(s.value).ok()).unwrap_or(offset));
            if symbol.is_some_and(|s| s.hidden) {
                btf.set_linkage(var, Linkage::Static);
            }
        }
        let size = if size == 0 { u32::try_from(sec.size).unwrap_or(u32::MAX) } else { size };
        btf.lay_out(id, size, &offsets);
    }
}

/// One map per data section, in the order of the sections.
pub(crate) fn data_maps(object: &str, container: &Container<'_>, btf: Option<&Btf>) -> Result<Vec<Placed>, ElfError> {
    let mut maps = Vec::new();
    for (section, sec) in container.sections.iter().enumerate() {
        let kind = match data_kind(sec.name) {
            Some(k @ (DataKind::Rodata | DataKind::Data)) if sec.kind == SectionKind::Contents => k,
            Some(DataKind::Bss) if sec.kind == SectionKind::Zeroes => DataKind::Bss,
            _ => continue,
        };
        if sec.size == 0 || sec.executable {
            continue;
        }
        if sec.size > MAX_VALUE {
            return Err(ElfError::Map {
                map: sec.name.into(),
                problem: format!("{} bytes are too many for a map", sec.size),
            });
        }
        let mut def = MapDef::new(&internal_name(object, sec.name), MapType::Array, 4, sec.size as u32, 1);
        // A `.bss` as big as its header claims costs nothing in the file, so its zeroes are not spelled out.
        def.initial = (kind != DataKind::Bss).then(|| sec.data.to_vec());
        def.frozen = kind == DataKind::Rodata;
        if def.frozen {
            def.flags |= map_flags::RDONLY_PROG;
        }
        describe(&mut def, sec.name, btf);
        maps.push(Placed { def, section, offset: 0 });
    }
    Ok(maps)
}

/// Adds the BTF type of the section; user space may map the value if something in it is visible outside.
pub(crate) fn describe(def: &mut MapDef, section: &str, btf: Option<&Btf>) {
    let Some(btf) = btf else { return };
    let Some(id) = btf.find(section, |k| matches!(k, Kind::Datasec { .. })) else { return };
    def.value_type_id = id;
    if let Some(Kind::Datasec { vars, .. }) = btf.kind(id) {
        let visible = |var| matches!(btf.kind(var), Some(Kind::Var { linkage, .. }) if *linkage != Linkage::Static);
        if vars.iter().any(|v| visible(v.0)) {
            def.flags |= map_flags::MMAPABLE;
        }
    }
}

/// The name that loaders know a section's map by: the object's name, then the section's, cut to what the kernel takes.
/// A section with a second dot gives its own name alone; if it is one of data or constants, in full.
pub(crate) fn internal_name(object: &str, section: &str) -> String {
    let room = OBJ_NAME_LEN - 1;
    let custom = section.get(1..).is_some_and(|s| s.contains('.'));
    if custom && !section.starts_with(".bss") {
        return section.to_owned();
    }
    // At least seven bytes are kept for the section, even where it is shorter.
    let suffix = if custom { room } else { section.len().clamp(7, room) };
    let clean = |b: u8| if b.is_ascii_alphanumeric() || b == b'_' || b == b'.' { char::from(b) } else { '_' };
    object.bytes().take(room - suffix).chain(section.bytes().take(suffix)).map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::internal_name;

    #[test]
    fn names() {
        assert_eq!(internal_name("my_object_name", ".rodata"), "my_objec.rodata");
        assert_eq!(internal_name("my_object_name", ".bss"), "my_objec.bss");
        assert_eq!(internal_name("my_object_name", ".kconfig"), "my_obje.kconfig");
        assert_eq!(internal_name("x", ".rodata.abracadabra"), ".rodata.abracadabra");
        assert_eq!(internal_name("x", ".bss.abracadabra"), ".bss.abracadabr");
        assert_eq!(internal_name("a-b", ".data"), "a_b.data");
    }
}
