//! The trace of states, for people and tools that read kernel-style logs.

use std::fmt::Write;

use crate::reg::{Kind, Reg, flag};
use crate::state::{Byte, FP, Slot, State};

/// Longest log that is kept.
const LIMIT: usize = 64 << 20;

/// Lines, as they come.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub text: String,
}

impl Log {
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
                let _ = write!(self.text, " R{n}={}", show(reg));
            }
        }
        let _ = write!(self.text, " R10=fp0");
        for (n, slot) in state.frame().stack.iter().enumerate() {
            if slot.bytes != [Byte::Invalid; 8] {
                let _ = write!(self.text, " fp-{}={}", (n + 1) * 8, show_slot(slot));
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

fn show_slot(slot: &Slot) -> String {
    if slot.is_spill() && slot.is_full_spill() {
        return show(&slot.reg);
    }
    // Highest address first in the slot, lowest first in print.
    let mut text: String = (slot.bytes.iter().rev())
        .map(|b| match b {
            Byte::Invalid => '?',
            Byte::Misc => 'm',
            Byte::Zero => '0',
            Byte::Spill => 'r',
            Byte::Dynptr => 'd',
        })
        .collect();
    if slot.is_spill() {
        text += &show(&slot.reg);
    }
    text
}

fn show(reg: &Reg) -> String {
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
        Kind::Mem => "mem",
        Kind::Socket => "sock",
        Kind::SockCommon => "sock_common",
        Kind::TcpSock => "tcp_sock",
        Kind::Func => "func",
        Kind::Dynptr => "dynptr_ptr",
        Kind::Btf => "ptr",
        Kind::NotInit | Kind::Scalar => "?",
    };
    let null = if reg.nullable() { "_or_null" } else { "" };
    let range = if reg.is_packet() { format!(",r={}", reg.size as i32) } else { String::new() };
    let var = match n.as_const() {
        Some(0) => String::new(),
        Some(x) => format!(",imm={}", x as i64),
        None => format!(",u=[{},{}],s=[{},{}]", n.umin, n.umax, n.smin, n.smax),
    };
    format!("{name}{null}({id}off={}{range}{var})", reg.off)
}
