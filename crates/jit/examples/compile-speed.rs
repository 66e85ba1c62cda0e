//! Nanoseconds per instruction that machine code takes to make: `compile-speed [INSTRUCTIONS [ROUNDS [SHAPE]]]`; best and
//! median. Shapes: `straight` (the default), `jumps`, `loops`, `nested`, `calls`.

#[path = "../tests/support/straight.rs"]
mod straight;

use std::time::Instant;

use skep_ebpf::Insn;
use skep_ebpf::program::Program;
use skep_ebpf::uapi::ProgType;
use skep_jit::{Engine, Options, compile};
use skep_verifier::verify;

/// A program of another shape.
fn shaped(shape: &str, len: usize) -> Vec<Insn> {
    let insn = Insn::new;
    let mut insns: Vec<Insn> = (6..10u8).map(|r| insn(0xb7, r, 0, 0, 1)).collect();
    let exit = [insn(0xb7, 0, 0, 0, 0), insn(0x95, 0, 0, 0, 0)];
    match shape {
        // Forward, about as far as short jumps reach.
        "jumps" => {
            insns.push(insn(0x85, 0, 0, 0, 7));
            while insns.len() + 64 < len {
                let far = 20 + (insns.len() * 7 % 23) as i16;
                insns.extend([insn(0xa5, 0, 0, far, 500), insn(0x07, 0, 0, 0, 3), insn(0x67, 0, 0, 0, 1)]);
            }
            insns.extend((0..64).map(|_| insn(0x07, 0, 0, 0, 1)));
        }
        "loops" => {
            while insns.len() < len {
                insns.extend([insn(0xb7, 6, 0, 0, 0), insn(0x0f, 7, 6, 0, 0), insn(0x07, 6, 0, 0, 1)]);
                insns.push(insn(0xa5, 6, 0, -3, 2));
            }
        }
        // One in the other, seven deep, one such nest behind the other.
        "nested" => {
            while insns.len() < len {
                let mut heads = Vec::new();
                for _ in 0..4 {
                    for r in 6..9u8 {
                        insns.push(insn(0xb7, r, 0, 0, 0));
                        heads.push((r, insns.len()));
                        insns.push(insn(0x07, r, 0, 0, 1));
                    }
                    while let Some((r, head)) = heads.pop() {
                        insns.push(insn(0xa5, r, 0, (head as i64 - insns.len() as i64 - 1) as i16, 2));
                    }
                }
            }
        }
        _ => {
            while insns.len() < len {
                insns.push(insn(0x85, 0, 1, 0, (len as i64 + 1 - insns.len() as i64) as i32));
            }
            insns.extend(exit);
        }
    }
    insns.extend(exit);
    insns
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arg = |n: usize, default: usize| std::env::args().nth(n).map_or(Ok(default), |a| a.parse());
    let (len, rounds) = (arg(1, 50_000)?, arg(2, 50)?);
    let insns = match std::env::args().nth(3).as_deref() {
        None | Some("straight") => straight::straight(len, 0x1234_5678_9abc_def1),
        Some(shape) => shaped(shape, len),
    };
    let verified = verify(Program::new("big", ProgType::SchedCls, "GPL", insns), &Default::default())?;
    let start = Instant::now();
    let n = verified.rewritten().insns().len() as f64;
    println!("{n} instructions; rewritten in {:.1} ns each", start.elapsed().as_nanos() as f64 / n);
    let options = Options { engine: Engine::Jit, ..Options::default() };
    let (mut figures, mut size) = (Vec::new(), 0);
    for _ in 0..rounds {
        let start = Instant::now();
        let compiled = compile(&verified, &options)?;
        figures.push(start.elapsed().as_nanos() as f64 / n);
        size = compiled.machine_code().map_or(0, <[u8]>::len);
    }
    figures.sort_by(f64::total_cmp);
    println!("best {:.1}, median {:.1} ns each; {:.2} bytes", figures[0], figures[rounds / 2], size as f64 / n);
    Ok(())
}
