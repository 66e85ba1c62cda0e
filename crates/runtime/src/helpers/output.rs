//! Ring buffers and perf event arrays.

use skep_ebpf::Errno;
use skep_ebpf::uapi::F_INDEX_MASK;
use skep_maps::{MapRef, Part, Sample};

use crate::env::{Env, RESERVED, Reservation};
use crate::{clock, packet, session};

/// Where the length of packet data that is to be appended stands in the flags of `perf_event_output`.
const CTX_LEN_MASK: u64 = 0xf_ffff << 32;

/// Reserves a record and notes it, so that it can be given back if the run ends in the middle.
///
/// # Safety
/// `map` is a ring buffer's handle.
pub(super) unsafe fn ringbuf_reserve(env: &mut Env, map: u64, size: u64, flags: u64) -> u64 {
    // SAFETY: the slot is held, so its area is this run's.
    unsafe {
        let (held, count) = (&mut (*env.area).reserved, &mut (*env.area).nreserved);
        let n = *count as usize;
        if n >= RESERVED {
            return 0;
        }
        let map = map as *const MapRef;
        let sample = (*map).ringbuf_reserve(env.slot, size, flags);
        if !sample.is_null()
            && let Some(place) = held.get_mut(n)
        {
            *place = Reservation { map, sample };
            *count += 1;
        }
        sample as u64
    }
}

/// # Safety
/// `sample` is a record that this run has reserved.
unsafe fn commit(env: &mut Env, sample: u64, flags: u64, discard: bool) -> u64 {
    let sample = sample as *mut u8;
    // SAFETY: as in `ringbuf_reserve`.
    unsafe {
        let (held, count) = (&mut (*env.area).reserved, &mut (*env.area).nreserved);
        let (held, _) = held.split_at_mut((*count as usize).min(RESERVED));
        if let Some(at) = held.iter().position(|r| r.sample == sample)
            && let (Some(&r), Some(&last)) = (held.get(at), held.last())
        {
            if (*r.map).ringbuf_commit(sample, flags, discard) {
                env.doorbell();
            }
            if let Some(place) = held.get_mut(at) {
                *place = last;
            }
            *count -= 1;
        }
    }
    0
}

/// # Safety
/// As [`commit`].
pub(super) unsafe fn ringbuf_submit(env: &mut Env, sample: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { commit(env, sample, flags, false) }
}

/// # Safety
/// As [`commit`].
pub(super) unsafe fn ringbuf_discard(env: &mut Env, sample: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { commit(env, sample, flags, true) }
}

/// # Safety
/// `map` is a ring buffer's handle, `data` readable for `size` bytes.
pub(super) unsafe fn ringbuf_output(env: &mut Env, map: u64, data: u64, size: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    let (ret, wake) = unsafe { (*(map as *const MapRef)).ringbuf_output(env.slot, data as *const u8, size, flags) };
    if wake {
        env.doorbell();
    }
    ret as u64
}

/// # Safety
/// `map` is a ring buffer's handle.
pub(super) unsafe fn ringbuf_query(_: &mut Env, map: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { (*(map as *const MapRef)).ringbuf_query(flags) }
}

/// # Safety
/// `map` is a perf event array's handle, `data` readable for `size` bytes, `ctx` the program's context.
pub(super) unsafe fn perf_event_output(env: &mut Env, ctx: u64, map: u64, flags: u64, data: u64, size: u64) -> u64 {
    let mut tail = Part { ptr: core::ptr::null(), len: 0 };
    let pointers = packet::pointers(env.prog_type);
    let known = if pointers.is_some() { F_INDEX_MASK | CTX_LEN_MASK } else { F_INDEX_MASK };
    if flags & !known != 0 {
        return Errno::EINVAL.neg() as u64;
    }
    if let Some(pointers) = pointers {
        let len = (flags & CTX_LEN_MASK) >> 32;
        // SAFETY: the context is that of a packet program.
        let [start, end, _] = unsafe { packet::bounds(ctx as *const u8, pointers) };
        if len > end.saturating_sub(start) {
            return Errno::EFAULT.neg() as u64;
        }
        tail = Part { ptr: start as *const u8, len: len as usize };
    }
    // SAFETY: the registers are those of the probe.
    let ip = if env.regs.is_null() { 0 } else { unsafe { (*env.regs).rip } };
    // SAFETY: the environment's block is that of this process, or null.
    let time = unsafe { clock::monotonic(env.proc) };
    let (pid, tid) = env.ids();
    let sample = Sample { ip, pid, tid, time };
    // SAFETY: the caller's promise.
    unsafe {
        emit(env, map, flags & F_INDEX_MASK, &sample, [Part { ptr: data as *const u8, len: size as usize }, tail])
    }
}

/// # Safety
/// As [`perf_event_output`].
unsafe fn emit(env: &Env, map: u64, index: u64, sample: &Sample, parts: [Part; 2]) -> u64 {
    // SAFETY: the caller's promise.
    let (ret, wake) = unsafe { (*(map as *const MapRef)).perf_output(env.slot, index, sample, &parts) };
    if wake {
        env.doorbell();
    }
    ret as u64
}

/// Stores a line of `trace_printk`: a [`session::PrintkRecord`] and `len` bytes of text behind it, at `record`.
///
/// # Safety
/// `record` is writable for the head and readable for the text behind it.
pub(super) unsafe fn printk(env: &Env, record: *mut session::PrintkRecord, len: usize) {
    // SAFETY: the caller's promise; arenas are mapped.
    unsafe {
        let map = env.map((*env.control).printk_map);
        if map.is_null() {
            return;
        }
        let (pid, tid) = env.ids();
        record.write_unaligned(session::PrintkRecord {
            link: env.link_index(),
            len: len as u32,
            time_ns: clock::monotonic(env.proc),
            pid,
            tid,
        });
        let size = (size_of::<session::PrintkRecord>() + len) as u64;
        (*map).ringbuf_output(env.slot, record.cast(), size, 0);
        env.doorbell();
    }
}
