//! Every context access and every helper with every kind of argument, against the live kernel.
//!
//! Needs `bpf(2)`; skipped without.

mod kernel;
mod loads;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use loads::{TYPES, kernel_types, load, maps};
use skep_ebpf::Insn;
use skep_ebpf::btf::Kind;
use skep_ebpf::helper::{Access, Arg, HELPERS, Helper};
use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{AttachType as A, MapType, ProgType};
use skep_verifier::{Options, Outcome, verify};

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
        let profile = kernel::profile();
        let options = Options { profile, btf: kernel_types(), ..Options::default() };
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
    for &(ty, attaches, size) in TYPES {
        for &attach in attaches {
            let end = if ty == ProgType::Syscall { 32767 - 8..32767 } else { 8180..8200 };
            for (off, access) in accesses((-8..size + 16).chain(end)) {
                let insns = vec![mov(0, 1), access, mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)];
                let program = load(ty, attach, "GPL", insns);
                score.judge(&program, &[], || format!("{ty} for {attach} at {off}: {access:?}"));
            }
        }
    }
    score.finish();
}

/// Loads and stores of every kind and width at these offsets of r1.
fn accesses(offsets: impl Iterator<Item = i16>) -> impl Iterator<Item = (i16, Insn)> {
    let kinds = [
        (class::LDX | mode::MEM, 0, 1),
        (class::LDX | mode::MEMSX, 0, 1),
        (class::STX | mode::MEM, 1, 0),
        (class::ST | mode::MEM, 1, 0),
    ];
    offsets.flat_map(move |off| {
        kinds.into_iter().flat_map(move |(code, dst, src)| {
            [size::B, size::H, size::W, size::DW]
                .into_iter()
                .filter(move |size| code != class::LDX | mode::MEMSX || *size != size::DW)
                .map(move |size| (off, Insn::new(code | size, dst, src, off, 0)))
        })
    })
}

/// Programs that get one kind of socket, the flow keys or the buffer of a tracepoint in r1.
#[test]
fn object_accesses() {
    if !kernel::available() {
        return;
    }
    let call = |id| Insn::new(CALL, 0, 0, 0, id);
    let load64 = |off| Insn::new(class::LDX | mode::MEM | size::DW, 1, 1, off, 0);
    let unless_null = |r| [Insn::new(class::JMP | jmp::JNE, r, 0, 2, 0), mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)];
    let after = |id: i32| [[call(id)].as_slice(), &unless_null(0), &[copy(1, 0)]].concat();
    let common = [[load64(168)].as_slice(), &unless_null(1)].concat();
    let xsk = [wide(1, pseudo::MAP_IDX, 0, 0).as_slice(), &[copy(2, 10), add(2, -4)], &after(1)].concat();
    let cases = [
        ("socket", ProgType::CgroupSockAddr, A::CgroupInet4Connect, 96, vec![load64(64)]),
        ("common", ProgType::SchedCls, A::TcxIngress, 96, common.clone()),
        ("full", ProgType::SchedCls, A::TcxIngress, 96, [common.clone(), after(95)].concat()),
        ("tcp", ProgType::SchedCls, A::TcxIngress, 120, [common.clone(), after(96)].concat()),
        ("listener", ProgType::SchedCls, A::TcxIngress, 96, [common, after(98)].concat()),
        ("xdp", ProgType::Xdp, A::Xdp, 16, xsk),
        ("flow keys", ProgType::FlowDissector, A::FlowDissector, 64, vec![load64(144)]),
        ("buffer", ProgType::RawTracepointWritable, A::CgroupInetIngress, 16, vec![load64(0)]),
    ];
    let defs: Arc<[MapDef]> = [MapDef::new("xsk", MapType::Xskmap, 4, 4, 1)].into();
    let fds = kernel::maps(&defs).expect("map");
    let mut score = Score::default();
    for (name, ty, attach, size, prologue) in cases {
        for (off, access) in accesses(-8..size) {
            let mut insns = vec![Insn::new(class::ST | mode::MEM | size::W, 10, 0, -4, 0)];
            insns.extend(&prologue);
            insns.extend([mov(0, 1), access, mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)]);
            let mut program = load(ty, attach, "GPL", insns);
            program.maps = defs.clone();
            score.judge(&program, &fds, || format!("{name} at {off}: {access:?}"));
        }
    }
    score.finish();
}

/// Loads and stores at every offset of every type of map.
#[test]
fn map_accesses() {
    if !kernel::available() {
        return;
    }
    let defs: Arc<[MapDef]> = maps().into();
    let Some(fds) = kernel::maps(&defs) else {
        eprintln!("skipped: the maps cannot be made here");
        return;
    };
    let mut score = Score::default();
    for (map, def) in defs.iter().enumerate() {
        for (off, access) in accesses(-8..720) {
            // Loads tell most; stores are refused anywhere.
            if access.class() != class::LDX && off > 8 {
                continue;
            }
            let mut insns = wide(1, pseudo::MAP_IDX, map, 0).to_vec();
            insns.extend([mov(0, 1), access, mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)]);
            let mut program = load(ProgType::SocketFilter, A::CgroupInetIngress, "GPL", insns);
            program.maps = defs.clone();
            score.judge(&program, &fds, || format!("map {} at {off}: {access:?}", def.name));
        }
    }
    score.finish();
}

/// Whether a program may call each helper at all: in every type and attach type, and at some places in the kernel.
#[test]
fn helper_scopes() {
    let Some(types) = kernel_types().filter(|_| kernel::available()) else { return };
    let mut places: Vec<(ProgType, A, u32)> =
        TYPES.iter().flat_map(|(ty, attaches, _)| attaches.iter().map(|a| (*ty, *a, 0))).collect();
    let find = |name: &str| types.find(name, |k| !matches!(k, Kind::Fwd { .. }));
    let tracing = [
        (A::TraceRawTp, "btf_trace_sched_switch"),
        (A::TraceIter, "bpf_iter_task"),
        (A::TraceIter, "bpf_iter_tcp"),
        (A::TraceIter, "bpf_iter_udp"),
        (A::TraceIter, "bpf_iter_unix"),
        (A::TraceIter, "bpf_iter_bpf_map_elem"),
    ];
    places.extend(tracing.into_iter().filter_map(|(how, name)| Some((ProgType::Tracing, how, find(name)?))));
    for (ops, member) in
        [("tcp_congestion_ops", "init"), ("tcp_congestion_ops", "release"), ("bpf_dummy_ops", "test_1")]
    {
        let Some(id) = find(ops) else { continue };
        let Some(Kind::Struct(c)) = types.kind(id) else { continue };
        let index = c.members.iter().position(|m| types.str_at(m.name_off) == Some(member));
        let attach = index.and_then(|n| A::from_u32(n as u32)).expect("the member");
        places.push((ProgType::StructOps, attach, id));
    }
    let options = Options { btf: kernel_types(), profile: kernel::profile(), ..Options::default() };
    let mut wrong = Vec::new();
    for (ty, attach, id) in places {
        for h in &HELPERS {
            let licenses: &[&str] = if h.has(skep_ebpf::helper::GPL) { &["GPL", "none"] } else { &["GPL"] };
            for license in licenses {
                let call = vec![Insn::new(CALL, 0, 0, 0, h.id as i32), mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)];
                let mut program = load(ty, attach, license, call);
                program.attach_btf_id = id;
                let log = kernel::load_with(&program, &[], 1).expect("no maps").log;
                let refused = ["cannot use helper", "unknown func", "not allowed in probe", "GPL-restricted"];
                let theirs = refused.iter().any(|r| log.contains(r));
                let here = verify(program, &options).map_err(|r| r.reason);
                let ours = matches!(here, Err("helper-not-allowed" | "helper-needs-gpl"));
                // Not before the arguments are judged.
                let late = log.contains("not supported for program type") || log.contains("supported only for fentry");
                if theirs != ours && !(late && ours) {
                    let line = log.lines().rev().find(|l| !l.starts_with("processed")).unwrap_or("");
                    wrong.push(format!("{} in {ty} for {attach} ({id}, {license}): {here:?}, kernel: {line}", h.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// What each type and attach type returns, and which of them can be loaded at all.
#[test]
fn loads_and_exits() {
    if !kernel::available() {
        return;
    }
    let mut score = Score::default();
    for &ty in ProgType::ALL {
        // This kernel has no infrared decoders; the others want a target.
        if matches!(ty, ProgType::LircMode2 | ProgType::Tracing | ProgType::StructOps | ProgType::Ext | ProgType::Lsm) {
            continue;
        }
        for &attach in A::ALL {
            for result in [mov(0, -1), mov(0, 0), mov(0, 1), mov(0, 2), mov(0, 3), mov(0, 4), copy(0, 1)] {
                let program = load(ty, attach, "GPL", vec![result, Insn::new(EXIT, 0, 0, 0, 0)]);
                score.judge(&program, &[], || format!("{ty} for {attach}: {result:?}"));
            }
        }
        for flag in 0..12 {
            let mut program = Program::new("sweep", ty, "GPL", vec![mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)]);
            program.attach_type = TYPES.iter().find(|t| t.0 == ty).map(|t| t.1[0]);
            program.flags = 1 << flag;
            score.judge(&program, &[], || format!("{ty} with flags {:#x}", 1 << flag));
        }
    }
    score.finish();
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
    Socket,
    SocketOrNull,
    /// A `struct tcp_sock` of the kernel.
    TcpSock,
    /// The current task.
    Task,
    /// Its `struct list_head tasks`.
    TaskInside,
    Map(usize),
    Record,
}

const VALUES: [Value; 19] = [
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
    Value::Socket,
    Value::SocketOrNull,
    Value::TcpSock,
    Value::Task,
    Value::TaskInside,
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

/// Where the context has the packet: start, end, width of the fields.
fn packet(ty: ProgType) -> Option<(i16, i16, u8)> {
    Some(match ty {
        ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb
        | ProgType::FlowDissector => (76, 80, size::W),
        ProgType::Xdp => (0, 4, size::W),
        ProgType::SkMsg | ProgType::SkReuseport => (0, 8, size::DW),
        ProgType::SockOps => (192, 200, size::DW),
        ProgType::CgroupSockopt => (8, 16, size::DW),
        _ => return None,
    })
}

/// Where the context has a socket.
fn socket(ty: ProgType) -> Option<i16> {
    Some(match ty {
        ProgType::SocketFilter
        | ProgType::SchedCls
        | ProgType::SchedAct
        | ProgType::CgroupSkb
        | ProgType::LwtIn
        | ProgType::LwtOut
        | ProgType::LwtXmit
        | ProgType::LwtSeg6local
        | ProgType::SkSkb => 168,
        ProgType::CgroupSockAddr => 64,
        ProgType::CgroupSockopt | ProgType::SkLookup => 0,
        ProgType::SkMsg => 72,
        ProgType::SkReuseport => 40,
        ProgType::SockOps => 184,
        _ => return None,
    })
}

fn leave_if_null(r: u8) -> [Insn; 3] {
    [Insn::new(class::JMP | jmp::JNE, r, 0, 2, 0), mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)]
}

/// r6 context, r7 packet with 40 bytes checked, r8 map value or null, r9 an unknown number; 64 bytes of stack set, below
/// them a socket.
fn prologue(ty: ProgType) -> Vec<Insn> {
    let mut p = vec![copy(6, 1)];
    for off in 1..=8 {
        p.push(Insn::new(class::ST | mode::MEM | size::DW, 10, 0, -8 * off, 0));
    }
    if let Some(off) = socket(ty) {
        p.push(Insn::new(class::LDX | mode::MEM | size::DW, 1, 6, off, 0));
        p.extend(leave_if_null(1));
        p.push(Insn::new(class::STX | mode::MEM | size::DW, 10, 1, -72, 0));
    }
    p.extend(wide(1, pseudo::MAP_IDX, 2, 0));
    p.extend([copy(2, 10), add(2, -8), Insn::new(CALL, 0, 0, 0, 1), copy(8, 0)]);
    p.extend([Insn::new(CALL, 0, 0, 0, 7), copy(9, 0)]);
    let Some((data, end, width)) = packet(ty) else { return p };
    p.extend([
        Insn::new(class::LDX | mode::MEM | width, 7, 6, data, 0),
        Insn::new(class::LDX | mode::MEM | width, 0, 6, end, 0),
        copy(1, 7),
        add(1, 40),
        Insn::new(class::JMP | jmp::JLE | 8, 1, 0, 2, 0),
        mov(0, 1),
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
        Value::Packet if packet(ty).is_some() => p.push(copy(r, 7)),
        Value::PacketEnd => match packet(ty) {
            Some((_, end, width)) => p.push(Insn::new(class::LDX | mode::MEM | width, r, 6, end, 0)),
            None => return false,
        },
        Value::Packet => return false,
        Value::Socket if socket(ty).is_some() => {
            p.push(Insn::new(class::LDX | mode::MEM | size::DW, r, 10, -72, 0));
        }
        Value::SocketOrNull => match socket(ty) {
            Some(off) => p.push(Insn::new(class::LDX | mode::MEM | size::DW, r, 6, off, 0)),
            None => return false,
        },
        Value::Socket => return false,
        Value::Map(m) => p.extend(wide(r, pseudo::MAP_IDX, m, 0)),
        Value::TcpSock | Value::Task | Value::TaskInside => {
            p.push(Insn::new(class::LDX | mode::MEM | size::DW, r, 10, -80, 0));
            if v == Value::TaskInside {
                p.push(add(r, 8));
            }
        }
        // Reserved before the other arguments are set: see `program`.
        Value::Record => p.push(copy(r, 8)),
    }
    true
}

/// What an argument gets when another one is under test.
fn usual(arg: Arg, map: usize, ty: ProgType) -> Value {
    match arg {
        Arg::MapPtr => Value::Map(map),
        Arg::Ctx | Arg::CtxOrNull => Value::Ctx,
        Arg::Size | Arg::SizeOrZero | Arg::AllocSize => Value::Eight,
        Arg::Anything => Value::Zero,
        Arg::ConstStr => Value::Frozen,
        Arg::Fixed(Access::Read | Access::Write | Access::Update, _) => Value::Stack,
        Arg::RingbufRecord => Value::Record,
        Arg::Btf | Arg::BtfOrNull => Value::Task,
        Arg::SockCommon | Arg::BtfSock | Arg::BtfSockOrNull | Arg::SocketOrNull if socket(ty).is_some() => {
            Value::Socket
        }
        _ => Value::Stack,
    }
}

fn program(h: &Helper, ty: ProgType, attach: A, values: &[Value]) -> Option<Program> {
    let mut p = prologue(ty);
    if values.contains(&Value::Record) {
        p.extend(wide(1, pseudo::MAP_IDX, 14, 0));
        p.extend([mov(2, 16), mov(3, 0), Insn::new(CALL, 0, 0, 0, 131)]);
        p.extend(leave_if_null(0));
        p.push(copy(8, 0));
    }
    if values.contains(&Value::TcpSock) {
        let sock = socket(ty).filter(|_| HELPERS[136].allowed_in(ty))?;
        p.push(Insn::new(class::LDX | mode::MEM | size::DW, 1, 6, sock, 0));
        p.extend(leave_if_null(1));
        p.push(Insn::new(CALL, 0, 0, 0, 137));
        p.extend(leave_if_null(0));
        p.push(Insn::new(class::STX | mode::MEM | size::DW, 10, 0, -80, 0));
    }
    if values.contains(&Value::Task) || values.contains(&Value::TaskInside) {
        p.push(Insn::new(CALL, 0, 0, 0, 158));
        p.push(Insn::new(class::STX | mode::MEM | size::DW, 10, 0, -80, 0));
    }
    for (n, v) in values.iter().enumerate() {
        if !set(&mut p, n as u8 + 1, *v, ty) {
            return None;
        }
    }
    p.extend([Insn::new(CALL, 0, 0, 0, h.id as i32), mov(0, 1), Insn::new(EXIT, 0, 0, 0, 0)]);
    Some(load(ty, attach, "GPL", p))
}

/// The types whose helpers are all tried with all arguments; the others share most of theirs with them.
const THOROUGH: [ProgType; 4] = [ProgType::SocketFilter, ProgType::Kprobe, ProgType::SchedCls, ProgType::Xdp];

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
    let only = std::env::var("SKEP_SWEEP_ONLY").ok();
    let mut score = Score::default();
    for h in &HELPERS {
        if only.as_ref().is_some_and(|o| o != h.name) {
            continue;
        }
        for &(ty, attaches, _) in TYPES {
            let args: &[Arg] = if h.allowed_in(ty) { h.args_in(ty) } else { &[] };
            let usuals = |map| args.iter().map(|a| usual(*a, map, ty)).collect::<Vec<Value>>();
            // Whether it can be called at all, with a licence and without.
            for &attach in attaches {
                let Some(mut program) = program(h, ty, attach, &usuals(0)) else { continue };
                program.maps = defs.clone();
                score.judge(&program, &fds, || format!("{} in {ty} for {attach}", h.name));
                program.license = "none".into();
                score.judge(&program, &fds, || format!("{} in {ty} for {attach} without a licence", h.name));
            }
            let shared = h.types | only_types(&[ProgType::LircMode2]) == !0;
            let thorough = !shared || THOROUGH.contains(&ty);
            let maps = if args.contains(&Arg::MapPtr) { 0..defs.len() } else { 0..1 };
            for map in maps {
                let base = usuals(map);
                let mut variants = vec![base.clone()];
                for n in (0..args.len()).filter(|_| thorough || map == 2) {
                    for v in VALUES {
                        let mut changed = base.clone();
                        changed[n] = v;
                        variants.push(changed);
                    }
                }
                for values in variants {
                    let Some(mut program) = program(h, ty, attaches[0], &values) else { continue };
                    program.maps = defs.clone();
                    score.judge(&program, &fds, || format!("{} in {ty} with {values:?}", h.name));
                }
            }
        }
    }
    score.finish();
}

fn only_types(types: &[ProgType]) -> u64 {
    types.iter().fold(0, |set, t| set | skep_ebpf::helper::only(*t))
}
