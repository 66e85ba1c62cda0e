//! Long programs.

use skep_ebpf::Insn;

/// A valid straight program of about `len` instructions: arithmetic, shifts, stack loads and stores, some branches.
pub fn straight(len: usize, seed: u64) -> Vec<Insn> {
    let mut x = seed;
    let mut below = |n: u64| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) % n
    };
    const ALU: [u8; 7] = [0x00, 0x10, 0x40, 0x50, 0xa0, 0xb0, 0x20];
    let insn = Insn::new;
    let mut insns: Vec<Insn> = (0..10u8).map(|r| insn(0xb7, r, 0, 0, i32::from(r) * 77 + 1)).collect();
    insns.extend((1..=8).map(|i| insn(0x7b, 10, i as u8, -8 * i, 0)));
    while insns.len() < len {
        let (dst, src) = (below(10) as u8, below(10) as u8);
        let wide = if below(2) == 0 { 7 } else { 4 };
        let left = (len - insns.len()) as u64;
        insns.push(match below(100) {
            0..2 => insn(0xa5, dst, 0, below(left.min(8)) as i16, below(1 << 30) as i32),
            2..12 => insn(0x79, dst, 10, -8 * (1 + below(8) as i16), 0),
            12..22 => insn(0x7b, 10, src, -8 * (1 + below(8) as i16), 0),
            22..32 => insn([0x60, 0x70, 0xc0][below(3) as usize] | wide, dst, 0, 0, below(31) as i32 + 1),
            32..66 => insn(ALU[below(7) as usize] | wide, dst, 0, 0, below(1 << 16) as i32 - (1 << 15)),
            _ => insn(ALU[below(7) as usize] | 8 | wide, dst, src, 0, 0),
        });
    }
    insns.push(insn(0x95, 0, 0, 0, 0));
    insns
}
