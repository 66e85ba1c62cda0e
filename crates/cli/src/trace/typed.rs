//! Programs that are given a function's arguments by their types: whose types, and the program judged by them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use skep::elf::Object;
use skep::subsystem::process_types::{ProcessTypes, TypesError};
use skep::verifier::{Options, Verified};

use super::plan::Placement;
use crate::args::Trace;
use crate::{Failure, road};

/// The types of what is to be traced, read when they are first asked for.
pub struct Typed<'a> {
    args: &'a Trace,
    known: BTreeMap<PathBuf, ProcessTypes>,
}

impl Typed<'_> {
    pub fn new(args: &Trace) -> Typed<'_> {
        Typed { args, known: BTreeMap::new() }
    }

    /// Links and verifies a program for the function that it is placed at. The place then names the file whose types were
    /// used: the function is to be that one.
    pub fn verified(&mut self, object: &Object, placement: &mut Placement) -> Result<Verified, Failure> {
        let function = placement.place.symbol().unwrap_or("").to_owned();
        let types = self.types(&placement.place.module, &function)?;
        let program = types.link(object, &placement.program, &function).map_err(Failure::input)?;
        let options = Options { btf: Some(types.btf().clone()), process: true, ..Options::default() };
        placement.place.module = Some(types.path().display().to_string());
        road::judged(program, &options)
    }

    fn types(&mut self, module: &Option<String>, function: &str) -> Result<&ProcessTypes, Failure> {
        let mut first = None;
        for path in self.files(module)? {
            let found = self.of(&path).and_then(|types| types.function(function).map(|_| ()));
            match found {
                Ok(()) => return self.of(&path).map_err(Failure::input),
                Err(e) => drop(first.get_or_insert(e)),
            }
        }
        let why = first.map_or_else(|| "no file to look for its types in".to_owned(), |e| e.to_string());
        Err(Failure::Input(format!("function {function}: {why}")))
    }

    fn of(&mut self, path: &Path) -> Result<&ProcessTypes, TypesError> {
        if !self.known.contains_key(path) {
            let types = match self.args.load.btf.as_slice() {
                [] => ProcessTypes::of(path)?,
                files => {
                    let (btf, _) = crate::types::read(files)
                        .map_err(|e| TypesError::File { path: path.to_owned(), source: std::io::Error::other(e) })?;
                    ProcessTypes::given(path, btf)
                }
            };
            self.known.insert(path.to_owned(), types);
        }
        self.known
            .get(path)
            .ok_or_else(|| TypesError::File { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() })
    }

    /// The files in which the function may be: the one that is named, else the executable, then what it has mapped.
    fn files(&self, module: &Option<String>) -> Result<Vec<PathBuf>, Failure> {
        let mut files = Vec::new();
        let mapped = self.args.pid.first().copied().map(mapped).unwrap_or_default();
        match module {
            Some(name) if name.contains('/') => files.push(name.into()),
            Some(name) => {
                let starts = |p: &&PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name));
                files.extend(mapped.iter().find(starts).cloned());
                if files.is_empty() {
                    return Err(Failure::Input(format!("{name}: give its path, so that its types can be read")));
                }
            }
            None => {
                files.extend(self.executable()?);
                files.extend(mapped);
            }
        }
        Ok(files)
    }

    fn executable(&self) -> Result<Option<PathBuf>, Failure> {
        if let Some(path) = self.args.exe.first() {
            return Ok(Some(path.clone()));
        }
        if let Some(pid) = self.args.pid.first() {
            let link = format!("/proc/{pid}/exe");
            return std::fs::read_link(&link).map(Some).map_err(|e| Failure::Input(format!("{link}: {e}")));
        }
        let Some(command) = self.args.command.first() else { return Ok(None) };
        let found = found(command).and_then(|path| path.canonicalize().ok());
        let missing = || Failure::Input(format!("{}: no such command", command.to_string_lossy()));
        found.ok_or_else(missing).map(Some)
    }
}

/// A command as the shell finds it.
fn found(command: &OsStr) -> Option<PathBuf> {
    if command.to_string_lossy().contains('/') {
        return Some(command.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(command)).find(|file| file.is_file())
}

/// The files that a process has mapped to execute.
fn mapped(pid: u32) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut files: Vec<PathBuf> = Vec::new();
    for line in maps.lines() {
        let executable = line.split_ascii_whitespace().nth(1).is_some_and(|access| access.contains('x'));
        if let Some(path) = line.find('/').and_then(|at| line.get(at..)).filter(|_| executable) {
            let path = PathBuf::from(path);
            if !files.contains(&path) && path.is_file() {
                files.push(path);
            }
        }
    }
    files
}
