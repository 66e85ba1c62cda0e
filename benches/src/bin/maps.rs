//! Speed of map operations: kinds of maps × operations × threads, by machine code, the interpreter, and the kernel.
//!
//! usage: `cargo run --release -p skep-benches --bin maps [ROUNDS [PART_OF_A_NAME]]`, as root (the kernel's columns)
//!
//! The same program runs everywhere: 256 operations a run on keys that a random sequence picks. Figures are processor time
//! of the threads that run it, per operation, the loop around it included (the first row is that loop alone). Every round
//! measures all engines one after the other; figures are medians over the rounds. *Gain* of n threads, each with keys of
//! its own: n × the time that one of them takes alone / the time that it takes with the others there. The rings' rows are time
//! on one core while a thread on another one takes the records, and waits for none of them.

#[path = "../../../crates/jit/tests/support/kernel.rs"]
mod kernel;
#[path = "../../../crates/jit/tests/support/mod.rs"]
mod support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use skep_benches::median;
use skep_ebpf::Insn;
use skep_ebpf::insn::{LD_IMM64, pseudo};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, ProgType};
use skep_jit::{Compiled, Engine, Options, compile};
use skep_runtime::Machine;
use skep_verifier::verify;
use support::{Session, skb};

/// Time that one figure takes.
const SLICE: Duration = Duration::from_millis(4);
/// Operations of one run of a program.
const OPS: f64 = 256.0;
/// Runs in one call of the kernel.
const REPEAT: u32 = 32;
const PACKET: [u8; 64] = [0; 64];
/// Entries that the hash maps have.
const ENTRIES: u32 = 10_000;
/// Bytes of a ring buffer.
const RING: u32 = 1 << 20;
/// Bytes of a thread's state in map 0: the random sequence, and how often something was not to be had.
const STATE: i32 = 128;
/// Flag of a ring buffer's record.
const NO_WAKEUP: i32 = 1;

fn main() {
    let rounds = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(9);
    let only = std::env::args().nth(2).unwrap_or_default();
    let with_kernel = kernel::available();
    println!(
        "| operation | skep | interpreter | kernel | skep/kernel | gain of 2: skep | kernel | of 4: skep | kernel |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for case in cases().iter().filter(|c| c.name.contains(&only)) {
        let row = case.measure(rounds, with_kernel);
        let [jit, interp, kernel] = row.alone;
        let gains: Vec<String> = row.gains.iter().flatten().map(|&g| number(g, 2)).collect();
        println!(
            "| {} | {} | {} | {} | {} | {} |",
            case.name,
            number(jit, 1),
            number(interp, 1),
            number(kernel, 1),
            number(jit / kernel, 2),
            gains.join(" | ")
        );
        assert_eq!(row.lost, 0, "{}: records had no room", case.name);
    }
}

fn number(x: f64, digits: usize) -> String {
    if x.is_nan() { "-".into() } else { format!("{x:.digits$}") }
}

/// What one run does so often.
#[derive(Clone, Copy, PartialEq)]
enum Op {
    Nothing,
    Increment,
    Update,
    InsertAndDelete,
    PushAndPop,
    /// With these flags.
    Reserve(i32),
    Output(i32),
}

struct Case {
    name: &'static str,
    map: MapDef,
    op: Op,
    /// Keys that are there; the program's are among them, or behind them.
    entries: u32,
    hits: bool,
}

fn cases() -> Vec<Case> {
    use MapType::{Array, Hash, LruHash, PercpuArray, PercpuHash, Queue, Ringbuf};
    let case = |name, t: MapType, key, value, op, hits: bool| {
        let max = match t {
            Array | PercpuArray => 1024,
            // An LRU map that evicts is full.
            LruHash if !hits => ENTRIES,
            Ringbuf => RING,
            _ => 16384,
        };
        let entries = match t {
            Queue | Ringbuf => 0,
            Array | PercpuArray => max,
            _ => ENTRIES,
        };
        Case { name, map: MapDef::new("m", t, key, value, max), op, entries, hits }
    };
    vec![
        case("(the loop)", Array, 4, 8, Op::Nothing, true),
        case("array: look-up, increment", Array, 4, 8, Op::Increment, true),
        case("per-CPU array: look-up, increment", PercpuArray, 4, 8, Op::Increment, true),
        case("hash, 4-byte keys: look-up, increment", Hash, 4, 8, Op::Increment, true),
        case("hash, 8-byte keys: look-up, increment", Hash, 8, 8, Op::Increment, true),
        case("hash, 16-byte keys: look-up, increment", Hash, 16, 8, Op::Increment, true),
        case("hash, 40-byte keys: look-up, increment", Hash, 40, 8, Op::Increment, true),
        case("per-CPU hash: look-up, increment", PercpuHash, 8, 8, Op::Increment, true),
        case("LRU hash: look-up, increment", LruHash, 8, 8, Op::Increment, true),
        case("hash: look-up of what is not there", Hash, 8, 8, Op::Increment, false),
        case("hash, 4-byte keys: update", Hash, 4, 8, Op::Update, true),
        case("hash, 8-byte keys: update", Hash, 8, 8, Op::Update, true),
        case("hash, 16-byte keys, 64-byte values: update", Hash, 16, 64, Op::Update, true),
        case("per-CPU hash: update", PercpuHash, 8, 8, Op::Update, true),
        case("LRU hash: update", LruHash, 8, 8, Op::Update, true),
        case("LRU hash: insert, evicting another", LruHash, 8, 8, Op::Update, false),
        case("hash: insert and delete", Hash, 8, 8, Op::InsertAndDelete, false),
        case("per-CPU hash: insert and delete", PercpuHash, 8, 8, Op::InsertAndDelete, false),
        case("queue: push and pop", Queue, 0, 8, Op::PushAndPop, true),
        case("ring buffer: reserve and submit, 64 bytes", Ringbuf, 0, 0, Op::Reserve(0), true),
        case("ring buffer: the same, no wake-up", Ringbuf, 0, 0, Op::Reserve(NO_WAKEUP), true),
        case("ring buffer: output, 64 bytes", Ringbuf, 0, 0, Op::Output(0), true),
        case("ring buffer: output, no wake-up", Ringbuf, 0, 0, Op::Output(NO_WAKEUP), true),
    ]
}

struct Row {
    /// Machine code, interpreter, kernel.
    alone: [f64; 3],
    /// Of 2 and of 4 threads: machine code, kernel.
    gains: [[f64; 2]; 2],
    /// Records for which a ring had no room.
    lost: u64,
}

impl Case {
    fn defs(&self) -> Vec<MapDef> {
        vec![MapDef::new("state", MapType::Array, 4, STATE as u32 * 4, 1), self.map.clone()]
    }

    /// The program of thread `n` of so many.
    fn program(&self, n: u32, threads: u32) -> Vec<Insn> {
        let i = |code, dst, src, off, imm| Insn::new(code, dst, src, off, imm);
        let mov = |dst, src| i(0xbf, dst, src, 0, 0);
        let imm = |dst, k| i(0xb7, dst, 0, 0, k);
        let map = |dst| [i(LD_IMM64, dst, pseudo::MAP_IDX, 0, 1), Insn::default()];
        let stack = |dst, off| [mov(dst, 10), i(0x07, dst, 0, 0, off)];
        let call = |id| i(0x85, 0, 0, 0, id);
        const KEY: i16 = -40;
        const VALUE: i16 = -104;
        let share = self.entries / threads;
        let first = if self.hits { n * share } else { 1 << 20 | n << 16 };
        let evicts = self.map.map_type == MapType::LruHash && !self.hits;

        let mut p = vec![i(LD_IMM64, 8, pseudo::MAP_IDX_VALUE, 0, 0), i(0, 0, 0, 0, n as i32 * STATE)];
        p.extend([i(0x79, 6, 8, 0, 0), imm(7, 0), imm(1, 0)]);
        p.extend((0..13).map(|word| i(0x7b, 10, 1, VALUE + word * 8, 0)));
        let head = p.len();
        p.extend([i(0x24, 6, 0, 0, 1_664_525), i(0x04, 6, 0, 0, 1_013_904_223)]);
        if self.entries > 0 && self.op != Op::Nothing {
            p.push(i(0xbc, 1, 6, 0, 0));
            if !evicts {
                p.extend([i(0x74, 1, 0, 0, 10), i(0x27, 1, 0, 0, share as i32), i(0x77, 1, 0, 0, 22)]);
            }
            p.extend([
                i(0x07, 1, 0, 0, first as i32),
                i(if self.map.key_size == 4 { 0x63 } else { 0x7b }, 10, 1, KEY, 0),
            ]);
        }
        let key = || [&map(1)[..], &stack(2, KEY.into())].concat();
        let update = || [&key()[..], &stack(3, VALUE.into()), &[imm(4, 0), call(2)]].concat();
        match self.op {
            Op::Nothing => {}
            Op::Increment => {
                p.extend(key());
                p.extend([call(1), i(0x15, 0, 0, 3, 0)]);
                p.extend([i(0x79, 1, 0, 0, 0), i(0x07, 1, 0, 0, 1), i(0x7b, 0, 1, 0, 0)]);
            }
            Op::Update => {
                p.push(i(0x7b, 10, 6, VALUE, 0));
                p.extend(update());
            }
            Op::InsertAndDelete => {
                p.extend(update());
                p.extend(key());
                p.push(call(3));
            }
            Op::PushAndPop => {
                p.extend(map(1));
                p.extend(stack(2, VALUE.into()));
                p.extend([imm(3, 0), call(87)]);
                p.extend(map(1));
                p.extend(stack(2, VALUE.into()));
                p.push(call(88));
            }
            Op::Reserve(flags) => {
                p.extend(map(1));
                p.extend([imm(2, 64), imm(3, 0), call(131), i(0x15, 0, 0, 5, 0)]);
                p.extend([i(0x7b, 0, 6, 0, 0), mov(1, 0), imm(2, flags), call(132), i(0x05, 0, 0, 3, 0)]);
                p.extend([i(0x79, 1, 8, 8, 0), i(0x07, 1, 0, 0, 1), i(0x7b, 8, 1, 8, 0)]);
            }
            Op::Output(flags) => {
                p.push(i(0x7b, 10, 6, VALUE, 0));
                p.extend(map(1));
                p.extend(stack(2, VALUE.into()));
                p.extend([imm(3, 64), imm(4, flags), call(130), i(0x15, 0, 0, 3, 0)]);
                p.extend([i(0x79, 1, 8, 8, 0), i(0x07, 1, 0, 0, 1), i(0x7b, 8, 1, 8, 0)]);
            }
        }
        let back = head as i32 - (p.len() as i32 + 2);
        p.extend([i(0x07, 7, 0, 0, 1), i(0xa5, 7, 0, back as i16, OPS as i32)]);
        p.extend([i(0x7b, 8, 6, 0, 0), imm(0, 0), i(0x95, 0, 0, 0, 0)]);
        p
    }

    /// Puts the keys in that are there from the beginning.
    fn fill(&self, mut put: impl FnMut(&[u8])) {
        for n in 0..self.entries {
            let mut key = n.to_ne_bytes().to_vec();
            key.resize(self.map.key_size as usize, 0);
            put(&key);
        }
    }

    fn measure(&self, rounds: usize, with_kernel: bool) -> Row {
        let ring = self.map.map_type == MapType::Ringbuf;
        let threads: &[u32] = if ring { &[1] } else { &[1, 2, 4] };
        let mut jit = Ours::new(self, Engine::Jit, threads);
        let mut interp = Ours::new(self, Engine::Interpreter, &[1]);
        let theirs = with_kernel.then(|| Theirs::new(self, threads));
        let mut alone: [Vec<f64>; 3] = Default::default();
        let mut gains: [[Vec<f64>; 2]; 2] = Default::default();
        let mut lost = 0;
        for _ in 0..rounds {
            if ring {
                let (time, failed) = jit.time_beside_consumer();
                alone[0].push(time);
                lost += failed;
                alone[1].push(interp.time_beside_consumer().0);
                if let Some(theirs) = &theirs {
                    let (time, failed) = theirs.time_beside_consumer();
                    alone[2].push(time);
                    lost += failed;
                }
                continue;
            }
            alone[0].push(jit.time(1)[0]);
            alone[1].push(interp.time(1)[0]);
            if let Some(theirs) = &theirs {
                alone[2].push(theirs.time(1)[0]);
            }
            for (n, gains) in threads.iter().skip(1).zip(&mut gains) {
                gains[0].push(gain(&jit.time(*n)));
                if let Some(theirs) = &theirs {
                    gains[1].push(gain(&theirs.time(*n)));
                }
            }
        }
        Row { alone: alone.map(|mut f| median(&mut f)), gains: gains.map(|of| of.map(|mut f| median(&mut f))), lost }
    }
}

/// From one thread's time alone and all threads' times together.
fn gain(times: &[f64]) -> f64 {
    let (alone, together) = times.split_first().expect("figures");
    together.iter().map(|t| alone / t).sum()
}

/// Runs something for a slice of time, whenever `ready` has returned; nanoseconds per operation.
fn when_ready(start: &Barrier, runs_a_call: u32, ready: impl Fn(), mut run: impl FnMut()) -> f64 {
    steady(0, true);
    start.wait();
    let (mut took, mut calls) = (Duration::ZERO, 0u32);
    while took < SLICE {
        ready();
        let begin = Instant::now();
        run();
        took += begin.elapsed();
        calls += 1;
    }
    took.as_nanos() as f64 / (f64::from(calls) * f64::from(runs_a_call) * OPS)
}

/// Runs something on each of some threads for a slice of time; nanoseconds of processor time per operation, of each.
fn on_threads<T: Send>(workers: Vec<T>, runs_a_call: u32, run: impl Fn(&mut T) + Sync) -> Vec<f64> {
    let start = Barrier::new(workers.len());
    let few = workers.len() <= thread::available_parallelism().map_or(1, |n| n.get());
    let (start, run) = (&start, &run);
    thread::scope(|s| {
        let threads: Vec<_> = workers
            .into_iter()
            .enumerate()
            .map(|(n, mut worker)| {
                s.spawn(move || {
                    steady(n, few);
                    start.wait();
                    run(&mut worker);
                    let (begin, cpu, mut calls) = (Instant::now(), processor_time(), 0u32);
                    while begin.elapsed() < SLICE {
                        run(&mut worker);
                        calls += 1;
                    }
                    (processor_time() - cpu).as_nanos() as f64 / (f64::from(calls) * f64::from(runs_a_call) * OPS)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().expect("a thread")).collect()
    })
}

fn processor_time() -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a timespec to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// Gives the thread a core and, if each has its own, as far as we may, nobody else on it while we measure.
fn steady(n: usize, alone: bool) {
    // SAFETY: both calls read what they are given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(n % thread::available_parallelism().map_or(1, |n| n.get()), &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        let param = libc::sched_param { sched_priority: 10 };
        if alone {
            libc::sched_setscheduler(0, libc::SCHED_FIFO, &param);
        }
    }
}

/// A thread's program, and what runs it.
struct Worker<'a> {
    machine: &'a mut Machine,
    program: &'a Compiled,
    ctx: Vec<u8>,
}

// SAFETY: each worker has its own slot, and the session outlives the threads.
unsafe impl Send for Worker<'_> {}

/// What runs a thread's programs, in cache lines of its own.
#[repr(align(128))]
struct Own(Machine);

/// Programs in one of our engines: for each number of threads, one per thread.
struct Ours {
    session: Session,
    programs: Vec<Vec<Compiled>>,
    machines: Vec<Own>,
}

impl Ours {
    fn new(case: &Case, engine: Engine, threads: &[u32]) -> Ours {
        let options = Options { engine, ..Options::default() };
        let mut session = Session::new(&case.defs()).expect("maps");
        let map = &session.maps()[1];
        let value = vec![0; map.value_size()];
        case.fill(|key| map.update(key, &value, 0).expect("an entry"));
        let one = |n, of| {
            let mut program = Program::new("bench", ProgType::SchedCls, "GPL", case.program(n, of));
            program.maps = case.defs().into();
            compile(&verify(program, &Default::default()).expect("a verified program"), &options).expect("code")
        };
        let programs = threads.iter().map(|&of| (0..of).map(|n| one(n, of)).collect()).collect();
        let machines = (0..support::SLOTS).map(|slot| Own(session.machine(slot))).collect();
        Ours { session, programs, machines }
    }

    /// Times of one thread alone and then, if there are more, of all together.
    fn time(&mut self, threads: u32) -> Vec<f64> {
        let programs = self.programs.iter().find(|p| p.len() == threads as usize).expect("programs");
        let mut all = Vec::new();
        for count in [1, threads as usize] {
            let workers = self.machines.iter_mut().zip(programs).take(count);
            let workers =
                workers.map(|(Own(machine), program)| Worker { machine, program, ctx: skb(&PACKET, 0) }).collect();
            all.extend(on_threads(workers, 1, |w: &mut Worker<'_>| {
                let image = w.program.image_ptr().expect("memory for code");
                // SAFETY: a context of the program's type, and the image's maps are the session's.
                unsafe { std::hint::black_box(w.machine.run_image(image, w.ctx.as_mut_ptr())) };
            }));
            if threads == 1 {
                break;
            }
        }
        all
    }

    fn failures(&self) -> u64 {
        failures(&self.session.maps()[0].lookup(&[0; 4], 0).expect("the state"))
    }

    /// Time of one thread while another takes the records; and how many there was no room for. It waits for the other
    /// one between runs, which does not count.
    fn time_beside_consumer(&mut self) -> (f64, u64) {
        let ring = &self.session.maps()[1];
        let mut consumer = ring.ring_consumer().expect("a consumer");
        let before = self.failures();
        let (Own(machine), program) = (&mut self.machines[0], &self.programs[0][0]);
        let worker = Worker { machine, program, ctx: skb(&PACKET, 0) };
        let (stop, start) = (AtomicBool::new(false), Barrier::new(2));
        // Both are new threads: one that is made by a thread with real-time priority would wait for it.
        let time = thread::scope(|s| {
            s.spawn(|| {
                steady(1, true);
                start.wait();
                while !stop.load(Ordering::Relaxed) {
                    let taken = consumer.poll(|record| {
                        std::hint::black_box(record[0]);
                    });
                    if taken.expect("records") == 0 {
                        std::hint::spin_loop();
                    }
                }
            });
            let ready = || {
                while ring.unread() > u64::from(RING / 2) {
                    std::hint::spin_loop();
                }
            };
            let start = &start;
            let producer = s.spawn(move || {
                let mut worker = worker;
                // SAFETY: a context of the program's type, and the image's maps are the session's.
                when_ready(start, 1, ready, || unsafe {
                    let image = worker.program.image_ptr().expect("memory for code");
                    std::hint::black_box(worker.machine.run_image(image, worker.ctx.as_mut_ptr()));
                })
            });
            let time = producer.join().expect("the producer");
            stop.store(true, Ordering::Relaxed);
            time
        });
        (time, self.failures() - before)
    }
}

/// What the first thread's program counted.
fn failures(state: &[u8]) -> u64 {
    u64::from_ne_bytes(state[8..16].try_into().expect("eight bytes"))
}

/// Programs in the kernel: for each number of threads, one per thread.
struct Theirs {
    maps: Vec<kernel::Map>,
    programs: Vec<Vec<kernel::Program>>,
}

impl Theirs {
    fn new(case: &Case, threads: &[u32]) -> Theirs {
        let maps: Vec<_> = case.defs().iter().map(|m| kernel::Map::create(m).expect("a map")).collect();
        let value = vec![0; 64 * 1024];
        case.fill(|key| maps[1].update(key, &value).expect("an entry"));
        let load =
            |n, of| kernel::Program::load_linked(ProgType::SchedCls, &case.program(n, of), &maps).expect("a program");
        let programs = threads.iter().map(|&of| (0..of).map(|n| load(n, of)).collect()).collect();
        Theirs { maps, programs }
    }

    fn time(&self, threads: u32) -> Vec<f64> {
        let programs = self.programs.iter().find(|p| p.len() == threads as usize).expect("programs");
        let mut all = Vec::new();
        for count in [1, threads as usize] {
            all.extend(on_threads(programs.iter().take(count).collect(), REPEAT, |p: &mut &kernel::Program| {
                p.run_repeatedly(&PACKET, REPEAT).expect("a run");
            }));
            if threads == 1 {
                break;
            }
        }
        all
    }

    fn failures(&self) -> u64 {
        failures(&self.maps[0].lookup(&[0; 4]).expect("the state"))
    }

    /// As ours.
    fn time_beside_consumer(&self) -> (f64, u64) {
        let (ring, before) = (KernelRing::map(self.maps[1].fd()), self.failures());
        let (ring, stop, start) = (&ring, &AtomicBool::new(false), &Barrier::new(2));
        let time = thread::scope(|s| {
            s.spawn(move || {
                steady(1, true);
                start.wait();
                while !stop.load(Ordering::Relaxed) {
                    if ring.poll() == 0 {
                        std::hint::spin_loop();
                    }
                }
            });
            let ready = || {
                while ring.unread() > u64::from(RING / 8) {
                    std::hint::spin_loop();
                }
            };
            let producer = s.spawn(move || {
                when_ready(start, REPEAT, ready, || {
                    self.programs[0][0].run_repeatedly(&PACKET, REPEAT).expect("a run");
                })
            });
            let time = producer.join().expect("the producer");
            stop.store(true, Ordering::Relaxed);
            time
        });
        (time, self.failures() - before)
    }
}

/// The kernel's ring buffer, as user space maps it.
struct KernelRing {
    consumer: *mut u8,
    producer: *mut u8,
}

// SAFETY: one thread reads it.
unsafe impl Sync for KernelRing {}

impl KernelRing {
    fn map(fd: i32) -> KernelRing {
        let (page, rest) = (4096, 4096 + 2 * RING as usize);
        // SAFETY: new mappings at addresses of the system's choice.
        unsafe {
            let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
            let consumer = libc::mmap(std::ptr::null_mut(), page, write, libc::MAP_SHARED, fd, 0);
            let producer = libc::mmap(std::ptr::null_mut(), rest, read, libc::MAP_SHARED, fd, page as i64);
            assert!(consumer != libc::MAP_FAILED && producer != libc::MAP_FAILED, "the ring cannot be mapped");
            KernelRing { consumer: consumer.cast(), producer: producer.cast() }
        }
    }

    /// The positions of consumer and producer.
    fn positions(&self) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: they stand at the beginning of both mappings.
        unsafe { (AtomicU64::from_ptr(self.consumer.cast()), AtomicU64::from_ptr(self.producer.cast())) }
    }

    fn unread(&self) -> u64 {
        let (consumer, producer) = self.positions();
        producer.load(Ordering::Acquire) - consumer.load(Ordering::Acquire)
    }

    /// Takes what is there, as libbpf does; how many records.
    fn poll(&self) -> u64 {
        let (consumer, producer) = self.positions();
        // SAFETY: records stand behind the producer's page.
        unsafe {
            let (mut at, mut records) = (consumer.load(Ordering::Relaxed), 0);
            while at < producer.load(Ordering::Acquire) {
                let record = self.producer.add(4096 + (at & u64::from(RING - 1)) as usize);
                let len = AtomicU32::from_ptr(record.cast()).load(Ordering::Acquire);
                if len & 1 << 31 != 0 {
                    break;
                }
                std::hint::black_box(record.add(8).read_volatile());
                at += (u64::from(len & !(3 << 30)) + 15) & !7;
                records += 1;
                consumer.store(at, Ordering::Release);
            }
            records
        }
    }
}

impl Drop for KernelRing {
    fn drop(&mut self) {
        // SAFETY: the mappings of `map`.
        unsafe {
            libc::munmap(self.consumer.cast(), 4096);
            libc::munmap(self.producer.cast(), 4096 + 2 * RING as usize);
        }
    }
}
