//! Contexts as tables, a row for each field: which widths may be read and written, and by whom.

use super::{Access, Loaded};
use crate::reg::Kind;

/// Widths of accesses: a width is its own bit.
pub(super) type Widths = u8;

pub(super) const NONE: Widths = 0;
pub(super) const BYTE: Widths = 1;
pub(super) const HALF: Widths = 2;
pub(super) const WORD: Widths = 4;
pub(super) const WIDE: Widths = 8;
/// A word and parts of it.
pub(super) const NARROW: Widths = BYTE | HALF | WORD;
/// Any width.
pub(super) const ANY: Widths = NARROW | WIDE;
/// Parts of the field only from its first byte on.
pub(super) const HEAD: Widths = 16;

/// Who may do something: a bit for each program type or attach type, whichever the table is about.
pub(super) type Who = u64;

/// Nobody.
pub(super) const NOBODY: Who = 0;
/// Everybody.
pub(super) const ALL: Who = !0;

/// What a field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holds {
    Number,
    /// This kind of pointer.
    Pointer(Kind),
    /// The same, or null.
    PointerOrNull(Kind),
}

/// A field of a context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    off: i64,
    len: i64,
    read: Widths,
    write: Widths,
    readers: Who,
    writers: Who,
    holds: Holds,
}

/// A field of numbers, given by its offset and its bytes.
pub(super) const fn field(off: i64, len: i64, read: Widths, readers: Who, write: Widths, writers: Who) -> Field {
    Field { off, len, read, write, readers, writers, holds: Holds::Number }
}

/// A field of numbers that everybody may read and nobody may write.
pub(super) const fn read(off: i64, len: i64, widths: Widths) -> Field {
    field(off, len, widths, ALL, NONE, NOBODY)
}

/// A field with a pointer, which is read whole.
pub(super) const fn pointer(off: i64, len: u8, readers: Who, holds: Holds) -> Field {
    Field { off, len: len as i64, read: len, write: NONE, readers, writers: NOBODY, holds }
}

impl Field {
    fn permits(&self, who: Who, a: Access) -> bool {
        let (widths, allowed) = if a.write { (self.write, self.writers) } else { (self.read, self.readers) };
        let inside = a.off >= self.off && a.off + i64::from(a.size) <= self.off + self.len;
        let placed = widths & HEAD == 0 || a.off == self.off;
        let plain = self.holds == Holds::Number || !a.signed;
        inside && placed && plain && allowed & who != 0 && u32::from(widths & ANY) & a.size != 0 && a.aligned()
    }
}

/// What an access gives; the first row that permits it decides.
pub(super) fn access(table: &[Field], who: Who, a: Access) -> Option<Loaded> {
    let field = table.iter().find(|f| f.permits(who, a))?;
    Some(match field.holds {
        Holds::Number => Loaded::Number,
        Holds::Pointer(kind) => Loaded::Pointer { kind, nullable: false },
        Holds::PointerOrNull(kind) => Loaded::Pointer { kind, nullable: true },
    })
}
