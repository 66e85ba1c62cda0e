//! `--btf`: the kernel's types, and those of its modules, as the command line names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use skep::ebpf::btf::Btf;
use skep::elf::{module_name, modules_in, read_btf, with_modules};

/// The kernel's own file where types lie together.
const KERNEL: &str = "vmlinux";
/// Where the running kernel shows its types.
const HOST: &str = "/sys/kernel/btf";

/// What `--btf` options say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Files {
    kernel: Option<PathBuf>,
    modules: Vec<(String, PathBuf)>,
}

impl Files {
    /// The first file without a module's name is the kernel's, all others are modules'. A folder stands for what is in it.
    fn new(given: &[String]) -> Result<Files, String> {
        let mut files = Files::default();
        for text in given {
            let path = Path::new(text);
            let named = text.split_once('=').filter(|(name, _)| !path.exists() && !name.contains('/'));
            match named {
                Some((KERNEL, path)) => files.kernel = Some(path.into()),
                Some((module, path)) => files.modules.push((module.replace('-', "_"), path.into())),
                None if path.is_dir() => {
                    files.modules.extend(modules_in(path).map_err(|e| format!("{text}: {e}"))?);
                    let kernel = path.join(KERNEL);
                    if files.kernel.is_none() && kernel.is_file() {
                        files.kernel = Some(kernel);
                    }
                }
                None if files.kernel.is_none() => files.kernel = Some(path.into()),
                None => files.modules.push((module_name(path), path.into())),
            }
        }
        Ok(files)
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Reads the types; and whether they are all there are: where modules are named, they are.
pub fn read(given: &[String]) -> Result<(Arc<Btf>, bool), String> {
    let files = Files::new(given)?;
    let path = files.kernel.unwrap_or_else(|| Path::new(HOST).join(KERNEL));
    let kernel = bytes(&path)?;
    let name = path.display().to_string();
    let kernel = Arc::new(read_btf(&name, &kernel).map_err(|e| format!("{name}: {e}"))?);
    if files.modules.is_empty() {
        return Ok((kernel, false));
    }
    let mut modules = Vec::new();
    for (module, path) in files.modules {
        let read = bytes(&path)?;
        // Each on its own first, so that an error names its file.
        with_modules(kernel.clone(), [(module.clone(), read.clone())])
            .map_err(|e| format!("{}: {e}", path.display()))?;
        modules.push((module, read));
    }
    let all = with_modules(kernel, modules).map_err(|e| e.to_string())?;
    Ok((Arc::new(all), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_by_place_and_name() {
        let files = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
            let files = Files::new(&given).expect("files");
            let modules = files.modules.into_iter().map(|(name, path)| format!("{name} {}", path.display()));
            (files.kernel.map(|p| p.display().to_string()), modules.collect::<Vec<_>>())
        };
        assert_eq!(files(&["a/vmlinux.btf"]), (Some("a/vmlinux.btf".into()), vec![]));
        assert_eq!(files(&["v", "x/tcp-bbr.ko"]), (Some("v".into()), vec!["tcp_bbr x/tcp-bbr.ko".into()]));
        assert_eq!(files(&["m=x/y", "vmlinux=z"]), (Some("z".into()), vec!["m x/y".into()]));
    }
}
