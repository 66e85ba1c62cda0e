//! Programs that attach to a function of another program: tracing it, or replacing it.

use std::sync::Arc;

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind as Type, Linkage};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType, ProgType, prog_flags};

use crate::env::Env;
use crate::fail::{Check, Failure, unsupported};
use crate::global_calls::Param;
use crate::globals;
use crate::hook::{Hook, check_prototype};
use crate::kernel_types::Types;
use crate::reason::Reason;
use crate::{Options, Rejection, Verified};

/// A function of a program, to be attached to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The program.
    pub program: Arc<Verified>,
    /// The function's name in C; empty for the main function.
    pub function: String,
}

/// What must be known of a program for others to attach to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct TargetFacts {
    /// A fact for each function.
    functions: Vec<FunctionFacts>,
    /// Type and attach type, for an extension those of the program that it extends.
    kind: Option<(ProgType, Option<AttachType>)>,
    /// It traces a tracing program.
    nested: bool,
    /// It is bound to a network device.
    device_bound: bool,
}

#[derive(Clone, Copy, Debug)]
struct FunctionFacts {
    /// Id of its `FUNC`.
    type_id: u32,
    /// Its prototype is what it is called with.
    reliable: bool,
    moves_packet: bool,
    /// It handles exceptions.
    handler: bool,
}

/// Collects the facts of a program that was checked.
pub(crate) fn facts(prog: &Program, env: &Env<'_>) -> TargetFacts {
    let handler = prog.btf.as_deref().and_then(|btf| {
        let main = prog.func_info.first()?;
        let tag = btf.decl_tags(main.type_id).find_map(|(tag, _)| tag.strip_prefix("exception_callback:"))?;
        btf.find(tag, |k| matches!(k, Type::Func { .. }))
    });
    let functions = prog.func_info.iter().enumerate().map(|(n, info)| {
        let proto = prog.btf.as_deref().and_then(|btf| globals::prototype_of(env.prog, env.options, btf, info.type_id));
        let reliable = proto.filter(|p| p.broken.is_none()).is_some_and(|p| {
            // Of an extension this was checked as of any other function.
            n != 0 || prog.prog_type == ProgType::Ext || p.params == [Param::Ctx]
        });
        FunctionFacts {
            type_id: info.type_id,
            reliable,
            moves_packet: env.cfg.functions.get(n).is_some_and(|f| f.moves_packet),
            handler: handler == Some(info.type_id),
        }
    });
    let nested = prog.prog_type == ProgType::Tracing && env.hook.target_type == Some(ProgType::Tracing);
    let kind = Some((env.prog.prog_type, env.prog.attach_type));
    let device_bound = is_device_bound(env.prog, env.options);
    TargetFacts { functions: functions.collect(), kind, nested, device_bound }
}

/// True if the program is bound to a network device: an extension is if what it extends is.
pub(crate) fn is_device_bound(prog: &Program, options: &Options) -> bool {
    prog.prog_type == ProgType::Xdp
        && (options.device_bound || options.target.as_ref().is_some_and(|t| t.program.target.device_bound))
}

impl Verified {
    /// Arguments of function `n`, if its type is what it is called with.
    pub fn function_args(&self, n: usize) -> Option<u8> {
        let facts = self.target.functions.get(n).filter(|f| f.reliable)?;
        let types = Types::new(self.program.btf.as_deref()?);
        let (_, params) = types.prototype(facts.type_id)?;
        u8::try_from(params.len()).ok().filter(|n| *n <= 5)
    }

    /// The function that a type of the program's own names, by its index.
    pub fn function_of_type(&self, type_id: u32) -> Option<usize> {
        self.target.functions.iter().position(|f| f.type_id == type_id)
    }

    /// The type of program that it is judged as, and its attach type: for an extension those of what it extends.
    pub fn runs_as(&self) -> Option<(ProgType, Option<AttachType>)> {
        self.target.kind
    }
}

/// Checks that a program that was verified for another function may be attached to this one as well.
pub fn check_target(prog: &Verified, target: &Target, profile: crate::KernelProfile) -> Result<(), Box<Rejection>> {
    let moves_packet = prog.target.functions.first().is_some_and(|f| f.moves_packet);
    let options = Options { profile, ..Options::default() };
    let checked = resolve(&prog.program, target, &options, moves_packet).and_then(|_| {
        let same = prog.target.kind == target.program.target.kind;
        if same { Ok(()) } else { refuse(format!("{} is a program of another type", target.program.program().name)) }
    });
    checked.map_err(|f| crate::rejection(&prog.program, &f, crate::Progress::default()))
}

fn refuse<T>(text: String) -> Check<T> {
    Err(Failure::new(Errno::EINVAL, Reason::AttachTarget, text).whole())
}

/// An extension is checked as a program of the type that it extends.
pub(crate) fn effective(prog: &Program, target: Option<&Target>) -> Option<Program> {
    let (prog_type, attach_type) = target?.program.target.kind?;
    let extends = prog.prog_type == ProgType::Ext;
    extends.then(|| Program { prog_type, attach_type, ..prog.clone() })
}

/// Finds the function, and checks that the program may be attached to it.
pub(crate) fn resolve<'p>(
    prog: &'p Program,
    target: &'p Target,
    options: &Options,
    moves_packet: bool,
) -> Check<Hook<'p>> {
    let other = target.program.program();
    let extends = prog.prog_type == ProgType::Ext;
    if prog.prog_type == ProgType::Lsm {
        return refuse("programs on security hooks do not attach to programs".into());
    }
    let Some(btf) = other.btf.as_deref() else {
        return refuse("the program that is attached to has no types (BTF)".into());
    };
    let facts = &target.program.target;
    let found = match target.function.as_str() {
        "" => facts.functions.first(),
        name => facts.functions.iter().find(|f| btf.name(f.type_id) == name),
    };
    let Some(function) = found else {
        return refuse(format!("the program {} has no function {}", other.name, target.function));
    };
    let name = btf.name(function.type_id);
    if function.handler {
        return refuse(format!("{name} handles exceptions, programs do not attach to it"));
    }
    if extends {
        if !function.reliable {
            return refuse(format!("what {name} is called with is not what its type says, it cannot be replaced"));
        }
        if moves_packet && !function.moves_packet {
            return refuse(format!("the program may move packet data, which {name} does not"));
        }
    }
    if prog.prog_type == ProgType::Tracing {
        if facts.nested {
            return refuse(format!("{} traces a tracing program itself", other.name));
        }
    } else if other.prog_type == prog.prog_type {
        return refuse(format!("{} is an extension itself", other.name));
    }
    let around = matches!(other.attach_type, Some(AttachType::TraceFentry | AttachType::TraceFexit));
    if extends && other.prog_type == ProgType::Tracing && around {
        return refuse(format!("{} is called around a function; such programs are not extended", other.name));
    }
    let how =
        if extends { AttachType::CgroupInetIngress } else { prog.attach_type.unwrap_or(AttachType::CgroupInetIngress) };
    match how {
        AttachType::TraceFentry | AttachType::TraceFexit => {}
        AttachType::ModifyReturn => {
            return refuse(format!("what {name}, a function of a program, returns cannot be changed"));
        }
        _ if extends => check_match(prog, btf, function.type_id)?,
        _ => return refuse(format!("programs of this attach type do not attach to {name}, a function of a program")),
    }
    let types = Types::new(btf);
    let Some(proto) = types.prototype(function.type_id) else {
        return refuse(format!("{name} has no prototype"));
    };
    if function.reliable {
        check_prototype(types, name, proto, how, options.profile.since(6, 18))?;
    }
    if prog.flags & prog_flags::SLEEPABLE != 0 {
        return refuse(format!("{name}, a function of a program, is not known to be called where one can sleep"));
    }
    Ok(Hook {
        name,
        types: Some(types),
        proto: function.reliable.then_some(proto),
        target: facts.kind.map(|(ty, _)| ty),
        target_type: Some(other.prog_type),
        extends,
        ..Hook::default()
    })
}

/// An extension has the prototype of the function that it replaces.
fn check_match(prog: &Program, other: &Btf, id: u32) -> Check {
    let (Some(btf), Some(main)) = (prog.btf.as_deref(), prog.func_info.first()) else {
        return refuse("an extension needs types (BTF) for its function".into());
    };
    let (own, theirs) = (Types::new(btf), Types::new(other));
    for (types, id) in [(own, main.type_id), (theirs, id)] {
        if !matches!(types.btf.kind(id), Some(Type::Func { linkage: Linkage::Global, .. })) {
            return refuse(format!("{} is not a global function", types.btf.name(id)));
        }
    }
    let (Some((ret, params)), Some((their_ret, their_params))) = (own.prototype(main.type_id), theirs.prototype(id))
    else {
        return refuse("a function has no prototype".into());
    };
    let name = other.name(id);
    if params.len() != their_params.len() {
        return refuse(format!(
            "the extension takes {} arguments, {name}, which it replaces, {}",
            params.len(),
            their_params.len()
        ));
    }
    let shape = |types: Types<'_>, ty: u32| types.resolved(ty).map(|(_, k)| info(k));
    if shape(own, ret) != shape(theirs, their_ret) {
        return refuse(format!("the extension returns another type than {name}, which it replaces"));
    }
    for (n, (p, q)) in params.iter().zip(their_params).enumerate() {
        let n = n + 1;
        let (Some((a, kind)), Some((b, _))) = (own.resolved(p.ty), theirs.resolved(q.ty)) else {
            return refuse(format!("the type of argument {n} is not known"));
        };
        if shape(own, a) != shape(theirs, b) {
            return refuse(format!("argument {n} of the extension is of another kind than that of {name}"));
        }
        match *kind {
            Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. } => {
                if own.btf.size_of(a) != theirs.btf.size_of(b) {
                    return refuse(format!("argument {n} of the extension is of another size than that of {name}"));
                }
            }
            Type::Ptr { ty } => {
                let Some(&Type::Ptr { ty: their_ty }) = theirs.btf.kind(b) else {
                    return refuse(format!("argument {n} of the extension is of another kind than that of {name}"));
                };
                let pair = own.resolved(ty).zip(theirs.resolved(their_ty));
                let structs = pair.filter(|((_, x), (_, y))| x.composite().is_some() && y.composite().is_some());
                let Some(((x, _), (y, _))) = structs else {
                    return refuse(format!("argument {n} is a pointer, but not to the context"));
                };
                if own.btf.name(x) != theirs.btf.name(y) {
                    return refuse(format!(
                        "argument {n} of the extension is a pointer to {}, that of {name} to {}",
                        own.title(x),
                        theirs.title(y)
                    ));
                }
            }
            _ => return refuse(format!("argument {n} of the extension is of a type that is not compared")),
        }
    }
    Ok(())
}

/// What is compared of a type: its kind, and for those that have parts how many.
fn info(kind: &Type) -> (&'static str, usize, bool) {
    let parts = match kind {
        Type::Struct(c) | Type::Union(c) => c.members.len(),
        Type::Enum { values, .. } | Type::Enum64 { values, .. } => values.len(),
        _ => 0,
    };
    let signed = matches!(kind, Type::Enum { signed: true, .. } | Type::Enum64 { signed: true, .. });
    (kind.name(), parts, signed)
}

impl Env<'_> {
    /// Sets up the arguments of an extension: those of the function that it replaces.
    pub fn enter_extension(&mut self) -> Check {
        let global = match (self.prog.btf.as_deref(), self.prog.func_info.first()) {
            (Some(btf), Some(main)) => globals::prototype_of(self.prog, self.options, btf, main.type_id),
            _ => None,
        };
        let Some(global) = global else { return refuse("an extension needs types (BTF) for its function".into()) };
        if let Some((_, why)) = &global.broken {
            return refuse(format!("the prototype of {} cannot be checked: {why}", global.name));
        }
        if self.has_hook_context() && global.params.contains(&Param::Ctx) {
            return unsupported!(
                UnsupportedFeature,
                "an extension that takes the context of a {} program is not judged yet",
                self.prog.prog_type
            );
        }
        self.enter_global(&global)
    }
}
