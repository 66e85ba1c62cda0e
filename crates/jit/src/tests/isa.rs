//! Every operation on edge values: `tests/data/isa.txt`.

use skep_ebpf::Insn;
use skep_ebpf::insn::LD_IMM64;
use skep_ebpf::uapi::ProgType;

use super::{Session, compile, compile_for, jit, kernel};
use crate::Options;

const TABLE: &str = include_str!("../../tests/data/isa.txt");

const STXDW: u8 = 0x7b;
const LDXDW: u8 = 0x79;
const MOV64X: u8 = 0xbf;
const MOV64K: u8 = 0xb7;
const JA: u8 = 0x05;
const EXIT: u8 = 0x95;

struct Row {
    kind: String,
    name: String,
    code: u8,
    off: i16,
    imm: i32,
}

struct Table {
    operands: Vec<u64>,
    immediates: Vec<i32>,
    rows: Vec<Row>,
}

fn number(text: &str) -> i64 {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |d| (-1, d));
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    sign * value.unwrap_or_else(|_| panic!("number {text}")) as i64
}

fn table() -> Table {
    let mut table = Table { operands: vec![], immediates: vec![], rows: vec![] };
    for line in TABLE.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["operands", ..] => table.operands = words[1..].iter().map(|w| number(w) as u64).collect(),
            ["immediates", ..] => table.immediates = words[1..].iter().map(|w| number(w) as i32).collect(),
            [kind, name, code, off, imm] => table.rows.push(Row {
                kind: kind.into(),
                name: name.into(),
                code: number(code) as u8,
                off: number(off) as i16,
                imm: number(imm) as i32,
            }),
            _ => panic!("line {line}"),
        }
    }
    table
}

fn imm64(dst: u8, value: u64) -> [Insn; 2] {
    [Insn::new(LD_IMM64, dst, 0, 0, value as i32), Insn::new(0, 0, 0, 0, (value >> 32) as i32)]
}

/// One use of a row's operation: instructions that leave results in r1, r2 and r0.
type Case = (String, Vec<Insn>);

/// Operands in r1 and r2, r0 zero.
fn with(a: u64, b: u64, body: &[Insn]) -> Vec<Insn> {
    let mut insns = vec![Insn::new(MOV64K, 0, 0, 0, 0)];
    insns.extend(imm64(1, a));
    insns.extend(imm64(2, b));
    insns.extend(body);
    insns
}

/// With `a` in memory at r10 - 8, and r1 loaded from there afterwards.
fn in_memory(a: u64, b: u64, r0: u64, body: &[Insn]) -> Vec<Insn> {
    let mut insns = with(a, b, &[Insn::new(STXDW, 10, 1, -8, 0)]);
    insns.extend(imm64(0, r0));
    insns.extend(body);
    insns.push(Insn::new(LDXDW, 1, 10, -8, 0));
    insns
}

/// Result 1 if the jump is taken, 2 if not; an operand in r3 makes a pair with the jump possible.
fn jump(a: u64, b: u64, insn: Insn) -> Vec<Insn> {
    let tail = [Insn::new(MOV64K, 1, 0, 0, 2), Insn::new(JA, 0, 0, 1, 0), Insn::new(MOV64K, 1, 0, 0, 1)];
    with(a, b, &[&[insn], &tail[..]].concat())
}

fn cases(table: &Table, row: &Row) -> Vec<Case> {
    let op = |dst, src, off, imm| Insn::new(row.code, dst, src, off, imm);
    let mut cases = Vec::new();
    let mut case = |what: String, insns| cases.push((what, insns));
    let width = if row.name.ends_with("64") { 64 } else { 32 };
    for &a in &table.operands {
        for &b in &table.operands {
            let what = format!("{} {a:#x}, {b:#x}", row.name);
            match row.kind.as_str() {
                "alu.x" => case(what, with(a, b, &[op(1, 2, row.off, 0)])),
                "jump.x" => case(what, jump(a, b, op(1, 2, 2, 0))),
                "store.x" => case(what, in_memory(a, b, 0, &[op(10, 2, -8, 0)])),
                "release" => case(what, in_memory(a, b, 0, &[op(10, 2, -8, row.imm)])),
                "atomic" => {
                    // The compared value of cmpxchg: equal in half of the cases.
                    for r0 in [a, a ^ 1] {
                        case(format!("{what}, r0 {r0:#x}"), in_memory(a, b, r0, &[op(10, 2, -8, row.imm)]));
                    }
                }
                _ => {}
            }
        }
        for &k in &table.immediates {
            let what = format!("{} {a:#x}, imm {k:#x}", row.name);
            match row.kind.as_str() {
                "alu.k" => case(what, with(a, 0, &[op(1, 0, row.off, k)])),
                "div.k" if k != 0 => case(what, with(a, 0, &[op(1, 0, row.off, k)])),
                "shift.k" if (0..width).contains(&k) => case(what, with(a, 0, &[op(1, 0, row.off, k)])),
                "jump.k" => case(what, jump(a, 0, op(1, 0, 2, k))),
                "store.k" => case(what, in_memory(a, 0, 0, &[op(10, 0, -8, k)])),
                _ => {}
            }
        }
        let what = format!("{} {a:#x}", row.name);
        match row.kind.as_str() {
            "unary" => case(what, with(a, 0, &[op(1, 0, row.off, row.imm)])),
            "load" => case(what, in_memory(a, 0, 0, &[op(2, 10, -8, 0)])),
            "acquire" => case(what, in_memory(a, 0, 0, &[op(2, 10, -8, row.imm)])),
            _ => {}
        }
    }
    assert!(!cases.is_empty(), "no cases for {}", row.name);
    cases
}

/// A program that runs all cases and stores r1, r2 and r0 of each to the context.
fn program(cases: &[Case]) -> Vec<Insn> {
    let mut insns = vec![Insn::new(MOV64X, 6, 1, 0, 0)];
    for (i, (_, body)) in cases.iter().enumerate() {
        insns.extend(body);
        for (j, reg) in [1, 2, 0].into_iter().enumerate() {
            insns.push(Insn::new(STXDW, 6, reg, (i * 24 + j * 8) as i16, 0));
        }
    }
    insns.extend([Insn::new(MOV64K, 0, 0, 0, 0), Insn::new(EXIT, 0, 0, 0, 0)]);
    insns
}

fn words(bytes: &[u8]) -> Vec<[u64; 3]> {
    let word = |c: &[u8]| u64::from_ne_bytes(c.try_into().unwrap());
    bytes.chunks_exact(24).map(|c| [word(&c[..8]), word(&c[8..16]), word(&c[16..])]).collect()
}

#[test]
fn every_operation_as_in_the_kernel() {
    let with_kernel = kernel::available();
    let table = table();
    let session = Session::new(0);
    let mut compared = 0;
    for row in &table.rows {
        let all = cases(&table, row);
        // A context is at most 32 KiB, by the range of offsets.
        for cases in all.chunks(1300) {
            let insns = program(cases);
            let compiled = compile(ProgType::Syscall, &insns).unwrap();
            let mut ours = vec![0u8; cases.len() * 24];
            let run = session.run(&compiled, &mut ours);
            assert_eq!((run.retval, run.over_budget), (0, false), "{}", row.name);
            for options in [jit(), Options { harden: true, ..jit() }] {
                let native = compile_for(ProgType::Syscall, &insns, &options).unwrap();
                let mut out = vec![0u8; cases.len() * 24];
                let run = session.run(&native, &mut out);
                assert_eq!((run.retval, run.over_budget), (0, false), "{}", row.name);
                for (((what, _), interp), native) in cases.iter().zip(words(&ours)).zip(words(&out)) {
                    assert_eq!(interp, native, "{} {what}: r1, r2, r0 by interpreter and machine code", row.kind);
                }
            }
            if !with_kernel {
                continue;
            }
            let theirs_program = kernel::Program::load(ProgType::Syscall, &insns);
            let theirs_program = theirs_program.unwrap_or_else(|e| panic!("{} {}: {e}", row.kind, row.name));
            let mut theirs = vec![0u8; cases.len() * 24];
            theirs_program.run_on(&mut theirs).unwrap();
            for (((what, _), ours), theirs) in cases.iter().zip(words(&ours)).zip(words(&theirs)) {
                assert_eq!(ours, theirs, "{} {what}: r1, r2, r0 here and in the kernel", row.kind);
                compared += 1;
            }
        }
    }
    println!("{} operations, {compared} cases compared with the kernel", table.rows.len());
}

/// Fused operations against the same instructions one by one: a jump into each pair makes both ways run.
#[test]
fn pairs_are_their_parts() {
    let add = |k| Insn::new(0x07, 1, 0, 0, k);
    let pairs: Vec<(&str, [Insn; 2])> = vec![
        ("mov add", [Insn::new(MOV64X, 1, 2, 0, 0), add(-7)]),
        ("lsh rsh", [Insn::new(0x67, 1, 0, 0, 32), Insn::new(0x77, 1, 0, 0, 32)]),
        ("lsh arsh", [Insn::new(0x67, 1, 0, 0, 56), Insn::new(0xc7, 1, 0, 0, 48)]),
        ("add jne k", [add(3), Insn::new(0x55, 1, 0, 2, 4)]),
        ("add jne x", [add(3), Insn::new(0x5d, 1, 2, 2, 0)]),
        ("add jlt x", [add(3), Insn::new(0xad, 1, 2, 2, 0)]),
        ("and jeq k", [Insn::new(0x57, 1, 0, 0, 6), Insn::new(0x15, 1, 0, 2, 2)]),
        ("and jne k", [Insn::new(0x57, 1, 0, 0, 6), Insn::new(0x55, 1, 0, 2, 2)]),
    ];
    let session = Session::new(0);
    let nop = Insn::new(MOV64X, 7, 7, 0, 0);
    let table = table();
    for (name, [first, second]) in pairs {
        for &a in &table.operands {
            for &b in &table.operands {
                let results = [false, true].map(|apart| {
                    let body = if apart { vec![first, nop, second] } else { vec![first, second] };
                    let mut insns = vec![Insn::new(MOV64X, 6, 1, 0, 0), Insn::new(MOV64K, 7, 0, 0, 0)];
                    insns.extend(with(a, b, &body));
                    insns.extend([
                        Insn::new(MOV64K, 0, 0, 0, 2),
                        Insn::new(JA, 0, 0, 1, 0),
                        Insn::new(MOV64K, 0, 0, 0, 1),
                        Insn::new(STXDW, 6, 1, 0, 0),
                        Insn::new(EXIT, 0, 0, 0, 0),
                    ]);
                    let mut ctx = [0u8; 8];
                    let run = session.run(&compile(ProgType::Syscall, &insns).unwrap(), &mut ctx);
                    (run.retval, u64::from_ne_bytes(ctx))
                });
                assert_eq!(results[0], results[1], "{name} {a:#x} {b:#x}");
            }
        }
    }
}
