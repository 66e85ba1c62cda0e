//! The encoder: instructions as bytes, in the shortest form there is.

use super::regs::{RAX, RSP, Reg};

/// A place in memory: base + index << scale + displacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mem {
    pub(crate) base: Option<Reg>,
    pub(crate) index: Option<(Reg, u8)>,
    pub(crate) disp: i32,
}

impl Mem {
    /// `[base + disp]`.
    pub(crate) const fn at(base: Reg, disp: i32) -> Mem {
        Mem { base: Some(base), index: None, disp }
    }

    /// True if the address depends on the register.
    pub(crate) fn uses(self, r: Reg) -> bool {
        self.base == Some(r) || self.index.is_some_and(|(i, _)| i == r)
    }
}

/// Two-operand arithmetic, by number in encodings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts and rotations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shift {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// One-operand arithmetic; `Div` and `Idiv` work on rdx:rax.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unary {
    Neg = 3,
    Div = 6,
    Idiv = 7,
}

/// Conditions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[rustfmt::skip]
pub(crate) enum Cc {
    B = 2, Ae = 3, E = 4, Ne = 5, Be = 6, A = 7, S = 8, Ns = 9, L = 12, Ge = 13, Le = 14, G = 15,
}

impl Cc {
    /// The opposite.
    pub(crate) fn not(self) -> Cc {
        match self {
            Cc::B => Cc::Ae,
            Cc::Ae => Cc::B,
            Cc::E => Cc::Ne,
            Cc::Ne => Cc::E,
            Cc::Be => Cc::A,
            Cc::A => Cc::Be,
            Cc::S => Cc::Ns,
            Cc::Ns => Cc::S,
            Cc::L => Cc::Ge,
            Cc::Ge => Cc::L,
            Cc::Le => Cc::G,
            Cc::G => Cc::Le,
        }
    }
}

/// Width of a memory access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    B,
    H,
    W,
    Dw,
}

/// What an opcode is made of besides its last byte.
#[derive(Clone, Copy)]
struct Form {
    /// Mandatory prefix, 0 if none.
    prefix: u8,
    /// 64-bit operands.
    w: bool,
    /// `0`: one byte; `0x0f`; `0x38`: `0f 38`.
    map: u8,
    /// The register operands are 8 bits wide: those of spl to dil need a REX prefix.
    byte: bool,
}

const PLAIN: Form = Form { prefix: 0, w: false, map: 0, byte: false };

fn w(w: bool) -> Form {
    Form { w, ..PLAIN }
}

fn map0f(w: bool) -> Form {
    Form { w, map: 0x0f, ..PLAIN }
}

/// Up to eight bytes, put together without a branch: which of them an instruction has is hard to predict.
#[derive(Clone, Copy, Default)]
struct Short {
    bytes: u64,
    /// In bits.
    len: u32,
}

impl Short {
    #[inline]
    fn byte(&mut self, b: u8) {
        self.bytes |= u64::from(b) << self.len;
        self.len += 8;
    }

    /// A byte that may not be there.
    #[inline]
    fn maybe(&mut self, b: u8, there: bool) {
        self.bytes |= u64::from(if there { b } else { 0 }) << self.len;
        self.len += 8 * u32::from(there);
    }
}

/// Bytes of code.
#[derive(Default)]
pub(crate) struct Asm {
    pub(crate) bytes: Vec<u8>,
    /// Bits: the registers that instructions name, by number. Of the lower eight there may be more.
    pub(crate) named: u32,
    /// Some instruction calls or jumps to where a register says: out of this code.
    pub(crate) leaves: bool,
}

impl Asm {
    #[inline]
    fn b(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    #[inline]
    fn d(&mut self, imm: i32) {
        self.bytes.extend_from_slice(&imm.to_le_bytes());
    }

    /// Prefixes and opcode of an instruction.
    #[inline]
    fn opening(&mut self, f: Form, opcode: u8, reg: u8, index: u8, base: u8, byte_rm: bool) -> Short {
        self.named |= 1 << (reg & 15) | 1 << (index & 15) | 1 << (base & 15);
        let mut s = Short::default();
        s.maybe(f.prefix, f.prefix != 0);
        let rex = u8::from(f.w) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        let low = |r: u8| r & 12 == 4;
        s.maybe(0x40 | rex, rex != 0 || (f.byte && (low(reg) || (byte_rm && low(base)))));
        s.maybe(0x0f, f.map != 0);
        s.maybe(f.map, f.map > 0x0f);
        s.byte(opcode);
        s
    }

    #[inline]
    fn put(&mut self, s: Short) {
        self.put_with(s, 0, 0);
    }

    /// Puts `s` and the first `n` bytes of `more` behind it.
    #[inline]
    fn put_with(&mut self, s: Short, more: i32, n: usize) {
        let (start, len) = (self.bytes.len(), s.len as usize / 8);
        self.bytes.reserve(16);
        // SAFETY: there is room for sixteen bytes: eight, and four behind the first `len` of them, which are no more than
        // eight. As many as are kept have been written.
        unsafe {
            let end = self.bytes.as_mut_ptr().add(start);
            end.cast::<u64>().write_unaligned(s.bytes.to_le());
            end.add(len).cast::<i32>().write_unaligned(more.to_le());
            self.bytes.set_len(start + len + n);
        }
    }

    #[inline]
    fn head(&mut self, f: Form, opcode: u8, reg: u8, index: u8, base: u8, byte_rm: bool) {
        let s = self.opening(f, opcode, reg, index, base, byte_rm);
        self.put(s);
    }

    /// An instruction with a register as its r/m operand.
    #[inline]
    fn rr(&mut self, f: Form, opcode: u8, reg: u8, rm: Reg) {
        self.rr_with(f, opcode, reg, rm, 0, 0);
    }

    /// The same with `n` bytes of a number behind it.
    #[inline]
    fn rr_with(&mut self, f: Form, opcode: u8, reg: u8, rm: Reg, imm: i32, n: usize) {
        let mut s = self.opening(f, opcode, reg, 0, rm.0, true);
        s.byte(0xc0 | (reg & 7) << 3 | rm.0 & 7);
        self.put_with(s, imm, n);
    }

    /// An instruction with memory as its r/m operand.
    #[inline]
    fn rm(&mut self, f: Form, opcode: u8, reg: u8, m: Mem) {
        let m = match m {
            // Without a base four bytes of displacement are needed: 2 × index is index + index.
            Mem { base: None, index: Some((i, s @ 0..=1)), disp } => {
                Mem { base: Some(i), index: (s == 1).then_some((i, 0)), disp }
            }
            // The stack pointer cannot be an index, but any two registers can change places.
            m => m,
        };
        let (index, scale) = m.index.map_or((4, 0), |(i, s)| (i.0, s & 3));
        // No index is that of the stack pointer.
        let extension = if m.index.is_some() { index } else { 0 };
        let base = m.base.map_or(0, |b| b.0);
        let mut s = self.opening(f, opcode, reg, extension, base, false);
        let (reg, sib) = ((reg & 7) << 3, scale << 6 | (index & 7) << 3);
        if m.base.is_none() {
            s.byte(reg | 4);
            s.byte(sib | 5);
            return self.put_with(s, m.disp, 4);
        }
        let short = i8::try_from(m.disp).is_ok();
        let (mode, bytes) = match (m.disp == 0 && base & 7 != 5, short) {
            (true, _) => (0, 0),
            (false, true) => (1 << 6, 1),
            (false, false) => (2 << 6, 4),
        };
        let indexed = m.index.is_some() || base & 7 == RSP.0;
        s.byte(mode | reg | if indexed { 4 } else { base & 7 });
        s.maybe(sib | base & 7, indexed);
        self.put_with(s, m.disp, bytes);
    }

    #[allow(clippy::too_many_arguments, reason = "an instruction has as many")]
    fn vex(&mut self, map: u8, pp: u8, w: bool, reg: Reg, v: u8, rm: Reg, opcode: u8) {
        self.named |= 1 << (reg.0 & 15) | 1 << (v & 15) | 1 << (rm.0 & 15);
        let inverted = |r: u8, bit: u8| if r & 8 == 0 { 1 << bit } else { 0 };
        self.bytes.extend_from_slice(&[
            0xc4,
            inverted(reg.0, 7) | 0x40 | inverted(rm.0, 5) | map,
            u8::from(w) << 7 | (!v & 15) << 3 | pp,
            opcode,
            0xc0 | (reg.0 & 7) << 3 | rm.0 & 7,
        ]);
    }

    #[inline]
    pub(crate) fn alu_rr(&mut self, op: Alu, wide: bool, dst: Reg, src: Reg) {
        self.rr(w(wide), op as u8 * 8 + 1, src.0, dst);
    }

    #[inline]
    pub(crate) fn alu_ri(&mut self, op: Alu, wide: bool, dst: Reg, imm: i32) {
        if i8::try_from(imm).is_ok() {
            self.rr_with(w(wide), 0x83, op as u8, dst, imm, 1);
        } else if dst == RAX {
            let s = self.opening(w(wide), op as u8 * 8 + 5, 0, 0, 0, false);
            self.put_with(s, imm, 4);
        } else {
            self.rr_with(w(wide), 0x81, op as u8, dst, imm, 4);
        }
    }

    /// `dst op= [m]`.
    pub(crate) fn alu_rm(&mut self, op: Alu, wide: bool, dst: Reg, m: Mem) {
        self.rm(w(wide), op as u8 * 8 + 3, dst.0, m);
    }

    /// `[m] op= src`; with `lock` atomically.
    pub(crate) fn alu_mr(&mut self, op: Alu, lock: bool, size: Size, m: Mem, src: Reg) {
        if lock {
            self.b(0xf0);
        }
        self.sized(size, op as u8 * 8, src.0, m);
    }

    /// `[m] op= imm`.
    pub(crate) fn alu_mi(&mut self, op: Alu, size: Size, m: Mem, imm: i32) {
        let short = i8::try_from(imm).is_ok();
        match size {
            Size::B => {
                self.rm(PLAIN, 0x80, op as u8, m);
                self.b(imm as u8);
            }
            Size::H if !short => {
                self.rm(Form { prefix: 0x66, ..PLAIN }, 0x81, op as u8, m);
                self.bytes.extend_from_slice(&(imm as u16).to_le_bytes());
            }
            _ => {
                let f = Form { prefix: if size == Size::H { 0x66 } else { 0 }, w: size == Size::Dw, ..PLAIN };
                self.rm(f, if short { 0x83 } else { 0x81 }, op as u8, m);
                if short { self.b(imm as u8) } else { self.d(imm) }
            }
        }
    }

    /// An instruction whose opcode for bytes is `opcode`, for all other widths the next one.
    #[inline]
    fn sized(&mut self, size: Size, opcode: u8, reg: u8, m: Mem) {
        match size {
            Size::B => self.rm(Form { byte: true, ..PLAIN }, opcode, reg, m),
            Size::H => self.rm(Form { prefix: 0x66, ..PLAIN }, opcode + 1, reg, m),
            Size::W => self.rm(PLAIN, opcode + 1, reg, m),
            Size::Dw => self.rm(w(true), opcode + 1, reg, m),
        }
    }

    pub(crate) fn test_rr(&mut self, wide: bool, a: Reg, b: Reg) {
        self.rr(w(wide), 0x85, b.0, a);
    }

    /// Sets the zero flag as `a & imm` of that width does; the sign flag is not to be used.
    pub(crate) fn test_ri(&mut self, wide: bool, a: Reg, imm: i32) {
        if (0..0x80).contains(&imm) {
            if a == RAX {
                self.b(0xa8);
            } else {
                self.rr(Form { byte: true, ..PLAIN }, 0xf6, 0, a);
            }
            return self.b(imm as u8);
        }
        let wide = wide && imm < 0;
        if a == RAX {
            self.head(w(wide), 0xa9, 0, 0, 0, false);
        } else {
            self.rr(w(wide), 0xf7, 0, a);
        }
        self.d(imm);
    }

    #[inline]
    pub(crate) fn mov_rr(&mut self, wide: bool, dst: Reg, src: Reg) {
        self.rr(w(wide), 0x89, src.0, dst);
    }

    /// `dst = imm`; flags stay.
    pub(crate) fn mov_ri(&mut self, dst: Reg, imm: u64) {
        if u32::try_from(imm).is_ok() {
            let s = self.opening(PLAIN, 0xb8 | dst.0 & 7, 0, 0, dst.0, false);
            self.put_with(s, imm as u32 as i32, 4);
        } else if i32::try_from(imm as i64).is_ok() {
            self.rr_with(w(true), 0xc7, 0, dst, imm as i32, 4);
        } else {
            self.head(w(true), 0xb8 | dst.0 & 7, 0, 0, dst.0, false);
            self.bytes.extend_from_slice(&imm.to_le_bytes());
        }
    }

    /// `dst = 0`; flags change.
    pub(crate) fn zero(&mut self, dst: Reg) {
        self.alu_rr(Alu::Xor, false, dst, dst);
    }

    /// `dst = src`, cut to 8 or 16 bits.
    pub(crate) fn movzx(&mut self, size: Size, dst: Reg, src: Reg) {
        let (opcode, byte) = if size == Size::B { (0xb6, true) } else { (0xb7, false) };
        // Only the source is a byte register.
        let f = Form { byte: byte && (4..8).contains(&src.0), ..map0f(false) };
        self.head_src_byte(f, opcode, dst, src);
    }

    /// `dst = src`, sign-extended from 8, 16 or 32 bits.
    pub(crate) fn movsx(&mut self, size: Size, wide: bool, dst: Reg, src: Reg) {
        match size {
            Size::B => self.head_src_byte(Form { byte: (4..8).contains(&src.0), ..map0f(wide) }, 0xbe, dst, src),
            Size::H => self.rr(map0f(wide), 0xbf, dst.0, src),
            _ => self.rr(w(wide), 0x63, dst.0, src),
        }
    }

    fn head_src_byte(&mut self, f: Form, opcode: u8, dst: Reg, src: Reg) {
        self.named |= 1 << (dst.0 & 15) | 1 << (src.0 & 15);
        let rex = u8::from(f.w) << 3 | (dst.0 >> 3) << 2 | src.0 >> 3;
        if rex != 0 || f.byte {
            self.b(0x40 | rex);
        }
        self.bytes.extend_from_slice(&[0x0f, opcode, 0xc0 | (dst.0 & 7) << 3 | src.0 & 7]);
    }

    pub(crate) fn shift_ri(&mut self, op: Shift, wide: bool, dst: Reg, k: u8) {
        if k == 1 {
            self.rr(w(wide), 0xd1, op as u8, dst);
        } else {
            self.rr_with(w(wide), 0xc1, op as u8, dst, i32::from(k), 1);
        }
    }

    /// Swaps the two low bytes; the others stay.
    pub(crate) fn swap16(&mut self, dst: Reg) {
        self.rr(Form { prefix: 0x66, ..PLAIN }, 0xc1, Shift::Rol as u8, dst);
        self.b(8);
    }

    /// Shifts by cl.
    pub(crate) fn shift_cl(&mut self, op: Shift, wide: bool, dst: Reg) {
        self.rr(w(wide), 0xd3, op as u8, dst);
    }

    /// `dst = src op count` (BMI2); flags stay.
    pub(crate) fn shift_x(&mut self, op: Shift, wide: bool, dst: Reg, src: Reg, count: Reg) {
        let pp = match op {
            Shift::Shl => 1,
            Shift::Sar => 2,
            _ => 3,
        };
        self.vex(2, pp, wide, dst, count.0, src, 0xf7);
    }

    /// `dst = src` rotated right by `k` (BMI2); flags stay.
    pub(crate) fn rorx(&mut self, wide: bool, dst: Reg, src: Reg, k: u8) {
        self.vex(3, 3, wide, dst, 0, src, 0xf0);
        self.b(k);
    }

    pub(crate) fn imul_rr(&mut self, wide: bool, dst: Reg, src: Reg) {
        self.rr(map0f(wide), 0xaf, dst.0, src);
    }

    pub(crate) fn imul_rri(&mut self, wide: bool, dst: Reg, src: Reg, imm: i32) {
        if i8::try_from(imm).is_ok() {
            self.rr_with(w(wide), 0x6b, dst.0, src, imm, 1);
        } else {
            self.rr_with(w(wide), 0x69, dst.0, src, imm, 4);
        }
    }

    pub(crate) fn unary(&mut self, op: Unary, wide: bool, r: Reg) {
        self.rr(w(wide), 0xf7, op as u8, r);
    }

    /// Extends the sign of rax (eax) into rdx (edx).
    pub(crate) fn sign_to_rdx(&mut self, wide: bool) {
        self.head(w(wide), 0x99, 0, 0, 0, false);
    }

    pub(crate) fn bswap(&mut self, wide: bool, r: Reg) {
        self.head(map0f(wide), 0xc8 | r.0 & 7, 0, 0, r.0, false);
    }

    pub(crate) fn lea(&mut self, wide: bool, dst: Reg, m: Mem) {
        self.rm(w(wide), 0x8d, dst.0, m);
    }

    /// `dst = [m]`, zero-extended to 64 bits.
    #[inline]
    pub(crate) fn load(&mut self, size: Size, dst: Reg, m: Mem) {
        match size {
            Size::B => self.rm(map0f(false), 0xb6, dst.0, m),
            Size::H => self.rm(map0f(false), 0xb7, dst.0, m),
            Size::W => self.rm(PLAIN, 0x8b, dst.0, m),
            Size::Dw => self.rm(w(true), 0x8b, dst.0, m),
        }
    }

    /// `dst = [m]`, sign-extended to 64 bits.
    pub(crate) fn load_signed(&mut self, size: Size, dst: Reg, m: Mem) {
        match size {
            Size::B => self.rm(map0f(true), 0xbe, dst.0, m),
            Size::H => self.rm(map0f(true), 0xbf, dst.0, m),
            Size::W => self.rm(w(true), 0x63, dst.0, m),
            Size::Dw => self.rm(w(true), 0x8b, dst.0, m),
        }
    }

    /// `dst = [m]` with its bytes reversed (MOVBE); 32 or 64 bits.
    pub(crate) fn load_swapped(&mut self, wide: bool, dst: Reg, m: Mem) {
        self.rm(Form { w: wide, map: 0x38, ..PLAIN }, 0xf0, dst.0, m);
    }

    #[inline]
    pub(crate) fn store(&mut self, size: Size, m: Mem, src: Reg) {
        self.sized(size, 0x88, src.0, m);
    }

    pub(crate) fn store_imm(&mut self, size: Size, m: Mem, imm: i32) {
        match size {
            Size::B => {
                self.rm(PLAIN, 0xc6, 0, m);
                self.b(imm as u8);
            }
            Size::H => {
                self.rm(Form { prefix: 0x66, ..PLAIN }, 0xc7, 0, m);
                self.bytes.extend_from_slice(&(imm as u16).to_le_bytes());
            }
            Size::W | Size::Dw => {
                self.rm(w(size == Size::Dw), 0xc7, 0, m);
                self.d(imm);
            }
        }
    }

    /// Exchanges; atomic by itself.
    pub(crate) fn xchg(&mut self, wide: bool, m: Mem, r: Reg) {
        self.rm(w(wide), 0x87, r.0, m);
    }

    /// If [m] is rax, stores `src` there, else loads it into rax.
    pub(crate) fn lock_cmpxchg(&mut self, wide: bool, m: Mem, src: Reg) {
        self.b(0xf0);
        self.rm(map0f(wide), 0xb1, src.0, m);
    }

    /// Adds `r` to [m]; `r` gets what was there.
    pub(crate) fn lock_xadd(&mut self, wide: bool, m: Mem, r: Reg) {
        self.b(0xf0);
        self.rm(map0f(wide), 0xc1, r.0, m);
    }

    pub(crate) fn cmov(&mut self, cc: Cc, wide: bool, dst: Reg, src: Reg) {
        self.rr(map0f(wide), 0x40 | cc as u8, dst.0, src);
    }

    pub(crate) fn push(&mut self, r: Reg) {
        self.head(PLAIN, 0x50 | r.0 & 7, 0, 0, r.0, false);
    }

    pub(crate) fn pop(&mut self, r: Reg) {
        self.head(PLAIN, 0x58 | r.0 & 7, 0, 0, r.0, false);
    }

    pub(crate) fn ret(&mut self) {
        self.b(0xc3);
    }

    pub(crate) fn call_reg(&mut self, r: Reg) {
        self.leaves = true;
        self.rr(PLAIN, 0xff, 2, r);
    }

    pub(crate) fn jmp_reg(&mut self, r: Reg) {
        self.leaves = true;
        self.rr(PLAIN, 0xff, 4, r);
    }

    /// `[m] -= 1`, 64 bits.
    pub(crate) fn dec_mem(&mut self, m: Mem) {
        self.rm(w(true), 0xff, 1, m);
    }

    /// `n` bytes that do nothing.
    pub(crate) fn nops(&mut self, mut n: usize) {
        const NOPS: [&[u8]; 9] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x00],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
            &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
            &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        ];
        while n > 0 {
            let k = n.min(NOPS.len());
            self.bytes.extend_from_slice(NOPS[k - 1]);
            n -= k;
        }
    }
}
