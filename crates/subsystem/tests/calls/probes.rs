//! Uprobes and kprobes: events of their PMUs, links, files of the tracefs, and links to many places.

use crate::events::{
    BAD, DISABLE, ENABLE, INFO, LINK_CREATE, LINK_DETACH, LINK_UPDATE, PAGE, PERF_EVENT, QUERY_BPF, RESET, SET_BPF,
    SET_FILTER, TRACING, count, fd_query, hits, info, link, load, number, records, sampling,
};
use crate::kernel::probed_offset;
use crate::script::{Attrs, Script};

/// `BPF_TRACE_KPROBE_MULTI`, `BPF_TRACE_UPROBE_MULTI`.
const KPROBE_MULTI: u32 = 42;
const UPROBE_MULTI: u32 = 48;

const SELF: &[u8] = b"/proc/self/exe\0";

fn uprobe(pmu: u32, ret: bool) -> Attrs {
    sampling(pmu, ret.into()).ptr(56, SELF).u64(64, probed_offset())
}

pub fn uprobes(s: &mut Script<'_>, pmu: u32) {
    let good = uprobe(pmu, false);
    let missing = b"/no/such/file\0";
    let folder = b"/proc\0";
    let empty = b"\0";
    let long = vec![b'a'; 5000];
    for (what, attr) in [
        ("missing file", good.clone().ptr(56, missing)),
        ("a folder", good.clone().ptr(56, folder)),
        ("empty path", good.clone().ptr(56, empty)),
        ("no path", good.clone().u64(56, 0)),
        ("bad path", good.clone().u64(56, BAD)),
        ("long path", good.clone().ptr(56, &long)),
        ("offset beyond the file", good.clone().u64(64, 1 << 40)),
        ("offset -1", good.clone().u64(64, u64::MAX)),
        ("offset 0", good.clone().u64(64, 0)),
        ("config bit 1", good.clone().u64(8, 2)),
        ("odd counter", good.clone().u64(8, 3 << 32)),
        ("branches", good.clone().u64(24, 1 << 11).u64(72, 8)),
    ] {
        s.try_event(&format!("uprobe: {what}"), &attr, 0, -1, -1, 0);
    }
    s.try_event("uprobe of all processes", &good, -1, 0, -1, 0);
    let event = s.event("uprobe", &good, 0, -1, -1, 0);
    let at = s.kernel.map(event, 3 * PAGE, 0, true);
    s.answered("uprobe: ring", at.min(0), false);
    hits(s, "uprobe", event, 3);
    if at > 0 {
        // The address, and what pads it.
        records(s, "uprobe", at, 16);
    }
    let zero = load(s, "program that returns 0", 2, 0, 0);
    let two = load(s, "program that returns 2", 2, 0, 2);
    let three = load(s, "program that returns 3", 2, 0, 3);
    let tracepoint = load(s, "tracepoint program for a uprobe", 5, 0, 0);
    s.ioctl("uprobe: tracepoint program", event, SET_BPF, tracepoint as u64);
    s.ioctl("uprobe: program that returns 0", event, SET_BPF, zero as u64);
    hits(s, "uprobe with 0", event, 3);
    s.ioctl("uprobe: second program", event, SET_BPF, three as u64);
    s.ioctl("uprobe: query", event, QUERY_BPF, [0u32; 2].as_ptr() as u64);
    fd_query(s, "uprobe", event);
    s.ioctl("uprobe: filter", event, SET_FILTER, c"x".as_ptr() as u64);
    if at > 0 {
        s.kernel.unmap(at, 3 * PAGE);
    }
    s.close(event);
    for (name, prog) in [("2", two), ("3", three)] {
        let event = s.event(&format!("uprobe for {name}"), &good, 0, -1, -1, 0);
        s.ioctl(&format!("uprobe: program that returns {name}"), event, SET_BPF, prog as u64);
        hits(s, &format!("uprobe with {name}"), event, 3);
        s.ioctl(&format!("uprobe with {name}: disable"), event, DISABLE, 0);
        hits(s, &format!("uprobe with {name}, disabled"), event, 2);
        s.ioctl(&format!("uprobe with {name}: enable"), event, ENABLE, 0);
        hits(s, &format!("uprobe with {name}, enabled"), event, 2);
        s.ioctl(&format!("uprobe with {name}: reset"), event, RESET, 0);
        count(s, &format!("uprobe with {name}, reset"), event);
        s.close(event);
    }
    let back = s.event("uretprobe", &uprobe(pmu, true), 0, -1, -1, 0);
    let at = s.kernel.map(back, 3 * PAGE, 0, true);
    hits(s, "uretprobe", back, 2);
    if at > 0 {
        records(s, "uretprobe", at, 24);
        s.kernel.unmap(at, 3 * PAGE);
    }
    let counting = s.event("uprobe, only counting", &good.clone().u64(16, 0), 0, -1, -1, 0);
    hits(s, "uprobe, only counting", counting, 4);
    let often = s.event("uprobe, every third", &good.clone().u64(16, 3), 0, -1, -1, 0);
    let at = s.kernel.map(often, 3 * PAGE, 0, true);
    hits(s, "uprobe, every third", often, 7);
    if at > 0 {
        records(s, "uprobe, every third", at, 16);
        s.kernel.unmap(at, 3 * PAGE);
    }
    let small = s.event("uprobe, small ring", &good.clone().u64(24, 1 | 2 | 1 << 10), 0, -1, -1, 0);
    let at = s.kernel.map(small, 2 * PAGE, 0, true);
    hits(s, "uprobe, small ring", small, 100);
    if at > 0 {
        records(s, "uprobe, small ring", at, 16);
        hits(s, "uprobe, small ring again", small, 1);
        records(s, "uprobe, small ring again", at, 16);
        s.kernel.unmap(at, 2 * PAGE);
    }
    // Every field of a sample that has the same size everywhere.
    for bit in [0, 1, 2, 3, 6, 7, 8, 9, 14, 15, 16, 17, 19, 20, 22, 23, 24] {
        let event = s.event(&format!("uprobe, sample bit {bit}"), &good.clone().u64(24, 1 << bit), 0, -1, -1, 0);
        let at = s.kernel.map(event, 2 * PAGE, 0, true);
        s.kernel.hit(1);
        if at > 0 {
            // SAFETY: a mapped ring.
            let head = unsafe { (at as *const u8).add(1024).cast::<u64>().read_volatile() };
            s.note(&format!("uprobe, sample bit {bit}: bytes"), &head.to_ne_bytes());
            s.kernel.unmap(at, 2 * PAGE);
        }
        if event >= 0 {
            s.close(event);
        }
    }
}

pub fn uprobe_links(s: &mut Script<'_>, pmu: u32) {
    let prog = load(s, "uprobe program for a link", 2, 0, 1);
    let multi = load(s, "kprobe_multi program for a link", 2, KPROBE_MULTI, 1);
    let event = s.event("uprobe for a link", &uprobe(pmu, false), 0, -1, -1, 0);
    let good = Attrs::new(64).u32(0, prog as u32).u32(4, event as u32).u32(8, PERF_EVENT);
    for (what, attr) in [
        ("flags", good.clone().u32(12, 1)),
        ("no program", good.clone().u32(0, 999)),
        ("an event as program", good.clone().u32(0, event as u32)),
        ("no event", good.clone().u32(4, 999)),
        ("stdin as event", good.clone().u32(4, 0)),
        ("a program as event", good.clone().u32(4, prog as u32)),
        ("another attach type", good.clone().u32(8, 0)),
        ("an unknown attach type", good.clone().u32(8, 1000)),
        ("for tracing", good.clone().u32(8, 24)),
        ("a tail", good.clone().u32(60, 1)),
        ("high bytes of its union", good.clone().u32(56, 1)),
        ("good", good.clone()),
        ("cookie", good.clone().u64(16, 7)),
        ("a multi-program", good.clone().u32(0, multi as u32)),
    ] {
        s.try_call(&format!("perf link: {what}"), LINK_CREATE, &attr);
    }
    let link = s.call("perf link", LINK_CREATE, &mut good.clone().u64(16, 0x77));
    s.try_call("perf link: a second", LINK_CREATE, &good);
    s.ioctl("perf link: and a program", event, SET_BPF, prog as u64);
    hits(s, "perf link", event, 2);
    info(s, "perf link", link, 24, 32, &[(16, 20), (32, 36), (40, 48), (48, 56)]);
    fd_query(s, "perf link", link);
    s.try_call("perf link: update", LINK_UPDATE, &Attrs::new(16).u32(0, link as u32).u32(4, prog as u32));
    s.try_call("perf link: detach", LINK_DETACH, &Attrs::new(4).u32(0, link as u32));
    s.close(link);
    hits(s, "perf link, closed", event, 2);
    let again = s.call("perf link: again", LINK_CREATE, &mut good.clone());
    s.close(event);
    s.close(again);
}

pub fn uprobe_files(s: &mut Script<'_>) {
    let file = format!("{TRACING}/uprobe_events");
    let offset = probed_offset();
    let place = format!("/proc/self/exe:{offset:#x}");
    let lines = [
        ("good", format!("p:skept/ev {place}")),
        ("again", format!("p:skept/ev {place}")),
        ("other arguments", format!("p:skept/ev {place} %di")),
        ("as a return probe", format!("r:skept/ev {place}")),
        ("arguments", format!("p:skept/args {place} a=%di:x64 b=$stack1 c=$comm d=+8(%sp):u32 e=\\\\5:s8")),
        ("return value", format!("r:skept/ret {place} v=$retval:s32")),
        ("return value of an entry", format!("p:skept/x {place} $retval")),
        ("unknown register", format!("p:skept/x {place} %zz")),
        ("unknown type", format!("p:skept/x {place} %di:foo")),
        ("twice the same name", format!("p:skept/x {place} a=%di a=%si")),
        ("reserved name", format!("p:skept/x {place} common_pid=%di")),
        ("no file", "p:skept/x /no/such/file:0x10".to_owned()),
        ("a folder", "p:skept/x /proc:0x10".to_owned()),
        ("no offset", "p:skept/x /proc/self/exe".to_owned()),
        ("bad offset", "p:skept/x /proc/self/exe:zz".to_owned()),
        ("bad letter", format!("x:skept/x {place}")),
        ("no place", "p:skept/x".to_owned()),
        ("bad event name", format!("p:skept/1x {place}")),
        ("bad group name", format!("p:1g/x {place}")),
        ("no event name", format!("p: {place}")),
        ("no group name", format!("p:/x {place}")),
        ("counter", format!("p:skept/counted {place}(0x10)")),
        ("open brace", format!("p:skept/x {place}(0x10")),
        ("odd counter", format!("p:skept/x {place}(0x11")),
        ("string without memory", format!("p:skept/x {place} %di:string")),
        ("array of none", format!("p:skept/x {place} +0(%di):u8[0]")),
        ("array of 65", format!("p:skept/x {place} +0(%di):u8[65]")),
        ("array", format!("p:skept/array {place} a=+0(%di):u8[4] s=+0(%di):string")),
        ("bit field", format!("p:skept/bits {place} a=%di:b4@2/32")),
        ("bad bit field", format!("p:skept/x {place} a=%di:b40@2/32")),
        ("symbol on a uprobe", format!("p:skept/x {place} @jiffies")),
        ("comment", "# nothing".to_owned()),
        ("empty", "\n".to_owned()),
        ("remove what is not there", "-:skept/none".to_owned()),
        ("bad removal", "-skept/ev".to_owned()),
    ];
    for (what, line) in lines {
        let r = s.kernel.write(&file, &line, false);
        s.answered(&format!("uprobe_events: {what}"), r, false);
    }
    for event in ["ev", "args", "ret", "array", "bits"] {
        let format = s.kernel.file(&format!("{TRACING}/events/skept/{event}/format")).unwrap_or_default();
        // Without its number.
        let format: String = format.lines().filter(|l| !l.starts_with("ID:")).map(|l| format!("{l}\n")).collect();
        for (n, line) in format.lines().enumerate() {
            s.note(&format!("format of {event}, line {n}"), line.as_bytes());
        }
    }
    let id = number(s.kernel, &format!("{TRACING}/events/skept/args/id")).unwrap_or(0);
    let event = s.event("uprobe event", &sampling(2, id.into()), 0, -1, -1, 0);
    let at = s.kernel.map(event, 3 * PAGE, 0, true);
    hits(s, "uprobe event", event, 2);
    if at > 0 {
        s.kernel.unmap(at, 3 * PAGE);
    }
    let prog = load(s, "program for a uprobe event", 2, 0, 0);
    s.ioctl("uprobe event: program", event, SET_BPF, prog as u64);
    hits(s, "uprobe event with 0", event, 2);
    let query = [4u32, 0, 0, 0, 0, 0];
    s.ioctl("uprobe event: query", event, QUERY_BPF, query.as_ptr() as u64);
    s.note("uprobe event: programs", &[query[1] as u8]);
    for (what, line) in [("in use", "-:skept/args"), ("another", "-:skept/ret"), ("by name", "-:ev")] {
        let r = s.kernel.write(&file, line, false);
        s.answered(&format!("uprobe_events: remove {what}"), r, false);
    }
    s.close(event);
    let r = s.kernel.write(&format!("{TRACING}/events/skept/array/enable"), "1", true);
    s.answered("enable", r, false);
    let r = s.kernel.write(&file, "-:skept/array", false);
    s.answered("remove what is enabled", r, false);
    for text in ["2", "x", "0"] {
        let r = s.kernel.write(&format!("{TRACING}/events/skept/array/enable"), text, true);
        s.answered(&format!("enable {text}"), r, false);
    }
    let list: Vec<String> =
        s.kernel.file(&file).unwrap_or_default().lines().filter(|l| l.contains("skept")).map(str::to_owned).collect();
    s.note("uprobe_events: lines", &[list.len() as u8]);
    for event in ["args", "counted", "array", "bits"] {
        let r = s.kernel.write(&file, &format!("-:skept/{event}"), false);
        s.answered(&format!("uprobe_events: remove {event}"), r, false);
    }
    s.try_event("uprobe event that was removed", &sampling(2, id.into()), 0, -1, -1, 0);
}

pub fn uprobe_multi(s: &mut Script<'_>) {
    let prog = load(s, "uprobe_multi program", 2, UPROBE_MULTI, 0);
    let plain = load(s, "program without attach type", 2, 0, 0);
    let (offsets, beyond, negative) = ([probed_offset(), 0], [1u64 << 40], [u64::MAX]);
    let (cookies, folder, missing) = ([1u64, 2], b"/proc\0", b"/no/such/file\0");
    let good = Attrs::new(64).u32(0, prog as u32).u32(8, UPROBE_MULTI).ptr(16, SELF).ptr(24, &offsets).u32(48, 1);
    for (what, attr) in [
        ("good", good.clone()),
        ("two places", good.clone().u32(48, 2)),
        ("cookies", good.clone().u32(48, 2).ptr(40, &cookies)),
        ("no path", good.clone().u64(16, 0)),
        ("bad path", good.clone().u64(16, BAD)),
        ("missing file", good.clone().ptr(16, missing)),
        ("a folder", good.clone().ptr(16, folder)),
        ("no offsets", good.clone().u64(24, 0)),
        ("bad offsets", good.clone().u64(24, BAD)),
        ("offset beyond", good.clone().ptr(24, &beyond)),
        ("offset -1", good.clone().ptr(24, &negative)),
        ("bad cookies", good.clone().u64(40, BAD)),
        ("bad counters", good.clone().u64(32, BAD)),
        ("none", good.clone().u32(48, 0)),
        ("too many", good.clone().u32(48, (1 << 20) + 1)),
        ("flags 2", good.clone().u32(52, 2)),
        ("at the return", good.clone().u32(52, 1)),
        ("link flags", good.clone().u32(12, 1)),
        ("this process", good.clone().u32(56, std::process::id())),
        ("no process", good.clone().u32(56, 1 << 22)),
        ("pid -1", good.clone().u32(56, u32::MAX)),
        ("a tail", good.clone().u32(60, 1)),
        ("a program without attach type", good.clone().u32(0, plain as u32)),
        ("as a perf link", good.clone().u32(8, PERF_EVENT)),
    ] {
        s.try_call(&format!("uprobe_multi: {what}"), LINK_CREATE, &attr);
    }
    let link = s.call("uprobe_multi", LINK_CREATE, &mut good.clone().u32(48, 2).ptr(40, &cookies));
    let (at, keep) = ([0u64; 2], [0u64; 2]);
    for (what, room) in [("no room", 0u32), ("room for one", 1), ("room", 2)] {
        let space = if room == 0 { Attrs::new(64) } else { Attrs::new(64).ptr(24, &at).ptr(40, &keep).u32(52, room) };
        let mut attr = Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0);
        s.call(&format!("uprobe_multi: info, {what}"), INFO, &mut attr);
        s.note(&format!("uprobe_multi: info, {what}: type"), &space.0[..4]);
        s.note(&format!("uprobe_multi: info, {what}: count"), &space.0[52..60]);
        s.note(
            &format!("uprobe_multi: info, {what}: cookies"),
            &keep.iter().flat_map(|c| c.to_ne_bytes()).collect::<Vec<_>>(),
        );
    }
    for (what, space) in [
        ("a path without room", Attrs::new(64).ptr(16, &at)),
        ("room without a path", Attrs::new(64).u32(48, 8)),
        ("a short room for the path", Attrs::new(64).ptr(16, &at).u32(48, 2)),
        ("offsets without room", Attrs::new(64).ptr(24, &at)),
    ] {
        s.try_call(
            &format!("uprobe_multi: info, {what}"),
            INFO,
            &Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0),
        );
    }
    fd_query(s, "uprobe_multi", link);
    s.try_call("uprobe_multi: update", LINK_UPDATE, &Attrs::new(16).u32(0, link as u32).u32(4, prog as u32));
    s.try_call("uprobe_multi: detach", LINK_DETACH, &Attrs::new(4).u32(0, link as u32));
}

fn kprobe(pmu: u32, name: &[u8], ret: bool) -> Attrs {
    sampling(pmu, ret.into()).ptr(56, name)
}

pub fn kprobes(s: &mut Script<'_>, pmu: u32) {
    const NAME: &[u8] = b"__x64_sys_getpgid\0";
    let good = kprobe(pmu, NAME, false);
    for (what, attr) in [
        ("unknown function", kprobe(pmu, b"nothing_of_that_name\0", false)),
        ("inside an instruction", good.clone().u64(64, 1)),
        ("return probe with offset", kprobe(pmu, NAME, true).u64(64, 8)),
        ("no name", good.clone().u64(56, 0)),
        ("no name, an address", good.clone().u64(56, 0).u64(64, 0x1000)),
        ("empty name", kprobe(pmu, b"\0", false)),
        ("bad name", good.clone().u64(56, BAD)),
        ("absent module", kprobe(pmu, b"nomodule:nothing\0", false)),
        ("config bit 1", good.clone().u64(8, 2)),
        ("config bit 32", good.clone().u64(8, 1 << 32)),
        ("branches", good.clone().u64(24, 1 << 11).u64(72, 8)),
    ] {
        s.try_event(&format!("kprobe: {what}"), &attr, 0, -1, -1, 0);
    }
    let event = s.event("kprobe", &good, 0, -1, -1, 0);
    let at = s.kernel.map(event, 3 * PAGE, 0, true);
    hits(s, "kprobe", event, 2);
    if at > 0 {
        records(s, "kprobe", at, 16);
    }
    let prog = load(s, "kprobe program that returns 0", 2, 0, 0);
    let one = load(s, "kprobe program that returns 1", 2, 0, 1);
    s.ioctl("kprobe: program", event, SET_BPF, prog as u64);
    hits(s, "kprobe with 0", event, 2);
    fd_query(s, "kprobe", event);
    if at > 0 {
        s.kernel.unmap(at, 3 * PAGE);
    }
    s.close(event);
    let back = s.event("kretprobe", &kprobe(pmu, NAME, true), 0, -1, -1, 0);
    let at = s.kernel.map(back, 3 * PAGE, 0, true);
    hits(s, "kretprobe", back, 2);
    if at > 0 {
        records(s, "kretprobe", at, 24);
        s.kernel.unmap(at, 3 * PAGE);
    }
    s.ioctl("kretprobe: program", back, SET_BPF, one as u64);
    fd_query(s, "kretprobe", back);
    let event = s.event("kprobe for a link", &good, 0, -1, -1, 0);
    let made = link(s, "kprobe", one, event, PERF_EVENT, 0x55);
    info(s, "kprobe link", made, 24, 32, &[(16, 20), (32, 40), (48, 64)]);
    hits(s, "kprobe link", event, 2);
}

pub fn kprobe_files(s: &mut Script<'_>) {
    let file = format!("{TRACING}/kprobe_events");
    let f = "__x64_sys_getpgid";
    for (what, line) in [
        ("good", format!("p:skeptk/ev1 {f} regs=%di:x64 n=+112(%di):s32")),
        ("again", format!("p:skeptk/ev1 {f} regs=%di:x64 n=+112(%di):s32")),
        ("other arguments", format!("p:skeptk/ev1 {f}")),
        ("unknown function", "p:skeptk/x nothing_of_that_name".to_owned()),
        ("inside an instruction", format!("p:skeptk/x {f}+1")),
        ("return probe with offset", format!("r:skeptk/x {f}+8")),
        ("return value of an entry", format!("p:skeptk/x {f} $retval")),
        ("bad offset", format!("p:skeptk/x {f}+zz")),
        ("bad suffix", format!("p:skeptk/x {f}%foo")),
        ("most active on an entry", format!("p10:skeptk/x {f}")),
        ("no active", format!("r0:skeptk/x {f}")),
        ("too many active", format!("r5000:skeptk/x {f}")),
        ("return probe", format!("r10:skeptk/ret {f} v=$retval:s32")),
        ("return by suffix", format!("p:skeptk/ret2 {f}%return")),
        ("argument", format!("p:skeptk/arg {f} a=$arg1:x64 s=$stack2 c=$comm")),
        ("argument 0", format!("p:skeptk/x {f} a=$arg0")),
        ("unknown variable", format!("p:skeptk/x {f} a=$foo")),
        ("file offset on a kprobe", format!("p:skeptk/x {f} a=@+8")),
        ("no name", format!("p {f}")),
        ("bad removal", "-skeptk".to_owned()),
        ("remove what is not there", "-:skeptk/none".to_owned()),
    ] {
        let r = s.kernel.write(&file, &line, false);
        s.answered(&format!("kprobe_events: {what}"), r, false);
    }
    for event in ["ev1", "ret", "arg"] {
        let format = s.kernel.file(&format!("{TRACING}/events/skeptk/{event}/format")).unwrap_or_default();
        for (n, line) in format.lines().filter(|l| !l.starts_with("ID:")).enumerate() {
            s.note(&format!("format of {event}, line {n}"), line.as_bytes());
        }
    }
    let id = number(s.kernel, &format!("{TRACING}/events/skeptk/ev1/id")).unwrap_or(0);
    let event = s.event("kprobe event", &sampling(2, id.into()), 0, -1, -1, 0);
    hits(s, "kprobe event", event, 3);
    let zero = load(s, "kprobe event program 0", 2, 0, 0);
    let one = load(s, "kprobe event program 1", 2, 0, 1);
    s.ioctl("kprobe event: program 0", event, SET_BPF, zero as u64);
    hits(s, "kprobe event with 0", event, 3);
    s.ioctl("kprobe event: program 1", event, SET_BPF, one as u64);
    let second = s.event("kprobe event: second", &sampling(2, id.into()), 0, -1, -1, 0);
    s.ioctl("kprobe event: second, the same program", second, SET_BPF, zero as u64);
    s.ioctl("kprobe event: second, program 1", second, SET_BPF, one as u64);
    hits(s, "kprobe event: second", second, 3);
    s.close(event);
    hits(s, "kprobe event: second, alone", second, 3);
    let r = s.kernel.write(&file, "-:skeptk/ev1", false);
    s.answered("kprobe_events: remove in use", r, false);
    s.close(second);
    for name in ["skeptk/ev1", "skeptk/ret", "skeptk/ret2", "skeptk/arg", "kprobes/p___x64_sys_getpgid_0"] {
        let r = s.kernel.write(&file, &format!("-:{name}"), false);
        s.answered(&format!("kprobe_events: remove {name}"), r, false);
    }
    s.try_event("kprobe event that was removed", &sampling(2, id.into()), 0, -1, -1, 0);
}

pub fn kprobe_multi(s: &mut Script<'_>) {
    let prog = load(s, "kprobe_multi program", 2, KPROBE_MULTI, 0);
    let plain = load(s, "program without attach type for kprobe_multi", 2, 0, 0);
    let (one, none) = (c"__x64_sys_getpgid".as_ptr(), c"nothing_of_that_name".as_ptr());
    let (good_names, bad_names, twice) = ([one as u64], [one as u64, none as u64], [one as u64, one as u64]);
    let (addresses, bad_pointers, cookies) = ([1u64, 2], [BAD], [7u64]);
    let good = Attrs::new(64).u32(0, prog as u32).u32(8, KPROBE_MULTI).u32(20, 1).ptr(24, &good_names);
    for (what, attr) in [
        ("good", good.clone()),
        ("unknown symbol", good.clone().u32(20, 2).ptr(24, &bad_names)),
        ("the same twice", good.clone().u32(20, 2).ptr(24, &twice)),
        ("none", good.clone().u32(20, 0)),
        ("too many", good.clone().u32(20, (1 << 20) + 1)),
        ("nothing", good.clone().u64(24, 0)),
        ("both", good.clone().ptr(32, &addresses)),
        ("addresses", good.clone().u64(24, 0).ptr(32, &addresses).u32(20, 2)),
        ("bad addresses", good.clone().u64(24, 0).u64(32, BAD)),
        ("bad symbols", good.clone().u64(24, BAD)),
        ("bad names", good.clone().ptr(24, &bad_pointers)),
        ("cookies", good.clone().ptr(40, &cookies)),
        ("bad cookies", good.clone().u64(40, BAD)),
        ("flags 2", good.clone().u32(16, 2)),
        ("at the return", good.clone().u32(16, 1)),
        ("link flags", good.clone().u32(12, 1)),
        ("a program without attach type", good.clone().u32(0, plain as u32)),
        ("as a perf link", good.clone().u32(8, PERF_EVENT)),
    ] {
        s.try_call(&format!("kprobe_multi: {what}"), LINK_CREATE, &attr);
    }
    let link = s.call("kprobe_multi", LINK_CREATE, &mut good.clone().ptr(40, &cookies));
    let (at, keep) = ([0u64; 2], [0u64; 2]);
    for (what, space) in [
        ("no room", Attrs::new(64)),
        ("room", Attrs::new(64).ptr(16, &at).u32(24, 2).ptr(40, &keep)),
        ("room without addresses", Attrs::new(64).u32(24, 2)),
        ("cookies without room", Attrs::new(64).ptr(40, &keep)),
    ] {
        s.try_call(
            &format!("kprobe_multi: info, {what}"),
            INFO,
            &Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0),
        );
        s.note(&format!("kprobe_multi: info, {what}: count and flags"), &space.0[24..40]);
    }
    s.note("kprobe_multi: cookie", &keep[0].to_ne_bytes());
}
