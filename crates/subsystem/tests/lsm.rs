//! Programs on the hooks that `bpf(2)` itself calls: they see what is asked, and can veto it.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use skep_ebpf::Errno;
use skep_ebpf::asm::assemble;
use skep_ebpf::btf::{Btf, Kind};
use skep_jit::Engine;
use skep_subsystem::front::token::Delegation;
use skep_subsystem::front::{Alive, Caps, Client, Config};

use kernel::{Kernel, Ours, types};
use script::Attrs;

const MAP_CREATE: u32 = 0;
const LOOKUP: u32 = 1;
const PROG_LOAD: u32 = 5;
const MAP_BY_ID: u32 = 14;
const INFO: u32 = 15;
const RAW_OPEN: u32 = 17;
const LINK_CREATE: u32 = 28;
const TOKEN_CREATE: u32 = 36;
const TOKEN_FD: u32 = 1 << 16;
const LSM: u32 = 29;
const LSM_MAC: u32 = 27;

struct Setup {
    ours: Ours,
    types: std::sync::Arc<Btf>,
}

impl Setup {
    /// `None`, said aloud, where the kernel's types are not to be had.
    fn new(config: Config) -> Option<Setup> {
        let Some(types) = types() else {
            eprintln!("skipped: this kernel tells nobody its types");
            return None;
        };
        let ours = Ours::with(Config { slots: 4, kernel_btf: Some(types.clone()), ..config });
        Some(Setup { ours, types })
    }

    fn at(&self, of: &str, member: &str) -> u32 {
        let id = self.types.find(of, |k| matches!(k, Kind::Struct(_))).expect("a struct");
        let members = self.types.kind(id).and_then(Kind::composite).map(|c| c.members.clone()).unwrap_or_default();
        members.iter().find(|m| self.types.str_at(m.name_off) == Some(member)).expect("a member").bit_offset / 8
    }

    fn load(&self, hook: &str, text: &str) -> i64 {
        let on = self.types.find(&format!("bpf_lsm_{hook}"), |k| matches!(k, Kind::Func { .. })).unwrap_or(0);
        let code: Vec<u64> =
            assemble(text).expect("a program").iter().map(|i| u64::from_ne_bytes(i.to_bytes())).collect();
        let attr = Attrs::new(168).u32(0, LSM).u32(4, code.len() as u32).ptr(8, &code).ptr(16, b"GPL\0");
        let mut log = vec![0u8; 1 << 16];
        let attr = attr.u32(24, 1).u32(28, log.len() as u32).u64(32, log.as_mut_ptr() as u64);
        let fd = self.ours.bpf(PROG_LOAD, &mut attr.u32(68, LSM_MAC).u32(108, on).0);
        if fd < 0 {
            let end = log.iter().position(|b| *b == 0).unwrap_or(0);
            eprintln!("{hook}: {}", String::from_utf8_lossy(&log[..end]));
        }
        fd
    }

    /// Loads a program and puts it on its hook.
    fn hang(&self, hook: &str, text: &str) -> i64 {
        let prog = self.load(hook, text);
        assert!(prog >= 0, "{hook}: {prog}");
        let link = self.call(RAW_OPEN, Attrs::new(16).u32(8, prog as u32));
        assert!(link >= 0, "{hook}: {link}");
        self.ours.close(prog);
        link
    }

    fn call(&self, cmd: u32, attr: Attrs) -> i64 {
        self.ours.bpf(cmd, &mut attr.clone().0)
    }

    fn map(&self, name: &str) -> Attrs {
        Attrs::new(92).u32(0, 2).u32(4, 4).u32(8, 8).u32(12, 2).bytes(28, name.as_bytes())
    }
}

const fn no(errno: Errno) -> i64 {
    errno.neg()
}

/// A program that returns `-errno` if the 32-bit number at `at` of argument `n` is `value`.
fn deny(n: u32, at: u32, value: u32, errno: Errno) -> String {
    format!(
        "r6 = *(u64 *)(r1 +{})
         r1 = *(u32 *)(r6 +{at})
         w0 = 0
         if w1 != {value} goto pc+1
         r0 = -{}
         exit",
        n * 8,
        errno.0
    )
}

fn plain_program() -> ([u64; 2], Attrs) {
    let code = [0xb7u64, 0x95];
    (code, Attrs::new(168).u32(0, 1).u32(4, 2).ptr(16, b"GPL\0"))
}

#[test]
fn commands_maps_and_programs_are_vetoed() {
    let Some(s) = Setup::new(Config::default()) else { return };
    // The command is a number, the attributes are memory.
    let frees = s.hang("bpf", "r1 = *(u32 *)(r1 +0)\nw0 = 0\nif w1 != 22 goto pc+1\nr0 = -1\nexit");
    let map = s.call(MAP_CREATE, s.map("one"));
    assert!(map >= 0);
    assert_eq!(s.call(22, Attrs::new(4).u32(0, map as u32)), no(Errno::EPERM), "BPF_MAP_FREEZE");
    s.ours.close(frees);
    assert_eq!(s.call(22, Attrs::new(4).u32(0, map as u32)), 0, "the program has gone with its link");

    // Attributes: key_size is the second field of MAP_CREATE's.
    let keys = s.hang("bpf", &deny(1, 4, 12, Errno::EACCES));
    assert_eq!(s.call(MAP_CREATE, s.map("two").u32(0, 1).u32(4, 12)), no(Errno::EACCES));
    assert!(s.call(MAP_CREATE, s.map("two").u32(0, 1).u32(4, 8)) >= 0);
    s.ours.close(keys);

    // The map that is to be made, and one that is to be opened.
    let entries = s.hang("bpf_map_create", &deny(0, s.at("bpf_map", "max_entries"), 7, Errno::ENOSPC));
    let before = s.ours.subsystem.alive();
    assert_eq!(s.call(MAP_CREATE, s.map("three").u32(12, 7)), no(Errno::ENOSPC));
    assert_eq!(s.ours.subsystem.alive(), before);
    assert!(s.call(MAP_CREATE, s.map("three")) >= 0);
    s.ours.close(entries);
    let mut info = [0u32; 26];
    assert_eq!(s.call(INFO, Attrs::new(16).u32(0, map as u32).u32(4, 104).u64(8, info.as_mut_ptr() as u64)), 0);
    let id = info[1];
    let opens = s.hang("bpf_map", &deny(0, s.at("bpf_map", "id"), id, Errno::EPERM));
    assert_eq!(s.call(MAP_BY_ID, Attrs::new(12).u32(0, id)), no(Errno::EPERM));
    s.ours.close(opens);
    assert!(s.call(MAP_BY_ID, Attrs::new(12).u32(0, id)) >= 0);

    // Programs: the type, and through `aux` the attach type.
    let (code, attr) = plain_program();
    let types = s.hang("bpf_prog_load", &deny(0, s.at("bpf_prog", "type"), 1, Errno::EACCES));
    assert_eq!(s.call(PROG_LOAD, attr.clone().ptr(8, &code)), no(Errno::EACCES));
    s.ours.close(types);
    assert!(s.call(PROG_LOAD, attr.ptr(8, &code)) >= 0);
}

/// Fields of all sizes, with signs, and one behind a pointer that leads nowhere: both engines read the same.
#[test]
fn objects_are_read_alike_by_both_engines() {
    let answers = |engine: Engine| -> Option<Vec<i64>> {
        let s = Setup::new(Config { engine, ..Config::default() })?;
        let (entries, name, types) = (s.at("bpf_map", "max_entries"), s.at("bpf_map", "name"), s.at("bpf_map", "btf"));
        let text = format!(
            "r6 = *(u64 *)(r1 +0)
             r7 = *(u32 *)(r6 +{entries})
             r7 <<= 3
             r2 = *(u8 *)(r6 +{name})
             r7 ^= r2
             r6 += {name}
             r2 = *(s8 *)(r6 +1)
             r7 += r2
             r1 = *(u64 *)(r6 {:+})
             r3 = 5
             r3 = *(u32 *)(r1 +{})
             r7 += r3
             r7 &= 0xfff
             r0 = 0
             r0 -= r7
             exit",
            i64::from(types) - i64::from(name),
            s.at("btf", "data_size"),
        );
        let prog = s.load("bpf_map_create", &text);
        assert!(prog >= 0 && s.call(RAW_OPEN, Attrs::new(16).u32(8, prog as u32)) >= 0);
        let mut info = [0u32; 32];
        assert_eq!(s.call(INFO, Attrs::new(16).u32(0, prog as u32).u32(4, 128).u64(8, info.as_mut_ptr() as u64)), 0);
        assert_eq!(info[4] != 0, engine == Engine::Jit, "bytes of machine code");
        let names: [&[u8]; 4] = [b"a", b"zz", b"q_7", b"w.w"];
        Some(
            names
                .into_iter()
                .zip([1, 7, 100, 513])
                .map(|(name, entries)| {
                    s.call(MAP_CREATE, Attrs::new(92).u32(0, 2).u32(4, 4).u32(8, 8).u32(12, entries).bytes(28, name))
                })
                .collect(),
        )
    };
    let Some(read) = answers(Engine::Interpreter) else { return };
    let expected =
        |entries: i64, first: u8, second: u8| -((((entries << 3) ^ i64::from(first)) + i64::from(second)) & 0xfff);
    let all = [expected(1, b'a', 0), expected(7, b'z', b'z'), expected(100, b'q', b'_'), expected(513, b'w', b'.')];
    assert_eq!(read, all);
    assert_eq!(answers(Engine::Jit), Some(read));
}

#[test]
fn programs_are_attached_once_and_in_order() {
    let Some(s) = Setup::new(Config::default()) else { return };
    let first = s.load("bpf_map_create", "r0 = -11\nexit");
    let second = s.load("bpf_map_create", "r0 = -12\nexit");
    let link = |prog: i64| s.call(LINK_CREATE, Attrs::new(64).u32(0, prog as u32).u32(8, LSM_MAC));
    let one = link(first);
    assert!(one >= 0);
    assert_eq!(link(first), no(Errno::EBUSY));
    assert_eq!(s.call(RAW_OPEN, Attrs::new(16).u32(8, first as u32)), no(Errno::EBUSY));
    let two = link(second);
    assert_eq!(s.call(MAP_CREATE, s.map("a")), no(Errno(11)), "the first that says no decides");
    s.ours.close(one);
    assert_eq!(s.call(MAP_CREATE, s.map("a")), no(Errno(12)));
    let mut info = [0u32; 16];
    assert_eq!(s.call(INFO, Attrs::new(16).u32(0, two as u32).u32(4, 64).u64(8, info.as_mut_ptr() as u64)), 0);
    assert_eq!((info[0], info[4]), (2, LSM_MAC), "a link of tracing");
    s.ours.close(two);
    assert!(s.call(MAP_CREATE, s.map("a")) >= 0);
    assert!(link(first) >= 0, "a program can be attached again");
    let wrong = |attr: Attrs| s.call(LINK_CREATE, attr.u32(0, second as u32));
    assert_eq!(wrong(Attrs::new(64).u32(8, LSM_MAC).u32(4, 1)), no(Errno::EINVAL), "a target");
    assert_eq!(wrong(Attrs::new(64).u32(8, 24)), no(Errno::EINVAL), "fentry");
    assert_eq!(s.call(RAW_OPEN, Attrs::new(16).ptr(0, b"x\0").u32(8, second as u32)), no(Errno::EINVAL), "a name");
}

/// A hook that tells of something going counts in a map, and what it sees of it is its name.
#[test]
fn hooks_are_told_of_what_goes() {
    let Some(s) = Setup::new(Config::default()) else { return };
    let counts = s.call(MAP_CREATE, s.map("counts"));
    let name = s.at("bpf_map", "name");
    let text = format!(
        "r6 = *(u64 *)(r1 +0)
         r7 = *(u8 *)(r6 +{name})
         w1 = 0
         *(u32 *)(r10 -4) = r1
         r1 = map[fd:{counts}]
         r2 = r10
         r2 += -4
         call map_lookup_elem#1
         if r0 == 0 goto end
         r1 = *(u64 *)(r0 +0)
         r1 += r7
         *(u64 *)(r0 +0) = r1
        end:
         r0 = 0
         exit"
    );
    let link = s.hang("bpf_map_free", &text);
    let value = || {
        let (key, mut value) = ([0u32], 0u64);
        let attr = Attrs::new(32).u32(0, counts as u32).ptr(8, &key).u64(16, (&raw mut value) as u64);
        assert_eq!(s.call(LOOKUP, attr), 0);
        value
    };
    assert_eq!(value(), 0);
    let gone = s.call(MAP_CREATE, s.map("A"));
    s.ours.close(gone);
    assert_eq!(value(), u64::from(b'A'));
    // A map that was permitted, and could then not be made.
    assert_eq!(s.call(MAP_CREATE, s.map("B").u32(12, u32::MAX)), no(Errno::ENOMEM));
    let told = value();
    assert!(told == u64::from(b'A') || told == u64::from(b'A') + u64::from(b'B'), "{told}");
    s.ours.close(link);
}

#[test]
fn other_hooks_are_refused_by_name() {
    let Some(s) = Setup::new(Config::default()) else { return };
    assert_eq!(s.load("file_open", "r0 = 0\nexit"), no(Errno::ENOTSUPP));
    assert!(s.load("bpf_token_cmd", "r0 = 0\nexit") >= 0);
    let bare = Ours::new(2);
    drop(bare);
}

/// A client without capabilities does what its token permits, unless a program says no.
#[test]
fn tokens_give_rights() {
    let bit = |n: u32| 1u64 << n;
    let delegate = Delegation { commands: bit(MAP_CREATE) | bit(PROG_LOAD), maps: bit(9), progs: bit(2), attachs: 1 };
    let Some(mut s) = Setup::new(Config { delegate: Some(delegate), ..Config::default() }) else { return };
    let folder = s.ours.subsystem.open_folder(&s.ours.client, "/sys/fs/bpf").expect("the tree");
    let token = s.call(TOKEN_CREATE, Attrs::new(8).u32(4, folder as u32));
    assert!(token >= 0, "{token}");
    let mut info = [0u64; 4];
    assert_eq!(s.call(INFO, Attrs::new(16).u32(0, token as u32).u32(4, 32).u64(8, info.as_mut_ptr() as u64)), 0);
    assert_eq!(info, delegate.words());
    let quiet = s.hang("bpf_token_capable", "r1 = *(u32 *)(r1 +8)\nw0 = 0\nif w1 != 38 goto pc+1\nr0 = -1\nexit");
    s.ours.client = Client { caps: Caps::NONE, ..Client::own(s.ours.files.clone()) };
    let lru = |flags: u32| s.map("lru").u32(0, 9).u32(16, flags).u32(76, token as u32);
    assert_eq!(s.call(MAP_CREATE, lru(0)), no(Errno::EPERM));
    assert!(s.call(MAP_CREATE, lru(TOKEN_FD)) >= 0);
    assert_eq!(s.call(MAP_CREATE, lru(TOKEN_FD).u32(0, 11).u32(4, 8)), no(Errno::EINVAL), "a trie has flags");
    let trie = s.map("trie").u32(0, 11).u32(4, 8).u32(16, TOKEN_FD | 1).u32(76, token as u32);
    assert_eq!(s.call(MAP_CREATE, trie), no(Errno::EPERM), "the token is for LRU maps");
    let code = [0xb7u64, 0x95];
    let kprobe = Attrs::new(168).u32(0, 2).u32(4, 2).ptr(8, &code).ptr(16, b"GPL\0").u32(144, token as u32);
    assert_eq!(s.call(PROG_LOAD, kprobe.clone()), no(Errno::EPERM));
    assert_eq!(s.call(PROG_LOAD, kprobe.clone().u32(44, TOKEN_FD)), no(Errno::EPERM), "no CAP_PERFMON");
    s.ours.close(quiet);
    assert!(s.call(PROG_LOAD, kprobe.u32(44, TOKEN_FD)) >= 0);

    let none = Ours::with(Config { slots: 2, ..Config::default() });
    let folder = none.subsystem.open_folder(&none.client, "/sys/fs/bpf").expect("the tree");
    let create = |ours: &Ours, fd: i32| ours.bpf(TOKEN_CREATE, &mut Attrs::new(8).u32(4, fd as u32).0);
    assert_eq!(create(&none, folder), no(Errno::EOPNOTSUPP));
    let empty = Ours::with(Config { slots: 2, delegate: Some(Delegation::default()), ..Config::default() });
    let folder = empty.subsystem.open_folder(&empty.client, "/sys/fs/bpf").expect("the tree");
    assert_eq!(create(&empty, folder), no(Errno::ENOENT));
    for fd in [folder, 0] {
        empty.close(fd.into());
    }
    assert_eq!(empty.left(), (Alive::default(), 0));
}
