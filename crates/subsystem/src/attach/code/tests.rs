//! Trampolines and stubs, decoded and run.

use super::*;
use iced_x86::{Code as Op, Decoder, DecoderOptions, Instruction, Mnemonic, Register};

fn decode(bytes: &[u8], ip: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).into_iter().collect()
}

#[test]
fn pt_regs_offsets() {
    use skep_ebpf::uapi::PtRegs;
    assert_eq!(size_of::<PtRegs>(), REGS as usize);
    assert_eq!(Registers::COUNT as usize, REGS as usize / 8);
    let word = |offset: usize| (offset / 8) as u32;
    assert_eq!(word(std::mem::offset_of!(PtRegs, orig_rax)), ORIG_RAX);
    assert_eq!(word(std::mem::offset_of!(PtRegs, rip)), RIP);
    assert_eq!(word(std::mem::offset_of!(PtRegs, cs)), CS);
    assert_eq!(word(std::mem::offset_of!(PtRegs, rflags)), FLAGS);
    assert_eq!(std::mem::offset_of!(PtRegs, rsp), REG_SP as usize);
    assert_eq!(word(std::mem::offset_of!(PtRegs, rsp)), SP);
    assert_eq!(word(std::mem::offset_of!(PtRegs, ss)), SS);
    // Numbers of registers in instructions.
    macro_rules! at {
        ($($name:ident $number:literal),*) => { [$((word(std::mem::offset_of!(PtRegs, $name)), $number)),*] };
    }
    assert_eq!(CHANGED, at![r11 11, r10 10, r9 9, r8 8, rax 0, rcx 1, rdx 2, rsi 6, rdi 7]);
    assert_eq!(KEPT, at![r15 15, r14 14, r13 13, r12 12, rbp 5, rbx 3]);
}

#[test]
fn trampolines_are_balanced() {
    for (inside, guard) in [(false, false), (true, false), (false, true)] {
        for (registers, vectors) in
            [(Registers::ALL, true), (Registers::ALL, false), (Registers::NONE, true), (Registers::NONE, false)]
        {
            let (site, ip, hit, enter, stacks, leaves) = (0x1122, 0x3344, 0x5566, None, None, false);
            let call = None;
            let quick = !vectors && registers == Registers::NONE;
            let t = Trampoline { site, ip, hit, enter, inside, guard, registers, quick, vectors, stacks, leaves, call };
            let code = trampoline(&t);
            assert!(code.len() as u64 <= TRAMPOLINE_MAX, "{}", code.len());
            let insns = decode(&code, 0x1000);
            assert!(insns.iter().all(|i| !i.is_invalid()));
            let saves = insns.iter().filter(|i| i.mnemonic() == Mnemonic::Movaps).count();
            assert_eq!(saves, if vectors { 32 } else { 0 });
            if !inside {
                let jump = insns.iter().find(|i| i.mnemonic() == Mnemonic::Je).unwrap();
                assert!(insns.iter().any(|i| i.ip() == jump.near_branch_target()));
            }
            // Straight on: what is taken off the stack is given back.
            let mut depth = 0i64;
            let mut at = 0x1000;
            while let Some(insn) = insns.iter().find(|i| i.ip() == at) {
                at = match insn.mnemonic() {
                    Mnemonic::Je => insn.near_branch_target(),
                    Mnemonic::Jmp => insn.near_branch_target(),
                    _ => insn.next_ip(),
                };
                match insn.mnemonic() {
                    Mnemonic::Lea if insn.op0_register() == Register::RSP => {
                        depth += insn.memory_displacement64().cast_signed();
                    }
                    Mnemonic::Call => {}
                    Mnemonic::Sub | Mnemonic::And if insn.op0_register() == Register::RSP => assert!(vectors),
                    Mnemonic::Mov if insn.op0_register() == Register::RSP => assert!(vectors),
                    _ => depth += i64::from(insn.stack_pointer_increment()),
                }
            }
            assert_eq!((at, depth), (0x1000 + code.len() as u64, 0));
        }
    }
}

#[test]
fn functions_with_return_probes_alone_ask_first() {
    let (registers, vectors, inside, guard) = (Registers::NONE, false, false, false);
    let with = |enter| Trampoline {
        site: 0x1122,
        ip: 0x3344,
        hit: 0x5566,
        enter,
        inside,
        guard,
        registers,
        quick: false,
        vectors,
        stacks: None,
        leaves: false,
        call: None,
    };
    let (asking, plain) = (with(Some(0x7788_99aa_bbcc)), with(None));
    let code = trampoline(&asking);
    let at = slow(&asking) as usize;
    assert_eq!(slow(&plain), 0);
    // The question, ending in a jump by an address that follows it.
    let insns = decode(&code[..at - 8], 0x1000);
    let [save, site, jump] = &insns[..] else { panic!("{insns:?}") };
    let own_rax = |i: &Instruction| (i.memory_base(), i.memory_displacement64().cast_signed()) == (Register::RSP, -8);
    assert!(save.code() == Op::Mov_rm64_r64 && save.op1_register() == Register::RAX && own_rax(save));
    assert_eq!((site.code(), site.op0_register(), site.immediate64()), (Op::Mov_r64_imm64, Register::RAX, 0x1122));
    assert_eq!((jump.code(), jump.ip_rel_memory_address()), (Op::Jmp_rm64, jump.next_ip()));
    assert_eq!(code[at - 8..at], 0x7788_99aa_bbcc_u64.to_le_bytes());
    // The way that it leaves open.
    let restore = decode(&code[at..at + RESTORE_RAX as usize], 0)[0];
    assert!(restore.code() == Op::Mov_r64_rm64 && restore.op0_register() == Register::RAX && own_rax(&restore));
    assert_eq!(code[at + RESTORE_RAX as usize..], trampoline(&plain));
}

/// Runs the trampoline's own code in this process, with a function that ruins what it may.
#[test]
fn all_registers_and_flags_come_back() {
    let both = [false, true];
    let ways = [(false, false), (true, false), (false, true)];
    let kinds = both.map(|inside| ways.map(|way| [Registers::NONE, Registers::ALL].map(|r| (inside, way, r))));
    let kinds: Vec<(bool, (bool, bool), Registers)> = kinds.concat().concat();
    let codes = run::place(kinds.iter().map(|&(inside, (vectors, quick), registers)| {
        let hit = if quick { run::quick_function() } else { run::function() };
        let (site, ip, enter, guard, stacks, leaves) = (1, 0x3344, None, false, None, false);
        trampoline(&Trampoline {
            site,
            ip,
            hit,
            enter,
            inside,
            guard,
            registers,
            quick,
            vectors,
            stacks,
            leaves,
            call: None,
        })
    }));
    for ((inside, _, registers), code) in kinds.into_iter().zip(codes) {
        let flags_in = [0x202u64, 0x203, 0x282, 0x242, 0x216, 0xa02, 0xad7, 0x602, 0xed7];
        for flags in flags_in.into_iter().filter(|f| inside || f & 0x400 == 0) {
            let seen = run::through(code, flags);
            let [before, after] = seen.general;
            assert_eq!(before, after);
            if inside {
                assert_eq!(seen.flags & 0xcd5, flags & 0xcd5, "{flags:#x}");
            }
            if registers == Registers::ALL {
                let r = seen.regs;
                assert_eq!((r.rip, r.cs, r.ss, r.orig_rax), (0x3344, 0x33, 0x2b, u64::MAX));
                assert_eq!(r.rflags & 0xcd5, flags & 0xcd5);
                let kept = [r.rbx, r.rbp, r.r12, r.r13, r.r14, r.r15];
                let changed = [r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11];
                assert_eq!([&kept[..], &changed[..]].concat(), before[..15]);
                assert_eq!(r.rsp, before[15]);
            }
        }
    }
    all_comes_back_at_system_calls();
}

/// As above, before and behind system calls. What the processor overwrites in the call may change before it.
fn all_comes_back_at_system_calls() {
    let sides = [false, true].map(|exit| [Registers::NONE, Registers::STACK, Registers::ALL].map(|r| (exit, r)));
    let kinds = [false, true].map(|flags| sides.map(|side| side.map(|(exit, r)| (exit, r, flags)))).concat().concat();
    let codes = run::place(kinds.iter().map(|&(exit, registers, flags)| {
        let call = CallSide { number: Some(257), exit, flags, back: 0x3344 };
        let (site, ip, hit, inside, call) = (1, 0x3340, run::function(), true, Some(call));
        let (enter, guard, stacks, leaves, vectors) = (None, false, None, false, false);
        let quick = false;
        let t = Trampoline { site, ip, hit, enter, inside, guard, registers, quick, vectors, stacks, leaves, call };
        assert!(trampoline(&t).len() as u64 <= TRAMPOLINE_MAX);
        trampoline(&t)
    }));
    for ((exit, registers, needed), code) in kinds.into_iter().zip(codes) {
        for flags in [0x202u64, 0x203, 0x282, 0xa02, 0xad7, 0xed7].into_iter().filter(|f| needed || f & 0x400 == 0) {
            let mut seen = run::through(code, flags);
            let [before, after] = &mut seen.general;
            for n in [7, 14].into_iter().filter(|_| !exit) {
                (before[n], after[n]) = (0, 0);
            }
            assert_eq!(before, after);
            if needed {
                assert_eq!(seen.flags & 0xcd5, flags & 0xcd5, "{flags:#x}");
            }
            let r = seen.regs;
            if registers != Registers::NONE {
                assert_eq!((r.rip, r.rsp, r.rbp), (0x3344, before[15], before[1]));
            }
            if registers == Registers::ALL {
                assert_eq!([r.rbx, r.r12, r.rdi, r.r10], [before[0], before[2], before[10], before[13]]);
            }
        }
    }
}

/// Of Go's stack not a byte is touched, and a stack that is in use is passed over.
#[test]
fn in_go_all_is_kept_and_nothing_is_stored_on_its_stack() {
    let stacks = run::stacks();
    let kinds = [Registers::NONE, Registers::ALL].map(|r| [false, true].map(|leaves| (leaves, r))).concat();
    let codes = run::place(kinds.iter().map(|&(leaves, registers)| {
        trampoline(&Trampoline {
            site: 1,
            ip: 0x3344,
            hit: run::function(),
            enter: None,
            inside: false,
            guard: false,
            registers,
            quick: false,
            vectors: leaves,
            stacks: Some(stacks),
            leaves,
            call: None,
        })
    }));
    let there = |insn: &Instruction| insn.memory_base() == Register::RSP || insn.stack_pointer_increment() != 0;
    let t = Trampoline {
        site: 1,
        ip: 2,
        hit: 3,
        enter: None,
        inside: false,
        guard: false,
        registers: Registers::ALL,
        quick: false,
        vectors: false,
        stacks: Some(4),
        leaves: true,
        call: None,
    };
    let insns = decode(&trampoline(&t), 0);
    let ours = |n: &usize| insns[*n].op0_register() == Register::RSP;
    let switches: Vec<usize> = (0..insns.len()).filter(ours).collect();
    let (first, last) = (switches[0], switches[switches.len() - 1]);
    assert!(!insns[..first].iter().any(there) && !insns[last + 1..].iter().any(there));
    for busy in [0u32, 1, GO_STACKS as u32 - 1] {
        run::occupy(stacks, busy);
        for (&(leaves, registers), &code) in kinds.iter().zip(&codes) {
            let seen = run::through(code, 0x202);
            let [before, after] = seen.general;
            assert_eq!(before, after);
            assert_eq!(run::occupied(stacks), busy);
            let r = seen.regs;
            let top = before[15] + if leaves { 8 } else { 0 };
            assert_eq!(r.rsp, top);
            if registers == Registers::ALL {
                assert_eq!(r.rip, if leaves { run::word(before[15]) } else { 0x3344 });
                let kept = [r.rbx, r.rbp, r.r12, r.r13, r.r14, r.r15];
                let changed = [r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11];
                assert_eq!([&kept[..], &changed[..]].concat(), before[..15]);
            }
        }
    }
}

#[test]
fn stubs_point_at_their_entries() {
    [false, true].into_iter().for_each(stubs_of);
}

fn stubs_of(quick: bool) {
    let (registers, vectors) = (Registers::ALL, !quick);
    let s = Stubs {
        stubs: 0x10000,
        count: 3,
        rets: 0x9000,
        ret_size: 64,
        body: 8,
        proc: 0x77,
        ret: 0x88,
        quick,
        registers,
        vectors,
    };
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

/// Runs code with all registers known.
mod run {
    use std::arch::naked_asm;

    use skep_ebpf::uapi::PtRegs;

    /// What was seen.
    pub struct Seen {
        /// rbx, rbp, r12 to r15, rax, rcx, rdx, rsi, rdi, r8 to r11, rsp: before and after.
        pub general: [[u64; 16]; 2],
        /// Flags after.
        pub flags: u64,
        /// What the function was given.
        pub regs: PtRegs,
    }

    static mut TARGET: u64 = 0;
    static mut STACK: u64 = 0;
    static mut OUT: [u64; 17] = [0; 17];
    static mut REGS: [u64; 21] = [0; 21];

    /// Stands in for the agent: keeps the `pt_regs`, and changes all that a call may change.
    #[unsafe(naked)]
    unsafe extern "C" fn ruin() -> u64 {
        naked_asm!(
            "lea rdi, [rip + {regs}]",
            "mov ecx, 21",
            "cld",
            "rep movsq",
            "mov rcx, -1",
            "mov rdx, rcx",
            "mov rsi, rcx",
            "mov rdi, rcx",
            "mov r8, rcx",
            "mov r9, rcx",
            "mov r10, rcx",
            "mov r11, rcx",
            "xor eax, eax",
            "stc",
            "ret",
            regs = sym REGS,
        )
    }

    /// Stands in for quick hits: likewise, but for what those leave alone.
    #[unsafe(naked)]
    unsafe extern "C" fn ruin_few() -> u64 {
        naked_asm!(
            "lea rsi, [rsp + 8]",
            "lea rdi, [rip + {regs}]",
            "mov ecx, 21",
            "cld",
            "rep movsq",
            "mov rcx, -1",
            "mov rdx, rcx",
            "mov rsi, rcx",
            "mov rdi, rcx",
            "mov r8, rcx",
            "xor eax, eax",
            "stc",
            "ret",
            regs = sym REGS,
        )
    }

    #[unsafe(naked)]
    unsafe extern "C" fn enter(code: u64, regs: *const u64, flags: u64) {
        naked_asm!(
            "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
            "mov [rip + {stack}], rsp",
            "mov [rip + {target}], rdi",
            "mov rax, rsi",
            "push rdx",
            "popfq",
            "mov rbx, [rax]", "mov rbp, [rax + 8]", "mov r12, [rax + 16]", "mov r13, [rax + 24]",
            "mov r14, [rax + 32]", "mov r15, [rax + 40]", "mov rcx, [rax + 56]", "mov rdx, [rax + 64]",
            "mov rsi, [rax + 72]", "mov rdi, [rax + 80]", "mov r8, [rax + 88]", "mov r9, [rax + 96]",
            "mov r10, [rax + 104]", "mov r11, [rax + 112]", "mov rax, [rax + 48]",
            "jmp qword ptr [rip + {target}]",
            stack = sym STACK, target = sym TARGET,
        )
    }

    /// Where the code goes on.
    #[unsafe(naked)]
    unsafe extern "C" fn landed() {
        naked_asm!(
            "mov [rip + {out}], rbx", "mov [rip + {out} + 8], rbp", "mov [rip + {out} + 16], r12",
            "mov [rip + {out} + 24], r13", "mov [rip + {out} + 32], r14", "mov [rip + {out} + 40], r15",
            "mov [rip + {out} + 48], rax", "mov [rip + {out} + 56], rcx", "mov [rip + {out} + 64], rdx",
            "mov [rip + {out} + 72], rsi", "mov [rip + {out} + 80], rdi", "mov [rip + {out} + 88], r8",
            "mov [rip + {out} + 96], r9", "mov [rip + {out} + 104], r10", "mov [rip + {out} + 112], r11",
            "mov [rip + {out} + 120], rsp",
            "pushfq",
            "pop qword ptr [rip + {out} + 128]",
            "cld",
            "mov rsp, [rip + {stack}]",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
            "ret",
            out = sym OUT, stack = sym STACK,
        )
    }

    /// The function for trampolines to call.
    pub fn function() -> u64 {
        ruin as *const () as u64
    }

    /// The function for trampolines of quick hits.
    pub fn quick_function() -> u64 {
        ruin_few as *const () as u64
    }

    /// Makes pieces of code executable, for good; each goes on where [`through`] sees the registers.
    pub fn place(codes: impl Iterator<Item = Vec<u8>>) -> Vec<u64> {
        let mut all = Vec::new();
        let mut places = Vec::new();
        for code in codes {
            places.push(all.len() as u64);
            all.extend(code);
            all.extend([0xff, 0x25, 0, 0, 0, 0]); // jmp [rip]
            all.extend((landed as *const () as u64).to_le_bytes());
        }
        // SAFETY: new memory, executable once it is written.
        unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let at = libc::mmap(std::ptr::null_mut(), all.len(), prot, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            at.cast::<u8>().copy_from_nonoverlapping(all.as_ptr(), all.len());
            assert_eq!(libc::mprotect(at, all.len(), libc::PROT_READ | libc::PROT_EXEC), 0);
            places.into_iter().map(|offset| at as u64 + offset).collect()
        }
    }

    /// An area of stacks for Go's functions.
    pub fn stacks() -> u64 {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let size = (super::GO_STACKS * super::GO_STACK) as usize;
        // SAFETY: new memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        at as u64
    }

    fn each(area: u64) -> impl Iterator<Item = *mut u32> {
        (0..super::GO_STACKS).map(move |n| (area + n * super::GO_STACK) as *mut u32)
    }

    /// Has so many of them be in use.
    pub fn occupy(area: u64, count: u32) {
        // SAFETY: words of the area, which no code runs on now.
        each(area).zip(0..).for_each(|(word, n)| unsafe { *word = u32::from(n < count) });
    }

    /// How many are.
    pub fn occupied(area: u64) -> u32 {
        // SAFETY: as above.
        each(area).map(|word| unsafe { *word }).sum()
    }

    /// A word of this thread's stack.
    pub fn word(at: u64) -> u64 {
        // SAFETY: below the stack pointer of now, or a little above that of then: mapped.
        unsafe { (at as *const u64).read_volatile() }
    }

    /// Runs one of them.
    pub fn through(code: u64, flags: u64) -> Seen {
        let mut before: [u64; 16] = std::array::from_fn(|n| 0x1111_1111_1111_1111u64.wrapping_mul(n as u64 + 1));
        // SAFETY: the code saves and gives back whatever it uses, and ends in `landed`. No other test uses these statics.
        unsafe {
            enter(code, before.as_ptr(), flags);
            before[15] = (&raw const STACK).read();
            let out = (&raw const OUT).read();
            let after: [u64; 16] = std::array::from_fn(|n| out[n]);
            let regs = (&raw const REGS).cast::<PtRegs>().read();
            Seen { general: [before, after], flags: out[16], regs }
        }
    }
}
