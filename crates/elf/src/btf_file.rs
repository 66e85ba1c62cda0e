//! BTF from a file that is either the blob itself or an ELF file of any machine with a `.BTF` section.

use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};
use skep_ebpf::btf::Btf;

use crate::ElfError;

/// Reads the types of a kernel (`/sys/kernel/btf/vmlinux`, or its `vmlinux`) or of a program. `name` is what errors call
/// the file.
pub fn read_btf(name: &str, bytes: &[u8]) -> Result<Btf, ElfError> {
    Btf::parse(section_of(name, bytes)?).map_err(|source| ElfError::Btf { section: ".BTF", source })
}

/// The blob: the file itself, or its section.
pub(crate) fn section_of<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a [u8], ElfError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    let damaged = |what: &str, detail: String| ElfError::Damaged { object: name.into(), what: what.into(), detail };
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|e| damaged("header", e.to_string()))?;
    let section = file.section_by_name(".BTF").ok_or_else(|| damaged("`.BTF`", "there is no such section".into()))?;
    if file.section_by_name(".BTF.base").is_some() {
        let what = "it is to be moved onto a kernel's types first; /sys/kernel/btf has it so".to_owned();
        return Err(damaged("`.BTF` of a module built apart from its kernel", what));
    }
    section.data().map_err(|e| damaged("`.BTF`", e.to_string()))
}
