//! The kinds of map that are not arrays and hash maps: their commands through descriptors.

use crate::script::{Attrs, Script};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const NEXT_KEY: u32 = 4;
const PROG_LOAD: u32 = 5;
const TEST_RUN: u32 = 10;
const INFO: u32 = 15;
const LOOKUP_DELETE: u32 = 21;
const FREEZE: u32 = 22;
const LOOKUP_BATCH: u32 = 24;
const LOOKUP_DELETE_BATCH: u32 = 25;
const UPDATE_BATCH: u32 = 26;
const DELETE_BATCH: u32 = 27;

const ARRAY: u32 = 2;
const HASH: u32 = 1;
const PERCPU_ARRAY: u32 = 6;
const LPM: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const HASH_OF_MAPS: u32 = 13;
const INNER_MAP: u32 = 1 << 12;
const NO_PREALLOC: u32 = 1;

fn map(ty: u32, key: u32, value: u32, entries: u32, flags: u32) -> Attrs {
    Attrs::new(92).u32(0, ty).u32(4, key).u32(8, value).u32(12, entries).u32(16, flags)
}

/// Memory that calls write to.
fn room<T: Default + Clone>(len: usize) -> Vec<T> {
    std::hint::black_box(vec![T::default(); len])
}

/// All of it.
pub fn run(s: &mut Script<'_>) {
    each_kind(s);
    batches(s);
    nested(s);
    inner_kinds(s);
    programs(s);
    targets(s);
    bound(s);
    types(s);
}

/// Programs that are to attach to programs: what the load path says to the target.
fn targets(s: &mut Script<'_>) {
    let code = [0xb7u64, 0x95];
    let plain = |ty: u32| Attrs::new(168).u32(0, ty).u32(4, 2).ptr(8, &code).ptr(16, b"GPL\0");
    let filter = s.call("target: a socket filter without types", PROG_LOAD, &mut plain(1));
    let array = s.call("target: an array", MAP_CREATE, &mut map(ARRAY, 4, 8, 2, 0));
    for ty in [1u32, 2, 6, 26] {
        // fentry, for the type that has it.
        let attach = if ty == 26 { 24 } else { 0 };
        for (what, fd) in [("nothing", 999), ("stdin", 0), ("a filter", filter), ("an array", array), ("minus one", -1)]
        {
            for btf_id in [0u32, 1, 2, u32::MAX] {
                let attr = plain(ty).u32(68, attach).u32(108, btf_id).u32(112, fd as u32);
                if ty == 26 && fd == 0 {
                    continue; // the kernel's own types
                }
                s.try_call(&format!("target: type {ty} to {what}, function {btf_id}"), PROG_LOAD, &attr);
            }
        }
    }
    s.close(array);
    s.close(filter);
}

/// Types of BTF with which maps of each kind can be described: an integer (1), a structure of one (2), a variable (3), the
/// section it is in (4), a signed integer (5), an enumeration (6), and another name for the integer (7), four bytes each.
fn types(s: &mut Script<'_>) {
    let strings = b"\0u32\0a\0g\0.bss\0s\0e\0t\0";
    let name =
        |wanted: &[u8]| strings.windows(wanted.len() + 2).position(|w| &w[1..=wanted.len()] == wanted).unwrap() + 1;
    let kind = |kind: u32, members: u32| kind << 24 | members;
    let words = [
        [name(b"u32") as u32, kind(1, 0), 4, 32].as_slice(),
        &[name(b"s") as u32, kind(4, 1), 4, name(b"a") as u32, 1, 0],
        &[name(b"g") as u32, kind(14, 0), 1, 1],
        &[name(b".bss") as u32, kind(15, 1), 4, 3, 0, 4],
        &[name(b"u32") as u32, kind(1, 0), 4, 1 << 24 | 32],
        &[name(b"e") as u32, kind(6, 1), 4, name(b"a") as u32, 1],
        &[name(b"t") as u32, kind(8, 0), 1],
    ]
    .concat();
    let len = words.len() as u32 * 4;
    let head = [0xeb9f | 1 << 16, 24, 0, len, len, strings.len() as u32];
    let mut btf: Vec<u8> = head.iter().chain(&words).flat_map(|w| w.to_ne_bytes()).collect();
    btf.extend(strings);
    let fd = s.call("types: load", 18, &mut Attrs::new(40).ptr(0, &btf).u32(16, btf.len() as u32));
    for (ty, key, value, entries, flags) in [
        (HASH, 4, 4, 1, 0),
        (ARRAY, 4, 4, 1, 0),
        (ARRAY, 4, 4, 2, 0),
        (3, 4, 4, 1, 0),
        (4, 4, 4, 1, 0),
        (5, 4, 4, 1, 0),
        (PERCPU_ARRAY, 4, 4, 1, 0),
        (7, 4, 8, 1, 0),
        (8, 4, 4, 1, 0),
        (9, 4, 4, 1, 0),
        (LPM, 8, 4, 1, NO_PREALLOC),
        (14, 4, 4, 1, 0),
        (15, 4, 4, 1, 0),
        (16, 4, 4, 1, 0),
        (17, 4, 4, 1, 0),
        (18, 4, 4, 1, 0),
        (20, 4, 4, 1, 0),
        (22, 0, 4, 1, 0),
        (23, 0, 4, 1, 0),
        (25, 4, 4, 1, 0),
        (27, 0, 0, 4096, 0),
        (28, 4, 4, 0, NO_PREALLOC),
        (29, 4, 4, 0, NO_PREALLOC),
        (30, 0, 4, 1, 0),
        (31, 0, 0, 4096, 0),
        (32, 4, 4, 0, NO_PREALLOC),
    ] {
        for (k, v) in [(0, 1), (0, 2), (0, 4), (1, 1), (2, 1), (5, 1), (6, 1), (7, 1), (1, 2), (1, 4), (1, 0)] {
            let attr = map(ty, key, value, entries, flags).u32(48, fd as u32).u32(52, k).u32(56, v);
            s.try_call(&format!("types: kind {ty} of {entries} with {k} and {v}"), MAP_CREATE, &attr);
        }
    }
    s.close(fd);
}

/// Programs that are bound to the loopback device, or to one that there is not.
fn bound(s: &mut Script<'_>) {
    const BOUND: u32 = 1 << 6;
    const FRAGS: u32 = 1 << 5;
    let code = [0xb7u64 | 2 << 32, 0x95];
    for ty in [1u32, 3, 6] {
        for ifindex in [1u32, 99_999] {
            for flags in [0, BOUND, FRAGS, BOUND | FRAGS, BOUND | 1] {
                let attr = Attrs::new(168).u32(0, ty).u32(4, 2).ptr(8, &code).ptr(16, b"GPL\0");
                let name = format!("bound: type {ty} to {ifindex}, flags {flags:#x}");
                s.try_call(&name, PROG_LOAD, &attr.u32(44, flags).u32(64, ifindex));
            }
        }
    }
}

/// Every command on a map of every kind.
fn each_kind(s: &mut Script<'_>) {
    for (ty, key, value, entries, flags) in [
        (8, 4, 4, 2, 0),
        (LPM, 8, 8, 2, NO_PREALLOC),
        (14, 4, 4, 2, 0),
        (15, 4, 4, 2, 0),
        (15, 4, 8, 2, 0),
        (16, 4, 4, 2, 0),
        (17, 4, 4, 2, 0),
        (18, 4, 4, 2, 0),
        (18, 8, 8, 2, 0),
        (19, 8, 8, 0, 0),
        (20, 4, 4, 2, 0),
        (20, 4, 8, 2, 0),
        (21, 8, 8, 0, 0),
        (22, 0, 8, 2, 0),
        (23, 0, 8, 2, 0),
        (25, 4, 8, 2, 0),
        (30, 0, 8, 2, 0),
        (31, 0, 0, 4096, 0),
    ] {
        let name = format!("kind {ty} {key}/{value}");
        let fd = s.call(&format!("{name}: create"), MAP_CREATE, &mut map(ty, key, value, entries, flags));
        let keys = [0u64, 1, 32 | (0x0a << 32), 8 | (0x0b0a << 32), 33, u64::MAX];
        let (values, out) = ([u64::MAX; 8], room::<u64>(8));
        for round in 0..2 {
            for k in &keys {
                let at = if key == 0 { 0 } else { (&raw const *k) as u64 };
                let name = format!("{name} {k:x} round {round}");
                for flags in [0, 1, 2, 3, 8] {
                    let attr = Attrs::new(32).u32(0, fd as u32).u64(8, at).ptr(16, &values).u64(24, flags);
                    s.try_call(&format!("{name}: update, flags {flags}"), UPDATE, &attr);
                }
                let attr = Attrs::new(32).u32(0, fd as u32).u64(8, at).ptr(16, if ty == 30 { &values } else { &out });
                s.try_call(&format!("{name}: look up"), LOOKUP, &attr);
                s.try_call(&format!("{name}: next"), NEXT_KEY, &attr);
                if ty == LPM {
                    s.note(&format!("{name}: the next one"), &std::hint::black_box(&out)[0].to_ne_bytes());
                }
                if round == 1 {
                    s.try_call(&format!("{name}: take"), LOOKUP_DELETE, &attr);
                    s.try_call(&format!("{name}: delete"), DELETE, &Attrs::new(16).u32(0, fd as u32).u64(8, at));
                }
                s.try_call(&format!("{name}: look up with the lock"), LOOKUP, &attr.clone().u64(24, 4));
            }
        }
        let first = Attrs::new(32).u32(0, fd as u32).ptr(16, &out);
        s.try_call(&format!("{name}: first"), NEXT_KEY, &first);
        s.try_call(&format!("{name}: a key where there is none, or none"), LOOKUP, &first.clone().ptr(8, &keys));
        s.try_call(&format!("{name}: the same to update"), UPDATE, &first.clone().ptr(8, &keys).ptr(16, &values));
        for (what, cmd) in [
            ("look up", LOOKUP_BATCH),
            ("take", LOOKUP_DELETE_BATCH),
            ("update", UPDATE_BATCH),
            ("delete", DELETE_BATCH),
        ] {
            let attr = Attrs::new(56).ptr(8, &out).ptr(16, &keys).ptr(24, &values).u32(32, 1).u32(36, fd as u32);
            s.try_call(&format!("{name}: {what} a batch"), cmd, &attr);
        }
        let info = room::<u64>(13);
        let mut attr = Attrs::new(16).u32(0, fd as u32).u32(4, 104).ptr(8, &info);
        s.call(&format!("{name}: info"), INFO, &mut attr);
        // Type, sizes, entries and flags, but not the number.
        let info = std::hint::black_box(&info);
        s.note(&format!("{name}: info said"), &[info[0].to_ne_bytes(), info[1].to_ne_bytes()].concat()[..4]);
        s.note(&format!("{name}: info said more"), &[info[1].to_ne_bytes(), info[2].to_ne_bytes()].concat());
        s.try_call(&format!("{name}: freeze"), FREEZE, &Attrs::new(4).u32(0, fd as u32));
        s.try_call(&format!("{name}: update frozen"), UPDATE, &first.clone().ptr(16, &values));
        s.close(fd);
    }
}

/// Batches that go from key to key.
fn batches(s: &mut Script<'_>) {
    let cpus = s.kernel.cpus();
    for (ty, key_size, flags) in [(PERCPU_ARRAY, 4usize, 0), (LPM, 8, NO_PREALLOC)] {
        let name = format!("batch of kind {ty}");
        let fd = s.call(&format!("{name}: create"), MAP_CREATE, &mut map(ty, key_size as u32, 8, 4, flags));
        let mut keys = Vec::new();
        for n in 0u8..3 {
            let mut key = if ty == LPM { vec![8, 0, 0, 0, n, 0, 0, 0] } else { vec![n, 0, 0, 0] };
            keys.append(&mut key);
        }
        let each = if ty == PERCPU_ARRAY { cpus } else { 1 };
        let values: Vec<u64> = (0..3 * each as u64).collect();
        let (out_keys, out, position) = (room::<u8>(64), room::<u64>(8 * each), room::<u64>(4));
        for count in [1u32, 3] {
            let mut attr = Attrs::new(56).ptr(16, &keys).ptr(24, &values).u32(32, count).u32(36, fd as u32);
            s.call(&format!("{name}: update {count}"), UPDATE_BATCH, &mut attr);
            s.note(&format!("{name}: updated of {count}"), &attr.0[32..36]);
        }
        for (step, from) in [(0, 0), (1, position.as_ptr() as u64), (2, position.as_ptr() as u64)] {
            let mut attr = Attrs::new(56)
                .u64(0, from)
                .ptr(8, &position)
                .ptr(16, &out_keys)
                .ptr(24, &out)
                .u32(32, 2)
                .u32(36, fd as u32);
            s.call(&format!("{name}: look up, step {step}"), LOOKUP_BATCH, &mut attr);
            s.note(&format!("{name}: found in step {step}"), &attr.0[32..36]);
            s.note(&format!("{name}: keys of step {step}"), &std::hint::black_box(&out_keys)[..2 * key_size]);
        }
        let mut attr = Attrs::new(56).ptr(16, &keys).u32(32, 3).u32(36, fd as u32);
        s.call(&format!("{name}: delete"), DELETE_BATCH, &mut attr);
        s.note(&format!("{name}: deleted"), &attr.0[32..36]);
        s.close(fd);
    }
}

fn nested(s: &mut Script<'_>) {
    let array = s.call("nested: array", MAP_CREATE, &mut map(ARRAY, 4, 8, 2, 0));
    let like = s.call("nested: another one like it", MAP_CREATE, &mut map(ARRAY, 4, 8, 2, 0));
    let longer = s.call("nested: a longer one", MAP_CREATE, &mut map(ARRAY, 4, 8, 3, 0));
    let wider = s.call("nested: a wider one", MAP_CREATE, &mut map(ARRAY, 4, 16, 2, 0));
    let any = s.call("nested: one of any length", MAP_CREATE, &mut map(ARRAY, 4, 8, 2, INNER_MAP));
    let any_longer = s.call("nested: a longer one of any length", MAP_CREATE, &mut map(ARRAY, 4, 8, 9, INNER_MAP));
    let hash = s.call("nested: hash", MAP_CREATE, &mut map(HASH, 4, 8, 2, 0));
    let longer_hash = s.call("nested: a longer hash", MAP_CREATE, &mut map(HASH, 4, 8, 9, 0));
    let code = [0xb7u64, 0x95];
    let program = Attrs::new(168).u32(0, 1).u32(4, 2).ptr(8, &code).ptr(16, b"GPL\0");
    let prog = s.call("nested: a program", PROG_LOAD, &mut program.clone());
    let inner = [
        ("array", array),
        ("like", like),
        ("longer", longer),
        ("wider", wider),
        ("any", any),
        ("any longer", any_longer),
        ("hash", hash),
        ("longer hash", longer_hash),
        ("program", prog),
        ("not open", 999),
        ("stdin", 0),
        ("negative", -1),
    ];
    for ty in [ARRAY_OF_MAPS, HASH_OF_MAPS] {
        for (what, fd) in inner {
            let attr = map(ty, 4, 4, 2, 0).u32(20, fd as u32);
            s.try_call(&format!("nested: {ty} of {what}"), MAP_CREATE, &attr);
        }
        for (key, value, entries, flags) in [
            (4, 8, 2, 0),
            (8, 4, 2, 0),
            (4, 4, 0, 0),
            (0, 4, 2, 0),
            (4, 4, 2, 1),
            (4, 4, 2, 1 << 7),
            (4, 4, 2, 1 << 10),
        ] {
            let attr = map(ty, key, value, entries, flags).u32(20, array as u32);
            s.try_call(&format!("nested: {ty} {key}/{value}/{entries} flags {flags:#x}"), MAP_CREATE, &attr);
            let attr = map(ty, key, value, entries, flags).u32(20, 999);
            s.try_call(&format!("nested: {ty} {key}/{value}/{entries} flags {flags:#x} of nothing"), MAP_CREATE, &attr);
        }
        for (of, template) in [("array", array), ("any", any), ("hash", hash)] {
            let name = format!("nested: {ty} of {of}");
            let outer = s.call(&name, MAP_CREATE, &mut map(ty, 4, 4, 2, 0).u32(20, template as u32));
            let of_outer = map(ARRAY_OF_MAPS, 4, 4, 2, 0).u32(20, outer as u32);
            s.try_call(&format!("{name}: one of it"), MAP_CREATE, &of_outer);
            for key in [0u32, 1, 2] {
                let (keys, out) = ([key], room::<u32>(16));
                for (what, fd) in inner {
                    let value = [fd as u32];
                    let elem = Attrs::new(32).u32(0, outer as u32).ptr(8, &keys).ptr(16, &value);
                    for flags in [0, 1, 2, 3] {
                        s.try_call(
                            &format!("{name}: put {what} at {key}, flags {flags}"),
                            UPDATE,
                            &elem.clone().u64(24, flags),
                        );
                    }
                }
                let elem = Attrs::new(32).u32(0, outer as u32).ptr(8, &keys).ptr(16, &out);
                s.try_call(&format!("{name}: look up {key}"), LOOKUP, &elem);
                // The number that was found is that of the map that was put there last.
                let info = room::<u32>(26);
                let id_of = |s: &mut Script<'_>, fd: i64| {
                    let mut attr = Attrs::new(16).u32(0, fd as u32).u32(4, 104).ptr(8, &info);
                    s.call(&format!("{name}: info at {key}"), INFO, &mut attr);
                    std::hint::black_box(&info)[1]
                };
                let ids: Vec<u32> = inner[..8].iter().map(|(_, fd)| id_of(s, *fd)).collect();
                let found = ids.iter().position(|id| *id == std::hint::black_box(&out)[0]).map_or(99, |n| n as u8);
                s.note(&format!("{name}: found at {key}"), &[found]);
                // The order of a hash map is each one's own.
                if ty == ARRAY_OF_MAPS {
                    s.try_call(&format!("{name}: next of {key}"), NEXT_KEY, &elem);
                }
                s.try_call(&format!("{name}: take {key}"), LOOKUP_DELETE, &elem);
            }
            batch_of_maps(s, &name, outer, template);
            for key in [0u32, 1, 2] {
                let keys = [key];
                let attr = Attrs::new(16).u32(0, outer as u32).ptr(8, &keys);
                s.try_call(&format!("{name}: delete {key}"), DELETE, &attr);
                s.try_call(&format!("{name}: delete {key} again"), DELETE, &attr);
            }
            s.close(outer);
        }
    }
    for (_, fd) in &inner[..9] {
        s.close(*fd);
    }
}

fn batch_of_maps(s: &mut Script<'_>, name: &str, outer: i64, inner: i64) {
    let (keys, values) = ([0u32, 1, 2], [inner as u32; 3]);
    let (out_keys, out, position) = (room::<u32>(8), room::<u32>(8), room::<u64>(4));
    let mut attr = Attrs::new(56).ptr(16, &keys).ptr(24, &values).u32(32, 3).u32(36, outer as u32);
    s.call(&format!("{name}: update a batch"), UPDATE_BATCH, &mut attr);
    s.note(&format!("{name}: updated"), &attr.0[32..36]);
    for (what, cmd) in [("look up", LOOKUP_BATCH), ("take", LOOKUP_DELETE_BATCH)] {
        let mut attr =
            Attrs::new(56).ptr(8, &position).ptr(16, &out_keys).ptr(24, &out).u32(32, 8).u32(36, outer as u32);
        s.call(&format!("{name}: {what} a batch"), cmd, &mut attr);
        s.note(&format!("{name}: {what}, number"), &attr.0[32..36]);
    }
    let mut attr = Attrs::new(56).ptr(16, &keys).u32(32, 1).u32(36, outer as u32);
    s.call(&format!("{name}: delete a batch"), DELETE_BATCH, &mut attr);
    s.note(&format!("{name}: deleted"), &attr.0[32..36]);
}

/// Which kinds may be inner maps.
fn inner_kinds(s: &mut Script<'_>) {
    for (ty, key, value, entries, flags) in [
        (1, 4, 8, 2, 0),
        (3, 4, 4, 2, 0),
        (4, 4, 4, 2, 0),
        (5, 4, 8, 2, 0),
        (6, 4, 8, 2, 0),
        (7, 4, 64, 2, 0),
        (8, 4, 4, 2, 0),
        (9, 4, 8, 2, 0),
        (10, 4, 8, 2, 0),
        (11, 8, 8, 2, NO_PREALLOC),
        (14, 4, 4, 2, 0),
        (15, 4, 4, 2, 0),
        (16, 4, 4, 2, 0),
        (17, 4, 4, 2, 0),
        (19, 8, 8, 0, 0),
        (20, 4, 8, 2, 0),
        (21, 8, 8, 0, 0),
        (22, 0, 8, 2, 0),
        (27, 0, 0, 4096, 0),
        (30, 0, 8, 2, 0),
        (31, 0, 0, 4096, 0),
    ] {
        let fd = s.call(&format!("inner kind {ty}: create"), MAP_CREATE, &mut map(ty, key, value, entries, flags));
        for outer in [ARRAY_OF_MAPS, HASH_OF_MAPS] {
            let attr = map(outer, 4, 4, 2, 0).u32(20, fd as u32);
            s.try_call(&format!("inner kind {ty} in {outer}"), MAP_CREATE, &attr);
        }
        s.close(fd);
    }
}

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(code) | u64::from(dst | src << 4) << 8 | u64::from(off as u16) << 16 | u64::from(imm as u32) << 32
}

/// Programs that use an inner map, a queue, a stack and a longest prefix: what they return, and what is left.
fn programs(s: &mut Script<'_>) {
    let array = s.call("run: inner array", MAP_CREATE, &mut map(ARRAY, 4, 8, 1, 0));
    let outer = s.call("run: outer", MAP_CREATE, &mut map(ARRAY_OF_MAPS, 4, 4, 2, 0).u32(20, array as u32));
    let outer_hash = s.call("run: outer hash", MAP_CREATE, &mut map(HASH_OF_MAPS, 4, 4, 2, 0).u32(20, array as u32));
    for (name, outer) in [("array", outer), ("hash", outer_hash)] {
        // r0 = look up 0 in what a look-up of 0 gave; += 5; returned. 1 without an inner map.
        let code = [
            insn(0x62, 10, 0, -4, 0),
            insn(0x18, 1, 1, 0, outer as i32),
            0,
            insn(0xbf, 2, 10, 0, 0),
            insn(0x07, 2, 0, 0, -4),
            insn(0x85, 0, 0, 0, 1),
            insn(0x55, 0, 0, 2, 0),
            insn(0xb7, 0, 0, 0, 1),
            insn(0x95, 0, 0, 0, 0),
            insn(0xbf, 1, 0, 0, 0),
            insn(0xbf, 2, 10, 0, 0),
            insn(0x07, 2, 0, 0, -4),
            insn(0x85, 0, 0, 0, 1),
            insn(0x55, 0, 0, 2, 0),
            insn(0xb7, 0, 0, 0, 2),
            insn(0x95, 0, 0, 0, 0),
            insn(0x61, 1, 0, 0, 0),
            insn(0x07, 1, 0, 0, 5),
            insn(0x63, 0, 1, 0, 0),
            insn(0xbf, 0, 1, 0, 0),
            insn(0x95, 0, 0, 0, 0),
        ];
        let prog = load(s, &format!("run: {name} of maps"), &code);
        run_it(s, &format!("run: {name} of maps, empty"), prog);
        let (keys, value) = ([0u32], [array as u32]);
        let attr = Attrs::new(32).u32(0, outer as u32).ptr(8, &keys).ptr(16, &value);
        s.try_call(&format!("run: put into the {name}"), UPDATE, &attr);
        run_it(s, &format!("run: {name} of maps"), prog);
        run_it(s, &format!("run: {name} of maps again"), prog);
        s.try_call(&format!("run: out of the {name}"), DELETE, &Attrs::new(16).u32(0, outer as u32).ptr(8, &keys));
        run_it(s, &format!("run: {name} of maps, emptied"), prog);
    }
    for ty in [22, 23] {
        let fd = s.call(&format!("run: kind {ty}"), MAP_CREATE, &mut map(ty, 0, 8, 2, 0));
        for value in [7i32, 8, 9] {
            let code = [
                insn(0x7a, 10, 0, -8, value),
                insn(0x18, 1, 1, 0, fd as i32),
                0,
                insn(0xbf, 2, 10, 0, 0),
                insn(0x07, 2, 0, 0, -8),
                insn(0xb7, 3, 0, 0, 0),
                insn(0x85, 0, 0, 0, 87),
                insn(0x95, 0, 0, 0, 0),
            ];
            let prog = load(s, &format!("run: push {value} to {ty}"), &code);
            run_it(s, &format!("run: push {value} to {ty}"), prog);
        }
        for (helper, name) in [(89, "peek"), (88, "pop"), (88, "pop once more"), (88, "pop of none")] {
            let code = [
                insn(0x7a, 10, 0, -8, 55),
                insn(0x18, 1, 1, 0, fd as i32),
                0,
                insn(0xbf, 2, 10, 0, 0),
                insn(0x07, 2, 0, 0, -8),
                insn(0x85, 0, 0, 0, helper),
                insn(0x79, 1, 10, -8, 0),
                insn(0x0f, 0, 1, 0, 0),
                insn(0x95, 0, 0, 0, 0),
            ];
            let prog = load(s, &format!("run: {name} of {ty}"), &code);
            run_it(s, &format!("run: {name} of {ty}"), prog);
        }
        s.close(fd);
    }
}

fn load(s: &mut Script<'_>, name: &str, code: &[u64]) -> i64 {
    let attr = Attrs::new(168).u32(0, 1).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0");
    s.call(&format!("{name}: load"), PROG_LOAD, &mut attr.clone())
}

fn run_it(s: &mut Script<'_>, name: &str, prog: i64) {
    let packet = [0u8; 64];
    let mut attr = Attrs::new(76).u32(0, prog as u32).u32(8, 64).ptr(16, &packet).u32(32, 1);
    s.call(name, TEST_RUN, &mut attr);
    s.note(&format!("{name}: returned"), &attr.0[4..8]);
}
