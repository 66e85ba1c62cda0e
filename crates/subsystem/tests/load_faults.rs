//! Failing loads, many of them: nothing is left. Alone in its process, so that descriptors can be counted.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use std::sync::Arc;

use kernel::{Kernel, Ours};
use script::Attrs;
use skep_subsystem::front::faults::Faults;
use skep_subsystem::front::{Config, Profile};

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const KERN_VERSION: u32 = 4 << 16 | 17 << 8;

/// `r0 = 2; exit`.
const CODE: [u64; 2] = [0xb7 | 2 << 32, 0x95];

fn program(profile: Profile) -> Attrs {
    let size = if profile == Profile::Linux4_17 { 72 } else { 168 };
    Attrs::new(size).u32(0, 1).u32(4, 2).ptr(8, &CODE).ptr(16, b"GPL\0").u32(40, KERN_VERSION)
}

fn map() -> Attrs {
    Attrs::new(44).u32(0, 1).u32(4, 4).u32(8, 8).u32(12, 4)
}

/// What a call answers: 0 for a descriptor, which is closed again.
fn call(ours: &Ours, cmd: u32, attr: &Attrs) -> i64 {
    match ours.bpf(cmd, &mut attr.clone().0) {
        fd if fd >= 0 => {
            ours.close(fd);
            0
        }
        e => e,
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// A failure at every place that can run out of something; `SKEP_FAULTS` is the number of loads.
#[test]
fn failing_loads_leave_nothing() {
    let rounds: u64 = std::env::var("SKEP_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    for profile in [Profile::Linux6_18, Profile::Linux4_17] {
        let faults: Arc<Faults> = Arc::default();
        let ours = Ours::with(Config {
            faults: Some(faults.clone()),
            profile,
            kern_version: KERN_VERSION,
            slots: 4,
            ..Config::default()
        });
        let fine = program(profile);
        // What the first load leaves is there for good.
        assert_eq!(call(&ours, PROG_LOAD, &fine), 0);
        assert_eq!(call(&ours, MAP_CREATE, &map()), 0);
        let before = open_files();
        let (mut failed, mut point) = (0u64, 1);
        while failed < rounds {
            faults.arm(point);
            let made = call(&ours, MAP_CREATE, &map());
            let loaded = if made == 0 { call(&ours, PROG_LOAD, &fine) } else { made };
            if faults.fired() {
                assert!(loaded < 0, "the failure at {point} is not seen");
                failed += 1;
                point += 1;
            } else {
                assert_eq!(loaded, 0);
                assert!(point > 5, "only {point} places can fail");
                point = 1;
            }
            faults.disarm();
        }
        assert_eq!(ours.left(), Default::default());
        assert_eq!(ours.subsystem.accounts().pages(ours.client.uid), 0);
        assert_eq!(open_files(), before);
    }
}
