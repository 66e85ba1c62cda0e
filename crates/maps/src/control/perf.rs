//! Reading the rings of a perf event array.

use std::sync::Arc;

use super::{Arena, RingError};
use crate::header::{MapHeader, View};
use crate::perf::{RECORD_LOST, RECORD_SAMPLE, Ring, sample_type};
use crate::sync::Ordering;

/// A record of a perf ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerfRecord<'a> {
    /// A sample. Fields that the map's sample type lacks are zero; `raw` includes up to seven bytes of padding.
    Sample {
        /// Instruction pointer.
        ip: u64,
        /// Process.
        pid: u32,
        /// Thread.
        tid: u32,
        /// Nanoseconds of the monotonic clock.
        time: u64,
        /// Raw data.
        raw: &'a [u8],
    },
    /// So many samples found the ring full.
    Lost(u64),
}

/// The consumer of one slot's ring: it keeps its own position, and trusts nothing it reads.
#[derive(Debug)]
pub struct PerfConsumer {
    arena: Arc<Arena>,
    header: MapHeader,
    index: u32,
    tail: u64,
    buf: Vec<u8>,
}

impl PerfConsumer {
    pub(super) fn new(arena: Arc<Arena>, header: MapHeader, index: u32) -> Option<PerfConsumer> {
        let view = View { h: &header, data: arena.ptr() };
        let tail = Ring::new(view, index)?.tail.load(Ordering::Acquire) & !7;
        Some(PerfConsumer { arena, header, index, tail, buf: Vec::new() })
    }

    /// The slot whose ring this is.
    pub fn slot(&self) -> u32 {
        self.index
    }

    /// Hands all records to `f`, oldest first, and returns their number; at most one ring's worth a call.
    pub fn poll(&mut self, mut f: impl FnMut(PerfRecord<'_>)) -> Result<usize, RingError> {
        let view = View { h: &self.header, data: self.arena.ptr() };
        let Some(ring) = Ring::new(view, self.index) else { return Ok(0) };
        let size = ring.mask + 1;
        let (mut records, mut budget) = (0, size);
        while budget > 0 {
            let head = ring.head.load(Ordering::SeqCst);
            let available = head.wrapping_sub(self.tail);
            if available == 0 {
                break;
            }
            let mut first = [0u8; 8];
            // SAFETY: eight bytes of a local.
            unsafe { ring.read(self.tail, first.as_mut_ptr(), 8) };
            let first = u64::from_ne_bytes(first);
            let (kind, length) = (first as u32, first >> 48);
            let mut corrupt = available > size || length < 8 || !length.is_multiple_of(8) || length > available;
            if !corrupt {
                self.buf.resize(length as usize - 8, 0);
                // SAFETY: the length does not exceed what is available, nor that the ring.
                unsafe { ring.read(self.tail.wrapping_add(8), self.buf.as_mut_ptr(), self.buf.len()) };
                match parse(kind, &self.buf, self.header.sample_type) {
                    Some(record) => {
                        f(record);
                        records += 1;
                    }
                    None => corrupt = true,
                }
            }
            if corrupt {
                let error = RingError { position: self.tail, length, available };
                self.tail = head & !7;
                ring.tail.store(self.tail, Ordering::SeqCst);
                return Err(error);
            }
            self.tail = self.tail.wrapping_add(length);
            budget = budget.saturating_sub(length);
            ring.tail.store(self.tail, Ordering::SeqCst);
        }
        Ok(records)
    }
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn parse(kind: u32, mut body: &[u8], fields: u32) -> Option<PerfRecord<'_>> {
    let mut word = |bit| if fields & bit != 0 { take(&mut body).map(u64::from_ne_bytes) } else { Some(0) };
    match kind {
        RECORD_LOST => {
            let (_id, lost) = (take::<8>(&mut body)?, take(&mut body)?);
            Some(PerfRecord::Lost(u64::from_ne_bytes(lost)))
        }
        RECORD_SAMPLE => {
            let ip = word(sample_type::IP)?;
            let task = word(sample_type::TID)?;
            let time = word(sample_type::TIME)?;
            word(sample_type::CPU)?;
            let len = u32::from_ne_bytes(take(&mut body)?);
            let raw = body.get(..len as usize)?;
            Some(PerfRecord::Sample { ip, pid: task as u32, tid: (task >> 32) as u32, time, raw })
        }
        _ => None,
    }
}
