//! Compiles the blob: the data-plane crates as rlibs without their `control` features, and `blob/main.rs` on top.
//!
//! Cargo itself cannot: in one build it would give these crates the features that the control plane asks for.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Without these the compiler merges the interpreter's dispatches into one, at half the speed. They are LLVM's and may
/// go away, so they are tried first.
const DISPATCH: [&str; 2] = ["-Cllvm-args=-tail-dup-pred-size=1000", "-Cllvm-args=-tail-dup-succ-size=1000"];

/// Code that touches no vector register, so that trampolines need not save any. For kernels the compiler has targets of their
/// own; on this one it warns that the ABI of numbers with a point changes, of which there are none here. Where it does not take
/// these, the controller sees vector instructions in the blob and has them saved.
const INTEGER: [&str; 1] = ["-Ctarget-feature=-sse,-sse2,+soft-float"];

/// Data-plane crates, each after those it uses.
const CRATES: [&str; 3] = ["ebpf", "maps", "runtime"];

fn main() {
    let manifest = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(var("OUT_DIR"));
    let crates = manifest.parent().expect("this crate stands beside the others");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=blob");
    if var("CARGO_CFG_TARGET_ARCH") != "x86_64" || var("CARGO_CFG_TARGET_OS") != "linux" {
        println!("cargo::error=skep-agent is for x86_64 Linux; there is no blob for {} yet", var("TARGET"));
        return;
    }

    let mut options: Vec<&str> = Vec::new();
    for wanted in [&DISPATCH[..], &INTEGER] {
        if accepts(&out, wanted) {
            options.extend(wanted);
        }
    }
    let mut externs = Vec::new();
    for name in CRATES {
        let source = crates.join(name).join("src");
        println!("cargo::rerun-if-changed={}", source.display());
        let rlib = out.join(format!("libskep_{name}.rlib"));
        let mut rustc = rustc(&source.join("lib.rs"), &format!("skep_{name}"), &rlib, &externs);
        run(rustc.args(["--crate-type=rlib", "--cap-lints=allow"]).args(&options));
        externs.push(format!("skep_{name}={}", rlib.display()));
    }

    let mut rustc = rustc(&manifest.join("blob/main.rs"), "skep_blob", &out.join("blob.elf"), &externs);
    rustc.args(["--crate-type=bin", "-Clto=fat"]).args(&options);
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,--entry=skep_hit",
        "-Wl,--undefined=skep_leave",
        "-Wl,--undefined=skep_call",
        "-Wl,--undefined=skep_called",
        "-Wl,--undefined=skep_enter",
        "-Wl,--undefined=skep_quick_hit",
        "-Wl,--undefined=skep_quick_return",
        "-Wl,--undefined=skep_quick_call",
        "-Wl,--undefined=skep_quick_called",
        "-Wl,--undefined=skep_return",
        "-Wl,--undefined=skep_guard",
        "-Wl,--undefined=skep_trap",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,--no-dynamic-linker",
        "-Wl,--strip-debug",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        "-Wl,-z,text",
    ] {
        rustc.arg(format!("-Clink-arg={arg}"));
    }
    if var("CARGO_CFG_TARGET_ENV") == "musl" {
        // No start files of the target's own either.
        rustc.arg("-Clink-self-contained=no");
    }
    run(&mut rustc);
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// A call of the compiler for a freestanding crate.
fn rustc(source: &Path, name: &str, out: &Path, externs: &[String]) -> Command {
    let mut rustc = Command::new(var("RUSTC"));
    rustc.arg(source).arg("-o").arg(out).args(["--edition=2024", "--crate-name", name, "--target", &var("TARGET")]);
    rustc.args(["-Copt-level=3", "-Ccodegen-units=1", "-Cpanic=abort", "-Cdebuginfo=0", "-Cforce-unwind-tables=no"]);
    rustc.args(["-Crelocation-model=pic", "-Ctarget-cpu=x86-64", "-Cdebug-assertions=no", "-Coverflow-checks=no"]);
    rustc.arg("-L").arg(out.parent().expect("the output stands in a folder"));
    // Paths of this machine do not belong into the product.
    let root = var("CARGO_MANIFEST_DIR");
    rustc.arg(format!("--remap-path-prefix={root}=agent"));
    for e in externs {
        rustc.args(["--extern", e]);
    }
    rustc
}

/// True if the compiler takes these arguments.
fn accepts(out: &Path, args: &[&str]) -> bool {
    let probe = out.join("probe.rs");
    std::fs::write(&probe, "#![no_std]\n").expect("OUT_DIR is writable");
    let mut rustc = rustc(&probe, "probe", &out.join("libprobe.rlib"), &[]);
    rustc.arg("--crate-type=rlib").args(args);
    rustc.output().is_ok_and(|o| o.status.success())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "the agent's blob cannot be built: {command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
