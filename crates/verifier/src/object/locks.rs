//! Spin locks: who holds which, and what may be done meanwhile.

use crate::env::Env;
use crate::fail::{Check, denied, invalid};
use crate::object::{FieldKind, Record};
use crate::reg::{Kind, Reg};

const SPIN_LOCK: u32 = 93;
const SPIN_UNLOCK: u32 = 94;

/// How a lock was taken, and must be given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LockKind {
    /// `bpf_spin_lock`.
    Spin,
    /// `bpf_res_spin_lock`.
    Resilient,
    /// `bpf_res_spin_lock_irqsave`.
    ResilientIrq,
}

impl LockKind {
    fn field(self) -> FieldKind {
        match self {
            LockKind::Spin => FieldKind::SpinLock,
            _ => FieldKind::ResSpinLock,
        }
    }
}

/// What a lock is a part of; together with an id it tells one lock from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LockOwner {
    /// A value of this map.
    Map(u32),
    /// An object of the program.
    Object,
}

/// A lock that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Lock {
    pub kind: LockKind,
    pub owner: LockOwner,
    /// The id of the pointer that it was taken through.
    pub id: u32,
    /// Where it was taken.
    pub insn: usize,
}

impl Lock {
    /// Same in all but the id.
    pub fn same_kind(&self, other: &Lock) -> bool {
        self.kind == other.kind && self.owner == other.owner
    }
}

/// Kernel functions that may be called while a lock is held.
pub(crate) fn allowed_under_lock(kfunc: &str) -> bool {
    matches!(
        kfunc,
        "bpf_refcount_acquire_impl"
            | "bpf_list_push_front_impl"
            | "bpf_list_push_back_impl"
            | "bpf_list_pop_front"
            | "bpf_list_pop_back"
            | "bpf_list_front"
            | "bpf_list_back"
            | "bpf_rbtree_add_impl"
            | "bpf_rbtree_remove"
            | "bpf_rbtree_first"
            | "bpf_rbtree_root"
            | "bpf_rbtree_left"
            | "bpf_rbtree_right"
            | "bpf_iter_num_new"
            | "bpf_iter_num_next"
            | "bpf_iter_num_destroy"
            | "bpf_res_spin_lock"
            | "bpf_res_spin_unlock"
            | "bpf_res_spin_lock_irqsave"
            | "bpf_res_spin_unlock_irqrestore"
    )
}

fn owner(reg: &Reg) -> LockOwner {
    if reg.kind == Kind::MapValue { LockOwner::Map(reg.what) } else { LockOwner::Object }
}

impl Env<'_> {
    /// Under a lock no helper is called but the one that ends it.
    pub fn check_helper_under_lock(&self, helper: u32) -> Check {
        match self.state.locks.last() {
            Some(lock) if helper != SPIN_UNLOCK => {
                invalid!(LockHeld, "a helper is called while the lock taken at instruction {} is held", lock.insn)
            }
            _ => Ok(()),
        }
    }

    /// Under a lock only kernel functions for what it protects are called.
    pub fn check_kfunc_under_lock(&self, name: &str) -> Check {
        match self.state.locks.last() {
            Some(lock) if !allowed_under_lock(name) => {
                invalid!(LockHeld, "{name} is called while the lock taken at instruction {} is held", lock.insn)
            }
            _ => Ok(()),
        }
    }

    /// The special fields of what a pointer leads to: a map's value or an object of the program.
    pub fn record_of(&self, reg: &Reg) -> Option<&Record> {
        match reg.kind {
            Kind::MapValue => self.maps.get(reg.what as usize).map(|m| &m.record),
            Kind::Btf if reg.is_allocated() => self.structs.record(reg.what),
            _ => None,
        }
    }

    /// True if the pointer may lead to a lock, so that its id must be kept to tell locks apart.
    pub fn may_hold_lock(&self, reg: &Reg) -> bool {
        self.record_of(reg).is_some_and(|r| r.any(FieldKind::is_lock))
    }

    /// The argument of `bpf_spin_lock` or `bpf_spin_unlock`.
    pub fn check_spin_lock(&mut self, helper: u32, r: u8, reg: &Reg) -> Check {
        if self.in_tree_callback() {
            return denied!(LockHeld, "locks are neither taken nor released in the callback of a tree");
        }
        if helper == SPIN_LOCK {
            self.take_lock(r, reg, LockKind::Spin)
        } else {
            self.give_lock(r, reg, LockKind::Spin)
        }
    }

    /// Takes the lock that the register points to.
    pub fn take_lock(&mut self, r: u8, reg: &Reg, kind: LockKind) -> Check {
        self.check_lock_field(r, reg, kind)?;
        let owner = owner(reg);
        let resilient = |l: &Lock| l.kind != LockKind::Spin && l.owner == owner && l.id == reg.id;
        if kind != LockKind::Spin && self.state.locks.iter().any(resilient) {
            return invalid!(LockHeld, "the lock in r{r} is held already");
        }
        self.state.locks.push(Lock { kind, owner, id: reg.id, insn: self.insn });
        Ok(())
    }

    /// Releases the lock that the register points to, which must be the last one taken.
    pub fn give_lock(&mut self, r: u8, reg: &Reg, kind: LockKind) -> Check {
        self.check_lock_field(r, reg, kind)?;
        let owner = owner(reg);
        let this = |l: &Lock| l.owner == owner && l.id == reg.id;
        let Some(last) = self.state.locks.last() else {
            return invalid!(LockHeld, "the lock in r{r} is released, but none is held");
        };
        if !self.state.locks.iter().any(|l| l.kind == kind && this(l)) {
            return invalid!(LockHeld, "the lock in r{r} is not the one that was taken at instruction {}", last.insn);
        }
        if !this(last) {
            return invalid!(
                LockHeld,
                "the lock in r{r} is released before the one that was taken after it, at instruction {}",
                last.insn
            );
        }
        let held = self.state.locks.iter().rposition(|l| l.kind == kind && this(l));
        if let Some(n) = held {
            self.state.locks.remove(n);
        }
        self.forget_non_owning();
        Ok(())
    }

    fn check_lock_field(&self, r: u8, reg: &Reg, kind: LockKind) -> Check {
        let Some(var) = reg.num.as_const() else {
            return invalid!(SpecialField, "r{r} is {}; a lock is at a constant offset", reg.describe());
        };
        let name = kind.field().name();
        let Some(field) = self.record_of(reg).and_then(|record| record.first(kind.field())) else {
            return invalid!(SpecialField, "r{r} is {}, which has no {name}", reg.describe());
        };
        let off = i64::from(reg.off).wrapping_add(var as i64);
        if off != i64::from(field.off) {
            return invalid!(SpecialField, "r{r} points to offset {off}; the {name} is at {}", field.off);
        }
        Ok(())
    }

    /// True if the lock of what the register points to is held.
    pub fn holds_lock_of(&self, reg: &Reg) -> bool {
        let owner = owner(reg);
        self.state.locks.iter().any(|l| l.owner == owner && l.id == reg.id)
    }

    /// What was only seen under a lock is gone with it.
    pub fn forget_non_owning(&mut self) {
        let lost = self.lost();
        self.state.change_regs(Reg::is_non_owning, |r| *r = lost);
    }
}
