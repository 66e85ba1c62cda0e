//! Writing the text of a stopped process, with no thread left inside the bytes that change.

use std::collections::HashMap;
use std::ops::Range;

use super::AttachError;
use super::procfs::Mapping;
use super::ptrace::{self, Tid};
use super::unwind::signal_frame;
use super::world::World;

/// How much of a stack is searched above its pointer.
const STACK_LIMIT: u64 = 64 << 20;
/// The red zone: a leaf function uses it below its stack pointer.
const RED_ZONE: u64 = 128;

/// A change of text: `old` becomes `new` at `address`.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where.
    pub address: u64,
    /// The bytes that are there.
    pub old: Vec<u8>,
    /// The bytes that will be there.
    pub new: Vec<u8>,
}

impl Change {
    /// What undoes it.
    pub fn back(&self) -> Change {
        Change { address: self.address, old: self.new.clone(), new: self.old.clone() }
    }
}

/// Makes changes, all or none. Those whose place no longer holds the old bytes are an error.
pub fn write(world: &World, changes: &[Change]) -> Result<(), AttachError> {
    for (done, change) in changes.iter().enumerate() {
        if let Err(error) = write_one(world, change) {
            for change in changes.iter().take(done) {
                world.memory.write(change.address, &change.old)?;
            }
            return Err(error);
        }
    }
    Ok(())
}

fn write_one(world: &World, change: &Change) -> Result<(), AttachError> {
    let mut there = vec![0; change.old.len()];
    world.memory.read(change.address, &mut there)?;
    if there != change.old {
        return Err(AttachError::Os {
            what: format!("patching {:#x} of process {}", change.address, world.pid),
            errno: "its text has changed meanwhile".into(),
        });
    }
    world.memory.write(change.address, &change.new)
}

/// Moves every instruction pointer, of threads and in signal frames, from an address in `moves` to the one beside it.
pub fn evict(world: &World, maps: &[Mapping], moves: &HashMap<u64, u64>) -> Result<(), AttachError> {
    if moves.is_empty() {
        return Ok(());
    }
    let lost = |_: std::io::Error| AttachError::Exited { pid: world.pid };
    for tid in world.threads() {
        let Some(mut regs) = world.regs(tid) else { continue };
        if let Some(&to) = moves.get(&regs.rip) {
            regs.rip = to;
            ptrace::set_regs(tid, &regs).map_err(lost)?;
        }
    }
    for_each_stack(world, maps, |world, base, words| {
        for (n, frame) in words.windows(3).enumerate() {
            if let Some(to) = frame.first().and_then(|rip| moves.get(rip))
                && signal_frame(frame)
            {
                world.memory.write(base + n as u64 * 8, &to.to_le_bytes())?;
            }
        }
        Ok(())
    })
}

/// Calls `visit` with the address of rip in each signal frame, or what looks like one, on the stacks of all threads.
pub fn for_each_frame(
    world: &World,
    maps: &[Mapping],
    mut visit: impl FnMut(&World, u64) -> Result<(), AttachError>,
) -> Result<(), AttachError> {
    for_each_stack(world, maps, |world, base, words| {
        for (n, frame) in words.windows(3).enumerate() {
            if signal_frame(frame) {
                visit(world, base + n as u64 * 8)?;
            }
        }
        Ok(())
    })
}

/// Is no thread inside `code`, and no return address into it on any thread's stack?
pub fn is_clear(world: &World, maps: &[Mapping], code: &[Range<u64>]) -> Result<bool, AttachError> {
    let ours = |address: &u64| code.iter().any(|range| range.contains(address));
    if world.threads().filter_map(|tid| world.regs(tid)).any(|regs| ours(&regs.rip)) {
        return Ok(false);
    }
    let mut clear = true;
    for_each_stack(world, maps, |_, _, words| {
        clear &= !words.iter().any(ours);
        Ok(())
    })?;
    Ok(clear)
}

/// How much of a stack is searched for who is inside our code: more than a hit takes.
const NEAR: usize = 64 << 10;

/// The threads that are inside `code`, or have a return address into it not far up on their stacks.
pub fn inside(world: &World, code: &[Range<u64>]) -> Vec<Tid> {
    let ours = |address: u64| code.iter().any(|range| range.contains(&address));
    let is_inside = |tid: &Tid| {
        let Some(regs) = world.regs(*tid) else { return false };
        let near = || world.memory.read_up_to(regs.rsp & !7, NEAR);
        let words = |bytes: Vec<u8>| bytes.chunks_exact(8).any(|w| ours(w.try_into().map_or(0, u64::from_le_bytes)));
        ours(regs.rip) || words(near())
    };
    world.threads().filter(is_inside).collect()
}

/// Calls `visit` with pieces of all stacks that threads are on, and those that their signal frames will return to. A piece
/// overlaps the one before by two words.
fn for_each_stack(
    world: &World,
    maps: &[Mapping],
    mut visit: impl FnMut(&World, u64, &[u64]) -> Result<(), AttachError>,
) -> Result<(), AttachError> {
    let mut pending: Vec<u64> = world.threads().filter_map(|tid| Some(world.regs(tid)?.rsp)).collect();
    let mut seen: Vec<Range<u64>> = Vec::new();
    while let Some(sp) = pending.pop() {
        let Some(mapping) = maps.iter().find(|m| m.range.contains(&sp)) else { continue };
        let mut at = (sp.saturating_sub(RED_ZONE) & !7).max(mapping.range.start);
        let mut end = mapping.range.end.min(at.saturating_add(STACK_LIMIT));
        // What another thread's search has covered need not be looked at again.
        if let Some(covered) = seen.iter().find(|range| range.contains(&at)) {
            if covered.end >= end {
                continue;
            }
            at = covered.end;
        } else if let Some(next) = seen.iter().filter(|range| range.start > at).map(|range| range.start).min() {
            end = end.min(next);
        }
        seen.push(at..end);
        while at < end {
            let bytes = world.memory.read_up_to(at, (end - at).min(1 << 18) as usize);
            let words: Vec<u64> = bytes.chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_le_bytes)).collect();
            if words.is_empty() {
                break;
            }
            visit(world, at, &words)?;
            // In a signal frame the interrupted stack pointer stands before rip.
            pending.extend(words.windows(4).filter_map(|w| {
                let (sp, frame) = w.split_first()?;
                (signal_frame(frame) && !seen.iter().any(|range| range.contains(sp))).then_some(*sp)
            }));
            let step = words.len() as u64 * 8;
            at += if at + step >= end { step } else { step.saturating_sub(16).max(8) };
        }
    }
    Ok(())
}
