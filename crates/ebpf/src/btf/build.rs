//! Makes BTF blobs, for tests and for types that no object file brings along.

use alloc::vec::Vec;

use super::{Btf, Kind, Linkage};

/// Collects types and strings; ids count from 1 in the order of [`Builder::add`].
#[derive(Clone, Debug)]
pub struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// Offset of the first own string.
    first_str: u32,
    next_id: u32,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    /// An empty blob.
    pub fn new() -> Builder {
        Builder { types: Vec::new(), strings: alloc::vec![0], first_str: 0, next_id: 1 }
    }

    /// A blob that continues `base`, as a kernel module's does.
    pub fn continuing(base: &Btf) -> Builder {
        Builder { types: Vec::new(), strings: Vec::new(), first_str: base.strings_end(), next_id: base.len() }
    }

    /// Adds a string and gives its offset; the empty string is at 0.
    pub fn string(&mut self, s: &str) -> u32 {
        if s.is_empty() {
            return 0;
        }
        let off = self.first_str + self.strings.len() as u32;
        self.strings.extend_from_slice(s.as_bytes());
        self.strings.push(0);
        off
    }

    /// Adds a type and gives its id. Name offsets inside `kind` come from [`Builder::string`].
    pub fn add(&mut self, name: &str, kind: &Kind) -> u32 {
        let name_off = self.string(name);
        self.add_named(name_off, kind)
    }

    /// As [`Builder::add`], with a name that is there already.
    pub fn add_named(&mut self, name_off: u32, kind: &Kind) -> u32 {
        let (number, vlen, flag, word) = head(kind);
        let info = vlen & 0xffff | number << 24 | u32::from(flag) << 31;
        self.words(&[name_off, info, word]);
        match kind {
            Kind::Int { bits, offset, encoding, .. } => {
                self.words(&[u32::from(*bits) | u32::from(*offset) << 16 | u32::from(*encoding) << 24]);
            }
            Kind::Array { elem, index, len } => self.words(&[*elem, *index, *len]),
            Kind::Struct(c) | Kind::Union(c) => {
                for m in &c.members {
                    let size = if flag { u32::from(m.bitfield_size) << 24 } else { 0 };
                    self.words(&[m.name_off, m.ty, m.bit_offset | size]);
                }
            }
            Kind::Enum { values, .. } => values.iter().for_each(|&(n, v)| self.words(&[n, v as u32])),
            Kind::Enum64 { values, .. } => {
                values.iter().for_each(|&(n, v)| self.words(&[n, v as u32, (v >> 32) as u32]));
            }
            Kind::FuncProto { params, .. } => params.iter().for_each(|p| self.words(&[p.name_off, p.ty])),
            Kind::Var { linkage, .. } => self.words(&[*linkage as u32]),
            Kind::Datasec { vars, .. } => vars.iter().for_each(|&(ty, off, size)| self.words(&[ty, off, size])),
            Kind::DeclTag { component, .. } => self.words(&[*component as u32]),
            _ => {}
        }
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Adds a 4-byte `int`, the type most others need.
    pub fn int(&mut self, name: &str, size: u32, encoding: u8) -> u32 {
        self.add(name, &Kind::Int { size, bits: (size * 8) as u8, offset: 0, encoding })
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }

    /// The blob.
    pub fn finish(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut out = alloc::vec![0x9f, 0xeb, 1, 0];
        out.extend([24, 0, types, types, strings].iter().flat_map(|w| w.to_le_bytes()));
        out.extend_from_slice(&self.types);
        out.extend_from_slice(&self.strings);
        out
    }
}

/// Number, length field, flag and size-or-type word of a kind.
fn head(kind: &Kind) -> (u32, u32, bool, u32) {
    match kind {
        Kind::Void => (0, 0, false, 0),
        Kind::Int { size, .. } => (1, 0, false, *size),
        Kind::Ptr { ty } => (2, 0, false, *ty),
        Kind::Array { .. } => (3, 0, false, 0),
        Kind::Struct(c) | Kind::Union(c) => {
            let number = if matches!(kind, Kind::Struct(_)) { 4 } else { 5 };
            (number, c.members.len() as u32, c.members.iter().any(|m| m.bitfield_size != 0), c.size)
        }
        Kind::Enum { size, signed, values } => (6, values.len() as u32, *signed, *size),
        Kind::Fwd { union } => (7, 0, *union, 0),
        Kind::Typedef { ty } => (8, 0, false, *ty),
        Kind::Volatile { ty } => (9, 0, false, *ty),
        Kind::Const { ty } => (10, 0, false, *ty),
        Kind::Restrict { ty } => (11, 0, false, *ty),
        Kind::Func { proto, linkage } => (12, *linkage as u32, false, *proto),
        Kind::FuncProto { ret, params } => (13, params.len() as u32, false, *ret),
        Kind::Var { ty, .. } => (14, 0, false, *ty),
        Kind::Datasec { size, vars } => (15, vars.len() as u32, false, *size),
        Kind::Float { size } => (16, 0, false, *size),
        Kind::DeclTag { ty, .. } => (17, 0, false, *ty),
        Kind::TypeTag { ty } => (18, 0, false, *ty),
        Kind::Enum64 { size, signed, values } => (19, values.len() as u32, *signed, *size),
    }
}

// The format's numbers.
const _: () = assert!(Linkage::Static as u32 == 0 && Linkage::Global as u32 == 1 && Linkage::Extern as u32 == 2);
