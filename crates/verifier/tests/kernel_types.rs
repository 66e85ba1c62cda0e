//! Loads through pointers to kernel objects, against the live kernel: whether each is permitted, and what it gives.
//!
//! `SKEP_SWEEP=all` tries every offset and size; else a sample is taken.

mod kernel;

use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType, ProgType};
use skep_verifier::{Options, Outcome, verify};

/// Tracepoints and an argument of each: a pointer to a struct worth walking.
const OBJECTS: &[(&str, u32, &str)] = &[
    ("sched_switch", 1, "task_struct"),
    ("kfree_skb", 0, "sk_buff"),
    ("inet_sock_set_state", 0, "sock"),
    ("cgroup_mkdir", 0, "cgroup"),
    ("writeback_dirty_inode", 0, "inode"),
    ("sched_process_exec", 2, "linux_binprm"),
    ("tlb_flush", 0, ""),
    ("mmap_lock_released", 0, "mm_struct"),
    ("netif_rx", 0, "sk_buff"),
    ("workqueue_queue_work", 1, "pool_workqueue"),
];

struct Live {
    options: Options,
    btf: Arc<Btf>,
}

impl Live {
    fn open() -> Option<Live> {
        if !kernel::available() {
            return None;
        }
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").ok()?;
        let btf = Arc::new(Btf::parse(&bytes).expect("the kernel's BTF"));
        Some(Live { options: Options { btf: Some(btf.clone()), log: true, ..Options::default() }, btf })
    }

    fn program(&self, prog_type: ProgType, attach: AttachType, target: &str, text: &str) -> Program {
        let mut program = Program::new("walk", prog_type, "GPL", assemble(text).expect("a program"));
        program.attach_type = Some(attach);
        program.attach_btf_id =
            self.btf.find(target, |k| matches!(k, Kind::Func { .. } | Kind::Typedef { .. })).unwrap_or(0);
        program
    }

    /// Both verdicts; `None` where they agree, in what the register holds at last as well.
    fn differ(&self, program: &Program, register: u8) -> Option<String> {
        let theirs = kernel::load_with(program, &[], 2).expect("no maps");
        let ours = verify(program.clone(), &self.options);
        let accepted = theirs.errno == 0;
        match &ours {
            Err(r) if r.outcome == Outcome::Unsupported => Some(format!("unsupported: {r}")),
            Ok(_) if !accepted => Some(format!("accepted, the kernel: {}", last_words(&theirs.log))),
            Err(r) if accepted => Some(format!("rejected: {r}")),
            Err(_) => None,
            Ok(v) => {
                let (a, b) = (held(v.log(), register), held(&theirs.log, register));
                (a != b).then(|| format!("r{register} is {a:?}, in the kernel {b:?}"))
            }
        }
    }
}

fn last_words(log: &str) -> String {
    log.lines().rev().skip(1).take(2).collect::<Vec<_>>().join(" | ")
}

/// What a register holds at last, by a trace of states: its kind and type, without values.
fn held(log: &str, register: u8) -> Option<String> {
    let text = log.rsplit_once(&format!("R{register}="))?.1;
    let end = text.find(['(', ' ', ';', '\n']).unwrap_or(text.len());
    let kind = text.get(..end)?.trim_start_matches('P');
    let number = kind.parse::<i64>().is_ok() || kind.starts_with("0x");
    Some(if number { "scalar".into() } else { kind.to_owned() })
}

#[test]
fn loads_of_members() {
    let Some(live) = Live::open() else { return };
    let all = std::env::var("SKEP_SWEEP").is_ok_and(|s| s == "all");
    let (mut tried, mut faults) = (0u32, Vec::new());
    for &(tracepoint, argument, name) in OBJECTS {
        let Some(id) = live.btf.find(name, |k| matches!(k, Kind::Struct(_))) else { continue };
        let size = live.btf.size_of(id).unwrap_or(0) as u32;
        let step = if all { 1 } else { (size / 29).max(1) };
        let mut offsets: Vec<u32> = (0..size + 16).step_by(step as usize).collect();
        if !all {
            // Members are where it matters.
            let members = live.btf.kind(id).and_then(|k| k.composite()).map_or(&[][..], |c| &c.members);
            offsets.extend(members.iter().map(|m| m.bit_offset / 8));
        }
        for off in offsets {
            for bits in [8, 16, 32, 64] {
                if !all && bits != 64 && off % 7 != 0 {
                    continue;
                }
                let text = format!("r1 = *(u64 *)(r1 +{})\nr2 = *(u{bits} *)(r1 +{off})\nr0 = 0\nexit\n", argument * 8);
                let target = format!("btf_trace_{tracepoint}");
                let program = live.program(ProgType::Tracing, AttachType::TraceRawTp, &target, &text);
                tried += 1;
                if let Some(fault) = live.differ(&program, 2) {
                    faults.push(format!("{tracepoint}: {name} u{bits} at {off}: {fault}"));
                }
            }
        }
    }
    println!("{tried} loads");
    faults.truncate(40);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn arguments_of_tracepoints() {
    let Some(live) = Live::open() else { return };
    let all = std::env::var("SKEP_SWEEP").is_ok_and(|s| s == "all");
    let (mut tried, mut faults) = (0u32, Vec::new());
    let typedefs = live.btf.iter().filter(|(_, t)| matches!(t.kind, Kind::Typedef { .. }));
    let targets: Vec<&str> =
        typedefs.map(|(id, _)| live.btf.name(id)).filter(|n| n.starts_with("btf_trace_")).collect();
    for (n, target) in targets.iter().enumerate() {
        if !all && n % 29 != 0 {
            continue;
        }
        for argument in 0..13 {
            for bits in [32, 64] {
                let text = format!("r1 = *(u{bits} *)(r1 +{})\nr0 = 0\nexit\n", argument * 8);
                let program = live.program(ProgType::Tracing, AttachType::TraceRawTp, target, &text);
                tried += 1;
                if let Some(fault) = live.differ(&program, 1) {
                    faults.push(format!("{target}: argument {argument} as u{bits}: {fault}"));
                }
            }
        }
    }
    println!("{tried} loads");
    faults.truncate(40);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn contexts_of_iterators_and_operations() {
    let Some(live) = Live::open() else { return };
    let mut faults = Vec::new();
    let functions = live.btf.iter().filter(|(_, t)| matches!(t.kind, Kind::Func { .. }));
    let iters: Vec<&str> = functions.map(|(id, _)| live.btf.name(id)).filter(|n| n.starts_with("bpf_iter_")).collect();
    let access = |op: &str| -> Vec<(String, u32)> {
        let one = |off: u32, bits: u32| {
            let text = match op {
                "read" => format!("r1 = *(u{bits} *)(r1 +{off})\nr0 = 0\nexit\n"),
                _ => format!("*(u{bits} *)(r1 +{off}) = 0\nr0 = 0\nexit\n"),
            };
            (text, off)
        };
        (0..6).flat_map(|n| [one(n * 8, 64), one(n * 8, 32), one(n * 8 + 4, 32)]).collect()
    };
    for target in &iters {
        for (text, off) in access("read").into_iter().chain(access("write")) {
            let program = live.program(ProgType::Tracing, AttachType::TraceIter, target, &text);
            if let Some(fault) = live.differ(&program, 1) {
                faults.push(format!("{target} at {off}: {fault}"));
            }
        }
    }
    for ops in ["bpf_dummy_ops", "tcp_congestion_ops"] {
        let Some(id) = live.btf.find(ops, |k| matches!(k, Kind::Struct(_))) else { continue };
        let members = live.btf.kind(id).and_then(|k| k.composite()).map_or(0, |c| c.members.len());
        for member in 0..=members as u32 {
            for (text, off) in access("read").into_iter().chain(access("write")) {
                let mut program = live.program(ProgType::StructOps, AttachType::StructOps, "", &text);
                program.attach_type = AttachType::from_u32(member).filter(|_| member != 0);
                program.attach_btf_id = id;
                if let Some(fault) = live.differ(&program, 1) {
                    faults.push(format!("{ops} member {member} at {off}: {fault}"));
                }
            }
        }
    }
    faults.truncate(40);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
