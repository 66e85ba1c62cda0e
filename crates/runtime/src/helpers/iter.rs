//! Open-coded iterators: kernel functions that begin one on the program's stack, move it on and end it.

use skep_ebpf::Errno;

use crate::abi::MAX_LOOPS;
use crate::env::Env;
use crate::read;

/// A `struct bpf_iter_num`: the number that was given last, and the one behind the last.
#[repr(C)]
struct Numbers {
    last: i32,
    end: i32,
}

fn int(errno: Errno) -> u64 {
    u64::from(errno.neg() as u32)
}

/// # Safety
/// `it` is a place for an iterator over numbers.
pub(super) unsafe fn num_new(_: &mut Env, it: u64, start: u64, end: u64) -> u64 {
    let (start, end) = (start as i32, end as i32);
    // SAFETY: eight aligned bytes of the stack.
    let it = unsafe { &mut *(it as *mut Numbers) };
    *it = Numbers { last: 0, end: 0 };
    if start > end {
        return int(Errno::EINVAL);
    }
    if i64::from(end) - i64::from(start) > i64::from(MAX_LOOPS) {
        return int(Errno::E2BIG);
    }
    *it = Numbers { last: start.wrapping_sub(1), end };
    0
}

/// The address of the next number, or 0.
///
/// # Safety
/// `it` is an iterator over numbers.
pub(super) unsafe fn num_next(_: &mut Env, it: u64) -> u64 {
    // SAFETY: as above.
    let it = unsafe { &mut *(it as *mut Numbers) };
    let next = it.last.wrapping_add(1);
    if next >= it.end {
        *it = Numbers { last: 0, end: 0 };
        return 0;
    }
    it.last = next;
    (&raw mut it.last) as u64
}

/// # Safety
/// `it` is an iterator over numbers.
pub(super) unsafe fn num_destroy(_: &mut Env, it: u64) -> u64 {
    // SAFETY: as above.
    unsafe { *(it as *mut Numbers) = Numbers { last: 0, end: 0 } };
    0
}

/// A `struct bpf_iter_bits`: one word, or the address of more; how many bits there are, and the one given last.
#[repr(C)]
struct Bits {
    words: u64,
    count: i32,
    last: i32,
}

/// Most words of an iterator over bits.
const MAX_WORDS: u32 = 511;

/// Of more than one word the iterator keeps the address: what is written there while it goes on, it sees.
///
/// # Safety
/// `it` is a place for an iterator over bits.
pub(super) unsafe fn bits_new(_: &mut Env, it: u64, from: u64, words: u64) -> u64 {
    let count = words as u32;
    // SAFETY: 16 aligned bytes of the stack.
    let it = unsafe { &mut *(it as *mut Bits) };
    *it = Bits { words: 0, count: 0, last: -1 };
    if from == 0 || count == 0 {
        return int(Errno::EINVAL);
    }
    if count > MAX_WORDS {
        return int(Errno::E2BIG);
    }
    for n in 0..count {
        let mut word = 0u64;
        // SAFETY: eight bytes into a local.
        if !unsafe { read::read((&raw mut word).cast(), from.wrapping_add(u64::from(n) * 8), 8) } {
            return int(Errno::EFAULT);
        }
        it.words = if count == 1 { word } else { from };
    }
    it.count = (count * 64) as i32;
    0
}

/// The address of the number of the next bit that is set, or 0.
///
/// # Safety
/// `it` is an iterator over bits.
pub(super) unsafe fn bits_next(_: &mut Env, it: u64) -> u64 {
    // SAFETY: as above.
    let it = unsafe { &mut *(it as *mut Bits) };
    if it.count == 0 || it.last >= it.count {
        return 0;
    }
    let mut bit = it.last.wrapping_add(1);
    while bit < it.count {
        let mut word = it.words;
        if it.count > 64 {
            let at = it.words.wrapping_add(bit as u64 / 64 * 8);
            // SAFETY: eight bytes into a local.
            if !unsafe { read::read((&raw mut word).cast(), at, 8) } {
                word = 0;
            }
        }
        let rest = word >> (bit & 63);
        if rest != 0 {
            it.last = bit + rest.trailing_zeros() as i32;
            return (&raw mut it.last) as u64;
        }
        bit = (bit | 63) + 1;
    }
    it.last = it.count;
    0
}

/// # Safety
/// `it` is an iterator over bits.
pub(super) unsafe fn bits_destroy(_: &mut Env, _it: u64) -> u64 {
    0
}
