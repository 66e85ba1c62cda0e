//! Random commands: one thread against a model of what must be there, then four threads on shared objects, after which
//! nothing may be left. `SKEP_COMMANDS` is the number of commands of each thread.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use kernel::{Kernel, Ours};
use script::Attrs;
use skep_ebpf::Errno;
use skep_subsystem::front::{Alive, Config};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const TEST_RUN: u32 = 10;
const MAP_NEXT: u32 = 12;
const MAP_BY_ID: u32 = 14;
const INFO: u32 = 15;
const FREEZE: u32 = 22;

fn rounds() -> u64 {
    std::env::var("SKEP_COMMANDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

/// `xorshift64*`: fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n.max(1)
    }
}

/// A map as it must be.
#[derive(Clone, Default)]
struct Model {
    hash: bool,
    frozen: bool,
    values: BTreeMap<u32, u64>,
}

const ENTRIES: u32 = 8;

impl Model {
    fn update(&mut self, key: u32, value: u64, flags: u64) -> i64 {
        let there = self.values.contains_key(&key);
        if self.frozen {
            return -1;
        }
        if flags > 2 {
            return -i64::from(Errno::EINVAL.0);
        }
        if !self.hash && key >= ENTRIES {
            return -i64::from(Errno::E2BIG.0);
        }
        match (there, flags) {
            (true, 1) => -i64::from(Errno::EEXIST.0),
            (false, 2) => -i64::from(Errno::ENOENT.0),
            (false, _) if self.values.len() as u32 >= ENTRIES => -i64::from(Errno::E2BIG.0),
            _ => {
                self.values.insert(key, value);
                0
            }
        }
    }

    fn delete(&mut self, key: u32) -> i64 {
        if self.frozen {
            -1
        } else if !self.hash {
            -i64::from(Errno::EINVAL.0)
        } else if self.values.remove(&key).is_some() {
            0
        } else {
            -i64::from(Errno::ENOENT.0)
        }
    }
}

fn create(hash: bool) -> Attrs {
    Attrs::new(44).u32(0, if hash { 1 } else { 2 }).u32(4, 4).u32(8, 8).u32(12, ENTRIES)
}

fn elem(fd: i64, key: &[u32], value: &[u64]) -> Attrs {
    Attrs::new(32).u32(0, fd as u32).ptr(8, key).ptr(16, value)
}

fn number_of(ours: &Ours, fd: i64) -> u32 {
    let info = [0u32; 26];
    let got = ours.bpf(INFO, &mut Attrs::new(16).u32(0, fd as u32).u32(4, 104).ptr(8, &info).0);
    assert_eq!(got, 0);
    // SAFETY: the array is plain numbers, written by the call.
    unsafe { std::ptr::read_volatile(&raw const info[1]) }
}

/// One thread: every answer is what the model says, ids and pins included.
#[test]
fn answers_follow_the_model() {
    let ours = Ours::with(Config { slots: 2, ..Config::default() });
    let mut random = Random(0x5eed);
    // By number: the model, and the descriptors. Pins by path.
    let mut maps: BTreeMap<u32, (Model, Vec<i64>)> = BTreeMap::new();
    let mut pins: HashMap<String, u32> = HashMap::new();
    for round in 0..rounds() {
        let numbers: Vec<u32> = maps.keys().copied().collect();
        let chosen = numbers.get(random.below(numbers.len())).copied();
        let fd = chosen.and_then(|n| {
            let fds = &maps[&n].1;
            fds.get(random.below(fds.len())).copied()
        });
        let key = [random.below(10) as u32];
        let at = format!("round {round}");
        match (random.below(12), chosen, fd) {
            (0, ..) if maps.len() < 20 => {
                let hash = random.below(2) == 0;
                let fd = ours.bpf(MAP_CREATE, &mut create(hash).0);
                assert!(fd >= 0, "{at}: {fd}");
                let values = if hash { BTreeMap::new() } else { (0..ENTRIES).map(|k| (k, 0)).collect() };
                maps.insert(number_of(&ours, fd), (Model { hash, frozen: false, values }, vec![fd]));
            }
            (1..=4, Some(n), Some(fd)) => {
                let (value, flags) = ([random.next()], random.below(4) as u64);
                let answer = ours.bpf(UPDATE, &mut elem(fd, &key, &value).u64(24, flags).0);
                let model = &mut maps.get_mut(&n).unwrap().0;
                assert_eq!(answer, model.update(key[0], value[0], flags), "{at}: update {key:?} flags {flags}");
            }
            (5, Some(n), Some(fd)) => {
                let answer = ours.bpf(DELETE, &mut Attrs::new(16).u32(0, fd as u32).ptr(8, &key).0);
                assert_eq!(answer, maps.get_mut(&n).unwrap().0.delete(key[0]), "{at}: delete {key:?}");
            }
            (6 | 7, Some(n), Some(fd)) => {
                let value = vec![0u64; 1];
                let answer = ours.bpf(LOOKUP, &mut elem(fd, &key, &value).0);
                let expected = maps[&n].0.values.get(&key[0]);
                // SAFETY: plain numbers, written by the call.
                let value = unsafe { std::ptr::read_volatile(value.as_ptr()) };
                assert_eq!((answer == 0).then_some(&value), expected, "{at}: look up {key:?}");
            }
            (8, Some(n), _) => {
                let fd = ours.bpf(MAP_BY_ID, &mut Attrs::new(12).u32(0, n).0);
                assert!(fd >= 0, "{at}: by id: {fd}");
                maps.get_mut(&n).unwrap().1.push(fd);
            }
            (9, Some(n), Some(fd)) => {
                let path = format!("/sys/fs/bpf/m{}\0", random.below(6));
                let name = path.trim_end_matches('\0').to_owned();
                if random.below(2) == 0 {
                    let answer = ours.bpf(OBJ_PIN, &mut Attrs::new(20).ptr(0, path.as_bytes()).u32(8, fd as u32).0);
                    let taken = pins.contains_key(&name);
                    assert_eq!(answer, if taken { -i64::from(Errno::EEXIST.0) } else { 0 }, "{at}: pin");
                    pins.entry(name).or_insert(n);
                } else {
                    let answer = ours.bpf(OBJ_GET, &mut Attrs::new(20).ptr(0, path.as_bytes()).0);
                    match pins.get(&name) {
                        Some(n) => maps.get_mut(n).unwrap().1.push(answer),
                        None => assert_eq!(answer, -i64::from(Errno::ENOENT.0), "{at}: get"),
                    }
                }
            }
            (10, Some(n), Some(fd)) if random.below(10) == 0 => {
                let model = &mut maps.get_mut(&n).unwrap().0;
                let answer = ours.bpf(FREEZE, &mut Attrs::new(4).u32(0, fd as u32).0);
                assert_eq!(answer, if model.frozen { -1 } else { 0 }, "{at}: freeze");
                model.frozen = true;
            }
            (_, Some(n), Some(fd)) => {
                ours.close(fd);
                let fds = &mut maps.get_mut(&n).unwrap().1;
                fds.retain(|f| *f != fd);
            }
            _ => {}
        }
        if random.below(50) == 0 {
            let name = format!("/sys/fs/bpf/m{}", random.below(6));
            assert_eq!(ours.subsystem.unpin(&name), pins.remove(&name).is_some(), "{at}: unpin");
        }
        // What nothing holds has gone, and nothing else.
        maps.retain(|n, (_, fds)| !fds.is_empty() || pins.values().any(|p| p == n));
        assert_eq!(ours.subsystem.alive().maps, maps.len(), "{at}");
        if round % 64 == 0 {
            let (mut id, mut walked) = (0, Vec::new());
            loop {
                let mut attr = Attrs::new(8).u32(0, id);
                if ours.bpf(MAP_NEXT, &mut attr.0) < 0 {
                    break;
                }
                id = u32::from_ne_bytes([attr.0[4], attr.0[5], attr.0[6], attr.0[7]]);
                walked.push(id);
            }
            assert_eq!(walked, maps.keys().copied().collect::<Vec<_>>(), "{at}: walk");
        }
    }
}

/// Four threads on the same objects: whoever closes, pins or deletes meanwhile, every answer is one that is possible, and
/// at the end nothing is left.
#[test]
fn threads_share_objects() {
    let ours = Ours::with(Config { slots: 16, ..Config::default() });
    let open: Mutex<Vec<i64>> = Mutex::default();
    // r0 = 7; exit
    let code = [0xb7u64 | 7 << 32, 0x95];
    let packet = [0u8; 64];
    let work = |seed: u64| {
        let mut random = Random(seed);
        for _ in 0..rounds() {
            let fd = {
                let open = open.lock().unwrap();
                open.get(random.below(open.len())).copied()
            };
            let key = [random.below(10) as u32];
            let value = [random.next()];
            let keep = |fd: i64| {
                if fd >= 0 {
                    open.lock().unwrap().push(fd);
                }
            };
            match (random.below(16), fd) {
                (0, _) if open.lock().unwrap().len() < 64 => {
                    keep(ours.bpf(MAP_CREATE, &mut create(random.below(2) == 0).0));
                }
                (1, _) if open.lock().unwrap().len() < 64 => {
                    let mut attr = Attrs::new(168).u32(0, 1).u32(4, 2).ptr(8, &code).ptr(16, b"GPL\0");
                    keep(ours.bpf(PROG_LOAD, &mut attr.0));
                }
                (2..=5, Some(fd)) => {
                    ours.bpf(UPDATE, &mut elem(fd, &key, &value).0);
                }
                (6, Some(fd)) => {
                    ours.bpf(DELETE, &mut Attrs::new(16).u32(0, fd as u32).ptr(8, &key).0);
                }
                (7, Some(fd)) => {
                    let out = vec![0u64; 16];
                    ours.bpf(LOOKUP, &mut elem(fd, &key, &out).0);
                }
                (8, Some(fd)) => {
                    let mut attr = Attrs::new(76).u32(0, fd as u32).u32(8, 64).ptr(16, &packet);
                    if ours.bpf(TEST_RUN, &mut attr.0) == 0 {
                        assert_eq!(attr.0[4], 7);
                    }
                }
                (9, Some(fd)) => {
                    let path = format!("/sys/fs/bpf/t{}\0", random.below(6));
                    ours.bpf(OBJ_PIN, &mut Attrs::new(20).ptr(0, path.as_bytes()).u32(8, fd as u32).0);
                }
                (10, _) => {
                    let path = format!("/sys/fs/bpf/t{}\0", random.below(6));
                    keep(ours.bpf(OBJ_GET, &mut Attrs::new(20).ptr(0, path.as_bytes()).0));
                }
                (11, _) => {
                    ours.subsystem.unpin(&format!("/sys/fs/bpf/t{}", random.below(6)));
                }
                (12, _) => {
                    let mut attr = Attrs::new(8).u32(0, random.below(100) as u32);
                    if ours.bpf(MAP_NEXT, &mut attr.0) == 0 {
                        let id = u32::from_ne_bytes([attr.0[4], attr.0[5], attr.0[6], attr.0[7]]);
                        keep(ours.bpf(MAP_BY_ID, &mut Attrs::new(12).u32(0, id).0));
                    }
                }
                (_, Some(fd)) => {
                    // Whoever takes it out of the list closes it.
                    let mine = {
                        let mut open = open.lock().unwrap();
                        open.iter().position(|f| *f == fd).map(|n| open.swap_remove(n))
                    };
                    if let Some(fd) = mine {
                        ours.close(fd);
                    }
                }
                _ => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let work = &work;
            scope.spawn(move || work(seed * 0x9e37_79b9));
        }
    });
    for fd in open.into_inner().unwrap() {
        ours.close(fd);
    }
    for path in ours.subsystem.pinned() {
        assert!(ours.subsystem.unpin(&path));
    }
    assert_eq!(ours.left(), (Alive::default(), 0));
}
