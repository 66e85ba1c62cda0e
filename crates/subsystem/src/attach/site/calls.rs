//! System calls in a function: their numbers, and the windows before and behind them.

use std::collections::{HashMap, HashSet};

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, RflagsBits};

use super::{Function, JUMP, Refusal, Window, branch_target, decode, locate, no_jump, refers_to, window};

/// The number of `munmap`, by which a thread may give up its own stack.
const MUNMAP: u32 = 11;
/// Steps back to where a number comes from at most.
const STEPS: usize = 10_000;

/// The window of a probe before the system call at `offset` into a function: as many instructions as a jump needs. Nothing
/// leads to the call itself.
pub fn before_call(function: &Function, offset: u64) -> Result<Window, Refusal> {
    let (insns, last) = locate(function, offset)?;
    let targets: HashSet<u64> = insns.iter().filter_map(branch_target).collect();
    let end = insns[last].ip();
    let mut first = last;
    while end - insns[first].ip() < JUMP as u64 {
        let ip = insns[first].ip();
        if targets.contains(&ip) || function.inner_symbols.contains(&ip) {
            return no_jump(format!("a branch leads to +{:#x}", ip - function.range.start));
        }
        let before = first.checked_sub(1).map(|n| (n, &insns[n]));
        let Some((n, _)) = before.filter(|(_, insn)| goes_on(insn)) else {
            return no_jump(format!("only {} bytes come before it in a line", end - ip));
        };
        first = n;
    }
    if !has_stack(function, &insns[..last]) {
        return no_jump("there may be no stack any more before it");
    }
    let address = insns[first].ip();
    let taken = insns[first..last].to_vec();
    if taken.iter().any(|insn| refers_to(insn, &(address..end))) {
        return no_jump("one of the instructions before it refers to them");
    }
    if insns.iter().any(|insn| insn.flow_control() == FlowControl::IndirectBranch) || taken.len() > 1 {
        match (function.arrivals)() {
            Ok(places) => {
                if let Some(place) = places.iter().find(|&&place| place > address && place <= end) {
                    let place = place - function.range.start;
                    return no_jump(format!("a jump table or an exception leads to +{place:#x}"));
                }
            }
            Err(why) if taken.len() > 1 => return no_jump(why),
            // Nothing of a single instruction is run but all of it.
            Err(_) => {}
        }
    }
    Ok(Window {
        address,
        len: end - address,
        entry: false,
        trap: false,
        leaves: false,
        calls: true,
        indirect: false,
        insns: taken,
    })
}

/// The window of a probe at `offset` into a function, right behind a system call; and whether what comes next needs the flags.
/// Nothing leads there but the call.
pub fn behind_call(function: &Function, offset: u64, number: Option<u32>) -> Result<(Window, bool), Refusal> {
    let (insns, position) = locate(function, offset)?;
    let (place, rest) = (insns[position].ip(), &insns[position..]);
    if insns.iter().any(|insn| branch_target(insn) == Some(place)) || function.inner_symbols.contains(&place) {
        return no_jump("a branch leads to behind the call, too");
    }
    if number.is_none_or(|number| number == MUNMAP) && !needs_stack(rest) {
        return no_jump("there may be no stack any more behind it");
    }
    let window = window(function, offset)?;
    let backward = insns.iter().any(|insn| insn.mnemonic() == Mnemonic::Std);
    Ok((window, backward || needs_flags(rest)))
}

/// Does code go on behind an instruction, which may be moved?
fn goes_on(insn: &Instruction) -> bool {
    let moves = match insn.flow_control() {
        FlowControl::Next => insn.mnemonic() != Mnemonic::Endbr64,
        FlowControl::ConditionalBranch => !insn.is_loop() && !insn.is_jcx_short(),
        _ => false,
    };
    moves && !insn.is_invalid()
}

/// Are flags read that were not written before? What is called or returned to does not read them.
fn needs_flags(insns: &[Instruction]) -> bool {
    const ALL: u32 =
        RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
    let mut written = 0;
    for insn in insns {
        match insn.flow_control() {
            _ if insn.rflags_read() & !written & (ALL | RflagsBits::DF) != 0 => return true,
            FlowControl::Next => written |= insn.rflags_modified(),
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::Return => return false,
            _ => return written & ALL != ALL,
        }
        if written & ALL == ALL {
            return false;
        }
    }
    true
}

/// Is the stack used before anything else is asked of the kernel?
fn needs_stack(insns: &[Instruction]) -> bool {
    for insn in insns {
        match insn.flow_control() {
            _ if insn.mnemonic() == Mnemonic::Syscall => return false,
            _ if uses_stack(insn) => return true,
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            _ => return false,
        }
    }
    false
}

/// Was the stack used since a `munmap`, if there was one right before in the function?
fn has_stack(function: &Function, insns: &[Instruction]) -> bool {
    for insn in insns.iter().rev() {
        match insn.flow_control() {
            _ if is_syscall(insn) => {
                let number = number_of(function, insn.ip() - function.range.start);
                return number.is_some_and(|number| number != MUNMAP);
            }
            _ if uses_stack(insn) => return true,
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            _ => return true,
        }
    }
    true
}

fn uses_stack(insn: &Instruction) -> bool {
    insn.is_stack_instruction() || matches!(insn.memory_base(), Register::RSP | Register::RBP)
}

/// The number that a system call at `offset` into a function always has, whichever way leads there.
pub fn number_of(function: &Function, offset: u64) -> Option<u32> {
    let (insns, last) = locate(function, offset).ok()?;
    let Some(ways) = Ways::of(function, &insns) else {
        // What comes right before it is run whatever else leads there.
        let before =
            last.checked_sub(1).filter(|_| !insns.iter().any(|i| branch_target(i) == Some(insns[last].ip())))?;
        return match loaded(&insns[before], Register::RAX, &mut InstructionInfoFactory::new())? {
            Loaded::Number(number) => Some(number),
            Loaded::From(_) => None,
        };
    };
    let mut infos = InstructionInfoFactory::new();
    let mut number = None;
    let mut pending = vec![(last, Register::RAX)];
    let mut seen: HashSet<(usize, Register)> = pending.iter().copied().collect();
    while let Some((at, register)) = pending.pop() {
        for before in ways.to(&insns, at)? {
            match loaded(&insns[before], register, &mut infos)? {
                Loaded::Number(found) if number.is_none_or(|number| number == found) => number = Some(found),
                Loaded::Number(_) => return None,
                Loaded::From(register) if seen.insert((before, register)) => pending.push((before, register)),
                Loaded::From(_) => {}
            }
        }
        if seen.len() > STEPS {
            return None;
        }
    }
    number
}

/// How control comes to the instructions of a function.
struct Ways {
    /// Indices of the direct branches to an address.
    branches: HashMap<u64, Vec<usize>>,
    /// Addresses that are come to in ways that are not known.
    unknown: HashSet<u64>,
}

impl Ways {
    fn of(function: &Function, insns: &[Instruction]) -> Option<Ways> {
        let mut branches: HashMap<u64, Vec<usize>> = HashMap::new();
        for (n, insn) in insns.iter().enumerate() {
            if let Some(target) = branch_target(insn) {
                branches.entry(target).or_default().push(n);
            }
        }
        let indirect = insns.iter().any(|insn| insn.flow_control() == FlowControl::IndirectBranch);
        let arrivals = if indirect { (function.arrivals)().ok()? } else { Vec::new() };
        let start = std::iter::once(function.range.start);
        let unknown = start.chain(arrivals).chain(function.inner_symbols.iter().copied()).collect();
        Some(Ways { branches, unknown })
    }

    /// The instructions that the one at an index is come to from; `None` if that is not known.
    fn to(&self, insns: &[Instruction], at: usize) -> Option<Vec<usize>> {
        let ip = insns.get(at)?.ip();
        if self.unknown.contains(&ip) {
            return None;
        }
        let goes_on = |n: &usize| {
            let flow = insns[*n].flow_control();
            !matches!(flow, FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return)
        };
        let before = at.checked_sub(1).filter(goes_on);
        Some(before.into_iter().chain(self.branches.get(&ip).into_iter().flatten().copied()).collect())
    }
}

/// What a register holds behind an instruction.
enum Loaded {
    Number(u32),
    /// What this one held before.
    From(Register),
}

/// What an instruction makes of a register; `None` if that is not known.
fn loaded(insn: &Instruction, register: Register, infos: &mut InstructionInfoFactory) -> Option<Loaded> {
    match insn.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {}
        _ if is_syscall(insn) => {
            let changed = matches!(register, Register::RAX | Register::RCX | Register::R11);
            return (!changed).then_some(Loaded::From(register));
        }
        // What is called keeps some.
        FlowControl::Call | FlowControl::IndirectCall => return is_kept(register).then_some(Loaded::From(register)),
        _ => return None,
    }
    let writes = |used: &iced_x86::UsedRegister| {
        let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        written && used.register().full_register() == register
    };
    if !infos.info(insn).used_registers().iter().any(writes) {
        return Some(Loaded::From(register));
    }
    let whole = insn.op0_register().full_register() == register && insn.op0_register().size() >= 4;
    match (insn.mnemonic(), insn.op1_kind()) {
        _ if !whole => None,
        (Mnemonic::Xor, OpKind::Register) if insn.op0_register() == insn.op1_register() => Some(Loaded::Number(0)),
        (Mnemonic::Mov, OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64) => {
            u32::try_from(insn.immediate(1)).ok().map(Loaded::Number)
        }
        (Mnemonic::Mov, OpKind::Register) if insn.op1_register().size() >= 4 => {
            Some(Loaded::From(insn.op1_register().full_register()))
        }
        _ => None,
    }
}

/// Is it a system call?
fn is_syscall(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Syscall
}

/// Do functions leave it as it was?
fn is_kept(register: Register) -> bool {
    use Register::{R12, R13, R14, R15, RBP, RBX};
    matches!(register, RBX | RBP | R12 | R13 | R14 | R15)
}

/// The addresses of a function's system calls.
pub fn calls_in(function: &Function) -> Vec<u64> {
    decode(function).iter().filter(|insn| is_syscall(insn)).map(Instruction::ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(text: &[u8]) -> Function<'_> {
        super::super::tests::function(text, text.len() as u64)
    }

    fn refused<T: std::fmt::Debug>(found: Result<T, Refusal>, part: &str) {
        match found {
            Err(Refusal::NoJump(reason)) => assert!(reason.contains(part), "{reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_loads_the_number_gives_way() {
        // mov eax, 257; syscall; cmp rax, -4096; ja; ret
        let text = [0xb8, 1, 1, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 0, 0xc3];
        let f = function(&text);
        assert_eq!((calls_in(&f), number_of(&f, 5)), (vec![0x7000_0005], Some(257)));
        let w = before_call(&f, 5).unwrap();
        assert_eq!((w.address, w.len, w.taken()), (0x7000_0000, 5, 0x7000_0000..0x7000_0005));
        // All of it runs first, and then the call where it is.
        assert_eq!(w.lead_at(0x7000_1000).unwrap().code, text[..5]);
        assert_eq!(w.copy_to(0x7000_1000).unwrap().code, crate::attach::site::jump(0x7000_1000, 0x7000_0005).unwrap());
        let (w, flags) = behind_call(&f, 7, Some(257)).unwrap();
        assert_eq!((w.address, w.len, flags), (0x7000_0007, 6, false));
    }

    #[test]
    fn several_instructions_may_be_needed() {
        // mov edi, esi; mov rdx, rcx; xor eax, eax; syscall; test eax, eax; js; nop; ret
        let text = [0x89, 0xf7, 0x48, 0x89, 0xca, 0x31, 0xc0, 0x0f, 0x05, 0x85, 0xc0, 0x78, 1, 0x90, 0xc3];
        let f = function(&text);
        assert_eq!(number_of(&f, 7), Some(0));
        let w = before_call(&f, 7).unwrap();
        assert_eq!((w.address, w.len, w.boundaries().count()), (0x7000_0002, 5, 1));
        let lead = w.lead_at(0x7000_1000).unwrap();
        assert_eq!((&lead.code[..], &lead.moves[..]), (&text[2..7], &[(0x7000_0005, 0x7000_1003)][..]));
        // Where another way leads to the second one, or in a way that is not known.
        assert!(before_call(&Function { arrivals: &|| Ok(vec![0x7000_0005]), ..function(&text) }, 7).is_err());
        assert!(before_call(&Function { arrivals: &|| Err("unknown".into()), ..f }, 7).is_err());
        refused(before_call(&function(&text[5..]), 2), "only 2 bytes");
    }

    #[test]
    fn branches_lead_past_the_probe() {
        // mov eax, 60; syscall; jmp to the syscall
        let text = [0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xfc];
        refused(before_call(&function(&text), 5), "a branch leads to +0x5");
        assert_eq!(number_of(&function(&text), 5), None, "the call itself changes it");
        // mov eax, 1; syscall; cmp rax, -4; je to behind the syscall
        let text = [0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0x48, 0x83, 0xf8, 0xfc, 0x74, 0xfa, 0x90, 0x90, 0xc3];
        refused(behind_call(&function(&text), 7, Some(1)), "behind the call, too");
    }

    #[test]
    fn numbers_are_followed_through_branches() {
        // mov esi, 231; jmp 1f; 2: cmp edi, edi; 1: mov eax, esi; syscall; test eax, eax; jne 2b; ret
        let loops = |first: u8| {
            vec![0xbe, first, 0, 0, 0, 0xeb, 2, 0x39, 0xff, 0x89, 0xf0, 0x0f, 0x05, 0x85, 0xc0, 0x75, 0xf6, 0xc3]
        };
        assert_eq!(number_of(&function(&loops(231)), 11), Some(231));
        // mov eax, 1; jne 1f; mov eax, 2; 1: syscall
        let two = [0xb8, 1, 0, 0, 0, 0x75, 5, 0xb8, 2, 0, 0, 0, 0x0f, 0x05, 0xc3];
        assert_eq!(number_of(&function(&two), 12), None);
        // mov eax, edi; syscall
        assert_eq!(number_of(&function(&[0x89, 0xf8, 0x0f, 0x05, 0xc3]), 2), None);
        // mov ebx, 7; call; mov eax, ebx; syscall, and the same with a register that is not kept
        let call = |mov: u8, load: u8| vec![mov, 7, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x89, load, 0x0f, 0x05, 0xc3];
        assert_eq!(number_of(&function(&call(0xbb, 0xd8)), 12), Some(7));
        assert_eq!(number_of(&function(&call(0xbe, 0xf0)), 12), None);
    }

    #[test]
    fn a_stack_that_is_given_up_is_not_used() {
        // mov eax, 11; syscall; xor edi, edi; mov eax, 60; syscall
        let text = [0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
        let f = function(&text);
        refused(behind_call(&f, 7, Some(11)), "no stack any more");
        refused(before_call(&f, 14), "no stack any more");
        assert!(before_call(&f, 5).is_ok());
        // ... pop rbx; mov eax, 60; syscall
        let text = [0xb8, 11, 0, 0, 0, 0x0f, 0x05, 0x5b, 0x90, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
        let f = function(&text);
        assert!(behind_call(&f, 7, Some(11)).is_ok() && before_call(&f, 14).is_ok());
    }

    #[test]
    fn flags_that_are_read() {
        let needs = |text: &[u8]| needs_flags(&decode(&function(text)));
        assert!(!needs(&[0x85, 0xc0, 0x78, 0]) && !needs(&[0x90, 0xc3]));
        // jc; adc eax, eax; inc eax; jc
        assert!(needs(&[0x72, 0, 0xc3]) && needs(&[0x11, 0xc0, 0xc3]) && needs(&[0xff, 0xc0, 0x72, 0, 0xc3]));
    }
}
