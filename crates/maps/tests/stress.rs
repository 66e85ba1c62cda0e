//! Several threads on one map, each with its slot: nothing is lost, nothing counted twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;
use skep_ebpf::uapi::update::{EXIST, NOEXIST};
use skep_maps::{Map, MapRef};

const THREADS: u32 = 4;

/// For results that do not matter.
fn done<T>(_: T) {}

fn rng(seed: u64) -> impl FnMut(u32) -> u32 {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |n| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 33) as u32) % n
    }
}

fn on_all(m: &Map, f: impl Fn(u32, MapRef) -> i64 + Sync) -> i64 {
    thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS).map(|slot| (slot, m.map_ref())).collect();
        let threads: Vec<_> = threads
            .into_iter()
            .map(|(slot, r)| {
                s.spawn({
                    let f = &f;
                    move || f(slot, r)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    })
}

/// Repeats an operation whose lock another thread held too long: that one was not running.
fn settled(mut op: impl FnMut() -> i64) -> i64 {
    loop {
        match op() {
            e if e == Errno::EBUSY.neg() => thread::yield_now(),
            r => return r,
        }
    }
}

fn update(m: MapRef, slot: u32, key: u32, value: u64, flags: u64) -> i64 {
    // SAFETY: keys of 4 and values of 8 bytes.
    settled(|| unsafe { m.update(slot, (&raw const key).cast(), (&raw const value).cast(), flags) })
}

fn delete(m: MapRef, slot: u32, key: u32) -> i64 {
    // SAFETY: a key of 4 bytes.
    settled(|| unsafe { m.delete(slot, (&raw const key).cast()) })
}

fn lookup(m: MapRef, slot: u32, key: u32) -> *mut u8 {
    // SAFETY: a key of 4 bytes.
    unsafe { m.lookup(slot, (&raw const key).cast()) }
}

/// Room is left for exactly as many elements as are missing, and then everything can be replaced.
fn check_room(m: &Map) {
    let (r, max) = (m.map_ref(), m.def().max_entries);
    let have = m.entries().len() as u32;
    let added = (0..).map(|k| update(r, 0, 0x8000_0000 + k, 0, NOEXIST)).take_while(|&r| r == 0).count() as u32;
    assert_eq!(have + added, max);
    for (i, (key, _)) in m.entries().into_iter().enumerate() {
        let key = u32::from_ne_bytes(key.try_into().unwrap());
        assert_eq!(update(r, i as u32 % THREADS, key, 1, EXIST), 0);
    }
}

#[test]
fn shared_counters_are_exact() {
    const ROUNDS: u64 = 200_000;
    for (t, percpu) in [(MapType::Hash, false), (MapType::PercpuHash, true), (MapType::Array, false)] {
        let m = Map::create(&MapDef::new("m", t, 4, 8, 64), THREADS).unwrap();
        for k in 0..64 {
            assert_eq!(update(m.map_ref(), 0, k, 0, 0), 0);
        }
        on_all(&m, |slot, r| {
            let mut next = rng(u64::from(slot) + 1);
            for _ in 0..ROUNDS {
                let p = lookup(r, slot, next(64)).cast::<u64>();
                assert!(!p.is_null());
                // SAFETY: an aligned value of eight bytes; of this slot alone if the map is per-CPU.
                unsafe {
                    if percpu {
                        *p += 1;
                    } else {
                        AtomicU64::from_ptr(p).fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            0
        });
        let words = m
            .entries()
            .into_iter()
            .flat_map(|(_, v)| v.chunks(8).map(|w| u64::from_ne_bytes(w.try_into().unwrap())).collect::<Vec<_>>());
        assert_eq!(words.sum::<u64>(), ROUNDS * u64::from(THREADS), "{t}");
    }
}

#[test]
fn insertions_less_deletions_is_what_is_there() {
    for t in [MapType::Hash, MapType::PercpuHash] {
        let m = Map::create(&MapDef::new("m", t, 4, 8, 100), THREADS).unwrap();
        let net = on_all(&m, |slot, r| {
            let mut next = rng(u64::from(slot) + 1);
            let mut net = 0;
            for _ in 0..200_000 {
                let key = next(150);
                match next(4) {
                    0 => net -= i64::from(delete(r, slot, key) == 0),
                    1 => done(update(r, slot, key, 7, EXIST)),
                    2 => done(lookup(r, slot, key)),
                    _ => net += i64::from(update(r, slot, key, 7, NOEXIST) == 0),
                }
            }
            net
        });
        assert_eq!(net, m.entries().len() as i64, "{t}");
        check_room(&m);
    }
}

#[test]
fn a_key_that_is_there_is_always_found() {
    let m = Map::create(&MapDef::new("m", MapType::Hash, 4, 8, 16), THREADS).unwrap();
    let r = m.map_ref();
    const STAYS: u32 = 1000;
    for k in 0..8 {
        assert_eq!(update(r, 0, STAYS + k, u64::from(k), 0), 0);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        for slot in 0..2 {
            let stop = &stop;
            s.spawn(move || {
                let mut next = rng(u64::from(slot) + 1);
                for _ in 0..400_000 {
                    let k = next(8);
                    update(r, slot, STAYS + k, u64::from(k), EXIST);
                    update(r, slot, next(8), 0, 0);
                    delete(r, slot, next(8));
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        s.spawn(|| {
            let mut next = rng(99);
            while !stop.load(Ordering::Relaxed) {
                let k = next(8);
                assert!(!lookup(r, 2, STAYS + k).is_null(), "key {k} was missed");
            }
        });
    });
}

#[test]
fn ring_buffer_delivers_each_record_once_and_in_order() {
    const RECORDS: u64 = 100_000;
    let m = Map::create(&MapDef::new("r", MapType::Ringbuf, 0, 0, 16384), THREADS).unwrap();
    let mut consumer = m.ring_consumer().unwrap();
    let mut next_of = BTreeMap::<u64, u64>::new();
    thread::scope(|s| {
        for slot in 0..THREADS {
            let r = m.map_ref();
            s.spawn(move || {
                for i in 0..RECORDS {
                    let len = 16 + (i * 7 + u64::from(slot)) % 90;
                    loop {
                        // SAFETY: a reservation of at least 16 bytes.
                        unsafe {
                            let p = r.ringbuf_reserve(slot, len, 0);
                            if p.is_null() {
                                thread::yield_now();
                                continue;
                            }
                            p.cast::<[u64; 2]>().write([u64::from(slot), i]);
                            r.ringbuf_commit(p, 0, i % 10 == 9);
                        }
                        break;
                    }
                }
            });
        }
        let total = u64::from(THREADS) * RECORDS / 10 * 9;
        let mut got = 0;
        while got < total {
            got += consumer
                .poll(|d| {
                    let [slot, i] = [0, 8].map(|at| u64::from_ne_bytes(d[at..at + 8].try_into().unwrap()));
                    assert_eq!(d.len() as u64, 16 + (i * 7 + slot) % 90);
                    let expected = next_of.entry(slot).or_default();
                    assert_eq!(i, *expected, "of slot {slot}");
                    *expected += if i % 10 == 8 { 2 } else { 1 };
                })
                .unwrap() as u64;
        }
        assert_eq!(got, total);
    });
}

#[test]
fn a_waiting_ring_consumer_is_always_woken() {
    const RECORDS: u64 = 100_000;
    let m = Map::create(&MapDef::new("r", MapType::Ringbuf, 0, 0, 4096), THREADS).unwrap();
    let mut consumer = m.ring_consumer().unwrap();
    let (wake, waiting) = std::sync::mpsc::channel();
    thread::scope(|s| {
        for slot in 0..2 {
            let (r, wake) = (m.map_ref(), wake.clone());
            s.spawn(move || {
                for i in 0..RECORDS {
                    // SAFETY: eight readable bytes.
                    let output = || unsafe { r.ringbuf_output(slot, (&raw const i).cast(), 8, 0) };
                    let woken = std::iter::repeat_with(output).find(|(r, _)| {
                        *r == 0 || {
                            thread::yield_now();
                            false
                        }
                    });
                    if woken.unwrap().1 {
                        wake.send(()).unwrap();
                    }
                }
            });
        }
        drop(wake);
        let mut got = 0;
        while got < 2 * RECORDS {
            match consumer.poll(|_| ()).unwrap() {
                0 => waiting.recv_timeout(std::time::Duration::from_secs(20)).expect("the wake-up is missing"),
                n => got += n as u64,
            }
        }
    });
}

#[test]
fn stacks_keep_their_numbers() {
    let m = Map::create(&MapDef::new("s", MapType::StackTrace, 4, 32, 64), THREADS).unwrap();
    on_all(&m, |slot, r| {
        let mut next = rng(u64::from(slot) + 1);
        for _ in 0..100_000 {
            let ips = [1, 2, 3, 1 + u64::from(next(200))];
            // SAFETY: a live map.
            let id = settled(|| unsafe { r.stackid(slot, &ips, 1 << 10) });
            assert!((0..64).contains(&id) || id == Errno::ENOMEM.neg());
            if next(8) == 0 {
                delete(r, slot, next(64));
            }
        }
        0
    });
    for (key, _) in m.entries() {
        let frames = m.stack(u32::from_ne_bytes(key.try_into().unwrap())).unwrap();
        assert_eq!(frames[..3], [1, 2, 3]);
        // SAFETY: a live map.
        assert!(unsafe { m.map_ref().stackid(0, &frames, 0) } >= 0);
    }
    // Every element is still there to be had.
    for id in 0..64 {
        delete(m.map_ref(), 0, id);
    }
    // SAFETY: a live map.
    let count = (0..1_000_000u64).filter(|&ip| unsafe { m.map_ref().stackid(0, &[ip], 0) } >= 0);
    assert_eq!((count.take(64).count(), m.entries().len()), (64, 64));
}

#[test]
fn an_lru_map_takes_everything_and_keeps_what_is_used() {
    for t in [MapType::LruHash, MapType::LruPercpuHash] {
        let m = Map::create(&MapDef::new("m", t, 4, 8, 200), THREADS).unwrap();
        for hot in 0..20 {
            assert_eq!(update(m.map_ref(), 0, hot, 7, 0), 0);
        }
        let missed = on_all(&m, |slot, r| {
            let mut next = rng(u64::from(slot) + 1);
            let mut missed = 0;
            for i in 0..50_000 {
                assert_eq!(update(r, slot, 1000 + next(1 << 20), 1, 0), 0, "insertion {i}");
                for hot in 0..20 {
                    if lookup(r, slot, hot).is_null() {
                        missed += 1;
                        assert_eq!(update(r, slot, hot, 7, 0), 0);
                    }
                }
                if next(10) == 0 {
                    delete(r, slot, 1000 + next(1 << 20));
                }
            }
            missed
        });
        // A hand that has just taken a mark off may lose its processor, and another slot's come by before a thread that looks up.
        assert!(missed < 1000, "{t}: {missed} of {} look-ups found nothing", 20 * 50_000 * THREADS);
        let n = m.entries().len();
        assert!((150..=200).contains(&n), "{t}: {n} entries");
        for i in 0..200 {
            assert_eq!(update(m.map_ref(), 1, 5000 + i, 1, 0), 0);
        }
        assert_eq!(m.entries().len(), 200, "{t}");
    }
}

/// Threads with keys of their own on one map, of which buckets, elements and free lists are all shared: each result is the
/// one that there would be without the others.
#[test]
fn own_keys_behave_as_if_alone() {
    for (t, key_size) in [
        (MapType::Hash, 4),
        (MapType::Hash, 8),
        (MapType::Hash, 16),
        (MapType::Hash, 12),
        (MapType::PercpuHash, 8),
        (MapType::LruHash, 8),
        (MapType::LruPercpuHash, 20),
    ] {
        const KEYS: u32 = 12;
        // Always room for all, and barely so; an LRU map may evict while others keep what they freed.
        let lru = matches!(t, MapType::LruHash | MapType::LruPercpuHash);
        let max = THREADS * KEYS * if lru { 2 } else { 1 };
        let m = Map::create(&MapDef::new("m", t, key_size, 16, max), THREADS).unwrap();
        let left = on_all(&m, |slot, r| {
            let mut next = rng(u64::from(slot) + 7);
            let mut model = BTreeMap::<u32, u64>::new();
            for round in 0..60_000u64 {
                let n = next(KEYS);
                let mut key = [0u32; 5];
                key[0] = n * THREADS + slot;
                key[2] = n;
                let k = key.as_ptr().cast::<u8>();
                let check = |model: &BTreeMap<u32, u64>| {
                    // SAFETY: a key of at most 20 bytes; what is there is this slot's alone to change.
                    let p = unsafe { r.lookup(slot, k) }.cast::<u64>();
                    // SAFETY: as above.
                    let found = (!p.is_null()).then(|| unsafe { (*p, *p.add(1)) });
                    assert_eq!(found, model.get(&n).map(|&v| (v, !v)), "{t}, keys of {key_size}, round {round}");
                };
                match next(6) {
                    0 | 1 => {
                        // SAFETY: as above.
                        let result = settled(|| unsafe { r.delete(slot, k) });
                        let there = model.remove(&n).is_some();
                        assert_eq!(result, if there { 0 } else { Errno::ENOENT.neg() }, "{t}, keys of {key_size}");
                    }
                    2 => check(&model),
                    _ => {
                        let flags = u64::from(next(3));
                        let expected = match (flags, model.contains_key(&n)) {
                            (NOEXIST, true) => Errno::EEXIST.neg(),
                            (EXIST, false) => Errno::ENOENT.neg(),
                            _ => 0,
                        };
                        let value = [round << 8 | u64::from(slot), !(round << 8 | u64::from(slot))];
                        // SAFETY: a value of 16 bytes.
                        let result = settled(|| unsafe { r.update(slot, k, value.as_ptr().cast(), flags) });
                        assert_eq!(result, expected, "{t}, keys of {key_size}, round {round}");
                        if result == 0 {
                            model.insert(n, value[0]);
                        }
                    }
                }
                check(&model);
            }
            model.len() as i64
        });
        assert_eq!(m.entries().len() as i64, left, "{t}, keys of {key_size}");
    }
}
