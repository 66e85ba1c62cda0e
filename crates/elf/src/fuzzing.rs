//! What the fuzz targets run, so that the unit tests can run it too. Nothing here may panic, whatever the bytes.

use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::btf::build::Builder;
use skep_ebpf::btf::ext::{BtfExt, CoreRecord};
use skep_ebpf::btf::{Btf, Composite, Kind, Linkage, Member, Param, value};
use skep_ebpf::uapi::ProgType;

use crate::container::Container;
use crate::core::Relocator;
use crate::{LoadOptions, Object};

/// Bytes as an object: every program is linked, against the object's own types. And as a program with probes of its own.
pub fn elf(bytes: &[u8]) {
    for probe in crate::usdt_probes(bytes).unwrap_or_default() {
        let _ = crate::usdt_arguments(&probe.arguments);
    }
    let _ = crate::usdt_arguments(&String::from_utf8_lossy(bytes));
    let Ok(object) = Object::parse("fuzz.o", bytes) else { return };
    let options = LoadOptions {
        btf: object.btf().cloned(),
        kernel_version: 0x0006_1200,
        prog_type: Some((ProgType::SocketFilter, None)),
        ..LoadOptions::default()
    };
    for p in object.programs() {
        if let Ok(program) = object.program(&p.name, &options) {
            let _ = program.line_of(program.insns.len());
        }
    }
}

/// Bytes as `.BTF` and as `.BTF.ext`, or an object that has them: every type is asked everything, and decoded. And as a
/// program with debug information.
pub fn btf(bytes: &[u8]) {
    if let Ok(made) = crate::btf_from_dwarf("fuzz", bytes) {
        blob(&made.btf);
    }
    let _ = crate::read_btf("fuzz", bytes);
    if let Ok(container) = Container::parse("fuzz.o", bytes) {
        for s in container.sections.iter().filter(|s| s.name.starts_with(".BTF")) {
            blob(s.data);
        }
    }
    blob(bytes);
}

fn blob(bytes: &[u8]) {
    let _ = BtfExt::parse(bytes);
    let Ok(btf) = Btf::parse(bytes) else { return };
    let btf = Arc::new(btf);
    for id in 0..btf.len() {
        let _ = (btf.resolve(id), btf.size_of(id), btf.decl_tags(id).count());
        let name = btf.name(id);
        assert!(name.is_empty() || btf.find(name, |_| true).is_some_and(|first| first <= id));
        let _ = value::decode(&btf, id, bytes.get(..64).unwrap_or(bytes));
    }
    let _ = Btf::parse_split(btf, bytes);
}

/// Bytes as a recipe for an object's types, a kernel's types, and relocations between them.
pub fn core(bytes: &[u8]) {
    let mut recipe = Recipe(bytes.iter());
    let paths: Vec<String> = (0..4).map(|_| recipe.path()).collect();
    let (local, offsets) = recipe.types(&paths);
    let (target, _) = recipe.types(&[]);
    let (Ok(local), Ok(target)) = (Btf::parse(&local), Btf::parse(&target)) else { return };
    let mut relocator = Relocator::new(&local, &target);
    for _ in 0..16 {
        let record = CoreRecord {
            insn_off: 0,
            type_id: recipe.below(local.len() + 1),
            access_str_off: offsets.get(recipe.below(4) as usize).copied().unwrap_or(0),
            kind: recipe.below(14),
        };
        let code = [0xb7, 0x18, 0x61, 0x79, 0x7b, 0x62, 0x85, 0x05][recipe.below(8) as usize];
        let value = i32::from(recipe.byte());
        let first = Insn::new(code, 1, 0, if code == 0x18 { 0 } else { value as i16 }, value);
        let mut insns = [first, Insn::default()];
        let _ = relocator.apply(&mut insns, 0, &record);
        let _ = relocator.apply(&mut insns, 1, &record);
    }
}

/// Bytes as instructions: what decodes, encodes to the same, and its text is read back.
pub fn insn(bytes: &[u8]) {
    let code: Vec<Insn> = bytes.as_chunks::<8>().0.iter().map(|b| Insn::from_bytes(*b)).collect();
    let _ = skep_ebpf::disasm::Listing { insns: &code, names: &() }.to_string();
    for (i, &insn) in code.iter().enumerate() {
        let next = code.get(i + 1).copied();
        let Ok(op) = skep_ebpf::op::decode(insn, next) else { continue };
        let (first, second) = op.encode();
        assert!(first == insn && (second.is_none() || second == next), "{op:?}");
        let text = op.text(&()).to_string();
        let expected: Vec<Insn> = [first].into_iter().chain(second).collect();
        assert_eq!(skep_ebpf::asm::assemble(&text).as_deref(), Ok(&expected[..]), "{text}");
    }
    let _ = skep_ebpf::asm::assemble(&String::from_utf8_lossy(bytes));
}

/// Reads bytes as decisions; when they run out every decision is zero.
struct Recipe<'a>(std::slice::Iter<'a, u8>);

const NAMES: [&str; 8] = ["", "a", "b", "a___x", "b___y", "c", "int", "a___x___z"];

impl Recipe<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, n: u32) -> u32 {
        u32::from(self.byte()) % n.max(1)
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(8) as usize]
    }

    fn path(&mut self) -> String {
        let steps: Vec<String> = (0..=self.below(4)).map(|_| self.below(6).to_string()).collect();
        steps.join(":")
    }

    /// A blob of a few types that refer to each other, and the offsets of `strings` in it.
    fn types(&mut self, strings: &[String]) -> (Vec<u8>, Vec<u32>) {
        let mut b = Builder::new();
        let offsets = strings.iter().map(|s| b.string(s)).collect();
        let count = 1 + self.below(12);
        for _ in 0..count {
            let kind = self.kind(&mut b, count + 1);
            let name = self.name();
            b.add(name, &kind);
        }
        (b.finish(), offsets)
    }

    fn kind(&mut self, b: &mut Builder, ids: u32) -> Kind {
        let small = 1 << self.below(4);
        let ty = self.below(ids);
        match self.below(16) {
            0 | 1 => Kind::Int { size: small, bits: small as u8 * 8, offset: 0, encoding: self.byte() & 7 },
            2 => Kind::Ptr { ty },
            3 => Kind::Array { elem: ty, index: self.below(ids), len: self.below(5) },
            n @ 4..=7 => {
                let members = (0..self.below(5))
                    .map(|_| Member {
                        name_off: b.string(self.name()),
                        ty: self.below(ids),
                        bit_offset: u32::from(self.byte()),
                        bitfield_size: self.byte().saturating_sub(200),
                    })
                    .collect();
                let c = Composite { size: u32::from(self.byte()), members };
                if n < 7 { Kind::Struct(c) } else { Kind::Union(c) }
            }
            n @ (8 | 9) => {
                let values = (0..self.below(4)).map(|_| (b.string(self.name()), i64::from(self.byte()) - 9)).collect();
                match n {
                    8 => Kind::Enum { size: small, signed: true, values },
                    _ => Kind::Enum64 { size: 8, signed: false, values },
                }
            }
            10 => Kind::Fwd { union: small > 2 },
            11 => Kind::Typedef { ty },
            12 => Kind::Const { ty },
            13 => {
                let params = (0..self.below(3)).map(|_| Param { name_off: 0, ty: self.below(ids) }).collect();
                Kind::FuncProto { ret: ty, params }
            }
            14 => Kind::Func { proto: ty, linkage: Linkage::Global },
            _ => Kind::Float { size: small },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CI runs without a fuzzer: a few thousand inputs from a fixed seed.
    #[test]
    fn smoke() {
        let object = crate::testing::sample();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..4000 {
            let bytes: Vec<u8> = (0..256).map(|_| random() as u8).collect();
            core(&bytes);
            insn(&bytes);
            let mut damaged = object.clone();
            for _ in 0..=round % 8 {
                let at = random() as usize % damaged.len();
                damaged[at] = random() as u8;
            }
            if round % 5 == 0 {
                damaged.truncate(random() as usize % object.len());
            }
            elf(&damaged);
            btf(&damaged);
        }
        elf(&object);
        btf(&object);
    }
}
