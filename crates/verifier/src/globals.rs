//! Prototypes of global functions, from BTF.

use skep_ebpf::btf::{Btf, Kind as Type, Linkage};
use skep_ebpf::program::Program;

use crate::cfg::Cfg;
use crate::check_call::{Global, Param};
use crate::context_type;
use crate::env::FunctionFacts;
use crate::fail::{Check, invalid};

/// Finds the global functions and what they take.
pub(crate) fn find(prog: &Program, cfg: &Cfg, functions: &mut [FunctionFacts]) -> Check {
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
            facts.global = Some(prototype(prog, btf, info.type_id, *proto));
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
pub(crate) fn prototype_of(prog: &Program, btf: &Btf, func: u32) -> Option<Global> {
    match btf.kind(func) {
        Some(&Type::Func { proto, .. }) => Some(prototype(prog, btf, func, proto)),
        _ => None,
    }
}

fn prototype(prog: &Program, btf: &Btf, func: u32, proto: u32) -> Global {
    let mut global = Global { name: btf.name(func).into(), params: Vec::new(), broken: None };
    let Some(Type::FuncProto { ret, params }) = btf.kind(proto) else {
        global.broken = Some("it has no prototype".into());
        return global;
    };
    if !matches!(kind_of(btf, *ret), Some(Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. })) {
        global.broken = Some("it does not return a number".into());
        return global;
    }
    if params.len() > 5 {
        global.broken = Some(format!("it takes {} arguments, 5 are possible", params.len()));
        return global;
    }
    for (n, p) in params.iter().enumerate() {
        match param(prog, btf, func, n, p.ty) {
            Ok(p) => global.params.push(p),
            Err(why) => {
                global.broken = Some(format!("argument {}: {why}", n + 1));
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

fn param(prog: &Program, btf: &Btf, func: u32, n: usize, ty: u32) -> Result<Param, String> {
    let mut nullable = true;
    let mut is_ctx = false;
    for (tag, component) in btf.decl_tags(func) {
        if usize::try_from(component) != Ok(n) {
            continue;
        }
        match tag {
            "arg:ctx" => is_ctx = true,
            "arg:nonnull" => nullable = false,
            t if t.starts_with("arg:") => return Ok(Param::Unsupported),
            _ => {}
        }
    }
    match kind_of(btf, ty) {
        Some(Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. }) if !is_ctx => Ok(Param::Number),
        Some(Type::Ptr { ty: pointee }) => {
            let pointee = *pointee;
            if !is_ctx && context_type::named(prog, btf, pointee) {
                return Ok(Param::Ctx);
            }
            if is_ctx {
                return if context_type::tagged(prog, btf, pointee) {
                    Ok(Param::Ctx)
                } else {
                    Err("it is tagged as the context, but its type is another".into())
                };
            }
            let Some(target) = btf.resolve(pointee) else { return Err("its type is not known".into()) };
            if btf.name(target) == "bpf_dynptr" {
                return match nullable {
                    true => Ok(Param::Dynptr),
                    false => Err("it is a dynptr, which takes no tags".into()),
                };
            }
            match btf.size_of(target).and_then(|s| u32::try_from(s).ok()) {
                Some(size) if !matches!(btf.kind(target), Some(Type::Void)) => Ok(Param::Mem { size, nullable }),
                _ => Err("the size of what it points to is not known".into()),
            }
        }
        Some(other) => Err(format!("a {} cannot be passed", other.name())),
        None => Err("its type is not known".into()),
    }
}
