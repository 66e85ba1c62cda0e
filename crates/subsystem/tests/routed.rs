//! Descriptors as a process has them: duplicates, mappings, closes, waiting; through the calls that a loader makes.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::{Btf, Kind};
use skep_subsystem::front::{Config, Errno, Router, Subsystem};

const MAP_CREATE: u64 = 0;
const MAP_LOOKUP: u64 = 1;
const MAP_UPDATE: u64 = 2;
const PROG_LOAD: u64 = 5;
const OBJ_PIN: u64 = 6;
const OBJ_GET: u64 = 7;
const LINK_CREATE: u64 = 28;
const ITER_CREATE: u64 = 33;
const ARRAY: u32 = 2;
const HASH: u32 = 1;
const RINGBUF: u32 = 27;
const MMAPABLE: u32 = 1 << 10;
const RDONLY: u32 = 1 << 3;

struct Process(Router);

impl Process {
    fn new() -> Process {
        Process(Router::own(Arc::new(Subsystem::new(Config::default()).unwrap())).unwrap())
    }

    fn bpf(&self, cmd: u64, attr: &mut [u8]) -> Result<i64, Errno> {
        let args = [cmd, attr.as_mut_ptr() as u64, attr.len() as u64, 0, 0, 0];
        self.0.dispatch(libc::SYS_bpf, args).expect("bpf(2) is ours")
    }

    fn map(&self, kind: u32, flags: u32) -> OwnedFd {
        let (key, value, entries) = if kind == RINGBUF { (0u32, 0u32, 4096u32) } else { (4, 8, 4) };
        let words = [kind, key, value, entries, flags];
        let mut attr: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let fd = self.bpf(MAP_CREATE, &mut attr).unwrap() as i32;
        // SAFETY: the descriptor was just given to this process.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn element(&self, cmd: u64, fd: &OwnedFd, key: u32, value: &mut u64) -> Result<i64, Errno> {
        let mut attr = [0u8; 32];
        attr[0..4].copy_from_slice(&number(fd).to_ne_bytes());
        attr[8..16].copy_from_slice(&(&raw const key as u64).to_ne_bytes());
        attr[16..24].copy_from_slice(&(std::ptr::from_mut(value) as u64).to_ne_bytes());
        self.bpf(cmd, &mut attr)
    }

    fn pin(&self, cmd: u64, path: &std::ffi::CStr, fd: i32) -> Result<i64, Errno> {
        let mut attr = [0u8; 16];
        attr[0..8].copy_from_slice(&(path.as_ptr() as u64).to_ne_bytes());
        attr[8..12].copy_from_slice(&fd.to_ne_bytes());
        self.bpf(cmd, &mut attr)
    }

    fn maps(&self) -> usize {
        self.0.subsystem().alive().maps
    }

    /// Waits until so many maps are left, without any call that would tidy.
    fn left(&self, maps: usize) {
        let start = Instant::now();
        while self.maps() != maps {
            assert!(start.elapsed() < Duration::from_secs(10), "{} maps are left, not {maps}", self.maps());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn number(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

#[test]
fn objects_live_as_long_as_the_last_duplicate() {
    let p = Process::new();
    for kind in [HASH, ARRAY] {
        let first = p.map(kind, if kind == ARRAY { MMAPABLE } else { 0 });
        let second = first.try_clone().unwrap();
        drop(first);
        let mut value = 7;
        p.element(MAP_UPDATE, &second, 1, &mut value).unwrap();
        value = 0;
        p.element(MAP_LOOKUP, &second, 1, &mut value).unwrap();
        assert_eq!((value, p.maps()), (7, 1));
        drop(second);
        p.left(0);
    }
}

#[test]
fn several_descriptions_of_one_map_are_told_apart() {
    let p = Process::new();
    let first = p.map(ARRAY, MMAPABLE);
    p.pin(OBJ_PIN, c"/sys/fs/bpf/a", number(&first)).unwrap();
    let open: Vec<OwnedFd> = (0..20)
        // SAFETY: each descriptor was just given to this process.
        .map(|_| unsafe { OwnedFd::from_raw_fd(p.pin(OBJ_GET, c"/sys/fs/bpf/a", 0).unwrap() as i32) })
        .collect();
    let unlink = [c"/sys/fs/bpf/a".as_ptr() as u64, 0, 0, 0, 0, 0];
    assert_eq!(p.0.dispatch(libc::SYS_unlink, unlink), Some(Ok(0)));
    assert_eq!(p.0.dispatch(libc::SYS_unlink, unlink), Some(Err(Errno::ENOENT)));
    drop(first);
    // Closed in one go: their events are one.
    drop(open);
    p.left(0);
}

#[test]
fn a_mapping_holds_its_map() {
    let p = Process::new();
    let fd = p.map(ARRAY, MMAPABLE);
    let args = [0, 4096, libc::PROT_READ as u64, libc::MAP_SHARED as u64, number(&fd) as u64, 0];
    assert_eq!(p.0.dispatch(libc::SYS_mmap, args), None, "the kernel maps it");
    // SAFETY: a new mapping of a descriptor that is open.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, number(&fd), 0) };
    assert_ne!(at, libc::MAP_FAILED);
    let mut value = 0x1234;
    p.element(MAP_UPDATE, &fd, 3, &mut value).unwrap();
    drop(fd);
    std::thread::sleep(Duration::from_millis(100));
    p.0.handed().tidy();
    assert_eq!(p.maps(), 1);
    // SAFETY: the mapping is a page, and the fourth value stands at 24.
    assert_eq!(unsafe { at.cast::<u64>().add(3).read() }, 0x1234);
    // SAFETY: nobody else knows the mapping.
    unsafe { libc::munmap(at, 4096) };
    p.left(0);
}

#[test]
fn descriptors_permit_what_they_were_opened_for() {
    let p = Process::new();
    let fd = p.map(HASH, RDONLY);
    let mut value = 1;
    assert_eq!(p.element(MAP_UPDATE, &fd, 1, &mut value), Err(Errno::EPERM));
    assert_eq!(p.element(MAP_LOOKUP, &fd, 1, &mut value), Err(Errno::ENOENT));
    let args = [0, 4096, libc::PROT_READ as u64, libc::MAP_SHARED as u64, number(&fd) as u64, 0];
    assert_eq!(p.0.dispatch(libc::SYS_mmap, args), Some(Err(Errno::ENOTSUPP)));
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(p.element(MAP_LOOKUP, &file.into(), 1, &mut value), Err(Errno::EINVAL));
    let args = [number(&fd) as u64, 0x2400, 0, 0, 0, 0];
    assert_eq!(p.0.dispatch(libc::SYS_ioctl, args), Some(Err(Errno(libc::ENOTTY))));
}

#[test]
fn what_is_not_ours_is_for_the_kernel() {
    let p = Process::new();
    for (nr, path) in [(libc::SYS_open, c"/etc/passwd"), (libc::SYS_statfs, c"/tmp"), (libc::SYS_unlink, c"relative")] {
        assert_eq!(p.0.dispatch(nr, [path.as_ptr() as u64, 0, 0, 0, 0, 0]), None, "{path:?}");
    }
    // A bad address is the kernel's to refuse.
    assert_eq!(p.0.dispatch(libc::SYS_open, [8, 0, 0, 0, 0, 0]), None);
    assert_eq!(p.0.dispatch(libc::SYS_getpid, [0; 6]), None);
}

#[test]
fn the_machine_has_as_many_cpus_as_there_are_slots() {
    let p = Process::new();
    let path = c"/sys/devices/system/cpu/possible";
    let fd = p.0.dispatch(libc::SYS_openat, [0, path.as_ptr() as u64, libc::O_RDONLY as u64, 0, 0, 0]);
    // SAFETY: the descriptor was just given to this process.
    let file = unsafe { std::fs::File::from_raw_fd(fd.unwrap().unwrap() as i32) };
    let text = std::io::read_to_string(&file).unwrap();
    assert_eq!(text, format!("0-{}\n", p.0.subsystem().slots() - 1));
}

/// A pinned link of an iterator is a file that is read, as `cat` does; and so is the descriptor of an iterator.
#[test]
fn iterators_are_read_as_files() {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|b| Btf::parse(&b).ok());
    let Some(types) = types else {
        eprintln!("skipped: this kernel tells nobody its types");
        return;
    };
    let on = types.find("bpf_iter_bpf_map", |k| matches!(k, Kind::Func { .. })).expect("an iterator");
    let config = Config { kernel_btf: Some(Arc::new(types)), ..Config::default() };
    let process = Process(Router::own(Arc::new(Subsystem::new(config).unwrap())).unwrap());
    // Eight bytes for each map.
    let text = "r6 = *(u64 *)(r1 +0)
        r7 = *(u64 *)(r1 +8)
        if r7 == 0 goto end
        r1 = 0x0a70616d20656e6f ll
        *(u64 *)(r10 -8) = r1
        r1 = *(u64 *)(r6 +0)
        r2 = r10
        r2 += -8
        w3 = 8
        call seq_write#127
    end:
        w0 = 0
        exit";
    let code: Vec<u8> = assemble(text).unwrap().iter().flat_map(|i| i.to_bytes()).collect();
    let mut attr = [0u8; 112];
    let mut put = |at: usize, bytes: &[u8]| attr[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &26u32.to_ne_bytes());
    put(4, &(code.len() as u32 / 8).to_ne_bytes());
    put(8, &(code.as_ptr() as u64).to_ne_bytes());
    put(16, &(c"GPL".as_ptr() as u64).to_ne_bytes());
    put(68, &28u32.to_ne_bytes());
    put(108, &on.to_ne_bytes());
    let prog = process.bpf(PROG_LOAD, &mut attr).unwrap();
    let mut attr = [0u8; 28];
    attr[0..4].copy_from_slice(&(prog as u32).to_ne_bytes());
    attr[8..12].copy_from_slice(&28u32.to_ne_bytes());
    let link = process.bpf(LINK_CREATE, &mut attr).unwrap();
    let _maps = [process.map(ARRAY, 0), process.map(HASH, 0)];
    let mut attr = [0u8; 8];
    attr[0..4].copy_from_slice(&(link as u32).to_ne_bytes());
    let iter = process.bpf(ITER_CREATE, &mut attr).unwrap();
    let path = c"/sys/fs/bpf/maps";
    process.pin(OBJ_PIN, path, link as i32).unwrap();
    let call = |nr: i64, args: [u64; 6]| process.0.dispatch(nr, args);
    let opened = call(libc::SYS_open, [path.as_ptr() as u64, 0, 0, 0, 0, 0]).expect("the file is ours").unwrap();
    for fd in [iter, opened] {
        let mut text = Vec::new();
        loop {
            let mut part = [0u8; 5];
            let args = [fd as u64, part.as_mut_ptr() as u64, part.len() as u64, 0, 0, 0];
            match call(libc::SYS_read, args).expect("the descriptor is ours").unwrap() {
                0 => break,
                n => text.extend_from_slice(&part[..n as usize]),
            }
        }
        assert_eq!(String::from_utf8_lossy(&text), "one map\none map\n");
    }
    // What is no iterator cannot be opened.
    process.pin(OBJ_PIN, c"/sys/fs/bpf/program", prog as i32).unwrap();
    let args = [c"/sys/fs/bpf/program".as_ptr() as u64, 0, 0, 0, 0, 0];
    assert_eq!(call(libc::SYS_open, args), Some(Err(Errno::EIO)));
    for fd in [prog, link, iter, opened] {
        // SAFETY: each was given to this process, and is closed once.
        unsafe { libc::close(fd as i32) };
    }
}
