//! Dynptrs as arguments of kernel functions.

use skep_ebpf::Errno;

use crate::env::Env;
use crate::fail::{Check, Failure, invalid, unsupported};
use crate::kfunc::KfuncCall;
use crate::prog_type::Packet;
use crate::reason::Reason;
use crate::reg::{Kind, Reg};
use crate::stack_object::Source;

impl<'p> Env<'p> {
    /// A dynptr that is initialised, or (parameters marked `__uninit`) will be.
    pub(super) fn kfunc_dynptr(&mut self, call: &mut KfuncCall<'p>, n: usize, r: u8) -> Check {
        let reg = *self.state.reg(r);
        if !matches!(reg.kind, Kind::Stack | Kind::Dynptr) {
            return invalid!(DynptrState, "{} wants a dynptr in r{r}, which holds {}", call.name(), reg.describe());
        }
        if !call.marked(n, "__uninit") {
            call.dynptr = Some(self.read_dynptr(r)?);
            return Ok(());
        }
        if reg.kind == Kind::Dynptr {
            let why = format!("{} makes a dynptr in r{r}, which holds one that is not to be changed", call.name());
            return Err(Failure::new(Errno::EFAULT, Reason::DynptrState, why));
        }
        let (source, shares) = match (call.name(), call.dynptr) {
            ("bpf_dynptr_from_skb", _) => (Source::Skb, None),
            ("bpf_dynptr_from_skb_meta", _) => (Source::SkbMeta, None),
            ("bpf_dynptr_from_xdp", _) => (Source::Xdp, None),
            ("bpf_dynptr_clone", Some(original)) => (original.source, Some(original.ref_id)),
            (name, _) => return unsupported!(UnsupportedKfunc, "what dynptr {name} makes is not known"),
        };
        self.make_dynptr(r, source, shares).map(|_| ())
    }

    /// The memory of a dynptr, as `bpf_dynptr_slice` returns it.
    pub(super) fn kfunc_slice(&mut self, call: &KfuncCall<'p>) -> Check<Reg> {
        let writable = call.name() == "bpf_dynptr_slice_rdwr";
        let (Some(dynptr), Some(size)) = (call.dynptr, call.constant) else {
            return invalid!(DynptrState, "{} has no dynptr to give data of", call.name());
        };
        if writable && !matches!(self.types.packet, Packet::Writes | Packet::Buffer) {
            return invalid!(PacketAccess, "programs of type {} cannot write packet data", self.prog.prog_type);
        }
        Ok(self.dynptr_slice(dynptr, size as u32, writable))
    }
}
