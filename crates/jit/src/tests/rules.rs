//! Control flow, limits and refusals.

use skep_ebpf::Insn;
use skep_ebpf::uapi::ProgType;

use super::{Session, compile, kernel};
use crate::CompileError;

const MOV64K: u8 = 0xb7;
const MOV64X: u8 = 0xbf;
const ADD64K: u8 = 0x07;
const ADD64X: u8 = 0x0f;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

fn exit() -> Insn {
    insn(EXIT, 0, 0, 0, 0)
}

/// `depth` functions, each of which stores to its own stack, calls the next and adds what it finds there afterwards.
fn nested(depth: usize) -> Vec<Insn> {
    let mut insns = Vec::new();
    for level in 0..depth {
        insns.push(insn(MOV64K, 6, 0, 0, level as i32 + 1));
        insns.push(insn(0x7b, 10, 6, -8, 0));
        if level + 1 < depth {
            insns.push(insn(CALL, 0, 1, 0, 4));
        } else {
            insns.push(insn(MOV64K, 0, 0, 0, 0));
        }
        insns.push(insn(0x79, 7, 10, -8, 0));
        insns.push(insn(ADD64X, 0, 7, 0, 0));
        insns.push(insn(ADD64X, 0, 6, 0, 0));
        insns.push(exit());
    }
    insns
}

#[test]
fn calls_keep_frames_and_registers() {
    let session = Session::new(0);
    for depth in 1..=8 {
        let insns = nested(depth);
        let ours = session.run(&compile(ProgType::SocketFilter, &insns).unwrap(), &mut []).retval;
        assert_eq!(ours, (1..=depth as u64).sum::<u64>() * 2, "depth {depth}");
        if kernel::available() {
            let theirs = kernel::Program::load(ProgType::SocketFilter, &insns).unwrap();
            assert_eq!(u64::from(theirs.run_packet(&[0; 64]).unwrap()), ours, "depth {depth}");
        }
    }
    assert!(matches!(compile(ProgType::SocketFilter, &nested(9)), Err(CompileError::Calls { frames: 9, .. })));
}

#[test]
fn the_budget_ends_loops() {
    // r0 counts to one million.
    let insns = [insn(MOV64K, 0, 0, 0, 0), insn(ADD64K, 0, 0, 0, 1), insn(0x55, 0, 0, -2, 1_000_000), exit()];
    let program = compile(ProgType::SocketFilter, &insns).unwrap();
    let run = Session::new(0).run(&program, &mut []);
    assert_eq!((run.retval, run.over_budget), (1_000_000, false));
    let run = Session::new(1_000_001).run(&program, &mut []);
    assert_eq!((run.retval, run.over_budget), (1_000_000, false));
    let run = Session::new(1000).run(&program, &mut []);
    assert_eq!((run.retval, run.over_budget), (0, true));
    // Without an end, as dead code is: `goto -1`.
    let run =
        Session::new(1000).run(&compile(ProgType::SocketFilter, &[insn(0x05, 0, 0, -1, 0), exit()]).unwrap(), &mut []);
    assert!(run.over_budget);
}

#[test]
fn long_jumps() {
    // gotol over a gap that 16 bits do not reach, and back.
    let gap = 40_000;
    let mut insns = vec![insn(MOV64K, 0, 0, 0, 7), insn(0x06, 0, 0, 0, gap + 1), exit()];
    insns.extend(std::iter::repeat_n(insn(MOV64K, 0, 0, 0, 9), gap as usize));
    insns.push(insn(ADD64K, 0, 0, 0, 1));
    insns.push(insn(0x06, 0, 0, 0, -gap - 3));
    let run = Session::new(0).run(&compile(ProgType::SocketFilter, &insns).unwrap(), &mut []);
    assert_eq!(run.retval, 8);
}

#[test]
fn packet_loads() {
    let packet: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37).wrapping_add(1)).collect();
    // (opcode, immediate, index)
    let mut loads = Vec::new();
    for (abs, ind) in [(0x30u8, 0x50u8), (0x28, 0x48), (0x20, 0x40)] {
        for at in [
            0,
            1,
            13,
            46,
            47,
            48,
            49,
            50,
            63,
            64,
            65535,
            -1,
            -0x1000,
            -0x10_0000,
            -0x10_0000 + 49,
            -0x20_0000,
            -0x20_0000 + 61,
        ] {
            loads.push((abs, at, 0));
            loads.push((ind, at, 0));
            loads.push((ind, at - 3, 3));
        }
    }
    let with_kernel = kernel::available();
    for prog_type in [ProgType::SocketFilter, ProgType::SchedCls] {
        // Socket filters see the packet behind its Ethernet header.
        let data = if prog_type == ProgType::SocketFilter { &packet[14..] } else { &packet[..] };
        let mut ctx = vec![0u8; skep_runtime::packet::SKB_CTX_SIZE];
        let range = data.as_ptr_range();
        for (i, p) in [range.start, range.end, packet.as_ptr()].into_iter().enumerate() {
            ctx[192 + i * 8..200 + i * 8].copy_from_slice(&(p as u64).to_ne_bytes());
        }
        for &(code, at, index) in &loads {
            // r0 starts at 5, to see that a failed load returns 0.
            let insns = [
                insn(MOV64X, 6, 1, 0, 0),
                insn(MOV64K, 2, 0, 0, index),
                insn(MOV64K, 0, 0, 0, 5),
                insn(code, 0, if code & 0x40 != 0 { 2 } else { 0 }, 0, at),
                exit(),
            ];
            let ours = Session::new(0).run(&compile(prog_type, &insns).unwrap(), &mut ctx).retval;
            if with_kernel {
                let theirs = kernel::Program::load(prog_type, &insns).unwrap().run_packet(&packet).unwrap();
                assert_eq!(ours as u32, theirs, "{prog_type} opcode {code:#x} at {at} index {index}");
            }
        }
    }
}

#[test]
fn refusals_name_the_thing() {
    let helper = |id| compile(ProgType::Kprobe, &[insn(CALL, 0, 0, 0, id), exit()]).unwrap_err().to_string();
    assert_eq!(
        helper(35),
        "program test: helper bpf_get_current_task#35, called at instruction 0: \
         a traced process has no kernel task structure that could be looked at"
    );
    assert!(helper(36).contains("bpf_probe_write_user#36"));
    let kfunc = compile(ProgType::Kprobe, &[insn(CALL, 0, 2, 0, 77), exit()]).unwrap_err();
    assert_eq!(kfunc, CompileError::Kfunc { program: "test".into(), insn: 0, name: "BTF id 77".into() });
    let map = compile(ProgType::Kprobe, &[insn(0x18, 1, 5, 0, 0), insn(0, 0, 0, 0, 0), exit()]).unwrap_err();
    assert!(map.to_string().contains("a map that the program does not have"), "{map}");
}

#[test]
fn no_page_is_writable_and_executable() {
    let insns = [insn(MOV64K, 0, 0, 0, 7), exit()];
    let program = super::compile_for(ProgType::SocketFilter, &insns, &super::jit()).unwrap();
    let mut session = super::support::Session::new(&[]).unwrap();
    let prog = session.add(&program);
    assert_eq!(session.run(prog, &mut []).retval, 7);
    let own = program.image_ptr().unwrap() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut found = false;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (range, prot) = (words.next().unwrap(), words.next().unwrap());
        assert!(!(prot.contains('w') && prot.contains('x')), "{line}");
        let (start, end) = range.split_once('-').unwrap();
        let at = |x| usize::from_str_radix(x, 16).unwrap();
        found |= (at(start)..at(end)).contains(&own) && prot.starts_with("r-x");
    }
    assert!(found, "the code is somewhere else");
}
