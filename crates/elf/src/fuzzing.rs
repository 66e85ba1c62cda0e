//! What the fuzz targets run, so that the unit tests can run it too. Nothing here may panic on any input.

use std::sync::Arc;

use skep_ebpf::Insn;
use skep_ebpf::btf::ext::CoreRecord;
use skep_ebpf::btf::{Btf, ext::BtfExt, value};

use crate::core::Relocator;
use crate::{LoadOptions, Object};

/// Bytes as an object: every program is linked, against the object's own types.
pub fn elf(bytes: &[u8]) {
    let Ok(object) = Object::parse("fuzz.o", bytes) else { return };
    let options = LoadOptions { btf: object.btf().cloned(), kernel_version: 0x0006_1200, ..LoadOptions::default() };
    for p in object.programs() {
        let given = LoadOptions { prog_type: Some((skep_ebpf::uapi::ProgType::SocketFilter, None)), ..options.clone() };
        if let Ok(program) = object.program(&p.name, &given) {
            let _ = program.line_of(program.insns.len());
        }
    }
}

/// Bytes as `.BTF` and as `.BTF.ext`: every type is asked everything, and decoded from a few bytes.
pub fn btf(bytes: &[u8]) {
    let _ = BtfExt::parse(bytes);
    let Ok(btf) = Btf::parse(bytes) else { return };
    let btf = Arc::new(btf);
    for id in 0..btf.len() {
        let _ = (btf.resolve(id), btf.size_of(id), btf.decl_tags(id).count());
        if !btf.name(id).is_empty() {
            assert!(btf.find(btf.name(id), |_| true).is_some_and(|first| first <= id));
        }
        let _ = value::decode(&btf, id, &bytes[..bytes.len().min(64)]);
    }
    let _ = Btf::parse_split(btf, bytes);
}

/// Bytes as the object's BTF, the target's, and a list of records with instructions.
pub fn core(bytes: &[u8]) {
    let Some((lengths, rest)) = bytes.split_first_chunk::<4>() else { return };
    let [a, b, c, d] = lengths.map(usize::from);
    let Some((local, rest)) = rest.split_at_checked(a | b << 8) else { return };
    let Some((target, rest)) = rest.split_at_checked(c | d << 8) else { return };
    let (Ok(local), Ok(target)) = (Btf::parse(local), Btf::parse(target)) else { return };
    let mut relocator = Relocator::new(&local, &target);
    for chunk in rest.as_chunks::<24>().0.iter().take(64) {
        let (words, _) = chunk.as_chunks::<4>();
        let [type_id, access_str_off, kind, at, lo, hi] =
            [0, 1, 2, 3, 4, 5].map(|i: usize| words.get(i).map_or(0, |w| u32::from_le_bytes(*w)));
        let mut code = [0; 8];
        code[..4].copy_from_slice(&lo.to_le_bytes());
        code[4..].copy_from_slice(&hi.to_le_bytes());
        let mut insns = [Insn::from_bytes(code), Insn::default()];
        let record = CoreRecord { insn_off: 0, type_id, access_str_off, kind: kind % 16 };
        let _ = relocator.apply(&mut insns, (at % 3) as usize, &record);
    }
}
