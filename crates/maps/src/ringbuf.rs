//! Ring buffers: the kernel's positions and records, so that libbpf can read them.
//!
//! ```text
//! 0      consumer position u64, moved by the consumer
//! 4096   producer position u64, and behind it, under the lock: the lock, where the oldest record in progress may stand, and
//!        where a producer saw the consumer last
//! 8192   2 × `max_entries` bytes of data
//! ```
//!
//! Positions grow for ever; a record starts at its position modulo `max_entries`. One that crosses the end spills on
//! into the second half (where the kernel maps the first half once more), so it is always contiguous. A record is a
//! header of eight bytes (length with `BUSY` and `DISCARD` bits, owner of the reservation) and its data, padded to
//! eight. The header is written, busy, before the producer position covers it.

use core::ptr::null_mut;

use skep_ebpf::Errno;

use crate::header::{PAGE, View};
use crate::mem;
use crate::sync::{AtomicU32, AtomicU64, FREE, Ordering, owner_of, take, unnamed};

/// Flag of submit, discard and output: do not wake the consumer.
pub const NO_WAKEUP: u64 = 1;
/// Flag of submit, discard and output: wake the consumer in any case.
pub const FORCE_WAKEUP: u64 = 2;

/// Bytes of a record's header.
pub const HEADER_SIZE: u64 = 8;

pub(crate) const BUSY: u32 = 1 << 31;
pub(crate) const DISCARD: u32 = 1 << 30;

/// Longest record that the kernel reserves.
const MAX_RECORD: u64 = (u32::MAX / 4) as u64;

/// Records that one reservation moves `pending` over: many more than it adds.
const MAX_STEPS: u32 = 1 << 14;

/// A ring's control words and data.
#[derive(Clone, Copy)]
pub(crate) struct Ring<'a> {
    pub(crate) consumer: &'a AtomicU64,
    pub(crate) producer: &'a AtomicU64,
    pub(crate) lock: &'a AtomicU32,
    /// All records before this position are committed.
    pub(crate) pending: &'a AtomicU64,
    /// The consumer was here already. It writes its own position all the time, so producers look there only when this one
    /// says that there is no room.
    pub(crate) seen: &'a AtomicU64,
    data: *mut u8,
    /// Bytes of the ring − 1.
    pub(crate) mask: u64,
}

/// The header of a record.
#[repr(C)]
pub(crate) struct Record {
    pub(crate) len: AtomicU32,
    pub(crate) owner: AtomicU32,
}

impl<'a> Ring<'a> {
    pub(crate) fn new(v: View<'a>) -> Ring<'a> {
        // SAFETY: the region of a ring buffer has two pages before its data; all words are aligned.
        unsafe {
            Ring {
                consumer: AtomicU64::from_ptr(v.at(0).cast()),
                producer: AtomicU64::from_ptr(v.at(PAGE).cast()),
                lock: AtomicU32::from_ptr(v.at(PAGE + 64).cast()),
                pending: AtomicU64::from_ptr(v.at(PAGE + 72).cast()),
                seen: AtomicU64::from_ptr(v.at(PAGE + 80).cast()),
                data: v.at(v.h.elems_off),
                mask: u64::from(v.h.mask),
            }
        }
    }

    /// The record at a position.
    pub(crate) fn record(&self, pos: u64) -> &'a Record {
        let p = self.data.wrapping_add((pos & self.mask & !7) as usize);
        // SAFETY: the mask keeps the header in the first half, and it is aligned.
        unsafe { &*p.cast::<Record>() }
    }

    /// The data of the record at a position.
    pub(crate) fn sample(&self, pos: u64) -> *mut u8 {
        self.data.wrapping_add(((pos & self.mask & !7) + HEADER_SIZE) as usize)
    }

    /// True if a record from `pos` to `end` overwrites none that is unread or in progress. The ring is locked.
    fn has_room(&self, pos: u64, end: u64) -> bool {
        if end.wrapping_sub(self.seen.load(Ordering::Relaxed)) > self.mask {
            let consumer = self.consumer.load(Ordering::Acquire);
            if end.wrapping_sub(consumer) > self.mask {
                return false;
            }
            self.seen.store(consumer, Ordering::Relaxed);
        }
        end.wrapping_sub(self.advance(pos)) <= self.mask
    }

    /// Moves `pending` over the committed records behind it, or over some of them: whoever writes it may have put it far back.
    fn advance(&self, producer: u64) -> u64 {
        let mut pos = self.pending.load(Ordering::Relaxed);
        if producer.wrapping_sub(pos) > self.mask.wrapping_add(1) {
            return pos;
        }
        let mut steps = MAX_STEPS;
        while pos != producer && steps != 0 {
            steps -= 1;
            let len = self.record(pos).len.load(Ordering::Acquire);
            if len & BUSY != 0 {
                break;
            }
            let step = span(u64::from(len & !DISCARD));
            if step > producer.wrapping_sub(pos) {
                break;
            }
            pos = pos.wrapping_add(step);
        }
        self.pending.store(pos, Ordering::Relaxed);
        pos
    }
}

/// Bytes that a record takes in the ring.
pub(crate) fn span(size: u64) -> u64 {
    size.wrapping_add(HEADER_SIZE + 7) & !7
}

pub(crate) fn reserve(v: View<'_>, slot: u32, size: u64) -> *mut u8 {
    let ring = Ring::new(v);
    if size > MAX_RECORD || span(size) > ring.mask + 1 {
        return null_mut();
    }
    if !take(v, ring.lock, slot, unnamed(slot)) {
        return null_mut();
    }
    let pos = ring.producer.load(Ordering::Relaxed);
    let end = pos.wrapping_add(span(size));
    let room = ring.has_room(pos, end);
    if room {
        let record = ring.record(pos);
        record.owner.store(owner_of(slot), Ordering::Relaxed);
        record.len.store(size as u32 | BUSY, Ordering::Relaxed);
        ring.producer.store(end, Ordering::Release);
    }
    ring.lock.store(FREE, Ordering::Release);
    if room { ring.sample(pos) } else { null_mut() }
}

/// The offset in the data of the record that `sample` belongs to, if it can be one of this ring.
pub(crate) fn record_of(v: View<'_>, sample: *const u8) -> Option<u64> {
    let first = v.at(v.h.elems_off + HEADER_SIZE).addr();
    let off = (sample.addr().checked_sub(first)?) as u64;
    (off <= u64::from(v.h.mask) && off & 7 == 0).then_some(off)
}

pub(crate) fn commit(v: View<'_>, sample: *mut u8, flags: u64, discard: bool) -> bool {
    let Some(off) = record_of(v, sample) else { return false };
    let ring = Ring::new(v);
    let record = ring.record(off);
    let len = record.len.load(Ordering::Relaxed) & !(BUSY | DISCARD);
    let len = if discard { len | DISCARD } else { len };
    if flags & (FORCE_WAKEUP | NO_WAKEUP) != 0 {
        record.len.store(len, Ordering::Release);
        return flags & FORCE_WAKEUP != 0;
    }
    // Sequentially consistent with the load below: either this sees that the consumer waits here, or the consumer
    // sees the record.
    record.len.swap(len, Ordering::SeqCst);
    ring.consumer.load(Ordering::SeqCst) & ring.mask == off
}

/// # Safety
/// `data` is readable for `size` bytes.
pub(crate) unsafe fn output(v: View<'_>, slot: u32, data: *const u8, size: u64, flags: u64) -> (i64, bool) {
    if flags & !(NO_WAKEUP | FORCE_WAKEUP) != 0 {
        return (Errno::EINVAL.neg(), false);
    }
    let sample = reserve(v, slot, size);
    if sample.is_null() {
        return (Errno::EAGAIN.neg(), false);
    }
    // SAFETY: the reservation is `size` bytes in the region.
    unsafe { mem::copy(sample, data, size as usize) };
    (0, commit(v, sample, flags, false))
}

pub(crate) fn query(v: View<'_>, flags: u64) -> u64 {
    let ring = Ring::new(v);
    let (consumer, producer) = (ring.consumer.load(Ordering::Acquire), ring.producer.load(Ordering::Acquire));
    match flags {
        0 => producer.wrapping_sub(consumer),
        1 => ring.mask + 1,
        2 => consumer,
        3 => producer,
        _ => 0,
    }
}

#[cfg(all(test, feature = "control"))]
mod tests {
    use std::time::Duration;

    use skep_ebpf::program::MapDef;
    use skep_ebpf::uapi::MapType;

    use super::*;
    use crate::control::Map;

    #[test]
    fn a_holder_without_a_processor_costs_no_record() {
        let map = Map::create(&MapDef::new("m", MapType::Ringbuf, 0, 0, 4096), 8).unwrap();
        let h = *map.header();
        let v = View { h: &h, data: map.map_ref().data };
        let lock = Ring::new(v).lock;
        lock.store(owner_of(3), Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                lock.store(FREE, Ordering::Release);
            });
            assert!(!reserve(v, 4, 8).is_null());
        });
        // One that never goes on holds nobody up for ever.
        lock.store(owner_of(3), Ordering::Relaxed);
        assert!(reserve(v, 4, 8).is_null());
    }

    #[test]
    fn threads_that_share_processors_lose_no_record() {
        const EACH: u32 = 100_000;
        const THREADS: u32 = 12;
        let map = Map::create(&MapDef::new("m", MapType::Ringbuf, 0, 0, 32 << 20), 64).unwrap();
        std::thread::scope(|scope| {
            for slot in 0..THREADS {
                let map = map.map_ref();
                scope.spawn(move || {
                    for n in 0..EACH {
                        // SAFETY: a live ring.
                        let sample = unsafe { map.ringbuf_reserve(slot, 8, 0) };
                        assert!(!sample.is_null(), "record {n}");
                        // SAFETY: it was reserved there.
                        assert!(!unsafe { map.ringbuf_commit(sample, NO_WAKEUP, false) });
                    }
                });
            }
        });
        assert_eq!(map.unread(), u64::from(EACH * THREADS) * span(8));
    }
}
