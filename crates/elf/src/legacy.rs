//! Maps defined in a `maps` section by structs of numbers, as before BTF.
//!
//! All layouts begin with type, key size, value size, entries and flags. Three exist: these five words alone; the
//! kernel samples' with the index of the inner map and a NUMA node; and iproute2's, 36 bytes, with id, pinning and the
//! id of the inner map.

use std::sync::Arc;

use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;

use crate::ElfError;
use crate::container::{Container, Place, SymbolKind};
use crate::maps::Placed;

/// Bytes of iproute2's struct.
const IPROUTE2: usize = 36;

/// All maps of a legacy section, by offset.
pub(crate) fn legacy_maps(container: &Container<'_>, section: usize) -> Result<Vec<Placed>, ElfError> {
    let Some(sec) = container.sections.get(section) else { return Ok(Vec::new()) };
    let mut named: Vec<(u64, &str)> = container
        .symbols
        .iter()
        .filter(|s| s.place == Place::Section(section) && s.kind != SymbolKind::Section && !s.name.is_empty())
        .map(|s| (s.value, s.name))
        .collect();
    named.sort_unstable();
    named.dedup_by_key(|(offset, _)| *offset);
    if named.is_empty() {
        return Ok(Vec::new());
    }
    // Nothing else says how long the struct of this object's time was.
    let size = sec.data.len() / named.len();
    if size < 20 || !size.is_multiple_of(4) || size.checked_mul(named.len()) != Some(sec.data.len()) {
        let section = sec.name.to_owned();
        return Err(ElfError::SectionSize { section, size: sec.size, unit: "map definitions" });
    }
    let mut maps = Vec::new();
    let mut rest = Vec::new();
    for &(offset, name) in &named {
        let fault = |problem: String| ElfError::Map { map: name.to_owned(), problem };
        let at = usize::try_from(offset).ok();
        let bytes = at.and_then(|at| sec.data.get(at..)?.get(..size));
        let bytes = bytes.ok_or_else(|| fault(format!("its definition lies outside of section `{}`", sec.name)))?;
        let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w)).collect();
        let [ty, key, value, entries, flags, extra @ ..] = &words[..] else { continue };
        let map_type = MapType::from_u32(*ty).ok_or_else(|| fault(format!("unknown map type {ty}")))?;
        let mut def = MapDef::new(name, map_type, *key, *value, *entries);
        def.flags = *flags;
        if let (IPROUTE2, [_, pinning, ..]) = (size, extra) {
            def.pinning = u32::from(*pinning != 0);
        }
        rest.push(extra.to_vec());
        maps.push(Placed { def, section, offset });
    }
    for i in 0..maps.len() {
        let inner = inner_map(size, &maps, &rest, i)?;
        if let Some(m) = maps.get_mut(i) {
            m.def.inner = inner;
        }
    }
    Ok(maps)
}

/// The inner map that the words behind the common ones name.
fn inner_map(size: usize, maps: &[Placed], rest: &[Vec<u32>], i: usize) -> Result<Option<Arc<MapDef>>, ElfError> {
    let (Some(map), Some(extra)) = (maps.get(i), rest.get(i)) else { return Ok(None) };
    let fault = |problem: String| ElfError::Map { map: map.def.name.clone(), problem };
    if !matches!(map.def.map_type, MapType::ArrayOfMaps | MapType::HashOfMaps) {
        return match extra[..] {
            [n, ..] if size != IPROUTE2 && n != 0 => Err(fault(format!("unknown number {n} behind the map's flags"))),
            _ => Ok(None),
        };
    }
    let inner = match extra[..] {
        [_, _, wanted, ..] if size == IPROUTE2 => {
            maps.iter().zip(rest).find(|(_, r)| r.first() == Some(&wanted)).map(|(m, _)| m)
        }
        [index, ..] => maps.get(index as usize),
        // The loader of that time was told by its caller.
        [] => return Ok(None),
    };
    match inner {
        Some(m) if m.def.name != map.def.name => Ok(Some(Arc::new(m.def.clone()))),
        _ => Err(fault("names no other map as its inner map".into())),
    }
}
