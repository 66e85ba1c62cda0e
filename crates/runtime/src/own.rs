//! Words that a thread shares with its own signal handlers, and with nobody else while it runs: they are changed by single
//! instructions, which no handler splits. Without a lock prefix these cost a fifth.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// Clears bit 0. True if it was set.
#[inline(always)]
pub(crate) fn clear_first(word: &AtomicU32) -> bool {
    let was: u8;
    // SAFETY: the word is valid; the instruction writes it and the flags.
    unsafe {
        core::arch::asm!(
            "btr dword ptr [{word}], 0",
            "setc {was}",
            word = in(reg) word.as_ptr(), was = out(reg_byte) was,
            options(nostack),
        );
    }
    was != 0
}

/// Sets bits.
#[inline(always)]
pub(crate) fn set(word: &AtomicU32, bits: u32) {
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "or dword ptr [{word}], {bits:e}",
            word = in(reg) word.as_ptr(), bits = in(reg) bits,
            options(nostack),
        );
    }
}

/// Puts `new` in place of `old`. False if something else stood there.
#[inline(always)]
pub(crate) fn swap(word: &AtomicU32, old: u32, new: u32) -> bool {
    let was: u32;
    // SAFETY: as above, and eax.
    unsafe {
        core::arch::asm!(
            "cmpxchg dword ptr [{word}], {new:e}",
            word = in(reg) word.as_ptr(), new = in(reg) new, inout("eax") old => was,
            options(nostack),
        );
    }
    was == old
}

/// As [`swap`], of eight bytes.
#[inline(always)]
pub(crate) fn exchange(word: &AtomicU64, old: u64, new: u64) -> bool {
    let was: u64;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "cmpxchg qword ptr [{word}], {new}",
            word = in(reg) word.as_ptr(), new = in(reg) new, inout("rax") old => was,
            options(nostack),
        );
    }
    was == old
}
