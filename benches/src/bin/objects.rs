//! Look-ups of objects by number: among a hundred, and among a hundred thousand.
//!
//! `cargo run --release -p skep-benches --bin objects [TOTAL]`. One map in ten objects: each map keeps a memfd, and
//! descriptors are limited. Rounds of both subsystems alternate; medians of nanoseconds per look-up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use skep_subsystem::front::client::{Files, OwnMemory};
use skep_subsystem::front::object::Object;
use skep_subsystem::front::{Caps, Client, Config, Errno, Subsystem};

const PROG_LOAD: u32 = 5;
const MAP_CREATE: u32 = 0;
const PROG_BY_ID: u32 = 13;
const MAP_BY_ID: u32 = 14;
const ROUNDS: usize = 31;
const LOOKUPS: u32 = 20_000;

/// Descriptors that are numbers only: a hundred thousand real ones are not to be had.
#[derive(Default)]
struct Table(Mutex<(i32, HashMap<i32, Object>)>);

impl Files for Table {
    fn install(&self, object: Object) -> Result<i32, Errno> {
        let mut table = self.0.lock().map_err(|_| Errno::EIO)?;
        table.0 += 1;
        let fd = table.0;
        table.1.insert(fd, object);
        Ok(fd)
    }

    fn get(&self, fd: i32) -> Result<Object, Errno> {
        self.0.lock().map_err(|_| Errno::EIO)?.1.get(&fd).cloned().ok_or(Errno::EBADF)
    }
}

struct World {
    subsystem: Subsystem,
    files: Arc<Table>,
    client: Client,
    maps: u32,
    progs: u32,
}

impl World {
    fn new(total: u32) -> World {
        let subsystem = Subsystem::new(Config { slots: 2, ..Config::default() }).expect("memory");
        let files: Arc<Table> = Arc::default();
        let client = Client {
            memory: Box::new(OwnMemory),
            files: Box::new(Arc::clone(&files)),
            caps: Caps::ALL,
            uid: 0,
            memlock: u64::MAX,
        };
        let maps = total / 10;
        let progs = total - maps;
        let code = [0xb7u64, 0x95];
        for _ in 0..maps {
            let mut attr = [0u32; 11];
            attr[..4].copy_from_slice(&[2, 4, 8, 1]);
            call(&subsystem, &client, MAP_CREATE, &attr);
        }
        for _ in 0..progs {
            let mut attr = [0u32; 12];
            (attr[0], attr[1]) = (1, 2);
            let (code, license) = (code.as_ptr() as u64, c"GPL".as_ptr() as u64);
            (attr[2], attr[3]) = (code as u32, (code >> 32) as u32);
            (attr[4], attr[5]) = (license as u32, (license >> 32) as u32);
            call(&subsystem, &client, PROG_LOAD, &attr);
        }
        World { subsystem, files, client, maps, progs }
    }

    /// Nanoseconds of one look-up by number, its close included.
    fn round(&self, seed: u32) -> f64 {
        let mut x = seed | 1;
        let start = Instant::now();
        for n in 0..LOOKUPS {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            let (cmd, count) = if n % 10 == 0 { (MAP_BY_ID, self.maps) } else { (PROG_BY_ID, self.progs) };
            let fd = call(&self.subsystem, &self.client, cmd, &[1 + x % count]);
            if let Ok(mut table) = self.files.0.lock() {
                table.1.remove(&fd);
            }
        }
        start.elapsed().as_nanos() as f64 / f64::from(LOOKUPS)
    }
}

fn call(subsystem: &Subsystem, client: &Client, cmd: u32, attr: &[u32]) -> i32 {
    let mut bytes: Vec<u8> = attr.iter().flat_map(|w| w.to_ne_bytes()).collect();
    subsystem.bpf(client, cmd, &mut bytes).unwrap_or_else(|e| panic!("command {cmd}: {e:?}"))
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let total = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let start = Instant::now();
    let (few, many) = (World::new(100), World::new(total));
    println!("{} maps and {} programs made in {:.1?}", many.maps, many.progs, start.elapsed());
    let rounds: Vec<_> = (0..ROUNDS as u32).map(|n| (few.round(n * 7 + 3), many.round(n * 7 + 3))).collect();
    let (a, b) = (median(rounds.iter().map(|r| r.0).collect()), median(rounds.iter().map(|r| r.1).collect()));
    println!("look-up by number: {a:.0} ns among 100, {b:.0} ns among {total}: {:.2} times", b / a);
}
