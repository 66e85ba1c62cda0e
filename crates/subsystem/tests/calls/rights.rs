//! Tokens, maps for one program alone, signatures, and what the digest of a map is.

use sha2::{Digest, Sha256};

use crate::script::{Attrs, Script};

const MAP_CREATE: u32 = 0;
const UPDATE: u32 = 2;
const PROG_LOAD: u32 = 5;
const INFO: u32 = 15;
const BTF_LOAD: u32 = 18;
const BTF_BY_ID: u32 = 19;
const FREEZE: u32 = 22;
const TOKEN_CREATE: u32 = 36;

const TOKEN_FD: u32 = 1 << 16;
const BAD: u64 = 8;

fn array() -> Attrs {
    Attrs::new(92).u32(0, 2).u32(4, 4).u32(8, 8).u32(12, 2)
}

fn program(ty: u32, code: &[u64]) -> Attrs {
    Attrs::new(168).u32(0, ty).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0")
}

/// All of it.
pub fn rights(s: &mut Script<'_>) {
    tokens(s);
    exclusive(s);
    signatures(s);
    digests(s);
}

fn tokens(s: &mut Script<'_>) {
    let map = s.call("token: a map", MAP_CREATE, &mut array());
    let code = [0xb7u64, 0x95];
    for (name, attr) in [
        ("nothing open", Attrs::new(8).u32(4, 999)),
        ("stdin", Attrs::new(8)),
        ("a map", Attrs::new(8).u32(4, map as u32)),
        ("flags", Attrs::new(8).u32(0, 1).u32(4, 999)),
        ("short", Attrs::new(4)),
        ("a tail", Attrs::new(16).u32(8, 1)),
    ] {
        s.try_call(&format!("token: create, {name}"), TOKEN_CREATE, &attr);
    }
    let btf = [0u32; 8];
    for (name, fd) in [("nothing open", 999u32), ("stdin", 0), ("a map", map as u32)] {
        s.try_call(&format!("token: map, {name}"), MAP_CREATE, &array().u32(16, TOKEN_FD).u32(76, fd));
        s.try_call(&format!("token: map without the flag, {name}"), MAP_CREATE, &array().u32(76, fd));
        let good = program(1, &code);
        s.try_call(&format!("token: program, {name}"), PROG_LOAD, &good.clone().u32(44, TOKEN_FD).u32(144, fd));
        s.try_call(&format!("token: program without the flag, {name}"), PROG_LOAD, &good.clone().u32(144, fd));
        let types = Attrs::new(40).ptr(0, &btf).u32(16, 32);
        s.try_call(&format!("token: types, {name}"), BTF_LOAD, &types.clone().u32(32, TOKEN_FD).u32(36, fd));
        s.try_call(&format!("token: types without the flag, {name}"), BTF_LOAD, &types.clone().u32(36, fd));
        let by_id = Attrs::new(16).u32(0, 0x7fff_0000).u32(12, fd);
        s.try_call(&format!("token: types by number, {name}"), BTF_BY_ID, &by_id.clone().u32(8, TOKEN_FD));
        s.try_call(&format!("token: types by number without the flag, {name}"), BTF_BY_ID, &by_id);
    }
    let wrong = array().u32(0, 99).u32(16, TOKEN_FD).u32(76, 999);
    s.try_call("token: map of no type", MAP_CREATE, &wrong);
    s.try_call("token: map of a wrong size", MAP_CREATE, &array().u32(4, 3).u32(16, TOKEN_FD).u32(76, 999));
    let long = program(1, &code).u32(4, 2_000_000).u32(44, TOKEN_FD).u32(144, 999);
    s.try_call("token: program that is too long", PROG_LOAD, &long);
}

fn exclusive(s: &mut Script<'_>) {
    // r0 = 0; exit: without maps the digest is that of the bytes.
    let with = |fd: i64| [0x1118u64 | (fd as u64) << 32, 0, 0xb7, 0x95];
    let mut plain: Vec<u8> = with(0).iter().flat_map(|w| w.to_ne_bytes()).collect();
    plain[1] = 0x11;
    let digest: [u8; 32] = Sha256::digest(&plain).into();
    let other = [7u8; 32];
    for (name, attr) in [
        ("no size", array().ptr(80, &digest)),
        ("no address", array().u32(88, 32)),
        ("a short size", array().ptr(80, &digest).u32(88, 16)),
        ("a long size", array().ptr(80, &digest).u32(88, 64)),
        ("a bad address", array().u64(80, BAD).u32(88, 32)),
        ("a bad address and type", array().u32(0, 99).u64(80, BAD).u32(88, 32)),
        ("a bad address and name", array().bytes(28, b"a b").u64(80, BAD).u32(88, 32)),
        ("good", array().ptr(80, &digest).u32(88, 32)),
    ] {
        s.try_call(&format!("exclusive: {name}"), MAP_CREATE, &attr);
    }
    let ours = s.call("exclusive: its own", MAP_CREATE, &mut array().ptr(80, &digest).u32(88, 32));
    let others = s.call("exclusive: another's", MAP_CREATE, &mut array().ptr(80, &other).u32(88, 32));
    for (name, fd) in [("its own", ours), ("another's", others)] {
        let code = with(fd);
        s.try_call(&format!("exclusive: load with {name}"), PROG_LOAD, &program(1, &code));
        let longer = [code[0], code[1], 0xb7, 0xb7, 0x95];
        s.try_call(&format!("exclusive: load another program with {name}"), PROG_LOAD, &program(1, &longer));
        let (fds, simple) = ([fd as u32], [0xb7u64, 0x95]);
        let bound = program(1, &simple).ptr(120, &fds).u32(148, 1);
        s.try_call(&format!("exclusive: bind {name}"), PROG_LOAD, &bound);
        let outer = Attrs::new(92).u32(0, 12).u32(4, 4).u32(8, 4).u32(12, 1).u32(20, fd as u32);
        s.try_call(&format!("exclusive: maps like {name}"), MAP_CREATE, &outer);
    }
    let model = s.call("exclusive: a model", MAP_CREATE, &mut array());
    let mut outer = Attrs::new(92).u32(0, 12).u32(4, 4).u32(8, 4).u32(12, 1).u32(20, model as u32);
    let outer = s.call("exclusive: an outer map", MAP_CREATE, &mut outer);
    let (key, inner) = ([0u32], [ours as u32]);
    s.try_call("exclusive: into a map", UPDATE, &Attrs::new(32).u32(0, outer as u32).ptr(8, &key).ptr(16, &inner));
}

fn signatures(s: &mut Script<'_>) {
    let code = [0xb7u64, 0x95];
    let bytes = [0u8; 64];
    let good = program(1, &code);
    for (name, attr) in [
        ("a size", good.clone().u32(160, 64)),
        ("a keyring", good.clone().u32(164, 1)),
        ("nothing behind it", good.clone().ptr(152, &bytes)),
        ("garbage", good.clone().ptr(152, &bytes).u32(160, 64)),
        ("a bad address", good.clone().u64(152, BAD).u32(160, 64)),
        ("garbage, secondary keys", good.clone().ptr(152, &bytes).u32(160, 64).u32(164, 1)),
        ("garbage, platform keys", good.clone().ptr(152, &bytes).u32(160, 64).u32(164, 2)),
        ("garbage, no such keys", good.clone().ptr(152, &bytes).u32(160, 64).u32(164, 12345)),
        ("garbage, session keys", good.clone().ptr(152, &bytes).u32(160, 64).u32(164, (-3i32) as u32)),
        ("a long one", good.clone().ptr(152, &bytes).u32(160, u32::MAX)),
        ("garbage and a bad program", program(1, &[0xffu64]).ptr(152, &bytes).u32(160, 64)),
        ("garbage and a bad name", good.clone().bytes(48, b"a b").ptr(152, &bytes).u32(160, 64)),
        ("garbage and a bad licence", good.clone().u64(16, BAD).ptr(152, &bytes).u32(160, 64)),
        ("garbage and no type", program(99, &code).ptr(152, &bytes).u32(160, 64)),
    ] {
        s.try_call(&format!("signature: {name}"), PROG_LOAD, &attr);
    }
}

fn digests(s: &mut Script<'_>) {
    let frozen = s.call("digest: an array", MAP_CREATE, &mut array());
    let (key, value) = ([1u32], [0x1234_5678_9abc_def0u64]);
    s.try_call("digest: set", UPDATE, &Attrs::new(32).u32(0, frozen as u32).ptr(8, &key).ptr(16, &value));
    let hash = s.call("digest: a hash", MAP_CREATE, &mut Attrs::new(92).u32(0, 1).u32(4, 4).u32(8, 8).u32(12, 2));
    let percpu = s.call("digest: a per-CPU array", MAP_CREATE, &mut array().u32(0, 6));
    let mut ask = |name: &str, fd: i64| {
        for (what, at, size) in
            [("good", true, 32u32), ("no size", true, 0), ("short", true, 16), ("no address", false, 32)]
        {
            let digest = std::hint::black_box([0u8; 32]);
            let info = Attrs::new(104).u64(88, if at { digest.as_ptr() as u64 } else { 0 }).u32(96, size);
            let mut attr = Attrs::new(16).u32(0, fd as u32).u32(4, 104).ptr(8, &info.0);
            s.call(&format!("digest: {name}, {what}"), INFO, &mut attr);
            let info = std::hint::black_box(info);
            s.note(&format!("digest: {name}, {what}: digest"), &std::hint::black_box(digest));
            s.note(&format!("digest: {name}, {what}: size"), &info.0[96..100]);
        }
    };
    ask("not frozen", frozen);
    ask("hash", hash);
    ask("per-CPU", percpu);
    s.try_call("digest: freeze", FREEZE, &Attrs::new(4).u32(0, frozen as u32));
    let mut ask = |name: &str, fd: i64| {
        let digest = std::hint::black_box([0u8; 32]);
        let info = Attrs::new(104).u64(88, digest.as_ptr() as u64).u32(96, 32);
        s.call(&format!("digest: {name}"), INFO, &mut Attrs::new(16).u32(0, fd as u32).u32(4, 104).ptr(8, &info.0));
        s.note(&format!("digest: {name}: digest"), &std::hint::black_box(digest));
    };
    ask("frozen", frozen);
}
