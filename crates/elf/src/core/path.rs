//! Paths into types: parsed in the object's BTF, followed by name in the target's.

use skep_ebpf::btf::{Btf, Kind};

use super::{Budget, CoreError, CoreKind, compat};

/// Most members and elements that a path may step through.
const MAX_STEPS: usize = 64;

/// A step of a path: a member of a struct, an element of an array, or an enumerator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// The struct, the array's element type, or the enum.
    pub ty: u32,
    /// Number of the member, element or enumerator.
    pub index: u32,
    /// True for a named member and for an enumerator.
    pub named: bool,
}

/// A path from a root type to what a relocation is about.
#[derive(Clone, Debug)]
pub(super) struct Path {
    /// The type at which it begins.
    pub root: u32,
    /// Steps by name or element; anonymous structs on the way are left out.
    pub steps: Vec<Step>,
    /// Steps with the anonymous ones.
    depth: usize,
    bits: u64,
}

impl Path {
    fn at(root: u32) -> Path {
        Path { root, steps: Vec::new(), depth: 0, bits: 0 }
    }

    /// Offset of the end from the root, in bits.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// The last step.
    pub fn last(&self) -> Option<Step> {
        self.steps.last().copied()
    }

    fn push(&mut self, step: Step) -> Result<(), CoreError> {
        self.deepen()?;
        self.steps.push(step);
        Ok(())
    }

    fn deepen(&mut self) -> Result<(), CoreError> {
        if self.depth >= MAX_STEPS {
            return Err(CoreError::TooDeep);
        }
        self.depth += 1;
        Ok(())
    }

    fn skip_elements(&mut self, btf: &Btf, ty: u32, index: u32) -> Result<(), CoreError> {
        let bits = btf.size_of(ty).ok_or(CoreError::NoSize)?.checked_mul(8);
        let bits = bits.and_then(|b| b.checked_mul(index.into())).and_then(|b| b.checked_add(self.bits));
        self.bits = bits.ok_or(CoreError::NoSize)?;
        Ok(())
    }

    /// Parses an access string such as `0:1:2` against the type it is about.
    pub fn parse(btf: &Btf, kind: CoreKind, root: u32, text: &str) -> Result<Path, CoreError> {
        let bad = |problem| CoreError::Path { path: text.to_owned(), problem };
        let mut path = Path::at(root);
        if kind.is_type() {
            return if text == "0" { Ok(path) } else { Err(bad("a type has no members to go to")) };
        }
        let numbers: Option<Vec<u32>> = text.split(':').map(|n| n.parse().ok()).collect();
        let numbers = numbers.ok_or_else(|| bad("not a list of numbers"))?;
        let Some((&first, rest)) = numbers.split_first() else { return Err(bad("empty")) };
        if numbers.len() > MAX_STEPS {
            return Err(bad("too long"));
        }
        let mut id = btf.resolve(root).ok_or(CoreError::LocalType(root))?;
        if kind.is_enum() {
            let values = btf.kind(id).and_then(Kind::enumerators).ok_or_else(|| bad("not an enum"))?;
            if !rest.is_empty() || first as usize >= values.len() {
                return Err(bad("no such enumerator"));
            }
            path.push(Step { ty: id, index: first, named: true })?;
            return Ok(path);
        }
        path.push(Step { ty: id, index: first, named: false })?;
        path.skip_elements(btf, id, first)?;
        for &index in rest {
            id = btf.resolve(id).ok_or(CoreError::TooDeep)?;
            match btf.kind(id) {
                Some(Kind::Struct(c) | Kind::Union(c)) => {
                    let m = c.members.get(index as usize).ok_or_else(|| bad("no such member"))?;
                    path.bits = path.bits.saturating_add(m.bit_offset.into());
                    if m.name_off == 0 {
                        path.deepen()?;
                    } else {
                        path.push(Step { ty: id, index, named: true })?;
                    }
                    id = m.ty;
                }
                Some(&Kind::Array { elem, len, .. }) => {
                    if index >= len && !is_flexible(btf, path.last(), len) {
                        return Err(bad("no such element"));
                    }
                    id = btf.resolve(elem).ok_or(CoreError::TooDeep)?;
                    path.push(Step { ty: id, index, named: false })?;
                    path.skip_elements(btf, id, index)?;
                }
                _ => return Err(bad("neither struct nor array")),
            }
        }
        Ok(path)
    }

    /// Follows this path of the object in a type of the target; `None` if the type is not the one that is meant.
    pub fn follow(&self, local: &Btf, target: &Btf, kind: CoreKind, id: u32) -> Result<Option<Path>, CoreError> {
        let mut there = Path::at(id);
        if kind.is_type() {
            let same = match kind {
                CoreKind::TypeMatches => compat::matches(local, self.root, target, id)?,
                _ => compat::types(local, self.root, target, id)?,
            };
            return Ok(same.then_some(there));
        }
        if kind.is_enum() {
            return Ok(self.follow_enumerator(local, target, id));
        }
        let mut id = id;
        let mut budget = Budget::new();
        for (i, step) in self.steps.iter().enumerate() {
            id = target.resolve(id).ok_or(CoreError::TooDeep)?;
            if step.named {
                match member(local, step, target, id, &mut there, &mut budget)? {
                    Some(ty) => id = ty,
                    None => return Ok(None),
                }
                continue;
            }
            // The first step counts elements of the root type itself.
            if i > 0 {
                let Some(&Kind::Array { elem, len, .. }) = target.kind(id) else { return Ok(None) };
                if step.index >= len && !is_flexible(target, there.last(), len) {
                    return Ok(None);
                }
                id = target.resolve(elem).ok_or(CoreError::TooDeep)?;
            }
            there.push(Step { ty: id, index: step.index, named: false })?;
            there.skip_elements(target, id, step.index)?;
        }
        Ok(Some(there))
    }

    fn follow_enumerator(&self, local: &Btf, target: &Btf, id: u32) -> Option<Path> {
        let step = self.last()?;
        let wanted = local.kind(step.ty)?.enumerators()?.get(step.index as usize)?.0;
        let wanted = skep_ebpf::btf::essential_name(local.str_at(wanted)?);
        let ty = target.resolve(id)?;
        let values = target.kind(ty)?.enumerators()?;
        let same = |off| target.str_at(off).map(skep_ebpf::btf::essential_name) == Some(wanted);
        let index = values.iter().position(|v| same(v.0))?;
        let mut there = Path::at(id);
        there.push(Step { ty, index: index as u32, named: true }).ok()?;
        Some(there)
    }
}

/// True for an array without length that is the last member of its struct.
fn is_flexible(btf: &Btf, holder: Option<Step>, len: u32) -> bool {
    let Some(Step { ty, index, named: true }) = holder else { return false };
    let members = btf.kind(ty).and_then(Kind::composite).map_or(0, |c| c.members.len());
    len == 0 && index as usize + 1 == members
}

/// Goes to the member of the target's struct `id` (or of an anonymous struct inside it) that has the name of the
/// object's; gives its type.
fn member(
    local: &Btf,
    step: &Step,
    target: &Btf,
    id: u32,
    there: &mut Path,
    budget: &mut Budget,
) -> Result<Option<u32>, CoreError> {
    let id = target.resolve(id).ok_or(CoreError::TooDeep)?;
    let Some(c) = target.kind(id).and_then(Kind::composite) else { return Ok(None) };
    let wanted = local.kind(step.ty).and_then(Kind::composite).and_then(|c| c.members.get(step.index as usize));
    let Some(wanted) = wanted else { return Ok(None) };
    let name = local.str_at(wanted.name_off);
    let before = (there.bits, there.depth);
    for (index, m) in (0u32..).zip(&c.members) {
        budget.spend()?;
        there.bits = before.0.saturating_add(m.bit_offset.into());
        if m.name_off == 0 {
            there.deepen()?;
            if let Some(ty) = member(local, step, target, m.ty, there, budget)? {
                return Ok(Some(ty));
            }
        } else if target.str_at(m.name_off) == name {
            if !compat::members(local, wanted.ty, target, m.ty)? {
                return Ok(None);
            }
            there.push(Step { ty: id, index, named: true })?;
            return Ok(Some(m.ty));
        }
        (there.bits, there.depth) = before;
    }
    Ok(None)
}
