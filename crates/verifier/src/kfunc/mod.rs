//! Calls of kernel functions: who may call, what each argument must be, what is held, released and returned.
//!
//! The kernel's BTF has the prototypes. What a parameter wants follows from its type and from the suffix of its name
//! (`__k` a constant, `__sz` the size of the memory before it, …): see [`arg`]. Each kind of argument is one function
//! here, in a file by theme.

mod arg;
mod callback;
mod dynptr;
mod graph;
mod iter;
mod memory;
mod object;
mod result;
mod special;

use std::collections::BTreeSet;

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind as Type, Param};
use skep_ebpf::insn::{Insn, call};
use skep_ebpf::kfunc::{Kfunc, flag as kf};
use skep_ebpf::program::Program;

pub(crate) use special::{calls_back, calls_later, moves_packet};

use crate::env::{Env, Next};
use crate::fail::{Check, Failure, denied, invalid, unsupported};
use crate::iterators::IterArg;
use crate::object::Field;
use crate::object::timer::MapIdentity;
use crate::reason::Reason;
use crate::reg::Reg;
use crate::stack_object::Dynptr;
use crate::{HostContext, Options};

/// Most kernel functions that a program may call.
const MAX_DIFFERENT: usize = 256;
/// Decl tag of kernel functions.
const TAG: &str = "bpf_kfunc";
/// A kernel function that every kernel with such functions has.
const ALWAYS_THERE: &str = "bpf_rcu_read_lock";

/// One call while it is checked: the function, and what its arguments have taught so far.
pub(crate) struct KfuncCall<'p> {
    pub row: &'p Kfunc,
    /// The kernel's types.
    pub btf: &'p Btf,
    pub params: &'p [Param],
    /// Type returned.
    pub ret: u32,
    /// The constant among the arguments.
    pub constant: Option<u64>,
    /// Size of the memory that is returned, and whether it is only for reading.
    pub memory: Option<(u32, bool)>,
    /// The reference behind an argument, 0 if none.
    pub reference: u32,
    /// The register whose reference the call releases.
    pub releases: Option<u8>,
    /// The dynptr argument that is initialised.
    pub dynptr: Option<Dynptr>,
    /// The iterator argument.
    pub iter: Option<IterArg>,
    /// The map argument.
    pub map: Option<u32>,
    /// The function that is called back.
    pub function: Option<u32>,
    /// The allocated object among the arguments: what is returned may be of its type.
    pub object: Option<Reg>,
    /// The list head or tree root among the arguments.
    pub root: Option<Field>,
    /// The map that a work queue or the like is in.
    pub identity: Option<MapIdentity>,
    /// The kernel's type behind the context.
    pub context: Option<u32>,
}

impl KfuncCall<'_> {
    pub fn name(&self) -> &'static str {
        self.row.name
    }

    pub fn has(&self, flags: u32) -> bool {
        self.row.has(flags)
    }
}

/// The kernel functions as the program's calls name them.
#[derive(Clone, Copy)]
pub(crate) struct Kfuncs<'p> {
    btf: Option<&'p Btf>,
    host: Option<&'p HostContext>,
}

impl<'p> Kfuncs<'p> {
    pub fn new(options: &'p Options) -> Kfuncs<'p> {
        Kfuncs::of(options.btf.as_deref(), options.host.as_deref())
    }

    /// Those of this kernel's types, or of an application.
    pub fn of(btf: Option<&'p Btf>, host: Option<&'p HostContext>) -> Kfuncs<'p> {
        Kfuncs { btf, host }
    }

    /// The row of the function that is called, if it has one.
    pub fn row(&self, i: Insn) -> Option<&'p Kfunc> {
        if !is_call(i) || i.off != 0 {
            return None;
        }
        let (btf, func) = (self.btf?, u32::try_from(i.imm).ok()?);
        match self.host {
            // An application has no functions but its own.
            Some(host) => host.function(btf.name(func)).map(|f| &f.row),
            None => registered(btf, func),
        }
    }

    /// Number of arguments of the function that is called, if that is known.
    pub fn args(&self, i: Insn) -> Option<usize> {
        if !is_call(i) || i.off != 0 {
            return None;
        }
        prototype(self.btf?, u32::try_from(i.imm).ok()?).map(|(_, params)| params.len())
    }

    /// The function that is called returns nothing, if that is known.
    pub fn is_void(&self, i: Insn) -> Option<bool> {
        prototype(self.btf?, u32::try_from(i.imm).ok()?).map(|(ret, _)| ret == 0)
    }
}

/// True for calls of kernel functions.
pub(crate) fn is_call(i: Insn) -> bool {
    i.code == skep_ebpf::insn::CALL && i.src() == call::KFUNC
}

/// The row of a function, if the kernel has registered it. Newer BTF tags such functions; functions of one name with
/// one of the table may be there without being for programs, as their configuration has it.
fn registered(btf: &Btf, func: u32) -> Option<&'static Kfunc> {
    let tagged = |id| btf.decl_tags(id).any(|(tag, _)| tag == TAG);
    if !matches!(btf.kind(func), Some(Type::Func { .. })) {
        return None;
    }
    let everywhere = || btf.find(ALWAYS_THERE, |k| matches!(k, Type::Func { .. })).is_some_and(tagged);
    let row = match btf.module_of(func) {
        None => Kfunc::by_name(btf.name(func)),
        Some(module) => Kfunc::of_module(module, btf.name(func)),
    };
    row.filter(|_| tagged(func) || !everywhere())
}

/// What a function returns and takes.
fn prototype(btf: &Btf, func: u32) -> Option<(u32, &[Param])> {
    let Some(Type::Func { proto, .. }) = btf.kind(func) else { return None };
    match btf.kind(*proto) {
        Some(Type::FuncProto { ret, params }) => Some((*ret, params)),
        _ => None,
    }
}

/// What is checked of all calls, reached or not, before the program is looked at.
pub(crate) fn check_calls(program: &Program, options: &Options) -> Check {
    let whole = |f: Box<Failure>| f.whole();
    let mut different = BTreeSet::new();
    for (at, i) in program.insns.iter().enumerate().filter(|(_, i)| is_call(**i)) {
        if options.host.is_none() && !program.gpl_compatible() {
            return invalid!(
                HelperNeedsGpl,
                "kernel functions are for programs with a GPL-compatible licence; this one's is {:?}",
                program.license
            )
            .map_err(whole);
        }
        if names_nothing(*i) {
            continue;
        }
        different.insert((i.imm, i.off));
        if different.len() > MAX_DIFFERENT {
            let message = format!("the program calls more than {MAX_DIFFERENT} different kernel functions");
            return Err(Failure::new(Errno::E2BIG, Reason::ProgramSize, message).whole());
        }
        let Some(btf) = options.btf.as_deref().filter(|_| i.off == 0) else { continue };
        let func = u32::try_from(i.imm).ok().filter(|id| matches!(btf.kind(*id), Some(Type::Func { .. })));
        let Some((func, (_, params))) = func.and_then(|f| Some((f, prototype(btf, f)?))) else {
            return invalid!(UnknownKfunc, "the call at {at} names type {} of the kernel, which is no function", i.imm)
                .map_err(whole);
        };
        let device_bound = crate::target::is_device_bound(program, options);
        if !device_bound && registered(btf, func).is_some_and(|k| k.has(kf::DEVICE_BOUND)) {
            return invalid!(
                KfuncNotAllowed,
                "{} is for programs that are bound to a network device, which this one is not",
                btf.name(func)
            )
            .map_err(whole);
        }
        if params.len() > 12 {
            return invalid!(UnknownKfunc, "{} takes {} arguments", btf.name(func), params.len()).map_err(whole);
        }
    }
    Ok(())
}

/// Of a program that is right otherwise: calls that no path reaches must name functions all the same.
pub(crate) fn check_unreached(program: &Program, options: &Options) -> Check {
    let unknown = |i: Insn| is_call(i) && !names_nothing(i) && (options.btf.is_none() || i.off != 0);
    match program.insns.iter().position(|i| unknown(*i)) {
        None => Ok(()),
        Some(at) => unsupported!(
            UnsupportedKfunc,
            "whether the kernel has the function that is called here (on no path) cannot be told without its types"
        )
        .map_err(|f: Box<Failure>| f.at(at)),
    }
}

/// True for the call that loaders leave where the kernel lacks a function: it must not be reached, that is all.
fn names_nothing(i: Insn) -> bool {
    i.imm == 0 && i.off == 0
}

impl<'p> Env<'p> {
    /// Checks a call of a kernel function.
    pub fn check_kfunc_call(&mut self, i: Insn) -> Check<Next> {
        let mut call = self.resolve_kfunc(i)?;
        let name = call.name();
        self.check_kfunc_under_lock(name)?;
        if call.has(kf::SLEEPABLE) && !self.may_sleep() {
            return denied!(HelperSleeps, "{name} may sleep, this program must not");
        }
        if name == "__bpf_trap" {
            return Err(Failure::new(
                Errno::EFAULT,
                Reason::UninitializedRegister,
                "the compiler marked this place as one that uses a variable without a value".into(),
            ));
        }
        self.kfunc_branches(&call)?;
        self.check_kfunc_args(&mut call)?;
        self.note_kfunc(call.params.len(), call.function);
        self.kfunc_callback(&call)?;
        self.kfunc_sections(&call)?;
        self.kfunc_release(&call)?;
        self.kfunc_hand_over(&call)?;
        if name == "bpf_throw" {
            return self.throw();
        }
        self.clear_caller_saved();
        let r0 = self.kfunc_result(&call)?;
        *self.state.reg_mut(0) = r0;
        if special::moves_packet(name) {
            self.forget_packet();
        }
        if call.has(kf::ITER_NEXT) {
            self.kfunc_iter_next(&call)?;
        }
        Ok(Next::At(self.insn + 1))
    }

    /// The function that is called, if programs like this one may call it.
    fn resolve_kfunc(&self, i: Insn) -> Check<KfuncCall<'p>> {
        if i.imm == 0 {
            return invalid!(UnknownKfunc, "the call names no kernel function");
        }
        if i.off != 0 {
            return unsupported!(UnsupportedKfunc, "functions of kernel modules are not judged");
        }
        let Some(btf) = self.options.btf.as_deref() else {
            return unsupported!(UnsupportedKfunc, "without the kernel's types its functions cannot be judged");
        };
        let id = i.imm as u32;
        let Some((ret, params)) = prototype(btf, id) else {
            return invalid!(UnknownKfunc, "type {id} of the kernel is no function");
        };
        let row = Kfuncs::new(self.options).row(i);
        let allowed =
            |k: &&Kfunc| self.options.host.is_some() || k.allowed_in(self.prog.prog_type, self.prog.attach_type);
        let Some(row) = row.filter(allowed) else {
            if let Some(host) = self.options.host.as_deref() {
                return denied!(KfuncNotAllowed, "programs for {} cannot call {}", host.hook, btf.name(id));
            }
            return denied!(
                KfuncNotAllowed,
                "programs of type {} cannot call the kernel's {}",
                self.prog.prog_type,
                btf.name(id)
            );
        };
        Ok(KfuncCall {
            row,
            btf,
            params,
            ret,
            constant: None,
            memory: None,
            reference: 0,
            releases: None,
            dynptr: None,
            iter: None,
            map: None,
            function: None,
            object: None,
            root: None,
            identity: None,
            context: None,
        })
    }

    /// Gives back the reference that the call releases.
    fn kfunc_release(&mut self, call: &KfuncCall<'_>) -> Check {
        let Some(r) = call.releases else { return Ok(()) };
        let reference = self.state.reg(r).ref_id;
        if !self.release(reference) {
            return invalid!(ReleaseWithoutAcquire, "{} is given a reference that is not held", call.name());
        }
        Ok(())
    }
}
