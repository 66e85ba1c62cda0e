//! Dynptrs: a place, a length and what kind of memory it is, in 16 bytes that the program keeps and cannot read.

use core::ptr;

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

use super::output;
use crate::env::Env;
use crate::packet;

/// What a program holds. Its kind and whether it may be written stand above the size.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Dynptr {
    /// The memory; of packets the context. 0 if there is none.
    data: u64,
    size: u32,
    offset: u32,
}

const MAX_SIZE: u32 = (1 << 24) - 1;
const KIND: u32 = 7 << 28;
const READ_ONLY: u32 = 1 << 31;
const NONE: Dynptr = Dynptr { data: 0, size: 0, offset: 0 };

fn err(errno: Errno) -> u64 {
    errno.neg() as u64
}

/// An errno of a kernel function that returns an `int`.
fn int(errno: Errno) -> u64 {
    u64::from(errno.neg() as u32)
}

impl Dynptr {
    /// Kind: memory of the program, map values, records of user ring buffers.
    pub(super) const LOCAL: u32 = 1 << 28;
    /// Kind: a record of a ring buffer.
    const RINGBUF: u32 = 2 << 28;
    /// Kind: the packet of a context.
    const PACKET: u32 = 3 << 28;

    pub(super) fn new(data: u64, size: u32, kind: u32) -> Dynptr {
        Dynptr { data, size: size & MAX_SIZE | kind, offset: 0 }
    }

    fn len(self) -> u32 {
        self.size & MAX_SIZE
    }

    fn is_packet(self) -> bool {
        self.size & KIND == Dynptr::PACKET
    }

    fn read_only(self) -> bool {
        self.size & READ_ONLY != 0
    }

    /// True if `len` bytes at `offset` are in it.
    fn has(self, offset: u32, len: u32) -> bool {
        len <= self.len() && offset <= self.len() - len
    }

    /// The address of `len` bytes at `offset`, which are in it; none if a packet has become shorter.
    ///
    /// # Safety
    /// Of a packet, the context is that of the running program.
    unsafe fn at(self, env: &Env, offset: u32, len: u32) -> Option<*mut u8> {
        let offset = u64::from(self.offset) + u64::from(offset);
        if !self.is_packet() {
            return Some((self.data + offset) as *mut u8);
        }
        // SAFETY: the caller's promise.
        let [start, end, _] = unsafe { packet::bounds(self.data as *const u8, packet::pointers(env.prog_type)?) };
        let at = start.checked_add(offset)?;
        (at.checked_add(u64::from(len))? <= end).then_some(at as *mut u8)
    }
}

/// The dynptr that a program passes.
///
/// # Safety
/// `at` is the address of one, initialised or to be so.
unsafe fn dynptr<'a>(at: u64) -> &'a mut Dynptr {
    // SAFETY: 16 aligned bytes of the stack.
    unsafe { &mut *(at as *mut Dynptr) }
}

/// # Safety
/// `data` is writable for `size` bytes, `out` is a place for a dynptr.
pub(super) unsafe fn from_mem(_: &mut Env, data: u64, size: u64, flags: u64, out: u64) -> u64 {
    let size = size as u32;
    // SAFETY: the caller's promise.
    let out = unsafe { dynptr(out) };
    *out = NONE;
    if size > MAX_SIZE {
        return err(Errno::E2BIG);
    }
    if flags != 0 {
        return err(Errno::EINVAL);
    }
    *out = Dynptr::new(data, size, Dynptr::LOCAL);
    0
}

/// # Safety
/// `map` is a ring buffer's handle, `out` is a place for a dynptr.
pub(super) unsafe fn ringbuf_reserve(env: &mut Env, map: u64, size: u64, flags: u64, out: u64) -> u64 {
    let size = size as u32;
    // SAFETY: the caller's promise.
    unsafe {
        let out = dynptr(out);
        *out = NONE;
        if flags != 0 {
            return err(Errno::EINVAL);
        }
        if size > MAX_SIZE {
            return err(Errno::E2BIG);
        }
        let sample = output::ringbuf_reserve(env, map, u64::from(size), 0);
        if sample == 0 {
            return err(Errno::EINVAL);
        }
        *out = Dynptr::new(sample, size, Dynptr::RINGBUF);
    }
    0
}

/// # Safety
/// `record` is a dynptr from [`ringbuf_reserve`].
pub(super) unsafe fn ringbuf_submit(env: &mut Env, record: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let record = core::mem::replace(dynptr(record), NONE);
        if record.data != 0 { output::ringbuf_submit(env, record.data, flags) } else { 0 }
    }
}

/// # Safety
/// As [`ringbuf_submit`].
pub(super) unsafe fn ringbuf_discard(env: &mut Env, record: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let record = core::mem::replace(dynptr(record), NONE);
        if record.data != 0 { output::ringbuf_discard(env, record.data, flags) } else { 0 }
    }
}

/// # Safety
/// `dst` is writable for `len` bytes, `src` is a dynptr.
pub(super) unsafe fn read(env: &mut Env, dst: u64, len: u64, src: u64, offset: u64, flags: u64) -> u64 {
    let (len, offset) = (len as u32, offset as u32);
    // SAFETY: the caller's promise; the bytes are in the dynptr.
    unsafe {
        let src = *dynptr(src);
        if src.data == 0 || flags != 0 {
            return err(Errno::EINVAL);
        }
        if !src.has(offset, len) {
            return err(Errno::E2BIG);
        }
        match src.at(env, offset, len) {
            Some(from) => {
                ptr::copy(from, dst as *mut u8, len as usize);
                0
            }
            None => {
                ptr::write_bytes(dst as *mut u8, 0, len as usize);
                err(Errno::EFAULT)
            }
        }
    }
}

/// Flags of writes to a packet: its checksum is to be computed anew, its hash forgotten.
const STORE_FLAGS: u64 = 3;

/// # Safety
/// `src` is readable for `len` bytes, `dst` is a dynptr.
pub(super) unsafe fn write(env: &mut Env, dst: u64, offset: u64, src: u64, len: u64, flags: u64) -> u64 {
    let (len, offset) = (len as u32, offset as u32);
    // SAFETY: the caller's promise; the bytes are in the dynptr.
    unsafe {
        let dst = *dynptr(dst);
        if dst.data == 0 || dst.read_only() {
            return err(Errno::EINVAL);
        }
        if !dst.has(offset, len) {
            return err(Errno::E2BIG);
        }
        let known = if dst.is_packet() && env.prog_type != ProgType::Xdp as u32 { STORE_FLAGS } else { 0 };
        if flags & !known != 0 {
            return err(Errno::EINVAL);
        }
        match dst.at(env, offset, len) {
            Some(to) => {
                ptr::copy(src as *const u8, to, len as usize);
                0
            }
            None => err(Errno::EFAULT),
        }
    }
}

/// # Safety
/// `from` is a dynptr.
pub(super) unsafe fn data(env: &mut Env, from: u64, offset: u64, len: u64) -> u64 {
    // SAFETY: the caller's promise.
    let from = unsafe { *dynptr(from) };
    if from.is_packet() || from.read_only() {
        return 0;
    }
    // SAFETY: as above.
    unsafe { part(env, from, offset as u32, len as u32) }
}

/// The address of a part of a dynptr, or 0.
///
/// # Safety
/// As [`Dynptr::at`].
unsafe fn part(env: &Env, from: Dynptr, offset: u32, len: u32) -> u64 {
    if from.data == 0 || !from.has(offset, len) {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { from.at(env, offset, len) }.map_or(0, |p| p as u64)
}

/// All packets are in one piece, so that the buffer is not needed.
///
/// # Safety
/// `from` is a dynptr.
pub(super) unsafe fn slice(env: &mut Env, from: u64, offset: u64, _buffer: u64, len: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { part(env, *dynptr(from), offset as u32, len as u32) }
}

/// # Safety
/// As [`slice`].
pub(super) unsafe fn slice_rdwr(env: &mut Env, from: u64, offset: u64, _buffer: u64, len: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let from = *dynptr(from);
        if from.read_only() { 0 } else { part(env, from, offset as u32, len as u32) }
    }
}

/// # Safety
/// `of` is a dynptr.
pub(super) unsafe fn adjust(_: &mut Env, of: u64, start: u64, end: u64) -> u64 {
    let (start, end) = (start as u32, end as u32);
    // SAFETY: the caller's promise.
    let of = unsafe { dynptr(of) };
    if of.data == 0 || start > end {
        return int(Errno::EINVAL);
    }
    if end > of.len() {
        return int(Errno::ERANGE);
    }
    of.offset = of.offset.wrapping_add(start);
    of.size = of.size & !MAX_SIZE | (end - start);
    0
}

/// # Safety
/// `of` is a dynptr.
pub(super) unsafe fn is_null(_: &mut Env, of: u64) -> u64 {
    // SAFETY: the caller's promise.
    u64::from(unsafe { dynptr(of) }.data == 0)
}

/// # Safety
/// `of` is a dynptr.
pub(super) unsafe fn is_rdonly(_: &mut Env, of: u64) -> u64 {
    // SAFETY: the caller's promise.
    let of = unsafe { *dynptr(of) };
    u64::from(of.data != 0 && of.read_only())
}

/// # Safety
/// `of` is a dynptr.
pub(super) unsafe fn size(_: &mut Env, of: u64) -> u64 {
    // SAFETY: the caller's promise.
    let of = unsafe { *dynptr(of) };
    if of.data == 0 { int(Errno::EINVAL) } else { u64::from(of.len()) }
}

/// # Safety
/// `of` is a dynptr, `out` a place for one.
pub(super) unsafe fn clone(_: &mut Env, of: u64, out: u64) -> u64 {
    // SAFETY: the caller's promise.
    let (of, out) = unsafe { (*dynptr(of), dynptr(out)) };
    *out = of;
    if of.data == 0 {
        *out = NONE;
        return int(Errno::EINVAL);
    }
    0
}

/// Copies between dynptrs, which may overlap.
///
/// # Safety
/// `dst` and `src` are dynptrs.
pub(super) unsafe fn copy(env: &mut Env, dst: u64, dst_off: u64, src: u64, src_off: u64, len: u64) -> u64 {
    let (dst_off, src_off, len) = (dst_off as u32, src_off as u32, len as u32);
    // SAFETY: the caller's promise; the bytes are in the dynptrs.
    unsafe {
        let (dst, src) = (*dynptr(dst), *dynptr(src));
        if src.data == 0 || dst.data == 0 || dst.read_only() {
            return int(Errno::EINVAL);
        }
        if !src.has(src_off, len) || !dst.has(dst_off, len) {
            return int(Errno::E2BIG);
        }
        match (src.at(env, src_off, len), dst.at(env, dst_off, len)) {
            (Some(from), Some(to)) => {
                ptr::copy(from, to, len as usize);
                0
            }
            _ => int(Errno::EFAULT),
        }
    }
}

/// Fills a part with a byte.
///
/// # Safety
/// `of` is a dynptr.
pub(super) unsafe fn memset(env: &mut Env, of: u64, offset: u64, len: u64, byte: u64) -> u64 {
    let (offset, len) = (offset as u32, len as u32);
    // SAFETY: the caller's promise; the bytes are in the dynptr.
    unsafe {
        let of = *dynptr(of);
        if of.data == 0 || of.read_only() {
            return int(Errno::EINVAL);
        }
        if !of.has(offset, len) {
            return int(Errno::E2BIG);
        }
        match of.at(env, offset, len) {
            Some(to) => {
                ptr::write_bytes(to, byte as u8, len as usize);
                0
            }
            None => int(Errno::EFAULT),
        }
    }
}

/// The packet of a context. Programs that may not write packets get it for reading.
///
/// # Safety
/// `ctx` is the program's context, `out` a place for a dynptr.
unsafe fn from_packet(env: &Env, ctx: u64, flags: u64, out: u64, writes: bool) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let out = dynptr(out);
        *out = NONE;
        if flags != 0 {
            return int(Errno::EINVAL);
        }
        let Some(pointers) = packet::pointers(env.prog_type) else { return int(Errno::EINVAL) };
        let [start, end, _] = packet::bounds(ctx as *const u8, pointers);
        *out = Dynptr::new(ctx, end.saturating_sub(start) as u32, Dynptr::PACKET);
        if !writes {
            out.size |= READ_ONLY;
        }
    }
    0
}

/// # Safety
/// As [`from_packet`].
pub(super) unsafe fn from_skb(env: &mut Env, ctx: u64, flags: u64, out: u64) -> u64 {
    let writes = matches!(ProgType::from_u32(env.prog_type), Some(ProgType::SchedCls | ProgType::SchedAct));
    // SAFETY: the caller's promise.
    unsafe { from_packet(env, ctx, flags, out, writes) }
}

/// # Safety
/// As [`from_packet`].
pub(super) unsafe fn from_xdp(env: &mut Env, ctx: u64, flags: u64, out: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { from_packet(env, ctx, flags, out, true) }
}
