//! Objects of kernel types, the context and maps as arguments of kernel functions.

use skep_ebpf::kfunc::flag as kf;

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::kernel_types::Types;
use crate::kfunc::KfuncCall;
use crate::reg::{Kind, Reg, flag};

impl<'p> Env<'p> {
    /// The pointer is of an object that is known to exist.
    pub(super) fn check_valid_object(&self, call: &KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if reg.is_trusted() || call.has(kf::RCU) && reg.is_rcu() {
            return Ok(());
        }
        invalid!(
            UntrustedPointer,
            "{} wants {} in r{r}, which holds {}",
            call.name(),
            if call.has(kf::RCU) { "an object that the RCU read section protects" } else { "an object that is held" },
            reg.describe()
        )
    }

    /// An object of the kernel's struct `id`.
    pub(super) fn kfunc_object(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg, id: u32) -> Check {
        let name = call.name();
        let wanted = call.btf.name(id);
        let safe = flag::TRUSTED | flag::ALLOCATED | flag::NON_OWNING | flag::LOCAL_TYPE;
        if reg.kind == Kind::Btf && reg.flags & !safe != 0 && !reg.is_rcu() {
            return invalid!(UntrustedPointer, "{name} wants a {wanted} in r{r}, which holds {}", self.describe(reg));
        }
        let Some((types, have)) = self.object_type(reg)? else {
            return invalid!(ArgumentType, "{name} wants a {wanted} in r{r}, which holds {}", reg.describe());
        };
        let need = Types::new(call.btf);
        let alias = reg.flags & flag::LOCAL_TYPE == 0 && need.is_alias(have, id);
        let strict = call.has(kf::RELEASE) && reg.ref_id != 0 || alias;
        // Functions on the program's view of an object take the kernel's own view as well.
        let view = matches!((wanted, types.btf.name(have)), ("__sk_buff", "sk_buff") | ("xdp_md", "xdp_buff"));
        if view || u32::try_from(reg.off).is_ok_and(|off| types.points_to(have, off, need, id, strict)) {
            return Ok(());
        }
        invalid!(ArgumentType, "{name} wants a {wanted} in r{r}, which holds {}", self.describe(reg))
    }

    /// The struct that a pointer leads to: what it is in the kernel, where programs have a view of their own.
    fn object_type(&self, reg: &Reg) -> Check<Option<(Types<'p>, u32)>> {
        let name = match reg.kind {
            Kind::Btf => return Ok(Some((self.types_of(reg)?, reg.what))),
            Kind::Socket => "sock",
            Kind::SockCommon => "sock_common",
            Kind::TcpSock => "tcp_sock",
            Kind::Map => "bpf_map",
            _ => return Ok(None),
        };
        let types = self.kernel_types()?;
        Ok(types.find_struct(name).map(|id| (types, id)))
    }

    pub(super) fn kfunc_context(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if reg.kind != Kind::Ctx || reg.nullable() {
            return invalid!(ArgumentType, "{} wants the context in r{r}, which holds {}", call.name(), reg.describe());
        }
        if call.name() == "bpf_cast_to_kern_ctx" {
            call.context = Some(self.kernel_context(call.btf)?);
        }
        Ok(())
    }

    pub(super) fn kfunc_map(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if reg.kind == Kind::Btf
            && let Some(id) = Types::new(call.btf).find_struct("bpf_map")
        {
            return self.kfunc_object(call, r, reg, id);
        }
        if reg.kind != Kind::Map || reg.nullable() {
            return invalid!(UnknownMap, "{} wants a map in r{r}, which holds {}", call.name(), reg.describe());
        }
        if let Some(owner) = call.identity {
            self.check_same_map(r, reg, owner)?;
        }
        call.map = Some(reg.what);
        Ok(())
    }
}
