//! Where the programs of an object want to be attached, as their section names say.

use std::fmt;

use skep_ebpf::syscall::{self, Syscall};
use skep_ebpf::uapi::ProgType;

/// When a probe fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// At the entry of a function, or at an instruction.
    Entry,
    /// When the function returns.
    Return,
}

/// A place in a process, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// When it fires.
    pub when: When,
    /// File name or path of the module; none for "the executable, then all others".
    pub module: Option<String>,
    /// What in the module is meant.
    pub what: What,
    /// Bytes from there.
    pub offset: u64,
}

/// A symbol or a place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A symbol of the module.
    Symbol(String),
    /// An offset in the module's file.
    FileOffset(u64),
    /// System calls.
    Syscalls(Syscalls),
}

/// System calls, as tracepoints name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Syscalls {
    /// The only one; none for all.
    pub call: Option<Syscall>,
    /// Where they return, and not where they are made.
    pub exit: bool,
}

impl Syscalls {
    /// Bytes of the record that programs are given.
    pub fn record(&self) -> u32 {
        match (self.exit, self.call) {
            (true, _) => 24,
            (false, Some(call)) => 16 + call.arguments * 8,
            (false, None) => 64,
        }
    }
}

impl fmt::Display for Syscalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.exit { "sys_exit" } else { "sys_enter" })?;
        match self.call {
            Some(call) => write!(f, "_{}", call.name),
            None => Ok(()),
        }
    }
}

impl Place {
    /// True if it is a function by its name, from its beginning.
    pub fn is_function(&self) -> bool {
        self.offset == 0 && matches!(self.what, What::Symbol(_))
    }

    /// The name of the symbol that it is at, or in.
    pub fn symbol(&self) -> Option<&str> {
        match &self.what {
            What::Symbol(name) => Some(name),
            What::FileOffset(_) | What::Syscalls(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(module) = &self.module {
            write!(f, "{module}:")?;
        }
        match &self.what {
            What::Symbol(name) => f.write_str(name)?,
            What::FileOffset(offset) => write!(f, "{offset:#x}")?,
            What::Syscalls(calls) => return calls.fmt(f),
        }
        if self.offset != 0 { write!(f, "+{:#x}", self.offset) } else { Ok(()) }
    }
}

/// Why a program cannot be fired by `trace`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaceable {
    /// Its event is one of the kernel's own.
    #[error(
        "section \"{section}\": a {prog_type} program fires on an event inside the kernel; here it can be checked and test-run only"
    )]
    KernelOnly {
        /// Section of the program.
        section: String,
        /// Its type.
        prog_type: ProgType,
    },
    /// It is to change what a function returns.
    #[error("section \"{section}\": what a function of a process returns cannot be changed")]
    ChangesResult {
        /// Section of the program.
        section: String,
    },
    /// Its section names a system call.
    #[error(
        "section \"{section}\": the kernel's own function of a system call; use tp/syscalls/sys_enter_NAME or sys_exit_NAME"
    )]
    Syscall {
        /// Section of the program.
        section: String,
    },
    /// Its section says no function.
    #[error("section \"{section}\" names no function: give one with --func NAME")]
    Unbound {
        /// Section of the program.
        section: String,
        /// When it is to fire.
        when: When,
    },
    /// A kind of probe that is not built in.
    #[error("section \"{section}\": {what} is not built in yet")]
    NotYet {
        /// Section of the program.
        section: String,
        /// The kind.
        what: &'static str,
    },
    /// The name after the slash is not as it has to be.
    #[error("section \"{section}\": {problem}")]
    Malformed {
        /// Section of the program.
        section: String,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Reads the place out of a section name.
pub fn place(section: &str, prog_type: ProgType) -> Result<Place, Unplaceable> {
    let name = section.strip_prefix('?').unwrap_or(section);
    let owned = || section.to_owned();
    let (kind, rest) = match name.split_once('/') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (name, None),
    };
    // Those around functions: here they are the process's, as for kprobes.
    let typed = prog_type == ProgType::Tracing && matches!(kind, "fentry" | "fexit");
    if prog_type == ProgType::Tracing && kind == "fmod_ret" {
        return Err(Unplaceable::ChangesResult { section: owned() });
    }
    if let Some(calls) = rest.and_then(|rest| syscalls(prog_type, kind, rest)) {
        let call = calls.map_err(|problem| Unplaceable::Malformed { section: owned(), problem })?;
        return Ok(Place { when: When::Entry, module: None, what: What::Syscalls(call), offset: 0 });
    }
    if prog_type != ProgType::Kprobe && !typed {
        return Err(Unplaceable::KernelOnly { section: owned(), prog_type });
    }
    let not_yet = |what| Err(Unplaceable::NotYet { section: owned(), what });
    let (when, user) = match kind {
        "kprobe" | "fentry" => (When::Entry, false),
        "kretprobe" | "fexit" => (When::Return, false),
        "uprobe" | "uprobe.s" => (When::Entry, true),
        "uretprobe" | "uretprobe.s" => (When::Return, true),
        "ksyscall" | "kretsyscall" => return Err(Unplaceable::Syscall { section: owned() }),
        "usdt" | "usdt.s" => return not_yet("a USDT probe"),
        "kprobe.session" | "uprobe.session" | "uprobe.session.s" => return not_yet("a session probe"),
        _ => return not_yet("a multi-probe"),
    };
    let Some(rest) = rest.filter(|r| !r.is_empty()) else {
        return Err(Unplaceable::Unbound { section: owned(), when });
    };
    let malformed = |problem| Unplaceable::Malformed { section: owned(), problem };
    let (module, symbol) = match rest.rsplit_once(':') {
        Some((module, symbol)) if !module.is_empty() => (Some(module.to_owned()), symbol),
        Some(_) => return Err(malformed("the path before ':' is empty")),
        None if user => return Err(malformed("expected PATH:SYMBOL")),
        None => (None, rest),
    };
    let place = named(symbol, when, module).map_err(malformed)?;
    if typed && !place.is_function() {
        return Err(malformed("expected the name of a function"));
    }
    Ok(place)
}

/// The system calls that a tracepoint's section names; `None` if it is another tracepoint.
fn syscalls(prog_type: ProgType, kind: &str, rest: &str) -> Option<Result<Syscalls, &'static str>> {
    let name = match (prog_type, kind) {
        (ProgType::Tracepoint, "tp" | "tracepoint") => match rest.split_once('/')? {
            ("raw_syscalls", name) => name,
            ("syscalls", name) => {
                let named = name.strip_prefix("sys_enter_").map(|call| (false, call));
                let (exit, call) = named.or_else(|| Some((true, name.strip_prefix("sys_exit_")?)))?;
                let found = syscall::named(call).ok_or("there is no system call of that name on x86-64");
                return Some(found.map(|call| Syscalls { call: Some(call), exit }));
            }
            _ => return None,
        },
        (ProgType::RawTracepoint, "raw_tp" | "raw_tracepoint") => rest,
        _ => return None,
    };
    match name {
        "sys_enter" => Some(Ok(Syscalls { call: None, exit: false })),
        "sys_exit" => Some(Ok(Syscalls { call: None, exit: true })),
        _ => None,
    }
}

/// The place of a symbol with an optional `+OFFSET`, or of a number that stands for an offset in the file.
pub fn named(symbol: &str, when: When, module: Option<String>) -> Result<Place, &'static str> {
    let (symbol, offset) = match symbol.split_once('+') {
        Some((symbol, offset)) => (symbol, number(offset).ok_or("the offset after '+' is not a number")?),
        None => (symbol, 0),
    };
    let what = match number(symbol) {
        Some(n) if module.is_some() => What::FileOffset(n),
        Some(_) => return Err("an address needs a path before it"),
        None if symbol.is_empty() => return Err("the symbol is empty"),
        None => What::Symbol(symbol.to_owned()),
    };
    if when == When::Return && offset != 0 {
        return Err("a return probe has no offset");
    }
    Ok(Place { when, module, what, offset })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(section: &str) -> Result<String, String> {
        place(section, ProgType::Kprobe).map(|p| format!("{:?} {p}", p.when)).map_err(|e| e.to_string())
    }

    #[test]
    fn sections() {
        for (section, expected) in [
            ("kprobe/malloc", "Entry malloc"),
            ("?kprobe/malloc+0x10", "Entry malloc+0x10"),
            ("kprobe/malloc+16", "Entry malloc+0x10"),
            ("kretprobe/malloc", "Return malloc"),
            ("kprobe/libc.so.6:malloc", "Entry libc.so.6:malloc"),
            ("uprobe//usr/bin/bash:readline", "Entry /usr/bin/bash:readline"),
            ("uretprobe/libssl.so.3:SSL_read", "Return libssl.so.3:SSL_read"),
            ("uprobe.s/./a.out:f+4", "Entry ./a.out:f+0x4"),
            ("uprobe//bin/x:0x4010", "Entry /bin/x:0x4010"),
            ("uprobe//bin/x:f@VERS_1", "Entry /bin/x:f@VERS_1"),
        ] {
            assert_eq!(probe(section).as_deref(), Ok(expected), "{section}");
        }
    }

    #[test]
    fn system_calls() {
        let calls = |section, prog_type| match place(section, prog_type).map(|place| (place.to_string(), place.what)) {
            Ok((name, What::Syscalls(calls))) => format!("{name} {}", calls.record()),
            other => panic!("{section}: {other:?}"),
        };
        for (section, expected) in [
            ("tp/syscalls/sys_enter_openat", "sys_enter_openat 48"),
            ("tracepoint/syscalls/sys_exit_read", "sys_exit_read 24"),
            ("?tp/raw_syscalls/sys_enter", "sys_enter 64"),
            ("tracepoint/raw_syscalls/sys_exit", "sys_exit 24"),
        ] {
            assert_eq!(calls(section, ProgType::Tracepoint), expected);
        }
        assert_eq!(calls("raw_tp/sys_enter", ProgType::RawTracepoint), "sys_enter 64");
        assert!(place("raw_tp/sched_switch", ProgType::RawTracepoint).is_err());
    }

    #[test]
    fn refusals() {
        for (section, part) in [
            ("kprobe", "names no function"),
            ("uretprobe/", "names no function"),
            ("uprobe/readline", "expected PATH:SYMBOL"),
            ("kretprobe/f+4", "no offset"),
            ("kprobe/0x1000", "needs a path"),
            ("kprobe/f+x", "not a number"),
            ("uprobe/:f", "is empty"),
            ("kprobe/lib.so:", "is empty"),
            ("ksyscall/openat", "system call"),
            ("usdt/a:b:c", "USDT"),
            ("uprobe.multi/x:y*", "multi-probe"),
            ("kprobe.session/x", "session probe"),
        ] {
            let error = probe(section).unwrap_err();
            assert!(error.contains(part) && error.contains(section), "{section}: {error}");
        }
        let typed = |section| place(section, ProgType::Tracing).map(|p| format!("{:?} {p}", p.when));
        assert_eq!(typed("fentry/f").unwrap(), "Entry f");
        assert_eq!(typed("?fexit/libz.so.1:deflate").unwrap(), "Return libz.so.1:deflate");
        for (section, part) in [
            ("fentry/f+4", "name of a function"),
            ("fexit", "names no function"),
            ("fmod_ret/f", "cannot be changed"),
            ("tp_btf/sched_switch", "inside the kernel"),
            ("fentry.s/f", "inside the kernel"),
        ] {
            let error = typed(section).unwrap_err().to_string();
            assert!(error.contains(part), "{section}: {error}");
        }
        let error = place("tp/syscalls/sys_enter_stat", ProgType::Tracepoint).unwrap_err().to_string();
        assert!(error.contains("no system call of that name"), "{error}");
        let error = place("tp/sched/sched_switch", ProgType::Tracepoint).unwrap_err().to_string();
        assert!(error.contains("inside the kernel") && error.contains("tracepoint"), "{error}");
    }
}
