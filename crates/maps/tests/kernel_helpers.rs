//! What programs do with maps: the data plane returns what the live kernel's helpers return to a program, and leaves
//! the same maps behind.

mod common;

use common::{KernelMap, asm};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{F_CURRENT_CPU, MapType, map_flags};
use skep_maps::control::Options;
use skep_maps::{Map, Part, Sample};
use std::collections::BTreeMap;

/// The CPU that the test's programs run on, and our slot.
const CPU: u32 = 0;

fn pin() {
    // SAFETY: a zeroed set is valid, and is of the size given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(CPU as usize, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Update(u64, u64, u64),
    Delete(u64),
    Lookup(u64),
    LookupPercpu(u64, u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || prop_oneof![20 => 0u64..9, 1 => Just(0xffff_ffffu64)];
    let flags = prop_oneof![6 => Just(0u64), 6 => 1u64..3, 1 => 3u64..9, 1 => Just(1u64 << 63), 1 => any::<u64>()];
    let op = prop_oneof![
        6 => (key(), 0u64..1000, flags).prop_map(|(k, v, f)| Op::Update(k, v, f)),
        3 => key().prop_map(Op::Delete),
        3 => key().prop_map(Op::Lookup),
        1 => (key(), 0u64..70).prop_map(|(k, c)| Op::LookupPercpu(k, c)),
    ];
    prop::collection::vec(op, 1..80)
}

fn word(p: *const u8) -> i32 {
    // SAFETY: the helpers return null or the address of a value of eight bytes.
    unsafe { p.cast::<u64>().as_ref() }.map_or(-1, |v| *v as i32)
}

/// All entries, by way of get-next-key and lookup.
fn entries(
    next: impl Fn(Option<&[u8]>) -> Option<Vec<u8>>,
    get: impl Fn(&[u8]) -> Vec<u8>,
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let keys = std::iter::successors(next(None), |k| next(Some(k))).take(100);
    keys.map(|k| (k.clone(), get(&k))).collect()
}

#[test]
fn update_delete_lookup() {
    if !common::have_kernel() {
        return;
    }
    pin();
    let cpus = common::possible_cpus();
    for (t, flags) in [
        (MapType::Array, 0),
        (MapType::PercpuArray, 0),
        (MapType::Hash, 0),
        (MapType::Hash, map_flags::NO_PREALLOC),
        (MapType::PercpuHash, 0),
        (MapType::PercpuHash, map_flags::NO_PREALLOC),
        (MapType::LruHash, 0),
        (MapType::LruPercpuHash, 0),
    ] {
        let array = matches!(t, MapType::Array | MapType::PercpuArray);
        let percpu = matches!(t, MapType::PercpuHash | MapType::PercpuArray | MapType::LruPercpuHash);
        // Which element goes when an LRU map is full is each one's own business.
        let room = if matches!(t, MapType::LruHash | MapType::LruPercpuHash) { 500 } else { 5 };
        let mut def = MapDef::new("m", t, if array { 4 } else { 8 }, 8, room);
        def.flags = flags;
        let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&ops(), |ops| {
                let kernel = KernelMap::create(&def).unwrap();
                let ours = Map::create(&def, cpus).unwrap();
                let (m, fd) = (ours.map_ref(), kernel.raw());
                let (update, delete, lookup) = (asm::update(fd), asm::delete(fd), asm::lookup(fd));
                let percpu = percpu.then(|| asm::lookup_percpu(fd));
                for op in &ops {
                    // SAFETY: keys of 4 or 8 and values of 8 bytes, of live words.
                    let (k, o) = unsafe {
                        match *op {
                            Op::Update(k, v, f) => {
                                let (kp, vp) = ((&raw const k).cast(), (&raw const v).cast());
                                (update.run(&[k, v, f]), m.update(CPU, kp, vp, f) as i32)
                            }
                            Op::Delete(k) => (delete.run(&[k, 0, 0]), m.delete(CPU, (&raw const k).cast()) as i32),
                            Op::Lookup(k) => (lookup.run(&[k, 0, 0]), word(m.lookup(CPU, (&raw const k).cast()))),
                            Op::LookupPercpu(k, c) => match &percpu {
                                None => continue,
                                Some(p) => (p.run(&[k, c, 0]), word(m.lookup_percpu((&raw const k).cast(), c as u32))),
                            },
                        }
                    };
                    prop_assert_eq!(k, o, "{} {:?}: kernel left, skep right", t, op);
                }
                let size = ours.value_size();
                let k = entries(|k| kernel.next_key(k).ok(), |k| kernel.lookup(k, 0, size).unwrap());
                let o = entries(|k| ours.next_key(k).ok(), |k| ours.lookup(k, 0).unwrap());
                prop_assert_eq!(k, o);
                Ok(())
            })
            .unwrap();
    }
}

/// Maps `len` bytes of a descriptor.
fn mmap(fd: i32, len: usize, off: i64, write: bool) -> *mut u8 {
    let prot = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
    // SAFETY: a new mapping.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, fd, off) };
    assert_ne!(p, libc::MAP_FAILED);
    p.cast()
}

#[test]
fn ring_buffer() {
    if !common::have_kernel() {
        return;
    }
    let def = MapDef::new("r", MapType::Ringbuf, 0, 0, 4096);
    let kernel = KernelMap::create(&def).unwrap();
    let ours = Map::create(&def, 4).unwrap();
    let (m, fd) = (ours.map_ref(), kernel.raw());
    let (output, query) = (asm::ringbuf_output(fd), asm::ringbuf_query(fd));
    let sizes = [0, 1, 8, 100, 1000, 4080, 4081, 4088, 4089, 5000];
    let reserve: Vec<_> =
        sizes.iter().flat_map(|&s| [false, true].map(|d| (s, d, asm::ringbuf_reserve(fd, s, d)))).collect();
    let consumer = mmap(fd, 4096, 0, true).cast::<u64>();
    let data = mmap(fd, 4096 + 2 * 4096, 4096, false);
    let ours_base = ours.arena().ptr();
    let mut seed = 1u64;
    let mut next = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    // SAFETY: mapped pages of both rings; buffers of the sizes given.
    unsafe {
        for step in 0..20_000 {
            match next(8) {
                0..3 => {
                    let (size, flags, fill) = (next(64), [0, 0, 1, 2, 3, 4, 1 << 40][next(7) as usize], next(1 << 30));
                    let buf = [fill; 8];
                    let o = m.ringbuf_output(1, buf.as_ptr().cast(), size, flags).0;
                    assert_eq!(
                        output.run(&[size, flags, fill]),
                        o as i32,
                        "step {step}: output of {size}, flags {flags}"
                    );
                }
                3..6 => {
                    let (size, discard, program) = &reserve[next(reserve.len() as u64) as usize];
                    let p = m.ringbuf_reserve(1, *size as u64, 0);
                    if !p.is_null() {
                        m.ringbuf_commit(p, 0, *discard);
                    }
                    assert_eq!(program.run(&[0]), if p.is_null() { -1 } else { 0 }, "step {step}: reserve {size}");
                }
                6 => {
                    for what in 0..6 {
                        assert_eq!(query.run(&[what]), m.ringbuf_query(what) as i32, "step {step}: query {what}");
                    }
                }
                _ => {
                    // The records between the positions are the same, but for what the kernel keeps in the header.
                    let (from, to) = (m.ringbuf_query(2), m.ringbuf_query(3));
                    let mut pos = from;
                    while pos < to {
                        let at = (pos % 4096) as usize;
                        let (k, o) = (data.add(4096 + at), ours_base.add(8192 + at));
                        let len = k.cast::<u32>().read();
                        assert_eq!(len, o.cast::<u32>().read(), "step {step}: header at {pos}");
                        let size = (len & 0x3fff_ffff) as usize;
                        if len >> 30 == 0 && size < 64 {
                            let k = std::slice::from_raw_parts(k.add(8), size);
                            let o = std::slice::from_raw_parts(o.add(8), size);
                            // Reserved records are not filled, the kernel's have what was there before.
                            if o.iter().all(|&b| b != 0) {
                                assert_eq!(k, o, "step {step}: data at {pos}");
                            }
                        }
                        pos += (size as u64 + 15) & !7;
                        if next(3) == 0 {
                            break;
                        }
                    }
                    consumer.write_volatile(pos);
                    ours_base.cast::<u64>().write_volatile(pos);
                }
            }
        }
    }
}

#[test]
fn perf_event_output() {
    if !common::have_kernel() {
        return;
    }
    pin();
    let cpus = common::possible_cpus().max(2);
    let def = MapDef::new("p", MapType::PerfEventArray, 4, 4, cpus + 1);
    let kernel = KernelMap::create(&def).unwrap();
    let options = Options { perf_ring_bytes: 4096, ..Options::default() };
    let ours = Map::create_with(&def, cpus, options).unwrap();
    let output = asm::perf_output(kernel.raw());
    let sample = Sample::default();
    let run = |size: u64, flags: u64, fill: u64| {
        let buf = [fill; 8];
        let part = Part { ptr: buf.as_ptr().cast(), len: size as usize };
        // SAFETY: a readable part.
        let o = unsafe { ours.map_ref().perf_output(CPU, flags, &sample, &[part]) }.0;
        assert_eq!(output.run(&[size, flags, fill]), o as i32, "size {size} flags {flags:#x}");
        o
    };
    run(8, F_CURRENT_CPU, 1);
    run(8, 0, 1);
    run(8, u64::from(cpus) + 1, 1);
    run(8, 1 << 32, 1);

    // perf_event_attr: type software, config BPF output, sample type raw, one wake-up an event.
    let mut attr = [0u64; 16];
    attr[0] = 1 | (128 << 32);
    attr[1] = 10;
    attr[2] = 1;
    attr[3] = 1 << 10;
    attr[6] = 1;
    let open = |cpu: u32| {
        // SAFETY: an attribute of the size that it says.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), -1, cpu, -1, 8) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        fd as i32
    };
    for cpu in 0..cpus.min(common::possible_cpus()) {
        let fd = open(cpu);
        kernel.update(&cpu.to_ne_bytes(), &fd.to_ne_bytes(), 0).unwrap();
        ours.set_perf_event(cpu, Some(cpu)).unwrap();
        if cpu != CPU {
            continue;
        }
        let ring = mmap(fd, 8192, 0, true);
        // SAFETY: PERF_EVENT_IOC_ENABLE on an event; pages of both rings.
        unsafe {
            assert_eq!(libc::ioctl(fd, 0x2400, 0), 0);
            let our_ring = ours.arena().ptr().add(ours.header().elems_off as usize);
            let position = |ring: *mut u8, off: usize| ring.add(off).cast::<u64>();
            let mut seed = 7u64;
            let mut next = |n: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % n
            };
            let mut full = 0;
            for step in 0..5000 {
                let flags = [u64::from(CPU), F_CURRENT_CPU, 1 << 33][(next(20) / 9) as usize];
                full += u32::from(run(next(64), flags, next(1 << 40)) == -28);
                let heads = [ring, our_ring].map(|r| position(r, 1024).read_volatile());
                assert_eq!(heads[0], heads[1], "step {step}");
                if next(100) == 0 {
                    // Each record: header without misc, then the body but for padding and the ids of lost records.
                    let mut pos = position(our_ring, 1032).read_volatile();
                    let byte = |r: *mut u8, pos: u64| r.add(4096 + (pos % 4096) as usize).read();
                    let word =
                        |r: *mut u8, pos: u64| u64::from_ne_bytes(std::array::from_fn(|i| byte(r, pos + i as u64)));
                    while pos < heads[0] {
                        let (k, o) = (word(ring, pos), word(our_ring, pos));
                        assert_eq!(k & !(0xffff << 32), o & !(0xffff << 32), "step {step}: header at {pos}");
                        let (kind, size) = (k as u32, k >> 48);
                        if kind == 2 {
                            assert_eq!(word(ring, pos + 16), word(our_ring, pos + 16), "step {step}: lost at {pos}");
                        } else {
                            let raw = word(ring, pos + 8) as u32;
                            assert_eq!(raw, word(our_ring, pos + 8) as u32, "step {step}: size at {pos}");
                            for i in 12..size - 7 {
                                assert_eq!(byte(ring, pos + i), byte(our_ring, pos + i), "step {step}: {pos} + {i}");
                            }
                        }
                        pos += size;
                    }
                    position(ring, 1032).write_volatile(pos);
                    position(our_ring, 1032).write_volatile(pos);
                }
            }
            assert!(full > 100, "the rings were full {full} times");
        }
    }
    if common::possible_cpus() > 1 {
        run(8, 1, 1);
    }
}

#[test]
fn stackid_refusals() {
    if !common::have_kernel() {
        return;
    }
    let def = MapDef::new("s", MapType::StackTrace, 4, 8 * 16, 64);
    let kernel = KernelMap::create(&def).unwrap();
    let ours = Map::create(&def, 4).unwrap();
    let stackid = asm::stackid(kernel.raw());
    let ips: Vec<u64> = (1..10).collect();
    for flags in [1 << 11, 1 << 63, 255, 255 | (1 << 9) | (1 << 10), 1 << 32] {
        // SAFETY: a live map.
        let o = unsafe { ours.map_ref().stackid(1, &ips, flags) };
        assert_eq!(stackid.run(&[flags]), o as i32, "flags {flags:#x}");
    }
    // A stack that is there has the same number again, and is what bpf(2) sees.
    let (a, b) = (stackid.run(&[0]), stackid.run(&[1 << 9]));
    assert!((0..64).contains(&a) && a == b);
    let key = a.to_ne_bytes();
    // SAFETY: a live map.
    let id = unsafe { ours.map_ref().stackid(1, &ips, 0) } as u32;
    let our_key = id.to_ne_bytes();
    for round in 0..3 {
        assert_eq!(kernel.lookup(&key, 0, 128).map(|v| v.len()), ours.lookup(&our_key, 0).map(|v| v.len()), "{round}");
        assert_eq!(kernel.next_key(None).is_ok(), ours.next_key(None).is_ok(), "{round}");
        assert_eq!(kernel.next_key(Some(&key)).err(), ours.next_key(Some(&our_key)).err(), "{round}");
        assert_eq!(kernel.delete(&key), ours.delete(&our_key), "{round}");
    }
}

/// The lengths and the data of prefixes, many of which begin the same.
fn prefix() -> impl Strategy<Value = u64> {
    let len = prop_oneof![8 => 0u64..33, 1 => Just(33u64), 1 => Just(u64::from(u32::MAX))];
    (len, 0u64..4, 0u64..4, 0u64..256).prop_map(|(len, a, b, c)| len | (a << 38) | (b << 47) | (c << 56))
}

#[test]
fn longest_prefix() {
    if !common::have_kernel() {
        return;
    }
    let op = prop_oneof![
        6 => (prefix(), 0u64..1000, prop_oneof![8 => Just(0u64), 4 => 1u64..4]).prop_map(|(k, v, f)| Op::Update(k, v, f)),
        2 => prefix().prop_map(Op::Delete),
        6 => prefix().prop_map(Op::Lookup),
    ];
    let mut def = MapDef::new("m", MapType::LpmTrie, 8, 8, 40);
    def.flags = map_flags::NO_PREALLOC;
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(op, 1..200), |ops| {
            let (kernel, ours) = (KernelMap::create(&def).unwrap(), Map::create(&def, 4).unwrap());
            let (m, fd) = (ours.map_ref(), kernel.raw());
            let (update, delete, lookup) = (asm::update(fd), asm::delete(fd), asm::lookup(fd));
            for op in &ops {
                // SAFETY: keys and values of 8 bytes, of live words.
                let (k, o) = unsafe {
                    match *op {
                        Op::Update(k, v, f) => {
                            let (kp, vp) = ((&raw const k).cast(), (&raw const v).cast());
                            (update.run(&[k, v, f]), m.update(CPU, kp, vp, f) as i32)
                        }
                        Op::Delete(k) => (delete.run(&[k, 0, 0]), m.delete(CPU, (&raw const k).cast()) as i32),
                        Op::Lookup(k) => (lookup.run(&[k, 0, 0]), word(m.lookup(CPU, (&raw const k).cast()))),
                        Op::LookupPercpu(..) => continue,
                    }
                };
                prop_assert_eq!(k, o, "{:x?}: kernel left, skep right", op);
            }
            // The order of the walk is the kernel's, also from a key that is not there.
            let theirs = std::iter::successors(kernel.next_key(None).ok(), |k| kernel.next_key(Some(k)).ok());
            let same = std::iter::successors(ours.next_key(None).ok(), |k| ours.next_key(Some(k)).ok());
            prop_assert!(theirs.take(100).eq(same.take(100)));
            prop_assert_eq!(kernel.next_key(Some(&[1; 8])), ours.next_key(Some(&[1; 8])));
            Ok(())
        })
        .unwrap();
}

#[test]
fn push_pop_peek() {
    if !common::have_kernel() {
        return;
    }
    let op = (0u32..4, 0u64..30, prop_oneof![6 => Just(0u64), 3 => Just(2u64), 1 => any::<u64>()]);
    let maps = prop_oneof![Just(MapType::Queue), Just(MapType::Stack), Just(MapType::BloomFilter)];
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&(maps, prop::collection::vec(op, 1..100)), |(t, ops)| {
            let def = MapDef::new("m", t, 0, 8, if t == MapType::BloomFilter { 2000 } else { 4 });
            let (kernel, ours) = (KernelMap::create(&def).unwrap(), Map::create(&def, 4).unwrap());
            let (m, fd) = (ours.map_ref(), kernel.raw());
            let push = asm::push(fd);
            let get = |take, word| asm::get(fd, take, word);
            let bloom = t == MapType::BloomFilter; // nothing can be taken out of it
            let (pop, peek, pop_word, peek_word) =
                (get(!bloom, false), get(false, false), get(!bloom, true), get(false, true));
            for (op, value, flags) in &ops {
                let op = if bloom && *op == 2 { &3 } else { op };
                let (mut out, ctx) = (*value, [0, *value, *flags]);
                let at = (&raw mut out).cast::<u8>();
                // SAFETY: a value of 8 bytes.
                let (k, o) = unsafe {
                    match op {
                        0 | 1 => (push.run(&ctx), m.push(CPU, at, *flags) as i32),
                        2 if value % 2 == 0 => (pop.run(&ctx), m.pop(CPU, at) as i32),
                        2 => (pop_word.run(&ctx), {
                            m.pop(CPU, at);
                            out
                        } as i32),
                        _ if value % 2 == 0 => (peek.run(&ctx), m.peek(CPU, at) as i32),
                        _ => (peek_word.run(&ctx), {
                            m.peek(CPU, at);
                            out
                        } as i32),
                    }
                };
                prop_assert_eq!(k, o, "{} {:?} {:?}: kernel left, skep right", t, op, ctx);
            }
            Ok(())
        })
        .unwrap();
}
