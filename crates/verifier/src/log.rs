//! The trace of states, for people and tools that read kernel-style logs.

use std::fmt::Write;

use skep_ebpf::btf::Btf;

use crate::reg::{Kind, Reg, flag};
use crate::state::{Byte, FP, Slot, State};

/// Longest log that is kept.
const LIMIT: usize = 64 << 20;

/// Lines, as they come.
#[derive(Debug, Default)]
pub(crate) struct Log<'a> {
    pub text: String,
    pub names: TypeNames<'a>,
}

/// Where the names of types come from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TypeNames<'a> {
    /// The kernel's.
    pub kernel: Option<&'a Btf>,
    /// The program's own.
    pub program: Option<&'a Btf>,
}

impl<'a> TypeNames<'a> {
    /// The BTF that the type of an object belongs to.
    pub fn of(self, reg: &Reg) -> Option<&'a Btf> {
        if reg.flags & flag::LOCAL_TYPE != 0 { self.program } else { self.kernel }
    }

    /// Name of the type of an object, empty if it is not known.
    fn name(self, reg: &Reg) -> &'a str {
        self.of(reg).map_or("", |btf| btf.name(reg.what))
    }
}

impl Log<'_> {
    /// The state before an instruction.
    pub fn state(&mut self, insn: usize, state: &State) {
        if self.text.len() > LIMIT {
            return;
        }
        let _ = write!(self.text, "{insn}:");
        if state.depth() > 0 {
            let _ = write!(self.text, " frame{}:", state.depth());
        }
        for (n, reg) in state.regs().iter().enumerate() {
            if reg.kind != Kind::NotInit && n != FP {
                let _ = write!(self.text, " R{n}={}", show(reg, self.names));
            }
        }
        let _ = write!(self.text, " R10=fp0");
        for (n, slot) in state.frame().stack.iter().enumerate() {
            if slot.bytes != [Byte::Invalid; 8] {
                let _ = write!(self.text, " fp-{}={}", (n + 1) * 8, show_slot(slot, self.names));
            }
        }
        self.text.push('\n');
    }

    /// A remark.
    pub fn note(&mut self, text: &str) {
        if self.text.len() <= LIMIT {
            self.text.push_str(text);
            self.text.push('\n');
        }
    }
}

fn show_slot(slot: &Slot, names: TypeNames<'_>) -> String {
    if slot.is_spill() && slot.is_full_spill() {
        return show(&slot.reg, names);
    }
    // Highest address first in the slot, lowest first in print.
    let mut text: String = (slot.bytes.iter().rev())
        .map(|b| match b {
            Byte::Invalid => '?',
            Byte::Misc => 'm',
            Byte::Zero => '0',
            Byte::Spill => 'r',
            Byte::Dynptr => 'd',
            Byte::Iter => 'i',
            Byte::Irq => 'f',
        })
        .collect();
    if slot.is_spill() {
        text += &show(&slot.reg, names);
    }
    text
}

fn show(reg: &Reg, names: TypeNames<'_>) -> String {
    let precise = if reg.precise { "P" } else { "" };
    let id = if reg.id != 0 { format!("id={},", reg.id) } else { String::new() };
    let n = &reg.num;
    if reg.is_scalar() {
        return match n.as_const() {
            Some(x) => format!("{precise}{}", x as i64),
            None => format!(
                "{precise}scalar({id}u=[{:#x},{:#x}],s=[{},{}],u32=[{:#x},{:#x}],s32=[{},{}],bits={})",
                n.umin, n.umax, n.smin, n.smax, n.umin32, n.umax32, n.smin32, n.smax32, n.bits
            ),
        };
    }
    let name = match reg.kind {
        Kind::Ctx => "ctx",
        Kind::Map => "map_ptr",
        Kind::MapValue => "map_value",
        Kind::MapKey => "map_key",
        Kind::Stack => "fp",
        Kind::Packet => "pkt",
        Kind::PacketMeta => "pkt_meta",
        Kind::PacketEnd => "pkt_end",
        Kind::Mem if reg.flags & flag::RINGBUF != 0 => "ringbuf_mem",
        Kind::Mem if reg.flags & flag::BUFFER != 0 => "buf",
        Kind::Mem => "mem",
        Kind::Socket => "sock",
        Kind::SockCommon => "sock_common",
        Kind::TcpSock => "tcp_sock",
        Kind::XdpSock => "xdp_sock",
        Kind::FlowKeys => "flow_keys",
        Kind::TpBuffer => "tp_buffer",
        Kind::Func => "func",
        Kind::Dynptr => "dynptr_ptr",
        Kind::Iter => "iter",
        Kind::Arena => "arena",
        Kind::Btf => "ptr_",
        Kind::NotInit | Kind::Scalar => "?",
    };
    let null = if reg.nullable() { "_or_null" } else { "" };
    let range = if reg.is_packet() { format!(",r={}", reg.size as i32) } else { String::new() };
    let var = match n.as_const() {
        Some(0) => String::new(),
        Some(x) => format!(",imm={}", x as i64),
        None => format!(",u=[{},{}],s=[{},{}]", n.umin, n.umax, n.smin, n.smax),
    };
    let mut prefix = String::new();
    for (bit, word) in PREFIXES {
        if reg.flags & bit != 0 {
            prefix += word;
        }
    }
    // The name of the type comes last.
    let (null, ty) = match (reg.kind, null) {
        (Kind::Btf, "") => ("", names.name(reg)),
        (Kind::Btf, _) => ("or_null_", names.name(reg)),
        _ => (null, ""),
    };
    format!("{prefix}{name}{null}{ty}({id}off={}{range}{var})", reg.off)
}

/// What stands in front of the kind of a pointer, by flag.
const PREFIXES: [(u32, &str); 8] = [
    (flag::ALLOCATED, "alloc_"),
    (flag::READ_ONLY, "rdonly_"),
    (flag::USER, "user_"),
    (flag::PERCPU, "percpu_"),
    (flag::RCU, "rcu_"),
    (flag::UNTRUSTED, "untrusted_"),
    (flag::TRUSTED, "trusted_"),
    (flag::NON_OWNING, "non_own_ref_"),
];
