//! The functions of a program, and how deep they call each other.

use skep_ebpf::insn::{CALL, MAX_CALL_FRAMES, STACK_SIZE};

use crate::{CompileError, Source, special};

/// Bytes of stack that a function with a `may_goto` needs to count its rounds: the lowest of its frame.
pub(crate) const MAY_GOTO_STACK: u32 = 8;

/// A function of the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subprog {
    /// Its first instruction.
    pub(crate) start: u32,
    /// Bytes of stack that it uses, as the verifier saw.
    pub(crate) stack: u32,
    /// Arguments that it has.
    pub(crate) args: u8,
    /// Its number in the program as loaded.
    pub(crate) number: u32,
}

impl Subprog {
    /// Bytes that its frame takes; what is above stays aligned for any access.
    pub(crate) fn frame(self) -> u32 {
        self.stack.next_multiple_of(16)
    }
}

/// What the longest call chain takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) stack: u32,
    pub(crate) frames: u32,
}

/// Index of the function that an instruction belongs to.
pub(crate) fn subprog_of(subprogs: &[Subprog], insn: usize) -> usize {
    subprogs.partition_point(|s| s.start as usize <= insn).saturating_sub(1)
}

/// The longest chain of calls from the main function and from that which exceptions end in, in stack and in frames: at most
/// `room` bytes of stack.
///
/// A helper that calls back counts as a call of the function that it is given; of all whose address is taken, if that is
/// not always the same.
pub(crate) fn longest_chain(source: &Source<'_>, room: usize) -> Result<Chain, CompileError> {
    let subprogs = source.subprogs;
    let mut calls: Vec<Vec<usize>> = vec![Vec::new(); subprogs.len()];
    let mut named = None;
    for (i, insn) in special::marked(source.insns, source.marks) {
        if insn.code != CALL {
            continue;
        }
        let Some(callees) = calls.get_mut(subprog_of(subprogs, i)) else { continue };
        if insn.is_subprog_call() {
            let target = (i as i64 + 1 + i64::from(insn.imm)) as usize;
            callees.push(subprog_of(subprogs, target));
        }
        if let Some(site) = source.special.callbacks.get(&(i as u32)) {
            match site.function {
                Some(function) => callees.push(function as usize),
                None => callees.extend(
                    named
                        .get_or_insert_with(|| special::named_functions(source.insns, source.marks, subprogs))
                        .iter()
                        .copied(),
                ),
            }
        }
    }
    for callees in &mut calls {
        callees.sort_unstable();
        callees.dedup();
    }
    // The verifier has refused recursion, so as many rounds as there may be frames settle all chains.
    let mut chains = vec![Chain::default(); subprogs.len()];
    for _ in 0..=MAX_CALL_FRAMES {
        for (i, subprog) in subprogs.iter().enumerate() {
            let below = calls[i].iter().fold(Chain::default(), |a, &c| Chain {
                stack: a.stack.max(chains[c].stack),
                frames: a.frames.max(chains[c].frames),
            });
            chains[i] = Chain { stack: subprog.frame() + below.stack, frames: 1 + below.frames };
        }
    }
    let mut main = chains.first().copied().unwrap_or_default();
    if let Some(last) = source.special.catches.and_then(|f| chains.get(f as usize)) {
        main = Chain { stack: main.stack.max(last.stack), frames: main.frames.max(last.frames) };
    }
    let fits = main.frames as usize <= MAX_CALL_FRAMES
        && main.stack as usize <= room
        && subprogs.iter().all(|s| s.stack <= STACK_SIZE as u32 + MAY_GOTO_STACK);
    if !fits {
        return Err(CompileError::Calls {
            program: source.name.into(),
            frames: main.frames,
            stack: main.stack,
            max_frames: MAX_CALL_FRAMES as u32,
            max_stack: room as u32,
        });
    }
    Ok(main)
}
