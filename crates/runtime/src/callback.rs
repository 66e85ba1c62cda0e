//! Functions of a program that helpers call while they run.
//!
//! The address of a function is that of its first instruction: of its [`Code`], or of its machine code. Its frame lies
//! below that of the function that called the helper, and what calls may leave behind is above what is in use: an image
//! says how much its longest chain takes, functions that are called back among it.
//!
//! A run that is over ends such a function, too: the helper then gives back what it holds and returns at once.

use core::arch::naked_asm;
use core::mem::{offset_of, transmute};

use crate::env::{Env, Frame};
use crate::interp::{self, Start};
use crate::op::Code;

/// Where the address of a function that has a `may_goto` says how large its frame is.
pub(crate) const FRAME_SHIFT: u32 = 56;

/// What a helper needs to call a function of the program.
pub(crate) struct Callback {
    function: u64,
    fp: u64,
    frame: *mut Frame,
}

impl Callback {
    /// The function at this address. Made before anything is called: the next helper that calls back overwrites what it is
    /// made of.
    pub(crate) fn new(env: &Env, function: u64) -> Callback {
        Callback { function, fp: env.callback_fp, frame: env.frame }
    }

    /// Calls the function, which takes one from the budget; none if the run is over.
    ///
    /// # Safety
    /// The verifier has seen that the function is called with such arguments.
    pub(crate) unsafe fn call(&self, env: &mut Env, args: [u64; 5]) -> Option<u64> {
        env.fuel = env.fuel.wrapping_sub(1);
        if env.fuel == 0 && env.refuel() == 0 {
            env.modes.over_budget = true;
            return None;
        }
        // SAFETY: the address is that of a function of the program that runs; there is room for its frame.
        let r0 = unsafe {
            if env.modes.native {
                let code: NativeFn = transmute(self.function as *const u8);
                call_native(env, self.fp, code, &args)
            } else {
                let pc = (self.function & ((1 << FRAME_SHIFT) - 1)) as *const Code;
                let may_goto = (self.function >> FRAME_SHIFT) as u8;
                interp::call(env, &Start { pc, fp: self.fp, frame: self.frame, args, may_goto })
            }
        };
        (!env.modes.over_budget).then_some(r0)
    }
}

/// A function of a program, which is not called as C would.
type NativeFn = unsafe extern "sysv64" fn();

/// Calls a function of machine code; 0 if it ended the run.
///
/// # Safety
/// As for the function itself.
#[unsafe(naked)]
unsafe extern "sysv64" fn call_native(env: *mut Env, fp: u64, function: NativeFn, args: &[u64; 5]) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push qword ptr [rdi + {entry_sp}]",
        "mov r12, rdi",
        "mov rbp, rsi",
        "mov rax, rdx",
        "mov r10, rcx",
        // Where the return address of the call will be.
        "lea r11, [rsp - 8]",
        "mov [r12 + {entry_sp}], r11",
        "mov rdi, [r10]",
        "mov rsi, [r10 + 8]",
        "mov rdx, [r10 + 16]",
        "mov rcx, [r10 + 24]",
        "mov r8, [r10 + 32]",
        "call rax",
        "pop qword ptr [r12 + {entry_sp}]",
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
