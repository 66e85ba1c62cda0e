//! Links one program: its function first, then each subprogram where it is first used, depth first.

use std::collections::HashMap;

use skep_ebpf::Insn;
use skep_ebpf::btf::{Btf, Kind, essential_name};
use skep_ebpf::insn::{self, pseudo};
use skep_ebpf::program::{Absent, FuncInfo, LineInfo};

use crate::ElfError;
use crate::core::{CoreKind, POISON, Relocator, compat};
use crate::externs::{Extern, ExternKind, fault};
use crate::functions::{Target, containing};
use crate::kconfig;
use crate::object::{Object, ProgramInfo};
use crate::options::LoadOptions;

/// The helper that the call of an absent weak kernel function becomes, plus the extern's index; libbpf's number.
const POISON_KFUNC: i32 = 2_002_000_000;
/// Decl tag of a program that names the function its exceptions end in.
const EXCEPTION_CALLBACK: &str = "exception_callback:";

/// What comes out.
pub(crate) struct Linked {
    pub insns: Vec<Insn>,
    pub func_info: Vec<FuncInfo>,
    pub line_info: Vec<LineInfo>,
    pub absent: Vec<Absent>,
}

pub(crate) struct Linker<'a> {
    object: &'a Object,
    info: &'a ProgramInfo,
    options: &'a LoadOptions,
    out: Vec<Insn>,
    /// Functions in the order of the output, and where each begins.
    order: Vec<(usize, usize)>,
    /// The same, by function.
    placed: HashMap<usize, usize>,
    absent: Vec<Absent>,
}

impl<'a> Linker<'a> {
    pub fn new(object: &'a Object, info: &'a ProgramInfo, options: &'a LoadOptions) -> Linker<'a> {
        Linker { object, info, options, out: Vec::new(), order: Vec::new(), placed: HashMap::new(), absent: Vec::new() }
    }

    /// Links the program whose main function is `main`.
    pub fn link(mut self, main: usize) -> Result<Linked, ElfError> {
        self.add_with_callees(main)?;
        if let Some(callback) = self.exception_callback()?
            && !self.placed.contains_key(&callback)
        {
            self.add_with_callees(callback)?;
        }
        if self.out.len() > insn::MAX_INSNS {
            let problem = format!("{} instructions are more than {}", self.out.len(), insn::MAX_INSNS);
            return Err(self.fault(problem));
        }
        self.relocate_types()?;
        self.relocate_symbols()?;
        let (func_info, line_info) = self.debug_info();
        Ok(Linked { insns: self.out, func_info, line_info, absent: self.absent })
    }

    fn fault(&self, problem: String) -> ElfError {
        ElfError::Program { program: self.info.name.clone(), problem }
    }

    fn section(&self, number: usize) -> String {
        self.object.sections.get(number).cloned().unwrap_or_default()
    }

    fn append(&mut self, function: usize) {
        let at = self.out.len();
        if let Some(f) = self.object.functions.get(function) {
            self.out.extend_from_slice(&f.insns);
        }
        self.order.push((function, at));
        self.placed.insert(function, at);
    }

    /// Appends a function and what it calls that is not there yet, and points the calls at it.
    fn add_with_callees(&mut self, function: usize) -> Result<(), ElfError> {
        self.append(function);
        // Function and the next instruction of it to look at.
        let mut stack = vec![(function, 0)];
        while let Some((function, at)) = stack.pop() {
            let (Some(f), Some(&start)) = (self.object.functions.get(function), self.placed.get(&function)) else {
                continue;
            };
            let mut at = at;
            while let Some(&insn) = f.insns.get(at) {
                if let Some((callee, inside)) = self.callee(function, at, insn)? {
                    let Some(&there) = self.placed.get(&callee) else {
                        // Look at this instruction again when the callee and its callees are in place.
                        self.append(callee);
                        stack.push((function, at));
                        stack.push((callee, 0));
                        break;
                    };
                    let distance = (there + inside) as i64 - (start + at) as i64 - 1;
                    if let Some(slot) = self.out.get_mut(start + at) {
                        slot.imm = distance as i32;
                        if slot.is_ld_imm64() {
                            slot.regs = slot.dst() | pseudo::FUNC << 4;
                        }
                    }
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// The function that an instruction calls or takes the address of, and the instruction in it.
    fn callee(&self, function: usize, at: usize, insn: Insn) -> Result<Option<(usize, usize)>, ElfError> {
        let is_call = insn.is_subprog_call();
        let takes_address = insn.is_ld_imm64();
        let Some(f) = self.object.functions.get(function).filter(|_| is_call || takes_address) else { return Ok(None) };
        let (section, index) = match f.target(at) {
            Some(Err(e)) => return Err(e.clone()),
            Some(Ok(Target::Code { section, offset })) => {
                let index = match is_call {
                    true => (offset / 8) as i64 + i64::from(insn.imm) + 1,
                    false => (*offset as i64).wrapping_add(insn.imm.into()) / 8,
                };
                (*section, index)
            }
            Some(Ok(_)) => return Ok(None),
            None if is_call => (f.section, (f.start + at) as i64 + i64::from(insn.imm) + 1),
            None => return Ok(None),
        };
        let index = usize::try_from(index).ok();
        let found = index.and_then(|index| {
            let callee = containing(&self.object.functions, section, index)?;
            Some((callee, index - self.object.functions.get(callee)?.start))
        });
        match found {
            Some(found) => Ok(Some(found)),
            None => Err(ElfError::CallTarget { section: self.section(f.section), offset: (f.start + at) as u64 * 8 }),
        }
    }

    /// The function that the program's exceptions end in; it is used though nothing calls it.
    fn exception_callback(&self) -> Result<Option<usize>, ElfError> {
        let Some(btf) = self.object.btf() else { return Ok(None) };
        let Some(id) = btf.find(&self.info.name, |k| matches!(k, Kind::Func { .. })) else { return Ok(None) };
        let mut names = btf.decl_tags(id).filter(|t| t.1 == -1).filter_map(|t| t.0.strip_prefix(EXCEPTION_CALLBACK));
        let (Some(name), None) = (names.next(), names.next()) else { return Ok(None) };
        let is_it = |f: &crate::functions::Function| {
            f.name == name && f.global && !f.hidden && self.section(f.section) == crate::functions::TEXT
        };
        match self.object.functions.iter().position(is_it) {
            Some(f) => Ok(Some(f)),
            None => Err(self.fault(format!("its exception callback `{name}` is no global function of the object"))),
        }
    }

    /// CO-RE, in the order in which the functions stand in the object: what one relocation rules out, others must not use.
    fn relocate_types(&mut self) -> Result<(), ElfError> {
        let mut order = self.order.clone();
        order.sort_unstable();
        let Some(local) = self.object.btf() else { return Ok(()) };
        let nothing = Btf::default();
        let mut relocator = Relocator::new(local, self.options.btf.as_deref().unwrap_or(&nothing));
        for (function, start) in order {
            let Some(f) = self.object.functions.get(function) else { continue };
            for (at, record) in &f.core {
                let kind = CoreKind::from_u32(record.kind);
                if self.options.btf.is_none() && kind != Some(CoreKind::TypeIdLocal) {
                    let what = format!("CO-RE relocations of `{}`", local.name(record.type_id));
                    return Err(ElfError::NoBtf { program: self.info.name.clone(), what });
                }
                let code = self.out.get_mut(start..).unwrap_or_default();
                relocator.apply(code, *at, record).map_err(|e| ElfError::Core {
                    section: self.section(f.section),
                    offset: record.insn_off.into(),
                    kind: kind.map_or("?", CoreKind::name).to_owned(),
                    symbol: local.name(record.type_id).to_owned(),
                    problem: e.to_string(),
                })?;
                if !self.options.all_types
                    && self.out.get(start + at).is_some_and(|i| i.code == insn::CALL && i.imm == POISON)
                    && relocator.is_absent(record)
                {
                    let what = format!("type `{}`", essential_name(local.name(record.type_id)));
                    self.absent.push(Absent { insn: Some((start + at) as u32), what });
                }
            }
        }
        Ok(())
    }

    /// Maps, data and externs.
    fn relocate_symbols(&mut self) -> Result<(), ElfError> {
        let object = self.object;
        for (function, start) in self.order.clone() {
            let Some(f) = object.functions.get(function) else { continue };
            for (at, target) in &f.refs {
                let target = target.as_ref().map_err(Clone::clone)?;
                let old = f.insns.get(*at).copied().unwrap_or_default();
                let reference = match *target {
                    Target::Code { .. } => continue,
                    Target::Map(map) => Reference::Load { src: pseudo::MAP_IDX, imm: map as i32, next: None },
                    Target::Data { map, offset } => {
                        let next = Some(old.imm.wrapping_add(offset as i32));
                        Reference::Load { src: pseudo::MAP_IDX_VALUE, imm: map as i32, next }
                    }
                    Target::Extern(index) => match object.externs.get(index) {
                        Some(e) => {
                            if !self.options.all_types && self.is_absent(e) {
                                let what = format!("extern `{}`", e.name);
                                self.absent.push(Absent { insn: Some((start + at) as u32), what });
                            }
                            self.resolve(e, index, old.code == insn::CALL)?
                        }
                        None => continue,
                    },
                };
                match (reference, self.out.get_mut(start + at..)) {
                    (Reference::Call(call), Some([slot, ..])) => *slot = call,
                    (Reference::Load { src, imm, next }, Some([first, second, ..])) => {
                        first.regs = first.dst() | src << 4;
                        first.imm = imm;
                        second.imm = next.unwrap_or(second.imm);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What an instruction that names an extern becomes.
    fn resolve(&self, e: &Extern, index: usize, call: bool) -> Result<Reference, ElfError> {
        match &e.kind {
            ExternKind::Unknown(problem) => Err(fault(&e.name, problem.as_str())),
            ExternKind::Kconfig { .. } if call => Err(fault(&e.name, "a configuration value cannot be called")),
            ExternKind::Kconfig { offset, .. } => {
                let known = kconfig::value(e, self.options.kconfig.as_ref(), self.options.kernel_version)?.is_some();
                if !known && !e.weak {
                    return Err(fault(&e.name, "the kernel's configuration has no such value"));
                }
                let map = self.object.kconfig.ok_or_else(|| fault(&e.name, "there is no map for it"))?;
                Ok(Reference::Load { src: pseudo::MAP_IDX_VALUE, imm: map as i32, next: Some(*offset as i32) })
            }
            ExternKind::Ksym { ty: 0, .. } => match self.options.ksyms.get(&e.name) {
                _ if call => Err(fault(&e.name, "it is called but has no function type")),
                None if !e.weak => Err(fault(&e.name, "the kernel has no such symbol")),
                address => Ok(Reference::address(address.unwrap_or(0))),
            },
            ExternKind::Ksym { ty, function } => {
                let id = self.kernel_id(e, *ty, *function)?;
                match (id, call) {
                    (Some(id), true) => Ok(Reference::Call(Insn::new(insn::CALL, 0, insn::call::KFUNC, 0, id as i32))),
                    (Some(id), false) => Ok(Reference::Load { src: pseudo::BTF_ID, imm: id as i32, next: Some(0) }),
                    (None, true) => {
                        let imm = POISON_KFUNC.saturating_add(i32::try_from(index).unwrap_or(0));
                        Ok(Reference::Call(Insn::new(insn::CALL, 0, 0, 0, imm)))
                    }
                    (None, false) => Ok(Reference::address(0)),
                }
            }
        }
    }

    /// The kernel's BTF id of a function or variable; `None` if it is weak and absent.
    fn kernel_id(&self, e: &Extern, ty: u32, function: bool) -> Result<Option<u32>, ElfError> {
        let what = || ElfError::NoBtf { program: self.info.name.clone(), what: format!("extern `{}`", e.name) };
        let (Some(kernel), Some(local)) = (&self.options.btf, self.object.btf()) else { return Err(what()) };
        let id = find(kernel, e, function);
        let kernel_ty = match id.and_then(|id| kernel.kind(id)) {
            Some(&Kind::Func { proto, .. }) => Some(proto),
            Some(&Kind::Var { ty, .. }) => kernel.resolve(ty),
            _ => None,
        };
        let (Some(id), Some(kernel_ty)) = (id, kernel_ty) else {
            if !e.weak && !self.options.all_types {
                let what = format!("extern `{}` is in none of the types that were given; it may be a module's", e.name);
                return Err(ElfError::Unsupported { program: self.info.name.clone(), what });
            }
            let message = if function { "the kernel has no such function" } else { "the kernel has no such variable" };
            return if e.weak { Ok(None) } else { Err(fault(&e.name, message)) };
        };
        match compat::types(local, ty, kernel, kernel_ty) {
            Ok(true) => Ok(Some(id)),
            // Several kernels' versions of a function may be declared weak side by side.
            _ if e.weak && function => Ok(None),
            Ok(false) => Err(fault(&e.name, "the kernel declares it with another type")),
            Err(problem) => Err(fault(&e.name, problem.to_string())),
        }
    }

    /// True for what the kernel's types do not have: a module may.
    fn is_absent(&self, e: &Extern) -> bool {
        match (&e.kind, &self.options.btf) {
            (ExternKind::Ksym { ty: 1.., function }, Some(kernel)) => find(kernel, e, *function).is_none(),
            _ => false,
        }
    }

    /// Functions and lines of the output. As the kernel wants all or none, the main function decides for all.
    fn debug_info(&self) -> (Vec<FuncInfo>, Vec<LineInfo>) {
        let (mut funcs, mut lines) = (Vec::new(), Vec::new());
        let main = self.order.first().and_then(|&(f, _)| self.object.functions.get(f));
        let (with_funcs, with_lines) =
            main.map_or((false, false), |f| (!f.func_info.is_empty(), !f.line_info.is_empty()));
        for &(function, start) in &self.order {
            let Some(f) = self.object.functions.get(function) else { continue };
            let start = start as u32;
            if with_funcs {
                funcs.extend(f.func_info.iter().map(|r| FuncInfo { insn: r.insn + start, ..*r }));
            }
            if with_lines {
                lines.extend(f.line_info.iter().map(|r| LineInfo { insn: r.insn + start, ..r.clone() }));
            }
        }
        (funcs, lines)
    }
}

/// The function or variable of the kernel that an extern means.
fn find(kernel: &Btf, e: &Extern, function: bool) -> Option<u32> {
    if function {
        kernel.find(essential_name(&e.name), |k| matches!(k, Kind::Func { .. }))
    } else {
        kernel.find(&e.name, |k| matches!(k, Kind::Var { .. }))
    }
}

/// What an instruction that names an extern becomes.
enum Reference {
    Call(Insn),
    /// `next`: the second slot's immediate, if it changes.
    Load {
        src: u8,
        imm: i32,
        next: Option<i32>,
    },
}

impl Reference {
    fn address(address: u64) -> Reference {
        Reference::Load { src: 0, imm: address as i32, next: Some((address >> 32) as i32) }
    }
}

/// Contents of `.kconfig`. What is unknown stays zero: programs that use it are refused unless it is weak.
pub(crate) fn kconfig_data(externs: &[Extern], size: u32, options: &LoadOptions) -> Vec<u8> {
    let mut data = vec![0; size as usize];
    for e in externs {
        let ExternKind::Kconfig { offset, .. } = e.kind else { continue };
        let value = kconfig::value(e, options.kconfig.as_ref(), options.kernel_version);
        let Ok(Some(value)) = value else { continue };
        let slot = data.get_mut(offset as usize..).and_then(|d| d.get_mut(..value.len()));
        if let Some(slot) = slot {
            slot.copy_from_slice(&value);
        }
    }
    data
}
