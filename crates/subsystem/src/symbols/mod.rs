//! Names of machine code, for tools that look at a process from outside: profilers and debuggers.
//!
//! A function is called `bpf_prog_TAG_NAME`, as the kernel calls it in `/proc/kallsyms`: the program's tag, then the C name
//! of the function.

mod gdb;
mod jitdump;
mod object_file;
mod perf_map;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_verifier::Verified;

use crate::loaded::Loaded;
use jitdump::Jitdump;
use perf_map::PerfMap;

/// Who is told of machine code; nobody, unless asked for.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// `/tmp/perf-PID.map` gets a line per function. It is appended to, and left behind: profilers read it when the process
    /// has ended.
    pub perf_map: bool,
    /// A folder for dumps that `perf inject --jit` reads: code, names and source lines. Each subsystem makes a folder in it
    /// for its `jit-PID.dump`.
    pub jitdump: Option<PathBuf>,
    /// GDB and LLDB see the functions of this process' programs with their lines (GDB manual, "JIT Compilation
    /// Interface").
    pub gdb: bool,
}

/// A function of a program's machine code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Function {
    name: String,
    /// Its first byte, from the beginning of the program's code.
    start: u32,
    /// The byte behind its last.
    end: u32,
    /// Its lines, by place.
    lines: Vec<Line>,
}

/// Where the code of a source line begins.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// From the beginning of the program's code.
    at: u32,
    file: Arc<str>,
    line: u32,
    column: u32,
}

/// The functions of a program's machine code; none if it is interpreted.
#[derive(Clone, Debug)]
pub(crate) struct Names<'p> {
    code: &'p [u8],
    functions: Vec<Function>,
}

impl Names<'_> {
    /// Those of a program with this tag.
    pub fn of<'p>(verified: &Verified, loaded: &'p Loaded, tag: [u8; 8]) -> Option<Names<'p>> {
        let code = loaded.machine_code()?;
        let program = verified.program();
        let rewritten = verified.rewritten();
        let tag = u64::from_be_bytes(tag);
        let starts = loaded.function_offsets();
        let ends = starts.iter().skip(1).copied().chain([code.len() as u32]);
        let mut functions: Vec<Function> = rewritten
            .functions()
            .iter()
            .zip(starts.iter().zip(ends))
            .map(|(function, (&start, end))| {
                let first = verified.subprogs().get(function.origin as usize).map(|s| s.start);
                let typed = program.btf.as_deref().and_then(|btf| {
                    let info = program.func_info.iter().find(|info| Some(info.insn) == first)?;
                    Some(btf.name(info.type_id)).filter(|name| !name.is_empty())
                });
                let name = typed.or((first == Some(0)).then_some(program.name.as_str()));
                // What the kernel calls those of which it knows nothing.
                Function { name: format!("bpf_prog_{tag:016x}_{}", name.unwrap_or("F")), start, end, lines: Vec::new() }
            })
            .collect();
        let offsets = loaded.code_offsets();
        for info in &program.line_info {
            // An instruction that has no code is where the next one is.
            let now = rewritten.place_of(info.insn) as usize;
            let Some(at) = offsets.get(now..).and_then(|rest| rest.iter().flatten().next().copied()) else { continue };
            let Some(function) = functions.iter_mut().find(|f| (f.start..f.end).contains(&at)) else { continue };
            let line = Line { at, file: Arc::clone(&info.file), line: info.line, column: info.column };
            match function.lines.last_mut() {
                // Of several lines at one place the last one is there.
                Some(last) if last.at == at => *last = line,
                Some(last) if last.at > at => {}
                _ => function.lines.push(line),
            }
        }
        // A function's first bytes belong to its first line.
        for function in &mut functions {
            if let Some(first) = function.lines.first_mut() {
                first.at = function.start;
            }
        }
        Some(Names { code, functions })
    }
}

/// What is written of one process' code, and to whom.
#[derive(Debug)]
pub(crate) struct SymbolTable {
    perf_map: Option<PerfMap>,
    jitdump: Option<Mutex<Jitdump>>,
    gdb: bool,
    /// The first thing that went wrong: from then on nothing is written.
    failed: OnceLock<String>,
}

/// A program that debuggers know, until this is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    _gdb: Option<gdb::Entry>,
}

impl SymbolTable {
    /// Begins to tell the tools of this process' code. Files that cannot be made are errors.
    pub fn of_this_process(symbols: &Symbols) -> io::Result<SymbolTable> {
        let pid = std::process::id();
        Ok(SymbolTable {
            perf_map: symbols.perf_map.then(|| PerfMap::open(pid)).transpose()?,
            jitdump: symbols.jitdump.as_deref().map(|dir| Jitdump::create(dir, pid).map(Mutex::new)).transpose()?,
            gdb: symbols.gdb,
            failed: OnceLock::new(),
        })
    }

    /// True if anybody wants to know.
    pub fn is_wanted(&self) -> bool {
        self.gdb || self.perf_map.is_some() || self.jitdump.is_some()
    }

    /// What went wrong, if anything has.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Tells of a program's code that is executed at an address.
    pub fn add(&self, names: &Names<'_>, address: u64) -> Registered {
        if self.failed.get().is_none()
            && let Err(error) = self.write(names, address)
        {
            let _ = self.failed.set(error.to_string());
        }
        Registered { _gdb: self.gdb.then(|| gdb::Entry::new(names, address)).flatten() }
    }

    fn write(&self, names: &Names<'_>, address: u64) -> io::Result<()> {
        if let Some(map) = &self.perf_map {
            map.add(names, address)?;
        }
        if let Some(dump) = &self.jitdump {
            lock(dump).add(names, address)?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error of a file, by its name.
fn at(path: &std::path::Path, what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}
