//! One operation is stopped behind each of its instructions, others run from beginning to end, and it goes on: results and
//! contents are those of some order in which all of them happen one after the other, and no element is lost.
//!
//! Every instruction in turn: `SKEP_INTERLEAVE=1`; else some, others in each run.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI64, Ordering};

use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::update::{ANY, EXIST, NOEXIST};
use skep_ebpf::uapi::{MapType, map_flags};
use skep_maps::{Map, MapRef};

const SLOTS: u32 = 4;
/// The slot of the operation that is stopped, and of the others.
const STOPPED: u32 = 2;
const OTHER: u32 = 0;
/// Entries of the map.
const MAX: u32 = 6;
/// Bytes of values that an update does not write in place of the element's others.
const LONG: u32 = 80;
/// What a result is before there is one.
const NONE: i64 = i64::MIN;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    /// Update with these flags.
    Put(u32, u64),
    Delete(u32),
    /// 1 if it is there.
    Find(u32),
}

use Op::{Delete, Find, Put};

/// The value that a slot gives a key.
fn value_of(slot: u32, key: u32) -> u64 {
    u64::from(slot + 1) * 1000 + u64::from(key)
}

fn run(m: MapRef, slot: u32, op: Op) -> i64 {
    // SAFETY: keys of 4 bytes, values of 8.
    unsafe {
        match op {
            Put(key, flags) => {
                // Of what is longer only the first word counts.
                let value = [value_of(slot, key); LONG as usize / 8];
                m.update(slot, (&raw const key).cast(), value.as_ptr().cast(), flags)
            }
            Delete(key) => m.delete(slot, (&raw const key).cast()),
            Find(key) => i64::from(!m.lookup(slot, (&raw const key).cast()).is_null()),
        }
    }
}

/// What the map holds: per key the slots' values, or the value alone.
type Contents = BTreeMap<u32, Vec<u64>>;

fn contents(m: &Map) -> Contents {
    let entries = m.entries();
    let all: Contents = entries
        .iter()
        .map(|(k, v)| {
            let count = if m.def().value_size == LONG { 1 } else { v.len() / 8 };
            let words = v.chunks(8).take(count).map(|w| u64::from_ne_bytes(w.try_into().unwrap())).collect();
            (u32::from_ne_bytes(k[..].try_into().unwrap()), words)
        })
        .collect();
    assert_eq!(all.len(), entries.len(), "a key twice");
    all
}

/// What an operation does if nothing else happens.
fn model(all: &mut Contents, percpu: bool, slot: u32, op: Op) -> i64 {
    match op {
        Put(key, EXIST) if !all.contains_key(&key) => Errno::ENOENT.neg(),
        Put(key, NOEXIST) if all.contains_key(&key) => Errno::EEXIST.neg(),
        Put(key, _) if !all.contains_key(&key) && all.len() == MAX as usize => Errno::E2BIG.neg(),
        Put(key, _) => {
            let values = all.entry(key).or_insert_with(|| vec![0; if percpu { SLOTS as usize } else { 1 }]);
            values[if percpu { slot as usize } else { 0 }] = value_of(slot, key);
            0
        }
        Delete(key) => all.remove(&key).map_or(Errno::ENOENT.neg(), |_| 0),
        Find(key) => i64::from(all.contains_key(&key)),
    }
}

/// A child that runs `op` from a stop on, and where it puts the result.
struct Child {
    pid: i32,
    result: *mut AtomicI64,
}

impl Child {
    fn start(m: MapRef, op: Op) -> Child {
        // SAFETY: a page that parent and child share; the child only runs the operation, which allocates nothing, and exits.
        unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            let page = libc::mmap(null_mut(), 4096, prot, flags, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            let result: *mut AtomicI64 = page.cast();
            (*result).store(NONE, Ordering::SeqCst);
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                (*result).store(run(m, STOPPED, op), Ordering::SeqCst);
                libc::_exit(0);
            }
            let child = Child { pid, result };
            assert!(libc::WIFSTOPPED(child.wait()));
            child
        }
    }

    fn wait(&self) -> i32 {
        let mut status = 0;
        // SAFETY: our child, and a status word.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        status
    }

    /// One instruction; false once the operation is over.
    fn step(&self) -> bool {
        // SAFETY: our stopped child.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0) }, 0);
        assert!(libc::WIFSTOPPED(self.wait()));
        self.result() == NONE
    }

    fn result(&self) -> i64 {
        // SAFETY: the page that it shares.
        unsafe { (*self.result).load(Ordering::SeqCst) }
    }

    /// Lets it run to its end.
    fn finish(self) -> i64 {
        // SAFETY: our stopped child.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_CONT, self.pid, 0, 0) }, 0);
        assert!(libc::WIFEXITED(self.wait()));
        self.result()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the page of `start`.
        unsafe { libc::munmap(self.result.cast(), 4096) };
    }
}

/// As many entries fit as are missing, and every slot can replace.
fn check_elements(m: &Map, at: u32) {
    let have = m.entries().len();
    let added = (1000..1100).take_while(|&key| run(m.map_ref(), 1, Put(key, NOEXIST)) == 0).count();
    match m.def().map_type {
        MapType::LruHash => assert_eq!(m.entries().len(), MAX as usize, "elements are missing, at {at}"),
        _ => assert_eq!(have + added, MAX as usize, "elements are missing, at {at}"),
    }
    for slot in 0..SLOTS {
        for key in contents(m).into_keys() {
            assert_eq!(run(m.map_ref(), slot, Put(key, EXIST)), 0, "slot {slot}, key {key}, at {at}");
        }
    }
}

/// Stops `op` behind its `n`-th instruction and runs `others`; false if it has fewer.
fn interleave(def: &MapDef, op: Op, others: &[Op], n: u32) -> bool {
    let m = Map::create(def, SLOTS).unwrap();
    let percpu = def.map_type == MapType::PercpuHash;
    let mut before = Contents::new();
    for key in 0..4 {
        assert_eq!(run(m.map_ref(), 3, Put(key, ANY)), model(&mut before, percpu, 3, Put(key, ANY)));
    }
    // Something is in the hands of both.
    for slot in [STOPPED, OTHER] {
        for op in [Put(50 + slot, ANY), Delete(50 + slot)] {
            assert_eq!(run(m.map_ref(), slot, op), 0);
        }
    }
    let child = Child::start(m.map_ref(), op);
    if !(0..n).all(|_| child.step()) {
        child.finish();
        return false;
    }
    let results: Vec<i64> = others.iter().map(|&o| run(m.map_ref(), OTHER, o)).collect();
    let result = child.finish();
    let after = contents(&m);
    // What found the bucket locked has not happened.
    let done: Vec<(Op, i64)> = others.iter().copied().zip(results).filter(|&(_, r)| r != Errno::EBUSY.neg()).collect();
    let explains = |place: usize| {
        let mut all = before.clone();
        let other =
            |all: &mut Contents, some: &[(Op, i64)]| some.iter().all(|&(o, r)| model(all, percpu, OTHER, o) == r);
        other(&mut all, &done[..place])
            && model(&mut all, percpu, STOPPED, op) == result
            && other(&mut all, &done[place..])
            && all == after
    };
    assert!(
        (0..=done.len()).any(explains),
        "{}: {op:?} = {result} stopped at {n}, meanwhile {done:?}, leaves {after:?}",
        def.map_type
    );
    check_elements(&m, n);
    true
}

/// All of it, or a part that begins elsewhere each time.
fn stops() -> impl Iterator<Item = u32> {
    let step = match std::env::var_os("SKEP_INTERLEAVE") {
        Some(_) => 1,
        // Not optimised, an operation has many more instructions.
        None if cfg!(debug_assertions) => 41,
        None => 13,
    };
    (std::process::id() % step..).step_by(step as usize)
}

fn every_stop((t, value_size): (MapType, u32), op: Op, others: &[Op]) {
    // So that what is tried is the same in each run but for the stops.
    let def = MapDef { flags: map_flags::ZERO_SEED, ..MapDef::new("m", t, 4, value_size, MAX) };
    let count = stops().take_while(|&n| interleave(&def, op, others, n)).count();
    assert!(count > 3, "{t}: {op:?} has {count} stops");
}

/// Types of maps, and bytes of their values.
const TYPES: [(MapType, u32); 4] =
    [(MapType::Hash, 8), (MapType::Hash, LONG), (MapType::PercpuHash, 8), (MapType::LruHash, 8)];

#[test]
fn a_writer_is_stopped() {
    let others: [&[Op]; 7] = [
        &[Put(0, ANY)],
        &[Delete(0)],
        &[Find(0), Find(9)],
        &[Put(9, NOEXIST)],
        &[Delete(1), Delete(2), Put(8, ANY)],
        &[Put(1, EXIST), Put(2, EXIST), Put(3, EXIST)],
        &[Delete(3), Put(9, ANY), Put(0, EXIST)],
    ];
    for t in TYPES {
        for op in [Put(0, ANY), Delete(0), Put(9, NOEXIST)] {
            for others in others {
                every_stop(t, op, others);
            }
        }
    }
}

/// The elements that it stands on are used for other keys, and again for its own.
#[test]
fn a_reader_is_stopped() {
    let others: [&[Op]; 5] = [
        &[Put(0, EXIST), Put(0, EXIST), Put(0, EXIST)],
        &[Put(0, EXIST), Put(1, EXIST), Put(2, EXIST), Put(3, EXIST), Put(0, EXIST)],
        &[Delete(1), Put(8, ANY), Delete(2), Put(9, ANY), Put(0, EXIST), Delete(8), Put(1, ANY)],
        &[Delete(0), Put(9, ANY), Put(0, NOEXIST)],
        &[Delete(0), Put(9, ANY), Delete(9), Put(0, NOEXIST), Delete(0)],
    ];
    for t in TYPES {
        for key in 0..4 {
            for others in others {
                every_stop(t, Find(key), others);
            }
        }
    }
}

/// Stopping at the first instructions of an operation tells the model from the map: they must agree there.
#[test]
fn the_model_is_the_map() {
    for (t, value_size) in TYPES {
        let def = MapDef { flags: map_flags::ZERO_SEED, ..MapDef::new("m", t, 4, value_size, MAX) };
        let ops: Vec<Op> = [ANY, NOEXIST, EXIST].into_iter().flat_map(|f| (0..2).map(move |k| Put(k * 9, f))).collect();
        let keys: BTreeSet<u32> = [0, 9].into();
        for op in ops.into_iter().chain(keys.iter().flat_map(|&k| [Delete(k), Find(k)])) {
            assert!(interleave(&def, op, &[], 0), "{t}: {op:?}");
        }
    }
}
