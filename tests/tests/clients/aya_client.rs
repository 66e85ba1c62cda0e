//! aya as an unmodified program uses it.

use std::path::Path;

use aya::maps::perf::{PerfEvent, PerfEventArray};
use aya::maps::{Array, HashMap, MapData, ProgramArray, RingBuf};
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeScope};
use aya::programs::{KProbe, SchedClassifier, TestRun, TestRunOptions, UProbe};
use aya::util::online_cpus;
use aya::{Ebpf, EbpfLoader};
use skep_tests::object;

use crate::probes::{Worker, collect};

/// Tests of this file.
pub const TESTS: &[(&str, fn())] = &[
    ("aya: global data and a ring buffer", global_data),
    ("aya: tail calls", tail_calls),
    ("aya: maps pinned by name", pinned_maps),
    ("aya: uprobes with cookies, a ring buffer and a perf buffer", uprobes),
    ("aya: a kprobe of the traced process", kprobe),
];

fn bytes(file: &str) -> Vec<u8> {
    std::fs::read(object(&format!("test/{file}.bpf.o"))).expect("a built object")
}

fn load(ebpf: &mut Ebpf, program: &str) {
    let program: &mut SchedClassifier = ebpf.program_mut(program).expect("a program").try_into().expect("a classifier");
    program.load().expect("it loads");
}

fn test_run(ebpf: &Ebpf, program: &str) -> u32 {
    let program: &SchedClassifier = ebpf.program(program).expect("a program").try_into().expect("a classifier");
    let packet = [0u8; 64];
    let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
    program.test_run(options).expect("it runs").return_value
}

fn global_data() {
    let mut ebpf = EbpfLoader::new()
        .override_global("step", &5u64, true)
        .override_global("sum", &1000u64, true)
        .load(&bytes("client_data"))
        .expect("it loads");
    load(&mut ebpf, "counted");
    let mut ring = RingBuf::try_from(ebpf.take_map("ring").expect("a map")).expect("a ring buffer");
    for n in 1..=500u64 {
        assert_eq!(test_run(&ebpf, "counted"), 7);
        let record = ring.next().map(|r| r.to_vec()).expect("a record");
        assert_eq!(record, [n.to_ne_bytes(), (1000 + 5 * n).to_ne_bytes()].concat());
        assert!(ring.next().is_none());
    }
    let by_run: HashMap<_, u32, u64> = ebpf.map("by_run").expect("a map").try_into().expect("a hash map");
    let mut values: Vec<(u32, u64)> = by_run.iter().collect::<Result<_, _>>().expect("entries");
    values.sort_unstable();
    assert_eq!(values, (1..=64).map(|n| (n, 1000 + 5 * u64::from(n))).collect::<Vec<_>>());
}

fn tail_calls() {
    let mut ebpf = Ebpf::load(&bytes("client_tail")).expect("it loads");
    for program in ["first", "second", "third"] {
        load(&mut ebpf, program);
    }
    // aya does not know of values that an object gives its prog arrays.
    assert_eq!(test_run(&ebpf, "first"), 11);
    let mut table = ProgramArray::try_from(ebpf.take_map("table").expect("a map")).expect("a prog array");
    for (program, expected) in [("second", 22), ("third", 33)] {
        let fd = ebpf.program(program).expect("a program").fd().expect("loaded");
        table.set(1, fd, 0).expect("it is put there");
        assert_eq!(test_run(&ebpf, "first"), expected);
    }
    table.clear_index(&1).expect("it was there");
    assert_eq!(test_run(&ebpf, "first"), 11);
}

fn pinned_maps() {
    let folder = Path::new("/sys/fs/bpf/aya");
    for total in 1..=2u64 {
        let mut ebpf =
            EbpfLoader::new().default_map_pin_directory(folder).load(&bytes("client_pin")).expect("it loads");
        load(&mut ebpf, "add");
        test_run(&ebpf, "add");
        let map: Array<_, u64> = ebpf.map("client_total").expect("a map").try_into().expect("an array");
        assert_eq!(map.get(&0, 0).expect("a value"), total);
    }
    let path = folder.join("client_total");
    MapData::from_pin(&path).expect("it is pinned");
    std::fs::remove_file(&path).expect("it can be unpinned");
    assert!(MapData::from_pin(&path).is_err());
}

fn kprobe() {
    const CALLS: u64 = 20;
    let mut worker = Worker::start();
    crate::shim::router().subsystem().trace(Some(worker.pid()));
    let mut ebpf = Ebpf::load(&bytes("client_probes")).expect("it loads");
    let mut ring = RingBuf::try_from(ebpf.take_map("ring").expect("a map")).expect("a ring buffer");
    let program: &mut KProbe = ebpf.program_mut("on_kprobe").expect("a program").try_into().expect("a kprobe");
    program.load().expect("it loads");
    assert!(program.attach("no_function_of_that_name", 0).is_err());
    program.attach("work", 0).expect("it is attached");
    worker.work(CALLS);
    let all = collect(|_| std::iter::from_fn(|| ring.next().map(|r| r.to_vec())).collect(), CALLS as usize);
    assert_eq!(all, (1..=CALLS).map(|n| (0, n, worker.pid(), 3)).collect::<Vec<_>>());
    drop(ebpf);
    crate::shim::router().subsystem().trace(None);
}

fn uprobes() {
    const CALLS: u64 = 20;
    let mut worker = Worker::start();
    let mut ebpf = Ebpf::load(&bytes("client_probes")).expect("it loads");
    let mut ring = RingBuf::try_from(ebpf.take_map("ring").expect("a map")).expect("a ring buffer");
    let mut perf = PerfEventArray::try_from(ebpf.take_map("perf").expect("a map")).expect("a perf buffer");
    let cpus = online_cpus().expect("CPUs");
    let mut buffers: Vec<_> = cpus.into_iter().map(|cpu| perf.open(cpu, None).expect("an event")).collect();
    let scope = UProbeScope::OneProcess(worker.pid().try_into().expect("a process"));
    for (name, cookie) in [("on_entry", 5), ("on_return", 6)] {
        let program: &mut UProbe = ebpf.program_mut(name).expect("a program").try_into().expect("a uprobe");
        program.load().expect("it loads");
        let point = UProbeAttachPoint { location: UProbeAttachLocation::Symbol("work"), cookie: Some(cookie) };
        program.attach(point, &worker.program, scope).expect("it is attached");
    }
    worker.work(CALLS);
    let mut expected: Vec<_> =
        (1..=CALLS).flat_map(|n| [(5, n, worker.pid(), 1), (6, n * 3, worker.pid(), 2)]).collect();
    expected.sort_unstable();
    let from_ring = collect(|_| std::iter::from_fn(|| ring.next().map(|r| r.to_vec())).collect(), 2 * CALLS as usize);
    let from_perf = collect(
        |_| {
            let mut records = Vec::new();
            for buffer in &mut buffers {
                buffer.for_each(|event| {
                    if let PerfEvent::Sample { head, tail } = event {
                        records.push([head, tail].concat());
                    }
                });
            }
            records
        },
        2 * CALLS as usize,
    );
    for mut all in [from_ring, from_perf] {
        all.sort_unstable();
        assert_eq!(all, expected);
    }
}
