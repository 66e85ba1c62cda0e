//! Values of the kernel's configuration, as `/boot/config-*` and `/proc/config.gz` list them.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};

use crate::ElfError;
use crate::externs::{ConfigType, Extern, ExternKind, fault};

/// A kernel's configuration: what stands behind each `CONFIG_…=`.
#[derive(Clone, Debug)]
pub struct Kconfig(Source);

#[derive(Clone, Debug)]
enum Source {
    Given(Arc<HashMap<String, String>>),
    /// Read when first asked.
    Host(Arc<LazyLock<HashMap<String, String>>>),
}

/// Lines of any other form than `CONFIG_NAME=value` are comments.
fn pairs(text: &str) -> HashMap<String, String> {
    let lines = text.lines().filter(|l| l.starts_with("CONFIG_"));
    let mut values = HashMap::new();
    for (name, value) in lines.filter_map(|l| l.split_once('=')) {
        values.entry(name.to_owned()).or_insert_with(|| value.trim_end().to_owned());
    }
    values
}

impl Kconfig {
    /// Parses the text of a configuration file.
    pub fn parse(text: &str) -> Kconfig {
        Kconfig(Source::Given(Arc::new(pairs(text))))
    }

    /// This machine's: `/boot/config-RELEASE`, or `/proc/config.gz` where there is a `gzip` to read it.
    pub fn host() -> Kconfig {
        fn read() -> HashMap<String, String> {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            if let Ok(text) = std::fs::read_to_string(format!("/boot/config-{}", release.trim())) {
                return pairs(&text);
            }
            let gzip = Command::new("gzip").args(["-dc", "/proc/config.gz"]).stderr(Stdio::null()).output();
            gzip.map_or_else(|_| HashMap::new(), |out| pairs(&String::from_utf8_lossy(&out.stdout)))
        }
        Kconfig(Source::Host(Arc::new(LazyLock::new(read))))
    }

    /// What stands behind a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        match &self.0 {
            Source::Given(values) => values.get(name),
            Source::Host(values) => values.get(name),
        }
        .map(String::as_str)
    }
}

/// `KERNEL_VERSION(major, minor, patch)`.
pub const fn kernel_version(major: u32, minor: u32, patch: u32) -> u32 {
    major << 16 | minor << 8 | if patch > 255 { 255 } else { patch }
}

/// The bytes of one extern; `None` if nothing says what it is.
pub(crate) fn value(e: &Extern, config: Option<&Kconfig>, version: u32) -> Result<Option<Vec<u8>>, ElfError> {
    let ExternKind::Kconfig { ty, size, .. } = e.kind else { return Ok(None) };
    match e.name.as_str() {
        "LINUX_KERNEL_VERSION" if version == 0 => Err(fault(&e.name, "the kernel's version is not known")),
        "LINUX_KERNEL_VERSION" => number(e, ty, size, version.into()).map(Some),
        "LINUX_HAS_BPF_COOKIE" => number(e, ty, size, (version >= kernel_version(5, 15, 0)).into()).map(Some),
        "LINUX_HAS_SYSCALL_WRAPPER" => number(e, ty, size, (version >= kernel_version(4, 17, 0)).into()).map(Some),
        name if name.starts_with("CONFIG_") => match config.and_then(|c| c.get(name)) {
            Some(text) => configured(e, ty, size, text).map(Some),
            None => Ok(None),
        },
        name if name.starts_with("LINUX_") && e.weak => Ok(None),
        name => Err(fault(name, "neither a CONFIG_ value nor a known LINUX_ one")),
    }
}

fn configured(e: &Extern, ty: ConfigType, size: u32, text: &str) -> Result<Vec<u8>, ElfError> {
    let mismatch = || fault(&e.name, format!("the kernel's value {text} does not fit its type"));
    match (ty, text) {
        (ConfigType::Bool, "y") => number(e, ty, size, 1),
        (ConfigType::Bool, "n") => number(e, ty, size, 0),
        (ConfigType::Tristate, "n" | "y" | "m") => {
            let n = match text {
                "n" => 0u64,
                "y" => 1,
                _ => 2,
            };
            n.to_le_bytes().get(..size as usize).map(<[u8]>::to_vec).ok_or_else(mismatch)
        }
        (ConfigType::Char { .. }, "y" | "n" | "m") => Ok(text.as_bytes().to_vec()),
        (ConfigType::Text, _) => {
            let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).ok_or_else(mismatch)?;
            let mut bytes = inner.as_bytes().to_vec();
            // Too long a text is cut, and always ends with a zero.
            bytes.truncate((size as usize).saturating_sub(1));
            bytes.resize(size as usize, 0);
            Ok(bytes)
        }
        (ConfigType::Int { .. } | ConfigType::Char { .. }, _) => number(e, ty, size, parse(text).ok_or_else(mismatch)?),
        _ => Err(mismatch()),
    }
}

/// A number as C spells it, negative ones as their two's complement.
fn parse(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let n = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { n.wrapping_neg() } else { n })
}

fn number(e: &Extern, ty: ConfigType, size: u32, n: u64) -> Result<Vec<u8>, ElfError> {
    let bits = size.saturating_mul(8);
    let fits = match ty {
        ConfigType::Bool => n <= 1,
        ConfigType::Int { .. } | ConfigType::Char { .. } if bits >= 64 => true,
        ConfigType::Int { signed: true } | ConfigType::Char { signed: true } => {
            n.wrapping_add(1 << (bits - 1)) < 1 << bits
        }
        ConfigType::Int { .. } | ConfigType::Char { .. } => n >> bits == 0,
        ConfigType::Tristate | ConfigType::Text => false,
    };
    let bytes = n.to_le_bytes();
    let bytes = bytes.get(..size as usize).filter(|_| fits);
    bytes.map(<[u8]>::to_vec).ok_or_else(|| fault(&e.name, format!("the value {n:#x} does not fit its type")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(name: &str, ty: ConfigType, size: u32) -> Result<Option<Vec<u8>>, ElfError> {
        let text = "# c\nCONFIG_Y=y\nCONFIG_M=m\nCONFIG_N=-3\nCONFIG_HEX=0x1ff\nCONFIG_S=\"hello\"\n";
        let kind = ExternKind::Kconfig { ty, size, align: 1, offset: 0 };
        let e = Extern { name: name.into(), symbol: 0, weak: false, kind };
        value(&e, Some(&Kconfig::parse(text)), kernel_version(6, 18, 44))
    }

    #[test]
    fn values() {
        let int = |signed| ConfigType::Int { signed };
        assert_eq!(bytes("CONFIG_Y", ConfigType::Bool, 1), Ok(Some(vec![1])));
        assert_eq!(bytes("CONFIG_M", ConfigType::Tristate, 4), Ok(Some(vec![2, 0, 0, 0])));
        assert_eq!(bytes("CONFIG_M", ConfigType::Char { signed: true }, 1), Ok(Some(vec![b'm'])));
        assert_eq!(bytes("CONFIG_N", int(true), 2), Ok(Some(vec![0xfd, 0xff])));
        assert_eq!(bytes("CONFIG_HEX", int(false), 2), Ok(Some(vec![0xff, 1])));
        assert_eq!(bytes("CONFIG_S", ConfigType::Text, 4), Ok(Some(b"hel\0".to_vec())));
        assert_eq!(bytes("CONFIG_S", ConfigType::Text, 7), Ok(Some(b"hello\0\0".to_vec())));
        assert_eq!(bytes("CONFIG_NONE", int(true), 4), Ok(None));
        assert_eq!(bytes("LINUX_KERNEL_VERSION", int(true), 4), Ok(Some(vec![44, 18, 6, 0])));
        for (name, ty, size) in [
            ("CONFIG_M", ConfigType::Bool, 1),
            ("CONFIG_N", int(false), 4),
            ("CONFIG_HEX", ConfigType::Char { signed: false }, 1),
            ("CONFIG_S", int(true), 4),
            ("LINUX_OTHER", int(true), 4),
        ] {
            assert!(matches!(bytes(name, ty, size), Err(ElfError::Extern { .. })), "{name}");
        }
    }
}
