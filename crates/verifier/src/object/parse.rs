//! Finds the special fields of a type, with the kernel's errnos for what it refuses.

use skep_ebpf::Errno;
use skep_ebpf::btf::{Btf, Kind as Type, MAX_DEPTH};

use super::record::{Content, Field, FieldKind, Pointee, Record};

/// Most special fields of a type.
const MAX_FIELDS: usize = 11;

/// Kernel types that can be held by reference in a map: those whose destructor the kernel knows.
const DESTRUCTIBLE: [&str; 7] = [
    "bpf_cpumask",
    "bpf_crypto_ctx",
    "bpf_testmod_ctx",
    "cgroup",
    "prog_test_member",
    "prog_test_ref_kfunc",
    "task_struct",
];

/// What the fields are part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    /// The value of a map.
    MapValue,
    /// An object that the program allocates.
    Object,
}

impl Holder {
    /// Kinds of fields that it may have; others are plain data there.
    pub fn holds(self, kind: FieldKind) -> bool {
        match kind {
            FieldKind::SpinLock
            | FieldKind::ResSpinLock
            | FieldKind::ListHead
            | FieldKind::RbRoot
            | FieldKind::Refcount
            | FieldKind::KptrUntrusted
            | FieldKind::Kptr
            | FieldKind::KptrPercpu => true,
            FieldKind::Timer | FieldKind::Workqueue | FieldKind::TaskWork | FieldKind::Uptr => self == Holder::MapValue,
            FieldKind::ListNode | FieldKind::RbNode => self == Holder::Object,
        }
    }
}

/// The special fields of a struct or data section, `size` bytes large.
pub(crate) fn record(btf: &Btf, kernel: Option<&Btf>, id: u32, size: u32, holder: Holder) -> Result<Record, Errno> {
    let mut search = Search { btf, holder, seen: Vec::new(), found: Vec::new() };
    match btf.kind(id) {
        Some(Type::Struct(_)) => search.members(id, 0, 0)?,
        Some(Type::Datasec { vars, .. }) => {
            for &(var, off, size) in vars.iter() {
                if let Some(Type::Var { ty, .. }) = btf.kind(var) {
                    search.one(Tagged { ty: var, component: -1 }, *ty, off, Some(size), 0)?;
                }
            }
        }
        _ => return Err(Errno::EINVAL),
    }
    let mut fields = search.found;
    let mut next = 0;
    for f in &fields {
        if f.end() > size {
            return Err(Errno::EFAULT);
        }
        if f.off < next {
            return Err(Errno::EEXIST);
        }
        next = f.end();
    }
    for f in &mut fields {
        complete(btf, kernel, f)?;
    }
    fields.sort_by_key(|f| f.off);
    let record = Record { fields };
    let locks = [record.has(FieldKind::SpinLock), record.has(FieldKind::ResSpinLock)];
    let unprotected = record.any(FieldKind::is_root) && locks == [false; 2];
    let shared = record.has(FieldKind::ListNode) && record.has(FieldKind::RbNode);
    if locks == [true; 2] || unprotected || shared && !record.has(FieldKind::Refcount) {
        return Err(Errno::EINVAL);
    }
    Ok(record)
}

/// What declaration tags of a member or variable stand at.
#[derive(Clone, Copy)]
struct Tagged {
    ty: u32,
    component: i32,
}

struct Search<'a> {
    btf: &'a Btf,
    holder: Holder,
    seen: Vec<FieldKind>,
    found: Vec<Field>,
}

impl Search<'_> {
    fn members(&mut self, id: u32, base: u32, depth: u32) -> Result<(), Errno> {
        let Some(Type::Struct(s)) = self.btf.kind(id) else { return Ok(()) };
        for (n, m) in s.members.iter().enumerate() {
            if m.bit_offset % 8 != 0 {
                return Err(Errno::EINVAL);
            }
            let from = self.found.len();
            self.one(Tagged { ty: id, component: n as i32 }, m.ty, m.bit_offset / 8, None, depth)?;
            for f in &mut self.found[from..] {
                f.off = f.off.wrapping_add(base);
            }
        }
        Ok(())
    }

    /// Looks at one member or variable at `off`.
    fn one(&mut self, at: Tagged, ty: u32, off: u32, expected: Option<u32>, depth: u32) -> Result<(), Errno> {
        let (mut ty, mut count) = (ty, 1u32);
        let mut arrays = 0;
        while let Some(Type::Array { elem, len, .. }) = self.btf.kind(ty) {
            arrays += 1;
            if arrays >= MAX_DEPTH {
                return Err(Errno::E2BIG);
            }
            count = count.wrapping_mul(*len);
            ty = *elem;
        }
        let Some(kind) = self.btf.kind(ty) else { return Err(Errno::EINVAL) };
        if count == 0 {
            return Ok(());
        }
        let fits = |size: u32| expected.is_none_or(|e| e == size.wrapping_mul(count));
        let from = self.found.len();
        let element = match (self.named(ty)?, kind) {
            (Some(special), _) => {
                let struct_size = kind.composite().filter(|_| matches!(kind, Type::Struct(_))).map(|s| s.size);
                if !fits(special.size()) || !off.is_multiple_of(special.align()) || struct_size != Some(special.size())
                {
                    return Ok(());
                }
                let content = if special.is_root() { self.contents(at, special)? } else { Content::Plain };
                self.push(Field { kind: special, off, content })?;
                special.size()
            }
            (None, Type::Struct(s)) => {
                if !fits(s.size) {
                    return Ok(());
                }
                if depth + 1 >= MAX_DEPTH {
                    return Err(Errno::E2BIG);
                }
                self.members(ty, off, depth + 1)?;
                s.size
            }
            _ => {
                if !fits(8) || !off.is_multiple_of(8) {
                    return Ok(());
                }
                let Some((kind, target)) = self.kptr(ty)? else { return Ok(()) };
                // Which struct that is in the kernel is found out later; so far it is the program's.
                self.push(Field { kind, off, content: Content::Object(Pointee::Local(target)) })?;
                8
            }
        };
        self.repeat(from, count, element)
    }

    /// The kind that goes by the name of this type.
    fn named(&mut self, ty: u32) -> Result<Option<FieldKind>, Errno> {
        let name = self.btf.name(ty);
        let found = FieldKind::STRUCTS.into_iter().find(|k| k.name() == name && self.holder.holds(*k));
        if let Some(kind) = found.filter(|k| k.is_unique()) {
            if self.seen.contains(&kind) {
                return Err(Errno::E2BIG);
            }
            self.seen.push(kind);
        }
        Ok(found)
    }

    fn push(&mut self, f: Field) -> Result<(), Errno> {
        if self.found.len() >= MAX_FIELDS {
            return Err(Errno::E2BIG);
        }
        self.found.push(f);
        Ok(())
    }

    /// Elements of an array behind the first have the same fields.
    fn repeat(&mut self, from: usize, count: u32, size: u32) -> Result<(), Errno> {
        let fields: Vec<Field> = self.found.get(from..).unwrap_or_default().to_vec();
        if count <= 1 || fields.is_empty() {
            return Ok(());
        }
        if fields.iter().any(|f| !(f.kind.is_pointer() || f.kind.is_root())) {
            return Err(Errno::EINVAL);
        }
        for n in 1..count {
            for f in &fields {
                self.push(Field { off: f.off.wrapping_add(n.wrapping_mul(size)), ..*f })?;
            }
        }
        Ok(())
    }

    /// Whether a type is a tagged pointer, and the struct that it leads to.
    fn kptr(&self, ty: u32) -> Result<Option<(FieldKind, u32)>, Errno> {
        kptr(self.btf, ty).map(|found| found.filter(|(kind, _)| self.holder.holds(*kind)))
    }

    /// What the tag `contains:STRUCT:NODE` of a list head or tree root says.
    fn contents(&self, at: Tagged, root: FieldKind) -> Result<Content, Errno> {
        let tags = self.btf.decl_tags(at.ty).filter(|(_, component)| *component == at.component);
        let mut contains = tags.filter_map(|(text, _)| text.strip_prefix("contains:"));
        let (Some(text), None) = (contains.next(), contains.next()) else { return Err(Errno::EINVAL) };
        let Some((of, node)) = text.split_once(':') else { return Err(Errno::EINVAL) };
        let Some(of) = self.btf.find(of, |k| matches!(k, Type::Struct(_))) else { return Err(Errno::ENOENT) };
        if node.is_empty() {
            return Err(Errno::EINVAL);
        }
        Ok(Content::Nodes { of, node: self.node(of, node, root)? })
    }

    /// The offset of the node `name` in a struct that `root` holds.
    fn node(&self, of: u32, name: &str, root: FieldKind) -> Result<u32, Errno> {
        let wanted = if root == FieldKind::ListHead { FieldKind::ListNode } else { FieldKind::RbNode };
        let Some(Type::Struct(s)) = self.btf.kind(of) else { return Err(Errno::EINVAL) };
        let mut named = s.members.iter().filter(|m| self.btf.str_at(m.name_off) == Some(name));
        let (Some(m), None) = (named.next(), named.next()) else {
            return Err(if s.members.iter().any(|m| self.btf.str_at(m.name_off) == Some(name)) {
                Errno::EINVAL
            } else {
                Errno::ENOENT
            });
        };
        let right = matches!(self.btf.kind(m.ty), Some(Type::Struct(_))) && self.btf.name(m.ty) == wanted.name();
        if !right || m.bit_offset % (8 * wanted.align()) != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(m.bit_offset / 8)
    }
}

/// Whether a type is a tagged pointer, and the struct that it leads to.
pub(crate) fn kptr(btf: &Btf, ty: u32) -> Result<Option<(FieldKind, u32)>, Errno> {
    let mut kind = btf.kind(ty);
    if let Some(Type::Volatile { ty }) = kind {
        kind = btf.kind(*ty);
    }
    let Some(Type::Ptr { ty: tag }) = kind else { return Ok(None) };
    let Some(Type::TypeTag { ty: target }) = btf.kind(*tag) else { return Ok(None) };
    if matches!(btf.kind(*target), Some(Type::TypeTag { .. })) {
        return Err(Errno::EINVAL);
    }
    let kind = match btf.name(*tag) {
        "kptr" => FieldKind::Kptr,
        "kptr_untrusted" => FieldKind::KptrUntrusted,
        "percpu_kptr" => FieldKind::KptrPercpu,
        "uptr" => FieldKind::Uptr,
        _ => return Err(Errno::EINVAL),
    };
    match btf.resolve(*target) {
        Some(s) if matches!(btf.kind(s), Some(Type::Struct(_))) => Ok(Some((kind, s))),
        _ => Err(Errno::EINVAL),
    }
}

/// Finds out whether a pointer field leads to a type of the kernel, and whether it may.
fn complete(btf: &Btf, kernel: Option<&Btf>, field: &mut Field) -> Result<(), Errno> {
    let Content::Object(Pointee::Local(id)) = field.content else { return Ok(()) };
    let name = btf.name(id);
    let pointee = match kernel {
        Some(kernel) => kernel.find(name, |k| matches!(k, Type::Struct(_))).map_or(Pointee::Local(id), Pointee::Kernel),
        None => Pointee::Unknown,
    };
    if field.kind == FieldKind::Kptr && matches!(pointee, Pointee::Kernel(_)) && !DESTRUCTIBLE.contains(&name) {
        return Err(Errno::ENOENT);
    }
    field.content = Content::Object(pointee);
    Ok(())
}
