//! Jumps to `skep_enter` as a trampoline makes them, with all registers known before and after.

use std::arch::naked_asm;

use skep_ebpf::uapi::PtRegs;

use super::world::{World, enter};

/// The function's return address.
pub const RETURN: u64 = 0x1234_5678;

/// A stack with a function's entry in the middle of a page.
pub struct Stack {
    words: Box<Page>,
    site: u64,
    slow: u64,
    stubs: u64,
}

#[repr(C, align(4096))]
struct Page([u64; 512]);

/// Where the return address stands.
const TOP: usize = 300;

/// What a jump works with. The offsets are known to the assembly below.
#[repr(C)]
struct Jump {
    /// rbx, rbp, r12 to r15, rax, rcx, rdx, rsi, rdi, r8 to r11: before.
    before: [u64; 15],
    /// The same after, and the stack pointer; where it came out.
    after: [u64; 17],
    /// The caller's stack pointer.
    own: u64,
    /// Where to jump, the stack pointer, the site.
    to: u64,
    top: u64,
    site: u64,
}

static mut JUMP: Jump = Jump { before: [0; 15], after: [0; 17], own: 0, to: 0, top: 0, site: 0 };

impl Stack {
    /// A stack for calls of the function of `world`, whose stubs are here from now on.
    pub fn new(world: &mut World) -> Stack {
        let (slow, stubs) = (slow as *const () as u64, stub as *const () as u64);
        (world.site.slow, world.proc.stubs) = (slow, stubs);
        let site = &raw const *world.site as u64;
        Stack { words: Box::new(Page([0; 512])), site, slow, stubs }
    }

    /// The address of the return address.
    pub fn top(&self) -> u64 {
        &raw const self.words.0[TOP] as u64
    }

    /// The registers at the function's entry, where its trampoline would have them.
    pub fn regs(&mut self) -> *mut PtRegs {
        self.words.0[TOP] = RETURN;
        let regs = (self.top() - size_of::<PtRegs>() as u64) as *mut PtRegs;
        // SAFETY: below the return address there is room.
        unsafe { regs.write(PtRegs { rsp: self.top(), ..PtRegs::default() }) };
        regs
    }

    /// Enters the function. True if that goes on at its first stub, false on the long way; with all registers as they were.
    pub fn ask(&mut self) -> bool {
        self.words.0[TOP] = RETURN;
        let before: [u64; 15] = std::array::from_fn(|n| 0x0101_0101_0101_0101u64.wrapping_mul(n as u64 + 3));
        // SAFETY: one test alone does this, by one thread at a time.
        let (out, [after @ .., sp, _]) = unsafe {
            JUMP = Jump { before, after: [0; 17], own: 0, to: enter(), top: self.top(), site: self.site };
            jump();
            ((&raw const JUMP.after[16]).read(), (&raw const JUMP.after).read())
        };
        let mut expected = before;
        if out == self.slow {
            // The site is in rax, whose value is on the stack.
            assert_eq!((self.words.0[TOP - 1], sp), (before[6], self.top()));
            expected[6] = self.site;
        } else {
            assert_eq!((out, sp), (self.stubs, self.top() + 8));
        }
        assert_eq!((after, self.words.0[TOP]), (expected, RETURN));
        out == self.stubs
    }
}

#[unsafe(naked)]
unsafe extern "C" fn jump() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {j} + 256], rsp",
        "mov rsp, [rip + {j} + 272]",
        "mov rbx, [rip + {j}]", "mov rbp, [rip + {j} + 8]", "mov r12, [rip + {j} + 16]", "mov r13, [rip + {j} + 24]",
        "mov r14, [rip + {j} + 32]", "mov r15, [rip + {j} + 40]", "mov rcx, [rip + {j} + 56]",
        "mov rdx, [rip + {j} + 64]", "mov rsi, [rip + {j} + 72]", "mov rdi, [rip + {j} + 80]",
        "mov r8, [rip + {j} + 88]", "mov r9, [rip + {j} + 96]", "mov r10, [rip + {j} + 104]",
        "mov r11, [rip + {j} + 112]",
        "mov rax, [rip + {j} + 48]",
        "mov [rsp - 8], rax",
        "mov rax, [rip + {j} + 280]",
        "jmp qword ptr [rip + {j} + 264]",
        j = sym JUMP,
    )
}

/// Where the long way begins.
#[unsafe(naked)]
unsafe extern "C" fn slow() {
    naked_asm!(
        "mov [rip + {j} + 168], rax",
        "lea rax, [rip + {slow}]",
        "mov [rip + {j} + 248], rax",
        "jmp {out}",
        slow = sym slow, out = sym out, j = sym JUMP,
    )
}

/// The first stub.
#[unsafe(naked)]
unsafe extern "C" fn stub() {
    naked_asm!(
        "mov [rip + {j} + 168], rax",
        "lea rax, [rip + {stub}]",
        "mov [rip + {j} + 248], rax",
        "jmp {out}",
        stub = sym stub, out = sym out, j = sym JUMP,
    )
}

/// Back to the caller of [`jump`].
#[unsafe(naked)]
unsafe extern "C" fn out() {
    naked_asm!(
        "mov [rip + {j} + 120], rbx", "mov [rip + {j} + 128], rbp", "mov [rip + {j} + 136], r12",
        "mov [rip + {j} + 144], r13", "mov [rip + {j} + 152], r14", "mov [rip + {j} + 160], r15",
        "mov [rip + {j} + 176], rcx", "mov [rip + {j} + 184], rdx", "mov [rip + {j} + 192], rsi",
        "mov [rip + {j} + 200], rdi", "mov [rip + {j} + 208], r8", "mov [rip + {j} + 216], r9",
        "mov [rip + {j} + 224], r10", "mov [rip + {j} + 232], r11", "mov [rip + {j} + 240], rsp",
        "mov rsp, [rip + {j} + 256]",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        j = sym JUMP,
    )
}
