//! Sessions without a target: programs of `bpf/test` run in this process, and their events, maps and links.

use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skep_elf::{LoadOptions, Object};
use skep_subsystem::events::{Event, Events};
use skep_subsystem::place::When;
use skep_subsystem::session::{Counts, Options, Session, SessionError};
use skep_subsystem::testrun::{TestInput, TestRunError};
use skep_verifier::{Verified, verify};

fn object(name: &str) -> Object {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf/test").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Object::parse(name, &bytes).unwrap()
}

fn load(object: &Object, name: &str) -> Verified {
    let program = object.program(name, &LoadOptions::default()).unwrap();
    verify(program, &skep_verifier::Options::default()).unwrap_or_else(|r| panic!("{name}: {}", r.message))
}

fn session(name: &str, programs: &[&str]) -> Session {
    let object = object(name);
    Session::new(programs.iter().map(|p| load(&object, p)).collect(), &Options::default()).unwrap()
}

/// `struct pt_regs` with a first argument.
fn registers(arg: u64) -> Vec<u8> {
    let mut regs = vec![0; 168];
    regs[112..120].copy_from_slice(&arg.to_ne_bytes());
    regs
}

fn call(session: &Session, arg: u64) -> u32 {
    let ctx = registers(arg);
    session.test_run(0, &TestInput { ctx: Some(&ctx), ..TestInput::default() }).unwrap().retval
}

#[test]
fn events_of_every_kind() {
    let session = session("events.bpf.o", &["on_entry"]);
    let mut events = Events::new(&session);
    assert_eq!(events.drain(&session, |_| panic!("nothing happened yet")), 0);
    session.hear();
    assert_eq!(call(&session, 5), 1);
    let fd = &mut [PollFd::from_borrowed_fd(session.events_fd(), PollFlags::IN)];
    assert_eq!(poll(fd, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap(), 1, "the bell rings");
    let maps: Vec<String> = session.maps().map(|m| m.unwrap().def().name.clone()).collect();
    let mut seen = Vec::new();
    events.drain(&session, |event| match event {
        Event::Ring { map, data } => seen.push(format!("ring {} {}", maps[map], data.len())),
        Event::Perf { map, data, pid, .. } => {
            assert_eq!(pid, std::process::id());
            assert_eq!(data[..8].len(), 8);
            seen.push(format!("perf {} {}", maps[map], data.len() >= 8));
        }
        Event::Printk { link, text, .. } => {
            assert!(link.is_none());
            seen.push(format!("printk {}", String::from_utf8_lossy(text).trim_end()));
        }
        other => panic!("{other:?}"),
    });
    seen.sort();
    assert_eq!(seen, ["perf perf true", "perf raw true", "printk probed 5", "ring ring 16"]);
    assert_eq!(session.writers(0).collect::<Vec<_>>(), ["on_entry"]);
}

#[test]
fn a_prog_array_is_filled_and_globals_are_kept() {
    let both = session("tail.bpf.o", &["on_entry", "counted"]);
    for _ in 0..3 {
        assert_eq!(call(&both, 0), 0, "the tail call does not return");
    }
    let bss = both.maps().flatten().find(|m| m.def().name.ends_with(".bss")).unwrap();
    assert_eq!(bss.lookup(&0u32.to_ne_bytes(), 0).unwrap()[..8], 3u64.to_ne_bytes());

    let object = object("tail.bpf.o");
    let alone = Session::new(vec![load(&object, "on_entry")], &Options::default());
    let Err(SessionError::InitialValue { map, index: 2, problem }) = alone else { panic!("accepted") };
    assert!(map == "table" && problem.contains("counted"), "{map}: {problem}");
}

#[test]
fn links() {
    let mut session = session("count.bpf.o", &["on_entry", "on_return"]);
    let entry = session.link(0, When::Entry, 7).unwrap();
    let ret = session.link(1, When::Return, 0).unwrap();
    assert_eq!((entry.index(), ret.index(), ret.program()), (0, 1, 1));
    assert_eq!(session.counts(entry), Counts::default());
    assert_eq!(session.program("on_return").unwrap(), 1);
    assert!(matches!(session.link(2, When::Entry, 0), Err(SessionError::NoProgram { index: 2 })));
    for _ in 2..Options::default().links {
        session.link(0, When::Entry, 0).unwrap();
    }
    assert!(matches!(session.link(0, When::Entry, 0), Err(SessionError::TooManyLinks { .. })));
    session.disable(entry);
}

#[test]
fn programs_of_two_objects_do_not_mix() {
    let programs = vec![load(&object("count.bpf.o"), "on_entry"), load(&object("read.bpf.o"), "on_entry")];
    assert!(matches!(Session::new(programs, &Options::default()), Err(SessionError::OtherObject { .. })));
    assert!(matches!(Session::new(Vec::new(), &Options::default()), Err(SessionError::NoPrograms)));
}

#[test]
fn runs_in_many_threads_have_a_slot_each() {
    let session = session("count.bpf.o", &["on_entry"]);
    let per_thread = 2_000;
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let ctx = registers(0);
                let input = TestInput { ctx: Some(&ctx), repeat: per_thread, ..TestInput::default() };
                session.test_run(0, &input).unwrap();
            });
        }
    });
    let all = session.map("entries").unwrap().lookup(&0u32.to_ne_bytes(), 0).unwrap();
    let sum: u64 = all.as_chunks().0.iter().map(|n| u64::from_ne_bytes(*n)).sum();
    assert_eq!(sum, 4 * u64::from(per_thread));
}

#[test]
fn a_run_that_takes_too_long_is_ended() {
    let object = object("events.bpf.o");
    // Each helper call spends a step, and the program has several.
    let options = Options { budget: 1, ..Options::default() };
    let session = Session::new(vec![load(&object, "on_entry")], &options).unwrap();
    let ctx = registers(0);
    let done = session.test_run(0, &TestInput { ctx: Some(&ctx), ..TestInput::default() });
    assert_eq!(done, Err(TestRunError::OverBudget { budget: 1 }));
}
