//! A process may die at any instruction of a map operation: after recovery the map is as if the operation had happened,
//! or as if it had not, and nothing is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::update::{ANY, EXIST, NOEXIST};
use skep_ebpf::uapi::{MapType, map_flags};
use skep_maps::{Map, MapRef};

const SLOTS: u32 = 4;

/// For results that do not matter.
fn done<T>(_: T) {}
/// The slot that dies.
const DEAD: u32 = 2;

fn update(m: MapRef, slot: u32, key: u32, value: u64, flags: u64) -> i64 {
    // SAFETY: keys of 4 bytes, values of 8.
    unsafe { m.update(slot, (&raw const key).cast(), (&raw const value).cast(), flags) }
}

fn delete(m: MapRef, slot: u32, key: u32) -> i64 {
    // SAFETY: a key of 4 bytes.
    unsafe { m.delete(slot, (&raw const key).cast()) }
}

fn stackid(m: MapRef, slot: u32, ip: u64, flags: u64) -> i64 {
    // SAFETY: a live map.
    unsafe { m.stackid(slot, &[ip], flags) }
}

/// Forks a child that runs `f`, stopped before it if `stopped`. `f` must not allocate.
fn child(stopped: bool, f: impl Fn()) -> i32 {
    // SAFETY: the child only runs `f`, which allocates nothing, and exits without running anything of its parent's.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if stopped {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            f();
            libc::_exit(0);
        }
        pid
    }
}

fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: a status word.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

/// Runs `op` in a child, one instruction at a time, and calls `at` behind each.
fn each_instruction(op: impl Fn(), mut at: impl FnMut(u32)) {
    let pid = child(true, op);
    let mut n = 0;
    while libc::WIFSTOPPED(wait(pid)) {
        at(n);
        n += 1;
        // SAFETY: our stopped child.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0) }, 0);
    }
    assert!(n > 50, "{n} instructions");
}

/// Makes a map, prepares it, and runs `op` on it. Behind each instruction a copy is recovered and checked.
fn die_everywhere(t: MapType, prepare: impl Fn(MapRef), op: impl Fn(MapRef), check: impl Fn(&Map, u32)) {
    let mut def = match t {
        MapType::Ringbuf => MapDef::new("m", t, 0, 0, 4096),
        _ => MapDef::new("m", t, 4, 8, 8),
    };
    if !matches!(t, MapType::Ringbuf | MapType::StackTrace) {
        def.flags = map_flags::ZERO_SEED; // so that the copy's header is the same
    }
    let (map, copy) = (Map::create(&def, SLOTS).unwrap(), Map::create(&def, SLOTS).unwrap());
    assert_eq!(map.header(), copy.header());
    prepare(map.map_ref());
    each_instruction(
        || op(map.map_ref()),
        |n| {
            // SAFETY: two regions of the same size; the child is stopped.
            unsafe { copy.arena().ptr().copy_from(map.arena().ptr(), copy.arena().len()) };
            copy.recover(DEAD);
            check(&copy, n);
        },
    );
}

fn keys(m: &Map) -> BTreeSet<u32> {
    m.entries().into_iter().map(|(k, _)| u32::from_ne_bytes(k.try_into().unwrap())).collect()
}

/// There is room for as many elements as are missing, and each slot can replace.
fn check_hash(m: &Map, n: u32) {
    let (r, max) = (m.map_ref(), m.def().max_entries);
    let have = keys(m).len();
    assert_eq!(have, m.entries().len(), "a key twice, at {n}");
    let added = (1000..).take_while(|&k| update(r, 0, k, 0, NOEXIST) == 0).count();
    assert_eq!(have + added, max as usize, "elements are missing, at {n}");
    for slot in 0..SLOTS {
        for key in keys(m) {
            assert_eq!(update(r, slot, key, 1, EXIST), 0, "slot {slot} key {key}, at {n}");
        }
    }
    assert_eq!(keys(m).len(), max as usize);
}

#[test]
fn hash_operations() {
    for t in [MapType::Hash, MapType::PercpuHash] {
        let some = |m: MapRef| (0..5).for_each(|k| assert_eq!(update(m, 0, k, 10, ANY), 0));
        let first = |m: &Map, key: u32| {
            let v = m.lookup(&key.to_ne_bytes(), 0).ok()?;
            let at = if m.def().map_type == MapType::Hash { 0 } else { 8 * DEAD as usize };
            Some(u64::from_ne_bytes(v[at..at + 8].try_into().unwrap()))
        };
        die_everywhere(
            t,
            some,
            |m| done(update(m, DEAD, 9, 11, ANY)),
            |m, n| {
                assert!(matches!(first(m, 9), None | Some(11)), "at {n}");
                check_hash(m, n);
            },
        );
        die_everywhere(
            t,
            some,
            |m| done(update(m, DEAD, 3, 11, ANY)),
            |m, n| {
                let old = if t == MapType::Hash { 10 } else { 0 };
                assert!(first(m, 3) == Some(old) || first(m, 3) == Some(11), "{:?} at {n}", first(m, 3));
                assert_eq!(keys(m), (0..5).collect(), "at {n}");
                check_hash(m, n);
            },
        );
        die_everywhere(
            t,
            some,
            |m| done(delete(m, DEAD, 3)),
            |m, n| {
                assert!([0, 1, 2, 4].iter().all(|&k| first(m, k).is_some()), "at {n}");
                check_hash(m, n);
            },
        );
        // One after another: what one leaves behind, the next one starts from.
        let all = |m: MapRef| {
            update(m, DEAD, 9, 11, ANY);
            update(m, DEAD, 9, 12, ANY);
            update(m, DEAD, 3, 12, ANY);
            delete(m, DEAD, 9);
            update(m, DEAD, 7, 12, ANY);
        };
        die_everywhere(t, some, all, check_hash);
    }
}

/// Whatever happened, the map can be filled.
fn check_lru(m: &Map, n: u32) {
    assert_eq!(keys(m).len(), m.entries().len(), "a key twice, at {n}");
    (1000..1100).for_each(|k| assert_eq!(update(m.map_ref(), 0, k, 0, ANY), 0, "at {n}"));
    assert_eq!(keys(m).len(), m.def().max_entries as usize, "elements are missing, at {n}");
}

#[test]
fn lru_operations() {
    for t in [MapType::LruHash, MapType::LruPercpuHash] {
        let full = |m: MapRef| (0..8).for_each(|k| assert_eq!(update(m, 0, k, 10, ANY), 0));
        die_everywhere(t, full, |m| done(update(m, DEAD, 9, 11, ANY)), check_lru);
        die_everywhere(t, full, |m| done(update(m, DEAD, 3, 11, ANY)), check_lru);
        die_everywhere(t, full, |m| done(delete(m, DEAD, 3)), check_lru);
    }
}

/// A recovery may end anywhere as well; the next one completes it.
#[test]
fn recoveries() {
    for t in [MapType::Hash, MapType::LruHash] {
        let mut def = MapDef::new("m", t, 4, 8, 8);
        def.flags = map_flags::ZERO_SEED;
        let (map, copy) = (Map::create(&def, SLOTS).unwrap(), Map::create(&def, SLOTS).unwrap());
        let bytes = |m: &Map| {
            // SAFETY: the whole region, which nobody writes now.
            unsafe { std::slice::from_raw_parts(m.arena().ptr(), m.arena().len()) }.to_vec()
        };
        // SAFETY: as above.
        let put = |m: &Map, bytes: &[u8]| unsafe { m.arena().ptr().copy_from(bytes.as_ptr(), bytes.len()) };
        (0..8).for_each(|k| assert_eq!(update(map.map_ref(), 0, k, 10, ANY), 0));
        let mut states = Vec::new();
        each_instruction(
            || done((update(map.map_ref(), DEAD, 3, 11, ANY), delete(map.map_ref(), DEAD, 5))),
            |n| {
                if n % 9 == 0 {
                    states.push(bytes(&map));
                }
            },
        );
        for state in states {
            put(&map, &state);
            each_instruction(
                || done(map.recover(DEAD)),
                |n| {
                    put(&copy, &bytes(&map));
                    copy.recover(DEAD);
                    match t {
                        MapType::Hash => check_hash(&copy, n),
                        _ => check_lru(&copy, n),
                    }
                },
            );
        }
    }
}

#[test]
fn stack_operations() {
    let check = |m: &Map, n: u32| {
        for (key, _) in m.entries() {
            assert_eq!(delete(m.map_ref(), 0, u32::from_ne_bytes(key.try_into().unwrap())), 0, "at {n}");
        }
        let added = (0..100_000).filter(|&ip| stackid(m.map_ref(), 0, ip, 0) >= 0).take(8).count();
        assert_eq!((added, m.entries().len()), (8, 8), "elements are missing, at {n}");
    };
    let t = MapType::StackTrace;
    let some = |m: MapRef| (1..4).for_each(|ip| done(stackid(m, 0, ip, 0)));
    die_everywhere(t, some, |m| done(stackid(m, DEAD, 77, 1 << 10)), check);
    die_everywhere(t, some, |m| (100..105).for_each(|ip| done(stackid(m, DEAD, ip, 1 << 10))), check);
    die_everywhere(t, some, |m| (0..8).for_each(|id| done(delete(m, DEAD, id))), check);
}

#[test]
fn ring_buffer_operations() {
    let check = |m: &Map, n: u32| {
        let (r, mut consumer) = (m.map_ref(), m.ring_consumer().unwrap());
        let mut got = Vec::new();
        consumer.poll(|d| got.push(d.to_vec())).unwrap();
        assert!(got.starts_with(&[vec![1; 8]]) && got.len() <= 3, "{got:?} at {n}");
        assert!(got[1..].iter().all(|d| *d == [2; 8]), "{got:?} at {n}");
        // SAFETY: eight readable bytes.
        unsafe { assert_eq!(r.ringbuf_output(0, [3; 8].as_ptr(), 8, 0).0, 0, "at {n}") };
        assert_eq!(consumer.poll(|d| assert_eq!(d, [3; 8])), Ok(1), "at {n}");
        // SAFETY: no data.
        let room = (0..).take_while(|_| unsafe { r.ringbuf_output(0, [0u8; 8].as_ptr(), 8, 0).0 } == 0).count();
        assert_eq!(room, 255, "at {n}");
    };
    // SAFETY: eight readable bytes.
    let one = |m: MapRef, slot: u32, fill: u8| unsafe { done(m.ringbuf_output(slot, [fill; 8].as_ptr(), 8, 0)) };
    die_everywhere(MapType::Ringbuf, |m| one(m, 0, 1), |m| (0..2).for_each(|_| one(m, DEAD, 2)), check);
}

/// What the children of the next test do for ever.
fn churn(m: MapRef, slot: u32, seed: u64) {
    let mut s = seed | 1;
    let mut next = |n: u64| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 33) % n
    };
    // SAFETY: the header of a live map.
    let stacks = unsafe { (*m.hdr).map_type } == MapType::StackTrace as u32;
    loop {
        let key = next(60) as u32;
        match next(3) {
            0 => done(delete(m, slot, key)),
            _ if stacks => done(stackid(m, slot, next(500), 1 << 10)),
            1 => done(update(m, slot, key, u64::from(key), EXIST)),
            _ => done(update(m, slot, key, u64::from(key), ANY)),
        }
    }
}

#[test]
fn killed_at_random_while_others_go_on() {
    for t in [MapType::Hash, MapType::PercpuHash, MapType::LruHash, MapType::StackTrace] {
        let map = Map::create(&MapDef::new("m", t, 4, 8, 40), SLOTS).unwrap();
        let start = |slot: u32, n: u64| {
            let m = map.map_ref();
            child(false, move || churn(m, slot, n * 1000 + u64::from(slot) + 7))
        };
        let mut pids: Vec<i32> = (0..SLOTS).map(|slot| start(slot, 0)).collect();
        let (begin, mut n) = (Instant::now(), 0u64);
        while begin.elapsed() < Duration::from_secs(1) {
            n += 1;
            let slot = (n * 7 % u64::from(SLOTS)) as usize;
            std::thread::sleep(Duration::from_micros(n * 37 % 3000));
            // SAFETY: our child.
            assert_eq!(unsafe { libc::kill(pids[slot], libc::SIGKILL) }, 0);
            wait(pids[slot]);
            map.recover(slot as u32);
            pids[slot] = start(slot as u32, n);
        }
        for (slot, pid) in pids.into_iter().enumerate() {
            // SAFETY: our child.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
            wait(pid);
            map.recover(slot as u32);
        }
        eprintln!("{t}: {n} deaths");
        if t == MapType::StackTrace {
            (0..64).for_each(|id| done(delete(map.map_ref(), 0, id)));
            let added = (0..100_000).filter(|&ip| stackid(map.map_ref(), 0, ip, 0) >= 0).take(40).count();
            assert_eq!((added, map.entries().len()), (40, 40));
            assert!((0..100_000).any(|ip| stackid(map.map_ref(), 0, ip, 0) == Errno::ENOMEM.neg()));
        } else if t == MapType::LruHash {
            check_lru(&map, 0);
        } else {
            check_hash(&map, 0);
        }
    }
}
