//! Probes that loaders attach to functions of a running process, and the events that they make.

use std::ffi::{CStr, CString};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use libbpf_sys as sys;
use skep_tests::build;

use crate::libbpf::{Link, Object, Perf, Program, Ring, check, path};

/// Tests of this file.
pub const TESTS: &[(&str, fn())] = &[
    ("libbpf: uprobes with cookies, a ring buffer and a perf buffer", uprobes),
    ("libbpf: kprobes of the traced process, with cookies", kprobes),
    ("libbpf: a pinned link outlives its loader", pinned_link),
    ("libbpf: a USDT probe with its semaphore", usdt),
    ("libbpf: maps in maps", maps_in_maps),
    ("libbpf: functions that helpers call back", callbacks),
    ("libbpf: spin locks", locks),
];

/// A process with a function `work`, called as often as it is told.
pub struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub program: PathBuf,
}

impl Worker {
    pub fn start() -> Worker {
        let program = build("client.c", &[]);
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut worker = Worker { child, stdin, stdout: BufReader::new(stdout), program };
        assert_eq!(worker.line(), "ready");
        worker
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the worker answers");
        line.trim_end().to_owned()
    }

    /// Has it call `work(1)` to `work(n)`; the functions still do what they did.
    pub fn work(&mut self, n: u64) {
        writeln!(self.stdin, "{n}").expect("the worker listens");
        assert_eq!(self.line(), (3 * n * (n + 1) / 2).to_string());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until so many links are left: what was closed is noticed by another thread, which then detaches.
fn left(links: usize) {
    let start = Instant::now();
    while crate::shim::router().subsystem().alive().links != links {
        assert!(start.elapsed() < Duration::from_secs(10), "a link that was closed is still there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What `client_probes` tells: cookie, value, process and kind.
pub fn event(record: &[u8]) -> (u64, u64, u32, u32) {
    let long = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().expect("eight bytes"));
    let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("four bytes"));
    (long(0), long(8), word(16), word(20))
}

/// Polls until so many records came, and no more.
pub fn collect(mut poll: impl FnMut(i32) -> Vec<Vec<u8>>, count: usize) -> Vec<(u64, u64, u32, u32)> {
    let (mut all, start) = (Vec::new(), Instant::now());
    while all.len() < count {
        assert!(start.elapsed() < Duration::from_secs(20), "{} of {count} records came", all.len());
        all.extend(poll(200).iter().map(|r| event(r)));
    }
    all.extend(poll(20).iter().map(|r| event(r)));
    assert_eq!(all.len(), count);
    all
}

fn attach(program: Program, worker: &Worker, cookie: u64, retprobe: bool) -> Link {
    let func = CString::new("work").expect("a name");
    let options = sys::bpf_uprobe_opts {
        sz: size_of::<sys::bpf_uprobe_opts>() as _,
        bpf_cookie: cookie,
        retprobe,
        func_name: func.as_ptr(),
        ..Default::default()
    };
    let file = path(&worker.program);
    // SAFETY: the program is loaded; names and options live until the call returns.
    let link = unsafe {
        sys::bpf_program__attach_uprobe_opts(program.0, worker.pid() as i32, file.as_ptr(), 0, &raw const options)
    };
    Link::new("uprobe", link)
}

fn uprobes() {
    const CALLS: u64 = 50;
    let mut worker = Worker::start();
    let object = Object::loaded("client_probes");
    let (mut ring, mut perf) = (Ring::new(object.map("ring")), Perf::new(object.map("perf")));
    let entry = attach(object.program("on_entry"), &worker, 0x1234_5678_9abc, false);
    let exit = attach(object.program("on_return"), &worker, 77, true);
    worker.work(CALLS);
    let mut expected: Vec<_> =
        (1..=CALLS).flat_map(|n| [(0x1234_5678_9abc, n, worker.pid(), 1), (77, n * 3, worker.pid(), 2)]).collect();
    expected.sort_unstable();
    for mut all in [collect(|ms| ring.poll(ms), 2 * CALLS as usize), collect(|ms| perf.poll(ms), 2 * CALLS as usize)] {
        all.sort_unstable();
        assert_eq!(all, expected);
    }
    // One detached, the other one goes on; then none. A close is noticed by another thread.
    let mut only = |worker: &mut Worker, kinds: &[u32]| {
        let start = Instant::now();
        loop {
            worker.work(5);
            let came: Vec<u32> = ring.poll(100).iter().map(|r| event(r).3).collect();
            if came == kinds {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{came:?} instead of {kinds:?}");
        }
    };
    drop(entry);
    left(1);
    only(&mut worker, &[2; 5]);
    drop(exit);
    left(0);
    only(&mut worker, &[]);
}

fn kprobes() {
    const CALLS: u64 = 30;
    let mut worker = Worker::start();
    crate::shim::router().subsystem().trace(Some(worker.pid()));
    let object = Object::loaded("client_probes");
    let mut ring = Ring::new(object.map("ring"));
    let attach = |name: &CStr, cookie: u64, retprobe: bool| {
        let options = sys::bpf_kprobe_opts {
            sz: size_of::<sys::bpf_kprobe_opts>() as _,
            bpf_cookie: cookie,
            retprobe,
            ..Default::default()
        };
        // SAFETY: the program is loaded; name and options live until the call returns.
        unsafe {
            sys::bpf_program__attach_kprobe_opts(object.program("on_kprobe").0, name.as_ptr(), &raw const options)
        }
    };
    assert!(attach(c"no_function_of_that_name", 0, false).is_null());
    let links = [Link::new("entry", attach(c"work", 11, false)), Link::new("return", attach(c"work", 12, true))];
    worker.work(CALLS);
    let pid = worker.pid();
    let all = collect(|ms| ring.poll(ms), 2 * CALLS as usize);
    let of = |cookie: u64| all.iter().filter(|e| e.0 == cookie).collect::<Vec<_>>();
    assert_eq!(of(11), (1..=CALLS).map(|n| (11, n, pid, 3)).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    assert_eq!(of(12).len() as u64, CALLS);
    drop(links);
    left(0);
    crate::shim::router().subsystem().trace(None);
}

fn pinned_link() {
    let mut worker = Worker::start();
    let object = Object::loaded("client_probes");
    let mut ring = Ring::new(object.map("ring"));
    let at = path("/sys/fs/bpf/clients/link".as_ref());
    let link = attach(object.program("on_entry"), &worker, 9, false);
    // SAFETY: the link is there, the path a C string.
    check("pin", unsafe { sys::bpf_link__pin(link.0, at.as_ptr()) });
    drop(link);
    worker.work(3);
    assert_eq!(collect(|ms| ring.poll(ms), 3).iter().map(|e| e.0).collect::<Vec<_>>(), [9; 3]);
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::unlink(at.as_ptr()) }, 0);
    left(0);
    let start = Instant::now();
    loop {
        worker.work(3);
        if ring.poll(100).is_empty() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "still attached");
    }
}

fn usdt() {
    let mut worker = Worker::start();
    let object = Object::loaded("client_usdt");
    let options = sys::bpf_usdt_opts { sz: size_of::<sys::bpf_usdt_opts>() as _, usdt_cookie: 0xfeed };
    let (file, pid) = (path(&worker.program), worker.pid() as i32);
    // SAFETY: the program is loaded; names and options live until the call returns.
    let link = unsafe {
        sys::bpf_program__attach_usdt(
            object.program("on_usdt").0,
            pid,
            file.as_ptr(),
            c"skep".as_ptr(),
            c"work".as_ptr(),
            &raw const options,
        )
    };
    let link = Link::new("USDT", link);
    worker.work(20);
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Seen {
        cookie: u64,
        first: i64,
        second: i64,
        hits: u64,
    }
    let seen = object.section::<Seen>(".bss");
    // SAFETY: mapped as long as the object is open; nothing runs the program now.
    let now = unsafe { seen.read_volatile() };
    assert_eq!(now, Seen { hits: 20, cookie: 0xfeed, first: 20, second: 7 });
    drop(link);
    left(0);
    // The link has gone; its places are about to.
    let (mut before, start) = (20, Instant::now());
    loop {
        worker.work(20);
        // SAFETY: as above.
        let hits = unsafe { seen.read_volatile() }.hits;
        if hits == before {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "its semaphore is still up");
        before = hits;
    }
}

fn maps_in_maps() {
    let object = Object::loaded("client_nested");
    let (program, which) = (object.program("add"), object.section::<u32>(".bss"));
    // SAFETY: mapped as long as the object is open.
    unsafe { which.write_volatile(1) };
    assert_eq!(program.test_run(), 1, "in the array, as the object says");
    assert_eq!(object.map("by_name").set(1, &object.map("inner_a").fd()), 0);
    assert_eq!(program.test_run(), 3, "and in the hash map, as the loader says");
    assert_eq!((object.map("inner_a").get::<u64>(0), object.map("inner_b").get::<u64>(0)), (100, 2));
    // SAFETY: as above.
    unsafe { which.write_volatile(0) };
    assert_eq!(program.test_run(), 1);
    assert_eq!(object.map("inner_a").get::<u64>(0), 101);
}

/// Functions that helpers call back.
fn callbacks() {
    let object = Object::loaded("client_loop");
    for key in 0..8u32 {
        assert_eq!(object.map("values").set(key, &(u64::from(key) * 5)), 0);
    }
    assert_eq!(object.program("looped").test_run(), 10);
    let sums = object.section::<[u64; 2]>(".bss");
    // SAFETY: mapped as long as the object is open.
    let mut sums = unsafe { sums.read_volatile() };
    sums.sort_unstable();
    assert_eq!(sums, [45, 140]);
}

/// A value with a lock is changed under it, and its lock is never seen.
fn locks() {
    let object = Object::loaded("client_lock");
    let values = object.map("values");
    assert_eq!(values.set(0, &[7u32, 1, 10, 0]), 0);
    assert_eq!((object.program("add").test_run(), object.program("add").test_run()), (0, 0));
    assert_eq!(values.get::<[u32; 4]>(0), [0, 3, 14, 0]);
}
