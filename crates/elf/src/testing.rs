//! An ELF writer for tests: as much of the format as clang uses for BPF.

use skep_ebpf::Insn;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::{Composite, Kind, Linkage, Member};

/// Symbol types.
pub const NOTYPE: u8 = 0;
pub const OBJECT: u8 = 1;
pub const FUNC: u8 = 2;
pub const SECTION: u8 = 3;
/// Symbol bindings.
pub const LOCAL: u8 = 0;
pub const GLOBAL: u8 = 1;
pub const WEAK: u8 = 2;

struct Part {
    name: String,
    ty: u32,
    flags: u64,
    data: Vec<u8>,
    size: u64,
    info: u32,
    relocs: Vec<(u64, u32)>,
}

/// An object in the making. Sections are numbered from 1, symbols too.
pub struct Elf {
    parts: Vec<Part>,
    symbols: Vec<[u8; 24]>,
    names: Vec<u8>,
    pub machine: u16,
}

impl Elf {
    pub fn new() -> Elf {
        Elf { parts: Vec::new(), symbols: vec![[0; 24]], names: vec![0], machine: 247 }
    }

    fn part(&mut self, name: &str, ty: u32, flags: u64, data: Vec<u8>, size: u64) -> u16 {
        self.parts.push(Part { name: name.into(), ty, flags, data, size, info: 0, relocs: Vec::new() });
        self.parts.len() as u16
    }

    /// A section with contents.
    pub fn data(&mut self, name: &str, data: &[u8]) -> u16 {
        self.part(name, 1, 2, data.to_vec(), data.len() as u64)
    }

    /// A section of zeroes.
    pub fn zeroes(&mut self, name: &str, size: u64) -> u16 {
        self.part(name, 8, 3, Vec::new(), size)
    }

    /// A section of code.
    pub fn code(&mut self, name: &str, insns: &[Insn]) -> u16 {
        let bytes: Vec<u8> = insns.iter().flat_map(|i| i.to_bytes()).collect();
        let size = bytes.len() as u64;
        self.part(name, 1, 6, bytes, size)
    }

    /// A section of code from text.
    pub fn asm(&mut self, name: &str, text: &str) -> u16 {
        self.code(name, &skep_ebpf::asm::assemble(text).expect("assembly"))
    }

    /// A symbol; section 0 leaves it undefined.
    pub fn symbol(&mut self, name: &str, kind: u8, binding: u8, section: u16, value: u64, size: u64) -> u32 {
        let name_off = if name.is_empty() { 0 } else { self.names.len() as u32 };
        if !name.is_empty() {
            self.names.extend_from_slice(name.as_bytes());
            self.names.push(0);
        }
        let mut s = [0; 24];
        s[..4].copy_from_slice(&name_off.to_le_bytes());
        s[4] = binding << 4 | kind;
        s[6..8].copy_from_slice(&section.to_le_bytes());
        s[8..16].copy_from_slice(&value.to_le_bytes());
        s[16..].copy_from_slice(&size.to_le_bytes());
        self.symbols.push(s);
        self.symbols.len() as u32 - 1
    }

    /// A global function that fills its section.
    pub fn func(&mut self, name: &str, section: u16) -> u32 {
        let size = self.parts[section as usize - 1].size;
        self.symbol(name, FUNC, GLOBAL, section, 0, size)
    }

    /// Makes a symbol hidden.
    pub fn hide(&mut self, symbol: u32) {
        self.symbols[symbol as usize][5] = 2;
    }

    /// A relocation of a section.
    pub fn reloc(&mut self, section: u16, offset: u64, symbol: u32) {
        self.parts[section as usize - 1].relocs.push((offset, symbol));
    }

    /// The file.
    pub fn finish(mut self) -> Vec<u8> {
        let symtab = self.symbols.concat();
        let strings = std::mem::take(&mut self.names);
        let rels: Vec<Part> = (1..)
            .zip(&self.parts)
            .filter(|(_, p)| !p.relocs.is_empty())
            .map(|(i, p)| {
                let entry = |&(off, sym): &(u64, u32)| [off, u64::from(sym) << 32 | 1].map(u64::to_le_bytes).concat();
                let data: Vec<u8> = p.relocs.iter().flat_map(entry).collect();
                let (name, size) = (format!(".rel{}", p.name), data.len() as u64);
                Part { name, ty: 9, flags: 0, data, size, info: i, relocs: Vec::new() }
            })
            .collect();
        self.parts.extend(rels);
        let symtab_at = self.part(".symtab", 2, 0, symtab, 0) as u32;
        let strtab_at = self.part(".strtab", 3, 0, strings, 0) as u32;
        let shstrtab_at = self.part(".shstrtab", 3, 0, Vec::new(), 0);
        let mut names = vec![0];
        let mut offsets = Vec::new();
        for p in &self.parts {
            offsets.push(names.len() as u32);
            names.extend_from_slice(p.name.as_bytes());
            names.push(0);
        }
        self.parts[shstrtab_at as usize - 1].data = names;

        let mut out = vec![0; 64];
        let mut headers = vec![0; 64];
        for (p, name) in self.parts.iter().zip(offsets) {
            out.resize(out.len().next_multiple_of(8), 0);
            let size = if p.ty == 8 { p.size } else { p.data.len() as u64 };
            let (link, info, entry) = match p.ty {
                2 => (strtab_at, 1, 24),
                9 => (symtab_at, p.info, 16),
                _ => (0, 0, 0u64),
            };
            let mut h = Vec::new();
            h.extend([name, p.ty].map(u32::to_le_bytes).concat());
            h.extend([p.flags, 0, out.len() as u64, size].map(u64::to_le_bytes).concat());
            h.extend([link, info].map(u32::to_le_bytes).concat());
            h.extend([1, entry].map(u64::to_le_bytes).concat());
            headers.extend(h);
            out.extend_from_slice(&p.data);
        }
        out.resize(out.len().next_multiple_of(8), 0);
        let at = out.len() as u64;
        out.extend(headers);
        out[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        out[16..18].copy_from_slice(&1u16.to_le_bytes());
        out[18..20].copy_from_slice(&self.machine.to_le_bytes());
        out[20..24].copy_from_slice(&1u32.to_le_bytes());
        out[40..48].copy_from_slice(&at.to_le_bytes());
        out[52..54].copy_from_slice(&64u16.to_le_bytes());
        out[58..60].copy_from_slice(&64u16.to_le_bytes());
        out[60..62].copy_from_slice(&(self.parts.len() as u16 + 1).to_le_bytes());
        out[62..64].copy_from_slice(&shstrtab_at.to_le_bytes());
        out
    }
}

/// The type of `__uint(name, n)`: a pointer to an array of that length.
pub fn uint(b: &mut Builder, int: u32, n: u32) -> u32 {
    let array = b.add("", &Kind::Array { elem: int, index: int, len: n });
    b.add("", &Kind::Ptr { ty: array })
}

/// A struct of pointers, one member after the other.
pub fn structure(b: &mut Builder, name: &str, members: &[(&str, u32)]) -> u32 {
    let fields = (0..).zip(members);
    let fields = fields.map(|(i, &(name, ty)): (u32, _)| Member {
        name_off: b.string(name),
        ty,
        bit_offset: i * 64,
        bitfield_size: 0,
    });
    let fields: Box<[Member]> = fields.collect();
    b.add(name, &Kind::Struct(Composite { size: 8 * members.len() as u32, members: fields }))
}

/// A global variable.
pub fn variable(b: &mut Builder, name: &str, ty: u32) -> u32 {
    b.add(name, &Kind::Var { ty, linkage: Linkage::Global })
}

/// An object with a map, data, a subprogram and types.
pub fn sample() -> Vec<u8> {
    let mut b = Builder::new();
    let int = b.int("int", 4, 1);
    let (ty, entries) = (uint(&mut b, int, 1), uint(&mut b, int, 16));
    let int_ptr = b.add("", &Kind::Ptr { ty: int });
    let map = structure(&mut b, "", &[("type", ty), ("max_entries", entries), ("key", int_ptr), ("value", int_ptr)]);
    let map_var = variable(&mut b, "counts", map);
    b.add(".maps", &Kind::Datasec { size: 0, vars: Box::new([(map_var, 0, 32)]) });
    let counter = variable(&mut b, "counter", int);
    b.add(".bss", &Kind::Datasec { size: 0, vars: Box::new([(counter, 0, 4)]) });
    let proto = b.add("", &Kind::FuncProto { ret: int, params: Box::new([]) });
    b.add("prog", &Kind::Func { proto, linkage: Linkage::Global });
    b.add("sub", &Kind::Func { proto, linkage: Linkage::Global });

    let mut e = Elf::new();
    let prog = e.asm("kprobe/do_x", "r1 = 0x0\nr2 = 0x0\ncall pc-1\nexit");
    let text = e.asm(".text", "r0 = 1\nexit");
    let maps = e.data(".maps", &[0; 32]);
    let bss = e.zeroes(".bss", 16);
    e.data("license", b"GPL\0");
    e.data(".BTF", &b.finish());
    e.func("prog", prog);
    let sub = e.func("sub", text);
    let counts = e.symbol("counts", OBJECT, GLOBAL, maps, 0, 32);
    let counter = e.symbol("counter", OBJECT, GLOBAL, bss, 8, 4);
    e.reloc(prog, 0, counts);
    e.reloc(prog, 16, counter);
    e.reloc(prog, 32, sub);
    e.finish()
}
