//! What a call of a program's function costs: direct, through its entry cell, to an extension, and with programs around it.
//!
//! `functions [ROUNDS]`: medians over interleaved rounds; each run of the program makes 1,000 calls in a loop.

use std::sync::Arc;

use skep_benches::median;
use skep_ebpf::asm::assemble;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Linkage, Param};
use skep_jit::Engine;
use skep_subsystem::front::{Client, Config, OwnFiles, Subsystem};

const CALLS: u32 = 1000;
const REPEAT: u32 = 200;
const SCHED_CLS: u32 = 3;
const TRACING: u32 = 26;
const EXT: u32 = 28;
const FENTRY: u32 = 24;
const FEXIT: u32 = 25;

/// A subsystem and who calls it.
struct Kernel {
    subsystem: Subsystem,
    client: Client,
    files: Arc<OwnFiles>,
}

/// Attributes, field by field.
fn attr(fields: &[(usize, u32)], pointers: &[(usize, u64)]) -> Vec<u8> {
    let mut bytes = vec![0u8; 144];
    for (at, value) in fields {
        bytes[*at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    for (at, value) in pointers {
        bytes[*at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// Types of `main(struct __sk_buff *)` and `f(int)`; the ids of the functions.
fn types(names: &[(&str, bool)]) -> (Vec<u8>, Vec<u32>) {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let skb = b.add("__sk_buff", &Kind::Struct(Composite { size: 4, members: Box::new([]) }));
    let ptr = b.add("", &Kind::Ptr { ty: skb });
    let mut ids = Vec::new();
    for (name, context) in names {
        let params = Box::new([Param { name_off: 1, ty: if *context { ptr } else { int } }]);
        let proto = b.add("", &Kind::FuncProto { ret: int, params });
        ids.push(b.add(name, &Kind::Func { proto, linkage: Linkage::Global }));
    }
    (b.finish(), ids)
}

impl Kernel {
    fn new(engine: Engine) -> Kernel {
        let subsystem = Subsystem::new(Config { engine, slots: 4, ..Config::default() }).expect("memory");
        let files = Arc::new(OwnFiles::new());
        Kernel { subsystem, client: Client::own(Arc::clone(&files)), files }
    }

    fn bpf(&self, command: u32, mut attr: Vec<u8>) -> (i32, Vec<u8>) {
        match self.subsystem.bpf(&self.client, command, &mut attr) {
            Ok(fd) => (fd, attr),
            Err(e) => panic!("command {command}: {}", e.name()),
        }
    }

    /// Loads a program; with types it has two functions at most.
    fn load(&self, ty: u32, attach: u32, text: &str, names: &[(&str, bool)], target: (i32, u32)) -> (i32, Vec<u32>) {
        let insns = assemble(text).expect("a program");
        let code: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let call = insns.iter().enumerate().find(|(_, i)| i.is_subprog_call());
        let second = call.map(|(at, i)| (at as i64 + 1 + i64::from(i.imm)) as u32);
        let (blob, ids) = types(names);
        let mut fields = vec![(0, ty), (4, insns.len() as u32), (68, attach), (108, target.1), (112, target.0 as u32)];
        let mut pointers = vec![(8, code.as_ptr() as u64), (16, c"GPL".as_ptr() as u64)];
        let mut info = Vec::new();
        if !names.is_empty() {
            let (btf, _) = self.bpf(18, attr(&[(16, blob.len() as u32)], &[(0, blob.as_ptr() as u64)]));
            info.extend([0, ids[0]]);
            info.extend(second.iter().zip(ids.get(1)).flat_map(|(at, id)| [*at, *id]));
            fields.extend([(72, btf as u32), (76, 8), (88, info.len() as u32 / 2)]);
            pointers.push((80, info.as_ptr() as u64));
        }
        (self.bpf(5, attr(&fields, &pointers)).0, ids)
    }

    /// Nanoseconds of a call, from test runs.
    fn measure(&self, prog: i32) -> f64 {
        let data = [0u8; 64];
        let (_, told) = self
            .bpf(10, attr(&[(0, prog as u32), (8, 64), (32, REPEAT)], &[(16, data.as_ptr() as u64)])[..80].to_vec());
        let ns = u32::from_ne_bytes([told[36], told[37], told[38], told[39]]);
        f64::from(ns) / f64::from(CALLS)
    }

    fn attach(&self, prog: i32) -> i32 {
        self.bpf(17, attr(&[(8, prog as u32)], &[])[..24].to_vec()).0
    }

    fn close(&self, fd: i32) {
        self.files.close(fd);
    }
}

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(15);
    println!("| a call of a function | machine code, ns | interpreter, ns |\n|---|---:|---:|");
    let columns: Vec<Vec<(&str, f64)>> = [Engine::Jit, Engine::Interpreter].map(|e| measure(e, rounds)).into();
    for (jit, interp) in columns[0].iter().zip(&columns[1]) {
        println!("| {} | {:.2} | {:.2} |", jit.0, jit.1, interp.1);
    }
}

/// The rows for one engine: medians.
fn measure(engine: Engine, rounds: usize) -> Vec<(&'static str, f64)> {
    let kernel = Kernel::new(engine);
    let text = format!(
        "r6 = 0\nagain:\nr1 = r6\ncall f\nr6 += 1\nif r6 < {CALLS:#x} goto again\nexit\nf:\nr0 = r1\nr0 += 1\nexit\n"
    );
    let names = [("main", true), ("f", false)];
    let direct = kernel.load(SCHED_CLS, 0, &text, &[], (0, 0)).0;
    let (target, ids) = kernel.load(SCHED_CLS, 0, &text, &names, (0, 0));
    let on = (target, ids[1]);
    let around = |how| kernel.load(TRACING, how, "r0 = 0\nexit\n", &[("t", false)], on).0;
    let names = ["direct", "through its cell", "to an extension", "fentry", "fexit", "fentry and fexit", "3 × fentry"];
    let mut times: Vec<Vec<f64>> = names.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (n, row) in times.iter_mut().enumerate() {
            let programs: Vec<i32> = match n {
                0 | 1 => Vec::new(),
                2 => vec![kernel.load(EXT, 0, "r0 = r1\nr0 += 1\nexit\n", &[("e", false)], on).0],
                3 => vec![around(FENTRY)],
                4 => vec![around(FEXIT)],
                5 => vec![around(FENTRY), around(FEXIT)],
                _ => vec![around(FENTRY), around(FENTRY), around(FENTRY)],
            };
            let links: Vec<i32> = programs.iter().map(|p| kernel.attach(*p)).collect();
            row.push(kernel.measure(if n == 0 { direct } else { target }));
            links.iter().chain(&programs).for_each(|fd| kernel.close(*fd));
        }
    }
    names.into_iter().zip(times.into_iter().map(|mut t| median(&mut t))).collect()
}
