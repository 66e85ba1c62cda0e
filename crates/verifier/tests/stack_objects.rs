//! Random programs with dynptrs, iterators and callbacks, judged here and by the live kernel: nothing that it rejects may
//! be accepted.
//!
//! `SKEP_FUZZ` is the number of programs (default 1000), `SKEP_SEED` the first seed; `SKEP_FUZZ_LOG` prints program and
//! logs. Needs `bpf(2)` and the kernel's BTF; skipped without.

mod kernel;
mod typed;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType, prog_flags};
use skep_verifier::{KernelProfile, Options, Outcome, verify};

/// A small generator of numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

const ARRAY: u32 = 0;
const RING: u32 = 1;
const USER_RING: u32 = 2;
const DATA: u32 = 3;

fn maps() -> Vec<MapDef> {
    vec![
        MapDef::new("array", MapType::Array, 4, 16, 4),
        MapDef::new("ring", MapType::Ringbuf, 0, 0, 4096),
        MapDef::new("user_ring", MapType::UserRingbuf, 0, 0, 4096),
        MapDef::new("data", MapType::Array, 4, 16, 1),
    ]
}

/// What the maker of a program believes to be at an offset of the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Object {
    Dynptr,
    Record,
    Numbers,
    Tasks,
}

/// Where objects are made: the offsets from the frame's base.
const PLACES: [i64; 4] = [-24, -40, -56, -72];
/// A buffer of plain data, initialised at the start of each function.
const BUFFER: i64 = -88;

struct Maker<'a> {
    rng: &'a mut Rng,
    btf: &'a Btf,
    prog_type: ProgType,
    text: String,
    labels: u32,
    /// Functions to write after the main one: label, parameters, nesting.
    functions: Vec<(String, &'static str, u32)>,
    signatures: Vec<typed::Function>,
    known: BTreeMap<i64, Object>,
    /// The register that objects are based on, and whether the context is in r6.
    base: &'static str,
    has_ctx: bool,
    /// A dynptr was handed to the function; it is in r8.
    foreign: bool,
    nesting: u32,
}

impl Maker<'_> {
    fn line(&mut self, text: &str) {
        let _ = writeln!(self.text, "{text}");
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("l{}", self.labels)
    }

    fn kfunc(&mut self, name: &str) {
        let id = self.btf.find(name, |k| matches!(k, Kind::Func { .. })).unwrap_or(0);
        self.line(&format!("call kernel-function#{id}"));
    }

    fn address(&mut self, r: u8, off: i64) {
        let base = self.base;
        self.line(&format!("r{r} = {base}\nr{r} += {off}"));
    }

    /// An offset that probably holds one of these; rarely any.
    fn place(&mut self, of: &[Object]) -> Option<i64> {
        let fits: Vec<i64> = self.known.iter().filter(|(_, o)| of.contains(o)).map(|(k, _)| *k).collect();
        if self.rng.chance(2) {
            return Some(self.any_place());
        }
        (!fits.is_empty()).then(|| self.rng.pick(&fits))
    }

    fn any_place(&mut self) -> i64 {
        let off = self.rng.pick(&PLACES);
        if self.rng.chance(20) { off + self.rng.pick(&[8, -8, 4, 16]) } else { off }
    }

    /// An offset that is probably free, or holds what can be overwritten.
    fn free_place(&mut self) -> i64 {
        let free: Vec<i64> =
            PLACES.into_iter().filter(|p| !matches!(self.known.get(p), Some(o) if *o != Object::Dynptr)).collect();
        if free.is_empty() || self.rng.chance(2) { self.any_place() } else { self.rng.pick(&free) }
    }

    fn make_local(&mut self) {
        let off = self.free_place();
        self.line(&format!("r1 = map[idx:{DATA}][0]0\nr2 = 16\nr3 = 0"));
        self.address(4, off);
        self.line("call x#197");
        self.known.insert(off, Object::Dynptr);
    }

    fn make_record(&mut self) {
        let off = self.free_place();
        self.line(&format!("r1 = map[idx:{RING}]\nr2 = 16\nr3 = 0"));
        self.address(4, off);
        self.line("call x#198");
        self.known.insert(off, Object::Record);
    }

    fn make_packet(&mut self) {
        if !self.has_ctx || !matches!(self.prog_type, ProgType::SchedCls | ProgType::Xdp) {
            return self.make_local();
        }
        let off = self.free_place();
        self.line("r1 = r6\nr2 = 0");
        self.address(3, off);
        let name = match self.prog_type {
            ProgType::Xdp => "bpf_dynptr_from_xdp",
            _ => self.rng.pick(&["bpf_dynptr_from_skb", "bpf_dynptr_from_skb_meta"]),
        };
        self.kfunc(name);
        self.known.insert(off, Object::Dynptr);
    }

    fn clone(&mut self) {
        let Some(from) = self.place(&[Object::Dynptr, Object::Record]) else { return };
        let to = self.free_place();
        self.address(1, from);
        self.address(2, to);
        self.kfunc("bpf_dynptr_clone");
        if let Some(what) = self.known.get(&from).copied() {
            self.known.insert(to, what);
        }
    }

    fn give_back(&mut self) {
        let Some(off) = self.place(&[Object::Record]) else { return };
        self.address(1, off);
        let helper = self.rng.pick(&[199, 200]);
        self.line(&format!("r2 = 0\ncall x#{helper}"));
        self.known.remove(&off);
    }

    /// Memory of a dynptr, kept in r7 or r8 or on the stack.
    fn slice(&mut self) {
        let Some(off) = self.place(&[Object::Dynptr, Object::Record]) else { return };
        self.address(1, off);
        self.line("r2 = 0");
        match self.rng.below(3) {
            0 => self.line("r3 = 8\ncall x#203"),
            n => {
                if self.rng.chance(50) {
                    self.line("r3 = 0");
                } else {
                    self.line(&format!("r3 = r10\nr3 += {BUFFER}"));
                }
                self.line("r4 = 8");
                self.kfunc(if n == 1 { "bpf_dynptr_slice" } else { "bpf_dynptr_slice_rdwr" });
            }
        }
        let end = self.label();
        let keep = match self.foreign {
            true => "r7 = r0",
            false => self.rng.pick(&["r7 = r0", "r8 = r0", "*(u64 *)(r10 - 96) = r0"]),
        };
        match self.rng.below(4) {
            0 => self.line(keep),
            1 => {
                self.line(&format!("if r0 == 0 goto {end}\n{keep}"));
                self.statements(2);
                self.use_memory();
                self.line(&format!("{end}:"));
            }
            _ => {
                self.line(&format!("if r0 == 0 goto {end}"));
                self.touch("r0");
                self.line(&format!("{keep}\n{end}:"));
            }
        }
    }

    fn touch(&mut self, r: &str) {
        let k = if self.rng.chance(95) { 0 } else { 1 };
        let text = match self.rng.below(3) {
            0 => format!("*(u64 *)({r} + {k}) = 1"),
            _ => format!("r1 = *(u64 *)({r} + {k})"),
        };
        self.line(&text);
    }

    /// Uses what a slice was kept in.
    fn use_memory(&mut self) {
        match self.rng.below(3) {
            0 => self.touch("r7"),
            1 => self.touch("r8"),
            _ => {
                self.line("r2 = *(u64 *)(r10 - 96)");
                self.touch("r2");
            }
        }
    }

    /// The same behind a comparison with null.
    fn use_checked(&mut self) {
        let end = self.label();
        let r = self.rng.pick(&["r7", "r8"]);
        self.line(&format!("if {r} == 0 goto {end}"));
        self.touch(r);
        self.line(&format!("{end}:"));
    }

    fn copy_data(&mut self) {
        let Some(off) = self.place(&[Object::Dynptr, Object::Record]) else { return };
        let buffer = if self.rng.chance(97) { BUFFER } else { self.any_place() };
        if self.rng.chance(50) {
            self.line(&format!("r1 = r10\nr1 += {buffer}\nr2 = 8"));
            self.address(3, off);
            self.line("r4 = 0\nr5 = 0\ncall x#201");
        } else {
            self.address(1, off);
            self.line(&format!("r2 = 0\nr3 = r10\nr3 += {buffer}\nr4 = 8\nr5 = 0\ncall x#202"));
        }
    }

    fn ask_dynptr(&mut self) {
        let Some(off) = self.place(&[Object::Dynptr, Object::Record]) else { return };
        self.address(1, off);
        self.line("r2 = 0\nr3 = 1\nr4 = 0");
        let name = self.rng.pick(&["bpf_dynptr_size", "bpf_dynptr_is_null", "bpf_dynptr_adjust", "bpf_dynptr_memset"]);
        self.kfunc(name);
    }

    fn stack_access(&mut self) {
        let off = if self.rng.chance(90) { -96 } else { self.any_place() + self.rng.pick(&[0, 8]) };
        let text = match self.rng.below(5) {
            0 => format!("*(u64 *)(r10 {off:+}) = 0"),
            1 => format!("*(u64 *)(r10 {off:+}) = r9"),
            2 => format!("*(u8 *)(r10 {off:+}) = 1"),
            _ => format!("r1 = *(u64 *)(r10 {off:+})"),
        };
        self.line(&text.replace("-", "- ").replace("+", "+ "));
    }

    fn move_packet(&mut self) {
        match self.prog_type {
            ProgType::SchedCls if self.has_ctx => self.line("r1 = r6\nr2 = 64\ncall x#39"),
            ProgType::Xdp if self.has_ctx => self.line("r1 = r6\nr2 = 4\ncall x#44"),
            _ => {}
        }
    }

    fn iter(&mut self, kind: Object) -> (&'static str, &'static str, &'static str) {
        match kind {
            Object::Tasks => ("bpf_iter_task_new", "bpf_iter_task_next", "bpf_iter_task_destroy"),
            _ => ("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy"),
        }
    }

    fn begin(&mut self) -> (i64, Object) {
        let off = self.free_place();
        let kind = if self.prog_type == ProgType::Kprobe && self.rng.chance(50) && off < -24 {
            Object::Tasks
        } else {
            Object::Numbers
        };
        self.address(1, off);
        self.line(if kind == Object::Tasks { "r2 = 0\nr3 = 0" } else { "r2 = 0\nr3 = 10" });
        let name = self.iter(kind).0;
        self.kfunc(name);
        self.known.insert(off, kind);
        (off, kind)
    }

    fn move_on(&mut self, off: i64, kind: Object) {
        self.address(1, off);
        let name = self.iter(kind).1;
        self.kfunc(name);
    }

    fn end(&mut self, off: i64, kind: Object) {
        self.address(1, off);
        let name = self.iter(kind).2;
        self.kfunc(name);
        self.known.remove(&off);
    }

    fn iter_op(&mut self) {
        let Some(off) = self.place(&[Object::Numbers, Object::Tasks]) else { return };
        let kind = self.known.get(&off).copied().unwrap_or(Object::Numbers);
        if self.rng.chance(60) { self.move_on(off, kind) } else { self.end(off, kind) }
    }

    fn iter_loop(&mut self) {
        let (off, kind) = self.begin();
        let (again, done) = (self.label(), self.label());
        self.line(&format!("{again}:"));
        self.move_on(off, kind);
        self.line(&format!("if r0 == 0 goto {done}"));
        match self.rng.below(4) {
            0 => self.line("r9 = *(u32 *)(r0 + 0)"),
            1 => self.line("r9 += 1"),
            2 => self.line("r7 = r0"),
            _ => {}
        }
        let before = self.known.clone();
        self.statements(3);
        if self.rng.chance(85) {
            self.restore(&before);
        }
        self.line(&format!("goto {again}\n{done}:"));
        if self.rng.chance(95) {
            self.end(off, kind);
        }
    }

    /// Ends what was begun since, so that the paths meet in the same state.
    fn restore(&mut self, before: &BTreeMap<i64, Object>) {
        for (off, kind) in self.known.clone() {
            if before.get(&off) == Some(&kind) {
                continue;
            }
            match kind {
                Object::Record => {
                    self.address(1, off);
                    self.line("r2 = 0\ncall x#199");
                    self.known.retain(|k, _| *k != off);
                }
                Object::Numbers | Object::Tasks => self.end(off, kind),
                Object::Dynptr => {
                    self.known.remove(&off);
                }
            }
        }
    }

    fn branch(&mut self) {
        let end = self.label();
        match self.rng.below(3) {
            0 => self.line(&format!("if r9 > 5 goto {end}")),
            _ => self.line(&format!("call x#7\nif r0 == 1 goto {end}")),
        }
        let before = self.known.clone();
        self.statements(3);
        if self.rng.chance(80) {
            self.restore(&before);
        }
        self.line(&format!("{end}:"));
        self.known.retain(|k, v| before.get(k) == Some(v));
    }

    fn counted_loop(&mut self) {
        let again = self.label();
        self.line(&format!("*(u64 *)(r10 - 104) = 0\n{again}:"));
        let before = self.known.clone();
        self.statements(2);
        self.restore(&before);
        self.line(&format!("r1 = *(u64 *)(r10 - 104)\nr1 += 1\n*(u64 *)(r10 - 104) = r1\nif r1 < 4 goto {again}"));
    }

    /// A call of a function of the program, by it or by a helper, that is given this frame's base.
    fn call(&mut self) {
        if self.nesting >= 2 {
            return;
        }
        let name = format!("f{}", self.label());
        let (params, nesting) = (self.rng.pick(&["p", "ip", "dp", "d"]), self.nesting + 1);
        match params {
            "d" => {
                let Some(off) = self.place(&[Object::Dynptr, Object::Record]) else { return };
                self.address(1, off);
                self.line(&format!("call {name}"));
            }
            "p" => {
                self.address(1, 0);
                self.line(&format!("call {name}"));
            }
            "ip" => {
                let rounds = self.rng.pick(&["r1 = 3", "r1 = 3", "r1 = r9"]);
                self.line(rounds);
                self.line(&format!("r2 = subprog[{name}]"));
                self.address(3, 0);
                self.line("r4 = 0\ncall x#181");
            }
            _ => {
                self.line(&format!("r1 = map[idx:{USER_RING}]\nr2 = subprog[{name}]"));
                self.address(3, 0);
                self.line("r4 = 0\ncall x#209");
            }
        }
        self.functions.push((name, params, nesting));
    }

    /// Uses the dynptr that the function was given.
    fn use_foreign(&mut self) {
        match self.rng.below(4) {
            0 => self.line(&format!("r1 = r10\nr1 += {BUFFER}\nr2 = 8\nr3 = r8\nr4 = 0\nr5 = 0\ncall x#201")),
            1 => self.line("r1 = r8\nr2 = 0\nr3 = 8\ncall x#203\nr7 = r0"),
            2 => {
                let to = self.free_place();
                self.line("r1 = r8");
                self.address(2, to);
                self.kfunc("bpf_dynptr_clone");
                self.known.insert(to, Object::Dynptr);
            }
            _ => {
                self.line("r1 = r8");
                self.kfunc("bpf_dynptr_size");
            }
        }
    }

    fn rcu(&mut self) {
        let name = self.rng.pick(&["bpf_rcu_read_lock", "bpf_rcu_read_unlock"]);
        self.kfunc(name);
    }

    fn statements(&mut self, most: u64) {
        for _ in 0..1 + self.rng.below(most) {
            match self.rng.below(32) {
                0 | 1 => self.make_local(),
                2 | 3 => self.make_record(),
                4 | 5 => self.make_packet(),
                6 => self.clone(),
                7 | 8 => self.give_back(),
                9..=11 => self.slice(),
                12 if self.rng.chance(15) => self.use_memory(),
                13 => self.use_checked(),
                14 | 15 => self.copy_data(),
                16 => self.ask_dynptr(),
                17 | 18 => self.stack_access(),
                19 => self.move_packet(),
                20 => {
                    self.begin();
                }
                21 => self.iter_op(),
                22 | 23 if self.labels < 24 => self.iter_loop(),
                24 | 25 if self.labels < 24 => self.branch(),
                26 if self.labels < 24 => self.counted_loop(),
                27 | 28 if self.labels < 24 => self.call(),
                29 if self.prog_type == ProgType::Kprobe => self.rcu(),
                31 if self.foreign => self.use_foreign(),
                30 => self.line(&format!("r1 = map[idx:{ARRAY}]\nr9 += 1")),
                _ => {}
            }
        }
    }

    fn finish(&mut self) {
        if self.rng.chance(92) {
            self.restore(&BTreeMap::new());
        }
        let r0 = if self.rng.chance(90) { "r0 = 0" } else { "r0 = r9" };
        self.line(&format!("{r0}\nexit"));
    }

    fn begin_function(&mut self) {
        self.line(&format!("*(u64 *)(r10 - {}) = 0\n*(u64 *)(r10 - 96) = 0\nr7 = 0\nr8 = 0\nr9 = 0", -BUFFER));
    }

    fn program(&mut self) {
        self.line("r6 = r1");
        self.begin_function();
        if self.prog_type == ProgType::Kprobe && self.rng.chance(70) {
            self.kfunc("bpf_rcu_read_lock");
            self.statements(6);
            self.kfunc("bpf_rcu_read_unlock");
        } else {
            self.statements(9);
        }
        self.finish();
        let mut n = 0;
        while let Some((name, params, nesting)) = self.functions.get(n).cloned() {
            n += 1;
            self.signatures.push(typed::Function::new(params, params == "d"));
            self.known.clear();
            self.nesting = nesting;
            self.has_ctx = false;
            self.line(&format!("{name}:"));
            let pointer = if matches!(params, "p" | "d") { "r1" } else { "r2" };
            self.line(&format!("r6 = {pointer}"));
            // Own objects, or the caller's.
            self.base = if params == "d" || self.rng.chance(50) { "r10" } else { "r6" };
            self.begin_function();
            self.foreign = params.starts_with('d');
            if self.foreign {
                self.line("r8 = r1");
                self.use_foreign();
            }
            self.statements(4);
            self.finish();
        }
    }
}

/// Puts distances for the labels in `subprog[label]`, which the assembler has not.
fn name_functions(text: &str) -> String {
    let mut slot = 0i64;
    let mut labels = BTreeMap::new();
    let mut slots = Vec::new();
    for line in text.lines() {
        slots.push(slot);
        match line.strip_suffix(':') {
            Some(label) => {
                labels.insert(label.to_owned(), slot);
            }
            None => slot += if line.contains("map[") || line.contains("subprog[") { 2 } else { 1 },
        }
    }
    let mut out = String::new();
    for (line, at) in text.lines().zip(slots) {
        match line.split_once("subprog[").and_then(|(a, b)| Some((a, b.strip_suffix(']')?))) {
            Some((before, label)) => {
                let _ = writeln!(out, "{before}subprog[{}]", labels[label] - at - 1);
            }
            None => {
                let _ = writeln!(out, "{line}");
            }
        }
    }
    out
}

fn make(n: u64, btf: &Btf, maps: &Arc<[MapDef]>) -> (Program, Vec<u8>, String) {
    let mut rng = Rng(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let prog_type = rng.pick(&[ProgType::Tracepoint, ProgType::SchedCls, ProgType::Xdp, ProgType::Kprobe]);
    let sleepable = prog_type == ProgType::Kprobe && rng.chance(70);
    let often = rng.chance(20);
    let mut maker = Maker {
        rng: &mut rng,
        btf,
        prog_type,
        text: String::new(),
        labels: 0,
        functions: Vec::new(),
        signatures: Vec::new(),
        known: BTreeMap::new(),
        base: "r10",
        has_ctx: true,
        foreign: false,
        nesting: 0,
    };
    maker.program();
    let (text, signatures) = (maker.text, maker.signatures);
    let insns = assemble(&name_functions(&text)).unwrap_or_else(|e| panic!("{n}: {e}\n{text}"));
    let mut program = Program::new("objects", prog_type, "GPL", insns);
    program.maps = maps.clone();
    program.flags = if sleepable { prog_flags::SLEEPABLE } else { 0 };
    program.flags |= if often { prog_flags::TEST_STATE_FREQ } else { 0 };
    let raw = typed::attach(&mut program, &signatures);
    (program, raw, text)
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// The kernel's last word in its log; empty if that is a fault of its own.
fn complaint(log: &str) -> &str {
    let last = log.lines().rev().find(|l| !l.starts_with("processed") && !l.trim().is_empty()).unwrap_or("");
    let own_fault = ["verifier bug: No program to jit", "verifier bug: static subprog leftover stack slots"];
    if own_fault.iter().any(|f| last.starts_with(f)) { "" } else { last }
}

#[test]
fn agrees_with_the_live_kernel() {
    let raw = std::fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    if !kernel::available() || raw.is_empty() {
        return;
    }
    let btf = Arc::new(Btf::parse(&raw).expect("the kernel's BTF"));
    let maps: Arc<[MapDef]> = maps().into();
    let Some(fds) = kernel::maps(&maps) else {
        eprintln!("skipped: the maps cannot be made here");
        return;
    };
    let profile = KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
    let options = Options { profile, btf: Some(btf.clone()), ..Options::default() };
    let (count, seed, show) = (env("SKEP_FUZZ", 1000), env("SKEP_SEED", 1), env("SKEP_FUZZ_LOG", 0));
    let (mut both_accept, mut both_reject, mut unsupported) = (0u64, 0u64, 0u64);
    let mut rejected: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong: [BTreeMap<String, Vec<u64>>; 2] = Default::default();
    for n in seed..seed + count {
        let (program, raw, text) = make(n, &btf, &maps);
        let types = kernel::btf(&raw).expect("the kernel takes the BTF");
        let ask = |level| kernel::load_typed(&program, &fds, Some(&types), level).expect("maps");
        let answer = ask(0);
        let ours = verify(program.clone(), &options);
        if show > 0 {
            println!("{text}\n{}\nerrno {}, here {:?}", ask(2).log, answer.errno, ours.as_ref().err());
        }
        match (ours, answer.errno) {
            (Ok(_), 0) => both_accept += 1,
            (Ok(_), _) => match complaint(&ask(1).log) {
                "" => both_accept += 1,
                why => wrong[0].entry(why.to_owned()).or_default().push(n),
            },
            (Err(r), _) if r.outcome == Outcome::Unsupported => {
                unsupported += 1;
                *rejected.entry(r.reason).or_default() += 1;
            }
            (Err(r), 0) => wrong[1].entry(format!("{}: {}", r.reason, r.message)).or_default().push(n),
            (Err(r), _) => {
                both_reject += 1;
                *rejected.entry(r.reason).or_default() += 1;
            }
        }
    }
    println!("{count} programs: {both_accept} accepted, {both_reject} rejected by both, {unsupported} unsupported");
    println!("{rejected:?}");
    for (what, of) in ["wrong accepts", "wrong rejects"].into_iter().zip(&wrong) {
        println!("{what}: {}", of.values().map(Vec::len).sum::<usize>());
        for (why, seeds) in of {
            println!("  {:>5} {why}  seeds {:?}", seeds.len(), &seeds[..seeds.len().min(3)]);
        }
    }
    assert!(wrong[0].is_empty(), "accepted here, rejected by the kernel");
}
