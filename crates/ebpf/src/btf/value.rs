//! Values of BTF types, for tools that show what is in a map or a record.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Btf, Composite, Kind, int_encoding};

/// Nodes of one value tree before the rest is shown as [`Value::Bytes`].
const MAX_NODES: usize = 1 << 16;
/// Nesting before the rest is shown as [`Value::Bytes`].
const MAX_DEPTH: u32 = 32;

/// A value decoded by its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// A 128-bit integer, as unsigned.
    Wide(u128),
    /// A truth value.
    Bool(bool),
    /// A floating-point number.
    Float(f64),
    /// A character array up to its first zero byte.
    Str(String),
    /// An array.
    Array(Vec<Value>),
    /// A struct, or every view of a union; members of anonymous members stand among the others.
    Struct(Vec<(String, Value)>),
    /// An enumerator, without a name if no enumerator has the value.
    Enum {
        /// The enumerator's name.
        name: Option<String>,
        /// Its number.
        value: i64,
    },
    /// A pointer.
    Ptr(u64),
    /// Bytes that have no type, or fewer bytes than the type needs.
    Bytes(Vec<u8>),
}

/// Decodes `bytes` as a value of type `id`.
pub fn decode(btf: &Btf, id: u32, bytes: &[u8]) -> Value {
    Decoder { btf, nodes: 0 }.value(id, bytes, 0)
}

struct Decoder<'a> {
    btf: &'a Btf,
    nodes: usize,
}

/// An integer of up to 16 bytes.
fn int(bytes: &[u8]) -> u128 {
    bytes.iter().take(16).rev().fold(0, |n, &b| n << 8 | u128::from(b))
}

/// The low `bits` of `n`, as the type's signedness says.
fn number(n: u128, bits: u32, encoding: u8) -> Value {
    let low = if bits < 128 { n & ((1 << bits) - 1) } else { n };
    if bits > 64 {
        Value::Wide(low)
    } else if encoding & int_encoding::BOOL != 0 {
        Value::Bool(low != 0)
    } else if encoding & int_encoding::SIGNED != 0 && bits > 0 {
        let unused = 64 - bits;
        Value::Int((low as u64 as i64) << unused >> unused)
    } else {
        Value::Uint(low as u64)
    }
}

impl Decoder<'_> {
    fn value(&mut self, id: u32, bytes: &[u8], depth: u32) -> Value {
        let raw = || Value::Bytes(bytes.to_vec());
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            return raw();
        }
        let btf = self.btf;
        let Some(id) = btf.resolve(id) else { return raw() };
        let (Some(kind), Some(size)) = (btf.kind(id), btf.size_of(id)) else { return raw() };
        let Some(bytes) = usize::try_from(size).ok().and_then(|n| bytes.get(..n)) else { return raw() };
        match kind {
            Kind::Int { size: 0..=16, bits, offset, encoding } => {
                number(int(bytes) >> (*offset).min(127), u32::from(*bits), *encoding)
            }
            Kind::Ptr { .. } => Value::Ptr(int(bytes) as u64),
            Kind::Float { size: 4 } => Value::Float(f32::from_bits(int(bytes) as u32).into()),
            Kind::Float { size: 8 } => Value::Float(f64::from_bits(int(bytes) as u64)),
            Kind::Enum { .. } | Kind::Enum64 { .. } => self.enumerator(kind, int(bytes)),
            Kind::Array { elem, len, .. } => self.array(*elem, *len, bytes, depth),
            Kind::Struct(c) | Kind::Union(c) => {
                let mut out = Vec::with_capacity(c.members.len());
                self.members(c, bytes, depth, &mut out);
                Value::Struct(out)
            }
            Kind::Var { ty, .. } => self.value(*ty, bytes, depth + 1),
            Kind::Datasec { vars, .. } => {
                let mut out = Vec::with_capacity(vars.len());
                for &(var, off, size) in vars {
                    let span = bytes.get(off as usize..).map_or(&[][..], |s| &s[..s.len().min(size as usize)]);
                    out.push((btf.name(var).to_owned(), self.value(var, span, depth + 1)));
                }
                Value::Struct(out)
            }
            _ => raw(),
        }
    }

    fn enumerator(&self, kind: &Kind, n: u128) -> Value {
        let (Kind::Enum { size, signed, values } | Kind::Enum64 { size, signed, values }) = kind else {
            return Value::Uint(n as u64);
        };
        let bits = size.saturating_mul(8).min(64);
        let encoding = if *signed { int_encoding::SIGNED } else { 0 };
        let value = match number(n, bits, encoding) {
            Value::Int(n) => n,
            Value::Uint(n) => n as i64,
            _ => n as i64,
        };
        let name = values.iter().find(|v| v.1 == value).and_then(|v| self.btf.str_at(v.0));
        Value::Enum { name: name.map(str::to_owned), value }
    }

    fn array(&mut self, elem: u32, len: u32, bytes: &[u8], depth: u32) -> Value {
        let Some(size) = self.btf.size_of(elem).filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok()) else {
            return Value::Array(Vec::new());
        };
        if let Some(text) = self.text(elem, bytes) {
            return Value::Str(text);
        }
        if len as usize > MAX_NODES - self.nodes.min(MAX_NODES) {
            return Value::Bytes(bytes.to_vec());
        }
        Value::Array(bytes.chunks_exact(size).map(|b| self.value(elem, b, depth + 1)).collect())
    }

    /// The text of an array of characters, if that is what the bytes look like.
    fn text(&self, elem: u32, bytes: &[u8]) -> Option<String> {
        let resolved = self.btf.resolve(elem)?;
        let Kind::Int { size: 1, encoding, .. } = *self.btf.kind(resolved)? else { return None };
        // clang gives `char` no flag but its signedness, so the name decides; `unsigned char` is a number.
        if encoding & int_encoding::CHAR == 0 && self.btf.name(resolved) != "char" {
            return None;
        }
        let text = bytes.split(|&b| b == 0).next().unwrap_or(bytes);
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn members(&mut self, c: &Composite, bytes: &[u8], depth: u32, out: &mut Vec<(String, Value)>) {
        for m in &c.members {
            let name = self.btf.str_at(m.name_off).unwrap_or("");
            let value = if m.bitfield_size != 0 {
                self.bit_field(m.ty, m.bit_offset, u32::from(m.bitfield_size), bytes)
            } else {
                let from = bytes.get(m.bit_offset as usize / 8..).unwrap_or(&[]);
                let nested = self.btf.resolve(m.ty).and_then(|id| self.btf.kind(id)).and_then(Kind::composite);
                if let (true, Some(inner)) = (name.is_empty() && depth < MAX_DEPTH, nested) {
                    self.members(inner, from, depth + 1, out);
                    continue;
                }
                self.value(m.ty, from, depth + 1)
            };
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                return;
            }
            // Unnamed bit fields are padding.
            if !name.is_empty() {
                out.push((name.to_owned(), value));
            }
        }
    }

    fn bit_field(&self, ty: u32, bit_offset: u32, bits: u32, bytes: &[u8]) -> Value {
        let first = bit_offset as usize / 8;
        let shift = bit_offset % 8;
        let n = int(bytes.get(first..).unwrap_or(&[])) >> shift;
        let bits = bits.min(64);
        let low = n & ((1u128 << bits) - 1);
        match self.btf.resolve(ty).and_then(|id| self.btf.kind(id)) {
            Some(Kind::Int { encoding, .. }) => number(low, bits, *encoding),
            Some(k @ (Kind::Enum { signed, .. } | Kind::Enum64 { signed, .. })) => {
                let extended = match number(low, bits, if *signed { int_encoding::SIGNED } else { 0 }) {
                    Value::Int(n) => n as u128,
                    _ => low,
                };
                self.enumerator(k, extended)
            }
            _ => Value::Uint(low as u64),
        }
    }
}
