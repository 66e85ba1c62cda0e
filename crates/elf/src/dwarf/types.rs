//! Entries of debug information as BTF types, each once.
//!
//! The same type is described in every unit that uses it. Two structs are the same if name, size, and names and places of
//! their members are; other types, if what they are made of is.

use std::collections::HashMap;

use gimli::constants as c;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Linkage, Member, Param};

use super::entries::{At, Entries, Entry};

/// How deep types are followed: a damaged file may have rings.
const DEPTH: u32 = 128;
/// How deep objects within objects are looked at.
const NESTED: u32 = 8;
/// Most members, parameters and enumerators of one type.
const MOST: usize = u16::MAX as usize;

mod int {
    pub const SIGNED: u8 = 1;
    pub const CHAR: u8 = 2;
    pub const BOOL: u8 = 4;
}

/// How an object gets to a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Passing {
    Value,
    Address,
    Unknown,
}

/// What makes a type of its own; names of kinds' parts are in the kinds, as offsets of strings.
type Key = (u32, Kind);

/// BTF in the making. Its ids begin with 1, as [`Builder`]'s do.
pub(super) struct Types<'a> {
    entries: &'a Entries,
    types: Vec<Key>,
    known: HashMap<Box<[u32]>, u32>,
    of: HashMap<At, u32>,
    /// Structs whose members have no types yet.
    pending: Vec<(u32, Vec<(At, Member)>)>,
    strings: HashMap<Box<str>, u32>,
    builder: Builder,
    depth: u32,
}

impl<'a> Types<'a> {
    pub fn new(entries: &'a Entries) -> Types<'a> {
        Types {
            entries,
            types: Vec::new(),
            known: HashMap::new(),
            of: HashMap::new(),
            pending: Vec::new(),
            strings: HashMap::new(),
            builder: Builder::new(),
            depth: 0,
        }
    }

    /// A name as the kernel takes it: characters that no C name has are underscores.
    fn string(&mut self, name: &str) -> u32 {
        let fits = |ch: char| ch.is_ascii_alphanumeric() || matches!(ch, '_' | '.');
        let name: String = name.chars().map(|ch| if fits(ch) { ch } else { '_' }).collect();
        let digit = name.starts_with(|ch: char| ch.is_ascii_digit());
        self.text(if digit { format!("_{name}") } else { name })
    }

    /// A text, once.
    fn text(&mut self, text: String) -> u32 {
        match self.strings.get(text.as_str()) {
            Some(off) => *off,
            None => {
                let off = self.builder.string(&text);
                self.strings.insert(text.into(), off);
                off
            }
        }
    }

    fn push(&mut self, name: u32, kind: Kind) -> u32 {
        self.types.push((name, kind));
        self.types.len() as u32
    }

    /// A type that is made of others, once.
    fn once(&mut self, name: u32, kind: Kind) -> u32 {
        let key = key(name, &kind);
        match self.known.get(&key) {
            Some(id) => *id,
            None => {
                let id = self.push(name, kind);
                self.known.insert(key, id);
                id
            }
        }
    }

    /// The type of an entry that has one; 0 for `void`.
    fn type_of(&mut self, at: At) -> u32 {
        self.entries.type_of(at).map_or(0, |ty| self.id(ty))
    }

    /// The id of the type that an entry describes.
    fn id(&mut self, at: At) -> u32 {
        if let Some(id) = self.of.get(&at) {
            return *id;
        }
        let entries = self.entries;
        let Some(entry) = entries.get(at).filter(|_| self.depth < DEPTH) else { return 0 };
        // What is made of itself without a struct between is made of nothing.
        self.of.insert(at, 0);
        self.depth += 1;
        let id = self.make(at, entry);
        self.depth -= 1;
        self.of.insert(at, id);
        id
    }

    fn make(&mut self, at: At, entry: &'a Entry) -> u32 {
        let name = self.string(entry.name.as_deref().unwrap_or(""));
        match entry.tag {
            c::DW_TAG_base_type => {
                // `unsigned int` has a space.
                let name = self.text(entry.name.as_deref().unwrap_or("").replace(|ch: char| !ch.is_ascii(), "_"));
                self.base(name, entry)
            }
            c::DW_TAG_pointer_type | c::DW_TAG_reference_type | c::DW_TAG_rvalue_reference_type => {
                let ty = self.type_of(at);
                self.once(0, Kind::Ptr { ty })
            }
            c::DW_TAG_const_type => {
                let ty = self.type_of(at);
                self.once(0, Kind::Const { ty })
            }
            c::DW_TAG_volatile_type => {
                let ty = self.type_of(at);
                self.once(0, Kind::Volatile { ty })
            }
            c::DW_TAG_restrict_type => {
                let ty = self.type_of(at);
                self.once(0, Kind::Restrict { ty })
            }
            c::DW_TAG_atomic_type => self.type_of(at),
            c::DW_TAG_typedef => {
                let ty = self.type_of(at);
                self.once(name, Kind::Typedef { ty })
            }
            c::DW_TAG_structure_type | c::DW_TAG_class_type | c::DW_TAG_union_type => self.composite(at, name, entry),
            c::DW_TAG_enumeration_type => self.enumeration(at, name, entry),
            c::DW_TAG_array_type => self.array(at),
            c::DW_TAG_subroutine_type => self.prototype(at),
            _ => 0,
        }
    }

    fn base(&mut self, name: u32, entry: &Entry) -> u32 {
        let size = entry.size.unwrap_or(0) as u32;
        let encoding = match entry.encoding {
            Some(c::DW_ATE_float) if matches!(size, 2 | 4 | 8 | 12 | 16) => {
                return self.once(name, Kind::Float { size });
            }
            Some(c::DW_ATE_boolean) => int::BOOL,
            Some(c::DW_ATE_signed) => int::SIGNED,
            Some(c::DW_ATE_signed_char) => int::SIGNED | int::CHAR,
            Some(c::DW_ATE_unsigned_char | c::DW_ATE_UTF) => int::CHAR,
            Some(c::DW_ATE_unsigned) => 0,
            _ => return 0,
        };
        // `char` is a number in BTF.
        let encoding = if encoding & int::CHAR != 0 { encoding & int::SIGNED } else { encoding };
        match size {
            1 | 2 | 4 | 8 | 16 => self.once(name, Kind::Int { size, bits: (size * 8) as u8, offset: 0, encoding }),
            _ => 0,
        }
    }

    fn composite(&mut self, at: At, name: u32, entry: &'a Entry) -> u32 {
        let union = entry.tag == c::DW_TAG_union_type;
        let Some(size) = entry.size.filter(|_| !entry.declaration).and_then(|n| u32::try_from(n).ok()) else {
            return if name == 0 { 0 } else { self.once(name, Kind::Fwd { union }) };
        };
        // Names and places first: they say which struct it is, and its members may lead back to it.
        let entries = self.entries;
        let fields = entries.children(at).filter(|(_, e)| matches!(e.tag, c::DW_TAG_member | c::DW_TAG_inheritance));
        let fields: Vec<_> = fields.filter(|(_, e)| !e.declaration).take(MOST).collect();
        let mut members = Vec::with_capacity(fields.len());
        for &(field, e) in &fields {
            let Some((bit_offset, bitfield_size)) = self.place_of(field, e) else { continue };
            let name_off = self.string(e.name.as_deref().unwrap_or(""));
            members.push((field, Member { name_off, ty: 0, bit_offset, bitfield_size }));
        }
        let composite = Composite { size, members: members.iter().map(|(_, m)| *m).collect() };
        let outline = if union { Kind::Union(composite) } else { Kind::Struct(composite) };
        // Without a name it is the one that its entry describes, and no other.
        let before = self.types.len();
        let id = if name == 0 { self.push(0, outline) } else { self.once(name, outline) };
        if id as usize > before {
            self.pending.push((id, members));
        }
        id
    }

    /// Gives members their types. Not done while a struct is met: through pointers structs lead ever deeper.
    fn settle(&mut self) {
        while let Some((id, members)) = self.pending.pop() {
            for (n, (field, _)) in members.into_iter().enumerate() {
                let ty = self.type_of(field);
                if let Some((_, Kind::Struct(c) | Kind::Union(c))) = self.types.get_mut(id as usize - 1)
                    && let Some(member) = c.members.get_mut(n)
                {
                    member.ty = ty;
                }
            }
        }
    }

    /// Where a member begins, in bits, and how many a bit field has. `None` if BTF cannot say it.
    fn place_of(&self, field: At, e: &Entry) -> Option<(u32, u8)> {
        let start = e.place.checked_mul(8)?;
        let bits = match e.bits {
            Some(bits) => u8::try_from(bits).ok()?,
            None => return u32::try_from(start).ok().map(|at| (at, 0)),
        };
        let at = match (e.bit_place, e.old_bit_place) {
            (Some(at), _) => start.checked_add(at)?,
            // Counted from the other end of the unit that holds it.
            (None, Some(at)) => {
                let ty = self.entries.type_of(field).and_then(|ty| self.storage(ty));
                let unit = e.size.or(ty)?.checked_mul(8)?;
                start.checked_add(unit)?.checked_sub(at.checked_add(u64::from(bits))?)?
            }
            (None, None) => start,
        };
        (at < 1 << 24).then_some((at as u32, bits))
    }

    /// Bytes of a plain type behind its names.
    fn storage(&self, mut at: At) -> Option<u64> {
        for _ in 0..DEPTH {
            let entry = self.entries.get(at)?;
            if entry.size.is_some() {
                return entry.size;
            }
            at = self.entries.type_of(at)?;
        }
        None
    }

    fn enumeration(&mut self, at: At, name: u32, entry: &Entry) -> u32 {
        let size = entry.size.or_else(|| self.storage(at)).unwrap_or(4) as u32;
        if entry.declaration || !matches!(size, 1 | 2 | 4 | 8) {
            return 0;
        }
        let entries = self.entries;
        let all = entries.children(at).filter(|(_, e)| e.tag == c::DW_TAG_enumerator);
        let values: Vec<_> = all.filter_map(|(_, e)| Some((e.name.as_deref()?, e.value?))).take(MOST).collect();
        let signed = values.iter().any(|(_, v)| *v < 0);
        let values: Box<[(u32, i64)]> = values.into_iter().map(|(n, v)| (self.string(n), v)).collect();
        let kind = match size {
            8 => Kind::Enum64 { size, signed, values },
            _ => Kind::Enum { size, signed, values },
        };
        self.once(name, kind)
    }

    /// An array; one with several dimensions is one of arrays.
    fn array(&mut self, at: At) -> u32 {
        let mut elem = self.type_of(at);
        let index = self.index_type();
        let entries = self.entries;
        let bounds = entries.children(at).filter(|(_, e)| e.tag == c::DW_TAG_subrange_type);
        let lengths: Vec<u32> = bounds.map(|(_, e)| e.value.and_then(|n| n.try_into().ok()).unwrap_or(0)).collect();
        for len in lengths.into_iter().rev() {
            elem = self.once(0, Kind::Array { elem, index, len });
        }
        elem
    }

    fn index_type(&mut self) -> u32 {
        let name = self.string("__ARRAY_SIZE_TYPE__");
        self.once(name, Kind::Int { size: 4, bits: 32, offset: 0, encoding: 0 })
    }

    /// The prototype of a function, or of the functions that a type describes.
    pub fn prototype(&mut self, at: At) -> u32 {
        let ret = self.type_of(at);
        let entries = self.entries;
        let named = entries.get(at).is_some_and(|e| e.tag == c::DW_TAG_subprogram);
        let mut params = Vec::new();
        for (child, entry) in entries.children(at).take(MOST) {
            match entry.tag {
                c::DW_TAG_formal_parameter => {
                    let mut ty = self.type_of(child);
                    match entries.type_of(child).map(|t| self.passing(t, NESTED)) {
                        Some(Passing::Address) => ty = self.once(0, Kind::Ptr { ty }),
                        Some(Passing::Unknown) => ty = 0,
                        Some(Passing::Value) | None => {}
                    }
                    let name_off = if named { self.string(entries.name(child)) } else { 0 };
                    params.push(Param { name_off, ty });
                }
                c::DW_TAG_unspecified_parameters => params.push(Param { name_off: 0, ty: 0 }),
                _ => {}
            }
        }
        self.once(0, Kind::FuncProto { ret, params: params.into() })
    }

    /// How objects of a type are passed. Those of a class with constructors or a destructor go by their address, if these
    /// do something; not every compiler says whether they do.
    fn passing(&self, at: At, depth: u32) -> Passing {
        let entries = self.entries;
        let Some(entry) = entries.get(at).filter(|_| depth > 0) else { return Passing::Value };
        match entry.tag {
            c::DW_TAG_typedef | c::DW_TAG_const_type | c::DW_TAG_volatile_type | c::DW_TAG_array_type => {
                entries.type_of(at).map_or(Passing::Value, |next| self.passing(next, depth - 1))
            }
            c::DW_TAG_structure_type | c::DW_TAG_class_type | c::DW_TAG_union_type => {
                if let Some(by_address) = entries.is_passed_by_address(at) {
                    return if by_address { Passing::Address } else { Passing::Value };
                }
                let special = |(child, e): (At, &Entry)| match e.tag {
                    c::DW_TAG_subprogram => {
                        let name = entries.name(child);
                        name.starts_with('~') || Some(name) == entry.name.as_deref()
                    }
                    c::DW_TAG_inheritance | c::DW_TAG_member => {
                        let inner = entries.type_of(child);
                        inner.is_some_and(|t| self.passing(t, depth - 1) != Passing::Value)
                    }
                    _ => false,
                };
                if entries.children(at).any(special) { Passing::Unknown } else { Passing::Value }
            }
            _ => Passing::Value,
        }
    }

    /// Adds a function.
    pub fn function(&mut self, name: &str, proto: u32, external: bool) {
        let name = self.string(name);
        let linkage = if external { Linkage::Global } else { Linkage::Static };
        self.push(name, Kind::Func { proto, linkage });
    }

    /// The blob. A struct that is only declared where it is used is the one that is defined elsewhere.
    pub fn finish(mut self) -> Vec<u8> {
        self.settle();
        let mut defined: HashMap<(bool, u32), u32> = HashMap::new();
        for ((name, kind), id) in self.types.iter().zip(1..) {
            match kind {
                Kind::Struct(_) if *name != 0 => drop(defined.entry((false, *name)).or_insert(id)),
                Kind::Union(_) if *name != 0 => drop(defined.entry((true, *name)).or_insert(id)),
                _ => {}
            }
        }
        let meant: Vec<u32> = (self.types.iter().zip(1..))
            .map(|((name, kind), id)| match kind {
                Kind::Fwd { union } => defined.get(&(*union, *name)).copied().unwrap_or(id),
                _ => id,
            })
            .collect();
        for (_, kind) in &mut self.types {
            references(kind, &mut |id| {
                if let Some(to) = (*id as usize).checked_sub(1).and_then(|n| meant.get(n)) {
                    *id = *to;
                }
            });
        }
        for (name, kind) in &self.types {
            self.builder.add_named(*name, kind);
        }
        self.builder.finish()
    }
}

/// Calls `f` for each type that a kind names.
fn references(kind: &mut Kind, f: &mut impl FnMut(&mut u32)) {
    match kind {
        Kind::Ptr { ty }
        | Kind::Typedef { ty }
        | Kind::Const { ty }
        | Kind::Volatile { ty }
        | Kind::Restrict { ty } => {
            f(ty);
        }
        Kind::Array { elem, .. } => f(elem),
        Kind::Struct(c) | Kind::Union(c) => c.members.iter_mut().for_each(|m| f(&mut m.ty)),
        Kind::FuncProto { ret, params } => {
            f(ret);
            params.iter_mut().for_each(|p| f(&mut p.ty));
        }
        _ => {}
    }
}

/// Words that two types have in common only if they are the same.
fn key(name: u32, kind: &Kind) -> Box<[u32]> {
    let mut words = vec![name];
    let mut put = |more: &[u32]| words.extend_from_slice(more);
    match kind {
        Kind::Int { size, bits, offset, encoding } => {
            put(&[1, *size, (*bits).into(), (*offset).into(), (*encoding).into()])
        }
        Kind::Ptr { ty } => put(&[2, *ty]),
        Kind::Array { elem, index, len } => put(&[3, *elem, *index, *len]),
        Kind::Struct(c) | Kind::Union(c) => {
            put(&[if matches!(kind, Kind::Struct(_)) { 4 } else { 5 }, c.size]);
            c.members.iter().for_each(|m| put(&[m.name_off, m.bit_offset, m.bitfield_size.into()]));
        }
        Kind::Enum { size, values, .. } | Kind::Enum64 { size, values, .. } => {
            put(&[6, *size]);
            values.iter().for_each(|(n, v)| put(&[*n, *v as u32, (*v >> 32) as u32]));
        }
        Kind::Fwd { union } => put(&[7, (*union).into()]),
        Kind::Typedef { ty } => put(&[8, *ty]),
        Kind::Volatile { ty } => put(&[9, *ty]),
        Kind::Const { ty } => put(&[10, *ty]),
        Kind::Restrict { ty } => put(&[11, *ty]),
        Kind::FuncProto { ret, params } => {
            put(&[13, *ret]);
            params.iter().for_each(|p| put(&[p.name_off, p.ty]));
        }
        Kind::Float { size } => put(&[16, *size]),
        _ => put(&[u32::MAX]),
    }
    words.into()
}
