//! Every context access and every helper with every kind of argument, against the live kernel.
//!
//! Needs `bpf(2)`; skipped without.

mod kernel;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::helper::{Access, Arg, HELPERS, Helper};
use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, map_flags};
use skep_verifier::{KernelProfile, Options, Outcome, verify};

const TYPES: [ProgType; 7] = [
    ProgType::SocketFilter,
    ProgType::Kprobe,
    ProgType::SchedCls,
    ProgType::Tracepoint,
    ProgType::Xdp,
    ProgType::PerfEvent,
    ProgType::RawTracepoint,
];

/// Counts agreement; collects the rest.
#[derive(Default)]
struct Score {
    agree: u64,
    accepted: u64,
    unsupported: u64,
    wrong_accepts: Vec<String>,
    wrong_rejects: BTreeMap<String, u64>,
}

impl Score {
    fn judge(&mut self, program: &Program, maps: &[OwnedFd], what: impl Fn() -> String) {
        let profile = KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
        let options = Options { profile, ..Options::default() };
        let Some(answer) = kernel::load_with(program, maps, 0) else { return };
        match (verify(program.clone(), &options), answer.errno) {
            (Ok(_), 0) => {
                self.agree += 1;
                self.accepted += 1;
            }
            (Ok(_), _) => {
                let log = kernel::load_with(program, maps, 1).map_or(String::new(), |a| a.log);
                let why =
                    log.lines().rev().find(|l| !l.starts_with("processed") && !l.is_empty()).unwrap_or("").to_owned();
                // Refused after verification, as maps have owners.
                if why.is_empty() {
                    self.agree += 1;
                    return;
                }
                self.wrong_accepts.push(format!("{}: {} {why}", what(), answer.errno));
            }
            (Err(r), _) if r.outcome == Outcome::Unsupported => self.unsupported += 1,
            // The kernel's bound check lets these through, in front of the record; they are not safe to run.
            (Err(r), 0) if program.prog_type == ProgType::Tracepoint && r.reason == "context-access" => {}
            (Err(r), 0) => *self.wrong_rejects.entry(format!("{}: {r}", what())).or_default() += 1,
            (Err(_), _) => self.agree += 1,
        }
    }

    fn finish(self) {
        println!("{} agree ({} accepted), {} unsupported", self.agree, self.accepted, self.unsupported);
        println!("wrong rejects: {}", self.wrong_rejects.values().sum::<u64>());
        for (why, n) in self.wrong_rejects.iter().take(60) {
            println!("  {n:>4} {why}");
        }
        let shown = &self.wrong_accepts[..self.wrong_accepts.len().min(60)];
        assert!(
            self.wrong_accepts.is_empty(),
            "{} accepted here, rejected by the kernel:\n{}",
            self.wrong_accepts.len(),
            shown.join("\n")
        );
    }
}

#[test]
fn context_accesses() {
    if !kernel::available() {
        return;
    }
    let mut score = Score::default();
    for ty in TYPES {
        let last = if ty == ProgType::Tracepoint { 40 } else { 200 };
        for off in (-8..last).chain(8180..8200) {
            for (code, store) in [
                (class::LDX | mode::MEM, false),
                (class::LDX | mode::MEMSX, false),
                (class::STX | mode::MEM, true),
                (class::ST | mode::MEM, true),
            ] {
                for size in [size::B, size::H, size::W, size::DW] {
                    if code == class::LDX | mode::MEMSX && size == size::DW {
                        continue;
                    }
                    let access =
                        if store { Insn::new(code | size, 1, 0, off, 0) } else { Insn::new(code | size, 0, 1, off, 0) };
                    let insns = vec![
                        Insn::new(class::ALU64 | alu::MOV, 0, 0, 0, 0),
                        access,
                        Insn::new(class::ALU64 | alu::MOV, 0, 0, 0, 0),
                        Insn::new(EXIT, 0, 0, 0, 0),
                    ];
                    let program = Program::new("sweep", ty, "GPL", insns);
                    score.judge(&program, &[], || format!("{ty} {access:?}"));
                }
            }
        }
    }
    score.finish();
}

fn maps() -> Vec<MapDef> {
    let mut frozen = MapDef::new("rodata", MapType::Array, 4, 32, 1);
    frozen.flags = map_flags::RDONLY_PROG;
    frozen.frozen = true;
    frozen.initial = Some(b"hello %d\0world\0................"[..31].to_vec());
    let def = MapDef::new;
    let mut lpm = def("lpm", MapType::LpmTrie, 8, 8, 4);
    lpm.flags = map_flags::NO_PREALLOC;
    vec![
        def("value", MapType::Array, 4, 64, 1),
        frozen,
        def("hash", MapType::Hash, 8, 16, 4),
        def("array", MapType::Array, 4, 16, 4),
        def("percpu", MapType::PercpuArray, 4, 16, 4),
        def("pchash", MapType::PercpuHash, 8, 16, 4),
        def("lru", MapType::LruHash, 8, 16, 4),
        lpm,
        def("progs", MapType::ProgArray, 4, 4, 4),
        def("events", MapType::PerfEventArray, 4, 4, 4),
        def("stacks", MapType::StackTrace, 4, 64, 4),
        def("cgroups", MapType::CgroupArray, 4, 4, 4),
        def("dev", MapType::Devmap, 4, 4, 4),
        def("cpu", MapType::Cpumap, 4, 4, 4),
        def("ring", MapType::Ringbuf, 0, 0, 4096),
        def("queue", MapType::Queue, 0, 16, 4),
        def("stack", MapType::Stack, 0, 16, 4),
        def("bloom", MapType::BloomFilter, 0, 16, 4),
        def("sockmap", MapType::Sockmap, 4, 4, 4),
    ]
}

/// Ways to fill an argument register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    Zero,
    Eight,
    Unknown,
    Ctx,
    CtxMoved,
    Stack,
    StackShort,
    InMap,
    MapValueEnd,
    Frozen,
    MapValueOrNull,
    Packet,
    PacketEnd,
    Map(usize),
    Record,
}

const VALUES: [Value; 14] = [
    Value::Zero,
    Value::Eight,
    Value::Unknown,
    Value::Ctx,
    Value::CtxMoved,
    Value::Stack,
    Value::StackShort,
    Value::InMap,
    Value::MapValueEnd,
    Value::Frozen,
    Value::MapValueOrNull,
    Value::Packet,
    Value::PacketEnd,
    Value::Record,
];

fn mov(dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU64 | alu::MOV, dst, 0, 0, imm)
}

fn copy(dst: u8, src: u8) -> Insn {
    Insn::new(class::ALU64 | alu::MOV | 8, dst, src, 0, 0)
}

fn add(dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU64 | alu::ADD, dst, 0, 0, imm)
}

fn wide(dst: u8, kind: u8, map: usize, off: i32) -> [Insn; 2] {
    [Insn::new(LD_IMM64, dst, kind, 0, map as i32), Insn::new(0, 0, 0, 0, off)]
}

/// r6 context, r7 packet with 40 bytes checked, r8 map value or null, r9 an unknown number; 64 bytes of stack set.
fn prologue(ty: ProgType) -> Vec<Insn> {
    let mut p = vec![copy(6, 1)];
    for off in 1..=8 {
        p.push(Insn::new(class::ST | mode::MEM | size::DW, 10, 0, -8 * off, 0));
    }
    p.extend(wide(1, pseudo::MAP_IDX, 2, 0));
    p.extend([copy(2, 10), add(2, -8), Insn::new(CALL, 0, 0, 0, 1), copy(8, 0)]);
    p.extend([Insn::new(CALL, 0, 0, 0, 7), copy(9, 0)]);
    let (data, end) = match ty {
        ProgType::SchedCls => (76, 80),
        ProgType::Xdp => (0, 4),
        _ => return p,
    };
    p.extend([
        Insn::new(class::LDX | mode::MEM | size::W, 7, 6, data, 0),
        Insn::new(class::LDX | mode::MEM | size::W, 0, 6, end, 0),
        copy(1, 7),
        add(1, 40),
        Insn::new(class::JMP | jmp::JLE | 8, 1, 0, 2, 0),
        mov(0, 0),
        Insn::new(EXIT, 0, 0, 0, 0),
    ]);
    p
}

fn set(p: &mut Vec<Insn>, r: u8, v: Value, ty: ProgType) -> bool {
    match v {
        Value::Zero => p.push(mov(r, 0)),
        Value::Eight => p.push(mov(r, 8)),
        Value::Unknown => p.push(copy(r, 9)),
        Value::Ctx => p.push(copy(r, 6)),
        Value::CtxMoved => p.extend([copy(r, 6), add(r, 8)]),
        Value::Stack => p.extend([copy(r, 10), add(r, -64)]),
        Value::StackShort => p.extend([copy(r, 10), add(r, -4)]),
        Value::InMap => p.extend(wide(r, pseudo::MAP_IDX_VALUE, 0, 0)),
        Value::MapValueEnd => p.extend(wide(r, pseudo::MAP_IDX_VALUE, 0, 60)),
        Value::Frozen => p.extend(wide(r, pseudo::MAP_IDX_VALUE, 1, 0)),
        Value::MapValueOrNull => p.push(copy(r, 8)),
        Value::Packet if matches!(ty, ProgType::SchedCls | ProgType::Xdp) => p.push(copy(r, 7)),
        Value::PacketEnd if matches!(ty, ProgType::SchedCls | ProgType::Xdp) => {
            let off = if ty == ProgType::Xdp { 4 } else { 80 };
            p.push(Insn::new(class::LDX | mode::MEM | size::W, r, 6, off, 0));
        }
        Value::Packet | Value::PacketEnd => return false,
        Value::Map(m) => p.extend(wide(r, pseudo::MAP_IDX, m, 0)),
        // Reserved before the other arguments are set: see `program`.
        Value::Record => p.push(copy(r, 8)),
    }
    true
}

/// What an argument gets when another one is under test.
fn usual(arg: Arg, map: usize) -> Value {
    match arg {
        Arg::MapPtr => Value::Map(map),
        Arg::Ctx | Arg::CtxOrNull => Value::Ctx,
        Arg::Anything | Arg::SizeOrZero if false => Value::Zero,
        Arg::Size | Arg::SizeOrZero | Arg::AllocSize => Value::Eight,
        Arg::Anything => Value::Zero,
        Arg::ConstStr => Value::Frozen,
        Arg::Fixed(Access::Read | Access::Write | Access::Update, _) => Value::Stack,
        Arg::RingbufRecord => Value::Record,
        _ => Value::Stack,
    }
}

fn program(h: &Helper, ty: ProgType, values: &[Value]) -> Option<Program> {
    let mut p = prologue(ty);
    if values.contains(&Value::Record) {
        p.extend(wide(1, pseudo::MAP_IDX, 14, 0));
        p.extend([mov(2, 16), mov(3, 0), Insn::new(CALL, 0, 0, 0, 131)]);
        p.extend([Insn::new(class::JMP | jmp::JNE, 0, 0, 2, 0), mov(0, 0), Insn::new(EXIT, 0, 0, 0, 0), copy(8, 0)]);
    }
    for (n, v) in values.iter().enumerate() {
        if !set(&mut p, n as u8 + 1, *v, ty) {
            return None;
        }
    }
    p.extend([Insn::new(CALL, 0, 0, 0, h.id as i32), mov(0, 0), Insn::new(EXIT, 0, 0, 0, 0)]);
    Some(Program::new("sweep", ty, "GPL", p))
}

#[test]
fn helper_arguments() {
    if !kernel::available() {
        return;
    }
    let defs: Arc<[MapDef]> = maps().into();
    let Some(fds) = kernel::maps(&defs) else {
        eprintln!("skipped: the maps cannot be made here");
        return;
    };
    let mut score = Score::default();
    for h in &HELPERS {
        for ty in TYPES {
            // One representative of a refusal is enough.
            let args: &[Arg] = if h.allowed_in(ty) { h.args_in(ty) } else { &[] };
            let maps = if args.contains(&Arg::MapPtr) { 0..defs.len() } else { 0..1 };
            for map in maps {
                let base: Vec<Value> = args.iter().map(|a| usual(*a, map)).collect();
                let mut variants = vec![base.clone()];
                for n in 0..args.len() {
                    for v in VALUES {
                        let mut changed = base.clone();
                        changed[n] = v;
                        variants.push(changed);
                    }
                }
                for values in variants {
                    let Some(mut program) = program(h, ty, &values) else { continue };
                    program.maps = defs.clone();
                    score.judge(&program, &fds, || format!("{} in {ty} with {values:?}", h.name));
                }
            }
        }
    }
    score.finish();
}
