//! Speed of machine code: skep, its interpreter, the kernel's JIT, clang's code for the host, rbpf and (with
//! `--features sbpf`) solana-sbpf, in one run.
//!
//! usage: `cargo run --release -p skep-benches --features sbpf --bin jit [ROUNDS [sizes | WORKLOAD]]`, as root (the kernel's columns); with
//! `sizes` only the second table, with a workload's name only that one. `SKEP_BENCH` names the folder of the workloads
//! (default `../shared/bench` beside the workspace); they are built with clang-19.
//!
//! Every round measures all engines of a workload one after the other, on one core, with real-time priority if that is
//! allowed; the figures are medians over the rounds. All engines run the same source and return the same checksum.

#[path = "../../../crates/jit/tests/support/kernel.rs"]
mod kernel;
#[cfg(feature = "sbpf")]
#[path = "../sbpf.rs"]
mod sbpf;
#[path = "../../../crates/jit/tests/support/straight.rs"]
mod straight;
#[path = "../../../crates/jit/tests/support/mod.rs"]
mod support;

use std::ffi::{CString, OsStr, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[cfg(feature = "sbpf")]
use sbpf::Sbpf;
use skep_benches::median;
use skep_ebpf::Insn;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::Program;
use skep_ebpf::uapi::ProgType;
use skep_elf::{LoadOptions, Object};
use skep_jit::{Compiled, Engine, Options, compile};
use skep_runtime::Machine;
use skep_tests::{root, scratch};
use skep_verifier::{Verified, verify};
use straight::straight;
use support::{Session, skb};

/// Time that one figure takes.
const SLICE: Duration = Duration::from_millis(3);
const PACKET: [u8; 64] = [0; 64];
/// Workloads of arithmetic and memory alone.
const COMPUTE: [&str; 8] = ["alu64", "sha256", "bytes", "crc32", "bsearch", "parse", "fib", "primes"];
/// More of the same, from `benches/workloads`.
const MORE: [&str; 6] = ["siphash", "matmul", "base64", "sort", "div64", "utf8"];
/// The rest, with how often each does what it measures.
const OTHERS: [(&str, f64); 6] = [
    ("calls", 512.0),
    ("helper", 256.0),
    ("array", 256.0),
    ("hash_lookup", 256.0),
    ("hash_update", 256.0),
    ("ret0", 1.0),
];

fn main() {
    let rounds = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(9);
    let sources = std::env::var_os("SKEP_BENCH").map_or_else(|| root().join("../shared/bench"), PathBuf::from);
    assert!(sources.join("build").is_file(), "no workloads in {} (SKEP_BENCH)", sources.display());
    let objects = scratch().join("bench-jit");
    let built = Command::new(sources.join("build")).arg(&objects).status();
    assert!(built.is_ok_and(|s| s.success()), "the workloads cannot be built with clang-19");
    let own = root().join("benches/workloads");
    for name in MORE {
        let (from, to) = (own.join(format!("{name}.c")), objects.join(format!("{name}.o")));
        let clang = Command::new("clang-19")
            .args(["-g", "-O2", "-mcpu=v3", "-target", "bpf", "-Wno-everything", "-I"])
            .arg(&sources)
            .args([OsStr::new("-c"), from.as_os_str(), OsStr::new("-o"), to.as_os_str()])
            .status();
        assert!(clang.is_ok_and(|s| s.success()), "{name} cannot be built with clang-19");
    }
    steady();
    let with_kernel = kernel::available();

    let only = std::env::args().nth(2);
    if only.as_deref() == Some("sizes") {
        return sizes(rounds, with_kernel);
    }
    println!(
        "| workload | skep | interpreter | kernel | native -O2 | rbpf | solana-sbpf | skep/kernel | skep/native |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    let (mut to_kernel, mut to_native, mut each, mut why) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for name in COMPUTE.into_iter().chain(MORE).chain(OTHERS.map(|(n, _)| n)) {
        if only.as_deref().is_some_and(|o| o != name) {
            continue;
        }
        let workload = Workload::open(name, &sources, &objects, with_kernel);
        why.extend(workload.sbpf.as_ref().err().map(|e| format!("{name}: {e}")));
        let [skep, interp, kernel, native, rbpf, sbpf] = workload.measure(rounds);
        println!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |",
            ns(skep),
            ns(interp),
            ns(kernel),
            ns(native),
            ns(rbpf),
            ns(sbpf),
            ratio(skep / kernel),
            ratio(skep / native)
        );
        if COMPUTE.contains(&name) || MORE.contains(&name) {
            to_kernel.push(skep / kernel);
            to_native.push(skep / native);
        }
        if let Some((_, n)) = OTHERS.iter().find(|(o, _)| *o == name) {
            each.push(format!("{name} {:.2} ns (kernel {:.2})", skep / n, kernel / n));
        }
    }
    for n in [COMPUTE.len(), COMPUTE.len() + MORE.len()].into_iter().filter(|_| only.is_none()) {
        println!(
            "\ngeometric mean of the first {n} workloads: {:.3} of the kernel's time, {:.3} of native",
            geomean(&to_kernel[..n]),
            geomean(&to_native[..n])
        );
    }
    println!("each: {}", each.join(", "));
    if cfg!(feature = "sbpf") {
        println!("not run by solana-sbpf: {}", why.join("; "));
    }
    if only.is_some() {
        return;
    }
    sizes(rounds.min(7), with_kernel);
}

fn ns(x: f64) -> String {
    match x {
        x if x.is_nan() => "-".into(),
        x if x < 100.0 => format!("{x:.1}"),
        x => format!("{x:.0}"),
    }
}

fn ratio(x: f64) -> String {
    if x.is_nan() { "-".into() } else { format!("{x:.2}") }
}

fn geomean(all: &[f64]) -> f64 {
    (all.iter().map(|x| x.ln()).sum::<f64>() / all.len() as f64).exp()
}

/// One core, and nobody else on it while we measure, as far as we may.
fn steady() {
    // SAFETY: both calls read what they are given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        let param = libc::sched_param { sched_priority: 10 };
        if libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) != 0 {
            println!("without real-time priority: {}\n", std::io::Error::last_os_error());
        }
    }
}

/// Runs something for about [`SLICE`]; nanoseconds of one run.
fn time(mut run: impl FnMut()) -> f64 {
    let mut runs = 1u32;
    loop {
        let start = Instant::now();
        for _ in 0..runs {
            run();
        }
        let took = start.elapsed();
        if took >= SLICE || runs >= 1 << 24 {
            return took.as_nanos() as f64 / f64::from(runs);
        }
        let more = SLICE.as_nanos() / took.as_nanos().max(100) + 1;
        runs = runs.saturating_mul(more.clamp(2, 1000) as u32);
    }
}

/// A function of clang's for the host.
type Native = unsafe extern "C" fn(*mut c_void) -> c_int;

/// A program in both of our engines.
struct Ours {
    session: Session,
    work: Compiled,
    machine: Machine,
    ctx: Vec<u8>,
}

impl Ours {
    fn new(object: &Object, setup: &Verified, work: &Verified, engine: Engine) -> Ours {
        let options = Options { engine, ..Options::default() };
        let mut session = Session::new(object.maps()).expect("maps");
        let prog = session.add(&compile(setup, &options).expect("setup"));
        let mut ctx = skb(&PACKET, 0);
        session.run(prog, &mut ctx);
        let machine = session.machine(0);
        Ours { session, work: compile(work, &options).expect("work"), machine, ctx }
    }

    fn run(&mut self) -> u32 {
        let image = self.work.image_ptr().expect("memory for code");
        // SAFETY: a context of the program's type, and the image's maps are the session's.
        unsafe { self.machine.run_image(image, self.ctx.as_mut_ptr()).retval as u32 }
    }

    fn time(&mut self) -> f64 {
        let image = self.work.image_ptr().expect("memory for code");
        let (machine, ctx) = (&mut self.machine, self.ctx.as_mut_ptr());
        // SAFETY: as in `run`.
        let figure = time(|| unsafe {
            std::hint::black_box(machine.run_image(image, ctx));
        });
        let _ = self.session.maps();
        figure
    }
}

struct Workload {
    name: String,
    jit: Ours,
    interp: Ours,
    kernel: Option<kernel::Program>,
    native: Option<Native>,
    rbpf: Option<Rbpf>,
    /// Or why it does not run there.
    sbpf: Result<Sbpf, String>,
}

/// Of what is not built in.
#[cfg(not(feature = "sbpf"))]
enum Sbpf {}

#[cfg(not(feature = "sbpf"))]
impl Sbpf {
    fn new(_: usize, _: &Program, _: &Program) -> Result<Sbpf, String> {
        Err("not built in".into())
    }

    fn run(&mut self) -> Result<u64, String> {
        match *self {}
    }
}

impl Workload {
    fn open(name: &str, sources: &Path, objects: &Path, with_kernel: bool) -> Workload {
        let bytes = std::fs::read(objects.join(format!("{name}.o"))).expect("an object");
        let object = Object::parse(name, &bytes).expect("an object");
        let program = |p: &str| object.program(p, &LoadOptions::default()).expect("a program");
        let verified = |p: &str| verify(program(p), &Default::default()).expect("a verified program");
        let (setup, work) = (verified("setup"), verified("work"));
        let mut jit = Ours::new(&object, &setup, &work, Engine::Jit);
        let mut interp = Ours::new(&object, &setup, &work, Engine::Interpreter);
        let kernel = with_kernel.then(|| {
            let maps: Vec<_> = object.maps().iter().map(|m| kernel::Map::create(m).expect("a map")).collect();
            let load = |p: &str| kernel::Program::load_linked(ProgType::SchedCls, &program(p).insns, &maps).expect(p);
            load("setup").run_packet(&PACKET).expect("a run");
            load("work")
        });
        let native = native(name, sources);
        let mut rbpf = Rbpf::new(&object, &program("setup"), &program("work"));
        // The same checksum everywhere.
        let sum = interp.run();
        assert_eq!(sum, jit.run(), "{name}: machine code");
        if let Some(k) = &kernel {
            assert_eq!(sum, k.run_packet(&PACKET).expect("a run"), "{name}: kernel");
        }
        if let Some(work) = native {
            // SAFETY: the function does not look at its argument.
            assert_eq!(sum, unsafe { work(std::ptr::null_mut()) } as u32, "{name}: native");
        }
        rbpf = rbpf.filter(|r| r.run() as u32 == sum);
        let sbpf =
            Sbpf::new(object.maps().len(), &program("setup"), &program("work")).and_then(|mut vm| match vm.run()? {
                value if value as u32 == sum => Ok(vm),
                value => Err(format!("returns {value:#x} instead of {sum:#x}")),
            });
        Workload { name: name.into(), jit, interp, kernel, native, rbpf, sbpf }
    }

    /// Medians: skep, interpreter, kernel, native, rbpf, solana-sbpf.
    fn measure(mut self, rounds: usize) -> [f64; 6] {
        let mut figures: [Vec<f64>; 6] = Default::default();
        for _ in 0..rounds {
            let jit = self.jit.time();
            figures[0].push(jit);
            figures[1].push(self.interp.time());
            if let Some(k) = &self.kernel {
                let repeat = (SLICE.as_nanos() as f64 / (jit + 20.0)).clamp(2.0, 1e6) as u32;
                let (_, ns) = k.run_repeatedly(&PACKET, repeat).unwrap_or_else(|e| panic!("{}: {e}", self.name));
                figures[2].push(f64::from(ns));
            }
            if let Some(work) = self.native {
                // SAFETY: the function does not look at its argument.
                figures[3].push(time(|| unsafe {
                    std::hint::black_box(work(std::ptr::null_mut()));
                }));
            }
            if let Some(r) = &self.rbpf {
                figures[4].push(time(|| {
                    std::hint::black_box(r.run());
                }));
            }
            if let Ok(vm) = &mut self.sbpf {
                figures[5].push(time(|| {
                    let _ = std::hint::black_box(vm.run());
                }));
            }
        }
        figures.map(|mut f| median(&mut f))
    }
}

/// clang's code for the host, of workloads without maps.
fn native(name: &str, sources: &Path) -> Option<Native> {
    let file = format!("{name}.c");
    let source = std::fs::read_to_string(sources.join(&file));
    let source = source.or_else(|_| std::fs::read_to_string(root().join("benches/workloads").join(&file))).ok()?;
    if source.contains("maps.h") {
        return None;
    }
    let folder = scratch().join("bench-native");
    std::fs::create_dir_all(&folder).ok()?;
    let header = std::fs::read_to_string(sources.join("bench.h")).ok()?;
    // The helper is a function of another file, so that it stays a call.
    let header = header.replace("((u64(*)(void))42)", "bench_helper") + "\nu64 bench_helper(void);\n";
    std::fs::write(folder.join("bench.h"), header).ok()?;
    let helper = "unsigned long long bench_helper(void) { return 0; }\n";
    let (main, other, lib) =
        (folder.join(format!("{name}.c")), folder.join("bench_helper.c"), folder.join(format!("{name}.so")));
    std::fs::write(&main, source).ok()?;
    std::fs::write(&other, helper).ok()?;
    let done = Command::new("clang-19")
        .args(["-O2", "-shared", "-fPIC", "-Wno-everything", "-o"])
        .args([&lib, &main, &other])
        .status();
    if !done.is_ok_and(|s| s.success()) {
        println!("{name}: no native column (clang-19)");
        return None;
    }
    let path = CString::new(lib.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: the library that was just built; both functions take one pointer and return an int.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        let find = |name: &std::ffi::CStr| {
            let f = libc::dlsym(handle, name.as_ptr());
            (!f.is_null()).then(|| std::mem::transmute::<*mut c_void, Native>(f))
        };
        if handle.is_null() {
            return None;
        }
        find(c"setup")?(std::ptr::null_mut());
        find(c"work")
    }
}

/// A program in rbpf's JIT; its buffer is plain memory.
struct Rbpf {
    vm: rbpf::EbpfVmNoData<'static>,
    _buffer: Box<[u64]>,
}

fn rbpf_helper(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    0
}

impl Rbpf {
    fn new(object: &Object, setup: &Program, work: &Program) -> Option<Rbpf> {
        // Of maps it knows nothing.
        if object.maps().len() > 1 {
            return None;
        }
        let buffer = vec![0u64; 2048].into_boxed_slice();
        let at = buffer.as_ptr() as u64;
        let make = |program: &Program| {
            let mut insns = program.insns.to_vec();
            for i in 0..insns.len() {
                if insns[i].is_ld_imm64() && insns[i].src() == pseudo::MAP_IDX_VALUE {
                    let value = at + u64::from(insns[i + 1].imm as u32);
                    insns[i] = Insn::new(insns[i].code, insns[i].dst(), 0, 0, value as i32);
                    insns[i + 1].imm = (value >> 32) as i32;
                }
            }
            let bytes: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
            let bytes: &'static [u8] = bytes.leak();
            let mut vm = rbpf::EbpfVmNoData::new(Some(bytes)).ok()?;
            vm.register_helper(42, rbpf_helper).ok()?;
            vm.jit_compile().ok()?;
            Some(vm)
        };
        let setup = make(setup)?;
        // SAFETY: the program is verified, and its buffer is there.
        unsafe { setup.execute_program_jit().ok()? };
        Some(Rbpf { vm: make(work)?, _buffer: buffer })
    }

    fn run(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.vm.execute_program_jit().unwrap_or(u64::MAX) }
    }
}

fn sizes(rounds: usize, with_kernel: bool) {
    std::panic::set_hook(Box::new(|_| ()));
    println!("\n| instructions | skep µs | ns/insn | bytes/insn | kernel bytes/insn | rbpf ns/insn |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for len in [1000, 4000, 16_000, 50_000] {
        let insns = straight(len, 0x1234_5678_9abc_def1);
        let verified = verify(Program::new("big", ProgType::SchedCls, "GPL", insns.clone()), &Default::default());
        let verified = verified.expect("a valid program");
        let options = Options { engine: Engine::Jit, ..Options::default() };
        let bytes: &'static [u8] = insns.iter().flat_map(|i| i.to_bytes()).collect::<Vec<u8>>().leak();
        let (mut ours, mut rbpf, mut size) = (Vec::new(), Vec::new(), 0);
        for _ in 0..rounds {
            let start = Instant::now();
            let compiled = compile(&verified, &options).expect("machine code");
            ours.push(start.elapsed().as_nanos() as f64);
            size = compiled.machine_code().map_or(0, <[u8]>::len);
            if let Ok(mut vm) = rbpf::EbpfVmNoData::new(Some(bytes)) {
                let start = Instant::now();
                // Where its code turns out larger than it thought, it panics.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| vm.jit_compile().is_ok())).unwrap_or(false)
                {
                    rbpf.push(start.elapsed().as_nanos() as f64);
                }
            }
        }
        let kernel = with_kernel.then(|| kernel::Program::load(ProgType::SchedCls, &insns).ok()?.code_size().ok());
        let (n, ours) = (insns.len() as f64, median(&mut ours));
        println!(
            "| {len} | {:.0} | {:.1} | {:.2} | {} | {} |",
            ours / 1e3,
            ours / n,
            size as f64 / n,
            kernel.flatten().map_or("-".into(), |k| format!("{:.2}", f64::from(k) / n)),
            ns(median(&mut rbpf) / n)
        );
    }
    drop(std::panic::take_hook());
}
