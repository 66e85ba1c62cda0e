//! Why an object, or one program of it, is refused.

use skep_ebpf::btf::BtfError;

/// Why bytes are no object that skep can load, or a program of it cannot be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum ElfError {
    #[error("{object}: not an ELF file")]
    NotElf { object: String },
    #[error("{object}: big-endian object; skep loads little-endian ones (clang -target bpfel)")]
    BigEndian { object: String },
    #[error("{object}: 32-bit ELF file; BPF objects are 64-bit")]
    Class { object: String },
    #[error("{object}: object for {machine}, not for BPF (clang -target bpf)")]
    Machine { object: String, machine: String },
    #[error("{object}: ELF type {found} is not a relocatable object")]
    FileType { object: String, found: u16 },
    #[error("{object}: truncated or damaged object: {what}: {detail}")]
    Damaged { object: String, what: String, detail: String },
    #[error("{object}: no types: {why}")]
    NoTypes { object: String, why: String },
    #[error("section `{section}`: {source}")]
    Btf { section: &'static str, source: BtfError },
    #[error("section `{section}` has {size} bytes, not a whole number of {unit}")]
    SectionSize { section: String, size: u64, unit: &'static str },
    #[error("function `{symbol}` in section `{section}` at offset {offset} with {size} bytes does not fit the section")]
    FunctionBounds { section: String, symbol: String, offset: u64, size: u64 },
    #[error("map `{map}`: {problem}")]
    Map { map: String, problem: String },
    #[error("section `{section}`: relocation at offset {offset:#x} against `{symbol}`: {problem}")]
    Reloc { section: String, offset: u64, symbol: String, problem: String },
    #[error("section `{section}`: call at offset {offset:#x} does not lead to a function")]
    CallTarget { section: String, offset: u64 },
    #[error("section `{section}`: CO-RE relocation at offset {offset:#x} ({kind} of `{symbol}`): {problem}")]
    Core { section: String, offset: u64, kind: String, symbol: String, problem: String },
    #[error("program `{program}` needs the kernel's BTF for {what}; give one with --btf")]
    NoBtf { program: String, what: String },
    #[error("extern `{symbol}`: {problem}")]
    Extern { symbol: String, problem: String },
    #[error("program `{program}`: {problem}")]
    Program { program: String, problem: String },
    #[error("no program `{program}` in {object}; it has: {known}")]
    NoProgram { object: String, program: String, known: String },
    #[error("program `{program}` is not supported: {what}")]
    Unsupported { program: String, what: String },
}

impl ElfError {
    /// True if the input may be fine but asks for something that skep does not do.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, ElfError::Unsupported { .. })
    }
}
