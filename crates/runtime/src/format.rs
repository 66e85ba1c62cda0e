//! Formatting of `trace_printk`: the conversions that the kernel lets programs use, and its checks of them.

use skep_ebpf::Errno;

use crate::read::{self, Tail};

/// A format string of a program. Others may write to it meanwhile, so each byte is read once where it matters.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    ptr: *const u8,
    len: usize,
}

impl Format {
    /// The string up to its terminator; none if there is none within `size` bytes.
    ///
    /// # Safety
    /// `ptr` must be readable for `size` bytes for as long as the value is used.
    pub(crate) unsafe fn new(ptr: *const u8, size: usize) -> Option<Format> {
        let all = Format { ptr, len: size };
        (0..size).find(|&i| all.at(i) == 0).map(|len| Format { ptr, len })
    }

    /// The byte at `i`, 0 behind the end.
    fn at(&self, i: usize) -> u8 {
        // SAFETY: readable by the promise of `new`.
        if i < self.len { unsafe { self.ptr.add(i).read_volatile() } } else { 0 }
    }
}

/// Text that is cut where the buffer ends, and the length that it would have.
struct Text<'a> {
    buf: &'a mut [u8],
    len: usize,
}

impl Text<'_> {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.buf.get_mut(self.len) {
            *place = byte;
        }
        self.len += 1;
    }

    fn fill(&mut self, byte: u8, n: usize) {
        for _ in 0..n {
            self.push(byte);
        }
    }

    fn all(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.push(b);
        }
    }

    /// `bytes`, padded with spaces to the width.
    fn padded(&mut self, spec: &Spec, bytes: &[u8]) {
        let pad = spec.width.saturating_sub(bytes.len());
        if !spec.left {
            self.fill(b' ', pad);
        }
        self.all(bytes);
        if spec.left {
            self.fill(b' ', pad);
        }
    }

    /// A number of a given base behind its sign.
    fn number(&mut self, spec: &Spec, sign: Option<u8>, value: u64, base: u64, digits: &[u8; 16]) {
        let mut text = [0u8; 20];
        let mut at = text.len();
        let mut rest = value;
        loop {
            at -= 1;
            if let (Some(place), Some(&digit)) = (text.get_mut(at), digits.get((rest % base) as usize)) {
                *place = digit;
            }
            rest /= base;
            if rest == 0 || at == 0 {
                break;
            }
        }
        let text = text.get(at..).unwrap_or(&[]);
        let pad = spec.width.saturating_sub(text.len() + usize::from(sign.is_some()));
        if !spec.left && !spec.zero {
            self.fill(b' ', pad);
        }
        if let Some(sign) = sign {
            self.push(sign);
        }
        if !spec.left && spec.zero {
            self.fill(b'0', pad);
        }
        self.all(text);
        if spec.left {
            self.fill(b' ', pad);
        }
    }
}

/// Flags and width of a conversion.
#[derive(Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    width: usize,
}

const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";
/// Widths beyond this are cut: no line is longer.
const MAX_WIDTH: usize = 1024;

/// True if a conversion may end before this byte: `%s` and `%p` must not run into a letter or digit.
fn ends(byte: u8) -> bool {
    byte == 0 || is_space(byte) || byte.is_ascii_punctuation()
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 9..=13)
}

/// Formats into `buf`; returns the length that the text has without the buffer's limit. `string` and `chunk` are
/// scratch memory for string arguments.
pub(crate) fn format(
    buf: &mut [u8],
    fmt: Format,
    args: impl Fn(usize) -> Option<u64>,
    string: &mut [u8],
    chunk: &mut [u8],
) -> Result<usize, Errno> {
    let mut out = Text { buf, len: 0 };
    let mut used = 0;
    let mut i = 0;
    while i < fmt.len {
        let byte = fmt.at(i);
        i += 1;
        if byte.is_ascii() && !byte.is_ascii_graphic() && !is_space(byte) {
            return Err(Errno::EINVAL);
        }
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        if fmt.at(i) == b'%' {
            out.push(b'%');
            i += 1;
            continue;
        }
        let arg = args(used).ok_or(Errno::EINVAL)?;
        used += 1;
        i = convert(&mut out, fmt, i, arg, string, chunk)?;
    }
    Ok(out.len)
}

/// Formats one argument by the conversion at `i`, behind the percent sign; returns where it ends.
fn convert(
    out: &mut Text<'_>,
    fmt: Format,
    mut i: usize,
    arg: u64,
    string: &mut [u8],
    chunk: &mut [u8],
) -> Result<usize, Errno> {
    let mut spec = Spec::default();
    loop {
        match fmt.at(i) {
            b'-' => spec.left = true,
            b'0' => spec.zero = true,
            b'+' => spec.plus = true,
            b' ' => spec.space = true,
            _ => break,
        }
        i += 1;
    }
    while fmt.at(i).is_ascii_digit() {
        spec.width = (spec.width * 10 + usize::from(fmt.at(i) - b'0')).min(MAX_WIDTH);
        i += 1;
    }
    match (fmt.at(i), fmt.at(i + 1), fmt.at(i + 2)) {
        (b'p', b'k' | b'u', b's') if ends(fmt.at(i + 3)) => {
            text(out, &spec, arg, string, chunk);
            return Ok(i + 3);
        }
        (b's', next, _) if ends(next) => {
            text(out, &spec, arg, string, chunk);
            return Ok(i + 1);
        }
        (b'p', next, _) if ends(next) => {
            pointer(out, &mut spec, arg);
            return Ok(i + 1);
        }
        (b'p', b'K' | b'x' | b's' | b'S' | b'B', _) => {
            pointer(out, &mut spec, arg);
            return Ok(i + 2);
        }
        (b'p', kind @ (b'i' | b'I'), size @ (b'4' | b'6')) => {
            address(out, kind == b'I', size == b'4', arg);
            return Ok(i + 3);
        }
        (b'c', _, _) => {
            out.padded(&spec, &[arg as u8]);
            return Ok(i + 1);
        }
        _ => {}
    }
    let mut long = false;
    for _ in 0..2 {
        if fmt.at(i) == b'l' {
            long = true;
            i += 1;
        }
    }
    let unsigned = if long { arg } else { u64::from(arg as u32) };
    match fmt.at(i) {
        b'd' | b'i' => {
            let value = if long { arg as i64 } else { i64::from(arg as i32) };
            let sign = match value {
                ..0 => Some(b'-'),
                _ if spec.plus => Some(b'+'),
                _ if spec.space => Some(b' '),
                _ => None,
            };
            out.number(&spec, sign, value.unsigned_abs(), 10, LOWER);
        }
        b'u' => out.number(&spec, None, unsigned, 10, LOWER),
        b'x' => out.number(&spec, None, unsigned, 16, LOWER),
        b'X' => out.number(&spec, None, unsigned, 16, UPPER),
        _ => return Err(Errno::EINVAL),
    }
    Ok(i + 1)
}

/// The string at an address; nothing if it is not readable.
fn text(out: &mut Text<'_>, spec: &Spec, address: u64, string: &mut [u8], chunk: &mut [u8]) {
    // SAFETY: `string` is writable, and apart from `chunk`.
    let len = unsafe { read::read_str(string.as_mut_ptr(), address, string.len(), Tail::Kept, chunk) };
    let len = len.map_or(0, |with_terminator| with_terminator.saturating_sub(1));
    out.padded(spec, string.get(..len).unwrap_or(&[]));
}

/// A pointer: all its digits, unless a width is given. (The kernel hides addresses; in the traced process they are the
/// user's own.)
fn pointer(out: &mut Text<'_>, spec: &mut Spec, value: u64) {
    if spec.width == 0 {
        (spec.width, spec.zero) = (16, true);
    }
    out.number(spec, None, value, 16, LOWER);
}

/// The IPv4 or IPv6 address at `at`; `plain` is the usual spelling, else with leading zeros and without colons. A width
/// has no effect on it.
fn address(out: &mut Text<'_>, plain: bool, v4: bool, at: u64) {
    let mut bytes = [0u8; 16];
    let len = if v4 { 4 } else { 16 };
    // SAFETY: `len` is no more than the array's.
    if !unsafe { read::read(bytes.as_mut_ptr(), at, len) } {
        bytes = [0; 16];
    }
    let (base, width) = match (v4, plain) {
        (true, true) => (10, 0),
        (true, false) => (10, 3),
        (false, _) => (16, 2),
    };
    let digits = Spec { zero: true, width, ..Spec::default() };
    for (i, &byte) in bytes.iter().take(len).enumerate() {
        if i > 0 && v4 {
            out.push(b'.');
        } else if i > 0 && plain && i % 2 == 0 {
            out.push(b':');
        }
        out.number(&digits, None, u64::from(byte), base, LOWER);
    }
}
