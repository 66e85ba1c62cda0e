//! The workloads of `shared/bench`: the kernel's checksums.
//!
//! `SKEP_BENCH` names the folder of their sources (default `../shared/bench` beside the workspace).

#[path = "support/kernel.rs"]
mod kernel;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use skep_ebpf::uapi::ProgType;
use skep_elf::{LoadOptions, Object};
use skep_jit::Engine;
use support::{Session, skb};

const PACKET: [u8; 64] = [0; 64];

#[test]
fn checksums_are_the_kernels() {
    let sources = std::env::var_os("SKEP_BENCH").map(PathBuf::from);
    let sources = sources.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/bench"));
    if !sources.join("build").is_file() {
        return println!("skipped: no workloads (SKEP_BENCH)");
    }
    let objects = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    if !Command::new(sources.join("build")).arg(&objects).status().is_ok_and(|s| s.success()) {
        return println!("skipped: the workloads cannot be built (clang-19?)");
    }
    let with_kernel = kernel::available();
    let mut paths: Vec<_> = std::fs::read_dir(&objects).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let object = Object::parse(&name, &std::fs::read(&path).unwrap()).unwrap();
        let engines = [Engine::Interpreter, Engine::Jit];
        let mut sessions = engines.map(|engine| (engine, Session::new(object.maps()).unwrap()));
        let theirs: Vec<_> = object.maps().iter().map_while(|m| kernel::Map::create(m).ok()).collect();
        for program in ["setup", "work"] {
            let program = object.program(program, &LoadOptions::default()).unwrap();
            let insns = program.insns.clone();
            let verified = skep_verifier::verify(program, &skep_verifier::Options::default());
            let verified = verified.unwrap_or_else(|e| panic!("{name}: {e}"));
            let [ours, native] = sessions.each_mut().map(|(engine, session)| {
                let options = skep_jit::Options { engine: *engine, ..skep_jit::Options::default() };
                let prog = session.add(&skep_jit::compile(&verified, &options).unwrap());
                session.run(prog, &mut skb(&PACKET, 0)).retval as u32
            });
            assert_eq!(ours, native, "{name}");
            if with_kernel {
                let loaded = kernel::Program::load_linked(ProgType::SchedCls, &insns, &theirs).unwrap();
                assert_eq!(ours, loaded.run_packet(&PACKET).unwrap(), "{name}");
            }
        }
    }
}
