//! Programs and maps as they leave the loader and enter the verifier.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::insn::Insn;
use crate::uapi::{AttachType, MapType, ProgType};

/// What a map is to be created as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapDef {
    /// Name in the object file; also the kernel's once cut to 15 bytes.
    pub name: String,
    /// Map type.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value (for per-CPU maps: of one CPU's).
    pub value_size: u32,
    /// Entries; for a ring buffer the bytes of data.
    pub max_entries: u32,
    /// Flags of `BPF_MAP_CREATE` ([`crate::uapi::map_flags`]).
    pub flags: u32,
    /// `map_extra` of `BPF_MAP_CREATE`.
    pub extra: u64,
    /// BTF type of the key in the object's BTF, 0 if unknown.
    pub key_type_id: u32,
    /// BTF type of the value in the object's BTF, 0 if unknown.
    pub value_type_id: u32,
    /// Contents of the first value of a map made from a data section.
    pub initial: Option<Vec<u8>>,
    /// True for `.rodata` and `.kconfig`: programs cannot write it, and it is frozen before the first load, so that the
    /// verifier may rely on `initial`.
    pub frozen: bool,
    /// Map-in-map: what the inner maps look like.
    pub inner: Option<Arc<MapDef>>,
    /// Initial elements given by `.values`: index and what stands there.
    pub values: Vec<(u32, InitialValue)>,
    /// `pinning` attribute: 0 none, 1 by name.
    pub pinning: u32,
}

impl MapDef {
    /// A map definition with these sizes and everything else unset.
    pub fn new(name: &str, map_type: MapType, key_size: u32, value_size: u32, max_entries: u32) -> MapDef {
        MapDef {
            name: name.into(),
            map_type,
            key_size,
            value_size,
            max_entries,
            flags: 0,
            extra: 0,
            key_type_id: 0,
            value_type_id: 0,
            initial: None,
            frozen: false,
            inner: None,
            values: Vec::new(),
            pinning: 0,
        }
    }
}

/// An initial element of a prog array or a map of maps, by name of the object's program or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitialValue {
    /// A program of the object, by its C function name.
    Program(String),
    /// A map of the object, by its name.
    Map(String),
}

/// The BTF type of a function and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuncInfo {
    /// Index of the function's first instruction.
    pub insn: u32,
    /// BTF id of its `FUNC`.
    pub type_id: u32,
}

/// The source line that instructions from `insn` on belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineInfo {
    /// Index of the first instruction.
    pub insn: u32,
    /// Source file.
    pub file: Arc<str>,
    /// Text of the line, indented as in the file; empty where the object has none.
    pub text: Arc<str>,
    /// Line number, from 1.
    pub line: u32,
    /// Column, from 1; 0 if unknown.
    pub column: u32,
}

/// A linked program: main function first, then its subprograms in order of first use.
///
/// `LD_IMM64` names maps by their index in [`Program::maps`] (`pseudo::MAP_IDX`, `pseudo::MAP_IDX_VALUE`).
#[derive(Clone, Debug)]
pub struct Program {
    /// C function name.
    pub name: String,
    /// ELF section it stands in; empty when it did not come from an object.
    pub section: String,
    /// Program type.
    pub prog_type: ProgType,
    /// Expected attach type; `None` where the type has none.
    pub attach_type: Option<AttachType>,
    /// What the section name says to attach to (`kprobe/SYM` gives `SYM`), empty if nothing.
    pub attach_to: String,
    /// Flags of `BPF_PROG_LOAD` ([`crate::uapi::prog_flags`]).
    pub flags: u32,
    /// Licence string, at most 127 bytes.
    pub license: String,
    /// `kern_version` of the load; 0 if the object has none.
    pub kern_version: u32,
    /// The instructions.
    pub insns: Vec<Insn>,
    /// The maps that instructions name by index.
    pub maps: Arc<[MapDef]>,
    /// The object's BTF.
    pub btf: Option<Arc<crate::btf::Btf>>,
    /// Functions, sorted by instruction.
    pub func_info: Vec<FuncInfo>,
    /// Lines, sorted by instruction.
    pub line_info: Vec<LineInfo>,
    /// BTF type in the kernel that tracing programs attach to, 0 if none.
    pub attach_btf_id: u32,
    /// What the program wants of the kernel and none of the types it was linked against have, though the kernel may.
    pub absent: Vec<Absent>,
}

/// Something that a module of the kernel may have: none of the types at hand do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// The instruction that wants it; `None` for what the program attaches to.
    pub insn: Option<u32>,
    /// What it is: ``function `x` ``.
    pub what: String,
}

impl Program {
    /// A bare program with no maps and no BTF.
    pub fn new(name: &str, prog_type: ProgType, license: &str, insns: Vec<Insn>) -> Program {
        Program {
            name: name.into(),
            section: String::new(),
            prog_type,
            attach_type: None,
            attach_to: String::new(),
            flags: 0,
            license: license.into(),
            kern_version: 0,
            insns,
            maps: Arc::from([]),
            btf: None,
            func_info: Vec::new(),
            line_info: Vec::new(),
            attach_btf_id: 0,
            absent: Vec::new(),
        }
    }

    /// True if the licence lets the program use helpers that are for GPL programs only.
    pub fn gpl_compatible(&self) -> bool {
        matches!(
            self.license.as_str(),
            "GPL" | "GPL v2" | "GPL and additional rights" | "Dual BSD/GPL" | "Dual MIT/GPL" | "Dual MPL/GPL"
        )
    }

    /// The line that an instruction belongs to.
    pub fn line_of(&self, insn: usize) -> Option<&LineInfo> {
        let i = self.line_info.partition_point(|l| l.insn as usize <= insn);
        self.line_info.get(i.checked_sub(1)?)
    }
}
