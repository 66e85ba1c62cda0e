//! The header against the library: what is declared is there, and an application in C does what one in Rust does.

use std::path::PathBuf;
use std::process::Command;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names that follow `marker` up to an opening parenthesis.
fn functions(text: &str, marker: &str) -> Vec<String> {
    let name = |part: &str| part.split('(').next().unwrap_or_default().to_owned();
    let mut all: Vec<String> = text.split(marker).skip(1).map(|part| format!("skep_{}", name(part))).collect();
    all.retain(|n| n.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    all.sort();
    all.dedup();
    all
}

#[test]
fn the_header_declares_what_is_there() {
    let header = std::fs::read_to_string(folder().join("include/skep.h")).unwrap();
    let library = std::fs::read_to_string(folder().join("src/lib.rs")).unwrap();
    // Declarations end in `;`, and comments mention functions, too.
    let code: String = header.split("/*").map(|part| part.rsplit("*/").next().unwrap_or_default()).collect();
    let declared: Vec<String> =
        functions(&code, "skep_").into_iter().filter(|n| code.contains(&format!("{n}("))).collect();
    assert_eq!(declared, functions(&library, "extern \"C\" fn skep_"));
    assert_eq!(declared.len(), 16);
}

#[test]
fn an_application_in_c() {
    let out = tempdir();
    let program = out.join("app");
    // Beside the test's own binary.
    let exe = std::env::current_exe().unwrap();
    let libraries = exe.parent().expect("a folder");
    let hooks = folder().join("../../bpf/hooks");
    let built = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(folder().join("include"))
        .arg(folder().join("tests/app.c"))
        .arg(libraries.join("libskep_c.a"))
        .args(["-lpthread", "-ldl", "-lm"])
        .status()
        .expect("cc is installed");
    assert!(built.success());
    let objects = ["version_one", "version_two", "wrong_wild"].map(|name| hooks.join(format!("{name}.bpf.o")));
    let ran = Command::new(&program).args(&objects).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    std::fs::remove_dir_all(&out).unwrap();
    assert!(ran.status.success(), "{}\n{said}{}", ran.status, String::from_utf8_lossy(&ran.stderr));
    let wrong = "program `add`: instruction 0: struct sum has no field at offset 72";
    assert!(said.starts_with(wrong) && said.contains("\nfix: "), "{said}");
    assert!(said.contains("the plug-in has no program `subtract`"), "{said}");
    assert!(said.contains("member key of struct sum goes beyond the struct"), "{said}");
}

fn tempdir() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("skep-capi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
