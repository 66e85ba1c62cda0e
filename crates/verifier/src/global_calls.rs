//! Global functions: checked on their own for any arguments of their prototype, and called by it.

use skep_ebpf::Errno;

use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::kernel_types::Types;
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};

/// A parameter of a global function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Param {
    /// A number.
    Number,
    /// The context.
    Ctx,
    /// Memory of this size.
    Mem { size: u32, nullable: bool },
    /// A dynptr, which the function does not change.
    Dynptr,
    /// An object of this type of the kernel, known to be valid.
    Trusted { type_id: u32, nullable: bool },
    /// What may be an object of this type of the kernel.
    Untrusted { type_id: u32 },
    /// An address that may be anything, for reading.
    UntrustedMem,
    /// A pointer into the arena.
    Arena,
}

/// A global function: its prototype, or why it has none.
#[derive(Clone, Debug)]
pub(crate) struct Global {
    pub name: String,
    pub params: Vec<Param>,
    /// Set if the prototype cannot be checked: what the kernel says no to, and how.
    pub broken: Option<(Errno, String)>,
}

impl Global {
    /// The rejection of a function whose prototype cannot be checked.
    pub fn check_sound(&self) -> Check {
        match &self.broken {
            Some((errno, why)) => Err(Failure::new(
                *errno,
                Reason::GlobalFunction,
                format!("the global function {} cannot be called: {why}", self.name),
            )),
            None => Ok(()),
        }
    }
}

impl Env<'_> {
    /// Calls a global function: only its prototype counts, what is in it is checked once for all.
    pub fn check_global_call(&mut self, function: usize, global: &Global) -> Check {
        if !self.state.locks.is_empty() {
            return invalid!(LockHeld, "the global function {} is called while a lock is held", global.name);
        }
        if self.cfg.functions[function].sleeps && (!self.may_sleep() || self.section_without_sleep().is_some()) {
            let here = self.section_without_sleep().unwrap_or("a program that must not");
            return invalid!(
                SleepInSection,
                "the global function {} may sleep, which is not possible in {here}",
                global.name
            );
        }
        global.check_sound()?;
        for (n, param) in global.params.iter().enumerate() {
            self.check_global_arg(n as u8 + 1, *param, global)?;
        }
        if self.cfg.functions[function].moves_packet {
            self.forget_packet();
        }
        self.functions[function].called = true;
        self.clear_caller_saved();
        self.set_unknown(0);
        Ok(())
    }

    fn check_global_arg(&mut self, r: u8, param: Param, global: &Global) -> Check {
        let reg = *self.state.reg(r);
        let refused = |what: &str| {
            invalid!(GlobalFunction, "{} wants {what} in r{r}, which holds {}", global.name, reg.describe())
        };
        match param {
            Param::Number if reg.is_scalar() => Ok(()),
            Param::Number => refused("a number"),
            Param::Ctx => {
                self.check_arg_offset(r, &reg)?;
                if reg.kind == Kind::Ctx { Ok(()) } else { refused("the context") }
            }
            Param::Dynptr => {
                if !matches!(reg.kind, Kind::Stack | Kind::Dynptr) {
                    return refused("a dynptr");
                }
                self.check_arg_offset(r, &reg)?;
                self.read_dynptr(r).map(|_| ())
            }
            Param::Mem { size, nullable } => {
                self.check_global_memory(r, &reg, size, global)?;
                // Null itself passes in the kernel; the function would read through it.
                let null = reg.nullable() || reg.is_null();
                if null && !nullable { refused("memory that is not null") } else { Ok(()) }
            }
            Param::Trusted { nullable: true, .. } if reg.is_null() => Ok(()),
            Param::Trusted { type_id, nullable } => self.check_global_object(r, &reg, type_id, nullable, global),
            // Loads from it are guarded, whatever it is.
            Param::Untrusted { .. } | Param::UntrustedMem => Ok(()),
            Param::Arena if reg.kind == Kind::Arena || reg.is_scalar() => Ok(()),
            Param::Arena => refused("a pointer into the arena"),
        }
    }

    /// Memory that the function may read and write.
    fn check_global_memory(&mut self, r: u8, reg: &Reg, size: u32, global: &Global) -> Check {
        self.check_arg_offset(r, reg)?;
        if reg.is_null() {
            return Ok(());
        }
        let mut checked = *reg;
        if checked.nullable() {
            self.make_not_null(&mut checked);
        }
        *self.state.reg_mut(r) = checked;
        let read = self.check_helper_memory(r, size.into(), false, true, None, true);
        let write = read.and_then(|_| self.check_helper_memory(r, size.into(), true, true, None, true));
        *self.state.reg_mut(r) = *reg;
        match write {
            Err(f) if !f.unsupported => Err(Failure::new(
                Errno::EINVAL,
                Reason::GlobalFunction,
                format!("{} wants {size} bytes in r{r}: {}", global.name, f.message),
            )),
            other => other,
        }
    }

    /// An object of a kernel type, as helpers take them.
    fn check_global_object(&self, r: u8, reg: &Reg, type_id: u32, nullable: bool, global: &Global) -> Check {
        let kernel = self.kernel_types()?;
        let trust = reg.flags & !flag::NULLABLE;
        if reg.kind != Kind::Btf || !matches!(trust, 0 | flag::TRUSTED | flag::RCU) || reg.nullable() && !nullable {
            return denied!(
                GlobalFunction,
                "{} wants a {} in r{r}, which holds {}",
                global.name,
                kernel.title(type_id),
                self.describe(reg)
            );
        }
        let off = u32::try_from(reg.off).unwrap_or(u32::MAX);
        if !self.types_of(reg)?.points_to(reg.what, off, kernel, type_id, false) {
            return denied!(
                GlobalFunction,
                "{} wants a {} in r{r}, which holds {}",
                global.name,
                kernel.title(type_id),
                self.describe(reg)
            );
        }
        if reg.off < 0 || reg.num.as_const() != Some(0) {
            return denied!(ContextModified, "r{r} is {}, which is not where an object begins", self.describe(reg));
        }
        Ok(())
    }

    /// Sets up the arguments of a global function that is checked on its own.
    pub fn enter_global(&mut self, global: &Global) -> Check {
        global.check_sound()?;
        for (n, param) in global.params.iter().enumerate() {
            let mut reg = match *param {
                Param::Number | Param::Arena => Reg::UNKNOWN,
                Param::Ctx => Reg::pointer(Kind::Ctx),
                Param::Dynptr => self.foreign_dynptr(),
                Param::Mem { size, .. } => Reg { size, ..Reg::pointer(Kind::Mem) },
                Param::Trusted { type_id, .. } => Reg::kernel_object(type_id, flag::TRUSTED),
                Param::Untrusted { type_id } => Reg::kernel_object(type_id, flag::UNTRUSTED),
                Param::UntrustedMem => Reg::untrusted_memory(),
            };
            if let Param::Mem { nullable: true, .. } | Param::Trusted { nullable: true, .. } = *param {
                reg.flags |= flag::NULLABLE;
            }
            if reg.nullable() || reg.kind == Kind::Btf {
                reg.id = self.new_id();
            }
            *self.state.reg_mut(n as u8 + 1) = reg;
        }
        Ok(())
    }
}

/// The struct of the kernel that a struct of the program stands for, by its name without flavor.
pub(crate) fn kernel_type(program: Types<'_>, kernel: Types<'_>, local: u32) -> Result<u32, (Errno, String)> {
    let (name, kind) = (program.btf.name(local), program.btf.kind(local).map(|k| k.name()));
    let same = |id: &u32| kernel.btf.kind(*id).map(|k| k.name()) == kind;
    let found = kernel.btf.find_essential(skep_ebpf::btf::essential_name(name)).into_iter().filter(same);
    match kernel.btf.prefer_kernel(found.collect())[..] {
        _ if name.is_empty() => Err((Errno::EINVAL, "its type has no name".into())),
        [id] => Ok(id),
        [] => Err((Errno::ENOENT, format!("the kernel has no type like {name}"))),
        _ => Err((Errno::ESRCH, format!("the kernel has several types like {name}"))),
    }
}
