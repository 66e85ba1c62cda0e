//! Iterators as the kernel's selftests use them, with those tests' own objects (`SKEP_CORPUS`, default `../shared/corpus`).

use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_sys as sys;
use skep_tests::{scratch, skip};

use crate::libbpf::{Link, Map, Object, Program, check, path};

/// Tests of this file.
pub const TESTS: &[(&str, fn())] = &[
    ("libbpf: iterators over maps and links", objects),
    ("libbpf: an iterator over a per-CPU array", elements),
    ("libbpf: a pinned iterator is a file", pinned),
];

/// The selftests' object of this name, if they and the kernel's types are here.
fn selftest(file: &str) -> Option<PathBuf> {
    let corpus =
        std::env::var_os("SKEP_CORPUS").map_or_else(|| skep_tests::root().join("../shared/corpus"), Into::into);
    let archive = corpus.join("objects.tar.xz");
    if !archive.exists() || !Path::new("/sys/kernel/btf/vmlinux").exists() {
        skip("no corpus (SKEP_CORPUS), or no types of the kernel");
        return None;
    }
    let to = scratch();
    let member = format!("objects/{file}.o");
    let done = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(&to).arg(&member).status();
    assert!(done.is_ok_and(|s| s.success()), "tar cannot unpack {member}");
    Some(to.join(member))
}

/// `bpf_program__attach_iter`, with the map whose elements are meant.
fn attach(program: Program, map: Option<Map>) -> Link {
    let mut info = sys::bpf_iter_link_info::default();
    let mut options =
        sys::bpf_iter_attach_opts { sz: size_of::<sys::bpf_iter_attach_opts>() as _, ..Default::default() };
    if let Some(map) = map {
        info.map.map_fd = map.fd() as u32;
        options.link_info = &raw mut info;
        options.link_info_len = size_of_val(&info) as u32;
    }
    // SAFETY: program and options are there.
    Link::new("attach", unsafe { sys::bpf_program__attach_iter(program.0, &options) })
}

/// All that is read from a descriptor, which is closed then.
fn text(fd: i32) -> String {
    let mut all = Vec::new();
    loop {
        let mut part = [0u8; 64];
        let args = [fd as u64, part.as_mut_ptr() as u64, part.len() as u64, 0, 0, 0];
        match crate::shim::router().dispatch(libc::SYS_read, args).expect("an iterator").expect("a read") {
            0 => break,
            n => all.extend_from_slice(&part[..n as usize]),
        }
    }
    // SAFETY: the descriptor was given to this test.
    unsafe { libc::close(fd) };
    String::from_utf8(all).expect("text")
}

fn read(link: &Link) -> String {
    // SAFETY: the link is there.
    text(check("iter_create", unsafe { sys::bpf_iter_create(sys::bpf_link__fd(link.0)) }))
}

fn objects() {
    let (Some(maps), Some(links)) = (selftest("bpf_iter_bpf_map"), selftest("bpf_iter_bpf_link")) else { return };
    let (maps, links) = (Object::open_path(&maps).load(), Object::open_path(&links).load());
    let other = Object::loaded("client_data");
    let link = attach(maps.program("dump_bpf_map"), None);
    let told = read(&link);
    let id = |map: Map| {
        let mut info = sys::bpf_map_info::default();
        let mut len = size_of_val(&info) as u32;
        // SAFETY: the structure has the length that is told.
        check("info", unsafe { sys::bpf_map_get_info_by_fd(map.fd(), &raw mut info, &raw mut len) });
        info.id
    };
    let lines: Vec<&str> = told.lines().filter(|l| !l.trim().is_empty()).collect();
    assert!(lines.first().is_some_and(|head| head.contains("id")), "{told}");
    let numbers: Vec<u32> = lines.iter().filter_map(|l| l.split_whitespace().next()?.parse().ok()).collect();
    assert!(numbers.contains(&id(other.map("by_run"))) && numbers.is_sorted(), "{told}");
    assert_eq!(numbers.len(), crate::shim::router().subsystem().alive().maps, "{told}");
    let over = attach(links.program("dump_bpf_link"), None);
    assert_eq!(crate::shim::router().subsystem().alive().links, 2);
    // Numbers, four bytes each.
    assert_eq!(read(&over).len(), 8);
}

fn elements() {
    let Some(file) = selftest("bpf_iter_bpf_percpu_array_map") else { return };
    let object = Object::open_path(&file);
    let cpus = crate::shim::router().subsystem().slots();
    // SAFETY: the section begins with the number of CPUs.
    unsafe { *object.section::<i32>(".rodata") = cpus as i32 };
    let object = object.load();
    let array = object.map("arraymap1");
    let mut expected = 0;
    for key in 0..3u32 {
        let values: Vec<u64> = (0..u64::from(cpus)).map(|cpu| u64::from(key) * 10 + cpu).collect();
        expected += values.iter().sum::<u64>();
        // SAFETY: key and values are of the map's sizes: four bytes, padded to eight, for each CPU.
        let r = unsafe { sys::bpf_map_update_elem(array.fd(), (&raw const key).cast(), values.as_ptr().cast(), 0) };
        check("update", r);
    }
    let link = attach(object.program("dump_bpf_percpu_array_map"), Some(array));
    assert_eq!(read(&link), "");
    let sums = object.section::<[u32; 2]>(".bss");
    // SAFETY: mapped as long as the object is open, and two numbers long.
    let sums = unsafe { sums.read_volatile() };
    assert!(sums.contains(&3) && sums.contains(&(expected as u32)), "keys and values: {sums:?}, {expected}");
}

fn pinned() {
    let Some(file) = selftest("bpf_iter_bpf_map") else { return };
    let object = Object::open_path(&file).load();
    let link = attach(object.program("dump_bpf_map"), None);
    let at = path(Path::new("/sys/fs/bpf/maps_debug"));
    // SAFETY: the link is there, and the path a string.
    check("pin", unsafe { sys::bpf_link__pin(link.0, at.as_ptr()) });
    drop(link);
    for _ in 0..2 {
        // SAFETY: the path is a string.
        let fd = unsafe { libc::open(at.as_ptr(), libc::O_RDONLY) };
        assert!(text(fd).lines().count() > 1);
    }
    // SAFETY: as above.
    check("unlink", unsafe { libc::unlink(at.as_ptr()) });
}
