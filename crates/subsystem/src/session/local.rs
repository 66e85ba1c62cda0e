//! Runs in this process.

use skep_jit::Engine;
use skep_maps::MapRef;
use skep_maps::control::Arena;
use skep_runtime::Machine;
use skep_runtime::session::{Control, SharedHead, Slot, owner_word};
use std::sync::atomic::Ordering;

use super::{Entry, Session, SessionError};
use crate::testrun::{TestInput, TestOutput, TestRunError, test_run};

/// The index that this process has in owner words; the last one, so that targets can have the others.
const PROC_INDEX: u32 = (1 << 20) - 2;

/// The maps as this process sees them.
pub struct Local {
    maps: Box<[MapRef]>,
}

impl Local {
    pub fn new(entries: &[Entry], control: &Arena, map_header: impl Fn(usize) -> u64) -> Local {
        let maps = entries.iter().enumerate().map(|(i, entry)| {
            let arena = match entry {
                Entry::Map(map) => map.arena(),
                Entry::Absent(arena) => arena,
            };
            MapRef { hdr: control.ptr().wrapping_add(map_header(i) as usize).cast(), data: arena.ptr() }
        });
        Local { maps: maps.collect() }
    }
}

/// A slot that this thread holds.
struct Held<'a>(&'a Slot);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.owner.store(0, Ordering::Release);
    }
}

impl Session {
    /// Runs a program in this process on given data, as `BPF_PROG_TEST_RUN` does.
    pub fn test_run(&self, program: usize, input: &TestInput<'_>) -> Result<TestOutput, TestRunError> {
        let compiled = self.programs.get(program).ok_or(TestRunError::NoProgram { index: program })?;
        let (slot, _held) = self.take_slot().ok_or(TestRunError::NoSlot)?;
        let (control, shared) = (self.runnable()?.cast::<Control>(), self.shared.ptr().cast::<SharedHead>());
        // SAFETY: the arenas and the maps live as long as `self`, and the slot is held.
        let mut machine = unsafe { Machine::new(control, shared, self.local.maps.as_ptr(), slot) };
        let mut over_budget = false;
        let output = test_run(compiled.prog_type(), input, &mut |ctx| {
            // SAFETY: `test_run` makes contexts of the type that it is given, and the program is of that type.
            match unsafe { machine.run(program as u32, ctx) } {
                Some(run) => {
                    over_budget |= run.over_budget;
                    run.retval
                }
                None => 0,
            }
        })?;
        if over_budget { Err(TestRunError::OverBudget { budget: self.head().budget }) } else { Ok(output) }
    }

    /// The control arena as programs see it: executable if one of them is machine code.
    fn runnable(&self) -> Result<*const u8, TestRunError> {
        if self.programs.iter().any(|p| p.engine() == Engine::Jit) {
            self.control.code().map_err(|e| TestRunError::NoCode { problem: e.to_string() })
        } else {
            Ok(self.control.ptr())
        }
    }

    fn take_slot(&self) -> Option<(u32, Held<'_>)> {
        let (control, shared) = (self.head(), self.shared_head());
        let owner = owner_word(PROC_INDEX, u64::from(std::process::id()) << 4);
        (0..control.nslots).find_map(|index| {
            let slot = shared.slot(control, index)?;
            slot.owner.compare_exchange(0, owner, Ordering::Acquire, Ordering::Relaxed).ok()?;
            Some((index, Held(slot)))
        })
    }

    /// The program of a name.
    pub fn program(&self, name: &str) -> Result<usize, SessionError> {
        let found = self.programs.iter().position(|p| p.name() == name);
        found.ok_or_else(|| SessionError::NoSuchProgram { name: name.to_owned() })
    }
}
