//! Whether this process may make system calls of its own accord.
//!
//! Not once it is under a seccomp filter that nobody has looked into: that may end the process for a call. What needs one
//! goes without from then on: reads of memory fail, waits for locks become short, consumers look for records by themselves.

use crate::sync::{AtomicU32, Ordering};

static FORBIDDEN: AtomicU32 = AtomicU32::new(0);

/// No system calls from now on.
pub fn forbid() {
    FORBIDDEN.store(1, Ordering::SeqCst);
}

/// May a system call be made?
#[inline]
pub fn allowed() -> bool {
    FORBIDDEN.load(Ordering::Relaxed) == 0
}
