//! Hits in few registers: those of a program that calls nothing, on the slot that its thread keeps.
//!
//! Most of what a hit takes is instructions, and many of them store registers and give them back. What is here does what
//! [`hit`](crate::hit) and [`ret`](crate::hit::ret) do, in the same order of stores, for nearly all hits of such programs: it changes
//! rax, rcx, rdx, rsi, rdi and r8, and so does the code of an image that is [`QUICK`]. Whatever is otherwise goes the long way, with
//! the others stored before.
//!
//! # Invariants
//!
//! * Those of [`hit`](crate::hit) and [`thread`](crate::thread), which tells what the words of a run mean.
//! * Until the run has the thread and its slot nothing is changed but the guards; these are cleared where it does not get them.
//! * The image is found behind that, as in `hit`: a controller that sees no run under way may give an old one's memory to others.
//! * What is needed behind the program stands in the slot, and is loaded before the thread is given back.

use core::arch::naked_asm;
use core::mem::offset_of;

use skep_ebpf::uapi::PtRegs;

use crate::env::{Env, Modes, STACK_TOTAL, SlotArea};
use crate::image::{ALONE, CODE_OFFSET, FEW, Image, NATIVE};
use crate::session::{
    Control, Link, LinkCount, NO_LINK, NONE, Proc, ProgCell, RetEntry, SEEN, SEVERAL_LINKS, STUB_SIZE, Seen, Site,
    Slot, TID_MASK, ThreadEntry, link_flags, link_kind, link_state,
};
use crate::thread::Guards;
use crate::{hit, syscall};

/// Flags of images that are run here.
const QUICK: u32 = NATIVE | ALONE | FEW;

const _: () = assert!(NO_LINK == 0 && SEVERAL_LINKS == 1 && NONE == u32::MAX);
const _: () = assert!(
    link_state::on(link_kind::ENTRY, 0) == link_kind::ENTRY
        && link_state::on(link_kind::RETURN, 0) == link_kind::RETURN
);
const _: () = assert!(size_of::<Seen>() == 16 && offset_of!(Seen, page) == 0 && offset_of!(ThreadEntry, key) == 0);
const _: () = assert!(size_of::<RetEntry>() == 64 && STUB_SIZE == 16 && offset_of!(RetEntry, ret) == 0);
// The frame pointer of a first frame is the environment's address.
const _: () = assert!(offset_of!(SlotArea, env) == STACK_TOTAL && offset_of!(Slot, owner) == 0);
// They are pushed, the word first.
const _: () = assert!(size_of::<Guards>() == 16 && Guards::SP == 0 && Guards::WORD == 8);

/// Where the registers are when one of these functions is entered, and at the return of one: above the return address.
const REGS: usize = 8;
/// Where they are while the guards are on the stack.
const REGS_GUARDED: usize = REGS + size_of::<Guards>();

/// Puts the image of the link rcx into `$image`, if it is to be run here and the process has its maps: else on at 4. `$image` is the
/// control region before; `$proc` is how the process's block is found, and put into `$temporary`.
macro_rules! image {
    ($image:literal, $temporary:literal, $proc:expr) => {
        concat!(
            "mov ",
            $temporary,
            ", [rcx + {cell}]\n",
            "test ",
            $temporary,
            ", ",
            $temporary,
            "\n",
            "jz 4f\n",
            "mov ",
            $temporary,
            ", [",
            $image,
            " + ",
            $temporary,
            " + {cell_image}]\n",
            "test ",
            $temporary,
            ", ",
            $temporary,
            "\n",
            "jz 4f\n",
            "add ",
            $image,
            ", ",
            $temporary,
            "\n",
            "cmp dword ptr [",
            $image,
            " + {flags}], {quick}\n",
            "jne 4f\n",
            $proc,
            "\n",
            "mov r8d, [",
            $image,
            " + {image_maps}]\n",
            "cmp r8d, [",
            $temporary,
            " + {proc_maps}]\n",
            "ja 4f",
        )
    };
}

/// Lets a run have the thread `$thread` with the key r8, and puts the thread's slot into rax: else on at 7 (the guards are on the
/// stack), at 6 (it has the thread, too) or at 5 (and `$thread` has been changed). From then on nothing is given back that the run
/// may find.
macro_rules! begin {
    ($thread:literal) => {
        concat!(
            "lea rax, [rsp - {guards_size}]\n",
            "xor rax, r8\n",
            "push rax\n",
            "lea rax, [rsp + {regs} + 8]\n",
            "push rax\n",
            "xor eax, eax\n",
            "cmpxchg [",
            $thread,
            " + {guards}], rsp\n",
            "jne 7f\n",
            "mov rax, [",
            $thread,
            " + {kept}]\n",
            "test rax, rax\n",
            "jz 6f\n",
            "cmp [rax + {claim}], r8\n",
            "jne 6f\n",
            "cmp dword ptr [rax + {modes}], {native}\n",
            "jne 6f\n",
            "mov r8, [rax + {slot}]\n",
            "mov ",
            $thread,
            ", [rax + {owner}]\n",
            "cmp [r8], ",
            $thread,
            "\n",
            "jne 5f\n",
            // A run begins.
            "mov ",
            $thread,
            ", [r8 + {taken}]\n",
            "inc ",
            $thread,
            "\n",
            "or ",
            $thread,
            ", 1\n",
            "mov [r8 + {taken}], ",
            $thread,
        )
    };
}

/// The end of a run on the slot rdi, if it is not one that a child forked meanwhile has no part in: then on at 2. The thread is in
/// rdx then.
macro_rules! end {
    () => {
        concat!(
            "mov rdx, [rdi + {thread}]\n",
            "cmp qword ptr [rdx + {guards}], 0\n",
            "je 2f\n",
            "mov rsi, [rdi + {slot}]\n",
            "mov rcx, [rsi + {taken}]\n",
            "or rcx, 1\n",
            "inc rcx\n",
            "mov [rsi + {taken}], rcx",
        )
    };
}

/// The program has returned something, in rax; the slot is rdi, and stays there. On at 3.
macro_rules! conclude {
    () => {
        concat!(
            "push rdi\n",
            "mov [rsp + 8 + {regs_guarded} + {r9}], r9\n",
            "mov [rsp + 8 + {regs_guarded} + {r10}], r10\n",
            "mov [rsp + 8 + {regs_guarded} + {r11}], r11\n",
            "lea rdi, [rdi + {env}]\n",
            "mov rsi, rax\n",
            "call {conclude}\n",
            "mov r9, [rsp + 8 + {regs_guarded} + {r9}]\n",
            "mov r10, [rsp + 8 + {regs_guarded} + {r10}]\n",
            "mov r11, [rsp + 8 + {regs_guarded} + {r11}]\n",
            "pop rdi\n",
            "jmp 3b",
        )
    };
}

/// From 4 of [`image!`] and 5, 6 and 7 of [`begin!`] on to 8.
macro_rules! undo {
    ($thread:literal) => {
        concat!(
            "4:\n",
            "mov ",
            $thread,
            ", [rax + {thread}]\n",
            // A child that was forked meanwhile has no part in the slot.
            "cmp qword ptr [",
            $thread,
            " + {guards}], 0\n",
            "je 7f\n",
            "mov r8, [rax + {slot}]\n",
            "mov rax, [r8 + {taken}]\n",
            "or rax, 1\n",
            "inc rax\n",
            "mov [r8 + {taken}], rax\n",
            "jmp 6f\n",
            "5:\n",
            "mov ",
            $thread,
            ", [rax + {thread}]\n",
            "6:\n",
            "mov qword ptr [",
            $thread,
            " + {guards}], 0\n",
            "7:\n",
            "mov qword ptr [rsp + {word}], 0\n",
            "lea rsp, [rsp + {guards_size}]",
        )
    };
}

/// Calls a function of the long way, for all registers that it may change.
macro_rules! long_way {
    ($function:literal) => {
        concat!(
            "mov [rsp + {regs} + {r9}], r9\n",
            "mov [rsp + {regs} + {r10}], r10\n",
            "mov [rsp + {regs} + {r11}], r11\n",
            "call ",
            $function,
            "\n",
            "mov r9, [rsp + {regs} + {r9} ]\n",
            "mov r10, [rsp + {regs} + {r10}]\n",
            "mov r11, [rsp + {regs} + {r11}]\n",
            "ret",
        )
    };
}

/// A hit of the only entry link of a site, in `rdi`: `$checks` go on at 8 if it is no hit for quick programs, `$context` is how far
/// their context is from the registers, `$behind` is what follows the run, with the thread in rdx, and at 8 stands a call of `$long`.
/// Further operands are for these.
macro_rules! at_entry {
    ($checks:expr, $context:expr, [$($behind:expr),* $(,)?], $long:path, $($operands:tt)*) => {
        naked_asm!(
            "mov rax, [rdi + {proc}]",
            "mov rcx, [rdi + {on_entry}]",
            "mov rsi, [rax + {control}]",
            "cmp rcx, 1",
            "jbe 8f",
            "test dword ptr [rsi + {enable}], {tid_mask}",
            "jz 8f",
            "cmp dword ptr [rcx + {state}], {kind_entry}",
            "jne 8f",
            $checks,
            // The thread, by the page that the registers are on.
            "lea rdx, [rsp + {regs}]",
            "shr rdx, 12",
            "mov r8d, edx",
            "and r8d, {seen_mask}",
            "shl r8d, 4",
            "add r8, [rax + {seen}]",
            "cmp [r8], rdx",
            "jne 8f",
            "mov rdx, [r8 + {seen_thread}]",
            "mov r8, fs:[0]",
            "cmp [rdx], r8",
            "jne 8f",
            begin!("rdx"),
            image!("rsi", "rdx", "mov rdx, [rdi + {proc}]"),
            "mov [rax + {env_site}], rdi",
            "mov [rax + {env_link}], rcx",
            "lea rdx, [rsp + {regs_guarded}]",
            "mov [rax + {env_regs}], rdx",
            "mov r8, [rax + {env_counts}]",
            "add r8, [rcx + {counts}]",
            "inc qword ptr [r8 + {hits}]",
            "lea r8, [rsi + {code}]",
            "lea rsi, [rdx + {context}]",
            "lea rdi, [rax + {env}]",
            "mov rdx, rdi",
            "push rax",
            "call r8",
            "pop rdi",
            "test rax, rax",
            "jnz 22f",
            "3:",
            end!(),
            "mov rdi, [rdi + {env_site}]",
            "mov qword ptr [rdx + {guards}], 0",
            "1:",
            "lea rsp, [rsp + {guards_size}]",
            $($behind,)*
            "2:",
            "mov rdi, [rdi + {env_site}]",
            "jmp 1b",
            "22:",
            conclude!(),
            undo!("rdx"),
            "8:",
            "lea rsi, [rsp + {regs}]",
            long_way!("{long}"),
            proc = const offset_of!(Site, proc),
            on_entry = const offset_of!(Site, on_entry),
            control = const offset_of!(Proc, control),
            enable = const offset_of!(Control, enable),
            tid_mask = const TID_MASK,
            state = const offset_of!(Link, state),
            kind_entry = const link_kind::ENTRY,
            cell = const offset_of!(Link, cell),
            cell_image = const offset_of!(ProgCell, image),
            flags = const offset_of!(Image, flags),
            quick = const QUICK,
            image_maps = const offset_of!(Image, nmaps),
            proc_maps = const offset_of!(Proc, nmaps),
            seen_mask = const SEEN - 1,
            seen = const offset_of!(Proc, seen),
            seen_thread = const offset_of!(Seen, thread),
            guards_size = const size_of::<Guards>(),
            word = const Guards::WORD,
            guards = const offset_of!(ThreadEntry, guards),
            kept = const offset_of!(ThreadEntry, kept),
            claim = const offset_of!(SlotArea, claim),
            modes = const offset_of!(SlotArea, env) + offset_of!(Env, modes),
            native = const Modes::NATIVE.word(),
            slot = const offset_of!(SlotArea, slot),
            owner = const offset_of!(SlotArea, owner),
            taken = const offset_of!(Slot, taken),
            thread = const offset_of!(SlotArea, thread),
            env = const offset_of!(SlotArea, env),
            env_site = const offset_of!(SlotArea, env) + offset_of!(Env, site),
            env_link = const offset_of!(SlotArea, env) + offset_of!(Env, link),
            env_regs = const offset_of!(SlotArea, env) + offset_of!(Env, regs),
            env_counts = const offset_of!(SlotArea, env) + offset_of!(Env, counts),
            counts = const offset_of!(Link, counts),
            hits = const offset_of!(LinkCount, hits),
            code = const CODE_OFFSET,
            regs = const REGS,
            regs_guarded = const REGS_GUARDED,
            r9 = const offset_of!(PtRegs, r9),
            r10 = const offset_of!(PtRegs, r10),
            r11 = const offset_of!(PtRegs, r11),
            conclude = sym hit::conclude,
            context = const $context,
            long = sym $long,
            $($operands)*
        )
    };
}

/// At a system call whose number is known. Raw tracepoints have another context.
macro_rules! at_call {
    ($long:path) => {
        at_entry!(
            concat!(
                "cmp dword ptr [rdi + {call}], -1\n",
                "je 8f\n",
                "test dword ptr [rcx + {link_flags}], {raw}\n",
                "jnz 8f"
            ),
            size_of::<PtRegs>(),
            ["xor eax, eax", "ret"],
            $long,
            call = const offset_of!(Site, call),
            link_flags = const offset_of!(Link, flags),
            raw = const link_flags::RAW,
        )
    };
}

/// A probed place is reached; see [`QuickHitFn`](crate::session::QuickHitFn).
///
/// # Safety
/// Only trampolines call this: `rdi` is a [`Site`] of this process, the registers there stand above the return address, on the
/// stack of the calling thread.
#[unsafe(naked)]
pub unsafe extern "C" fn entry() {
    at_entry!(
        "",
        0,
        [
            "mov rcx, [rdi + {on_return}]",
            "test rcx, rcx",
            "jnz 9f",
            "xor eax, eax",
            "ret",
            "9:",
            "cmp rcx, 1",
            "je 9f",
            "cmp dword ptr [rcx + {state}], {kind_return}",
            "jne 9f",
            "btr dword ptr [rdx + {rets_free}], 0",
            "jnc 9f",
            "mov ecx, [rdx + {rets}]",
            "dec ecx",
            "mov rax, [rdi + {proc}]",
            "cmp ecx, [rax + {nret}]",
            "jae 9f",
            "mov esi, ecx",
            "shl rsi, 6",
            "add rsi, [rax + {ret_entries}]",
            "shl rcx, 4",
            "add rcx, [rax + {stubs}]",
            "mov rax, [rsp + {regs} + {rsp}]",
            "mov [rsi + {entry_sp}], rax",
            "mov rax, [rax]",
            "mov [rsi], rax",
            "mov rax, [rdi + {body}]",
            "mov [rsi + {entry_body}], rax",
            "mov [rsi + {entry_site}], rdi",
            "or dword ptr [rsi + {used}], 1",
            "mov rax, rcx",
            "ret",
            // The return in any case.
            "9:",
            "mov rsi, rdx",
            "lea rdx, [rsp + {regs}]",
            long_way!("{enter}")
        ],
        hit::hit,
        on_return = const offset_of!(Site, on_return),
        body = const offset_of!(Site, body),
        kind_return = const link_kind::RETURN,
        rsp = const offset_of!(PtRegs, rsp),
        rets_free = const offset_of!(ThreadEntry, rets_free),
        rets = const offset_of!(ThreadEntry, rets),
        nret = const offset_of!(Proc, nret),
        ret_entries = const offset_of!(Proc, rets),
        stubs = const offset_of!(Proc, stubs),
        entry_sp = const offset_of!(RetEntry, sp),
        entry_body = const offset_of!(RetEntry, body),
        entry_site = const offset_of!(RetEntry, site),
        used = const offset_of!(RetEntry, used),
        enter = sym hit::enter_behind,
    )
}

/// A system call is about to be made; see [`QuickHitFn`](crate::session::QuickHitFn).
///
/// # Safety
/// As [`entry`], with a context behind the registers, as for [`syscall::enter`].
#[unsafe(naked)]
pub unsafe extern "C" fn call() {
    at_call!(syscall::enter)
}

/// A system call has returned; see [`QuickHitFn`](crate::session::QuickHitFn).
///
/// # Safety
/// As [`entry`], with a context behind the registers, as for [`syscall::exit`]. The call makes no children.
#[unsafe(naked)]
pub unsafe extern "C" fn called() {
    at_call!(syscall::exit)
}

/// A function with a return probe has returned; see [`QuickReturnFn`](crate::session::QuickReturnFn).
///
/// # Safety
/// Only the common part of the return stubs calls this: `rdi` is the block of this process, `esi` an entry that [`entry`] or
/// [`hit`](crate::hit::hit) handed out and whose function has returned; the registers then stand above the return address, on the
/// stack of the calling thread, and behind them the entry's number once more.
#[unsafe(naked)]
pub unsafe extern "C" fn ret() {
    naked_asm!(
        "cmp esi, [rdi + {nret}]",
        "jae 9f",
        "shl rsi, 6",
        "add rsi, [rdi + {ret_entries}]",
        "test dword ptr [rsi + {used}], 1",
        "jz 9f",
        "mov rax, [rsi]",
        "mov [rsp + {regs} + {rip}], rax",
        "mov rdx, [rdi + {control}]",
        "test dword ptr [rdx + {enable}], {tid_mask}",
        "jz 8f",
        "mov rcx, [rsi + {entry_site}]",
        "mov rcx, [rcx + {on_return}]",
        "cmp rcx, 1",
        "jbe 8f",
        "cmp dword ptr [rcx + {state}], {kind_return}",
        "jne 8f",
        // The thread, if it keeps the entry.
        "mov rdi, [rsi + {home}]",
        "and rdi, {home_mask}",
        "jz 8f",
        "mov r8, fs:[0]",
        "cmp [rdi], r8",
        "jne 8f",
        begin!("rdi"),
        image!("rdx", "rdi", "mov rdi, [rsi + {entry_site}]\nmov rdi, [rdi + {proc}]"),
        // The entry is free again.
        "mov rdi, [rax + {thread}]",
        "mov r8d, [rsi + {place}]",
        "inc dword ptr [rsi + {used}]",
        "or [rdi + {rets_free}], r8d",
        "mov rdi, [rsi + {entry_site}]",
        "mov [rax + {env_site}], rdi",
        "mov [rax + {env_link}], rcx",
        "lea rsi, [rsp + {regs_guarded}]",
        "mov [rax + {env_regs}], rsi",
        "mov r8, [rax + {env_counts}]",
        "add r8, [rcx + {counts}]",
        "inc qword ptr [r8 + {hits}]",
        "lea r8, [rdx + {code}]",
        "lea rdi, [rax + {env}]",
        "mov rdx, rdi",
        "push rax",
        "call r8",
        "pop rdi",
        "test rax, rax",
        "jnz 22f",
        "3:",
        end!(),
        "mov qword ptr [rdx + {guards}], 0",
        "2:",
        "lea rsp, [rsp + {guards_size}]",
        "mov rax, [rsp + {regs} + {rip}]",
        "ret",
        "22:",
        conclude!(),
        undo!("rdi"),
        "8:",
        "mov rax, [rsi + {entry_site}]",
        "mov rdi, [rax + {proc}]",
        "9:",
        "mov esi, [rsp + {regs} + {regs_size}]",
        "lea rdx, [rsp + {regs}]",
        long_way!("{ret}"),
        proc = const offset_of!(Site, proc),
        on_return = const offset_of!(Site, on_return),
        control = const offset_of!(Proc, control),
        enable = const offset_of!(Control, enable),
        tid_mask = const TID_MASK,
        state = const offset_of!(Link, state),
        kind_return = const link_kind::RETURN,
        cell = const offset_of!(Link, cell),
        cell_image = const offset_of!(ProgCell, image),
        flags = const offset_of!(Image, flags),
        quick = const QUICK,
        image_maps = const offset_of!(Image, nmaps),
        proc_maps = const offset_of!(Proc, nmaps),
        guards_size = const size_of::<Guards>(),
        word = const Guards::WORD,
        guards = const offset_of!(ThreadEntry, guards),
        kept = const offset_of!(ThreadEntry, kept),
        claim = const offset_of!(SlotArea, claim),
        modes = const offset_of!(SlotArea, env) + offset_of!(Env, modes),
        native = const Modes::NATIVE.word(),
        slot = const offset_of!(SlotArea, slot),
        owner = const offset_of!(SlotArea, owner),
        taken = const offset_of!(Slot, taken),
        thread = const offset_of!(SlotArea, thread),
        env = const offset_of!(SlotArea, env),
        env_site = const offset_of!(SlotArea, env) + offset_of!(Env, site),
        env_link = const offset_of!(SlotArea, env) + offset_of!(Env, link),
        env_regs = const offset_of!(SlotArea, env) + offset_of!(Env, regs),
        env_counts = const offset_of!(SlotArea, env) + offset_of!(Env, counts),
        counts = const offset_of!(Link, counts),
        hits = const offset_of!(LinkCount, hits),
        code = const CODE_OFFSET,
        regs = const REGS,
        regs_guarded = const REGS_GUARDED,
        regs_size = const size_of::<PtRegs>(),
        rip = const offset_of!(PtRegs, rip),
        r9 = const offset_of!(PtRegs, r9),
        r10 = const offset_of!(PtRegs, r10),
        r11 = const offset_of!(PtRegs, r11),
        rets_free = const offset_of!(ThreadEntry, rets_free),
        nret = const offset_of!(Proc, nret),
        ret_entries = const offset_of!(Proc, rets),
        entry_site = const offset_of!(RetEntry, site),
        used = const offset_of!(RetEntry, used),
        home = const offset_of!(RetEntry, home),
        home_mask = const -(crate::session::KEPT_RETS as i64),
        place = const offset_of!(RetEntry, place),
        conclude = sym hit::conclude,
        ret = sym hit::ret,
    )
}
