//! The table of kernel functions against the live kernel: who may call what, and which calls sleep.
//!
//! Needs `bpf(2)` and the kernel's BTF; skipped without.

mod kernel;

use skep_ebpf::Insn;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::insn::{CALL, EXIT, alu, call, class};
use skep_ebpf::kfunc::{Kfunc, flag};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType, ProgType, prog_flags};

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
