//! Maps of what lives in the kernel alone: devices, sockets, control groups and what hangs on them.
//!
//! They can be made, by the kernel's rules, so that programs that name one load, are verified and run: they find it
//! empty. Nothing can be put in, as there is nothing here to name; each command answers as for an empty map.

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType::{self, *};
use skep_ebpf::uapi::map_flags as f;

use super::validate::{ACCESS, Check, access, array, fd_array, need, too_large};

/// Largest value of a cgroup's storage per CPU.
const MAX_PERCPU_STORAGE: u32 = 32 << 10;
/// Largest value that hangs on an object of the kernel.
const MAX_STORAGE: u32 = u16::MAX as u32 - 128;

/// Most CPUs that the machine's kernel is built for.
fn max_cpus() -> u32 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/kernel_max").unwrap_or_default();
    text.trim().parse().map_or(8192, |last: u32| last.saturating_add(1))
}

/// True for the types of this module.
pub fn is_hollow(t: MapType) -> bool {
    matches!(
        t,
        CgroupArray
            | Devmap
            | DevmapHash
            | Cpumap
            | Xskmap
            | Sockmap
            | Sockhash
            | ReuseportSockarray
            | CgroupStorage
            | PercpuCgroupStorage
            | SkStorage
            | InodeStorage
            | TaskStorage
            | CgrpStorage
    )
}

/// The checks of a definition, in the kernel's order.
pub(super) fn check(def: &MapDef) -> Check {
    match def.map_type {
        CgroupArray => fd_array(def),
        ReuseportSockarray => {
            need(matches!(def.value_size, 4 | 8), "values are sockets, 4 or 8 bytes")?;
            array(def)
        }
        Devmap | DevmapHash => {
            keyed(def, f::NUMA_NODE | f::RDONLY | f::WRONLY)?;
            need(matches!(def.value_size, 4 | 8), "values are devices, 4 or 8 bytes")?;
            let many = def.map_type == DevmapHash && def.max_entries > 1 << 31;
            need(!many, "too many entries")
        }
        Cpumap => {
            keyed(def, f::NUMA_NODE)?;
            need(matches!(def.value_size, 4 | 8), "values are queue sizes, 4 or 8 bytes")?;
            if def.max_entries > max_cpus() { too_large("more entries than CPUs") } else { Ok(()) }
        }
        Xskmap => {
            keyed(def, f::NUMA_NODE | f::RDONLY | f::WRONLY)?;
            need(def.value_size == 4, "values are sockets, 4 bytes")
        }
        Sockmap => {
            keyed(def, f::NUMA_NODE | f::RDONLY | f::WRONLY)?;
            need(def.max_entries <= i32::MAX as u32, "too many entries")?;
            need(matches!(def.value_size, 4 | 8), "values are sockets, 4 or 8 bytes")
        }
        Sockhash => {
            need(def.max_entries != 0 && def.key_size != 0, "max_entries and key_size must not be 0")?;
            need(matches!(def.value_size, 4 | 8), "values are sockets, 4 or 8 bytes")?;
            need(def.flags & !(f::NUMA_NODE | f::RDONLY | f::WRONLY) == 0, "flags that this type does not have")?;
            if def.key_size > 512 { too_large("keys have at most 512 bytes") } else { Ok(()) }
        }
        CgroupStorage | PercpuCgroupStorage => {
            need(matches!(def.key_size, 8 | 16), "keys have 8 or 16 bytes")?;
            need(def.value_size != 0, "value_size must not be 0")?;
            let most = if def.map_type == PercpuCgroupStorage { MAX_PERCPU_STORAGE } else { MAX_STORAGE };
            if def.value_size > most {
                return too_large("the value is too large");
            }
            need(def.flags & !(f::NUMA_NODE | ACCESS) == 0, "flags that this type does not have")?;
            access(def)?;
            need(def.max_entries == 0, "max_entries must be 0")
        }
        _ => {
            need(def.flags & !(f::NO_PREALLOC | f::CLONE) == 0, "flags that this type does not have")?;
            need(def.flags & f::NO_PREALLOC != 0, "BPF_F_NO_PREALLOC is needed")?;
            need(def.max_entries == 0, "max_entries must be 0")?;
            need(def.key_size == 4 && def.value_size != 0, "keys have 4 bytes, and value_size must not be 0")?;
            need(def.key_type_id != 0 && def.value_type_id != 0, "the types of key and value are needed")?;
            if def.value_size > MAX_STORAGE { too_large("the value is too large") } else { Ok(()) }
        }
    }
}

fn keyed(def: &MapDef, flags: u32) -> Check {
    need(def.max_entries != 0, "max_entries must not be 0")?;
    need(def.key_size == 4, "keys have 4 bytes")?;
    need(def.flags & !flags == 0, "flags that this type does not have")
}

/// True for those with an index as their key.
fn indexed(t: MapType) -> bool {
    matches!(t, CgroupArray | Devmap | Cpumap | Xskmap | Sockmap | ReuseportSockarray)
}

/// What a look-up answers.
pub(super) fn lookup(def: &MapDef) -> Errno {
    match def.map_type {
        CgroupArray => Errno::ENOTSUPP,
        Xskmap => Errno::EOPNOTSUPP,
        Sockmap | Sockhash | ReuseportSockarray if def.value_size != 8 => Errno::ENOSPC,
        _ => Errno::ENOENT,
    }
}

/// What a deletion answers: `Ok` where the kernel does not tell whether there was something.
pub(super) fn delete(def: &MapDef, index: u32) -> Result<(), Errno> {
    let outside = indexed(def.map_type) && index >= def.max_entries;
    match def.map_type {
        Devmap | Cpumap | Xskmap if outside => Err(Errno::EINVAL),
        Devmap | Cpumap | Xskmap => Ok(()),
        CgroupArray | ReuseportSockarray if outside => Err(Errno::E2BIG),
        Sockmap => Err(Errno::EINVAL),
        CgroupStorage | PercpuCgroupStorage => Err(Errno::EINVAL),
        SkStorage | InodeStorage | TaskStorage | CgrpStorage => Err(Errno::EBADF),
        _ => Err(Errno::ENOENT),
    }
}

/// What an update answers, in the kernel's order of checks. A value that names nothing is refused as there, one that says
/// "none" is taken; what is left names something that cannot be held here: `EOPNOTSUPP`.
pub(super) fn update(def: &MapDef, index: u32, value: &[u8], flags: u64) -> Result<(), Errno> {
    let outside = indexed(def.map_type) && index >= def.max_entries;
    let number = value.iter().take(8).rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let first = number as u32;
    // A descriptor of 8 bytes is checked as a whole.
    let fd = || match value.len() {
        8 if number > i32::MAX as u64 => Err(Errno::EINVAL),
        _ if first > i32::MAX as u32 => Err(Errno::EBADF),
        _ => Err(Errno::EOPNOTSUPP),
    };
    match def.map_type {
        Sockmap | Sockhash if number > i32::MAX as u64 => Err(Errno::EINVAL),
        Sockmap | Sockhash => fd(),
        CgroupArray if flags != 0 => Err(Errno::EINVAL),
        CgroupStorage if flags & !2 != 0 => Err(Errno::EINVAL),
        PercpuCgroupStorage if flags != 0 && flags != 2 => Err(Errno::EINVAL),
        CgroupStorage | PercpuCgroupStorage => Err(Errno::ENOENT),
        DevmapHash if flags > 2 || first == 0 => Err(Errno::EINVAL),
        _ if flags > 2 => Err(Errno::EINVAL),
        _ if outside => Err(Errno::E2BIG),
        Devmap | Cpumap if flags == 1 => Err(Errno::EEXIST),
        Cpumap if first > 16384 => Err(Errno::EOVERFLOW),
        Devmap | Cpumap if first == 0 => Ok(()),
        Devmap | DevmapHash if first > i32::MAX as u32 => Err(Errno::EINVAL),
        _ => fd(),
    }
}

/// What a request for the next key answers, without one at hand or with one that is not there.
pub(super) fn next_key(def: &MapDef, index: Option<u32>) -> Result<u32, Errno> {
    if !indexed(def.map_type) {
        return Err(match def.map_type {
            CgrpStorage | TaskStorage | InodeStorage | SkStorage => Errno::ENOTSUPP,
            _ => Errno::ENOENT,
        });
    }
    match index {
        Some(i) if i == def.max_entries - 1 => Err(Errno::ENOENT),
        Some(i) if i < def.max_entries => Ok(i + 1),
        _ => Ok(0),
    }
}
