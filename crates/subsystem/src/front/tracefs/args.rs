//! Arguments of probe events: what is fetched at a hit, as the line that made the event says it.

use skep_ebpf::Errno;
use skep_ebpf::uapi::PtRegs;

use super::number::{signed, unsigned};
use crate::front::client::{Memory, OwnMemory};

/// Names that records have of their own.
const RESERVED: [&str; 8] = [
    "common_type",
    "common_flags",
    "common_preempt_count",
    "common_pid",
    "common_tgid",
    "__probe_ip",
    "__probe_func",
    "__probe_ret_ip",
];
/// Longest expression, and longest name.
const MAX_EXPRESSION: usize = 63;
const MAX_NAME: usize = 32;
/// Longest array, and deepest chain of reads.
const MAX_ARRAY: u32 = 64;
const MAX_OPS: usize = 14;
/// Highest number of an argument or a word of the stack in the kernel's own functions.
const MAX_PARAM: u64 = 4096;
/// Longest string that is copied.
const MAX_STRING: usize = 4096;

/// Where the event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// A kprobe event, not a uprobe event.
    pub kernel: bool,
    /// A return probe.
    pub ret: bool,
    /// At the first instruction of a function.
    pub entry: bool,
}

/// What a value begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    /// A register, by its place in `struct pt_regs`.
    Register(usize),
    /// A word of the stack.
    Stack(u64),
    /// The stack pointer.
    StackPointer,
    /// The name of the thread.
    Comm,
    /// A number.
    Number(u64),
    /// Text.
    Text(Vec<u8>),
}

/// How a value is stored and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Type {
    /// As it is written in an event's line.
    name: &'static str,
    /// As the format file names it.
    field: &'static str,
    size: u32,
    signed: bool,
    print: &'static str,
}

const STRING: u32 = 0;

const fn t(name: &'static str, field: &'static str, size: u32, signed: bool, print: &'static str) -> Type {
    Type { name, field, size, signed, print }
}

const TYPES: [Type; 17] = [
    t("u8", "u8", 1, false, "%u"),
    t("u16", "u16", 2, false, "%u"),
    t("u32", "u32", 4, false, "%u"),
    t("u64", "u64", 8, false, "%Lu"),
    t("s8", "s8", 1, true, "%d"),
    t("s16", "s16", 2, true, "%d"),
    t("s32", "s32", 4, true, "%d"),
    t("s64", "s64", 8, true, "%Ld"),
    t("x8", "u8", 1, false, "0x%x"),
    t("x16", "u16", 2, false, "0x%x"),
    t("x32", "u32", 4, false, "0x%x"),
    t("x64", "u64", 8, false, "0x%Lx"),
    t("char", "u8", 1, false, "'%c'"),
    t("symbol", "u64", 8, false, "%pS"),
    t("string", "__data_loc char[]", STRING, true, "\\\"%s\\\""),
    t("ustring", "__data_loc char[]", STRING, true, "\\\"%s\\\""),
    t("symstr", "__data_loc char[]", STRING, true, "\\\"%s\\\""),
];

fn type_named(name: &str) -> Option<Type> {
    TYPES.into_iter().find(|t| t.name == name)
}

/// An argument of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// The expression as it was written.
    pub text: String,
    base: Base,
    /// Offsets to read at, from the inside out.
    reads: Vec<i64>,
    ty: Type,
    bits: Bits,
    /// Elements of an array; 0 if it is none.
    count: u32,
}

/// True for what may be the name of an event, group or argument.
pub fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn register(name: &str) -> Option<usize> {
    const NAMES: [&str; 21] = [
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di", "orig_ax",
        "ip", "cs", "flags", "sp", "ss",
    ];
    NAMES.iter().position(|n| *n == name)
}

/// The registers as words, in their order.
pub fn words(regs: &PtRegs) -> [u64; 21] {
    [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.rbp,
        regs.rbx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.rax,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.orig_rax,
        regs.rip,
        regs.cs,
        regs.rflags,
        regs.rsp,
        regs.ss,
    ]
}

/// Parses the arguments of an event.
pub fn parse(words: &[&str], side: Side) -> Result<Vec<Argument>, Errno> {
    if words.len() > 128 {
        return Err(Errno::E2BIG);
    }
    let mut arguments: Vec<Argument> = Vec::new();
    for (n, word) in words.iter().enumerate() {
        let (name, body) = match word.split_once('=') {
            Some((name, body)) => (name.to_owned(), body),
            None => (format!("arg{}", n + 1), *word),
        };
        let taken = RESERVED.contains(&name.as_str()) || arguments.iter().any(|a| a.name == name);
        if name.len() > MAX_NAME || !is_identifier(&name) || taken {
            return Err(Errno::EINVAL);
        }
        arguments.push(argument(name, body, side)?);
    }
    Ok(arguments)
}

fn argument(name: String, body: &str, side: Side) -> Result<Argument, Errno> {
    if body.len() > MAX_EXPRESSION {
        return Err(Errno::E2BIG);
    }
    let (expression, suffix) = match body.split_once(':') {
        Some((e, t)) => (e, Some(t)),
        None => (body, None),
    };
    let (suffix, count) = match suffix.and_then(|s| s.split_once('[')) {
        Some((ty, rest)) => {
            let n = rest.strip_suffix(']').and_then(unsigned).ok_or(Errno::EINVAL)?;
            let n = u32::try_from(n).ok().filter(|n| (1..=MAX_ARRAY).contains(n)).ok_or(Errno::EINVAL)?;
            (Some(ty), n)
        }
        None => (suffix, 0),
    };
    let mut reads = Vec::new();
    let base = expression_of(expression, side, &mut reads)?;
    let (ty, bits) = match suffix {
        None if base == Base::Comm || matches!(base, Base::Text(_)) => (type_named("string"), None),
        None => (type_named("x64"), None),
        Some(s) if s.starts_with('b') => bit_field(s)?,
        Some(s) => (type_named(s), None),
    };
    let ty = ty.ok_or(Errno::EINVAL)?;
    let text = matches!(base, Base::Comm | Base::Text(_));
    // Strings are read from memory, and arrays too.
    if ty.size == STRING && !text && reads.is_empty() && ty.name != "symstr" {
        return Err(Errno::EINVAL);
    }
    if ty.size != STRING && text || count != 0 && reads.is_empty() {
        return Err(Errno::EINVAL);
    }
    Ok(Argument { name, text: body.to_owned(), base, reads, ty, bits, count })
}

/// Bits of a bit field: how many, and how far up.
type Bits = Option<(u32, u32)>;

/// `b<width>@<offset>/<size>`.
fn bit_field(suffix: &str) -> Result<(Option<Type>, Bits), Errno> {
    let parts = suffix.strip_prefix('b').and_then(|s| s.split_once('@'));
    let parts = parts.and_then(|(width, rest)| Some((width, rest.split_once('/')?)));
    let Some((width, (shift, size))) = parts else { return Err(Errno::EINVAL) };
    let number = |s| unsigned(s).and_then(|n| u32::try_from(n).ok()).ok_or(Errno::EINVAL);
    let (width, shift, size) = (number(width)?, number(shift)?, number(size)?);
    let ty = match size {
        8 => "u8",
        16 => "u16",
        32 => "u32",
        64 => "u64",
        _ => return Err(Errno::EINVAL),
    };
    if width == 0 || width.checked_add(shift).is_none_or(|end| end > size) {
        return Err(Errno::EINVAL);
    }
    Ok((type_named(ty), Some((width, shift))))
}

fn expression_of(text: &str, side: Side, reads: &mut Vec<i64>) -> Result<Base, Errno> {
    let wrong = Errno::EINVAL;
    let mut chars = text.chars();
    match chars.next() {
        Some('$') => variable(chars.as_str(), side),
        Some('%') => register(chars.as_str()).map(Base::Register).ok_or(wrong),
        Some('@') => {
            let rest = chars.as_str();
            if !rest.starts_with(|c: char| c.is_ascii_digit()) {
                // Symbols of data are not known here, nor where files are mapped.
                return Err(wrong);
            }
            let address = unsigned(rest).ok_or(wrong)?;
            reads.push(0);
            Ok(Base::Number(address))
        }
        Some(sign @ ('+' | '-')) => {
            let rest = chars.as_str();
            let rest = rest.strip_prefix('u').unwrap_or(rest);
            let (offset, inner) = rest.split_once('(').ok_or(wrong)?;
            let inner = inner.rsplit_once(')').map(|(inner, _)| inner).ok_or(wrong)?;
            let offset = signed(offset).ok_or(wrong)?;
            let base = expression_of(inner, side, reads)?;
            if matches!(base, Base::Comm | Base::Text(_)) || reads.len() >= MAX_OPS {
                return Err(wrong);
            }
            reads.push(if sign == '-' { offset.checked_neg().ok_or(wrong)? } else { offset });
            Ok(base)
        }
        Some('\\') => {
            let rest = chars.as_str();
            match rest.strip_prefix('"') {
                Some(quoted) => Ok(Base::Text(quoted.strip_suffix('"').ok_or(wrong)?.as_bytes().to_vec())),
                None if rest.starts_with('-') => signed(rest).map(|n| Base::Number(n as u64)).ok_or(wrong),
                None => unsigned(rest).map(Base::Number).ok_or(wrong),
            }
        }
        _ => Err(wrong),
    }
}

fn variable(name: &str, side: Side) -> Result<Base, Errno> {
    const AX: usize = 10;
    /// di, si, dx, cx, r8, r9.
    const ARGUMENTS: [usize; 6] = [14, 13, 12, 11, 9, 8];
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| Errno::EINVAL);
    if name.starts_with("retval") {
        return if side.ret { Ok(Base::Register(AX)) } else { Err(Errno::EINVAL) };
    }
    if matches!(name, "comm" | "COMM") {
        return Ok(Base::Comm);
    }
    if let Some(n) = name.strip_prefix("stack") {
        if n.is_empty() {
            return Ok(Base::StackPointer);
        }
        let n = number(n)?;
        return if side.kernel && n > MAX_PARAM { Err(Errno::EINVAL) } else { Ok(Base::Stack(n)) };
    }
    if let Some(n) = name.strip_prefix("arg") {
        let n = number(n)?;
        if n == 0 || n > MAX_PARAM || !side.entry {
            return Err(Errno::EINVAL);
        }
        // Behind the registers come words of the stack, above the return address.
        let n = (n - 1) as usize;
        return Ok(ARGUMENTS.get(n).map_or_else(|| Base::Stack(n as u64 - 5), |r| Base::Register(*r)));
    }
    Err(Errno::EINVAL)
}

impl Argument {
    /// Bytes in a record.
    fn size(&self) -> u32 {
        let one = if self.ty.size == STRING { 4 } else { self.ty.size };
        one * self.count.max(1)
    }

    /// True if this and another one may stand in the same event.
    pub fn is_like(&self, other: &Argument) -> bool {
        self.name == other.name && self.ty == other.ty && self.count == other.count
    }

    fn word(&self, regs: &[u64; 21]) -> Option<u64> {
        const SP: usize = 19;
        let sp = regs[SP];
        match &self.base {
            Base::Register(r) => regs.get(*r).copied(),
            Base::StackPointer => Some(sp),
            Base::Stack(n) => read::<8>(sp.wrapping_add(n * 8)).map(u64::from_ne_bytes),
            Base::Number(n) => Some(*n),
            Base::Comm | Base::Text(_) => None,
        }
    }

    /// The address of what is stored, or its value if nothing is read.
    fn place(&self, regs: &[u64; 21]) -> Option<u64> {
        let mut value = self.word(regs)?;
        let inner = self.reads.len().saturating_sub(1);
        for offset in self.reads.get(..inner)? {
            value = u64::from_ne_bytes(read::<8>(value.wrapping_add_signed(*offset))?);
        }
        Some(self.reads.last().map_or(value, |last| value.wrapping_add_signed(*last)))
    }

    fn text(&self, regs: &[u64; 21]) -> Vec<u8> {
        let mut text = match &self.base {
            Base::Comm => std::fs::read("/proc/thread-self/comm").map_or(Vec::new(), |mut c| {
                c.pop();
                c
            }),
            Base::Text(text) => text.clone(),
            _ => self.place(regs).map_or(Vec::new(), string),
        };
        text.push(0);
        text
    }

    fn put(&self, regs: &[u64; 21], fixed: &mut Vec<u8>, dynamic: &mut Vec<u8>, dynamic_at: usize) {
        if self.ty.size == STRING {
            let text = self.text(regs);
            let at = (dynamic_at + dynamic.len()) as u32;
            for _ in 0..self.count.max(1) {
                fixed.extend((at | (text.len() as u32) << 16).to_ne_bytes());
            }
            dynamic.extend(text);
            return;
        }
        let size = self.ty.size as usize;
        let place = self.place(regs);
        for n in 0..self.count.max(1) {
            let mut bytes = [0u8; 8];
            let value = match place {
                None => 0,
                Some(value) if self.reads.is_empty() => value,
                Some(address) => {
                    let at = address.wrapping_add(u64::from(n * self.ty.size));
                    // What cannot be read is 0.
                    if OwnMemory.read(at, &mut bytes[..size]).is_err() {
                        bytes = [0; 8];
                    }
                    u64::from_ne_bytes(bytes)
                }
            };
            let value = match self.bits {
                Some((width, shift)) => (value >> shift) & (u64::MAX >> (64 - width)),
                None => value,
            };
            fixed.extend_from_slice(&value.to_ne_bytes()[..size]);
        }
    }
}

fn read<const N: usize>(at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    OwnMemory.read(at, &mut bytes).ok().map(|()| bytes)
}

fn string(at: u64) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < MAX_STRING {
        match read::<1>(at.wrapping_add(text.len() as u64)) {
            Some([0]) | None => break,
            Some([b]) => text.push(b),
        }
    }
    text
}

/// The values of arguments, as they stand in a record from byte `at` on.
pub fn fetch(arguments: &[Argument], regs: &PtRegs, at: usize) -> Vec<u8> {
    let regs = words(regs);
    let fixed_len = len(arguments);
    let (mut fixed, mut dynamic) = (Vec::with_capacity(fixed_len), Vec::new());
    for argument in arguments {
        argument.put(&regs, &mut fixed, &mut dynamic, at + fixed_len);
    }
    fixed.extend(dynamic);
    fixed
}

/// Bytes of all arguments in a record, without what strings take behind them.
pub fn len(arguments: &[Argument]) -> usize {
    arguments.iter().map(|a| a.size() as usize).sum()
}

/// A line of a format file, and what the print format says, for each argument; the first begins at byte `at`.
pub fn describe(arguments: &[Argument], at: u32) -> (String, String, String) {
    let (mut fields, mut print, mut values) = (String::new(), String::new(), String::new());
    let mut at = at;
    for a in arguments {
        let (ty, array) = (a.ty.field, if a.count == 0 { "" } else { "[]" });
        fields += &format!(
            "\tfield:{ty} {}{array};\toffset:{at};\tsize:{};\tsigned:{};\n",
            a.name,
            a.size(),
            u8::from(a.ty.signed)
        );
        at += a.size();
        let each = |n: u32| if a.count == 0 { format!("REC->{}", a.name) } else { format!("REC->{}[{n}]", a.name) };
        let elements: Vec<_> = (0..a.count.max(1)).map(each).collect();
        let prints = vec![a.ty.print; elements.len()].join(",");
        print += &if a.count == 0 { format!(" {}={prints}", a.name) } else { format!(" {}={{{prints}}}", a.name) };
        for element in elements {
            values += &match a.ty.size {
                STRING => format!(", __get_str({})", element.trim_start_matches("REC->")),
                _ if a.ty.name == "symbol" => format!(", (void *){element}"),
                _ => format!(", {element}"),
            };
        }
    }
    (fields, print, values)
}
