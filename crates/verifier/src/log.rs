//! The trace of states, for people and tools that read kernel-style logs.

use std::fmt::Write;

use skep_ebpf::btf::Btf;
use skep_ebpf::disasm::disasm;
use skep_ebpf::program::{LineInfo, MapDef, Program};

use crate::explain::MapNames;
use crate::reg::{Kind, Reg, flag};
use crate::scalar::Scalar;
use crate::state::{Byte, FP, Frame, Slot, State};

/// Longest log that is kept.
const LIMIT: usize = 64 << 20;

/// Column of what an instruction changed.
const CHANGES: usize = 38;

/// Lines, as they come: C lines, instructions with what they changed, and whole states where a path begins.
#[derive(Debug, Default)]
pub(crate) struct Log<'a> {
    pub text: String,
    pub names: TypeNames<'a>,
    program: Option<&'a Program>,
    /// How the path came to the next instruction.
    arrival: Arrival,
    /// The state before the instruction whose line is open, and its depth.
    before: Option<(usize, Vec<(String, String)>)>,
    /// Other lines came between the instruction that is open and what it changes.
    broken: bool,
    /// Depth of the last state that was shown.
    depth: usize,
    /// The last C line that was shown.
    line: Option<&'a LineInfo>,
}

/// How a path comes to an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// From the one before.
    #[default]
    Flow,
    /// A function begins there.
    Begin,
    /// Another branch is taken up.
    Branch,
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

impl<'a> Log<'a> {
    pub fn new(program: &'a Program, kernel: Option<&'a Btf>) -> Log<'a> {
        let names = TypeNames { kernel, program: program.btf.as_deref() };
        Log { names, program: Some(program), ..Log::default() }
    }

    /// Says how the path comes to the instruction that is next.
    pub fn arrive(&mut self, arrival: Arrival) {
        self.arrival = arrival;
    }

    /// The instruction that is looked at, in this state.
    pub fn before(&mut self, prev: usize, at: usize, state: &State) {
        let arrival = std::mem::take(&mut self.arrival);
        if self.text.len() > LIMIT {
            return;
        }
        self.end_line();
        let held = self.held(state);
        let branch = arrival == Arrival::Branch || arrival == Arrival::Flow && state.depth() < self.depth;
        if branch {
            let _ = write!(self.text, "\nfrom {prev} to {at}:");
        } else if arrival == Arrival::Begin || state.depth() != self.depth {
            let _ = write!(self.text, "{at}:");
        }
        if branch || arrival == Arrival::Begin || state.depth() != self.depth {
            self.list(state.depth(), &held);
            self.text.push('\n');
        }
        self.depth = state.depth();
        if let Some(program) = self.program {
            let line = program.line_of(at);
            if let Some(l) = line.filter(|l| self.line.is_none_or(|last| (&last.file, last.line) != (&l.file, l.line)))
            {
                let _ = writeln!(self.text, "; {} @ {}:{}", l.text.trim(), base_name(&l.file), l.line);
                self.line = line;
            }
            self.insn(program, at);
            self.before = Some((state.depth(), held));
        }
    }

    /// An instruction.
    fn insn(&mut self, program: &Program, at: usize) {
        let rest = program.insns.get(at..).unwrap_or_default();
        let code = rest.first().map_or(0, |i| i.code);
        let _ = match disasm(rest, &MapNames { program, kernel: self.names.kernel }) {
            Ok(text) => write!(self.text, "{at}: ({code:02x}) {text}"),
            Err(error) => write!(self.text, "{at}: ({code:02x}) invalid: {error}"),
        };
    }

    /// What the instruction changed; the path goes on at `next`.
    pub fn after(&mut self, state: &State, next: Option<usize>) {
        let Some((depth, before)) = self.before.take() else { return };
        let broken = std::mem::take(&mut self.broken);
        if depth == state.depth() {
            let mut held = self.held(state);
            held.retain(|new| !before.contains(new));
            if held.is_empty() {
                self.text.push_str(if broken { "" } else { "\n" });
                return;
            }
            if broken {
                let _ = write!(self.text, "{}:", next.unwrap_or_default());
            } else {
                let start = self.text.rfind('\n').map_or(0, |n| n + 1);
                let width = self.text.get(start..).map_or(0, |t| t.chars().count());
                let _ = write!(self.text, "{:1$};", "", CHANGES.saturating_sub(width).max(1));
            }
            self.list(depth, &held);
            self.text.push('\n');
            return;
        }
        self.text.push_str(if broken { "" } else { "\n" });
        if depth < state.depth() {
            let caller = state.frames.get(depth).map(|f| self.held_in(f)).unwrap_or_default();
            let callee = self.held(state);
            self.block("caller", depth, &caller);
            self.block("callee", state.depth(), &callee);
        } else {
            let caller = self.held(state);
            self.block("returning from callee", depth, &before);
            self.block(&format!("to caller at {}", next.unwrap_or_default()), state.depth(), &caller);
        }
    }

    /// What one function holds, under a heading.
    fn block(&mut self, title: &str, depth: usize, held: &[(String, String)]) {
        let _ = writeln!(self.text, "{title}:");
        self.list(depth, held);
        self.text.push('\n');
    }

    /// A line on the way back of what was relied on.
    pub fn precise(&mut self, text: std::fmt::Arguments<'_>) {
        if self.text.len() > LIMIT {
            return;
        }
        if self.before.is_some() && !std::mem::replace(&mut self.broken, true) {
            self.text.push('\n');
        }
        let _ = writeln!(self.text, "mark_precise: {text}");
    }

    /// An instruction on the way back, and what is looked for in front of it.
    pub fn precise_insn(&mut self, frame: usize, wanted: &str, at: usize) {
        // The second half of a 64-bit immediate is no instruction.
        if self.program.and_then(|p| p.insns.get(at)).is_none_or(|i| i.code == 0) {
            return;
        }
        self.precise(format_args!("frame{frame}: {wanted} before "));
        if self.text.ends_with(" before \n")
            && let Some(program) = self.program
        {
            self.text.pop();
            self.insn(program, at);
            self.text.push('\n');
        }
    }

    /// A saved state on the way back, in which numbers were marked.
    pub fn precise_state(&mut self, frame: usize, wanted: &str, state: &State) {
        let held = state.frames.get(frame).map(|f| self.held_in(f)).unwrap_or_default();
        let held = held.iter().fold(String::new(), |text, (place, value)| text + &format!(" {place}={value}"));
        self.precise(format_args!("frame{frame}: parent state {wanted}: {held}"));
    }

    /// The path is as good as one that was followed before.
    pub fn safe(&mut self, prev: usize, at: usize) {
        let arrival = std::mem::take(&mut self.arrival);
        if self.text.len() <= LIMIT {
            let _ = match arrival {
                Arrival::Branch => writeln!(self.text, "\nfrom {prev} to {at}: safe"),
                _ => writeln!(self.text, "{at}: safe"),
            };
        }
    }

    /// Ends the line of an instruction that was not finished.
    pub fn end_line(&mut self) {
        if self.before.take().is_some() && !std::mem::take(&mut self.broken) {
            self.text.push('\n');
        }
    }

    fn list(&mut self, depth: usize, held: &[(String, String)]) {
        if depth > 0 {
            let _ = write!(self.text, " frame{depth}:");
        }
        for (place, value) in held {
            let _ = write!(self.text, " {place}={value}");
        }
    }

    /// What the registers and the stack of the innermost function hold.
    fn held(&self, state: &State) -> Vec<(String, String)> {
        self.held_in(state.frame())
    }

    fn held_in(&self, frame: &Frame) -> Vec<(String, String)> {
        let regs = frame.regs.iter().enumerate().filter(|(n, reg)| reg.kind != Kind::NotInit && *n != FP);
        let mut held: Vec<_> = regs.map(|(n, reg)| (format!("R{n}"), show(reg, self))).collect();
        held.push(("R10".into(), "fp0".into()));
        for (n, slot) in frame.stack.iter().enumerate() {
            if slot.bytes != [Byte::Invalid; 8] {
                held.push((format!("fp-{}", (n + 1) * 8), show_slot(slot, self)));
            }
        }
        held
    }

    /// The map of a pointer to it or into it.
    fn map(&self, reg: &Reg) -> Option<&'a MapDef> {
        match reg.kind {
            Kind::Map | Kind::MapValue | Kind::MapKey => self.program?.maps.get(reg.what as usize),
            _ => None,
        }
    }
}

/// The file without its folders, as the kernel prints it.
fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn show_slot(slot: &Slot, log: &Log<'_>) -> String {
    if slot.is_spill() && slot.is_full_spill() {
        return show(&slot.reg, log);
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
        text += &show(&slot.reg, log);
    }
    text
}

fn show(reg: &Reg, log: &Log<'_>) -> String {
    let precise = if reg.precise { "P" } else { "" };
    let mut facts: Vec<String> = Vec::new();
    if reg.id != 0 {
        facts.push(format!("id={}", reg.id));
    }
    let n = &reg.num;
    if reg.is_scalar() {
        return match n.as_const() {
            Some(x) => format!("{precise}{}", signed(x as i64)),
            None => {
                range(n, &mut facts);
                format!("{precise}scalar({})", facts.join(","))
            }
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
    if let Some(map) = log.map(reg) {
        facts.push(format!("map={},ks={},vs={}", map.name, map.key_size, map.value_size));
    }
    if reg.off != 0 && reg.kind != Kind::Stack {
        facts.push(format!("off={}", reg.off));
    }
    if reg.is_packet() {
        facts.push(format!("r={}", reg.size as i32));
    }
    match n.as_const() {
        Some(0) => {}
        Some(x) => facts.push(format!("imm={}", signed(x as i64))),
        None => range(n, &mut facts),
    }
    let mut prefix = String::new();
    for (bit, word) in PREFIXES {
        if reg.flags & bit != 0 {
            prefix += word;
        }
    }
    // The name of the type comes last.
    let (null, ty) = match (reg.kind, null) {
        (Kind::Btf, "") => ("", log.names.name(reg)),
        (Kind::Btf, _) => ("or_null_", log.names.name(reg)),
        _ => (null, ""),
    };
    let facts = facts.join(",");
    match reg.kind {
        Kind::Stack if facts.is_empty() => format!("{prefix}fp{}", reg.off),
        Kind::Stack => format!("{prefix}fp{}({facts})", reg.off),
        _ => format!("{prefix}{name}{null}{ty}({facts})"),
    }
}

/// What is known of a number: limits that are not those of its type, equal ones together, and its bits.
fn range(n: &Scalar, facts: &mut Vec<String>) {
    let any = Scalar::UNKNOWN;
    let limits = [
        ("smin", signed(n.smin), n.smin != any.smin),
        ("umin", unsigned(n.umin), n.umin != any.umin),
        ("smin32", signed(n.smin32.into()), n.smin32 != any.smin32),
        ("umin32", unsigned(n.umin32.into()), n.umin32 != any.umin32),
        ("smax", signed(n.smax), n.smax != any.smax),
        ("umax", unsigned(n.umax), n.umax != any.umax),
        ("smax32", signed(n.smax32.into()), n.smax32 != any.smax32),
        ("umax32", unsigned(n.umax32.into()), n.umax32 != any.umax32),
    ];
    let mut groups: Vec<(String, &str)> = Vec::new();
    for (name, value, known) in &limits {
        match groups.iter_mut().find(|(_, v)| known & (v == value)) {
            Some((names, _)) => *names += &format!("={name}"),
            None if *known => groups.push(((*name).to_owned(), value)),
            None => {}
        }
    }
    facts.extend(groups.iter().map(|(names, value)| format!("{names}={value}")));
    if n.bits != any.bits {
        facts.push(format!("var_off={}", n.bits));
    }
}

/// Small numbers are easier to read in decimal.
fn signed(x: i64) -> String {
    if x.unsigned_abs() <= u16::MAX.into() { x.to_string() } else { format!("{x:#x}") }
}

fn unsigned(x: u64) -> String {
    if x <= u16::MAX.into() { x.to_string() } else { format!("{x:#x}") }
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
