//! Runs of images, by whichever engine they were made for.
//!
//! # Invariants
//!
//! * The code of an image of machine code keeps the contract of [`abi`](crate::abi); it does what its verified bytecode
//!   does, and leaves the stack and the registers that the C calling convention preserves as it found them.
//! * The memory that such an image lies in is mapped executable wherever it is run: `Env::executes` says whether it is.

use core::arch::naked_asm;
use core::hint::cold_path;
use core::mem::{offset_of, transmute};

use crate::env::{Env, Modes, NESTED_STACK, SAVED_FRAMES, STACK_BYTES, STACK_TOTAL, SlotArea};
use crate::image::{self, CODE_OFFSET, Image};
use crate::session::{Link, Proc};
use crate::{interp, packet};

/// Bytes of the thread's stack that the frames of tail calls' callers may take.
const NATIVE_STACK: u64 = 16 << 10;

/// The code of an image.
type Code = unsafe extern "sysv64" fn(*mut Env, *mut u8, u64) -> u64;

/// Runs an image on `env.ctx` and returns its r0; 0 if the budget was spent (`env.over_budget`).
///
/// # Safety
/// As [`interp::run`]; an image of machine code lies in executable memory, and the process has the maps that it names.
#[inline(always)]
pub(crate) unsafe fn run(env: &mut Env, image: *const Image, budget: u64) -> u64 {
    // SAFETY: the caller's promises.
    unsafe {
        let flags = (*image).flags;
        if flags & image::ALONE != 0 && env.modes.executes {
            // Nothing looks at what else is settled below.
            if !env.modes.is_native() {
                becomes_native(&mut env.modes);
            }
            let code: Code = transmute(image.cast::<u8>().add(CODE_OFFSET));
            return code(env, env.ctx, frame_pointer(env));
        }
        if flags & image::NATIVE == 0 {
            return interpret(env, image, budget);
        }
        // What was compiled fits in an empty stack.
        debug_assert!((*image).stack as usize <= STACK_BYTES && (*image).frames as usize <= SAVED_FRAMES);
        if !env.modes.is_native() && !becomes_native(&mut env.modes) {
            return 0;
        }
        settle(&mut env.prog_type, (*image).prog_type);
        env.fuel = u64::MAX;
        let code: Code = transmute(image.cast::<u8>().add(CODE_OFFSET));
        let fp = frame_pointer(env);
        if flags & image::UNWINDS == 0 {
            return code(env, env.ctx, fp);
        }
        (env.tail_calls, env.stack_top) = (0, 0);
        if budget != 0 {
            env.fuel = budget;
        }
        let env: *mut Env = env;
        enter(env, (*env).ctx, fp, code)
    }
}

/// The frame pointer of a run's first frame.
#[inline(always)]
fn frame_pointer(env: &Env) -> u64 {
    // The stack is the head of the area.
    env.area as u64 + STACK_TOTAL as u64
}

const _: () = assert!(offset_of!(SlotArea, stack) == 0);

/// Stores what mostly is there already: loads cost less.
#[inline(always)]
fn settle<T: Copy + PartialEq>(place: &mut T, value: T) {
    if *place != value {
        *place = value;
    }
}

/// As [`run`], of the image of `env.link`, at a probed place: of the environment only the link, the site and the registers
/// are set. Not 0 if the budget was spent.
///
/// # Safety
/// As [`run`]; `area` is the slot's, whose environment it is, `link` is what is set, `ctx` is the context to run on, and `proc`
/// is the process.
#[inline(always)]
pub(crate) unsafe fn run_here(area: *mut SlotArea, image: *const Image, link: &Link, ctx: *mut u8, proc: &Proc) -> u64 {
    // SAFETY: the caller's promises.
    unsafe {
        let env = &raw mut (*area).env;
        let flags = (*image).flags;
        if !(*env).modes.is_native() || (*image).nmaps > proc.nmaps {
            return run_otherwise(&mut *env, image, ctx);
        }
        if flags & (image::NATIVE | image::UNWINDS | image::ALONE) != image::NATIVE | image::ALONE {
            if flags & (image::NATIVE | image::UNWINDS) != image::NATIVE {
                return run_otherwise(&mut *env, image, ctx);
            }
            cold_path();
            (*env).settle(proc, link);
            (*env).ctx = ctx;
            (*env).prog_type = (*image).prog_type;
            (*env).fuel = u64::MAX;
        }
        let code: Code = transmute(image.cast::<u8>().add(CODE_OFFSET));
        code(env, ctx, area as u64 + STACK_TOTAL as u64)
    }
}

/// As [`run`], of a link's image where that is not to be run, not at once, or may be ended in the middle.
///
/// # Safety
/// As [`run`], at a probed place.
#[cold]
#[inline(never)]
unsafe fn run_otherwise(env: &mut Env, image: *const Image, ctx: *mut u8) -> u64 {
    // SAFETY: the caller's promises; the link is that of the run.
    unsafe {
        let (control, proc) = (&*env.control, &*env.proc);
        env.settle(proc, &*env.link);
        env.ctx = ctx;
        let image = if env.modes.executes {
            image
        } else {
            // What runs where there is no machine code.
            control.prog((*env.link).prog).and_then(|cell| control.image(cell, false)).unwrap_or(image)
        };
        match run_in(proc, env, image, control.budget) {
            _ if env.modes.over_budget => 1,
            retval => retval,
        }
    }
}

/// As [`run`], in a process that may not have the maps of the program.
///
/// # Safety
/// As [`run`].
pub(crate) unsafe fn run_in(proc: &Proc, env: &mut Env, image: *const Image, budget: u64) -> u64 {
    // SAFETY: the caller's promises.
    unsafe {
        if (*image).nmaps > proc.nmaps {
            env.modes.over_budget = false;
            return 0;
        }
        run(env, image, budget)
    }
}

/// Makes ready for machine code; false if it cannot be run.
#[cold]
#[inline(never)]
fn becomes_native(modes: &mut Modes) -> bool {
    *modes = Modes { executes: modes.executes, ..Modes::NATIVE };
    modes.executes
}

/// Out of the way of machine code.
///
/// # Safety
/// As [`run`].
#[inline(never)]
unsafe fn interpret(env: &mut Env, image: *const Image, budget: u64) -> u64 {
    // SAFETY: the caller's promises.
    unsafe { interp::run(env, image, budget) }
}

/// Calls code that may be ended in the middle: it then loads its stack pointer from `entry_sp` and returns.
///
/// # Safety
/// As for the code itself.
#[unsafe(naked)]
unsafe extern "sysv64" fn enter(env: *mut Env, ctx: *mut u8, fp: u64, code: Code) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        // Where the return address of the call will be.
        "lea rax, [rsp - 8]",
        "mov [rdi + {entry_sp}], rax",
        "call rcx",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        entry_sp = const offset_of!(Env, entry_sp),
    )
}

/// The entry of the table behind `tail_call`: the code to go on with, or 0.
///
/// # Safety
/// Called by machine code: `map` is a prog array's handle, `fp` the frame pointer, `sp` the stack pointer.
pub(crate) unsafe extern "sysv64" fn tail_call(_: u64, map: u64, index: u64, fp: u64, sp: u64, env: *mut Env) -> u64 {
    // SAFETY: the environment is that of the run that calls.
    unsafe {
        let env = &mut *env;
        let stack = (fp.wrapping_sub((&raw const (*env.area).stack) as u64) as usize).saturating_sub(NESTED_STACK);
        // The thread's stack grows by what the functions on the way have saved.
        // (What ran around a function may have begun with tail calls further down.)
        let entry = env.stack_top.max(sp);
        env.stack_top = entry;
        if entry.wrapping_sub(sp) > NATIVE_STACK {
            return 0;
        }
        match interp::tail_call_target(env, map, index as u32, stack, SAVED_FRAMES + 1, env.tail_calls, true) {
            Some(image) if (*image).flags & image::NATIVE != 0 => {
                env.tail_calls += 1;
                image.cast::<u8>().add(CODE_OFFSET) as u64
            }
            _ => 0,
        }
    }
}

/// The entry of the table behind loads from the packet: the number, or all ones if it is not there.
///
/// # Safety
/// Called by machine code: `ctx` is a packet context of the running program.
pub(crate) unsafe extern "sysv64" fn packet_load(ctx: u64, at: u64, size: u64, _: u64, _: u64, env: *mut Env) -> u64 {
    // SAFETY: as above.
    unsafe { packet::load(ctx as *const u8, (*env).prog_type, at as i32, size).map_or(u64::MAX, u64::from) }
}
