//! Any objects: our verdict against the live kernel's, which gets each program alone, through libbpf.
//!
//! `SKEP_OBJECTS` names a folder of objects, such as those that a distribution's packages bring; without it the repository's
//! own are compared, each for a process with all capabilities, for one without `CAP_PERFMON`, and, where the kernel lets
//! such processes load programs at all, for one with none; `SKEP_OBJECTS_AS` (`full`, `bpf`, `none`) picks one. As root only. Programs that attach to kernel functions by BTF are left out where the kernel has no
//! tracing, and so is what libbpf cannot prepare (a symbol or type that this kernel lacks).

#[path = "kernel/mod.rs"]
mod live;
mod opened;

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use libbpf_sys as sys;
use skep_ebpf::Errno;
use skep_ebpf::uapi::{AttachType, ProgType};
use skep_elf::{LoadOptions, Object};
use skep_verifier::{Options, Outcome, Privilege, verify};

use opened::Opened;

/// What the kernel says to one program; `None` if it was not asked.
fn kernel(path: &Path, wanted: &str, log: &mut [u8]) -> Option<Result<(), Errno>> {
    let opened = Opened::for_program(path, wanted)?;
    // SAFETY: the object is open, and closed before the log goes.
    unsafe {
        sys::bpf_program__set_log_level(opened.program, 1);
        sys::bpf_program__set_log_buf(opened.program, log.as_mut_ptr().cast(), log.len() as u64);
        if sys::bpf_object__prepare(opened.object) != 0 {
            return None;
        }
        Some(match sys::bpf_object__load(opened.object) {
            0 => Ok(()),
            e => Err(Errno(-e)),
        })
    }
}

/// True if libbpf can read the object.
fn opens(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return false };
    // SAFETY: the path is a C string; null is checked.
    unsafe {
        let object = sys::bpf_object__open_file(path.as_ptr(), std::ptr::null());
        if !object.is_null() {
            sys::bpf_object__close(object);
        }
        !object.is_null()
    }
}

fn objects() -> Vec<PathBuf> {
    let dir = std::env::var_os("SKEP_OBJECTS")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../bpf"));
    let mut all: Vec<_> = std::fs::read_dir(&dir)
        .map(|d| d.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "o")).collect())
        .unwrap_or_default();
    all.sort();
    all
}

#[test]
fn verdicts_of_any_objects() {
    // SAFETY: the call takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: bpf(2) is for root");
        return;
    }
    // SAFETY: no callback: libbpf is silent.
    unsafe { sys::libbpf_set_print(None) };
    let only = std::env::var("SKEP_OBJECTS_AS").unwrap_or_default();
    for (name, privilege) in [("full", Privilege::Full), ("bpf", Privilege::Bpf), ("none", Privilege::None)] {
        if !only.is_empty() && only != name {
            continue;
        }
        if privilege == Privilege::None && !live::lets_anybody_load() {
            eprintln!("not asked: kernel.unprivileged_bpf_disabled is not 0, so nothing is asked without capabilities");
        } else {
            compare(privilege);
        }
    }
}

/// True for programs that are not refused for their type alone.
fn may_load(privilege: Privilege, ty: Option<ProgType>) -> bool {
    use ProgType as T;
    match privilege {
        Privilege::Full => true,
        Privilege::Bpf => !matches!(
            ty,
            Some(
                T::Kprobe
                    | T::Tracepoint
                    | T::PerfEvent
                    | T::RawTracepoint
                    | T::RawTracepointWritable
                    | T::Tracing
                    | T::StructOps
            )
        ),
        Privilege::None => matches!(ty, Some(T::SocketFilter | T::CgroupSkb)),
    }
}

fn compare(privilege: Privilege) {
    let load = LoadOptions::host();
    let options = Options { btf: load.btf.clone(), privilege, ..Options::default() };
    let (mut same, mut left_out, mut wrong) = (0, Vec::new(), Vec::new());
    let mut log = vec![0u8; 1 << 20];
    for path in objects() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).expect("an object");
        let object = match Object::parse(&name, &bytes) {
            Ok(object) => object,
            Err(e) => {
                if opens(&path) {
                    wrong.push(format!("{name}: libbpf reads it: {e}"));
                } else {
                    left_out.push(name);
                }
                continue;
            }
        };
        for info in object.programs() {
            if !may_load(privilege, info.prog_type) {
                continue;
            }
            let what = format!("{name}/{}", info.name);
            let by_btf = matches!(info.prog_type, Some(ProgType::Lsm | ProgType::Ext))
                || info.prog_type == Some(ProgType::Tracing)
                    && !matches!(info.attach_type, Some(AttachType::TraceRawTp | AttachType::TraceIter));
            log[0] = 0;
            let mut ask = || kernel(&path, &info.name, &mut log);
            let theirs = match privilege {
                _ if by_btf => None,
                Privilege::Full => ask(),
                Privilege::Bpf => live::without_perfmon(ask),
                Privilege::None => live::without_capabilities(ask),
            };
            let ours = match object.program(&info.name, &load) {
                Ok(program) => Some(verify(program, &options)),
                Err(e) => {
                    if let Some(Ok(())) = theirs {
                        wrong.push(format!("{what}: accepted by the kernel, not linked: {e}"));
                    }
                    None
                }
            };
            // Other faults than the program's: libbpf may not fill the object's tables, nor load what its struct_ops need.
            let others = |e: &Errno| match e.0 {
                libc::EBADF => true,
                libc::EPERM => privilege != Privilege::Full && log[0] == 0,
                _ => false,
            };
            let theirs = theirs.filter(|t| !t.as_ref().is_err_and(others));
            match (theirs, ours) {
                (None, _) | (_, None) => left_out.push(what),
                (Some(Ok(())), Some(Ok(_))) => same += 1,
                (Some(Err(_)), Some(Err(r))) if r.outcome == Outcome::Rejected => same += 1,
                (Some(theirs), Some(ours)) => {
                    let ours = ours.map_or_else(|r| format!("{:?} {} {r}", r.outcome, r.reason), |_| "accepted".into());
                    let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
                    let tail: Vec<_> = text.lines().rev().take(4).collect();
                    wrong.push(format!(
                        "{what}: kernel {theirs:?}, skep {ours}\n    {}",
                        tail.into_iter().rev().collect::<Vec<_>>().join("\n    ")
                    ));
                }
            }
        }
    }
    println!("{privilege:?}: {same} the same, {} left out, {} differ", left_out.len(), wrong.len());
    assert!(wrong.is_empty(), "{privilege:?}:\n{}", wrong.join("\n"));
    assert!(same > 0 || privilege != Privilege::Full, "nothing was compared; left out: {left_out:?}");
}
