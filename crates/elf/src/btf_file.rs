//! BTF from a file that is either the blob itself or an ELF file of any machine with a `.BTF` section.

use object::LittleEndian;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};
use skep_ebpf::btf::Btf;

use crate::ElfError;

/// Reads the types of a kernel (`/sys/kernel/btf/vmlinux`, or its `vmlinux`) or of a program. `name` is what errors call
/// the file.
pub fn read_btf(name: &str, bytes: &[u8]) -> Result<Btf, ElfError> {
    let source = |source| ElfError::Btf { section: ".BTF", source };
    if !bytes.starts_with(b"\x7fELF") {
        return Btf::parse(bytes).map_err(source);
    }
    let damaged = |what: &str, detail: String| ElfError::Damaged { object: name.into(), what: what.into(), detail };
    let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|e| damaged("header", e.to_string()))?;
    let section = file.section_by_name(".BTF").ok_or_else(|| damaged("`.BTF`", "there is no such section".into()))?;
    let data = section.data().map_err(|e| damaged("`.BTF`", e.to_string()))?;
    Btf::parse(data).map_err(source)
}
