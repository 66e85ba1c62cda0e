//! Strings: numbers in them, and kernel functions that compare and search.
//!
//! The helpers read what the verifier knows is there; the kernel functions take any address, and read with care.

use skep_ebpf::Errno;

use crate::env::{Env, SCRATCH};
use crate::format::{self, Format};
use crate::read;

/// Bytes of a number that are looked at.
const NUMBER: usize = 63;
/// Longest string that the kernel functions look at.
const MAX_LEN: u64 = 4096;

fn err(errno: Errno) -> u64 {
    errno.neg() as u64
}

fn int(errno: Errno) -> u64 {
    u64::from(errno.neg() as u32)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 9..=13 | 0xa0)
}

/// The number at the start of a text: how many bytes it takes, whether it has a minus sign, and how large it is.
fn number(text: &[u8], flags: u64) -> Result<(usize, bool, u64), Errno> {
    if text.is_empty() || !matches!(flags, 0 | 8 | 10 | 16) {
        return Err(Errno::EINVAL);
    }
    let space = text.iter().position(|b| !is_space(*b)).unwrap_or(text.len());
    let behind = text.get(space..).unwrap_or_default();
    let negative = behind.first() == Some(&b'-');
    let behind = if negative { behind.get(1..).unwrap_or_default() } else { behind };
    let sign = space + usize::from(negative);
    let digits = behind.get(..behind.len().min(NUMBER)).unwrap_or_default();
    let at = |n: usize| digits.get(n).copied().unwrap_or(0);
    let hex = at(0) == b'0' && at(1).eq_ignore_ascii_case(&b'x');
    let base = match flags {
        0 if hex && at(2).is_ascii_hexdigit() => 16,
        0 if at(0) == b'0' => 8,
        0 => 10,
        base => base,
    };
    let prefix = if base == 16 && hex { 2 } else { 0 };
    let (mut value, mut count, mut too_large) = (0u64, 0, false);
    for &byte in digits.get(prefix..).unwrap_or_default() {
        let Some(digit) = char::from(byte).to_digit(16).map(u64::from).filter(|d| *d < base) else { break };
        let next = value.checked_mul(base).and_then(|v| v.checked_add(digit));
        too_large |= next.is_none();
        value = next.unwrap_or(value);
        count += 1;
    }
    match count {
        _ if too_large => Err(Errno::ERANGE),
        0 => Err(Errno::EINVAL),
        _ => Ok((sign + prefix + count, negative, value)),
    }
}

/// # Safety
/// `text` is readable for `len` bytes, `out` writable for eight.
pub(super) unsafe fn strtol(_: &mut Env, text: u64, len: u64, flags: u64, out: u64) -> u64 {
    // SAFETY: the caller's promise; the verifier bounds the size.
    let (text, out) = unsafe { (core::slice::from_raw_parts(text as *const u8, len as usize), out as *mut i64) };
    let found = number(text, flags).and_then(|(used, negative, value)| {
        let value = if negative { value.wrapping_neg() as i64 } else { value as i64 };
        if (negative && value > 0) || (!negative && value < 0) { Err(Errno::ERANGE) } else { Ok((used, value)) }
    });
    // SAFETY: as above.
    unsafe { *out = found.map_or(0, |(_, value)| value) };
    found.map_or_else(err, |(used, _)| used as u64)
}

/// # Safety
/// As [`strtol`].
pub(super) unsafe fn strtoul(_: &mut Env, text: u64, len: u64, flags: u64, out: u64) -> u64 {
    // SAFETY: the caller's promise; the verifier bounds the size.
    let (text, out) = unsafe { (core::slice::from_raw_parts(text as *const u8, len as usize), out as *mut u64) };
    let found = number(text, flags)
        .and_then(|(used, negative, value)| if negative { Err(Errno::EINVAL) } else { Ok((used, value)) });
    // SAFETY: as above.
    unsafe { *out = found.map_or(0, |(_, value)| value) };
    found.map_or_else(err, |(used, _)| used as u64)
}

/// Most arguments of `snprintf`.
const MAX_ARGS: u64 = 12;
/// Longest string argument with its terminator.
const STRING: usize = 512;

/// The length that the text has with its terminator; what fits is stored.
///
/// # Safety
/// `buf` is writable for `size` bytes, `fmt` a constant string, `data` readable for `len` bytes.
pub(super) unsafe fn snprintf(env: &mut Env, buf: u64, size: u64, fmt: u64, data: u64, len: u64) -> u64 {
    let (size, len) = (size as u32 as usize, u64::from(len as u32));
    if !len.is_multiple_of(8) || len > MAX_ARGS * 8 || (len != 0 && data == 0) {
        return err(Errno::EINVAL);
    }
    let arg = |i: usize| {
        // SAFETY: the caller's promise on `data`.
        ((i as u64) < len / 8).then(|| unsafe { (data as *const u64).add(i).read_unaligned() })
    };
    // SAFETY: the slot's scratch memory is this run's; the rest is the caller's promise.
    unsafe {
        let scratch = (&raw mut (*env.area).scratch).cast::<u8>();
        let string = core::slice::from_raw_parts_mut(scratch, STRING);
        let chunk = core::slice::from_raw_parts_mut(scratch.add(STRING), SCRATCH - STRING);
        let out: &mut [u8] = match size {
            0 => &mut [],
            _ => core::slice::from_raw_parts_mut(buf as *mut u8, size - 1),
        };
        let room = out.len();
        let Some(fmt) = Format::new(fmt as *const u8, u32::MAX as usize) else { return err(Errno::EINVAL) };
        match format::format(out, fmt, arg, string, chunk) {
            Ok(used) => {
                if size != 0 {
                    *(buf as *mut u8).add(used.min(room)) = 0;
                }
                used as u64 + 1
            }
            Err(errno) => err(errno),
        }
    }
}

/// A string at any address, read piece by piece.
struct Text {
    at: u64,
    /// The piece that was read last, and where it begins.
    piece: [u8; 64],
    from: u64,
    have: usize,
}

impl Text {
    fn new(at: u64) -> Text {
        Text { at, piece: [0; 64], from: 0, have: 0 }
    }

    /// Byte `n`; an errno if it cannot be read.
    fn byte(&mut self, n: u64) -> Result<u8, Errno> {
        if let Some(k) = n.checked_sub(self.from).and_then(|k| usize::try_from(k).ok()).filter(|k| *k < self.have)
            && let Some(&byte) = self.piece.get(k)
        {
            return Ok(byte);
        }
        let at = self.at.checked_add(n).ok_or(Errno::EFAULT)?;
        // Not beyond the page: the next one may not be there.
        let len = (4096 - at % 4096).min(self.piece.len() as u64) as usize;
        // SAFETY: no more than the piece's size.
        if !unsafe { read::read(self.piece.as_mut_ptr(), at, len) } {
            // The kernel looks at its own half only, and tells the two apart.
            return Err(if at >> 63 == 0 { Errno::ERANGE } else { Errno::EFAULT });
        }
        (self.from, self.have) = (n, len);
        Ok(self.piece.first().copied().unwrap_or(0))
    }
}

/// What a kernel function returns: a number or an errno, as an `int`.
fn result(of: Result<i32, Errno>) -> u64 {
    of.map_or_else(int, |n| u64::from(n as u32))
}

fn compare(a: u64, b: u64, fold: bool) -> Result<i32, Errno> {
    let (mut a, mut b) = (Text::new(a), Text::new(b));
    for n in 0..MAX_LEN {
        let (mut x, mut y) = (a.byte(n)?, b.byte(n)?);
        if fold {
            (x, y) = (x.to_ascii_lowercase(), y.to_ascii_lowercase());
        }
        if x != y {
            return Ok(if x < y { -1 } else { 1 });
        }
        if x == 0 {
            return Ok(0);
        }
    }
    Err(Errno::E2BIG)
}

/// # Safety
/// None.
pub(super) unsafe fn strcmp(_: &mut Env, a: u64, b: u64) -> u64 {
    result(compare(a, b, false))
}

/// # Safety
/// None.
pub(super) unsafe fn strcasecmp(_: &mut Env, a: u64, b: u64) -> u64 {
    result(compare(a, b, true))
}

/// Where a byte is among the first `limit`; the terminator can be looked for, too.
fn find(s: u64, limit: u64, byte: u8) -> Result<Result<i32, i32>, Errno> {
    let mut s = Text::new(s);
    for n in 0..limit.min(MAX_LEN) {
        match s.byte(n)? {
            b if b == byte => return Ok(Ok(n as i32)),
            0 => return Ok(Err(n as i32)),
            _ => {}
        }
    }
    if limit > MAX_LEN { Err(Errno::E2BIG) } else { Err(Errno::ENOENT) }
}

/// # Safety
/// None.
pub(super) unsafe fn strchr(_: &mut Env, s: u64, c: u64) -> u64 {
    result(find(s, u64::MAX, c as u8).and_then(|at| at.map_err(|_| Errno::ENOENT)))
}

/// # Safety
/// None.
pub(super) unsafe fn strnchr(_: &mut Env, s: u64, count: u64, c: u64) -> u64 {
    result(find(s, count, c as u8).and_then(|at| at.map_err(|_| Errno::ENOENT)))
}

/// # Safety
/// None.
pub(super) unsafe fn strchrnul(_: &mut Env, s: u64, c: u64) -> u64 {
    result(find(s, u64::MAX, c as u8).map(|at| at.unwrap_or_else(|end| end)))
}

/// # Safety
/// None.
pub(super) unsafe fn strrchr(_: &mut Env, s: u64, c: u64) -> u64 {
    let mut s = Text::new(s);
    let mut last = Err(Errno::ENOENT);
    for n in 0..MAX_LEN {
        match s.byte(n) {
            Err(errno) => return int(errno),
            Ok(byte) => {
                if byte == c as u8 {
                    last = Ok(n as i32);
                }
                if byte == 0 {
                    return result(last);
                }
            }
        }
    }
    int(Errno::E2BIG)
}

/// # Safety
/// None.
pub(super) unsafe fn strlen(_: &mut Env, s: u64) -> u64 {
    result(find(s, u64::MAX, 0).map(|at| at.unwrap_or_else(|end| end)))
}

/// # Safety
/// None.
pub(super) unsafe fn strnlen(_: &mut Env, s: u64, count: u64) -> u64 {
    match find(s, count, 0) {
        Err(Errno::ENOENT) => count,
        at => result(at.map(|at| at.unwrap_or_else(|end| end))),
    }
}

/// The length of the first part of `s` whose bytes are all (with `not`, none of them) in `set`.
fn span(s: u64, set: u64, not: bool) -> Result<i32, Errno> {
    let (mut s, mut set) = (Text::new(s), Text::new(set));
    for n in 0..MAX_LEN {
        let byte = s.byte(n)?;
        if byte == 0 {
            return Ok(n as i32);
        }
        let mut found = None;
        for k in 0..MAX_LEN {
            match set.byte(k)? {
                b if b == byte => found = Some(true),
                0 => found = Some(false),
                _ => continue,
            }
            break;
        }
        if found.ok_or(Errno::E2BIG)? == not {
            return Ok(n as i32);
        }
    }
    Err(Errno::E2BIG)
}

/// # Safety
/// None.
pub(super) unsafe fn strspn(_: &mut Env, s: u64, set: u64) -> u64 {
    result(span(s, set, false))
}

/// # Safety
/// None.
pub(super) unsafe fn strcspn(_: &mut Env, s: u64, set: u64) -> u64 {
    result(span(s, set, true))
}

/// Where `needle` begins in the first `limit` bytes of `s`.
fn search(s: u64, needle: u64, limit: u64) -> Result<i32, Errno> {
    let (mut s, mut needle) = (Text::new(s), Text::new(needle));
    for n in 0..MAX_LEN {
        for k in 0..MAX_LEN {
            let wanted = needle.byte(k)?;
            if wanted == 0 {
                return Ok(n as i32);
            }
            if n + k >= limit {
                return Err(Errno::ENOENT);
            }
            let byte = s.byte(n + k)?;
            if byte == 0 {
                return Err(Errno::ENOENT);
            }
            if byte != wanted {
                break;
            }
            if k + 1 == MAX_LEN {
                return Err(Errno::E2BIG);
            }
        }
    }
    Err(Errno::E2BIG)
}

/// # Safety
/// None.
pub(super) unsafe fn strstr(_: &mut Env, s: u64, needle: u64) -> u64 {
    result(search(s, needle, u64::MAX))
}

/// # Safety
/// None.
pub(super) unsafe fn strnstr(_: &mut Env, s: u64, needle: u64, len: u64) -> u64 {
    result(search(s, needle, len))
}
