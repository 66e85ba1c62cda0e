//! Random programs of everything that machine code does better than instruction by instruction, on both engines.
//!
//! A program is a list of items, each some instructions that belong together: jumps lead from item to item only, so that
//! an address is never used before it was made. `SKEP_JIT_PROGRAMS` says how many programs run on both engines, and
//! `SKEP_JIT_KERNEL` how many of them on the kernel as well.

use skep_ebpf::Insn;
use skep_ebpf::uapi::ProgType;

use super::{Session, compile_for, jit, kernel};
use crate::Options;

/// A small generator (xorshift), so that failures repeat.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 8) as usize % n
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn imm(&mut self) -> i32 {
        match self.below(5) {
            0 => self.below(8) as i32,
            1 => -(self.below(8) as i32),
            2 => 1 << self.below(31),
            3 => self.one(&[0xff, 0xffff, i32::MAX, i32::MIN, 127, 128, -128, -129]),
            _ => self.next() as i32,
        }
    }
}

/// Registers that hold numbers: r6 is the context, r9 counts loops.
const NUMBERS: [u8; 8] = [0, 1, 2, 3, 4, 5, 7, 8];
/// Registers of a function that is called.
const CALLED: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 9];
/// Bytes of stack that programs use.
const STACK: i16 = 128;
/// Bytes of the context: r0 to r5, r7 and r8.
const CTX: usize = 64;

const ALU: [u8; 7] = [0x00, 0x10, 0x20, 0x40, 0x50, 0xa0, 0xb0];
const JUMPS: [u8; 11] = [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0];

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

/// A jump that is to lead so many items on.
const JUMP: i32 = 0x7000_0000;

struct Maker<'a> {
    rng: &'a mut Rng,
    regs: &'static [u8],
    last: u8,
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
        -8 * (1 + self.rng.below(STACK as usize / 8) as i16)
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
        match self.rng.below(24) {
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
                let ((a, b), shift) = (self.two(), self.rng.below(4) as i32);
                let off = (self.rng.below(7) * 8) as i16;
                let mut item =
                    vec![insn(0xbf, b, src, 0, 0), insn(0x57, b, 0, 0, 56 >> shift), insn(0x67, b, 0, 0, shift)];
                if shift == 0 {
                    item.pop();
                }
                item.extend([insn(0xbf, a, 10, 0, 0), insn(0x07, a, 0, 0, -i32::from(STACK))]);
                item.push(insn(0x0f, a, b, 0, 0));
                let size = self.rng.one(&[0x00, 0x08, 0x10, 0x18]);
                match self.rng.below(5) {
                    0 => item.push(insn(0x62 | size, a, 0, off, self.rng.imm())),
                    1 => item.push(insn(0x63 | size, a, b, off, 0)),
                    2 => item.push(insn(0x61 | size, b, a, off, 0)),
                    3 => item.push(insn(if size == 0x18 { 0x79 } else { 0x81 | size }, b, a, off, 0)),
                    _ => {
                        // The address itself must not get into memory.
                        let other = self.rng.one(self.regs);
                        item.extend([
                            insn(0x61 | size, b, a, off, 0),
                            insn(self.rng.one(&ALU) | 8 | wide, b, if other == a { b } else { other }, 0, 0),
                            insn(0x63 | size, a, b, off, 0),
                        ]);
                    }
                }
                // The address may have got into a number by now: nobody may see it.
                item.extend([insn(0xb7, a, 0, 0, 77), insn(0xb4, b, 0, 0, -5)]);
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
                let op = self.rng.one(&[0x00, 0x40, 0x50, 0xa0, 0x01, 0x41, 0x51, 0xa1, 0xe1, 0xf1]);
                vec![insn(self.rng.one(&[0xdb, 0xc3]), 10, src, self.slot(), op)]
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
            _ => {
                let skip = 1 + self.rng.below(4) as i16;
                vec![Insn { imm: JUMP, ..self.cond(skip) }]
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
                    let to = starts[(k + 1 + i.off as usize).min(n)];
                    i.off = (to - out.len() - 1) as i16;
                    i.imm = if i.is_x() { 0 } else { self.rng.imm() };
                }
                out.push(i);
            }
        }
        out
    }
}

/// A program that loads its registers from the context and stores them there.
fn program(rng: &mut Rng) -> Vec<Insn> {
    let mut insns = vec![insn(0xbf, 6, 1, 0, 0)];
    for (i, &r) in NUMBERS.iter().enumerate() {
        insns.push(insn(0x79, r, 6, i as i16 * 8, 0));
    }
    insns.extend((1..=STACK / 8).map(|i| insn(0x7b, 10, NUMBERS[i as usize % 8], -8 * i, 0)));
    let n = 4 + rng.below(14);
    let looped = rng.below(3) == 0;
    let mut maker = Maker { rng, regs: &NUMBERS, last: 0 };
    let first = maker.body(n);
    let calls = maker.rng.below(3) == 0;
    let count = maker.rng.below(3) as i32 + 1;
    if looped {
        insns.push(insn(0xb7, 9, 0, 0, count));
        let len = first.len() as i16;
        insns.extend(first);
        insns.extend([insn(0x07, 9, 0, 0, -1), insn(0x55, 9, 0, -len - 2, 0)]);
    } else {
        insns.extend(first);
    }
    let call = insns.len();
    if calls {
        insns.push(insn(0x85, 0, 1, 0, 0));
        insns.extend((1..=5).map(|r| insn(0xb7, r, 0, 0, i32::from(r) * 1000)));
        let n = 2 + maker.rng.below(8);
        let more = maker.body(n);
        insns.extend(more);
    }
    for (i, &r) in NUMBERS.iter().enumerate() {
        insns.push(insn(0x7b, 6, r, i as i16 * 8, 0));
    }
    insns.extend([insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)]);
    if calls {
        insns[call].imm = (insns.len() - call - 1) as i32;
        insns.push(insn(0xbf, 0, 1, 0, 0));
        insns.extend([6, 7, 9].map(|r| insn(0xb7, r, 0, 0, 5)));
        insns.extend((1..=STACK / 8).map(|i| insn(0x7b, 10, (i % 6) as u8, -8 * i, 0)));
        maker.regs = &CALLED;
        maker.last = 0;
        let n = 2 + maker.rng.below(8);
        let body = maker.body(n);
        insns.extend(body);
        insns.push(insn(0x95, 0, 0, 0, 0));
    }
    insns
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_programs_end_alike_on_both_engines() {
    let (programs, mut asked) = (setting("SKEP_JIT_PROGRAMS", 20_000), setting("SKEP_JIT_KERNEL", 300));
    if asked > 0 && !kernel::available() {
        asked = 0;
    }
    let seed = setting("SKEP_JIT_SEED", 0x5eed) as u64 | 1;
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let session = Session::new(0);
    let (mut refused, mut compared) = (0, 0);
    for round in 0..programs {
        let insns = program(&mut rng);
        let interp = compile_for(ProgType::Syscall, &insns, &Options::default()).unwrap();
        let kind = Options { harden: round % 8 == 1, budget: round % 8 == 2, ..jit() };
        let native = compile_for(ProgType::Syscall, &insns, &kind).unwrap();
        // Linux 6.18 is not asked where an atomic operation reads the stack: its verifier loses track of what such a value
        // relies on, prunes a path that it should not, and takes out an instruction that is needed.
        let fetches = insns.iter().any(|i| matches!(i.code, 0xdb | 0xc3) && i.imm & 1 != 0);
        let theirs = (round < asked && !fetches).then(|| kernel::Program::load(ProgType::Syscall, &insns));
        for _ in 0..3 {
            let mut start = [0u8; CTX];
            for word in start.as_chunks_mut().0 {
                *word = match rng.below(4) {
                    0 => rng.below(16) as u64,
                    1 => u64::from(rng.next() as u32),
                    _ => rng.next(),
                }
                .to_ne_bytes();
            }
            let (mut a, mut b) = (start, start);
            session.run(&interp, &mut a);
            session.run(&native, &mut b);
            assert_eq!(a, b, "round {round}, seed {seed}, from {start:x?}: {insns:#?}");
            match &theirs {
                Some(Ok(theirs)) => {
                    let mut c = start;
                    theirs.run_on(&mut c).unwrap();
                    assert_eq!(a, c, "kernel, round {round}, seed {seed}, from {start:x?}: {insns:#?}");
                    compared += 1;
                }
                Some(Err(_)) => refused += 1,
                None => {}
            }
        }
    }
    println!("{programs} programs; of the kernel's {asked}, {compared} runs compared, {refused} refused");
    assert!(asked == 0 || compared > refused, "the kernel refuses most programs");
}
