//! `skep run`: programs of one object on given data.

use std::path::{Path, PathBuf};

use serde::Serialize;
use skep::ebpf::uapi::ProgType;
use skep::jit::Engine;
use skep::subsystem::session::{Options, Session};
use skep::subsystem::testrun::{TestInput, TestOutput};

use crate::args::{self, Run};
use crate::judge::time;
use crate::load::{Linker, object};
use crate::out::Out;
use crate::road;
use crate::value::hex;
use crate::{Failure, say, status};

/// The packet of programs that take one, if none is given.
const DEFAULT_PACKET: [u8; 64] = [0; 64];
/// The arguments of raw tracepoints, if none are given.
const DEFAULT_ARGUMENTS: [u8; 96] = [0; 96];

/// A result as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    program: &'a str,
    /// Signed, as the programs' return type.
    retval: i32,
    duration_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_out: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx_out: Option<String>,
    engine: &'static str,
}

pub fn main(args: &Run) -> Result<u8, Failure> {
    let Some((last, before)) = args.progs.split_last() else { return Ok(status::OK) };
    let data = file(&args.data_in)?;
    let ctx = file(&args.ctx_in)?;
    let input = object(&args.object)?;
    let engine = args::Engine::or_best(args.engine);
    let linker = Linker::new(&args.load);
    let mut names = args.progs.clone();
    names.extend(crate::trace::plan::called(&input.object));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let programs = names.iter().map(|name| road::verified(&input.object, &linker, name));
    let programs = programs.collect::<Result<Vec<_>, _>>()?;
    // Nobody waits for the program but the user: it may take as long as it takes.
    let options = Options { links: 1, budget: 0, engine, ..Options::default() };
    let session = road::session(programs, &options)?;
    for name in before {
        run(&session, name, &data, &ctx, 1)?;
    }
    let output = run(&session, last, &data, &ctx, args.repeat)?;
    print(args, last, engine, &output)?;
    Ok(status::OK)
}

fn file(path: &Option<PathBuf>) -> Result<Option<Vec<u8>>, Failure> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| Failure::Input(format!("{}: {e}", path.display())));
    path.as_deref().map(read).transpose()
}

fn run(
    session: &Session,
    name: &str,
    data: &Option<Vec<u8>>,
    ctx: &Option<Vec<u8>>,
    repeat: u32,
) -> Result<TestOutput, Failure> {
    let program = session.program(name).map_err(Failure::input)?;
    let prog_type = session.program_at(program).map(|p| p.prog_type());
    let registers = matches!(prog_type, Some(ProgType::Kprobe | ProgType::RawTracepoint));
    let raw = prog_type == Some(ProgType::RawTracepoint);
    let input = TestInput {
        data: data.as_deref().or((!registers).then_some(&DEFAULT_PACKET[..])),
        ctx: ctx.as_deref().or(raw.then_some(&DEFAULT_ARGUMENTS[..])),
        repeat,
    };
    session.test_run(program, &input).map_err(|e| Failure::Input(format!("program {name}: {e}")))
}

fn print(args: &Run, name: &str, engine: Engine, output: &TestOutput) -> Result<(), Failure> {
    let mut out = Out::stdout();
    let line = Line {
        program: name,
        retval: output.retval.cast_signed(),
        duration_ns: output.duration_ns,
        data_out: output.data.as_deref().map(hex),
        ctx_out: output.ctx.as_deref().map(hex),
        engine: engine.name(),
    };
    if args.json {
        out.json(&line)?;
    } else {
        let also = if line.retval < 0 { format!(" ({:#x})", output.retval) } else { String::new() };
        out.line(format_args!("{name}: returned {}{also} in {}", line.retval, time(output.duration_ns)))?;
        if let Some(data) = &line.data_out {
            out.line(format_args!("data: {data}"))?;
        }
        if let Some(ctx) = &line.ctx_out {
            out.line(format_args!("ctx:  {ctx}"))?;
        }
    }
    out.flush()?;
    if args.repeat == 0 {
        say("--repeat 0 ran it once, as the kernel does");
    }
    Ok(())
}
