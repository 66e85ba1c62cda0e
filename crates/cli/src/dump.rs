//! `skep prog dump`: what the verifier left of a program's instructions, and the machine code that they become.

use std::path::Path;

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, SymbolResolver, SymbolResult};
use serde::Serialize;
use skep::ebpf::disasm::disasm;
use skep::ebpf::insn::Insn;
use skep::ebpf::program::LineInfo;
use skep::verifier::Verified;
use skep::{CompileOptions, Engine};

use crate::args::{Dump, Form};
use crate::explain::Named;
use crate::load::{Linker, object};
use crate::out::Out;
use crate::{Failure, eprint, road, say, status};

/// A program as `--json` prints it.
#[derive(Serialize)]
struct Line<'a> {
    object: &'a str,
    program: &'a str,
    #[serde(flatten)]
    code: Code,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Code {
    Xlated { insns: Vec<Xlated> },
    Jited { functions: Vec<Jited> },
}

/// A C line, in front of the first of its instructions.
#[derive(Serialize)]
struct Source {
    src: String,
    #[serde(flatten)]
    place: Option<Place>,
}

#[derive(Serialize)]
struct Place {
    file: String,
    line_num: u32,
    line_col: u32,
}

#[derive(Serialize)]
struct Xlated {
    /// Of a function's first instruction: the function's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    source: Option<Source>,
    #[serde(skip)]
    index: usize,
    disasm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    opcodes: Option<String>,
}

/// The code of a function.
#[derive(Serialize)]
struct Jited {
    name: String,
    insns: Vec<Native>,
}

#[derive(Serialize)]
struct Native {
    #[serde(flatten)]
    source: Option<Source>,
    pc: String,
    operation: String,
    operands: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opcodes: Option<String>,
}

pub fn main(args: &Dump) -> Result<u8, Failure> {
    let input = object(&args.object)?;
    let linker = Linker::new(&args.load);
    let all = input.object.programs().iter().map(|p| p.name.clone());
    let names: Vec<String> = all.filter(|n| args.progs.is_empty() || args.progs.contains(n)).collect();
    if let Some(absent) = args.progs.iter().find(|p| !names.contains(p)) {
        return Err(Failure::Input(format!("{}: no program is called {absent}", Path::display(&args.object))));
    }
    let mut out = Out::stdout();
    let (mut refused, mut unsupported) = (false, false);
    for (n, program) in names.iter().enumerate() {
        let code = match road::verified(&input.object, &linker, program).and_then(|v| code(args, &v)) {
            Ok(code) => code,
            Err(Failure::Refused { status, explanation }) => {
                eprint(&explanation);
                (refused, unsupported) = (refused | (status == status::NO), unsupported | (status != status::NO));
                continue;
            }
            Err(Failure::Unsupported(why)) => {
                say(format_args!("program {program}: {why}"));
                unsupported = true;
                continue;
            }
            Err(other) => return Err(other),
        };
        let line = Line { object: &input.path, program, code };
        if args.json {
            out.json(&line)?;
        } else {
            if n > 0 {
                out.line("")?;
            }
            text(&mut out, &line)?;
        }
    }
    out.flush()?;
    Ok(match (refused, unsupported) {
        (true, _) => status::NO,
        (_, true) => status::UNSUPPORTED,
        _ => status::OK,
    })
}

fn code(args: &Dump, verified: &Verified) -> Result<Code, Failure> {
    match args.form {
        Form::Xlated => Ok(Code::Xlated { insns: xlated(args, verified) }),
        Form::Jited => jited(args, verified).map(|functions| Code::Jited { functions }),
    }
}

impl Source {
    fn of(line: &LineInfo, args: &Dump) -> Source {
        let place = Place { file: line.file.to_string(), line_num: line.line, line_col: line.column };
        Source { src: line.text.trim().to_owned(), place: args.linum.then_some(place) }
    }

    fn text(&self) -> String {
        match &self.place {
            Some(Place { file, line_num, line_col }) => {
                format!("; {} [file:{file} line_num:{line_num} line_col:{line_col}]", self.src)
            }
            None => format!("; {}", self.src),
        }
    }
}

/// The name of a function by the index of its first instruction, as it is now.
fn function_name(verified: &Verified, start: u32) -> String {
    let program = verified.program();
    let info = verified.rewritten().func_info().iter().find(|f| f.insn == start);
    let typed = info.and_then(|f| program.btf.as_deref().map(|btf| btf.name(f.type_id)));
    match typed.filter(|n| !n.is_empty()) {
        Some(name) => name.to_owned(),
        None if start == 0 => program.name.clone(),
        None => format!("function_{start}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

fn xlated(args: &Dump, verified: &Verified) -> Vec<Xlated> {
    let rewritten = verified.rewritten();
    let names = Named::of(verified);
    let insns = rewritten.insns();
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(rest) = insns.get(at..).filter(|rest| !rest.is_empty()) {
        let len = if rest[0].is_ld_imm64() { 2 } else { 1 };
        let text = disasm(rest, &names).map_or_else(|e| format!("invalid: {e}"), |t| t.to_string());
        let starts = rewritten.functions().iter().any(|f| f.start as usize == at);
        let line = rewritten.line_info().iter().rfind(|l| l.insn as usize == at);
        let bytes = |i: &Insn| i.to_bytes();
        all.push(Xlated {
            name: starts.then(|| function_name(verified, at as u32)),
            source: line.map(|l| Source::of(l, args)),
            index: at,
            disasm: format!("({:02x}) {text}", rest[0].code),
            opcodes: args.opcodes.then(|| hex(&rest.iter().take(len).flat_map(bytes).collect::<Vec<_>>())),
        });
        at += len;
    }
    all
}

/// The functions that a function calls, by their distances from it.
struct Callees(Vec<(u64, String)>);

impl SymbolResolver for Callees {
    fn symbol(
        &mut self,
        _: &iced_x86::Instruction,
        _: u32,
        _: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let (at, name) = self.0.iter().find(|(at, _)| *at == address && address != 0)?;
        Some(SymbolResult::with_str(*at, name))
    }
}

fn jited(args: &Dump, verified: &Verified) -> Result<Vec<Jited>, Failure> {
    let options = CompileOptions { engine: Engine::Jit, ..CompileOptions::default() };
    let compiled = skep::jit::compile(verified, &options).map_err(|e| Failure::Unsupported(e.to_string()))?;
    let code = compiled.machine_code().unwrap_or_default();
    let rewritten = verified.rewritten();
    let starts = compiled.function_offsets();
    let names: Vec<String> = rewritten.functions().iter().map(|f| function_name(verified, f.start)).collect();
    // The first line of a function is where it begins; an instruction without code is where the next one is.
    let place = |insn: u32| {
        let function = rewritten.functions().iter().position(|f| f.start == insn).and_then(|n| starts.get(n)).copied();
        function.or_else(|| compiled.code_offsets().get(insn as usize..)?.iter().flatten().next().copied())
    };
    let lines: Vec<(u32, &LineInfo)> = rewritten.line_info().iter().filter_map(|l| Some((place(l.insn)?, l))).collect();
    let mut functions = Vec::new();
    for (n, (&start, name)) in starts.iter().zip(&names).enumerate() {
        let end = starts.get(n + 1).map_or(code.len(), |e| *e as usize);
        let distance = |to: u32| u64::from(to).wrapping_sub(u64::from(start));
        let callees = starts.iter().zip(&names).map(|(&to, name)| (distance(to), name.clone())).collect();
        let mut formatter = GasFormatter::with_options(Some(Box::new(Callees(callees))), None);
        formatter.options_mut().set_small_hex_numbers_in_decimal(false);
        let body = code.get(start as usize..end).unwrap_or_default();
        let mut insns = Vec::new();
        for insn in Decoder::with_ip(64, body, 0, DecoderOptions::NONE).iter() {
            let mut text = String::new();
            formatter.format(&insn, &mut text);
            let (operation, operands) = text.split_once(' ').unwrap_or((&text, ""));
            let at = insn.ip() as usize;
            // Of several lines at one place the last.
            let line = lines.iter().rfind(|(l, _)| *l == start + at as u32);
            insns.push(Native {
                source: line.map(|(_, l)| Source::of(l, args)),
                pc: format!("{at:#x}"),
                operation: operation.to_owned(),
                operands: split(operands),
                opcodes: args.opcodes.then(|| hex(body.get(at..at + insn.len()).unwrap_or_default())),
            });
        }
        functions.push(Jited { name: name.clone(), insns });
    }
    Ok(functions)
}

/// Operands at their commas, but for those of addresses.
fn split(operands: &str) -> Vec<String> {
    let mut depth = 0;
    let parts = operands.split(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
}

fn text(out: &mut Out, line: &Line<'_>) -> Result<(), Failure> {
    match &line.code {
        Code::Xlated { insns } => {
            for insn in insns {
                if let Some(name) = &insn.name {
                    out.line(format_args!("{name}:"))?;
                }
                if let Some(source) = &insn.source {
                    out.line(source.text())?;
                }
                out.line(format_args!("{:4}: {}", insn.index, insn.disasm))?;
                if let Some(opcodes) = &insn.opcodes {
                    out.line(format_args!("      {opcodes}"))?;
                }
            }
        }
        Code::Jited { functions } => {
            for function in functions {
                out.line(format_args!("{}:", function.name))?;
                for insn in &function.insns {
                    if let Some(source) = &insn.source {
                        out.line(source.text())?;
                    }
                    let pc = insn.pc.trim_start_matches("0x");
                    let (operation, operands) = (&insn.operation, insn.operands.join(", "));
                    out.line(format!("{pc:>4}:\t{operation:<7} {operands}").trim_end())?;
                    if let Some(opcodes) = &insn.opcodes {
                        out.line(format_args!("\t{opcodes}"))?;
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn operands_of_addresses_stay_together() {
        assert_eq!(split("$1,(%r8,%rax,8)"), ["$1", "(%r8,%rax,8)"]);
        assert_eq!(split("0x10(%r12), %r11"), ["0x10(%r12)", "%r11"]);
        assert!(split("").is_empty());
    }
}
