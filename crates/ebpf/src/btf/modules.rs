//! The types of a kernel together with those of its modules.
//!
//! Each module's BTF continues the kernel's, so the modules' ids overlap. Here they are renumbered, one module behind the
//! other: an id of [`Btf::with_modules`] says by itself which module it is of, and what is searched by name is found in
//! the kernel first, then in the modules in order, as loaders and the kernel search. Ids as the interface has them
//! (module and id) come from [`Btf::own_id`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Btf, BtfError, Composite, Kind, parse};

/// One module's range of types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    name: Box<str>,
    /// Its first id.
    first: u32,
}

/// How far ids and names of a module move; those of the kernel stay.
struct Shift {
    first_id: u32,
    ids: u32,
    first_str: u32,
    strings: u32,
}

impl Shift {
    fn id(&self, id: &mut u32) {
        if *id >= self.first_id {
            *id = id.saturating_add(self.ids);
        }
    }

    fn name(&self, offset: &mut u32) {
        if *offset >= self.first_str {
            *offset = offset.saturating_add(self.strings);
        }
    }

    fn composite(&self, c: &mut Composite) {
        for m in &mut c.members {
            self.name(&mut m.name_off);
            self.id(&mut m.ty);
        }
    }

    fn kind(&self, kind: &mut Kind) {
        match kind {
            Kind::Void | Kind::Int { .. } | Kind::Float { .. } | Kind::Fwd { .. } => {}
            Kind::Array { elem, index, .. } => {
                self.id(elem);
                self.id(index);
            }
            Kind::Struct(c) | Kind::Union(c) => self.composite(c),
            Kind::Enum { values, .. } | Kind::Enum64 { values, .. } => {
                values.iter_mut().for_each(|v| self.name(&mut v.0))
            }
            Kind::FuncProto { ret, params } => {
                self.id(ret);
                for p in params {
                    self.name(&mut p.name_off);
                    self.id(&mut p.ty);
                }
            }
            Kind::Datasec { vars, .. } => vars.iter_mut().for_each(|v| self.id(&mut v.0)),
            Kind::Ptr { ty }
            | Kind::Typedef { ty }
            | Kind::Volatile { ty }
            | Kind::Const { ty }
            | Kind::Restrict { ty }
            | Kind::TypeTag { ty }
            | Kind::Func { proto: ty, .. }
            | Kind::Var { ty, .. }
            | Kind::DeclTag { ty, .. } => self.id(ty),
        }
    }
}

impl Btf {
    /// The types of a kernel and of its modules, each given by its name and the blob that [`Btf::parse_split`] reads on
    /// top of the same kernel.
    pub fn with_modules(kernel: Arc<Btf>, modules: impl IntoIterator<Item = (String, Btf)>) -> Result<Btf, BtfError> {
        let (first_id, first_str) = (kernel.len(), kernel.strings_end());
        let mut all = Btf {
            base: Some(kernel.clone()),
            first_id,
            first_str,
            types: Vec::new(),
            strings: Box::default(),
            buckets: Vec::new(),
            chain: Vec::new(),
            tags: Vec::new(),
            modules: Vec::new(),
        };
        let mut strings = String::new();
        for (name, module) in modules {
            let of_it = module.base.as_ref().is_some_and(|b| Arc::ptr_eq(b, &kernel) || **b == *kernel);
            if !of_it || !module.modules.is_empty() {
                return Err(BtfError::Base);
            }
            let shift = Shift { first_id, ids: all.types.len() as u32, first_str, strings: strings.len() as u32 };
            all.modules.push(Range { name: name.into(), first: all.len() });
            for mut ty in module.types {
                shift.name(&mut ty.name_off);
                shift.kind(&mut ty.kind);
                all.types.push(ty);
            }
            strings.push_str(&module.strings);
            if all.len() > parse::MAX_TYPES || u32::try_from(strings.len()).is_err() {
                return Err(BtfError::TooMany);
            }
        }
        all.strings = strings.into();
        all.index();
        Ok(all)
    }

    /// The modules whose types are in here, by name.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|m| &*m.name)
    }

    /// The module that a type is of; `None` for the kernel's own.
    pub fn module_of(&self, id: u32) -> Option<&str> {
        self.range_of(id).map(|m| &*m.name)
    }

    /// A type's id as its module's own BTF has it; the kernel's own types keep theirs.
    pub fn own_id(&self, id: u32) -> u32 {
        self.range_of(id).map_or(id, |m| self.first_id + (id - m.first))
    }

    fn range_of(&self, id: u32) -> Option<&Range> {
        let at = self.modules.partition_point(|m| m.first <= id);
        self.modules.get(at.checked_sub(1)?)
    }

    /// The first type with this name in one module whose kind satisfies `pred`.
    pub fn find_in_module(&self, module: &str, name: &str, pred: impl Fn(&Kind) -> bool) -> Option<u32> {
        let mut found = self.bucket(super::essential_name(name));
        found
            .find(|&id| self.name(id) == name && self.kind(id).is_some_and(&pred) && self.module_of(id) == Some(module))
    }

    /// The kernel's own types, without those of modules.
    pub fn without_modules(&self) -> &Btf {
        match &self.base {
            Some(base) if !self.modules.is_empty() => base,
            _ => self,
        }
    }

    /// Of types that were found by name, the kernel's own if there are any: modules are searched after it.
    pub fn prefer_kernel(&self, mut found: Vec<u32>) -> Vec<u32> {
        let first = self.modules.first().map_or(u32::MAX, |m| m.first);
        if found.iter().any(|id| *id < first) {
            found.retain(|id| *id < first);
        }
        found
    }

    pub(super) fn strings_end(&self) -> u32 {
        self.first_str.saturating_add(self.strings.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::build::Builder;

    /// A struct of one member of type `inner`, on top of `kernel`.
    fn module(kernel: &Arc<Btf>, structure: &str, member: &str, own: &str) -> Btf {
        let mut b = Builder::continuing(kernel);
        let int = b.int(own, 8, 0);
        let name_off = b.string(member);
        let first = crate::btf::Member { name_off, ty: 1, bit_offset: 0, bitfield_size: 0 };
        let second = crate::btf::Member { name_off, ty: int, bit_offset: 64, bitfield_size: 0 };
        b.add(structure, &Kind::Struct(Composite { size: 16, members: [first, second].into() }));
        Btf::parse_split(kernel.clone(), &b.finish()).expect("a module's BTF")
    }

    #[test]
    fn modules_lie_one_behind_the_other() {
        let mut b = Builder::new();
        b.int("int", 4, 0);
        let kernel = Arc::new(Btf::parse(&b.finish()).expect("BTF"));
        let modules = [("a", "x", "one", "u8"), ("b", "x", "two", "u16"), ("c", "y", "three", "u32")];
        let given = modules.map(|(name, s, m, own)| (name.into(), module(&kernel, s, m, own)));
        let all = Btf::with_modules(kernel.clone(), given).expect("all");
        assert_eq!(all.len(), 2 + 3 * 2);
        assert_eq!(all.modules().collect::<Vec<_>>(), ["a", "b", "c"]);
        for (n, (name, s, m, own)) in (0..).zip(modules) {
            let id = all.find_in_module(name, s, |k| k.composite().is_some()).expect("the struct");
            assert_eq!((id, all.own_id(id), all.module_of(id)), (3 + 2 * n, 3, Some(name)));
            let members = &all.kind(id).and_then(Kind::composite).expect("a struct").members;
            assert_eq!(members.iter().map(|m| all.name(m.ty)).collect::<Vec<_>>(), ["int", own]);
            assert_eq!(all.str_at(members[0].name_off), Some(m));
        }
        // By name the first module's is found.
        assert_eq!(all.find("x", |_| true), Some(3));
        assert_eq!((all.own_id(1), all.module_of(1)), (1, None));
        assert_eq!(all.prefer_kernel(alloc::vec![1, 3]), [1]);
        assert_eq!(all.prefer_kernel(alloc::vec![3, 5]), [3, 5]);
        assert!(core::ptr::eq(all.without_modules(), &*kernel));

        let other = Arc::new(Btf::default());
        let wrong = module(&other, "x", "one", "u8");
        assert_eq!(Btf::with_modules(kernel, [("a".into(), wrong)]), Err(BtfError::Base));
    }
}
