//! A process that scribbles on a map's data region while others use it: each operation of the others stays inside the
//! region and comes back in time. The region lies between inaccessible pages, so straying is a crash of this test.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use std::os::fd::AsRawFd;

use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{F_CURRENT_CPU, MapType, map_flags};
use skep_maps::{CONTROL_SLOT, Map, MapRef, Part, Sample};

const SLOTS: u32 = 4;

/// For results that do not matter.
fn done<T>(_: T) {}
const GUARD: usize = 1 << 32;

fn rng(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |n| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 20) % n
    }
}

/// A second mapping of the data region, with `GUARD` inaccessible bytes on either side. It stays.
fn guarded(m: &Map) -> MapRef {
    let len = m.arena().len();
    // SAFETY: reserves addresses of the system's choice, then maps over the middle of them.
    let data = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let all = libc::mmap(null_mut(), len + 2 * GUARD, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(all, libc::MAP_FAILED);
        let at = all.cast::<u8>().add(GUARD).cast();
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        assert_eq!(libc::mmap(at, len, prot, flags, m.arena().fd().as_raw_fd(), 0), at);
        at.cast()
    };
    MapRef { data, ..m.map_ref() }
}

/// Writes what looks like an index, a length, a position, a lock: everywhere.
fn scribble(data: *mut u8, len: usize, next: &mut impl FnMut(u64) -> u64) {
    let value = match next(8) {
        0 => 0,
        1 => u64::MAX,
        2 | 3 => next(64),
        4 => next(1 << 13) & !7,
        5 => 1 << next(64),
        6 => next(64) | (next(64) << 32),
        _ => next(1 << 44) | (next(1 << 20) << 44),
    };
    let at = if next(2) == 0 { next(len as u64) } else { next((len as u64).min(16384)) } as usize;
    // SAFETY: aligned words in the region.
    unsafe {
        if next(2) == 0 {
            AtomicU64::from_ptr(data.add(at & !7).cast()).store(value, Ordering::Relaxed);
        } else {
            std::sync::atomic::AtomicU32::from_ptr(data.add(at & !3).cast()).store(value as u32, Ordering::Relaxed);
        }
    }
}

/// One operation of a program.
fn operate(m: MapRef, t: MapType, slot: u32, next: &mut impl FnMut(u64) -> u64) {
    let (key, value) = (next(100) as u32, [next(1 << 40); 8]);
    let (k, v) = ((&raw const key).cast::<u8>(), value.as_ptr().cast::<u8>());
    // SAFETY: keys of 4 bytes, values of at most 64.
    unsafe {
        let write = |p: *mut u8, len: usize| {
            if !p.is_null() {
                p.copy_from(v, len);
            }
        };
        match t {
            MapType::Ringbuf => match next(4) {
                0 => done(m.ringbuf_output(slot, v, next(64), 0)),
                1 => done(m.ringbuf_query(next(5))),
                _ => {
                    let len = next(64);
                    let p = m.ringbuf_reserve(slot, len, 0);
                    write(p, len as usize);
                    if !p.is_null() {
                        m.ringbuf_commit(p, 0, next(2) == 0);
                    }
                }
            },
            MapType::PerfEventArray => {
                let parts = [Part { ptr: v, len: next(64) as usize }, Part { ptr: v, len: next(9) as usize }];
                m.perf_output(slot, F_CURRENT_CPU, &Sample::default(), &parts);
            }
            MapType::StackTrace => match next(3) {
                0 => done(m.delete(slot, k)),
                _ => done(m.stackid(slot, &value[..1 + next(8) as usize % 8], 1 << 10)),
            },
            MapType::Queue | MapType::Stack | MapType::BloomFilter => {
                let mut out = value;
                match next(4) {
                    0 => done(m.pop(slot, out.as_mut_ptr().cast())),
                    1 => done(m.peek(slot, out.as_mut_ptr().cast())),
                    _ => done(m.push(slot, v, next(3) & 2)),
                }
            }
            MapType::UserRingbuf => {
                let each = |p: *mut u8, len: u32| {
                    let last = p.wrapping_add((len as usize).saturating_sub(1));
                    u64::from(p.read_volatile()) + u64::from(last.read_volatile())
                };
                done(m.user_ringbuf_drain(slot, next(4), each));
            }
            MapType::LpmTrie => {
                let key = [next(70), next(1 << 40)];
                let k = key.as_ptr().cast::<u8>();
                match next(4) {
                    0 => done(m.delete(slot, k)),
                    1 => done(m.update(slot, k, v, next(3))),
                    _ => write(m.lookup(slot, k), 8),
                }
            }
            MapType::Hash | MapType::PercpuHash | MapType::LruPercpuHash if next(400) == 0 => {
                let each = |k: *mut u8, v: *mut u8| u64::from(k.read_volatile()) & u64::from(v.read_volatile()) & 1;
                done(m.for_each(slot, each));
            }
            _ => match next(5) {
                0 => done(m.delete(slot, k)),
                1 => done(m.update(slot, k, v, next(3))),
                2 => done(m.update(slot, k, v, 0)),
                3 => write(m.lookup_percpu(k, slot), 8),
                _ => write(m.lookup(slot, k), 8),
            },
        }
    }
}

/// What the controller does with a map.
fn control(m: &Map, next: &mut impl FnMut(u64) -> u64) {
    let mut key = (next(100) as u32).to_ne_bytes().to_vec();
    key.resize(m.def().key_size as usize, 0);
    match next(7) {
        0 => done(m.entries()),
        1 => done(m.recover(next(u64::from(SLOTS)) as u32)),
        2 => done(m.lookup(&key, 0)),
        3 => done(m.update(&key, &vec![1; m.value_size()], 0)),
        4 => done(m.delete(&key)),
        5 => done(m.next_key(Some(&key))),
        _ => {
            done(m.lookup_and_delete(&key, 0));
            if let Ok(mut c) = m.ring_consumer() {
                done(c.poll(|_| ()));
            }
            if let Ok(mut c) = m.perf_consumer(0) {
                done(c.poll(|_| ()));
            }
        }
    }
}

#[test]
fn operations_stay_inside_and_come_back() {
    for t in [
        MapType::Hash,
        MapType::PercpuHash,
        MapType::LruHash,
        MapType::LruPercpuHash,
        MapType::StackTrace,
        MapType::Ringbuf,
        MapType::PerfEventArray,
        MapType::Array,
        MapType::PercpuArray,
        MapType::Queue,
        MapType::Stack,
        MapType::BloomFilter,
        MapType::LpmTrie,
        MapType::UserRingbuf,
    ] {
        let m = match t {
            MapType::Ringbuf | MapType::UserRingbuf => MapDef::new("m", t, 0, 0, 4096),
            MapType::Queue | MapType::Stack | MapType::BloomFilter => MapDef::new("m", t, 0, 64, 100),
            MapType::LpmTrie => {
                let mut def = MapDef::new("m", t, 12, 64, 100);
                def.flags = map_flags::NO_PREALLOC;
                def
            }

            MapType::PerfEventArray => MapDef::new("m", t, 4, 4, SLOTS),
            _ => MapDef::new("m", t, 4, 64, 100),
        };
        let m = Map::create(&m, SLOTS).unwrap();
        if t == MapType::PerfEventArray {
            m.set_all_perf_events().unwrap();
        }
        let (r, len) = (guarded(&m), m.arena().len());
        let (stop, slowest, count) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let timed = |f: &mut dyn FnMut()| {
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                f();
                slowest.fetch_max(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        thread::scope(|s| {
            for slot in 0..2 {
                let timed = &timed;
                s.spawn(move || {
                    let mut next = rng(u64::from(slot) + 1);
                    timed(&mut || operate(r, t, slot, &mut next));
                });
            }
            s.spawn(|| {
                let mut next = rng(77);
                timed(&mut || control(&m, &mut next));
            });
            let (mut next, begin) = (rng(99), Instant::now());
            while begin.elapsed() < Duration::from_millis(400) {
                // In bursts, so that the operations get somewhere in between.
                (0..next(200)).for_each(|_| scribble(r.data, len, &mut next));
                (0..next(2000)).for_each(|_| operate(r, t, 3, &mut next));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let slowest = slowest.into_inner();
        eprintln!("{t}: {} operations, the slowest took {slowest} µs", count.into_inner());
        assert!(slowest < 5_000_000, "{t}: {slowest} µs");
    }
}

/// The worst that chains, free lists and locks can be made into, one by one.
#[test]
fn loops_and_held_locks_are_left() {
    for t in [MapType::Hash, MapType::PercpuHash] {
        let m = Map::create(&MapDef::new("m", t, 4, 64, 4096), SLOTS).unwrap();
        let r = guarded(&m);
        let h = *m.header();
        for word in 0..h.elems {
            // Each element's links lead to itself, and so do the buckets to elements.
            // SAFETY: words of the elements' nodes and of the buckets.
            unsafe {
                r.data.add((h.links_off + u64::from(word) * 4) as usize).cast::<u32>().write(word);
                let bucket = r.data.add((h.buckets_off + u64::from(word & h.mask) * 16) as usize).cast::<u32>();
                bucket.add(2).write(word & h.mask);
                bucket.add(3).write(word & h.mask);
            }
        }
        let mut next = rng(5);
        let begin = Instant::now();
        (0..2000).for_each(|_| operate(r, t, 1, &mut next));
        done((m.entries(), m.next_key(None)));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        for n in 0..=h.mask {
            // SAFETY: the locks of the buckets.
            unsafe { r.data.add((h.buckets_off + u64::from(n) * 16) as usize).cast::<u32>().write(CONTROL_SLOT + 1) };
        }
        let begin = Instant::now();
        (0..100).for_each(|_| operate(r, t, 1, &mut next));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}
