//! Prototypes of global functions, from BTF.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind as Type, Linkage};
use skep_ebpf::program::Program;

use crate::Options;
use crate::cfg::Cfg;
use crate::context_type;
use crate::env::FunctionFacts;
use crate::fail::{Check, invalid};
use crate::global_calls::{self, Global, Param};
use crate::kernel_types::Types;

/// Finds the global functions and what they take.
pub(crate) fn find(prog: &Program, options: &Options, cfg: &Cfg, functions: &mut [FunctionFacts]) -> Check {
    let btf = match prog.btf.as_deref() {
        Some(btf) if !prog.func_info.is_empty() => btf,
        _ => return check_untyped(cfg),
    };
    let starts = prog.func_info.iter().map(|f| f.insn as usize);
    if !starts.eq(cfg.functions.iter().map(|f| f.start)) {
        return invalid!(
            BtfInfo,
            "the function records do not name the {} functions of the program",
            cfg.functions.len()
        )
        .map_err(|f: Box<crate::fail::Failure>| f.whole());
    }
    for (info, facts) in prog.func_info.iter().zip(functions.iter_mut()) {
        let Some(Type::Func { proto, linkage }) = btf.kind(info.type_id) else {
            return invalid!(BtfInfo, "type {} of the function at {} is no function", info.type_id, info.insn)
                .map_err(|f: Box<crate::fail::Failure>| f.whole());
        };
        let returns = match btf.kind(*proto) {
            Some(Type::FuncProto { ret, .. }) => kind_of(btf, *ret),
            _ => None,
        };
        let number = matches!(returns, Some(Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. }));
        let shape = cfg.function_at(info.insn as usize).and_then(|f| cfg.functions.get(f));
        if info.insn != 0 && !number && shape.is_some_and(|f| f.tail_calls || f.loads_packet) {
            return invalid!(
                SubprogramReturn,
                "the function {} tail-calls or loads packet data, so it must return a number",
                btf.name(info.type_id)
            )
            .map_err(|f: Box<crate::fail::Failure>| f.whole());
        }
        if info.insn != 0 && *linkage == Linkage::Global {
            facts.global = Some(prototype(prog, options, btf, info.type_id, *proto));
        }
    }
    Ok(())
}

/// Without types nothing says that a function returns a number, as these must.
fn check_untyped(cfg: &Cfg) -> Check {
    if cfg.functions.iter().skip(1).any(|f| f.tail_calls || f.loads_packet) {
        return invalid!(
            SubprogramReturn,
            "a function that tail-calls or loads packet data needs BTF that says that it returns a number"
        )
        .map_err(|f: Box<crate::fail::Failure>| f.whole());
    }
    Ok(())
}

/// The prototype of a function, global or not.
pub(crate) fn prototype_of(prog: &Program, options: &Options, btf: &Btf, func: u32) -> Option<Global> {
    match btf.kind(func) {
        Some(&Type::Func { proto, .. }) => Some(prototype(prog, options, btf, func, proto)),
        _ => None,
    }
}

fn prototype(prog: &Program, options: &Options, btf: &Btf, func: u32, proto: u32) -> Global {
    let mut global = Global { name: btf.name(func).into(), params: Vec::new(), broken: None };
    let broken = |why: String| Some((Errno::EINVAL, why));
    let Some(Type::FuncProto { ret, params }) = btf.kind(proto) else {
        global.broken = broken("it has no prototype".into());
        return global;
    };
    if params.len() > 5 {
        global.broken = broken(format!("it takes {} arguments, 5 are possible", params.len()));
        return global;
    }
    if !matches!(kind_of(btf, *ret), Some(Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. })) {
        global.broken = broken("it does not return a number".into());
        return global;
    }
    for (n, p) in params.iter().enumerate() {
        match (Parameter { prog, btf, options, func, n }).wants(p.ty) {
            Ok(p) => global.params.push(p),
            Err((errno, why)) => {
                global.broken = Some((errno, format!("argument {}: {why}", n + 1)));
                break;
            }
        }
    }
    global
}

/// The type without modifiers and typedefs.
fn kind_of(btf: &Btf, id: u32) -> Option<&Type> {
    btf.kind(btf.resolve(id)?)
}

/// What the tags `__arg_…` of a parameter say.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Tags {
    ctx: bool,
    trusted: bool,
    untrusted: bool,
    nonnull: bool,
    nullable: bool,
    arena: bool,
}

impl Tags {
    const NONE: Tags =
        Tags { ctx: false, trusted: false, untrusted: false, nonnull: false, nullable: false, arena: false };
}

struct Parameter<'a> {
    prog: &'a Program,
    btf: &'a Btf,
    options: &'a Options,
    func: u32,
    n: usize,
}

type Wants = Result<Param, (Errno, String)>;

fn refused<T>(why: &str) -> Result<T, (Errno, String)> {
    Err((Errno::EINVAL, why.into()))
}

impl Parameter<'_> {
    fn tags(&self) -> Result<Tags, (Errno, String)> {
        let mut tags = Tags::default();
        let own = self.btf.decl_tags(self.func).filter(|(_, of)| usize::try_from(*of) == Ok(self.n));
        for tag in own.filter_map(|(tag, _)| tag.strip_prefix("arg:")) {
            match tag {
                "ctx" => tags.ctx = true,
                "trusted" => tags.trusted = true,
                "untrusted" if self.options.profile.untrusted_memory() => tags.untrusted = true,
                "nonnull" => tags.nonnull = true,
                "nullable" => tags.nullable = true,
                "arena" => tags.arena = true,
                _ => return Err((Errno::EOPNOTSUPP, format!("the tag {tag} does not exist"))),
            }
        }
        Ok(tags)
    }

    /// What the parameter, of this type, takes.
    fn wants(&self, ty: u32) -> Wants {
        let tags = self.tags()?;
        let btf = self.btf;
        match kind_of(btf, ty) {
            Some(&Type::Ptr { ty }) => self.wants_pointer(ty, tags),
            Some(_) if tags != Tags::NONE => refused("it has a tag for pointers, but is none"),
            Some(Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. }) => Ok(Param::Number),
            Some(other) => refused(&format!("a {} cannot be passed", other.name())),
            None => refused("its type is not known"),
        }
    }

    fn wants_pointer(&self, pointee: u32, tags: Tags) -> Wants {
        const CONFLICT: &str = "its tags contradict each other";
        let Tags { ctx, trusted, nullable, .. } = tags;
        let only = |one: Tags| if tags == one { Ok(()) } else { refused(CONFLICT) };
        let (prog, btf) = (self.prog, self.btf);
        let (named, can_be) = match self.options.host.as_deref() {
            Some(host) => (host.is_named(btf, pointee), host.is_named(btf, pointee)),
            None => (context_type::named(prog, btf, pointee), context_type::tagged(prog, btf, pointee)),
        };
        if ctx || named {
            only(Tags { ctx, ..Tags::NONE })?;
            if ctx && !can_be {
                return refused("it is tagged as the context, but its type is another");
            }
            return Ok(Param::Ctx);
        }
        let Some((target, kind)) = self.btf.resolve(pointee).and_then(|id| Some((id, self.btf.kind(id)?))) else {
            return refused("its type is not known");
        };
        if matches!(kind, Type::Struct(_)) && self.btf.name(target) == "bpf_dynptr" {
            only(Tags::NONE)?;
            return Ok(Param::Dynptr);
        }
        if trusted {
            if tags.nonnull {
                return refused(CONFLICT);
            }
            return Ok(Param::Trusted { type_id: self.kernel_type(target)?.1, nullable });
        }
        if tags.untrusted {
            only(Tags { untrusted: true, ..Tags::NONE })?;
            if matches!(kind, Type::Void | Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. }) {
                return Ok(Param::UntrustedMem);
            }
            let (kernel, type_id) = self.kernel_type(target)?;
            return match kernel.btf.kind(type_id) {
                Some(Type::Struct(_) | Type::Union(_)) => Ok(Param::Untrusted { type_id }),
                _ => refused("only structs and numbers can be untrusted"),
            };
        }
        if tags.arena {
            only(Tags { arena: true, ..Tags::NONE })?;
            return Ok(Param::Arena);
        }
        if nullable {
            return refused("memory may be null without being tagged so");
        }
        match self.btf.size_of(target).and_then(|s| u32::try_from(s).ok()) {
            Some(size) if !matches!(kind, Type::Void) => Ok(Param::Mem { size, nullable: !tags.nonnull }),
            _ => refused("the size of what it points to is not known"),
        }
    }

    /// The kernel's type that a type of the program stands for.
    fn kernel_type(&self, local: u32) -> Result<(Types<'_>, u32), (Errno, String)> {
        let Some(kernel) = self.options.btf.as_deref().map(Types::new) else {
            return Err((Errno::EOPNOTSUPP, "the kernel's types are not known".into()));
        };
        Ok((kernel, global_calls::kernel_type(Types::new(self.btf), kernel, local)?))
    }
}
