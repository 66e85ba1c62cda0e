//! The order of a longest-prefix map's keys: longer prefixes before those that they begin with, else by their bits.

use std::cmp::Ordering as Order;
use std::sync::Arc;

use crate::header::View;
use crate::lpm::{LENGTH, changes};
use crate::pool::Elem;
use crate::sync::Ordering;
use crate::{hash, mem};

/// A key as it was given.
pub(super) type Key = Vec<u8>;

/// All keys in order, and the state of the map that they are of.
#[derive(Debug, Default, Clone)]
pub(super) struct Sorted {
    changes: Option<u64>,
    keys: Arc<Vec<Key>>,
}

/// The key of an element as it was given.
pub(super) fn key_of(v: View<'_>, e: Elem<'_>) -> Key {
    let mut key = vec![0; v.h.key_size as usize];
    let data = key.len() - LENGTH;
    // SAFETY: the length stands at the key, the data as given behind it.
    unsafe {
        mem::copy(key.as_mut_ptr(), e.key(), LENGTH);
        mem::copy(key.as_mut_ptr().wrapping_add(LENGTH), hash::behind_key(v, e), data);
    }
    key
}

fn len(key: &[u8]) -> u32 {
    key.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b))
}

fn bit(key: &[u8], n: u32) -> bool {
    let byte = key.get(LENGTH + (n / 8) as usize).copied().unwrap_or(0);
    byte & (0x80 >> (n % 8)) != 0
}

/// The order of two keys.
fn order(a: &[u8], b: &[u8]) -> Order {
    let common = len(a).min(len(b));
    let data = |key: &[u8]| key.get(LENGTH..).unwrap_or_default().to_vec();
    let (x, y) = (data(a), data(b));
    let bytes = (common / 8) as usize;
    let whole = x.iter().take(bytes).cmp(y.iter().take(bytes));
    let bits = || (common & !7..common).map(|n| bit(a, n).cmp(&bit(b, n))).find(|o| *o != Order::Equal);
    match whole {
        Order::Equal => bits().unwrap_or_else(|| match len(a).cmp(&len(b)) {
            Order::Equal => Order::Equal,
            // The longer one is in a subtree of the other, and comes before it.
            longer => longer.reverse(),
        }),
        other => other,
    }
}

impl Sorted {
    /// The key behind `key`; the first if there is none, or if it is not there.
    pub(super) fn next(&mut self, v: View<'_>, key: Option<&[u8]>) -> Option<Key> {
        let now = changes(v).load(Ordering::Acquire);
        if self.changes != Some(now) {
            let mut keys = Vec::new();
            hash::for_each(v, |e| {
                keys.push(key_of(v, e));
                true
            });
            keys.sort_by(|a, b| order(a, b));
            *self = Sorted { changes: Some(now), keys: Arc::new(keys) };
        }
        let at = match key {
            None => 0,
            Some(key) => self.keys.binary_search_by(|k| order(k, key)).map_or(0, |n| n + 1),
        };
        self.keys.get(at).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_prefixes_come_first() {
        let key = |len: u32, a: u8, b: u8| [len.to_ne_bytes().as_slice(), &[a, b]].concat();
        let mut keys = [key(0, 0, 0), key(8, 10, 0), key(16, 10, 1), key(9, 10, 0x80), key(16, 9, 9), key(1, 0x80, 0)];
        keys.sort_by(|a, b| order(a, b));
        let lens: Vec<u32> = keys.iter().map(|k| len(k)).collect();
        assert_eq!(lens, [16, 16, 9, 8, 1, 0]);
    }
}
