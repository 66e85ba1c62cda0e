//! The context of programs that attach by BTF: the arguments of a function, 8 bytes each, and perhaps what it returned.

use skep_ebpf::btf::{Kind as Type, Param};
use skep_ebpf::program::Program;
use skep_ebpf::uapi::{AttachType, ProgType};

use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::hook_facts::{self as facts, IterArgument};
use crate::kernel_types::Types;
use crate::reg::{Kind, Reg, flag};

/// Bytes of such a context.
const CTX_SIZE: i64 = 12 * 8;
/// Arguments where the prototype is not relied on.
const PLAIN_ARGS: usize = 5;
/// Largest error number.
const MAX_ERRNO: i64 = 4095;

/// What the context has at an offset.
enum Slot {
    /// An argument: which, and its type.
    Argument(usize, u32),
    /// What the function returned, by type.
    Returned(u32),
}

impl Env<'_> {
    /// Notes that what the program hangs on is the kernel's.
    pub fn note_hook(&mut self) {
        if self.has_hook_context() && self.hook.target.is_none() && !self.has_own_objects() {
            let what = format!("it is called from {} of the kernel", self.hook.name);
            self.note_need(None, || what);
        }
    }

    /// True if the context is that of a BTF-typed function.
    pub fn has_hook_context(&self) -> bool {
        matches!(self.prog.prog_type, ProgType::Tracing | ProgType::Lsm | ProgType::StructOps)
    }

    /// Checks a load from such a context.
    pub fn check_hook_context(&mut self, a: Access, off: i64) -> Check<Reg> {
        let size = i64::from(a.size);
        if a.write || !(0..CTX_SIZE).contains(&off) || off % 8 != 0 {
            let verb = if a.write { "written" } else { "read" };
            return denied!(ContextAccess, "{} has no argument at offset {off} that can be {verb}", self.attached_to());
        }
        let index = (off / 8) as usize;
        let Some((types, (ret, params))) = self.hook.types.zip(self.hook.proto) else {
            let returned = index == PLAIN_ARGS && self.prog.attach_type == Some(AttachType::TraceFexit);
            return if index < PLAIN_ARGS || returned {
                Ok(Reg::UNKNOWN)
            } else {
                denied!(ContextAccess, "{} has no argument at offset {off}", self.attached_to())
            };
        };
        let slot = match self.context_slot(types, ret, params, off as u64) {
            Some(slot) => slot,
            None => return denied!(ContextAccess, "{} has no argument at offset {off}", self.attached_to()),
        };
        let (ty, argument) = match slot {
            Slot::Argument(n, ty) => (ty, Some(n)),
            Slot::Returned(ty) => (ty, None),
        };
        match types.resolved(ty) {
            Some((id, Type::Int { .. })) if types.btf.size_of(id).is_some_and(|n| n <= 8) => {
                Ok(self.number_in_context(argument.is_none()))
            }
            Some((_, Type::Enum { .. } | Type::Enum64 { .. } | Type::Struct(_))) => {
                Ok(self.number_in_context(argument.is_none()))
            }
            Some((_, Type::Union(_))) if self.options.profile.since(6, 18) => {
                Ok(self.number_in_context(argument.is_none()))
            }
            Some((_, &Type::Ptr { ty })) if size == 8 => self.pointer_in_context(types, ty, argument),
            Some((_, Type::Ptr { .. })) => {
                denied!(ContextAccess, "the pointer at offset {off} of the context is read as {size} bytes, not 8")
            }
            _ => denied!(ContextAccess, "what stands at offset {off} of the context cannot be read"),
        }
    }

    fn attached_to(&self) -> String {
        if self.hook.name.is_empty() { "the context".into() } else { format!("the context of {}", self.hook.name) }
    }

    /// The argument, or return value, that an offset is in. Structs take as many slots as they need.
    fn context_slot(&self, types: Types<'_>, ret: u32, params: &[Param], off: u64) -> Option<Slot> {
        let bytes = |ty: u32| match types.resolved(ty) {
            Some((_, Type::Void)) => 0,
            Some((_, Type::Ptr { .. })) => 8,
            Some((id, _)) => types.btf.size_of(id).unwrap_or(0).next_multiple_of(8),
            None => 0,
        };
        let mut end = 0u64;
        let found = params.iter().position(|p| {
            end = end.saturating_add(bytes(p.ty));
            off < end
        });
        let mut index = match found {
            Some(n) => n,
            None if off < end.saturating_add(bytes(ret)) => params.len(),
            None => return None,
        };
        let mut params = params;
        if self.prog.attach_type == Some(AttachType::TraceRawTp) && self.prog.prog_type == ProgType::Tracing {
            // The first parameter is the tracepoint's own; sizes are counted with it.
            params = params.get(1..)?;
        } else if index == params.len() && found.is_none() && bytes(ret) == 0 {
            index += 1;
        }
        if index < params.len() {
            return Some(Slot::Argument(index, params[index].ty));
        }
        if index > params.len() {
            return None;
        }
        let returned = match (self.prog.prog_type, self.prog.attach_type) {
            (ProgType::Lsm, _) | (ProgType::Tracing, Some(AttachType::TraceFexit)) => true,
            (ProgType::Tracing, Some(AttachType::ModifyReturn)) => {
                matches!(types.resolved(ret), Some((id, Type::Int { .. })) if types.btf.size_of(id).is_some_and(|n| n <= 8))
            }
            _ => false,
        };
        returned.then_some(Slot::Returned(ret))
    }

    fn number_in_context(&self, returned: bool) -> Reg {
        let mut reg = Reg::UNKNOWN;
        if returned
            && self.prog.prog_type == ProgType::Lsm
            && self.prog.attach_type == Some(AttachType::LsmMac)
            && let Some((low, high)) = self.hook_returns()
        {
            (reg.num.smin, reg.num.smax) = (low, high);
            (reg.num.smin32, reg.num.smax32) = (low as i32, high as i32);
            reg.num.sync();
        }
        reg
    }

    /// What a hook of security modules may return, where that is bounded.
    pub fn hook_returns(&self) -> Option<(i64, i64)> {
        if self.hook.returns_nothing() {
            return None;
        }
        Some(if facts::LSM_BOOL.contains(&self.hook.name) { (0, 1) } else { (-MAX_ERRNO, 0) })
    }

    fn pointer_in_context(&mut self, types: Types<'_>, pointee: u32, argument: Option<usize>) -> Check<Reg> {
        let iter = match (self.prog.attach_type, argument) {
            (Some(AttachType::TraceIter), Some(n)) if self.prog.prog_type == ProgType::Tracing => {
                facts::ITER_ARGUMENTS.iter().find(|r| r.0 == self.hook.name && r.1 == n).map(|r| r.2)
            }
            _ => None,
        };
        if let Some(buffer @ (IterArgument::Buffer | IterArgument::ReadOnlyBuffer)) = iter {
            let read_only = if buffer == IterArgument::ReadOnlyBuffer { flag::READ_ONLY } else { 0 };
            let flags = flag::BUFFER | flag::NULLABLE | read_only;
            return Ok(Reg { flags, id: self.new_id(), size: i32::MAX as u32, ..Reg::pointer(Kind::Mem) });
        }
        let mut trust = if self.trusts_arguments() { flag::TRUSTED } else { 0 };
        match types.resolved(pointee) {
            // A pointer to a constant void was none to anything, once.
            Some((_, Type::Void)) if pointee != 0 && !self.options.profile.since(6, 18) => {
                denied!(ContextAccess, "the argument is a pointer to something that is no struct")
            }
            Some((_, Type::Void | Type::Int { .. })) => Ok(Reg::UNKNOWN),
            Some((id, Type::Struct(_) | Type::Union(_))) => {
                let mut reg = match (iter, self.hook.target) {
                    (Some(IterArgument::OldOrNull), _) => Reg::kernel_object(id, flag::NULLABLE),
                    (Some(_), _) => Reg::kernel_object(id, flag::TRUSTED | flag::NULLABLE),
                    (None, Some(target)) => {
                        let Some(object) = self.context_object(types, pointee, target, argument)? else {
                            return denied!(
                                ContextAccess,
                                "the argument is a pointer to {}, which is not the context of {target} programs",
                                types.title(id)
                            );
                        };
                        Reg::kernel_object(object, 0)
                    }
                    (None, None) => {
                        if let Some(n) = argument {
                            match self.special_argument(types, n) {
                                Special::Error => return Ok(Reg::UNKNOWN),
                                Special::Nullable => trust |= flag::NULLABLE,
                                Special::None => {}
                            }
                        }
                        Reg::kernel_object(id, trust | types.tag(pointee) & (flag::USER | flag::PERCPU))
                    }
                };
                if let Some(n) = argument
                    && self.hook.ops.is_some()
                {
                    self.acquired_argument(n, &mut reg)?;
                }
                self.promote_socket(types, &mut reg);
                if reg.nullable() {
                    reg.id = self.new_id();
                }
                Ok(reg)
            }
            _ => denied!(ContextAccess, "the argument is a pointer to something that is no struct"),
        }
    }

    /// True where the arguments are valid objects for as long as the program runs.
    fn trusts_arguments(&self) -> bool {
        match self.prog.prog_type {
            ProgType::Tracing => {
                matches!(self.prog.attach_type, Some(AttachType::TraceRawTp | AttachType::TraceIter))
            }
            ProgType::Lsm => !facts::LSM_UNTRUSTED.contains(&self.hook.name),
            ProgType::StructOps => true,
            _ => false,
        }
    }

    /// Arguments that are not what their type says.
    fn special_argument(&self, types: Types<'_>, n: usize) -> Special {
        let newest = self.options.profile.since(6, 18);
        match (self.prog.prog_type, self.prog.attach_type) {
            (ProgType::Tracing, Some(AttachType::TraceRawTp)) => {
                let nullable = facts::nullable_arguments(self.hook.name, newest);
                let module = types.btf.module_of(self.prog.attach_btf_id).is_some();
                if facts::may_be_error(self.hook.name, n, newest) {
                    Special::Error
                } else if nullable & 1u32.checked_shl(n as u32).unwrap_or(0) != 0
                    // Of a module's tracepoints little is known.
                    || module && !facts::is_known_tracepoint(self.hook.name, newest)
                {
                    Special::Nullable
                } else {
                    Special::None
                }
            }
            (ProgType::StructOps, _) => match self.stub_suffix(types, n) {
                Some("nullable") => Special::Nullable,
                _ => Special::None,
            },
            _ => match self.hook.proto.and_then(|(_, params)| params.get(n)) {
                Some(p) if types.btf.str_at(p.name_off).is_some_and(|s| s.ends_with("__nullable")) => Special::Nullable,
                _ => Special::None,
            },
        }
    }

    /// What the name of a parameter of a struct's default operation says behind `__`.
    fn stub_suffix<'t>(&self, types: Types<'t>, n: usize) -> Option<&'t str> {
        let stub = types.find_func(&format!("{}__{}", self.hook.ops?, self.hook.name))?;
        let name = types.btf.str_at(types.prototype(stub)?.1.get(n)?.name_off)?;
        Some(name.rsplit_once("__")?.1)
    }

    /// Parameters of operations that the program gets a reference of, by number; taken at its start.
    pub fn acquired_arguments(&self) -> Vec<usize> {
        let (Some((_, params)), Some(types)) = (self.hook.proto, self.hook.types) else { return Vec::new() };
        if self.hook.ops.is_none() || !self.options.profile.since(6, 15) {
            return Vec::new();
        }
        (0..params.len()).filter(|n| self.stub_suffix(types, *n) == Some("ref")).collect()
    }

    fn acquired_argument(&self, n: usize, reg: &mut Reg) -> Check {
        let Some(&(_, id)) = self.acquired.iter().find(|(arg, _)| *arg == n) else { return Ok(()) };
        if !self.state.held.iter().any(|h| h.id == id) {
            return denied!(ContextAccess, "the reference in argument {} may already be released", n + 1);
        }
        reg.ref_id = id;
        Ok(())
    }

    /// Congestion control works on TCP sockets, whatever its operations declare.
    fn promote_socket(&self, types: Types<'_>, reg: &mut Reg) {
        let safe = flag::TRUSTED | flag::ALLOCATED | flag::NON_OWNING;
        if self.hook.ops == Some("tcp_congestion_ops")
            && reg.flags & !safe == 0
            && types.find_struct("sock") == Some(reg.what)
            && let Some(tcp) = types.find_struct("tcp_sock")
        {
            reg.what = tcp;
        }
    }

    /// The kernel's own form of a program type's context, where a function of such a program has it as argument.
    fn context_object(
        &self,
        types: Types<'_>,
        pointee: u32,
        target: ProgType,
        argument: Option<usize>,
    ) -> Check<Option<u32>> {
        let program = Program::new("", target, "", Vec::new());
        if argument != Some(0) || !crate::context_type::named(&program, types.btf, pointee) {
            return Ok(None);
        }
        let kernel = self.kernel_types()?;
        Ok(facts::kernel_context(target).and_then(|name| kernel.find_struct(name)))
    }
}

/// What an argument is beside its type.
enum Special {
    None,
    Nullable,
    Error,
}

/// What a program that attaches by BTF returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Returned {
    /// Nothing, anything or a pointer: not looked at.
    Anything,
    /// A number in this range; in its low 32 bits only if `narrow`.
    Range { low: i64, high: i64, narrow: bool },
}

impl Env<'_> {
    /// True if r0 need not even be set at the end.
    pub fn returns_nothing(&self) -> bool {
        let hook = match self.prog.prog_type {
            ProgType::Lsm => self.prog.attach_type != Some(AttachType::LsmCgroup),
            ProgType::StructOps => true,
            _ => false,
        };
        hook && self.hook.returns_nothing()
    }

    /// What the program returns, by what it is attached to.
    pub fn hook_result(&self) -> Returned {
        let range = |low, high| Returned::Range { low, high, narrow: false };
        match (self.prog.prog_type, self.prog.attach_type) {
            (ProgType::Tracing, Some(AttachType::TraceFentry | AttachType::TraceFexit)) => range(0, 0),
            (ProgType::Tracing, Some(AttachType::TraceIter)) => range(0, 1),
            (ProgType::Lsm, Some(AttachType::LsmCgroup)) => range(i64::from(self.hook.returns_nothing()), 1),
            // What takes the place of a function of one is not held to its hook's range.
            (ProgType::Lsm, _) if self.hook.extends => Returned::Anything,
            (ProgType::Lsm, _) => match self.hook_returns() {
                Some((low, high)) => Returned::Range { low, high, narrow: true },
                None => Returned::Anything,
            },
            (ProgType::StructOps, _) if self.returned_object().is_some() => range(0, 0),
            _ => Returned::Anything,
        }
    }

    /// The struct that an operation returns a pointer to.
    fn returned_object(&self) -> Option<u32> {
        if !self.options.profile.since(6, 15) {
            return None;
        }
        let (types, (ret, _)) = self.hook.types.zip(self.hook.proto)?;
        match types.resolved(ret)? {
            (_, &Type::Ptr { ty }) => types.btf.resolve(ty),
            _ => None,
        }
    }

    /// The reference that an operation gives back to the kernel by returning it.
    pub fn returned_reference(&self) -> Option<u32> {
        let r0 = self.state.reg(0);
        let main = self.state.depth() == 0 && self.state.frame().subprog == 0;
        let given = main
            && self.prog.prog_type == ProgType::StructOps
            && self.options.profile.since(6, 15)
            && r0.is_pointer()
            && r0.ref_id != 0;
        given.then_some(r0.ref_id)
    }

    /// Checks r0 at the end of a program that attaches by BTF.
    pub fn check_hook_exit(&mut self, r: u8, r0: &Reg) -> Check {
        if let Some(object) = self.returned_object()
            && self.prog.prog_type == ProgType::StructOps
            && r0.kind == Kind::Btf
            && r0.flags & flag::LOCAL_TYPE == 0
            && r0.what == object
            && r0.ref_id != 0
        {
            return self.check_unmodified(r, r0);
        }
        let Returned::Range { low, high, narrow } = self.hook_result() else { return Ok(()) };
        if !r0.is_scalar() {
            return invalid!(ReturnValue, "the program returns {}, not a number", self.describe(r0));
        }
        self.mark_precise(r)?;
        let (min, max) = if narrow { (r0.num.smin32.into(), r0.num.smax32.into()) } else { (r0.num.smin, r0.num.smax) };
        if min < low || max > high {
            return invalid!(ReturnValue, "the program returns {low} to {high} here; r{r} holds {}", r0.num);
        }
        Ok(())
    }
}
