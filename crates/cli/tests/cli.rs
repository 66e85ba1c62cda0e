//! The command line as scripts see it: exit statuses, keys, messages.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bpf(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../bpf").join(name)
}

fn skep(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_skep"));
    c.args(args.iter().map(|a| {
        if a.ends_with(".bpf.o") && !a.contains('/') || a.starts_with("test/") {
            bpf(a).into_os_string()
        } else {
            a.into()
        }
    }));
    c.stdin(Stdio::null());
    c
}

struct Done {
    status: i32,
    out: String,
    err: String,
}

impl Done {
    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
}

fn run(args: &[&str]) -> Done {
    let Output { status, stdout, stderr } = skep(args).output().unwrap();
    let text = |b| String::from_utf8(b).unwrap();
    let done = Done { status: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) };
    assert!(!done.err.contains("panicked"), "{args:?}: {}", done.err);
    done
}

fn keys(v: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = v.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn check_accepts() {
    let done = run(&["check", "--json", "test/count.bpf.o", "test/sample.bpf.o"]);
    assert_eq!(done.status, 0, "{}", done.err);
    let lines = done.lines();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert_eq!(
            keys(line),
            [
                "errno",
                "history",
                "insn",
                "insns_processed",
                "message",
                "object",
                "program",
                "reason",
                "rule",
                "section",
                "source",
                "suggestion",
                "type",
                "value",
                "verdict",
                "verification_ns"
            ]
        );
        assert_eq!((line["verdict"].as_str(), line["type"].as_str()), (Some("accepted"), Some("kprobe")));
        assert!(line["insns_processed"].as_u64().unwrap() > 0 && line["errno"].is_null());
    }
    assert_eq!(lines[1]["program"], "on_return");
    assert_eq!(lines[1]["section"], "kretprobe/probed");
}

#[test]
fn dumps_show_instructions_and_lines() {
    let done = run(&["prog", "dump", "xlated", "test/count.bpf.o", "--prog", "on_entry", "--linum"]);
    assert_eq!(done.status, 0, "{}", done.err);
    for part in ["on_entry:\n", "   0: (", "count.bpf.c line_num:", "exit\n", "map["] {
        assert!(done.out.contains(part), "no {part:?} in\n{}", done.out);
    }

    let done = run(&["prog", "dump", "xlated", "--json", "--opcodes", "test/count.bpf.o"]);
    let lines = done.lines();
    assert_eq!(lines.len(), 2, "a line for each program");
    assert_eq!(keys(&lines[0]), ["insns", "object", "program"]);
    let insns = lines[0]["insns"].as_array().unwrap();
    assert_eq!(insns[0]["name"], lines[0]["program"]);
    assert!(insns.iter().any(|i| i["src"].is_string()), "{}", done.out);
    let last = insns.last().unwrap();
    assert_eq!(
        (last["disasm"].as_str(), last["opcodes"].as_str()),
        (Some("(95) exit"), Some("95 00 00 00 00 00 00 00"))
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn dumps_show_machine_code() {
    let done = run(&["prog", "dump", "jited", "../../bpf/engines/loops.bpf.o"]);
    assert_eq!(done.status, 0, "{}", done.err);
    for part in [":\n", "   0:\t", "ret", "%rax", "\n; "] {
        assert!(done.out.contains(part), "no {part:?} in\n{}", done.out);
    }

    let done = run(&["prog", "dump", "jited", "--json", "--opcodes", "--linum", "test/count.bpf.o"]);
    let lines = done.lines();
    assert_eq!(keys(&lines[0]), ["functions", "object", "program"]);
    let function = &lines[0]["functions"][0];
    assert_eq!(function["name"], lines[0]["program"]);
    let insns = function["insns"].as_array().unwrap();
    // What is printed is all of it, in order: each begins where the one in front of it ends.
    let mut at = 0;
    for insn in insns {
        assert_eq!(insn["pc"], format!("{at:#x}"), "{insn}");
        at += insn["opcodes"].as_str().unwrap().split(' ').count();
        assert!(insn["operation"] != "(bad)" && insn["operands"].is_array(), "{insn}");
    }
    assert!(insns.iter().any(|i| i["src"].is_string() && i["line_num"].is_u64()), "{}", done.out);
    assert!(insns.iter().any(|i| i["operation"] == "ret"), "{}", done.out);
}

#[test]
fn dumps_say_why_there_is_none() {
    let done = run(&["prog", "dump", "xlated", "--prog", "nobody", "test/count.bpf.o"]);
    assert_eq!((done.status, done.err.contains("nobody")), (2, true), "{}", done.err);
    // The others are dumped nevertheless.
    let done = run(&["prog", "dump", "jited", "test/packet.bpf.o"]);
    assert_eq!(done.status, 1, "{}", done.err);
    assert!(done.err.contains("rejected") && done.out.contains("sum:\n"), "{}{}", done.err, done.out);
}

#[test]
fn check_rejects_with_the_line() {
    let done = run(&["check", "--json", "--prog", "rejected", "test/packet.bpf.o"]);
    assert_eq!(done.status, 1);
    let line = &done.lines()[0];
    assert_eq!((line["verdict"].as_str(), line["errno"].as_str()), (Some("rejected"), Some("EACCES")));
    assert!(line["source"].as_str().unwrap().contains("packet.bpf.c:"), "{line}");
    assert!(line["insn"].is_u64() && line["reason"].is_string() && line["message"].is_string());

    let done = run(&["check", "--prog", "rejected", "test/packet.bpf.o"]);
    for part in ["error", "rejected", "return data[0]", "packet.bpf.c:", "instruction", "EACCES"] {
        assert!(done.out.contains(part), "no {part:?} in\n{}", done.out);
    }
}

#[test]
fn check_explains() {
    let args = ["check", "--prog", "rejected", "test/packet.bpf.o"];
    let done = run(&args);
    for part in ["the rule: ", "r1 holds ", "where it came from", "help: ", "return data[0]", "ctx->data"] {
        assert!(done.out.contains(part), "no {part:?} in\n{}", done.out);
    }
    assert!(!done.out.contains('\x1b'), "no colour but on a terminal");
    assert_eq!(done.out, run(&args).out);

    let line = &run(&["check", "--json", "--prog", "rejected", "test/packet.bpf.o"]).lines()[0];
    for key in ["rule", "value", "suggestion"] {
        assert!(line[key].as_str().is_some_and(|t| !t.is_empty()), "{key}: {line}");
    }
    let history = line["history"].as_array().unwrap();
    assert!(!history.is_empty(), "{line}");
    for step in history {
        assert_eq!(keys(step), ["insn", "source", "text", "what"]);
        assert!(step["insn"].is_u64() && step["source"].as_str().unwrap().contains("packet.bpf.c:"), "{step}");
    }
}

#[test]
fn check_tells_what_the_work_was() {
    let line = &run(&["check", "--json", "--stats", "--prog", "swap", "test/packet.bpf.o"]).lines()[0];
    assert!(line["states"].is_u64() && line["peak_states"].is_u64() && line["peak_pending"].is_u64(), "{line}");
    let hot = line["hot_lines"].as_array().unwrap();
    assert!((1..=5).contains(&hot.len()), "{line}");
    let insns: Vec<u64> = hot.iter().map(|h| h["insns"].as_u64().unwrap()).collect();
    assert!(insns.is_sorted_by(|a, b| a >= b) && insns[0] > 0, "{line}");
    assert!(insns.iter().sum::<u64>() <= line["insns_processed"].as_u64().unwrap(), "{line}");
    let done = run(&["check", "--stats", "--prog", "rejected", "test/packet.bpf.o"]);
    assert!(done.out.contains("states saved") && done.out.contains("packet.bpf.c:"), "{}", done.out);
}

#[test]
fn check_logs_as_the_kernel_does() {
    let done = run(&["check", "--log", "--prog", "swap", "test/packet.bpf.o"]);
    let lines: Vec<&str> = done.out.lines().skip(1).collect();
    assert_eq!(lines[0], "0: R1=ctx() R10=fp0");
    assert!(lines[1].starts_with("; int swap(struct xdp_md *ctx) @ "), "{}", done.out);
    assert_eq!(lines[2], "0: (b4) w0 = 1                        ; R0=1");
    let branch = lines.iter().position(|l| l.starts_with("from 5 to 11: R0=1 R1=pkt(r=0)")).expect("the branch");
    assert_eq!((lines[branch - 1], lines[branch + 1]), ("", "11: (95) exit"));
    let last = lines.last().unwrap();
    assert!(last.starts_with("processed 13 insns (limit 1000000) max_states_per_insn "), "{last}");
    assert!(last.contains(" total_states 1 peak_states 1 mark_read "), "{last}");

    let done = run(&["check", "--json", "--log", "--prog", "rejected", "test/packet.bpf.o"]);
    assert_eq!(done.lines().len(), 1, "answers alone");
    assert!(done.err.contains("1: (71) r0 = *(u8 *)(r1 +0)\n"), "{}", done.err);
}

/// A check of required properties and of their types, as the standard's schema has them.
#[test]
fn check_writes_sarif() {
    let args = ["check", "--sarif", "test/packet.bpf.o", "test/count.bpf.o"];
    let done = run(&args);
    assert_eq!(done.status, 1, "{}", done.err);
    assert_eq!(done.out, run(&args).out, "stable");
    let document: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(document["version"], "2.1.0");
    let run_object = &document["runs"].as_array().unwrap()[0];
    let driver = &run_object["tool"]["driver"];
    assert_eq!(driver["name"], "skep");
    let rules = driver["rules"].as_array().unwrap();
    let results = run_object["results"].as_array().unwrap();
    assert!(!results.is_empty());
    for rule in rules {
        assert!(rule["id"].is_string() && rule["shortDescription"]["text"].is_string(), "{rule}");
        assert!(rule["help"]["text"].is_string(), "{rule}");
    }
    for result in results {
        let index = result["ruleIndex"].as_u64().unwrap() as usize;
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert_eq!(result["level"], "error");
        assert!(result["message"]["text"].as_str().is_some_and(|t| !t.is_empty()));
        let related = result["relatedLocations"].as_array().unwrap();
        for location in result["locations"].as_array().unwrap().iter().chain(related) {
            let place = &location["physicalLocation"];
            let uri = place["artifactLocation"]["uri"].as_str().unwrap();
            assert!(uri.ends_with("packet.bpf.c") && !uri.contains(' '), "{uri}");
            let region = &place["region"];
            assert!(region["startLine"].as_u64().unwrap() >= 1);
            assert!(region["startColumn"].as_u64().unwrap() >= 1);
            assert!(region["endColumn"].as_u64() > region["startColumn"].as_u64());
        }
    }
    let done = run(&["check", "--sarif", "/no/such.o", "test/count.bpf.o"]);
    assert_eq!(done.status, 2);
    let document: Value = serde_json::from_str(&done.out).unwrap();
    let run_object = &document["runs"][0];
    assert_eq!(run_object["results"].as_array().map(Vec::len), Some(0));
    let invocation = &run_object["invocations"][0];
    assert_eq!(invocation["executionSuccessful"], false);
    assert!(invocation["toolExecutionNotifications"][0]["message"]["text"].as_str().unwrap().contains("/no/such.o"));
}

/// Two thousand programs, in order, one like the other, and in little memory.
#[test]
fn check_of_many_objects() {
    let dir = std::env::temp_dir().join(format!("skep-cli-many-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let sources = ["test/packet.bpf.o", "test/count.bpf.o", "test/sample.bpf.o"];
    let alone: Vec<Vec<Value>> = sources.iter().map(|s| run(&["check", "--json", s]).lines()).collect();
    let mut args = vec!["check".to_owned(), "--json".to_owned()];
    let mut expected = Vec::new();
    for (n, (source, lines)) in sources.iter().zip(&alone).cycle().enumerate() {
        if expected.len() >= 2000 {
            break;
        }
        let path = dir.join(format!("{n}.o")).to_str().unwrap().to_owned();
        std::fs::copy(bpf(source), &path).unwrap();
        expected.extend(lines.iter().map(|l| (path.clone(), l)));
        args.push(path);
    }
    let done = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    std::fs::remove_dir_all(dir).unwrap();
    assert_eq!(done.status, 1, "{}", done.err);
    assert!(done.err.is_empty(), "no progress but on a terminal: {}", done.err);
    let lines = done.lines();
    assert_eq!(lines.len(), expected.len());
    for (line, (path, alone)) in lines.iter().zip(expected) {
        assert_eq!(line["object"], path.as_str());
        for key in ["program", "verdict", "insn", "reason", "message", "insns_processed", "value", "history"] {
            assert_eq!(line[key], alone[key], "{key} of {path}");
        }
    }
}

#[test]
fn check_without_privilege() {
    let done = run(&["check", "--json", "--unprivileged", "test/count.bpf.o"]);
    assert_eq!(done.status, 1);
    for line in done.lines() {
        assert_eq!((line["verdict"].as_str(), line["errno"].as_str()), (Some("rejected"), Some("EPERM")), "{line}");
        assert!(line["message"].as_str().unwrap().contains("CAP_BPF"), "{line}");
    }
}

#[test]
fn examples_are_accepted() {
    for entry in std::fs::read_dir(bpf("")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "o") {
            let done = run(&["check", path.to_str().unwrap()]);
            assert_eq!(done.status, 0, "{}: {}{}", path.display(), done.out, done.err);
        }
    }
}

#[test]
fn check_of_what_is_no_object() {
    let dir = std::env::temp_dir().join(format!("skep-cli-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let good = std::fs::read(bpf("test/count.bpf.o")).unwrap();
    for (name, bytes) in [("empty", &[][..]), ("text", b"#!/bin/sh\n"), ("cut", &good[..good.len() / 2])] {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        let path = path.to_str().unwrap();
        let done = run(&["check", "--json", path, "test/count.bpf.o"]);
        assert_eq!(done.status, 2, "{name}");
        assert!(done.err.contains(path), "{}", done.err);
        assert_eq!(done.lines().len(), 2, "the other object is judged");
    }
    std::fs::remove_dir_all(dir).unwrap();
    let done = run(&["check", "/no/such.o"]);
    assert!(done.status == 2 && done.err.contains("/no/such.o"));
}

#[test]
fn wrong_usage() {
    for (args, part) in [
        (&["check"][..], "OBJECT"),
        (&["check", "--prog", "nope", "test/count.bpf.o"], "nope"),
        (&["check", "--kernel", "9.99", "test/count.bpf.o"], "9.99"),
        (&["check", "--sarif", "--json", "test/count.bpf.o"], "--json"),
        (&["check", "--btf", "/no/btf", "test/count.bpf.o"], "/no/btf"),
        (&["run", "test/packet.bpf.o"], "--prog"),
        (&["run", "test/packet.bpf.o", "--prog", "nope"], "nope"),
        (&["run", "test/packet.bpf.o", "--prog", "swap", "--data-in", "/no/data"], "/no/data"),
        (&["run", "test/packet.bpf.o", "--prog", "sum", "--data-in", "/bin/sh"], "packet"),
        (&["trace", "test/count.bpf.o"], "--pid"),
        (&["trace", "test/arg.bpf.o", "--pid", "1"], "--func"),
        (&["trace", "--func", "f", "test/count.bpf.o", "--pid", "1"], "--func f"),
        (&["trace", "test/packet.bpf.o", "--pid", "1"], "inside the kernel"),
        (&["trace", "--event", "nope=record", "test/events.bpf.o", "--", "true"], "nope"),
        (&["trace", "--event", "ring=nope", "test/events.bpf.o", "--", "true"], "nope"),
        (&["exec", "--", "true"], "not built in yet"),
        (&["prog", "list", "--json"], "not built in yet"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let done = run(args);
        assert_eq!(done.status, 2, "{args:?}: {}", done.err);
        assert!(done.err.contains(part), "{args:?}: no {part:?} in {}", done.err);
        assert!(done.out.is_empty(), "{args:?}: {}", done.out);
    }
}

#[test]
fn runs() {
    for (program, retval, data) in [("swap", 3, true), ("length", 64, true), ("accept", 50, true), ("sum", 0, false)] {
        let done = run(&["run", "--json", "test/packet.bpf.o", "--prog", program, "--engine", "interp"]);
        assert_eq!(done.status, 0, "{}", done.err);
        let native = run(&["run", "--json", "test/packet.bpf.o", "--prog", program, "--engine", "jit"]).lines();
        assert_eq!((native[0]["retval"].as_u64(), native[0]["engine"].as_str()), (Some(retval), Some("jit")));
        let lines = done.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0]["retval"].as_u64(), lines[0]["engine"].as_str()), (Some(retval), Some("interp")));
        assert_eq!(lines[0]["program"], program);
        assert!(lines[0]["duration_ns"].is_u64());
        assert_eq!(lines[0]["data_out"].as_str().map(str::len), data.then_some(128));
    }
}

#[test]
fn runs_on_given_data() {
    let dir = std::env::temp_dir().join(format!("skep-cli-data-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let packet: Vec<u8> = (0..20).collect();
    let data = file("packet", &packet);
    let line = &run(&["run", "--json", "test/packet.bpf.o", "--prog", "swap", "--data-in", &data]).lines()[0];
    assert!(line["data_out"].as_str().unwrap().starts_with("060102030405000708"));
    let args = file("args", &[7u64.to_ne_bytes(), 8u64.to_ne_bytes()].concat());
    let line = &run(&["run", "--json", "test/packet.bpf.o", "--prog", "sum", "--ctx-in", &args]).lines()[0];
    assert_eq!(line["retval"], 15);
    let mut skb = [0; 192];
    skb[8] = 41;
    let ctx = file("skb", &skb);
    let args = ["run", "--json", "test/packet.bpf.o", "--prog", "length", "--ctx-in", &ctx, "--repeat", "3"];
    let line = &run(&args).lines()[0];
    assert!(line["ctx_out"].as_str().unwrap().starts_with("00000000000000002c000000"), "three runs add three: {line}");
    let short = file("short", &[0; 13]);
    let done = run(&["run", "test/packet.bpf.o", "--prog", "length", "--data-in", &short]);
    assert!(done.status == 2 && done.err.contains("EINVAL") && done.err.contains("13"), "{}", done.err);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn programs_run_in_order_on_the_same_maps() {
    let done = run(&["run", "--json", "test/tail.bpf.o", "--prog", "counted", "--prog", "on_entry"]);
    assert_eq!((done.status, done.lines().len()), (0, 1), "{}", done.err);
    assert_eq!(done.lines()[0]["program"], "on_entry");
}

#[test]
fn output_that_cannot_be_written() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = skep(&["check", "test/count.bpf.o"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{err}");
    assert!(err.contains("standard output") && !err.contains("panicked"), "{err}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = skep(&["check", "test/packet.bpf.o"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "judged to the end: {err}");
    assert!(!err.contains("panicked"), "{err}");
}
