//! Nanoseconds that a probe adds to a call: skep against the kernel's uprobe, same functions, one run, interleaved.
//!
//! usage: `cargo run --release -p skep-benches --bin probes [ROUNDS]` (the kernel's column needs root)

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use skep_benches::{KernelProbe, kernel_program, least, median};
use skep_tests::{Trace, object, root, scratch};

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(21);
    let program = scratch().join("loop");
    let source = root().join("benches/targets/loop.c");
    let built = Command::new("gcc").args(["-O2", "-o"]).arg(&program).arg(source).status().expect("gcc");
    assert!(built.success(), "gcc could not build the target");
    let mut child = Command::new("taskset")
        .args(["-c", "1"])
        .arg(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the target starts");
    let pid = child.id();
    let mut to = child.stdin.take().expect("piped");
    let mut from = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = move || from.next().expect("the target lives").expect("a line");
    assert_eq!(next(), "ready");
    let mut batch = |function: &str, calls: u32| -> f64 {
        writeln!(to, "{function} {calls}").expect("the target reads");
        next().parse().expect("a number")
    };
    let kernel = kernel_program().inspect_err(|e| eprintln!("no kernel columns: bpf(2): {e}")).ok();
    println!("ns added to a call: median / least of {rounds} interleaved rounds; program `r0 = 0; exit`\n");
    println!(
        "| function | call | skep entry | skep return | kernel uprobe | kernel uretprobe | uprobe / skep | uretprobe / skep |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for function in ["probed", "pushes"] {
        let offset = file_offset(&program, function);
        let mut figures: [Vec<f64>; 5] = Default::default();
        for _ in 0..rounds {
            figures[0].push(batch(function, 300_000));
            for (i, object_name) in [(1, "test/two_entry.bpf.o"), (2, "test/two_return.bpf.o")] {
                let args = [object(object_name).into_os_string(), "--func".into(), function.into(), "--pid".into()];
                let mut trace = Trace::start(args.into_iter().chain([pid.to_string().into()]));
                trace.attached(1);
                figures[i].push(batch(function, 300_000));
                trace.interrupt();
                trace.finish();
            }
            for (i, ret) in [(3, false), (4, true)] {
                let Some(program_fd) = &kernel else { continue };
                let probe = KernelProbe::attach(program_fd, &program, offset, ret, pid).expect("kernel uprobe");
                figures[i].push(batch(function, 20_000));
                drop(probe);
            }
        }
        let call = median(&mut figures[0]);
        let call_least = least(&figures[0]);
        let mut added = [f64::NAN; 5];
        let mut cells = Vec::new();
        for i in 1..5 {
            added[i] = median(&mut figures[i]) - call;
            cells.push(match figures[i].is_empty() {
                true => "–".to_owned(),
                false => format!("{:.1} / {:.1}", added[i], least(&figures[i]) - call_least),
            });
        }
        println!(
            "| `{function}` | {call:.1} / {call_least:.1} | {} | {:.0} × | {:.0} × |",
            cells.join(" | "),
            added[3] / added[1],
            added[4] / added[2]
        );
    }
    drop(to);
    let _ = child.wait();
    let _ = std::fs::remove_dir_all(scratch());
}

/// The file offset of a function, from `nm` and the program headers of `readelf`.
fn file_offset(program: &std::path::Path, function: &str) -> u64 {
    let text = |tool: &str, flag: &str| -> String {
        let out = Command::new(tool).arg(flag).arg(program).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let hex = |s: &str| u64::from_str_radix(s.trim_start_matches("0x"), 16).expect("hex");
    let symbols = text("nm", "-p");
    let line = symbols.lines().find(|l| l.ends_with(&format!(" {function}"))).expect("symbol");
    let address = hex(line.split(' ').next().unwrap_or_default());
    let headers = text("readelf", "-lW");
    let load = headers.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).filter(|f| f.first() == Some(&"LOAD"));
    load.map(|f| (hex(f[1]), hex(f[2]), hex(f[4])))
        .find(|(_, at, size)| (*at..at + size).contains(&address))
        .map(|(offset, at, _)| address - at + offset)
        .expect("a segment holds the function")
}
