//! libbpf as an unmodified program uses it: objects opened, set up, loaded, driven, and read.

use std::ffi::c_int;
use std::ptr::null;

use libbpf_sys as sys;

use crate::libbpf::{Object, Ring, check, path};

/// Tests of this file.
pub const TESTS: &[(&str, fn())] = &[
    ("libbpf: global data", global_data),
    ("libbpf: ring buffer", ring_buffer),
    ("libbpf: ring buffer, woken from another thread", ring_wakes),
    ("libbpf: tail calls", tail_calls),
    ("libbpf: maps pinned by name", pinned_maps),
    ("libbpf: programs pinned", pinned_program),
    ("libbpf: batches", batches),
    ("libbpf: numbers and information", information),
];

/// `.data`, `.bss` and `.rodata` are set before loading and shared by mapping afterwards.
fn global_data() {
    let object = Object::open("client_data");
    // SAFETY: the sections begin with these variables; before loading they are the loader's own memory.
    unsafe {
        *object.section::<u64>(".rodata") = 5;
        *object.section::<u64>(".data") = 1000;
    }
    let object = object.load();
    let (data, bss, rodata) =
        (object.section::<u64>(".data"), object.section::<u64>(".bss"), object.section::<u64>(".rodata"));
    for n in 1..=10 {
        assert_eq!(object.program("counted").test_run(), 7);
        // SAFETY: mapped as long as the object is open; the program writes between the reads only.
        unsafe {
            assert_eq!((data.read_volatile(), bss.read_volatile(), rodata.read_volatile()), (1000 + 5 * n, n, 5));
        }
    }
    // And the other way: the loader writes, the program reads.
    // SAFETY: as above.
    unsafe { data.write_volatile(0) };
    object.program("counted").test_run();
    assert_eq!(object.map("by_run").get::<u64>(11), 5);
    // What is frozen cannot be changed.
    let mut key = 0u32;
    let value = 1u64;
    let fd = object.map(".rodata").fd();
    // SAFETY: key and value are of the map's sizes.
    let r = unsafe { sys::bpf_map_update_elem(fd, (&raw mut key).cast(), (&raw const value).cast(), 0) };
    assert_eq!(r, -libc::EPERM);
}

fn words(record: &[u8]) -> Vec<u64> {
    record.chunks_exact(8).map(|c| u64::from_ne_bytes(c.try_into().expect("eight bytes"))).collect()
}

fn ring_buffer() {
    let object = Object::loaded("client_data");
    let program = object.program("counted");
    let mut ring = Ring::new(object.map("ring"));
    assert!(ring.poll(0).is_empty());
    // Many times the ring's size, so that records cross its end.
    let mut expected = 0u64;
    for _ in 0..200 {
        for _ in 0..7 {
            assert_eq!(program.test_run(), 7);
        }
        let records = ring.poll(1000);
        let runs: Vec<u64> = records.iter().map(|r| words(r)[0]).collect();
        assert_eq!(runs, (expected + 1..=expected + 7).collect::<Vec<_>>());
        assert!(records.iter().all(|r| words(r)[1] == 100 + words(r)[0]));
        expected += 7;
    }
    // A full ring refuses, and goes on once it is read.
    let mut refused = 0;
    for _ in 0..300 {
        refused += u32::from(program.test_run() != 7);
    }
    assert!(refused > 0);
    assert_eq!(ring.poll(1000).len() as u32, 300 - refused);
    assert_eq!(program.test_run(), 7);
    assert_eq!(ring.poll(1000).len(), 1);
}

/// A reader that sleeps in `epoll_wait` is woken by each record, or several at once, and none stays unread.
fn ring_wakes() {
    const RECORDS: usize = 500;
    let object = Object::loaded("client_data");
    let fd = object.program("counted").fd();
    let mut ring = Ring::new(object.map("ring"));
    let runner = std::thread::spawn(move || {
        for n in 0..RECORDS {
            let packet = [0u8; 64];
            let mut options =
                sys::bpf_test_run_opts { sz: size_of::<sys::bpf_test_run_opts>() as _, ..Default::default() };
            (options.data_in, options.data_size_in) = (packet.as_ptr().cast(), 64);
            // SAFETY: the options and the packet live on.
            check("test run", unsafe { sys::bpf_prog_test_run_opts(fd, &mut options) });
            if n % 50 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            // Not faster than the reader.
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    });
    let mut got = 0;
    while got < RECORDS {
        let records = ring.poll(10_000).len();
        assert!(records > 0, "asleep with {got} of {RECORDS}");
        got += records;
    }
    runner.join().expect("the runner");
    assert_eq!(got, RECORDS);
}

fn tail_calls() {
    let object = Object::loaded("client_tail_filled");
    let first = object.program("first");
    // As the object says.
    assert_eq!(first.test_run(), 22);
    // Another one, while the program is there; then none.
    let table = object.map("table");
    assert_eq!(table.set(1, &object.program("third").fd()), 0);
    assert_eq!(first.test_run(), 33);
    let key = 1u32;
    // SAFETY: the key is of the map's size.
    check("delete", unsafe { sys::bpf_map_delete_elem(table.fd(), (&raw const key).cast()) });
    assert_eq!(first.test_run(), 11);
    assert_eq!(table.set(1, &object.map("table").fd()), -libc::EINVAL);
}

/// A map outlives its loader, the next one finds it, and goes when it is unpinned.
fn pinned_maps() {
    {
        let object = Object::loaded("client_pin");
        object.program("add").test_run();
        assert_eq!(object.map("client_total").get::<u64>(0), 1);
    }
    {
        let object = Object::loaded("client_pin");
        object.program("add").test_run();
        assert_eq!(object.map("client_total").get::<u64>(0), 2);
        // SAFETY: the object is open; null stands for the path that it was pinned at.
        check("unpin", unsafe { sys::bpf_map__unpin(object.map("client_total").0, null()) });
    }
    let object = Object::loaded("client_pin");
    assert_eq!(object.map("client_total").get::<u64>(0), 0);
    // SAFETY: as above.
    check("unpin", unsafe { sys::bpf_map__unpin(object.map("client_total").0, null()) });
}

fn pinned_program() {
    let at = path("/sys/fs/bpf/clients/first".as_ref());
    {
        let object = Object::loaded("client_tail_filled");
        // SAFETY: the program is loaded, the path a C string.
        check("pin", unsafe { sys::bpf_program__pin(object.program("second").0, at.as_ptr()) });
        // SAFETY: as above.
        assert_eq!(unsafe { sys::bpf_program__pin(object.program("first").0, at.as_ptr()) }, -libc::EEXIST);
    }
    // SAFETY: the path is a C string.
    let fd = check("get", unsafe { sys::bpf_obj_get(at.as_ptr()) });
    let packet = [0u8; 64];
    let mut options = sys::bpf_test_run_opts { sz: size_of::<sys::bpf_test_run_opts>() as _, ..Default::default() };
    (options.data_in, options.data_size_in) = (packet.as_ptr().cast(), 64);
    // SAFETY: the options and the packet live on.
    check("test run", unsafe { sys::bpf_prog_test_run_opts(fd, &mut options) });
    assert_eq!(options.retval, 22);
    // SAFETY: the descriptor is ours; the path is a C string.
    unsafe {
        libc::close(fd);
        assert_eq!(libc::unlink(at.as_ptr()), 0);
        assert_eq!(sys::bpf_obj_get(at.as_ptr()), -libc::ENOENT);
    }
}

fn batches() {
    let object = Object::loaded("client_data");
    let fd = object.map("by_run").fd();
    let keys: Vec<u32> = (0..40).collect();
    let values: Vec<u64> = keys.iter().map(|k| u64::from(*k) * 3).collect();
    let mut count = keys.len() as u32;
    // SAFETY: keys and values are as many as told, of the map's sizes.
    let r = unsafe { sys::bpf_map_update_batch(fd, keys.as_ptr().cast(), values.as_ptr().cast(), &mut count, null()) };
    check("update", r);
    assert_eq!(count, 40);
    let (mut seen, mut position, mut from) = (Vec::new(), 0u32, std::ptr::null_mut());
    loop {
        let (mut keys, mut values, mut count) = ([0u32; 16], [0u64; 16], 16u32);
        // SAFETY: as above; a position is four bytes.
        let r = unsafe {
            sys::bpf_map_lookup_batch(
                fd,
                from,
                (&raw mut position).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                null(),
            )
        };
        assert!(r == 0 || r == -libc::ENOENT, "{r}");
        seen.extend(keys.into_iter().zip(values).take(count as usize));
        if r != 0 {
            break;
        }
        from = (&raw mut position).cast();
    }
    seen.sort_unstable();
    assert_eq!(seen, keys.iter().copied().zip(values).collect::<Vec<_>>());
    let mut count = 10;
    // SAFETY: as above.
    check("delete", unsafe { sys::bpf_map_delete_batch(fd, keys.as_ptr().cast(), &mut count, null()) });
    let mut next = 0u32;
    let (mut left, mut key) = (0, null::<u32>());
    // SAFETY: keys are four bytes.
    while unsafe { sys::bpf_map_get_next_key(fd, key.cast(), (&raw mut next).cast()) } == 0 {
        (left, key) = (left + 1, &raw const next);
    }
    assert_eq!(left, 30);
}

fn information() {
    let object = Object::loaded("client_data");
    let program = object.program("counted");
    let mut info = sys::bpf_prog_info::default();
    let mut len = size_of::<sys::bpf_prog_info>() as u32;
    // SAFETY: the structure is as long as told.
    check("info", unsafe { sys::bpf_prog_get_info_by_fd(program.fd(), &mut info, &mut len) });
    assert_eq!((info.type_, info.gpl_compatible()), (sys::BPF_PROG_TYPE_SCHED_CLS, 1));
    assert!(info.id > 0 && info.nr_func_info == 1 && info.nr_line_info > 5 && info.nr_map_ids == 5, "{info:?}");
    let mut ids: Vec<u32> = Vec::new();
    let mut id = 0;
    // SAFETY: the number is written.
    while unsafe { sys::bpf_prog_get_next_id(id, &mut id) } == 0 {
        ids.push(id);
    }
    assert_eq!(ids, [info.id]);
    // SAFETY: the call takes a number.
    let fd = check("by id", unsafe { sys::bpf_prog_get_fd_by_id(info.id) });
    assert!(crate::shim::is_ours(&fd));
    // SAFETY: the descriptor is ours.
    unsafe { libc::close(fd) };
    // SAFETY: asks how many values a per-CPU map has.
    let cpus: c_int = unsafe { sys::libbpf_num_possible_cpus() };
    assert_eq!(cpus as u32, crate::shim::router().subsystem().slots());
}
