//! Small programs with a known verdict, one rule each; see `cases/*.txt`. Where `bpf(2)` works, the kernel is asked too.
//!
//! A case is `=== name | program type[/attach type[:target]] [sleepable] [nongpl] | verdict`, perhaps ` | functions`, then
//! the program. A target is a tracepoint, an iterator or `struct.operation`. The verdict is `accept`, a reason, a reason
//! and `, kernel accepts`, or `accept, kernel without` where the kernel may be built without what the case is about.
//! Functions behind the main one are given as `global:cp`, `static:i>v`: linkage, parameters and result (see [`typed`]);
//! one of linkage `catch`, at the label `catch`, is the one that exceptions end in. `map[name]` is one of [`maps`],
//! `subprog[label]` the address of a function, `call kfunc[name]` calls a kernel function, `type[name]` is the number of a
//! kernel struct and `field[struct.member]` where a member stands; they need the kernel's BTF. `insn OPCODE REGISTERS OFFSET
//! IMMEDIATE` (hex) is an instruction as it stands. `SKEP_CASE` picks a case by name.

// The command's own renderer, which sees the crates through its facade.
extern crate self as skep;
pub use skep_ebpf as ebpf;
pub use skep_verifier as verifier;
#[path = "../../cli/src/explain.rs"]
#[allow(dead_code)] // only rejections are rendered here
mod explain;
#[path = "../../cli/src/marked.rs"]
mod marked;

mod catalogue;
mod kernel;
mod typed;

use std::sync::Arc;

use skep_ebpf::asm::{AsmError, assemble};
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::insn::Insn;
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{AttachType, MapType, ProgType, map_flags, prog_flags};
use skep_verifier::{KernelProfile, Options, Privilege, verify};

struct Case {
    name: &'static str,
    target: &'static str,
    license: &'static str,
    prog_type: (ProgType, Option<AttachType>),
    verdict: &'static str,
    kernel_accepts: bool,
    sleepable: bool,
    functions: Option<Vec<typed::Function>>,
    text: String,
}

/// A program type, perhaps with an attach type: `sched_cls`, `cgroup_sock_addr/cgroup_inet4_bind`.
fn prog_type(name: &str) -> (ProgType, Option<AttachType>) {
    let (name, attach) = name.split_once('/').unwrap_or((name, ""));
    let ty = ProgType::from_name(name).unwrap_or_else(|| panic!("program type {name}"));
    (ty, AttachType::from_name(attach))
}

/// `catch` is the label at which a function of linkage `catch` starts.
fn functions(text: &str, catch: Option<u32>) -> Vec<typed::Function> {
    let one = |f: &str| {
        let (linkage, params) = f.split_once(':').expect("linkage:parameters");
        let (params, returns) = params.split_once('>').unwrap_or((params, "i"));
        let catches = if linkage == "catch" { catch } else { None };
        let returns = returns.chars().next().expect("what it returns");
        typed::Function { returns, catches, ..typed::Function::new(params, linkage != "static") }
    };
    text.split_whitespace().map(one).collect()
}

fn cases(file: &'static str) -> Vec<Case> {
    let one = |case: &'static str| {
        let (head, text) = case.split_once('\n').unwrap_or((case, ""));
        let mut fields = head.split('|').map(str::trim);
        let mut next = || fields.next().unwrap_or("");
        let (name, ty, verdict, types) = (next(), next(), next(), next());
        let (verdict, kernel) = verdict.split_once(',').unwrap_or((verdict, ""));
        let (ty, license) = ty.strip_suffix(" nongpl").map_or((ty, "GPL"), |ty| (ty, "MIT"));
        let bare = ty.trim_end_matches(" sleepable");
        let (bare, target) = bare.split_once(':').unwrap_or((bare, ""));
        Case {
            name,
            target,
            license,
            prog_type: prog_type(bare),
            verdict,
            kernel_accepts: verdict == "accept" && kernel.trim() != "kernel without"
                || kernel.trim() == "kernel accepts",
            sleepable: ty.ends_with(" sleepable"),
            functions: (!types.is_empty()).then(|| functions(types.trim_start_matches("typed"), label(text, "catch"))),
            text: name_functions(text),
        }
    };
    file.split("\n=== ").skip(1).map(one).collect()
}

/// The slot that each line of a program stands at, and its labels with theirs.
fn slots(text: &str) -> (Vec<i64>, Vec<(String, i64)>) {
    let mut slot = 0i64;
    let mut labels = Vec::new();
    let slots = text
        .lines()
        .map(|line| {
            let line = line.split("//").next().unwrap_or("").trim();
            let at = slot;
            match line.strip_suffix(':') {
                Some(label) => labels.push((label.to_owned(), at)),
                None if line.is_empty() => {}
                None => {
                    slot +=
                        if line.contains("map[") || line.contains("subprog[") || line.ends_with("ll") { 2 } else { 1 }
                }
            }
            at
        })
        .collect();
    (slots, labels)
}

/// Where a label stands.
fn label(text: &str, name: &str) -> Option<u32> {
    slots(text).1.into_iter().find(|(l, _)| l == name).map(|(_, at)| at as u32)
}

/// Puts distances for the labels in `subprog[label]`, which the assembler has not.
fn name_functions(text: &str) -> String {
    let (slots, labels) = slots(text);
    let mut out = String::new();
    for (line, at) in text.lines().zip(slots) {
        let mut line = line.to_owned();
        for (label, target) in &labels {
            line = line.replace(&format!("subprog[{label}]"), &format!("subprog[{}]", target - at - 1));
        }
        out += &line;
        out.push('\n');
    }
    out
}

/// Makes the program attach to a tracepoint, an iterator or an operation; `None` if this kernel has it not.
fn attach(program: &mut Program, target: &str, btf: Option<&Btf>) -> Option<()> {
    let btf = btf?;
    program.attach_btf_id = match (program.attach_type, target.split_once('.')) {
        (Some(AttachType::TraceRawTp), _) => {
            btf.find(&format!("btf_trace_{target}"), |k| matches!(k, Kind::Typedef { .. }))?
        }
        (Some(AttachType::TraceIter), _) => {
            btf.find(&format!("bpf_iter_{target}"), |k| matches!(k, Kind::Func { .. }))?
        }
        (_, Some((ops, member))) => {
            let id = btf.find(ops, |k| matches!(k, Kind::Struct(_)))?;
            let members = &btf.kind(id)?.composite()?.members;
            let index = members.iter().position(|m| btf.str_at(m.name_off) == Some(member))? as u32;
            program.attach_type = AttachType::from_u32(index).filter(|_| index != 0);
            id
        }
        _ => return None,
    };
    Some(())
}

/// Where a member of a kernel struct stands, looked for in unnamed members as well.
fn member(btf: &Btf, id: u32, name: &str) -> Option<u32> {
    btf.kind(btf.resolve(id)?)?.composite()?.members.iter().find_map(|m| match btf.str_at(m.name_off) {
        Some(n) if n == name => Some(m.bit_offset / 8),
        Some("") => Some(m.bit_offset / 8 + member(btf, m.ty, name)?),
        _ => None,
    })
}

/// Puts offsets for `field[struct.member]`; `None` if this kernel has not all of them.
fn name_fields(text: &str, btf: Option<&Btf>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("field[") {
        let (name, behind) = after.split_once(']')?;
        let (object, field) = name.split_once('.')?;
        let btf = btf?;
        let id = btf.find(object, |k| matches!(k, Kind::Struct(_)))?;
        out += before;
        out += &member(btf, id, field)?.to_string();
        rest = behind;
    }
    Some(out + rest)
}

/// Puts numbers for the names of kernel functions and types; `None` if this kernel has not all of them.
fn name_kernel(text: &str, btf: Option<&Btf>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("kfunc[").into_iter().chain(rest.find("type[")).min() {
        let function = rest[at..].starts_with("kfunc[");
        let (before, after) = rest.split_at(at);
        let (name, behind) = after.split_once('[')?.1.split_once(']')?;
        out += before;
        let wanted = |k: &Kind| if function { matches!(k, Kind::Func { .. }) } else { matches!(k, Kind::Struct(_)) };
        let id = btf?.find(name, wanted)?;
        out += &if function { format!("kernel-function#{id}") } else { id.to_string() };
        rest = behind;
    }
    Some(out + rest)
}

/// Puts numbers for the program's own types: `local[name]`.
fn name_own(text: &str, ids: &typed::objects::Ids) -> String {
    let mut parts = text.split("local[");
    let mut out = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let (name, rest) = part.split_once(']').expect("local[name]");
        out += &ids.get(name).to_string();
        out += rest;
    }
    out
}

/// What the programs name by index.
fn maps() -> Vec<MapDef> {
    let with = |mut m: MapDef, flags| {
        m.flags = flags;
        m
    };
    let frozen = |mut m: MapDef| {
        m.frozen = true;
        m
    };
    let of = |map_type, key_size, inner| {
        let mut m = MapDef::new("maps", map_type, key_size, 4, 2);
        m.inner = Some(Arc::new(inner));
        m
    };
    let mut rodata = MapDef::new("rodata", MapType::Array, 4, 8, 1);
    (rodata.flags, rodata.frozen, rodata.initial) = (map_flags::RDONLY_PROG, true, Some(vec![5, 0, 0, 0, 9, 0, 0, 0]));
    let mut formats = MapDef::new("formats", MapType::Array, 4, 52, 1);
    let text = b"n=%5lld\0%n\0\0\0\0\0\0\xe2\x86\x92\0\0\0\0\0a\x01\0\0\0\0\0\0%s, %%\0\0%sx\0\0\0\0\0abcd";
    (formats.flags, formats.frozen, formats.initial) = (map_flags::RDONLY_PROG, true, Some(text.to_vec()));
    let mut outer = MapDef::new("outer", MapType::ArrayOfMaps, 4, 4, 2);
    outer.inner = Some(Arc::new(MapDef::new("inner", MapType::Array, 4, 16, 4)));
    let mut growing = MapDef::new("growing", MapType::ArrayOfMaps, 4, 4, 2);
    growing.inner = Some(Arc::new(with(MapDef::new("inner", MapType::Array, 4, 16, 4), map_flags::INNER_MAP)));
    vec![
        MapDef::new("array", MapType::Array, 4, 16, 4),
        MapDef::new("hash", MapType::Hash, 8, 16, 16),
        rodata,
        MapDef::new("ring", MapType::Ringbuf, 0, 0, 4096),
        MapDef::new("progs", MapType::ProgArray, 4, 4, 4),
        with(MapDef::new("wronly", MapType::Array, 4, 16, 4), map_flags::WRONLY_PROG),
        with(MapDef::new("rdonly", MapType::Hash, 4, 16, 4), map_flags::RDONLY_PROG),
        outer,
        growing,
        MapDef::new("devmap", MapType::Devmap, 4, 8, 4),
        MapDef::new("events", MapType::PerfEventArray, 4, 4, 4),
        MapDef::new("data", MapType::Array, 4, 16, 1),
        MapDef::new("cpumap", MapType::Cpumap, 4, 4, 4),
        MapDef::new("stacks", MapType::StackTrace, 4, 64, 4),
        MapDef::new("queue", MapType::Queue, 0, 8, 4),
        MapDef::new("user_ring", MapType::UserRingbuf, 0, 0, 4096),
        formats,
        of(MapType::ArrayOfMaps, 4, MapDef::new("inner_ring", MapType::Ringbuf, 0, 0, 4096)),
        of(MapType::HashOfMaps, 8, MapDef::new("inner_hash", MapType::Hash, 8, 16, 16)),
        MapDef::new("percpu", MapType::PercpuArray, 4, 8, 4),
        MapDef::new("bloom", MapType::BloomFilter, 0, 8, 16),
        MapDef::new("stack", MapType::Stack, 0, 8, 4),
        MapDef::new("percpu_hash", MapType::PercpuHash, 4, 8, 4),
        MapDef::new("lru", MapType::LruHash, 4, 8, 4),
        of(MapType::ArrayOfMaps, 4, MapDef::new("inner_percpu", MapType::PercpuArray, 4, 8, 4)),
        frozen(MapDef::new("frozen", MapType::Array, 4, 16, 1)),
        with(frozen(MapDef::new("frozen_two", MapType::Array, 4, 16, 2)), map_flags::RDONLY_PROG),
        with(frozen(MapDef::new("frozen_hash", MapType::Hash, 4, 16, 2)), map_flags::RDONLY_PROG),
        with(frozen(MapDef::new("frozen_zero", MapType::Array, 4, 16, 1)), map_flags::RDONLY_PROG),
        MapDef::new("sockmap", MapType::Sockmap, 4, 4, 4),
        MapDef::new("xsk", MapType::Xskmap, 4, 4, 4),
        MapDef::new("storage", MapType::CgroupStorage, 8, 16, 0),
        MapDef::new("percpu_storage", MapType::PercpuCgroupStorage, 8, 16, 0),
        MapDef::new("second_storage", MapType::CgroupStorage, 8, 16, 0),
    ]
}

/// Checks the cases of a file; what is wrong with each.
fn run(file: &'static str) {
    check(file, &maps().into(), None, Privilege::Full);
}

/// The same for programs with types and maps that have special fields.
fn run_objects(file: &'static str) {
    let (_, _, ids) = typed::blob_with(&[], true);
    check(file, &typed::objects::maps(&ids).into(), Some(&ids), Privilege::Full);
}

/// The program of a case, and its types; `None` if this kernel has not all that it names.
fn program(
    case: &Case,
    maps: &Arc<[MapDef]>,
    objects: Option<&typed::objects::Ids>,
    btf: Option<&Btf>,
) -> Option<(Program, Option<Vec<u8>>)> {
    let text = objects.map_or_else(|| case.text.clone(), |ids| name_own(&case.text, ids));
    let text = name_fields(&text, btf)?;
    let text = maps
        .iter()
        .enumerate()
        .fold(text, |text, (n, m)| text.replace(&format!("map[{}]", m.name), &format!("map[idx:{n}]")));
    let text = name_kernel(&text, btf)?;
    let insns = assemble_raw(&text).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut program = Program::new("case", case.prog_type.0, case.license, insns);
    program.attach_type = case.prog_type.1;
    if !case.target.is_empty() {
        attach(&mut program, case.target, btf)?;
    }
    program.maps = maps.clone();
    if case.sleepable {
        program.flags |= prog_flags::SLEEPABLE;
    }
    let functions = case.functions.clone().or_else(|| objects.map(|_| Vec::new()));
    let raw = functions.map(|f| typed::attach_with(&mut program, &f, objects.is_some()));
    Some((program, raw))
}

/// Assembles a text in which a line may be `insn OPCODE REGISTERS OFFSET IMMEDIATE`, in hex, as it stands.
fn assemble_raw(text: &str) -> Result<Vec<Insn>, AsmError> {
    let mut raw = Vec::new();
    let mut plain = String::new();
    for (line, slot) in text.lines().zip(slots(text).0) {
        match line.strip_prefix("insn ") {
            Some(fields) => {
                let mut fields = fields.split_whitespace().map(|f| u32::from_str_radix(f, 16).expect("hex"));
                let mut next = || fields.next().expect("four fields");
                let (code, regs, off, imm) = (next() as u8, next() as u8, next() as i16, next() as i32);
                raw.push((slot as usize, Insn { code, regs, off, imm }));
                plain += "r0 = 0";
            }
            None => plain += line,
        }
        plain.push('\n');
    }
    let mut insns = assemble(&plain)?;
    for (slot, insn) in raw {
        insns[slot] = insn;
    }
    Ok(insns)
}

fn check(file: &'static str, maps: &Arc<[MapDef]>, objects: Option<&typed::objects::Ids>, privilege: Privilege) {
    let fds = if kernel::available() && objects.is_none() { kernel::maps(maps) } else { None };
    let closed = privilege == Privilege::None && !kernel::lets_anybody_load();
    if closed {
        eprintln!("not asked: kernel.unprivileged_bpf_disabled is not 0, so the kernel is not asked");
    }
    let kernel_there = kernel::available() && !closed;
    let only = std::env::var("SKEP_CASE").ok();
    let btf = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|raw| Btf::parse(&raw).ok()).map(Arc::new);
    let mut faults = Vec::new();
    for case in cases(file) {
        if only.as_ref().is_some_and(|n| n != case.name) {
            continue;
        }
        let Some((program, raw)) = program(&case, maps, objects, btf.as_deref()) else { continue };
        let profile = KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
        let (verdict, message) =
            match verify(program.clone(), &Options { profile, btf: btf.clone(), privilege, ..Options::default() }) {
                Ok(_) => ("accept", String::new()),
                Err(r) => (r.reason, r.to_string()),
            };
        if verdict != case.verdict {
            faults.push(format!("{}: {verdict} ({message}), not {}", case.name, case.verdict));
        }
        if !kernel_there {
            continue;
        }
        let btf = raw.map(|r| kernel::btf(&r).expect("the kernel takes the BTF"));
        let own = if objects.is_some() { btf.as_ref().and_then(|b| kernel::typed_maps(maps, b)) } else { None };
        let fds = own.as_ref().or(fds.as_ref()).expect("the kernel makes the maps");
        let ask = || kernel::load_typed(&program, fds, btf.as_ref(), 1).expect("maps");
        let answer = match privilege {
            Privilege::Full => ask(),
            Privilege::Bpf => kernel::without_perfmon(ask),
            Privilege::None => kernel::without_capabilities(ask),
        };
        if only.is_some() {
            println!("{}\nhere: {verdict} {message}", answer.log);
        }
        if (answer.errno == 0) != case.kernel_accepts {
            let lines: Vec<&str> = answer.log.lines().rev().take(4).collect();
            faults.push(format!("{}: the kernel says {}: {lines:?}", case.name, answer.errno));
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn types() {
    run(include_str!("cases/types.txt"));
}

#[test]
fn calls() {
    run(include_str!("cases/calls.txt"));
}

#[test]
fn objects() {
    run_objects(include_str!("cases/objects.txt"));
}

#[test]
fn memory() {
    run(include_str!("cases/memory.txt"));
}

#[test]
fn dynptr() {
    run(include_str!("cases/dynptr.txt"));
}

#[test]
fn callbacks() {
    run(include_str!("cases/callbacks.txt"));
}

#[test]
fn kfunc() {
    run(include_str!("cases/kfunc.txt"));
}

#[test]
fn sections() {
    run(include_str!("cases/sections.txt"));
}

#[test]
fn strings() {
    run(include_str!("cases/strings.txt"));
}

#[test]
fn dynptr_kfuncs() {
    run(include_str!("cases/dynptr_kfuncs.txt"));
}

#[test]
fn iterators() {
    run(include_str!("cases/iterators.txt"));
}

#[test]
fn exceptions() {
    run(include_str!("cases/exceptions.txt"));
}

#[test]
fn map_kinds() {
    run(include_str!("cases/maps.txt"));
}

#[test]
fn globals() {
    run(include_str!("cases/globals.txt"));
}

#[test]
fn kernel_objects() {
    run(include_str!("cases/kernel_objects.txt"));
}

#[test]
fn spill_pairs() {
    run(include_str!("cases/spill_pairs.txt"));
}

#[test]
fn later() {
    run_objects(include_str!("cases/later.txt"));
}

/// Asked of a process that has no `CAP_PERFMON`.
#[test]
fn leaks() {
    check(include_str!("cases/leaks.txt"), &maps().into(), None, Privilege::Bpf);
}

/// Asked of a process without capabilities, where the kernel lets such processes load programs.
#[test]
fn unprivileged() {
    check(include_str!("cases/unprivileged.txt"), &maps().into(), None, Privilege::None);
}
