//! Each command with good attributes, then with each single field wrong, with other sizes, and with a tail.

use crate::script::{Attrs, Script};

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;
const NEXT_KEY: u32 = 4;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const TEST_RUN: u32 = 10;
const PROG_NEXT: u32 = 11;
const MAP_NEXT: u32 = 12;
const PROG_BY_ID: u32 = 13;
const MAP_BY_ID: u32 = 14;
const INFO: u32 = 15;
const BTF_LOAD: u32 = 18;
const BTF_BY_ID: u32 = 19;
const LOOKUP_DELETE: u32 = 21;
const FREEZE: u32 = 22;
const BTF_NEXT: u32 = 23;
const LOOKUP_BATCH: u32 = 24;
const LOOKUP_DELETE_BATCH: u32 = 25;
const UPDATE_BATCH: u32 = 26;
const DELETE_BATCH: u32 = 27;
const STATS: u32 = 32;
const BIND: u32 = 35;

/// An address where nothing is.
const BAD: u64 = 8;

/// The attributes with every 32-bit word of theirs, and each behind them, replaced by each of these.
fn each_field(s: &mut Script<'_>, name: &str, cmd: u32, good: &Attrs, values: &[u32]) {
    let words = (good.0.len() / 4 + 2).max(8);
    for word in 0..words {
        for value in values {
            let mut bytes = good.0.clone();
            bytes.resize(bytes.len().max(word * 4 + 4), 0);
            let attr = Attrs(bytes).u32(word * 4, *value);
            s.try_call(&format!("{name} word {word} = {value:#x}"), cmd, &attr);
        }
    }
}

/// Sizes shorter and longer than the kernel's, with zeros and with something behind.
fn sizes(s: &mut Script<'_>, name: &str, cmd: u32, good: &Attrs) {
    for len in [0, 4, 8, good.0.len().saturating_sub(4), 168, 172, 256, 4096, 4100] {
        let mut bytes = good.0.clone();
        bytes.resize(len, 0);
        s.try_call(&format!("{name} size {len}"), cmd, &Attrs(bytes));
    }
    for len in [172usize, 4096] {
        let mut bytes = good.0.clone();
        bytes.resize(len, 0);
        bytes[len - 1] = 1;
        s.try_call(&format!("{name} size {len} with a tail"), cmd, &Attrs(bytes));
    }
}

fn map(ty: u32, key: u32, value: u32, entries: u32, flags: u32) -> Attrs {
    Attrs::new(92).u32(0, ty).u32(4, key).u32(8, value).u32(12, entries).u32(16, flags)
}

/// `r0 = x; exit`.
fn returns(x: i32) -> Vec<u64> {
    let imm = (x as u32 as u64) << 32;
    vec![0xb7 | imm, 0x95]
}

fn program(ty: u32, code: &[u64], license: &[u8]) -> Attrs {
    Attrs::new(168).u32(0, ty).u32(4, code.len() as u32).ptr(8, code).ptr(16, license)
}

/// All of it.
pub fn run(s: &mut Script<'_>) {
    let unknown = Attrs::new(16);
    for cmd in [38, 39, 100, u32::MAX] {
        s.try_call(&format!("command {cmd}"), cmd, &unknown);
    }
    maps(s);
    elements(s);
    batches(s);
    programs(s);
    objects(s);
}

fn maps(s: &mut Script<'_>) {
    for ty in 0..=40 {
        for (key, value, entries) in [(4, 8, 2), (4, 4, 4), (0, 0, 4096), (0, 4, 4), (8, 8, 1)] {
            if matches!(ty, 17..=21 | 24 | 26 | 28 | 29 | 32 | 33) && value == 8 {
                // The kinds that hang on sockets, cgroups and tasks are in the ledger once.
                continue;
            }
            s.try_call(
                &format!("create type {ty} {key}/{value}/{entries}"),
                MAP_CREATE,
                &map(ty, key, value, entries, 0),
            );
        }
    }
    for ty in [1, 2, 3, 4, 5, 6, 7, 9, 10, 27] {
        for bit in 0..20 {
            let (key, value, entries) =
                if ty == 27 { (0, 0, 4096) } else { (4, if matches!(ty, 3 | 4) { 4 } else { 8 }, 4) };
            s.try_call(&format!("create type {ty} flag {bit}"), MAP_CREATE, &map(ty, key, value, entries, 1 << bit));
        }
    }
    let good = map(1, 4, 8, 4, 0);
    each_field(s, "create hash", MAP_CREATE, &good, &[0, 1, 0xffff_ffff]);
    sizes(s, "create hash", MAP_CREATE, &good);
    for name in ["ok", "with.dot", "with_1", "with space", "with-dash", "fifteen_letters", "sixteen__letters"] {
        let mut b = [0u8; 16];
        b[..name.len()].copy_from_slice(name.as_bytes());
        s.try_call(&format!("create hash named {name}"), MAP_CREATE, &good.clone().bytes(28, &b));
    }
    let mut b = [0u8; 16];
    (b[0], b[2]) = (b'a', b'b');
    s.try_call("create hash, a name that goes on behind its end", MAP_CREATE, &good.clone().bytes(28, &b));
}

fn elements(s: &mut Script<'_>) {
    let hash = s.call("create hash", MAP_CREATE, &mut map(1, 4, 8, 2, 0));
    let array = s.call("create array", MAP_CREATE, &mut map(2, 4, 8, 2, 0));
    let ring = s.call("create ring buffer", MAP_CREATE, &mut map(27, 0, 0, 4096, 0));
    let read_only = s.call("create read-only", MAP_CREATE, &mut map(1, 4, 8, 2, 1 << 3));
    let write_only = s.call("create write-only", MAP_CREATE, &mut map(1, 4, 8, 2, 1 << 4));
    let values: Vec<u64> = vec![7; 64];
    let mut out = vec![0u64; 64];
    for (name, fd) in [
        ("hash", hash),
        ("array", array),
        ("ring", ring),
        ("ro", read_only),
        ("wo", write_only),
        ("not open", 999),
        ("stdin", 0),
    ] {
        for key in [0u32, 1, 2] {
            let keys = [key];
            let elem = |to: *const u64| Attrs::new(32).u32(0, fd as u32).ptr(8, &keys).u64(16, to as u64);
            s.try_call(&format!("{name} look up {key}"), LOOKUP, &elem(out.as_ptr()));
            for flags in [0, 1, 2, 3, 4, 8] {
                s.try_call(
                    &format!("{name} update {key} flags {flags}"),
                    UPDATE,
                    &elem(values.as_ptr()).u64(24, flags),
                );
            }
            s.try_call(&format!("{name} look up {key} again"), LOOKUP, &elem(out.as_ptr()));
            s.note(&format!("{name} value {key}"), &out[0].to_ne_bytes());
            out[0] = 0;
            s.try_call(&format!("{name} next key of {key}"), NEXT_KEY, &elem(out.as_ptr()));
            s.try_call(&format!("{name} look up and delete {key}"), LOOKUP_DELETE, &elem(out.as_ptr()));
            s.try_call(&format!("{name} delete {key}"), DELETE, &Attrs::new(16).u32(0, fd as u32).ptr(8, &keys));
        }
        let nothing = Attrs::new(32).u32(0, fd as u32).u64(8, BAD).u64(16, BAD);
        for (what, cmd) in
            [("look up", LOOKUP), ("update", UPDATE), ("delete", DELETE), ("next", NEXT_KEY), ("take", LOOKUP_DELETE)]
        {
            s.try_call(&format!("{name} {what} at bad addresses"), cmd, &nothing);
        }
    }
    let keys = [0u32];
    let good = Attrs::new(32).u32(0, array as u32).ptr(8, &keys).ptr(16, &out);
    for (name, cmd) in
        [("look up", LOOKUP), ("update", UPDATE), ("delete", DELETE), ("next key", NEXT_KEY), ("take", LOOKUP_DELETE)]
    {
        each_field(s, name, cmd, &good, &[0xffff_ffff]);
        sizes(s, name, cmd, &good);
    }
    let one = s.call("create array to freeze", MAP_CREATE, &mut map(2, 4, 8, 1, 1 << 7));
    let freeze = Attrs::new(4).u32(0, one as u32);
    each_field(s, "freeze", FREEZE, &freeze, &[0, 0xffff_ffff]);
    s.try_call("freeze", FREEZE, &freeze);
    s.try_call("freeze again", FREEZE, &freeze);
    let elem = Attrs::new(32).u32(0, one as u32).ptr(8, &keys).ptr(16, &out);
    s.try_call("update frozen", UPDATE, &elem);
    s.try_call("look up frozen", LOOKUP, &elem);
    s.try_call("freeze ring", FREEZE, &Attrs::new(4).u32(0, ring as u32));
    s.try_call("freeze write-only", FREEZE, &Attrs::new(4).u32(0, write_only as u32));
    s.try_call("freeze read-only", FREEZE, &Attrs::new(4).u32(0, read_only as u32));
}

fn batches(s: &mut Script<'_>) {
    let hash = s.call("batch: create hash", MAP_CREATE, &mut map(1, 4, 8, 4, 0));
    let array = s.call("batch: create array", MAP_CREATE, &mut map(2, 4, 8, 4, 0));
    let ring = s.call("batch: create ring", MAP_CREATE, &mut map(27, 0, 0, 4096, 0));
    let keys = [0u32, 1, 2, 3];
    let values = [10u64, 11, 12, 13];
    let (out_keys, out_values, position) = ([0u32; 8], [0u64; 8], [0u64; 4]);
    for (name, fd) in [("hash", hash), ("array", array), ("ring", ring), ("not open", 999)] {
        let batch = |count: u32, k: *const u32, v: *const u64| {
            Attrs::new(56).u64(16, k as u64).u64(24, v as u64).u32(32, count).u32(36, fd as u32).ptr(8, &position)
        };
        for count in [0u32, 2, 4] {
            let mut attr = batch(count, keys.as_ptr(), values.as_ptr());
            s.call(&format!("batch {name}: update {count}"), UPDATE_BATCH, &mut attr);
            s.note(&format!("batch {name}: updated of {count}"), &attr.0[32..36]);
            let mut attr = batch(count, out_keys.as_ptr(), out_values.as_ptr());
            s.call(&format!("batch {name}: look up {count}"), LOOKUP_BATCH, &mut attr);
            let mut attr = batch(count, keys.as_ptr(), values.as_ptr());
            s.call(&format!("batch {name}: delete {count}"), DELETE_BATCH, &mut attr);
            s.note(&format!("batch {name}: deleted of {count}"), &attr.0[32..36]);
        }
        let refill = |s: &mut Script<'_>| {
            s.kernel.bpf(UPDATE_BATCH, &mut batch(4, keys.as_ptr(), values.as_ptr()).0);
        };
        let calls = [
            ("update", UPDATE_BATCH),
            ("look up", LOOKUP_BATCH),
            ("take", LOOKUP_DELETE_BATCH),
            ("delete", DELETE_BATCH),
        ];
        for (what, cmd) in calls {
            // Lookups write where updates read.
            let written = matches!(cmd, LOOKUP_BATCH | LOOKUP_DELETE_BATCH);
            let attr = if written {
                batch(4, out_keys.as_ptr(), out_values.as_ptr())
            } else {
                batch(4, keys.as_ptr(), values.as_ptr())
            };
            let mut tail = attr.0.clone();
            tail.resize(60, 1);
            let wrong = [
                ("element flags 8", attr.clone().u64(40, 8)),
                ("element flags 4", attr.clone().u64(40, 4)),
                ("flags 1", attr.clone().u64(48, 1)),
                ("bad keys", attr.clone().u64(16, BAD)),
                ("bad values", attr.clone().u64(24, BAD)),
                ("a tail", Attrs(tail)),
                ("nothing wrong", attr),
            ];
            for (case, attr) in wrong {
                refill(s);
                s.try_call(&format!("batch {name}: {what}, {case}"), cmd, &attr);
            }
        }
    }
}

fn programs(s: &mut Script<'_>) {
    let code = returns(2);
    let gpl = b"GPL\0";
    for ty in 0..=34 {
        s.try_call(&format!("load type {ty}"), PROG_LOAD, &program(ty, &code, gpl));
    }
    let good = program(1, &code, gpl);
    for word in 0..42 {
        if matches!(word, 2..=5 | 26..=30 | 32..=36) {
            // Addresses, and what needs more than a wrong word: CO-RE relocations, signatures, attach targets.
            continue;
        }
        for value in [1u32, 0xffff_ffff] {
            s.try_call(&format!("load word {word} = {value:#x}"), PROG_LOAD, &good.clone().u32(word * 4, value));
        }
    }
    sizes(s, "load", PROG_LOAD, &good);
    s.try_call("load without instructions", PROG_LOAD, &good.clone().u32(4, 0));
    s.try_call("load 1,000,001 instructions", PROG_LOAD, &good.clone().u32(4, 1_000_001));
    s.try_call("load instructions at a bad address", PROG_LOAD, &good.clone().u64(8, BAD));
    s.try_call("load licence at a bad address", PROG_LOAD, &good.clone().u64(16, BAD));
    let falls = vec![0xb7u64];
    s.try_call("load a program that runs off its end", PROG_LOAD, &program(1, &falls, gpl));
    let uninitialised = vec![0x95u64];
    s.try_call("load a program that returns nothing", PROG_LOAD, &program(1, &uninitialised, gpl));
    for level in [0u32, 1, 2, 4, 8, 16] {
        for size in [0u32, 1, 64, 65536] {
            let buffer = vec![0u8; 65536];
            let attr = good.clone().u32(24, level).u32(28, size);
            s.try_call(&format!("load log level {level} size {size} no buffer"), PROG_LOAD, &attr);
            if level == 0 || size == 0 {
                s.try_call(&format!("load log level {level} size {size}"), PROG_LOAD, &attr.ptr(32, &buffer));
            }
        }
    }
    for fd in [0u32, 1, 999] {
        let by_fd = vec![0x18u64 | 0x1 << 8 | 0x1 << 12 | (u64::from(fd) << 32), 0, 0xb7, 0x95];
        s.try_call(&format!("load a program with map {fd}"), PROG_LOAD, &program(1, &by_fd, gpl));
    }

    let prog = s.call("load a socket filter", PROG_LOAD, &mut good.clone());
    let packet = [0u8; 64];
    let out = [0u8; 256];
    let test = Attrs::new(76).u32(0, prog as u32).u32(8, 64).ptr(16, &packet);
    let mut answered = test.clone();
    s.call("test run", TEST_RUN, &mut answered);
    s.note("test run answered", &answered.0[4..8]);
    // Four billion rounds would take their time.
    for word in (0..21).filter(|w| !matches!(w, 4..=7)) {
        let mut attr = test.clone();
        attr.0.resize(84, 0);
        s.try_call(&format!("test run word {word} = 1"), TEST_RUN, &attr.u32(word * 4, 1));
    }
    for word in (0..21).filter(|w| !matches!(w, 4..=8)) {
        let mut attr = test.clone();
        attr.0.resize(84, 0);
        s.try_call(&format!("test run word {word} = all ones"), TEST_RUN, &attr.u32(word * 4, u32::MAX));
    }
    sizes(s, "test run", TEST_RUN, &test);
    for (size, room) in [(13u32, 0u32), (14, 14), (64, 14), (64, 256), (4096, 0)] {
        let attr = test.clone().u32(8, size).u32(12, room).ptr(24, &out);
        if size <= 64 {
            let mut attr = attr;
            s.call(&format!("test run {size} bytes, room {room}"), TEST_RUN, &mut attr);
            s.note(&format!("test run {size} bytes, room {room}: size"), &attr.0[12..16]);
        }
    }
    let map_fd = s.call("create a map to bind", MAP_CREATE, &mut map(2, 4, 8, 1, 0));
    let bind = Attrs::new(12).u32(0, prog as u32).u32(4, map_fd as u32);
    s.try_call("bind", BIND, &bind);
    s.try_call("bind again", BIND, &bind);
    each_field(s, "bind", BIND, &bind, &[1, 999, 0xffff_ffff]);
    s.try_call("bind a program as a map", BIND, &Attrs::new(12).u32(0, prog as u32).u32(4, prog as u32));
    let table = s.call("create a prog array", MAP_CREATE, &mut map(3, 4, 4, 2, 0));
    let kprobe = s.call("load a kprobe program", PROG_LOAD, &mut program(2, &code, gpl));
    let (keys, progs, others, maps, none) = ([0u32, 1, 2], [prog as u32], [kprobe as u32], [map_fd as u32], [999u32]);
    for key in &keys {
        let key = std::slice::from_ref(key);
        for (what, value) in
            [("a map", &maps), ("nothing open", &none), ("a program", &progs), ("another type", &others)]
        {
            let attr = Attrs::new(32).u32(0, table as u32).ptr(8, key).ptr(16, value);
            s.try_call(&format!("prog array {}: {what}", key[0]), UPDATE, &attr);
            s.try_call(&format!("prog array {}: {what}, flags 1", key[0]), UPDATE, &attr.u64(24, 1));
        }
        let got = [0u32; 2];
        let attr = Attrs::new(32).u32(0, table as u32).ptr(8, key).ptr(16, &got);
        s.try_call(&format!("prog array {}: look up", key[0]), LOOKUP, &attr);
        s.try_call(&format!("prog array {}: delete", key[0]), DELETE, &Attrs::new(16).u32(0, table as u32).ptr(8, key));
        s.try_call(&format!("prog array {}: look up again", key[0]), LOOKUP, &attr);
    }
}

fn objects(s: &mut Script<'_>) {
    let code = returns(0);
    let gpl = b"GPL\0";
    let map_fd = s.call("objects: create", MAP_CREATE, &mut map(1, 4, 8, 2, 0));
    let prog = s.call("objects: load", PROG_LOAD, &mut program(1, &code, gpl));
    for (name, fd, len) in [("map", map_fd, 104), ("prog", prog, 232), ("not open", 999, 64), ("stdin", 0, 64)] {
        let space = vec![0u8; 8192];
        for given in [0u32, 4, 40, len, len + 8, 4096, 4097] {
            let mut attr = Attrs::new(16).u32(0, fd as u32).u32(4, given).ptr(8, &space);
            s.call(&format!("info of {name}, {given} bytes"), INFO, &mut attr);
            s.note(&format!("info of {name}, {given} bytes: length"), &attr.0[4..8]);
        }
        let good = Attrs::new(16).u32(0, fd as u32).u32(4, 16).ptr(8, &space);
        each_field(s, &format!("info of {name}"), INFO, &good, &[0xffff_ffff]);
        s.try_call(&format!("info of {name} at a bad address"), INFO, &good.clone().u64(8, BAD));
        let mut dirty = space.clone();
        dirty[300] = 1;
        s.try_call(
            &format!("info of {name}, unknown part not zero"),
            INFO,
            &Attrs::new(16).u32(0, fd as u32).u32(4, 400).ptr(8, &dirty),
        );
    }
    let space = vec![0u8; 104];
    let mut attr = Attrs::new(16).u32(0, map_fd as u32).u32(4, 104).ptr(8, &space);
    s.call("info of map", INFO, &mut attr);
    // All but the number.
    s.note("info of map: type", &space[..4]);
    s.note("info of map: the rest", &space[8..]);
    let id = u32::from_ne_bytes([space[4], space[5], space[6], space[7]]);
    s.try_call("map by id", MAP_BY_ID, &Attrs::new(12).u32(0, id));
    for flags in [1u32, 8, 16, 24, 1 << 20] {
        s.try_call(&format!("map by id, flags {flags}"), MAP_BY_ID, &Attrs::new(12).u32(0, id).u32(8, flags));
    }
    let space = vec![0u8; 232];
    let mut attr = Attrs::new(16).u32(0, prog as u32).u32(4, 232).ptr(8, &space);
    s.call("info of prog", INFO, &mut attr);
    s.note("info of prog: type", &space[..4]);
    s.note("info of prog: tag", &space[8..16]);
    s.note("info of prog: xlated length", &space[20..24]);
    s.note("info of prog: user and maps", &space[48..64]);
    s.note("info of prog: name to namespace", &space[64..88]);
    s.note("info of prog: types and records", &space[128..160]);
    let id = u32::from_ne_bytes([space[4], space[5], space[6], space[7]]);
    s.try_call("prog by id", PROG_BY_ID, &Attrs::new(4).u32(0, id));
    for (name, cmd) in [("prog", PROG_BY_ID), ("map", MAP_BY_ID), ("btf", BTF_BY_ID)] {
        for id in [0u32, 0x7fff_ffff, 0xffff_ffff] {
            s.try_call(&format!("{name} by id {id:#x}"), cmd, &Attrs::new(16).u32(0, id));
        }
        sizes(s, &format!("{name} by id"), cmd, &Attrs::new(4).u32(0, 0x7fff_ffff));
        each_field(s, &format!("{name} by id"), cmd, &Attrs::new(4).u32(0, 0x7fff_ffff), &[0xffff_ffff]);
    }
    for (name, cmd) in [("prog", PROG_NEXT), ("map", MAP_NEXT), ("btf", BTF_NEXT)] {
        for id in [0x7fff_fffeu32, 0x7fff_ffff, 0xffff_ffff] {
            s.try_call(&format!("next {name} behind {id:#x}"), cmd, &Attrs::new(8).u32(0, id));
        }
        each_field(s, &format!("next {name}"), cmd, &Attrs::new(8).u32(0, 0x7fff_fffe), &[0xffff_ffff]);
    }
    each_field(s, "statistics", STATS, &Attrs::new(4), &[0, 1, 0xffff_ffff]);
    let path = b"/sys/fs/bpf/none\0";
    let good = Attrs::new(20).ptr(0, path);
    s.try_call("get a pin that is not there", OBJ_GET, &good);
    s.try_call("get a pin at a bad address", OBJ_GET, &good.clone().u64(0, BAD));
    each_field(s, "get a pin", OBJ_GET, &good, &[0xffff_ffff]);
    let pin = Attrs::new(20).ptr(0, path).u32(8, 999);
    s.try_call("pin what is not open", OBJ_PIN, &pin);
    s.try_call("pin stdin", OBJ_PIN, &pin.clone().u32(8, 0));
    each_field(s, "pin", OBJ_PIN, &pin, &[0xffff_ffff]);
    let junk = [0u8; 64];
    let load = Attrs::new(40).ptr(0, &junk).u32(16, 64);
    s.try_call("load types that are none", BTF_LOAD, &load);
    each_field(s, "load types", BTF_LOAD, &load, &[0xffff_ffff]);
    s.try_call("load types at a bad address", BTF_LOAD, &load.clone().u64(0, BAD));
    s.try_call("load no types", BTF_LOAD, &load.clone().u32(16, 0));
    s.close(map_fd);
    s.try_call("map by id after its close", MAP_BY_ID, &Attrs::new(12).u32(0, 0x7fff_0000));
}
