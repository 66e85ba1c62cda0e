//! Slots that threads of this process keep, so that a run need not take and give one.
//!
//! A thread that runs programs often holds a slot from its first run to its end. What tells whether it is inside a run is a
//! word of its own, odd while it is: plain stores, no locked instruction. Who takes something away from runs unpublishes it, has
//! every thread pass a barrier (`membarrier(2)`, so that they need none of their own), and then looks at the words:
//! whoever was not inside then will not find it, and whoever was is waited for by its word's next change.

use std::cell::{Cell, RefCell};
use std::ptr::{self, NonNull, null_mut};
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
    /// The slot's word, and what holds it.
    state: *const AtomicU64,
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

/// The slot that a thread ran on last, if runs on it need no fence.
struct Last {
    number: Cell<u64>,
    lease: Cell<*mut Lease>,
}

impl Last {
    fn forget(&self) {
        self.number.set(0);
        self.lease.set(null_mut());
    }
}

thread_local! {
    /// Without a destructor, so that it costs no more than a load.
    static LAST: Last = const { Last { number: Cell::new(0), lease: Cell::new(null_mut()) } };
    /// The slots that this thread keeps, of each world one.
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

/// A lease at an address of its own.
struct Kept(NonNull<Lease>);

impl Kept {
    fn new(lease: Lease) -> Kept {
        Kept(NonNull::from(Box::leak(Box::new(lease))))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        LAST.with(|last| {
            if ptr::eq(last.lease.get(), self.0.as_ptr()) {
                last.forget();
            }
        });
        // SAFETY: it came from a box, and no run goes on on it: the world has gone, or the thread ends.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A run is going on; its end is told however it ends.
struct Running {
    state: *const AtomicU64,
    after: u64,
}

impl Drop for Running {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the lease that holds the words outlives its runs.
        unsafe { &*self.state }.store(self.after, Ordering::Release);
    }
}

impl Lease {
    /// The slot's word, if no run goes on.
    ///
    /// # Safety
    /// The lease is there, and this thread's.
    #[inline]
    unsafe fn idle(lease: *const Lease) -> Option<u64> {
        // SAFETY: the caller's promise; the word is held by the lease.
        let word = unsafe { (*(*lease).state).load(Ordering::Relaxed) };
        (!is_running(word)).then_some(word)
    }

    /// Runs something on the slot, whose word is `before`.
    ///
    /// # Safety
    /// As [`Lease::idle`], which has just given the word; the lease is not let go by `run`. Without a fence others have
    /// `membarrier`.
    #[inline]
    unsafe fn run<T, const FENCE: bool>(lease: *mut Lease, before: u64, run: impl FnOnce(&mut Machine) -> T) -> T {
        // SAFETY: the caller's promises. Whoever finds the word odd leaves the machine alone.
        unsafe {
            let state = (*lease).state;
            (*state).store(before + 1, Ordering::Relaxed);
            // What was unpublished before the barrier of those who look at the word is not loaded above this line.
            if FENCE {
                fence(Ordering::SeqCst)
            } else {
                compiler_fence(Ordering::SeqCst)
            }
            // Each run has a number of its own: by it others see that one which held a lock is over. By twos: whether the
            // number is odd says something else.
            let taken = &(*(*lease).words).taken;
            taken.store(taken.load(Ordering::Relaxed).wrapping_add(2), Ordering::Relaxed);
            let _running = Running { state, after: before + 2 };
            run(&mut (*lease).machine)
        }
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
    #[inline]
    pub(crate) fn enter<T>(&self, run: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let (number, lease) = LAST.with(|last| (last.number.get(), last.lease.get()));
        if number == self.leases.number {
            // SAFETY: a lease is forgotten before it goes, and is this thread's.
            unsafe {
                if ptr::eq((*lease).control, self.code_view())
                    && let Some(before) = Lease::idle(lease)
                {
                    return Some(Lease::run::<T, false>(lease, before, run));
                }
            }
        }
        self.enter_elsewhere(run)
    }

    /// As [`World::enter`], where the slot has first to be found.
    #[inline(never)]
    fn enter_elsewhere<T>(&self, run: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        let Some(lease) = self.find_lease() else { return self.with_machine(run) };
        // SAFETY: it is this thread's, and lives until the thread ends: what runs cannot take it from it.
        unsafe {
            match Lease::idle(lease) {
                Some(before) if has_membarrier() => {
                    LAST.with(|last| {
                        last.number.set(self.leases.number);
                        last.lease.set(lease);
                    });
                    Some(Lease::run::<T, false>(lease, before, run))
                }
                Some(before) => Some(Lease::run::<T, true>(lease, before, run)),
                // A run within a run, or a signal handler's.
                None => self.with_machine(run),
            }
        }
    }

    /// The slot that this thread keeps, or keeps from now on.
    fn find_lease(&self) -> Option<*mut Lease> {
        let found = KEPT.try_with(|kept| {
            // Borrowed: a signal came in between.
            let mut kept = kept.try_borrow_mut().ok()?;
            let number = self.leases.number;
            // SAFETY: leases are there until they are dropped here.
            let find =
                |kept: &[Kept]| kept.iter().find(|l| unsafe { (*l.0.as_ptr()).number } == number).map(|l| l.0.as_ptr());
            let lease = match find(&kept) {
                Some(lease) => lease,
                None => {
                    // SAFETY: as above.
                    kept.retain(|l| unsafe { (*l.0.as_ptr()).alive.strong_count() } > 0);
                    kept.push(Kept::new(self.lease()?));
                    find(&kept)?
                }
            };
            // SAFETY: it is this thread's; while a run goes on the machine is left alone.
            unsafe {
                if !ptr::eq((*lease).control, self.code_view()) && Lease::idle(lease).is_some() {
                    // The world's code is mapped elsewhere since there is machine code.
                    ((*lease).machine, (*lease).control) = (self.machine((*lease).slot), self.code_view());
                }
            }
            Some(lease)
        });
        found.ok().flatten()
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
        let state = &self.leases.states.get(slot as usize)?.0;
        state.store(IDLE, Ordering::SeqCst);
        Some(Lease {
            state,
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
