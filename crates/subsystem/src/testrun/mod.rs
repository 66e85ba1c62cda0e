//! Test runs: one program on given data, with the answers of the kernel's `BPF_PROG_TEST_RUN`.
//!
//! Sizes, checks and defaults are what Linux 6.18 was seen to do. Two things go further: kprobe programs run (with a
//! `struct pt_regs` as context), and raw tracepoint programs may be repeated.

mod registers;
mod skb;
mod syscall;
mod xdp;

use std::time::Instant;

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

/// Largest context that is looked at: the kernel's page.
const MAX_CTX: usize = 4096;

/// What a program is to run on.
#[derive(Clone, Copy, Debug, Default)]
pub struct TestInput<'a> {
    /// Packet.
    pub data: Option<&'a [u8]>,
    /// Context.
    pub ctx: Option<&'a [u8]>,
    /// Runs; 0 means 1.
    pub repeat: u32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestOutput {
    /// What the last run returned.
    pub retval: u32,
    /// Mean duration of a run.
    pub duration_ns: u64,
    /// The packet afterwards.
    pub data: Option<Vec<u8>>,
    /// The context afterwards.
    pub ctx: Option<Vec<u8>>,
}

/// Why there was no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TestRunError {
    /// The input is not what the program type takes.
    #[error("{reason} ({})", errno.name())]
    Refused {
        /// The kernel's answer.
        errno: Errno,
        /// What is wrong.
        reason: String,
    },
    /// There are no test runs of this type.
    #[error("programs of type {prog_type} cannot be test-run yet")]
    Unsupported {
        /// The type.
        prog_type: ProgType,
    },
    /// The session has no such program.
    #[error("the session has no program {index}")]
    NoProgram {
        /// The index asked for.
        index: usize,
    },
    /// Every vCPU slot is taken.
    #[error("no vCPU slot is free")]
    NoSlot,
    /// The memory of machine code could not be made executable.
    #[error("machine code cannot be executed here: {problem}")]
    NoCode {
        /// What the system says.
        problem: String,
    },
    /// A run was ended: it took too long.
    #[error("the run-time budget of {budget} steps was spent")]
    OverBudget {
        /// The budget.
        budget: u64,
    },
    /// The input is fine, but asks for something that is not built in.
    #[error("{what} is not supported in test runs yet")]
    NotYet {
        /// The thing.
        what: &'static str,
    },
}

fn refused(errno: Errno, reason: impl Into<String>) -> TestRunError {
    TestRunError::Refused { errno, reason: reason.into() }
}

fn invalid(reason: impl Into<String>) -> TestRunError {
    refused(Errno::EINVAL, reason)
}

/// Runs a program of a type; `program` is called with the address of its context and returns r0.
pub(crate) fn test_run(
    prog_type: ProgType,
    input: &TestInput<'_>,
    program: &mut dyn FnMut(*mut u8) -> u64,
) -> Result<TestOutput, TestRunError> {
    match prog_type {
        ProgType::SocketFilter | ProgType::SchedCls | ProgType::SchedAct | ProgType::CgroupSkb => {
            skb::run(prog_type, input, program)
        }
        ProgType::Syscall => syscall::run(input, program),
        ProgType::Xdp => xdp::run(input, program),
        ProgType::Kprobe => registers::kprobe(input, program),
        ProgType::RawTracepoint => registers::raw_tracepoint(input, program),
        prog_type => Err(TestRunError::Unsupported { prog_type }),
    }
}

/// Runs a program as often as asked for; the last r0 and the mean duration.
fn repeat(times: u32, ctx: *mut u8, program: &mut dyn FnMut(*mut u8) -> u64) -> (u32, u64) {
    let times = times.max(1);
    let mut retval = 0;
    let start = Instant::now();
    for _ in 0..times {
        retval = program(ctx);
    }
    let ns = start.elapsed().as_nanos() / u128::from(times);
    (retval as u32, u64::try_from(ns).unwrap_or(u64::MAX))
}

/// A context of `N` bytes from the user's: shorter ones are filled up with zeros, longer ones must end in zeros.
fn context<const N: usize>(given: Option<&[u8]>, name: &str) -> Result<[u8; N], TestRunError> {
    let mut ctx = [0; N];
    let Some(given) = given else { return Ok(ctx) };
    if given.is_empty() {
        return Err(invalid("the context is empty"));
    }
    if given.len() > MAX_CTX || given.iter().skip(N).any(|&b| b != 0) {
        return Err(refused(Errno::E2BIG, format!("the context is longer than {name} ({N} bytes)")));
    }
    let n = given.len().min(N);
    ctx[..n].copy_from_slice(&given[..n]);
    Ok(ctx)
}

fn get(ctx: &[u8], at: usize) -> u32 {
    ctx.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
}

fn put<const N: usize>(ctx: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(to) = ctx.get_mut(at..at + N) {
        to.copy_from_slice(&bytes);
    }
}

fn get_pointer(ctx: &[u8], at: usize) -> usize {
    ctx.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| usize::from_ne_bytes(*b))
}

/// True if this network namespace has a device of that number.
pub(crate) fn device(index: u32) -> bool {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call asks for.
    index == 1 || !unsafe { libc::if_indextoname(index, name.as_mut_ptr()) }.is_null()
}

#[cfg(test)]
mod tests;
