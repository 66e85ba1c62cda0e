//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use skep::subsystem::sampling::Event;

/// The Linux eBPF subsystem in user space: no root, no kernel module, no VM.
#[derive(Parser, Debug)]
#[command(name = "skep", version, arg_required_else_help = true)]
#[command(after_help = "Answers go to standard output, status and progress to standard error.\n\
    Exit status: 0 all well; 1 the answer is no; 2 wrong usage or unreadable input;\n\
    3 nothing was rejected, but something could not be judged.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Judge every program of some objects as the kernel's verifier would
    Check(Check),
    /// Run programs of an object on given data
    Run(Run),
    /// Attach an object's programs to functions of a process and print what they see
    Trace(Trace),
    /// Run a loader of BPF programs on this subsystem
    Exec(NotYet),
    /// Show programs
    #[command(subcommand)]
    Prog(Prog),
    /// Show maps
    Map(NotYet),
    /// Show links
    Link(NotYet),
    /// Make types (BTF)
    Btf(Btf),
    /// Show perf events
    Perf(NotYet),
}

/// How programs are loaded.
#[derive(Args, Debug, Clone, Default)]
pub struct Load {
    /// The kernel's types (BTF), then those of its modules: a file, MODULE=FILE or a folder, repeatable [default: all of
    /// /sys/kernel/btf]
    #[arg(long, value_name = "FILE")]
    pub btf: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Check {
    /// Print one JSON object per program
    #[arg(long)]
    pub json: bool,
    /// Judge only the program of this C function
    #[arg(long = "prog", value_name = "NAME")]
    pub prog: Option<String>,
    #[command(flatten)]
    pub load: Load,
    /// Rules of this kernel [default: the newest known]
    #[arg(long, value_name = "PROFILE")]
    pub kernel: Option<String>,
    /// Flags of the load, as a number; else what the program's decl tag asks for
    #[arg(long = "prog-flags", value_name = "N", value_parser = number)]
    pub prog_flags: Option<u32>,
    /// Judge as for a process without capabilities, where kernel.unprivileged_bpf_disabled is 0
    #[arg(long)]
    pub unprivileged: bool,
    /// Print the verifier's log
    #[arg(long)]
    pub log: bool,
    /// Print what the work was, and the C lines that took most of it
    #[arg(long)]
    pub stats: bool,
    /// Print one SARIF 2.1.0 document, for annotations in CI
    #[arg(long, conflicts_with = "json")]
    pub sarif: bool,
    /// Object files
    #[arg(required = true, value_name = "OBJECT")]
    pub objects: Vec<PathBuf>,
}

/// What runs a program.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Machine code
    Jit,
    /// The interpreter
    Interp,
}

impl Engine {
    /// The one that was asked for, or the fastest that is built in.
    pub fn or_best(asked: Option<Engine>) -> skep::Engine {
        match asked {
            Some(Engine::Jit) => skep::Engine::Jit,
            Some(Engine::Interp) => skep::Engine::Interpreter,
            None => skep::Engine::default(),
        }
    }
}

#[derive(Args, Debug)]
pub struct Run {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Object file
    #[arg(value_name = "OBJECT")]
    pub object: PathBuf,
    /// Programs by C function name, run in this order; the last one's result is printed
    #[arg(long = "prog", value_name = "NAME", required = true)]
    pub progs: Vec<String>,
    /// Packet [default: 64 zero bytes]
    #[arg(long, value_name = "FILE")]
    pub data_in: Option<PathBuf>,
    /// Context [default: zeros]
    #[arg(long, value_name = "FILE")]
    pub ctx_in: Option<PathBuf>,
    /// Runs of the last program
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeat: u32,
    /// Engine [default: the fastest that is built in]
    #[arg(long)]
    pub engine: Option<Engine>,
    #[command(flatten)]
    pub load: Load,
}

#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("target").required(true).multiple(true).args(["pid", "exe", "command"]))]
#[command(
    after_help = "Exit status with several processes: 2 if none could be attached to, 3 if some could not be.\n\n\
    A program whose section is a bare `kprobe` or `kretprobe` (also `uprobe`, `uretprobe`) is \
    attached to every function that --func names."
)]
pub struct Trace {
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
    /// End after this many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub duration: Option<std::time::Duration>,
    /// Wait for symbols that are absent: a library may be loaded later
    #[arg(long)]
    pub wait: bool,
    /// Trace forked children, too, and what they execute
    #[arg(long)]
    pub follow: bool,
    /// Function for programs whose section names none: [PATH:]SYMBOL[+OFFSET]; may be given several times
    #[arg(long = "func", value_name = "NAME")]
    pub funcs: Vec<String>,
    /// Engine [default: the fastest that is built in]
    #[arg(long)]
    pub engine: Option<Engine>,
    /// Write /tmp/perf-PID.map: the programs' code by name, for profilers
    #[arg(long)]
    pub perf_map: bool,
    /// Write a dump of the programs' code to a new folder in DIR, for `perf inject --jit`
    #[arg(long, value_name = "DIR")]
    pub jitdump: Option<PathBuf>,
    /// What perf_event programs sample: cpu-clock, page-faults, cycles, … or write:ADDRESS[:BYTES], access:ADDRESS[:BYTES]
    #[arg(long, value_name = "EVENT", default_value = "cpu-clock", value_parser = sampled)]
    pub sample: Event,
    /// Samples a second of processor time [default: 99, or each access to memory]
    #[arg(long, value_name = "HZ", value_parser = positive)]
    pub freq: Option<u64>,
    /// Events per sample
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "freq")]
    pub period: Option<u64>,
    /// Print call chains that maps count as lines of folded stacks, for flame graphs, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub folded: bool,
    /// Type of the records in a ring buffer or perf event array
    #[arg(long = "event", value_name = "MAP=STRUCT", value_parser = event)]
    pub events: Vec<(String, String)>,
    #[command(flatten)]
    pub load: Load,
    /// Object file
    #[arg(value_name = "OBJECT")]
    pub object: PathBuf,
    /// Trace a running process; may be given several times
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    /// Trace all processes of an executable, those that start later too (looked for ten times a second); may be given several
    /// times
    #[arg(long, value_name = "PATH")]
    pub exe: Vec<PathBuf>,
    /// Trace a command from its start
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pid", "exe"])]
    pub command: Vec<OsString>,
}

#[derive(Subcommand, Debug)]
pub enum Prog {
    /// Print the instructions of an object's programs as the verifier leaves them, or their machine code
    Dump(Dump),
    /// List programs
    #[command(visible_alias = "list")]
    Show(NotYet),
}

/// What is dumped.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Instructions, rewritten
    Xlated,
    /// Machine code
    Jited,
}

#[derive(Args, Debug)]
pub struct Dump {
    /// What to print
    pub form: Form,
    /// Object file
    #[arg(value_name = "OBJECT")]
    pub object: PathBuf,
    /// Only the program of this C function; may be given several times
    #[arg(long = "prog", value_name = "NAME")]
    pub progs: Vec<String>,
    /// Print one JSON object per program
    #[arg(long)]
    pub json: bool,
    /// Print the bytes of each instruction, too
    #[arg(long)]
    pub opcodes: bool,
    /// Print file, line and column of each C line, too
    #[arg(long)]
    pub linum: bool,
    #[command(flatten)]
    pub load: Load,
}

#[derive(Args, Debug)]
pub struct Btf {
    #[command(subcommand)]
    pub command: BtfCommand,
}

#[derive(Subcommand, Debug)]
pub enum BtfCommand {
    /// Make the types of an executable's or library's functions from its debug information (DWARF)
    Gen(BtfGen),
}

#[derive(Args, Debug)]
pub struct BtfGen {
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Name the functions that are left out
    #[arg(short, long)]
    pub verbose: bool,
    /// Executable or library that was built with -g
    #[arg(value_name = "BINARY")]
    pub binary: PathBuf,
}

#[derive(Args, Debug)]
pub struct NotYet {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<OsString>,
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a number from 0 to {:#x}", u32::MAX))
}

fn positive(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("{text:?} is not a number above 0"))
}

/// An event by its name, or accesses to memory.
fn sampled(text: &str) -> Result<Event, String> {
    let (reads, rest) = match text.split_once(':') {
        Some(("write", rest)) => (false, rest),
        Some(("access", rest)) => (true, rest),
        _ => return text.parse(),
    };
    let hex = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
    let (address, len) = rest.split_once(':').unwrap_or((rest, "8"));
    let address = hex(address).ok_or_else(|| format!("{address:?} is no address (hexadecimal)"))?;
    let len = len.parse().ok().filter(|n| matches!(n, 1 | 2 | 4 | 8)).ok_or("1, 2, 4 or 8 bytes can be watched")?;
    if address % len != 0 {
        return Err(format!("{address:#x} is no multiple of {len}"));
    }
    Ok(Event::Access { address, len, reads })
}

fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text:?}: {e}"))
}

fn event(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((map, ty)) if !map.is_empty() && !ty.is_empty() => Ok((map.to_owned(), ty.to_owned())),
        _ => Err(format!("{text:?} is not of the form MAP=STRUCT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surface_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["skep"], words].concat())
    }

    #[test]
    fn trace_wants_a_command_or_processes() {
        assert!(parse(&["trace", "a.o"]).is_err());
        assert!(parse(&["trace", "a.o", "--exe", "/bin/ls", "--", "ls"]).is_err());
        let Command::Trace(t) = parse(&["trace", "a.o", "--pid", "1", "--pid", "2", "--exe", "x"]).unwrap().command
        else {
            panic!()
        };
        assert_eq!((&t.pid[..], t.exe.len()), (&[1, 2][..], 1));
        assert!(parse(&["trace", "a.o", "--pid", "1", "--", "ls"]).is_err());
        let cli = parse(&["trace", "--duration", "0.5", "a.o", "--", "ls", "-l", "--pid"]).unwrap();
        let Command::Trace(t) = cli.command else { panic!() };
        assert_eq!(t.command, ["ls", "-l", "--pid"]);
        assert_eq!(t.duration, Some(std::time::Duration::from_millis(500)));
    }

    #[test]
    fn bad_values_are_named() {
        for (words, named) in [
            (&["check", "--prog-flags", "x", "a.o"][..], "\"x\""),
            (&["trace", "--event", "ring", "a.o", "--pid", "1"], "MAP=STRUCT"),
            (&["trace", "--duration", "-1", "a.o", "--pid", "1"], "-1"),
            (&["run", "a.o"], "--prog"),
        ] {
            let error = parse(words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
