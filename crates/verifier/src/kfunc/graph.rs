//! What programs own, as arguments of kernel functions: objects, lists and trees, locks, work.

use skep_ebpf::btf::Kind as Type;
use skep_ebpf::kfunc::flag as kf;

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::kfunc::KfuncCall;
use crate::object::{Content, FieldKind, LockKind};
use crate::reg::{Kind, Reg, flag};
use crate::scalar::Scalar;

/// Largest object of which each CPU has its own.
const MAX_PERCPU_OBJECT: u32 = 512;
/// Errnos are at most this.
const MAX_ERRNO: i32 = 4095;

impl<'p> Env<'p> {
    /// An object that the program owns, to be freed.
    pub(super) fn kfunc_allocated(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let per_cpu = call.name() == "bpf_percpu_obj_drop_impl";
        let wanted = flag::ALLOCATED | if per_cpu { flag::PERCPU } else { 0 };
        if !(reg.kind == Kind::Btf && reg.flags & !flag::LOCAL_TYPE == wanted) {
            return self.refuse_object(call, r, reg, "an object that the program allocated");
        }
        if reg.ref_id == 0 {
            return self.refuse_object(call, r, reg, "an object that the program holds");
        }
        call.object = Some(*reg);
        Ok(())
    }

    fn refuse_object(&self, call: &KfuncCall<'p>, r: u8, reg: &Reg, wanted: &str) -> Check {
        invalid!(ArgumentType, "{} wants {wanted} in r{r}, which holds {}", call.name(), self.describe(reg))
    }

    /// An object that counts its references, owned or only seen.
    pub(super) fn kfunc_refcounted(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if !reg.is_allocated() {
            return self.refuse_object(call, r, reg, "an object that the program allocated");
        }
        if !self.record_of(reg).is_some_and(|record| record.has(FieldKind::Refcount)) {
            return self.refuse_object(call, r, reg, "an object with a bpf_refcount");
        }
        call.object = Some(*reg);
        Ok(())
    }

    /// A map value, or an object that the program owns.
    fn check_holder(&self, call: &KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        if !(reg.kind == Kind::MapValue && !reg.nullable() || reg.is_plain_allocated()) {
            return self.refuse_object(call, r, reg, "a part of a map value or of an allocated object");
        }
        Ok(())
    }

    /// A list head or the root of a tree.
    pub(super) fn kfunc_root(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        self.check_holder(call, r, reg)?;
        if reg.kind == Kind::Btf && reg.ref_id == 0 {
            return self.refuse_object(call, r, reg, "an object that the program holds");
        }
        let kind = if call.name().starts_with("bpf_list") { FieldKind::ListHead } else { FieldKind::RbRoot };
        let Some(var) = reg.num.as_const() else {
            return invalid!(SpecialField, "r{r} is {}; a {} is at a constant offset", reg.describe(), kind.name());
        };
        let off = i64::from(reg.off).wrapping_add(var as i64);
        let Some(field) = self.record_of(reg).and_then(|record| record.at(off, |k| k == kind)).copied() else {
            return invalid!(SpecialField, "there is no {} at offset {off} of what r{r} points to", kind.name());
        };
        if !self.holds_lock_of(reg) {
            return invalid!(LockNeeded, "{} changes the {} in r{r}, whose lock is not held", call.name(), kind.name());
        }
        call.root = Some(field);
        Ok(())
    }

    /// A node of a list or tree.
    pub(super) fn kfunc_node(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        let name = call.name();
        let kind = if name.starts_with("bpf_list") { FieldKind::ListNode } else { FieldKind::RbNode };
        if kind == FieldKind::ListNode || name == "bpf_rbtree_add_impl" {
            if !reg.is_plain_allocated() || reg.ref_id == 0 {
                return self.refuse_object(call, r, reg, "an object that the program holds");
            }
        } else {
            if !reg.is_non_owning() && reg.ref_id == 0 {
                return self.refuse_object(call, r, reg, "an object that is in the tree");
            }
            if self.in_tree_callback() {
                return invalid!(LockHeld, "{name} is called from the function that compares nodes of a tree");
            }
        }
        let Some(var) = reg.num.as_const() else {
            return invalid!(SpecialField, "r{r} is {}; a {} is at a constant offset", reg.describe(), kind.name());
        };
        let off = i64::from(reg.off).wrapping_add(var as i64);
        if self.record_of(reg).and_then(|record| record.at(off, |k| k == kind)).is_none() {
            return invalid!(SpecialField, "there is no {} at offset {off} of what r{r} points to", kind.name());
        }
        let Some(Content::Nodes { of, node }) = call.root.map(|f| f.content) else {
            return invalid!(ArgumentType, "{name} has no list or tree");
        };
        if reg.flags & flag::LOCAL_TYPE == 0 || reg.what != of {
            let holds = self.describe(&Reg { what: of, ..*reg });
            return invalid!(
                ArgumentType,
                "{name}: the list or tree in r1 is for {holds}, r{r} holds {}",
                self.describe(reg)
            );
        }
        if off != i64::from(node) {
            return invalid!(
                ArgumentType,
                "{name}: the list or tree in r1 holds objects by the node at offset {node}, not by that at {off}"
            );
        }
        call.object = Some(*reg);
        Ok(())
    }

    pub(super) fn kfunc_workqueue(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        self.kfunc_async_field(call, r, reg, FieldKind::Workqueue)
    }

    pub(super) fn kfunc_task_work(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        self.kfunc_async_field(call, r, reg, FieldKind::TaskWork)
    }

    fn kfunc_async_field(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg, kind: FieldKind) -> Check {
        if reg.kind != Kind::MapValue || reg.nullable() {
            return self.refuse_object(call, r, reg, "a part of a map value");
        }
        let owner = self.check_async_field(r, reg, kind)?;
        (call.map, call.identity) = (Some(owner.map), Some(owner));
        Ok(())
    }

    pub(super) fn kfunc_res_spin_lock(&mut self, call: &mut KfuncCall<'p>, r: u8, reg: &Reg) -> Check {
        self.check_holder(call, r, reg)?;
        match call.name() {
            "bpf_res_spin_lock" => self.take_lock(r, reg, LockKind::Resilient),
            "bpf_res_spin_lock_irqsave" => self.take_lock(r, reg, LockKind::ResilientIrq),
            "bpf_res_spin_unlock" => self.give_lock(r, reg, LockKind::Resilient),
            "bpf_res_spin_unlock_irqrestore" => self.give_lock(r, reg, LockKind::ResilientIrq),
            name => invalid!(ArgumentType, "{name} does not say what it does to the lock in r{r}"),
        }
    }

    /// Before the arguments are checked: calls that go on in two ways (a lock that may not be had).
    pub(super) fn kfunc_branches(&mut self, call: &KfuncCall<'p>) -> Check {
        if !takes_lock(call.name()) {
            return Ok(());
        }
        let mut failed = Reg::UNKNOWN;
        (failed.num.smin, failed.num.smax) = ((-MAX_ERRNO).into(), -1);
        (failed.num.smin32, failed.num.smax32) = (-MAX_ERRNO, -1);
        failed.num.sync();
        let next = self.insn + 1;
        let without = self.push_path(next)?;
        for r in 0..=5 {
            *without.reg_mut(r) = Reg::NOT_INIT;
        }
        *without.reg_mut(0) = failed;
        Ok(())
    }

    /// What the arguments owned and the function takes over, such as a node that is put into a list.
    pub(super) fn kfunc_hand_over(&mut self, call: &KfuncCall<'p>) -> Check {
        let adds =
            matches!(call.name(), "bpf_list_push_front_impl" | "bpf_list_push_back_impl" | "bpf_rbtree_add_impl");
        if !adds {
            return Ok(());
        }
        let node = *self.state.reg(2);
        let Some(n) = self.state.held.iter().position(|h| h.id == node.ref_id) else {
            return invalid!(ReleaseWithoutAcquire, "{} is given a node that is not held", call.name());
        };
        self.state.held.remove(n);
        let seen = self.non_owning_flags(&node);
        let given = |reg: &Reg| reg.ref_id == node.ref_id;
        self.state.change_regs(given, |reg| {
            reg.ref_id = 0;
            reg.flags |= seen;
        });
        Ok(())
    }

    /// What marks an object of this type as only seen: if it counts its references, it outlives the lock.
    fn non_owning_flags(&self, reg: &Reg) -> u32 {
        let counted = self.record_of(reg).is_some_and(|record| record.has(FieldKind::Refcount));
        flag::NON_OWNING | if counted { flag::RCU } else { 0 }
    }

    /// What functions return whose result depends on the program's own types: new objects, nodes.
    pub(super) fn kfunc_owned_result(&mut self, call: &KfuncCall<'p>) -> Check<Reg> {
        let mut nullable = call.has(kf::RET_NULL);
        let mut r0 = match (call.name(), call.object) {
            ("bpf_obj_new_impl", _) => self.new_object(call, false)?,
            ("bpf_percpu_obj_new_impl", _) => self.new_object(call, true)?,
            ("bpf_refcount_acquire_impl", Some(object)) => {
                // Of what the program holds there is surely one more reference to be had.
                nullable &= object.is_non_owning() || object.ref_id == 0;
                self.own_object(object.what)
            }
            _ => {
                let Some(Content::Nodes { of, node }) = call.root.map(|f| f.content) else {
                    return invalid!(ArgumentType, "{} has no list or tree to return a node of", call.name());
                };
                Reg { off: node as i32, ..self.own_object(of) }
            }
        };
        if nullable {
            r0.flags |= flag::NULLABLE;
            r0.id = self.new_id();
        }
        if call.has(kf::ACQUIRE) {
            let id = self.acquire();
            if nullable {
                r0.id = id;
            }
            r0.ref_id = id;
        } else {
            r0.flags |= self.non_owning_flags(&r0);
        }
        if r0.id == 0 && self.may_hold_lock(&r0) {
            r0.id = self.new_id();
        }
        Ok(r0)
    }

    /// An object that is seen in a list or tree, by its node.
    pub(super) fn seen_node(&self, of: u32, node: u32) -> Reg {
        let mut reg = Reg { off: node as i32, ..self.own_object(of) };
        reg.flags |= self.non_owning_flags(&reg);
        reg
    }

    fn own_object(&self, what: u32) -> Reg {
        Reg { what, flags: flag::ALLOCATED | flag::LOCAL_TYPE, ..Reg::pointer(Kind::Btf) }
    }

    /// A new object of the program's type that the constant names.
    fn new_object(&self, call: &KfuncCall<'p>, per_cpu: bool) -> Check<Reg> {
        let name = call.name();
        let id = call.constant.and_then(|x| u32::try_from(x).ok());
        let Some(btf) = self.prog.btf.as_deref() else {
            return invalid!(BtfInfo, "{name} makes an object of a type of the program's BTF, which has none");
        };
        let found = id.and_then(|id| match btf.kind(id) {
            Some(Type::Struct(s)) => Some((id, s.size)),
            _ => None,
        });
        let Some((id, size)) = found else {
            return invalid!(ArgumentType, "{name} makes objects of structs of the program");
        };
        let mut r0 = self.own_object(id);
        if per_cpu {
            if size > MAX_PERCPU_OBJECT {
                return invalid!(ArgumentSize, "{name} makes objects of up to {MAX_PERCPU_OBJECT} bytes, not {size}");
            }
            if !super::arg::is_plain(btf, id, 0) || self.structs.record(id).is_some() {
                return invalid!(ArgumentType, "{name} makes objects of structs with nothing but numbers");
            }
            r0.flags |= flag::PERCPU;
        }
        Ok(r0)
    }
}

/// True for functions that take a lock, or fail to.
pub(super) fn takes_lock(name: &str) -> bool {
    matches!(name, "bpf_res_spin_lock" | "bpf_res_spin_lock_irqsave")
}

/// What such a function returns when it has the lock.
pub(super) fn lock_taken() -> Reg {
    Reg { num: Scalar::constant(0), ..Reg::UNKNOWN }
}
