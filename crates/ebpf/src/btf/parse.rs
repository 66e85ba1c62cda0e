//! From bytes to [`Btf`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Btf, BtfError, Composite, Kind, Linkage, Member, Param, Type, essential_name, hash};

/// Magic number of `.BTF` and `.BTF.ext`.
const MAGIC: u16 = 0xeb9f;
/// The kernel's limit on type ids; leaves room for a split blob on top of any base.
pub(super) const MAX_TYPES: u32 = 0x00ff_ffff;

/// A cursor over little-endian words that knows where it is.
pub(super) struct Words<'a> {
    bytes: &'a [u8],
    pos: usize,
    what: &'static str,
}

impl<'a> Words<'a> {
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Words<'a> {
        Words { bytes, pos: 0, what }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pos >= self.bytes.len()
    }

    fn truncated(&self) -> BtfError {
        BtfError::Truncated { what: self.what, offset: self.pos as u32 }
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], BtfError> {
        let end = self.pos.checked_add(n).ok_or(self.truncated())?;
        let s = self.bytes.get(self.pos..end).ok_or(self.truncated())?;
        self.pos = end;
        Ok(s)
    }

    pub(super) fn word(&mut self) -> Result<u32, BtfError> {
        let s = self.bytes.get(self.pos..).and_then(|s| s.first_chunk()).ok_or(self.truncated())?;
        self.pos += 4;
        Ok(u32::from_le_bytes(*s))
    }

    /// `n` records of `W` words each, built by `f`.
    fn records<const W: usize, T>(&mut self, n: u32, f: impl Fn([u32; W]) -> T) -> Result<Box<[T]>, BtfError> {
        let bytes = self.take((n as usize).saturating_mul(W * 4))?;
        let (words, _) = bytes.as_chunks::<4>();
        let (records, _) = words.as_chunks::<W>();
        Ok(records.iter().map(|r| f(r.map(u32::from_le_bytes))).collect())
    }
}

/// Reads the head that both blobs share and gives the header's length.
pub(super) fn header(bytes: &[u8]) -> Result<u32, BtfError> {
    let mut w = Words::new(bytes, "the header");
    let first = w.word()?;
    let magic = first as u16;
    if magic == MAGIC.swap_bytes() {
        return Err(BtfError::BigEndian);
    }
    if magic != MAGIC {
        return Err(BtfError::Magic { found: magic });
    }
    let version = (first >> 16) as u8;
    if version != 1 {
        return Err(BtfError::Version { found: version });
    }
    w.word()
}

/// Cuts `len` bytes at `off` behind the header.
pub(super) fn section<'a>(
    bytes: &'a [u8],
    hdr_len: u32,
    off: u32,
    len: u32,
    what: &'static str,
) -> Result<&'a [u8], BtfError> {
    let start = u64::from(hdr_len) + u64::from(off);
    let end = start + u64::from(len);
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range
        .and_then(|(start, end)| bytes.get(start..end))
        .ok_or(BtfError::Truncated { what, offset: hdr_len.saturating_add(off) })
}

/// Text of the string section. Offsets must stay true, so a byte that is not UTF-8 becomes one question mark.
fn text(bytes: &[u8]) -> Box<str> {
    if let Ok(s) = core::str::from_utf8(bytes) {
        return s.into();
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| '?'));
    }
    out.into()
}

pub(super) fn parse(base: Option<Arc<Btf>>, bytes: &[u8]) -> Result<Btf, BtfError> {
    let hdr_len = header(bytes)?;
    let mut w = Words::new(bytes, "the header");
    w.take(8)?;
    let (type_off, type_len, str_off, str_len) = (w.word()?, w.word()?, w.word()?, w.word()?);
    let type_bytes = section(bytes, hdr_len, type_off, type_len, "the type section")?;
    let str_bytes = section(bytes, hdr_len, str_off, str_len, "the string section")?;
    match (str_bytes, &base) {
        ([], Some(_)) => {}
        ([.., 0], Some(_)) => {}
        ([0] | [0, .., 0], None) => {}
        _ => return Err(BtfError::Strings),
    }

    let (first_id, first_str) = match &base {
        Some(b) => (b.len(), b.strings_end()),
        None => (0, 0),
    };
    let mut btf = Btf {
        base,
        first_id,
        first_str,
        types: Vec::with_capacity(type_bytes.len() / 32 + 1),
        strings: text(str_bytes),
        buckets: Vec::new(),
        chain: Vec::new(),
        tags: Vec::new(),
        modules: Vec::new(),
    };
    if btf.base.is_none() {
        btf.types.push(Type { name_off: 0, kind: Kind::Void });
    }
    let mut w = Words::new(type_bytes, "the type section");
    while !w.is_empty() {
        let id = btf.len();
        if id > MAX_TYPES {
            return Err(BtfError::TooMany);
        }
        let t = one(&mut w, id)?;
        btf.types.push(t);
    }
    btf.check()?;
    btf.index();
    Ok(btf)
}

fn linkage(id: u32, n: u32) -> Result<Linkage, BtfError> {
    match n {
        0 => Ok(Linkage::Static),
        1 => Ok(Linkage::Global),
        2 => Ok(Linkage::Extern),
        found => Err(BtfError::Field { id, field: "linkage", found }),
    }
}

/// Reads one type.
fn one(w: &mut Words<'_>, id: u32) -> Result<Type, BtfError> {
    let (name_off, info, word) = (w.word()?, w.word()?, w.word()?);
    let vlen = info & 0xffff;
    let flag = info >> 31 != 0;
    let kind = match (info >> 24) & 0x1f {
        1 => {
            let data = w.word()?;
            let bits = data as u8;
            if bits > 128 {
                return Err(BtfError::Field { id, field: "bits of an integer", found: bits.into() });
            }
            Kind::Int { size: word, bits, offset: (data >> 16) as u8, encoding: (data >> 24) as u8 & 0xf }
        }
        2 => Kind::Ptr { ty: word },
        3 => Kind::Array { elem: w.word()?, index: w.word()?, len: w.word()? },
        k @ (4 | 5) => {
            let members = w.records(vlen, |[name_off, ty, off]| match flag {
                true => Member { name_off, ty, bit_offset: off & 0xff_ffff, bitfield_size: (off >> 24) as u8 },
                false => Member { name_off, ty, bit_offset: off, bitfield_size: 0 },
            })?;
            let c = Composite { size: word, members };
            if k == 4 { Kind::Struct(c) } else { Kind::Union(c) }
        }
        6 => {
            let widen = |v: u32| if flag { i64::from(v as i32) } else { i64::from(v) };
            Kind::Enum { size: word, signed: flag, values: w.records(vlen, |[name, v]| (name, widen(v)))? }
        }
        7 => Kind::Fwd { union: flag },
        8 => Kind::Typedef { ty: word },
        9 => Kind::Volatile { ty: word },
        10 => Kind::Const { ty: word },
        11 => Kind::Restrict { ty: word },
        12 => Kind::Func { proto: word, linkage: linkage(id, vlen)? },
        13 => Kind::FuncProto { ret: word, params: w.records(vlen, |[name_off, ty]| Param { name_off, ty })? },
        14 => Kind::Var { ty: word, linkage: linkage(id, w.word()?)? },
        15 => Kind::Datasec { size: word, vars: w.records(vlen, |[ty, off, size]| (ty, off, size))? },
        16 => Kind::Float { size: word },
        17 => Kind::DeclTag { ty: word, component: w.word()? as i32 },
        18 => Kind::TypeTag { ty: word },
        19 => {
            let join = |lo: u32, hi: u32| (u64::from(hi) << 32 | u64::from(lo)) as i64;
            let values = w.records(vlen, |[name, lo, hi]| (name, join(lo, hi)))?;
            Kind::Enum64 { size: word, signed: flag, values }
        }
        kind => return Err(BtfError::Kind { id, kind }),
    };
    Ok(Type { name_off, kind })
}

impl Btf {
    /// Every id and name offset that own types use must exist.
    fn check(&self) -> Result<(), BtfError> {
        let len = self.len();
        let strings = self.first_str.saturating_add(self.strings.len() as u32);
        for (id, t) in (self.first_id..).zip(&self.types) {
            let ty = |refers: u32| if refers < len { Ok(()) } else { Err(BtfError::TypeId { id, refers }) };
            // The empty name is always there, even where a split blob has no strings of its own.
            let name =
                |offset: u32| if offset == 0 || offset < strings { Ok(()) } else { Err(BtfError::Name { id, offset }) };
            name(t.name_off)?;
            match &t.kind {
                Kind::Void | Kind::Int { .. } | Kind::Float { .. } | Kind::Fwd { .. } => {}
                Kind::Array { elem, index, .. } => {
                    ty(*elem)?;
                    ty(*index)?;
                }
                Kind::Struct(c) | Kind::Union(c) => {
                    for m in &c.members {
                        name(m.name_off)?;
                        ty(m.ty)?;
                    }
                }
                Kind::Enum { values, .. } | Kind::Enum64 { values, .. } => {
                    values.iter().try_for_each(|&(n, _)| name(n))?;
                }
                Kind::FuncProto { ret, params } => {
                    ty(*ret)?;
                    for p in params {
                        name(p.name_off)?;
                        ty(p.ty)?;
                    }
                }
                Kind::Datasec { vars, .. } => vars.iter().try_for_each(|&(v, ..)| ty(v))?,
                Kind::Ptr { ty: r }
                | Kind::Typedef { ty: r }
                | Kind::Volatile { ty: r }
                | Kind::Const { ty: r }
                | Kind::Restrict { ty: r }
                | Kind::TypeTag { ty: r }
                | Kind::Func { proto: r, .. }
                | Kind::Var { ty: r, .. }
                | Kind::DeclTag { ty: r, .. } => ty(*r)?,
            }
        }
        Ok(())
    }

    /// Builds the name index and the list of tags.
    pub(super) fn index(&mut self) {
        let buckets = self.types.len().next_power_of_two();
        let mut heads = alloc::vec![0u32; buckets];
        let mut chain = alloc::vec![0u32; self.types.len()];
        let mut tags = Vec::new();
        // Backwards, so that a bucket's chain goes from low ids to high ones.
        for (i, t) in self.types.iter().enumerate().rev() {
            if let Kind::DeclTag { ty, .. } = t.kind {
                tags.push((ty, self.first_id + i as u32));
            }
            if t.name_off == 0 {
                continue;
            }
            let name = self.str_at(t.name_off).unwrap_or("");
            let h = hash(essential_name(name)) as usize & (buckets - 1);
            if let (Some(head), Some(next)) = (heads.get_mut(h), chain.get_mut(i)) {
                *next = core::mem::replace(head, i as u32 + 1);
            }
        }
        tags.sort_unstable();
        (self.buckets, self.chain, self.tags) = (heads, chain, tags);
    }
}
