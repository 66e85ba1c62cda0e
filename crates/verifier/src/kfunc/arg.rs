//! What a parameter of a kernel function wants, and the check of each argument against it.

use skep_ebpf::btf::{Btf, Kind as Type, Param};
use skep_ebpf::kfunc::flag as kf;

use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::kfunc::KfuncCall;
use crate::reg::{Kind, Reg};

/// What a parameter wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// The context.
    Ctx,
    /// Null, which is given and permitted.
    Null,
    /// An allocated object, owned.
    Allocated,
    /// An allocated object with a reference count.
    Refcounted,
    Dynptr,
    Iter,
    ListHead,
    ListNode,
    RbRoot,
    RbNode,
    /// A string constant.
    ConstString,
    /// A map, known at load time.
    Map,
    Workqueue,
    TaskWork,
    /// Where the state of interrupts is kept.
    IrqFlag,
    ResSpinLock,
    /// An object of this struct of the kernel.
    Object(u32),
    /// A function of the program.
    Callback,
    /// Memory of this many bytes.
    Memory(u64),
    /// Memory whose size is the next argument.
    SizedMemory,
}

impl<'p> KfuncCall<'p> {
    /// Name of a parameter.
    pub fn param_name(&self, n: usize) -> &'p str {
        self.params.get(n).and_then(|p| self.btf.str_at(p.name_off)).unwrap_or("")
    }

    /// True if the parameter's name ends so.
    pub fn marked(&self, n: usize, suffix: &str) -> bool {
        self.param_name(n).ends_with(suffix)
    }

    /// The type behind modifiers and typedefs.
    pub fn resolved(&self, ty: u32) -> Option<(u32, &'p Type)> {
        let id = self.btf.resolve(ty)?;
        Some((id, self.btf.kind(id)?))
    }

    /// The parameter is a pointer to something constant.
    pub fn only_reads(&self, n: usize) -> bool {
        match self.params.get(n).and_then(|p| self.resolved(p.ty)) {
            Some((_, &Type::Ptr { ty })) => matches!(self.btf.kind(ty), Some(Type::Const { .. })),
            _ => false,
        }
    }

    fn is_number(&self, ty: u32) -> bool {
        is_number(self.btf, ty)
    }

    /// The next parameter is the size of this memory (of the register that holds it, too, a number).
    fn sized(&self, n: usize, size: &Reg) -> bool {
        self.params.get(n + 1).is_some_and(|p: &Param| self.is_number(p.ty))
            && size.is_scalar()
            && (self.marked(n + 1, "__sz") || self.marked(n + 1, "__szk"))
    }
}

fn is_number(btf: &Btf, ty: u32) -> bool {
    let kind = btf.resolve(ty).and_then(|id| btf.kind(id));
    matches!(kind, Some(Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. }))
}

/// True for a struct of numbers, arrays of numbers, and such structs.
pub(super) fn is_plain(btf: &Btf, id: u32, depth: u32) -> bool {
    let Some(c) = btf.kind(id).and_then(Type::composite) else { return false };
    c.members.iter().all(|m| {
        let Some(id) = btf.resolve(m.ty) else { return false };
        match btf.kind(id) {
            Some(Type::Struct(_) | Type::Union(_)) => depth < 3 && is_plain(btf, id, depth + 1),
            Some(&Type::Array { elem, len, .. }) => len > 0 && is_number(btf, elem),
            _ => is_number(btf, id),
        }
    })
}

impl<'p> Env<'p> {
    /// Checks all arguments of a call.
    pub(super) fn check_kfunc_args(&mut self, call: &mut KfuncCall<'p>) -> Check {
        if call.params.len() > 5 {
            return invalid!(UnknownKfunc, "{} takes {} arguments", call.name(), call.params.len());
        }
        let mut n = 0;
        while n < call.params.len() {
            let sized = self.check_kfunc_arg(call, n)?;
            n += if sized { 2 } else { 1 };
        }
        if call.has(kf::RELEASE) && call.releases.is_none() {
            return invalid!(ReleaseWithoutAcquire, "{} releases a reference; none is passed", call.name());
        }
        Ok(())
    }

    /// Checks one argument; true if the next one was checked with it.
    fn check_kfunc_arg(&mut self, call: &mut KfuncCall<'p>, n: usize) -> Check<bool> {
        let r = n as u8 + 1;
        let reg = *self.state.reg(r);
        if call.marked(n, "__ign") || call.marked(n, "__prog") {
            // The function does not look, or the kernel fills it in.
            return Ok(false);
        }
        let pointee = match call.params.get(n).and_then(|p| call.resolved(p.ty)) {
            Some((_, &Type::Ptr { ty })) => ty,
            Some((_, Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. })) => {
                return self.kfunc_number(call, n, r, &reg).map(|()| false);
            }
            _ => return invalid!(UnknownKfunc, "argument {r} of {} is of a kind that cannot be passed", call.name()),
        };
        let careful = call.row.wants_trusted() || call.has(kf::RCU);
        if careful && (reg.is_null() || reg.nullable()) && !call.marked(n, "__nullable") {
            return denied!(
                PossiblyNull,
                "{} wants a pointer in r{r} that is not null, which holds {}",
                call.name(),
                reg.describe()
            );
        }
        if reg.ref_id != 0 {
            call.reference = reg.ref_id;
            if call.has(kf::RELEASE) {
                call.releases = Some(r);
            }
        }
        let want = self.kfunc_want(call, n, pointee, &reg)?;
        if want == Want::Null {
            return Ok(false);
        }
        if careful && matches!(want, Want::Map | Want::Allocated | Want::Object(_)) {
            self.check_valid_object(call, r, &reg)?;
        }
        self.check_kfunc_offset(call, r, &reg)?;
        match want {
            Want::Null => {}
            Want::Ctx => self.kfunc_context(call, r, &reg)?,
            Want::Allocated => self.kfunc_allocated(call, r, &reg)?,
            Want::Refcounted => self.kfunc_refcounted(call, r, &reg)?,
            Want::Dynptr => self.kfunc_dynptr(call, n, r)?,
            Want::Iter => self.kfunc_iter(call, r)?,
            Want::ListHead | Want::RbRoot => self.kfunc_root(call, r, &reg)?,
            Want::ListNode | Want::RbNode => self.kfunc_node(call, r, &reg)?,
            Want::ConstString => self.kfunc_const_string(call, r, &reg)?,
            Want::Map => self.kfunc_map(call, r, &reg)?,
            Want::Workqueue => self.kfunc_workqueue(call, r, &reg)?,
            Want::TaskWork => self.kfunc_task_work(call, r, &reg)?,
            Want::IrqFlag => self.kfunc_irq_flag(call, r, &reg)?,
            Want::ResSpinLock => self.kfunc_res_spin_lock(call, r, &reg)?,
            Want::Object(id) => self.kfunc_object(call, r, &reg, id)?,
            Want::Callback => {
                if reg.kind != Kind::Func {
                    return invalid!(
                        ArgumentType,
                        "{} wants a function in r{r}, which holds {}",
                        call.name(),
                        reg.describe()
                    );
                }
                call.function = Some(reg.what);
            }
            Want::Memory(size) => self.kfunc_memory(call, r, size)?,
            Want::SizedMemory => {
                self.kfunc_sized_memory(call, n, r)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What parameter `n`, a pointer to `pointee`, wants, given that `reg` is passed for it.
    fn kfunc_want(&self, call: &KfuncCall<'p>, n: usize, pointee: u32, reg: &Reg) -> Check<Want> {
        if call.name() == "bpf_cast_to_kern_ctx" || crate::context_type::named(self.prog, call.btf, pointee) {
            return Ok(Want::Ctx);
        }
        if call.marked(n, "__nullable") && reg.is_null() {
            return Ok(Want::Null);
        }
        let Some((target, kind)) = call.resolved(pointee) else {
            return invalid!(UnknownKfunc, "argument {} of {} has no type", n + 1, call.name());
        };
        let is_struct = matches!(kind, Type::Struct(_));
        let struct_name = if is_struct { call.btf.name(target) } else { "" };
        if call.marked(n, "__alloc") {
            return Ok(Want::Allocated);
        }
        if call.marked(n, "__refcounted_kptr") {
            return Ok(Want::Refcounted);
        }
        if struct_name == "bpf_dynptr" {
            return Ok(Want::Dynptr);
        }
        if call.row.is_iter() && n == 0 || call.marked(n, "__iter") {
            return Ok(Want::Iter);
        }
        match struct_name {
            "bpf_list_head" => return Ok(Want::ListHead),
            "bpf_list_node" => return Ok(Want::ListNode),
            "bpf_rb_root" => return Ok(Want::RbRoot),
            "bpf_rb_node" => return Ok(Want::RbNode),
            _ => {}
        }
        if call.marked(n, "__str") {
            return Ok(Want::ConstString);
        }
        if call.marked(n, "__map") {
            return Ok(Want::Map);
        }
        match struct_name {
            "bpf_wq" => return Ok(Want::Workqueue),
            "bpf_task_work" => return Ok(Want::TaskWork),
            "bpf_res_spin_lock" => return Ok(Want::ResSpinLock),
            _ => {}
        }
        if call.marked(n, "__irq_flag") {
            return Ok(Want::IrqFlag);
        }
        // Pointers to objects are for parameters that name their struct; all else is memory.
        if matches!(reg.kind, Kind::Btf | Kind::Socket | Kind::SockCommon | Kind::TcpSock | Kind::Map) {
            if !matches!(kind, Type::Struct(_) | Type::Union(_)) {
                return invalid!(
                    ArgumentType,
                    "{} wants memory in r{r}, which holds {}",
                    call.name(),
                    reg.describe(),
                    r = n + 1
                );
            }
            return Ok(Want::Object(target));
        }
        if matches!(kind, Type::FuncProto { .. }) {
            return Ok(Want::Callback);
        }
        let sized = call.sized(n, self.state.reg(n as u8 + 2));
        let number = matches!(kind, Type::Int { .. } | Type::Enum { .. } | Type::Enum64 { .. });
        if !(number || is_plain(call.btf, target, 0) || sized && matches!(kind, Type::Void)) {
            return invalid!(
                ArgumentType,
                "{} wants a pointer to {} in r{r}, which holds {}",
                call.name(),
                if call.btf.name(target).is_empty() { "an object" } else { call.btf.name(target) },
                reg.describe(),
                r = n + 1
            );
        }
        if sized {
            return Ok(Want::SizedMemory);
        }
        match call.btf.size_of(target) {
            Some(size) => Ok(Want::Memory(size)),
            None => invalid!(UnknownKfunc, "the size of argument {} of {} is not known", n + 1, call.name()),
        }
    }

    fn kfunc_number(&mut self, call: &mut KfuncCall<'p>, n: usize, r: u8, reg: &Reg) -> Check {
        if !reg.is_scalar() {
            return invalid!(ArgumentType, "{} wants a number in r{r}, which holds {}", call.name(), reg.describe());
        }
        let size = match call.param_name(n) {
            "rdonly_buf_size" => Some(true),
            "rdwr_buf_size" => Some(false),
            _ => None,
        };
        if !call.marked(n, "__k") && size.is_none() {
            return Ok(());
        }
        let Some(x) = reg.as_const() else {
            return invalid!(
                ArgumentConstant,
                "{} wants a number in r{r} that is known at load time; it holds {}",
                call.name(),
                reg.num
            );
        };
        self.mark_precise(r)?;
        match size {
            None => call.constant = Some(x),
            Some(read_only) => match u32::try_from(x) {
                Ok(x) if call.memory.is_none() => call.memory = Some((x, read_only)),
                _ => return invalid!(ArgumentSize, "{} cannot return {x} bytes", call.name()),
            },
        }
        Ok(())
    }

    /// Pointers are passed as they are obtained, or moved within what they point to.
    fn check_kfunc_offset(&self, call: &KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if reg.kind == Kind::NotInit {
            return denied!(UninitializedRegister, "r{r}, passed to {}, was never written", call.name());
        }
        let releases = call.has(kf::RELEASE) && reg.ref_id != 0;
        if releases && reg.off != 0 {
            return invalid!(
                ReleaseWithoutAcquire,
                "r{r} was moved by {}; a reference is released as it was acquired",
                reg.off
            );
        }
        if reg.is_movable_object() && !releases {
            if reg.off < 0 {
                return denied!(NegativeOffset, "r{r} is {}, in front of the object", reg.describe());
            }
            if reg.num.as_const() != Some(0) {
                return denied!(PointerOutOfRange, "r{r} is {}: where in the object is not known", reg.describe());
            }
            return Ok(());
        }
        if releases {
            return self.check_unmodified(r, reg);
        }
        self.check_arg_offset(r, reg)
    }
}
