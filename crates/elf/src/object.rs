//! An object file, taken apart and checked; programs are linked from it one by one.

use std::sync::Arc;

use skep_ebpf::btf::{Btf, Kind, Linkage};
use skep_ebpf::program::{Absent, MapDef, Program};
use skep_ebpf::uapi::{AttachType, ProgType};

use crate::container::{Container, SectionKind};
use crate::externs::{self, Extern};
use crate::functions::{self, Function, TEXT};
use crate::link::Linker;
use crate::maps::Placed;
use crate::options::LoadOptions;
use crate::sections::{BtfPrefix, DataKind, SectionDef, data_kind, section_def};
use crate::{ElfError, data, legacy, maps, struct_ops};

/// Bytes of a licence string that count.
const LICENSE_LEN: usize = 127;

/// An object file.
#[derive(Clone, Debug)]
pub struct Object {
    name: String,
    license: String,
    version: u32,
    btf: Option<Arc<Btf>>,
    maps: Arc<[MapDef]>,
    programs: Vec<ProgramInfo>,
    pub(crate) functions: Vec<Function>,
    pub(crate) externs: Vec<Extern>,
    /// Names of the sections, by number.
    pub(crate) sections: Vec<String>,
    operations: Vec<struct_ops::Operation>,
    /// Index of the map of configuration values.
    pub(crate) kconfig: Option<usize>,
}

/// A program of an object, before it is linked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// C function name.
    pub name: String,
    /// ELF section, without `?`.
    pub section: String,
    /// Program type, if the section's name tells one.
    pub prog_type: Option<ProgType>,
    /// Expected attach type; `None` where the type has none.
    pub attach_type: Option<AttachType>,
    /// What the section name says to attach to, empty if nothing.
    pub attach_to: String,
    /// Flags of `BPF_PROG_LOAD`.
    pub flags: u32,
    /// False if the section's name begins with `?`: to be loaded only when asked for.
    pub autoload: bool,
    /// Why the program cannot be loaded, if so.
    pub unsupported: Option<String>,
    function: usize,
    pub(crate) btf_prefix: Option<BtfPrefix>,
}

impl Object {
    /// Takes an object apart. `name` is its file's name or path: maps of sections are called after it, and errors name it.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Object, ElfError> {
        let container = Container::parse(name, bytes)?;
        let short = object_name(name);
        let mut btf = match container.section(".BTF") {
            Some(s) => Some(Btf::parse(s.data).map_err(|source| ElfError::Btf { section: ".BTF", source })?),
            None => None,
        };
        let mut functions = functions::discover(&container)?;
        let (externs, kconfig_size) = externs::collect(&container, btf.as_ref());
        if let Some(btf) = &mut btf {
            data::lay_out(&container, btf);
            externs::lay_out(btf, &externs, kconfig_size);
            hide(btf, &container, &functions);
            functions::collect_ext(&container, &mut functions, btf)?;
        }
        let programs = programs(&container, &functions);
        let is_program = |name: &str| programs.iter().any(|p| p.name == name);
        let placed = all_maps(&short, &container, btf.as_ref(), &is_program)?;
        functions::collect_refs(&container, &mut functions, &placed, &externs)?;
        let operations = match &btf {
            Some(btf) => struct_ops::operations(&container, btf, &placed, &functions),
            None => Vec::new(),
        };
        let mut maps: Vec<MapDef> = placed.into_iter().map(|p| p.def).collect();
        let kconfig = externs::kconfig_map(&short, kconfig_size, btf.as_ref());
        let kconfig = kconfig.map(|def| {
            maps.push(def);
            maps.len() - 1
        });
        Ok(Object {
            name: name.to_owned(),
            license: license(&container),
            version: version(&container)?,
            btf: btf.map(Arc::new),
            maps: maps.into(),
            programs,
            functions,
            externs,
            operations,
            sections: container.sections.iter().map(|s| s.name.to_owned()).collect(),
            kconfig,
        })
    }

    /// The name it was parsed with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The licence, empty if it has none.
    pub fn license(&self) -> &str {
        &self.license
    }

    /// Its programs, in the order of sections and of functions in them.
    pub fn programs(&self) -> &[ProgramInfo] {
        &self.programs
    }

    /// Its maps: those of `.maps` in order, then those of data sections, of struct_ops and of the kernel's configuration
    /// (whose values depend on the kernel, see [`Object::maps_for`]).
    pub fn maps(&self) -> &Arc<[MapDef]> {
        &self.maps
    }

    /// Its BTF, laid out: data sections have their sizes and offsets, hidden functions are static.
    pub fn btf(&self) -> Option<&Arc<Btf>> {
        self.btf.as_ref()
    }

    /// The maps with configuration values filled in. Every program linked with the same options has these maps in this
    /// order.
    pub fn maps_for(&self, options: &LoadOptions) -> Arc<[MapDef]> {
        let Some(kconfig) = self.kconfig else { return self.maps.clone() };
        let mut maps = self.maps.to_vec();
        if let Some(map) = maps.get_mut(kconfig) {
            map.initial = Some(crate::link::kconfig_data(&self.externs, map.value_size, options));
        }
        maps.into()
    }

    /// Links a program: as if no other program of the object were to be loaded.
    pub fn program(&self, name: &str, options: &LoadOptions) -> Result<Program, ElfError> {
        let info = self.programs.iter().find(|p| p.name == name).ok_or_else(|| ElfError::NoProgram {
            object: self.name.clone(),
            program: name.to_owned(),
            known: self.programs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let (prog_type, attach_type) = match (options.prog_type, info.prog_type) {
            (Some(given), _) => given,
            (None, Some(ty)) => (ty, info.attach_type),
            (None, None) => {
                let what = info.unsupported.clone().unwrap_or_default();
                return Err(ElfError::Unsupported { program: name.to_owned(), what });
            }
        };
        let (attach_type, attach_btf_id) = match prog_type {
            ProgType::StructOps => self.member_of(info, options),
            _ => (attach_type, attach_btf_id(info, options)),
        };
        let mut linked = Linker::new(self, info, options).link(info.function)?;
        if attach_btf_id == 0
            && options.btf.is_some()
            && !options.all_types
            && let Some(what) = self.attaches_to(info, prog_type)
        {
            linked.absent.push(Absent { insn: None, what });
        }
        Ok(Program {
            name: info.name.clone(),
            section: info.section.clone(),
            prog_type,
            attach_type,
            attach_to: info.attach_to.clone(),
            flags: info.flags,
            license: self.license.clone(),
            kern_version: self.version,
            insns: linked.insns,
            maps: self.maps_for(options),
            btf: self.btf.clone(),
            func_info: linked.func_info,
            line_info: linked.line_info,
            attach_btf_id,
            absent: linked.absent,
        })
    }

    /// What the program says it attaches to by the kernel's types.
    fn attaches_to(&self, info: &ProgramInfo, prog_type: ProgType) -> Option<String> {
        if prog_type == ProgType::StructOps {
            let operation = self.operations.iter().find(|o| o.function == info.function)?;
            return Some(format!("struct `{}`", operation.structure));
        }
        match info.btf_prefix {
            _ if info.attach_to.is_empty() => None,
            Some(BtfPrefix::Func(prefix)) => Some(format!("function `{prefix}{}`", info.attach_to)),
            Some(BtfPrefix::Typedef(_)) => Some(format!("tracepoint `{}`", info.attach_to)),
            Some(BtfPrefix::Program) | None => None,
        }
    }

    /// The struct and member that a struct_ops program is for. The interface has the member's number where other types
    /// have their attach type, so that is how it is carried.
    fn member_of(&self, info: &ProgramInfo, options: &LoadOptions) -> (Option<AttachType>, u32) {
        let operation = self.operations.iter().find(|o| o.function == info.function);
        let member = options.btf.as_ref().zip(operation).and_then(|(btf, o)| struct_ops::kernel_member(btf, o));
        let (id, index) = member.unwrap_or((0, 0));
        (AttachType::from_u32(index).filter(|_| index != 0), id)
    }
}

/// The object's own name: the file's without directories and from the first dot on, cut as the kernel cuts names.
fn object_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split('.').next().unwrap_or(file);
    stem.chars().take(skep_ebpf::uapi::OBJ_NAME_LEN - 1).collect()
}

fn license(container: &Container<'_>) -> String {
    let data = container.section("license").map_or(&[][..], |s| s.data);
    let text = data.split(|&b| b == 0).next().unwrap_or(&[]);
    String::from_utf8_lossy(text.get(..LICENSE_LEN).unwrap_or(text)).into_owned()
}

fn version(container: &Container<'_>) -> Result<u32, ElfError> {
    let Some(s) = container.section("version") else { return Ok(0) };
    let bytes = s.data.try_into().map_err(|_| ElfError::SectionSize {
        section: s.name.to_owned(),
        size: s.size,
        unit: "version numbers (one, of 4 bytes)",
    })?;
    Ok(u32::from_le_bytes(bytes))
}

fn all_maps(
    object: &str,
    container: &Container<'_>,
    btf: Option<&Btf>,
    is_program: &dyn Fn(&str) -> bool,
) -> Result<Vec<Placed>, ElfError> {
    let mut placed = Vec::new();
    for (i, s) in container.sections.iter().enumerate() {
        match (data_kind(s.name), btf) {
            _ if s.kind != SectionKind::Contents || s.executable || s.data.is_empty() => {}
            (Some(DataKind::Maps), Some(btf)) => placed.extend(maps::user_maps(container, i, btf, is_program)?),
            (Some(DataKind::Maps), None) => {
                let problem = "the object has no BTF to say what maps it defines".to_owned();
                return Err(ElfError::Map { map: s.name.to_owned(), problem });
            }
            (Some(DataKind::LegacyMaps), _) => placed.extend(legacy::legacy_maps(container, i)?),
            _ => {}
        }
    }
    placed.extend(data::data_maps(object, container, btf)?);
    if let Some(btf) = btf {
        placed.extend(struct_ops::maps(container, btf)?);
    }
    Ok(placed)
}

/// A hidden function is judged with its callers, as a static one is.
fn hide(btf: &mut Btf, container: &Container<'_>, functions: &[Function]) {
    for f in functions.iter().filter(|f| f.hidden && is_text(container, f)) {
        if let Some(id) = btf.find(&f.name, |k| matches!(k, Kind::Func { .. })) {
            btf.set_linkage(id, Linkage::Static);
        }
    }
}

fn is_text(container: &Container<'_>, f: &Function) -> bool {
    container.sections.get(f.section).is_some_and(|s| s.name == TEXT)
}

/// Functions outside of `.text` are programs; so is the one in it, if the object has no other.
fn programs(container: &Container<'_>, functions: &[Function]) -> Vec<ProgramInfo> {
    let mut out = Vec::new();
    for (function, f) in functions.iter().enumerate() {
        if !f.global || (is_text(container, f) && functions.len() > 1) {
            continue;
        }
        let full = container.sections.get(f.section).map_or("", |s| s.name);
        let (section, autoload) = match full.strip_prefix('?') {
            Some(rest) => (rest, false),
            None => (full, true),
        };
        let found: Option<(&SectionDef, &str)> = section_def(section);
        out.push(ProgramInfo {
            name: f.name.clone(),
            section: section.to_owned(),
            prog_type: found.map(|(d, _)| d.prog_type),
            attach_type: found.and_then(|(d, _)| d.attach_type),
            attach_to: found.map_or("", |(_, to)| to).to_owned(),
            flags: found.map_or(0, |(d, _)| d.flags),
            autoload,
            unsupported: found.is_none().then(|| format!("section name `{section}` tells no program type")),
            function,
            btf_prefix: found.and_then(|(d, _)| d.btf_prefix),
        });
    }
    out
}

/// The kernel's BTF id of what the program attaches to, 0 if that is not said or not known.
fn attach_btf_id(info: &ProgramInfo, options: &LoadOptions) -> u32 {
    let (Some(btf), false) = (&options.btf, info.attach_to.is_empty()) else { return 0 };
    // `module:function` means that module's.
    let find = |prefix: &str, pred: fn(&Kind) -> bool| match info.attach_to.split_once(':') {
        None => btf.find(&format!("{prefix}{}", info.attach_to), pred),
        Some(("vmlinux", name)) => btf.without_modules().find(&format!("{prefix}{name}"), pred),
        Some((module, name)) => btf.find_in_module(module, &format!("{prefix}{name}"), pred),
    };
    let id = match info.btf_prefix {
        Some(BtfPrefix::Func(prefix)) => find(prefix, |k| matches!(k, Kind::Func { .. })),
        Some(BtfPrefix::Typedef(prefix)) => find(prefix, |k| matches!(k, Kind::Typedef { .. })),
        Some(BtfPrefix::Program) | None => None,
    };
    id.unwrap_or(0)
}
