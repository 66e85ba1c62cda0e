//! Statically defined probes of a program or library (USDT): the notes that `<sys/sdt.h>` leaves in `.note.stapsdt`, and the
//! words in them that say where arguments are.
//!
//! Source: the SystemTap wiki's page on user space probe implementation.

use object::elf::FileHeader64;
use object::read::elf::{ElfFile, FileHeader, ProgramHeader, SectionHeader};
use object::{Endianness, Object as _, ObjectSection as _};

use skep_ebpf::uapi::PtRegs;

/// Owner and type of the notes.
const OWNER: &[u8] = b"stapsdt";
const TYPE: u32 = 3;

/// A place of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usdt {
    /// Who provides it.
    pub provider: String,
    /// What it is called there.
    pub name: String,
    /// Offset of its instruction in the file.
    pub offset: u64,
    /// Offset in the file of the 16-bit counter that says whether somebody listens.
    pub counter: Option<u64>,
    /// Where its arguments are, a word each.
    pub arguments: String,
}

/// Where an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// It is this number.
    Constant(i64),
    /// In a register: its offset in a `pt_regs`.
    Register(u16),
    /// In memory.
    Memory {
        /// Offset in a `pt_regs` of the register that points near it.
        base: u16,
        /// Offset in a `pt_regs` of a register that is added, shifted left by so many bits.
        index: Option<(u16, u8)>,
        /// What is added.
        offset: i64,
    },
}

/// An argument of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// 1, 2, 4 or 8.
    pub bytes: u8,
    /// It has a sign.
    pub signed: bool,
    /// Where it is.
    pub operand: Operand,
}

type Elf<'a> = ElfFile<'a, FileHeader64<Endianness>>;

/// The probes of a file, in its order. What makes no sense is left out.
pub fn usdt_probes(file: &[u8]) -> Result<Vec<Usdt>, String> {
    let elf = Elf::parse(file).map_err(|e| format!("no ELF file of 64 bits: {e}"))?;
    let endian = elf.endian();
    let Some(section) = elf.section_by_name(".note.stapsdt") else { return Ok(Vec::new()) };
    let base = elf.section_by_name(".stapsdt.base").map(|s| s.address());
    let segments = elf.elf_header().program_headers(endian, file).unwrap_or_default();
    let offset = |address: u64| {
        let holds = |p: &&object::elf::ProgramHeader64<Endianness>| {
            let inside = address.checked_sub(p.p_vaddr(endian)).is_some_and(|at| at < p.p_filesz(endian));
            p.p_type(endian) == object::elf::PT_LOAD && inside
        };
        let segment = segments.iter().find(holds)?;
        (address - segment.p_vaddr(endian)).checked_add(segment.p_offset(endian))
    };
    let notes = section.elf_section_header().notes(endian, file).map_err(|e| format!(".note.stapsdt: {e}"))?;
    let mut probes = Vec::new();
    let Some(mut notes) = notes else { return Ok(probes) };
    while let Ok(Some(note)) = notes.next() {
        if note.name() != OWNER || note.n_type(endian).0 != TYPE {
            continue;
        }
        let Some((words, texts)) = note.desc().split_first_chunk::<24>() else { continue };
        let (words, _) = words.as_chunks();
        let &[at, stood, counter] = words else { continue };
        let [at, stood, counter] = [at, stood, counter].map(u64::from_le_bytes);
        // A file may have been moved as a whole since (prelinked): by as much as its base was.
        let moved = base.map_or(0, |base| base.wrapping_sub(stood));
        let mut texts = texts.split(|b| *b == 0).map(|t| String::from_utf8_lossy(t).into_owned());
        let (Some(provider), Some(name), Some(arguments)) = (texts.next(), texts.next(), texts.next()) else {
            continue;
        };
        let Some(place) = offset(at.wrapping_add(moved)) else { continue };
        let counter = (counter != 0).then(|| offset(counter.wrapping_add(moved))).flatten();
        probes.push(Usdt { provider, name, offset: place, counter, arguments });
    }
    Ok(probes)
}

/// Reads the arguments of a probe; the error names the word that cannot be read.
pub fn usdt_arguments(text: &str) -> Result<Vec<Argument>, String> {
    let words = text.split_ascii_whitespace();
    words.map(|word| argument(word).ok_or_else(|| format!("the argument `{word}` is not understood"))).collect()
}

/// `SIZE@OPERAND`.
fn argument(word: &str) -> Option<Argument> {
    let (size, operand) = word.split_once('@')?;
    let size: i8 = size.parse().ok()?;
    let bytes = size.unsigned_abs();
    matches!(bytes, 1 | 2 | 4 | 8).then_some(())?;
    Some(Argument { bytes, signed: size < 0, operand: place(operand)? })
}

fn place(text: &str) -> Option<Operand> {
    if let Some(number) = text.strip_prefix('$') {
        return self::number(number).map(Operand::Constant);
    }
    if let Some(name) = text.strip_prefix('%') {
        return register(name).map(Operand::Register);
    }
    let (offset, rest) = text.strip_suffix(')')?.split_once('(')?;
    let offset = if offset.is_empty() { 0 } else { self::number(offset)? };
    let mut parts = rest.split(',').map(str::trim);
    let base = register(parts.next()?.strip_prefix('%')?)?;
    let index = match parts.next() {
        None => None,
        Some(index) => {
            let index = register(index.strip_prefix('%')?)?;
            let shift = match parts.next() {
                None | Some("1") => 0,
                Some("2") => 1,
                Some("4") => 2,
                Some("8") => 3,
                Some(_) => return None,
            };
            Some((index, shift))
        }
    };
    parts.next().is_none().then_some(Operand::Memory { base, index, offset })
}

fn number(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    // 64 bits of any sign, as assemblers take them.
    let value = value.cast_signed();
    Some(if negative { value.wrapping_neg() } else { value })
}

/// The offset of a register in a `pt_regs`, by any of its names that begin at its lowest bit.
fn register(name: &str) -> Option<u16> {
    macro_rules! at {
        ($field:ident) => {
            std::mem::offset_of!(PtRegs, $field)
        };
    }
    let numbered = |n: &str| n.trim_end_matches(['b', 'w', 'd']).to_owned();
    let offset = match name {
        "rax" | "eax" | "ax" | "al" => at!(rax),
        "rbx" | "ebx" | "bx" | "bl" => at!(rbx),
        "rcx" | "ecx" | "cx" | "cl" => at!(rcx),
        "rdx" | "edx" | "dx" | "dl" => at!(rdx),
        "rsi" | "esi" | "si" | "sil" => at!(rsi),
        "rdi" | "edi" | "di" | "dil" => at!(rdi),
        "rbp" | "ebp" | "bp" | "bpl" => at!(rbp),
        "rsp" | "esp" | "sp" | "spl" => at!(rsp),
        "rip" => at!(rip),
        other => match &*numbered(other) {
            "r8" => at!(r8),
            "r9" => at!(r9),
            "r10" => at!(r10),
            "r11" => at!(r11),
            "r12" => at!(r12),
            "r13" => at!(r13),
            "r14" => at!(r14),
            "r15" => at!(r15),
            _ => return None,
        },
    };
    u16::try_from(offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(word: &str) -> Option<(u8, bool, Operand)> {
        let [a] = usdt_arguments(word).ok()?[..] else { panic!("{word}") };
        Some((a.bytes, a.signed, a.operand))
    }

    #[test]
    fn words() {
        use Operand::{Constant, Memory, Register};
        let (ax, bp, r9) = (80, 32, 64);
        for (word, expected) in [
            ("-4@$5", (4, true, Constant(5))),
            ("8@$-0x10", (8, false, Constant(-16))),
            ("8@$18446744073709551615", (8, false, Constant(-1))),
            ("8@%rax", (8, false, Register(ax))),
            ("-1@%al", (1, true, Register(ax))),
            ("2@%r9w", (2, false, Register(r9))),
            ("-4@-20(%rbp)", (4, true, Memory { base: bp, index: None, offset: -20 })),
            ("8@(%rax)", (8, false, Memory { base: ax, index: None, offset: 0 })),
            ("8@16(%rax,%r9)", (8, false, Memory { base: ax, index: Some((r9, 0)), offset: 16 })),
            ("4@(%rbp,%rax,4)", (4, false, Memory { base: bp, index: Some((ax, 2)), offset: 0 })),
        ] {
            assert_eq!(one(word), Some(expected), "{word}");
        }
        for word in
            ["5", "3@%rax", "8@%ah", "8f@%xmm0", "8@x(%rip)", "8@(%rax,%rbx,3)", "8@(%rax", "8@", "@%rax", "8@%r16"]
        {
            let error = usdt_arguments(&format!("8@%rdi {word}")).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(usdt_arguments("").unwrap(), []);
    }

    #[test]
    fn no_probes() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(usdt_probes(&own), Ok(Vec::new()));
        assert!(usdt_probes(b"\x7fELF").is_err());
    }
}
