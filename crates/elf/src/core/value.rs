//! What an instruction is to hold.

use skep_ebpf::btf::{Btf, Kind, int_encoding};

use super::path::Path;
use super::{CoreError, CoreKind as K};

/// The answer to a relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// What the instruction holds now, by the object's types.
    pub old: u64,
    /// What it is to hold.
    pub new: u64,
    /// The instruction must hold `old`.
    pub check: bool,
    /// It cannot work with the target's types.
    pub poison: bool,
    /// Bytes of the member in the object and in the target, 0 if that is not the question.
    pub sizes: (u32, u32),
    /// A load or store of the new size would not mean the same.
    pub bad_size: bool,
}

/// One side of an answer.
struct Side {
    value: u64,
    check: bool,
    /// Size and type of the member that is accessed.
    member: Option<(u32, u32)>,
}

impl Side {
    fn of(value: u64) -> Side {
        Side { value, check: true, member: None }
    }
}

impl Answer {
    /// An answer that holds whatever the instruction has.
    pub fn unchecked(value: u64) -> Answer {
        Answer { old: value, new: value, check: false, poison: false, sizes: (0, 0), bad_size: false }
    }

    /// Answers `kind` for a path of the object and where it leads in the target, if anywhere.
    pub fn new(kind: K, local: &Btf, here: &Path, target: &Btf, there: Option<&Path>) -> Result<Answer, CoreError> {
        let old = side(kind, local, Some(here))?;
        let Some(old) = old else { return Ok(Answer { poison: true, ..Answer::unchecked(0) }) };
        let mut answer = Answer { old: old.value, check: old.check, ..Answer::unchecked(0) };
        let Some(new) = side(kind, target, there)? else { return Ok(Answer { poison: true, ..answer }) };
        answer.new = new.value;
        let size = |s: &Side| s.member.map_or(0, |m| m.0);
        answer.sizes = (size(&old), size(&new));
        if answer.sizes.0 != answer.sizes.1 {
            let ty = |s: &Side, btf: &Btf| s.member.and_then(|m| btf.kind(btf.resolve(m.1)?).cloned());
            // A 32-bit kernel's pointer reads as well as a 64-bit one; an unsigned number is zero-extended by the load.
            answer.bad_size = match (ty(&old, local), ty(&new, target)) {
                (Some(Kind::Ptr { .. }), Some(Kind::Ptr { .. })) => false,
                (Some(Kind::Int { encoding: a, .. }), Some(Kind::Int { encoding: b, .. })) => {
                    a == int_encoding::SIGNED || b == int_encoding::SIGNED
                }
                _ => true,
            };
        }
        Ok(answer)
    }
}

/// What one BTF says; `None` if the instruction cannot be told anything.
fn side(kind: K, btf: &Btf, path: Option<&Path>) -> Result<Option<Side>, CoreError> {
    match (kind, path) {
        (K::FieldExists | K::TypeExists | K::TypeMatches | K::EnumvalExists, _) => {
            Ok(Some(Side::of(path.is_some().into())))
        }
        // The number of a type may change with every build of the object: nothing to compare with.
        (K::TypeIdLocal | K::TypeIdTarget, Some(p)) => {
            Ok(Some(Side { check: false, ..Side::of(btf.own_id(p.root).into()) }))
        }
        (K::TypeSize, Some(p)) => Ok(Some(Side::of(btf.size_of(p.root).ok_or(CoreError::NoSize)?))),
        (K::TypeIdLocal | K::TypeIdTarget | K::TypeSize, None) => Ok(Some(Side::of(0))),
        (_, None) => Ok(None),
        (K::EnumvalValue, Some(p)) => {
            let values = p.last().and_then(|s| Some((btf.kind(s.ty)?.enumerators()?, s.index)));
            let value = values.and_then(|(v, i)| v.get(i as usize)).ok_or(CoreError::NoSize)?;
            Ok(Some(Side::of(value.1 as u64)))
        }
        (_, Some(p)) => field(kind, btf, p).map(Some),
    }
}

/// Size of what a load or store of this type moves: of an array, one element.
fn access_size(btf: &Btf, ty: u32) -> Result<u32, CoreError> {
    let mut id = btf.resolve(ty).ok_or(CoreError::TooDeep)?;
    for _ in 0..skep_ebpf::btf::MAX_DEPTH {
        match btf.kind(id) {
            Some(&Kind::Array { elem, .. }) => id = btf.resolve(elem).ok_or(CoreError::TooDeep)?,
            _ => return btf.size_of(id).and_then(|n| u32::try_from(n).ok()).ok_or(CoreError::NoSize),
        }
    }
    Err(CoreError::TooDeep)
}

fn field(kind: K, btf: &Btf, path: &Path) -> Result<Side, CoreError> {
    let step = path.last().ok_or(CoreError::NoSize)?;
    if !step.named {
        return match kind {
            K::FieldByteOffset => {
                Ok(Side { member: Some((access_size(btf, step.ty)?, step.ty)), ..Side::of(path.bits() / 8) })
            }
            K::FieldByteSize => Ok(Side::of(btf.size_of(step.ty).ok_or(CoreError::NoSize)?)),
            other => Err(CoreError::Element(other.name())),
        };
    }
    let member = btf.kind(step.ty).and_then(|k| k.composite()).and_then(|c| c.members.get(step.index as usize));
    let member = member.ok_or(CoreError::NoSize)?;
    let ty = btf.resolve(member.ty).ok_or(CoreError::TooDeep)?;
    let bit_field = member.bitfield_size != 0;
    let (byte_offset, bytes, bits) = if bit_field {
        let bits = u64::from(member.bitfield_size);
        let (offset, bytes) = word_of(btf.size_of(ty).ok_or(CoreError::NoSize)?, path.bits(), bits)?;
        (offset, bytes, bits)
    } else {
        let bytes = btf.size_of(ty).ok_or(CoreError::NoSize)?;
        (path.bits() / 8, bytes, bytes.saturating_mul(8))
    };
    // Compilers may read a bit field in another way than it is worked out here.
    let side = |value| Side { check: !bit_field, ..Side::of(value) };
    Ok(match kind {
        K::FieldByteOffset if bit_field => side(byte_offset),
        K::FieldByteOffset => Side { member: Some((access_size(btf, ty)?, ty)), ..side(byte_offset) },
        K::FieldByteSize => side(bytes),
        K::FieldSigned => Side::of(match btf.kind(ty) {
            Some(Kind::Enum { signed, .. } | Kind::Enum64 { signed, .. }) => u64::from(*signed),
            Some(Kind::Int { encoding, .. }) => u64::from(encoding & int_encoding::SIGNED != 0),
            _ => 0,
        }),
        K::FieldLshiftU64 => {
            let end = path.bits().saturating_add(bits).saturating_sub(byte_offset.saturating_mul(8));
            side(64u64.wrapping_sub(end))
        }
        _ => Side::of(64u64.wrapping_sub(bits)),
    })
}

/// Offset and size of the smallest naturally aligned word, at least `size` bytes long, that holds a bit field.
fn word_of(size: u64, bit_offset: u64, bits: u64) -> Result<(u64, u64), CoreError> {
    let mut size = size;
    if size == 0 {
        return Err(CoreError::NoSize);
    }
    loop {
        let offset = bit_offset / 8 / size * size;
        if bit_offset.saturating_add(bits).saturating_sub(offset.saturating_mul(8)) <= size.saturating_mul(8) {
            return Ok((offset, size));
        }
        if size >= 8 {
            return Err(CoreError::BitField);
        }
        size *= 2;
    }
}
