//! What `BPF_MAP_CREATE` checks, in the kernel's order.

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_ebpf::uapi::map_flags as f;

use super::{MapError, hollow, is_hash};
use crate::header::MAX_SLOTS;
use crate::lpm;

/// Flags that say how file descriptors and programs may access the map.
pub(super) const ACCESS: u32 = f::RDONLY | f::WRONLY | f::RDONLY_PROG | f::WRONLY_PROG;
const ARRAY: u32 = f::NUMA_NODE | f::MMAPABLE | ACCESS | f::PRESERVE_ELEMS | f::INNER_MAP;
const HASH: u32 = f::NO_PREALLOC | f::NO_COMMON_LRU | f::NUMA_NODE | ACCESS | f::ZERO_SEED;
const BLOOM: u32 = f::NUMA_NODE | f::ZERO_SEED | ACCESS;
const QUEUE: u32 = f::NUMA_NODE | ACCESS;
const LPM: u32 = f::NO_PREALLOC | f::NUMA_NODE | ACCESS;
const RINGBUF: u32 = f::NUMA_NODE;
const STACK: u32 = f::NUMA_NODE | f::RDONLY | f::WRONLY | f::STACK_BUILD_ID;

/// Largest value of a per-CPU map.
const MAX_PERCPU_VALUE: u64 = 32 << 10;
/// Largest key and value of a hash map together: the kernel's largest allocation, less what it puts before them.
const MAX_HASH_ELEM: u64 = (4 << 20) - 48;
/// The kernel's largest allocation.
const MAX_ALLOC: u32 = 4 << 20;
/// Most bytes of a prefix with its length, and of a value of a longest-prefix map.
const MAX_LPM_KEY: u32 = 4 + lpm::MAX_DATA as u32;
const MAX_LPM_VALUE: u32 = MAX_ALLOC - 256 - 40;
/// Buckets of a hash map must be fewer.
const MAX_BUCKETS: u64 = u32::MAX as u64 / 16;
/// Frames of a stack trace: the default of `kernel.perf_event_max_stack`.
const MAX_STACK: u32 = 127;

pub(super) type Check = Result<(), (Errno, &'static str)>;

/// Checks a definition as the kernel does, and that skep can make such a map with this many slots.
pub fn validate(def: &MapDef, nslots: u32) -> Result<(), MapError> {
    let refused =
        |(errno, reason): (Errno, &str)| MapError::Refused { map: def.name.clone(), errno, reason: reason.to_owned() };
    common(def).map_err(refused)?;
    match def.map_type {
        MapType::Array | MapType::PercpuArray => array(def),
        MapType::ProgArray | MapType::PerfEventArray => fd_array(def),
        t if is_hash(t) => hash(def),
        MapType::ArrayOfMaps => fd_array(def).and_then(|()| inner(def)),
        MapType::HashOfMaps => hash_of_maps(def),
        MapType::LpmTrie => lpm(def),
        MapType::Queue | MapType::Stack => queue(def),
        MapType::BloomFilter => bloom(def),
        MapType::Ringbuf | MapType::UserRingbuf => ringbuf(def),
        t if hollow::is_hollow(t) => hollow::check(def),
        MapType::StackTrace => stack(def),
        MapType::Unspec => Err((Errno::EINVAL, "not a map type")),
        map_type => return Err(MapError::UnsupportedType { map: def.name.clone(), map_type }),
    }
    .map_err(refused)?;
    if def.map_type == MapType::StackTrace && def.flags & f::STACK_BUILD_ID != 0 {
        let flag = "BPF_F_STACK_BUILD_ID";
        return Err(MapError::UnsupportedFlag { map: def.name.clone(), map_type: def.map_type, flag });
    }
    if nslots == 0 || nslots > MAX_SLOTS {
        return Err(refused((Errno::EINVAL, "the number of slots must be from 1 to 4096")));
    }
    Ok(())
}

pub(super) fn need(ok: bool, reason: &'static str) -> Check {
    if ok { Ok(()) } else { Err((Errno::EINVAL, reason)) }
}

pub(super) fn too_large(reason: &'static str) -> Check {
    Err((Errno::E2BIG, reason))
}

fn common(def: &MapDef) -> Check {
    need(def.key_type_id == 0 || def.value_type_id != 0, "a BTF type for the key but none for the value")?;
    need(
        def.extra == 0 || matches!(def.map_type, MapType::BloomFilter | MapType::Arena),
        "map_extra must be 0 for this type",
    )?;
    need(def.flags & f::RDONLY == 0 || def.flags & f::WRONLY == 0, "BPF_F_RDONLY and BPF_F_WRONLY exclude each other")
}

pub(super) fn access(def: &MapDef) -> Check {
    let both = f::RDONLY_PROG | f::WRONLY_PROG;
    need(def.flags & both != both, "BPF_F_RDONLY_PROG and BPF_F_WRONLY_PROG exclude each other")
}

fn percpu_value(def: &MapDef) -> Check {
    if u64::from(def.value_size).next_multiple_of(8) > MAX_PERCPU_VALUE {
        return Err((Errno::E2BIG, "values of per-CPU maps have at most 32768 bytes"));
    }
    Ok(())
}

pub(super) fn array(def: &MapDef) -> Check {
    let percpu = def.map_type == MapType::PercpuArray;
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.key_size == 4, "keys of arrays have 4 bytes")?;
    need(def.value_size != 0, "value_size must not be 0")?;
    need(def.flags & !ARRAY == 0, "flags that arrays do not have")?;
    access(def)?;
    need(!percpu || def.flags & f::NUMA_NODE == 0, "a per-CPU map has no NUMA node")?;
    need(
        def.map_type == MapType::Array || def.flags & (f::MMAPABLE | f::INNER_MAP) == 0,
        "BPF_F_MMAPABLE and BPF_F_INNER_MAP are for plain arrays",
    )?;
    need(
        def.map_type == MapType::PerfEventArray || def.flags & f::PRESERVE_ELEMS == 0,
        "BPF_F_PRESERVE_ELEMS is for perf event arrays",
    )?;
    if def.value_size > i32::MAX as u32 {
        return Err((Errno::E2BIG, "values of arrays have less than 2 GiB"));
    }
    if percpu { percpu_value(def) } else { Ok(()) }
}

pub(super) fn fd_array(def: &MapDef) -> Check {
    need(def.value_size == 4, "values of this type are file descriptors, 4 bytes")?;
    need(def.flags & (f::RDONLY_PROG | f::WRONLY_PROG) == 0, "this type has no access flags for programs")?;
    array(def)
}

fn hash(def: &MapDef) -> Check {
    let percpu = matches!(def.map_type, MapType::PercpuHash | MapType::LruPercpuHash);
    let lru = matches!(def.map_type, MapType::LruHash | MapType::LruPercpuHash);
    need(def.flags & !HASH == 0, "flags that hash maps do not have")?;
    access(def)?;
    need(lru || def.flags & f::NO_COMMON_LRU == 0, "BPF_F_NO_COMMON_LRU is for LRU maps")?;
    if lru && def.flags & f::NO_PREALLOC != 0 {
        return Err((Errno::ENOTSUPP, "LRU maps are always preallocated"));
    }
    need(
        !(percpu || def.flags & f::NO_COMMON_LRU != 0) || def.flags & f::NUMA_NODE == 0,
        "a per-CPU map has no NUMA node",
    )?;
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.key_size != 0, "key_size must not be 0")?;
    need(def.value_size != 0, "value_size must not be 0")?;
    if u64::from(def.key_size) + u64::from(def.value_size) >= MAX_HASH_ELEM {
        return Err((Errno::E2BIG, "key and value together have less than 4 MiB"));
    }
    if percpu {
        percpu_value(def)?;
    }
    if u64::from(def.max_entries).next_power_of_two() > MAX_BUCKETS {
        return Err((Errno::E2BIG, "a hash map has at most 134217728 entries"));
    }
    Ok(())
}

/// What an inner map may be: not of maps, not of programs.
fn inner(def: &MapDef) -> Check {
    let inner = def.inner.as_ref().ok_or((Errno::EINVAL, "no inner map is named"))?;
    need(!matches!(inner.map_type, MapType::ArrayOfMaps | MapType::HashOfMaps), "maps of maps of maps there are not")?;
    use MapType::{CgroupStorage, PercpuCgroupStorage, ProgArray, StructOps};
    if matches!(inner.map_type, ProgArray | CgroupStorage | PercpuCgroupStorage | StructOps) {
        return Err((Errno::ENOTSUPP, "maps of this type cannot be inner maps"));
    }
    Ok(())
}

fn hash_of_maps(def: &MapDef) -> Check {
    need(def.value_size == 4, "values of this type are file descriptors, 4 bytes")?;
    hash(def)?;
    inner(def)
}

fn lpm(def: &MapDef) -> Check {
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.flags & f::NO_PREALLOC != 0, "BPF_F_NO_PREALLOC is needed")?;
    need(def.flags & !LPM == 0, "flags that longest-prefix maps do not have")?;
    access(def)?;
    need((5..=MAX_LPM_KEY).contains(&def.key_size), "a prefix has 1 to 256 bytes behind its length")?;
    need((1..=MAX_LPM_VALUE).contains(&def.value_size), "value_size must not be 0, nor too large")
}

fn queue(def: &MapDef) -> Check {
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.key_size == 0, "queues and stacks have no keys")?;
    need(def.value_size != 0, "value_size must not be 0")?;
    need(def.flags & !QUEUE == 0, "flags that queues and stacks do not have")?;
    access(def)?;
    if def.value_size > MAX_ALLOC || def.max_entries >= u32::MAX / def.value_size {
        return too_large("the values are too large");
    }
    Ok(())
}

fn bloom(def: &MapDef) -> Check {
    if def.value_size > MAX_ALLOC {
        return too_large("the values are too large");
    }
    need(def.key_size == 0, "bloom filters have no keys")?;
    need(def.value_size != 0, "value_size must not be 0")?;
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.flags & !BLOOM == 0, "flags that bloom filters do not have")?;
    access(def)?;
    need(def.extra & !0xf == 0, "map_extra is the number of hash functions, at most 15")
}

fn ringbuf(def: &MapDef) -> Check {
    need(def.flags & !RINGBUF == 0, "flags that ring buffers do not have")?;
    need(def.key_size == 0 && def.value_size == 0, "a ring buffer has no keys and no values")?;
    need(
        def.max_entries.is_power_of_two() && def.max_entries.is_multiple_of(4096),
        "max_entries of a ring buffer is its size: a power of two, and whole pages",
    )
}

fn stack(def: &MapDef) -> Check {
    need(def.flags & !STACK == 0, "flags that stack trace maps do not have")?;
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.key_size == 4, "keys of stack trace maps have 4 bytes")?;
    need(def.value_size >= 8 && def.value_size.is_multiple_of(8), "a stack trace is a multiple of 8 bytes")?;
    let frame = if def.flags & f::STACK_BUILD_ID != 0 { 32 } else { 8 };
    need(def.value_size.is_multiple_of(frame), "a frame with build id has 32 bytes")?;
    need(def.value_size / frame <= MAX_STACK, "a stack trace has at most 127 frames")?;
    if def.max_entries > 1 << 31 {
        return Err((Errno::E2BIG, "too many entries"));
    }
    Ok(())
}
