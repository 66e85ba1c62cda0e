//! Which types of BTF may describe the keys and values of which maps.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;

/// What a kind of map says to the types of its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Any of the key's size.
    Any,
    /// An integer of four bytes. With `sections` a map of one section of global data needs none.
    Index { sections: bool },
    /// A structure.
    Struct,
    /// Any, or none.
    Optional,
    /// It takes no types.
    NoTypes,
}

fn keys(kind: MapType) -> Keys {
    use MapType::*;
    match kind {
        Array => Keys::Index { sections: true },
        PercpuArray | SkStorage | InodeStorage | TaskStorage | CgrpStorage => Keys::Index { sections: false },
        LpmTrie => Keys::Struct,
        BloomFilter => Keys::Optional,
        PerfEventArray | StackTrace | CgroupArray | Devmap | DevmapHash | Sockmap | Sockhash | Cpumap | Xskmap => {
            Keys::NoTypes
        }
        _ => Keys::Any,
    }
}

/// Checks them as the kernel does: sizes first.
pub(super) fn check(def: &MapDef, btf: &Btf, key: u32, value: u32) -> Result<(), Errno> {
    let keys = keys(def.map_type);
    let is_of = |id: u32, size: u32| btf.size_of(id) == Some(u64::from(size));
    let fits = match key {
        0 => keys != Keys::Any,
        key => is_of(key, def.key_size),
    };
    if !fits || !is_of(value, def.value_size) {
        return Err(Errno::EINVAL);
    }
    let kind = |id: u32| btf.resolve(id).and_then(|id| btf.kind(id));
    let fits = match keys {
        Keys::NoTypes => return Err(Errno::ENOTSUPP),
        Keys::Any | Keys::Optional => true,
        Keys::Struct => matches!(kind(key), Some(Kind::Struct(_))),
        Keys::Index { sections } if key == 0 => {
            sections && def.max_entries == 1 && matches!(btf.kind(value), Some(Kind::Datasec { .. }))
        }
        Keys::Index { .. } => matches!(kind(key), Some(Kind::Int { size: 4, bits: 32, offset: 0, .. })),
    };
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}
