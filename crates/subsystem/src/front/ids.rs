//! Numbers of objects: given out in a circle, found in constant time, walked in order.

use skep_ebpf::Errno;

use super::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The largest number: the kernel's ids are positive `int`s.
const MAX_ID: u32 = i32::MAX as u32;
/// Numbers in a leaf.
const LEAF: u32 = 1024;
const WORDS: usize = (LEAF / 64) as usize;

/// Numbers that follow one another: which are taken, and by what. An object that is being made has no entry yet.
#[derive(Debug)]
struct Leaf<T> {
    taken: [u64; WORDS],
    objects: Box<[Weak<T>]>,
}

impl<T> Leaf<T> {
    fn new() -> Leaf<T> {
        Leaf { taken: [0; WORDS], objects: (0..LEAF).map(|_| Weak::new()).collect() }
    }

    /// The first taken place from `from` on.
    fn next(&self, from: u32) -> Option<u32> {
        let first = (from / 64) as usize;
        (first..WORDS).find_map(|w| {
            let mask = if w == first { u64::MAX << (from % 64) } else { u64::MAX };
            let word = self.taken.get(w)? & mask;
            (word != 0).then(|| w as u32 * 64 + word.trailing_zeros())
        })
    }

    fn word(&mut self, place: u32) -> Option<(&mut u64, u64)> {
        Some((self.taken.get_mut((place / 64) as usize)?, 1 << (place % 64)))
    }
}

/// Leaves by the high bits of the numbers; those without numbers are not there.
#[derive(Debug)]
struct Inner<T> {
    last: u32,
    count: usize,
    leaves: Vec<Option<Leaf<T>>>,
}

impl<T> Inner<T> {
    fn leaf(&self, number: u32) -> Option<&Leaf<T>> {
        self.leaves.get((number / LEAF) as usize)?.as_ref()
    }

    fn is_taken(&self, number: u32) -> bool {
        let place = number % LEAF;
        self.leaf(number).is_some_and(|l| l.next(place) == Some(place))
    }

    fn take(&mut self, number: u32) {
        let at = (number / LEAF) as usize;
        if self.leaves.len() <= at {
            self.leaves.resize_with(at + 1, || None);
        }
        if let Some((word, bit)) =
            self.leaves.get_mut(at).and_then(|l| l.get_or_insert_with(Leaf::new).word(number % LEAF))
        {
            *word |= bit;
            self.count += 1;
        }
    }

    fn set(&mut self, number: u32, object: Weak<T>) {
        let leaf = self.leaves.get_mut((number / LEAF) as usize).and_then(Option::as_mut);
        if let Some(place) = leaf.and_then(|l| l.objects.get_mut((number % LEAF) as usize)) {
            *place = object;
        }
    }

    fn free(&mut self, number: u32) {
        self.set(number, Weak::new());
        let Some(slot) = self.leaves.get_mut((number / LEAF) as usize) else { return };
        if let Some((word, bit)) = slot.as_mut().and_then(|l| l.word(number % LEAF)) {
            *word &= !bit;
            self.count -= 1;
        }
        if slot.as_ref().is_some_and(|l| l.next(0).is_none()) {
            *slot = None;
        }
    }

    fn next(&self, from: u32) -> Option<u32> {
        let first = (from / LEAF) as usize;
        self.leaves.iter().enumerate().skip(first).find_map(|(n, leaf)| {
            let place = leaf.as_ref()?.next(if n == first { from % LEAF } else { 0 })?;
            Some(n as u32 * LEAF + place)
        })
    }
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
        Ids(Mutex::new(Inner { last: 0, count: 0, leaves: Vec::new() }))
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
                if !inner.is_taken(n) {
                    break;
                }
                if n == inner.last {
                    return Err(Errno::ENOSPC);
                }
            }
            inner.last = n;
            inner.take(n);
            n
        };
        // Until the object is there, nobody finds it: the number is taken and has no entry.
        let object = Arc::new(make(Id { number, table: Arc::downgrade(self) }));
        self.lock().set(number, Arc::downgrade(&object));
        Ok(object)
    }

    /// The object with this number, if it lives.
    pub fn get(&self, number: u32) -> Option<Arc<T>> {
        self.lock().leaf(number)?.objects.get((number % LEAF) as usize)?.upgrade()
    }

    /// The smallest number in use above `start`.
    pub fn next(&self, start: u32) -> Option<u32> {
        let from = start.checked_add(1)?;
        self.lock().next(from)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().count
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
            table.lock().free(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sync::model;
    use super::*;

    #[test]
    fn numbers_go_round() {
        model(1, go_round);
    }

    fn go_round() {
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
        let many: Vec<_> = (0..3000).map(|_| ids.add(|id| Thing { id }).unwrap()).collect();
        assert_eq!((ids.next(1023), ids.next(2500), ids.len()), (Some(1024), Some(2501), 3002));
        drop((many, b, c));
        assert_eq!((ids.next(0), ids.len()), (None, 0));
        assert!(ids.lock().leaves.iter().all(Option::is_none));
    }
}
