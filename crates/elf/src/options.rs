//! What a program is linked against: the kernel's types, configuration and symbols.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use skep_ebpf::btf::Btf;
use skep_ebpf::uapi::{AttachType, ProgType};

use crate::kconfig::{Kconfig, kernel_version};
use crate::modules::{modules_in, with_modules};

/// What a program is linked against. The default knows nothing: programs that ask for something are refused.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Types that CO-RE relocations and kernel externs are resolved with; those of modules ([`Btf::with_modules`]) too.
    pub btf: Option<Arc<Btf>>,
    /// `btf` has all of the kernel's types: no module is loaded that has more.
    pub all_types: bool,
    /// Values for `.kconfig` externs.
    pub kconfig: Option<Kconfig>,
    /// The kernel's version as [`kernel_version`] makes it, 0 if unknown.
    pub kernel_version: u32,
    /// Addresses for `.ksyms` externs without a type.
    pub ksyms: Ksyms,
    /// Program type to use instead of what the section's name says.
    pub prog_type: Option<(ProgType, Option<AttachType>)>,
}

impl LoadOptions {
    /// What this machine's kernel offers; what cannot be read is left out.
    pub fn host() -> LoadOptions {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        let kernel = std::fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|b| Btf::parse(&b).ok());
        let (btf, all_types) = match kernel {
            Some(kernel) => host_modules(Arc::new(kernel)),
            None => (None, false),
        };
        LoadOptions {
            btf,
            all_types,
            kconfig: Some(Kconfig::host()),
            kernel_version: parse_release(release),
            ksyms: Ksyms::host(),
            prog_type: None,
        }
    }
}

/// The running kernel's types with those of its modules; and whether that is all of them.
fn host_modules(kernel: Arc<Btf>) -> (Option<Arc<Btf>>, bool) {
    let read = || {
        let files = modules_in(Path::new("/sys/kernel/btf")).ok()?;
        files.into_iter().map(|(name, path)| Some((name, std::fs::read(path).ok()?))).collect::<Option<Vec<_>>>()
    };
    match read()
        .map(|modules| if modules.is_empty() { Ok(None) } else { with_modules(kernel.clone(), modules).map(Some) })
    {
        Some(Ok(None)) => (Some(kernel), true),
        Some(Ok(Some(all))) => (Some(Arc::new(all)), true),
        Some(Err(_)) | None => (Some(kernel), false),
    }
}

/// `6.18.44-generic` as a version number; 0 if it does not look like one.
fn parse_release(release: &str) -> u32 {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
    let mut part = || parts.next().flatten();
    match (part(), part(), part()) {
        (Some(major), Some(minor), patch) => kernel_version(major, minor, patch.unwrap_or(0)),
        _ => 0,
    }
}

/// An address that could be one of the kernel's text.
const ASSUMED: u64 = 0xffff_ffff_8100_0000;

/// Addresses of the kernel's symbols.
#[derive(Clone, Debug, Default)]
pub struct Ksyms(Option<Source>);

#[derive(Clone, Debug)]
enum Source {
    Given(Arc<HashMap<String, u64>>),
    Assumed,
    /// Read when first asked.
    Kernel(Arc<LazyLock<HashMap<String, u64>>>),
}

impl Ksyms {
    /// Addresses from a table.
    pub fn new(addresses: HashMap<String, u64>) -> Ksyms {
        Ksyms(Some(Source::Given(Arc::new(addresses))))
    }

    /// Any name has an address, the same for all: for a kernel that cannot be asked.
    pub fn assumed() -> Ksyms {
        Ksyms(Some(Source::Assumed))
    }

    /// Addresses from `/proc/kallsyms`, which shows zeroes to ordinary users.
    pub fn host() -> Ksyms {
        fn read() -> HashMap<String, u64> {
            let text = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
            let mut out = HashMap::new();
            for line in text.lines() {
                let mut words = line.split_ascii_whitespace();
                if let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
                    && let Ok(address) = u64::from_str_radix(address, 16)
                {
                    out.entry(name.to_owned()).or_insert(address);
                }
            }
            out
        }
        Ksyms(Some(Source::Kernel(Arc::new(LazyLock::new(read)))))
    }

    /// The address of a symbol.
    pub fn get(&self, name: &str) -> Option<u64> {
        match self.0.as_ref()? {
            Source::Given(table) => table.get(name).copied(),
            Source::Assumed => Some(ASSUMED),
            Source::Kernel(table) => table.get(name).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.18.44-generic"), kernel_version(6, 18, 44));
        assert_eq!(parse_release("6.1"), kernel_version(6, 1, 0));
        assert_eq!(parse_release("linux"), 0);
    }
}
