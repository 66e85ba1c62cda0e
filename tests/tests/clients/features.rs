//! What libbpf finds out about the kernel before it does anything, and that the answers are honoured.

use std::ffi::{c_int, c_uint};

use libbpf_sys as sys;
use skep_ebpf::helper::Helper;
use skep_ebpf::uapi::{MapType, ProgType};

use crate::libbpf::warnings;

/// Tests of this file.
pub const TESTS: &[(&str, fn())] = &[
    ("libbpf's feature probes", probes),
    ("libbpf's probes of map and program types", types),
    ("libbpf's probes of helpers", helpers),
];

/// libbpf's own cache: an answer per feature (0: not asked yet), and a token. Longer than any version's.
#[repr(C)]
struct Cache {
    answers: [c_uint; 40],
    token: c_int,
}

unsafe extern "C" {
    /// Hidden in a shared library, but libbpf is linked in: what all of its own decisions ask.
    fn feat_supported(cache: *mut Cache, feature: c_uint) -> bool;
}

/// Features in libbpf's order (1.7), and whether a subsystem has them.
const FEATURES: &[(&str, bool)] = &[
    ("names of programs", true),
    ("global data", true),
    ("BTF", true),
    ("BTF functions", true),
    ("BTF data sections", true),
    ("BTF global functions", true),
    ("arrays that can be mapped", true),
    ("expected_attach_type", true),
    ("bpf_probe_read_kernel", true),
    ("BPF_PROG_BIND_MAP", true),
    ("names of modules' BTF", true),
    ("BTF floats", true),
    ("perf links", true),
    ("BTF declaration tags", true),
    ("BTF type tags", true),
    ("memory charged to groups", true),
    ("cookies", true),
    ("BTF 64-bit enumerations", true),
    // There are no kernel functions, so none of system calls.
    ("wrapped system calls", false),
    ("multi-uprobe links", true),
    ("__arg_ctx", true),
    ("BTF data sections with `?`", true),
    ("large offsets into map values", true),
    // No trampoline of the kernel's calls it here.
    ("uprobe(2)", false),
];

fn probes() {
    let mut cache = Cache { answers: [0; 40], token: 0 };
    let mut wrong = Vec::new();
    for (n, (name, expected)) in FEATURES.iter().enumerate() {
        warnings();
        // SAFETY: the cache is at least as long as libbpf's, and the number is one of its features.
        let answer = unsafe { feat_supported(&raw mut cache, n as c_uint) };
        let warned = warnings();
        println!("{:>2}  {name:<32} {}", n + 1, if answer { "yes" } else { "no" });
        if answer != *expected || !warned.is_empty() {
            wrong.push(format!("{name}: {answer}, not {expected} {warned}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What libbpf says of a type: it probes, or does not know how to.
fn answer(r: c_int) -> &'static str {
    match r {
        1 => "yes",
        0 => "no",
        _ => "not probed",
    }
}

fn types() {
    let mut maps = Vec::new();
    for n in 1..=64 {
        let Some(t) = MapType::from_u32(n) else { break };
        // SAFETY: the call takes a number.
        let r = unsafe { sys::libbpf_probe_bpf_map_type(n, std::ptr::null()) };
        println!("map {t}: {}", answer(r));
        if r == 1 {
            maps.push(t);
        }
    }
    for t in [MapType::Hash, MapType::Array, MapType::ProgArray, MapType::PerfEventArray, MapType::Ringbuf] {
        assert!(maps.contains(&t), "{t}");
    }
    let mut programs = Vec::new();
    for n in 1..=64 {
        let Some(t) = ProgType::from_u32(n) else { break };
        // SAFETY: the call takes a number.
        let r = unsafe { sys::libbpf_probe_bpf_prog_type(n, std::ptr::null()) };
        println!("program {t}: {}", answer(r));
        if r == 1 {
            programs.push(t);
        }
    }
    for t in [ProgType::Kprobe, ProgType::SocketFilter, ProgType::SchedCls, ProgType::Xdp, ProgType::RawTracepoint] {
        assert!(programs.contains(&t), "{t}");
    }
}

/// A helper that libbpf takes for there can be run, and the other way round.
fn helpers() {
    let mut wrong = Vec::new();
    for t in [ProgType::Kprobe, ProgType::SchedCls, ProgType::Xdp, ProgType::SocketFilter] {
        let mut there = 0;
        for id in 1..300 {
            // SAFETY: the call takes numbers.
            let r = unsafe { sys::libbpf_probe_bpf_helper(t as u32, id, std::ptr::null()) };
            let helper = Helper::by_id(id);
            let expected = helper.is_some_and(|h| h.allowed_in(t)) && skep_runtime::helpers::supported(id);
            there += usize::from(r == 1);
            if (r == 1) != expected {
                wrong.push(format!("{t}: {}#{id}: {r}", helper.map_or("unknown", |h| h.name)));
            }
        }
        println!("{t}: {there} helpers");
        assert!(there > 20, "{t}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
