//! What threads share objects with. `tests/interleavings.rs` puts primitives in its place that try out how threads can come
//! in each other's way.

pub(super) use std::sync::atomic::{AtomicU64, Ordering};
pub(super) use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Runs a test so often; here there is nothing to try out.
#[cfg(test)]
pub(super) fn model(_: usize, test: impl Fn() + Send + Sync + 'static) {
    test();
}
