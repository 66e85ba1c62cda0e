//! What programs that attach by BTF hang on: looked up and judged before their instructions are.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Kind as Type, Param};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType, ProgType, prog_flags};

use crate::Options;
use crate::fail::{Check, Failure, invalid, unsupported};
use crate::hook_facts as facts;
use crate::kernel_types::Types;
use crate::reason::Reason;

/// What a program attaches to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hook<'p> {
    /// Name of the function, tracepoint, hook, iterator or member, without prefix; empty if there is none.
    pub name: &'p str,
    /// The types of the prototype: the kernel's, or those of the program that is attached to.
    pub types: Option<Types<'p>>,
    /// Return type and parameters as the context has them; `None` where they are not relied on, and all are numbers.
    pub proto: Option<(u32, &'p [Param])>,
    /// The struct of operations that the program implements a member of.
    pub ops: Option<&'p str>,
    /// Type of the program that is attached to; for an extension that of the program it extends.
    pub target: Option<ProgType>,
    /// The same, but an extension is one.
    pub target_type: Option<ProgType>,
    /// The program replaces a function of another program.
    pub extends: bool,
}

impl Hook<'_> {
    /// True if the hook, tracepoint or function returns nothing.
    pub fn returns_nothing(&self) -> bool {
        self.proto.is_some_and(|(ret, _)| ret == 0)
    }
}

fn refuse<T>(errno: Errno, text: String) -> Check<T> {
    Err(Failure::new(errno, Reason::AttachTarget, text).whole())
}

/// True if programs of this type and attach type may sleep.
fn can_sleep(prog: &Program) -> bool {
    match prog.prog_type {
        ProgType::Tracing => matches!(
            prog.attach_type,
            Some(AttachType::TraceFentry | AttachType::TraceFexit | AttachType::ModifyReturn | AttachType::TraceIter)
        ),
        ProgType::Lsm => prog.attach_type != Some(AttachType::LsmCgroup),
        ProgType::Kprobe | ProgType::StructOps | ProgType::Syscall => true,
        _ => false,
    }
}

/// Finds what the program attaches to, and checks that it may.
pub(crate) fn resolve<'p>(prog: &'p Program, options: &'p Options, moves_packet: bool) -> Check<Hook<'p>> {
    let sleeps = prog.flags & prog_flags::SLEEPABLE != 0;
    if prog.prog_type == ProgType::Syscall && !sleeps {
        return invalid!(ProgramType, "programs of type syscall must be sleepable")
            .map_err(|f: Box<Failure>| f.whole());
    }
    if sleeps && !can_sleep(prog) {
        return invalid!(ProgramType, "programs of type {} with this attach type cannot sleep", prog.prog_type)
            .map_err(|f: Box<Failure>| f.whole());
    }
    match prog.prog_type {
        ProgType::StructOps => member(prog, options),
        ProgType::Tracing | ProgType::Lsm | ProgType::Ext => match &options.target {
            Some(target) => crate::target::resolve(prog, target, options, moves_packet),
            None if prog.prog_type == ProgType::Ext => {
                refuse(Errno::EINVAL, "no program is given whose function this one is to replace".into())
            }
            None => kernel(prog, options),
        },
        _ => Ok(Hook::default()),
    }
}

/// The kernel's types, which nothing here can do without.
fn kernel_types(options: &Options) -> Check<Types<'_>> {
    match options.btf.as_deref() {
        Some(btf) => Ok(Types::new(btf)),
        None => {
            unsupported!(KernelTypes, "the program attaches by the kernel's types (BTF), which are needed to judge it")
                .map_err(|f: Box<Failure>| f.whole())
        }
    }
}

/// Operations: the program implements a member of a struct of function pointers.
fn member<'p>(prog: &'p Program, options: &'p Options) -> Check<Hook<'p>> {
    if !prog.gpl_compatible() {
        return refuse(Errno::EINVAL, "implementations of kernel operations need a GPL-compatible licence".into());
    }
    let id = prog.attach_btf_id;
    if id == 0 {
        return refuse(Errno::ENOTSUPP, "the program names no struct whose operation it implements".into());
    }
    let types = kernel_types(options)?;
    let ops = types.btf.name(id);
    let composite = match types.btf.kind(id) {
        Some(Type::Struct(c)) if types.find_struct(&format!("bpf_struct_ops_{ops}")).is_some() => c,
        _ => return refuse(Errno::ENOTSUPP, format!("programs cannot implement {}", types.title(id))),
    };
    let index = prog.attach_type.map_or(0, |a| a as usize);
    let Some(m) = composite.members.get(index) else {
        return refuse(Errno::EINVAL, format!("{} has no member {index}", types.title(id)));
    };
    let name = types.btf.str_at(m.name_off).unwrap_or("");
    let proto = match types.resolved(m.ty) {
        Some((_, &Type::Ptr { ty })) => types.resolved(ty).and_then(|(id, _)| types.prototype(id)),
        _ => None,
    };
    if proto.is_none() {
        return refuse(Errno::EINVAL, format!("the member {name} of {} is no function", types.title(id)));
    }
    if facts::NOT_IMPLEMENTABLE.contains(&(ops, name)) {
        return refuse(Errno::ENOTSUPP, format!("programs cannot implement {name} of {}", types.title(id)));
    }
    let sleeps = prog.flags & prog_flags::SLEEPABLE != 0;
    let listed = facts::SLEEPING_MEMBERS.iter().find(|(s, _)| *s == ops);
    if sleeps && listed.is_some_and(|(_, members)| !members.contains(&name)) {
        return refuse(Errno::EINVAL, format!("{name} of {} cannot be sleepable", types.title(id)));
    }
    Ok(Hook { name, types: Some(types), proto, ops: Some(ops), ..Hook::default() })
}

/// Functions, hooks, tracepoints and iterators of the kernel.
fn kernel<'p>(prog: &'p Program, options: &'p Options) -> Check<Hook<'p>> {
    let id = prog.attach_btf_id;
    if id == 0 {
        return refuse(
            Errno::EINVAL,
            format!("{} names nothing in the kernel that the program can attach to", named(prog)),
        );
    }
    let types = kernel_types(options)?;
    let Some(kind) = types.btf.kind(id) else {
        return refuse(Errno::EINVAL, format!("the kernel has no type {id} to attach to"));
    };
    let full = types.btf.name(id);
    let hook = Hook { name: full, types: Some(types), ..Hook::default() };
    let (Some(how), sleeps) = (prog.attach_type, prog.flags & prog_flags::SLEEPABLE != 0) else {
        return refuse(Errno::EINVAL, "the program has no attach type".into());
    };
    if options.process {
        check_process_function(prog, full, how, sleeps)?;
    }
    if how == AttachType::TraceRawTp && prog.prog_type == ProgType::Tracing {
        let Type::Typedef { ty } = *kind else {
            return refuse(Errno::EINVAL, format!("{full} is no tracepoint"));
        };
        let Some(name) = full.strip_prefix("btf_trace_") else {
            return refuse(Errno::EINVAL, format!("{full} is no tracepoint"));
        };
        let proto = match types.btf.kind(ty) {
            Some(&Type::Ptr { ty }) => types.prototype(ty),
            _ => None,
        };
        return match proto {
            Some(_) => Ok(Hook { name, proto, ..hook }),
            None => refuse(Errno::EINVAL, format!("the tracepoint {name} has no prototype")),
        };
    }
    let known = matches!(
        (prog.prog_type, how),
        (
            ProgType::Tracing,
            AttachType::TraceIter | AttachType::TraceFentry | AttachType::TraceFexit | AttachType::ModifyReturn
        ) | (ProgType::Lsm, AttachType::LsmMac | AttachType::LsmCgroup)
    );
    if !known {
        return refuse(Errno::EINVAL, format!("programs of type {} do not attach as {how}", prog.prog_type));
    }
    if !matches!(kind, Type::Func { .. }) {
        return refuse(Errno::EINVAL, format!("{full} is no function of the kernel"));
    }
    let Some(proto) = types.prototype(id) else {
        return refuse(Errno::EINVAL, format!("{full} has no prototype"));
    };
    check_prototype(types, full, proto, how, options.profile.since(6, 18))?;
    let mut hook = Hook { proto: Some(proto), ..hook };
    if options.process {
        return Ok(hook);
    }
    match how {
        AttachType::TraceIter => {
            let target = full.strip_prefix("bpf_iter_");
            let known = target.filter(|t| types.find_struct(&format!("bpf_iter__{t}")).is_some());
            match known {
                Some(target) => hook.name = target,
                None => return refuse(Errno::EINVAL, format!("{full} is no iterator")),
            }
            return Ok(hook);
        }
        AttachType::LsmMac | AttachType::LsmCgroup => {
            hook.name = check_lsm(types, prog, full, sleeps)?;
            return Ok(hook);
        }
        _ => {}
    }
    check_function(types, options, id, full, how, sleeps)?;
    Ok(hook)
}

/// The name that the program says it attaches to.
fn named(prog: &Program) -> &str {
    if prog.attach_to.is_empty() { "its section" } else { &prog.attach_to }
}

/// Hooks of security modules.
fn check_lsm<'p>(types: Types<'_>, prog: &Program, full: &'p str, sleeps: bool) -> Check<&'p str> {
    let hook = full.strip_prefix("bpf_lsm_");
    if sleeps && !hook.is_some_and(|h| facts::LSM_SLEEPABLE.contains(&h)) {
        return refuse(Errno::EINVAL, format!("{full} may be called where nothing can sleep"));
    }
    if !prog.gpl_compatible() {
        return refuse(Errno::EINVAL, "programs on security hooks need a GPL-compatible licence".into());
    }
    match hook {
        Some(hook) if facts::LSM_DISABLED.contains(&hook) => {
            refuse(Errno::EINVAL, format!("programs cannot attach to the hook {hook}"))
        }
        Some(hook) if is_hook(types, hook) => Ok(hook),
        _ => refuse(Errno::EINVAL, format!("{full} is no hook of security modules")),
    }
}

/// True for a hook: the kernel has a list of functions for each, a member of a union.
fn is_hook(types: Types<'_>, name: &str) -> bool {
    let lists = types.btf.find("security_list_options", |k| matches!(k, Type::Union(_)));
    lists.is_some_and(|id| types.member(id, &[name]).is_some())
}

/// Functions of a process: programs run before and behind them, and change nothing.
fn check_process_function(prog: &Program, name: &str, how: AttachType, sleeps: bool) -> Check {
    let around = matches!(how, AttachType::TraceFentry | AttachType::TraceFexit);
    if prog.prog_type != ProgType::Tracing || !around {
        let what =
            if how == AttachType::ModifyReturn { "cannot change what it returns" } else { "do not attach to it" };
        return refuse(Errno::EINVAL, format!("{name} is a function of a process: programs {what}"));
    }
    if sleeps {
        return refuse(Errno::EINVAL, format!("{name} may be called where nothing can sleep"));
    }
    Ok(())
}

/// Functions that tracing programs are called around.
fn check_function(types: Types<'_>, options: &Options, id: u32, name: &str, how: AttachType, sleeps: bool) -> Check {
    let module = types.btf.module_of(id);
    // The list exists where errors can be injected at all.
    let injects = (options.profile.error_injection || types.find_func("within_error_injection_list").is_some())
        && match module {
            None => facts::injects_errors(name),
            Some(module) => facts::MODULES_INJECT.contains(&(module, name)),
        };
    let modifiable = facts::MODIFY_RETURN.iter().find(|(n, _)| *n == name && module.is_none());
    if sleeps {
        let ok = injects && !facts::INJECTS_WITHOUT_SLEEP.contains(&name) || modifiable.is_some_and(|(_, s)| *s);
        if !ok {
            return refuse(Errno::EINVAL, format!("{name} may be called where nothing can sleep"));
        }
    } else if how == AttachType::ModifyReturn && !injects && modifiable.is_none() && !name.starts_with("security_") {
        return refuse(Errno::EINVAL, format!("what {name} returns cannot be changed"));
    }
    if facts::TRACING_DENIED.contains(&name) {
        return refuse(Errno::EINVAL, format!("tracing programs need {name} themselves"));
    }
    if matches!(how, AttachType::TraceFexit | AttachType::ModifyReturn) && facts::NO_RETURN.contains(&name) {
        return refuse(Errno::EINVAL, format!("{name} does not return"));
    }
    Ok(())
}

/// Most parameters of a function that programs are called around.
const MAX_PARAMS: usize = 12;

/// The prototype is one that programs can be called around.
pub(crate) fn check_prototype(
    types: Types<'_>,
    name: &str,
    proto: (u32, &[Param]),
    how: AttachType,
    unions: bool,
) -> Check {
    let (ret, params) = proto;
    if params.len() > MAX_PARAMS {
        return refuse(Errno::EINVAL, format!("{name} has {} parameters", params.len()));
    }
    let size = |ty: u32| match types.resolved(ty) {
        Some((_, Type::Void)) => Some(0),
        Some((_, Type::Ptr { .. })) => Some(8),
        Some((id, Type::Int { .. } | Type::Struct(_) | Type::Enum { .. } | Type::Enum64 { .. })) => {
            types.btf.size_of(id)
        }
        Some((id, Type::Union(_))) if unions => types.btf.size_of(id),
        _ => None,
    };
    let is_struct = matches!(types.resolved(ret), Some((_, Type::Struct(_) | Type::Union(_))));
    let Some(returned) = size(ret).filter(|_| !is_struct) else {
        return refuse(Errno::EINVAL, format!("{name} returns what cannot be passed on to a program"));
    };
    for (n, p) in params.iter().enumerate() {
        if !matches!(size(p.ty), Some(1..=16)) {
            return refuse(Errno::EINVAL, format!("parameter {} of {name} cannot be passed on to a program", n + 1));
        }
    }
    if returned > 8 && matches!(how, AttachType::TraceFexit | AttachType::ModifyReturn) {
        return refuse(Errno::EOPNOTSUPP, format!("{name} returns more than 8 bytes"));
    }
    Ok(())
}
