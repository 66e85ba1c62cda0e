//! What the loading process may do, and what programs of those that may little must not: show addresses, read stack that
//! was never written, call functions, loop.

use skep_ebpf::Errno;
use skep_ebpf::helper::Helper;
use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::ProgType;

use crate::cfg::Cfg;
use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::state::STACK_BYTES;

/// Capabilities of the loading process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Privilege {
    /// All that matter (`CAP_BPF`, `CAP_PERFMON`, `CAP_NET_ADMIN`), as root has.
    #[default]
    Full,
    /// `CAP_BPF` and `CAP_NET_ADMIN` without `CAP_PERFMON`: no tracing, no addresses.
    Bpf,
    /// None, where the system lets such processes load programs at all.
    None,
}

/// Most instructions of a program without `CAP_BPF`.
const MAX_INSNS: usize = 4096;
/// Helpers that need no capability where the program's type has them, asked of a running 6.18.
#[rustfmt::skip]
const OPEN: [u32; 43] = [
    1, 2, 3, 5, 7, 8, 12, 14, 15, 25, 26, 42, 46, 47, 68, 79, 81, 83, 84, 85, 86, 87, 88, 89, 95, 96, 97, 98, 99, 105,
    106, 107, 108, 120, 122, 125, 128, 129, 130, 160, 182, 195, 208,
];
/// Ring buffer helpers need none, either.
const OPEN_RING: std::ops::RangeInclusive<u32> = 131..=134;
/// Helpers that need `CAP_PERFMON`, asked of a running 6.18.
#[rustfmt::skip]
const PERFMON: [u32; 31] = [
    4, 6, 16, 22, 35, 45, 55, 109, 112, 113, 114, 115, 117, 136, 137, 138, 139, 140, 141, 148, 149, 158, 165, 166, 175,
    176, 177, 178, 180, 191, 196,
];

fn barred(text: String) -> Check {
    Err(Failure::new(Errno::EPERM, Reason::CallNeedsPrivilege, text).whole())
}

/// What is said before the program is looked at.
pub(crate) fn check_program(program: &Program, privilege: Privilege) -> Check {
    use ProgType as T;
    let ty = program.prog_type;
    let tracing = matches!(
        ty,
        T::Kprobe
            | T::Tracepoint
            | T::PerfEvent
            | T::RawTracepoint
            | T::RawTracepointWritable
            | T::Tracing
            | T::Lsm
            | T::StructOps
            | T::Ext
    );
    match privilege {
        Privilege::Full => Ok(()),
        Privilege::Bpf if tracing => barred(format!("programs of type {ty} need CAP_PERFMON")),
        Privilege::Bpf => Ok(()),
        Privilege::None if program.insns.len() > MAX_INSNS => Err(Failure::new(
            Errno::E2BIG,
            Reason::ProgramSize,
            format!("the program has {} instructions; without CAP_BPF {MAX_INSNS} are possible", program.insns.len()),
        )
        .whole()),
        Privilege::None => match ty {
            T::SocketFilter | T::CgroupSkb => check_calls(program),
            _ => barred(format!("programs of type {ty} need CAP_BPF")),
        },
    }
}

fn check_calls(program: &Program) -> Check {
    let calls =
        |i: &Insn| i.is_subprog_call() || crate::kfunc::is_call(*i) || i.is_ld_imm64() && i.src() == pseudo::FUNC;
    match program.insns.iter().position(calls) {
        Some(at) => barred(format!("the call at {at}, of another function, needs CAP_BPF")),
        None => Ok(()),
    }
}

/// Loops need `CAP_BPF`.
pub(crate) fn check_loops(cfg: &Cfg, privilege: Privilege) -> Check {
    match cfg.loops.iter().position(|l| *l != 0) {
        Some(at) if privilege == Privilege::None => {
            invalid!(BackEdge, "the program loops at {at}, which needs CAP_BPF").map_err(|f: Box<Failure>| f.at(at))
        }
        _ => Ok(()),
    }
}

impl Env<'_> {
    /// True if the program must not learn addresses, nor see what lies on the stack from before.
    pub fn keeps_secrets(&self) -> bool {
        self.options.privilege != Privilege::Full
    }

    /// What is left of a pointer that became invalid: a number, unless that would show the address.
    pub fn lost(&self) -> Reg {
        if self.keeps_secrets() { Reg::NOT_INIT } else { Reg::UNKNOWN }
    }

    /// True for a value that must not be shown.
    fn is_secret(&self, reg: &Reg) -> bool {
        self.keeps_secrets() && reg.is_pointer()
    }

    /// The helper can be called with the capabilities of the loading process.
    pub fn check_helper_privilege(&self, h: &Helper) -> Check {
        let open = match self.options.privilege {
            Privilege::Full => true,
            Privilege::Bpf => !PERFMON.contains(&h.id),
            Privilege::None => OPEN.contains(&h.id) || OPEN_RING.contains(&h.id),
        };
        if open { Ok(()) } else { invalid!(HelperNotAllowed, "bpf_{} needs a capability that is not there", h.name) }
    }

    /// The value of a register is made into a number, or put where others see it.
    pub fn check_not_shown(&self, r: u8, reg: &Reg, reason: Reason, doing: &str) -> Check {
        if self.is_secret(reg) {
            let text = format!("r{r} is {}; {doing} it shows an address, which needs CAP_PERFMON", reg.describe());
            return Err(Failure::new(Errno::EACCES, reason, text));
        }
        Ok(())
    }

    /// After arithmetic on a pointer: it stays inside, on all paths that the processor may try.
    pub fn check_pointer_stays(&self, r: u8, ptr: &Reg) -> Check {
        if !self.keeps_secrets() {
            return Ok(());
        }
        match ptr.kind {
            Kind::Stack => {
                let at = ptr.num.as_const().map(|k| i64::from(ptr.off).wrapping_add(k as i64));
                if !at.is_some_and(|at| (-i64::from(STACK_BYTES)..0).contains(&at)) {
                    return denied!(
                        StackVariableOffset,
                        "r{r} is {}; without CAP_PERFMON stack pointers stay at known offsets of the stack",
                        ptr.describe()
                    );
                }
                Ok(())
            }
            Kind::MapValue => self.check_map_value(r, ptr, ptr.off.into(), 1, false, false),
            _ => Ok(()),
        }
    }

    /// Without `CAP_BPF` control groups' programs do not see the packet itself, nor set when it is sent.
    pub fn check_context_privilege(&self, off: i64, write: bool) -> bool {
        let (data, time) = (76..84, 152..160);
        self.options.privilege != Privilege::None
            || self.prog.prog_type != ProgType::CgroupSkb
            || !(data.contains(&off) || write && time.contains(&off))
    }

    /// What is known of numbers is kept on the stack and in sums, and what is relied on is told from the rest; without
    /// `CAP_BPF` every number is relied on.
    pub fn tracks_numbers(&self) -> bool {
        self.options.privilege != Privilege::None
    }

    /// Objects of the kernel and maps themselves are for processes with `CAP_PERFMON`.
    pub fn check_sees_kernel(&self, reg: &Reg) -> Check {
        if self.keeps_secrets() {
            let text = format!("{} can only be looked into with CAP_PERFMON", reg.describe());
            return Err(Failure::new(Errno::EPERM, Reason::CallNeedsPrivilege, text));
        }
        Ok(())
    }
}
