//! Numbers of objects: given out in a circle, found in constant time, walked in order.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_ebpf::Errno;

/// The largest number: the kernel's ids are positive `int`s.
const MAX_ID: u32 = i32::MAX as u32;

#[derive(Debug)]
struct Inner<T> {
    last: u32,
    objects: HashMap<u32, Weak<T>>,
    order: BTreeSet<u32>,
}

/// All live objects of one kind by their numbers. An object takes itself out when it goes ([`Id`]).
#[derive(Debug)]
pub struct Ids<T>(Mutex<Inner<T>>);

/// The number of an object, free again when this goes.
#[derive(Debug)]
pub struct Id<T> {
    number: u32,
    table: Weak<Ids<T>>,
}

impl<T> Default for Ids<T> {
    fn default() -> Ids<T> {
        Ids(Mutex::new(Inner { last: 0, objects: HashMap::new(), order: BTreeSet::new() }))
    }
}

impl<T> Ids<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an object that knows its number. Numbers are not used again until all others had their turn.
    pub fn add(self: &Arc<Self>, make: impl FnOnce(Id<T>) -> T) -> Result<Arc<T>, Errno> {
        let number = {
            let mut inner = self.lock();
            let mut n = inner.last;
            loop {
                n = if n >= MAX_ID { 1 } else { n + 1 };
                if !inner.order.contains(&n) {
                    break;
                }
                if n == inner.last {
                    return Err(Errno::ENOSPC);
                }
            }
            inner.last = n;
            inner.order.insert(n);
            n
        };
        // Until the object is there, nobody finds it: the number is taken and has no entry.
        let object = Arc::new(make(Id { number, table: Arc::downgrade(self) }));
        self.lock().objects.insert(number, Arc::downgrade(&object));
        Ok(object)
    }

    /// The object with this number, if it lives.
    pub fn get(&self, number: u32) -> Option<Arc<T>> {
        self.lock().objects.get(&number)?.upgrade()
    }

    /// The smallest number in use above `start`.
    pub fn next(&self, start: u32) -> Option<u32> {
        let from = start.checked_add(1)?;
        self.lock().order.range(from..).next().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().order.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Id<T> {
    /// The number.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl<T> Drop for Id<T> {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            let mut inner = table.lock();
            inner.objects.remove(&self.number);
            inner.order.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_round() {
        struct Thing {
            id: Id<Thing>,
        }
        let ids: Arc<Ids<Thing>> = Arc::default();
        let a = ids.add(|id| Thing { id }).unwrap();
        let b = ids.add(|id| Thing { id }).unwrap();
        assert_eq!((a.id.number(), b.id.number()), (1, 2));
        drop(a);
        assert!(ids.get(1).is_none());
        let c = ids.add(|id| Thing { id }).unwrap();
        assert_eq!(c.id.number(), 3);
        assert_eq!((ids.next(0), ids.next(2), ids.next(3), ids.next(u32::MAX)), (Some(2), Some(3), None, None));
        assert_eq!(ids.len(), 2);
        assert!(ids.get(2).is_some_and(|t| Arc::ptr_eq(&t, &b)));
    }
}
