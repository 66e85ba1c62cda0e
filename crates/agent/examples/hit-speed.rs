//! Nanoseconds of a hit without its trampoline: two-instruction and counting programs, entry and return.

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use skep_ebpf::Insn;
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
    let calling = |id| vec![insn(0x85, 0, 0, 0, id), insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)];
    let (ktime, pid_tgid) = (calling(5), calling(14));
    let kinds: [(&str, &[u32]); 3] = [
        ("entry", &[link_kind::ENTRY]),
        ("return", &[link_kind::RETURN]),
        ("entry and return", &[link_kind::ENTRY, link_kind::RETURN]),
    ];
    for (program, name) in [(&ret0, "r0 = 0; exit"), (&count, "per-CPU count")] {
        for (kind, kinds) in kinds {
            let links: Vec<(&[Insn], u32)> = kinds.iter().map(|&k| (&program[..], k)).collect();
            let what = format!("{name}: {kind}");
            println!("{what:34} {:7.1} ns", measure(&World::new(&[percpu()], &links, 64)));
        }
    }
    for (program, name) in [(&ktime, "ktime_get_ns"), (&pid_tgid, "get_current_pid_tgid")] {
        let what = format!("{name}: entry");
        println!("{what:34} {:7.1} ns", measure(&World::new(&[], &[(&program[..], link_kind::ENTRY)], 1)));
    }
    let world = World::new(&[], &[(&ret0, link_kind::ENTRY)], 1);
    world.session.control().enable.store(OWNER_DIED, std::sync::atomic::Ordering::Relaxed);
    println!("{:34} {:7.1} ns", "controller dead", measure(&world));
}
