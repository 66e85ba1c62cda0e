//! The encoder against another's decoder.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::super::asm::{Alu, Asm, Cc, Mem, Shift, Size, Unary};
use super::super::regs::{RAX, RSP, Reg};

const ALL: [Reg; 16] = {
    let mut all = [RAX; 16];
    let mut n = 0;
    while n < 16 {
        all[n] = Reg(n as u8);
        n += 1;
    }
    all
};

/// Operands: a register of that many bytes, memory, or a number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operand {
    Reg(Reg, usize),
    Mem(Mem),
    Imm(i64),
}

use Operand::{Imm, Mem as M, Reg as R};

fn register(r: Reg, bytes: usize) -> Register {
    let full = Register::RAX + u32::from(r.0);
    match bytes {
        8 => full,
        4 => Register::EAX + u32::from(r.0),
        2 => Register::AX + u32::from(r.0),
        // Without a REX prefix these would be ah to bh.
        _ => [
            Register::AL,
            Register::CL,
            Register::DL,
            Register::BL,
            Register::SPL,
            Register::BPL,
            Register::SIL,
            Register::DIL,
            Register::R8L,
            Register::R9L,
            Register::R10L,
            Register::R11L,
            Register::R12L,
            Register::R13L,
            Register::R14L,
            Register::R15L,
        ][usize::from(r.0)],
    }
}

/// The one instruction that `emit` makes.
fn decoded(emit: impl FnOnce(&mut Asm)) -> Instruction {
    let mut asm = Asm::default();
    emit(&mut asm);
    let mut decoder = Decoder::new(64, &asm.bytes, DecoderOptions::NONE);
    let insn = decoder.decode();
    assert!(!insn.is_invalid(), "{:x?}", asm.bytes);
    assert_eq!(insn.len(), asm.bytes.len(), "{:x?} is {insn:?}", asm.bytes);
    insn
}

fn check(emit: impl FnOnce(&mut Asm), mnemonic: Mnemonic, operands: &[Operand]) {
    let insn = decoded(emit);
    assert_eq!(insn.mnemonic(), mnemonic);
    assert_eq!(insn.op_count() as usize, operands.len(), "{mnemonic:?} {operands:?}");
    for (n, &operand) in operands.iter().enumerate() {
        let n = n as u32;
        match operand {
            R(r, bytes) => {
                assert_eq!(insn.op_kind(n), OpKind::Register, "{mnemonic:?} {operands:?}");
                assert_eq!(insn.op_register(n), register(r, bytes), "{mnemonic:?} {operands:?}");
            }
            Imm(value) => assert_eq!(insn.immediate(n) as i32, value as i32, "{mnemonic:?} {operands:?}"),
            M(m) => {
                assert_eq!(insn.op_kind(n), OpKind::Memory, "{mnemonic:?} {operands:?}");
                // 2 × index without base is index + index.
                let m = match m {
                    Mem { base: None, index: Some((i, 1)), disp } => Mem { base: Some(i), index: Some((i, 0)), disp },
                    Mem { base: None, index: Some((i, 0)), disp } => Mem { base: Some(i), index: None, disp },
                    m => m,
                };
                let base = m.base.map_or(Register::None, |b| register(b, 8));
                let index = m.index.map_or(Register::None, |(i, _)| register(i, 8));
                let scale = m.index.map_or(1, |(_, k)| 1 << k);
                let found = (insn.memory_base(), insn.memory_index(), insn.memory_index_scale());
                assert_eq!(found, (base, index, scale), "{mnemonic:?} {operands:?}");
                assert_eq!(insn.memory_displacement64() as i64 as i32, m.disp, "{mnemonic:?} {operands:?}");
            }
        }
    }
}

/// Memory operands of all shapes.
fn places() -> Vec<Mem> {
    let mut all = Vec::new();
    for disp in [0, 1, -1, 127, -128, 128, -129, i32::MAX, i32::MIN] {
        for base in ALL {
            all.push(Mem::at(base, disp));
            for index in ALL.into_iter().filter(|&i| i != RSP) {
                for scale in 0..4 {
                    all.push(Mem { base: Some(base), index: Some((index, scale)), disp });
                }
            }
        }
        for index in ALL.into_iter().filter(|&i| i != RSP) {
            for scale in 0..4 {
                all.push(Mem { base: None, index: Some((index, scale)), disp });
            }
        }
    }
    all
}

/// Fewer of them, with every register in every role.
fn some_places() -> Vec<Mem> {
    places().into_iter().filter(|m| matches!(m.disp, 0 | -128 | 128)).step_by(7).collect()
}

const NUMBERS: [i32; 9] = [0, 1, -1, 127, -128, 128, -129, i32::MAX, i32::MIN];
const ALUS: [(Alu, Mnemonic); 6] = [
    (Alu::Add, Mnemonic::Add),
    (Alu::Or, Mnemonic::Or),
    (Alu::And, Mnemonic::And),
    (Alu::Sub, Mnemonic::Sub),
    (Alu::Xor, Mnemonic::Xor),
    (Alu::Cmp, Mnemonic::Cmp),
];
const SHIFTS: [(Shift, Mnemonic); 5] = [
    (Shift::Rol, Mnemonic::Rol),
    (Shift::Ror, Mnemonic::Ror),
    (Shift::Shl, Mnemonic::Shl),
    (Shift::Shr, Mnemonic::Shr),
    (Shift::Sar, Mnemonic::Sar),
];
const SIZES: [(Size, usize); 4] = [(Size::B, 1), (Size::H, 2), (Size::W, 4), (Size::Dw, 8)];

fn widths() -> [(bool, usize); 2] {
    [(false, 4), (true, 8)]
}

fn cut(imm: i32, bytes: usize) -> i64 {
    match bytes {
        1 => i64::from(imm as u8),
        2 => i64::from(imm as u16),
        4 => i64::from(imm as u32),
        _ => i64::from(imm),
    }
}

/// What the decoder says of a number that an operand of so many bytes is extended to.
fn extended(imm: i32, bytes: usize) -> i64 {
    match bytes {
        1 => i64::from(imm as u8),
        2 => i64::from(imm as i16),
        _ => i64::from(imm),
    }
}

#[test]
fn registers() {
    for (wide, n) in widths() {
        for a in ALL {
            for b in ALL {
                for (op, name) in ALUS {
                    check(|x| x.alu_rr(op, wide, a, b), name, &[R(a, n), R(b, n)]);
                }
                check(|x| x.test_rr(wide, a, b), Mnemonic::Test, &[R(a, n), R(b, n)]);
                check(|x| x.mov_rr(wide, a, b), Mnemonic::Mov, &[R(a, n), R(b, n)]);
                check(|x| x.imul_rr(wide, a, b), Mnemonic::Imul, &[R(a, n), R(b, n)]);
                check(|x| x.movsx(Size::B, wide, a, b), Mnemonic::Movsx, &[R(a, n), R(b, 1)]);
                check(|x| x.movsx(Size::H, wide, a, b), Mnemonic::Movsx, &[R(a, n), R(b, 2)]);
                for cc in CONDITIONS {
                    let insn = decoded(|x| x.cmov(cc, wide, a, b));
                    assert_eq!((insn.op0_register(), insn.op1_register()), (register(a, n), register(b, n)));
                    assert_eq!(insn.condition_code(), decoded_condition(cc));
                }
                for k in NUMBERS {
                    check(|x| x.imul_rri(wide, a, b, k), Mnemonic::Imul, &[R(a, n), R(b, n), Imm(cut(k, n))]);
                }
                check(|x| x.rorx(wide, a, b, 7), Mnemonic::Rorx, &[R(a, n), R(b, n), Imm(7)]);
                for c in ALL {
                    let operands = [R(a, n), R(b, n), R(c, n)];
                    check(|x| x.shift_x(Shift::Shl, wide, a, b, c), Mnemonic::Shlx, &operands);
                    check(|x| x.shift_x(Shift::Shr, wide, a, b, c), Mnemonic::Shrx, &operands);
                    check(|x| x.shift_x(Shift::Sar, wide, a, b, c), Mnemonic::Sarx, &operands);
                }
            }
            for (op, name) in SHIFTS {
                check(|x| x.shift_ri(op, wide, a, 1), name, &[R(a, n), Imm(1)]);
                check(|x| x.shift_ri(op, wide, a, 31), name, &[R(a, n), Imm(31)]);
                let insn = decoded(|x| x.shift_cl(op, wide, a));
                assert_eq!((insn.mnemonic(), insn.op0_register()), (name, register(a, n)));
                assert_eq!(insn.op1_register(), Register::CL);
            }
            check(|x| x.unary(Unary::Neg, wide, a), Mnemonic::Neg, &[R(a, n)]);
            check(|x| x.unary(Unary::Div, wide, a), Mnemonic::Div, &[R(a, n)]);
            check(|x| x.unary(Unary::Idiv, wide, a), Mnemonic::Idiv, &[R(a, n)]);
            check(|x| x.bswap(wide, a), Mnemonic::Bswap, &[R(a, n)]);
            for k in NUMBERS {
                for (op, name) in ALUS {
                    check(|x| x.alu_ri(op, wide, a, k), name, &[R(a, n), Imm(cut(k, n))]);
                }
                // The shortest form that finds the same zeros.
                let insn = decoded(|x| x.test_ri(wide, a, k));
                let bytes = if (0..128).contains(&k) {
                    1
                } else if wide && k < 0 {
                    8
                } else {
                    4
                };
                assert_eq!((insn.mnemonic(), insn.op0_register()), (Mnemonic::Test, register(a, bytes)));
                assert_eq!(insn.immediate(1) as i64, cut(k, bytes));
            }
        }
        let name = if wide { Mnemonic::Cqo } else { Mnemonic::Cdq };
        check(|x| x.sign_to_rdx(wide), name, &[]);
    }
    for a in ALL {
        for b in ALL {
            check(|x| x.movzx(Size::B, a, b), Mnemonic::Movzx, &[R(a, 4), R(b, 1)]);
            check(|x| x.movzx(Size::H, a, b), Mnemonic::Movzx, &[R(a, 4), R(b, 2)]);
            check(|x| x.movsx(Size::W, true, a, b), Mnemonic::Movsxd, &[R(a, 8), R(b, 4)]);
        }
        for value in [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX, 1 << 63, (-129i64) as u64] {
            let insn = decoded(|x| x.mov_ri(a, value));
            let bytes = if value <= u64::from(u32::MAX) { 4 } else { 8 };
            assert_eq!((insn.mnemonic(), insn.op0_register()), (Mnemonic::Mov, register(a, bytes)));
            assert_eq!(insn.immediate(1), value);
        }
        check(|x| x.zero(a), Mnemonic::Xor, &[R(a, 4), R(a, 4)]);
        check(|x| x.swap16(a), Mnemonic::Rol, &[R(a, 2), Imm(8)]);
        check(|x| x.push(a), Mnemonic::Push, &[R(a, 8)]);
        check(|x| x.pop(a), Mnemonic::Pop, &[R(a, 8)]);
        check(|x| x.call_reg(a), Mnemonic::Call, &[R(a, 8)]);
        check(|x| x.jmp_reg(a), Mnemonic::Jmp, &[R(a, 8)]);
    }
    check(Asm::ret, Mnemonic::Ret, &[]);
}

const CONDITIONS: [Cc; 12] = [Cc::B, Cc::Ae, Cc::E, Cc::Ne, Cc::Be, Cc::A, Cc::S, Cc::Ns, Cc::L, Cc::Ge, Cc::Le, Cc::G];

fn decoded_condition(cc: Cc) -> iced_x86::ConditionCode {
    use iced_x86::ConditionCode as C;
    match cc {
        Cc::B => C::b,
        Cc::Ae => C::ae,
        Cc::E => C::e,
        Cc::Ne => C::ne,
        Cc::Be => C::be,
        Cc::A => C::a,
        Cc::S => C::s,
        Cc::Ns => C::ns,
        Cc::L => C::l,
        Cc::Ge => C::ge,
        Cc::Le => C::le,
        Cc::G => C::g,
    }
}

#[test]
fn memory() {
    for m in places() {
        check(|x| x.lea(true, RAX, m), Mnemonic::Lea, &[R(RAX, 8), M(m)]);
        check(|x| x.store(Size::B, m, Reg(6)), Mnemonic::Mov, &[M(m), R(Reg(6), 1)]);
        check(|x| x.load(Size::Dw, Reg(9), m), Mnemonic::Mov, &[R(Reg(9), 8), M(m)]);
    }
    for m in some_places() {
        for r in ALL {
            check(|x| x.load(Size::B, r, m), Mnemonic::Movzx, &[R(r, 4), M(m)]);
            check(|x| x.load(Size::H, r, m), Mnemonic::Movzx, &[R(r, 4), M(m)]);
            check(|x| x.load(Size::W, r, m), Mnemonic::Mov, &[R(r, 4), M(m)]);
            check(|x| x.load(Size::Dw, r, m), Mnemonic::Mov, &[R(r, 8), M(m)]);
            check(|x| x.load_signed(Size::B, r, m), Mnemonic::Movsx, &[R(r, 8), M(m)]);
            check(|x| x.load_signed(Size::H, r, m), Mnemonic::Movsx, &[R(r, 8), M(m)]);
            check(|x| x.load_signed(Size::W, r, m), Mnemonic::Movsxd, &[R(r, 8), M(m)]);
            for (wide, n) in widths() {
                check(|x| x.lea(wide, r, m), Mnemonic::Lea, &[R(r, n), M(m)]);
                check(|x| x.load_swapped(wide, r, m), Mnemonic::Movbe, &[R(r, n), M(m)]);
                check(|x| x.xchg(wide, m, r), Mnemonic::Xchg, &[M(m), R(r, n)]);
                check(|x| x.lock_cmpxchg(wide, m, r), Mnemonic::Cmpxchg, &[M(m), R(r, n)]);
                check(|x| x.lock_xadd(wide, m, r), Mnemonic::Xadd, &[M(m), R(r, n)]);
                assert!(decoded(|x| x.lock_xadd(wide, m, r)).has_lock_prefix());
                assert!(decoded(|x| x.lock_cmpxchg(wide, m, r)).has_lock_prefix());
                for (op, name) in ALUS {
                    check(|x| x.alu_rm(op, wide, r, m), name, &[R(r, n), M(m)]);
                }
            }
            for (size, n) in SIZES {
                check(|x| x.store(size, m, r), Mnemonic::Mov, &[M(m), R(r, n)]);
                for (op, name) in ALUS {
                    check(|x| x.alu_mr(op, false, size, m, r), name, &[M(m), R(r, n)]);
                }
                assert!(decoded(|x| x.alu_mr(Alu::Add, true, size, m, r)).has_lock_prefix());
            }
        }
        for (size, n) in SIZES {
            for k in NUMBERS {
                let insn = decoded(|x| x.store_imm(size, m, k));
                assert_eq!((insn.mnemonic(), insn.memory_size().size()), (Mnemonic::Mov, n));
                assert_eq!(insn.immediate(1) as i64, cut(k, n));
                for (op, name) in ALUS {
                    let insn = decoded(|x| x.alu_mi(op, size, m, k));
                    assert_eq!((insn.mnemonic(), insn.memory_size().size()), (name, n));
                    assert_eq!(insn.immediate(1) as i64 & mask(n), extended(k, n) & mask(n), "{name:?} {m:?} {k}");
                }
            }
        }
        let insn = decoded(|x| x.dec_mem(m));
        assert_eq!((insn.mnemonic(), insn.memory_size().size()), (Mnemonic::Dec, 8));
    }
}

fn mask(bytes: usize) -> i64 {
    if bytes == 8 { -1 } else { (1 << (bytes * 8)) - 1 }
}

#[test]
fn nothing() {
    for n in 0..40 {
        let mut asm = Asm::default();
        asm.nops(n);
        assert_eq!(asm.bytes.len(), n);
        let mut decoder = Decoder::new(64, &asm.bytes, DecoderOptions::NONE);
        while decoder.can_decode() {
            assert_eq!(decoder.decode().mnemonic(), Mnemonic::Nop);
        }
    }
}

/// Jumps of all lengths, over alignments, lead where they should.
#[test]
fn jumps() {
    use super::super::layout::{Label, Layout};
    for gap in [0usize, 1, 2, 100, 124, 125, 126, 127, 128, 129, 130, 140, 300, 70_000] {
        let mut code = Layout::new(4);
        code.bind(Label(0));
        code.jmp(Label(2));
        code.jcc(Cc::E, Label(3));
        code.align(16);
        code.bind(Label(1));
        code.asm.nops(gap);
        code.jcc(Cc::Ne, Label(0));
        code.bind(Label(2));
        code.jmp(Label(1));
        code.align(32);
        code.bind(Label(3));
        code.call(Label(1));
        code.asm.ret();
        let placed = code.finish();
        let at = |n| u64::from(placed.offset(Label(n)).unwrap());
        assert_eq!((at(1) % 16, at(3) % 32), (0, 0));
        let mut targets = Vec::new();
        let mut decoder = Decoder::new(64, &placed.code, DecoderOptions::NONE);
        while decoder.can_decode() {
            let insn = decoder.decode();
            assert!(!insn.is_invalid());
            if insn.mnemonic() != Mnemonic::Nop && insn.mnemonic() != Mnemonic::Ret {
                targets.push((insn.mnemonic(), insn.near_branch_target()));
            }
        }
        let expected = [
            (Mnemonic::Jmp, at(2)),
            (Mnemonic::Je, at(3)),
            (Mnemonic::Jne, at(0)),
            (Mnemonic::Jmp, at(1)),
            (Mnemonic::Call, at(1)),
        ];
        assert_eq!(targets, expected, "gap {gap}");
        // Near jumps are short.
        if gap < 90 {
            assert!(placed.code.len() < 16 + gap + 2 + 2 + 32 + 6, "gap {gap}: {} bytes", placed.code.len());
        }
    }
}
