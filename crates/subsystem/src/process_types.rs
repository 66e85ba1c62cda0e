//! The types of a process's functions: those that its file brings along, else what its debug information says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::Object as _;
use object::read::elf::ElfFile64;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::program::Program;
use skep_elf::{ElfError, LoadOptions, Object, btf_from_dwarf, read_btf};

/// Where debug information is kept apart from the files that it is of.
const DEBUG: &str = "/usr/lib/debug/.build-id";

/// Why a function has no types.
#[derive(Debug, thiserror::Error)]
pub enum TypesError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It has no types.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// It has none for this function.
    #[error("{}: no types of {function}{}", path.display(), why.as_ref().map_or(String::new(), |w| format!(": {w}")))]
    Function {
        /// The file.
        path: PathBuf,
        /// The function.
        function: String,
        /// Why, if that is known.
        why: Option<String>,
    },
}

/// The types of the functions of a file.
#[derive(Clone, Debug)]
pub struct ProcessTypes {
    path: PathBuf,
    btf: Arc<Btf>,
    left_out: Vec<(String, String)>,
}

impl ProcessTypes {
    /// Those of an executable or library: its section `.BTF`, else made from its debug information, which may also be where
    /// distributions keep it.
    pub fn of(path: &Path) -> Result<ProcessTypes, TypesError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| TypesError::File { path: path.to_owned(), source });
        let name = path.display().to_string();
        let bytes = read(path)?;
        let types = |btf: Btf, left_out| ProcessTypes { path: path.to_owned(), btf: Arc::new(btf), left_out };
        if let Ok(btf) = read_btf(&name, &bytes)
            && btf.iter().any(|(_, t)| matches!(t.kind, Kind::Func { .. }))
        {
            return Ok(types(btf, Vec::new()));
        }
        let made = match (btf_from_dwarf(&name, &bytes), debug_file(&bytes)) {
            (Err(ElfError::NoTypes { .. }), Some(apart)) => btf_from_dwarf(&name, &read(&apart)?)?,
            (made, _) => made?,
        };
        let btf = Btf::parse(&made.btf).map_err(|source| ElfError::Btf { section: ".BTF", source })?;
        Ok(types(btf, made.left_out))
    }

    /// Types that a file of BTF has.
    pub fn given(path: &Path, btf: Arc<Btf>) -> ProcessTypes {
        ProcessTypes { path: path.to_owned(), btf, left_out: Vec::new() }
    }

    /// The types.
    pub fn btf(&self) -> &Arc<Btf> {
        &self.btf
    }

    /// The file whose functions they are of.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The type of a function.
    pub fn function(&self, name: &str) -> Result<u32, TypesError> {
        // The version of a symbol is not part of the function's name.
        let name = name.split('@').next().unwrap_or(name);
        self.btf.find(name, |k| matches!(k, Kind::Func { .. })).ok_or_else(|| TypesError::Function {
            path: self.path.clone(),
            function: name.to_owned(),
            why: self.left_out.iter().find(|(n, _)| n == name).map(|(_, why)| why.clone()),
        })
    }

    /// Links a program that is to run around a function of the file. It is to be verified with
    /// [`Options::process`](skep_verifier::Options::process) and these types.
    pub fn link(&self, object: &Object, program: &str, function: &str) -> Result<Program, TypesError> {
        let id = self.function(function)?;
        let options = LoadOptions { btf: Some(Arc::clone(&self.btf)), all_types: true, ..LoadOptions::host() };
        let mut program = object.program(program, &options)?;
        program.attach_btf_id = id;
        // What it is to run around is found.
        program.absent.retain(|a| a.insn.is_some());
        Ok(program)
    }
}

/// The file that has the debug information of another one, by its build id.
fn debug_file(bytes: &[u8]) -> Option<PathBuf> {
    let file = ElfFile64::<object::LittleEndian>::parse(bytes).ok()?;
    let id = file.build_id().ok()??;
    let (first, rest) = id.split_first()?;
    let hex: String = rest.iter().map(|b| format!("{b:02x}")).collect();
    let path = Path::new(DEBUG).join(format!("{first:02x}/{hex}.debug"));
    path.is_file().then_some(path)
}
