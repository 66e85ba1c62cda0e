//! Branches from anywhere in a module into the middle of a window.
//!
//! Compilers branch within functions, but hand-written code shares tails and heads: glibc's `mempcpy` jumps to the fourth
//! byte of `memmove`. So the whole text of a module is searched before any of it is patched, and all its data for pointers,
//! as computed jumps go by (see [`super::jumps`]), and for distances: the table of a function may be all that leads to a part of
//! it that stands elsewhere.

use std::collections::HashMap;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, OpKind};

use super::symbols::Module;
use super::world::Memory;

/// How far a short branch reaches, and the longest instruction.
const SHORT: u64 = 128 + 15;
/// Where decoding begins before a window whose function is not known: far enough to fall in with the instructions.
const LEAD: u64 = 2048;

/// Finds, for the windows of one module (address and the addresses behind their first byte), a branch that leads into
/// each: window's address to branch's address. Calls into the middle count, too, and what the data says if `pointed`:
/// entries of functions without indirect jumps need not look for that.
pub fn find(memory: &Memory, module: &Module, windows: &[(u64, Range<u64>)], pointed: bool) -> HashMap<u64, u64> {
    let inner: HashMap<u64, u64> =
        windows.iter().flat_map(|(window, inner)| inner.clone().map(move |address| (address, *window))).collect();
    let mut found = HashMap::new();
    for text in module.code() {
        long_branches(memory, &text, &inner, &mut found);
    }
    let named = if pointed { named(memory, module) } else { Vec::new() };
    for data in module.data().filter(|_| pointed) {
        pointers(memory, &data, &inner, &mut found);
        distances(memory, module, &data, &named, &inner, &mut found);
    }
    for (window, range) in windows {
        if let Some(branch) = short_branch(memory, module, range) {
            found.insert(*window, branch);
        }
    }
    found
}

/// Looks at every word, aligned or not: structs may be packed.
fn pointers(memory: &Memory, data: &Range<u64>, inner: &HashMap<u64, u64>, found: &mut HashMap<u64, u64>) {
    let (Some(&low), Some(&high)) = (inner.keys().min(), inner.keys().max()) else { return };
    memory.scan(data, |at, word: &[u8; 8]| {
        let pointer = u64::from_le_bytes(*word);
        if (low..=high).contains(&pointer)
            && let Some(window) = inner.get(&pointer)
        {
            found.insert(*window, at);
        }
    });
}

/// The places that code names (`lea` of 64 bits), in order. A few may be none.
fn named(memory: &Memory, module: &Module) -> Vec<u64> {
    let mut found = Vec::new();
    for text in module.code() {
        memory.scan(&text, |at, insn: &[u8; 7]| {
            if let [prefix, 0x8d, second, distance @ ..] = *insn
                && prefix & 0xf8 == 0x48
                && second & 0xc7 == 0x05
            {
                found.push((at + 7).wrapping_add_signed(i32::from_le_bytes(distance).into()));
            }
        });
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Reads each place that code names as a table of distances from it to code: up to the first that leads elsewhere, or to the
/// next place that is named.
fn distances(
    memory: &Memory,
    module: &Module,
    data: &Range<u64>,
    named: &[u64],
    inner: &HashMap<u64, u64>,
    found: &mut HashMap<u64, u64>,
) {
    let from = named.partition_point(|place| *place < data.start);
    let to = named.partition_point(|place| *place < data.end);
    let ends = named.get(from + 1..to).unwrap_or_default().iter().copied().chain([data.end]);
    let code: Vec<Range<u64>> = module.code().collect();
    let bytes = memory.read_up_to(data.start, (data.end - data.start) as usize);
    for (&table, end) in named.get(from..to).unwrap_or_default().iter().zip(ends) {
        let (first, last) = ((table - data.start) as usize, ((end - data.start) as usize).min(bytes.len()));
        let bytes = bytes.get(first..last).unwrap_or_default();
        let halves = bytes.chunks_exact(4).map(|half| half.try_into().map_or(0, i32::from_le_bytes).into());
        // Of a large code model.
        let words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, i64::from_le_bytes));
        let leads =
            |distance: i64| Some(table.wrapping_add_signed(distance)).filter(|to| code.iter().any(|t| t.contains(to)));
        for target in halves.map_while(leads).chain(words.map_while(leads)) {
            if let Some(window) = inner.get(&target) {
                found.insert(*window, table);
            }
        }
    }
}

/// Looks at every byte that could begin a branch with 32 bits of distance, or an instruction that names an address so (`lea`).
/// Finding one that is none only means a window that is not used, and is rare.
fn long_branches(memory: &Memory, text: &Range<u64>, inner: &HashMap<u64, u64>, found: &mut HashMap<u64, u64>) {
    let (Some(&low), Some(&high)) = (inner.keys().min(), inner.keys().max()) else { return };
    memory.scan(text, |branch, bytes: &[u8; 6]| {
        let [opcode, second, ..] = *bytes;
        let skip = match opcode {
            0xe8 | 0xe9 => 1,
            0x0f if second & 0xf0 == 0x80 => 2,
            0x8d if second & 0xc7 == 0x05 => 2,
            _ => return,
        };
        let Some(distance) = bytes.get(skip..skip + 4).and_then(|b| b.try_into().ok()) else { return };
        let next = branch + skip as u64 + 4;
        let target = next.wrapping_add_signed(i32::from_le_bytes(distance).into());
        if (low..=high).contains(&target)
            && let Some(window) = inner.get(&target)
        {
            found.insert(*window, branch);
        }
    });
}

/// Decodes what is within reach of short branches.
fn short_branch(memory: &Memory, module: &Module, inner: &Range<u64>) -> Option<u64> {
    let near = inner.start.saturating_sub(SHORT);
    let bias = module.loaded().map_or(0, |loaded| loaded.bias);
    let known = module
        .loaded()
        .and_then(|loaded| loaded.elf.last_before(near.wrapping_sub(bias)))
        .map_or(0, |address| address.wrapping_add(bias));
    let start = known.max(near.saturating_sub(LEAD));
    let bytes = memory.read_up_to(start, (inner.end + SHORT).saturating_sub(start) as usize);
    let decoder = Decoder::with_ip(64, &bytes, start, DecoderOptions::NONE);
    decoder
        .into_iter()
        .find(|insn| insn.op0_kind() == OpKind::NearBranch64 && inner.contains(&insn.near_branch_target()))
        .map(|insn| insn.ip())
}
