//! Events, their ioctls, links and files: good ones, then each single thing wrong.

use crate::kernel::Kernel;
use crate::probes;
use crate::script::{Attrs, Script};

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
pub const INFO: u32 = 15;
const PROG_QUERY: u32 = 16;
const RAW_OPEN: u32 = 17;
const FD_QUERY: u32 = 20;
pub const LINK_CREATE: u32 = 28;
pub const LINK_UPDATE: u32 = 29;
const LINK_BY_ID: u32 = 30;
const LINK_NEXT: u32 = 31;
pub const LINK_DETACH: u32 = 34;

pub const ENABLE: u32 = 0x2400;
pub const DISABLE: u32 = 0x2401;
const REFRESH: u32 = 0x2402;
pub const RESET: u32 = 0x2403;
const PERIOD: u32 = 0x4008_2404;
const SET_OUTPUT: u32 = 0x2405;
pub const SET_FILTER: u32 = 0x4008_2406;
const ID: u32 = 0x8008_2407;
pub const SET_BPF: u32 = 0x4004_2408;
const PAUSE_OUTPUT: u32 = 0x4004_2409;
pub const QUERY_BPF: u32 = 0xc008_240a;
const MODIFY: u32 = 0x4008_240b;

/// `BPF_PERF_EVENT`.
pub const PERF_EVENT: u32 = 41;

/// An address where nothing is.
pub const BAD: u64 = 8;
pub const PAGE: usize = 4096;
const PMUS: &str = "/sys/bus/event_source/devices";
pub const TRACING: &str = "/sys/kernel/tracing";

fn attr(kind: u32, config: u64) -> Attrs {
    Attrs::new(136).u32(0, kind).u32(4, 136).u64(8, config)
}

/// Samples of instruction pointer, thread and raw data, one for each hit.
pub fn sampling(kind: u32, config: u64) -> Attrs {
    attr(kind, config).u64(16, 1).u64(24, 1 | 2 | 1 << 10)
}

fn bpf_output() -> Attrs {
    attr(1, 10).u64(16, 1).u64(24, 1 << 10)
}

/// `r0 = x; exit`.
fn returns(x: i32) -> Vec<u64> {
    vec![0xb7 | u64::from(x as u32) << 32, 0x95]
}

fn program(ty: u32, attach: u32, code: &[u64]) -> Attrs {
    Attrs::new(168).u32(0, ty).u32(4, code.len() as u32).ptr(8, code).ptr(16, b"GPL\0").u32(68, attach)
}

pub fn load(s: &mut Script<'_>, name: &str, ty: u32, attach: u32, x: i32) -> i64 {
    let code = returns(x);
    s.call(&format!("load {name}"), PROG_LOAD, &mut program(ty, attach, &code))
}

/// The count of an event.
pub fn count(s: &mut Script<'_>, name: &str, fd: i64) {
    let mut bytes = [0u8; 8];
    let r = s.kernel.read(fd, &mut bytes);
    s.answered(&format!("{name}: read"), r, false);
    s.note(&format!("{name}: count"), &bytes);
}

/// Has it happen, and notes the count.
pub fn hits(s: &mut Script<'_>, name: &str, fd: i64, times: u32) {
    s.kernel.hit(times);
    count(s, &format!("{name}, {times} hits"), fd);
}

/// The number in a file.
pub fn number(kernel: &dyn Kernel, path: &str) -> Option<u32> {
    kernel.file(path)?.trim().parse().ok()
}

/// The records of a ring, without what differs from run to run: type, misc and size, then lengths of raw data and raw
/// data from the byte that is given on.
pub fn records(s: &mut Script<'_>, name: &str, at: i64, raw_from: usize) {
    let base = at as *mut u8;
    let word = |at: usize| base.wrapping_add(at).cast::<u64>();
    let (mut heads, mut raws) = (Vec::new(), Vec::new());
    // SAFETY: a mapped ring that nothing writes at the moment.
    unsafe {
        let (head, mut tail, size) = (word(1024).read_volatile(), word(1032).read_volatile(), word(1048).read());
        while tail < head {
            let byte = |at: u64| base.wrapping_add(PAGE + (at % size) as usize).read();
            let len = u64::from(byte(tail + 6)) | u64::from(byte(tail + 7)) << 8;
            let record: Vec<u8> = (tail..tail + len.max(8)).map(byte).collect();
            heads.extend_from_slice(&record[..8]);
            if record[0] == 9 && record.len() > 28 {
                raws.extend_from_slice(&record[24..28]);
                raws.extend(record.iter().skip(28 + raw_from));
            } else {
                raws.extend(record.iter().skip(16));
            }
            tail += len.max(8);
        }
        word(1032).write_volatile(tail);
    }
    s.note(&format!("{name}: records"), &heads);
    s.note(&format!("{name}: raw data"), &raws);
}

/// All of it. `like` is the kernel that says what there is to be asked.
pub fn run(s: &mut Script<'_>, like: &dyn Kernel) {
    attributes(s);
    arguments(s);
    ioctls(s);
    mappings(s);
    tracepoints(s);
    raw_tracepoints(s);
    if let Some(pmu) = number(like, &format!("{PMUS}/uprobe/type")) {
        let ours = number(s.kernel, &format!("{PMUS}/uprobe/type")).unwrap_or(pmu);
        probes::uprobes(s, ours);
        probes::uprobe_links(s, ours);
        probes::uprobe_files(s);
    }
    probes::uprobe_multi(s);
    link_commands(s);
    attach_commands(s);
    if number(like, &format!("{PMUS}/kprobe/type")).is_some() {
        let pmu = number(s.kernel, &format!("{PMUS}/kprobe/type")).unwrap_or(0);
        probes::kprobes(s, pmu);
        probes::kprobe_files(s);
        probes::kprobe_multi(s);
    }
}

fn attributes(s: &mut Script<'_>) {
    let good = bpf_output();
    s.try_event("output event", &good, -1, 0, -1, 8);
    for size in [0u32, 1, 56, 63, 64, 68, 72, 80, 96, 112, 120, 128, 136, 4096, 4097, u32::MAX] {
        let mut bytes = good.clone().u32(4, size);
        bytes.0.resize(4200, 0);
        s.try_event(&format!("attributes of {size} bytes"), &bytes, -1, 0, -1, 0);
        s.note(&format!("attributes of {size} bytes: size"), &bytes.0[4..8]);
    }
    for size in [160u32, 4096] {
        let mut bytes = good.clone().u32(4, size);
        bytes.0.resize(4200, 0);
        bytes.0[size as usize - 1] = 1;
        s.try_event(&format!("attributes of {size} bytes with a tail"), &bytes, -1, 0, -1, 0);
    }
    let r = s.kernel.perf_open(BAD, -1, 0, -1, 0);
    s.answered("attributes at a bad address", r, true);
    for kind in [7u32, 11, 12, 100, u32::MAX] {
        s.try_event(&format!("type {kind}"), &attr(kind, 0), -1, 0, -1, 0);
    }
    for config in [0u64, 1, 9, 10, 11, 12, 13, 100, u64::MAX] {
        s.try_event(&format!("software event {config}"), &attr(1, config), -1, 0, -1, 0);
    }
    for bit in 0..27 {
        s.try_event(&format!("sample bit {bit}"), &good.clone().u64(24, 1 << bit), -1, 0, -1, 0);
    }
    for bit in 0..7 {
        s.try_event(&format!("read format bit {bit}"), &good.clone().u64(32, 1 << bit), -1, 0, -1, 0);
    }
    for bit in 0..64 {
        s.try_event(&format!("flag bit {bit}"), &good.clone().u64(40, 1 << bit), -1, 0, -1, 0);
    }
    for word in (12..34).filter(|w| *w != 23) {
        s.try_event(&format!("attribute word {word} = -1"), &good.clone().u32(word * 4, u32::MAX), -1, 0, -1, 0);
    }
    s.try_event("period -1", &good.clone().u64(16, u64::MAX), -1, 0, -1, 0);
    s.try_event("frequency of 1", &good.clone().u64(40, 1 << 10), -1, 0, -1, 0);
    s.try_event("frequency of 10^9", &good.clone().u64(40, 1 << 10).u64(16, 1_000_000_000), -1, 0, -1, 0);
    for clock in [0u32, 1, 4, 7, 9, 11, 99] {
        let attr = good.clone().u64(40, 1 << 25).u32(92, clock);
        s.try_event(&format!("clock {clock}"), &attr, -1, 0, -1, 0);
    }
    for (name, stack) in [("0", 0u32), ("7", 7), ("8", 8), ("65528", 65528), ("65536", 65536)] {
        s.try_event(&format!("stack of {name} bytes"), &good.clone().u64(24, 1 << 13).u32(88, stack), -1, 0, -1, 0);
    }
    for (name, mask) in [("none", 0u64), ("ax", 1), ("ds", 1 << 12), ("r15", 1 << 23), ("24", 1 << 24), ("63", 1 << 63)]
    {
        s.try_event(&format!("registers of users: {name}"), &good.clone().u64(24, 1 << 12).u64(80, mask), -1, 0, -1, 0);
    }
    let both = good.clone().u64(40, 1 << 36 | 1 << 12);
    s.try_event("removed and enabled on exec", &both, 0, -1, -1, 0);
    s.try_event("signal without removal", &good.clone().u64(40, 1 << 37), 0, -1, -1, 0);
}

fn arguments(s: &mut Script<'_>) {
    let good = bpf_output();
    for (pid, cpu) in
        [(-1, -1), (-1, 0), (0, -1), (0, 0), (-2, 0), (-2, -1), (1 << 22, -1), (i32::MAX, 0), (-1, -2), (0, -2)]
    {
        s.try_event(&format!("pid {pid} cpu {cpu}"), &good, pid, cpu, -1, 0);
    }
    for cpu in [8192, 1 << 20, i32::MAX] {
        s.try_event(&format!("pid -1 cpu {cpu}"), &good, -1, cpu, -1, 0);
        s.try_event(&format!("pid 0 cpu {cpu}"), &good, 0, cpu, -1, 0);
    }
    for bit in 0..8 {
        s.try_event(&format!("flags {:#x}", 1 << bit), &good, -1, 0, -1, 1 << bit);
    }
    s.try_event("control group of all processes", &good, -1, 0, -1, 4);
    s.try_event("flags -1", &good, -1, 0, -1, u64::MAX);
    let leader = s.event("leader", &good, -1, 0, -1, 0);
    let other = s.event("of a task", &good, 0, -1, -1, 0);
    s.try_event("in a group", &good, -1, 0, leader, 0);
    let member = s.event("member", &good, -1, 0, leader, 0);
    s.try_event("a member as leader", &good, -1, 0, member, 0);
    s.try_event("a leader of a task", &good, -1, 0, other, 0);
    s.try_event("a leader of all", &good, 0, -1, leader, 0);
    s.try_event("another inheritance", &good.clone().u64(40, 2), -1, 0, leader, 0);
    s.try_event("pinned in a group", &good.clone().u64(40, 4), -1, 0, leader, 0);
    s.try_event("exclusive in a group", &good.clone().u64(40, 8), -1, 0, leader, 0);
    s.try_event("output to an event", &good, -1, 0, leader, 2);
    s.try_event("output to an event, no group", &good, -1, 0, leader, 3);
    s.try_event("output to an event of a task", &good, -1, 0, other, 3);
    for fd in [0i64, 999, -2] {
        s.try_event(&format!("group {fd}"), &good, -1, 0, fd, 0);
        s.try_event(&format!("output to {fd}"), &good, -1, 0, fd, 3);
    }
    for format in 0..32u64 {
        let fd = s.event(&format!("read format {format}"), &good.clone().u64(32, format), -1, 0, -1, 0);
        for room in [0usize, 7, 8, 16, 24, 48] {
            let mut bytes = vec![0; room];
            let r = s.kernel.read(fd, &mut bytes);
            s.answered(&format!("read format {format} into {room} bytes"), r, false);
        }
        if fd >= 0 {
            s.close(fd);
        }
    }
}

fn ioctls(s: &mut Script<'_>) {
    let event = s.event("ioctl: event", &bpf_output(), -1, 0, -1, 0);
    let counting = s.event("ioctl: counting event", &attr(1, 9), -1, 0, -1, 0);
    let of_task = s.event("ioctl: event of a task", &attr(1, 9), 0, -1, -1, 0);
    let (word, zero, big) = ([1u64], [0u64], [u64::MAX]);
    let text = b"x == 1\0";
    for (name, fd) in [("event", event), ("counting", counting), ("of a task", of_task), ("not open", 999)] {
        for (what, request) in [("enable", ENABLE), ("disable", DISABLE), ("reset", RESET)] {
            for arg in [0u64, 1, 2] {
                s.ioctl(&format!("{name}: {what} {arg}"), fd, request, arg);
            }
        }
        for arg in [0u64, 1, 10] {
            s.ioctl(&format!("{name}: refresh {arg}"), fd, REFRESH, arg);
        }
        for (what, at) in [("1", &word), ("0", &zero), ("-1", &big)] {
            s.ioctl(&format!("{name}: period {what}"), fd, PERIOD, at.as_ptr() as u64);
        }
        let out = [0u64];
        s.ioctl(&format!("{name}: id"), fd, ID, out.as_ptr() as u64);
        for (what, request) in [("period", PERIOD), ("id", ID), ("filter", SET_FILTER), ("query", QUERY_BPF)] {
            s.ioctl(&format!("{name}: {what} at a bad address"), fd, request, BAD);
        }
        s.ioctl(&format!("{name}: filter"), fd, SET_FILTER, text.as_ptr() as u64);
        for to in [event, counting, of_task, 0, 999] {
            s.ioctl(
                &format!(
                    "{name}: output to {}",
                    [event, counting, of_task, 0, 999].iter().position(|f| *f == to).unwrap()
                ),
                fd,
                SET_OUTPUT,
                to as u64,
            );
        }
        s.ioctl(&format!("{name}: output to itself again"), fd, SET_OUTPUT, u64::MAX);
        s.ioctl(&format!("{name}: pause"), fd, PAUSE_OUTPUT, 1);
        let query = [0u32; 4];
        s.ioctl(&format!("{name}: query"), fd, QUERY_BPF, query.as_ptr() as u64);
        s.ioctl(&format!("{name}: modify"), fd, MODIFY, attr(1, 9).0.as_ptr() as u64);
        for request in [0x2406u32, 0x240c, 0x5401, 0] {
            s.ioctl(&format!("{name}: request {request:#x}"), fd, request, 0);
        }
        for fd_arg in [0u64, 999, u64::from(u32::MAX), event as u64] {
            let what = if fd_arg == event as u64 { "an event".to_owned() } else { fd_arg.to_string() };
            s.ioctl(&format!("{name}: program {what}"), fd, SET_BPF, fd_arg);
        }
    }
    for (name, ty) in [("kprobe", 2u32), ("tracepoint", 5), ("xdp", 6), ("perf event", 7), ("raw tracepoint", 17)] {
        let prog = load(s, &format!("{name} program"), ty, 0, 1);
        let fd = s.event(&format!("event for a {name} program"), &attr(1, 0).u64(16, 1 << 40), -1, 0, -1, 0);
        s.ioctl(&format!("software event: {name} program"), fd, SET_BPF, prog as u64);
        s.ioctl(&format!("software event: {name} program again"), fd, SET_BPF, prog as u64);
    }
}

fn mappings(s: &mut Script<'_>) {
    let event = s.event("ring: event", &bpf_output(), -1, 0, -1, 0);
    for pages in [3usize, 4, 6, 8] {
        let r = s.kernel.map(event, pages * PAGE, 0, true);
        s.answered(&format!("ring of {pages} pages"), r.min(0), false);
    }
    let private = s.kernel.map(event, 2 * PAGE, 0, false);
    s.answered("private ring", private.min(0), false);
    let at = s.kernel.map(event, 5 * PAGE, 0, true);
    s.answered("ring", at.min(0), false);
    let other = s.kernel.map(event, 3 * PAGE, 0, true);
    s.answered("another size", other.min(0), false);
    let again = s.kernel.map(event, 5 * PAGE, 0, true);
    s.answered("the same size", again.min(0), false);
    if at > 0 {
        // SAFETY: a mapped ring.
        let word = |off: usize| unsafe { (at as *const u8).add(off).cast::<u64>().read_volatile() };
        let words: Vec<u8> = [1024, 1032, 1040, 1048].iter().flat_map(|o| word(*o).to_ne_bytes()).collect();
        s.note("ring: positions", &words);
    }
    s.ioctl("ring: pause", event, PAUSE_OUTPUT, 1);
    s.ioctl("ring: go on", event, PAUSE_OUTPUT, 0);
    let second = s.event("ring: second event", &bpf_output(), -1, 0, -1, 0);
    s.ioctl("ring: output of the second", second, SET_OUTPUT, event as u64);
    s.ioctl("ring: output of the first", event, SET_OUTPUT, second as u64);
    s.ioctl("ring: output of the first to itself", event, SET_OUTPUT, u64::MAX);
    for at in [at, again] {
        if at > 0 {
            s.kernel.unmap(at, 5 * PAGE);
        }
    }
    let control = s.event("ring: event for a control page", &bpf_output(), -1, 0, -1, 0);
    let at = s.kernel.map(control, PAGE, 0, true);
    s.answered("only a control page", at.min(0), false);
    s.ioctl("only a control page: pause", control, PAUSE_OUTPUT, 1);
    if at > 0 {
        s.kernel.unmap(at, PAGE);
    }
    let inherited = s.event("ring: inherited event", &bpf_output().u64(40, 2), 0, -1, -1, 0);
    let at = s.kernel.map(inherited, 2 * PAGE, 0, true);
    s.answered("ring of an inherited event", at.min(0), false);
}

fn tracepoints(s: &mut Script<'_>) {
    let id = number(s.kernel, &format!("{TRACING}/events/raw_syscalls/sys_enter/id")).unwrap_or(0);
    let other = number(s.kernel, &format!("{TRACING}/events/raw_syscalls/sys_exit/id")).unwrap_or(0);
    s.note("tracepoint has a number", &[u8::from(id != 0)]);
    for wrong in [0u64, 0xffff_fff0, u64::MAX, 1 << 32 | u64::from(id)] {
        let name = if wrong >> 32 == 1 { "number with high bits".to_owned() } else { format!("number {wrong:#x}") };
        s.try_event(&format!("tracepoint {name}"), &attr(2, wrong), 0, -1, -1, 0);
    }
    let event = s.event("tracepoint", &sampling(2, id.into()).u64(40, 1), 0, -1, -1, 0);
    s.try_event("tracepoint of all processes on all CPUs", &sampling(2, id.into()), -1, -1, -1, 0);
    s.try_event("tracepoint with branches", &attr(2, id.into()).u64(24, 1 << 11).u64(72, 8), 0, -1, -1, 0);
    for (name, ty) in [("kprobe", 2u32), ("socket filter", 1), ("perf event", 7), ("raw tracepoint", 17)] {
        let prog = load(s, &format!("{name} program for a tracepoint"), ty, 0, 1);
        s.ioctl(&format!("tracepoint: {name} program"), event, SET_BPF, prog as u64);
    }
    let zero = load(s, "tracepoint program that returns 0", 5, 0, 0);
    let (query, room) = ([64u32; 70], [0u32; 2]);
    s.ioctl("tracepoint: query without programs", event, QUERY_BPF, room.as_ptr() as u64);
    s.ioctl("tracepoint: program", event, SET_BPF, zero as u64);
    s.ioctl("tracepoint: program again", event, SET_BPF, zero as u64);
    s.ioctl("tracepoint: query the count", event, QUERY_BPF, room.as_ptr() as u64);
    s.note("tracepoint: programs", &[room[1] as u8]);
    s.ioctl("tracepoint: query", event, QUERY_BPF, query.as_ptr() as u64);
    s.note("tracepoint: programs and room", &[query[1] as u8]);
    let too_many = [65u32; 70];
    s.ioctl("tracepoint: query with too much room", event, QUERY_BPF, too_many.as_ptr() as u64);
    let second = s.event("tracepoint: second event", &sampling(2, id.into()).u64(40, 1), 0, -1, -1, 0);
    s.ioctl("tracepoint: the same program on another event", second, SET_BPF, zero as u64);
    let one = load(s, "tracepoint program that returns 1", 5, 0, 1);
    s.ioctl("tracepoint: another program on another event", second, SET_BPF, one as u64);
    let one_room = [1u32, 0, 0, 0];
    s.ioctl("tracepoint: query two with room for one", event, QUERY_BPF, one_room.as_ptr() as u64);
    s.note("tracepoint: two programs", &[one_room[1] as u8]);
    let third = s.event("tracepoint: event on another", &sampling(2, other.into()).u64(40, 1), 0, -1, -1, 0);
    s.ioctl("tracepoint: the same program elsewhere", third, SET_BPF, zero as u64);
    fd_query(s, "tracepoint", event);
    let filter = b"id == 1\0";
    s.ioctl("tracepoint: filter", event, SET_FILTER, filter.as_ptr() as u64);
    let link = link(s, "tracepoint", zero, event, PERF_EVENT, 0);
    let link_fd = link.max(-1);
    s.close(event);
    s.close(second);
    let again = s.event("tracepoint: again", &sampling(2, id.into()).u64(40, 1), 0, -1, -1, 0);
    s.call(
        "tracepoint: link",
        LINK_CREATE,
        &mut Attrs::new(64).u32(0, zero as u32).u32(4, again as u32).u32(8, PERF_EVENT).u64(16, 5),
    );
    let _ = link_fd;
}

pub fn link(s: &mut Script<'_>, name: &str, prog: i64, target: i64, attach: u32, cookie: u64) -> i64 {
    let mut attr = Attrs::new(64).u32(0, prog as u32).u32(4, target as u32).u32(8, attach).u64(16, cookie);
    s.call(&format!("{name}: link"), LINK_CREATE, &mut attr)
}

/// `BPF_TASK_FD_QUERY` with several rooms.
pub fn fd_query(s: &mut Script<'_>, name: &str, fd: i64) {
    let pid = std::process::id();
    let text = [0xffu8; 64];
    for room in [0u32, 1, 4, 64] {
        let mut attr = Attrs::new(48).u32(0, pid).u32(4, fd as u32).u32(12, room).ptr(16, &text);
        s.call(&format!("{name}: query the descriptor, room {room}"), FD_QUERY, &mut attr);
        s.note(&format!("{name}: name, room {room}"), &text[..room.min(12) as usize]);
        s.note(&format!("{name}: length and kind, room {room}"), &[&attr.0[12..16], &attr.0[28..32]].concat());
    }
    let good = Attrs::new(48).u32(0, pid).u32(4, fd as u32).u32(12, 64).ptr(16, &text);
    for (what, attr) in [
        ("flags", good.clone().u32(8, 1)),
        ("no such process", good.clone().u32(0, 1 << 22)),
        ("not open", good.clone().u32(4, 999)),
        ("stdin", good.clone().u32(4, 0)),
        ("bad address", good.clone().u64(16, BAD)),
    ] {
        s.try_call(&format!("{name}: query the descriptor, {what}"), FD_QUERY, &attr);
    }
}

fn raw_tracepoints(s: &mut Script<'_>) {
    let prog = load(s, "raw tracepoint program", 17, 0, 0);
    let other = load(s, "kprobe program for a raw tracepoint", 2, 0, 0);
    let (name, none, long) = (b"sys_enter\0", b"nothing_here\0", [b'a'; 200]);
    let good = Attrs::new(24).ptr(0, name).u32(8, prog as u32);
    for (what, attr) in [
        ("good", good.clone()),
        ("unknown", good.clone().ptr(0, none)),
        ("long name", good.clone().ptr(0, &long)),
        ("no name", good.clone().u64(0, 0)),
        ("bad address", good.clone().u64(0, BAD)),
        ("another type", good.clone().u32(8, other as u32)),
        ("not open", good.clone().u32(8, 999)),
        ("stdin", good.clone().u32(8, 0)),
        ("padding", good.clone().u32(12, 1)),
        ("cookie", good.clone().u64(16, 5)),
        ("short", Attrs(good.0[..12].to_vec())),
        ("tail", {
            let mut a = good.clone();
            a.0.resize(32, 1);
            a
        }),
    ] {
        s.try_call(&format!("raw tracepoint: {what}"), RAW_OPEN, &attr);
    }
    let link = s.call("raw tracepoint", RAW_OPEN, &mut good.clone().u64(16, 0x1234));
    fd_query(s, "raw tracepoint", link);
    info(s, "raw tracepoint", link, 16, 24, &[(24, 28), (32, 40)]);
    s.try_call("raw tracepoint: update", LINK_UPDATE, &Attrs::new(16).u32(0, link as u32).u32(4, prog as u32));
    s.try_call("raw tracepoint: detach", LINK_DETACH, &Attrs::new(4).u32(0, link as u32));
}

/// `bpf_link_info`: its type, the parts that are given, and the name for which there is room.
pub fn info(s: &mut Script<'_>, name: &str, link: i64, name_at: usize, room_at: usize, parts: &[(usize, usize)]) {
    for (what, room) in [("no room", 0u32), ("room for 4", 4), ("room", 64)] {
        let text = [0xffu8; 64];
        let space = Attrs::new(64).u32(room_at, room).u64(name_at, if room == 0 { 0 } else { text.as_ptr() as u64 });
        let mut attr = Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0);
        s.call(&format!("{name}: link info, {what}"), INFO, &mut attr);
        s.note(&format!("{name}: link info, {what}: length and type"), &[&attr.0[4..8], &space.0[..4]].concat());
        for (from, to) in parts {
            s.note(&format!("{name}: link info, {what}: {from}"), &space.0[*from..*to]);
        }
        s.note(&format!("{name}: link info, {what}: name"), &text[..4]);
    }
    let text = [0u8; 8];
    for (what, space) in [
        ("a room, no name", Attrs::new(64).u32(room_at, 8)),
        ("a name, no room", Attrs::new(64).ptr(name_at, &text)),
        ("a bad address", Attrs::new(64).u32(room_at, 8).u64(name_at, BAD)),
    ] {
        s.try_call(
            &format!("{name}: link info, {what}"),
            INFO,
            &Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0),
        );
    }
}

fn link_commands(s: &mut Script<'_>) {
    let prog = load(s, "raw tracepoint program for a link", 17, 0, 0);
    let name = b"sys_enter\0";
    let link = s.call("link", RAW_OPEN, &mut Attrs::new(24).ptr(0, name).u32(8, prog as u32));
    let space = [0u32; 16];
    s.call("link: info", INFO, &mut Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space));
    let id = space[1];
    for (what, len) in [("0", 0u32), ("4", 4), ("12", 12), ("64", 64), ("72", 72), ("4097", 4097)] {
        let space = vec![0u8; 5000];
        let mut attr = Attrs::new(16).u32(0, link as u32).u32(4, len).ptr(8, &space);
        s.call(&format!("link: info of {what} bytes"), INFO, &mut attr);
        s.note(&format!("link: info of {what} bytes: length"), &attr.0[4..8]);
    }
    s.try_call("link by id", LINK_BY_ID, &Attrs::new(4).u32(0, id));
    for id in [0u32, 0x7fff_ffff, u32::MAX] {
        s.try_call(&format!("link by id {id:#x}"), LINK_BY_ID, &Attrs::new(4).u32(0, id));
        s.try_call(&format!("next link behind {id:#x}"), LINK_NEXT, &Attrs::new(8).u32(0, id));
    }
    s.try_call("link by id, a tail", LINK_BY_ID, &Attrs::new(8).u32(0, id).u32(4, 1));
    s.try_call("next link, a tail", LINK_NEXT, &Attrs::new(16).u32(12, 1));
    s.try_call("next link, before it", LINK_NEXT, &Attrs::new(8).u32(0, id.wrapping_sub(1)));
    let update = Attrs::new(16).u32(0, link as u32).u32(4, prog as u32);
    for (what, attr) in [
        ("good", update.clone()),
        ("no link", update.clone().u32(0, 999)),
        ("a program as link", update.clone().u32(0, prog as u32)),
        ("no program", update.clone().u32(4, 999)),
        ("flags 1", update.clone().u32(8, 1)),
        ("replace nothing", update.clone().u32(8, 4)),
        ("replace", update.clone().u32(8, 4).u32(12, prog as u32)),
        ("old program without the flag", update.clone().u32(12, prog as u32)),
        ("a tail", {
            let mut a = update.clone();
            a.0.resize(20, 1);
            a
        }),
    ] {
        s.try_call(&format!("link update: {what}"), LINK_UPDATE, &attr);
    }
    for (what, attr) in [
        ("good", Attrs::new(4).u32(0, link as u32)),
        ("no link", Attrs::new(4).u32(0, 999)),
        ("a program", Attrs::new(4).u32(0, prog as u32)),
        ("a tail", Attrs::new(8).u32(0, link as u32).u32(4, 1)),
    ] {
        s.try_call(&format!("link detach: {what}"), LINK_DETACH, &attr);
    }
    let path = b"/sys/fs/bpf/skep-link\0";
    s.try_call("link: pin", 6, &Attrs::new(20).ptr(0, path).u32(8, link as u32));
    s.close(link);
    s.try_call("link by id, while pinned", LINK_BY_ID, &Attrs::new(4).u32(0, id));
    s.try_call("link: get", 7, &Attrs::new(20).ptr(0, path));
    s.try_call("link: get to read", 7, &Attrs::new(20).ptr(0, path).u32(12, 8));
    s.unpin("/sys/fs/bpf/skep-link");
    s.try_call("link by id, unpinned", LINK_BY_ID, &Attrs::new(4).u32(0, id));
}

fn attach_commands(s: &mut Script<'_>) {
    // Control groups and devices are not here; the numbers of those that are wrong in themselves still are.
    let kprobe = load(s, "kprobe program to attach", 2, 0, 0);
    for attach in (0..64u32).chain([1000, u32::MAX]) {
        let attr = Attrs::new(32).u32(0, 999).u32(4, kprobe as u32).u32(8, attach);
        s.try_call(&format!("attach a kprobe program as {attach}"), PROG_ATTACH, &attr);
        s.try_call(&format!("attach with flags as {attach}"), PROG_ATTACH, &attr.clone().u32(12, 1 << 30));
        s.try_call(&format!("detach as {attach}"), PROG_DETACH, &attr.clone().u32(12, 1 << 30));
        let link = Attrs::new(64).u32(0, kprobe as u32).u32(4, 999).u32(8, attach);
        s.try_call(&format!("link a kprobe program as {attach}"), LINK_CREATE, &link);
    }
    let query = Attrs::new(64).u32(0, 999);
    s.try_call("query with flags", PROG_QUERY, &query.clone().u32(8, 2));
    s.try_call("query: a tail", PROG_QUERY, &{
        let mut a = query.clone();
        a.0.resize(72, 1);
        a
    });
    for attach in [16u32, 20, 23, 24, 25, 26, 27, 28, 41, 42, 48, 1000] {
        s.try_call(&format!("query {attach}"), PROG_QUERY, &query.clone().u32(4, attach));
    }
    for (name, ty, attach) in
        [("socket filter", 1u32, 0u32), ("tracepoint", 5, 0), ("xdp", 6, 37), ("raw tracepoint", 17, 0)]
    {
        let prog = load(s, &format!("{name} program to link"), ty, 0, 0);
        for kind in [0, attach, 24, 26, 37, PERF_EVENT] {
            let attr = Attrs::new(64).u32(0, prog as u32).u32(4, 999).u32(8, kind);
            s.try_call(&format!("link a {name} program as {kind}"), LINK_CREATE, &attr);
        }
    }
}
