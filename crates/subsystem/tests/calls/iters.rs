//! Iterators over programs, maps, links and elements: made, read, updated, and each single thing wrong.

use skep_ebpf::asm::assemble;
use skep_ebpf::btf::{Btf, Kind};

use crate::script::{Attrs, Script};

const MAP_CREATE: u32 = 0;
const UPDATE: u32 = 2;
const PROG_LOAD: u32 = 5;
const PIN: u32 = 6;
const INFO: u32 = 15;
const RAW_OPEN: u32 = 17;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const ITER_CREATE: u32 = 33;
const LINK_DETACH: u32 = 34;

const TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_HASH: u32 = 5;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;

/// The kernel's types, which say where members are.
struct Types<'a>(&'a Btf);

impl Types<'_> {
    fn function(&self, name: &str) -> u32 {
        self.0.find(name, |k| matches!(k, Kind::Func { .. })).unwrap_or(0)
    }

    /// Where a member is.
    fn at(&self, of: &str, member: &str) -> u32 {
        let id = self.0.find(of, |k| matches!(k, Kind::Struct(_)));
        let members = id.and_then(|id| self.0.kind(id)?.composite()).map(|c| c.members.clone()).unwrap_or_default();
        let found = members.iter().find(|m| self.0.str_at(m.name_off) == Some(member));
        found.unwrap_or_else(|| panic!("{of} has no {member}")).bit_offset / 8
    }
}

fn code(text: &str) -> Vec<u64> {
    let insns = assemble(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    insns.iter().map(|i| u64::from_ne_bytes(i.to_bytes())).collect()
}

fn program(on: u32, code: &[u64]) -> Attrs {
    Attrs::new(168)
        .u32(0, TRACING)
        .u32(4, code.len() as u32)
        .ptr(8, code)
        .ptr(16, b"GPL\0")
        .u32(68, TRACE_ITER)
        .u32(108, on)
}

fn load(s: &mut Script<'_>, name: &str, on: u32, text: &str) -> i64 {
    let code = code(text);
    s.call(&format!("iter: load {name}"), PROG_LOAD, &mut program(on, &code))
}

fn map(s: &mut Script<'_>, name: &str, ty: u32, key: u32, value: u32, entries: u32) -> i64 {
    let mut attr = Attrs::new(92).u32(0, ty).u32(4, key).u32(8, value).u32(12, entries).bytes(28, b"skepiter");
    s.call(&format!("iter: map {name}"), MAP_CREATE, &mut attr)
}

/// The number of an object.
fn number(s: &mut Script<'_>, name: &str, fd: i64) -> u32 {
    let info = std::hint::black_box([0u32; 64]);
    s.call(&format!("iter: info of {name}"), INFO, &mut Attrs::new(16).u32(0, fd as u32).u32(4, 64).ptr(8, &info));
    info[1]
}

/// All that an iterator gives, in reads of so many bytes.
fn reads(s: &mut Script<'_>, name: &str, fd: i64, step: usize) {
    let mut all = Vec::new();
    let end = loop {
        let mut part = vec![0u8; step];
        match s.kernel.read(fd, &mut part) {
            n if n > 0 => all.extend_from_slice(&part[..n as usize]),
            end => break end,
        }
        if all.len() > 1 << 20 {
            break 1;
        }
    };
    s.note(&format!("{name}: read"), &all);
    s.answered(&format!("{name}: end"), end, false);
}

fn open(s: &mut Script<'_>, name: &str, link: i64) -> i64 {
    s.call(&format!("iter: open {name}"), ITER_CREATE, &mut Attrs::new(8).u32(0, link as u32))
}

fn link(s: &mut Script<'_>, name: &str, prog: i64, map: i64) -> i64 {
    let info = [map as u32];
    let attr = Attrs::new(64).u32(0, prog as u32).u32(8, TRACE_ITER);
    let mut attr = if map < 0 { attr } else { attr.ptr(16, &info).u32(24, 4) };
    s.call(&format!("iter: link {name}"), LINK_CREATE, &mut attr)
}

/// Makes a link, reads it whole, and again in small parts.
fn run(s: &mut Script<'_>, name: &str, prog: i64, map: i64) {
    let made = link(s, name, prog, map);
    for step in [1 << 16, 7] {
        let fd = open(s, &format!("{name}, {step} bytes at once"), made);
        reads(s, &format!("iter: {name}, {step} bytes at once"), fd, step);
        s.close(fd);
    }
    s.close(made);
}

/// Writes the 32 bytes below the frame pointer, and ends.
const WRITE: &str = "
    r1 = *(u64 *)(r6 +0)
    r2 = r10
    r2 += -32
    w3 = 32
    call seq_write#127
end:
    w0 = 0
    exit";

/// All of it; `types` are the kernel's.
pub fn iters(s: &mut Script<'_>, types: &Btf) {
    let t = Types(types);
    objects(s, &t);
    elements(s, &t);
    text(s, &t);
    links(s, &t);
    descriptors(s, &t);
}

/// Programs that write what they see of the one object that has the number.
fn objects(s: &mut Script<'_>, t: &Types<'_>) {
    let array = map(s, "to be found", ARRAY, 4, 24, 3);
    let id = number(s, "the map", array);
    let on = t.function("bpf_iter_bpf_map");
    let at = |m| t.at("bpf_map", m);
    let text = format!(
        "r6 = *(u64 *)(r1 +0)
         r7 = *(u64 *)(r1 +8)
         if r7 == 0 goto end
         r1 = *(u32 *)(r7 +{})
         if w1 != {id} goto end
         r1 = *(u32 *)(r7 +{})
         *(u32 *)(r10 -32) = r1
         r1 = *(u32 *)(r7 +{})
         *(u32 *)(r10 -28) = r1
         r1 = *(u32 *)(r7 +{})
         *(u32 *)(r10 -24) = r1
         r1 = *(u32 *)(r7 +{})
         *(u32 *)(r10 -20) = r1
         r1 = *(u8 *)(r7 +{})
         *(u64 *)(r10 -16) = r1
         r1 = *(u64 *)(r7 +{})
         *(u64 *)(r10 -8) = r1 {WRITE}",
        at("id"),
        at("map_type"),
        at("key_size"),
        at("value_size"),
        at("max_entries"),
        at("name") + 3,
        at("map_extra"),
    );
    let prog = load(s, "over maps", on, &text);
    run(s, "maps", prog, -1);
    let pid = number(s, "the program", prog);
    let aux = |m| t.at("bpf_prog_aux", m);
    let text = format!(
        "r6 = *(u64 *)(r1 +0)
         r7 = *(u64 *)(r1 +8)
         if r7 == 0 goto end
         r8 = *(u64 *)(r7 +{})
         r1 = *(u32 *)(r8 +{})
         if w1 != {pid} goto end
         r1 = *(u32 *)(r7 +{})
         *(u32 *)(r10 -32) = r1
         r1 = *(u32 *)(r7 +{})
         *(u32 *)(r10 -28) = r1
         r1 = *(u32 *)(r8 +{})
         *(u64 *)(r10 -24) = r1
         r1 = *(u8 *)(r8 +{})
         *(u64 *)(r10 -16) = r1
         ; what is not there is null, and what is followed from there zero
         r1 = *(u64 *)(r8 +{})
         r1 = *(u64 *)(r1 +{})
         r1 = *(u32 *)(r1 +{})
         *(u64 *)(r10 -8) = r1 {WRITE}",
        t.at("bpf_prog", "aux"),
        aux("id"),
        t.at("bpf_prog", "type"),
        t.at("bpf_prog", "expected_attach_type"),
        aux("attach_btf_id"),
        aux("name"),
        aux("dst_prog"),
        t.at("bpf_prog", "aux"),
        aux("id"),
    );
    let over = load(s, "over programs", t.function("bpf_iter_bpf_prog"), &text);
    run(s, "programs", over, -1);
    let held = link(s, "to be found", prog, -1);
    let lid = number(s, "the link", held);
    let at = |m| t.at("bpf_link", m);
    let text = format!(
        "r6 = *(u64 *)(r1 +0)
         r7 = *(u64 *)(r1 +8)
         if r7 == 0 goto end
         r1 = *(u32 *)(r7 +{})
         if w1 != {lid} goto end
         r1 = *(u32 *)(r7 +{})
         *(u64 *)(r10 -32) = r1
         r8 = *(u64 *)(r7 +{})
         r1 = *(u32 *)(r8 +{})
         *(u64 *)(r10 -24) = r1
         r8 = *(u64 *)(r8 +{})
         r1 = *(u32 *)(r8 +{})
         r1 -= {pid}
         *(u64 *)(r10 -16) = r1
         r1 = 0
         *(u64 *)(r10 -8) = r1 {WRITE}",
        at("id"),
        at("type"),
        at("prog"),
        t.at("bpf_prog", "type"),
        t.at("bpf_prog", "aux"),
        aux("id"),
    );
    let over = load(s, "over links", t.function("bpf_iter_bpf_link"), &text);
    run(s, "links", over, -1);
}

/// Writes number, key and value of each element, and a mark for the end.
fn element(t: &Types<'_>, key: u32, value: u32) -> String {
    let number = t.at("bpf_iter_meta", "seq_num");
    format!(
        "r6 = *(u64 *)(r1 +0)
         r8 = *(u64 *)(r1 +16)
         r9 = *(u64 *)(r1 +24)
         r1 = 0
         *(u64 *)(r10 -32) = r1
         *(u64 *)(r10 -24) = r1
         *(u64 *)(r10 -16) = r1
         r1 = *(u64 *)(r6 +{number})
         *(u64 *)(r10 -8) = r1
         if r8 == 0 goto last
         if r9 == 0 goto last
         r1 = *(u32 *)(r8 +{key})
         *(u64 *)(r10 -32) = r1
         r1 = *(u64 *)(r9 +{value})
         *(u64 *)(r10 -24) = r1
         r1 += 100
         *(u64 *)(r9 +{value}) = r1
         goto pc+2
     last:
         r1 = -1
         *(u64 *)(r10 -16) = r1 {WRITE}"
    )
}

fn elements(s: &mut Script<'_>, t: &Types<'_>) {
    let on = t.function("bpf_iter_bpf_map_elem");
    let plain = load(s, "over elements", on, &element(t, 0, 0));
    let far = load(s, "over elements with values of 16 bytes", on, &element(t, 0, 8));
    let long = load(s, "over elements with keys of 8 bytes", on, &element(t, 4, 0));
    for (name, ty, entries, set) in [
        ("array", ARRAY, 5u32, 5u32),
        ("hash", HASH, 5, 1),
        ("empty hash", HASH, 5, 0),
        ("LRU hash", LRU_HASH, 5, 1),
        ("per-CPU array", PERCPU_ARRAY, 2, 1),
        ("per-CPU hash", PERCPU_HASH, 5, 1),
    ] {
        let fd = map(s, name, ty, 4, 8, entries);
        for key in 0..set {
            let value: Vec<u64> = vec![u64::from(key) + 1; s.kernel.cpus()];
            let mut attr = Attrs::new(32).u32(0, fd as u32).ptr(8, &[key]).ptr(16, &value);
            s.call(&format!("iter: {name}: set {key}"), UPDATE, &mut attr);
        }
        run(s, name, plain, fd);
        let wide = link(s, &format!("{name}, values of 16 bytes"), far, fd);
        if wide >= 0 {
            s.close(wide);
        }
        link(s, &format!("{name}, keys of 8 bytes"), long, fd);
        // The last run has changed what it was given, unless that was a copy.
        run(s, &format!("{name} again"), plain, fd);
    }
    for (name, ty, key, value, entries) in [
        ("queue", 22u32, 0u32, 4u32, 4u32),
        ("prog array", 3, 4, 4, 2),
        ("ring buffer", 27, 0, 0, 4096),
        ("trie", 11, 8, 8, 2),
    ] {
        let flags = u32::from(ty == 11);
        let mut attr = Attrs::new(92).u32(0, ty).u32(4, key).u32(8, value).u32(12, entries).u32(16, flags);
        let fd = s.call(&format!("iter: map {name}"), MAP_CREATE, &mut attr);
        link(s, &format!("over a {name}"), plain, fd);
    }
}

/// What `seq_printf` makes of its arguments, too much text, and results other than 0.
fn text(s: &mut Script<'_>, t: &Types<'_>) {
    let on = t.function("bpf_iter_bpf_map_elem");
    let one = map(s, "of one element", ARRAY, 4, 8, 1);
    let seq = "
        r6 = *(u64 *)(r1 +0)
        r7 = *(u64 *)(r1 +24)
        if r7 == 0 goto end";
    // The format is put on the stack, eight bytes at a time.
    let print = |format: &[u8], args: &[i64]| {
        let mut body = String::from(seq);
        let mut bytes = format.to_vec();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        for (n, part) in bytes.chunks(8).enumerate() {
            let word = u64::from_ne_bytes(part.try_into().unwrap());
            body += &format!("\nr1 = {word:#x} ll\n*(u64 *)(r10 -{}) = r1", bytes.len() - n * 8);
        }
        let base = bytes.len() + args.len() * 8;
        for (n, arg) in args.iter().enumerate() {
            body += &format!("\nr1 = {arg:#x} ll\n*(u64 *)(r10 -{}) = r1", base - n * 8);
        }
        body += &format!(
            "\nr1 = *(u64 *)(r6 +0)\nr2 = r10\nr2 += -{}\nw3 = {}\nr4 = r10\nr4 += -{base}\nw5 = {}\ncall seq_printf#126",
            bytes.len(),
            format.len(),
            args.len() * 8,
        );
        // What the helper answered is written, too.
        body + "
            *(u64 *)(r10 -8) = r0
            r1 = *(u64 *)(r6 +0)
            r2 = r10
            r2 += -8
            w3 = 8
            call seq_write#127
        end:
            w0 = 0
            exit"
    };
    for (name, format, args) in [
        ("numbers", &b"%d %u %x %X %lld|%llu|%lx\0"[..], &[-5i64, 7, 0xabc, 0xdef, -9, 11, 0x1234][..]),
        ("widths", b"[%5d] [%-5d] [%05d] [%+d]\0", &[42, 42, 42, 42]),
        ("characters", b"%c%c %%\0", &[65, 66]),
        ("no arguments", b"plain\n\0", &[]),
        ("unknown conversion", b"%q\0", &[1]),
        ("too few arguments", b"%d %d\0", &[1]),
        ("too many arguments", b"%d\0", &[1, 2]),
        ("not ended", b"no end!!", &[]),
        ("a percent sign at the end", b"100%\0", &[]),
        ("not ASCII", b"\xc3\xa4\0", &[]),
        ("null string", b"<%s>\0", &[0]),
    ] {
        let prog = load(s, &format!("text, {name}"), on, &print(format, args));
        if prog >= 0 {
            run(s, &format!("text, {name}"), prog, one);
            s.close(prog);
        }
    }
    let returns = |value: u32, then: &str| format!("{seq}\n{then}\nw0 = {value}\nexit\nend:\nw0 = 0\nexit");
    let fails = load(s, "that returns 1", on, &returns(1, ""));
    run(s, "that returns 1", fails, one);
    let two = load(s, "that returns 2", on, &returns(2, ""));
    assert!(two < 0);
    // A text of 4,000 bytes eight times does not fit into 32,768, a ninth of them does not either.
    let big = map(s, "of a large value", ARRAY, 4, 4096, 3);
    for times in [1, 7, 8, 9] {
        let part = "r1 = *(u64 *)(r6 +0)\nr2 = r7\nw3 = 4096\ncall seq_write#127\n".repeat(times);
        let prog = load(s, &format!("that writes {times} pages"), on, &returns(0, &part));
        run(s, &format!("{times} pages for each element"), prog, big);
        s.close(prog);
    }
    let counts = [0usize, 1, 4096, 8191];
    let part = "r1 = *(u64 *)(r6 +0)\nr2 = r7\nw3 = 4096\ncall seq_write#127\n".repeat(2);
    let prog = load(s, "that writes two pages", on, &returns(0, &part));
    let made = link(s, "that writes two pages", prog, big);
    for count in counts {
        let fd = open(s, &format!("to be read by {count}"), made);
        let mut room = vec![0u8; count];
        for n in 0..4 {
            let r = s.kernel.read(fd, &mut room);
            s.answered(&format!("iter: read {count} bytes, {n}"), r, false);
        }
        s.close(fd);
    }
}

/// Making links, and what they say and let be done.
fn links(s: &mut Script<'_>, t: &Types<'_>) {
    let ends = "w0 = 0\nexit";
    let over = |s: &mut Script<'_>, name: &str, what: &str| load(s, name, t.function(what), ends);
    let maps = over(s, "plain over maps", "bpf_iter_bpf_map");
    let again = over(s, "plain over maps again", "bpf_iter_bpf_map");
    let progs = over(s, "plain over programs", "bpf_iter_bpf_prog");
    let elems = over(s, "plain over elements", "bpf_iter_bpf_map_elem");
    let array = map(s, "for links", ARRAY, 4, 8, 1);
    let code = code(ends);
    s.try_call("iter: load, sleepable", PROG_LOAD, &program(t.function("bpf_iter_bpf_map"), &code).u32(44, 1 << 4));
    let sleeps = s.call(
        "iter: load over elements, sleepable",
        PROG_LOAD,
        &mut program(t.function("bpf_iter_bpf_map_elem"), &code).u32(44, 1 << 4),
    );
    s.try_call("iter: load on no iterator", PROG_LOAD, &program(t.function("vfs_read"), &code));
    s.try_call("iter: load on nothing", PROG_LOAD, &program(0, &code));
    let (info, tail, wrong) = ([array as u32, 0, 0, 0], [0u32, 0, 0, 0, 1], [999u32]);
    let (prog_as_map, zero) = ([maps as u32], [0u32; 1200]);
    let good = Attrs::new(64).u32(0, elems as u32).u32(8, TRACE_ITER).ptr(16, &info).u32(24, 4);
    for (name, attr) in [
        ("good", good.clone()),
        ("16 bytes", good.clone().u32(24, 16)),
        ("more bytes, zero", good.clone().ptr(16, &zero).u32(24, 32)),
        ("more bytes", good.clone().ptr(16, &tail).u32(24, 20)),
        ("a page", good.clone().ptr(16, &zero).u32(24, 4096)),
        ("more than a page", good.clone().ptr(16, &zero).u32(24, 4097)),
        ("no length", good.clone().u32(24, 0)),
        ("no information", good.clone().u64(16, 0)),
        ("neither", good.clone().u64(16, 0).u32(24, 0)),
        ("a bad address", good.clone().u64(16, 8)),
        ("no such map", good.clone().ptr(16, &wrong)),
        ("a program as map", good.clone().ptr(16, &prog_as_map)),
        ("a target", good.clone().u32(4, array as u32)),
        ("flags", good.clone().u32(12, 1)),
        ("another attach type", good.clone().u32(8, 24)),
        ("raw tracepoint's attach type", good.clone().u32(8, 23)),
        ("LSM's attach type", good.clone().u32(8, 27)),
        ("not a program", good.clone().u32(0, array as u32)),
        ("not open", good.clone().u32(0, 999)),
        ("sleepable", good.clone().u32(0, sleeps as u32)),
        ("a map for what goes over all", good.clone().u32(0, maps as u32)),
        ("a bad map for what goes over all", good.clone().u32(0, maps as u32).ptr(16, &wrong)),
    ] {
        s.try_call(&format!("iter: link, {name}"), LINK_CREATE, &attr);
    }
    s.try_call("iter: as a raw tracepoint", RAW_OPEN, &Attrs::new(24).u32(8, maps as u32));
    let name = b"sys_enter\0";
    s.try_call("iter: as a raw tracepoint by name", RAW_OPEN, &Attrs::new(24).ptr(0, name).u32(8, maps as u32));
    let made = link(s, "over maps", maps, -1);
    let of = link(s, "over elements", elems, array);
    for (what, link) in [("maps", made), ("elements", of)] {
        for (size, room) in [("no room", 0u32), ("room for 4", 4), ("room for 8", 8), ("room", 64)] {
            let text = std::hint::black_box([0xffu8; 64]);
            let at = if room == 0 { 0 } else { text.as_ptr() as u64 };
            let space = Attrs::new(64).u64(16, at).u32(24, room);
            let mut attr = Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0);
            s.call(&format!("iter: info of {what}, {size}"), INFO, &mut attr);
            let space = std::hint::black_box(space);
            s.note(&format!("iter: info of {what}, {size}: type"), &space.0[..4]);
            s.note(&format!("iter: info of {what}, {size}: length"), &space.0[24..28]);
            s.note(&format!("iter: info of {what}, {size}: a map"), &[u8::from(space.0[28..32] != [0; 4])]);
            s.note(&format!("iter: info of {what}, {size}: name"), &text[..16]);
        }
        let text = [0u8; 16];
        let space = Attrs::new(64).ptr(16, &text);
        let attr = Attrs::new(16).u32(0, link as u32).u32(4, 64).ptr(8, &space.0);
        s.try_call(&format!("iter: info of {what}, a name and no room"), INFO, &attr);
    }
    let update = Attrs::new(16).u32(0, made as u32).u32(4, again as u32);
    for (name, attr) in [
        ("the same", update.clone().u32(4, maps as u32)),
        ("good", update.clone()),
        ("replace, not the present one", update.clone().u32(8, 4).u32(12, maps as u32)),
        ("replace", update.clone().u32(8, 4).u32(12, again as u32).u32(4, maps as u32)),
        ("an old program without the flag", update.clone().u32(12, maps as u32)),
        ("on something else", update.clone().u32(4, progs as u32)),
        ("on something else, not the present one", update.clone().u32(4, progs as u32).u32(8, 4).u32(12, again as u32)),
        ("flags", update.clone().u32(8, 8)),
        ("no program", update.clone().u32(4, array as u32)),
    ] {
        s.try_call(&format!("iter: update, {name}"), LINK_UPDATE, &attr);
    }
    s.try_call("iter: detach", LINK_DETACH, &Attrs::new(4).u32(0, made as u32));
}

/// Opening, and what can be done with what was opened.
fn descriptors(s: &mut Script<'_>, t: &Types<'_>) {
    let prog = load(s, "to be opened", t.function("bpf_iter_bpf_map_elem"), "w0 = 0\nexit");
    let array = map(s, "to be opened", ARRAY, 4, 8, 1);
    let made = link(s, "to be opened", prog, array);
    let good = Attrs::new(8).u32(0, made as u32);
    for (name, attr) in [
        ("good", good.clone()),
        ("flags", good.clone().u32(4, 1)),
        ("a program", good.clone().u32(0, prog as u32)),
        ("a map", good.clone().u32(0, array as u32)),
        ("not open", good.clone().u32(0, 999)),
        ("stdin", good.clone().u32(0, 0)),
        ("short", Attrs(good.0[..4].to_vec())),
        ("a tail", {
            let mut a = good.clone();
            a.0.resize(16, 1);
            a
        }),
    ] {
        s.try_call(&format!("iter: create, {name}"), ITER_CREATE, &attr);
    }
    let fd = open(s, "to be misused", made);
    let info = [0u32; 64];
    s.try_call("iter: info of an iterator", INFO, &Attrs::new(16).u32(0, fd as u32).u32(4, 64).ptr(8, &info));
    let path = b"/sys/fs/bpf/skep-iter\0";
    s.try_call("iter: pin an iterator", PIN, &Attrs::new(20).ptr(0, path).u32(8, fd as u32));
    s.try_call("iter: open an iterator", ITER_CREATE, &Attrs::new(8).u32(0, fd as u32));
    s.try_call("iter: an iterator as a map", LINK_CREATE, &{
        let info = vec![fd as u32].leak();
        Attrs::new(64).u32(0, prog as u32).u32(8, TRACE_ITER).ptr(16, info).u32(24, 4)
    });
    // It goes on when link, map and program are closed.
    s.close(made);
    s.close(array);
    s.close(prog);
    reads(s, "iter: all else closed", fd, 64);
}
