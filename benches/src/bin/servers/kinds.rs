//! The servers: how each is started in a folder of its own, loaded, and ended.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use skep_benches::file_offset;
use skep_tests::{is_root, root};

use super::load::{self, Client};

/// A server.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// The function that is traced, and hot under this load.
    pub function: &'static str,
    /// Lines that `skep trace` prints for it when it is attached.
    pub skep_places: usize,
    /// It makes code at run time, on pages that it leaves writable.
    pub compiles: bool,
    /// Programs that are needed.
    needs: &'static [&'static str],
    /// Makes what it needs in its folder; how it is run.
    make: fn(&Setup) -> Result<Command, String>,
    /// Made once it listens.
    fill: fn(&Setup) -> Result<(), String>,
    /// The file that has the function; the server's program by default.
    module: fn(u32) -> Option<PathBuf>,
    /// The client for so many seconds.
    client: fn(&Setup, u64) -> (Command, load::Report),
    /// Words in its log that tell of errors.
    alarms: &'static [&'static str],
    /// Who runs the function.
    workers: Workers,
    /// The signal that ends it.
    end: i32,
    /// What it then ends with.
    status: i32,
}

/// Which processes are traced.
enum Workers {
    /// The server itself.
    Itself,
    /// Its children.
    Children,
    /// Those of its children whose command line names a client.
    Backends,
}

/// Where a server is.
pub struct Setup<'a> {
    folder: &'a Path,
    port: u16,
}

impl Setup<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> Result<(), String> {
        fs::write(self.folder.join(name), text).map_err(|e| e.to_string())
    }
}

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";
const GO: &str = "/usr/lib/go-1.19/bin/go";

/// All of them.
pub const KINDS: [Kind; 6] = [
    Kind {
        name: "redis",
        function: "lookupKey",
        skep_places: 2,
        compiles: false,
        needs: &["/usr/bin/redis-server", "/usr/bin/redis-benchmark"],
        make: |s| {
            let mut command = Command::new("/usr/bin/redis-server");
            command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(s.folder);
            command.args(["--port", &s.port.to_string()]);
            Ok(command)
        },
        fill: |_| Ok(()),
        module: |_| None,
        // It counts requests, not seconds: as many as a fast machine makes, in the time that there is.
        client: |s, seconds| {
            let mut command = Command::new("/usr/bin/redis-benchmark");
            command.args(["-h", "127.0.0.1", "-t", "set,get", "-c", "16", "-P", "4", "-r", "1000", "--csv"]);
            command.args(["-p", &s.port.to_string(), "-n", &(seconds * 130_000).to_string()]);
            (command, load::redis)
        },
        alarms: &["BUG REPORT", "# Error", "crashed"],
        workers: Workers::Itself,
        end: libc::SIGTERM,
        status: 0,
    },
    Kind {
        name: "nginx",
        function: "ngx_palloc",
        skep_places: 2,
        compiles: false,
        needs: &["/usr/sbin/nginx", "/usr/bin/ab"],
        make: |s| {
            s.write("index.html", &"an answer of some length\n".repeat(40))?;
            let (folder, port) = (s.folder.display(), s.port);
            let user = if is_root() { "user root;" } else { "" };
            let conf = format!(
                "{user} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log notice;\n\
                 events {{ worker_connections 256; }}\n\
                 http {{ access_log {folder}/access.log; keepalive_requests 1000000;\n\
                 client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;\n\
                 uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n\
                 server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
            );
            s.write("nginx.conf", &conf)?;
            let mut command = Command::new("/usr/sbin/nginx");
            command.args(["-e", &s.path("error.log"), "-c", &s.path("nginx.conf"), "-p", &s.path("")]);
            Ok(command)
        },
        fill: |_| Ok(()),
        module: |_| None,
        client: ab,
        alarms: &["[error]", "[alert]", "[crit]", "[emerg]"],
        workers: Workers::Children,
        end: libc::SIGTERM,
        status: 0,
    },
    Kind {
        name: "postgres",
        function: "hash_search_with_hash_value",
        skep_places: 2,
        compiles: false,
        needs: &["/usr/lib/postgresql/15/bin/postgres", "/usr/bin/pgbench", "/usr/bin/setpriv"],
        make: |s| {
            if is_root() {
                std::os::unix::fs::chown(s.folder, Some(65534), Some(65534)).map_err(|e| e.to_string())?;
            }
            let data = s.path("data");
            run(unprivileged(&format!("{POSTGRES}/initdb")).args(["-D", &data, "-A", "trust", "-U", "bench", "-N"]))?;
            let mut command = unprivileged(&format!("{POSTGRES}/postgres"));
            command.args(["-D", &data, "-k", "", "-h", "127.0.0.1", "-p", &s.port.to_string(), "-F"]);
            Ok(command)
        },
        fill: |s| run(pgbench(s).args(["-i", "-q", "-s", "5"])),
        module: |_| None,
        client: |s, seconds| {
            let mut command = pgbench(s);
            command.args(["-S", "-c", "4", "-P", "1", "-T", &(seconds + 3).to_string()]);
            (command, load::pgbench)
        },
        alarms: &["ERROR:", "PANIC:", "FATAL:", "terminated by signal"],
        workers: Workers::Backends,
        end: libc::SIGINT,
        status: 0,
    },
    Kind {
        name: "node",
        function: "uv_try_write",
        skep_places: 2,
        compiles: true,
        needs: &["/usr/bin/node", "/usr/bin/ab"],
        make: |s| {
            let mut command = Command::new("/usr/bin/node");
            command.arg(source("server.js")).arg(s.port.to_string());
            Ok(command)
        },
        fill: |_| Ok(()),
        module: |_| None,
        client: ab,
        alarms: &["Error", "FATAL"],
        workers: Workers::Itself,
        end: libc::SIGTERM,
        status: 0,
    },
    Kind {
        name: "jvm",
        function: "JVM_FillInStackTrace",
        skep_places: 2,
        compiles: true,
        needs: &["/usr/bin/java", "/usr/bin/javac", "/usr/bin/ab"],
        make: |s| {
            run(Command::new("/usr/bin/javac").args(["-d", &s.path("")]).arg(source("Server.java")))?;
            let mut command = Command::new("/usr/bin/java");
            command.args([
                "-Xmx128m",
                "-XX:+UseG1GC",
                "-Dsun.net.httpserver.nodelay=true",
                "-cp",
                &s.path(""),
                "Server",
                &s.port.to_string(),
            ]);
            Ok(command)
        },
        fill: |_| Ok(()),
        module: |pid| mapped(pid, "/libjvm.so"),
        client: ab,
        alarms: &["Exception", "Error", "A fatal error"],
        workers: Workers::Itself,
        end: libc::SIGTERM,
        status: 143,
    },
    Kind {
        name: "go",
        function: "main.Hot",
        skep_places: 2,
        compiles: false,
        needs: &[GO, "/usr/bin/ab"],
        make: |s| {
            let mut build = Command::new(GO);
            build
                .env("GOCACHE", s.path("cache"))
                .env("GO111MODULE", "off")
                .env("CGO_ENABLED", "0")
                .current_dir(s.folder);
            run(build.args(["build", "-o", &s.path("server")]).arg(source("server.go")))?;
            let mut command = Command::new(s.path("server"));
            command.arg(s.port.to_string()).env("GOGC", "20");
            Ok(command)
        },
        fill: |_| Ok(()),
        module: |_| None,
        client: ab,
        alarms: &["wrong", "panic", "fatal error", "SIG"],
        workers: Workers::Itself,
        end: libc::SIGTERM,
        status: 0,
    },
];

fn source(name: &str) -> PathBuf {
    root().join("benches/targets").join(name)
}

/// Runs something to its end.
fn run(command: &mut Command) -> Result<(), String> {
    let out = command.stdin(Stdio::null()).output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&out.stderr))),
    }
}

/// A command as a user that has no rights, for servers that refuse root.
fn unprivileged(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]).current_dir("/");
    command
}

fn pgbench(s: &Setup) -> Command {
    let mut command = Command::new("/usr/bin/pgbench");
    command.args(["-h", "127.0.0.1", "-p", &s.port.to_string(), "-U", "bench", "postgres"]);
    command
}

fn ab(s: &Setup, seconds: u64) -> (Command, load::Report) {
    let mut command = Command::new("/usr/bin/ab");
    command.args(["-q", "-k", "-c", "8", "-n", "100000000", "-t", &seconds.to_string()]);
    command.arg(format!("http://127.0.0.1:{}/", s.port));
    (command, load::ab)
}

/// A file of this name that a process has mapped.
fn mapped(pid: u32, name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    maps.lines().find(|line| line.ends_with(name)).and_then(|line| Some(line.get(line.find('/')?..)?.into()))
}

/// A server at work.
pub struct Running<'k> {
    /// What it is.
    pub kind: &'k Kind,
    folder: PathBuf,
    port: u16,
    child: Child,
    program: PathBuf,
}

impl<'k> Running<'k> {
    /// Starts it.
    pub fn start(kind: &'k Kind, folder: &Path) -> Result<Running<'k>, String> {
        if let Some(missing) = kind.needs.iter().find(|path| !Path::new(path).exists()) {
            return Err(format!("{missing} is not installed"));
        }
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).map_err(|e| e.to_string())?;
        let setup = Setup { folder, port: free.port() };
        let mut command = (kind.make)(&setup)?;
        let log = fs::File::create(folder.join("log")).map_err(|e| e.to_string())?;
        let both = log.try_clone().map_err(|e| e.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(both).spawn().map_err(|e| e.to_string())?;
        let mut server = Running { kind, folder: folder.to_owned(), port: setup.port, program: PathBuf::new(), child };
        server.await_listening()?;
        server.program = fs::read_link(format!("/proc/{}/exe", server.child.id())).map_err(|e| e.to_string())?;
        (kind.fill)(&server.setup())?;
        Ok(server)
    }

    fn setup(&self) -> Setup<'_> {
        Setup { folder: &self.folder, port: self.port }
    }

    fn await_listening(&mut self) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended at once with {status}: {}", self.log()));
            }
            if Instant::now() > end {
                return Err(format!("it does not listen: {}", self.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        [read("log"), read("error.log")].concat()
    }

    /// Starts its client.
    pub fn client(&self, seconds: u64) -> Result<Client, String> {
        let (command, read) = (self.kind.client)(&self.setup(), seconds);
        Client::start(command, read, seconds)
    }

    /// Loads it for so many seconds.
    pub fn load(&self, seconds: u64) -> Result<f64, String> {
        self.client(seconds)?.rate()
    }

    /// Does it start a process for each connection?
    pub fn starts_workers(&self) -> bool {
        matches!(self.kind.workers, Workers::Backends)
    }

    /// The processes that run the function.
    pub fn traced(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children = || {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            text.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<u32>>()
        };
        let serves = |pid: &u32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains("127.0.0.1("))
        };
        match self.kind.workers {
            Workers::Itself => vec![pid],
            Workers::Children => children(),
            Workers::Backends => children().into_iter().filter(serves).collect(),
        }
    }

    /// Seconds that its processes have run so far, those included that have ended.
    pub fn processor_time(&self) -> f64 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|w| w.parse().ok()).chain([pid]);
        let ticks = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
            // utime, stime, and those of the children that it has waited for.
            fields.skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum::<u64>()
        };
        // SAFETY: it only answers.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        pids.map(ticks).sum::<u64>() as f64 / per_second as f64
    }

    /// The file with the function.
    pub fn module(&self) -> PathBuf {
        (self.kind.module)(self.child.id()).unwrap_or_else(|| self.program.clone())
    }

    /// Where the kernel's probes go, and whether they are return probes. Those break Go's stacks: there each `ret` gets one.
    pub fn uprobes(&self) -> Vec<(u64, bool)> {
        let (file, function) = (self.module(), self.kind.function);
        let entry = file_offset(&file, function);
        if self.kind.name != "go" {
            return vec![(entry, false), (entry, true)];
        }
        let out = Command::new("objdump").arg("-d").arg(format!("--disassemble={function}")).arg(&file).output();
        let text = String::from_utf8_lossy(&out.expect("objdump").stdout).into_owned();
        let address = |line: &str| u64::from_str_radix(line.trim().split(':').next().unwrap_or_default(), 16).ok();
        let lines = text.lines().filter(|l| l.contains('\t'));
        let first = lines.clone().find_map(address).expect("an instruction");
        let rets = lines.filter(|l| l.split_whitespace().last() == Some("ret")).filter_map(address);
        [entry].into_iter().chain(rets.map(|at| entry + (at - first))).map(|offset| (offset, false)).collect()
    }

    /// Behind an error, lets it come to rest.
    pub fn wait_a_moment(&self) {
        std::thread::sleep(Duration::from_secs(2));
    }

    /// Ends it; what was wrong.
    pub fn stop(mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        match self.child.try_wait() {
            Ok(None) => {
                // SAFETY: a signal to a child that has not been waited for.
                unsafe { libc::kill(self.child.id() as i32, self.kind.end) };
                let status = skep_tests::wait(&mut self.child, Duration::from_secs(60));
                if status.code() != Some(self.kind.status) && signalled(status) != Some(self.kind.status - 128) {
                    wrong.push(format!("it ended with {status}"));
                }
            }
            Ok(Some(status)) => wrong.push(format!("it ended in the middle with {status}")),
            Err(e) => wrong.push(e.to_string()),
        }
        let log = self.log();
        let lines = BufReader::new(log.as_bytes()).lines().map_while(Result::ok);
        wrong.extend(lines.filter(|l| self.kind.alarms.iter().any(|a| l.contains(a))).take(5));
        wrong
    }
}

fn signalled(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // SAFETY: a signal to a child that has not been waited for; servers end their own processes by it.
            unsafe { libc::kill(self.child.id() as i32, self.kind.end) };
            skep_tests::wait(&mut self.child, Duration::from_secs(30));
        }
    }
}
