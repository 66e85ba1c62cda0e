//! Externs: what an object takes from the kernel's configuration (`.kconfig`) and from the kernel itself (`.ksyms`).

use skep_ebpf::btf::{Btf, Kind, Linkage, int_encoding};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags};

use crate::ElfError;
use crate::container::{Binding, Container, Place, SymbolKind};
use crate::data::{describe, internal_name};

/// Name of the section, in BTF only, that configuration values belong to.
pub(crate) const KCONFIG: &str = ".kconfig";
const KSYMS: &str = ".ksyms";

/// Something that is defined outside of the object.
#[derive(Clone, Debug)]
pub(crate) struct Extern {
    pub name: String,
    /// Number of its symbol.
    pub symbol: usize,
    /// May be missing.
    pub weak: bool,
    pub kind: ExternKind,
}

#[derive(Clone, Debug)]
pub(crate) enum ExternKind {
    /// A value of the kernel's configuration, at an offset of the `.kconfig` map.
    Kconfig { ty: ConfigType, size: u32, align: u32, offset: u32 },
    /// A kernel symbol; `ty` is its type in the object's BTF behind modifiers, 0 if it has none.
    Ksym { ty: u32, function: bool },
    /// What it is cannot be told; an error for programs that use it.
    Unknown(String),
}

/// What a configuration value is stored as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ConfigType {
    Bool,
    Char { signed: bool },
    Int { signed: bool },
    Tristate,
    Text,
}

impl Extern {
    /// Order of the table: configuration values by alignment (big first), size, name; then symbols by name.
    fn key(&self) -> (u8, std::cmp::Reverse<u32>, u32, &str) {
        match self.kind {
            ExternKind::Kconfig { size, align, .. } => (1, std::cmp::Reverse(align), size, &self.name),
            ExternKind::Ksym { .. } => (2, std::cmp::Reverse(0), 0, &self.name),
            ExternKind::Unknown(_) => (3, std::cmp::Reverse(0), 0, &self.name),
        }
    }
}

/// Collects the externs of an object and lays out `.kconfig`; gives its size too.
pub(crate) fn collect(container: &Container<'_>, btf: Option<&Btf>) -> (Vec<Extern>, u32) {
    let mut externs: Vec<Extern> = container
        .symbols
        .iter()
        .enumerate()
        .filter(|(_, s)| {
            s.place == Place::Undefined
                && s.binding != Binding::Local
                && s.kind == SymbolKind::None
                && !s.name.is_empty()
        })
        .map(|(symbol, s)| {
            let kind = btf.ok_or("the object has no BTF to say what it is").and_then(|btf| kind(btf, s.name));
            Extern {
                name: s.name.to_owned(),
                symbol,
                weak: s.binding == Binding::Weak,
                kind: kind.unwrap_or_else(|e| ExternKind::Unknown(e.to_owned())),
            }
        })
        .collect();
    externs.sort_by(|a, b| a.key().cmp(&b.key()));
    let mut end = 0u32;
    for e in &mut externs {
        if let ExternKind::Kconfig { size, align, offset, .. } = &mut e.kind {
            *offset = end.checked_next_multiple_of(*align).unwrap_or(u32::MAX);
            end = offset.saturating_add(*size);
        }
    }
    (externs, end)
}

/// The BTF variable or function of an extern.
fn declaration(btf: &Btf, name: &str) -> Option<u32> {
    btf.find(name, |k| {
        matches!(k, Kind::Var { linkage: Linkage::Extern, .. } | Kind::Func { linkage: Linkage::Extern, .. })
    })
}

fn kind(btf: &Btf, name: &str) -> Result<ExternKind, &'static str> {
    let id = declaration(btf, name).ok_or("the object's BTF does not declare it")?;
    let section = btf.iter().find(|(_, t)| match &t.kind {
        Kind::Datasec { vars, .. } => vars.iter().any(|v| v.0 == id),
        _ => false,
    });
    let section = section.map_or("", |(id, _)| btf.name(id));
    let (ty, function) = match btf.kind(id) {
        Some(&Kind::Func { proto, .. }) => (proto, true),
        Some(&Kind::Var { ty, .. }) => (ty, false),
        _ => return Err("the object's BTF does not declare it"),
    };
    match section {
        KSYMS => Ok(ExternKind::Ksym { ty: btf.resolve(ty).ok_or("its type cannot be resolved")?, function }),
        KCONFIG if function => Err("a function cannot come from the kernel's configuration"),
        KCONFIG => {
            let size = btf.size_of(ty).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0 && n <= 1 << 20);
            let size = size.ok_or("its type has no size")?;
            let align = align_of(btf, ty, 0).ok_or("its type has no alignment")?;
            let ty = config_type(btf, ty).ok_or("its type cannot hold a configuration value")?;
            Ok(ExternKind::Kconfig { ty, size, align, offset: 0 })
        }
        _ => Err("it is in neither .kconfig nor .ksyms"),
    }
}

fn align_of(btf: &Btf, ty: u32, depth: u32) -> Option<u32> {
    let id = btf.resolve(ty)?;
    match btf.kind(id)? {
        Kind::Int { size, .. } | Kind::Enum { size, .. } | Kind::Enum64 { size, .. } => {
            Some((*size).clamp(1, 8)).filter(|n| n.is_power_of_two())
        }
        Kind::Array { elem, .. } if depth < 8 => align_of(btf, *elem, depth + 1),
        _ => None,
    }
}

fn config_type(btf: &Btf, ty: u32) -> Option<ConfigType> {
    let id = btf.resolve(ty)?;
    match *btf.kind(id)? {
        Kind::Int { size: 1, encoding, .. } if encoding & int_encoding::BOOL != 0 => Some(ConfigType::Bool),
        Kind::Int { encoding, .. } if encoding & int_encoding::BOOL != 0 => None,
        Kind::Int { size: 1, encoding, .. } => Some(ConfigType::Char { signed: encoding & int_encoding::SIGNED != 0 }),
        Kind::Int { size: 2 | 4 | 8, encoding, .. } => {
            Some(ConfigType::Int { signed: encoding & int_encoding::SIGNED != 0 })
        }
        Kind::Enum { size: 4, .. } | Kind::Enum64 { .. } if btf.name(id) == "libbpf_tristate" => {
            Some(ConfigType::Tristate)
        }
        Kind::Array { elem, len, .. } if len > 0 => {
            let elem = btf.resolve(elem)?;
            match btf.kind(elem)? {
                Kind::Int { size: 1, encoding, .. } if encoding & int_encoding::BOOL == 0 => Some(ConfigType::Text),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Writes the layout of `.kconfig` into the BTF, and makes its variables ordinary ones.
pub(crate) fn lay_out(btf: &mut Btf, externs: &[Extern], size: u32) {
    let Some(id) = btf.find(KCONFIG, |k| matches!(k, Kind::Datasec { .. })) else { return };
    let Some(Kind::Datasec { vars, .. }) = btf.kind(id) else { return };
    let vars: Vec<u32> = vars.iter().map(|v| v.0).collect();
    let offset = |var: u32| {
        externs.iter().find(|e| e.name == btf.name(var)).map_or(0, |e| match e.kind {
            ExternKind::Kconfig { offset, .. } => offset,
            _ => 0,
        })
    };
    let offsets: Vec<u32> = vars.iter().map(|&v| offset(v)).collect();
    for var in vars {
        btf.set_linkage(var, Linkage::Global);
    }
    btf.lay_out(id, size, &offsets);
}

/// The map that holds the configuration values, still without them.
pub(crate) fn kconfig_map(object: &str, size: u32, btf: Option<&Btf>) -> Option<MapDef> {
    if size == 0 {
        return None;
    }
    let mut def = MapDef::new(&internal_name(object, KCONFIG), MapType::Array, 4, size, 1);
    def.flags = map_flags::RDONLY_PROG;
    def.frozen = true;
    describe(&mut def, KCONFIG, btf);
    Some(def)
}

/// An error about an extern.
pub(crate) fn fault(name: &str, problem: impl Into<String>) -> ElfError {
    ElfError::Extern { symbol: name.to_owned(), problem: problem.into() }
}
