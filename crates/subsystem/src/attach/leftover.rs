//! Undoing what a killed session left in a process: patched text whose session is dead.
//!
//! It is found by the process block's name in the mappings. Its trampolines and stubs stay mapped: threads may be inside,
//! and return addresses on stacks may be stubs'. They fall through, since the session's enable word is dead.

use std::mem::offset_of;

use skep_runtime::session::{Control, MAGIC, PROC_NAME, Proc, Site, TID_MASK};

use super::AttachError;
use super::patch::{self, Change};
use super::procfs::Mapping;
use super::sigtrap;
use super::world::{Memory, World};

/// Sites that a left-over may have; more is not a table that skep wrote.
const LIMIT: u32 = 1 << 16;

/// Restores the text of dead sessions. Returns how many places there were. A live session is an error.
pub fn undo(world: &mut World, maps: &[Mapping]) -> Result<usize, AttachError> {
    let name = format!("/memfd:{PROC_NAME}");
    let mut restored = 0;
    // The newest first: its jumps are the ones in the text.
    let blocks = maps.iter().filter(|m| m.name.starts_with(&name) && m.offset == 0);
    for block in blocks {
        let changes = changes(&world.memory, block)?;
        if !changes.is_empty() {
            if is_alive(&world.memory, block.range.start)? {
                return Err(AttachError::AlreadyProbed { pid: world.pid });
            }
            patch::write(world, &changes)?;
            restored += changes.len();
        }
        // Its handler may be left even where its text is not.
        if world.memory.word(block.range.start + offset_of!(Proc, magic) as u64)? == MAGIC {
            let state = world.memory.word(block.range.start + offset_of!(Proc, trap_state) as u64)?;
            if state != 0 {
                sigtrap::undo(world, maps, state)?;
            }
        }
    }
    Ok(restored)
}

/// What to restore: the places whose text is as the block's session patched it.
fn changes(memory: &Memory, block: &Mapping) -> Result<Vec<Change>, AttachError> {
    let base = block.range.start;
    let half = |address: u64| memory.word(address).map(|word| word as u32);
    if memory.word(base + offset_of!(Proc, magic) as u64)? != MAGIC {
        return Ok(Vec::new());
    }
    let count = half(base + offset_of!(Proc, nsites) as u64)?.min(LIMIT);
    let sites = memory.word(base + offset_of!(Proc, sites) as u64)?;
    let mut changes = Vec::new();
    for n in 0..u64::from(count) {
        let Some(site) = sites.checked_add(n * size_of::<Site>() as u64).and_then(|offset| base.checked_add(offset))
        else {
            break;
        };
        if !block.range.contains(&site) || site + size_of::<Site>() as u64 > block.range.end {
            break;
        }
        if half(site + offset_of!(Site, active) as u64)? == 0 {
            continue;
        }
        let address = memory.word(site + offset_of!(Site, ip) as u64)?;
        let len = half(site + offset_of!(Site, len) as u64)?.min(16) as usize;
        let mut old = vec![0; len];
        let mut new = vec![0; len];
        memory.read(site + offset_of!(Site, patched) as u64, &mut old)?;
        memory.read(site + offset_of!(Site, original) as u64, &mut new)?;
        if memory.read_up_to(address, len) == old {
            changes.push(Change { address, old, new });
        }
    }
    Ok(changes)
}

/// Does the session of the block at `base` live, and deliver hits from this process?
fn is_alive(memory: &Memory, base: u64) -> Result<bool, AttachError> {
    let control = memory.word(base + offset_of!(Proc, control) as u64)?;
    let alive = memory.word(base + offset_of!(Proc, alive) as u64)?;
    let enable = memory.word(control + offset_of!(Control, enable) as u64)? as u32;
    Ok(enable & TID_MASK != 0 && memory.word(alive)? as u32 == 1)
}
