//! When types of two BTFs count as the same.
//!
//! Three relations, from loose to strict: members that may stand for each other, types that may stand for each other
//! (also used for kernel functions and variables), and types that match member by member.

use skep_ebpf::btf::{Btf, Composite, Kind, MAX_DEPTH, essential_name, int_encoding};

use super::{Budget, CoreError, same_kind};

fn resolve(btf: &Btf, id: u32) -> Result<(u32, &Kind), CoreError> {
    let id = btf.resolve(id).ok_or(CoreError::TooDeep)?;
    Ok((id, btf.kind(id).ok_or(CoreError::TooDeep)?))
}

/// May a member of type `b` stand for one of type `a`?
pub(super) fn members(local: &Btf, a: u32, target: &Btf, b: u32) -> Result<bool, CoreError> {
    let (mut a, mut b) = (a, b);
    for _ in 0..MAX_DEPTH {
        let ((a_id, a_kind), (b_id, b_kind)) = (resolve(local, a)?, resolve(target, b)?);
        if a_kind.composite().is_some() && b_kind.composite().is_some() {
            return Ok(true);
        }
        if !same_kind(Some(a_kind), Some(b_kind)) {
            return Ok(false);
        }
        match (a_kind, b_kind) {
            (Kind::Ptr { .. } | Kind::Float { .. }, _) => return Ok(true),
            (Kind::Fwd { .. } | Kind::Enum { .. } | Kind::Enum64 { .. }, _) => {
                let (a, b) = (essential_name(local.name(a_id)), essential_name(target.name(b_id)));
                return Ok(a.is_empty() || b.is_empty() || a == b);
            }
            (Kind::Int { offset: x, .. }, Kind::Int { offset: y, .. }) => return Ok(*x == 0 && *y == 0),
            (Kind::Array { elem: x, .. }, Kind::Array { elem: y, .. }) => (a, b) = (*x, *y),
            _ => return Ok(false),
        }
    }
    Err(CoreError::TooDeep)
}

/// May type `b` stand for type `a`? Names are the caller's business.
pub(crate) fn types(local: &Btf, a: u32, target: &Btf, b: u32) -> Result<bool, CoreError> {
    if !same_kind(local.kind(a), target.kind(b)) {
        return Ok(false);
    }
    types_within(local, a, target, b, MAX_DEPTH, &mut Budget::new())
}

fn types_within(local: &Btf, a: u32, target: &Btf, b: u32, level: u32, budget: &mut Budget) -> Result<bool, CoreError> {
    let (mut a, mut b) = (a, b);
    for _ in 0..MAX_DEPTH {
        budget.spend()?;
        let ((_, a_kind), (_, b_kind)) = (resolve(local, a)?, resolve(target, b)?);
        if !same_kind(Some(a_kind), Some(b_kind)) {
            return Ok(false);
        }
        match (a_kind, b_kind) {
            (Kind::Void | Kind::Struct(_) | Kind::Union(_) | Kind::Fwd { .. }, _) => return Ok(true),
            (Kind::Enum { .. } | Kind::Enum64 { .. }, _) => return Ok(true),
            (Kind::Int { offset: x, .. }, Kind::Int { offset: y, .. }) => return Ok(*x == 0 && *y == 0),
            (Kind::Ptr { ty: x }, Kind::Ptr { ty: y }) => (a, b) = (*x, *y),
            (Kind::Array { elem: x, .. }, Kind::Array { elem: y, .. }) => (a, b) = (*x, *y),
            (Kind::FuncProto { ret: x, params: p }, Kind::FuncProto { ret: y, params: q }) => {
                if p.len() != q.len() {
                    return Ok(false);
                }
                for (p, q) in p.iter().zip(q) {
                    let level = level.checked_sub(1).ok_or(CoreError::TooDeep)?;
                    if !types_within(local, p.ty, target, q.ty, level, budget)? {
                        return Ok(false);
                    }
                }
                (a, b) = (*x, *y);
            }
            _ => return Ok(false),
        }
    }
    Err(CoreError::TooDeep)
}

/// Does type `b` have all that type `a` has, member by member?
pub(super) fn matches(local: &Btf, a: u32, target: &Btf, b: u32) -> Result<bool, CoreError> {
    Match { local, target, budget: Budget::new() }.types(a, b, false, MAX_DEPTH)
}

struct Match<'a> {
    local: &'a Btf,
    target: &'a Btf,
    budget: Budget,
}

impl Match<'_> {
    fn types(&mut self, a: u32, b: u32, behind_ptr: bool, level: u32) -> Result<bool, CoreError> {
        let (local, target) = (self.local, self.target);
        let (mut a, mut b, mut behind_ptr) = (a, b, behind_ptr);
        if level == 0 {
            return Err(CoreError::TooDeep);
        }
        for _ in 0..MAX_DEPTH {
            self.budget.spend()?;
            let ((a_id, a_kind), (b_id, b_kind)) = (resolve(local, a)?, resolve(target, b)?);
            if !same_name(local.name(a_id), target.name(b_id)) {
                return Ok(false);
            }
            match (a_kind, b_kind) {
                (Kind::Void, Kind::Void) => return Ok(true),
                (Kind::Fwd { union: x }, Kind::Fwd { union: y }) => return Ok(x == y),
                // Behind a pointer a declaration is as good as the definition.
                (Kind::Fwd { union }, Kind::Struct(_)) | (Kind::Struct(_), Kind::Fwd { union }) => {
                    return Ok(behind_ptr && !union);
                }
                (Kind::Fwd { union }, Kind::Union(_)) | (Kind::Union(_), Kind::Fwd { union }) => {
                    return Ok(behind_ptr && *union);
                }
                (Kind::Struct(x), Kind::Struct(y)) | (Kind::Union(x), Kind::Union(y)) => {
                    return if behind_ptr { Ok(true) } else { self.composites(x, y, level) };
                }
                (Kind::Enum { .. } | Kind::Enum64 { .. }, Kind::Enum { .. } | Kind::Enum64 { .. }) => {
                    return Ok(self.enums(a_kind, a_id, b_kind, b_id));
                }
                (Kind::Int { size: x, encoding: e, .. }, Kind::Int { size: y, encoding: f, .. }) => {
                    return Ok(x == y && (e ^ f) & int_encoding::SIGNED == 0);
                }
                (Kind::Ptr { ty: x }, Kind::Ptr { ty: y }) => {
                    behind_ptr = true;
                    (a, b) = (*x, *y);
                }
                (Kind::Array { elem: x, len: m, .. }, Kind::Array { elem: y, len: n, .. }) if m == n => {
                    (a, b) = (*x, *y);
                }
                (Kind::FuncProto { ret: x, params: p }, Kind::FuncProto { ret: y, params: q })
                    if p.len() == q.len() =>
                {
                    for (p, q) in p.iter().zip(q) {
                        if !self.types(p.ty, q.ty, behind_ptr, level - 1)? {
                            return Ok(false);
                        }
                    }
                    (a, b) = (*x, *y);
                }
                _ => return Ok(false),
            }
        }
        Err(CoreError::TooDeep)
    }

    fn composites(&mut self, a: &Composite, b: &Composite, level: u32) -> Result<bool, CoreError> {
        let name = |btf: &Btf, off| btf.str_at(off).unwrap_or("").to_owned();
        if a.members.len() > b.members.len() {
            return Ok(false);
        }
        'local: for m in &a.members {
            for n in &b.members {
                self.budget.spend()?;
                if same_name(&name(self.local, m.name_off), &name(self.target, n.name_off))
                    && self.types(m.ty, n.ty, false, level - 1)?
                {
                    continue 'local;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    fn enums(&self, a: &Kind, a_id: u32, b: &Kind, b_id: u32) -> bool {
        let (Some(x), Some(y)) = (a.enumerators(), b.enumerators()) else { return false };
        let names = |btf: &Btf, off| essential_name(btf.str_at(off).unwrap_or("")).to_owned();
        let there: std::collections::HashSet<String> = y.iter().map(|v| names(self.target, v.0)).collect();
        self.local.size_of(a_id) == self.target.size_of(b_id)
            && x.len() <= y.len()
            && x.iter().all(|v| there.contains(&names(self.local, v.0)))
    }
}

/// The same name, flavors aside; a nameless type matches nameless ones only.
fn same_name(a: &str, b: &str) -> bool {
    essential_name(a) == essential_name(b)
}
