//! Which BTF types of a function's parameter mean the context of the program.

use skep_ebpf::btf::{Btf, Kind as Type};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType as A, ProgType as T};

use crate::prog_type::of_type;

/// The type that registers have for programs on functions: a typedef that is looked at before typedefs are resolved.
const REGS_TYPEDEF: &str = "bpf_user_pt_regs_t";

/// True if a pointer to `pointee` is the context without being tagged so: its struct is the one of the program type.
pub(crate) fn named(prog: &Program, btf: &Btf, pointee: u32) -> bool {
    if prog.prog_type == T::Kprobe && is_regs_typedef(btf, pointee) {
        return true;
    }
    let context = of_type(prog.prog_type).context;
    let Some(id) = btf.resolve(pointee) else { return false };
    let name = match btf.kind(id) {
        Some(Type::Struct(_) | Type::Union(_)) => btf.name(id),
        _ => return false,
    };
    !name.is_empty() && (name == context.name || name == context.kernel)
}

/// True if a parameter tagged as the context can be a pointer to `pointee`.
pub(crate) fn tagged(prog: &Program, btf: &Btf, pointee: u32) -> bool {
    let ty = prog.prog_type;
    if matches!(ty, T::Kprobe | T::PerfEvent) && is_regs_typedef(btf, pointee) {
        return true;
    }
    let Some(target) = btf.resolve(pointee) else { return false };
    if matches!(btf.kind(target), Some(Type::Void)) {
        return true;
    }
    if btf.name(target).is_empty() {
        return false;
    }
    let name = matches!(btf.kind(target), Some(Type::Struct(_))).then(|| btf.name(target));
    let words = matches!(btf.kind(target), Some(Type::Int { size: 8, .. }));
    let special = match (ty, prog.attach_type) {
        (T::Kprobe | T::PerfEvent, _) => name == Some("pt_regs"),
        (T::RawTracepoint | T::RawTracepointWritable | T::Lsm | T::StructOps, _) => words,
        (T::Tracing, Some(A::TraceRawTp)) => words || name == Some("bpf_raw_tracepoint_args"),
        (T::Tracing, Some(A::TraceIter)) => name.is_some_and(|n| n.starts_with("bpf_iter__")),
        (T::Tracing, Some(A::TraceFentry | A::TraceFexit | A::ModifyReturn)) => words,
        (T::Tracepoint | T::Syscall | T::Ext, _) => true,
        _ => false,
    };
    let context = of_type(ty).context.name;
    // The registers' name is that of a typedef only.
    special || !context.is_empty() && context != REGS_TYPEDEF && name == Some(context)
}

fn is_regs_typedef(btf: &Btf, mut id: u32) -> bool {
    for _ in 0..32 {
        match btf.kind(id) {
            Some(Type::Typedef { .. }) => return btf.name(id) == REGS_TYPEDEF,
            Some(k) => match k.modified() {
                Some(next) => id = next,
                None => return false,
            },
            None => return false,
        }
    }
    false
}
