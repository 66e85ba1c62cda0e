//! Much used library functions, and any function and instruction of some, are traced while programs do what they always do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use skep_tests::{Finished, Trace, Value, build, object, scratch};

#[test]
fn a_tortured_program_computes_the_same() {
    let program = build("torture.cc", &[]);
    let out = Command::new(&program).arg("300").output().expect("runs");
    let want: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    assert_eq!(out.status.code(), Some(9));
    for _ in 0..5 {
        let done = Trace::command(&object("test/torture.bpf.o"), [program.as_os_str(), "300".as_ref()]).finish();
        assert_eq!(done.plain, want, "{}", done.stderr);
        assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
        assert_eq!(done.summary("e_leaf")["exit_status"].as_i64(), Some(9));
        assert!(done.count("e_leaf", "hits") > 0 && done.count("r_malloc", "hits") > 0);
    }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Numbers that look random, the same in every run that has the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// How the places that were attached to are probed.
fn methods(done: &Finished) -> (usize, usize) {
    let attached: Vec<&Value> = done.kind("attached");
    let jumps = attached.iter().filter(|a| a["method"] == "jump").count();
    (jumps, attached.len())
}

/// A library of so many functions, each made differently, and a program that calls all of them.
fn library(functions: usize) -> PathBuf {
    let (mut random, mut text) = (Random(0x5eed), String::from("typedef unsigned long u64;\n"));
    for n in 0..functions {
        let (c, other) = (random.below(1 << 30) + 1, random.below(n.max(1)));
        let (shift, rounds) = (c % 60 + 1, c % 31 + 1);
        let body = match random.below(if n < 40 { 9 } else { 11 }) {
            0 => "return a + b;".into(),
            1 => format!("return a * {c}u ^ (b >> {shift});"),
            2 => format!("u64 s = a; for (u64 i = 0; i < (b & {rounds}); i++) s = s * 31 + i; return s;"),
            3 => {
                let cases: String = (0..8).map(|case| format!("case {case}: return b + {};", c % (case + 2))).collect();
                format!("switch (a & 7) {{ {cases} }} return 0;")
            }
            4 => format!("return a < 2 ? b : f{n}(a >> {}, b + a);", c % 7 + 2),
            5 => "double x = (double)(a & 0xffff) + 0.5, y = (double)(b & 0xff) + 1; return (u64)(x * y / 3.0);".into(),
            6 => format!(
                "u64 t[8] = {{a, b}}; for (int i = 2; i < 8; i++) t[i] = t[i - 1] + t[i - 2] * {rounds}; return t[a & 7];"
            ),
            7 => format!("return a & {c}u;"),
            8 => "static u64 calls; return a + (++calls & 1);".into(),
            9 => format!("return f{other}(b, a);"),
            _ => format!("return f{other}(a ^ {c}u, b) + a;"),
        };
        let _ = writeln!(text, "u64 f{n}(u64 a, u64 b) {{ {body} }}");
    }
    let names: String = (0..functions).map(|n| format!("f{n},")).collect();
    let _ = writeln!(text, "u64 (*const all[])(u64, u64) = {{{names}}};\nconst unsigned count = {functions};");
    let folder = scratch().join("any");
    std::fs::create_dir_all(&folder).expect("folder");
    let (source, library, program) = (folder.join("any.c"), folder.join("libany.so"), folder.join("any"));
    std::fs::write(&source, text).expect("source");
    let compile = |args: &[&str], from: &Path, to: &Path| {
        let status = Command::new("gcc").args(args).arg(from).arg("-o").arg(to).arg(&library).status().expect("gcc");
        assert!(status.success(), "gcc could not build {}", from.display());
    };
    let shared = ["-O2", "-fno-semantic-interposition", "-shared", "-fPIC", "-o"];
    let status = Command::new("gcc").args(shared).arg(&library).arg(&source).status().expect("gcc");
    assert!(status.success(), "gcc could not build the library");
    compile(&["-O2"], &skep_tests::root().join("tests/targets/any.c"), &program);
    program
}

#[test]
fn every_function_of_a_library() {
    let functions = number("SKEP_FUNCTIONS", 400);
    let program = library(functions);
    let out = Command::new(&program).arg("20").output().expect("runs");
    let want: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    assert_eq!((want.len(), out.status.code()), (1, Some(7)));
    let mut args = vec![object("test/cost_both.bpf.o").into_os_string()];
    args.extend((0..functions).flat_map(|n| ["--func".into(), format!("libany.so:f{n}").into()]));
    args.extend(["--".into(), program.into_os_string(), "20".into()]);
    let done = Trace::start(args).finish();
    assert_eq!(done.plain, want, "{}", done.stderr);
    assert_eq!(done.summary("on_entry")["exit_status"].as_i64(), Some(7));
    let (jumps, attached) = methods(&done);
    assert_eq!(attached, 2 * functions, "{}", done.stderr);
    assert!(jumps * 100 >= attached * 98, "{jumps} of {attached} entries take a jump");
    println!("{jumps} of {attached} probes of {functions} functions are jumps");
    let (entries, returns) = (done.count("on_entry", "hits"), done.count("on_return", "hits"));
    assert!(entries >= 20 * functions as u64);
    // All functions return.
    assert_eq!(entries, returns);
    for program in ["on_entry", "on_return"] {
        assert_eq!(done.count(program, "missed") + done.count(program, "no_slot"), 0, "{program}");
    }
}

/// `SYMBOL+OFFSET` of instructions of a file, of so many functions at most.
fn instructions(file: &Path, dynamic: bool, functions: usize, each: usize, random: &mut Random) -> BTreeSet<String> {
    let text = |tool: &str, args: &[&str]| {
        let out = Command::new(tool).args(args).arg(file).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let symbols = text("nm", if dynamic { &["-DS", "--defined-only"] } else { &["-S", "--defined-only"] });
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let symbols: Vec<(u64, u64, &str)> = symbols
        .lines()
        .filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [at, size, "T" | "t" | "W", name] => Some((hex(at)?, hex(size)?, name.split('@').next()?)),
            _ => None,
        })
        .collect();
    assert!(!symbols.is_empty(), "{} has no symbols", file.display());
    let mut places = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for _ in 0..functions {
        let (at, size, name) = symbols[random.below(symbols.len())];
        let (start, stop) = (format!("--start-address={at}"), format!("--stop-address={}", at + size));
        let listing = text("objdump", &["-d", "--no-show-raw-insn", &start, &stop]);
        let starts: Vec<u64> = listing.lines().filter_map(|l| hex(l.split_once(":\t")?.0.trim())).collect();
        if starts.is_empty() {
            continue;
        }
        for _ in 0..each {
            let start = starts[random.below(starts.len())];
            // Two probes need room for two jumps.
            if taken.range(start.saturating_sub(16)..start + 16).next().is_none() {
                taken.insert(start);
                places.insert(format!("{name}+{}", start - at));
            }
        }
    }
    places
}

#[test]
fn any_instruction_of_libraries_and_programs() {
    let wanted = number("SKEP_OFFSETS", 320);
    let mut random = Random(number("SKEP_OFFSETS_SEED", 1) as u64 | 1);
    let rusty = Path::new(env!("CARGO_BIN_EXE_rusty"));
    let data = scratch().join("data");
    let bytes: Vec<u8> = (0..200_000).map(|_| b' ' + random.below(90) as u8).collect();
    std::fs::write(&data, bytes).expect("data");
    let data = data.to_string_lossy().into_owned();
    let library = |name: &str| {
        let folders = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"];
        folders.map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.exists())
    };
    let switches = scratch().join("switches");
    let source = skep_tests::root().join("crates/subsystem/tests/attach/switches.c");
    let status = Command::new("gcc").args(["-O2", "-w"]).arg(source).arg("-o").arg(&switches).status().expect("gcc");
    assert!(status.success(), "gcc could not build the switches");
    let targets: [(Option<PathBuf>, &[&str], bool); 4] = [
        (library("libc.so.6"), &["/usr/bin/sort", &data], true),
        (library("libcrypto.so.3"), &["/usr/bin/openssl", "dgst", "-sha256", "-hmac", "key", &data], true),
        (Some(rusty.to_owned()), &[&rusty.to_string_lossy()], false),
        (Some(switches.clone()), &[&switches.to_string_lossy(), "20"], false),
    ];
    let (mut jumps, mut attached, mut asked) = (0, 0, 0);
    let mut reasons = BTreeMap::<String, usize>::new();
    for (file, command, dynamic) in targets {
        let Some(file) = file.filter(|_| Path::new(command[0]).exists()) else {
            skep_tests::skip(&format!("{} or its library is not installed", command[0]));
            continue;
        };
        let out = Command::new(command[0]).args(&command[1..]).output().expect("runs");
        let want: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A few hundred at a time.
        for left in (0..wanted / 4).step_by(240) {
            let functions = (wanted / 4 - left).min(240).div_ceil(2);
            let places = instructions(&file, dynamic, functions, 2, &mut random);
            let mut args = vec![object("test/cost_entry.bpf.o").into_os_string()];
            args.extend(places.iter().flat_map(|place| ["--func".into(), format!("{name}:{place}").into()]));
            args.push("--".into());
            args.extend(command.iter().map(Into::into));
            let done = Trace::start(args).finish();
            assert!(done.plain == want, "{name}: other output than without probes at {places:?}: {}", done.stderr);
            let status = done.summary("on_entry")["exit_status"].as_i64();
            assert_eq!(status, out.status.code().map(i64::from), "{name}: {places:?}: {}", done.stderr);
            let (by_jump, there) = methods(&done);
            // Each of the others is refused by name, with the reason.
            let refused = |place: &&String| done.stderr.contains(&format!("`{}`", hexed(place)));
            let silent: Vec<_> = places.iter().filter(|p| !is_attached(&done, p) && !refused(p)).collect();
            assert!(silent.is_empty(), "{name}: neither attached nor refused: {silent:?}: {}", done.stderr);
            let refused = done.stderr.lines().filter_map(|l| Some(l.split_once(" cannot take a jump: ")?.1.to_owned()));
            let lines = done.kind("attached");
            let traps = lines.iter().filter_map(|line| line["why_no_jump"].as_str().map(str::to_owned));
            for reason in refused.chain(traps) {
                let words = reason.split([';', '`', '+']).next().unwrap_or_default();
                *reasons.entry(words.replace(|c: char| c.is_ascii_digit(), "")).or_default() += 1;
            }
            (jumps, attached, asked) = (jumps + by_jump, attached + there, asked + places.len());
        }
    }
    println!("{asked} instructions: {attached} attached, {jumps} of them by a jump; why others are refused:");
    reasons.iter().for_each(|(reason, n)| println!("{n:6} {reason}"));
    assert!(jumps * 100 >= asked * 80, "{jumps} of {asked} instructions take a jump");
}

/// A place as `skep` writes it.
fn hexed(place: &str) -> String {
    match place.rsplit_once('+').map(|(name, offset)| (name, offset.parse::<u64>())) {
        Some((name, Ok(0))) => name.to_owned(),
        Some((name, Ok(offset))) => format!("{name}+{offset:#x}"),
        _ => place.to_owned(),
    }
}

fn is_attached(done: &Finished, place: &str) -> bool {
    done.kind("attached").iter().any(|line| line["symbol"] == hexed(place))
}
