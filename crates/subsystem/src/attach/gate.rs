//! The code that a borrowed thread of the target runs between what it is told to do: it lets go of the thread by itself.
//!
//! Whoever traces a thread may be killed at any instant; the kernel then lets the thread run on from wherever it was sent. So
//! it is never sent anywhere but here: behind the one `syscall` instruction that is used for calls, and where functions
//! return to, stands code that gives the thread its signal mask and all its registers back and jumps to where it was. A
//! thread without a tracer finishes what it was told, and is itself again. (Vector registers are never changed: what is
//! called keeps those that a function must keep, and the thread was stopped where the others are kept: see `safe_thread`.)
//!
//! The code stands in the slack behind a program's or library's last instruction, in the last page of its text, where there are
//! zeros that nothing refers to, and only while a thread is borrowed. What a killed injector has left there is used again
//! once nobody is in it.

use super::AttachError;
use super::patch;
use super::procfs::{self, Mapping};
use super::ptrace::Regs;
use super::world::World;

/// Words behind the code, to give back: where the thread was, its flags, its signal mask, and its registers.
const WORDS: usize = 3 + REGISTERS;
const RIP: usize = 0;
const FLAGS: usize = 1;
const MASK: usize = 2;
const REGISTER: usize = 3;
/// General registers, in the order in which instructions number them.
const REGISTERS: usize = 16;
const RSP: u8 = 4;
/// The red zone, and a word.
const BELOW: i32 = 136;
/// Room that a gate takes.
const SIZE: usize = 384;
/// Places for gates that are looked at in one mapping.
const SLOTS: u64 = 4;
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// What the kernel leaves in `rax` of a call that is to start again.
const RESTART: [i64; 3] = [-512, -513, -514];
const RESTART_BLOCK: i64 = -516;

/// A gate in a target.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    address: u64,
}

/// The code, and where its parts are.
struct Code {
    bytes: Vec<u8>,
    restore: u64,
    unmask: u64,
    landing: u64,
}

/// An instruction that has a word's address, relative to its own end, as its last four bytes.
fn with_word(code: &mut Vec<u8>, opcode: &[u8], word: usize) {
    code.extend(opcode);
    let end = code.len() as i64 + 4;
    let at = (SIZE - WORDS * 8 + word * 8) as i64;
    code.extend(((at - end) as i32).to_le_bytes());
}

fn code() -> Code {
    let mut c = Vec::with_capacity(SIZE);
    c.extend(SYSCALL);
    let restore = c.len() as u64;
    load(&mut c, RSP);
    // rt_sigprocmask(SIG_SETMASK, &mask, NULL, 8)
    c.extend([0xb8, libc::SYS_rt_sigprocmask as u8, 0, 0, 0]);
    c.extend([0xbf, libc::SIG_SETMASK as u8, 0, 0, 0]);
    with_word(&mut c, &[0x48, 0x8d, 0x35], MASK);
    c.extend([0x31, 0xd2]);
    c.extend([0x41, 0xba, 8, 0, 0, 0]);
    c.extend(SYSCALL);
    let unmask = c.len() as u64;
    // The flags by way of the stack: lea -136(%rsp),%rsp; push; popfq; lea 136(%rsp),%rsp. None of what follows changes them.
    c.extend([0x48, 0x8d, 0xa4, 0x24]);
    c.extend((-BELOW).to_le_bytes());
    with_word(&mut c, &[0xff, 0x35], FLAGS);
    c.push(0x9d);
    c.extend([0x48, 0x8d, 0xa4, 0x24]);
    c.extend(BELOW.to_le_bytes());
    (0..REGISTERS as u8).filter(|&register| register != RSP).for_each(|register| load(&mut c, register));
    with_word(&mut c, &[0xff, 0x25], RIP);
    let landing = c.len() as u64;
    // mov %rax,%rbx; jmp restore
    c.extend([0x48, 0x89, 0xc3, 0xe9]);
    let end = c.len() as i64 + 4;
    c.extend(((restore as i64 - end) as i32).to_le_bytes());
    Code { bytes: c, restore, unmask, landing }
}

/// `mov word(%rip),%register`
fn load(code: &mut Vec<u8>, register: u8) {
    let opcode = [0x48 | (register >> 3) << 2, 0x8b, 5 | (register & 7) << 3];
    with_word(code, &opcode, REGISTER + usize::from(register));
}

/// What a thread that was stopped goes on with, once nobody traces it: it starts the system call again that it was in, as the
/// kernel has it do where no signal comes in between.
fn resumed(stopped: &Regs) -> Regs {
    let mut regs = *stopped;
    if regs.orig_rax.cast_signed() >= 0 {
        let call = match regs.rax.cast_signed() {
            RESTART_BLOCK => Some(libc::SYS_restart_syscall as u64),
            rax if RESTART.contains(&rax) => Some(regs.orig_rax),
            _ => None,
        };
        if let Some(call) = call {
            regs.rax = call;
            regs.rip = regs.rip.wrapping_sub(SYSCALL.len() as u64);
        }
    }
    regs
}

impl Gate {
    /// Makes one in the target, for a thread with these registers and this signal mask.
    pub fn make(world: &World, maps: &[Mapping], saved: &Regs, mask: u64) -> Result<Gate, AttachError> {
        let gate = Gate { address: place(world, maps)? };
        let Code { mut bytes, .. } = code();
        bytes.resize(SIZE - WORDS * 8, 0xcc);
        let r = resumed(saved);
        let words: [u64; WORDS] = [
            r.rip, r.eflags, mask, r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        world.memory.write(gate.address, &bytes)?;
        Ok(gate)
    }

    /// Takes it away. No thread is in it.
    pub fn clear(&self, world: &World) {
        // If the process is gone, so is the gate.
        let _ = world.memory.write(self.address, &[0; SIZE]);
    }

    /// The `syscall` instruction; behind it the thread lets go of itself.
    pub fn call(&self) -> u64 {
        self.address
    }

    /// From here a thread lets go of itself.
    pub fn restore(&self) -> u64 {
        self.address + code().restore
    }

    /// Where functions return to: a thread that comes from here has the result in `rbx` when it changes its signal mask.
    pub fn landing(&self) -> u64 {
        self.address + code().landing
    }

    /// The address behind the call that changes the signal mask.
    pub fn unmask(&self) -> u64 {
        self.address + code().unmask
    }
}

/// Finds room for a gate.
fn place(world: &World, maps: &[Mapping]) -> Result<u64, AttachError> {
    let head = code().bytes;
    let vdso = maps.iter().filter(|m| m.name == "[vdso]");
    let code = maps.iter().filter(|m| m.executable() && m.is_file());
    for mapping in vdso.chain(code) {
        let Some(end) = text_end(world, maps, mapping) else { continue };
        for slot in 1..=SLOTS {
            let at = mapping.range.end.saturating_sub(slot * SIZE as u64);
            if at < end.max(mapping.range.start) {
                break;
            }
            let bytes = world.memory.read_up_to(at, SIZE);
            let room = at..at + SIZE as u64;
            let clear = || patch::is_clear(world, maps, std::slice::from_ref(&room)) == Ok(true);
            let left = || bytes.starts_with(&head) && clear();
            if bytes.len() == SIZE && (bytes.iter().all(|&byte| byte == 0) || left()) {
                return Ok(at);
            }
        }
    }
    Err(AttachError::Unsuitable {
        pid: world.pid,
        command: procfs::status(world.pid).map_or_else(|_| String::new(), |status| status.name),
        reason: "behind none of its code is room for what a thread is borrowed by".into(),
    })
}

/// Where the text ends that is mapped there, by the file's own headers, which are mapped too.
fn text_end(world: &World, maps: &[Mapping], mapping: &Mapping) -> Option<u64> {
    let same = |m: &&Mapping| m.name == mapping.name && m.inode == mapping.inode && m.offset == 0;
    let base = maps.iter().find(same)?.range.start;
    let header = world.memory.read_up_to(base, 4096);
    let half = |at: usize| header.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let word = |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let kind = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if !header.starts_with(b"\x7fELF") {
        return None;
    }
    let (table, size, count) = (word(32)? as usize, half(54)?, half(56)?);
    let mut end = None;
    for n in 0..usize::from(count.min(64)) {
        let at = table.checked_add(n * usize::from(size))?;
        let (offset, bytes) = (word(at.checked_add(8)?)?, word(at.checked_add(32)?)?);
        let covers = offset & !4095 <= mapping.offset && mapping.offset < offset.checked_add(bytes)?;
        // PT_LOAD, executable.
        if kind(at)? == 1 && kind(at + 4)? & 1 != 0 && covers {
            end = mapping.range.start.checked_add(offset.checked_add(bytes)? - mapping.offset);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_reads_as_it_is_meant() {
        use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
        let Code { bytes, restore, unmask, landing } = code();
        assert!(bytes.len() + WORDS * 8 <= SIZE);
        let all: Vec<Instruction> = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).iter().collect();
        assert!(all.iter().all(|i| !i.is_invalid()));
        let at = |offset: u64| all.iter().find(|i| i.ip() == offset).expect("an instruction begins there");
        let word = |n: usize| (SIZE - WORDS * 8 + n * 8) as u64;
        assert_eq!(at(0).mnemonic(), Mnemonic::Syscall);
        assert_eq!(
            (at(restore).op0_register(), at(restore).ip_rel_memory_address()),
            (Register::RSP, word(REGISTER + 4))
        );
        assert_eq!(at(unmask - 2).mnemonic(), Mnemonic::Syscall);
        // Each register from its own word, in the order of their numbers.
        let loads: Vec<&Instruction> =
            all.iter().filter(|i| i.mnemonic() == Mnemonic::Mov && i.is_ip_rel_memory_operand()).collect();
        assert_eq!(loads.len(), REGISTERS);
        for load in loads {
            assert_eq!(load.ip_rel_memory_address(), word(REGISTER + load.op0_register().number()));
        }
        let jump = all.iter().find(|i| i.mnemonic() == Mnemonic::Jmp).expect("it goes back");
        assert_eq!((jump.ip_rel_memory_address(), jump.next_ip()), (word(RIP), landing));
        assert_eq!(all.last().map(|i| i.near_branch64()), Some(restore));
    }

    #[test]
    fn interrupted_calls_start_again() {
        // SAFETY: the structure is plain integers, for which zero is a value.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        (regs.rip, regs.orig_rax, regs.rax) = (102, 35, (-516i64).cast_unsigned());
        assert_eq!((resumed(&regs).rip, resumed(&regs).rax), (100, 219));
        regs.rax = (-512i64).cast_unsigned();
        assert_eq!((resumed(&regs).rip, resumed(&regs).rax), (100, 35));
        regs.orig_rax = u64::MAX;
        assert_eq!((resumed(&regs).rip, resumed(&regs).rax), (102, regs.rax));
    }
}
