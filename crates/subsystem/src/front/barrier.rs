//! Memory barriers on the processors of other processes.
//!
//! A thread of a traced process that keeps its vCPU slot says by a plain store that it begins a run, and may read what the
//! controller has changed before that store is seen. Whoever asks whether slots are in use has all processors that run
//! such processes (they are registered when they are attached to) go through a barrier first.

/// `MEMBARRIER_CMD_GLOBAL_EXPEDITED`.
const GLOBAL_EXPEDITED: usize = 2;

fn membarrier(command: usize) -> i64 {
    // SAFETY: no memory is passed.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

/// True if the system has such barriers, and this process may ask for them.
pub fn works() -> bool {
    membarrier(0) as usize & GLOBAL_EXPEDITED != 0 && membarrier(GLOBAL_EXPEDITED) == 0
}

/// The barrier. It does not fail where it [works].
pub fn synchronise() {
    let done = membarrier(GLOBAL_EXPEDITED);
    debug_assert_eq!(done, 0);
}
