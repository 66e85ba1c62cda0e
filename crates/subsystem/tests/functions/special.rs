//! Rows on what does not go from call to return: functions that helpers call, exceptions, loops that end by themselves.

use crate::make::*;
use crate::rows::{extension, recorder};
use crate::script::Script;

const OF_INT: [Function; 1] = [("e", "i", 'i', true)];
/// Counts in the first word of an array whose value's address is in r6.
const COUNT: &str = "r1 = *(u64 *)(r6 +0)\nr1 += 1\n*(u64 *)(r6 +0) = r1\n";

pub fn run(s: &mut Script<'_>) {
    callbacks(s);
    exceptions(s);
    loops(s);
}

/// Keeps in the next word what an argument is, or the result behind it.
fn keep(off: u32, at: u32) -> String {
    format!("r1 = *(u64 *)(r7 +{off})\n*(u64 *)(r6 +{at}) = r1\n")
}

fn callbacks(s: &mut Script<'_>) {
    let array = map(s, "callbacks: array", 2, 64, 1);
    let elements = map(s, "callbacks: three elements", 2, 8, 3);
    let adds = "r1 = *(u64 *)(r2 +0)\nr1 += 10\n*(u64 *)(r2 +0) = r1\nr0 = 0\nexit\n";
    let looped = format!(
        "*(u64 *)(r10 -8) = 0\nr1 = 5\nr2 = subprog[cb]\nr3 = r10\nr3 += -8\nr4 = 0\ncall 181\nr6 = r0\nr6 *= 1000
r0 = *(u64 *)(r10 -8)\nr0 += r6\nexit\ncb:\n{adds}"
    );
    let each = format!(
        "*(u64 *)(r10 -8) = 0\nr1 = map[fd:{elements}]\nr2 = subprog[cb]\nr3 = r10\nr3 += -8\nr4 = 0\ncall 164\nr6 = r0
r6 *= 1000\nr0 = *(u64 *)(r10 -8)\nr0 += r6\nexit\ncb:\nr2 = r4\n{adds}"
    );
    for (name, text, params) in [("bpf_loop", &looped, "ip"), ("for each element", &each, "pppp")] {
        let functions = [("main", "s", 'i', true), ("cb", params, 'i', false)];
        let t = Program::new(SCHED_CLS, 0, &functions, text).load(s, &format!("callbacks: {name}"));
        runs(s, &format!("callbacks: {name}: returns"), t);
        let p = recorder(s, &format!("callbacks: {name}: fentry"), FENTRY, (t, type_of(1)), array, COUNT);
        let entry = open(s, &format!("callbacks: {name}: fentry, open"), p);
        runs(s, &format!("callbacks: {name}: with fentry"), t);
        words(s, &format!("callbacks: {name}: calls seen"), array, 1);
        let p = recorder(s, &format!("callbacks: {name}: fexit"), FEXIT, (t, type_of(1)), array, COUNT);
        let exit = open(s, &format!("callbacks: {name}: fexit, open"), p);
        runs(s, &format!("callbacks: {name}: with both"), t);
        words(s, &format!("callbacks: {name}: calls seen by both"), array, 1);
        s.close(entry);
        runs(s, &format!("callbacks: {name}: with fexit"), t);
        words(s, &format!("callbacks: {name}: calls seen by fexit"), array, 1);
        s.close(exit);
        runs(s, &format!("callbacks: {name}: restored"), t);
        words(s, &format!("callbacks: {name}: none seen"), array, 1);
    }
    // Functions that call back, replaced, and replacing.
    let functions = [("main", "s", 'i', true), ("f", "i", 'i', true)];
    let t = Program::new(SCHED_CLS, 0, &functions, "r1 = 5\ncall f\nr0 += 1\nexit\nf:\nr0 = r1\nexit\n");
    let t = t.load(s, "callbacks: plain target");
    let functions = [("e", "i", 'i', true), ("cb", "ip", 'i', false)];
    let e = extension(&functions, &looped).on(t, type_of(1)).load(s, "callbacks: extension that loops");
    let l = open(s, "callbacks: extension that loops, open", e);
    runs(s, "callbacks: extension that loops: returns", t);
    s.close(l);
    runs(s, "callbacks: plain target returns", t);
}

fn exceptions(s: &mut Script<'_>) {
    let throw = format!("call kernel-function#{}\n", kernel_type("bpf_throw", true));
    let array = map(s, "exceptions: array", 2, 64, 1);
    let of_f = [("main", "s", 'i', true), ("f", "i", 'i', true)];
    let calls_f = "r1 = 5\ncall f\nr0 += 1000\nexit\nf:\n";
    let plain = Program::new(SCHED_CLS, 0, &of_f, &format!("{calls_f}r0 = r1\nexit\n"));
    let plain = plain.load(s, "exceptions: target that does not throw");
    let throws = format!("{calls_f}r6 = r1\nif r6 != 5 goto not\nr1 = 16\n{throw}not:\nr0 = r6\nexit\n");
    let throws = Program::new(SCHED_CLS, 0, &of_f, &throws).load(s, "exceptions: target that throws");
    let deep = [("e", "i", 'i', true), ("d", "i", 'i', false)];
    let deep_text = format!("call d\nr0 += 1\nexit\nd:\nr1 = 8\n{throw}r0 = 0\nexit\n");
    for (target_name, t) in [("plain", plain), ("throwing", throws)] {
        let say = |what: &str| format!("exceptions: {target_name}: {what}");
        runs(s, &say("returns"), t);
        let e = extension(&OF_INT, "r0 = 100\nexit\n").on(t, type_of(1)).load(s, &say("extension without"));
        let l = open(s, &say("extension without, open"), e);
        runs(s, &say("replaced: returns"), t);
        s.close(l);
        let e = extension(&OF_INT, &format!("r1 = 7\n{throw}r0 = 0\nexit\n")).on(t, type_of(1));
        let e = e.load(s, &say("extension that throws"));
        let l = open(s, &say("extension that throws, open"), e);
        runs(s, &say("extension that throws: returns"), t);
        let p = recorder(s, &say("fexit of it"), FEXIT, (e, type_of(0)), array, &format!("{COUNT}{}", keep(8, 8)));
        let exit = open(s, &say("fexit of it, open"), p);
        runs(s, &say("fexit of it: returns"), t);
        words(s, &say("fexit of it: seen"), array, 2);
        s.close(exit);
        s.close(l);
        let e = extension(&deep, &deep_text).on(t, type_of(1)).load(s, &say("extension that throws deep"));
        let l = open(s, &say("extension that throws deep, open"), e);
        runs(s, &say("extension that throws deep: returns"), t);
        s.close(l);
        runs(s, &say("restored"), t);
        let p = recorder(s, &say("fentry"), FENTRY, (t, type_of(1)), array, COUNT);
        let entry = open(s, &say("fentry, open"), p);
        runs(s, &say("with fentry"), t);
        words(s, &say("with fentry: seen"), array, 1);
        s.close(entry);
        let main = format!("{COUNT}{}", keep(8, 8));
        let p = recorder(s, &say("fexit of main"), FEXIT, (t, type_of(0)), array, &main);
        let exit = open(s, &say("fexit of main, open"), p);
        runs(s, &say("fexit of main: returns"), t);
        words(s, &say("fexit of main: seen"), array, 2);
        s.close(exit);
        let text = format!("{COUNT}r1 = 0\n{throw}");
        let p = recorder(s, &say("fentry that throws"), FENTRY, (t, type_of(1)), array, &text);
        let entry = open(s, &say("fentry that throws, open"), p);
        runs(s, &say("fentry that throws: returns"), t);
        words(s, &say("fentry that throws: seen"), array, 1);
        s.close(entry);
        runs(s, &say("at the end"), t);
    }
}

fn loops(s: &mut Script<'_>) {
    let nine = "r0 = 0\nagain:\nr0 += 1\nif r0 s> 9 goto out\nmay_goto out\ngoto again\nout:\nexit\n";
    let functions = [("main", "s", 'i', true), ("f", "i", 'i', true)];
    let text = format!("r1 = 5\ncall f\nr0 += 1000\nexit\nf:\n{nine}");
    let t = Program::new(SCHED_CLS, 0, &functions, &text).load(s, "loops: target");
    runs(s, "loops: target returns", t);
    let five = nine.replace("s> 9", "s> 4");
    let e = extension(&OF_INT, &five).on(t, type_of(1)).load(s, "loops: extension");
    let l = open(s, "loops: extension, open", e);
    runs(s, "loops: extension: returns", t);
    s.close(l);
    let array = map(s, "loops: array", 2, 64, 1);
    let p = recorder(s, "loops: fexit", FEXIT, (t, type_of(1)), array, &format!("{COUNT}{}", keep(8, 8)));
    let l = open(s, "loops: fexit, open", p);
    runs(s, "loops: fexit: returns", t);
    words(s, "loops: fexit: seen", array, 2);
    s.close(l);
    runs(s, "loops: restored", t);
}
