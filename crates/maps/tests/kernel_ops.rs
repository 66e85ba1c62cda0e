//! The commands of `bpf(2)` on maps: random sequences give the same answers from skep and from the live kernel.

mod common;

use common::KernelMap;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags as f};
use skep_maps::Map;
use skep_maps::control::is_hollow;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Op {
    Lookup(u32, u64),
    Update(u32, u8, u64),
    Delete(u32),
    LookupAndDelete(u32, u64),
    NextKey(Option<u32>),
    Keys,
    Freeze,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = || prop_oneof![20 => 0u32..9, 1 => Just(u32::MAX)];
    let flags = || prop_oneof![6 => Just(0u64), 4 => 1u64..3, 1 => 3u64..9, 1 => Just(1u64 << 63)];
    let op = prop_oneof![
        4 => (key(), flags()).prop_map(|(k, f)| Op::Lookup(k, if f < 3 { 0 } else { f })),
        10 => (key(), any::<u8>(), flags()).prop_map(|(k, v, f)| Op::Update(k, v, f)),
        4 => key().prop_map(Op::Delete),
        2 => (key(), flags()).prop_map(|(k, f)| Op::LookupAndDelete(k, if f < 3 { 0 } else { f })),
        2 => proptest::option::of(key()).prop_map(Op::NextKey),
        2 => Just(Op::Keys),
        1 => prop_oneof![30 => Just(Op::Keys), 1 => Just(Op::Freeze)],
    ];
    prop::collection::vec(op, 1..60)
}

fn def() -> impl Strategy<Value = MapDef> {
    let types = prop_oneof![
        Just(MapType::Hash),
        Just(MapType::Array),
        Just(MapType::PercpuHash),
        Just(MapType::LruHash),
        Just(MapType::LruPercpuHash),
        Just(MapType::PercpuArray),
        Just(MapType::ProgArray),
        Just(MapType::PerfEventArray),
        Just(MapType::Ringbuf),
        Just(MapType::StackTrace),
        Just(MapType::Queue),
        Just(MapType::Stack),
        Just(MapType::BloomFilter),
        Just(MapType::LpmTrie),
        Just(MapType::UserRingbuf),
        Just(MapType::ArrayOfMaps),
        Just(MapType::HashOfMaps),
        Just(MapType::CgroupArray),
        Just(MapType::Devmap),
        Just(MapType::DevmapHash),
        Just(MapType::Cpumap),
        Just(MapType::Xskmap),
        Just(MapType::Sockmap),
        Just(MapType::Sockhash),
        Just(MapType::ReuseportSockarray),
        Just(MapType::CgroupStorage),
        Just(MapType::PercpuCgroupStorage),
    ];
    let access = prop_oneof![8 => Just(0), 1 => Just(f::RDONLY), 1 => Just(f::WRONLY)];
    let key_size = prop_oneof![4 => Just(4u32), 1 => Just(5u32), 1 => Just(8u32), 1 => Just(20u32)];
    let value_size = prop_oneof![Just(1u32), Just(4u32), Just(8u32), Just(12u32), Just(64u32)];
    (types, key_size, value_size, 1u32..8, access, any::<bool>()).prop_map(|(t, key, value, entries, access, no)| {
        let lru = matches!(t, MapType::LruHash | MapType::LruPercpuHash);
        let hash = lru || matches!(t, MapType::Hash | MapType::PercpuHash);
        let mut def = match t {
            MapType::Ringbuf | MapType::UserRingbuf => MapDef::new("m", t, 0, 0, 4096),
            MapType::ProgArray | MapType::PerfEventArray => MapDef::new("m", t, 4, 4, entries),
            MapType::Queue | MapType::Stack | MapType::BloomFilter => MapDef::new("m", t, 0, value, entries),
            MapType::LpmTrie => MapDef::new("m", t, key.max(5), value, entries),
            MapType::CgroupStorage | MapType::PercpuCgroupStorage => MapDef::new("m", t, 8, value, 0),
            t if is_hollow(t) => MapDef::new(
                "m",
                t,
                4,
                if value == 8 && t != MapType::Xskmap && t != MapType::CgroupArray { 8 } else { 4 },
                entries,
            ),
            MapType::ArrayOfMaps | MapType::HashOfMaps => {
                let mut def = MapDef::new("m", t, 4, 4, entries);
                def.inner = Some(std::sync::Arc::new(MapDef::new("i", MapType::Array, 4, 4, 1)));
                def
            }
            MapType::StackTrace => MapDef::new("m", t, 4, 64, entries),
            // Which element goes when a map is full is each one's own business.
            _ if lru => MapDef::new("m", t, key, value, 500),
            _ => MapDef::new("m", t, if hash { key } else { 4 }, value, entries),
        };
        if !matches!(t, MapType::Ringbuf | MapType::UserRingbuf | MapType::Cpumap) {
            def.flags |= access;
        }
        if t == MapType::LpmTrie {
            def.flags |= f::NO_PREALLOC;
        }
        if hash && no && !lru {
            def.flags |= f::NO_PREALLOC;
        }
        def
    })
}

fn bloom_value(size: usize, n: u8) -> Vec<u8> {
    vec![n; size]
}

fn key(def: &MapDef, n: u32) -> Vec<u8> {
    if def.map_type == MapType::LpmTrie {
        let n = n.wrapping_mul(0x2545_f491);
        // Lengths from 0 to some too long ones, and data that often begin the same.
        let mut key = (n >> 8 & 63).to_ne_bytes().to_vec();
        key.resize(def.key_size as usize, 0x5a);
        key[4] = (n & 0xc0) as u8;
        return key;
    }
    let mut key = vec![0x5a; def.key_size as usize];
    let len = key.len().min(4);
    key[..len].copy_from_slice(&n.to_ne_bytes()[..len]);
    key
}

/// All keys, as a set: hash maps have an order of their own.
fn keys(mut next: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    std::iter::successors(next(None), |k| next(Some(k))).take(100).collect()
}

fn run(def: &MapDef, ops: &[Op], cpus: u32) -> Result<(), TestCaseError> {
    let kernel = KernelMap::create(def).unwrap();
    let ours = Map::create(def, cpus).unwrap();
    let size = ours.value_size();
    let percpu = matches!(def.map_type, MapType::PercpuHash | MapType::PercpuArray | MapType::LruPercpuHash);
    let hash = matches!(def.map_type, MapType::Hash | MapType::PercpuHash | MapType::LruHash | MapType::LruPercpuHash);
    // The padding of per-CPU values is the caller's: cleared, as it is not part of the value.
    let clear = |mut v: Vec<u8>| {
        if percpu {
            let stride = size / cpus as usize;
            v.chunks_mut(stride).for_each(|c| c[def.value_size as usize..].fill(0));
        }
        v
    };
    let mut added = BTreeSet::new();
    for (i, op) in ops.iter().enumerate() {
        let (k, o) = match *op {
            Op::Lookup(n, flags) => {
                let key = key(def, n);
                if def.map_type == MapType::BloomFilter {
                    // What is looked for is the value. What was never added may be found in either.
                    let value = bloom_value(size, n as u8);
                    let k = kernel.contains(&value, flags);
                    let o = if flags == 0 { ours.contains(&value) } else { ours.lookup(&[], flags).map(drop) };
                    let sure = k.is_ok() && o.is_ok() && added.contains(&value);
                    let unsure = !added.contains(&value) && flags == 0;
                    prop_assert!(sure || unsure || k == o, "op {i} {op:?}: kernel {k:?}, skep {o:?}");
                    continue;
                }
                (kernel.lookup(&key, flags, size).map(clear), ours.lookup(&key, flags).map(clear))
            }
            Op::Update(n, v, flags) => {
                let key = key(def, n);
                let mut value: Vec<u8> = (0..size).map(|i| v.wrapping_add(i as u8)).collect();
                if matches!(def.map_type, MapType::ProgArray | MapType::PerfEventArray)
                    || matches!(def.map_type, MapType::ArrayOfMaps | MapType::HashOfMaps)
                    || is_hollow(def.map_type)
                {
                    value = vec![0xff; size]; // no descriptor, no device
                }
                if def.map_type == MapType::BloomFilter {
                    value = bloom_value(size, n as u8);
                }
                if matches!(def.map_type, MapType::ArrayOfMaps | MapType::HashOfMaps) {
                    // What is named by a descriptor is the front's business.
                    let k = kernel.update(&key, &value, flags);
                    prop_assert!(k.is_err(), "op {} {:?}: {:?}", i, op, k);
                    continue;
                }
                let (k, o) = (kernel.update(&key, &value, flags), ours.update(&key, &value, flags));
                // A map that is frozen takes none.
                if def.map_type == MapType::BloomFilter && k.is_ok() {
                    added.insert(value);
                }
                (k.map(|()| vec![]), o.map(|()| vec![]))
            }
            Op::Delete(n) => {
                let key = key(def, n);
                (kernel.delete(&key).map(|()| vec![]), ours.delete(&key).map(|()| vec![]))
            }
            Op::LookupAndDelete(n, flags) => {
                let key = key(def, n);
                (kernel.lookup_and_delete(&key, flags, size).map(clear), ours.lookup_and_delete(&key, flags).map(clear))
            }
            Op::NextKey(n) => {
                let key = n.map(|n| key(def, n));
                let (k, o) = (kernel.next_key(key.as_deref()), ours.next_key(key.as_deref()));
                // Which key it is only arrays have in common.
                if hash {
                    prop_assert_eq!(n.is_none() && k.is_err(), n.is_none() && o.is_err());
                    continue;
                }
                (k, o)
            }
            Op::Keys => {
                let k = keys(|k| kernel.next_key(k).ok());
                prop_assert_eq!(k.clone(), keys(|k| ours.next_key(k).ok()), "op {} of {}", i, def.map_type);
                if def.map_type != MapType::Ringbuf && hash {
                    let entries: BTreeSet<_> = ours.entries().into_iter().map(|e| e.0).collect();
                    prop_assert!(def.flags & f::WRONLY != 0 || entries == k, "entries at op {}", i);
                }
                continue;
            }
            Op::Freeze => (kernel.freeze().map(|()| vec![]), ours.freeze().map(|()| vec![])),
        };
        prop_assert_eq!(&k, &o, "op {} {:?} of {}: kernel left, skep right", i, op, def.map_type);
    }
    Ok(())
}

#[test]
fn random_sequences() {
    if !common::have_kernel() {
        return;
    }
    let cpus = common::possible_cpus();
    let config = Config { cases: 6000, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&(def(), ops()), |(def, ops)| run(&def, &ops, cpus)).unwrap();
}
