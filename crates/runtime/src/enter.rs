//! The entry of a function whose probes are at its return: nearly all of them, in few registers.
//!
//! A program that runs may change all registers that a call may, so its trampoline keeps nine. Here none runs: a return entry is
//! filled in, which takes three. They are kept in what would be the function's red zone; it has not begun yet, and the
//! kernel keeps signal handlers off it.
//!
//! What is done here is what [`enter`](crate::hit) does, in the same order: the thread is one that was seen on this page of its
//! stack, the site has one return link and no other, that is on, and the thread's first return entry is free. Anything else goes
//! the long way, from the start.

use core::arch::naked_asm;
use core::mem::offset_of;

use skep_ebpf::uapi::PtRegs;

use crate::session::{
    Control, Link, NO_LINK, Proc, RetEntry, SEEN, SEVERAL_LINKS, STUB_SIZE, Seen, Site, TID_MASK, ThreadEntry,
    link_kind, link_state,
};

const _: () = assert!(size_of::<Seen>() == 16 && offset_of!(Seen, page) == 0 && offset_of!(ThreadEntry, key) == 0);
const _: () = assert!(size_of::<RetEntry>() == 64 && STUB_SIZE == 16 && offset_of!(RetEntry, ret) == 0);
const _: () = assert!(NO_LINK == 0 && SEVERAL_LINKS == 1 && link_state::on(link_kind::RETURN, 0) == link_kind::RETURN);

/// A function with return probes is entered; see [`EnterFn`](crate::session::EnterFn).
///
/// # Safety
/// Only trampolines jump here, which is no call: `rax` is a [`Site`] of this process with its [`slow`](Site::slow) way, the
/// function's own `rax` is 8 bytes below its stack pointer, all else is as at its entry.
#[unsafe(naked)]
pub unsafe extern "C" fn enter() {
    naked_asm!(
        "mov [rsp - 16], rcx",
        "mov [rsp - 24], rdx",
        "mov [rsp - 32], rsi",
        // Is there a controller?
        "mov rcx, [rax + {proc}]",
        "mov rdx, [rcx + {control}]",
        "test dword ptr [rdx + {enable}], {tid_mask}",
        "jz 2f",
        // Which thread is it? By the page that the registers would be on, as the long way asks.
        "lea rdx, [rsp - {regs}]",
        "shr rdx, 12",
        "mov esi, edx",
        "and esi, {seen_mask}",
        "shl esi, 4",
        "add rsi, [rcx + {seen}]",
        "cmp [rsi], rdx",
        "jne 2f",
        "mov rdx, [rsi + {seen_thread}]",
        "mov rsi, fs:[0]",
        "cmp [rdx], rsi",
        "jne 2f",
        // Is its only link on?
        "cmp qword ptr [rax + {on_entry}], 0",
        "jne 2f",
        "mov rsi, [rax + {on_return}]",
        "cmp rsi, 1",
        "jbe 2f",
        "cmp dword ptr [rsi + {state}], {kind}",
        "jne 2f",
        // The first return entry of the thread. From here on it is taken, whatever interrupts.
        "btr dword ptr [rdx + {rets_free}], 0",
        "jnc 2f",
        "mov edx, [rdx + {rets}]",
        "dec edx",
        "cmp edx, [rcx + {nret}]",
        "jae 2f",
        "mov esi, edx",
        "shl rsi, 6",
        "add rsi, [rcx + {ret_entries}]",
        "shl rdx, 4",
        "add rdx, [rcx + {stubs}]",
        // All in one cache line; `used` last.
        "mov rcx, [rsp]",
        "mov [rsi], rcx",
        "mov rcx, [rax + {body}]",
        "mov [rsi + {entry_body}], rcx",
        "mov [rsi + {entry_sp}], rsp",
        "mov [rsi + {entry_site}], rax",
        "or dword ptr [rsi + {used}], 1",
        // On at the stub, without the return address.
        "mov [rsp - 40], rdx",
        "mov rsi, [rsp - 32]",
        "mov rdx, [rsp - 24]",
        "mov rcx, [rsp - 16]",
        "mov rax, [rsp - 8]",
        "lea rsp, [rsp + 8]",
        "jmp qword ptr [rsp - 48]",
        "2:",
        "mov rsi, [rsp - 32]",
        "mov rdx, [rsp - 24]",
        "mov rcx, [rsp - 16]",
        "jmp qword ptr [rax + {slow}]",
        proc = const offset_of!(Site, proc),
        control = const offset_of!(Proc, control),
        enable = const offset_of!(Control, enable),
        tid_mask = const TID_MASK,
        regs = const size_of::<PtRegs>(),
        seen_mask = const SEEN - 1,
        seen = const offset_of!(Proc, seen),
        seen_thread = const offset_of!(Seen, thread),
        on_entry = const offset_of!(Site, on_entry),
        on_return = const offset_of!(Site, on_return),
        state = const offset_of!(Link, state),
        kind = const link_kind::RETURN,
        rets_free = const offset_of!(ThreadEntry, rets_free),
        rets = const offset_of!(ThreadEntry, rets),
        nret = const offset_of!(Proc, nret),
        ret_entries = const offset_of!(Proc, rets),
        stubs = const offset_of!(Proc, stubs),
        body = const offset_of!(Site, body),
        entry_body = const offset_of!(RetEntry, body),
        entry_sp = const offset_of!(RetEntry, sp),
        entry_site = const offset_of!(RetEntry, site),
        used = const offset_of!(RetEntry, used),
        slow = const offset_of!(Site, slow),
    )
}
