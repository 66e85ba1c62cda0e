//! The ring that the kernel writes what it saw to, and its records (`perf_event_open(2)`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use perf_event_open_sys::bindings as sys;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;
use skep_ebpf::uapi::PtRegs;

/// Registers that samples have, as bits of `PERF_REG_X86_*`: all but the segments of data.
pub const REGS: u64 = 0xff_0fff;

/// A ring of one CPU. Dropping it ends its events, once their own descriptors are closed.
pub struct Ring {
    fd: OwnedFd,
    base: *mut u8,
    len: usize,
}

// SAFETY: the mapping is this value's own; the kernel writes to it, and `head` and `tail` are atomic.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring of an event, with room for `pages` pages (a power of two) of records.
    pub fn map(fd: OwnedFd, pages: usize) -> io::Result<Ring> {
        let len = (pages + 1) * page_size();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place that the kernel picks.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }?;
        Ok(Ring { fd, base: base.cast(), len })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both positions stand in the first page, aligned, and are written by the kernel and by `take` alone.
        unsafe { AtomicU64::from_ptr(self.base.add(offset).cast()) }
    }

    /// Takes all records out.
    pub fn take(&mut self, mut each: impl FnMut(Record)) {
        let (head, tail) = (
            self.position(std::mem::offset_of!(sys::perf_event_mmap_page, data_head)).load(Ordering::Acquire),
            self.position(std::mem::offset_of!(sys::perf_event_mmap_page, data_tail)),
        );
        let size = self.len - page_size();
        // SAFETY: the data pages are mapped; the kernel does not write to what is between tail and head.
        let data = unsafe { std::slice::from_raw_parts(self.base.add(page_size()), size) };
        let copy = |at: u64, to: &mut [u8]| {
            let (start, end) = data.split_at((at % size as u64) as usize);
            end.iter().chain(start).zip(to).for_each(|(from, to)| *to = *from);
        };
        let mut at = tail.load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        while head.wrapping_sub(at) >= 8 && head.wrapping_sub(at) <= size as u64 {
            let mut header = [0; 8];
            copy(at, &mut header);
            let kind = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let misc = u16::from_ne_bytes([header[4], header[5]]);
            let len = u16::from_ne_bytes([header[6], header[7]]);
            if len < 8 {
                break;
            }
            bytes.resize(usize::from(len) - 8, 0);
            copy(at.wrapping_add(8), &mut bytes);
            if let Some(record) = Record::parse(kind, misc, &bytes) {
                each(record);
            }
            at = at.wrapping_add(u64::from(len));
        }
        tail.store(head, Ordering::Release);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing refers to it.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// What the kernel saw.
#[derive(Debug)]
pub struct Record {
    /// Monotonic clock, ns.
    pub time: u64,
    /// What it was.
    pub what: What,
}

/// See [`Record`].
#[derive(Debug)]
pub enum What {
    /// The event.
    Sample(Box<Sample>),
    /// Samples that found no room.
    Lost(u64),
    /// A thread has a name, or its process has executed another program.
    Comm { pid: u32, tid: u32, exec: bool, name: [u8; 16] },
    /// A thread was made, of a process that is there or of a new one; and by whom.
    Fork { pid: u32, parent: u32, tid: u32, maker: u32 },
    /// A thread has ended.
    Ended { pid: u32, tid: u32 },
    /// Executable memory was mapped.
    Mapped { pid: u32, start: u64, len: u64, offset: u64, path: String },
}

/// A sample of a thread.
#[derive(Debug)]
pub struct Sample {
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The address that the event is about, if it is about one.
    pub addr: u64,
    /// Events since the last one.
    pub period: u64,
    /// The user registers.
    pub regs: PtRegs,
    /// The top of the user stack, from the stack pointer on.
    pub stack: Vec<u8>,
}

/// Reads words from a record.
struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    fn u64(&mut self) -> Option<u64> {
        self.bytes(8).and_then(|b| b.first_chunk()).map(|b| u64::from_ne_bytes(*b))
    }

    fn pair(&mut self) -> Option<(u32, u32)> {
        let word = self.u64()?;
        Some((word as u32, (word >> 32) as u32))
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

/// The text before the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

impl Record {
    fn parse(kind: u32, misc: u16, bytes: &[u8]) -> Option<Record> {
        let mut words = Words(bytes);
        if kind == sys::PERF_RECORD_SAMPLE {
            return Record::sample(words);
        }
        // Behind all others stand process and thread, time, and CPU (`sample_id_all`).
        let (body, id) = bytes.split_at_checked(bytes.len().checked_sub(24)?)?;
        let time = u64::from_ne_bytes(*id.get(8..)?.first_chunk()?);
        words.0 = body;
        let what = match kind {
            sys::PERF_RECORD_LOST => {
                words.u64()?;
                What::Lost(words.u64()?)
            }
            sys::PERF_RECORD_COMM => {
                let (pid, tid) = words.pair()?;
                let mut name = [0; 16];
                for (to, from) in name.iter_mut().take(15).zip(text(words.0)) {
                    *to = *from;
                }
                What::Comm { pid, tid, exec: u32::from(misc) & sys::PERF_RECORD_MISC_COMM_EXEC != 0, name }
            }
            sys::PERF_RECORD_FORK => {
                let ((pid, parent), (tid, maker)) = (words.pair()?, words.pair()?);
                What::Fork { pid, parent, tid, maker }
            }
            sys::PERF_RECORD_EXIT => {
                let ((pid, _), (tid, _)) = (words.pair()?, words.pair()?);
                What::Ended { pid, tid }
            }
            sys::PERF_RECORD_MMAP2 => {
                let (pid, _) = words.pair()?;
                let (start, len, offset) = (words.u64()?, words.u64()?, words.u64()?);
                // Device and inode, or a build id; protection and flags.
                words.bytes(24 + 8)?;
                let path = String::from_utf8_lossy(text(words.0)).into_owned();
                What::Mapped { pid, start, len, offset, path }
            }
            _ => return None,
        };
        Some(Record { time, what })
    }

    fn sample(mut words: Words<'_>) -> Option<Record> {
        let ip = words.u64()?;
        let (pid, tid) = words.pair()?;
        let (time, addr, _cpu, period) = (words.u64()?, words.u64()?, words.u64()?, words.u64()?);
        let mut regs = PtRegs { rip: ip, ..PtRegs::default() };
        // A kernel thread has no user registers.
        let abi = words.u64()?;
        if abi != u64::from(sys::PERF_SAMPLE_REGS_ABI_NONE) {
            for bit in (0..64).filter(|bit| REGS & 1 << bit != 0) {
                let value = words.u64()?;
                if let Some(register) = register(&mut regs, bit) {
                    *register = value;
                }
            }
        }
        let mut stack = Vec::new();
        // Only in samples of events that ask for it.
        if let Some(size) = words.u64().filter(|size| *size != 0) {
            let bytes = words.bytes(usize::try_from(size).ok()?)?;
            let filled = usize::try_from(words.u64()?).ok()?;
            stack = bytes.get(..filled)?.to_vec();
        }
        Some(Record { time, what: What::Sample(Box::new(Sample { pid, tid, addr, period, regs, stack })) })
    }
}

/// The register of a bit of [`REGS`], `enum perf_event_x86_regs`.
fn register(regs: &mut PtRegs, bit: u32) -> Option<&mut u64> {
    Some(match bit {
        0 => &mut regs.rax,
        1 => &mut regs.rbx,
        2 => &mut regs.rcx,
        3 => &mut regs.rdx,
        4 => &mut regs.rsi,
        5 => &mut regs.rdi,
        6 => &mut regs.rbp,
        7 => &mut regs.rsp,
        8 => &mut regs.rip,
        9 => &mut regs.rflags,
        10 => &mut regs.cs,
        11 => &mut regs.ss,
        16 => &mut regs.r8,
        17 => &mut regs.r9,
        18 => &mut regs.r10,
        19 => &mut regs.r11,
        20 => &mut regs.r12,
        21 => &mut regs.r13,
        22 => &mut regs.r14,
        23 => &mut regs.r15,
        _ => return None,
    })
}
