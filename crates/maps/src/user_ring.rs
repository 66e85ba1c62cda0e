//! User ring buffers: a process writes records, programs drain them. Pages and positions are those of a ring buffer
//! (`ringbuf.rs`), with the parts exchanged; the lock of who drains stands behind the consumer's position.
//!
//! Whoever writes is not trusted: each record is checked against the positions and the size of the ring.

use skep_ebpf::Errno;

use crate::header::{PAGE, View};
use crate::ringbuf::{BUSY, DISCARD, span};
use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering};

/// Most records of one draining.
pub(crate) const MAX_SAMPLES: u32 = 128 << 10;
/// Longest record that a dynptr can stand for.
const MAX_SAMPLE: u32 = (1 << 24) - 1;

/// What there is to drain.
pub(crate) enum Next {
    /// A record: where, and how long.
    Sample(*mut u8, u32),
    /// A record that its writer gave up; it is behind us.
    Discarded,
    /// Nothing yet.
    Empty,
    /// Not what a writer may write.
    Bad(Errno),
}

/// The ring, while a program drains it.
pub(crate) struct Drain<'a> {
    v: View<'a>,
    _guard: Guard<'a>,
}

pub(crate) fn lock(v: View<'_>) -> &AtomicU32 {
    // SAFETY: an aligned word of the first page.
    unsafe { AtomicU32::from_ptr(v.at(64).cast()) }
}

fn position(v: View<'_>, at: u64) -> &AtomicU64 {
    // SAFETY: an aligned word of the first two pages.
    unsafe { AtomicU64::from_ptr(v.at(at).cast()) }
}

impl<'a> Drain<'a> {
    /// Begins, unless another one drains right now.
    pub(crate) fn begin(v: View<'a>, slot: u32) -> Option<Drain<'a>> {
        Some(Drain { v, _guard: Guard::try_acquire(lock(v), slot)? })
    }

    fn record(&self, pos: u64) -> &'a AtomicU32 {
        let off = pos & u64::from(self.v.h.mask) & !7;
        // SAFETY: the mask keeps the header in the first half of the data, and it is aligned.
        unsafe { AtomicU32::from_ptr(self.v.at(self.v.h.elems_off + off).cast()) }
    }

    /// The next record.
    pub(crate) fn next(&self) -> Next {
        let producer = position(self.v, PAGE).load(Ordering::Acquire);
        if !producer.is_multiple_of(8) {
            return Next::Bad(Errno::EINVAL);
        }
        let consumer = position(self.v, 0).load(Ordering::Acquire);
        if consumer >= producer {
            return Next::Empty;
        }
        let header = self.record(consumer).load(Ordering::Acquire);
        let len = header & !(BUSY | DISCARD);
        let total = span(u64::from(len));
        if total > producer.wrapping_sub(consumer) {
            return Next::Bad(Errno::EINVAL);
        }
        if total > u64::from(self.v.h.mask) + 1 || len > MAX_SAMPLE {
            return Next::Bad(Errno::E2BIG);
        }
        if header & DISCARD != 0 {
            self.release(len);
            return Next::Discarded;
        }
        if header & BUSY != 0 {
            return Next::Empty;
        }
        let off = consumer.wrapping_add(8) & u64::from(self.v.h.mask) & !7;
        Next::Sample(self.v.at(self.v.h.elems_off + off), len)
    }

    /// Leaves a record of this length behind.
    pub(crate) fn release(&self, len: u32) {
        position(self.v, 0).fetch_add(span(u64::from(len)), Ordering::Release);
    }
}
