//! Stack trace maps: call chains, numbered by the bucket they fall into.
//!
//! ```text
//! slots_off     slot records (pool.rs)
//! buckets_off   buckets as in hash maps; a chain has one element at most
//! elems_off     elements: Node, then the frames
//! ```
//!
//! A stack that is there already is found without a lock; who changes a bucket locks it.

use skep_ebpf::Errno;

use crate::hash::Bucket;
use crate::header::View;
use crate::mem;
use crate::pool::{END, Elem, Empty, LINKED, Record};
use crate::sync::{Ordering, owner_of};

const SKIP_MASK: u64 = 0xff;
const USER_STACK: u64 = 1 << 8;
const FAST_STACK_CMP: u64 = 1 << 9;
const REUSE_STACKID: u64 = 1 << 10;

/// The bucket with this number, if there is one.
pub(crate) fn bucket(v: View<'_>, id: u32) -> Option<&Bucket> {
    if id <= v.h.mask { Some(v.bucket(id)) } else { None }
}

/// The element of a bucket.
pub(crate) fn elem<'a>(v: View<'a>, bucket: &Bucket) -> Option<Elem<'a>> {
    v.linked(bucket.heads[0].load(Ordering::Acquire))
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
    if let Some(old) = elem(v, bucket) {
        let same_hash = old.node().hash.load(Ordering::Relaxed) == hash;
        if same_hash && flags & FAST_STACK_CMP != 0 {
            return i64::from(id);
        }
        // SAFETY: an element has room for `depth` ≥ `frames` words.
        let same = same_hash
            && old.node().frames.load(Ordering::Relaxed) as usize == frames
            && unsafe { mem::equal(old.key(), trace, bytes) };
        if same {
            return i64::from(id);
        }
        if flags & REUSE_STACKID == 0 {
            return Errno::EEXIST.neg();
        }
    }
    let Some(_guard) = v.lock(slot, id) else { return Errno::EBUSY.neg() };
    let new = match v.pop(slot) {
        Ok(e) => e,
        Err(Empty::Full) => return Errno::ENOMEM.neg(),
        Err(Empty::Busy) => return Errno::EBUSY.neg(),
    };
    // SAFETY: as above.
    unsafe { mem::copy(new.key(), trace, bytes) };
    new.node().frames.store(frames as u32, Ordering::Relaxed);
    new.node().hash.store(hash, Ordering::Relaxed);
    v.link(new).store(END, Ordering::Relaxed);
    let old = elem(v, bucket);
    if let Some(old) = old {
        Record::name(&v.record(slot).other, old);
        old.node().owner.store(owner_of(slot), Ordering::Release);
    }
    bucket.heads[0].store(v.link_to(new, hash), Ordering::Release);
    new.node().owner.store(LINKED, Ordering::Release);
    if let Some(old) = old {
        v.push(slot, old);
    }
    v.record(slot).settled();
    i64::from(id)
}

/// Empties a bucket, with the kernel's errors.
pub(crate) fn delete(v: View<'_>, slot: u32, id: u32) -> i64 {
    let Some(bucket) = bucket(v, id) else { return Errno::E2BIG.neg() };
    let Some(_guard) = v.lock(slot, id) else { return Errno::EBUSY.neg() };
    let Some(old) = elem(v, bucket) else { return Errno::ENOENT.neg() };
    Record::name(&v.record(slot).journal, old);
    old.node().owner.store(owner_of(slot), Ordering::Release);
    bucket.heads[0].store(END, Ordering::Release);
    v.push(slot, old);
    0
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
        let Some(e) = elem(v, bucket) else { return false };
        let hash = e.node().hash.load(Ordering::Relaxed);
        let frames = (e.node().frames.load(Ordering::Relaxed) as usize).min(depth(v));
        // SAFETY: an element and `out` have room for `depth` words.
        unsafe {
            mem::copy(out, e.key(), frames * 8);
            if mem::hash(out, frames * 8, 0) == hash
                && bucket.heads[0].load(Ordering::Acquire) & v.h.index_mask == e.idx
            {
                mem::zero(out.wrapping_add(frames * 8), v.h.value_size as usize - frames * 8);
                return true;
            }
        }
    }
    false
}
