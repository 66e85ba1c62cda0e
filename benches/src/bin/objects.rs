//! How a subsystem does with many live objects: making them, finding them by their numbers, memory and descriptors.
//!
//! Nothing holds a descriptor of an object: pins do, as a manager's would. Rounds with a hundred objects and with many
//! alternate; medians. `cargo run --release -p skep-benches --bin objects [NUMBER]` (100,000 maps and as many programs).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use skep_benches::median;
use skep_subsystem::front::client::Files;
use skep_subsystem::front::object::Object;
use skep_subsystem::front::{Client, Config, Errno, OwnFiles, Subsystem};

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const PROG_BY_ID: u32 = 13;
const MAP_BY_ID: u32 = 14;
const MAP_NEXT: u32 = 12;
const PROG_NEXT: u32 = 11;
/// Look-ups in one measurement, and measurements.
const LOOKUPS: u32 = 20_000;
const ROUNDS: usize = 15;

/// Descriptors that are closed at once: what is left is the look-up.
struct Nothing;

impl Files for Nothing {
    fn install(&self, object: Object) -> Result<i32, Errno> {
        drop(std::hint::black_box(object));
        Ok(0)
    }

    fn get(&self, _: i32) -> Result<Object, Errno> {
        Err(Errno::EBADF)
    }
}

struct Front {
    subsystem: Subsystem,
    client: Client,
    looker: Client,
    files: Arc<OwnFiles>,
    paths: Vec<Vec<u8>>,
}

impl Front {
    fn new() -> std::io::Result<Front> {
        let files = Arc::new(OwnFiles::new());
        let config = Config { slots: 4, ..Config::default() };
        let client = Client::own(Arc::clone(&files));
        let looker = Client::with_files(Nothing);
        Ok(Front { subsystem: Subsystem::new(config)?, client, looker, files, paths: Vec::new() })
    }

    fn bpf(&self, cmd: u32, words: &[(usize, u64, usize)], size: usize) -> Result<i32, String> {
        self.bpf_as(&self.client, cmd, words, size)
    }

    fn bpf_as(&self, who: &Client, cmd: u32, words: &[(usize, u64, usize)], size: usize) -> Result<i32, String> {
        let mut attr = vec![0u8; size];
        for &(at, value, len) in words {
            attr[at..at + len].copy_from_slice(&value.to_ne_bytes()[..len]);
        }
        self.subsystem.bpf(who, cmd, &mut attr).map_err(|e| format!("command {cmd}: {e}"))
    }

    /// Pins the object behind a descriptor, and closes it.
    fn keep(&mut self, fd: i32, name: &str) -> Result<(), String> {
        let path = format!("/sys/fs/bpf/{name}\0").into_bytes();
        self.bpf(OBJ_PIN, &[(0, path.as_ptr() as u64, 8), (8, fd as u64, 4)], 16)?;
        self.files.close(fd);
        self.paths.push(path);
        Ok(())
    }

    /// As many maps (of three kinds) and programs as are missing.
    fn fill(&mut self, from: u32, to: u32) -> Result<(), String> {
        let code = [0xb7u64, 0x95];
        for n in from..to {
            let kind = [1, 2, 3][n as usize % 3];
            let words =
                [(0, kind, 4), (4, 4, 4), (8, if kind == 3 { 4 } else { 8 }, 4), (12, u64::from(1 + n % 16), 4)];
            let map = self.bpf(MAP_CREATE, &words, 48)?;
            self.keep(map, &format!("map{n}"))?;
            let words = [(0, 1, 4), (4, 2, 4), (8, code.as_ptr() as u64, 8), (16, c"GPL".as_ptr() as u64, 8)];
            let prog = self.bpf(PROG_LOAD, &words, 48)?;
            self.keep(prog, &format!("prog{n}"))?;
        }
        Ok(())
    }

    /// Nanoseconds of opening an object by its number, of maps and programs in turn, and closing it.
    fn open_by_id(&self, live: u32) -> Result<f64, String> {
        each(live, |id, is_map| {
            let (cmd, size) = if is_map { (MAP_BY_ID, 12) } else { (PROG_BY_ID, 4) };
            let fd = self.bpf(cmd, &[(0, id + 1, 4)], size)?;
            self.files.close(fd);
            Ok(())
        })
    }

    /// The same without a descriptor.
    fn look_up(&self, live: u32) -> Result<f64, String> {
        each(live, |id, is_map| {
            let (cmd, size) = if is_map { (MAP_BY_ID, 12) } else { (PROG_BY_ID, 4) };
            self.bpf_as(&self.looker, cmd, &[(0, id + 1, 4)], size).map(drop)
        })
    }

    /// No object at all: the next number of a number.
    fn next_id(&self, live: u32) -> Result<f64, String> {
        each(live, |id, is_map| self.bpf(if is_map { MAP_NEXT } else { PROG_NEXT }, &[(0, id, 4)], 8).map(drop))
    }
}

/// Nanoseconds of a call, with numbers below `live` in no order, for maps and programs in turn.
fn each(live: u32, mut call: impl FnMut(u64, bool) -> Result<(), String>) -> Result<f64, String> {
    let mut seed = 1u64;
    let begin = Instant::now();
    for n in 0..LOOKUPS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        call((seed >> 33) % u64::from(live), n % 2 == 0)?;
    }
    Ok(begin.elapsed().as_nanos() as f64 / f64::from(LOOKUPS))
}

/// Figures of `/proc/self/status`, in KiB.
fn status() -> HashMap<String, u64> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .filter_map(|l| {
            let (name, rest) = l.split_once(':')?;
            Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let many: u32 = std::env::args().nth(1).map_or(Ok(100_000), |n| n.parse())?;
    let (mut few, mut full) = (Front::new()?, Front::new()?);
    few.fill(0, 100)?;
    let before = status();
    let begin = Instant::now();
    full.fill(0, many)?;
    let made = begin.elapsed().as_nanos() as f64 / f64::from(many);
    let (mut open, mut look, mut next) = <([Vec<f64>; 2], [Vec<f64>; 2], [Vec<f64>; 2])>::default();
    for _ in 0..ROUNDS {
        for (n, (front, live)) in [(&few, 100), (&full, many)].into_iter().enumerate() {
            open[n].push(front.open_by_id(live)?);
            look[n].push(front.look_up(live)?);
            next[n].push(front.next_id(live)?);
        }
    }
    let [open_few, open_full] = open.map(|mut f| median(&mut f));
    let [look_few, look_full] = look.map(|mut f| median(&mut f));
    let [next_few, next_full] = next.map(|mut f| median(&mut f));
    let after = status();
    let grown = |name| {
        (after.get(name).copied().unwrap_or(0) as f64 - before.get(name).copied().unwrap_or(0) as f64) / f64::from(many)
    };
    let count = |path| std::fs::read_dir(path).map_or(0, Iterator::count);
    let mappings = std::fs::read_to_string("/proc/self/maps")?.lines().count();
    println!("| maps and programs, of each | 100 | {many} | ratio |");
    println!("|---|---|---|---|");
    println!("| open by number and close, ns | {open_few:.0} | {open_full:.0} | {:.2} |", open_full / open_few);
    println!("| find by number, ns | {look_few:.0} | {look_full:.0} | {:.2} |", look_full / look_few);
    println!("| next number, ns | {next_few:.0} | {next_full:.0} | {:.2} |", next_full / next_few);
    println!();
    println!("Making a map and a program, pinned: {:.1} µs. Memory of both: {:.1} KiB.", made / 1e3, grown("VmRSS"));
    println!("Descriptors of the process: {}; mappings: {mappings}.", count("/proc/self/fd"));
    let begin = Instant::now();
    drop(full);
    println!("Dropping all: {:.1} µs each.", begin.elapsed().as_nanos() as f64 / f64::from(many) / 1e3);
    Ok(())
}
