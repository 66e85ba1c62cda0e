//! What can be wrong with a BTF blob.

use core::fmt;

/// Why a `.BTF` or `.BTF.ext` blob is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BtfError {
    /// The blob is shorter than its header says.
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Offset in the blob.
        offset: u32,
    },
    /// The first two bytes are not BTF's.
    Magic {
        /// What stands there.
        found: u16,
    },
    /// The blob was made for a big-endian machine.
    BigEndian,
    /// A version other than 1.
    Version {
        /// What stands there.
        found: u8,
    },
    /// The string section does not begin and end with a zero byte.
    Strings,
    /// A kind that the format does not have.
    Kind {
        /// Id of the type.
        id: u32,
        /// Number of the kind.
        kind: u32,
    },
    /// A field has a value that the format does not allow.
    Field {
        /// Id of the type.
        id: u32,
        /// The field.
        field: &'static str,
        /// What stands there.
        found: u32,
    },
    /// A type refers to one that does not exist.
    TypeId {
        /// Id of the type.
        id: u32,
        /// The id it refers to.
        refers: u32,
    },
    /// A type's name is outside the string section.
    Name {
        /// Id of the type.
        id: u32,
        /// Offset of the name.
        offset: u32,
    },
    /// A record of `.BTF.ext` has a size that cannot be.
    RecordSize {
        /// `func_info`, `line_info` or `core_relo`.
        table: &'static str,
        /// What stands there.
        found: u32,
    },
    /// More types than ids.
    TooMany,
    /// A module's types do not continue those of the kernel that they are put beside.
    Base,
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BtfError::Truncated { what, offset } => write!(f, "BTF ends within {what} at offset {offset}"),
            BtfError::Magic { found } => write!(f, "not BTF: magic is {found:#06x} instead of 0xeb9f"),
            BtfError::BigEndian => write!(f, "BTF is big-endian"),
            BtfError::Version { found } => write!(f, "BTF version {found} is unknown (expected 1)"),
            BtfError::Strings => write!(f, "BTF string section does not begin and end with a zero byte"),
            BtfError::Kind { id, kind } => write!(f, "BTF type {id} has unknown kind {kind}"),
            BtfError::Field { id, field, found } => write!(f, "BTF type {id}: {field} cannot be {found}"),
            BtfError::TypeId { id, refers } => write!(f, "BTF type {id} refers to type {refers}, which does not exist"),
            BtfError::Name { id, offset } => write!(f, "BTF type {id}: no string at offset {offset}"),
            BtfError::RecordSize { table, found } => {
                write!(f, ".BTF.ext: records of {table} cannot have {found} bytes")
            }
            BtfError::TooMany => write!(f, "BTF has too many types"),
            BtfError::Base => write!(f, "BTF of a module does not continue that of the kernel"),
        }
    }
}

impl core::error::Error for BtfError {}
