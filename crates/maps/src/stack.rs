//! Stack trace maps: call chains, numbered by the bucket they fall into.
//!
//! ```text
//! slots_off     free list and slot records (pool.rs)
//! buckets_off   per bucket: u32, index + 1 of its element, 0 if empty
//! elems_off     elements: Node (`link` is the number of frames), then the frames
//! ```
//!
//! Who changes a bucket swaps its word, so no lock is needed.

use skep_ebpf::Errno;

use crate::header::View;
use crate::mem;
use crate::pool::{Elem, Empty, LINKED};
use crate::sync::{AtomicU32, Ordering, SPINS, owner_of};

const SKIP_MASK: u64 = 0xff;
const USER_STACK: u64 = 1 << 8;
const FAST_STACK_CMP: u64 = 1 << 9;
const REUSE_STACKID: u64 = 1 << 10;

/// The bucket with this number, if there is one.
pub(crate) fn bucket(v: View<'_>, id: u32) -> Option<&AtomicU32> {
    if id > v.h.mask {
        return None;
    }
    // SAFETY: there are `mask` + 1 aligned words.
    Some(unsafe { AtomicU32::from_ptr(v.at(v.h.buckets_off + u64::from(id) * 4).cast()) })
}

/// The element that a bucket's word names.
pub(crate) fn elem(v: View<'_>, word: u32) -> Option<Elem<'_>> {
    v.elem(word.checked_sub(1)?)
}

/// Frames that an element has room for.
fn depth(v: View<'_>) -> usize {
    (v.h.value_size / 8) as usize
}

/// `get_stackid` on a call chain.
///
/// # Safety
/// The region is writable and `slot` the caller's.
pub(crate) unsafe fn insert(v: View<'_>, slot: u32, ips: &[u64], flags: u64) -> i64 {
    if flags & !(SKIP_MASK | USER_STACK | FAST_STACK_CMP | REUSE_STACKID) != 0 {
        return Errno::EINVAL.neg();
    }
    let ips = match ips.get((flags & SKIP_MASK) as usize..) {
        Some(rest) if !rest.is_empty() => rest,
        _ => return Errno::EFAULT.neg(),
    };
    let frames = ips.len().min(depth(v));
    let (trace, bytes) = (ips.as_ptr().cast::<u8>(), frames * 8);
    // SAFETY: the slice has at least `frames` words.
    let hash = unsafe { mem::hash(trace, bytes, 0) };
    let id = hash & v.h.mask;
    let Some(bucket) = bucket(v, id) else { return Errno::EINVAL.neg() };
    let old = elem(v, bucket.load(Ordering::Acquire));
    if let Some(old) = old {
        let same_hash = old.node.hash.load(Ordering::Relaxed) == hash;
        if same_hash && flags & FAST_STACK_CMP != 0 {
            return i64::from(id);
        }
        // SAFETY: an element has room for `depth` ≥ `frames` words.
        let same = same_hash
            && old.node.link.load(Ordering::Relaxed) as usize == frames
            && unsafe { mem::equal(old.key(), trace, bytes) };
        if same {
            return i64::from(id);
        }
        if flags & REUSE_STACKID == 0 {
            return Errno::EEXIST.neg();
        }
    }
    let new = match v.pop(slot) {
        Ok(e) => e,
        Err(Empty::Full) => return Errno::ENOMEM.neg(),
        Err(Empty::Busy) => return Errno::EBUSY.neg(),
    };
    // SAFETY: as above.
    unsafe { mem::copy(new.key(), trace, bytes) };
    new.node.link.store(frames as u32, Ordering::Relaxed);
    new.node.hash.store(hash, Ordering::Relaxed);
    exchange(v, slot, bucket, Some(new));
    i64::from(id)
}

/// Puts an element into a bucket, or nothing, and frees what stood there. True if something did.
fn exchange(v: View<'_>, slot: u32, bucket: &AtomicU32, new: Option<Elem<'_>>) -> bool {
    let word = new.map_or(0, |e| e.idx.wrapping_add(1));
    let (journal, linking) = (&v.record(slot).journal, &v.record(slot).linking);
    // Once the bucket is swapped the new element is anybody's, so its owner word is written before; the record names it
    // in case this slot dies without swapping.
    if let Some(new) = new {
        linking.store(word, Ordering::Release);
        new.node.owner.store(LINKED, Ordering::Release);
    }
    let mut cur = bucket.load(Ordering::Acquire);
    let mut tries = SPINS;
    while tries > 0 {
        let old = elem(v, cur);
        // Said before the swap, so that `old` is found if this slot dies right behind it.
        journal.store(old.map_or(0, |e| e.idx.wrapping_add(1)), Ordering::Release);
        match bucket.compare_exchange_weak(cur, word, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                if let Some(old) = old {
                    old.node.owner.store(owner_of(slot), Ordering::Release);
                }
                journal.store(0, Ordering::Release);
                linking.store(0, Ordering::Release);
                if let Some(old) = old {
                    v.push(slot, old);
                }
                return old.is_some();
            }
            Err(now) => cur = now,
        }
        tries -= 1;
    }
    journal.store(0, Ordering::Release);
    if let Some(new) = new {
        v.push(slot, new);
    }
    linking.store(0, Ordering::Release);
    false
}

/// Empties a bucket, with the kernel's errors.
pub(crate) fn delete(v: View<'_>, slot: u32, id: u32) -> i64 {
    match bucket(v, id) {
        None => Errno::E2BIG.neg(),
        Some(b) if exchange(v, slot, b, None) => 0,
        Some(_) => Errno::ENOENT.neg(),
    }
}

/// Copies the frames of a stack to `out`, which has room for a value; the rest is zeroed. False if there is none.
///
/// # Safety
/// `out` is writable for `value_size` bytes.
#[cfg(feature = "control")]
pub(crate) unsafe fn read(v: View<'_>, id: u32, out: *mut u8) -> bool {
    let Some(bucket) = bucket(v, id) else { return false };
    // A producer may replace the stack meanwhile; what was read is whole if it has the hash that stands with it.
    for _ in 0..64 {
        let word = bucket.load(Ordering::Acquire);
        let Some(e) = elem(v, word) else { return false };
        let hash = e.node.hash.load(Ordering::Relaxed);
        let frames = (e.node.link.load(Ordering::Relaxed) as usize).min(depth(v));
        // SAFETY: an element and `out` have room for `depth` words.
        unsafe {
            mem::copy(out, e.key(), frames * 8);
            if mem::hash(out, frames * 8, 0) == hash && bucket.load(Ordering::Acquire) == word {
                mem::zero(out.wrapping_add(frames * 8), v.h.value_size as usize - frames * 8);
                return true;
            }
        }
    }
    false
}
