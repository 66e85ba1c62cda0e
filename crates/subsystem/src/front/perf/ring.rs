//! The ring of a perf event: `perf_event_mmap_page` and a power of two of data, in a memfd that its reader maps.
//!
//! The reader owns `data_tail`; everything else is written here, under a lock. Nothing that the reader writes is trusted
//! but as a position.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use skep_ebpf::Errno;
use skep_maps::control::Arena;

use super::attr::Wakeup;

const PAGE: usize = 4096;
/// Places in the control page.
const CAPABILITIES: usize = 40;
const HEAD: usize = 1024;
const TAIL: usize = 1032;
const DATA_OFFSET: usize = 1040;
const DATA_SIZE: usize = 1048;

/// Bytes of data of the largest ring.
const MAX: usize = 64 << 20;

/// `PERF_RECORD_LOST`.
const LOST: u32 = 2;

#[derive(Debug, Default)]
struct Inner {
    head: u64,
    lost: u64,
    /// Samples since the last wake-up, and the position of the last one by bytes.
    events: u32,
    woken_at: u64,
    paused: bool,
}

/// A ring.
#[derive(Debug)]
pub struct Ring {
    arena: Arc<Arena>,
    /// Bytes of data; 0 for a ring that is only a control page.
    size: u64,
    /// Bytes between wake-ups.
    watermark: u64,
    /// Samples between wake-ups; 0 if those do not count.
    wakeup_events: u32,
    inner: Mutex<Inner>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// It is in the ring.
    pub stored: bool,
    /// The reader is to be woken.
    pub wake: bool,
}

impl Ring {
    /// Room for the ring of an event, of which nothing is taken yet.
    pub fn room() -> Result<Arc<Arena>, Errno> {
        Arena::sparse("skep-perf", PAGE + MAX).map(Arc::new).map_err(|_| Errno::ENOMEM)
    }

    /// A ring with so many pages of data, in a room.
    pub fn new(arena: Arc<Arena>, pages: usize, wakeup: Wakeup) -> Result<Ring, Errno> {
        if pages > MAX / PAGE {
            return Err(Errno::ENOMEM);
        }
        arena.allocate(0, (pages + 1) * PAGE).map_err(|_| Errno::ENOMEM)?;
        let size = (pages * PAGE) as u64;
        let (watermark, wakeup_events) = match wakeup {
            Wakeup::Bytes(0) => (size / 2, 0),
            Wakeup::Bytes(bytes) => (u64::from(bytes).min(size), 0),
            Wakeup::Events(events) => (size / 2, events),
        };
        let ring = Ring { arena, size, watermark, wakeup_events, inner: Mutex::default() };
        ring.word(DATA_OFFSET).store(PAGE as u64, Ordering::Relaxed);
        ring.word(DATA_SIZE).store(size, Ordering::Relaxed);
        // Nothing about clocks and counters can be read from user space.
        ring.word(CAPABILITIES).store(2, Ordering::Relaxed);
        Ok(ring)
    }

    /// Pages of data.
    pub fn pages(&self) -> usize {
        self.size as usize / PAGE
    }

    /// Its memory.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the control page is a page long, and `at` an aligned place in it.
        unsafe { AtomicU64::from_ptr(self.arena.ptr().add(at).cast()) }
    }

    /// Stops or goes on.
    pub fn pause(&self, paused: bool) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).paused = paused;
    }

    /// So many records did not get here: the next one that does says so.
    pub fn lose(&self, count: u64) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).lost += count;
    }

    fn put(&self, position: u64, bytes: &[u8]) {
        let at = (position & (self.size - 1)) as usize;
        let first = bytes.len().min(self.size as usize - at);
        // SAFETY: `at + first` and the rest do not exceed the data, which a record is never longer than.
        unsafe {
            let data = self.arena.ptr().add(PAGE);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.add(at), first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), data, bytes.len() - first);
        }
    }

    /// Stores a record of whole words, after one that tells of those that were lost: `lost_id` is the event's number,
    /// `lost_tail` what that record ends in. Backwards, old records are overwritten.
    pub fn write(&self, record: &[u8], lost_id: u64, lost_tail: &[u8], backward: bool) -> Written {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let len = record.len() as u64;
        if inner.paused || self.size == 0 || len > self.size {
            inner.lost += u64::from(self.size != 0);
            return Written { stored: false, wake: false };
        }
        let mut head = inner.head;
        if backward {
            head = head.wrapping_sub(len);
            self.put(head, record);
        } else {
            let lost_len = 24 + lost_tail.len() as u64;
            let need = len + if inner.lost != 0 { lost_len } else { 0 };
            let tail = self.word(TAIL).load(Ordering::Acquire);
            // One byte is never used: a full ring would look empty.
            if tail.wrapping_sub(head.wrapping_add(1)) & (self.size - 1) < need {
                inner.lost += 1;
                return Written { stored: false, wake: false };
            }
            if inner.lost != 0 {
                let mut lost = Vec::with_capacity(lost_len as usize);
                lost.extend(LOST.to_ne_bytes());
                lost.extend(0u16.to_ne_bytes());
                lost.extend((lost_len as u16).to_ne_bytes());
                lost.extend(lost_id.to_ne_bytes());
                lost.extend(inner.lost.to_ne_bytes());
                lost.extend_from_slice(lost_tail);
                self.put(head, &lost);
                head += lost_len;
                inner.lost = 0;
            }
            self.put(head, record);
            head += len;
        }
        inner.head = head;
        self.word(HEAD).store(head, Ordering::Release);
        Written { stored: true, wake: self.is_due(&mut inner) }
    }

    fn is_due(&self, inner: &mut Inner) -> bool {
        let mut wake = false;
        if inner.head.wrapping_sub(inner.woken_at) > self.watermark {
            inner.woken_at = inner.woken_at.wrapping_add(self.watermark);
            wake = true;
        }
        if self.wakeup_events != 0 {
            inner.events += 1;
            if inner.events >= self.wakeup_events {
                inner.events = 0;
                wake = true;
            }
        }
        wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(ring: &Ring) -> u64 {
        ring.word(HEAD).load(Ordering::Relaxed)
    }

    fn data(ring: &Ring, at: usize, len: usize) -> Vec<u8> {
        // SAFETY: the ring's own memory, and nobody writes.
        unsafe { std::slice::from_raw_parts(ring.arena.ptr().add(PAGE + at), len) }.to_vec()
    }

    #[test]
    fn lost_records_are_told_of_before_the_next() {
        let ring = Ring::new(Ring::room().unwrap(), 1, Wakeup::Events(2)).unwrap();
        let record = [7u8; 1024];
        let results: Vec<_> = (0..5).map(|_| ring.write(&record, 9, &[], false)).collect();
        assert_eq!(results.iter().map(|w| w.stored).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert_eq!(results.iter().map(|w| w.wake).collect::<Vec<_>>(), [false, true, true, false, false]);
        assert_eq!(head(&ring), 3072);
        ring.word(TAIL).store(2048, Ordering::Release);
        assert!(ring.write(&record, 9, &[], false).stored);
        assert_eq!(head(&ring), 3072 + 24 + 1024);
        let lost = data(&ring, 3072, 24);
        assert_eq!(lost[..8], [2, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!((lost[8], lost[16]), (9, 2));
        // The record wrapped.
        assert_eq!(data(&ring, 0, 24), [7u8; 24]);
    }

    #[test]
    fn paused_and_backward() {
        let ring = Ring::new(Ring::room().unwrap(), 1, Wakeup::Events(0)).unwrap();
        ring.pause(true);
        assert!(!ring.write(&[1; 8], 1, &[], false).stored);
        ring.pause(false);
        let ring = Ring::new(Ring::room().unwrap(), 1, Wakeup::Bytes(16)).unwrap();
        for _ in 0..1000 {
            assert!(ring.write(&[1; 16], 1, &[], true).stored);
        }
        assert_eq!(head(&ring), 0u64.wrapping_sub(16_000));
        assert!(!Ring::new(Ring::room().unwrap(), 0, Wakeup::Events(1)).unwrap().write(&[1; 8], 1, &[], false).stored);
    }
}
