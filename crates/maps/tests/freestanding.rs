//! The data plane as the agent builds it: plain rustc, `core` only. No panicking path, nothing left to link.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Calls everything, so that what is inlined is compiled as well.
const CALLER: &str = r#"
#![no_std]
use skep_maps::{MapRef, Part, Sample};
#[unsafe(no_mangle)]
pub unsafe extern "C" fn everything(m: MapRef, s: u32, k: *const u8, v: *mut u8, n: u64, sample: &Sample) -> i64 {
    unsafe {
        let parts = [Part { ptr: v, len: n as usize }];
        let ips = core::slice::from_raw_parts(v.cast::<u64>(), n as usize);
        m.lookup(s, k) as i64
            + m.lookup_percpu(k, s) as i64
            + m.update(s, k, v, n)
            + m.delete(s, k)
            + m.prog_array_get(s).map_or(0, i64::from)
            + m.ringbuf_reserve(s, n, 0) as i64
            + m.ringbuf_owns(v) as i64
            + m.ringbuf_commit(v, n, false) as i64
            + m.ringbuf_output(s, k, n, n).0
            + m.ringbuf_query(n) as i64
            + m.perf_output(s, n, sample, &parts).0
            + m.stackid(s, ips, n)
            + m.inner(k).map_or(0, i64::from)
            + m.push(s, v, n)
            + m.pop(s, v)
            + m.peek(s, v)
            + m.user_ringbuf_drain(s, n, |p, n| p as u64 + u64::from(n)).0
            + m.for_each(s, |k, v| k as u64 ^ v as u64)
            + i64::from(m.recover(s).locks)
    }
}
"#;

fn compiler() -> OsString {
    std::env::var_os("RUSTC").unwrap_or("rustc".into())
}

fn rustc(dir: &Path, name: &str, source: &Path, optimise: &str, extra: &[&str]) {
    let out = Command::new(compiler())
        .args([
            "--edition=2024",
            "--crate-type=lib",
            "-Cpanic=abort",
            "-Cdebuginfo=0",
            "-Cembed-bitcode=no",
            "-Ccodegen-units=1",
        ])
        .args([&format!("--crate-name={name}"), &format!("-Copt-level={optimise}"), "--cap-lints=allow"])
        .args(["--emit=link,asm", "-L", dir.to_str().unwrap(), "--out-dir", dir.to_str().unwrap()])
        .args(extra)
        .arg(source)
        .output()
        .expect("rustc");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn no_panics_and_no_libc() {
    if let Err(e) = Command::new(compiler()).arg("-V").output() {
        eprintln!("skipped: no compiler: {e}");
        return;
    }
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for optimise in ["2", "s"] {
        let dir = std::env::temp_dir().join(format!("skep-maps-freestanding-{}-{optimise}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let caller = dir.join("caller.rs");
        std::fs::write(&caller, CALLER).unwrap();
        rustc(&dir, "skep_ebpf", &crates.join("../ebpf/src/lib.rs"), optimise, &[]);
        rustc(&dir, "skep_maps", &crates.join("src/lib.rs"), optimise, &["--extern=skep_ebpf"]);
        rustc(&dir, "caller", &caller, optimise, &["--extern=skep_maps"]);
        for name in ["skep_maps.s", "caller.s"] {
            let asm = std::fs::read_to_string(dir.join(name)).unwrap();
            for banned in ["panic", "memcpy", "memset", "memcmp", "memmove", "bcmp", "slice_index", "unwrap_failed"] {
                let lines: Vec<&str> = asm.lines().filter(|l| l.contains(banned)).collect();
                assert!(lines.is_empty(), "{name} at opt-level {optimise}: {lines:?}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
