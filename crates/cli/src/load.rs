//! Objects and BTF from files.

use std::path::Path;
use std::sync::OnceLock;

use skep::ebpf::btf::{Btf, Kind};
use skep::ebpf::program::Program;
use skep::ebpf::uapi::prog_flags;
use skep::elf::{ElfError, Ksyms, LoadOptions, Object};

use crate::Failure;
use crate::args::Load;

/// An object file that has been read.
pub struct Input {
    /// Its path, as given.
    pub path: String,
    /// Its contents.
    pub object: Object,
}

/// Reads an object file.
pub fn object(path: &Path) -> Result<Input, Failure> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| Failure::Input(format!("{name}: {e}")))?;
    let object = Object::parse(&name, &bytes).map_err(Failure::input)?;
    Ok(Input { path: name, object })
}

/// Links programs against what this machine's kernel offers, which is read when the first program is linked.
pub struct Linker {
    btf: Vec<String>,
    options: OnceLock<Result<LoadOptions, String>>,
}

impl Linker {
    /// A linker as the command line asks for.
    pub fn new(load: &Load) -> Linker {
        Linker { btf: load.btf.clone(), options: OnceLock::new() }
    }

    /// What to link against. A BTF file that was asked for must be readable; what the kernel does not show is left out.
    pub fn options(&self) -> Result<&LoadOptions, Failure> {
        self.options.get_or_init(|| self.read()).as_ref().map_err(|e| Failure::Input(e.clone()))
    }

    fn read(&self) -> Result<LoadOptions, String> {
        let mut options = LoadOptions::host();
        if !self.btf.is_empty() {
            // Another kernel's, perhaps: its symbols cannot be asked.
            let (btf, all_types) = crate::types::read(&self.btf)?;
            (options.btf, options.all_types, options.ksyms) = (Some(btf), all_types, Ksyms::assumed());
        }
        Ok(options)
    }

    /// Links one program of an object.
    pub fn link(&self, object: &Object, name: &str) -> Result<Result<Program, ElfError>, Failure> {
        Ok(object.program(name, self.options()?))
    }
}

/// The load flags that a decl tag `comment:test_prog_flags=…` on the program's function asks for.
pub fn tagged_flags(btf: &Btf, program: &str) -> u32 {
    let Some(func) = btf.find(program, |k| matches!(k, Kind::Func { .. })) else { return 0 };
    let mut flags = 0;
    for (tag, _) in btf.decl_tags(func) {
        let Some(value) = tag.strip_prefix("comment:test_prog_flags=") else { continue };
        match value.strip_prefix('!') {
            Some(value) => flags &= !flag(value),
            None => flags |= flag(value),
        }
    }
    flags
}

fn flag(text: &str) -> u32 {
    match text {
        "BPF_F_STRICT_ALIGNMENT" => prog_flags::STRICT_ALIGNMENT,
        "BPF_F_ANY_ALIGNMENT" => prog_flags::ANY_ALIGNMENT,
        "BPF_F_TEST_RND_HI32" => prog_flags::TEST_RND_HI32,
        "BPF_F_TEST_STATE_FREQ" => prog_flags::TEST_STATE_FREQ,
        "BPF_F_SLEEPABLE" => prog_flags::SLEEPABLE,
        "BPF_F_XDP_HAS_FRAGS" => prog_flags::XDP_HAS_FRAGS,
        "BPF_F_TEST_REG_INVARIANTS" => prog_flags::TEST_REG_INVARIANTS,
        number => match number.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).unwrap_or(0),
            None => number.parse().unwrap_or(0),
        },
    }
}
