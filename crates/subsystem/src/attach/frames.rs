//! Walking the stack of a stopped thread by the call frame information of the modules it runs (`.eh_frame`).
//!
//! It serves one question: which functions is this thread in? Where it cannot tell, it says so. Everything read is the
//! target's and may be anything: all reads are bounded and checked.

use skep_runtime::session::STUB_SIZE;

use super::ptrace::Regs;
use super::symbols::{Module, Modules};
use super::world::Memory;

/// Frames walked at most.
const DEPTH: usize = 4096;
/// Bytes of one description at most.
const RECORD: usize = 4096;
/// Registers that matter: all general ones and the return address.
const COUNT: usize = 17;
const RSP: usize = 7;
const RA: usize = 16;

/// Bytes of the call at the start of a return stub.
const CALL: u64 = 6;

const PCREL: u8 = 0x10;
const DATAREL: u8 = 0x30;
const SDATA4: u8 = 0x0b;
const UDATA4: u8 = 0x03;
/// Nothing is there.
pub(super) const OMITTED: u8 = 0xff;

/// Calls `visit` with the program counter of each frame, the innermost first, until it returns false. Returns true if the
/// outermost frame was reached or `visit` ended it; false if the walk lost its way.
pub fn walk(memory: &Memory, modules: &Modules, regs: &Regs, mut visit: impl FnMut(u64) -> bool) -> bool {
    let mut frame = Frame::of(regs);
    for depth in 0..DEPTH {
        let pc = frame.regs[RA];
        if pc == 0 {
            return true;
        }
        if !visit(pc) {
            return true;
        }
        // A return address may be behind its function's last byte.
        let at = if depth == 0 { pc } else { pc - 1 };
        if let Some(ret) = stub_return(memory, pc).filter(|_| depth > 0) {
            frame.regs[RA] = ret;
            continue;
        }
        match modules.iter().find(|m| m.has_code_at(at)).and_then(|m| frame.caller(memory, m, at)) {
            Some(Step::Caller(next)) if next.regs[RSP] > frame.regs[RSP] || depth == 0 => frame = next,
            Some(Step::Outermost) => return true,
            _ => return false,
        }
    }
    false
}

/// Is the return address at the top of the stack at an address, and nothing else in its function's frame? `None` if it is not
/// described there.
pub fn is_entry(memory: &Memory, module: &Module, pc: u64) -> Option<bool> {
    let row = row_at(memory, module, pc)?;
    Some(row.cfa == Some((RSP, 8)) && row.rules[RA] == Rule::At(-8))
}

/// If `pc` is behind the call of a return stub, of this session or a dead one: the return address that it stands for.
fn stub_return(memory: &Memory, pc: u64) -> Option<u64> {
    let stub = pc.checked_sub(CALL)?;
    let bytes = memory.read_up_to(stub, STUB_SIZE as usize);
    match *bytes {
        [0xff, 0x15, a, b, c, d, 0x68, _, _, _, _, 0xe9, ..] => {
            // The call is through the entry's second word; the first is the return address.
            let body = pc.wrapping_add_signed(i32::from_le_bytes([a, b, c, d]).into());
            memory.word(body.checked_sub(8)?).ok()
        }
        _ => None,
    }
}

#[derive(Clone, Copy)]
struct Frame {
    regs: [u64; COUNT],
}

enum Step {
    Caller(Frame),
    Outermost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Same,
    Undefined,
    At(i64),
    Unknown,
}

/// How to find a frame's caller at one address.
#[derive(Clone, Copy)]
struct Row {
    cfa: Option<(usize, i64)>,
    rules: [Rule; COUNT],
}

impl Frame {
    fn of(r: &Regs) -> Frame {
        // By DWARF's numbers.
        let regs = [
            r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip,
        ];
        Frame { regs }
    }

    fn caller(&self, memory: &Memory, module: &Module, pc: u64) -> Option<Step> {
        let row = row_at(memory, module, pc)?;
        let (register, offset) = row.cfa?;
        let cfa = self.regs.get(register)?.checked_add_signed(offset)?;
        let mut next = *self;
        for (register, rule) in next.regs.iter_mut().zip(row.rules) {
            match rule {
                Rule::Same => {}
                Rule::Undefined | Rule::Unknown => *register = 0,
                Rule::At(offset) => *register = memory.word(cfa.checked_add_signed(offset)?).ok()?,
            }
        }
        match row.rules[RA] {
            Rule::Undefined => return Some(Step::Outermost),
            Rule::At(_) => {}
            Rule::Same | Rule::Unknown => return None,
        }
        next.regs[RSP] = cfa;
        Some(Step::Caller(next))
    }
}

/// Bytes read from the target, with the address of the next one.
pub(super) struct Reader<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) address: u64,
}

impl<'b> Reader<'b> {
    pub(super) fn take(&mut self, n: usize) -> Option<&'b [u8]> {
        let (head, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        self.address = self.address.wrapping_add(n as u64);
        Some(head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(super) fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn sleb(&mut self) -> Option<i64> {
        let mut value = 0i64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= i64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                let sign = shift + 7;
                let extend = byte & 0x40 != 0 && sign < 64;
                return Some(if extend { value | -1i64 << sign } else { value });
            }
        }
        None
    }

    /// A pointer in one of the encodings that compilers use; `data` is the base of relative ones.
    pub(super) fn pointer(&mut self, encoding: u8, data: u64) -> Option<u64> {
        let here = self.address;
        let value = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => self.u64()?,
            UDATA4 => self.u32()?.into(),
            SDATA4 => i64::from(self.u32()?.cast_signed()).cast_unsigned(),
            _ => return None,
        };
        match encoding & 0x70 {
            0 => Some(value),
            PCREL => Some(value.wrapping_add(here)),
            DATAREL => Some(value.wrapping_add(data)),
            _ => None,
        }
    }
}

/// What a common entry says.
pub(super) struct Common {
    code_align: u64,
    data_align: i64,
    /// How addresses in descriptions are written.
    pub(super) encoding: u8,
    /// Its descriptions have a part of their own, whose size they tell.
    pub(super) sized: bool,
    /// How that part writes the address of an exception table, if it has one.
    pub(super) table: Option<u8>,
    /// The address of the function that reads the tables, or of a word that holds it.
    pub(super) reader: Option<(u64, bool)>,
    /// It is about the frames of signals.
    signal: bool,
    program: Vec<u8>,
}

fn row_at(memory: &Memory, module: &Module, pc: u64) -> Option<Row> {
    let loaded = module.loaded()?;
    let record = match (loaded.elf.eh_frame_hdr, loaded.elf.eh_frame) {
        (Some(header), _) => find_record(memory, header.wrapping_add(loaded.bias), pc)?,
        (None, Some((address, size))) => search(memory, address.wrapping_add(loaded.bias), size, pc)?,
        (None, None) => return None,
    };
    let bytes = memory.read_up_to(record, RECORD);
    let mut reader = Reader { bytes: &bytes, address: record };
    let len = reader.u32()? as usize;
    let mut reader = Reader { address: reader.address, bytes: reader.take(len)? };
    let back = reader.address;
    let common = common(memory, back.checked_sub(reader.u32()?.into())?)?;
    // Where the question ends: whoever is in a handler can be anywhere.
    if common.signal {
        return None;
    }
    let start = reader.pointer(common.encoding, 0)?;
    let size = reader.pointer(common.encoding & 0x0f, 0)?;
    if pc.wrapping_sub(start) >= size {
        return None;
    }
    if common.sized {
        let skip = reader.uleb()?;
        reader.take(usize::try_from(skip).ok()?)?;
    }
    let mut row = Row { cfa: None, rules: [Rule::Same; COUNT] };
    run(&mut Reader { bytes: &common.program, address: 0 }, &common, &mut row, &[], u64::MAX)?;
    let initial = row.rules;
    run(&mut reader, &common, &mut row, &initial, pc - start)?;
    Some(row)
}

/// Looks an address up in the sorted table of `.eh_frame_hdr`.
fn find_record(memory: &Memory, header: u64, pc: u64) -> Option<u64> {
    let bytes = memory.read_up_to(header, 64);
    let mut reader = Reader { bytes: &bytes, address: header };
    let (version, pointer, count, table) = (reader.u8()?, reader.u8()?, reader.u8()?, reader.u8()?);
    if version != 1 || table != DATAREL | SDATA4 {
        return None;
    }
    reader.pointer(pointer, header)?;
    let count = reader.pointer(count, header)?;
    let first = reader.address;
    let entry = |n: u64| -> Option<(u64, u64)> {
        let word = memory.word(first.checked_add(n.checked_mul(8)?)?).ok()?;
        let relative = |half: u64| header.wrapping_add_signed(i64::from((half as u32).cast_signed()));
        Some((relative(word), relative(word >> 32)))
    };
    let (mut low, mut high) = (0, count);
    while high.checked_sub(low)? > 1 {
        let middle = low + (high - low) / 2;
        match entry(middle)?.0 <= pc {
            true => low = middle,
            false => high = middle,
        }
    }
    entry(low).filter(|(start, _)| *start <= pc).map(|(_, record)| record)
}

/// Looks an address up in a section without a table, description by description.
fn search(memory: &Memory, section: u64, size: u64, pc: u64) -> Option<u64> {
    let bytes = memory.read_up_to(section, usize::try_from(size).ok()?.min(64 << 20));
    let mut reader = Reader { bytes: &bytes, address: section };
    let mut last: Option<(u64, u8)> = None;
    loop {
        let record = reader.address;
        let len = reader.u32()? as usize;
        if len == 0 {
            return None;
        }
        let mut inner = Reader { address: reader.address, bytes: reader.take(len)? };
        let back = inner.address;
        let distance = inner.u32()?;
        if distance == 0 {
            continue;
        }
        let address = back.checked_sub(distance.into())?;
        let encoding = match last {
            Some((at, encoding)) if at == address => encoding,
            // One that is not understood hides only its own functions.
            _ => common(memory, address).map_or(0xff, |common| common.encoding),
        };
        last = Some((address, encoding));
        if let Some(start) = inner.pointer(encoding, 0)
            && let Some(length) = inner.pointer(encoding & 0x0f, 0)
            && pc.wrapping_sub(start) < length
        {
            return Some(record);
        }
    }
}

/// Reads a common entry.
pub(super) fn common(memory: &Memory, address: u64) -> Option<Common> {
    let bytes = memory.read_up_to(address, RECORD);
    let mut reader = Reader { bytes: &bytes, address };
    let len = reader.u32()? as usize;
    let mut reader = Reader { address: reader.address, bytes: reader.take(len)? };
    if reader.u32()? != 0 {
        return None;
    }
    let version = reader.u8()?;
    let mut augmentation = Vec::new();
    loop {
        match reader.u8()? {
            0 => break,
            letter => augmentation.push(letter),
        }
    }
    let code_align = reader.uleb()?;
    let data_align = reader.sleb()?;
    let register = if version == 1 { reader.u8()?.into() } else { reader.uleb()? };
    if register != RA as u64 {
        return None;
    }
    let mut encoding = 0;
    let (mut table, mut personality, mut signal) = (None, None, false);
    let sized = augmentation.first() == Some(&b'z');
    if sized {
        let len = usize::try_from(reader.uleb()?).ok()?;
        let mut data = Reader { address: reader.address, bytes: reader.take(len)? };
        for letter in augmentation.iter().skip(1) {
            match letter {
                b'R' => encoding = data.u8()?,
                b'L' => table = Some(data.u8()?).filter(|kind| *kind != OMITTED),
                b'P' => {
                    let kind = data.u8()?;
                    personality = Some((data.pointer(kind & 0x7f, 0)?, kind & 0x80 != 0));
                }
                b'S' => signal = true,
                _ => return None,
            }
        }
    } else if !augmentation.is_empty() {
        return None;
    }
    let program = reader.bytes.to_vec();
    Some(Common { code_align, data_align, encoding, sized, table, reader: personality, signal, program })
}

/// Runs a description's program up to `offset` into the function.
fn run(reader: &mut Reader, common: &Common, row: &mut Row, initial: &[Rule], offset: u64) -> Option<()> {
    let mut location = 0u64;
    let mut remembered: Vec<Row> = Vec::new();
    while let Some(byte) = reader.u8() {
        let low = usize::from(byte & 0x3f);
        let set = |row: &mut Row, register: usize, rule: Rule| {
            if let Some(slot) = row.rules.get_mut(register) {
                *slot = rule;
            }
        };
        let original = |register: usize| initial.get(register).copied().unwrap_or(Rule::Same);
        let scaled = |factor: i64| factor.checked_mul(common.data_align);
        let mut advance = |by: u64| -> Option<bool> {
            location = location.checked_add(by.checked_mul(common.code_align)?)?;
            Some(location > offset)
        };
        let past = match byte >> 6 {
            1 => advance(low as u64)?,
            2 => {
                let rule = Rule::At(scaled(reader.uleb()?.cast_signed())?);
                set(row, low, rule);
                false
            }
            3 => {
                set(row, low, original(low));
                false
            }
            _ => match byte {
                0x00 => false,
                0x02 => advance(reader.u8()?.into())?,
                0x03 => advance(reader.u16()?.into())?,
                0x04 => advance(reader.u32()?.into())?,
                0x05 => {
                    let register = reader.uleb()? as usize;
                    let rule = Rule::At(scaled(reader.uleb()?.cast_signed())?);
                    set(row, register, rule);
                    false
                }
                0x06 => {
                    let register = reader.uleb()? as usize;
                    set(row, register, original(register));
                    false
                }
                0x07 => {
                    set(row, reader.uleb()? as usize, Rule::Undefined);
                    false
                }
                0x08 => {
                    set(row, reader.uleb()? as usize, Rule::Same);
                    false
                }
                0x0a => {
                    remembered.push(*row);
                    remembered.len() > 64
                }
                0x0b => {
                    *row = remembered.pop()?;
                    false
                }
                0x0c => {
                    row.cfa = Some((reader.uleb()? as usize, reader.uleb()?.cast_signed()));
                    false
                }
                0x0d => {
                    row.cfa = Some((reader.uleb()? as usize, row.cfa?.1));
                    false
                }
                0x0e => {
                    row.cfa = Some((row.cfa?.0, reader.uleb()?.cast_signed()));
                    false
                }
                0x0f => {
                    let len = reader.uleb()?;
                    reader.take(usize::try_from(len).ok()?)?;
                    row.cfa = None;
                    false
                }
                0x10 | 0x16 => {
                    let register = reader.uleb()? as usize;
                    let len = reader.uleb()?;
                    reader.take(usize::try_from(len).ok()?)?;
                    set(row, register, Rule::Unknown);
                    false
                }
                0x11 => {
                    let register = reader.uleb()? as usize;
                    let rule = Rule::At(scaled(reader.sleb()?)?);
                    set(row, register, rule);
                    false
                }
                0x12 => {
                    row.cfa = Some((reader.uleb()? as usize, scaled(reader.sleb()?)?));
                    false
                }
                0x13 => {
                    row.cfa = Some((row.cfa?.0, scaled(reader.sleb()?)?));
                    false
                }
                0x2e => {
                    reader.uleb()?;
                    false
                }
                _ => return None,
            },
        };
        if past {
            break;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leb_numbers() {
        let mut reader = Reader { bytes: &[0xe5, 0x8e, 0x26, 0x7f, 0x80, 0x7f, 0x80], address: 0 };
        assert_eq!(reader.uleb(), Some(624_485));
        assert_eq!(reader.sleb(), Some(-1));
        assert_eq!(reader.sleb(), Some(-128));
        assert_eq!(reader.uleb(), None);
        assert_eq!(Reader { bytes: &[0xff; 20], address: 0 }.uleb(), None);
    }

    #[test]
    fn programs() {
        let common = Common {
            code_align: 1,
            data_align: -8,
            encoding: 0,
            sized: false,
            table: None,
            reader: None,
            signal: false,
            program: Vec::new(),
        };
        let mut row = Row { cfa: None, rules: [Rule::Same; COUNT] };
        // def_cfa rsp+8; offset ra 1; advance 1; def_cfa_offset 16; offset rbp 2; advance 3; def_cfa_register rbp
        let program = [0x0c, 7, 8, 0x90, 1, 0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6];
        run(&mut Reader { bytes: &program, address: 0 }, &common, &mut row, &[], 2).unwrap();
        assert_eq!(row.cfa, Some((7, 16)));
        assert_eq!((row.rules[RA], row.rules[6], row.rules[3]), (Rule::At(-8), Rule::At(-16), Rule::Same));
        // Any bytes at all: an answer or none, no panic.
        for seed in 0..2000u32 {
            let bytes: Vec<u8> =
                (0..40u32).map(|n| (seed.wrapping_mul(2_654_435_761) >> (n % 24)) as u8 ^ n as u8).collect();
            let _ = run(&mut Reader { bytes: &bytes, address: 0 }, &common, &mut row, &[], 5);
        }
    }
}
