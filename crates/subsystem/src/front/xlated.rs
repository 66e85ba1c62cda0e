//! A program as dumps show it: what the verifier left of the instructions, and the records that belong to them.

use skep_ebpf::insn::{Insn, pseudo};

use super::object::ProgObject;

/// Sizes of the records that Linux 6.18 knows.
pub(super) const FUNC_RECORD: usize = 8;
pub(super) const LINE_RECORD: usize = 16;

/// The instructions, with maps by their numbers.
pub(super) fn instructions(prog: &ProgObject) -> Vec<u8> {
    let maps = prog.maps();
    let mut insns = prog.verified.rewritten().insns().to_vec();
    let mut at = 0;
    while let Some(insn) = insns.get_mut(at) {
        let wide = insn.is_ld_imm64();
        if wide && matches!(insn.src(), pseudo::MAP_IDX | pseudo::MAP_IDX_VALUE) {
            let kind = if insn.src() == pseudo::MAP_IDX { pseudo::MAP_FD } else { pseudo::MAP_VALUE };
            let id = maps.get(insn.imm as usize).map_or(0, |m| m.id.number());
            *insn = Insn::new(insn.code, insn.dst(), kind, insn.off, id as i32);
        }
        at += if wide { 2 } else { 1 };
    }
    insns.iter().flat_map(|i| i.to_bytes()).collect()
}

/// `func_info` of the functions that are left.
pub(super) fn func_info(prog: &ProgObject) -> Vec<u8> {
    let (rewritten, subprogs) = (prog.verified.rewritten(), prog.verified.subprogs());
    let now = |insn: u32| {
        let left = |start| subprogs.get(start as usize).is_some_and(|s| s.start == insn);
        rewritten.functions().iter().find(|f| left(f.origin)).map(|f| f.start)
    };
    records(&prog.func_info, FUNC_RECORD).filter_map(|r| Some(moved(&r, now(place(&r)?)?))).flatten().collect()
}

/// `line_info` of what is left; of several lines at one place the last.
pub(super) fn line_info(prog: &ProgObject) -> Vec<u8> {
    let rewritten = prog.verified.rewritten();
    let mut left: Vec<(u32, Vec<u8>)> = Vec::new();
    for r in records(&prog.line_info, LINE_RECORD) {
        let Some(now) = place(&r).map(|insn| rewritten.place_of(insn)) else { continue };
        if now as usize >= rewritten.insns().len() {
            continue;
        }
        if left.last().is_some_and(|(at, _)| *at == now) {
            left.pop();
        }
        left.push((now, moved(&r, now)));
    }
    left.into_iter().flat_map(|(_, r)| r).collect()
}

/// The instruction of each record of [`line_info`].
pub(super) fn places(prog: &ProgObject) -> impl Iterator<Item = u32> {
    line_info(prog).chunks_exact(LINE_RECORD).filter_map(place).collect::<Vec<_>>().into_iter()
}

/// Records cut to the size that this kernel knows.
fn records((size, bytes): &(u32, Vec<u8>), known: usize) -> impl Iterator<Item = Vec<u8>> {
    bytes.chunks_exact((*size as usize).max(1)).map(move |r| r.iter().take(known).copied().collect())
}

/// The instruction that a record is of: its first field.
fn place(record: &[u8]) -> Option<u32> {
    record.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn moved(record: &[u8], insn: u32) -> Vec<u8> {
    insn.to_ne_bytes().into_iter().chain(record.iter().skip(4).copied()).collect()
}
