//! Tiny programs around one helper each. They run as raw tracepoint programs: the context is up to twelve words.

use skep_ebpf::insn::{CALL, EXIT, Insn, LD_IMM64, alu, class, jmp, mode, pseudo, size};
use skep_ebpf::uapi::ProgType;

use super::KernelProg;

fn mov(dst: u8, src: u8) -> Insn {
    Insn::new(class::ALU64 | alu::MOV | 8, dst, src, 0, 0)
}

fn mov_imm(dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU64 | alu::MOV, dst, 0, 0, imm)
}

fn alu_imm(op: u8, dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU64 | op, dst, 0, 0, imm)
}

fn load(dst: u8, base: u8, off: i16) -> Insn {
    Insn::new(class::LDX | mode::MEM | size::DW, dst, base, off, 0)
}

fn store(base: u8, off: i16, src: u8) -> Insn {
    Insn::new(class::STX | mode::MEM | size::DW, base, src, off, 0)
}

fn map(dst: u8, fd: i32) -> [Insn; 2] {
    [Insn::new(LD_IMM64, dst, pseudo::MAP_FD, 0, fd), Insn::default()]
}

fn call(helper: i32) -> Insn {
    Insn::new(CALL, 0, 0, 0, helper)
}

fn program(parts: &[&[Insn]]) -> KernelProg {
    let mut insns = vec![mov(6, 1)];
    insns.extend(parts.iter().copied().flatten());
    insns.push(Insn::new(EXIT, 0, 0, 0, 0));
    KernelProg::load(ProgType::RawTracepoint as u32, &insns)
}

/// Puts context words 0 and 1 on the stack, at −8 (the key) and −16 (the value).
const KEY: i16 = -8;
const VALUE: i16 = -16;

fn key_and_value() -> [Insn; 4] {
    [load(1, 6, 0), store(10, KEY, 1), load(1, 6, 8), store(10, VALUE, 1)]
}

fn stack(dst: u8, off: i16) -> [Insn; 2] {
    [mov(dst, 10), alu_imm(alu::ADD, dst, off.into())]
}

/// `map_update_elem(key = ctx[0], value = ctx[1], flags = ctx[2])`.
pub fn update(fd: i32) -> KernelProg {
    program(&[&key_and_value(), &map(1, fd), &stack(2, KEY), &stack(3, VALUE), &[load(4, 6, 16), call(2)]])
}

/// `map_delete_elem(key = ctx[0])`.
pub fn delete(fd: i32) -> KernelProg {
    program(&[&key_and_value(), &map(1, fd), &stack(2, KEY), &[call(3)]])
}

/// If `r0` is null: −1; else the first word of what it points to, or 0 if `deref` is false.
fn value_or_minus_one(deref: bool) -> [Insn; 4] {
    let hit = if deref { load(0, 0, 0) } else { mov_imm(0, 0) };
    [Insn::new(class::JMP | jmp::JNE, 0, 0, 2, 0), mov_imm(0, -1), Insn::new(class::JMP | jmp::JA, 0, 0, 1, 0), hit]
}

/// The first word of `map_lookup_elem(key = ctx[0])`.
pub fn lookup(fd: i32) -> KernelProg {
    program(&[&key_and_value(), &map(1, fd), &stack(2, KEY), &[call(1)], &value_or_minus_one(true)])
}

/// The first word of `map_lookup_percpu_elem(key = ctx[0], cpu = ctx[1])`.
pub fn lookup_percpu(fd: i32) -> KernelProg {
    program(&[&key_and_value(), &map(1, fd), &stack(2, KEY), &[load(3, 6, 8), call(195)], &value_or_minus_one(true)])
}

/// Fills 64 bytes of stack with the word `ctx[2]`.
fn buffer() -> Vec<Insn> {
    let mut insns = vec![load(1, 6, 16)];
    insns.extend((1..=8).map(|i| store(10, -8 * i, 1)));
    insns
}

/// `ringbuf_output(64-byte buffer of ctx[2], size = ctx[0] & 63, flags = ctx[1])`.
pub fn ringbuf_output(fd: i32) -> KernelProg {
    let size = [load(3, 6, 0), alu_imm(alu::AND, 3, 63)];
    program(&[&buffer(), &map(1, fd), &stack(2, -64), &size, &[load(4, 6, 8), call(130)]])
}

/// `ringbuf_reserve(size)`, and submit or discard with flags 0: 0, or −1 if there was no room.
pub fn ringbuf_reserve(fd: i32, size: i32, discard: bool) -> KernelProg {
    let commit = [
        Insn::new(class::JMP | jmp::JNE, 0, 0, 2, 0),
        mov_imm(0, -1),
        Insn::new(class::JMP | jmp::JA, 0, 0, 4, 0),
        mov(1, 0),
        mov_imm(2, 0),
        call(if discard { 133 } else { 132 }),
        mov_imm(0, 0),
    ];
    program(&[&map(1, fd), &[mov_imm(2, size), mov_imm(3, 0), call(131)], &commit])
}

/// `ringbuf_query(ctx[0])`.
pub fn ringbuf_query(fd: i32) -> KernelProg {
    program(&[&map(1, fd), &[load(2, 6, 0), call(134)]])
}

/// `perf_event_output(flags = ctx[1], 64-byte buffer of ctx[2], size = ctx[0] & 63)`.
pub fn perf_output(fd: i32) -> KernelProg {
    let size = [load(5, 6, 0), alu_imm(alu::AND, 5, 63)];
    program(&[&buffer(), &[mov(1, 6)], &map(2, fd), &[load(3, 6, 8)], &stack(4, -64), &size, &[call(25)]])
}

/// `get_stackid(flags = ctx[0])`.
pub fn stackid(fd: i32) -> KernelProg {
    program(&[&[mov(1, 6)], &map(2, fd), &[load(3, 6, 0), call(27)]])
}

/// `map_push_elem(value = ctx[1], flags = ctx[2])`.
pub fn push(fd: i32) -> KernelProg {
    program(&[&key_and_value(), &map(1, fd), &stack(2, VALUE), &[load(3, 6, 16), call(87)]])
}

/// `map_pop_elem` (`take`) or `map_peek_elem` of the value `ctx[1]`: the result if `word` is 0, else the value.
pub fn get(fd: i32, take: bool, word: bool) -> KernelProg {
    let helper = if take { 88 } else { 89 };
    let value: &[Insn] = if word { &[load(0, 10, VALUE)] } else { &[] };
    program(&[&key_and_value(), &map(1, fd), &stack(2, VALUE), &[call(helper)], value])
}
