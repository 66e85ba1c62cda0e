//! Names of machine code, for tools that look at a process from outside: profilers and debuggers.
//!
//! A function is called `bpf_prog_TAG_NAME`, as the kernel calls it in `/proc/kallsyms`: the program's tag, then the C name
//! of the function.

mod gdb;
mod jitdump;
mod object_file;
mod perf_map;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

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
    /// Files are written only for other processes that programs run in, not for this one.
    pub others_only: bool,
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

/// The functions of a program's machine code.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The code itself, for those who want a copy.
    code: Vec<u8>,
    len: u64,
    functions: Vec<Function>,
}

impl Names {
    /// Those of a program with this tag; `None` if it is interpreted.
    fn of(verified: &Verified, loaded: &Loaded, tag: [u8; 8]) -> Option<Names> {
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
        Some(Names { code: code.to_vec(), len: code.len() as u64, functions })
    }
}

/// Programs that tools are told of, and the processes that their code is mapped in.
#[derive(Debug)]
pub(crate) struct SymbolTable {
    symbols: Symbols,
    listed: Mutex<Listed>,
    /// The first thing that went wrong: from then on nothing is written.
    failed: OnceLock<String>,
}

#[derive(Debug, Default)]
struct Listed {
    programs: Vec<Weak<Published>>,
    processes: Vec<Process>,
}

/// A program that tools know, until this is dropped.
#[derive(Debug)]
pub(crate) struct Published {
    names: Names,
    /// Where its code begins, from the beginning of all code.
    offset: u64,
    _gdb: Option<gdb::Entry>,
}

/// What is written of one process.
#[derive(Debug)]
struct Process {
    pid: u32,
    /// Where all code begins, once it is mapped.
    base: Option<u64>,
    perf_map: Option<PerfMap>,
    jitdump: Option<Jitdump>,
}

impl Process {
    fn open(symbols: &Symbols, pid: u32) -> io::Result<Process> {
        Ok(Process {
            pid,
            base: None,
            perf_map: symbols.perf_map.then(|| PerfMap::open(pid)).transpose()?,
            jitdump: symbols.jitdump.as_deref().map(|dir| Jitdump::create(dir, pid)).transpose()?,
        })
    }

    fn add(&mut self, program: &Published) -> io::Result<()> {
        let Some(address) = self.base.map(|base| base + program.offset) else { return Ok(()) };
        if let Some(map) = &self.perf_map {
            map.add(&program.names, address)?;
        }
        match &mut self.jitdump {
            Some(dump) => dump.add(&program.names, address),
            None => Ok(()),
        }
    }
}

impl SymbolTable {
    /// A table without programs. Files of this process that cannot be made are errors.
    pub fn new(symbols: Symbols) -> io::Result<SymbolTable> {
        let mut listed = Listed::default();
        if symbols.writes_files() && !symbols.others_only {
            let mut own = Process::open(&symbols, std::process::id())?;
            if let Some(dump) = &mut own.jitdump {
                dump.mark()?;
            }
            listed.processes.push(own);
        }
        Ok(SymbolTable { symbols, listed: Mutex::new(listed), failed: OnceLock::new() })
    }

    /// What went wrong, if anything has.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Tells of a program whose code begins at `offset` of all code, which this process has at `base`.
    pub fn add_program(
        &self,
        (verified, loaded, tag): (&Verified, &Loaded, [u8; 8]),
        offset: u64,
        base: Option<u64>,
    ) -> Option<Arc<Published>> {
        if !self.symbols.writes_files() && !self.symbols.gdb {
            return None;
        }
        let mut names = Names::of(verified, loaded, tag)?;
        let gdb = base.filter(|_| self.symbols.gdb).and_then(|base| gdb::Entry::new(&names, base + offset));
        if self.symbols.jitdump.is_none() {
            names.code = Vec::new();
        }
        let program = Arc::new(Published { names, offset, _gdb: gdb });
        if self.symbols.writes_files() {
            let mut listed = lock(&self.listed);
            if let Some(own) = listed.processes.iter_mut().find(|p| p.pid == std::process::id()) {
                own.base = base;
            }
            for process in &mut listed.processes {
                self.note(process.add(&program));
            }
            listed.programs.retain(|p| p.strong_count() != 0);
            listed.programs.push(Arc::downgrade(&program));
        }
        Some(program)
    }

    /// Another process is about to map the code. What it should map besides, a page to read and execute: by it profilers
    /// learn of the dump.
    pub fn expect_process(&self, pid: u32) -> Option<OwnedFd> {
        if !self.symbols.writes_files() || self.failed.get().is_some() {
            return None;
        }
        let mut listed = lock(&self.listed);
        if !listed.processes.iter().any(|p| p.pid == pid) {
            match Process::open(&self.symbols, pid) {
                Ok(process) => listed.processes.push(process),
                Err(error) => self.note(Err(error)),
            }
        }
        let process = listed.processes.iter().find(|p| p.pid == pid)?;
        process.jitdump.as_ref()?.file().ok()
    }

    /// A process has mapped all code at an address; or it has ended, or may not execute it.
    pub fn set_process(&self, pid: u32, base: Option<u64>) {
        let mut listed = lock(&self.listed);
        let Listed { programs, processes } = &mut *listed;
        let Some(at) = processes.iter().position(|p| p.pid == pid) else { return };
        if base.is_none() {
            processes.swap_remove(at);
        } else if let Some(process) = processes.get_mut(at).filter(|p| p.base != base) {
            process.base = base;
            for program in programs.iter().filter_map(Weak::upgrade) {
                self.note(process.add(&program));
            }
        }
    }

    fn note(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let _ = self.failed.set(error.to_string());
        }
    }
}

impl Symbols {
    fn writes_files(&self) -> bool {
        self.perf_map || self.jitdump.is_some()
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
