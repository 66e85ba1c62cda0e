//! Pointers to objects that are kept in map values and in other objects.

use skep_ebpf::Errno;

use crate::check_mem::{Access, Operand};
use crate::env::Env;
use crate::fail::{Check, Failure, denied, invalid, unsupported};
use crate::object::{Field, FieldKind, Pointee};
use crate::reason::Reason;
use crate::reg::{Kind, Reg, flag};

/// Kernel types whose objects stay valid until the RCU read section ends.
const RCU_PROTECTED: [&str; 5] = ["bpf_cpumask", "bpf_crypto_ctx", "cgroup", "prog_test_ref_kfunc", "task_struct"];

impl Env<'_> {
    /// An access of a map value that begins at a pointer field; gives what a load yields.
    pub fn check_kptr_access(&mut self, a: Access, operand: Operand, field: Field) -> Check<Reg> {
        // Atomic operations, and loads that extend a sign.
        if a.signed || a.aligned {
            return denied!(SpecialField, "a {} is only loaded and stored plainly", field.kind.name());
        }
        if !a.write {
            return self.load_kptr(&field);
        }
        if field.kind != FieldKind::KptrUntrusted {
            return denied!(SpecialField, "a {} cannot be stored to; bpf_kptr_xchg moves it", field.kind.name());
        }
        match operand {
            Operand::Reg(r) => {
                let reg = *self.state.reg(r);
                if reg.is_null() {
                    self.mark_precise(r)?;
                } else {
                    self.check_kptr_type(r, &reg, &field)?;
                }
            }
            Operand::Imm(0) => {}
            _ => {
                return denied!(
                    SpecialField,
                    "only null and pointers are stored to the {} at offset {}",
                    field.kind.name(),
                    field.off
                );
            }
        }
        Ok(Reg::UNKNOWN)
    }

    fn load_kptr(&mut self, field: &Field) -> Check<Reg> {
        let Some(pointee) = field.pointee() else {
            return denied!(SpecialField, "the field at offset {} holds no pointer", field.off);
        };
        let mut reg = self.pointer_to(pointee)?;
        reg.flags |= flag::NULLABLE;
        reg.id = self.new_id();
        if field.kind == FieldKind::Uptr {
            let size = self.prog.btf.as_deref().and_then(|b| b.size_of(reg.what)).and_then(|s| u32::try_from(s).ok());
            return Ok(Reg { flags: flag::NULLABLE, id: reg.id, size: size.unwrap_or(0), ..Reg::pointer(Kind::Mem) });
        }
        let local = reg.flags & flag::LOCAL_TYPE != 0;
        let rcu_safe = field.kind == FieldKind::KptrPercpu
            || field.kind == FieldKind::Kptr && (local || RCU_PROTECTED.contains(&self.type_name(&reg)));
        if !rcu_safe || !self.in_rcu_section() {
            reg.flags |= flag::UNTRUSTED;
            return Ok(reg);
        }
        reg.flags |= flag::RCU;
        if field.kind == FieldKind::KptrPercpu {
            reg.flags |= flag::PERCPU;
        } else if local {
            reg.flags |= flag::ALLOCATED;
        }
        if local && self.structs.record(reg.what).is_some_and(|r| r.any(FieldKind::is_node)) {
            reg.flags |= flag::NON_OWNING;
        }
        Ok(reg)
    }

    /// A pointer to an object of this type.
    fn pointer_to(&self, pointee: Pointee) -> Check<Reg> {
        match pointee {
            Pointee::Kernel(what) => Ok(Reg { what, ..Reg::pointer(Kind::Btf) }),
            Pointee::Local(what) => Ok(Reg { what, flags: flag::LOCAL_TYPE, ..Reg::pointer(Kind::Btf) }),
            Pointee::Unknown => unsupported!(UnsupportedFeature, "kptrs are not judged without the kernel's types"),
        }
    }

    /// The name of the type of an object.
    fn type_name(&self, reg: &Reg) -> &'_ str {
        self.log.names.of(reg).map_or("?", |b| b.name(reg.what))
    }

    /// A pointer fits the field that it is to be kept in.
    pub fn check_kptr_type(&self, r: u8, reg: &Reg, field: &Field) -> Check {
        let Some(pointee) = field.pointee() else {
            return denied!(SpecialField, "the field at offset {} holds no pointer", field.off);
        };
        let wanted = self.pointer_to(pointee)?;
        let refused = || {
            denied!(
                ArgumentType,
                "the {} at offset {} is for {}; r{r} holds {}",
                field.kind.name(),
                field.off,
                self.type_name(&wanted),
                if reg.kind == Kind::Btf { self.type_name(reg).to_owned() } else { reg.describe() }
            )
        };
        if reg.kind != Kind::Btf {
            return refused();
        }
        let local = reg.flags & flag::LOCAL_TYPE != 0;
        let percpu = field.kind == FieldKind::KptrPercpu;
        let permitted = if local {
            flag::NULLABLE | flag::ALLOCATED | if percpu { flag::PERCPU } else { 0 }
        } else {
            let untrusted = if field.kind == FieldKind::KptrUntrusted { flag::UNTRUSTED } else { 0 };
            flag::NULLABLE | flag::TRUSTED | flag::RCU | untrusted
        };
        if reg.flags & !(permitted | flag::LOCAL_TYPE) != 0 || percpu != (reg.flags & flag::PERCPU != 0) {
            return refused();
        }
        if reg.off < 0 || reg.num.as_const() != Some(0) {
            return denied!(ArgumentType, "r{r} is {}, which cannot be kept", reg.describe());
        }
        let same = local == (wanted.flags & flag::LOCAL_TYPE != 0) && reg.what == wanted.what && reg.off == 0;
        if same {
            return Ok(());
        }
        // A pointer that nobody relies on may lead to what its object begins with, there.
        let off = u32::try_from(reg.off).unwrap_or(u32::MAX);
        let part = field.kind == FieldKind::KptrUntrusted
            && self.types_of(reg)?.points_to(reg.what, off, self.types_of(&wanted)?, wanted.what, false);
        if part { Ok(()) } else { refused() }
    }

    /// The destination of `bpf_kptr_xchg`; gives the field.
    pub fn check_kptr_destination(&self, r: u8, reg: &Reg) -> Check<Field> {
        let Some(var) = reg.num.as_const() else {
            return invalid!(SpecialField, "r{r} is {}; a kptr is at a constant offset", reg.describe());
        };
        let Some(record) = self.record_of(reg).filter(|r| r.any(|k| k.is_pointer() && k != FieldKind::Uptr)) else {
            return invalid!(SpecialField, "r{r} is {}, which has no kptr", reg.describe());
        };
        let off = i64::from(reg.off).wrapping_add(var as i64);
        match record.at(off, |k| k.is_pointer() && k != FieldKind::Uptr) {
            None => denied!(SpecialField, "there is no kptr at offset {off} of what r{r} points to"),
            Some(f) if !f.kind.is_owning() => {
                denied!(SpecialField, "the kptr at offset {off} of what r{r} points to owns nothing")
            }
            Some(f) => Ok(*f),
        }
    }

    /// The new content of `bpf_kptr_xchg`: null, or an object that is held; gives the reference.
    pub fn check_kptr_source(&mut self, r: u8, reg: &Reg, field: &Field) -> Check<u32> {
        if reg.is_null() {
            self.mark_precise(r)?;
            return Ok(0);
        }
        let known = flag::NULLABLE | flag::LOCAL_TYPE;
        let owned = flag::ALLOCATED | flag::PERCPU;
        let usual = reg.flags & !known == 0
            || matches!(reg.flags & !known, flag::TRUSTED | flag::RCU)
            || reg.flags & flag::ALLOCATED != 0 && reg.flags & !(flag::LOCAL_TYPE | owned) == 0;
        if reg.is_allocated() && reg.nullable() {
            let text = format!("r{r} is {}; check it for null first", self.describe(reg));
            return Err(Failure::new(Errno::EFAULT, Reason::PossiblyNull, text));
        }
        if reg.kind != Kind::Btf || !usual || reg.nullable() {
            return denied!(
                ArgumentType,
                "bpf_kptr_xchg wants an object that the program holds in r{r}, which holds {}",
                reg.describe()
            );
        }
        self.check_kptr_type(r, reg, field)?;
        if reg.off != 0 {
            return invalid!(ReleaseWithoutAcquire, "r{r} was moved by {}; it is given away as it was got", reg.off);
        }
        self.check_unmodified(r, reg)?;
        if reg.ref_id == 0 {
            return invalid!(ReleaseWithoutAcquire, "r{r} is {}, which the program does not hold", reg.describe());
        }
        Ok(reg.ref_id)
    }

    /// Gives the reference to the field.
    pub fn give_kptr(&mut self, reference: u32) -> bool {
        let in_rcu = self.in_rcu_section();
        let Some(n) = self.state.held.iter().position(|h| h.id == reference) else { return false };
        self.state.held.remove(n);
        let lost = self.lost();
        let given = |r: &Reg| r.ref_id == reference;
        self.state.change_regs(given, |r| {
            // Memory of each CPU goes only after the RCU read section.
            if in_rcu && r.flags & flag::ALLOCATED != 0 && r.flags & flag::PERCPU != 0 {
                r.ref_id = 0;
                r.flags = (r.flags & !flag::ALLOCATED) | flag::RCU;
            } else {
                *r = lost;
            }
        });
        true
    }

    /// What `bpf_kptr_xchg` returns: the old content, perhaps null.
    pub fn taken_kptr(&self, field: &Field) -> Check<Reg> {
        let Some(pointee) = field.pointee() else {
            return denied!(SpecialField, "the field at offset {} holds no pointer", field.off);
        };
        let mut reg = self.pointer_to(pointee)?;
        reg.flags |= flag::NULLABLE;
        if reg.flags & flag::LOCAL_TYPE != 0 {
            reg.flags |= flag::ALLOCATED;
            if field.kind == FieldKind::KptrPercpu {
                reg.flags |= flag::PERCPU;
            }
        }
        Ok(reg)
    }
}
