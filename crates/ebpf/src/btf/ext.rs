//! `.BTF.ext`: functions, lines and CO-RE records of an object's sections.

use alloc::vec::Vec;

use super::BtfError;
use super::parse::{Words, header, section};

/// A parsed `.BTF.ext`. Each table is a list of ELF sections with their records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BtfExt {
    /// Types of functions.
    pub funcs: Vec<Section<FuncRecord>>,
    /// Source lines.
    pub lines: Vec<Section<LineRecord>>,
    /// CO-RE relocations.
    pub relos: Vec<Section<CoreRecord>>,
}

/// The records of one ELF section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section<T> {
    /// Offset of the section's name in the strings of `.BTF`.
    pub name_off: u32,
    /// Records in the order of the file.
    pub records: Vec<T>,
}

/// The BTF type of the function that starts at an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuncRecord {
    /// Offset in the section, in bytes.
    pub insn_off: u32,
    /// Id of the `FUNC`.
    pub type_id: u32,
}

/// The line that instructions from `insn_off` on belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineRecord {
    /// Offset in the section, in bytes.
    pub insn_off: u32,
    /// Offset of the file's name in the strings of `.BTF`.
    pub file_name_off: u32,
    /// Offset of the line's text in the strings of `.BTF`.
    pub line_off: u32,
    /// Line in the upper 22 bits, column in the lower ten.
    pub line_col: u32,
}

impl LineRecord {
    /// Line number.
    pub const fn line(&self) -> u32 {
        self.line_col >> 10
    }

    /// Column number.
    pub const fn column(&self) -> u32 {
        self.line_col & 0x3ff
    }
}

/// A CO-RE relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreRecord {
    /// Offset of the instruction in the section, in bytes.
    pub insn_off: u32,
    /// Root type in the object's BTF.
    pub type_id: u32,
    /// Offset of the access string (`0:1:2`) in the strings of `.BTF`.
    pub access_str_off: u32,
    /// What is asked: `enum bpf_core_relo_kind`.
    pub kind: u32,
}

impl BtfExt {
    /// Parses a `.BTF.ext` section.
    pub fn parse(bytes: &[u8]) -> Result<BtfExt, BtfError> {
        let hdr_len = header(bytes)?;
        let head = section(bytes, 0, 0, hdr_len, "the header")?;
        let mut w = Words::new(head, "the header");
        w.take(8)?;
        let mut spans = [(0, 0); 3];
        for (i, span) in spans.iter_mut().enumerate() {
            // Old headers end before the CO-RE table.
            if i == 2 && w.is_empty() {
                break;
            }
            *span = (w.word()?, w.word()?);
        }
        let [funcs, lines, relos] = spans;
        Ok(BtfExt {
            funcs: table(bytes, hdr_len, funcs, "func_info", |[insn_off, type_id]| FuncRecord { insn_off, type_id })?,
            lines: table(bytes, hdr_len, lines, "line_info", |[insn_off, file_name_off, line_off, line_col]| {
                LineRecord { insn_off, file_name_off, line_off, line_col }
            })?,
            relos: table(bytes, hdr_len, relos, "core_relo", |[insn_off, type_id, access_str_off, kind]| CoreRecord {
                insn_off,
                type_id,
                access_str_off,
                kind,
            })?,
        })
    }
}

/// Reads one table; records may be longer than the words known here.
fn table<const W: usize, T>(
    bytes: &[u8],
    hdr_len: u32,
    (off, len): (u32, u32),
    name: &'static str,
    build: impl Fn([u32; W]) -> T,
) -> Result<Vec<Section<T>>, BtfError> {
    let mut out = Vec::new();
    if len == 0 {
        return Ok(out);
    }
    let mut w = Words::new(section(bytes, hdr_len, off, len, name)?, name);
    let size = w.word()?;
    if (size as usize) < W * 4 || size % 4 != 0 {
        return Err(BtfError::RecordSize { table: name, found: size });
    }
    while !w.is_empty() {
        let (name_off, count) = (w.word()?, w.word()?);
        let span = w.take((count as usize).saturating_mul(size as usize))?;
        let records = span
            .chunks_exact(size as usize)
            .filter_map(|r| r.as_chunks::<4>().0.first_chunk::<W>())
            .map(|r| build(r.map(u32::from_le_bytes)))
            .collect();
        out.push(Section { name_off, records });
    }
    Ok(out)
}
