//! Each map type once through: programs' side and `bpf(2)`'s side see the same.

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{F_CURRENT_CPU, MapType, map_flags};
use skep_maps::control::{Options, PerfRecord};
use skep_maps::{CONTROL_SLOT, Map, NO_WAKEUP, Part, Sample, sample_type};

const SLOTS: u32 = 8;

fn map(map_type: MapType, key: u32, value: u32, entries: u32) -> Map {
    Map::create(&MapDef::new("t", map_type, key, value, entries), SLOTS).unwrap()
}

fn k(n: u32) -> [u8; 4] {
    n.to_ne_bytes()
}

fn update(m: &Map, slot: u32, key: u32, value: u64, flags: u64) -> i64 {
    // SAFETY: sizes 4 and 8 in all maps here.
    unsafe { m.map_ref().update(slot, k(key).as_ptr(), value.to_ne_bytes().as_ptr(), flags) }
}

fn get(m: &Map, slot: u32, key: u32) -> Option<u64> {
    // SAFETY: as in `update`.
    unsafe { m.map_ref().lookup(slot, k(key).as_ptr()).cast::<u64>().as_ref().copied() }
}

#[test]
fn array() {
    let m = map(MapType::Array, 4, 8, 3);
    assert_eq!(update(&m, 0, 1, 7, 0), 0);
    assert_eq!(update(&m, 0, 3, 7, 0), Errno::E2BIG.neg());
    assert_eq!(update(&m, 0, 1, 7, 1), Errno::EEXIST.neg());
    assert_eq!(update(&m, 0, 1, 7, 4), Errno::EINVAL.neg());
    assert_eq!((get(&m, 0, 1), get(&m, 0, 3)), (Some(7), None));
    assert_eq!(m.lookup(&k(1), 0).unwrap(), 7u64.to_ne_bytes());
    assert_eq!(m.next_key(None).unwrap(), k(0));
    assert_eq!(m.next_key(Some(&k(2))), Err(Errno::ENOENT));
    assert_eq!(m.entries().len(), 3);
}

#[test]
fn percpu_array() {
    let m = map(MapType::PercpuArray, 4, 8, 3);
    assert_eq!(update(&m, 5, 1, 7, 0), 0);
    assert_eq!((get(&m, 5, 1), get(&m, 4, 1), get(&m, SLOTS, 1)), (Some(7), Some(0), None));
    let all = m.lookup(&k(1), 0).unwrap();
    assert_eq!((all.len(), &all[40..48]), (64, &7u64.to_ne_bytes()[..]));
    assert_eq!(m.update(&k(2), &[3; 64], 0), Ok(()));
    assert_eq!(get(&m, 7, 2), Some(0x0303_0303_0303_0303));
}

#[test]
fn hash_is_full_at_max_entries_and_replaces_when_full() {
    let m = map(MapType::Hash, 4, 8, 100);
    for i in 0..100 {
        assert_eq!(update(&m, i % SLOTS, i, u64::from(i), 1), 0, "{i}");
    }
    assert_eq!(update(&m, 0, 100, 0, 0), Errno::E2BIG.neg());
    assert_eq!(update(&m, 0, 50, 0, 1), Errno::EEXIST.neg());
    assert_eq!(update(&m, 0, 500, 0, 2), Errno::ENOENT.neg());
    for round in 0..50 {
        for i in 0..100 {
            assert_eq!(update(&m, (round + i) % SLOTS, i, u64::from(i + round), 2), 0);
        }
    }
    assert!((0..100).all(|i| get(&m, 0, i) == Some(u64::from(i) + 49)));
    assert_eq!(m.entries().len(), 100);
    for i in 0..100 {
        // SAFETY: a key of four bytes.
        assert_eq!(unsafe { m.map_ref().delete(i % SLOTS, k(i).as_ptr()) }, 0);
        assert_eq!(get(&m, 0, i), None);
    }
    assert_eq!(m.delete(&k(1)), Err(Errno::ENOENT));
    assert!(m.entries().is_empty());
    assert_eq!(m.next_key(None), Err(Errno::ENOENT));
    assert_eq!(update(&m, 0, 100, 0, 0), 0);
}

#[test]
fn percpu_hash_zeroes_the_others_of_a_new_element() {
    let m = map(MapType::PercpuHash, 4, 8, 1);
    assert_eq!(m.update(&k(1), &[9; 64], 0), Ok(()));
    assert_eq!(m.delete(&k(1)), Ok(()));
    assert_eq!(update(&m, 3, 2, 5, 0), 0);
    assert_eq!((get(&m, 3, 2), get(&m, 2, 2)), (Some(5), Some(0)));
    assert_eq!(update(&m, 2, 2, 6, 2), 0);
    let all = m.lookup_and_delete(&k(2), 0).unwrap();
    assert_eq!((&all[16..24], &all[24..32]), (&6u64.to_ne_bytes()[..], &5u64.to_ne_bytes()[..]));
    assert_eq!(m.lookup(&k(2), 0), Err(Errno::ENOENT));
}

#[test]
fn prog_array() {
    let m = map(MapType::ProgArray, 4, 4, 2);
    // SAFETY: a live map.
    let at = |i| unsafe { m.map_ref().prog_array_get(i) };
    assert_eq!(m.set_program(1, Some(0)), Ok(()));
    assert_eq!((at(0), at(1), at(2)), (None, Some(0), None));
    assert_eq!(m.set_program(2, Some(0)), Err(Errno::E2BIG));
    assert_eq!(m.delete(&k(0)), Err(Errno::ENOENT));
    assert_eq!(m.delete(&k(1)), Ok(()));
    assert_eq!(at(1), None);
    assert!(!m.target_writable());
}

#[test]
fn ring_buffer_laps_discards_and_waits_for_busy_records() {
    let m = Map::create(&MapDef::new("r", MapType::Ringbuf, 0, 0, 4096), SLOTS).unwrap();
    let r = m.map_ref();
    let mut consumer = m.ring_consumer().unwrap();
    let mut sent = 0u64;
    // SAFETY: a live map, buffers of the sizes given.
    unsafe {
        for lap in 0..100u64 {
            let mut expect = Vec::new();
            loop {
                let len = (sent * 37 + lap) % 300;
                let data = vec![sent as u8; len as usize];
                let at = r.ringbuf_reserve(1, len, 0);
                if at.is_null() {
                    break;
                }
                at.copy_from(data.as_ptr(), data.len());
                let discard = sent.is_multiple_of(5);
                r.ringbuf_commit(at, 0, discard);
                if !discard {
                    expect.push(data);
                }
                sent += 1;
            }
            let mut got = Vec::new();
            consumer.poll(|d| got.push(d.to_vec())).unwrap();
            assert_eq!(got, expect);
        }
        let first = r.ringbuf_reserve(2, 16, 0);
        assert_eq!(r.ringbuf_output(3, [1; 4].as_ptr(), 4, 0), (0, false));
        assert_eq!(consumer.poll(|_| ()), Ok(0));
        assert!(r.ringbuf_owns(first) && !r.ringbuf_owns(first.add(4)) && !r.ringbuf_owns(first.add(1 << 20)));
        assert!(r.ringbuf_commit(first, 0, false));
        assert_eq!(consumer.poll(|_| ()), Ok(2));
        assert_eq!(r.ringbuf_output(3, [1; 4].as_ptr(), 4, NO_WAKEUP), (0, false));
        assert_eq!(r.ringbuf_output(3, [1; 4].as_ptr(), 4, 8), (Errno::EINVAL.neg(), false));
        assert_eq!(r.ringbuf_output(3, [1; 4].as_ptr(), 4096, 0), (Errno::EAGAIN.neg(), false));
        assert_eq!((r.ringbuf_query(0), r.ringbuf_query(1)), (16, 4096));
    }
}

#[test]
fn a_dead_slots_reservation_is_discarded() {
    let m = Map::create(&MapDef::new("r", MapType::Ringbuf, 0, 0, 4096), SLOTS).unwrap();
    let r = m.map_ref();
    let mut consumer = m.ring_consumer().unwrap();
    // SAFETY: a live map, a buffer of the size given.
    unsafe {
        assert!(!r.ringbuf_reserve(2, 16, 0).is_null());
        assert_eq!(r.ringbuf_output(3, [1; 4].as_ptr(), 4, 0), (0, false));
    }
    assert_eq!(consumer.poll(|_| ()), Ok(0));
    assert_eq!(m.recover(2).records, 1);
    assert_eq!(m.recover(3).records, 0);
    assert_eq!(consumer.poll(|d| assert_eq!(d, [1; 4])), Ok(1));
}

#[test]
fn perf_rings() {
    let options = Options { perf_ring_bytes: 4096, sample_type: sample_type::KNOWN, ..Options::default() };
    let m = Map::create_with(&MapDef::new("p", MapType::PerfEventArray, 4, 4, 100), SLOTS, options).unwrap();
    let sample = Sample { ip: 1, pid: 2, tid: 3, time: 4 };
    let out = |slot, flags, len: usize| {
        let data = [7u8; 4096];
        let parts = [Part { ptr: data.as_ptr(), len: len / 2 }, Part { ptr: data.as_ptr(), len: len - len / 2 }];
        // SAFETY: readable parts.
        unsafe { m.map_ref().perf_output(slot, flags, &sample, &parts) }
    };
    assert_eq!(out(2, F_CURRENT_CPU, 5).0, Errno::ENOENT.neg());
    m.set_all_perf_events().unwrap();
    assert_eq!(out(2, 100, 5).0, Errno::E2BIG.neg());
    assert_eq!(out(2, 50, 5).0, Errno::ENOENT.neg());
    assert_eq!(out(2, 3, 5).0, Errno::EOPNOTSUPP.neg());
    assert_eq!(out(2, 1 << 32, 5).0, Errno::EINVAL.neg());
    let mut consumer = m.perf_consumer(2).unwrap();
    for len in [5, 12, 13, 1000, 0, 3000, 2000, 2000, 77] {
        assert_eq!(out(2, F_CURRENT_CPU, len), (0, true), "{len}");
        let padded = (len + 4).next_multiple_of(8) - 4;
        let n = consumer.poll(|r| {
            let PerfRecord::Sample { ip: 1, pid: 2, tid: 3, time: 4, raw } = r else { panic!("{r:?}") };
            assert_eq!(raw.len(), padded);
            assert!(raw[..len].iter().all(|&b| b == 7) && raw[len..].iter().all(|&b| b == 0));
        });
        assert_eq!(n, Ok(1));
    }
    assert_eq!(out(2, F_CURRENT_CPU, 3000), (0, true));
    assert_eq!(out(2, F_CURRENT_CPU, 2000), (Errno::ENOSPC.neg(), false));
    assert_eq!(out(2, 2, 10), (0, false));
    let mut kinds = Vec::new();
    consumer.poll(|r| kinds.push(matches!(r, PerfRecord::Lost(1)))).unwrap();
    assert_eq!(kinds, [false, true, false]);
    assert_eq!(m.set_perf_event(2, None), Ok(()));
    assert_eq!(out(2, 2, 10).0, Errno::ENOENT.neg());
}

#[test]
fn stacks() {
    let m = map(MapType::StackTrace, 4, 24, 16);
    // SAFETY: a live map.
    let id = |ips: &[u64], flags| unsafe { m.map_ref().stackid(0, ips, flags) };
    let a = id(&[1, 2, 3, 4, 5], 0);
    assert!((0..16).contains(&a));
    assert_eq!((id(&[1, 2, 3], 0), id(&[9, 1, 2, 3], 1), id(&[1, 2, 3], 1 << 9)), (a, a, a));
    assert_eq!(m.stack(a as u32).unwrap(), [1, 2, 3]);
    assert_eq!(id(&[1, 2, 3], 3), Errno::EFAULT.neg());
    assert_eq!(id(&[1], 1 << 11), Errno::EINVAL.neg());
    let other = (10..).find(|&ip| id(&[ip], 0) == Errno::EEXIST.neg()).unwrap();
    let b = id(&[other], 1 << 10);
    assert_eq!(m.stack(b as u32).unwrap(), [other]);
    // As in the kernel, a replacement needs a free element.
    let ids: Vec<i64> = (0..10_000).map(|i| id(&[i], 1 << 10)).collect();
    assert!(ids.iter().all(|id| (0..16).contains(id) || *id == Errno::ENOMEM.neg()));
    assert_eq!(m.entries().len(), 16);
    let keys: Vec<_> = std::iter::successors(m.next_key(None).ok(), |k| m.next_key(Some(k)).ok()).collect();
    assert_eq!(keys, m.entries().into_iter().map(|e| e.0).collect::<Vec<_>>());
    assert_eq!(m.delete(&k(b as u32)), Ok(()));
    assert_eq!(m.delete(&k(b as u32)), Err(Errno::ENOENT));
    assert_eq!(m.delete(&k(16)), Err(Errno::E2BIG));
}

#[test]
fn freezing_and_access_flags() {
    let mut def = MapDef::new(".rodata", MapType::Array, 4, 6, 1);
    def.flags = map_flags::RDONLY_PROG | map_flags::MMAPABLE;
    def.initial = Some(b"abcdef".to_vec());
    let m = Map::create(&def, SLOTS).unwrap();
    assert_eq!(m.lookup(&k(0), 0).unwrap(), b"abcdef");
    assert_eq!(m.update(&k(0), b"ghijkl", 0), Ok(()));
    assert_eq!(m.freeze(), Ok(()));
    assert_eq!(m.freeze(), Err(Errno::EPERM));
    assert_eq!(m.update(&k(0), b"ghijkl", 0), Err(Errno::EPERM));
    assert!(!m.target_writable());
    def.frozen = true;
    assert!(Map::create(&def, SLOTS).unwrap().is_frozen());
}

#[test]
fn the_controllers_slot_has_no_percpu_value() {
    for t in [MapType::PercpuHash, MapType::PercpuArray] {
        let m = map(t, 4, 8, 4);
        assert_eq!(update(&m, CONTROL_SLOT, 1, 1, 0), Errno::EINVAL.neg());
        assert_eq!(get(&m, CONTROL_SLOT, 1), None);
    }
}
