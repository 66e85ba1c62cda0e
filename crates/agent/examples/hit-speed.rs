//! Nanoseconds of a hit without its trampoline: two-instruction and counting programs, entry and return.

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use skep_ebpf::Insn;
use skep_ebpf::program::MapDef;
use skep_runtime::session::{OWNER_DIED, link_kind};
use world::{World, counting, insn, percpu};

/// The best of many short rounds, per call: what the machine does else falls between them.
fn measure(world: &World) -> f64 {
    const CALLS: u32 = 1000;
    let mut best = Duration::MAX;
    for _ in 0..3000 {
        let start = Instant::now();
        for _ in 0..CALLS {
            world.call();
        }
        best = best.min(start.elapsed());
    }
    best.as_nanos() as f64 / f64::from(CALLS)
}

fn main() {
    let ret0 = vec![insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)];
    let count = counting(0);
    let rows: [(&str, &[MapDef], &[Insn], &[u32]); 5] = [
        ("r0 = 0; exit: entry", &[], &ret0, &[link_kind::ENTRY]),
        ("r0 = 0; exit: return", &[], &ret0, &[link_kind::RETURN]),
        ("r0 = 0; exit: entry and return", &[], &ret0, &[link_kind::ENTRY, link_kind::RETURN]),
        ("per-CPU count: entry", &[percpu()], &count, &[link_kind::ENTRY]),
        ("per-CPU count: entry and return", &[percpu()], &count, &[link_kind::ENTRY, link_kind::RETURN]),
    ];
    for (name, maps, program, kinds) in rows {
        let links: Vec<_> = kinds.iter().map(|&k| (program, k)).collect();
        println!("{name:34} {:7.1} ns", measure(&World::new(maps, &links, 64)));
    }
    let world = World::new(&[], &[(&ret0, link_kind::ENTRY)], 1);
    world.session.control().enable.store(OWNER_DIED, std::sync::atomic::Ordering::Relaxed);
    println!("{:34} {:7.1} ns", "controller dead", measure(&world));
}
