//! Events of the front on functions of another process: its programs run there, and what they tell arrives in maps and
//! rings here. The process is this test's own program, started again.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use kernel::{Kernel, Ours, probed, probed_offset};
use libtest_mimic::{Arguments, Trial};
use script::Attrs;
use skep_subsystem::attach::main_if_requested;
use skep_subsystem::front::Config;

const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const SET_BPF: u32 = 0x4004_2408;
const UPROBE: u32 = 9;
const KPROBE: u32 = 8;
const SELF: &[u8] = b"/proc/self/exe\0";

/// What kprobe events name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn skep_test_function(x: u64) -> u64 {
    std::hint::black_box(x) * 3
}

/// What a USDT probe's counter is: a word in a writable part of the file.
#[unsafe(link_section = ".probes")]
static WANTED: AtomicU16 = AtomicU16::new(0);

/// Where that is in the file.
fn wanted_offset() -> u64 {
    let at = WANTED.as_ptr() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let exe = std::env::current_exe().unwrap();
    let place = maps.lines().filter(|l| l.ends_with(exe.to_str().unwrap())).find_map(|line| {
        let mut parts = line.split_whitespace();
        let (start, end) = parts.next()?.split_once('-')?;
        let number = |s| u64::from_str_radix(s, 16).ok();
        let (start, end, offset) = (number(start)?, number(end)?, number(parts.nth(1)?)?);
        (start..end).contains(&at).then(|| at - start + offset)
    });
    place.expect("the counter is in the file")
}

fn main() {
    main_if_requested();
    if std::env::args().nth(1).as_deref() == Some("be-a-child") {
        return child();
    }
    let args = Arguments::from_args();
    let tests: [(&str, fn()); 9] = [
        ("uprobe", uprobe),
        ("kprobe_of_the_traced_process", kprobe_of_the_traced_process),
        ("many_places_with_cookies", many_places_with_cookies),
        ("perf_buffer", perf_buffer),
        ("results_of_several_programs", results_of_several_programs),
        ("counter_of_a_usdt_probe", counter_of_a_usdt_probe),
        ("no_hit_is_lost_while_others_come_and_go", no_hit_is_lost_while_others_come_and_go),
        ("functions_return_through_changes", functions_return_through_changes),
        ("maps_come_and_go", maps_come_and_go),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit();
}

/// Stays inside until a line comes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn skep_test_wait() -> u64 {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    std::hint::black_box(line.len() as u64)
}

/// Calls the functions from two threads until a line comes; how often.
fn be_busy() -> u64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = || {
            let mut calls = 0;
            while !stop.load(Ordering::Relaxed) {
                std::hint::black_box(probed(calls));
                std::hint::black_box(skep_test_function(calls));
                calls += 1;
            }
            calls
        };
        let threads = [scope.spawn(busy), scope.spawn(busy)];
        std::io::stdin().lock().read_line(&mut String::new()).unwrap();
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().unwrap()).iter().sum()
    })
}

/// Calls both functions as often as a line says, and answers; or until the next line, or waits for it in a function.
fn child() {
    println!("ready");
    let mut line = String::new();
    while {
        line.clear();
        std::io::stdin().lock().read_line(&mut line).is_ok_and(|n| n > 0)
    } {
        match line.trim() {
            "busy" => {
                println!("busy");
                println!("done {}", be_busy());
                continue;
            }
            "wait" => {
                println!("waiting");
                println!("done {}", skep_test_wait());
                continue;
            }
            _ => {}
        }
        let times: u64 = line.trim().parse().unwrap_or(0);
        for n in 0..times {
            std::hint::black_box(probed(n));
            std::hint::black_box(skep_test_function(n));
        }
        println!("done {}", WANTED.load(Ordering::Relaxed));
    }
}

struct Traced {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    ours: Ours,
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Traced {
    fn start() -> Traced {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.arg("be-a-child").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let config = Config { slots: 4, processes: true, traced: Some(child.id()), ..Config::default() };
        let mut traced = Traced { child, stdin, stdout, ours: Ours::with(config) };
        assert_eq!(traced.line(), "ready\n");
        traced
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    fn calls(&mut self, times: u64) {
        writeln!(self.stdin, "{times}").unwrap();
        assert_eq!(self.line(), "done 0\n");
    }

    /// Has the process do something, and waits until it says so.
    fn tell(&mut self, what: &str, answer: &str) {
        writeln!(self.stdin, "{what}").unwrap();
        assert_eq!(self.line().trim(), answer);
    }

    /// Ends what it does; what it says then.
    fn end(&mut self) -> u64 {
        writeln!(self.stdin).unwrap();
        self.line().trim().strip_prefix("done ").and_then(|n| n.parse().ok()).unwrap()
    }

    /// What the counter of the process is.
    fn wanted(&mut self) -> String {
        writeln!(self.stdin, "0").unwrap();
        self.line()
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn load(&self, attach: u32, code: &[u64]) -> i64 {
        let attr = Attrs::new(168).u32(0, 2).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0").u32(68, attach);
        let fd = self.ours.bpf(PROG_LOAD, &mut attr.clone().0);
        assert!(fd >= 0, "{fd}");
        fd
    }

    fn array(&self, ty: u32, value: u32, entries: u32) -> i64 {
        self.ours.bpf(0, &mut Attrs::new(44).u32(0, ty).u32(4, 4).u32(8, value).u32(12, entries).0)
    }

    fn value(&self, map: i64, key: u32) -> u64 {
        let (key, value) = ([key], [0u64]);
        let mut attr = Attrs::new(32).u32(0, map as u32).ptr(8, &key).ptr(16, &value);
        assert_eq!(self.ours.bpf(1, &mut attr.0), 0);
        // SAFETY: the call has written it.
        unsafe { value.as_ptr().read_volatile() }
    }

    fn open(&self, attr: &Attrs) -> i64 {
        self.ours.perf_open(attr.0.as_ptr() as u64, self.pid(), -1, -1, 0)
    }

    fn count(&self, fd: i64) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(self.ours.read(fd, &mut bytes), 8);
        u64::from_ne_bytes(bytes)
    }

    /// Waits until an event has counted so many: its process tells in its own time.
    fn counted(&self, fd: i64, expected: u64) {
        let start = Instant::now();
        while self.count(fd) != expected && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(self.count(fd), expected);
    }
}

/// Adds to the value of an array what a helper returns (0 for one), and returns 1.
fn adds(map: i64, helper: u64) -> Vec<u64> {
    vec![
        0xb7 | 0x07 << 8 | 1 << 32, // r7 = 1
        if helper == 0 { 0xb7 | 1 << 32 } else { 0x85 | helper << 32 },
        0xbf | 0x07 << 8,                // r7 = r0
        0x62 | 0x0a << 8 | 0xfffc << 16, // *(u32 *)(r10 - 4) = 0
        0x18 | 0x11 << 8 | (map as u64) << 32,
        0,
        0xbf | 0xa2 << 8,
        0x07 | 0x02 << 8 | 0xffff_fffc << 32,
        0x85 | 1 << 32,   // map_lookup_elem
        0x15 | 1 << 16,   // if r0 == 0 goto +1
        0xdb | 0x70 << 8, // lock *(u64 *)r0 += r7
        0xb7 | 1 << 32,
        0x95,
    ]
}

fn sampling(kind: u32, config: u64) -> Attrs {
    Attrs::new(136).u32(0, kind).u32(4, 136).u64(8, config).u64(16, 1).u64(24, 1 | 2 | 1 << 10)
}

/// Records in a ring: their sizes.
fn records(at: i64) -> Vec<u16> {
    let base = at as *const u8;
    let mut sizes = Vec::new();
    // SAFETY: a mapped ring, of which only what is complete is read.
    unsafe {
        let (head, mut tail) = (base.add(1024).cast::<u64>().read_volatile(), base.add(1032).cast::<u64>().read());
        while tail < head {
            let size = base.add(4096 + (tail as usize & 0x3fff) + 6).cast::<u16>().read();
            sizes.push(size);
            tail += u64::from(size.max(8));
        }
    }
    sizes
}

fn uprobe() {
    let mut t = Traced::start();
    let attr = sampling(UPROBE, 0).ptr(56, SELF).u64(64, probed_offset());
    let event = t.open(&attr);
    assert!(event >= 0, "{event}");
    let ring = t.ours.map(event, 5 * 4096, 0, true);
    t.calls(2);
    t.counted(event, 2);
    let map = t.array(2, 8, 1);
    let prog = t.load(0, &adds(map, 0));
    assert_eq!(t.ours.ioctl(event, SET_BPF, prog as u64), 0);
    t.calls(3);
    assert_eq!(t.value(map, 0), 3, "the program runs in the process");
    t.counted(event, 5);
    let start = Instant::now();
    // What is counted is written behind that.
    while records(ring).len() < 5 && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(records(ring), [48; 5]);
    t.calls(2);
    t.counted(event, 7);
    t.ours.ioctl(event, 0x2401, 0);
    t.calls(2);
    assert_eq!(t.value(map, 0), 7, "programs do not care that the event is disabled");
    t.ours.unmap(ring, 5 * 4096);
    t.ours.close(event);
    t.calls(3);
    assert_eq!(t.value(map, 0), 7);
    for fd in [map, prog] {
        t.ours.close(fd);
    }
    assert_eq!(t.ours.left(), Default::default());
    // A process that is not there.
    let _ = t.child.kill();
    let _ = t.child.wait();
    assert_eq!(t.open(&attr), -3);
}

fn kprobe_of_the_traced_process() {
    let mut t = Traced::start();
    let named = |name: &'static [u8], ret: u64| sampling(KPROBE, ret).ptr(56, name);
    assert_eq!(t.open(&named(b"no_function_of_that_name\0", 0)), -2);
    let entry = t.open(&named(b"skep_test_function\0", 0));
    let exit = t.open(&named(b"skep_test_function\0", 1));
    assert!(entry >= 0 && exit >= 0, "{entry} {exit}");
    let map = t.array(2, 8, 1);
    let one = t.load(0, &adds(map, 0));
    let link = t.ours.bpf(LINK_CREATE, &mut Attrs::new(64).u32(0, one as u32).u32(4, entry as u32).u32(8, 41).0);
    assert!(link >= 0, "{link}");
    let other = t.load(0, &adds(map, 0));
    assert_eq!(t.ours.ioctl(exit, SET_BPF, other as u64), 0);
    t.calls(4);
    assert_eq!(t.value(map, 0), 8);
    t.counted(entry, 4);
    t.counted(exit, 4);
    t.ours.close(link);
    t.calls(4);
    assert_eq!(t.value(map, 0), 12, "the other one is still there");
    // The same by the tracefs.
    let path = "/sys/kernel/tracing/kprobe_events";
    assert_eq!(t.ours.write(path, "p:fn skep_test_function", false), 0);
    assert_eq!(t.ours.write(path, "p:fn2 no_function_of_that_name", false), -22);
    let id = t.ours.file("/sys/kernel/tracing/events/kprobes/fn/id").unwrap();
    let traced = t.open(&sampling(2, id.trim().parse().unwrap()));
    assert_eq!(t.ours.ioctl(traced, SET_BPF, one as u64), 0);
    t.calls(1);
    assert_eq!(t.value(map, 0), 14);
    t.counted(traced, 1);
}

fn many_places_with_cookies() {
    let mut t = Traced::start();
    let map = t.array(2, 8, 1);
    let prog = t.load(48, &adds(map, 174));
    let (offsets, cookies) = ([probed_offset()], [1000u64]);
    let attr = Attrs::new(64).u32(0, prog as u32).u32(8, 48).ptr(16, SELF).ptr(24, &offsets).ptr(40, &cookies);
    let attr = attr.u32(48, 1).u32(56, t.child.id());
    let link = t.ours.bpf(LINK_CREATE, &mut attr.clone().0);
    assert!(link >= 0, "{link}");
    t.calls(3);
    assert_eq!(t.value(map, 0), 3000);
    t.ours.close(link);
    t.calls(3);
    assert_eq!(t.value(map, 0), 3000);
}

/// What programs of another process write to a perf event array arrives in the ring of the CPU's event.
fn perf_buffer() {
    let mut t = Traced::start();
    let array = t.array(4, 4, 4);
    let mut rings = Vec::new();
    for cpu in 0..4 {
        let attr = Attrs::new(136).u32(0, 1).u32(4, 136).u64(8, 10).u64(16, 1).u64(24, 1 << 10).u32(48, 1);
        let event = t.ours.perf_open(attr.0.as_ptr() as u64, -1, cpu, -1, 8);
        rings.push((event, t.ours.map(event, 5 * 4096, 0, true)));
        let (key, value) = ([cpu as u32], [event as u32]);
        let mut update = Attrs::new(32).u32(0, array as u32).ptr(8, &key).ptr(16, &value);
        assert_eq!(t.ours.bpf(2, &mut update.0), 0);
    }
    let code = [
        0x7a | 0x0a << 8 | 0xfff8 << 16 | 7 << 32, // *(u64 *)(r10 - 8) = 7
        0x18 | 0x12 << 8 | (array as u64) << 32,   // r2 = array
        0,
        0x18 | 0x03 << 8 | 0xffff_ffff << 32, // r3 = current CPU
        0,
        0xbf | 0xa4 << 8, // r4 = r10 - 8
        0x07 | 0x04 << 8 | 0xffff_fff8 << 32,
        0xb7 | 0x05 << 8 | 8 << 32,
        0x85 | 25 << 32, // perf_event_output
        0xb7,
        0x95,
    ];
    let prog = t.load(0, &code);
    let event = t.open(&sampling(UPROBE, 0).ptr(56, SELF).u64(64, probed_offset()));
    assert_eq!(t.ours.ioctl(event, SET_BPF, prog as u64), 0);
    t.calls(6);
    let start = Instant::now();
    let found = || rings.iter().flat_map(|(_, at)| records(*at)).collect::<Vec<_>>();
    while found().len() < 6 && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(found(), [24; 6]);
}

/// Programs on one event: all run, and all must agree.
fn results_of_several_programs() {
    let mut t = Traced::start();
    assert_eq!(t.ours.write("/sys/kernel/tracing/kprobe_events", "p:fn skep_test_function", false), 0);
    let id = t.ours.file("/sys/kernel/tracing/events/kprobes/fn/id").unwrap().trim().parse().unwrap();
    let (first, second) = (t.open(&sampling(2, id)), t.open(&sampling(2, id)));
    let map = t.array(2, 8, 1);
    let one = t.load(0, &adds(map, 0));
    let mut code = adds(map, 0);
    let at = code.len() - 2;
    code[at] = 0xb7;
    let zero = t.load(0, &code);
    assert_eq!(t.ours.ioctl(first, SET_BPF, one as u64), 0);
    t.calls(2);
    t.counted(first, 2);
    t.counted(second, 2);
    assert_eq!(t.ours.ioctl(second, SET_BPF, zero as u64), 0);
    t.calls(3);
    assert_eq!(t.value(map, 0), 8);
    t.ours.close(second);
    t.calls(1);
    t.counted(first, 3);
    assert_eq!(t.value(map, 0), 9);
}

fn counter_of_a_usdt_probe() {
    let mut t = Traced::start();
    assert_eq!(t.wanted(), "done 0\n");
    let attr = sampling(UPROBE, wanted_offset() << 32).ptr(56, SELF).u64(64, probed_offset());
    let (a, b) = (t.open(&attr), t.open(&attr));
    assert!(a >= 0 && b >= 0, "{a} {b}");
    assert_eq!(t.wanted(), "done 1\n", "the place counts once, as with the kernel");
    t.ours.close(a);
    assert_eq!(t.wanted(), "done 1\n");
    t.ours.close(b);
    assert_eq!(t.wanted(), "done 0\n");
}

/// Places, programs and return probes that are added and taken away leave the others alone, to the last hit.
fn no_hit_is_lost_while_others_come_and_go() {
    let mut t = Traced::start();
    let map = t.array(2, 8, 1);
    let prog = t.load(0, &adds(map, 0));
    let uprobe = |config: u64| sampling(UPROBE, config).ptr(56, SELF).u64(64, probed_offset());
    let event = t.open(&uprobe(0));
    assert_eq!(t.ours.ioctl(event, SET_BPF, prog as u64), 0);
    t.tell("busy", "busy");
    for n in 0..12 {
        // At another function, at the same place, at the return of both; with programs and without.
        let other = t.open(&sampling(KPROBE, n % 2).ptr(56, b"skep_test_function\0"));
        let same = t.open(&uprobe(n / 2 % 2));
        assert!(other >= 0 && same >= 0, "{n}: {other} {same} {:?}", t.child.try_wait());
        let counted = t.array(2, 8, 1);
        let counts = t.load(0, &adds(counted, 0));
        for fd in [other, same] {
            assert_eq!(t.ours.ioctl(fd, SET_BPF, counts as u64), 0);
        }
        for fd in [other, counts, counted, same] {
            t.ours.close(fd);
        }
    }
    let calls = t.end();
    assert!(calls > 1000, "{calls}");
    assert_eq!(t.value(map, 0), calls);
}

/// A function that is active while places come and go returns to its probe.
fn functions_return_through_changes() {
    let mut t = Traced::start();
    let map = t.array(2, 8, 1);
    let prog = t.load(0, &adds(map, 0));
    let exit = t.open(&sampling(KPROBE, 1).ptr(56, b"skep_test_wait\0"));
    assert_eq!(t.ours.ioctl(exit, SET_BPF, prog as u64), 0);
    t.tell("wait", "waiting");
    std::thread::sleep(Duration::from_millis(20));
    for _ in 0..3 {
        let other = t.open(&sampling(KPROBE, 1).ptr(56, b"skep_test_function\0"));
        let second = t.open(&sampling(KPROBE, 1).ptr(56, b"skep_test_wait\0"));
        t.ours.close(other);
        t.ours.close(second);
    }
    assert_eq!(t.value(map, 0), 0);
    t.end();
    assert_eq!(t.value(map, 0), 1);
    // And one that is active when its probe goes returns to nobody.
    t.tell("wait", "waiting");
    std::thread::sleep(Duration::from_millis(20));
    t.ours.close(exit);
    let other = t.open(&sampling(KPROBE, 0).ptr(56, b"skep_test_function\0"));
    assert_eq!(t.ours.ioctl(other, SET_BPF, prog as u64), 0);
    t.end();
    assert_eq!(t.value(map, 0), 1);
    t.calls(1);
    assert_eq!(t.value(map, 0), 2);
}

/// More maps and places, one after another, than a process was first made room for; small maps share memory.
fn maps_come_and_go() {
    let mut t = Traced::start();
    let uprobe = sampling(UPROBE, 0).ptr(56, SELF).u64(64, probed_offset());
    let first = t.open(&uprobe);
    assert!(first >= 0, "{first}");
    let mut kept = Vec::new();
    for n in 0..60 {
        let map = t.array(if n % 2 == 0 { 2 } else { 6 }, 8, 1);
        let prog = t.load(0, &adds(if n % 2 == 0 { map } else { kept[0] }, 0));
        let event = t.open(&uprobe);
        if n >= 15 {
            // A place has room for 16 links.
            assert_eq!(event, -95);
            break;
        }
        assert_eq!(t.ours.ioctl(event, SET_BPF, prog as u64), 0);
        kept.push(map);
    }
    t.calls(2);
    assert_eq!((t.value(kept[0], 0), t.value(kept[2], 0)), (2 + 7 * 2, 2));
    for round in 0..60 {
        let map = t.array(2, 8, 1);
        let prog = t.load(0, &adds(map, 0));
        let event = t.open(&sampling(KPROBE, round % 2).ptr(56, b"skep_test_function\0"));
        assert_eq!(t.ours.ioctl(event, SET_BPF, prog as u64), 0);
        t.calls(1);
        assert_eq!(t.value(map, 0), 1, "round {round}");
        for fd in [event, prog, map] {
            t.ours.close(fd);
        }
    }
}
