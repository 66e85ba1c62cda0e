//! What programs own: special fields of map values and of their own objects, locks, timers, kptrs, lists and trees.

pub(crate) mod arena;
mod kptr;
mod local;
mod locks;
mod map_types;
mod parse;
pub(crate) mod record;
mod structs;
pub(crate) mod timer;

pub(crate) use locks::{Lock, LockKind};
pub(crate) use record::{Content, Field, FieldKind, Pointee, Record};
pub(crate) use structs::Structs;

use skep_ebpf::Errno;
use skep_ebpf::btf::Btf;
use skep_ebpf::program::MapDef;

/// The special fields of a map's values. A loader whose types the kernel refuses makes the map without them.
pub(crate) fn map_record(def: &MapDef, btf: Option<&Btf>, kernel: Option<&Btf>, structs: &Structs) -> Record {
    match btf {
        Some(btf) if def.value_type_id != 0 && map_types::has_types(def.map_type) => {
            map_types::record(def, btf, kernel, structs).unwrap_or_default()
        }
        _ => Record::default(),
    }
}

/// True if the values of a map have fields that are the kernel's business (locks, timers, objects and their like).
pub fn has_special_fields(def: &MapDef, btf: &Btf, kernel: Option<&Btf>) -> bool {
    let record = Structs::collect(btf, kernel).and_then(|structs| map_types::record(def, btf, kernel, &structs));
    record.is_ok_and(|r| !r.fields.is_empty())
}

/// Where the values of a map have a spin lock.
pub fn spin_lock_of(def: &MapDef, btf: &Btf, kernel: Option<&Btf>) -> Option<u32> {
    let structs = Structs::collect(btf, kernel).ok()?;
    map_record(def, Some(btf), kernel, &structs).first(FieldKind::SpinLock).map(|f| f.off)
}

/// Checks the BTF types of a map as `BPF_MAP_CREATE` does. `kernel` is the kernel's BTF.
pub fn check_map_types(def: &MapDef, btf: &Btf, kernel: Option<&Btf>) -> Result<(), Errno> {
    let structs = Structs::collect(btf, kernel)?;
    map_types::record(def, btf, kernel, &structs).map(drop)
}
