//! The agent: what is written into a probed process.
//!
//! [`BLOB`] is a position-independent executable without interpreter, libraries, thread-local storage or writable data.
//! [`Blob`] takes it apart for who writes it to its place.

use object::elf::{
    DT_NEEDED, DT_NULL, PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS, R_X86_64_RELATIVE, SHT_RELA,
};
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use object::{LittleEndian, Object, ObjectSymbol, elf};

/// The blob as it was built.
pub static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/blob.elf"));

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What a blob must not have, or has not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BlobError {
    /// Not an ELF file that can be read.
    #[error("the agent's blob is not a valid ELF file: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Something that needs a loader.
    #[error("the agent's blob has {what}")]
    NotFreestanding {
        /// What it has.
        what: String,
    },
    /// A function is not there.
    #[error("the agent's blob does not export {name}")]
    NoSymbol {
        /// The function.
        name: &'static str,
    },
}

impl From<object::Error> for BlobError {
    fn from(e: object::Error) -> BlobError {
        BlobError::Malformed { reason: e.to_string() }
    }
}

/// Protection of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prot {
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub exec: bool,
}

/// A part of the blob that is mapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Address relative to the base.
    pub vaddr: u64,
    /// Bytes in memory; what `bytes` does not cover is zero.
    pub memsz: u64,
    /// Bytes of the file.
    pub bytes: Vec<u8>,
    /// Protection.
    pub prot: Prot,
}

/// A word that holds an address of the blob: base + `addend` is to be stored at base + `vaddr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reloc {
    /// Where.
    pub vaddr: u64,
    /// What, relative to the base.
    pub addend: u64,
}

/// Whole pages of the blob, ready to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Offset from the base, a multiple of the page size.
    pub offset: u64,
    /// Contents, a multiple of the page size.
    pub bytes: Vec<u8>,
    /// Protection.
    pub prot: Prot,
}

/// The blob, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blob {
    /// What is mapped, by address.
    pub segments: Vec<Segment>,
    /// What depends on the base.
    pub relocs: Vec<Reloc>,
    /// `skep_hit`, relative to the base: a [`HitFn`](../skep_runtime/session/type.HitFn.html).
    pub hit: u64,
    /// `skep_enter`, relative to the base: an [`EnterFn`](../skep_runtime/session/type.EnterFn.html).
    pub enter: u64,
    /// `skep_return`, relative to the base: a [`ReturnFn`](../skep_runtime/session/type.ReturnFn.html).
    pub ret: u64,
    /// `skep_quick_hit`, relative to the base: a [`QuickHitFn`](../skep_runtime/session/type.QuickHitFn.html).
    pub quick_hit: u64,
    /// `skep_quick_return`, relative to the base: a [`QuickReturnFn`](../skep_runtime/session/type.QuickReturnFn.html).
    pub quick_ret: u64,
}

impl Blob {
    /// Takes [`BLOB`] apart.
    pub fn parse() -> Result<Blob, BlobError> {
        Blob::parse_bytes(BLOB)
    }

    /// Takes a blob apart, and refuses what would need a loader.
    pub fn parse_bytes(data: &[u8]) -> Result<Blob, BlobError> {
        let file = ElfFile64::<LittleEndian>::parse(data)?;
        let endian = LittleEndian;
        let not = |what: &str| Err(BlobError::NotFreestanding { what: what.into() });
        let mut segments = Vec::new();
        for header in file.elf_header().program_headers(endian, data)? {
            match header.p_type(endian) {
                PT_LOAD => {
                    let bytes = header
                        .data(endian, data)
                        .map_err(|()| BlobError::Malformed { reason: "a segment lies outside of the file".into() })?;
                    let flags = header.p_flags(endian).0;
                    segments.push(Segment {
                        vaddr: header.p_vaddr(endian),
                        memsz: header.p_memsz(endian),
                        bytes: bytes.to_vec(),
                        prot: Prot { read: flags & PF_R.0 != 0, write: flags & PF_W.0 != 0, exec: flags & PF_X.0 != 0 },
                    });
                }
                PT_TLS => return not("thread-local storage"),
                PT_INTERP => return not("an interpreter"),
                PT_DYNAMIC => {
                    let entries = header.dynamic(endian, data)?.unwrap_or(&[]);
                    for entry in entries.iter().take_while(|e| e.d_tag(endian) != DT_NULL) {
                        if entry.d_tag(endian) == DT_NEEDED {
                            return not("a library that it needs");
                        }
                    }
                }
                _ => {}
            }
        }
        segments.sort_by_key(|s| s.vaddr);
        if segments.iter().any(|s| s.prot.write && s.prot.exec) {
            return not("a segment that is writable and executable");
        }
        Ok(Blob {
            relocs: relocs(&file, data)?,
            hit: symbol(&file, "skep_hit")?,
            enter: symbol(&file, "skep_enter")?,
            ret: symbol(&file, "skep_return")?,
            quick_hit: symbol(&file, "skep_quick_hit")?,
            quick_ret: symbol(&file, "skep_quick_return")?,
            segments,
        })
    }

    /// Bytes that the blob takes in memory, whole pages.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|s| (s.vaddr + s.memsz).next_multiple_of(PAGE)).max().unwrap_or(0)
    }

    /// The blob for an address: pages with their protection.
    pub fn image_at(&self, base: u64) -> Vec<Piece> {
        self.segments.iter().map(|s| self.piece(s, base)).collect()
    }

    fn piece(&self, segment: &Segment, base: u64) -> Piece {
        let offset = segment.vaddr / PAGE * PAGE;
        let lead = (segment.vaddr - offset) as usize;
        let mut bytes = vec![0; (lead as u64 + segment.memsz).next_multiple_of(PAGE) as usize];
        for (to, from) in bytes.iter_mut().skip(lead).zip(&segment.bytes) {
            *to = *from;
        }
        for reloc in &self.relocs {
            let at = reloc.vaddr.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            if let Some(word) = at.and_then(|at| bytes.get_mut(at..)).and_then(|b| b.first_chunk_mut::<8>()) {
                *word = base.wrapping_add(reloc.addend).to_le_bytes();
            }
        }
        Piece { offset, bytes, prot: segment.prot }
    }
}

/// All relocations; every one must be relative.
fn relocs(file: &ElfFile64<'_, LittleEndian>, data: &[u8]) -> Result<Vec<Reloc>, BlobError> {
    let endian = LittleEndian;
    let mut out = Vec::new();
    for section in file.elf_header().sections(endian, data)?.iter() {
        if section.sh_type(endian) != SHT_RELA {
            continue;
        }
        let entries: &[elf::Rela64<LittleEndian>] = section.data_as_array(endian, data)?;
        for rela in entries {
            let kind = rela.r_type(endian, false);
            if kind != R_X86_64_RELATIVE {
                return Err(BlobError::NotFreestanding { what: format!("a relocation of type {kind}") });
            }
            out.push(Reloc { vaddr: rela.r_offset(endian), addend: rela.r_addend(endian) as u64 });
        }
    }
    Ok(out)
}

fn symbol(file: &ElfFile64<'_, LittleEndian>, name: &'static str) -> Result<u64, BlobError> {
    let found = file.symbols().find(|s| s.name() == Ok(name) && !s.elf_symbol().is_undefined(LittleEndian));
    found.map(|s| s.address()).ok_or(BlobError::NoSymbol { name })
}
