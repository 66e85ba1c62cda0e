//! Calls of quick hits as trampolines make them: the registers on the stack, above the return address; three registers of a call
//! come back as they were, or the test ends by a trap.

use std::arch::naked_asm;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_ebpf::uapi::PtRegs;
use skep_runtime::session::{Proc, Site};

const _: () = assert!(size_of::<PtRegs>() == 21 * 8 && std::mem::offset_of!(PtRegs, r9) == 0x40);

static HIT: AtomicU64 = AtomicU64::new(0);
static RETURN: AtomicU64 = AtomicU64::new(0);
/// Hits and returns that went the long way: it stores r9 among the registers.
static LONG: AtomicU64 = AtomicU64::new(0);

/// Where the two functions are.
pub fn lead_to(hit: u64, ret: u64) {
    HIT.store(hit, Ordering::Relaxed);
    RETURN.store(ret, Ordering::Relaxed);
}

/// How many hits and returns have gone the long way so far.
pub fn long_ways() -> u64 {
    LONG.load(Ordering::Relaxed)
}

/// As `skep_hit`.
#[unsafe(naked)]
pub unsafe extern "C" fn hit(site: *const Site, regs: *mut PtRegs) -> u64 {
    naked_asm!(
        "push rbx",
        "push r12",
        "push r13",
        "mov rbx, rsi",
        "mov r12, rdi",
        "mov r13, [rip + {function}]",
        "xor esi, esi",
        "jmp {call}",
        function = sym HIT, call = sym call,
    )
}

/// As `skep_return`.
#[unsafe(naked)]
pub unsafe extern "C" fn ret(proc: *const Proc, entry: u32, regs: *mut PtRegs) -> u64 {
    naked_asm!(
        "push rbx",
        "push r12",
        "push r13",
        "mov rbx, rdx",
        "mov r12, rdi",
        "mov r13, [rip + {function}]",
        "jmp {call}",
        function = sym RETURN, call = sym call,
    )
}

/// Calls r13 with r12 in rdi and esi as it is, the registers at rbx on the stack; gives these back, and three registers from it.
#[unsafe(naked)]
unsafe extern "C" fn call() {
    naked_asm!(
        // Its number stands behind the registers of a return. What is here is at a multiple of 16, as nothing below needs it.
        "push rsi",
        "sub rsp, 168",
        "mov r8, rsi",
        "mov rsi, rbx",
        "mov rdi, rsp",
        "mov ecx, 21",
        "cld",
        "rep movsq",
        "mov rsi, r8",
        "mov rdi, r12",
        "mov r9, 0x11223344",
        "mov r10, 0x22334455",
        "mov r11, 0x33445566",
        "call r13",
        "cmp r9, 0x11223344",
        "jne 2f",
        "cmp r10, 0x22334455",
        "jne 2f",
        "cmp r11, 0x33445566",
        "jne 2f",
        "cmp [rsp + 0x40], r9",
        "jne 3f",
        "lock inc qword ptr [rip + {long}]",
        // Whoever looks at the registers afterwards finds those that were there.
        "mov rcx, [rbx + 0x38]",
        "mov [rsp + 0x38], rcx",
        "mov rcx, [rbx + 0x40]",
        "mov [rsp + 0x40], rcx",
        "mov rcx, [rbx + 0x30]",
        "mov [rsp + 0x30], rcx",
        "3:",
        "mov rsi, rsp",
        "mov rdi, rbx",
        "mov ecx, 21",
        "rep movsq",
        "add rsp, 176",
        "pop r13",
        "pop r12",
        "pop rbx",
        "ret",
        "2:",
        "ud2",
        long = sym LONG,
    )
}
