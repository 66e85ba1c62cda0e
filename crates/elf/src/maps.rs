//! Maps defined by BTF in `.maps`: each variable is a struct whose members' *types* carry the numbers.

use std::sync::Arc;

use skep_ebpf::btf::{Btf, Kind, Linkage};
use skep_ebpf::program::{InitialValue, MapDef};
use skep_ebpf::uapi::MapType;

use crate::ElfError;
use crate::container::{Container, Section};

/// A map and where its definition stands.
pub(crate) struct Placed {
    pub def: MapDef,
    pub section: usize,
    /// Offset of the definition in the section; 0 for maps made of a whole section.
    pub offset: u64,
}

/// A definition and, for `.values`, where the array of initial values begins.
struct Parsed {
    def: MapDef,
    values_at: Option<u64>,
}

fn fault(map: &str, problem: impl Into<String>) -> ElfError {
    ElfError::Map { map: map.to_owned(), problem: problem.into() }
}

/// All maps of `.maps`, in the order of its variables.
pub(crate) fn user_maps(
    container: &Container<'_>,
    section: usize,
    btf: &Btf,
    is_program: &dyn Fn(&str) -> bool,
) -> Result<Vec<Placed>, ElfError> {
    let Some(sec) = container.sections.get(section) else { return Ok(Vec::new()) };
    let missing = || fault(sec.name, "the object's BTF has no data section of this name");
    let id = btf.find(sec.name, |k| matches!(k, Kind::Datasec { .. })).ok_or_else(missing)?;
    let Some(Kind::Datasec { vars, .. }) = btf.kind(id) else { return Err(missing()) };
    let mut maps = Vec::new();
    let mut spans = Vec::new();
    for &(var, offset, size) in vars {
        let name = btf.name(var);
        let Some(&Kind::Var { ty, linkage }) = btf.kind(var) else {
            return Err(fault(name, "its definition is not a variable"));
        };
        if name.is_empty() {
            return Err(fault("?", format!("the map at offset {offset} of `{}` has no name", sec.name)));
        }
        if linkage != Linkage::Global {
            return Err(fault(name, "a map must be a global variable"));
        }
        if u64::from(offset) + u64::from(size) > sec.data.len() as u64 {
            return Err(fault(name, format!("its definition lies outside of section `{}`", sec.name)));
        }
        let parsed = Definition { btf, name, nested: false }.parse(ty)?;
        spans.push((u64::from(offset), u64::from(size), parsed.values_at));
        maps.push(Placed { def: parsed.def, section, offset: offset.into() });
    }
    initial_values(container, sec, &mut maps, &spans, is_program)?;
    Ok(maps)
}

struct Definition<'a> {
    btf: &'a Btf,
    name: &'a str,
    nested: bool,
}

impl Definition<'_> {
    fn fault(&self, problem: impl Into<String>) -> ElfError {
        fault(self.name, problem)
    }

    /// The number that `__uint` hides as the length of an array behind a pointer.
    fn uint(&self, field: &str, ty: u32) -> Result<u32, ElfError> {
        let ptr = self.btf.resolve(ty).and_then(|id| self.btf.kind(id));
        if let Some(&Kind::Ptr { ty: array }) = ptr
            && let Some(&Kind::Array { len, .. }) = self.btf.kind(array)
        {
            return Ok(len);
        }
        Err(self.fault(format!("`{field}` is not a number made with __uint")))
    }

    /// The number that `__ulong` hides as the value of an enumerator.
    fn ulong(&self, field: &str, ty: u32) -> Result<u64, ElfError> {
        if let Ok(n) = self.uint(field, ty) {
            return Ok(n.into());
        }
        let resolved = self.btf.resolve(ty).and_then(|id| self.btf.kind(id));
        match resolved.and_then(Kind::enumerators) {
            Some([(_, value)]) => Ok(*value as u64),
            _ => Err(self.fault(format!("`{field}` is not a number made with __uint or __ulong"))),
        }
    }

    /// The type that `__type` hides behind a pointer, and its size.
    fn pointee(&self, field: &str, ty: u32) -> Result<(u32, u32), ElfError> {
        let Some(&Kind::Ptr { ty }) = self.btf.kind(ty) else {
            return Err(self.fault(format!("`{field}` is not a type made with __type")));
        };
        let size = self.btf.size_of(ty).and_then(|n| u32::try_from(n).ok());
        size.map(|n| (ty, n)).ok_or_else(|| self.fault(format!("the type of `{field}` has no size")))
    }

    fn parse(&self, ty: u32) -> Result<Parsed, ElfError> {
        let btf = self.btf;
        let Some(Kind::Struct(c)) = btf.resolve(ty).and_then(|id| btf.kind(id)) else {
            return Err(self.fault("its definition is not a struct"));
        };
        let mut def = MapDef::new(self.name, MapType::Unspec, 0, 0, 0);
        let mut values_at = None;
        let agree = |what: &str, old: u32, new: u32| {
            if old == 0 || old == new {
                Ok(new)
            } else {
                Err(self.fault(format!("{what} is given as {old} and as {new} bytes")))
            }
        };
        for (i, m) in c.members.iter().enumerate() {
            let field = btf.str_at(m.name_off).unwrap_or("");
            match field {
                "type" => {
                    let n = self.uint(field, m.ty)?;
                    def.map_type = MapType::from_u32(n).ok_or_else(|| self.fault(format!("unknown map type {n}")))?;
                }
                "max_entries" => def.max_entries = self.uint(field, m.ty)?,
                "map_flags" => def.flags = self.uint(field, m.ty)?,
                // There is one memory here: the node is checked to be a number, then has no effect.
                "numa_node" => _ = self.uint(field, m.ty)?,
                "key_size" => def.key_size = agree("the key", def.key_size, self.uint(field, m.ty)?)?,
                "value_size" => def.value_size = agree("the value", def.value_size, self.uint(field, m.ty)?)?,
                "key" => {
                    let (ty, size) = self.pointee(field, m.ty)?;
                    def.key_size = agree("the key", def.key_size, size)?;
                    def.key_type_id = ty;
                }
                "value" => {
                    let (ty, size) = self.pointee(field, m.ty)?;
                    def.value_size = agree("the value", def.value_size, size)?;
                    def.value_type_id = ty;
                }
                "values" => {
                    if i + 1 != c.members.len() {
                        return Err(self.fault("`values` must be the last member"));
                    }
                    self.values(&mut def, m.ty)?;
                    values_at = Some(u64::from(m.bit_offset / 8));
                }
                "pinning" => {
                    def.pinning = match self.uint(field, m.ty)? {
                        n @ (0 | 1) if !self.nested => n,
                        n => return Err(self.fault(format!("`pinning` cannot be {n} here"))),
                    }
                }
                "map_extra" => def.extra = self.ulong(field, m.ty)?,
                other => return Err(self.fault(format!("unknown member `{other}`"))),
            }
        }
        match def.map_type {
            MapType::Unspec => return Err(self.fault("has no `type`")),
            MapType::Ringbuf | MapType::UserRingbuf => def.max_entries = ring_size(def.max_entries),
            _ => {}
        }
        Ok(Parsed { def, values_at })
    }

    /// `__array(values, …)`: the shape of inner maps or of programs.
    fn values(&self, def: &mut MapDef, ty: u32) -> Result<(), ElfError> {
        let btf = self.btf;
        let bad = || self.fault("`values` is not an array made with __array");
        let of_maps = matches!(def.map_type, MapType::ArrayOfMaps | MapType::HashOfMaps);
        if self.nested || !(of_maps || def.map_type == MapType::ProgArray) {
            return Err(self.fault("only maps of maps and prog arrays have `values`, and these do not nest"));
        }
        if def.value_size != 0 && def.value_size != 4 {
            return Err(self.fault(format!("the value is given as {} bytes, but must have 4", def.value_size)));
        }
        def.value_size = 4;
        let Some(&Kind::Array { elem, len: 0, .. }) = btf.kind(ty) else { return Err(bad()) };
        let Some(&Kind::Ptr { ty }) = btf.resolve(elem).and_then(|id| btf.kind(id)) else { return Err(bad()) };
        let ty = btf.resolve(ty).ok_or_else(bad)?;
        match btf.kind(ty) {
            Some(Kind::FuncProto { .. }) if !of_maps => Ok(()),
            Some(Kind::Struct(_)) if of_maps => {
                let name = format!("{}.inner", self.name);
                let inner = Definition { btf, name: &name, nested: true }.parse(ty)?;
                def.inner = Some(Arc::new(inner.def));
                Ok(())
            }
            _ => Err(bad()),
        }
    }
}

/// The size that a ring can have: a power of two of pages, at least what is asked for. Zero stays, for the kernel to refuse.
fn ring_size(asked: u32) -> u32 {
    const PAGE: u32 = 4096;
    match asked {
        0 => 0,
        n => n.max(PAGE).checked_next_power_of_two().unwrap_or(n),
    }
}

/// Relocations of `.maps` fill the slots of `values`.
fn initial_values(
    container: &Container<'_>,
    sec: &Section<'_>,
    maps: &mut [Placed],
    spans: &[(u64, u64, Option<u64>)],
    is_program: &dyn Fn(&str) -> bool,
) -> Result<(), ElfError> {
    for r in &sec.relocs {
        let symbol = container.symbol_name(r.symbol);
        let fault = |problem: &str| ElfError::Reloc {
            section: sec.name.to_owned(),
            offset: r.offset,
            symbol: symbol.to_owned(),
            problem: problem.to_owned(),
        };
        let holder = spans.iter().position(|&(off, size, _)| {
            r.offset.checked_sub(off).and_then(|rel| rel.checked_add(8)).is_some_and(|end| end <= size)
        });
        let holder = holder.ok_or_else(|| fault("no map is defined there"))?;
        let known = maps.iter().any(|m| m.def.name == symbol);
        let (Some(&(offset, _, values_at)), Some(map)) = (spans.get(holder), maps.get_mut(holder)) else { continue };
        let slot = values_at
            .and_then(|at| r.offset.checked_sub(offset)?.checked_sub(at))
            .filter(|n| n % 8 == 0)
            .and_then(|n| u32::try_from(n / 8).ok())
            .ok_or_else(|| fault("not an element of `values`"))?;
        let value = match map.def.map_type {
            MapType::ProgArray if is_program(symbol) => InitialValue::Program(symbol.to_owned()),
            MapType::ProgArray => return Err(fault("not a program of this object")),
            MapType::HashOfMaps if map.def.key_size != 4 => {
                return Err(fault("a hash of maps with initial values must have keys of 4 bytes"));
            }
            _ if known => InitialValue::Map(symbol.to_owned()),
            _ => return Err(fault("not a map of this object")),
        };
        map.def.values.retain(|(s, _)| *s != slot);
        map.def.values.push((slot, value));
    }
    for m in maps {
        m.def.values.sort_by_key(|v| v.0);
    }
    Ok(())
}
