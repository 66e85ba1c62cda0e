//! Which instructions may give way to a jump, and their copy elsewhere.
//!
//! A jump of five bytes replaces one or several whole instructions, the *window*. That is right only if nobody can ever run
//! the bytes behind the first: no thread (they are moved, see [`super::patch`]), no branch, no symbol, no return address.

use std::collections::HashSet;
use std::ops::Range;

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, BlockEncoderResult, Code, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, Mnemonic, OpKind, Register,
};

use super::request::Method;
pub use calls::{before_call, behind_call, calls_in, number_of};

mod calls;

/// `int3`.
const BREAKPOINT: u8 = 0xcc;
/// Bytes of a `jmp rel32`.
pub const JUMP: usize = 5;

/// What is known of a function.
pub struct Function<'a> {
    /// Its addresses in the target; the end is that of the symbol, or the next symbol's start if it has no size.
    pub range: Range<u64>,
    /// Its text from `range.start` on, with some bytes past its end.
    pub text: &'a [u8],
    /// True if the symbol has a size, so that what follows the end is known not to be part of it.
    pub sized: bool,
    /// Finds where what follows the end begins, with a symbol or without.
    pub next: &'a dyn Fn() -> u64,
    /// Finds the places where control may arrive other than by direct branches, if they can be known.
    pub arrivals: &'a dyn Fn() -> Result<Vec<u64>, String>,
    /// Addresses of symbols inside it.
    pub inner_symbols: &'a [u64],
    /// Is it entered by calls of its beginning? Parts of functions that stand elsewhere are jumped to, with flags and a red zone
    /// in use.
    pub begins: bool,
    /// May what lies below its stack pointer be in use? Not in Go.
    pub red_zone: bool,
    /// Is it code that jumps on through a register, as a compiler has it instead of an indirect jump?
    pub thunk: &'a dyn Fn(u64) -> bool,
}

/// The instructions that a jump displaces.
#[derive(Clone, Debug)]
pub struct Window {
    /// Where the jump is written. After an `endbr64` if the function begins with one.
    pub address: u64,
    /// Bytes of whole instructions, at least [`JUMP`] unless padding follows.
    pub len: u64,
    /// Does the probed instruction begin the function?
    pub entry: bool,
    /// It gives way to a breakpoint: one instruction, of which one byte is replaced.
    pub trap: bool,
    /// It ends in a `ret`, which is probed: what comes before runs first.
    pub leaves: bool,
    /// It ends before a system call, which is probed: all of it runs first.
    pub calls: bool,
    /// Its function jumps to where its data says.
    pub indirect: bool,
    insns: Vec<Instruction>,
}

/// A copy of a window's instructions.
#[derive(Clone, Debug)]
pub struct BodyCopy {
    /// The code, which ends in a jump back (or never gets to its end).
    pub code: Vec<u8>,
    /// Where threads in the window go: addresses of its inner instructions and of their copies.
    pub moves: Vec<(u64, u64)>,
}

/// Why a probe cannot be where it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not the start of an instruction; the boundaries around it, as offsets.
    MidInstruction {
        /// The one before.
        before: u64,
        /// The one after.
        after: u64,
    },
    /// A jump cannot go there.
    NoJump(String),
}

fn no_jump<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::NoJump(reason.into()))
}

/// Finds the window for a probe at `offset` into a function.
pub fn window(function: &Function, offset: u64) -> Result<Window, Refusal> {
    let (insns, position) = locate(function, offset)?;
    let entry = offset == 0 && function.begins;
    let first = position + usize::from(offset == 0 && insns[position].mnemonic() == Mnemonic::Endbr64);
    let Some(address) = insns.get(first).map(|i| i.ip()) else { return no_jump("the function is empty") };
    let (taken, len) = take(function, &insns[first..], address)?;
    let mut window =
        Window { address, len, entry, trap: false, leaves: false, calls: false, indirect: false, insns: taken };
    window.indirect = check_arrivals(function, &insns, &window, address != function.range.start + offset)?;
    Ok(window)
}

/// Finds the instruction that gives way to a breakpoint, for a probe at `offset` into a function where no jump fits.
pub fn trap_window(function: &Function, offset: u64) -> Result<Window, Refusal> {
    let (insns, position) = locate(function, offset)?;
    let entry = offset == 0 && function.begins;
    let mut insn = insns[position];
    if offset == 0
        && insn.mnemonic() == Mnemonic::Endbr64
        && let Some(next) = insns.get(position + 1)
        && !insns.iter().any(|i| branch_target(i) == Some(next.ip()))
    {
        insn = *next;
    }
    if insn.is_invalid() {
        return no_jump("its instruction cannot be decoded");
    }
    let movable = match insn.flow_control() {
        FlowControl::Next | FlowControl::ConditionalBranch => !insn.is_loop() && !insn.is_jcx_short(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return => true,
        FlowControl::Call | FlowControl::IndirectCall => is_movable_call(&insn),
        FlowControl::Interrupt | FlowControl::XbeginXabortXend | FlowControl::Exception => false,
    };
    if !movable {
        return no_jump(format!("`{:?}` cannot move", insn.mnemonic()));
    }
    if refers_to(&insn, &(insn.ip()..insn.next_ip())) && !names(&insn, insn.ip()) {
        return no_jump("its instruction refers to itself");
    }
    Ok(Window {
        address: insn.ip(),
        len: insn.len() as u64,
        entry,
        trap: true,
        leaves: false,
        calls: false,
        indirect: false,
        insns: vec![insn],
    })
}

/// Finds the windows for a probe at each `ret` of a function, which it must not leave in another way.
pub fn leaves(function: &Function) -> Result<Vec<Window>, Refusal> {
    let insns = decode(function);
    let targets: HashSet<u64> = insns.iter().filter_map(branch_target).collect();
    let mut tables = false;
    for insn in &insns {
        let beyond = match insn.flow_control() {
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                branch_target(insn).is_none_or(|target| !function.range.contains(&target))
            }
            // A jump table is indexed.
            FlowControl::IndirectBranch => insn.memory_index() == Register::None,
            _ => insn.is_invalid(),
        };
        if beyond {
            return no_jump(format!("it may be left at +{:#x} by a jump", insn.ip() - function.range.start));
        }
        tables |= insn.flow_control() == FlowControl::IndirectBranch;
    }
    let rets = insns.iter().enumerate().filter(|(_, insn)| insn.flow_control() == FlowControl::Return);
    let windows: Vec<Window> =
        rets.map(|(n, _)| leave(function, &insns, n, &targets, tables)).collect::<Result<_, _>>()?;
    if windows.is_empty() {
        return no_jump("it never returns");
    }
    Ok(windows)
}

/// The window of the `ret` at index `last`: with as many instructions before it as a jump needs, or the padding behind it.
fn leave(
    function: &Function,
    insns: &[Instruction],
    last: usize,
    targets: &HashSet<u64>,
    tables: bool,
) -> Result<Window, Refusal> {
    let end = insns[last].next_ip();
    let mut first = last;
    let behind = padded(function, insns[last].ip(), insns[last].len() as u64);
    while !behind && end - insns[first].ip() < JUMP as u64 {
        let at = insns[first].ip() - function.range.start;
        let before = first.checked_sub(1).map(|n| (n, &insns[n]));
        let Some((n, before)) = before.filter(|(_, b)| b.flow_control() == FlowControl::Next) else {
            break;
        };
        if targets.contains(&insns[first].ip()) || function.inner_symbols.contains(&insns[first].ip()) {
            return no_jump(format!("a branch leads to the end of its window at +{at:#x}"));
        }
        // What frees a frame and the `ret` behind it are made as one; elsewhere an entry of a table might lead.
        if tables && !is_freeing(before) {
            return no_jump(format!("an entry of a jump table might lead to +{at:#x}"));
        }
        first = n;
    }
    let (address, short) = (insns[first].ip(), end - insns[first].ip() < JUMP as u64);
    if short && !behind {
        return no_jump(format!("the `ret` at +{:#x} has no room for one", insns[last].ip() - function.range.start));
    }
    let insns = insns[first..=last].to_vec();
    Ok(Window {
        address,
        len: end - address,
        entry: false,
        trap: false,
        leaves: true,
        calls: false,
        indirect: false,
        insns,
    })
}

/// Does an instruction raise the stack pointer?
fn is_freeing(insn: &Instruction) -> bool {
    let add = insn.mnemonic() == Mnemonic::Add && insn.op0_register() == Register::RSP;
    add || insn.mnemonic() == Mnemonic::Pop && insn.op0_register() == Register::RBP
}

/// The instructions of a function, and the index of the one at `offset`.
fn locate(function: &Function, offset: u64) -> Result<(Vec<Instruction>, usize), Refusal> {
    let start = function.range.start;
    let insns = decode(function);
    let Some(position) = insns.iter().position(|i| i.ip() >= start + offset) else {
        return no_jump("it is past the end of the function");
    };
    if insns[position].ip() != start + offset {
        let before = position.checked_sub(1).and_then(|p| insns.get(p)).map_or(0, |i| i.ip() - start);
        return Err(Refusal::MidInstruction { before, after: insns[position].ip() - start });
    }
    Ok((insns, position))
}

/// The instructions of a function, in order.
fn decode(function: &Function) -> Vec<Instruction> {
    let len = (function.range.end - function.range.start) as usize;
    let text = function.text.get(..len).unwrap_or(function.text);
    Decoder::with_ip(64, text, function.range.start, DecoderOptions::NONE).into_iter().collect()
}

/// Takes instructions until a jump fits over them.
fn take(function: &Function, insns: &[Instruction], address: u64) -> Result<(Vec<Instruction>, u64), Refusal> {
    let mut taken = Vec::new();
    let mut len = 0u64;
    for insn in insns {
        if len >= JUMP as u64 {
            break;
        }
        let last = len + insn.len() as u64 >= JUMP as u64;
        match insn.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch if insn.is_loop() || insn.is_jcx_short() => {
                return no_jump(format!("`{:?}` would have to move", insn.mnemonic()));
            }
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return => {
                taken.push(*insn);
                len += insn.len() as u64;
                if !last && !padded(function, address, len) {
                    return no_jump(format!("it is only {len} bytes long and no padding follows"));
                }
                return Ok((taken, len));
            }
            // A call is five bytes or ends the window: its return address is behind the window, where it stays.
            FlowControl::Call | FlowControl::IndirectCall if last && is_movable_call(insn) => {}
            FlowControl::Call | FlowControl::IndirectCall => {
                return no_jump(format!("a {:?} is among its first instructions", insn.mnemonic()));
            }
            FlowControl::Interrupt => return no_jump("there is a breakpoint or an interrupt instruction"),
            FlowControl::XbeginXabortXend | FlowControl::Exception => {
                return no_jump(format!("`{:?}` cannot move", insn.mnemonic()));
            }
        }
        if insn.is_invalid() {
            return no_jump("its instructions cannot be decoded");
        }
        taken.push(*insn);
        len += insn.len() as u64;
    }
    match len >= JUMP as u64 {
        true => Ok((taken, len)),
        false => no_jump(format!("only {len} bytes of the function follow")),
    }
}

/// Can a call be made from elsewhere as if from here: by pushing the return address and jumping?
fn is_movable_call(insn: &Instruction) -> bool {
    match insn.code() {
        Code::Call_rel32_64 => true,
        // What it reads must not move with the push.
        Code::Call_rm64 => insn.memory_base() != Register::RSP && insn.op0_register() != Register::RSP,
        _ => false,
    }
}

/// Pushes a return address and nothing else: flags and registers stay.
fn push(address: u64) -> Vec<u8> {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    let mut code = vec![0x48, 0x8d, 0x64, 0x24, 0xf8]; // lea rsp, [rsp-8]
    code.extend([0xc7, 0x04, 0x24, a, b, c, d]); // mov dword [rsp], low
    code.extend([0xc7, 0x44, 0x24, 0x04, e, f, g, h]); // mov dword [rsp+4], high
    code
}

/// Is the room that a jump needs, behind an instruction that does not go on, only padding? It may be the function's end, or
/// the space before a place in it that is aligned.
fn padded(function: &Function, address: u64, len: u64) -> bool {
    let (end, jump_end) = (address + len, address + JUMP as u64);
    if !function.sized || (function.next)() < jump_end {
        return false;
    }
    let offset = (end - function.range.start) as usize;
    let Some(mut rest) = function.text.get(offset..) else { return false };
    let mut at = end;
    while at < jump_end {
        let step = match rest.first() {
            Some(0xcc) => 1,
            // Behind the last function of a text there is nothing more; elsewhere it may be data.
            Some(0) if at >= function.range.end && rest.iter().all(|byte| *byte == 0) => 1,
            Some(_) => {
                let insn = Decoder::with_ip(64, rest, at, DecoderOptions::NONE).decode();
                match insn.mnemonic() {
                    Mnemonic::Nop => insn.len(),
                    _ => return false,
                }
            }
            None => return false,
        };
        at += step as u64;
        rest = rest.get(step..).unwrap_or_default();
    }
    true
}

/// Proves that control cannot arrive behind the window's first byte, but for what the module's data says, if its function jumps
/// to where that says (true).
fn check_arrivals(function: &Function, insns: &[Instruction], window: &Window, moved: bool) -> Result<bool, Refusal> {
    let taken = window.len.max(JUMP as u64);
    let inner = window.address + 1..window.address + taken;
    let mut indirect = false;
    for insn in insns {
        indirect |= insn.flow_control() == FlowControl::IndirectBranch;
        if let Some(target) = branch_target(insn) {
            indirect |= insn.flow_control() == FlowControl::UnconditionalBranch
                && !function.range.contains(&target)
                && (function.thunk)(target);
            if window.entry && function.red_zone && target == function.range.start && !is_call(insn) {
                return no_jump("a loop leads to its beginning, which is not a call of it");
            }
            if inner.contains(&target) {
                return no_jump(format!("the branch at +{:#x} leads into it", insn.ip() - function.range.start));
            }
            if moved && target == window.address {
                return no_jump("a loop leads to behind its endbr64, which is not a call of it");
            }
        }
    }
    if let Some(symbol) = function.inner_symbols.iter().find(|s| inner.contains(s)) {
        return no_jump(format!("another symbol lies at +{:#x}", symbol - function.range.start));
    }
    let range = window.address..window.address + taken;
    if window.insns.iter().any(|insn| refers_to(insn, &range) && !names(insn, range.start)) {
        return no_jump("one of its first instructions refers to them");
    }
    let end = window.address + window.len;
    let spills = window.len < JUMP as u64 && end < function.range.end;
    let boundaries = spills || window.insns.len() > 1 && window.insns[0].len() < JUMP;
    if !boundaries || window.entry && !indirect {
        return Ok(indirect);
    }
    match (function.arrivals)() {
        Ok(places) => match places.iter().find(|place| inner.contains(place)) {
            Some(place) => {
                no_jump(format!("a jump table or an exception leads to +{:#x}", place - function.range.start))
            }
            None => Ok(indirect),
        },
        Err(why) => no_jump(why),
    }
}

/// Does an instruction refer to one of these addresses?
fn refers_to(insn: &Instruction, range: &Range<u64>) -> bool {
    let address = match insn.is_ip_rel_memory_operand() {
        true => Some(insn.ip_rel_memory_address()),
        false => branch_target(insn),
    };
    address.is_some_and(|address| range.contains(&address))
}

/// Does an instruction do no more with an address than to name it?
fn names(insn: &Instruction, address: u64) -> bool {
    insn.code() == Code::Lea_r64_m && insn.is_ip_rel_memory_operand() && insn.ip_rel_memory_address() == address
}

fn is_call(insn: &Instruction) -> bool {
    matches!(insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

fn branch_target(insn: &Instruction) -> Option<u64> {
    matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
        .then(|| insn.near_branch_target())
}

impl Window {
    /// Addresses behind the first byte that nobody must go to once the text is patched.
    pub fn behind(&self) -> Range<u64> {
        self.address + 1..self.taken().end
    }

    /// Addresses whose instructions are no longer run there.
    pub fn taken(&self) -> Range<u64> {
        self.address..self.address + if self.trap { 1 } else { self.len.max(JUMP as u64) }
    }

    /// How it is patched.
    pub fn method(&self) -> Method {
        if self.trap { Method::Int3 } else { Method::Jump }
    }

    /// What the text begins with when it is patched; a jump goes to `code`, if it is not too far.
    pub fn patch(&self, code: u64) -> Option<Vec<u8>> {
        if self.trap { Some(vec![BREAKPOINT]) } else { jump(self.address, code).map(Vec::from) }
    }

    /// Addresses behind the first byte at which an instruction begins.
    pub fn boundaries(&self) -> impl Iterator<Item = u64> {
        self.insns.iter().map(Instruction::ip).skip(1)
    }

    /// What runs at `at`, before a `ret` or a system call that is probed, and where threads in it go.
    pub fn lead_at(&self, at: u64) -> Result<BodyCopy, String> {
        let lead = match self.insns.split_last() {
            Some((_, before)) if self.leaves => before,
            _ if self.calls => &self.insns[..],
            _ => &[],
        };
        match lead {
            lead if !lead.is_empty() => {
                let encoded = encode(lead, at)?;
                let places = lead.iter().zip(&encoded.new_instruction_offsets);
                let moves = places.map(|(insn, &offset)| (insn.ip(), at + u64::from(offset))).skip(1).collect();
                match encoded.new_instruction_offsets.contains(&u32::MAX) {
                    true => Err("what comes before the `ret` cannot move".into()),
                    false => Ok(BodyCopy { code: encoded.code_buffer, moves }),
                }
            }
            _ => Ok(BodyCopy { code: Vec::new(), moves: Vec::new() }),
        }
    }

    /// Makes the copy that runs at `at`.
    pub fn copy_to(&self, at: u64) -> Result<BodyCopy, String> {
        let insns = match self.insns.split_last() {
            Some((last, _)) if self.leaves => std::slice::from_ref(last),
            _ if self.calls => &[],
            _ => &self.insns[..],
        };
        let (plain, call) = match insns.split_last() {
            Some((last, before)) if is_movable_call(last) => (before, Some(last)),
            _ => (insns, None),
        };
        let mut moves = Vec::new();
        let mut code = Vec::new();
        if !plain.is_empty() {
            let encoded = encode(plain, at)?;
            for (insn, &offset) in plain.iter().zip(&encoded.new_instruction_offsets) {
                // u32::MAX marks an instruction that was rewritten so that it has no single new place.
                if offset == u32::MAX {
                    return Err(format!("`{:?}` cannot move", insn.mnemonic()));
                }
                moves.push((insn.ip(), at + u64::from(offset)));
            }
            code = encoded.code_buffer;
        }
        if let Some(call) = call {
            moves.push((call.ip(), at + code.len() as u64));
            code.extend(push(call.next_ip()));
            let mut jump = *call;
            jump.set_code(if call.code() == Code::Call_rm64 { Code::Jmp_rm64 } else { Code::Jmp_rel32_64 });
            let encoded = encode(&[jump], at + code.len() as u64)?;
            code.extend(encoded.code_buffer);
        }
        moves.retain(|(from, _)| *from != self.address);
        if self.insns.last().is_none_or(|last| {
            !matches!(
                last.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
                    | FlowControl::Call
                    | FlowControl::IndirectCall
            )
        }) {
            let back = jump(at + code.len() as u64, self.address + self.len).ok_or("the copy is too far away")?;
            code.extend(back);
        }
        Ok(BodyCopy { code, moves })
    }
}

fn encode(insns: &[Instruction], at: u64) -> Result<BlockEncoderResult, String> {
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    // The encoder takes an address of one of its instructions for that of the copy; who names it means the original.
    let plain = |insn: &Instruction| match insns.iter().any(|other| names(insn, other.ip())) {
        true => Instruction::with2(Code::Mov_r64_imm64, insn.op0_register(), insn.ip_rel_memory_address())
            .map(|mut moved| {
                moved.set_ip(insn.ip());
                moved
            })
            .map_err(|e| e.to_string()),
        false => Ok(*insn),
    };
    let insns: Vec<Instruction> = insns.iter().map(plain).collect::<Result<_, _>>()?;
    BlockEncoder::encode(64, InstructionBlock::new(&insns, at), options).map_err(|e| e.to_string())
}

/// A `jmp rel32` at `from` to `to`; `None` if that is too far.
pub fn jump(from: u64, to: u64) -> Option<[u8; JUMP]> {
    let distance = to.wrapping_sub(from).wrapping_sub(JUMP as u64).cast_signed();
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn function(text: &[u8], len: u64) -> Function<'_> {
        let range = 0x7000_0000..0x7000_0000 + len;
        Function {
            text,
            sized: true,
            next: &|| u64::MAX,
            arrivals: &|| Ok(Vec::new()),
            inner_symbols: &[],
            begins: true,
            red_zone: true,
            thunk: &|_| false,
            range,
        }
    }

    fn reason(text: &[u8], len: u64, offset: u64) -> String {
        match window(&function(text, len), offset) {
            Err(Refusal::NoJump(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn prologue() {
        // push rbp; mov rbp,rsp; lea rax,[rdi+1]; pop rbp; ret
        let text = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x47, 0x01, 0x5d, 0xc3];
        let w = window(&function(&text, 10), 0).unwrap();
        assert_eq!((w.address, w.len, w.entry), (0x7000_0000, 8, true));
        assert_eq!(w.insns.len(), 3);
        let copy = w.copy_to(0x6000_0000).unwrap();
        assert_eq!(&copy.code[..8], &text[..8]);
        assert_eq!(copy.moves, [(0x7000_0001, 0x6000_0001), (0x7000_0004, 0x6000_0004)]);
        let back = Decoder::with_ip(64, &copy.code[8..], 0x6000_0008, 0).decode();
        assert_eq!(back.near_branch_target(), 0x7000_0008);
        assert!(w.copy_to(0x7000_0000_0000).is_err());
    }

    #[test]
    fn endbr_is_left_alone() {
        let text = [0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x83, 0xec, 0x08, 0x31, 0xc0, 0x48, 0x83, 0xc4, 0x08, 0xc3];
        let w = window(&function(&text, 15), 0).unwrap();
        assert_eq!((w.address, w.len, w.entry), (0x7000_0004, 6, true));
    }

    #[test]
    fn rip_relative_operands_move() {
        // mov rax,[rip+0x100]; ret
        let text = [0x48, 0x8b, 0x05, 0x00, 0x01, 0x00, 0x00, 0xc3];
        let w = window(&function(&text, 8), 0).unwrap();
        let copy = w.copy_to(0x7100_0000).unwrap();
        let moved = Decoder::with_ip(64, &copy.code, 0x7100_0000, 0).decode();
        assert_eq!(moved.ip_rel_memory_address(), 0x7000_0107);
    }

    #[test]
    fn short_functions_need_padding() {
        // xor eax,eax; ret; nops
        let padded = [0x31, 0xc0, 0xc3, 0x66, 0x90, 0x90, 0x90, 0x90];
        let w = window(&function(&padded, 3), 0).unwrap();
        assert_eq!(w.len, 3);
        assert_eq!(w.copy_to(0x7000_1000).unwrap().code, [0x31, 0xc0, 0xc3]);
        let mut near = function(&padded, 3);
        near.next = &|| 0x7000_0004;
        assert!(window(&near, 0).is_err());
        near.next = &|| 0x7000_0010;
        near.sized = false;
        assert!(window(&near, 0).is_err());
        // Inside: ret; a long nop; then what a branch leads to, or a jump table.
        let text = [0x75, 0x07, 0xc3, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x90, 0x31, 0xc0, 0xc3];
        let f = function(&text, 12);
        assert_eq!(window(&f, 2).unwrap().behind(), 0x7000_0003..0x7000_0007);
        assert!(window(&Function { arrivals: &|| Ok(vec![0x7000_0003]), ..f }, 2).is_err());
        assert!(reason(&[0x75, 0x01, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3], 9, 2).contains("leads into it"));
        assert!(reason(&[0xc3, 0x00, 0x00, 0x00, 0x00, 0xc3], 6, 0).contains("only 1 bytes"));
        assert!(reason(&[0x31, 0xc0, 0xc3, 0x55, 0x90, 0x90], 3, 0).contains("only 3 bytes"));
    }

    #[test]
    fn branches_into_the_window() {
        // nop; nop; dec edi; jne -4 (to +1); nops; ret
        assert!(reason(&[0x90, 0x90, 0xff, 0xcf, 0x75, 0xfb, 0x90, 0xc3], 8, 0).contains("+0x4"));
        // sub rdi,1; jne to the first byte: below the stack pointer there may be something by then
        let text = [0x48, 0x81, 0xef, 0x01, 0x00, 0x00, 0x00, 0x75, 0xf7, 0xc3];
        assert!(reason(&text, 10, 0).contains("a loop leads to its beginning"));
        assert_eq!(trap_window(&function(&text, 10), 0).unwrap().len, 7);
        for f in
            [Function { red_zone: false, ..function(&text, 10) }, Function { begins: false, ..function(&text, 10) }]
        {
            assert_eq!(window(&f, 0).unwrap().len, 7);
        }
        // mov rax,[rip-7]: its own bytes
        let text = [0x48, 0x8b, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc3];
        assert!(reason(&text, 8, 0).contains("refers to them"));
        assert!(trap_window(&function(&text, 8), 0).is_err());
        assert!(reason(&[0xcc, 0x48, 0x89, 0xe5, 0x90, 0xc3], 6, 0).contains("breakpoint"));
    }

    #[test]
    fn an_address_is_that_of_the_original() {
        // lea rax,[rip-7]: its own; ret
        let text = [0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xc3];
        for w in [window(&function(&text, 8), 0).unwrap(), trap_window(&function(&text, 8), 0).unwrap()] {
            let copy = w.copy_to(0x7100_0000).unwrap();
            let moved = Decoder::with_ip(64, &copy.code, 0x7100_0000, 0).decode();
            assert_eq!((moved.code(), moved.op0_register()), (Code::Mov_r64_imm64, Register::RAX));
            assert_eq!(moved.immediate64(), 0x7000_0000);
        }
    }

    #[test]
    fn jumps_that_data_tells() {
        // nop; nop; nop; mov eax,1; jmp rax
        let text = [0x90, 0x90, 0x90, 0xb8, 1, 0, 0, 0, 0xff, 0xe0];
        let f = function(&text, 10);
        assert!(window(&f, 0).unwrap().indirect);
        assert!(window(&Function { arrivals: &|| Err("not understood".into()), ..f }, 0).is_err());
        // jmp +0x100, to what jumps on
        let text = [0x90, 0x90, 0x90, 0x90, 0x90, 0xe9, 0, 1, 0, 0];
        assert!(!window(&function(&text, 10), 0).unwrap().indirect);
        let f = Function { thunk: &|address| address == 0x7000_010a, ..function(&text, 10) };
        assert!(window(&Function { arrivals: &|| Err("a thunk".into()), ..f }, 0).is_err());
    }

    #[test]
    fn calls_keep_their_return_address() {
        // sub rsp,8; call +0x100; add rsp,8; ret
        let text = [0x48, 0x83, 0xec, 0x08, 0xe8, 0x00, 0x01, 0x00, 0x00, 0x48, 0x83, 0xc4, 0x08, 0xc3];
        let w = window(&function(&text, 14), 0).unwrap();
        assert_eq!(w.len, 9);
        let copy = w.copy_to(0x7100_0000).unwrap();
        assert_eq!(copy.moves, [(0x7000_0004, 0x7100_0004)]);
        let insns: Vec<_> = Decoder::with_ip(64, &copy.code, 0x7100_0000, 0).into_iter().collect();
        assert_eq!(insns.len(), 5);
        assert_eq!((insns[2].immediate32(), insns[3].immediate32()), (0x7000_0009, 0));
        assert_eq!((insns[4].mnemonic(), insns[4].near_branch_target()), (Mnemonic::Jmp, 0x7000_0109));

        // call [rip+0x10]; ret, as the first instruction
        let w = window(&function(&[0xff, 0x15, 0x10, 0, 0, 0, 0xc3], 7), 0).unwrap();
        let copy = w.copy_to(0x7100_0000).unwrap();
        let last = Decoder::with_ip(64, &copy.code, 0x7100_0000, 0).into_iter().last().unwrap();
        assert_eq!((last.code(), last.ip_rel_memory_address()), (Code::Jmp_rm64, 0x7000_0016));
        assert!(copy.moves.is_empty());

        // call [rsp+8]
        assert!(reason(&[0xff, 0x54, 0x24, 0x08, 0x90, 0xc3], 6, 0).contains("Call"));
    }

    #[test]
    fn breakpoints_take_one_instruction() {
        // ret, another function behind it
        let w = trap_window(&function(&[0xc3, 0x55], 1), 0).unwrap();
        assert_eq!((w.address, w.len, w.taken()), (0x7000_0000, 1, 0x7000_0000..0x7000_0001));
        assert_eq!((w.patch(0), w.copy_to(0x7000_1000).unwrap().code), (Some(vec![0xcc]), vec![0xc3]));

        // nop; nop; dec edi; jne to +1; ret
        let text = [0x90, 0x90, 0xff, 0xcf, 0x75, 0xfb, 0xc3];
        let f = function(&text, 7);
        let copy = trap_window(&f, 0).unwrap().copy_to(0x6fff_0000).unwrap();
        let back = Decoder::with_ip(64, &copy.code[1..], 0x6fff_0001, 0).decode();
        assert_eq!((copy.code[0], back.near_branch_target()), (0x90, 0x7000_0001));
        // The conditional branch itself: to its target, or on.
        let copy = trap_window(&f, 4).unwrap().copy_to(0x6fff_0000).unwrap();
        let insns: Vec<_> = Decoder::with_ip(64, &copy.code, 0x6fff_0000, 0).into_iter().collect();
        assert_eq!((insns[0].mnemonic(), insns[0].near_branch_target()), (Mnemonic::Jne, 0x7000_0001));
        assert_eq!(insns[1].near_branch_target(), 0x7000_0006);
        assert_eq!(trap_window(&f, 3).unwrap_err(), Refusal::MidInstruction { before: 2, after: 4 });

        // endbr64; dec edi; jne to behind endbr64: a hit there would be no call
        let text = [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0xcf, 0x75, 0xfc, 0xc3];
        assert_eq!(trap_window(&function(&text, 9), 0).unwrap().address, 0x7000_0000);
        assert_eq!(trap_window(&function(&[0xf3, 0x0f, 0x1e, 0xfa, 0xc3], 5), 0).unwrap().address, 0x7000_0004);
        for bad in [&[0x0f, 0x05, 0xc3][..], &[0xcc, 0xc3], &[0xe2, 0xfe, 0xc3], &[0xff, 0x54, 0x24, 0x08]] {
            assert!(trap_window(&function(bad, bad.len() as u64), 0).is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn offsets_are_instructions() {
        let text = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x47, 0x01, 0x5d, 0xc3, 0x90, 0x90, 0x90, 0x90];
        let f = function(&text, 10);
        assert_eq!(window(&f, 2).unwrap_err(), Refusal::MidInstruction { before: 1, after: 4 });
        let w = window(&f, 1).unwrap();
        assert_eq!((w.address, w.len, w.entry), (0x7000_0001, 7, false));
        // A landing pad, or a jump that is not understood.
        let arriving = |places: Result<Vec<u64>, String>, offset: u64| {
            window(&Function { arrivals: &|| places.clone(), ..function(&text, 10) }, offset)
        };
        assert!(arriving(Ok(vec![0x7000_0004]), 1).is_err());
        assert!(arriving(Ok(vec![0x7000_0001, 0x7000_0008]), 1).is_ok());
        assert!(arriving(Err("unknown".into()), 1).is_err());
        assert!(arriving(Err("unknown".into()), 0).is_ok());
        assert!(matches!(window(&function(&text, 10), 10), Err(Refusal::NoJump(_))));
    }
}
