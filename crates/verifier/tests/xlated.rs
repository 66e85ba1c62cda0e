//! Rewritten programs against what the live kernel made of the same programs.
//!
//! Random programs, the cases of `cases/` that it accepts would do as well; `SKEP_XLATED` is the number of random ones
//! (default 300), `SKEP_SEED` the first. With `SKEP_OBJECTS` (a folder of objects) each program of these is compared, too.
//! `SKEP_XLATED_SHOW` prints both where they differ. See [`align`] for what may. As root only.

#[path = "xlated/align.rs"]
mod align;
#[path = "differential/generator/mod.rs"]
mod generator;
mod kernel;
mod opened;
mod typed;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libbpf_sys as sys;
use skep_ebpf::disasm::Listing;
use skep_ebpf::insn::Insn;
use skep_ebpf::program::MapDef;
use skep_elf::{LoadOptions, Object};
use skep_verifier::{KernelProfile, Options, Verified, verify};

use align::{Ledger, align};
use opened::Opened;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

fn add(total: &mut Ledger, one: Ledger) {
    for (choice, (times, more)) in one {
        let entry = total.entry(choice).or_default();
        *entry = (entry.0 + times, entry.1 + more);
    }
}

fn both(v: &Verified, theirs: &[Insn]) -> String {
    let text = |insns| Listing { insns, names: &() }.to_string();
    format!("here:\n{}there:\n{}", text(v.rewritten().insns()), text(theirs))
}

#[test]
fn random_programs_are_rewritten_as_the_kernel_does() {
    if !kernel::available() {
        return;
    }
    let (count, first) = (env("SKEP_XLATED", 300), env("SKEP_SEED", 1));
    let maps: Arc<[MapDef]> = generator::maps().into();
    let fds = kernel::maps(&maps).expect("the kernel makes the maps");
    let profile = KernelProfile { max_processed: 8000, cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
    let options = Options { profile, ..Options::default() };
    let (mut same, mut gone, mut ledger) = (0u64, 0usize, Ledger::new());
    let mut wrong = Vec::new();
    let mut seed = first;
    while same + (wrong.len() as u64) < count {
        let mut rng = generator::Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let made = generator::program(&mut rng, &maps, seed.is_multiple_of(2));
        seed += 1;
        let Ok(v) = verify(made.program.clone(), &options) else { continue };
        let btf = made.btf.as_ref().map(|raw| kernel::btf(raw).expect("the kernel takes the BTF"));
        let Some((Ok(fd), _)) = kernel::load_fd(&made.program, &fds, btf.as_ref(), 0) else { continue };
        let theirs = kernel::xlated(fd.as_fd()).expect("the kernel shows the program");
        gone += v.program().insns.len() - v.rewritten().insns().len();
        match align(&v, &theirs) {
            Ok(one) => {
                same += 1;
                add(&mut ledger, one);
            }
            Err(why) => {
                let listing = if count == 1 { both(&v, &theirs) } else { String::new() };
                wrong.push(format!("seed {}: {why}\n{listing}", seed - 1));
            }
        }
    }
    println!("{same} the same, {} differ; {gone} instructions were gone; the kernel's own: {ledger:?}", wrong.len());
    let all = wrong.len();
    wrong.truncate(8);
    assert!(wrong.is_empty(), "{all} differ\n{}", wrong.join("\n"));
}

/// The instructions that the kernel has of one program of an object; `None` if it was not asked, or does not want it.
fn of_object(path: &Path, wanted: &str) -> Option<Vec<Insn>> {
    let opened = Opened::for_program(path, wanted)?;
    // SAFETY: the object is open; its program's descriptor is, too, once it is loaded.
    unsafe {
        match sys::bpf_object__load(opened.object) {
            0 => kernel::xlated(BorrowedFd::borrow_raw(sys::bpf_program__fd(opened.program))),
            _ => None,
        }
    }
}

#[test]
fn objects_are_rewritten_as_the_kernel_does() {
    if !kernel::available() {
        return;
    }
    // SAFETY: no callback: libbpf is silent.
    unsafe { sys::libbpf_set_print(None) };
    let dir = std::env::var_os("SKEP_OBJECTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf"), PathBuf::from);
    let mut objects: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("a folder of objects")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "o"))
        .collect();
    objects.sort();
    let show = std::env::var_os("SKEP_XLATED_SHOW").is_some();
    let load = LoadOptions::host();
    let profile = KernelProfile { cpus: kernel::cpus(), ..KernelProfile::LINUX_6_18 };
    let options = Options { btf: load.btf.clone(), profile, ..Options::default() };
    let (mut same, mut left_out, mut ledger, mut wrong) = (0, 0, Ledger::new(), Vec::new());
    for path in objects {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(object) = Object::parse(&name, &std::fs::read(&path).expect("an object")) else { continue };
        for info in object.programs() {
            let ours = object.program(&info.name, &load).ok().and_then(|p| verify(p, &options).ok());
            let Some((v, theirs)) = ours.and_then(|v| Some((v, of_object(&path, &info.name)?))) else {
                left_out += 1;
                continue;
            };
            match align(&v, &theirs) {
                Ok(one) => {
                    same += 1;
                    add(&mut ledger, one);
                }
                Err(why) => {
                    let listing = if show { both(&v, &theirs) } else { String::new() };
                    wrong.push(format!("{name}/{}: {why}\n{listing}", info.name));
                }
            }
        }
    }
    println!("{same} the same, {left_out} left out, {} differ; the kernel's own: {ledger:?}", wrong.len());
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > 0, "nothing was compared");
}
