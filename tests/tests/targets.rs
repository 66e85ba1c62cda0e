//! Real programs, one row each in `targets.tsv`.

use skep_tests::{Trace, build, object, root, skip};

#[test]
fn real_programs() {
    let table = std::fs::read_to_string(root().join("tests/targets.tsv")).expect("table");
    let mut failed = Vec::new();
    for row in table.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let fields: Vec<&str> = row.split('\t').collect();
        let &[name, function, minimum, arg1, command] = &fields[..] else { panic!("bad row: {row}") };
        if let Err(why) = one(name, function, minimum.parse().expect("minimum"), arg1, command) {
            failed.push(format!("{name}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn one(name: &str, function: &str, minimum: u64, arg1: &str, command: &str) -> Result<(), String> {
    let program = command.split(' ').next().unwrap_or_default();
    let command = command.replace("{static}", &build("static.c", &["-static"]).to_string_lossy());
    let command = command.replace("{rust}", env!("CARGO_BIN_EXE_rusty"));
    if program.starts_with('/') && !std::path::Path::new(program).exists() {
        skip(&format!("{name}: {program} is not installed"));
        return Ok(());
    }
    let object = object("test/arg.bpf.o");
    let args = [object.as_os_str(), "--func".as_ref(), function.as_ref(), "--".as_ref()];
    let words = ["sh", "-c"].map(Into::into).into_iter().chain([format!("exec {command}")]);
    let words: Vec<String> = words.collect();
    let args = args.into_iter().chain(words.iter().map(AsRef::as_ref));
    let done = Trace::start(args).finish();
    if !done.lines.iter().any(|l| l["kind"] == "summary") {
        return Err(format!("no summary; skep says:\n{}", done.stderr));
    }
    let hits = done.count("first_argument", "hits");
    if hits < minimum {
        return Err(format!("{hits} hits of {function}, expected {minimum}; skep says:\n{}", done.stderr));
    }
    if arg1 != "-" {
        let want: u64 = arg1.parse().map_err(|e| format!("{arg1}: {e}"))?;
        let seen = |l: &&skep_tests::Value| l["name"] == "arguments" && l["key"].as_u64() == Some(want);
        if !done.kind("map").iter().any(seen) {
            return Err(format!("{function} was never seen with a first argument of {want}"));
        }
    }
    Ok(())
}
