//! Programs, their types, and the calls that load, run and attach them.

#![allow(dead_code, reason = "shared by several tests, none of which uses all of it")]

use skep_ebpf::Insn;
use skep_ebpf::asm::assemble;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Linkage, Param};
use skep_ebpf::insn::pseudo;

use crate::kernel::Kernel;
use crate::script::{Attrs, Script};

pub const MAP_CREATE: u32 = 0;
pub const MAP_LOOKUP: u32 = 1;
pub const MAP_UPDATE: u32 = 2;
pub const MAP_DELETE: u32 = 3;
pub const PROG_LOAD: u32 = 5;
pub const OBJ_PIN: u32 = 6;
pub const PROG_ATTACH: u32 = 8;
pub const TEST_RUN: u32 = 10;
pub const PROG_BY_ID: u32 = 13;
pub const INFO: u32 = 15;
pub const RAW_OPEN: u32 = 17;
pub const BTF_LOAD: u32 = 18;
pub const LINK_CREATE: u32 = 28;
pub const LINK_UPDATE: u32 = 29;
pub const ENABLE_STATS: u32 = 32;
pub const LINK_DETACH: u32 = 34;

pub const KPROBE: u32 = 2;
pub const SCHED_CLS: u32 = 3;
pub const XDP: u32 = 6;
pub const SOCK_ADDR: u32 = 18;
pub const TRACING: u32 = 26;
pub const EXT: u32 = 28;
pub const LSM: u32 = 29;
pub const SYSCALL: u32 = 31;

pub const CONNECT4: u32 = 10;
pub const RAW_TP: u32 = 23;
pub const FENTRY: u32 = 24;
pub const FEXIT: u32 = 25;
pub const MODIFY_RETURN: u32 = 26;
pub const LSM_MAC: u32 = 27;

pub const SLEEPABLE: u32 = 1 << 4;

/// A function: name, parameters, result, and whether it is global. `i` is `int`, `u` unsigned, `l` long, `p` a pointer to
/// `int`, `s` one to the context of traffic control, `x` to that of XDP, `a` to that of socket addresses, `v` nothing.
pub type Function = (&'static str, &'static str, char, bool);

/// The id of the type of function `n`.
pub fn type_of(n: u32) -> u32 {
    FIRST + 2 * n + 1
}

/// The id of `int`.
pub const INT: u32 = 1;
/// The id of the first function's prototype.
const FIRST: u32 = 11;

/// The types of these functions.
pub fn types(functions: &[Function]) -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let unsigned = b.int("unsigned int", 4, 0);
    let long = b.int("long", 8, 1);
    let int_pointer = b.add("", &Kind::Ptr { ty: int });
    let mut context = |name: &str| {
        let id = b.add(name, &Kind::Struct(Composite { size: 4, members: Box::new([]) }));
        b.add("", &Kind::Ptr { ty: id })
    };
    let (skb, xdp, addr) = (context("__sk_buff"), context("xdp_md"), context("bpf_sock_addr"));
    let by_letter = |letter| match letter {
        'i' => int,
        'u' => unsigned,
        'l' => long,
        'p' => int_pointer,
        's' => skb,
        'x' => xdp,
        'a' => addr,
        _ => 0,
    };
    for (name, params, ret, global) in functions {
        let params = params.chars().map(|letter| Param { name_off: 1, ty: by_letter(letter) }).collect();
        let proto = b.add("", &Kind::FuncProto { ret: by_letter(*ret), params });
        let linkage = if *global { Linkage::Global } else { Linkage::Static };
        b.add(name, &Kind::Func { proto, linkage });
    }
    b.finish()
}

/// Puts distances for the labels in `subprog[label]`, which the assembler has not.
fn name_functions(text: &str) -> String {
    let mut slot = 0;
    let slots: Vec<i64> = (text.lines())
        .map(|line| {
            let wide = line.contains("map[") || line.contains("subprog[") || line.ends_with("ll");
            let at = slot;
            slot += if line.ends_with(':') { 0 } else { 1 + i64::from(wide) };
            at
        })
        .collect();
    let place = |label: &str| text.lines().position(|l| l.strip_suffix(':') == Some(label)).map(|n| slots[n]);
    let mut out = String::new();
    for (line, at) in text.lines().zip(&slots) {
        let label = line.split_once("subprog[").and_then(|(_, l)| l.strip_suffix(']'));
        match label.and_then(|l| Some((l, place(l)?))) {
            Some((label, to)) => out += &line.replace(label, &(to - at - 1).to_string()),
            None => out += line,
        }
        out.push('\n');
    }
    out
}

/// A program to load.
#[derive(Clone)]
pub struct Program<'a> {
    pub ty: u32,
    pub attach: u32,
    /// Functions in the order of the text.
    pub functions: &'a [Function],
    /// Functions that only the types have.
    pub absent: &'a [Function],
    pub text: String,
    pub flags: u32,
    pub license: &'static [u8],
    pub target: (i64, u32),
    pub types: bool,
    pub func_info: bool,
}

impl Program<'_> {
    pub fn new<'a>(ty: u32, attach: u32, functions: &'a [Function], text: &str) -> Program<'a> {
        Program {
            ty,
            attach,
            functions,
            absent: &[],
            text: text.into(),
            flags: 0,
            license: b"GPL\0",
            target: (0, 0),
            types: true,
            func_info: true,
        }
    }

    /// For a function of another program, or of the kernel.
    pub fn on(mut self, fd: i64, type_id: u32) -> Self {
        self.target = (fd, type_id);
        self
    }

    /// Loads it; the answer is noted.
    pub fn load(&self, s: &mut Script<'_>, name: &str) -> i64 {
        let insns = assemble(&name_functions(&self.text)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut starts = vec![0];
        let named = |i: &Insn| i.is_ld_imm64() && i.src() == pseudo::FUNC;
        let calls = insns.iter().enumerate().filter(|(_, i)| i.is_subprog_call() || named(i));
        starts.extend(calls.map(|(at, i)| (at as i64 + 1 + i64::from(i.imm)) as u32));
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), self.functions.len(), "{name}: functions of the text");
        let info: Vec<u32> = starts.iter().zip(0..).flat_map(|(at, n)| [*at, type_of(n)]).collect();
        let code: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let blob = types(&self.functions.iter().chain(self.absent).copied().collect::<Vec<_>>());
        let btf = if self.types {
            let mut attr = Attrs::new(32).ptr(0, &blob).u32(16, blob.len() as u32);
            let fd = s.kernel.bpf(BTF_LOAD, &mut attr.0);
            assert!(fd >= 0, "{name}: types: {fd}");
            fd
        } else {
            -1
        };
        let mut attr = Attrs::new(144)
            .u32(0, self.ty)
            .u32(4, insns.len() as u32)
            .ptr(8, &code)
            .ptr(16, self.license)
            .u32(44, self.flags)
            .u32(68, self.attach)
            .u32(108, self.target.1)
            .u32(112, self.target.0 as u32);
        if self.types {
            attr = attr.u32(72, btf as u32);
        }
        if self.types && self.func_info {
            attr = attr.u32(76, 8).ptr(80, &info).u32(88, starts.len() as u32);
        }
        // What it says is for those who look into a difference.
        let mut log = vec![0u8; 65536];
        if std::env::var_os("SKEP_LOG").is_some() {
            attr = attr.u32(24, 1).u32(28, log.len() as u32).u64(32, log.as_mut_ptr() as u64);
        }
        let fd = s.call(name, PROG_LOAD, &mut attr);
        if fd < 0 && log[0] != 0 {
            println!("{name}: {}", String::from_utf8_lossy(&log).trim_end_matches('\0'));
        }
        if btf >= 0 {
            s.kernel.close(btf);
        }
        fd
    }

    /// Loads it and closes it again.
    pub fn try_load(&self, s: &mut Script<'_>, name: &str) {
        let fd = self.load(s, name);
        if fd >= 0 {
            s.close(fd);
        }
    }
}

/// Runs a program on an empty packet; what it returned is noted.
pub fn runs(s: &mut Script<'_>, name: &str, fd: i64) -> i64 {
    let data = [0u8; 64];
    let mut attr = Attrs::new(80).u32(0, fd as u32).u32(8, data.len() as u32).ptr(16, &data);
    let r = s.kernel.bpf(TEST_RUN, &mut attr.0);
    let retval = u32::from_ne_bytes(attr.0[4..8].try_into().expect("four bytes"));
    s.answered(name, if r < 0 { r } else { i64::from(retval) }, false)
}

/// `BPF_LINK_CREATE` on a function.
pub fn link(s: &mut Script<'_>, name: &str, prog: i64, target: i64, type_id: u32, cookie: u64) -> i64 {
    link_as(s, name, prog, target, type_id, cookie, 0, 0)
}

/// As [`link`], with attach type and flags.
#[allow(clippy::too_many_arguments, reason = "the call has as many")]
pub fn link_as(
    s: &mut Script<'_>,
    name: &str,
    prog: i64,
    target: i64,
    type_id: u32,
    cookie: u64,
    attach: u32,
    flags: u32,
) -> i64 {
    let attr = Attrs::new(64).u32(0, prog as u32).u32(4, target as u32).u32(8, attach).u32(12, flags);
    s.call(name, LINK_CREATE, &mut attr.u32(16, type_id).u64(24, cookie))
}

/// `BPF_RAW_TRACEPOINT_OPEN`: the function that the program was loaded for.
pub fn open(s: &mut Script<'_>, name: &str, prog: i64) -> i64 {
    s.call(name, RAW_OPEN, &mut Attrs::new(16).u32(8, prog as u32))
}

/// Bytes of what an object tells of itself.
pub fn info(kernel: &dyn Kernel, fd: i64, len: usize) -> Vec<u8> {
    let mut told = vec![0u8; len];
    let mut attr = Attrs::new(16).u32(0, fd as u32).u32(4, len as u32).u64(8, told.as_mut_ptr() as u64);
    let r = kernel.bpf(INFO, &mut attr.0);
    assert!(r >= 0, "information: {r}");
    told
}

/// A 32-bit field of it.
pub fn field(info: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(info[at..at + 4].try_into().expect("four bytes"))
}

/// A map; the answer is noted.
pub fn map(s: &mut Script<'_>, name: &str, ty: u32, value: u32, entries: u32) -> i64 {
    s.call(name, MAP_CREATE, &mut Attrs::new(72).u32(0, ty).u32(4, 4).u32(8, value).u32(12, entries))
}

/// 64-bit words in the value of [`words`]' arrays.
pub const WORDS: usize = 8;

/// The first words of an array's only value, noted; all of them are set to zero.
pub fn words(s: &mut Script<'_>, name: &str, fd: i64, count: usize) {
    let (key, mut value) = ([0u32], [0u64; WORDS]);
    let mut attr = Attrs::new(32).u32(0, fd as u32).ptr(8, &key).u64(16, value.as_mut_ptr() as u64);
    let r = s.kernel.bpf(MAP_LOOKUP, &mut attr.0);
    assert!(r >= 0, "{name}: {r}");
    for (n, word) in value.iter().take(count).enumerate() {
        s.answered(&format!("{name}, word {n}"), (*word as i64).max(-4095), false);
    }
    let zeros = [0u64; WORDS];
    let mut attr = Attrs::new(32).u32(0, fd as u32).ptr(8, &key).ptr(16, &zeros);
    s.kernel.bpf(MAP_UPDATE, &mut attr.0);
}

/// `bpf(MAP_UPDATE_ELEM)` of a prog array.
pub fn put(s: &mut Script<'_>, name: &str, array: i64, index: u32, prog: i64) {
    let (key, value) = ([index], [prog as u32]);
    s.call(name, MAP_UPDATE, &mut Attrs::new(32).u32(0, array as u32).ptr(8, &key).ptr(16, &value));
}

/// Takes a program out of a prog array.
pub fn take(s: &mut Script<'_>, name: &str, array: i64, index: u32) {
    let key = [index];
    s.call(name, MAP_DELETE, &mut Attrs::new(32).u32(0, array as u32).ptr(8, &key));
}

/// The kernel's type of that name and kind (`FUNC` 12, `TYPEDEF` 8); 1 where there are no types.
pub fn kernel_type(name: &str, function: bool) -> u32 {
    let parsed = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|b| skep_ebpf::btf::Btf::parse(&b).ok());
    let found = parsed.and_then(|btf| {
        btf.find(name, |k| if function { matches!(k, Kind::Func { .. }) } else { matches!(k, Kind::Typedef { .. }) })
    });
    found.unwrap_or(1)
}
