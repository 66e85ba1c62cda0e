//! What kernel functions return.

use skep_ebpf::btf::Kind as Type;
use skep_ebpf::kfunc::flag as kf;

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::kfunc::KfuncCall;
use crate::kfunc::graph::{lock_taken, takes_lock};
use crate::reg::{Kind, Reg, flag};

impl<'p> Env<'p> {
    pub(super) fn kfunc_result(&mut self, call: &KfuncCall<'p>) -> Check<Reg> {
        let pointee = match call.resolved(call.ret) {
            Some((_, &Type::Ptr { ty })) => ty,
            Some((_, Type::Void)) => return Ok(Reg::NOT_INIT),
            Some((_, Type::Int { .. })) if takes_lock(call.name()) => return Ok(lock_taken()),
            Some((_, Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. })) if !call.has(kf::ACQUIRE) => {
                return Ok(Reg::UNKNOWN);
            }
            _ => return invalid!(UnknownKfunc, "what {} returns cannot be used by programs", call.name()),
        };
        let Some((target, kind)) = call.resolved(pointee) else {
            return invalid!(UnknownKfunc, "what {} returns has no type", call.name());
        };
        let mut r0 = match call.name() {
            "bpf_obj_new_impl"
            | "bpf_percpu_obj_new_impl"
            | "bpf_refcount_acquire_impl"
            | "bpf_list_pop_front"
            | "bpf_list_pop_back"
            | "bpf_list_front"
            | "bpf_list_back"
            | "bpf_rbtree_remove"
            | "bpf_rbtree_first"
            | "bpf_rbtree_root"
            | "bpf_rbtree_left"
            | "bpf_rbtree_right" => return self.kfunc_owned_result(call),
            "bpf_dynptr_slice" | "bpf_dynptr_slice_rdwr" => self.kfunc_slice(call)?,
            "bpf_cast_to_kern_ctx" => {
                Reg { what: call.context.unwrap_or(0), flags: flag::TRUSTED, ..Reg::pointer(Kind::Btf) }
            }
            "bpf_rdonly_cast" => self.read_only_view(call)?,
            _ => match kind {
                // An address that is not looked behind.
                Type::Void => return Ok(Reg::UNKNOWN),
                Type::Struct(_) | Type::Union(_) => self.kfunc_object_result(call, target),
                _ => self.kfunc_memory_result(call, target)?,
            },
        };
        if call.has(kf::RET_NULL) {
            r0.flags |= flag::NULLABLE;
            r0.id = self.new_id();
        }
        if call.has(kf::ACQUIRE) {
            let id = self.acquire();
            if call.has(kf::RET_NULL) {
                r0.id = id;
            }
            r0.ref_id = id;
        }
        Ok(r0)
    }

    /// An object of a kernel type.
    fn kfunc_object_result(&mut self, call: &KfuncCall<'p>, id: u32) -> Reg {
        let mut r0 = Reg { what: id, ..Reg::pointer(Kind::Btf) };
        if call.name() == "bpf_get_kmem_cache" {
            r0.flags |= flag::UNTRUSTED;
        } else if call.has(kf::RCU_PROTECTED) {
            r0.flags |= flag::RCU;
        } else if call.has(kf::ITER_NEXT) {
            r0.flags |= self.iter_element_flags(call);
        }
        r0
    }

    /// Memory, of a size that an argument says or the type has; the latter is for reading.
    fn kfunc_memory_result(&mut self, call: &KfuncCall<'p>, target: u32) -> Check<Reg> {
        let of_type = || Some((u32::try_from(call.btf.size_of(target)?).ok()?, true));
        let size = match call.name() {
            "bpf_session_cookie" => Some((8, false)),
            _ => call.memory.filter(|m| m.0 != 0).or_else(of_type),
        };
        let Some((size, read_only)) = size.filter(|s| s.0 != 0) else {
            return invalid!(UnknownKfunc, "what {} returns has no size", call.name());
        };
        let mut r0 = Reg { size, ref_id: call.reference, ..Reg::pointer(Kind::Mem) };
        if read_only {
            r0.flags |= flag::READ_ONLY;
        }
        Ok(r0)
    }

    /// What an address is seen as: untrusted, for reading. The number is one of the kernel's own types.
    fn read_only_view(&self, call: &KfuncCall<'p>) -> Check<Reg> {
        let id = call.constant.and_then(|x| u32::try_from(x).ok());
        match id.and_then(|id| Some((id, call.btf.without_modules().kind(id)?))) {
            Some((id, Type::Struct(_) | Type::Union(_))) => {
                Ok(Reg { what: id, flags: flag::UNTRUSTED, ..Reg::pointer(Kind::Btf) })
            }
            Some((_, Type::Void)) => Ok(Reg { flags: flag::UNTRUSTED | flag::READ_ONLY, ..Reg::pointer(Kind::Mem) }),
            Some((id, _)) => invalid!(
                ArgumentType,
                "bpf_rdonly_cast casts to a struct or to void; type {id} of the kernel is {}",
                call.btf.name(id)
            ),
            None => invalid!(ArgumentType, "bpf_rdonly_cast casts to a type that the kernel has not"),
        }
    }
}
