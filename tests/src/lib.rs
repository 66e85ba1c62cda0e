//! What the end-to-end suites share: where things are, targets built from C, and `skep trace` with its JSON lines.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub use serde_json::Value;

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = std::env::var_os("SKEP_ROOT").map(PathBuf::from);
    here.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
}

/// The `skep` command: `SKEP_BIN`, or the one built beside this test.
pub fn skep_bin() -> PathBuf {
    if let Some(bin) = std::env::var_os("SKEP_BIN") {
        return bin.into();
    }
    let exe = std::env::current_exe().expect("path of the test");
    // A test lies in `deps`, a benchmark beside it.
    let folder = exe.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).expect("target folder");
    let bin = folder.join("skep");
    assert!(bin.exists(), "{} is not built: run `cargo build -p skep-cli` or `cargo test --workspace`", bin.display());
    bin
}

/// A built object of `bpf/`.
pub fn object(name: &str) -> PathBuf {
    root().join("bpf").join(name)
}

/// True as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Says visibly that a test, or a part of it, is skipped.
pub fn skip(why: &str) {
    println!("skipped: {why}");
}

/// A scratch folder of this test process.
pub fn scratch() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("skep-tests-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("scratch folder");
    dir
}

/// Builds a program of `tests/targets` (`.c` with cc, `.cc` with c++) and returns its path.
pub fn build(source: &str, flags: &[&str]) -> PathBuf {
    build_with(if source.ends_with(".cc") { "g++" } else { "gcc" }, source, flags)
}

/// As [`build`], with a compiler of that name.
pub fn build_with(compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    // Programs are known by their sources' names.
    let other = if ["gcc", "g++"].contains(&compiler) { "" } else { compiler };
    let tag: String = [other, &flags.concat()].concat().chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let stem = source.split('.').next().unwrap_or(source);
    let out = scratch().join(format!("{stem}{tag}"));
    if out.exists() {
        return out;
    }
    // Tests run in parallel: build aside, then rename.
    let part = out.with_extension(format!("{:?}", std::thread::current().id()).replace(['(', ')'], ""));
    let path = root().join("tests/targets").join(source);
    let status = Command::new(compiler).args(["-O2", "-pthread"]).args(flags).arg(&path).arg("-o").arg(&part).status();
    let status = status.unwrap_or_else(|e| panic!("cannot run {compiler}: {e}"));
    assert!(status.success(), "{compiler} could not build {}", path.display());
    std::fs::rename(&part, &out).expect("rename");
    out
}

/// A target that waits for [`Target::go`].
pub struct Target {
    /// The process.
    pub child: Child,
    stdin: Option<ChildStdin>,
    out: Receiver<String>,
}

impl Target {
    /// Starts a program whose first line of output is `ready` and which then waits for a line.
    pub fn start(program: &Path, args: &[&str]) -> Target {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        let stdin = child.stdin.take();
        let out = lines(child.stdout.take().expect("piped"));
        let target = Target { child, stdin, out };
        assert_eq!(target.line(), "ready");
        target
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints.
    pub fn line(&self) -> String {
        self.out.recv_timeout(Duration::from_secs(120)).expect("the target prints a line")
    }

    /// Writes something to it, which waits for more.
    pub fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("it has not been let go");
        stdin.write_all(text.as_bytes()).expect("the target reads");
    }

    /// Lets it run on.
    pub fn go(&mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            stdin.write_all(b"\n").expect("the target reads");
        }
    }

    /// Waits for its end; what it printed since, and its status.
    pub fn finish(mut self) -> (Vec<String>, ExitStatus) {
        self.go();
        let status = wait(&mut self.child, Duration::from_secs(300));
        (self.out.iter().collect(), status)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for a process with a limit; beyond it the process is killed and the test fails.
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("process {} did not end within {limit:?}", child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (to, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            if to.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// A running `skep trace --json`.
pub struct Trace {
    /// The process.
    pub child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
    /// Lines read so far.
    pub seen: Vec<Value>,
    /// Lines of standard output that are not JSON: the traced command's.
    pub plain: Vec<String>,
    /// The target has pages of its own that are writable and executable.
    pub mixes_pages: bool,
}

impl Trace {
    /// Starts `skep trace --json` with these arguments.
    pub fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Trace {
        let mut child = Command::new(skep_bin())
            .args(["trace", "--json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("skep starts");
        let out = lines(child.stdout.take().expect("piped"));
        let err = lines(child.stderr.take().expect("piped"));
        Trace { child, out, err, seen: Vec::new(), plain: Vec::new(), mixes_pages: false }
    }

    /// Traces a process.
    pub fn pid(object: &Path, pid: u32) -> Trace {
        Trace::start([object.as_os_str(), "--pid".as_ref(), pid.to_string().as_ref()])
    }

    /// Traces a command.
    pub fn command<S: AsRef<OsStr>>(object: &Path, command: impl IntoIterator<Item = S>) -> Trace {
        let command: Vec<S> = command.into_iter().collect();
        let head = [object.as_os_str(), "--".as_ref()];
        Trace::start(head.into_iter().chain(command.iter().map(AsRef::as_ref)))
    }

    /// Reads on until a line of this kind (and counts it as seen).
    pub fn until(&mut self, kind: &str) -> Value {
        self.find(kind).unwrap_or_else(|how| panic!("no `{kind}` {how}; skep says:\n{}", self.stderr()))
    }

    /// As [`Trace::until`]; the error says why there was none.
    pub fn find(&mut self, kind: &str) -> Result<Value, &'static str> {
        let end = Instant::now() + Duration::from_secs(150);
        loop {
            match self.out.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let Some(v) = self.take(line) else { continue };
                    if v["kind"] == "attached" {
                        let target = v["pid"].as_u64().map(|p| p as u32).filter(|_| !self.mixes_pages);
                        let pids = [self.child.id()].into_iter().chain(target);
                        pids.for_each(no_page_is_writable_and_executable);
                    }
                    if v["kind"] == kind {
                        return Ok(v);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err("in time"),
                Err(RecvTimeoutError::Disconnected) => return Err("before skep ended"),
            }
        }
    }

    /// Reads `n` lines `attached`.
    pub fn attached(&mut self, n: usize) -> Vec<Value> {
        (0..n).map(|_| self.until("attached")).collect()
    }

    fn take(&mut self, line: String) -> Option<Value> {
        match serde_json::from_str::<Value>(&line) {
            Ok(v) if v.is_object() => {
                self.seen.push(v.clone());
                Some(v)
            }
            _ => {
                self.plain.push(line);
                None
            }
        }
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.err.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// Asks it to end (SIGINT).
    pub fn interrupt(&self) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        let status = wait(&mut self.child, Duration::from_secs(300));
        while let Ok(line) = self.out.recv_timeout(Duration::from_secs(10)) {
            self.take(line);
        }
        let mut err = Vec::new();
        while let Ok(line) = self.err.recv_timeout(Duration::from_secs(10)) {
            err.push(line);
        }
        Finished {
            status,
            lines: std::mem::take(&mut self.seen),
            plain: std::mem::take(&mut self.plain),
            stderr: err.join("\n"),
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

/// What a `skep trace` printed.
pub struct Finished {
    /// Its status.
    pub status: ExitStatus,
    /// All JSON lines.
    pub lines: Vec<Value>,
    /// Lines that the traced command printed among them.
    pub plain: Vec<String>,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The lines of one kind.
    pub fn kind(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|l| l["kind"] == kind).collect()
    }

    /// The summary of a program.
    pub fn summary(&self, program: &str) -> &Value {
        let of = |l: &&Value| l["kind"] == "summary" && l["program"] == program;
        self.lines.iter().find(of).unwrap_or_else(|| panic!("no summary of {program}; skep says:\n{}", self.stderr))
    }

    /// One counter of a program's summary.
    pub fn count(&self, program: &str, key: &str) -> u64 {
        let s = self.summary(program);
        s[key].as_u64().unwrap_or_else(|| panic!("summary of {program} has no {key}: {s}"))
    }

    /// A value of a map by its key; per-CPU values are summed.
    pub fn map_sum(&self, map: &str, key: u64) -> u64 {
        let of = |l: &&Value| l["kind"] == "map" && l["name"] == map && l["key"].as_u64() == Some(key);
        let line = self.lines.iter().find(of).unwrap_or_else(|| panic!("no element {key} of {map}:\n{}", self.stderr));
        match &line["value"] {
            Value::Array(all) => all.iter().filter_map(Value::as_u64).sum(),
            one => one.as_u64().unwrap_or_else(|| panic!("not a number: {line}")),
        }
    }
}

/// Fails if any page of a process is both; one that is gone has none.
pub fn no_page_is_writable_and_executable(pid: u32) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let both = |line: &&str| line.split_ascii_whitespace().nth(1).is_some_and(|p| p.contains('w') && p.contains('x'));
    if let Some(line) = maps.lines().find(both) {
        panic!("a page of process {pid} is writable and executable: {line}");
    }
}

/// Runs `skep` to its end: status, standard output and error.
pub fn skep(args: &[&OsStr]) -> (Option<i32>, String, String) {
    let out = Command::new(skep_bin()).args(args).stdin(Stdio::null()).output().expect("skep starts");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}
