//! Perf event arrays: a ring per slot, with the kernel's records and positions.
//!
//! ```text
//! buckets_off   per ring: u32, 0 if there is no event, else slot + 1 of the slot whose ring it is
//! elems_off     rings, `stride` apart: a control page (head at 1024, tail at 1032, as in
//!               perf_event_mmap_page), then a power of two of data
//! ```
//!
//! A ring has one writer, the slot, so there is nothing to lock. Records wrap at the end of the data.

use skep_ebpf::Errno;
use skep_ebpf::uapi::{F_CURRENT_CPU, F_INDEX_MASK};

use crate::header::{PAGE, View};
use crate::mem;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What a sample record holds besides the raw data, in this order (`PERF_SAMPLE_*`).
pub mod sample_type {
    /// Instruction pointer.
    pub const IP: u32 = 1 << 0;
    /// Process and thread.
    pub const TID: u32 = 1 << 1;
    /// Time.
    pub const TIME: u32 = 1 << 2;
    /// CPU: here the slot.
    pub const CPU: u32 = 1 << 7;
    /// Raw data; always there.
    pub const RAW: u32 = 1 << 10;
    /// All of these.
    pub const KNOWN: u32 = IP | TID | TIME | CPU | RAW;
}

/// `PERF_RECORD_LOST`.
pub(crate) const RECORD_LOST: u32 = 2;
/// `PERF_RECORD_SAMPLE`.
pub(crate) const RECORD_SAMPLE: u32 = 9;
/// `PERF_RECORD_MISC_USER`.
const MISC_USER: u16 = 2;

/// Where the positions stand in a control page, and the count of lost records behind what the kernel defines there.
pub(crate) const HEAD: u64 = 1024;
pub(crate) const TAIL: u64 = 1032;
const LOST: u64 = 2048;

/// Bytes of a lost record.
pub(crate) const LOST_SIZE: u64 = 24;

/// Who took a sample, where, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Instruction pointer.
    pub ip: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
}

/// A piece of raw data.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Part {
    /// Where it stands.
    pub ptr: *const u8,
    /// Its bytes.
    pub len: usize,
}

/// A ring's control page and data.
#[derive(Clone, Copy)]
pub(crate) struct Ring<'a> {
    pub(crate) head: &'a AtomicU64,
    pub(crate) tail: &'a AtomicU64,
    lost: &'a AtomicU64,
    data: *mut u8,
    /// Bytes of the data − 1.
    pub(crate) mask: u64,
}

impl<'a> Ring<'a> {
    /// The ring with this number, if there is one.
    pub(crate) fn new(v: View<'a>, index: u32) -> Option<Ring<'a>> {
        if index >= v.h.elems {
            return None;
        }
        let base = v.h.elems_off + u64::from(index) * v.h.stride;
        // SAFETY: the ring is in range; the words are aligned and in its control page.
        unsafe {
            Some(Ring {
                head: AtomicU64::from_ptr(v.at(base + HEAD).cast()),
                tail: AtomicU64::from_ptr(v.at(base + TAIL).cast()),
                lost: AtomicU64::from_ptr(v.at(base + LOST).cast()),
                data: v.at(base + PAGE),
                mask: u64::from(v.h.mask),
            })
        }
    }

    /// Copies bytes into the ring from a position on.
    ///
    /// # Safety
    /// `src` is readable for `len` bytes, which is no more than the ring's.
    unsafe fn write(&self, pos: &mut u64, src: *const u8, len: usize) {
        let off = (*pos & self.mask) as usize;
        let first = len.min((self.mask as usize + 1) - off);
        // SAFETY: `off + first` and `len - first` do not exceed the ring.
        unsafe {
            mem::copy(self.data.wrapping_add(off), src, first);
            mem::copy(self.data, src.wrapping_add(first), len - first);
        }
        *pos = pos.wrapping_add(len as u64);
    }

    fn write_u64(&self, pos: &mut u64, v: u64) {
        // SAFETY: eight bytes of a local variable; a ring is at least a page.
        unsafe { self.write(pos, (&raw const v).cast(), 8) };
    }

    /// Copies bytes out of the ring.
    ///
    /// # Safety
    /// `dst` is writable for `len` bytes, which is no more than the ring's.
    #[cfg(feature = "control")]
    pub(crate) unsafe fn read(&self, pos: u64, dst: *mut u8, len: usize) {
        let off = (pos & self.mask) as usize;
        let first = len.min((self.mask as usize + 1) - off);
        // SAFETY: as in `write`.
        unsafe {
            mem::copy(dst, self.data.wrapping_add(off), first);
            mem::copy(dst.wrapping_add(first), self.data, len - first);
        }
    }
}

/// The word that says whose ring an index is.
pub(crate) fn state(v: View<'_>, index: u32) -> Option<&AtomicU32> {
    if index >= v.h.elems {
        return None;
    }
    // SAFETY: there is an aligned word for each ring.
    Some(unsafe { AtomicU32::from_ptr(v.at(v.h.buckets_off + u64::from(index) * 4).cast()) })
}

/// A record's header: type, misc, size.
fn header(kind: u32, misc: u16, size: u64) -> u64 {
    u64::from(kind) | (u64::from(misc) << 32) | (size << 48)
}

/// # Safety
/// Each part is readable; `slot` is the caller's.
pub(crate) unsafe fn output(v: View<'_>, slot: u32, flags: u64, sample: &Sample, parts: &[Part]) -> (i64, bool) {
    let fail = |e: Errno| (e.neg(), false);
    if flags & !F_INDEX_MASK != 0 {
        return fail(Errno::EINVAL);
    }
    let index = if flags == F_CURRENT_CPU { slot } else { flags as u32 };
    if index >= v.h.max_entries {
        return fail(Errno::E2BIG);
    }
    let (Some(state), Some(ring)) = (state(v, index), Ring::new(v, index)) else { return fail(Errno::ENOENT) };
    match state.load(Ordering::Acquire).checked_sub(1) {
        None => return fail(Errno::ENOENT),
        Some(cpu) if cpu != slot || index != slot => return fail(Errno::EOPNOTSUPP),
        Some(_) => {}
    }
    let mut raw = 0u64;
    for p in parts {
        raw = raw.saturating_add(p.len as u64);
    }
    // The raw data's length includes what pads it and its own four bytes to a multiple of eight.
    let padded = (raw.min(u64::from(u32::MAX)) + 4 + 7) & !7;
    let fixed = u64::from((v.h.sample_type & (sample_type::KNOWN & !sample_type::RAW)).count_ones()) * 8;
    let size = 8 + fixed + padded;
    if size > u64::from(u16::MAX) {
        return fail(Errno::E2BIG);
    }
    let start = ring.head.load(Ordering::Relaxed) & !7;
    let lost = ring.lost.load(Ordering::Relaxed);
    let need = size + if lost != 0 { LOST_SIZE } else { 0 };
    let space = ring.tail.load(Ordering::Acquire).wrapping_sub(start.wrapping_add(1)) & ring.mask;
    if space < need {
        ring.lost.store(lost.wrapping_add(1), Ordering::Relaxed);
        return fail(Errno::ENOSPC);
    }
    let mut pos = start;
    if lost != 0 {
        ring.lost.store(0, Ordering::Relaxed);
        ring.write_u64(&mut pos, header(RECORD_LOST, 0, LOST_SIZE));
        ring.write_u64(&mut pos, u64::from(index));
        ring.write_u64(&mut pos, lost);
    }
    ring.write_u64(&mut pos, header(RECORD_SAMPLE, MISC_USER, size));
    let has = |bit: u32| v.h.sample_type & bit != 0;
    if has(sample_type::IP) {
        ring.write_u64(&mut pos, sample.ip);
    }
    if has(sample_type::TID) {
        ring.write_u64(&mut pos, u64::from(sample.pid) | (u64::from(sample.tid) << 32));
    }
    if has(sample_type::TIME) {
        ring.write_u64(&mut pos, sample.time);
    }
    if has(sample_type::CPU) {
        ring.write_u64(&mut pos, u64::from(slot));
    }
    let len = (padded - 4) as u32;
    // SAFETY: four bytes of a local; the parts are readable and together no longer than what was found free; the
    // padding is at most seven bytes.
    unsafe {
        ring.write(&mut pos, (&raw const len).cast(), 4);
        for p in parts {
            ring.write(&mut pos, p.ptr, p.len);
        }
        ring.write(&mut pos, [0u8; 8].as_ptr(), (padded - 4 - raw) as usize);
    }
    ring.head.store(pos, Ordering::SeqCst);
    (0, ring.tail.load(Ordering::SeqCst) == start)
}

/// Writes into each control page where its data are, as `perf_event_mmap_page` says it. For a fresh map.
#[cfg(feature = "control")]
pub(crate) fn init(v: View<'_>) {
    for index in 0..v.h.elems {
        let base = v.h.elems_off + u64::from(index) * v.h.stride;
        for (off, value) in [(TAIL + 8, PAGE), (TAIL + 16, u64::from(v.h.mask) + 1)] {
            // SAFETY: aligned words of this ring's control page.
            unsafe { AtomicU64::from_ptr(v.at(base + off).cast()) }.store(value, Ordering::Relaxed);
        }
    }
}
