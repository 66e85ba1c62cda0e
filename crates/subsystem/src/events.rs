//! What programs tell: samples, lines of `trace_printk`, records of ring buffers and perf event arrays.

use std::os::fd::BorrowedFd;

use skep_ebpf::uapi::MapType;
use skep_maps::control::{Map, PerfConsumer, PerfRecord, RingConsumer, RingError};
use skep_runtime::session::{PrintkRecord, SampleRecord};

use crate::session::{Link, NO_LINK, Session};

/// An event, as it stands in its ring. Targets write the rings: nothing in an event is to be trusted.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A run that returned non-zero.
    Sample {
        /// The link, if the record names one.
        link: Option<Link>,
        /// The record.
        record: SampleRecord,
    },
    /// A line of `trace_printk`.
    Printk {
        /// The link, if the record names one.
        link: Option<Link>,
        /// The record.
        record: PrintkRecord,
        /// The line.
        text: &'a [u8],
    },
    /// A record of a ring buffer.
    Ring {
        /// Index of the map.
        map: usize,
        /// The record.
        data: &'a [u8],
    },
    /// A record of a perf event array.
    Perf {
        /// Index of the map.
        map: usize,
        /// The slot whose ring it is.
        slot: u32,
        /// Instruction pointer.
        ip: u64,
        /// Process id as the target sees it.
        pid: u32,
        /// Thread id as the target sees it.
        tid: u32,
        /// Monotonic clock, ns.
        time_ns: u64,
        /// What the program passed.
        data: &'a [u8],
    },
    /// Records of a perf event array that found no room.
    Lost {
        /// Index of the map.
        map: usize,
        /// How many.
        count: u64,
    },
    /// A ring holds nonsense; its reader has skipped it.
    Corrupt {
        /// Index of the map; `None` for an internal one.
        map: Option<usize>,
        /// What was found.
        error: RingError,
    },
}

/// The readers of all rings of a session. There can be one at a time.
pub struct Events {
    samples: Option<RingConsumer>,
    printk: Option<RingConsumer>,
    rings: Vec<(usize, RingConsumer)>,
    perf: Vec<(usize, PerfConsumer)>,
}

impl Events {
    /// Readers for a session.
    pub fn new(session: &Session) -> Events {
        let [samples, printk] = session.internal_maps();
        let internal = |map: &Map| map.ring_consumer().ok();
        let mut events =
            Events { samples: internal(samples), printk: internal(printk), rings: Vec::new(), perf: Vec::new() };
        for (i, map) in session.maps().enumerate().filter_map(|(i, m)| Some((i, m?))) {
            match map.def().map_type {
                MapType::Ringbuf => events.rings.extend(map.ring_consumer().ok().map(|c| (i, c))),
                MapType::PerfEventArray => {
                    let rings = (0..map.header().elems).filter_map(|slot| map.perf_consumer(slot).ok());
                    events.perf.extend(rings.map(|c| (i, c)));
                }
                _ => {}
            }
        }
        events
    }

    /// Hands over what is in the rings now; returns how many events there were.
    pub fn drain(&mut self, session: &Session, mut each: impl FnMut(Event<'_>)) -> usize {
        let links = session.links();
        let link = |index: u32| links.get(index as usize).copied().filter(|_| index != NO_LINK);
        let mut count = 0;
        let mut each = |event: Event<'_>| {
            count += 1;
            each(event);
        };
        let internal = |error| Event::Corrupt { map: None, error };
        if let Some(ring) = &mut self.samples {
            let done = ring.poll(|bytes| {
                if let Some(record) = sample(bytes) {
                    each(Event::Sample { link: link(record.link), record });
                }
            });
            done.err().map(internal).into_iter().for_each(&mut each);
        }
        if let Some(ring) = &mut self.printk {
            let done = ring.poll(|bytes| {
                if let Some((record, text)) = printk(bytes) {
                    each(Event::Printk { link: link(record.link), record, text });
                }
            });
            done.err().map(internal).into_iter().for_each(&mut each);
        }
        for (map, ring) in &mut self.rings {
            let map = *map;
            let done = ring.poll(|data| each(Event::Ring { map, data }));
            done.err().map(|error| Event::Corrupt { map: Some(map), error }).into_iter().for_each(&mut each);
        }
        for (map, ring) in &mut self.perf {
            let (map, slot) = (*map, ring.slot());
            let done = ring.poll(|record| {
                each(match record {
                    PerfRecord::Sample { ip, pid, tid, time, raw } => {
                        Event::Perf { map, slot, ip, pid, tid, time_ns: time, data: raw }
                    }
                    PerfRecord::Lost(count) => Event::Lost { map, count },
                });
            });
            done.err().map(|error| Event::Corrupt { map: Some(map), error }).into_iter().for_each(&mut each);
        }
        count
    }
}

impl Session {
    /// Readable when there may be events.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.bell()
    }

    /// Makes [`Session::events_fd`] unreadable until something happens; to be called before [`Events::drain`].
    pub fn hear(&self) {
        // Nothing rung: not an error.
        let _ = rustix::io::read(self.bell(), &mut [0; 8]);
    }
}

/// Reads numbers off a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*head))
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*head))
    }
}

pub(crate) fn sample(bytes: &[u8]) -> Option<SampleRecord> {
    let mut f = Fields(bytes);
    Some(SampleRecord {
        link: f.u32()?,
        slot: f.u32()?,
        time_ns: f.u64()?,
        pid: f.u32()?,
        tid: f.u32()?,
        ip: f.u64()?,
        func: f.u64()?,
        retval: f.u64()?,
    })
}

pub(crate) fn printk(bytes: &[u8]) -> Option<(PrintkRecord, &[u8])> {
    let mut f = Fields(bytes);
    let record = PrintkRecord { link: f.u32()?, len: f.u32()?, time_ns: f.u64()?, pid: f.u32()?, tid: f.u32()? };
    let text = f.0.get(..record.len as usize).unwrap_or(f.0);
    Some((record, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_laid_out() {
        let record = SampleRecord { link: 1, slot: 2, time_ns: 3, pid: 4, tid: 5, ip: 6, func: 7, retval: 8 };
        // SAFETY: a plain structure without padding.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const record).cast(), size_of::<SampleRecord>()) };
        assert_eq!(format!("{:?}", sample(bytes).unwrap()), format!("{record:?}"));
        assert!(sample(&bytes[..40]).is_none());

        let head = PrintkRecord { link: 1, len: 3, time_ns: 2, pid: 3, tid: 4 };
        // SAFETY: as above.
        let bytes: &[u8] = unsafe { std::slice::from_raw_parts((&raw const head).cast(), size_of::<PrintkRecord>()) };
        assert_eq!(printk(&[bytes, b"abcde"].concat()).unwrap().1, b"abc");
        assert_eq!(printk(&[bytes, b"a"].concat()).unwrap().1, b"a");
        assert!(printk(&bytes[1..]).is_none());
    }
}
