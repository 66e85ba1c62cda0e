//! Random programs of everything that machine code does better than instruction by instruction.
//!
//! A program is a list of items, each some instructions that belong together: jumps lead from item to item only, so that
//! an address is never used before it was made.

use skep_ebpf::Insn;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::MapDef;
use skep_ebpf::uapi::MapType;

use super::rng::Rng;

/// Registers that hold numbers: r6 is the context, r9 counts loops.
const NUMBERS: [u8; 8] = [0, 1, 2, 3, 4, 5, 7, 8];
/// Registers of a function that is called.
const CALLED: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 9];
/// Bytes of stack that the items of a function use, where functions are not deep.
const STACK: i16 = 128;
/// Bytes of the context, or of the packet: r0 to r5, r7 and r8.
pub(super) const CTX: usize = 64;

const ALU: [u8; 7] = [0x00, 0x10, 0x20, 0x40, 0x50, 0xa0, 0xb0];
const JUMPS: [u8; 11] = [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0];

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

/// A jump that is to lead so many items on.
const JUMP: i32 = 0x7000_0000;

/// What a random program is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// A `syscall` program of arithmetic, stack and calls.
    Plain,
    /// The same with maps and helpers.
    Maps,
    /// A `tc` program that works on its packet.
    Packet,
}

/// How a program is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) shape: Shape,
    /// No atomic operation fetches from the stack: there Linux 6.18 loses track of what a value relies on, prunes a path
    /// that it should not, and takes out an instruction that is needed.
    pub(super) for_kernel: bool,
    /// It does not tail-call.
    pub(super) last: bool,
}

struct Maker<'a> {
    rng: &'a mut Rng,
    wish: Wish,
    regs: &'static [u8],
    last: u8,
    stack: i16,
    /// It is the main function, and the only one.
    alone: bool,
}

impl Maker<'_> {
    /// A register, often that of the instruction before.
    fn reg(&mut self) -> u8 {
        if self.rng.below(3) > 0 {
            self.last = self.rng.one(self.regs);
        }
        self.last
    }

    fn wide(&mut self) -> u8 {
        self.rng.one(&[7, 4])
    }

    fn cond(&mut self, off: i16) -> Insn {
        let class = self.rng.one(&[5, 6]);
        let (op, dst) = (self.rng.one(&JUMPS), self.reg());
        if self.rng.below(2) == 0 {
            let imm = if self.rng.below(3) == 0 { 0 } else { self.rng.imm() };
            insn(op | class, dst, 0, off, imm)
        } else {
            insn(op | class | 8, dst, self.reg(), off, 0)
        }
    }

    fn slot(&mut self) -> i16 {
        -8 * (1 + self.rng.below(self.stack as usize / 8) as i16)
    }

    /// Two different registers.
    fn two(&mut self) -> (u8, u8) {
        let a = self.reg();
        let b = loop {
            let b = self.rng.one(self.regs);
            if b != a {
                break b;
            }
        };
        (a, b)
    }

    fn item(&mut self) -> Vec<Insn> {
        let wide = self.wide();
        let bits = if wide == 7 { 64 } else { 32 };
        let (dst, src) = (self.reg(), self.reg());
        match self.rng.below(27) {
            0..4 => vec![insn(self.rng.one(&ALU) | 8 | wide, dst, src, 0, 0)],
            4..7 => vec![insn(self.rng.one(&ALU) | wide, dst, 0, 0, self.rng.imm())],
            7 => vec![insn(0xbf, dst, src, 0, 0), insn(self.rng.one(&ALU) | wide, dst, 0, 0, self.rng.imm())],
            8 => vec![insn(self.rng.one(&[0x60, 0x70, 0xc0]) | wide, dst, 0, 0, self.rng.below(bits) as i32)],
            9 => vec![insn(self.rng.one(&[0x60, 0x70, 0xc0]) | 8 | wide, dst, src, 0, 0)],
            10 => {
                let op = self.rng.one(&[0x30, 0x90]) | wide;
                let off = self.rng.one(&[0, 0, 1]);
                if self.rng.below(2) == 0 {
                    let imm = self.rng.imm();
                    vec![insn(op, dst, 0, off, if imm == 0 { 10 } else { imm })]
                } else {
                    vec![insn(op | 8, dst, src, off, 0)]
                }
            }
            11 => vec![match self.rng.below(4) {
                0 => insn(0x80 | wide, dst, 0, 0, 0),
                1 => insn(0xbf, dst, src, self.rng.one(&[8, 16, 32]), 0),
                2 => insn(0xbc, dst, src, self.rng.one(&[8, 16]), 0),
                _ => insn(self.rng.one(&[0xd4, 0xdc, 0xd7]), dst, 0, 0, self.rng.one(&[16, 32, 64])),
            }],
            // A rotation, sometimes one that is none.
            12 => {
                let ((a, b), x) = (self.two(), src);
                let k = 1 + self.rng.below(bits - 1) as i32;
                let right = if self.rng.below(4) == 0 { 1 } else { bits as i32 - k };
                let join = self.rng.one(&[0x4f, 0xaf, 0x0f]) & 0xf8 | wide;
                let copy = 0xb8 | wide;
                match self.rng.below(3) {
                    0 => vec![
                        insn(copy, a, x, 0, 0),
                        insn(0x60 | wide, a, 0, 0, k),
                        insn(copy, b, x, 0, 0),
                        insn(0x70 | wide, b, 0, 0, right),
                        insn(join, a, b, 0, 0),
                    ],
                    1 => vec![
                        insn(copy, a, b, 0, 0),
                        insn(0x70 | wide, a, 0, 0, k),
                        insn(0x60 | wide, b, 0, 0, right),
                        insn(join, b, a, 0, 0),
                    ],
                    _ => vec![insn(0x60 | wide, a, 0, 0, k), insn(self.rng.one(&[0x70, 0xc0]) | wide, a, 0, 0, k)],
                }
            }
            // An address on the stack with an index.
            13..16 => {
                let (a, b) = self.two();
                let mut item = self.index(b, src, if self.stack < 128 { 24 } else { 56 });
                item.extend([insn(0xbf, a, 10, 0, 0), insn(0x07, a, 0, 0, -i32::from(self.stack))]);
                item.push(insn(0x0f, a, b, 0, 0));
                let off = (self.rng.below(5) * 8) as i16;
                item.extend(self.access(a, b, off, true));
                item
            }
            16 => {
                let (off, size) = (self.slot(), self.rng.one(&[0x00, 0x08, 0x10, 0x18]));
                let op = insn(self.rng.one(&ALU) & 0xf0 | 8 | wide, dst, src, 0, 0);
                let op = if self.rng.below(2) == 0 { insn(op.code & !8, dst, 0, 0, self.rng.imm()) } else { op };
                let end = self.rng.one(&[0, 0, 1]);
                let mut item = vec![insn(0x61 | size, dst, 10, off, 0), op, insn(0x63 | size, 10, dst, off, 0)];
                if end == 0 {
                    item.push(insn(0xb7, dst, 0, 0, self.rng.imm()));
                }
                item
            }
            // A load into an operation, or with its bytes swapped.
            17 => {
                let (off, (a, b)) = (self.slot(), self.two());
                if self.rng.below(2) == 0 {
                    let bits = self.rng.one(&[16, 32, 64]);
                    let size = [0x08, 0x00, 0x18][bits / 32];
                    vec![insn(0x61 | size, a, 10, off, 0), insn(self.rng.one(&[0xd7, 0xdc]), a, 0, 0, bits as i32)]
                } else {
                    let size = if wide == 7 { 0x18 } else { 0 };
                    let mut item =
                        vec![insn(0x61 | size, a, 10, off, 0), insn(self.rng.one(&ALU) | 8 | wide, b, a, 0, 0)];
                    if self.rng.below(2) == 0 {
                        item.push(insn(0xb7, a, 0, 0, 3));
                    }
                    item
                }
            }
            // Numbers to neighbouring places.
            18 => {
                let (off, size) = (self.slot(), self.rng.one(&[(0x00, 4), (0x08, 2), (0x10, 1)]));
                let n = 1 + self.rng.below(8 / size.1 as usize) as i16;
                (0..n).map(|i| insn(0x62 | size.0, 10, 0, off + i * size.1, self.rng.imm())).collect()
            }
            19 => {
                let slot = self.slot();
                vec![self.atomic(10, src, slot, true)]
            }
            // A move that a branch leads around.
            20 => {
                let mov = if self.rng.below(2) == 0 {
                    insn(0xb8 | wide, dst, src, 0, 0)
                } else {
                    insn(0xb0 | wide, dst, 0, 0, self.rng.imm())
                };
                vec![self.cond(1), mov]
            }
            21 => {
                let value = self.rng.next();
                vec![insn(0x18, dst, 0, 0, value as i32), insn(0, 0, 0, 0, (value >> 32) as i32)]
            }
            // A mask and a test for zero.
            22 => {
                let jump = insn(self.rng.one(&[0x15, 0x55, 0x16, 0x56]), dst, 0, 0, 0);
                let mask = self.rng.imm();
                let mut item = vec![insn(0x50 | wide, dst, 0, 0, mask), Insn { imm: 0, off: 1, ..jump }];
                item.push(insn(0xbf, self.rng.one(self.regs), src, 0, 0));
                if self.rng.below(2) == 0 {
                    item.push(insn(0xb7, dst, 0, 0, 9));
                }
                item
            }
            // A sign-extending load, of all that the slot holds or of a part.
            23 => {
                let size = self.rng.one(&[0x00, 0x08, 0x10]);
                vec![insn(0x81 | size, dst, 10, self.slot() + self.rng.one(&[0, 4]), 0)]
            }
            // A jump that is always taken, short or long, and a branch around it.
            24 => {
                let jump = insn(self.rng.one(&[0x05, 0x06]), 0, 0, 1 + self.rng.below(3) as i16, JUMP);
                vec![self.cond(1), jump]
            }
            25 if self.wish.shape == Shape::Maps => self.with_maps(),
            25 if self.wish.shape == Shape::Packet => self.with_packet(),
            _ => {
                let skip = 1 + self.rng.below(4) as i16;
                vec![Insn { imm: JUMP, ..self.cond(skip) }]
            }
        }
    }

    /// `b` = an index of at most `mask` bytes, made of `src`.
    fn index(&mut self, b: u8, src: u8, mask: i32) -> Vec<Insn> {
        let shift = self.rng.below(4) as i32;
        let mut item = vec![insn(0xbf, b, src, 0, 0), insn(0x57, b, 0, 0, mask >> shift), insn(0x67, b, 0, 0, shift)];
        if shift == 0 {
            item.pop();
        }
        item
    }

    /// Something with the memory that the address in `a` leads to; `b` is a number and another one afterwards.
    fn access(&mut self, a: u8, b: u8, off: i16, stack: bool) -> Vec<Insn> {
        let (wide, size) = (self.wide(), self.rng.one(&[0x00, 0x08, 0x10, 0x18]));
        let mut item = match self.rng.below(7) {
            0 => vec![insn(0x62 | size, a, 0, off, self.rng.imm())],
            1 => vec![insn(0x63 | size, a, b, off, 0)],
            2 => vec![insn(0x61 | size, b, a, off, 0)],
            3 => vec![insn(if size == 0x18 { 0x79 } else { 0x81 | size }, b, a, off, 0)],
            // Packets take no atomic operations, and the stack those at known places.
            4 if self.wish.shape == Shape::Maps && !stack => vec![self.atomic(a, b, off, false)],
            _ => {
                // The address itself must not get into memory.
                let other = self.rng.one(self.regs);
                vec![
                    insn(0x61 | size, b, a, off, 0),
                    insn(self.rng.one(&ALU) | 8 | wide, b, if other == a { b } else { other }, 0, 0),
                    insn(0x63 | size, a, b, off, 0),
                ]
            }
        };
        if self.rng.once_in(3) {
            let to = self.rng.one(self.regs);
            if to != a {
                item.push(insn(0xbf, to, b, 0, 0));
            }
        }
        // The address may have got into a number by now: nobody may see it.
        item.extend([insn(0xb7, a, 0, 0, 77), insn(0xb4, b, 0, 0, -5)]);
        item
    }

    /// An atomic operation of 4 or 8 bytes.
    fn atomic(&mut self, base: u8, src: u8, off: i16, stack: bool) -> Insn {
        let code = self.rng.one(&[0xdb, 0xc3]);
        let op = self.rng.one(&[0x00, 0x40, 0x50, 0xa0, 0x01, 0x41, 0x51, 0xa1, 0xe1, 0xf1, 0x100, 0x110]);
        let op = if !(stack && self.wish.for_kernel) || op == 0x110 {
            op
        } else {
            op & 0xf0 & [0, 0x50][usize::from(op < 0xe0)]
        };
        match op {
            // The address must not be changed by what is fetched into r0.
            0xf1 if base == 0 => insn(code, base, src, off, 0xe1),
            0x100 => insn(code, src, base, off, op),
            _ => insn(code, base, src, off, op),
        }
    }

    /// Numbers into r1 to r5, which a call has spoilt.
    fn refill(&mut self) -> Vec<Insn> {
        let mut item = Vec::new();
        for r in 1..=5 {
            item.push(match self.rng.below(3) {
                0 => insn(0x79, r, 10, self.slot(), 0),
                _ => insn(0xb7, r, 0, 0, self.rng.imm()),
            });
        }
        item
    }

    /// A key of so many bytes at the slot: a number, or one made of a register.
    fn key(&mut self, at: i16, size: u8, below: i32) -> Vec<Insn> {
        let code = if size == 8 { 0x18 } else { 0 };
        if self.rng.once_in(2) {
            return vec![insn(0x62 | code, 10, 0, at, self.rng.below(below as usize + 2) as i32)];
        }
        let r = self.reg();
        vec![insn(0x57, r, 0, 0, 15), insn(0x63 | code, 10, r, at, 0)]
    }

    /// Global data, a look-up, an update or a deletion, or a helper that always answers the same.
    fn with_maps(&mut self) -> Vec<Insn> {
        let (kind, src) = (self.rng.below(8), self.reg());
        if kind < 2 {
            let (a, b) = self.two();
            let at = self.rng.below(9) as i32 * 8;
            let mut item = self.index(b, src, 24);
            item.extend([insn(0x18, a, pseudo::MAP_IDX_VALUE, 0, VALUES), insn(0, 0, 0, 0, at)]);
            if self.rng.once_in(2) {
                item.push(insn(0x0f, a, b, 0, 0));
            }
            let off = self.rng.below(3) as i16 * 8;
            item.extend(self.access(a, b, off, false));
            return item;
        }
        let mut item = Vec::new();
        if kind == 7 {
            match self.rng.below(3) {
                0 => item.push(insn(0x85, 0, 0, 0, 14)),
                1 => item.push(insn(0x85, 0, 0, 0, 15)),
                _ => item.extend([
                    insn(0xbf, 1, 10, 0, 0),
                    insn(0x07, 1, 0, 0, -16),
                    insn(0xb7, 2, 0, 0, 16),
                    insn(0x85, 0, 0, 0, 16),
                ]),
            }
            item.extend(self.refill());
            return item;
        }
        let (map, key, entries, value) =
            self.rng.one(&[(ARRAY, 4, 8, 16), (PER_CPU, 4, 4, 8), (HASH, 8, 16, 8), (TABLE, 4, 12, 24)]);
        let at = -8 * (4 + self.rng.below(4) as i16);
        item.extend(self.key(at, key, entries));
        let first = [insn(0x18, 1, pseudo::MAP_IDX, 0, map), insn(0, 0, 0, 0, 0)];
        let second = [insn(0xbf, 2, 10, 0, 0), insn(0x07, 2, 0, 0, at.into())];
        if self.rng.once_in(2) {
            item.extend(first.into_iter().chain(second));
        } else {
            item.extend(second.into_iter().chain(first));
        }
        match kind {
            2 => {
                item.extend([insn(0xbf, 3, 10, 0, 0), insn(0x07, 3, 0, 0, -24)]);
                item.extend([insn(0xb7, 4, 0, 0, self.rng.below(3) as i32), insn(0x85, 0, 0, 0, 2)]);
            }
            3 => item.push(insn(0x85, 0, 0, 0, 3)),
            _ => {
                let off = self.rng.below(value / 8) as i16 * 8;
                let b = self.rng.one(&[1u8, 3, 5, 7]);
                item.push(insn(0x85, 0, 0, 0, 1));
                let mut body = vec![insn(0xb7, b, 0, 0, self.rng.imm())];
                // The others are spoilt.
                let regs = std::mem::replace(&mut self.regs, &[7]);
                body.extend(self.access(0, b, off, false));
                self.regs = regs;
                let n = body.len() as i16;
                if self.rng.once_in(2) {
                    item.push(insn(0x15, 0, 0, n, 0));
                } else {
                    item.extend([insn(0x55, 0, 0, 1, 0), insn(0x05, 0, 0, n, 0)]);
                }
                item.extend(body);
                item.push(insn(0xb7, 0, 0, 0, 1));
            }
        }
        item.extend(self.refill());
        item
    }

    /// An access to the packet, by its address or by a load of the old kind; or a tail call.
    fn with_packet(&mut self) -> Vec<Insn> {
        let (a, b) = self.two();
        let src = self.reg();
        if !self.alone {
            return vec![insn(0xbf, a, b, 0, 0)];
        }
        match self.rng.below(if self.wish.last { 5 } else { 6 }) {
            0..3 => {
                let mut item = vec![
                    insn(0x61, a, 6, 76, 0),
                    insn(0x61, b, 6, 80, 0),
                    insn(0x07, a, 0, 0, CTX as i32),
                    insn(0x3d, b, a, 1, 0),
                    insn(0x05, 0, 0, 0, 0),
                    insn(0x07, a, 0, 0, -(CTX as i32)),
                ];
                let mut body = self.index(b, src, 24);
                if src == a || src == b {
                    body[0] = insn(0xb7, b, 0, 0, 9);
                }
                if self.rng.once_in(2) {
                    body.clear();
                    body.push(insn(0xb7, b, 0, 0, self.rng.imm()));
                } else {
                    body.push(insn(0x0f, a, b, 0, 0));
                    // The sum lost what was checked: once more.
                    body.extend([insn(0x61, 9, 6, 80, 0), insn(0xbf, 0, a, 0, 0)]);
                    body.extend([insn(0x07, 0, 0, 0, 40), insn(0x2d, 0, 9, 0, 0)]);
                }
                let checked = body.iter().position(|i| i.code == 0x2d);
                if a == 0 || b == 0 || (checked.is_some() && (a == 9 || b == 9)) {
                    return vec![insn(0xb7, a, 0, 0, 1)];
                }
                let off = (self.rng.below(4) * 8) as i16;
                let regs = self.regs;
                if checked.is_some() {
                    self.regs = &[1, 2, 3, 4, 5, 7, 8];
                }
                let use_it = self.access(a, b, off, false);
                self.regs = regs;
                if let Some(at) = checked {
                    body[at].off = use_it.len() as i16;
                }
                body.extend(use_it);
                item[4].off = body.len() as i16 + 1;
                item.extend(body);
                item.extend([insn(0xb7, a, 0, 0, 3), insn(0xb7, b, 0, 0, 4)]);
                if checked.is_some() {
                    item.extend([insn(0xb7, 0, 0, 0, 5), insn(0xb7, 9, 0, 0, 1)]);
                }
                item
            }
            3 | 4 => {
                let (code, index) = self.rng.one(&[
                    (0x30, false),
                    (0x28, false),
                    (0x20, false),
                    (0x50, true),
                    (0x48, true),
                    (0x40, true),
                ]);
                let r = self.rng.one(&[7u8, 8]);
                let mut item = Vec::new();
                if index {
                    item.push(insn(0x57, r, 0, 0, 31));
                }
                item.push(insn(code, 0, if index { r } else { 0 }, 0, self.rng.below(62) as i32));
                item.extend(self.refill());
                item
            }
            _ => {
                let mut item =
                    vec![insn(0xbf, 1, 6, 0, 0), insn(0x18, 2, pseudo::MAP_IDX, 0, PROGRAMS), insn(0, 0, 0, 0, 0)];
                item.push(match self.rng.below(3) {
                    0 => insn(0xb7, 3, 0, 0, self.rng.below(6) as i32 - 1),
                    1 => insn(0xbc, 3, 7, 0, 0),
                    _ => insn(0xbf, 3, 8, 0, 0),
                });
                item.push(insn(0x85, 0, 0, 0, 12));
                item.push(insn(0xb7, 0, 0, 0, 6));
                item.extend(self.refill());
                item
            }
        }
    }

    /// Items in a row, their jumps resolved; a jump behind the last leads to the end.
    fn body(&mut self, n: usize) -> Vec<Insn> {
        let items: Vec<_> = (0..n).map(|_| self.item()).collect();
        let mut starts = vec![0];
        for item in &items {
            starts.push(starts[starts.len() - 1] + item.len());
        }
        let mut out = Vec::new();
        for (k, item) in items.into_iter().enumerate() {
            for mut i in item {
                if i.imm == JUMP && i.class() >= 5 && i.class() <= 6 {
                    let distance = starts[(k + 1 + i.off as usize).min(n)] - out.len() - 1;
                    i = match i.code {
                        0x06 => insn(0x06, 0, 0, 0, distance as i32),
                        0x05 => insn(0x05, 0, 0, distance as i16, 0),
                        _ => {
                            let imm = if i.is_x() { 0 } else { self.rng.imm() };
                            Insn { off: distance as i16, imm, ..i }
                        }
                    };
                }
                out.push(i);
            }
        }
        out
    }
}

/// The maps of [`Shape::Maps`] and [`Shape::Packet`], by index.
const VALUES: i32 = 0;
const ARRAY: i32 = 1;
const PER_CPU: i32 = 2;
const HASH: i32 = 3;
const TABLE: i32 = 4;
const PROGRAMS: i32 = 5;

/// Indices of the prog array that lead somewhere.
pub(super) const TARGETS: u32 = 3;

/// The maps that random programs use.
pub(super) fn maps() -> Vec<MapDef> {
    vec![
        MapDef::new("values", MapType::Array, 4, 128, 1),
        MapDef::new("array", MapType::Array, 4, 16, 8),
        MapDef::new("per_cpu", MapType::PercpuArray, 4, 8, 4),
        MapDef::new("hash", MapType::Hash, 8, 8, 12),
        MapDef::new("table", MapType::Hash, 4, 24, 64),
        MapDef::new("programs", MapType::ProgArray, 4, 4, 4),
    ]
}

/// A random program: it loads its registers from its context or packet, and stores them there.
pub(super) fn program(rng: &mut Rng, wish: Wish) -> Vec<Insn> {
    let packet = wish.shape == Shape::Packet;
    let n = 4 + rng.below(14);
    // Functions below the main one; where there are many, each has less stack.
    let depth = if rng.below(3) > 0 { 0 } else { rng.one(&[1, 1, 2, 2, 3, 5]) };
    let (looped, count) = (rng.once_in(3), rng.below(3) as i32 + 1);
    let stack = if depth > 2 { 64 } else { STACK };
    let mut maker = Maker { rng, wish, regs: &NUMBERS, last: 0, stack, alone: depth == 0 };
    let mut insns = vec![insn(0xbf, 6, 1, 0, 0)];
    if packet {
        insns.extend(bounds(2, 3, 4));
        for (i, &r) in NUMBERS.iter().enumerate().filter(|(_, r)| **r != 2) {
            insns.push(insn(0x79, r, 2, i as i16 * 8, 0));
        }
        insns.push(insn(0x79, 2, 2, 16, 0));
    } else {
        insns.extend(NUMBERS.iter().enumerate().map(|(i, &r)| insn(0x79, r, 6, i as i16 * 8, 0)));
    }
    insns.extend((1..=stack / 8).map(|i| insn(0x7b, 10, NUMBERS[i as usize % 8], -8 * i, 0)));
    let first = maker.body(n);
    // The items of packets use r9.
    if looped && !packet {
        insns.push(insn(0xb7, 9, 0, 0, count));
        let len = first.len() as i16;
        insns.extend(first);
        insns.extend([insn(0x07, 9, 0, 0, -1), insn(0x55, 9, 0, -len - 2, 0)]);
    } else {
        insns.extend(first);
    }
    let mut call = None;
    if depth > 0 {
        call = Some(insns.len());
        insns.push(insn(0x85, 0, 1, 0, 0));
        insns.extend(maker.refill());
        let n = 2 + maker.rng.below(8);
        insns.extend(maker.body(n));
    }
    if packet {
        let kept = |i: usize| -stack - 8 - 8 * i as i16;
        insns.extend(NUMBERS.iter().enumerate().map(|(i, &r)| insn(0x7b, 10, r, kept(i), 0)));
        insns.extend(bounds(2, 3, 4));
        for i in 0..NUMBERS.len() {
            insns.extend([insn(0x79, 3, 10, kept(i), 0), insn(0x7b, 2, 3, i as i16 * 8, 0)]);
        }
    } else {
        insns.extend(NUMBERS.iter().enumerate().map(|(i, &r)| insn(0x7b, 6, r, i as i16 * 8, 0)));
    }
    insns.extend([insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)]);
    maker.regs = &CALLED;
    for level in 1..=depth {
        if let Some(at) = call.take() {
            insns[at].imm = (insns.len() - at - 1) as i32;
        }
        maker.last = 0;
        insns.push(insn(0xbf, 0, 1, 0, 0));
        insns.extend([6, 7, 9].map(|r| insn(0xb7, r, 0, 0, 5)));
        insns.extend((1..=stack / 8).map(|i| insn(0x7b, 10, (i % 6) as u8, -8 * i, 0)));
        let n = 2 + maker.rng.below(8);
        insns.extend(maker.body(n));
        if level < depth {
            call = Some(insns.len());
            insns.push(insn(0x85, 0, 1, 0, 0));
            insns.extend(maker.refill());
            let n = maker.rng.below(4);
            insns.extend(maker.body(n));
        }
        insns.push(insn(0x95, 0, 0, 0, 0));
    }
    insns
}

/// The packet's address in `data`, of which [`CTX`] bytes are there; else the program ends.
fn bounds(data: u8, end: u8, limit: u8) -> [Insn; 7] {
    [
        insn(0x61, data, 6, 76, 0),
        insn(0x61, end, 6, 80, 0),
        insn(0xbf, limit, data, 0, 0),
        insn(0x07, limit, 0, 0, CTX as i32),
        insn(0x3d, end, limit, 2, 0),
        insn(0xb7, 0, 0, 0, 0),
        insn(0x95, 0, 0, 0, 0),
    ]
}
