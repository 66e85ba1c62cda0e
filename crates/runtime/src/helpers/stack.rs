//! Call chains, by frame pointers from the registers of the probe.
//!
//! A traced function is the "kernel" here as much as it is user space, so the flags that choose between the two stacks
//! choose the same one. Of a sampled thread only the user stack is known; it comes with the sample.

use skep_ebpf::Errno;
use skep_ebpf::uapi::{ProgType, PtRegs};
use skep_maps::MapRef;

use crate::env::{Env, SCRATCH};
use crate::{read, ret_entry};

const SKIP_MASK: u64 = 0xff;
const USER_STACK: u64 = 1 << 8;
const USER_BUILD_ID: u64 = 1 << 11;

/// Deepest chain, as the kernel's default (`kernel.perf_event_max_stack`).
const MAX_DEPTH: usize = 127;
/// Bytes of the call chain at the start of the scratch memory; a piece of stack is read into the rest.
const CHAIN: usize = MAX_DEPTH * 8;
const WINDOW: usize = SCRATCH - CHAIN;

/// Bytes of a `bpf_stack_build_id`.
const BUILD_ID_ELEM: usize = 32;
/// Its status when it holds an address instead of a build id.
const BUILD_ID_IP: u32 = 2;

/// Reads the stack in pieces: a system call per piece instead of one per frame.
struct Window<'a> {
    bytes: &'a mut [u8],
    start: u64,
    len: usize,
}

impl Window<'_> {
    fn word(&self, at: u64) -> Option<u64> {
        let offset = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(..self.len)?.get(offset..)?.first_chunk::<8>()?;
        Some(u64::from_ne_bytes(*bytes))
    }

    /// The word at an address, if it is readable.
    fn read(&mut self, at: u64) -> Option<u64> {
        if let Some(word) = self.word(at) {
            return Some(word);
        }
        // A piece that reaches into memory that is not there is not read at all; the first page of it may be.
        let in_page = (4096 - at % 4096) as usize;
        for len in [self.bytes.len(), self.bytes.len().min(in_page), 8] {
            // SAFETY: `len` is no more than the slice's.
            if unsafe { read::read(self.bytes.as_mut_ptr(), at, len) } {
                (self.start, self.len) = (at, len);
                return self.word(at);
            }
        }
        None
    }
}

/// True if `address` stands behind a call instruction.
fn follows_call(address: u64) -> bool {
    let mut code = [0u8; 7];
    // SAFETY: seven bytes into a local.
    if !unsafe { read::read(code.as_mut_ptr(), address.wrapping_sub(7), 7) } {
        return false;
    }
    // `call rel32`, or `call r/m64`, two to seven bytes long.
    code[2] == 0xe8 || code.windows(2).any(|w| w[0] == 0xff && w[1] & 0x38 == 0x10)
}

/// Collects the chain, innermost first, into `ips`; returns its length.
///
/// # Safety
/// `regs` is readable, and its process is this one.
unsafe fn chain(env: &Env, regs: *const PtRegs, ips: &mut [u64], window: &mut [u8]) -> usize {
    let mut n = 0;
    let mut push = |ip: u64| {
        let Some(place) = ips.get_mut(n) else { return false };
        // SAFETY: the process block is that of this process, or null.
        *place = if env.proc.is_null() { ip } else { unsafe { ret_entry::real_return(&*env.proc, ip) } };
        n += 1;
        true
    };
    // SAFETY: the caller's promise.
    let regs = unsafe { &*regs };
    let mut stack = Window { bytes: window, start: 0, len: 0 };
    push(regs.rip);
    // At its entry a function has no frame yet: its caller's return address is on top of the stack.
    if regs.rip == env.entry_ip()
        && let Some(top) = stack.read(regs.rsp)
    {
        // SAFETY: as in `push`.
        let real = if env.proc.is_null() { top } else { unsafe { ret_entry::real_return(&*env.proc, top) } };
        if follows_call(real) {
            push(real);
        }
    }
    let mut fp = regs.rbp;
    let mut floor = regs.rsp;
    while fp >= floor && fp.is_multiple_of(8) {
        let (Some(next), Some(ret)) = (stack.read(fp), stack.read(fp.wrapping_add(8))) else { break };
        if ret == 0 || !push(ret) {
            break;
        }
        floor = fp.wrapping_add(16);
        fp = next;
    }
    n
}

/// The registers that the chain of this program starts from.
fn start(env: &Env, ctx: u64) -> *const PtRegs {
    if !env.regs.is_null() {
        return env.regs;
    }
    match ProgType::from_u32(env.prog_type) {
        // Both contexts begin with the registers.
        Some(ProgType::Kprobe | ProgType::PerfEvent) => ctx as *const PtRegs,
        _ => core::ptr::null(),
    }
}

/// The chain of the program, in the slot's scratch memory.
///
/// # Safety
/// `ctx` is the program's context, and the slot is held.
unsafe fn collect(env: &Env, ctx: u64, flags: u64) -> &[u64] {
    if let Some(task) = env.task() {
        return if flags & USER_STACK != 0 { task.chain } else { &[] };
    }
    let regs = start(env, ctx);
    if regs.is_null() {
        return &[];
    }
    // SAFETY: the slot's scratch memory is this run's, aligned to eight, and no program has its address.
    unsafe {
        let scratch = (&raw mut (*env.area).scratch).cast::<u8>();
        let ips = core::slice::from_raw_parts_mut(scratch.cast::<u64>(), MAX_DEPTH);
        let n = chain(env, regs, ips, core::slice::from_raw_parts_mut(scratch.add(CHAIN), WINDOW));
        core::slice::from_raw_parts(ips.as_ptr(), n.min(MAX_DEPTH))
    }
}

/// # Safety
/// `map` is a stack trace map's handle, `ctx` the program's context.
pub(super) unsafe fn get_stackid(env: &mut Env, ctx: u64, map: u64, flags: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { (*(map as *const MapRef)).stackid(env.slot, collect(env, ctx, flags), flags) as u64 }
}

/// # Safety
/// `buf` is writable for `size` bytes, `ctx` the program's context.
pub(super) unsafe fn get_stack(env: &mut Env, ctx: u64, buf: u64, size: u64, flags: u64) -> u64 {
    let (buf, size) = (buf as *mut u8, size as u32 as usize);
    let build_id = flags & USER_BUILD_ID != 0;
    let elem = if build_id { BUILD_ID_ELEM } else { 8 };
    let flags_ok = flags & !(SKIP_MASK | USER_STACK | USER_BUILD_ID) == 0 && (!build_id || flags & USER_STACK != 0);
    // SAFETY: `buf` is writable for `size` bytes, and what is written to it is no more.
    unsafe {
        if !flags_ok || !size.is_multiple_of(elem) {
            core::ptr::write_bytes(buf, 0, size);
            return Errno::EINVAL.neg() as u64;
        }
        let Some(ips) = collect(env, ctx, flags).get((flags & SKIP_MASK) as usize..).filter(|ips| !ips.is_empty())
        else {
            core::ptr::write_bytes(buf, 0, size);
            return Errno::EFAULT.neg() as u64;
        };
        let n = ips.len().min(size / elem);
        core::ptr::write_bytes(buf, 0, size);
        for (i, &ip) in ips.iter().take(n).enumerate() {
            let at = buf.add(i * elem);
            if build_id {
                // The status that says: no build id, but the address.
                at.cast::<u32>().write_unaligned(BUILD_ID_IP);
                at.add(BUILD_ID_ELEM - 8).cast::<u64>().write_unaligned(ip);
            } else {
                at.cast::<u64>().write_unaligned(ip);
            }
        }
        (n * elem) as u64
    }
}
