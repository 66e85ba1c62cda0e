//! What profilers and debuggers are told of machine code: the files as they stand, and, where the tools are there, what
//! `perf` and `gdb` make of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use skep_elf::{LoadOptions, Object};
use skep_subsystem::session::{Options, Session};
use skep_subsystem::symbols::Symbols;
use skep_subsystem::testrun::TestInput;
use skep_verifier::verify;

/// A program that takes a while, in a function that is called back.
const PROGRAM: &str = "alone_cond_break_called_back";
const FUNCTION: &str = "spins";
const SOURCE: &str = "loops.bpf.c";

fn session(symbols: Symbols) -> Session {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf/engines/loops.bpf.o");
    let object = Object::parse(SOURCE, &fs::read(path).unwrap()).unwrap();
    let program = object.program(PROGRAM, &LoadOptions::default()).unwrap();
    let verified = verify(program, &skep_verifier::Options::default()).unwrap();
    let options = Options { slots: 64, links: 1, budget: 1 << 40, symbols, ..Options::default() };
    Session::new(vec![verified], &options).unwrap()
}

fn run(session: &Session, repeat: u32) -> u32 {
    session.test_run(0, &TestInput { data: Some(&[0; 64]), ctx: None, repeat }).unwrap().retval
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("skep-symbols-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The process that is looked at from outside: it runs if it is told to by its environment.
#[test]
fn looked_at() {
    let Some(dir) = std::env::var_os("SKEP_SYMBOLS_DIR") else { return };
    let session = session(Symbols { jitdump: Some(dir.into()), gdb: true, ..Symbols::default() });
    assert_eq!(run(&session, 20), 4 << 23);
}

fn look_at(mut tool: Command, dir: &Path) -> Option<Output> {
    tool.arg(std::env::current_exe().unwrap()).args(["--exact", "looked_at", "--test-threads=1"]);
    tool.env("SKEP_SYMBOLS_DIR", dir).current_dir(dir).output().ok()
}

#[test]
fn the_perf_map_and_the_dump_tell_of_each_function() {
    let folder = Folder::new("files");
    let perf_map = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    let session = session(Symbols { perf_map: true, jitdump: Some(folder.0.clone()), gdb: true, others_only: false });
    assert_eq!(session.subsystem().symbols_failure(), None);
    let text = fs::read_to_string(&perf_map).unwrap();
    fs::remove_file(&perf_map).unwrap();
    let mapped: Vec<(usize, usize, String)> = text
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut number = || usize::from_str_radix(words.next().unwrap(), 16).unwrap();
            let (start, len) = (number(), number());
            (start, len, words.next().unwrap().to_owned())
        })
        .collect();
    let names: Vec<&str> = mapped.iter().map(|(_, _, name)| name.as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("bpf_prog_") && names[0].ends_with(PROGRAM), "{names:?}");
    assert!(names[1].ends_with(&format!("_{FUNCTION}")), "{names:?}");
    assert_eq!(names[0].len(), "bpf_prog_0123456789abcdef_".len() + PROGRAM.len());

    // They are where code is.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    for (start, len, name) in &mapped {
        let there = maps.lines().any(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let range = usize::from_str_radix(from, 16).unwrap()..usize::from_str_radix(to, 16).unwrap();
            range.contains(start) && range.contains(&(start + len - 1)) && rest.starts_with("r-x")
        });
        assert!(there, "{name} at {start:#x}\n{maps}");
    }

    // The dump, record by record.
    let dump = fs::read_dir(&folder.0).unwrap().next().unwrap().unwrap().path();
    let dump = fs::read(dump.join(format!("jit-{}.dump", std::process::id()))).unwrap();
    let word = |at: usize| u32::from_ne_bytes(dump[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_ne_bytes(dump[at..at + 8].try_into().unwrap());
    assert_eq!([word(0), word(4), word(8), word(12), word(20)], [0x4a69_5444, 1, 40, 62, std::process::id()]);
    let text_at =
        |at: usize| dump[at..].split(|b| *b == 0).next().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap();
    let (mut at, mut loads, mut lines, mut last_time) = (40, Vec::new(), Vec::new(), long(24));
    while at < dump.len() {
        let (kind, len, time) = (word(at), word(at + 4) as usize, long(at + 8));
        assert!(time >= last_time && len >= 16, "record {kind} at {at}");
        last_time = time;
        match kind {
            0 => {
                let (vma, address, bytes, index) =
                    (long(at + 24), long(at + 32), long(at + 40) as usize, long(at + 48));
                assert_eq!((vma, index), (address, loads.len() as u64));
                let name = text_at(at + 56);
                let code = &dump[at + 56 + name.len() + 1..at + len];
                assert_eq!(code.len(), bytes);
                // SAFETY: machine code of a program that the session holds.
                let there = unsafe { std::slice::from_raw_parts(address as *const u8, bytes) };
                assert!(code == there, "{name}");
                loads.push((address as usize, bytes, name));
            }
            2 => {
                let (mut entry, count) = (at + 32, long(at + 24));
                for _ in 0..count {
                    let file = text_at(entry + 16);
                    lines.push((long(entry) as usize, word(entry + 8), file.clone()));
                    entry += 16 + file.len() + 1;
                }
                assert_eq!(entry, at + len);
            }
            other => panic!("a record of kind {other}"),
        }
        at += len;
    }
    assert_eq!(loads, mapped);
    assert!(lines.len() > 8);
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf/engines/loops.bpf.c")).unwrap();
    let numbers = |start: &str| {
        let first = source.lines().position(|l| l.contains(start)).unwrap() as u32 + 1;
        first..first + 13
    };
    for (address, line, file) in &lines {
        // Lines of helpers' macros are those of the header.
        let (start, len, _) = mapped.iter().find(|(start, len, _)| (*start..start + len).contains(address)).unwrap();
        let wanted = if *start == mapped[0].0 { numbers(PROGRAM) } else { numbers("long spins") };
        assert!(
            !file.ends_with(SOURCE) || wanted.contains(line),
            "{file}:{line} at {:#x} of {len:#x}",
            address - start
        );
    }
    assert!(lines.iter().any(|(.., file)| file.ends_with(SOURCE)), "{lines:?}");
}

#[test]
fn files_that_cannot_be_made_are_named() {
    let options =
        Options { symbols: Symbols { jitdump: Some("/proc/none".into()), ..Symbols::default() }, ..Options::default() };
    let program = skep_ebpf::program::Program::new(
        "p",
        skep_ebpf::uapi::ProgType::SocketFilter,
        "GPL",
        vec![skep_ebpf::insn::Insn::new(0xb7, 0, 0, 0, 0), skep_ebpf::insn::Insn::new(0x95, 0, 0, 0, 0)],
    );
    let verified = verify(program, &skep_verifier::Options::default()).unwrap();
    let error = Session::new(vec![verified], &options).err().unwrap().to_string();
    assert!(error.contains("/proc/none"), "{error}");
}

/// `perf record`, `perf inject --jit`, `perf report`.
#[test]
fn perf_shows_programs_by_name() {
    let folder = Folder::new("perf");
    let mut record = Command::new("perf");
    record.args(["record", "-q", "-k", "mono", "-e", "cpu-clock:u", "-o", "perf.data", "--"]);
    let Some(recorded) = look_at(record, &folder.0) else {
        return println!("without perf: only the files were looked at");
    };
    if !folder.0.join("perf.data").exists() {
        return println!("perf records nothing here: {}", String::from_utf8_lossy(&recorded.stderr));
    }
    assert!(recorded.status.success(), "{recorded:?}");
    let perf = |args: &[&str]| {
        let out = Command::new("perf").args(args).current_dir(&folder.0).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    perf(&["inject", "--jit", "-i", "perf.data", "-o", "with-code.data"]);
    let report = perf(&["report", "-i", "with-code.data", "--stdio", "--sort", "symbol"]);
    let line = report.lines().find(|l| l.contains("bpf_prog_")).unwrap_or_else(|| panic!("{report}"));
    assert!(line.split_whitespace().any(|word| word.ends_with(&format!("_{FUNCTION}"))), "{line}");
    println!("{line}");
}

/// A breakpoint on a line of a program, and the way to it. It is one of the processor's: nobody writes into code that other
/// processes have, too.
#[test]
fn gdb_stops_in_programs() {
    let folder = Folder::new("gdb");
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-batch", "-nx", "-ex", "set breakpoint pending on", "-ex", "set debuginfod enabled off"]);
    gdb.args([
        "-ex",
        &format!("hbreak {SOURCE}:55"),
        "-ex",
        "run",
        "-ex",
        "backtrace 2",
        "-ex",
        "info symbol $pc",
        "--args",
    ]);
    let Some(out) = look_at(gdb, &folder.0) else { return println!("without gdb: only the files were looked at") };
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    if ["ptrace: Operation not permitted", "Could not insert hardware", "No hardware breakpoint"]
        .iter()
        .any(|refusal| text.contains(refusal) || errors.contains(refusal))
    {
        return println!("gdb may not do that here: {errors}");
    }
    let symbol = text.lines().find(|l| l.starts_with("bpf_prog_")).unwrap_or_else(|| panic!("{out:?}"));
    assert!(symbol.contains(&format!("_{FUNCTION} + ")), "{symbol}");
    let frame = text.lines().find(|l| l.starts_with("#0")).unwrap();
    assert!(frame.contains(&format!("_{FUNCTION}")) && frame.ends_with(&format!("{SOURCE}:55")), "{text}");
}
