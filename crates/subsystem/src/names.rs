//! Names of functions at addresses of a process, by its files' symbols and debug information, and by the tables that
//! just-in-time compilers write (`/tmp/perf-PID.map`).

use std::collections::HashMap;
use std::fmt;
use std::os::fd::AsRawFd;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Sym, Symbolized, Symbolizer};

use crate::code_map::{CodeFile, CodeMap, Mapping};

/// A function of a [perf map](Names): where it begins, its bytes, its name.
type JitFunction = (u64, u64, String);

/// Finds names, and remembers them.
pub struct Names {
    symbolizer: Symbolizer,
    /// By device, inode and offset.
    known: HashMap<(u64, u64, u64), Vec<String>>,
    /// By process.
    jitted: HashMap<u32, Vec<JitFunction>>,
}

impl Default for Names {
    fn default() -> Names {
        // Files are named by descriptors, which stay what they are.
        let symbolizer = Symbolizer::builder().enable_auto_reload(false).enable_code_info(false).build();
        Names { symbolizer, known: HashMap::new(), jitted: HashMap::new() }
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Names {
    /// The functions at an address: the one that is there, and before it those that were inlined there, innermost first.
    /// Where there is no name it is the file's, in brackets.
    pub fn at(&mut self, code: &CodeMap, address: u64) -> Vec<String> {
        let Some(mapping) = code.find(address) else { return vec![self.jitted(code.pid(), address)] };
        let offset = address - mapping.range.start + mapping.offset;
        let Some(file) = code.open(mapping) else {
            return match mapping.name.as_str() {
                "" => vec![self.jitted(code.pid(), address)],
                _ => vec![module(mapping)],
            };
        };
        let key = (file.id.0, file.id.1, offset);
        if let Some(names) = self.known.get(&key) {
            return names.clone();
        }
        let names = self.in_file(&file, offset).unwrap_or_else(|| vec![module(mapping)]);
        self.known.insert(key, names.clone());
        names
    }

    fn in_file(&self, file: &CodeFile, offset: u64) -> Option<Vec<String>> {
        let path = format!("/proc/self/fd/{}", file.file.as_raw_fd());
        // Debug information of a kind that is not understood is no reason to do without the symbols.
        [true, false].into_iter().find_map(|debug_syms| {
            let source = Source::Elf(Elf { debug_syms, ..Elf::new(&path) });
            match self.symbolizer.symbolize_single(&source, Input::FileOffset(offset)) {
                Ok(Symbolized::Sym(sym)) => Some(names(&sym)),
                _ => None,
            }
        })
    }

    fn jitted(&mut self, pid: u32, address: u64) -> String {
        let functions = self.jitted.entry(pid).or_insert_with(|| perf_map(pid));
        // Code that was moved has several lines; the last one is of what is there.
        let found = functions.iter().rev().find(|(start, len, _)| address.wrapping_sub(*start) < *len);
        found.map_or_else(|| "[unknown]".into(), |(_, _, name)| name.clone())
    }
}

fn names(sym: &Sym<'_>) -> Vec<String> {
    let inlined = sym.inlined.iter().rev().map(|f| f.name.to_string());
    inlined.chain([sym.name.to_string()]).collect()
}

/// The name of a mapping's file, in brackets.
fn module(mapping: &Mapping) -> String {
    let name = mapping.name.trim_matches(['[', ']']);
    format!("[{}]", name.rsplit('/').next().unwrap_or(name))
}

fn perf_map(pid: u32) -> Vec<JitFunction> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ' ');
        let mut hex = || u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok();
        Some((hex()?, hex()?, fields.next()?.to_owned()))
    };
    // A process in a container writes it there, by the id that it has there.
    let own = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inner = own.lines().find_map(|l| l.strip_prefix("NSpid:")?.split_ascii_whitespace().last()?.parse().ok());
    let inner: u32 = inner.unwrap_or(pid);
    let paths = [format!("/proc/{pid}/root/tmp/perf-{inner}.map"), format!("/tmp/perf-{pid}.map")];
    let text = paths.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn here() -> u64 {
        here as fn() -> u64 as usize as u64
    }

    #[test]
    fn of_this_process() {
        let (mut names, code) = (Names::default(), CodeMap::of(std::process::id()));
        let found = names.at(&code, here());
        assert!(found.last().is_some_and(|n| n.contains("names::tests::here")), "{found:?}");
        assert_eq!(names.at(&code, here()), found, "remembered");
        assert_eq!(names.at(&code, 0), ["[unknown]"]);
        let vdso = code.iter().find(|m| m.name == "[vdso]").unwrap();
        assert_eq!(names.at(&code, vdso.range.start), ["[vdso]"]);
    }

    #[test]
    fn jitted_code() {
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        std::fs::write(&path, "1000 10 old name\nnonsense\n1000 20 new;name x\n").unwrap();
        let mut names = Names::default();
        let code = CodeMap::of(pid);
        assert_eq!(names.at(&code, 0x100f), ["new;name x"]);
        assert_eq!(names.at(&code, 0x1020), ["[unknown]"]);
        std::fs::remove_file(&path).unwrap();
    }
}
