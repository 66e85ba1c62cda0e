//! Slots that threads of this process keep, so that a run need not take and give one.
//!
//! A thread that runs programs often holds a slot from its first run to its end. What tells whether it is inside a run is a
//! word of its own, odd while it is: plain stores, no locked instruction. Who takes something away from runs unpublishes it, has
//! every thread pass a barrier (`membarrier(2)`, so that they need none of their own), and then looks at the words:
//! whoever was not inside then will not find it, and whoever was is waited for by its word's next change.

use std::cell::RefCell;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
use std::sync::{Arc, OnceLock, Weak};

use skep_maps::control::Arena;
use skep_runtime::Machine;
use skep_runtime::session::{Control, Slot};

use super::world::World;

/// No thread keeps the slot.
const NONE: u64 = 0;
/// A thread keeps it and is not in a run; it counts on by two a run.
const IDLE: u64 = 2;

/// The word of one slot, alone in its lines.
#[derive(Debug)]
#[repr(align(128))]
struct State(AtomicU64);

/// Which slots of a world are kept, and who is in a run.
#[derive(Debug)]
pub(super) struct Leases {
    /// Tells worlds apart for threads, whatever address the next one has.
    number: u64,
    states: Arc<[State]>,
    /// Goes with the world.
    alive: Arc<()>,
    kept: Arc<AtomicU32>,
}

/// A slot that this thread keeps.
struct Lease {
    number: u64,
    alive: Weak<()>,
    states: Arc<[State]>,
    kept: Arc<AtomicU32>,
    slot: u32,
    machine: Machine,
    /// The control arena as the machine was made for it.
    control: *const Control,
    /// The slot's words, and what keeps them mapped.
    words: *const Slot,
    _shared: Arc<Arena>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(state) = self.states.get(self.slot as usize) {
            state.0.store(NONE, Ordering::Release);
        }
        self.kept.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the words lie in the arena that is held.
        unsafe { &*self.words }.owner.store(0, Ordering::Release);
    }
}

thread_local! {
    /// The slots that this thread keeps, of each world one. Borrowed while it is in a run on one of them.
    static KEPT: RefCell<Vec<Lease>> = const { RefCell::new(Vec::new()) };
}

/// A run is going on; its end is told however it ends.
struct Running<'a> {
    state: &'a AtomicU64,
    after: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.state.store(self.after, Ordering::Release);
    }
}

const PRIVATE_EXPEDITED: libc::c_int = 8;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 16;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes no addresses.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// True if others can make this process's threads pass a barrier.
fn has_membarrier() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED))
}

impl Leases {
    pub(super) fn new(slots: u32) -> Leases {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Leases {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            states: (0..slots).map(|_| State(AtomicU64::new(NONE))).collect(),
            alive: Arc::default(),
            kept: Arc::default(),
        }
    }

    /// After this, threads that come into a run see what was unpublished before, and those that were in one show it.
    pub(super) fn barrier(&self) {
        if self.kept.load(Ordering::SeqCst) == 0 {
            return;
        }
        fence(Ordering::SeqCst);
        if has_membarrier() {
            // It cannot fail once registered.
            membarrier(PRIVATE_EXPEDITED);
        }
    }

    /// The word of a slot that a thread keeps.
    pub(super) fn state(&self, slot: u32) -> Option<u64> {
        let state = self.states.get(slot as usize)?.0.load(Ordering::SeqCst);
        (state != NONE).then_some(state)
    }
}

/// True if a word says that its thread is in a run.
pub(super) fn is_running(state: u64) -> bool {
    state % 2 == 1
}

impl World {
    /// Runs something with a machine on the slot that this thread keeps, or on one of its own for this time; `None` if all
    /// are taken. What is published may be taken away from runs by [`World::retire_value`].
    ///
    /// A child of `fork` must not use a world of its parent.
    pub(crate) fn enter<T>(&self, run: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let mut run = Some(run);
        let kept = KEPT.try_with(|kept| {
            // Borrowed: a run within a run, or a signal handler's.
            let mut kept = kept.try_borrow_mut().ok()?;
            let number = self.leases.number;
            let at = match kept.iter().position(|l| l.number == number) {
                Some(at) => at,
                None => {
                    kept.retain(|l| l.alive.strong_count() > 0);
                    kept.push(self.lease()?);
                    kept.len() - 1
                }
            };
            let lease = kept.get_mut(at)?;
            if !ptr::eq(lease.control, self.code_view()) {
                // The world's code is mapped elsewhere since there is machine code.
                (lease.machine, lease.control) = (self.machine(lease.slot), self.code_view());
            }
            let state = &lease.states.get(lease.slot as usize)?.0;
            let before = state.load(Ordering::Relaxed);
            state.store(before + 1, Ordering::Relaxed);
            // What was unpublished before the barrier of those who look at the word is not loaded above this line.
            if has_membarrier() {
                compiler_fence(Ordering::SeqCst)
            } else {
                fence(Ordering::SeqCst)
            }
            // Each run has a number of its own: by it others see that one which held a lock is over. By twos: whether the
            // number is odd says something else.
            // SAFETY: the words lie in the arena that is held.
            let taken = unsafe { &(*lease.words).taken };
            taken.store(taken.load(Ordering::Relaxed).wrapping_add(2), Ordering::Relaxed);
            let _running = Running { state, after: before + 2 };
            run.take().map(|run| run(&mut lease.machine))
        });
        match (kept, run) {
            (Ok(Some(result)), _) => Some(result),
            (_, Some(run)) => self.with_machine(run),
            _ => None,
        }
    }

    /// A slot to keep: one of the lower half, as threads of traced processes do, so that the others are left for those who
    /// come and go.
    fn lease(&self) -> Option<Lease> {
        let slots = self.leases.states.len() as u32;
        let count = &self.leases.kept;
        count.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |n| (n < slots / 2).then_some(n + 1)).ok()?;
        let Some((slot, words)) = self.take_slot_below(slots / 2) else {
            count.fetch_sub(1, Ordering::Relaxed);
            return None;
        };
        if let Some(state) = self.leases.states.get(slot as usize) {
            state.0.store(IDLE, Ordering::SeqCst);
        }
        Some(Lease {
            number: self.leases.number,
            alive: Arc::downgrade(&self.leases.alive),
            states: Arc::clone(&self.leases.states),
            kept: Arc::clone(count),
            slot,
            machine: self.machine(slot),
            control: self.code_view(),
            words,
            _shared: Arc::clone(&self.shared),
        })
    }
}
