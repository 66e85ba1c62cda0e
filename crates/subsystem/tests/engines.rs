//! The programs of `bpf/engines`: interpreter, machine code and the live kernel return the same.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use libbpf_sys as sys;
use skep_elf::{LoadOptions, Object};
use skep_jit::Engine;
use skep_subsystem::session::{Options, Session};
use skep_subsystem::testrun::{TestInput, TestRunError};
use skep_verifier::verify;

/// Rounds of a loop that only `may_goto` ends.
const ROUNDS: i32 = 1 << 23;
/// What programs return that the kernel is not asked for: it would return something else, or must not be given them.
const ALONE: &[(&str, i32)] = &[
    // Σ of 1 to n, for n below 20.
    ("alone_nested", 1330 * 100 + 20),
    ("alone_cond_break_rounds", ROUNDS),
    ("alone_cond_break_called_back", 4 * ROUNDS),
    ("alone_count", 0),
    ("alone_total", 0),
];
/// Programs that must not end by themselves.
const ENDLESS: &str = "endless_";

fn packet() -> Vec<u8> {
    (0..64u8).map(|i| i.wrapping_mul(3) ^ 0x5a).collect()
}

fn objects() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf/engines");
    let only = std::env::var("SKEP_ENGINES").unwrap_or_default();
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.ends_with(".bpf.o") && name.contains(&only)
        })
        .collect();
    all.sort();
    all
}

/// What the kernel returns; none if it does not take the program.
fn kernel(path: &Path, wanted: &str) -> Result<i32, String> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path is a C string, null is checked; all else belongs to the open object, which is closed at the end.
    unsafe {
        let object = sys::bpf_object__open_file(path.as_ptr(), std::ptr::null());
        assert!(!object.is_null(), "libbpf opens {path:?}");
        let mut log = vec![0u8; 1 << 20];
        let mut program = sys::bpf_object__next_program(object, std::ptr::null_mut());
        let mut found = std::ptr::null_mut();
        while !program.is_null() {
            let this = CStr::from_ptr(sys::bpf_program__name(program)).to_str() == Ok(wanted);
            sys::bpf_program__set_autoload(program, this);
            if this {
                found = program;
                sys::bpf_program__set_log_buf(program, log.as_mut_ptr().cast(), log.len() as u64);
            }
            program = sys::bpf_object__next_program(object, program);
        }
        let result = match sys::bpf_object__load(object) {
            0 => {
                let data = packet();
                let mut options: sys::bpf_test_run_opts = std::mem::zeroed();
                options.sz = size_of_val(&options) as u64;
                (options.data_in, options.data_size_in) = (data.as_ptr().cast(), data.len() as u32);
                match sys::bpf_prog_test_run_opts(sys::bpf_program__fd(found), &raw mut options) {
                    0 => Ok(options.retval.cast_signed()),
                    e => Err(format!("test run: {e}")),
                }
            }
            e => {
                let end = log.iter().position(|b| *b == 0).unwrap_or(0);
                Err(format!("load: {e}\n{}", String::from_utf8_lossy(&log[..end])))
            }
        };
        sys::bpf_object__close(object);
        result
    }
}

fn ours(object: &Object, name: &str, load: &LoadOptions, engine: Engine, budget: u64) -> Result<i32, String> {
    let program = object.program(name, load).map_err(|e| e.to_string())?;
    let options = skep_verifier::Options { btf: load.btf.clone(), ..skep_verifier::Options::default() };
    let verified = verify(program, &options).map_err(|e| e.to_string())?;
    let session = Session::new(vec![verified], &Options { slots: 64, links: 1, engine, budget, ..Options::default() });
    let session = session.map_err(|e| e.to_string())?;
    let input = TestInput { data: Some(&packet()), ctx: None, repeat: 1 };
    let before = session.test_run(0, &input);
    // Twice: nothing is left of the first run.
    let after = session.test_run(0, &input);
    match (before, after) {
        (Ok(a), Ok(_)) => Ok(a.retval.cast_signed()),
        (Err(TestRunError::OverBudget { .. }), Err(TestRunError::OverBudget { .. })) => Err("over budget".into()),
        (a, b) => Err(format!("{a:?}, then {b:?}")),
    }
}

#[test]
fn engines_and_kernel_agree() {
    let load = LoadOptions::host();
    // SAFETY: the call takes nothing; no callback: libbpf is silent.
    let ask = unsafe {
        sys::libbpf_set_print(None);
        libc::geteuid() == 0
    };
    if !ask {
        println!("skipped: only root can ask the kernel; the engines are compared with each other");
    }
    if load.btf.is_none() {
        return println!("skipped: the kernel's types are not readable, so that its functions have no numbers");
    }
    let (mut asked, mut wrong) = (0, Vec::new());
    for path in objects() {
        let bytes = std::fs::read(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let object = Object::parse(&file, &bytes).unwrap();
        let names: Vec<String> = object.programs().iter().map(|p| p.name.clone()).collect();
        for name in names {
            let run = |engine, budget| ours(&object, &name, &load, engine, budget);
            let budget = if name.starts_with(ENDLESS) { 1 << 20 } else { 1 << 26 };
            let mut answers =
                vec![("interpreter", run(Engine::Interpreter, budget)), ("machine code", run(Engine::Jit, budget))];
            let expected = ALONE.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
            if name.starts_with(ENDLESS) {
                answers.push(("the rule", Err("over budget".into())));
            } else {
                answers.push(("machine code without budget", run(Engine::Jit, 0)));
                if let Some(value) = expected {
                    answers.push(("the rule", Ok(value)));
                } else if ask {
                    answers.push(("kernel", kernel(&path, &name)));
                    asked += 1;
                }
            }
            let expected = &answers[answers.len() - 1].1;
            let ends = expected.is_ok() || name.starts_with(ENDLESS);
            if !ends || answers.iter().any(|(_, a)| a != expected) {
                wrong.push(format!("{file} {name}: {answers:#?}"));
            }
        }
    }
    println!("{asked} programs run by the kernel, too");
    assert!(wrong.is_empty(), "{} programs differ:\n{}", wrong.len(), wrong.join("\n"));
    let all = std::env::var_os("SKEP_ENGINES").is_none();
    assert!(!ask || !all || asked > 40, "only {asked} programs were asked");
}

/// Threads on slots of their own add to a number under a spin lock; none is lost.
#[test]
fn locks_exclude() {
    const THREADS: u32 = 3;
    const RUNS: u32 = 50_000;
    let path = objects().into_iter().find(|p| p.ends_with("locks.bpf.o"));
    let Some(path) = path else { return println!("skipped: SKEP_ENGINES leaves it out") };
    let object = Object::parse("engine_locks", &std::fs::read(path).unwrap()).unwrap();
    for engine in [Engine::Interpreter, Engine::Jit] {
        for budget in [0, 1 << 20] {
            let load = |name: &str| {
                let program = object.program(name, &LoadOptions::host()).unwrap();
                verify(program, &skep_verifier::Options::default()).unwrap()
            };
            let programs = vec![load("alone_count"), load("alone_total")];
            let options = Options { slots: 64, links: 1, engine, budget, ..Options::default() };
            let session = Session::new(programs, &options).unwrap();
            let input = |repeat| TestInput { data: Some(&[0; 64]), ctx: None, repeat };
            let ended: u32 = std::thread::scope(|s| {
                let threads: Vec<_> =
                    (0..THREADS).map(|_| s.spawn(|| u32::from(session.test_run(0, &input(RUNS)).is_err()))).collect();
                threads.into_iter().map(|t| t.join().unwrap()).sum()
            });
            let total = session.test_run(1, &input(1)).unwrap().retval;
            // On a busy machine a holder may be away for so long that the others' runs are ended.
            assert!(total <= THREADS * RUNS && (ended > 0 || total == THREADS * RUNS), "{engine:?}: {total}, {ended}");
            assert!(total >= THREADS * RUNS * 9 / 10, "{engine:?}: {total} of {}", THREADS * RUNS);
        }
    }
}
