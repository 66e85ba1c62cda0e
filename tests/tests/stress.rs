//! Much used library functions are traced while a program does everything at once that is hard on stacks and signals.

use std::process::Command;

use skep_tests::{Trace, build, object};

#[test]
fn a_tortured_program_computes_the_same() {
    let program = build("torture.cc", &[]);
    let out = Command::new(&program).arg("300").output().expect("runs");
    let want: Vec<String> = String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect();
    assert_eq!(out.status.code(), Some(9));
    for _ in 0..5 {
        let done = Trace::command(&object("test/torture.bpf.o"), [program.as_os_str(), "300".as_ref()]).finish();
        assert_eq!(done.plain, want, "{}", done.stderr);
        assert_eq!(done.status.code(), Some(0), "{}", done.stderr);
        assert_eq!(done.summary("e_leaf")["exit_status"].as_i64(), Some(9));
        assert!(done.count("e_leaf", "hits") > 0 && done.count("r_malloc", "hits") > 0);
    }
}
