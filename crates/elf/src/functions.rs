//! Functions of an object: where they stand, what their instructions refer to, their types and lines.

use std::collections::HashMap;
use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::btf::ext::{BtfExt, CoreRecord, Section as ExtSection};
use skep_ebpf::btf::{Btf, BtfError};
use skep_ebpf::insn;
use skep_ebpf::program::{FuncInfo, LineInfo};
use skep_ebpf::uapi::MapType;

use crate::ElfError;
use crate::container::{Binding, Container, Place, Reloc, SectionKind, Symbol, SymbolKind};
use crate::externs::Extern;
use crate::maps::Placed;
use crate::sections::{DataKind, data_kind};

/// Section of the functions that are no programs themselves.
pub(crate) const TEXT: &str = ".text";

/// A function: a program or a subprogram.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub name: String,
    pub section: usize,
    /// First instruction in the section.
    pub start: usize,
    pub insns: Vec<Insn>,
    /// Visible outside of the object's code.
    pub global: bool,
    pub hidden: bool,
    /// What instructions refer to, by their index in the function.
    pub refs: Vec<(usize, Result<Target, ElfError>)>,
    /// CO-RE records, by the index of the instruction in the function.
    pub core: Vec<(usize, CoreRecord)>,
    /// Counted from the start of the function, as are the lines.
    pub func_info: Vec<FuncInfo>,
    pub line_info: Vec<LineInfo>,
}

/// What an instruction refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A map, by index.
    Map(usize),
    /// A byte of a map's first value.
    Data { map: usize, offset: u32 },
    /// An extern, by index.
    Extern(usize),
    /// A place in a section of code, in bytes; the instruction's immediate counts from there.
    Code { section: usize, offset: u64 },
}

impl Function {
    /// What instruction `at` refers to.
    pub fn target(&self, at: usize) -> Option<&Result<Target, ElfError>> {
        let i = self.refs.binary_search_by_key(&at, |r| r.0).ok()?;
        self.refs.get(i).map(|r| &r.1)
    }
}

/// The function that contains an instruction of a section. `functions` is sorted by section and start.
pub(crate) fn containing(functions: &[Function], section: usize, at: usize) -> Option<usize> {
    let i = functions.partition_point(|f| (f.section, f.start) <= (section, at)).checked_sub(1)?;
    let f = functions.get(i)?;
    (f.section == section && at - f.start < f.insns.len()).then_some(i)
}

/// All functions, sorted by section and start; without what they refer to.
pub(crate) fn discover(container: &Container<'_>) -> Result<Vec<Function>, ElfError> {
    let mut functions = Vec::new();
    let mut symbols: HashMap<usize, Vec<&Symbol<'_>>> = HashMap::new();
    for s in container.symbols.iter().filter(|s| !s.name.is_empty()) {
        if let Place::Section(n) = s.place {
            symbols.entry(n).or_default().push(s);
        }
    }
    for (number, sec) in container.sections.iter().enumerate() {
        if !sec.executable || sec.kind != SectionKind::Contents || sec.data.is_empty() {
            continue;
        }
        let section = || sec.name.to_owned();
        let size = sec.data.len() as u64;
        if !size.is_multiple_of(8) {
            return Err(ElfError::SectionSize { section: section(), size, unit: "instructions" });
        }
        let code: Vec<Insn> = sec.data.as_chunks::<8>().0.iter().map(|b| Insn::from_bytes(*b)).collect();
        for (name, offset, length, global, hidden) in
            spans(sec.name, symbols.get(&number).map_or(&[], Vec::as_slice), size)
        {
            let bounds = || ElfError::FunctionBounds { section: section(), symbol: name.into(), offset, size: length };
            let end = offset.checked_add(length).filter(|&e| e <= size && offset % 8 == 0 && length % 8 == 0);
            let end = end.filter(|_| length > 0).ok_or_else(bounds)?;
            let (start, end) = ((offset / 8) as usize, (end / 8) as usize);
            let insns = code.get(start..end).ok_or_else(bounds)?.to_vec();
            functions.push(Function {
                name: name.to_owned(),
                section: number,
                start,
                insns,
                global,
                hidden,
                refs: Vec::new(),
                core: Vec::new(),
                func_info: Vec::new(),
                line_info: Vec::new(),
            });
        }
    }
    functions.sort_by_key(|f| (f.section, f.start));
    Ok(functions)
}

/// Name, offset, length, whether global, whether hidden of the functions of a section. Old compilers did not mark
/// functions: then each global symbol begins one, and if there is none the whole section is one.
fn spans<'a>(section: &'a str, symbols: &[&Symbol<'a>], size: u64) -> Vec<(&'a str, u64, u64, bool, bool)> {
    let mut marks: Vec<&Symbol<'a>> = symbols.iter().copied().filter(|s| s.kind == SymbolKind::Func).collect();
    let marked = !marks.is_empty();
    if !marked {
        let plain = |s: &&Symbol<'_>| s.kind == SymbolKind::None && s.binding != Binding::Local;
        marks.extend(symbols.iter().copied().filter(plain));
    }
    marks.sort_by_key(|s| s.value);
    if marks.is_empty() {
        return vec![(section, 0, size, true, false)];
    }
    let mut out = Vec::new();
    let mut next = (size, size);
    for s in marks.iter().rev() {
        // Several names may stand for one place.
        if s.value != next.0 {
            next = (s.value, next.0);
        }
        let length = if s.size != 0 { s.size } else { next.1.saturating_sub(s.value) };
        out.push((s.name, s.value, length, s.binding != Binding::Local, s.hidden));
    }
    out.reverse();
    // What stands before the first plain symbol belongs to the same program.
    if !marked && let Some(first) = out.first_mut() {
        first.2 = first.2.saturating_add(first.1);
        first.1 = 0;
    }
    out
}

/// Reads the relocations of all sections with functions.
pub(crate) fn collect_refs(
    container: &Container<'_>,
    functions: &mut [Function],
    maps: &[Placed],
    externs: &[Extern],
) -> Result<(), ElfError> {
    let resolver = Resolver {
        container,
        maps: maps.iter().enumerate().map(|(i, m)| ((m.section, m.offset), i)).collect(),
        externs: externs.iter().enumerate().map(|(i, e)| (e.symbol, i)).collect(),
        arena: maps.iter().position(|m| m.def.map_type == MapType::Arena),
    };
    for (number, sec) in container.sections.iter().enumerate() {
        if !sec.executable {
            continue;
        }
        for r in &sec.relocs {
            let fault = |problem: String| ElfError::Reloc {
                section: sec.name.to_owned(),
                offset: r.offset,
                symbol: container.symbol_name(r.symbol).to_owned(),
                problem,
            };
            if r.offset % 8 != 0 || r.offset >= sec.size {
                return Err(fault("not at an instruction of the section".into()));
            }
            // A weak function that the linker replaced leaves its relocations behind.
            let at = (r.offset / 8) as usize;
            let Some(f) = containing(functions, number, at).and_then(|i| functions.get_mut(i)) else { continue };
            let at = at - f.start;
            let Some(insn) = f.insns.get(at) else { continue };
            let target = resolver.target(r, *insn).map_err(fault);
            f.refs.push((at, target));
        }
    }
    for f in functions {
        f.refs.sort_by_key(|r| r.0);
        f.refs.dedup_by_key(|r| r.0);
    }
    Ok(())
}

struct Resolver<'a> {
    container: &'a Container<'a>,
    /// By section and offset.
    maps: HashMap<(usize, u64), usize>,
    /// By symbol.
    externs: HashMap<usize, usize>,
    arena: Option<usize>,
}

impl Resolver<'_> {
    fn target(&self, r: &Reloc, insn: Insn) -> Result<Target, String> {
        let sym = self.container.symbols.get(r.symbol).ok_or("no such symbol")?;
        let is_call = insn.code == insn::CALL;
        if !is_call && !insn.is_ld_imm64() {
            return Err(format!("instruction {:#04x} cannot refer to a symbol", insn.code));
        }
        let number = match sym.place {
            Place::Section(n) => n,
            Place::Undefined => {
                let found = self.externs.get(&r.symbol).copied();
                return found.map(Target::Extern).ok_or_else(|| "undefined symbol".into());
            }
            Place::Special => return Err("in no section; is it a variable without an initial value?".into()),
        };
        let sec = self.container.sections.get(number).ok_or("no such section")?;
        if sec.executable {
            if is_call && insn.src() != insn::call::SUBPROG {
                return Err("the call is not one of a function of the program".into());
            }
            if sym.value % 8 != 0 {
                return Err("the symbol is not at an instruction".into());
            }
            return Ok(Target::Code { section: number, offset: sym.value });
        }
        if is_call {
            return Err(format!("a call cannot lead to data in section `{}`", sec.name));
        }
        let offset = u32::try_from(sym.value).map_err(|_| "the symbol's offset is too big")?;
        match data_kind(sec.name) {
            Some(DataKind::Maps | DataKind::LegacyMaps | DataKind::StructOps) => {
                // A static map is named by its section and the offset in the instruction.
                let addend = if sym.kind == SymbolKind::Section { insn.imm as u32 } else { 0 };
                let offset = u64::from(offset) + u64::from(addend);
                let found = self.maps.get(&(number, offset)).copied();
                found.map(Target::Map).ok_or_else(|| format!("no map at offset {offset} of section `{}`", sec.name))
            }
            Some(DataKind::Arena) => {
                let map = self.arena.ok_or("the object defines no arena map")?;
                Ok(Target::Data { map, offset })
            }
            Some(DataKind::Rodata | DataKind::Data | DataKind::Bss) => {
                let map = self.maps.get(&(number, 0)).copied();
                let map = map.ok_or_else(|| format!("section `{}` is empty", sec.name))?;
                Ok(Target::Data { map, offset })
            }
            _ => Err(format!("section `{}` is neither code, data nor maps", sec.name)),
        }
    }
}

/// Hands the records of `.BTF.ext` to the functions they belong to.
pub(crate) fn collect_ext(container: &Container<'_>, functions: &mut [Function], btf: &Btf) -> Result<(), ElfError> {
    let Some(sec) = container.section(".BTF.ext") else { return Ok(()) };
    let fault = |source: BtfError| ElfError::Btf { section: ".BTF.ext", source };
    let ext = BtfExt::parse(sec.data).map_err(fault)?;
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    for (i, s) in container.sections.iter().enumerate() {
        numbers.entry(s.name).or_insert(i);
    }
    let number = |name_off| btf.str_at(name_off).and_then(|name| numbers.get(name).copied());

    each(
        &ext.funcs,
        number,
        |r| r.insn_off,
        functions,
        |f, at, r| {
            f.func_info.push(FuncInfo { insn: at as u32, type_id: r.type_id });
        },
    );
    let mut texts: HashMap<u32, Arc<str>> = HashMap::new();
    let mut text = |off| texts.entry(off).or_insert_with(|| btf.str_at(off).unwrap_or("").trim_end().into()).clone();
    each(
        &ext.lines,
        number,
        |r| r.insn_off,
        functions,
        |f, at, r| {
            let (file, text) = (text(r.file_name_off), text(r.line_off));
            f.line_info.push(LineInfo { insn: at as u32, file, text, line: r.line(), column: r.column() });
        },
    );
    each(&ext.relos, number, |r| r.insn_off, functions, |f, at, r| f.core.push((at, *r)));
    for f in functions {
        f.func_info.sort_by_key(|r| r.insn);
        f.line_info.sort_by_key(|r| r.insn);
        // Stable: the compiler's order is kept for records of one instruction.
        f.core.sort_by_key(|r| r.0);
    }
    Ok(())
}

/// Calls `take` with each record, the function it belongs to and the instruction's index in that function. Records of
/// functions that the linker left out belong to none.
fn each<T>(
    sections: &[ExtSection<T>],
    number: impl Fn(u32) -> Option<usize>,
    offset: impl Fn(&T) -> u32,
    functions: &mut [Function],
    mut take: impl FnMut(&mut Function, usize, &T),
) {
    for s in sections {
        let Some(section) = number(s.name_off) else { continue };
        for r in &s.records {
            let (at, odd) = ((offset(r) / 8) as usize, offset(r) % 8);
            let Some(i) = containing(functions, section, at).filter(|_| odd == 0) else { continue };
            if let Some(f) = functions.get_mut(i) {
                let start = f.start;
                take(f, at - start, r);
            }
        }
    }
}
