//! The rows.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::kernel::Kernel;
use crate::make::*;
use crate::script::{Attrs, Script};
use crate::special;

/// `main(skb)`, global `f(int)`, static `s(int)` and global `g(skb)`.
const TARGET: [Function; 4] =
    [("main", "s", 'i', true), ("f", "i", 'i', true), ("s", "i", 'i', false), ("g", "s", 'i', true)];
const MAIN: u32 = 0;
const F: u32 = 1;
const S: u32 = 2;
const G: u32 = 3;
/// Returns `f(5) + 1000 * s(1)`, where `f` adds 1.
const TARGET_TEXT: &str = "r6 = r1\nr1 = 5\ncall f\nr7 = r0\nr1 = 1\ncall s\nr0 *= 1000\nr7 += r0\nr1 = r6\ncall g
r0 = r7\nexit\nf:\nr0 = r1\nr0 += 1\nexit\ns:\nr0 = r1\nexit\ng:\nr0 = 1\nexit\n";
const HUNDRED: &str = "r0 = 100\nexit\n";
const ZERO: &str = "r0 = 0\nexit\n";
const ONE: &str = "r0 = 1\nexit\n";

fn target() -> Program<'static> {
    Program::new(SCHED_CLS, 0, &TARGET, TARGET_TEXT)
}

/// An extension with this prototype.
pub fn extension<'a>(functions: &'a [Function], text: &str) -> Program<'a> {
    Program::new(EXT, 0, functions, text)
}

const OF_INT: [Function; 1] = [("ext_f", "i", 'i', true)];
const OF_SKB: [Function; 1] = [("ext_g", "s", 'i', true)];

fn around<'a>(how: u32, functions: &'a [Function], text: &str) -> Program<'a> {
    Program::new(TRACING, how, functions, text)
}

const TRACER: [Function; 1] = [("tracer", "i", 'i', true)];

/// True on a kernel that loads extensions.
pub fn kernel_has_extensions(kernel: &dyn Kernel) -> bool {
    let mut s = Script::new(kernel);
    let target = target().load(&mut s, "target");
    extension(&OF_INT, HUNDRED).on(target, type_of(F)).load(&mut s, "extension");
    let answers = s.finish();
    answers.iter().all(|(_, a)| matches!(a, crate::script::Answer::Fd))
}

pub fn run(s: &mut Script<'_>) {
    prototypes(s);
    load_attributes(s);
    target_types(s);
    tracing_targets(s);
    attach(s);
    attach_elsewhere(s);
    attach_tracers(s);
    tail_calls(s);
    depth(s);
    what_tracers_see(s);
    lives(s);
    while_it_runs(s);
    statistics(s);
    special::run(s);
}

fn prototypes(s: &mut Script<'_>) {
    let t = target().load(s, "target");
    runs(s, "target: returns", t);
    let cases: [(&str, Function, u32); 13] = [
        ("extension of f", ("ext_f", "i", 'i', true), F),
        ("static function as target", ("ext_s", "i", 'i', true), S),
        ("main function as target", ("ext_main", "s", 'i', true), MAIN),
        ("global g(ctx) as target", ("ext_g", "s", 'i', true), G),
        ("the extension is static", ("ext_s", "i", 'i', false), F),
        ("int for unsigned int", ("e_u", "u", 'i', true), F),
        ("return int for unsigned int", ("e_ru", "i", 'u', true), F),
        ("int for long", ("e_l", "l", 'i', true), F),
        ("1 argument for 2", ("e_2", "ii", 'i', true), F),
        ("1 argument for 0", ("e_0", "", 'i', true), F),
        ("return int for void", ("e_void", "i", 'v', true), F),
        ("int for int *", ("e_pint", "p", 'i', true), F),
        ("int for ctx", ("ext_g", "s", 'i', true), F),
    ];
    for (name, function, on) in cases {
        extension(&[function], HUNDRED).on(t, type_of(on)).try_load(s, &format!("prototype: {name}"));
    }
    extension(&OF_INT, HUNDRED).on(t, type_of(G)).try_load(s, "prototype: ctx for int");
    extension(&[("e_xdp", "x", 'i', true)], HUNDRED).on(t, type_of(G)).try_load(s, "prototype: ctx of another type");
    s.close(t);
    let functions = [("main", "s", 'i', true), ("f", "p", 'i', true)];
    let text = "r2 = r10\nr2 += -8\n*(u64 *)(r2 +0) = 1\nr1 = r2\ncall f\nr0 = 0\nexit\nf:\nr0 = 1\nif r1 == 0 goto out
r0 = *(u32 *)(r1 +0)\nout:\nexit\n";
    let p = Program::new(SCHED_CLS, 0, &functions, text).load(s, "target with f(int *)");
    let on = type_of(1);
    let checked = "r0 = 1\nif r1 == 0 goto out\nr0 = *(u32 *)(r1 +0)\nout:\nexit\n";
    extension(&[("e_pint", "p", 'i', true)], checked).on(p, on).try_load(s, "f(int *), with null check");
    let unchecked = "r0 = *(u32 *)(r1 +0)\nexit\n";
    extension(&[("e_pint", "p", 'i', true)], unchecked).on(p, on).try_load(s, "f(int *), without null check");
    s.close(p);
}

fn load_attributes(s: &mut Script<'_>) {
    let with_absent = Program { absent: &[("f2", "i", 'i', true)], ..target() };
    let t = with_absent.load(s, "target with a type too many");
    let ext = || extension(&OF_INT, HUNDRED);
    Program { func_info: false, ..ext() }.on(t, type_of(F)).try_load(s, "load: no func_info");
    Program { types: false, ..ext() }.on(t, type_of(F)).try_load(s, "load: no types");
    ext().on(t, 0).try_load(s, "load: type 0");
    ext().on(t, 9999).try_load(s, "load: type out of range");
    ext().on(t, INT).try_load(s, "load: type of no function");
    ext().on(t, type_of(4)).try_load(s, "load: function that is not in the program");
    ext().on(0, type_of(0)).try_load(s, "load: no program, own type");
    ext().on(0, kernel_type("bpf_fentry_test1", true)).try_load(s, "load: no program, function of the kernel");
    ext().on(0, 0).try_load(s, "load: nothing to replace");
    ext().on(999, type_of(F)).try_load(s, "load: bad descriptor");
    let m = map(s, "load: a map", 2, 8, 1);
    ext().on(m, type_of(F)).try_load(s, "load: a map's descriptor");
    let blob = types(&OF_INT);
    let btf = s.call("load: types", BTF_LOAD, &mut Attrs::new(32).ptr(0, &blob).u32(16, blob.len() as u32));
    ext().on(btf, type_of(F)).try_load(s, "load: descriptor of types");
    Program { attach: FENTRY, ..ext() }.on(t, type_of(F)).try_load(s, "load: with an attach type");
    Program { flags: SLEEPABLE, ..ext() }.on(t, type_of(F)).try_load(s, "load: sleepable");
    Program { license: b"MIT\0", ..ext() }.on(t, type_of(F)).try_load(s, "load: another licence");
    Program::new(SCHED_CLS, 0, &OF_SKB, ONE).on(t, type_of(F)).try_load(s, "load: of another type, with a target");
    Program::new(SCHED_CLS, 0, &OF_SKB, ONE).on(0, type_of(F)).try_load(s, "load: of another type, with a type");
    s.close(t);
    let bare = Program { types: false, ..target() }.load(s, "target without types");
    ext().on(bare, type_of(F)).try_load(s, "load: target without types: extension");
    around(FENTRY, &TRACER, ZERO).on(bare, type_of(F)).try_load(s, "load: target without types: fentry");
}

fn target_types(s: &mut Script<'_>) {
    let functions = [("main", "s", 'i', true), ("f", "i", 'i', true)];
    let text = "r1 = 5\ncall f\nr0 = 0\nexit\nf:\nr0 = r1\nexit\n";
    let k = Program::new(KPROBE, 0, &functions, text).load(s, "kprobe target");
    extension(&OF_INT, HUNDRED).on(k, type_of(1)).try_load(s, "type: kprobe, its f");
    extension(&OF_SKB, HUNDRED).on(k, type_of(0)).try_load(s, "type: kprobe, its main function with another context");
    let x = Program::new(XDP, 0, &[("main", "x", 'i', true), ("f", "i", 'i', true)], text).load(s, "XDP target");
    extension(&OF_INT, HUNDRED).on(x, type_of(1)).try_load(s, "type: XDP, its f");
    let xdp_returns = "r0 = r1\nexit\n";
    extension(&OF_INT, xdp_returns).on(x, type_of(1)).try_load(s, "type: XDP, f returns anything");
    let t = target().load(s, "type: traffic control");
    let on_g = |text: &str| extension(&OF_SKB, text).on(t, type_of(G));
    on_g("call 188\nr0 = 0\nexit\n").try_load(s, "type: a helper of XDP");
    on_g("r2 = 0\ncall 44\nr0 = 0\nexit\n").try_load(s, "type: a helper of XDP that moves packets");
    on_g("r2 = 0\nr3 = r10\nr3 += -8\n*(u64 *)(r3 +0) = 0\nr4 = 8\ncall 26\nr0 = 0\nexit\n")
        .try_load(s, "type: bpf_skb_load_bytes");
    on_g("r0 = *(u32 *)(r1 +0)\nexit\n").try_load(s, "type: the context is read");
    on_g("r2 = 8\ncall 39\nr0 = 0\nexit\n").try_load(s, "type: moves packets, g does not");
    let on_f = |text: &str| extension(&OF_INT, text).on(t, type_of(F));
    on_f("exit\n").try_load(s, "type: returns nothing");
    on_f("r0 = *(u32 *)(r1 +0)\nexit\n").try_load(s, "type: a number as a pointer");
    let connect = [("main", "a", 'i', true), ("f", "i", 'i', true)];
    let text = "r1 = 1\ncall f\nr0 &= 1\nexit\nf:\nr0 = r1\nexit\n";
    let c = Program::new(SOCK_ADDR, CONNECT4, &connect, text).load(s, "connect4 target");
    extension(&OF_INT, "r0 = 255\nexit\n").on(c, type_of(1)).try_load(s, "type: connect4, f returns 255");
    extension(&OF_INT, ONE).on(c, type_of(1)).try_load(s, "type: connect4, f returns 1");
    let sys = [("main", "i", 'i', true), ("f", "i", 'i', true)];
    let text = "r1 = 5\ncall f\nr0 = 0\nexit\nf:\nr0 = r1\nexit\n";
    let y = Program { flags: SLEEPABLE, ..Program::new(SYSCALL, 0, &sys, text) }.load(s, "syscall target");
    extension(&OF_INT, HUNDRED).on(y, type_of(1)).try_load(s, "type: syscall, its f");
    Program { flags: SLEEPABLE, ..extension(&OF_INT, HUNDRED) }
        .on(y, type_of(1))
        .try_load(s, "type: syscall, a sleepable extension");
    let copies = "r1 = r10\nr1 += -8\nr2 = 8\nr3 = 0\ncall 148\nr0 = 0\nexit\n";
    extension(&OF_INT, copies).on(y, type_of(1)).try_load(s, "type: syscall, bpf_copy_from_user");
    for fd in [k, x, t, c, y] {
        if fd >= 0 {
            s.close(fd);
        }
    }
}

/// Two functions: the main one, which is called around something, and a global one.
const WITH_F: [Function; 2] = [("tracer", "i", 'i', true), ("f", "i", 'i', true)];
const WITH_F_TEXT: &str = "r1 = 5\ncall f\nr0 = 0\nexit\nf:\nr0 = r1\nexit\n";

fn tracing_targets(s: &mut Script<'_>) {
    let on_main = |s: &mut Script<'_>, name: &str, fd: i64| {
        extension(&[("e", "i", 'i', true)], HUNDRED).on(fd, type_of(0)).try_load(s, name);
    };
    let on_f =
        |s: &mut Script<'_>, name: &str, fd: i64| extension(&OF_INT, HUNDRED).on(fd, type_of(1)).try_load(s, name);
    let kernel = [
        ("fentry", TRACING, FENTRY, kernel_type("bpf_fentry_test1", true)),
        ("fexit", TRACING, FEXIT, kernel_type("bpf_fentry_test1", true)),
        ("fmod_ret", TRACING, MODIFY_RETURN, kernel_type("bpf_modify_return_test", true)),
        ("tp_btf", TRACING, RAW_TP, kernel_type("btf_trace_sched_switch", false)),
        ("lsm", LSM, LSM_MAC, kernel_type("bpf_lsm_inode_mkdir", true)),
        ("security of bpf", LSM, LSM_MAC, kernel_type("bpf_lsm_bpf", true)),
    ];
    for (name, ty, how, id) in kernel {
        let p = Program::new(ty, how, &WITH_F, WITH_F_TEXT).on(0, id).load(s, &format!("kernel's: {name}"));
        on_main(s, &format!("kernel's: {name}, its main function"), p);
        on_f(s, &format!("kernel's: {name}, its f"), p);
        if p >= 0 {
            s.close(p);
        }
    }
    let t = target().load(s, "tracing: target");
    let entry = around(FENTRY, &WITH_F, WITH_F_TEXT).on(t, type_of(F)).load(s, "tracing: fentry of f");
    on_main(s, "tracing: fentry, its main function replaced", entry);
    on_f(s, "tracing: fentry, its f replaced", entry);
    let exit = around(FEXIT, &WITH_F, WITH_F_TEXT).on(t, type_of(F)).load(s, "tracing: fexit of f");
    on_f(s, "tracing: fexit, its f replaced", exit);
    around(MODIFY_RETURN, &TRACER, ZERO).on(t, type_of(F)).try_load(s, "tracing: fmod_ret of f");
    around(RAW_TP, &TRACER, ZERO).on(t, type_of(F)).try_load(s, "tracing: tp_btf of f");
    around(FENTRY, &TRACER, ZERO).on(t, type_of(S)).try_load(s, "tracing: fentry of a static function");
    around(FENTRY, &TRACER, ZERO).on(t, type_of(MAIN)).try_load(s, "tracing: fentry of the main function");
    Program { flags: SLEEPABLE, ..around(FENTRY, &TRACER, ZERO) }
        .on(t, type_of(F))
        .try_load(s, "tracing: sleepable fentry of f");
    around(FENTRY, &TRACER, ONE).on(t, type_of(F)).try_load(s, "tracing: fentry returns 1");
    let reads = |off: u32| format!("r1 = *(u64 *)(r1 +{off})\nr0 = 0\nexit\n");
    around(FENTRY, &TRACER, &reads(0)).on(t, type_of(F)).try_load(s, "tracing: fentry reads the argument");
    around(FENTRY, &TRACER, &reads(8)).on(t, type_of(F)).try_load(s, "tracing: fentry reads behind it");
    around(FEXIT, &TRACER, &reads(8)).on(t, type_of(F)).try_load(s, "tracing: fexit reads the result");
    around(FEXIT, &TRACER, &reads(16)).on(t, type_of(F)).try_load(s, "tracing: fexit reads behind it");
    let ext = extension(&OF_INT, HUNDRED).on(t, type_of(F)).load(s, "tracing: an extension");
    extension(&OF_INT, HUNDRED).on(ext, type_of(0)).try_load(s, "tracing: extension of an extension");
    around(FENTRY, &TRACER, ZERO).on(ext, type_of(0)).try_load(s, "tracing: fentry of an extension");
    around(FEXIT, &TRACER, ZERO).on(ext, type_of(0)).try_load(s, "tracing: fexit of an extension");
    around(MODIFY_RETURN, &TRACER, ZERO).on(ext, type_of(0)).try_load(s, "tracing: fmod_ret of an extension");
    let nested = around(FENTRY, &TRACER, ZERO).on(entry, type_of(0)).load(s, "tracing: fentry of an fentry");
    around(FENTRY, &TRACER, ZERO).on(nested, type_of(0)).try_load(s, "tracing: fentry of an fentry of an fentry");
    Program::new(LSM, LSM_MAC, &TRACER, ZERO).on(t, type_of(F)).try_load(s, "tracing: lsm on a function of a program");
    runs(s, "tracing: test run of an extension", ext);
    for fd in [t, entry, exit, ext, nested] {
        s.close(fd);
    }
}

fn attach(s: &mut Script<'_>) {
    let t = target().load(s, "attach: target");
    let e = extension(&OF_INT, HUNDRED).on(t, type_of(F)).load(s, "attach: extension");
    let l = open(s, "attach: open", e);
    runs(s, "attach: target returns", t);
    let told = info(s.kernel, l, 64);
    s.answered("attach: link info, type", i64::from(field(&told, 0)), false);
    s.answered("attach: link info, attach type", i64::from(field(&told, 16)), false);
    let (target_id, prog_id) = (field(&info(s.kernel, t, 80), 4), field(&info(s.kernel, e, 80), 4));
    s.answered("attach: link info, program is the extension", i64::from(field(&told, 8) == prog_id), false);
    s.answered("attach: link info, target is the target", i64::from(field(&told, 20) == target_id), false);
    s.answered("attach: link info, type of the function", i64::from(field(&told, 24) == type_of(F)), false);
    let told = info(s.kernel, e, 228);
    s.answered("attach: program info, type", i64::from(field(&told, 0)), false);
    s.answered("attach: program info, types attached to", i64::from(field(&told, 220)), false);
    s.answered("attach: program info, type attached to", i64::from(field(&told, 224) == type_of(F)), false);
    s.answered("attach: program info, functions with types", i64::from(field(&told, 144)), false);
    s.answered("attach: program info, there is machine code", i64::from(field(&told, 16) > 0), false);
    open(s, "attach: again, no target given", e);
    link(s, "attach: again, the same target", e, t, type_of(F), 0);
    let e2 = extension(&OF_INT, "r0 = 7\nexit\n").on(t, type_of(F)).load(s, "attach: a second extension");
    open(s, "attach: a second extension, open", e2);
    let fe = around(FENTRY, &TRACER, ZERO).on(t, type_of(F)).load(s, "attach: fentry of the replaced function");
    open(s, "attach: fentry of the replaced function, open", fe);
    let on_e = around(FENTRY, &TRACER, ZERO).on(e, type_of(0)).load(s, "attach: fentry of the attached extension");
    let on_e = open(s, "attach: fentry of the attached extension, open", on_e);
    runs(s, "attach: target returns, extension traced", t);
    s.close(on_e);
    runs(s, "attach: target returns, extension traced no more", t);
    s.call("attach: update", LINK_UPDATE, &mut Attrs::new(16).u32(0, l as u32).u32(4, e2 as u32));
    s.call("attach: detach by force", LINK_DETACH, &mut Attrs::new(4).u32(0, l as u32));
    let path = b"/sys/fs/bpf/skep-function-link\0";
    s.call("attach: pin", OBJ_PIN, &mut Attrs::new(16).ptr(0, path).u32(8, l as u32));
    s.close(l);
    runs(s, "attach: link closed, pin there: target returns", t);
    s.unpin("/sys/fs/bpf/skep-function-link");
    // The kernel detaches a little later.
    std::thread::sleep(std::time::Duration::from_millis(200));
    runs(s, "attach: pin gone: target returns", t);
    open(s, "attach: detached, open without target", e);
    let l = link(s, "attach: detached, the same target", e, t, type_of(F), 0);
    runs(s, "attach: attached again: target returns", t);
    s.close(l);
    runs(s, "attach: detached: target returns", t);
    let m = extension(&OF_SKB, "r0 = 42\nexit\n").on(t, type_of(MAIN)).load(s, "attach: extension of main");
    let l = open(s, "attach: extension of main, open", m);
    runs(s, "attach: main replaced: target returns", t);
    s.close(l);
    runs(s, "attach: main restored: target returns", t);
    s.call("attach: with a name", RAW_OPEN, &mut Attrs::new(16).ptr(0, b"f\0").u32(8, e2 as u32));
    s.call("attach: PROG_ATTACH", PROG_ATTACH, &mut Attrs::new(32).u32(0, t as u32).u32(4, e2 as u32));
    s.close(t);
    open(s, "attach: target's descriptor closed, open", e2);
    s.close(fe);
}

fn attach_elsewhere(s: &mut Script<'_>) {
    let first = target().load(s, "elsewhere: target");
    let second = target().load(s, "elsewhere: second target");
    let e = extension(&OF_INT, HUNDRED).on(first, type_of(F)).load(s, "elsewhere: extension");
    let l = link(s, "elsewhere: the second target", e, second, type_of(F), 0);
    runs(s, "elsewhere: second target returns", second);
    runs(s, "elsewhere: first target returns", first);
    let both = link(s, "elsewhere: the first, too", e, first, type_of(F), 0);
    runs(s, "elsewhere: both: second returns", second);
    runs(s, "elsewhere: both: first returns", first);
    s.close(l);
    runs(s, "elsewhere: one gone: second returns", second);
    runs(s, "elsewhere: one gone: first returns", first);
    s.close(both);
    link(s, "elsewhere: another prototype", e, second, type_of(G), 0);
    link(s, "elsewhere: static function", e, second, type_of(S), 0);
    link(s, "elsewhere: bad type", e, second, 9999, 0);
    link(s, "elsewhere: type of no function", e, second, INT, 0);
    link(s, "elsewhere: descriptor without type", e, second, 0, 0);
    link(s, "elsewhere: type without descriptor", e, 0, type_of(F), 0);
    link(s, "elsewhere: bad descriptor", e, 999, type_of(F), 0);
    let m = map(s, "elsewhere: a map", 2, 8, 1);
    link(s, "elsewhere: descriptor of a map", e, m, type_of(F), 0);
    let l = link_as(s, "elsewhere: attach type fentry", e, second, type_of(F), 0, FENTRY, 0);
    s.close(l);
    let l = link_as(s, "elsewhere: flags", e, second, type_of(F), 0, 0, 1);
    s.close(l);
    let l = link(s, "elsewhere: cookie", e, second, type_of(F), 7);
    s.close(l);
    let text = "r1 = 5\ncall f\nr0 = 0\nexit\nf:\nr0 = r1\nexit\n";
    let x = Program::new(XDP, 0, &[("main", "x", 'i', true), ("f", "i", 'i', true)], text).load(s, "elsewhere: XDP");
    link(s, "elsewhere: program of another type", e, x, type_of(1), 0);
    let bare = Program { types: false, ..target() }.load(s, "elsewhere: target without types");
    link(s, "elsewhere: program without types", e, bare, type_of(F), 0);
    link(s, "elsewhere: an extension", e, e, type_of(0), 0);
}

fn attach_tracers(s: &mut Script<'_>) {
    let t = target().load(s, "tracers: target");
    let other = target().load(s, "tracers: another target");
    let fe = around(FENTRY, &TRACER, ZERO).on(t, type_of(F)).load(s, "tracers: fentry");
    let l = open(s, "tracers: fentry, open", fe);
    runs(s, "tracers: target returns", t);
    let told = info(s.kernel, l, 64);
    s.answered("tracers: link info, type", i64::from(field(&told, 0)), false);
    s.answered("tracers: link info, attach type", i64::from(field(&told, 16)), false);
    let e = extension(&OF_INT, HUNDRED).on(t, type_of(F)).load(s, "tracers: extension of a traced function");
    open(s, "tracers: extension of a traced function, open", e);
    open(s, "tracers: fentry, second link", fe);
    link_as(s, "tracers: fentry, another target", fe, other, type_of(F), 0, FENTRY, 0);
    let m = around(FENTRY, &TRACER, ZERO).on(t, type_of(MAIN)).load(s, "tracers: fentry of main");
    let on_main = open(s, "tracers: fentry of main, open", m);
    runs(s, "tracers: both traced: target returns", t);
    s.close(l);
    let replaced = open(s, "tracers: extension, the fentry gone", e);
    runs(s, "tracers: main traced and f replaced: target returns", t);
    open(s, "tracers: fentry again after its link", fe);
    s.close(replaced);
    s.close(on_main);
    runs(s, "tracers: all gone: target returns", t);
    let wrong = around(FENTRY, &TRACER, ZERO).on(t, type_of(F)).load(s, "tracers: for wrong attach types");
    link_as(s, "tracers: fentry linked as fexit", wrong, 0, 0, 0, FEXIT, 0);
    link_as(s, "tracers: fentry linked as nothing", wrong, 0, 0, 0, 0, 0);
    link_as(s, "tracers: fentry linked as fentry", wrong, 0, 0, 0, FENTRY, 0);
    // As many as there is room for.
    let mut links = Vec::new();
    for n in 0..39 {
        let p = around(FEXIT, &TRACER, ZERO).on(other, type_of(F)).load(s, &format!("tracers: fexit {n}"));
        let l = open(s, &format!("tracers: fexit {n}, open"), p);
        links.push(l);
        s.close(p);
    }
    runs(s, "tracers: 38 fexits: target returns", other);
    links.into_iter().filter(|l| *l >= 0).for_each(|l| s.close(l));
    runs(s, "tracers: no fexits: target returns", other);
}

fn tail_calls(s: &mut Script<'_>) {
    let t = target().load(s, "arrays: target");
    let array = map(s, "arrays: prog array", 3, 4, 2);
    put(s, "arrays: target in", array, 0, t);
    let e = extension(&OF_INT, HUNDRED).on(t, type_of(F)).load(s, "arrays: extension");
    open(s, "arrays: extension, target in an array", e);
    let fe = around(FENTRY, &TRACER, ZERO).on(t, type_of(F)).load(s, "arrays: fentry");
    let fl = open(s, "arrays: fentry, target in an array", fe);
    s.close(fl);
    take(s, "arrays: target out", array, 0);
    let l = open(s, "arrays: extension, target out", e);
    put(s, "arrays: replaced target in", array, 0, t);
    put(s, "arrays: extension in", array, 1, e);
    s.close(l);
    put(s, "arrays: target in again", array, 0, t);
    let fresh = map(s, "arrays: fresh prog array", 3, 4, 2);
    put(s, "arrays: extension into the fresh one", fresh, 0, e);
    // Tail calls of extensions.
    let calls = map(s, "arrays: array of an extension", 3, 4, 2);
    let tail = format!("r2 = map[fd:{calls}]\nr3 = 0\ncall 12\nr0 = 5\nexit\n");
    extension(&OF_SKB, &tail)
        .on(t, type_of(G))
        .try_load(s, "arrays: g does not move packets, its extension tail-calls");
    let empty = map(s, "arrays: empty array", 3, 4, 2);
    let text = format!("call g\nexit\ng:\nr2 = map[fd:{empty}]\nr3 = 0\ncall 12\nr0 = 3\nexit\n");
    let functions = [("main", "s", 'i', true), ("g", "s", 'i', true)];
    // A tail call may move them.
    let mover = Program::new(SCHED_CLS, 0, &functions, &text).load(s, "arrays: target that moves packets");
    runs(s, "arrays: it returns", mover);
    let te = extension(&OF_SKB, &tail).on(mover, type_of(1)).load(s, "arrays: extension that tail-calls");
    put(s, "arrays: a program into its array", calls, 0, t);
    let l = open(s, "arrays: extension that tail-calls, open", te);
    runs(s, "arrays: the tail-called program's result", mover);
    put(s, "arrays: the replaced target into its extension's array", calls, 1, mover);
    take(s, "arrays: nothing to call", calls, 0);
    runs(s, "arrays: the extension's result", mover);
    s.close(l);
    runs(s, "arrays: restored", mover);
}

/// A main function and so many frames below it; the last one is global `f(int)`.
fn chain(frames: usize, text_of_last: &str) -> (Vec<Function>, String) {
    const NAMES: [&str; 10] = ["main", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9"];
    let mut functions = vec![("main", "s", 'i', true)];
    let mut text = String::from("r1 = 5\n");
    for name in &NAMES[1..frames - 1] {
        functions.push((*name, "i", 'i', false));
        text += &format!("call {name}\nexit\n{name}:\n");
    }
    functions.push(("f", "i", 'i', true));
    text += &format!("call f\nexit\nf:\n{text_of_last}");
    (functions, text)
}

/// An extension of `f(int)` with so many frames, which returns 55.
fn deep(frames: usize) -> (Vec<Function>, String) {
    const NAMES: [&str; 10] = ["e", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9"];
    let mut functions = vec![("e", "i", 'i', true)];
    let mut text = String::new();
    for name in &NAMES[1..frames] {
        functions.push((*name, "i", 'i', false));
        text += &format!("call {name}\nexit\n{name}:\n");
    }
    text += "r0 = 55\nexit\n";
    (functions, text)
}

fn depth(s: &mut Script<'_>) {
    let functions = [("main", "s", 'i', true), ("f", "i", 'i', true)];
    let text = "*(u64 *)(r10 -480) = 0\nr1 = 5\ncall f\nexit\nf:\nr0 = r1\nexit\n";
    let t = Program::new(SCHED_CLS, 0, &functions, text).load(s, "depth: main with 480 bytes");
    let e = extension(&OF_INT, "*(u64 *)(r10 -512) = 0\nr0 = 77\nexit\n").on(t, type_of(1));
    let e = e.load(s, "depth: extension with 512 bytes");
    let l = open(s, "depth: extension with 512 bytes, open", e);
    runs(s, "depth: 480 and 512 bytes: returns", t);
    s.close(l);
    let e = extension(&OF_INT, "*(u64 *)(r10 -520) = 0\nr0 = 77\nexit\n").on(t, type_of(1));
    e.try_load(s, "depth: extension with 520 bytes");
    for frames in [7, 8] {
        let (functions, text) = chain(frames, "r0 = r1\nexit\n");
        let t = Program::new(SCHED_CLS, 0, &functions, &text).load(s, &format!("depth: target of {frames} frames"));
        let on = type_of(frames as u32 - 1);
        let (functions, text) = deep(8);
        let e = extension(&functions, &text).on(t, on).load(s, &format!("depth: extension of 8 frames on {frames}"));
        let l = open(s, &format!("depth: extension of 8 frames on {frames}, open"), e);
        runs(s, &format!("depth: 8 frames on {frames}: returns"), t);
        s.close(l);
        let (functions, text) = deep(9);
        extension(&functions, &text).on(t, on).try_load(s, &format!("depth: extension of 9 frames on {frames}"));
        runs(s, &format!("depth: {frames} frames: returns"), t);
    }
    let (functions, text) = chain(9, "r0 = r1\nexit\n");
    Program::new(SCHED_CLS, 0, &functions, &text).try_load(s, "depth: target of 9 frames");
}

/// Loads a program around a function that works on an array's value, whose address is in r6; the context is in r7.
pub fn recorder(s: &mut Script<'_>, name: &str, how: u32, on: (i64, u32), array: i64, text: &str) -> i64 {
    let text = format!("r7 = r1\nr6 = map[fd:{array}][0]+0\n{text}r0 = 0\nexit\n");
    around(how, &TRACER, &text).on(on.0, on.1).load(s, name)
}

fn what_tracers_see(s: &mut Script<'_>) {
    let functions = [("main", "s", 'i', true), ("f", "ili", 'i', true), ("h", "ii", 'i', false)];
    let text =
        "r1 = -5\nr2 = 0x123456789a ll\nr3 = 7\ncall f\nr6 = r0\nr1 = 3\nr2 = 4\ncall h\nr0 += r6\nexit\nf:\nr0 = r3
r0 += 10\nexit\nh:\nr0 = r1\nr0 *= r2\nexit\n";
    let t = Program::new(SCHED_CLS, 0, &functions, text).load(s, "seen: target");
    let (f, h, main) = ((t, type_of(1)), (t, type_of(2)), (t, type_of(0)));
    runs(s, "seen: target returns", t);
    let array = map(s, "seen: array", 2, 64, 1);
    let keep = |off: u32, at: u32| format!("r1 = *(u64 *)(r7 +{off})\n*(u64 *)(r6 +{at}) = r1\n");
    let arguments = format!("{}{}{}", keep(0, 0), keep(8, 8), keep(16, 16));
    let p = recorder(s, "seen: arguments", FENTRY, f, array, &arguments);
    let l = open(s, "seen: arguments, open", p);
    runs(s, "seen: arguments: target returns", t);
    words(s, "seen: arguments", array, 8);
    s.close(l);
    runs(s, "seen: arguments, link closed: target returns", t);
    words(s, "seen: nothing any more", array, 8);
    let p = recorder(s, "seen: result", FEXIT, f, array, &format!("{arguments}{}", keep(24, 24)));
    let l = open(s, "seen: result, open", p);
    runs(s, "seen: result: target returns", t);
    words(s, "seen: result", array, 8);
    s.close(l);
    // What the helpers tell. get_func_arg_cnt, get_func_arg, get_func_ret, get_attach_cookie.
    let arg = |n: u32, at: u32| {
        format!(
            "*(u64 *)(r10 -8) = 99\nr1 = r7\nr2 = {n}\nr3 = r10\nr3 += -8\ncall 183\n*(u64 *)(r6 +{at}) = r0
r1 = *(u64 *)(r10 -8)\n*(u64 *)(r6 +{}) = r1\n",
            at + 8
        )
    };
    let ret = |at: u32| {
        format!(
            "*(u64 *)(r10 -8) = 99\nr1 = r7\nr2 = r10\nr2 += -8\ncall 184\n*(u64 *)(r6 +{at}) = r0
r1 = *(u64 *)(r10 -8)\n*(u64 *)(r6 +{}) = r1\n",
            at + 8
        )
    };
    let count = "r1 = r7\ncall 185\n*(u64 *)(r6 +0) = r0\n";
    let cookie = "r1 = r7\ncall 174\n*(u64 *)(r6 +56) = r0\n";
    for (name, how) in [("fentry", FENTRY), ("fexit", FEXIT)] {
        let text = format!("{count}{}{}{}{cookie}", arg(2, 8), arg(3, 24), ret(40));
        let p = recorder(s, &format!("seen: helpers of {name}"), how, f, array, &text);
        let l = link_as(s, &format!("seen: helpers of {name}, linked with a cookie"), p, 0, 0, 0x1234, how, 0);
        runs(s, &format!("seen: helpers of {name}: target returns"), t);
        words(s, &format!("seen: helpers of {name}"), array, 8);
        s.close(l);
    }
    // Order: each appends its digit.
    let digit = |n: u32| format!("r1 = *(u64 *)(r6 +0)\nr1 *= 10\nr1 += {n}\n*(u64 *)(r6 +0) = r1\n");
    let mut links = Vec::new();
    for (n, how) in [(1, FENTRY), (2, FEXIT), (3, FENTRY), (4, FEXIT), (5, FENTRY), (6, FEXIT)] {
        let p = recorder(s, &format!("order: {n}"), how, f, array, &digit(n));
        links.push(open(s, &format!("order: {n}, open"), p));
    }
    runs(s, "order: target returns", t);
    words(s, "order", array, 1);
    s.close(links.remove(2));
    runs(s, "order: one less: target returns", t);
    words(s, "order: one less", array, 1);
    links.into_iter().for_each(|l| s.close(l));
    // A static function, and the main one.
    let p =
        recorder(s, "seen: static function", FEXIT, h, array, &format!("{}{}{}", keep(0, 0), keep(8, 8), keep(16, 16)));
    let l = open(s, "seen: static function, open", p);
    runs(s, "seen: static function: target returns", t);
    words(s, "seen: static function", array, 3);
    let q = recorder(s, "seen: main", FEXIT, main, array, &keep(8, 24));
    let lq = open(s, "seen: main, open", q);
    runs(s, "seen: main: target returns", t);
    words(s, "seen: main", array, 4);
    s.close(lq);
    s.close(l);
    // An extension that is traced while it stands in two places, and a tracer that is traced.
    let second = Program::new(SCHED_CLS, 0, &functions, text).load(s, "seen: second target");
    let e = extension(&[("e", "ili", 'i', true)], "r0 = r1\nr0 += 1000\nexit\n")
        .on(t, type_of(1))
        .load(s, "seen: extension");
    let (l1, l2) = (open(s, "seen: extension, open", e), link(s, "seen: extension, second", e, second, type_of(1), 0));
    let p = recorder(s, "seen: fexit of the extension", FEXIT, (e, type_of(0)), array, &(digit(1) + &keep(24, 8)));
    let l = open(s, "seen: fexit of the extension, open", p);
    let tp = recorder(s, "seen: fentry of the fexit", FENTRY, (p, type_of(0)), array, &digit(2));
    let ltp = open(s, "seen: fentry of the fexit, open", tp);
    for (name, fd) in [("first", t), ("second", second)] {
        runs(s, &format!("seen: traced extension: {name} target returns"), fd);
        words(s, &format!("seen: traced extension, {name}"), array, 2);
    }
    s.close(l1);
    runs(s, "seen: traced extension, one gone: target returns", t);
    runs(s, "seen: traced extension, one gone: second target returns", second);
    words(s, "seen: traced extension, one gone", array, 2);
    s.close(ltp);
    s.close(l2);
    s.close(l);
    runs(s, "seen: all gone: second target returns", second);
    words(s, "seen: all gone", array, 2);
}

fn lives(s: &mut Script<'_>) {
    let t = target().load(s, "lives: target");
    let id = field(&info(s.kernel, t, 80), 4);
    let e = extension(&OF_INT, HUNDRED).on(t, type_of(F)).load(s, "lives: extension");
    s.close(t);
    let there = |s: &mut Script<'_>, name: &str| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        s.try_call(name, PROG_BY_ID, &Attrs::new(12).u32(0, id));
    };
    there(s, "lives: extension loaded, target closed");
    let l = open(s, "lives: open", e);
    there(s, "lives: attached, target closed");
    s.close(l);
    there(s, "lives: link closed");
}

/// An extension comes and goes while the target is run by another thread.
fn while_it_runs(s: &mut Script<'_>) {
    const CYCLES: usize = 100;
    let t = target().load(s, "running: target");
    let e = extension(&OF_INT, HUNDRED).on(t, type_of(F)).load(s, "running: extension");
    // The first attachment is of the function that it was loaded for; the others name it.
    let first = open(s, "running: extension, open", e);
    s.close(first);
    let (kernel, stop) = (s.kernel, AtomicBool::new(false));
    let (mut failed, mut others) = (0, 0);
    std::thread::scope(|scope| {
        let runs = || {
            let (data, mut strange) = ([0u8; 64], 0);
            while !stop.load(Ordering::Relaxed) {
                let mut attr = Attrs::new(80).u32(0, t as u32).u32(8, data.len() as u32).ptr(16, &data);
                let r = kernel.bpf(TEST_RUN, &mut attr.0);
                let retval = u32::from_ne_bytes(attr.0[4..8].try_into().expect("four bytes"));
                strange += i64::from(r < 0 || retval != 1006 && retval != 1100);
            }
            strange
        };
        let runner = scope.spawn(runs);
        for _ in 0..CYCLES {
            let mut attr = Attrs::new(64).u32(0, e as u32).u32(4, t as u32).u32(16, type_of(F));
            match kernel.bpf(LINK_CREATE, &mut attr.0) {
                link if link >= 0 => kernel.close(link),
                _ => failed += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
        others = runner.join().expect("the runs");
    });
    s.answered("running: failed attaches", failed, false);
    s.answered("running: results that are neither", others, false);
    runs(s, "running: target returns at the end", t);
}

/// Runs of the programs that are counted while somebody wants that.
fn statistics(s: &mut Script<'_>) {
    let t = target().load(s, "statistics: target");
    let entry = around(FENTRY, &TRACER, ZERO).on(t, type_of(F)).load(s, "statistics: fentry");
    let exit = around(FEXIT, &TRACER, ZERO).on(t, type_of(F)).load(s, "statistics: fexit");
    let e = extension(&OF_SKB, HUNDRED).on(t, type_of(G)).load(s, "statistics: extension");
    let links: Vec<i64> = [("fentry", entry), ("fexit", exit), ("extension", e)]
        .map(|(name, fd)| open(s, &format!("statistics: {name}, open"), fd))
        .into();
    let counts = |s: &mut Script<'_>, when: &str| {
        for (name, fd) in [("target", t), ("fentry", entry), ("fexit", exit), ("extension", e)] {
            let told = info(s.kernel, fd, 216);
            let word = |at: usize| i64::from(field(&told, at)) | i64::from(field(&told, at + 4)) << 32;
            s.answered(&format!("statistics: {when}: runs of the {name}"), word(200), false);
            s.answered(&format!("statistics: {when}: the {name} took time"), i64::from(word(192) > 0), false);
            s.answered(&format!("statistics: {when}: the {name} was left out"), word(208), false);
        }
    };
    runs(s, "statistics: off: target returns", t);
    counts(s, "off");
    let on = s.call("statistics: on", ENABLE_STATS, &mut Attrs::new(4));
    for n in 0..3 {
        runs(s, &format!("statistics: run {n}: target returns"), t);
    }
    counts(s, "three runs");
    s.close(on);
    runs(s, "statistics: off again: target returns", t);
    counts(s, "off again");
    let on = s.call("statistics: on again", ENABLE_STATS, &mut Attrs::new(4));
    s.close(links[0]);
    runs(s, "statistics: the fentry gone: target returns", t);
    counts(s, "the fentry gone");
    s.close(on);
    links[1..].iter().for_each(|l| s.close(*l));
}
