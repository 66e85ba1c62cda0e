//! `BPF_MAP_CREATE`: each definition gets the errno that the live kernel gives.

mod common;

use common::KernelMap;
use skep_ebpf::Errno;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::{MapType, map_flags};
use skep_maps::control::{MapError, is_hollow, layout, validate};
use std::sync::Arc;

const TYPES: [MapType; 31] = [
    MapType::Queue,
    MapType::Stack,
    MapType::BloomFilter,
    MapType::LpmTrie,
    MapType::ArrayOfMaps,
    MapType::HashOfMaps,
    MapType::UserRingbuf,
    MapType::CgroupArray,
    MapType::Devmap,
    MapType::DevmapHash,
    MapType::Cpumap,
    MapType::Xskmap,
    MapType::Sockmap,
    MapType::Sockhash,
    MapType::ReuseportSockarray,
    MapType::CgroupStorage,
    MapType::PercpuCgroupStorage,
    MapType::SkStorage,
    MapType::InodeStorage,
    MapType::TaskStorage,
    MapType::CgrpStorage,
    MapType::LruHash,
    MapType::LruPercpuHash,
    MapType::Hash,
    MapType::Array,
    MapType::PercpuHash,
    MapType::PercpuArray,
    MapType::ProgArray,
    MapType::PerfEventArray,
    MapType::Ringbuf,
    MapType::StackTrace,
];

/// Usable sizes of each type: key, value, entries.
fn usable(t: MapType) -> (u32, u32, u32) {
    match t {
        MapType::Ringbuf | MapType::UserRingbuf => (0, 0, 4096),
        MapType::Queue | MapType::Stack | MapType::BloomFilter => (0, 8, 3),
        MapType::LpmTrie => (8, 8, 3),
        MapType::ArrayOfMaps | MapType::HashOfMaps | MapType::CgroupArray | MapType::Xskmap => (4, 4, 3),
        t if is_hollow(t) && needs_no_entries(t) => (8, 8, 0),
        t if is_hollow(t) => (4, 4, 3),
        MapType::ProgArray | MapType::PerfEventArray => (4, 4, 3),
        _ => (4, 64, 3),
    }
}

fn needs_no_entries(t: MapType) -> bool {
    use MapType::*;
    matches!(t, CgroupStorage | PercpuCgroupStorage | SkStorage | InodeStorage | TaskStorage | CgrpStorage)
}

fn compare(def: &MapDef, nslots: u32, differences: &mut Vec<String>) {
    let kernel = KernelMap::create(def).err();
    let ours = match validate(def, nslots).and_then(|()| layout(def, nslots).map(drop)) {
        Err(MapError::UnsupportedFlag { flag: "BPF_F_STACK_BUILD_ID", .. }) => None,
        Err(e) => Some(e.errno()),
        Ok(()) => None,
    };
    // Descriptors out of reach of the numbers in the attributes: these flags mean a token and a BTF object there.
    if kernel != ours {
        differences.push(format!(
            "{} key {} value {} entries {} flags {:#x} extra {}: kernel {kernel:?}, skep {ours:?}",
            def.map_type, def.key_size, def.value_size, def.max_entries, def.flags, def.extra
        ));
    }
}

#[test]
fn all_flags_and_sizes() {
    if !common::have_kernel() {
        return;
    }
    let cpus = common::possible_cpus();
    let (mut differences, mut n) = (Vec::new(), 0);
    let mut check = |def: &MapDef| {
        n += 1;
        compare(def, cpus, &mut differences);
    };
    for t in TYPES {
        let (key, value, entries) = usable(t);
        let with = |key, value, entries, flags| {
            let mut def = MapDef::new("m", t, key, value, entries);
            def.flags = flags;
            if matches!(t, MapType::ArrayOfMaps | MapType::HashOfMaps) {
                def.inner = Some(Arc::new(MapDef::new("i", MapType::Array, 4, 4, 1)));
            }
            def
        };
        // The flag for tokens names a descriptor: left out.
        let flags: Vec<u32> = (0..32).map(|b| 1u32 << b).filter(|&f| f != map_flags::TOKEN_FD).collect();
        for &a in &flags {
            for &b in &flags {
                check(&with(key, value, entries, a | b));
            }
        }
        for k in [0, 1, 3, 4, 5, 8, 64, 4096] {
            for v in [0, 1, 4, 7, 8, 16, 32, 40, 64, 1016, 1024, 4064, 4096, 32760, 32761, 32768, 32769, 1 << 20] {
                for e in [0, 1, 3, 4095, 4096, 4097, 8192, 12288] {
                    if u64::from(v) * u64::from(e) < 64 << 20 {
                        check(&with(k, v, e, 0));
                    }
                }
            }
        }
        for f in &flags {
            check(&with(0, 0, 0, *f));
            check(&with(key, 40_000, entries, *f));
            check(&with(key, value, entries, *f | map_flags::NO_PREALLOC));
        }
        for v in [4_194_304 - 56, 4_194_304 - 53, 4_194_304 - 52, 4_194_304 - 51, 4_194_304, 1 << 31, u32::MAX] {
            check(&with(4, v, 1, map_flags::NO_PREALLOC));
            if v > i32::MAX as u32 {
                check(&with(4, v, 1, 0));
            }
        }
        check(&with(4, 8, 134_217_729, map_flags::NO_PREALLOC));
        for extra in [1, 5, 15, 16, 4096, 1 << 40] {
            let mut def = with(key, value, entries, 0);
            def.extra = extra;
            check(&def);
        }
        if matches!(t, MapType::ArrayOfMaps | MapType::HashOfMaps) {
            for &inner in TYPES.iter().chain(&[MapType::Unspec]) {
                let (key, value, entries) = usable(inner);
                let mut i = MapDef::new("i", inner, key, value, entries);
                if inner == MapType::LpmTrie {
                    i.flags = map_flags::NO_PREALLOC;
                }
                if matches!(inner, MapType::ArrayOfMaps | MapType::HashOfMaps) {
                    i.inner = Some(Arc::new(MapDef::new("i", MapType::Array, 4, 4, 1)));
                }
                if KernelMap::create(&i).is_ok() {
                    let mut def = with(4, 4, 2, 0);
                    def.inner = Some(Arc::new(i));
                    check(&def);
                }
            }
        }
    }
    eprintln!("{n} definitions compared");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn other_types_are_refused_by_name() {
    for &t in MapType::ALL {
        let (key, value, entries) = if TYPES.contains(&t) { usable(t) } else { (4, 4, 1) };
        let mut def = MapDef::new("m", t, key, value, entries);
        match t {
            MapType::LpmTrie => def.flags = map_flags::NO_PREALLOC,
            MapType::ArrayOfMaps | MapType::HashOfMaps => {
                def.inner = Some(Arc::new(MapDef::new("i", MapType::Array, 4, 4, 1)));
            }
            MapType::SkStorage | MapType::InodeStorage | MapType::TaskStorage | MapType::CgrpStorage => {
                (def.key_size, def.key_type_id, def.value_type_id) = (4, 1, 1);
                def.flags = map_flags::NO_PREALLOC;
            }
            _ => {}
        }
        let r = validate(&def, 4);
        match t {
            MapType::Unspec => assert_eq!(r.unwrap_err().errno(), Errno::EINVAL),
            t if TYPES.contains(&t) => r.unwrap(),
            t => {
                let message = format!("map `m`: maps of type {t} are not supported");
                assert_eq!(r.unwrap_err().to_string(), message);
            }
        }
    }
}
