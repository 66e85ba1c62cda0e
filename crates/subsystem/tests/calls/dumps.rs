//! What programs tell of their machine code: how many functions, how long, where.

use crate::script::{Attrs, Script};

const PROG_LOAD: u32 = 5;
const INFO: u32 = 15;
const BTF_LOAD: u32 = 18;

/// Where the fields of `struct bpf_prog_info` are.
const JITED_LEN: usize = 16;
const JITED: usize = 24;
const SYMBOLS: usize = 104;
const LENGTHS: usize = 108;
const SYMBOLS_AT: usize = 112;
const LENGTHS_AT: usize = 120;
const JITED_LINES_AT: usize = 160;
const JITED_LINES: usize = 168;
const FUNC_SIZE: usize = 132;
const LINE_SIZE: usize = 172;
const JITED_LINE_SIZE: usize = 176;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Types with one function without arguments that is called `f`, for records of functions and lines.
fn types() -> Vec<u8> {
    let strings = b"\0int\0f\0a.c\0x = 1;\0";
    let words = [1u32, 1 << 24, 4, 1 << 24 | 32, 0, 13 << 24, 1, 5, 12 << 24, 2];
    let mut bytes = Vec::new();
    for head in [0x0001_eb9fu32, 24, 0, words.len() as u32 * 4, words.len() as u32 * 4, strings.len() as u32] {
        bytes.extend(head.to_ne_bytes());
    }
    words.iter().for_each(|w| bytes.extend(w.to_ne_bytes()));
    bytes.extend(strings);
    bytes
}

/// All of it.
pub fn dumps(s: &mut Script<'_>) {
    let types = types();
    let btf = s.call("dump: types", BTF_LOAD, &mut Attrs::new(40).ptr(0, &types).u32(16, types.len() as u32));
    // One function; and one that calls two others.
    let one = vec![0x0000_0001_0000_00b7u64, 0x95];
    let call = |to: i32| 0x1085u64 | (to.cast_unsigned() as u64) << 32;
    let three = vec![call(2), call(3), 0x95, 0x0000_0001_0000_00b7, 0x95, 0x0000_0002_0000_00b7, 0x95];
    for (name, code, functions, lines) in [
        ("one function", &one, vec![0u32], vec![0u32, 1]),
        ("three functions", &three, vec![0, 3, 5], vec![0, 2, 3, 5, 6]),
    ] {
        let funcs: Vec<u32> = functions.iter().flat_map(|at| [*at, 3]).collect();
        let records: Vec<u32> = lines.iter().flat_map(|at| [*at, 7, 11, 1 << 10 | 1]).collect();
        let mut attr = Attrs::new(168)
            .u32(0, 2)
            .u32(4, code.len() as u32)
            .ptr(8, code)
            .ptr(16, b"GPL\0")
            .u32(72, btf as u32)
            .u32(76, 8)
            .ptr(80, &funcs)
            .u32(88, functions.len() as u32)
            .u32(92, 16)
            .ptr(96, &records)
            .u32(104, lines.len() as u32);
        let prog = s.call(&format!("dump: load {name}"), PROG_LOAD, &mut attr);
        tell(s, name, prog);
    }
}

fn tell(s: &mut Script<'_>, name: &str, prog: i64) {
    let mut info = vec![0u8; 232];
    let ask = |s: &mut Script<'_>, what: &str, info: &mut Vec<u8>| {
        let mut attr = Attrs::new(16).u32(0, prog as u32).u32(4, 232).u64(8, info.as_mut_ptr() as u64);
        s.call(&format!("dump: {name}: info, {what}"), INFO, &mut attr);
    };
    ask(s, "how much", &mut info);
    let [len, symbols, lengths, lines] = [JITED_LEN, SYMBOLS, LENGTHS, JITED_LINES].map(|at| word(&info, at) as usize);
    s.note(&format!("dump: {name}: there is code"), &[u8::from(len > 0)]);
    s.note(&format!("dump: {name}: functions, lengths, lines"), &[symbols as u8, lengths as u8, lines as u8]);
    let (mut code, mut at) = (vec![0u8; len + 8], vec![0u64; symbols + 1]);
    let (mut long, mut places) = (vec![0u32; lengths + 1], vec![0u64; lines + 1]);
    // Everything but the last byte, and room for more of all else.
    let mut info = vec![0u8; 232];
    let mut put = |at: usize, bytes: &[u8]| info[at..at + bytes.len()].copy_from_slice(bytes);
    put(JITED_LEN, &(len as u32).to_ne_bytes());
    put(JITED, &(code.as_mut_ptr() as u64).to_ne_bytes());
    put(SYMBOLS, &(symbols as u32 + 1).to_ne_bytes());
    put(SYMBOLS_AT, &(at.as_mut_ptr() as u64).to_ne_bytes());
    put(LENGTHS, &(lengths as u32).to_ne_bytes());
    put(LENGTHS_AT, &(long.as_mut_ptr() as u64).to_ne_bytes());
    put(JITED_LINES, &(lines as u32).to_ne_bytes());
    put(JITED_LINES_AT, &(places.as_mut_ptr() as u64).to_ne_bytes());
    put(JITED_LINE_SIZE, &8u32.to_ne_bytes());
    let whole = info.clone();
    ask(s, "all", &mut info);
    let sizes = [FUNC_SIZE, LINE_SIZE, JITED_LINE_SIZE].map(|at| word(&info, at) as u8);
    s.note(&format!("dump: {name}: sizes of records"), &sizes);
    for at in [FUNC_SIZE, LINE_SIZE, JITED_LINE_SIZE] {
        for size in [0u32, 1, 8, 12, 16, 24] {
            let mut info = whole.clone();
            info[at..at + 4].copy_from_slice(&size.to_ne_bytes());
            ask(s, &format!("records of {size} bytes at {at}"), &mut info);
        }
    }
    let told = [JITED_LEN, SYMBOLS, LENGTHS, JITED_LINES].map(|at| word(&info, at) as usize);
    s.note(&format!("dump: {name}: as much as before"), &[u8::from(told == [len, symbols, lengths, lines])]);
    s.note(&format!("dump: {name}: nothing behind it"), &[code[len..].iter().copied().max().unwrap_or(0)]);
    let sum: u32 = long.iter().sum();
    s.note(&format!("dump: {name}: the functions are all of it"), &[u8::from(sum as usize == len)]);
    s.note(&format!("dump: {name}: code is something"), &[u8::from(code.iter().any(|b| *b != 0))]);
    let inside = |place: &u64| at.iter().zip(&long).any(|(from, len)| (*from..*from + u64::from(*len)).contains(place));
    let (lines, more) = places.split_at(lines);
    s.note(&format!("dump: {name}: lines are in functions"), &[u8::from(lines.iter().all(inside)), more[0] as u8]);
    s.note(&format!("dump: {name}: lines are in order"), &[u8::from(lines.is_sorted())]);
    let starts = at.iter().take(symbols).filter(|from| lines.contains(from)).count();
    s.note(&format!("dump: {name}: functions begin with a line"), &[starts as u8]);
}
