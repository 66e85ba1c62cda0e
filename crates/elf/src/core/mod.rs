//! CO-RE: what an instruction assumes about the kernel's types is looked up in the BTF of the kernel at hand.
//!
//! A record says which type of the object's BTF is meant, the path to a member of it, and what the instruction holds
//! (an offset, a size, whether something exists, …). The type is searched in the target by its name without flavor; of
//! all types of that name, those count in which the path can be followed; they must agree. If there is none, questions
//! are answered with no, and an instruction that cannot work becomes a call that the verifier rejects should it be reached.

pub(crate) mod compat;
mod patch;
mod path;
mod value;

use std::collections::HashMap;

use skep_ebpf::Insn;
use skep_ebpf::btf::ext::CoreRecord;
use skep_ebpf::btf::{Btf, Kind, essential_name};

use path::Path;
use value::Answer;

/// The helper that a poisoned instruction calls; recognisable in the verifier's complaint.
pub const POISON: i32 = 195_896_080;
/// Comparisons of types that one relocation may take.
const BUDGET: u32 = 1 << 20;

/// What a record asks (`enum bpf_core_relo_kind`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // names say it
pub enum CoreKind {
    FieldByteOffset,
    FieldByteSize,
    FieldExists,
    FieldSigned,
    FieldLshiftU64,
    FieldRshiftU64,
    TypeIdLocal,
    TypeIdTarget,
    TypeExists,
    TypeSize,
    EnumvalExists,
    EnumvalValue,
    TypeMatches,
}

use CoreKind as K;

impl CoreKind {
    /// Every kind by its number, with the name that libbpf gives it.
    const ALL: [(CoreKind, &'static str); 13] = [
        (K::FieldByteOffset, "byte_off"),
        (K::FieldByteSize, "byte_sz"),
        (K::FieldExists, "field_exists"),
        (K::FieldSigned, "signed"),
        (K::FieldLshiftU64, "lshift_u64"),
        (K::FieldRshiftU64, "rshift_u64"),
        (K::TypeIdLocal, "local_type_id"),
        (K::TypeIdTarget, "target_type_id"),
        (K::TypeExists, "type_exists"),
        (K::TypeSize, "type_size"),
        (K::EnumvalExists, "enumval_exists"),
        (K::EnumvalValue, "enumval_value"),
        (K::TypeMatches, "type_matches"),
    ];

    /// The kind with this number.
    pub fn from_u32(n: u32) -> Option<CoreKind> {
        CoreKind::ALL.get(n as usize).map(|k| k.0)
    }

    /// The name that libbpf gives it.
    pub fn name(self) -> &'static str {
        CoreKind::ALL.iter().find(|k| k.0 == self).map_or("?", |k| k.1)
    }

    fn is_type(self) -> bool {
        matches!(self, K::TypeIdLocal | K::TypeIdTarget | K::TypeExists | K::TypeSize | K::TypeMatches)
    }

    fn is_enum(self) -> bool {
        matches!(self, K::EnumvalExists | K::EnumvalValue)
    }
}

/// Why a relocation cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum CoreError {
    #[error("unknown relocation kind {0}")]
    Kind(u32),
    #[error("type {0} does not exist in the object's BTF")]
    LocalType(u32),
    #[error("path `{path}` does not fit the type: {problem}")]
    Path { path: String, problem: &'static str },
    #[error("an anonymous type cannot be searched")]
    Anonymous,
    #[error("types {first} and {second} of the target BTF both match but place it differently")]
    Ambiguous { first: u32, second: u32 },
    #[error("it has no size")]
    NoSize,
    #[error("a bit field that spans more than 8 bytes cannot be read")]
    BitField,
    #[error("`{0}` of an array element has no meaning")]
    Element(&'static str),
    #[error("types are nested too deeply to compare")]
    TooDeep,
    #[error("comparing the types takes too long")]
    TooLong,
    #[error("there is no instruction at that place")]
    NoInsn,
    #[error("instruction {code:#04x} cannot be relocated")]
    Insn { code: u8 },
    #[error("instruction holds {found} where the compiler's own type information says {expected}")]
    Mismatch { found: u64, expected: u64 },
    #[error("offset {0} does not fit the instruction")]
    Offset(u64),
    #[error("instruction accesses {found} bytes where the member has {expected}")]
    AccessSize { found: u32, expected: u32 },
    #[error("a member of {0} bytes cannot be read with one instruction")]
    MemberSize(u32),
}

/// Applies relocations of one object against one target.
pub struct Relocator<'a> {
    local: &'a Btf,
    target: &'a Btf,
    /// Types of the target that a type of the object may be. What a relocation rules out stays ruled out, so that all
    /// accesses of a type speak of the same one.
    candidates: HashMap<u32, Vec<u32>>,
}

impl<'a> Relocator<'a> {
    /// A relocator from the object's BTF to the target's.
    pub fn new(local: &'a Btf, target: &'a Btf) -> Relocator<'a> {
        Relocator { local, target, candidates: HashMap::new() }
    }

    /// Applies a relocation to the instruction at index `at`.
    pub fn apply(&mut self, insns: &mut [Insn], at: usize, record: &CoreRecord) -> Result<(), CoreError> {
        let kind = CoreKind::from_u32(record.kind).ok_or(CoreError::Kind(record.kind))?;
        let answer = self.answer(kind, record)?;
        patch::patch(insns, at, &answer)
    }

    /// True if the target has no type of that name at all.
    pub fn is_absent(&self, record: &CoreRecord) -> bool {
        candidates(self.local, record.type_id, self.target).is_empty()
    }

    fn answer(&mut self, kind: CoreKind, record: &CoreRecord) -> Result<Answer, CoreError> {
        let (local, target) = (self.local, self.target);
        let id = record.type_id;
        local.ty(id).ok_or(CoreError::LocalType(id))?;
        let path = local.str_at(record.access_str_off).unwrap_or("");
        let path = Path::parse(local, kind, id, path)?;
        if kind == K::TypeIdLocal {
            return Ok(Answer::unchecked(id.into()));
        }
        let name = local.name(id);
        if name.is_empty() {
            return Err(CoreError::Anonymous);
        }
        let candidates = self.candidates.entry(id).or_insert_with(|| candidates(local, id, target));

        let mut found: Option<(u32, Path, Answer)> = None;
        let mut matching = Vec::new();
        for &candidate in candidates.iter() {
            let Some(there) = path.follow(local, target, kind, candidate)? else { continue };
            let answer = Answer::new(kind, local, &path, target, Some(&there))?;
            matching.push(candidate);
            match &found {
                None => found = Some((candidate, there, answer)),
                Some((first, p, a)) => {
                    if p.bits() != there.bits() || a.poison != answer.poison || a.new != answer.new {
                        return Err(CoreError::Ambiguous { first: *first, second: candidate });
                    }
                }
            }
        }
        match found {
            Some((_, _, answer)) => {
                *candidates = matching;
                Ok(answer)
            }
            None => Answer::new(kind, local, &path, target, None),
        }
    }
}

/// Types of the target with the same name (flavors aside) and kind; those of modules only if the kernel has none.
fn candidates(local: &Btf, id: u32, target: &Btf) -> Vec<u32> {
    let mut found = target.find_essential(essential_name(local.name(id)));
    found.retain(|&t| same_kind(local.kind(id), target.kind(t)));
    target.prefer_kernel(found)
}

/// True if two types are of the same kind; the two kinds of enums count as one.
fn same_kind(a: Option<&Kind>, b: Option<&Kind>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    std::mem::discriminant(a) == std::mem::discriminant(b) || (a.enumerators().is_some() && b.enumerators().is_some())
}

/// Steps left before a comparison is given up.
struct Budget(u32);

impl Budget {
    fn new() -> Budget {
        Budget(BUDGET)
    }

    fn spend(&mut self) -> Result<(), CoreError> {
        self.0 = self.0.checked_sub(1).ok_or(CoreError::TooLong)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
