//! Reading a ring buffer.

use std::sync::Arc;

use skep_ebpf::uapi::MapType;

use super::{Arena, Map, RingError};
use crate::header::{CONTROL_SLOT, MapHeader, View};
use crate::mem;
use crate::ringbuf::{BUSY, DISCARD, Ring, span};
use crate::sync::{FREE, Guard, Ordering};

/// The consumer of a ring buffer: it keeps its own position, and trusts nothing it reads.
#[derive(Debug)]
pub struct RingConsumer {
    arena: Arc<Arena>,
    header: MapHeader,
    position: u64,
    buf: Vec<u8>,
}

impl RingConsumer {
    pub(super) fn new(arena: Arc<Arena>, header: MapHeader) -> RingConsumer {
        let view = View { h: &header, data: arena.ptr() };
        let position = Ring::new(view).consumer.load(Ordering::Acquire) & !7;
        RingConsumer { arena, header, position, buf: Vec::new() }
    }

    /// Hands all committed records to `f`, oldest first, and returns their number; at most one ring's worth a call.
    ///
    /// It stops at a record that is still in progress: the commit of that one asks for a wake-up.
    pub fn poll(&mut self, mut f: impl FnMut(&[u8])) -> Result<usize, RingError> {
        let view = View { h: &self.header, data: self.arena.ptr() };
        let ring = Ring::new(view);
        let size = ring.mask + 1;
        let (mut records, mut budget) = (0, size);
        let mut producer = ring.producer.load(Ordering::SeqCst);
        let mut told = ring.consumer.load(Ordering::Relaxed);
        // Where producers write, and what they read, is looked at and written once for many records: each time is one less
        // for them to wait for the memory. Before this stops it has told where it is, and looked again.
        while budget > 0 {
            let available = producer.wrapping_sub(self.position);
            let header = ring.record(self.position).len.load(Ordering::SeqCst);
            if available == 0 || (available <= size && header & BUSY != 0) {
                if told == self.position && producer == ring.producer.load(Ordering::SeqCst) {
                    break;
                }
                told = self.position;
                ring.consumer.store(told, Ordering::SeqCst);
                producer = ring.producer.load(Ordering::SeqCst);
                budget = budget.saturating_sub(8); // nobody keeps us here by what he writes
                continue;
            }
            let length = u64::from(header & !(BUSY | DISCARD));
            let step = span(length);
            if available > size || !available.is_multiple_of(8) || step > available {
                let error = RingError { position: self.position, length, available };
                self.position = producer & !7;
                resync(view, ring, self.position);
                return Err(error);
            }
            if header & DISCARD == 0 {
                self.buf.resize(length as usize, 0);
                // SAFETY: the record starts in the first half and is no longer than the ring.
                unsafe { mem::copy(self.buf.as_mut_ptr(), ring.sample(self.position), self.buf.len()) };
                f(&self.buf);
                records += 1;
            }
            self.position = self.position.wrapping_add(step);
            budget = budget.saturating_sub(step);
            if self.position.wrapping_sub(told) > size / 8 {
                told = self.position;
                ring.consumer.store(told, Ordering::SeqCst);
            }
        }
        if told != self.position {
            ring.consumer.store(self.position, Ordering::SeqCst);
        }
        Ok(records)
    }
}

impl Map {
    /// Bytes of a ring buffer that its consumer has not read, records in progress included; 0 for other maps.
    pub fn unread(&self) -> u64 {
        if self.def().map_type != MapType::Ringbuf {
            return 0;
        }
        let ring = Ring::new(self.view());
        let consumer = ring.consumer.load(Ordering::Acquire);
        ring.producer.load(Ordering::Acquire).wrapping_sub(consumer)
    }
}

/// Makes the ring empty from `position` on.
fn resync(view: View<'_>, ring: Ring<'_>, position: u64) {
    // Who holds it for ever wrote the rest, too.
    let guard = Guard::acquire(view, ring.lock, CONTROL_SLOT);
    ring.pending.store(position, Ordering::Relaxed);
    ring.seen.store(position, Ordering::Relaxed);
    ring.producer.store(position, Ordering::SeqCst);
    ring.consumer.store(position, Ordering::SeqCst);
    if guard.is_none() {
        ring.lock.store(FREE, Ordering::Release);
    }
}
