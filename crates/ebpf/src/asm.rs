//! Text to instructions: the notation that [`disasm`](crate::disasm) writes, for tests and experiments.
//!
//! One instruction per line; `;` and `//` begin comments; the listing's `12: (b7)` in front is skipped. Jumps go to
//! `pc+3` or to a label, which is a line of its own: `again:`. A decimal constant is a move, a hexadecimal one
//! (or one with `ll` behind it) a 64-bit load. Names of helpers are for the reader: the number counts (`call x#1`).

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::insn::Insn;
use crate::op::{Alu, Atomic, Cond, MAX_REG, Op, Ref, Src, Swap, Width};

/// Why a text is no program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsmError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for AsmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl core::error::Error for AsmError {}

/// Assembles a program.
pub fn assemble(text: &str) -> Result<Vec<Insn>, AsmError> {
    let mut labels = BTreeMap::new();
    let mut ops = Vec::new();
    let mut slot = 0i64;
    for (number, line) in text.lines().enumerate() {
        let fault = |problem: &str| AsmError { line: number + 1, problem: problem.to_string() };
        let line = line.split(';').next().unwrap_or("");
        let line = line.split("//").next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        if let Some(label) = line.strip_suffix(':').filter(|l| is_name(l)) {
            if labels.insert(label, slot).is_some() {
                return Err(fault("label stands there twice"));
            }
            continue;
        }
        let (op, target) = Scan::new(line).instruction().map_err(fault)?;
        ops.push((number + 1, slot, op, target));
        slot += if matches!(op, Op::LoadImm { .. } | Op::LoadRef { .. }) { 2 } else { 1 };
    }
    let mut out = Vec::new();
    for (line, at, op, target) in ops {
        let fault = |problem: &str| AsmError { line, problem: problem.to_string() };
        let op = match target {
            Some(label) => {
                let there = labels.get(label).ok_or_else(|| fault("no such label"))?;
                jump_by(op, there - at - 1).ok_or_else(|| fault("label is too far away"))?
            }
            None => op,
        };
        let (first, second) = op.encode();
        out.push(first);
        out.extend(second);
    }
    Ok(out)
}

/// The instruction with another jump distance.
fn jump_by(op: Op, distance: i64) -> Option<Op> {
    let near = i16::try_from(distance).ok();
    let far = i32::try_from(distance).ok();
    Some(match op {
        Op::Jump { long: false, .. } => Op::Jump { long: false, off: near?.into() },
        Op::Jump { long: true, .. } => Op::Jump { long: true, off: far? },
        Op::MayGoto { .. } => Op::MayGoto { off: near? },
        Op::Branch { wide, cond, dst, src, .. } => Op::Branch { wide, cond, dst, src, off: near? },
        Op::CallFunc { .. } => Op::CallFunc { off: far? },
        other => other,
    })
}

fn is_name(s: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && s.chars().all(word)
}

/// Reads a line from left to right.
struct Scan<'a> {
    rest: &'a str,
}

type Parsed<T> = Result<T, &'static str>;

impl<'a> Scan<'a> {
    fn new(line: &'a str) -> Scan<'a> {
        let mut rest = line;
        // The listing's number and opcode.
        if let Some((number, tail)) = line.split_once(':')
            && !number.is_empty()
            && number.bytes().all(|b| b.is_ascii_digit())
        {
            rest = tail.trim_start();
            if let Some((code, tail)) = rest.strip_prefix('(').and_then(|r| r.split_once(')'))
                && code.len() == 2
            {
                rest = tail;
            }
        }
        Scan { rest }
    }

    /// A second reader at the same place, to look ahead.
    fn ahead(&self) -> Scan<'a> {
        Scan { rest: self.rest }
    }

    /// Takes a piece of text if it comes next, white space aside.
    fn eat(&mut self, piece: &str) -> bool {
        match self.rest.trim_start().strip_prefix(piece) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn want(&mut self, piece: &'static str) -> Parsed<()> {
        if self.eat(piece) { Ok(()) } else { Err("not an instruction: something is missing or too much") }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c))).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        word
    }

    /// A number, and whether it was hexadecimal.
    fn number(&mut self) -> Parsed<(i128, bool)> {
        let negative = self.eat("-");
        if !negative {
            self.eat("+");
        }
        let hex = self.eat("0x");
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_hexdigit() || (!hex && !c.is_ascii_digit())).unwrap_or(rest.len());
        let (digits, rest) = rest.split_at(end);
        let n = u64::from_str_radix(digits, if hex { 16 } else { 10 }).map_err(|_| "a number is expected")?;
        self.rest = rest;
        Ok((if negative { -i128::from(n) } else { n.into() }, hex))
    }

    fn int<T: TryFrom<i128>>(&mut self) -> Parsed<T> {
        T::try_from(self.number()?.0).map_err(|_| "the number is too big")
    }

    /// A 32-bit constant, signed or unsigned.
    fn imm(&mut self) -> Parsed<i32> {
        imm(self.number()?.0)
    }

    fn reg(&mut self) -> Parsed<(bool, u8)> {
        let before = self.rest;
        let word = self.word();
        let reg = match word.split_at_checked(1) {
            Some(("r", n)) => n.parse().ok().map(|n| (true, n)),
            Some(("w", n)) => n.parse().ok().map(|n| (false, n)),
            _ => None,
        };
        match reg {
            Some((wide, n)) if n <= MAX_REG => Ok((wide, n)),
            _ => {
                self.rest = before;
                Err("a register is expected")
            }
        }
    }

    /// A register of a given width.
    fn reg_of(&mut self, wide: bool) -> Parsed<u8> {
        match self.reg()? {
            (w, n) if w == wide => Ok(n),
            _ => Err("32-bit and 64-bit registers are mixed"),
        }
    }

    fn operand(&mut self, wide: bool) -> Parsed<Src> {
        if self.peek_reg() { Ok(Src::Reg(self.reg_of(wide)?)) } else { Ok(Src::Imm(self.imm()?)) }
    }

    fn peek_reg(&self) -> bool {
        self.ahead().reg().is_ok()
    }

    /// `u32` or `s32`: whether signed, and the width.
    fn access(&mut self) -> Parsed<(bool, Width)> {
        let signed = self.eat("s");
        if !signed {
            self.want("u")?;
        }
        let width = match self.word() {
            "8" => Width::B,
            "16" => Width::H,
            "32" => Width::W,
            "64" => Width::Dw,
            _ => return Err("a width of 8, 16, 32 or 64 is expected"),
        };
        self.want("*")?;
        self.want(")")?;
        Ok((signed, width))
    }

    /// `(r1 +4)`.
    fn place(&mut self) -> Parsed<(u8, i16)> {
        self.want("(")?;
        let base = self.reg_of(true)?;
        let off = self.int()?;
        self.want(")")?;
        Ok((base, off))
    }

    /// `pc+3` or a label.
    fn target(&mut self) -> Parsed<(i32, Option<&'a str>)> {
        if self.eat("pc") {
            return Ok((self.int()?, None));
        }
        let label = self.word();
        if is_name(label) { Ok((0, Some(label))) } else { Err("a distance (pc+3) or a label is expected") }
    }

    fn near(&mut self) -> Parsed<(i16, Option<&'a str>)> {
        let (off, label) = self.target()?;
        Ok((i16::try_from(off).map_err(|_| "the distance is too big")?, label))
    }

    fn instruction(&mut self) -> Parsed<(Op, Option<&'a str>)> {
        let parsed = self.any()?;
        if self.rest.trim().is_empty() { Ok(parsed) } else { Err("not an instruction: there is text behind it") }
    }

    fn any(&mut self) -> Parsed<(Op, Option<&'a str>)> {
        let before = self.rest;
        if self.peek_reg() {
            return Ok((self.assignment()?, None));
        }
        if self.eat("*") {
            self.want("(")?;
            let (_, width) = self.access()?;
            let (base, off) = self.place()?;
            self.want("=")?;
            return Ok((Op::Store { width, base, off, src: self.operand(true)? }, None));
        }
        match self.word() {
            "exit" => Ok((Op::Exit, None)),
            "goto" => self.near().map(|(off, to)| (Op::Jump { long: false, off: off.into() }, to)),
            "gotol" => self.target().map(|(off, to)| (Op::Jump { long: true, off }, to)),
            "may_goto" => self.near().map(|(off, to)| (Op::MayGoto { off }, to)),
            "call" => self.call(),
            "if" => {
                let (wide, dst) = self.reg()?;
                let cond = self.cond()?;
                let src = self.operand(wide)?;
                self.want("goto")?;
                self.near().map(|(off, to)| (Op::Branch { wide, cond, dst, src, off }, to))
            }
            "lock" => {
                self.want("*")?;
                self.want("(")?;
                let (_, width) = self.access()?;
                let (base, off) = self.place()?;
                let all = [Atomic::Add, Atomic::Or, Atomic::And, Atomic::Xor];
                let op = all.into_iter().find(|a| self.eat(a.spelling().0)).ok_or("an operator is expected")?;
                Ok((Op::Atomic { op, width: word_or_wider(width)?, base, off, reg: self.reg_of(true)? }, None))
            }
            "store_release" => {
                let (width, base, off) = self.pointer()?;
                self.want(",")?;
                let reg = self.reg_of(true)?;
                self.want(")")?;
                Ok((Op::Atomic { op: Atomic::StoreRelease, width, base, off, reg }, None))
            }
            _ => {
                self.rest = before;
                Err("unknown instruction")
            }
        }
    }

    fn cond(&mut self) -> Parsed<Cond> {
        // Longer signs first, so that none is taken for the beginning of another.
        let all = [
            Cond::Sge,
            Cond::Sle,
            Cond::Eq,
            Cond::Ne,
            Cond::Ge,
            Cond::Le,
            Cond::Sgt,
            Cond::Slt,
            Cond::Gt,
            Cond::Lt,
            Cond::Set,
        ];
        all.into_iter().find(|c| self.eat(c.sign())).ok_or("a comparison is expected")
    }

    fn call(&mut self) -> Parsed<(Op, Option<&'a str>)> {
        if self.ahead().eat("pc") {
            return self.target().map(|(off, to)| (Op::CallFunc { off }, to));
        }
        if let Ok(id) = self.ahead().number() {
            self.number()?;
            return Ok((Op::CallHelper { id: imm(id.0)? }, None));
        }
        let name = self.word();
        if !self.eat("#") {
            return if is_name(name) { Ok((Op::CallFunc { off: 0 }, Some(name))) } else { Err("what is called?") };
        }
        let id = self.imm()?;
        if name != "kernel-function" {
            return Ok((Op::CallHelper { id }, None));
        }
        let btf = if self.eat(",") { self.int()? } else { 0 };
        Ok((Op::CallKfunc { id, btf }, None))
    }

    /// `((u32 *)(r1 +0)` behind the name of an atomic function.
    fn pointer(&mut self) -> Parsed<(Width, u8, i16)> {
        self.want("(")?;
        self.want("(")?;
        let (_, width) = self.access()?;
        let (base, off) = self.place()?;
        Ok((width, base, off))
    }

    fn assignment(&mut self) -> Parsed<Op> {
        let (wide, dst) = self.reg()?;
        // Longer signs first; `=` alone is anything but an operation with the old value.
        let all = [
            Alu::Arsh,
            Alu::Sdiv,
            Alu::Smod,
            Alu::Lsh,
            Alu::Rsh,
            Alu::Add,
            Alu::Sub,
            Alu::Mul,
            Alu::Div,
            Alu::Or,
            Alu::And,
            Alu::Mod,
            Alu::Xor,
        ];
        if let Some(op) = all.into_iter().find(|a| self.eat(a.sign())) {
            return Ok(Op::Alu { wide, op, dst, src: self.operand(wide)? });
        }
        self.want("=")?;
        if self.peek_reg() {
            return Ok(Op::Alu { wide, op: Alu::Mov, dst, src: Src::Reg(self.reg_of(wide)?) });
        }
        let mut ahead = self.ahead();
        if ahead.eat("-") && ahead.peek_reg() {
            self.want("-")?;
            return if self.reg()? == (wide, dst) {
                Ok(Op::Neg { wide, dst })
            } else {
                Err("negates another register")
            };
        }
        if self.eat("(s") {
            let bits = match self.word() {
                "8" => 8,
                "16" => 16,
                "32" if wide => 32,
                _ => return Err("a width of 8, 16 or 32 is expected"),
            };
            self.want(")")?;
            return Ok(Op::MovSx { wide, bits, dst, src: self.reg_of(wide)? });
        }
        if let Ok((n, hex)) = self.ahead().number() {
            self.number()?;
            if !hex && !self.eat("ll") {
                return Ok(Op::Alu { wide, op: Alu::Mov, dst, src: Src::Imm(imm(n)?) });
            }
            self.eat("ll");
            let value = u64::try_from(n).or_else(|_| i64::try_from(n).map(|n| n as u64));
            let value = value.map_err(|_| "the number is too big")?;
            return if wide { Ok(Op::LoadImm { dst, value }) } else { Err("a 32-bit register cannot hold it") };
        }
        if !wide {
            return Err("a 32-bit register cannot be loaded with that");
        }
        self.load(dst)
    }

    /// What else can stand behind `r1 =`.
    fn load(&mut self, dst: u8) -> Parsed<Op> {
        if self.eat("*") {
            self.want("(")?;
            let (signed, width) = self.access()?;
            if self.eat("skb[") {
                let index = if self.peek_reg() { Some(self.reg_of(true)?) } else { None };
                if index.is_some() {
                    self.want("+")?;
                }
                let imm = self.imm()?;
                self.want("]")?;
                return if dst == 0 && !signed && width != Width::Dw {
                    Ok(Op::LoadPacket { width, index, imm })
                } else {
                    Err("packet bytes are loaded into r0, unsigned, 1 to 4 of them")
                };
            }
            let (base, off) = self.place()?;
            return if signed && width == Width::Dw {
                Err("a load of 64 bits has no sign to extend")
            } else {
                Ok(Op::Load { width, signed, dst, base, off })
            };
        }
        let word = self.word();
        let swap = [("bswap", Swap::Always), ("le", Swap::Le), ("be", Swap::Be)];
        let swap = swap.into_iter().find_map(|(name, kind)| Some((kind, word.strip_prefix(name)?)));
        if let Some((kind, bits @ ("16" | "32" | "64"))) = swap {
            let bits = bits.parse().unwrap_or(64);
            return if self.reg_of(true)? == dst {
                Ok(Op::Swap { kind, bits, dst })
            } else {
                Err("swaps another register")
            };
        }
        match word {
            "addr_space_cast" => {
                self.want("(")?;
                let src = self.reg_of(true)?;
                self.want(",")?;
                let to = self.int()?;
                self.want(",")?;
                let from = self.int()?;
                self.want(")")?;
                Ok(Op::AddrSpaceCast { dst, src, to, from })
            }
            "map" => {
                self.want("[")?;
                let by_fd = self.eat("fd:");
                if !by_fd && !self.eat("idx:") {
                    return Err("a map is named by idx: or fd:");
                }
                let n = self.imm()?;
                self.want("]")?;
                let off = if self.eat("[0]") { Some(self.imm()?) } else { None };
                let to = match (by_fd, off) {
                    (true, None) => Ref::MapFd(n),
                    (true, Some(off)) => Ref::MapFdValue(n, off),
                    (false, None) => Ref::MapIdx(n),
                    (false, Some(off)) => Ref::MapIdxValue(n, off),
                };
                Ok(Op::LoadRef { dst, to })
            }
            "ksym" => {
                self.want("[")?;
                let id = self.imm()?;
                let fd = if self.eat(",") { self.imm()? } else { 0 };
                self.want("]")?;
                Ok(Op::LoadRef { dst, to: Ref::Btf(id, fd) })
            }
            "subprog" => {
                self.want("[")?;
                let off = self.imm()?;
                self.want("]")?;
                Ok(Op::LoadRef { dst, to: Ref::Func(off) })
            }
            "load_acquire" => {
                let (width, base, off) = self.pointer()?;
                self.want(")")?;
                Ok(Op::Atomic { op: Atomic::LoadAcquire, width, base, off, reg: dst })
            }
            name => self.atomic(name, dst),
        }
    }

    /// `atomic64_xchg((u64 *)(r1 +0), r2)` and its kin, behind the name.
    fn atomic(&mut self, name: &str, dst: u8) -> Parsed<Op> {
        let all =
            [Atomic::FetchAdd, Atomic::FetchOr, Atomic::FetchAnd, Atomic::FetchXor, Atomic::Xchg, Atomic::Cmpxchg];
        let (family, name) = name.split_once('_').ok_or("unknown value")?;
        let op = all.into_iter().find(|a| a.spelling().1 == name).ok_or("unknown value")?;
        let (width, base, off) = self.pointer()?;
        self.want(",")?;
        if op == Atomic::Cmpxchg {
            self.want("r0")?;
            self.want(",")?;
        }
        let reg = self.reg_of(true)?;
        self.want(")")?;
        let right_family = family == if width == Width::Dw { "atomic64" } else { "atomic" };
        let right_dst = dst == if op == Atomic::Cmpxchg { 0 } else { reg };
        if !right_family || !right_dst {
            return Err("name, width or registers of the atomic operation do not fit together");
        }
        Ok(Op::Atomic { op, width: word_or_wider(width)?, base, off, reg })
    }
}

fn word_or_wider(width: Width) -> Parsed<Width> {
    match width {
        Width::W | Width::Dw => Ok(width),
        _ => Err("atomic operations are 32 or 64 bits wide"),
    }
}

fn imm(n: i128) -> Parsed<i32> {
    let signed = i32::try_from(n);
    signed.or_else(|_| u32::try_from(n).map(|n| n as i32)).map_err(|_| "the number does not fit 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disasm::Listing;
    use crate::op::decode;

    #[test]
    fn labels_and_comments() {
        let code = assemble(
            "
            r0 = 0              ; a counter
            again:
            r1 = 0x123456789 ll // two slots
            r0 += 1
            if r0 < 10 goto again
            call sub
            goto end
            end:
            exit
            sub:
            r0 = -1
            exit
            ",
        )
        .unwrap();
        let text = Listing { insns: &code, names: &() }.to_string();
        let expected = "   0: (b7) r0 = 0
   1: (18) r1 = 0x123456789
   3: (07) r0 += 1
   4: (a5) if r0 < 0xa goto pc-4
   5: (85) call pc+2
   6: (05) goto pc+0
   7: (95) exit
   8: (b7) r0 = -1
   9: (95) exit
";
        assert_eq!(text, expected);
        assert_eq!(assemble(&text).unwrap(), code);
    }

    /// Every instruction that decodes is read back from its text.
    #[test]
    fn reads_what_the_disassembler_writes() {
        let mut count = 0;
        for code in 0..=255 {
            for regs in [0x00, 0x01, 0x10, 0x21, 0x32, 0x43, 0x54, 0x65, 0xa9] {
                for off in [0, 1, 8, 16, 32, -8, i16::MIN] {
                    for imm in [0, 1, -1, 16, 64, 0x41, 0xe1, 0xf1, 0x100, 0x110, 0x1_0000, i32::MIN, i32::MAX] {
                        let insn = Insn { code, regs, off, imm };
                        for high in [0, 7, -1] {
                            let next = Insn::new(0, 0, 0, 0, high);
                            let Ok(op) = decode(insn, Some(next)) else { continue };
                            let (first, second) = op.encode();
                            let code: Vec<Insn> = [first].into_iter().chain(second).collect();
                            let text = op.text(&()).to_string();
                            assert_eq!(assemble(&text).as_deref(), Ok(&code[..]), "{text}");
                            count += 1;
                        }
                    }
                }
            }
        }
        assert!(count > 20_000, "{count}");
    }

    #[test]
    fn faults() {
        for text in [
            "r11 = 0",
            "w1 = r2",
            "r1 = r2 r3",
            "r1 = *(s64 *)(r1 +0)",
            "*(u24 *)(r1 +0) = r2",
            "goto nowhere",
            "if r1 ~ r2 goto pc+1",
            "r1 = 99999999999",
            "goto pc+40000",
            "w1 = 0x5 ll",
            "r1 = map[counts]",
            "call",
            "frob",
            "r1 = atomic_xchg((u64 *)(r1 +0), r1)",
            "lock *(u8 *)(r1 +0) += r1",
            "a:\na:",
        ] {
            assert!(assemble(text).is_err(), "{text}");
        }
        let e = assemble("exit\nfrob").unwrap_err();
        assert_eq!(e.to_string(), "line 2: unknown instruction");
    }
}
