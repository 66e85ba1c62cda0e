//! BTF, the type format of BPF (`Documentation/bpf/btf.rst`).
//!
//! [`Btf`] is one parsed blob, alone or split (on top of a base such as the kernel's). Types are named by id: 0 is `void`,
//! the base's types come first, then the blob's own. Everything that a blob says about itself (ids, names, lengths) is
//! checked when it is parsed; everything that can be deep or cyclic (modifiers, arrays, sizes) is bounded when asked.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

pub mod build;
mod error;
pub mod ext;
mod modules;
mod parse;
#[cfg(test)]
mod tests;
pub mod value;

pub use error::BtfError;

/// Longest chain of typedefs, modifiers and arrays that is followed.
pub const MAX_DEPTH: u32 = 32;

/// Flags of [`Kind::Int`]'s `encoding`.
pub mod int_encoding {
    /// The integer is signed.
    pub const SIGNED: u8 = 1;
    /// The integer is a character.
    pub const CHAR: u8 = 2;
    /// The integer is a truth value.
    pub const BOOL: u8 = 4;
}

/// A parsed BTF blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Btf {
    base: Option<Arc<Btf>>,
    /// Id of the first own type: 0 without a base (and then the first one is `void`).
    first_id: u32,
    /// Offset of the first own string.
    first_str: u32,
    types: Vec<Type>,
    strings: Box<str>,
    /// First own type (index + 1) of each hash bucket of essential names.
    buckets: Vec<u32>,
    /// Next own type (index + 1) in the same bucket, by index.
    chain: Vec<u32>,
    /// (type tagged, id of the tag), sorted.
    tags: Vec<(u32, u32)>,
    /// The modules that own types are of, by their first ids.
    modules: Vec<modules::Range>,
}

impl Default for Btf {
    /// A blob without types but `void`.
    fn default() -> Btf {
        Btf {
            base: None,
            first_id: 0,
            first_str: 0,
            types: alloc::vec![Type { name_off: 0, kind: Kind::Void }],
            strings: "\0".into(),
            buckets: Vec::new(),
            chain: Vec::new(),
            tags: Vec::new(),
            modules: Vec::new(),
        }
    }
}

/// A type: its name's offset in the strings and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// Offset of the name, 0 if anonymous.
    pub name_off: u32,
    /// What the type is.
    pub kind: Kind,
}

/// What a type is. Fields named `ty`, `elem`, `index`, `ret` and `proto` are type ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // field names are the format's
pub enum Kind {
    Void,
    Int {
        size: u32,
        bits: u8,
        offset: u8,
        /// Flags of [`int_encoding`].
        encoding: u8,
    },
    Ptr {
        ty: u32,
    },
    Array {
        elem: u32,
        index: u32,
        len: u32,
    },
    Struct(Composite),
    Union(Composite),
    Enum {
        size: u32,
        signed: bool,
        /// Name offset and value of each enumerator.
        values: Box<[(u32, i64)]>,
    },
    Enum64 {
        size: u32,
        signed: bool,
        /// Name offset and value (its 64 bits) of each enumerator.
        values: Box<[(u32, i64)]>,
    },
    Fwd {
        union: bool,
    },
    Typedef {
        ty: u32,
    },
    Volatile {
        ty: u32,
    },
    Const {
        ty: u32,
    },
    Restrict {
        ty: u32,
    },
    TypeTag {
        ty: u32,
    },
    Func {
        proto: u32,
        linkage: Linkage,
    },
    FuncProto {
        ret: u32,
        params: Box<[Param]>,
    },
    Var {
        ty: u32,
        linkage: Linkage,
    },
    Datasec {
        size: u32,
        /// Type id of the `VAR`, offset in the section, size.
        vars: Box<[(u32, u32, u32)]>,
    },
    Float {
        size: u32,
    },
    DeclTag {
        ty: u32,
        /// Member or parameter that is tagged, -1 for the type itself.
        component: i32,
    },
}

/// A struct or union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composite {
    /// Size in bytes.
    pub size: u32,
    /// Members in order.
    pub members: Box<[Member]>,
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Offset of the name, 0 if anonymous.
    pub name_off: u32,
    /// Type id.
    pub ty: u32,
    /// Offset in bits from the start of the composite.
    pub bit_offset: u32,
    /// Bits of a bit field, 0 for a plain member.
    pub bitfield_size: u8,
}

/// A parameter of a function prototype; one without name and type stands for `...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Offset of the name, 0 if anonymous.
    pub name_off: u32,
    /// Type id.
    pub ty: u32,
}

/// Linkage of functions and variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Of its file alone.
    Static,
    /// Seen by all.
    Global,
    /// Defined elsewhere.
    Extern,
}

impl Kind {
    /// The kind's name as bpftool prints it.
    pub const fn name(&self) -> &'static str {
        match self {
            Kind::Void => "VOID",
            Kind::Int { .. } => "INT",
            Kind::Ptr { .. } => "PTR",
            Kind::Array { .. } => "ARRAY",
            Kind::Struct(_) => "STRUCT",
            Kind::Union(_) => "UNION",
            Kind::Enum { .. } => "ENUM",
            Kind::Enum64 { .. } => "ENUM64",
            Kind::Fwd { .. } => "FWD",
            Kind::Typedef { .. } => "TYPEDEF",
            Kind::Volatile { .. } => "VOLATILE",
            Kind::Const { .. } => "CONST",
            Kind::Restrict { .. } => "RESTRICT",
            Kind::TypeTag { .. } => "TYPE_TAG",
            Kind::Func { .. } => "FUNC",
            Kind::FuncProto { .. } => "FUNC_PROTO",
            Kind::Var { .. } => "VAR",
            Kind::Datasec { .. } => "DATASEC",
            Kind::Float { .. } => "FLOAT",
            Kind::DeclTag { .. } => "DECL_TAG",
        }
    }

    /// The struct or union, if it is one.
    pub const fn composite(&self) -> Option<&Composite> {
        match self {
            Kind::Struct(c) | Kind::Union(c) => Some(c),
            _ => None,
        }
    }

    /// Name offset and value of each enumerator of an `ENUM` or `ENUM64`.
    pub const fn enumerators(&self) -> Option<&[(u32, i64)]> {
        match self {
            Kind::Enum { values, .. } | Kind::Enum64 { values, .. } => Some(values),
            _ => None,
        }
    }

    /// The type that a modifier (`const`, `volatile`, `restrict`, type tag) or typedef stands for.
    pub const fn modified(&self) -> Option<u32> {
        match *self {
            Kind::Typedef { ty }
            | Kind::Volatile { ty }
            | Kind::Const { ty }
            | Kind::Restrict { ty }
            | Kind::TypeTag { ty } => Some(ty),
            _ => None,
        }
    }
}

/// A name without its flavor: what stands before the last `___` (`task_struct___old` gives `task_struct`).
pub fn essential_name(name: &str) -> &str {
    let b = name.as_bytes();
    let mut end = b.len();
    // A flavor separator has a character that is no underscore on either side.
    while end >= 5 {
        if let [before, b'_', b'_', b'_', after] = b[end - 5..end]
            && before != b'_'
            && after != b'_'
        {
            return name.get(..end - 4).unwrap_or(name);
        }
        end -= 1;
    }
    name
}

/// FNV-1a.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

impl Btf {
    /// Parses a blob that stands alone: a `.BTF` section or `/sys/kernel/btf/vmlinux`.
    pub fn parse(bytes: &[u8]) -> Result<Btf, BtfError> {
        parse::parse(None, bytes)
    }

    /// Parses a blob that continues `base`, such as a kernel module's.
    pub fn parse_split(base: Arc<Btf>, bytes: &[u8]) -> Result<Btf, BtfError> {
        parse::parse(Some(base), bytes)
    }

    /// Number of types, the base's and `void` included; ids are below it.
    #[allow(clippy::len_without_is_empty)] // `void` is always there
    pub fn len(&self) -> u32 {
        self.first_id + self.types.len() as u32
    }

    /// The base of a split blob.
    pub fn base(&self) -> Option<&Arc<Btf>> {
        self.base.as_ref()
    }

    /// A type by its id.
    pub fn ty(&self, id: u32) -> Option<&Type> {
        match id.checked_sub(self.first_id) {
            Some(i) => self.types.get(i as usize),
            None => self.base.as_ref()?.ty(id),
        }
    }

    /// What a type is.
    pub fn kind(&self, id: u32) -> Option<&Kind> {
        self.ty(id).map(|t| &t.kind)
    }

    /// The name of a type, empty if it is anonymous or does not exist.
    pub fn name(&self, id: u32) -> &str {
        self.ty(id).and_then(|t| self.str_at(t.name_off)).unwrap_or("")
    }

    /// The string at an offset of the string section.
    pub fn str_at(&self, off: u32) -> Option<&str> {
        match off.checked_sub(self.first_str) {
            Some(i) => self.strings.get(i as usize..)?.split('\0').next(),
            None => self.base.as_ref()?.str_at(off),
        }
    }

    /// The first type with this name whose kind satisfies `pred`.
    pub fn find(&self, name: &str, pred: impl Fn(&Kind) -> bool) -> Option<u32> {
        self.find_dyn(name, &pred)
    }

    fn find_dyn(&self, name: &str, pred: &dyn Fn(&Kind) -> bool) -> Option<u32> {
        let in_base = self.base.as_ref().and_then(|b| b.find_dyn(name, pred));
        in_base.or_else(|| {
            self.bucket(essential_name(name)).find(|&id| self.name(id) == name && self.kind(id).is_some_and(pred))
        })
    }

    /// All types whose name without flavor is `essential`, in order of their ids.
    pub fn find_essential(&self, essential: &str) -> Vec<u32> {
        let mut out = self.base.as_ref().map(|b| b.find_essential(essential)).unwrap_or_default();
        out.extend(self.bucket(essential).filter(|&id| essential_name(self.name(id)) == essential));
        out
    }

    /// Own types whose essential name has the same hash.
    fn bucket(&self, essential: &str) -> impl Iterator<Item = u32> + '_ {
        let slot = |i: u32| i.checked_sub(1);
        let first = self.buckets.get(hash(essential) as usize & self.buckets.len().wrapping_sub(1));
        core::iter::successors(first.copied().and_then(slot), move |&i| {
            self.chain.get(i as usize).copied().and_then(slot)
        })
        .map(|i| self.first_id + i)
    }

    /// The type behind typedefs and modifiers; `None` if an id is wrong or the chain is longer than [`MAX_DEPTH`].
    pub fn resolve(&self, id: u32) -> Option<u32> {
        let mut id = id;
        for _ in 0..=MAX_DEPTH {
            match self.kind(id)?.modified() {
                Some(ty) => id = ty,
                None => return Some(id),
            }
        }
        None
    }

    /// Size in bytes; `None` for types without one (`void`, functions, forward declarations) or beyond the bounds.
    pub fn size_of(&self, id: u32) -> Option<u64> {
        let mut id = id;
        let mut count = 1u64;
        for _ in 0..=MAX_DEPTH {
            let size = match *self.kind(id)? {
                Kind::Int { size, .. }
                | Kind::Enum { size, .. }
                | Kind::Enum64 { size, .. }
                | Kind::Float { size }
                | Kind::Datasec { size, .. }
                | Kind::Struct(Composite { size, .. })
                | Kind::Union(Composite { size, .. }) => u64::from(size),
                Kind::Ptr { .. } => 8,
                Kind::Array { elem, len, .. } => {
                    count = count.checked_mul(u64::from(len))?;
                    id = elem;
                    continue;
                }
                Kind::Var { ty, .. } | Kind::DeclTag { ty, .. } => {
                    id = ty;
                    continue;
                }
                ref k => {
                    id = k.modified()?;
                    continue;
                }
            };
            return count.checked_mul(size);
        }
        None
    }

    /// The declaration tags of a type: text, and which member or parameter is meant (-1: the type itself).
    pub fn decl_tags(&self, id: u32) -> impl Iterator<Item = (&str, i32)> {
        let mut out = Vec::new();
        self.collect_tags(id, &mut out);
        out.into_iter()
    }

    fn collect_tags<'a>(&'a self, id: u32, out: &mut Vec<(&'a str, i32)>) {
        if let Some(b) = &self.base {
            b.collect_tags(id, out);
        }
        let from = self.tags.partition_point(|&(t, _)| t < id);
        for &(_, tag) in self.tags.iter().skip(from).take_while(|&&(t, _)| t == id) {
            if let Some(&Kind::DeclTag { component, .. }) = self.kind(tag) {
                out.push((self.name(tag), component));
            }
        }
    }

    /// All types with their ids, `void` first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Type)> {
        (0..self.len()).filter_map(|id| Some((id, self.ty(id)?)))
    }

    /// Changes the linkage of a function or variable of this blob; false if there is none with this id.
    pub fn set_linkage(&mut self, id: u32, linkage: Linkage) -> bool {
        match self.own_kind(id) {
            Some(Kind::Func { linkage: l, .. } | Kind::Var { linkage: l, .. }) => {
                *l = linkage;
                true
            }
            _ => false,
        }
    }

    /// Gives a data section of this blob its size and its variables' offsets (in their order), which compilers leave
    /// to the linker. Variables end up sorted by offset. False if there is no data section with this id.
    pub fn lay_out(&mut self, id: u32, size: u32, offsets: &[u32]) -> bool {
        let Some(Kind::Datasec { size: s, vars }) = self.own_kind(id) else { return false };
        *s = size;
        for (var, &off) in vars.iter_mut().zip(offsets) {
            var.1 = off;
        }
        vars.sort_by_key(|v| v.1);
        true
    }

    fn own_kind(&mut self, id: u32) -> Option<&mut Kind> {
        let i = id.checked_sub(self.first_id)?;
        self.types.get_mut(i as usize).map(|t| &mut t.kind)
    }
}
