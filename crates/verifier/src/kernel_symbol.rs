//! Variables and functions of the kernel whose addresses programs take.

use skep_ebpf::Errno;
use skep_ebpf::btf::Kind as Type;
use skep_ebpf::insn::Insn;

use crate::env::Env;
use crate::fail::{Check, Failure, invalid, unsupported};
use crate::kernel_types::Types;
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};

impl Env<'_> {
    /// A variable or function of the kernel, named by an immediate.
    pub fn kernel_symbol(&mut self, i: Insn, btf_fd: i32) -> Check<Reg> {
        let types = self.kernel_types()?;
        if btf_fd != 0 {
            return unsupported!(UnsupportedFeature, "variables of kernel modules are not judged yet");
        }
        let id = i.imm as u32;
        self.note_need(Some(self.insn), || format!("it takes the address of {}", types.btf.name(id)));
        let read_only = |size| Reg { size, flags: flag::READ_ONLY, ..Reg::pointer(Kind::Mem) };
        match types.btf.kind(id) {
            Some(Type::Func { .. }) => Ok(read_only(0)),
            Some(&Type::Var { ty, .. }) => {
                let Some((object, kind)) = types.resolved(ty) else {
                    return invalid!(KernelObjectAccess, "the type of {} is not known", types.btf.name(id));
                };
                if is_percpu(types, id) {
                    return Ok(Reg::kernel_object(object, flag::PERCPU));
                }
                if matches!(kind, Type::Struct(_) | Type::Union(_)) {
                    return Ok(Reg::kernel_object(object, 0));
                }
                match types.btf.size_of(object).and_then(|s| u32::try_from(s).ok()) {
                    Some(size) => Ok(read_only(size)),
                    None => invalid!(KernelObjectAccess, "the size of {} is not known", types.btf.name(id)),
                }
            }
            Some(_) => invalid!(KernelObjectAccess, "type {id} of the kernel is no variable or function"),
            None => {
                Err(Failure::new(Errno::ENOENT, Reason::KernelObjectAccess, format!("the kernel has no type {id}")))
            }
        }
    }
}

/// True if the variable is one of those that every CPU has its own of.
fn is_percpu(types: Types<'_>, var: u32) -> bool {
    // The kernel has such a section, and so may each module.
    types.btf.find_essential(".data..percpu").iter().any(|section| {
        matches!(types.btf.kind(*section), Some(Type::Datasec { vars, .. }) if vars.iter().any(|v| v.0 == var))
    })
}
