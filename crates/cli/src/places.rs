//! Where addresses of a process lie: which file, at which offset.

use std::fmt;

/// An executable mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// Offset of `start` in the file.
    offset: u64,
    path: String,
}

/// The executable files that a process had mapped at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    mappings: Vec<Mapping>,
}

/// A file and an offset in it, as `addr2line` and `objdump` want it for position-independent files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFile<'a> {
    path: &'a str,
    offset: u64,
}

impl fmt::Display for InFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        write!(f, "{name}+{:#x}", self.offset)
    }
}

impl Places {
    /// The mappings of a process; none if it cannot be looked at.
    pub fn of(pid: u32) -> Places {
        Places::parse(&std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default())
    }

    fn parse(maps: &str) -> Places {
        let line = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let executable = fields.next()?.contains('x');
            let offset = fields.next()?;
            let path = line.get(line.find('/')?..)?;
            let hex = |text| u64::from_str_radix(text, 16).ok();
            let mapping = Mapping { start: hex(start)?, end: hex(end)?, offset: hex(offset)?, path: path.into() };
            // What skep has put there itself is no file of the process.
            (executable && !path.starts_with("/memfd:")).then_some(mapping)
        };
        Places { mappings: maps.lines().filter_map(line).collect() }
    }

    /// The mappings of several processes; where they differ, those of one of them.
    pub fn together<'a>(all: impl Iterator<Item = &'a Places>) -> Places {
        let mut mappings: Vec<Mapping> = Vec::new();
        for mapping in all.flat_map(|places| &places.mappings) {
            if !mappings.contains(mapping) {
                mappings.push(mapping.clone());
            }
        }
        Places { mappings }
    }

    /// True if nothing is mapped, or nothing could be seen.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Where an address lies.
    pub fn find(&self, address: u64) -> Option<InFile<'_>> {
        let mapping = self.mappings.iter().find(|m| (m.start..m.end).contains(&address))?;
        Some(InFile { path: &mapping.path, offset: address - mapping.start + mapping.offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_mapping() {
        let places = Places::parse(
            "55d0-55e0 r-xp 00002000 fe:00 12 /usr/bin/a b\n55e0-55f0 rw-p 00003000 fe:00 12 /usr/bin/a b\n\
             6000-7000 r-xp 00000000 00:01 99 /memfd:skep (deleted)\n7000-8000 r-xp 00000000 00:00 0 [vdso]\nnonsense\n",
        );
        assert_eq!(places.find(0x55d4).unwrap().to_string(), "a b+0x2004");
        assert_eq!(places.find(0x55e0), None);
        assert_eq!(places.find(0x6000), None);
        assert!(!places.is_empty() && Places::parse("").is_empty());
        assert!(!Places::of(std::process::id()).is_empty());
    }
}
