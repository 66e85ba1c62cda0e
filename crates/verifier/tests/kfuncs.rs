//! Kernel functions against the live kernel: who may call what, which calls sleep, and every kind of argument for each.
//!
//! Needs `bpf(2)` and the kernel's BTF; skipped without.

mod kernel;
mod typed;

use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::insn::{CALL, EXIT, LD_IMM64, alu, call, class, jmp, mode, pseudo, size};
use skep_ebpf::kfunc::{KFUNCS, Kfunc, flag};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{AttachType, MapType, ProgType, map_flags, prog_flags};
use skep_verifier::{KernelProfile, Options, Outcome, verify};

/// Program types that can be loaded everywhere, with an attach type where they need one.
const TYPES: [(ProgType, Option<AttachType>); 27] = [
    (ProgType::SocketFilter, None),
    (ProgType::Kprobe, None),
    (ProgType::Kprobe, Some(AttachType::TraceKprobeSession)),
    (ProgType::SchedCls, None),
    (ProgType::SchedAct, None),
    (ProgType::Tracepoint, None),
    (ProgType::Xdp, None),
    (ProgType::PerfEvent, None),
    (ProgType::CgroupSkb, None),
    (ProgType::CgroupSock, Some(AttachType::CgroupInetSockCreate)),
    (ProgType::LwtIn, None),
    (ProgType::LwtOut, None),
    (ProgType::LwtXmit, None),
    (ProgType::SockOps, None),
    (ProgType::SkSkb, None),
    (ProgType::CgroupDevice, None),
    (ProgType::SkMsg, None),
    (ProgType::RawTracepoint, None),
    (ProgType::CgroupSockAddr, Some(AttachType::CgroupInet4Bind)),
    (ProgType::LwtSeg6local, None),
    (ProgType::SkReuseport, Some(AttachType::SkReuseportSelect)),
    (ProgType::FlowDissector, None),
    (ProgType::CgroupSysctl, None),
    (ProgType::CgroupSockopt, Some(AttachType::CgroupGetsockopt)),
    (ProgType::SkLookup, Some(AttachType::SkLookup)),
    (ProgType::Syscall, None),
    (ProgType::Netfilter, Some(AttachType::Netfilter)),
];

/// A call with zeros for arguments.
fn program(id: u32, ty: ProgType, attach: Option<AttachType>, sleepable: bool) -> Program {
    let mov = |r| Insn::new(class::ALU64 | alu::MOV, r, 0, 0, 0);
    let mut insns: Vec<Insn> = (1..=5).map(mov).collect();
    insns.extend([Insn::new(CALL, 0, call::KFUNC, 0, id as i32), mov(0), Insn::new(EXIT, 0, 0, 0, 0)]);
    let mut program = Program::new("kfunc", ty, "GPL", insns);
    program.attach_type = attach;
    program.flags = if sleepable { prog_flags::SLEEPABLE } else { 0 };
    program
}

#[test]
fn table_agrees_with_the_kernel() {
    let raw = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    if !kernel::available() || raw.is_empty() {
        return;
    }
    let btf = Btf::parse(&raw).expect("the kernel's BTF");
    let functions = btf.iter().filter(|(_, t)| matches!(t.kind, Kind::Func { .. })).map(|(id, _)| id);
    let kfuncs = functions.filter(|id| btf.decl_tags(*id).any(|(tag, _)| tag == "bpf_kfunc"));
    let mut faults = Vec::new();
    let mut asked = 0;
    for id in kfuncs {
        let name = btf.name(id);
        let row = Kfunc::by_name(name);
        for (ty, attach) in TYPES {
            let sleepable = ty == ProgType::Syscall;
            let ask = |sleepable| kernel::load(&program(id, ty, attach, sleepable), 1).expect("no maps");
            let answer = ask(sleepable);
            let allowed = !answer.log.contains("is not allowed");
            asked += 1;
            if allowed != row.is_some_and(|r| r.allowed_in(ty, attach)) {
                faults.push(format!("{name} in {ty} {attach:?}: allowed {allowed}"));
            }
            let Some(row) = row.filter(|_| allowed) else { continue };
            if !sleepable {
                let sleeps = answer.log.contains("must be sleepable");
                if sleeps != row.has(flag::SLEEPABLE) {
                    faults.push(format!("{name} in {ty}: sleeps {sleeps}"));
                }
            }
            // Null for a pointer that must be valid is told apart from all else.
            let picky = answer.log.contains("NULL pointer passed to trusted");
            if picky && !row.wants_trusted() && !row.has(flag::RCU) {
                faults.push(format!("{name} in {ty}: wants trusted pointers"));
            }
        }
    }
    assert!(asked > 1000, "{asked} questions only");
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// Ways to fill an argument register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Value {
    Zero,
    Eight,
    Negative,
    Unknown,
    Unwritten,
    Ctx,
    CtxMoved,
    Stack,
    StackShort,
    StackUnaligned,
    Map,
    InMap,
    MapValueEnd,
    MapValueOrNull,
    Rodata,
    Packet,
    Task,
    TaskMoved,
    TaskHeld,
    TaskUntrusted,
    CgroupHeld,
    CpumaskHeld,
    UntrustedMemory,
    Dynptr,
    Function,
}

const VALUES: [Value; 25] = [
    Value::Zero,
    Value::Eight,
    Value::Negative,
    Value::Unknown,
    Value::Unwritten,
    Value::Ctx,
    Value::CtxMoved,
    Value::Stack,
    Value::StackShort,
    Value::StackUnaligned,
    Value::Map,
    Value::InMap,
    Value::MapValueEnd,
    Value::MapValueOrNull,
    Value::Rodata,
    Value::Packet,
    Value::Task,
    Value::TaskMoved,
    Value::TaskHeld,
    Value::TaskUntrusted,
    Value::CgroupHeld,
    Value::CpumaskHeld,
    Value::UntrustedMemory,
    Value::Dynptr,
    Value::Function,
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

fn wide(dst: u8, kind: u8, map: i32, off: i32) -> [Insn; 2] {
    [Insn::new(LD_IMM64, dst, kind, 0, map), Insn::new(0, 0, 0, 0, off)]
}

fn helper(id: i32) -> Insn {
    Insn::new(CALL, 0, 0, 0, id)
}

/// Leaves the program unless r0 is a pointer.
fn unless_null() -> [Insn; 3] {
    [Insn::new(class::JMP | jmp::JNE, 0, 0, 2, 0), mov(0, 0), Insn::new(EXIT, 0, 0, 0, 0)]
}

struct Sweep {
    btf: Arc<Btf>,
    maps: Arc<[MapDef]>,
}

impl Sweep {
    fn func(&self, name: &str) -> Option<i32> {
        self.btf.find(name, |k| matches!(k, Kind::Func { .. })).map(|id| id as i32)
    }

    fn kfunc(&self, name: &str) -> Insn {
        Insn::new(CALL, 0, call::KFUNC, 0, self.func(name).unwrap_or(0))
    }

    /// What a parameter gets when another one is under test.
    fn usual(&self, name: &str, ty: u32) -> Value {
        let target = |ty| self.btf.resolve(ty).map_or("", |id| self.btf.name(id));
        match self.btf.resolve(ty).and_then(|id| self.btf.kind(id)) {
            Some(&Kind::Ptr { ty }) => match target(ty) {
                "task_struct" => Value::Task,
                "cgroup" => Value::CgroupHeld,
                "cpumask" | "bpf_cpumask" => Value::CpumaskHeld,
                "__sk_buff" | "xdp_md" => Value::Ctx,
                "bpf_dynptr" if !name.ends_with("__uninit") => Value::Dynptr,
                "bpf_map" => Value::Map,
                _ if name.ends_with("__map") => Value::Map,
                _ if name.ends_with("__str") => Value::Rodata,
                _ => Value::Stack,
            },
            _ => Value::Eight,
        }
    }

    /// A program that calls the function with these arguments; `None` where the type has no such value.
    fn program(&self, func: u32, ty: ProgType, values: &[Value]) -> Option<Program> {
        // r6 context, r7 a task, r9 an unknown number; stack written down to 64, a dynptr at 80.
        let mut p = vec![copy(6, 1)];
        p.extend((1..=8).map(|n| Insn::new(class::ST | mode::MEM | size::DW, 10, 0, -8 * n, 0)));
        p.extend([helper(158), copy(7, 0), helper(7), copy(9, 0)]);
        let has = |v| values.contains(&v);
        let mut held = None;
        if has(Value::Dynptr) {
            p.extend(wide(1, pseudo::MAP_IDX_VALUE, 1, 0));
            p.extend([mov(2, 32), mov(3, 0), copy(4, 10), add(4, -80), helper(197)]);
        }
        if has(Value::MapValueOrNull) {
            p.extend(wide(1, pseudo::MAP_IDX, 0, 0));
            p.extend([copy(2, 10), add(2, -8), helper(1), copy(8, 0)]);
        } else if has(Value::TaskHeld) {
            p.extend([mov(1, 1), self.kfunc("bpf_task_from_pid")]);
            held = Some("bpf_task_release");
        } else if has(Value::CgroupHeld) {
            p.extend([mov(1, 1), self.kfunc("bpf_cgroup_from_id")]);
            held = Some("bpf_cgroup_release");
        } else if has(Value::CpumaskHeld) {
            p.push(self.kfunc("bpf_cpumask_create"));
            held = Some("bpf_cpumask_release");
        } else if has(Value::TaskUntrusted) || has(Value::UntrustedMemory) {
            let task = self.btf.find("task_struct", |k| matches!(k, Kind::Struct(_)))?;
            let to = if has(Value::TaskUntrusted) { task as i32 } else { 0 };
            p.extend([mov(1, 0), mov(2, to), self.kfunc("bpf_rdonly_cast"), copy(8, 0)]);
        } else if has(Value::Packet) {
            let (data, end) = match ty {
                ProgType::SchedCls => (76, 80),
                ProgType::Xdp => (0, 4),
                _ => return None,
            };
            let load = |r, off| Insn::new(class::LDX | mode::MEM | size::W, r, 6, off, 0);
            p.extend([load(8, data), load(2, end), copy(1, 8), add(1, 40)]);
            p.extend([Insn::new(class::JMP | jmp::JLE | 8, 1, 2, 2, 0), mov(0, 0), Insn::new(EXIT, 0, 0, 0, 0)]);
        }
        if held.is_some() {
            p.extend(unless_null());
            p.push(copy(8, 0));
        }
        let mut functions = Vec::new();
        for (n, v) in values.iter().enumerate() {
            let r = n as u8 + 1;
            match v {
                Value::Zero => p.push(mov(r, 0)),
                Value::Eight => p.push(mov(r, 8)),
                Value::Negative => p.push(mov(r, -8)),
                Value::Unknown => p.push(copy(r, 9)),
                Value::Unwritten => {}
                Value::Ctx => p.push(copy(r, 6)),
                Value::CtxMoved => p.extend([copy(r, 6), add(r, 8)]),
                Value::Stack => p.extend([copy(r, 10), add(r, -64)]),
                Value::StackShort => p.extend([copy(r, 10), add(r, -8)]),
                Value::StackUnaligned => p.extend([copy(r, 10), add(r, -60)]),
                Value::Map => p.extend(wide(r, pseudo::MAP_IDX, 0, 0)),
                Value::InMap => p.extend(wide(r, pseudo::MAP_IDX_VALUE, 1, 0)),
                Value::MapValueEnd => p.extend(wide(r, pseudo::MAP_IDX_VALUE, 1, 60)),
                Value::Rodata => p.extend(wide(r, pseudo::MAP_IDX_VALUE, 2, 0)),
                Value::Task => p.push(copy(r, 7)),
                Value::TaskMoved => p.extend([copy(r, 7), add(r, 8)]),
                Value::Dynptr => p.extend([copy(r, 10), add(r, -80)]),
                Value::Function => {
                    functions.push(p.len());
                    p.extend(wide(r, pseudo::FUNC, 0, 0));
                }
                _ => p.push(copy(r, 8)),
            }
        }
        p.push(Insn::new(CALL, 0, call::KFUNC, 0, func as i32));
        if let Some(release) = self.release_of(func) {
            // What is held must not be given back twice on the way out.
            p.push(Insn::new(class::JMP | jmp::JEQ, 0, 0, 2, 0));
            p.extend([copy(1, 0), self.kfunc(release)]);
        }
        if let Some(release) = held {
            p.extend([copy(1, 8), self.kfunc(release)]);
        }
        p.extend([mov(0, 0), Insn::new(EXIT, 0, 0, 0, 0)]);
        let mut typed = Vec::new();
        if !functions.is_empty() {
            let start = p.len();
            for at in functions {
                p[at].imm = (start - at - 1) as i32;
            }
            p.extend([mov(0, 0), Insn::new(EXIT, 0, 0, 0, 0)]);
            typed.push(typed::Function::new("pp", false));
        }
        let mut program = Program::new("kfunc", ty, "GPL", p);
        program.maps = self.maps.clone();
        program.flags = if ty == ProgType::Syscall { prog_flags::SLEEPABLE } else { 0 };
        if ty == ProgType::CgroupSockAddr {
            program.attach_type = Some(AttachType::CgroupInet4Bind);
        }
        if !typed.is_empty() {
            typed::attach(&mut program, &typed);
        }
        Some(program)
    }

    /// What gives back what a function acquires.
    fn release_of(&self, func: u32) -> Option<&'static str> {
        let Some(Kind::Func { proto, .. }) = self.btf.kind(func) else { return None };
        let Some(&Kind::FuncProto { ret, .. }) = self.btf.kind(*proto) else { return None };
        if !Kfunc::by_name(self.btf.name(func)).is_some_and(|k| k.has(flag::ACQUIRE)) {
            return None;
        }
        let Some(&Kind::Ptr { ty }) = self.btf.kind(ret) else { return None };
        Some(match self.btf.name(self.btf.resolve(ty)?) {
            "task_struct" => "bpf_task_release",
            "cgroup" => "bpf_cgroup_release",
            "bpf_cpumask" => "bpf_cpumask_release",
            "nf_conn" => "bpf_ct_release",
            "bpf_key" => "bpf_key_put",
            "xfrm_state" => "bpf_xdp_xfrm_state_release",
            "bpf_crypto_ctx" => "bpf_crypto_ctx_release",
            _ => return None,
        })
    }
}

fn sweep_maps() -> Vec<MapDef> {
    let mut rodata = MapDef::new("rodata", MapType::Array, 4, 16, 1);
    rodata.flags = map_flags::RDONLY_PROG;
    rodata.frozen = true;
    rodata.initial = Some(b"user.name\0......".to_vec());
    vec![MapDef::new("hash", MapType::Hash, 8, 16, 4), MapDef::new("data", MapType::Array, 4, 64, 1), rodata]
}

#[test]
fn arguments_agree_with_the_kernel() {
    let raw = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    if !kernel::available() || raw.is_empty() {
        return;
    }
    let btf = Arc::new(Btf::parse(&raw).expect("the kernel's BTF"));
    let sweep = Sweep { btf: btf.clone(), maps: sweep_maps().into() };
    let Some(fds) = kernel::maps(&sweep.maps) else { return };
    let profile = KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
    let options = Options { profile, btf: Some(btf.clone()), ..Options::default() };
    let only = std::env::var("SKEP_KFUNC").ok();
    let (mut agree, mut accepted, mut unsupported) = (0, 0, 0);
    let (mut wrong_accepts, mut wrong_rejects, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
    for k in KFUNCS.iter().filter(|k| only.as_ref().is_none_or(|o| o == k.name)) {
        let Some(func) = sweep.func(k.name).map(|id| id as u32) else { continue };
        let Some(Kind::Func { proto, .. }) = btf.kind(func) else { continue };
        let Some(Kind::FuncProto { params, .. }) = btf.kind(*proto) else { continue };
        let name_of = |off| btf.str_at(off).unwrap_or("");
        let base: Vec<Value> = params.iter().map(|p| sweep.usual(name_of(p.name_off), p.ty)).collect();
        let mut variants = vec![base.clone()];
        for n in 0..base.len() {
            variants.extend(VALUES.map(|v| {
                let mut changed = base.clone();
                changed[n] = v;
                changed
            }));
        }
        let types =
            [ProgType::SchedCls, ProgType::Xdp, ProgType::Syscall, ProgType::Tracepoint, ProgType::CgroupSockAddr];
        for ty in types.into_iter().filter(|t| k.allowed_in(*t, None)) {
            for values in &variants {
                let Some(program) = sweep.program(func, ty, values) else { continue };
                let blob = (!program.func_info.is_empty()).then(|| typed::blob(&[typed::Function::new("pp", false)]).0);
                let types = blob.map(|raw| kernel::btf(&raw).expect("BTF"));
                let answer = kernel::load_typed(&program, &fds, types.as_ref(), 1).expect("maps");
                let why = answer.log.lines().rev().find(|l| !l.starts_with("processed") && !l.is_empty());
                let what = || format!("{} in {ty} with {values:?}: {} {:?}", k.name, answer.errno, why);
                match (verify(program, &options), answer.errno) {
                    (Ok(_), 0) => (agree, accepted) = (agree + 1, accepted + 1),
                    (Ok(_), _) => wrong_accepts.push(what()),
                    (Err(r), _) if r.outcome == Outcome::Unsupported => {
                        unsupported += 1;
                        wrong_rejects.push(format!("{}: {r}", what()));
                    }
                    (Err(r), 0) => wrong_rejects.push(format!("{}: {r}", what())),
                    (Err(r), errno) => {
                        agree += 1;
                        if r.errno.0 != errno {
                            elsewhere.push(format!("{}: {:?} {r}", what(), r.errno));
                        }
                    }
                }
            }
        }
    }
    println!("{agree} agree ({accepted} accepted), {unsupported} unsupported, {} other errnos", elsewhere.len());
    println!("wrong rejects: {}\n{}", wrong_rejects.len(), wrong_rejects.join("\n"));
    if std::env::var_os("SKEP_ERRNO").is_some() {
        println!("{}", elsewhere.join("\n"));
    }
    let text = wrong_accepts.join("\n");
    assert!(wrong_accepts.is_empty(), "{} accepted here, rejected by the kernel:\n{text}", wrong_accepts.len());
}

/// Without the kernel's types nobody can say whether a call on no path names a function: such a program is not accepted.
#[test]
fn unreached_calls_are_not_taken_on_trust() {
    let program = |func: i32, off: i16| {
        let insns = vec![
            mov(0, 0),
            Insn::new(class::JMP | jmp::JEQ, 0, 0, 1, 0),
            Insn::new(CALL, 0, call::KFUNC, off, func),
            Insn::new(EXIT, 0, 0, 0, 0),
        ];
        Program::new("unreached", ProgType::SchedCls, "GPL", insns)
    };
    let options = Options { profile: KernelProfile::LINUX_6_18, ..Options::default() };
    assert!(verify(program(0, 0), &options).is_ok(), "a function that the loader did not find");
    for (func, off) in [(1, 0), (0, 1), (70_000, 2)] {
        let refused = verify(program(func, off), &options).expect_err("nothing is known of the function");
        assert_eq!((refused.outcome, refused.insn), (Outcome::Unsupported, Some(2)), "{func} {off}");
    }
}
