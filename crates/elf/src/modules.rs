//! The kernel's types together with those of its modules, from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep_ebpf::btf::Btf;

use crate::ElfError;
use crate::btf_file::section_of;

/// The kernel's own file in a folder of types.
const KERNEL: &str = "vmlinux";

/// The module that a file of types is of, by the file's name: `tcp_bbr`, `tcp_bbr.btf` and `tcp-bbr.ko` are `tcp_bbr`.
pub fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// The modules in a folder of types such as `/sys/kernel/btf`, by name and in order of their names.
pub fn modules_in(folder: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = module_name(&path);
        if name != KERNEL && !name.is_empty() && path.is_file() {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Puts the types of modules, given by name and content (BTF, or a `.ko` with a section of it), beside their kernel's.
pub fn with_modules(kernel: Arc<Btf>, modules: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<Btf, ElfError> {
    let wrong = |source| ElfError::Btf { section: ".BTF", source };
    let mut parsed = Vec::new();
    for (name, bytes) in modules {
        let blob = section_of(&name, &bytes)?;
        let split = Btf::parse_split(kernel.clone(), blob).map_err(wrong)?;
        parsed.push((name, split));
    }
    Btf::with_modules(kernel, parsed).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules() {
        let name = |p: &str| module_name(Path::new(p));
        assert_eq!((name("/x/tcp_bbr"), name("a/snd-pcm.ko")), ("tcp_bbr".into(), "snd_pcm".into()));
    }
}
