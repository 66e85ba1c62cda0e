//! How many hold an object from outside: descriptors, pins and links. When the last of them goes, the object lets go of what
//! may hold it in turn, although programs may still use it.

use super::sync::{AtomicU64, Ordering};

/// A count of users.
#[derive(Debug, Default)]
pub struct Users(AtomicU64);

impl Users {
    /// One more. Who adds one holds the object, by another user's hand or by its number.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; true if it was the last.
    pub fn remove(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
