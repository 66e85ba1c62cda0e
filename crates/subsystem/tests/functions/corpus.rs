//! The programs that the corpus attached to functions of programs, loaded and attached by `bpf(2)`: answers are those that
//! Linux 6.12 gave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use skep_ebpf::Errno;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Btf, Composite, Kind, Member, Param};
use skep_ebpf::insn::{Insn, pseudo};
use skep_ebpf::program::{MapDef, Program};
use skep_ebpf::uapi::{MapType, prog_flags};
use skep_elf::{LoadOptions, Object};
use skep_jit::Engine;
use skep_subsystem::front::Config;
use skep_subsystem::front::offload::OffloadDevice;
use skep_verifier::Verified;

use crate::kernel::{Kernel, Ours};
use crate::make::{BTF_LOAD, MAP_CREATE, MAP_UPDATE, PROG_LOAD, RAW_OPEN};
use crate::script::Attrs;

const MAP_FREEZE: u32 = 22;
const SLOTS: u32 = 2;
/// The interface that programs bound to a device name.
const DEVICE: u32 = 7;
struct Corpus {
    dir: PathBuf,
    /// Unpacked objects, by name; those of 6.12 first.
    files: BTreeMap<String, PathBuf>,
    temp: PathBuf,
}

impl Corpus {
    fn open() -> Option<Corpus> {
        let dir = std::env::var_os("SKEP_CORPUS").map(PathBuf::from);
        let dir = dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"));
        dir.join("truth-6.12.jsonl").is_file().then_some(())?;
        let temp = std::env::temp_dir().join(format!("skep-functions-{}", std::process::id()));
        let mut files = BTreeMap::new();
        for archive in ["objects.tar.xz", "objects-6.12.tar.xz"] {
            let to = temp.join(archive);
            std::fs::create_dir_all(&to).expect("a directory");
            let unpacked = Command::new("tar").arg("-xJf").arg(dir.join(archive)).arg("-C").arg(&to).status();
            assert!(unpacked.is_ok_and(|s| s.success()), "tar cannot unpack {archive}");
            files.extend(walk(&to));
        }
        Some(Corpus { dir, files, temp })
    }

    fn object(&self, name: &str) -> Object {
        let path = self.files.get(name).unwrap_or_else(|| panic!("no object {name}"));
        Object::parse(name, &std::fs::read(path).expect("an object")).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn rows(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.join("truth-6.12.jsonl")).expect("the rows");
        let rows = text.lines().map(|l| serde_json::from_str::<Value>(l).expect("a row"));
        rows.filter(|r| r["targets"].is_array()).collect()
    }

    fn kernel_types(&self) -> Arc<Btf> {
        let out = Command::new("xz").arg("-dc").arg(self.dir.join("vmlinux-6.12.btf.xz")).output().expect("xz");
        Arc::new(Btf::parse(&out.stdout).expect("the kernel's types"))
    }
}

impl Drop for Corpus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.temp);
    }
}

fn walk(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path()) {
            match path.file_name().and_then(|n| n.to_str()) {
                _ if path.is_dir() => dirs.push(path),
                Some(name) => found.push((name.split('.').next().unwrap_or_default().to_owned(), path.clone())),
                None => {}
            }
        }
    }
    found
}

/// Types as a blob, as they are after linking.
fn blob(btf: &Btf) -> Vec<u8> {
    let mut b = Builder::new();
    for (id, ty) in btf.iter().filter(|(id, _)| *id != 0) {
        let mut name = |off: u32| b.string(btf.str_at(off).unwrap_or(""));
        let mut composite = |c: &Composite| Composite {
            size: c.size,
            members: c.members.iter().map(|m| Member { name_off: name(m.name_off), ..*m }).collect(),
        };
        let kind = match &ty.kind {
            Kind::Struct(c) => Kind::Struct(composite(c)),
            Kind::Union(c) => Kind::Union(composite(c)),
            Kind::Enum { size, signed, values } => Kind::Enum {
                size: *size,
                signed: *signed,
                values: values.iter().map(|(n, v)| (name(*n), *v)).collect(),
            },
            Kind::Enum64 { size, signed, values } => Kind::Enum64 {
                size: *size,
                signed: *signed,
                values: values.iter().map(|(n, v)| (name(*n), *v)).collect(),
            },
            Kind::FuncProto { ret, params } => Kind::FuncProto {
                ret: *ret,
                params: params.iter().map(|p| Param { name_off: name(p.name_off), ty: p.ty }).collect(),
            },
            other => other.clone(),
        };
        assert_eq!(b.add(btf.name(id), &kind), id);
    }
    b.finish()
}

/// Takes programs bound to it.
struct Device;

impl OffloadDevice for Device {
    fn prepare(&self, _: &Program) -> Result<(), Errno> {
        Ok(())
    }

    fn insn(&self, _: usize, _: Insn) -> Result<(), Errno> {
        Ok(())
    }

    fn finalize(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn translate(&self, _: &Verified) -> Result<(), Errno> {
        Ok(())
    }

    fn destroy(&self) {}
}

/// A loader over `bpf(2)`, as far as these programs need one.
struct Loader<'a> {
    kernel: &'a Ours,
    corpus: &'a Corpus,
    options: LoadOptions,
    fds: Vec<i64>,
}

impl Loader<'_> {
    fn call(&mut self, cmd: u32, mut attr: Attrs) -> Result<i64, Errno> {
        match self.kernel.bpf(cmd, &mut attr.0) {
            r if r < 0 => Err(Errno(-r as i32)),
            r => Ok(r),
        }
    }

    fn fd(&mut self, cmd: u32, attr: Attrs) -> Result<i64, Errno> {
        let fd = self.call(cmd, attr)?;
        self.fds.push(fd);
        Ok(fd)
    }

    fn map(&mut self, def: &MapDef, types: Option<i64>) -> Result<i64, Errno> {
        let inner = def.inner.as_deref().map(|inner| self.map(inner, types)).transpose()?;
        let attr = Attrs::new(72).u32(0, def.map_type as u32).u32(4, def.key_size).u32(8, def.value_size);
        // As libbpf does: room for all CPUs.
        let whole = def.map_type == MapType::PerfEventArray && def.max_entries == 0;
        let entries = if whole { SLOTS } else { def.max_entries };
        let attr = attr.u32(12, entries).u32(16, def.flags).u64(64, def.extra);
        let plain = attr.u32(20, inner.unwrap_or(0) as u32);
        // As loaders do: types, and where the map has no use for them, none.
        let typed = types
            .filter(|_| def.value_type_id != 0)
            .map(|types| plain.clone().u32(48, types as u32).u32(52, def.key_type_id).u32(56, def.value_type_id));
        let fd = match typed.map(|attr| self.fd(MAP_CREATE, attr)) {
            Some(Ok(fd)) => fd,
            _ => self.fd(MAP_CREATE, plain)?,
        };
        if let Some(data) = &def.initial {
            let (key, mut value) = ([0u32], data.clone());
            value.resize(def.value_size as usize, 0);
            self.call(MAP_UPDATE, Attrs::new(32).u32(0, fd as u32).ptr(8, &key).ptr(16, &value))?;
        }
        if def.frozen {
            self.call(MAP_FREEZE, Attrs::new(4).u32(0, fd as u32))?;
        }
        Ok(fd)
    }

    /// Has instructions name maps by descriptors.
    fn resolve(&mut self, program: &mut Program, types: Option<i64>) -> Result<(), Errno> {
        let (mut fds, defs) = (BTreeMap::new(), Arc::clone(&program.maps));
        let mut wide = false;
        for at in 0..program.insns.len() {
            let insn = program.insns[at];
            let kind = match insn.src() {
                _ if wide || !insn.is_ld_imm64() => None,
                pseudo::MAP_IDX => Some(pseudo::MAP_FD),
                pseudo::MAP_IDX_VALUE => Some(pseudo::MAP_VALUE),
                _ => None,
            };
            wide = !wide && insn.is_ld_imm64();
            let Some(kind) = kind else { continue };
            let fd = match fds.get(&insn.imm) {
                Some(fd) => *fd,
                None => self.map(&defs[insn.imm as usize], types)?,
            };
            fds.insert(insn.imm, fd);
            program.insns[at] = Insn { regs: insn.dst() | kind << 4, imm: fd as i32, ..insn };
        }
        Ok(())
    }

    /// Loads a program, for a function of another.
    fn load(&mut self, mut program: Program, target: Option<(i64, u32)>) -> Result<i64, Errno> {
        let types = match program.btf.as_deref().map(blob) {
            Some(blob) => Some(self.fd(BTF_LOAD, Attrs::new(32).ptr(0, &blob).u32(16, blob.len() as u32))?),
            None => None,
        };
        self.resolve(&mut program, types)?;
        let code: Vec<u8> = program.insns.iter().flat_map(|i| i.to_bytes()).collect();
        let license = std::ffi::CString::new(program.license.as_str()).expect("a licence");
        let funcs: Vec<[u32; 2]> = program.func_info.iter().map(|f| [f.insn, f.type_id]).collect();
        let mut log = vec![0u8; 1 << 20];
        let mut attr = Attrs::new(144)
            .u32(0, program.prog_type as u32)
            .u32(4, program.insns.len() as u32)
            .ptr(8, &code)
            .ptr(16, license.as_bytes_with_nul())
            .u32(44, program.flags)
            .u32(68, program.attach_type.map_or(0, |a| a as u32))
            .u32(108, target.map_or(program.attach_btf_id, |(_, id)| id))
            .u32(112, target.map_or(0, |(fd, _)| fd as u32));
        if program.flags & prog_flags::XDP_DEV_BOUND_ONLY != 0 {
            attr = attr.u32(64, DEVICE);
        }
        if let Some(types) = types {
            attr = attr.u32(72, types as u32).u32(76, 8).ptr(80, &funcs).u32(88, funcs.len() as u32);
        }
        let show = std::env::var_os("SKEP_LOG").is_some();
        if show {
            attr = attr.u32(24, 1).u32(28, log.len() as u32).u64(32, log.as_mut_ptr() as u64);
        }
        let loaded = self.fd(PROG_LOAD, attr);
        if show && loaded.is_err() {
            println!("{}: {}", program.name, String::from_utf8_lossy(&log).trim_end_matches('\0'));
        }
        loaded
    }

    /// Loads the last of `targets`, each for a function of the one before; its descriptor, and its types.
    fn targets(&mut self, targets: &[Value], attach_to: &str) -> Result<(i64, u32), Errno> {
        let (last, before) = targets.split_last().expect("a target");
        let text = |name: &str| last[name].as_str().unwrap_or_default();
        let mut program = self.link(text("object"), text("program"));
        let target = match before {
            [] => None,
            before => Some(self.targets(before, &program.attach_to)?),
        };
        // The test of metadata binds it to a device.
        if text("object") == "xdp_metadata" {
            program.flags |= prog_flags::XDP_DEV_BOUND_ONLY;
        }
        // The corpus attached it to a function of a kernel's module, whose types it does not have: one of the kernel with the same
        // prototype stands in.
        if text("object") == "fentry_recursive_target" && text("program") == "test1" {
            let types = self.options.btf.as_deref().expect("the kernel's types");
            let function = types.find("bpf_fentry_test1", |k| matches!(k, Kind::Func { .. }));
            program.attach_btf_id = function.expect("a function of the kernel");
        }
        let btf = program.btf.clone().expect("types");
        let fd = self.load(program, target)?;
        let function = if text("function").is_empty() { attach_to } else { text("function") };
        let id = btf.find(function, |k| matches!(k, Kind::Func { .. }));
        Ok((fd, id.unwrap_or_else(|| panic!("no function {function}"))))
    }

    fn link(&self, object: &str, program: &str) -> Program {
        let object = self.corpus.object(object);
        object.program(program, &self.options).unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// What loading and attaching answer; an error if a target of it cannot be loaded.
    fn row(&mut self, row: &Value) -> Result<(Option<Errno>, Option<Errno>), Errno> {
        let text = |name: &str| row[name].as_str().unwrap_or_default();
        let program = self.link(text("object"), text("program"));
        let targets = row["targets"].as_array().expect("targets");
        let target = self.targets(targets, &program.attach_to)?;
        Ok(match self.load(program, Some(target)) {
            Ok(fd) => (None, self.fd(RAW_OPEN, Attrs::new(16).u32(8, fd as u32)).err()),
            Err(e) => (Some(e), None),
        })
    }
}

#[test]
fn programs_of_the_corpus_are_attached_as_by_the_kernel() {
    let Some(corpus) = Corpus::open() else { return println!("skipped: no corpus (SKEP_CORPUS)") };
    let types = corpus.kernel_types();
    let options = LoadOptions { btf: Some(Arc::clone(&types)), ..LoadOptions::host() };
    let rows = corpus.rows();
    assert!(rows.len() >= 54, "{} rows", rows.len());
    for engine in [Engine::Interpreter, Engine::Jit] {
        let config =
            Config { slots: SLOTS, engine, kernel_btf: Some(Arc::clone(&types)), idle: true, ..Config::default() };
        let kernel = Ours::with(config);
        kernel.subsystem.devices().register(DEVICE, Arc::new(Device)).expect("a device");
        let before = kernel.left();
        let (mut same, mut wrong) = (0, Vec::new());
        for row in &rows {
            let mut loader = Loader { kernel: &kernel, corpus: &corpus, options: options.clone(), fds: Vec::new() };
            let answers = loader.row(row);
            loader.fds.drain(..).rev().for_each(|fd| kernel.close(fd));
            let targets = row["targets"].as_array().map_or(&[][..], Vec::as_slice);
            let parts = [Some(row), targets.last()].into_iter().flatten().flat_map(|t| [&t["object"], &t["program"]]);
            let name = parts.map(|p| p.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ");
            let number = row["attach_errno"].as_i64().filter(|e| *e != 0);
            let wanted = (row["errno"].as_str(), number.map(|e| Errno(e as i32).name()));
            let answers = answers.map(|(load, attach)| (load.map(Errno::name), attach.map(Errno::name)));
            let equal = answers == Ok(wanted);
            match equal {
                true => same += 1,
                false => wrong.push(format!("{name}: {answers:?}; the kernel {wanted:?}")),
            }
        }
        println!("{engine:?}: {same} of {} as Linux 6.12 answered", rows.len());
        assert!(wrong.is_empty(), "{engine:?}: {} differ:\n{}", wrong.len(), wrong.join("\n"));
        assert_eq!(kernel.left(), before, "nothing is left");
    }
}

/// Programs that need what only a kernel has are refused, or loaded and not run.
#[test]
fn idle_programs_are_loaded_and_do_not_run() {
    const TEST_RUN: u32 = 10;
    // skb_change_head(ctx, 0, 0)
    let text = "r2 = 0\nr3 = 0\ncall 43\nr0 = 7\nexit";
    let code: Vec<u8> = skep_ebpf::asm::assemble(text).expect("a program").iter().flat_map(|i| i.to_bytes()).collect();
    for engine in [Engine::Interpreter, Engine::Jit] {
        let load = |idle: bool| {
            let kernel = Ours::with(Config { slots: SLOTS, engine, idle, ..Config::default() });
            let mut attr = Attrs::new(144).u32(0, 3).u32(4, 5).ptr(8, &code).ptr(16, b"GPL\0");
            let fd = kernel.bpf(PROG_LOAD, &mut attr.0);
            (kernel, fd)
        };
        let enotsupp = -i64::from(Errno::ENOTSUPP.0);
        assert_eq!(load(false).1, enotsupp);
        let (kernel, fd) = load(true);
        assert!(fd >= 0, "{fd}");
        let data = [0u8; 64];
        let mut run = Attrs::new(80).u32(0, fd as u32).u32(8, 64).ptr(16, &data);
        assert_eq!(kernel.bpf(TEST_RUN, &mut run.0), enotsupp);
        kernel.close(fd);
    }
}
