//! Policies come, go and are replaced while clients ask without a pause: each answer is that of one version or another.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use http_policies::policies::Policies;
use http_policies::service::serve;

struct Client(TcpStream);

impl Client {
    fn new(address: SocketAddr) -> Client {
        Client(TcpStream::connect(address).unwrap())
    }

    fn ask(&mut self, method: &str, path: &str, agent: &str) -> u16 {
        let agent = if agent.is_empty() { String::new() } else { format!("User-Agent: {agent}\r\n") };
        write!(self.0, "{method} {path} HTTP/1.1\r\nHost: x\r\n{agent}\r\n").unwrap();
        let (mut answer, mut part) = (Vec::new(), [0; 1024]);
        loop {
            let n = self.0.read(&mut part).unwrap();
            assert_ne!(n, 0, "the connection stays open");
            answer.extend(&part[..n]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let len =
                    head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok()).unwrap_or(0);
                if body.len() == len {
                    return head[9..12].parse().unwrap();
                }
            }
        }
    }
}

fn object(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf/hooks").join(name)
}

/// Puts an object in the folder, at a time of its own.
fn put(folder: &Path, name: &str, source: &str) {
    static TIME: AtomicU64 = AtomicU64::new(1);
    let (path, new) = (folder.join(name), folder.join("new"));
    fs::copy(object(source), &new).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(TIME.fetch_add(1, Ordering::Relaxed));
    fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
    fs::rename(new, path).unwrap();
}

fn service(folder: &Path) -> (Policies, SocketAddr, tokio::runtime::Runtime) {
    let policies = Policies::new(folder).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(serve(listener, policies.hook()));
    (policies, address, runtime)
}

#[test]
fn policies_decide_in_their_order() {
    let folder = std::env::temp_dir().join(format!("http-policies-order-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (mut policies, address, _runtime) = service(&folder);
    let mut client = Client::new(address);
    assert_eq!(client.ask("GET", "/admin", ""), 200);
    put(&folder, "10-paths.bpf.o", "http_paths.bpf.o");
    put(&folder, "20-agents.bpf.o", "http_agents.bpf.o");
    assert_eq!(policies.refresh(), ["10-paths.bpf.o: in", "20-agents.bpf.o: in"]);
    assert_eq!(client.ask("GET", "/admin/users", "x"), 404);
    assert_eq!(client.ask("POST", "/", "a bot"), 405, "paths come first");
    assert_eq!(client.ask("GET", "/", "a bot"), 403);
    assert_eq!(client.ask("GET", "/", ""), 400);
    assert_eq!(client.ask("GET", "/", "a browser"), 200);

    // A version with a mistake is refused, and the one before it stays.
    put(&folder, "10-paths.bpf.o", "http_careless.bpf.o");
    let said = policies.refresh().join("\n");
    assert!(said.starts_with("10-paths.bpf.o: refused: program `paths`"), "{said}");
    assert_eq!(client.ask("GET", "/admin", "x"), 404);
    put(&folder, "10-paths.bpf.o", "http_rate.bpf.o");
    let said = policies.refresh().join("\n");
    assert!(said.contains("the new object has no program `paths`"), "{said}");

    // Twenty at once, then no more.
    fs::remove_file(folder.join("10-paths.bpf.o")).unwrap();
    put(&folder, "30-rate.bpf.o", "http_rate.bpf.o");
    assert_eq!(policies.refresh(), ["10-paths.bpf.o: out", "30-rate.bpf.o: in"]);
    let answers: Vec<u16> = (0..40).map(|_| client.ask("GET", "/admin", "x")).collect();
    assert!(answers[..20].iter().all(|a| *a == 200), "{answers:?}");
    assert!(answers[20..].contains(&429), "{answers:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn replaced_under_load() {
    let folder = std::env::temp_dir().join(format!("http-policies-load-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (mut policies, address, _runtime) = service(&folder);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut client = Client::new(address);
                while !stop.load(Ordering::Relaxed) {
                    let status = client.ask("GET", "/admin", "a bot");
                    assert!([200, 404, 403].contains(&status), "{status}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begin = Instant::now();
        for round in 0u64.. {
            let enough = round >= 100 && round % 4 == 0 && asked.load(Ordering::Relaxed) >= 1000;
            if enough || begin.elapsed() > Duration::from_secs(60) {
                break;
            }
            match round % 4 {
                0 => put(&folder, "10-paths.bpf.o", "http_paths.bpf.o"),
                1 => put(&folder, "05-agents.bpf.o", "http_agents.bpf.o"),
                2 => put(&folder, "10-paths.bpf.o", "http_careless.bpf.o"),
                _ => fs::remove_file(folder.join("05-agents.bpf.o")).unwrap(),
            }
            policies.refresh();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(asked.load(Ordering::Relaxed) >= 1000);
    fs::remove_dir_all(folder).unwrap();
}
