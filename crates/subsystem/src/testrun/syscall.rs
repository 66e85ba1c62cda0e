//! Runs of `syscall` programs: on a context of any layout, which they may change.

use super::{TestInput, TestOutput, TestRunError, invalid, repeat};

/// Most bytes of a context.
const MAX_CTX: usize = u16::MAX as usize;

pub fn run(input: &TestInput<'_>, program: &mut dyn FnMut(*mut u8) -> u64) -> Result<TestOutput, TestRunError> {
    if input.data.is_some() {
        return Err(invalid("syscall programs take no packet"));
    }
    if input.repeat > 1 {
        return Err(invalid("syscall programs run once"));
    }
    let given = input.ctx.unwrap_or_default();
    if given.len() > MAX_CTX {
        return Err(invalid(format!("the context has {} bytes; {MAX_CTX} are possible", given.len())));
    }
    // Whatever the program was allowed to reach is there.
    let mut words = vec![0u64; MAX_CTX / 8 + 1];
    let base = words.as_mut_ptr().cast::<u8>();
    // SAFETY: the buffer is longer than any context, and programs get its address: it is reached through `base` alone.
    unsafe { base.copy_from_nonoverlapping(given.as_ptr(), given.len()) };
    let (retval, duration_ns) = repeat(1, base, program);
    let mut ctx = vec![0u8; given.len()];
    // SAFETY: as above.
    unsafe { ctx.as_mut_ptr().copy_from_nonoverlapping(base, given.len()) };
    Ok(TestOutput { retval, duration_ns, data: None, ctx: input.ctx.map(|_| ctx) })
}
