//! Linked instructions are those that libbpf would load, for every program of the corpus and of the repository.
//!
//! As root only: libbpf creates the maps. Known differences stand in `ledger`, each with its reason; a difference that is
//! not listed fails, and so does a listed one that is gone.

mod corpus;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libbpf_sys as sys;
use skep_ebpf::Insn;
use skep_ebpf::insn::pseudo;
use skep_ebpf::program::{MapDef, Program};
use skep_elf::{ElfError, LoadOptions, Object};

/// An instruction with its map named instead of numbered.
type Normal = (Insn, Option<String>);

/// All that a loaded program consists of.
#[derive(Debug, PartialEq, Eq)]
struct Normalised {
    section: String,
    prog_type: u32,
    attach_type: u32,
    code: Vec<Normal>,
    /// Instruction and type.
    funcs: Vec<(u32, u32)>,
    /// Instruction, line, column.
    lines: Vec<(u32, u32, u32)>,
}

/// An object of libbpf, closed when dropped.
struct Theirs(*mut sys::bpf_object);

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a successful open and is closed once.
        unsafe { sys::bpf_object__close(self.0) }
    }
}

fn text(s: *const std::ffi::c_char) -> String {
    // SAFETY: libbpf gives names as C strings that live as long as the object, which the callers keep open.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}

impl Theirs {
    fn open(path: &Path) -> Option<Theirs> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
        // SAFETY: the path is a C string; a null result is checked.
        let object = unsafe { sys::bpf_object__open_file(path.as_ptr(), std::ptr::null()) };
        (!object.is_null()).then_some(Theirs(object))
    }

    /// Opens the object with only `wanted` programs to be loaded (all, if none is named) and prepares it.
    fn prepare(path: &Path, wanted: Option<&str>) -> Option<Theirs> {
        let object = Theirs::open(path)?;
        for p in object.programs() {
            // SAFETY: `p` belongs to the open object.
            unsafe {
                let load = wanted.is_none_or(|w| program_name(p) == w);
                sys::bpf_program__set_autoload(p, load);
            }
        }
        for m in object.maps() {
            // SAFETY: `m` belongs to the open object.
            unsafe {
                sys::bpf_map__set_pin_path(m, std::ptr::null());
                // Instructions do not depend on what the maps are: those that this kernel would not make become
                // something that it does.
                match sys::bpf_map__type(m) {
                    sys::BPF_MAP_TYPE_CGROUP_STORAGE
                    | sys::BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE
                    | sys::BPF_MAP_TYPE_SK_STORAGE
                    | sys::BPF_MAP_TYPE_INODE_STORAGE
                    | sys::BPF_MAP_TYPE_TASK_STORAGE
                    | sys::BPF_MAP_TYPE_CGRP_STORAGE
                    | sys::BPF_MAP_TYPE_SOCKMAP
                    | sys::BPF_MAP_TYPE_SOCKHASH => {
                        sys::bpf_map__set_type(m, sys::BPF_MAP_TYPE_HASH);
                        sys::bpf_map__set_map_flags(m, 0);
                        sys::bpf_map__set_max_entries(m, 1);
                    }
                    _ if sys::bpf_map__max_entries(m) == 0 => {
                        sys::bpf_map__set_max_entries(m, 1);
                    }
                    _ => {}
                }
                if sys::bpf_map__type(m) == sys::BPF_MAP_TYPE_HASH {
                    if sys::bpf_map__key_size(m) == 0 {
                        sys::bpf_map__set_key_size(m, 8);
                    }
                    if sys::bpf_map__value_size(m) == 0 {
                        sys::bpf_map__set_value_size(m, 8);
                    }
                }
            }
        }
        // SAFETY: the object is open and was not prepared before.
        (unsafe { sys::bpf_object__prepare(object.0) } == 0).then_some(object)
    }

    fn programs(&self) -> Vec<*mut sys::bpf_program> {
        // SAFETY: iteration over an open object; the last call gives null.
        let next = |p: &*mut sys::bpf_program| Some(unsafe { sys::bpf_object__next_program(self.0, *p) });
        std::iter::successors(next(&std::ptr::null_mut()), next).take_while(|p| !p.is_null()).collect()
    }

    fn maps(&self) -> Vec<*mut sys::bpf_map> {
        // SAFETY: as for programs.
        let next = |m: &*mut sys::bpf_map| Some(unsafe { sys::bpf_object__next_map(self.0, *m) });
        std::iter::successors(next(&std::ptr::null_mut()), next).take_while(|m| !m.is_null()).collect()
    }

    /// The programs that were prepared, by name.
    fn normalised(&self) -> BTreeMap<String, Normalised> {
        // SAFETY: maps belong to the open object.
        let fd = |m: *mut sys::bpf_map| unsafe { (sys::bpf_map__fd(m), text(sys::bpf_map__name(m))) };
        let fds: BTreeMap<i32, String> = self.maps().into_iter().map(fd).collect();
        // SAFETY: programs belong to the open object.
        let loaded = self.programs().into_iter().filter(|&p| unsafe { sys::bpf_program__autoload(p) });
        loaded.map(|p| (program_name(p), normalise(p, &fds))).collect()
    }

    /// The maps as they are to be created, by name.
    fn map_defs(&self) -> BTreeMap<String, [u64; 8]> {
        // SAFETY: maps belong to the open object.
        let def = |m: *mut sys::bpf_map| unsafe {
            let numbers = [
                sys::bpf_map__type(m).into(),
                sys::bpf_map__key_size(m).into(),
                sys::bpf_map__value_size(m).into(),
                sys::bpf_map__max_entries(m).into(),
                sys::bpf_map__map_flags(m).into(),
                sys::bpf_map__map_extra(m),
                sys::bpf_map__btf_key_type_id(m).into(),
                sys::bpf_map__btf_value_type_id(m).into(),
            ];
            (text(sys::bpf_map__name(m)), numbers)
        };
        self.maps().into_iter().map(def).collect()
    }
}

fn program_name(p: *mut sys::bpf_program) -> String {
    // SAFETY: callers pass programs of an open object.
    text(unsafe { sys::bpf_program__name(p) })
}

/// A program of an open object, with map fds named.
fn normalise(p: *mut sys::bpf_program, fds: &BTreeMap<i32, String>) -> Normalised {
    fn list<'a, T>(first: *const T, count: u32) -> &'a [T] {
        // SAFETY: libbpf gives the number of elements with each array; an empty one may be null.
        if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(first, count as usize) } }
    }
    // SAFETY: `p` belongs to an open object, whose arrays live as long as it.
    unsafe {
        let code = list(sys::bpf_program__insns(p).cast::<[u8; 8]>(), sys::bpf_program__insn_cnt(p) as u32);
        let code =
            code.iter().map(|b| Insn::from_bytes(*b)).map(|i| match (i.is_ld_imm64(), i.src(), fds.get(&i.imm)) {
                (true, pseudo::MAP_FD, Some(map)) => named(i, pseudo::MAP_IDX, map),
                (true, pseudo::MAP_VALUE, Some(map)) => named(i, pseudo::MAP_IDX_VALUE, map),
                // Also an fd of no map of the object, written into the program by hand.
                _ => (i, None),
            });
        let funcs = list(sys::bpf_program__func_info(p), sys::bpf_program__func_info_cnt(p));
        let lines = list(sys::bpf_program__line_info(p), sys::bpf_program__line_info_cnt(p));
        Normalised {
            section: text(sys::bpf_program__section_name(p)),
            prog_type: sys::bpf_program__type(p),
            attach_type: sys::bpf_program__expected_attach_type(p),
            code: code.collect(),
            funcs: funcs.iter().map(|r| (r.insn_off, r.type_id)).collect(),
            lines: lines.iter().map(|r| (r.insn_off, r.line_col >> 10, r.line_col & 0x3ff)).collect(),
        }
    }
}

fn named(i: Insn, src: u8, name: &str) -> Normal {
    (Insn::new(i.code, i.dst(), src, i.off, 0), Some(name.to_owned()))
}

fn ours(p: &Program) -> Normalised {
    let code = p.insns.iter().map(|i| match (i.is_ld_imm64(), i.src()) {
        (true, pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE) => named(*i, i.src(), &p.maps[i.imm as usize].name),
        _ => (*i, None),
    });
    Normalised {
        section: p.section.clone(),
        prog_type: p.prog_type as u32,
        attach_type: p.attach_type.map_or(0, |a| a as u32),
        code: code.collect(),
        funcs: p.func_info.iter().map(|r| (r.insn, r.type_id)).collect(),
        lines: p.line_info.iter().map(|r| (r.insn, r.line, r.column)).collect(),
    }
}

fn our_map(m: &MapDef) -> [u64; 8] {
    [
        (m.map_type as u32).into(),
        m.key_size.into(),
        m.value_size.into(),
        m.max_entries.into(),
        m.flags.into(),
        m.extra,
        m.key_type_id.into(),
        m.value_type_id.into(),
    ]
}

/// What differs, in one line.
fn difference(ours: &Normalised, theirs: &Normalised) -> Option<String> {
    let (a, b) = (&ours.code, &theirs.code);
    if a.len() != b.len() {
        return Some(format!("{} instructions instead of {}", a.len(), b.len()));
    }
    if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
        return Some(format!("instruction {at}: {:?} instead of {:?}", a[at], b[at]));
    }
    if (ours.prog_type, ours.attach_type, &ours.section) != (theirs.prog_type, theirs.attach_type, &theirs.section) {
        let what = |n: &Normalised| format!("{} {} `{}`", n.prog_type, n.attach_type, n.section);
        return Some(format!("type, attach type and section {} instead of {}", what(ours), what(theirs)));
    }
    if ours.funcs != theirs.funcs {
        return Some(format!("functions {:?} instead of {:?}", ours.funcs, theirs.funcs));
    }
    (ours.lines != theirs.lines).then(|| format!("{} lines instead of {}", ours.lines.len(), theirs.lines.len()))
}

fn ledger() -> BTreeMap<String, String> {
    let text = include_str!("ledger");
    let lines = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.filter_map(|l| l.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[test]
fn links_as_libbpf() {
    if std::fs::metadata("/proc/self").expect("procfs").uid() != 0 {
        eprintln!("skipped: libbpf creates maps, which needs root");
        return;
    }
    let corpus = corpus::Corpus::open("libbpf");
    let theirs = corpus.as_ref().map_or_else(Vec::new, |c| c.objects());
    // SAFETY: no printer is a valid printer; libbpf falls silent.
    unsafe { sys::libbpf_set_print(None) };
    let options = LoadOptions::host();
    let only = std::env::var("SKEP_OBJECT").ok();
    let mut known = ledger();
    let (mut same, mut refused, mut both, mut maps) = (0, 0, 0, 0);
    let mut wrong = BTreeSet::new();
    let mut differ = |key: String, what: String, wrong: &mut BTreeSet<String>| {
        if known.remove(&key).is_none() {
            wrong.insert(format!("{key}: {what}"));
        }
    };
    for path in corpus::own_objects().into_iter().chain(theirs) {
        let stem = path.file_stem().expect("file name").to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|o| *o != stem) {
            continue;
        }
        let object = match Object::parse(&path.to_string_lossy(), &std::fs::read(&path).expect("object")) {
            Ok(o) => o,
            Err(e) => {
                differ(stem, format!("does not parse: {e}"), &mut wrong);
                continue;
            }
        };
        for (name, def) in Theirs::open(&path).map(|t| t.map_defs()).unwrap_or_default() {
            match object.maps().iter().find(|m| m.name == name) {
                Some(m) if our_map(m) == def => maps += 1,
                Some(m) => differ(format!("{stem}/{name}"), format!("{:?} instead of {def:?}", our_map(m)), &mut wrong),
                None => differ(format!("{stem}/{name}"), "no such map".into(), &mut wrong),
            }
        }
        let mut theirs = Theirs::prepare(&path, None).map(|t| t.normalised()).unwrap_or_default();
        let whole = !theirs.is_empty();
        for p in object.programs() {
            if !whole && let Some(t) = Theirs::prepare(&path, Some(&p.name)) {
                theirs.extend(t.normalised());
            }
            let given = match p.prog_type {
                Some(_) => options.clone(),
                None => {
                    let ty = Some((skep_ebpf::uapi::ProgType::Unspec, None));
                    LoadOptions { prog_type: ty, ..options.clone() }
                }
            };
            let key = format!("{stem}/{}", p.name);
            let result: Result<Program, ElfError> = object.program(&p.name, &given);
            match (result, theirs.get(&p.name)) {
                (Ok(p), Some(t)) => match difference(&ours(&p), t) {
                    None => same += 1,
                    Some(d) => differ(key, d, &mut wrong),
                },
                (Err(e), Some(_)) => differ(key, format!("refused: {e}"), &mut wrong),
                // libbpf refuses whole objects, and maps that this machine cannot make.
                (Ok(_), None) => {
                    refused += 1;
                    if std::env::var_os("SKEP_VERBOSE").is_some() {
                        eprintln!("libbpf refuses {key}");
                    }
                }
                (Err(_), None) => both += 1,
            }
        }
    }
    eprintln!("{same} programs and {maps} maps alike, {refused} programs refused by libbpf only, {both} by both");
    for w in &wrong {
        eprintln!("{w}");
    }
    assert!(wrong.is_empty(), "{} programs differ", wrong.len());
    if only.is_none() && corpus.is_some() {
        assert!(known.is_empty(), "in the ledger but gone: {known:?}");
    }
}
