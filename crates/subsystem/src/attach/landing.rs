//! Where exceptions land.
//!
//! `.eh_frame` describes every piece of code that a compiler makes, and names the exception table of those that catch or clean
//! up. The tables name the *landing pads*: places in the middle of functions that the unwinder goes to.

use std::collections::HashMap;
use std::ops::Range;

use super::frames::{self, Common, OMITTED, Reader};
use super::symbols::{Module, Modules};
use super::world::Memory;

/// Bytes of descriptions read at most.
const SECTION: u64 = 128 << 20;
/// Bytes of an exception table before its list of calls, at most.
const HEAD: usize = 64;
/// Bytes of that list at most.
const CALLS: usize = 4 << 20;

/// Those who read exception tables in the format that is understood here.
const READERS: [&str; 6] = [
    "__gcc_personality_v0",
    "__gxx_personality_v0",
    "rust_eh_personality",
    "__gnat_personality_v0",
    "__gnu_objc_personality_v0",
    "__gdc_personality_v0",
];

/// A piece of code: a function, or the part of one that stands elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its addresses.
    pub range: Range<u64>,
    /// Its landing pads, which may be in another piece; `None` if they cannot be told.
    pub pads: Option<Vec<u64>>,
}

/// All pieces of a module, by address.
#[derive(Debug, Default)]
pub struct Pieces(Vec<Piece>);

impl Pieces {
    /// Reads them; `None` if the module has no descriptions, or some that are not understood.
    pub fn of(memory: &Memory, modules: &Modules, module: &Module) -> Option<Pieces> {
        let loaded = module.loaded()?;
        let header = match loaded.elf.eh_frame_hdr {
            Some(header) => Some(Header::read(memory, header.wrapping_add(loaded.bias))?),
            None => None,
        };
        let (section, size) = match (loaded.elf.eh_frame, &header) {
            (Some((address, size)), _) => (address.wrapping_add(loaded.bias), size),
            (None, Some(header)) => {
                let section = header.section;
                (section, module.data().find(|range| range.contains(&section))?.end - section)
            }
            (None, None) => return None,
        };
        // The list may have ends in between, which unwinders that go by the header never see.
        let sized = loaded.elf.eh_frame.is_some();
        let bytes = memory.read_up_to(section, usize::try_from(size.min(SECTION)).ok()?);
        let mut commons: HashMap<u64, (Common, bool)> = HashMap::new();
        let mut pieces = Vec::new();
        let mut reader = Reader { bytes: &bytes, address: section };
        while let Some(len) = reader.u32() {
            match len {
                0 if sized => continue,
                0 => break,
                _ => {}
            }
            let mut record = Reader { address: reader.address, bytes: reader.take(len as usize)? };
            let here = record.address;
            let back = record.u32()?;
            if back == 0 {
                continue;
            }
            let at = here.checked_sub(back.into())?;
            if let std::collections::hash_map::Entry::Vacant(place) = commons.entry(at) {
                let common = frames::common(memory, at)?;
                let known = is_known(memory, modules, &common);
                place.insert((common, known));
            }
            let (common, known) = commons.get(&at)?;
            let start = record.pointer(common.encoding, 0)?;
            let size = record.pointer(common.encoding & 0x0f, 0)?;
            let range = start..start.checked_add(size)?;
            let mut pads = Some(Vec::new());
            if common.sized
                && record.uleb()? != 0
                && let Some(kind) = common.table
            {
                // No table is a zero, whatever it would be relative to.
                let empty = Reader { ..record }.pointer(kind & 0x0f, 0)? == 0;
                if !empty {
                    let table = record.pointer(kind, 0)?;
                    let table = if kind & 0x80 != 0 { memory.word(table).ok()? } else { table };
                    pads = if *known { landing_pads(memory, table, &range) } else { None };
                }
            }
            pieces.push(Piece { range, pads });
        }
        if header.is_some_and(|header| header.count > pieces.len() as u64) {
            return None;
        }
        pieces.sort_by_key(|piece| (piece.range.start, piece.range.end));
        Some(Pieces(pieces))
    }

    /// The landing pads of all of them, wherever they are; `None` if some cannot be told.
    pub fn pads(&self) -> Option<impl Iterator<Item = u64>> {
        let all: Option<Vec<&Vec<u64>>> = self.0.iter().map(|piece| piece.pads.as_ref()).collect();
        Some(all?.into_iter().flatten().copied())
    }

    /// The piece that an address belongs to.
    pub fn at(&self, address: u64) -> Option<&Piece> {
        let end = self.0.partition_point(|piece| piece.range.start <= address);
        self.0.get(..end)?.iter().rev().take(8).find(|piece| piece.range.contains(&address))
    }

    /// Where the first piece begins above an address.
    pub fn next_after(&self, address: u64) -> Option<u64> {
        let at = self.0.partition_point(|piece| piece.range.start <= address);
        self.0.get(at).map(|piece| piece.range.start)
    }

    /// Those that have to do with a range.
    pub fn touching(&self, range: &Range<u64>) -> impl Iterator<Item = &Piece> {
        // One that begins before it may reach into it.
        let from = self.0.partition_point(|piece| piece.range.start < range.start).saturating_sub(8);
        let (start, end) = (range.start, range.end);
        let near = self.0.get(from..).unwrap_or_default().iter().take_while(move |piece| piece.range.start < end);
        near.filter(move |piece| piece.range.end > start)
    }
}

/// What finds descriptions.
struct Header {
    /// Where they are.
    section: u64,
    /// How many.
    count: u64,
}

impl Header {
    fn read(memory: &Memory, address: u64) -> Option<Header> {
        let bytes = memory.read_up_to(address, 32);
        let mut reader = Reader { bytes: &bytes, address };
        let (version, pointer, count) = (reader.u8()?, reader.u8()?, reader.u8()?);
        reader.take(1)?;
        let section = reader.pointer(pointer, address)?;
        let count = if count == OMITTED { 0 } else { reader.pointer(count, address)? };
        (version == 1).then_some(Header { section, count })
    }
}

/// Are the tables of these descriptions read by someone who is known?
fn is_known(memory: &Memory, modules: &Modules, common: &Common) -> bool {
    let Some((place, indirect)) = common.reader else { return false };
    let Some(address) = (if indirect { memory.word(place).ok() } else { Some(place) }) else { return false };
    let Some(module) = modules.iter().find(|module| module.has_code_at(address)) else { return false };
    let Some(loaded) = module.loaded() else { return false };
    // The C library has one of its own, which has no name: it hands on to the first of them.
    if loaded.elf.find("__libc_start_main").iter().any(|symbol| symbol.global && symbol.function) {
        return true;
    }
    READERS.iter().any(|name| {
        let found = loaded.elf.find(name);
        found.iter().any(|symbol| symbol.address.wrapping_add(loaded.bias) == address)
    })
}

/// The landing pads in a table, of a piece of code.
fn landing_pads(memory: &Memory, table: u64, code: &Range<u64>) -> Option<Vec<u64>> {
    let head = memory.read_up_to(table, HEAD);
    let mut reader = Reader { bytes: &head, address: table };
    let base = match reader.u8()? {
        OMITTED => code.start,
        kind => reader.pointer(kind, 0)?,
    };
    if reader.u8()? != OMITTED {
        reader.uleb()?;
    }
    let kind = reader.u8()?;
    let len = usize::try_from(reader.uleb()?).ok().filter(|len| *len <= CALLS)?;
    let calls = memory.read_up_to(reader.address, len);
    if calls.len() != len {
        return None;
    }
    let mut reader = Reader { bytes: &calls, address: reader.address };
    let mut pads = Vec::new();
    let mut last = 0;
    while !reader.bytes.is_empty() {
        let number = |reader: &mut Reader| match kind {
            0x01 => reader.uleb(),
            _ => reader.pointer(kind, 0),
        };
        let (start, size, pad) = (number(&mut reader)?, number(&mut reader)?, number(&mut reader)?);
        reader.uleb()?;
        // Sorted and within the code, or it is something else.
        if start < last || start.checked_add(size)? > code.end - code.start {
            return None;
        }
        last = start;
        if pad != 0 {
            pads.push(base.checked_add(pad)?);
        }
    }
    Some(pads)
}
