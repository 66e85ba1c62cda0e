//! Giving back what a dead slot held.

use std::time::{Duration, Instant};

use skep_ebpf::uapi::MapType;

use super::{Map, is_hash};
use crate::header::{CONTROL_SLOT, View};
use crate::pool::{Elem, LINKED};
use crate::ringbuf::{BUSY, DISCARD, Ring, span};
use crate::sync::{AtomicU32, FREE, Guard, Ordering, owner_of};
use crate::{hash, stack};

/// How long to look for an element that may be on its way.
const PATIENCE: Duration = Duration::from_millis(200);

/// What [`Map::recover`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Locks that were held.
    pub locks: u32,
    /// Elements that were in transit.
    pub elements: u32,
    /// Ring-buffer records that were reserved: now discarded, so the consumer should look.
    pub records: u32,
}

impl Map {
    /// Frees the locks of a slot and completes or undoes what it was doing. The slot's thread must be dead, or have
    /// left the program for good, and the slot must not be in use again yet.
    ///
    /// The others go on meanwhile. It takes time proportional to the map's size.
    pub fn recover(&self, slot: u32) -> Recovered {
        let _control = self.lock_control();
        let mut done = Recovered::default();
        match self.def().map_type {
            t if is_hash(t) => pool(self.view(), slot, Chains, &mut done),
            MapType::StackTrace => pool(self.view(), slot, Words, &mut done),
            MapType::Ringbuf => ring(self.view(), slot, &mut done),
            _ => {}
        }
        done
    }
}

/// How buckets reach elements.
trait Buckets {
    /// Calls `f` with whether a bucket reaches the element, in a moment in which that does not change.
    fn settle(&self, v: View<'_>, e: Elem<'_>, dead: u32, f: impl FnOnce(bool));
    /// Frees the dead owner's locks and counts them.
    fn unlock(&self, v: View<'_>, dead: u32) -> u32;
    /// True if slots have a spare element.
    fn spares(&self, v: View<'_>) -> bool;
}

/// Chains of a hash map.
struct Chains;

impl Buckets for Chains {
    fn settle(&self, v: View<'_>, e: Elem<'_>, dead: u32, f: impl FnOnce(bool)) {
        let bucket = v.bucket(e.node.hash.load(Ordering::Acquire));
        // The dead slot's own lock serves as ours.
        let _guard = if bucket.lock.load(Ordering::Acquire) == dead {
            None
        } else {
            match Guard::acquire(&bucket.lock, CONTROL_SLOT) {
                None => return, // held for ever by another: a matter of that one's recovery
                guard => guard,
            }
        };
        let reached = hash::link_to(v, bucket, e).is_some();
        if !reached {
            bucket.changed(); // it may be used again, and its slot may have died before it could say so
        }
        f(reached);
    }

    fn unlock(&self, v: View<'_>, dead: u32) -> u32 {
        (0..=v.h.mask).map(|n| release(&v.bucket(n).lock, dead)).sum()
    }

    fn spares(&self, v: View<'_>) -> bool {
        v.h.map_type == MapType::Hash as u32
    }
}

/// Words of a stack trace map.
struct Words;

impl Buckets for Words {
    fn settle(&self, v: View<'_>, e: Elem<'_>, _dead: u32, f: impl FnOnce(bool)) {
        let id = e.node.hash.load(Ordering::Acquire) & v.h.mask;
        let word = stack::bucket(v, id).map_or(0, |b| b.load(Ordering::Acquire));
        f(word == e.idx + 1);
    }

    fn unlock(&self, _v: View<'_>, _dead: u32) -> u32 {
        0
    }

    fn spares(&self, _v: View<'_>) -> bool {
        false
    }
}

/// Recovers the elements of a slot.
fn pool(v: View<'_>, slot: u32, buckets: impl Buckets, done: &mut Recovered) {
    let dead = owner_of(slot);
    let record = v.record(slot);
    for word in [&record.journal, &record.linking] {
        if let Some(e) = v.elem(word.load(Ordering::Acquire).wrapping_sub(1))
            && in_limbo(v, slot, e, &buckets, dead)
        {
            e.node.owner.store(dead, Ordering::Release);
        }
        word.store(0, Ordering::Release);
    }

    let mut loose = Vec::new();
    for e in (0..v.h.elems).filter_map(|i| v.elem(i)) {
        if e.node.owner.load(Ordering::Acquire) == dead {
            buckets.settle(v, e, dead, |reached| {
                if reached {
                    e.node.owner.store(LINKED, Ordering::Release);
                } else {
                    loose.push(e);
                }
            });
        }
    }
    if buckets.spares(v) {
        // One loose element is the spare: the recorded one, unless that was linked in last.
        let spare = v.spare(slot).map(|s| s.idx);
        let keep = loose.iter().position(|e| Some(e.idx) == spare).or(if loose.is_empty() { None } else { Some(0) });
        if let Some(keep) = keep {
            let e = loose.swap_remove(keep);
            done.elements += u32::from(Some(e.idx) != spare);
            v.set_spare(slot, e);
        }
    }
    done.elements += loose.len() as u32;
    for e in loose {
        v.push(CONTROL_SLOT, e);
    }
    done.locks += buckets.unlock(v, dead);
}

/// True if the element that the dead slot's record names is nowhere: it left the free list or its bucket, and the owner
/// word does not say so yet.
///
/// It may as well be with another slot, on its way. That is told apart by looking while the free list does not change:
/// an element that another slot holds is then named by that one's record or by the owner word, or it comes to rest in
/// its bucket. If no such moment comes in time the element is lost.
fn in_limbo(v: View<'_>, slot: u32, e: Elem<'_>, buckets: &impl Buckets, dead: u32) -> bool {
    let deadline = Instant::now() + PATIENCE;
    let named = || {
        let mut others = (0..=v.h.nslots).filter(|&r| r != slot).map(|r| v.record(r));
        others.any(|r| [&r.journal, &r.linking].iter().any(|w| w.load(Ordering::SeqCst) == e.idx + 1))
    };
    let reached = || {
        let mut reached = true;
        buckets.settle(v, e, dead, |r| reached = r);
        reached
    };
    loop {
        let head = v.free_head().load(Ordering::SeqCst);
        if reached() || is_free(v, e, head) {
            if v.free_head().load(Ordering::SeqCst) == head {
                return false;
            }
        } else {
            // Twice, with a look at the bucket between: whoever passes it on has to be seen on one side.
            let owned = || !matches!(e.node.owner.load(Ordering::SeqCst), FREE | LINKED);
            let held = || named() || owned() || named();
            if owned() {
                return false;
            }
            if !held() && !reached() && !held() && v.free_head().load(Ordering::SeqCst) == head {
                return true;
            }
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
}

/// True if the free list that starts at `head` has the element.
fn is_free(v: View<'_>, e: Elem<'_>, head: u64) -> bool {
    let mut at = v.elem(head as u32);
    for _ in 0..v.h.elems {
        match at {
            Some(x) if x.idx == e.idx => return true,
            Some(x) => at = v.elem(x.node.free.load(Ordering::Acquire)),
            None => break,
        }
    }
    false
}

/// Frees a lock if the dead owner holds it.
fn release(lock: &AtomicU32, dead: u32) -> u32 {
    u32::from(lock.compare_exchange(dead, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// Discards the records that a slot reserved and cannot commit any more.
fn ring(v: View<'_>, slot: u32, done: &mut Recovered) {
    let dead = owner_of(slot);
    let ring = Ring::new(v);
    done.locks += release(ring.lock, dead);
    let producer = ring.producer.load(Ordering::Acquire);
    let mut pos = ring.pending.load(Ordering::Acquire);
    if producer.wrapping_sub(pos) > ring.mask + 1 {
        return; // corrupt: the consumer will notice and start again
    }
    while pos != producer {
        let record = ring.record(pos);
        let len = record.len.load(Ordering::Acquire);
        if len & BUSY != 0 && record.owner.load(Ordering::Acquire) == dead {
            let discarded = (len & !BUSY) | DISCARD;
            let swapped = record.len.compare_exchange(len, discarded, Ordering::SeqCst, Ordering::Relaxed);
            done.records += u32::from(swapped.is_ok());
        }
        let step = span(u64::from(len & !(BUSY | DISCARD)));
        if step > producer.wrapping_sub(pos) {
            return;
        }
        pos = pos.wrapping_add(step);
    }
}
