//! The machine code of trampolines and return stubs.
//!
//! A **trampoline** is where a patched place jumps to. It builds a `pt_regs` on the application's stack, calls `skep_hit`,
//! and gives *every* general and vector register back: a compiler may know that a function leaves even `r10` alone
//! (inter-procedural register allocation), so the ABI's "caller-saved" is no licence.
//!
//! A **return stub** stands in for a function's return address. The trampoline drops the address from the stack and jumps
//! to the stub, which `call`s the function's body: the address of the stub then stands where the return address stood, the
//! processor's return-stack stays balanced, and a shadow stack would too. Where the function returns, the stub pushes its
//! number over that place and goes on to the common part.

use skep_runtime::session::STUB_SIZE;

/// Offset of fields in `pt_regs`, by the order of the pushes.
const REGS: i32 = 168;
const REG_SP: i32 = 152;
const REG_SS: i32 = 160;
const XMM: i32 = 256;

/// A trampoline to make.
pub struct Trampoline {
    /// Address of the `Site`.
    pub site: u64,
    /// The probed address.
    pub ip: u64,
    /// Address of `skep_hit`.
    pub hit: u64,
    /// Inside a function the red zone and the flags are in use; at its entry neither is.
    pub inside: bool,
    /// `hit` is a `skep_guard`, which may answer in the function's place.
    pub guard: bool,
}

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

    /// Calls `function` on an aligned stack with the vector registers saved; rdi and what else it takes are set by `args`.
    fn call(&mut self, function: u64, args: impl FnOnce(&mut Self)) -> &mut Self {
        args(self);
        self.put(&[0x48, 0x89, 0xe5]); // mov rbp, rsp
        self.imm32(&[0x48, 0x81, 0xec], XMM); // sub rsp, 256
        self.put(&[0x48, 0x83, 0xe4, 0xf0]); // and rsp, -16
        self.vectors(0x29); // movaps [rsp+…], xmm
        self.put(&[0xfc]); // cld
        self.imm64(&[0x48, 0xb8], function); // mov rax, function
        self.put(&[0xff, 0xd0]); // call rax
        self.vectors(0x28); // movaps xmm, [rsp+…]
        self.put(&[0x48, 0x89, 0xec]) // mov rsp, rbp
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

/// The code of a trampoline; the body copy is to follow it directly.
pub fn trampoline(t: &Trampoline) -> Vec<u8> {
    let mut code = Code::default();
    let skip = if t.inside { 128 } else { 0 };
    if t.inside {
        code.raise(-skip);
    }
    code.push_regs(t.ip).fix_rsp(skip);
    code.call(t.hit, |code| {
        code.imm64(&[0x48, 0xbf], t.site); // mov rdi, site
        code.put(&[0x48, 0x89, 0xe6]); // mov rsi, rsp
    });
    if t.inside {
        // An instruction inside a function has no return address to take, so the answer is always "run on".
        code.pop_regs().raise(24); // to the flags
        code.put(&[0x9d]); // popfq
        code.raise(16 + skip);
        return code.0;
    }
    if t.guard {
        let mut answer = Code::default();
        answer.pop_regs().raise(REGS - 120);
        answer.put(&[0xc3]); // ret
        code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
        code.imm32(&[0x0f, 0x84], answer.0.len() as i32); // jz past it
        code.put(&answer.0);
        code.pop_regs().raise(REGS - 120);
        return code.0;
    }
    // Through a return stub: rax is its address. It travels in the place of ss, which is 16 below the final rsp and thus safe
    // from signal handlers (red zone).
    let mut stub = Code::default();
    stub.imm32(&[0x48, 0x89, 0x84, 0x24], REG_SS); // mov [rsp+160], rax
    stub.pop_regs().raise(REGS - 120 + 8); // drops the return address, too
    stub.put(&[0xff, 0x64, 0x24, 0xf0]); // jmp [rsp-16]
    code.put(&[0x48, 0x85, 0xc0]); // test rax, rax
    code.imm32(&[0x0f, 0x84], stub.0.len() as i32); // jz past it
    code.put(&stub.0);
    code.pop_regs().raise(REGS - 120);
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
    code.push_regs(0).fix_rsp(8);
    // push_regs used rax as a scratch register after saving it.
    code.call(s.ret, |code| {
        code.imm64(&[0x48, 0xbf], s.proc); // mov rdi, proc
        code.imm32(&[0x8b, 0xb4, 0x24], REGS); // mov esi, [rsp+168]
        code.put(&[0x48, 0x89, 0xe2]); // mov rdx, rsp
    });
    code.imm32(&[0x48, 0x89, 0x84, 0x24], REGS); // mov [rsp+168], rax: the real return address
    code.pop_regs().raise(REGS - 120);
    code.put(&[0xc3]); // ret
    code.0
}

/// Bytes of a trampoline at most, its body copy not included.
pub const TRAMPOLINE_MAX: u64 = 560;

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

    fn decode(bytes: &[u8], ip: u64) -> Vec<Instruction> {
        Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).into_iter().collect()
    }

    #[test]
    fn pt_regs_offsets() {
        use skep_ebpf::uapi::PtRegs;
        assert_eq!(size_of::<PtRegs>(), REGS as usize);
        assert_eq!(std::mem::offset_of!(PtRegs, rip), 128);
        assert_eq!(std::mem::offset_of!(PtRegs, rsp), REG_SP as usize);
        assert_eq!(std::mem::offset_of!(PtRegs, ss), REG_SS as usize);
    }

    #[test]
    fn trampolines_are_balanced() {
        for (inside, guard) in [(false, false), (true, false), (false, true)] {
            let code = trampoline(&Trampoline { site: 0x1122, ip: 0x3344, hit: 0x5566, inside, guard });
            assert!(code.len() as u64 <= TRAMPOLINE_MAX, "{}", code.len());
            let insns = decode(&code, 0x1000);
            assert!(insns.iter().all(|i| !i.is_invalid()));
            let pushes = insns.iter().filter(|i| i.mnemonic() == Mnemonic::Push).count();
            assert_eq!(pushes, 20);
            let saves = insns.iter().filter(|i| i.mnemonic() == Mnemonic::Movaps).count();
            assert_eq!(saves, 32);
            if !inside {
                let jump = insns.iter().find(|i| i.mnemonic() == Mnemonic::Je).unwrap();
                let target = insns.iter().find(|i| i.ip() == jump.near_branch_target()).unwrap();
                assert_eq!(target.mnemonic(), Mnemonic::Pop);
            }
        }
    }

    #[test]
    fn stubs_point_at_their_entries() {
        let s = Stubs { stubs: 0x10000, count: 3, rets: 0x9000, ret_size: 64, body: 8, proc: 0x77, ret: 0x88 };
        let code = stubs(&s);
        assert!((code.len() + 16 + trap_handler(1, 2).len()) as u64 <= stubs_size(3));
        let insns = decode(&code, s.stubs);
        assert!(insns.iter().all(|i| !i.is_invalid()));
        let calls: Vec<u64> =
            insns.iter().filter(|i| i.is_ip_rel_memory_operand()).map(|i| i.ip_rel_memory_address()).collect();
        assert_eq!(calls, [0x9008, 0x9048, 0x9088]);
        let common = s.stubs + 3 * STUB_SIZE;
        let jumps = insns.iter().filter(|i| i.mnemonic() == Mnemonic::Jmp);
        assert!(jumps.clone().count() == 3 && jumps.map(|i| i.near_branch_target()).all(|t| t == common));
        assert_eq!(insns.last().unwrap().mnemonic(), Mnemonic::Ret);
        for (k, insn) in insns.iter().filter(|i| i.ip() < common && i.mnemonic() == Mnemonic::Push).enumerate() {
            assert_eq!((insn.ip(), insn.immediate32to64()), (s.stubs + k as u64 * STUB_SIZE + 6, k as i64));
        }
    }
}
