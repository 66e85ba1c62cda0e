//! Instructions as text, in the notation of the kernel's verifier log and of `bpftool prog dump xlated`.
//!
//! Constants of moves and arithmetic are decimal, those of 64-bit loads and branches hexadecimal, so that the text says
//! which instruction it was; [`asm`](crate::asm) reads it back.

use core::fmt::{self, Display, Formatter};

use crate::helper::Helper;
use crate::insn::Insn;
use crate::op::{Alu, Atomic, Cond, DecodeError, Op, Ref, Src, Swap, Width, decode};

/// Names for what instructions refer to by number. Each may be unknown.
pub trait Names {
    /// Name of a helper, without `bpf_` in front; by default that of the [table](Helper).
    fn helper(&self, id: i32) -> Option<&str> {
        Helper::by_id(u32::try_from(id).ok()?).map(|h| h.name)
    }

    /// Name of a kernel function, by its BTF id and the index of the module's BTF.
    fn kfunc(&self, id: i32, btf: i16) -> Option<&str> {
        let _ = (id, btf);
        None
    }

    /// Name of a map, by its index in the program.
    fn map(&self, index: i32) -> Option<&str> {
        let _ = index;
        None
    }
}

/// Helpers have names, nothing else has.
impl Names for () {}

/// An instruction as text.
pub struct Text<'a> {
    op: Op,
    names: &'a dyn Names,
}

/// The text of the instruction at the start of `insns`.
pub fn disasm<'a>(insns: &[Insn], names: &'a dyn Names) -> Result<Text<'a>, DecodeError> {
    let (&first, rest) = insns.split_first().ok_or(DecodeError::Truncated)?;
    Ok(Text { op: decode(first, rest.first().copied())?, names })
}

impl Op {
    /// The instruction as text.
    pub fn text<'a>(&self, names: &'a dyn Names) -> Text<'a> {
        Text { op: *self, names }
    }
}

/// A whole program, one numbered line per instruction: `   0: (b7) r0 = 0`.
pub struct Listing<'a> {
    /// The program.
    pub insns: &'a [Insn],
    /// Names for what it refers to.
    pub names: &'a dyn Names,
}

impl Display for Listing<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut second = false;
        for (i, insn) in self.insns.iter().enumerate() {
            if core::mem::take(&mut second) {
                continue;
            }
            write!(f, "{i:4}: ({:02x}) ", insn.code)?;
            match disasm(self.insns.get(i..).unwrap_or(&[]), self.names) {
                Ok(text) => {
                    second = insn.is_ld_imm64();
                    writeln!(f, "{text}")?;
                }
                Err(e) => writeln!(f, "invalid: {e}")?,
            }
        }
        Ok(())
    }
}

/// A register; 32-bit operations write `w`.
struct Reg(bool, u8);

impl Display for Reg {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.0 { 'r' } else { 'w' }, self.1)
    }
}

impl Alu {
    /// The assignment operator.
    pub(crate) const fn sign(self) -> &'static str {
        match self {
            Alu::Add => "+=",
            Alu::Sub => "-=",
            Alu::Mul => "*=",
            Alu::Div => "/=",
            Alu::Sdiv => "s/=",
            Alu::Or => "|=",
            Alu::And => "&=",
            Alu::Lsh => "<<=",
            Alu::Rsh => ">>=",
            Alu::Mod => "%=",
            Alu::Smod => "s%=",
            Alu::Xor => "^=",
            Alu::Mov => "=",
            Alu::Arsh => "s>>=",
        }
    }
}

impl Cond {
    /// The comparison operator.
    pub(crate) const fn sign(self) -> &'static str {
        match self {
            Cond::Eq => "==",
            Cond::Gt => ">",
            Cond::Ge => ">=",
            Cond::Set => "&",
            Cond::Ne => "!=",
            Cond::Sgt => "s>",
            Cond::Sge => "s>=",
            Cond::Lt => "<",
            Cond::Le => "<=",
            Cond::Slt => "s<",
            Cond::Sle => "s<=",
        }
    }
}

impl Width {
    /// Width in bits.
    pub const fn in_bits(self) -> u8 {
        match self {
            Width::B => 8,
            Width::H => 16,
            Width::W => 32,
            Width::Dw => 64,
        }
    }
}

impl Atomic {
    /// The operator of one that leaves the register alone, or the name of one that is a function.
    pub(crate) const fn spelling(self) -> (&'static str, &'static str) {
        match self {
            Atomic::Add => ("+=", ""),
            Atomic::Or => ("|=", ""),
            Atomic::And => ("&=", ""),
            Atomic::Xor => ("^=", ""),
            Atomic::FetchAdd => ("", "fetch_add"),
            Atomic::FetchOr => ("", "fetch_or"),
            Atomic::FetchAnd => ("", "fetch_and"),
            Atomic::FetchXor => ("", "fetch_xor"),
            Atomic::Xchg => ("", "xchg"),
            Atomic::Cmpxchg => ("", "cmpxchg"),
            Atomic::LoadAcquire => ("", "load_acquire"),
            Atomic::StoreRelease => ("", "store_release"),
        }
    }
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.op {
            Op::Alu { wide, op, dst, src: Src::Reg(src) } => {
                write!(f, "{} {} {}", Reg(wide, dst), op.sign(), Reg(wide, src))
            }
            Op::Alu { wide, op, dst, src: Src::Imm(n) } => write!(f, "{} {} {n}", Reg(wide, dst), op.sign()),
            Op::MovSx { wide, bits, dst, src } => write!(f, "{} = (s{bits}){}", Reg(wide, dst), Reg(wide, src)),
            Op::Neg { wide, dst } => write!(f, "{0} = -{0}", Reg(wide, dst)),
            Op::Swap { kind, bits, dst } => {
                let name = match kind {
                    Swap::Le => "le",
                    Swap::Be => "be",
                    Swap::Always => "bswap",
                };
                write!(f, "r{dst} = {name}{bits} r{dst}")
            }
            Op::AddrSpaceCast { dst, src, to, from } => write!(f, "r{dst} = addr_space_cast(r{src}, {to}, {from})"),
            Op::Load { width, signed, dst, base, off } => {
                let sign = if signed { 's' } else { 'u' };
                write!(f, "r{dst} = *({sign}{} *)(r{base} {off:+})", width.in_bits())
            }
            Op::Store { width, base, off, src } => {
                write!(f, "*(u{} *)(r{base} {off:+}) = ", width.in_bits())?;
                match src {
                    Src::Reg(r) => write!(f, "r{r}"),
                    Src::Imm(n) => write!(f, "{n}"),
                }
            }
            Op::Atomic { op, width, base, off, reg } => atomic(f, op, width, base, off, reg),
            Op::LoadPacket { width, index: None, imm } => write!(f, "r0 = *(u{} *)skb[{imm}]", width.in_bits()),
            Op::LoadPacket { width, index: Some(r), imm } => {
                write!(f, "r0 = *(u{} *)skb[r{r} + {imm}]", width.in_bits())
            }
            Op::LoadImm { dst, value } => write!(f, "r{dst} = {value:#x}"),
            Op::LoadRef { dst, to } => {
                write!(f, "r{dst} = ")?;
                self.reference(f, to)
            }
            Op::Jump { long: false, off } => write!(f, "goto pc{off:+}"),
            Op::Jump { long: true, off } => write!(f, "gotol pc{off:+}"),
            Op::MayGoto { off } => write!(f, "may_goto pc{off:+}"),
            Op::Branch { wide, cond, dst, src: Src::Reg(src), off } => {
                write!(f, "if {} {} {} goto pc{off:+}", Reg(wide, dst), cond.sign(), Reg(wide, src))
            }
            Op::Branch { wide, cond, dst, src: Src::Imm(n), off } => {
                write!(f, "if {} {} {n:#x} goto pc{off:+}", Reg(wide, dst), cond.sign())
            }
            Op::CallHelper { id } => match self.names.helper(id) {
                Some(name) => write!(f, "call bpf_{name}#{id}"),
                None => write!(f, "call unknown#{id}"),
            },
            Op::CallFunc { off } => write!(f, "call pc{off:+}"),
            Op::CallKfunc { id, btf } => {
                write!(f, "call {}#{id}", self.names.kfunc(id, btf).unwrap_or("kernel-function"))?;
                if btf != 0 { write!(f, ",{btf}") } else { Ok(()) }
            }
            Op::Exit => f.write_str("exit"),
        }
    }
}

impl Text<'_> {
    fn reference(&self, f: &mut Formatter<'_>, to: Ref) -> fmt::Result {
        let by_index = |f: &mut Formatter<'_>, n| match self.names.map(n) {
            Some(name) => write!(f, "map[{name}]"),
            None => write!(f, "map[idx:{n}]"),
        };
        match to {
            Ref::MapFd(n) => write!(f, "map[fd:{n}]"),
            Ref::MapFdValue(n, off) => write!(f, "map[fd:{n}][0]{off:+}"),
            Ref::MapIdx(n) => by_index(f, n),
            Ref::MapIdxValue(n, off) => {
                by_index(f, n)?;
                write!(f, "[0]{off:+}")
            }
            Ref::Btf(id, 0) => write!(f, "ksym[{id}]"),
            Ref::Btf(id, fd) => write!(f, "ksym[{id},{fd}]"),
            Ref::Func(off) => write!(f, "subprog[{off:+}]"),
        }
    }
}

fn atomic(f: &mut Formatter<'_>, op: Atomic, width: Width, base: u8, off: i16, reg: u8) -> fmt::Result {
    let bits = width.in_bits();
    let family = if bits == 64 { "atomic64" } else { "atomic" };
    match (op, op.spelling()) {
        (Atomic::LoadAcquire, _) => write!(f, "r{reg} = load_acquire((u{bits} *)(r{base} {off:+}))"),
        (Atomic::StoreRelease, _) => write!(f, "store_release((u{bits} *)(r{base} {off:+}), r{reg})"),
        (Atomic::Cmpxchg, _) => write!(f, "r0 = {family}_cmpxchg((u{bits} *)(r{base} {off:+}), r0, r{reg})"),
        (_, (sign, "")) => write!(f, "lock *(u{bits} *)(r{base} {off:+}) {sign} r{reg}"),
        (_, (_, name)) => write!(f, "r{reg} = {family}_{name}((u{bits} *)(r{base} {off:+}), r{reg})"),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    struct Known;

    impl Names for Known {
        fn map(&self, index: i32) -> Option<&str> {
            (index == 2).then_some("counts")
        }
    }

    #[test]
    fn kernel_notation() {
        let cases = [
            (Insn::new(0xb7, 1, 0, 0, -5), "r1 = -5"),
            (Insn::new(0xb4, 1, 0, 0, 5), "w1 = 5"),
            (Insn::new(0xbf, 6, 1, 0, 0), "r6 = r1"),
            (Insn::new(0xbc, 1, 2, 8, 0), "w1 = (s8)w2"),
            (Insn::new(0xbf, 1, 2, 32, 0), "r1 = (s32)r2"),
            (Insn::new(0x0c, 1, 2, 0, 0), "w1 += w2"),
            (Insn::new(0x37, 1, 0, 1, 3), "r1 s/= 3"),
            (Insn::new(0x9c, 1, 2, 1, 0), "w1 s%= w2"),
            (Insn::new(0xc7, 1, 0, 0, 3), "r1 s>>= 3"),
            (Insn::new(0x87, 1, 0, 0, 0), "r1 = -r1"),
            (Insn::new(0xdc, 1, 0, 0, 16), "r1 = be16 r1"),
            (Insn::new(0xd7, 1, 0, 0, 64), "r1 = bswap64 r1"),
            (Insn::new(0xbf, 1, 2, 1, 1), "r1 = addr_space_cast(r2, 0, 1)"),
            (Insn::new(0x61, 0, 1, 4, 0), "r0 = *(u32 *)(r1 +4)"),
            (Insn::new(0x81, 0, 1, -4, 0), "r0 = *(s32 *)(r1 -4)"),
            (Insn::new(0x7b, 10, 1, -8, 0), "*(u64 *)(r10 -8) = r1"),
            (Insn::new(0x62, 10, 0, -4, 7), "*(u32 *)(r10 -4) = 7"),
            (Insn::new(0xdb, 1, 2, 0, 0), "lock *(u64 *)(r1 +0) += r2"),
            (Insn::new(0xc3, 1, 2, 0, 1), "r2 = atomic_fetch_add((u32 *)(r1 +0), r2)"),
            (Insn::new(0xdb, 1, 2, 8, 0xe1), "r2 = atomic64_xchg((u64 *)(r1 +8), r2)"),
            (Insn::new(0xdb, 1, 2, 0, 0xf1), "r0 = atomic64_cmpxchg((u64 *)(r1 +0), r0, r2)"),
            (Insn::new(0xdb, 0, 1, 0, 0x100), "r0 = load_acquire((u64 *)(r1 +0))"),
            (Insn::new(0xd3, 1, 2, 0, 0x110), "store_release((u8 *)(r1 +0), r2)"),
            (Insn::new(0x30, 0, 0, 0, 14), "r0 = *(u8 *)skb[14]"),
            (Insn::new(0x48, 0, 1, 0, 14), "r0 = *(u16 *)skb[r1 + 14]"),
            (Insn::new(0x05, 0, 0, 3, 0), "goto pc+3"),
            (Insn::new(0x06, 0, 0, 0, -3), "gotol pc-3"),
            (Insn::new(0xe5, 0, 0, 3, 0), "may_goto pc+3"),
            (Insn::new(0x65, 1, 0, 3, 5), "if r1 s> 0x5 goto pc+3"),
            (Insn::new(0x56, 1, 0, 3, -1), "if w1 != 0xffffffff goto pc+3"),
            (Insn::new(0x4d, 1, 2, -3, 0), "if r1 & r2 goto pc-3"),
            (Insn::new(0x85, 0, 0, 0, 1), "call bpf_map_lookup_elem#1"),
            (Insn::new(0x85, 0, 0, 0, 195_896_080), "call unknown#195896080"),
            (Insn::new(0x85, 0, 1, 0, 5), "call pc+5"),
            (Insn::new(0x95, 0, 0, 0, 0), "exit"),
        ];
        for (insn, text) in cases {
            assert_eq!(disasm(&[insn], &Known).unwrap().to_string(), text);
        }
        for (src, low, high, text) in [
            (0, -1, 1, "r1 = 0x1ffffffff"),
            (1, 4, 0, "r1 = map[fd:4]"),
            (2, 4, 8, "r1 = map[fd:4][0]+8"),
            (5, 2, 0, "r1 = map[counts]"),
            (5, 3, 0, "r1 = map[idx:3]"),
            (6, 2, 8, "r1 = map[counts][0]+8"),
            (4, 7, 0, "r1 = subprog[+7]"),
            (3, 99, 0, "r1 = ksym[99]"),
        ] {
            let code = [Insn::new(0x18, 1, src, 0, low), Insn::new(0, 0, 0, 0, high)];
            assert_eq!(disasm(&code, &Known).unwrap().to_string(), text);
        }
    }

    #[test]
    fn listing() {
        let code =
            [Insn::new(0x18, 1, 0, 0, 7), Insn::default(), Insn::new(0xff, 0, 0, 0, 0), Insn::new(0x95, 0, 0, 0, 0)];
        let text = Listing { insns: &code, names: &() }.to_string();
        assert_eq!(text, "   0: (18) r1 = 0x7\n   2: (ff) invalid: unknown opcode 0xff\n   3: (95) exit\n");
    }
}
