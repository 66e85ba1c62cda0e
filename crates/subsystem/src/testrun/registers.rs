//! Runs on registers: kprobe and raw tracepoint programs. They see no packet and change nothing in their context.

use skep_ebpf::uapi::PtRegs;

use super::{TestInput, TestOutput, TestRunError, context, invalid, repeat};

/// Arguments that a raw tracepoint can have.
const RAW_ARGS: usize = 12;

fn no_packet(input: &TestInput<'_>, what: &str) -> Result<(), TestRunError> {
    match input.data {
        Some(_) => Err(invalid(format!("{what} programs take no packet"))),
        None => Ok(()),
    }
}

fn run(ctx: &mut [u64], times: u32, program: &mut dyn FnMut(*mut u8) -> u64) -> TestOutput {
    let (retval, duration_ns) = repeat(times, ctx.as_mut_ptr().cast(), program);
    TestOutput { retval, duration_ns, data: None, ctx: None }
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    words
}

pub fn kprobe(input: &TestInput<'_>, program: &mut dyn FnMut(*mut u8) -> u64) -> Result<TestOutput, TestRunError> {
    const SIZE: usize = size_of::<PtRegs>();
    no_packet(input, "kprobe")?;
    let ctx: [u8; SIZE] = context(input.ctx, "struct pt_regs")?;
    Ok(run(&mut words::<{ SIZE / 8 }>(&ctx), input.repeat, program))
}

pub fn raw_tracepoint(
    input: &TestInput<'_>,
    program: &mut dyn FnMut(*mut u8) -> u64,
) -> Result<TestOutput, TestRunError> {
    no_packet(input, "raw tracepoint")?;
    let given = input.ctx.unwrap_or_default();
    if given.len() > RAW_ARGS * 8 {
        return Err(invalid(format!("the context has {} bytes; a raw tracepoint has {}", given.len(), RAW_ARGS * 8)));
    }
    let mut ctx = [0; RAW_ARGS * 8];
    ctx[..given.len()].copy_from_slice(given);
    Ok(run(&mut words::<RAW_ARGS>(&ctx), input.repeat, program))
}
