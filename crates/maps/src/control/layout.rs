//! Where things lie in a map's data region.

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;

use super::{MapError, is_hollow, validate};
use crate::header::{MapHeader, PAGE};
use crate::{flip, free, hash, lpm, pool, queue, sample_type};

/// A map's header and the size of its data region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The header, with seed 0.
    pub header: MapHeader,
    /// Bytes of the data region: whole pages.
    pub data_size: u64,
}

/// What a definition does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of each slot's ring of a perf event array: a power of two, at least a page.
    pub perf_ring_bytes: u32,
    /// What a perf record holds ([`sample_type`]); raw data is always there.
    pub sample_type: u32,
    /// Where a value has a spin lock.
    pub spin_lock: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options { perf_ring_bytes: 64 << 10, sample_type: sample_type::RAW, spin_lock: None }
    }
}

/// [`layout_with`] the default options.
pub fn layout(def: &MapDef, nslots: u32) -> Result<Layout, MapError> {
    layout_with(def, nslots, Options::default())
}

/// Validates a definition and lays the map out.
pub fn layout_with(def: &MapDef, nslots: u32, options: Options) -> Result<Layout, MapError> {
    validate(def, nslots)?;
    let refused = |errno, reason: &str| MapError::Refused { map: def.name.clone(), errno, reason: reason.to_owned() };
    if def.map_type == MapType::PerfEventArray {
        let ring = options.perf_ring_bytes;
        if !ring.is_power_of_two() || u64::from(ring) < PAGE || options.sample_type & !sample_type::KNOWN != 0 {
            return Err(refused(Errno::EINVAL, "a perf ring is a power of two of pages, with known sample fields"));
        }
    }
    if let Some(at) = options.spin_lock
        && (!matches!(def.map_type, MapType::Array | MapType::Hash)
            || !at.is_multiple_of(4)
            || at.checked_add(4).is_none_or(|end| end > def.value_size))
    {
        return Err(refused(
            Errno::EOPNOTSUPP,
            "arrays and hash maps have spin locks, in aligned words of their values",
        ));
    }
    // The kernel fails to allocate where this overflows.
    let header = place(def, nslots, options).ok_or_else(|| refused(Errno::ENOMEM, "the map is too large"))?;
    Ok(Layout { header, data_size: header.data_size })
}

/// Lays a valid map out; `None` if it exceeds the address space.
fn place(def: &MapDef, nslots: u32, options: Options) -> Option<MapHeader> {
    let entries = u64::from(def.max_entries);
    let value = up(u64::from(def.value_size), 8)?;
    let mut h = MapHeader {
        map_type: def.map_type as u32,
        flags: def.flags,
        key_size: def.key_size,
        value_size: def.value_size,
        max_entries: def.max_entries,
        nslots,
        data_size: 0,
        stride: value,
        cpu_stride: 0,
        value_off: 0,
        elems: def.max_entries,
        mask: 0,
        seed: 0,
        sample_type: 0,
        slots_off: 0,
        buckets_off: 0,
        elems_off: 0,
        bits_off: 0,
        prefix_off: 0,
        links_off: 0,
        index_mask: 0,
        lock: options.spin_lock.and_then(|at| at.checked_add(1)).unwrap_or(0),
        face: 0,
        reserved: 0,
    };
    match def.map_type {
        MapType::Array => {}
        MapType::PercpuArray => {
            h.cpu_stride = value as u32;
            h.stride = value.checked_mul(u64::from(nslots))?;
        }
        MapType::ProgArray | MapType::ArrayOfMaps => h.stride = 4,
        MapType::HashOfMaps => {
            h.elems = def.max_entries.checked_add(nslots)?.checked_add(1)?;
            place_pool(&mut h, up(u64::from(def.key_size), 8)?, value)?;
        }
        MapType::LpmTrie => {
            let key = up(u64::from(def.key_size), 8)?;
            let data = up(u64::from(def.key_size).checked_sub(4)?, 8)?;
            h.elems = def.max_entries.checked_add(nslots)?.checked_add(1)?;
            place_pool(&mut h, key + data, value)?;
            h.prefix_off = h.elems_off;
            h.elems_off += lpm::PREFIXES;
        }
        MapType::Queue | MapType::Stack => h.elems_off = queue::HEAD,
        MapType::BloomFilter => {
            h.elems = if def.extra == 0 { 5 } else { (def.extra & 0xf) as u32 };
            h.mask = bloom_bits(def.max_entries, h.elems) - 1;
            h.stride = 0;
            h.elems_off = (u64::from(h.mask) + 1) / 8;
        }
        t if is_hollow(t) => (h.stride, h.elems) = (0, 0),
        MapType::Hash => {
            let key = up(u64::from(def.key_size), 8)?;
            let face = flip::place(key, def.value_size, h.lock != 0);
            h.face = face;
            if face == 0 {
                h.elems = def.max_entries.checked_add(nslots)?.checked_add(1)?;
                place_pool(&mut h, key, value)?;
            } else {
                place_pool(&mut h, key, 2 * u64::from(face))?;
                h.stride = flip::ELEMENT;
            }
        }
        MapType::LruHash => {
            h.elems = def.max_entries.checked_add(nslots)?.checked_add(1)?;
            place_pool(&mut h, up(u64::from(def.key_size), 8)?, value)?;
        }
        MapType::LruPercpuHash => {
            h.cpu_stride = value as u32;
            let values = value.checked_mul(u64::from(nslots))?;
            place_pool(&mut h, up(u64::from(def.key_size), 8)?, values)?;
        }
        MapType::PercpuHash => {
            h.cpu_stride = value as u32;
            place_pool(&mut h, up(u64::from(def.key_size), 8)?, value.checked_mul(u64::from(nslots))?)?;
        }
        MapType::StackTrace => place_pool(&mut h, 0, value)?,
        MapType::Ringbuf | MapType::UserRingbuf => {
            (h.stride, h.elems) = (0, 0);
            h.mask = def.max_entries - 1;
            h.elems_off = 2 * PAGE;
            h.data_size = entries.checked_mul(2)?.checked_add(2 * PAGE)?;
            return Some(h);
        }
        MapType::PerfEventArray => {
            h.elems = def.max_entries.min(nslots);
            h.sample_type = options.sample_type | sample_type::RAW;
            h.mask = options.perf_ring_bytes - 1;
            h.stride = PAGE + u64::from(options.perf_ring_bytes);
            h.elems_off = up(u64::from(h.elems) * 4, PAGE)?;
        }
        _ => return None,
    }
    h.data_size = up(h.stride.checked_mul(u64::from(h.elems))?.checked_add(h.elems_off)?, PAGE)?;
    Some(h)
}

/// Bits of a bloom filter: 7 / 5 of what is set, up to a power of two. (The kernel goes to 2^32, with a false positive in
/// three look-ups where this has its limit.)
fn bloom_bits(entries: u32, functions: u32) -> u32 {
    let bits = u64::from(entries) * u64::from(functions) / 5 * 7;
    bits.clamp(64, 1 << 31).next_power_of_two() as u32
}

/// Places slot records, buckets, hints, links, and elements with this much before and at the value.
fn place_pool(h: &mut MapHeader, key: u64, value: u64) -> Option<()> {
    let buckets = u64::from(h.max_entries).next_power_of_two();
    h.mask = u32::try_from(buckets - 1).ok()?;
    h.value_off = u32::try_from(pool::NODE + key).ok()?;
    h.stride = (pool::NODE + key).checked_add(value)?;
    h.slots_off = 0;
    h.buckets_off = pool::RECORD * (u64::from(h.nslots) + 2);
    h.bits_off = h.buckets_off + buckets * hash::BUCKET;
    h.links_off = h.bits_off + free::size(h.elems);
    h.elems_off = up(h.links_off.checked_add(4 * u64::from(h.elems))?, 64)?;
    // All bits set is no element's index.
    h.index_mask = u32::try_from((u64::from(h.elems) + 1).next_power_of_two() - 1).ok()?;
    Some(())
}

fn up(n: u64, align: u64) -> Option<u64> {
    n.checked_next_multiple_of(align)
}
