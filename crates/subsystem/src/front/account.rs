//! Memory that users are charged for, in pages, against a limit (`RLIMIT_MEMLOCK` up to Linux 5.10).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_ebpf::Errno;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Pages in use, by user.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<HashMap<u32, u64>>);

/// What one object is charged; given back when it goes.
#[derive(Debug)]
pub struct Charge {
    accounts: Arc<Accounts>,
    uid: u32,
    pages: u64,
}

impl Accounts {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges a user for this many bytes. `EPERM` if that is above the limit, in bytes.
    pub fn charge(self: &Arc<Self>, uid: u32, bytes: u64, limit: u64) -> Result<Charge, Errno> {
        let pages = bytes.div_ceil(PAGE);
        let mut accounts = self.lock();
        let used = accounts.entry(uid).or_default();
        let now = used.saturating_add(pages);
        if now > limit / PAGE {
            if *used == 0 {
                accounts.remove(&uid);
            }
            return Err(Errno::EPERM);
        }
        *used = now;
        Ok(Charge { accounts: Arc::clone(self), uid, pages })
    }

    /// Pages that a user is charged for.
    pub fn pages(&self, uid: u32) -> u64 {
        self.lock().get(&uid).copied().unwrap_or(0)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut accounts = self.accounts.lock();
        if let Some(used) = accounts.get_mut(&self.uid) {
            *used = used.saturating_sub(self.pages);
            if *used == 0 {
                accounts.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_exact() {
        let accounts: Arc<Accounts> = Arc::default();
        let a = accounts.charge(1, 1, 3 * PAGE).unwrap();
        let b = accounts.charge(1, PAGE + 1, 3 * PAGE).unwrap();
        assert_eq!(accounts.pages(1), 3);
        assert_eq!(accounts.charge(1, 1, 3 * PAGE).unwrap_err(), Errno::EPERM);
        assert!(accounts.charge(2, 1, PAGE).is_ok());
        drop(a);
        assert_eq!(accounts.pages(1), 2);
        drop(b);
        assert_eq!((accounts.pages(1), accounts.pages(2)), (0, 0));
        assert_eq!(accounts.charge(3, 1, 0).unwrap_err(), Errno::EPERM);
        assert!(accounts.lock().is_empty());
    }
}
