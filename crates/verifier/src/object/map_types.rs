//! The BTF of a map: which special fields its values have, and which maps may have them.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind as Type};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags};

use super::parse::{self, Holder};
use super::record::{FieldKind, Pointee, Record};
use super::structs::Structs;

/// Largest memory that a `uptr` leads to.
const PAGE: u64 = 4096;

/// The special fields of a map's values; fails as `BPF_MAP_CREATE` does with these types.
pub(crate) fn record(def: &MapDef, btf: &Btf, kernel: Option<&Btf>, structs: &Structs) -> Result<Record, Errno> {
    let key = match def.key_type_id {
        0 => None,
        id => {
            if btf.size_of(id) != Some(def.key_size.into()) {
                return Err(Errno::EINVAL);
            }
            Some(btf.resolve(id).ok_or(Errno::EINVAL)?)
        }
    };
    let value = btf.resolve(def.value_type_id).ok_or(Errno::EINVAL)?;
    if btf.size_of(value) != Some(def.value_size.into()) {
        return Err(Errno::EINVAL);
    }
    // A value whose fields make no sense has none.
    let record = parse::record(btf, kernel, value, def.value_size, Holder::MapValue).unwrap_or_default();
    if !record.is_empty() && def.flags & (map_flags::RDONLY_PROG | map_flags::WRONLY_PROG) != 0 {
        return Err(Errno::EACCES);
    }
    for f in &record.fields {
        if !may_hold(def.map_type, f.kind) {
            return Err(Errno::EOPNOTSUPP);
        }
        if f.kind == FieldKind::Uptr {
            check_uptr(btf, f.pointee())?;
        }
    }
    structs.check_roots(&record)?;
    check_key(def, btf, key, value)?;
    Ok(record)
}

/// True if the loader gives a map of this type its BTF at all.
pub(crate) fn has_types(map: MapType) -> bool {
    !matches!(
        map,
        MapType::PerfEventArray
            | MapType::CgroupArray
            | MapType::StackTrace
            | MapType::ArrayOfMaps
            | MapType::HashOfMaps
            | MapType::Devmap
            | MapType::DevmapHash
            | MapType::Cpumap
            | MapType::Xskmap
            | MapType::Sockmap
            | MapType::Sockhash
            | MapType::Queue
            | MapType::Stack
            | MapType::Arena
    )
}

fn may_hold(map: MapType, kind: FieldKind) -> bool {
    let storage =
        matches!(map, MapType::SkStorage | MapType::InodeStorage | MapType::TaskStorage | MapType::CgrpStorage);
    match kind {
        FieldKind::SpinLock | FieldKind::ResSpinLock => {
            storage || matches!(map, MapType::Hash | MapType::Array | MapType::CgroupStorage)
        }
        FieldKind::Timer | FieldKind::Workqueue | FieldKind::TaskWork | FieldKind::ListHead | FieldKind::RbRoot => {
            matches!(map, MapType::Hash | MapType::LruHash | MapType::Array)
        }
        FieldKind::KptrUntrusted | FieldKind::Kptr | FieldKind::KptrPercpu | FieldKind::Refcount => {
            storage
                || matches!(
                    map,
                    MapType::Hash
                        | MapType::PercpuHash
                        | MapType::LruHash
                        | MapType::LruPercpuHash
                        | MapType::Array
                        | MapType::PercpuArray
                )
        }
        FieldKind::Uptr => map == MapType::TaskStorage,
        FieldKind::ListNode | FieldKind::RbNode => false,
    }
}

/// Memory that user space shares is a struct of the program, of at most a page.
fn check_uptr(btf: &Btf, pointee: Option<Pointee>) -> Result<(), Errno> {
    let id = match pointee {
        Some(Pointee::Local(id)) => id,
        Some(Pointee::Unknown) => return Ok(()),
        _ => return Err(Errno::EINVAL),
    };
    match btf.size_of(id) {
        None | Some(0) => Err(Errno::EINVAL),
        Some(size) if size > PAGE => Err(Errno::E2BIG),
        Some(_) => Ok(()),
    }
}

/// Each map type wants keys of its own kind.
fn check_key(def: &MapDef, btf: &Btf, key: Option<u32>, value: u32) -> Result<(), Errno> {
    let kind = key.and_then(|k| btf.kind(k));
    let number = |width: u8| matches!(kind, Some(Type::Int { bits, offset: 0, .. }) if *bits == width);
    let ok = match def.map_type {
        MapType::Array | MapType::PercpuArray => match kind {
            None => {
                def.map_type == MapType::Array
                    && def.max_entries == 1
                    && matches!(btf.kind(value), Some(Type::Datasec { .. }))
            }
            Some(_) => number(32),
        },
        MapType::SkStorage | MapType::InodeStorage | MapType::TaskStorage | MapType::CgrpStorage => number(32),
        MapType::LpmTrie => matches!(kind, Some(Type::Struct(_))),
        MapType::BloomFilter => kind.is_none(),
        MapType::CgroupStorage | MapType::PercpuCgroupStorage => match kind {
            Some(Type::Struct(s)) => s.members.len() == 2,
            _ => number(64),
        },
        _ => kind.is_some(),
    };
    if ok { Ok(()) } else { Err(Errno::EINVAL) }
}
