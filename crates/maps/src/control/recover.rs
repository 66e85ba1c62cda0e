//! Giving back what a dead slot held.

use skep_ebpf::uapi::MapType;

use super::Map;
use crate::header::{CONTROL_SLOT, View};
use crate::pool::{Elem, LINKED};
use crate::ringbuf::{BUSY, DISCARD, Ring, span};
use crate::stack;
use crate::sync::{AtomicU32, FREE, Guard, Ordering, owner_of};

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
            MapType::Hash | MapType::PercpuHash => pool(self.view(), slot, Chains, &mut done),
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
        let (mut link, mut steps) = (bucket.head.load(Ordering::Acquire), v.max_walk());
        while let Some(at) = v.elem(link)
            && at.idx != e.idx
            && steps > 0
        {
            (link, steps) = (at.node.link.load(Ordering::Acquire), steps - 1);
        }
        f(link == e.idx);
    }

    fn unlock(&self, v: View<'_>, dead: u32) -> u32 {
        (0..=v.h.mask).map(|n| release(&v.bucket(n).lock, dead)).sum()
    }

    fn spares(&self, v: View<'_>) -> bool {
        v.h.cpu_stride == 0
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

/// True if the element that the dead slot's journal names is nowhere: it left the free list or its bucket, and the
/// owner word does not say so yet.
fn in_limbo(v: View<'_>, slot: u32, e: Elem<'_>, buckets: &impl Buckets, dead: u32) -> bool {
    // Whoever else names it in its journal may be the one who has it, and will say so in a moment.
    for _ in 0..1000 {
        let mut others = (0..=v.h.nslots).filter(|&r| r != slot).map(|r| v.record(r));
        if !others.any(|r| [&r.journal, &r.linking].iter().any(|w| w.load(Ordering::Acquire) == e.idx + 1)) {
            break;
        }
        std::thread::yield_now();
    }
    if !matches!(e.node.owner.load(Ordering::Acquire), FREE | LINKED) {
        return false;
    }
    let mut reached = true;
    buckets.settle(v, e, dead, |r| reached = r);
    !reached && !is_free(v, e)
}

/// True if the element is in the free list, or if that cannot be told because the list keeps changing (then one
/// element is lost, at worst).
fn is_free(v: View<'_>, e: Elem<'_>) -> bool {
    for _ in 0..1000 {
        let head = v.free_head().load(Ordering::Acquire);
        let mut at = v.elem(head as u32);
        for _ in 0..v.h.elems {
            match at {
                Some(x) if x.idx == e.idx => return true,
                Some(x) => at = v.elem(x.node.free.load(Ordering::Acquire)),
                None => break,
            }
        }
        if v.free_head().load(Ordering::Acquire) == head {
            return false;
        }
        std::thread::yield_now();
    }
    true
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
