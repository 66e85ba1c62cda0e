//! The header of a map, the handle of a map in one process, and the dispatch by map type.

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;

use crate::perf::{Part, Sample};
use crate::recover::{self, Recovered};
use crate::user_ring::{Drain, MAX_SAMPLES, Next};
use crate::{array, bloom, hash, lpm, lru, perf, queue, ringbuf, spin, stack};

/// The pseudo slot of the controller. It has locks and a slot record, but no per-CPU values.
pub const CONTROL_SLOT: u32 = u32::MAX - 1;

/// Most slots a map can be made for.
pub const MAX_SLOTS: u32 = 4096;

/// Bytes of a page; ring layouts depend on it.
pub const PAGE: u64 = 4096;

/// What a map is: written by the controller alone, and never changed once the map is in use.
///
/// 128 bytes. Fields that a type does not use are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct MapHeader {
    /// Map type ([`MapType`] as a number).
    pub map_type: u32,
    /// Flags of creation.
    pub flags: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (of one CPU).
    pub value_size: u32,
    /// Entries; bytes of a ring buffer.
    pub max_entries: u32,
    /// Slots: CPUs as programs see them.
    pub nslots: u32,
    /// Bytes of the data region.
    pub data_size: u64,
    /// Bytes from one element (perf: ring) to the next.
    pub stride: u64,
    /// Bytes from one slot's value to the next within an element; 0 for maps that are not per-CPU.
    pub cpu_stride: u32,
    /// Where the value lies in an element.
    pub value_off: u32,
    /// Elements there are (hash: spares included; perf: rings; bloom filter: bits per value).
    pub elems: u32,
    /// Buckets − 1, or bytes of a ring − 1, or bits of a bloom filter − 1.
    pub mask: u32,
    /// Seed of the hash function.
    pub seed: u32,
    /// What a perf record holds ([`crate::sample_type`]).
    pub sample_type: u32,
    /// Offset of the slot records.
    pub slots_off: u64,
    /// Offset of the buckets.
    pub buckets_off: u64,
    /// Offset of the elements (perf: of the first ring; ring buffer: of the data).
    pub elems_off: u64,
    /// Offset of the hints to free elements.
    pub bits_off: u64,
    /// Offset of the lengths of prefix that there are.
    pub prefix_off: u64,
    /// Offset of the links between elements.
    pub links_off: u64,
    /// The bits of a link that are an element's index; the others are of its key's hash.
    pub index_mask: u32,
    /// Where the spin lock stands in a value, plus 1; 0 if there is none.
    pub lock: u32,
    /// Hash map: how far behind the first place of a value the second one is, a power of two; 0 if there is none.
    pub face: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<MapHeader>() == 128);

/// A map as one process sees it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MapRef {
    /// The header, in the control arena.
    pub hdr: *const MapHeader,
    /// Start of the data region.
    pub data: *mut u8,
}

// SAFETY: a handle is two addresses; all that is done with them is unsafe and made for concurrent use.
unsafe impl Send for MapRef {}
// SAFETY: as above.
unsafe impl Sync for MapRef {}

/// A handle whose header has been dereferenced: what the map types work on.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) h: &'a MapHeader,
    pub(crate) data: *mut u8,
}

impl View<'_> {
    /// An address in the data region.
    #[inline]
    pub(crate) fn at(&self, off: u64) -> *mut u8 {
        self.data.wrapping_add(off as usize)
    }
}

/// The operations of programs. `slot` is the vCPU that the caller holds exclusively; results are what the helper of the
/// same name returns to a program.
///
/// # Safety (of all methods)
/// * `hdr` points to a header made by [`control::layout`](crate::control::layout), and `data` to a mapping of its data
///   region, `data_size` bytes, page aligned: read-only if the map is not to be written by programs, writable else.
/// * The caller holds `slot` exclusively while the call runs, or is the controller and passes [`CONTROL_SLOT`].
/// * `key` and `value` are readable for the map's sizes. They may be changed by others meanwhile.
#[allow(clippy::missing_safety_doc)] // stated once, above
impl MapRef {
    #[inline]
    pub(crate) unsafe fn view<'a>(self) -> View<'a> {
        // SAFETY: the caller promises a valid header, which is never written while it is in use.
        View { h: unsafe { &*self.hdr }, data: self.data }
    }

    /// `map_lookup_elem`: the value's address (this slot's value for per-CPU maps), or null.
    #[inline]
    pub unsafe fn lookup(self, slot: u32, key: *const u8) -> *mut u8 {
        // SAFETY: the caller's promises are those of the callees.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::Array) => array::lookup(v, array::index(key)),
                Some(MapType::PercpuArray) => array::lookup_cpu(v, array::index(key), slot),
                Some(MapType::Hash) => hash::lookup(v, key),
                Some(MapType::PercpuHash) => hash::lookup_cpu(v, key, slot),
                Some(MapType::LruHash | MapType::LruPercpuHash) => lru::lookup(v, key, slot),
                Some(MapType::LpmTrie) => lpm::lookup(v, key),
                _ => core::ptr::null_mut(),
            }
        }
    }

    /// `map_lookup_elem` in a map of maps: the index of the inner map, as the controller stored it.
    pub unsafe fn inner(self, key: *const u8) -> Option<u32> {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::ArrayOfMaps) => array::prog(v, array::index(key)),
                Some(MapType::HashOfMaps) => hash::find(v, key).and_then(|e| {
                    let word = crate::sync::AtomicU32::from_ptr(e.at(u64::from(v.h.value_off)).cast());
                    word.load(crate::sync::Ordering::Acquire).checked_sub(1)
                }),
                _ => None,
            }
        }
    }

    /// `map_lookup_percpu_elem`: the value of slot `cpu`, or null.
    #[inline]
    pub unsafe fn lookup_percpu(self, key: *const u8, cpu: u32) -> *mut u8 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::PercpuArray) => array::lookup_cpu(v, array::index(key), cpu),
                Some(MapType::PercpuHash) => hash::lookup_cpu(v, key, cpu),
                Some(MapType::LruPercpuHash) => lru::lookup(v, key, cpu),
                _ => core::ptr::null_mut(),
            }
        }
    }

    /// `map_update_elem`.
    pub unsafe fn update(self, slot: u32, key: *const u8, value: *const u8, flags: u64) -> i64 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::Array) => array::update(v, array::index(key), value, flags),
                Some(MapType::PercpuArray) => array::update_cpu(v, array::index(key), slot, value, flags),
                Some(MapType::Hash) => hash::update(v, slot, key, value, flags),
                Some(MapType::PercpuHash) => hash::update_cpu(v, slot, key, hash::Values::One(value), flags),
                Some(MapType::LruHash | MapType::LruPercpuHash) => {
                    lru::update(v, slot, key, hash::Values::One(value), flags)
                }
                Some(MapType::LpmTrie) => lpm::update(v, slot, key, value, flags),
                Some(MapType::StackTrace | MapType::Queue | MapType::Stack | MapType::BloomFilter) => {
                    Errno::EINVAL.neg()
                }
                _ => Errno::ENOTSUPP.neg(),
            }
        }
    }

    /// Writes a value to where one of this map stands, but for its spin lock.
    pub unsafe fn copy_value(self, at: *mut u8, value: *const u8) {
        // SAFETY: as in `lookup`; `at` is what it returned.
        unsafe { spin::copy_value(self.view(), at, value) };
    }

    /// Frees the locks of a slot, and completes or undoes what it was doing: its thread is dead or has left the program for
    /// good, so that the slot is the caller's. The others go on meanwhile; and if this call too ends in the middle,
    /// another one completes it.
    #[cold]
    pub unsafe fn recover(self, slot: u32) -> Recovered {
        // SAFETY: as in `lookup`.
        recover::recover(unsafe { self.view() }, slot)
    }

    /// `map_delete_elem`.
    pub unsafe fn delete(self, slot: u32, key: *const u8) -> i64 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::Array | MapType::PercpuArray) => Errno::EINVAL.neg(),
                Some(MapType::Hash | MapType::PercpuHash | MapType::LruHash | MapType::LruPercpuHash) => {
                    hash::delete(v, slot, key, None)
                }
                Some(MapType::StackTrace) => stack::delete(v, slot, array::index(key)),
                Some(MapType::LpmTrie) => lpm::delete(v, slot, key),
                Some(MapType::Queue | MapType::Stack) => Errno::EINVAL.neg(),
                Some(MapType::BloomFilter) => Errno::EOPNOTSUPP.neg(),
                _ => Errno::ENOTSUPP.neg(),
            }
        }
    }

    /// `map_push_elem`.
    pub unsafe fn push(self, slot: u32, value: *const u8, flags: u64) -> i64 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::Queue | MapType::Stack) => queue::push(v, slot, value, flags),
                Some(MapType::BloomFilter) => bloom::push(v, value, flags),
                _ => Errno::ENOTSUPP.neg(),
            }
        }
    }

    /// `map_pop_elem`; `out` is writable for a value.
    pub unsafe fn pop(self, slot: u32, out: *mut u8) -> i64 {
        // SAFETY: as in `lookup`, and the caller's promise.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::Queue | MapType::Stack) => queue::get(v, slot, out, true),
                _ => Errno::EOPNOTSUPP.neg(),
            }
        }
    }

    /// `map_peek_elem`; `value` is writable for a value, and of a bloom filter what is looked for.
    pub unsafe fn peek(self, slot: u32, value: *mut u8) -> i64 {
        // SAFETY: as in `lookup`, and the caller's promise.
        unsafe {
            let v = self.view();
            match MapType::from_u32(v.h.map_type) {
                Some(MapType::Queue | MapType::Stack) => queue::get(v, slot, value, false),
                Some(MapType::BloomFilter) => bloom::peek(v, value),
                _ => Errno::EOPNOTSUPP.neg(),
            }
        }
    }

    /// `user_ringbuf_drain`: calls `each` with the address and the length of each record until it does not return 0.
    /// The number of records, or an errno; and true if there were any, so that a waiting producer is to be woken.
    pub unsafe fn user_ringbuf_drain(
        self,
        slot: u32,
        flags: u64,
        mut each: impl FnMut(*mut u8, u32) -> u64,
    ) -> (i64, bool) {
        // SAFETY: as in `lookup`.
        let v = unsafe { self.view() };
        if v.h.map_type != MapType::UserRingbuf as u32 || flags & !(ringbuf::NO_WAKEUP | ringbuf::FORCE_WAKEUP) != 0 {
            return (Errno::EINVAL.neg(), false);
        }
        let Some(drain) = Drain::begin(v, slot) else { return (Errno::EBUSY.neg(), false) };
        let (mut done, mut seen) = (0i64, 0u32);
        while seen < MAX_SAMPLES {
            match drain.next() {
                Next::Sample(at, len) => {
                    (done, seen) = (done.wrapping_add(1), seen.wrapping_add(1));
                    let stop = each(at, len) != 0;
                    drain.release(len);
                    if stop {
                        break;
                    }
                }
                Next::Discarded => seen = seen.wrapping_add(1),
                Next::Empty => break,
                Next::Bad(errno) => {
                    done = errno.neg();
                    break;
                }
            }
        }
        let wake = flags & ringbuf::FORCE_WAKEUP != 0 || (seen > 0 && flags & ringbuf::NO_WAKEUP == 0);
        (done, wake)
    }

    /// `for_each_map_elem`: calls `each` with the addresses of the key and of the value (of this slot, for per-CPU maps)
    /// of each element until it does not return 0. The number of elements that were seen, or an errno.
    pub unsafe fn for_each(self, slot: u32, mut each: impl FnMut(*mut u8, *mut u8) -> u64) -> i64 {
        // SAFETY: as in `lookup`.
        let v = unsafe { self.view() };
        let mut seen = 0i64;
        match MapType::from_u32(v.h.map_type) {
            Some(t @ (MapType::Array | MapType::PercpuArray)) => {
                for index in 0..v.h.max_entries {
                    let mut key = index;
                    let value =
                        if t == MapType::Array { array::lookup(v, index) } else { array::lookup_cpu(v, index, slot) };
                    seen = seen.wrapping_add(1);
                    if value.is_null() || each((&raw mut key).cast(), value) != 0 {
                        break;
                    }
                }
                seen
            }
            Some(MapType::Hash | MapType::PercpuHash | MapType::LruHash | MapType::LruPercpuHash) => {
                let off = u64::from(v.h.value_off)
                    + u64::from(slot.min(v.h.nslots.saturating_sub(1))) * u64::from(v.h.cpu_stride);
                hash::for_each(v, |e| {
                    seen = seen.wrapping_add(1);
                    each(e.key(), e.at(off + u64::from(v.turn(e)))) == 0
                });
                seen
            }
            _ => Errno::EINVAL.neg(),
        }
    }

    /// The program at an index of a prog array, by the number that the controller stored there.
    #[inline]
    pub unsafe fn prog_array_get(self, index: u32) -> Option<u32> {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            if v.h.map_type == MapType::ProgArray as u32 { array::prog(v, index) } else { None }
        }
    }

    /// `ringbuf_reserve`: the address of `size` bytes to fill and commit, or null.
    pub unsafe fn ringbuf_reserve(self, slot: u32, size: u64, flags: u64) -> *mut u8 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            if v.h.map_type != MapType::Ringbuf as u32 || flags != 0 {
                return core::ptr::null_mut();
            }
            ringbuf::reserve(v, slot, size)
        }
    }

    /// True if `sample` is an address that [`MapRef::ringbuf_reserve`] of this map can have returned.
    ///
    /// `ringbuf_submit` gets no map from the program: the caller finds it among the program's ring buffers by this.
    /// (The record itself cannot tell: other processes can write its header.)
    #[inline]
    pub unsafe fn ringbuf_owns(self, sample: *const u8) -> bool {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            v.h.map_type == MapType::Ringbuf as u32 && ringbuf::record_of(v, sample).is_some()
        }
    }

    /// `ringbuf_submit` and, with `discard`, `ringbuf_discard`. True if the consumer is to be woken. A sample that is
    /// not of this ring is left alone.
    pub unsafe fn ringbuf_commit(self, sample: *mut u8, flags: u64, discard: bool) -> bool {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            v.h.map_type == MapType::Ringbuf as u32 && ringbuf::commit(v, sample, flags, discard)
        }
    }

    /// `ringbuf_output`: its result, and true if the consumer is to be woken. `data` is readable for `size` bytes.
    pub unsafe fn ringbuf_output(self, slot: u32, data: *const u8, size: u64, flags: u64) -> (i64, bool) {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            if v.h.map_type != MapType::Ringbuf as u32 {
                return (Errno::EINVAL.neg(), false);
            }
            ringbuf::output(v, slot, data, size, flags)
        }
    }

    /// `ringbuf_query`.
    pub unsafe fn ringbuf_query(self, flags: u64) -> u64 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            if v.h.map_type != MapType::Ringbuf as u32 { 0 } else { ringbuf::query(v, flags) }
        }
    }

    /// `perf_event_output`: its result, and true if the consumer is to be woken. The parts, each readable, are
    /// stored one behind the other.
    pub unsafe fn perf_output(self, slot: u32, flags: u64, sample: &Sample, parts: &[Part]) -> (i64, bool) {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            if v.h.map_type != MapType::PerfEventArray as u32 {
                return (Errno::EINVAL.neg(), false);
            }
            perf::output(v, slot, flags, sample, parts)
        }
    }

    /// `get_stackid`, given the whole call chain, innermost frame first.
    pub unsafe fn stackid(self, slot: u32, ips: &[u64], flags: u64) -> i64 {
        // SAFETY: as in `lookup`.
        unsafe {
            let v = self.view();
            if v.h.map_type != MapType::StackTrace as u32 {
                return Errno::EINVAL.neg();
            }
            stack::insert(v, slot, ips, flags)
        }
    }
}
