//! The agent's ELF file, laid out as a loader would.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, Register};
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader};
use object::{LittleEndian, Object, ObjectSymbol};

use super::AttachError;

const PAGE: u64 = 4096;

/// A position-independent image.
pub struct AgentImage {
    segments: Vec<Segment>,
    /// Relocations: place and addend, both relative to the base.
    relative: Vec<(u64, u64)>,
    span: u64,
    /// `skep_hit`, relative to the base.
    pub hit: u64,
    /// `skep_enter`, relative to the base. Without it functions with return probes alone are entered as all others.
    pub enter: Option<u64>,
    /// What programs that change few registers are called by, likewise; without it they are called as all others.
    pub quick: Option<Quick>,
    /// `skep_return`, relative to the base.
    pub ret: u64,
    /// `skep_leave`, relative to the base. Without it there are no probes at `ret`s.
    pub leave: Option<u64>,
    /// `skep_call` and `skep_called`, relative to the base. Without them there are no probes at system calls.
    pub calls: Option<(u64, u64)>,
    /// `skep_guard` and `skep_trap`, relative to the base. Without them there are no breakpoints.
    pub traps: Option<(u64, u64)>,
    /// Its code uses vector registers, which trampolines then save.
    pub vectors: bool,
}

/// Functions that change few registers, relative to the base.
#[derive(Clone, Copy, Debug)]
pub struct Quick {
    /// `skep_quick_hit`.
    pub hit: u64,
    /// `skep_quick_return`.
    pub ret: u64,
    /// `skep_quick_call` and `skep_quick_called`.
    pub calls: (u64, u64),
}

impl Quick {
    fn found<E>(symbol: &impl Fn(&str) -> Result<u64, E>) -> Option<Quick> {
        let at = |name| symbol(name).ok();
        let calls = (at("skep_quick_call")?, at("skep_quick_called")?);
        Some(Quick { hit: at("skep_quick_hit")?, ret: at("skep_quick_return")?, calls })
    }
}

/// The one function that may use vector registers, since it keeps them.
const KEEPS_VECTORS: &str = "skep_keep_vectors";

/// Does code use registers other than the general ones? Whatever cannot be decoded does.
fn uses_vectors(code: &[u8], at: u64, except: &Range<u64>) -> bool {
    let mut infos = InstructionInfoFactory::new();
    Decoder::with_ip(64, code, at, DecoderOptions::NONE).iter().filter(|i| !except.contains(&i.ip())).any(|insn| {
        let general = |r: Register| r.is_gpr() || r.is_segment_register() || r == Register::RIP;
        insn.is_invalid() || !infos.info(&insn).used_registers().iter().all(|used| general(used.register()))
    })
}

struct Segment {
    /// Page-aligned start.
    start: u64,
    bytes: Vec<u8>,
    prot: i32,
}

fn bad(reason: impl Into<String>) -> AttachError {
    AttachError::Agent { reason: reason.into() }
}

impl AgentImage {
    /// Reads a static position-independent ELF file that exports `skep_hit` and `skep_return`.
    pub fn parse(bytes: &[u8]) -> Result<AgentImage, AttachError> {
        let endian = LittleEndian;
        let malformed = |e: object::Error| bad(e.to_string());
        let header = elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(malformed)?;
        let mut segments = Vec::new();
        for segment in header.program_headers(endian, bytes).map_err(malformed)? {
            if segment.p_type(endian) != elf::PT_LOAD || segment.p_memsz(endian) == 0 {
                continue;
            }
            let data = segment.data(endian, bytes).map_err(|()| bad("a segment lies outside the file"))?;
            segments.push(Segment::new(
                segment.p_vaddr(endian),
                segment.p_memsz(endian),
                segment.p_flags(endian),
                data,
            )?);
        }
        let span = segments.iter().map(|s| s.start + s.bytes.len() as u64).max().ok_or_else(|| bad("no segments"))?;
        let mut relative = Vec::new();
        let sections = header.sections(endian, bytes).map_err(malformed)?;
        for section in sections.iter() {
            let Some((relas, _)) = section.rela(endian, bytes).map_err(malformed)? else { continue };
            if !section.sh_flags(endian).contains(elf::SHF_ALLOC) {
                continue;
            }
            for rela in relas {
                match rela.r_type(endian, false) {
                    elf::R_X86_64_NONE => {}
                    elf::R_X86_64_RELATIVE => relative.push((rela.r_offset(endian), rela.r_addend(endian) as u64)),
                    kind => return Err(bad(format!("it needs relocation type {kind}"))),
                }
            }
        }
        let file = object::File::parse(bytes).map_err(malformed)?;
        let symbol = |name: &str| {
            file.symbols()
                .chain(file.dynamic_symbols())
                .find(|s| s.is_definition() && s.name() == Ok(name))
                .map(|s| s.address())
                .ok_or_else(|| bad(format!("it does not define `{name}`")))
        };
        let traps = symbol("skep_guard").ok().zip(symbol("skep_trap").ok());
        let keeper = file.symbols().find(|s| s.name() == Ok(KEEPS_VECTORS));
        let keeper = keeper.map_or(0..0, |s| s.address()..s.address() + s.size());
        let vectors = header.program_headers(endian, bytes).map_err(malformed)?.iter().any(|segment| {
            let code = segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian).contains(elf::PF_X);
            code && uses_vectors(segment.data(endian, bytes).unwrap_or_default(), segment.p_vaddr(endian), &keeper)
        });
        Ok(AgentImage {
            relative,
            span,
            hit: symbol("skep_hit")?,
            enter: symbol("skep_enter").ok(),
            quick: Quick::found(&symbol).filter(|_| !vectors),
            ret: symbol("skep_return")?,
            leave: symbol("skep_leave").ok(),
            calls: symbol("skep_call").ok().zip(symbol("skep_called").ok()),
            traps,
            vectors,
            segments,
        })
    }

    /// The agent that skep is built with.
    pub fn built_in() -> Result<AgentImage, AttachError> {
        AgentImage::parse(skep_agent::BLOB)
    }

    /// Bytes of address space that it takes.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// Its segments for loading at `base`: address, protection, relocated bytes.
    pub fn at(&self, base: u64) -> Result<Vec<(u64, i32, Vec<u8>)>, AttachError> {
        let mut out: Vec<_> = self.segments.iter().map(|s| (s.start, s.prot, s.bytes.clone())).collect();
        for &(place, addend) in &self.relative {
            let word = out.iter_mut().find_map(|(start, _, bytes)| {
                let offset = usize::try_from(place.checked_sub(*start)?).ok()?;
                bytes.get_mut(offset..offset.checked_add(8)?)
            });
            let word = word.ok_or_else(|| bad("a relocation lies outside its segments"))?;
            word.copy_from_slice(&base.wrapping_add(addend).to_le_bytes());
        }
        for (start, _, _) in &mut out {
            *start += base;
        }
        Ok(out)
    }
}

impl Segment {
    fn new(address: u64, memory: u64, flags: elf::ProgramFlags, data: &[u8]) -> Result<Segment, AttachError> {
        if address >= 1 << 30 || memory >= 1 << 30 || data.len() as u64 > memory {
            return Err(bad("a segment is larger than it can be"));
        }
        let start = address & !(PAGE - 1);
        let lead = (address - start) as usize;
        let mut bytes = vec![0; lead + memory as usize];
        bytes[lead..lead + data.len()].copy_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
        let mut prot = 0;
        for (flag, bit) in [(elf::PF_R, libc::PROT_READ), (elf::PF_W, libc::PROT_WRITE), (elf::PF_X, libc::PROT_EXEC)] {
            prot |= if flags.contains(flag) { bit } else { 0 };
        }
        if prot & libc::PROT_WRITE != 0 && prot & libc::PROT_EXEC != 0 {
            return Err(bad("a segment is both writable and executable"));
        }
        Ok(Segment { start, bytes, prot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in() {
        let agent = AgentImage::built_in().unwrap();
        assert!(agent.hit < agent.span() && agent.ret < agent.span());
        assert!(!agent.vectors, "trampolines would have to save vector registers");
        assert!(uses_vectors(&[0x90, 0x0f, 0x28, 0xc1], 0, &(0..0)));
        assert!(!uses_vectors(&[0x90, 0x0f, 0x28, 0xc1, 0xc3], 0x100, &(0x101..0x104)));
        let base = 0x7000_0000_0000;
        for (start, prot, bytes) in agent.at(base).unwrap() {
            assert!(start >= base && start + bytes.len() as u64 <= base + agent.span());
            assert!(prot & (libc::PROT_WRITE | libc::PROT_EXEC) != libc::PROT_WRITE | libc::PROT_EXEC);
        }
    }

    #[test]
    fn what_is_no_agent() {
        assert!(AgentImage::parse(b"").is_err());
        assert!(AgentImage::parse(&[0x7f; 400]).is_err());
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(matches!(AgentImage::parse(&own), Err(AttachError::Agent { .. })));
        assert!(AgentImage::parse(&own[..5000]).is_err());
    }
}
