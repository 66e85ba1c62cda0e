//! Helpers here and in the running kernel: the same programs, results and memory.
//!
//! Raw tracepoint programs can be run by the kernel in the process that asks, so that "user memory" is this process's
//! in both worlds. Where the kernel does not let the user load programs, ours run alone.

#[path = "support/kernel.rs"]
mod kernel;
mod support;

use std::cell::Cell;

use skep_ebpf::Insn;
use skep_ebpf::insn::{LD_IMM64, call, pseudo};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, map_flags};
use skep_jit::Engine;
use support::Session;

/// Bytes of the value that programs write results to.
const OUT: usize = 256;
/// What stands there before a run.
const FILL: u8 = 0xaa;

thread_local! {
    static ENGINE: Cell<Engine> = const { Cell::new(Engine::Interpreter) };
}

/// Options for the engine that is tested.
fn options() -> skep_jit::Options {
    skep_jit::Options { engine: ENGINE.get(), budget: true, ..skep_jit::Options::default() }
}

/// Each test runs on each engine.
macro_rules! on_each_engine {
    ($($test:ident)*) => {
        $(mod $test {
            use super::{ENGINE, Engine};

            #[test]
            fn interpreter() {
                ENGINE.set(Engine::Interpreter);
                super::$test();
            }

            #[test]
            fn machine_code() {
                ENGINE.set(Engine::Jit);
                super::$test();
            }
        })*
    };
}

on_each_engine! { reads identity formats rings_and_perf_arrays tail_calls a_run_over_its_budget_keeps_no_record }

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn::new(code, dst, src, off, imm)
}

fn mov(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}

fn imm(dst: u8, imm: i32) -> Insn {
    insn(0xb7, dst, 0, 0, imm)
}

fn imm64(dst: u8, v: u64) -> [Insn; 2] {
    [insn(LD_IMM64, dst, 0, 0, v as i32), insn(0, 0, 0, 0, (v >> 32) as i32)]
}

fn map(dst: u8, index: i32) -> [Insn; 2] {
    [insn(LD_IMM64, dst, pseudo::MAP_IDX, 0, index), insn(0, 0, 0, 0, 0)]
}

/// The address of byte `off` of map 0's value.
fn value(dst: u8, off: i32) -> [Insn; 2] {
    [insn(LD_IMM64, dst, pseudo::MAP_IDX_VALUE, 0, 0), insn(0, 0, 0, 0, off)]
}

fn helper(id: i32) -> Insn {
    insn(0x85, 0, call::HELPER, 0, id)
}

/// `body` with r6 = context; what it leaves in r0 is stored as 64 bits at the end of map 0's value.
fn program(body: &[Insn]) -> Vec<Insn> {
    let mut insns = vec![mov(6, 1)];
    insns.extend(body);
    insns.extend(value(1, OUT as i32 - 8));
    insns.extend([insn(0x7b, 1, 0, 0, 0), imm(0, 0), insn(0x95, 0, 0, 0, 0)]);
    insns
}

fn out_map() -> MapDef {
    MapDef { flags: map_flags::MMAPABLE, ..MapDef::new("out", MapType::Array, 4, OUT as u32, 1) }
}

struct Pair {
    defs: Vec<MapDef>,
    session: Session,
    /// The kernel's maps; none if it is not to be asked.
    theirs: Option<Vec<kernel::Map>>,
}

/// What a program left: the bytes of map 0, the last eight of them r0.
fn r0(bytes: &[u8]) -> i64 {
    i64::from_ne_bytes(bytes[OUT - 8..].try_into().unwrap())
}

impl Pair {
    fn new(more: &[MapDef]) -> Pair {
        let defs: Vec<_> = [&[out_map()], more].concat();
        let theirs = kernel::available().then(|| defs.iter().map(|d| kernel::Map::create(d).unwrap()).collect());
        Pair { session: Session::new(&defs).unwrap(), theirs, defs }
    }

    /// Runs a program in both worlds; returns map 0's value afterwards, ours and the kernel's.
    fn run(&mut self, insns: &[Insn]) -> [Vec<u8>; 2] {
        let mut program = Program::new("test", ProgType::RawTracepoint, "GPL", insns.to_vec());
        program.maps = self.defs.clone().into();
        let verified = skep_verifier::verify(program, &skep_verifier::Options::default()).unwrap();
        let compiled = skep_jit::compile(&verified, &options()).unwrap();
        let zero = 0u32.to_ne_bytes();
        self.session.maps()[0].update(&zero, &[FILL; OUT], 0).unwrap();
        let mut ctx = [0u64; 4];
        // SAFETY: the context of a raw tracepoint with four arguments.
        let run = unsafe { self.session.machine(0).run_image(compiled.image_ptr().unwrap(), ctx.as_mut_ptr().cast()) };
        assert_eq!((run.retval, run.over_budget), (0, false));
        let ours = self.session.maps()[0].lookup(&zero, 0).unwrap();
        let Some(theirs) = &self.theirs else { return [ours.clone(), ours] };
        theirs[0].update(&zero, &[FILL; OUT]).unwrap();
        let loaded = kernel::Program::load_linked(ProgType::RawTracepoint, insns, theirs).unwrap();
        assert_eq!(loaded.run_raw_tracepoint(&[0; 4]).unwrap(), 0);
        [ours, theirs[0].lookup(&zero).unwrap()]
    }

    fn same(&mut self, what: &str, body: &[Insn]) -> i64 {
        let [ours, theirs] = self.run(&program(body));
        assert_eq!(r0(&ours), r0(&theirs), "{what}: r0 here and in the kernel");
        assert!(ours == theirs, "{what}: memory here and in the kernel: {:?}", (&ours[..72], &theirs[..72]));
        r0(&ours)
    }
}

/// Three pages: readable, readable, not; filled with letters.
fn memory() -> u64 {
    // SAFETY: new memory, filled before the last page is closed.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let p = libc::mmap(std::ptr::null_mut(), 3 * 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(p, libc::MAP_FAILED);
        libc::memset(p, i32::from(b'x'), 3 * 4096);
        assert_eq!(libc::mprotect(p.cast::<u8>().add(8192).cast(), 4096, libc::PROT_NONE), 0);
        p as u64
    }
}

fn put(at: u64, bytes: &[u8]) {
    // SAFETY: within the readable pages of `memory`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
}

fn reads() {
    let page = memory();
    let mut pair = Pair::new(&[]);
    put(page + 100, b"hello\0world\0");
    put(page + 4090, b"abc\0");
    put(page + 4094, b"across\0");
    put(page + 8188, b"end\0");
    let addresses = [
        page,
        page + 100,
        page + 4090,
        page + 4094,
        page + 8184,
        page + 8185,
        page + 8188,
        page + 8191,
        page + 8192,
        0,
        16,
        1 << 47,
        u64::MAX - 3,
    ];
    for (name, id) in [("user", 112), ("user_str", 114)] {
        for size in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 64, 240] {
            for address in addresses {
                let body = [&value(1, 0)[..], &[imm(2, size)], &imm64(3, address), &[helper(id)]].concat();
                pair.same(
                    &format!("probe_read_{name} of {size} bytes at page + {:#x}", address.wrapping_sub(page)),
                    &body,
                );
            }
        }
    }
    // A few in full, for who has no kernel to ask.
    let read = |id, size, address: u64| [&value(1, 0)[..], &[imm(2, size)], &imm64(3, address), &[helper(id)]].concat();
    for (id, size, address, r0, text) in [
        (114, 64, page + 100, 6, &b"hello\0"[..]),
        (114, 4, page + 100, 4, b"hel\0"),
        (114, 64, page + 4094, 7, b"across\0"),
        (114, 64, page + 8189, 3, b"nd\0"),
        (114, 8, page + 8192, -14, &[0; 8]),
        (112, 5, page + 100, 0, b"hello"),
        (112, 8, page + 8185, -14, &[0; 8]),
        (113, 5, page + 100, 0, b"hello"),
        (115, 64, page + 100, 6, b"hello\0"),
        (113, 8, 16, -14, &[0; 8]),
        (115, 8, 16, -14, &[0; 8]),
    ] {
        let mut alone = Pair { theirs: None, ..Pair::new(&[]) };
        let [ours, _] = alone.run(&program(&read(id, size, address)));
        assert_eq!((self::r0(&ours), &ours[..text.len()]), (r0, text), "helper {id}, {size} bytes");
    }
    // A string longer than one piece of the reader.
    let long = [&value(1, 0)[..], &[imm(2, 240)], &imm64(3, page + 5000), &[helper(114)]].concat();
    assert_eq!(pair.same("a long string", &long), 240);
}

fn identity() {
    let mut pair = Pair::new(&[]);
    for (name, id) in [("pid_tgid", 14), ("uid_gid", 15)] {
        pair.same(name, &[helper(id)]);
    }
    for size in [1, 2, 8, 15, 16, 17, 64] {
        pair.same(&format!("comm of {size}"), &[&value(1, 0)[..], &[imm(2, size), helper(16)]].concat());
    }
    // Clocks agree to within what a run takes.
    for id in [5, 125, 208] {
        let [ours, theirs] = pair.run(&program(&[helper(id)])).map(|b| r0(&b));
        assert!(
            ours > 0 && (0..2_000_000_000).contains(&(theirs - ours)),
            "clock {id}: {ours} here, {theirs} in the kernel"
        );
    }
    let [a, b] = [(); 2].map(|()| r0(&pair.run(&program(&[helper(7)]))[0]));
    assert!(a != b && (0..1 << 32).contains(&a), "random numbers {a} and {b}");
}

/// A program that stores a text at the start of the value and calls `trace_printk` on it.
fn printk(text: &[u8], size: i32, args: &[u64]) -> Vec<Insn> {
    let mut body = Vec::new();
    for (i, chunk) in text.chunks(8).enumerate() {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        body.extend(imm64(1, u64::from_ne_bytes(bytes)));
        body.extend(value(2, i as i32 * 8));
        body.push(insn(0x7b, 2, 1, 0, 0));
    }
    for (i, &arg) in args.iter().enumerate() {
        body.extend(imm64(3 + i as u8, arg));
    }
    body.extend(value(1, 0));
    body.extend([imm(2, size), helper(6)]);
    body
}

/// The lines that our programs have printed since the last call.
fn lines(session: &Session) -> Vec<String> {
    let head = size_of::<skep_runtime::session::PrintkRecord>();
    let ring = session.maps().last().unwrap();
    let mut out = Vec::new();
    ring.ring_consumer().unwrap().poll(|r| out.push(String::from_utf8_lossy(&r[head..]).into_owned())).unwrap();
    out
}

fn formats() {
    let page = memory();
    put(page, b"text\0");
    let m1 = -1i64 as u64;
    // Format, arguments, and the text where the kernel's is known not to differ (it hides addresses).
    let cases: &[(&str, &[u64], Option<&str>)] = &[
        ("plain\n", &[], Some("plain\n")),
        ("%d %u %x", &[m1, m1, 255], Some("-1 4294967295 ff")),
        ("%ld %lu %lx", &[m1, 5, m1], Some("-1 5 ffffffffffffffff")),
        ("%lld %llu %llX", &[m1 << 40, 5, 0xabcdef], Some("-1099511627776 5 ABCDEF")),
        ("%i|%5d|%-5d", &[7, 42, 42], Some("7|   42|42   ")),
        ("%05d|%+d|% d", &[42, 42, 42], Some("00042|+42| 42")),
        ("%08x|%-8x|%2x", &[0xbeef, 0xbeef, 0xbeef], Some("0000beef|beef    |beef")),
        ("%c%c%c", &[104, 105, 33], Some("hi!")),
        ("%s|%10s|%-10s", &[page, page, page], Some("text|      text|text      ")),
        ("%s", &[16], Some("")),
        ("%pus, %pks", &[page, 16], Some("text, ")),
        ("100%%", &[], Some("100%")),
        ("%px", &[0x1234], Some("0000000000001234")),
        ("%p", &[0x1234], None),
        ("%pi4 %pI4", &[16, 16], Some("000.000.000.000 0.0.0.0")),
        ("%pI6 %pi6", &[16, 16], None),
        ("%20pI4|", &[16], None),
        ("%d %d %d %d", &[1, 2, 3], None),
        ("%", &[], None),
        ("%q", &[1], None),
        ("%f", &[1], None),
        ("%hd", &[1], None),
        ("%sx", &[page], None),
        ("%s.", &[page], Some("text.")),
        ("%pz", &[page], None),
        ("%llld", &[1], None),
        ("%.3d", &[1], None),
        ("%#x", &[1], None),
        ("bell\u{7}", &[], None),
        ("\u{e9}\u{e9}", &[], Some("\u{e9}\u{e9}")),
        ("%\u{e9}", &[1], None),
        ("%s\u{e9}", &[page], None),
        ("tab\there", &[], Some("tab\there")),
        ("%-", &[1], None),
        ("%200d", &[1], None),
    ];
    let mut pair = Pair::new(&[]);
    let _ = lines(&pair.session);
    for &(format, args, text) in cases {
        let bytes = [format.as_bytes(), &[0]].concat();
        let r0 = pair.same(format, &printk(&bytes, bytes.len() as i32, args));
        let ours = lines(&pair.session);
        if r0 < 0 {
            assert_eq!((r0, ours.len(), text), (-22, 0, None), "{format}");
        } else {
            assert_eq!(ours.len(), 1, "{format}");
            assert_eq!(ours[0].len() as i64, r0, "{format}");
            assert!(text.is_none_or(|t| t == ours[0]), "{format}: {:?}", ours[0]);
        }
    }
    assert_eq!(pair.same("no terminator", &printk(b"abcdefgh", 8, &[])), -22);
    // The same through trace_vprintk, with its own limits.
    let vprintk = |data: i32, len: i32| {
        let mut body = printk(b"%d %d\0", 6, &[]);
        body.truncate(body.len() - 1);
        body.extend(value(3, data));
        body.extend([imm(4, len), helper(177)]);
        body
    };
    for len in [0, 8, 12, 16, 24, 96, 104] {
        pair.same(&format!("trace_vprintk with {len} bytes"), &vprintk(64, len));
    }
}

fn rings_and_perf_arrays() {
    let maps =
        [MapDef::new("ring", MapType::Ringbuf, 0, 0, 4096), MapDef::new("perf", MapType::PerfEventArray, 4, 4, 8)];
    let mut pair = Pair::new(&maps);
    for (size, flags) in [(8, 0), (8, 1), (8, 2), (8, 4), (8, 3), (200, 0), (200, 1 << 20)] {
        let body = [&map(1, 1)[..], &value(2, 0), &[imm(3, size), imm(4, flags), helper(130)]].concat();
        pair.same(&format!("ringbuf_output of {size}, flags {flags}"), &body);
    }
    for flags in [0, 1, 2, 3, 4, 99] {
        let body = [&map(1, 1)[..], &[imm(2, flags), helper(134)]].concat();
        pair.same(&format!("ringbuf_query {flags}"), &body);
    }
    // Fill the ring: it takes the same number of records.
    for i in 0..40 {
        let body = [&map(1, 1)[..], &value(2, 0), &[imm(3, 200), imm(4, 0), helper(130)]].concat();
        pair.same(&format!("record {i}"), &body);
    }
    for flags in [0u64, 3, 7, 8, 100, 1 << 32, 1 << 40] {
        let body = [&[mov(1, 6)][..], &map(2, 2), &imm64(3, flags), &value(4, 0), &[imm(5, 16), helper(25)]].concat();
        pair.same(&format!("perf_event_output, flags {flags:#x}"), &body);
    }
}

fn tail_calls() {
    let maps = [MapDef::new("programs", MapType::ProgArray, 4, 4, 4)];
    let mut pair = Pair::new(&maps);
    // Counts its runs at the start of the value and calls what index r3 names; behind a call that fails it stores 7.
    let counting = |index: i32| -> Vec<Insn> {
        let mut body = vec![mov(6, 1)];
        body.extend(value(1, 0));
        body.extend([insn(0x79, 2, 1, 0, 0), insn(0x07, 2, 0, 0, 1), insn(0x7b, 1, 2, 0, 0)]);
        body.push(mov(1, 6));
        body.extend(map(2, 1));
        body.extend([imm(3, index), helper(12)]);
        body.extend(value(1, 8));
        body.extend([insn(0x7a, 1, 0, 0, 7), imm(0, 0), insn(0x95, 0, 0, 0, 0)]);
        body
    };
    let insns = counting(0);
    let mut source = Program::new("test", ProgType::RawTracepoint, "GPL", insns.clone());
    source.maps = pair.defs.clone().into();
    let verified = skep_verifier::verify(source, &skep_verifier::Options::default()).unwrap();
    let compiled = skep_jit::compile(&verified, &options()).unwrap();
    let ours = pair.session.add(&compiled);
    pair.session.maps()[1].set_program(0, Some(ours)).unwrap();
    if let Some(maps) = &pair.theirs {
        let theirs = kernel::Program::load_linked(ProgType::RawTracepoint, &insns, maps).unwrap();
        maps[1].update(&0u32.to_ne_bytes(), &theirs.fd().to_ne_bytes()).unwrap();
    }
    for (index, runs) in [(0, 34u8), (1, 1), (3, 1), (4, 1), (-1, 1)] {
        let [ours, theirs] = pair.run(&counting(index));
        let count = |b: &[u8]| b[0].wrapping_sub(FILL);
        assert_eq!((count(&ours), ours[8]), (count(&theirs), theirs[8]), "index {index}");
        assert_eq!((count(&ours), ours[8]), (runs, 7), "index {index}");
    }
    // A program of another type is not called.
    let packet = Program::new("packet", ProgType::Xdp, "GPL", vec![imm(0, 2), insn(0x95, 0, 0, 0, 0)]);
    let verified = skep_verifier::verify(packet, &skep_verifier::Options::default()).unwrap();
    let other = pair.session.add(&skep_jit::compile(&verified, &options()).unwrap());
    pair.session.maps()[1].set_program(2, Some(other)).unwrap();
    let mut program = Program::new("test", ProgType::RawTracepoint, "GPL", counting(2));
    program.maps = pair.defs.clone().into();
    let verified = skep_verifier::verify(program, &skep_verifier::Options::default()).unwrap();
    let compiled = skep_jit::compile(&verified, &options()).unwrap();
    let prog = pair.session.add(&compiled);
    assert_eq!(pair.session.run(prog, &mut [0; 32]).retval, 0);
}

fn a_run_over_its_budget_keeps_no_record() {
    let maps = [out_map(), MapDef::new("ring", MapType::Ringbuf, 0, 0, 4096)];
    // Reserves a record, counts to a million and submits it.
    let mut body = map(1, 1).to_vec();
    body.extend([imm(2, 16), imm(3, 0), helper(131), insn(0x15, 0, 0, 7, 0), mov(6, 0)]);
    body.extend([imm(7, 0), insn(0x07, 7, 0, 0, 1), insn(0xa5, 7, 0, -2, 1000)]);
    body.extend([mov(1, 6), imm(2, 0), helper(132), imm(0, 0), insn(0x95, 0, 0, 0, 0)]);
    let mut program = Program::new("test", ProgType::RawTracepoint, "GPL", body);
    program.maps = maps.to_vec().into();
    let verified = skep_verifier::verify(program, &skep_verifier::Options::default()).unwrap();
    let compiled = skep_jit::compile(&verified, &options()).unwrap();
    let mut session = Session::new(&maps).unwrap();
    let prog = session.add(&compiled);
    let mut consumer = session.maps()[1].ring_consumer().unwrap();
    let mut run = |budget: u64| {
        session.set_budget(budget);
        let over = session.run(prog, &mut [0; 32]).over_budget;
        let mut records = 0;
        consumer.poll(|_| records += 1).unwrap();
        (over, records)
    };
    assert_eq!(run(0), (false, 1));
    assert_eq!(run(100), (true, 0));
    // The consumer is not held up by the record that was given back.
    assert_eq!(run(0), (false, 1));
}
