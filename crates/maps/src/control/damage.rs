//! Looking for what no operation on a map writes: a process has scribbled over it.

use std::fmt;

use skep_ebpf::uapi::MapType;

use super::Map;
use super::map::is_pool;
use crate::header::View;
use crate::pool::{END, LINKED};
use crate::ringbuf::Ring;
use crate::sync::{AtomicU32, FREE, Ordering, is_owner};
use crate::{hash, queue, user_ring};

/// Buckets and elements that are looked at, the first ones of a large map.
const LOOK: u32 = 1 << 16;

/// What was found in a map that cannot be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A lock that names no slot.
    Lock {
        /// The bucket whose it is; `None` if the map has only one.
        bucket: Option<u32>,
        /// What it holds.
        word: u32,
    },
    /// A link of a bucket to no element.
    Link {
        /// The bucket.
        bucket: u32,
        /// The link.
        link: u32,
    },
    /// A chain of elements without an end.
    Ring {
        /// Its bucket.
        bucket: u32,
    },
    /// An element whose owner there is not.
    Owner {
        /// Its index.
        element: u32,
        /// What it names.
        word: u32,
    },
    /// More values than there is room for, or from a place on that there is not.
    Count {
        /// The first value's place.
        first: u32,
        /// How many.
        count: u32,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Damage::Lock { bucket: Some(bucket), word } => {
                write!(f, "the lock of bucket {bucket} holds {word:#x}, which is no owner")
            }
            Damage::Lock { bucket: None, word } => write!(f, "its lock holds {word:#x}, which is no owner"),
            Damage::Link { bucket, link } => write!(f, "bucket {bucket} leads to {link:#x}, which is no element"),
            Damage::Ring { bucket } => write!(f, "the elements of bucket {bucket} have no end"),
            Damage::Owner { element, word } => write!(f, "element {element} belongs to {word:#x}, which is no owner"),
            Damage::Count { first, count } => {
                write!(f, "it says that it has {count} values from the {first}th place on")
            }
        }
    }
}

impl Map {
    /// Looks for what no operation on this map writes there. Of a large map only a part is looked at, and values are
    /// nobody's to judge: `None` says that nothing was found.
    pub fn damage(&self) -> Option<Damage> {
        let v = self.view();
        let one = |word: &AtomicU32| bad_lock(v, word).map(|word| Damage::Lock { bucket: None, word });
        match self.def().map_type {
            t if is_pool(t) || t == MapType::StackTrace => buckets(v).or_else(|| elements(v)),
            MapType::Queue | MapType::Stack => one(queue::lock(v)).or_else(|| {
                let (first, count) = queue::says(v);
                let wrong = first >= v.h.max_entries || count > v.h.max_entries;
                wrong.then_some(Damage::Count { first, count })
            }),
            MapType::Ringbuf => one(Ring::new(v).lock),
            MapType::UserRingbuf => one(user_ring::lock(v)),
            _ => None,
        }
    }
}

fn bad_lock(v: View<'_>, word: &AtomicU32) -> Option<u32> {
    Some(word.load(Ordering::Relaxed)).filter(|&word| word != FREE && !is_owner(v, word))
}

fn buckets(v: View<'_>) -> Option<Damage> {
    (0..=v.h.mask.min(LOOK)).find_map(|n| {
        let bucket = v.bucket(n);
        if let Some(word) = bad_lock(v, &bucket.lock) {
            return Some(Damage::Lock { bucket: Some(n), word });
        }
        let links = bucket.heads.iter().map(|head| head.load(Ordering::Acquire));
        if let Some(link) = links.into_iter().find(|&link| link != END && v.linked(link).is_none()) {
            return Some(Damage::Link { bucket: n, link });
        }
        let (mut seen, most) = (0, hash::MAX_RING.min(v.h.elems.saturating_add(64)));
        hash::for_each_in(v, n, |_| {
            seen += 1;
            seen < most
        });
        (seen >= most).then_some(Damage::Ring { bucket: n })
    })
}

fn elements(v: View<'_>) -> Option<Damage> {
    (0..v.h.elems.min(LOOK)).find_map(|n| {
        let word = v.elem(n)?.node().owner.load(Ordering::Relaxed);
        let known = word == FREE || word == LINKED || is_owner(v, word);
        (!known).then_some(Damage::Owner { element: n, word })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem;
    use skep_ebpf::program::MapDef;

    fn map(map_type: MapType, key_size: u32, max_entries: u32) -> Map {
        Map::create(&MapDef::new("m", map_type, key_size, 8, max_entries), 8).unwrap()
    }

    fn write(map: &Map, off: u64, word: u32) {
        // SAFETY: the tests write inside of the region.
        unsafe { mem::copy(map.view().at(off), (&raw const word).cast(), 4) };
    }

    #[test]
    fn an_honest_map_has_none() {
        for t in [MapType::Hash, MapType::LruHash, MapType::PercpuHash] {
            let map = map(t, 4, 64);
            let value = vec![1; map.value_size()];
            for n in 0u32..200 {
                let _ = map.update(&n.to_ne_bytes(), &value, 0);
                let _ = map.delete(&(n / 2).to_ne_bytes());
            }
            assert_eq!(map.damage(), None, "{t:?}");
        }
        let queue = map(MapType::Queue, 0, 4);
        (0..4u64).for_each(|n| queue.update(&[], &n.to_ne_bytes(), 0).unwrap());
        assert_eq!(queue.damage(), None);
    }

    #[test]
    fn what_nobody_writes_is_found() {
        let map = map(MapType::Hash, 4, 64);
        let (buckets, elems) = (map.header().buckets_off, map.header().elems_off);
        write(&map, buckets + 3 * hash::BUCKET, 77);
        assert_eq!(map.damage(), Some(Damage::Lock { bucket: Some(3), word: 77 }));
        write(&map, buckets + 3 * hash::BUCKET, 0);
        write(&map, buckets + 5 * hash::BUCKET + 8, 100);
        assert_eq!(map.damage(), Some(Damage::Link { bucket: 5, link: 100 }));
        write(&map, buckets + 5 * hash::BUCKET + 8, 2);
        write(&map, map.header().links_off + 2 * 4, 2);
        assert_eq!(map.damage(), Some(Damage::Ring { bucket: 5 }));
        write(&map, buckets + 5 * hash::BUCKET + 8, END);
        write(&map, elems + 7 * map.header().stride, 0x1234);
        assert_eq!(map.damage(), Some(Damage::Owner { element: 7, word: 0x1234 }));
    }

    #[test]
    fn damage_is_worked_around() {
        let map = map(MapType::LruHash, 4, 64);
        let value = [1; 8];
        let fill = || {
            for n in 0u32..256 {
                map.update(&n.to_ne_bytes(), &value, 0).unwrap_or_else(|e| panic!("key {n}: {e:?}"));
            }
        };
        fill();
        let (h, v) = (*map.header(), map.view());
        for n in 0..=u64::from(h.mask) {
            // Locks of slots that hold none, and of none; chains that are rings.
            write(&map, h.buckets_off + n * hash::BUCKET, if n % 2 == 0 { 3 } else { 0xdead });
            write(&map, h.buckets_off + n * hash::BUCKET + 8, n as u32 % h.elems);
            write(&map, h.buckets_off + n * hash::BUCKET + 12, n as u32 % h.elems);
        }
        (0..u64::from(h.elems)).for_each(|n| write(&map, h.links_off + 4 * n, n as u32));
        // Elements of slots that do not have them, of none, and in no chain.
        for n in 0..u64::from(h.elems) {
            write(&map, h.elems_off + n * h.stride, [2, 0xbeef, LINKED][n as usize % 3]);
        }
        assert!(map.damage().is_some());
        fill();
        let locked = |n: u32| v.bucket(n).lock.load(Ordering::Relaxed) != FREE;
        assert!((0..=h.mask).filter(|&n| locked(n)).count() < 8, "locks are taken over");
    }
}
