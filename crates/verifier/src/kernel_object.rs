//! Accesses through pointers to objects of BTF types: what is there, and how far what is loaded can be trusted.

use crate::check_mem::Access;
use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid};
use crate::kernel_types::{Field, FieldType, Types, WalkError};
use crate::kernel_writes;
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};

/// Suffixes of the companion structs that list members by how far they are safe.
mod lists {
    pub const TRUSTED: &str = "__safe_trusted";
    pub const TRUSTED_OR_NULL: &str = "__safe_trusted_or_null";
    pub const RCU: &str = "__safe_rcu";
    pub const RCU_OR_NULL: &str = "__safe_rcu_or_null";
}

impl Env<'_> {
    /// Checks an access to an object of a BTF type, `off` bytes from its start; gives what a load yields.
    pub fn check_kernel_object(&mut self, a: Access, ptr: &Reg, off: i64) -> Check<Reg> {
        if self.options.host.is_some() {
            return denied!(
                KernelObjectAccess,
                "r{} is an object of the application, which only its functions look into",
                a.reg
            );
        }
        self.check_sees_kernel(ptr)?;
        let types = self.types_of(ptr)?;
        let local = ptr.flags & flag::LOCAL_TYPE != 0;
        let r = a.reg;
        if !local && !self.prog.gpl_compatible() {
            return invalid!(
                NeedsGpl,
                "r{r} is {}, which only programs with a GPL-compatible licence may access",
                self.describe(ptr)
            );
        }
        let Ok(at) = u32::try_from(off) else {
            return denied!(NegativeOffset, "r{r} is {}; offset {off} is in front of it", self.describe(ptr));
        };
        if ptr.num.as_const() != Some(0) {
            return denied!(
                UnboundedOffset,
                "r{r} is {}; objects are only accessed at constant offsets",
                self.describe(ptr)
            );
        }
        if ptr.flags & (flag::USER | flag::PERCPU) != 0 {
            return denied!(KernelObjectAccess, "r{r} is {}; it cannot be accessed directly", self.describe(ptr));
        }
        let allocated = ptr.flags & flag::ALLOCATED != 0;
        if a.write {
            if ptr.flags & flag::UNTRUSTED != 0 {
                return denied!(ReadOnlyMemory, "r{r} is {}, which can only be read", self.describe(ptr));
            }
            if !allocated {
                self.check_kernel_write(a, ptr, at, types)?;
                return Ok(Reg::UNKNOWN);
            }
        }
        if allocated {
            self.check_special_fields(r, ptr, at, a.size)?;
        }
        let field = types.walk(ptr.what, at, a.size).map_err(|e| refused(&self.describe(ptr), r, e))?;
        let mut loaded = match field.what {
            FieldType::Number => Reg::UNKNOWN,
            FieldType::PlainPointer => self.plain_pointer(),
            // In memory that the program writes a pointer to an object may be anything.
            FieldType::Pointer(_) if allocated => Reg::UNKNOWN,
            FieldType::Pointer(to) => Reg::kernel_object(to, self.loaded_trust(ptr, &field, to, types)),
        };
        if loaded.nullable() {
            loaded.id = self.new_id();
        }
        Ok(loaded)
    }

    /// A pointer to something that is no struct, found in a kernel object.
    pub fn plain_pointer(&self) -> Reg {
        if self.options.profile.untrusted_memory() { Reg::untrusted_memory() } else { Reg::UNKNOWN }
    }

    /// Flags of a pointer loaded from `field` of the object behind `ptr`.
    fn loaded_trust(&self, ptr: &Reg, field: &Field<'_>, to: u32, types: Types<'_>) -> u32 {
        let listed = |suffix| types.listed(ptr.what, suffix, field.name, to);
        let tags = field.flags;
        if ptr.flags & flag::UNTRUSTED != 0 {
            return flag::UNTRUSTED;
        }
        if !ptr.is_trusted() && !ptr.is_rcu() {
            // Of old, what is found through a pointer that nothing is known of is as good as that one.
            return tags & !flag::RCU;
        }
        if listed(lists::TRUSTED) {
            return tags | flag::TRUSTED;
        }
        if listed(lists::TRUSTED_OR_NULL) {
            return tags | flag::TRUSTED | flag::NULLABLE;
        }
        if !self.in_rcu_section() || ptr.nullable() {
            return flag::UNTRUSTED;
        }
        if listed(lists::RCU) {
            return tags | flag::RCU;
        }
        if listed(lists::RCU_OR_NULL) {
            return (tags | flag::RCU | flag::NULLABLE) & !flag::UNTRUSTED;
        }
        if tags & flag::RCU != 0 {
            return tags | flag::NULLABLE;
        }
        tags
    }

    /// Memory of unknown size: what is accessed of it is compared with its size later.
    pub fn check_buffer(&mut self, r: u8, ptr: &Reg, off: i64, size: u64) -> Check {
        if off < 0 {
            return denied!(NegativeOffset, "r{r} is a buffer; offset {off} is in front of it");
        }
        if ptr.num.as_const() != Some(0) {
            return denied!(UnboundedOffset, "r{r} is a buffer, which is only accessed at constant offsets");
        }
        let end = u32::try_from(off.unsigned_abs().saturating_add(size)).unwrap_or(u32::MAX);
        if let Some(seen) = self.buffers.get_mut(usize::from(!ptr.read_only())) {
            *seen = end.max(*seen);
        }
        Ok(())
    }

    /// Writes to kernel objects: a few members, by the kind of program.
    fn check_kernel_write(&self, a: Access, ptr: &Reg, at: u32, types: Types<'_>) -> Check {
        if kernel_writes::permitted(self.prog.prog_type, self.hook.ops, types, ptr.what, at, a.size) {
            return Ok(());
        }
        denied!(
            ReadOnlyMemory,
            "r{} is {}; its {} bytes at offset {at} cannot be written by this program",
            a.reg,
            self.describe(ptr),
            a.size
        )
    }
}

/// The rejection for a walk that found nothing.
pub(crate) fn refused(what: &str, r: u8, e: WalkError) -> Box<Failure> {
    use skep_ebpf::Errno;
    let (errno, text) = match e {
        WalkError::NotAStruct(t) => (Errno::EINVAL, format!("{t} is no struct")),
        WalkError::Beyond(t) | WalkError::PartOfPointer(t) => (Errno::EACCES, t),
        WalkError::NoField(t) => (Errno::EINVAL, t),
        WalkError::Broken => (Errno::EFAULT, "its type makes no sense".into()),
    };
    Failure::new(errno, Reason::KernelObjectAccess, format!("r{r} is {what}: {text}"))
}

impl Reg {
    /// An address that may be anything: loads through it are guarded, at any offset.
    pub fn untrusted_memory() -> Reg {
        Reg { flags: flag::READ_ONLY | flag::UNTRUSTED, ..Reg::pointer(Kind::Mem) }
    }

    /// True for an address that may be anything.
    pub fn is_untrusted_memory(&self) -> bool {
        self.kind == Kind::Mem && self.flags & flag::UNTRUSTED != 0
    }
}
