//! Random programs: what single operations do not show, such as jumps into the middle of fused pairs.

use skep_ebpf::Insn;
use skep_ebpf::uapi::ProgType;

use super::rng::Rng;
use super::{Session, compile, compile_for, jit, kernel};
use crate::Options;

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

/// A program over r0 to r5 and two stack slots that stores its registers to the context. All jumps go forward.
fn program(rng: &mut Rng, len: usize) -> Vec<Insn> {
    const ALU: [u8; 9] = [0x00, 0x10, 0x20, 0x40, 0x50, 0xa0, 0xb0, 0x30, 0x90];
    const SHIFTS: [u8; 3] = [0x60, 0x70, 0xc0];
    const JUMPS: [u8; 11] = [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0];
    let mut insns = vec![insn(0xbf, 6, 1, 0, 0)];
    for r in 0..6 {
        insns.push(insn(0x79, r, 6, i16::from(r) * 8, 0));
    }
    insns.extend([insn(0x7b, 10, 0, -8, 0), insn(0x7b, 10, 1, -16, 0)]);
    for left in (0..len).rev() {
        let (dst, src, imm) = (rng.below(6) as u8, rng.below(6) as u8, rng.imm());
        // Often the register of the instruction before: that is what pairs are made of.
        let dst = if rng.below(2) == 0 { insns.last().map_or(dst, |i| i.dst().min(5)) } else { dst };
        let skip = rng.below(left.min(6) + 1) as i16;
        let wide = if rng.below(2) == 0 { 7 } else { 4 };
        insns.push(match rng.below(12) {
            0..3 => insn(ALU[rng.below(7)] | 8 | wide, dst, src, 0, 0),
            3..6 => insn(ALU[rng.below(7)] | wide, dst, 0, 0, imm),
            6 => insn(ALU[7 + rng.below(2)] | wide, dst, 0, 0, if imm == 0 { 3 } else { imm }),
            7 | 8 => insn(SHIFTS[rng.below(3)] | wide, dst, 0, 0, rng.below(if wide == 7 { 64 } else { 32 }) as i32),
            9 => insn(JUMPS[rng.below(11)] | if wide == 7 { 5 } else { 6 }, dst, 0, skip, imm),
            10 => insn(JUMPS[rng.below(11)] | 8 | if wide == 7 { 5 } else { 6 }, dst, src, skip, 0),
            _ if rng.below(2) == 0 => insn(0x7b, 10, src, -8 - 8 * (rng.below(2) as i16), 0),
            _ => insn(0x79, dst, 10, -8 - 8 * (rng.below(2) as i16), 0),
        });
    }
    for r in 0..6 {
        insns.push(insn(0x7b, 6, r, i16::from(r) * 8, 0));
    }
    insns.extend([insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)]);
    insns
}

#[test]
fn random_programs_end_as_in_the_kernel() {
    if !kernel::available() {
        return;
    }
    let session = Session::new(0);
    let mut rng = Rng::new(1);
    for round in 0..400 {
        let len = 10 + rng.below(60);
        let insns = program(&mut rng, len);
        let compiled = compile(ProgType::Syscall, &insns).unwrap();
        let natives = [jit(), Options { harden: true, ..jit() }]
            .map(|options| compile_for(ProgType::Syscall, &insns, &options).unwrap());
        let theirs = kernel::Program::load(ProgType::Syscall, &insns).unwrap_or_else(|e| panic!("round {round}: {e}"));
        for _ in 0..8 {
            let mut start = [0u8; 48];
            for word in start.chunks_exact_mut(8) {
                let value = rng.word();
                word.copy_from_slice(&value.to_ne_bytes());
            }
            let (mut a, mut b) = (start, start);
            session.run(&compiled, &mut a);
            for native in &natives {
                let mut c = start;
                session.run(native, &mut c);
                assert_eq!(a, c, "round {round}, from {start:x?}: {insns:#?}");
            }
            theirs.run_on(&mut b).unwrap();
            assert_eq!(a, b, "round {round}, from {start:x?}: {insns:#?}");
        }
    }
}
