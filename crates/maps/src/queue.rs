//! Queues and stacks: values in a circle, and which of them are there in a single word.
//!
//! ```text
//! 0             lock u32
//! 8             state u64: index of the oldest value << 32 | number of values
//! elems_off     `max_entries` values, `stride` apart
//! ```
//!
//! An operation is one store to the state, under the lock, after the value that it covers was written or read. So an
//! operation that ended anywhere in the middle has not happened; its lock is given back by recovery.

use skep_ebpf::Errno;
use skep_ebpf::uapi::MapType;
use skep_ebpf::uapi::update::{EXIST, NOEXIST};

use crate::header::View;
use crate::mem;
use crate::sync::{AtomicU32, AtomicU64, Guard, Ordering};

/// Bytes before the values.
#[cfg(feature = "control")]
pub(crate) const HEAD: u64 = 64;

/// Which values are there.
#[derive(Clone, Copy)]
struct State {
    first: u32,
    count: u32,
}

/// What the word says: the first value's index, and how many there are.
pub(crate) fn says(v: View<'_>) -> (u32, u32) {
    let word = word(v).load(Ordering::Acquire);
    ((word >> 32) as u32, word as u32)
}

impl State {
    /// What the word says, if it can be so.
    fn read(v: View<'_>) -> State {
        let (first, count) = says(v);
        State { first: if first < v.h.max_entries { first } else { 0 }, count: count.min(v.h.max_entries) }
    }

    fn write(self, v: View<'_>) {
        word(v).store(u64::from(self.first) << 32 | u64::from(self.count), Ordering::Release);
    }

    /// The index `n` values behind the first.
    fn at(self, v: View<'_>, n: u32) -> u32 {
        let i = u64::from(self.first) + u64::from(n);
        let size = u64::from(v.h.max_entries);
        (if i >= size { i - size } else { i }) as u32
    }
}

pub(crate) fn lock(v: View<'_>) -> &AtomicU32 {
    // SAFETY: the region begins with an aligned word, and lives as long as the view.
    unsafe { AtomicU32::from_ptr(v.at(0).cast()) }
}

fn word(v: View<'_>) -> &AtomicU64 {
    // SAFETY: an aligned word of the head.
    unsafe { AtomicU64::from_ptr(v.at(8).cast()) }
}

fn place(v: View<'_>, index: u32) -> *mut u8 {
    v.at(v.h.elems_off + u64::from(index.min(v.h.max_entries.wrapping_sub(1))) * v.h.stride)
}

/// Puts a value in; with `EXIST` the oldest one goes if there is no room.
///
/// # Safety
/// `value` is readable for `value_size` bytes, and the region is writable.
pub(crate) unsafe fn push(v: View<'_>, slot: u32, value: *const u8, flags: u64) -> i64 {
    if flags & NOEXIST != 0 || flags > EXIST {
        return Errno::EINVAL.neg();
    }
    let Some(_guard) = Guard::acquire(v, lock(v), slot) else { return Errno::EBUSY.neg() };
    let mut state = State::read(v);
    if state.count == v.h.max_entries {
        if flags & EXIST == 0 {
            return Errno::E2BIG.neg();
        }
        state = State { first: state.at(v, 1), count: state.count.wrapping_sub(1) };
        state.write(v);
    }
    // SAFETY: the place is one of the region's values, and not covered by the state.
    unsafe { mem::copy(place(v, state.at(v, state.count)), value, v.h.value_size as usize) };
    State { count: state.count.wrapping_add(1), ..state }.write(v);
    0
}

/// Copies the next value to `out`, and with `take` takes it out. Without one `out` is zeroed.
///
/// # Safety
/// `out` is writable for `value_size` bytes, and the region is writable.
pub(crate) unsafe fn get(v: View<'_>, slot: u32, out: *mut u8, take: bool) -> i64 {
    let size = v.h.value_size as usize;
    let guard = Guard::acquire(v, lock(v), slot);
    let state = State::read(v);
    if guard.is_none() || state.count == 0 {
        // SAFETY: the caller's promise.
        unsafe { mem::zero(out, size) };
        return if guard.is_none() { Errno::EBUSY.neg() } else { Errno::ENOENT.neg() };
    }
    let left = state.count.wrapping_sub(1);
    let stack = v.h.map_type == MapType::Stack as u32;
    let n = if stack { left } else { 0 };
    // SAFETY: the place is one of the region's values; `out` is the caller's promise.
    unsafe { mem::copy(out, place(v, state.at(v, n)), size) };
    if take {
        let first = if stack { state.first } else { state.at(v, 1) };
        State { first, count: left }.write(v);
    }
    0
}
