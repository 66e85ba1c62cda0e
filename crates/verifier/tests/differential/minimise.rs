//! Makes a program smaller as long as it is still judged differently.

use skep_ebpf::disasm::Listing;
use skep_ebpf::insn::{Insn, JA, JA32};
use skep_ebpf::program::Program;

use crate::generator::Made;

/// True while the program shows what it was found for.
type Shows<'a> = dyn Fn(&Program, Option<&[u8]>) -> bool + 'a;

/// Takes instructions out, and makes constants small, until nothing more can go.
pub fn minimise(made: &Made, shows: &Shows<'_>) -> Made {
    let mut best = Made { program: made.program.clone(), btf: made.btf.clone() };
    loop {
        let before = best.program.insns.len();
        for width in [16, 8, 4, 2, 1] {
            let mut at = best.program.insns.len();
            while at > 0 {
                at -= 1;
                let Some(program) = without(&best.program, at, width) else { continue };
                if shows(&program, best.btf.as_deref()) {
                    best.program = program;
                }
            }
        }
        if best.program.insns.len() == before {
            return best;
        }
    }
}

/// The program without `width` instructions from `at` on; jumps over them become shorter.
fn without(program: &Program, at: usize, width: usize) -> Option<Program> {
    let gone = at..at.checked_add(width).filter(|end| *end < program.insns.len())?;
    let starts = |insn: u32| gone.contains(&(insn as usize));
    let splits = program.insns.get(gone.end).is_some_and(|i| i.code == 0);
    if splits || program.insns[gone.start].code == 0 || program.func_info.iter().any(|f| starts(f.insn)) {
        return None;
    }
    // Where an instruction is afterwards; those that are gone give way to the next one.
    let moved = |old: i64| match old {
        o if o < gone.start as i64 => o,
        o if o < gone.end as i64 => gone.start as i64,
        o => o - gone.len() as i64,
    };
    let mut insns = Vec::new();
    for (n, &i) in program.insns.iter().enumerate() {
        if gone.contains(&n) {
            continue;
        }
        let here = n as i64;
        let distance = |d: i64| moved(here + 1 + d) - moved(here) - 1;
        insns.push(retargeted(i, distance)?);
    }
    let mut out = program.clone();
    out.insns = insns;
    for f in &mut out.func_info {
        f.insn = moved(f.insn.into()) as u32;
    }
    Some(out)
}

fn retargeted(mut i: Insn, distance: impl Fn(i64) -> i64) -> Option<Insn> {
    use skep_ebpf::insn::{class, jmp, pseudo};
    let jumps = matches!(i.class(), class::JMP | class::JMP32) && !matches!(i.op(), jmp::CALL | jmp::EXIT);
    if i.code == JA32 || i.is_subprog_call() || i.is_ld_imm64() && i.src() == pseudo::FUNC {
        i.imm = i32::try_from(distance(i.imm.into())).ok()?;
    } else if jumps {
        i.off = i16::try_from(distance(i.off.into())).ok()?;
        if i.code == JA && i.off == -1 {
            return None;
        }
    }
    Some(i)
}

/// The program in assembly.
pub fn text(program: &Program) -> String {
    Listing { insns: &program.insns, names: &() }.to_string()
}
