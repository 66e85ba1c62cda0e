//! Giving back what a slot held whose program will not go on: its thread died, or left it by `siglongjmp`.
//!
//! The slot's record says what that can be (see `pool.rs`). Each step leaves a state that this very recovery handles, for
//! it may be left as well.

use skep_ebpf::uapi::MapType;

use crate::header::{CONTROL_SLOT, View};
use crate::pool::LINKED;
use crate::ringbuf::{BUSY, DISCARD, Ring, span};
use crate::sync::{AtomicU32, FREE, Ordering, owner_of};
use crate::{hash, queue, user_ring};

/// What a recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Locks that were held.
    pub locks: u32,
    /// Elements that were in transit.
    pub elements: u32,
    /// Ring-buffer records that were reserved: now discarded, so the consumer should look.
    pub records: u32,
}

pub(crate) fn recover(v: View<'_>, slot: u32) -> Recovered {
    if slot >= v.h.nslots && slot != CONTROL_SLOT {
        return Recovered::default();
    }
    match MapType::from_u32(v.h.map_type) {
        Some(
            MapType::Hash
            | MapType::PercpuHash
            | MapType::LruHash
            | MapType::LruPercpuHash
            | MapType::StackTrace
            | MapType::LpmTrie
            | MapType::HashOfMaps,
        ) => pool(v, slot),
        Some(MapType::Queue | MapType::Stack) => lock(queue::lock(v), slot),
        Some(MapType::UserRingbuf) => lock(user_ring::lock(v), slot),
        Some(MapType::Ringbuf) => ring(v, slot),
        _ => Recovered::default(),
    }
}

/// Recovers a map with buckets and elements.
fn pool(v: View<'_>, slot: u32) -> Recovered {
    let (record, me) = (v.record(slot), owner_of(slot));
    let mut done = Recovered::default();
    let name = record.bucket.load(Ordering::Acquire);
    let named = [&record.spare, &record.journal, &record.other];
    // A map that programs do not write may be mapped read-only; nothing is held there.
    let held = record.held_by(v);
    if name == 0 && held.is_none() && named.iter().skip(1).all(|word| word.load(Ordering::Acquire) == 0) {
        return done;
    }
    // Elements in transit are outside of all chains, but for one that is being put in or taken out: under the lock.
    let locked = name.checked_sub(1).map(|n| v.bucket(n)).filter(|bucket| bucket.lock.load(Ordering::Acquire) == me);
    let mut spare = None;
    for (n, word) in named.into_iter().enumerate() {
        let Some(e) = v.elem(word.load(Ordering::Acquire).wrapping_sub(1)) else { continue };
        if e.node().owner.load(Ordering::Acquire) != me {
            if n != 0 {
                v.hint(e.idx); // it may be free, and its hint taken
            }
        } else if locked.is_some_and(|bucket| hash::link_to(v, bucket, e).is_some()) {
            e.node().owner.store(LINKED, Ordering::Release);
        } else if n == 0 {
            spare = Some(e.idx);
        } else if spare != Some(e.idx) {
            done.elements += 1;
            if let Some(bucket) = locked {
                bucket.changed(); // before it is used again: the slot may have ended before it could say so
            }
            if has_spares(v) && spare.is_none() {
                v.set_spare(slot, e);
                spare = Some(e.idx);
            } else {
                v.push(slot, e);
            }
        }
    }
    if let Some(e) = held.filter(|_| v.h.face != 0) {
        done.locks += release(e.lock(), me);
    }
    if let Some(bucket) = locked {
        bucket.changed();
        done.locks += release(&bucket.lock, me);
    }
    record.held.store(0, Ordering::Release);
    record.settled();
    record.bucket.store(0, Ordering::Release);
    done
}

/// True if each slot has an element for its next replacement.
fn has_spares(v: View<'_>) -> bool {
    let replaces = matches!(
        MapType::from_u32(v.h.map_type),
        Some(MapType::Hash | MapType::LruHash | MapType::LpmTrie | MapType::HashOfMaps)
    );
    replaces && v.h.face == 0
}

/// Frees the one lock of a map.
fn lock(word: &AtomicU32, slot: u32) -> Recovered {
    // A map that programs do not write may be mapped read-only; its lock is free.
    if word.load(Ordering::Acquire) != owner_of(slot) {
        return Recovered::default();
    }
    Recovered { locks: release(word, owner_of(slot)), ..Recovered::default() }
}

/// Frees a lock if the slot holds it.
fn release(lock: &AtomicU32, me: u32) -> u32 {
    u32::from(lock.compare_exchange(me, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// Discards the records that a slot reserved and will not commit.
fn ring(v: View<'_>, slot: u32) -> Recovered {
    let me = owner_of(slot);
    let ring = Ring::new(v);
    let mut done = Recovered { locks: release(ring.lock, me), ..Recovered::default() };
    let producer = ring.producer.load(Ordering::Acquire);
    let mut pos = ring.pending.load(Ordering::Acquire);
    if producer.wrapping_sub(pos) > ring.mask.wrapping_add(1) {
        return done; // corrupt: the consumer will notice and start again
    }
    while pos != producer {
        let record = ring.record(pos);
        let len = record.len.load(Ordering::Acquire);
        if len & BUSY != 0 && record.owner.load(Ordering::Acquire) == me {
            let discarded = (len & !BUSY) | DISCARD;
            let swapped = record.len.compare_exchange(len, discarded, Ordering::SeqCst, Ordering::Relaxed);
            done.records += u32::from(swapped.is_ok());
        }
        let step = span(u64::from(len & !(BUSY | DISCARD)));
        if step > producer.wrapping_sub(pos) {
            break;
        }
        pos = pos.wrapping_add(step);
    }
    done
}
