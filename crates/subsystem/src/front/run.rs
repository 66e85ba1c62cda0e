//! `BPF_PROG_TEST_RUN`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_ebpf::Errno;
use skep_ebpf::uapi::ProgType;

use super::Subsystem;
use super::attr::{Attr, Field, test_run};
use super::client::Client;
use super::object::{Object, ProgObject};
use crate::testrun::{self, TestInput, TestOutput, TestRunError};

/// Largest packet or context that is taken from a caller.
const MAX_INPUT: u32 = 1 << 20;

impl Subsystem {
    pub(super) fn prog_test_run(&self, client: &Client, attr: &mut Attr<'_>) -> Result<i32, Errno> {
        use test_run as f;
        attr.ends_at(f::END)?;
        let pair = |size: Field, at: Field| (attr.u32(size), attr.u64(at));
        let (ctx_in, ctx_out) = (pair(f::CTX_SIZE_IN, f::CTX_IN), pair(f::CTX_SIZE_OUT, f::CTX_OUT));
        // A size needs an address, and the other way round.
        if [ctx_in, ctx_out].iter().any(|(size, at)| (*size == 0) != (*at == 0)) {
            return Err(Errno::EINVAL);
        }
        let Object::Prog(prog) = client.files.get(attr.fd(f::PROG_FD))? else { return Err(Errno::EINVAL) };
        let data_in = pair(f::DATA_SIZE_IN, f::DATA_IN);
        let syscall = prog.loaded.prog_type() == ProgType::Syscall;
        if syscall {
            // These take a context, give it back where it was, and that is all.
            let others = [f::DATA_SIZE_IN, f::DATA_SIZE_OUT, f::CTX_SIZE_OUT, f::REPEAT, f::DURATION];
            let given = others.iter().any(|field| attr.u32(*field) != 0);
            if given || attr.u64(f::DATA_IN) != 0 || attr.u64(f::DATA_OUT) != 0 || ctx_in.0 > u32::from(u16::MAX) {
                return Err(Errno::EINVAL);
            }
        }
        if attr.u32(f::FLAGS) != 0 || attr.u32(f::BATCH_SIZE) != 0 || attr.u32(f::CPU) != 0 {
            return Err(Errno::EINVAL);
        }
        let given = |(size, at): (u32, u64)| match (size, at) {
            (0, 0) => Ok(None),
            (size, _) if size > MAX_INPUT => Err(Errno::EINVAL),
            (size, at) => client.bytes(at, size as usize).map(Some),
        };
        let (data, ctx) = (given(data_in)?, given(ctx_in)?);
        let input = TestInput { data: data.as_deref(), ctx: ctx.as_deref(), repeat: attr.u32(f::REPEAT) };
        let output = self.run(&prog, &input)?;
        if syscall {
            if let Some(ctx) = &output.ctx {
                client.memory.write(ctx_in.1, ctx)?;
            }
            attr.answer(f::RETVAL, &output.retval.to_ne_bytes())?;
            return Ok(0);
        }
        finish(client, attr, &output)
    }

    /// Runs a program on given data, with the kernel's errnos.
    fn run(&self, prog: &Arc<ProgObject>, input: &TestInput<'_>) -> Result<TestOutput, Errno> {
        self.test_run(prog, input).map_err(|e| match e {
            TestRunError::Refused { errno, .. } => errno,
            TestRunError::Unsupported { .. } | TestRunError::NotYet { .. } => Errno::ENOTSUPP,
            TestRunError::NoProgram { .. } => Errno::EINVAL,
            TestRunError::NoSlot => Errno::EBUSY,
            TestRunError::NoCode { .. } => Errno::ENOMEM,
            TestRunError::OverBudget { .. } => Errno::EINTR,
        })
    }

    /// Runs a program on given data.
    pub(crate) fn test_run(&self, prog: &Arc<ProgObject>, input: &TestInput<'_>) -> Result<TestOutput, TestRunError> {
        if prog.loaded.is_idle() {
            let prog_type = prog.verified.program().prog_type;
            return Err(TestRunError::Unsupported { prog_type });
        }
        let index = prog.place.index();
        // An extension has a type that there are no test runs of.
        let prog_type = prog.verified.program().prog_type;
        let mut over_budget = false;
        let output = self.world.with_machine(|machine| {
            testrun::test_run(prog_type, input, &mut |ctx| {
                // SAFETY: `test_run` makes contexts of the type that it is given, and the program is of that type.
                match unsafe { machine.run(index, ctx) } {
                    Some(run) => {
                        over_budget |= run.over_budget;
                        run.retval
                    }
                    None => 0,
                }
            })
        });
        prog.feed();
        let output = output.ok_or(TestRunError::NoSlot)??;
        if over_budget {
            return Err(TestRunError::OverBudget { budget: self.world.limits.budget });
        }
        if self.stats_users.load(Ordering::Relaxed) > 0 {
            let runs = u64::from(input.repeat.max(1));
            prog.runs.add(runs, output.duration_ns.saturating_mul(runs));
        }
        Ok(output)
    }
}

/// Gives the results to the caller. A buffer that is too small gets what fits, and the call answers `ENOSPC`.
fn finish(client: &Client, attr: &mut Attr<'_>, output: &TestOutput) -> Result<i32, Errno> {
    use test_run as f;
    let mut short = false;
    let mut give = |attr: &mut Attr<'_>, bytes: &Option<Vec<u8>>, size: Field, at: Field, hint: bool| {
        let Some(bytes) = bytes else { return Ok(()) };
        let (room, to) = (attr.u32(size) as usize, attr.u64(at));
        // Without a size the caller vouches for the room.
        let n = if room == 0 && !hint { bytes.len() } else { bytes.len().min(room) };
        short |= n < bytes.len() && (room != 0 || to != 0);
        if to != 0 {
            client.memory.write(to, &bytes[..n])?;
        }
        attr.answer(size, &(bytes.len() as u32).to_ne_bytes())
    };
    give(attr, &output.data, f::DATA_SIZE_OUT, f::DATA_OUT, false)?;
    give(attr, &output.ctx, f::CTX_SIZE_OUT, f::CTX_OUT, true)?;
    attr.answer(f::RETVAL, &output.retval.to_ne_bytes())?;
    attr.answer(f::DURATION, &u32::try_from(output.duration_ns).unwrap_or(u32::MAX).to_ne_bytes())?;
    if short { Err(Errno::ENOSPC) } else { Ok(0) }
}
