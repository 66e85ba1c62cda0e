//! `struct perf_event_attr`: what a caller wants to observe.

use skep_ebpf::Errno;

use crate::front::client::Client;

/// Bytes of the structure as it was first published, and in Linux 6.18.
const FIRST: u32 = 64;
const SIZE: usize = 136;
const PAGE: u32 = 4096;

/// `PERF_TYPE_*`.
pub mod kind {
    /// `PERF_TYPE_HARDWARE`.
    pub const HARDWARE: u32 = 0;
    /// `PERF_TYPE_SOFTWARE`.
    pub const SOFTWARE: u32 = 1;
    /// `PERF_TYPE_TRACEPOINT`.
    pub const TRACEPOINT: u32 = 2;
    /// The kprobe PMU, as its `type` file says.
    pub const KPROBE: u32 = 8;
    /// The uprobe PMU.
    pub const UPROBE: u32 = 9;
}

/// `PERF_SAMPLE_*`.
pub mod sample {
    #![allow(missing_docs, reason = "the names are the user API's")]
    pub const IP: u64 = 1 << 0;
    pub const TID: u64 = 1 << 1;
    pub const TIME: u64 = 1 << 2;
    pub const ADDR: u64 = 1 << 3;
    pub const READ: u64 = 1 << 4;
    pub const CALLCHAIN: u64 = 1 << 5;
    pub const ID: u64 = 1 << 6;
    pub const CPU: u64 = 1 << 7;
    pub const PERIOD: u64 = 1 << 8;
    pub const STREAM_ID: u64 = 1 << 9;
    pub const RAW: u64 = 1 << 10;
    pub const BRANCH_STACK: u64 = 1 << 11;
    pub const REGS_USER: u64 = 1 << 12;
    pub const STACK_USER: u64 = 1 << 13;
    pub const WEIGHT: u64 = 1 << 14;
    pub const DATA_SRC: u64 = 1 << 15;
    pub const IDENTIFIER: u64 = 1 << 16;
    pub const TRANSACTION: u64 = 1 << 17;
    pub const REGS_INTR: u64 = 1 << 18;
    pub const PHYS_ADDR: u64 = 1 << 19;
    pub const CGROUP: u64 = 1 << 21;
    pub const DATA_PAGE_SIZE: u64 = 1 << 22;
    pub const CODE_PAGE_SIZE: u64 = 1 << 23;
    pub const WEIGHT_STRUCT: u64 = 1 << 24;
    pub const AUX: u64 = 1 << 20;
    pub const ALL: u64 = (1 << 25) - 1;
}

/// `PERF_FORMAT_*`.
pub mod format {
    #![allow(missing_docs, reason = "the names are the user API's")]
    pub const TIME_ENABLED: u64 = 1;
    pub const TIME_RUNNING: u64 = 2;
    pub const ID: u64 = 4;
    pub const GROUP: u64 = 8;
    pub const LOST: u64 = 16;
    pub const ALL: u64 = 31;
}

/// Bits of the flags word.
mod bit {
    pub const DISABLED: u64 = 1 << 0;
    pub const INHERIT: u64 = 1 << 1;
    pub const PINNED: u64 = 1 << 2;
    pub const EXCLUSIVE: u64 = 1 << 3;
    pub const FREQ: u64 = 1 << 10;
    pub const ENABLE_ON_EXEC: u64 = 1 << 12;
    pub const WATERMARK: u64 = 1 << 14;
    pub const SAMPLE_ID_ALL: u64 = 1 << 18;
    pub const WRITE_BACKWARD: u64 = 1 << 27;
    pub const USE_CLOCKID: u64 = 1 << 25;
    pub const AUX_OUTPUT: u64 = 1 << 31;
    pub const INHERIT_THREAD: u64 = 1 << 35;
    pub const REMOVE_ON_EXEC: u64 = 1 << 36;
    pub const SIGTRAP: u64 = 1 << 37;
    pub const DEFER_CALLCHAIN: u64 = 1 << 38;
    pub const RESERVED: u64 = !(DEFER_CALLCHAIN - 1);
}

/// The attributes of an event.
#[derive(Clone, Debug)]
pub struct PerfAttr([u8; SIZE]);

impl PerfAttr {
    /// Takes a caller's. `E2BIG`, with the size that is known written back, if there is more than is known.
    pub fn read(client: &Client, at: u64) -> Result<PerfAttr, Errno> {
        let mut size = [0; 4];
        client.memory.read(at.checked_add(4).ok_or(Errno::EFAULT)?, &mut size)?;
        let size = match u32::from_ne_bytes(size) {
            0 => FIRST,
            n => n,
        };
        let too_big = || {
            let known = (SIZE as u32).to_ne_bytes();
            client.memory.write(at + 4, &known).and(Err(Errno::E2BIG))
        };
        if !(FIRST..=PAGE).contains(&size) {
            return too_big();
        }
        let given = client.bytes(at, size as usize)?;
        if given.iter().skip(SIZE).any(|b| *b != 0) {
            return too_big();
        }
        let mut bytes = [0; SIZE];
        let known = given.len().min(SIZE);
        bytes[..known].copy_from_slice(&given[..known]);
        let mut attr = PerfAttr(bytes);
        attr.0[4..8].copy_from_slice(&size.to_ne_bytes());
        attr.check()?;
        Ok(attr)
    }

    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
    }

    fn u64(&self, at: usize) -> u64 {
        self.0.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
    }

    fn flag(&self, bit: u64) -> bool {
        self.u64(40) & bit != 0
    }

    /// What no event can be.
    fn check(&self) -> Result<(), Errno> {
        let sample = self.sample_type();
        let has = |bit| sample & bit != 0;
        let stack = self.u32(88);
        let bad = self.u64(40) & bit::RESERVED != 0
            || self.u32(110) & 0xffff != 0
            || self.u32(116) != 0
            || sample & !sample::ALL != 0
            || self.read_format() & !format::ALL != 0
            || has(sample::BRANCH_STACK) && self.bad_branches()
            || has(sample::REGS_USER) && bad_registers(self.u64(80))
            || has(sample::STACK_USER) && (stack >= u32::from(u16::MAX) || !stack.is_multiple_of(8))
            || has(sample::REGS_INTR) && bad_registers(self.u64(96))
            || has(sample::WEIGHT) && has(sample::WEIGHT_STRUCT)
            || self.flag(bit::INHERIT_THREAD) && !self.flag(bit::INHERIT)
            || self.flag(bit::REMOVE_ON_EXEC) && self.flag(bit::ENABLE_ON_EXEC)
            || self.flag(bit::SIGTRAP) && !self.flag(bit::REMOVE_ON_EXEC);
        if bad { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn bad_branches(&self) -> bool {
        let mask = self.u64(72);
        // Something besides privilege levels, and nothing unknown.
        mask & !((1 << 20) - 1) != 0 || mask & !7 == 0
    }

    /// The kind of event.
    pub fn kind(&self) -> u32 {
        self.u32(0)
    }

    /// Which one of the kind.
    pub fn config(&self) -> u64 {
        self.u64(8)
    }

    /// Occurrences between samples; 0 to count only.
    pub fn period(&self) -> u64 {
        self.u64(16)
    }

    /// True if the period is a frequency.
    pub fn is_frequency(&self) -> bool {
        self.flag(bit::FREQ)
    }

    /// What a sample holds.
    pub fn sample_type(&self) -> u64 {
        self.u64(24)
    }

    /// What a read returns.
    pub fn read_format(&self) -> u64 {
        self.u64(32)
    }

    /// It begins disabled.
    pub fn disabled(&self) -> bool {
        self.flag(bit::DISABLED)
    }

    /// Children inherit it.
    pub fn inherit(&self) -> bool {
        self.flag(bit::INHERIT)
    }

    /// It wants to be alone, or always there.
    pub fn wants_all(&self) -> bool {
        self.flag(bit::EXCLUSIVE) || self.flag(bit::PINNED)
    }

    /// It asks for what only hardware has: registers of vectors, or an output to hardware's own buffer.
    pub fn wants_hardware(&self) -> bool {
        self.flag(bit::AUX_OUTPUT) || (self.u64(80) | self.u64(96)) >> 32 != 0
    }

    /// It asks for parts of hardware's own buffer in its samples.
    pub fn wants_aux(&self) -> bool {
        self.u32(112) != 0
    }

    /// A signal for each occurrence.
    pub fn sigtrap(&self) -> bool {
        self.flag(bit::SIGTRAP)
    }

    /// Records end in their identity.
    pub fn sample_id_all(&self) -> bool {
        self.flag(bit::SAMPLE_ID_ALL)
    }

    /// The ring is written from its end to its beginning.
    pub fn backward(&self) -> bool {
        self.flag(bit::WRITE_BACKWARD)
    }

    /// The clock that was asked for; `None` for the usual one.
    pub fn clock(&self) -> Option<i32> {
        self.flag(bit::USE_CLOCKID).then(|| self.u32(92).cast_signed())
    }

    /// Wake after so many samples, or after so many bytes.
    pub fn wakeup(&self) -> Wakeup {
        match (self.flag(bit::WATERMARK), self.u32(48)) {
            (true, bytes) => Wakeup::Bytes(bytes),
            (false, events) => Wakeup::Events(events),
        }
    }

    /// `config1`: `kprobe_func`, `uprobe_path`.
    pub fn config1(&self) -> u64 {
        self.u64(56)
    }

    /// `config2`: `kprobe_addr`, `probe_offset`.
    pub fn config2(&self) -> u64 {
        self.u64(64)
    }

    /// True if samples are to hold branches.
    pub fn wants_branches(&self) -> bool {
        self.sample_type() & sample::BRANCH_STACK != 0
    }
}

/// When a ring wakes its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// After so many samples; 0 for when it is half full.
    Events(u32),
    /// After so many bytes; 0 for half of the ring.
    Bytes(u32),
}

/// A mask of registers that this architecture does not have all of: x86-64 has 24 without ds, es, fs and gs.
fn bad_registers(mask: u64) -> bool {
    const MISSING: u64 = 0xf << 12;
    const EXTENDED: u64 = 0xffff_ffff << 32;
    mask == 0 || mask & MISSING != 0 || mask & !(EXTENDED | 0xff_ffff) != 0
}
