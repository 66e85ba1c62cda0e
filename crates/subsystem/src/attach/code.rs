//! The machine code of trampolines and return stubs.
//!
//! A **trampoline** is where a patched place jumps to. It builds a `pt_regs` on the application's stack, calls `skep_hit`,
//! and gives *every* general register back: a compiler may know that a function leaves even `r10` alone (inter-procedural
//! register allocation), so the ABI's "caller-saved" is no licence. What the call keeps and no program reads is not stored;
//! vector registers are saved only for an agent that uses any.
//!
//! A **return stub** stands in for a function's return address. The trampoline drops the address from the stack and jumps
//! to the stub, which `call`s the function's body: the address of the stub then stands where the return address stood, the
//! processor's return-stack stays balanced, and a shadow stack would too. Where the function returns, the stub pushes its
//! number over that place and goes on to the common part.

use skep_runtime::session::STUB_SIZE;

use super::request::Registers;
pub use call::CallSide;

mod call;
#[cfg(test)]
mod tests;

/// Bytes of the instruction that a trampoline goes on with behind `skep_enter`.
const RESTORE_RAX: u64 = 5;
/// Offset of fields in `pt_regs`, by the order of the pushes.
const REGS: i32 = 168;
const REG_SP: i32 = 152;
const XMM: i32 = 256;
/// What functions may use below their stack pointer.
const RED_ZONE: i32 = 128;

/// Words of a `pt_regs`.
const ORIG_RAX: u32 = 15;
const RIP: u32 = 16;
const CS: u32 = 17;
const FLAGS: u32 = 18;
const SP: u32 = 19;
const SS: u32 = 20;
/// Registers that a call may change, with their words: r11 to r8, rax, rcx, rdx, rsi, rdi.
const CHANGED: [(u32, u8); 9] = [(6, 11), (7, 10), (8, 9), (9, 8), (10, 0), (11, 1), (12, 2), (13, 6), (14, 7)];
/// Those that quick hits may change: r8, rax, rcx, rdx, rsi, rdi.
const CHANGED_QUICKLY: [(u32, u8); 6] = [(9, 8), (10, 0), (11, 1), (12, 2), (13, 6), (14, 7)];
/// Registers that a call keeps: r15 to r12, rbp, rbx.
const KEPT: [(u32, u8); 6] = [(0, 15), (1, 14), (2, 13), (3, 12), (4, 5), (5, 3)];

/// A trampoline to make.
pub struct Trampoline {
    /// Address of the `Site`.
    pub site: u64,
    /// The probed address.
    pub ip: u64,
    /// Address of `skep_hit`.
    pub hit: u64,
    /// Address of `skep_enter`, if that is to be asked first.
    pub enter: Option<u64>,
    /// Inside a function the red zone and the flags are in use; at its entry neither is.
    pub inside: bool,
    /// `hit` is a `skep_guard`, which may answer in the function's place.
    pub guard: bool,
    /// What programs read of the registers.
    pub registers: Registers,
    /// `hit` is a `skep_quick_hit`.
    pub quick: bool,
    /// `hit` uses vector registers.
    pub vectors: bool,
    /// The function is Go's: its stack is too small for us, and here is another.
    pub stacks: Option<u64>,
    /// The probed instruction is a `ret`; `hit` is a `skep_leave`.
    pub leaves: bool,
    /// The probed place is before or behind a system call; `hit` is a `skep_call` or `skep_called`.
    pub call: Option<CallSide>,
}

/// Stacks in the area that [`Trampoline::stacks`] names, of [`GO_STACK`] bytes each. One that is in use begins with a 1.
pub const GO_STACKS: u64 = 256;
/// See [`GO_STACKS`].
pub const GO_STACK: u64 = 1 << 16;
const _: () = assert!(GO_STACKS * GO_STACK < 1 << 31 && GO_STACK.is_power_of_two() && GO_STACKS.is_power_of_two());

/// A growing piece of code.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn imm32(&mut self, opcode: &[u8], value: i32) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    fn imm64(&mut self, opcode: &[u8], value: u64) -> &mut Self {
        self.put(opcode).put(&value.to_le_bytes())
    }

    /// Pushes ss, rsp, flags, cs, `ip`, -1 and the general registers: a `pt_regs` whose rsp is still to be set.
    fn push_regs(&mut self, ip: u64) -> &mut Self {
        self.put(&[0x6a, 0x2b]); // push 0x2b
        self.put(&[0x54, 0x9c]); // push rsp; pushfq
        self.put(&[0x6a, 0x33]); // push 0x33
        self.put(&[0x50]); // push rax: place of rip
        self.put(&[0x6a, 0xff]); // push -1
        self.put(&[0x57, 0x56, 0x52, 0x51, 0x50]); // push rdi, rsi, rdx, rcx, rax
        self.put(&[0x41, 0x50, 0x41, 0x51, 0x41, 0x52, 0x41, 0x53]); // push r8..r11
        self.put(&[0x53, 0x55]); // push rbx, rbp
        self.put(&[0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]); // push r12..r15
        self.imm64(&[0x48, 0xb8], ip); // mov rax, ip
        self.imm32(&[0x48, 0x89, 0x84, 0x24], 128) // mov [rsp+128], rax
    }

    /// Sets the rsp of the `pt_regs` to its own end plus `more`.
    fn fix_rsp(&mut self, more: i32) -> &mut Self {
        self.imm32(&[0x48, 0x8d, 0x84, 0x24], REGS + more); // lea rax, [rsp+…]
        self.imm32(&[0x48, 0x89, 0x84, 0x24], REG_SP) // mov [rsp+152], rax
    }

    /// Calls `function`, with the vector registers saved if it uses them; rdi and what else it takes are set by `args`.
    fn call(&mut self, function: u64, vectors: bool, args: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        args(self);
        if !vectors {
            // What has no vector registers asks for no alignment of the stack, and clears the direction flag where it needs it.
            self.imm64(&[0x48, 0xb8], function); // mov rax, function
            return self.put(&[0xff, 0xd0]); // call rax
        }
        self.put(&[0x55]); // push rbp
        self.put(&[0x48, 0x89, 0xe5]); // mov rbp, rsp
        self.imm32(&[0x48, 0x81, 0xec], XMM); // sub rsp, 256
        self.put(&[0x48, 0x83, 0xe4, 0xf0]); // and rsp, -16
        self.vectors(0x29); // movaps [rsp+…], xmm
        self.put(&[0xfc]); // cld
        self.imm64(&[0x48, 0xb8], function); // mov rax, function
        self.put(&[0xff, 0xd0]); // call rax
        self.vectors(0x28); // movaps xmm, [rsp+…]
        self.put(&[0x48, 0x89, 0xec]); // mov rsp, rbp
        self.put(&[0x5d]) // pop rbp
    }

    /// Arguments of `skep_hit`.
    fn hit_args(&mut self, site: u64) -> &mut Self {
        self.imm64(&[0x48, 0xbf], site); // mov rdi, site
        self.put(&[0x48, 0x89, 0xe6]) // mov rsi, rsp
    }

    /// `mov [rsp + 8 × word], reg`, or back with opcode 8b.
    fn mov(&mut self, opcode: u8, word: u32, reg: u8) -> &mut Self {
        let rex = 0x48 | (reg >> 3) << 2;
        let modrm = (reg & 7) << 3 | 0x04;
        match i8::try_from(word * 8) {
            Ok(0) => self.put(&[rex, opcode, modrm, 0x24]),
            Ok(at) => self.put(&[rex, opcode, modrm | 0x40, 0x24, at.cast_unsigned()]),
            Err(_) => self.imm32(&[rex, opcode, modrm | 0x80, 0x24], (word * 8).cast_signed()),
        }
    }

    fn store(&mut self, word: u32, reg: u8) -> &mut Self {
        self.mov(0x89, word, reg)
    }

    /// `mov qword [rsp + 8 × word], value`.
    fn store_imm(&mut self, word: u32, value: i32) -> &mut Self {
        self.imm32(&[0x48, 0xc7, 0x84, 0x24], (word * 8).cast_signed());
        self.put(&value.to_le_bytes())
    }

    /// Puts the flags into a `pt_regs` at rsp.
    fn save_flags(&mut self) -> &mut Self {
        self.put(&[0x9c]); // pushfq
        self.imm32(&[0x8f, 0x84, 0x24], (FLAGS * 8).cast_signed()) // pop [rsp+144], rsp as it is then
    }

    /// Fills a `pt_regs` at rsp but for its stack pointer: what may be changed, and what programs read.
    fn save(&mut self, changed: &[(u32, u8)], read: Registers, ip: u64) -> &mut Self {
        for (word, reg) in CHANGED.into_iter().chain(KEPT) {
            if read.has(word) || changed.contains(&(word, reg)) {
                self.store(word, reg);
            }
        }
        for (word, value) in [(ORIG_RAX, -1), (CS, 0x33), (SS, 0x2b)] {
            if read.has(word) {
                self.store_imm(word, value);
            }
        }
        if read.has(RIP) {
            self.imm64(&[0x48, 0xb8], ip); // mov rax, ip
            self.store(RIP, 0);
        }
        self
    }

    /// Gives back what may have been changed.
    fn restore(&mut self, changed: &[(u32, u8)]) -> &mut Self {
        for &(word, reg) in changed {
            self.mov(0x8b, word, reg);
        }
        self
    }

    /// Calls `skep_hit` or `skep_quick_hit`, with a `pt_regs` at rsp.
    fn call_hit(&mut self, t: &Trampoline) -> &mut Self {
        self.call(t.hit, t.vectors, |code| match t.quick {
            true => code.imm64(&[0x48, 0xbf], t.site), // mov rdi, site
            false => code.hit_args(t.site),
        })
    }

    /// Gives back the flags; rax and rcx are changed. `popfq` is slow, and needed only for the direction flag.
    fn restore_flags(&mut self) -> &mut Self {
        self.mov(0x8b, FLAGS, 0); // mov rax, flags
        let mut slow = Code::default();
        slow.put(&[0x50, 0x9d]); // push rax; popfq
        let mut fast = Code::default();
        fast.put(&[0x89, 0xc1]); // mov ecx, eax
        fast.put(&[0xc1, 0xe9, 0x0b]); // shr ecx, 11
        fast.put(&[0x83, 0xe1, 0x01]); // and ecx, 1: overflow
        fast.put(&[0x88, 0xc4]); // mov ah, al: the others
        fast.put(&[0x88, 0xc8]); // mov al, cl
        fast.put(&[0x04, 0x7f]); // add al, 127: overflows if it was 1
        fast.put(&[0x9e]); // sahf
        fast.put(&[0xeb, slow.0.len() as u8]); // jmp past the slow way
        self.put(&[0xf6, 0xc4, 0x04]); // test ah, 4: direction
        self.put(&[0x75, fast.0.len() as u8]); // jnz to the slow way
        self.put(&fast.0).put(&slow.0)
    }

    /// `movaps` between xmm0–15 and the 256 bytes at rsp.
    fn vectors(&mut self, opcode: u8) {
        for n in 0..16u8 {
            if n >= 8 {
                self.put(&[0x44]);
            }
            // mod 2 (disp32), rm 4 (sib), sib: base rsp
            self.imm32(&[0x0f, opcode, 0x84 | (n & 7) << 3, 0x24], i32::from(n) * 16);
        }
    }

    /// Pops the general registers; rsp is then 120 bytes into the `pt_regs`, at `orig_rax`.
    fn pop_regs(&mut self) -> &mut Self {
        self.put(&[0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c]); // pop r15..r12
        self.put(&[0x5d, 0x5b]); // pop rbp, rbx
        self.put(&[0x41, 0x5b, 0x41, 0x5a, 0x41, 0x59, 0x41, 0x58]); // pop r11..r8
        self.put(&[0x58, 0x59, 0x5a, 0x5e, 0x5f]) // pop rax, rcx, rdx, rsi, rdi
    }

    /// `lea rsp, [rsp+n]`, which leaves the flags alone.
    fn raise(&mut self, n: i32) -> &mut Self {
        self.imm32(&[0x48, 0x8d, 0xa4, 0x24], n)
    }
}

impl Trampoline {
    /// The registers that the call may change.
    fn changed(&self) -> &'static [(u32, u8)] {
        if self.quick { &CHANGED_QUICKLY } else { &CHANGED }
    }
}

/// The code of a trampoline; the body copy is to follow it directly.
pub fn trampoline(t: &Trampoline) -> Vec<u8> {
    if let Some(call) = &t.call {
        return call::trampoline(t, call);
    }
    match (t.stacks, t.guard, t.inside) {
        (Some(stacks), ..) => in_go(t, stacks),
        (None, true, _) => at_guard(t),
        (None, false, true) => inside(t),
        (None, false, false) => {
            let mut code = asking(t);
            code.extend(at_entry(t));
            code
        }
    }
}

/// Where in a trampoline the way begins that `skep_enter` leaves open; 0 if it is not asked.
pub fn slow(t: &Trampoline) -> u64 {
    match (t.stacks, t.guard, t.inside) {
        (None, false, false) => (asking(t).len() as u64).saturating_sub(RESTORE_RAX),
        _ => 0,
    }
}

/// Jumps to `skep_enter`, if that is to be asked.
fn asking(t: &Trampoline) -> Vec<u8> {
    let mut code = Code::default();
    if let Some(enter) = t.enter {
        code.put(&[0x48, 0x89, 0x44, 0x24, 0xf8]); // mov [rsp-8], rax
        code.imm64(&[0x48, 0xb8], t.site); // mov rax, site
        code.imm64(&[0xff, 0x25, 0, 0, 0, 0], enter); // jmp [rip]
        code.put(&[0x48, 0x8b, 0x44, 0x24, 0xf8]); // mov rax, [rsp-8]
    }
    code.0
}

/// At the entry of a function of Go, or at its `ret`. Its stack may have no byte left: the linker counts them. So one of ours
/// is taken before anything is stored; r12 finds it, kept meanwhile in xmm15, which Go's functions have be zero (those in
/// assembler take it for scratch) where they begin and end. The flags are free there, too.
///
/// Go's own signal handlers see an address that is in no function of Go, and leave the goroutine where it is. A hit in such a
/// handler takes another stack.
fn in_go(t: &Trampoline, stacks: u64) -> Vec<u8> {
    const KEEP: [u8; 5] = [0x66, 0x4d, 0x0f, 0x6e, 0xfc]; // movq xmm15, r12
    const GIVE_BACK: [u8; 9] = [0x66, 0x4d, 0x0f, 0x7e, 0xfc, 0x45, 0x0f, 0x57, 0xff]; // movq r12, xmm15; xorps xmm15, xmm15
    const SAVED: i32 = GO_STACK as i32 - 8;
    let mut take = Code::default();
    take.put(&[0xf0, 0x41, 0x0f, 0xba, 0x2c, 0x24, 0x00]); // lock bts dword [r12], 0
    let mut next = Code::default();
    next.put(&[0xf3, 0x90]); // pause
    // Ten bytes on from the end of this instruction.
    next.imm32(&[0x4c, 0x2b, 0x25], 9); // sub r12, [rip+9]
    next.imm32(&[0x49, 0x81, 0xc4], GO_STACK as i32); // add r12, the next one
    let (again, area) = (7 + 7 + take.0.len() + 2 + next.0.len() + 2, next.0.len() + 2);
    let mut code = Code::default();
    code.put(&KEEP);
    // Threads on different stacks begin at different ones.
    code.put(&[0x49, 0x89, 0xe4]); // mov r12, rsp
    code.put(&[0x49, 0xc1, 0xe4, 0x05]); // shl r12, 5
    code.imm32(&[0x49, 0x81, 0xe4], ((GO_STACKS - 1) * GO_STACK) as i32); // and r12, distances
    code.imm32(&[0x4c, 0x03, 0x25], (take.0.len() + 2 + area) as i32); // add r12, [rip+…]
    code.put(&take.0);
    code.put(&[0x73, (area + 8) as u8]); // jnc past the area's address
    code.put(&next.0);
    code.put(&[0xeb, (again as u8).wrapping_neg()]); // jmp to the and
    code.put(&stacks.to_le_bytes());
    code.imm32(&[0x49, 0x89, 0xa4, 0x24], SAVED); // mov [r12+…], rsp
    code.imm32(&[0x49, 0x8d, 0xa4, 0x24], SAVED); // lea rsp, [r12+…]
    code.put(&GIVE_BACK);

    code.raise(-REGS);
    if t.registers.has(FLAGS) {
        code.save_flags();
    }
    code.save(&CHANGED, if t.leaves { t.registers.without(RIP) } else { t.registers }, t.ip);
    code.imm32(&[0x48, 0x8b, 0x84, 0x24], REGS); // mov rax, [rsp+168]: the application's rsp
    if t.leaves {
        code.put(&[0x48, 0x8b, 0x08]); // mov rcx, [rax]: where it returns to
        code.store(RIP, 1);
        code.put(&[0x48, 0x83, 0xc0, 0x08]); // add rax, 8
    }
    code.imm32(&[0x48, 0x89, 0x84, 0x24], REG_SP); // mov [rsp+152], rax
    code.call(t.hit, t.vectors, |code| code.hit_args(t.site));
    code.restore(&CHANGED).raise(REGS);

    code.put(&KEEP);
    code.imm32(&[0x4c, 0x8d, 0xa4, 0x24], -SAVED); // lea r12, [rsp-…]
    code.put(&[0x48, 0x8b, 0x24, 0x24]); // mov rsp, [rsp]
    code.imm32(&[0x41, 0xc7, 0x04, 0x24], 0); // mov dword [r12], 0
    code.put(&GIVE_BACK);
    code.0
}

/// Registers may be changed, and the function may be over.
fn at_guard(t: &Trampoline) -> Vec<u8> {
    let mut code = Code::default();
    code.push_regs(t.ip).fix_rsp(0);
    code.call(t.hit, t.vectors, |code| code.hit_args(t.site));
    let mut answer = Code::default();
    answer.pop_regs().raise(REGS - 120);
    answer.put(&[0xc3]); // ret
    code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
    code.imm32(&[0x0f, 0x84], answer.0.len() as i32); // jz past it
    code.put(&answer.0);
    code.pop_regs().raise(REGS - 120);
    code.0
}

/// An instruction inside a function has no return address to take, so the answer is always "run on".
fn inside(t: &Trampoline) -> Vec<u8> {
    let mut code = Code::default();
    code.raise(-RED_ZONE - REGS).save_flags();
    code.save(t.changed(), t.registers, t.ip).fix_rsp(RED_ZONE).call_hit(t);
    code.restore_flags().restore(t.changed()).raise(REGS + RED_ZONE);
    code.0
}

fn at_entry(t: &Trampoline) -> Vec<u8> {
    let mut code = Code::default();
    // Its place in the `pt_regs` that follows is where the function's red zone would be.
    code.put(&[0x48, 0x89, 0x64, 0x24, (REG_SP - REGS) as u8]); // mov [rsp-16], rsp
    code.raise(-REGS);
    if t.registers.has(FLAGS) {
        code.save_flags();
    }
    code.save(t.changed(), t.registers, t.ip).call_hit(t);
    // Through a return stub: rax is its address. It travels in the place of ss, which is 16 below the final rsp and thus safe
    // from signal handlers (red zone).
    let mut stub = Code::default();
    stub.store(SS, 0); // rax
    stub.restore(t.changed()).raise(REGS + 8); // drops the return address, too
    stub.put(&[0xff, 0x64, 0x24, 0xf0]); // jmp [rsp-16]
    code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
    code.imm32(&[0x0f, 0x84], stub.0.len() as i32); // jz past it
    code.put(&stub.0);
    code.restore(t.changed()).raise(REGS);
    code.0
}

/// Return stubs `0..count` at `stubs`, and the common part behind them. Stub `k` calls `*(rets + k × ret_size + body)`.
pub struct Stubs {
    /// Address of stub 0.
    pub stubs: u64,
    /// Number of stubs.
    pub count: u32,
    /// Address of the first `RetEntry`.
    pub rets: u64,
    /// Bytes from one entry to the next.
    pub ret_size: u64,
    /// Offset of `body` in an entry.
    pub body: u64,
    /// Address of the `Proc`.
    pub proc: u64,
    /// Address of `skep_return`.
    pub ret: u64,
    /// It is a `skep_quick_return`.
    pub quick: bool,
    /// What programs read of the registers.
    pub registers: Registers,
    /// `ret` uses vector registers.
    pub vectors: bool,
}

/// Bytes that [`stubs`] and [`trap_handler`] make at most.
pub const fn stubs_size(count: u32) -> u64 {
    count as u64 * STUB_SIZE + 2048
}

/// The handler of `SIGTRAP`: asks `trap` (`skep_trap`), and runs the target's own handler in its place if that is the answer.
pub fn trap_handler(proc: u64, trap: u64) -> Vec<u8> {
    let mut code = Code::default();
    code.put(&[0x57, 0x56, 0x52]); // push rdi, rsi, rdx; the stack is aligned then
    code.imm64(&[0x48, 0xb9], proc); // mov rcx, proc
    code.imm64(&[0x48, 0xb8], trap); // mov rax, trap
    code.put(&[0xff, 0xd0]); // call rax
    code.put(&[0x5a, 0x5e, 0x5f]); // pop rdx, rsi, rdi
    code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
    code.put(&[0x74, 0x02]); // jz past the jump
    code.put(&[0xff, 0xe0]); // jmp rax
    code.put(&[0xc3]); // ret
    code.0
}

/// The code of the stubs. The entries must lie within 2 GiB.
pub fn stubs(s: &Stubs) -> Vec<u8> {
    let mut code = Code::default();
    let end = u64::from(s.count) * STUB_SIZE;
    for k in 0..u64::from(s.count) {
        let at = k * STUB_SIZE;
        let cell = s.rets + k * s.ret_size + s.body;
        code.imm32(&[0xff, 0x15], cell.wrapping_sub(s.stubs + at + 6) as i32); // call [rip+…]
        code.imm32(&[0x68], k as i32); // push k
        code.imm32(&[0xe9], (end - (at + STUB_SIZE)) as i32); // jmp common
    }
    // The pushed number stands where the return address stood; rsp after the return is 8 above it.
    code.raise(-REGS);
    if s.registers.has(FLAGS) {
        code.save_flags();
    }
    // `ret` tells rip.
    let changed: &[_] = if s.quick { &CHANGED_QUICKLY } else { &CHANGED };
    code.save(changed, s.registers.without(RIP), 0);
    if s.registers.has(SP) {
        code.fix_rsp(8);
    }
    code.call(s.ret, s.vectors, |code| {
        code.imm64(&[0x48, 0xbf], s.proc); // mov rdi, proc
        code.imm32(&[0x8b, 0xb4, 0x24], REGS); // mov esi, [rsp+168]
        if s.quick { code } else { code.put(&[0x48, 0x89, 0xe2]) } // mov rdx, rsp
    });
    code.imm32(&[0x48, 0x89, 0x84, 0x24], REGS); // mov [rsp+168], rax: the real return address
    code.restore(changed).raise(REGS);
    code.put(&[0xc3]); // ret
    code.0
}

/// Bytes of a trampoline at most, its body copy not included.
pub const TRAMPOLINE_MAX: u64 = 640;
