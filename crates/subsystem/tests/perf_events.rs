//! Perf events and links in process: functions that this process publishes fire programs, counts and samples are as the
//! kernel was measured.

#[path = "calls/kernel.rs"]
mod kernel;
#[path = "calls/script.rs"]
mod script;

use kernel::{Kernel, Ours};
use script::Attrs;
use skep_ebpf::uapi::PtRegs;
use skep_subsystem::front::perf::PerfMapping;
use skep_subsystem::front::tracefs::{Open, TracepointDef};

const PROG_LOAD: u32 = 5;
const RAW_OPEN: u32 = 17;
const LINK_CREATE: u32 = 28;
const LINK_INFO: u32 = 15;
const SET_BPF: u32 = 0x4004_2408;
const DISABLE: u32 = 0x2401;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
const EBUSY: i64 = -16;
const ENOENT: i64 = -2;
const EILSEQ: i64 = -84;
const EFAULT: i64 = -14;

/// `r0 = x; exit`.
fn returns(x: i32) -> Vec<u64> {
    vec![0xb7 | u64::from(x as u32) << 32, 0x95]
}

/// Adds one to the first value of an array, and returns a number.
fn counts(map: i64, x: i32) -> Vec<u64> {
    vec![
        0x0062 | 0x0a << 8 | 0xfffc << 16, // *(u32 *)(r10 - 4) = 0
        0x18 | 0x11 << 8 | (map as u64) << 32,
        0,
        0xbf | 0xa2 << 8, // r2 = r10
        0x07 | 0x02 << 8 | 0xffff_fffc << 32,
        0x85 | 1 << 32, // map_lookup_elem
        0x15 | 2 << 16, // if r0 == 0 goto +2
        0xb7 | 0x01 << 8 | 1 << 32,
        0xdb | 0x10 << 8, // lock *(u64 *)r0 += r1
        0xb7 | u64::from(x as u32) << 32,
        0x95,
    ]
}

struct World {
    ours: Ours,
}

fn ret(r: Result<i32, skep_subsystem::front::Errno>) -> i64 {
    r.map_or_else(|e| -i64::from(e.0), i64::from)
}

fn program(ty: u32, code: &[u64]) -> Attrs {
    Attrs::new(168).u32(0, ty).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0")
}

impl World {
    fn new() -> World {
        World { ours: Ours::new(4) }
    }

    fn load(&self, ty: u32, attach: u32, code: &[u64]) -> i64 {
        self.ours.bpf(PROG_LOAD, &mut program(ty, code).u32(68, attach).0)
    }

    fn counter(&self) -> i64 {
        self.ours.bpf(0, &mut Attrs::new(44).u32(0, 2).u32(4, 4).u32(8, 8).u32(12, 1).0)
    }

    /// What the counting programs counted since the last asking.
    fn ran(&self, map: i64) -> u64 {
        let (key, value) = ([0u32], [0u64]);
        let mut attr = Attrs::new(32).u32(0, map as u32).ptr(8, &key).ptr(16, &value);
        assert_eq!(self.ours.bpf(1, &mut attr.0), 0);
        // SAFETY: the call has written it.
        let found = unsafe { value.as_ptr().read_volatile() };
        let zero = [0u64];
        let mut attr = Attrs::new(32).u32(0, map as u32).ptr(8, &key).ptr(16, &zero);
        assert_eq!(self.ours.bpf(2, &mut attr.0), 0);
        found
    }

    fn open(&self, attr: &Attrs, pid: i32, cpu: i32) -> i64 {
        let at = attr.0.as_ptr() as u64;
        ret(self.ours.subsystem.perf_event_open(&self.ours.client, at, pid, cpu, -1, 8))
    }

    fn ioctl(&self, fd: i64, request: u32, arg: u64) -> i64 {
        ret(self.ours.subsystem.perf_ioctl(&self.ours.client, fd as i32, request, arg))
    }

    fn map(&self, fd: i64) -> PerfMapping {
        self.ours.subsystem.perf_mmap(&self.ours.client, fd as i32, 9 * 4096, 0, true).unwrap()
    }

    fn count(&self, fd: i64) -> u64 {
        let bytes = self.ours.subsystem.perf_read(&self.ours.client, fd as i32, 64).unwrap();
        u64::from_ne_bytes(*bytes.first_chunk().unwrap())
    }

    fn write(&self, text: &str) -> i64 {
        let path = "/sys/kernel/tracing/kprobe_events";
        self.ours.subsystem.write_file(path, text, Open::Append).map_or_else(|e| -i64::from(e.0), |()| 0)
    }

    fn id(&self, event: &str) -> u64 {
        let path = format!("/sys/kernel/tracing/events/{event}/id");
        self.ours.subsystem.read_file(&path).unwrap().trim().parse().unwrap()
    }

    fn link(&self, attr: &Attrs) -> i64 {
        self.ours.bpf(LINK_CREATE, &mut attr.clone().0)
    }
}

/// `PERF_SAMPLE_IP | TID | RAW`, a sample for each hit.
fn tracepoint(id: u64) -> Attrs {
    Attrs::new(136).u32(0, 2).u32(4, 136).u64(8, id).u64(16, 1).u64(24, 1 | 2 | 1 << 10)
}

fn kprobe(name: &[u8], ret: bool) -> Attrs {
    Attrs::new(136).u32(0, 8).u32(4, 136).u64(8, ret.into()).u64(16, 1).u64(24, 1 | 2 | 1 << 10).ptr(56, name)
}

/// The records of a ring, which is emptied.
fn records(mapping: &PerfMapping) -> Vec<Vec<u8>> {
    let base = mapping.ring().arena().ptr();
    let word = |at: usize| base.wrapping_add(at).cast::<u64>();
    let mut found = Vec::new();
    // SAFETY: the ring's memory, which no other thread writes; records wrap at its end.
    unsafe {
        let (head, mut tail) = (word(1024).read_volatile(), word(1032).read_volatile());
        let size = word(1048).read();
        let byte = |at: u64| base.wrapping_add(4096 + (at % size) as usize).read();
        while tail < head {
            let len = u64::from(byte(tail + 6)) | u64::from(byte(tail + 7)) << 8;
            found.push((tail..tail + len).map(byte).collect());
            tail += len;
        }
        word(1032).write_volatile(tail);
    }
    found
}

fn regs(rdi: u64) -> PtRegs {
    PtRegs { rdi, rip: 0x1000, ..PtRegs::default() }
}

/// The table "event made in tracefs kprobe_events", row by row.
#[test]
fn tracefs_kprobe_event() {
    let w = World::new();
    let f = w.ours.subsystem.functions().publish("getpgid", 0x1000, None);
    let value = [0u8; 112].iter().copied().chain((-7i32).to_ne_bytes()).collect::<Vec<_>>();
    let hit = |times: u32| (0..times).for_each(|_| f.enter(&regs(value.as_ptr() as u64)));

    assert_eq!(w.write("p:kprobes/ev1 getpgid regs=%di:x64 n=+112(%di):s32"), 0);
    assert_eq!(w.write("p:kprobes/ev1 getpgid regs=%di:x64 n=+112(%di):s32"), EEXIST);
    assert_eq!(w.write("p:kprobes/ev1 getpgid"), EEXIST);
    assert_eq!(w.write("p:kprobes/x nothing_of_that_name"), EINVAL);
    assert_eq!(w.write("p:kprobes/x getpgid+1"), EILSEQ);
    assert_eq!(w.write("r:kprobes/x getpgid+8"), EINVAL);
    assert_eq!(w.write("p:kprobes/x getpgid r=$retval"), EINVAL);
    let id = w.id("kprobes/ev1");
    let format = w.ours.subsystem.read_file("/sys/kernel/tracing/events/kprobes/ev1/format").unwrap();
    assert_eq!(
        format,
        format!(
            "name: ev1\nID: {id}\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
             \tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n\
             \tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n\
             \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
             \tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n\
             \tfield:u64 regs;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:s32 n;\toffset:24;\tsize:4;\tsigned:1;\n\n\
             print fmt: \"(%lx) regs=0x%Lx n=%d\", REC->__probe_ip, REC->regs, REC->n\n"
        )
    );

    let first = w.open(&tracepoint(id), 0, -1);
    assert!(first >= 0, "{first}");
    let ring = w.map(first);
    hit(3);
    assert_eq!(w.count(first), 3);
    let found = records(&ring);
    assert_eq!(found.len(), 3);
    let tid = w.ours.client.tid();
    let mut expected = Vec::new();
    expected.extend([9, 0, 0, 0, 1, 0, 56, 0]);
    expected.extend(0x1001u64.to_ne_bytes());
    expected.extend(std::process::id().to_ne_bytes());
    expected.extend(tid.to_ne_bytes());
    expected.extend(28u32.to_ne_bytes());
    expected.extend((id as u16).to_ne_bytes());
    expected.extend([0, 0]);
    expected.extend(tid.to_ne_bytes());
    expected.extend(0x1000u64.to_ne_bytes());
    expected.extend((value.as_ptr() as u64).to_ne_bytes());
    expected.extend((-7i32).to_ne_bytes());
    assert_eq!(found[0], expected);

    let map = w.counter();
    let zero = w.load(2, 0, &counts(map, 0));
    assert_eq!(w.ioctl(first, SET_BPF, zero as u64), 0);
    hit(3);
    assert_eq!((w.count(first), w.ran(map), records(&ring).len()), (3, 3, 0));
    let one = w.load(2, 0, &counts(map, 1));
    assert_eq!(w.ioctl(first, SET_BPF, one as u64), EEXIST);
    assert_eq!(w.ioctl(first, SET_BPF, zero as u64), EEXIST);
    let second = w.open(&tracepoint(id), 0, -1);
    let second_ring = w.map(second);
    assert_eq!(w.ioctl(second, SET_BPF, zero as u64), EEXIST);
    assert_eq!(w.ioctl(second, SET_BPF, one as u64), 0);
    hit(3);
    // Both run, and the results are combined with AND.
    assert_eq!((w.ran(map), w.count(first), w.count(second)), (6, 3, 0));
    w.ours.close(first);
    hit(1);
    assert_eq!((w.ran(map), w.count(second)), (2, 0), "the ring that is mapped holds the event");
    drop(ring);
    hit(3);
    assert_eq!((w.ran(map), w.count(second), records(&second_ring).len()), (3, 3, 3));

    let mut query = [4u32, 0, 0, 0, 0, 0];
    assert_eq!(w.ioctl(second, 0xc008_240a, query.as_mut_ptr() as u64), 0);
    assert_eq!(query[1], 1);
    let name = [0u8; 32];
    let mut attr = Attrs::new(48).u32(0, std::process::id()).u32(4, second as u32).u32(12, 32).ptr(16, &name);
    assert_eq!(w.ours.bpf(20, &mut attr.0), 0);
    assert_eq!((&name[..8], attr.0[12], attr.0[28], attr.0[32]), (&b"getpgid\0"[..], 7, 2, 0));
    assert_eq!(attr.0[40..42], [0, 0x10]);

    assert_eq!(w.write("-:kprobes/ev1"), EBUSY);
    assert_eq!(w.ioctl(second, DISABLE, 0), 0);
    hit(3);
    assert_eq!((w.ran(map), w.count(second)), (3, 3), "programs do not care");
    std::thread::scope(|s| s.spawn(|| hit(5)).join().unwrap());
    assert_eq!((w.ran(map), w.count(second)), (5, 3), "nor for the event's thread");
    drop(second_ring);
    w.ours.close(second);
    hit(3);
    assert_eq!(w.ran(map), 0);
    assert_eq!(w.write("-:kprobes/ev1"), 0);
    assert_eq!(w.open(&tracepoint(id), 0, -1), EINVAL);
    assert_eq!(w.open(&tracepoint(60_000), 0, -1), EINVAL);
    assert_eq!(w.write("p:kprobes/ev2 getpgid"), 0);
    assert_eq!(w.id("kprobes/ev2"), id);
}

/// The rest of that table: other programs, and links.
#[test]
fn what_may_be_attached() {
    let w = World::new();
    let f = w.ours.subsystem.functions().publish("getpgid", 0x1000, None);
    assert_eq!(w.write("p:ev2 getpgid"), 0);
    let event = w.open(&tracepoint(w.id("kprobes/ev2")).u64(40, 1), 0, -1);
    for ty in [5, 7, 6, 17] {
        let prog = w.load(ty, 0, &returns(1));
        assert!(prog >= 0, "type {ty}: {prog}");
        assert_eq!(w.ioctl(event, SET_BPF, prog as u64), EINVAL, "type {ty}");
    }
    assert_eq!(w.ioctl(event, SET_BPF, event as u64), EINVAL);
    assert_eq!(w.ioctl(event, SET_BPF, 999), -9);
    let map = w.counter();
    let prog = w.load(2, 0, &counts(map, 1));
    let link = w.link(&Attrs::new(64).u32(0, prog as u32).u32(4, event as u32).u32(8, 41).u64(16, 0x77));
    assert!(link >= 0, "{link}");
    f.enter(&regs(0));
    f.enter(&regs(0));
    assert_eq!((w.ran(map), w.count(event)), (2, 0), "the event is disabled");
    assert_eq!(w.ioctl(event, SET_BPF, prog as u64), EEXIST);
    let (mut info, name) = ([0u64; 8], [0u8; 16]);
    (info[3], info[4]) = (name.as_ptr() as u64, 16);
    let mut attr = Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &info);
    assert_eq!(w.ours.bpf(LINK_INFO, &mut attr.0), 0);
    // SAFETY: the call has written it.
    let info = unsafe { (&raw const info).read_volatile() };
    assert_eq!((info[0] as u32, info[2] as u32, info[4] as u32, info[4] >> 32), (7, 3, 8, 0));
    assert_eq!((info[5], info[6], info[7], &name[..8]), (0x1000, 0, 0x77, &b"getpgid\0"[..]));
    w.ours.close(event);
    f.enter(&regs(0));
    assert_eq!(w.ran(map), 1, "the link holds the event");
    w.ours.close(link);
    f.enter(&regs(0));
    assert_eq!(w.ran(map), 0);
    let profile = w.ours.subsystem.read_file("/sys/kernel/tracing/kprobe_profile").unwrap();
    assert_eq!(profile.split_whitespace().collect::<Vec<_>>(), ["ev2", "3", "0"]);
    // A kprobe program on a software event; one for multi-links on this one.
    let software = w.open(&Attrs::new(136).u32(0, 1).u32(4, 136).u64(8, 10), -1, 0);
    assert!(software >= 0);
    assert_eq!(w.ioctl(software, SET_BPF, prog as u64), EINVAL);
    let event = w.open(&tracepoint(w.id("kprobes/ev2")), 0, -1);
    let multi = w.load(2, 42, &returns(1));
    assert_eq!(w.ioctl(event, SET_BPF, multi as u64), 0);
}

/// The table "kprobe PMU".
#[test]
fn kprobe_pmu() {
    let w = World::new();
    let f = w.ours.subsystem.functions().publish("getpgid", 0x1000, None);
    let read = |path: &str| w.ours.subsystem.read_file(&format!("/sys/bus/event_source/devices/{path}")).unwrap();
    assert_eq!((read("kprobe/type"), read("kprobe/format/retprobe")), ("8\n".into(), "config:0\n".into()));
    let event = w.open(&kprobe(b"getpgid\0", false), 0, -1);
    let ring = w.map(event);
    f.enter(&regs(0));
    f.enter(&regs(0));
    assert_eq!(w.count(event), 2);
    let found = records(&ring);
    assert_eq!((found.len(), found[0].len(), found[0][24], &found[0][28..30]), (2, 48, 20, &[0, 0][..]));
    let map = w.counter();
    let zero = w.load(2, 0, &counts(map, 0));
    assert_eq!(w.ioctl(event, SET_BPF, zero as u64), 0);
    f.enter(&regs(0));
    assert_eq!((w.ran(map), w.count(event)), (1, 2));
    w.ours.close(event);
    f.enter(&regs(0));
    assert_eq!(w.ran(map), 1, "its ring is mapped");
    drop(ring);
    f.enter(&regs(0));
    assert_eq!(w.ran(map), 0);

    let back = w.open(&kprobe(b"getpgid\0", true), 0, -1);
    let ring = w.map(back);
    f.leave(&PtRegs { rip: 0x2000, ..PtRegs::default() });
    let found = records(&ring);
    assert_eq!((found.len(), found[0].len()), (1, 56));
    assert_eq!(found[0][8..16], 0x2000u64.to_ne_bytes());
    assert_eq!(found[0][36..52], [0x1000u64.to_ne_bytes(), 0x2000u64.to_ne_bytes()].concat());

    for (what, attr, expected) in [
        ("unknown function", kprobe(b"nothing\0", false), ENOENT),
        ("inside an instruction", kprobe(b"getpgid\0", false).u64(64, 1), EILSEQ),
        ("return probe with offset", kprobe(b"getpgid\0", true).u64(64, 8), EINVAL),
        ("no name, address 0", kprobe(b"", false).u64(56, 0), EINVAL),
        ("no name, address", kprobe(b"", false).u64(56, 0).u64(64, 0x5000), ENOENT),
        ("empty name", kprobe(b"\0", false), EINVAL),
        ("bad pointer", kprobe(b"", false).u64(56, 8), EFAULT),
        ("absent module", kprobe(b"module:getpgid\0", false), ENOENT),
    ] {
        assert_eq!(w.open(&attr, 0, -1), expected, "{what}");
    }
    for bit in [1, 32] {
        assert!(w.open(&kprobe(b"getpgid\0", false).u64(8, 1 << bit), 0, -1) >= 0, "config bit {bit}");
    }
    // Two events on one function are separate.
    let (a, b) = (w.open(&kprobe(b"getpgid\0", false), 0, -1), w.open(&kprobe(b"getpgid\0", false), 0, -1));
    let one = w.load(2, 0, &counts(map, 1));
    assert_eq!((w.ioctl(a, SET_BPF, zero as u64), w.ioctl(b, SET_BPF, one as u64)), (0, 0));
    f.enter(&regs(0));
    f.enter(&regs(0));
    assert_eq!((w.ran(map), w.count(a), w.count(b)), (4, 0, 2));
}

/// Tracepoints and raw tracepoints that this process publishes.
#[test]
fn published_tracepoints() {
    let w = World::new();
    let def = TracepointDef { group: "app".into(), name: "request".into(), fields: Vec::new() };
    let tracepoint_of = w.ours.subsystem.publish_tracepoint(&def).unwrap();
    let event = w.open(&tracepoint(w.id("app/request")), -1, 0);
    assert!(event >= 0, "{event}");
    let map = w.counter();
    let prog = w.load(5, 0, &counts(map, 1));
    assert_eq!(w.ioctl(event, SET_BPF, prog as u64), 0);
    let kprobe = w.load(2, 0, &returns(1));
    assert_eq!(w.ioctl(event, SET_BPF, kprobe as u64), EINVAL);
    let raw = w.load(17, 0, &counts(map, 0));
    let name = b"request\0";
    let link = w.ours.bpf(RAW_OPEN, &mut Attrs::new(24).ptr(0, name).u32(8, raw as u32).0);
    assert!(link >= 0, "{link}");
    tracepoint_of.fire(&[1, 2], &5u64.to_ne_bytes());
    assert_eq!((w.ran(map), w.count(event)), (2, 1));
    w.ours.close(link);
    tracepoint_of.fire(&[1, 2], &5u64.to_ne_bytes());
    assert_eq!((w.ran(map), w.count(event)), (1, 2));
    assert!(w.ours.subsystem.withdraw_tracepoint(&tracepoint_of).is_err(), "in use");
    w.ours.close(event);
    w.ours.subsystem.withdraw_tracepoint(&tracepoint_of).unwrap();
    let unknown = w.ours.bpf(RAW_OPEN, &mut Attrs::new(24).ptr(0, name).u32(8, raw as u32).0);
    assert_eq!(unknown, ENOENT);
}

/// A simple generator, seeded: the same numbers in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }

    /// Often small, at times anything.
    fn word(&mut self) -> u32 {
        let n = self.next() as u32;
        match self.next() % 8 {
            0 => n,
            1 => u32::MAX,
            2 => 1 << (n % 32),
            _ => n % 12,
        }
    }
}

/// Any attributes, requests and lines: nothing panics, and nothing is left.
#[test]
fn anything_at_all() {
    let w = World::new();
    let rounds: u32 = std::env::var("SKEP_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let path = std::env::current_exe().unwrap();
    let path = path.to_str().unwrap();
    let f = w.ours.subsystem.functions().publish("getpgid", 0x1000, Some((path, 16)));
    let (name, file) = (b"getpgid\0", [path.as_bytes(), b"\0"].concat());
    let progs = [(2, 0), (2, 42), (2, 48), (5, 0), (7, 0), (17, 0)].map(|(ty, attach)| w.load(ty, attach, &returns(1)));
    let map = w.ours.bpf(0, &mut Attrs::new(44).u32(0, 4).u32(4, 4).u32(8, 4).u32(12, 4).0);
    let before = w.ours.left();
    let mut random = Random(1);
    let mut fds: Vec<i64> = Vec::new();
    let mut mapped = Vec::new();
    let words = [
        "p",
        "r",
        "p:g/e",
        "r:e",
        "-:e",
        "-:g/e",
        "getpgid",
        "getpgid+1",
        path,
        ":16",
        "a=%di",
        "$retval",
        "+8(%si):u32",
        "c=$comm:string",
        "b=%ax:b4@2/32",
        "\n",
        "#",
        "x=\\5:s8[3]",
        "@0x10",
        "%return",
        "(2)",
        "$arg1",
        "$stack9",
    ];
    for _ in 0..rounds {
        let mut attr = Attrs::new(136).u32(0, [1, 2, 8, 9][random.next() as usize % 4]).u32(4, 136);
        attr = attr
            .u64(8, random.word().into())
            .u64(16, (random.word() % 3).into())
            .u64(24, u64::from(random.word() & 0xf_ffff));
        for _ in 0..random.next() % 4 {
            attr = attr.u32((random.next() % 34) as usize * 4, random.word());
        }
        attr = if random.next().is_multiple_of(2) { attr.ptr(56, name) } else { attr.ptr(56, &file) };
        let pick = |fds: &[i64], n: u64| fds.get(n as usize % fds.len().max(1)).copied().unwrap_or(-1);
        let (group, fd) = (pick(&fds, random.next()), pick(&fds, random.next()));
        let prog = progs[random.next() as usize % progs.len()];
        match random.next() % 10 {
            0..3 => {
                let at = attr.0.as_ptr() as u64;
                let (pid, cpu) = ((random.word() % 2) as i32 - 1, (random.word() % 6) as i32 - 1);
                let group = if random.next().is_multiple_of(3) { group } else { -1 };
                fds.extend(
                    w.ours
                        .subsystem
                        .perf_event_open(&w.ours.client, at, pid, cpu, group as i32, random.word().into())
                        .ok()
                        .map(i64::from),
                );
            }
            3 => {
                let request = [0x2400, 0x2401, 0x2402, 0x2403, 0x4008_2404, 0x2405, SET_BPF, 0xc008_240a]
                    [random.next() as usize % 8];
                let arg = [prog as u64, group as u64, random.word().into(), attr.0.as_ptr() as u64]
                    [random.next() as usize % 4];
                w.ioctl(fd, request, arg);
            }
            4 => {
                let len = u64::from(random.word() % 10) * 4096;
                mapped.extend(w.ours.subsystem.perf_mmap(&w.ours.client, fd as i32, len, 0, true));
            }
            5 => {
                let names = [name.as_ptr() as u64];
                let offsets = [16u64];
                let link = Attrs::new(64).u32(0, prog as u32).u32(4, fd as u32);
                let kind = [41, 42, 48, random.word()][random.next() as usize % 4];
                let link = match kind {
                    42 => link.u32(20, 1).ptr(24, &names),
                    48 => link.ptr(16, &file).ptr(24, &offsets).u32(48, 1),
                    _ => link,
                };
                fds.extend(Some(w.link(&link.u32(8, kind))).filter(|r| *r >= 0));
            }
            6 => {
                let text: String = (0..random.next() % 6)
                    .map(|_| words[random.next() as usize % words.len()])
                    .collect::<Vec<_>>()
                    .join(if random.next().is_multiple_of(4) { "" } else { " " });
                let file = ["kprobe_events", "uprobe_events"][random.next() as usize % 2];
                let open = if random.next().is_multiple_of(16) { Open::Truncate } else { Open::Append };
                let _ = w.ours.subsystem.write_file(&format!("/sys/kernel/tracing/{file}"), &text, open);
            }
            7 => {
                let (key, value) = ([random.word() % 5], [fd as u32]);
                w.ours.bpf(2, &mut Attrs::new(32).u32(0, map as u32).ptr(8, &key).ptr(16, &value).0);
                let space = [0u64; 16];
                w.ours.bpf(15, &mut Attrs::new(16).u32(0, fd as u32).u32(4, 64).ptr(8, &space).0);
            }
            8 => {
                f.enter(&regs(0));
                f.leave(&regs(0));
            }
            _ if fds.len() > 8 => {
                let at = random.next() as usize % fds.len();
                w.ours.close(fds.swap_remove(at));
                mapped.truncate(4);
            }
            _ => {}
        }
    }
    fds.into_iter().for_each(|fd| w.ours.close(fd));
    drop(mapped);
    for key in 0..4u32 {
        w.ours.bpf(3, &mut Attrs::new(16).u32(0, map as u32).ptr(8, &[key]).0);
    }
    for file in ["kprobe_events", "uprobe_events"] {
        w.ours.subsystem.write_file(&format!("/sys/kernel/tracing/{file}"), "", Open::Truncate).unwrap();
    }
    assert_eq!(w.ours.left(), before);
}

/// Hits on two threads while events and programs come and go.
#[test]
fn hits_while_attaching() {
    let w = World::new();
    let f = w.ours.subsystem.functions().publish("getpgid", 0x1000, None);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let map = w.counter();
    let prog = w.load(2, 0, &counts(map, 1));
    let hits: u64 = std::thread::scope(|s| {
        let hitters: Vec<_> = (0..2)
            .map(|_| {
                s.spawn(|| {
                    let mut n = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        f.enter(&regs(0));
                        n += 1;
                    }
                    n
                })
            })
            .collect();
        for _ in 0..2_000 {
            let event = w.open(&kprobe(b"getpgid\0", false), 0, -1);
            assert_eq!(w.ioctl(event, SET_BPF, prog as u64), 0);
            w.ours.close(event);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        hitters.into_iter().map(|h| h.join().unwrap()).sum()
    });
    assert!(w.ran(map) <= hits);
    f.enter(&regs(0));
    assert_eq!(w.ran(map), 0, "nothing is attached");
    [map, prog].into_iter().for_each(|fd| w.ours.close(fd));
    assert_eq!(w.ours.left(), Default::default());
}
