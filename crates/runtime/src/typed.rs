//! Programs around functions of processes whose types are known: their context is the function's arguments, eight bytes
//! each, and what it returned behind them, as around functions of programs ([`around`](crate::around)).

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, fence};

use skep_ebpf::uapi::PtRegs;

use crate::around::RETURNED;
use crate::read;
use crate::session::{
    ARGUMENT_REGISTERS, Arguments, KeptArguments, MAX_STACK_WORDS, MAX_WORDS, Proc, link_flags, width,
};

/// What a program gets: the function's address, how many words of arguments there are, the words, and the result.
pub(crate) type Context = [u64; HEAD + MAX_WORDS + 1];
/// Words in front of what the program sees.
pub(crate) const HEAD: usize = 2;

/// The registers and stack words that arguments are in.
pub(crate) type Words = [u64; ARGUMENT_REGISTERS + MAX_STACK_WORDS];

/// What is there at a function's entry; `flags` say how much of the stack.
///
/// # Safety
/// The registers are those of a function's entry on the calling thread.
#[cold]
#[inline(never)]
pub(crate) unsafe fn at_entry(regs: *const PtRegs, flags: u32, to: *mut Words) {
    // SAFETY: the caller's promise; the stack is read with care, since it is as long as somebody says.
    unsafe {
        let (r, to) = (&*regs, &mut *to);
        *to = [0; ARGUMENT_REGISTERS + MAX_STACK_WORDS];
        for (word, value) in to.iter_mut().zip([r.rdi, r.rsi, r.rdx, r.rcx, r.r8, r.r9]) {
            *word = value;
        }
        let count = ((flags >> link_flags::STACK_WORDS & 15) as usize).min(MAX_STACK_WORDS);
        if count > 0 {
            let stack = (to as *mut Words).cast::<u64>().add(ARGUMENT_REGISTERS);
            read::read(stack.cast(), r.rsp.wrapping_add(8), count * 8);
        }
    }
}

/// The words that are kept for a return entry.
///
/// # Safety
/// In the process of `proc`; the entry is one of its.
unsafe fn kept(proc: &Proc, entry: u32) -> *const [AtomicU64; size_of::<KeptArguments>() / 8] {
    (proc.kept as *const [AtomicU64; size_of::<KeptArguments>() / 8]).wrapping_add(entry as usize)
}

/// Keeps what is there at a function's entry until it returns; `used` says which use of the entry it is.
///
/// # Safety
/// As [`at_entry`]; in the process of `proc`, and the entry is that of this activation.
#[cold]
#[inline(never)]
pub(crate) unsafe fn keep(proc: &Proc, entry: u32, used: u32, regs: *const PtRegs, flags: u32) {
    let mut words = [0; ARGUMENT_REGISTERS + MAX_STACK_WORDS];
    // SAFETY: the caller's promise.
    unsafe {
        at_entry(regs, flags, &raw mut words);
        let [tag, rest @ ..] = &*kept(proc, entry);
        // Whoever reads meanwhile, for a use that is over, finds that it is not his.
        tag.store(0, Relaxed);
        fence(Release);
        rest.iter().zip(words).for_each(|(to, word)| to.store(word, Relaxed));
        tag.store(u64::from(used) | 1 << 32, Release);
    }
}

/// What was kept at the entry of the function that has returned; false if nothing was, or if it is gone: the entry may be
/// in use again.
///
/// # Safety
/// In the process of `proc`; the entry is one of its.
#[cold]
#[inline(never)]
pub(crate) unsafe fn take(proc: &Proc, entry: u32, used: u32, to: &mut MaybeUninit<Words>) -> bool {
    // SAFETY: the caller's promise.
    let [tag, rest @ ..] = unsafe { &*kept(proc, entry) };
    let to = to.write([0; ARGUMENT_REGISTERS + MAX_STACK_WORDS]);
    to.iter_mut().zip(rest).for_each(|(to, word)| *to = word.load(Relaxed));
    fence(Acquire);
    tag.load(Relaxed) == u64::from(used) | 1 << 32
}

/// Fills in the context of a program; `result` is what the function returned, if it has.
pub(crate) fn fill(to: &mut Context, arguments: &Arguments, words: &Words, ip: u64, result: Option<u64>) {
    let count = usize::from(arguments.count).min(MAX_WORDS);
    let [address, number, seen @ ..] = to;
    *address = ip;
    *number = count as u64 | if result.is_some() { RETURNED } else { 0 };
    for (to, how) in seen.iter_mut().zip(&arguments.words).take(count) {
        let word = words.get(usize::from(how & 15)).copied().unwrap_or(0);
        *to = extend(word, how >> 4);
    }
    if let Some(to) = seen.get_mut(count) {
        *to = result.map_or(0, |r| extend(r, arguments.result));
    }
}

/// A narrow value as 64 bits.
fn extend(word: u64, how: u8) -> u64 {
    match how {
        width::U8 => word as u8 as u64,
        width::U16 => word as u16 as u64,
        width::U32 => word as u32 as u64,
        _ if how == width::U8 | width::SIGNED => word as i8 as u64,
        _ if how == width::U16 | width::SIGNED => word as i16 as u64,
        _ if how == width::U32 | width::SIGNED => word as i32 as u64,
        width::NONE => 0,
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_values_are_extended() {
        let all = 0x8877_6655_4433_8281u64;
        let s = width::SIGNED;
        for (how, wanted) in [
            (width::WORD, all),
            (width::U8, 0x81),
            (width::U16, 0x8281),
            (width::U32, 0x4433_8281),
            (width::U8 | s, -0x7f_i64 as u64),
            (width::U16 | s, -0x7d7f_i64 as u64),
            (width::U32 | s, 0x4433_8281),
            (width::NONE, 0),
        ] {
            assert_eq!(extend(all, how), wanted, "{how}");
        }
    }

    #[test]
    fn contexts_have_what_was_said() {
        let mut words = [0; ARGUMENT_REGISTERS + MAX_STACK_WORDS];
        words.iter_mut().zip(100..).for_each(|(w, n)| *w = n);
        let mut arguments = Arguments { count: 3, result: width::U8, ..Arguments::default() };
        arguments.words[..3].copy_from_slice(&[1, 7, 14]);
        let mut context = [7; HEAD + MAX_WORDS + 1];
        fill(&mut context, &arguments, &words, 0x1234, None);
        assert_eq!(context[..6], [0x1234, 3, 101, 107, 114, 0]);
        fill(&mut context, &arguments, &words, 0x1234, Some(0x1ff));
        assert_eq!(context[..6], [0x1234, 3 | RETURNED, 101, 107, 114, 0xff]);
    }
}
