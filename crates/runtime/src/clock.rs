//! The monotonic clock, by the vDSO where there is one: a fifth of a system call.
//!
//! The vDSO is found by the auxiliary vector, which `prctl(PR_GET_AUXV)` gives since Linux 6.4, and its symbol table; all
//! of it is read with care, once per process. The function's address is kept in the process's private memory. Like the
//! C library, which keeps it too, this relies on the vDSO staying where it is.

use core::arch::naked_asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use crate::session::{NO_CLOCK, Proc};
use crate::{read, sys};

/// `AT_SYSINFO_EHDR`.
const AUX_VDSO: u64 = 33;
/// Bytes that a vDSO takes at most.
const SPAN: u64 = 16 << 10;
/// Symbols looked at.
const SYMBOLS: u64 = 64;
const NAME: &[u8; 21] = b"__vdso_clock_gettime\0";

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;

/// `CLOCK_MONOTONIC` in nanoseconds.
///
/// # Safety
/// `proc` is the block of this process, or null.
pub(crate) unsafe fn monotonic(proc: *const Proc) -> u64 {
    /// The cache of a process that is not probed.
    static OWN: AtomicU64 = AtomicU64::new(0);
    // SAFETY: the caller's promise.
    match function(unsafe { proc.as_ref().map_or(&OWN, |p| &p.ret_head().clock) }) {
        NO_CLOCK => sys::clock_ns(sys::clock::MONOTONIC),
        address => {
            let mut ts = [0u64; 2];
            // SAFETY: the address is that of the vDSO's function, which has this type and writes a timespec.
            unsafe {
                skep_keep_vectors(sys::clock::MONOTONIC, &raw mut ts, address);
            }
            ts[0].wrapping_mul(1_000_000_000).wrapping_add(ts[1])
        }
    }
}

/// Calls `function(clock, ts)` and leaves the vector registers as they were: nothing else in the agent uses any, so
/// trampolines do not save them. (The controller knows it by this name.)
///
/// # Safety
/// As for the call.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "sysv64" fn skep_keep_vectors(clock: u32, ts: *mut [u64; 2], function: u64) {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "sub rsp, 256",
        "and rsp, -16",
        "movaps [rsp], xmm0",
        "movaps [rsp + 16], xmm1",
        "movaps [rsp + 32], xmm2",
        "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4",
        "movaps [rsp + 80], xmm5",
        "movaps [rsp + 96], xmm6",
        "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8",
        "movaps [rsp + 144], xmm9",
        "movaps [rsp + 160], xmm10",
        "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12",
        "movaps [rsp + 208], xmm13",
        "movaps [rsp + 224], xmm14",
        "movaps [rsp + 240], xmm15",
        "call rdx",
        "movaps xmm0, [rsp]",
        "movaps xmm1, [rsp + 16]",
        "movaps xmm2, [rsp + 32]",
        "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]",
        "movaps xmm5, [rsp + 80]",
        "movaps xmm6, [rsp + 96]",
        "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]",
        "movaps xmm9, [rsp + 144]",
        "movaps xmm10, [rsp + 160]",
        "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]",
        "movaps xmm13, [rsp + 208]",
        "movaps xmm14, [rsp + 224]",
        "movaps xmm15, [rsp + 240]",
        "mov rsp, rbp",
        "pop rbp",
        "ret",
    )
}

/// The cached address, looked for the first time.
fn function(cache: &AtomicU64) -> u64 {
    let known = cache.load(Relaxed);
    if known != 0 {
        return known;
    }
    let found = find().unwrap_or(NO_CLOCK);
    cache.store(found, Relaxed);
    found
}

/// Reads a plain value.
fn get<T: Copy + Default>(at: u64) -> Option<T> {
    let mut value = T::default();
    // SAFETY: as many bytes as the value has; only numbers and arrays of numbers are read.
    unsafe { read::read((&raw mut value).cast(), at, size_of::<T>()) }.then_some(value)
}

#[cold]
fn find() -> Option<u64> {
    // The vDSO stands among the first entries.
    let mut auxv = [[0u64; 2]; 16];
    let n = sys::auxv(&mut auxv)?;
    let base = auxv.iter().take(n).find(|a| a[0] == AUX_VDSO)?[1];
    if get::<[u8; 4]>(base)? != *b"\x7fELF" {
        return None;
    }
    let headers: u64 = get(base.checked_add(32)?)?;
    let count: u16 = get(base.checked_add(56)?)?;
    // Program headers: type, flags, offset, address, …; 56 bytes each.
    let (mut bias, mut dynamic) = (None, None);
    for i in 0..u64::from(count.min(16)) {
        let at = base.checked_add(headers)?.checked_add(i * 56)?;
        let [offset, address]: [u64; 2] = get(at.checked_add(8)?)?;
        match get::<u32>(at)? {
            PT_LOAD if bias.is_none() => bias = Some(base.checked_add(offset)?.wrapping_sub(address)),
            PT_DYNAMIC => dynamic = Some(offset),
            _ => {}
        }
    }
    let (bias, dynamic) = (bias?, base.checked_add(dynamic?)?);
    let (mut strings, mut symbols) = (None, None);
    for i in 0..64 {
        let [tag, value]: [u64; 2] = get(dynamic.checked_add(i * 16)?)?;
        match tag {
            0 => break,
            DT_STRTAB => strings = Some(bias.wrapping_add(value)),
            DT_SYMTAB => symbols = Some(bias.wrapping_add(value)),
            _ => {}
        }
    }
    let (strings, symbols) = (strings?, symbols?);
    // Symbols: name, info, other, section, value, size; 24 bytes each. The strings stand behind the symbols.
    let n = strings.checked_sub(symbols).map_or(SYMBOLS, |bytes| (bytes / 24).min(SYMBOLS));
    for i in 1..n {
        let at = symbols.checked_add(i * 24)?;
        let name = strings.checked_add(u64::from(get::<u32>(at)?))?;
        if get::<[u8; 21]>(name) == Some(*NAME) {
            let address = bias.wrapping_add(get::<u64>(at.checked_add(8)?)?);
            return (address > base && address - base < SPAN).then_some(address);
        }
    }
    None
}
