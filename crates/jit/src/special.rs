//! What a program does besides calling functions and helpers: functions that are called back, kernel functions,
//! exceptions.

use std::collections::BTreeMap;

use skep_ebpf::Insn;
use skep_ebpf::btf::{Btf, Kind};
use skep_ebpf::insn::{class, jmp, pseudo};
use skep_runtime::helpers;
use skep_verifier::Verified;

use crate::CompileError;
use crate::calls::Subprog;

/// A kernel function that is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kfunc {
    /// The runtime has it, at this place of its table; it looks at so many arguments.
    Entry { entry: u32, args: u8 },
    /// The application has it, at this place of its table.
    Host { index: u32, args: u8 },
    /// `bpf_throw`.
    Throw,
}

/// A call of a helper that calls a function of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CallBack {
    /// The function, by its index, if it is always the same.
    pub(crate) function: Option<u32>,
    /// A `bpf_loop` without flags that always calls that function.
    pub(crate) plain_loop: bool,
}

/// What there is, by instruction.
#[derive(Debug, Default)]
pub(crate) struct Special {
    pub(crate) kfuncs: BTreeMap<u32, Kfunc>,
    pub(crate) callbacks: BTreeMap<u32, CallBack>,
    /// The function that exceptions end in, by its index.
    pub(crate) catches: Option<u32>,
}

/// Nothing of all that.
pub(crate) static NONE: Special = Special { kfuncs: BTreeMap::new(), callbacks: BTreeMap::new(), catches: None };

/// True if this is the first half of a load of a function's address.
pub(crate) fn names_function(insn: Insn) -> bool {
    insn.is_ld_imm64() && insn.src() == pseudo::FUNC
}

/// True for `may_goto`.
pub(crate) fn is_may_goto(insn: Insn) -> bool {
    insn.class() == class::JMP && insn.op() == jmp::JCOND
}

/// True if one of these instructions is a `may_goto`.
pub(crate) fn has_may_goto(insns: &[Insn], marks: &[u32]) -> bool {
    marked(insns, marks).any(|(_, i)| is_may_goto(i))
}

/// The [marked](crate::marks) instructions, with their places.
pub(crate) fn marked(insns: &[Insn], marks: &[u32]) -> impl Iterator<Item = (usize, Insn)> {
    marks.iter().filter_map(|&i| Some((i as usize, *insns.get(i as usize)?)))
}

impl Special {
    /// What a program that was verified and rewritten has of that.
    pub(crate) fn of(verified: &Verified, marks: &[u32]) -> Result<Special, CompileError> {
        let known = verified.rewritten();
        let catches = known.functions().iter().position(|f| f.catches).map(|f| f as u32);
        let mut special = Special { catches, ..Special::default() };
        for (i, insn) in marked(known.insns(), marks) {
            if insn.is_kfunc_call() {
                let name = kfunc_name(verified.kernel_types(), insn);
                let found = match name {
                    Some(name) if verified.host().is_some() => host_function(verified, name, insn),
                    Some("bpf_throw") => Some(Kfunc::Throw),
                    Some(name) => helpers::kernel_function(name).map(|(entry, args)| Kfunc::Entry { entry, args }),
                    None => None,
                };
                let missing = || CompileError::Kfunc {
                    program: verified.program().name.clone(),
                    insn: i as u32,
                    name: name.map_or_else(|| format!("BTF id {}", insn.imm), str::to_owned),
                };
                special.kfuncs.insert(i as u32, found.ok_or_else(missing)?);
            } else if insn.is_helper_call() && helpers::calls_back(insn.imm as u32) {
                let site = known.call(i);
                let plain_loop = site.plain_loop && site.callback.is_some();
                special.callbacks.insert(i as u32, CallBack { function: site.callback, plain_loop });
            }
        }
        Ok(special)
    }

    /// True if an exception may be thrown.
    pub(crate) fn throws(&self) -> bool {
        self.kfuncs.values().any(|k| *k == Kfunc::Throw)
    }
}

/// A function of the application.
fn host_function(verified: &Verified, name: &str, insn: Insn) -> Option<Kfunc> {
    let (host, types) = (verified.host()?, verified.kernel_types()?);
    let Some(&Kind::Func { proto, .. }) = types.kind(insn.imm as u32) else { return None };
    let Some(Kind::FuncProto { params, .. }) = types.kind(proto) else { return None };
    let args = u8::try_from(params.len()).ok().filter(|n| *n <= 5)?;
    Some(Kfunc::Host { index: host.function(name)?.index, args })
}

fn kfunc_name(types: Option<&Btf>, insn: Insn) -> Option<&str> {
    let id = u32::try_from(insn.imm).ok().filter(|_| insn.off == 0)?;
    types.map(|btf| btf.name(id)).filter(|name| !name.is_empty())
}

/// The functions whose addresses the program takes, by index.
pub(crate) fn named_functions(insns: &[Insn], marks: &[u32], subprogs: &[Subprog]) -> Vec<usize> {
    let mut found = Vec::new();
    for (i, insn) in marked(insns, marks) {
        if names_function(insn) {
            let start = i as i64 + 1 + i64::from(insn.imm);
            found.extend(subprogs.iter().position(|s| i64::from(s.start) == start));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}
