//! The layout of `PERF_RECORD_SAMPLE`, field by field as `perf_event.h` lists them.

use super::attr::{PerfAttr, sample};

const SAMPLE: u32 = 9;
const MISC_KERNEL: u16 = 1;
const MISC_USER: u16 = 2;
/// In a call chain: what follows is user space, or the kernel.
const CONTEXT_USER: u64 = 512u64.wrapping_neg();
const CONTEXT_KERNEL: u64 = 128u64.wrapping_neg();
/// Largest record.
const MAX: usize = 65535;

/// Something that happened, as samples tell of it.
#[derive(Clone, Copy, Debug)]
pub struct Occurrence<'a> {
    /// Instruction pointer.
    pub ip: u64,
    /// In user space, not in what a kprobe event calls the kernel.
    pub user: bool,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// vCPU slot.
    pub cpu: u32,
    /// When, if that is known: nanoseconds of the monotonic clock.
    pub time: Option<u64>,
    /// Raw data.
    pub raw: &'a [u8],
}

/// What the event itself adds.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its number.
    pub id: u64,
    /// The number of the event that leads its inherited ones: the same here.
    pub stream: u64,
    /// Nanoseconds of its clock.
    pub time: u64,
    /// Occurrences that this sample stands for.
    pub period: u64,
    /// What a read returns.
    pub values: Vec<u8>,
}

/// A sample. `None` if it would be too large for a record.
pub fn sample(attr: &PerfAttr, o: &Occurrence<'_>, who: &Identity) -> Option<Vec<u8>> {
    let fields = attr.sample_type();
    let mut r = vec![0u8; 8];
    let mut word = |bit: u64, value: u64| {
        if fields & bit != 0 {
            r.extend(value.to_ne_bytes());
        }
    };
    word(sample::IDENTIFIER, who.id);
    word(sample::IP, o.ip);
    word(sample::TID, u64::from(o.pid) | u64::from(o.tid) << 32);
    word(sample::TIME, who.time);
    word(sample::ADDR, 0);
    word(sample::ID, who.id);
    word(sample::STREAM_ID, who.stream);
    word(sample::CPU, u64::from(o.cpu));
    word(sample::PERIOD, who.period);
    if fields & sample::READ != 0 {
        r.extend_from_slice(&who.values);
    }
    if fields & sample::CALLCHAIN != 0 {
        for value in [2, if o.user { CONTEXT_USER } else { CONTEXT_KERNEL }, o.ip] {
            r.extend(value.to_ne_bytes());
        }
    }
    if fields & sample::RAW != 0 {
        // The size counts what pads it, and with it the data are whole words.
        let size = (o.raw.len() + 4).next_multiple_of(8) - 4;
        r.extend((size as u32).to_ne_bytes());
        r.extend_from_slice(o.raw);
        r.resize(r.len() + size - o.raw.len(), 0);
    }
    // Registers, stacks, weights and pages are not sampled here: each is there, and empty.
    for bit in [
        sample::BRANCH_STACK,
        sample::REGS_USER,
        sample::STACK_USER,
        sample::WEIGHT | sample::WEIGHT_STRUCT,
        sample::DATA_SRC,
        sample::TRANSACTION,
        sample::REGS_INTR,
        sample::PHYS_ADDR,
        sample::CGROUP,
        sample::DATA_PAGE_SIZE,
        sample::CODE_PAGE_SIZE,
        sample::AUX,
    ] {
        if fields & bit != 0 {
            r.extend(0u64.to_ne_bytes());
        }
    }
    if r.len() > MAX {
        return None;
    }
    let misc = if o.user { MISC_USER } else { MISC_KERNEL };
    let head = u64::from(SAMPLE) | u64::from(misc) << 32 | (r.len() as u64) << 48;
    r[..8].copy_from_slice(&head.to_ne_bytes());
    Some(r)
}

/// What other records end in, if the event asks for it.
pub fn identity(attr: &PerfAttr, o: &Occurrence<'_>, who: &Identity) -> Vec<u8> {
    let mut r = Vec::new();
    if !attr.sample_id_all() {
        return r;
    }
    let fields = attr.sample_type();
    for (bit, value) in [
        (sample::TID, u64::from(o.pid) | u64::from(o.tid) << 32),
        (sample::TIME, who.time),
        (sample::ID, who.id),
        (sample::STREAM_ID, who.stream),
        (sample::CPU, u64::from(o.cpu)),
        (sample::IDENTIFIER, who.id),
    ] {
        if fields & bit != 0 {
            r.extend(value.to_ne_bytes());
        }
    }
    r
}
