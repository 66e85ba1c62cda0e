//! Reads of memory that may not be there.
//!
//! `process_vm_readv(2)` on the own process works under any signal mask and without a handler, and never reads what the
//! process itself could not.

use crate::sys;

const PAGE: u64 = 4096;
/// The highest address that user space can have: of more, not even nothing can be read.
const USER_MAX: u64 = (1 << 47) - PAGE;

/// Copies `len` bytes from `src`; false if not all are readable (then `dst` holds anything).
///
/// # Safety
/// `dst` must be writable for `len` bytes.
pub(crate) unsafe fn read(dst: *mut u8, src: u64, len: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { read_of(0, dst, src, len) }
}

/// As [`read`], of the memory of a process; 0 is this one.
///
/// # Safety
/// As [`read`].
pub(crate) unsafe fn read_of(pid: u32, dst: *mut u8, src: u64, len: usize) -> bool {
    if len == 0 {
        return src <= USER_MAX;
    }
    let pid = if pid == 0 { sys::getpid() } else { pid };
    // SAFETY: the caller's promise.
    unsafe { sys::read_memory(pid, dst, src, len) == len as isize }
}

/// As [`read`], and direct where that cannot fault: in the pages between this function's own frame and `top`, an address
/// of a caller's frame on the same stack.
///
/// # Safety
/// As [`read`]; `top` is an address in the stack of the calling thread, above its present frame, or null.
pub(crate) unsafe fn read_near(dst: *mut u8, src: u64, len: usize, top: *const u8) -> bool {
    let here = 0u8;
    let low = (&raw const here) as u64 & !(PAGE - 1);
    let high = (top as u64 | (PAGE - 1)).wrapping_add(1);
    let end = src.checked_add(len as u64);
    if low < high && high - low <= 4 * PAGE && src >= low && end.is_some_and(|e| e <= high) {
        // SAFETY: all pages from this frame's to `top`'s hold live frames, so they are mapped and readable.
        unsafe { core::ptr::copy_nonoverlapping(src as *const u8, dst, len) };
        return true;
    }
    // SAFETY: the caller's promise.
    unsafe { read(dst, src, len) }
}

/// What stands behind the terminator of a string that [`read_str`] copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// What stood there before.
    Kept,
    /// Zeroes to the end of the terminator's eight bytes (counted from the string's start), if they are all readable
    /// and have room: the kernel copies strings of user space in words.
    Word,
}

/// Copies the zero-terminated string at `src`, at most `size` bytes with its terminator, which is always written (in
/// place of the last byte if the string is longer); returns the length with the terminator, or none if memory was not
/// readable before the string's end.
///
/// # Safety
/// `dst` must be writable for `size` bytes, and not overlap `chunk`.
pub(crate) unsafe fn read_str(dst: *mut u8, src: u64, size: usize, tail: Tail, chunk: &mut [u8]) -> Option<usize> {
    // SAFETY: the caller's promise.
    unsafe { read_str_of(0, dst, src, size, tail, chunk) }
}

/// As [`read_str`], from the memory of a process; 0 is this one.
///
/// # Safety
/// As [`read_str`].
pub(crate) unsafe fn read_str_of(
    pid: u32,
    dst: *mut u8,
    src: u64,
    size: usize,
    tail: Tail,
    chunk: &mut [u8],
) -> Option<usize> {
    let mut done = 0usize;
    while done < size {
        let at = src.checked_add(done as u64)?;
        let in_page = (PAGE - at % PAGE) as usize;
        let n = in_page.min(size - done).min(chunk.len());
        let (part, _) = chunk.split_at_mut_checked(n)?;
        // SAFETY: `part` is writable.
        if n == 0 || !unsafe { read_of(pid, part.as_mut_ptr(), at, n) } {
            return None;
        }
        let end = part.iter().position(|&b| b == 0);
        let copy = end.map_or(n, |e| e + 1);
        // SAFETY: `done` + `copy` ≤ `size`.
        unsafe { core::ptr::copy_nonoverlapping(part.as_ptr(), dst.add(done), copy) };
        done += copy;
        if end.is_some() {
            if tail == Tail::Word {
                // SAFETY: `dst` is writable for `size` bytes.
                unsafe { clear_word(pid, dst, src, done, size) };
            }
            return Some(done);
        }
    }
    if size > 0 {
        // SAFETY: within `size`.
        unsafe { *dst.add(size - 1) = 0 };
    }
    Some(size)
}

/// See [`Tail::Word`]; `len` is the string's length with its terminator.
///
/// # Safety
/// `dst` must be writable for `size` bytes.
unsafe fn clear_word(pid: u32, dst: *mut u8, src: u64, len: usize, size: usize) {
    let end = len.next_multiple_of(8);
    let mut word = 0u64;
    // SAFETY: eight bytes into a local; `len` ≤ `end` ≤ `size`.
    unsafe {
        if end <= size && read_of(pid, (&raw mut word).cast(), src.wrapping_add(end as u64 - 8), 8) {
            core::ptr::write_bytes(dst.add(len), 0, end - len);
        }
    }
}
