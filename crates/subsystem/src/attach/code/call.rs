//! Trampolines at system calls.
//!
//! Programs there have a context of their own, which is laid behind the `pt_regs`; what is in it is given back from there. Of the
//! `pt_regs` only what helpers look at is stored. Before the call rcx and r11 are free, since the processor overwrites them;
//! behind it they have what it wrote, and come back.

use super::{CHANGED, Code, RED_ZONE, REGS, RIP, SP, Trampoline};

/// A side of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSide {
    /// Its number, if it is always the same. Behind a call it is.
    pub number: Option<u32>,
    /// Behind it, and not before.
    pub exit: bool,
    /// The flags are needed.
    pub flags: bool,
    /// The address behind the call: what stacks begin with.
    pub back: u64,
}

/// Bytes of the context.
const CONTEXT: i32 = 64;
/// Words of the context, counted from the `pt_regs`: the kernel's own, the number, and the arguments or the result.
const COMMON: u32 = REGS as u32 / 8;
const NUMBER: u32 = COMMON + 1;
const RESULT: u32 = COMMON + 2;
/// Registers that a call may change and that the processor leaves alone, with their words: rax, which is the number; rdi, rsi,
/// rdx, r10, r8, r9.
const ARGUMENTS: [(u32, u8); 7] = [
    (NUMBER, 0),
    (COMMON + 2, 7),
    (COMMON + 3, 6),
    (COMMON + 4, 2),
    (COMMON + 5, 10),
    (COMMON + 6, 8),
    (COMMON + 7, 9),
];
/// Frame pointer in the `pt_regs`.
const RBP: (u32, u8) = (4, 5);

/// The trampoline of a side of a call.
pub fn trampoline(t: &Trampoline, call: &CallSide) -> Vec<u8> {
    let mut code = Code::default();
    code.raise(-RED_ZONE - REGS - CONTEXT);
    if call.flags || t.registers.has(super::FLAGS) {
        code.save_flags();
    }
    let number = call.number.map_or(-1, |number| number.cast_signed());
    let whole = t.registers.has(super::ORIG_RAX);
    code.store_imm(COMMON, 0);
    match call.exit {
        true => code.store_imm(NUMBER, number).store(RESULT, 0),
        false => ARGUMENTS.into_iter().fold(&mut code, |code, (word, reg)| code.store(word, reg)),
    };
    // From here on rax is free.
    if whole {
        code.save(&CHANGED, t.registers, call.back);
    } else if call.exit {
        t.changed().iter().fold(&mut code, |code, &(word, reg)| code.store(word, reg));
    }
    // What stacks are found by.
    if t.registers.has(RIP) && !whole {
        code.store(RBP.0, RBP.1);
        code.imm64(&[0x48, 0xb8], call.back).store(RIP, 0); // mov rax, back
    }
    if t.registers.has(SP) {
        code.fix_rsp(RED_ZONE + CONTEXT);
    }
    code.call_hit(t);
    if call.flags {
        code.restore_flags();
    }
    match call.exit {
        true => code.restore(t.changed()),
        false => {
            let changed = |reg| t.changed().iter().any(|&(_, r)| r == reg);
            ARGUMENTS
                .into_iter()
                .filter(|(_, reg)| changed(*reg))
                .fold(&mut code, |code, (word, reg)| code.mov(0x8b, word, reg))
        }
    };
    code.raise(REGS + RED_ZONE + CONTEXT);
    code.0
}
