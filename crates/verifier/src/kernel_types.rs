//! Types of the kernel (or of the program): what lies at an offset of a struct, and whether one type serves as another.
//!
//! A pointer to an object of a BTF type is a [`Kind::Btf`](crate::reg::Kind::Btf) register whose `what` is the type's id.

use skep_ebpf::btf::{Btf, Composite, Kind as Type, MAX_DEPTH};

use crate::reg::{Kind, Reg, flag};

/// Suffix of the names of structs that are other names for the same object (`struct nf_conn___init`).
const ALIAS_SUFFIX: &str = "___init";

/// A BTF blob, asked by the rules for pointers to objects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Types<'a> {
    pub btf: &'a Btf,
}

/// What an access of some bytes at an offset of a struct meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Field<'a> {
    pub what: FieldType,
    /// Name of the member that is accessed, empty where there is none (arrays behind the end, unnamed members).
    pub name: &'a str,
    /// [`flag::USER`], [`flag::PERCPU`], [`flag::RCU`] by the member's type tags; [`flag::UNTRUSTED`] if the way led
    /// through a union, whose other members may have been written last.
    pub flags: u32,
}

/// What a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FieldType {
    /// A number, or part of one.
    Number,
    /// A pointer to the struct or union with this id.
    Pointer(u32),
    /// A pointer to something that is no struct.
    PlainPointer,
}

/// Why there is nothing to access.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum WalkError {
    /// The type is no struct or union: its name.
    NotAStruct(String),
    /// The access goes beyond the end of the type or member.
    Beyond(String),
    /// A pointer is accessed in part.
    PartOfPointer(String),
    /// No member is there.
    NoField(String),
    /// The BTF contradicts itself.
    Broken,
}

/// One level of a walk.
enum Step<'a> {
    Found(Field<'a>),
    /// The access is at the very start of this nested struct.
    Nested(u32),
}

impl<'a> Types<'a> {
    pub fn new(btf: &'a Btf) -> Types<'a> {
        Types { btf }
    }

    /// The struct with this name.
    pub fn find_struct(self, name: &str) -> Option<u32> {
        self.btf.find(name, |k| matches!(k, Type::Struct(_)))
    }

    /// The function with this name.
    pub fn find_func(self, name: &str) -> Option<u32> {
        self.btf.find(name, |k| matches!(k, Type::Func { .. }))
    }

    /// The type behind typedefs and modifiers.
    pub fn resolved(self, id: u32) -> Option<(u32, &'a Type)> {
        let id = self.btf.resolve(id)?;
        Some((id, self.btf.kind(id)?))
    }

    /// The struct or union with this id.
    fn composite(self, id: u32) -> Option<&'a Composite> {
        self.btf.kind(id)?.composite()
    }

    /// Name for messages: `struct task_struct`.
    pub fn title(self, id: u32) -> String {
        let name = self.btf.name(id);
        let name = if name.is_empty() { "(anonymous)" } else { name };
        match self.btf.kind(id) {
            Some(Type::Struct(_) | Type::Fwd { union: false }) => format!("struct {name}"),
            Some(Type::Union(_) | Type::Fwd { union: true }) => format!("union {name}"),
            Some(Type::Enum { .. } | Type::Enum64 { .. }) => format!("enum {name}"),
            Some(Type::Void) | None => "void".into(),
            Some(_) => name.into(),
        }
    }

    /// What `size` bytes at `off` of the struct `id` are.
    pub fn walk(self, id: u32, off: u32, size: u32) -> Result<Field<'a>, WalkError> {
        let (mut id, mut off) = (id, off);
        let mut flags = 0;
        // Each round enters a nested struct at its start.
        for _ in 0..=MAX_DEPTH {
            match self.step(id, off, size, &mut flags)? {
                Step::Found(field) => return Ok(field),
                Step::Nested(inner) => (id, off) = (inner, 0),
            }
        }
        Err(WalkError::Broken)
    }

    /// One step of a walk: down to a member that is no struct, or to a struct that begins at `off`.
    fn step(self, id: u32, off: u32, size: u32, flags: &mut u32) -> Result<Step<'a>, WalkError> {
        let (mut id, mut off) = (id, off);
        for _ in 0..=MAX_DEPTH {
            let Some((this, kind)) = self.resolved(id) else { return Err(WalkError::Broken) };
            id = this;
            let Some(c) = kind.composite() else { return Err(WalkError::NotAStruct(self.title(id))) };
            if matches!(kind, Type::Union(_)) && c.members.len() != 1 {
                *flags |= flag::UNTRUSTED;
            }
            if off.checked_add(size).is_none_or(|end| end > c.size) {
                match self.behind_the_end(id, c, off, size)? {
                    None => return Ok(self.number("", *flags)),
                    Some((elem, inside)) => {
                        (id, off) = (elem, inside);
                        continue;
                    }
                }
            }
            match self.member_at(id, c, off, size, flags)? {
                MemberAt::Done(step) => return Ok(step),
                MemberAt::Inside(inner, inside) => (id, off) = (inner, inside),
            }
        }
        Err(WalkError::Broken)
    }

    fn number(self, name: &'a str, flags: u32) -> Step<'a> {
        Step::Found(Field { what: FieldType::Number, name, flags })
    }

    /// Behind the end there may be elements of a flexible array: a number (`None`), or a struct and the offset in it.
    fn behind_the_end(self, id: u32, c: &Composite, off: u32, size: u32) -> Result<Option<(u32, u32)>, WalkError> {
        let beyond = || {
            let text =
                format!("{size} bytes at offset {off} are beyond the end of {}, {} bytes long", self.title(id), c.size);
            Err(WalkError::Beyond(text))
        };
        let Some(last) = c.members.last() else { return beyond() };
        let Some((_, &Type::Array { elem, len: 0, .. })) = self.resolved(last.ty) else { return beyond() };
        let Some(inside) = off.checked_sub(last.bit_offset / 8) else { return beyond() };
        match self.resolved(elem) {
            Some((_, Type::Int { .. })) => Ok(None),
            Some((elem, Type::Struct(e) | Type::Union(e))) if e.size > 0 => Ok(Some((elem, inside % e.size))),
            _ => beyond(),
        }
    }

    fn member_at(
        self,
        id: u32,
        c: &'a Composite,
        off: u32,
        size: u32,
        flags: &mut u32,
    ) -> Result<MemberAt<'a>, WalkError> {
        let end = off.saturating_add(size);
        for m in &c.members {
            let mut start = m.bit_offset / 8;
            if end <= start {
                break;
            }
            if m.bitfield_size != 0 {
                // A bit field is read as a whole, or with its neighbours.
                let last = m.bit_offset.saturating_add(m.bitfield_size.into()).div_ceil(8);
                if off <= start && last <= end {
                    return Ok(MemberAt::Done(self.number(self.str(m.name_off), *flags)));
                }
                continue;
            }
            if off < start {
                break;
            }
            let name = self.str(m.name_off);
            let Some((mut ty, len)) = self.resolved(m.ty).and_then(|(ty, _)| Some((ty, self.btf.size_of(ty)?))) else {
                return Err(WalkError::Broken);
            };
            let member_end = u64::from(start) + len;
            if u64::from(off) >= member_end {
                continue;
            }
            let mut len = len as u32;
            // Into the element of an array, however many dimensions it has.
            for _ in 0..=MAX_DEPTH {
                let Some((_, &Type::Array { elem: inner, .. })) = self.resolved(ty) else { break };
                let Some((inner, inner_len)) = self.resolved(inner).and_then(|(i, _)| Some((i, self.btf.size_of(i)?)))
                else {
                    return Err(WalkError::Broken);
                };
                let inner_len = u32::try_from(inner_len).ok().filter(|n| *n > 0).ok_or(WalkError::Broken)?;
                start += (off - start) / inner_len * inner_len;
                (ty, len) = (inner, inner_len);
            }
            match self.btf.kind(ty) {
                Some(kind @ (Type::Struct(_) | Type::Union(_))) => {
                    let members = kind.composite().map_or(0, |c| c.members.len());
                    if matches!(kind, Type::Union(_)) && members != 1 {
                        *flags |= flag::UNTRUSTED;
                    }
                    if off == start {
                        return Ok(MemberAt::Done(Step::Nested(ty)));
                    }
                    return Ok(MemberAt::Inside(ty, off - start));
                }
                Some(&Type::Ptr { ty: pointee }) => {
                    if len != size || off != start {
                        let text = format!(
                            "the pointer {name} at offset {start} of {} is not {size} bytes at offset {off}",
                            self.title(id)
                        );
                        return Err(WalkError::PartOfPointer(text));
                    }
                    let found = |what, flags| Step::Found(Field { what, name, flags });
                    return Ok(MemberAt::Done(match self.resolved(pointee) {
                        Some((to, Type::Struct(_) | Type::Union(_))) => {
                            *flags |= self.tag(pointee);
                            found(FieldType::Pointer(to), *flags)
                        }
                        _ => found(FieldType::PlainPointer, *flags),
                    }));
                }
                // Numbers may be read in part, and several elements of an array at once.
                _ if u64::from(end) > member_end && *flags & flag::UNTRUSTED == 0 => {
                    let text = format!(
                        "{size} bytes at offset {off} go beyond the member {name} of {}, which ends at {member_end}",
                        self.title(id)
                    );
                    return Err(WalkError::Beyond(text));
                }
                _ => return Ok(MemberAt::Done(self.number(name, *flags))),
            }
        }
        Err(WalkError::NoField(format!("{} has no member at offset {off}", self.title(id))))
    }

    fn str(self, off: u32) -> &'a str {
        self.btf.str_at(off).unwrap_or("")
    }

    /// What the type tag on a pointer's target says.
    pub fn tag(self, pointee: u32) -> u32 {
        match self.btf.kind(pointee) {
            Some(Type::TypeTag { .. }) => match self.btf.name(pointee) {
                "user" => flag::USER,
                "percpu" => flag::PERCPU,
                "rcu" => flag::RCU,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// True if a pointer `off` bytes into a `have` of this BTF points to a `need` of `other`: it is one, or (unless
    /// `strict`) a member that is one begins there.
    pub fn points_to(self, have: u32, off: u32, other: Types<'_>, need: u32, strict: bool) -> bool {
        let same = |id: u32| std::ptr::eq(self.btf, other.btf) && id == need;
        if off == 0 && same(have) {
            return true;
        }
        if strict {
            return false;
        }
        let (mut id, mut off) = (have, off);
        for _ in 0..=MAX_DEPTH {
            match self.step(id, off, 1, &mut 0) {
                Ok(Step::Nested(inner)) if same(inner) => return true,
                Ok(Step::Nested(inner)) => (id, off) = (inner, 0),
                _ => return false,
            }
        }
        false
    }

    /// True if one of the names is the other with the mark of an object that is still being made: such a pair must not
    /// be taken for each other although one begins with the other.
    pub fn is_alias(self, a: u32, b: u32) -> bool {
        let (a, b) = (self.btf.name(a), self.btf.name(b));
        a.strip_suffix(ALIAS_SUFFIX) == Some(b) || b.strip_suffix(ALIAS_SUFFIX) == Some(a)
    }

    /// True if the companion of the struct `id` (`task_struct__safe_rcu`: kernels list members that are safe in some
    /// way as structs named so) has this member, a pointer to `to`.
    pub fn listed(self, id: u32, suffix: &str, member: &str, to: u32) -> bool {
        let name = self.btf.name(id);
        if name.is_empty() || member.is_empty() {
            return false;
        }
        let Some(list) = self.find_struct(&format!("{name}{suffix}")).and_then(|id| self.composite(id)) else {
            return false;
        };
        list.members.iter().any(|m| {
            self.str(m.name_off) == member
                && matches!(self.btf.kind(m.ty), Some(&Type::Ptr { ty }) if self.btf.resolve(ty) == Some(to))
        })
    }

    /// Offset and size of a member of the struct `id`, named from the outside in; without names the struct itself.
    pub fn member(self, id: u32, path: &[&str]) -> Option<(u32, u32)> {
        let Some((first, rest)) = path.split_first() else {
            return Some((0, u32::try_from(self.btf.size_of(id)?).ok()?));
        };
        let (off, ty) = self.member_named(id, first, 0)?;
        let (inner, size) = self.member(ty, rest)?;
        Some((off.checked_add(inner)?, size))
    }

    /// Offset and type of a member, looked for in unnamed members as well.
    fn member_named(self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > MAX_DEPTH {
            return None;
        }
        let (_, kind) = self.resolved(id)?;
        kind.composite()?.members.iter().find_map(|m| match self.str(m.name_off) {
            "" => {
                let (off, ty) = self.member_named(m.ty, name, depth + 1)?;
                Some((off.checked_add(m.bit_offset / 8)?, ty))
            }
            n => (n == name && m.bitfield_size == 0).then_some((m.bit_offset / 8, m.ty)),
        })
    }

    /// Return type and parameters of a function or its prototype.
    pub fn prototype(self, func: u32) -> Option<(u32, &'a [skep_ebpf::btf::Param])> {
        let id = match self.btf.kind(func)? {
            Type::Func { proto, .. } => *proto,
            Type::FuncProto { .. } => func,
            _ => return None,
        };
        match self.btf.kind(id)? {
            Type::FuncProto { ret, params } => Some((*ret, params)),
            _ => None,
        }
    }
}

enum MemberAt<'a> {
    Done(Step<'a>),
    /// Somewhere inside of a nested struct, at this offset of it.
    Inside(u32, u32),
}

impl Reg {
    /// A pointer to an object of the type `id` of the kernel's BTF.
    pub fn kernel_object(id: u32, flags: u32) -> Reg {
        Reg { what: id, flags, ..Reg::pointer(Kind::Btf) }
    }

    /// True for a pointer that kernel functions take as it is: valid, whatever the program does meanwhile.
    pub fn is_trusted(&self) -> bool {
        let good = flag::TRUSTED | flag::ALLOCATED | flag::NON_OWNING;
        let only_good = self.flags & !(good | flag::LOCAL_TYPE) == 0;
        match self.kind {
            _ if self.ref_id != 0 => true,
            Kind::Socket | Kind::SockCommon | Kind::TcpSock | Kind::Map => only_good,
            Kind::Btf => self.flags & good != 0 && only_good,
            _ => false,
        }
    }

    /// True for a pointer that is valid until the RCU read section ends.
    pub fn is_rcu(&self) -> bool {
        self.kind == Kind::Btf && self.flags & flag::RCU != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_ebpf::btf::Member;
    use skep_ebpf::btf::build::Builder;

    /// Types 1 int, 2 inner {int a; int b}, 3 inner*, 4 union {int; inner*}, 5 int[4], 6 outer, 7 inner[0], 8 tail.
    fn types() -> Btf {
        let mut b = Builder::new();
        let int = b.add("int", &Type::Int { size: 4, bits: 32, offset: 0, encoding: 1 });
        let m = |b: &mut Builder, name: &str, ty, bytes: u32| Member {
            name_off: b.string(name),
            ty,
            bit_offset: bytes * 8,
            bitfield_size: 0,
        };
        let members = Box::new([m(&mut b, "a", int, 0), m(&mut b, "b", int, 4)]);
        let inner = b.add("inner", &Type::Struct(Composite { size: 8, members }));
        let ptr = b.add("", &Type::Ptr { ty: inner });
        let members = Box::new([m(&mut b, "n", int, 0), m(&mut b, "p", ptr, 0)]);
        let union = b.add("", &Type::Union(Composite { size: 8, members }));
        let array = b.add("", &Type::Array { elem: int, index: int, len: 4 });
        let members = Box::new([
            m(&mut b, "in", inner, 0),
            m(&mut b, "p", ptr, 8),
            m(&mut b, "u", union, 16),
            m(&mut b, "cb", array, 24),
            m(&mut b, "late", int, 44),
        ]);
        b.add("outer", &Type::Struct(Composite { size: 48, members }));
        let flexible = b.add("", &Type::Array { elem: inner, index: int, len: 0 });
        let members = Box::new([m(&mut b, "n", int, 0), m(&mut b, "rest", flexible, 8)]);
        b.add("tail", &Type::Struct(Composite { size: 8, members }));
        Btf::parse(&b.finish()).expect("valid BTF")
    }

    #[test]
    fn walks() {
        let btf = types();
        let t = Types::new(&btf);
        let what = |off, size| t.walk(6, off, size).map(|f| (f.what, f.name, f.flags));
        assert_eq!(what(4, 4), Ok((FieldType::Number, "b", 0)));
        assert_eq!(what(5, 1), Ok((FieldType::Number, "b", 0)));
        assert_eq!(what(8, 8), Ok((FieldType::Pointer(2), "p", 0)));
        assert!(matches!(what(8, 4), Err(WalkError::PartOfPointer(_))));
        assert!(matches!(what(0, 8), Err(WalkError::Beyond(_))));
        assert_eq!(what(24, 8), Ok((FieldType::Number, "cb", 0)));
        assert!(matches!(what(36, 8), Err(WalkError::Beyond(_))));
        assert!(matches!(what(40, 4), Err(WalkError::NoField(_))));
        assert!(matches!(what(48, 1), Err(WalkError::Beyond(_))));
        // A union is entered at its first member.
        assert_eq!(what(16, 4), Ok((FieldType::Number, "n", flag::UNTRUSTED)));
        assert_eq!(what(16, 8), Ok((FieldType::Number, "n", flag::UNTRUSTED)));
        let tail = |off, size| t.walk(8, off, size).map(|f| (f.what, f.name));
        assert_eq!(tail(44, 4), Ok((FieldType::Number, "b")));
        assert!(matches!(t.walk(1, 0, 1), Err(WalkError::NotAStruct(_))));
    }

    #[test]
    fn first_members_serve() {
        let btf = types();
        let t = Types::new(&btf);
        assert!(t.points_to(6, 0, t, 6, true));
        assert!(t.points_to(6, 0, t, 2, false));
        assert!(!t.points_to(6, 0, t, 2, true));
        assert!(!t.points_to(6, 8, t, 2, false));
        assert!(!t.points_to(2, 0, t, 6, false));
    }
}
