//! What the checker notes of instructions as it passes them, to be told when the program is rewritten.
//!
//! Of numbers only those are noted that the checker relied on (which are compared when it leaves out a path): of others,
//! paths that were left out may have more.

use std::collections::BTreeMap;

use skep_ebpf::helper::{Arg, Helper};
use skep_ebpf::insn::{Insn, class};

use super::facts::{MapArg, Memory};
use crate::env::Env;
use crate::helper_args::CallFacts;
use crate::reg::{Kind, Reg, flag};

const MAP_LOOKUP: u32 = 1;
const MAP_LOOKUP_PERCPU: u32 = 195;
const TAIL_CALL: u32 = 12;
const LOOP: u32 = 181;

/// A number over all paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Same<T> {
    /// No path was there.
    #[default]
    Unseen,
    /// The same on all paths so far.
    One(T),
    /// Not known, or not the same.
    Various,
}

impl<T: Copy + PartialEq> Same<T> {
    fn join(&mut self, x: Option<T>) {
        *self = match (*self, x) {
            (Same::Unseen, Some(x)) => Same::One(x),
            (Same::One(old), Some(x)) if old == x => *self,
            _ => Same::Various,
        };
    }

    pub fn get(self) -> Option<T> {
        if let Same::One(x) = self { Some(x) } else { None }
    }
}

/// What was seen of one call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallNote {
    pub map: Same<MapArg>,
    pub key: Same<u64>,
    /// Index of the function that is called back.
    pub callback: Same<u32>,
    pub no_flags: Same<bool>,
    pub found: Same<bool>,
    pub args: [Memory; 5],
}

/// All that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    /// By instruction: where accesses go.
    pub memory: Vec<Memory>,
    /// By instruction.
    pub calls: BTreeMap<u32, CallNote>,
    /// Arithmetic of 64 bits on addresses in the arena: whether it is that on all paths.
    pub arena_arithmetic: BTreeMap<u32, bool>,
    /// The context goes to a helper, a kernel function or another program.
    pub ctx_leaves: bool,
}

impl Notes {
    /// Nothing seen of this many instructions.
    pub fn new(insns: usize) -> Notes {
        Notes { memory: vec![Memory::None; insns], ..Notes::default() }
    }
}

impl Env<'_> {
    /// What the address in a register leads to; `off` is the offset of the access.
    fn memory_of(&self, reg: &Reg, off: i64) -> Memory {
        match reg.kind {
            Kind::NotInit | Kind::Scalar | Kind::Map | Kind::Func => Memory::None,
            Kind::Stack if usize::from(reg.frame) != self.state.depth() => Memory::CallerStack,
            Kind::Stack => Memory::Stack(
                reg.num
                    .as_const()
                    .and_then(|n| i16::try_from(off.checked_add(reg.off.into())?.checked_add(n as i64)?).ok()),
            ),
            Kind::Ctx => Memory::Ctx,
            Kind::MapValue if reg.size != 0 => Memory::MapValue(None),
            Kind::MapValue => Memory::MapValue(Some(reg.what)),
            Kind::MapKey => Memory::MapKey,
            Kind::Packet | Kind::PacketMeta | Kind::PacketEnd => Memory::Packet,
            Kind::Mem if reg.is_untrusted_memory() || reg.flags & flag::UNTRUSTED != 0 => Memory::Guarded,
            Kind::Mem | Kind::FlowKeys | Kind::TpBuffer => Memory::Plain,
            Kind::Arena => Memory::Arena,
            Kind::Btf if reg.is_allocated() && reg.flags & flag::UNTRUSTED == 0 => Memory::Plain,
            Kind::Btf | Kind::Socket | Kind::SockCommon | Kind::TcpSock | Kind::XdpSock => Memory::Guarded,
            Kind::Dynptr | Kind::Iter => Memory::Plain,
        }
    }

    /// Notes where the access of the current instruction goes.
    pub fn note_access(&mut self, ptr: &Reg, off: i16) {
        let seen = self.memory_of(ptr, off.into());
        if let Some(note) = self.notes.memory.get_mut(self.insn) {
            *note = note.join(seen);
        }
    }

    /// Notes whether an arithmetic instruction was on an address in the arena.
    pub fn note_arithmetic(&mut self, i: Insn, arena: bool) {
        // Programs without an arena, most of them, pay for one look.
        if i.class() == class::ALU64 && (arena || !self.notes.arena_arithmetic.is_empty()) {
            let at = self.insn as u32;
            let first = self.facts.get(self.insn).is_none_or(|f| f.visits <= 1);
            let always = self.notes.arena_arithmetic.entry(at).or_insert(first);
            *always &= arena;
        }
    }

    fn note_args(&mut self, count: usize) {
        let seen: [Memory; 5] = std::array::from_fn(|n| match n < count {
            true => self.memory_of(self.state.reg(n as u8 + 1), 0),
            false => Memory::None,
        });
        self.notes.ctx_leaves |= seen.contains(&Memory::Ctx);
        let note = self.notes.calls.entry(self.insn as u32).or_default();
        for (note, seen) in note.args.iter_mut().zip(seen) {
            *note = note.join(seen);
        }
    }

    /// Notes a call of a helper whose arguments were checked.
    pub fn note_helper(&mut self, h: &Helper, facts: &CallFacts) {
        self.note_args(h.args.len());
        let map = h.args.iter().position(|a| *a == Arg::MapPtr).map(|n| self.state.reg(n as u8 + 1));
        let map = map.filter(|r| r.kind == Kind::Map).map(|r| match r.size {
            0 => MapArg::One(r.what),
            _ => MapArg::Unknown,
        });
        let key = match h.id {
            // Relied on only if it is in the map; see `check_helper`.
            TAIL_CALL => {
                let entries = facts.map.and_then(|m| self.maps.get(m as usize)).map_or(0, |m| m.def.max_entries);
                self.state.reg(3).as_const().filter(|k| *k < u64::from(entries))
            }
            MAP_LOOKUP | MAP_LOOKUP_PERCPU => facts.constant_key,
            _ => None,
        };
        let entries = facts.map.and_then(|m| self.maps.get(m as usize)).map_or(0, |m| m.def.max_entries);
        let found = h.id == MAP_LOOKUP && key.is_some_and(|k| k < u64::from(entries));
        let no_flags = h.id == LOOP && self.state.reg(4).is_null();
        let note = self.notes.calls.entry(self.insn as u32).or_default();
        note.map.join(Some(map.unwrap_or(MapArg::None)));
        note.key.join(key);
        note.callback.join(facts.function);
        note.no_flags.join(Some(no_flags));
        note.found.join(Some(found));
    }

    /// Notes a call of a kernel function with this many arguments.
    pub fn note_kfunc(&mut self, args: usize, function: Option<u32>) {
        self.note_args(args.min(5));
        let note = self.notes.calls.entry(self.insn as u32).or_default();
        note.map.join(Some(MapArg::None));
        note.key.join(None);
        note.callback.join(function);
        note.no_flags.join(Some(false));
        note.found.join(Some(false));
    }
}
